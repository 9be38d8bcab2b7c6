"""Files into decoded uint8 batches: read a table of images, split it without leaks, decode each image once, batch.

    python data.py FOLDER            # what would be read: layout, classes, counts, and how it would be split

    table = read("path/to/folder")                         # paths, targets, groups, classes
    train, val = split(table, val_frac=0.2, seed=0)        # row numbers; no group on both sides
    images = decode(table, size=224, cache="cache")        # every file decoded once, uint8, memory-mapped
    for images, targets in Batches(images, train, batch_size=32, shuffle=True): ...

A group is what must not be on both sides of a split: all photos of one person, all copies of one scan. Random splits
by image put them there, and validation then says 0.99 where the leaderboard says 0.8.

There are no worker processes: decoding happens once, in threads, and a batch afterwards is one gather of rows.
"""

from __future__ import annotations

import codecs
import csv
import hashlib
import inspect
import io
import os
import queue
import re
import sys
import threading
import unicodedata
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision
from PIL import Image, ImageOps
from torch import Tensor
from torch.utils.data import ConcatDataset, Dataset
from torchvision.transforms.v2 import functional as transforms
from tqdm import tqdm

try:
    from torchvision.io import ImageReadMode, decode_jpeg
except ImportError:  # deprecated since torchvision 0.29; without it Pillow reads JPEG too, more slowly
    decode_jpeg = None

IMAGE_EXTENSIONS = {".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm"}
CACHE_FORMAT = 1  # part of every cache's key: raise it when decoding changes


@dataclass
class ImageTable:
    """A row an image. `targets` is int64 (N,); `is_val` (N,) is set where the layout fixes the split."""

    paths: list[str]
    targets: np.ndarray
    groups: list[str]  # where nothing else is known an image is a group of its own, named by its path
    classes: list[str]
    layout: str  # what was read, in words
    is_val: np.ndarray | None = None
    source: Sequence | None = None  # a torchvision data set whose images are not files; `paths` then only name them
    notes: list[str] = field(default_factory=list)  # what a person should know: files left alone, empty classes

    def __len__(self) -> int:
        return len(self.paths)


# ---------------------------------------------------------------------------------------------------------------------
# Reading
# ---------------------------------------------------------------------------------------------------------------------


def read(
    data: str,
    csv_file: str | None = None,
    cache: str | Path = "cache",
    train: bool = True,
    columns: dict[str, str] | None = None,
    group_regex: str | None = None,
) -> ImageTable:
    """A table of images from whatever lies at `data`; which layout it is, is found by looking.

    - the mask competition: a train.csv with gender, race, age and path, 7 photos in each person's folder
    - `csv_file`, or a train.csv in the folder: an image column and a label column
    - an image folder: FOLDER/CLASS/*.jpg, with train and val (or valid) above the classes or not
    - the name of a torchvision data set: CIFAR10, MNIST, ... downloaded to `cache` (`train=False`: its test part)

    Args:
        columns: the CSV's columns by their part, "image", "label" or "group", where they are not to be found by name.
        group_regex: names each image's group from its path: the expression's first (...), or all that it matches.
    Raises: FileNotFoundError or ValueError that names the path, the column or the value.
    """
    folder, columns = Path(data), columns or {}
    if csv_file is not None:
        if not Path(csv_file).is_file():
            raise FileNotFoundError(f"{csv_file} is not a file")
        if not folder.is_dir():
            raise FileNotFoundError(f"{data} is not a folder of images")
        table = read_csv(Path(csv_file), folder, columns)
    elif folder.is_dir():
        tables = [path for path in (folder / "train" / "train.csv", folder / "train.csv") if path.is_file()]
        if tables and not columns and {"gender", "race", "age", "path"} <= set(_rows(tables[0])[0]):
            table = read_mask(tables[0])
        elif tables:
            table = read_csv(tables[0], folder, columns)
        else:
            table = read_folder(folder)
    elif data in torchvision.datasets.__all__:
        table = read_torchvision(data, Path(cache) / "torchvision", train)
    else:
        raise FileNotFoundError(f"{data} is neither a folder nor the name of a torchvision data set")
    if columns and ": image column " not in table.layout:
        raise ValueError(f"there is no CSV that could have a column {next(iter(columns.values()))!r}: {table.layout}")
    if group_regex is not None:
        table.groups = _groups_by_regex(table.paths, group_regex)
        table.layout += f", groups by {group_regex}"
    if len(table.classes) < 2:
        raise ValueError(f"{data} holds only one class, {table.classes[0]!r}: there is nothing to tell apart")
    missing = np.flatnonzero(np.bincount(table.targets, minlength=len(table.classes)) == 0)
    if len(missing) and train:
        names = ", ".join(table.classes[c] for c in missing[:10])
        table.notes.append(f"{len(missing)} of {len(table.classes)} classes have no image: {names}")
    return table


def read_folder(folder: Path) -> ImageTable:
    """FOLDER/CLASS/**/image, or the same below FOLDER/train and FOLDER/val (or valid). Class names sort as text."""
    parts = {"": folder}
    if (folder / "train").is_dir():
        validation = next((folder / name for name in ("val", "valid") if (folder / name).is_dir()), None)
        parts = {"train": folder / "train"} | ({"val": validation} if validation else {})
    paths, names, is_val, ignored = [], [], [], []
    for part, root in parts.items():
        class_folders = sorted(p for p in root.iterdir() if p.is_dir() and not p.name.startswith("."))
        if not class_folders:
            raise ValueError(f"{root} holds no class folders (expected {root}/CLASS/*.jpg)")
        for class_folder in class_folders:
            found, other = _image_files(class_folder)
            if not found:
                raise ValueError(f"class folder {class_folder} holds no image ({', '.join(sorted(IMAGE_EXTENSIONS))})")
            paths += found
            names += [_composed(class_folder.name)] * len(found)
            is_val += [part == "val"] * len(found)
            ignored += other
    classes = sorted(set(names))
    number = {name: i for i, name in enumerate(classes)}
    table = ImageTable(
        paths=paths,
        targets=np.array([number[name] for name in names], dtype=np.int64),
        groups=paths,
        classes=classes,
        layout=f"image folder {folder}" + (" with train and val" if "val" in parts else ""),
        is_val=np.array(is_val) if "val" in parts else None,
    )
    if ignored:
        table.notes.append(f"{len(ignored)} files without an image extension left alone, such as {ignored[0]}")
    if "train" in parts and (folder / "test").is_dir():
        table.notes.append(f"{folder / 'test'} left alone (--val-data takes it as validation)")
    return table


def read_csv(csv_file: Path, folder: Path, named: dict[str, str]) -> ImageTable:
    """A CSV with a header. The columns are found by name, and an image column is one whose values are files.

    image: ID, ImageID, image_id, image_path, img_path, image, path, file, filename, name; label: target, label, class,
    ans, y, else the last column; group: group, id, person, profile, source. Case does not matter. Labels that are all
    whole numbers >= 0 are class numbers, and C is the largest + 1 (a meta.csv with target and class_name may name
    more); other labels are class names, sorted as text. `named` overrides the rule: {"group": "patient"}.
    """
    rows = _rows(csv_file)
    columns = {name.lower(): name for name in rows[0]}
    for name in named.values():
        if name.lower() not in columns:
            raise ValueError(f"{csv_file} has no column {name!r}: it has {', '.join(rows[0])}")
    images, labels, groups = (
        [columns[named[part].lower()]] if part in named else [columns[name] for name in known if name in columns]
        for part, known in _COLUMNS.items()
    )
    if not images:
        raise ValueError(f"{csv_file} has no image column ({', '.join(_COLUMNS['image'])}); it has {list(rows[0])}")
    folders = [folder, folder / "train", folder / "images", folder / "train" / "images", csv_file.parent]
    found = [(column, root) for column in images for root in folders if _file(root, rows[0][column])]
    if not found:
        raise FileNotFoundError(f"{csv_file}: no file {rows[0][images[0]]} in {folder} (column {images[0]})")
    image, root = found[0]
    label = [*labels, list(rows[0])[-1]][0]
    if label == image:
        raise ValueError(f"{csv_file} has no label column beside {image!r}")
    group = next((name for name in groups if name != image), None)
    paths = [_file(root, row[image]) for row in rows]
    missing = [row[image] for row, path in zip(rows, paths, strict=True) if path is None]
    if missing:
        names = ", ".join(missing[:20])
        raise FileNotFoundError(f"{csv_file}: {len(missing)} of {len(rows)} images are not in {root}: {names}")
    targets, classes = _classes(csv_file, [row[label] for row in rows], label)
    label_of: dict[str, int] = {}
    for path, target in zip(paths, targets.tolist(), strict=True):
        if label_of.setdefault(path, target) != target:
            raise ValueError(f"{csv_file}: {path} has two labels, {classes[label_of[path]]} and {classes[target]}")
    groups = paths if group is None else [row[group] for row in rows]
    layout = f"{csv_file}: image column {image}, label column {label}, group column {group or 'none'}"
    return ImageTable(paths, targets, groups, classes, layout)


_COLUMNS = {
    "image": ("id", "imageid", "image_id", "image_path", "img_path", "image", "path", "file", "filename", "name"),
    "label": ("target", "label", "class", "ans", "y"),
    "group": ("group", "id", "person", "profile", "source"),
}


def _groups_by_regex(paths: list[str], group_regex: str) -> list[str]:
    try:
        matches = [re.search(group_regex, _composed(path)) for path in paths]
    except re.error as error:
        raise ValueError(f"{group_regex!r} is no regular expression: {error}") from error
    groups = [match and (match[1] if match.re.groups else match[0]) for match in matches]
    unnamed = [path for path, group in zip(paths, groups, strict=True) if not group]
    if unnamed:
        raise ValueError(f"{group_regex!r} names no group for {len(unnamed)} of {len(paths)} images, as {unnamed[0]}")
    return groups


def read_mask(csv_file: Path) -> ImageTable:
    """The mask competition: a row a person, 7 photos in images/{path}; the group is the person.

    Label = mask * 6 + gender * 3 + age, with mask: wear 0, incorrect 1, normal 2; gender: male 0, female 1;
    age: under 30 is 0, under 60 is 1, else 2.
    """
    paths, targets, groups = [], [], []
    for row in _rows(csv_file):
        folder = _spelled(csv_file.parent / "images", row["path"])
        photos, _ = _image_files(folder) if folder.is_dir() else ([], [])
        if not photos:
            raise FileNotFoundError(f"{csv_file}: {folder} holds no photo")
        try:
            gender = ("male", "female").index(row["gender"])
            age = sum(int(row["age"]) >= limit for limit in (30, 60))
        except ValueError:
            raise ValueError(f"{csv_file}: gender {row['gender']!r}, age {row['age']!r} of {row['path']}") from None
        for photo in photos:
            stem = Path(photo).stem
            if not stem.startswith("mask") and stem not in ("incorrect_mask", "normal"):
                raise ValueError(f"{photo}: expected mask1..mask5, incorrect_mask or normal")
            mask = 0 if stem.startswith("mask") else 1 if stem == "incorrect_mask" else 2
            paths.append(photo)
            targets.append(mask * 6 + gender * 3 + age)
            groups.append(row["path"])
    classes = [
        f"{mask}, {gender}, {age}"
        for mask in ("mask", "incorrect", "no mask")
        for gender in ("male", "female")
        for age in ("<30", "30-59", ">=60")
    ]
    layout = f"mask layout {csv_file}, a group a person"
    return ImageTable(paths, np.array(targets, dtype=np.int64), groups, classes, layout)


def read_torchvision(name: str, root: Path, train: bool = True) -> ImageTable:
    """The training part (or the test part) of a torchvision data set, downloaded to `root` if it is not there."""
    dataset_class = getattr(torchvision.datasets, name)
    takes = inspect.signature(dataset_class).parameters
    options: dict[str, Any] = {"root": str(root)} if "root" in takes else {}
    if "train" in takes:
        options["train"] = train
    elif "split" in takes:
        options["split"] = "train" if train else "test"
    elif not train:
        raise ValueError(f"the torchvision data set {name} has no test part")
    if "download" in takes:
        options["download"] = True
    try:
        dataset = dataset_class(**options)
        known = (getattr(dataset, key) for key in ("targets", "labels", "_labels") if hasattr(dataset, key))
        targets = np.array([int(t) for t in next(known, (item[1] for item in dataset))], dtype=np.int64)
    except Exception as error:  # no network, another signature, targets that are no classes
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        what = f"the torchvision data set {name} cannot be had as a classification set in {root}"
        raise ValueError(f"{what}: {reason}") from error
    classes = [str(c) for c in getattr(dataset, "classes", range(int(targets.max()) + 1))]
    part = "train" if train else "test"
    names = [f"{name}/{part}/{i}" for i in range(len(targets))]
    return ImageTable(
        paths=names,
        targets=targets,
        groups=names,
        classes=classes,
        layout=f"torchvision data set {name}, {part} part",
        source=dataset,
    )


def join(train: ImageTable, val: ImageTable) -> ImageTable:
    """One table of a training and a validation table, the split fixed. Classes and groups are matched by name."""
    if train.is_val is not None:
        raise ValueError(f"{train.layout} holds validation images already; give its train folder as training data")
    unknown = sorted(set(val.classes[c] for c in np.unique(val.targets)) - set(train.classes))
    if unknown:
        raise ValueError(f"class {unknown[0]!r} of {val.layout} is not among the training classes")
    if (train.source is None) != (val.source is None):
        raise ValueError("files and a torchvision data set cannot be mixed")
    number = np.array([train.classes.index(name) if name in train.classes else -1 for name in val.classes], np.int64)
    shared_files = sorted(set(train.paths) & set(val.paths))
    if shared_files:
        raise ValueError(f"{len(shared_files)} validation files are training files too, such as {shared_files[0]}")
    return ImageTable(
        paths=train.paths + val.paths,
        targets=np.concatenate([train.targets, number[val.targets]]),
        groups=train.groups + val.groups,
        classes=train.classes,
        layout=f"{train.layout}; validation {val.layout}",
        is_val=np.arange(len(train) + len(val)) >= len(train),
        source=ConcatDataset([train.source, val.source]) if train.source is not None else None,
        notes=train.notes,
    )


def _text(csv_file: Path) -> str:
    """UTF-8 with or without its mark, UTF-16 with it, or cp949 (Excel on Korean Windows; it contains euc-kr)."""
    content = csv_file.read_bytes()
    is_utf16 = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    for encoding in ("utf-16",) if is_utf16 else ("utf-8-sig", "cp949"):
        try:
            return content.decode(encoding)
        except UnicodeDecodeError:
            continue
    raise ValueError(f"{csv_file} is neither UTF-8 nor UTF-16 nor cp949: save it as UTF-8")


def _rows(csv_file: Path) -> list[dict[str, str]]:
    reader, rows = csv.DictReader(io.StringIO(_text(csv_file), newline="")), []
    try:
        for row in reader:
            if None in row or None in row.values():
                n = len(reader.fieldnames or [])
                raise ValueError(f"{csv_file}: line {reader.line_num} does not have the header's {n} columns")
            rows.append(row)
    except csv.Error as error:
        raise ValueError(f"{csv_file} cannot be read: {error}") from error
    if not rows:
        raise ValueError(f"{csv_file} has no rows")
    return rows


def _composed(text: str) -> str:
    """Hangul and accents as one character each (NFC), however the file system spells them."""
    return unicodedata.normalize("NFC", text)


def _spelled(folder: Path, name: str) -> Path:
    """folder / name as it is on the disk: as written, composed (NFC), or decomposed (NFD), as macOS writes Hangul."""
    spellings = [folder / name, folder / _composed(name), folder / unicodedata.normalize("NFD", name)]
    return next((path for path in spellings if path.exists()), spellings[0])


def _image_files(folder: Path) -> tuple[list[str], list[str]]:
    """Images and other files below a folder, sorted, but for what begins with a dot or lies in such a folder."""
    images, others = [], []
    for path in sorted(folder.rglob("*")):
        if any(part.startswith(".") for part in path.relative_to(folder).parts) or path.is_dir():
            continue
        (images if path.suffix.lower() in IMAGE_EXTENSIONS else others).append(str(path))
    return images, others


def _file(folder: Path, name: str) -> str | None:
    """The file of that name, or of that stem with an image extension, in the folder."""
    names = [name]
    if Path(name).suffix.lower() not in IMAGE_EXTENSIONS:
        names += [name + case for extension in sorted(IMAGE_EXTENSIONS) for case in (extension, extension.upper())]
    return next((str(path) for path in (_spelled(folder, n) for n in names if name) if path.is_file()), None)


def _classes(csv_file: Path, labels: list[str], column: str) -> tuple[np.ndarray, list[str]]:
    """Class numbers and names from the labels' text; an empty label is an error."""
    if "" in (label.strip() for label in labels):
        raise ValueError(f"{csv_file}: a row has no label in column {column!r}")
    if not all(label.strip().isdecimal() for label in labels):
        names, targets = np.unique([_composed(label.strip()) for label in labels], return_inverse=True)
        return targets.astype(np.int64), [str(name) for name in names]
    numbers = [int(label) for label in labels]
    meta = csv_file.with_name("meta.csv")
    named = {}
    if meta.is_file():
        rows = _rows(meta)
        if {"target", "class_name"} <= set(rows[0]):
            named = {int(row["target"]): row["class_name"] for row in rows}
    C = max([*numbers, *named]) + 1
    if C > max(1000, 10 * len(labels)):
        raise ValueError(f"{csv_file}: {max(numbers)} in column {column!r} is no class number for {len(labels)} rows")
    return np.array(numbers, dtype=np.int64), [named.get(c, str(c)) for c in range(C)]


# ---------------------------------------------------------------------------------------------------------------------
# Splitting
# ---------------------------------------------------------------------------------------------------------------------


def split(table: ImageTable, val_frac: float = 0.2, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Row numbers of training and validation: every class shared out by val_frac, every group whole on one side.

    A split that the layout fixes is kept as it is. Raises ValueError for a class that cannot be on both sides.
    """
    if table.is_val is not None:
        train, val = np.flatnonzero(~table.is_val), np.flatnonzero(table.is_val)
        untrained = np.flatnonzero((counts(table, train) == 0) & (counts(table, val) > 0))
        if len(untrained):
            raise ValueError(f"class {table.classes[untrained[0]]!r} is in the validation images and not in training")
        return train, val
    if not 0 < val_frac < 1:
        raise ValueError(f"the validation share must be between 0 and 1, got {val_frac}")
    number: dict[str, int] = {}
    groups = np.array([number.setdefault(name, len(number)) for name in table.groups])
    groups_of_class = np.bincount(np.unique(np.stack([table.targets, groups]), axis=1)[0])
    for c in np.flatnonzero(groups_of_class == 1):
        rows = np.flatnonzero(table.targets == c)
        what = "1 image" if len(rows) == 1 else "images of 1 group"
        raise ValueError(
            f"class {table.classes[c]!r} has only {what} ({table.paths[rows[0]]}): it cannot be in training and in "
            "validation; add images, leave the class out, or give validation data"
        )
    rng = np.random.default_rng(seed)
    for _ in range(50):  # a descent from a random start: with few groups it may have to start again
        in_val = _share_out(table.targets, groups, val_frac, rng)
        train, val = np.flatnonzero(~in_val), np.flatnonzero(in_val)
        one_sided = (counts(table, train) == 0) != (counts(table, val) == 0)
        if not one_sided.any():
            return train, val
    raise ValueError(
        f"no split found that has class {table.classes[int(one_sided.argmax())]!r} on both sides without sharing a "
        "group: give validation data"
    )


def counts(table: ImageTable, rows: np.ndarray) -> np.ndarray:
    """(C,) number of images of each class among these rows."""
    return np.bincount(table.targets[rows], minlength=len(table.classes))


def shared_groups(table: ImageTable, train: np.ndarray, val: np.ndarray) -> int:
    """How many groups are on both sides; anything but 0 makes the validation score too good."""
    return len({table.groups[i] for i in train} & {table.groups[i] for i in val})


def _share_out(targets: np.ndarray, groups: np.ndarray, val_frac: float, rng: np.random.Generator) -> np.ndarray:
    """(N,) bool, True for validation: whole groups, each class as near to val_frac as can be.

    Groups that hold the same classes in the same numbers are one kind, and interchangeable: what matters is how many of
    a kind go to validation. That begins at its random share and is mended one group at a time, always the one that
    helps most, until none does. Without groups a kind is a class, and the share is exact at once.
    """
    order = np.lexsort((targets, groups))
    _, starts = np.unique(groups[order], return_index=True)
    members = np.split(order, starts[1:])  # rows of each group, sorted by class
    kind_of: dict[bytes, int] = {}
    kind = np.array([kind_of.setdefault(targets[rows].tobytes(), len(kind_of)) for rows in members])
    contents = np.zeros((len(kind_of), targets.max() + 1))  # (kinds, C) images of each class in one group of a kind
    for key, k in kind_of.items():
        np.add.at(contents[k], np.frombuffer(key, targets.dtype), 1)
    available = np.bincount(kind)  # (kinds,) groups
    total = available @ contents  # (C,)

    def cost(have: np.ndarray) -> np.ndarray:
        """Squared distance from the share, each class in units of its size; 1 more for a class missing on a side."""
        missing = (have == 0) | (have == total)
        return (((have / total.clip(1) - val_frac) ** 2 + missing) * (total > 0)).sum(-1)

    chosen = np.floor(val_frac * available + rng.random(len(available))).astype(int)  # (kinds,) groups in validation
    while True:
        have = chosen @ contents
        more = np.where(chosen < available, cost(have + contents), np.inf)
        fewer = np.where(chosen > 0, cost(have - contents), np.inf)
        if min(more.min(), fewer.min()) >= cost(have) - 1e-12:
            break
        if more.min() < fewer.min():
            chosen[more.argmin()] += 1
        else:
            chosen[fewer.argmin()] -= 1
    in_val = np.zeros(len(targets), dtype=bool)
    groups_of_kind = np.split(np.argsort(kind, kind="stable"), np.cumsum(available)[:-1])
    for k, candidates in enumerate(groups_of_kind):
        for group in rng.permutation(candidates)[: chosen[k]]:
            in_val[members[group]] = True
    return in_val


# ---------------------------------------------------------------------------------------------------------------------
# Decoding
# ---------------------------------------------------------------------------------------------------------------------


class ImageArray(Dataset):
    """All images of a table, decoded: a plain torch Dataset of (uint8 image (3, S, S), target)."""

    def __init__(self, pixels: np.ndarray, targets: np.ndarray, paths: list[str]):
        self.pixels, self.targets, self.paths = pixels, torch.from_numpy(targets), paths  # pixels (N, S, S, 3) uint8
        self.resident: Tensor | None = None

    def __len__(self) -> int:
        return len(self.paths)

    def gather(self, index: Tensor) -> Tensor:
        """uint8 (n, 3, S, S), channels_last: one copy of the rows, from the device if the set lives there."""
        if self.resident is not None:
            return self.resident.index_select(0, index).permute(0, 3, 1, 2)
        return torch.from_numpy(self.pixels[index.numpy()]).permute(0, 3, 1, 2)

    def __getitem__(self, i: int) -> tuple[Tensor, Tensor]:
        return self.__getitems__([i])[0]

    def __getitems__(self, indices: list[int]) -> list[tuple[Tensor, Tensor]]:
        index = torch.tensor(indices, device=self.targets.device)
        return list(zip(self.gather(index), self.targets[index], strict=True))

    def move_to(self, device: torch.device) -> bool:
        """Puts the whole set on a GPU if it takes at most a quarter of the free memory; says whether it did."""
        if device.type != "cuda" or self.pixels.nbytes > torch.cuda.mem_get_info(device)[0] / 4:
            return False
        self.resident = torch.empty(self.pixels.shape, dtype=torch.uint8, device=device)
        for start in range(0, len(self), 1024):
            rows = slice(start, start + 1024)
            self.resident[rows] = torch.from_numpy(np.array(self.pixels[rows])).to(device)
        self.targets = self.targets.to(device)
        return True


def decode(
    table: ImageTable, size: int, cache: str | Path, threads: int | None = None, progress: bool | None = None
) -> ImageArray:
    """Every image of the table as uint8 (size, size, 3) RGB, decoded once and kept in `cache`.

    The cache is found by what the files are (path, length, time of change) and by the size; it gets its name only when
    it is whole. Photos are squeezed to a square. Raises ValueError that lists the files that cannot be decoded.
    """
    if size < 8:
        raise ValueError(f"image size must be at least 8 pixels, got {size}")
    folder = Path(cache)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{size}px-{_fingerprint(table, size)}.npy"
    if not path.exists():
        _decode_to(path, table, size, threads or os.cpu_count() or 1, progress)
    return ImageArray(np.load(path, mmap_mode="r"), table.targets, table.paths)


def _fingerprint(table: ImageTable, size: int) -> str:
    digest = hashlib.sha256(f"{CACHE_FORMAT} {size}".encode())
    for path in table.paths:
        if table.source is None:
            state = os.stat(path)
            path = f"{os.path.abspath(path)} {state.st_size} {state.st_mtime_ns}"
        digest.update(f"{path}\n".encode())
    return digest.hexdigest()[:16]


def _decode_to(path: Path, table: ImageTable, size: int, threads: int, progress: bool | None) -> None:
    """Decodes into a temporary file beside `path`, in threads, in order, and renames it when it is whole."""

    def one(i: int) -> np.ndarray | str:
        try:
            image = decode_file(table.paths[i]) if table.source is None else _rgb(table.source[i][0])
            return _resize(image, size)
        except Exception as error:  # whatever a decoder says of a broken file is for the list
            return f"{table.paths[i]}: {str(error).splitlines()[0] if str(error) else type(error).__name__}"

    bad: list[str] = []
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    bar = tqdm(total=len(table), desc="decode", unit="img", disable=None if progress is None else not progress)
    try:
        with open(temporary, "wb") as file, ThreadPoolExecutor(threads) as pool, bar:
            header = {"descr": "|u1", "fortran_order": False, "shape": (len(table), size, size, 3)}
            np.lib.format.write_array_header_1_0(file, header)
            for start in range(0, len(table), 256):  # a block at a time: memory stays flat in the number of images
                for result in pool.map(one, range(start, min(start + 256, len(table)))):
                    if isinstance(result, str):
                        bad.append(result)
                    else:
                        file.write(result.data)
                    bar.update()
        if bad:
            more = f"\n  and {len(bad) - 20} more" if len(bad) > 20 else ""
            listed = "".join(f"\n  {line}" for line in bad[:20])
            raise ValueError(f"{len(bad)} of {len(table)} images cannot be decoded:{listed}{more}")
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def decode_file(path: str) -> Tensor:
    """One image file as uint8 (3, H, W) RGB, turned upright as its EXIF data says. Raises OSError or ValueError."""
    with open(path, "rb") as file:
        content = file.read()
    if not content:
        raise ValueError("the file is empty")
    # libjpeg fills the missing part of a cut JPEG with grey and only warns; so a file without its end marker, and
    # whatever this decoder refuses (CMYK), is left to Pillow, which knows how to complain
    if decode_jpeg and content[:2] == b"\xff\xd8" and content.rstrip(b"\0")[-2:] == b"\xff\xd9":
        try:
            raw = torch.frombuffer(bytearray(content), dtype=torch.uint8)
            return decode_jpeg(raw, mode=ImageReadMode.RGB, apply_exif_orientation=True)
        except RuntimeError:
            pass
    with Image.open(io.BytesIO(content)) as image:
        return _rgb(ImageOps.exif_transpose(image))


def _rgb(image: Any) -> Tensor:
    """A Pillow image (or an array or tensor that a data set hands out) as uint8 (3, H, W)."""
    if not isinstance(image, Image.Image):
        image = transforms.to_pil_image(image)
    if image.mode == "F":
        raise ValueError("pixels are floating-point numbers of unknown range")
    if image.mode.startswith("I"):  # 16-bit grey: scaled to 8 bits, where convert() would clip
        grey = np.asarray(image, dtype=np.float64)
        scale = 257 if image.mode.startswith("I;16") or grey.max() > 255 else 1
        image = Image.fromarray((grey / scale).round().clip(0, 255).astype(np.uint8))
    if image.has_transparency_data:
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
    return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)


def _resize(image: Tensor, size: int) -> np.ndarray:
    """(3, H, W) to contiguous (size, size, 3); channels-last memory makes the resize three times as fast."""
    if image.shape[1:] != (size, size):
        image = transforms.resize(image, [size, size], antialias=True)
    return np.ascontiguousarray(image.permute(1, 2, 0).numpy())


# ---------------------------------------------------------------------------------------------------------------------
# Batches
# ---------------------------------------------------------------------------------------------------------------------


class Batches:
    """Iterates (images, targets) over some rows of an ImageArray: uint8 (n, 3, S, S) channels_last and int64 (n,).

    The order depends on (seed, epoch) alone; set `epoch` before each pass. No row is dropped: the last batch is short.
    A last batch of one, which BatchNorm cannot normalise, joins the batch before it.
    """

    def __init__(
        self,
        images: ImageArray,
        rows: np.ndarray,
        batch_size: int,
        shuffle: bool = False,
        seed: int = 0,
        device: torch.device | str = "cpu",
    ):
        if batch_size < 1:
            raise ValueError(f"batch size must be at least 1, got {batch_size}")
        self.images, self.rows, self.batch_size, self.shuffle = images, rows, batch_size, shuffle
        self.seed, self.device, self.epoch = seed, torch.device(device), 0

    def index_batches(self) -> list[Tensor]:
        """Row numbers of this epoch's batches, in order, where the targets are."""
        rows = np.random.default_rng([self.seed, self.epoch]).permutation(self.rows) if self.shuffle else self.rows
        rows = torch.from_numpy(np.ascontiguousarray(rows)).to(self.images.targets.device)  # one copy an epoch
        batches = list(rows.split(self.batch_size)) if len(rows) else []
        if self.batch_size > 1 and len(batches) > 1 and len(batches[-1]) == 1:
            batches[-2:] = [torch.cat(batches[-2:])]
        return batches

    def __len__(self) -> int:
        return count_batches(len(self.rows), self.batch_size)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return ((images, targets) for _, images, targets in self.indexed())

    def indexed(self) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Iterates (row numbers, images, targets), all on the device."""
        if self.device.type == "cuda" and self.images.resident is None:
            loaded = _ahead(self._pinned())
        else:
            loaded = (self._load(index) for index in self.index_batches())
        for batch in loaded:
            yield tuple(tensor.to(self.device, non_blocking=True) for tensor in batch)

    def _load(self, index: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return index, self.images.gather(index), self.images.targets[index]

    def _pinned(self) -> Iterator[tuple[Tensor, ...]]:
        torch.cuda.set_device(self.device)  # of the thread that runs this
        for index in self.index_batches():
            yield tuple(tensor.pin_memory() for tensor in self._load(index))


def count_batches(rows: int, batch_size: int) -> int:
    """How many batches `Batches` makes of so many rows."""
    full, rest = divmod(rows, batch_size)
    return full + (rest > 1 or (rest == 1 and full == 0))


def _ahead(items: Iterator[Any], depth: int = 2) -> Iterator[Any]:
    """The same items, produced by a thread that keeps `depth` of them ready; its errors are raised here."""
    ready: queue.Queue = queue.Queue(depth)
    stopped = threading.Event()

    def put(item: Any) -> None:
        while not stopped.is_set():
            try:
                return ready.put(item, timeout=0.1)
            except queue.Full:
                continue

    def produce() -> None:
        try:
            for item in items:
                put((item, None))
                if stopped.is_set():
                    return
            put((None, StopIteration()))
        except BaseException as error:
            put((None, error))

    threading.Thread(target=produce, daemon=True).start()
    try:
        while True:
            item, error = ready.get()
            if isinstance(error, StopIteration):
                return
            if error is not None:
                raise error
            yield item
    finally:
        stopped.set()


# ---------------------------------------------------------------------------------------------------------------------
# python data.py FOLDER
# ---------------------------------------------------------------------------------------------------------------------


def _show(data: str) -> None:
    table = read(data)
    train, val = split(table)
    print(f"{table.layout}: {len(table)} images, {len(set(table.groups))} groups")
    print(f"training {len(train)}, validation {len(val)}, groups shared: {shared_groups(table, train, val)}")
    for note in table.notes:
        print(f"note: {note}")
    print(f"\n{'class':>24}{'training':>10}{'validation':>12}")
    for name, n_train, n_val in zip(table.classes, counts(table, train), counts(table, val), strict=True):
        print(f"{name:>24}{n_train:>10}{n_val:>12}")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    try:
        _show(sys.argv[1])
    except (OSError, ValueError) as error:
        sys.exit(f"data.py: error: {error}")

"""What lies in a folder, as a table of images: read it, choose classes, split it without leaks, sample it.

    python data.py FOLDER            # what would be read: layout, classes, counts, and how it would be split

    table = read("path/to/folder")                         # paths, targets, groups, classes
    train, val = split(table, val_frac=0.2, seed=0)        # row numbers; no group on both sides
    fold_of = folds(table, k=5, seed=0)                    # or k of them: validation of fold f is fold_of == f

A group is what must not be on both sides of a split: all photos of one person, all copies of one scan. Random splits
by image put them there, and validation then says 0.99 where the leaderboard says 0.8.
"""

from __future__ import annotations

import codecs
import csv
import hashlib
import inspect
import io
import json
import math
import os
import re
import sys
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torchvision
from torch.utils.data import ConcatDataset, Subset

IMAGE_EXTENSIONS = {".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm"}


@dataclass
class ImageTable:
    """A row an image. `targets` is int64 (N,); `is_val` or `fold_of` (N,) is set where the data fixes the split."""

    paths: list[str]
    targets: np.ndarray
    groups: list[str]  # where nothing else is known an image is a group of its own, named by its path
    classes: list[str]
    layout: str  # what was read, in words
    is_val: np.ndarray | None = None
    fold_of: np.ndarray | None = None  # int64, 0 to k - 1, from a fold column
    source: Sequence | None = None  # a torchvision data set whose images are not files; `paths` then only name them
    notes: list[str] = field(default_factory=list)  # what a person should know: files left alone, empty classes
    labels: list[str] = field(default_factory=list)  # each class as the data writes it: a number or the name

    def __post_init__(self) -> None:
        self.labels = self.labels or self.classes

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
        columns: the CSV's columns by their part, "image", "label", "group" or "fold", where not to be found by name.
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
        if tables and not columns and {"gender", "race", "age", "path"} <= set(read_rows(tables[0])[0]):
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
        table.notes.append(f"{len(missing)} of {len(table.classes)} classes have no image and score 0: {names}")
    spellings: dict[str, list[str]] = {}
    for name in table.classes:
        spellings.setdefault(name.casefold(), []).append(name)
    for names in spellings.values():
        if len(names) > 1:
            table.notes.append(f"{' and '.join(map(repr, names))} differ only in case: they are read as two classes")
    return table


def read_folder(folder: Path) -> ImageTable:
    """FOLDER/CLASS/**/image, or the same below FOLDER/train and FOLDER/val. Class names sort as text.

    train may be called training, val valid or validation, in any case of letters.
    """
    parts, beside = _parts(folder)
    paths, names, is_val, ignored, loose = [], [], [], [], []
    for part, root in parts.items():
        class_folders = sorted(p for p in root.iterdir() if p.is_dir() and not p.name.startswith("."))
        files = sorted(p for p in root.iterdir() if p.is_file() and not p.name.startswith("."))
        loose += [str(p) for p in files if p.suffix.lower() in IMAGE_EXTENSIONS]
        if not class_folders:
            raise ValueError(f"{root} holds no class folders (expected {root}/CLASS/*.jpg)")
        for class_folder in class_folders:
            found, other = image_files(class_folder)
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
        table.notes.append(f"{len(ignored)} files or folders that are no images left alone, such as {ignored[0]}")
    if loose:
        table.notes.append(f"{len(loose)} images beside the class folders left alone, such as {loose[0]}")
    if beside:
        names = ", ".join(str(path) for path in beside)
        table.notes.append(f"left alone beside {parts['train']} (--val-data takes a folder as validation): {names}")
    return table


def _parts(folder: Path) -> tuple[dict[str, Path], list[Path]]:
    """The folders of training and validation, or the folder itself; and the folders beside them."""
    inner = sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))
    training = [p for p in inner if p.name.lower() in ("train", "training")]
    validation = [p for p in inner if p.name.lower() in ("val", "valid", "validation")]
    if not training:
        return {"": folder}, []
    for same in (training, validation):
        if len(same) > 1:
            raise ValueError(f"{folder} holds {' and '.join(p.name for p in same)}: which of them is meant?")
    parts = {"train": training[0]} | ({"val": validation[0]} if validation else {})
    return parts, [p for p in inner if p not in parts.values()]


def read_csv(csv_file: Path, folder: Path, named: dict[str, str]) -> ImageTable:
    """A CSV with a header. The columns are found by name, and an image column is one whose values are files.

    image: ID, ImageID, image_id, image_path, img_path, image, path, file, filename, name; label: target, label, class,
    ans, y, else the last column; group: group, id, person, profile, source; fold: fold, kfold. Case does not matter.
    Labels that are all whole numbers >= 0 are class numbers, and C is the largest + 1; a class_name column beside them,
    or a meta.csv with target and class_name, names them and may name more. Other labels are class names, sorted as
    text, blanks around them dropped. `named` overrides the rule: {"group": "patient"}.
    """
    rows = read_rows(csv_file)
    columns = columns_of(csv_file, rows)
    named = {part: name.strip().lower() for part, name in named.items()}
    for name in named.values():
        if name not in columns:
            raise ValueError(f"{csv_file} has no column {name!r}: it has {', '.join(rows[0])}")
    images, labels, groups, fold_columns = (
        [columns[named[part]]] if part in named else [columns[name] for name in known if name in columns]
        for part, known in COLUMNS.items()
    )
    folders = [folder, folder / "train", folder / "images", folder / "train" / "images", csv_file.parent]
    image, root = find_images(csv_file, rows[0], images, folders)
    label = [*labels, list(rows[0])[-1]][0]
    if label == image:
        raise ValueError(f"{csv_file} has no label column beside {image!r}")
    group = next((name for name in groups if name != image), None)
    paths = [find_file(root, row[image]) for row in rows]
    missing = [row[image] for row, path in zip(rows, paths, strict=True) if path is None]
    if missing:
        names = ", ".join(missing[:20])
        raise FileNotFoundError(f"{csv_file}: {len(missing)} of {len(rows)} images are not in {root}: {names}")
    targets, classes = _classes(csv_file, rows, label, columns.get("class_name"))
    first = _first_of(paths)
    torn = np.flatnonzero(targets != targets[first])
    if len(torn):
        listed = "".join(f"\n  {paths[i]}: {classes[targets[first[i]]]} and {classes[targets[i]]}" for i in torn[:20])
        raise ValueError(f"{csv_file}: {len(set(first[torn]))} images have two labels:{listed}")
    table = ImageTable(paths, targets, paths, classes, f"{csv_file}: image column {image}, label column {label}")
    if all(row[label].strip().isdecimal() for row in rows):
        written = _written(csv_file, targets.tolist(), [row[label].strip() for row in rows])
        table.labels = [written.get(c, str(c)) for c in range(len(classes))]
    table.layout += f", group column {group or 'none'}"
    if group:
        of_rows = [row[group].strip() or path for row, path in zip(rows, paths, strict=True)]  # a blank: its own
        table.groups = tied(of_rows, first)  # an image in two rows holds their groups together
    if fold_columns:
        table.layout += f", fold column {fold_columns[0]}"
        table.fold_of = _folds_of([row[fold_columns[0]].strip() for row in rows], csv_file, fold_columns[0])
    return table


def _written(csv_file: Path, numbers: list[int], labels: list[str]) -> dict[int, str]:
    """How the file writes each class number, "03" say. ValueError if it writes one in two ways."""
    written: dict[int, str] = {}
    for number, label in zip(numbers, labels, strict=True):
        if written.setdefault(number, label) != label:
            raise ValueError(f"{csv_file}: class {number} is written {written[number]!r} and {label!r}")
    return written


def find_images(csv_file: Path, row: dict[str, str], columns: list[str], folders: list[Path]) -> tuple[str, Path]:
    """The first of the columns, and of the folders, in which the row's value is a file. Raises if there is none."""
    if not columns:
        one = len(row) == 1 and re.search("[;\t|]", next(iter(row)))
        hint = f": are its columns parted by {one[0]!r}? Save it with commas" if one else ""
        raise ValueError(f"{csv_file} has no image column ({', '.join(COLUMNS['image'])}); it has {list(row)}{hint}")
    found = [(column, folder) for column in columns for folder in folders if find_file(folder, row[column])]
    if not found:
        raise FileNotFoundError(f"{csv_file}: no file {row[columns[0]]} in {folders[0]} (column {columns[0]})")
    return found[0]


COLUMNS = {
    "image": ("id", "imageid", "image_id", "image_path", "img_path", "image", "path", "file", "filename", "name"),
    "label": ("target", "label", "class", "ans", "y"),
    "group": ("group", "id", "person", "profile", "source"),
    "fold": ("fold", "kfold"),
}


def _first_of(values: Sequence) -> np.ndarray:
    """(N,) for each row the first row of the same value."""
    first: dict[Any, int] = {}
    return np.array([first.setdefault(value, i) for i, value in enumerate(values)], dtype=np.int64)


def _folds_of(values: list[str], csv_file: Path, column: str) -> np.ndarray:
    """0 to k - 1 from a fold column: numbers in their order, other text sorted. Raises for one fold, or one a row."""
    if "" in values:
        raise ValueError(f"{csv_file}: row {values.index('') + 1} has no fold in column {column!r}")
    names = sorted(set(values), key=lambda name: (int(name), name) if name.isdecimal() else (0, name))
    if not 2 <= len(names) <= max(2, len(values) // 2):
        raise ValueError(f"{csv_file}: column {column!r} names {len(names)} folds of {len(values)} rows")
    number = {name: f for f, name in enumerate(names)}
    return np.array([number[value] for value in values], dtype=np.int64)


def _groups_by_regex(paths: list[str], group_regex: str) -> list[str]:
    try:
        matches = [re.search(group_regex, _composed(path)) for path in paths]
    except re.error as error:
        raise ValueError(f"{group_regex!r} is no regular expression: {error}") from error
    groups = [match and (next(filter(None, match.groups()), "") if match.re.groups else match[0]) for match in matches]
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
    for row in read_rows(csv_file):
        folder = _spelled(csv_file.parent / "images", row["path"])
        photos, _ = image_files(folder) if folder.is_dir() else ([], [])
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
    numbers = [str(c) for c in range(18)]
    return ImageTable(paths, np.array(targets, dtype=np.int64), groups, classes, layout, labels=numbers)


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
        labels=[str(c) for c in range(len(classes))],
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
        notes=train.notes + (["folds left alone: validation images are given"] if train.fold_of is not None else []),
        labels=train.labels,
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


def read_rows(csv_file: Path) -> list[dict[str, str]]:
    """The rows by column, in text as it stands. Raises ValueError: ragged rows, loose quotes, a column named twice."""
    reader, rows = csv.DictReader(io.StringIO(_text(csv_file), newline=""), strict=True), []
    try:
        names = reader.fieldnames or []
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"{csv_file} has {names.count(twice[0])} columns called {twice[0]!r}: rename them")
        for row in reader:
            if None in row or None in row.values():
                n = len(reader.fieldnames or [])
                raise ValueError(f"{csv_file}: line {reader.line_num} does not have the header's {n} columns")
            rows.append(row)
    except csv.Error as error:
        begins = reader.line_num + 1
        raise ValueError(f"{csv_file}: the row that begins in line {begins} cannot be read: {error}") from error
    if not rows:
        raise ValueError(f"{csv_file} has no rows")
    return rows


def columns_of(csv_file: Path, rows: list[dict[str, str]]) -> dict[str, str]:
    """The header's names as they stand, by what they are called without regard to case and blanks around them."""
    columns: dict[str, str] = {}
    for name in rows[0]:
        other = columns.setdefault(name.strip().lower(), name)
        if other != name:
            raise ValueError(f"{csv_file}: columns {other!r} and {name!r} differ only in case or blanks: rename one")
    return columns


def _composed(text: str) -> str:
    """Hangul and accents as one character each (NFC), however the file system spells them."""
    return unicodedata.normalize("NFC", text)


def _spelled(folder: Path, name: str) -> Path:
    """folder / name as it is on the disk: as written, composed (NFC), or decomposed (NFD), as macOS writes Hangul."""
    spellings = [folder / name, folder / _composed(name), folder / unicodedata.normalize("NFD", name)]
    return next((path for path in spellings if path.exists()), spellings[0])


def image_files(folder: Path) -> tuple[list[str], list[str]]:
    """Images and what else lies below a folder, sorted, but for what begins with a dot or lies in such a folder."""
    images, others = [], []

    def refuse(error: OSError) -> None:
        raise error

    for root, folders, files in os.walk(folder, onerror=refuse):
        paths = [os.path.join(root, name) for name in folders]  # links to folders are not followed
        others += [path for path in paths if Path(path).suffix.lower() in IMAGE_EXTENSIONS or os.path.islink(path)]
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in files:
            if not name.startswith("."):
                is_image = Path(name).suffix.lower() in IMAGE_EXTENSIONS
                (images if is_image else others).append(os.path.join(root, name))
    return sorted(images), sorted(others)


def find_file(folder: Path, name: str) -> str | None:
    """The file of that name, or of that stem with an image extension, in the folder; Windows' backslashes too."""
    names = [name, *([name.replace("\\", "/")] if "\\" in name else [])]
    if Path(name).suffix.lower() not in IMAGE_EXTENSIONS:
        cases = [case for extension in sorted(IMAGE_EXTENSIONS) for case in (extension, extension.upper())]
        names += [name + case for name in names for case in cases]
    return next((str(path) for path in (_spelled(folder, n) for n in names if name) if path.is_file()), None)


def _classes(
    csv_file: Path, rows: list[dict[str, str]], column: str, names: str | None
) -> tuple[np.ndarray, list[str]]:
    """Class numbers and names from the label column's text; an empty label is an error."""
    labels = [_composed(row[column].strip()) for row in rows]
    if "" in labels:
        raise ValueError(f"{csv_file}: row {labels.index('') + 1} has no label in column {column!r}")
    if not all(label.isdecimal() for label in labels):
        classes, targets = np.unique(labels, return_inverse=True)
        return targets.astype(np.int64), [str(name) for name in classes]
    longest = max(labels, key=len)
    C = max(map(int, labels)) + 1 if len(longest) < 18 else math.inf
    if C > max(1000, 10 * len(labels)):
        raise ValueError(f"{csv_file}: {longest[:40]} in column {column!r} is no class number for {len(labels)} rows")
    numbers = np.array(labels).astype(np.int64)
    return numbers, _class_names(csv_file, rows, numbers.tolist(), names)


def _class_names(csv_file: Path, rows: list[dict[str, str]], numbers: list[int], column: str | None) -> list[str]:
    """Of every class number, from a meta.csv beside or a column; a class without a name is called by its number."""
    meta, named = csv_file.with_name("meta.csv"), {}
    meta_rows = read_rows(meta) if meta.is_file() else []
    if meta_rows and {"target", "class_name"} <= set(meta_rows[0]):
        for row in meta_rows:
            if not re.fullmatch(r"\s*\d{1,4}\s*", row["target"]):
                raise ValueError(f"{meta}: target {row['target']!r} is no class number")
            named[int(row["target"])] = _composed(row["class_name"].strip())
    elif column:
        for number, row in zip(numbers, rows, strict=True):
            name = _composed(row[column].strip())
            if named.setdefault(number, name) != name:
                raise ValueError(f"{csv_file}: class {number} is named {named[number]!r} and {name!r} in {column}")
    names = [named.get(c) or str(c) for c in range(max([*numbers, *named]) + 1)]
    return [f"{name} ({c})" if names.count(name) > 1 else name for c, name in enumerate(names)]


# ---------------------------------------------------------------------------------------------------------------------
# Choosing
# ---------------------------------------------------------------------------------------------------------------------


def take(table: ImageTable, rows: np.ndarray) -> ImageTable:
    """The table of these rows alone, in this order."""
    return replace(
        table,
        paths=[table.paths[i] for i in rows],
        targets=table.targets[rows],
        groups=[table.groups[i] for i in rows],
        is_val=None if table.is_val is None else table.is_val[rows],
        fold_of=None if table.fold_of is None else table.fold_of[rows],
        source=None if table.source is None else Subset(table.source, rows.tolist()),
    )


def merge(table: ImageTable, chosen: str) -> ImageTable:
    """The same images with the chosen classes ("3,7,14", or names) as one, named "A+B", in the place of the first."""
    numbers = _class_numbers(table, chosen)
    if len(numbers) == len(table.classes):
        raise ValueError(f"{chosen!r} are all classes: nothing would be left to tell apart")

    def merged(names: list[str]) -> list[str]:
        one = "+".join(names[c] for c in numbers)
        return [one if c == numbers[0] else name for c, name in enumerate(names) if c not in numbers[1:]]

    kept = [numbers[0] if c in numbers else c for c in range(len(table.classes))]
    targets = np.searchsorted(np.unique(kept), np.array(kept)[table.targets])
    classes, labels = merged(table.classes), merged(table.labels)
    layout = f"{table.layout}, {classes[numbers[0]]} as one class"
    return replace(table, targets=targets, classes=classes, labels=labels, layout=layout)


def only(table: ImageTable, chosen: str) -> ImageTable:
    """The images of the chosen classes ("3,7,14", or names), and no other class."""
    numbers = _class_numbers(table, chosen)
    kept = take(table, np.flatnonzero(np.isin(table.targets, numbers)))
    classes = [table.classes[c] for c in numbers]
    layout = f"{table.layout}, only {', '.join(classes)}"
    labels = [table.labels[c] for c in numbers]
    return replace(kept, targets=np.searchsorted(numbers, kept.targets), classes=classes, labels=labels, layout=layout)


def _class_numbers(table: ImageTable, chosen: str) -> list[int]:
    """Two or more classes, each by its name or, where no class is named so, by its number, in their order."""
    found = set()
    for word in (word.strip() for word in chosen.split(",")):
        if word in table.classes:
            found.add(table.classes.index(word))
        elif word.isdecimal() and int(word) < len(table.classes):
            found.add(int(word))
        else:
            known = ", ".join(f"{c} {name}" for c, name in enumerate(table.classes[:20]))
            raise ValueError(f"{word!r} is no class: choose from {known}{' ...' if len(table.classes) > 20 else ''}")
    if len(found) < 2:
        raise ValueError(f"{chosen!r} names fewer than two classes")
    return sorted(found)


def long_tail(table: ImageTable, rows: np.ndarray, factor: float, seed: int = 0) -> np.ndarray:
    """Those of the rows that leave class i with int(n_max * (1 / factor) ** (i / (C - 1))) images, drawn at random.

    The exponential profile of long-tailed CIFAR (Cui et al. 2019, arXiv:1901.05555), cut from a balanced training set;
    n_max is the size of the largest class. Raises ValueError for a class that has fewer images than its share.
    """
    if not factor >= 1:
        raise ValueError(f"the imbalance factor must be at least 1, got {factor}")
    have, C, rng = counts(table, rows), len(table.classes), np.random.default_rng(seed)
    kept = []
    for c in range(C):
        n = int(have.max() * (1 / factor) ** (c / (C - 1)))
        if not 1 <= n <= have[c]:
            raise ValueError(f"class {table.classes[c]!r} has {have[c]} training images and would keep {n}")
        kept.append(rng.choice(rows[table.targets[rows] == c], n, replace=False))
    return np.sort(np.concatenate(kept))


# ---------------------------------------------------------------------------------------------------------------------
# Splitting
# ---------------------------------------------------------------------------------------------------------------------


def split(table: ImageTable, val_frac: float = 0.2, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Row numbers of training and validation: every class shared out by val_frac, every group whole on one side.

    A split that the data fixes is kept as it is. Raises ValueError for a class that cannot be on both sides.
    """
    if table.is_val is not None:
        train, val = np.flatnonzero(~table.is_val), np.flatnonzero(table.is_val)
        untrained = np.flatnonzero((counts(table, train) == 0) & (counts(table, val) > 0))
        if len(untrained):
            raise ValueError(f"class {table.classes[untrained[0]]!r} is in the validation images and not in training")
        return train, val
    if not 0 < val_frac < 1:
        raise ValueError(f"the validation share must be between 0 and 1, got {val_frac}")
    groups = _first_of(table.groups)
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


def folds(table: ImageTable, k: int, seed: int = 0) -> np.ndarray:
    """int64 (N,) the fold of each image, 0 to k - 1: each class as evenly as can be, every group whole in one fold.

    A fold column is kept as it is. Raises ValueError for fewer groups than folds.
    """
    if table.is_val is not None:
        raise ValueError(f"the validation images are given ({table.layout}): there is nothing to fold")
    if table.fold_of is not None:
        given = int(table.fold_of.max()) + 1
        if k != given:
            raise ValueError(f"the fold column has {given} folds, not {k}")
        return table.fold_of
    groups = _first_of(table.groups)
    n_groups = len(set(groups))  # the fewer, the more a fold's share depends on where the search begins
    if not 2 <= k <= n_groups:
        raise ValueError(f"the number of folds must be from 2 to the {n_groups} groups, got {k}")
    rng, best, least = np.random.default_rng(seed), None, np.inf
    N, C = len(table), len(table.classes)
    total = counts(table, np.arange(N))
    for _ in range(1 if n_groups == N else min(60, max(3, 20_000 // n_groups))):
        fold_of, rest = np.full(N, k - 1), np.arange(N)
        for f in range(k - 1):  # fold after fold takes its share of what is left
            in_fold = _share_out(table.targets[rest], groups[rest], 1 / (k - f), rng)
            fold_of[rest[in_fold]] = f
            rest = rest[~in_fold]
        n = np.bincount(fold_of * C + table.targets, minlength=k * C).reshape(k, C)
        size = n.sum(1, keepdims=True)
        errors = 2 * (n / size.clip(1) - total / N), n / total.clip(1) - (total > 0) / k, size / N - 1 / k
        if (cost := sum(np.abs(error).max() for error in errors)) < least:
            best, least = fold_of, cost
    return best


def counts(table: ImageTable, rows: np.ndarray) -> np.ndarray:
    """(C,) number of images of each class among these rows."""
    return np.bincount(table.targets[rows], minlength=len(table.classes))


def digest(table: ImageTable, *rows: np.ndarray) -> str:
    """Of names, sizes and labels of the images, and of these rows: another one means other training data."""
    state = hashlib.sha256(json.dumps(table.classes).encode())
    for path, target in zip(table.paths, table.targets.tolist(), strict=True):
        size = os.path.getsize(path) if table.source is None else 0
        state.update(f"{os.path.basename(path)} {size} {target}\n".encode(errors="surrogateescape"))
    for part in rows:
        state.update(np.ascontiguousarray(part, dtype=np.int64).tobytes())
    return state.hexdigest()


def shared_groups(table: ImageTable, train: np.ndarray, val: np.ndarray) -> int:
    """How many groups are on both sides; anything but 0 makes the validation score too good."""
    return len({table.groups[i] for i in train} & {table.groups[i] for i in val})


def tied(groups: list[str], first: np.ndarray) -> list[str]:
    """The groups, where those of two rows that belong together (row i and row first[i]) become one."""
    joined: dict[str, str] = {}

    def name(group: str) -> str:
        while group in joined:
            group = joined[group]
        return group

    for i in np.flatnonzero(first != np.arange(len(first))):
        a, b = name(groups[i]), name(groups[first[i]])
        if a != b:
            joined[a] = b
    return [name(group) for group in groups]


def find_leaks(
    table: ImageTable, same: np.ndarray, alike: np.ndarray, train: np.ndarray, val: np.ndarray
) -> list[tuple[str, str, str, str, str]]:
    """("identical" or "alike", validation image, its class, training image, its class) for each image that leaks.

    same, alike: int (N,), the cluster of each image: rows of one cluster are copies of each other.
    """
    leaks, found = [], set()
    for what, cluster in (("identical", same), ("alike", alike)):
        twin = dict(zip(cluster[train[::-1]].tolist(), train[::-1].tolist(), strict=True))
        for i in val.tolist():
            if i not in found and (j := twin.get(int(cluster[i]))) is not None:
                found.add(i)
                leaks.append((what, *_named(table, i), *_named(table, j)))
    return leaks


def find_two_labels(table: ImageTable, same: np.ndarray) -> list[tuple[str, str, str, str, str]]:
    """The images that are identical to one of another class, with it, as `find_leaks` has them."""
    rows = np.flatnonzero(table.targets != table.targets[same])
    return [("identical", *_named(table, i), *_named(table, same[i])) for i in rows]


def _named(table: ImageTable, i: int) -> tuple[str, str]:
    return table.paths[i], table.classes[table.targets[i]]


# a name less what people add to that of a copy: scan_aug3, scan_rotated_90_noisy, aug_0001_2, scan (1)
_ADDED = (
    r"(?:[ _-]+(?:aug|copy|rotated|rotate|rot|noisy|noise|blurred|blur|hflip|vflip|flipped|flip|mirrored|mirror|bright|"
    r"dark|crop|shifted|shift)[ _-]*\d*|[ _-]*\(\d+\))*\.\w+$"
)
COPIES = {
    "copies of one image (_aug1, _rotated_90, ...)": rf"(?i)(?:(aug[_-]\d+)[_-]\d+\.\w+$|([^/\\]+?){_ADDED})",
    "copies of one image in its class folder (_aug1, ...)": rf"(?i)([^/\\]+[/\\][^/\\]+?){_ADDED}",
}
PEOPLE = {
    "several photos of a person (one name up to the last _)": r"([^/\\]+)_[^/\\_]+$",
    "several photos of a person (one name up to the first _ or -)": r"([^/\\_-]+)[_-][^/\\]+$",
    "several photos of a person (one folder)": r"([^/\\]+)[/\\][^/\\]+$",
}


def suspect_groups(table: ImageTable, train: np.ndarray, val: np.ndarray) -> str | None:
    """A warning if no groups are known and the files' names look like copies, or like several photos of a person."""
    if table.source is not None or len(set(table.groups)) < len(set(table.paths)):
        return None
    for what, group_regex in (COPIES | PEOPLE).items():
        try:
            groups = _groups_by_regex(table.paths, group_regex)
        except ValueError:  # some names are of another form
            continue
        sizes = Counter(groups)
        shared = sum(n for n in sizes.values() if n > 1) / len(groups)
        few_large = len(sizes) <= 2 * len(table.classes) or max(sizes.values()) > 0.1 * len(groups)
        if what in COPIES:  # copies are of one class; one name in every class's or person's folder is no copy
            of_a_class = Counter(group for group, _ in set(zip(groups, table.targets.tolist(), strict=True)))
            is_likely = shared > 0.05 and all(of_a_class[group] == 1 for group, n in sizes.items() if n > 1)
            is_likely = is_likely and not few_large
        else:
            is_likely = shared > 0.8 and not few_large
        if is_likely:
            known = {groups[i] for i in train}
            share = sum(groups[i] in known for i in val) / max(len(val), 1)
            return (
                f"no group is known, and {len(groups)} file names look like {len(sizes)} times {what}: {share:.0%} of "
                f"the validation images would have a sibling in training. If so, --group-regex '{group_regex}'"
            )
    return None


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
# Sampling: places among the training rows, in an epoch's order
# ---------------------------------------------------------------------------------------------------------------------


def shuffle(targets: np.ndarray, rng: np.random.Generator, per_class: int | None = None) -> np.ndarray:
    """Every image once."""
    return rng.permutation(len(targets))


def weighted(targets: np.ndarray, rng: np.random.Generator, per_class: int | None = None) -> np.ndarray:
    """As many as there are, drawn with replacement, all classes equally likely (WeightedRandomSampler's semantics)."""
    weights = 1 / np.bincount(targets)[targets]
    return rng.choice(len(targets), len(targets), p=weights / weights.sum())


def balanced(targets: np.ndarray, rng: np.random.Generator, per_class: int | None = None) -> np.ndarray:
    """`per_class` of each class, or all of a smaller class (default: the smallest class's size), anew each epoch."""
    places = [np.flatnonzero(targets == c) for c in np.unique(targets)]
    n = per_class or min(map(len, places))
    return rng.permutation(np.concatenate([rng.permutation(own)[:n] for own in places]))


def oversample(targets: np.ndarray, rng: np.random.Generator, per_class: int | None = None) -> np.ndarray:
    """Every class as often as the largest: its images over and over, what is left of the last round at random."""
    places = [np.flatnonzero(targets == c) for c in np.unique(targets)]
    n = max(map(len, places))
    rounds = [np.concatenate([np.tile(own, n // len(own)), rng.permutation(own)[: n % len(own)]]) for own in places]
    return rng.permutation(np.concatenate(rounds))


SAMPLERS: dict[str, Callable[..., np.ndarray]] = {
    "shuffle": shuffle, "weighted": weighted, "balanced": balanced, "oversample": oversample,
}  # fmt: skip


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

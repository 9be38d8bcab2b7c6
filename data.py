"""The images of a folder or CSV as a table: read it, choose classes, split it without leaks.

    python data.py FOLDER            # prints layout, classes, counts, and how the images would be split

    table = read("path/to/folder")                         # paths, targets, groups, classes
    train, val = split(table, val_frac=0.2, seed=0)        # row numbers; no group on both sides
    fold_of = folds(table, k=5, seed=0)                    # cross-validation: fold f validates on fold_of == f

A group is a set of images that must stay on one side of a split: all photos of one person, all copies of one scan.
A random split by image puts them on both sides. The validation score is then too high: for example 0.99, when the test
score is 0.8.
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
import textwrap
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torchvision
from torch.utils.data import ConcatDataset, Subset

IMAGE_EXTENSIONS = {".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm"}


class BadInput(ValueError):
    """A file or value that the user gave is wrong. The message tells which one, what is valid, and what to do."""


@dataclass
class ImageTable:
    """One row per image. `is_val` or `fold_of` is set if the data fixes the split."""

    paths: list[str]
    targets: np.ndarray  # int64 (N,) class numbers
    groups: list[str]  # an image without a known group is its own group, named by its path
    classes: list[str]
    layout: str  # what was read, in words
    is_val: np.ndarray | None = None  # bool (N,)
    fold_of: np.ndarray | None = None  # int64 (N,), 0 to k - 1, from a fold column
    source: Sequence | None = None  # a torchvision data set with images that are not files; `paths` are only names then
    notes: list[str] = field(default_factory=list)  # what the user should know: ignored files, classes without images
    warnings: list[str] = field(default_factory=list)  # notes that matter for every score
    labels: list[str] = field(default_factory=list)  # each class as the data writes it: a number or a name
    csv_file: Path | None = None  # the CSV that was read, if there is one
    all_classes: list[str] = field(default_factory=list)  # before `only` and `merge`, if the caller stores them
    all_labels: list[str] = field(default_factory=list)

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
) -> ImageTable:
    """The images of `data` as a table. The layout is found automatically, see LAYOUTS:

    - the mask competition: a train.csv with gender, race, age and path, and 7 photos in the folder of each person
    - `csv_file`, or a train.csv in the folder: an image column and a label column
    - an image folder: FOLDER/CLASS/*.jpg, or the same below FOLDER/train and FOLDER/val (or valid)
    - the name of a torchvision data set: CIFAR10, MNIST, ... It is downloaded to `cache`

    Args:
        train: False reads the test part of a torchvision data set, and accepts classes without images.
        columns: names of CSV columns by part: "image", "label", "group" or "fold". Default: found by name.
    Raises: BadInput that names the path, the column or the value.
    """
    table = _read_layout(data, csv_file, cache, train, columns or {})
    if columns and table.csv_file is None:
        raise BadInput(f"{table.layout} has no CSV, so it has no column {next(iter(columns.values()))!r}")
    if len(table.classes) < 2:
        raise BadInput(f"{data} contains only one class, {table.classes[0]!r}: at least two are needed")
    missing = np.flatnonzero(np.bincount(table.targets, minlength=len(table.classes)) == 0)
    if len(missing) and train:
        names = ", ".join(table.classes[c] for c in missing[:10]) + (", ..." if len(missing) > 10 else "")
        count = f"{len(missing)} of {len(table.classes)}"
        table.notes.append(f"classes without images, whose F1 is 0: {count} ({names})")
    spellings: dict[str, list[str]] = {}
    for name in table.classes:
        spellings.setdefault(name.casefold(), []).append(name)
    for names in spellings.values():
        if len(names) > 1:
            table.notes.append(
                f"{' and '.join(map(repr, names))} differ only in case: they are used as different classes"
            )
    return table


def _read_layout(
    data: str, csv_file: str | None, cache: str | Path, train: bool, columns: dict[str, str]
) -> ImageTable:
    """The table of the first layout in LAYOUTS that recognises the source."""
    folder = Path(data)
    if csv_file is not None and not Path(csv_file).is_file():
        raise BadInput(f"{csv_file} is not a file")
    if csv_file is not None and not folder.is_dir():
        raise BadInput(f"{data} is not a folder of images")
    found = [path for path in (folder / "train" / "train.csv", folder / "train.csv") if path.is_file()]
    csv_path = Path(csv_file) if csv_file is not None else found[0] if found else None
    source = Source(data, csv_path, csv_file is not None, columns, Path(cache), train)
    for recognises, reader in LAYOUTS.values():
        if recognises(source):
            return reader(source)
    raise BadInput(f"{data} is neither a folder nor the name of a torchvision data set")


def read_folder(folder: Path) -> ImageTable:
    """FOLDER/CLASS/**/image, or the same below FOLDER/train and FOLDER/val. Classes are sorted by name, as text.

    train may also be called training, val also valid or validation. Upper and lower case do not matter.
    """
    parts, outside = _parts(folder)
    paths, names, is_val, ignored, loose = [], [], [], [], []
    for part, root in parts.items():
        class_folders = sorted(p for p in root.iterdir() if p.is_dir() and not p.name.startswith("."))
        files = sorted(p for p in root.iterdir() if p.is_file() and not p.name.startswith("."))
        loose += [str(p) for p in files if p.suffix.lower() in IMAGE_EXTENSIONS]
        if not class_folders:
            raise BadInput(f"{root} contains no class folders (expected {root}/CLASS/*.jpg)")
        for class_folder in class_folders:
            found, other = image_files(class_folder)
            if not found:
                known = ", ".join(sorted(IMAGE_EXTENSIONS))
                raise BadInput(f"class folder {class_folder} contains no image (known extensions: {known})")
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
        table.notes.append(f"ignored files or folders that are not images: {len(ignored)}, such as {ignored[0]}")
    if loose:
        table.notes.append(f"ignored images outside of the class folders: {len(loose)}, such as {loose[0]}")
    if outside:
        names = ", ".join(str(path) for path in outside)
        table.notes.append(
            f"ignored folders beside {parts['train']}: {names}; train.py --val-data can read one of them"
        )
    return table


def _parts(folder: Path) -> tuple[dict[str, Path], list[Path]]:
    """The folders "train" and "val", or the folder itself as ""; and the other folders beside them."""
    inner = sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))
    training = [p for p in inner if p.name.lower() in ("train", "training")]
    validation = [p for p in inner if p.name.lower() in ("val", "valid", "validation")]
    if not training:
        return {"": folder}, []
    for candidates in (training, validation):
        if len(candidates) > 1:
            names = " and ".join(p.name for p in candidates)
            raise BadInput(f"{folder} contains both {names}: rename or move one of them")
    parts = {"train": training[0]} | ({"val": validation[0]} if validation else {})
    return parts, [p for p in inner if p not in parts.values()]


def read_csv(csv_file: Path, folder: Path, named: dict[str, str]) -> ImageTable:
    """A CSV with a header. Its columns are found by name; upper and lower case do not matter:

    - image: ID, ImageID, image_id, image_path, img_path, image, path, file, filename or name, if its values are files
    - label: target, label, class, ans or y, or else the last column
    - group: group, id, person, profile or source
    - fold: fold or kfold

    If all labels are whole numbers >= 0, they are class numbers, and the number of classes is the largest label + 1.
    A class_name column, or a meta.csv with target and class_name beside the CSV, gives the names. meta.csv may name
    more classes. Other labels are class names, without spaces around them, sorted as text.

    Args:
        folder: images are searched in it, in its train and images folders, and beside the CSV.
        named: column names that replace these rules: {"group": "patient"}.
    """
    rows = read_rows(csv_file)
    columns = columns_of(csv_file, rows)
    found = _find_columns(csv_file, rows, columns, named)
    folders = [folder, folder / "train", folder / "images", folder / "train" / "images", csv_file.parent]
    image, root = find_images(csv_file, rows[0], found["image"], folders)
    label = [*found["label"], list(rows[0])[-1]][0]
    if label == image:
        known = ", ".join(COLUMNS["label"])
        raise BadInput(
            f"{csv_file} has no label column: none is called {known}, and the last column, {image}, has the images"
        )
    group = next((name for name in found["group"] if name != image), None)
    paths = _find_paths(csv_file, root, [row[image] for row in rows])
    targets, classes = _classes(csv_file, rows, label, columns.get("class_name"))
    first = _first_of(paths)
    _check_labels(csv_file, paths, targets, classes, first)
    layout = f"{csv_file}: image column {image}, label column {label}, group column {group or 'none'}"
    table = ImageTable(paths, targets, paths, classes, layout, csv_file=csv_file)
    if all(row[label].strip().isdecimal() for row in rows):
        written = _written(csv_file, targets.tolist(), [row[label].strip() for row in rows])
        table.labels = [written.get(c, str(c)) for c in range(len(classes))]
    if group:
        names = [row[group].strip() or path for row, path in zip(rows, paths, strict=True)]  # no name: its own group
        table.groups = tied(names, first)  # an image that is listed twice joins the groups of both rows
    if found["fold"]:
        fold = found["fold"][0]
        table.layout += f", fold column {fold}"
        table.fold_of = _folds_of([row[fold].strip() for row in rows], csv_file, fold)
    return table


def _find_columns(
    csv_file: Path, rows: list[dict[str, str]], columns: dict[str, str], named: dict[str, str]
) -> dict[str, list[str]]:
    """The candidate columns of each part, in the order of COLUMNS. A named column is the only candidate."""
    named = {part: name.strip().lower() for part, name in named.items()}
    for name in named.values():
        if name not in columns:
            raise BadInput(f"{csv_file} has no column {name!r}: it has {', '.join(rows[0])}")
    return {
        part: [columns[named[part]]] if part in named else [columns[name] for name in known if name in columns]
        for part, known in COLUMNS.items()
    }


def _find_paths(csv_file: Path, root: Path, names: list[str]) -> list[str]:
    paths = [find_file(root, name) for name in names]
    missing = [name for name, path in zip(names, paths, strict=True) if path is None]
    if missing:
        raise BadInput(
            f"{csv_file}: {len(missing)} of {len(names)} images cannot be found in {root}:" + listed(missing)
        )
    return paths


def _check_labels(csv_file: Path, paths: list[str], targets: np.ndarray, classes: list[str], first: np.ndarray) -> None:
    """An image that is listed twice must have one label."""
    rows = np.flatnonzero(targets != targets[first])
    if len(rows):
        lines = [f"{paths[i]}: {classes[targets[first[i]]]} and {classes[targets[i]]}" for i in rows]
        raise BadInput(f"{csv_file}: images with two labels: {len(set(first[rows]))}" + listed(lines))


def _written(csv_file: Path, numbers: list[int], labels: list[str]) -> dict[int, str]:
    """The text of each class number in the file, e.g. "03". Raises BadInput for a number with two texts."""
    written: dict[int, str] = {}
    for number, label in zip(numbers, labels, strict=True):
        if written.setdefault(number, label) != label:
            raise BadInput(
                f"{csv_file}: class {number} is written in two ways, {written[number]!r} and {label!r}: use one"
            )
    return written


def find_images(csv_file: Path, row: dict[str, str], columns: list[str], folders: list[Path]) -> tuple[str, Path]:
    """The first column and the first folder in which the row's value is a file. Raises BadInput if there is none."""
    if not columns:
        one = len(row) == 1 and re.search("[;\t|]", next(iter(row)))
        hint = f". Its separator seems to be {one[0]!r}: save it with commas" if one else ""
        known = ", ".join(COLUMNS["image"])
        raise BadInput(f"{csv_file} has no image column ({known}); it has {', '.join(row)}{hint}")
    found = [(column, folder) for column in columns for folder in folders if find_file(folder, row[column])]
    if not found:
        raise BadInput(f"{csv_file}: no file {row[columns[0]]} in {folders[0]} (column {columns[0]})")
    return found[0]


COLUMNS = {
    "image": ("id", "imageid", "image_id", "image_path", "img_path", "image", "path", "file", "filename", "name"),
    "label": ("target", "label", "class", "ans", "y"),
    "group": ("group", "id", "person", "profile", "source"),
    "fold": ("fold", "kfold"),
}


def _first_of(values: Sequence) -> np.ndarray:
    """int64 (N,): for each row, the first row with the same value."""
    first: dict[Any, int] = {}
    return np.array([first.setdefault(value, i) for i, value in enumerate(values)], dtype=np.int64)


def _folds_of(values: list[str], csv_file: Path, column: str) -> np.ndarray:
    """int64 (N,), 0 to k - 1: folds sorted as numbers, or else as text. At least 2 folds of 2 rows on average."""
    if "" in values:
        raise BadInput(f"{csv_file}: row {values.index('') + 1} has no fold in column {column!r}")
    names = sorted(set(values), key=lambda name: (int(name), name) if name.isdecimal() else (0, name))
    if not 2 <= len(names) <= max(2, len(values) // 2):
        most = max(2, len(values) // 2)
        what = f"column {column!r} has {len(names)} different values in {len(values)} rows"
        raise BadInput(f"{csv_file}: {what}, but 2 to {most} folds are possible")
    number = {name: f for f, name in enumerate(names)}
    return np.array([number[value] for value in values], dtype=np.int64)


def read_mask(csv_file: Path) -> ImageTable:
    """The mask competition: one row per person, 7 photos in images/{path}. The group is the person.

    Label = mask * 6 + gender * 3 + age, with mask: wear 0, incorrect 1, normal 2; gender: male 0, female 1;
    age: 0 below 30, 1 below 60, else 2.
    """
    paths, targets, groups = [], [], []
    for row in read_rows(csv_file):
        folder = _spelled(csv_file.parent / "images", row["path"])
        photos, _ = image_files(folder) if folder.is_dir() else ([], [])
        if not photos:
            raise BadInput(f"{csv_file}: {folder} contains no image")
        try:
            gender = ("male", "female").index(row["gender"])
            age = sum(int(row["age"]) >= limit for limit in (30, 60))
        except ValueError:
            values = f"gender {row['gender']!r}, age {row['age']!r}"
            raise BadInput(f"{csv_file}: {row['path']} has {values}: valid are male or female, and a number") from None
        for photo in photos:
            stem = Path(photo).stem
            if not stem.startswith("mask") and stem not in ("incorrect_mask", "normal"):
                raise BadInput(f"{photo}: the name must be mask1 to mask5, incorrect_mask or normal")
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
    layout = f"mask competition {csv_file}, one group per person"
    labels = [str(c) for c in range(18)]
    return ImageTable(
        paths, np.array(targets, dtype=np.int64), groups, classes, layout, labels=labels, csv_file=csv_file
    )


def read_torchvision(name: str, root: Path, train: bool = True) -> ImageTable:
    """The training part or the test part of a torchvision data set. It is downloaded to `root` if needed."""
    dataset_class = getattr(torchvision.datasets, name)
    takes = inspect.signature(dataset_class).parameters
    options: dict[str, Any] = {"root": str(root)} if "root" in takes else {}
    if "train" in takes:
        options["train"] = train
    elif "split" in takes:
        options["split"] = "train" if train else "test"
    elif not train:
        raise BadInput(f"the torchvision data set {name} has no test part")
    if "download" in takes:
        options["download"] = True
    try:
        dataset = dataset_class(**options)
        known = (getattr(dataset, key) for key in ("targets", "labels", "_labels") if hasattr(dataset, key))
        targets = np.array([int(t) for t in next(known, (item[1] for item in dataset))], dtype=np.int64)
    except Exception as error:  # no network, a different signature, or targets that are not classes
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise BadInput(
            f"cannot load the torchvision data set {name} for classification from {root}: {reason}"
        ) from error
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
    """One table of training and validation images, with that split. Classes and groups are matched by name.

    Raises: BadInput for a class without training images, or a file on both sides.
    """
    if train.is_val is not None:
        raise BadInput(f"{train.layout} already contains validation images: give its train folder as training data")
    unknown = sorted(set(val.classes[c] for c in np.unique(val.targets)) - set(train.classes))
    if unknown:
        raise BadInput(f"class {unknown[0]!r} of {val.layout} is not among the training classes")
    if (train.source is None) != (val.source is None):
        raise BadInput("training and validation images must both be files, or both be a torchvision data set")
    number = np.array([train.classes.index(name) if name in train.classes else -1 for name in val.classes], np.int64)
    shared_files = sorted(set(train.paths) & set(val.paths))
    if shared_files:
        raise BadInput(
            f"files that are both in training and in validation: {len(shared_files)}, such as {shared_files[0]}"
        )
    return ImageTable(
        paths=train.paths + val.paths,
        targets=np.concatenate([train.targets, number[val.targets]]),
        groups=train.groups + val.groups,
        classes=train.classes,
        layout=f"{train.layout}; validation {val.layout}",
        is_val=np.arange(len(train) + len(val)) >= len(train),
        source=ConcatDataset([train.source, val.source]) if train.source is not None else None,
        notes=train.notes
        + (["ignored the fold column, because validation images are given"] if train.fold_of is not None else []),
        warnings=train.warnings,
        labels=train.labels,
        csv_file=train.csv_file,
    )


def _text(csv_file: Path) -> str:
    """UTF-8 with or without BOM, UTF-16 with BOM, or cp949 (Excel on Korean Windows; a superset of euc-kr)."""
    content = csv_file.read_bytes()
    is_utf16 = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    for encoding in ("utf-16",) if is_utf16 else ("utf-8-sig", "cp949"):
        try:
            return content.decode(encoding)
        except UnicodeDecodeError:
            continue
    raise BadInput(f"{csv_file} is neither UTF-8 nor UTF-16 nor cp949: save it as UTF-8")


def read_rows(csv_file: Path) -> list[dict[str, str]]:
    """Each row as {column: text}, unchanged. Raises BadInput for ragged rows, open quotes, equal column names."""
    reader, rows = csv.DictReader(io.StringIO(_text(csv_file), newline=""), strict=True), []
    try:
        names = reader.fieldnames or []
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise BadInput(f"{csv_file} has {names.count(twice[0])} columns called {twice[0]!r}: rename them")
        for row in reader:
            if None in row or None in row.values():
                n = len(reader.fieldnames or [])
                raise BadInput(f"{csv_file}: line {reader.line_num} does not have the header's {n} columns")
            rows.append(row)
    except csv.Error as error:
        begins = reader.line_num + 1
        raise BadInput(f"{csv_file}: the row that begins in line {begins} cannot be read: {error}") from error
    if not rows:
        raise BadInput(f"{csv_file} has no rows")
    return rows


def columns_of(csv_file: Path, rows: list[dict[str, str]]) -> dict[str, str]:
    """The header's names, by their name in lower case without spaces around it."""
    columns: dict[str, str] = {}
    for name in rows[0]:
        other = columns.setdefault(name.strip().lower(), name)
        if other != name:
            raise BadInput(f"{csv_file}: columns {other!r} and {name!r} differ only in case or spaces: rename one")
    return columns


def _composed(text: str) -> str:
    """Hangul and accents as one character each (NFC): macOS file systems store them decomposed (NFD)."""
    return unicodedata.normalize("NFC", text)


def _spelled(folder: Path, name: str) -> Path:
    """The path of folder / name as the disk has it: as written, composed (NFC) or decomposed (NFD)."""
    spellings = [folder / name, folder / _composed(name), folder / unicodedata.normalize("NFD", name)]
    return next((path for path in spellings if path.exists()), spellings[0])


def image_files(folder: Path) -> tuple[list[str], list[str]]:
    """Sorted paths of the images below a folder, and of what is not an image. Names that begin with a dot are ignored.

    Raises: OSError for a folder that cannot be read.
    """
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
    """The file of this name in the folder. The image extension may be missing, and the name may have backslashes."""
    names = [name, *([name.replace("\\", "/")] if "\\" in name else [])]
    if Path(name).suffix.lower() not in IMAGE_EXTENSIONS:
        cases = [case for extension in sorted(IMAGE_EXTENSIONS) for case in (extension, extension.upper())]
        names += [name + case for name in names for case in cases]
    return next((str(path) for path in (_spelled(folder, n) for n in names if name) if path.is_file()), None)


def _classes(
    csv_file: Path, rows: list[dict[str, str]], column: str, names: str | None
) -> tuple[np.ndarray, list[str]]:
    """int64 (N,) class numbers, and the class names. Raises BadInput for an empty label or too large a number."""
    labels = [_composed(row[column].strip()) for row in rows]
    if "" in labels:
        raise BadInput(f"{csv_file}: row {labels.index('') + 1} has no label in column {column!r}")
    if not all(label.isdecimal() for label in labels):
        classes, targets = np.unique(labels, return_inverse=True)
        return targets.astype(np.int64), [str(name) for name in classes]
    longest = max(labels, key=len)
    C = max(map(int, labels)) + 1 if len(longest) < 18 else math.inf
    if C > max(1000, 10 * len(labels)):
        what = f"{longest[:40]} in column {column!r}"
        raise BadInput(f"{csv_file}: {what} is not a valid class number: too large for {len(labels)} rows")
    numbers = np.array(labels).astype(np.int64)
    return numbers, _class_names(csv_file, rows, numbers.tolist(), names)


def _class_names(csv_file: Path, rows: list[dict[str, str]], numbers: list[int], column: str | None) -> list[str]:
    """The name of each class: from the meta.csv beside the CSV, or a column, or else its number."""
    meta, named = csv_file.with_name("meta.csv"), {}
    meta_rows = read_rows(meta) if meta.is_file() else []
    if meta_rows and {"target", "class_name"} <= set(meta_rows[0]):
        for row in meta_rows:
            if not re.fullmatch(r"\s*\d{1,4}\s*", row["target"]):
                raise BadInput(f"{meta}: target {row['target']!r} is not a valid class number")
            named[int(row["target"])] = _composed(row["class_name"].strip())
    elif column:
        for number, row in zip(numbers, rows, strict=True):
            name = _composed(row[column].strip())
            if named.setdefault(number, name) != name:
                raise BadInput(f"{csv_file}: class {number} is named {named[number]!r} and {name!r} in {column}")
    names = [named.get(c) or str(c) for c in range(max([*numbers, *named]) + 1)]
    return [f"{name} ({c})" if names.count(name) > 1 else name for c, name in enumerate(names)]


class Source(NamedTuple):
    """What the user asked for, as LAYOUTS needs it."""

    data: str
    csv_file: Path | None  # the CSV that the user named, or a train.csv found in the folder
    csv_is_named: bool
    columns: dict[str, str]  # names of CSV columns, by part
    cache: Path
    train: bool

    def has_columns(self, *names: str) -> bool:
        """Whether the CSV has these columns."""
        return self.csv_file is not None and set(names) <= set(read_rows(self.csv_file)[0])


# name: (whether it recognises the source, reader). The first layout that recognises the source reads it.
LAYOUTS: dict[str, tuple[Callable[[Source], bool], Callable[[Source], ImageTable]]] = {
    "mask competition": (
        lambda s: not s.csv_is_named and not s.columns and s.has_columns("gender", "race", "age", "path"),
        lambda s: read_mask(s.csv_file),
    ),
    "CSV": (lambda s: s.csv_file is not None, lambda s: read_csv(s.csv_file, Path(s.data), s.columns)),
    "image folder": (lambda s: Path(s.data).is_dir(), lambda s: read_folder(Path(s.data))),
    "torchvision data set": (
        lambda s: s.data in torchvision.datasets.__all__,
        lambda s: read_torchvision(s.data, s.cache / "torchvision", s.train),
    ),
}


# ---------------------------------------------------------------------------------------------------------------------
# Choosing
# ---------------------------------------------------------------------------------------------------------------------


def take(table: ImageTable, rows: np.ndarray) -> ImageTable:
    """The table of these rows only, in this order."""
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
    """The same images, with the chosen classes ("3,7,14", or names) as one, called "A+B", in the place of the first."""
    numbers = _class_numbers(table, chosen)
    if len(numbers) == len(table.classes):
        raise BadInput(f"{chosen!r} are all classes: at least two must remain after merging")

    def merged(names: list[str]) -> list[str]:
        one = "+".join(names[c] for c in numbers)
        return [one if c == numbers[0] else name for c, name in enumerate(names) if c not in numbers[1:]]

    kept = [numbers[0] if c in numbers else c for c in range(len(table.classes))]
    targets = np.searchsorted(np.unique(kept), np.array(kept)[table.targets])
    classes, labels = merged(table.classes), merged(table.labels)
    layout = f"{table.layout}, merged class {classes[numbers[0]]}"
    return replace(table, targets=targets, classes=classes, labels=labels, layout=layout)


def only(table: ImageTable, chosen: str) -> ImageTable:
    """Only the images of the chosen classes ("3,7,14", or names)."""
    numbers = _class_numbers(table, chosen)
    kept = take(table, np.flatnonzero(np.isin(table.targets, numbers)))
    classes = [table.classes[c] for c in numbers]
    layout = f"{table.layout}, only {', '.join(classes)}"
    labels = [table.labels[c] for c in numbers]
    return replace(kept, targets=np.searchsorted(numbers, kept.targets), classes=classes, labels=labels, layout=layout)


def _class_numbers(table: ImageTable, chosen: str) -> list[int]:
    """The numbers of two or more classes, sorted. A word is a class name or, if no class has this name, a number."""
    found = set()
    for word in (word.strip() for word in chosen.split(",")):
        if word in table.classes:
            found.add(table.classes.index(word))
        elif word.isdecimal() and int(word) < len(table.classes):
            found.add(int(word))
        else:
            known = ", ".join(f"{c} {name}" for c, name in enumerate(table.classes[:20]))
            more = ", ..." if len(table.classes) > 20 else ""
            raise BadInput(f"{word!r} is not a valid class: choose from {known}{more}")
    if len(found) < 2:
        raise BadInput(f"{chosen!r} is fewer than two classes: give at least two, separated by commas")
    return sorted(found)


def long_tail(table: ImageTable, rows: np.ndarray, factor: float, seed: int = 0) -> np.ndarray:
    """Random rows such that class i keeps int(n_max * (1 / factor) ** (i / (C - 1))) images.

    This is the exponential profile of long-tailed CIFAR (Cui et al. 2019, arXiv:1901.05555) for a balanced training
    set. n_max is the size of the largest class.

    Args:
        rows: training rows to choose from.
        factor: imbalance, the largest class divided by the smallest; at least 1.
    Raises: BadInput for a class that has too few images.
    """
    if not factor >= 1:
        raise BadInput(f"the imbalance factor must be at least 1, got {factor}")
    have, C, rng = counts(table, rows), len(table.classes), np.random.default_rng(seed)
    kept = []
    for c in range(C):
        n = int(have.max() * (1 / factor) ** (c / (C - 1)))
        if not 1 <= n <= have[c]:
            what = f"class {table.classes[c]!r} has {have[c]} training images"
            raise BadInput(f"{what}, and with imbalance {factor:g} it would have {n}: choose a different factor")
        kept.append(rng.choice(rows[table.targets[rows] == c], n, replace=False))
    return np.sort(np.concatenate(kept))


# ---------------------------------------------------------------------------------------------------------------------
# Splitting
# ---------------------------------------------------------------------------------------------------------------------


def split(table: ImageTable, val_frac: float = 0.2, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Row numbers of training and validation images: stratified by class, and no group is on both sides.

    A split that the data fixes is kept.

    Args:
        val_frac: share of each class for validation, between 0 and 1.
    Raises: BadInput for a class that cannot be on both sides.
    """
    if table.is_val is not None:
        train, val = np.flatnonzero(~table.is_val), np.flatnonzero(table.is_val)
        untrained = np.flatnonzero((counts(table, train) == 0) & (counts(table, val) > 0))
        if len(untrained):
            raise BadInput(f"class {table.classes[untrained[0]]!r} has validation images but no training images")
        return train, val
    if not 0 < val_frac < 1:
        raise BadInput(f"the validation share must be between 0 and 1, got {val_frac}")
    groups = _first_of(table.groups)
    groups_of_class = np.bincount(np.unique(np.stack([table.targets, groups]), axis=1)[0])
    for c in np.flatnonzero(groups_of_class == 1):
        rows = np.flatnonzero(table.targets == c)
        what = "1 image" if len(rows) == 1 else "images of 1 group"
        raise BadInput(
            f"class {table.classes[c]!r} has only {what} ({table.paths[rows[0]]}), so it cannot be in both training "
            "and validation: add images, leave the class out, or give validation data"
        )
    rng = np.random.default_rng(seed)
    for _ in range(50):  # with few groups, the search may need more than one random start
        in_val = _choose_validation(table.targets, groups, val_frac, rng)
        train, val = np.flatnonzero(~in_val), np.flatnonzero(in_val)
        one_sided = (counts(table, train) == 0) != (counts(table, val) == 0)
        if not one_sided.any():
            return train, val
    raise BadInput(
        f"no split found that has class {table.classes[int(one_sided.argmax())]!r} on both sides but no group on both "
        "sides: give validation data"
    )


def folds(table: ImageTable, k: int, seed: int = 0) -> np.ndarray:
    """int64 (N,), the fold of each image, 0 to k - 1: stratified by class, and every group is in one fold.

    A fold column is kept. Raises: BadInput for fewer groups than folds, or a different number of folds in the column.
    """
    if table.is_val is not None:
        raise BadInput(f"the validation images are given ({table.layout}), so cross-validation is not possible")
    if table.fold_of is not None:
        given = int(table.fold_of.max()) + 1
        if k != given:
            raise BadInput(f"the fold column has {given} folds, not {k}")
        return table.fold_of
    groups = _first_of(table.groups)
    n_groups = len(set(groups))  # with few groups, the result depends more on the random start: more starts are tried
    if not 2 <= k <= n_groups:
        raise BadInput(f"the number of folds must be from 2 to {n_groups}, the number of groups, got {k}")
    rng, best, lowest = np.random.default_rng(seed), None, np.inf
    N, C = len(table), len(table.classes)
    total = counts(table, np.arange(N))
    for _ in range(1 if n_groups == N else min(60, max(3, 20_000 // n_groups))):
        fold_of, rest = np.full(N, k - 1), np.arange(N)
        for f in range(k - 1):  # each fold takes its share of the rows that are left
            in_fold = _choose_validation(table.targets[rest], groups[rest], 1 / (k - f), rng)
            fold_of[rest[in_fold]] = f
            rest = rest[~in_fold]
        n = np.bincount(fold_of * C + table.targets, minlength=k * C).reshape(k, C)
        size = n.sum(1, keepdims=True)
        errors = 2 * (n / size.clip(1) - total / N), n / total.clip(1) - (total > 0) / k, size / N - 1 / k
        if (cost := sum(np.abs(error).max() for error in errors)) < lowest:
            best, lowest = fold_of, cost
    return best


def counts(table: ImageTable, rows: np.ndarray) -> np.ndarray:
    """int (C,): number of images of each class in these rows."""
    return np.bincount(table.targets[rows], minlength=len(table.classes))


def digest(table: ImageTable, *rows: np.ndarray) -> str:
    """SHA-256 of the images' names, sizes and labels, and of these rows. It changes if the training data change.

    Raises: BadInput for an image file that is missing.
    """
    state = hashlib.sha256(json.dumps(table.classes).encode())
    for path, target in zip(table.paths, table.targets.tolist(), strict=True):
        try:
            size = os.path.getsize(path) if table.source is None else 0
        except OSError as error:
            raise BadInput(f"cannot read {path}: {error.strerror}") from error
        state.update(f"{os.path.basename(path)} {size} {target}\n".encode(errors="surrogateescape"))
    for part in rows:
        state.update(np.ascontiguousarray(part, dtype=np.int64).tobytes())
    return state.hexdigest()


def shared_groups(table: ImageTable, train: np.ndarray, val: np.ndarray) -> int:
    """Number of groups on both sides. If it is not 0, the validation score is too high."""
    return len({table.groups[i] for i in train} & {table.groups[i] for i in val})


def tied(groups: list[str], first: np.ndarray) -> list[str]:
    """The groups, after the groups of row i and row first[i] are merged, for every i."""
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


def _choose_validation(
    targets: np.ndarray, groups: np.ndarray, val_frac: float, rng: np.random.Generator
) -> np.ndarray:
    """bool (N,), True for validation: whole groups, and a share of each class as close to val_frac as possible.

    Groups with the same number of images of each class are of one kind. Only the number of groups of each kind in
    validation matters. The search starts from random numbers near val_frac, see _descend. Without groups, a kind is a
    class.
    """
    order = np.lexsort((targets, groups))
    _, starts = np.unique(groups[order], return_index=True)
    members = np.split(order, starts[1:])  # the rows of each group, sorted by class
    kind_of: dict[bytes, int] = {}
    kind = np.array([kind_of.setdefault(targets[rows].tobytes(), len(kind_of)) for rows in members])
    contents = [np.unique(np.frombuffer(key, targets.dtype), return_counts=True) for key in kind_of]
    available = np.bincount(kind)  # (kinds,): number of groups
    chosen = np.floor(val_frac * available + rng.random(len(available))).astype(int)  # (kinds,): in validation
    _descend(chosen, available, contents, np.bincount(targets), val_frac)
    in_val = np.zeros(len(targets), dtype=bool)
    groups_of_kind = np.split(np.argsort(kind, kind="stable"), np.cumsum(available)[:-1])
    for k, candidates in enumerate(groups_of_kind):
        for group in rng.permutation(candidates)[: chosen[k]]:
            in_val[members[group]] = True
    return in_val


def _descend(
    chosen: np.ndarray,
    available: np.ndarray,
    contents: list[tuple[np.ndarray, np.ndarray]],
    total: np.ndarray,
    val_frac: float,
) -> None:
    """Moves one group at a time, always the best one, until no move lowers the cost. Changes `chosen` in place.

    The cost is the sum over classes of (share - val_frac) ** 2, plus 1 for each class that is missing on a side.

    Args:
        chosen, available: (kinds,) number of groups in validation, and of all groups.
        contents: for each kind, its classes and the number of images of each in one group.
        total: (C,) number of images.
    """
    K, C = len(available), len(total)
    part = np.cumsum([0] + [len(classes) for classes, _ in contents])  # kind k has the entries part[k] : part[k + 1]
    of_kind = np.repeat(np.arange(K), np.diff(part))
    of_class, images = (np.concatenate(values) for values in zip(*contents, strict=True))
    have = np.bincount(of_class, chosen[of_kind] * images, C)  # (C,): images in validation
    total_of = total[of_class]

    def cost(have: np.ndarray, total: np.ndarray) -> np.ndarray:
        return (have / total - val_frac) ** 2 + ((have == 0) | (have == total))

    def after(move: int) -> np.ndarray:
        k, moved = move % K, have.copy()
        moved[of_class[part[k] : part[k + 1]]] += images[part[k] : part[k + 1]] * (1 if move >= K else -1)
        return moved

    def cost_after(move: int) -> float:
        return (cost(after(move), total.clip(1)) * (total > 0)).sum()

    while True:
        now = have[of_class]
        before = cost(now, total_of)
        # move k is one group of kind k less in validation, move K + k one more: how each changes the cost
        change = [np.bincount(of_kind, cost(now + n, total_of) - before, K) for n in (-images, images)]
        moves = np.where([chosen > 0, chosen < available], change, np.inf).ravel()
        lowest = moves.min()
        if lowest >= -1e-12:
            return
        best = np.flatnonzero(moves < lowest + 1e-9)
        if 1 < len(best) <= 200_000 / C:  # the whole cost decides; it is too slow for thousands of equal moves
            best = [min(best.tolist(), key=cost_after)]
        have = after(best[0])
        chosen[best[0] % K] += 1 if best[0] >= K else -1


def listed(lines: Sequence[str], most: int = 20) -> str:
    """The first lines, each after a line break and two spaces, and how many more there are."""
    more = [f"and {len(lines) - most:,} more"] if len(lines) > most else []
    return "".join(f"\n  {line}" for line in [*lines[:most], *more])


# ---------------------------------------------------------------------------------------------------------------------
# python data.py FOLDER
# ---------------------------------------------------------------------------------------------------------------------


def show(data: str) -> None:
    """Prints what was read and how it would be split.

    Raises: BadInput like read() and split().
    """
    table = read(data)
    everything = counts(table, np.arange(len(table)))
    _print_wrapped("layout", table.layout)
    _print_wrapped("images", f"{len(table):,} in {len(table.classes):,} classes")
    largest, smallest = everything.max(), max(everything.min(), 1)
    _print_wrapped(
        "imbalance", f"{largest / smallest:.1f} (largest class {largest:,} images, smallest {everything.min():,})"
    )
    for note in table.notes:
        _print_wrapped("note", note)
    train, val = split(table)
    how = "given by the data" if table.is_val is not None else "random 20%, seed 0"
    _print_wrapped("split", f"{len(train):,} training, {len(val):,} validation images ({how})")
    _print_wrapped(
        "groups", f"{len(set(table.groups)):,}, of which {shared_groups(table, train, val):,} are on both sides"
    )
    print(f"\n{'images':>8}{'training':>10}{'validation':>12}  class")
    for row in zip(everything, counts(table, train), counts(table, val), table.classes, strict=True):
        print("{:8,}{:10,}{:12,}  {}".format(*row))


def _print_wrapped(name: str, text: str) -> None:
    """Prints one line, wrapped at 80 columns."""
    options = {"break_long_words": False, "break_on_hyphens": False}
    print(textwrap.fill(text, 80, initial_indent=f"{name:<11}", subsequent_indent=" " * 11, **options))


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    sys.stdout.reconfigure(errors="backslashreplace")  # a file name may not be valid text
    try:
        show(sys.argv[1])
    except (BadInput, OSError) as error:
        print(f"data.py: error: {error}", file=sys.stderr)
        sys.exit(2)

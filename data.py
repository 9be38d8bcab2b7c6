# From f1kit. MIT licence, copyright (c) 2026 The f1kit authors. Keep this line and LICENSE with a copy of this file.
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
import functools
import hashlib
import inspect
import io
import itertools
import json
import math
import os
import re
import sys
import textwrap
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torchvision
from torch.utils.data import ConcatDataset, Subset

IMAGE_EXTENSIONS = {".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm"}
SYSTEM_FILES = {"__MACOSX", "Thumbs.db", "desktop.ini"}  # ignored, like all names that begin with a dot


class BadInput(ValueError):
    """A file or value that the user gave is wrong. The message tells which one, what is valid, and what to do."""


class NoColumn(BadInput):
    """A column that the user named does not exist. `part` is what it was named for, such as "label"."""

    def __init__(self, part: str, message: str):
        super().__init__(message)
        self.part = part


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
    # path: (class before, class now, or None = leave the image out), of labels that were corrected after reading
    fixes: dict[str, tuple[int, int | None]] = field(default_factory=dict)
    pseudo: int = 0  # number of images at the end that are labelled by a network
    factors: dict[str, list[str]] = field(default_factory=dict)  # if classes combine factors: the values of each
    factor_ids: np.ndarray | None = None  # int64 (C, F): the value of each factor for each class

    def __post_init__(self) -> None:
        self.labels = self.labels or self.classes
        if self.factor_ids is None:
            self.factor_ids = np.zeros((len(self.classes), 0), np.int64)

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
    num_classes: int | None = None,
    fold_case: bool = False,
    skip_missing: bool = False,
) -> ImageTable:
    """The images of `data` as a table. The layout is found automatically, see LAYOUTS:

    - the mask competition: a train.csv with gender, race, age and path, and 7 photos in the folder of each person
    - `csv_file`, or a train.csv in the folder: an image column and a label column
    - an image folder: FOLDER/CLASS/*.jpg, or the same below FOLDER/train and FOLDER/val (or valid)
    - the name of a torchvision data set: CIFAR10, MNIST, ... It is downloaded to `cache`

    Args:
        train: False reads the test part of a torchvision data set, and accepts classes without images.
        columns: names of CSV columns by part: "image", "label", "group" or "fold". Default: found by name. Several
            label columns, separated by commas: classes are the combinations of their values, see read_csv.
        num_classes: number of classes of a CSV with class numbers, see class_numbers.
        fold_case: read class names that differ only in case or spaces as one class.
        skip_missing: leave out CSV rows whose image file is missing, instead of raising an error.
    Raises: BadInput that names the path, the column or the value.
    """
    how = Reading(train, columns or {}, num_classes, fold_case, skip_missing)
    table = _read_layout(data, csv_file, cache, how)
    if columns and table.csv_file is None:
        part, name = next(iter(columns.items()))
        raise NoColumn(part, f"{table.layout} has no CSV, so it has no column {name!r}")
    if len(table.classes) < 2:
        raise BadInput(f"{data} contains only one class, {table.classes[0]!r}: at least two are needed")
    missing = np.flatnonzero(np.bincount(table.targets, minlength=len(table.classes)) == 0)
    if len(missing) and train:
        names = ", ".join(table.classes[c] for c in missing[:10]) + (", ..." if len(missing) > 10 else "")
        count = f"{len(missing)} of {len(table.classes)}"
        table.notes.append(f"classes without images, whose F1 is 0: {count} ({names})")
    hint = "; --fold-case reads them as one" if table.labels == table.classes else ""
    for names in _alike(table.classes):
        table.notes.append(f"{names} differ only in case or spaces: they are used as different classes{hint}")
    return table


def _alike(names: Iterable[str]) -> list[str]:
    """The names that differ only in case or spaces, as one text for each set of them."""
    spellings: dict[str, list[str]] = {}
    for name in names:
        spellings.setdefault(_folded(name), []).append(name)
    return [" and ".join(map(repr, alike)) for alike in spellings.values() if len(alike) > 1]


def _read_layout(data: str, csv_file: str | None, cache: str | Path, how: Reading) -> ImageTable:
    """The table of the first layout in LAYOUTS that recognises the source."""
    folder = Path(data)
    if csv_file is not None and not Path(csv_file).is_file():
        raise BadInput(f"{csv_file} is not a file")
    if folder.is_file():
        raise BadInput(f"{data} is a file, not a folder" + _file_hint(folder))
    if csv_file is not None and not folder.is_dir():
        raise BadInput(f"{data} is not a folder of images")
    found = [path for path in (folder / "train" / "train.csv", folder / "train.csv") if path.is_file()]
    csv_path = Path(csv_file) if csv_file is not None else found[0] if found else None
    source = Source(data, csv_path, csv_file is not None, Path(cache), how)
    for name, (recognises, reader) in LAYOUTS.items():
        if recognises(source):
            if how.num_classes is not None and name != "CSV":
                raise BadInput(f"--num-classes is only for a CSV with class numbers, and {data} is a different layout")
            return reader(source)
    raise BadInput(f"{data} is neither a folder nor the name of a torchvision data set")


def _file_hint(file: Path) -> str:
    if file.suffix.lower() in {".zip", ".tar", ".gz", ".tgz", ".bz2", ".xz", ".7z", ".rar"}:
        return ": unzip it first, and give the folder"
    if file.suffix.lower() in {".csv", ".tsv", ".txt"}:
        return f": use --csv {file}, and --data for the folder of its images"
    return ""


def read_folder(folder: Path, fold_case: bool = False) -> ImageTable:
    """FOLDER/CLASS/**/image, or the same below FOLDER/train and FOLDER/val. Classes are sorted by name, as text.

    train may also be called training, val also valid or validation. Upper and lower case do not matter.
    """
    parts, outside = _parts(folder)
    paths, names, is_val, ignored, loose, notes = [], [], [], [], [], []
    for part, root in parts.items():
        class_folders = sorted(p for p in root.iterdir() if p.is_dir() and not _is_hidden(p.name))
        files = sorted(p for p in root.iterdir() if p.is_file() and not _is_hidden(p.name))
        loose += [str(p) for p in files if p.suffix.lower() in IMAGE_EXTENSIONS]
        if not class_folders:
            raise BadInput(f"{root} contains no class folders (expected {root}/CLASS/*.jpg)")
        inner = [path for path in class_folders[0].iterdir() if path.is_dir() and image_files(path)[0]]
        if len(class_folders) == 1 and (len(inner) > 1 or (class_folders[0] / "train.csv").is_file()):
            only = class_folders[0]
            raise BadInput(f"{root} contains only the folder {only.name}: give {only}, if its folders are the classes")
        for class_folder in class_folders:
            found, other = image_files(class_folder)
            if not found:
                known = ", ".join(sorted(IMAGE_EXTENSIONS))
                raise BadInput(f"class folder {class_folder} contains no image (known extensions: {known})")
            paths += found
            names += [_composed(class_folder.name)] * len(found)
            is_val += [part == "val"] * len(found)
            ignored += other
    if fold_case:
        names = _one_spelling(names, notes)
    classes = sorted(set(names))
    number = {name: i for i, name in enumerate(classes)}
    table = ImageTable(
        paths=paths,
        targets=np.array([number[name] for name in names], dtype=np.int64),
        groups=paths,
        classes=classes,
        layout=f"image folder {folder}" + (" with train and val" if "val" in parts else ""),
        is_val=np.array(is_val) if "val" in parts else None,
        notes=notes,
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


def _folded(name: str) -> str:
    """The name in lower case, without spaces."""
    return "".join(name.casefold().split())


def _one_spelling(names: list[str], notes: list[str]) -> list[str]:
    """The names; those that differ only in case or spaces get the spelling that is the most frequent, or first."""
    spellings: dict[str, Counter[str]] = {}
    for name in names:
        spellings.setdefault(_folded(name), Counter())[name] += 1
    chosen = {key: counter.most_common(1)[0][0] for key, counter in spellings.items()}
    for key, counter in spellings.items():
        if len(counter) > 1:
            notes.append(f"{' and '.join(map(repr, counter))} are read as one class, {chosen[key]!r} (--fold-case)")
    return [chosen[_folded(name)] for name in names]


def _parts(folder: Path) -> tuple[dict[str, Path], list[Path]]:
    """The folders "train" and "val", or the folder itself as ""; and the other folders beside them."""
    inner = sorted(p for p in folder.iterdir() if p.is_dir() and not _is_hidden(p.name))
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


def read_csv(csv_file: Path, folder: Path, how: Reading) -> ImageTable:
    """A CSV with a header. Its columns are found by name, see COLUMNS; upper and lower case do not matter.

    - image: the first known name whose values are files
    - label: the first known name; or else columns that have one 1 per row and are 0 otherwise; or else the last column
    - group, fold: the first known name, if there is one

    Labels that are whole numbers >= 0 are class numbers, see class_numbers. A class_name column, or a meta.csv with
    target and class_name beside the CSV, gives the names. meta.csv may name more classes. Other labels are class names,
    without spaces around them, sorted as text. An image that is listed twice with one label is counted once.

    Several label columns ("mask,gender,age") are factors: every combination of their values is a class, also without
    images. The values of the last column change fastest. Values are ordered as classes are.

    Args:
        folder: images are searched in it, in its train and images folders, and beside the CSV.
    """
    sheet = read_sheet(csv_file)
    columns = columns_of(csv_file, sheet.rows)
    found = _find_columns(csv_file, sheet.rows, columns, how.columns)
    folders = [folder, folder / "train", folder / "images", folder / "train" / "images", csv_file.parent]
    image, root = find_images(csv_file, sheet.rows, found["image"], folders)
    notes = [] if sheet.separator == "," else [f"the separator of {csv_file} is {sheet.separator!r}"]
    alike = _alike(sorted(set(sheet.column(found["label"][0])))) if found["label"] and not how.fold_case else []
    advice = f"; add --fold-case to read {alike[0]} as one class" if alike else ""
    whole = replace(sheet, image=image)
    sheet, paths = _with_files(whole, root, folder, how.skip_missing, advice, notes)
    named = found["label"] if "label" in how.columns else []
    group = next((name for name in found["group"] if name not in (image, *named)), None)
    fold = next(iter(found["fold"]), None)
    others = [name for name in sheet.rows[0] if name not in (image, group, fold)]
    warnings: list[str] = []
    read_labels = functools.partial(_read_labels, sheet, whole, others, columns.get("class_name"), how, notes, warnings)
    if len(named) > 1:
        labels, factors, factor_ids = _combined(csv_file, [read_labels([name], True) for name in named], how)
    else:
        labels, factors, factor_ids = read_labels(found["label"], False), {}, None
    layout = f"{csv_file}: image column {image}, label column {labels.column}, group column {group or 'none'}"
    table = ImageTable(
        *(paths, labels.targets, paths, labels.classes, layout),
        notes=notes,
        warnings=warnings,
        labels=labels.written,
        csv_file=csv_file,
        factors=factors,
        factor_ids=factor_ids,
    )
    first = _first_of(paths)
    _check_repeated(sheet, paths, [labels.classes[c] for c in labels.targets], first, "labels")
    if group:
        names = [row[group].strip() or path for row, path in zip(sheet.rows, paths, strict=True)]  # "": its own group
        table.groups = tied(names, first)  # an image that is listed twice joins the groups of both rows
    if fold:
        table.layout += f", fold column {fold}"
        values = sheet.column(fold)
        _check_repeated(sheet, paths, values, first, "folds")
        table.fold_of = _folds_of(values, sheet, fold)
    return _without_repeated(table, sheet, first)


@dataclass
class Sheet:
    """The rows of a CSV file."""

    file: Path
    separator: str
    rows: list[dict[str, str]]  # {column: text}, unchanged
    lines: list[int]  # the line of the file in which each row begins
    image: str = ""  # the image column

    def column(self, name: str) -> list[str]:
        """The texts of a column, composed and without spaces around them."""
        return [_composed(row[name].strip()) for row in self.rows]

    def where(self, i: int) -> str:
        """Row i in words: its line and image."""
        return f"line {self.lines[i]} ({self.rows[i][self.image]})"

    def take(self, rows: list[int]) -> Sheet:
        return replace(self, rows=[self.rows[i] for i in rows], lines=[self.lines[i] for i in rows])


class Labels(NamedTuple):
    """The labels of all rows of a sheet."""

    column: str  # in words
    targets: np.ndarray  # int64 (N,)
    classes: list[str]
    written: list[str]  # each class as the file writes it


def _read_labels(
    sheet: Sheet,
    whole: Sheet,
    others: list[str],
    class_name: str | None,
    how: Reading,
    notes: list[str],
    warnings: list[str],
    candidates: list[str],
    is_factor: bool,
) -> Labels:
    """The labels in the first candidate column, or in one of the others, see _labels.

    Args:
        sheet, whole: without and with the rows whose image is missing.
        class_name: the column with the names of class numbers.
        is_factor: the column is one of several. Numbers are then sorted as numbers, and only those that occur are used.
    """
    label, texts, classes = _labels(sheet, candidates, others, how, notes, warnings)
    key = _folded if how.fold_case else str
    lost = set() if classes else {*map(key, whole.column(label))} - {*map(key, texts)} - NO_LABEL
    if lost:
        warnings.append(f"labels whose images are all missing, so classes may be missing: {_shown(sorted(lost))}")
    if classes is None and all(map(_is_whole, texts)):
        if not is_factor:
            return Labels(label, *_numbered(sheet, texts, label, class_name, how.num_classes, notes))
        number_of = {text: float(text) for text in texts}
        _written(sheet.file, [number_of[text] for text in texts], texts)
        classes = sorted(number_of, key=number_of.get)
    texts = _one_spelling(texts, notes) if how.fold_case and classes is None else texts
    classes = classes or sorted(set(texts))
    number = {name: c for c, name in enumerate(classes)}
    targets = np.array([number[text] for text in texts], dtype=np.int64)
    if how.num_classes not in (None, len(classes)):
        raise BadInput(
            f"--num-classes {how.num_classes}: {sheet.file} has {len(classes)} classes with names: remove it"
        )
    return Labels(label, targets, classes, classes)


def _combined(csv_file: Path, parts: list[Labels], how: Reading) -> tuple[Labels, dict[str, list[str]], np.ndarray]:
    """All combinations of the labels of several columns as classes, and the factors and factor_ids of the table.

    A class name joins the values of its columns. A value that is a number is written after the name of its column.

    Raises: BadInput for a column with one value, too many classes, or --num-classes.
    """
    if how.num_classes is not None:
        raise BadInput(f"--num-classes {how.num_classes} is only for one label column: remove it")
    names, sizes = [part.column for part in parts], [len(part.classes) for part in parts]
    for name, size, part in zip(names, sizes, parts, strict=True):
        if size < 2 and how.train:
            raise BadInput(f"column {name} of {csv_file} has only the value {part.classes[0]!r}: leave it out")
    if math.prod(sizes) > max(1000, 10 * len(parts[0].targets)):
        product = " x ".join(f"{size} ({name})" for name, size in zip(names, sizes, strict=True))
        raise BadInput(f"{csv_file}: {product} values are too many classes for {len(parts[0].targets)} rows")
    shown = ([f"{part.column} {value}" if _is_whole(value) else value for value in part.classes] for part in parts)
    classes = [", ".join(values) for values in itertools.product(*shown)]
    name, times = Counter(classes).most_common(1)[0]
    if times > 1:
        raise BadInput(f"{csv_file}: {times} combinations of {', '.join(names)} have the name {name!r}: rename a value")
    targets = np.ravel_multi_index([part.targets for part in parts], sizes)
    ids = np.array([*itertools.product(*map(range, sizes))], dtype=np.int64)
    factors = {part.column: part.classes for part in parts}
    return Labels(", ".join(names), targets, classes, classes), factors, ids


def _find_columns(
    csv_file: Path, rows: list[dict[str, str]], columns: dict[str, str], named: dict[str, str]
) -> dict[str, list[str]]:
    """The candidate columns of each part, in the order of COLUMNS, or the named ones. Only labels can be several."""
    words = {part: [_composed(name.strip().lower())] for part, name in named.items()}
    if "label" in words and words["label"][0] not in columns:
        words["label"] = [word.strip() for word in words["label"][0].split(",")]
    for part, names in words.items():
        for name in names:
            if name not in columns:
                raise NoColumn(part, f"{csv_file} has no column {name!r}: it has {_shown(rows[0])}")
            if names.count(name) > 1:
                raise NoColumn(part, f"column {name!r} is listed twice")
    return {
        part: [columns[name] for name in words.get(part, known) if name in columns] for part, known in COLUMNS.items()
    }


def _shown(names: Iterable[str], most: int = 20) -> str:
    """The first names, separated by commas, and how many there are."""
    names = list(names)
    return ", ".join(names[:most]) + (f", ... ({len(names):,} in all)" if len(names) > most else "")


def _with_files(
    sheet: Sheet, root: Path, folder: Path, skip_missing: bool, advice: str, notes: list[str]
) -> tuple[Sheet, list[str]]:
    """The rows that have an image file in root, and the files. Similar names in `folder` are named.

    Raises: BadInput if a file is missing, with further advice; not with skip_missing.
    """
    names = [row[sheet.image] for row in sheet.rows]
    paths = [find_file(root, name) for name in names]
    missing = [i for i, path in enumerate(paths) if path is None]
    if not missing:
        return sheet, paths
    similar = _similar_files(folder)
    lines = []
    for i in missing:
        there = similar.get(_file_key(names[i]))
        lines.append(f"{names[i]} (line {sheet.lines[i]}{f'; there is {there}' if there else ''})")
    count = f"{len(missing)} of {len(names)}"
    if not skip_missing:
        raise BadInput(
            f"{sheet.file}: {count} images cannot be found in {root}; correct the column {sheet.image}, or leave these "
            f"rows out with --bad skip{advice}:" + listed(lines)
        )
    notes.append(f"rows without an image file in {root}, left out: {count}" + listed(lines))
    kept = [i for i, path in enumerate(paths) if path is not None]
    return sheet.take(kept), [paths[i] for i in kept]


def _similar_files(folder: Path) -> dict[str, str]:
    """The images below a folder, by _file_key."""
    found: dict[str, str] = {}
    for root, _, files in os.walk(folder):
        for name in sorted(files):
            if not _is_hidden(name) and Path(name).suffix.lower() in IMAGE_EXTENSIONS:
                found.setdefault(_file_key(name), os.path.join(root, name))
    return found


def _file_key(name: str) -> str:
    """The file name in lower case, without folders, spaces around it and image extension."""
    name = _composed(name.replace("\\", "/").rpartition("/")[2].strip().casefold())
    stem, extension = os.path.splitext(name)
    return stem if extension in IMAGE_EXTENSIONS else name


def _labels(
    sheet: Sheet, candidates: list[str], others: list[str], how: Reading, notes: list[str], warnings: list[str]
) -> tuple[str, list[str], list[str] | None]:
    """The label column in words, the label of each row, and the classes if they are columns (one-hot).

    Args:
        candidates: columns with a known name, or the one that the user named.
        others: the columns that have no other part.
    Raises: BadInput for rows without a label, or if no column can be the label.
    """
    label = next((name for name in candidates if name != sheet.image), None)
    if label is None:
        if not others or candidates:
            raise BadInput(
                f"{sheet.file} has no label column with a known name ({', '.join(COLUMNS['label'])}) beside its image "
                f"column {sheet.image}: name it with --label-col; the columns are {_shown(sheet.rows[0])}"
            )
        one_hot = _one_hot_columns(sheet, others)
        if one_hot:
            classes = [_composed(name.strip()) for name in one_hot]
            notes.append(
                f"the {len(classes)} columns {_shown(classes)} have one 1 per row, so they are read as the classes; "
                "--label-col names a different label column"
            )
            columns = np.array([[float(row[name]) for name in one_hot] for row in sheet.rows])
            return f"{_shown(one_hot, 3)} (one-hot)", [classes[c] for c in columns.argmax(1)], classes
        label = others[-1]
        warnings.append(
            f"no column of {sheet.file} has a known name for labels, so the last one, {label}, is used; --label-col "
            "names a different one"
        )
    texts = sheet.column(label)
    empty = [f"{sheet.where(i)}: {text!r}" for i, text in enumerate(texts) if text in NO_LABEL]
    if empty:
        raise BadInput(
            f"{sheet.file}: rows without a label in column {label!r}: {len(empty)}; fill in a class name, or delete "
            "these rows:" + listed(empty)
        )
    if how.train and "label" not in how.columns:
        _check_few_values(sheet, label, texts, 2 if candidates else 10)
    return label, texts, None


NO_LABEL = {"", "nan", "NaN", "NAN", "None", "null", "NULL", "N/A", "n/a", "#N/A", "<NA>"}


def _one_hot_columns(sheet: Sheet, names: list[str]) -> list[str]:
    """The columns that hold only 0 and 1, if the last column is one of several of them, and each row has exactly one 1.

    Raises: BadInput if rows have no or more than one 1.
    """
    binary = [n for n in names if all(row[n].strip() in ("0", "1", "0.0", "1.0") for row in sheet.rows)]
    if len(binary) < 2 or binary[-1] != names[-1]:  # the last column is used
        return []
    ones = [sum(float(row[name]) == 1 for name in binary) for row in sheet.rows]
    wrong = [i for i, n in enumerate(ones) if n != 1]
    if not wrong:
        return binary
    raise BadInput(
        f"{sheet.file} has no label column with a known name, and its columns {_shown(binary)} hold 0 and 1, but not "
        f"one 1 per row: {sheet.where(wrong[0])} has {ones[wrong[0]]}; name the label column with --label-col"
    )


def _check_few_values(sheet: Sheet, label: str, texts: list[str], least: int) -> None:
    """Numbers with fewer than `least` rows per value are measurements or ids, not classes."""
    different = set(texts)
    if len(different) > 20 and len(texts) < least * len(different) and all(map(_is_number, different)):
        raise BadInput(
            f"{sheet.file}: column {label!r} has {len(different):,} different numbers in {len(texts):,} rows, so it "
            f"does not look like a class: name the label column with --label-col; the columns are "
            f"{_shown(sheet.rows[0])}"
        )


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def _is_whole(text: str) -> bool:
    """Whether the text is a whole number >= 0. It may be written as a float: 3.0."""
    whole, _, fraction = text.partition(".")
    return whole.isdecimal() and not fraction.strip("0")


def _check_repeated(sheet: Sheet, paths: list[str], values: list[str], first: np.ndarray, what: str) -> None:
    """An image that is listed twice must have one label, and one fold."""
    found = [(f, i) for i, f in enumerate(first.tolist()) if values[i] != values[f]]
    if found:
        rows = ([(f"{values[row]} (line {sheet.lines[row]})") for row in pair] for pair in found)
        lines = [f"{paths[f]}: {' and '.join(row)}" for (f, _), row in zip(found, rows, strict=True)]
        count = len({f for f, _ in found})
        raise BadInput(f"{sheet.file}: images with two {what}: {count}; keep one row of each image:" + listed(lines))


def _without_repeated(table: ImageTable, sheet: Sheet, first: np.ndarray) -> ImageTable:
    """The table with each image once."""
    repeated = np.flatnonzero(first != np.arange(len(first)))
    if not len(repeated):
        return table
    i, f = int(repeated[0]), int(first[repeated[0]])
    table.notes.append(
        f"rows that repeat an image and its label: {len(repeated)}, such as lines {sheet.lines[f]} and "
        f"{sheet.lines[i]} ({table.paths[i]}). Each image is counted once"
    )
    return take(table, np.flatnonzero(first == np.arange(len(first))))


def find_images(
    csv_file: Path, rows: list[dict[str, str]], columns: list[str], folders: list[Path]
) -> tuple[str, Path]:
    """The first column and the first folder in which the value of a row is a file. About 100 rows are tried.

    Raises: BadInput if there is none.
    """
    if not columns:
        known = ", ".join(COLUMNS["image"])
        raise BadInput(
            f"{csv_file} has no image column with a known name ({known}): name it with --image-col, and the label "
            f"column with --label-col if it is not one of {', '.join(COLUMNS['label'])}; the columns are "
            f"{_shown(rows[0])}"
        )
    for row in rows[:: max(1, len(rows) // 100)]:
        for column in columns:
            for folder in folders:
                if find_file(folder, row[column]):
                    return column, folder
    name = rows[0][columns[0]]
    similar = _similar_files(folders[0]).get(_file_key(name))
    hint = f"; there is {similar}: correct the CSV, or --data" if similar else ""
    if len(rows[0]) > len(columns):
        hint += f"; its columns are {_shown(rows[0])} (train.py --image-col names a different one)"
    raise BadInput(f"{csv_file}: no file {name} in {folders[0]} (column {columns[0]}){hint}")


COLUMNS = {
    "image": (
        *("id", "imageid", "image_id", "image_path", "img_path", "image", "path", "file", "filename", "name"),
        *("파일명", "파일이름", "파일", "파일경로", "이미지명", "이미지", "이미지경로", "경로", "사진"),
    ),
    "label": ("target", "label", "class", "ans", "y", "라벨", "레이블", "정답", "클래스", "분류"),
    "group": ("group", "id", "person", "profile", "source", "그룹", "사람"),
    "fold": ("fold", "kfold", "폴드"),
}


def _first_of(values: Sequence) -> np.ndarray:
    """int64 (N,): for each row, the first row with the same value."""
    first: dict[Any, int] = {}
    return np.array([first.setdefault(value, i) for i, value in enumerate(values)], dtype=np.int64)


def _folds_of(values: list[str], sheet: Sheet, column: str) -> np.ndarray:
    """int64 (N,), 0 to k - 1: folds sorted as numbers, or else as text. At least 2 folds of 2 rows on average."""
    if "" in values:
        raise BadInput(f"{sheet.file}: {sheet.where(values.index(''))} has no fold in column {column!r}")
    names = sorted(set(values), key=lambda name: (int(name), name) if name.isdecimal() else (0, name))
    if not 2 <= len(names) <= max(2, len(values) // 2):
        most = max(2, len(values) // 2)
        what = f"column {column!r} has {len(names)} different values in {len(values)} rows"
        raise BadInput(f"{sheet.file}: {what}, but 2 to {most} folds are possible")
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
    factors = {"mask": ["mask", "incorrect", "no mask"], "gender": ["male", "female"], "age": ["<30", "30-59", ">=60"]}
    return ImageTable(
        paths,
        np.array(targets, dtype=np.int64),
        groups,
        classes=[", ".join(values) for values in itertools.product(*factors.values())],
        layout=f"mask competition {csv_file}, one group per person",
        labels=[str(c) for c in range(18)],
        csv_file=csv_file,
        factors=factors,
        factor_ids=np.array([*itertools.product(range(3), range(2), range(3))], dtype=np.int64),
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


def join(train: ImageTable, val: ImageTable, fold_case: bool = False) -> ImageTable:
    """One table of training and validation images, with that split. Classes and groups are matched by name.

    fold_case: class names that differ only in case or spaces are the same.

    Raises: BadInput for a class without training images, or a file on both sides.
    """
    if train.is_val is not None:
        raise BadInput(f"{train.layout} already contains validation images: give its train folder as training data")
    key = _folded if fold_case else str
    known = {key(name): c for c, name in enumerate(train.classes)}
    number = np.array([known.get(key(name), -1) for name in val.classes], np.int64)
    unknown = [name for c, name in enumerate(val.classes) if number[c] < 0 and (val.targets == c).any()]
    if unknown:
        raise BadInput(f"class {unknown[0]!r} of {val.layout} is not among the training classes")
    if (train.source is None) != (val.source is None):
        raise BadInput("training and validation images must both be files, or both be a torchvision data set")
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
        + [f"validation data: {note}" for note in val.notes]
        + (["ignored the fold column, because validation images are given"] if train.fold_of is not None else []),
        warnings=train.warnings + [f"validation data: {warning}" for warning in val.warnings],
        labels=train.labels,
        csv_file=train.csv_file,
        factors=train.factors,
        factor_ids=train.factor_ids,
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
    """Each row as {column: text}, unchanged. Raises BadInput like read_sheet."""
    return read_sheet(csv_file).rows


def read_sheet(csv_file: Path) -> Sheet:
    """The rows of a CSV whose separator is a comma, semicolon, tab or |.

    Raises: BadInput for ragged rows, open quotes, equal column names.
    """
    text = _text(csv_file)
    separator = _separator(text)
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True, delimiter=separator)
    rows, lines, begins = [], [], 1  # begins: where an unread row may begin; blank lines are skipped
    try:
        n = len(reader.fieldnames or [])
        name, times = next(iter(Counter(reader.fieldnames or []).most_common(1)), ("", 0))
        if times > 1:
            raise BadInput(f"{csv_file} has {times} columns called {name!r}: rename them")
        begins = reader.line_num + 1
        for row in reader:
            if None in row or None in row.values():
                raise BadInput(f"{csv_file}: line {reader.line_num} does not have the header's {n} columns")
            rows.append(row)
            breaks = sum(text.count("\n") for text in row.values()) if reader.line_num > begins else 0
            lines.append(reader.line_num - breaks)
            begins = reader.line_num + 1
    except csv.Error as error:
        raise BadInput(f"{csv_file}: the row that begins in line {begins} cannot be read: {error}") from error
    if not rows:
        raise BadInput(f"{csv_file} has no rows")
    return Sheet(csv_file, separator, rows, lines)


def _separator(text: str) -> str:
    """The separator with which the first rows have the same number of columns, and the most; a comma if in doubt."""

    def columns(separator: str) -> int:
        rows = csv.reader(io.StringIO(text, newline=""), delimiter=separator)
        try:
            counts = {len(row) for row in itertools.islice(rows, 20) if row}
        except csv.Error:
            return 0
        return counts.pop() if len(counts) == 1 and counts != {1} else 0

    return max(",;\t|", key=columns)


def columns_of(csv_file: Path, rows: list[dict[str, str]]) -> dict[str, str]:
    """The header's names, by their name in lower case without spaces around it."""
    columns: dict[str, str] = {}
    for name in rows[0]:
        other = columns.setdefault(_composed(name.strip().lower()), name)
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


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name in SYSTEM_FILES


def image_files(folder: Path) -> tuple[list[str], list[str]]:
    """Sorted paths of the images below a folder, and of what is not an image, without hidden names and SYSTEM_FILES.

    Raises: OSError for a folder that cannot be read.
    """
    images, others = [], []

    def refuse(error: OSError) -> None:
        raise error

    for root, folders, files in os.walk(folder, onerror=refuse):
        paths = [os.path.join(root, name) for name in folders]  # links to folders are not followed
        others += [path for path in paths if Path(path).suffix.lower() in IMAGE_EXTENSIONS or os.path.islink(path)]
        folders[:] = [name for name in folders if not _is_hidden(name)]
        for name in files:
            if not _is_hidden(name):
                is_image = Path(name).suffix.lower() in IMAGE_EXTENSIONS
                (images if is_image else others).append(os.path.join(root, name))
    return sorted(images), sorted(others)


def find_file(folder: Path, name: str) -> str | None:
    """The file of this name in the folder. The image extension may be missing, and the name may have backslashes.

    Spaces around the name are dropped, if there is no file with them.
    """
    spellings = [spelling for text in (name, name.strip()) for spelling in (text, text.replace("\\", "/"))]
    names = list(dict.fromkeys(spellings))
    if Path(name.strip()).suffix.lower() not in IMAGE_EXTENSIONS:
        cases = [case for extension in sorted(IMAGE_EXTENSIONS) for case in (extension, extension.upper())]
        names += [name + case for name in names for case in cases]
    return next((str(path) for path in (_spelled(folder, n) for n in names if name) if os.path.isfile(path)), None)


def _written(csv_file: Path, numbers: Sequence[float], labels: list[str]) -> None:
    """Raises BadInput for a number with two texts, e.g. "3" and "03"."""
    written: dict[float, str] = {}
    for number, label in zip(numbers, labels, strict=True):
        if written.setdefault(number, label) != label:
            raise BadInput(
                f"{csv_file}: class {number} is written in two ways, {written[number]!r} and {label!r}: use one"
            )


def _numbered(
    sheet: Sheet, texts: list[str], label: str, names: str | None, num_classes: int | None, notes: list[str]
) -> tuple[np.ndarray, list[str], list[str]]:
    """int64 (N,) targets, the class names, and each class as the file writes it, from labels that are whole numbers."""
    longest = max(texts, key=len)
    if len(longest.partition(".")[0]) >= 18:
        what = f"{longest[:40]} in column {label!r}"
        raise BadInput(f"{sheet.file}: {what} is not a valid class number: too large for {len(texts)} rows")
    if num_classes is not None and num_classes > max(1000, 10 * len(texts)):
        raise BadInput(f"--num-classes {num_classes} is too large for the {len(texts)} rows of {sheet.file}")
    whole = [text.partition(".")[0] for text in texts]
    values = [int(text) for text in whole]
    _written(sheet.file, values, texts)  # "3" and "3.0" are one number in two ways
    written = dict(zip(values, whole, strict=True))
    if whole != texts:
        text, number = next((text, number) for text, number in zip(texts, whole, strict=True) if text != number)
        notes.append(f"labels in column {label} are whole numbers written as floats: {text} is read as {number}")
    named, has_meta = _class_names(sheet, values, names)
    numbers = class_numbers({*values, *named}, num_classes)
    if not numbers or not set(values) <= set(numbers):
        raise BadInput(
            f"--num-classes {num_classes}: column {label} of {sheet.file} has {len(set(values))} class numbers from "
            f"{min(values)} to {max(values)}, so it must be {len(set(values))}, or {max(values) + 1} or more"
        )
    if num_classes is None and not has_meta and numbers != list(range(numbers[-1] + 1)):
        starts_at_1 = numbers == list(range(1, numbers[-1] + 1))
        what = f"the class numbers in column {label} " + ("begin with 1" if starts_at_1 else "have wide gaps")
        notes.append(
            f"{what}, so the classes are {_shown(map(str, numbers), 5)}; --num-classes {numbers[-1] + 1} makes them "
            f"0 to {numbers[-1]}"
        )
    number = {value: c for c, value in enumerate(numbers)}
    classes = [named.get(value) or str(value) for value in numbers]
    times = Counter(classes)
    classes = [f"{name} ({v})" if times[name] > 1 else name for v, name in zip(numbers, classes, strict=True)]
    targets = np.array([number[value] for value in values], dtype=np.int64)
    return targets, classes, [written.get(value, str(value)) for value in numbers]


def class_numbers(known: set[int], num_classes: int | None = None) -> list[int]:
    """The class numbers, from the numbers in the labels and in meta.csv. A number that never occurs is a class, too:

    - all from 0 to the largest number, or from 1 if 0 does not occur
    - only those that occur, if at least 10 numbers, and more than half of them, would not occur
    - with num_classes: those that occur if they are as many, or 0 to num_classes - 1, or 1 to num_classes

    Empty, if the numbers do not fit num_classes.
    """
    lowest, highest = min(known), max(known)
    if num_classes is not None:
        if len(known) == num_classes:
            return sorted(known)
        first = 0 if highest < num_classes else 1
        return list(range(first, first + num_classes)) if first <= lowest and highest < first + num_classes else []
    first = 1 if lowest == 1 else 0
    absent = highest + 1 - first - len(known)
    return sorted(known) if absent >= 10 and absent > len(known) else list(range(first, highest + 1))


def _class_names(sheet: Sheet, numbers: list[int], column: str | None) -> tuple[dict[int, str], bool]:
    """The names of class numbers, from the meta.csv beside the CSV or from a column, and whether meta.csv has them."""
    meta, named = sheet.file.with_name("meta.csv"), {}
    meta_rows = read_rows(meta) if meta.is_file() else []
    if meta_rows and {"target", "class_name"} <= set(meta_rows[0]):
        for row in meta_rows:
            if not re.fullmatch(r"\s*\d{1,4}\s*", row["target"]):
                raise BadInput(f"{meta}: target {row['target']!r} is not a valid class number")
            named[int(row["target"])] = _composed(row["class_name"].strip())
        return named, True
    if column:
        for number, name in zip(numbers, sheet.column(column), strict=True):
            if named.setdefault(number, name) != name:
                raise BadInput(f"{sheet.file}: class {number} is named {named[number]!r} and {name!r} in {column}")
    return named, False


class Reading(NamedTuple):
    """How to read, see read()."""

    train: bool = True
    columns: dict[str, str] = {}
    num_classes: int | None = None
    fold_case: bool = False
    skip_missing: bool = False


class Source(NamedTuple):
    """What the user asked for, as LAYOUTS needs it."""

    data: str
    csv_file: Path | None  # the CSV that the user named, or a train.csv found in the folder
    csv_is_named: bool
    cache: Path
    how: Reading

    def has_columns(self, *names: str) -> bool:
        """Whether the CSV has these columns."""
        return self.csv_file is not None and set(names) <= set(read_rows(self.csv_file)[0])


# name: (whether it recognises the source, reader). The first layout that recognises the source reads it.
LAYOUTS: dict[str, tuple[Callable[[Source], bool], Callable[[Source], ImageTable]]] = {
    "mask competition": (
        lambda s: not s.csv_is_named and not s.how.columns and s.has_columns("gender", "race", "age", "path"),
        lambda s: read_mask(s.csv_file),
    ),
    "CSV": (lambda s: s.csv_file is not None, lambda s: read_csv(s.csv_file, Path(s.data), s.how)),
    "image folder": (lambda s: Path(s.data).is_dir(), lambda s: read_folder(Path(s.data), s.how.fold_case)),
    "torchvision data set": (
        lambda s: s.data in torchvision.datasets.__all__,
        lambda s: read_torchvision(s.data, s.cache / "torchvision", s.how.train),
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
    """The same images, with the chosen classes ("3,7,14", or names) as one, called "A+B", in the place of the first.

    The table then has no factors. Several groups are separated by semicolons: "3,7,14;1,2".
    """
    into = np.arange(len(table.classes))  # the first class of each group
    groups = [_class_numbers(table, words) for words in chosen.split(";")]
    for numbers in groups:
        twice = [table.classes[c] for c in numbers if (into != np.arange(len(into)))[c] or (into == c).sum() > 1]
        if twice:
            raise BadInput(f"{chosen!r}: class {twice[0]!r} is in two groups")
        into[numbers] = numbers[0]
    kept, of_class = np.unique(into, return_inverse=True)
    if len(kept) < 2:
        raise BadInput(f"{chosen!r} are all classes: at least two must remain after merging")
    classes, labels = (
        ["+".join(names[c] for c in np.flatnonzero(into == first)) for first in kept]
        for names in (table.classes, table.labels)
    )
    names = ", ".join(classes[of_class[numbers[0]]] for numbers in groups)
    layout = f"{table.layout}, merged class{'es' if len(groups) > 1 else ''} {names}"
    new = {"classes": classes, "labels": labels, "layout": layout, "factors": {}, "factor_ids": None}
    return replace(table, targets=of_class[table.targets], **new)


def only(table: ImageTable, chosen: str) -> ImageTable:
    """Only the images of the chosen classes ("3,7,14", or names), and of each factor only the values that they have."""
    numbers = _class_numbers(table, chosen)
    kept = take(table, np.flatnonzero(np.isin(table.targets, numbers)))
    classes = [table.classes[c] for c in numbers]
    layout = f"{table.layout}, only {', '.join(classes)}"
    new = {"classes": classes, "labels": [table.labels[c] for c in numbers], "layout": layout}
    factors, columns = {}, []
    for (name, values), ids in zip(table.factors.items(), table.factor_ids[numbers].T, strict=True):
        used, ids = np.unique(ids, return_inverse=True)
        if len(used) > 1:  # otherwise it does not tell the classes apart
            factors[name] = [values[i] for i in used]
            columns.append(ids)
    new |= {"factors": factors, "factor_ids": np.stack(columns, 1) if columns else None}
    return replace(kept, targets=np.searchsorted(numbers, kept.targets), **new)


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
    """Random rows such that the i-th largest class keeps int(n_max * (1 / factor) ** (i / (C - 1))) images.

    i counts from 0, equally large classes are in their own order, n_max is the size of the largest class. In a balanced
    set this is the exponential profile of long-tailed CIFAR (Cui et al. 2019, arXiv:1901.05555).

    Args:
        rows: training rows to choose from.
        factor: imbalance, the largest class divided by the smallest; at least 1.
    Raises: BadInput for a class that has too few images.
    """
    if not factor >= 1:
        raise BadInput(f"the imbalance factor must be at least 1, got {factor}")
    have, C, rng = counts(table, rows), len(table.classes), np.random.default_rng(seed)
    kept = []
    for i, c in enumerate(np.argsort(-have, kind="stable")):
        n = int(have.max() * (1 / factor) ** (i / (C - 1)))
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
        name = table.classes[c]
        hint = next(
            (f" ({alike}: --fold-case reads them as one)" for alike in _alike(table.classes) if repr(name) in alike), ""
        )
        raise BadInput(
            f"class {name!r} has only {what} ({table.paths[rows[0]]}), so it cannot be in both training "
            f"and validation: add images, leave the class out, or give validation data{hint}"
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
        raise BadInput(
            f"the number of folds must be from 2 to {n_groups}, the number of groups, got {k}; {smallest_class(table)}"
        )
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


def smallest_class(table: ImageTable) -> str:
    """The class with the fewest images, in words."""
    c, n = min(Counter(table.targets.tolist()).items(), key=lambda item: item[::-1])
    return f"the smallest class is {table.classes[c]!r} with {n} image" + ("s" if n > 1 else "")


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
    for name, texts in (("warning", table.warnings), ("note", table.notes)):
        for text in texts:
            _print_wrapped(name, text)
    train, val = split(table)
    how = "given by the data" if table.is_val is not None else "random 20%, seed 0"
    _print_wrapped("split", f"{len(train):,} training, {len(val):,} validation images ({how})")
    _print_wrapped(
        "groups", f"{len(set(table.groups)):,}, of which {shared_groups(table, train, val):,} are on both sides"
    )
    print(f"\n{'images':>8}{'training':>10}{'validation':>12}  class")
    for row in zip(everything, counts(table, train), counts(table, val), table.classes, strict=True):
        print(printable("{:8,}{:10,}{:12,}  {}".format(*row)))


def _print_wrapped(name: str, text: str) -> None:
    """Prints one line, wrapped at 80 columns."""
    options = {"break_long_words": False, "break_on_hyphens": False}
    print(textwrap.fill(printable(text), 80, initial_indent=f"{name:<11}", subsequent_indent=" " * 11, **options))


def printable(text: object) -> str:
    """The text with escapes for control characters, direction marks and bytes that are not text. Keeps line breaks."""
    return "".join(c if c.isprintable() or c == "\n" else ascii(c)[1:-1] for c in str(text))


if __name__ == "__main__":
    if sys.getfilesystemencoding() != "utf-8" and os.environ.get("PYTHONUTF8") != "1":  # as with LC_ALL=C
        os.execve(sys.executable, sys.orig_argv, os.environ | {"PYTHONUTF8": "1"})
    if len(sys.argv) != 2 or sys.argv[1] in ("-h", "--help"):
        is_help = len(sys.argv) == 2
        print(__doc__, file=sys.stdout if is_help else sys.stderr)
        sys.exit(0 if is_help else 1)
    sys.stdout.reconfigure(errors="backslashreplace")  # a file name may not be valid text
    try:
        show(sys.argv[1])
    except (BadInput, OSError) as error:
        print(printable(f"data.py: error: {error}"), file=sys.stderr)
        sys.exit(2)

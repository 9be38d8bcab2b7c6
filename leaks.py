# From f1kit. MIT licence, copyright (c) 2026 The f1kit authors. Keep this line and LICENSE with a copy of this file.
"""Does a split leak? Finds duplicates, and groups guessed from file names, on both sides of a split.

    python leaks.py TRAIN VAL        # which VAL images are identical to TRAIN images, or near-duplicates of them?
    python leaks.py TRAIN            # duplicates in TRAIN, and what a random 20 % split would leak

TRAIN and VAL are folders of images, at any depth, or CSVs.

    same, alike = find_copies(pixels)                                     # clusters of duplicates, uint8 (N, H, W, 3)
    pairs = find_leaks(paths, targets, classes, same, alike, train, val)  # validation images with a training duplicate
    guess = suspect_groups(paths, targets, classes, groups, train, val)   # do the names look like groups?
    groups = groups_by_regex(paths, guess.regex)                          # one group name per image

A duplicate is an identical image or a near-duplicate. A leak makes the validation score too high, because the network
was trained on these images or their duplicates.
"""

from __future__ import annotations

import codecs
import csv
import io
import itertools
import os
import re
import secrets
import socket
import sys
import tempfile
import textwrap
import unicodedata
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor
from tqdm.auto import tqdm

ALIKE = 0.95  # images are near-duplicates if their thumbnails correlate by more than this
IMAGE_EXTENSIONS = {".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm"}
FORMATS = ("JPEG", "PNG", "BMP", "GIF", "WEBP", "TIFF", "PPM")  # Pillow could also run Ghostscript for an EPS file


class BadInput(ValueError):
    """A file or value that the user gave is wrong. The message tells which one, what is valid, and what to do."""


class Pair(NamedTuple):
    """Two images that are duplicates. `what` is "identical" or "alike" (near-duplicates)."""

    what: str
    path: str
    label: str
    other_path: str
    other_label: str


class Guess(NamedTuple):
    """Groups guessed from file names. `share`: the part of the validation images with their group in training."""

    what: str  # a description, e.g. "copies of one image (_aug1, _rotated_90, ...)"
    regex: str  # for groups_by_regex
    count: int  # number of groups
    share: float  # 0 to 1
    on_both_sides: int  # number of groups with images in training and in validation


# ---------------------------------------------------------------------------------------------------------------------
# Near-duplicates
# ---------------------------------------------------------------------------------------------------------------------


def find_copies(
    pixels: np.ndarray,
    device: torch.device | str = "cpu",
    kept: Path | None = None,
    progress: bool | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Clusters of identical images and of near-duplicates: (same, alike), each int64 (N,), with N = len(pixels).

    The value of an image is the first row of its cluster. An image without a duplicate has its own row number.

    - Identical: every pixel is equal.
    - Near-duplicate: the 16 x 16 thumbnails correlate by more than 0.95, averaged over 16 x 16 grey values and 8 x 8
      color values. Brightness, contrast, JPEG quality, blur, noise, flips and rotations by 90 degrees do not matter.

    Every image is compared with all images before it, and linked to the most similar one in each of 8 orientations.
    Memory is linear in N, time is quadratic (12,000 images: some seconds).

    Args:
        pixels: uint8 (N, H, W, 3), an array or a memory-mapped file.
        kept: a cache file (.npz) of the result. It is used if it loads, has the right shape, and is not older than the
            file that `pixels` is mapped from. Otherwise the result is computed and written to it.
        progress: show a progress bar; None: only on a terminal.
    Raises: OSError if `kept` cannot be written.
    """
    found = _load_kept(kept, pixels) if kept else None
    if found is None:
        found = _find_copies(pixels, device, progress)
        if kept:
            _save_kept(kept, found)
    return found


def _load_kept(kept: Path, pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
    mapped_from = getattr(pixels, "filename", None)
    try:
        if mapped_from and os.stat(kept).st_mtime_ns < os.stat(mapped_from).st_mtime_ns:
            return None
        with np.load(kept) as file:
            found = file["found"]  # reading it checks its CRC
    except Exception:  # missing, damaged, or not a file of ours: the result is computed again
        return None
    is_valid = isinstance(found, np.ndarray) and found.shape == (2, len(pixels)) and found.dtype == np.int64
    return (found[0], found[1]) if is_valid else None


def _save_kept(kept: Path, found: tuple[np.ndarray, np.ndarray]) -> None:
    """Writes the whole file or nothing. Another process may be writing the same file at the same time."""
    temporary = kept.with_name(f".{kept.name}.{secrets.token_hex(4)}.{socket.gethostname()}-{os.getpid()}.tmp")
    file = open(temporary, "xb")  # noqa: SIM115 (closed below). A new file: a link with this name is not followed
    try:
        with file:
            np.savez(file, found=np.stack(found))
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, kept)
    finally:
        temporary.unlink(missing_ok=True)


def _find_copies(
    pixels: np.ndarray, device: torch.device | str, progress: bool | None
) -> tuple[np.ndarray, np.ndarray]:
    thumbs = _thumbnails(pixels)  # (N, 16, 16, 3) uint8
    N, first = len(thumbs), {}
    same = np.array([first.setdefault(thumb.tobytes(), i) for i, thumb in enumerate(thumbs)], dtype=np.int64)
    for i in np.flatnonzero(same != np.arange(N)):
        if not np.array_equal(pixels[i], pixels[same[i]]):
            same[i] = i  # different images with equal thumbnails are near-duplicates
    links = [(i, j) for i, j in enumerate(same.tolist()) if i != j]
    thumbs = torch.from_numpy(thumbs).to(device).permute(0, 3, 1, 2)
    grey = torch.cat([_grey8(block.float()) for block in thumbs.split(1024)])  # (N, 64)
    coarse, is_plain = _unit(grey), grey.std(1) < 2  # a blank page would be similar to every other blank page
    rows = torch.arange(N, device=device)
    disable = None if progress is None else not progress
    for own in tqdm(rows.split(1024), "near-duplicates", leave=False, disable=disable):
        block, end = thumbs[own].float(), int(own[-1]) + 1
        not_before = rows[:end] >= own[:, None]  # (n, end): a row is compared with the rows before it
        for quarter_turns, flipped in itertools.product(range(4), (False, True)):
            view = torch.rot90(block.flip(3) if flipped else block, quarter_turns, (2, 3))
            correlation, j = (_unit(_grey8(view)) @ coarse[:end].T).masked_fill_(not_before, -1).max(1)
            i = torch.nonzero((correlation > ALIKE - 0.05) & ~is_plain[own]).squeeze(1)
            is_alike = (_fine(view[i]) * _fine(thumbs[j[i]].float())).sum(1) / 2 > ALIKE
            links += zip(own[i[is_alike]].tolist(), j[i[is_alike]].tolist(), strict=True)
    return same, _clusters(N, links)


def _grey8(x: Tensor) -> Tensor:
    """(n, 3, 16, 16) to (n, 64): 8 x 8 grey values."""
    return F.avg_pool2d(x.mean(1, keepdim=True), 2).flatten(1)


def _thumbnails(pixels: np.ndarray) -> np.ndarray:
    """(N, H, W, 3) uint8 to (N, 16, 16, 3) uint8."""
    thumbs = np.empty((len(pixels), 16, 16, 3), np.uint8)
    for start in range(0, len(pixels), 64):
        x = torch.from_numpy(np.array(pixels[start : start + 64])).permute(0, 3, 1, 2).float()
        thumbs[start : start + 64] = F.adaptive_avg_pool2d(x, 16).round().byte().permute(0, 2, 3, 1).numpy()
    return thumbs


def _unit(x: Tensor) -> Tensor:
    """(n, ...) to (n, d) with mean 0 and length 1: the product of two rows is their correlation."""
    x = x.flatten(1)
    return F.normalize(x - x.mean(1, keepdim=True))


def _fine(x: Tensor) -> Tensor:
    """(n, 3, 16, 16) to (n, 448): the product of two rows is the sum of the grey and the color correlation."""
    return torch.cat([_unit(x.mean(1)), _unit(F.avg_pool2d(x, 2))], 1)


def _clusters(N: int, links: list[tuple[int, int]]) -> np.ndarray:
    """int64 (N,): the smallest row that each row is connected to, over any number of links (union-find)."""
    first = list(range(N))

    def root(i: int) -> int:
        while first[i] != i:
            first[i] = first[first[i]]
            i = first[i]
        return i

    for i, j in links:
        low, high = sorted((root(i), root(j)))
        first[high] = low
    return np.array([root(i) for i in range(N)], dtype=np.int64)


# ---------------------------------------------------------------------------------------------------------------------
# Both sides of a split
# ---------------------------------------------------------------------------------------------------------------------


def find_leaks(
    paths: list[str],
    targets: np.ndarray,
    classes: list[str],
    same: np.ndarray,
    alike: np.ndarray,
    train: np.ndarray,
    val: np.ndarray,
) -> list[Pair]:
    """One Pair (validation image, training image) for each validation image with a duplicate in training.

    Identical pairs come first. An image in an identical pair is not listed again as a near-duplicate.

    Args:
        paths, targets: N names and int (N,) class numbers.
        same, alike: int (N,), the clusters of `find_copies`.
        train, val: row numbers of the two sides.
    """
    pairs, found = [], set()
    for what, cluster in (("identical", same), ("alike", alike)):
        in_train = dict(zip(cluster[train[::-1]].tolist(), train[::-1].tolist(), strict=True))
        for i in val.tolist():
            if i not in found and (j := in_train.get(int(cluster[i]))) is not None:
                found.add(i)
                pairs.append(_pair(what, paths, targets, classes, i, j))
    return pairs


def find_two_labels(paths: list[str], targets: np.ndarray, classes: list[str], same: np.ndarray) -> list[Pair]:
    """One Pair for each image whose label differs from that of the first image identical to it."""
    rows = np.flatnonzero(targets != targets[same])
    return [_pair("identical", paths, targets, classes, i, same[i]) for i in rows]


def _pair(what: str, paths: list[str], targets: np.ndarray, classes: list[str], i: int, j: int) -> Pair:
    return Pair(what, paths[i], classes[targets[i]], paths[j], classes[targets[j]])


# ---------------------------------------------------------------------------------------------------------------------
# Groups from file names
# ---------------------------------------------------------------------------------------------------------------------


FEW = 0.05  # part of the images: this many names may be exceptions to an expression


def groups_by_regex(paths: list[str], regex: str) -> list[str]:
    """The group of each path: the first (...) of the regular expression that matched, or else the whole match.

    A path without a match is a group of its own, named by the path (`without_group` lists them).

    Raises: BadInput for an invalid expression, and if more than 5 % of the paths have no match.
    """
    groups = [group or path for path, (group, _) in zip(paths, _matches(paths, regex), strict=True)]
    missing = without_group(paths, regex)
    if len(missing) > FEW * len(paths):
        raise BadInput(f"{regex!r} gives no group for {len(missing)} of {len(paths)} images, such as {missing[0]}")
    return groups


def without_group(paths: list[str], regex: str) -> list[str]:
    """The paths for which the regular expression gives no group."""
    return [path for path, (group, _) in zip(paths, _matches(paths, regex), strict=True) if not group]


def _matches(paths: list[str], regex: str) -> list[tuple[str, str]]:
    """(group, whole match) of each path, both "" without a match."""
    try:
        matches = [re.search(regex, _composed(path)) for path in paths]
    except re.error as error:
        raise BadInput(f"{regex!r} is not a valid regular expression: {error}") from error
    return [(next(filter(None, m.groups() or (m[0],)), ""), m[0]) if m else ("", "") for m in matches]


# what people add to a file name for a copy of the image: scan_aug3, scan_rotated_90_noisy, aug_0001_2, scan (1)
_ADDED = (
    r"(?:[ _-]+(?:aug|copy|rotated|rotate|rot|noisy|noise|blurred|blur|hflip|vflip|flipped|flip|mirrored|mirror|bright|"
    r"dark|crop|shifted|shift)[ _-]*\d*|[ _-]*\(\d+\))*\.\w+$"
)
COPIES = {
    "copies of one image (_aug1, _rotated_90, ...)": (rf"(?i)(?:(aug[_-]\d+)[_-]\d+\.\w+$|([^/\\]+?){_ADDED})", None),
    "copies of one image in its class folder (_aug1, ...)": (rf"(?i)([^/\\]+[/\\][^/\\]+?){_ADDED}", None),
}
# (the group, what follows it, the least part of the images with another image in their group), the longest group first.
# A number that follows is stronger evidence than other text: George_W_Bush_0001, 00012_00029.
SIBLINGS = {
    "same name before the last number": (r"[^/\\]+", r"[\s._-]\d+\.\w+$", 0.2),
    "same name up to the last _": (r"[^/\\]+", r"_[^/\\_]+$", 0.8),
    "same name up to the first _ or -": (r"[^/\\_-]+", r"[_-][^/\\]+$", 0.8),
    "same folder": (r"[^/\\]+", r"[/\\][^/\\]+$", 0.8),
}
PEOPLE = {
    f"several photos of one person or object ({same})": (f"({folder}{group}){end}", least)
    for form, (group, end, least) in SIBLINGS.items()
    for same, folder in ((form, ""), (f"{form}, in one folder", r"[^/\\]+[/\\]"))
}


def suspect_groups(
    paths: list[str],
    targets: np.ndarray,
    classes: list[str],
    groups: list[str],
    train: np.ndarray,
    val: np.ndarray,
) -> Guess | None:
    """Groups, if the file names look like copies of one image, or several frames or photos of one object or person.

    The longest group that explains the names is chosen: all names but a few (5 %) have the form of the expression, and
    are different within their group. If they are equal, as in a/12_0.jpg and b/12_0.jpg, the folder belongs to the
    group.

    None if the names do not look like groups, if no such group is on both sides, or if groups are known (some images
    share one).
    """
    if len(set(groups)) < len(set(paths)):
        return None
    ends = ["/".join(path.replace("\\", "/").rsplit("/", 3)[-3:]) for path in paths]  # no expression looks further
    for what, (regex, least) in (COPIES | PEOPLE).items():
        matches = _matches(ends, regex)
        guessed = [group or path for path, (group, _) in zip(paths, matches, strict=True)]
        if _is_likely(matches, guessed, targets, len(classes), least):
            shared = {guessed[i] for i in train} & {guessed[i] for i in val}
            share = sum(guessed[i] in shared for i in val) / max(len(val), 1)
            return Guess(what, regex, len(set(guessed)), share, len(shared)) if shared else None
    return None


def _is_likely(
    matches: list[tuple[str, str]], guessed: list[str], targets: np.ndarray, num_classes: int, least: float | None
) -> bool:
    """Whether the groups explain the names. `least`: see SIBLINGS; None for copies, which have the same class."""
    few, sizes = FEW * len(guessed), Counter(guessed)
    if sum(not group for group, _ in matches) > few:
        return False
    if len(sizes) <= 3 * num_classes or max(sizes.values()) > 0.1 * len(guessed):
        return False  # few large groups: the names contain the class (in train, val and test), or a camera
    if least is not None:
        times = Counter(text for _, text in matches if text)
        is_clear = sum(n for n in times.values() if n > 1) <= few  # not a/12_0.jpg and b/12_0.jpg in one group
        return is_clear and sum(n for n in sizes.values() if n > 1) > least * len(guessed)
    classes_of = Counter(group for group, _ in set(zip(guessed, targets.tolist(), strict=True)))
    if sum(n for group, n in sizes.items() if classes_of[group] > 1) > few:
        return False  # copies have the same class; here several class folders use the same names
    # a/cat/1.jpg and b/cat/1.jpg are not copies: names whose matched text is equal count once
    of_group = Counter(group for group, _ in set(matches))
    return sum(sizes[group] for group, n in of_group.items() if n > 1 and group) > few


def _composed(text: str) -> str:
    """Hangul and accents as one character each (NFC): macOS file systems store them decomposed (NFD)."""
    return unicodedata.normalize("NFC", text)


# ---------------------------------------------------------------------------------------------------------------------
# python leaks.py TRAIN [VAL]: reading
# ---------------------------------------------------------------------------------------------------------------------

LABELS = ("target", "label", "class", "ans", "y", "라벨", "레이블", "정답", "클래스", "분류")
SIDE = 64  # pixels: images are compared at this size


class Side(NamedTuple):
    """TRAIN or VAL. A name is the path below the folder, or the CSV's value. A label is "" if it is not known."""

    files: list[str]
    names: list[str]
    labels: list[str]
    read_as: str


def read_side(place: str) -> Side:
    """The images of a folder (label: the name of the folder that contains the image) or of a CSV.

    Raises: BadInput if there are none; OSError for a folder that cannot be read.
    """
    path = Path(place)
    if path.is_file():
        return _read_csv(path)
    if not path.is_dir():
        raise BadInput(f"{place} is neither a folder of images nor a CSV file")

    def refuse(error: OSError) -> None:
        raise error

    files = []
    for root, folders, names in os.walk(path, onerror=refuse):
        folders[:] = [name for name in folders if not name.startswith(".")]
        is_image = (not name.startswith(".") and Path(name).suffix.lower() in IMAGE_EXTENSIONS for name in names)
        files += [os.path.join(root, name) for name in itertools.compress(names, is_image)]
    if not files:
        raise BadInput(f"{place} has no image ({', '.join(sorted(IMAGE_EXTENSIONS))})")
    files.sort()
    names = [Path(file).relative_to(path).as_posix() for file in files]
    labels = [_composed(Path(name).parent.name) for name in names]  # "" for an image outside of the class folders
    return Side(files, names, labels, "")


def _read_csv(csv_file: Path) -> Side:
    """The first column whose values are image files, and a label column if there is one."""
    columns, rows = _csv_rows(csv_file)
    folders = [csv_file.parent, *(csv_file.parent / name for name in ("train", "images", "test"))]
    for image in columns:
        hits = [sum(_find_image(folder, row[image]) is not None for row in rows[:20]) for folder in folders]
        if any(hits):
            folder = folders[int(np.argmax(hits))]
            break
    else:
        raise BadInput(
            f"{csv_file} has no image column: no value is an image file in {csv_file.parent} or its train, images or "
            f"test folder. Its columns are {', '.join(columns)}"
        )
    by_name = {name.strip().lower(): name for name in reversed(columns)}
    label = next((by_name[name] for name in LABELS if name in by_name), columns[-1])
    read_as = f"image column {image}, " + (f"label column {label}" if label != image else "no label column")
    names = [row[image] for row in rows]
    labels = [_composed(row[label].strip()) if label != image else "" for row in rows]
    files = [_find_image(folder, name) or str(folder / name) for name in names]
    return Side(files, names, labels, f" ({read_as}, images in {folder})")


def _csv_rows(csv_file: Path) -> tuple[list[str], list[dict[str, str]]]:
    """The header's names, and the rows by column."""
    content = csv_file.read_bytes()
    is_utf16 = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    for encoding in ("utf-16",) if is_utf16 else ("utf-8-sig", "cp949"):  # cp949: Excel on Korean Windows
        try:
            text = content.decode(encoding)
            separator = max(",;\t|", key=text.partition("\n")[0].count)
            reader = csv.DictReader(io.StringIO(text, newline=""), restval="", strict=True, delimiter=separator)
            rows = list(reader)
        except UnicodeDecodeError:
            continue
        except csv.Error as error:
            raise BadInput(f"{csv_file} cannot be read as a CSV: {error}") from error
        if not rows:
            raise BadInput(f"{csv_file} has no rows")
        return list(reader.fieldnames), rows
    raise BadInput(f"{csv_file} is not a CSV in UTF-8, UTF-16 or cp949")


def _find_image(folder: Path, name: str) -> str | None:
    """The image file of this name. Hangul may be NFC or NFD, / may be \\, and the extension may be missing."""
    name = name.replace("\\", "/")
    extensions = [""]
    if Path(name).suffix.lower() not in IMAGE_EXTENSIONS:
        extensions = [case for extension in sorted(IMAGE_EXTENSIONS) for case in (extension, extension.upper())]
    spellings = dict.fromkeys([name, _composed(name), unicodedata.normalize("NFD", name)])
    paths = (str(folder / (spelling + extension)) for extension in extensions for spelling in spellings if name)
    return next(filter(os.path.isfile, paths), None)


def decode_thumbnails(files: list[str]) -> tuple[np.ndarray, dict[int, str]]:
    """uint8 (n, 64, 64, 3) of the n images that can be decoded; and the reason for each other image, by its row.

    The array is mapped from a temporary file, so memory does not grow with the number of images.
    """
    reasons: dict[int, str] = {}
    with tempfile.TemporaryFile() as scratch, ThreadPoolExecutor() as pool:
        for i, row in enumerate(tqdm(pool.map(_decode, files), "decode", len(files), leave=False, disable=None)):
            if isinstance(row, str):
                reasons[i] = row
            else:
                scratch.write(row.tobytes())
        if len(reasons) == len(files):
            raise BadInput(describe_bad(reasons, files))
        scratch.flush()
        return np.memmap(scratch, np.uint8, "r", shape=(len(files) - len(reasons), SIDE, SIDE, 3)), reasons


def _decode(file: str) -> np.ndarray | str:
    """uint8 (64, 64, 3), upright, with transparency over white; or the reason why the file cannot be decoded."""
    try:
        with Image.open(file, formats=FORMATS) as image:
            image.draft("RGB", (2 * SIDE, 2 * SIDE))  # libjpeg can decode a large photo at a smaller size
            image = ImageOps.exif_transpose(image)
            if image.mode == "F":
                return "pixels are floating-point numbers of unknown range"
            if image.mode.startswith("I"):  # 16-bit grey: scaled to 8 bits, where convert() would clip
                grey = np.asarray(image, dtype=np.float64)
                scale = 257 if image.mode.startswith("I;16") or grey.max() > 255 else 1
                image = Image.fromarray((grey / scale).round().clip(0, 255).astype(np.uint8))
            if image.has_transparency_data:
                image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
            return np.asarray(image.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BOX))
    except Exception as error:  # a decoder may raise anything for a broken file
        return describe_error(error)


def describe_error(error: Exception) -> str:
    """One line without addresses and error numbers."""
    if isinstance(error, UnidentifiedImageError):
        return f"not an image in one of the formats {', '.join(FORMATS)}"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error).splitlines()[0] if str(error) else type(error).__name__


def describe_bad(reasons: dict[int, str], paths: list[str]) -> str:
    lines = [f"{paths[i]}: {reason}" for i, reason in reasons.items()]
    return f"{len(lines)} of {len(paths)} images cannot be decoded:" + listed(lines)


def listed(lines: Sequence[str], most: int = 20) -> str:
    """The first lines, each after a line break and two spaces, and how many more there are."""
    more = [f"and {len(lines) - most:,} more"] if len(lines) > most else []
    return "".join(f"\n  {line}" for line in [*lines[:most], *more])


# ---------------------------------------------------------------------------------------------------------------------
# python leaks.py TRAIN [VAL]: the answer
# ---------------------------------------------------------------------------------------------------------------------

VAL_SHARE = 0.2  # of a random split, if there is no VAL
TITLES = {"identical": "identical to", "alike": "near-duplicates of"}


class Images(NamedTuple):
    """What is compared: the images of TRAIN and, after them, of VAL; the result of find_copies; each side's rows."""

    files: list[str]
    names: list[str]
    targets: np.ndarray
    classes: list[str]
    same: np.ndarray
    alike: np.ndarray
    train: np.ndarray
    val: np.ndarray


def answer(train_place: str, val_place: str | None = None) -> None:
    """Prints what leaks, and a verdict.

    Raises: BadInput for a missing folder, a folder without images, or a CSV without an image column.
    """
    places = {"TRAIN": train_place} | ({"VAL": val_place} if val_place else {})
    sides = [read_side(place) for place in places.values()]
    for (name, place), side in zip(places.items(), sides, strict=True):
        classes = len(set(side.labels) - {""}) or "unknown"
        _print_wrapped(f"{name:<6}{place}: images {len(side.files):,}, classes {classes}{side.read_as}")
    if val_place and not set(sides[0].labels) & set(sides[1].labels):
        _print_wrapped("TRAIN and VAL have no class in common, so the labels of VAL are not compared.")
        sides[1] = sides[1]._replace(labels=[""] * len(sides[1].labels))
    images = _compare(sides)
    print()
    reasons = _two_sides(images) if val_place else _one_side(images)
    print()
    _print_wrapped("leak: " + "; ".join(reasons) if reasons else "no leak found")


def _compare(sides: list[Side]) -> Images:
    """Decodes all images and finds duplicates. Prints which images cannot be decoded, and leaves them out."""
    files, names, labels = ([value for side in sides for value in side[part]] for part in range(3))
    pixels, reasons = decode_thumbnails(files)
    if reasons:
        print(printable(f"{describe_bad(reasons, files)}\nThese images are left out."))
    kept = [i for i in range(len(files)) if i not in reasons]
    number = {label: c for c, label in enumerate(sorted(set(labels)))}
    is_val = np.array(kept) >= len(sides[0].files)
    if is_val.all() or (len(sides) == 2 and not is_val.any()):
        raise BadInput(f"no {'TRAIN' if is_val.all() else 'VAL'} image can be decoded")
    return Images(
        [files[i] for i in kept],
        [names[i] for i in kept],
        np.array([number[labels[i]] for i in kept]),
        list(number),
        *find_copies(pixels, "cuda" if torch.cuda.is_available() else "cpu"),
        np.flatnonzero(~is_val),
        np.flatnonzero(is_val),
    )


def _two_sides(images: Images) -> list[str]:
    """Prints the duplicates and groups that VAL and TRAIN share. Returns what leaks."""
    files, names, targets, classes, same, alike, train, val = images
    pairs = find_leaks(names, targets, classes, same, alike, train, val)
    for what, title in TITLES.items():
        of_kind = [pair for pair in pairs if pair.what == what]
        _print_pairs(f"VAL images that are {title} a TRAIN image", of_kind, len(val), ("VAL ", "TRAIN "))
    _print_two_labels(images)
    reasons = [f"{_part(len(pairs), len(val), ' VAL images')} have a duplicate in TRAIN"] if pairs else []
    guess = suspect_groups(files, targets, classes, files, train, val)
    if guess:
        share = f"{guess.share:.0%} of the VAL images share a group with TRAIN"
        _print_guess(guess, f"If these groups are real, {share}.")
        reasons += [f"by the file names, {share}"] if guess.share else []
    return reasons


def _one_side(images: Images) -> list[str]:
    """Prints the duplicates in TRAIN. Returns what a random split would leak."""
    files, names, targets, classes, same, alike, own, _ = images
    for what, first in (("identical", same), ("alike", np.where(same == own, alike, own))):
        pairs = [_pair(what, names, targets, classes, i, first[i]) for i in np.flatnonzero(first != own)]
        _print_pairs(f"Images that are {TITLES[what]} an earlier image", pairs, len(own))
    _print_two_labels(images)
    reasons, split, n_val = [], f"a random {VAL_SHARE:.0%} split", VAL_SHARE * len(own)
    if (alike != own).any():
        part = _part(_expected_leaks(alike), n_val, " validation images")
        reasons.append(f"in {split}, about {part} would have a duplicate in training")
    guess = suspect_groups(files, targets, classes, files, own, own)
    if guess:
        groups = np.unique(groups_by_regex(files, guess.regex), return_inverse=True)[1]
        share = (
            f"about {_expected_leaks(groups) / n_val:.0%} of the validation images would share a group with training"
        )
        _print_guess(guess, f"If these groups are real, {split} leaks: {share}.")
        reasons.append(f"by the file names, {share}")
    return reasons


def _expected_leaks(cluster: np.ndarray) -> float:
    """Expected number of validation images of a random split with an image of their cluster in training."""
    size = np.bincount(cluster)[cluster]
    return float(VAL_SHARE * (1 - VAL_SHARE ** (size - 1)).sum())


def _print_two_labels(images: Images) -> None:
    pairs = find_two_labels(images.names, images.targets, images.classes, images.same)
    pairs = [pair for pair in pairs if pair.label and pair.other_label]
    _print_pairs("Images that are identical to one with a different label", pairs, len(images.names))


def _print_pairs(title: str, pairs: list[Pair], total: int, sides: tuple[str, str] = ("", "")) -> None:
    """A title with a count, and the first 20 pairs: each on one line if all fit into 80 columns, else on two."""
    images = [
        (
            sides[0] + pair.path + (f" ({pair.label})" if pair.label else ""),
            sides[1] + pair.other_path + (f" ({pair.other_label})" if pair.other_label else ""),
        )
        for pair in pairs
    ]
    fits = all(len(image) + len(other) <= 75 for image, other in images[:20])
    between = ", " if fits else ",\n    "
    lines = listed([image + between + other for image, other in images])
    print(printable(f"{title}: {_part(len(pairs), total)}" + lines))


def _print_guess(guess: Guess, effect: str) -> None:
    _print_wrapped(f"The file names look like {guess.count:,} groups: {guess.what}. {effect}")
    print(printable(f"The option of train.py for these groups is\n  --group-regex '{guess.regex}'"))


def _part(n: float, total: float, what: str = "") -> str:
    return f"{n:,.0f} of {total:,.0f}{what} ({n / total:.1%})"


def _print_wrapped(text: str) -> None:
    """Prints one line, wrapped at 80 columns."""
    print(textwrap.fill(printable(text), 80, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False))


def printable(text: object) -> str:
    """The text with escapes for control characters, direction marks and bytes that are not text. Keeps line breaks."""
    return "".join(c if c.isprintable() or c == "\n" else ascii(c)[1:-1] for c in str(text))


if __name__ == "__main__":
    if sys.getfilesystemencoding() != "utf-8" and os.environ.get("PYTHONUTF8") != "1":  # as with LC_ALL=C
        os.execve(sys.executable, sys.orig_argv, os.environ | {"PYTHONUTF8": "1"})
    if len(sys.argv) not in (2, 3) or sys.argv[1] in ("-h", "--help"):
        sys.exit(__doc__)
    sys.stdout.reconfigure(errors="backslashreplace")  # a file name may not be valid text
    try:
        answer(*sys.argv[1:])
    except (BadInput, OSError) as error:
        print(printable(f"leaks.py: error: {error}"), file=sys.stderr)
        sys.exit(2)

# From f1kit. MIT licence, copyright (c) 2026 The f1kit authors. Keep this line and LICENSE with a copy of this file.
"""Image files to uint8 batches: decode each image once, sample, batch.

    python pixels.py FOLDER          # decodes every image below FOLDER, and lists the files that cannot be decoded

    images = decode(paths, targets, size=224, cache="cache")     # every file is decoded once: uint8, memory-mapped
    for x, targets in Batches(images, rows, batch_size=32, shuffle=True): ...

There are no worker processes. Threads decode each file once. After that, a batch is a selection of rows.
"""

from __future__ import annotations

import csv
import errno
import hashlib
import io
import itertools
import json
import math
import mmap
import os
import queue
import secrets
import shutil
import socket
import sys
import tempfile
import threading
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext, suppress
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms.v2 import functional as transforms
from tqdm.auto import tqdm

try:
    from torchvision.io import ImageReadMode, decode_jpeg
except ImportError:  # deprecated since torchvision 0.29; then Pillow reads JPEG, more slowly
    decode_jpeg = None

CACHE_FORMAT = 3  # part of the name of every cache file: raise it when decoding changes
FORMATS = ("JPEG", "PNG", "BMP", "GIF", "WEBP", "TIFF", "PPM")  # Pillow could also run Ghostscript for an EPS file
FITS = ("squash", "crop", "pad")  # how to fit images with a different aspect ratio
PADDING = (124, 116, 104)  # ImageNet's mean color: close to 0 after normalization

Size = int | tuple[int, int]


class BadInput(ValueError):
    """A file or value that the user gave is wrong. The message tells which one, what is valid, and what to do."""


def sides(size: Size) -> tuple[int, int]:
    """(H, W) of a size: the side of a square, or (H, W)."""
    H, W = (size, size) if isinstance(size, int) else size
    return H, W


class ImageArray(Dataset):
    """Decoded images: a plain torch Dataset of (uint8 image (3, H, W), target).

    Attributes:
        pixels: uint8 (N, H, W, 3).
        targets: int64 (N,).
        paths: N names.
        file: the cache file that `pixels` are mapped from, if there is one.
        kept: int64 (N,), the position of each image in the list that was given to `decode`.
        bad: the images that `decode` left out: their positions in that list, and the reasons.
        bad_csv: the CSV of these images, if there are any.
        digest: a hash of all decoded pixels in order, from `decode`.
        resident: `pixels` on the device, after `move_to`.
        soft: float32 (n, C) class probabilities of the last n images, for `Batches`. None: no image has any.
    """

    def __init__(self, pixels: np.ndarray, targets: np.ndarray, paths: list[str], file: Path | None = None):
        self.targets = torch.from_numpy(np.ascontiguousarray(targets, np.int64))
        self.pixels, self.paths, self.file = pixels, paths, file
        self.kept, self.bad, self.bad_csv, self.digest = np.arange(len(paths)), {}, None, ""
        self.resident: Tensor | None = None
        self.soft: Tensor | None = None

    def __len__(self) -> int:
        return len(self.paths)

    def gather(self, index: Tensor) -> Tensor:
        """uint8 (n, 3, H, W), channels_last, of these rows; on the device if the images were moved to it."""
        if self.resident is not None:
            return self.resident.index_select(0, index).permute(0, 3, 1, 2)
        _check_whole(self.pixels)
        return torch.from_numpy(np.ascontiguousarray(self.pixels[index.numpy()])).permute(0, 3, 1, 2)

    def __getitem__(self, i: int) -> tuple[Tensor, Tensor]:
        return self.__getitems__([i])[0]

    def __getitems__(self, indices: list[int]) -> list[tuple[Tensor, Tensor]]:
        index = torch.tensor(indices, device=self.targets.device)
        return list(zip(self.gather(index), self.targets[index], strict=True))

    def move_to(self, device: torch.device) -> bool:
        """Copies all images to a GPU if they need at most a quarter of its free memory. Returns whether it copied."""
        if device.type != "cuda" or self.pixels.nbytes > torch.cuda.mem_get_info(device)[0] / 4:
            return False
        self.resident = torch.empty(self.pixels.shape, dtype=torch.uint8, device=device)
        for start in range(0, len(self), 1024):
            rows = slice(start, start + 1024)
            self.resident[rows] = torch.from_numpy(np.array(self.pixels[rows])).to(device)
        self.targets = self.targets.to(device)
        return True


class Rows:
    """Rows of several arrays uint8 (n, H, W, 3) as one array, without a copy in memory: it is read by indexing.

    rows: int64 (N,), positions in the arrays one after the other. A position may occur several times.
    """

    base = None  # it is not a view of a file

    def __init__(self, arrays: Sequence[np.ndarray], rows: np.ndarray):
        self.arrays, self.rows = arrays, rows
        self.shape, self.dtype = (len(rows), *arrays[0].shape[1:]), arrays[0].dtype
        self.nbytes = math.prod(self.shape)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: Any) -> np.ndarray:
        rows, start = self.rows[index], 0
        found = np.empty((*rows.shape, *self.shape[1:]), self.dtype)
        for array in self.arrays:
            _check_whole(array)
            inside = (rows >= start) & (rows < start + len(array))
            found[inside] = array[rows[inside] - start]
            start += len(array)
        return found


def _check_whole(array: np.ndarray | Rows) -> None:
    """OSError if the file that the array is mapped from has been cut: reading it would be a bus error."""
    mapped = array.base
    if isinstance(mapped, mmap.mmap) and mapped.size() < len(mapped):
        raise OSError(f"{array.filename} has been cut while it was in use: start again, and it is made again")


# ---------------------------------------------------------------------------------------------------------------------
# Decoding
# ---------------------------------------------------------------------------------------------------------------------


def decode(
    paths: list[str],
    targets: np.ndarray,
    size: Size,
    cache: str | Path,
    source: Sequence | None = None,
    fit: str = "squash",
    bad: str = "error",
    threads: int | None = None,
    progress: bool | None = None,
) -> ImageArray:
    """Every image as uint8 (H, W, 3) RGB, decoded once and kept in the folder `cache`.

    The name of the cache file depends on the files (path, size, modification time), on `size` and on `fit`. The file
    gets this name only when it is complete. A cache file that is damaged is made again.

    Args:
        targets: int64 (N,).
        size: side of a square, or (H, W), in pixels, at least 8.
        source: a sequence of (image, ...) if the images are not files. `paths` are then their names.
        fit: "squash" stretches, "crop" cuts out the center, "pad" adds bars in ImageNet's mean color.
        bad: what to do if images cannot be decoded: "error", or "skip" to leave them out.
        progress: show a progress bar; None: only on a terminal.
    Raises: BadInput if images cannot be decoded, with the first 20 and a CSV of all; OSError for the cache folder.
    """
    H, W = sides(size)
    if min(H, W) < 8:
        raise ValueError(f"image size must be at least 8 pixels, got {min(H, W)}")
    if fit not in FITS:
        raise ValueError(f"unknown fit {fit!r}: choose from {', '.join(FITS)}")
    folder = Path(cache)
    folder.mkdir(parents=True, exist_ok=True)
    _remove_stale(folder)
    path = folder / f"{H}x{W}-{fit}-{_fingerprint(paths, source is None, f'{H}x{W} {fit}')}.npy"
    bad_csv = path.with_suffix(".bad.csv")

    def decode_one(i: int, row: np.ndarray) -> int | str:
        """Decodes image i into row (H, W, 3). Returns the CRC of its pixels, or why it cannot be decoded."""
        try:
            image = decode_file(paths[i]) if source is None else _rgb(source[i][0])
            row[:] = fitted(image, H, W, fit)
            return zlib.crc32(row)
        except Exception as error:  # a decoder may raise anything for a broken file
            return describe_error(error)

    cached, row = _read_cache(path, len(paths), (H, W)), np.empty((H, W, 3), np.uint8)
    if cached is None or any(isinstance(decode_one(i, row), int) for i in cached[1]):  # or a file was repaired
        bad_csv.unlink(missing_ok=True)
        cached = _decode_to(path, decode_one, len(paths), (H, W), threads or os.cpu_count() or 1, progress)
    pixels, reasons, digest = cached
    if reasons and not bad_csv.exists():
        _write_bad(bad_csv, reasons, paths)
    if reasons and bad != "skip" or len(reasons) == len(paths):
        advice = "repair or remove them, or leave them out with bad='skip' (train.py: --bad skip)"
        raise BadInput(describe_bad(reasons, paths) + f"\nThe full list is {bad_csv}: {advice}")
    kept = np.setdiff1d(np.arange(len(paths)), list(reasons)).astype(np.int64)
    images = ImageArray(pixels, np.asarray(targets)[kept], [paths[i] for i in kept], path)
    images.kept, images.bad, images.bad_csv, images.digest = kept, reasons, bad_csv if reasons else None, digest
    return images


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


def _fingerprint(paths: list[str], are_files: bool, options: str) -> str:
    digest = hashlib.sha256(f"{CACHE_FORMAT} {options}".encode())
    for path in paths:
        if are_files:
            try:
                state = os.stat(path)
                version = f"{state.st_size} {state.st_mtime_ns}"
            except OSError:  # the file was deleted in the meantime: decoding will report it
                version = "missing"
            path = f"{os.path.abspath(path)} {version}"
        digest.update(f"{path}\n".encode(errors="surrogateescape"))
    return digest.hexdigest()[:16]


# A cache file is one .npy file with JSON after its array: {"bad": {row: reason}, "digest": hash of the pixels}. It is
# written under a temporary name and renamed when it is complete, so there is no state in which two files disagree.


def _read_cache(path: Path, N: int, size: tuple[int, int]) -> tuple[np.ndarray, dict[int, str], str] | None:
    """(pixels, reasons, digest), or None if the file is missing, incomplete or not the cache of N such images."""
    try:
        with open(path, "rb") as file:
            np.lib.format.read_magic(file)
            shape, _, dtype = np.lib.format.read_array_header_1_0(file)
            start = file.tell()
            file.seek(start + math.prod(shape))
            about = json.loads(file.read())
        reasons = {int(row): reason for row, reason in about["bad"].items()}
        if dtype != np.uint8 or shape != (N - len(reasons), *size, 3):
            return None
        return np.memmap(path, np.uint8, "r", start, shape), reasons, about["digest"]
    except Exception:  # numpy and json raise many types for damaged files
        return None


def _write_bad(bad_csv: Path, reasons: dict[int, str], paths: list[str]) -> None:
    text = io.StringIO(newline="")
    csv.writer(text).writerows([["row", "path", "reason"], *([i, paths[i], why] for i, why in reasons.items())])
    with _replacing(bad_csv) as file:
        file.write(text.getvalue().encode("utf-8", "surrogateescape"))


def _decode_to(
    path: Path,
    decode_one: Callable[[int, np.ndarray], int | str],
    N: int,
    size: tuple[int, int],
    threads: int,
    progress: bool | None,
) -> tuple[np.ndarray, dict[int, str], str]:
    """Writes the cache file, decoding in threads, in order, and returns its content as `_read_cache` does.

    Two runs may build the same cache at the same time: each has its own temporary file.
    """
    needed, free = N * size[0] * size[1] * 3, shutil.disk_usage(path.parent).free
    full = f"{path.parent} has {free / 1e9:.2f} GB free, but {N:,} decoded images need {needed / 1e9:.2f} GB"
    if needed > free:
        raise OSError(full)
    reasons: dict[int, str] = {}
    digest = hashlib.sha256()
    bar = tqdm(total=N, desc="decode", unit="img", disable=None if progress is None else not progress)
    try:
        with _replacing(path) as file, ThreadPoolExecutor(threads) as pool, bar:
            start_of_pixels = 128
            file.seek(start_of_pixels)
            rows = np.empty((256, *size, 3), np.uint8)  # a block at a time: memory stays flat in the number of images
            for start in range(0, N, 256):
                block = range(start, min(start + 256, N))
                for i, row, result in zip(block, rows, pool.map(decode_one, block, rows), strict=False):
                    if isinstance(result, int):
                        file.write(row.data)
                        digest.update(result.to_bytes(4, "big"))
                    else:
                        reasons[i] = result
                    bar.update()
            file.write(json.dumps({"bad": reasons, "digest": digest.hexdigest()}).encode())
            file.seek(0)
            header = {"descr": "|u1", "fortran_order": False, "shape": (N - len(reasons), *size, 3)}
            np.lib.format.write_array_header_1_0(file, header)
            assert file.tell() == start_of_pixels
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise OSError(full) from error
        raise
    cached = _read_cache(path, N, size)
    if cached is None:
        raise OSError(f"{path} was written, but cannot be read: check this disk")
    return cached


@contextmanager
def _replacing(path: Path) -> Iterator[BinaryIO]:
    """A file to write to, with a temporary name. It is renamed to `path` after its bytes are on the disk.

    The name is random: a different run or thread may be writing the same file. The file is always a new one ("x"): in
    a folder that others can write to, a link with this name is not followed.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.{socket.gethostname()}-{os.getpid()}.tmp")
    file = open(temporary, "xb")  # noqa: SIM115 (closed below; if it cannot be opened, nothing is removed)
    try:
        with file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _remove_stale(folder: Path) -> None:
    """Removes the temporary files of processes that were killed."""
    beginning = f".{socket.gethostname()}-"
    for path in folder.glob(".*.tmp"):
        _, separator, process = path.name.removesuffix(".tmp").rpartition(beginning)
        if separator and process.isdecimal() and not _is_running(int(process)):
            with suppress(OSError):  # a folder that cannot be written to
                path.unlink()


def _is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:  # the process of a different user
        pass
    return True


def decode_file(path: str) -> Tensor:
    """One image file as uint8 (3, h, w) RGB: the first frame, rotated and flipped by its EXIF orientation.

    Raises: BadInput, OSError or a Pillow error for a file that is not an image, is truncated, or has more pixels than
        Pillow's MAX_IMAGE_PIXELS.
    """
    with open(path, "rb") as file:
        content = file.read()
    if not content:
        raise BadInput("the file is empty")
    with Image.open(io.BytesIO(content), formats=FORMATS) as image:  # reads the header only
        if Image.MAX_IMAGE_PIXELS and image.width * image.height > Image.MAX_IMAGE_PIXELS:
            size = f"{image.width} x {image.height} pixels"
            raise BadInput(f"{size} are more than Pillow's MAX_IMAGE_PIXELS: it may be a decompression bomb")
        # libjpeg fills the missing part of a truncated JPEG with grey and only warns. Pillow raises an error, so Pillow
        # decodes files without an end marker. It also decodes CMYK
        is_whole = content[:2] == b"\xff\xd8" and content.rstrip(b"\0")[-2:] == b"\xff\xd9"
        if decode_jpeg and is_whole and image.mode in ("L", "RGB"):
            try:
                raw = torch.frombuffer(bytearray(content), dtype=torch.uint8)
                return decode_jpeg(raw, mode=ImageReadMode.RGB, apply_exif_orientation=True)
            except RuntimeError:
                pass
        return _rgb(ImageOps.exif_transpose(image))


def _rgb(image: Any) -> Tensor:
    """A Pillow image, or an array or tensor of a data set, as uint8 (3, h, w)."""
    if isinstance(image, np.ndarray):
        image = np.ascontiguousarray(image, image.dtype.newbyteorder("="))
    if not isinstance(image, Image.Image):
        image = transforms.to_pil_image(image)
    if image.mode == "F":
        raise BadInput("pixels are floating-point numbers of unknown range")
    if image.mode.startswith("I"):  # 16-bit grey: scaled to 8 bits, where convert() would clip
        grey = np.asarray(image, dtype=np.float64)
        scale = 257 if image.mode.startswith("I;16") or grey.max() > 255 else 1
        image = Image.fromarray((grey / scale).round().clip(0, 255).astype(np.uint8))
    if image.has_transparency_data:
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
    return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)


def fitted(image: Tensor, H: int, W: int, fit: str) -> np.ndarray:
    """(3, h, w) to contiguous (H, W, 3). Channels-last memory makes the resize three times as fast."""
    h, w = image.shape[1:]
    if fit == "crop":
        h, w = (h, max(1, round(h * W / H))) if w * H > h * W else (max(1, round(w * H / W)), w)
        top, left = (image.shape[1] - h) // 2, (image.shape[2] - w) // 2
        image = image[:, top : top + h, left : left + w]
    elif fit == "pad":
        scale = min(H / h, W / w)
        h, w = max(1, round(h * scale)), max(1, round(w * scale))
        canvas = np.full((H, W, 3), PADDING, dtype=np.uint8)
        top, left = (H - h) // 2, (W - w) // 2
        canvas[top : top + h, left : left + w] = fitted(image, h, w, "squash")
        return canvas
    if (h, w) != (H, W):
        image = transforms.resize(image, [H, W], antialias=True)
    return np.ascontiguousarray(image.permute(1, 2, 0).numpy())


# ---------------------------------------------------------------------------------------------------------------------
# Batches
# ---------------------------------------------------------------------------------------------------------------------


class Batches:
    """Iterates (images, targets) over some rows of an ImageArray: uint8 (n, 3, H, W) channels_last and int64 (n,).

    The order depends only on (seed, epoch). Set `epoch` before each pass. No row is dropped: the last batch is shorter.
    A last batch of one image is added to the batch before it, because BatchNorm cannot normalize one image.

    Args:
        rows: int64 (n,), rows of `images`.
        sampler: (numpy Generator) -> int64, the positions in `rows` for one epoch, in order. It replaces `shuffle`.
        transform: the user's function, (uint8 (H, W, 3), numpy Generator) -> uint8 (h, w, 3), called in threads. The
            generator depends only on (seed, epoch, number).
        overlap: each batch also contains the next images of the epoch, this many. After the last image of the epoch
            comes the first. For mixup and cutmix: 1 (see augment.Augment).
        soft: float32 (k, C), class probabilities of the last k images. The targets of a batch are then (n, C): these,
            and 0 or 1 for the other images.
    Raises: BadInput, while iterating, for a transform that fails.
    """

    def __init__(
        self,
        images: ImageArray,
        rows: np.ndarray,
        batch_size: int,
        shuffle: bool = False,
        seed: int = 0,
        device: torch.device | str = "cpu",
        sampler: Callable[[np.random.Generator], np.ndarray] | None = None,
        transform: Callable[[np.ndarray, np.random.Generator], np.ndarray] | None = None,
        overlap: int = 0,
        soft: Tensor | None = None,
    ):
        if batch_size < 1:
            raise ValueError(f"batch size must be at least 1, got {batch_size}")
        self.images, self.rows = images, np.ascontiguousarray(rows, np.int64)
        self.batch_size, self.shuffle = batch_size, shuffle
        self.seed, self.epoch = seed, 0
        self.device = torch.empty(0, device=device).device  # "cuda" with its number, which a thread needs
        self.sampler, self.transform, self.overlap = sampler, transform, overlap
        self.soft = None if soft is None else soft.to(images.targets.device)
        self.images_per_epoch = len(self.numbers())

    def numbers(self) -> np.ndarray:
        """int64 (n,): this epoch's images in order, as row + N * (number of times the row came before in this epoch).

        The random numbers of an image depend on this number: an image that is sampled twice is augmented differently.
        """
        rng = np.random.default_rng([self.seed, self.epoch])
        if not self.sampler:
            return rng.permutation(self.rows) if self.shuffle else self.rows
        rows = self.rows[self.sampler(rng)]
        order, place = np.argsort(rows, kind="stable"), np.arange(len(rows))
        first = np.maximum.accumulate(np.where(np.diff(rows[order], prepend=-1) != 0, place, 0))
        repeats = np.empty_like(rows)
        repeats[order] = place - first
        return rows + len(self.images) * repeats

    def number_batches(self) -> list[Tensor]:
        """The numbers of this epoch's batches, on the device of the targets."""
        numbers = torch.from_numpy(self.numbers()).to(self.images.targets.device)  # one copy per epoch
        N, n = len(numbers), count_batches(len(numbers), self.batch_size)
        bounds = [*range(0, N, self.batch_size)][:n] + [N]
        numbers = torch.cat([numbers, numbers[: self.overlap]])
        return [numbers[start : end + self.overlap] for start, end in itertools.pairwise(bounds)]

    def __len__(self) -> int:
        return count_batches(self.images_per_epoch, self.batch_size)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return ((images, targets) for _, images, targets in self.indexed())

    def indexed(self, chosen: Sequence[int | None] | None = None) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Iterates (numbers, images, targets), all on the device. The row is number % N.

        chosen: numbers of the batches, default all. None is a batch without images, see ranks.py.
        """
        loaded = self._load(range(len(self)) if chosen is None else chosen)
        if self.transform or (self.device.type == "cuda" and self.images.resident is None):
            loaded = _ahead(loaded)
        for batch in loaded:
            yield tuple(tensor.to(self.device, non_blocking=True) for tensor in batch)

    def _load(self, chosen: Sequence[int | None]) -> Iterator[tuple[Tensor, ...]]:
        pinned = self.device.type == "cuda" and self.images.resident is None
        if pinned:
            torch.cuda.set_device(self.device)  # for this thread
        # not a ThreadPoolExecutor: the end of the program would wait for its threads, even if a transform hangs
        with ThreadPool(os.cpu_count()) if self.transform else nullcontext() as pool:
            every = self.number_batches()
            for numbers in (every[0][:0] if i is None else every[i] for i in chosen):
                rows = numbers % len(self.images)
                images = self.images.gather(rows)
                if self.transform:
                    transformed = pool.imap(self._transformed, zip(numbers.tolist(), images, strict=True))
                    images = torch.from_numpy(np.stack(list(transformed))).permute(0, 3, 1, 2)
                batch = numbers, images, self.targets_of(rows)
                yield tuple(tensor.pin_memory() for tensor in batch) if pinned else batch

    def targets_of(self, rows: Tensor) -> Tensor:
        """int64 (n,), or with soft targets float32 (n, C)."""
        targets = self.images.targets[rows]
        if self.soft is None:
            return targets
        soft = F.one_hot(targets, self.soft.shape[1]).to(self.soft.dtype)
        place = rows - (len(self.images) - len(self.soft))
        soft[place >= 0] = self.soft[place[place >= 0]]
        return soft

    def _transformed(self, numbered: tuple[int, Tensor]) -> np.ndarray:
        number, image = numbered
        path, rng = self.images.paths[number % len(self.images)], np.random.default_rng([self.seed, self.epoch, number])
        try:
            result = self.transform(image.permute(1, 2, 0).numpy().copy(), rng)
        except BaseException as error:  # SystemExit too: in a thread it would end the program without a message
            raise BadInput(f"the transform failed for {path}: {type(error).__name__}: {error}") from error
        if not isinstance(result, np.ndarray) or result.dtype != np.uint8 or result.shape[2:] != (3,):
            got = f"{result.dtype} {result.shape}" if isinstance(result, np.ndarray) else type(result).__name__
            raise BadInput(f"the transform failed for {path}: it must return uint8 (height, width, 3), got {got}")
        return fitted(torch.from_numpy(np.ascontiguousarray(result)).permute(2, 0, 1), *image.shape[1:], "squash")


def count_batches(rows: int, batch_size: int) -> int:
    """Number of batches that `Batches` makes from this number of rows."""
    full, rest = divmod(rows, batch_size)
    return full + (rest > 1 or (rest == 1 and full == 0))


def _ahead(items: Iterator[Any], depth: int = 2) -> Iterator[Any]:
    """The same items, made in a thread that keeps `depth` of them ready. Its errors are raised here.

    The thread ends with the program, even if this generator is never finished. A daemon thread would be stopped inside
    torch, which can abort the process.
    """
    ready: queue.Queue = queue.Queue(depth)
    stopped = threading.Event()

    def is_over() -> bool:
        return stopped.is_set() or not threading.main_thread().is_alive()

    def put(item: Any) -> None:
        while not is_over():
            try:
                return ready.put(item, timeout=0.1)
            except queue.Full:
                continue

    def produce() -> None:
        try:
            for item in items:
                put((item, None))
                if is_over():
                    return
            put((None, StopIteration()))
        except BaseException as error:
            put((None, error))

    threading.Thread(target=produce).start()
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
# Sampling strategies: positions in the training rows for one epoch, in order
# ---------------------------------------------------------------------------------------------------------------------


def shuffle(targets: np.ndarray, rng: np.random.Generator, per_class: int | None = None) -> np.ndarray:
    """Every image once."""
    return rng.permutation(len(targets))


def weighted(targets: np.ndarray, rng: np.random.Generator, per_class: int | None = None) -> np.ndarray:
    """N images with replacement, all classes equally likely, as with torch.utils.data.WeightedRandomSampler."""
    weights = 1 / np.bincount(targets)[targets]
    return rng.choice(len(targets), len(targets), p=weights / weights.sum())


def balanced(targets: np.ndarray, rng: np.random.Generator, per_class: int | None = None) -> np.ndarray:
    """`per_class` random images of each class, or all of a smaller class. Default: the size of the smallest class."""
    positions = [np.flatnonzero(targets == c) for c in np.unique(targets)]  # one array per class
    n = per_class or min(map(len, positions))
    return rng.permutation(np.concatenate([rng.permutation(own)[:n] for own in positions]))


def oversample(targets: np.ndarray, rng: np.random.Generator, per_class: int | None = None) -> np.ndarray:
    """Repeats the images of each class up to the size of the largest class. The last repetition is a random part."""
    positions = [np.flatnonzero(targets == c) for c in np.unique(targets)]  # one array per class
    n = max(map(len, positions))
    parts = [np.concatenate([np.tile(own, n // len(own)), rng.permutation(own)[: n % len(own)]]) for own in positions]
    return rng.permutation(np.concatenate(parts))


SAMPLERS: dict[str, Callable[..., np.ndarray]] = {
    "shuffle": shuffle,
    "weighted": weighted,
    "balanced": balanced,
    "oversample": oversample,
}


# ---------------------------------------------------------------------------------------------------------------------
# python pixels.py FOLDER
# ---------------------------------------------------------------------------------------------------------------------


def show(folder: str) -> None:
    """Prints how many images below the folder can be decoded, and which cannot be decoded.

    Raises: BadInput if there is no image, or none that can be decoded.
    """
    if not Path(folder).is_dir():
        raise BadInput(f"{folder} is not a folder")
    extensions = {extension for extension, format in Image.registered_extensions().items() if format in FORMATS}
    paths = sorted(str(path) for path in Path(folder).rglob("*") if path.suffix.lower() in extensions)
    if not paths:
        raise BadInput(f"{folder} contains no image")
    with tempfile.TemporaryDirectory() as scratch:
        start = time.perf_counter()
        images = decode(paths, np.zeros(len(paths), np.int64), 64, scratch, bad="skip")
        speed = len(paths) / (time.perf_counter() - start)
        if images.bad:
            print(printable(describe_bad(images.bad, paths)))
    print(f"{len(images):,} of {len(paths):,} images can be decoded ({speed:,.0f} images/s at 64 x 64 pixels)")


def printable(text: object) -> str:
    """The text with escapes for control characters, direction marks and bytes that are not text. Keeps line breaks."""
    return "".join(c if c.isprintable() or c == "\n" else ascii(c)[1:-1] for c in str(text))


if __name__ == "__main__":
    if sys.getfilesystemencoding() != "utf-8" and os.environ.get("PYTHONUTF8") != "1":  # as with LC_ALL=C
        os.execve(sys.executable, sys.orig_argv, os.environ | {"PYTHONUTF8": "1"})
    if len(sys.argv) != 2 or sys.argv[1] in ("-h", "--help"):
        sys.exit(__doc__)
    sys.stdout.reconfigure(errors="backslashreplace")  # a file name may not be valid text
    try:
        show(sys.argv[1])
    except (BadInput, OSError) as error:
        print(printable(f"pixels.py: error: {error}"), file=sys.stderr)
        sys.exit(2)

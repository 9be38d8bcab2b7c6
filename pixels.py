"""Files into decoded uint8 batches: decode each image once, find what is there twice, batch.

    python pixels.py FOLDER          # decodes every image below FOLDER; lists what cannot be decoded, and what is alike

    images = decode(paths, targets, size=224, cache="cache")     # every file decoded once, uint8, memory-mapped
    for x, targets in Batches(images, rows, batch_size=32, shuffle=True): ...

There are no worker processes: decoding happens once, in threads, and a batch afterwards is one gather of rows.
"""

from __future__ import annotations

import csv
import errno
import hashlib
import io
import itertools
import os
import queue
import shutil
import socket
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms.v2 import functional as transforms
from tqdm import tqdm

try:
    from torchvision.io import ImageReadMode, decode_jpeg
except ImportError:  # deprecated since torchvision 0.29; without it Pillow reads JPEG too, more slowly
    decode_jpeg = None

CACHE_FORMAT = 2  # part of every cache's key: raise it when decoding changes
FITS = ("squash", "crop", "pad")  # how a photo of another shape fills the image
ALIKE = 0.95  # correlation of two thumbnails from which on images count as copies
PADDING = (124, 116, 104)  # ImageNet's mean colour: close to 0 once normalised

Size = int | tuple[int, int]


class TransformError(ValueError):
    """A transform of yours raised, or returned no image; names the file."""


class ImageArray(Dataset):
    """Decoded images: a plain torch Dataset of (uint8 image (3, H, W), target)."""

    def __init__(self, pixels: np.ndarray, targets: np.ndarray, paths: list[str]):
        self.pixels, self.targets, self.paths = pixels, torch.from_numpy(targets), paths  # pixels (N, H, W, 3) uint8
        self.kept, self.bad_csv = np.arange(len(paths)), None  # their places in what `decode` was given; what was bad
        self.resident: Tensor | None = None

    def __len__(self) -> int:
        return len(self.paths)

    def gather(self, index: Tensor) -> Tensor:
        """uint8 (n, 3, H, W), channels_last: one copy of the rows, from the device if the set lives there."""
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
    """Every image as uint8 (H, W, 3) RGB, decoded once and kept in `cache`.

    The cache is found by what the files are (path, length, time of change), the size and the fit; it gets its name only
    when it is whole.

    Args:
        targets: int64 (N,), carried along.
        size: side of a square, or (H, W), in pixels, at least 8.
        source: where the images are if not in files: a sequence of (image, ...), named by `paths`.
        fit: "squash" ignores the photo's shape, "crop" cuts its middle out, "pad" adds bars of ImageNet's mean colour.
        bad: "error", or "skip" to leave the images out that cannot be decoded: `kept` says which are there.
    Raises: ValueError with the count, the first 20 and the CSV of all that cannot be decoded; OSError for a full disk.
    """
    H, W = (size, size) if isinstance(size, int) else size
    if min(H, W) < 8:
        raise ValueError(f"image size must be at least 8 pixels, got {min(H, W)}")
    if fit not in FITS:
        raise ValueError(f"unknown fit {fit!r}: choose from {', '.join(FITS)}")
    folder = Path(cache)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{H}x{W}-{fit}-{_fingerprint(paths, source is None, f'{H}x{W} {fit}')}.npy"
    bad_csv = path.with_suffix(".bad.csv")

    def one(i: int, row: np.ndarray) -> str | None:
        """Fills (H, W, 3) with an image, or says why not."""
        try:
            image = decode_file(paths[i]) if source is None else _rgb(source[i][0])
            row[:] = fitted(image, H, W, fit)
            return None
        except Exception as error:  # whatever a decoder says of a broken file is for the list
            return describe_error(error)

    reasons = _read_bad(bad_csv) if path.exists() else {}
    row = np.empty((H, W, 3), np.uint8)
    if not path.exists() or any(one(i, row) is None for i in reasons):  # nothing there, or a file was mended
        _copies_file(path).unlink(missing_ok=True)
        reasons = _decode_to(path, one, len(paths), (H, W), threads or os.cpu_count() or 1, progress, bad == "skip")
        _write_bad(bad_csv, reasons, paths)
    if reasons and bad != "skip" or len(reasons) == len(paths):
        raise ValueError(describe_bad(reasons, paths) + f"\nall of them: {bad_csv}")
    kept = np.setdiff1d(np.arange(len(paths)), list(reasons)).astype(np.int64)
    images = ImageArray(np.load(path, mmap_mode="r"), targets[kept], [paths[i] for i in kept])
    images.kept, images.bad_csv = kept, bad_csv if reasons else None
    return images


def describe_error(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__


def describe_bad(reasons: dict[int, str], paths: list[str]) -> str:
    listed = "".join(f"\n  {paths[i]}: {reason}" for i, reason in list(reasons.items())[:20])
    more = f"\n  and {len(reasons) - 20} more" if len(reasons) > 20 else ""
    return f"{len(reasons)} of {len(paths)} images cannot be decoded:{listed}{more}"


def _fingerprint(paths: list[str], are_files: bool, options: str) -> str:
    digest = hashlib.sha256(f"{CACHE_FORMAT} {options}".encode())
    for path in paths:
        if are_files:
            state = os.stat(path)
            path = f"{os.path.abspath(path)} {state.st_size} {state.st_mtime_ns}"
        digest.update(f"{path}\n".encode(errors="surrogateescape"))
    return digest.hexdigest()[:16]


def _read_bad(bad_csv: Path) -> dict[int, str]:
    if not bad_csv.exists():
        return {}
    with open(bad_csv, newline="", encoding="utf-8", errors="surrogateescape") as file:
        return {int(row["row"]): row["reason"] for row in csv.DictReader(file)}


def _write_bad(bad_csv: Path, reasons: dict[int, str], paths: list[str]) -> None:
    bad_csv.unlink(missing_ok=True)
    if reasons:
        with open(bad_csv, "w", newline="", encoding="utf-8", errors="surrogateescape") as file:
            writer = csv.writer(file)
            writer.writerow(["row", "path", "reason"])
            writer.writerows([i, paths[i], reason] for i, reason in reasons.items())


def _decode_to(
    path: Path, one: Callable[[int, np.ndarray], str | None], N: int, size: tuple[int, int], threads: int,
    progress: bool | None, skip: bool,
) -> dict[int, str]:  # fmt: skip
    """Decodes into a temporary file, in threads, in order, and renames it when it is whole. Returns what is bad, why.

    With bad images and without `skip` there is no file. Two runs that build the same cache each write their own.
    """
    for stale in path.parent.glob(f".*.{socket.gethostname()}-*.tmp"):  # of runs that were killed
        if not _is_running(int(stale.name.rsplit("-", 1)[1].removesuffix(".tmp"))):
            stale.unlink(missing_ok=True)
    needed, free = N * size[0] * size[1] * 3, shutil.disk_usage(path.parent).free
    full = f"{path.parent} has {free / 1e9:.2f} GB free, {N:,} decoded images take {needed / 1e9:.2f} GB"
    if needed > free:
        raise OSError(errno.ENOSPC, full)
    temporary = _temporary(path)
    reasons: dict[int, str] = {}
    bar = tqdm(total=N, desc="decode", unit="img", disable=None if progress is None else not progress)
    try:
        with open(temporary, "wb") as file, ThreadPoolExecutor(threads) as pool, bar:
            start_of_pixels = 128
            file.seek(start_of_pixels)
            rows = np.empty((256, *size, 3), np.uint8)  # a block at a time: memory stays flat in the number of images
            for start in range(0, N, 256):
                block = range(start, min(start + 256, N))
                for i, row, reason in zip(block, rows, pool.map(one, block, rows), strict=False):
                    if reason is None:
                        file.write(row.data)
                    else:
                        reasons[i] = reason
                    bar.update()
            file.seek(0)
            header = {"descr": "|u1", "fortran_order": False, "shape": (N - len(reasons), *size, 3)}
            np.lib.format.write_array_header_1_0(file, header)
            assert file.tell() == start_of_pixels
            file.flush()
            os.fsync(file.fileno())
        if skip or not reasons:
            os.replace(temporary, path)
    except OSError as error:
        raise OSError(error.errno, full) from error if error.errno == errno.ENOSPC else error
    finally:
        temporary.unlink(missing_ok=True)
    return reasons


def _temporary(path: Path) -> Path:
    """A name beside `path` that says whose it is: another run may be writing the same file."""
    return path.with_name(f".{path.name}.{socket.gethostname()}-{os.getpid()}.tmp")


def _is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:  # another user's
        pass
    return True


def decode_file(path: str) -> Tensor:
    """One image file as uint8 (3, h, w) RGB: its first frame, turned upright as its EXIF data says.

    Raises OSError or ValueError for what is no image, is cut, or is larger than Pillow's MAX_IMAGE_PIXELS.
    """
    with open(path, "rb") as file:
        content = file.read()
    if not content:
        raise ValueError("the file is empty")
    with Image.open(io.BytesIO(content)) as image:  # reads the header only
        if Image.MAX_IMAGE_PIXELS and image.width * image.height > Image.MAX_IMAGE_PIXELS:
            size = f"{image.width} x {image.height} pixels"
            raise ValueError(f"{size} are more than Pillow's MAX_IMAGE_PIXELS: a decompression bomb?")
        # libjpeg fills the missing part of a cut JPEG with grey and only warns: a file without its end marker is left
        # to Pillow, which knows how to complain, and so is CMYK
        is_whole = content[:2] == b"\xff\xd8" and content.rstrip(b"\0")[-2:] == b"\xff\xd9"
        if decode_jpeg and is_whole and image.mode in ("L", "RGB"):
            try:
                raw = torch.frombuffer(bytearray(content), dtype=torch.uint8)
                return decode_jpeg(raw, mode=ImageReadMode.RGB, apply_exif_orientation=True)
            except RuntimeError:
                pass
        return _rgb(ImageOps.exif_transpose(image))


def _rgb(image: Any) -> Tensor:
    """A Pillow image (or an array or tensor that a data set hands out) as uint8 (3, h, w)."""
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


def fitted(image: Tensor, H: int, W: int, fit: str) -> np.ndarray:
    """(3, h, w) to contiguous (H, W, 3); channels-last memory makes the resize three times as fast."""
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
# What is there twice
# ---------------------------------------------------------------------------------------------------------------------


def find_copies(
    images: ImageArray, device: torch.device | str = "cpu", progress: bool | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Clusters of identical and of alike images: (same, alike), each int64 (N,), the first row of a row's cluster.

    Identical means every pixel at this size. Alike means that two thumbnails correlate by more than 0.95: the mean of
    the correlations of 16 x 16 grey and 8 x 8 colour values, so that contrast, JPEG quality, blur and noise do not
    matter; mirrored and turned by right angles too. Every image is compared with all before it and tied to the most
    alike, once a view: memory is linear in N, time quadratic (12,000 images: some seconds). What was found is kept
    beside the cache that the images are in.
    """
    file = getattr(images.pixels, "filename", None)
    kept = _copies_file(Path(file)) if file else None
    if kept and kept.exists():
        return tuple(np.load(kept))
    same, alike = _find_copies(images, device, progress)
    if kept:
        temporary = _temporary(kept)
        with open(temporary, "wb") as out:
            np.save(out, np.stack([same, alike]))
        os.replace(temporary, kept)
    return same, alike


def _copies_file(decoded: Path) -> Path:
    """What find_copies found among the images of a cache file."""
    return decoded.with_suffix(".copies.npy")


def _find_copies(
    images: ImageArray, device: torch.device | str, progress: bool | None
) -> tuple[np.ndarray, np.ndarray]:
    thumbs = _thumbnails(images)  # (N, 16, 16, 3) uint8
    N, first = len(thumbs), {}
    same = np.array([first.setdefault(thumb.tobytes(), i) for i, thumb in enumerate(thumbs)], dtype=np.int64)
    for i in np.flatnonzero(same != np.arange(N)):
        if not np.array_equal(images.pixels[i], images.pixels[same[i]]):
            same[i] = i  # equal thumbnails of different images: alike
    links = [(i, j) for i, j in enumerate(same.tolist()) if i != j]
    thumbs = torch.from_numpy(thumbs).to(device).permute(0, 3, 1, 2)
    grey = torch.cat([_grey8(block.float()) for block in thumbs.split(1024)])  # (N, 64)
    coarse, is_plain = _unit(grey), grey.std(1) < 2  # a blank page is like any other blank page
    rows = torch.arange(N, device=device)
    for own in tqdm(rows.split(1024), "look-alikes", leave=False, disable=None if progress is None else not progress):
        block, end = thumbs[own].float(), int(own[-1]) + 1
        not_before = rows[:end] >= own[:, None]  # (n, end): a row is compared with the rows before it
        for turns, mirrored in itertools.product(range(4), (False, True)):
            view = torch.rot90(block.flip(3) if mirrored else block, turns, (2, 3))
            likeness, j = (_unit(_grey8(view)) @ coarse[:end].T).masked_fill_(not_before, -1).max(1)
            i = torch.nonzero((likeness > ALIKE - 0.05) & ~is_plain[own]).squeeze(1)
            is_alike = (_fine(view[i]) * _fine(thumbs[j[i]].float())).sum(1) / 2 > ALIKE
            links += zip(own[i[is_alike]].tolist(), j[i[is_alike]].tolist(), strict=True)
    return same, _clusters(N, links)


def _grey8(x: Tensor) -> Tensor:
    """(n, 3, 16, 16) to (n, 64): 8 x 8 grey values."""
    return F.avg_pool2d(x.mean(1, keepdim=True), 2).flatten(1)


def _thumbnails(images: ImageArray) -> np.ndarray:
    """(N, 16, 16, 3) uint8."""
    thumbs = np.empty((len(images), 16, 16, 3), np.uint8)
    for start in range(0, len(images), 64):
        x = torch.from_numpy(np.array(images.pixels[start : start + 64])).permute(0, 3, 1, 2).float()
        thumbs[start : start + 64] = F.adaptive_avg_pool2d(x, 16).round().byte().permute(0, 2, 3, 1).numpy()
    return thumbs


def _unit(x: Tensor) -> Tensor:
    """(n, ...) to (n, d) of mean 0 and length 1: the product of two is their correlation."""
    x = x.flatten(1)
    return F.normalize(x - x.mean(1, keepdim=True))


def _fine(x: Tensor) -> Tensor:
    """(n, 3, 16, 16) to (n, 448): the product of two is the sum of the grey and the colour correlation."""
    return torch.cat([_unit(x.mean(1)), _unit(F.avg_pool2d(x, 2))], 1)


def _clusters(N: int, links: list[tuple[int, int]]) -> np.ndarray:
    """The smallest row that each row is tied to, over any number of links (union-find)."""
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
# Batches
# ---------------------------------------------------------------------------------------------------------------------


class Batches:
    """Iterates (images, targets) over some rows of an ImageArray: uint8 (n, 3, H, W) channels_last and int64 (n,).

    The order depends on (seed, epoch) alone; set `epoch` before each pass. No row is dropped: the last batch is short.
    A last batch of one, which BatchNorm cannot normalise, joins the batch before it.

    Args:
        sampler: an epoch's places in `rows` from a numpy Generator, for another order than a plain shuffle.
        transform: a function of yours, (image uint8 (H, W, 3), rng) -> image of any size, called in threads; `rng`, a
            numpy Generator, depends on (seed, epoch, number) alone.
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
    ):
        if batch_size < 1:
            raise ValueError(f"batch size must be at least 1, got {batch_size}")
        self.images, self.rows, self.batch_size, self.shuffle = images, rows, batch_size, shuffle
        self.seed, self.device, self.epoch = seed, torch.device(device), 0
        self.sampler, self.transform = sampler, transform
        self.images_an_epoch = len(self.numbers())

    def numbers(self) -> np.ndarray:
        """int64 (n,): this epoch's images in order, as row + N * (how often the row came before in this epoch).

        What is random about an image hangs on its number, so an image drawn twice does not look the same twice.
        """
        rng = np.random.default_rng([self.seed, self.epoch])
        if not self.sampler:
            return rng.permutation(self.rows) if self.shuffle else np.ascontiguousarray(self.rows)
        rows = self.rows[self.sampler(rng)]
        order, place = np.argsort(rows, kind="stable"), np.arange(len(rows))
        first = np.maximum.accumulate(np.where(np.diff(rows[order], prepend=-1) != 0, place, 0))
        repeats = np.empty_like(rows)
        repeats[order] = place - first
        return rows + len(self.images) * repeats

    def number_batches(self) -> list[Tensor]:
        """The numbers of this epoch's batches, where the targets are."""
        numbers = torch.from_numpy(self.numbers()).to(self.images.targets.device)  # one copy an epoch
        batches = list(numbers.split(self.batch_size)) if len(numbers) else []
        if self.batch_size > 1 and len(batches) > 1 and len(batches[-1]) == 1:
            batches[-2:] = [torch.cat(batches[-2:])]
        return batches

    def __len__(self) -> int:
        return count_batches(self.images_an_epoch, self.batch_size)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return ((images, targets) for _, images, targets in self.indexed())

    def indexed(self, start: int = 0) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Iterates (numbers, images, targets), all on the device, from batch `start` on; number % N is the row."""
        loaded = self._load(start)
        if self.transform or (self.device.type == "cuda" and self.images.resident is None):
            loaded = _ahead(loaded)
        for batch in loaded:
            yield tuple(tensor.to(self.device, non_blocking=True) for tensor in batch)

    def _load(self, start: int) -> Iterator[tuple[Tensor, ...]]:
        pinned = self.device.type == "cuda" and self.images.resident is None
        if pinned:
            torch.cuda.set_device(self.device)  # of the thread that runs this
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            for numbers in self.number_batches()[start:]:
                rows = numbers % len(self.images)
                images = self.images.gather(rows)
                if self.transform:
                    transformed = np.stack(list(pool.map(self._transformed, numbers.tolist(), images)))
                    images = torch.from_numpy(transformed).permute(0, 3, 1, 2)
                batch = numbers, images, self.images.targets[rows]
                yield tuple(tensor.pin_memory() for tensor in batch) if pinned else batch

    def _transformed(self, number: int, image: Tensor) -> np.ndarray:
        path, rng = self.images.paths[number % len(self.images)], np.random.default_rng([self.seed, self.epoch, number])
        try:
            result = self.transform(image.permute(1, 2, 0).numpy().copy(), rng)
        except Exception as error:
            raise TransformError(f"transform of {path}: {type(error).__name__}: {error}") from error
        if not isinstance(result, np.ndarray) or result.dtype != np.uint8 or result.shape[2:] != (3,):
            got = f"{result.dtype} {result.shape}" if isinstance(result, np.ndarray) else type(result).__name__
            raise TransformError(f"transform of {path}: must return uint8 (height, width, 3), got {got}")
        return fitted(torch.from_numpy(np.ascontiguousarray(result)).permute(2, 0, 1), *image.shape[1:], "squash")


def count_batches(rows: int, batch_size: int) -> int:
    """How many batches `Batches` makes of so many rows."""
    full, rest = divmod(rows, batch_size)
    return full + (rest > 1 or (rest == 1 and full == 0))


def _ahead(items: Iterator[Any], depth: int = 2) -> Iterator[Any]:
    """The same items, produced by a thread that keeps `depth` of them ready; its errors are raised here.

    The thread ends with the program even if this generator is left suspended: a daemon thread would be cut off inside
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
# python pixels.py FOLDER
# ---------------------------------------------------------------------------------------------------------------------


def _show(folder: str) -> None:
    import tempfile

    extensions = set(Image.registered_extensions())
    paths = sorted(str(path) for path in Path(folder).rglob("*") if path.suffix.lower() in extensions)
    if not paths:
        raise ValueError(f"{folder} holds no image")
    with tempfile.TemporaryDirectory() as scratch:
        images = decode(paths, np.zeros(len(paths), np.int64), 64, scratch, bad="skip")
        if len(images) < len(paths):
            print(describe_bad(_read_bad(next(Path(scratch).glob("*.bad.csv"))), paths))
        same, alike = find_copies(images, progress=True)
    print(f"{len(images)} of {len(paths)} images decoded")
    own = np.arange(len(images))
    for name, first in (("identical", same), ("alike", np.where(same == own, alike, own))):
        copies = np.flatnonzero(first != own)
        print(f"{name} at 64 x 64: {len(copies)}")
        for i in copies[:20]:
            print(f"  {images.paths[i]} = {images.paths[first[i]]}")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    try:
        _show(sys.argv[1])
    except (OSError, ValueError) as error:
        sys.exit(f"pixels.py: error: {error}")

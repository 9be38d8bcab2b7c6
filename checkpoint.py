"""Write a file that is whole or not there at all, and read checkpoints back without executing anything.

    save("last.pt", {"model": model.state_dict(), "epoch": 3}, keep_previous=True)
    state = load("last.pt")

A checkpoint here is a dict of tensors, str, int, float, bool, None, lists, tuples and dicts, and nothing else: it loads
with torch.load(path, weights_only=True) and no allow-list, on every torch, for anyone you send it to. Beside it lies
its checksum (`sha256sum -c last.pt.sha256`); a damaged file is found by it, and the one before it is taken.

    python checkpoint.py RUN/best_f1.pt      # what is inside
"""

from __future__ import annotations

import errno
import hashlib
import io
import os
import pickle
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

PLAIN = (torch.Tensor, str, int, float, bool, type(None))


def save(path: str | Path, state: dict[str, Any], keep_previous: bool = False) -> None:
    """Writes `state` to `path` so that a reader, or a power cut, sees the old file or the new one, never a part.

    At any moment of it `load` finds a whole file: the checksum file names the new content and the old before either
    is moved. With `keep_previous` the old one stays as NAME.previous.pt.

    Raises: TypeError, before anything is written, if `state` holds something that weights_only=True would refuse;
        OSError that names the path and the free space if the disk is full, the old file being as it was.
    """
    _check_plain(state, "state")
    path, content = Path(path), io.BytesIO()
    torch.save(state, content)
    lines = f"{hashlib.sha256(content.getbuffer()).hexdigest()}  {path.name}\n"
    newest, old = _newest_whole(path)
    with replacing(path) as file:
        file.write(content.getbuffer())
        file.flush()
        os.fsync(file.fileno())
        write_text(_checksum_file(path), lines + (f"{old}  {previous(path).name}\n" if old else ""))
        if keep_previous and newest == path:  # a damaged file must not take the place of a whole one
            os.replace(path, previous(path))
    if old and not keep_previous:
        write_text(_checksum_file(path), lines)


def load(path: str | Path) -> dict[str, Any]:
    """The dict that `save` wrote, tensors on the CPU.

    A file that is missing, damaged or not as its checksum says is replaced by the previous one, with a line that says
    so. Raises FileNotFoundError, or ValueError if neither can be read.
    """
    path = Path(path)
    if not path.exists() and not previous(path).exists():
        raise FileNotFoundError(f"{path} is not there")
    try:
        return _load(path, _checksums(path))
    except (OSError, ValueError) as error:
        if not previous(path).exists():
            raise
        state = _load(previous(path), _checksums(path))
        print(f"{error}: {previous(path)} is taken instead", file=sys.stderr)
        return state


def previous(path: Path) -> Path:
    """last.pt -> last.previous.pt"""
    return path.with_name(f"{path.stem}.previous{path.suffix}")


def _load(path: Path, checksums: set[str]) -> dict[str, Any]:
    content = path.read_bytes()
    if checksums and hashlib.sha256(content).hexdigest() not in checksums:
        raise ValueError(f"{path} is damaged: its checksum is not that of {path.name}.sha256")
    try:
        state = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(f"{path} is not a readable checkpoint: only tensors and plain values are loaded") from error
    except (RuntimeError, EOFError, KeyError) as error:
        reason = str(error).partition("\n")[0] or "it is cut short"
        raise ValueError(f"{path} is not a readable checkpoint: {reason}") from error
    if not isinstance(state, dict):
        raise ValueError(f"{path} is not a checkpoint: it holds a {type(state).__name__}, not a dict")
    return state


def _newest_whole(path: Path) -> tuple[Path | None, str | None]:
    """What `load` would take, `path` or the one before it, with its SHA-256."""
    known = _checksums(path)
    for file in (path, previous(path)):
        if file.exists():
            digest = hashlib.sha256(file.read_bytes()).hexdigest()
            if not known or digest in known:
                return file, digest
    return None, None


def _checksum_file(path: Path) -> Path:
    return path.with_name(f"{path.name}.sha256")


def _checksums(path: Path) -> set[str]:
    """SHA-256 of a checkpoint's present content, and of the one before it."""
    file = _checksum_file(path)
    return {line.split()[0] for line in file.read_text(encoding="utf-8").splitlines()} if file.exists() else set()


def write_text(path: str | Path, text: str) -> None:
    """Writes a text file with the same guarantee as `save`."""
    with replacing(path) as file:
        file.write(text.encode("utf-8", "surrogateescape"))  # a file name may hold bytes that are no UTF-8


@contextmanager
def replacing(path: str | Path) -> Iterator[Any]:
    """A binary file under a temporary name that takes the place of `path` once it is on the disk, and only then."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())  # the bytes, before the name
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        if error.errno != errno.ENOSPC:
            raise
        free = shutil.disk_usage(path.parent).free
        raise OSError(error.errno, f"the disk is full, {free:,} bytes free: {path} is as it was") from error
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    if os.name == "posix":  # the name itself; Windows cannot open a folder
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def remove_stray(folder: str | Path) -> None:
    """Removes what writes that were killed have left in a folder that no run writes to now."""
    for temporary in Path(folder).glob(".*.tmp"):
        temporary.unlink(missing_ok=True)


def _check_plain(value: Any, name: str) -> None:
    """type(), not isinstance(): a numpy float is a float to isinstance and a refused pickle to weights_only."""
    if isinstance(value, dict):
        for key, item in value.items():
            _check_plain(key, f"a key of {name}")
            _check_plain(item, f"{name}[{key!r}]")
    elif type(value) in (list, tuple):
        for number, item in enumerate(value):
            _check_plain(item, f"{name}[{number}]")
    elif not isinstance(value, torch.Tensor) and type(value) not in PLAIN:
        raise TypeError(f"{name} is a {type(value).__name__}: a checkpoint holds only tensors and plain Python values")


def _describe(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        return f"tensor {tuple(value.shape)} {value.dtype}".replace("torch.", "")
    if isinstance(value, dict):
        tensors = [item for item in value.values() if isinstance(item, torch.Tensor)]
        numbers = sum(tensor.numel() for tensor in tensors)
        return f"dict of {len(value)}" + (f", {numbers:,} numbers in {len(tensors)} tensors" if tensors else "")
    if isinstance(value, list) and len(value) > 8:
        return f"list of {len(value)}: {', '.join(map(str, value[:8]))}, ..."
    return repr(value)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    try:
        loaded = load(sys.argv[1])
    except (OSError, ValueError) as error:
        sys.exit(f"checkpoint.py: error: {error}")
    for key, value in loaded.items():
        print(f"{key:>14}  {_describe(value)}")

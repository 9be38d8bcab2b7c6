"""Write a file that is whole or not there at all, and read checkpoints back without executing anything.

    save("best_f1.pt", {"model": model.state_dict(), "epoch": 3})
    state = load("best_f1.pt")

A checkpoint here is a dict of tensors, str, int, float, bool, None, lists, tuples and dicts, and nothing else: it loads
with torch.load(path, weights_only=True) and no allow-list, on every torch, for anyone you send it to.

    python checkpoint.py RUN/best_f1.pt      # what is inside
"""

from __future__ import annotations

import os
import pickle
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

PLAIN = (torch.Tensor, str, int, float, bool, type(None))


def save(path: str | Path, state: dict[str, Any]) -> None:
    """Writes `state` to `path` so that a reader, or a power cut, sees the old file or the new one, never a part.

    Raises TypeError, before anything is written, if `state` holds something that weights_only=True would refuse.
    """
    _check_plain(state, "state")
    with replacing(path) as file:
        torch.save(state, file)


def load(path: str | Path) -> dict[str, Any]:
    """The dict that `save` wrote, tensors on the CPU. Raises FileNotFoundError, or ValueError for any other file."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(f"{path} is not a readable checkpoint: only tensors and plain values are loaded") from error
    except (RuntimeError, EOFError, KeyError) as error:
        reason = str(error).partition("\n")[0] or "it is cut short"
        raise ValueError(f"{path} is not a readable checkpoint: {reason}") from error
    if not isinstance(state, dict):
        raise ValueError(f"{path} is not a checkpoint: it holds a {type(state).__name__}, not a dict")
    return state


def write_text(path: str | Path, text: str) -> None:
    """Writes a text file with the same guarantee as `save`."""
    with replacing(path) as file:
        file.write(text.encode("utf-8"))


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
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    if os.name == "posix":  # the name itself; Windows cannot open a folder
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


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

# From f1kit. MIT licence, copyright (c) 2026 The f1kit authors. Keep this line and LICENSE with a copy of this file.
"""Write checkpoints that are never half-written, and load them without executing code.

    save("last.pt", {"model": model.state_dict(), "epoch": 3}, keep_previous=True)
    state = load("last.pt")

    python checkpoint.py RUN/best_f1.pt              # prints its content
    (cd RUN && sha256sum -c last.pt.sha256)          # checks it; works only inside the folder of the checkpoint

A checkpoint is a dict that contains only tensors, str, int, float, bool, None, lists, tuples and dicts. So
torch.load(path, weights_only=True) loads it without an allow-list, on every torch version and every machine.
NAME.pt.sha256 contains its checksum. With it, `load` detects a damaged file, and loads the previous one instead.
"""

from __future__ import annotations

import errno
import glob
import hashlib
import io
import os
import pickle
import re
import secrets
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch

PLAIN = (torch.Tensor, str, int, float, bool, type(None))


class BadInput(ValueError):
    """A file or value that the user gave is wrong. The message tells which one, what is valid, and what to do."""


def save(path: str | Path, state: dict[str, Any], keep_previous: bool = False) -> None:
    """Writes `state` to `path`. A reader sees the old or the new file, never a part of it, even after a power failure.

    With `keep_previous` the old file is kept as NAME.previous.pt. `load` finds a complete file at every moment of a
    save: the checksum file contains the checksums of both files before either is renamed.

    Raises: TypeError, before anything is written, if `state` contains something that weights_only=True would refuse;
        OSError with the path and the free space if the disk is full. The old file is then unchanged.
    """
    _check_plain(state, "state")
    path, content = Path(path), io.BytesIO()
    torch.save(state, content)
    new_line = f"{hashlib.sha256(content.getbuffer()).hexdigest()}  {path.name}\n"
    newest, old_digest = _newest_undamaged(path)

    def keep_old() -> None:
        old_line = f"{old_digest}  {previous(path).name}\n" if old_digest else ""
        write_text(_checksum_file(path), new_line + old_line)
        if keep_previous and newest == path:  # a damaged file must not replace an undamaged previous one
            os.replace(path, previous(path))

    with replacing(path, before_rename=keep_old) as file:
        file.write(content.getbuffer())
    if old_digest and not keep_previous:
        write_text(_checksum_file(path), new_line)


def load(path: str | Path) -> dict[str, Any]:
    """The dict that `save` wrote, with its tensors on the CPU.

    If the file is missing or damaged, the previous one is loaded, with one line on standard error.

    Raises: BadInput if neither file exists or can be loaded; OSError if reading fails.
    """
    path = Path(path)
    if not path.exists() and not previous(path).exists():
        raise BadInput(f"{path} does not exist: give the path of a checkpoint (.pt)")
    try:
        return _load(path, _checksums(path))
    except (OSError, BadInput) as error:
        if not previous(path).exists():
            raise
        state = _load(previous(path), _checksums(path))
        print(f"{error}; {previous(path)} is loaded instead", file=sys.stderr)
        return state


def previous(path: Path) -> Path:
    """last.pt -> last.previous.pt"""
    return path.with_name(f"{path.stem}.previous{path.suffix}")


def _load(path: Path, checksums: set[str]) -> dict[str, Any]:
    content = path.read_bytes()
    if checksums and hashlib.sha256(content).hexdigest() not in checksums:
        raise BadInput(f"{path} is damaged: its SHA-256 is not in the checksum file")
    try:
        state = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        reason = "it is damaged, or contains more than tensors and plain Python values"
        raise BadInput(f"{path} is not a readable checkpoint: {reason}") from error
    except Exception as error:  # torch raises many types for damaged files: RuntimeError, IndexError, struct.error ...
        reason = str(error).partition("\n")[0] or "it is incomplete"
        raise BadInput(f"{path} is not a readable checkpoint: {reason}") from error
    if not isinstance(state, dict):
        raise BadInput(f"{path} is not a checkpoint: it must contain a dict, not a {type(state).__name__}")
    return state


def _newest_undamaged(path: Path) -> tuple[Path | None, str | None]:
    """The file that `load` would load, `path` or the previous one, and its SHA-256."""
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
    """The SHA-256 of a checkpoint and of the previous one, if the checksum file has them."""
    file = _checksum_file(path)
    return {line.split()[0] for line in file.read_text(encoding="utf-8").splitlines()} if file.exists() else set()


def write_text(path: str | Path, text: str) -> None:
    """Writes a text file that is never half-written."""
    with replacing(path) as file:
        file.write(text.encode("utf-8", "surrogateescape"))  # a file name may contain bytes that are not UTF-8


@contextmanager
def replacing(path: str | Path, before_rename: Callable[[], None] = lambda: None) -> Iterator[Any]:
    """A binary file to write to, with a temporary name. It is renamed to `path` after its bytes are on the disk.

    `before_rename` is called just before that. If anything fails earlier, `path` is unchanged. Temporary files of
    `path` that killed processes left are removed. The new one never existed before ("x"): a link is not followed.
    """
    path = Path(path)
    _remove(path.parent, glob.escape(path.name[:SHOWN]), lambda pid: not _is_running(pid))
    temporary = path.with_name(f".{path.name[:SHOWN]}.{os.getpid()}.{secrets.token_hex(4)}.tmp")
    try:
        with open(temporary, "xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())  # the bytes must be on the disk before the file is renamed
            before_rename()
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        if error.errno != errno.ENOSPC:
            raise
        free = shutil.disk_usage(path.parent).free
        message = (
            f"the disk is full, {free:,} bytes free: cannot write {path}. Free some space; the old file is unchanged"
        )
        raise OSError(error.errno, message) from error
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    if os.name == "posix":  # make the new name permanent too; Windows cannot open a folder
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


SHOWN = 40  # characters of a file's name in its temporary name, which must not be too long


def remove_stray(folder: str | Path) -> None:
    """Removes the temporary files of killed writes. This process may not be writing to the folder.

    Files of other running processes are kept. After a restart of a container this process may have the id of the
    process that was killed.
    """
    _remove(Path(folder), "*", lambda pid: pid == os.getpid() or not _is_running(pid))


def _remove(folder: Path, pattern: str, is_stray: Callable[[int], bool]) -> None:
    """Removes temporary files of `replacing`, if is_stray(process id). The pattern is that of the files' own names."""
    for path in list(folder.glob(f".{pattern}.*.tmp")):
        match = re.fullmatch(r"\..*?\.(\d{1,9})(?:\.[0-9a-f]{8})?\.tmp", path.name, re.DOTALL)
        if match and is_stray(int(match[1])):
            with suppress(OSError):  # the file of a different user
                path.unlink()


def _is_running(pid: int) -> bool:
    if os.name != "posix":
        return True  # os.kill would end the process
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:  # the process of a different user
        pass
    return True


def _check_plain(value: Any, name: str) -> None:
    """Raises TypeError if a value is not in PLAIN. type(), not isinstance(): weights_only=True refuses numpy floats."""
    if isinstance(value, dict):
        for key, item in value.items():
            _check_plain(key, f"a key of {name}")
            _check_plain(item, f"{name}[{key!r}]")
    elif type(value) in (list, tuple):
        for number, item in enumerate(value):
            _check_plain(item, f"{name}[{number}]")
    elif not isinstance(value, torch.Tensor) and type(value) not in PLAIN:
        raise TypeError(
            f"{name} is a {type(value).__name__}: a checkpoint may contain only tensors and plain Python values"
        )


def _describe(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        return f"tensor {tuple(value.shape)} {value.dtype}".replace("torch.", "")
    if isinstance(value, dict):
        tensors = [item for item in value.values() if isinstance(item, torch.Tensor)]
        numbers = sum(tensor.numel() for tensor in tensors)
        return f"dict of {len(value)}" + (f", tensors: {len(tensors)}, numbers in them: {numbers:,}" if tensors else "")
    if isinstance(value, list) and len(value) > 8:
        return f"list of {len(value)}: {', '.join(map(str, value[:8]))}, ..."
    return repr(value)


def printable(text: object) -> str:
    """The text with escapes for control characters, direction marks and bytes that are not text. Keeps line breaks."""
    return "".join(c if c.isprintable() or c == "\n" else ascii(c)[1:-1] for c in str(text))


if __name__ == "__main__":
    if sys.getfilesystemencoding() != "utf-8" and os.environ.get("PYTHONUTF8") != "1":  # as with LC_ALL=C
        os.execve(sys.executable, sys.orig_argv, os.environ | {"PYTHONUTF8": "1"})
    if len(sys.argv) != 2 or sys.argv[1] in ("-h", "--help"):
        sys.exit(__doc__)
    try:
        loaded = load(sys.argv[1])
    except (OSError, BadInput) as error:
        print(printable(f"checkpoint.py: error: {error}"), file=sys.stderr)
        sys.exit(2)
    for key, value in loaded.items():
        print(printable(f"{key:>14}  {_describe(value)}"))

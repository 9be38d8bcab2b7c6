"""A run is a folder. This file writes and reads all files in it. Programs exchange data only through them.

    config.json          command, options, classes, images per class, versions; written before the first epoch
    log.csv              one row per epoch, LOG_COLUMNS
    updates.csv          one row per update (optimizer step), UPDATE_COLUMNS
    best_f1.pt, best_loss.pt   the epochs with the best validation macro F1 and loss, see checkpoint.py
    last.pt              the state to resume from, see State
    .lock                locked while a process trains in the folder, see locked
    val_predictions.csv  predictions of best_f1.pt for the validation images, as text (see as_cell)
    val_probs.npz        the same as arrays: paths, targets, probs, and the groups of the images
    pseudo.npz           training images with pseudo-labels, as arrays: see pseudo.py
    leaks.csv            validation images with a near-duplicate in the training set, if there are any
    report.html          see report.py

A cross-validation run contains one run per fold in fold0, fold1, ..., and also folds.csv (the best row of each fold)
and oof.npz (out-of-fold paths, targets, probs and groups of all images).

    python runs.py RUN ...      # one line per run
"""

from __future__ import annotations

import csv
import errno
import io
import json
import math
import os
import platform
import re
import shlex
import subprocess
import sys
import tempfile
import time
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
import torchvision

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

import checkpoint
import data
import loop
import metrics

VERSION = "0.2.0"  # see CHANGELOG.md
MONITORS = {"f1": "max", "accuracy": "max", "loss": "min", "ce": "min"}  # validation scores; which is better?
SIGNS = {"max": 1, "min": -1}
LOG_COLUMNS = (
    "epoch",
    "lr",
    "train_loss",
    "train_ce",
    "val_loss",
    "val_ce",
    "val_f1",
    "val_f1_present",
    "val_f1_raw",
    "val_accuracy",
    "skipped_steps",
    "nonfinite_steps",
    "gpu_memory",
    "images_per_second",
    "seconds",
)
UPDATE_COLUMNS = ("epoch", "update", "lr", "loss", "grad_norm")
FIX_COLUMNS = ("action", "image", "given", "suggested")  # of labels.py's CSV, which --fixes reads
LEAK_COLUMNS = ("what", "validation", "validation_class", "training", "training_class")


class BadInput(ValueError):
    """A file or value that the user gave is wrong. The message tells which one, what is valid, and what to do."""


class Held(BadInput):
    """Another process is training this run."""


# ---------------------------------------------------------------------------------------------------------------------
# The state of a run
# ---------------------------------------------------------------------------------------------------------------------


@dataclass
class State(loop.State):
    """Everything that changes during a run. last.pt contains all of it, so a resumed run gives the same result."""

    epoch: int = 0  # finished epochs, including their validation
    trained: dict[str, float] = field(default_factory=dict)  # results of train_epoch until the epoch is validated
    updates: list[list[float]] = field(default_factory=list)  # lr, loss and grad_norm of this epoch's updates
    best: dict[str, float] = field(
        default_factory=lambda: {"f1": -math.inf, "loss": math.inf, "monitored": -math.inf, "epoch": 0}
    )
    best_counts: torch.Tensor | None = None  # the confusion matrix of the best epoch
    epochs_without_improvement: int = 0
    top: list[list[Any]] = field(default_factory=list)  # [score, file name] of --save-top
    log: list[dict[str, Any]] = field(default_factory=list)  # the rows of log.csv
    saves: bool = True  # False: another process of this run saves the checkpoints and predictions

    PLAIN = ("epoch", "trained", "updates", "best", "best_counts", "epochs_without_improvement", "top", "log")

    @property
    def candidates(self) -> list[torch.nn.Module]:
        """The models that are evaluated after an epoch: the EMA, if there is one, and the raw weights."""
        return [self.ema.model, self.model] if hasattr(self.ema, "model") else [self.model]

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {name: getattr(self, name) for name in self.PLAIN}

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        progress = saved["progress"]
        if "skipped_steps" in progress:  # an epoch that an older version began
            overflow, nonfinite = progress["skipped_steps"], progress["nonfinite_steps"]
            counts = {"update": progress["windows"] - overflow - nonfinite, "overflow": overflow}
            progress = progress | counts | {"nonfinite": nonfinite, "samples": progress["images"], "last": {}}
        super().load_state_dict(saved | {"progress": progress})
        for name in self.PLAIN:
            setattr(self, name, saved[name] if name in saved else getattr(self, name))
        for row in self.log:
            row.setdefault("val_f1_raw", row["val_f1"])
            row.setdefault("gpu_memory", 0.0)


# ---------------------------------------------------------------------------------------------------------------------
# Writing
# ---------------------------------------------------------------------------------------------------------------------


@contextmanager
def locked(out: str | None, name: str = "", is_resumed: bool = False) -> Iterator[str]:
    """Creates the folder `out`, or one in runs/ named by time and `name`, and locks it: only one process trains in it.

    Temporary files of killed writes are removed. A new folder that is still empty at the end is removed.

    Raises: BadInput if another process trains in the folder, if it already contains a run that is not to be resumed,
        or if parts of it are links; OSError if it cannot be written.
    """
    if out and Path(out).exists() and not Path(out).is_dir():
        raise BadInput(f"{out} is a file: choose a folder")
    folder, is_new = _make_folder(out, name)
    try:
        with open_locked(folder / ".lock"):
            try:
                if not is_resumed and (folder / "config.json").exists():
                    advice = f"choose a different folder, or continue it with --resume {folder}"
                    raise BadInput(f"{folder} already contains a run: {advice}")
                for inner in (folder, *folder.glob("fold[0-9]*")):
                    checkpoint.remove_stray(inner)
                    for path in (inner, inner / "tensorboard", inner / "wandb"):
                        if path.is_symlink() and path != folder:
                            raise BadInput(f"{path} is a link, but a run writes only in its folder: remove the link")
                yield str(folder)
            finally:
                with suppress(OSError):
                    (folder / ".lock").unlink()
    finally:
        if is_new:
            with suppress(OSError):  # not empty
                folder.rmdir()


@contextmanager
def joined(folder: str) -> Iterator[str]:
    """A temporary folder for another process of the run in `folder`, with links to what a resumed run reads.

    The process writes its small files there, and nothing in the run.
    """
    read = ("config.json", "updates.csv", "pseudo.npz", "val_probs.npz")
    with tempfile.TemporaryDirectory() as own:
        for file in (*Path(folder).glob("*"), *Path(folder).glob("fold[0-9]*/*")):
            if file.name in read or file.name.startswith("last.") or file.suffix == ".pt":
                link = Path(own) / file.relative_to(folder)
                link.parent.mkdir(exist_ok=True)
                link.symlink_to(file.resolve())
        yield own


def _make_folder(out: str | None, name: str) -> tuple[Path, bool]:
    """The folder, and whether it is new."""
    folder = Path(out or os.path.join("runs", re.sub(r"[^\w.+-]", "_", f"{time.strftime('%Y%m%d-%H%M%S')}-{name}")))
    while True:
        try:
            folder.mkdir(parents=True)
            return folder, True
        except FileExistsError:
            if out:
                return folder, False
        folder = folder.with_name(folder.name + "_")  # another run began in the same second


@contextmanager
def open_locked(path: Path) -> Iterator[BinaryIO]:
    """Opens a file to append to, and locks it. The lock ends with the block, or with the processes that have the file.

    A link is not followed. Without locks (Windows, some network drives) the file is only opened.

    Raises: Held if another process has the lock.
    """
    file = _open_to_append(path)
    while not _lock(file, path):  # the process that had the lock removed the file
        file.close()
        file = _open_to_append(path)
    with file:
        yield file


def _open_to_append(path: Path) -> BinaryIO:
    """Raises BadInput for a link: it is not followed."""
    try:
        return open(os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o666), "ab")
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise BadInput(f"{path} is a link, but a run writes only in its folder: remove the link") from error
        raise


def _lock(file: BinaryIO, path: Path) -> bool:
    """Locks the file. False if `path` is no longer this file."""
    if not fcntl:
        return True
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        raise Held(f"another process is training the run in {path.parent}: wait until it ends") from None
    except OSError as error:
        print(f"note: {path} cannot be locked ({error.strerror}): start no second run there", file=sys.stderr)
    try:
        return os.path.samestat(os.stat(path), os.fstat(file.fileno()))
    except FileNotFoundError:
        return False


def write_config(
    folder: Path, options: dict[str, Any], classes: list[str], digest: str, facts: dict[str, Any]
) -> dict[str, Any]:
    """Writes and returns config.json. It is written before the first epoch, so that an interrupted run can be resumed.

    A resumed run keeps the command, versions, start time, notes and warnings of its first start. BadInput if its data
    have changed.
    """
    config = {
        "command": shlex.join(["python", *sys.argv]),
        "started": time.strftime("%Y-%m-%d %H:%M:%S"),
        "cwd": os.getcwd(),  # what relative paths are relative to
        "options": options,
        "classes": classes,
        "data": digest,
        "versions": versions(options["device"]),
    } | facts
    path = folder / "config.json"
    folder.mkdir(parents=True, exist_ok=True)
    if path.exists():  # resumed
        stored = read_config(folder)
        if stored["data"] != digest:
            raise BadInput(
                f"cannot resume {folder}: its images, labels or split have changed since the run started; restore them "
                "or start a new run"
            )
        if stored.get("pixels", config.get("pixels")) != config.get("pixels"):  # older runs have no such entry
            raise BadInput(
                f"cannot resume {folder}: the pixels of its images have changed since the run started, or a different "
                "version of torchvision or Pillow decodes them; restore them or start a new run"
            )
        kept = ("command", "started", "cwd", "versions", "notes", "warnings")
        config |= {key: stored[key] for key in kept if key in stored}
    checkpoint.write_text(path, json.dumps(config, indent=2, ensure_ascii=False))
    return config


def versions(device: str) -> dict[str, str]:
    """Versions and hardware, on which the results depend."""
    git = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    try:
        commit = subprocess.run(git, capture_output=True, text=True, timeout=10).stdout.strip()
    except (OSError, subprocess.TimeoutExpired):
        commit = ""
    return {
        "f1kit": VERSION,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "numpy": np.__version__,
        "commit": commit or "unknown",
        "machine": torch.cuda.get_device_name(device) if device.startswith("cuda") else f"CPU, {platform.machine()}",
    }


def write_csv(path: Path, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([columns, *rows])
    checkpoint.write_text(path, text.getvalue())


def write_log(folder: Path, log: list[dict[str, Any]]) -> None:
    write_csv(folder / "log.csv", LOG_COLUMNS, ([row[key] for key in LOG_COLUMNS] for row in log))


def append_updates(folder: Path, epoch: int, first: int, updates: list[list[float]]) -> None:
    """Adds the updates of an epoch to updates.csv; `first` is the number of the first one in the run."""
    file = folder / "updates.csv"
    lines = [] if file.exists() else [",".join(UPDATE_COLUMNS)]
    lines += [f"{epoch},{first + i},{lr!r},{loss!r},{norm!r}" for i, (lr, loss, norm) in enumerate(updates)]
    with _open_to_append(file) as out:
        out.write("".join(line + "\n" for line in lines).encode())
        out.flush()
        os.fsync(out.fileno())


def remove_unfinished(folder: Path, epochs: int) -> None:
    """Removes the rows of updates.csv after these epochs: a resumed run writes them again."""
    file = folder / "updates.csv"
    if file.exists():
        head, *lines = file.read_text("utf-8").splitlines(keepends=True) or [",".join(UPDATE_COLUMNS) + "\n"]
        numbers = [line.partition(",")[0] if line.endswith("\n") else "" for line in lines]  # a kill may cut a line
        kept = [line for line, n in zip(lines, numbers, strict=True) if n.isdecimal() and int(n) <= epochs]
        checkpoint.write_text(file, "".join([head, *kept]))


def write_predictions(folder: Path, table: data.ImageTable, rows: np.ndarray, logits: torch.Tensor) -> None:
    """val_predictions.csv and val_probs.npz, from logits (N, C) of these N rows of the table."""
    probs, targets = logits.softmax(1).cpu().numpy(), table.targets[rows]
    paths, predicted = [table.paths[i] for i in rows], probs.argmax(1)
    names, labels = table.classes, ("image", "class", "predicted", "confidence")
    lines = zip(paths, targets, predicted, probs.max(1), strict=True)
    cells = ([*map(as_cell, (i, names[t], names[p])), f"{c:.4f}"] for i, t, p, c in lines)
    write_csv(folder / "val_predictions.csv", labels, cells)
    with checkpoint.replacing(folder / "val_probs.npz") as file:
        groups = np.array([table.groups[i] for i in rows], dtype=str)
        np.savez(file, paths=np.array(paths), targets=targets, probs=probs, groups=groups)


def as_cell(text: str) -> str:
    """Text for a CSV that a spreadsheet does not take as a formula: ' before = + - @, tab and carriage return.

    Any further ' at the beginning is kept, so from_cell(as_cell(text)) is the text.
    """
    return "'" + text if text.lstrip("'").startswith(tuple("=+-@\t\r")) else text


def from_cell(cell: str) -> str:
    """The text of a cell that as_cell has written."""
    return cell[1:] if cell.startswith("'") and as_cell(cell[1:]) == cell else cell


def write_leaks(folder: Path, leaks: Iterable[Sequence[str]]) -> None:
    write_csv(folder / "leaks.csv", LEAK_COLUMNS, (map(as_cell, row) for row in leaks))


def write_folds(folder: Path, best_rows: list[dict[str, Any]], folds: Sequence[int]) -> None:
    """folds.csv and oof.npz, from the runs in fold0, fold1, ..."""
    rows = ([f, *(row[key] for key in LOG_COLUMNS)] for f, row in zip(folds, best_rows, strict=True))
    parts = [np.load(folder / f"fold{f}" / "val_probs.npz") for f in folds]
    with checkpoint.replacing(folder / "oof.npz") as file:
        keys = [key for key in parts[0].files if all(key in part for part in parts)]  # an old fold has no groups
        np.savez(file, **{key: np.concatenate([part[key] for part in parts]) for key in keys})
    write_csv(folder / "folds.csv", ("fold", *LOG_COLUMNS), rows)


def keep_top(folder: Path, kept: set[str]) -> None:
    """Removes checkpoints of --save-top, such as 012_f1_0.9123.pt, that are no longer among the best."""
    for path in folder.glob("[0-9]*.pt*"):
        is_top = re.fullmatch(r"\d{3,}_(f1|accuracy|loss|ce)_\d+\.\d{4}\.pt(\.sha256)?", path.name)
        if is_top and path.name.removesuffix(".sha256") not in kept:
            path.unlink()


def end_epoch(
    folder: Path,
    state: State,
    row: dict[str, Any],
    counts: torch.Tensor,
    weights: dict[str, torch.Tensor],
    about: dict[str, Any],
    monitor: str = "f1",
    mode: str = "max",
    min_delta: float = 0.0,
    save_top: int | None = None,
    write_predictions: Callable[[], None] = lambda: None,
) -> None:
    """Ends an epoch. Writes best checkpoints if it is the best, then updates.csv, last.pt and log.csv.

    Because of this order, nothing is lost if the process is killed between two files.

    Args:
        counts: the confusion matrix of the epoch.
        weights: the state dict that was evaluated: of the EMA or the raw weights, whichever is better.
        about: entries of every checkpoint.
        mode: "max" if a larger val_MONITOR is better, else "min".
    """
    state.epoch, state.trained = row["epoch"], {}
    state.log.append(row)
    state.schedule.epoch_end(row[f"val_{monitor}"])
    scores = {key: value for key, value in row.items() if key.startswith("val_")}
    save = checkpoint.save if state.saves else lambda path, content: None
    for_prediction = about | {"model": weights, "epoch": state.epoch, "scores": scores}
    if row["val_f1"] > state.best["f1"]:
        state.best |= {"f1": row["val_f1"], "epoch": state.epoch}
        state.best_counts = counts
        if state.saves:
            write_predictions()
        save(folder / "best_f1.pt", for_prediction)
    if row["val_loss"] < state.best["loss"]:
        state.best["loss"] = row["val_loss"]
        save(folder / "best_loss.pt", for_prediction)
    monitored = row[f"val_{monitor}"] * SIGNS[mode]
    state.epochs_without_improvement += 1
    if monitored > state.best["monitored"] + min_delta:
        state.best["monitored"], state.epochs_without_improvement = monitored, 0
    if save_top:
        name = f"{state.epoch:03d}_{monitor}_{row[f'val_{monitor}']:.4f}.pt"
        state.top = sorted([*state.top, [monitored, name]], key=lambda entry: -entry[0])[:save_top]
        if [monitored, name] in state.top:
            save(folder / name, for_prediction)
    append_updates(folder, state.epoch, state.schedule.updates - len(state.updates) + 1, state.updates)
    state.updates = []
    save_last(folder, state, about)
    write_log(folder, state.log)
    keep_top(folder, {name for _, name in state.top})


def save_last(folder: Path, state: State, about: dict[str, Any]) -> None:
    if state.saves:
        checkpoint.save(folder / "last.pt", about | state.state_dict(), keep_previous=True)


def read_val_predictions(folder: Path) -> list[dict[str, str]]:
    """The rows of val_predictions.csv: image, class, predicted, confidence."""
    with open(folder / "val_predictions.csv", newline="", encoding="utf-8", errors="surrogateescape") as file:
        return [{key: from_cell(cell) for key, cell in row.items()} for row in csv.DictReader(file)]


def has_last(folder: Path) -> bool:
    """Whether a last.pt, or the one before it, has been written."""
    return (folder / "last.pt").exists() or checkpoint.previous(folder / "last.pt").exists()


def load_last(folder: Path, state: State) -> None:
    """Restores the state of last.pt, and the files as they were at that time."""
    saved = checkpoint.load(folder / "last.pt")
    missing = {*loop.State.PARTS, "rng", "progress", "epoch", "log"} - saved.keys()
    if missing:
        raise BadInput(f"{folder / 'last.pt'} is not the state of a run: it has no {', '.join(sorted(missing))}")
    try:
        state.load_state_dict(saved)
        state.top = [[score, name] for score, name in state.top if (folder / name).exists()]  # else removed later
        needed = ("best_f1.pt", "val_probs.npz") if state.best["epoch"] else ()  # they were written before last.pt
        is_complete = all((folder / name).exists() for name in needed)
        if is_complete:
            write_log(folder, state.log)
            keep_top(folder, {name for _, name in state.top})
    except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise BadInput(f"{folder / 'last.pt'} is not the state of this run: {reason[-1].strip()}") from error
    if not is_complete:
        both = " and ".join(needed)
        raise BadInput(f"{folder} needs {both}, of the best epoch so far: copy them from where the run was")


# ---------------------------------------------------------------------------------------------------------------------
# Reading
# ---------------------------------------------------------------------------------------------------------------------


@dataclass
class Predictions:
    """Predictions of a run's best model for images that it was not trained on."""

    paths: np.ndarray  # (N,) of text
    targets: np.ndarray  # (N,) of int64
    probs: np.ndarray  # (N, C) of float32
    groups: np.ndarray | None = None  # (N,) of text, see data.ImageTable. None in an old run

    @cached_property
    def matrix(self) -> metrics.ConfusionMatrix:
        return metrics.ConfusionMatrix(self.probs.shape[1]).update(self.probs.argmax(1), self.targets)


@dataclass
class Run:
    """The contents of a run folder. The run may be unfinished."""

    folder: Path
    config: dict[str, Any]
    log: list[dict[str, float]]  # empty before the end of the first epoch, and for a run with several folds
    folds: list[Run]  # one run per fold, empty without folds

    @cached_property
    def predictions(self) -> Predictions | None:
        """For the validation images, or out-of-fold for all images; read on first use. BadInput if damaged."""
        files = (self.folder / name for name in ("oof.npz", "val_probs.npz"))
        file = next((file for file in files if file.is_file()), None)
        found = read_predictions(file) if file else None
        if found and found.probs.shape[1] != len(self.config["classes"]):
            raise BadInput(f"{file} is damaged: it is for {found.probs.shape[1]} classes, not those of config.json")
        return found

    @cached_property
    def updates(self) -> dict[str, list[float]] | None:
        """The columns of updates.csv by name, one number per update. None if it does not exist (old run).

        A last line without its end, left by a kill, is ignored. BadInput if the file is damaged elsewhere.
        """
        file = self.folder / "updates.csv"
        if not file.is_file():
            return None
        try:
            text = file.read_text("utf-8")
            rows = list(csv.DictReader(text[: text.rfind("\n") + 1].splitlines()))
            return {name: [float(row[name]) for row in rows] for name in UPDATE_COLUMNS}
        except (ValueError, TypeError, KeyError, csv.Error) as error:
            columns = ", ".join(UPDATE_COLUMNS)
            raise BadInput(f"{file} is damaged: every line must have a number for each of {columns}") from error

    @property
    def options(self) -> dict[str, Any]:
        return self.config["options"]

    @property
    def is_finished(self) -> bool:
        """Whether all planned epochs are done. False for a run that --patience stopped early."""
        if self.folds:
            return (self.folder / "folds.csv").exists()
        return len(self.log) >= self.options["epochs"]

    @property
    def planned_epochs(self) -> int:
        """Of all folds."""
        return planned_epochs(self.options)

    @property
    def is_stopped_early(self) -> bool:
        """Whether --patience ended the run: the monitored score has not improved by --min-delta for so many epochs."""
        patience, monitor = self.options.get("patience"), self.options.get("monitor") or "f1"
        best, since = -math.inf, 0
        for row in self.log:
            score = row[f"val_{monitor}"] * SIGNS[MONITORS[monitor]]
            best, since = (score, 0) if score > best + (self.options.get("min_delta") or 0) else (best, since + 1)
        return bool(patience) and since >= patience

    def train_counts(self, key: str = "train_counts") -> list[float] | None:
        """Training images per class, or with "drawn_counts" those of one epoch; mean over folds. None in an old run."""
        parts = [part.config.get(key) for part in self.folds or [self]]
        return np.mean(parts, axis=0).tolist() if all(parts) else None

    @property
    def factors(self) -> dict[str, tuple[list[str], list[int]]]:
        """The values of each factor, and the value of each class; {} if the classes do not combine factors."""
        config = (self.folds or [self])[0].config
        if config["classes"] != self.config["classes"]:
            return {}
        columns = zip(*config["factor_ids"], strict=True)
        return {name: (values, [*ids]) for (name, values), ids in zip(config["factors"].items(), columns, strict=True)}

    def best(self, column: str = "val_f1", mode: str = "max") -> dict[str, float]:
        """The row of the best epoch by a column; on a tie, the first."""
        return (max if mode == "max" else min)(self.log, key=lambda row: row[column])


def planned_epochs(options: dict[str, Any]) -> int:
    """Epochs of all folds that a run with these options trains."""
    every_fold = options.get("folds") and options.get("fold") in (None, "all")
    return options["epochs"] * (options["folds"] if every_fold else 1)


def read(folder: str | Path) -> Run:
    """Reads a run folder. BadInput if it is not one, or if a file in it is damaged."""
    run = _read_one(Path(folder))
    inner = {path.parent.name.removeprefix("fold"): path for path in run.folder.glob("fold*/config.json")}
    inner = [inner[number] for number in sorted(filter(str.isdecimal, inner), key=int)]
    run.folds = [_read_one(path.parent) for path in inner]  # a fold has no folds, even if a link makes it look so
    return run


def _read_one(folder: Path) -> Run:
    """A run without its folds."""
    config, log = read_config(folder), []
    try:
        if (folder / "log.csv").is_file():
            with open(folder / "log.csv", newline="", encoding="utf-8") as file:
                log = [{key: float(value) for key, value in row.items()} for row in csv.DictReader(file)]
        for row in log:
            row.setdefault("val_f1_raw", row.get("val_f1"))  # older versions did not write these
            row.setdefault("gpu_memory", 0.0)
    except (ValueError, TypeError, OSError, csv.Error) as error:
        raise BadInput(f"{folder / 'log.csv'} is damaged: {error}") from error
    missing = set(LOG_COLUMNS) - set(log[0] if log else LOG_COLUMNS)
    if missing:
        raise BadInput(f"{folder / 'log.csv'} is damaged: it has no column {', '.join(sorted(missing))}")
    return Run(folder, config, log, [])


CONFIG_TYPES = {"options": dict, "classes": list, "data": str, "command": str, "versions": dict}
CONFIG_TYPES |= {"started": str, "cwd": str, "notes": list, "warnings": list}  # these may be missing in older runs
CONFIG_TYPES |= {"fixes": list}  # only with --fixes
OPTION_TYPES = {"epochs": int, "model": str, "loss": str, "class_weights": str}


def read_config(folder: Path) -> dict[str, Any]:
    """BadInput if there is no config.json, or it is damaged. Most options are not checked: see cli.stored."""
    file = folder / "config.json"
    if not file.is_file():
        raise BadInput(f"{folder} is not a run folder: there is no {file}")
    try:
        config = json.loads(file.read_text("utf-8", "surrogateescape"))
        if not isinstance(config, dict):
            raise ValueError("it must be a JSON object")
        missing = {"options", "classes", "data", "command", "versions"} - config.keys()
    except (ValueError, AttributeError, OSError, RecursionError) as error:
        raise BadInput(f"{file} is damaged: {error}") from error
    if missing:
        raise BadInput(f"{file} is damaged: it has no {', '.join(sorted(missing))}")
    for part, types in ((config, CONFIG_TYPES), (config["options"], OPTION_TYPES)):
        for name, kind in types.items():
            if not isinstance(part, dict) or not isinstance(part.get(name, kind()), kind):
                raise BadInput(f"{file} is damaged: {name} must be of type {kind.__name__}")
    texts = (text for name in ("classes", "notes", "warnings") for text in config.get(name, []))
    if not all(isinstance(text, str) for text in texts):
        raise BadInput(f"{file} is damaged: classes, notes and warnings must be text")
    for fix in config.get("fixes", []):
        values = [fix.get(key, 0) for key in ("image", "from", "to")] if isinstance(fix, dict) else [0]
        if not all(isinstance(value, str) for value in values[:2]) or not isinstance(values[-1], str | None):
            raise BadInput(f"{file} is damaged: fixes must have an image, a class before, and a class now or null")
    for name in ("train_counts", "drawn_counts", "val_counts", "pseudo_counts"):
        counts = config.get(name, [0] * len(config["classes"]))
        if [type(n) for n in counts] != [int] * len(config["classes"]):
            raise BadInput(f"{file} is damaged: {name} must have an integer for each class")
    none = {"factors": {}, "factor_ids": [[] for _ in config["classes"]]}  # an older version did not write them
    config = none | config
    if not are_factors(config["factors"], config["factor_ids"], len(config["classes"])):
        raise BadInput(f"{file} is damaged: factors and factor_ids must give each class a value of each factor")
    return config


def are_factors(factors: Any, factor_ids: Any, num_classes: int) -> bool:
    """Whether these entries of a config.json or checkpoint are the factors of a data.ImageTable: all values are used,
    and no two classes have the same values. True for classes without factors: {} and one empty list per class.
    """
    if not (isinstance(factors, dict) and isinstance(factor_ids, list) and len(factor_ids) == num_classes):
        return False
    for name, values in factors.items():
        is_list = isinstance(name, str) and isinstance(values, list) and len(values) > 1
        if not (is_list and all(isinstance(value, str) for value in values)):
            return False
    rows = [row for row in factor_ids if isinstance(row, list) and [type(i) for i in row] == [int] * len(factors)]
    if not factors or len(rows) < num_classes:
        return len(rows) == num_classes
    is_used = all(
        set(ids) == {*range(len(values))} for ids, values in zip(zip(*rows, strict=True), factors.values(), strict=True)
    )
    is_small = num_classes * sum(map(len, factors.values())) <= 10**8  # numbers in models.FactoredHead
    return is_used and is_small and len({*map(tuple, rows)}) == num_classes


def read_predictions(file: Path) -> Predictions:
    """Reads what write_predictions or write_folds wrote. BadInput that names the file if it is damaged."""
    try:
        found = Predictions(**np.load(file, allow_pickle=False))
        kinds = [(array.dtype.kind, array.ndim) for array in (found.paths, found.targets, found.probs)]
        is_valid = kinds == [("U", 1), ("i", 1), ("f", 2)]
        is_valid = is_valid and len(found.paths) == len(found.targets) == len(found.probs)
        if found.groups is not None:
            is_valid = is_valid and (found.groups.dtype.kind, found.groups.shape) == ("U", found.paths.shape)
        if not is_valid or not np.isin(found.targets, np.arange(found.probs.shape[1])).all():
            raise ValueError("wrong types, shapes or classes")
        return found
    except (ValueError, TypeError, EOFError, MemoryError, NotImplementedError, zipfile.BadZipFile, zlib.error) as error:
        # numpy's text may advise allow_pickle=True
        raise BadInput(f"{file} is damaged: it must be an .npz file with paths, targets and probs") from error


if __name__ == "__main__":
    if sys.getfilesystemencoding() != "utf-8" and os.environ.get("PYTHONUTF8") != "1":  # as with LC_ALL=C
        os.execve(sys.executable, sys.orig_argv, os.environ | {"PYTHONUTF8": "1"})
    if len(sys.argv) < 2 or sys.argv[1] in ("-h", "--help"):
        sys.exit(__doc__)
    try:
        for run in map(read, sys.argv[1:]):
            score = f"macro F1 {run.predictions.matrix.f1():.4f}" if run.predictions else "no predictions yet"
            done = f"epochs {len(run.log)} of {run.options['epochs']}"
            print(data.printable(f"{run.folder}: {f'folds {len(run.folds)}' if run.folds else done}, {score}"))
    except (BadInput, OSError) as error:
        sys.exit(data.printable(f"runs.py: error: {error}"))

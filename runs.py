"""A run is a folder: what lies in it, written and read in one place. Programs know of each other only through it.

    config.json          command, options, classes, images of each class, versions; before the first epoch
    log.csv              a row an epoch, LOG_COLUMNS
    updates.csv          one row per optimizer update, UPDATE_COLUMNS; updates are counted from 1 over the whole run
    best_f1.pt, best_loss.pt, last.pt   see checkpoint.py
    val_predictions.csv  what best_f1.pt says of the validation images, for people
    val_probs.npz        the same as numbers: paths, targets, probs
    leaks.csv            validation images that have a copy in training, if there are any
    report.html          see report.py

A run of several folds holds a run in fold0, fold1, ..., and beside them folds.csv (each one's best row) and oof.npz
(paths, targets and probs of all images, each judged by the run that did not see it).

    python runs.py RUN ...      # a line for each
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import os
import platform
import re
import shlex
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision

import checkpoint
import data
import metrics

LOG_COLUMNS = (
    "epoch", "lr", "train_loss", "train_ce", "val_loss", "val_ce", "val_f1", "val_f1_present", "val_accuracy",
    "skipped_steps", "nonfinite_steps", "images_per_second", "seconds",
)  # fmt: skip
UPDATE_COLUMNS = ("epoch", "update", "lr", "loss", "grad_norm")
LEAK_COLUMNS = ("what", "validation", "validation_class", "training", "training_class")


class BadInput(ValueError):
    """A file or value that the user gave is wrong: the message says which, what is valid, and what to do."""


# ---------------------------------------------------------------------------------------------------------------------
# Writing
# ---------------------------------------------------------------------------------------------------------------------


def check_out(out: str | None) -> None:
    """ValueError if a new run cannot begin in this folder."""
    if out and (Path(out) / "config.json").exists():
        raise ValueError(f"{out} already holds a run; choose another folder, or go on with --resume {out}")
    if out and Path(out).exists() and not Path(out).is_dir():
        raise ValueError(f"{out} is a file")


def new_folder(options: argparse.Namespace) -> Path:
    """The folder of --out, or one named by time, model and loss; what it is becomes options.out."""
    name = re.sub(r"[^\w.+-]", "_", f"{time.strftime('%Y%m%d-%H%M%S')}-{options.model}-{options.loss}")
    folder = Path(options.out or os.path.join("runs", name))
    while not options.out and folder.exists():  # another run began in the same second
        folder = folder.with_name(folder.name + "_")
    folder.mkdir(parents=True, exist_ok=bool(options.out))
    options.out = str(folder)
    return folder


def write_config(
    folder: Path, options: argparse.Namespace, classes: list[str], digest: str, facts: dict[str, Any]
) -> dict[str, Any]:
    """Writes and returns config.json, before the first epoch: a run that dies can still be told apart, and resumed.

    A resumed run keeps what it began with. ValueError if its data are others now.
    """
    config = {
        "command": shlex.join(["python", *sys.argv]),
        "started": time.strftime("%Y-%m-%d %H:%M:%S"),
        "cwd": os.getcwd(),  # what relative paths are relative to
        "options": vars(options),
        "classes": classes,
        "data": digest,
        "versions": versions(options.device),
    } | facts
    path = folder / "config.json"
    folder.mkdir(parents=True, exist_ok=True)
    if path.exists():  # resumed
        began = read_config(folder)
        if began["data"] != digest:
            raise ValueError(f"the images, labels or split are not those that the run in {folder} began with")
        config |= {key: began[key] for key in ("command", "started", "cwd", "versions") if key in began}
    checkpoint.write_text(path, json.dumps(config, indent=2, ensure_ascii=False))
    return config


def versions(device: str) -> dict[str, str]:
    """What a figure depends on and no option says."""
    git = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    try:
        commit = subprocess.run(git, capture_output=True, text=True, timeout=10).stdout.strip()
    except (OSError, subprocess.TimeoutExpired):
        commit = ""
    return {
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


def write_predictions(folder: Path, table: data.ImageTable, rows: np.ndarray, logits: torch.Tensor) -> None:
    """val_predictions.csv and val_probs.npz, of logits (N, C) for N rows of the table."""
    probs, targets = logits.softmax(1).cpu().numpy(), table.targets[rows]
    paths, predicted = [table.paths[i] for i in rows], probs.argmax(1)
    names, labels = table.classes, ("image", "class", "predicted", "confidence")
    lines = zip(paths, targets, predicted, probs.max(1), strict=True)
    write_csv(folder / "val_predictions.csv", labels, ([i, names[t], names[p], f"{c:.4f}"] for i, t, p, c in lines))
    with checkpoint.replacing(folder / "val_probs.npz") as file:
        np.savez(file, paths=np.array(paths), targets=targets, probs=probs)


def write_folds(folder: Path, best_rows: list[dict[str, Any]], folds: Sequence[int]) -> None:
    """folds.csv and oof.npz, from the runs in fold0, fold1, ..."""
    rows = ([f, *(row[key] for key in LOG_COLUMNS)] for f, row in zip(folds, best_rows, strict=True))
    parts = [np.load(folder / f"fold{f}" / "val_probs.npz") for f in folds]
    with checkpoint.replacing(folder / "oof.npz") as file:
        np.savez(file, **{key: np.concatenate([part[key] for part in parts]) for key in ("paths", "targets", "probs")})
    write_csv(folder / "folds.csv", ("fold", *LOG_COLUMNS), rows)


def keep_top(folder: Path, kept: set[str]) -> None:
    """Removes checkpoints of --save-top, such as 012_f1_0.9123.pt, that are not among the best any more."""
    for path in folder.glob("[0-9]*.pt*"):
        is_ours = re.fullmatch(r"\d{3,}_(f1|accuracy|loss|ce)_\d+\.\d{4}\.pt(\.sha256)?", path.name)
        if is_ours and path.name.removesuffix(".sha256") not in kept:
            path.unlink()


# ---------------------------------------------------------------------------------------------------------------------
# Reading
# ---------------------------------------------------------------------------------------------------------------------


@dataclass
class Predictions:
    """What a run's best model says of images that it was not trained on."""

    paths: np.ndarray  # (N,) of text
    targets: np.ndarray  # (N,) of int64
    probs: np.ndarray  # (N, C) of float32

    @cached_property
    def matrix(self) -> metrics.ConfusionMatrix:
        return metrics.ConfusionMatrix(self.probs.shape[1]).update(self.probs.argmax(1), self.targets)


@dataclass
class Run:
    """A run folder, as far as it has got."""

    folder: Path
    config: dict[str, Any]
    log: list[dict[str, float]]  # empty before the end of the first epoch, and for a run of several folds
    folds: list[Run]  # of a run of several folds

    @cached_property
    def predictions(self) -> Predictions | None:
        """Of the validation images, or of all images out of fold; read when asked for. BadInput if damaged."""
        files = (self.folder / name for name in ("oof.npz", "val_probs.npz"))
        file = next((file for file in files if file.is_file()), None)
        return read_predictions(file) if file else None

    @cached_property
    def updates(self) -> dict[str, list[float]] | None:
        """The columns of updates.csv by name, one number per optimizer update. None if there is no such file (old run).

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
        """Whether nothing is left to do; a run that --patience ended may be finished and not known to be."""
        if self.folds:
            return (self.folder / "folds.csv").exists()
        return len(self.log) >= self.options["epochs"]

    def best(self, column: str = "val_f1", mode: str = "max") -> dict[str, float]:
        """The epoch's row that is best by a column, the first of equals."""
        return (max if mode == "max" else min)(self.log, key=lambda row: row[column])


def read(folder: str | Path) -> Run:
    """Reads what there is. Raises: BadInput if it is no run folder, or something in it is not readable."""
    folder = Path(folder)
    config, log = read_config(folder), []
    try:
        if (folder / "log.csv").is_file():
            with open(folder / "log.csv", newline="", encoding="utf-8") as file:
                log = [{key: float(value) for key, value in row.items()} for row in csv.DictReader(file)]
    except (ValueError, TypeError, OSError) as error:
        raise BadInput(f"{folder} is no readable run: {error}") from error
    inner = sorted(folder.glob("fold*/config.json"), key=lambda path: int(path.parent.name.removeprefix("fold")))
    return Run(folder, config, log, [read(path.parent) for path in inner])


def read_config(folder: Path) -> dict[str, Any]:
    """BadInput if there is none, or it is damaged."""
    file = folder / "config.json"
    if not file.is_file():
        raise BadInput(f"{folder} is no run folder: there is no {file}")
    try:
        config = json.loads(file.read_text("utf-8", "surrogateescape"))
        lacking = {"options", "classes", "data", "command", "versions"} - config.keys()
    except (ValueError, AttributeError, OSError) as error:
        raise BadInput(f"{file} is damaged: {error}") from error
    if lacking:
        raise BadInput(f"{file} is damaged: it lacks {', '.join(sorted(lacking))}")
    return config


def read_predictions(file: Path) -> Predictions:
    """What write_predictions or write_folds wrote. BadInput that names the file if it is damaged."""
    try:
        return Predictions(**np.load(file))
    except (ValueError, TypeError, EOFError, zipfile.BadZipFile) as error:
        raise BadInput(f"{file} is damaged: {error}") from error


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    try:
        for run in map(read, sys.argv[1:]):
            score = f"macro F1 {run.predictions.matrix.f1():.4f}" if run.predictions else "nothing predicted yet"
            print(f"{run.folder}: {len(run.log)} of {run.options['epochs']} epochs, {len(run.folds)} folds, {score}")
    except (BadInput, OSError) as error:
        sys.exit(f"runs.py: error: {error}")

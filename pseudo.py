"""Pseudo-labels for train.py --pseudo: test images that a trained run labels, as further training images.

    python train.py --folds 5 --pseudo runs/five --pseudo-data TEST --pseudo-share 0.5

Out-of-fold scores stay honest, because each fold has its own labels: they come from the network of the same fold of
RUN, which was not trained on the validation images of this fold. A network of a different fold was: its labels would
carry the labels of the validation images into training. So RUN must have the same split, or it is refused.

The labels of a run are computed once and kept in its folder (pseudo.npz, one per fold). A resumed run reads them there.

Sources: Lee 2013 (hard labels); Xie et al. 2020, arXiv:1911.04252 (soft labels, balanced per class).
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shlex
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

import checkpoint
import cli
import data
import leaks
import models
import pixels
import predictors
import runs
import submission
from ranks import Ranks
from runs import BadInput

# ---------------------------------------------------------------------------------------------------------------------
# Which images, and what they are labelled
# ---------------------------------------------------------------------------------------------------------------------


def choose(probs: np.ndarray, class_shares: np.ndarray, share: float) -> np.ndarray:
    """int64 (n,): rows of probs (N, C). Of class c, the round(share x N x class_shares[c]) most confident ones.

    An image belongs to the class with its highest probability. If a class has fewer images, all of them are chosen.
    """
    preds, confidence = probs.argmax(1), probs.max(1)
    chosen = []
    for c, wanted in enumerate(np.rint(share * len(probs) * class_shares).astype(int)):
        own = np.flatnonzero(preds == c)
        chosen.append(own[np.argsort(-confidence[own], kind="stable")][:wanted])
    return np.sort(np.concatenate(chosen))


def teacher_folders(run: str, splits: Sequence[Any]) -> list[Path]:
    """The folder of the network for each split: that of the same fold, or of the run if it has no folds.

    Raises: BadInput if RUN is not a run, or has no network for a split.
    """
    folds = [part.folder.name for part in runs.read(run).folds]
    if folds and splits[0].fold is None:
        raise BadInput(f"{run} has folds, but this run has none: add the same --folds, or choose a run without folds")
    folders = [Path(run) / (f"fold{split.fold}" if folds else "") for split in splits]
    for folder in folders:
        if not (folder / "best_f1.pt").is_file():
            found = f" (it has {', '.join(folds)})" if folds else ""
            raise BadInput(f"{folder} has no best_f1.pt{found}: this run and RUN must have the same folds")
    return folders


def check_same_split(folder: Path, table: data.ImageTable, split: Any) -> None:
    """BadInput unless the network in `folder` was validated on exactly the validation images of this split."""
    own = [table.paths[i] for i in split.val]
    stored = runs.read_predictions(folder / "val_probs.npz").paths.tolist()
    cwd = runs.read_config(folder).get("cwd", "")  # what the stored paths are relative to
    absolute = {os.path.abspath(os.path.join(cwd, path)) for path in stored}
    if set(own) != set(stored) and {os.path.abspath(path) for path in own} != absolute:
        fold = "" if split.fold is None else f" of fold {split.fold}"
        raise BadInput(
            f"{folder} has different validation images than this run{fold}, so its labels would carry validation "
            "labels into training: train both runs with the same --data, --seed and split options (--folds, "
            "--val-frac, groups, --leaks)"
        )


def load_teachers(
    options: argparse.Namespace, table: data.ImageTable, splits: Sequence[Any]
) -> tuple[list[predictors.Predictor], list[str]]:
    """The network for each split, and the image files of --pseudo-data. Both are empty if they are not needed."""
    if not options.pseudo or stored_labels(options, splits):
        return [], []
    with cli.blaming("--pseudo-data"):
        images = submission.read_template(Path(options.pseudo_data), None).images
        known = set(map(os.path.abspath, table.paths)) & set(map(os.path.abspath, images))
        if known:
            raise BadInput(f"{len(known)} of its images are in --data too, such as {min(known)}: give other images")
    with cli.blaming("--pseudo"):
        functions = [options.model] if models.is_function(options.model) else []
        device, teachers = torch.device(options.device), []
        for folder in teacher_folders(options.pseudo, splits):
            name = runs.read_config(folder)["options"].get("model", "")
            if models.is_function(name) and name not in functions:
                raise BadInput(
                    f"the network of {folder} is {name}, a function in a file, which is only executed if --model has "
                    f"the same name: choose --model {shlex.quote(name)}, or a RUN whose network is not a function"
                )
            teachers.append(predictors.load_predictor(folder / "best_f1.pt", device, functions))
            if teachers[-1].saved["classes"] != table.classes:
                raise BadInput(f"{teachers[-1].path} has different classes than --data: train it with the same classes")
    return teachers, images


def predicted_labels(
    options: argparse.Namespace,
    table: data.ImageTable,
    splits: Sequence[Any],
    teachers: Sequence[predictors.Predictor],
    images: list[str],
) -> list[runs.Predictions]:
    """The chosen images of each split with their labels. BadInput if a network has a different split."""
    for teacher, split in zip(teachers, splits, strict=True):
        check_same_split(teacher.path.parent, table, split)
    work = Ranks(device=options.device), options.batch_size, options.threads
    by_fold = predictors.predict_probs([[teacher] for teacher in teachers], "none", *work, images)  # (folds, N, C)
    labelled = []
    for probs in by_fold:
        # The mean is near the true shares also if the network is not calibrated. EM (shares.py) is not: it needs
        # validation labels to calibrate, which would be a leak.
        rows = choose(probs, probs.mean(0, dtype=np.float64), options.pseudo_share)
        if not len(rows):
            raise BadInput(f"no image of {options.pseudo_data} is chosen: give more images, or a larger --pseudo-share")
        labelled.append(runs.Predictions(np.array(images)[rows], probs[rows].argmax(1), probs[rows]))
    return labelled


# ---------------------------------------------------------------------------------------------------------------------
# The files in the run folder
# ---------------------------------------------------------------------------------------------------------------------


def label_files(options: argparse.Namespace, splits: Sequence[Any]) -> list[Path]:
    return [Path(options.out) / (f"fold{split.fold}" if len(splits) > 1 else "") / "pseudo.npz" for split in splits]


def stored_labels(options: argparse.Namespace, splits: Sequence[Any]) -> list[runs.Predictions]:
    """The labels that a resumed run has kept. Empty for a new run, and if it ended before all were written."""
    files = label_files(options, splits) if options.resume else []
    return [runs.read_predictions(file) for file in files] if all(file.is_file() for file in files) else []


def write_labels(options: argparse.Namespace, splits: Sequence[Any], labelled: Sequence[runs.Predictions]) -> None:
    for file, part in zip(label_files(options, splits), labelled, strict=True):
        file.parent.mkdir(parents=True, exist_ok=True)
        with checkpoint.replacing(file) as out:
            np.savez(out, paths=part.paths, targets=part.targets, probs=part.probs)


# ---------------------------------------------------------------------------------------------------------------------
# Further rows of the table
# ---------------------------------------------------------------------------------------------------------------------


def add(
    options: argparse.Namespace,
    images: pixels.ImageArray,
    table: data.ImageTable,
    splits: list[Any],
    teachers: Sequence[predictors.Predictor],
    test_images: list[str],
) -> tuple[pixels.ImageArray, data.ImageTable, list[Any]]:
    """The images, table and splits with the labelled images of each split as further training rows.

    The rows of a split are at the end, each with its own label, so an image that two folds use has two rows. Its pixels
    are stored once. They are never validation images.
    """
    if not options.pseudo:
        return images, table, splits
    with cli.blaming("--resume" if options.resume else "--pseudo"):
        labelled = stored_labels(options, splits) or predicted_labels(options, table, splits, teachers, test_images)
    files = sorted({path for part in labelled for path in part.paths.tolist()})
    with cli.blaming("--pseudo-data", disk="--cache"):
        size, cache = models.sides(options.size), Path(options.cache) / "images"
        more = pixels.decode(files, np.zeros(len(files)), size, cache, None, options.fit, "error", options.threads)
    row_of = {path: len(table) + i for i, path in enumerate(files)}
    if teachers:
        labelled = without_copies(options, images, more, splits, labelled, row_of)
        if not options.preview:
            with cli.blaming("--out"):
                write_labels(options, splits, labelled)
    end = len(table)
    for split, part in zip(splits, labelled, strict=True):
        split.pseudo = np.arange(end, end + len(part.paths))
        split.train = np.concatenate([split.train, split.pseudo])
        split.notes.append(describe(options, part, table.classes))
        end += len(part.paths)
    return *joined(options, images, more, table, labelled, row_of), splits


def without_copies(
    options: argparse.Namespace,
    images: pixels.ImageArray,
    more: pixels.ImageArray,
    splits: Sequence[Any],
    labelled: Sequence[runs.Predictions],
    row_of: dict[str, int],
) -> list[runs.Predictions]:
    """The labelled images of each split without near-duplicates of its validation images. Adds a note about them."""
    both = pixels.Rows([images.pixels, more.pixels], np.arange(len(images) + len(more)))
    name = hashlib.sha256(f"{images.digest} {more.digest}".encode()).hexdigest()[:16]
    with cli.blaming("--cache"):
        _, alike = leaks.find_copies(both, options.device, Path(options.cache) / "images" / f"{name}.copies.npz")
    kept_parts = []
    for split, part in zip(splits, labelled, strict=True):
        is_copy = np.isin(alike[[row_of[path] for path in part.paths.tolist()]], alike[split.val])
        if is_copy.any():
            split.notes.append(
                f"--pseudo-data: images left out as near-duplicates of validation images: {is_copy.sum()}, such as "
                f"{part.paths[is_copy][0]}"
            )
        kept_parts.append(runs.Predictions(*(array[~is_copy] for array in (part.paths, part.targets, part.probs))))
    return kept_parts


def joined(
    options: argparse.Namespace,
    images: pixels.ImageArray,
    more: pixels.ImageArray,
    table: data.ImageTable,
    labelled: Sequence[runs.Predictions],
    row_of: dict[str, int],
) -> tuple[pixels.ImageArray, data.ImageTable]:
    """The images and the table, with a row for each image of each part of `labelled`."""
    paths = [path for part in labelled for path in part.paths.tolist()]
    targets = np.concatenate([table.targets, *(part.targets for part in labelled)])
    groups = [f"{path} of split {f}" for f, part in enumerate(labelled) for path in part.paths.tolist()]
    rows = np.concatenate([np.arange(len(table)), np.array([row_of[path] for path in paths], dtype=np.int64)])
    every = pixels.ImageArray(
        pixels.Rows([images.pixels, more.pixels], rows), targets, table.paths + paths, images.file
    )
    digest = hashlib.sha256(f"{images.digest} {more.digest}".encode())
    if options.pseudo_labels == "soft":
        soft = np.concatenate([part.probs for part in labelled])
        digest.update(soft.tobytes())  # a resumed run has the same labels, or is refused
        every.soft = torch.from_numpy(soft)
    every.digest = digest.hexdigest()
    return every, replace(
        table,
        paths=every.paths,
        targets=targets,
        groups=table.groups + groups,
        pseudo=len(paths),
        is_val=None,
        fold_of=None,
    )


def describe(options: argparse.Namespace, part: runs.Predictions, classes: list[str], most: int = 20) -> str:
    """One line: how many images of each class."""
    counts = np.bincount(part.targets, minlength=len(classes))
    names = [f"{name} {n}" for name, n in zip(classes, counts, strict=True)]
    more = f" and {len(names) - most} more classes" if len(names) > most else ""
    return (
        f"training images with {options.pseudo_labels} pseudo-labels of {options.pseudo}: {len(part.paths)} "
        f"({', '.join(names[:most])}{more})"
    )

"""Predict test images with trained runs, and write a submission file.

    python predict.py runs/NAME --data TEST --out submission.csv
    python predict.py runs/five --data TEST --tta flip
    python predict.py runs/a runs/b --data TEST --answers labels.csv

RUN_OR_CHECKPOINT is one of:
    - a checkpoint file
    - a run folder: its best_f1.pt is used
    - a run with several folds: the best_f1.pt of each fold is used
Probabilities are averaged over the views of --tta, then over the folds, then
over the arguments.

TEST is a folder of images, or a competition folder with a template:
sample_submission.csv, info.csv or test.csv. The submission keeps the rows, the
order, the columns and the header of the template.
"""

from __future__ import annotations

import argparse
import codecs
import csv
import functools
import io
import math
import os
import re
import shlex
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import chain, compress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

import augment
import checkpoint
import cli
import data
import losses
import metrics
import models
import pixels
import runs
import shares
from ranks import Ranks
from runs import BadInput

TEMPLATES = ("sample_submission.csv", "info.csv", "test.csv")

blaming = functools.partial(cli.blaming, program="predict.py")


# ---------------------------------------------------------------------------------------------------------------------
# Checkpoints
# ---------------------------------------------------------------------------------------------------------------------


@dataclass
class Predictor:
    """A network loaded from a checkpoint, and how its input images are prepared."""

    path: Path
    net: nn.Module
    saved: dict[str, Any]  # the other ENTRIES, and all_classes, all_labels: before --only and --merge

    @property
    def shape(self) -> tuple[int, int, str]:
        """(H, W, fit) of the input images."""
        return (*models.sides(self.saved["size"]), self.saved["fit"])

    @torch.no_grad()
    def logits(self, images: Tensor) -> Tensor:
        """Normalised float images (N, 3, H, W) to float32 logits (N, C). Mixed precision on CUDA."""
        with torch.autocast(images.device.type, enabled=images.device.type == "cuda"):
            return self.net(images).float()


def checkpoints_of(argument: str) -> list[Path]:
    """The checkpoint files of one RUN_OR_CHECKPOINT: the file itself, the run's best_f1.pt, or one per fold.

    Raises: BadInput if there is none.
    """
    path = Path(argument)
    if path.is_file():
        return [path]
    if (path / "best_f1.pt").is_file():
        return [path / "best_f1.pt"]
    files = {file.parent.name.removeprefix("fold"): file for file in path.glob("fold*/best_f1.pt")}
    folds = [files[number] for number in sorted(filter(str.isdecimal, files), key=int)]
    if not folds:
        raise BadInput(f"{argument} is not a checkpoint file, and not a run folder with a best_f1.pt")
    if not (path / "folds.csv").is_file():
        print(cli.printable(f"note: the run {argument} is not finished: folds used: {len(folds)}"), file=sys.stderr)
    return folds


def _are_texts(value: Any, count: int | None = None) -> bool:
    is_list = isinstance(value, list) and len(value) == (count or len(value)) > 0
    return is_list and all(isinstance(text, str) for text in value)


def _are_numbers(value: Any, count: int, least: float, most: float, kind: Any = (int, float)) -> bool:
    """False for NaN too."""
    is_list = isinstance(value, (list, tuple)) and len(value) == count
    return is_list and all(isinstance(number, kind) and least <= number <= most for number in value)


def _are_tensors(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(k, str) and isinstance(v, Tensor) for k, v in value.items())


# the entries of a checkpoint that prediction needs: (what is valid, test of the value and the whole checkpoint)
ENTRIES: dict[str, tuple[str, Callable[[Any, dict[str, Any]], bool]]] = {
    "classes": ("a list of names", lambda value, saved: _are_texts(value)),
    "labels": ("one text per class", lambda value, saved: _are_texts(value, len(saved["classes"]))),
    "all_classes": ("a list of names", lambda value, saved: _are_texts(value)),  # before train.py --only and --merge
    "all_labels": ("one text per class", lambda value, saved: _are_texts(value, len(saved["all_classes"]))),
    "model": ("a dict of tensors", lambda value, saved: _are_tensors(value)),
    "model_name": ("a name in one line", lambda value, saved: isinstance(value, str) and value.isprintable()),
    "size": (
        "one side, or height and width, in pixels, from 8 to 10000",
        lambda value, saved: _are_numbers([value, value] if isinstance(value, int) else value, 2, 8, 10_000, int),
    ),
    "head": (
        f"one of {', '.join(models.HEADS)}",
        lambda value, saved: isinstance(value, str) and value in models.HEADS,
    ),
    "loss": ("a text", lambda value, saved: isinstance(value, str)),
    "fit": (f"one of {', '.join(pixels.FITS)}", lambda value, saved: isinstance(value, str) and value in pixels.FITS),
    "mean": ("3 finite numbers", lambda value, saved: _are_numbers(value, 3, -1e6, 1e6)),
    "std": ("3 finite numbers above 0", lambda value, saved: _are_numbers(value, 3, 1e-6, 1e6)),
    "train_counts": (
        "one number of images per class",
        lambda value, saved: _are_numbers(value, len(saved["classes"]), 0, 2**53, int),
    ),
    "factors": (
        "names with their values, of which factor_ids gives each class one",
        lambda value, saved: runs.are_factors(value, saved.get("factor_ids"), len(saved["classes"])),
    ),
}


def load_entries(path: Path) -> dict[str, Any]:
    """The contents of a checkpoint, which may come from a stranger.

    Raises: BadInput if the file is not a checkpoint of train.py: it lacks one of ENTRIES, or a value is not valid.
    """
    saved = checkpoint.load(path)
    for name in ("classes", "labels"):  # an older version did not store all_classes and all_labels
        saved.setdefault(f"all_{name}", saved.get(name))
    saved = {"head": "linear", "loss": ""} | saved
    if "factors" not in saved and isinstance(saved.get("classes"), list):
        saved |= {"factors": {}, "factor_ids": [[] for _ in saved["classes"]]}
    missing = {name for name in ENTRIES if saved.get(name) is None}
    if missing:
        missing -= {"all_classes", "all_labels"}
        raise BadInput(f"{path} is not a checkpoint for prediction: it has no {', '.join(sorted(missing))}")
    for name, (valid, is_valid) in ENTRIES.items():
        if not is_valid(saved[name], saved):
            raise BadInput(f"{path} cannot be used: its {name} must be {valid}. Use a different checkpoint")
    return saved


def load_predictor(path: Path, device: torch.device, functions: Sequence[str] = ()) -> Predictor:
    """The network of a checkpoint, on the device and in eval mode.

    functions: the FILE.py:FUNCTION that the user typed. A checkpoint cannot execute a different file.
    Raises: BadInput if the file is not a checkpoint of train.py, its weights do not fit its network or are not finite,
        or its network is a function that the user did not type.
    """
    saved = load_entries(path)
    name = saved["model_name"]
    if models.is_function(name) and name not in functions:
        raise BadInput(
            f"{path}: its network is a function in a file, which is not executed unless you name it. "
            f"If you trust the file, add: --model {shlex.quote(name)}"
        )
    saved["size"] = saved["size"] if isinstance(saved["size"], int) else tuple(saved["size"])
    net = models.build_model(name, len(saved["classes"]), saved["size"], saved["head"], saved["factor_ids"])
    try:
        net.load_state_dict(saved.pop("model"))
    except RuntimeError as error:
        raise BadInput(f"{path} does not fit {name}: {str(error).splitlines()[-1].strip()}") from error
    bad = [key for key, weight in net.named_parameters() if not weight.isfinite().all()]
    bad += [key for key, buffer in net.named_buffers() if buffer.isnan().any()]
    if bad:
        raise BadInput(f"{path} cannot be used: it has NaN or infinite weights in {bad[0]}. Use a different checkpoint")
    return Predictor(path, net.to(device, memory_format=torch.channels_last).eval(), saved)


def load_all(arguments: list[str], device: torch.device, functions: Sequence[str] = ()) -> list[list[Predictor]]:
    """One list of networks per argument. Raises: BadInput if they do not all have the same classes."""
    groups = [[load_predictor(path, device, functions) for path in checkpoints_of(argument)] for argument in arguments]
    first = groups[0][0]
    for predictor in (p for group in groups for p in group):
        if predictor.saved["classes"] != first.saved["classes"]:
            classes, expected = ([*map(str, p.saved["classes"])] for p in (predictor, first))
            raise BadInput(
                f"{predictor.path} and {first.path} have different classes: {len(classes)} classes "
                f"({', '.join(classes[:5])} ...) and {len(expected)} classes ({', '.join(expected[:5])} ...)"
            )
    return groups


def load_child(
    argument: str | None, when: str | None, saved: dict[str, Any], device: torch.device, functions: Sequence[str]
) -> tuple[list[list[Predictor]], dict[str, Any]]:
    """The networks of --refine, and `saved` with the classes after it. Without --refine: none, and `saved`."""
    if not argument:
        return [], saved
    with blaming("--refine"):
        children = load_all([argument], device, functions)
    with blaming("--when"):
        *_, final = refined_classes(saved, children[0][0].saved, when)
    return children, final


def check_classes(saved: dict[str, Any], force: bool) -> None:
    """BadInput if a submission would not have the classes of the data, because of train.py --merge or --only.

    With `force` it is only a warning.
    """
    labels, every = saved["labels"], saved["all_labels"]
    merged = [label for label in labels if label not in every]
    missing = [label for label in every if label not in labels]
    if merged:
        problem = f"{merged[0]!r} is a merged class (train.py --merge), which is not a valid label of a submission"
        advice = "add --refine CHILD --when CLASSES, or --force to write it"
    elif missing:
        names = ", ".join(map(repr, missing[:5])) + (", ..." if len(missing) > 5 else "")
        problem = (
            f"the model has only {len(labels)} of {len(every)} classes (train.py --only), and never predicts {names}"
        )
        advice = "use it with --refine, or add --force"
    else:
        return
    if not force:
        raise BadInput(f"{problem}: {advice}")
    print(f"warning: {problem}", file=sys.stderr)


# ---------------------------------------------------------------------------------------------------------------------
# Test images and the template
# ---------------------------------------------------------------------------------------------------------------------


@dataclass
class Template:
    """The rows of the submission, unchanged, and the column to fill in."""

    path: Path | None
    columns: list[str]
    rows: list[dict[str, str]]
    label: str  # the column to fill in
    images: list[str]  # image file of each row
    image: str  # the column that names the image
    start: str = ""  # a byte order mark (BOM), if the file has one
    line_end: str = "\n"
    separator: str = ","


def read_template(folder: Path, template: str | None) -> Template:
    """The rows of the template CSV and their images. Without a template: one row per image, columns ID and target.

    Raises: BadInput that names the file or folder, if
        - the folder or the template does not exist, or the folder has no image
        - a row has no image, or two rows have the same image
        - an image has no row, in a folder where other images have one
    """
    if not folder.is_dir():
        raise BadInput(f"{folder} is not a folder")
    path = find_template(folder, template)
    if path is None:
        images, _ = data.image_files(folder)
        if not images:
            raise BadInput(f"{folder} has no images ({', '.join(sorted(data.IMAGE_EXTENSIONS))})")
        rows = [{"ID": Path(image).relative_to(folder).as_posix(), "target": ""} for image in images]
        return Template(None, ["ID", "target"], rows, "target", images, "ID")
    sheet = data.read_sheet(path)
    rows = sheet.rows
    names, columns = list(rows[0]), data.columns_of(path, rows)
    known = [columns[name] for name in data.COLUMNS["image"] if name in columns]
    roots = [folder, folder / "test", folder / "images", folder / "eval" / "images", folder / "test" / "images"]
    column, root = data.find_images(path, rows, known, roots)
    images = images_of(path, root, [row[column] for row in rows])
    content = path.read_bytes()
    start = "\ufeff" if content.startswith(codecs.BOM_UTF8) else ""
    form = start, "\r\n" if b"\r" in content.partition(b"\n")[0] else "\n", sheet.separator
    labels = [columns[name] for name in data.COLUMNS["label"] if name in columns]
    if labels or (names[-1] != column and path.name != "test.csv"):
        return Template(path, names, rows, [*labels, names[-1]][0], images, column, *form)
    rows = [{"ID": str(i)} | row | {"target": ""} for i, row in enumerate(rows)]  # a test.csv has no label column
    return Template(path, list(rows[0]), rows, "target", images, column, *form)


def check_one_column(template: Template, labels: list[str]) -> None:
    """Raises BadInput for a template with one column per class (one-hot)."""
    columns = [name for name in template.columns if name.strip() in labels]
    if len(columns) > 1:
        raise BadInput(
            f"{template.path} has one column per class ({', '.join(columns[:5])}), but predict.py fills one column: "
            "use a template with one label column, and --probs FILE.npz for the probabilities"
        )


def columns_to_fill(template: Template, saved: dict[str, Any], labels: list[str]) -> dict[str, dict[str, str]]:
    """The columns of the template to fill in: for each, from the label of a class to the text of the column.

    It is the template's label column, with one of `labels`. If the template has no column with a known name for labels,
    but one for each factor of the classes, it is these columns, with the values of the class.
    """
    alone = {template.label: {label: label for label in labels}}
    columns = data.columns_of(template.path, template.rows) if template.path else {}
    factors = data.columns_of(template.path, [saved["factors"]]) if saved["factors"] else {}
    if not factors or not factors.keys() <= columns.keys() or not columns.keys().isdisjoint(data.COLUMNS["label"]):
        return alone
    values, ids = saved["factors"], zip(*saved["factor_ids"], strict=True)
    return {
        columns[name]: {label: values[factor][i] for label, i in zip(saved["labels"], of_class, strict=True)}
        for (name, factor), of_class in zip(factors.items(), ids, strict=True)
    }


def find_template(folder: Path, template: str | None) -> Path | None:
    """The template that the user named, or the first of TEMPLATES in the folder, its eval folder or its parent."""
    if template:
        if not Path(template).is_file():
            raise BadInput(f"{template} is not a file")
        return Path(template)
    files = [place / name for name in TEMPLATES for place in (folder, folder / "eval", folder.parent)]
    return next((file for file in files if file.is_file()), None)


def images_of(path: Path, root: Path, names: list[str]) -> list[str]:
    """The image file of each row of the template `path`; `names` are relative to root. Raises: see read_template."""
    images = [data.find_file(root, name) for name in names]
    missing = [name for name, image in zip(names, images, strict=True) if image is None]
    if missing:
        raise BadInput(f"{path}: rows without an image file in {root}: {len(missing)}, such as {missing[0]}")
    if len(set(images)) < len(images):
        first = next(image for i, image in enumerate(images) if image in images[:i])
        raise BadInput(f"{path}: images that are listed twice: {len(images) - len(set(images))}, such as {first}")
    found = {
        str(file)
        for folder in {Path(image).parent for image in images}
        for file in folder.iterdir()
        if file.suffix.lower() in data.IMAGE_EXTENSIONS and not file.name.startswith(".")
    }
    extra = sorted(found - set(images))
    if extra:
        raise BadInput(f"{path}: images in the same folders without a row: {len(extra)}, such as {extra[0]}")
    return images


def warn_of_labels(template: Template, labels: list[str]) -> None:
    """Warns of labels that are not in the template's column, or not in the meta.csv beside it; notes formulas.

    A template's column with one value has placeholders: it is enough if this value is one of the labels.
    """
    known: dict[str, set[str]] = {}
    if template.path:
        filled = {row[template.label].strip() for row in template.rows} - {""}
        is_placeholder = len(filled) == 1 and filled <= set(labels)
        known[f"column {template.label} of {template.path}"] = set() if is_placeholder else filled
        meta = template.path.with_name("meta.csv")
        rows = data.read_rows(meta) if meta.is_file() else []
        if rows and {"target", "class_name"} <= set(rows[0]):
            columns = [template.label] if template.label in rows[0] else ["target", "class_name"]
            known[str(meta)] = {row[column].strip() for row in rows for column in columns}
    for where, names in known.items():
        unknown = [label for label in labels if label not in names]
        if names and unknown:
            print(
                f"warning: labels of the model that are not in {where}: {len(unknown)} of {len(labels)}, such as "
                f"{unknown[0]!r}; it has {', '.join(map(repr, sorted(names)[:5]))}",
                file=sys.stderr,
            )
    formulas = [label for label in labels if re.match(r"[=+@-](?![\d.]+$)", label)]
    if formulas:
        print(
            f"note: labels that a spreadsheet takes for formulas: {len(formulas)}, such as {formulas[0]!r}; "
            "they are written as they are",
            file=sys.stderr,
        )


def checked_columns(template: Template, saved: dict[str, Any], labels: list[str]) -> dict[str, dict[str, str]]:
    """The columns to fill in, after the checks of the template."""
    check_one_column(template, saved["labels"])
    columns = columns_to_fill(template, saved, labels)
    for column, text_of in columns.items():
        texts = labels if len(columns) == 1 else list(dict.fromkeys(text_of.values()))
        warn_of_labels(replace(template, label=column), texts)
    return columns


def write_submission(path: Path, template: Template, columns: dict[str, dict[str, str]], labels: list[str]) -> None:
    """Writes the template's rows with these labels, see columns_to_fill. The file is complete or not written at all."""
    texts = ({column: text_of[label] for column, text_of in columns.items()} for label in labels)
    filled = (row | text for row, text in zip(template.rows, texts, strict=True))
    rows = ([row[column] for column in template.columns] for row in filled)
    text = io.StringIO()
    csv.writer(text, lineterminator=template.line_end, delimiter=template.separator).writerows(
        [template.columns, *rows]
    )
    checkpoint.write_text(path, template.start + text.getvalue())


def check_output(path: str | None) -> None:
    """OSError if this file cannot be written, e.g. because its name is too long. Writes nothing."""
    if path:
        with suppress(FileNotFoundError):
            os.lstat(path)
        with suppress(NotWritten), checkpoint.replacing(path):
            raise NotWritten


def check_outputs(out: str, probs: str | None) -> None:
    """Refuses a file that cannot be written, in one line that names its flag."""
    for flag, file in (("--out", out), ("--probs", probs)):
        with blaming(flag):
            check_output(file)


class NotWritten(Exception):
    pass


# ---------------------------------------------------------------------------------------------------------------------
# Probabilities
# ---------------------------------------------------------------------------------------------------------------------


def decoded(
    paths: list[str], shapes: set[tuple[int, int, str]], batch_size: int, threads: int | None = None
) -> Iterator[dict[tuple, Tensor]]:
    """Batches of decoded images: for each (H, W, fit) in shapes a uint8 tensor (n, 3, H, W).

    Threads decode the next batch while this one is used, so two batches are in memory.

    Raises: BadInput that lists the images of a batch that cannot be decoded.
    """

    def decode(path: str) -> dict[tuple, np.ndarray] | str:
        try:
            image = pixels.decode_file(path)
            return {shape: pixels.fitted(image, *shape) for shape in shapes}
        except Exception as error:  # decoders raise many types of exceptions
            return f"{path}: {pixels.describe_error(error)}"

    with ThreadPoolExecutor(threads) as pool:
        batches = [paths[start : start + batch_size] for start in range(0, len(paths), batch_size)]
        pending = [pool.submit(decode, path) for path in batches[0]] if batches else []
        for next_batch in [*batches[1:], []] if batches else []:
            current, pending = pending, [pool.submit(decode, path) for path in next_batch]
            results = [future.result() for future in current]
            bad = [result for result in results if isinstance(result, str)]
            if bad:
                count = f"{len(bad)} of {len(results)}"
                raise BadInput(f"{count} images in one batch cannot be decoded:" + pixels.listed(bad))
            yield {
                shape: torch.from_numpy(np.stack([result[shape] for result in results])).permute(0, 3, 1, 2)
                for shape in shapes
            }


def predict_probs(
    groups: list[list[Predictor]],
    tta: str,
    ranks: Ranks,
    batch_size: int,
    threads: int | None,
    paths: list[str],
) -> np.ndarray:
    """float32 (A, N, C): the probabilities of each of A groups, averaged over its networks and the views `tta`.

    Each of the ranks (processes, usually one) decodes and predicts its part of the images.
    """
    C, device, mine = len(groups[0][0].saved["classes"]), ranks.device, ranks.part(len(paths))
    paths = paths[mine.start : mine.stop]
    probs, done = np.zeros((len(groups), len(paths), C), np.float32), 0
    shapes = {predictor.shape for group in groups for predictor in group}
    with tqdm(total=len(paths), desc="predict", unit="img", disable=None if ranks.is_first else True) as bar:
        for batch in decoded(paths, shapes, batch_size, threads):
            n = len(next(iter(batch.values())))
            for g, group in enumerate(groups):
                total = torch.zeros(n, C, device=device)
                for predictor in group:
                    images, saved = batch[predictor.shape].to(device), predictor.saved
                    views = augment.views(augment.normalize(images, saved["mean"], saved["std"]), tta)
                    total += sum(predictor.logits(view).softmax(1) for view in views) / len(views)
                probs[g, done : done + n] = (total / len(group)).cpu().numpy()
            done += n
            bar.update(n)
    return ranks.gather(torch.from_numpy(probs).transpose(0, 1)).transpose(0, 1).cpu().numpy()


# ---------------------------------------------------------------------------------------------------------------------
# Changes that are measured on validation before they are used
# ---------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Judge:
    """Scores of validation images: as they are, or as they would be in a test set with other class shares."""

    shares: np.ndarray | None = None  # (C,) of the test set (--test-shares); None: the validation images as they are
    draws: np.ndarray | None = None  # (B, C), bootstrap of `shares` that are estimated
    images: int = 0  # in the test set

    @property
    def about(self) -> str:
        return "" if self.shares is None else " weighted by --test-shares"

    def weights(self, targets: np.ndarray) -> np.ndarray:
        """(N,) of the validation images with these targets."""
        return np.ones(len(targets)) if self.shares is None else shares.weights_for(targets, self.shares)

    def macro_f1(self, scores: np.ndarray, targets: np.ndarray) -> float:
        return macro_f1(scores, targets, self.weights(targets))

    def interval(self, scores: np.ndarray, targets: np.ndarray) -> tuple[float, float]:
        """(low, high): 95 % bootstrap interval of the macro F1; with shares, of that of the test set."""
        matrix = metrics.ConfusionMatrix(scores.shape[1]).update(scores.argmax(1), targets)
        if self.shares is None:
            return matrix.f1_interval()
        given = self.shares if self.draws is None else self.draws
        drawn = f1_of(shares.promised_counts(matrix.matrix.numpy(), given, self.images))
        centred = self.macro_f1(scores, targets) + drawn - drawn.mean()
        low, high = np.quantile(centred.clip(0, 1), [0.025, 0.975])
        return float(low), float(high)

    def after(self, mixing: np.ndarray) -> Judge:
        """For other classes, whose shares are mixing (D, C) @ shares (C,)."""
        drawn = None if self.draws is None else self.draws @ mixing.T
        return self if self.shares is None else replace(self, shares=mixing @ self.shares, draws=drawn)


AS_THEY_ARE = Judge()


def f1_of(matrix: np.ndarray) -> np.ndarray:
    """(...) macro F1 of confusion matrices (..., C, C) of any kind of counts, [target, prediction]."""
    tp = np.diagonal(matrix, axis1=-2, axis2=-1)
    return metrics.score_from_counts(tp.copy(), matrix.sum(-2), matrix.sum(-1)).numpy()


def macro_f1(scores: np.ndarray, targets: np.ndarray, weights: np.ndarray | None = None) -> float:
    """Of scores (N, C) and targets (N,), by default with equal weights (N,)."""
    C = scores.shape[1]
    counts = np.bincount(targets * C + scores.argmax(1), weights, C * C)
    return float(f1_of(counts.reshape(C, C)))


def counted_once(parts: list[runs.Predictions]) -> runs.Predictions:
    """The images of all parts, sorted by path. An image of several parts has the mean of their probabilities."""
    found = np.concatenate([part.paths for part in parts])
    paths, first, number, count = np.unique(found, return_index=True, return_inverse=True, return_counts=True)
    targets, probs = (np.concatenate([getattr(part, key) for part in parts]) for key in ("targets", "probs"))
    total = np.zeros((len(paths), probs.shape[1]))
    np.add.at(total, number, probs)
    return runs.Predictions(paths, targets[first], (total / count[:, None]).astype(np.float32))


def validation_of(argument: str) -> runs.Predictions:
    """Predictions for the validation images of one RUN_OR_CHECKPOINT, sorted by path; with several folds, of all folds.

    Raises: BadInput for a checkpoint other than best_f1.pt, or without its run folder.
    """
    parts = []
    for path in checkpoints_of(argument):
        if path.name != "best_f1.pt":
            raise BadInput(f"{path}: validation predictions are stored only for best_f1.pt: use it")
        file = path.with_name("val_probs.npz")
        if not file.is_file():
            raise BadInput(f"{file} does not exist: validation predictions are read from the run folder")
        parts.append(runs.read_predictions(file))
    return counted_once(parts)


def adjust_prior(probs: np.ndarray, train_counts: list[int], tau: float) -> np.ndarray:
    """softmax(log p - tau log prior): the post-hoc logit adjustment of Menon et al. 2020 (arXiv:2007.07314).

    float32 (N, C) of probs (N, C). The prior is the share of each class in the training images.
    """
    prior = np.maximum(np.array(train_counts, dtype=np.float64), 1)
    return shares.calibrated(probs, 1.0, -tau * np.log(prior / prior.sum())).astype(np.float32)


def fit_tau(log_p: np.ndarray, log_prior: np.ndarray, targets: np.ndarray, weights: np.ndarray) -> float:
    """The tau from -1 to 2 with the best weighted macro F1 of argmax(log_p - tau log_prior); on a tie, closest to 0."""
    candidates = sorted(np.linspace(-1, 2, 61).round(2), key=abs)
    return float(max(candidates, key=lambda tau: macro_f1(log_p - tau * log_prior, targets, weights)))


def choose_tau(
    probs: np.ndarray, targets: np.ndarray, train_counts: list[int], judge: Judge, seed: int = 0
) -> tuple[float, np.ndarray, np.ndarray]:
    """--prior-adjust auto: the mean of the two tau that are fitted on each half of the images.

    Returns: it, and the probabilities (N, C) adjusted with the tau that was fitted on the other half, to judge by, and
        on the same half, to fit later changes on.
    """
    prior = np.maximum(np.array(train_counts, dtype=np.float64), 1)
    log_p, half, weights = np.log(probs.astype(np.float64).clip(1e-30)), halves(targets, seed), judge.weights(targets)
    fits = [fit_tau(log_p[part], np.log(prior / prior.sum()), targets[part], weights[part]) for part in (half, ~half)]
    with_first, with_second = (adjust_prior(probs, train_counts, tau) for tau in fits)
    is_first = half[:, None]
    print(f"--prior-adjust auto: tau {fits[0]:g} and {fits[1]:g}, fitted on each half of the validation images")
    return (
        float(np.mean(fits)),
        np.where(is_first, with_second, with_first),
        np.where(is_first, with_first, with_second),
    )


def try_first(
    name: str,
    before: np.ndarray,
    after: np.ndarray,
    targets: np.ndarray,
    force: bool,
    why: str = "--force",
    judge: Judge = AS_THEY_ARE,
) -> bool:
    """Whether to use a change: if it improves macro F1 on the validation images, or with `force`. Prints one line."""
    old, new = judge.macro_f1(before, targets), judge.macro_f1(after, targets)
    use = new > old or force
    verdict = "used" if new > old else f"does not help, used because of {why}" if force else "does not help, not used"
    print(f"{name}: macro F1 on {len(targets):,} validation images{judge.about} {old:.4f} -> {new:.4f}, {verdict}")
    return use


def choose_tta(
    tta: str,
    groups: list[list[Predictor]],
    ranks: Ranks,
    batch_size: int,
    threads: int | None,
    force: bool,
    common: runs.Predictions | None = None,
    judge: Judge = AS_THEY_ARE,
) -> tuple[str, runs.Predictions | None]:
    """The views to use: `tta` if they improve macro F1, else "none". Each network predicts its own validation images.

    Returns: the views, and `common` (see common_validation) with them, if they are used and measured.
    Raises: BadInput if a network's images are not square and the views need it, or validation predictions are missing.
    """
    predictors = [predictor for group in groups for predictor in group]
    for predictor in predictors:
        H, W, _ = predictor.shape
        if tta in ("rot4", "d4") and H != W:
            raise BadInput(f"{tta} needs square images, but {predictor.path} has {H} x {W}: choose flip or crops")
    if tta == "none":
        return "none", common
    if force:
        print(f"--tta {tta}: not measured, used because of --force")
        return tta, common
    before = [validation_of(str(predictor.path)) for predictor in predictors]  # of the runs themselves, without views
    after = []
    for predictor, val in zip(predictors, before, strict=True):
        probs = predict_probs([[predictor]], tta, ranks, batch_size, threads, val.paths.tolist())[0]
        after.append(replace(val, probs=probs))
    old, new = counted_once(before), counted_once(after)
    use = try_first(f"--tta {tta}", old.probs, new.probs, old.targets, force=False, judge=judge)
    if not use or not common:
        return tta if use else "none", common
    starts = np.cumsum([0, *map(len, groups)])
    parts = [counted_once(after[start : start + len(group)]) for start, group in zip(starts, groups, strict=False)]
    return tta, replace(common, probs=np.stack([part.probs for part in parts]))


def common_validation(arguments: list[str]) -> runs.Predictions:
    """Predictions for the validation images, which must be the same for all A arguments: probs are (A, N, C).

    Raises: BadInput if they are not.
    """
    parts = [validation_of(argument) for argument in arguments]
    for argument, part in zip(arguments, parts, strict=True):
        if not np.array_equal(part.paths, parts[0].paths):
            raise BadInput(
                f"{argument} and {arguments[0]} have different validation images: train the runs with the same --data, "
                "--seed and split options (--folds, --val-frac, groups, --leaks), or leave this option out"
            )
        differ = np.flatnonzero(part.targets != parts[0].targets)
        if len(differ):
            text = (
                f"warning: {argument} and {arguments[0]} have different labels for {len(differ)} validation images, "
                f"such as {part.paths[differ[0]]} (train.py --fixes): all is measured with the labels of "
                f"{arguments[0]}. Name the run with the right labels first"
            )
            print(cli.printable(text), file=sys.stderr)
    return replace(parts[0], probs=np.stack([part.probs for part in parts]))


CHANGES = ("--blend", "--prior-adjust", "--tune-bias", "--refine", "--test-shares")


def measured_on(arguments: list[str], changes: tuple[Any, ...], force: bool) -> runs.Predictions | None:
    """common_validation, if one of CHANGES needs it: with `force`, only one that is fitted to validation images."""
    flags = [*compress(CHANGES, (change not in (None, False) for change in changes))]
    blend, prior_adjust, tune_bias, _, test_shares = changes
    is_fitted = blend or tune_bias or test_shares or prior_adjust == "auto"
    with blaming(", ".join(flags)):
        return common_validation(arguments) if is_fitted or (flags and not force) else None


def blend_weights(
    probs: np.ndarray, targets: np.ndarray, rounds: int = 200, weights: np.ndarray | None = None
) -> np.ndarray:
    """(A,) weights >= 0 with sum 1 that maximise the likelihood of targets (N,) under the mixture of probs (A, N, C).

    The problem is convex. Expectation maximisation never makes it worse: w_a <- mean of w_a p_a / sum_b w_b p_b.
    The mean is weighted with the images' `weights` (N,), by default equal.
    """
    p = probs[:, np.arange(len(targets)), targets].astype(np.float64).clip(1e-12)  # (A, N) of the true class
    w = np.full(len(p), 1 / len(p))
    for _ in range(rounds):
        parts = w[:, None] * p
        w = np.average(parts / parts.sum(0), axis=1, weights=weights)
    return w


def fit_bias(log_p: np.ndarray, targets: np.ndarray, sweeps: int = 3, weights: np.ndarray | None = None) -> np.ndarray:
    """(C,) biases b that improve the macro F1 of argmax(log_p + b), fitted one class at a time.

    Each bias is one of 41 values from -2 to 2; on a tie, the one closest to 0. log_p (N, C), targets (N,), and
    weights of the images (N,), by default equal.
    """
    C, weights = log_p.shape[1], np.ones(len(targets)) if weights is None else weights
    bias, support = np.zeros(C), np.bincount(targets, weights, C)
    candidates = np.array(sorted(np.linspace(-2, 2, 41), key=abs))
    tp, predicted = np.zeros((2, len(candidates) + 1, C))
    for _ in range(sweeps):
        for c in np.flatnonzero(support):
            scores = log_p + bias
            scores[:, c] = -np.inf
            best_other, other = scores.max(1), scores.argmax(1)
            for i, b in enumerate([*candidates, bias[c]]):
                preds = np.where(log_p[:, c] + b > best_other, c, other)
                tp[i] = np.bincount(targets[preds == targets], weights[preds == targets], C)
                predicted[i] = np.bincount(preds, weights, C)
            *tried, current = metrics.score_from_counts(tp, predicted, support).tolist()
            if max(tried) > current + 1e-9:
                bias[c] = candidates[int(np.argmax(tried))]
    return bias


def halves(targets: np.ndarray, seed: int) -> np.ndarray:
    """bool (N,): one half of the images, drawn so that every class is in both halves."""
    order = np.lexsort((np.random.default_rng(seed).random(len(targets)), targets))
    half = np.empty(len(targets), dtype=bool)
    half[order] = np.arange(len(targets)) % 2 == 0
    return half


def tune_bias(
    probs: np.ndarray,
    targets: np.ndarray,
    force: bool,
    seed: int = 0,
    judge: Judge = AS_THEY_ARE,
    own: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Biases (C,) to add to log-probabilities, for probs (N, C) and targets (N,); zeros if they do not help.

    Cross-fitted: biases are fitted on each half of the images and measured on the other half. So the printed macro F1
    is not too optimistic. The result is the mean of the two fits.

    own: (N, C), if probs are cross-fitted already (choose_tau): those of the fit on the same half. Biases are fitted on
    them, so that each half is judged by a tau and biases that were both fitted on the other half.

    Returns: the biases, and the probabilities (N, C) with the biases that were fitted on the other half.
    """
    log_p, half, weights = np.log(probs.astype(np.float64).clip(1e-12)), halves(targets, seed), judge.weights(targets)
    log_own = log_p if own is None else np.log(own.astype(np.float64).clip(1e-12))
    fits = [fit_bias(log_own[part], targets[part], weights=weights[part]) for part in (half, ~half)]
    bias = np.where(half[:, None], fits[1], fits[0])  # (N, C)
    for name, scores in (("without biases", log_p), ("with cross-fitted biases", log_p + bias)):
        low, high = judge.interval(scores, targets)
        value = judge.macro_f1(scores, targets)
        print(f"--tune-bias {name}: macro F1 {value:.4f} (95 % interval {low:.4f} to {high:.4f})")
    if not try_first("--tune-bias", log_p, log_p + bias, targets, force, judge=judge):
        return np.zeros(probs.shape[1]), probs
    return np.mean(fits, 0), add_bias(probs, bias)


def add_bias(probs: np.ndarray, bias: np.ndarray) -> np.ndarray:
    """float32 (N, C): softmax(log p + bias) of probs (N, C) and bias (C,) or (N, C)."""
    scaled = probs * np.exp(bias - bias.max(-1, keepdims=True))
    return (scaled / scaled.sum(1, keepdims=True)).astype(np.float32)


def weigh(
    arguments: list[str],
    probs: np.ndarray,
    common: runs.Predictions | None,
    groups: list[list[Predictor]],
    blend: bool = False,
    prior_adjust: float | str | None = None,
    tune: bool = False,
    force: bool = False,
    judge: Judge = AS_THEY_ARE,
) -> tuple[np.ndarray, runs.Predictions | None]:
    """Probabilities (A, N, C) of A arguments into one (N, C): mean or blend, then prior adjustment, then biases.

    Each change is measured on the validation images of `common`, before it is used. Only a prior adjustment with
    `force` does not need them.

    Returns: the probabilities, and those of the validation images, cross-fitted where a change was fitted to them.
    """
    weights = np.full(len(probs), 1 / len(probs))
    if blend:
        fitted = blend_weights(common.probs, common.targets, weights=judge.weights(common.targets))
        for argument, weight, own_probs in zip(arguments, fitted, common.probs, strict=True):
            alone = f"macro F1 alone {judge.macro_f1(own_probs, common.targets):.4f}"
            print(cli.printable(f"--blend: weight {weight:.3f}, {alone}, {argument}"))
        before, after = common.probs.mean(0), np.tensordot(fitted, common.probs, 1)
        use = try_first("--blend", before, after, common.targets, force, judge=judge)
        weights = fitted if use else weights
    probs = np.tensordot(weights, probs, 1)
    val, own = replace(common, probs=np.tensordot(weights, common.probs, 1)) if common else None, None
    if prior_adjust is not None:
        warn_of_prior(prior_adjust, chain.from_iterable(groups))
        counts, tau, use = groups[0][0].saved["train_counts"], prior_adjust, True
        if val:
            if tau == "auto":
                tau, after, own = choose_tau(val.probs, val.targets, counts, judge)
            else:
                after = adjust_prior(val.probs, counts, tau)
            name = (
                f"--prior-adjust {prior_adjust} (tau {tau:g})" if prior_adjust == "auto" else f"--prior-adjust {tau:g}"
            )
            use = try_first(name, val.probs, after, val.targets, force, judge=judge)
            val, own = (replace(val, probs=after), own) if use else (val, None)
        probs = adjust_prior(probs, counts, tau) if use else probs
    if tune:
        bias, after = tune_bias(val.probs, val.targets, force, judge=judge, own=own)
        probs, val = add_bias(probs, bias), replace(val, probs=after)
    return probs, val


def warn_of_prior(prior_adjust: float | str, predictors: Iterable[Predictor]) -> None:
    """A loss with a class prior has already done what --prior-adjust does; "auto" finds that out by itself."""
    corrected = [predictor for predictor in predictors if losses.corrects_prior(predictor.saved["loss"])]
    if prior_adjust not in (0, "auto") and corrected:
        first = corrected[0]
        warning = (
            f"warning: --prior-adjust {prior_adjust:g}: {first.path} was trained with the loss {first.saved['loss']}, "
            "which already corrected the class prior, so this corrects it twice"
        )
        print(cli.printable(warning), file=sys.stderr)


def refined_classes(
    saved: dict[str, Any], child: dict[str, Any], when: str
) -> tuple[list[int], list[int], dict[str, Any]]:
    """The parent's classes in the group and outside of it, and the parent's `saved` with the new classes and labels.

    Args:
        saved, child: the contents of the checkpoints of the parent, and of the run trained on the group alone (--only).
        when: the classes of the group, separated by commas: labels, or what train.py --only takes, names or numbers.
    Raises: BadInput if `when` is not the child's classes, or the parent does not have them.
    """
    if {word.strip() for word in when.split(",")} != set(child["labels"]):
        every = data.ImageTable([], np.zeros(0, np.int64), [], child["all_classes"], "", labels=child["all_labels"])
        if data.only(every, when).labels != child["labels"]:
            raise BadInput(f"{when!r} are not the classes of the --refine run, which are {', '.join(child['labels'])}")
    labels, merged = saved["labels"], "+".join(child["labels"])
    if merged in labels:
        group = [labels.index(merged)]
    elif set(child["labels"]) <= set(labels):
        group = [labels.index(label) for label in child["labels"]]
    else:
        known = pixels.listed(labels)
        raise BadInput(f"RUN_OR_CHECKPOINT has neither a merged class {merged!r} nor all of {when}; it has:{known}")
    rest = [c for c in range(len(labels)) if c not in group]
    names = {key: [saved[key][c] for c in rest] + list(child[key]) for key in ("classes", "labels")}
    return group, rest, saved | names


def refine(
    probs: np.ndarray, saved: dict[str, Any], child_probs: np.ndarray, child: dict[str, Any], when: str
) -> tuple[np.ndarray, dict[str, Any]]:
    """The parent's probability of a group of classes, divided among them by the child.

    p(c) = p_parent(group) p_child(c). The parent has the group as one class (--merge) or as single classes.

    Args:
        probs, child_probs: probabilities (N, C) of the parent, and of the child for its own classes.
        saved, child, when: see refined_classes.
    Returns: the new probabilities, and `saved` with the new classes and labels.
    """
    group, rest, new_saved = refined_classes(saved, child, when)
    within = probs[:, group].sum(1, keepdims=True) * child_probs
    return np.concatenate([probs[:, rest], within], 1), new_saved


def choose_refine(
    val: runs.Predictions | None,
    saved: dict[str, Any],
    child_argument: str,
    child: dict[str, Any],
    when: str,
    predict_child: Callable[[list[str]], np.ndarray],
    force: bool,
    judge: Judge = AS_THEY_ARE,
) -> tuple[bool, runs.Predictions | None]:
    """Whether to use `refine`: if it improves macro F1 on the parent's validation images, or the parent needs it.

    It is compared with the parent's single classes, or if the parent has merged them, with the share of each class in
    the child's training images. Images of the group count only if they are validation images of the child too.

    Args:
        val: the parent's predictions for its validation images.
        predict_child: image files to the child's probabilities (1, N, C), for images of other classes.
        judge: for the new classes.
    Returns: it, and if it was measured, the refined predictions for the validation images.
    Raises: BadInput if no image of the group is a validation image of both.
    """
    if force:
        print("--refine: not measured, used because of --force")
        return True, None
    own, (group, rest, _) = validation_of(child_argument), refined_classes(saved, child, when)
    row_of = {path: row for row, path in enumerate(own.paths.tolist())}
    row = np.array([row_of.get(path, -1) for path in val.paths.tolist()])
    inside = np.isin(val.targets, group)
    kept = ~inside | (row >= 0)
    if not (inside & kept).any():
        raise BadInput(
            f"no image of the classes {when} is a validation image of both runs, so it cannot be measured: train both "
            "with --folds, or use --force"
        )
    if not kept.all():
        print(f"--refine: validation images left out, because they may be training images of CHILD: {(~kept).sum():,}")
    probs, row, inside, targets = val.probs[kept], row[kept], inside[kept], val.targets[kept]
    child_probs = np.empty((len(probs), len(child["labels"])))
    child_probs[inside] = own.probs[row[inside]]
    child_probs[~inside] = predict_child(val.paths[kept][~inside].tolist())[0]
    place = np.zeros(len(saved["labels"]), np.int64)
    place[rest] = np.arange(len(rest))
    new_targets = np.where(inside, len(rest) + own.targets[row], place[targets])
    is_merged, counts = len(group) == 1, np.array(child["train_counts"])
    within = probs[:, group] * counts / counts.sum() if is_merged else probs[:, group]
    before, (after, _) = np.concatenate([probs[:, rest], within], 1), refine(probs, saved, child_probs, child, when)
    use = try_first("--refine", before, after, new_targets, is_merged, "the merged class", judge)
    return use, runs.Predictions(val.paths[kept], new_targets, after)


# ---------------------------------------------------------------------------------------------------------------------
# Class shares of the test set
# ---------------------------------------------------------------------------------------------------------------------

WEAK = 0.1  # shares.information below it is a warning


def stated_shares(test_shares: str | None, saved: dict[str, Any]) -> np.ndarray | None:
    """(C,) of --test-shares uniform or FILE, for the classes of `saved`; None for train and estimate.

    Raises: BadInput if the CSV is not one share for each class.
    """
    if test_shares in (None, "train", "estimate"):
        return None
    C, path = len(saved["classes"]), Path(test_shares)
    if test_shares == "uniform":
        return np.full(C, 1 / C)
    if not path.is_file():
        raise BadInput(f"{path} is not a file: choose train, uniform, estimate, or a CSV with the columns class, share")
    rows = data.read_rows(path)
    columns = data.columns_of(path, rows)
    if not {"class", "share"} <= set(columns):
        raise BadInput(f"{path} has the columns {', '.join(rows[0])}: it needs the columns class, share")
    texts = [(row[columns["class"]].strip(), row[columns["share"]].strip()) for row in rows]
    given = dict(texts)
    names = [*map(str, saved["labels" if set(given) <= set(saved["labels"]) else "classes"])]
    unknown, missing = [name for name in given if name not in names], [name for name in names if name not in given]
    if unknown:
        known = ", ".join(names[:20]) + (", ..." if len(names) > 20 else "")
        raise BadInput(f"{path}: {unknown[0]!r} is not a class of the model; it has {known}")
    if missing:
        raise BadInput(f"{path} has no share for the class {missing[0]!r}: add a row for each of the {C} classes")
    if len(given) < len(texts):
        raise BadInput(f"{path}: the same class is listed twice: give each of the {C} classes one row")
    wrong = [(name, text) for name, text in given.items() if not 0 <= as_number(text) <= 1]
    if wrong:
        raise BadInput(f"{path}: the share of {wrong[0][0]!r} must be a number from 0 to 1, got {wrong[0][1]!r}")
    found = np.array([as_number(given[name]) for name in names])
    if abs(found.sum() - 1) > 0.01:
        raise BadInput(f"{path}: the shares must have the sum 1, got {found.sum():.4g}")
    return found / found.sum()


def as_number(text: str) -> float:
    """NaN if it is not a number."""
    try:
        return float(text)
    except ValueError:
        return math.nan


def judges(
    test_shares: str | None,
    stated: np.ndarray | None,
    networks: list[Predictor],
    predict_networks: Callable[[], np.ndarray],
    common: runs.Predictions | None,
    saved: dict[str, Any],
    mixing: np.ndarray,
    images: int,
) -> tuple[Judge, Judge]:
    """How changes are judged on validation images: for the classes of `saved` (C), and for those after --refine (D).

    Args:
        stated: shares (D,), see stated_shares.
        predict_networks: the networks' probabilities (K, N, C) for the test images without views.
        common: predictions for the validation images, see common_validation.
        mixing: (D, C), see refined_mixing.
        images: the number of test images.
    """
    if not test_shares:
        return AS_THEY_ARE, AS_THEY_ARE
    counts, low_high = np.array(saved["train_counts"], dtype=np.float64), None
    if test_shares == "estimate":
        found, low_high, draws = estimated_shares(networks, predict_networks(), saved["classes"])
        judge = Judge(found, draws, images)
    else:
        judge = Judge(counts / counts.sum() if stated is None else (mixing > 0).T @ stated, None, images)
    last = judge.after(mixing) if stated is None else replace(judge, shares=stated)
    print_shares(test_shares, counts / counts.sum(), judge.shares, low_high, saved["classes"])
    unseen = [name for c, name in enumerate(saved["classes"]) if judge.shares[c] > 0 and c not in common.targets]
    if unseen:
        names = ", ".join(unseen[:5]) + (", ..." if len(unseen) > 5 else "")
        print(cli.printable(f"note: classes without a validation image, judged as F1 0: {len(unseen)} ({names})"))
    return judge, last


def print_shares(
    test_shares: str, train: np.ndarray, found: np.ndarray, low_high: list[np.ndarray] | None, classes: list[str]
) -> None:
    """One row per class, at most 20: those whose share differs most from training."""
    names, most = [cli.printable(str(name)) for name in classes], 20
    shown = sorted(np.argsort(-abs(found - train), kind="stable")[:most])
    width = max(len("class shares"), *(len(names[c]) for c in shown))
    title = f"--test-shares {test_shares}" + (" (95 % interval)" if low_high else "")
    print(cli.printable(f"{'class shares':{width}}  training  {title}"))
    for c in shown:
        interval = f" ({low_high[0][c]:.4f} to {low_high[1][c]:.4f})" if low_high else ""
        print(f"{names[c]:{width}}  {train[c]:8.4f}  {found[c]:.4f}{interval}")
    if len(classes) > most:
        print(f"and {len(classes) - most:,} more classes")


def estimated_shares(
    networks: list[Predictor], probs: np.ndarray, classes: list[str]
) -> tuple[np.ndarray, list[np.ndarray], np.ndarray]:
    """Shares (C,), their interval [low (C,), high (C,)] and draws (B, C), from the K networks' test probabilities.

    Each network is calibrated on its own validation images, and estimates by itself: an average of networks is not
    calibrated as one of them is. The shares are the mean; the draws are those of all networks, so that the interval
    contains the differences of the networks too. probs (K, N, C). Warns if the networks are too weak.
    """
    parts, vals, priors, targets = [], [], [], []
    for predictor, own_probs in zip(networks, probs, strict=True):
        val = validation_of(str(predictor.path))
        scale, bias, prior = shares.calibration(val.probs, val.targets)
        own_probs = shares.calibrated(own_probs, scale, bias)
        samples = max(20, 200 // len(networks))
        *_, draws = shares.shares_interval(own_probs, prior, samples, seed=len(parts))
        parts.append((shares.estimate_shares(own_probs, prior), draws))
        vals.append(shares.calibrated(val.probs, scale, bias))
        priors.append(prior)
        targets.append(val.targets)
    draws = np.concatenate([draws for _, draws in parts])
    told, direction = shares.information(np.concatenate(vals), np.mean(priors, 0), np.concatenate(targets))
    least = " and ".join(str(classes[c]) for c in sorted(np.argsort(-abs(direction))[:2]))
    text = f"information {told:.3f} (1: every image is told for sure), told apart least: {least}"
    print(cli.printable(f"--test-shares estimate: {text}"))
    if told < WEAK:
        print(
            f"warning: --test-shares estimate: the model is too weak to tell all shares (information below {WEAK}), so "
            "the true ones may be outside of the intervals. If you know them, use uniform or a FILE",
            file=sys.stderr,
        )
    return np.mean([found for found, _ in parts], 0), [*np.quantile(draws, [0.025, 0.975], axis=0)], draws


def refined_mixing(saved: dict[str, Any], children: list[list[Predictor]], when: str | None) -> np.ndarray:
    """(D, C) that turns shares of the C classes of `saved` into those of the D classes after --refine.

    The share of a merged class is divided as the child's training images are. Without a child it is the identity.
    """
    C = len(saved["classes"])
    if not children:
        return np.eye(C)
    child = children[0][0].saved
    group, rest, _ = refined_classes(saved, child, when)
    counts = np.maximum(np.array(child["train_counts"], dtype=np.float64), 1)
    inside = np.eye(C)[group]  # (1, C) for a merged class, else (D - len(rest), C)
    return np.concatenate([np.eye(C)[rest], inside if len(group) > 1 else counts[:, None] / counts.sum() * inside])


def promise(val: runs.Predictions | None, judge: Judge) -> dict[str, Any]:
    """Prints and returns the macro F1 to expect of the test images, with its interval."""
    if val is None:
        print("promised macro F1: not measured, because of --force")
        return {}
    value, (low, high) = judge.macro_f1(val.probs, val.targets), judge.interval(val.probs, val.targets)
    print(
        f"promised macro F1 on the {judge.images:,} test images: {value:.4f} (95 % interval {low:.4f} to {high:.4f}), "
        f"from {len(val.targets):,} validation images"
    )
    return {"promised_f1": value, "promised_interval": (low, high)}


# ---------------------------------------------------------------------------------------------------------------------
# Scoring with known labels
# ---------------------------------------------------------------------------------------------------------------------


def read_answers(
    answers: str, template: Template, saved: dict[str, Any], to_fill: dict[str, dict[str, str]]
) -> tuple[np.ndarray, np.ndarray]:
    """(K,) the template's rows that have a label in the CSV `answers`, and (K,) their class numbers.

    Rows are matched by the image column, or by another column of the template. If `to_fill` has a column per factor,
    `answers` can have these columns too.

    Raises: BadInput if they cannot be matched, or a label is not a class of the model.
    """
    answer_rows = data.read_rows(Path(answers))
    names = [template.image, *(name for name in template.columns if name not in (template.image, template.label))]
    key = next((name for name in names if name in answer_rows[0]), None)
    label = template.label if template.label in answer_rows[0] else list(answer_rows[0])[-1]
    if key is None or label == key:
        needed = f"it needs one of {', '.join(names)}, and a label column"
        raise BadInput(f"{answers} has the columns {', '.join(answer_rows[0])}: {needed}")
    truth = {row[key]: row[label].strip() for row in answer_rows}
    if len(to_fill) > 1:  # one column per factor
        columns = data.columns_of(Path(answers), answer_rows)
        columns = [columns.get(name) for name in data.columns_of(Path(answers), [to_fill])]
        if None not in columns:
            label = ", ".join(columns)
            label_of = {tuple(texts[name] for texts in to_fill.values()): name for name in saved["labels"]}
            values = {row[key]: tuple(row[column].strip() for column in columns) for row in answer_rows}
            truth = {name: label_of.get(texts, ", ".join(texts)) for name, texts in values.items()}
    if len(truth) < len(answer_rows) or len({row[key] for row in template.rows}) < len(template.rows):
        raise BadInput(f"{answers}: column {key} has the same value in several rows, so rows cannot be matched by it")
    classes = saved["labels"] if set(truth.values()) <= set(saved["labels"]) else saved["classes"]
    unknown = sorted(set(truth.values()) - set(classes))
    if unknown:
        known = pixels.listed([str(name) for name in classes])
        raise BadInput(f"{answers}: {unknown[0]!r} in column {label} is not a class of the model; it has:{known}")
    rows = [i for i, row in enumerate(template.rows) if row[key] in truth]
    if not rows:
        raise BadInput(f"{answers}: none of its rows is in the template (rows: {len(truth)}, matched by column {key})")
    return np.array(rows), np.array([classes.index(truth[template.rows[i][key]]) for i in rows])


def score(
    answers: str,
    template: Template,
    probs: np.ndarray,
    saved: dict[str, Any],
    to_fill: dict[str, dict[str, str]],
) -> dict[str, float]:
    """Prints macro F1, accuracy, the scores of each class, and the most confused classes. Returns the first two."""
    rows, targets = read_answers(answers, template, saved, to_fill)
    probs, predicted, classes = probs[rows], probs[rows].argmax(1), saved["classes"]
    matrix = metrics.ConfusionMatrix(len(classes)).update(predicted, targets)
    low, high = matrix.f1_interval()
    print(cli.printable(f"\n{len(rows):,} of {len(template.rows):,} images have a label in {answers}"))
    print(f"macro F1 {matrix.f1():.4f} (95 % interval {low:.4f} to {high:.4f}), accuracy {matrix.accuracy():.4f}")
    print(matrix.report([cli.printable(name) for name in classes]))
    print("most confused classes, true -> predicted, with the most confident error and its confidence:")
    for target, wrong, count in matrix.most_confused(5):
        errors = np.flatnonzero((targets == target) & (predicted == wrong))
        worst = errors[probs[errors, wrong].argmax()]
        file, confidence = template.images[rows[worst]], probs[worst, wrong]
        print(cli.printable(f"{count:6d}  {classes[target]} -> {classes[wrong]}  {file} ({confidence:.2f})"))
    return {"macro_f1": matrix.f1(), "accuracy": matrix.accuracy()}


# ---------------------------------------------------------------------------------------------------------------------
# python predict.py
# ---------------------------------------------------------------------------------------------------------------------


def number_or_auto(text: str) -> float | str:
    return text if text == "auto" else float(text)


def make_parser() -> argparse.ArgumentParser:
    usage = "python predict.py RUN_OR_CHECKPOINT ... --data TEST [OPTION ...]"
    parser = cli.Parser(prog="predict.py", usage=usage, description=__doc__)
    parser.add_argument("runs", nargs="+", metavar="RUN_OR_CHECKPOINT", help="run folders or checkpoint files")
    group = parser.add_argument_group("files")
    add = group.add_argument
    add("--data", required=True, metavar="TEST", help="folder of the test images, or a competition folder")
    add("--template", metavar="CSV", help="template of the submission (default: a template in or next to TEST)")
    add("--out", metavar="CSV", default="submission.csv", help="submission file to write (default %(default)s)")
    add("--probs", metavar="FILE.npz", help="also write the image paths, classes and probabilities (N, C)")
    add("--answers", metavar="CSV", help="CSV with the ground truth: print scores")

    about = "each is used only if it improves macro F1 on the validation images"
    group = parser.add_argument_group("improvements", about)
    add = group.add_argument
    add("--tta", choices=augment.VIEWS, default="none", help="test-time augmentation: average over these views")
    add("--blend", action="store_true", help="weighted mean of the runs, fitted by maximum likelihood")
    add(
        "--test-shares",
        metavar="SHARES",
        help="class shares of the test set, under which these options are measured: train, uniform, estimate (EM on "
        "its predictions), or a CSV with the columns class, share (default: the validation images as they are)",
    )
    add(
        "--prior-adjust",
        type=number_or_auto,
        metavar="TAU",
        help="post-hoc logit adjustment: subtract TAU x log(class prior); auto finds TAU, cross-fitted",
    )
    add("--tune-bias", action="store_true", help="add a bias to each class's log-probability, tuned for macro F1")
    add(
        "--force",
        action="store_true",
        help="use these options and --refine even if macro F1 does not improve, and a model without all classes",
    )

    group = parser.add_argument_group("two stages", "a second run decides between a few classes")
    add = group.add_argument
    add("--refine", metavar="CHILD", help="the second run, trained with --only CLASSES")
    add("--when", metavar="CLASSES", help="the classes that it decides between, as for --only: 3,7,14")

    group = parser.add_argument_group("run")
    add = group.add_argument
    add("--batch-size", type=int, default=64, metavar="N", help="images per batch (default %(default)s)")
    add("--threads", type=int, metavar="N", help="CPU threads (default: torch's choice)")
    add(
        "--model",
        action="append",
        default=[],
        metavar="FILE.py:FUNCTION",
        help="execute this file, for a checkpoint whose network is your own function; can be repeated",
    )
    device = "cuda" if torch.cuda.is_available() else "cpu"
    add("--device", default=device, help="cpu, cuda or cuda:NUMBER (default %(default)s)")
    return parser


def parse_options(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The checked options. A wrong value gives one line that names its flag, and exit code 2."""
    parser = make_parser()
    options = parser.parse_args(argv)
    for flag, value, most in (("--batch-size", options.batch_size, 2**31 - 1), ("--threads", options.threads, 1024)):
        if value is not None and not 1 <= value <= most:
            parser.error(f"{flag} must be from 1 to {most}, got {value}")
    for name in options.model:
        if not models.is_function(name):
            parser.error(f"--model must be FILE.py:FUNCTION, got {name!r}; checkpoints have all other networks' names")
    if bool(options.refine) != bool(options.when):
        parser.error("--refine CHILD and --when CLASSES must be given together")
    if options.blend and len(options.runs) < 2:
        parser.error("--blend needs at least two runs")
    if not Path(options.out).name:
        parser.error(f"--out must be a file, got {options.out!r}")
    for flag, file in (("--out", options.out), ("--probs", options.probs)):
        if file and os.path.isdir(file):  # False for a name that is too long
            parser.error(f"{flag} {file} is a folder: give a file name")
        if file and not os.path.isdir(Path(file).parent):
            parser.error(f"{flag} {file}: the folder {Path(file).parent} does not exist")
    if options.prior_adjust not in (None, "auto") and not math.isfinite(options.prior_adjust):
        parser.error(f"--prior-adjust must be a finite number, got {options.prior_adjust}; or auto")
    return options


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Predicts and writes the submission. In a notebook: predict.main(["runs/NAME", "--data", "TEST"])

    Returns: "out", the file; "rows", their number; with --answers also "macro_f1" and "accuracy".
    """
    with cli.quiet():
        options = parse_options(argv)
    cli.print_any_text()
    with cli.ranks_of(options.device, "predict.py") as ranks:
        return run(options, ranks)


def run(options: Any, ranks: Ranks) -> dict[str, Any]:
    """See `main`. ranks: the processes that share the images, usually one."""
    device = ranks.device
    if options.threads:
        torch.set_num_threads(options.threads)
    check_outputs(options.out, options.probs)
    data_flag = "--template" if options.template else "--data"
    with blaming(data_flag):
        template = read_template(Path(options.data), options.template)
    with blaming("RUN_OR_CHECKPOINT"):
        groups = load_all(options.runs, device, options.model)
        saved = groups[0][0].saved
    children, final = load_child(options.refine, options.when, saved, device, options.model)
    with blaming("RUN_OR_CHECKPOINT"):
        check_classes(final, options.force)
    with blaming("--test-shares"):
        stated, mixing = stated_shares(options.test_shares, final), refined_mixing(saved, children, options.when)
    with blaming(data_flag):
        to_fill = checked_columns(template, saved, final["labels"])
    every, work = [*chain.from_iterable(groups)], (ranks, options.batch_size, options.threads)
    print(f"{len(template.rows):,} images, {len(saved['classes'])} classes, checkpoints used: {len(every)}")
    changes = (options.blend, options.prior_adjust, options.tune_bias, options.refine, options.test_shares)
    common = measured_on(options.runs, changes, options.force)
    predict_networks = functools.partial(predict_probs, [[one] for one in every], "none", *work, template.images)
    with blaming("--data"):
        about = (every, predict_networks, common, saved, mixing, len(template.rows))
        judge, last_judge = judges(options.test_shares, stated, *about)
    with blaming("--tta"):
        tta, common = choose_tta(options.tta, groups, *work, options.force, common, judge)
    with blaming("--data"):
        probs = predict_probs(groups, tta, *work, template.images)  # (A, N, C)
    probs, val = weigh(options.runs, probs, common, groups, *changes[:3], options.force, judge)  # (N, C)
    if options.refine:
        predict_child = functools.partial(predict_probs, children, "none", *work)
        child = children[0][0].saved
        with blaming("--refine"):
            parts = (saved, options.refine, child, options.when, predict_child, options.force, last_judge)
            use, refined_val = choose_refine(val, *parts)
            if use:
                probs, saved = refine(probs, saved, predict_child(template.images)[0], child, options.when)
                val, judge = refined_val, last_judge
    labels = [saved["labels"][c] for c in probs.argmax(1)]
    if not ranks.is_first:
        return {}
    with blaming("--out"):
        write_submission(Path(options.out), template, to_fill, labels)
    result = {"out": options.out, "rows": len(template.rows)} | (promise(val, judge) if options.test_shares else {})
    print(cli.printable(f"{options.out}: {len(template.rows):,} rows, column {', '.join(to_fill)} filled in"))
    if options.probs:
        with blaming("--probs"), checkpoint.replacing(options.probs) as file:
            np.savez(file, paths=np.array(template.images), classes=np.array(saved["classes"]), probs=probs)
    if options.answers:
        with blaming("--answers"):
            result |= score(options.answers, template, probs, saved, to_fill)
    return result


if __name__ == "__main__":
    cli.use_utf8()
    main()

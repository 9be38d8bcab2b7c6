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
import functools
import math
import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from itertools import chain, compress
from pathlib import Path
from typing import Any

import numpy as np
import torch

import augment
import checkpoint
import cli
import improvements
import metrics
import models
import predictors
import runs
import submission
from ranks import Ranks
from runs import BadInput

blaming = functools.partial(cli.blaming, program="predict.py")


def load_child(
    argument: str | None, when: str | None, saved: dict[str, Any], device: torch.device, functions: Sequence[str]
) -> tuple[list[list[predictors.Predictor]], dict[str, Any]]:
    """The networks of --refine, and `saved` with the classes after it. Without --refine: none, and `saved`."""
    if not argument:
        return [], saved
    with blaming("--refine"):
        children = predictors.load_all([argument], device, functions)
    with blaming("--when"):
        *_, final = improvements.refined_classes(saved, children[0][0].saved, when)
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


CHANGES = ("--blend", "--prior-adjust", "--tune-bias", "--refine", "--test-shares")


def measured_on(arguments: list[str], changes: tuple[Any, ...], force: bool) -> runs.Predictions | None:
    """common_validation, if one of CHANGES needs it: with `force`, only one that is fitted to validation images."""
    flags = [*compress(CHANGES, (change not in (None, False) for change in changes))]
    blend, prior_adjust, tune_bias, _, test_shares = changes
    is_fitted = blend or tune_bias or test_shares or prior_adjust == "auto"
    with blaming(", ".join(flags)):
        return improvements.common_validation(arguments) if is_fitted or (flags and not force) else None


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
# Scoring with known labels
# ---------------------------------------------------------------------------------------------------------------------


def score(
    answers: str,
    template: submission.Template,
    probs: np.ndarray,
    saved: dict[str, Any],
    to_fill: dict[str, dict[str, str]],
) -> dict[str, float]:
    """Prints macro F1, accuracy, the scores of each class, and the most confused classes. Returns the first two."""
    rows, targets = submission.read_answers(answers, template, saved, to_fill)
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
    add("--blend", action="store_true", help="weighted mean of the runs, fitted by maximum likelihood, cross-fitted")
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
        template = submission.read_template(Path(options.data), options.template)
    with blaming("RUN_OR_CHECKPOINT"):
        groups = predictors.load_all(options.runs, device, options.model)
        saved = groups[0][0].saved
    children, final = load_child(options.refine, options.when, saved, device, options.model)
    with blaming("RUN_OR_CHECKPOINT"):
        check_classes(final, options.force)
    with blaming("--test-shares"):
        stated = improvements.stated_shares(options.test_shares, final)
        mixing = improvements.refined_mixing(saved, children, options.when)
    with blaming(data_flag):
        to_fill = submission.checked_columns(template, saved, final["labels"])
    every, work = [*chain.from_iterable(groups)], (ranks, options.batch_size, options.threads)
    print(f"{len(template.rows):,} images, {len(saved['classes'])} classes, checkpoints used: {len(every)}")
    changes = (options.blend, options.prior_adjust, options.tune_bias, options.refine, options.test_shares)
    common = measured_on(options.runs, changes, options.force)
    alone = [[network] for network in every]
    predict_networks = functools.partial(predictors.predict_probs, alone, "none", *work, template.images)
    with blaming("--data"):
        about = (every, predict_networks, common, saved, mixing, len(template.rows))
        judge, last_judge = improvements.judges(options.test_shares, stated, *about)
    with blaming("--tta"):
        tta, common = improvements.choose_tta(options.tta, groups, *work, options.force, common, judge)
    with blaming("--data"):
        probs = predictors.predict_probs(groups, tta, *work, template.images)  # (A, N, C)
    probs, val = improvements.weigh(options.runs, probs, common, groups, *changes[:3], options.force, judge)  # (N, C)
    if options.refine:
        predict_child = functools.partial(predictors.predict_probs, children, "none", *work)
        child = children[0][0].saved
        with blaming("--refine"):
            parts = (saved, options.refine, child, options.when, predict_child, options.force, last_judge)
            use, refined_val = improvements.choose_refine(val, *parts)
            if use:
                probs, saved = improvements.refine(probs, saved, predict_child(template.images)[0], child, options.when)
                val, judge = refined_val, last_judge
    labels = [saved["labels"][c] for c in probs.argmax(1)]
    if not ranks.is_first:
        return {}
    with blaming("--out"):
        submission.write(Path(options.out), template, to_fill, labels)
    result = {"out": options.out, "rows": len(template.rows)}
    if options.test_shares:
        result |= improvements.promise(val, judge)
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

"""Train an image classifier on imbalanced data, evaluated by macro F1.

    python train.py --loss focal --accum 4        # the demo: no download
    python train.py --data FOLDER --weights DEFAULT --lr 1e-4 --augment light
    python train.py --help

FOLDER is an image folder, or a folder with a train.csv: see data.read.

A run is a folder. config.json has its options, log.csv one row per epoch.
best_f1.pt and best_loss.pt are the best epochs. last.pt is written after every
epoch. `python train.py --resume RUN` continues from it, with the same result.

Read this file from top to bottom: run() has all steps from options to folds,
train_fold() trains on one split, train_epochs() trains and validates epochs.
"""

from __future__ import annotations

import argparse
import functools
import math
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

import augment
import cli
import data
import inputs
import loggers
import loop
import metrics
import pixels
import report
import runs
import sam
import screen
from ranks import Ranks
from stopping import SIGNALS, Stopped


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Trains as the command line asks. Returns the run's folder and the scores of its best epoch, see `run`."""
    with cli.quiet():
        options = cli.parse_options(argv, __doc__)
    cli.print_any_text()
    with SIGNALS.installed():
        try:
            with ExitStack() as stack:
                ranks = stack.enter_context(inputs.ranks_of(options))
                if not options.preview:
                    with cli.blaming("--resume" if options.resume else "--out"):
                        options.out = stack.enter_context(inputs.run_folder(options, ranks))
                return run(options, ranks)
        except Stopped:
            name = signal.Signals(SIGNALS.asked).name
            has_config = options.out and (Path(options.out) / "config.json").exists()
            advice = f"; continue with: {cli.resume_command(options)}" if has_config else " before the run began"
            print(cli.printable(f"train.py: stopped by {name}{advice}"), file=sys.stderr)
            raise SystemExit(128 + SIGNALS.asked) from None


def run(options: argparse.Namespace, ranks: Ranks) -> dict[str, Any]:
    """Options -> images -> splits -> one training per split, in the folder options.out, which the caller has locked.

    Returns {"out": folder, "epoch", "val_f1", "val_accuracy", "val_loss", ...}: the best row of log.csv. With several
    folds: {"out": folder, "val_f1": out-of-fold macro F1, "folds": the best row of each fold}. With --preview:
    {"preview": file}. ranks: the processes of the run, usually one.
    """
    torch.backends.cudnn.benchmark = True
    if options.threads:
        torch.set_num_threads(options.threads)
    device = ranks.device
    with ranks.one_first():  # it fills the caches
        table = inputs.read_table(options)
        splits = inputs.make_splits(options, table)
        first_weights = inputs.rehearse(options, table, splits, device)
        images, table, splits = inputs.load_images(options, table, splits)
    if not options.transform:
        images.move_to(device)
    batches, _ = inputs.make_batches(options, images, splits[0], device)
    if options.transform:
        with cli.blaming("--transform"):
            next(iter(batches))
    if options.preview:
        recipe = inputs.Recipe(options, *[data.counts(table, splits[0].train)] * 2, device)
        inputs.write_preview(options.preview, batches, recipe.augment(1), table.classes)
        return {"preview": options.preview}

    folder = Path(options.out)
    if len(splits) == 1:
        row, _ = train_fold(options, table, images, splits[0], folder, ranks, first_weights)
        return {"out": str(folder)} | row
    with cli.blaming("--resume" if options.resume else "--out"):
        digest = data.digest(table, *(split.val for split in splits))
        runs.write_config(folder, vars(options), table.classes, digest, inputs.stored_fixes(table))
    results = []
    for split in splits:
        fold = inputs.folder_of(folder, split, splits)
        results.append(train_fold(options, table, images, split, fold, ranks, first_weights))
        print()
    rows = [row for row, _ in results]
    if ranks.is_first:
        runs.write_folds(folder, rows, [split.fold for split in splits])
        write_report(folder)
    return {"out": str(folder), "val_f1": screen.print_folds(folder, results, table), "folds": rows}


def train_fold(
    options: argparse.Namespace,
    table: data.ImageTable,
    images: pixels.ImageArray,
    split: inputs.Split,
    folder: Path,
    ranks: Ranks,
    first_weights: Callable[[], dict[str, Tensor]],
) -> tuple[dict[str, Any], metrics.ConfusionMatrix]:
    """Trains on one split, from the start or from last.pt. Returns the best row of log.csv and its confusion matrix."""
    torch.manual_seed(options.seed)
    is_resumed, device = bool(options.resume) and runs.has_last(folder), ranks.device
    batches = inputs.make_batches(options, images, split, device)
    updates = math.ceil(len(batches[0]) / options.accum)
    state = inputs.make_state(options, table, updates, device, None if is_resumed else first_weights)
    state.saves = ranks.is_first
    counts, drawn = data.counts(table, split.train), inputs.drawn_counts(batches[0], len(table.classes))
    recipe = inputs.Recipe(options, counts, drawn, device, *inputs.mean_std(options, state.model))
    about = inputs.about(options, table, recipe)
    facts = inputs.facts(table, split, recipe, batches[0], updates, ranks.size)
    with cli.blaming("--resume" if options.resume else "--out"):
        digest = data.digest(table, split.train, split.val)
        config = runs.write_config(folder, vars(options), table.classes, digest, facts)
    if is_resumed:
        with cli.blaming("--resume"):
            runs.load_last(folder, state)
        print(screen.describe_resumed(options, split, state, updates))
    inputs.check_processes(options, state, ranks, config)
    if options.resume:
        runs.remove_unfinished(folder, state.epoch)
    if split.leaks:
        runs.write_leaks(folder, split.leaks)
    print_epoch = screen.print_start(options, table, split, facts, state, recipe.judge, folder)
    logs = loggers.Loggers(folder, config, state.log, options.tensorboard, options.wandb)
    with SIGNALS.stopping(at_once=False), cli.clear_errors(options, folder, state):
        try:
            train_epochs(options, table, split, folder, state, recipe, batches, about, logs, print_epoch, ranks)
        except Stopped:
            runs.save_last(folder, state, about)
            n = updates if state.trained else state.progress.get("windows", 0)
            print(f"\nstopped in epoch {state.epoch + 1}, after {n} of {updates} updates", flush=True)
            raise
    if state.epoch < options.epochs:
        print(f"early stopping: validation {options.monitor} has not improved (--patience {options.patience})")
    logs.close()
    best_row, best_matrix = state.log[int(state.best["epoch"]) - 1], metrics.ConfusionMatrix(len(table.classes))
    best_matrix.counts = state.best_counts
    if ranks.is_first:
        write_report(folder)
        screen.print_summary(folder, best_row, best_matrix, table, counts)
    return best_row, best_matrix


def train_epochs(
    options: argparse.Namespace,
    table: data.ImageTable,
    split: inputs.Split,
    folder: Path,
    state: runs.State,
    recipe: inputs.Recipe,
    batches: tuple[pixels.Batches, pixels.Batches],
    about: dict[str, Any],
    logs: loggers.Loggers,
    print_epoch: Callable[[], None],
    ranks: Ranks,
) -> None:
    """Trains and validates each epoch, until --epochs or --patience ends the run."""
    (train_batches, val_batches), amp = batches, cli.AMP_TYPES[options.amp]
    plain, criterion = augment.Augment("none", mean=recipe.mean, std=recipe.std), recipe.judge
    while state.epoch < options.epochs and not cli.is_stopped_early(options, state):
        train_batches.epoch, start = state.epoch + 1, time.perf_counter()
        about["favours_rare"] = inputs.favours_rare(options, state.epoch + 1)
        if not state.trained:  # otherwise the run was stopped during validation
            state.trained = train_epoch(options, folder, state, recipe, train_batches, about, ranks)
        with SIGNALS.stopping(at_once=True):
            judged = [judge(model, val_batches, criterion, plain, amp, ranks) for model in state.candidates]
        scores, matrix, logits, model = max(judged, key=lambda one: one[0]["val_f1"])  # on a tie the first: the EMA
        scores["val_f1_raw"] = judged[-1][0]["val_f1"]
        row = {"epoch": state.epoch + 1, **state.trained, **scores, "seconds": time.perf_counter() - start}
        row["gpu_memory"] = inputs.peak_memory(ranks.device)
        runs.end_epoch(
            folder,
            state,
            row,
            matrix.counts.cpu(),
            model.state_dict(),
            about,
            options.monitor,
            runs.MONITORS[options.monitor],
            options.min_delta,
            options.save_top,
            functools.partial(runs.write_predictions, folder, table, split.val, logits),
        )
        print_epoch()
        logs.row(row)
        SIGNALS.check()


def judge(
    model: nn.Module,
    batches: pixels.Batches,
    criterion: nn.Module,
    plain: augment.Augment,
    amp: torch.dtype,
    ranks: Ranks,
) -> tuple[dict[str, float], metrics.ConfusionMatrix, Tensor, nn.Module]:
    """Validation scores, confusion matrix and logits (N, C) of a model, and the model. Ranks share the batches."""
    mine = ranks.part(len(batches))
    scores, logits, targets = loop.evaluate(
        model, batches.indexed(mine or [0]), criterion, lambda numbers, images: model(plain(images, numbers, 0)), amp
    )
    if ranks.size > 1:  # a rank without a batch has computed the first one, because some models refuse an empty one
        every = [ranks.gather(rows if mine else rows[:0]) for rows in (logits, targets)]
        scores, logits, targets = loop.evaluate(model, [every], criterion, lambda logits: logits)
    matrix = metrics.ConfusionMatrix(logits.shape[1], logits.device).update(logits, targets)
    scores |= {"val_f1": matrix.f1(), "val_f1_present": matrix.f1("macro_present"), "val_accuracy": matrix.accuracy()}
    return scores, matrix, logits, model


def train_epoch(
    options: argparse.Namespace,
    folder: Path,
    state: runs.State,
    recipe: inputs.Recipe,
    batches: pixels.Batches,
    about: dict[str, Any],
    ranks: Ranks,
) -> dict[str, float]:
    """loop.train_epoch on augmented images, with a progress bar. last.pt is saved every --save-every updates.

    Dropout's random numbers depend only on (seed, epoch, micro-batch), as those of the augmentation on the image.
    """
    criterion, augmented = recipe.criterion(batches.epoch), recipe.augment(batches.epoch)
    recipe.freeze(state.model, batches.epoch)
    batches.overlap = augmented.overlap  # mixing needs the next image of the epoch too
    first = state.progress.get("windows", 0) * options.accum  # micro-batches done before an interruption
    mine = ranks.share(len(batches), options.accum, first)
    bar = tqdm(total=len(mine), desc=f"epoch {batches.epoch}", leave=False, disable=None if ranks.is_first else True)

    def micro_batches() -> Iterator[tuple[int | None, Tensor, Tensor, Tensor]]:
        for i, (numbers, images, targets) in zip(mine, SIGNALS.waiting(batches.indexed(mine)), strict=False):
            yield i, numbers, images, augmented.mix_targets(targets, numbers, batches.epoch, images.shape[2:])
            bar.update()

    def forward(i: int, numbers: Tensor, images: Tensor) -> Tensor:
        torch.manual_seed((options.seed * 1_000_003 + batches.epoch) * 1_000_003 + i)
        return state.model(augmented(images, numbers, batches.epoch))

    def after_window(window: dict[str, Any]) -> None:
        if window["outcome"] == "update":
            state.updates.append([window["lr"], window["loss"], window["grad_norm"]])
        if options.save_every and state.progress["windows"] % options.save_every == 0:
            runs.save_last(folder, state, about)
        SIGNALS.check()

    backward = ranks.backward(loop.backward_window, loop.weight_of)
    with bar:
        return loop.train_epoch(
            state,
            micro_batches(),
            criterion,
            forward,
            accum=ranks.accum(options.accum),
            clip=options.clip,
            amp=cli.AMP_TYPES[options.amp],
            skip_nonfinite=options.skip_nonfinite - sum(row["nonfinite_steps"] for row in state.log),
            describe=functools.partial(screen.describe_window, batches, ranks),
            check=SIGNALS.check_alone,
            after_window=after_window,
            backward=sam.SAM(backward, options.sam) if options.sam else backward,
        )


def write_report(folder: Path) -> None:
    try:
        report.write([folder])
    except (runs.BadInput, OSError) as error:  # the run itself is complete
        print(cli.printable(f"train.py: {folder / 'report.html'} was not written: {error}"), file=sys.stderr)


if __name__ == "__main__":
    cli.use_utf8()
    main()

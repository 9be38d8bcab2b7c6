"""What train.py prints: the settings at the start, one row per epoch, and the summary at the end."""

from __future__ import annotations

import argparse
import functools
import inspect
import math
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

import cli
import data
import loop
import losses
import metrics
import models
import pixels
import runs
from ranks import Ranks


def print_start(
    options: argparse.Namespace,
    table: data.ImageTable,
    split: Any,
    facts: dict[str, Any],
    state: runs.State,
    criterion: Any,
    folder: Path,
) -> Callable[[], None]:
    """Prints the settings of the run. Each line shows something that is easily wrong without being noticed.

    Prints the rows of the finished epochs too. Returns a function that prints the row of the epoch that ended last.
    """
    counts = np.array(facts["train_counts"])
    smallest, largest = int(counts.argmin()), int(counts.argmax())
    images = len(table) - table.pseudo
    groups = len(set(table.groups[:images]))
    schedule = options.scheduler + (f" after {options.warmup:g} epochs of warmup" if options.warmup else "")
    H, W = models.sides(options.size)
    changes = [options.transform, f"augment {options.augment}"]
    changes += [f"{name} {getattr(options, name):g}" for name in ("mixup", "cutmix") if getattr(options, name)]
    changes += [f"{options.flips} flips"] if options.flips != "random" else []
    lines = {
        "data": f"{table.layout}: {images:,} images, {len(table.classes)} classes",
        "classes": f"largest {table.classes[largest]} ({counts[largest]:,} training images), "
        f"smallest {table.classes[smallest]} ({counts[smallest]:,}), "
        f"imbalance {counts[largest] / max(counts[smallest], 1):.1f}",
        "split": f"{len(split.train):,} training, {len(split.val):,} validation images"
        + (f"; training images with pseudo-labels: {len(split.pseudo):,}" if len(split.pseudo) else "")
        + (f" (fold {split.fold})" if split.fold is not None else "")
        + (f"; groups: {groups:,}" if groups < images else "")
        + f"; groups on both sides: {data.shared_groups(table, split.train, split.val)}"
        + (f", but {split.guess.on_both_sides} by the file names" if split.guess else ""),
        "images": f"{H} x {W} pixels, {options.fit}, {', '.join(filter(None, changes))}",
        "sampler": describe_sampler(options, criterion, facts),
        "model": f"{options.model}, {models.count_parameters(state.model) / 1e6:.2f} M parameters, "
        f"initial weights {options.weights}{describe_fine_tuning(options)}",
        "loss": describe_loss(options, criterion, facts),
        "batch": f"batch size {options.batch_size} x accum {options.accum} = effective batch "
        f"{options.batch_size * options.accum}; updates per epoch: {facts['updates_an_epoch']:,}, "
        f"epochs: {options.epochs}",
        "optim": f"{options.optimizer}, lr {options.lr:g}, weight decay {options.weight_decay:g}, {schedule}"
        + (f", SAM rho {options.sam:g}" if options.sam else ""),
        "device": f"{options.device}, threads {torch.get_num_threads()}, amp {options.amp}, seed {options.seed}"
        + (f", processes {facts['processes']}" if facts["processes"] > 1 else ""),
        "run": str(folder),
    }
    lines |= {"preset": f"{options.preset} = {cli.PRESETS[options.preset]}"} if options.preset else {}
    for label, text in lines.items():
        print(cli.coloured(f"{label:<9}", cli.DIM) + cli.wrapped(cli.printable(text), 9))
    for label in ("warning", "note"):
        for text in facts[label + "s"]:
            cli.print_note(text, label)
    print("\n" + cli.coloured(COLUMNS, cli.BOLD))
    uniform = loss_of_guessing(criterion, facts["drawn_counts"], next(state.model.parameters()).device)
    for n in range(1, state.epoch + 1):
        print_epoch(state, n, uniform)
    sys.stdout.flush()
    clock = functools.partial(time_left, state, time.perf_counter(), epochs_begun(state, facts), options, split)
    return lambda: print_epoch(state, state.epoch, uniform, clock())


def describe_loss(options: argparse.Namespace, criterion: Any, facts: dict[str, Any]) -> str:
    """The loss with what it knows of the classes: weights, and the class prior."""
    weights = f"class weights {options.class_weights}"
    if options.drw:
        weights = f"class-balanced weights from epoch {cli.first_drw_epoch(options)} on (DRW)"
    needs = any("counts" in inspect.signature(part).parameters for part in losses.loss_classes(options.loss))
    drawn = np.array(facts["drawn_counts"])
    prior = f", class prior in the loss {_shares(drawn[drawn > 0])}" if needs else ""
    return f"{criterion}, {weights}{prior}"


def describe_fine_tuning(options: argparse.Namespace) -> str:
    frozen = options.freeze or (options.freeze_epochs and "backbone")
    if frozen and frozen != "backbone":
        frozen = f"the first {frozen} stages"
    parts = [f"{options.head} head"] if options.head != "linear" else []
    parts += ["fresh head"] if options.fresh_head else []
    if frozen:
        parts.append(
            f"{frozen} frozen" + (f" in the first {options.freeze_epochs} epochs" if options.freeze_epochs else "")
        )
    parts += [f"layer decay {options.layer_decay:g}"] if options.layer_decay else []
    parts += [f"head lr {options.head_lr:g}"] if options.head_lr else []
    return "".join(f", {part}" for part in parts)


def describe_sampler(options: argparse.Namespace, criterion: Any, facts: dict[str, Any]) -> str:
    """The class prior of an epoch and, with class weights or DRW, of the loss: the effective class prior."""
    counts, drawn = np.array(facts["train_counts"]), np.array(facts["drawn_counts"])
    text = f"{options.sampler}, {drawn.sum():,} images per epoch, class prior {_shares(drawn[counts > 0])}"
    weights = next(iter(getattr(criterion, "parts", [criterion]))).weight  # all parts of a sum have the same
    if weights is None:
        return text
    effective = _shares((drawn * weights.cpu().numpy())[counts > 0])
    return f"{text}; effective class prior with {'DRW' if options.drw else 'class weights'} {effective}"


def _shares(parts: np.ndarray) -> str:
    shares = 100 * parts / parts.sum()
    return f"{shares.min():.2g} to {shares.max():.2g} %"


def describe_window(batches: pixels.Batches, ranks: Ranks, window: list[loop.Batch]) -> str:
    """For the message of NonFinite: what may help, and the images of the window."""
    paths = batches.images.paths
    numbers = ranks.gather(torch.cat([numbers[: len(targets)] for _, numbers, *_, targets in window]))
    files = [paths[i % len(paths)] for i in numbers.tolist()]
    help = "A smaller --lr, --clip or --amp off may help."
    return cli.printable(f"{help} Images of this update in epoch {batches.epoch}: {len(files)}{pixels.listed(files)}")


COLUMNS = "epoch       lr train loss  val loss   val CE  macro F1  accuracy     left"


def print_epoch(state: runs.State, n: int, uniform: float, left: str = "") -> None:
    """Prints the row of epoch n and, once in a run, a note that the training loss diverges."""
    print_row(state.log[n - 1], n == state.best["epoch"], left)
    train_losses = [row["train_loss"] for row in state.log]
    if diverges(train_losses[:n], uniform) and not any(diverges(train_losses[:m], uniform) for m in range(n)):
        cli.print_note(
            f"the training loss grows: lowest {min(train_losses[:n]):.3g}, now {train_losses[n - 1]:.3g}; guessing "
            f"would give {uniform:.3g}. The learning rate may be too high: start again with a smaller --lr, or with "
            "--warmup or --clip"
        )


def print_row(row: dict[str, Any], is_best: bool, left: str = "") -> None:
    def short(number: float) -> str:
        return f"{number:.4f}" if abs(number) < 1000 else f"{number:.3g}"

    print(
        f"{row['epoch']:5d}{row['lr']:9.1e}{short(row['train_loss']):>11}{short(row['val_loss']):>10}"
        f"{short(row['val_ce']):>9}{row['val_f1']:10.4f}{row['val_accuracy']:10.4f}{left:>9}"
        + (cli.coloured("  best", cli.GREEN) if is_best else ""),
        flush=True,
    )


@torch.no_grad()
def loss_of_guessing(criterion: Any, drawn: Sequence[int], device: torch.device) -> float:
    """The loss of equal logits: log C for cross-entropy, and for logit adjustment with tau 1 the entropy of the prior.

    drawn: (C,) images per class and epoch. One soft target with their shares has the mean loss of all of them.
    """
    counts = torch.tensor([drawn], dtype=torch.float32, device=device)  # (1, C)
    return float(criterion(torch.zeros_like(counts), counts / counts.sum()))


def diverges(train_losses: Sequence[float], uniform: float) -> bool:
    """Whether the losses of the finished epochs show that training diverges. `uniform` is the loss of guessing.

    Either the last is more than twice the loss of guessing, after the first epoch. Or the losses rise in three epochs
    in a row, to more than 1.2 times the lowest and more than half the loss of guessing.
    """
    *_, a, b, c, last = [math.inf] * 4 + list(train_losses)
    is_rising = a < b < c < last and last > 1.2 * min(train_losses) and last > 0.5 * uniform
    return is_rising or (len(train_losses) > 1 and last > 2 * uniform)


def epochs_begun(state: runs.State, facts: dict[str, Any]) -> float:
    """Finished epochs and the part of the next one: 2.5 in the middle of the third."""
    return state.epoch + (1 if state.trained else state.progress.get("windows", 0) / facts["updates_an_epoch"])


def time_left(state: runs.State, start: float, begun: float, options: argparse.Namespace, split: Any) -> str:
    """Time for the remaining epochs of all folds, at the mean speed since the start of this process: "1:23:45".

    Empty if less than half an epoch was measured. Early stopping may end the run sooner.
    """
    measured = state.epoch - begun
    if measured < 0.5:
        return ""
    epochs = options.epochs - state.epoch + split.folds_after * options.epochs
    seconds = round((time.perf_counter() - start) / measured * epochs)
    minutes, hours = seconds // 60 % 60, seconds // 3600
    return f"{hours}:{minutes:02}:{seconds % 60:02}" if hours < 100 else f"{hours // 24} days"


def describe_resumed(options: argparse.Namespace, split: Any, state: runs.State, updates: int) -> str:
    """Where a resumed run continues, or that it is finished, and what to type to train longer."""
    stopped_early = cli.is_stopped_early(options, state)
    if state.epoch < options.epochs and not stopped_early:
        done = updates if state.trained else state.progress.get("windows", 0)
        return f"resumed: epochs done: {state.epoch}, updates done in the next epoch: {done} of {updates}"
    what = "this run" if split.fold is None else f"fold {split.fold}"
    text = f"resumed: {what} is finished: epochs done: {state.epoch} of {options.epochs}"
    if stopped_early:
        return cli.wrapped(f"{text}, stopped by --patience {options.patience}. To train longer, start a new run")
    if split.folds_after:
        return text
    advice = f"To train longer: {cli.resume_command(options)} --epochs {2 * options.epochs}"
    fixing = cli.fixing_epochs(vars(options))
    if fixing:
        advice = f"{fixing} ends here. To train longer, start a new run with more --epochs"
    return cli.wrapped(cli.printable(f"{text}. {advice}"))


def print_summary(
    folder: Path, best: dict[str, Any], matrix: metrics.ConfusionMatrix, table: data.ImageTable, counts: np.ndarray
) -> None:
    classes, (low, high) = table.classes, matrix.f1_interval()
    worst, worst_f1 = matrix.worst_class()
    score = cli.coloured(f"best macro F1 {best['val_f1']:.4f}", cli.BOLD)
    print(f"\n{score} (95 % interval {low:.4f} to {high:.4f}) in epoch {best['epoch']}")
    print(f"macro F1 of the classes present {best['val_f1_present']:.4f}, accuracy {best['val_accuracy']:.4f}")
    support = int(matrix.support()[worst])
    for row in matrix.by_frequency(counts):
        of = f"{len(row['classes'])} classes of {row['fewest']:,} to {row['most']:,} training images"
        print(f"{row['group']:<7} F1 {row['f1']:.4f}, accuracy {row['accuracy']:.4f} ({of})")
    print_factors(matrix, table)
    print(cli.wrapped(cli.printable(f"worst class: {classes[worst]}: F1 {worst_f1:.4f}, validation images {support}")))
    confused = matrix.most_confused(5)
    if confused:
        found = runs.read_predictions(folder / "val_probs.npz")
        predictions, confidences = found.probs.argmax(1), found.probs.max(1)
        print("most confused classes, true -> predicted, with the most confident error:")
        for target, predicted, count in confused:
            rows = np.flatnonzero((found.targets == target) & (predictions == predicted))
            worst = rows[confidences[rows].argmax()]
            line = f"{classes[target]} -> {classes[predicted]}  {found.paths[worst]} ({confidences[worst]:.4f})"
            print(f"{count:6d}  " + cli.wrapped(cli.printable(line), 8))
    files = "report.html, best_f1.pt, best_loss.pt, last.pt, log.csv, config.json"
    print(cli.wrapped(cli.printable(f"files: {folder}/ with {files}")), flush=True)


def print_factors(matrix: metrics.ConfusionMatrix, table: data.ImageTable) -> None:
    """One line per factor of the classes, if they have factors."""
    for (name, values), ids in zip(table.factors.items(), table.factor_ids.T, strict=True):
        of_factor = matrix.regroup(ids)
        worst, worst_f1 = of_factor.worst_class()
        scores = f"macro F1 {of_factor.f1():.4f}, accuracy {of_factor.accuracy():.4f}"
        print(cli.wrapped(cli.printable(f"factor {name}: {scores}, worst value {values[worst]} ({worst_f1:.4f})")))


def print_folds(
    folder: Path, results: list[tuple[dict[str, Any], metrics.ConfusionMatrix]], table: data.ImageTable
) -> float:
    """Prints the best macro F1 of each fold and the out-of-fold macro F1 of all images. Returns the latter."""
    out_of_fold = metrics.ConfusionMatrix(results[0][1].num_classes)
    print("\nfold  epoch  macro F1  accuracy  validation images")
    for f, (row, matrix) in enumerate(results):
        out_of_fold.counts += matrix.counts.cpu()
        print(f"{f:4d}{row['epoch']:7d}{row['val_f1']:10.4f}{row['val_accuracy']:10.4f}{int(matrix.counts.sum()):19,d}")
    scores = [row["val_f1"] for row, _ in results]
    low, high = out_of_fold.f1_interval()
    print(f"macro F1 of the folds: mean {statistics.mean(scores):.4f}, std {statistics.stdev(scores):.4f}")
    print(f"out-of-fold macro F1 of all images {out_of_fold.f1():.4f} (95 % interval {low:.4f} to {high:.4f})")
    print_factors(out_of_fold, table)
    files = f"report.html, folds.csv, oof.npz, fold0 to fold{len(results) - 1}"
    print(cli.wrapped(cli.printable(f"files: {folder}/ with {files}")))
    return out_of_fold.f1()

"""Train an image classifier on imbalanced data, judged by macro F1.

    python train.py --loss focal --accum 4                                    # the embedded demo, nothing to download
    python train.py --data FOLDER --weights DEFAULT --lr 1e-4 --augment light # your images, a pretrained resnet18
    python train.py --help                                                    # every option, grouped

FOLDER is an image folder, a competition folder with a train.csv, or the mask competition's layout: see data.read.

To read it: main() is the whole run; train_epoch() is the loop of updates, in the order unscale, clip, step, average,
schedule, scale; backward_window() is gradient accumulation; evaluate() is the judge.

A run is a folder: config.json (the options, before the first epoch), log.csv (a row an epoch), best_f1.pt,
best_loss.pt and last.pt (after every epoch), from which `python train.py --resume FOLDER` goes on, to the same end.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import math
import shlex
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

import augment
import checkpoint
import cli
import data
import loggers
import metrics
import models
import optim
import pixels
import report
import runs
from stopping import SIGNALS, Stopped

Window = list[tuple[Tensor, Tensor, Tensor]]  # micro-batches of (row numbers, uint8 images, targets)

# ---------------------------------------------------------------------------------------------------------------------
# Training
# ---------------------------------------------------------------------------------------------------------------------


class NonFinite(Exception):
    """A loss or gradient is NaN or infinite; the weights have not been touched."""


def windows(batches: pixels.Batches, accum: int, start: int = 0) -> Iterator[Window]:
    """`accum` micro-batches at a time, what remains at the end of the epoch as a shorter window: none is left over."""
    micro_batches = batches.indexed(start * accum)
    while window := list(itertools.islice(micro_batches, accum)):
        yield window


def backward_window(
    model: nn.Module,
    forward: Callable[[Tensor, Tensor], Tensor],
    criterion: nn.Module,
    window: Window,
    scaler: torch.amp.GradScaler,
) -> tuple[Tensor, Tensor]:
    """Adds the gradient of the window's loss to the parameters: the gradient of one big batch, whatever its parts.

    Dividing each micro-batch's mean by `accum` is not that: it gives a short last micro-batch, or one of light classes,
    as much say as a full one. The targets are known beforehand, so each gets its own share of the window's weight.

    Returns the window's loss (a scalar) and its logits (n, C), both detached.
    """
    targets = torch.cat([targets for _, _, targets in window])
    if criterion.additive or len(window) == 1:
        total, loss, logits = criterion.weight_of(targets), 0.0, []
        for index, images, micro_targets in window:
            SIGNALS.check()
            micro_logits = forward(index, images)
            share = criterion.weight_of(micro_targets) / total
            micro_loss = criterion(micro_logits, micro_targets) * share
            scaler.scale(micro_loss).backward()
            loss = loss + micro_loss.detach()
            logits.append(micro_logits.detach())
        return loss, torch.cat(logits)

    # A loss that is no sum over samples (F1 is a ratio of sums) needs all logits at once, but not all graphs at once:
    # gradient caching (Gao et al. 2021, arXiv:2101.06983). First the logits without a graph, and the loss's gradient at
    # them; then one forward and backward per micro-batch from that gradient. Both passes draw the same dropout masks,
    # and BatchNorm's running statistics move once.
    before = WindowStart(model)
    with torch.no_grad():
        logits = torch.cat([forward(index, images) for index, images, _ in window])
        before.restore(with_rng=True)
    logits.requires_grad_()
    loss = criterion(logits, targets)
    scaler.scale(loss).backward()
    sizes = [len(targets) for _, _, targets in window]
    for (index, images, _), gradient in zip(window, logits.grad.split(sizes), strict=True):
        SIGNALS.check()
        forward(index, images).backward(gradient)
    return loss.detach(), logits.detach()


@dataclass
class State:
    """What changes during a run: all of it goes into last.pt, and a run that is resumed from there ends the same."""

    model: nn.Module
    ema: models.EMA | None
    optimizer: torch.optim.Optimizer
    schedule: optim.Schedule
    scaler: torch.amp.GradScaler
    epoch: int = 0  # epochs that are done, validation included
    progress: dict[str, Any] = field(default_factory=dict)  # windows and sums of the epoch that is being trained
    trained: dict[str, float] = field(default_factory=dict)  # what train_epoch returned, until the epoch is validated
    best: dict[str, float] = field(
        default_factory=lambda: {"f1": -math.inf, "loss": math.inf, "monitored": -math.inf, "epoch": 0}
    )
    best_counts: Tensor | None = None  # the confusion matrix of the best epoch
    epochs_without_improvement: int = 0
    top: list[list[Any]] = field(default_factory=list)  # [score, file name] of --save-top
    log: list[dict[str, Any]] = field(default_factory=list)  # the rows of log.csv
    fresh_head: list[str] = field(default_factory=list)  # what --weights did not fill

    PLAIN = ("epoch", "progress", "trained", "best", "best_counts", "epochs_without_improvement", "top", "log")

    @property
    def judged(self) -> nn.Module:
        """The weights that are evaluated and saved as best: the average, if there is one."""
        return self.ema.model if self.ema else self.model

    def state_dict(self) -> dict[str, Any]:
        return {
            "model": self.model.state_dict(),
            "ema": self.ema.state_dict() if self.ema else None,
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "scaler": self.scaler.state_dict(),
            "rng": random_state(),
        } | {name: getattr(self, name) for name in self.PLAIN}

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        self.model.load_state_dict(saved["model"])
        if self.ema:
            self.ema.load_state_dict(saved["ema"])
        self.optimizer.load_state_dict(saved["optimizer"])
        self.schedule.load_state_dict(saved["schedule"])
        self.scaler.load_state_dict(saved["scaler"])
        set_random_state(saved["rng"])
        for name in self.PLAIN:
            setattr(self, name, saved[name])


def random_state() -> list[Tensor]:
    return [torch.get_rng_state(), *(torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [])]


def set_random_state(state: list[Tensor]) -> None:
    torch.set_rng_state(state[0])
    for device, gpu_state in enumerate(state[1 : 1 + torch.cuda.device_count()]):
        torch.cuda.set_rng_state(gpu_state, device)


class WindowStart:
    """What a window changes before its update: BatchNorm's statistics and the random numbers that are next."""

    def __init__(self, model: nn.Module):
        self.model, self.rng = model, random_state()
        self.buffers = [buffer.clone() for buffer in model.buffers()]

    def restore(self, with_rng: bool) -> None:
        for buffer, before in zip(self.model.buffers(), self.buffers, strict=True):
            buffer.copy_(before)
        if with_rng:
            set_random_state(self.rng)


def train_epoch(
    state: State,
    batches: pixels.Batches,
    criterion: nn.Module,
    transform: augment.Augment,
    amp: torch.dtype = torch.float32,
    accum: int = 1,
    clip: float | None = None,
    skip_nonfinite: int = 0,
    after_window: Callable[[], None] = lambda: None,
) -> dict[str, float]:
    """One pass over the training images, an update a window; goes on at state.progress if that is of this epoch.

    Returns train_loss, train_ce, the numbers of updates that were left out, the first learning rate, and images/s.
    """
    model, optimizer, scaler, progress = state.model.train(), state.optimizer, state.scaler, state.progress
    if progress.get("epoch") != batches.epoch:
        state.progress = progress = {"epoch": batches.epoch, "windows": 0, "skipped_steps": 0, "nonfinite_steps": 0}
        progress |= {"lr": state.schedule.lr, "loss": 0.0, "weight": 0.0, "ce": 0.0, "images": 0}
    start, images_before = time.perf_counter(), progress["images"]

    def forward(index: Tensor, images: Tensor) -> Tensor:
        with torch.autocast(batches.device.type, amp, enabled=amp != torch.float32):
            return model(transform(images, index, batches.epoch))

    done = progress["windows"] * accum
    with tqdm(total=len(batches), initial=done, desc=f"epoch {batches.epoch}", leave=False, disable=None) as bar:
        for window in windows(batches, accum, progress["windows"]):
            window = [(i, x, transform.mix_targets(t, i, batches.epoch, x.shape[2:])) for i, x, t in window]
            before = WindowStart(model) if accum > 1 or skip_nonfinite else None
            try:
                loss, logits = backward_window(model, forward, criterion, window, scaler)
            except Stopped:
                if before:
                    before.restore(with_rng=True)
                raise
            scaler.unscale_(optimizer)  # gradients in their true size, before anything looks at them
            norm = nn.utils.clip_grad_norm_(model.parameters(), clip or math.inf)
            loss_value, norm_value = torch.stack([loss.float(), norm.float()]).tolist()  # the window's one host sync
            # under fp16 a gradient may overflow because the scale is too high, but not once the scale is below 1
            overflowed = scaler.is_enabled() and not math.isfinite(norm_value) and scaler.get_scale() >= 1
            is_bad = not math.isfinite(loss_value) or not (math.isfinite(norm_value) or overflowed)
            if is_bad:
                said = _describe(window, batches, loss_value, norm_value)
                if progress["nonfinite_steps"] + sum(row["nonfinite_steps"] for row in state.log) >= skip_nonfinite:
                    raise NonFinite(said)
                print(f"skipped: {said}", file=sys.stderr)
                before.restore(with_rng=False)
                progress["nonfinite_steps"] += 1
            elif overflowed:  # no update, and the scaler halves its scale
                progress["skipped_steps"] += 1
            else:
                scaler.step(optimizer)
                if state.ema:
                    state.ema.update(model)
                state.schedule.step()  # average and schedule count updates that happened
            scaler.update()
            optimizer.zero_grad(set_to_none=True)
            targets = torch.cat([targets for _, _, targets in window])
            if not is_bad:
                weight = criterion.weight_of(targets)
                progress["loss"] += loss * weight
                progress["weight"] += weight
                progress["ce"] += F.cross_entropy(logits.float(), targets, reduction="sum")
                progress["images"] += len(targets)
            progress["windows"] += 1
            bar.update(len(window))
            after_window()
    state.progress = {}
    return {
        "lr": progress["lr"],
        "train_loss": float(progress["loss"] / progress["weight"]) if progress["images"] else math.nan,
        "train_ce": float(progress["ce"]) / progress["images"] if progress["images"] else math.nan,
        "skipped_steps": progress["skipped_steps"],
        "nonfinite_steps": progress["nonfinite_steps"],
        "images_per_second": (progress["images"] - images_before) / (time.perf_counter() - start),
    }


def _describe(window: Window, batches: pixels.Batches, loss: float, norm: float) -> str:
    paths = batches.images.paths
    files = [paths[i % len(paths)] for index, _, _ in window for i in index.tolist()]
    more = f"\n  and {len(files) - 20} more" if len(files) > 20 else ""
    return (
        f"loss {loss}, gradient norm {norm} in epoch {batches.epoch}; the weights are as before this update. "
        f"A smaller --lr, --clip or --amp off may help. The {len(files)} images of this update:"
        + "".join(f"\n  {file}" for file in files[:20])
        + more
    )


# ---------------------------------------------------------------------------------------------------------------------
# Judging
# ---------------------------------------------------------------------------------------------------------------------


@torch.no_grad()
def evaluate(
    model: nn.Module,
    batches: pixels.Batches,
    num_classes: int,
    criterion: nn.Module,
    transform: augment.Augment,
    amp: torch.dtype,
) -> tuple[dict[str, float], metrics.ConfusionMatrix, Tensor]:
    """One F1 over all validation images, from one matrix: the mean of the batches' F1 is another, wrong number.

    Returns the scores, the matrix and the logits (N, C) in the rows' order.
    """
    model.eval()
    matrix = metrics.ConfusionMatrix(num_classes, device=batches.device)
    all_logits, all_targets = [], []
    for index, images, targets in batches.indexed():
        with torch.autocast(batches.device.type, amp, enabled=amp != torch.float32):
            logits = model(transform(images, index, 0))
        matrix.update(logits, targets)
        all_logits.append(logits.float())
        all_targets.append(targets)
    logits, targets = torch.cat(all_logits), torch.cat(all_targets)
    if not logits.isfinite().all():  # argmax would still name a class
        raise NonFinite("the network gives NaN or infinite logits for validation images")
    scores = {
        "val_loss": float(criterion(logits, targets)),
        "val_ce": float(F.cross_entropy(logits, targets)),  # the same for every --loss, so that runs can be compared
        "val_f1": matrix.f1("macro"),
        "val_f1_present": matrix.f1("macro_present"),
        "val_accuracy": matrix.accuracy(),
    }
    return scores, matrix, logits


# ---------------------------------------------------------------------------------------------------------------------
# The run
# ---------------------------------------------------------------------------------------------------------------------

def make_state(
    options: argparse.Namespace, num_classes: int, updates: int, device: torch.device, is_new: bool = True
) -> State:
    """Fresh weights (a run that goes on has its own), optimizer, schedule, scaler and average."""
    fresh_head: list[str] = []
    with cli.blaming("--model, --weights"):
        model = models.build_model(options.model, num_classes, options.size)
        if is_new and options.weights != "none":
            first = models.first_weights(options.model, options.weights)
            fresh_head = models.load_weights(model, first, options.model, options.weights)
    if options.batch_size == 1:  # BatchNorm may not be able to
        with cli.blaming("--batch-size"):
            models.check_output(model, options.model, num_classes, options.size, batch=1)
    model = model.to(device, memory_format=torch.channels_last)
    with cli.blaming("--optimizer"):
        optimizer = optim.build_optimizer(options.optimizer, model, options.lr, options.weight_decay)
    with cli.blaming("--scheduler"):
        more = cli.given(options, "step_epochs", "lr_decay", "plateau_patience", "min_lr", "t0", "t_mult")
        mode = cli.MONITORS[options.monitor]
        schedule = optim.build_schedule(
            options.scheduler, optimizer, options.epochs, updates, options.warmup, mode, **more
        )
    scaler = torch.amp.GradScaler(device.type, enabled=options.amp == "fp16")
    ema = models.EMA(model, options.ema) if options.ema else None
    return State(model, ema, optimizer, schedule, scaler, fresh_head=fresh_head)


def save_last(folder: Path, state: State, about: dict[str, Any]) -> None:
    checkpoint.save(folder / "last.pt", about | state.state_dict(), keep_previous=True)


def end_epoch(
    folder: Path, state: State, row: dict[str, Any], matrix: metrics.ConfusionMatrix, about: dict[str, Any],
    options: argparse.Namespace, write_predictions: Callable[[], None] = lambda: None,
) -> None:  # fmt: skip
    """Counts the epoch, and writes what it is best in, then last.pt, then log.csv: a kill in between loses nothing."""
    state.epoch, state.trained = row["epoch"], {}
    state.log.append(row)
    state.schedule.epoch_end(row[f"val_{options.monitor}"])
    scores = {key: value for key, value in row.items() if key.startswith("val_")}
    for_prediction = about | {"model": state.judged.state_dict(), "epoch": state.epoch, "scores": scores}
    if row["val_f1"] > state.best["f1"]:
        state.best |= {"f1": row["val_f1"], "epoch": state.epoch}
        state.best_counts = matrix.counts.cpu()
        write_predictions()
        checkpoint.save(folder / "best_f1.pt", for_prediction)
    if row["val_loss"] < state.best["loss"]:
        state.best["loss"] = row["val_loss"]
        checkpoint.save(folder / "best_loss.pt", for_prediction)
    monitored = row[f"val_{options.monitor}"] * (1 if cli.MONITORS[options.monitor] == "max" else -1)
    state.epochs_without_improvement += 1
    if monitored > state.best["monitored"] + options.min_delta:
        state.best["monitored"], state.epochs_without_improvement = monitored, 0
    if options.save_top:
        name = f"{state.epoch:03d}_{options.monitor}_{row[f'val_{options.monitor}']:.4f}.pt"
        state.top = sorted([*state.top, [monitored, name]], key=lambda entry: -entry[0])[: options.save_top]
        if [monitored, name] in state.top:
            checkpoint.save(folder / name, for_prediction)
    save_last(folder, state, about)
    runs.write_log(folder, state.log)
    runs.keep_top(folder, {name for _, name in state.top})


def train_fold(
    options: argparse.Namespace, table: data.ImageTable, images: pixels.ImageArray, split: cli.Split, folder: Path,
    device: torch.device,
) -> tuple[dict[str, Any], metrics.ConfusionMatrix]:  # fmt: skip
    """One training, from fresh weights or from where it was cut. Returns the best epoch's row and confusion matrix."""
    torch.manual_seed(options.seed)
    num_classes = len(table.classes)
    criterion = cli.make_criterion(options, data.counts(table, split.train), device)
    train_batches, val_batches = cli.make_batches(options, images, split, device)
    updates = math.ceil(len(train_batches) / options.accum)
    state = make_state(options, num_classes, updates, device, is_new=not has_last(folder))
    if state.fresh_head:
        split.notes.append(f"{options.weights}: loaded all but {', '.join(state.fresh_head)}, which start fresh")
    augmented, plain = cli.make_augment(options, num_classes), augment.Augment("none")
    with cli.blaming("--out"):
        facts = cli.facts(table, split, train_batches, updates)
        digest = data.digest(table, split.train, split.val)
        config = runs.write_config(folder, options, table.classes, digest, facts)
    about = {"model_name": options.model, "classes": table.classes, "size": options.size, "fit": options.fit}
    about |= {"mean": list(augment.IMAGENET_MEAN), "std": list(augment.IMAGENET_STD), "labels": table.labels}
    about["train_counts"] = data.counts(table, split.train).tolist()
    if options.resume:
        checkpoint.remove_stray(folder)
        resume(folder, state)
    if split.leaks:
        runs.write_csv(folder / "leaks.csv", runs.LEAK_COLUMNS, split.leaks)
    cli.print_start(options, table, split, train_batches, state, criterion, updates, folder)
    for row in state.log:
        cli.print_row(row, row["epoch"] == state.best["epoch"])
    logs = loggers.Loggers(folder, config, state.log, options.tensorboard, options.wandb)

    def after_window() -> None:
        if options.save_every and state.progress["windows"] % options.save_every == 0:
            save_last(folder, state, about)
        SIGNALS.check()

    def is_over() -> bool:
        has_stalled = options.patience and state.epochs_without_improvement >= options.patience
        return state.epoch >= options.epochs or bool(has_stalled)

    amp = cli.AMP_TYPES[options.amp]
    with SIGNALS.stopping(at_once=False), clear_errors(options, folder, state):
        try:
            while not is_over():
                train_batches.epoch, start = state.epoch + 1, time.perf_counter()
                state.trained = state.trained or train_epoch(
                    state, train_batches, criterion, augmented, amp, options.accum, options.clip,
                    options.skip_nonfinite, after_window,
                )  # fmt: skip
                with SIGNALS.stopping(at_once=True):
                    scores, matrix, logits = evaluate(state.judged, val_batches, num_classes, criterion, plain, amp)
                row = {"epoch": state.epoch + 1, **state.trained, **scores, "seconds": time.perf_counter() - start}
                predictions = functools.partial(runs.write_predictions, folder, table, split.val, logits)
                end_epoch(folder, state, row, matrix, about, options, predictions)
                cli.print_row(row, state.best["epoch"] == state.epoch)
                logs.row(row)
                SIGNALS.check()
        except Stopped:
            save_last(folder, state, about)
            n = updates if state.trained else state.progress.get("windows", 0)
            print(f"\nstopped in epoch {state.epoch + 1}, after {n} of {updates} updates", flush=True)
            raise
    if state.epoch < options.epochs:
        print(f"stopped: {options.monitor} has not improved for {options.patience} epochs")
    best_row, best_matrix = state.log[int(state.best["epoch"]) - 1], metrics.ConfusionMatrix(num_classes)
    best_matrix.counts = state.best_counts
    logs.close()
    write_report(folder)
    cli.print_summary(folder, best_row, best_matrix, table.classes)
    return best_row, best_matrix


def write_report(folder: Path) -> None:
    try:
        report.write([folder])
    except (ValueError, OSError) as error:  # the run itself is whole
        print(f"train.py: {folder / 'report.html'} was not written: {error}", file=sys.stderr)


def has_last(folder: Path) -> bool:
    return (folder / "last.pt").exists() or checkpoint.previous(folder / "last.pt").exists()


def resume(folder: Path, state: State) -> None:
    """The state of last.pt, if the run got so far, and the files as they were with it."""
    path = folder / "last.pt"
    if not has_last(folder):
        return
    with cli.blaming("--resume"):
        state.load_state_dict(checkpoint.load(path))
    runs.write_log(folder, state.log)
    runs.keep_top(folder, {name for _, name in state.top})
    of_the_next = "all" if state.trained else state.progress.get("windows", 0)
    print(f"resumed after epoch {state.epoch} and {of_the_next} updates of the next")


@contextmanager
def clear_errors(options: argparse.Namespace, folder: Path, state: State) -> Iterator[None]:
    """What can go wrong in the middle of a run, as a message that says what to do, and exit code 2."""
    try:
        yield
    except (NonFinite, pixels.BadInput, OSError) as error:
        said = str(error)
    except (torch.cuda.OutOfMemoryError, MemoryError, RuntimeError) as error:
        is_memory = isinstance(error, (torch.cuda.OutOfMemoryError, MemoryError)) or "t allocate memory" in str(error)
        if not is_memory or options.batch_size == 1:
            raise
        smaller = max(b for b in range(1, options.batch_size // 2 + 1) if options.batch_size % b == 0)
        accum = options.accum * options.batch_size // smaller
        said = (
            f"out of memory with --batch-size {options.batch_size}; --batch-size {smaller} --accum {accum} needs less "
            "and makes the same updates"
        )
    else:
        return
    print(f"train.py: error: {said}\nthe files in {folder} are as of epoch {state.epoch}", file=sys.stderr)
    raise SystemExit(2)


def main(argv: Sequence[str] | None = None) -> None:
    options = cli.parse_options(argv, __doc__)
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="backslashreplace")  # a file name may hold bytes that are no text
    with SIGNALS.installed():
        try:
            run(options)
        except Stopped:
            name = signal.Signals(SIGNALS.asked).name
            has_begun = options.out and (Path(options.out) / "config.json").exists()
            go_on = f": python train.py --resume {shlex.quote(options.out)}" if has_begun else " before the run began"
            print(f"train.py: stopped by {name}{go_on}", file=sys.stderr)
            raise SystemExit(128 + SIGNALS.asked) from None


def run(options: argparse.Namespace) -> None:
    torch.backends.cudnn.benchmark = True
    if options.threads:
        torch.set_num_threads(options.threads)
    with cli.blaming("--device"):
        device = cli.usable_device(options.device)
    if not options.resume:
        with cli.blaming("--out"):
            runs.check_out(options.out)
    table = cli.read_table(options)
    splits = cli.make_splits(options, table)
    # a rehearsal: every name and value is refused before the files are decoded
    cli.make_criterion(options, data.counts(table, splits[0].train), device)
    cli.make_augment(options, len(table.classes))
    make_state(options, len(table.classes), 1, device, not options.resume)
    with cli.blaming("--data"):
        images = pixels.decode(
            table.paths, table.targets, options.size, Path(options.cache) / "images", table.source, options.fit,
            options.bad, options.threads,
        )  # fmt: skip
    if images.bad_csv:
        left_out = f"{len(table) - len(images)} images cannot be decoded and are left out: {images.bad_csv}"
        table = data.take(table, images.kept)
        table.notes.append(left_out)
        splits = cli.make_splits(options, table)
    splits = cli.check_leaks(options, table, images, splits)
    if not options.transform:
        images.move_to(device)
    batches, _ = cli.make_batches(options, images, splits[0], device)
    if options.transform:
        with cli.blaming("--transform"):
            next(iter(batches))
    if options.preview:
        cli.write_preview(options.preview, batches, cli.make_augment(options, len(table.classes)), table.classes)
        return
    with cli.blaming("--out"):
        folder = Path(options.out) if options.resume else runs.new_folder(options)
    if len(splits) == 1:
        train_fold(options, table, images, splits[0], folder, device)
        return
    with cli.blaming("--out"):
        runs.write_config(folder, options, table.classes, data.digest(table, *(split.val for split in splits)), {})
    results = []
    for split in splits:
        results.append(train_fold(options, table, images, split, folder / f"fold{split.fold}", device))
        print()
    runs.write_folds(folder, [row for row, _ in results], [split.fold for split in splits])
    write_report(folder)
    cli.print_folds(folder, results)


if __name__ == "__main__":
    main()

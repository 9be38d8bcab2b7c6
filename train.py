"""Train an image classifier on imbalanced data, judged by macro F1.

    python train.py --loss focal --accum 4                                    # the embedded demo, nothing to download
    python train.py --data FOLDER --weights DEFAULT --lr 1e-4 --augment light # your images, a pretrained resnet18
    python train.py --help                                                    # every option, grouped

FOLDER is an image folder, a competition folder with a train.csv, or the mask competition's layout: see data.read.

To read it: main() is the whole run; train_epoch() is the loop of updates, in the order unscale, clip, step, average,
schedule, scale; backward_window() is gradient accumulation; evaluate() is the judge.

A run is a folder: config.json (the options, before the first epoch), log.csv (a row an epoch), best_f1.pt,
best_loss.pt and last.pt (after every epoch).
"""

from __future__ import annotations

import argparse
import csv
import itertools
import json
import math
import os
import platform
import re
import shlex
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn
from tqdm import tqdm

import augment
import checkpoint
import cli
import data
import losses
import metrics
import models
import optim
import pixels

Window = list[tuple[Tensor, Tensor, Tensor]]  # micro-batches of (row numbers, uint8 images, targets)

# ---------------------------------------------------------------------------------------------------------------------
# Training
# ---------------------------------------------------------------------------------------------------------------------


class NonFinite(Exception):
    """A loss or gradient is NaN or infinite; the weights have not been touched."""


def windows(batches: pixels.Batches, accum: int) -> Iterator[Window]:
    """`accum` micro-batches at a time, what remains at the end of the epoch as a shorter window: none is left over."""
    micro_batches = batches.indexed()
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
    buffers = [buffer.clone() for buffer in model.buffers()]
    gpus = [targets.device] if targets.device.type == "cuda" else []
    with torch.no_grad(), torch.random.fork_rng(gpus):
        logits = torch.cat([forward(index, images) for index, images, _ in window])
        for buffer, before in zip(model.buffers(), buffers, strict=True):
            buffer.copy_(before)
    logits.requires_grad_()
    loss = criterion(logits, targets)
    scaler.scale(loss).backward()
    sizes = [len(targets) for _, _, targets in window]
    for (index, images, _), gradient in zip(window, logits.grad.split(sizes), strict=True):
        forward(index, images).backward(gradient)
    return loss.detach(), logits.detach()


@dataclass
class State:
    """What changes during a run; all of it goes into last.pt."""

    model: nn.Module
    ema: models.EMA | None
    optimizer: torch.optim.Optimizer
    schedule: optim.Schedule
    scaler: torch.amp.GradScaler
    epoch: int = 0
    best: dict[str, float] = field(default_factory=lambda: {"f1": -math.inf, "loss": math.inf, "monitored": -math.inf})
    epochs_without_improvement: int = 0

    @property
    def judged(self) -> nn.Module:
        """The weights that are evaluated and saved as best: the average, if there is one."""
        return self.ema.model if self.ema else self.model

    def state_dict(self) -> dict[str, Any]:
        gpu = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
        return {
            "model": self.model.state_dict(),
            "ema": self.ema.state_dict() if self.ema else None,
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "scaler": self.scaler.state_dict(),
            "rng": [torch.get_rng_state(), *gpu],
            "epoch": self.epoch,
            "best": self.best,
            "epochs_without_improvement": self.epochs_without_improvement,
        }


def train_epoch(
    state: State,
    batches: pixels.Batches,
    criterion: nn.Module,
    transform: augment.Augment,
    amp: torch.dtype = torch.float32,
    accum: int = 1,
    clip: float | None = None,
) -> dict[str, float]:
    """One pass over the training images, an update a window. Returns train_loss, train_ce and skipped_steps."""
    model, optimizer, scaler = state.model.train(), state.optimizer, state.scaler

    def forward(index: Tensor, images: Tensor) -> Tensor:
        with torch.autocast(batches.device.type, amp, enabled=amp != torch.float32):
            return model(transform(images, index, batches.epoch))

    loss_sum, weight_sum, ce_sum, skipped = 0.0, 0.0, 0.0, 0
    with tqdm(total=len(batches), desc=f"epoch {batches.epoch}", leave=False, disable=None) as bar:
        for window in windows(batches, accum):
            window = [(i, x, transform.mix_targets(t, i, batches.epoch, x.shape[2:])) for i, x, t in window]
            loss, logits = backward_window(model, forward, criterion, window, scaler)
            scaler.unscale_(optimizer)  # gradients in their true size, before anything looks at them
            norm = nn.utils.clip_grad_norm_(model.parameters(), clip or math.inf)
            loss_value, norm_value = torch.stack([loss.float(), norm.float()]).tolist()  # the window's one host sync
            # under fp16 a gradient may overflow because the scale is too high, but not once the scale is below 1
            overflowed = scaler.is_enabled() and not math.isfinite(norm_value) and scaler.get_scale() >= 1
            if not math.isfinite(loss_value) or not (math.isfinite(norm_value) or overflowed):
                raise NonFinite(_describe(window, batches, loss_value, norm_value))
            if overflowed:  # no update, and the scaler halves its scale
                skipped += 1
            else:
                scaler.step(optimizer)
                if state.ema:
                    state.ema.update(model)
                state.schedule.step()  # average and schedule count updates that happened
            scaler.update()
            optimizer.zero_grad(set_to_none=True)
            targets = torch.cat([targets for _, _, targets in window])
            weight = criterion.weight_of(targets)
            loss_sum, weight_sum = loss_sum + loss * weight, weight_sum + weight
            ce_sum += F.cross_entropy(logits.float(), targets, reduction="sum")
            bar.update(len(window))
    return {
        "train_loss": float(loss_sum / weight_sum),
        "train_ce": float(ce_sum) / batches.images_an_epoch,
        "skipped_steps": skipped,
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
) -> tuple[dict[str, float], metrics.ConfusionMatrix]:
    """One F1 over all validation images, from one matrix: the mean of the batches' F1 is another, wrong number."""
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
    return scores, matrix


# ---------------------------------------------------------------------------------------------------------------------
# The run
# ---------------------------------------------------------------------------------------------------------------------

LOG_COLUMNS = (
    "epoch", "lr", "train_loss", "train_ce", "val_loss", "val_ce", "val_f1", "val_f1_present", "val_accuracy",
    "skipped_steps", "images_per_second", "seconds",
)  # fmt: skip


def check_out(out: str | None) -> None:
    with cli.blaming("--out"):
        if out and (Path(out) / "config.json").exists():
            raise ValueError(f"{out} already holds a run; choose another folder")
        if out and Path(out).exists() and not Path(out).is_dir():
            raise ValueError(f"{out} is a file")


def new_folder(options: argparse.Namespace) -> Path:
    name = re.sub(r"[^\w.+-]", "_", f"{time.strftime('%Y%m%d-%H%M%S')}-{options.model}-{options.loss}")
    with cli.blaming("--out"):
        folder = Path(options.out or os.path.join("runs", name))
        while not options.out and folder.exists():  # another run began in the same second
            folder = folder.with_name(folder.name + "_")
        folder.mkdir(parents=True, exist_ok=bool(options.out))
    return folder


def write_config(folder: Path, options: argparse.Namespace, classes: list[str], fold: int | None) -> None:
    """config.json, before the first epoch: a run that dies can still be told apart."""
    config = {
        "command": shlex.join(["python", *sys.argv]),
        "options": vars(options),
        "fold": fold,
        "classes": classes,
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "torchvision": torchvision.__version__,
        },
    }
    with cli.blaming("--out"):
        folder.mkdir(parents=True, exist_ok=True)
        checkpoint.write_text(folder / "config.json", json.dumps(config, indent=2, ensure_ascii=False))


def write_leaks(path: Path, leaks: list[tuple[str, ...]]) -> None:
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["what", "validation", "validation_class", "training", "training_class"])
        writer.writerows(leaks)


def append_row(path: Path, row: dict[str, Any], columns: Sequence[str] = LOG_COLUMNS) -> None:
    is_new = not path.exists()
    with open(path, "a", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns)
        if is_new:
            writer.writeheader()
        writer.writerow(row)


def print_start(
    options: argparse.Namespace, table: data.ImageTable, split: cli.Split, batches: pixels.Batches, state: State,
    criterion: nn.Module, updates: int, folder: Path,
) -> None:  # fmt: skip
    """What this run is: every line a thing that people got wrong without knowing."""
    counts = data.counts(table, split.train)
    smallest, largest = int(counts.argmin()), int(counts.argmax())
    lr, decay = state.schedule.base_lrs[0], state.optimizer.param_groups[0]["weight_decay"]
    schedule = options.scheduler + (f" after {options.warmup:g} epochs of warm-up" if options.warmup else "")
    H, W = (options.size, options.size) if isinstance(options.size, int) else options.size
    changes = [options.transform, f"augment {options.augment}"]
    changes += [f"{name} {getattr(options, name):g}" for name in ("mixup", "cutmix") if getattr(options, name)]
    lines = {
        "data": f"{table.layout}: {len(table):,} images, {len(table.classes)} classes",
        "classes": f"largest {table.classes[largest]} ({counts[largest]:,} training images), "
        f"smallest {table.classes[smallest]} ({counts[smallest]:,}), "
        f"imbalance {counts[largest] / max(counts[smallest], 1):.1f}",
        "split": f"{len(split.train):,} training, {len(split.val):,} validation images"
        + (f" (fold {split.fold})" if split.fold is not None else "")
        + f"; groups shared: {data.shared_groups(table, split.train, split.val)}",
        "images": f"{H} x {W} pixels, {options.fit}, {', '.join(filter(None, changes))}",
        "sampler": describe_sampler(options, table, split, batches),
        "model": f"{options.model}, {models.count_parameters(state.model) / 1e6:.2f} M parameters, "
        f"weights {options.weights}",
        "loss": f"{criterion}, class weights {options.class_weights}",
        "batch": f"{options.batch_size} x {options.accum} accumulated = effective batch "
        f"{options.batch_size * options.accum}; {updates:,} updates an epoch, {options.epochs} epochs",
        "optim": f"{options.optimizer}, lr {lr:g}, weight decay {decay:g}, {schedule}",
        "device": f"{options.device}, {torch.get_num_threads()} threads, amp {options.amp}, seed {options.seed}",
        "run": str(folder),
    }
    for label, text in lines.items():
        print(f"{label:<9}{text}")
    for note in table.notes + split.notes:
        print(f"{'note':<9}{note}")


def describe_sampler(
    options: argparse.Namespace, table: data.ImageTable, split: cli.Split, batches: pixels.Batches
) -> str:
    """How much of an epoch a class is, and of the loss where classes have weights: the effective prior."""
    counts = data.counts(table, split.train)
    drawn = np.bincount(table.targets[batches.numbers() % len(table)], minlength=len(counts))
    text = f"{options.sampler}, {batches.images_an_epoch:,} images an epoch, of each class {_shares(drawn[counts > 0])}"
    if options.class_weights == "none":
        return text
    if options.sampler != "shuffle":
        split.notes.append(
            f"--sampler {options.sampler} and --class-weights {options.class_weights} both favour rare classes, which "
            "corrects twice: look at the effective prior above"
        )
    weights = losses.class_weights(counts.tolist(), options.class_weights).numpy()
    return f"{text}; effective prior with class weights {_shares((drawn * weights)[counts > 0])}"


def _shares(parts: np.ndarray) -> str:
    shares = 100 * parts / parts.sum()
    return f"{shares.min():.2g} to {shares.max():.2g} %"


def print_row(row: dict[str, Any], is_best: bool) -> None:
    def short(number: float) -> str:
        return f"{number:.4f}" if abs(number) < 1000 else f"{number:.3g}"

    if row["epoch"] == 1:
        print("\nepoch        lr  train loss  train CE  val loss    val CE  macro F1  accuracy  images/s  seconds")
    print(
        f"{row['epoch']:5d}{row['lr']:10.1e}{short(row['train_loss']):>12}{short(row['train_ce']):>10}"
        f"{short(row['val_loss']):>10}{short(row['val_ce']):>10}{row['val_f1']:10.4f}{row['val_accuracy']:10.4f}"
        f"{row['images_per_second']:10.0f}{row['seconds']:9.1f}" + ("  best" if is_best else ""),
        flush=True,
    )


def print_summary(folder: Path, best: dict[str, Any], matrix: metrics.ConfusionMatrix, classes: list[str]) -> None:
    low, high = matrix.f1_interval()
    worst, worst_f1 = matrix.worst_class()
    print(f"\nbest macro F1 {best['val_f1']:.4f} (95 % interval {low:.4f} to {high:.4f}) in epoch {best['epoch']}")
    print(f"over the classes present {best['val_f1_present']:.4f}, accuracy {best['val_accuracy']:.4f}")
    print(f"worst class: {classes[worst]}, F1 {worst_f1:.4f} over {int(matrix.support()[worst])} images")
    confused = matrix.most_confused(5)
    if confused:
        print("most confused, true -> predicted:")
        for target, pred, count in confused:
            print(f"{count:6d}  {classes[target]} -> {classes[pred]}")
    print(f"files: {folder}/ with best_f1.pt, best_loss.pt, last.pt, log.csv, config.json")


def print_folds(folder: Path, results: list[tuple[dict[str, Any], metrics.ConfusionMatrix]]) -> None:
    """Each fold's best macro F1, and the out-of-fold one: of all images, each judged by the run that did not see it."""
    out_of_fold = metrics.ConfusionMatrix(results[0][1].num_classes)
    print("\nfold  epoch  macro F1  accuracy  validation images")
    for f, (row, matrix) in enumerate(results):
        out_of_fold.counts += matrix.counts.cpu()
        print(f"{f:4d}{row['epoch']:7d}{row['val_f1']:10.4f}{row['val_accuracy']:10.4f}{int(matrix.counts.sum()):19,d}")
        append_row(folder / "folds.csv", {"fold": f, **row}, ("fold", *LOG_COLUMNS))
    scores = [row["val_f1"] for row, _ in results]
    low, high = out_of_fold.f1_interval()
    print(f"macro F1 of the folds: mean {statistics.mean(scores):.4f}, std {statistics.stdev(scores):.4f}")
    print(f"out-of-fold macro F1 over all images {out_of_fold.f1():.4f} (95 % interval {low:.4f} to {high:.4f})")
    print(f"files: {folder}/fold0 to fold{len(results) - 1}, folds.csv")


def make_state(options: argparse.Namespace, num_classes: int, updates: int, device: torch.device) -> State:
    """Fresh weights, optimizer, schedule, scaler and average."""
    with cli.blaming("--model, --weights"):
        model = models.build_model(options.model, num_classes, options.size, options.weights)
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
    return State(model, models.EMA(model, options.ema) if options.ema else None, optimizer, schedule, scaler)


def save_best_and_last(
    folder: Path, state: State, scores: dict[str, float], about: dict[str, Any], options: argparse.Namespace
) -> bool:
    """Writes last.pt, and best_f1.pt and best_loss.pt where this epoch is better; says whether its F1 is the best."""
    for_prediction = about | {"model": state.judged.state_dict(), "epoch": state.epoch, "scores": scores}
    is_best = scores["val_f1"] > state.best["f1"]
    if is_best:
        state.best["f1"] = scores["val_f1"]
        checkpoint.save(folder / "best_f1.pt", for_prediction)
    if scores["val_loss"] < state.best["loss"]:
        state.best["loss"] = scores["val_loss"]
        checkpoint.save(folder / "best_loss.pt", for_prediction)
    monitored = scores[f"val_{options.monitor}"] * (1 if cli.MONITORS[options.monitor] == "max" else -1)
    state.epochs_without_improvement += 1
    if monitored > state.best["monitored"] + options.min_delta:
        state.best["monitored"], state.epochs_without_improvement = monitored, 0
    checkpoint.save(folder / "last.pt", about | state.state_dict() | {"scores": scores})
    return is_best


def write_preview(path: str, batches: pixels.Batches, transform: augment.Augment, classes: list[str]) -> None:
    """The first batch of epoch 1 as the network would see it, with its labels."""
    batches.epoch = 1
    numbers, images, targets = next(iter(batches.indexed()))
    shares = transform.mix_targets(targets, numbers, batches.epoch, images.shape[2:])
    labels = [classes[t] for t in targets.tolist()]
    if shares.dim() == 2:  # mixed
        by_share = shares.argsort(1, descending=True).tolist()
        labels = [
            " + ".join(f"{row[c]:.2f} {classes[c]}" for c in order if row[c] > 0)
            for row, order in zip(shares, by_share, strict=True)
        ]
    x = transform(images, numbers, batches.epoch) * transform.std.view(3, 1, 1) + transform.mean.view(3, 1, 1)
    with cli.blaming("--preview"):
        augment.contact_sheet((x * 255).round().clamp(0, 255).byte(), labels).save(path)
    print(f"{path}: {len(labels)} training images as the network would see them")


def train_fold(
    options: argparse.Namespace, table: data.ImageTable, images: pixels.ImageArray, split: cli.Split, folder: Path,
    device: torch.device,
) -> tuple[dict[str, Any], metrics.ConfusionMatrix]:  # fmt: skip
    """One training from fresh weights. Returns the best epoch's row of the log and its confusion matrix."""
    torch.manual_seed(options.seed)
    num_classes = len(table.classes)
    criterion = cli.make_criterion(options, data.counts(table, split.train), device)
    train_batches, val_batches = cli.make_batches(options, images, split, device)
    updates = math.ceil(len(train_batches) / options.accum)
    state = make_state(options, num_classes, updates, device)
    augmented, plain = cli.make_augment(options, num_classes), augment.Augment("none")
    write_config(folder, options, table.classes, split.fold)
    if split.leaks:
        write_leaks(folder / "leaks.csv", split.leaks)
    print_start(options, table, split, train_batches, state, criterion, updates, folder)

    about = {"model_name": options.model, "classes": table.classes, "size": options.size, "fit": options.fit}
    about |= {"mean": list(augment.IMAGENET_MEAN), "std": list(augment.IMAGENET_STD)}
    best_row, best_matrix, amp = {}, None, cli.AMP_TYPES[options.amp]
    for epoch in range(1, options.epochs + 1):
        train_batches.epoch, lr, start = epoch, state.schedule.lr, time.perf_counter()
        try:
            trained = train_epoch(state, train_batches, criterion, augmented, amp, options.accum, options.clip)
            images_per_second = train_batches.images_an_epoch / (time.perf_counter() - start)
            scores, matrix = evaluate(state.judged, val_batches, num_classes, criterion, plain, amp)
        except (NonFinite, pixels.TransformError) as error:
            print(f"train.py: error: {error}\nthe files in {folder} are as of epoch {epoch - 1}", file=sys.stderr)
            raise SystemExit(2) from error
        state.epoch = epoch
        state.schedule.epoch_end(scores[f"val_{options.monitor}"])
        is_best = save_best_and_last(folder, state, scores, about, options)
        row = {"epoch": epoch, "lr": lr, **trained, **scores, "images_per_second": images_per_second}
        row["seconds"] = time.perf_counter() - start
        append_row(folder / "log.csv", row)
        print_row(row, is_best)
        if is_best:
            best_row, best_matrix = row, matrix
        if options.patience and state.epochs_without_improvement >= options.patience:
            print(f"stopped: {options.monitor} has not improved for {options.patience} epochs")
            break
    print_summary(folder, best_row, best_matrix, table.classes)
    return best_row, best_matrix


def main(argv: Sequence[str] | None = None) -> None:
    options = cli.parse_options(argv, __doc__)
    torch.backends.cudnn.benchmark = True
    if options.threads:
        torch.set_num_threads(options.threads)
    with cli.blaming("--device"):
        device = cli.usable_device(options.device)
    check_out(options.out)
    table = cli.read_table(options)
    splits = cli.make_splits(options, table)
    # a rehearsal: every name and value is refused before the files are decoded
    cli.make_criterion(options, data.counts(table, splits[0].train), device)
    cli.make_augment(options, len(table.classes))
    make_state(options, len(table.classes), 1, device)
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
    with cli.blaming("--transform"):
        next(iter(batches))
    if options.preview:
        write_preview(options.preview, batches, cli.make_augment(options, len(table.classes)), table.classes)
        return
    folder = new_folder(options)
    if len(splits) == 1:
        train_fold(options, table, images, splits[0], folder, device)
        return
    results = []
    for split in splits:
        results.append(train_fold(options, table, images, split, folder / f"fold{split.fold}", device))
        print()
    print_folds(folder, results)


if __name__ == "__main__":
    main()

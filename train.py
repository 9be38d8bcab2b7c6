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
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn
from tqdm import tqdm

import augment
import checkpoint
import data
import demo
import losses
import metrics
import models
import optim

MONITORS = {"f1": "max", "accuracy": "max", "loss": "min", "ce": "min"}  # what decides early stopping: better when
AMP_TYPES = {"off": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
Window = list[tuple[Tensor, Tensor, Tensor]]  # micro-batches of (row numbers, uint8 images, targets)

# ---------------------------------------------------------------------------------------------------------------------
# Options
# ---------------------------------------------------------------------------------------------------------------------


def parse_options(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        usage="python train.py [OPTION ...]", description=__doc__, allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    group = parser.add_argument_group("data", "e.g. --data mask_data --val-frac 0.2 --size 224 --augment light")
    add = group.add_argument
    add("--data", default="demo", help="a folder, 'demo', or a torchvision data set such as CIFAR10 (default demo)")
    add("--csv", help="a CSV with an image and a label column; --data is then the images' folder (default the CSV's)")
    add("--image-col", help="image column of the CSV (default: found by name; the start of the run says which)")
    add("--label-col", help="label column of the CSV (default: found by name, else the last)")
    add("--group-col", help="column of what must stay on one side of the split, e.g. a person (default: by name)")
    add("--group-regex", help=r"group from the file's path, e.g. '(\w+)_aug\d+': its first (...), or the whole match")
    add("--val-data", help="validation images, read like --data (default: a share of --data)")
    add("--val-frac", type=float, help="share of --data kept for validation (default 0.2)")
    add("--size", type=int, help="side of the square images in pixels (default 48 for the demo, else 224)")
    add("--augment", choices=augment.AUGMENTS, default="none", help="of the training images (default none)")
    add("--cache", default=os.path.join("~", ".cache", "f1kit"), help="folder of decoded images (default %(default)s)")

    group = parser.add_argument_group("model", "e.g. --model efficientnet_b3 --weights DEFAULT")
    add = group.add_argument
    add("--model", help="a torchvision classifier, resnet8/20/32 (for 32 pixels), vit_tiny, or your FILE.py:FUNCTION "
        "with FUNCTION(num_classes) (default resnet8 for the demo, else resnet18)")  # fmt: skip
    add("--weights", default="none", help="none, DEFAULT (pretrained, downloaded), or a checkpoint (default none)")

    group = parser.add_argument_group("loss", "e.g. --loss focal:0.6+f1:0.4 --gamma 1 --class-weights effective")
    add = group.add_argument
    add("--loss", "--criterion", default="ce", help=f"{', '.join(losses.LOSSES)}, or a sum such as ce+f1 (default ce)")
    add("--gamma", type=float, help="focusing parameter of focal (default 2)")
    add("--smoothing", type=float, help="label smoothing of ce, focal (default 0), label_smoothing (default 0.1)")
    add("--class-weights", choices=("none", *losses.WEIGHTINGS), default="none", help="from the training counts")

    group = parser.add_argument_group("optimisation", "e.g. --optimizer sgd --lr 0.1 --scheduler cosine --warmup 1")
    add = group.add_argument
    add("--epochs", type=int, default=15, help="passes over the training images (default 15)")
    add("--batch-size", type=int, default=32, help="images a micro-batch, what has to fit in memory (default 32)")
    add("--accum", type=int, default=1, help="micro-batches an update: effective batch = batch x accum (default 1)")
    add("--optimizer", choices=optim.OPTIMIZERS, default="adamw", help="default adamw")
    add("--lr", type=float, help="peak learning rate (default 0.1 for sgd, else 1e-3; 5e-3 for the demo)")
    add("--weight-decay", type=float, help="default 5e-4 for sgd, 0.01 for adamw, else 0")
    add("--scheduler", choices=optim.SCHEDULES, default="cosine", help="default cosine")
    add("--warmup", type=float, default=0.0, help="epochs of linear rise; for onecycle the length of its rise")
    add("--min-lr", type=float, help="where cosine and restarts end (default 0)")
    add("--step-epochs", type=int, help="epochs between the drops of step (default a third of the run)")
    add("--lr-decay", type=float, help="factor of a drop of step and plateau (default 0.1)")
    add("--plateau-patience", type=int, help="epochs without improvement that plateau waits (default 3)")
    add("--t0", type=int, help="epochs of the first cycle of restarts (default 10)")
    add("--t-mult", type=int, help="growth of the cycles of restarts (default 2)")
    add("--clip", type=float, help="largest gradient norm (default no clipping)")
    add("--amp", choices=AMP_TYPES, help="mixed precision (default fp16 on CUDA, else off)")
    add("--ema", type=float, help="decay of an exponential moving average of the weights, e.g. 0.999 (default none)")

    group = parser.add_argument_group("evaluation", "e.g. --patience 7 --min-delta 0.005")
    add = group.add_argument
    add("--monitor", choices=MONITORS, default="f1", help="validation number that early stopping and plateau watch")
    add("--patience", type=int, help="stop after so many epochs without improvement (default never)")
    add("--min-delta", type=float, help="for --patience, an improvement is more than this (default 0)")

    group = parser.add_argument_group("run", "e.g. --seed 1 --out runs/focal-1")
    add = group.add_argument
    add("--seed", type=int, default=0, help="of the split, the weights, the order, the augmentation (default 0)")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    add("--device", default=device, help="cpu, cuda or cuda:1 (default %(default)s)")
    add("--threads", type=int, help="CPU threads (default: torch's choice)")
    add("--out", help="folder of the run (default runs/TIME-MODEL-LOSS)")

    argv = list(sys.argv[1:] if argv is None else argv)
    for i, word in enumerate(argv):  # --batch_size is --batch-size
        if word.startswith("--"):
            flag, equals, value = word.partition("=")
            argv[i] = flag.replace("_", "-") + equals + value
    options = parser.parse_args(argv)
    for name, least in dict(epochs=1, batch_size=1, accum=1, size=8, patience=1, threads=1, seed=0).items():
        value = getattr(options, name)
        if value is not None and value < least:
            parser.error(f"--{name.replace('_', '-')} must be at least {least}, got {value}")
    if options.seed >= 2**63:
        parser.error(f"--seed must be less than 2^63, got {options.seed}")
    if options.min_delta is not None and not (options.patience and math.isfinite(options.min_delta)):
        parser.error(f"--min-delta must be a number, with --patience, got {options.min_delta}")
    options.min_delta = options.min_delta or 0.0
    for name in ("clip", "ema", "val_frac"):
        value = getattr(options, name)
        if value is not None and not 0 < value < (math.inf if name == "clip" else 1):
            least = "> 0" if name == "clip" else "between 0 and 1"
            parser.error(f"--{name.replace('_', '-')} must be {least}, got {value}")
    if options.csv and options.data == "demo":
        options.data = os.path.dirname(options.csv) or "."
    is_demo = options.data == "demo"  # small pictures, a small network, few updates
    options.size = options.size or (48 if is_demo else 224)
    options.model = options.model or ("resnet8" if is_demo else "resnet18")
    if is_demo and options.lr is None and options.optimizer == "adamw":
        options.lr = 5e-3
    options.amp = options.amp or ("fp16" if options.device.startswith("cuda") else "off")
    options.cache = os.path.expanduser(options.cache)
    return options


def given(options: argparse.Namespace, *names: str) -> dict[str, Any]:
    """Those of the options that were typed: what a loss or a schedule does not take must not be ignored."""
    return {name: getattr(options, name) for name in names if getattr(options, name) is not None}


@contextmanager
def blaming(flag: str) -> Iterator[None]:
    """Turns what a module says of a bad value or file into one line that names the flag, and exit code 2."""
    try:
        yield
    except (ValueError, OSError) as error:
        print(f"train.py: error: {flag}: {error}", file=sys.stderr)
        raise SystemExit(2) from error


# ---------------------------------------------------------------------------------------------------------------------
# Training
# ---------------------------------------------------------------------------------------------------------------------


class NonFinite(Exception):
    """A loss or gradient is NaN or infinite; the weights have not been touched."""


def windows(batches: data.Batches, accum: int) -> Iterator[Window]:
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
    batches: data.Batches,
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
        "train_ce": float(ce_sum) / len(batches.rows),
        "skipped_steps": skipped,
    }


def _describe(window: Window, batches: data.Batches, loss: float, norm: float) -> str:
    files = [batches.images.paths[i] for index, _, _ in window for i in index.tolist()]
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
    batches: data.Batches,
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
    with blaming("--out"):
        if out and (Path(out) / "config.json").exists():
            raise ValueError(f"{out} already holds a run; choose another folder")
        if out and Path(out).exists() and not Path(out).is_dir():
            raise ValueError(f"{out} is a file")


def start_run(options: argparse.Namespace, classes: list[str]) -> Path:
    """A new folder with config.json in it, before the first epoch: a run that dies can still be told apart."""
    name = re.sub(r"[^\w.+-]", "_", f"{time.strftime('%Y%m%d-%H%M%S')}-{options.model}-{options.loss}")
    with blaming("--out"):
        folder = Path(options.out or os.path.join("runs", name))
        while not options.out and folder.exists():  # another run began in the same second
            folder = folder.with_name(folder.name + "_")
        folder.mkdir(parents=True, exist_ok=bool(options.out))
        config = {
            "command": shlex.join(["python", *sys.argv]),
            "options": vars(options),
            "classes": classes,
            "versions": {
                "python": platform.python_version(),
                "torch": torch.__version__,
                "torchvision": torchvision.__version__,
            },
        }
        checkpoint.write_text(folder / "config.json", json.dumps(config, indent=2, ensure_ascii=False))
    return folder


def append_row(path: Path, row: dict[str, Any]) -> None:
    is_new = not path.exists()
    with open(path, "a", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, LOG_COLUMNS)
        if is_new:
            writer.writeheader()
        writer.writerow(row)


def print_start(
    options: argparse.Namespace, table: data.ImageTable, train_rows: Any, val_rows: Any, state: State,
    criterion: nn.Module, updates: int, folder: Path,
) -> None:  # fmt: skip
    """What this run is: every line a thing that people got wrong without knowing."""
    counts = data.counts(table, train_rows)
    smallest, largest = int(counts.argmin()), int(counts.argmax())
    lr, decay = state.schedule.base_lrs[0], state.optimizer.param_groups[0]["weight_decay"]
    schedule = options.scheduler + (f" after {options.warmup:g} epochs of warm-up" if options.warmup else "")
    lines = {
        "data": f"{table.layout}: {len(table):,} images, {len(table.classes)} classes",
        "classes": f"largest {table.classes[largest]} ({counts[largest]:,} training images), "
        f"smallest {table.classes[smallest]} ({counts[smallest]:,}), "
        f"imbalance {counts[largest] / max(counts[smallest], 1):.1f}",
        "split": f"{len(train_rows):,} training, {len(val_rows):,} validation images; "
        f"groups shared: {data.shared_groups(table, train_rows, val_rows)}",
        "model": f"{options.model}, {models.count_parameters(state.model) / 1e6:.2f} M parameters, "
        f"weights {options.weights}, {options.size} x {options.size} pixels, augment {options.augment}",
        "loss": f"{criterion}, class weights {options.class_weights}",
        "batch": f"{options.batch_size} x {options.accum} accumulated = effective batch "
        f"{options.batch_size * options.accum}; {updates:,} updates an epoch, {options.epochs} epochs",
        "optim": f"{options.optimizer}, lr {lr:g}, weight decay {decay:g}, {schedule}",
        "device": f"{options.device}, {torch.get_num_threads()} threads, amp {options.amp}, seed {options.seed}",
        "run": str(folder),
    }
    for label, text in lines.items():
        print(f"{label:<9}{text}")
    for note in table.notes:
        print(f"{'note':<9}{note}")


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


def read_table(options: argparse.Namespace) -> tuple[data.ImageTable, Any, Any]:
    """The table of all images, and which of its rows are for training and for validation."""
    with blaming("--cache"):
        Path(options.cache).mkdir(parents=True, exist_ok=True)
    with blaming("--csv" if options.csv else "--data"):
        source = options.data
        if source == "demo":
            source = str(demo.draw(Path(options.cache) / f"demo-{demo.VERSION}"))
        columns = given(options, "image_col", "label_col", "group_col")
        columns = {flag.removesuffix("_col"): column for flag, column in columns.items()}
        table = data.read(source, options.csv, options.cache, True, columns, options.group_regex)
    if options.val_data:
        with blaming("--val-data"):
            val = data.read(options.val_data, None, options.cache, False, columns, options.group_regex)
            table = data.join(table, val)
    if table.is_val is not None and options.val_frac:
        with blaming("--val-frac"):
            raise ValueError(f"{options.val_frac} has no effect: the validation images are given")
    with blaming("--val-data" if options.val_data else "--data"):
        train_rows, val_rows = data.split(table, options.val_frac or 0.2, options.seed)
        in_val = data.counts(table, val_rows)
        if (in_val > 0).sum() < 2:
            raise ValueError(f"all {len(val_rows)} validation images are of one class: nothing can be judged by them")
    absent = [name for name, n in zip(table.classes, in_val, strict=True) if n == 0]
    if absent:
        table.notes.append(f"{len(absent)} classes have no validation image and score 0: {', '.join(absent[:10])}")
    return table, train_rows, val_rows


def usable_device(name: str) -> torch.device:
    try:
        device = torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"{name!r} cannot be used here: {str(error).partition('. ')[0]}") from error
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"{name!r} is not supported: choose cpu, cuda or cuda:NUMBER")
    return device


def make_state(options: argparse.Namespace, num_classes: int, updates: int, device: torch.device) -> State:
    """Fresh weights, optimizer, schedule, scaler and average."""
    with blaming("--model, --weights"):
        model = models.build_model(options.model, num_classes, options.size, options.weights)
    if options.batch_size == 1:  # BatchNorm may not be able to
        with blaming("--batch-size"):
            models.check_output(model, options.model, num_classes, options.size, batch=1)
    model = model.to(device, memory_format=torch.channels_last)
    with blaming("--optimizer"):
        optimizer = optim.build_optimizer(options.optimizer, model, options.lr, options.weight_decay)
    with blaming("--scheduler"):
        more = given(options, "step_epochs", "lr_decay", "plateau_patience", "min_lr", "t0", "t_mult")
        mode = MONITORS[options.monitor]
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
    monitored = scores[f"val_{options.monitor}"] * (1 if MONITORS[options.monitor] == "max" else -1)
    state.epochs_without_improvement += 1
    if monitored > state.best["monitored"] + options.min_delta:
        state.best["monitored"], state.epochs_without_improvement = monitored, 0
    checkpoint.save(folder / "last.pt", about | state.state_dict() | {"scores": scores})
    return is_best


def main(argv: Sequence[str] | None = None) -> None:
    options = parse_options(argv)
    torch.manual_seed(options.seed)
    torch.backends.cudnn.benchmark = True
    if options.threads:
        torch.set_num_threads(options.threads)
    with blaming("--device"):
        device = usable_device(options.device)
    check_out(options.out)
    table, train_rows, val_rows = read_table(options)
    with blaming("--loss"):
        more = given(options, "gamma", "smoothing")
        if options.class_weights != "none":
            more["weight"] = losses.class_weights(data.counts(table, train_rows).tolist(), options.class_weights)
        criterion = losses.build_loss(options.loss, **more).to(device)
    updates = math.ceil(data.count_batches(len(train_rows), options.batch_size) / options.accum)
    state = make_state(options, len(table.classes), updates, device)
    augmented, plain = augment.Augment(options.augment, options.seed), augment.Augment("none")
    with blaming("--data"):
        images = data.decode(table, options.size, Path(options.cache) / "images", options.threads)
    images.move_to(device)
    train_batches = data.Batches(images, train_rows, options.batch_size, True, options.seed, device)
    val_batches = data.Batches(images, val_rows, options.batch_size, device=device)
    folder = start_run(options, table.classes)
    print_start(options, table, train_rows, val_rows, state, criterion, updates, folder)

    about = {"model_name": options.model, "classes": table.classes, "size": options.size}
    about |= {"mean": list(augment.IMAGENET_MEAN), "std": list(augment.IMAGENET_STD)}
    best_row, best_matrix, amp = {}, None, AMP_TYPES[options.amp]
    for epoch in range(1, options.epochs + 1):
        train_batches.epoch, lr, start = epoch, state.schedule.lr, time.perf_counter()
        try:
            trained = train_epoch(state, train_batches, criterion, augmented, amp, options.accum, options.clip)
            images_per_second = len(train_rows) / (time.perf_counter() - start)
            scores, matrix = evaluate(state.judged, val_batches, len(table.classes), criterion, plain, amp)
        except NonFinite as error:
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


if __name__ == "__main__":
    main()

"""The command line of train.py: its options, what they name (images, splits, loss, batches), and what it prints.

A bad value or file is one line that names the flag, the value and what would be valid, and exit code 2.
"""

from __future__ import annotations

import argparse
import csv
import functools
import math
import os
import re
import statistics
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

import augment
import data
import demo
import leaks
import losses
import metrics
import models
import optim
import pixels
import runs

MONITORS = {"f1": "max", "accuracy": "max", "loss": "min", "ce": "min"}  # what decides early stopping: better when
AMP_TYPES = {"off": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}

# ---------------------------------------------------------------------------------------------------------------------
# Options
# ---------------------------------------------------------------------------------------------------------------------


def make_parser(description: str | None = None) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        usage="python train.py [OPTION ...]", allow_abbrev=False, description=description,
        formatter_class=functools.partial(argparse.RawDescriptionHelpFormatter, max_help_position=32),
    )  # fmt: skip
    group = parser.add_argument_group("data", "e.g. --data mask_data --val-frac 0.2 --size 224 --augment light")
    add = group.add_argument
    add("--data", default="demo", help="a folder, 'demo', or a torchvision data set such as CIFAR10 (default demo)")
    add("--csv", help="a CSV with an image and a label column; --data is then the images' folder (default the CSV's)")
    add("--image-col", help="image column of the CSV (default: found by name; the start of the run says which)")
    add("--label-col", help="label column of the CSV (default: found by name, else the last)")
    add("--group-col", help="column of what must stay on one side of the split, e.g. a person (default: by name)")
    add("--group-regex", metavar="REGEX", help="group from the path, e.g. '(\\w+)_aug': its (...), or the whole match")
    add("--fold-col", help="column of the folds (default: fold or kfold, if the CSV has it)")
    add("--only", metavar="CLASSES", help="these classes alone, by name or number: 3,7,14")
    add("--merge", metavar="CLASSES", help="these classes as one: 3,7,14")
    add("--size", type=int, nargs="+", metavar="PIXELS", help="side of the images, or H W (default 224; demo 48)")
    add("--fit", choices=pixels.FITS, default="squash", help="how a photo of another shape fills it (default squash)")
    add("--bad", choices=("error", "skip"), default="error", help="what cannot be decoded: stop, or leave it out")
    add("--cache", default=os.path.join("~", ".cache", "f1kit"), help="folder of decoded images (default %(default)s)")

    group = parser.add_argument_group("split", "e.g. --folds 5 --fold all --leaks group")
    add = group.add_argument
    add("--val-data", help="validation images, read like --data (default: a share of --data)")
    add("--val-frac", type=float, help="share of --data kept for validation (default 0.2)")
    add("--folds", type=int, help="cross-validation with so many folds (default none, or what a fold column says)")
    add("--fold", help="fold to validate on, from 0, or all in turn (default all; of a fold column the first)")
    add("--leaks", choices=("error", "group", "warn"), help="copies of validation images in training: stop, keep "
        "copies on one side, or say so (default warn, but stop if identical images have two labels)")  # fmt: skip

    group = parser.add_argument_group("training images", "e.g. --sampler weighted --augment strong --mixup 0.2")
    add = group.add_argument
    add("--imbalance", type=float, metavar="FACTOR", help="cut balanced training images to a long tail, e.g. 100")
    add("--sampler", choices=pixels.SAMPLERS, default="shuffle", help="which images make an epoch (default shuffle)")
    add("--samples-per-class", type=int, help="of the balanced sampler, an epoch (default the smallest class's size)")
    add("--augment", choices=augment.AUGMENTS, default="none", help="each image by its own draw (default none)")
    add("--transform", metavar="FILE.py:FUNCTION", help="your function before it: (image, rng) -> uint8 (H, W, 3)")
    add("--mixup", type=float, default=0.0, metavar="ALPHA", help="mix pairs of images, e.g. 0.2 (default 0, none)")
    add("--cutmix", type=float, default=0.0, metavar="ALPHA", help="a box of another image, e.g. 1 (default 0, none)")
    add("--preview", metavar="FILE.png", help="write what the network would see, with labels, and stop")

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
    add("--resume", metavar="RUN", help="go on with a run that was cut, with its own options")
    add("--save-every", type=int, metavar="UPDATES", help="write last.pt within epochs too (default: after each epoch)")
    add("--save-top", type=int, metavar="K", help="also keep the K epochs that are best by --monitor")
    add("--tensorboard", action="store_true", help="log.csv's numbers to RUN/tensorboard too (needs tensorboard)")
    add("--wandb", metavar="PROJECT", help="log.csv's numbers to Weights & Biases too (needs wandb and a login)")
    add("--skip-nonfinite", type=int, default=0, metavar="N", help="updates that may be left out for NaN (default 0)")
    for action in parser._actions:
        if action.metavar is None and action.choices is None and action.nargs is None:
            of_type = {int: "N", float: "X"}.get(action.type)
            action.metavar = of_type or ("COLUMN" if action.dest.endswith("_col") else None)
    return parser


def parse_options(argv: Sequence[str] | None = None, description: str | None = None) -> argparse.Namespace:
    """Options that are checked and resolved; with --resume those of the run that is resumed."""
    parser, argv = make_parser(description), list(sys.argv[1:] if argv is None else argv)
    for i, word in enumerate(argv):  # --batch_size is --batch-size
        if word.startswith("--"):
            flag, equals, value = word.partition("=")
            argv[i] = flag.replace("_", "-") + equals + value
    options = parser.parse_args(argv)
    _check(parser, options)
    if not options.resume:
        return options
    flags = {word.partition("=")[0] for word in argv}
    return _resumed(parser, options, {a.dest for a in parser._actions if flags & set(a.option_strings)})


# what a resumed run may do otherwise
MAY_CHANGE = {"resume", "device", "threads", "cache", "save_every", "tensorboard", "wandb"}


def _resumed(parser: argparse.ArgumentParser, options: argparse.Namespace, typed: set[str]) -> argparse.Namespace:
    """The options of the run, with what was typed again and may change. Refuses what would make it another run."""
    try:
        saved = argparse.Namespace(**vars(options) | runs.read_config(Path(options.resume))["options"])
    except ValueError as error:
        parser.error(f"--resume: {error}")
    folder = Path(options.resume).resolve()
    if re.fullmatch(r"fold\d+", folder.name) and (folder.parent / "config.json").is_file():
        parser.error(f"--resume {options.resume} is a fold: resume the run that it is of, {folder.parent}")
    saved.size = tuple(saved.size) if isinstance(saved.size, list) else saved.size
    options.out = options.out and os.path.normpath(options.out)
    saved.out = os.path.normpath(options.resume)
    for name in sorted(typed):
        new, old, flag = getattr(options, name), getattr(saved, name), f"--{name.replace('_', '-')}"
        if name == "epochs" and new > old:
            if not (saved.scheduler in ("none", "plateau", "restarts") or saved.step_epochs):
                parser.error(f"--epochs {new}: the schedule {saved.scheduler} was planned for {old} epochs; for more, "
                             "every learning rate so far would have been another")  # fmt: skip
        elif new != old and name not in MAY_CHANGE:
            parser.error(f"{flag} {new}: the run was started with {flag} {old}, and a resumed run goes on as it began")
        setattr(saved, name, new)
    return saved


def _check(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    """Refuses values out of range, and fills in the defaults that depend on other options."""
    at_least = dict(epochs=1, batch_size=1, accum=1, patience=1, threads=1, seed=0, folds=2, samples_per_class=1)
    for name, least in (at_least | dict(save_every=1, save_top=1, skip_nonfinite=0)).items():
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
    size = options.size or [48 if is_demo else 224]
    if len(size) > 2 or min(size) < 8:
        parser.error(f"--size must be one side or H W, each at least 8, got {' '.join(map(str, size))}")
    options.size = size[0] if len(set(size)) == 1 else tuple(size)
    if options.samples_per_class and options.sampler != "balanced":
        parser.error(f"--samples-per-class is of --sampler balanced, not of {options.sampler}")
    options.model = options.model or ("resnet8" if is_demo else "resnet18")
    if is_demo and options.lr is None and options.optimizer == "adamw":
        options.lr = 5e-3
    options.amp = options.amp or ("fp16" if options.device.startswith("cuda") else "off")
    options.cache = os.path.expanduser(options.cache)


def given(options: argparse.Namespace, *names: str) -> dict[str, Any]:
    """Those of the options that were typed: what a loss or a schedule does not take must not be ignored."""
    return {name: getattr(options, name) for name in names if getattr(options, name) is not None}


@contextmanager
def blaming(flag: str, program: str = "train.py") -> Iterator[None]:
    """Turns what a module says of a bad value or file into one line that names the flag, and exit code 2."""
    try:
        yield
    except (ValueError, OSError) as error:
        print(f"{program}: error: {flag}: {error}", file=sys.stderr)
        raise SystemExit(2) from error


# ---------------------------------------------------------------------------------------------------------------------
# What they name
# ---------------------------------------------------------------------------------------------------------------------


@dataclass
class Split:
    """Rows of the table for training and for validation."""

    train: np.ndarray
    val: np.ndarray
    fold: int | None = None
    notes: list[str] = field(default_factory=list)
    leaks: list[tuple[str, ...]] = field(default_factory=list)


def read_table(options: argparse.Namespace) -> data.ImageTable:
    """The table of all images that are to be used."""
    with blaming("--cache"):
        Path(options.cache).mkdir(parents=True, exist_ok=True)
    with blaming("--csv" if options.csv else "--data"):
        source = options.data
        if source == "demo":
            source = str(demo.draw(Path(options.cache) / f"demo-{demo.VERSION}"))
        columns = given(options, "image_col", "label_col", "group_col", "fold_col")
        columns = {flag.removesuffix("_col"): column for flag, column in columns.items()}
        table = name_groups(options, data.read(source, options.csv, options.cache, True, columns))
    if options.val_data:
        with blaming("--fold-col"):
            if options.fold_col:
                raise ValueError(f"{options.fold_col} has no effect: the validation images are given")
        with blaming("--val-data"):
            has_csv = any((Path(options.val_data) / name).is_file() for name in ("train.csv", "train/train.csv"))
            named = columns if has_csv else {}
            val = data.read(options.val_data, None, options.cache, False, named)
            table = data.join(table, name_groups(options, val))
    if options.only:
        with blaming("--only"):
            table = data.only(table, options.only)
    if options.merge:
        with blaming("--merge"):
            table = data.merge(table, options.merge)
    return table


def name_groups(options: argparse.Namespace, table: data.ImageTable) -> data.ImageTable:
    """The table with the groups of --group-regex, if it is given."""
    if options.group_regex is not None:
        table.groups = leaks.groups_by_regex(table.paths, options.group_regex)
        table.layout += f", groups by {options.group_regex}"
    return table


def make_splits(options: argparse.Namespace, table: data.ImageTable) -> list[Split]:
    """One split, or one for each fold that is to be run."""
    has_folds = options.folds or table.fold_of is not None
    if options.val_frac and (has_folds or table.is_val is not None):
        with blaming("--val-frac"):
            reason = "there are folds" if has_folds else "the validation images are given"
            raise ValueError(f"{options.val_frac} has no effect: {reason}")
    if options.fold and not has_folds:
        with blaming("--fold"):
            raise ValueError(f"{options.fold} has no effect: there are no folds (--folds, or a fold column)")
    if has_folds:
        with blaming("--folds"):
            k = options.folds or int(table.fold_of.max()) + 1
            fold_of = data.folds(table, k, options.seed)
        with blaming("--fold"):
            wanted = options.fold or ("all" if options.folds else "0")
            if wanted != "all" and not (wanted.isdecimal() and int(wanted) < k):
                raise ValueError(f"{wanted!r} is no fold: choose from 0 to {k - 1}, or all")
        chosen = range(k) if wanted == "all" else [int(wanted)]
        splits = [Split(np.flatnonzero(fold_of != f), np.flatnonzero(fold_of == f), f) for f in chosen]
    else:
        with blaming("--val-data" if options.val_data else "--data"):
            splits = [Split(*data.split(table, options.val_frac or 0.2, options.seed))]
    for split in splits:
        if options.imbalance:
            with blaming("--imbalance"):
                split.train = data.long_tail(table, split.train, options.imbalance, options.seed)
        check_split(options, table, split)
    return splits


def check_split(options: argparse.Namespace, table: data.ImageTable, split: Split) -> None:
    """What a split cannot judge is an error or a note."""
    in_train, in_val = data.counts(table, split.train), data.counts(table, split.val)
    with blaming("--folds" if split.fold is not None else "--val-data" if options.val_data else "--data"):
        if (in_val > 0).sum() < 2:
            raise ValueError(f"all {len(split.val)} validation images are of one class: nothing can be judged by them")
    for where, absent in (("validation", in_val == 0), ("training", (in_train == 0) & (in_val > 0))):
        names = [table.classes[c] for c in np.flatnonzero(absent)]
        if names:
            split.notes.append(f"{len(names)} classes have no {where} image and score 0: {', '.join(names[:10])}")


def check_leaks(
    options: argparse.Namespace, table: data.ImageTable, images: pixels.ImageArray, splits: list[Split]
) -> list[Split]:
    """Copies of validation images among the training images are named, refused, or kept on one side (--leaks).

    Without known groups, file names that look like copies or people are a note: after the last word on the splits.
    """
    kept = images.file and images.file.with_suffix(".copies.npy")
    same, alike = leaks.find_copies(images.pixels, options.device, kept)
    if options.leaks == "group":
        with blaming("--leaks"):
            if table.is_val is not None or table.fold_of is not None:
                raise ValueError("group cannot change a split that the data fixes: choose error or warn")
        table.groups = data.tied(table.groups, alike)
        splits = make_splits(options, table)
    twice = leaks.find_two_labels(table.paths, table.targets, table.classes, same)
    if twice:
        table.notes.append(f"{len(twice)} images are identical to one of another class:" + listed(twice))
    for split in splits:
        images_of = table.paths, table.targets, table.classes
        guess = leaks.suspect_groups(*images_of, table.groups, split.train, split.val)
        if guess:
            split.notes.append(
                f"no group is known, and {len(table)} file names look like {guess.count} times {guess.what}: "
                f"{guess.share:.0%} of the validation images would have a sibling in training. If so, --group-regex "
                f"'{guess.regex}'"
            )
        split.leaks = leaks.find_leaks(*images_of, same, alike, split.train, split.val)
        contradictions = [leak for leak in split.leaks if leak[0] == "identical" and leak[2] != leak[4]]
        refused = {"error": split.leaks, "warn": [], "group": [], None: contradictions}[options.leaks]
        if refused:
            with blaming("--leaks"):
                what = "" if options.leaks else " with another label"
                raise ValueError(f"{len(refused)} validation images have a copy{what} in training:" + listed(refused))
        for what in ("identical", "alike"):
            of_kind = [leak for leak in split.leaks if leak[0] == what]
            if of_kind:
                split.notes.append(
                    f"{len(of_kind)} validation images have one in training that is {what} (see leaks.csv), such as "
                    f"{of_kind[0][1]} and {of_kind[0][3]}; --leaks group keeps copies on one side"
                )
    return splits


def listed(leaks: list[tuple[str, ...]]) -> str:
    lines = [f"\n  {image} ({label}) and {other} ({other_label})" for _, image, label, other, other_label in leaks]
    return "".join(lines[:20]) + (f"\n  and {len(leaks) - 20} more" if len(leaks) > 20 else "")


def usable_device(name: str) -> torch.device:
    """The device of --device, with its number. BadInput if it is not cpu, cuda or cuda:NUMBER, or is not there."""
    choices = "choose cpu, cuda or cuda:NUMBER"
    if not re.fullmatch("cpu|cuda(:[0-9]+)?", name):
        raise runs.BadInput(f"{name!r} is not a supported device: {choices}")
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        found = torch.cuda.device_count()
        raise runs.BadInput(f"{name!r} cannot be used: torch finds {found} CUDA GPU(s) here; {choices}") from error


def make_criterion(options: argparse.Namespace, train_counts: np.ndarray, device: torch.device) -> nn.Module:
    with blaming("--loss"):
        more = given(options, "gamma", "smoothing")
        if options.class_weights != "none":
            more["weight"] = losses.class_weights(train_counts.tolist(), options.class_weights)
        return losses.build_loss(options.loss, **more).to(device)


def make_augment(options: argparse.Namespace, num_classes: int) -> augment.Augment:
    with blaming("--mixup, --cutmix"):
        return augment.Augment(
            options.augment, options.seed, mixup=options.mixup, cutmix=options.cutmix, num_classes=num_classes
        )


def make_batches(
    options: argparse.Namespace, images: pixels.ImageArray, split: Split, device: torch.device
) -> tuple[pixels.Batches, pixels.Batches]:
    """Batches for training, sampled and transformed, and for validation, neither."""
    targets = images.targets.cpu().numpy()[split.train]  # weights from the training rows alone
    sampler = functools.partial(pixels.SAMPLERS[options.sampler], targets, per_class=options.samples_per_class)
    transform = None
    if options.transform:
        with blaming("--transform"):
            transform = augment.as_transform(models.load_function(options.transform, "transform"))
    train = pixels.Batches(images, split.train, options.batch_size, True, options.seed, device, sampler, transform)
    return train, pixels.Batches(images, split.val, options.batch_size, device=device)


# ---------------------------------------------------------------------------------------------------------------------
# What is printed
# ---------------------------------------------------------------------------------------------------------------------


def coloured(text: str, code: int) -> str:
    """With an ANSI colour on a terminal, unless NO_COLOR (no-color.org) forbids it."""
    plain = os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb" or not sys.stdout.isatty()
    return text if plain else f"\033[{code}m{text}\033[0m"


BOLD, DIM, GREEN, YELLOW = 1, 2, 32, 33


def print_start(
    options: argparse.Namespace, table: data.ImageTable, split: Split, batches: pixels.Batches, state: Any,
    criterion: nn.Module, updates: int, folder: Path,
) -> None:  # fmt: skip
    """What this run is: every line a thing that people got wrong without knowing."""
    counts = data.counts(table, split.train)
    smallest, largest = int(counts.argmin()), int(counts.argmax())
    lr, decay = state.schedule.base_lrs[0], state.optimizer.param_groups[0]["weight_decay"]
    schedule = options.scheduler + (f" after {options.warmup:g} epochs of warmup" if options.warmup else "")
    H, W = models.sides(options.size)
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
        print(coloured(f"{label:<9}", DIM) + text)
    for note in table.notes + split.notes:
        print(coloured(f"{'note':<9}", YELLOW) + note)
    columns = "epoch        lr  train loss  train CE  val loss    val CE  macro F1  accuracy  images/s  seconds"
    print("\n" + coloured(columns, BOLD))
    sys.stdout.flush()


def drawn_counts(table: data.ImageTable, batches: pixels.Batches) -> np.ndarray:
    """Images of each class in an epoch, after sampling."""
    return np.bincount(table.targets[batches.numbers() % len(table)], minlength=len(table.classes))


def facts(table: data.ImageTable, split: Split, batches: pixels.Batches, updates: int) -> dict[str, Any]:
    """What config.json says beside the options."""
    return {
        "train_counts": data.counts(table, split.train).tolist(),
        "drawn_counts": drawn_counts(table, batches).tolist(),
        "val_counts": data.counts(table, split.val).tolist(),
        "updates_an_epoch": updates,
        "notes": table.notes + split.notes,
    }


def describe_sampler(
    options: argparse.Namespace, table: data.ImageTable, split: Split, batches: pixels.Batches
) -> str:
    """How much of an epoch a class is, and of the loss where classes have weights: the effective prior."""
    counts, drawn = data.counts(table, split.train), drawn_counts(table, batches)
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

    print(
        f"{row['epoch']:5d}{row['lr']:10.1e}{short(row['train_loss']):>12}{short(row['train_ce']):>10}"
        f"{short(row['val_loss']):>10}{short(row['val_ce']):>10}{row['val_f1']:10.4f}{row['val_accuracy']:10.4f}"
        f"{row['images_per_second']:10.0f}{row['seconds']:9.1f}" + (coloured("  best", GREEN) if is_best else ""),
        flush=True,
    )


def print_summary(folder: Path, best: dict[str, Any], matrix: metrics.ConfusionMatrix, classes: list[str]) -> None:
    low, high = matrix.f1_interval()
    worst, worst_f1 = matrix.worst_class()
    score = coloured(f"best macro F1 {best['val_f1']:.4f}", BOLD)
    print(f"\n{score} (95 % interval {low:.4f} to {high:.4f}) in epoch {best['epoch']}")
    print(f"over the classes present {best['val_f1_present']:.4f}, accuracy {best['val_accuracy']:.4f}")
    print(f"worst class: {classes[worst]}, F1 {worst_f1:.4f} over {int(matrix.support()[worst])} images")
    confused = matrix.most_confused(5)
    if confused:
        with open(folder / "val_predictions.csv", newline="", encoding="utf-8", errors="surrogateescape") as file:
            rows = list(csv.DictReader(file))
        print("most confused, true -> predicted, and the worst file of each:")
        for target, pred, count in confused:
            pair = [row for row in rows if (row["class"], row["predicted"]) == (classes[target], classes[pred])]
            worst = max(pair, key=lambda row: float(row["confidence"]))
            print(f"{count:6d}  {classes[target]} -> {classes[pred]}  {worst['image']} ({worst['confidence']})")
    print(f"files: {folder}/ with report.html, best_f1.pt, best_loss.pt, last.pt, log.csv, config.json", flush=True)


def print_folds(folder: Path, results: list[tuple[dict[str, Any], metrics.ConfusionMatrix]]) -> None:
    """Each fold's best macro F1, and the out-of-fold one: of all images, each judged by the run that did not see it."""
    out_of_fold = metrics.ConfusionMatrix(results[0][1].num_classes)
    print("\nfold  epoch  macro F1  accuracy  validation images")
    for f, (row, matrix) in enumerate(results):
        out_of_fold.counts += matrix.counts.cpu()
        print(f"{f:4d}{row['epoch']:7d}{row['val_f1']:10.4f}{row['val_accuracy']:10.4f}{int(matrix.counts.sum()):19,d}")
    scores = [row["val_f1"] for row, _ in results]
    low, high = out_of_fold.f1_interval()
    print(f"macro F1 of the folds: mean {statistics.mean(scores):.4f}, std {statistics.stdev(scores):.4f}")
    print(f"out-of-fold macro F1 over all images {out_of_fold.f1():.4f} (95 % interval {low:.4f} to {high:.4f})")
    print(f"files: {folder}/ with report.html, folds.csv, oof.npz, fold0 to fold{len(results) - 1}")


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
    with blaming("--preview"):
        augment.save_image(augment.contact_sheet((x * 255).round().clamp(0, 255).byte(), labels), path)
    print(f"{path}: {len(labels)} training images as the network would see them")

"""Builds what the options of train.py select: table, images, splits, criterion, augmentation, batches, model.

A bad value or file ends the program with one line that names the flag (cli.blaming).
"""

from __future__ import annotations

import argparse
import functools
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import augment
import cli
import data
import demo
import leaks
import loop
import losses
import models
import optim
import pixels
import pseudo
import runs
from ranks import Ranks
from stopping import SIGNALS


@dataclass
class Split:
    """Rows of the table for training and for validation."""

    train: np.ndarray
    val: np.ndarray
    fold: int | None = None
    notes: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)  # notes that matter for every score of the run
    leaks: list[leaks.Pair] = field(default_factory=list)
    guess: leaks.Guess | None = None
    folds_after: int = 0  # folds that are trained after this one
    pseudo: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))  # the rows of `train` with pseudo-labels


# ---------------------------------------------------------------------------------------------------------------------
# The table of images
# ---------------------------------------------------------------------------------------------------------------------


def read_table(options: argparse.Namespace) -> data.ImageTable:
    """The table of all images that --data, --csv, --val-data, --only and --merge select."""
    with cli.blaming("--cache"):
        Path(options.cache).mkdir(parents=True, exist_ok=True)
    columns = cli.given(options, "image_col", "label_col", "group_col", "fold_col")
    columns = {name.removesuffix("_col"): column for name, column in columns.items()}
    with cli.blaming("--csv" if options.csv else "--data"):
        source = options.data
        if source == "demo":
            source = str(demo.draw(Path(options.cache) / f"demo-{demo.VERSION}"))
        has_csv = options.csv or is_csv_folder(source)
        how = {"fold_case": options.fold_case, "skip_missing": options.bad == "skip"}
        named = columns if has_csv else {}
        table = data.read(source, options.csv, options.cache, True, named, options.num_classes, **how)
    if columns and table.csv_file is None:
        part, column = next(iter(columns.items()))
        with cli.blaming(f"--{part}-col"):
            raise data.BadInput(
                f"{table.layout} has no CSV, so it has no column {column!r}: remove the option, or add --csv"
            )
    if options.val_data:
        with cli.blaming("--fold-col"):
            if options.fold_col:
                raise data.BadInput(f"{options.fold_col} has no effect with --val-data: remove one of the two options")
        with cli.blaming("--val-data"):
            has_csv = is_csv_folder(options.val_data)
            val = data.read(options.val_data, None, options.cache, False, columns if has_csv else {}, **how)
        with cli.blaming("--val-data"):
            table = data.join(table, val, options.fold_case)
    set_groups(options, table)
    table.all_classes, table.all_labels = table.classes, table.labels
    for name, choose in (("only", data.only), ("merge", data.merge)):
        if getattr(options, name):
            with cli.blaming(cli.flag_of(name)):
                table = choose(table, getattr(options, name))
    if options.fixes:
        with cli.blaming("--fixes"):
            fix_labels(table, options.fixes)
    return table


def fix_labels(table: data.ImageTable, file: str) -> None:
    """Changes the labels of the rows of labels.py's CSV whose action is fix. table.fixes has these, and the drops.

    Rows without an action, and further columns, are ignored. BadInput for a row that does not fit the table.
    """
    sheet, fixes = data.read_sheet(Path(file)), {}
    columns = data.columns_of(sheet.file, sheet.rows)
    missing = [name for name in runs.FIX_COLUMNS if name not in columns]
    if missing:
        raise data.BadInput(
            f"{file} has no column {missing[0]!r}: it must have {', '.join(runs.FIX_COLUMNS)}, see labels.py"
        )
    row_of = {os.path.abspath(path): i for i, path in enumerate(table.paths)}
    for row, line in zip(sheet.rows, sheet.lines, strict=True):
        action, image, given, suggested = (runs.from_cell(row[columns[name]].strip()) for name in runs.FIX_COLUMNS)
        if action:
            try:
                i, c = _fix(table, row_of, action, image, given, suggested)
                if table.paths[i] in fixes:
                    raise data.BadInput(f"{image!r:.200} has two rows with an action: keep one")
            except data.BadInput as error:
                raise data.BadInput(f"{file}, line {line}: {error}") from error
            fixes[table.paths[i]] = int(table.targets[i]), c
    if not fixes:
        raise data.BadInput(f"{file} has no effect: no row has fix or drop in the column action")
    table.fixes, table.targets = fixes, table.targets.copy()
    for path, (_, c) in fixes.items():
        if c is not None:
            table.targets[row_of[os.path.abspath(path)]] = c
    dropped = sum(c is None for _, c in fixes.values())
    table.notes.append(f"--fixes {file}: labels changed: {len(fixes) - dropped}, images left out: {dropped}")


def _fix(
    table: data.ImageTable, row_of: dict[str, int], action: str, image: str, given: str, suggested: str
) -> tuple[int, int | None]:
    """The image's row of the table, and its new class, None if it is left out. BadInput if a value is not valid."""
    if action.lower() not in ("fix", "drop"):
        raise data.BadInput(f"{action!r:.200} is not a valid action: write fix or drop, or leave it empty")
    i = row_of.get(os.path.abspath(image)) if "\0" not in image else None
    if i is None:
        raise data.BadInput(f"{image!r:.200} is not an image of these data")
    now = table.classes[table.targets[i]]
    if given != now:
        what = f"the column given has {given!r:.200}, but the label of {image!r:.200} is {now!r}"
        raise data.BadInput(f"{what}: the data have changed since labels.py read them, so run labels.py again")
    if action.lower() == "drop":
        return i, None
    if suggested not in table.classes:
        known = ", ".join(table.classes[:20]) + (", ..." if len(table.classes) > 20 else "")
        raise data.BadInput(f"{suggested!r:.200} in the column suggested is not a valid class: choose from {known}")
    if suggested == given:
        raise data.BadInput(
            f"fix has no effect, because {image!r:.200} is {given!r} already: change the column suggested"
        )
    return i, table.classes.index(suggested)


def stored_fixes(table: data.ImageTable) -> dict[str, Any]:
    """The entry of config.json: each changed label with the class before and the class now, null = left out."""
    names = [*table.classes, None]
    fixes = [(path, names[old], names[-1 if new is None else new]) for path, (old, new) in table.fixes.items()]
    return {"fixes": [dict(zip(("image", "from", "to"), fix, strict=True)) for fix in fixes]} if fixes else {}


def is_csv_folder(folder: str) -> bool:
    return any(os.path.isfile(os.path.join(folder, name)) for name in ("train.csv", "train/train.csv"))


def set_groups(options: argparse.Namespace, table: data.ImageTable) -> None:
    if options.group_regex is not None:
        with cli.blaming("--group-regex"):
            table.groups = leaks.groups_by_regex(table.paths, options.group_regex)
        own = leaks.without_group(table.paths, options.group_regex)
        if own:
            table.notes.append(
                f"--group-regex finds no group in {len(own)} of {len(table)} paths, such as {own[0]}: each of these "
                "images is a group of its own"
            )
        table.layout += f", groups by {options.group_regex}"


def load_images(
    options: argparse.Namespace, table: data.ImageTable, splits: list[Split]
) -> tuple[pixels.ImageArray, data.ImageTable, list[Split]]:
    """Decodes all images. Returns them, and the table and splits without bad images and with --leaks applied.

    With --pseudo, the images that it labels are added at the end, as training images of their split.
    """
    teachers = pseudo.load_teachers(options, table, splits)
    with cli.blaming("--data", disk="--cache"):
        images = pixels.decode(
            table.paths,
            table.targets,
            models.sides(options.size),
            Path(options.cache) / "images",
            table.source,
            options.fit,
            options.bad,
            options.threads,
        )
    if images.bad_csv:
        n = len(table) - len(images)
        left_out = f"{n} of {len(table)} images cannot be decoded and are left out; the list is in {images.bad_csv}"
        table = data.take(table, images.kept)
        table.notes.append(left_out)
        splits = make_splits(options, table)
    return pseudo.add(options, images, table, apply_leaks(options, table, images, splits), *teachers)


@contextmanager
def ranks_of(options: argparse.Namespace) -> Iterator[Ranks]:
    """The processes of this run, usually one. All but the first write only in a folder of their own."""
    with cli.ranks_of(options.device) as ranks:
        with cli.blaming("--accum"):
            if ranks.size > options.accum:
                smaller = math.ceil(options.batch_size * options.accum / ranks.size)
                raise data.BadInput(
                    f"{options.accum} micro-batches per update cannot be shared by {ranks.size} processes: use "
                    f"--batch-size {smaller} --accum {ranks.size} for the same updates, or at most {options.accum} "
                    "processes"
                )
        if ranks.size > 1:
            SIGNALS.agree = ranks.any
        if not ranks.is_first:
            options.tensorboard, options.wandb = False, None
        yield ranks


@contextmanager
def run_folder(options: argparse.Namespace, ranks: Ranks) -> Iterator[str]:
    """The folder that the run is in, locked; for all but the first rank a temporary folder."""
    if ranks.is_first:
        with runs.locked(options.out, f"{options.model}-{options.loss}", bool(options.resume)) as folder:
            ranks.agree(folder)
            yield folder
    else:
        with runs.joined(ranks.agree(None)) as folder:
            options.resume = options.resume and folder
            yield folder


def check_processes(options: argparse.Namespace, state: runs.State, ranks: Ranks, config: Mapping[str, Any]) -> None:
    """Refuses a run whose processes would not make the same updates. Nothing is checked for one process."""
    if ranks.size == 1:
        return
    with cli.blaming("--model"):
        if any(isinstance(module, nn.SyncBatchNorm) for module in state.model.modules()):
            raise models.BadInput(
                f"{options.model} has SyncBatchNorm, whose statistics depend on the number of processes: use BatchNorm "
                "with a larger --batch-size, or a network without BatchNorm"
            )
    chosen = {name: value for name, value in vars(options).items() if name not in cli.MAY_CHANGE | {"out", "resume"}}
    found = [chosen, config["data"], config["pixels"], state.epoch, state.progress.get("windows"), bool(state.trained)]
    with cli.blaming("--data"):
        if not ranks.same(repr(found)):
            raise data.BadInput(
                "the processes have different options, images or saved states: all machines need the same command, "
                "the same files and versions, and one shared folder for the run"
            )


# ---------------------------------------------------------------------------------------------------------------------
# Splits
# ---------------------------------------------------------------------------------------------------------------------


def make_splits(options: argparse.Namespace, table: data.ImageTable) -> list[Split]:
    """One split, or one per fold to train."""
    has_folds = options.folds or table.fold_of is not None
    if options.val_frac and (has_folds or table.is_val is not None):
        with cli.blaming("--val-frac"):
            reason = "with folds" if has_folds else "because the validation images are given"
            raise data.BadInput(f"{options.val_frac} has no effect {reason}: remove this option")
    if options.fold and not has_folds:
        with cli.blaming("--fold"):
            raise data.BadInput(f"{options.fold} has no effect without folds: add --folds or a fold column")
    unfixed, kept = replace(table, targets=table.targets.copy()), np.ones(len(table), bool)
    for i, path in enumerate(table.paths if table.fixes else ()):
        if path in table.fixes:
            unfixed.targets[i], now = table.fixes[path]  # --fixes does not change who is validated
            kept[i] = now is not None
    if has_folds:
        splits = fold_splits(options, unfixed)
    else:
        with cli.blaming("--val-data" if options.val_data else "--data"):
            splits = [Split(*data.split(unfixed, options.val_frac or 0.2, options.seed))]
    for split in splits:
        if options.imbalance:
            with cli.blaming("--imbalance"):
                split.train = data.long_tail(unfixed, split.train, options.imbalance, options.seed)
        split.train, split.val = (rows[kept[rows]] for rows in (split.train, split.val))
        check_split(options, table, split)
    return splits


def fold_splits(options: argparse.Namespace, table: data.ImageTable) -> list[Split]:
    with cli.blaming("--folds" if options.folds else "--fold-col"):
        k = options.folds or int(table.fold_of.max()) + 1
        fold_of = data.folds(table, k, options.seed)
    with cli.blaming("--fold"):
        wanted = options.fold or ("all" if options.folds else "0")
        if wanted != "all" and not (wanted.isdecimal() and int(wanted) < k):
            raise data.BadInput(f"{wanted!r} is not a valid fold: choose from 0 to {k - 1}, or all")
    chosen = range(k) if wanted == "all" else [int(wanted)]
    return [
        Split(np.flatnonzero(fold_of != f), np.flatnonzero(fold_of == f), f, folds_after=len(chosen) - i)
        for i, f in enumerate(chosen, 1)
    ]


def check_split(options: argparse.Namespace, table: data.ImageTable, split: Split) -> None:
    """Raises BadInput or adds notes if a class is missing on one side, or the imbalance is corrected twice."""
    in_train, in_val = data.counts(table, split.train), data.counts(table, split.val)
    by_fold = split.fold is not None and ("--folds" if options.folds else "--fold-col")
    with cli.blaming(by_fold or ("--val-data" if options.val_data else "--data")):
        if (in_val > 0).sum() < 2:
            fewer = f" ({data.smallest_class(table)}: use fewer folds)" if options.folds else ""
            raise data.BadInput(
                f"all {len(split.val)} validation images have the same class: at least two classes are needed{fewer}"
            )
    for where, absent in (("validation", in_val == 0), ("training", (in_train == 0) & (in_val > 0))):
        names = [table.classes[c] for c in np.flatnonzero(absent)]
        if names:
            more = ", ..." if len(names) > 10 else ""
            split.notes.append(
                f"classes without {where} images, whose F1 is 0: {len(names)} ({', '.join(names[:10])}{more})"
            )
    flags = favours_rare(options, options.epochs)
    if len(flags) > 1:
        split.notes.append(
            f"{' and '.join(flags)} both favour rare classes. Together they correct the imbalance twice: see the "
            "effective class prior"
        )


def favours_rare(options: argparse.Namespace, epoch: int) -> list[str]:
    """The options that favour rare classes in this epoch. A loss with a class prior corrects that of the sampler."""
    flags = []
    if options.sampler != "shuffle":
        flags.append(f"--sampler {options.sampler}")
    elif losses.corrects_prior(options.loss):
        flags.append(f"--loss {options.loss}")
    if options.class_weights != "none":
        flags.append(f"--class-weights {options.class_weights}")
    elif options.drw and epoch >= cli.first_drw_epoch(options):
        flags.append(f"--drw {options.drw:g}")
    return flags


def warn_of_seen_images(options: argparse.Namespace, table: data.ImageTable, splits: list[Split]) -> None:
    """Warns if --init is a run on the same images, and may have been trained on some that are now validated."""
    weights = Path(options.weights)  # a run, or a checkpoint in a run
    file = (weights if weights.is_dir() else weights.parent) / "val_probs.npz"
    if options.weights in ("none", "DEFAULT") or not file.is_file():
        return
    with cli.blaming("--weights"):
        validated = set(runs.read_predictions(file).paths.tolist())
    if validated.isdisjoint(table.paths):  # a run on different images
        return
    for split in splits:
        seen = sum(table.paths[i] not in validated for i in split.val)
        if seen:
            split.warnings.append(
                f"{seen} of {len(split.val)} validation images were not validation images of --init {options.weights}, "
                "so its weights may have been trained on them: the validation scores may be too high. Use the same "
                "data, --seed and split options as that run"
            )


BIG = 0.1  # part of the validation images: a leak above it is a warning, not a note


def apply_leaks(
    options: argparse.Namespace, table: data.ImageTable, images: pixels.ImageArray, splits: list[Split]
) -> list[Split]:
    """Notes, refuses, or moves to one side the near-duplicates of validation images in the training set (--leaks).

    If the data give no groups, groups that are guessed from the file names are reported too, also after --leaks group.
    """
    with cli.blaming("--cache"):
        kept = images.file and images.file.with_suffix(".copies.npz")
        same, alike = leaks.find_copies(images.pixels, options.device, kept)
    groups = table.groups
    if options.leaks == "group":
        with cli.blaming("--leaks"):
            if table.is_val is not None or table.fold_of is not None:
                raise data.BadInput("group cannot change a split that the data fixes: choose error or warn")
        table.groups = data.tied(groups, alike)
        splits = make_splits(options, table)
    warn_of_seen_images(options, table, splits)
    files = table.paths, table.targets, table.classes
    dropped = {path for path, (_, now) in table.fixes.items() if now is None}
    pairs = leaks.find_two_labels(*files, same)
    two_labels = [pair for pair in pairs if dropped.isdisjoint((pair.path, pair.other_path))]
    if two_labels:
        table.notes.append(
            f"images identical to one with a different label: {len(two_labels)}" + listed_pairs(two_labels)
        )
    for split in splits:
        split.leaks = leaks.find_leaks(*files, same, alike, split.train, split.val)
        refuse_leaks(options, split)
        if table.source is None:
            split.guess = leaks.suspect_groups(*files, groups, split.train, split.val)
        add_name_note(split, len(table))
        add_duplicate_notes(split, table.is_val is None and table.fold_of is None)
        has_groups = len(set(groups)) < len(set(table.paths))
        if options.leaks == "group" and not has_groups and not split.guess:
            add_tied_note(split, alike)
    return splits


def refuse_leaks(options: argparse.Namespace, split: Split) -> None:
    contradictions = [pair for pair in split.leaks if pair.what == "identical" and pair.label != pair.other_label]
    refused = {"error": split.leaks, "warn": [], "group": [], None: contradictions}[options.leaks]
    if refused:
        with cli.blaming("--leaks"):
            what = "identical to a training image with a different label"
            if options.leaks == "error":
                what = "with a near-duplicate in the training set"
            found = f"validation images {what}: {len(refused)}"
            raise data.BadInput(f"{found}. Remove them, or use --leaks group or --leaks warn" + listed_pairs(refused))


def add_name_note(split: Split, images: int) -> None:
    guess = split.guess
    if guess:
        (split.warnings if guess.share > BIG else split.notes).append(
            f"the names of the {images} files look like {guess.count} groups: {guess.what}. {guess.share:.0%} of the "
            "validation images share such a group with training images. If these groups are real, the validation "
            f"scores are too high: use --group-regex '{guess.regex}'"
        )


def add_duplicate_notes(split: Split, can_regroup: bool) -> None:
    share = len(split.leaks) / len(split.val)
    if share > BIG:
        split.warnings.append(
            f"{share:.0%} of the validation images are identical to a training image or near-duplicates of one, so the "
            "validation scores may be too high. If they are frames or photos of the same objects, --leaks group is not "
            "enough: it does not find the less similar images of an object. Compare the pairs in leaks.csv, and give "
            "each object as a group, with --group-regex or --group-col"
        )
    advice = ". --leaks group moves them to one side" if can_regroup and share <= BIG else ""
    for what, name in (("identical", "an identical image"), ("alike", "a near-duplicate")):
        found = [pair for pair in split.leaks if pair.what == what]
        if found:
            split.notes.append(
                f"validation images with {name} in the training set: {len(found)} (see leaks.csv), such as "
                f"{found[0].path} and {found[0].other_path}{advice}"
            )


def add_tied_note(split: Split, alike: np.ndarray) -> None:
    """After --leaks group: the near-duplicates are on one side, but they may be only a part of the leak."""
    share = (np.bincount(alike)[alike[split.val]] > 1).mean()
    if share > BIG:
        split.notes.append(
            f"{share:.0%} of the validation images have near-duplicates, which --leaks group keeps on one side. If "
            "they are frames or photos of the same objects, other images of an object may still be on both sides: give "
            "each object as a group, with --group-regex or --group-col"
        )


def listed_pairs(pairs: list[leaks.Pair]) -> str:
    return leaks.listed([f"{pair.path} ({pair.label}) and {pair.other_path} ({pair.other_label})" for pair in pairs])


# ---------------------------------------------------------------------------------------------------------------------
# Criterion, augmentation, batches, model
# ---------------------------------------------------------------------------------------------------------------------


@dataclass
class Recipe:
    """What an epoch is trained with. It depends on the options and the epoch alone, so that a resumed run is exact."""

    options: argparse.Namespace
    train_counts: np.ndarray  # training images per class
    drawn_counts: np.ndarray  # images per class and epoch, after sampling: the class prior of the loss
    device: torch.device
    mean: Sequence[float] = augment.IMAGENET_MEAN
    std: Sequence[float] = augment.IMAGENET_STD

    def criterion(self, epoch: int) -> nn.Module:
        """The loss of an epoch: with --drw, class weights from a part of the epochs on."""
        options, more = self.options, cli.given(self.options, *cli.LOSS_OPTIONS)
        counts = self.train_counts.tolist()
        if options.class_weights != "none":
            more["weight"] = losses.class_weights(counts, options.class_weights)
        elif options.drw and epoch >= cli.first_drw_epoch(options):
            more["weight"] = losses.class_weights(counts, "effective", beta=0.9999)
        return losses.build_loss(options.loss, self.drawn_counts.tolist(), **more).to(self.device)

    @property
    def judge(self) -> nn.Module:
        """The loss of validation: that of the last epoch, so that the validation losses of all epochs compare."""
        return self.criterion(self.options.epochs)

    def augment(self, epoch: int) -> augment.Augment:
        """The augmentation of an epoch: without mixing in the last --mix-off-last epochs."""
        options = self.options
        is_mixed = epoch <= options.epochs - (options.mix_off_last or 0)
        mixing = {"mixup": options.mixup, "cutmix": options.cutmix, "num_classes": len(self.train_counts)}
        return augment.Augment(
            options.augment,
            options.seed,
            self.mean,
            self.std,
            **(mixing if is_mixed else {}),
            overlap=1 if is_mixed and (options.mixup or options.cutmix) else 0,
            flips=options.flips,
        )

    def freeze(self, model: nn.Module, epoch: int) -> None:
        """Freezes the parameters that --freeze and --freeze-epochs keep as they are in this epoch."""
        options = self.options
        if not (options.freeze or options.freeze_epochs):
            return
        with cli.blaming("--freeze"):
            stages = models.stages(model)
            n = len(stages) - 1 if options.freeze in (None, "backbone") else int(options.freeze)
            if n >= len(stages):
                raise models.BadInput(
                    f"{options.model} has {len(stages) - 1} stages below its head: choose at most that"
                )
        is_over = options.freeze_epochs and epoch > options.freeze_epochs
        models.freeze(model, [] if is_over else [name for stage in stages[:n] for name in stage])


def drawn_counts(batches: pixels.Batches, num_classes: int, epochs: int = 10) -> np.ndarray:
    """int64 (C,): images per class in an epoch after sampling, the mean over some epochs (a sampler draws anew).

    A class that was drawn at all has at least 1.
    """
    targets, now, total = batches.images.targets.cpu().numpy(), batches.epoch, np.zeros(num_classes, dtype=np.int64)
    for batches.epoch in range(1, epochs + 1):
        total += np.bincount(targets[batches.numbers() % len(targets)], minlength=num_classes)
    batches.epoch = now
    return np.maximum(np.rint(total / epochs).astype(np.int64), total > 0)


def mean_std(options: argparse.Namespace, model: nn.Module) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of the pixels for this network: --mean-std, or the model's own, or ImageNet's.

    A model's own are those of timm: `model.pretrained_cfg`, with "mean" and "std".
    """
    numbers = options.mean_std
    if numbers:
        half = len(numbers) // 2  # one number is for all three channels
        return numbers[:half] * (3 // half), numbers[half:] * (3 // half)
    config = getattr(model, "pretrained_cfg", None)
    config = config if isinstance(config, Mapping) else {}
    return list(config.get("mean", augment.IMAGENET_MEAN)), list(config.get("std", augment.IMAGENET_STD))


def make_batches(
    options: argparse.Namespace, images: pixels.ImageArray, split: Split, device: torch.device
) -> tuple[pixels.Batches, pixels.Batches]:
    """Training batches, sampled and transformed, and validation batches, neither sampled nor transformed."""
    targets = images.targets.cpu().numpy()[split.train]  # sampling weights from the training rows only
    sampler = functools.partial(pixels.SAMPLERS[options.sampler], targets, per_class=options.samples_per_class)
    transform = None
    if options.transform:
        with cli.blaming("--transform"):
            transform = augment.as_transform(models.load_function(options.transform, "transform"))
    how = {"sampler": sampler, "transform": transform, "soft": images.soft}
    train = pixels.Batches(images, split.train, options.batch_size, True, options.seed, device, **how)
    return train, pixels.Batches(images, split.val, options.batch_size, device=device)


def peak_memory(device: torch.device) -> float:
    """The most GPU memory that tensors needed since the last call, in GiB; 0 on a CPU."""
    if device.type != "cuda":
        return 0.0
    peak = torch.cuda.max_memory_allocated(device) / 2**30
    torch.cuda.reset_peak_memory_stats(device)
    return peak


def make_state(
    options: argparse.Namespace,
    table: data.ImageTable,
    updates: int,
    device: torch.device,
    first_weights: Callable[[], dict[str, Tensor]] | None = None,
) -> runs.State:
    """A new model, optimizer, schedule, scaler and EMA."""
    num_classes = len(table.classes)
    with cli.blaming("--head"):
        if options.head == "factored" and not table.factors:
            raise models.BadInput(
                f"factored needs classes that combine factors, and {table.layout} has none: name several label columns "
                "(--label-col mask,gender,age), without --merge"
            )
    with cli.blaming("--model"):
        model = models.build_model(options.model, num_classes, options.size, options.head, table.factor_ids)
    if first_weights and options.weights != "none":
        load_weights(options, model, first_weights)
    if options.batch_size == 1:  # BatchNorm may not accept one image
        with cli.blaming("--batch-size"):
            models.check_output(model, options.model, num_classes, options.size, batch=1)
    model = model.to(device, memory_format=torch.channels_last)
    with cli.blaming("--model"):
        if not any(parameter.requires_grad for parameter in model.parameters()):
            raise models.BadInput(f"{options.model} has no parameter to train")
        factor = lr_factor(options, model)
        optimizer = optim.build_optimizer(options.optimizer, model, options.lr, options.weight_decay, factor)
    schedule = optim.build_schedule(
        options.scheduler,
        optimizer,
        options.epochs,
        updates,
        options.warmup,
        runs.MONITORS[options.monitor],
        **cli.given(options, *cli.SCHEDULE_OPTIONS),
    )
    scaler = torch.amp.GradScaler(device.type, enabled=options.amp == "fp16")
    ema = models.EMA(model, options.ema) if options.ema else loop.NOTHING
    return runs.State(model, optimizer, schedule, scaler, ema)


def load_weights(
    options: argparse.Namespace, model: nn.Module, first_weights: Callable[[], dict[str, Tensor]]
) -> list[str]:
    """Loads the initial weights. Returns the names of those of the head that start random."""
    with cli.blaming("--weights"):
        return models.load_weights(model, first_weights(), options.model, options.weights, not options.fresh_head)


def folder_of(folder: Path, split: Split, splits: Sequence[Split]) -> Path:
    return folder if len(splits) == 1 else folder / f"fold{split.fold}"


def rehearse(
    options: argparse.Namespace, table: data.ImageTable, splits: list[Split], device: torch.device
) -> Callable[[], dict[str, Tensor]]:
    """Builds everything once before images are decoded, so that a wrong name, value or file is refused early.

    Returns a function that loads the initial weights (--weights) once for all folds. A resumed training needs none.
    """
    counts = data.counts(table, splits[0].train)
    recipe = Recipe(options, counts, counts, device)
    recipe.criterion(1), recipe.augment(1)
    state = make_state(options, table, 1, device)
    recipe.freeze(state.model, 1)
    is_file = options.weights not in ("none", "DEFAULT")
    saved = functools.cache(functools.partial(models.read_checkpoint, options.weights))

    @functools.cache
    def first_weights() -> dict[str, Tensor]:
        if is_file:
            return models.state_dict_of(saved(), options.weights)
        return models.first_weights(options.model, options.weights, options.size)

    folders = [folder_of(Path(options.resume), split, splits) for split in splits] if options.resume else []
    if options.weights != "none" and not (folders and all(map(runs.has_last, folders))):
        fresh = load_weights(options, state.model, first_weights)
        if is_file:
            table.notes += notes_of_init(options, table, saved(), state.model, fresh)
    return first_weights


def notes_of_init(
    options: argparse.Namespace, table: data.ImageTable, saved: dict[str, Any], model: nn.Module, fresh: list[str]
) -> list[str]:
    """What was not loaded from a checkpoint (--init), and where its run differs from this one: images, classes.

    saved: the checkpoint; of one that train.py did not write, the run is not known. fresh: the weights of the head that
    were not loaded.
    """
    notes = [f"{options.weights}: loaded all but {', '.join(fresh)}, which start random"] if fresh else []
    mean, std = mean_std(options, model)
    now = {"size": options.size, "fit": options.fit, "mean": mean, "std": std}
    if not {"model_name", "classes", *now} <= saved.keys():
        return notes
    other = [f"{key} {saved[key]}, here {value}" for key, value in now.items() if saved[key] != value]
    notes += [f"--init {options.weights} was trained with {'; '.join(other)}"] if other else []
    if saved["classes"] != table.classes and not fresh:
        notes.append(
            f"--init {options.weights} was trained on classes with different names, or in a different order. Its head "
            "is kept: if the classes are not the same, add --fresh-head"
        )
    return notes


def lr_factor(options: argparse.Namespace, model: nn.Module) -> Callable[[str], float]:
    """From the name of a parameter to its learning rate / --lr, with --head-lr and --layer-decay."""
    factors: dict[str, float] = {}
    if options.layer_decay or options.head_lr:
        *stages, head = models.stages(model)
        factors = dict.fromkeys(head, (options.head_lr or options.lr) / options.lr)
        for depth, names in enumerate(reversed(stages), start=1):
            factors |= dict.fromkeys(names, (options.layer_decay or 1.0) ** depth)
    return lambda name: factors.get(name, 1.0)


def about(options: argparse.Namespace, table: data.ImageTable, recipe: Recipe) -> dict[str, Any]:
    """The entries of every checkpoint, beside its weights: what predict.py needs."""
    return {
        "model_name": options.model,
        "head": options.head,
        "loss": options.loss,
        "size": options.size,
        "fit": options.fit,
        "mean": list(recipe.mean),
        "std": list(recipe.std),
        "classes": table.classes,
        "labels": table.labels,
        "all_classes": table.all_classes,
        "all_labels": table.all_labels,
        "factors": table.factors,
        "factor_ids": table.factor_ids.tolist(),
        "train_counts": recipe.train_counts.tolist(),
    }


def facts(
    table: data.ImageTable, split: Split, recipe: Recipe, batches: pixels.Batches, updates: int, processes: int = 1
) -> dict[str, Any]:
    """Further entries of config.json. drawn_counts: images per class and epoch, after sampling. pixels: a hash.

    The images with pseudo-labels count in train_counts and drawn_counts, under their most likely class: the network
    learns their class shares too, so they belong to the class prior of a loss.
    """
    return {
        "train_counts": recipe.train_counts.tolist(),
        "drawn_counts": recipe.drawn_counts.tolist(),
        "val_counts": data.counts(table, split.val).tolist(),
        "pseudo_counts": data.counts(table, split.pseudo).tolist(),
        "updates_an_epoch": updates,
        "processes": processes,
        "factors": table.factors,
        "factor_ids": table.factor_ids.tolist(),
        "pixels": batches.images.digest,
        "warnings": table.warnings + split.warnings,
        "notes": table.notes + split.notes,
    } | stored_fixes(table)


def write_preview(path: str, batches: pixels.Batches, transform: augment.Augment, classes: list[str]) -> None:
    """Writes a picture of the first batch of epoch 1, after augmentation, with its labels."""
    batches.epoch, batches.overlap = 1, transform.overlap
    numbers, images, targets = next(iter(batches.indexed()))
    shares = transform.mix_targets(targets, numbers, batches.epoch, images.shape[2:])
    used = shares.sum(0).nonzero() if shares.dim() == 2 else targets.unique()
    names = {c: classes[c] if augment.find_font(classes[c]) else str(c) for c in used.flatten().tolist()}
    if shares.dim() == 1:
        labels = [names[t] for t in shares.tolist()]
    else:  # mixed
        by_share = shares.argsort(1, descending=True).tolist()
        labels = [
            " + ".join(f"{row[c]:.2f} {names[c]}" for c in order if row[c] > 0)
            for row, order in zip(shares, by_share, strict=True)
        ]
    x = transform(images, numbers, batches.epoch) * transform.std.view(3, 1, 1) + transform.mean.view(3, 1, 1)
    with cli.blaming("--preview"):
        augment.save_image(augment.contact_sheet((x * 255).round().clamp(0, 255).byte(), labels), path)
    print(cli.printable(f"{path}: {len(labels)} training images after augmentation"))
    if any(name != classes[c] for c, name in names.items()):
        cli.print_note(
            "no font on this machine has the characters of some class names: the picture shows class numbers instead. "
            "Install a font with these characters, such as Noto Sans CJK for Korean"
        )

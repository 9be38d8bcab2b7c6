"""The command line of train.py: its options and error messages, and text that any terminal can show.

A bad value or file gives one line that names the flag, the value and what is valid, and exit code 2.
"""

from __future__ import annotations

import argparse
import difflib
import io
import itertools
import json
import math
import os
import re
import shlex
import shutil
import sys
import time
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any, NoReturn

import torch

import augment
import checkpoint
import data
import demo
import leaks
import loop
import losses
import models
import optim
import pixels
import runs
from ranks import Lost, Ranks
from stopping import SIGNALS, Stopped

CACHE = os.path.join("~", ".cache", "f1kit")  # the default of --cache
AMP_TYPES = {"off": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}

# ---------------------------------------------------------------------------------------------------------------------
# Options
# ---------------------------------------------------------------------------------------------------------------------


class ShowVersion(argparse.Action):
    """Prints the versions, one per line, as config.json has them, and ends."""

    def __init__(self, **more: Any):
        super().__init__(nargs=0, default=argparse.SUPPRESS, **more)

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
        print("\n".join(f"{name} {value}" for name, value in runs.versions(device).items()))
        parser.exit()


class Parser(argparse.ArgumentParser):
    """The parser of train.py, predict.py, compare.py and report.py. Errors are one line, with the nearest known option.

    Option names must be complete, --batch_size is accepted as --batch-size. Empty text and huge integers are refused.
    """

    MOST = {"seed": math.inf, "threads": 1024, "size": 8192}  # of other integers: 2^31 - 1

    def __init__(self, **more: Any):
        super().__init__(allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter, **more)
        if self.add_help:
            self.add_argument("--version", action=ShowVersion, help="show the versions and exit")

    def parse_known_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> Any:
        words = with_hyphens(sys.argv[1:] if args is None else args)
        for word in itertools.takewhile(lambda word: word != "--", words):
            flag, known = word.partition("=")[0], self._option_string_actions
            if re.match("--?[A-Za-z]", word) and " " not in word and flag not in known:
                nearest = difflib.get_close_matches(flag, known, 1)
                hint = f"did you mean {nearest[0]}?" if nearest else "--help lists the options"
                self.error(f"unknown option {flag}: {hint}")
        options, rest = super().parse_known_args(words, namespace)
        self.check_values(options)
        return options, rest

    def check_values(self, options: argparse.Namespace) -> None:
        """Refuses empty text and integers that are too large for any use."""
        for action in self._actions:
            value, most = getattr(options, action.dest, None), self.MOST.get(action.dest, 2**31 - 1)
            flag = action.option_strings[0] if action.option_strings else action.metavar
            for one in value if isinstance(value, (list, tuple)) else [value]:
                if one == "":
                    self.error(f"{flag} is empty: give a value, or leave out this option")
                if isinstance(one, int) and one > most:
                    self.error(f"{flag} must be at most {most}, got {one}")

    def error(self, message: str) -> NoReturn:
        self.print_usage(sys.stderr)
        refuse(message, self.prog)


def with_hyphens(words: Sequence[str]) -> list[str]:
    """The words of a command line, with --batch-size for --batch_size."""
    words, flags = list(words), itertools.takewhile(lambda word: word != "--", words)
    for i, word in enumerate(flags):
        if word.startswith("--"):
            flag, equals, value = word.partition("=")
            words[i] = flag.replace("_", "-") + equals + value
    return words


# options to begin with for imbalanced classes
PRESETS = {
    "scratch": "--loss logit_adjustment --optimizer sgd --lr 0.1 --batch-size 128 --warmup 1 --augment crop",
    "finetune": "--weights DEFAULT --loss logit_adjustment --lr 1e-3 --augment light",
}


def make_parser(description: str | None = None) -> Parser:
    parser = Parser(prog="train.py", usage="python train.py [OPTION ...]", description=description, add_help=False)
    group = parser.add_argument_group(
        "the ten most used options", "e.g. --data FOLDER --model efficientnet_b3 --lr 1e-4"
    )
    add = group.add_argument
    add("--data", default="demo", help="a folder, 'demo', or a torchvision data set such as CIFAR10 (default demo)")
    add(
        "--csv",
        help="CSV with image and label columns; --data is then the image folder (default: the CSV's folder)",
    )
    add(
        "--model",
        help="a torchvision classifier, resnet8/20/32 (for 32 pixels), vit_tiny, timm:NAME, or FILE.py:FUNCTION with "
        "FUNCTION(num_classes) (default resnet18; resnet8 for the demo)",
    )
    add(
        "--weights",
        "--init",
        default="none",
        help="initial weights: none (random), DEFAULT (pretrained, downloaded), a checkpoint or a run (default none)",
    )
    add("--size", type=int, nargs="+", metavar="PIXELS", help="image side, or height and width (default 224; demo 48)")
    add("--epochs", type=int, default=15, help="passes over the training images (default 15)")
    add("--batch-size", type=int, default=32, help="images per micro-batch, limited by memory (default 32)")
    add("--lr", type=float, help="peak learning rate (default 0.1 for sgd, else 1e-3; 5e-3 for the demo)")
    add("--loss", "--criterion", default="ce", help=f"{', '.join(losses.LOSSES)}, or a sum such as ce+f1 (default ce)")
    add("--resume", metavar="RUN", help="continue an interrupted run, with the options that it was started with")

    group = parser.add_argument_group("data", "e.g. --label-col label --group-col person --fit pad")
    add = group.add_argument
    add("--image-col", help="image column of the CSV (default: found by name, printed at start)")
    add(
        "--label-col",
        help="label column of the CSV (default: found by name, else the last); several, such as mask,gender,age: "
        "classes are the combinations of their values",
    )
    add("--group-col", help="group column of the CSV, e.g. a person's id; a split keeps each group on one side")
    add(
        "--group-regex",
        metavar="REGEX",
        help="the group is what this finds in the path, e.g. '(\\w+)_aug': its (...), else the whole match",
    )
    add("--fold-col", help="fold column of the CSV (default: fold or kfold, if there is one)")
    add("--num-classes", type=int, help="number of classes of a CSV with class numbers (default: from its labels)")
    add("--fold-case", action="store_true", help="read class names that differ only in case or spaces as one class")
    add("--only", metavar="CLASSES", help="use only these classes, by name or number: 3,7,14")
    add("--merge", metavar="CLASSES", help="merge these classes into one: 3,7,14 (several: '3,7,14;1,2')")
    add("--fixes", metavar="FILE.csv", help="correct labels: rows of labels.py's CSV in which you wrote fix or drop")
    add(
        "--fit",
        choices=pixels.FITS,
        default="squash",
        help="how to fit images with a different aspect ratio: squash (stretch), crop (center), pad (default squash)",
    )
    add(
        "--bad",
        choices=("error", "skip"),
        default="error",
        help="images that are missing or cannot be decoded: error = stop, skip = leave them out (default error)",
    )
    add(
        "--cache",
        default=CACHE,
        help="folder for decoded images and downloaded data (default %(default)s)",
    )

    group = parser.add_argument_group("split", "e.g. --folds 5 --fold all --leaks group")
    add = group.add_argument
    add("--val-data", help="validation images, read like --data (default: a share of --data)")
    add("--val-frac", type=float, help="share of --data used for validation (default 0.2)")
    add("--folds", type=int, help="cross-validation with this number of folds (default: none, or the fold column)")
    add("--fold", help="fold used for validation, counted from 0, or all (default all; with a fold column 0)")
    add(
        "--leaks",
        choices=("error", "group", "warn"),
        help="near-duplicates of validation images in the training set: error = stop, group = move them to one side, "
        "warn = only warn (default: warn, but stop if identical images have different labels)",
    )

    group = parser.add_argument_group("training images", "e.g. --sampler weighted --augment strong --mixup 0.2")
    add = group.add_argument
    add(
        "--imbalance",
        type=float,
        metavar="FACTOR",
        help="make the training set long-tailed, the rarest class last: largest / smallest class, e.g. 100",
    )
    add(
        "--sampler",
        choices=pixels.SAMPLERS,
        default="shuffle",
        help="sampling strategy: shuffle = each image once, weighted = classes equally likely, balanced = N images per "
        "class, oversample = every class as large as the largest (default shuffle)",
    )
    add(
        "--samples-per-class",
        type=int,
        help="balanced: images per class and epoch (default: the smallest class's size)",
    )
    add(
        "--augment",
        default="none",
        help=f"augmentation: {', '.join(augment.AUGMENTS)}, or several such as crop+cutout; light, strong or rand for "
        "photos, document for scans (default none)",
    )
    add(
        "--flips",
        choices=augment.FLIPS,
        default="random",
        help="horizontal flips: random, or alternate, each image from both sides in two epochs (default random)",
    )
    add(
        "--transform",
        metavar="FILE.py:FUNCTION",
        help="your own function before --augment: (image, rng) -> uint8 (H, W, 3)",
    )
    add("--mixup", type=float, default=0.0, metavar="ALPHA", help="mixup, e.g. 0.2 (default 0: off)")
    add("--cutmix", type=float, default=0.0, metavar="ALPHA", help="CutMix, e.g. 1 (default 0: off)")
    add("--mix-off-last", type=int, metavar="EPOCHS", help="no mixup and no CutMix in the last epochs (default 0)")
    add(
        "--mean-std",
        type=float,
        nargs="+",
        metavar="X",
        help="mean and std of pixels in [0, 1]: 2 numbers, or 3 + 3 (default: a timm model's own, else ImageNet's)",
    )
    add("--preview", metavar="FILE.png", help="write a picture of augmented training images with labels, then stop")

    group = parser.add_argument_group("pseudo-labels", "e.g. --pseudo runs/five --pseudo-data TEST --folds 5")
    add = group.add_argument
    add(
        "--pseudo",
        metavar="RUN",
        help="also train on test images with the labels that this run predicts; each fold uses the labels of the same "
        "fold of RUN, which must have the same split",
    )
    add("--pseudo-data", metavar="TEST", help="the test images: a folder, or a competition folder with a template")
    add(
        "--pseudo-share",
        type=float,
        metavar="SHARE",
        help="share of the test images to use, the most confident of each class (default 0.5)",
    )
    add(
        "--pseudo-labels",
        choices=("soft", "hard"),
        help="soft = the predicted probabilities, hard = the most likely class (default soft)",
    )

    group = parser.add_argument_group("fine-tuning", "e.g. --weights DEFAULT --freeze-epochs 2 --layer-decay 0.7")
    add = group.add_argument
    add(
        "--head",
        choices=models.HEADS,
        help="classifier layer: linear = the network's own, cosine = normalized features and weights, factored = a sum "
        "over the factors of a class, such as mask, gender and age (default linear; cosine for the loss ldam)",
    )
    add("--fresh-head", action="store_true", help="start the head of --weights at random, also if it fits")
    add("--freeze", metavar="STAGES", help="do not train backbone (all but the head), or the first N stages")
    add("--freeze-epochs", type=int, help="freeze only in the first N epochs (default: --freeze holds for all epochs)")
    add("--layer-decay", type=float, help="each stage below the head learns X times as fast as the one above, e.g. 0.7")
    add("--head-lr", type=float, help="peak learning rate of the head (default: --lr)")

    group = parser.add_argument_group("loss", "e.g. --loss focal:0.6+f1:0.4 --gamma 1 --class-weights effective")
    add = group.add_argument
    add(
        "--preset",
        choices=PRESETS,
        help="options to begin with: scratch = random weights, finetune = pretrained weights; typed options win",
    )
    add("--config", metavar="FILE.json", help="options from a run's config.json, or a JSON object; typed options win")
    add("--gamma", type=float, help="focusing parameter of focal (default 2)")
    add(
        "--smoothing",
        type=float,
        help="label smoothing (default 0 for ce and focal, 0.1 for label_smoothing; label_aware_smoothing: of the "
        "largest class, 0.3)",
    )
    add("--smoothing-tail", type=float, help="label_aware_smoothing: of the smallest class (default 0)")
    add("--tau", type=float, help="logit_adjustment: strength (default 1)")
    add("--max-m", type=float, help="ldam: margin of the smallest class (default 0.5)")
    add(
        "--class-weights",
        choices=("none", *losses.WEIGHTINGS),
        default="none",
        help="class weights from the training counts (default none)",
    )
    add(
        "--drw",
        type=float,
        metavar="SHARE",
        help="deferred re-weighting: class-balanced weights after this share of the epochs, e.g. 0.8 (default: off)",
    )

    group = parser.add_argument_group("optimization", "e.g. --optimizer sgd --lr 0.1 --scheduler cosine --warmup 1")
    add = group.add_argument
    add("--accum", type=int, default=1, help="micro-batches per update: effective batch = batch x accum (default 1)")
    add("--optimizer", choices=optim.OPTIMIZERS, default="adamw", help="optimizer (default adamw)")
    add("--weight-decay", type=float, help="weight decay (default 5e-4 for sgd, 0.01 for adamw and ranger, else 0)")
    add("--scheduler", choices=optim.SCHEDULES, default="cosine", help="learning rate schedule (default cosine)")
    add("--warmup", type=float, default=0.0, help="epochs of linear warmup (default 0; onecycle: 30%% of the run)")
    add("--min-lr", type=float, help="cosine, linear, restarts: final learning rate (default 0)")
    add(
        "--step-epochs",
        type=int,
        help="step: epochs between two drops of the learning rate (default: a third of the run)",
    )
    add(
        "--milestones",
        type=float,
        nargs="+",
        metavar="EPOCH",
        help="multistep: epochs after which the learning rate drops, such as 160 180 (default: 1/2 and 3/4 of the run)",
    )
    add("--lr-decay", type=float, help="step, multistep, plateau: factor of each drop (default 0.1)")
    add("--plateau-patience", type=int, help="plateau: drop after more than N epochs without improvement (default 3)")
    add("--t0", type=int, help="restarts: epochs of the first cycle (default 10)")
    add("--t-mult", type=int, help="restarts: each cycle is N times as long as the one before (default 2)")
    add("--clip", type=float, help="gradient clipping: largest norm (default: off)")
    add(
        "--sam",
        type=float,
        metavar="RHO",
        help="sharpness-aware minimization, e.g. 0.05; twice the time (default: off)",
    )
    add("--amp", choices=AMP_TYPES, help="mixed precision (default fp16 on CUDA, else off)")
    add(
        "--ema",
        type=float,
        help="decay of an exponential moving average (EMA) of the weights, e.g. 0.999 (default: off)",
    )

    group = parser.add_argument_group("evaluation", "e.g. --patience 7 --min-delta 0.005")
    add = group.add_argument
    add(
        "--monitor",
        choices=runs.MONITORS,
        default="f1",
        help="validation score for --patience, --save-top and plateau (default f1)",
    )
    add("--patience", type=int, help="early stopping after this many epochs without improvement (default: off)")
    add("--min-delta", type=float, help="smallest improvement that counts for --patience (default 0)")

    group = parser.add_argument_group("run", "e.g. --seed 1 --out runs/focal-1")
    add = group.add_argument
    add("--seed", type=int, default=0, help="random seed of split, initial weights, order and augmentation (default 0)")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    add("--device", default=device, help="cpu, cuda or cuda:1 (default %(default)s)")
    add("--threads", type=int, help="CPU threads (default: torch's choice)")
    add("--out", help="folder of the run (default runs/TIME-MODEL-LOSS)")
    add(
        "--save-every",
        type=int,
        metavar="UPDATES",
        help="also save last.pt within epochs, each time after this many updates (default: only after each epoch)",
    )
    add("--save-top", type=int, metavar="K", help="also keep the K best epochs by --monitor")
    add("--tensorboard", action="store_true", help="also log to RUN/tensorboard (needs tensorboard)")
    add("--wandb", metavar="PROJECT", help="also log to Weights & Biases (needs wandb and a login)")
    add(
        "--skip-nonfinite",
        type=int,
        default=0,
        metavar="N",
        help="skip up to N updates with a NaN or infinite loss or gradient (default 0: stop)",
    )
    add("-h", "--help", action="help", help="show this text")
    add("--version", action=ShowVersion, help="show the versions and exit")
    for action in parser._actions:
        if action.metavar is None and action.choices is None and action.nargs is None:
            of_type = {int: "N", float: "X"}.get(action.type)
            action.metavar = of_type or ("COLUMN" if action.dest.endswith("_col") else None)
    return parser


def flag_of(name: str) -> str:
    """The flag of an option: batch_size -> --batch-size."""
    return f"--{name.strip().replace('_', '-')}"


def parse_options(argv: Sequence[str] | None = None, description: str | None = None) -> argparse.Namespace:
    """The options, checked and with all defaults; with --resume, the options of the resumed run."""
    parser, argv = make_parser(description), with_hyphens(sys.argv[1:] if argv is None else argv)
    options = parser.parse_args(argv)
    flags = {word.partition("=")[0] for word in argv}
    if options.config and options.resume:
        parser.error(f"--config {options.config}: a resumed run has its own options: leave out --config or --resume")
    if options.config:
        argv = [*read_options(parser, Path(options.config), flags), *argv]
        options = parser.parse_args(argv)
    if options.preset:
        options = parser.parse_args([*PRESETS[options.preset].split(), *argv])
    typed = {action.dest for action in parser._actions if flags & set(action.option_strings)}
    resolve(options)
    if options.resume:
        options = _resumed(parser, options, typed, argv)
    _check_ranges(parser, options)
    _check_combinations(parser, options)
    if not options.resume:
        _check_patience(parser, options)
    return options


# never taken from a config.json, because they write outside of the run folder or belong to one command
NOT_STORED = {"cache", "wandb", "help", "out", "preview", "resume", "config"}


def stored(folder: Path) -> argparse.Namespace:
    """The options in a run's config.json, checked as if they were typed, with the defaults of this version.

    Other entries, and the options in NOT_STORED, are ignored. BadInput if a value is not valid.
    """
    parser = make_parser()

    def refuse(message: str) -> NoReturn:
        raise runs.BadInput(f"{folder / 'config.json'}: its options are not valid: {message}")

    parser.error = refuse
    known = parser.parse_args(words_of(parser, runs.read_config(folder)["options"]))
    resolve(known)
    _check_ranges(parser, known)
    _check_combinations(parser, known)
    return known


def words_of(parser: argparse.ArgumentParser, options: dict[str, Any]) -> list[str]:
    """The words of a command line that gives these options, without those in NOT_STORED."""
    words: list[str] = []
    for action in parser._actions:
        value, flag = options.get(action.dest), action.option_strings[0]
        if value is None or action.dest in NOT_STORED or (action.nargs == 0 and value is False):
            continue
        if action.nargs == 0 and value is True:
            words.append(flag)
        elif action.nargs == "+" and isinstance(value, list) and all(type(number) in (int, float) for number in value):
            words += [flag, *map(str, value)]
        else:
            words.append(f"{flag}={value}")
    for word in words:
        if re.search(r"[\0-\x1f\x7f\ud800-\udc7f\udd00-\udfff]", word):
            parser.error(f"{word!r} has control characters")
    return words


def read_options(parser: argparse.ArgumentParser, file: Path, typed: set[str]) -> list[str]:
    """The words of a command line for --config: a run's config.json, or a JSON object of options such as {"accum": 4}.

    Of a run's config.json, the device and NOT_STORED are left out; entries of a different version are ignored.
    typed: the flags on the command line. A Python file is executed only if it is typed.
    """
    flags = ((flag, action.dest) for action in parser._actions for flag in action.option_strings)
    names = {flag.lstrip("-").replace("-", "_"): name for flag, name in flags}
    try:
        content = json.loads(file.read_text("utf-8"))
        if not isinstance(content, dict):
            raise ValueError("it must be a JSON object of options")
    except (OSError, ValueError, RecursionError) as error:
        parser.error(f"--config {file}: {error}")
    if isinstance(content.get("options"), dict):
        options = {name: value for name, value in content["options"].items() if name not in ("device", "preset")}
    else:
        options = {names.get(name.replace("-", "_"), name): value for name, value in content.items()}
        for name in options.keys() - {*names.values()} | options.keys() & NOT_STORED:
            close = ", ".join(difflib.get_close_matches(name, names, n=3)) or "see --help"
            advice = "type it" if name in NOT_STORED else f"close names: {close}"
            parser.error(f"--config {file}: {name!r} is not an option of a file: {advice}")
    for name in EXECUTED:
        value = options.get(name)
        if isinstance(value, str) and models.is_function(value):
            if flag_of(name) not in typed:
                advice = f"if you trust it, add {flag_of(name)} {value}"
                parser.error(f"--config {file}: a Python file is executed only if it is typed: {advice}")
            del options[name]
    error = parser.error
    parser.error = lambda message: error(f"--config {file}: {message}")
    words = words_of(parser, options)
    parser.parse_args(words)
    parser.error = error
    return words


def resolve(options: argparse.Namespace) -> None:
    """Fills in the defaults that depend on other options."""
    if options.csv and options.data == "demo":
        options.data = os.path.dirname(options.csv) or "."
    is_demo = options.data == "demo"  # small images, a small network, few updates
    size = options.size or [48 if is_demo else 224]
    if not isinstance(size, int):
        is_square = len(size) == 1 or (len(size) == 2 and size[0] == size[1])
        options.size = size[0] if is_square else tuple(size)
    options.model = options.model or ("resnet8" if is_demo else "resnet18")
    defaults = optim.OPTIMIZERS[options.optimizer]
    if options.lr is None:
        options.lr = 5e-3 if is_demo and options.optimizer == "adamw" else defaults.lr
    if options.weight_decay is None:
        options.weight_decay = defaults.weight_decay
    is_ldam = losses.LDAMLoss in losses.loss_classes(options.loss)
    options.head = options.head or ("cosine" if is_ldam else "linear")
    options.min_delta = options.min_delta or 0.0
    options.amp = options.amp or ("fp16" if options.device.startswith("cuda") else "off")
    options.cache = os.path.expanduser(options.cache)
    if options.pseudo:
        options.pseudo_share = 0.5 if options.pseudo_share is None else options.pseudo_share
        options.pseudo_labels = options.pseudo_labels or "soft"


# options that can be changed when resuming
MAY_CHANGE = {"resume", "device", "threads", "cache", "save_every", "tensorboard", "wandb"}
EXECUTED = ("model", "transform")  # a FILE.py:FUNCTION is executed only if it was typed


def _resumed(
    parser: argparse.ArgumentParser, options: argparse.Namespace, typed: set[str], argv: list[str]
) -> argparse.Namespace:
    """The stored options of the resumed run, with those that were typed now. Refuses what would change the result."""
    folder = Path(options.resume)
    try:
        saved = stored(folder)
    except runs.BadInput as error:
        parser.error(f"--resume: {error}")
    parent = folder.resolve().parent
    if re.fullmatch(r"fold\d+", folder.resolve().name) and (parent / "config.json").is_file():
        parser.error(f"--resume {options.resume} is one fold of a run: resume the whole run with --resume {parent}")
    options.out = options.out and os.path.normpath(options.out)
    saved.out = os.path.normpath(options.resume)
    for name in sorted(typed):
        new, old, flag = getattr(options, name), getattr(saved, name), flag_of(name)
        if name == "epochs" and new > old:
            fixing = fixing_epochs(vars(saved))
            if fixing:
                parser.error(
                    f"--epochs {new}: cannot change --epochs {old} when resuming with {fixing}, because with a "
                    "different number of epochs the epochs that are done would have been different"
                )
        elif new != old and name not in MAY_CHANGE and not (name in EXECUTED and _is_same_file(new, old)):
            parser.error(f"{flag} {new}: cannot change {flag} when resuming; the run was started with {flag} {old}")
        setattr(saved, name, new)
    missing = argparse.Namespace(**{name: None if name in typed else getattr(saved, name) for name in EXECUTED})
    if typed_again(missing):
        command = shlex.join(["python", "train.py", *argv, *typed_again(missing)])
        parser.error(
            f"--resume {options.resume}: this run executes a Python file, which must be typed again. "
            f"If you trust the file: {command}"
        )
    _note_not_stored(folder, saved, typed)
    return saved


def _is_same_file(new: str, old: str | None) -> bool:
    """Whether two FILE.py:FUNCTION are the same function."""
    (file, *function), (old_file, *old_function) = new.rsplit(":", 1), (old or "").rsplit(":", 1)
    return function == old_function and os.path.realpath(file) == os.path.realpath(old_file)


def typed_again(options: argparse.Namespace) -> list[str]:
    """The words to type again when the run with these options is resumed: what a config.json may not decide."""
    names = [name for name in EXECUTED if models.is_function(getattr(options, name) or "")]
    if getattr(options, "cache", None) not in (None, os.path.expanduser(CACHE)):
        names.append("cache")
    names += ["wandb"] if getattr(options, "wandb", None) else []
    return [word for name in names for word in (flag_of(name), getattr(options, name))]


def resume_command(options: argparse.Namespace) -> str:
    return shlex.join(["python", "train.py", "--resume", options.out, *typed_again(options)])


def _note_not_stored(folder: Path, options: argparse.Namespace, typed: set[str]) -> None:
    """Prints which options of the run write outside of its folder, and are not used because they were not typed."""
    config = runs.read_config(folder)["options"]
    before = {"cache": os.path.expanduser(str(config.get("cache") or CACHE)), "wandb": config.get("wandb")}
    changed = [name for name, old in before.items() if name not in typed and old not in (None, getattr(options, name))]
    if changed:
        flags = ", ".join(f"{flag_of(name)} {before[name]!r:.200}" for name in changed)
        now = f"Images are cached in {options.cache}"
        print(f"note: {flags} of this run must be typed again to be used. {now}", file=sys.stderr)


def first_drw_epoch(options: argparse.Namespace) -> int:
    """The first epoch with the class weights of --drw: 81 for 0.8 of 100 epochs.

    Rounded, because 0.7 * 90 is less than 63 in floating point.
    """
    return math.floor(round(options.drw * options.epochs, 6)) + 1


def is_stopped_early(options: argparse.Namespace, state: runs.State) -> bool:
    """Whether --patience ended the run."""
    return bool(options.patience) and state.epochs_without_improvement >= options.patience


def fixing_epochs(options: dict[str, Any]) -> str:
    """The option with which --epochs cannot grow when resuming: it sets what the finished epochs had. "" if it can."""
    for name in ("drw", "mix_off_last"):  # their first epoch depends on the number of epochs
        if options.get(name):
            return f"{flag_of(name)} {options[name]:g}"
    can_grow = options["scheduler"] in ("none", "plateau", "restarts") or bool(
        options["step_epochs"] or options.get("milestones")
    )
    return "" if can_grow else f"--scheduler {options['scheduler']}"


AT_LEAST = {
    **dict.fromkeys(("epochs", "batch_size", "accum", "patience", "threads", "samples_per_class"), 1),
    **dict.fromkeys(("save_every", "save_top", "step_epochs", "t0", "t_mult", "imbalance"), 1),
    **dict.fromkeys(("seed", "skip_nonfinite", "weight_decay", "warmup", "min_lr", "plateau_patience"), 0),
    **dict.fromkeys(("gamma", "mixup", "cutmix", "tau", "max_m", "mix_off_last"), 0),
    "freeze_epochs": 1,
    **dict.fromkeys(("folds", "num_classes"), 2),
}
ABOVE_0 = ("lr", "clip", "head_lr", "sam")
BETWEEN_0_AND_1 = ("ema", "val_frac", "lr_decay", "drw")
FROM_0_TO_1 = ("smoothing", "smoothing_tail")
LOSS_OPTIONS = ("gamma", "smoothing", "smoothing_tail", "tau", "max_m")


def _check_ranges(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    """Refuses numbers that are out of range, each under its own flag."""

    def check(name: str, is_valid: Callable[[float], bool], valid: str) -> None:
        value = getattr(options, name)
        is_finite = not isinstance(value, float) or math.isfinite(value)  # a whole number may be too large for isfinite
        if value is not None and not (is_finite and is_valid(value)):
            finite = " and finite" if value in (math.inf, -math.inf) and "finite" not in valid else ""
            parser.error(f"{flag_of(name)} must be {valid}{finite}, got {value}")

    for name, least in AT_LEAST.items():
        check(name, lambda value, least=least: value >= least, f"at least {least}")
    for name in ABOVE_0:
        check(name, lambda value: value > 0, "greater than 0")
    for name in BETWEEN_0_AND_1:
        check(name, lambda value: 0 < value < 1, "between 0 and 1")
    for name in FROM_0_TO_1:
        check(name, lambda value: 0 <= value <= 1, "from 0 to 1")
    for name in ("layer_decay", "pseudo_share"):
        check(name, lambda value: 0 < value <= 1, "above 0 and at most 1")
    check("seed", lambda value: value < 2**63, "less than 2^63")
    check("min_delta", lambda value: True, "a finite number")
    sides = [options.size] if isinstance(options.size, int) else options.size
    if len(sides) > 2 or min(sides) < 8:
        parser.error(
            f"--size must be one side, or height and width, each at least 8 pixels; got {' '.join(map(str, sides))}"
        )


def _check_combinations(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    """Refuses options that have no effect or contradict another option."""
    if options.warmup >= options.epochs:
        parser.error(f"--warmup {options.warmup:g} must be shorter than the run of {options.epochs} epochs (--epochs)")
    if options.min_lr is not None and options.min_lr > options.lr:
        parser.error(f"--min-lr {options.min_lr:g} must be at most the learning rate {options.lr:g} (--lr)")
    if options.min_delta and not options.patience:
        parser.error(f"--min-delta {options.min_delta:g} has no effect without --patience: add --patience")
    if options.samples_per_class and options.sampler != "balanced":
        parser.error(f"--samples-per-class needs --sampler balanced, got --sampler {options.sampler}")
    if options.drw and options.class_weights != "none":
        parser.error(f"--drw {options.drw:g} sets class weights itself: remove --class-weights {options.class_weights}")
    _check_fine_tuning(parser, options)
    if options.mix_off_last and not (options.mixup or options.cutmix):
        parser.error(f"--mix-off-last {options.mix_off_last} has no effect without --mixup or --cutmix")
    numbers = options.mean_std or [0.0, 1.0]
    is_valid = len(numbers) in (2, 6) and all(map(math.isfinite, numbers)) and min(numbers[len(numbers) // 2 :]) > 0
    if not is_valid:
        parser.error("--mean-std must be a mean and a std, or 3 means and 3 stds, with each std greater than 0")
    try:
        re.compile(options.group_regex or "")
    except re.error as error:
        parser.error(f"--group-regex {options.group_regex!r} is not a valid regular expression: {error}")

    def check(flag: str, build: Callable[[], Any]) -> None:
        try:
            build()
        except ValueError as error:  # an unknown name, or an option that it does not take
            parser.error(f"{flag}: {error}")

    check("--loss", lambda: losses.build_loss(options.loss, [2, 1]))
    check("--augment", lambda: augment.build_augment(options.augment))
    if options.flips != "random" and set(options.augment.split("+")) <= {*augment.WITHOUT_FLIP}:
        parser.error(
            f"--flips {options.flips} has no effect with --augment {options.augment}, which does not flip: choose a "
            "different --augment"
        )
    for name, value in given(options, *LOSS_OPTIONS).items():
        check(flag_of(name), lambda name=name, value=value: losses.build_loss(options.loss, [2, 1], **{name: value}))
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=options.lr)
    for name, value in given(options, *SCHEDULE_OPTIONS).items():
        check(
            flag_of(name),
            lambda name=name, value=value: optim.build_schedule(
                options.scheduler, optimizer, options.epochs, 1, **{name: value}
            ),
        )


def _check_fine_tuning(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    """Refuses options of fine-tuning, heads and pseudo-labels that have no effect or contradict another option."""
    if options.freeze and not re.fullmatch("backbone|[1-9][0-9]{0,3}", options.freeze):
        parser.error(f"--freeze must be backbone or a number of stages, got {options.freeze!r}")
    for name in ("freeze_epochs", "mix_off_last"):
        if (getattr(options, name) or 0) >= options.epochs:
            number = getattr(options, name)
            parser.error(
                f"{flag_of(name)} {number} must be less than the {options.epochs} epochs of the run (--epochs)"
            )
    if options.freeze and options.weights == "none" and not models.is_function(options.model):
        advice = "add --weights DEFAULT, or --init with a run or checkpoint"
        parser.error(f"--freeze {options.freeze} freezes random weights: {advice}")
    if losses.LDAMLoss in losses.loss_classes(options.loss) and options.head != "cosine":
        parser.error(f"--head {options.head}: the margins of --loss {options.loss} are for --head cosine")
    for name in ("pseudo_data", "pseudo_share", "pseudo_labels"):
        if getattr(options, name) is not None and not options.pseudo:
            parser.error(f"{flag_of(name)} {getattr(options, name)} has no effect without --pseudo: add --pseudo RUN")
    if options.pseudo and not options.pseudo_data:
        parser.error(f"--pseudo {options.pseudo} needs --pseudo-data TEST, the images to label")
    if options.fresh_head and options.weights == "none":
        parser.error("--fresh-head has no effect without --weights: add --weights")


def _check_patience(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    """Refuses a --patience that could end a new run before an option takes effect that depends on the epoch."""
    changes = {
        "drw": ("begins", first_drw_epoch),
        "freeze_epochs": ("ends", lambda options: options.freeze_epochs + 1),
        "mix_off_last": ("begins", lambda options: options.epochs - options.mix_off_last + 1),
    }
    for name, (verb, first_epoch) in changes.items():
        if options.patience and getattr(options, name) and options.patience < (first := first_epoch(options)) - 1:
            parser.error(
                f"--patience {options.patience} can end the run before epoch {first}, in which {flag_of(name)} "
                f"{getattr(options, name):g} {verb}: use --patience {first - 1} or more, or remove one of the two"
            )


SCHEDULE_OPTIONS = sorted({option for name in optim.SCHEDULES for option in optim.schedule_options(name)})


def given(options: argparse.Namespace, *names: str) -> dict[str, Any]:
    """The named options without those that are None. A loss or schedule refuses an option that it does not take."""
    return {name: getattr(options, name) for name in names if getattr(options, name) is not None}


# ---------------------------------------------------------------------------------------------------------------------
# Errors
# ---------------------------------------------------------------------------------------------------------------------

MODULES = (augment, checkpoint, data, demo, leaks, losses, models, pixels, runs)
BAD_INPUT = tuple(module.BadInput for module in MODULES)


@contextmanager
def blaming(flag: str, program: str = "train.py", disk: str | None = None) -> Iterator[None]:
    """Turns BadInput of any module, and OSError, into one line that names the flag, and exit code 2.

    `disk` is the flag for an OSError, if it differs. All other exceptions are bugs and keep their traceback.
    """
    try:
        yield
    except data.NoColumn as error:
        refuse(f"{flag_of(error.part + '_col')}: {error}", program, error)
    except BAD_INPUT as error:
        refuse(f"{flag}: {error}", program, error)
    except OSError as error:
        refuse(f"{disk or flag}: {error}", program, error)


def refuse(message: str, program: str = "train.py", cause: BaseException | None = None) -> NoReturn:
    """Ends the program with one line on standard error, and exit code 2."""
    print_any_text()
    print(printable(f"{program}: error: {message}"), file=sys.stderr)
    raise SystemExit(2) from cause


@contextmanager
def clear_errors(options: argparse.Namespace, folder: Path, state: runs.State) -> Iterator[None]:
    """Turns errors during training into a message with advice, and exit code 2."""
    try:
        yield
    except (loop.NonFinite, pixels.BadInput, runs.BadInput, OSError) as error:
        message, cause = str(error), error
    except (torch.cuda.OutOfMemoryError, MemoryError, RuntimeError) as error:
        is_memory = isinstance(error, (torch.cuda.OutOfMemoryError, MemoryError)) or "t allocate memory" in str(error)
        if not is_memory or options.batch_size == 1:
            raise
        smaller = max(b for b in range(1, options.batch_size // 2 + 1) if options.batch_size % b == 0)
        message, cause = (
            f"out of memory with --batch-size {options.batch_size}: use --batch-size {smaller} "
            f"--accum {options.accum * options.batch_size // smaller}, which needs less memory for the same updates",
            error,
        )
    else:
        return
    saved = f"\nepochs saved in {folder}: {state.epoch}" if state.saves else ""
    refuse(message + saved, cause=cause)


@contextmanager
def ranks_of(device: str, program: str = "train.py") -> Iterator[Ranks]:
    """The processes that torchrun started, on this --device, usually one. All but the first are quiet."""
    here = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    with quiet():
        with blaming("--device", program):
            found = usable_device(device)
            if here > 1 and found.type == "cuda":
                check_gpus(device, here)
        with Ranks.of_torchrun(found) as ranks, ending_together(program) if ranks.size > 1 else nullcontext():
            yield ranks


def check_gpus(device: str, processes: int) -> None:
    """BadInput if the processes of this machine cannot have a GPU each."""
    gpus = torch.cuda.device_count()
    if processes > gpus:
        raise runs.BadInput(
            f"{processes} processes need {processes} GPUs, but torch finds {gpus}: start {gpus} of them"
        )
    if device != "cuda":
        raise runs.BadInput(
            f"{device} cannot be used by {processes} processes: use cuda, and each has a GPU of its own"
        )


@contextmanager
def quiet() -> Iterator[None]:
    """In all but the first process of a run: prints nothing, but the message of an error that is its own.

    The first process prints the errors that all of them find. It then ends, and so torchrun ends this one by SIGTERM.
    """
    text, rank = io.StringIO(), os.environ.get("RANK", "0")
    if rank == "0":
        yield
        return
    try:
        with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere), redirect_stderr(text):
            yield
    except Stopped:
        raise SystemExit(128 + SIGNALS.asked) from None
    except SystemExit as error:
        lines = text.getvalue().strip().splitlines()
        first = max([i for i, line in enumerate(lines) if ": error: " in line], default=len(lines) - 1)
        if error.code and lines:
            try:
                time.sleep(3)
            except Stopped:
                raise error from None
            print(f"process {rank}: " + "\n".join(lines[first:]), file=sys.stderr)
        raise


@contextmanager
def ending_together(program: str) -> Iterator[None]:
    """The line of a process that notices that another one has ended, and exit code 1."""
    try:
        yield
    except Lost as error:
        advice = "Continue the run with --resume" if program == "train.py" else "Start the same command again"
        print(f"{program}: error: {error}: see its message. {advice}", file=sys.stderr)
        raise SystemExit(1) from error


def usable_device(name: str) -> torch.device:
    """The device of --device. BadInput if it is not cpu, cuda or cuda:NUMBER, or is not available."""
    choices = "choose cpu, cuda or cuda:NUMBER"
    if not re.fullmatch("cpu|cuda(:[0-9]+)?", name):
        raise runs.BadInput(f"{name!r} is not a supported device: {choices}")
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        found = torch.cuda.device_count()
        raise runs.BadInput(f"{name!r} is not available: CUDA GPUs found by torch: {found}; {choices}") from error


# ---------------------------------------------------------------------------------------------------------------------
# Text for the terminal
# ---------------------------------------------------------------------------------------------------------------------


def use_utf8() -> None:
    """Starts this program again in Python's UTF-8 mode if the locale is not UTF-8, as with LC_ALL=C.

    Else a Korean name in a CSV or config.json and the same name of a file would be different texts.
    """
    if sys.getfilesystemencoding() != "utf-8" and os.environ.get("PYTHONUTF8") != "1":
        os.execve(sys.executable, sys.orig_argv, os.environ | {"PYTHONUTF8": "1"})


def print_any_text() -> None:
    """Prints characters that the terminal's encoding does not have as escapes, instead of raising an error."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a notebook's streams do not have it
            stream.reconfigure(errors="backslashreplace")


def printable(text: object, most: int = 600) -> str:
    """Text that may contain names of files and classes, for a terminal. Only line breaks are kept as they are.

    Control characters, marks that change the direction of text, and bytes that are not text become escapes. Lines of
    more than `most` characters are cut in the middle, and so are texts of more than 60 lines.
    """
    lines = data.printable(text).split("\n")
    lines = lines if len(lines) <= 60 else [*lines[:40], f"... {len(lines) - 59} lines ...", *lines[-19:]]
    begin, end = most * 2 // 3, most // 3
    return "\n".join(line if len(line) <= most else f"{line[:begin]} ... {line[-end:]}" for line in lines)


def is_terminal() -> bool:
    return hasattr(sys.stdout, "isatty") and sys.stdout.isatty()  # a notebook's stdout may not have it


def wrapped(text: str, indent: int = 0) -> str:
    """The text with line breaks to fit the terminal, and an indent after each. Only lines if stdout is no terminal."""
    if not is_terminal():
        return text
    lines, width = [], max(shutil.get_terminal_size().columns - 1 - indent, 20)
    for line in text.split("\n"):
        lines.append("")
        for word in line.split(" "):
            if lines[-1] and columns(lines[-1]) + 1 + columns(word) > width:
                lines.append(word)
            else:
                lines[-1] += f" {word}" if lines[-1] else word
    return ("\n" + " " * indent).join(line.rstrip() for line in lines)


def columns(text: str) -> int:
    """Columns of the terminal that the text takes: 2 for each Korean, Chinese or Japanese character."""
    return sum(0 if unicodedata.combining(c) else 1 + (unicodedata.east_asian_width(c) in "WF") for c in text)


def coloured(text: str, code: int) -> str:
    """The text with an ANSI colour if stdout is a terminal and NO_COLOR (no-color.org) is not set."""
    plain = os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb" or not is_terminal()
    return text if plain else f"\033[{code}m{text}\033[0m"


BOLD, DIM, GREEN, YELLOW = 1, 2, 32, 33


def print_note(text: str, label: str = "note") -> None:
    print(coloured(f"{label:<9}", YELLOW) + wrapped(printable(text), 9), flush=True)

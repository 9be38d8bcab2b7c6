"""Train every combination of some options on several seeds, and say which differences are real.

    python compare.py --vary loss=ce,focal,label_smoothing,ce+f1 --seeds 0,1,2 -- --data FOLDER --epochs 10
    python compare.py --vary "loss=ce,ce --class-weights inverse" --vary accum=1,4 --out runs/weights -- --data FOLDER

After -- stand options of train.py that all runs share. --vary NAME=A,B trains with --NAME A and with --NAME B; a value
may bring further options after a blank, an empty one leaves the option out. Several --vary are combined. The same
command again skips what is finished, resumes what was cut, and prints the tables.

Each run is a folder of train.py under --out. compare.md, compare.csv (a line a row), runs.csv (a line a run) and
compare.html are written there after every run.

What is compared: every row with the first, seed by seed, so that both are judged on the same images. The interval of
the mean difference adds two kinds of chance. Other images: the difference on bootstrap samples of the validation
images, the same samples for both (Efron & Tibshirani 1993). Other seeds: Student's t of the differences of the seeds,
because resampling three seeds, as a bootstrap would, promises far too much. One seed cannot show a difference at all.
"""

from __future__ import annotations

import argparse
import difflib
import hashlib
import itertools
import math
import os
import re
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from urllib.parse import quote

import numpy as np
import torch
from tqdm import tqdm

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

import checkpoint
import cli
import metrics
import page
import runs
from stopping import SIGNALS, Stopped

TRAIN = Path(__file__).with_name("train.py")
SAMPLES = 1000  # of the bootstrap

# ---------------------------------------------------------------------------------------------------------------------
# What is to be compared
# ---------------------------------------------------------------------------------------------------------------------


@dataclass
class Job:
    """One run: its command line, and the folder that it has or will have."""

    seed: int
    folder: Path
    options: argparse.Namespace
    argv: list[str]

    def run(self) -> runs.Run | None:
        return runs.read(self.folder) if (self.folder / "config.json").exists() else None

    def is_finished(self) -> bool:
        run = self.run()
        return bool(run and run.is_finished)

    @property
    def epochs(self) -> int:
        every_fold = self.options.folds and self.options.fold in (None, "all")
        return self.options.epochs * (self.options.folds if every_fold else 1)

    def epochs_done(self) -> int:
        """Rows of log.csv, of all folds."""
        logs = [path for path in (self.folder / "log.csv", *self.folder.glob("fold*/log.csv")) if path.exists()]
        return sum(path.read_text("utf-8").count("\n") - 1 for path in logs)


@dataclass
class Row:
    """One combination of the varied options."""

    name: str
    jobs: list[Job]
    results: dict[int, Result] = field(default_factory=dict)  # by seed, of the runs that are finished


def parse_options(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        usage="python compare.py --vary NAME=VALUE,... [--vary ...] [--seeds 0,1,2] [--out FOLDER] -- [TRAIN OPTIONS]",
        allow_abbrev=False, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    add = parser.add_argument
    add("--vary", action="append", default=[], metavar="NAME=A,B", help="an option of train.py and its values")
    add("--seeds", default="0,1,2", help="seeds of every combination (default 0,1,2)")
    add("--out", default=os.path.join("runs", "compare"), help="folder of the runs and tables (default %(default)s)")
    argv = list(argv)
    own, shared = (argv[: argv.index("--")], argv[argv.index("--") + 1 :]) if "--" in argv else (argv, [])
    options = parser.parse_args(own)
    options.shared = shared
    if not options.vary:
        parser.error("--vary is missing: what is to be compared? For example --vary loss=ce,focal")
    if not re.fullmatch(r"\d+(,\d+)*", options.seeds):
        parser.error(f"--seeds must be whole numbers such as 0,1,2, got {options.seeds}")
    options.seeds = [int(seed) for seed in options.seeds.split(",")]
    if len(set(options.seeds)) < len(options.seeds):
        parser.error(f"--seeds {options.seeds}: a seed stands there twice")
    try:
        options.vary = [parse_axis(axis) for axis in options.vary]
        check_words(shared, "after --")
    except ValueError as error:
        parser.error(str(error))
    used = destinations(shared)
    for name, values in options.vary:
        destination = FLAGS[flag_of(name)]
        if destination in used:
            parser.error(f"--vary {name}={values}: {flag_of(name)} stands a second time; which one is meant?")
        used.add(destination)
    return options


FLAGS = {flag: action.dest for action in cli.make_parser()._actions for flag in action.option_strings}
NOT_SHARED = {"seed", "out", "resume", "preview", "help"}  # every run has its own seed and folder


def flag_of(name: str) -> str:
    return f"--{name.strip().replace('_', '-')}"


def destinations(words: Sequence[str]) -> set[str]:
    """Which options of train.py stand among the words, whatever they are called: --criterion is --loss."""
    flags = (word.partition("=")[0].replace("_", "-") for word in words)
    return {FLAGS[flag] for flag in flags if flag in FLAGS}


def check_words(words: Sequence[str], where: str) -> None:
    for name in sorted(destinations(words) & NOT_SHARED):
        raise ValueError(f"--{name} cannot stand {where}: every run has a seed and a folder of its own")


def parse_axis(axis: str) -> tuple[str, str]:
    """("loss", "ce,focal") of "loss=ce,focal". ValueError that names --vary."""
    name, equals, values = axis.partition("=")
    if not equals:
        raise ValueError(f"--vary {axis}: write NAME=VALUE,VALUE")
    if FLAGS.get(flag_of(name), "help") in NOT_SHARED:
        close = difflib.get_close_matches(flag_of(name), FLAGS, 1)
        raise ValueError(f"--vary {axis}: choose an option of train.py" + (f", {close[0]}?" if close else ""))
    if len(set(values.split(","))) != len(values.split(",")):
        raise ValueError(f"--vary {axis}: a value stands there twice")
    for value in values.split(","):
        try:
            words = shlex.split(value)
        except ValueError as error:
            raise ValueError(f"--vary {axis}: {error}") from error
        check_words(words, f"in --vary {axis}")
    return name, values


def make_rows(options: argparse.Namespace) -> list[Row]:
    """Every combination, each command line checked. A bad one ends the program with its own message."""
    rows = []
    for values in itertools.product(*([(name, value) for value in values.split(",")] for name, values in options.vary)):
        name = " ".join(f"{name}={value.strip() or '(default)'}" for name, value in values)
        axes = [shlex.split(f"{flag_of(axis)} {value}") if value.strip() else [] for axis, value in values]
        twice = [a & b for a, b in itertools.combinations(map(destinations, axes), 2) if a & b]
        if twice:
            raise ValueError(f"--vary {name}: {flag_of(min(twice[0]))} stands in two of them")
        varied = [word for words in axes for word in words]
        row = Row(name, [])
        for seed in options.seeds:
            folder = Path(options.out) / re.sub(r"[^\w.+=,-]", "_", name) / f"seed{seed}"
            argv = [*options.shared, *varied, "--seed", str(seed), "--out", str(folder)]
            parsed = cli.parse_options(argv)
            cli.make_criterion(parsed, np.ones(2), torch.device("cpu"))
            row.jobs.append(Job(seed, folder, parsed, argv))
        rows.append(row)
    folders = [job.folder for row in rows for job in row.jobs]
    if len(set(folders)) < len(folders):
        raise ValueError("two rows of --vary have names that differ only in characters that no folder may have")
    return rows


def check_same(job: Job, run: runs.Run) -> None:
    """ValueError if the folder holds a run with other options than those that are wanted now."""
    wanted = {name: list(value) if isinstance(value, tuple) else value for name, value in vars(job.options).items()}
    for name in sorted(wanted.keys() - cli.MAY_CHANGE - {"out"}):
        if run.options.get(name) != wanted[name]:
            raise ValueError(
                f"{job.folder} holds a run with --{name.replace('_', '-')} {run.options.get(name)}, not "
                f"{wanted[name]}: choose another --out, or remove it"
            )


# ---------------------------------------------------------------------------------------------------------------------
# Training
# ---------------------------------------------------------------------------------------------------------------------


@contextmanager
def started(command: list[str], output: Path) -> Iterator[subprocess.Popen]:
    """A process that writes to a file; a signal that ends this program is handed on to it, once, and waited for.

    The file is locked as long as the process lives, even if this program is killed: no run is trained twice at once.
    """
    with open(output, "ab") as file:
        if fcntl:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise ValueError(f"another process trains the run in {output.parent} now") from None
        process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, start_new_session=True)
        try:
            yield process
        except BaseException:
            process.terminate()
            process.wait()
            raise


def train(job: Job, bar: tqdm) -> int:
    """Begins the run or goes on with it, and moves the bar by its epochs. Returns train.py's exit code."""
    run, argv, before = job.run(), job.argv, bar.n
    if run:
        argv = ["--resume", str(job.folder), *changed(job, run)]
    job.folder.mkdir(parents=True, exist_ok=True)
    with started([sys.executable, os.path.relpath(TRAIN), *argv], job.folder / "output.txt") as process:
        while process.poll() is None:
            time.sleep(0.2)
            bar.update(before + min(job.epochs_done(), job.epochs) - bar.n)
    bar.update(before + job.epochs - bar.n)  # also those that --patience or an error has saved
    return process.returncode


def changed(job: Job, run: runs.Run) -> list[str]:
    """The options that a resumed run may have otherwise, where they are asked for now."""
    words = []
    for name in sorted(cli.MAY_CHANGE - {"resume"}):
        value = getattr(job.options, name)
        if value not in (None, False, run.options.get(name)):
            words += [flag_of(name)] if value is True else [flag_of(name), str(value)]
    return words


def train_all(options: argparse.Namespace, rows: list[Row]) -> list[str]:
    """Fills in every row's runs, and writes the tables after each; one that fails is a line, not the end.

    Returns what failed.
    """
    jobs = [(row, job, job.is_finished()) for row in rows for job in row.jobs]
    total = sum(job.epochs for _, job, is_finished in jobs if not is_finished)
    failed, width, digits = [], max(len(row.name) for row in rows), len(str(len(jobs)))
    with open(os.devnull, "w") as nowhere, tqdm(
        total=total, desc="epochs of all runs", smoothing=0, leave=False,
        file=sys.stderr if sys.stderr.isatty() else nowhere,
    ) as bar:  # fmt: skip
        for number, (row, job, is_finished) in enumerate(jobs, 1):
            said, code, output = "was finished", 0, job.folder / "output.txt"
            if not is_finished:
                before = output.stat().st_size if output.exists() else 0
                code = train(job, bar)
                seconds = bar.format_dict["elapsed"] / bar.n * (total - bar.n)
                said = f"about {duration(seconds)} left" if bar.n < total else ""
            run = job.run()
            if code:
                said = f"failed with exit code {code}: {last_line(output, before)}  {said}"
                failed.append(f"{row.name} seed {job.seed}: see {output}")
            elif run and run.predictions:
                row.results[job.seed] = result = make_result(run)
                said = f"macro F1 {result.scores['f1']:.4f}  {result.scores['minutes']:6.1f} min  {said}"
            with bar.external_write_mode(sys.stdout):
                print(f"{number:{digits}}/{len(jobs)}  {row.name:{width}}  seed {job.seed}  {said}", flush=True)
            write_all(options, rows)
    return failed


def duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def last_line(output: Path, start: int) -> str:
    """What a run said of its error, from this byte of its output on."""
    text = output.read_bytes()[start:].decode("utf-8", "replace")
    lines = [line for line in text.splitlines() if line.strip()]
    return next((line for line in reversed(lines) if ": error: " in line), lines[-1] if lines else "it said nothing")


# ---------------------------------------------------------------------------------------------------------------------
# Judging
# ---------------------------------------------------------------------------------------------------------------------


@dataclass(eq=False)
class Answers:
    """What a run's best model says of images that it was not trained on."""

    paths: np.ndarray  # (N,) of text
    targets: np.ndarray  # (N,) of int64
    preds: np.ndarray  # (N,) of int64
    num_classes: int

    @cached_property
    def f1(self) -> float:
        return metrics.f1_score(self.preds, self.targets, self.num_classes)

    @cached_property
    def images(self) -> bytes:
        """A checksum of the images and their classes, in any order."""
        order = np.argsort(self.paths)
        lines = [f"{path}\n{target}" for path, target in zip(self.paths[order], self.targets[order], strict=True)]
        return hashlib.sha256("\n".join(lines).encode("utf-8", "surrogateescape")).digest()

    @cached_property
    def resampled(self) -> np.ndarray:
        """(SAMPLES,) macro F1 on images drawn with replacement. The same images are drawn alike, so runs make pairs."""
        order, rng = np.argsort(self.paths), np.random.default_rng(list(self.images))
        targets, preds = torch.from_numpy(self.targets[order]), torch.from_numpy(self.preds[order])
        N, block, scores = len(targets), max(1, 2**23 // len(targets)), []
        for size in [block] * (SAMPLES // block) + [SAMPLES % block]:
            drawn = torch.from_numpy(rng.integers(N, size=(N, size)))
            times = torch.zeros(N, size).scatter_add_(0, drawn, torch.ones(N, size))  # how often each image is drawn
            zeros = torch.zeros(self.num_classes, size)
            tp = zeros.index_add(0, targets, times * (preds == targets)[:, None])
            both = zeros.index_add(0, targets, times).index_add(0, preds, times)  # support + predicted
            scores.append((2 * tp / both.clamp(min=1)).mean(0))  # 0 / 0 = 0, as in metrics.py
        return torch.cat(scores).double().numpy()


@dataclass
class Result:
    """What the tables need of a finished run."""

    run: runs.Run  # without its folds and probabilities
    answers: Answers
    scores: dict[str, float]
    curve: list[float]  # macro F1 of each epoch, mean over the folds


def make_result(run: runs.Run) -> Result:
    """The figures of a run; of several folds, the macro F1 of all images out of fold, and means of the folds."""
    said, parts = run.predictions, run.folds or [run]
    answers = Answers(said.paths, said.targets, said.probs.argmax(1), said.probs.shape[1])
    epochs = zip(*(part.log for part in parts), strict=False)  # as far as all folds have got
    curve = [statistics.mean(row["val_f1"] for row in rows) for rows in epochs]
    scores = {
        "f1": answers.f1,
        "best_loss_f1": statistics.mean(part.best("val_loss", "min")["val_f1"] for part in parts),
        "last_f1": statistics.mean(part.log[-1]["val_f1"] for part in parts),
        "minutes": sum(row["seconds"] for part in parts for row in part.log) / 60,
        "images_per_second": statistics.mean(row["images_per_second"] for part in parts for row in part.log),
    }
    return Result(replace(run, folds=[]), answers, scores, curve)  # a new Run, which has not read them


@dataclass
class Difference:
    """Mean macro F1 of a row minus the first row's, over the seeds of both, with its 95 % interval."""

    mean: float
    low: float
    high: float
    seeds: int
    on_the_same_images: bool

    @property
    def verdict(self) -> str:
        if not self.on_the_same_images:
            return "judged on other images"
        if self.seeds < 2:
            return "one seed shows nothing"
        return "better" if self.low > 0 else "worse" if self.high < 0 else "within noise"


def difference(first: dict[int, Answers], other: dict[int, Answers]) -> Difference:
    """Of answers by seed; only the seeds of both count. With one seed the interval is of the images alone.

    ValueError if no seed is in both.
    """
    seeds = sorted(first.keys() & other.keys())
    if not seeds:
        raise ValueError("no seed has both runs")
    observed = np.array([other[seed].f1 - first[seed].f1 for seed in seeds])
    images = np.mean([other[seed].resampled - first[seed].resampled for seed in seeds], 0)
    chance = np.resize(images - images.mean(), 100 * SAMPLES)
    if len(seeds) > 1:
        error = observed.std(ddof=1) / math.sqrt(len(seeds))
        chance += error * np.random.default_rng(0).standard_t(len(seeds) - 1, len(chance))
    low, high = observed.mean() + np.quantile(chance, [0.025, 0.975])
    same = all(first[seed].images == other[seed].images for seed in seeds)
    return Difference(float(observed.mean()), float(low), float(high), len(seeds), same)


# ---------------------------------------------------------------------------------------------------------------------
# The tables
# ---------------------------------------------------------------------------------------------------------------------

HEAD = ("row", "seeds", "macro F1", "std", "difference", "95 % interval", "verdict", "best-loss model", "last epoch",
        "minutes", "images/s")  # fmt: skip
LEFT = (0, 5, 6)  # columns of text


def differences(rows: list[Row]) -> list[Difference | None]:
    """Of each row to the first; None for the first, and where no seed has both."""
    answers = [{seed: result.answers for seed, result in row.results.items()} for row in rows]
    first, *others = answers
    return [None, *(difference(first, other) if first.keys() & other.keys() else None for other in others)]


def table(rows: list[Row], changes: list[Difference | None]) -> list[list[str]]:
    """A line a row, HEAD's columns, as text; a row without a finished run has its name alone."""
    lines = []
    for row, change in zip(rows, changes, strict=True):
        each = [result.scores for result in row.results.values()]
        if not each:
            lines.append([row.name, "0", *[""] * (len(HEAD) - 2)])
            continue
        mean = {key: statistics.mean(score[key] for score in each) for key in each[0]}
        std = f"{statistics.stdev(score['f1'] for score in each):.4f}" if len(each) > 1 else ""
        against = ["", "", "" if row is not rows[0] else "(first)"]
        if change:
            against = [f"{change.mean:+.4f}", f"{change.low:+.4f} to {change.high:+.4f}", change.verdict]
        lines.append([
            row.name, str(len(each)), f"{mean['f1']:.4f}", std, *against, f"{mean['best_loss_f1']:.4f}",
            f"{mean['last_f1']:.4f}", f"{mean['minutes']:.1f}", f"{mean['images_per_second']:.0f}",
        ])  # fmt: skip
    return lines


NOTES = (
    "macro F1 is of each run's best epoch, mean over seeds; the epoch was chosen on the same images, as was that of "
    "the best-loss model (lowest validation loss); the last epoch's was not.",
    "difference is to the first row, seed by seed; its interval covers other seeds and other validation images. Where "
    "it holds 0 the difference is within noise: these runs do not show it. Of 20 rows that truly are equal, one will "
    "be called different.",
)


def write_all(options: argparse.Namespace, rows: list[Row]) -> None:
    """The tables, of what is finished so far."""
    if not any(row.results for row in rows):
        return
    changes, out = differences(rows), Path(options.out)
    lines = table(rows, changes)
    runs.write_csv(out / "compare.csv", HEAD, lines)
    every = [(row.name, seed, result) for row in rows for seed, result in row.results.items()]
    each = ([name, seed, *result.scores.values(), result.run.folder] for name, seed, result in every)
    runs.write_csv(out / "runs.csv", ("row", "seed", *every[0][2].scores, "folder"), each)
    config = every[0][2].run.config["versions"]
    text = [f"# {', '.join(name for name, _ in options.vary)}, compared", "", "```", command(options), "```", ""]
    text += [f"| {' | '.join(cells)} |" for cells in (HEAD, ["---"] * len(HEAD), *lines)]
    text += ["", *(f"- {note}" for note in NOTES), "- " + ", ".join(f"{key} {value}" for key, value in config.items())]
    checkpoint.write_text(out / "compare.md", "\n".join(text) + "\n")
    write_page(options, rows, changes, lines)


def mean_curve(row: Row) -> page.Series:
    """Macro F1 by epoch, mean over the row's seeds, as far as all have got."""
    curves = [result.curve for result in row.results.values()]
    means = [statistics.mean(each) for each in zip(*curves, strict=False)]
    return page.Series(row.name, list(range(1, len(means) + 1)), means)


def write_page(
    options: argparse.Namespace, rows: list[Row], changes: list[Difference | None], cells: list[list[str]]
) -> None:
    """compare.html: the table with the seeds and intervals drawn, curves, and every run with its own page."""
    done = [row for row in rows if row.results]
    f1 = {row.name: [result.scores["f1"] for result in row.results.values()] for row in done}
    scale = [value for values in f1.values() for value in values]
    ends = [end for change in changes if change for end in (change.low, change.high, 0.0)]
    lines = []
    for line, row, change in zip(cells, rows, changes, strict=True):
        dots = page.strip(scale, f1[row.name], "macro F1 of each seed") if row.results else ""
        drawn = page.strip(ends, [change.mean], "difference", (change.low, change.high)) if change else ""
        lines.append([*line[:4], dots, *line[4:6], drawn, *line[6:]])
    head = [*HEAD[:4], "each seed", *HEAD[4:6], "drawn, with zero", *HEAD[6:]]
    notes = [page.tag("li", note) for note in NOTES]
    each = []
    for row in done:
        for seed, result in row.results.items():
            href = quote(os.path.relpath(result.run.folder / "report.html", options.out))
            numbers = [f"{result.scores[key]:.4f}" for key in ("f1", "best_loss_f1", "last_f1")]
            link = page.tag("a", "report", href=href)
            each.append([row.name, str(seed), *numbers, f"{result.scores['minutes']:.1f}", link])
    names = ["row", "seed", "macro F1", "best-loss model", "last epoch", "minutes", "page"]
    curves = page.line_chart("Macro F1 of validation, mean over the seeds", [mean_curve(row) for row in done], "epoch")
    sections = [
        ("Differences", page.join([page.table(head, lines, "Mean over the seeds"), page.tag("ul", *notes)])),
        ("Curves", curves),
        ("Runs", page.table(names, each, "Every run")),
        ("The comparison", page.tag("pre", command(options))),
    ]
    checkpoint.write_text(Path(options.out) / "compare.html", page.document("Runs compared", sections))


def command(options: argparse.Namespace) -> str:
    own = [word for name, values in options.vary for word in ("--vary", f"{name}={values}")]
    own += ["--seeds", ",".join(map(str, options.seeds)), "--out", options.out]
    return shlex.join(["python", "compare.py", *own, "--", *options.shared])


def print_table(rows: list[Row]) -> None:
    lines = [list(HEAD), *table(rows, differences(rows))]
    widths = [max(len(line[i]) for line in lines) for i in range(len(HEAD))]
    for line in lines:
        cells = (f"{cell:{'<' if i in LEFT else '>'}{widths[i]}}" for i, cell in enumerate(line))
        print("  ".join(cells).rstrip())
    print("\n" + "\n".join(NOTES))


def main(argv: Sequence[str] | None = None) -> None:
    options = parse_options(sys.argv[1:] if argv is None else argv)
    try:
        rows = make_rows(options)
        for job in (job for row in rows for job in row.jobs):
            run = job.run()
            if run:
                check_same(job, run)
        Path(options.out).mkdir(parents=True, exist_ok=True)
        print(f"{len(rows)} rows x {len(options.seeds)} seeds in {options.out}")
        with SIGNALS.installed():
            failed = train_all(options, rows)
    except (ValueError, OSError) as error:
        print(f"compare.py: error: {error}", file=sys.stderr)
        raise SystemExit(2) from error
    except Stopped:
        print("compare.py: stopped; the same command goes on", file=sys.stderr)
        raise SystemExit(128 + SIGNALS.asked) from None
    print()
    print_table(rows)
    if any(row.results for row in rows):
        print(f"\nfiles: {options.out}/ with compare.html, compare.md, compare.csv, runs.csv, and a folder a run")
    if failed:
        print("\n".join([f"\n{len(failed)} runs failed:", *failed]), file=sys.stderr)
        raise SystemExit(1)


if __name__ == "__main__":
    main()

"""Train combinations of options with several seeds, and report real differences.

    python compare.py --vary loss=ce,focal,ce+f1 --seeds 0,1,2 -- --data FOLDER
    python compare.py --vary "loss=ce,ce --class-weights inverse" \\
        --vary accum=1,4 --out runs/weights -- --data FOLDER --epochs 10

- --vary NAME=A,B trains with --NAME A and with --NAME B. A value can add more
  options after a space. An empty value leaves the option out. Several --vary
  are combined.
- Options of train.py after -- are used in all runs.
- {seed} is the seed of the run: --vary "init=,runs/first/loss=ce/seed{seed}".
- The same command again skips finished runs, resumes stopped runs, and prints
  the tables. Started several times at once, also on several machines with a
  shared folder, the processes share the runs. --jobs 4 starts four, each with a
  GPU of its own.

Each run is a run folder of train.py in --out. After every run these files are
written to --out: compare.md, compare.csv and compare.html (one row per
combination), runs.csv (one row per run).

The first combination is the baseline. Each other combination is compared with
it, seed by seed, on the same validation images. The 95 % interval of the mean
difference answers: would new seeds and new images of the same kind show it too?

    half-width^2 = (t s / sqrt(S))^2 + 1.96^2 c

- s: standard deviation of the differences of the S seeds; t: Student's t with
  S - 1 degrees of freedom. s already contains the random errors of each run on
  single images.
- c: variance of the part that all seeds share, because they share images: the
  mean covariance of two seeds' differences over bootstrap samples of the images
  (Efron & Tibshirani 1993), at least 0. It does not shrink with more seeds.
- Squares of half-widths are added as in Howe 1974.

With c = 0 it is the paired t interval. tests/interval.py simulates how often
the verdicts are right, see results/compare-interval.md.

One seed cannot show a difference.
"""

from __future__ import annotations

import argparse
import difflib
import functools
import hashlib
import itertools
import math
import os
import re
import secrets
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import torch
from tqdm.auto import tqdm

import checkpoint
import cli
import metrics
import page
import runs
from runs import BadInput
from stopping import SIGNALS, Stopped

TRAIN = Path(__file__).with_name("train.py")
SAMPLES = 1000  # bootstrap samples
Z = statistics.NormalDist().inv_cdf(0.975)  # 1.96
# Poisson numbers with mean 1 of 2^16 equally likely values: how often a bootstrap sample contains an image
POISSON = np.searchsorted(
    np.cumsum([math.exp(-1) / math.factorial(k) for k in range(9)]), (np.arange(2**16) + 0.5) / 2**16
).astype(np.int32)

# ---------------------------------------------------------------------------------------------------------------------
# What is compared
# ---------------------------------------------------------------------------------------------------------------------


@dataclass
class Job:
    """One run: its options, its command line, and its folder, which may not exist yet."""

    seed: int
    folder: Path
    options: dict[str, Any]  # as cli.parse_options resolves them
    argv: list[str]
    failure: str = ""  # what `read_failure` returned when this comparison began

    def read_failure(self) -> str:
        """The exit code of the last attempt that failed, and a random word that tells it from earlier ones; or ""."""
        file = self.folder / "failed.txt"
        return file.read_text("utf-8") if file.exists() else ""

    def run(self) -> runs.Run | None:
        return runs.read(self.folder) if (self.folder / "config.json").exists() else None

    def is_finished(self) -> bool:
        run = self.run()
        return bool(run and run.is_finished)

    @property
    def epochs(self) -> int:
        """Planned epochs of all folds."""
        return runs.planned_epochs(self.options)

    def epochs_done(self) -> int:
        """Rows of log.csv, of all folds."""
        logs = [path for path in (self.folder / "log.csv", *self.folder.glob("fold*/log.csv")) if path.exists()]
        return sum(path.read_text("utf-8").count("\n") - 1 for path in logs)


@dataclass
class Combination:
    """One value for each varied option: a row of the tables."""

    name: str
    jobs: list[Job]
    results: dict[int, Result] = field(default_factory=dict)  # finished runs by seed


def parse_options(argv: Sequence[str]) -> argparse.Namespace:
    """The options vary [(name, values)], seeds, out, and shared, the words after --. BadInput if one is wrong."""
    usage = "python compare.py --vary NAME=A,B [OPTION ...] -- [TRAIN OPTION ...]"
    parser = cli.Parser(prog="compare.py", usage=usage, description=__doc__)
    add = parser.add_argument
    add("--vary", action="append", default=[], metavar="NAME=A,B", help="an option of train.py and its values")
    add("--seeds", default="0,1,2", metavar="A,B", help="seeds for every combination (default 0,1,2)")
    add(
        "--out", default=os.path.join("runs", "compare"), help="folder of the runs and the tables (default %(default)s)"
    )
    add("--jobs", type=int, default=1, metavar="N", help="train N runs at once, each with a GPU of its own if possible")
    argv = list(argv)
    own, shared = (argv[: argv.index("--")], argv[argv.index("--") + 1 :]) if "--" in argv else (argv, [])
    options = parser.parse_args(own)
    options.shared = shared
    if not options.vary:
        raise BadInput("--vary is missing: name an option and its values, for example --vary loss=ce,focal")
    if not re.fullmatch(r"\d+(,\d+)*", options.seeds):
        raise BadInput(f"--seeds must be integers separated by commas, such as 0,1,2; got {options.seeds}")
    if options.jobs < 1:
        raise BadInput(f"--jobs must be at least 1, got {options.jobs}")
    options.seeds = [int(seed) for seed in options.seeds.split(",")]
    for seed in listed_twice(options.seeds):
        raise BadInput(f"--seeds: seed {seed} is listed twice")
    options.vary = [parse_vary(text) for text in options.vary]
    check_words(shared, "after --")
    used = destinations(shared)
    for name, values in options.vary:
        destination = FLAGS[cli.flag_of(name)]
        if destination in used:
            raise BadInput(
                f"--vary {name}={','.join(values)}: {cli.flag_of(name)} is listed twice; remove it from the other "
                "--vary, or from the options after --"
            )
        used.add(destination)
    return options


FLAGS = {flag: action.dest for action in cli.make_parser()._actions for flag in action.option_strings}
NOT_ALLOWED = ("help", "out", "preview", "resume", "seed")  # compare.py sets the seed and the folder of every run


def listed_twice(values: Sequence[Any]) -> list[Any]:
    return [value for i, value in enumerate(values) if value in values[:i]]


def destinations(words: Sequence[str]) -> set[str]:
    """The options of train.py among the words. Two names of one option are the same: --criterion is loss."""
    flags = (word.partition("=")[0].replace("_", "-") for word in words)
    return {FLAGS[flag] for flag in flags if flag in FLAGS}


def check_words(words: Sequence[str], where: str) -> None:
    for name in sorted(destinations(words) & set(NOT_ALLOWED)):
        others = ", ".join(f"--{other}" for other in NOT_ALLOWED)
        raise BadInput(f"--{name} cannot be used {where}; choose options of train.py other than {others}")


def parse_vary(text: str) -> tuple[str, list[str]]:
    """("loss", ["ce", "focal"]) from "loss=ce,focal"."""
    name, equals, values = text.partition("=")
    if not equals:
        raise BadInput(f"--vary {text} has no values: write NAME=VALUE,VALUE")
    if FLAGS.get(cli.flag_of(name), "help") in NOT_ALLOWED:
        close = difflib.get_close_matches(cli.flag_of(name), FLAGS, 1)
        hint = f" Did you mean {close[0]}?" if close and close[0] != cli.flag_of(name) else ""
        raise BadInput(f"--vary {text}: {cli.flag_of(name)} is not an option of train.py that can be varied.{hint}")
    for value in listed_twice(values.split(",")):
        raise BadInput(f"--vary {text}: the value {value!r} is listed twice")
    for value in values.split(","):
        try:
            words = shlex.split(value)
        except ValueError as error:  # a quotation mark without its pair
            raise BadInput(f"--vary {text}: {error}") from error
        check_words(words, f"in --vary {text}")
    return name, values.split(",")


def make_combinations(
    vary: Sequence[tuple[str, Sequence[str]]], seeds: Sequence[int], out: str | Path, shared: Sequence[str] = ()
) -> list[Combination]:
    """Every combination of the values, with a job per seed. train.py's parser exits if it refuses a command line.

    Args:
        vary: option names and values, as parse_vary returns them.
        shared: further options of train.py for all runs.
    """
    combinations = []
    for choice in itertools.product(*([(name, value) for value in values] for name, values in vary)):
        name = " ".join(f"{option}={value.strip() or '(default)'}" for option, value in choice)
        parts = [shlex.split(f"{cli.flag_of(option)} {value}") if value.strip() else [] for option, value in choice]
        for first, second in itertools.combinations(map(destinations, parts), 2):
            if first & second:
                flag = cli.flag_of(min(first & second))
                raise BadInput(f"--vary: {flag} is listed twice in the combination {name}; remove one of the two")
        folder = Path(out) / re.sub(r"[^\w.+=,-]", "_", name)
        if len(os.fsencode(folder.name)) > 255:
            raise BadInput(
                f"--vary: the folder of the combination {name[:100]} ... would have a name of more than 255 bytes. "
                "Use shorter values, or put options that do not vary after --"
            )
        combination = Combination(name, [])
        for seed in seeds:
            words = [word.replace("{seed}", str(seed)) for word in (*shared, *itertools.chain(*parts))]
            argv = [*words, "--seed", str(seed), "--out", str(folder / f"seed{seed}")]
            options = cli.parse_options(argv)
            combination.jobs.append(Job(seed, folder / f"seed{seed}", vars(options), argv))
        combinations.append(combination)
    for folder in listed_twice([combination.jobs[0].folder.parent for combination in combinations]):
        raise BadInput(
            f"--vary: two combinations would share the folder {folder}, because special characters in its name become "
            "_. Train them by two commands with a different --out"
        )
    return combinations


def check_same(job: Job, run: runs.Run) -> None:
    """BadInput if the folder contains a run with different options than this job's."""
    wanted = {name: list(value) if isinstance(value, tuple) else value for name, value in job.options.items()}
    found = vars(cli.stored(run.folder))
    for name in sorted(wanted.keys() - cli.MAY_CHANGE - {"out"}):
        value = list(found[name]) if isinstance(found[name], tuple) else found[name]
        if value != wanted[name]:
            raise BadInput(
                f"{job.folder} contains a run with {cli.flag_of(name)} {value}, not {wanted[name]}. "
                "Choose a different --out, or delete that folder"
            )


# ---------------------------------------------------------------------------------------------------------------------
# Training
# ---------------------------------------------------------------------------------------------------------------------


@contextmanager
def launch(command: Callable[[], list[str]], output: Path) -> Iterator[subprocess.Popen | None]:
    """Starts a process, with its output appended to a file. If this program is stopped, the process is stopped too.

    The file is locked until the process ends, even if this program is killed: no run is trained by two processes.
    `command` is called after the lock is obtained. If it returns [], there is nothing to start.

    Raises: runs.Held if another process has the lock.
    """
    with runs.open_locked(output) as file:
        words = command()
        if not words:
            yield None
            return
        process = subprocess.Popen(words, stdout=file, stderr=subprocess.STDOUT, start_new_session=True)
        try:
            yield process
        except BaseException:
            process.terminate()
            process.wait()
            raise


def train(job: Job, bar: tqdm) -> int:
    """Starts or resumes the run, and advances the bar by its epochs. Returns the exit code of train.py.

    A run that failed for another process since this comparison began is not tried again. One that was killed is.

    Raises: runs.Held if another process trains it.
    """

    def command() -> list[str]:
        run, argv = job.run(), job.argv
        if run and run.is_finished or job.read_failure() != job.failure:  # by another process, since the caller looked
            return []
        if run:
            argv = ["--resume", str(job.folder), *arguments_again(job)]
        return [sys.executable, os.path.relpath(TRAIN), *argv]

    start, code = bar.n, 0
    job.folder.mkdir(parents=True, exist_ok=True)
    with launch(command, job.folder / "output.txt") as process:
        while process and process.poll() is None:
            time.sleep(0.2)
            bar.update(start + min(job.epochs_done(), job.epochs) - bar.n)
        if process:
            code = process.returncode
            if 0 < code < 128:
                checkpoint.write_text(job.folder / "failed.txt", f"{code} {secrets.token_hex(4)}\n")
        elif not job.is_finished():
            code = int(job.read_failure().split()[0])
    bar.update(start + job.epochs - bar.n)  # also the epochs not trained because of --patience or an error
    return code


def arguments_again(job: Job) -> list[str]:
    """Arguments for the options that a resumed run does not take from its config.json, or that may change."""
    words = []
    for name in sorted(cli.MAY_CHANGE.union(cli.EXECUTED) - {"resume"}):
        value = job.options[name]
        if value not in (None, False):
            words += [cli.flag_of(name)] if value is True else [cli.flag_of(name), str(value)]
    return words


def train_all(combinations: list[Combination], after_run: Callable[[], Any]) -> list[str]:
    """Trains all runs that are not finished, reads their results, and calls after_run() after each run.

    The same command may run several times at once: each takes the next run that no other process trains. At the end it
    waits for the runs of the others, and takes over those whose process has ended.

    Returns one line per failed run. A failed run does not stop the others.
    """
    waiting = [(combination, job) for combination in combinations for job in combination.jobs]
    width = max(len(f"{combination.name}  seed {job.seed}") for combination, job in waiting)
    number, failed, is_first = len(waiting), [], True
    for _, job in waiting:
        job.failure = job.read_failure()
    total = sum(job.epochs for _, job in waiting if not job.is_finished())
    is_terminal = hasattr(sys.stderr, "isatty") and sys.stderr.isatty()
    with (
        open(os.devnull, "w") as nowhere,
        tqdm(
            total=total,
            desc="epochs of all runs",
            smoothing=0,
            leave=False,
            file=sys.stderr if is_terminal else nowhere,
        ) as bar,
    ):
        while waiting:
            before = len(waiting)
            for combination, job in waiting[:]:
                code, status = 0, "already finished" if is_first else "finished by another process"
                try:
                    if not job.is_finished():
                        code, status = train_and_describe(job, bar)
                except runs.Held:
                    continue
                waiting.remove((combination, job))
                if code:
                    failed.append(f"{combination.name} seed {job.seed}: see {job.folder / 'output.txt'}")
                run = job.run()
                if not code and run and run.predictions:
                    combination.results[job.seed] = result = make_result(run)
                    status = f"macro F1 {result.scores['f1']:.4f}  {result.scores['minutes']:6.1f} min  {status}"
                with bar.external_write_mode(sys.stdout):
                    done = f"{number - len(waiting):{len(str(number))}}/{number}"
                    name = f"{combination.name}  seed {job.seed}"
                    print(cli.printable(f"{done}  {name:{width}}  {status}"), flush=True)
                after_run()
            is_first = False
            if len(waiting) == before:  # others train the rest
                time.sleep(1)
    return failed


@contextmanager
def helpers(jobs: int, argv: list[str]) -> Iterator[None]:
    """Starts this program `jobs` - 1 times more, without output. On GPUs, each process sees one of them.

    Their runs are shared with this process by `train_all`. They are stopped if this process is stopped.
    """
    visible = os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(torch.cuda.device_count())))
    gpus = [{"CUDA_VISIBLE_DEVICES": name} for name in visible.split(",") if name] or [{}]
    own = argv[: argv.index("--")] if "--" in argv else argv
    command = [sys.executable, __file__, *own, "--jobs", "1", *argv[len(own) :]]  # the last --jobs wins
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "start_new_session": True}
    more = [gpus[i % len(gpus)] for i in range(1, jobs)]
    processes = [subprocess.Popen(command, env=os.environ | gpu, **quiet) for gpu in more]
    before = dict(os.environ)
    os.environ.update(gpus[0] if jobs > 1 else {})
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)
        for process in processes:
            process.terminate()
        for process in processes:
            process.wait()


def train_and_describe(job: Job, bar: tqdm) -> tuple[int, str]:
    """Trains a run. Returns the exit code of train.py, and what to print about it."""
    output = job.folder / "output.txt"
    size = output.stat().st_size if output.exists() else 0
    code = train(job, bar)
    if output.stat().st_size == size:  # it failed for another process
        size = 0
    seconds = bar.format_dict["elapsed"] / max(bar.n, 1) * (bar.total - bar.n)
    left = f"about {duration(seconds)} left" if bar.n < bar.total else ""
    return code, f"failed with exit code {code}: {error_line(output, size)}  {left}" if code else left


def duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def error_line(output: Path, start: int) -> str:
    """The last error message in a run's output after byte `start`; if there is none, the last line. Printable, cut."""
    text = output.read_bytes()[start:].decode("utf-8", "replace")
    lines = [line for line in text.splitlines() if line.strip()]
    line = next((line for line in reversed(lines) if ": error: " in line), lines[-1] if lines else "no output")
    line = "".join(c if c.isprintable() else "?" for c in line)
    return line if len(line) <= 300 else line[:300] + " ..."


# ---------------------------------------------------------------------------------------------------------------------
# Scores and differences
# ---------------------------------------------------------------------------------------------------------------------


@dataclass(eq=False)
class Predictions:
    """The class that a run's best model predicts for each image that it was not trained on."""

    paths: np.ndarray  # (N,) of text
    targets: np.ndarray  # (N,) of int64
    preds: np.ndarray  # (N,) of int64
    num_classes: int

    @classmethod
    def of(cls, stored: runs.Predictions) -> Predictions:
        return cls(stored.paths, stored.targets, stored.probs.argmax(1), stored.probs.shape[1])

    @cached_property
    def f1(self) -> float:
        return metrics.f1_score(self.preds, self.targets, self.num_classes)

    @cached_property
    def images(self) -> bytes:
        """A checksum of the image paths and their true classes, independent of their order."""
        order = np.argsort(self.paths)
        lines = [f"{path}\n{target}" for path, target in zip(self.paths[order], self.targets[order], strict=True)]
        return hashlib.sha256("\n".join(lines).encode("utf-8", "surrogateescape")).digest()

    @cached_property
    def resampled_f1(self) -> np.ndarray:
        """(SAMPLES,) macro F1 of bootstrap samples of the images.

        How often sample b contains an image is a Poisson number that depends only on the path and b. So an image
        counts equally often in all runs, also if these have only a part of their images in common.
        """
        zeros = torch.zeros(self.num_classes, SAMPLES, dtype=torch.int32)
        tp, predicted, support = zeros.clone(), zeros.clone(), zeros.clone()
        for start in range(0, len(self.paths), 4096):  # 16 MB at a time
            part = slice(start, start + 4096)
            times = torch.from_numpy(np.stack([times_drawn(path) for path in self.paths[part]]))  # (n, SAMPLES)
            targets, preds = torch.from_numpy(self.targets[part]), torch.from_numpy(self.preds[part])
            tp.index_add_(0, targets, times * (preds == targets)[:, None])
            predicted.index_add_(0, preds, times)
            support.index_add_(0, targets, times)
        return metrics.score_from_counts(tp.T, predicted.T, support.T).numpy()  # of counts (SAMPLES, C)


def times_drawn(path: str) -> np.ndarray:
    """(SAMPLES,) of int32: how often each bootstrap sample contains the image, from a hash of its path."""
    digest = hashlib.shake_256(path.encode("utf-8", "surrogateescape")).digest(2 * SAMPLES)
    return POISSON[np.frombuffer(digest, "<u2")]


SCORES = ("f1", "best_loss_f1", "last_f1", "minutes", "images_per_second")
GROUPS = ("head", "medium", "tail")
GROUP_SCORES = tuple(f"{group}_{score}" for score in ("f1", "accuracy") for group in GROUPS)


@dataclass(eq=False)
class Result:
    """The results of a finished run that the tables need."""

    run: runs.Run  # without its folds and probabilities
    predictions: Predictions
    scores: dict[str, float]  # by SCORES, and by GROUP_SCORES if the classes are long-tailed
    curve: list[float]  # macro F1 of each epoch, mean over the folds
    train_counts: list[float] = field(default_factory=list)  # [] in an old run


def make_result(run: runs.Run) -> Result:
    """The scores of a run. With several folds: the out-of-fold macro F1 of all images, and means over the folds."""
    stored, parts = run.predictions, run.folds or [run]
    predictions = Predictions.of(stored)
    epochs = zip(*(part.log for part in parts), strict=False)  # epochs that all folds have finished
    curve = [statistics.mean(row["val_f1"] for row in rows) for rows in epochs]
    scores = (
        predictions.f1,
        statistics.mean(part.best("val_loss", "min")["val_f1"] for part in parts),
        statistics.mean(part.log[-1]["val_f1"] for part in parts),
        sum(row["seconds"] for part in parts for row in part.log) / 60,
        statistics.mean(row["images_per_second"] for part in parts for row in part.log),
    )
    counts = run.train_counts() or []
    by_name = dict(zip(SCORES, scores, strict=True)) | group_scores(stored.matrix, counts)
    small = replace(run, folds=[])  # a new Run that has not loaded the probabilities
    return Result(small, predictions, by_name, curve, counts)


# ---------------------------------------------------------------------------------------------------------------------
# The same labels for all runs
# ---------------------------------------------------------------------------------------------------------------------


def with_same_labels(combinations: list[Combination]) -> tuple[list[Combination], str]:
    """The combinations with the best models judged on the same labels, and a note; unchanged if no fixes differ.

    The labels are those that the finished runs have by --fixes. An image is left out if a run leaves it out, or if two
    runs give it different classes.
    """
    results = [result for combination in combinations for result in combination.results.values()]
    each = [{fix["image"]: fix["to"] for fix in result.run.config.get("fixes", [])} for result in results]
    if all(fixes == each[0] for fixes in each):
        return combinations, ""
    common: dict[str, str | None] = {}
    for image, to in (item for fixes in each for item in fixes.items()):
        common[image] = to if common.setdefault(image, to) == to else None
    fixes = tuple(common.items())
    judged = [
        replace(one, results={seed: with_labels(result, fixes) for seed, result in one.results.items()})
        for one in combinations
    ]
    dropped = sum(name is None for _, name in fixes)
    note = (
        f"labels: runs differ in --fixes, so the best models of all runs are judged on the same labels: {len(fixes)} "
        f"corrections of the runs, of which {dropped} leave an image out. The best-loss model, the last epoch and the "
        "curves are scored by the labels that each run had."
    )
    return judged, note


@functools.cache
def with_labels(result: Result, fixes: tuple[tuple[str, str | None], ...]) -> Result:
    """The result with the changed labels, without the images whose class is None or is not a class of the run."""
    before, number = result.predictions, {name: c for c, name in enumerate(result.run.config["classes"])}
    of_image = {image: number.get(name, -1) for image, name in fixes}
    targets = np.array([of_image.get(p, t) for p, t in zip(before.paths.tolist(), before.targets, strict=True)])
    kept = targets >= 0
    after = Predictions(before.paths[kept], targets[kept], before.preds[kept], before.num_classes)
    matrix = metrics.ConfusionMatrix(after.num_classes).update(after.preds, after.targets)
    groups = group_scores(matrix, result.train_counts)
    return replace(result, predictions=after, scores=result.scores | {"f1": after.f1} | groups)


def group_scores(matrix: metrics.ConfusionMatrix, train_counts: list[float]) -> dict[str, float]:
    """GROUP_SCORES of head, medium and tail classes; empty if the classes are not long-tailed."""
    groups = matrix.by_frequency(train_counts)
    return {f"{row['group']}_{score}": row[score] for row in groups for score in ("f1", "accuracy")}


@dataclass
class Difference:
    """Mean difference between the macro F1 and the baseline's, over their common seeds, with its 95 % interval."""

    mean: float
    low: float
    high: float
    seeds: int
    same_images: bool

    @property
    def verdict(self) -> str:
        if not self.same_images:
            return "different images"
        if self.seeds < 2:
            return "one seed is not enough"
        return "better" if self.low > 0 else "worse" if self.high < 0 else "within noise"


def difference(baseline: dict[int, Predictions], other: dict[int, Predictions]) -> Difference:
    """`other` minus `baseline`, both by seed. Only common seeds are used.

    With one seed, the interval covers only different images. ValueError if no seed is in both.
    """
    seeds = sorted(baseline.keys() & other.keys())
    if not seeds:
        raise ValueError("the baseline and the other runs have no seed in common")
    observed = np.array([other[seed].f1 - baseline[seed].f1 for seed in seeds])
    resampled = [other[seed].resampled_f1 - baseline[seed].resampled_f1 for seed in seeds]
    half, mean = half_width(observed, np.cov(resampled)), float(observed.mean())
    same_images = all(baseline[seed].images == other[seed].images for seed in seeds)
    return Difference(mean, mean - half, mean + half, len(seeds), same_images)


def half_width(differences: np.ndarray, covariance: np.ndarray) -> float:
    """Half the length of the 95 % interval of the mean difference: the formula at the top of this file.

    Args:
        differences: (S,), one per seed.
        covariance: (S, S), of the differences over bootstrap samples of the images; for one seed a number.
    """
    S = len(differences)
    if S == 1:
        return Z * math.sqrt(covariance)
    shared = max(0.0, (covariance.sum() - covariance.trace()) / (S * (S - 1)))
    return math.hypot(student_t(S - 1) * differences.std(ddof=1) / math.sqrt(S), Z * math.sqrt(shared))


@functools.lru_cache
def student_t(freedom: int) -> float:
    """The 97.5 % quantile of Student's t. If t = sqrt(freedom) tan(a), a has a density of cos(a)^(freedom - 1)."""
    edges = np.linspace(0, math.pi / 2, 100_001)
    cumulative = np.cumsum(np.cos((edges[1:] + edges[:-1]) / 2) ** (freedom - 1))
    angle = np.interp(0.95, cumulative / cumulative[-1], edges[1:])
    return math.sqrt(freedom) * math.tan(angle)


# ---------------------------------------------------------------------------------------------------------------------
# The tables
# ---------------------------------------------------------------------------------------------------------------------

HEAD = (
    "combination",
    "seeds",
    "macro F1",
    "std",
    "difference",
    "95 % interval",
    "verdict",
    "best-loss model",
    "last epoch",
    "minutes",
    "images/s",
)
GROUP_HEAD = ("combination", *(f"{group} {score}" for score in ("F1", "accuracy") for group in GROUPS))
TEXT_COLUMNS = ("combination", "95 % interval", "verdict")  # left-aligned
NOTES = (
    "macro F1: the best epoch of each run, mean over the seeds. The best epoch was chosen on the same validation "
    "images, so its score is a little too high. This is also true for the best-loss model (lowest validation loss), "
    "but not for the last epoch.",
    "difference: macro F1 minus that of the baseline (the first combination), mean over the seeds. The interval covers "
    "new seeds and new images of the same kind. Within noise: the interval contains 0, so these runs do not show "
    "a difference. If 20 combinations are equal to the baseline, about one gets a wrong verdict by chance.",
)
GROUP_NOTE = (
    "head, medium and tail: classes with many, some and few training images (more than 100, fewer than 20; if a group "
    "would be empty, thirds of the classes). F1 and accuracy (recall) are means over the classes of a group."
)


def table(combinations: list[Combination]) -> list[dict[str, Any]]:
    """One dict per combination. A value that is not known yet is None.

    combination: its name; seeds: how many runs are finished; f1, best_loss_f1, last_f1, minutes, images_per_second,
    and GROUP_SCORES where the classes are long-tailed: means over these runs; std: standard deviation of f1 (n - 1);
    difference, low, high, verdict: see Difference.
    """
    lines, baseline = [], {seed: result.predictions for seed, result in combinations[0].results.items()}
    for combination in combinations:
        scores = [result.scores for result in combination.results.values()]
        keys = (*SCORES, *GROUP_SCORES)
        values = {key: [score[key] for score in scores if key in score] for key in keys}
        mean = {key: statistics.mean(values[key]) if values[key] else None for key in keys}
        std = statistics.stdev(score["f1"] for score in scores) if len(scores) > 1 else None
        line = {"combination": combination.name, "seeds": len(scores), "f1": mean.pop("f1"), "std": std}
        change = {"difference": None, "low": None, "high": None, "verdict": ""}
        if combination is combinations[0] and scores:
            change["verdict"] = "(baseline)"
        elif baseline.keys() & combination.results.keys():
            found = difference(baseline, {seed: result.predictions for seed, result in combination.results.items()})
            change = {"difference": found.mean, "low": found.low, "high": found.high, "verdict": found.verdict}
        lines.append(line | change | mean)
    return lines


def cells(line: dict[str, Any]) -> list[str]:
    """A line of `table` as text, by HEAD."""
    formats = {"f1": ".4f", "std": ".4f", "difference": "+.4f", "best_loss_f1": ".4f", "last_f1": ".4f"}
    formats |= {"minutes": ".1f", "images_per_second": ".0f"}
    text = {key: "" if line[key] is None else f"{line[key]:{spec}}" for key, spec in formats.items()}
    interval = "" if line["low"] is None else f"{line['low']:+.4f} to {line['high']:+.4f}"
    left = [line["combination"], str(line["seeds"]), text["f1"], text["std"], text["difference"], interval]
    return [*left, line["verdict"], *(text[key] for key in SCORES[1:])]


def group_cells(lines: list[dict[str, Any]]) -> list[list[str]]:
    """All lines of `table` as text, by GROUP_HEAD. [] if no combination is long-tailed."""
    rows = [[line[key] for key in GROUP_SCORES] for line in lines]
    if all(value is None for row in rows for value in row):
        return []
    text = [["" if value is None else f"{value:.4f}" for value in row] for row in rows]
    return [[line["combination"], *row] for line, row in zip(lines, text, strict=True)]


def write_tables(combinations: list[Combination], out: Path, title: str, command: str) -> None:
    """Writes compare.csv, runs.csv, compare.md and compare.html with the finished runs."""
    combinations, note = with_same_labels(combinations)
    finished = [(c.name, seed, result) for c in combinations for seed, result in c.results.items()]
    if not finished:
        return
    lines = table(combinations)
    rows, groups = [cells(line) for line in lines], group_cells(lines)
    wide = [[*row, *more] for row, (_, *more) in zip(rows, groups, strict=True)] if groups else rows
    runs.write_csv(out / "compare.csv", (*HEAD, *(GROUP_HEAD[1:] if groups else ())), wide)
    keys = (*SCORES, *(GROUP_SCORES if groups else ()))
    each = (
        [name, seed, *(result.scores.get(key) for key in keys), result.run.folder] for name, seed, result in finished
    )
    runs.write_csv(out / "runs.csv", ("combination", "seed", *keys, "folder"), each)
    versions = ", ".join(f"{name} {version}" for name, version in finished[0][2].run.config["versions"].items())
    text = [f"# {title}", "", "```", command, "```", ""]
    text += markdown(HEAD, rows)
    text += [*markdown(GROUP_HEAD, groups), f"- {GROUP_NOTE}"] if groups else []
    text += [*(f"- {line}" for line in (*NOTES, note) if line), f"- {versions}"]
    checkpoint.write_text(out / "compare.md", "\n".join(text) + "\n")
    checkpoint.write_text(out / "compare.html", make_page(combinations, lines, out, title, command, note))


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return [*(f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows)), ""]


def mean_curve(combination: Combination) -> page.Series:
    """Macro F1 of each epoch that all seeds have finished, mean over the seeds."""
    curves = [result.curve for result in combination.results.values()]
    means = [statistics.mean(each) for each in zip(*curves, strict=False)]
    return page.Series(combination.name, list(range(1, len(means) + 1)), means)


def in_order(row: Sequence[str], dots: str, interval: str) -> list[str]:
    """A row by HEAD with its pictures, in the page's order: what fits on a phone is the verdict, not the seeds."""
    name, seeds, f1, std, difference, numbers, verdict, *more = row
    return [name, f1, verdict, difference, numbers, interval, seeds, dots, std, *more]


def make_page(
    combinations: list[Combination], lines: list[dict[str, Any]], out: Path, title: str, command: str, note: str
) -> str:
    """The table with seeds and intervals as pictures, curves, and a link to each run's own page."""
    finished = [combination for combination in combinations if combination.results]
    f1 = {c.name: [result.scores["f1"] for result in c.results.values()] for c in finished}
    f1_scale = [value for values in f1.values() for value in values]
    scale = [end for line in lines if line["low"] is not None for end in (line["low"], line["high"], 0.0)]
    rows = []
    for line in lines:
        row, dots, interval = cells(line), "", ""
        if line["seeds"]:
            dots = page.strip(f1_scale, f1[line["combination"]], "macro F1 of each seed")
        if line["low"] is not None:
            alt = "difference and its 95 % interval"
            interval = page.strip(scale, [line["difference"]], alt, (line["low"], line["high"]))
        rows.append(in_order(row, dots, interval))
    head = in_order(HEAD, "each seed", "interval (dotted line: 0)")
    notes = page.tag("ul", *(page.tag("li", line) for line in (*NOTES, note) if line))
    each = []
    for combination in finished:
        for seed, result in combination.results.items():
            path = Path(os.path.relpath(result.run.folder / "report.html", out))
            link = page.tag("a", "report", href=quote(os.fsencode(path.as_posix())))
            numbers = [f"{result.scores[key]:.4f}" for key in ("f1", "best_loss_f1", "last_f1")]
            each.append([combination.name, str(seed), *numbers, f"{result.scores['minutes']:.1f}", link])
    names = ["combination", "seed", "macro F1", "best-loss model", "last epoch", "minutes", "page"]
    curves = [mean_curve(combination) for combination in finished]
    groups, of_groups = group_cells(lines), []
    if groups:
        of_groups = [page.table(GROUP_HEAD, groups, "Frequent and rare classes"), page.tag("p", GROUP_NOTE)]
    sections = [
        ("Differences", page.join([page.table(head, rows, "Mean over the seeds"), notes, *of_groups])),
        ("Curves", page.line_chart("Validation macro F1, mean over the seeds", curves, "epoch")),
        ("Runs", page.table(names, each, "All runs")),
        ("Command", page.tag("pre", command)),
    ]
    return page.document(title, sections)


def command_line(
    vary: Sequence[tuple[str, Sequence[str]]], seeds: Sequence[int], out: str, shared: Sequence[str]
) -> str:
    words = [word for name, values in vary for word in ("--vary", f"{name}={','.join(values)}")]
    words += ["--seeds", ",".join(map(str, seeds)), "--out", out, "--", *shared]
    return shlex.join(["python", "compare.py", *words])


def print_table(lines: list[dict[str, Any]], note: str) -> None:
    groups, notes = group_cells(lines), (*NOTES, *filter(None, [note]))
    print_columns(HEAD, [*map(cells, lines)])
    if groups:
        print_columns(GROUP_HEAD, groups)
        notes = (*notes, GROUP_NOTE)
    print("\n".join(notes))


def print_columns(head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    rows = [list(head), *rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        columns = zip(head, row, widths, strict=True)
        aligned = (f"{cell:{'<' if name in TEXT_COLUMNS else '>'}{width}}" for name, cell, width in columns)
        print("  ".join(aligned).rstrip())
    print()


def main(argv: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """Trains, writes and prints the tables. Returns the rows of the table, see `table`.

    Raises: SystemExit with code 2 if an option is wrong, 1 if a run failed (the tables are written), or 128 + N if
        stopped by signal N.
    """
    cli.print_any_text()
    try:
        options = parse_options(sys.argv[1:] if argv is None else argv)
        combinations = make_combinations(options.vary, options.seeds, options.out, options.shared)
        for job in (job for combination in combinations for job in combination.jobs):
            run = job.run()
            if run:
                check_same(job, run)
        out = Path(options.out)
        out.mkdir(parents=True, exist_ok=True)
        print(cli.printable(f"combinations: {len(combinations)}, seeds: {len(options.seeds)}, folder: {out}"))
        command = command_line(options.vary, options.seeds, options.out, options.shared)
        title = f"Comparison of {', '.join(name for name, _ in options.vary)}"
        argv = [*(sys.argv[1:] if argv is None else argv)]
        with SIGNALS.installed(), helpers(options.jobs, argv):
            failed = train_all(combinations, functools.partial(write_tables, combinations, out, title, command))
    except (BadInput, OSError) as error:
        cli.refuse(str(error), "compare.py", error)
    except Stopped:
        print("compare.py: stopped. Run the same command again to continue", file=sys.stderr)
        raise SystemExit(128 + SIGNALS.asked) from None
    combinations, note = with_same_labels(combinations)
    lines = table(combinations)
    print()
    print_table(lines, note)
    if any(line["seeds"] for line in lines):
        files = "compare.html, compare.md, compare.csv, runs.csv, and one folder per combination"
        print(cli.printable(f"\nfiles: {out}/ with {files}"))
    if failed:
        print(cli.printable("\n".join([f"\nfailed runs: {len(failed)}", *failed])), file=sys.stderr)
        raise SystemExit(1)
    return lines


if __name__ == "__main__":
    cli.use_utf8()
    main()

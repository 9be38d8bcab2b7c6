"""Kills training runs, resumes them, and compares what they end with, bit for bit, with a run that was never cut.

    python tests/kill.py --kills 50 --terms 30 --out results/resume.md     # the long form; the tests run a short one

Each run is a process of its own (forked, so that torch is imported once) and dies of SIGKILL: at a random moment, at a
random system call inside a checkpoint's write, or at one of the seams of the loop.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"  # threads would not survive a fork
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import torch
from PIL import Image

import augment
import checkpoint
import optim
import runs
import train

NET = """
from torch import nn
def net(num_classes):
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, 2), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(0.2), nn.AdaptiveAvgPool2d(4), nn.Flatten(),
        nn.Linear(128, num_classes),
    )
"""
OPTIONS = (
    "--data d --size 16 --model nets.py:net --cache cache --epochs 7 --batch-size 4 --accum 4 --ema 0.9 --warmup 0.5 "
    "--lr 0.02 --augment strong --mixup 0.3 --sampler weighted --class-weights sqrt --monitor f1 --patience 5 "
    "--min-delta 0.7 --threads 1 --save-top 2"
)
TIMING = ("gpu_memory", "images_per_second", "seconds")


def make_workspace(folder: Path) -> None:
    rng = np.random.default_rng(0)
    for c, n in enumerate((30, 20, 10)):
        (folder / "d" / f"class{c}").mkdir(parents=True)
        for i in range(n):
            pixels = rng.integers(0, 160, (16, 16, 3))
            pixels[:, :, c] += 12  # hard enough that no epoch is perfect
            Image.fromarray(pixels.astype(np.uint8)).save(folder / "d" / f"class{c}" / f"{i:02d}.png")
    (folder / "nets.py").write_text(NET)


def start(words: list[str], arm: Callable[[], None] = lambda: None) -> int:
    """A run in a process of its own, after `arm` was called there; returns its id."""
    sys.stdout.flush()
    child = os.fork()
    if child:
        return child
    code = 70
    try:
        quiet = open(os.devnull, "w")
        with contextlib.redirect_stdout(quiet), contextlib.redirect_stderr(open("stderr.txt", "a", buffering=1)):
            arm()
            train.main(words)
            code = 0
    except SystemExit as stop:
        code = int(stop.code or 0)
    except BaseException as error:
        Path("crash.txt").write_text(repr(error))
    finally:
        os._exit(code)


def finish(child: int) -> int:
    """Its exit code, or minus the signal that killed it."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def new_run(out: str, more: str = "") -> list[str]:
    return [*OPTIONS.split(), *more.split(), "--out", out]


def resumed(out: str) -> list[str]:
    return ["--resume", out, "--model", "nets.py:net", "--cache", "cache"]


# ---------------------------------------------------------------------------------------------------------------------
# Where a run dies
# ---------------------------------------------------------------------------------------------------------------------


def dies() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def at_call(owner: object, name: str, n: int, after: bool = False) -> None:
    """From now on the n-th call of owner.name (from 0) kills this process, before or after it has done its work."""
    call, left = getattr(owner, name), [n]

    def dying(*args, **more):
        is_last = left[0] == 0
        left[0] -= 1
        if is_last and not after:
            dies()
        result = call(*args, **more)
        if is_last:
            dies()
        return result

    setattr(owner, name, dying)


def in_validation(n: int) -> None:
    """At the n-th validation batch, which is the n-th that is not augmented: validation has epoch 0."""
    call, left = augment.Augment.__call__, [n]

    def dying(self, images, numbers, epoch):
        if epoch == 0:
            if left[0] == 0:
                dies()
            left[0] -= 1
        return call(self, images, numbers, epoch)

    augment.Augment.__call__ = dying


def in_write(n: int) -> None:
    """At the n-th system call of the writes of checkpoints: between the bytes, the names and the checksums."""
    count = [n]

    def counted(call):
        def dying(*args, **more):
            if count[0] == 0:
                dies()
            count[0] -= 1
            return call(*args, **more)

        return dying

    os.fsync, os.replace = counted(os.fsync), counted(os.replace)


# 48 training images in batches of 4, 4 a window: 12 micro-batches, 3 windows an epoch, 2 validation batches of 4
SEAMS = {
    "inside a window": lambda k: at_call(train.SIGNALS, "check", 7 + 13 * k),
    "between windows": lambda k: at_call(runs.State, "state_dict", 4 + k),
    "at an epoch's last step": lambda k: at_call(optim.Schedule, "step", 3 * (k % 3) + 2, after=True),
    "in validation": lambda k: in_validation(3 + k),
    "between step and schedule": lambda k: at_call(optim.Schedule, "step", 1 + k),
}


def forgets(what: str) -> None:
    """The control: a resumed run that leaves one thing out of what it saved."""
    load = runs.State.load_state_dict

    def forgetful(self, saved):
        fresh = self.state_dict()
        if what == "rng":
            saved["rng"] = fresh["rng"]
        elif what in ("sampler position", "window position"):
            saved["progress"]["windows"] -= 1 if what == "window position" else saved["progress"]["windows"]
        elif what == "scheduler":
            saved["schedule"] = fresh["schedule"]
        elif what == "ema":
            saved["ema"] = {"model": saved["model"], "updates": saved["ema"]["updates"]}
        elif what == "batchnorm buffers":
            saved["model"] |= {key: fresh["model"][key] for key in saved["model"] if "running" in key}
        elif what == "best score":
            saved["best"] = fresh["best"] | {"epoch": saved["best"]["epoch"]}
        elif what == "patience":
            saved["epochs_without_improvement"] = 0
        elif what == "optimizer":
            saved["optimizer"]["state"] = {}
        load(self, saved)

    runs.State.load_state_dict = forgetful


# ---------------------------------------------------------------------------------------------------------------------
# What it ends with
# ---------------------------------------------------------------------------------------------------------------------


def without_timing(value):
    if isinstance(value, dict):
        return {key: without_timing(item) for key, item in value.items() if key not in TIMING}
    return [without_timing(item) for item in value] if isinstance(value, (list, tuple)) else value


def differences(a, b, name: str = "") -> list[str]:
    if isinstance(a, torch.Tensor):
        same = isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b)
        return [] if same else [name]
    if type(a) is not type(b):
        return [name]
    if isinstance(a, dict):
        found = [f"{name}[{key!r}]" for key in a.keys() ^ b.keys()]
        return found + [d for key in a.keys() & b.keys() for d in differences(a[key], b[key], f"{name}[{key!r}]")]
    if isinstance(a, list):
        if len(a) != len(b):
            return [name]
        return [d for i, (x, y) in enumerate(zip(a, b, strict=True)) for d in differences(x, y, f"{name}[{i}]")]
    return [] if a == b else [name]


def ending(folder: str) -> dict:
    """All that a run leaves: model, BatchNorm, EMA, optimizer, schedule, random states, scores, log; without timing."""
    files = {path.name: checkpoint.load(path) for path in Path(folder).glob("*.pt") if "previous" not in path.name}
    for name in ("log.csv", "updates.csv"):
        with open(Path(folder) / name, newline="") as file:
            files[name] = list(csv.DictReader(file))
    return without_timing(files)


# ---------------------------------------------------------------------------------------------------------------------
# The long form
# ---------------------------------------------------------------------------------------------------------------------


def plan(kills: int) -> list[tuple[str, object]]:
    """A fifth inside writes, each seam as often, three in one run, during the resume, and the rest at random times."""
    cases: list[tuple[str, object]] = [("in a write", k) for k in range(max(10, kills // 4))]
    cases += [(seam, k) for k in range(4) for seam in SEAMS]
    cases += [("three kills in one run", k) for k in range(3)] + [("during the resume", k) for k in range(3)]
    cases += [("at a random time", k) for k in range(kills - len(cases))]
    return cases


def kill_and_resume(kind: str, k: int, out: str, seconds: float, more: str) -> int:
    """Runs, kills, resumes to the end; returns how many kills really happened."""
    rng, killed = random.Random(f"{kind} {k}"), 0
    arms: list[Callable[[], None]] = []
    if kind == "in a write":
        arms = [lambda: in_write(rng.randrange(150))]
    elif kind in SEAMS:
        arms = [lambda: SEAMS[kind](k)]
    elif kind == "three kills in one run":
        arms = [lambda: in_write(20 + 3 * k), lambda: SEAMS["in validation"](k)]
        arms += [lambda: at_call(optim.Schedule, "step", k)]
    elif kind == "during the resume":
        arms = [lambda: at_call(runs, "end_epoch", 1 + k % 2)]
        arms += [lambda: at_call(runs.State, "load_state_dict", 0, after=k % 2 == 1)]
    words = new_run(out, more)
    if kind == "at a random time":
        child = start(words)
        time.sleep(rng.uniform(0.3, 1.0) * seconds)
        os.kill(child, signal.SIGKILL)
        killed += finish(child) == -signal.SIGKILL
        words = resumed(out) if (Path(out) / "config.json").exists() else words
    for arm in arms:
        killed += finish(start(words, arm)) == -signal.SIGKILL
        words = resumed(out) if (Path(out) / "config.json").exists() else words
    code = finish(start(words))
    assert code == 0, (kind, k, code)
    return killed


def long_form(kills: int, terms: int) -> list[str]:
    lines = []
    for label, more in (("--save-every 1", "--save-every 1"), ("saved after epochs alone, F1 loss", "--loss ce+f1")):
        began = time.perf_counter()
        assert finish(start(new_run("reference", more))) == 0
        seconds, reference = time.perf_counter() - began, ending("reference")
        counts: dict[str, list[int]] = {}
        for i, (kind, k) in enumerate(plan(kills)):
            killed = kill_and_resume(kind, k, f"run{i}", seconds, more)
            equal = not differences(reference, ending(f"run{i}"))
            row = counts.setdefault(kind, [0, 0, 0])
            row[0], row[1], row[2] = row[0] + 1, row[1] + killed, row[2] + equal
            shutil.rmtree(f"run{i}")
        lines += [f"\n{label}\n", "| killed | runs | kills | bitwise equal |", "|---|---|---|---|"]
        lines += [f"| {kind} | {n} | {killed} | {equal} |" for kind, (n, killed, equal) in counts.items()]
        total = [sum(row[i] for row in counts.values()) for i in range(3)]
        lines.append(f"| **all** | {total[0]} | {total[1]} | **{total[2]}** |")
        ended, exact, equal = terminate(terms, seconds, more, reference)
        lines.append(
            f"\nSIGTERM at {terms} random times: {ended} stopped by it with exit code 143, {exact} of them saved after "
            f"their last update; {equal} of the {terms} ended bitwise equal once resumed"
        )
        shutil.rmtree("reference")
    return lines


def count_updates() -> None:
    """Leaves the number of updates done in updates.txt, at every update."""
    step = optim.Schedule.step

    def counted(self):
        step(self)
        Path("updates.txt").write_text(str(self.updates))

    optim.Schedule.step = counted


def terminate(terms: int, seconds: float, more: str, reference: dict) -> tuple[int, int, int]:
    rng, ended, exact, equal = random.Random(1), 0, 0, 0
    for i in range(terms):
        out = f"term{i}"
        Path("updates.txt").write_text("0")
        child = start(new_run(out, more), count_updates)
        time.sleep(rng.uniform(0.2, 1.0) * seconds)
        os.kill(child, signal.SIGTERM)
        code = finish(child)
        if code == 143:
            ended += 1
            last = Path(out) / "last.pt"
            done = int(Path("updates.txt").read_text()) if last.exists() else 0
            exact += not last.exists() or checkpoint.load(last)["schedule"]["updates"] == done
        assert code in (0, 143), (i, code)
        is_begun = (Path(out) / "config.json").exists()
        assert finish(start(resumed(out) if is_begun else new_run(out, more))) == 0
        equal += not differences(reference, ending(out))
        shutil.rmtree(out)
    return ended, exact, equal


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--terms", type=int, default=30)
    parser.add_argument("--out", help="also write the tables to this Markdown file")
    options = parser.parse_args()
    here = Path.cwd()
    with tempfile.TemporaryDirectory() as scratch:
        os.chdir(scratch)
        make_workspace(Path(scratch))
        lines = long_form(options.kills, options.terms)
        os.chdir(here)
    command = f"`python tests/kill.py --kills {options.kills} --terms {options.terms}`"
    text = "\n".join([f"# Killed and resumed\n\n{command}; torch {torch.__version__}, CPU\n", f"`{OPTIONS}`", *lines])
    print(text)
    if options.out:
        Path(options.out).write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

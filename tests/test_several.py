"""train.py with several processes: the same run as with one, and what happens when one of them ends."""

import argparse
import csv
import functools
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import image_folder
from test_ranks import ROOT, free_port, launch

import cli
import inputs
import loop
import pixels
import predict
import ranks
import runs
import train
from stopping import Stopped

# 34 training images, batch 5 x accum 3: windows of 3, 3 and 1 micro-batches, the last of 4 images. In the last window
# only the first process has a micro-batch.
BASE = "--data d --size 16 --batch-size 5 --accum 3 --epochs 2 --cache cache --augment light --threads 1".split()
PLAIN = ["--model", "nets.py:plain"]
VARIANTS = {
    "ce": PLAIN,
    "weighted": [*PLAIN, "--class-weights", "inverse", "--clip", "0.5"],
    "focal": [*PLAIN, "--loss", "focal", "--ema", "0.9"],
    "f1": [*PLAIN, "--loss", "f1"],
    "ce_f1": [*PLAIN, "--loss", "ce+f1", "--sam", "0.1"],
    "adjusted": [*PLAIN, "--loss", "logit_adjustment", "--sampler", "weighted"],
    "mixup": [*PLAIN, "--mixup", "0.4", "--scheduler", "plateau"],
    "norm": ["--model", "resnet8", "--lr", "1e-3"],
    "dropout": ["--model", "drop.py:dropped"],
    "amp": [*PLAIN, "--amp", "bf16", "--optimizer", "sgd", "--lr", "0.01"],  # Adam would enlarge the rounding
}
LIMITS = {"norm": 1e-4, "amp": 1e-3}  # of the largest difference; bfloat16 may round the same number differently
DROP = """
import os
import time
import torch
from torch import nn

class Reshaped(nn.Module):
    "refuses an empty batch, as most networks do that are written by hand"
    def forward(self, x):
        return x.reshape(x.size(0), -1)

def dropped(num_classes):
    return nn.Sequential(Reshaped(), nn.Linear(768, 32), nn.ReLU(), nn.Dropout(0.5), nn.Linear(32, num_classes))

class Slow(nn.Flatten):
    def forward(self, x):
        time.sleep(float(os.environ.get("SLOW", 0)))
        return super().forward(x)

class Broken(nn.Flatten):
    "in the second epoch, the second process has a NaN or no memory"
    calls = 0
    def forward(self, x):
        self.calls += self.training
        if self.training and self.calls > 4 and os.environ["RANK"] == "1":
            if os.environ["BREAK"] == "memory":
                raise torch.OutOfMemoryError("CUDA out of memory.")
            x = x * float("nan")
        return super().forward(x)

def broken(num_classes):
    return nn.Sequential(nn.Conv2d(3, 8, 3, 2), nn.ReLU(), Broken(), nn.LazyLinear(num_classes))

def slow(num_classes):
    return nn.Sequential(nn.Conv2d(3, 8, 3, 2), nn.ReLU(), Slow(), nn.LazyLinear(num_classes))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("several")
    image_folder(folder / "d")
    import conftest

    (folder / "nets.py").write_text(conftest.NETS)
    (folder / "drop.py").write_text(DROP)
    here = os.getcwd()
    os.chdir(folder)
    for name, words in VARIANTS.items():
        train.main([*BASE, *words, "--out", f"one/{name}"])
    yield folder
    os.chdir(here)


@pytest.fixture(scope="module", params=[2, 3])
def both(request, folder):
    """The folders of the runs of one process, and of several."""
    size, out = request.param, f"several{request.param}"
    image_folder(folder / f"test{size}", (5, 1, 1) if size == 2 else (1, 1), seed=1)
    ports = [free_port() for _ in ("predict", *VARIANTS)]
    for process in launch(size, __file__, size, out, *ports, cwd=folder):
        printed, err = process.communicate(timeout=600)
        assert process.returncode == 0, printed + err
    return folder / "one", folder / out


def weights(run, name="best_f1.pt"):
    return torch.load(run / name, weights_only=True)["model"]


def distance(one, other):
    """The largest difference of a parameter, relative to the largest number in it."""
    pairs = [(a.double(), other[key].double()) for key, a in one.items() if a.is_floating_point()]
    return max(((a - b).abs().max() / a.abs().max().clamp(min=1e-6)).item() for a, b in pairs)


def log_of(run):
    with open(run / "log.csv", newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("name", VARIANTS)
def test_several_processes_make_the_run_of_one(both, name):
    one, several = (folder / name for folder in both)
    for file in ("best_f1.pt", "best_loss.pt", "last.pt"):
        assert distance(weights(one, file), weights(several, file)) < LIMITS.get(name, 2e-6), file
    for a, b in zip(log_of(one), log_of(several), strict=True):
        for column in a.keys() - {"seconds", "images_per_second"}:
            assert float(a[column]) == pytest.approx(float(b[column]), rel=max(1e-4, LIMITS.get(name, 0)), abs=1e-6), (
                column
            )
    texts = [(run / "val_predictions.csv").read_text().splitlines() for run in (one, several)]
    for a, b in zip(*texts, strict=True):  # image, class, predicted; and the confidence to rounding
        assert a.rpartition(",")[0] == b.rpartition(",")[0]
    assert sorted(path.name for path in one.iterdir()) == sorted(path.name for path in several.iterdir())


def test_another_order_of_the_images_is_another_run(both):
    """The control: what rounding alone changes is far below what a changed window does."""
    one, several = both
    assert distance(weights(one / "ce", "last.pt"), weights(several / "weighted", "last.pt")) > 1e-3


def test_more_processes_than_micro_batches_are_refused_by_one_line(folder):
    process = torchrun(folder, ROOT / "train.py", *BASE, "--accum", "1")
    _, err = process.communicate(timeout=300)
    message = "--accum: 1 micro-batches per update cannot be shared by 2 processes: use --batch-size 3 --accum 2"
    assert process.returncode == 1 and err.count("train.py: ") == 1 and message in err


SLOW = ["--model", "drop.py:slow", "--epochs", "12", "--save-every", "1"]


def started(folder, out, monkeypatch, launch):
    """Processes of a run that is in its epochs. They are slow, so that it does not end soon."""
    monkeypatch.setenv("SLOW", "0.2")
    processes = launch(ROOT / "train.py", *BASE, *SLOW, "--out", out)
    monkeypatch.delenv("SLOW")
    deadline = time.time() + 120
    while not (folder / out / "log.csv").exists() and time.time() < deadline:
        time.sleep(0.1)
    return processes


def test_if_a_process_is_killed_the_other_ends_and_the_run_is_resumed_by_any_number(folder, monkeypatch):
    processes = started(folder, "killed", monkeypatch, functools.partial(launch, 2, cwd=folder))
    processes[1].kill()
    began = time.time()
    _, err = processes[0].communicate(timeout=60)
    assert time.time() - began < 60 and processes[0].returncode == 1
    assert err.strip().count("\n") == 0 and "another process of this run has ended" in err
    processes[1].communicate()
    assert 0 < len(log_of(folder / "killed")) < 12
    train.main(["--resume", "killed", *SLOW[:2], "--cache", "cache"])
    train.main([*BASE, *SLOW, "--out", "uncut"])
    assert distance(weights(folder / "uncut", "last.pt"), weights(folder / "killed", "last.pt")) < 1e-5
    assert len(log_of(folder / "killed")) == 12


def torchrun(folder, *argv):
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", f"--master_port={free_port()}"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen([*command, *map(str, argv)], text=True, cwd=folder, **pipes)


def test_sigterm_of_the_launcher_stops_all_processes_after_the_same_update(folder, monkeypatch):
    process = started(folder, "stopped", monkeypatch, functools.partial(torchrun, folder))
    process.terminate()
    out, err = process.communicate(timeout=60)
    assert process.returncode != 0
    assert err.count("train.py: ") == 1 and "train.py: stopped by SIGTERM; continue with: python train.py" in err
    n = int(re.search(r"stopped in epoch \d+, after (\d) of 3 updates", out).group(1))
    saved = torch.load(folder / "stopped" / "last.pt", weights_only=True)
    assert saved["progress"].get("windows", 0) == n % 3


BROKEN = ["--model", "drop.py:broken"]


def test_a_nan_of_one_process_stops_all_with_one_message(folder, monkeypatch):
    monkeypatch.setenv("BREAK", "nan")
    _, err = torchrun(folder, ROOT / "train.py", *BASE, *BROKEN, "--out", "nan").communicate(timeout=60)
    assert err.count("train.py: ") == 1 and "train.py: error: loss nan, gradient norm nan: not finite" in err
    assert "Images of this update in epoch 2: 15" in err and "epochs saved in nan: 1" in err  # of all processes


def test_if_one_process_has_no_memory_all_end_and_its_message_is_printed(folder, monkeypatch):
    monkeypatch.setenv("BREAK", "memory")
    processes = launch(2, ROOT / "train.py", *BASE, *BROKEN, "--out", "memory", cwd=folder)
    (_, first), (_, second) = [process.communicate(timeout=60) for process in processes]
    assert [process.returncode for process in processes] == [1, 2]
    assert first.strip().count("\n") == 0 and "another process of this run has ended: see its message" in first
    assert second.count("\n") == 1 and "process 1: train.py: error: out of memory with --batch-size 5" in second


def test_a_signal_to_one_process_stops_all(folder, monkeypatch):
    processes = started(folder, "signalled", monkeypatch, functools.partial(launch, 2, cwd=folder))
    processes[1].send_signal(signal.SIGTERM)
    found = [process.communicate(timeout=60) for process in processes]
    assert [process.returncode for process in processes] == [128 + signal.SIGTERM] * 2
    assert found[0][1].count("stopped by SIGTERM; continue with: python train.py --resume signalled") == 1
    assert found[1] == ("", "")


def predictions(size, *more):
    """The command line for the images of a number of processes: for 3, there are fewer images."""
    return ["one/weighted", "--data", f"test{size}", "--batch-size", "4", *PLAIN, *more]


def test_predict_shares_the_images(both):
    size = int(both[1].name[-1])
    predict.main(predictions(size, "--out", "one.csv", "--probs", "one.npz"))
    assert Path("one.csv").read_bytes() == Path(f"all{size}.csv").read_bytes()
    found = [np.load(file) for file in ("one.npz", f"all{size}.npz")]
    assert np.array_equal(found[0]["paths"], found[1]["paths"]) and len(found[0]["paths"]) == {2: 7, 3: 2}[size]
    assert np.abs(found[0]["probs"] - found[1]["probs"]).max() < 1e-6


# ---- one process; NCCL ----


def test_one_process_uses_no_collective(folder, monkeypatch):
    def refused(*args, **kwargs):
        raise AssertionError("one process communicates")

    for name in ("init_process_group", "all_reduce", "all_gather", "broadcast_object_list", "barrier"):
        monkeypatch.setattr(torch.distributed, name, refused)
    train.main([*BASE, *PLAIN, "--out", "alone"])
    predict.main(["alone", "--data", "d", *PLAIN, "--out", "alone.csv"])
    with pytest.raises(AssertionError, match="communicates"):
        ranks.Ranks(0, 2).any(True)


@pytest.mark.gpu(2)
def test_two_gpus_make_the_run_of_one(folder):
    words = [*BASE, *PLAIN, "--device", "cuda", "--optimizer", "sgd", "--lr", "0.01"]
    train.main([*words, "--out", "gpu1"])
    process = torchrun(folder, ROOT / "train.py", *words, "--out", "gpu2")
    assert process.wait(timeout=300) == 0, process.communicate()
    assert distance(weights(folder / "gpu1", "last.pt"), weights(folder / "gpu2", "last.pt")) < 1e-2  # TF32
    process = torchrun(folder, ROOT / "predict.py", "gpu1", "--data", "d", *PLAIN, "--out", "gpu2.csv")
    assert process.wait(timeout=300) == 0, process.communicate()
    predict.main(["gpu1", "--data", "d", *PLAIN, "--out", "gpu1.csv"])
    assert Path("gpu1.csv").read_bytes() == Path("gpu2.csv").read_bytes()


# ---- messages of a process that is not the first ----


@pytest.fixture
def second(monkeypatch):
    """This process is the second of a run."""
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setattr(cli.time, "sleep", lambda seconds: None)
    state = runs.State(None, None, epoch=4, saves=False)
    return cli.clear_errors(argparse.Namespace(batch_size=8, accum=2), Path("temporary"), state)


def test_an_error_of_one_process_is_printed_whole(second, capsys):
    with pytest.raises(SystemExit, match="2"), cli.quiet(), second:
        print("note: not printed", file=sys.stderr)
        raise torch.OutOfMemoryError("CUDA out of memory.")
    err = capsys.readouterr().err
    assert err.startswith("process 1: train.py: error: out of memory with --batch-size 8: use --batch-size 4 --accum 4")
    assert err.count("\n") == 1 and "temporary" not in err
    with pytest.raises(SystemExit, match="2"), cli.quiet(), cli.blaming("--data", "predict.py"):
        raise pixels.BadInput("1 image cannot be decoded:\n  x.png")
    assert capsys.readouterr().err == "process 1: predict.py: error: --data: 1 image cannot be decoded:\n  x.png\n"


def test_an_error_that_the_first_process_has_printed_is_not_followed_by_a_line_about_torchruns_sigterm(
    second, capsys, monkeypatch
):
    def stopped(seconds):
        raise Stopped

    monkeypatch.setattr(cli.time, "sleep", stopped)
    with pytest.raises(SystemExit, match="2"), cli.quiet(), second:
        raise loop.NonFinite("loss nan")
    assert capsys.readouterr().err == ""


def test_a_wrong_option_is_printed_by_the_first_process_alone(capsys, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setattr(cli.time, "sleep", lambda seconds: capsys.readouterr())  # torchrun ends it here
    for program in (train, predict):
        with pytest.raises(SystemExit, match="2"):
            program.main(["--no-such-option"])
        assert "usage" not in capsys.readouterr().err


# ---- what processes cannot share ----


def test_processes_that_would_not_make_the_same_updates_are_refused(capsys, monkeypatch):
    config, two = {"data": "0", "pixels": "1"}, ranks.Ranks(0, 2)
    options, state = argparse.Namespace(model="nets.py:mine", lr=1.0), runs.State(torch.nn.SyncBatchNorm(3), None)
    inputs.check_processes(options, state, ranks.Ranks(), config)
    with pytest.raises(SystemExit, match="2"):
        inputs.check_processes(options, state, two, config)
    assert "--model: nets.py:mine has SyncBatchNorm" in capsys.readouterr().err
    state.model, texts = torch.nn.BatchNorm2d(3), []
    monkeypatch.setattr(two, "same", lambda text: texts.append(text) or len(set(texts)) == 1)
    inputs.check_processes(options, state, two, config)
    inputs.check_processes(options, state, two, config)
    changes = ((options, "lr", 2.0), (state, "epoch", 1), (state, "progress", {"windows": 3}))
    for thing, name, value in changes:
        before = getattr(thing, name)
        setattr(thing, name, value)
        with pytest.raises(SystemExit, match="2"):
            inputs.check_processes(options, state, two, config)
        assert "--data: the processes have different options, images or saved states" in capsys.readouterr().err
        setattr(thing, name, before)
        texts[1:] = []
    with pytest.raises(SystemExit, match="2"):
        inputs.check_processes(options, state, two, config | {"pixels": "2"})


def test_each_process_of_a_machine_needs_a_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    cli.check_gpus("cuda", 2)
    with pytest.raises(runs.BadInput, match="3 processes need 3 GPUs, but torch finds 2: start 2 of them"):
        cli.check_gpus("cuda", 3)
    with pytest.raises(runs.BadInput, match="cuda:1 cannot be used by 2 processes: use cuda"):
        cli.check_gpus("cuda:1", 2)


def test_every_process_finds_what_a_resumed_run_reads(tmp_path):
    names = {"config.json", "updates.csv", "pseudo.npz", "last.previous.pt", "last.pt.sha256"}
    names |= {"best_f1.pt", "003_f1_0.9000.pt", "val_probs.npz"}
    for name in [*names, "log.csv", "report.html"]:
        (tmp_path / "fold0").mkdir(exist_ok=True)
        (tmp_path / "fold0" / name).write_text(name)
    with runs.joined(str(tmp_path)) as own:
        assert {path.name for path in Path(own, "fold0").iterdir()} == names
        assert runs.has_last(Path(own) / "fold0")


if __name__ == "__main__":
    size, out, last, *ports = sys.argv[1:]
    for (name, words), port in zip(VARIANTS.items(), ports, strict=True):
        os.environ["MASTER_PORT"] = port
        train.main([*BASE, *words, "--out", f"{out}/{name}"])
    os.environ["MASTER_PORT"] = last
    predict.main(predictions(size, "--out", f"all{size}.csv", "--probs", f"all{size}.npz"))

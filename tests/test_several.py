"""train.py with several processes: the same run as with one, and what happens when one of them ends."""

import csv
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

import predict
import train

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
import torch
from torch import nn

def dropped(num_classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(768, 32), nn.ReLU(), nn.Dropout(0.5), nn.Linear(32, num_classes))
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
    ports = [str(free_port()) for _ in VARIANTS]
    for process in launch(size, __file__, out, *ports, cwd=folder):
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
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", f"--master_port={free_port()}"]
    command = [*torchrun, str(ROOT / "train.py"), *BASE, "--accum", "1"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300)
    message = "--accum: 1 micro-batches per update cannot be shared by 2 processes: use --batch-size 3 --accum 2"
    assert done.returncode == 1 and done.stderr.count("cannot be shared") == 1 and message in done.stderr


SLOW = [*PLAIN, "--epochs", "200", "--save-every", "1"]


def started(folder, out, size=2):
    """Processes of a run that is in its epochs."""
    processes = launch(size, ROOT / "train.py", *BASE, *SLOW, "--out", out, cwd=folder)
    deadline = time.time() + 120
    while not (folder / out / "log.csv").exists() and time.time() < deadline:
        time.sleep(0.1)
    time.sleep(0.5)
    return processes


def test_if_a_process_is_killed_the_other_ends_and_the_run_is_resumed_by_any_number(folder):
    processes = started(folder, "killed")
    processes[1].kill()
    began = time.time()
    _, err = processes[0].communicate(timeout=60)
    assert time.time() - began < 60 and processes[0].returncode == 1
    assert err.strip().count("\n") == 0 and "another process of this run has ended" in err
    processes[1].communicate()
    done = len(log_of(folder / "killed"))
    assert 0 < done < 200
    again = ["--resume", "killed", *PLAIN, "--cache", "cache"]
    subprocess.run([sys.executable, str(ROOT / "train.py"), *again], cwd=folder, check=True, capture_output=True)
    train.main([*BASE, *SLOW, "--out", "uncut"])
    assert distance(weights(folder / "uncut", "last.pt"), weights(folder / "killed", "last.pt")) < 1e-3
    assert len(log_of(folder / "killed")) == 200


def test_a_signal_stops_all_processes_after_the_same_update(folder):
    processes = started(folder, "stopped")
    processes[1].send_signal(signal.SIGTERM)  # torchrun sends it to all: here the others learn of it
    found = [process.communicate(timeout=60) for process in processes]
    assert [process.returncode for process in processes] == [128 + signal.SIGTERM] * 2
    text = "".join(err for _, err in found)
    assert text.count("stopped by SIGTERM; continue with: python train.py --resume stopped") == 1
    n = int(re.search(r"stopped in epoch \d+, after (\d) of 3 updates", found[0][0]).group(1))
    saved = torch.load(folder / "stopped" / "last.pt", weights_only=True)
    assert saved["progress"].get("windows", 0) == n and found[1][0] == ""


def test_predict_shares_the_images(both):
    one, several = both
    size = int(several.name[-1])
    images = image_folder(Path(f"test{size}"), per_class=(5, 1, 1), seed=1)
    words = ["--data", str(images), "--batch-size", "4", "--model", "nets.py:plain"]
    run = str(one / "weighted")
    predict.main([run, *words, "--out", "one.csv", "--probs", "one.npz"])
    for process in launch(size, ROOT / "predict.py", run, *words, "--out", "all.csv", "--probs", "all.npz"):
        printed, err = process.communicate(timeout=300)
        assert process.returncode == 0, printed + err
    assert Path("one.csv").read_bytes() == Path("all.csv").read_bytes()
    found = [np.load(file) for file in ("one.npz", "all.npz")]
    assert np.array_equal(found[0]["paths"], found[1]["paths"])
    assert np.abs(found[0]["probs"] - found[1]["probs"]).max() < 1e-6


if __name__ == "__main__":
    out, *ports = sys.argv[1:]
    for (name, words), port in zip(VARIANTS.items(), ports, strict=True):
        os.environ["MASTER_PORT"] = port
        train.main([*BASE, *words, "--out", f"{out}/{name}"])

"""Puts the kit's folder on the path, so that `python -m pytest` works from anywhere; run folders made of numbers.

GPUs are hidden from all tests but those with the mark gpu: the others compare digits, and GPU kernels add in any order.
"""

import os
import sys
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # one test process per core, see pytest.ini

import numpy as np
import pytest
import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))


@pytest.fixture(autouse=True, scope="session")
def no_gpus():
    """Returns how many GPUs there are, and how to show them again."""
    functions = {"is_available": torch.cuda.is_available, "device_count": torch.cuda.device_count}
    number = torch.cuda.device_count() if torch.cuda.is_available() else 0  # CUDA starts, and reads the variable once
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")

    def show(patch):
        for name, function in functions.items():
            patch.setattr(torch.cuda, name, function)
        patch.delenv("CUDA_VISIBLE_DEVICES")
        if visible is not None:
            patch.setenv("CUDA_VISIBLE_DEVICES", visible)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.cuda, "is_available", lambda: False)
        patch.setattr(torch.cuda, "device_count", lambda: 0)
        patch.setenv("CUDA_VISIBLE_DEVICES", "")
        yield number, show


@pytest.fixture(autouse=True)
def gpus(request, monkeypatch, no_gpus):
    """Skips a test with the mark gpu(NUMBER) where there are fewer GPUs. Else the test sees them."""
    if mark := request.node.get_closest_marker("gpu"):
        (number, show), needed = no_gpus, mark.args[0]
        if number < needed:
            pytest.skip(f"needs {needed} CUDA GPU{'s' * (needed > 1)}")
        show(monkeypatch)


def _make_run(folder, probs, targets, paths=None, epochs=5, classes=None, argv=(), **more):
    """A run folder as train.py leaves it, but for the checkpoints; the last epoch's row holds the scores of probs."""
    import cli
    import data
    import metrics
    import runs

    C = probs.shape[1]
    classes = classes or [f"class {c}" for c in range(C)]
    paths = paths or [f"images/{i}.jpg" for i in range(len(targets))]
    options = cli.parse_options([*argv, "--epochs", str(more.pop("planned", epochs)), "--out", str(folder)])
    counts = (1000 / np.arange(1, C + 1)).round().astype(int).tolist()
    facts = {"train_counts": counts, "drawn_counts": counts, "val_counts": counts, "updates_an_epoch": 10, "notes": []}
    runs.write_config(folder, vars(options), classes, "0123456789abcdef0", facts | more)
    matrix = metrics.ConfusionMatrix(C).update(probs.argmax(1), targets)
    log = []
    for epoch in range(1, epochs + 1):
        part = epoch / epochs
        log.append(
            dict.fromkeys(runs.LOG_COLUMNS, 0)
            | {
                "epoch": epoch,
                "lr": 5e-3 * (1 + np.cos(np.pi * (epoch - 1) / options.epochs)) / 2,
                "train_loss": 1 / epoch,
                "train_ce": 1 / epoch,
                "val_loss": 1.2 / epoch,
                "val_ce": 1.2 / epoch,
                "val_f1": matrix.f1() * part,
                "val_f1_present": matrix.f1("macro_present") * part,
                "val_accuracy": matrix.accuracy() * part,
                "images_per_second": 500.0,
                "seconds": 6.0,
            }
        )
    runs.write_log(folder, log)
    runs.write_csv(folder / "updates.csv", runs.UPDATE_COLUMNS, _updates(epochs, options.epochs))
    table = data.ImageTable(list(paths), np.asarray(targets), np.arange(len(targets)).astype(str), classes, "made")
    logits = torch.from_numpy(probs).clamp(min=1e-9).log()
    runs.write_predictions(folder, table, np.arange(len(targets)), logits)
    return folder


def _updates(epochs, planned, per_epoch=10):
    """Rows of updates.csv: cosine from 5e-3 over the planned epochs, as far as the run has got."""
    total = planned * per_epoch
    for i in range(epochs * per_epoch):
        lr = 5e-3 * (1 + np.cos(np.pi * i / total)) / 2
        yield i // per_epoch + 1, i + 1, lr, 1 / (i + 1), 1.0


@pytest.fixture
def make_run():
    return _make_run


class Stream:
    """As little as a notebook's sys.stdout may have: no reconfigure, no fileno, no isatty."""

    def __init__(self):
        self.text = ""

    def write(self, text):
        self.text += text

    def flush(self):
        pass


def image_array(N=40, C=5, size=8, seed=0):
    import pixels

    rng = np.random.default_rng(seed)
    values, targets = rng.integers(0, 256, (N, size, size, 3), dtype=np.uint8), rng.integers(0, C, N)
    targets[:C] = np.arange(C)
    return pixels.ImageArray(values, targets, [f"{i:02d}.jpg" for i in range(N)])


def image_folder(root, per_class=(24, 12, 6), size=16, seed=0):
    """Classes told apart by their colour, with enough noise that a first epoch is not perfect."""
    rng = np.random.default_rng(seed)
    for c, n in enumerate(per_class):
        folder = root / f"class{c}"
        folder.mkdir(parents=True)
        for i in range(n):
            pixels = rng.integers(0, 120, (size, size, 3))
            pixels[:, :, c % 3] += 60
            Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{i:02d}.png")
    return root


NETS = """
import torch
from torch import nn

def plain(num_classes):
    "no BatchNorm, no dropout: accumulation can be exact"
    return nn.Sequential(nn.Conv2d(3, 8, 3, 2), nn.ReLU(), nn.Flatten(), nn.LazyLinear(num_classes))

def exits(num_classes):
    raise SystemExit(0)

class Poisoned(nn.Module):
    "logits turn into NaN at the fourth micro-batch; the first forward is the check before the run"
    def __init__(self, num_classes):
        super().__init__()
        self.net, self.calls = plain(num_classes), 0
    def forward(self, x):
        self.calls += self.training
        return self.net(x) * (float("nan") if self.calls == 5 and self.training else 1.0)
"""


@pytest.fixture
def workspace(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    image_folder(tmp_path / "d")
    (tmp_path / "nets.py").write_text(NETS)
    return tmp_path

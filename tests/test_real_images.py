"""The kit on real photographs: a long-tailed CIFAR-10 as JPEG files, train/CLASS and test/CLASS.

Looked for in $F1KIT_CIFAR10_LT, else in ../shared/cifar10-lt; without it these tests skip and say so.
"""

import csv
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import data
import pixels
import train

FOLDER = Path(os.environ.get("F1KIT_CIFAR10_LT", Path(__file__).resolve().parents[2] / "shared" / "cifar10-lt"))
pytestmark = pytest.mark.skipif(not FOLDER.is_dir(), reason="no cifar10-lt folder: set F1KIT_CIFAR10_LT")


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


def test_the_folder_is_read_split_and_decoded_as_pillow_decodes_it(cache):
    table = data.read(str(FOLDER))
    counts = data.counts(table, np.arange(len(table)))
    assert len(table) == 12406 and counts.max() == 5000 and counts.min() == 50
    train_rows, val_rows = data.split(table, 0.2)
    assert np.abs(data.counts(table, val_rows) - 0.2 * counts).max() <= 1
    images = pixels.decode(table.paths, table.targets, 32, cache)
    for i in range(0, len(table), 997):
        expected = np.asarray(Image.open(table.paths[i]).convert("RGB"), dtype=int)
        assert np.abs(images.pixels[i] - expected).max() <= 2  # two builds of libjpeg


def test_an_epoch_on_real_images_beats_chance(cache, tmp_path):
    words = ["--data", FOLDER / "train", "--val-data", FOLDER / "test", "--size", 32, "--model", "resnet8"]
    words += ["--epochs", 1, "--batch-size", 64, "--accum", 2, "--loss", "ce+f1", "--augment", "light"]
    train.main([str(word) for word in [*words, "--cache", cache, "--out", tmp_path / "run"]])
    with open(tmp_path / "run" / "log.csv", newline="") as file:
        row = next(csv.DictReader(file))
    # always saying "airplane" has macro F1 2 * 0.1 / (1 + 0.1) / 10 = 0.018 and accuracy 0.1
    assert float(row["val_f1"]) > 0.08 and float(row["val_accuracy"]) > 0.15

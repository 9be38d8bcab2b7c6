"""The kit on real photographs: a long-tailed CIFAR-10 as JPEG files, train/CLASS and test/CLASS.

Looked for in $F1KIT_CIFAR10_LT, else in ../shared/cifar10-lt; without it these tests skip and say so.
"""

import csv
import os
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import data
import leaks
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


def test_the_folder_and_a_csv_of_the_same_files_train_to_the_same_log(cache, tmp_path):
    table = data.read(str(FOLDER / "train"))
    with open(tmp_path / "train.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["image_path", "label"])
        rows = zip(table.paths, table.targets, strict=True)
        writer.writerows([os.path.relpath(path, FOLDER), table.classes[target]] for path, target in rows)
    words = ["--size", 32, "--model", "resnet8", "--epochs", 1, "--batch-size", 64, "--cache", cache]
    words += ["--sampler", "balanced", "--samples-per-class", 200, "--augment", "strong", "--mixup", 0.2]
    train.main([str(word) for word in ["--data", FOLDER / "train", *words, "--out", tmp_path / "folder"]])
    csv_words = ["--csv", tmp_path / "train.csv", "--data", FOLDER, *words, "--out", tmp_path / "csv"]
    train.main([str(word) for word in csv_words])
    logs = []
    for name in ("folder", "csv"):
        with open(tmp_path / name / "log.csv", newline="") as file:
            logs.append([value for key, value in next(csv.DictReader(file)).items() if "second" not in key])
    assert logs[0] == logs[1] and len(logs[0]) == 13


def test_near_duplicates_of_the_test_images_are_found_in_the_training_images(cache):
    table = data.join(data.read(str(FOLDER / "train")), data.read(str(FOLDER / "test"), train=False))
    images = pixels.decode(table.paths, table.targets, 32, cache)
    same, alike = leaks.find_copies(images.pixels)
    pairs = leaks.find_leaks(table.paths, table.targets, table.classes, same, alike, *data.split(table))
    # CIFAR-10 is known for it: 3.3 % of its test images, with all 50,000 training images (arXiv:1902.00423)
    assert 50 < len(pairs) < 150 and {pair.what for pair in pairs} == {"alike"}
    same_class = sum(pair.label == pair.other_label for pair in pairs)
    assert same_class > 0.85 * len(pairs)


def test_leaks_py_answers_as_train_py_does_and_takes_the_numbers_of_the_files_for_no_groups(cache, capsys):
    leaks.answer(str(FOLDER / "train"), str(FOLDER / "test"))
    said = capsys.readouterr().out
    n = int(re.search(r"near-duplicates of a TRAIN image: (\d+) of 10,000", said)[1])
    assert 50 < n < 150 and "identical to a TRAIN image: 0 of 10,000 (0.0%)" in said
    assert said.endswith(f"\n\nleak: {n} of 10,000 VAL images ({n / 10_000:.1%}) have a duplicate in TRAIN\n")
    assert "group" not in said and max(map(len, said.splitlines())) <= 80


def test_an_epoch_on_real_images_beats_chance(cache, tmp_path):
    words = ["--data", FOLDER / "train", "--val-data", FOLDER / "test", "--size", 32, "--model", "resnet8"]
    words += ["--epochs", 1, "--batch-size", 64, "--accum", 2, "--loss", "ce+f1", "--augment", "light"]
    train.main([str(word) for word in [*words, "--cache", cache, "--out", tmp_path / "run"]])
    with open(tmp_path / "run" / "log.csv", newline="") as file:
        row = next(csv.DictReader(file))
    # always saying "airplane" has macro F1 2 * 0.1 / (1 + 0.1) / 10 = 0.018 and accuracy 0.1
    assert float(row["val_f1"]) > 0.08 and float(row["val_accuracy"]) > 0.15

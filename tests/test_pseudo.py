"""train.py --pseudo: labels from the same fold of a run with the same split, and no validation label leaks through."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import image_folder
from PIL import Image

import augment
import checkpoint
import cli
import pixels
import predictors
import pseudo
import report
import runs
import shares
import train
from ranks import Ranks

FLAGS = "--size 16 --model nets.py:make --threads 1 --cache c --lr 3e-3".split()
NET = """
from torch import nn

def make(num_classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(768, 64), nn.ReLU(), nn.Linear(64, num_classes))
"""

# --- the leak --------------------------------------------------------------------------------------------------------


def write_objects(folder, N=150, C=3, photos=4, seed=0):
    """Photos of N objects in d and one more of each in t, and random labels: no honest score is better than chance.

    The photos of an object are similar, but not near-duplicates.
    """
    rng = np.random.default_rng(seed)
    for i, code in enumerate(rng.normal(size=(N, 4, 4, 3))):
        for k in range(photos + 1):
            file = folder / f"d/{i % C}/{i}_{k}.png" if k < photos else folder / f"t/{i}.png"
            x = 128 + 45 * np.kron(code, np.ones((4, 4, 1))) + rng.normal(size=(16, 16, 3)) * 25
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(x.clip(0, 255).astype(np.uint8)).save(file)


def out_of_fold(*words):
    split = ["--folds", "3", "--group-regex", r"(\d+)_\d\.png"]
    found = train.main(["--data", "d", *FLAGS, *split, "--epochs", "2", "--batch-size", "4", *words])
    return runs.read(found["out"]).predictions.matrix.accuracy()


@pytest.fixture(scope="module")
def objects(tmp_path_factory):
    """Images with random labels and a run of three folds on them."""
    folder, before = tmp_path_factory.mktemp("objects"), os.getcwd()
    os.chdir(folder)
    (folder / "nets.py").write_text(NET)
    write_objects(folder)
    first = out_of_fold("--out", "first")
    os.chdir(before)
    return folder, first


WORDS = "--pseudo first --pseudo-data t --pseudo-share 1".split()


def test_labels_of_the_averaged_folds_raise_the_out_of_fold_score_falsely_and_those_of_the_same_fold_do_not(
    objects, monkeypatch
):
    folder, first = objects
    monkeypatch.chdir(folder)
    honest = out_of_fold(*WORDS, "--out", "honest")
    predict_probs = predictors.predict_probs

    def averaged(*arguments):
        by_fold = predict_probs(*arguments)
        return np.broadcast_to(by_fold.mean(0), by_fold.shape)

    monkeypatch.setattr(predictors, "predict_probs", averaged)
    leaking = out_of_fold(*WORDS, "--out", "leaking")
    print(f"accuracy: true 0.333, first {first:.3f}, same fold {honest:.3f}, averaged folds {leaking:.3f}")
    standard_error = (1 / 3 * 2 / 3 / 150) ** 0.5  # of 150 objects
    assert max(first, honest) < 1 / 3 + 2 * standard_error and leaking > 1 / 3 + 3 * standard_error


# --- where the labels come from --------------------------------------------------------------------------------------


def trained(*words):
    return Path(train.main(["--data", "d", *FLAGS, "--epochs", "1", "--batch-size", "8", *map(str, words)])["out"])


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Images in d, test images in t, and two runs: `folds` with three folds, `single` with one split."""
    folder, before = tmp_path_factory.mktemp("made"), os.getcwd()
    os.chdir(folder)
    (folder / "nets.py").write_text(NET)
    image_folder(folder / "d")
    image_folder(folder / "drawn", (30, 20, 10), seed=1)
    (folder / "t").mkdir()
    for i, file in enumerate(sorted((folder / "drawn").rglob("*.png"))):
        shutil.move(file, folder / "t" / f"{i:02d}.png")
    trained("--folds", 3, "--out", "folds")
    trained("--out", "single")
    os.chdir(before)
    return folder


@pytest.fixture
def here(made, tmp_path, monkeypatch):
    """A copy of it, to change and to train in."""
    shutil.copytree(made, tmp_path / "copy")
    monkeypatch.chdir(tmp_path / "copy")
    return tmp_path / "copy"


USED = "--pseudo folds --pseudo-data t".split()


def refused(capsys, *words):
    with pytest.raises(SystemExit) as stop:
        trained(*words, "--out", "no")
    error = capsys.readouterr().err
    assert stop.value.code == 2 and not Path("no/config.json").exists() and "Traceback" not in error
    return error


def test_the_labels_of_a_fold_are_those_of_the_network_of_the_same_fold(here):
    out = trained("--folds", 3, *USED, "--out", "out")
    files = sorted(map(str, Path("t").iterdir()))
    for f in range(3):
        labels = runs.read_predictions(out / f"fold{f}" / "pseudo.npz")
        rows = [files.index(path) for path in labels.paths.tolist()]
        own, different = (
            predictors.predict_probs(
                [[predictors.load_predictor(Path(f"folds/fold{g}/best_f1.pt"), *DEVICE)]], *WORK, files
            )[0]
            for g in (f, (f + 1) % 3)
        )
        assert len(rows) > 15 and np.allclose(labels.probs, own[rows], atol=1e-6)
        assert not np.allclose(labels.probs, different[rows], atol=1e-3)
        chosen = pseudo.choose(own, own.astype(float).mean(0), 0.5)
        assert rows == chosen.tolist() and (labels.targets == labels.probs.argmax(1)).all()


def test_a_network_that_is_not_calibrated_labels_images_of_every_class(here, monkeypatch):
    """The maximum likelihood shares (EM) of an underconfident network are 0 for some classes: none would be chosen."""
    weak = np.repeat([[0.5, 0.3, 0.2], [0.35, 0.45, 0.2], [0.35, 0.3, 0.36]], 20, axis=0)
    assert shares.estimate_shares(weak, [0.5, 0.35, 0.15]).min() < 0.001
    monkeypatch.setattr(predictors, "predict_probs", lambda *arguments: np.broadcast_to(weak, (3, 60, 3)))
    out = trained("--folds", 3, *USED, "--out", "out")
    assert json.loads((out / "fold1" / "config.json").read_text())["pseudo_counts"] == [12, 10, 8]


DEVICE = torch.device("cpu"), ["nets.py:make"]
WORK = "none", Ranks(), 8, 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--folds", 3, "--seed", 1], "folds/fold0 has different validation images than this run of fold 0"),
        (["--folds", 2], "folds/fold0 has different validation images than this run of fold 0"),
        (["--folds", 4], "folds/fold3 has no best_f1.pt (it has fold0, fold1, fold2)"),
        ([], "folds has folds, but this run has none"),
        (["--pseudo", "single", "--folds", 3], "single has different validation images than this run of fold 0"),
        (["--pseudo", "single", "--seed", 1], "single has different validation images than this run, so"),
        (["--pseudo", "nothing"], "nothing is not a run folder"),
        (["--folds", 3, "--only", "0,1"], "different classes than --data"),
        (["--folds", 3, "--pseudo-data", "d"], "--pseudo-data: 42 of its images are in --data too"),
        (["--folds", 3, "--pseudo-data", "gone"], "--pseudo-data: gone is not a folder"),
        (["--folds", 3, "--pseudo-share", "0.001"], "no image of t is chosen"),
    ],
)
def test_a_run_with_a_different_split_or_other_bad_input_is_one_line(here, capsys, words, message):
    assert message in refused(capsys, *USED, *words)


def test_the_same_split_is_known_from_a_different_working_folder(here, monkeypatch):
    trained("--folds", 3, "--out", "again")
    (here / "inner").mkdir()
    shutil.copy("nets.py", "inner")
    monkeypatch.chdir(here / "inner")
    words = ["--data", "../d", *FLAGS, "--epochs", "1", "--folds", "3", "--pseudo", "../again", "--pseudo-data", "../t"]
    train.main([*words, "--out", "out"])
    assert Path("out/fold2/pseudo.npz").is_file()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--pseudo", "r"], "--pseudo r needs --pseudo-data"),
        (["--pseudo-data", "t"], "--pseudo-data t has no effect without --pseudo"),
        (["--pseudo-labels", "hard"], "--pseudo-labels hard has no effect without --pseudo"),
        (["--pseudo-share", "0.3"], "--pseudo-share 0.3 has no effect without --pseudo"),
        (
            ["--pseudo", "r", "--pseudo-data", "t", "--pseudo-share", "1.5"],
            "--pseudo-share must be above 0 and at most 1",
        ),
    ],
)
def test_options_without_effect_are_refused(words, message, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.parse_options(words)
    assert stop.value.code == 2 and message in capsys.readouterr().err


def test_a_network_in_a_file_of_a_stranger_is_not_executed(here, capsys):
    file = Path("folds/fold1/best_f1.pt")
    Path("evil.py").write_text("open('executed', 'w')\nmake = None\n")
    checkpoint.save(file, checkpoint.load(file) | {"model_name": "evil.py:make"})
    assert "its network is a function in a file" in refused(capsys, "--folds", 3, *USED)
    assert not Path("executed").exists()


def test_a_run_whose_network_is_a_different_function_is_refused_with_what_is_valid(here, capsys):
    shutil.copy("nets.py", "mine.py")
    error = refused(capsys, "--folds", 3, *USED, "--model", "mine.py:make")
    assert "--pseudo: the network of folds/fold0 is nets.py:make, a function in a file, which is only executed" in error
    assert (
        "if --model has the same name: choose --model nets.py:make, or a RUN whose network is not a function" in error
    )


# --- what they do ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("words", "run"), [(["--folds", 3], "folds"), ([], "single")])
def test_they_are_training_images_alone_and_are_counted(here, capsys, words, run):
    out = trained(*words, "--pseudo", run, "--pseudo-data", "t", "--pseudo-share", 0.4, "--out", "out")
    text = capsys.readouterr().out
    before, after = runs.read(run), runs.read(out)
    assert set(after.predictions.paths) == set(before.predictions.paths) and len(after.predictions.paths) <= 42
    for old, new in zip(before.folds or [before], after.folds or [after], strict=True):
        labels = runs.read_predictions(new.folder / "pseudo.npz")
        counts = np.bincount(labels.targets, minlength=3)
        assert not set(labels.paths) & set(new.predictions.paths) and 15 <= len(labels.paths) <= 25
        assert new.config["pseudo_counts"] == counts.tolist() and old.config["pseudo_counts"] == [0, 0, 0]
        assert new.config["train_counts"] == (np.array(old.config["train_counts"]) + counts).tolist()
        assert new.config["drawn_counts"] == new.config["train_counts"]  # the class prior of the loss
        assert new.config["val_counts"] == old.config["val_counts"]
        per_class = ", ".join(f"class{c} {n}" for c, n in enumerate(counts))
        note = f"training images with soft pseudo-labels of {run}: {len(labels.paths)} ({per_class})"
        assert f"note     {note}\n" in text and note in (out / "report.html").read_text("utf-8")
        assert f"training images with pseudo-labels: {len(labels.paths)}" in text
    assert ": 42 images, 3 classes" in text and ">pseudo-labels</th>" in (out / "report.html").read_text("utf-8")
    assert ">pseudo-labels</th>" not in report.write([run]).read_text("utf-8")


def test_near_duplicates_of_validation_images_are_left_out_of_their_fold_and_kept_in_the_others(here, capsys):
    for file in Path("d").rglob("*.png"):
        brighter = np.asarray(Image.open(file)).astype(int) + 3
        Image.fromarray(brighter.clip(0, 255).astype(np.uint8)).save(f"t/copy-{file.parent.name}-{file.name}")
    out = trained("--folds", 3, *USED, "--pseudo-share", 1, "--out", "out")
    assert "images left out as near-duplicates of validation images" in capsys.readouterr().out
    kept = set()
    for fold in runs.read(out).folds:
        copies = {f"t/copy-{Path(path).parent.name}-{Path(path).name}" for path in fold.predictions.paths}
        own = set(runs.read_predictions(fold.folder / "pseudo.npz").paths)
        assert copies and not own & copies
        kept |= {path for path in own if "copy-" in path}
    assert len(kept) > 20


def same_results(first, second):
    for fold in ("fold0", "fold2"):
        a, b = (checkpoint.load(run / fold / "last.pt") for run in (first, second))
        assert all(torch.equal(a["model"][key], b["model"][key]) for key in a["model"])
        a, b = (runs.read_predictions(run / fold / "val_probs.npz").probs for run in (first, second))
        assert np.array_equal(a, b)


@pytest.mark.parametrize("labels", ["soft", "hard"])
def test_a_resumed_run_has_the_labels_that_it_began_with(here, labels, capsys):
    words = ["--folds", 3, *USED, "--pseudo-labels", labels, "--mixup", 0.2, "--scheduler", "none"]
    whole = trained(*words, "--epochs", 2, "--out", "whole")
    cut = trained(*words, "--out", "cut")
    shutil.rmtree("folds")  # it is not needed any more
    more = ["--model", "nets.py:make", "--cache", "c", "--epochs", "2"]
    train.main(["--resume", "cut", *more])
    same_results(whole, cut)
    found = dict(np.load("cut/fold1/pseudo.npz"))
    found["probs"][0] = [0.2, 0.3, 0.5]
    found["targets"][0] += 0 if labels == "soft" else 1
    found["targets"] %= 3
    np.savez("cut/fold1/pseudo.npz", **found)
    with pytest.raises(SystemExit):
        train.main(["--resume", "cut", *more])
    assert "cannot resume cut" in capsys.readouterr().err


def test_soft_and_hard_labels_train_differently_and_both_differ_from_none(here):
    fixed = ["--folds", 3, "--fold", 0]
    hard, soft = (trained(*fixed, *USED, "--pseudo-labels", kind, "--out", kind) for kind in ("hard", "soft"))
    none = trained(*fixed, "--out", "none")
    weights = [checkpoint.load(run / "last.pt")["model"]["1.weight"] for run in (hard, soft, none)]
    assert not any(torch.equal(weights[i], weights[j]) for i, j in ((0, 1), (0, 2), (1, 2)))


@pytest.mark.parametrize("loss", ["focal", "logit_adjustment", "ce+f1", "label_smoothing", "ldam"])
def test_every_loss_and_the_samplers_take_soft_labels(here, loss):
    words = ["--folds", 3, "--fold", 1, "--loss", loss, "--sampler", "oversample", "--accum", 2, "--cutmix", 1]
    assert (
        trained(*words, *USED, *(() if loss == "ldam" else ("--head", "linear")), "--out", "out") / "log.csv"
    ).is_file()


def test_a_preview_shows_them_and_writes_no_labels(here):
    words = ["--folds", "3", *USED, "--preview", "sheet.png", "--batch-size", "60"]
    assert train.main(["--data", "d", *FLAGS, *words]) == {"preview": "sheet.png"}
    assert Path("sheet.png").is_file() and not list(Path().glob("runs/**/pseudo.npz"))


# --- the numbers -----------------------------------------------------------------------------------------------------


def test_the_most_confident_images_of_each_class_are_chosen_by_the_class_shares():
    """10 images, share 0.6: 6 x (1/2, 1/3, 1/6) = 3, 2 and 1; class 1 has one image only."""
    probs = np.full((10, 3), 0.1)
    probs[[0, 1, 2, 3, 4], 0] = [0.5, 0.9, 0.7, 0.8, 0.6]
    probs[5, 1] = 0.9
    probs[[6, 7, 8, 9], 2] = [0.5, 0.6, 0.7, 0.8]
    assert pseudo.choose(probs, np.array([1 / 2, 1 / 3, 1 / 6]), 0.6).tolist() == [1, 2, 3, 5, 9]
    assert pseudo.choose(probs, np.array([0.0, 0.0, 1.0]), 1.0).tolist() == [6, 7, 8, 9]


def test_rows_of_arrays_are_their_concatenation():
    rng = np.random.default_rng(0)
    first, second = (rng.integers(0, 256, (n, 8, 8, 3), dtype=np.uint8) for n in (5, 4))
    order = np.array([0, 1, 2, 3, 4, 8, 5, 8])
    rows, expected = pixels.Rows([first, second], order), np.concatenate([first, second])[order]
    assert len(rows) == 8 and rows.shape == expected.shape and rows.nbytes == expected.nbytes
    for index in (slice(2, 7), np.array([7, 0, 5]), slice(8, 9), 6):
        assert np.array_equal(rows[index], expected[index])
    images = pixels.ImageArray(rows, np.arange(8), list("abcdefgh"))
    assert np.array_equal(images.gather(torch.tensor([5, 7])).permute(0, 2, 3, 1).numpy(), expected[[5, 7]])


def test_batches_have_the_soft_targets_of_the_last_images_and_one_hot_targets_of_the_others():
    images = pixels.ImageArray(np.zeros((5, 8, 8, 3), np.uint8), np.array([2, 0, 1, 1, 0]), list("abcde"))
    soft = torch.tensor([[0.1, 0.7, 0.2], [0.5, 0.2, 0.3]])
    batches = pixels.Batches(images, np.array([4, 0, 3]), 3, soft=soft)
    ((_, targets),) = batches
    assert torch.equal(targets, torch.tensor([[0.5, 0.2, 0.3], [0.0, 0.0, 1.0], [0.1, 0.7, 0.2]]))
    ((_, targets),) = pixels.Batches(images, np.array([4, 0, 3]), 3)
    assert targets.tolist() == [0, 2, 1]


def test_mixing_of_one_hot_targets_is_that_of_class_numbers():
    mixing, index, targets = augment.Augment("none", mixup=0.4, num_classes=3), torch.arange(6), torch.arange(6) % 3
    expected = mixing.mix_targets(targets, index, 1, (8, 8))
    one_hot = torch.nn.functional.one_hot(targets, 3).float()
    assert torch.equal(mixing.mix_targets(one_hot, index, 1, (8, 8)), expected)
    assert torch.equal(augment.Augment("none").mix_targets(one_hot, index, 1, (8, 8)), one_hot)
    soft = one_hot * 0.7 + 0.1
    assert torch.allclose(mixing.mix_targets(soft, index, 1, (8, 8)), expected * 0.7 + 0.1)

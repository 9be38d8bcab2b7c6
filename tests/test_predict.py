"""predict.py: rows of the template, every image once, checkpoints that fit, changes measured first, whole files."""

import ast
import csv
import io
import math
import os
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import checkpoint
import improvements
import predict
import predictors
import runs
import submission
import train


def write_csv(path, rows):
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)


def read_csv(path):
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def picture(c, rng, size=(20, 20)):
    values = rng.integers(0, 130, (*size, 3))
    values[:, :, c] += 60
    return Image.fromarray(values.astype(np.uint8))


@pytest.fixture(scope="module")
def competition(tmp_path_factory):
    """A document-like competition: train.csv, meta.csv, train/, test/, sample_submission.csv; three trained runs."""
    root = tmp_path_factory.mktemp("competition")
    rng = np.random.default_rng(0)
    for part, n in (("train", 90), ("test", 41)):
        (root / "comp" / part).mkdir(parents=True)
        rows = [{"ID": f"{part}{i:03d}.jpg", "target": i % 3} for i in range(n)]
        rng.shuffle(rows)
        for row in rows:
            picture(row["target"], rng).save(root / "comp" / part / row["ID"])
        if part == "train":
            write_csv(root / "comp" / "train.csv", rows)
        else:
            write_csv(root / "answers.csv", rows)
            write_csv(root / "comp" / "sample_submission.csv", [row | {"target": 0} for row in rows])
    write_csv(root / "comp" / "meta.csv", [{"target": c, "class_name": "red green blue".split()[c]} for c in range(3)])
    before = os.getcwd()
    os.chdir(root)
    for words in ("--folds 3 --out five", "--size 24 --model resnet20 --out one", "--only 0,1 --out pair"):
        base = "--data comp --size 16 --model resnet8 --epochs 3 --lr 0.01 --batch-size 8 --cache cache"
        train.main([*base.split(), *words.split()])
    os.chdir(before)
    return root


@pytest.fixture
def here(competition, monkeypatch, tmp_path):
    monkeypatch.chdir(competition)
    return tmp_path


def run(*words):
    return predict.main([str(word) for word in words])


PARSER = type(None)  # argparse exits without another exception behind it


def refused(capsys, *words, by=runs.BadInput):
    """The message of a refused command; `by` is the exception behind it."""
    with pytest.raises(SystemExit) as stop:
        run(*words)
    assert stop.value.code == 2 and isinstance(stop.value.__cause__, by)
    message = capsys.readouterr().err.strip()
    assert by is PARSER or message.splitlines()[-1].startswith(("predict.py: error: ", "  "))
    return message


def test_five_folds_to_a_submission_with_the_templates_rows(here, capsys):
    run("five", "--data", "comp", "--out", here / "s.csv", "--answers", "answers.csv", "--probs", here / "p.npz")
    printed, rows = capsys.readouterr().out, read_csv(here / "s.csv")
    assert [row["ID"] for row in rows] == [row["ID"] for row in read_csv("comp/sample_submission.csv")]
    assert list(rows[0]) == ["ID", "target"] and {row["target"] for row in rows} <= {"0", "1", "2"}
    truth = {row["ID"]: row["target"] for row in read_csv("answers.csv")}
    accuracy = np.mean([truth[row["ID"]] == row["target"] for row in rows])
    assert accuracy > 0.8 and f"accuracy {accuracy:.4f}" in printed and "41 of 41 images have a label in" in printed
    probs = np.load(here / "p.npz")
    assert probs["probs"].shape == (41, 3) and np.allclose(probs["probs"].sum(1), 1, atol=1e-5)
    assert [os.path.basename(path) for path in probs["paths"]] == [row["ID"] for row in rows]
    assert probs["classes"].tolist() == ["red", "green", "blue"]


def probs_of(here, *words):
    run(*words, "--out", here / "s.csv", "--probs", here / "p.npz")
    found = np.load(here / "p.npz")
    return {os.path.basename(path): p for path, p in zip(found["paths"], found["probs"], strict=True)}


def test_neither_batch_size_nor_order_changes_a_prediction(here):
    first = probs_of(here, "five", "one", "--data", "comp")
    rows = read_csv("comp/sample_submission.csv")
    write_csv(here / "shuffled.csv", rows[::-1])
    again = probs_of(here, "five", "one", "--data", "comp", "--template", here / "shuffled.csv", "--batch-size", 7)
    assert list(again) == list(first)[::-1]
    for name, p in first.items():
        assert np.abs(p - again[name]).max() < 1e-5


def test_several_runs_are_the_mean_of_their_means_whatever_their_size(here):
    five, one = probs_of(here, "five", "--data", "comp"), probs_of(here, "one", "--data", "comp")
    folds = [probs_of(here, f"five/fold{f}", "--data", "comp") for f in range(3)]
    both = probs_of(here, "five", "one/best_f1.pt", "--data", "comp")
    for name in five:
        assert np.allclose(five[name], np.mean([fold[name] for fold in folds], 0), atol=1e-6)
        assert np.allclose(both[name], (five[name] + one[name]) / 2, atol=1e-6)
    assert any(np.abs(five[name] - one[name]).max() > 1e-5 for name in five)


def test_a_runs_own_validation_images_get_the_probabilities_it_wrote(here):
    saved = np.load("one/val_probs.npz")
    (here / "val").mkdir()
    for path in saved["paths"]:
        shutil.copy(path, here / "val")
    again = probs_of(here, "one", "--data", here / "val")
    for path, p in zip(saved["paths"], saved["probs"], strict=True):
        assert np.abs(again[os.path.basename(path)] - p).max() < 1e-4
    rows = read_csv("one/val_predictions.csv")
    assert [row["image"] for row in rows] == saved["paths"].tolist()
    assert float(rows[0]["confidence"]) == pytest.approx(saved["probs"][0].max(), abs=1e-4)


def test_text_labels_are_written_as_text_and_the_header_keeps_its_case(here):
    rng = np.random.default_rng(1)
    (here / "art").mkdir()
    rows = [{"id": f"T{i}", "img_path": f"./{i}.jpg", "artist": "Klee Miro".split()[i % 2]} for i in range(20)]
    for i in range(20):
        picture(i % 2, rng).save(here / "art" / f"{i}.jpg")
    write_csv(here / "train.csv", rows)
    train.main(
        f"--csv {here}/train.csv --data {here}/art --size 16 --model resnet8 --epochs 1 --out {here}/run "
        f"--cache {here}/cache".split()
    )
    (here / "new").mkdir()
    for i in range(5):
        shutil.copy(here / "art" / f"{i}.jpg", here / "new")
    write_csv(here / "info.csv", [{"Extra": "x", "Img_Path": f"{i}.jpg", "Artist": ""} for i in range(5)])
    run(here / "run", "--data", here / "new", "--template", here / "info.csv", "--out", here / "s.csv")
    submission = read_csv(here / "s.csv")
    assert list(submission[0]) == ["Extra", "Img_Path", "Artist"] and submission[0]["Extra"] == "x"
    assert {row["Artist"] for row in submission} <= {"Klee", "Miro"}


def test_the_mask_layouts_info_csv_is_found_and_kept(here):
    (here / "data" / "eval" / "images").mkdir(parents=True)
    names = [f"{i:040x}.jpg" for i in (7, 3, 5)]
    for i, name in enumerate(names):
        picture(i, np.random.default_rng(i)).save(here / "data" / "eval" / "images" / name)
        (here / "data" / "eval" / "images" / f"._{name}").write_bytes(b"mac")
    write_csv(here / "data" / "eval" / "info.csv", [{"ImageID": name, "ans": ""} for name in names])
    for folder in ("data", "data/eval"):
        run("one", "--data", here / folder, "--out", here / "s.csv")
        rows = read_csv(here / "s.csv")
        assert [row["ImageID"] for row in rows] == names and [row["ans"] for row in rows] == ["0", "1", "2"]


def test_a_folder_without_a_template_gives_a_row_an_image(here):
    run("one", "--data", "comp/test", "--template", "comp/sample_submission.csv", "--out", here / "a.csv")
    shutil.copytree("comp/test", here / "plain")
    run("one", "--data", here / "plain", "--out", here / "b.csv")
    a, b = ({row["ID"]: row["target"] for row in read_csv(here / name)} for name in ("a.csv", "b.csv"))
    assert a == b and list(b) == sorted(b)


def test_a_test_csv_of_images_alone_gets_a_row_number_and_a_target(here):
    (here / "sketch").mkdir()
    for i in range(3):
        picture(i, np.random.default_rng(i)).save(here / "sketch" / f"{i}.jpg")
    write_csv(here / "test.csv", [{"image_path": f"{i}.jpg"} for i in (2, 0, 1)])
    run("one", "--data", here / "sketch", "--out", here / "s.csv")
    rows = read_csv(here / "s.csv")
    assert list(rows[0]) == ["ID", "image_path", "target"]
    assert [(row["ID"], row["image_path"]) for row in rows] == [("0", "2.jpg"), ("1", "0.jpg"), ("2", "1.jpg")]


def test_views_and_prior_are_used_only_if_they_help_on_validation(here, capsys):
    plain = probs_of(here, "five", "--data", "comp")
    capsys.readouterr()
    for words in (("--tta", "flip"), ("--tta", "d4"), ("--tta", "crops"), ("--prior-adjust", 1)):
        changed = probs_of(here, "five", "--data", "comp", *words)
        printed = capsys.readouterr().out
        old, new, verdict = re.search(r"on 90 validation images (\S+) -> (\S+), (.*)", printed).groups()
        is_used = any(np.abs(plain[name] - changed[name]).max() > 1e-6 for name in plain)
        assert is_used == (float(new) > float(old)) == (verdict == "used")
        forced = probs_of(here, "five", "--data", "comp", *words, "--force")
        assert words[0] == "--prior-adjust" or any(np.abs(plain[n] - forced[n]).max() > 1e-6 for n in plain)
        capsys.readouterr()


def test_prior_adjustment_is_the_papers_formula():
    p = np.array([[0.7, 0.2, 0.1]], np.float32)
    # p / prior, prior 0.8, 0.15, 0.05: 0.875, 1.333, 2; their sum 4.208
    assert np.allclose(improvements.adjust_prior(p, [80, 15, 5], 1.0), [[0.2079, 0.3168, 0.4752]], atol=1e-4)
    assert np.allclose(improvements.adjust_prior(p, [80, 15, 5], 0.0), p, atol=1e-6)


@pytest.mark.parametrize(
    "make, words, message",
    [
        (None, ["nowhere", "--data", "comp"], "RUN_OR_CHECKPOINT: nowhere is not a checkpoint file, and not a run"),
        (
            None,
            ["one", "pair", "--data", "comp"],
            "pair/best_f1.pt and one/best_f1.pt have different classes: 2 classes",
        ),
        (None, ["one", "--data", "nowhere"], "--data: nowhere is not a folder"),
        (None, ["one", "--data", "comp", "--template", "no.csv"], "--template: no.csv is not a file"),
        ("empty", ["one", "--data", "HERE"], "--data: HERE has no images (.bmp, "),
        (
            "broken",
            ["one", "--data", "HERE"],
            "1 of 3 images in one batch cannot be decoded:\n  HERE/b.jpg: the file is",
        ),
        ("absent", ["one", "--data", "HERE"], "rows without an image file in HERE/images: 1, such as d.jpg"),
        ("twice", ["one", "--data", "HERE"], "images that are listed twice: 1, such as HERE/images/a.jpg"),
        ("extra", ["one", "--data", "HERE"], "images in the same folders without a row: 1, such as HERE/images/c.jpg"),
        (None, ["one/best_f1.pt", "--data", "comp", "--answers", "comp/meta.csv"], "--answers: comp/meta.csv has the"),
        # found by other modules, each with its own exception
        (None, ["answers.csv", "--data", "comp"], "RUN_OR_CHECKPOINT: answers.csv is not a readable checkpoint"),
        ("columns", ["one", "--data", "HERE"], "has no image column"),
    ],
)
def test_bad_input_names_itself_and_leaves_no_submission(here, capsys, make, words, message):
    folder = here / "in"
    if make:
        images = folder / "images" if make in ("absent", "twice", "extra", "columns") else folder
        images.mkdir(parents=True)
        for name in "abc" if make != "empty" else "":
            picture(0, np.random.default_rng(0)).save(images / f"{name}.jpg")
        rows = [{"ID": f"{name}.jpg", "target": 0} for name in "abc"]
        if make == "broken":
            (folder / "b.jpg").write_bytes(b"")
        elif make == "columns":
            write_csv(folder / "sample_submission.csv", [{"what": 1, "target": 0}])
        elif make == "absent":
            write_csv(folder / "sample_submission.csv", [*rows, {"ID": "d.jpg", "target": 0}])
        elif make == "twice":
            write_csv(folder / "sample_submission.csv", [*rows, rows[0]])
        elif make == "extra":
            write_csv(folder / "sample_submission.csv", rows[:2])
    by = ValueError if make == "columns" or "answers.csv" in words else runs.BadInput
    words = [word.replace("HERE", str(folder)) for word in words]
    error = refused(capsys, *words, "--out", here / "s.csv", by=by)
    assert message.replace("HERE", str(folder)) in error
    assert "--answers" in words or not (here / "s.csv").exists()


@pytest.mark.parametrize("device", ["meta", "gpu", "mps", "tpu", "nonsense", "cuda:99"])
def test_a_device_that_cannot_be_used_is_one_line_with_the_valid_ones(here, capsys, device):
    message = refused(capsys, "one", "--data", "comp", "--device", device, "--out", here / "s.csv")
    assert re.fullmatch(f"predict.py: error: --device: '{device}' .*[:;] choose cpu, cuda or cuda:NUMBER", message)


def test_a_checkpoint_that_does_not_fit_its_network_is_refused(here, capsys):
    saved = checkpoint.load("one/best_f1.pt")
    checkpoint.save(here / "x.pt", saved | {"model_name": "resnet8"})
    assert "x.pt does not fit resnet8" in refused(capsys, here / "x.pt", "--data", "comp", "--out", here / "s.csv")
    checkpoint.save(here / "y.pt", {"model": {"w": torch.zeros(1)}})
    assert "y.pt is not a checkpoint for prediction: it has no classes" in refused(
        capsys, here / "y.pt", "--data", "comp", "--out", here / "s.csv"
    )


def test_the_worst_files_of_the_confused_pairs_are_named(here, capsys):
    rows = read_csv("answers.csv")
    wrong = [row | {"target": (int(row["target"]) + (i == 5)) % 3} for i, row in enumerate(rows)]
    write_csv(here / "answers.csv", wrong)
    run("five", "--data", "comp", "--out", here / "s.csv", "--answers", here / "answers.csv")
    printed = capsys.readouterr().out
    assert rows[5]["ID"] in printed.split("most confused")[1]


# --- weights, biases, two stages -------------------------------------------------------------------------------------


def soft(N=600, C=4, noise=1.0, seed=0, shift=0.0):
    """Probabilities that depend on their targets; the classes have very different sizes."""
    rng = np.random.default_rng(seed)
    targets = np.sort(np.random.default_rng(99).choice(C, N, p=np.array([0.7, 0.2, 0.07, 0.03])))
    logits = 1.5 * np.eye(C)[targets] + noise * rng.standard_normal((N, C)) + shift * np.arange(C)[::-1]
    p = np.exp(logits)
    return (p / p.sum(1, keepdims=True)).astype(np.float32), targets


def test_blend_weights_are_a_maximum_of_the_likelihood():
    good, targets = soft(noise=0.7, seed=1)
    also, _ = soft(noise=0.7, seed=2)
    useless = np.full_like(good, 0.25)
    probs = np.stack([good, useless, also])
    w = improvements.blend_weights(probs, targets)
    assert w.sum() == pytest.approx(1) and (w >= 0).all() and w[1] < 0.2 < min(w[0], w[2])

    def likelihood(weights):
        return np.log(np.tensordot(weights, probs, 1)[np.arange(len(targets)), targets]).mean()

    rng = np.random.default_rng(0)
    assert likelihood(w) > max(likelihood(rng.dirichlet(np.ones(3))) for _ in range(300)) - 1e-6
    assert improvements.blend_weights(np.stack([good, good]), targets) == pytest.approx([0.5, 0.5])


def test_a_bias_that_was_taken_off_is_found_again_and_nothing_is_made_worse(capsys):
    probs, targets = soft(N=3000, noise=0.8, shift=1.0)  # predicts the large classes far too often
    bias, _ = improvements.tune_bias(improvements.CrossFitted.of(probs, targets), force=False)
    assert (np.diff(bias) > 0).all()  # the larger, the less often the class was predicted
    after = improvements.add_bias(probs, bias)
    assert improvements.macro_f1(after, targets) > improvements.macro_f1(probs, targets) + 0.05
    assert "used" in capsys.readouterr().out


def test_biases_are_the_best_of_each_classs_candidates_in_turn():
    probs, targets = soft(N=500, noise=1.2, shift=0.7, seed=5)
    log_p, bias, steps = np.log(probs), np.zeros(4), sorted(np.linspace(-2, 2, 41), key=abs)
    for _ in range(3):
        for c in range(4):  # the same by hand, with every candidate's macro F1 from its predictions
            tried = [improvements.macro_f1(log_p + np.where(np.arange(4) == c, b, bias), targets) for b in steps]
            if max(tried) > improvements.macro_f1(log_p + bias, targets) + 1e-9:
                bias[c] = steps[int(np.argmax(tried))]
    assert bias.any() and np.array_equal(improvements.fit_bias(log_p, targets), bias)
    assert not np.array_equal(improvements.fit_bias(log_p, targets, sweeps=1), bias)


@pytest.mark.parametrize("seed", range(8))
def test_the_estimate_that_is_used_is_never_below_that_without(capsys, seed):
    rng = np.random.default_rng(seed)
    probs, targets = rng.dirichlet(np.ones(4), 200).astype(np.float32), rng.integers(0, 4, 200)  # nothing to gain
    bias, _ = improvements.tune_bias(improvements.CrossFitted.of(probs, targets, seed), force=False)
    old, new, verdict = re.search(r"images (\S+) -> (\S+), (.*)", capsys.readouterr().out).groups()
    assert (verdict == "used") == (float(new) > float(old)) or float(new) == float(old)
    assert bias.any() == (verdict == "used")
    used = float(new) if verdict == "used" else float(old)
    assert used >= float(old)


def test_a_fit_judged_on_its_own_images_promises_too_much():
    """Why the estimate is cross-fitted: on pure noise, the images of the fit show a gain that is not real."""
    own, other = [], []
    for seed in range(10):
        rng = np.random.default_rng(seed)
        probs, targets = rng.dirichlet(np.ones(4), 200), rng.integers(0, 4, 200)
        log_p = np.log(probs)
        bias = improvements.fit_bias(log_p[:100], targets[:100])
        for found, half in ((own, slice(0, 100)), (other, slice(100, 200))):
            before, after = (improvements.macro_f1(scores[half], targets[half]) for scores in (log_p, log_p + bias))
            found.append(after - before)
    assert np.mean(own) > 0.03 > np.mean(other) + 0.01


def test_blend_and_bias_are_tried_on_validation_and_used_only_if_they_help(here, capsys):
    probs_of(here, "one", "five/fold0", "--data", "comp", "--force")
    capsys.readouterr()
    for flag, words in {"--blend": [], "--prior-adjust": [1], "--tune-bias": []}.items():
        message = refused(capsys, "one", "five", "--data", "comp", flag, *words, "--out", here / "s.csv")
        assert f"error: {flag}: five and one have different validation images" in message
    for words in (("--tune-bias",), ("--tune-bias", "--prior-adjust", 0.5)):
        probs_of(here, "five", "--data", "comp", *words)
        printed = capsys.readouterr().out
        old, new, verdict = re.search(r"--tune-bias: macro F1 on 90 .* images (\S+) -> (\S+), (.*)", printed).groups()
        assert (float(new) > float(old)) == (verdict == "used")
    blended = probs_of(here, "five", "five", "--data", "comp", "--blend", "--force")
    printed = capsys.readouterr().out
    assert printed.count("--blend: weight 0.500") == 2
    plain = probs_of(here, "five", "--data", "comp")
    assert all(np.allclose(blended[name], plain[name], atol=1e-6) for name in plain)


def test_a_child_decides_inside_its_group_and_nowhere_else():
    parent = {"classes": ["red+green", "blue"], "labels": ["0+1", "2"]}
    child = {"classes": ["red", "green"], "labels": ["0", "1"]}
    child |= {"all_classes": ["red", "green", "blue"], "all_labels": ["0", "1", "2"]}
    probs, shares = np.array([[0.6, 0.4], [0.1, 0.9]]), np.array([[0.2, 0.8], [0.5, 0.5]])
    for when in ("0,1", "green, red"):
        refined, saved = improvements.refine(probs, parent, shares, child, when)
        assert np.allclose(refined, [[0.4, 0.12, 0.48], [0.9, 0.05, 0.05]])
        assert saved["labels"] == ["2", "0", "1"] and saved["classes"] == ["blue", "red", "green"]
    single = {"classes": ["red", "green", "blue"], "labels": ["0", "1", "2"]}
    refined, saved = improvements.refine(np.array([[0.5, 0.1, 0.4]]), single, shares[:1], child, "0,1")
    assert np.allclose(refined, [[0.4, 0.12, 0.48]]) and saved["labels"] == ["2", "0", "1"]
    with pytest.raises(runs.BadInput, match="'0,2' are not the classes of the --refine run, which are 0, 1"):
        improvements.refine(probs, parent, shares, child, "0,2")
    with pytest.raises(runs.BadInput, match="neither a merged class '0[+]1' nor all of 0,1; it has:\n  7\n  8"):
        improvements.refine(probs, {"classes": ["a", "b"], "labels": ["7", "8"]}, shares, child, "0,1")


def test_two_stages_end_to_end(here, capsys):
    train.main(
        "--data comp --size 16 --model resnet8 --epochs 2 --lr 0.01 --batch-size 8 --cache cache --merge 0,1 "
        f"--out {here}/parent".split()
    )
    capsys.readouterr()
    run(
        here / "parent",
        "--data",
        "comp",
        "--refine",
        "pair",
        "--when",
        "0,1",
        "--out",
        here / "s.csv",
        "--answers",
        "answers.csv",
    )
    assert float(re.search(r"accuracy (\S+)", capsys.readouterr().out)[1]) > 0.7
    assert {row["target"] for row in read_csv(here / "s.csv")} == {"0", "1", "2"}
    words = [here / "parent", "--data", "comp", "--refine", "pair", "--out", here / "t.csv"]
    message = refused(capsys, *words, by=PARSER)
    assert "--refine CHILD and --when CLASSES must be given together" in message


# --- what must not be judged or written by mistake -------------------------------------------------------------------


def test_another_checkpoint_is_not_judged_by_what_best_f1_said(here, capsys):
    for words in (["--tune-bias"], ["--tta", "flip"], ["--prior-adjust", 1]):
        message = refused(capsys, "one/best_loss.pt", "--data", "comp", "--out", here / "s.csv", *words)
        assert f"{words[0]}: one/best_loss.pt: validation predictions are stored only for best_f1.pt" in message
    run("one/best_loss.pt", "--data", "comp", "--out", here / "s.csv")


def test_answers_are_found_by_the_image_column_wherever_it_stands(here, capsys):
    truth = read_csv("answers.csv")
    write_csv(here / "template.csv", [{"usage": "Public"} | row | {"target": 0} for row in truth])
    write_csv(here / "answers.csv", [{"usage": "Public"} | row for row in truth])
    words = ["five", "--data", "comp", "--template", here / "template.csv", "--out", here / "s.csv", "--answers"]
    run(*words, here / "answers.csv")
    first = re.search(r"\nmacro F1 \S+", capsys.readouterr().out).group(0)
    run("five", "--data", "comp", "--out", here / "s.csv", "--answers", "answers.csv")
    assert first == re.search(r"\nmacro F1 \S+", capsys.readouterr().out).group(0)
    write_csv(here / "no_key.csv", [{"usage": "Public", "target": row["target"]} for row in truth])
    assert "column usage has the same value in several rows" in refused(capsys, *words, here / "no_key.csv")


def test_the_columns_of_a_test_csv_are_kept_and_the_label_is_added(here):
    rows = [{"image": row["ID"], "width": "640", "height": "480"} for row in read_csv("answers.csv")]
    write_csv(here / "test.csv", rows)
    run("one", "--data", "comp", "--template", here / "test.csv", "--out", here / "s.csv")
    written = read_csv(here / "s.csv")
    assert list(written[0]) == ["ID", "image", "width", "height", "target"]
    assert {row["height"] for row in written} == {"480"} and {row["target"] for row in written} <= {"0", "1", "2"}


@pytest.mark.parametrize("flag", ["--out", "--probs"])
def test_a_folder_that_is_not_there_is_refused_before_anything_is_predicted(here, capsys, flag, monkeypatch):
    monkeypatch.setattr(predictors, "load_all", lambda *arguments: pytest.fail("began"))
    message = refused(capsys, "one", "--data", "comp", flag, here / "nowhere" / "x", by=PARSER)
    assert f"{flag} {here}/nowhere/x: the folder {here}/nowhere does not exist" in message


@pytest.mark.parametrize("tau", ["nan", "inf"])
def test_a_prior_adjustment_that_is_no_number_is_refused(here, capsys, tau):
    message = refused(capsys, "one", "--data", "comp", "--prior-adjust", tau, by=PARSER)
    assert f"--prior-adjust must be a finite number, got {tau}" in message


def test_damaged_probabilities_are_named(here, capsys):
    shutil.copytree("one", here / "run")
    content = (here / "run" / "val_probs.npz").read_bytes()
    (here / "run" / "val_probs.npz").write_bytes(content[: len(content) // 2])
    message = refused(capsys, here / "run", "--data", "comp", "--tune-bias", "--out", here / "s.csv", by=ValueError)
    assert "val_probs.npz is damaged" in message and "Traceback" not in message
    (here / "run" / "val_probs.npz").write_bytes(b"not an array")
    message = refused(capsys, here / "run", "--data", "comp", "--tune-bias", "--out", here / "s.csv", by=ValueError)
    assert "val_probs.npz is damaged: it must be an .npz file" in message and "pickle" not in message
    (here / "run" / "val_probs.npz").unlink()
    message = refused(capsys, here / "run", "--data", "comp", "--tune-bias", "--out", here / "s.csv")
    assert "--tune-bias: " in message and "val_probs.npz does not exist" in message


def test_a_run_of_folds_that_is_not_finished_is_used_with_a_note(here, capsys):
    shutil.copytree("five", here / "run")
    shutil.rmtree(here / "run" / "fold2")
    (here / "run" / "folds.csv").unlink()
    run(here / "run", "--data", "comp", "--out", here / "s.csv")
    assert "is not finished: folds used: 2" in capsys.readouterr().err


def test_a_folder_beside_the_folds_is_left_alone(here, capsys):
    shutil.copytree("five", here / "run")
    shutil.copytree("one", here / "run" / "fold_old")
    folds = predictors.checkpoints_of(str(here / "run"))
    assert [file.parent.name for file in folds] == ["fold0", "fold1", "fold2"]


def test_views_that_need_square_images_are_refused_for_others(here, capsys):
    saved = checkpoint.load("one/best_f1.pt")
    checkpoint.save(here / "best_f1.pt", saved | {"size": (16, 24)})
    for views in ("rot4", "d4"):
        for words in ([], ["--force"]):
            message = refused(capsys, here, "--data", "comp", "--tta", views, "--out", here / "s.csv", *words)
            assert f"--tta: {views} needs square images, but {here}/best_f1.pt has 16 x 24" in message
    run(here, "--data", "comp", "--tta", "crops", "--force", "--out", here / "s.csv")


# --- main as a function ----------------------------------------------------------------------------------------------


def test_main_returns_its_scores_and_works_in_a_notebook(here, monkeypatch):
    monkeypatch.setattr(sys, "stdout", io.StringIO())  # like Jupyter's streams it has no reconfigure
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    assert run("five", "--data", "comp", "--out", here / "s.csv") == {"out": f"{here}/s.csv", "rows": 41}
    result = run("five", "--data", "comp", "--out", here / "s.csv", "--answers", "answers.csv")
    first = f"macro F1 {result['macro_f1']:.4f} ("
    assert list(result) == ["out", "rows", "macro_f1", "accuracy"] and first in sys.stdout.getvalue()
    assert f", accuracy {result['accuracy']:.4f}\n" in sys.stdout.getvalue()


def test_the_parsed_options_go_no_further_than_run():
    tree = ast.parse(Path(predict.__file__).read_text(encoding="utf-8"))
    functions = {node.name: list(ast.walk(node)) for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
    names = {name: {n.id for n in nodes if isinstance(n, ast.Name)} for name, nodes in functions.items()}
    users = {name for name, used in names.items() if used & {"argparse", "options"}}
    assert users == {"make_parser", "parse_options", "main", "run"}
    arguments = [
        a for n in functions["run"] if isinstance(n, ast.Call) for a in [*n.args, *(k.value for k in n.keywords)]
    ]
    assert len(arguments) > 20 and not any(isinstance(a, ast.Name) and a.id == "options" for a in arguments)


def test_the_help_fits_80_columns(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit):
        predict.parse_options(["--help"])
    printed = capsys.readouterr().out
    assert max(map(len, printed.splitlines())) < 80
    assert "post-hoc logit adjustment: subtract TAU x log(class" in printed


# --- a checkpoint from a stranger ------------------------------------------------------------------------------------


def changed(folder, *without, run="one", **entries):
    """A copy of a run's best_f1.pt with other entries."""
    saved = checkpoint.load(f"{run}/best_f1.pt")
    checkpoint.save(folder / "x.pt", {key: value for key, value in saved.items() if key not in without} | entries)
    return folder / "x.pt"


@pytest.fixture
def evil(here):
    """A file that leaves a trace when it is executed, and its FILE.py:FUNCTION."""
    code = "import pathlib, models\npathlib.Path({!r}).touch()\ndef make(C): return models.build_model('resnet20', C)\n"
    (here / "evil.py").write_text(code.format(str(here / "executed")))
    return f"{here}/evil.py:make"


def test_E1_the_file_of_a_checkpoint_is_executed_only_if_it_is_typed(here, capsys, evil):
    file, trace = changed(here, model_name=evil), here / "executed"
    rest = ["--data", "comp", "--out", here / "s.csv"]
    for words in ([file], ["one", file], ["one", "--refine", file, "--when", "0,1"]):
        for typed in ([], ["--model", f"{here}/evil.py:other"], ["--model", f"{here}/nets.py:make"]):
            message = refused(capsys, *words, *rest, *typed)
            assert "x.pt: its network is a function in a file, which is not executed unless" in message
            assert message.endswith(f"add: --model {evil}") and message.count("\n") == 0
            assert not trace.exists() and not (here / "s.csv").exists()
    run(file, *rest, "--model", f"{here}/nets.py:make", "--model", evil)
    assert trace.exists() and (here / "s.csv").exists()


def test_E1_only_a_function_can_be_typed_and_no_name_breaks_the_line(here, capsys):
    message = refused(capsys, "one", "--data", "comp", "--model", "resnet8", by=PARSER)
    assert "--model must be FILE.py:FUNCTION, got 'resnet8'" in message
    file = changed(here, model_name="x\n\x1b[2J.py:f")
    message = refused(capsys, file, "--data", "comp", "--out", here / "s.csv")
    assert "its model_name must be a name in one line" in message and "\x1b" not in message


@pytest.mark.parametrize(
    "entries, message",
    [
        ({"mean": [math.nan, 0.5, 0.5]}, "its mean must be 3 finite numbers"),
        ({"mean": [0.5, math.inf, 0.5]}, "its mean must be 3 finite numbers"),
        ({"mean": [0.5, 0.5]}, "its mean must be 3 finite numbers"),
        ({"std": [0.2, 0.0, 0.2]}, "its std must be 3 finite numbers above 0"),
        ({"std": [0.2, -0.2, 0.2]}, "its std must be 3 finite numbers above 0"),
        ({"std": None}, "is not a checkpoint for prediction: it has no std"),
        ({"size": 0}, "its size must be one side, or height and width"),
        ({"size": "big"}, "its size must be one side, or height and width"),
        ({"size": [24.0, 24.0]}, "its size must be one side, or height and width"),
        ({"fit": ["crop"]}, "its fit must be one of squash, crop, pad"),
        ({"labels": ["0", "1"]}, "its labels must be one text per class"),
        ({"all_labels": ["0", "1"]}, "its all_labels must be one text per class"),
        ({"classes": [0, 1, 2]}, "its classes must be a list of names"),
        ({"train_counts": [1, 2]}, "its train_counts must be one number of images per class"),
        ({"model": [torch.zeros(1)]}, "its model must be a dict of tensors"),
        ({"model_name": 8}, "its model_name must be a name in one line"),
    ],
)
def test_E5_a_value_that_cannot_be_used_is_refused_before_an_image_is_decoded(
    here, capsys, monkeypatch, entries, message
):
    monkeypatch.setattr(predictors, "decoded", lambda *arguments: pytest.fail("decodes"))
    error = refused(capsys, changed(here, **entries), "--data", "comp", "--out", here / "s.csv")
    assert message in error and error.count("\n") == 0 and not (here / "s.csv").exists()


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("as_child", [False, True])
def test_E5_weights_that_are_not_finite_are_refused_before_an_image_is_decoded(
    here, capsys, monkeypatch, value, as_child
):
    monkeypatch.setattr(predictors, "decoded", lambda *arguments: pytest.fail("decodes"))
    weights = checkpoint.load("one/best_f1.pt")["model"]
    weights["linear.bias"][1] = value
    file = changed(here, model=weights)
    words = ["one", "--refine", file, "--when", "0,1"] if as_child else [file]
    error = refused(capsys, *words, "--data", "comp", "--out", here / "s.csv")
    assert "x.pt cannot be used: it has NaN or infinite weights in linear.bias" in error
    weights["linear.bias"][1] = 0
    weights["bn1.running_mean"][0] = math.nan
    changed(here, model=weights)
    assert "weights in bn1.running_mean" in refused(capsys, *words, "--data", "comp", "--out", here / "s.csv")


# --- classes that a leaderboard does not know ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def parent(competition):
    """A run with red and green as one class, in the competition's folder."""
    before = os.getcwd()
    os.chdir(competition)
    words = "--data comp --size 16 --model resnet8 --epochs 2 --lr 0.01 --batch-size 8 --cache cache --merge 0,1"
    train.main([*words.split(), "--out", "parent"])
    os.chdir(before)
    return "parent"


def test_C1_a_merged_or_a_missing_class_is_refused_before_an_image_is_decoded(here, capsys, monkeypatch, parent):
    with monkeypatch.context() as patch:
        patch.setattr(predictors, "decoded", lambda *arguments: pytest.fail("decodes"))
        message = refused(capsys, parent, "--data", "comp", "--out", here / "s.csv")
        assert "RUN_OR_CHECKPOINT: '0+1' is a merged class (train.py --merge), which is not a valid label" in message
        assert "add --refine CHILD --when CLASSES, or --force" in message and message.count("\n") == 0
        message = refused(capsys, "pair", "--data", "comp", "--out", here / "s.csv")
        assert "the model has only 2 of 3 classes (train.py --only), and never predicts '2': use" in message
    assert not (here / "s.csv").exists()
    for run_name, labels in ((parent, {"0+1", "2"}), ("pair", {"0", "1"})):
        run(run_name, "--data", "comp", "--out", here / "s.csv", "--force")
        assert {row["target"] for row in read_csv(here / "s.csv")} <= labels
        assert "warning: " in capsys.readouterr().err
    run("one", "--data", "comp", "--out", here / "s.csv")  # negative control
    assert capsys.readouterr().err == ""


def test_C1_a_checkpoint_of_an_older_version_is_still_used(here):
    saved = checkpoint.load("one/best_f1.pt")
    assert saved["all_labels"] == saved["labels"] == ["0", "1", "2"] and saved["all_classes"] == saved["classes"]
    pair = checkpoint.load("pair/best_f1.pt")
    assert (pair["labels"], pair["all_labels"], pair["classes"]) == (["0", "1"], ["0", "1", "2"], ["red", "green"])
    run(changed(here, "all_classes", "all_labels"), "--data", "comp", "--out", here / "s.csv")
    assert len(read_csv(here / "s.csv")) == 41


@pytest.mark.parametrize(
    "filled, meta, warnings",
    [
        (["0", "1", "2"], None, []),
        (["0", "0", "0"], None, []),  # a placeholder
        (["", "", ""], None, []),
        (["0", "1", "0"], None, ["not in column target of HERE/t.csv: 1 of 3, such as '2'; it has '0', '1'"]),
        (["cat", "cat", "cat"], None, ["not in column target of HERE/t.csv: 3 of 3, such as '0'; it has 'cat'"]),
        (["0", "0", "0"], [(0, "red"), (2, "blue")], ["not in HERE/meta.csv: 1 of 3, such as '1'; it has '0', '2'"]),
        (["0", "0", "0"], [(0, "red"), (1, "green"), (2, "blue"), (3, "black")], []),
    ],
)
def test_C1_labels_that_template_or_meta_csv_do_not_have_are_a_warning(here, capsys, filled, meta, warnings):
    rows = [{"ID": f"{i}.jpg", "target": label} for i, label in enumerate(filled)]
    write_csv(here / "t.csv", rows)
    if meta:
        write_csv(here / "meta.csv", [{"target": c, "class_name": name} for c, name in meta])
    submission.warn_of_labels(
        submission.Template(here / "t.csv", ["ID", "target"], rows, "target", [], "ID"), ["0", "1", "2"]
    )
    printed = capsys.readouterr().err.splitlines()
    assert printed == [f"warning: labels of the model that are {line.replace('HERE', str(here))}" for line in warnings]


def test_E9_a_label_that_is_a_formula_is_written_as_it_is_and_said_so(here, capsys):
    label = '=HYPERLINK("x")'
    run(changed(here, labels=[label] * 3, all_labels=[label] * 3), "--data", "comp", "--out", here / "s.csv")
    assert {row["target"] for row in read_csv(here / "s.csv")} == {label}
    notes = [line for line in capsys.readouterr().err.splitlines() if line.startswith("note: ")]
    assert len(notes) == 1 and f"takes for formulas: 3, such as {label!r}; they are written as they are" in notes[0]
    empty = submission.Template(None, ["ID", "target"], [], "target", [], "ID")
    submission.warn_of_labels(empty, ["-1", "+1", "-0.5", "a=b"])  # negative control
    assert capsys.readouterr().err == ""


# --- two stages, measured --------------------------------------------------------------------------------------------


def test_C2_when_takes_names_and_numbers_as_only_does():
    cats = {"labels": ["bird", "cat"], "classes": ["bird", "cat"]}
    child = cats | {"all_labels": ["ape", "bird", "cat", "dog"], "all_classes": ["ape", "bird", "cat", "dog"]}
    parent = {"labels": ["ape", "bird+cat", "dog"], "classes": ["ape", "bird+cat", "dog"]}
    for when in ("1,2", "2, 1", "bird,2", "cat,bird"):
        assert improvements.refined_classes(parent, child, when)[:2] == ([1], [0, 2])
    with pytest.raises(runs.BadInput, match="'0,1' are not the classes of the --refine run, which are bird, cat"):
        improvements.refined_classes(parent, child, "0,1")
    with pytest.raises(ValueError, match="'4' is not a valid class: choose from 0 ape, 1 bird, 2 cat, 3 dog"):
        improvements.refined_classes(parent, child, "1,4")


def predictions(names, targets, probs):
    return runs.Predictions(np.array(names), np.array(targets), np.array(probs, np.float32))


def choose(capsys, monkeypatch, own_probs, merged=True, force=False, own="bcd"):
    """choose_refine for the classes 0 and 1 of 3, with the printed line; `own` are the child's validation images."""
    child = {"labels": ["0", "1"], "classes": ["r", "g"], "all_labels": list("012"), "all_classes": list("rgb")}
    own_targets = [{"b": 0, "c": 1, "d": 1}[name] for name in own]
    stored = predictions(list(own), own_targets, [own_probs[name] for name in own])
    monkeypatch.setattr(improvements, "validation_of", lambda argument: stored)
    asked = []

    def predict_child(paths):
        asked.extend(paths)
        return np.full((1, len(paths), 2), 0.5)

    if merged:
        saved, targets = {"labels": ["0+1", "2"], "classes": ["r+g", "b"]}, [0, 0, 0, 0, 1]
        probs = [[0.9, 0.1]] * 4 + [[0.1, 0.9]]
    else:
        saved, targets = {"labels": ["0", "1", "2"], "classes": ["r", "g", "b"]}, [0, 0, 1, 1, 2]
        probs = [[0.9, 0.0, 0.1], [0.9, 0.0, 0.1], [0.0, 0.9, 0.1], [0.9, 0.0, 0.1], [0.1, 0.0, 0.9]]
    child["train_counts"] = [10, 30]
    use, _ = improvements.choose_refine(
        predictions(list("abcde"), targets, probs), saved, "child", child, "0,1", predict_child, force
    )
    return use, capsys.readouterr().out, asked


RIGHT = {"b": [0.9, 0.1], "c": [0.1, 0.9], "d": [0.1, 0.9]}
WRONG = {"b": [0.1, 0.9], "c": [0.9, 0.1], "d": [0.9, 0.1]}


def test_C2_refine_is_measured_on_images_that_neither_run_was_trained_on(capsys, monkeypatch):
    # a is an image of the child's training set; b, c, d have the classes 0, 1, 1, and e the class 2
    use, printed, asked = choose(capsys, monkeypatch, RIGHT)
    assert use and asked == ["e"] and "left out, because they may be training images of CHILD: 1\n" in printed
    # without: b, c, d are all class 1: F1 0, 2 * 2 / (3 + 2), 1
    assert "--refine: macro F1 on 4 validation images 0.6000 -> 1.0000, used\n" in printed
    use, printed, _ = choose(capsys, monkeypatch, RIGHT, merged=False)
    # without: b 0, c 1, d 0: F1 2 / (2 + 1), 2 / (1 + 2), 1
    assert use and "validation images 0.7778 -> 1.0000, used\n" in printed
    use, printed, _ = choose(capsys, monkeypatch, WRONG, merged=False)
    assert not use and "validation images 0.7778 -> 0.3333, does not help, not used" in printed
    use, printed, _ = choose(capsys, monkeypatch, WRONG)
    assert use and "0.6000 -> 0.3333, does not help, used because of the merged class" in printed
    use, printed, asked = choose(capsys, monkeypatch, WRONG, merged=False, force=True)
    assert use and printed == "--refine: not measured, used because of --force\n" and not asked
    with pytest.raises(runs.BadInput, match="no image of the classes 0,1 is a validation image of both runs.*--force"):
        choose(capsys, monkeypatch, RIGHT, own="")


def test_C2_refine_end_to_end_says_what_it_gains(here, capsys, parent):
    run(parent, "--data", "comp", "--refine", "pair", "--when", "red,1", "--out", here / "s.csv")
    assert re.search(r"--refine: macro F1 on \d+ validation images \S+ -> \S+, ", capsys.readouterr().out)
    with pytest.raises(SystemExit):
        run(parent, "--data", "comp", "--refine", "pair/best_loss.pt", "--when", "0,1", "--out", here / "s.csv")
    assert "--refine: pair/best_loss.pt: validation predictions are stored only" in capsys.readouterr().err


# --- validation images -----------------------------------------------------------------------------------------------


def test_C2_validation_images_of_several_runs_are_counted_once(here, capsys):
    first = predictions(["b", "a"], [1, 0], [[0.2, 0.8], [0.6, 0.4]])
    second = predictions(["c", "b"], [0, 1], [[0.7, 0.3], [0.6, 0.4]])
    once = improvements.counted_once([first, second])
    assert once.paths.tolist() == ["a", "b", "c"] and once.targets.tolist() == [0, 1, 0]
    assert np.allclose(once.probs, [[0.6, 0.4], [0.4, 0.6], [0.7, 0.3]])
    run("five", "five", "one", "--data", "comp", "--tta", "flip", "--out", here / "s.csv")
    assert "--tta flip: macro F1 on 90 validation images" in capsys.readouterr().out


def test_C2_blend_on_runs_with_different_validation_images_says_what_to_do(here, capsys, monkeypatch):
    monkeypatch.setattr(predictors, "decoded", lambda *arguments: pytest.fail("decodes"))
    message = refused(capsys, "one", "five", "--data", "comp", "--blend", "--out", here / "s.csv")
    assert message.count("\n") == 0
    assert message.startswith("predict.py: error: --blend: five and one have different validation images: train the")
    assert "same --data, --seed and split options" in message and "leave this option out" in message


def test_C2_the_blend_example_of_the_faq_works(here, capsys):
    readme = (Path(predict.__file__).parent / "FAQ.md").read_text(encoding="utf-8")
    block = next(block for block in readme.split("```") if "--blend" in block and "python predict.py" in block)
    example = next(line for line in block.splitlines() if "--blend" in line).split()[2:]
    small = "--size 16 --model resnet8 --weights none --epochs 1 --cache cache".split()
    training = [line.split()[2:] for line in block.splitlines() if line.startswith("python train.py")]
    assert len(training) == 2
    for words in training:
        words = [str(here / word) if word.startswith("runs/") else word for word in words]
        train.main([*[{"FOLDER": "comp"}.get(word, word) for word in words], *small])
    words = [str(here / word) if word.startswith("runs/") else {"TEST": "comp"}.get(word, word) for word in example]
    run(*words, "--out", here / "s.csv")
    assert "--blend: weight " in capsys.readouterr().out and len(read_csv(here / "s.csv")) == 41


# --- the file and the machine ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("start", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
def test_C3_a_templates_bom_and_line_ends_are_kept(here, start, end):
    text = Path("comp/sample_submission.csv").read_bytes().replace(b"\r\n", b"\n")
    (here / "t.csv").write_bytes(start + text.replace(b"\n", end))
    run("one", "--data", "comp", "--template", here / "t.csv", "--out", here / "s.csv")
    written = (here / "s.csv").read_bytes()
    assert written.startswith(start + b"ID,target" + end) and written.count(b"\xef\xbb\xbf") == len(start) // 3
    assert written.count(b"\r") == written.count(b"\n") * (end == b"\r\n") and written.count(b"\n") == 42


@pytest.mark.parametrize("separator", [";", "\t"])
def test_C3_a_templates_separator_is_kept(here, separator):
    text = Path("comp/sample_submission.csv").read_text().replace(",", separator)
    (here / "t.csv").write_text(text)
    run("one", "--data", "comp", "--template", here / "t.csv", "--out", here / "s.csv")
    lines = (here / "s.csv").read_text().splitlines()
    assert lines[0] == f"ID{separator}target" and all(line.count(separator) == 1 for line in lines)


def test_C3_threads_are_those_of_torch_and_of_decoding(here, monkeypatch):
    before, pools = torch.get_num_threads(), []
    pool = predictors.ThreadPoolExecutor
    monkeypatch.setattr(predictors, "ThreadPoolExecutor", lambda threads=None: pools.append(threads) or pool(threads))
    try:
        run("one", "--data", "comp", "--out", here / "s.csv", "--threads", 3)
        assert torch.get_num_threads() == 3 and pools == [3]
    finally:
        torch.set_num_threads(before)
    run("one", "--data", "comp", "--out", here / "s.csv")
    assert torch.get_num_threads() == before and pools == [3, None]


@pytest.mark.parametrize("words", [["--threads", "9999"], ["--threads", "0"], ["--batch-size", str(2**70)]])
def test_E9_numbers_that_no_machine_has_are_refused_in_one_line(here, capsys, words):
    message = refused(capsys, "one", "--data", "comp", *words, by=PARSER).splitlines()[-1]
    assert re.search(rf"{words[0]} must be (from 1 to|at most|at least) \d+.*, got {words[1]}", message)


@pytest.mark.parametrize("flag", ["--out", "--probs"])
def test_E9_a_name_of_254_bytes_works_or_is_refused_before_the_work(here, capsys, monkeypatch, flag):
    name, began = here / ("한" * 83 + ".csv.x"[: 254 - 249]), []
    assert len(os.fsencode(name.name)) == 254
    load = predictors.load_all
    monkeypatch.setattr(predictors, "load_all", lambda *arguments: began.append(1) or load(*arguments))
    try:
        run("one", "--data", "comp", "--out", here / "s.csv", flag, name)
        assert name.is_file()
    except SystemExit as stop:
        assert stop.code == 2 and not began and f"{flag}: " in capsys.readouterr().err
    with pytest.raises(SystemExit):
        run("one", "--data", "comp", flag, here / ("x" * 300))
    assert len(began) <= 1 and not list(here.glob("*.tmp")) and not list(here.glob(".*.tmp"))


def test_a_template_with_a_column_per_class_is_refused_by_name():
    template = submission.Template(Path("sample.csv"), ["image", "MEL", "NV", "BCC"], [], "BCC", [], "image")
    with pytest.raises(runs.BadInput, match="sample.csv has one column per class [(]MEL, NV, BCC[)].*--probs FILE.npz"):
        submission.check_one_column(template, ["MEL", "NV", "BCC"])
    submission.check_one_column(template, ["0", "1", "BCC"])

"""Runs whose classes combine factors: --head factored, summary and report, submissions, what is refused."""

import csv
import itertools
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

import augment
import checkpoint
import loop
import metrics
import models
import pixels
import predict
import predictors
import report
import runs
import train

COLUMNS = "mask", "gender", "age"
VALUES = ("no", "wear"), ("female", "male"), ("9", "30", "60")
LABELS = "--label-col", "mask,gender,age"


def write_csv(path, rows):
    with open(path, "w", newline="") as file:
        csv.writer(file).writerows(rows)


def read_csv(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def picture(ids, rng):
    """Each factor is the brightness of a channel."""
    values = rng.integers(0, 100, (16, 16, 3)) + np.array(ids) * (140, 140, 70)
    return Image.fromarray(values.clip(0, 255).astype(np.uint8))


@pytest.fixture(scope="module")
def competition(tmp_path_factory):
    """train.csv with three label columns, test/ with a template that has them too, and answers.csv."""
    root, rng = tmp_path_factory.mktemp("factors"), np.random.default_rng(0)
    combinations = [*itertools.product(range(2), range(2), range(3))]
    for part, copies in (("train", 8), ("test", 2)):
        (root / part).mkdir()
        rows, truth = [], []
        for i, ids in enumerate(copies * combinations):
            picture(ids, rng).save(root / part / f"{i}.png")
            truth.append([f"{i}.png", *(values[k] for values, k in zip(VALUES, ids, strict=True))])
            rows.append([f"{i}.png", "?", "?", "?"])
        write_csv(root / ("train.csv" if part == "train" else "answers.csv"), [["ID", *COLUMNS], *truth])
        if part == "test":
            write_csv(root / "sample_submission.csv", [["ID", "age", "Mask ", "gender"], *rows])
            write_csv(root / "one.csv", [["ID", "target"], *([row[0], "?"] for row in rows)])
    return root


@pytest.fixture
def here(competition, monkeypatch):
    monkeypatch.chdir(competition)
    return competition


def run(*more, out, epochs=2, data=".", labels=LABELS):
    words = ["--data", data, "--size", 16, "--model", "resnet8", "--batch-size", 8, "--cache", "cache", "--lr", 0.01]
    return train.main([str(word) for word in [*words, *labels, "--epochs", epochs, "--out", out, *more]])


@pytest.fixture
def factored(here):
    if not Path("factored").exists():
        run("--head", "factored", out="factored", epochs=6)
    return "factored"


def refused(capsys, program, *words):
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        program([str(word) for word in words])
    lines = capsys.readouterr().err.strip().splitlines()
    assert stop.value.code == 2 and len(lines) == 1, lines
    return lines[0]


def by_hand(name):
    """The most likely value of each factor, from three softmaxes of the features: {image: (mask, gender, age)}."""
    saved = checkpoint.load(f"{name}/best_f1.pt")
    head = {key: saved["model"].pop(f"linear.{key}") for key in ("weight", "bias", "parts")}
    network = models.build_model("resnet8", len(head["weight"]), 16)
    network.load_state_dict(saved["model"] | {"linear.weight": head["weight"], "linear.bias": head["bias"]})
    found = {}
    for path in Path("test").iterdir():
        image = pixels.fitted(pixels.decode_file(str(path)), 16, 16, "squash")
        x = augment.normalize(torch.from_numpy(image).permute(2, 0, 1)[None], saved["mean"], saved["std"])
        with torch.no_grad():
            parts = network.eval()(x)[0].split([2, 2, 3])
        found[path.name] = tuple(
            values[F.softmax(part, 0).argmax()] for values, part in zip(VALUES, parts, strict=True)
        )
    return found


# --- submissions -----------------------------------------------------------------------------------------------------


def test_a_factored_submission_is_that_of_its_three_softmaxes(factored, capsys):
    expected = by_hand(factored)
    assert len(set(expected.values())) > 4
    predict.main([factored, "--data", "test", "--out", "columns.csv"])
    rows = read_csv("columns.csv")
    assert list(rows[0]) == ["ID", "age", "Mask ", "gender"] and len(rows) == 24
    assert {row["ID"]: (row["Mask "], row["gender"], row["age"]) for row in rows} == expected
    predict.main([factored, "--data", "test", "--template", "one.csv", "--out", "one-out.csv"])
    composed = {name: f"{mask}, {gender}, age {age}" for name, (mask, gender, age) in expected.items()}
    assert {row["ID"]: row["target"] for row in read_csv("one-out.csv")} == composed
    run(out="linear", epochs=2)  # negative control: a linear head's predictions are different ones
    predict.main(["linear", "--data", "test", "--out", "linear.csv"])
    assert {row["ID"]: (row["Mask "], row["gender"], row["age"]) for row in read_csv("linear.csv")} != expected


def test_answers_with_a_column_per_factor_score_the_composed_class(factored, capsys):
    result = predict.main([factored, "--data", "test", "--out", "s.csv", "--answers", "answers.csv"])
    truth = {row["ID"]: tuple(row[name] for name in COLUMNS) for row in read_csv("answers.csv")}
    expected = by_hand(factored)
    assert result["accuracy"] == pytest.approx(np.mean([truth[name] == expected[name] for name in truth]))
    printed = capsys.readouterr()
    assert "24 rows, column Mask , gender, age filled in" in printed.out
    rows = read_csv("answers.csv")
    write_csv("bad.csv", [["ID", *COLUMNS], ["0.png", "no", "male", "61"], *(row.values() for row in rows[1:])])
    words = [factored, "--data", "test", "--out", "s.csv", "--answers", "bad.csv"]
    with pytest.raises(SystemExit):
        predict.main(words)
    assert "'no, male, 61' in column mask, gender, age is not a class of the model" in capsys.readouterr().err


def test_a_template_with_a_label_column_keeps_its_factor_columns(factored):
    rows = [["ID", "mask", "gender", "age", "label"], *([f"{i}.png", "a", "b", "c", "?"] for i in range(24))]
    write_csv("features.csv", rows)
    predict.main([factored, "--data", "test", "--template", "features.csv", "--out", "s.csv"])
    assert {tuple(row[name] for name in COLUMNS) for row in read_csv("s.csv")} == {("a", "b", "c")}
    assert all(len(row["label"].split(", ")) == 3 for row in read_csv("s.csv"))


def test_a_second_stage_keeps_the_columns_of_the_factors(factored):
    """--refine puts the child's classes last, so the columns must not depend on the order of the classes."""
    run("--only", "0,1", out="child", epochs=1)  # no, female, age 9 or 30
    words = [factored, "--data", "test", "--refine", "child", "--when", "0,1", "--force", "--probs", "p.npz"]
    predict.main([*words, "--out", "s.csv"])
    found = np.load("p.npz")
    assert found["classes"].tolist()[-2:] == ["no, female, age 9", "no, female, age 30"]
    composed = dict(zip([Path(path).name for path in found["paths"]], found["probs"].argmax(1), strict=True))
    for row in read_csv("s.csv"):
        name = f"{row['Mask ']}, {row['gender']}, age {row['age']}"
        assert found["classes"][composed[row["ID"]]] == name


# --- training --------------------------------------------------------------------------------------------------------


def test_a_factored_run_that_was_cut_ends_bitwise_as_the_one_that_was_not(here, monkeypatch):
    words = "--head factored --save-every 1 --accum 2 --ema 0.9".split()
    run(*words, out="whole")
    count, calls = loop._count, itertools.count()
    with monkeypatch.context() as patch:
        patch.setattr(loop, "_count", lambda *a: 1 / 0 if next(calls) == 7 else count(*a))  # in the second epoch
        with pytest.raises(ZeroDivisionError):
            run(*words, out="cut")
    train.main(["--resume", "cut", "--cache", "cache"])
    run(*words, "--seed", 1, out="other")  # negative control
    whole, cut, other = (checkpoint.load(f"{name}/last.pt")["model"] for name in ("whole", "cut", "other"))
    assert all(torch.equal(whole[key], cut[key]) for key in whole)
    assert not torch.equal(whole["linear.weight"], other["linear.weight"])


def test_a_new_factored_head_on_the_frozen_backbone_of_a_linear_one(here, capsys):
    """Classifier re-training, with the rates of the other fine-tuning options."""
    run(out="first", epochs=1)
    words = "--init first --freeze backbone --sampler balanced --head factored --head-lr 0.02 --layer-decay 0.7".split()
    run(*words, out="crt", epochs=1)
    assert "loaded all but linear.weight, linear.bias, linear.parts, which start random" in capsys.readouterr().out
    before, after = (checkpoint.load(f"{name}/last.pt")["model"] for name in ("first", "crt"))
    assert after["linear.weight"].shape == (7, 64) and before["linear.weight"].shape == (12, 64)
    assert all(torch.equal(before[key], after[key]) for key in before if not key.startswith("linear."))


def test_head_factored_with_the_loss_ldam_is_refused_and_its_own_head_is_cosine(here, capsys):
    with pytest.raises(SystemExit):
        run("--loss", "ldam", "--head", "factored", out="never")
    assert "--head factored: the margins of --loss ldam are for --head cosine" in capsys.readouterr().err
    run("--loss", "ldam", out="cosine", epochs=1)
    assert checkpoint.load("cosine/best_f1.pt")["head"] == "cosine"


@pytest.mark.parametrize("more", [["--merge", "0,1"], ["--label-col", "mask"]])
def test_head_factored_without_factors_is_refused_before_images_are_decoded(here, capsys, monkeypatch, more):
    monkeypatch.setattr(pixels, "decode", lambda *arguments: pytest.fail("decodes"))
    words = ["--data", ".", *LABELS, "--head", "factored", "--size", 16, "--model", "resnet8", "--out", "never", *more]
    error = refused(capsys, train.main, *words)
    assert error.startswith("train.py: error: --head: factored needs classes that combine factors, and")
    assert "--label-col mask,gender,age" in error and "--merge" in error and not Path("never").exists()


def test_an_unknown_label_column_is_named_with_its_flag(here, capsys):
    error = refused(capsys, train.main, "--data", ".", "--label-col", "mask,sex", "--out", "never")
    assert error.startswith("train.py: error: --label-col: train.csv has no column 'sex'")


# --- summary and report ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("words", [[], ["--folds", "2"]])
def test_summary_and_report_show_each_factor_for_every_head(here, capsys, words):
    out = f"shown{len(words)}"
    run(*words, out=out)
    printed, page = capsys.readouterr().out, (Path(out) / "report.html").read_text()
    found = runs.read(out).predictions
    ids = [*itertools.product(range(2), range(2), range(3))]
    for f, name in enumerate(COLUMNS):
        column = np.array([row[f] for row in ids])
        matrix = metrics.ConfusionMatrix(len(VALUES[f])).update(column[found.probs.argmax(1)], column[found.targets])
        assert f"factor {name}: macro F1 {matrix.f1():.4f}, accuracy {matrix.accuracy():.4f}, worst value" in printed
        assert f"{name}: macro F1 {matrix.f1():.4f}, accuracy {matrix.accuracy():.4f}" in page
    assert printed.count("factor mask: ") == (3 if words else 1)
    assert "The same predictions for each factor alone" in page


def test_a_run_without_factors_shows_none(here, capsys):
    run(out="plain", epochs=1, labels=["--label-col", "mask"])
    page = Path("plain/report.html").read_text()
    assert "factor " not in capsys.readouterr().out and "for each factor" not in page


# --- damaged and hostile files ---------------------------------------------------------------------------------------

FACTORS = {name: [*values] for name, values in zip(COLUMNS, VALUES, strict=True)}
GRID = [[*ids] for ids in itertools.product(range(2), range(2), range(3))]
HOSTILE = [
    {"factors": None},
    {"factors": [1]},
    {"factors": {}},
    {"factors": FACTORS | {"mask": ["no"]}},
    {"factors": FACTORS | {"mask": "no"}},
    {"factors": FACTORS | {"mask": ["no", 1]}},
    {"factors": FACTORS | {"mask": ["no", "wear", "never"]}},
    {"factors": {"mask": ["no", "wear"]}},
    {"factor_ids": None},
    {"factor_ids": GRID[:-1]},
    {"factor_ids": [*GRID[:-1], [1, 1, 3]]},
    {"factor_ids": [*GRID[:-1], [1, 1, -1]]},
    {"factor_ids": [*GRID[:-1], [1, 1, 2.0]]},
    {"factor_ids": [*GRID[:-1], [1, 1, True]]},
    {"factor_ids": [*GRID[:-1], "112"]},
    {"factor_ids": [*GRID[:-1], [1, 1, 1]]},  # two classes with the same values
]


@pytest.mark.parametrize("entries", HOSTILE, ids=str)
def test_factors_of_a_checkpoint_or_a_config_that_cannot_be_are_refused_in_one_line(
    factored, tmp_path, capsys, monkeypatch, entries
):
    monkeypatch.setattr(predictors, "decoded", lambda *arguments: pytest.fail("decodes"))
    checkpoint.save(tmp_path / "x.pt", checkpoint.load(f"{factored}/best_f1.pt") | entries)
    error = refused(capsys, predict.main, tmp_path / "x.pt", "--data", "test", "--out", tmp_path / "s.csv")
    assert "its factors must be names with their values" in error or "has no factors" in error
    config = json.loads(Path(factored, "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | entries))
    assert "config.json is damaged: factors and factor_ids must give" in refused(capsys, report.main, tmp_path)


def test_a_factored_head_without_factors_and_other_weights_are_refused_in_one_line(factored, tmp_path, capsys):
    saved = checkpoint.load(f"{factored}/best_f1.pt")
    words = tmp_path / "x.pt", "--data", "test", "--out", tmp_path / "s.csv"
    for change, message in (
        ({"factors": {}, "factor_ids": [[] for _ in GRID]}, "head factored needs classes that combine factors"),
        ({"head": "linear"}, "does not fit resnet8"),
        ({"model": saved["model"] | {"linear.parts": torch.ones(12, 9)}}, "does not fit resnet8"),
        ({"model": saved["model"] | {"linear.parts": torch.full((12, 7), torch.nan)}}, "NaN or infinite weights"),
    ):
        checkpoint.save(words[0], saved | change)
        assert message in refused(capsys, predict.main, *words)


def test_files_of_an_older_version_have_no_factors(here, tmp_path, capsys):
    run(out="old", epochs=1)
    saved = checkpoint.load("old/best_f1.pt")
    checkpoint.save(tmp_path / "x.pt", {key: value for key, value in saved.items() if "factor" not in key})
    predict.main([str(tmp_path / "x.pt"), "--data", "test", "--template", "one.csv", "--out", str(tmp_path / "s.csv")])
    assert re.fullmatch(r"\w+, \w+, age \d+", read_csv(tmp_path / "s.csv")[0]["target"])
    config = json.loads(Path("old/config.json").read_text())
    Path("old/config.json").write_text(json.dumps({k: v for k, v in config.items() if "factor" not in k}))
    assert runs.read("old").factors == {}
    report.main(["old"])

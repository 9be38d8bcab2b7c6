"""labels.py: finds what cleanlab finds, says what chance would find, and changes only what the user typed."""

import csv
import json
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from planted import plant, precision_and_recall
from test_page import checked
from test_report import CHROMIUM, needs_chromium, opened

import cli
import compare
import data
import inputs
import labels
import runs
import train

RUN = "--data d --size 16 --model resnet8 --epochs 2 --batch-size 8 --threads 1 --lr 1e-2".split()


def calibrated_set(seed, N=2000, C=6, scale=4.0, power=1.0, shift=0.0):
    """(probs, targets): targets are drawn from probabilities, of which `probs` are a distorted version."""
    rng = np.random.default_rng(seed)
    z = scale * rng.normal(size=(N, C)) + np.log(np.arange(C, 0, -1))
    q = np.exp(z - z.max(1, keepdims=True))
    q /= q.sum(1, keepdims=True)
    targets = (q.cumsum(1) < rng.random((N, 1))).sum(1).clip(max=C - 1)
    probs = q**power * np.exp(shift * np.arange(C))
    return probs / probs.sum(1, keepdims=True), targets


# --- confident learning ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(20))
def test_the_confident_joint_is_cleanlabs_to_the_integer(seed):
    count = pytest.importorskip("cleanlab.count", reason="needs cleanlab")
    rng = np.random.default_rng(seed)
    C, N = int(rng.integers(2, 9)), int(rng.integers(20, 400))
    probs = rng.dirichlet(np.full(C, rng.choice([0.1, 0.5, 2.0])), N)
    targets = rng.choice(C, N, p=rng.dirichlet(np.ones(C)))
    if seed % 2:
        targets = np.where(rng.random(N) < 0.7, probs.argmax(1), targets)
    assert len(set(targets.tolist())) > 1
    expected = count.compute_confident_joint(targets, probs, calibrate=False)
    assert np.array_equal(labels.confident_joint(probs, targets), expected)
    changed = (targets + (np.arange(N) == 0)) % C  # the control: one different label, a different joint or thresholds
    assert not np.array_equal(labels.class_thresholds(probs, changed), labels.class_thresholds(probs, targets))


def test_the_confident_joint_of_a_worked_case():
    """Thresholds: class 0 (0.9 + 0.6 + 0.2) / 3 = 0.567, class 1 (0.8 + 0.3) / 2 = 0.55, class 2 has no image."""
    probs = np.array([[0.9, 0.1, 0], [0.6, 0.4, 0], [0.2, 0.8, 0], [0.2, 0.8, 0], [0.5, 0.3, 0.2]])
    targets = np.array([0, 0, 0, 1, 1])
    assert labels.class_thresholds(probs, targets).round(4).tolist() == [0.5667, 0.55, np.inf]
    assert labels.confident_classes(probs, targets).tolist() == [0, 0, 1, 1, -1]
    assert labels.confident_joint(probs, targets).tolist() == [[2, 1, 0], [0, 1, 0], [0, 0, 1]]
    assert labels.find_suspects(probs, targets).tolist() == [2]


@pytest.mark.parametrize("power", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("scale", [3.0, 8.0])
def test_precision_at_the_planted_number_is_cleanlabs_within_three_hundredths(scale, power):
    filters = pytest.importorskip("cleanlab.filter", reason="needs cleanlab")
    probs, targets = calibrated_set(3, scale=scale, power=power)
    given = plant(targets, 6, 0.05, np.random.default_rng(1))
    is_wrong = given != targets
    assert is_wrong.sum() == 100
    own = precision_and_recall(labels.ranked(probs, given), is_wrong)
    for by in ("prune_by_noise_rate", "low_self_confidence"):
        ranked = filters.find_label_issues(given, probs, filter_by=by, return_indices_ranked_by="self_confidence")
        assert own > precision_and_recall(ranked, is_wrong) - 0.03
    same = filters.find_label_issues(given, probs, filter_by="low_self_confidence")
    assert len(labels.find_suspects(probs, given)) == same.sum()
    assert len(set(labels.find_suspects(probs, given)) - set(np.flatnonzero(same))) <= 0.03 * same.sum()
    random = np.random.default_rng(0).permutation(2000)
    assert precision_and_recall(random, is_wrong) < 0.15 < 0.4 < own  # the control


# --- chance ----------------------------------------------------------------------------------------------------------

DISTORTED = [(1.0, 0.0), (0.5, 0.0), (2.0, 0.0), (1.5, 0.6)]  # calibrated, under-, overconfident, with a wrong prior


@pytest.mark.parametrize("power, shift", DISTORTED)
def test_on_a_clean_set_there_are_no_more_suspects_than_by_chance(power, shift):
    inside = 0
    for seed in range(5):
        probs, targets = calibrated_set(seed, power=power, shift=shift)
        chance, n = labels.by_chance(probs, targets), labels.count_suspects(probs, targets)
        inside += n <= chance.high
        assert abs(n - chance.mean) < 0.25 * chance.mean + 10 and chance.wrong < 0.01
    assert inside >= 4


@pytest.mark.parametrize("power, shift", DISTORTED)
def test_with_planted_labels_there_are_more_than_by_chance_and_their_share_is_estimated(power, shift):
    probs, targets = calibrated_set(0, power=power, shift=shift)
    given = plant(targets, 6, 0.05, np.random.default_rng(1))
    chance = labels.by_chance(probs, given)
    assert labels.count_suspects(probs, given) > chance.high and 0.03 < chance.wrong < 0.07


def test_without_calibration_an_overconfident_network_on_a_clean_set_would_be_above_chance(monkeypatch):
    """The control."""
    probs, targets = calibrated_set(0, power=2.0)
    monkeypatch.setattr(labels, "calibrated", lambda probs, targets: (probs, 0.0))
    assert labels.count_suspects(probs, targets) > labels.by_chance(probs, targets).high


def folds_that_differ(N=500, C=6):
    """(probs, targets, network): a clean set whose three networks are under-, over- and well calibrated."""
    parts = [calibrated_set(k, N=N, C=C, power=power) for k, power in enumerate((0.3, 1.0, 3.0))]
    probs, targets = (np.concatenate(part) for part in zip(*parts, strict=True))
    return probs, targets, np.repeat(np.arange(3), N)


def test_on_a_clean_set_folds_that_are_calibrated_differently_give_no_more_suspects_than_by_chance():
    probs, targets, networks = folds_that_differ()
    n, chance = labels.count_suspects(probs, targets), labels.by_chance(probs, targets, networks)
    assert chance.low <= n <= chance.high and chance.wrong < 0.01
    given = plant(targets, 6, 0.05, np.random.default_rng(1))
    planted = labels.by_chance(probs, given, networks)
    assert labels.count_suspects(probs, given) > planted.high and 0.03 < planted.wrong < 0.07
    pooled = labels.by_chance(probs, targets)  # the control: one calibration for all
    assert n > 3 * pooled.high and pooled.wrong > 0.03


def test_labels_py_calibrates_each_fold_of_a_run_by_itself(tmp_path, make_run, capsys):
    probs, targets, networks = folds_that_differ(N=200)
    files = [f"images/{i}.png" for i in range(len(probs))]
    for f in range(3):
        own = np.flatnonzero(networks == f)
        make_run(tmp_path / f"run/fold{f}", probs[own].astype(np.float32), targets[own], [files[i] for i in own])
    shutil.copy(tmp_path / "run/fold0/config.json", tmp_path / "run")
    order = np.random.default_rng(0).permutation(len(probs))
    np.savez(
        tmp_path / "run/oof.npz", paths=np.array(files)[order], targets=targets[order], probs=probs[order].astype("f")
    )
    found = labels.main([str(tmp_path / "run")]).chance
    expected = labels.by_chance(probs[order].astype(np.float32).astype(float), targets[order], networks[order])
    assert found == pytest.approx(expected) and "no more than chance" in capsys.readouterr().out


def test_probabilities_of_zero_and_one_and_an_absent_class_are_finite():
    probs, targets = np.eye(4)[[0, 1, 2, 0, 1, 2]], np.array([0, 1, 2, 0, 1, 1])
    chance = labels.by_chance(probs, targets, draws=5)
    assert np.isfinite(chance).all() and labels.find_suspects(probs, targets).tolist() == [5]


# --- labels.csv and labels.html --------------------------------------------------------------------------------------


def made(tmp_path, make_run, groups=None, classes=None, N=240, **more):
    """A run with planted labels, and its images: 8 x 8 pixels, all different."""
    probs, targets = calibrated_set(0, N=N, C=4, scale=10.0)
    given = plant(targets, 4, 0.05, np.random.default_rng(1))
    folder = tmp_path / "images"
    folder.mkdir()
    for i in range(N):
        Image.new("RGB", (8, 8), (i, 0, 99)).save(folder / f"{i:03d}.png")
    run = make_run(
        tmp_path / "run", probs.astype(np.float32), given, [f"images/{i:03d}.png" for i in range(N)], classes=classes
    )
    change(run / "config.json", cwd=str(tmp_path), **more)
    if groups is not None:
        found = dict(np.load(run / "val_probs.npz"))
        np.savez(run / "val_probs.npz", **found | {"groups": np.array(groups)})
    return run, given != targets


def change(file, **entries):
    file.write_text(json.dumps(json.loads(file.read_text()) | entries))


def rows_of(file):
    with open(file, newline="", encoding="utf-8") as source:
        return list(csv.DictReader(source))


def test_the_table_has_the_suspects_worst_first_without_actions(tmp_path, make_run, capsys):
    run, is_wrong = made(tmp_path, make_run)
    findings = labels.main([str(run)])
    rows, found = rows_of(run / "labels.csv"), runs.read(run).predictions
    assert tuple(rows[0]) == labels.COLUMNS and {row["action"] for row in rows} == {""}
    assert [row["image"] for row in rows] == found.paths[findings.suspects].tolist()
    scores = [float(row["score"]) for row in rows]
    assert scores == sorted(scores) and 0 < len(rows) < 40 and is_wrong[findings.suspects].mean() > 0.5
    first = findings.suspects[0]
    assert rows[0]["given"] == f"class {found.targets[first]}"
    assert rows[0]["suggested"] == f"class {found.probs[first].argmax()}"
    out = capsys.readouterr().out
    assert f"Suspect labels: {len(rows)}." in out and "By chance" in out
    assert "are probably wrong labels, and most of the others are right" in out
    assert "only its 240 validation images are checked" in out


def test_on_a_clean_set_the_page_and_the_output_say_no_more_than_chance(tmp_path, make_run, capsys):
    probs, targets = calibrated_set(1, N=600)
    run = make_run(tmp_path / "run", probs.astype(np.float32), targets)
    labels.main([str(run)])
    assert "no more than chance" in capsys.readouterr().out
    assert "no more than chance" in "".join(checked((run / "labels.html").read_text("utf-8")).words)


def test_classes_that_the_network_hardly_knows_are_a_warning(tmp_path, make_run, capsys):
    """As rare classes: class 3 is never predicted, so that all of its right labels are suspect."""
    targets = np.array([0, 1, 2] * 60 + [3] * 12)
    probs = np.full((192, 4), 0.02, np.float32)
    probs[np.arange(192), np.where(targets == 3, np.arange(192) % 3, targets)] = 0.94
    run = make_run(tmp_path / "run", probs, targets)
    labels.main([str(run)])
    said = "more than half of the images of these classes are suspect: class 3. The network hardly knows them"
    assert said in capsys.readouterr().out and said in (run / "labels.html").read_text("utf-8")
    run, _ = made(tmp_path, make_run)  # the control
    labels.main([str(run), "--out", str(tmp_path / "new")])
    assert "hardly knows" not in capsys.readouterr().out


def test_an_action_can_be_filled_in_and_a_table_with_decisions_is_not_overwritten(tmp_path, make_run, capsys):
    run, _ = made(tmp_path, make_run)
    labels.main([str(run), "--action", "fix"])
    assert {row["action"] for row in rows_of(run / "labels.csv")} == {"fix"}
    before = (run / "labels.csv").read_bytes()
    with pytest.raises(SystemExit) as stop:
        labels.main([str(run)])
    assert stop.value.code == 2 and "labels.csv exists, and may have your decisions" in capsys.readouterr().err
    assert (run / "labels.csv").read_bytes() == before
    labels.main([str(run), "--out", str(tmp_path / "new")])
    assert {row["action"] for row in rows_of(tmp_path / "new" / "labels.csv")} == {""}


def test_images_of_one_group_are_listed_together(tmp_path, make_run):
    groups = [f"person {i // 6}" for i in range(240)]
    run, _ = made(tmp_path, make_run, groups)
    findings = labels.main([str(run)])
    rows = rows_of(run / "labels.csv")
    names = [row["group"] for row in rows]
    assert len([i for i in range(1, len(names)) if names[i] != names[i - 1]]) + 1 == len(set(names))
    assert all(names.count(name) == 6 for name in names)
    suspects = {row["image"] for row in rows if row["why"] == labels.SUSPECT}
    assert suspects == set(runs.read(run).predictions.paths[findings.suspects])
    text = " ".join(checked((run / "labels.html").read_text("utf-8")).words)
    assert re.search(r"person \d+ : [1-6] of 6 images suspect", re.sub(" +", " ", text))


def test_a_group_of_near_duplicates_that_is_named_by_an_image_has_this_image_too(tmp_path, make_run):
    paths = [f"images/{i:03d}.png" for i in range(240)]
    run, _ = made(tmp_path, make_run, [paths[i - i % 2] for i in range(240)])  # as data.tied names them
    labels.main([str(run)])
    rows = rows_of(run / "labels.csv")
    assert all([row["group"] for row in rows].count(row["group"]) == 2 for row in rows)
    assert "identical images" not in (run / "labels.html").read_text("utf-8")


def test_identical_images_with_two_labels_come_first_whatever_the_network_thinks(tmp_path, make_run):
    run, _ = made(tmp_path, make_run)
    found = runs.read(run).predictions
    sure = np.flatnonzero((found.probs.argmax(1) == found.targets) & (found.probs.max(1) > 0.99))
    a, b = sure[0], next(i for i in sure if found.targets[i] != found.targets[sure[0]])
    alike = next(i for i in sure[1:] if found.targets[i] == found.targets[sure[0]])
    for copy in (b, alike):
        shutil.copy(tmp_path / found.paths[a], tmp_path / found.paths[copy])
    labels.main([str(run)])
    rows = rows_of(run / "labels.csv")
    assert {row["image"] for row in rows[:3]} == set(found.paths[[a, b, alike]])
    assert {row["why"] for row in rows[:3]} == {labels.TWO_LABELS} and rows[3]["why"] == labels.SUSPECT
    assert len({row["suggested"] for row in rows[:3]}) == 1
    assert "Identical images with different labels" in (run / "labels.html").read_text("utf-8")


def test_an_image_without_a_file_and_names_that_are_markup_or_formulas_stay_text(tmp_path, make_run):
    classes = ["=1+1", "<script>x</script>", "@a", "한글"]
    run, _ = made(tmp_path, make_run, classes=classes)
    (tmp_path / "images").rename(tmp_path / "moved")
    labels.main([str(run)])
    checker = checked((run / "labels.html").read_text("utf-8"))
    assert "script" not in {name for name, _ in checker.tags} and "<script>x</script>" in checker.words
    cells = {cell for row in rows_of(run / "labels.csv") for cell in row.values()}
    assert not any(cell.startswith(("=", "@")) for cell in cells) and {"'=1+1", "'@a"} <= cells


def test_a_run_without_groups_in_its_file_is_read_and_said(tmp_path, make_run, capsys):
    run, _ = made(tmp_path, make_run)
    found = dict(np.load(run / "val_probs.npz"))
    del found["groups"]
    np.savez(run / "val_probs.npz", **found)
    labels.main([str(run)])
    assert "older version and has no groups" in capsys.readouterr().out


@pytest.mark.parametrize(
    "entries, message",
    [
        ({"probs": np.full((240, 4), np.nan, np.float32)}, "probabilities from 0 to 1"),
        ({"probs": np.full((240, 4), 7, np.float32)}, "probabilities from 0 to 1"),
        ({"groups": np.zeros(3)}, "is damaged"),
    ],
)
def test_damaged_predictions_are_one_line(tmp_path, make_run, capsys, entries, message):
    run, _ = made(tmp_path, make_run)
    np.savez(run / "val_probs.npz", **dict(np.load(run / "val_probs.npz")) | entries)
    with pytest.raises(SystemExit) as stop:
        labels.main([str(run)])
    error = capsys.readouterr().err.strip().splitlines()
    assert stop.value.code == 2 and len(error) == 1 and message in error[0]
    assert not (run / "labels.csv").exists()


@needs_chromium
def test_a_browser_shows_labels_html_without_an_error_or_a_request(tmp_path, make_run):
    run, _ = made(tmp_path, make_run, [f"person {i // 6}" for i in range(240)])
    labels.main([str(run)])
    dom, console, requests = opened(run / "labels.html", tmp_path)
    assert "What to do</h2>" in dom and console == [] and requests == set()


@needs_chromium
@pytest.mark.parametrize("width", [390, 1400])
def test_labels_html_fits_narrow_and_wide_screens(tmp_path, make_run, width):
    run, _ = made(tmp_path, make_run, [f"person {i // 6}" for i in range(240)], classes=["a" * 60, "b", "c", "d"])
    labels.main([str(run)])
    (run / "frame.html").write_text(
        f"<iframe src='labels.html' style='width:{width}px;height:800px'></iframe><script>onload = () => {{"
        "const d = document.querySelector('iframe').contentDocument.documentElement;"
        "document.title = `${d.scrollWidth} of ${d.clientWidth}` }</script>"
    )
    flags = "--headless --no-sandbox --disable-gpu --allow-file-access-from-files --dump-dom"
    command = [CHROMIUM, *flags.split(), f"--user-data-dir={tmp_path}/p", (run / "frame.html").as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    inner, outer = re.search(r"<title>(\d+) of (\d+)</title>", done.stdout).groups()
    assert int(outer) > 300 and int(inner) <= int(outer)


# --- train.py --fixes ------------------------------------------------------------------------------------------------


def write_fixes(file, rows, columns=labels.COLUMNS[:4]):
    with open(file, "w", newline="", encoding="utf-8") as out:
        csv.writer(out).writerows([columns, *rows])


def config(folder):
    return json.loads(Path(folder, "config.json").read_text())


def test_fixes_end_to_end_change_labels_in_training_and_validation_and_leave_images_out(workspace, capsys):
    Path("d/class0/00.png").rename("d/class1/x.png")
    train.main([*RUN, "--folds", "3", "--out", "first"])
    labels.main(["first"])
    assert "no folds" not in capsys.readouterr().out
    rows = [
        ["fix", "d/class1/x.png", "class1", "class0"],
        ["drop", "d/class2/03.png", "class2", "class2"],
        ["", "d/class0/05.png", "class0", "class2"],
    ]
    write_fixes("fixes.csv", rows)
    train.main([*RUN, "--folds", "3", "--out", "second", "--fixes", "fixes.csv"])
    assert "--fixes fixes.csv: labels changed: 1, images left out: 1" in capsys.readouterr().out
    before, after = (runs.read(run).predictions for run in ("first", "second"))
    first, second = (dict(zip(p.paths.tolist(), p.targets.tolist(), strict=True)) for p in (before, after))
    assert {path for path in first if first[path] != second.get(path)} == {"d/class1/x.png", "d/class2/03.png"}
    assert second["d/class1/x.png"] == 0 and "d/class2/03.png" not in second
    expected = [
        {"image": "d/class1/x.png", "from": "class1", "to": "class0"},
        {"image": "d/class2/03.png", "from": "class2", "to": None},
    ]
    assert config("second")["fixes"] == expected == config("second/fold0")["fixes"] and "fixes" not in config("first")
    counts = [
        np.add(config(f"second/fold{f}")["train_counts"], config(f"second/fold{f}")["val_counts"]) for f in (0, 1)
    ]
    assert [count.tolist() for count in counts] == [[24, 12, 5]] * 2


def test_a_dropped_image_is_not_reported_as_identical_to_one_with_a_different_label(workspace, capsys):
    shutil.copy("d/class0/00.png", "d/class1/x.png")
    train.main([*RUN, "--epochs", "1", "--leaks", "warn", "--out", "first"])
    assert "identical to one with a different label: 1" in capsys.readouterr().out  # the control
    write_fixes("fixes.csv", [["drop", "d/class1/x.png", "class1", ""]])
    train.main([*RUN, "--epochs", "1", "--out", "second", "--fixes", "fixes.csv"])
    assert "identical to one with a different label" not in capsys.readouterr().out


def test_the_split_does_not_depend_on_fixes(workspace):
    train.main([*RUN, "--out", "first"])
    paths = runs.read("first").predictions.paths.tolist()
    zeros = [path for path in paths if "class0" in path]
    write_fixes("fixes.csv", [["fix", path, "class0", "class2"] for path in zeros[1:]])
    train.main([*RUN, "--out", "second", "--fixes", "fixes.csv"])
    assert runs.read("second").predictions.paths.tolist() == paths
    changed = runs.read("first").predictions.targets != runs.read("second").predictions.targets
    assert changed.sum() == len(zeros) - 1 > 1


def test_the_folds_do_not_depend_on_fixes(workspace):
    words = [*RUN, "--epochs", "1", "--folds", "2"]
    train.main([*words, "--out", "first"])
    zeros = [path for path in runs.read("first").predictions.paths.tolist() if "class0" in path]
    write_fixes("fixes.csv", [["fix", path, "class0", "class2"] for path in zeros[::2]])
    train.main([*words, "--out", "second", "--fixes", "fixes.csv"])
    first, second = ([fold.predictions.paths.tolist() for fold in runs.read(run).folds] for run in ("first", "second"))
    assert first == second and len(zeros) > 10


def test_the_images_that_imbalance_keeps_do_not_depend_on_fixes(workspace):
    write_fixes("fixes.csv", [["fix", f"d/class0/{i:02d}.png", "class0", "class2"] for i in range(8)])
    chosen = []
    for more in ([], ["--fixes", "fixes.csv"]):
        options = cli.parse_options([*RUN, "--imbalance", "4", *more])
        (split,) = inputs.make_splits(options, inputs.read_table(options))
        chosen.append(split.train.tolist())
    assert chosen[0] == chosen[1]


def test_a_resumed_run_keeps_its_fixes_and_refuses_a_changed_file(workspace, capsys):
    write_fixes("fixes.csv", [["fix", "d/class0/00.png", "class0", "class1"]])
    train.main([*RUN, "--scheduler", "none", "--out", "run", "--fixes", "fixes.csv"])
    train.main(["--resume", "run", "--epochs", "3"])
    assert len(config("run")["fixes"]) == 1 and len(runs.read("run").log) == 3
    write_fixes("fixes.csv", [["drop", "d/class0/00.png", "class0", "class1"]])
    with pytest.raises(SystemExit) as stop:
        train.main(["--resume", "run", "--epochs", "4"])
    assert stop.value.code == 2 and "labels or split have changed" in capsys.readouterr().err
    assert "--fixes none.csv: cannot change --fixes when resuming" in refused(
        capsys, "--resume", "run", "--fixes", "none.csv"
    )


def test_labels_py_on_a_fixed_run_carries_its_fixes_over(workspace):
    write_fixes(
        "fixes.csv", [["fix", "d/class0/00.png", "class0", "class1"], ["drop", "d/class0/01.png", "class0", ""]]
    )
    train.main([*RUN, "--folds", "2", "--out", "run", "--fixes", "fixes.csv"])
    labels.main(["run"])
    rows = rows_of("run/labels.csv")
    kept = [list(row.values())[:4] for row in rows if row["why"] == labels.DECIDED]
    assert kept == [["fix", "d/class0/00.png", "class0", "class1"], ["drop", "d/class0/01.png", "class0", ""]]
    assert [row["image"] for row in rows].count("d/class0/00.png") == 1
    train.main([*RUN, "--folds", "2", "--out", "again", "--fixes", "run/labels.csv"])
    assert config("again")["fixes"] == config("run")["fixes"]


def refused(capsys, *argv):
    """The one line of the error, with exit code 2."""
    with pytest.raises(SystemExit) as stop:
        train.main(list(argv))
    lines = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("usage")]
    assert stop.value.code == 2 and len(lines) == 1, lines
    return lines[0]


GOOD = ["fix", "d/class0/00.png", "class0", "class1"]
BAD_ROWS = {
    "is not an image of these data": ["fix", "d/class0/nothing.png", "class0", "class1"],
    "is not a valid class: choose from class0, class1, class2": ["fix", "d/class0/00.png", "class0", "classs1"],
    "the data have changed since labels.py read them": ["fix", "d/class0/00.png", "class2", "class1"],
    "is not a valid action: write fix or drop": ["keep", "d/class0/00.png", "class0", "class1"],
    "fix has no effect": ["fix", "d/class0/00.png", "class0", "class0"],
    "two rows with an action": ["drop", "d/class0/01.png", "class0", "class1"],
    "=cmd|": ["=cmd|' /C calc'!A0", "d/class0/00.png", "class0", "class1"],
    "not an image": ["fix", "\x1b[31md\x00/\n\t\u202e.png", "class0", "class1"],
    "not a valid class": ["fix", "d/class0/00.png", "class0", "x" * 100_000],
}


@pytest.mark.parametrize("message", BAD_ROWS)
def test_a_bad_row_is_one_line_that_names_fixes_and_the_row(workspace, capsys, message):
    write_fixes("fixes.csv", [["drop", "d/class0/01.png", "class0", ""], BAD_ROWS[message]])
    line = refused(capsys, *RUN, "--out", "run", "--fixes", "fixes.csv")
    assert line.startswith("train.py: error: --fixes: fixes.csv, line 3: ") and message in line and len(line) < 800
    assert line.isprintable() and not Path("run").exists()


@pytest.mark.parametrize(
    "text, message",
    [
        (
            "image,given,suggested\nd/class0/00.png,class0,class1\n",
            "has no column 'action': it must have action, image",
        ),
        ("", "has no rows"),
        ("action,image,given,suggested\n", "has no rows"),
        ("action,image,given,suggested\n,d/class0/00.png,class0,class1\n", "has no effect: no row has fix or drop"),
        ("action,image,given,suggested\nfix,a\n", "does not have the header's 4 columns"),
        ('action,image,given,suggested\nfix,"a', "cannot be read"),
        ("action,image,given,suggested\nfix," + "y" * 200_000 + ",a,b\n", "cannot be read: field larger than"),
        ("action,Action,image,given,suggested\nfix,,a,b,c\n", "differ only in case"),
        ("\x00\x01\x02", "fixes.csv"),
    ],
)
def test_a_hostile_table_is_one_line(workspace, capsys, text, message):
    Path("fixes.csv").write_text(text)
    line = refused(capsys, *RUN, "--out", "run", "--fixes", "fixes.csv")
    assert line.startswith("train.py: error: --fixes: ") and message in line and line.isprintable()
    assert not Path("run").exists()


def test_a_missing_table_is_one_line_that_names_the_file(workspace, capsys):
    assert "--fixes: " in (line := refused(capsys, *RUN, "--fixes", "none.csv")) and "none.csv" in line


def test_a_table_saved_by_a_spreadsheet_is_read(workspace):
    """A semicolon, a BOM, columns in a different order, one more, and case of the action."""
    text = "\ufeffnotes;Given;Image;Suggested;Action\r\nhm;class0;d/class0/00.png;class1; FIX \r\n"
    Path("fixes.csv").write_text(text, encoding="utf-8", newline="")
    train.main([*RUN, "--out", "run", "--fixes", "fixes.csv"])
    assert config("run")["fixes"] == [{"image": "d/class0/00.png", "from": "class0", "to": "class1"}]


def test_a_class_name_like_a_formula_goes_through_the_table_and_back(workspace):
    Path("d/class0").rename("d/=1+1")
    write_fixes("fixes.csv", [["fix", "d/class1/00.png", "class1", "'=1+1"], ["drop", "d/=1+1/00.png", "'=1+1", ""]])
    train.main([*RUN, "--out", "run", "--fixes", "fixes.csv"])
    assert [fix["to"] for fix in config("run")["fixes"]] == ["=1+1", None]


def test_without_fixes_nothing_of_the_run_changes(workspace):
    """The control of the split: the same rows as data.split gives."""
    train.main([*RUN, "--out", "run"])
    _, val = data.split(table := data.read("d"), 0.2, 0)
    assert runs.read("run").predictions.paths.tolist() == [table.paths[i] for i in val]


# --- compare.py ------------------------------------------------------------------------------------------------------


def test_compare_judges_runs_with_and_without_fixes_on_the_same_labels(workspace, capsys):
    rows = [["fix", f"d/class0/{i:02d}.png", "class0", "class1"] for i in range(6)]
    rows += [["drop", "d/class1/00.png", "class1", ""]]
    write_fixes("fixes.csv", rows)
    argv = ["--vary", "fixes=,fixes.csv", "--seeds", "0,1", "--out", "c", "--", *RUN, "--folds", "2"]
    lines = compare.main(argv)
    assert lines[1]["verdict"] != "different images"
    out = capsys.readouterr().out
    assert "7 corrections of the runs, of which 1 leave an image out" in out
    assert "judged on the same labels" in Path("c/compare.md").read_text() + Path("c/compare.html").read_text()
    plain = runs.read("c/fixes=_default_/seed0").predictions
    fixed = {f"d/class0/{i:02d}.png" for i in range(6)}
    targets = torch.tensor([1 if p in fixed else t for p, t in zip(plain.paths.tolist(), plain.targets, strict=True)])
    kept = torch.from_numpy(plain.paths != "d/class1/00.png")
    preds = torch.from_numpy(plain.probs.argmax(1))
    f1 = compare.metrics.f1_score(preds[kept], targets[kept], 3)
    scores = {(row["combination"], row["seed"]): float(row["f1"]) for row in rows_of("c/runs.csv")}
    assert scores["fixes=(default)", "0"] == pytest.approx(f1) != pytest.approx(plain.matrix.f1())


def test_compare_leaves_out_images_that_two_tables_fix_differently(tmp_path, make_run):
    probs, targets = calibrated_set(0, N=60)
    found = []
    for name, to in (("a", "class 1"), ("b", "class 2"), ("c", None)):
        run = make_run(tmp_path / name, probs.astype(np.float32), targets)
        fixes = [
            {"image": "images/0.jpg", "from": "class 0", "to": to},
            {"image": "images/1.jpg", "from": "x", "to": "class 3"},
        ]
        change(run / "config.json", fixes=fixes[: 2 if name == "a" else 1])
        found.append(compare.Combination(name, [], {0: compare.make_result(runs.read(run))}))
    judged, note = compare.with_same_labels(found)
    for combination in judged:
        one = combination.results[0].predictions
        assert "images/0.jpg" not in one.paths and one.targets[one.paths == "images/1.jpg"] == 3
        assert len(one.paths) == 59
    assert note and compare.with_same_labels(found[:1]) == (found[:1], "")


@pytest.mark.parametrize("fixes", [[1], [{"image": "a"}], [{"image": "a", "from": "b", "to": 3}], {"a": 1}])
def test_damaged_fixes_in_a_config_are_named(tmp_path, make_run, fixes):
    run, _ = made(tmp_path, make_run, fixes=fixes)
    with pytest.raises(runs.BadInput, match="fixes"):
        runs.read(run)

"""compare.py: real differences are found, others are not, and no run is trained twice or lost."""

import csv
import math
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from urllib.parse import unquote

import interval
import numpy as np
import pytest
from conftest import Stream
from PIL import Image
from test_page import checked

import compare
import metrics
import runs

ROOT = Path(__file__).resolve().parent.parent

# --- what is compared ------------------------------------------------------------------------------------------------


def combinations_of(*argv):
    options = compare.parse_options(argv)
    return compare.make_combinations(options.vary, options.seeds, options.out, options.shared)


def test_every_combination_on_every_seed_in_the_order_given(tmp_path):
    argv = ("--vary", "loss=ce,focal", "--vary", "accum=1,4", "--seeds", "0,7", "--out", str(tmp_path))
    found = combinations_of(*argv, "--", "--epochs", "3")
    names = [f"loss={loss} accum={accum}" for loss in ("ce", "focal") for accum in (1, 4)]
    assert [combination.name for combination in found] == names
    options = [job.options for combination in found for job in combination.jobs]
    first = [(o["loss"], o["accum"], o["seed"]) for o in options[:4]]
    assert first == [("ce", 1, 0), ("ce", 1, 7), ("ce", 4, 0), ("ce", 4, 7)]
    assert {o["epochs"] for o in options} == {3} and len({o["out"] for o in options}) == 8


def test_a_value_may_bring_options_and_an_empty_one_leaves_the_option_out():
    found = combinations_of("--vary", "loss=ce,ce --class-weights inverse --smoothing 0.1", "--vary", "clip=,5")
    options = [combination.jobs[0].options for combination in found]
    chosen = [(o["class_weights"], o["smoothing"], o["clip"]) for o in options]
    assert chosen == [("none", None, None), ("none", None, 5), ("inverse", 0.1, None), ("inverse", 0.1, 5)]
    assert found[0].name == "loss=ce clip=(default)"


def test_a_value_may_name_the_run_of_the_same_seed():
    found = combinations_of("--vary", "init=,runs/a/seed{seed} --freeze backbone", "--seeds", "3,5")
    assert [[job.options["weights"] for job in combination.jobs] for combination in found] == [
        ["none", "none"],
        ["runs/a/seed3", "runs/a/seed5"],
    ]
    assert found[1].name == "init=runs/a/seed{seed} --freeze backbone"


@pytest.mark.parametrize(
    "argv, message",
    [
        ([], "--vary is missing"),
        (["--vary", "los=ce"], "--los is not an option of train.py that can be varied. Did you mean --loss?"),
        (["--vary", "seed=0,1"], "--seed is not an option of train.py that can be varied."),
        (["--vary", "loss=ce,ce"], "--vary loss=ce,ce: the value 'ce' is listed twice"),
        (["--vary", "loss=ce,focl"], "unknown loss 'focl'"),
        (["--vary", "accum=1,none"], "invalid int value: 'none'"),
        (["--vary", "gamma=1,2", "--", "--loss", "ce"], "gamma"),
        (["--vary", "loss=ce", "--seeds", "a"], "--seeds must be integers separated by commas"),
        (["--vary", "loss=ce", "--jobs", "0"], "--jobs must be at least 1, got 0"),
        (["--vary", "loss=ce", "--seeds", "1,1"], "--seeds: seed 1 is listed twice"),
        (["--vary", "loss=ce", "--epochs", "3"], "--epochs"),
        (["--vary", "loss=ce", "--", "--preview", "x.png"], "--preview cannot be used after --"),
        (["--vary", "loss=ce,ce --preview x.png"], "--preview cannot be used in --vary loss=ce,ce --preview x.png"),
        (["--vary", "loss=ce,ce --seed 5"], "--seed cannot be used in --vary"),
        (["--vary", "loss"], "--vary loss has no values: write NAME=VALUE,VALUE"),
        (["--vary", "loss=ce 'x"], "--vary loss=ce 'x: No closing quotation"),
        (["--vary", "loss=ce", "--vary", "loss=focal"], "--vary loss=focal: --loss is listed twice"),
        (["--vary", "loss=ce,focal", "--", "--criterion", "f1"], "--vary loss=ce,focal: --loss is listed twice"),
        (["--vary", "loss=ce --accum 4", "--vary", "accum=1,2"], "--accum is listed twice in the combination loss=ce"),
        (["--vary", "loss=ce", "--", "--seed=3"], "--seed cannot be used after --"),
        (["--vary", "batch_size=8,16", "--", "--batch-size", "4"], "--batch-size is listed twice"),
        (["--vary", "model=a b,a_b"], "unrecognized arguments: b"),
        (["--vary", "transform=a:f,a_f"], "two combinations would share the folder"),
        (["--vary", "loss=ce,ce "], "two combinations would share the folder"),
        (["--vary", "model=resnet18," + "x" * 300], "would have a name of more than 255 bytes"),
    ],
)
def test_what_cannot_be_compared_is_refused_before_anything_is_trained(tmp_path, argv, message, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        compare.main(argv)
    assert stop.value.code == 2 and message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


# --- the judgement ---------------------------------------------------------------------------------------------------


def predictions_of(rng, targets, paths, skill, C, easy=0.0):
    """Predictions of one run, correct with a probability that is around `skill` and differs by class and image."""
    right = rng.random(len(targets)) < (skill + 0.04 * rng.standard_normal(C))[targets] + easy
    preds = np.where(right, targets, rng.integers(C, size=len(targets)))
    return compare.Predictions(paths, targets, preds, C)


def experiment(number, seeds=3, gain=0.0, N=400, C=8, difficulty=0.0):
    """Predictions of two combinations, `seeds` runs each, on the same images, some of them easier for all runs."""
    rng = np.random.default_rng([number, seeds])
    targets = rng.choice(C, N, p=np.arange(1, C + 1) / (C * (C + 1) / 2))
    paths = np.array([f"{number}/{i}" for i in range(N)])
    easy = difficulty * np.random.default_rng(number).standard_normal(N)
    skills = (0.6, 0.6 + gain)
    return [{s: predictions_of(rng, targets, paths, skill, C, easy) for s in range(seeds)} for skill in skills]


def test_rows_that_differ_only_by_seed_are_within_noise_in_nine_of_ten():
    verdicts = [compare.difference(*experiment(number)).verdict for number in range(100)]
    assert verdicts.count("within noise") >= 90


def test_resampling_the_seeds_too_would_call_noise_a_difference():
    """The control: the percentile bootstrap of three differences, as it is often used."""
    rng, wrong = np.random.default_rng(0), 0
    for number in range(100):
        first, other = experiment(number)
        differences = np.array([other[s].f1 - first[s].f1 for s in first])
        means = rng.choice(differences, (1000, 3)).mean(1)
        low, high = np.quantile(means, [0.025, 0.975])
        wrong += not low <= 0 <= high
    assert wrong > 15


def test_a_planted_difference_is_found_and_has_its_sign():
    for gain, verdict in ((0.2, "better"), (-0.2, "worse")):
        found = [compare.difference(*experiment(number, 5, gain)) for number in range(20)]
        assert sum(change.verdict == verdict for change in found) >= 18
        assert all(change.low < change.mean < change.high for change in found)


def test_more_seeds_make_the_interval_shorter():
    def length(seeds):
        found = (compare.difference(*experiment(n, seeds)) for n in range(10))
        return np.mean([change.high - change.low for change in found])

    assert length(8) < 0.6 * length(3)


def test_runs_on_other_images_are_said_to_be_so():
    first, other = experiment(0, gain=0.3)
    changed = {s: compare.Predictions(np.char.add(o.paths, "x"), o.targets, o.preds, 8) for s, o in other.items()}
    assert compare.difference(first, other).verdict == "better"
    assert compare.difference(first, changed).verdict == "different images"
    relabelled = {s: compare.Predictions(o.paths, (o.targets + 1) % 8, o.preds, 8) for s, o in other.items()}
    assert compare.difference(first, relabelled).verdict == "different images"


def test_one_seed_shows_nothing_however_large_the_difference():
    change = compare.difference(*experiment(0, seeds=1, gain=0.3))
    assert change.low > 0 and change.verdict == "one seed is not enough"


def test_only_seeds_of_both_rows_count():
    first, other = experiment(0, seeds=5)
    del first[0], other[4]
    assert compare.difference(first, other).seeds == 3
    with pytest.raises(ValueError, match="no seed in common"):
        compare.difference({0: first[1]}, {1: other[1]})


def test_the_same_images_in_another_order_are_the_same_draws():
    one = experiment(0)[0][0]
    order = np.random.default_rng(1).permutation(len(one.targets))
    shuffled = compare.Predictions(one.paths[order], one.targets[order], one.preds[order], 8)
    assert np.array_equal(one.resampled_f1, shuffled.resampled_f1)
    others = compare.Predictions(np.char.add(one.paths, "x"), one.targets, one.preds, 8)
    assert not np.array_equal(one.resampled_f1, others.resampled_f1)


def test_a_resample_is_scored_as_metrics_scores_it():
    one = experiment(0)[0][0]
    times = np.stack([compare.times_drawn(path) for path in one.paths])
    assert times.shape == (400, compare.SAMPLES) == (400, len(one.resampled_f1))
    for b in range(0, compare.SAMPLES, 20):
        rows = np.repeat(np.arange(400), times[:, b])
        assert len(set(rows)) < 300 < len(rows)
        expected = metrics.f1_score(one.preds[rows], one.targets[rows], 8)
        assert one.resampled_f1[b] == pytest.approx(expected, abs=1e-12)


def test_how_often_an_image_is_drawn_is_a_poisson_number_of_its_path_alone():
    times = np.stack([compare.times_drawn(f"data/{i}.jpg") for i in range(500)])  # of 500,000
    expected = [math.exp(-1) / math.factorial(k) for k in range(5)]
    assert np.bincount(times.ravel())[:5] / times.size == pytest.approx(expected, abs=0.003)
    others = np.corrcoef(times)[np.triu_indices(500, 1)]
    assert abs(others.mean()) < 1e-3 and abs(others).max() < 0.2
    assert abs(np.corrcoef(times.T[:300])[np.triu_indices(300, 1)]).max() < 0.25
    assert compare.times_drawn("\udcff.jpg").shape == (compare.SAMPLES,)  # a file name that is not UTF-8


def test_runs_on_the_same_images_are_compared_pair_by_pair():
    """Two almost equal models differ little on every sample, but not if their samples have different images."""
    first = experiment(0, seeds=5, difficulty=0.4)[0]
    other = {}
    for seed, one in first.items():
        preds = one.preds.copy()
        preds[:4] = (preds[:4] + 1) % 8
        other[seed] = compare.Predictions(one.paths, one.targets, preds, 8)
    apart = {s: compare.Predictions(np.char.add(o.paths, "x"), o.targets, o.preds, 8) for s, o in other.items()}
    paired, unpaired = compare.difference(first, other), compare.difference(first, apart)
    assert paired.mean == unpaired.mean and paired.high - paired.low < 0.7 * (unpaired.high - unpaired.low)


# --- the interval: seeds, and images that the seeds share ------------------------------------------------------------


def test_students_t_has_the_quantiles_of_the_tables():
    tabled = {1: 12.7062, 2: 4.3027, 3: 3.1824, 4: 2.7764, 9: 2.2622, 30: 2.0423}
    assert {freedom: round(compare.student_t(freedom), 4) for freedom in tabled} == tabled


def test_the_interval_worked_number():
    # differences 0.01 and 0.03: s / sqrt(2) = 0.01, t = 12.7062; covariance of the two 0.0004: 1.96 * 0.02 = 0.0392
    differences = np.array([0.01, 0.03])
    half = compare.half_width(differences, np.array([[0.0009, 0.0004], [0.0004, 0.0009]]))
    assert half == pytest.approx(math.hypot(0.127062, 0.0391993), abs=1e-6)
    one = compare.half_width(differences[:1], np.array(0.0009))
    assert one == pytest.approx(1.959964 * 0.03, abs=1e-6)


def test_a_runs_own_errors_on_images_are_not_counted_twice():
    """They are in the spread of the seeds' differences. Without shared images, the interval is that of a paired t."""
    differences = np.array([0.01, 0.03, 0.05])
    paired_t = compare.student_t(2) * 0.02 / math.sqrt(3)
    for variance, shared in ((0.0, 0.0), (0.01, 0.0), (0.01, -0.0001)):
        covariance = np.where(np.eye(3), variance, shared)
        assert compare.half_width(differences, covariance) == pytest.approx(paired_t)
    assert compare.half_width(differences, np.where(np.eye(3), 0.01, 0.0001)) > 1.01 * paired_t  # it can be larger


def test_the_interval_of_runs_that_share_no_errors_is_close_to_that_of_a_paired_t():
    ratios = []
    for number in range(10):
        first, other = experiment(number, seeds=5)
        change, found = [other[s].f1 - first[s].f1 for s in first], compare.difference(first, other)
        ratios.append((found.high - found.low) / (2 * 2.7764 * np.std(change, ddof=1) / math.sqrt(5)))
    assert min(ratios) > 0.9999 and np.mean(ratios) < 1.1


def test_seeds_share_the_images_that_they_have_in_common_also_with_different_splits():
    rng = np.random.default_rng(0)
    easy, targets = 0.4 * rng.standard_normal((2, 900)), rng.integers(5, size=900)
    paths = np.array([str(i) for i in range(900)])
    rows = [np.arange(600) + start for start in (0, 300)]  # two splits with 300 images in common

    def run(part, k):
        return predictions_of(rng, targets[part], paths[part], 0.6, 5, easy[k, part])

    changes = [run(part, 1).resampled_f1 - run(part, 0).resampled_f1 for part in (*rows, rows[0])]
    covariance = np.cov(changes)
    assert covariance[0, 2] == pytest.approx(2 * covariance[0, 1], rel=0.5)
    assert 0.1 * covariance[0, 0] < covariance[0, 1] < covariance[0, 2] < covariance[0, 0]


@pytest.mark.parametrize("image_effect", (0.0, 0.7))
def test_simulated_false_alarms_are_rare(image_effect):
    """The control: if the setting changes single images, a paired t alarms often. tests/interval.py has all rows."""
    found = interval.verdicts(200, 300, 0.2, image_effect, 0.0, samples=200)
    alarms = {S: dict(zip(interval.RULES, rows.mean(0), strict=True)) for S, rows in found.items()}
    assert all(alarms[S]["compare.py"] <= 0.07 for S in (2, 3, 5, 10))
    assert (alarms[10]["paired t"] > 0.1) == (image_effect > 0)


def test_simulated_power_is_close_to_a_paired_t_and_above_the_sum_of_both_parts():
    found = interval.verdicts(300, 300, 0.2, 0.0, 0.4, samples=200)
    for S in (3, 5):
        both_added, paired_t, ours = found[S].mean(0)
        assert both_added + 0.05 < ours <= paired_t < ours + 0.06


def test_the_simulation_scores_and_judges_as_compare_does():
    rng = np.random.default_rng(0)
    targets, preds = interval.simulate(rng, 1, 3, 200, 0.2, 0.7, 0.25)
    paths = np.array([str(i) for i in range(200)])
    first, other = ({s: compare.Predictions(paths, targets[0], preds[0, s, k], 10) for s in range(3)} for k in (0, 1))
    times = np.stack([compare.times_drawn(path) for path in paths], 1)  # (samples, images)
    f1 = interval.macro_f1(targets, preds, np.concatenate([np.ones_like(times[:1]), times]).astype(np.float32))[0]
    change = f1[:, 1] - f1[:, 0]
    found = compare.difference(first, other)
    assert change[:, 0].mean() == pytest.approx(found.mean, abs=1e-6)
    *_, half = interval.half_widths(change[:, 0], np.cov(change[:, 1:]))
    assert half == pytest.approx(found.high - found.mean, rel=1e-4)


def test_the_table_has_means_over_the_seeds_and_differences_to_the_baseline():
    both = experiment(0, seeds=5, gain=0.2)
    combinations = [compare.Combination(name, []) for name in "abc"]  # c has no finished run
    for combination, predictions in zip(combinations, both, strict=False):
        for seed, one in predictions.items():
            scores = dict.fromkeys(compare.SCORES, 2.0) | {"f1": one.f1}
            combination.results[seed] = compare.Result(None, one, scores, [])
    first, other, empty = compare.table(combinations)
    change = compare.difference(*both)
    assert first["verdict"] == "(baseline)" and first["difference"] is None and first["seeds"] == 5
    assert other["f1"] == pytest.approx(np.mean([one.f1 for one in both[1].values()])) and other["last_f1"] == 2
    assert (other["difference"], other["low"], other["high"]) == (change.mean, change.low, change.high)
    assert other["difference"] == pytest.approx(other["f1"] - first["f1"]) and other["verdict"] == "better"
    assert compare.cells(other)[4:7] == [f"{change.mean:+.4f}", f"{change.low:+.4f} to {change.high:+.4f}", "better"]
    assert compare.cells(empty) == ["c", "0", *[""] * 9] and len(compare.HEAD) == 11
    assert compare.group_cells([first, other, empty]) == []  # not long-tailed
    for seed, result in combinations[1].results.items():
        result.scores |= {key: seed + i for i, key in enumerate(compare.GROUP_SCORES)}
    rows = compare.group_cells(compare.table(combinations))
    assert rows == [["a", *[""] * 6], ["b", *(f"{2 + i:.4f}" for i in range(6))], ["c", *[""] * 6]]


# --- the whole -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    folder, rng = tmp_path_factory.mktemp("compare"), np.random.default_rng(0)
    for i in range(60):
        file = folder / "data" / "abc"[i % 3] / f"{i}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8) // 3 + 80 * (i % 3)).save(file)
    return folder


def arguments(images, out, *argv, more=()):
    shared = ["--data", str(images / "data"), "--size", "16", "--model", "resnet8", "--batch-size", "8"]
    shared += ["--cache", str(images / "cache"), "--threads", "1", *more]
    return [*argv, "--out", str(out), "--", *shared]


def launch(images, out, *argv, more=()):
    command = [sys.executable, str(ROOT / "compare.py"), *arguments(images, out, *argv, more=more)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=images)


def finished(process, code=0):
    out, err = process.communicate(timeout=300)
    assert process.returncode == code, (out, err)
    return out, err


@pytest.fixture(scope="module")
def comparison(images):
    """Two combinations that train and two that cannot, each with two seeds."""
    out = images / "out"
    argv = ("--vary", "augment=none,light", "--vary", "transform=,nowhere.py:f", "--seeds", "0,1")
    printed, err = finished(launch(images, out, *argv, more=["--epochs", "2"]), code=1)
    return out, argv, printed, err


def test_the_tables_hold_the_runs_figures(comparison):
    out, _, printed, _ = comparison
    names = ["augment=none transform=(default)", "augment=light transform=(default)"]
    with open(out / "runs.csv", newline="") as file:
        each = list(csv.DictReader(file))
    assert [(row["combination"], row["seed"]) for row in each] == [(name, seed) for name in names for seed in "01"]
    for row in each:
        run = runs.read(row["folder"])
        assert float(row["f1"]) == pytest.approx(max(line["val_f1"] for line in run.log))
        lowest = min(run.log, key=lambda line: line["val_loss"])
        assert float(row["best_loss_f1"]) == lowest["val_f1"] and float(row["last_f1"]) == run.log[-1]["val_f1"]
    with open(out / "compare.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    for name, row in zip(names, (rows[0], rows[2]), strict=True):
        f1 = [float(line["f1"]) for line in each if line["combination"] == name]
        assert row["combination"] == name and row["seeds"] == "2"
        assert (row["macro F1"], row["std"]) == (f"{np.mean(f1):.4f}", f"{np.std(f1, ddof=1):.4f}")
        assert name in printed and row["macro F1"] in printed
    assert rows[0]["verdict"] == "(baseline)" and rows[2]["verdict"] in ("better", "worse", "within noise")
    change = [float(each[2 + s]["f1"]) - float(each[s]["f1"]) for s in (0, 1)]
    assert rows[2]["difference"] == f"{np.mean(change):+.4f}"
    text = (out / "compare.md").read_text("utf-8")
    assert "python compare.py --vary augment=none,light" in text and rows[2]["95 % interval"] in text


def test_a_run_that_fails_is_named_and_the_rest_goes_on(comparison):
    out, _, printed, err = comparison
    assert printed.count("failed with exit code 2: train.py: error: --transform") == 4
    assert (
        "failed runs: 4\n" in err and str(out / "augment=none_transform=nowhere.py_f" / "seed0" / "output.txt") in err
    )
    with open(out / "compare.csv", newline="") as file:
        assert [row["seeds"] for row in csv.DictReader(file)] == ["2", "0", "2", "0"]


def test_the_page_is_well_formed_and_links_to_every_run(comparison):
    out = comparison[0]
    text = (out / "compare.html").read_text("utf-8")
    checked(text)
    links = [unquote(link) for link in re.findall(r'href="([^"#]+)"', text)]
    assert len(links) == 4 and all((out / link).exists() for link in links)


def test_the_same_command_again_trains_nothing_and_another_is_refused(images, comparison):
    out, argv, _, _ = comparison
    argv = [*argv[:2], *argv[4:]]  # without the combinations that fail: so the folders have different names
    before = {path: path.stat().st_mtime_ns for path in out.glob("*/seed*/last.pt")}
    renamed = images / "renamed"
    renamed.mkdir()
    for name in ("none", "light"):
        (renamed / f"augment={name}").symlink_to(out / f"augment={name}_transform=_default_")
    printed, _ = finished(launch(images, renamed, *argv, more=["--epochs", "2"]))
    assert printed.count("already finished") == 4
    assert before == {path: path.stat().st_mtime_ns for path in out.glob("*/seed*/last.pt")} and len(before) == 4
    _, err = finished(launch(images, renamed, *argv, more=["--epochs", "3"]), code=2)
    assert re.search(r"compare.py: error: .*seed0 contains a run with --epochs 2, not 3", err)


def test_a_notebook_cell_gets_the_table(images, comparison, monkeypatch):
    out, argv, _, _ = comparison
    folder = images / "notebook"
    folder.mkdir()
    for name in ("none", "light"):
        (folder / f"augment={name}").symlink_to(out / f"augment={name}_transform=_default_")
    streams = Stream(), Stream()
    monkeypatch.setattr(sys, "stdout", streams[0])
    monkeypatch.setattr(sys, "stderr", streams[1])
    table = compare.main(arguments(images, folder, *argv[:2], *argv[4:], more=["--epochs", "2"]))
    assert [(line["combination"], line["seeds"]) for line in table] == [("augment=none", 2), ("augment=light", 2)]
    each = {(row["combination"], row["seed"]): float(row["f1"]) for row in csv.DictReader(open(folder / "runs.csv"))}
    f1 = [[each[f"augment={name}", seed] for seed in "01"] for name in ("none", "light")]
    assert [line["f1"] for line in table] == pytest.approx([np.mean(values) for values in f1])
    assert [line["std"] for line in table] == pytest.approx([np.std(values, ddof=1) for values in f1])
    assert table[1]["difference"] == pytest.approx(np.mean(f1[1]) - np.mean(f1[0]))
    assert table[1]["low"] <= table[1]["difference"] <= table[1]["high"]
    assert table[0]["difference"] is None and table[0]["verdict"] == "(baseline)"
    assert "already finished" in streams[0].text and f"{table[1]['f1']:.4f}" in streams[0].text
    assert streams[1].text == ""


def test_a_bug_keeps_its_traceback(monkeypatch):
    def bug(*arguments):
        raise ValueError("a bug")

    monkeypatch.setattr(compare, "make_combinations", bug)
    with pytest.raises(ValueError, match="a bug"):
        compare.main(["--vary", "loss=ce"])


def test_a_damaged_run_is_one_line(tmp_path, capsys):
    job = combinations_of("--vary", "loss=ce", "--seeds", "0", "--out", str(tmp_path))[0].jobs[0]
    job.folder.mkdir(parents=True)
    (job.folder / "config.json").write_text("{")
    with pytest.raises(SystemExit) as stop:
        compare.main(["--vary", "loss=ce", "--seeds", "0", "--out", str(tmp_path)])
    assert stop.value.code == 2 and "config.json is damaged" in capsys.readouterr().err


def test_a_run_is_blamed_for_its_last_attempt_alone_and_no_table_is_promised_without_a_result(images, tmp_path):
    argv, out = ("--vary", "loss=ce", "--seeds", "0"), tmp_path / "out"
    printed, _ = finished(launch(images, out, *argv, more=["--transform", "nowhere.py:f"]), code=1)
    assert "train.py: error: --transform" in printed and "files:" not in printed and not (out / "compare.md").exists()
    output = out / "loss=ce" / "seed0" / "output.txt"
    assert compare.error_line(output, 0).startswith("train.py: error: --transform")
    assert compare.error_line(output, output.stat().st_size) == "no output"


def test_an_error_line_is_printable_and_not_endless(tmp_path):
    output = tmp_path / "output.txt"
    output.write_text("train.py: error: \x1b[2J" + "x" * 5000 + "\nafter\n")
    line = compare.error_line(output, 0)
    assert line.startswith("train.py: error: ?[2Jxxx") and line.endswith("x ...") and len(line) == 304


def test_a_cut_run_goes_on_with_what_may_change(images, tmp_path):
    argv, more, out = ("--vary", "loss=ce", "--seeds", "0"), ["--epochs", "3"], tmp_path / "out"
    finished(launch(images, out, *argv, more=more))
    log = out / "loss=ce" / "seed0" / "log.csv"
    log.write_text("".join(log.read_text().splitlines(keepends=True)[:2]))  # as if it had been cut after epoch 1
    finished(launch(images, out, *argv, more=[*more, "--tensorboard", "--save-every", "2"]))
    assert list(log.parent.glob("tensorboard/*")) and log.read_text().count("\n") == 4
    assert runs.read(log.parent).options["save_every"] == 2


def test_what_was_stopped_is_resumed_and_ends_the_same(images, tmp_path):
    argv, more = ("--vary", "loss=ce", "--seeds", "0"), ["--epochs", "40"]
    process = launch(images, tmp_path / "cut", *argv, more=more)
    log = tmp_path / "cut" / "loss=ce" / "seed0" / "log.csv"
    deadline = time.time() + 120
    while not log.exists() and time.time() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    _, err = finished(process, code=128 + signal.SIGTERM)
    assert "Run the same command again to continue" in err and log.read_text().count("\n") < 41
    assert "train.py: stopped by SIGTERM" in (log.parent / "output.txt").read_text()
    finished(launch(images, tmp_path / "cut", *argv, more=more))
    finished(launch(images, tmp_path / "whole", *argv, more=more))
    logs = [list(csv.reader(open(tmp_path / name / "loss=ce" / "seed0" / "log.csv"))) for name in ("cut", "whole")]
    assert len(logs[0]) == 41 and [row[:-2] for row in logs[0]] == [row[:-2] for row in logs[1]]


def test_a_run_is_not_trained_by_two_at_once_even_if_the_first_comparison_was_killed(tmp_path):
    output = tmp_path / "output.txt"
    code = f"""
import os, sys
from pathlib import Path
import compare
sleep = [sys.executable, "-c", "import time; time.sleep(600)"]
with compare.launch(lambda: sleep, Path({str(output)!r})) as process:
    print(process.pid, flush=True)
    os._exit(9)  # as SIGKILL would: nothing is cleaned up
"""
    killed = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert killed.returncode == 9
    with pytest.raises(runs.BadInput, match=f"another process is training the run in {tmp_path}"):
        with compare.launch(lambda: [sys.executable, "-c", ""], output):
            pass
    os.kill(int(killed.stdout), signal.SIGKILL)
    deadline = time.time() + 60
    while time.time() < deadline:  # until the system has released the lock
        try:
            with compare.launch(lambda: [sys.executable, "-c", ""], output) as process:
                assert process.wait() == 0
            return
        except runs.BadInput:
            time.sleep(0.1)
    pytest.fail("still locked")


def test_the_same_command_twice_at_once_shares_the_runs(images):
    out, argv = images / "shared", ("--vary", "loss=ce,focal", "--seeds", "0,1")
    both = [launch(images, out, *argv, more=["--epochs", "2"]) for _ in range(2)]
    printed = [finished(process)[0] for process in both]
    for text in printed:  # each waits for the other and has the whole table
        assert text.count("macro F1 0.") + text.count("macro F1 1.") == 4 and re.search(r"^4/4 ", text, re.M)
    for folder in out.glob("loss=*/seed*"):
        assert (folder / "output.txt").read_text().count("macro F1  accuracy") == 1, folder  # trained once
    trained = [4 - text.count("finished by another process") - text.count("already finished") for text in printed]
    assert sum(trained) == 4 and min(trained) >= 1


def test_jobs_trains_several_at_once_and_a_failed_run_is_still_named(images):
    out, argv = images / "jobs", ("--vary", "loss=ce,focal", "--vary", "transform=,nowhere.py:f", "--seeds", "0")
    printed, err = finished(launch(images, out, *argv, "--jobs", "2", more=["--epochs", "2"]), code=1)
    assert printed.count("macro F1 ") >= 2 and "failed runs: 2" in err
    with open(out / "compare.csv", newline="") as file:
        assert [row["seeds"] for row in csv.DictReader(file)] == ["1", "0", "1", "0"]


def test_a_run_that_failed_for_another_process_is_not_tried_again_but_by_the_next_command(images, tmp_path):
    argv = ["--data", str(images / "nowhere"), "--cache", str(images / "cache")]
    first, second = (compare.make_combinations([("loss", ["ce"])], [0], tmp_path, argv)[0].jobs[0] for _ in range(2))
    with compare.tqdm(total=60, disable=True) as bar:
        assert compare.train(first, bar) == 2
        output = (first.folder / "output.txt").read_text()
        code, text = compare.train_and_describe(second, bar)  # began before that
        assert code == 2 and "failed with exit code 2: train.py: error: --data" in text
        assert (first.folder / "output.txt").read_text() == output
        second.failure = second.read_failure()  # began after that
        assert compare.train(second, bar) == 2
    assert (first.folder / "output.txt").read_text() == 2 * output


def test_head_medium_and_tail_are_those_of_the_training_images(images):
    out = images / "tail"
    argv = arguments(images, out, "--vary", "loss=ce", "--seeds", "0", more=["--epochs", "1", "--imbalance", "8"])
    (line,) = compare.main(argv)
    run = runs.read(out / "loss=ce" / "seed0")
    assert run.train_counts() == [16, 5, 2]
    f1, recall = run.predictions.matrix.f1("none").tolist(), run.predictions.matrix.recall("none").tolist()
    assert [line[key] for key in compare.GROUP_SCORES] == pytest.approx([*f1, *recall])
    with open(out / "compare.csv", newline="") as file:
        (row,) = csv.DictReader(file)
    assert row["head F1"] == f"{f1[0]:.4f}" and row["tail accuracy"] == f"{recall[2]:.4f}"
    with open(out / "runs.csv", newline="") as file:
        (row,) = csv.DictReader(file)
    assert float(row["medium_accuracy"]) == pytest.approx(recall[1])
    assert "| loss=ce | " + " | ".join(f"{n:.4f}" for n in (*f1, *recall)) in (out / "compare.md").read_text("utf-8")
    checked((out / "compare.html").read_text("utf-8"))


def test_several_folds_are_one_run(images, tmp_path):
    printed, _ = finished(
        launch(images, tmp_path / "out", "--vary", "loss=ce", "--seeds", "0", more=["--folds", "2", "--epochs", "1"])
    )
    run = runs.read(tmp_path / "out" / "loss=ce" / "seed0")
    assert len(run.predictions.targets) == 60 and f"macro F1 {run.predictions.matrix.f1():.4f}" in printed


def test_the_time_that_is_left_is_said_shortly():
    assert [compare.duration(s) for s in (12.3, 600, 9000)] == ["12 s", "10 min", "2.5 h"]

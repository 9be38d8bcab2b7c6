"""The tables of tests/posthoc.py, whose figures are in results/."""

import numpy as np
import posthoc
import pytest
from test_predict import soft

import improvements
import metrics


@pytest.fixture
def three(make_run, tmp_path):
    """Runs of three seeds on the same 600 images, each with errors of its own."""
    made = [soft(noise=1.2, seed=seed) for seed in range(3)]
    for seed, (probs, targets) in enumerate(made):
        make_run(tmp_path / f"seed{seed}", probs, targets)
    return tmp_path, np.stack([probs for probs, _ in made]).astype(np.float64), made[0][1]


def rows(printed):
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in printed.splitlines()[2:]]


def f1(probs, targets):
    return metrics.f1_score(probs.argmax(1), targets, 4)


def test_averages_are_those_of_all_choices_of_runs(three, capsys):
    folder, probs, targets = three
    posthoc.main([str(folder), "--average"])
    table = rows(capsys.readouterr().out)
    alone = np.mean([f1(part, targets) for part in probs])
    pairs = np.mean([f1(probs[[a, b]].mean(0), targets) for a, b in ((0, 1), (0, 2), (1, 2))])
    every = f1(probs.mean(0), targets)
    assert [row[:3] for row in table] == [
        ["1", "3", f"{alone:.4f}"],
        ["2", "3", f"{pairs:.4f}"],
        ["3", "1", f"{every:.4f}"],
    ]
    assert table[0][3:] == ["(baseline)", ""] and table[2][3] == f"{every - alone:+.4f}"
    low, high = map(float, table[2][4].split(" to "))
    rng, gains = np.random.default_rng(0), []
    for _ in range(400):  # an ordinary bootstrap of the images
        i = rng.integers(0, len(targets), len(targets))
        gains.append(f1(probs.mean(0)[i], targets[i]) - np.mean([f1(part[i], targets[i]) for part in probs]))
    assert [low, high] == pytest.approx(np.quantile(gains, [0.025, 0.975]), abs=0.02) and low > 0.05


def test_runs_of_different_images_are_not_averaged(three, make_run):
    folder, probs, targets = three
    make_run(folder / "seed3", probs[0].astype(np.float32), targets, [f"other/{i}.jpg" for i in range(len(targets))])
    with pytest.raises(SystemExit, match="different validation images"):
        posthoc.main([str(folder), "--average"])


def test_each_run_is_the_baseline_of_its_own_adjustment(three, capsys):
    folder, probs, targets = three
    posthoc.main([str(folder), "--tau", "1", "auto"])
    counts, table = [1000, 500, 333, 250], rows(capsys.readouterr().out)
    before = np.array([f1(part, targets) for part in probs])
    after = np.array([f1(improvements.adjust_prior(part, counts, 1), targets) for part in probs])
    assert table[0][:3] == ["0", "3", f"{before.mean():.4f}"] and table[0][6] == "(baseline)"
    assert table[1][:3] == ["1", "3", f"{after.mean():.4f}"] and table[1][4] == f"{(after - before).mean():+.4f}"
    assert abs(after.mean() - before.mean()) > 1e-4
    assert table[2][:2] == ["auto", "3"] and float(table[2][2]) != float(table[1][2])

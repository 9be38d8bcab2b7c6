"""shares.py, and predict.py --test-shares: the estimate has known answers, and what is promised comes true."""

import re
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
from test_predict import PARSER, competition, here, parent, predictions, refused, run, write_csv  # noqa: F401

import improvements
import metrics
import predictors
import runs
import shares

TAIL, UNIFORM = np.array([0.6, 0.25, 0.1, 0.04, 0.01]), np.full(5, 0.2)


def images(N, true, seed, noise=0.5, assumed=TAIL):
    """Probabilities (N, 5) that assume the shares `assumed`, and targets, of a set with the shares `true`."""
    rng = np.random.default_rng(seed)
    targets = rng.choice(5, N, p=true)
    x = np.eye(5)[targets] + noise * rng.normal(size=(N, 5))
    return shares.calibrated(np.exp(x / noise**2), 1.0, np.log(assumed)), targets


# --- the estimate ----------------------------------------------------------------------------------------------------


def test_em_finds_the_shares_that_are_known_by_hand():
    p = np.array([[0.8, 0.2], [0.8, 0.2], [0.2, 0.8]])
    # likelihood (0.8 q + 0.2 (1 - q))^2 (0.2 q + 0.8 (1 - q)): the first factor is 2/3 at its maximum, so q = 7/9
    assert shares.estimate_shares(p, [0.5, 0.5], tolerance=1e-12) == pytest.approx([7 / 9, 2 / 9], abs=1e-6)
    assert shares.estimate_shares(p, [5, 5], tolerance=1e-12) == pytest.approx([7 / 9, 2 / 9], abs=1e-6)  # counts too
    # the same images, from a classifier that assumes other shares: the same answer, if it is told them
    q, tilted = np.array([0.9, 0.1]), shares.adjust(p, [0.5, 0.5], [0.9, 0.1])
    assert shares.estimate_shares(tilted, q, tolerance=1e-12) == pytest.approx([7 / 9, 2 / 9], abs=1e-6)
    assert abs(shares.estimate_shares(tilted, [0.5, 0.5])[0] - 7 / 9) > 0.1


def test_em_ends_within_its_tolerance_of_the_maximum():
    probs, _ = images(500, UNIFORM, seed=0, noise=1.0)
    best = shares.estimate_shares(probs, TAIL, tolerance=1e-12, rounds=100_000)

    def likelihood(q):
        return np.log(probs / TAIL @ q).sum()

    for tolerance in (1.0, 0.01):
        gap = likelihood(best) - likelihood(shares.estimate_shares(probs, TAIL, tolerance))
        assert 0 <= gap <= tolerance
    rng = np.random.default_rng(0)
    assert likelihood(best) >= max(likelihood(rng.dirichlet(np.ones(5))) for _ in range(200))


def test_with_the_shares_of_training_it_stays_there():
    inside = moved = 0
    for seed in range(8):
        probs, _ = images(1500, TAIL, seed)
        low, high, draws = shares.shares_interval(probs, TAIL, samples=100)
        assert draws.shape == (100, 5) and np.allclose(draws.sum(1), 1)
        inside += ((low <= TAIL) & (TAIL <= high)).sum()
        low, high, _ = shares.shares_interval(images(1500, UNIFORM, seed)[0], TAIL, samples=100)
        moved += ((low <= TAIL) & (TAIL <= high)).sum()
    assert inside >= 34 and moved <= 16  # of 40; the share 0.25 is near 0.2


def test_the_interval_is_that_of_estimates_on_images_drawn_again():
    probs, _ = images(300, UNIFORM, seed=1, noise=0.7)
    *_, draws = shares.shares_interval(probs, TAIL, samples=5, seed=3)
    counts = np.random.default_rng(3).multinomial(300, np.full(300, 1 / 300), 5)
    for n, draw in zip(counts, draws, strict=True):
        assert shares.estimate_shares(np.repeat(probs, n, axis=0), TAIL) == pytest.approx(draw, abs=0.005)


@pytest.mark.parametrize("assumed", [TAIL, UNIFORM, TAIL**2 / (TAIL**2).sum()])
def test_the_prior_that_probabilities_assume_is_read_from_validation(assumed):
    """A log-prior loss assumes uniform shares, a sampler or class weights something else: no rule for each."""
    val, targets = images(4000, TAIL, seed=0, assumed=assumed)
    overconfident = shares.calibrated(images(4000, UNIFORM, seed=1, assumed=assumed)[0], 2.0, np.zeros(5))
    scale, bias, prior = shares.calibration(shares.calibrated(val, 2.0, np.zeros(5)), targets)
    assert scale == pytest.approx(0.5, abs=0.07)
    assert prior == pytest.approx(np.bincount(targets) / 4000, abs=1e-3)
    found = shares.estimate_shares(shares.calibrated(overconfident, scale, bias), prior)
    assert found == pytest.approx(UNIFORM, abs=0.03)
    if assumed is not TAIL:  # the shares of training are the wrong prior here
        assert abs(shares.estimate_shares(overconfident, TAIL) - UNIFORM).max() > 0.1


def test_calibration_is_a_minimum_and_a_class_without_an_image_stays_finite():
    probs, targets = images(400, TAIL, seed=0)
    probs, targets = probs[targets < 4], targets[targets < 4]
    scale, bias, prior = shares.calibration(probs, targets, ridge=0.1)
    assert np.isfinite(bias).all() and (prior > 0).all() and prior.sum() == pytest.approx(1)

    def cost(scale, bias):
        p = shares.calibrated(probs, scale, bias)[np.arange(len(targets)), targets]
        return -np.log(p).sum() + 0.05 * ((bias**2).sum() + (scale - 1) ** 2)

    rng = np.random.default_rng(0)
    for size in (0.001, 0.1):
        assert all(cost(scale, bias) < cost(scale + s, bias + b) for s, *b in size * rng.normal(size=(50, 6)))


def test_information_is_1_for_a_perfect_classifier_and_names_what_is_not_told_apart():
    targets = np.arange(60) % 3
    value, _ = shares.information(np.eye(3)[targets], np.full(3, 1 / 3), targets)
    assert value == pytest.approx(1)
    blind = np.where(np.eye(3)[targets][:, :1] > 0, [[1.0, 0, 0]], [[0, 0.5, 0.5]])
    value, direction = shares.information(blind, np.full(3, 1 / 3), targets)
    assert value == pytest.approx(0, abs=1e-9) and abs(direction) == pytest.approx([0, 0.5**0.5, 0.5**0.5])
    strong, weak = (
        shares.information(*images(3000, TAIL, 0, noise)[:1], TAIL, images(3000, TAIL, 0)[1])[0] for noise in (0.4, 1.5)
    )
    assert strong > 0.5 > improvements.WEAK > weak


# --- weighted validation ---------------------------------------------------------------------------------------------


def test_integer_weights_are_repeated_rows():
    probs, targets = images(300, TAIL, seed=0)
    weights = np.random.default_rng(0).integers(0, 5, 300)
    again = np.repeat(np.arange(300), weights)
    assert improvements.macro_f1(probs, targets, weights) == improvements.macro_f1(probs[again], targets[again])
    assert improvements.macro_f1(probs, targets, weights) != improvements.macro_f1(probs, targets)
    log_p = np.log(probs)
    assert np.array_equal(
        improvements.fit_bias(log_p, targets, weights=weights), improvements.fit_bias(log_p[again], targets[again])
    )
    pair = np.stack([probs, images(300, TAIL, seed=0, noise=0.6)[0]])
    blended = improvements.blend_weights(pair, targets, weights=weights)
    assert blended == pytest.approx(improvements.blend_weights(pair[:, again], targets[again]), abs=1e-9)


def test_weighted_validation_is_validation_drawn_again_with_these_shares():
    probs, targets = images(3000, TAIL, seed=0)
    judge = improvements.Judge(UNIFORM, images=3000)
    weights = judge.weights(targets)
    assert np.bincount(targets, weights) / weights.sum() == pytest.approx(UNIFORM)
    rng = np.random.default_rng(0)
    of_class = [np.flatnonzero(targets == c) for c in range(5)]
    again = np.concatenate([rng.choice(of_class[c], 40_000) for c in range(5)])
    resampled = improvements.macro_f1(probs[again], targets[again])
    assert judge.macro_f1(probs, targets) == pytest.approx(resampled, abs=0.003)
    assert abs(improvements.macro_f1(probs, targets) - resampled) > 0.05


def test_the_interval_is_centred_on_what_is_promised():
    """The macro F1 of classes with few images is lower, on the average, if they are drawn again."""
    (val, targets), judge = images(300, TAIL, seed=0), improvements.Judge(UNIFORM, images=300)
    matrix = metrics.ConfusionMatrix(5).update(val.argmax(1), targets).matrix.numpy()
    drawn, value = improvements.f1_of(shares.promised_counts(matrix, UNIFORM, 300)), judge.macro_f1(val, targets)
    low, high = np.quantile(drawn, [0.025, 0.975])
    assert abs(drawn.mean() - value) > 0.004  # the control: there is something to correct
    assert judge.interval(val, targets) == pytest.approx((low + value - drawn.mean(), high + value - drawn.mean()))


def test_the_interval_is_wider_for_fewer_test_images_and_for_shares_that_are_estimated():
    val, targets = images(3000, TAIL, seed=0)
    draws = np.random.default_rng(0).dirichlet(20 * UNIFORM, 200)

    def width(*about):
        low, high = improvements.Judge(UNIFORM, *about).interval(val, targets)
        return high - low

    assert width(None, 50) > 1.5 * width(None, 500) > 1.5 * 1.02 * width(None, 10**6)
    assert width(draws, 500) > 1.1 * width(None, 500)


def test_what_is_promised_comes_true_within_its_interval_and_without_the_shares_it_does_not():
    kept = {"uniform": 0, "estimate": 0, "as they are": 0}
    for seed in range(20):
        (val, targets), (test, test_targets) = images(9000, TAIL, 2 * seed), images(1000, UNIFORM, 2 * seed + 1)
        measured = improvements.macro_f1(test, test_targets)
        *_, draws = shares.shares_interval(test, TAIL, samples=50)
        judges = {
            "uniform": improvements.Judge(UNIFORM, None, 1000),
            "estimate": improvements.Judge(shares.estimate_shares(test, TAIL), draws, 1000),
            "as they are": improvements.Judge(),
        }
        for name, judge in judges.items():
            low, high = judge.interval(val, targets)
            kept[name] += low <= measured <= high
    assert kept["uniform"] >= 17 and kept["estimate"] >= 17 and kept["as they are"] <= 5


def test_prior_adjust_auto_finds_tau_under_the_stated_shares(capsys):
    val, targets = images(6000, TAIL, seed=0, noise=0.6)
    counts, crossed = (1000 * TAIL).astype(int).tolist(), improvements.CrossFitted.of(val, targets)
    uniform, _ = improvements.choose_tau(crossed, counts, improvements.Judge(UNIFORM))
    assert uniform == pytest.approx(1.0, abs=0.35)
    reverse, _ = improvements.choose_tau(crossed, counts, improvements.Judge(TAIL[::-1].copy()))
    train, after = improvements.choose_tau(crossed, counts, improvements.AS_THEY_ARE)
    assert train < uniform < reverse
    fits = [float(tau) for tau in re.findall(r"tau (\S+) and (\S+),", capsys.readouterr().out)[-1]]
    first, second = crossed.halves
    for part, tau in ((first, fits[1]), (second, fits[0])):  # each half is judged by the tau of the other
        assert np.array_equal(after.judged[part], improvements.adjust_prior(val[part], counts, tau))
    already = improvements.CrossFitted.of(shares.adjust(val, TAIL, UNIFORM), targets)  # as of a log-prior loss
    assert abs(improvements.choose_tau(already, counts, improvements.Judge(UNIFORM))[0]) < 0.35


COUNTS = (1000 * TAIL).astype(int).tolist()


@pytest.fixture
def two():
    """Predictions of two networks for the same validation images, probs (2, 1500, 5), and their group for `weigh`."""
    val, targets = images(1500, TAIL, seed=0, noise=0.8)
    x = np.eye(5)[targets] + 0.8 * np.random.default_rng(1).normal(size=(1500, 5))  # of a second network
    other = shares.calibrated(np.exp(x / 0.8**2), 1.0, np.log(TAIL))
    network = SimpleNamespace(saved={"train_counts": COUNTS, "favours_rare": []})
    return runs.Predictions(np.arange(1500).astype(str), targets, np.stack([val, other])), [[network], [network]]


def test_each_half_is_judged_by_a_blend_a_tau_and_biases_that_were_all_fitted_on_the_other_half(two, capsys):
    (common, groups), judge = two, improvements.Judge(UNIFORM)
    probs, targets, test = common.probs, common.targets, common.probs[:, :100]
    result, val = improvements.weigh(["a", "b"], test, common, groups, True, "auto", True, True, judge)
    printed = capsys.readouterr().out
    taus = [float(tau) for tau in re.findall(r"tau (\S+) and (\S+),", printed)[-1]]
    of_images, found = judge.weights(targets), []
    for part, tau in zip(improvements.CrossFitted.of(probs[0], targets).halves, taus, strict=True):
        w = improvements.blend_weights(probs[:, part], targets[part], of_images[part])  # by hand: all fitted on `part`
        version = improvements.adjust_prior(np.tensordot(w, probs, 1), COUNTS, tau)
        b = improvements.fit_bias(np.log(version[part].astype(float)), targets[part], weights=of_images[part])
        assert np.allclose(val.probs[~part], improvements.add_bias(version, b)[~part], atol=1e-5)
        assert not np.allclose(val.probs[part], improvements.add_bias(version, b)[part], atol=0.01)  # the control
        found.append((w, b))
    (w1, b1), (w2, b2) = found
    assert abs(w1[0] - w2[0]) > 0.005 and abs(taus[0] - taus[1]) > 0.01
    for i, weight in enumerate((w1 + w2) / 2):
        assert f"--blend: weight {weight:.3f}, macro F1 alone {judge.macro_f1(probs[i], targets):.4f}" in printed
    blended = improvements.adjust_prior(np.tensordot((w1 + w2) / 2, test, 1), COUNTS, np.mean(taus))
    assert np.allclose(result, improvements.add_bias(blended, (b1 + b2) / 2), atol=1e-6)
    before = judge.macro_f1(probs.mean(0), targets)
    assert f"--blend: macro F1 on 1,500 validation images{judge.about} {before:.4f} -> " in printed
    assert f"-> {judge.macro_f1(val.probs, targets):.4f}, does not help, used because" in printed.splitlines()[-1]
    assert f"with cross-fitted biases: macro F1 {judge.macro_f1(val.probs, targets):.4f} " in printed


@pytest.mark.parametrize("tau", ["auto", 1.0])
def test_what_does_not_help_changes_neither_the_predictions_nor_the_promise(two, monkeypatch, tau):
    (common, groups), asked = two, []
    monkeypatch.setattr(improvements, "try_first", lambda name, *more, **judge: asked.append(name))
    result, val = improvements.weigh(["a", "b"], common.probs, common, groups, True, tau, True)
    assert len(asked) == 3 and np.allclose(result, common.probs.mean(0), atol=1e-6)
    assert np.allclose(val.probs, common.probs.mean(0), atol=1e-6)
    monkeypatch.setattr(improvements, "try_first", lambda *a, **k: True)  # the control
    result, val = improvements.weigh(["a", "b"], common.probs, common, groups, True, tau, True)
    for changed in (result, val.probs):
        assert not np.allclose(changed, common.probs.mean(0), atol=0.05)


def test_a_stated_tau_is_used_for_the_promise_and_for_later_fits(two, monkeypatch):
    common, groups = two
    mean = improvements.adjust_prior(common.probs.mean(0), COUNTS, 0.5)
    given, tune_bias = [], improvements.tune_bias
    monkeypatch.setattr(improvements, "tune_bias", lambda val, *more: given.append(val) or tune_bias(val, *more))
    _, val = improvements.weigh(["a", "b"], common.probs, common, groups, False, 0.5, False, True)
    improvements.weigh(["a", "b"], common.probs, common, groups, False, 0.5, True, True)
    assert np.allclose(val.probs, mean, atol=1e-6) and not np.allclose(common.probs.mean(0), mean, atol=0.05)
    assert all(np.allclose(version, mean, atol=1e-6) for version in given[0].versions)


def test_each_half_has_every_class_that_has_two_images():
    for seed in range(20):
        targets = np.random.default_rng(seed).permutation([*range(8), *range(8), 8])
        first, second = improvements.CrossFitted.of(np.zeros((17, 9)), targets, seed).halves
        assert np.array_equal(first, ~second) and abs(int(first.sum()) - int(second.sum())) == 1
        assert all({*range(8)} <= {*targets[half].tolist()} for half in (first, second))


def test_shares_of_a_group_are_those_of_its_classes():
    class Child:
        saved = {"labels": ["0", "1"], "classes": ["r", "g"], "train_counts": [10, 30]}
        saved |= {"all_labels": ["0", "1", "2"], "all_classes": ["r", "g", "b"]}

    merged = {"labels": ["0+1", "2"], "classes": ["r+g", "b"]}
    mixing = improvements.refined_mixing(merged, [[Child]], "0,1")  # to b, r, g
    assert (mixing @ [0.8, 0.2]).tolist() == pytest.approx([0.2, 0.2, 0.6])
    assert ((mixing > 0).T @ np.array([0.5, 0.3, 0.2])).tolist() == pytest.approx([0.5, 0.5])
    single = {"labels": ["1", "0", "2"], "classes": ["g", "r", "b"]}
    mixing = improvements.refined_mixing(single, [[Child]], "0,1")
    assert (mixing @ [0.3, 0.5, 0.2]).tolist() == [0.2, 0.5, 0.3]
    judge = improvements.Judge(np.array([0.3, 0.5, 0.2]), np.array([[0.3, 0.5, 0.2]])).after(mixing)
    assert judge.shares.tolist() == [0.2, 0.5, 0.3] and judge.draws.tolist() == [[0.2, 0.5, 0.3]]


# --- predict.py ------------------------------------------------------------------------------------------------------


def share_file(folder, *rows):
    write_csv(folder / "q.csv", [dict(zip(("class", "share"), row, strict=True)) for row in rows])
    return folder / "q.csv"


@pytest.mark.parametrize(
    "rows, message",
    [
        ([("red", 0.5), ("green", 0.5)], "has no share for the class 'blue': add a row for each of the 3 classes"),
        (
            [("red", 0.5), ("green", -0.1), ("blue", 0.6)],
            "the share of 'green' must be a number from 0 to 1, got '-0.1'",
        ),
        ([("red", 0.5), ("green", "x"), ("blue", 0.5)], "the share of 'green' must be a number from 0 to 1, got 'x'"),
        ([("red", "nan"), ("green", 0.5), ("blue", 0.5)], "the share of 'red' must be a number from 0 to 1, got 'nan'"),
        ([("red", 0.5), ("green", 0.2), ("blue", 0.2)], "the shares must have the sum 1, got 0.9"),
        ([("red", 0.5), ("green", 0.2), ("pink", 0.3)], "'pink' is not a class of the model; it has red, green, blue"),
        ([("red", 0.3), ("green", 0.4), ("blue", 0.3), ("red", 0.3)], "the same class is listed twice"),
    ],
)
def test_a_wrong_file_of_shares_is_one_line_before_an_image_is_decoded(here, capsys, monkeypatch, rows, message):  # noqa: F811
    monkeypatch.setattr(predictors, "decoded", lambda *arguments: pytest.fail("decodes"))
    file = share_file(here, *rows)
    text = refused(capsys, "five", "--data", "comp", "--test-shares", file, "--out", here / "s.csv")
    assert text.startswith(f"predict.py: error: --test-shares: {file}") and message in text and "\n" not in text


def test_a_file_of_shares_that_is_not_one_is_one_line(here, capsys):  # noqa: F811
    text = refused(capsys, "five", "--data", "comp", "--test-shares", "equal", "--out", here / "s.csv")
    assert "--test-shares: equal is not a file: choose train, uniform, estimate, or a CSV with" in text
    text = refused(capsys, "five", "--data", "comp", "--test-shares", "answers.csv", "--out", here / "s.csv")
    assert "answers.csv has the columns ID, target: it needs the columns class, share" in text
    text = refused(capsys, "one", "five", "--data", "comp", "--test-shares", "uniform", "--out", here / "s.csv")
    assert "--test-shares: five and one have different validation images" in text
    text = refused(capsys, "one", "--data", "comp", "--prior-adjust", "most", by=PARSER)
    assert "--prior-adjust" in text and "'most'" in text


def promised(here, capsys, *words):  # noqa: F811
    result = run("five", "--data", "comp", "--out", here / "s.csv", *words)
    return result, capsys.readouterr()


def test_predict_judges_and_promises_under_the_shares_of_the_test_set(here, capsys):  # noqa: F811
    plain, (out, _) = promised(here, capsys, "--tune-bias")
    assert "promised" not in out and "promised_f1" not in plain and "weighted" not in out
    changes = ("--tta", "flip", "--prior-adjust", "auto", "--tune-bias")
    uniform, (out, _) = promised(here, capsys, *changes, "--test-shares", "uniform", "--answers", "answers.csv")
    assert out.count("90 validation images weighted by --test-shares") == 3
    low, high = uniform["promised_interval"]
    line = (
        f"promised macro F1 on the 41 test images: {uniform['promised_f1']:.4f} (95 % interval {low:.4f} to {high:.4f})"
    )
    assert line in out and low <= uniform["macro_f1"] <= high
    file = share_file(here, ("0", "0.3333"), ("1", "0.3333"), ("2", "0.3334"))  # labels, instead of names
    same, _ = promised(here, capsys, *changes, "--test-shares", file)
    assert same["promised_f1"] == pytest.approx(uniform["promised_f1"], abs=1e-3)
    other, (out, _) = promised(
        here, capsys, "--test-shares", share_file(here, ("red", 0.98), ("green", 0.02), ("blue", 0))
    )
    assert re.search(r"red +0\.3\d+ +0\.9800", out) and other["promised_f1"] < uniform["promised_f1"]


def test_predict_estimates_the_shares_and_warns_if_the_model_is_too_weak(here, capsys, monkeypatch):  # noqa: F811
    result, (out, err) = promised(here, capsys, "--test-shares", "estimate")
    found = [float(share) for share in re.findall(r"^(?:red|green|blue) +0\.\d+ +(0\.\d+) \(0\.", out, re.M)]
    assert found == pytest.approx([14 / 41, 14 / 41, 13 / 41], abs=0.1) and "promised_f1" in result
    assert "told apart least: " in out and "warning" not in err
    monkeypatch.setattr(improvements, "WEAK", 1.1)
    _, (_, err) = promised(here, capsys, "--test-shares", "estimate")
    assert err.count("warning: --test-shares estimate: the model is too weak") == 1


def test_runs_whose_labels_differ_are_a_warning_that_names_whose_labels_count(here, capsys, tmp_path):  # noqa: F811
    """As a run with train.py --fixes, and one without."""
    shutil.copytree("one", tmp_path / "fixed")
    found = dict(np.load(tmp_path / "fixed/val_probs.npz"))
    found["targets"][0] = (found["targets"][0] + 1) % 3
    np.savez(tmp_path / "fixed/val_probs.npz", **found)
    run("one", tmp_path / "fixed", "--data", "comp", "--blend", "--out", here / "s.csv")
    warning = capsys.readouterr().err
    assert f"fixed and one have different labels for 1 validation images, such as {found['paths'][0]}" in warning
    assert "all is measured with the labels of one" in warning
    run("one", "one", "--data", "comp", "--blend", "--out", here / "s.csv")
    assert "different labels" not in capsys.readouterr().err


def test_predict_gives_the_interval_the_draws_of_estimated_shares(here, capsys, monkeypatch):  # noqa: F811
    found, draws = np.full(3, 1 / 3), np.random.default_rng(0).dirichlet(np.ones(3), 100)
    about = found, [draws.min(0), draws.max(0)], draws
    monkeypatch.setattr(improvements, "estimated_shares", lambda *arguments: about)
    judges, kept = improvements.judges, []
    monkeypatch.setattr(improvements, "judges", lambda *arguments: kept.extend(judges(*arguments)) or kept)
    promised(here, capsys, "--test-shares", "estimate")
    assert all(np.array_equal(judge.draws, draws) and judge.images == 41 for judge in kept) and len(kept) == 2


def test_blend_weights_are_fitted_under_the_shares_of_the_test_set(here, capsys, monkeypatch):  # noqa: F811
    given, blend_weights = [], improvements.blend_weights
    monkeypatch.setattr(improvements, "blend_weights", lambda *a: given.append(a[1:]) or blend_weights(*a))
    file = share_file(here, ("red", 0.8), ("green", 0.1), ("blue", 0.1))
    run("one", "one", "--data", "comp", "--blend", "--test-shares", file, "--out", here / "s.csv")
    targets = improvements.validation_of("one").targets
    expected = shares.weights_for(targets, [0.8, 0.1, 0.1])
    halves = improvements.CrossFitted.of(np.zeros((len(targets), 3)), targets).halves
    for (of_half, weights), half in zip(given, halves, strict=True):
        assert np.array_equal(of_half, targets[half]) and np.array_equal(weights, expected[half])
    assert np.ptp(expected) > 0.5


def test_refine_is_judged_under_the_shares_of_its_classes(here, capsys, parent):  # noqa: F811
    words = (parent, "--data", "comp", "--refine", "pair", "--when", "red,1", "--out", here / "s.csv")
    for test_shares in ("uniform", "train", "estimate", share_file(here, ("red", 0.2), ("green", 0.3), ("blue", 0.5))):
        result = run(*words, "--test-shares", test_shares)
        printed = capsys.readouterr().out
        assert (
            "--refine: macro F1 on" in printed and "weighted by --test-shares" in printed and result["promised_f1"] > 0
        )


def test_the_views_that_are_used_are_those_of_the_promise(monkeypatch, capsys):
    """Later changes, and the promise, are measured on validation images with the views that the test images get."""
    before = predictions(list("ab"), [0, 1], [[0.4, 0.6], [0.4, 0.6]])
    monkeypatch.setattr(improvements, "validation_of", lambda argument: before)
    better = np.array([[[0.9, 0.1], [0.1, 0.9]]])
    monkeypatch.setattr(predictors, "predict_probs", lambda *arguments: better)
    network = type("Network", (), {"shape": (8, 8, "squash"), "path": "x"})
    common = runs.Predictions(before.paths, before.targets, before.probs[None])
    tta, common = improvements.choose_tta("flip", [[network]], None, 8, None, False, common)
    assert tta == "flip" and np.allclose(common.probs, better)


def test_every_network_estimates_with_its_own_calibration(monkeypatch, capsys):
    """So networks that assume different class priors agree, and the interval contains what they differ in."""
    networks, stored, test = [], {}, []
    for seed, assumed in enumerate((TAIL, UNIFORM)):  # cross-entropy, and a log-prior loss
        network = type("Network", (), {"path": f"fold{seed}"})
        val, targets = images(9000, TAIL, seed, assumed=assumed)
        stored[network.path] = predictions([str(i) for i in range(9000)], targets, val)
        networks.append(network)
        test.append(images(2000, UNIFORM, seed=9, assumed=assumed)[0])
    monkeypatch.setattr(improvements, "validation_of", stored.get)
    found, (low, high), draws = improvements.estimated_shares(networks, np.stack(test), list("abcde"))
    assert found == pytest.approx(UNIFORM, abs=0.03) and (low < found).all() and (found < high).all()
    for i in (0, 1):  # the draws are those of both
        alone, *_ = improvements.estimated_shares(networks[i : i + 1], np.stack(test[i : i + 1]), list("abcde"))
        assert draws[100 * i : 100 * (i + 1)].mean(0) == pytest.approx(alone, abs=0.005)
    average = shares.estimate_shares(np.mean(test, 0), TAIL)
    assert abs(average - UNIFORM).max() > abs(found - UNIFORM).max() + 0.02
    assert capsys.readouterr().out.count("--test-shares estimate: information 0.") == 3

"""Changes to the probabilities that predict.py measures on validation images before it uses them.

Blending, test-time augmentation, post-hoc logit adjustment, biases for macro F1, a second run for a few classes
(--refine), each judged by a Judge: on the validation images as they are, or as they would be in a test set with other
class shares (--test-shares). What is fitted to validation images is cross-fitted: fitted on one half, measured on the
other.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

import cli
import data
import metrics
import pixels
import predictors
import runs
import shares
from predictors import Predictor
from ranks import Ranks
from runs import BadInput

# ---------------------------------------------------------------------------------------------------------------------
# How a change is judged
# ---------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Judge:
    """Scores of validation images: as they are, or as they would be in a test set with other class shares."""

    shares: np.ndarray | None = None  # (C,) of the test set (--test-shares); None: the validation images as they are
    draws: np.ndarray | None = None  # (B, C), bootstrap of `shares` that are estimated
    images: int = 0  # in the test set

    @property
    def about(self) -> str:
        return "" if self.shares is None else " weighted by --test-shares"

    def weights(self, targets: np.ndarray) -> np.ndarray:
        """(N,) of the validation images with these targets."""
        return np.ones(len(targets)) if self.shares is None else shares.weights_for(targets, self.shares)

    def macro_f1(self, scores: np.ndarray, targets: np.ndarray) -> float:
        return macro_f1(scores, targets, self.weights(targets))

    def interval(self, scores: np.ndarray, targets: np.ndarray) -> tuple[float, float]:
        """(low, high): 95 % bootstrap interval of the macro F1; with shares, of that of the test set."""
        matrix = metrics.ConfusionMatrix(scores.shape[1]).update(scores.argmax(1), targets)
        if self.shares is None:
            return matrix.f1_interval()
        given = self.shares if self.draws is None else self.draws
        drawn = f1_of(shares.promised_counts(matrix.matrix.numpy(), given, self.images))
        centred = self.macro_f1(scores, targets) + drawn - drawn.mean()
        low, high = np.quantile(centred.clip(0, 1), [0.025, 0.975])
        return float(low), float(high)

    def after(self, mixing: np.ndarray) -> Judge:
        """For other classes, whose shares are mixing (D, C) @ shares (C,)."""
        drawn = None if self.draws is None else self.draws @ mixing.T
        return self if self.shares is None else replace(self, shares=mixing @ self.shares, draws=drawn)


AS_THEY_ARE = Judge()


def f1_of(matrix: np.ndarray) -> np.ndarray:
    """(...) macro F1 of confusion matrices (..., C, C) of any kind of counts, [target, prediction]."""
    tp = np.diagonal(matrix, axis1=-2, axis2=-1)
    return metrics.score_from_counts(tp.copy(), matrix.sum(-2), matrix.sum(-1)).numpy()


def macro_f1(scores: np.ndarray, targets: np.ndarray, weights: np.ndarray | None = None) -> float:
    """Of scores (N, C) and targets (N,), by default with equal weights (N,)."""
    C = scores.shape[1]
    counts = np.bincount(targets * C + scores.argmax(1), weights, C * C)
    return float(f1_of(counts.reshape(C, C)))


@dataclass(frozen=True)
class CrossFitted:
    """Probabilities of validation images in two versions: changed by what was fitted on each half of the images.

    So each image is judged by what was fitted without it, and the next change is fitted on each half's own version.
    """

    targets: np.ndarray  # (N,)
    halves: np.ndarray  # bool (2, N)
    versions: np.ndarray  # (2, N, C), or (2, N, A, C) of A arguments

    @classmethod
    def of(cls, probs: np.ndarray, targets: np.ndarray, seed: int = 0) -> CrossFitted:
        """Of probs (N, ...) to which nothing was fitted yet. Every class is in both halves, if it has two images."""
        order = np.lexsort((np.random.default_rng(seed).random(len(targets)), targets))
        half = np.empty(len(targets), dtype=bool)
        half[order] = np.arange(len(targets)) % 2 == 0
        return cls(targets, np.stack([half, ~half]), np.stack([probs, probs]))

    @property
    def judged(self) -> np.ndarray:
        """(N, C): each image as it was changed by what was fitted on the other half. For versions (2, N, C)."""
        return np.where(self.halves[1][:, None], *self.versions)

    def fits(self, fit: Callable[[np.ndarray, np.ndarray, np.ndarray], Any], judge: Judge) -> list[Any]:
        """What fit(probs, targets, weights) finds on each half."""
        parts, weights = zip(self.versions, self.halves, strict=True), judge.weights(self.targets)
        return [fit(version[half], self.targets[half], weights[half]) for version, half in parts]

    def changed(self, change: Callable[[np.ndarray, Any], np.ndarray], found: Sequence[Any]) -> CrossFitted:
        """Each version as change(version, what was found on its half)."""
        return replace(self, versions=np.stack([change(*pair) for pair in zip(self.versions, found, strict=True)]))


def try_first(
    name: str,
    before: np.ndarray,
    after: np.ndarray,
    targets: np.ndarray,
    force: bool,
    why: str = "--force",
    judge: Judge = AS_THEY_ARE,
) -> bool:
    """Whether to use a change: if it improves macro F1 on the validation images, or with `force`. Prints one line."""
    old, new = judge.macro_f1(before, targets), judge.macro_f1(after, targets)
    use = new > old or force
    verdict = "used" if new > old else f"does not help, used because of {why}" if force else "does not help, not used"
    print(f"{name}: macro F1 on {len(targets):,} validation images{judge.about} {old:.4f} -> {new:.4f}, {verdict}")
    return use


# ---------------------------------------------------------------------------------------------------------------------
# Predictions for the validation images
# ---------------------------------------------------------------------------------------------------------------------


def counted_once(parts: list[runs.Predictions]) -> runs.Predictions:
    """The images of all parts, sorted by path. An image of several parts has the mean of their probabilities."""
    found = np.concatenate([part.paths for part in parts])
    paths, first, number, count = np.unique(found, return_index=True, return_inverse=True, return_counts=True)
    targets, probs = (np.concatenate([getattr(part, key) for part in parts]) for key in ("targets", "probs"))
    total = np.zeros((len(paths), probs.shape[1]))
    np.add.at(total, number, probs)
    return runs.Predictions(paths, targets[first], (total / count[:, None]).astype(np.float32))


def validation_of(argument: str) -> runs.Predictions:
    """Predictions for the validation images of one RUN_OR_CHECKPOINT, sorted by path; with several folds, of all folds.

    Raises: BadInput for a checkpoint other than best_f1.pt, or without its run folder.
    """
    parts = []
    for path in predictors.checkpoints_of(argument):
        if path.name != "best_f1.pt":
            raise BadInput(f"{path}: validation predictions are stored only for best_f1.pt: use it")
        file = path.with_name("val_probs.npz")
        if not file.is_file():
            raise BadInput(f"{file} does not exist: validation predictions are read from the run folder")
        parts.append(runs.read_predictions(file))
    return counted_once(parts)


def common_validation(arguments: list[str]) -> runs.Predictions:
    """Predictions for the validation images, which must be the same for all A arguments: probs are (A, N, C).

    Raises: BadInput if they are not.
    """
    parts = [validation_of(argument) for argument in arguments]
    for argument, part in zip(arguments, parts, strict=True):
        if not np.array_equal(part.paths, parts[0].paths):
            raise BadInput(
                f"{argument} and {arguments[0]} have different validation images: train the runs with the same --data, "
                "--seed and split options (--folds, --val-frac, groups, --leaks), or leave this option out"
            )
        differ = np.flatnonzero(part.targets != parts[0].targets)
        if len(differ):
            text = (
                f"warning: {argument} and {arguments[0]} have different labels for {len(differ)} validation images, "
                f"such as {part.paths[differ[0]]} (train.py --fixes): all is measured with the labels of "
                f"{arguments[0]}. Name the run with the right labels first"
            )
            print(cli.printable(text), file=sys.stderr)
    return replace(parts[0], probs=np.stack([part.probs for part in parts]))


# ---------------------------------------------------------------------------------------------------------------------
# The changes
# ---------------------------------------------------------------------------------------------------------------------


def choose_tta(
    tta: str,
    groups: list[list[Predictor]],
    ranks: Ranks,
    batch_size: int,
    threads: int | None,
    force: bool,
    common: runs.Predictions | None = None,
    judge: Judge = AS_THEY_ARE,
) -> tuple[str, runs.Predictions | None]:
    """The views to use: `tta` if they improve macro F1, else "none". Each network predicts its own validation images.

    Returns: the views, and `common` (see common_validation) with them, if they are used and measured.
    Raises: BadInput if a network's images are not square and the views need it, or validation predictions are missing.
    """
    networks = [*chain.from_iterable(groups)]
    for predictor in networks:
        H, W, _ = predictor.shape
        if tta in ("rot4", "d4") and H != W:
            raise BadInput(f"{tta} needs square images, but {predictor.path} has {H} x {W}: choose flip or crops")
    if tta == "none":
        return "none", common
    if force:
        print(f"--tta {tta}: not measured, used because of --force")
        return tta, common
    before = [validation_of(str(predictor.path)) for predictor in networks]  # of the runs themselves, without views
    after = []
    for predictor, val in zip(networks, before, strict=True):
        probs = predictors.predict_probs([[predictor]], tta, ranks, batch_size, threads, val.paths.tolist())[0]
        after.append(replace(val, probs=probs))
    old, new = counted_once(before), counted_once(after)
    use = try_first(f"--tta {tta}", old.probs, new.probs, old.targets, force=False, judge=judge)
    if not use or not common:
        return tta if use else "none", common
    starts = np.cumsum([0, *map(len, groups)])
    parts = [counted_once(after[start : start + len(group)]) for start, group in zip(starts, groups, strict=False)]
    return tta, replace(common, probs=np.stack([part.probs for part in parts]))


def weigh(
    arguments: list[str],
    probs: np.ndarray,
    common: runs.Predictions | None,
    groups: list[list[Predictor]],
    blend: bool = False,
    prior_adjust: float | str | None = None,
    tune: bool = False,
    force: bool = False,
    judge: Judge = AS_THEY_ARE,
) -> tuple[np.ndarray, runs.Predictions | None]:
    """Probabilities (A, N, C) of A arguments into one (N, C): mean or blend, then prior adjustment, then biases.

    Each change is measured on the validation images of `common`, before it is used. Only a prior adjustment with
    `force` does not need them.

    Returns: the probabilities, and those of the validation images, cross-fitted where a change was fitted to them.
    """
    weights, val = np.full(len(probs), 1 / len(probs)), None
    if blend:
        weights, val = choose_blend(arguments, common, force, judge)
    elif common:
        val = CrossFitted.of(common.probs.mean(0), common.targets)
    probs = np.tensordot(weights, probs, 1)
    if prior_adjust is not None:
        warn_of_prior(prior_adjust, chain.from_iterable(groups))
        counts, tau, use = groups[0][0].saved["train_counts"], prior_adjust, True
        if val:
            tau, after = choose_tau(val, counts, judge, prior_adjust)
            name = "--prior-adjust " + (f"auto (tau {tau:g})" if prior_adjust == "auto" else f"{tau:g}")
            use = try_first(name, val.judged, after.judged, val.targets, force, judge=judge)
            val = after if use else val
        probs = adjust_prior(probs, counts, tau) if use else probs
    if tune:
        bias, val = tune_bias(val, force, judge)
        probs = add_bias(probs, bias)
    return probs, replace(common, probs=val.judged) if common else None


def blend_weights(
    probs: np.ndarray, targets: np.ndarray, weights: np.ndarray | None = None, rounds: int = 200
) -> np.ndarray:
    """(A,) weights >= 0 with sum 1 that maximise the likelihood of targets (N,) under the mixture of probs (A, N, C).

    The problem is convex. Expectation maximisation never makes it worse: w_a <- mean of w_a p_a / sum_b w_b p_b.
    The mean is weighted with the images' `weights` (N,), by default equal.
    """
    p = probs[:, np.arange(len(targets)), targets].astype(np.float64).clip(1e-12)  # (A, N) of the true class
    w = np.full(len(p), 1 / len(p))
    for _ in range(rounds):
        parts = w[:, None] * p
        w = np.average(parts / parts.sum(0), axis=1, weights=weights)
    return w


def mixed(probs: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """(N, C): the mean of probs (N, A, C) with weights (A,)."""
    return np.tensordot(probs, weights, (1, 0))


def choose_blend(
    arguments: list[str], common: runs.Predictions, force: bool, judge: Judge
) -> tuple[np.ndarray, CrossFitted]:
    """Weights (A,) of the arguments: the mean of those fitted on each half of the images, or equal if they do not help.

    Returns: them, and the weighted probabilities of the validation images.
    """
    A, alone = len(arguments), CrossFitted.of(common.probs.transpose(1, 0, 2), common.targets)
    equal = np.full(A, 1 / A)
    fits = alone.fits(lambda probs, *about: blend_weights(probs.transpose(1, 0, 2), *about), judge)
    for argument, weight, own_probs in zip(arguments, np.mean(fits, 0), common.probs, strict=True):
        score = f"macro F1 alone {judge.macro_f1(own_probs, common.targets):.4f}"
        print(cli.printable(f"--blend: weight {weight:.3f}, {score}, {argument}"))
    before, after = alone.changed(mixed, [equal, equal]), alone.changed(mixed, fits)
    use = try_first("--blend", before.judged, after.judged, common.targets, force, judge=judge)
    return (np.mean(fits, 0), after) if use else (equal, before)


def log_of(probs: np.ndarray) -> np.ndarray:
    """float64, and finite where a probability is 0."""
    return np.log(probs.astype(np.float64).clip(1e-30))


def adjust_prior(probs: np.ndarray, train_counts: list[int], tau: float) -> np.ndarray:
    """float32 (N, C): softmax(log p - tau log prior), the post-hoc logit adjustment of Menon et al. 2020
    (arXiv:2007.07314), of probs (N, C).
    """
    return shares.calibrated(probs, 1.0, -tau * log_prior(train_counts)).astype(np.float32)


def log_prior(train_counts: list[int]) -> np.ndarray:
    """(C,): log of the share of each class in the training images. A class without images counts as one with one."""
    n = np.maximum(np.array(train_counts, dtype=np.float64), 1)
    return np.log(n / n.sum())


def fit_tau(log_p: np.ndarray, log_pi: np.ndarray, targets: np.ndarray, weights: np.ndarray) -> float:
    """The tau from -1 to 2 with the best weighted macro F1 of argmax(log_p - tau log_pi); on a tie, closest to 0."""
    candidates = sorted(np.linspace(-1, 2, 61).round(2), key=abs)
    return float(max(candidates, key=lambda tau: macro_f1(log_p - tau * log_pi, targets, weights)))


def choose_tau(
    val: CrossFitted, train_counts: list[int], judge: Judge, tau: float | str = "auto"
) -> tuple[float, CrossFitted]:
    """--prior-adjust: `tau`, or for "auto" the mean of those fitted on each half; and `val` with what each half has."""
    taus = [tau, tau]
    if tau == "auto":
        log_pi = log_prior(train_counts)
        taus = val.fits(lambda probs, *about: fit_tau(log_of(probs), log_pi, *about), judge)
        print(f"--prior-adjust auto: tau {taus[0]:g} and {taus[1]:g}, fitted on each half of the validation images")
    return float(np.mean(taus)), val.changed(lambda probs, tau: adjust_prior(probs, train_counts, tau), taus)


def warn_of_prior(prior_adjust: float | str, networks: Iterable[Predictor]) -> None:
    """A sampler, class weights or a loss may have done what --prior-adjust does; "auto" finds that out by itself."""
    corrected = [predictor for predictor in networks if predictor.saved["favours_rare"]]
    if prior_adjust not in (0, "auto") and corrected:
        first = corrected[0]
        flags = " and ".join(first.saved["favours_rare"])
        warning = (
            f"warning: --prior-adjust {prior_adjust:g}: {first.path} was trained with {flags}, which favours rare "
            "classes already, so the class prior may be corrected twice: --prior-adjust auto finds out how much is left"
        )
        print(cli.printable(warning), file=sys.stderr)


def fit_bias(log_p: np.ndarray, targets: np.ndarray, sweeps: int = 3, weights: np.ndarray | None = None) -> np.ndarray:
    """(C,) biases b that improve the macro F1 of argmax(log_p + b), fitted one class at a time.

    Each bias is one of 41 values from -2 to 2; on a tie, the one closest to 0. log_p (N, C), targets (N,), and
    weights of the images (N,), by default equal.
    """
    C, weights = log_p.shape[1], np.ones(len(targets)) if weights is None else weights
    bias, support = np.zeros(C), np.bincount(targets, weights, C)
    candidates = np.array(sorted(np.linspace(-2, 2, 41), key=abs))
    tp, predicted = np.zeros((2, len(candidates) + 1, C))
    for _ in range(sweeps):
        for c in np.flatnonzero(support):
            scores = log_p + bias
            scores[:, c] = -np.inf
            best_other, other = scores.max(1), scores.argmax(1)
            for i, b in enumerate([*candidates, bias[c]]):
                preds = np.where(log_p[:, c] + b > best_other, c, other)
                tp[i] = np.bincount(targets[preds == targets], weights[preds == targets], C)
                predicted[i] = np.bincount(preds, weights, C)
            *tried, current = metrics.score_from_counts(tp, predicted, support).tolist()
            if max(tried) > current + 1e-9:
                bias[c] = candidates[int(np.argmax(tried))]
    return bias


def tune_bias(val: CrossFitted, force: bool, judge: Judge = AS_THEY_ARE) -> tuple[np.ndarray, CrossFitted]:
    """Biases (C,) to add to log-probabilities: the mean of the two fits; zeros if they do not help.

    The biases of each half are measured on the other half. So the printed macro F1 is not too optimistic.

    Returns: the biases, and `val` with them.
    """
    fits = val.fits(lambda probs, targets, weights: fit_bias(log_of(probs), targets, weights=weights), judge)
    after = val.changed(add_bias, fits)
    for name, part in (("without biases", val), ("with cross-fitted biases", after)):
        low, high = judge.interval(part.judged, val.targets)
        value = judge.macro_f1(part.judged, val.targets)
        print(f"--tune-bias {name}: macro F1 {value:.4f} (95 % interval {low:.4f} to {high:.4f})")
    if not try_first("--tune-bias", val.judged, after.judged, val.targets, force, judge=judge):
        return np.zeros(val.versions.shape[2]), val
    return np.mean(fits, 0), after


def add_bias(probs: np.ndarray, bias: np.ndarray) -> np.ndarray:
    """float32 (N, C): softmax(log p + bias) of probs (N, C) and bias (C,)."""
    scaled = probs * np.exp(bias - bias.max())
    return (scaled / scaled.sum(1, keepdims=True)).astype(np.float32)


# ---------------------------------------------------------------------------------------------------------------------
# A second run for a few classes: --refine
# ---------------------------------------------------------------------------------------------------------------------


def refined_classes(
    saved: dict[str, Any], child: dict[str, Any], when: str
) -> tuple[list[int], list[int], dict[str, Any]]:
    """The parent's classes in the group and outside of it, and the parent's `saved` with the new classes and labels.

    Args:
        saved, child: the contents of the checkpoints of the parent, and of the run trained on the group alone (--only).
        when: the classes of the group, separated by commas: labels, or what train.py --only takes, names or numbers.
    Raises: BadInput if `when` is not the child's classes, or the parent does not have them.
    """
    if {word.strip() for word in when.split(",")} != set(child["labels"]):
        every = data.ImageTable([], np.zeros(0, np.int64), [], child["all_classes"], "", labels=child["all_labels"])
        if data.only(every, when).labels != child["labels"]:
            raise BadInput(f"{when!r} are not the classes of the --refine run, which are {', '.join(child['labels'])}")
    labels, merged = saved["labels"], "+".join(child["labels"])
    if merged in labels:
        group = [labels.index(merged)]
    elif set(child["labels"]) <= set(labels):
        group = [labels.index(label) for label in child["labels"]]
    else:
        known = pixels.listed(labels)
        raise BadInput(f"RUN_OR_CHECKPOINT has neither a merged class {merged!r} nor all of {when}; it has:{known}")
    rest = [c for c in range(len(labels)) if c not in group]
    names = {key: [saved[key][c] for c in rest] + list(child[key]) for key in ("classes", "labels")}
    return group, rest, saved | names


def refine(
    probs: np.ndarray, saved: dict[str, Any], child_probs: np.ndarray, child: dict[str, Any], when: str
) -> tuple[np.ndarray, dict[str, Any]]:
    """The parent's probability of a group of classes, divided among them by the child.

    p(c) = p_parent(group) p_child(c). The parent has the group as one class (--merge) or as single classes.

    Args:
        probs, child_probs: probabilities (N, C) of the parent, and of the child for its own classes.
        saved, child, when: see refined_classes.
    Returns: the new probabilities, and `saved` with the new classes and labels.
    """
    group, rest, new_saved = refined_classes(saved, child, when)
    within = probs[:, group].sum(1, keepdims=True) * child_probs
    return np.concatenate([probs[:, rest], within], 1), new_saved


def choose_refine(
    val: runs.Predictions | None,
    saved: dict[str, Any],
    child_argument: str,
    child: dict[str, Any],
    when: str,
    predict_child: Callable[[list[str]], np.ndarray],
    force: bool,
    judge: Judge = AS_THEY_ARE,
) -> tuple[bool, runs.Predictions | None]:
    """Whether to use `refine`: if it improves macro F1 on the parent's validation images, or the parent needs it.

    It is compared with the parent's single classes, or if the parent has merged them, with the share of each class in
    the child's training images. Images of the group count only if they are validation images of the child too.

    Args:
        val: the parent's predictions for its validation images.
        predict_child: image files to the child's probabilities (1, N, C), for images of other classes.
        judge: for the new classes.
    Returns: it, and if it was measured, the refined predictions for the validation images.
    Raises: BadInput if no image of the group is a validation image of both.
    """
    if force:
        print("--refine: not measured, used because of --force")
        return True, None
    own, (group, rest, _) = validation_of(child_argument), refined_classes(saved, child, when)
    row_of = {path: row for row, path in enumerate(own.paths.tolist())}
    row = np.array([row_of.get(path, -1) for path in val.paths.tolist()])
    inside = np.isin(val.targets, group)
    kept = ~inside | (row >= 0)
    if not (inside & kept).any():
        raise BadInput(
            f"no image of the classes {when} is a validation image of both runs, so it cannot be measured: train both "
            "with --folds, or use --force"
        )
    if not kept.all():
        print(f"--refine: validation images left out, because they may be training images of CHILD: {(~kept).sum():,}")
    probs, row, inside, targets = val.probs[kept], row[kept], inside[kept], val.targets[kept]
    child_probs = np.empty((len(probs), len(child["labels"])))
    child_probs[inside] = own.probs[row[inside]]
    child_probs[~inside] = predict_child(val.paths[kept][~inside].tolist())[0]
    place = np.zeros(len(saved["labels"]), np.int64)
    place[rest] = np.arange(len(rest))
    new_targets = np.where(inside, len(rest) + own.targets[row], place[targets])
    is_merged, counts = len(group) == 1, np.array(child["train_counts"])
    within = probs[:, group] * counts / counts.sum() if is_merged else probs[:, group]
    before, (after, _) = np.concatenate([probs[:, rest], within], 1), refine(probs, saved, child_probs, child, when)
    use = try_first("--refine", before, after, new_targets, is_merged, "the merged class", judge)
    return use, runs.Predictions(val.paths[kept], new_targets, after)


# ---------------------------------------------------------------------------------------------------------------------
# Class shares of the test set
# ---------------------------------------------------------------------------------------------------------------------


WEAK = 0.1  # shares.information below it is a warning


def judges(
    test_shares: str | None,
    stated: np.ndarray | None,
    networks: list[Predictor],
    predict_networks: Callable[[], np.ndarray],
    common: runs.Predictions | None,
    saved: dict[str, Any],
    mixing: np.ndarray,
    images: int,
) -> tuple[Judge, Judge]:
    """How changes are judged on validation images: for the classes of `saved` (C), and for those after --refine (D).

    Args:
        stated: shares (D,), see stated_shares.
        predict_networks: the networks' probabilities (K, N, C) for the test images without views.
        common: predictions for the validation images, see common_validation.
        mixing: (D, C), see refined_mixing.
        images: the number of test images.
    """
    if not test_shares:
        return AS_THEY_ARE, AS_THEY_ARE
    counts, low_high = np.array(saved["train_counts"], dtype=np.float64), None
    if test_shares == "estimate":
        found, low_high, draws = estimated_shares(networks, predict_networks(), saved["classes"])
        judge = Judge(found, draws, images)
    else:
        judge = Judge(counts / counts.sum() if stated is None else (mixing > 0).T @ stated, None, images)
    last = judge.after(mixing) if stated is None else replace(judge, shares=stated)
    print_shares(test_shares, counts / counts.sum(), judge.shares, low_high, saved["classes"])
    unseen = [name for c, name in enumerate(saved["classes"]) if judge.shares[c] > 0 and c not in common.targets]
    if unseen:
        names = ", ".join(unseen[:5]) + (", ..." if len(unseen) > 5 else "")
        print(cli.printable(f"note: classes without a validation image, judged as F1 0: {len(unseen)} ({names})"))
    return judge, last


def stated_shares(test_shares: str | None, saved: dict[str, Any]) -> np.ndarray | None:
    """(C,) of --test-shares uniform or FILE, for the classes of `saved`; None for train and estimate.

    Raises: BadInput if the CSV is not one share for each class.
    """
    if test_shares in (None, "train", "estimate"):
        return None
    C, path = len(saved["classes"]), Path(test_shares)
    if test_shares == "uniform":
        return np.full(C, 1 / C)
    if not path.is_file():
        raise BadInput(f"{path} is not a file: choose train, uniform, estimate, or a CSV with the columns class, share")
    rows = data.read_rows(path)
    columns = data.columns_of(path, rows)
    if not {"class", "share"} <= set(columns):
        raise BadInput(f"{path} has the columns {', '.join(rows[0])}: it needs the columns class, share")
    texts = [(row[columns["class"]].strip(), row[columns["share"]].strip()) for row in rows]
    given = dict(texts)
    names = [*map(str, saved["labels" if set(given) <= set(saved["labels"]) else "classes"])]
    unknown, missing = [name for name in given if name not in names], [name for name in names if name not in given]
    if unknown:
        known = ", ".join(names[:20]) + (", ..." if len(names) > 20 else "")
        raise BadInput(f"{path}: {unknown[0]!r} is not a class of the model; it has {known}")
    if missing:
        raise BadInput(f"{path} has no share for the class {missing[0]!r}: add a row for each of the {C} classes")
    if len(given) < len(texts):
        raise BadInput(f"{path}: the same class is listed twice: give each of the {C} classes one row")
    wrong = [(name, text) for name, text in given.items() if not 0 <= as_number(text) <= 1]
    if wrong:
        raise BadInput(f"{path}: the share of {wrong[0][0]!r} must be a number from 0 to 1, got {wrong[0][1]!r}")
    found = np.array([as_number(given[name]) for name in names])
    if abs(found.sum() - 1) > 0.01:
        raise BadInput(f"{path}: the shares must have the sum 1, got {found.sum():.4g}")
    return found / found.sum()


def as_number(text: str) -> float:
    """NaN if it is not a number."""
    try:
        return float(text)
    except ValueError:
        return math.nan


def estimated_shares(
    networks: list[Predictor], probs: np.ndarray, classes: list[str]
) -> tuple[np.ndarray, list[np.ndarray], np.ndarray]:
    """Shares (C,), their interval [low (C,), high (C,)] and draws (B, C), from the K networks' test probabilities.

    Each network is calibrated on its own validation images, and estimates by itself: an average of networks is not
    calibrated as one of them is. The shares are the mean; the draws are those of all networks, so that the interval
    contains the differences of the networks too. probs (K, N, C). Warns if the networks are too weak.
    """
    parts, vals, priors, targets = [], [], [], []
    for predictor, own_probs in zip(networks, probs, strict=True):
        val = validation_of(str(predictor.path))
        scale, bias, prior = shares.calibration(val.probs, val.targets)
        own_probs = shares.calibrated(own_probs, scale, bias)
        samples = max(20, 200 // len(networks))
        *_, draws = shares.shares_interval(own_probs, prior, samples, seed=len(parts))
        parts.append((shares.estimate_shares(own_probs, prior), draws))
        vals.append(shares.calibrated(val.probs, scale, bias))
        priors.append(prior)
        targets.append(val.targets)
    draws = np.concatenate([draws for _, draws in parts])
    told, direction = shares.information(np.concatenate(vals), np.mean(priors, 0), np.concatenate(targets))
    least = " and ".join(str(classes[c]) for c in sorted(np.argsort(-abs(direction))[:2]))
    text = f"information {told:.3f} (1: every image is told for sure), told apart least: {least}"
    print(cli.printable(f"--test-shares estimate: {text}"))
    if told < WEAK:
        print(
            f"warning: --test-shares estimate: the model is too weak to tell all shares (information below {WEAK}), so "
            "the true ones may be outside of the intervals. If you know them, use uniform or a FILE",
            file=sys.stderr,
        )
    return np.mean([found for found, _ in parts], 0), [*np.quantile(draws, [0.025, 0.975], axis=0)], draws


def refined_mixing(saved: dict[str, Any], children: list[list[Predictor]], when: str | None) -> np.ndarray:
    """(D, C) that turns shares of the C classes of `saved` into those of the D classes after --refine.

    The share of a merged class is divided as the child's training images are. Without a child it is the identity.
    """
    C = len(saved["classes"])
    if not children:
        return np.eye(C)
    child = children[0][0].saved
    group, rest, _ = refined_classes(saved, child, when)
    counts = np.maximum(np.array(child["train_counts"], dtype=np.float64), 1)
    inside = np.eye(C)[group]  # (1, C) for a merged class, else (D - len(rest), C)
    return np.concatenate([np.eye(C)[rest], inside if len(group) > 1 else counts[:, None] / counts.sum() * inside])


def print_shares(
    test_shares: str, train: np.ndarray, found: np.ndarray, low_high: list[np.ndarray] | None, classes: list[str]
) -> None:
    """One row per class, at most 20: those whose share differs most from training."""
    names, most = [cli.printable(str(name)) for name in classes], 20
    shown = sorted(np.argsort(-abs(found - train), kind="stable")[:most])
    width = max(len("class shares"), *(len(names[c]) for c in shown))
    title = f"--test-shares {test_shares}" + (" (95 % interval)" if low_high else "")
    print(cli.printable(f"{'class shares':{width}}  training  {title}"))
    for c in shown:
        interval = f" ({low_high[0][c]:.4f} to {low_high[1][c]:.4f})" if low_high else ""
        print(f"{names[c]:{width}}  {train[c]:8.4f}  {found[c]:.4f}{interval}")
    if len(classes) > most:
        print(f"and {len(classes) - most:,} more classes")


def promise(val: runs.Predictions | None, judge: Judge) -> dict[str, Any]:
    """Prints and returns the macro F1 to expect of the test images, with its interval."""
    if val is None:
        print("promised macro F1: not measured, because of --force")
        return {}
    value, (low, high) = judge.macro_f1(val.probs, val.targets), judge.interval(val.probs, val.targets)
    print(
        f"promised macro F1 on the {judge.images:,} test images: {value:.4f} (95 % interval {low:.4f} to {high:.4f}), "
        f"from {len(val.targets):,} validation images"
    )
    return {"promised_f1": value, "promised_interval": (low, high)}

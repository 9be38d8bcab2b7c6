"""metrics.py against scikit-learn, plain loops, and the mistakes that it prevents.

    python -m pytest tests/test_metrics.py

M1 ... M10 are ids of pitfalls, see tests/PITFALLS.md.
"""

import ast
import doctest
import os
import shutil
import subprocess
import sys
import warnings

import numpy as np
import pytest
import sklearn.metrics as sk
import torch

import metrics
from metrics import ConfusionMatrix

TOLERANCE = 1e-12
C = 18
# every way to read a number from a ConfusionMatrix
READERS = {
    "matrix": lambda cm: cm.matrix,
    "support": lambda cm: cm.support(),
    "precision": lambda cm: cm.precision(),
    "recall": lambda cm: cm.recall("micro"),
    "f1": lambda cm: cm.f1(labels=[1, 2]),
    "accuracy": lambda cm: cm.accuracy(),
    "balanced_accuracy": lambda cm: cm.balanced_accuracy(),
    "per_class": lambda cm: cm.per_class(),
    "worst_class": lambda cm: cm.worst_class(),
    "most_confused": lambda cm: cm.most_confused(),
    "f1_interval": lambda cm: cm.f1_interval(samples=10),
    "report": lambda cm: cm.report(),
}


def close(ours, theirs):
    return np.testing.assert_allclose(np.asarray(ours), np.asarray(theirs), rtol=0, atol=TOLERANCE)


def random_case(rng):
    """num_classes, preds, targets: small, imbalanced, often with classes absent from either or from both."""
    num_classes, n = int(rng.integers(2, 11)), int(rng.integers(1, 61))
    targets = rng.choice(num_classes, n, p=rng.dirichlet(np.full(num_classes, 0.5)))
    guesses = rng.choice(num_classes, n, p=rng.dirichlet(np.full(num_classes, 0.5)))
    return num_classes, np.where(rng.random(n) < rng.random(), targets, guesses), targets


def imbalanced(n=2000, num_classes=C, seed=0):
    """preds, targets: long-tailed, every class present, about three quarters right."""
    rng = np.random.default_rng(seed)
    prior = 0.75 ** np.arange(num_classes)
    targets = np.concatenate([np.arange(num_classes), rng.choice(num_classes, n - num_classes, p=prior / prior.sum())])
    preds = np.where(rng.random(n) < 0.7, targets, rng.choice(num_classes, n, p=prior / prior.sum()))
    order = rng.permutation(n)
    return torch.from_numpy(preds[order]), torch.from_numpy(targets[order])


# ---------------------------------------------------------------------------------------------------------------------
# Against scikit-learn


def test_five_thousand_cases_equal_scikit_learn():
    # 50 cases share one call of scikit-learn: each case has class ids of its own, so it has rows of its own
    rng = np.random.default_rng(0)
    for _ in range(100):
        cases = [random_case(rng) for _ in range(50)]
        start = np.cumsum([0] + [num_classes for num_classes, _, _ in cases])
        preds = np.concatenate([preds + s for s, (_, preds, _) in zip(start, cases, strict=False)])
        targets = np.concatenate([targets + s for s, (_, _, targets) in zip(start, cases, strict=False)])
        *scores, supports = sk.precision_recall_fscore_support(
            targets, preds, labels=np.arange(start[-1]), average=None, zero_division=0
        )
        tables = sk.multilabel_confusion_matrix(targets, preds, labels=np.arange(start[-1]))  # [[tn, fp], [fn, tp]]
        ours, theirs = [], []
        for i, (num_classes, preds, targets) in enumerate(cases):
            cm = ConfusionMatrix(num_classes).update(preds, targets)
            support, recall = supports[start[i] : start[i + 1]], scores[1][start[i] : start[i + 1]]
            ours += [cm.accuracy(), cm.balanced_accuracy(), *cm.support()]
            theirs += [np.mean(preds == targets), recall[support > 0].mean(), *support]
            labels = rng.permutation(num_classes)[: rng.integers(1, num_classes + 1)] if i % 2 else None
            rows = start[i] + (np.arange(num_classes) if labels is None else labels)
            support, (_, fp), (fn, tp) = supports[rows], *tables[rows].transpose(1, 2, 0)
            present, weight = tp + fp + fn > 0, support / max(support.sum(), 1)
            micro = tp.sum() / max((tp + fp).sum(), 1), tp.sum() / max((tp + fn).sum(), 1)
            micro = *micro, 2 * tp.sum() / max((2 * tp + fp + fn).sum(), 1)
            for method, score, micro_score in zip((cm.precision, cm.recall, cm.f1), scores, micro, strict=True):
                score = score[rows]
                ours += [method(average, labels) for average in ("macro", "macro_present", "micro", "weighted")]
                theirs += [score.mean(), score[present].sum() / max(present.sum(), 1), micro_score, score @ weight]
                ours += method("none", labels).tolist()
                theirs += score.tolist()
        close(ours, theirs)


def test_averages_and_labels_mean_what_scikit_learn_means_by_them():
    # one call of scikit-learn per case; the cases alternate between five averages, with and without labels, and the
    # two accuracies
    rng = np.random.default_rng(1)
    conventions = [(average, subset) for average in metrics.AVERAGES for subset in (False, True)] + ["accuracies"]
    for i in range(2200):
        num_classes, preds, targets = random_case(rng)
        cm = ConfusionMatrix(num_classes).update(preds, targets)
        if conventions[i % 11] == "accuracies":
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # "y_pred contains classes not in y_true"
                close(cm.balanced_accuracy(), sk.balanced_accuracy_score(targets, preds))
            close(cm.accuracy(), sk.accuracy_score(targets, preds))
            continue
        average, subset = conventions[i % 11]
        labels = rng.permutation(num_classes)[: rng.integers(1, num_classes + 1)] if subset else None
        their_labels = np.arange(num_classes) if labels is None else labels
        if average == "macro_present":
            their_labels = np.intersect1d(their_labels, np.union1d(preds, targets))
        if not len(their_labels):  # none of the labels occurs, which scikit-learn does not define; 0 / 0 = 0
            assert cm.f1(average, labels) == 0
            continue
        theirs = sk.precision_recall_fscore_support(
            targets,
            preds,
            labels=their_labels,
            average={"macro_present": "macro", "none": None}.get(average, average),
            zero_division=0,
        )
        close(cm.precision(average, labels), theirs[0])
        close(cm.recall(average, labels), theirs[1])
        close(cm.f1(average, labels), theirs[2])


def test_macro_present_is_scikit_learns_default():  # M5
    preds, targets = [0, 0, 1, 3], [0, 1, 1, 0]
    close(metrics.f1_score(preds, targets, 6, "macro_present"), sk.f1_score(targets, preds, average="macro"))
    theirs = sk.f1_score(targets, preds, average="macro", labels=range(6), zero_division=0)
    close(metrics.f1_score(preds, targets, 6), theirs)


def test_functions_equal_the_methods():
    preds, targets = imbalanced()
    cm = ConfusionMatrix(C).update(preds, targets)
    for average, labels in (("macro", None), ("weighted", [3, 1]), ("micro", [2, 5])):
        assert metrics.f1_score(preds, targets, C, average, labels) == cm.f1(average, labels)
        assert metrics.recall_score(preds, targets, C, average, labels) == cm.recall(average, labels)
        assert metrics.precision_score(preds, targets, C, average, labels) == cm.precision(average, labels)
    assert metrics.accuracy_score(preds, targets) == cm.accuracy()
    assert metrics.balanced_accuracy_score(preds, targets, C) == cm.balanced_accuracy()
    assert metrics.confusion_matrix(preds, targets, C).tolist() == sk.confusion_matrix(targets, preds).tolist()
    assert metrics.bootstrap_f1(preds, targets, C, samples=50, seed=3) == cm.f1_interval(samples=50, seed=3)


def tied_scores(rng, *shape):
    """Scores with many ties: 2 to 5 levels."""
    levels = rng.integers(2, 6)
    return rng.integers(0, levels, shape) / levels


def test_roc_auc_and_average_precision_equal_scikit_learn_with_heavy_ties():
    rng = np.random.default_rng(2)
    for i in range(300):
        num_classes, n = int(rng.integers(2, 6)), int(rng.integers(2, 60))
        targets = rng.choice(num_classes, n, p=rng.dirichlet(np.full(num_classes, 0.7)))
        targets[:2] = 0, 1  # so that at least one class is defined
        scores = tied_scores(rng, n, num_classes) if i % 3 else rng.random((n, num_classes))
        for ours, theirs in (
            (metrics.roc_auc, sk.roc_auc_score),
            (metrics.average_precision, sk.average_precision_score),
        ):
            defined = [0 < np.sum(targets == c) < n for c in range(num_classes)]
            each = np.array([theirs(targets == c, scores[:, c]) if defined[c] else np.nan for c in range(num_classes)])
            close(ours(scores, targets, average="none"), each)
            close(ours(scores, targets), each[defined].mean())
            close(ours(scores[:, 1], targets == 1), each[1])  # binary


def test_roc_auc_equals_scikit_learns_own_one_vs_rest():
    rng = np.random.default_rng(3)
    targets, scores = rng.integers(0, 5, 200), rng.dirichlet(np.ones(5), 200)
    close(metrics.roc_auc(scores, targets), sk.roc_auc_score(targets, scores, multi_class="ovr"))


def test_roc_auc_of_only_ties_is_one_half_and_a_wrong_tie_rule_is_not():
    scores, targets = torch.tensor([0.0, 1, 1, 1]), torch.tensor([0, 0, 1, 1])
    assert metrics.roc_auc(torch.zeros(4), targets) == 0.5
    assert metrics.roc_auc(scores, targets) == 0.75  # 4 pairs: 2 won, 2 tied
    pairs = scores[targets == 1][:, None], scores[targets == 0]
    assert (pairs[0] > pairs[1]).double().mean() == 0.5  # negative control: a tie counts 0
    assert (pairs[0] >= pairs[1]).double().mean() == 1.0  # negative control: a tie counts 1


def test_ranking_leaves_out_undefined_classes_and_refuses_when_none_is_defined():
    scores, targets = torch.rand(6, 3, generator=torch.Generator().manual_seed(0)), [0, 0, 1, 1, 1, 0]
    for ranking in (metrics.roc_auc, metrics.average_precision):
        each = ranking(scores, targets, average="none")
        assert each.isnan().tolist() == [False, False, True]
        assert ranking(scores, targets) == each[:2].mean().item()
        with pytest.raises(ValueError, match="undefined"):
            ranking(scores, [1] * 6)
        with pytest.raises(ValueError, match="undefined"):
            ranking([], np.zeros(0, dtype=int))


def test_ndcg_equals_scikit_learn_with_ties_and_depths():
    rng = np.random.default_rng(4)
    for i in range(150):
        shape = int(rng.integers(1, 20)), int(rng.integers(2, 12))
        scores = tied_scores(rng, *shape) if i % 3 else rng.random(shape)
        relevance = rng.integers(0, 3, shape) * (rng.random(shape) < rng.random()) if i % 2 else rng.random(shape)
        k = [None, 1, 3, shape[1], 50][i % 5]
        close(metrics.ndcg(scores, relevance, k), sk.ndcg_score(relevance, scores, k=k))


def test_mrr_of_one_relevant_item_equals_scikit_learns_label_ranking_average_precision():
    rng = np.random.default_rng(5)
    for _ in range(30):
        scores, targets = tied_scores(rng, 20, 7), rng.integers(0, 7, 20)
        relevance = np.eye(7)[targets]
        close(metrics.mrr(scores, targets), sk.label_ranking_average_precision_score(relevance, scores))
        assert metrics.mrr(scores, targets) == metrics.mrr(scores, relevance)


def test_mrr_of_many_relevant_items_equals_a_plain_loop():
    rng = np.random.default_rng(6)
    scores, relevance = tied_scores(rng, 200, 6), rng.random((200, 6)) < 0.2
    expected = []
    for s, r in zip(scores, relevance, strict=True):
        ranking = sorted(range(6), key=lambda i: (-s[i], r[i]))  # on a tie the irrelevant item first
        expected.append(next((1 / (rank + 1) for rank, i in enumerate(ranking) if r[i]), 0.0))
    assert 0.0 in expected
    close(metrics.mrr(scores, relevance), np.mean(expected))


def test_errors_of_regression_equal_scikit_learn():
    preds, targets = np.random.default_rng(7).normal(size=(2, 50, 3))
    close(metrics.mae(preds, targets), sk.mean_absolute_error(targets, preds))
    close(metrics.mse(preds, targets), sk.mean_squared_error(targets, preds))


# ---------------------------------------------------------------------------------------------------------------------
# Worked numbers


def test_worked_numbers():
    # rows targets, columns preds: [[3, 1, 0, 0], [2, 2, 0, 0], [0, 1, 0, 0], [0, 0, 0, 0]]
    cm = ConfusionMatrix(4).update([0, 0, 0, 1, 0, 0, 1, 1, 1], [0, 0, 0, 0, 1, 1, 1, 1, 2])
    close(cm.precision("none"), [3 / 5, 2 / 4, 0, 0])
    close(cm.recall("none"), [3 / 4, 2 / 4, 0, 0])
    close(cm.f1("none"), [6 / 9, 4 / 8, 0, 0])
    close(cm.f1(), (6 / 9 + 4 / 8) / 4)
    close(cm.f1("macro_present"), (6 / 9 + 4 / 8) / 3)
    close(cm.f1("weighted"), (4 * 6 / 9 + 4 * 4 / 8) / 9)
    close([cm.f1("micro"), cm.accuracy(), cm.balanced_accuracy()], [5 / 9, 5 / 9, (3 / 4 + 2 / 4 + 0) / 3])
    assert cm.worst_class() == (2, 0.0)  # class 3 has no target
    assert cm.most_confused() == [(1, 0, 2), (0, 1, 1), (2, 1, 1)]  # on a tie the lower target first
    assert cm.most_confused(1) == [(1, 0, 2)]
    assert cm.per_class()[1] == {"class": 1, "precision": 0.5, "recall": 0.5, "f1": 0.5, "support": 4}


def test_report_shows_every_class_and_every_average_by_name():  # M4, M5: no average without its name
    cm = ConfusionMatrix(3).update([0, 0, 1], [0, 1, 1])
    lines = cm.report(["cat", "dog", "yak"]).splitlines()
    assert [line.split()[0] for line in lines[1:-1]] == ["cat", "dog", "yak", *metrics.AVERAGES[:-1]]
    assert lines[2].split() == ["dog", "1.0000", "0.5000", "0.6667", "2"]
    assert f"{cm.accuracy():.4f}" in lines[-1]
    assert cm.report().splitlines()[1].split()[0] == "0"
    with pytest.raises(ValueError, match="3 names, got 2"):
        cm.report(["cat", "dog"])


# ---------------------------------------------------------------------------------------------------------------------
# Counts


@pytest.mark.parametrize("metric", ["f1", "precision", "recall"])
@pytest.mark.parametrize("average", metrics.AVERAGES)
def test_scores_of_many_counts_at_once_equal_those_of_each_matrix(metric, average):
    rng = np.random.default_rng(0)
    cases = [(rng.integers(5, size=20), rng.integers(4, size=20)) for _ in range(6)]  # class 4 has no target
    matrices = [ConfusionMatrix(5).update(preds, targets) for preds, targets in cases]
    tables = torch.stack([cm.matrix for cm in matrices]).reshape(2, 3, 5, 5)
    counts = tables.diagonal(dim1=-2, dim2=-1), tables.sum(-2), tables.sum(-1)  # (2, 3, C) each
    expected = np.reshape(
        [np.asarray(getattr(cm, metric)(average)) for cm in matrices], (2, 3, *[5] * (average == "none"))
    )
    for kind in (torch.as_tensor, np.asarray, lambda values: values.tolist(), lambda values: values.float()):
        scores = metrics.score_from_counts(*map(kind, counts), metric, average)
        assert scores.dtype == torch.double and np.array_equal(scores.numpy(), expected)
    wrong = metrics.score_from_counts(counts[0].flip(0), *counts[1:], metric, average)
    assert not np.array_equal(wrong.numpy(), expected)  # negative control: the true positives of other matrices


def test_one_support_serves_many_predictions():
    targets = torch.tensor([0, 0, 1, 2])
    preds = torch.tensor([[0, 0, 1, 2], [0, 1, 1, 1], [2, 2, 2, 2]])
    one_hot = torch.nn.functional.one_hot
    tp, predicted = (one_hot(preds, 3) * (preds == targets)[..., None]).sum(1), one_hot(preds, 3).sum(1)  # (3, C)
    scores = metrics.score_from_counts(tp, predicted, one_hot(targets, 3).sum(0))
    assert scores.tolist() == [metrics.f1_score(row, targets, 3) for row in preds]


@pytest.mark.parametrize("average", ["macro", "micro", "weighted"])
def test_counts_may_be_sums_of_sample_weights(average):
    rng = np.random.default_rng(0)
    targets, preds, weight = rng.integers(4, size=40), rng.integers(4, size=40), rng.random(40) / 20  # all sums are < 1
    counts = [np.bincount(ids, w, minlength=4) for ids, w in ((targets, weight * (preds == targets)), (preds, weight))]
    support = np.bincount(targets, weight, minlength=4)
    assert 0 < support.max() < 1
    theirs = sk.f1_score(targets, preds, average=average, sample_weight=weight)
    close(metrics.score_from_counts(*counts, support, average=average), theirs)
    clamped = metrics.score_from_counts(*(np.ceil(c) for c in counts), np.ceil(support), average=average)
    assert abs(clamped.item() - theirs) > 0.01  # negative control: weights rounded up to whole samples


def test_an_unknown_metric_or_average_is_an_error_that_names_the_choices():
    with pytest.raises(ValueError, match="one of f1, precision, recall; got 'accuracy'"):
        metrics.score_from_counts([1], [1], [1], "accuracy")
    with pytest.raises(ValueError, match="one of macro, .*; got 'samples'"):
        metrics.score_from_counts([1], [1], [1], average="samples")


# ---------------------------------------------------------------------------------------------------------------------
# The pitfalls


def test_any_batching_and_any_order_give_the_same_integers():  # M1, M2
    preds, targets = imbalanced()
    whole = ConfusionMatrix(C).update(preds, targets)
    for size in (1, 7, 64, 999, 1999, 5000):
        order = torch.randperm(len(preds), generator=torch.Generator().manual_seed(size))
        cm = ConfusionMatrix(C)
        for batch in order.split(size):
            cm.update(preds[batch], targets[batch])
        assert torch.equal(cm.counts, whole.counts)
        assert cm.f1() == whole.f1()


def test_mean_of_batch_f1_is_another_number():  # M1, negative control
    preds, targets = imbalanced()
    batches = zip(preds.split(64), targets.split(64), strict=True)
    mean = np.mean([metrics.f1_score(p, t, C) for p, t in batches])
    assert abs(mean - metrics.f1_score(preds, targets, C)) > 0.05


def test_accuracy_divides_by_the_samples_seen():  # M2, M3: 10 samples in batches of 4, 4, 2
    preds, targets = torch.tensor([0, 1] * 5), torch.zeros(10, dtype=torch.long)
    cm = ConfusionMatrix(2)
    for p, t in zip(preds.split(4), targets.split(4), strict=True):
        cm.update(p, t)
    assert cm.support().sum() == 10
    assert cm.accuracy() == 0.5  # 5 / 12 by batch size x steps; 4 / 8 without the last batch


def test_micro_is_accuracy_and_macro_is_the_default():  # M4
    preds, targets = imbalanced()
    cm = ConfusionMatrix(C).update(preds, targets)
    assert cm.f1("micro") == cm.accuracy()
    assert cm.f1() == cm.f1("macro") == cm.f1("none").mean().item()
    assert len({round(cm.f1(average), 6) for average in ("macro", "micro", "weighted")}) == 3


def test_an_absent_class_counts_in_macro_only():  # M5
    cm = ConfusionMatrix(4).update([0, 1], [0, 1])
    assert (cm.f1(), cm.f1("macro_present"), cm.f1("weighted"), cm.f1("micro")) == (0.5, 1, 1, 1)
    assert cm.worst_class() == (0, 1)  # an absent class is not the worst class: it has no samples to judge by


def test_macro_f1_hides_swapped_arguments_and_other_scores_do_not():  # M10
    preds, targets = imbalanced()
    right, swapped = ConfusionMatrix(C).update(preds, targets), ConfusionMatrix(C).update(targets, preds)
    close(right.f1(), swapped.f1())
    assert abs(right.recall() - swapped.recall()) > 0.01
    assert abs(right.f1("weighted") - swapped.f1("weighted")) > 1e-4
    close(right.recall(), sk.recall_score(targets, preds, average="macro"))
    close(right.recall(), swapped.precision())


# ---------------------------------------------------------------------------------------------------------------------
# What update takes, and what it refuses


def test_logits_and_their_argmax_agree():
    generator = torch.Generator().manual_seed(0)
    logits, targets = torch.randn(300, C, generator=generator), torch.randint(C, (300,), generator=generator)
    expected = ConfusionMatrix(C).update(logits.argmax(1), targets).matrix
    for same in (logits, logits.double(), logits.numpy(), logits.clone().requires_grad_(), logits.t().contiguous().t()):
        assert torch.equal(ConfusionMatrix(C).update(same, targets).matrix, expected)
    for rounded in (logits.half(), logits.bfloat16()):
        assert metrics.accuracy_score(rounded, targets) == metrics.accuracy_score(rounded.argmax(1), targets)


@pytest.mark.parametrize("kind", [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64])
def test_any_integer_type_is_an_index_and_never_a_mask(kind):
    preds, targets = imbalanced()
    assert torch.equal(
        ConfusionMatrix(C).update(preds.to(kind), targets.to(kind)).counts,
        ConfusionMatrix(C).update(preds, targets).counts,
    )


def test_tensors_arrays_and_lists_agree():
    preds, targets = imbalanced(200, num_classes=5)
    expected = metrics.f1_score(preds, targets, 5)
    assert metrics.f1_score(preds.numpy(), targets.numpy(), 5) == expected
    assert metrics.f1_score(preds.tolist(), targets.tolist(), 5) == expected


LAYOUTS = {
    "negative strides": lambda array: np.ascontiguousarray(array[::-1])[::-1],
    "foreign byte order": lambda array: array.astype(array.dtype.newbyteorder(">")),
    "Fortran order": np.asfortranarray,
    "strided": lambda array: np.repeat(array, 2, 0)[::2],
    "read-only": lambda array: np.frombuffer(array.tobytes(), array.dtype).reshape(array.shape),
}


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS.keys())
@pytest.mark.filterwarnings("error")
def test_numpy_arrays_of_any_layout_give_the_same_score_without_a_warning(layout):
    rng = np.random.default_rng(0)
    targets, scores, relevance = rng.integers(4, size=40), rng.random((40, 4)), rng.integers(3, size=(40, 4))
    probs = scores / scores.sum(1, keepdims=True)
    calls = [
        (metrics.roc_auc, scores, targets),
        (metrics.average_precision, scores, targets),
        (metrics.expected_calibration_error, probs, targets),
        (metrics.accuracy_score, scores, targets),
        (metrics.mrr, scores, targets),
        (metrics.mrr, scores, relevance),
        (metrics.ndcg, scores, relevance),
        (metrics.mae, scores, relevance),
        (lambda p, t: metrics.f1_score(p, t, 4), scores, targets),
        (lambda p, t: metrics.f1_score(p.argmax(1).astype(p.dtype), t, 4), relevance, targets),
        (lambda tp, n: metrics.score_from_counts(tp, n, n).tolist(), relevance, relevance + 1),
    ]
    for call, first, second in calls:
        assert call(layout(first), layout(second)) == call(first, second)
        assert call(layout(first.astype(first.dtype.str.replace("8", "4"))), layout(second)) is not None


@pytest.mark.parametrize("kind", [np.uint8, np.uint16, np.uint32, np.uint64, np.int16, ">i2", ">u8", bool])
def test_class_ids_may_be_numpy_arrays_of_any_integer_type(kind):
    rng = np.random.default_rng(0)
    targets, preds, scores = rng.integers(2, size=40), rng.integers(2, size=40), rng.random((40, 2))
    for call in (metrics.accuracy_score, lambda p, t: metrics.f1_score(p, t, 3)):
        assert call(preds.astype(kind), targets.astype(kind)) == call(preds, targets)
    for call in (metrics.roc_auc, metrics.average_precision):
        assert call(scores, targets.astype(kind)) == call(scores, targets)
    if kind is not bool:
        assert metrics.mrr(scores, targets.astype(kind)) == metrics.mrr(scores, targets)


@pytest.mark.parametrize("at", [0, 5, C - 1, slice(None)])
def test_a_row_of_logits_with_nan_is_out_of_range_and_never_a_hit(at):
    generator = torch.Generator().manual_seed(0)
    logits, targets = torch.randn(300, C, generator=generator), torch.randint(C, (300,), generator=generator)
    expected = ConfusionMatrix(C).update(logits, targets).counts
    logits[7, at] = torch.nan
    targets[7] = 5 if at == slice(None) else at  # argmax gives the column of the NaN: this would be a hit
    assert at == slice(None) or logits.argmax(1)[7] == targets[7]
    for same in (logits, logits.double(), logits.half(), logits.numpy(), logits.clone().requires_grad_()):
        cm = ConfusionMatrix(C).update(same, targets)
        assert cm.counts[:C, :C].sum() == 299 and cm.counts[targets[7], -1] == 1
        for read in READERS.values():
            with pytest.raises(ValueError, match=r"1 preds are < 0 .* \(logits with a NaN count as -1\)"):
                read(cm)
        with pytest.raises(ValueError, match="logits with a NaN count as -1"):
            metrics.accuracy_score(same, targets)
    assert expected[:C, :C].sum() == 300  # the control: without the NaN all are counted


def test_infinite_logits_are_numbers():
    logits = torch.tensor([[0.0, torch.inf, 0.0], [-torch.inf, 0.0, -torch.inf], [0.0, -torch.inf, 1.0]])
    assert metrics.accuracy_score(logits, [1, 1, 2]) == metrics.f1_score(logits, [1, 1, 2], 3, labels=[1, 2]) == 1


def test_average_none_may_be_spelled_as_in_scikit_learn():
    preds, targets = (values.numpy() for values in imbalanced())
    cm = ConfusionMatrix(C).update(preds, targets)
    close(metrics.f1_score(preds, targets, C, average=None), sk.f1_score(targets, preds, average=None))
    close(cm.recall(None, [3, 1]), sk.recall_score(targets, preds, average=None, labels=[3, 1]))
    assert torch.equal(cm.precision(None), cm.precision("none"))
    scores = np.random.default_rng(0).random((len(targets), C))
    assert torch.equal(metrics.roc_auc(scores, targets, None), metrics.roc_auc(scores, targets, "none"))
    assert metrics.score_from_counts([1, 1], [2, 1], [1, 1], average=None).shape == (2,)
    for wrong in ("", 0, False):
        with pytest.raises(ValueError, match="average must be one of"):
            cm.f1(wrong)
    with pytest.raises(ValueError, match="average=None"):
        cm.f1_interval(average=None)


def test_empty_lists_are_said_to_be_empty():
    for call in (
        lambda: ConfusionMatrix(C).update([], []),
        lambda: metrics.f1_score([], [], C),
        lambda: metrics.accuracy_score([], []),
    ):
        with pytest.raises(ValueError, match="there are no samples"):
            call()
    with pytest.raises(ValueError, match=r"float32 \(0,\) and torch.int64 \(1,\)"):
        ConfusionMatrix(C).update([], [1])


@pytest.mark.parametrize("value", [-1, -2, -C, -C - 1, -C - 2, -C - 3, -100, -(2**63), C, C + 1, C + 2, 2**31, 2**62])
@pytest.mark.parametrize("where", ["preds", "targets", "both"])
def test_a_value_out_of_range_is_never_counted_in_silence(value, where):
    preds, targets = imbalanced()
    for at, size in ((0, 2000), (1999, 64), (1000, 1)):  # in the only batch; in the last; in a batch of one sample
        bad = {"preds": preds.clone(), "targets": targets.clone()}
        for name in ("preds", "targets") if where == "both" else (where,):
            bad[name][at] = value
        cm = ConfusionMatrix(C)
        for p, t in zip(bad["preds"].split(size), bad["targets"].split(size), strict=True):
            cm.update(p, t)
        inside = cm.counts[:C, :C]
        assert inside.sum() == 1999
        for read in READERS.values():
            with pytest.raises(ValueError, match=r"in \[0, 18\)"):
                read(cm)
        cm.reset()
        assert torch.equal(cm.update(preds, targets).matrix, metrics.confusion_matrix(preds, targets, C))
    with pytest.raises(ValueError, match=r"in \[0, 18\)"):
        metrics.f1_score(bad["preds"], bad["targets"], C)


def test_the_error_says_how_many_and_on_which_side():
    cm = ConfusionMatrix(3).update([0, 1, 2, 3], [-100, -1, 7, 0])
    message = "Of 4 samples, 2 targets are < 0 and 1 are >= 3; 0 preds are < 0 and 1 are >= 3"
    with pytest.raises(ValueError, match=message):
        cm.f1()


def test_index_put_alone_would_count_minus_one_as_the_last_class():  # negative control of the two extra rows
    counts = torch.zeros(3, 3, dtype=torch.long)
    counts.index_put_((torch.tensor([-1]), torch.tensor([0])), torch.ones((), dtype=torch.long), accumulate=True)
    assert counts[2, 0] == 1


@pytest.mark.parametrize("read", READERS.values(), ids=READERS.keys())
def test_nothing_counted_is_an_error(read):
    no_samples = torch.zeros(0, dtype=torch.long)
    for cm in (ConfusionMatrix(C), ConfusionMatrix(C).update(no_samples, no_samples)):
        with pytest.raises(ValueError, match="no samples"):
            read(cm)


def test_reset_forgets():
    preds, targets = imbalanced()
    cm = ConfusionMatrix(C).update(targets, targets)
    cm.reset()
    assert cm.update(preds, targets).f1() == metrics.f1_score(preds, targets, C)


def test_the_matrix_is_a_copy():
    cm = ConfusionMatrix(2).update([0, 1], [0, 1])
    cm.matrix.zero_()
    cm.most_confused()
    assert cm.accuracy() == 1


@pytest.mark.parametrize(
    ("preds", "targets", "words"),
    [
        (torch.zeros(4, 3), torch.zeros(4).long(), r"\(N, 18\).*\(4, 3\)"),  # logits with a wrong number of classes
        (torch.zeros(4, C), torch.zeros(5).long(), r"\(5,\)"),
        (torch.zeros(4).long(), torch.zeros(5).long(), r"\(4,\).*\(5,\)"),
        (torch.zeros(4, 1).long(), torch.zeros(4).long(), r"\(4, 1\)"),
        (torch.zeros(4, C).long(), torch.zeros(4).long(), r"int64 \(4, 18\)"),  # integer logits
        (torch.zeros(4), torch.zeros(4).long(), "float32"),  # probabilities of one class
        (torch.zeros(4).long(), torch.zeros(4), "float32"),
        (torch.zeros(4).long(), torch.zeros(4, C), r"\(4, 18\)"),  # one-hot targets
        (torch.tensor(1), torch.tensor(1), r"\(\)"),
    ],
)
def test_wrong_shapes_and_types_are_errors_that_show_them(preds, targets, words):
    with pytest.raises(ValueError, match=words):
        ConfusionMatrix(C).update(preds, targets)


def test_wrong_arguments_are_errors_that_name_the_choices():
    cm = ConfusionMatrix(3).update([0, 1], [0, 1])
    with pytest.raises(ValueError, match="macro, macro_present, micro, weighted, none; got 'binary'"):
        cm.f1("binary")
    for labels in ([], [3], [-1], [1, 1]):
        with pytest.raises(ValueError, match=r"labels must be .* \[0, 3\)"):
            cm.recall(labels=labels)
    for num_classes in (1, 0, -3):
        with pytest.raises(ValueError, match=f"num_classes must be >= 2, got {num_classes}"):
            ConfusionMatrix(num_classes)
    for wrong in ({"samples": 0}, {"confidence": 0}, {"confidence": 95}, {"average": "none"}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            cm.f1_interval(**wrong)
    with pytest.raises(ValueError, match="class ids must be >= 0, got -100"):
        metrics.accuracy_score([1, 2], [1, -100])


@pytest.mark.parametrize(
    "call",
    [
        lambda: metrics.roc_auc(torch.rand(4, 3), [0, 1, 2]),
        lambda: metrics.roc_auc(torch.rand(4, 1), [0, 1, 1, 0]),
        lambda: metrics.roc_auc(torch.rand(4, 3), [0, 1, 2, 3]),
        lambda: metrics.roc_auc(torch.rand(4, 3), [0, 1, 2, -100]),
        lambda: metrics.roc_auc(torch.rand(4), [0, 1, 2, 1]),
        lambda: metrics.roc_auc(torch.rand(4), [0.0, 1.0, 1.0, 0.0]),
        lambda: metrics.roc_auc(torch.tensor([0.1, float("nan")]), [0, 1]),
        lambda: metrics.average_precision(torch.rand(4, 3), [0, 1, 2, 2], average="weighted"),
        lambda: metrics.mrr(torch.rand(2, 3), [0, 3]),
        lambda: metrics.mrr(torch.rand(2, 3), [0, -1]),
        lambda: metrics.mrr(torch.rand(2, 3), [0, 1, 2]),
        lambda: metrics.mrr(torch.rand(0, 3), torch.zeros(0, 3)),
        lambda: metrics.ndcg(torch.rand(2, 3), torch.rand(2, 4)),
        lambda: metrics.ndcg(torch.rand(2, 3), -torch.ones(2, 3)),
        lambda: metrics.ndcg(torch.rand(2, 3), torch.ones(2, 3), k=0),
        lambda: metrics.mae([1.0, 2.0], [1.0]),
        lambda: metrics.mse([], []),
    ],
)
def test_ranking_and_regression_refuse_what_they_cannot_score(call):
    with pytest.raises(ValueError):
        call()


def test_update_reads_nothing_back_from_the_device():
    # a meta tensor has no values: .item(), nonzero() and boolean masks raise an error
    cm = ConfusionMatrix(C, device="meta")
    cm.update(torch.empty(64, C, device="meta"), torch.empty(64, dtype=torch.long, device="meta"))
    with pytest.raises((NotImplementedError, RuntimeError)):
        cm.f1()


@pytest.mark.gpu(1)
def test_update_never_synchronises_with_cuda():
    preds, targets = (values.cuda() for values in imbalanced())
    cm = ConfusionMatrix(C, device="cuda")
    torch.cuda.set_sync_debug_mode("error")
    try:
        cm.update(preds, targets).update(torch.zeros(64, C, device="cuda"), targets[:64])
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert cm.support().sum() == 2064
    with pytest.raises(ValueError, match=r"in \[0, 18\)"):
        cm.update(preds - 1, targets + 1).f1()


# ---------------------------------------------------------------------------------------------------------------------
# The interval


@pytest.mark.parametrize("average", ["macro", "weighted"])
def test_interval_equals_the_plain_bootstrap_of_images(average):
    preds, targets = (values.numpy() for values in imbalanced(300, num_classes=4))
    preds[::3] = 3  # class shares of preds and targets differ, so that weighting by the wrong ones is noticed
    draws = np.random.default_rng(1).integers(0, 300, (4000, 300))
    scores = [metrics.f1_score(preds[draw], targets[draw], 4, average) for draw in draws]
    plain = np.quantile(scores, [0.025, 0.975]) + metrics.f1_score(preds, targets, 4, average) - np.mean(scores)
    # the standard deviation of the scores is 0.03. The difference of two such ends has a standard error of 0.06 times
    # that, and the tolerance is 5 standard errors
    np.testing.assert_allclose(metrics.bootstrap_f1(preds, targets, 4, average=average, samples=4000), plain, atol=0.01)
    twice = metrics.bootstrap_f1(np.tile(preds, 2), np.tile(targets, 2), 4, average=average, samples=4000)
    assert abs(twice[0] - plain[0]) > 0.01  # negative control: twice as many images


def test_interval_covers_the_truth_as_often_as_it_says():
    rng = np.random.default_rng(0)
    population = np.array([[0.50, 0.07, 0.03], [0.06, 0.20, 0.02], [0.02, 0.02, 0.08]])  # target x pred
    truth = np.mean(2 * np.diag(population) / (population.sum(0) + population.sum(1)))
    covered = []
    for seed in range(300):
        cells = rng.choice(9, 500, p=population.ravel() / population.sum())
        low, high = metrics.bootstrap_f1(cells % 3, cells // 3, 3, samples=400, seed=seed)
        covered.append(low <= truth <= high)
    assert 0.90 < np.mean(covered) < 0.985


def test_interval_of_many_small_classes_covers_the_truth_more_often_than_plain_percentiles():
    """100 classes of 10 images: a bootstrap sample misses some classes, so its macro F1 is too low on average."""
    rng, N = np.random.default_rng(0), 100
    hit = np.linspace(0.9, 0.5, N)
    population = (1 - hit)[:, None] / N + np.diag(hit)  # target x pred, rows sum to 1
    truth = np.mean(2 * np.diag(population) / (population.sum(0) + 1))
    covered, plain = [], []
    for _ in range(60):
        targets = rng.choice(N, 1000)
        preds = np.where(rng.random(1000) < hit[targets], targets, rng.integers(N, size=1000))
        low, high = metrics.bootstrap_f1(preds, targets, N, samples=300)
        covered.append(low <= truth <= high)
        draws = rng.integers(1000, size=(300, 1000))
        scores = [ConfusionMatrix(N).update(preds[draw], targets[draw]).f1() for draw in draws[:100]]
        plain.append(np.quantile(scores, 0.025) <= truth <= np.quantile(scores, 0.975))
    assert np.mean(covered) > 0.8 and np.mean(plain) < np.mean(covered) - 0.1


def test_an_interval_lies_within_0_and_1():
    assert ConfusionMatrix(3).update([0, 1, 1, 0, 2], [0, 1, 1, 0, 1]).f1_interval()[1] <= 1
    assert ConfusionMatrix(3).update([0, 1, 2], [0, 1, 2]).f1_interval()[1] == 1


def test_the_seed_fixes_the_interval():
    cm = ConfusionMatrix(C).update(*imbalanced())
    assert cm.f1_interval(seed=1) == cm.f1_interval(seed=1) != cm.f1_interval(seed=2)
    low, high = cm.f1_interval(confidence=0.5)
    assert cm.f1_interval()[0] < low < cm.f1() < high < cm.f1_interval()[1]


def test_the_interval_of_every_average_holds_its_score():
    cm = ConfusionMatrix(C).update(*imbalanced())
    for average in metrics.AVERAGES[:-1]:
        for labels in (None, [0, 2, 5]):
            low, high = cm.f1_interval(average, labels, samples=200)
            assert low < cm.f1(average, labels) < high


def test_blocks_of_replicates_change_nothing():
    # the same 9 cells with 3 classes (one block) and with 2000 (three blocks): macro divides by 2000 instead of 3
    preds, targets = imbalanced(300, num_classes=3)
    one, three = (metrics.bootstrap_f1(preds, targets, num_classes, samples=2500) for num_classes in (3, 2000))
    close(np.array(three) * 2000, np.array(one) * 3)


# ---------------------------------------------------------------------------------------------------------------------
# The file by itself


def test_source_is_python_3_8():
    with open(metrics.__file__, encoding="utf-8") as file:
        ast.parse(file.read(), feature_version=(3, 8))


def test_examples_in_the_docstrings_hold():
    failed, attempted = doctest.testmod(metrics)
    assert failed == 0 < attempted


def test_runs_alone_in_an_empty_folder(tmp_path):
    shutil.copy(metrics.__file__, tmp_path)
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    run = subprocess.run(
        [sys.executable, "metrics.py"], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120
    )
    assert run.returncode == 0, run.stderr
    assert "macro_present" in run.stdout


# --- head, medium and tail -------------------------------------------------------------------------------------------


def test_scores_by_frequency_are_means_over_the_classes_of_a_group():
    g = torch.Generator().manual_seed(0)
    preds, targets = torch.randint(0, 6, (2, 300), generator=g)
    matrix, counts = ConfusionMatrix(6).update(preds, targets), [500, 120, 100, 20, 19, 3]
    f1, recall = matrix.f1("none"), matrix.recall("none")
    rows = {row["group"]: row for row in matrix.by_frequency(counts)}
    assert {name: row["classes"] for name, row in rows.items()} == {"head": [0, 1], "medium": [2, 3], "tail": [4, 5]}
    for row in rows.values():
        assert row["f1"] == pytest.approx(f1[row["classes"]].mean().item())
        assert row["accuracy"] == pytest.approx(recall[row["classes"]].mean().item())
    assert (rows["medium"]["fewest"], rows["medium"]["most"]) == (20, 100)
    assert rows["head"]["f1"] != pytest.approx(rows["tail"]["f1"])


def test_groups_are_thirds_if_one_would_be_empty_and_none_if_the_classes_are_balanced():
    groups = metrics.frequency_groups([5000, 2997, 1796, 1077, 645, 387, 232, 139, 83, 50])  # CIFAR-10-LT
    assert groups == {"head": [0, 1, 2, 3], "medium": [4, 5, 6], "tail": [7, 8, 9]}
    assert metrics.frequency_groups([100, 90, 80, 70]) == {} and metrics.frequency_groups([100, 1]) == {}
    assert ConfusionMatrix(3).update([0, 1, 2], [0, 1, 2]).by_frequency(np.array([9, 9, 9])) == []

# From f1kit. MIT licence, copyright (c) 2026 The f1kit authors. Keep this line and LICENSE with a copy of this file.
"""Scores of an imbalanced classifier, from predictions and targets.

    python metrics.py         # one small table for each mistake that this file prevents

The state of an epoch is one C x C matrix of integers, `cm[target, pred]`. A score is computed once, from the whole
matrix; it is never a mean over batches. So the batch size and the order of the samples do not change a score.

    cm = ConfusionMatrix(num_classes=18, device=device)
    for images, targets in batches:
        cm.update(model(images), targets)       # logits (N, C) or class ids (N,); the host never waits for the device
    print(cm.f1(), cm.f1("none"), cm.report())

The order of arguments is always (preds, targets) or (scores, targets). In scikit-learn it is (y_true, y_pred).
If you swap the two, macro F1 stays the same and hides the mistake. Recall, precision and weighted F1 change.

Averages of the per-class precision, recall and F1. `labels` selects some classes first, as in scikit-learn:

    macro           mean over all C classes; a class that never occurs scores 0. This is the leaderboards' convention:
                    sklearn.metrics.f1_score(targets, preds, labels=range(C), average="macro", zero_division=0)
    macro_present   mean over the classes that occur in targets or in preds: scikit-learn's default
    micro           one ratio of summed counts; over all classes it equals the accuracy
    weighted        mean weighted by the number of targets of each class
    none, or None   no average: float64 tensor (C,), or (len(labels),) in the order of labels

0 / 0 is 0, and no formula has an epsilon. Counts are int64, scores float64, results Python floats. Inputs are torch
tensors, numpy arrays of any layout, or lists. A score without samples is a ValueError. Needs Python 3.8, torch 1.13
and numpy.
"""

from __future__ import annotations

from operator import index, itemgetter
from typing import Any, Callable, Optional, Sequence, Union

import numpy as np
import torch
from torch import Tensor

Array = Union[Tensor, np.ndarray, Sequence]
Labels = Optional[Sequence[int]]
Average = Optional[str]
Score = Union[float, Tensor]  # a tensor for average="none"

AVERAGES = ("macro", "macro_present", "micro", "weighted", "none")

# ---------------------------------------------------------------------------------------------------------------------
# From counts to scores


def _tensor(values: Array) -> Tensor:
    """torch.as_tensor, but numpy arrays that torch refuses (negative strides, foreign byte order) are copied."""
    if isinstance(values, np.ndarray):
        is_wide_unsigned = values.dtype.kind == "u" and values.dtype.itemsize > 1  # torch cannot compare these
        values = np.require(values, np.int64 if is_wide_unsigned else values.dtype.newbyteorder("="), ("C", "W"))
    return torch.as_tensor(values)


def _ratio(numerator: Tensor, denominator: Tensor) -> Tensor:
    """numerator / denominator in float64, with 0 / 0 = 0. The numerator must be 0 where the denominator is 0."""
    return numerator.double() / denominator.masked_fill(denominator == 0, 1)


def score_from_counts(
    true_positives: Array, predicted: Array, support: Array, metric: str = "f1", average: Average = "macro"
) -> Tensor:
    """The score of many confusion matrices at once, each given by three counts per class.

    Every precision, recall and F1 in this file is computed here. Use it for a bootstrap, or to try many decision rules.

    Args:
        true_positives: (..., C), samples of class c that were predicted as c.
        predicted: (..., C), samples that were predicted as c: true_positives + false positives.
        support: (..., C), samples whose target is c: true_positives + false negatives.
            The three shapes may differ if they broadcast. Counts are numbers of samples or sums of sample weights >= 0.
        metric: "f1", "precision" or "recall".
        average: one of AVERAGES, or None, which is "none".
    Returns: float64 (...), or (..., C) for average="none", on the device of the counts.
    Raises: ValueError for an unknown metric or average.

    >>> support = [2, 2]
    >>> score_from_counts([[2, 2], [2, 0]], [[2, 2], [4, 0]], support).tolist()  # all correct; always class 0
    [1.0, 0.3333333333333333]
    """
    average = "none" if average is None else average
    if average not in AVERAGES:
        raise ValueError(f"average must be one of {', '.join(AVERAGES)}; got {average!r}")
    tp, predicted, support = (_tensor(counts) for counts in (true_positives, predicted, support))
    if metric == "f1":
        numerator, denominator = 2 * tp, predicted + support  # 2PR / (P + R) = 2TP / (2TP + FP + FN)
    elif metric in ("precision", "recall"):
        numerator, denominator = tp, predicted if metric == "precision" else support  # TP / (TP + FP), TP / (TP + FN)
    else:
        raise ValueError(f"metric must be one of f1, precision, recall; got {metric!r}")
    if average == "micro":
        return _ratio(numerator.sum(-1), denominator.sum(-1))
    score = _ratio(numerator, denominator)  # (..., C)
    if average == "none":
        return score
    present = (predicted + support > 0).long()
    weight = {"macro": torch.ones_like(present), "macro_present": present, "weighted": support}[average]
    return _ratio((score * weight).sum(-1), weight.sum(-1))  # sum_c w_c score_c / sum_c w_c


def _class_ids(preds: Array, targets: Array, num_classes: int | None = None) -> tuple[Tensor, Tensor]:
    """preds and targets as int64 tensors (N,). Float logits (N, C) become their argmax, or -1 if they contain NaN."""
    if not (isinstance(preds, Tensor) and isinstance(targets, Tensor)):
        preds, targets = _tensor(preds), _tensor(targets)
    if preds.dim() == 2 and preds.is_floating_point() and num_classes in (None, preds.shape[1]):
        largest, preds = preds.detach().max(1)  # (N, C) -> (N,); the largest of a row with NaN is NaN
        preds = preds.masked_fill_(largest.isnan(), -1)
    if preds.shape == targets.shape == (0,) and preds.is_floating_point() and targets.is_floating_point():
        raise ValueError("there are no samples: preds and targets are empty lists")
    if preds.dim() != 1 or preds.shape != targets.shape or preds.is_floating_point() or targets.is_floating_point():
        raise ValueError(
            f"preds must be integers (N,) or float logits (N, {num_classes or 'C'}), and targets integers (N,); "
            f"got {preds.dtype} {tuple(preds.shape)} and {targets.dtype} {tuple(targets.shape)}"
        )
    return preds.long(), targets.long()


def frequency_groups(counts: Sequence[int], many: int = 100, few: int = 20) -> dict[str, list[int]]:
    """Ids of the head, medium and tail classes by training samples; {} if the classes are not long-tailed.

    Head: more than `many` samples, tail: fewer than `few` (Liu et al. 2019, arXiv:1904.05160). If one of the groups
    would be empty: thirds of the classes, by samples. Long-tailed: 3 classes or more, the largest at least 5 times as
    large as the smallest.

    >>> frequency_groups([500, 50, 5]), frequency_groups([5000, 300, 200]), frequency_groups([10, 9, 8])
    ({'head': [0], 'medium': [1], 'tail': [2]}, {'head': [0], 'medium': [1], 'tail': [2]}, {})
    """
    if len(counts) < 3 or max(counts) < 5 * max(min(counts), 1):
        return {}
    order = sorted(range(len(counts)), key=lambda c: -counts[c])  # on a tie the lower id first
    head = [c for c in order if counts[c] > many]
    tail = [c for c in order if counts[c] < few]
    medium = [c for c in order if few <= counts[c] <= many]
    if not (head and medium and tail):
        head, medium, tail = (part.tolist() for part in np.array_split(order, 3))
    return {"head": head, "medium": medium, "tail": tail}


class ConfusionMatrix:
    """Counts `cm[target, pred]` over an epoch, and computes scores from the counts.

    `update` is a max over the classes, two clamps and one index_put_, without a host sync. Reading a number waits for
    the device. `counts` is the whole state: save it, or sum it over processes.

    A value outside [0, num_classes), such as an ignore index of -100, is never counted as a class. (index_put_ alone
    would count -1 as the last class.) Logits with a NaN count as a prediction of -1. Such values are counted in two
    extra rows and columns of `counts`. Reading any number then raises ValueError, until `reset`.

    >>> cm = ConfusionMatrix(3).update([0, 1, 1], [0, 1, 2]).update([0], [0])
    >>> cm.matrix.tolist()
    [[2, 0, 0], [0, 1, 0], [0, 1, 0]]
    >>> cm.accuracy(), round(cm.f1(), 4), cm.most_confused(), cm.worst_class()
    (0.75, 0.5556, [(2, 1, 1)], (2, 0.0))
    """

    def __init__(self, num_classes: int, device: str | torch.device = "cpu"):
        if num_classes < 2:
            raise ValueError(f"num_classes must be >= 2, got {num_classes}")
        self.num_classes, self.device = num_classes, torch.device(device)
        self._one = torch.ones((), dtype=torch.long, device=self.device)
        self.reset()

    def reset(self) -> None:
        """Sets all counts to 0."""
        size = self.num_classes + 2
        self.counts = torch.zeros(size, size, dtype=torch.long, device=self.device)  # (C + 2, C + 2)

    def update(self, preds_or_logits: Array, targets: Array) -> ConfusionMatrix:
        """Adds a batch: integer preds (N,) or float logits (N, C), and integer targets (N,). Returns self."""
        preds, targets = _class_ids(preds_or_logits, targets, self.num_classes)
        # values >= C are counted in row C; values < 0 become -1, which index_put_ counts in the last row, C + 1
        rows, columns = targets.clamp(-1, self.num_classes), preds.clamp(-1, self.num_classes)
        self.counts.index_put_((rows, columns), self._one, accumulate=True)
        return self

    @property
    def matrix(self) -> Tensor:
        """A copy on the CPU, int64 (C, C). Raises ValueError if nothing was counted or a value was out of range."""
        C, counts = self.num_classes, self.counts.cpu()
        (t_high, t_low), (p_high, p_low) = counts[C:].sum(1).tolist(), counts[:, C:].sum(0).tolist()
        if t_high or t_low or p_high or p_low:
            raise ValueError(
                f"class ids must be in [0, {C}). Of {counts.sum().item()} samples, {t_low} targets are < 0 and "
                f"{t_high} are >= {C}; {p_low} preds are < 0 and {p_high} are >= {C} "
                "(logits with a NaN count as -1)"
            )
        if not counts.any():
            raise ValueError("there are no samples: call update() first")
        return counts[:C, :C].clone()

    def _ids(self, labels: Labels) -> Tensor:
        """labels, or all classes if None: int64 (L,)."""
        ids = list(range(self.num_classes)) if labels is None else [index(c) for c in labels]
        if not ids or len(set(ids)) < len(ids) or min(ids) < 0 or max(ids) >= self.num_classes:
            raise ValueError(f"labels must be one or more different class ids in [0, {self.num_classes}), got {ids}")
        return torch.tensor(ids)

    def _read(self, metric: str, average: Average, labels: Labels) -> Score:
        matrix, ids = self.matrix, self._ids(labels)
        score = score_from_counts(matrix.diagonal()[ids], matrix.sum(0)[ids], matrix.sum(1)[ids], metric, average)
        return score if score.dim() else score.item()

    def precision(self, average: Average = "macro", labels: Labels = None) -> Score:
        """TP / (TP + FP): the share of the predictions of class c that are correct."""
        return self._read("precision", average, labels)

    def recall(self, average: Average = "macro", labels: Labels = None) -> Score:
        """TP / (TP + FN): the share of the samples of class c that were found."""
        return self._read("recall", average, labels)

    def f1(self, average: Average = "macro", labels: Labels = None) -> Score:
        """2TP / (2TP + FP + FN). "macro" is the mean of the classes' F1, not the F1 of mean precision and recall."""
        return self._read("f1", average, labels)

    def accuracy(self) -> float:
        """Correct samples / all samples."""
        return self.recall("micro")

    def balanced_accuracy(self) -> float:
        """Mean recall over the classes that occur in targets, as in scikit-learn."""
        return self.recall("none")[self.support() > 0].mean().item()

    def support(self) -> Tensor:
        """Number of targets of each class, int64 (C,)."""
        return self.matrix.sum(1)

    def per_class(self) -> list[dict[str, Any]]:
        """One row per class: {"class", "precision", "recall", "f1", "support"}."""
        columns = self.precision("none"), self.recall("none"), self.f1("none"), self.support()
        rows = zip(range(self.num_classes), *(column.tolist() for column in columns))
        return [dict(zip(("class", "precision", "recall", "f1", "support"), row)) for row in rows]

    def regroup(self, ids: Sequence[int]) -> ConfusionMatrix:
        """The matrix of coarser classes: class c becomes ids[c]. So classes "mask, male" are summed into "mask".

        Args: ids (C,), in [0, K), K = max(ids) + 1 >= 2.

        >>> ConfusionMatrix(4).update([0, 1, 3], [0, 0, 1]).regroup([0, 0, 1, 1]).matrix.tolist()
        [[2, 1], [0, 0]]
        """
        ids = [index(i) for i in ids]
        if len(ids) != self.num_classes or min(ids) < 0:
            raise ValueError(f"ids must be {self.num_classes} class ids >= 0, got {ids}")
        result = ConfusionMatrix(max(ids) + 1, self.device)
        K = result.num_classes
        place = torch.tensor([*ids, K, K + 1], device=self.device)  # (C + 2,): the last two are for values out of range
        result.counts.index_put_((place[:, None], place[None, :]), self.counts, accumulate=True)
        return result

    def by_frequency(self, counts: Array) -> list[dict[str, Any]]:
        """Scores of frequent and rare classes: one row per group of `frequency_groups`; [] if there are no groups.

        Each row: {"group", "classes" (ids), "fewest", "most" (training samples of a class), "accuracy" (mean recall of
        its classes, as in papers on long tails), "f1" (mean F1)}.

        Args: counts (C,), training samples per class.
        """
        counts, recall, f1 = [int(n) for n in _tensor(counts)], self.recall("none"), self.f1("none")
        rows = []
        for name, ids in frequency_groups(counts).items():
            of_group = [counts[c] for c in ids]
            scores = {"accuracy": recall[ids].mean().item(), "f1": f1[ids].mean().item()}
            rows.append({"group": name, "classes": ids, "fewest": min(of_group), "most": max(of_group), **scores})
        return rows

    def worst_class(self) -> tuple[int, float]:
        """(class, F1) of the class with the lowest F1 among those that occur in targets; on a tie, the lowest class."""
        return min(((r["class"], r["f1"]) for r in self.per_class() if r["support"]), key=itemgetter(1))

    def most_confused(self, k: int = 5) -> list[tuple[int, int, int]]:
        """The k most frequent errors (target, pred, count); on a tie, the lowest target first, then the lowest pred."""
        counts, cells = self.matrix.fill_diagonal_(0).flatten().sort(descending=True, stable=True)  # (C * C,)
        top = zip(cells[:k].tolist(), counts[:k].tolist())
        return [(cell // self.num_classes, cell % self.num_classes, count) for cell, count in top if count]

    def f1_interval(
        self,
        average: Average = "macro",
        labels: Labels = None,
        samples: int = 1000,
        confidence: float = 0.95,
        seed: int = 0,
    ) -> tuple[float, float]:
        """(low, high): bootstrap interval of the F1 (Efron & Tibshirani 1993, chapter 13), centred on the F1.

        It shows how much the score would change with different images of the same kind. It does not show how much it
        would change with a different training seed.

        A bootstrap sample can miss a class that has few images. That class then scores 0, so the F1 of the samples is
        too low on average: by a little for 18 classes, by more than the interval's length for 300 classes of 5 images.
        This bias is added back to the percentiles.

        Drawing N images with replacement is one multinomial draw of N over the non-zero cells of the matrix. So the
        time does not depend on N: 0.1 s for 1000 samples at C = 18.

        Raises: ValueError unless samples >= 1, 0 < confidence < 1, and average is not "none" or None.
        """
        if samples < 1 or not 0 < confidence < 1 or average in ("none", None):
            raise ValueError(
                'samples must be >= 1, confidence between 0 and 1, and average not "none"; '
                f"got samples={samples}, confidence={confidence}, average={average!r}"
            )
        matrix, ids, rng, scores = self.matrix, self._ids(labels), np.random.default_rng(seed), []
        rows, columns = matrix.nonzero(as_tuple=True)  # (K,), (K,)
        cells = matrix[rows, columns].numpy()  # (K,)
        block = max(1, 2**21 // max(len(cells), self.num_classes))  # B samples at once: 16 MiB per tensor
        for start in range(0, samples, block):
            size = min(block, samples - start)
            draws = torch.from_numpy(rng.multinomial(cells.sum(), cells / cells.sum(), size))  # (B, K)
            zeros = torch.zeros(size, self.num_classes, dtype=torch.long)  # (B, C)
            tp = zeros.scatter_add(1, rows.expand(size, -1), draws * (rows == columns))
            predicted = zeros.scatter_add(1, columns.expand(size, -1), draws)
            support = zeros.scatter_add(1, rows.expand(size, -1), draws)
            scores.append(score_from_counts(tp[:, ids], predicted[:, ids], support[:, ids], "f1", average))
        resampled, score = torch.cat(scores).numpy(), self.f1(average, labels)
        centred = score + resampled - resampled.mean()
        low, high = np.quantile(centred.clip(0, 1), [(1 - confidence) / 2, (1 + confidence) / 2])
        return float(low), float(high)

    def report(self, class_names: Sequence[str] | None = None) -> str:
        """A text table: one row per class, one row per average, then the accuracies."""
        names = [str(name) for name in (range(self.num_classes) if class_names is None else class_names)]
        if len(names) != self.num_classes:
            raise ValueError(f"class_names must be {self.num_classes} names, got {len(names)}")
        rows = [(names[r["class"]], r["precision"], r["recall"], r["f1"], r["support"]) for r in self.per_class()]
        for name in AVERAGES[:-1]:
            rows.append((name, self.precision(name), self.recall(name), self.f1(name), self.support().sum().item()))
        width = max(len(row[0]) for row in rows)
        lines = [f"{'class':{width}}  precision  recall      f1  support"]
        lines += [f"{name:{width}}  {p:9.4f}  {r:6.4f}  {f:6.4f}  {n:7d}" for name, p, r, f, n in rows]
        return "\n".join(lines + [f"accuracy {self.accuracy():.4f}, balanced accuracy {self.balanced_accuracy():.4f}"])


# ---------------------------------------------------------------------------------------------------------------------
# The same scores as functions of whole arrays: preds (N,) integers or logits (N, C), targets (N,)


def confusion_matrix(preds: Array, targets: Array, num_classes: int) -> Tensor:
    """int64 (C, C): rows are targets, columns are preds."""
    return ConfusionMatrix(num_classes).update(preds, targets).matrix


def precision_score(
    preds: Array, targets: Array, num_classes: int, average: Average = "macro", labels: Labels = None
) -> Score:
    """TP / (TP + FP)."""
    return ConfusionMatrix(num_classes).update(preds, targets).precision(average, labels)


def recall_score(
    preds: Array, targets: Array, num_classes: int, average: Average = "macro", labels: Labels = None
) -> Score:
    """TP / (TP + FN)."""
    return ConfusionMatrix(num_classes).update(preds, targets).recall(average, labels)


def f1_score(
    preds: Array, targets: Array, num_classes: int, average: Average = "macro", labels: Labels = None
) -> Score:
    """2TP / (2TP + FP + FN).

    >>> f1_score([0, 0, 1, 1], [0, 0, 0, 1], num_classes=3, average="none").tolist()
    [0.8, 0.6666666666666666, 0.0]
    """
    return ConfusionMatrix(num_classes).update(preds, targets).f1(average, labels)


def balanced_accuracy_score(preds: Array, targets: Array, num_classes: int) -> float:
    """Mean recall over the classes that occur in targets."""
    return ConfusionMatrix(num_classes).update(preds, targets).balanced_accuracy()


def accuracy_score(preds: Array, targets: Array) -> float:
    """Correct samples / N. A negative class id, such as an ignore index, is a ValueError."""
    preds, targets = _class_ids(preds, targets)
    if not len(preds):
        raise ValueError("there are no samples")
    if min(preds.min(), targets.min()) < 0:
        smallest = min(preds.min(), targets.min()).item()
        raise ValueError(f"class ids must be >= 0, got {smallest} (logits with a NaN count as -1)")
    return (preds == targets).double().mean().item()


def bootstrap_f1(preds: Array, targets: Array, num_classes: int, **options: Any) -> tuple[float, float]:
    """(low, high): bootstrap interval of the F1; options as in ConfusionMatrix.f1_interval."""
    return ConfusionMatrix(num_classes).update(preds, targets).f1_interval(**options)


# ---------------------------------------------------------------------------------------------------------------------
# Metrics of real-valued scores: one class against the rest, calibration, ranking, regression


def _float64(scores: Array) -> Tensor:
    scores = _tensor(scores).detach().cpu().double().contiguous()
    if scores.isnan().any():
        raise ValueError(f"the values of shape {tuple(scores.shape)} must not contain NaN")
    return scores


def _one_vs_rest(
    scores: Array, targets: Array, average: Average, statistic: Callable[[Tensor, Tensor], float]
) -> Score:
    """statistic(sorted scores of the positives (P,), of the negatives (M,)) for each class, or their mean."""
    scores, targets = _float64(scores), _tensor(targets).cpu()
    if scores.dim() not in (1, 2) or scores.shape[1:] == (1,) or targets.shape != scores.shape[:1]:
        raise ValueError(
            "scores must be (N, C) with C >= 2, or (N,) for class 1 of a binary problem, and targets (N,); "
            f"got {tuple(scores.shape)} and {tuple(targets.shape)}"
        )
    columns = list(enumerate(scores.t())) if scores.dim() == 2 else [(1, scores)]
    C = max(len(columns), 2)
    if targets.is_floating_point() or ((targets < 0) | (targets >= C)).any():
        raise ValueError(f"targets must be integers in [0, {C}), got {targets.dtype} {targets.unique()[:9].tolist()}")
    if average not in ("macro", "none", None):
        raise ValueError(f"average must be macro or none, got {average!r}")
    per_class = []
    for c, column in columns:
        positives, negatives = column[targets == c].sort()[0], column[targets != c].sort()[0]
        per_class.append(statistic(positives, negatives) if len(positives) and len(negatives) else np.nan)
    if average == "macro" and np.isnan(per_class).all():
        raise ValueError("the score is undefined: no class has both a positive and a negative sample")
    return float(np.nanmean(per_class)) if average == "macro" else torch.tensor(per_class, dtype=torch.double)


def roc_auc(scores: Array, targets: Array, average: Average = "macro") -> Score:
    """Area under the ROC curve (Hanley & McNeil 1982).

    It is the probability that a sample of the class has a higher score than a sample of the rest. A tie counts 1/2.

    Args:
        scores: (N, C), for one class against the rest; or binary: (N,) for class 1.
        targets: (N,) in [0, C); binary: 0 and 1.
        average: "macro", or "none" (or None) for one value per class: (C,), binary (1,).
    A class without a positive or without a negative sample is undefined: nan for "none", left out of the "macro" mean.
    Raises: ValueError for a wrong shape or value, or if "macro" has no class left.

    >>> roc_auc([0.1, 0.4, 0.4, 0.8], [0, 0, 1, 1])
    0.875
    """

    def statistic(positives: Tensor, negatives: Tensor) -> float:
        # for each positive (negatives below + negatives not above) / 2, summed, / (P * M): the average ranks
        below, not_above = (torch.searchsorted(negatives, positives, right=right) for right in (False, True))
        return (below + not_above).sum().item() / (2 * len(positives) * len(negatives))

    return _one_vs_rest(scores, targets, average, statistic)


def average_precision(scores: Array, targets: Array, average: Average = "macro") -> Score:
    """sum of (R_n - R_{n-1}) P_n: the mean, over the positives, of the precision with their score as the threshold.

    Shapes, undefined classes and errors as in roc_auc. A sample whose score equals the threshold is predicted positive.

    >>> average_precision([0.1, 0.4, 0.4, 0.8], [0, 0, 1, 1])
    0.8333333333333333
    """

    def statistic(positives: Tensor, negatives: Tensor) -> float:
        tp = len(positives) - torch.searchsorted(positives, positives)  # (P,) with a score >= the threshold
        fp = len(negatives) - torch.searchsorted(negatives, positives)
        return _ratio(tp, tp + fp).mean().item()

    return _one_vs_rest(scores, targets, average, statistic)


def calibration(probs: Array, targets: Array, bins: int = 15) -> list[tuple[int, float, float]]:
    """(samples, mean confidence, accuracy) of each bin that is not empty, from low to high confidence.

    [0, 1] is divided into `bins` bins of equal width. The confidence of a sample is its largest probability. On the
    border of two bins it belongs to the lower one. A network whose accuracy is below its confidence is overconfident.
    Guo et al. 2017, arXiv:1706.04599.

    Args: probs (N, C), rows that sum to 1; targets (N,); bins >= 1.
    Raises: ValueError for a wrong shape or value.

    >>> calibration([[1.0, 0.0], [0.75, 0.25], [0.25, 0.75]], [0, 1, 1], bins=2)
    [(3, 0.8333333333333334, 0.6666666666666666)]
    """
    probs, targets = _float64(probs), _tensor(targets).cpu()
    if probs.dim() != 2 or targets.shape != probs.shape[:1] or not len(probs) or bins < 1:
        raise ValueError(
            "probs must be (N, C), targets (N,), N >= 1 and bins >= 1; "
            f"got {tuple(probs.shape)}, {tuple(targets.shape)} and bins={bins}"
        )
    if probs.min() < 0 or (probs.sum(1) - 1).abs().max() > 1e-3:
        raise ValueError("each row of probs must be >= 0 and sum to 1: apply softmax to the logits first")
    confidence, preds = probs.max(1)  # (N,), (N,)
    bin_ids = (confidence * bins).ceil().long().clamp(1, bins) - 1  # (N,)
    zeros = torch.zeros(bins, dtype=torch.double)
    summands = torch.ones_like(confidence), confidence, (preds == targets).double()
    counts, confidences, correct = (zeros.index_add(0, bin_ids, values).tolist() for values in summands)  # (bins,) each
    return [(int(n), total / n, right / n) for n, total, right in zip(counts, confidences, correct) if n]


def expected_calibration_error(probs: Array, targets: Array, bins: int = 15) -> float:
    """sum over bins of (samples / N) |accuracy - mean confidence|, in [0, 1]; shapes and errors as in calibration.

    >>> round(expected_calibration_error([[1.0, 0.0], [0.75, 0.25], [0.25, 0.75]], [0, 1, 1], bins=2), 4)
    0.1667
    """
    rows = calibration(probs, targets, bins)
    return sum(n * abs(accuracy - confidence) for n, confidence, accuracy in rows) / sum(n for n, _, _ in rows)


def _queries(scores: Array, relevance: Array) -> tuple[Tensor, Tensor]:
    scores, relevance = _float64(scores), _float64(relevance)
    if scores.dim() != 2 or not scores.numel() or relevance.shape != scores.shape or relevance.min() < 0:
        raise ValueError(
            "scores must be (Q, D), and relevance (Q, D) with values >= 0, not empty; "
            f"got {tuple(scores.shape)} and {tuple(relevance.shape)}"
        )
    return scores, relevance


def mrr(scores: Array, targets: Array) -> float:
    """Mean over queries of 1 / rank of the first relevant item, in [0, 1].

    A query without a relevant item scores 0. On a tie, irrelevant items rank before the relevant one.

    Args: scores (Q, D); targets (Q,), the index of the relevant item, or (Q, D), where a value > 0 means relevant.
    Raises: ValueError for a wrong shape or value.

    >>> mrr([[0.3, 0.9, 0.1], [0.5, 0.5, 0.1]], [1, 0])
    0.75
    """
    scores, relevance = _tensor(scores), _tensor(targets)
    if relevance.dim() == 1:
        relevance = relevance[:, None] == torch.arange(scores.shape[-1], device=relevance.device)  # (Q, D)
        if not relevance.any(1).all():
            raise ValueError(f"targets must be indices in [0, {scores.shape[-1]})")
    scores, relevance = _queries(scores, relevance)
    relevant = relevance > 0
    best = scores.masked_fill(~relevant, -np.inf).amax(1, keepdim=True)  # (Q, 1)
    rank = 1 + ((scores >= best) & ~relevant).sum(1)  # (Q,)
    return _ratio(relevant.any(1), rank).mean().item()


def ndcg(scores: Array, relevance: Array, k: int | None = None) -> float:
    """Mean over queries of DCG@k / ideal DCG@k, in [0, 1], with linear gain (Jarvelin & Kekalainen 2002).

    A query without a relevant item scores 0. Items with equal scores share the mean discount of their ranks, as in
    sklearn.metrics.ndcg_score.

    Args: scores (Q, D); relevance (Q, D), values >= 0; k >= 1, the number of ranks that count, by default all D.
    Raises: ValueError for a wrong shape or value.

    >>> round(ndcg([[0.1, 0.2, 0.3]], [[3, 0, 1]]), 4)
    0.6885
    """
    scores, relevance = _queries(scores, relevance)
    if k is not None and k < 1:
        raise ValueError(f"k must be >= 1, got {k}")
    D = scores.shape[1]
    discount = 1 / torch.arange(2, D + 2).double().log2()  # (D,) 1 / log2(rank + 1)
    discount[k or D :] = 0
    cumulative = torch.cat((torch.zeros(1).double(), discount.cumsum(0)))  # (D + 1,)
    ascending = scores.sort(1)[0]
    # items with equal scores share the ranks first + 1 ... last
    last, first = (D - torch.searchsorted(ascending, scores, right=right) for right in (False, True))  # (Q, D)
    dcg = (relevance * (cumulative[last] - cumulative[first]) / (last - first)).sum(1)
    ideal = (relevance.sort(1, descending=True)[0] * discount).sum(1)
    return (dcg / ideal.masked_fill(ideal == 0, 1)).mean().item()


def _difference(preds: Array, targets: Array) -> Tensor:
    preds, targets = _float64(preds), _float64(targets)
    if preds.shape != targets.shape or not preds.numel():
        raise ValueError(
            "preds and targets must have the same shape and not be empty; "
            f"got {tuple(preds.shape)} and {tuple(targets.shape)}"
        )
    return preds - targets


def mae(preds: Array, targets: Array) -> float:
    """Mean of |pred - target|; preds and targets of the same shape, any shape."""
    return _difference(preds, targets).abs().mean().item()


def mse(preds: Array, targets: Array) -> float:
    """Mean of (pred - target)^2; preds and targets of the same shape, any shape."""
    return _difference(preds, targets).square().mean().item()


# ---------------------------------------------------------------------------------------------------------------------
# python metrics.py


def main() -> None:
    rng, names = np.random.default_rng(0), ["common", "medium", "rare", "rarest", "absent"]
    N, C = 2000, len(names)
    targets = rng.choice(C, N, p=[0.80, 0.14, 0.05, 0.01, 0])
    found = rng.random(N) < np.array([0.95, 0.80, 0.60, 0.40, 0])[targets]
    preds = np.where(found, targets, rng.choice(C, N, p=[0.70, 0.20, 0.08, 0.02, 0]))
    cm = ConfusionMatrix(C).update(preds, targets)
    print(f"A classifier on {N} images; the fifth class has no image\n\n{cm.report(names)}")
    print("95 % bootstrap interval of macro F1: {:.4f} to {:.4f}".format(*cm.f1_interval()))
    print("most frequent errors:", ", ".join(f"{n} {names[t]} as {names[p]}" for t, p, n in cm.most_confused(3)))

    print("\nA classifier that always predicts 'common': only the macro averages show it\n")
    print(ConfusionMatrix(C).update(np.zeros_like(targets), targets).report(names))

    print(f"\nThe mean of the batches' macro F1 is not the macro F1, which is {cm.f1():.4f}\n")
    print("batch size   images shuffled   sorted by class")
    for size in (16, 64, 256):
        means = []
        for order in (np.arange(N), targets.argsort(kind="stable")):
            batches = [order[start : start + size] for start in range(0, N, size)]
            means.append(np.mean([f1_score(preds[batch], targets[batch], C) for batch in batches]))
        print(f"{size:10d}   {means[0]:15.4f}   {means[1]:15.4f}")

    print("\nArguments swapped   (preds, targets)   (targets, preds)\n")
    for function, average in ((f1_score, "macro"), (f1_score, "weighted"), (recall_score, "macro")):
        right, wrong = function(preds, targets, C, average), function(targets, preds, C, average)
        print(f"{average + ' ' + function.__name__:21}   {right:13.4f}   {wrong:16.4f}")


if __name__ == "__main__":
    main()

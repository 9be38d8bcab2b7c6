"""Predictions and targets into numbers to judge an imbalanced classifier by.

    python metrics.py         # one small table per mistake that this file exists to prevent

The state of an epoch is one C x C matrix of integers, `cm[target, pred]`; a score is computed once, from the whole of
it, never per batch and then averaged. So any batch size and any order of the samples give the same score.

    cm = ConfusionMatrix(num_classes=18, device=device)
    for images, targets in batches:
        cm.update(model(images), targets)       # logits (N, C) or class ids (N,); the host never waits for the device
    print(cm.f1(), cm.f1("none"), cm.report())

Everything takes (preds, targets), or (scores, targets), nowhere another order; scikit-learn takes (y_true, y_pred).
Macro F1 stays the same when the two are swapped and hides the mistake; recall, precision and weighted F1 do not.

Averages of the per-class precision, recall and F1. `labels`, as in scikit-learn, first narrows them to some classes:

    macro           mean over all C classes, a class without any count scoring 0: the leaderboards' convention;
                    sklearn.metrics.f1_score(targets, preds, labels=range(C), average="macro", zero_division=0)
    macro_present   mean over the classes that occur in targets or in preds: scikit-learn's default
    micro           one ratio of summed counts; over all classes it is the accuracy under another name
    weighted        mean weighted by each class's count in targets
    none            no average: float64 tensor (C,), or (len(labels),) in the order of labels

0 / 0 is 0, and no formula has an epsilon. Counts are int64, scores float64, results Python floats. Inputs are torch
tensors, numpy arrays or lists. A score of no samples is a ValueError. Needs Python 3.8, torch 1.13, numpy.
"""

from __future__ import annotations

from operator import index, itemgetter
from typing import Any, Callable, Optional, Sequence, Union

import numpy as np
import torch
from torch import Tensor

Array = Union[Tensor, np.ndarray, Sequence]
Labels = Optional[Sequence[int]]
Score = Union[float, Tensor]  # a tensor for average="none"

AVERAGES = ("macro", "macro_present", "micro", "weighted", "none")

# ---------------------------------------------------------------------------------------------------------------------
# Counts into scores


def _ratio(part: Tensor, whole: Tensor) -> Tensor:
    """part / whole of integer counts, 0 / 0 = 0: wherever whole is 0 part is 0 as well, and 0 / 1 is 0."""
    return part.double() / whole.clamp(min=1)


def _score(metric: str, average: str, tp: Tensor, predicted: Tensor, support: Tensor) -> Tensor:
    """The score (...), or (..., C) for "none", of counts (..., C): true positives, predicted as c, truly c."""
    if average not in AVERAGES:
        raise ValueError(f"average must be one of {', '.join(AVERAGES)}; got {average!r}")
    part, whole = {
        "precision": (tp, predicted),  # TP / (TP + FP)
        "recall": (tp, support),  # TP / (TP + FN)
        "f1": (2 * tp, predicted + support),  # 2PR / (P + R) = 2TP / (2TP + FP + FN)
    }[metric]
    if average == "micro":
        return _ratio(part.sum(-1), whole.sum(-1))
    score = _ratio(part, whole)  # (..., C)
    if average == "none":
        return score
    present = (predicted + support > 0).long()
    weight = {"macro": torch.ones_like(tp), "macro_present": present, "weighted": support}[average]
    # sum_c w_c score_c / sum_c w_c
    return (score * weight).sum(-1) / weight.sum(-1).clamp(min=1)


def _class_ids(preds: Array, targets: Array, num_classes: int | None = None) -> tuple[Tensor, Tensor]:
    """Integer preds (N,), the argmax of float logits (N, C), and integer targets (N,)."""
    if not (isinstance(preds, Tensor) and isinstance(targets, Tensor)):
        preds, targets = torch.as_tensor(preds), torch.as_tensor(targets)
    if preds.dim() == 2 and preds.is_floating_point() and num_classes in (None, preds.shape[1]):
        preds = preds.argmax(1)  # (N, C) -> (N,)
    if preds.dim() != 1 or preds.shape != targets.shape or preds.is_floating_point() or targets.is_floating_point():
        raise ValueError(
            f"need integer preds (N,) or float logits (N, {num_classes or 'C'}), and integer targets (N,); "
            f"got {preds.dtype} {tuple(preds.shape)} and {targets.dtype} {tuple(targets.shape)}"
        )
    return preds, targets


class ConfusionMatrix:
    """Counts `cm[target, pred]` over an epoch, and the scores that follow from them.

    `update` is two clamps and one index_put_, without a host sync; reading a number waits for the device.
    A value outside [0, num_classes), such as an ignore index of -100, is never counted as a class: index_put_ alone
    would wrap -1 to the last class, so `counts` has two more rows and columns, where such values land. Reading any
    number then raises ValueError, until `reset`. `counts` is the whole state: save it, or sum it over processes.

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
        """Forgets every count."""
        size = self.num_classes + 2
        self.counts = torch.zeros(size, size, dtype=torch.long, device=self.device)  # (C + 2, C + 2)

    def update(self, preds_or_logits: Array, targets: Array) -> ConfusionMatrix:
        """Adds a batch: integer preds (N,) or float logits (N, C), and integer targets (N,). Returns itself."""
        preds, targets = _class_ids(preds_or_logits, targets, self.num_classes)
        # C or more lands in row C; below 0 becomes -1, which index_put_ wraps to the last row, C + 1
        rows = targets.long().clamp(-1, self.num_classes)
        columns = preds.long().clamp(-1, self.num_classes)
        self.counts.index_put_((rows, columns), self._one, accumulate=True)
        return self

    @property
    def matrix(self) -> Tensor:
        """A copy on the CPU, int64 (C, C). ValueError if nothing was counted or any value was out of range."""
        C, counts = self.num_classes, self.counts.cpu()
        (t_high, t_low), (p_high, p_low) = counts[C:].sum(1).tolist(), counts[:, C:].sum(0).tolist()
        if t_high or t_low or p_high or p_low:
            raise ValueError(
                f"classes must lie in [0, {C}), but of {counts.sum().item()} targets {t_low} are below 0 "
                f"and {t_high} are {C} or more, of the preds {p_low} are below 0 and {p_high} are {C} or more"
            )
        if not counts.any():
            raise ValueError("no samples: nothing was given to update()")
        return counts[:C, :C].clone()

    def _ids(self, labels: Labels) -> Tensor:
        """labels, or every class: int64 (L,)."""
        ids = list(range(self.num_classes)) if labels is None else [index(c) for c in labels]
        if not ids or len(set(ids)) < len(ids) or min(ids) < 0 or max(ids) >= self.num_classes:
            raise ValueError(f"labels must be distinct, in [0, {self.num_classes}) and at least one, got {ids}")
        return torch.tensor(ids)

    def _read(self, metric: str, average: str, labels: Labels) -> Score:
        matrix, ids = self.matrix, self._ids(labels)
        score = _score(metric, average, matrix.diagonal()[ids], matrix.sum(0)[ids], matrix.sum(1)[ids])
        return score if average == "none" else score.item()

    def precision(self, average: str = "macro", labels: Labels = None) -> Score:
        """TP / (TP + FP): how much of what was called c is c."""
        return self._read("precision", average, labels)

    def recall(self, average: str = "macro", labels: Labels = None) -> Score:
        """TP / (TP + FN): how much of c was found."""
        return self._read("recall", average, labels)

    def f1(self, average: str = "macro", labels: Labels = None) -> Score:
        """2TP / (2TP + FP + FN). "macro" is the mean of the F1s, not the F1 of mean precision and recall."""
        return self._read("f1", average, labels)

    def accuracy(self) -> float:
        """Correct / counted."""
        return self.recall("micro")

    def balanced_accuracy(self) -> float:
        """Mean recall over the classes that occur in targets, as scikit-learn defines it."""
        return self.recall("none")[self.support() > 0].mean().item()

    def support(self) -> Tensor:
        """Samples of each class in targets, int64 (C,)."""
        return self.matrix.sum(1)

    def per_class(self) -> list[dict[str, Any]]:
        """One row per class: {"class", "precision", "recall", "f1", "support"}."""
        columns = self.precision("none"), self.recall("none"), self.f1("none"), self.support()
        rows = zip(range(self.num_classes), *(column.tolist() for column in columns))
        return [dict(zip(("class", "precision", "recall", "f1", "support"), row)) for row in rows]

    def worst_class(self) -> tuple[int, float]:
        """(class, F1) of the lowest F1 among the classes that occur in targets; the first of equals."""
        return min(((r["class"], r["f1"]) for r in self.per_class() if r["support"]), key=itemgetter(1))

    def most_confused(self, k: int = 5) -> list[tuple[int, int, int]]:
        """The k most frequent errors (target, pred, count); equally frequent ones by target, then by pred."""
        counts, cells = self.matrix.fill_diagonal_(0).flatten().sort(descending=True, stable=True)  # (C * C,)
        top = zip(cells[:k].tolist(), counts[:k].tolist())
        return [(cell // self.num_classes, cell % self.num_classes, count) for cell, count in top if count]

    def f1_interval(
        self,
        average: str = "macro",
        labels: Labels = None,
        samples: int = 1000,
        confidence: float = 0.95,
        seed: int = 0,
    ) -> tuple[float, float]:
        """(low, high): bootstrap interval of the F1 (Efron & Tibshirani 1993, chapter 13), around the F1.

        It answers how far the score would move with other images of the same kind, not with another training seed.
        A resample loses classes of few images, which then score 0, so its F1 is too low on average: by a little at 18
        classes, by more than the interval is long at 300 classes of 5 images. The percentiles are moved up by as much.
        N images drawn with replacement are one multinomial draw of N over the non-zero cells of the matrix, so no image
        is touched: 0.1 s for 1000 samples at C = 18, whatever N. ValueError unless samples >= 1, 0 < confidence < 1.
        """
        if samples < 1 or not 0 < confidence < 1 or average == "none":
            raise ValueError(
                'need samples >= 1, 0 < confidence < 1 and an average other than "none"; '
                f"got samples={samples}, confidence={confidence}, average={average!r}"
            )
        matrix, ids, rng, scores = self.matrix, self._ids(labels), np.random.default_rng(seed), []
        rows, columns = matrix.nonzero(as_tuple=True)  # (K,), (K,)
        cells = matrix[rows, columns].numpy()  # (K,)
        block = max(1, 2**21 // max(len(cells), self.num_classes))  # B samples at a time: 16 MiB a tensor
        for start in range(0, samples, block):
            size = min(block, samples - start)
            draws = torch.from_numpy(rng.multinomial(cells.sum(), cells / cells.sum(), size))  # (B, K)
            zeros = torch.zeros(size, self.num_classes, dtype=torch.long)  # (B, C)
            tp = zeros.scatter_add(1, rows.expand(size, -1), draws * (rows == columns))
            predicted = zeros.scatter_add(1, columns.expand(size, -1), draws)
            support = zeros.scatter_add(1, rows.expand(size, -1), draws)
            scores.append(_score("f1", average, tp[:, ids], predicted[:, ids], support[:, ids]))
        drawn, score = torch.cat(scores).numpy(), self.f1(average, labels)
        around = score + drawn - drawn.mean()
        low, high = np.quantile(around.clip(0, 1), [(1 - confidence) / 2, (1 + confidence) / 2])
        return float(low), float(high)

    def report(self, class_names: Sequence[str] | None = None) -> str:
        """A text table: one row per class, the averages, the accuracies."""
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
# The same for whole arrays: preds (N,) of integers or logits (N, C), targets (N,)


def confusion_matrix(preds: Array, targets: Array, num_classes: int) -> Tensor:
    """int64 (C, C): rows are targets, columns are preds."""
    return ConfusionMatrix(num_classes).update(preds, targets).matrix


def precision_score(
    preds: Array, targets: Array, num_classes: int, average: str = "macro", labels: Labels = None
) -> Score:
    """TP / (TP + FP)."""
    return ConfusionMatrix(num_classes).update(preds, targets).precision(average, labels)


def recall_score(
    preds: Array, targets: Array, num_classes: int, average: str = "macro", labels: Labels = None
) -> Score:
    """TP / (TP + FN)."""
    return ConfusionMatrix(num_classes).update(preds, targets).recall(average, labels)


def f1_score(preds: Array, targets: Array, num_classes: int, average: str = "macro", labels: Labels = None) -> Score:
    """2TP / (2TP + FP + FN).

    >>> f1_score([0, 0, 1, 1], [0, 0, 0, 1], num_classes=3, average="none").tolist()
    [0.8, 0.6666666666666666, 0.0]
    """
    return ConfusionMatrix(num_classes).update(preds, targets).f1(average, labels)


def balanced_accuracy_score(preds: Array, targets: Array, num_classes: int) -> float:
    """Mean recall over the classes that occur in targets."""
    return ConfusionMatrix(num_classes).update(preds, targets).balanced_accuracy()


def accuracy_score(preds: Array, targets: Array) -> float:
    """Correct / N. A negative class, such as an ignore index, is a ValueError."""
    preds, targets = _class_ids(preds, targets)
    if not len(preds) or min(preds.min(), targets.min()) < 0:
        raise ValueError(f"need at least one sample and no class below 0, got {len(preds)} samples")
    return (preds == targets).double().mean().item()


def bootstrap_f1(preds: Array, targets: Array, num_classes: int, **options: Any) -> tuple[float, float]:
    """(low, high) of the F1 over resampled images; options as for ConfusionMatrix.f1_interval."""
    return ConfusionMatrix(num_classes).update(preds, targets).f1_interval(**options)


# ---------------------------------------------------------------------------------------------------------------------
# Scores into numbers: one class against the rest, ranking, regression


def _float64(scores: Array) -> Tensor:
    scores = torch.as_tensor(scores).detach().cpu().double()
    if scores.isnan().any():
        raise ValueError(f"NaN among the values of shape {tuple(scores.shape)}")
    return scores


def _one_vs_rest(scores: Array, targets: Array, average: str, statistic: Callable[[Tensor, Tensor], float]) -> Score:
    """statistic(sorted scores of the positives (P,), of the negatives (M,)) per class, and the mean of these."""
    scores, targets = _float64(scores), torch.as_tensor(targets).cpu()
    if scores.dim() not in (1, 2) or scores.shape[1:] == (1,) or targets.shape != scores.shape[:1]:
        raise ValueError(
            "need scores (N, C) with C >= 2, or scores (N,) of class 1 of 2, and targets (N,); "
            f"got {tuple(scores.shape)} and {tuple(targets.shape)}"
        )
    columns = list(enumerate(scores.t())) if scores.dim() == 2 else [(1, scores)]
    C = max(len(columns), 2)
    if targets.is_floating_point() or ((targets < 0) | (targets >= C)).any():
        raise ValueError(f"targets must be integers in [0, {C}), got {targets.dtype} {targets.unique()[:9].tolist()}")
    if average not in ("macro", "none"):
        raise ValueError(f"average must be one of macro, none; got {average!r}")
    per_class = []
    for c, column in columns:
        positives, negatives = column[targets == c].sort()[0], column[targets != c].sort()[0]
        per_class.append(statistic(positives, negatives) if len(positives) and len(negatives) else np.nan)
    if average == "macro" and np.isnan(per_class).all():
        raise ValueError("undefined: no class has both a positive and a negative sample")
    return float(np.nanmean(per_class)) if average == "macro" else torch.tensor(per_class, dtype=torch.double)


def roc_auc(scores: Array, targets: Array, average: str = "macro") -> Score:
    """Area under the ROC curve: the chance that a sample of the class outscores one of the rest, a tie counting 1/2.

    scores (N, C) and targets (N,), one class against the rest; or binary: scores (N,) of class 1, targets of 0 and 1.
    average: "macro" or "none", per class (C,), binary (1,). A class without a positive or without a negative sample is
    undefined: nan with "none", left out of the "macro" mean, ValueError if none is left. Hanley & McNeil 1982.

    >>> roc_auc([0.1, 0.4, 0.4, 0.8], [0, 0, 1, 1])
    0.875
    """

    def statistic(positives: Tensor, negatives: Tensor) -> float:
        # sum over positives of (negatives below + negatives not above) / 2, over P * M: average ranks
        below, not_above = (torch.searchsorted(negatives, positives, right=right) for right in (False, True))
        return (below + not_above).sum().item() / (2 * len(positives) * len(negatives))

    return _one_vs_rest(scores, targets, average, statistic)


def average_precision(scores: Array, targets: Array, average: str = "macro") -> Score:
    """Mean over the positives of the precision when their score is the threshold: sum of (R_n - R_{n-1}) P_n.

    Shapes, undefined classes and errors as for roc_auc. Samples tied with the threshold count as above it.

    >>> average_precision([0.1, 0.4, 0.4, 0.8], [0, 0, 1, 1])
    0.8333333333333333
    """

    def statistic(positives: Tensor, negatives: Tensor) -> float:
        tp = len(positives) - torch.searchsorted(positives, positives)  # (P,) at the threshold or above
        fp = len(negatives) - torch.searchsorted(negatives, positives)
        return _ratio(tp, tp + fp).mean().item()

    return _one_vs_rest(scores, targets, average, statistic)


def calibration(probs: Array, targets: Array, bins: int = 15) -> list[tuple[int, float, float]]:
    """(samples, mean confidence, accuracy) of each of `bins` equal parts of [0, 1] that holds a sample, low to high.

    probs (N, C) of rows that sum to 1, targets (N,). Confidence is the largest probability of a row; one on the border
    of two parts belongs to the lower. A network whose accuracy is below its confidence is over-confident.
    Guo et al. 2017, arXiv:1706.04599.

    >>> calibration([[1.0, 0.0], [0.75, 0.25], [0.25, 0.75]], [0, 1, 1], bins=2)
    [(3, 0.8333333333333334, 0.6666666666666666)]
    """
    probs, targets = _float64(probs), torch.as_tensor(targets).cpu()
    if probs.dim() != 2 or targets.shape != probs.shape[:1] or not len(probs) or bins < 1:
        raise ValueError(
            f"need probs (N, C), targets (N,), N >= 1 and bins >= 1; got {tuple(probs.shape)}, {tuple(targets.shape)} "
            f"and bins={bins}"
        )
    if probs.min() < 0 or (probs.sum(1) - 1).abs().max() > 1e-3:
        raise ValueError("each row of probs must sum to 1, and hold nothing below 0: softmax the logits first")
    confidence, preds = probs.max(1)  # (N,), (N,)
    part = (confidence * bins).ceil().long().clamp(1, bins) - 1  # (N,)
    zeros = torch.zeros(bins, dtype=torch.double)
    of_each = torch.ones_like(confidence), confidence, (preds == targets).double()
    counts, sums, right = (zeros.index_add(0, part, values) for values in of_each)
    return [(int(n), s / n, r / n) for n, s, r in zip(counts.tolist(), sums.tolist(), right.tolist()) if n]


def expected_calibration_error(probs: Array, targets: Array, bins: int = 15) -> float:
    """sum over parts of (samples / N) |accuracy - mean confidence|, in [0, 1]; shapes and errors as for calibration.

    >>> round(expected_calibration_error([[1.0, 0.0], [0.75, 0.25], [0.25, 0.75]], [0, 1, 1], bins=2), 4)
    0.1667
    """
    parts = calibration(probs, targets, bins)
    return sum(n * abs(accuracy - confidence) for n, confidence, accuracy in parts) / sum(n for n, _, _ in parts)


def _queries(scores: Array, relevance: Array) -> tuple[Tensor, Tensor]:
    scores, relevance = _float64(scores), _float64(relevance)
    if scores.dim() != 2 or not scores.numel() or relevance.shape != scores.shape or relevance.min() < 0:
        raise ValueError(
            "need scores (Q, D) and relevance (Q, D) of 0 or more, not empty; "
            f"got {tuple(scores.shape)} and {tuple(relevance.shape)}"
        )
    return scores, relevance


def mrr(scores: Array, targets: Array) -> float:
    """Mean reciprocal rank of the first relevant item, in (0, 1]; a query without any relevant item scores 0.

    scores (Q, D); targets (Q,), the index of the relevant item, or relevance (Q, D), where more than 0 is relevant.
    An irrelevant item of equal score ranks before the relevant one.

    >>> mrr([[0.3, 0.9, 0.1], [0.5, 0.5, 0.1]], [1, 0])
    0.75
    """
    scores, relevance = torch.as_tensor(scores), torch.as_tensor(targets)
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
    """Mean over queries of DCG@k / ideal DCG@k, in [0, 1]; a query without any relevance scores 0.

    scores (Q, D), relevance (Q, D) of 0 or more; linear gain, all D items unless k. Items of equal score share the mean
    discount of the ranks that they take together, as in sklearn.metrics.ndcg_score. Jarvelin & Kekalainen 2002.

    >>> round(ndcg([[0.1, 0.2, 0.3]], [[3, 0, 1]]), 4)
    0.6885
    """
    scores, relevance = _queries(scores, relevance)
    if k is not None and k < 1:
        raise ValueError(f"k must be >= 1, got {k}")
    D = scores.shape[1]
    discount = 1 / torch.arange(2, D + 2).double().log2()  # (D,) 1 / log2(rank + 1)
    discount[k or D :] = 0
    upto = torch.cat((torch.zeros(1).double(), discount.cumsum(0)))  # (D + 1,)
    ascending = scores.sort(1)[0]
    # items of equal score take the ranks first + 1 ... last
    last, first = (D - torch.searchsorted(ascending, scores, right=right) for right in (False, True))  # (Q, D)
    dcg = (relevance * (upto[last] - upto[first]) / (last - first)).sum(1)
    ideal = (relevance.sort(1, descending=True)[0] * discount).sum(1)
    return (dcg / ideal.masked_fill(ideal == 0, 1)).mean().item()


def _difference(preds: Array, targets: Array) -> Tensor:
    preds, targets = _float64(preds), _float64(targets)
    if preds.shape != targets.shape or not preds.numel():
        raise ValueError(f"need equal shapes, not empty; got {tuple(preds.shape)} and {tuple(targets.shape)}")
    return preds - targets


def mae(preds: Array, targets: Array) -> float:
    """Mean of |pred - target|; any equal shapes."""
    return _difference(preds, targets).abs().mean().item()


def mse(preds: Array, targets: Array) -> float:
    """Mean of (pred - target)^2; any equal shapes."""
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
    print(f"A classifier on {N} images, of which the fifth class has none\n\n{cm.report(names)}")
    print("95 % interval of macro F1 over the draw of the images: {:.4f} ... {:.4f}".format(*cm.f1_interval()))
    print("most frequent errors:", ", ".join(f"{n} {names[t]} as {names[p]}" for t, p, n in cm.most_confused(3)))

    print("\nA classifier that always answers 'common': only the macro averages notice\n")
    print(ConfusionMatrix(C).update(np.zeros_like(targets), targets).report(names))

    print(f"\nThe mean of each batch's macro F1 is another number than macro F1 = {cm.f1():.4f}\n")
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

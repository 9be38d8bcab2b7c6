# From f1kit. MIT licence, copyright (c) 2026 The f1kit authors. Keep this line and LICENSE with a copy of this file.
"""Classification losses for imbalanced data: from logits and targets to one number to minimise.

    python losses.py          # prints the loss and gradient of easy and hard samples, and class weights

Copy this file alone into your project. It needs torch (1.13 or later) and no other file of the kit.

    criterion = build_loss("focal", gamma=2.0, weight=class_weights(counts, "effective"))
    criterion = build_loss("ce+f1")            # a sum; with coefficients: "focal:0.6+f1:0.4"
    loss = criterion(logits, targets)

Four rules hold for every loss in this file.

1. Arguments are (logits, targets): raw logits (N, C), and class indices (N,) or class probabilities (N, C).
   A soft target is a mixture of classes. Its loss is the same mixture of the losses of those classes.
2. Arithmetic is in float32 or wider and uses log_softmax. Losses and gradients are finite at logits of +-200, in half
   precision too.
3. "mean" divides as torch.nn.CrossEntropyLoss does: by the sum of the targets' class weights. Without class weights or
   with soft targets it divides by N. `weight_of(targets)` is this divisor: use it to combine micro-batches exactly.
4. p_t, the probability of the true class, never contains the class weight. The weight multiplies afterwards.

To add a loss: a function, a module of ten lines, and a line in LOSSES.
"""

from __future__ import annotations

import inspect
import math
from typing import Dict, Optional, Sequence, Tuple, Union

import torch
import torch.nn.functional as F
from torch import Tensor, nn

REDUCTIONS = ("mean", "sum", "none")
SPREADS = ("all", "others")
WEIGHTINGS = ("inverse", "sqrt", "effective")
NO_IGNORED_INDEX = torch.iinfo(torch.int64).min  # so a target of -100 is an error, not a sample silently ignored


Counts = Union[Sequence[float], Tensor]


class BadInput(ValueError):
    """A value that the user gave is wrong. The message tells which one, what is valid, and what to do."""


# ---------------------------------------------------------------------------------------------------------------------
# Functions
# ---------------------------------------------------------------------------------------------------------------------


def cross_entropy_loss(
    logits: Tensor, targets: Tensor, smoothing: float = 0.0, weight: Optional[Tensor] = None, reduction: str = "mean"
) -> Tensor:
    """Cross-entropy, the same numbers as torch.nn.functional.cross_entropy(..., label_smoothing=smoothing).

    Formula: CE = -w_t log p_t, or with smoothing eps CE = -(1 - eps) w_t log p_t - eps / C * sum_c w_c log p_c.
    As in torch, the smoothed part carries the weights of all classes.
    Source of smoothing: Szegedy et al. 2015, arXiv:1512.00567. Arguments and errors as in `focal_loss`.

    >>> round(cross_entropy_loss(torch.tensor([[2.0, 0.0]]), torch.tensor([0])).item(), 4)
    0.1269
    """
    _check_options(smoothing=smoothing, reduction=reduction)
    logits, targets, weight = _check_inputs(logits, targets, weight)
    _, ce = _nll_and_ce(logits, targets, smoothing, weight)
    return _reduce(ce, targets, weight, reduction)


def focal_loss(
    logits: Tensor,
    targets: Tensor,
    gamma: float = 2.0,
    smoothing: float = 0.0,
    weight: Optional[Tensor] = None,
    reduction: str = "mean",
) -> Tensor:
    """Focal loss: cross-entropy scaled down where the model is already sure of the true class.

    Formula: FL = (1 - p_t)^gamma * CE, with CE as in `cross_entropy_loss`; gamma = 0 is exactly cross-entropy.
    p_t is the probability of the true class, without weight and without smoothing. From the smoothed CE, exp(-CE)
    would never exceed 0.57 (eps 0.1, 17 classes), and no sample would count as easy.
    Source: Lin et al. 2017, arXiv:1708.02002.

    Args:
        logits: (N, C), any float type.
        targets: (N,) class indices in [0, C) of any integer type, or (N, C) class probabilities; rows sum to 1.
        gamma: focusing parameter, >= 0.
        smoothing: label smoothing eps in [0, 1], spread over all C classes.
        weight: (C,) class weights, >= 0.
        reduction: "mean" (divides by `weight_of(targets, weight)`), "sum", or "none" for (N,).

    Raises: ValueError for wrong shapes or types; BadInput (a ValueError) for gamma or smoothing out of range.

    >>> round(focal_loss(torch.tensor([[2.0, 0.0]]), torch.tensor([0])).item(), 4)  # (1 - 0.8808)^2 * 0.1269
    0.0018
    """
    _check_options(gamma=gamma, smoothing=smoothing, reduction=reduction)
    logits, targets, weight = _check_inputs(logits, targets, weight)
    nll, ce = _nll_and_ce(logits, targets, smoothing, weight)  # -log p_t and CE
    if gamma:
        p_t_minus_1 = torch.expm1(-nll)  # exp(log p_t) - 1, exact also where p_t is almost 1
        if gamma == 2:
            factor = p_t_minus_1 * p_t_minus_1  # the same number as below, in fewer operations
        else:  # clamp: for gamma < 1 the slope of (1 - p_t)^gamma is infinite at p_t = 1
            factor = (-p_t_minus_1).clamp(min=torch.finfo(nll.dtype).tiny) ** gamma
        ce = factor * ce
    return _reduce(ce, targets, weight, reduction)


def label_smoothing_loss(
    logits: Tensor,
    targets: Tensor,
    smoothing: float = 0.1,
    spread: str = "all",
    weight: Optional[Tensor] = None,
    reduction: str = "mean",
) -> Tensor:
    """Cross-entropy against smoothed labels, in either of the two conventions that share this name.

    spread="all": each class gets eps / C, so the true one has 1 - eps + eps / C (torch, timm, Keras).
    spread="others": each wrong class gets eps / (C - 1), and the true one 1 - eps (common in course notes).
    "others" with eps equals "all" with eps * C / (C - 1): 0.1 at 17 classes is 0.10625. Rows sum to 1 in both.
    Formula: `cross_entropy_loss` with that eps. Other arguments and errors as in `focal_loss`.

    >>> logits, target = torch.tensor([[2.0, 0.0, 0.0]]), torch.tensor([0])
    >>> round(label_smoothing_loss(logits, target, 0.1).item(), 4)
    0.3729
    >>> round(label_smoothing_loss(logits, target, 0.1, spread="others").item(), 4)
    0.4395
    """
    _check_options(smoothing=smoothing, spread=spread, reduction=reduction)
    logits, targets, weight = _check_inputs(logits, targets, weight)
    C = logits.shape[1]
    if spread == "others":
        if C < 2:
            raise ValueError(f"spread='others' needs at least 2 classes, got logits of shape {tuple(logits.shape)}")
        smoothing *= C / (C - 1)
    _, ce = _nll_and_ce(logits, targets, smoothing, weight)
    return _reduce(ce, targets, weight, reduction)


def label_aware_smoothing_loss(
    logits: Tensor,
    targets: Tensor,
    counts: Counts,
    smoothing: float = 0.3,
    smoothing_tail: float = 0.0,
    weight: Optional[Tensor] = None,
    reduction: str = "mean",
) -> Tensor:
    """Label smoothing with an eps for each class: more for large classes, of which a model is too sure.

    Formula: eps_c = smoothing_tail + (smoothing - smoothing_tail) sin(pi/2 (n_c - n_min) / (n_max - n_min)), and
    `cross_entropy_loss` with the eps of the true class. With equal counts, eps_c = smoothing_tail.
    Source: Zhong et al. 2021, arXiv:2104.00466, concave form.

    Args: smoothing, smoothing_tail: eps of the largest and of the smallest class, in [0, 1]. `counts` as in
        `logit_adjustment_loss`. Others and errors as in `focal_loss`.

    >>> logits, counts = torch.tensor([[2.0, 0.0, 0.0]]), [100, 10, 10]
    >>> round(label_aware_smoothing_loss(logits, torch.tensor([0]), counts, 0.1).item(), 4)  # as label_smoothing_loss
    0.3729
    """
    _check_options(smoothing=smoothing, smoothing_tail=smoothing_tail, reduction=reduction)
    eps = smoothing_of_classes(counts, smoothing, smoothing_tail)
    return _label_aware_smoothing(logits, targets, eps, weight, reduction)


def logit_adjustment_loss(
    logits: Tensor,
    targets: Tensor,
    counts: Counts,
    tau: float = 1.0,
    weight: Optional[Tensor] = None,
    reduction: str = "mean",
) -> Tensor:
    """Cross-entropy of logits + tau log(class prior). The model learns logits that do not contain the class prior.

    Formula: CE(z + tau log pi), pi_c = n_c / sum_k n_k. tau = 1 is Balanced Softmax, tau = 0 is cross-entropy.
    Predict with the raw logits z: they fit a test set with equal class shares. Never correct them a second time.
    Source: Menon et al. 2020, arXiv:2007.07314; Balanced Softmax: Ren et al. 2020, arXiv:2007.10740.

    Args:
        counts: (C,) training samples per class, >= 0, as they are drawn: a balanced sampler makes them equal. Only
            their ratios matter. A class without samples gets the count of the smallest class that has some.
        tau: strength of the adjustment, >= 0. Others and errors as in `focal_loss`.

    >>> logits = torch.tensor([[0.0, 0.0]])
    >>> round(logit_adjustment_loss(logits, torch.tensor([1]), counts=[9, 1]).item(), 4)  # -log 0.1
    2.3026
    """
    _check_options(tau=tau, reduction=reduction)
    return _logit_adjustment(logits, targets, log_prior(counts, tau), weight, reduction)


def ldam_loss(
    logits: Tensor,
    targets: Tensor,
    counts: Counts,
    max_m: float = 0.5,
    scale: float = 30.0,
    weight: Optional[Tensor] = None,
    reduction: str = "mean",
) -> Tensor:
    """LDAM (label-distribution-aware margin): the true class must win by a margin, which is larger for rare classes.

    Formula: CE(z - scale m_y on the true class y), m_c = max_m (n_min / n_c)^(1/4). max_m = 0 is cross-entropy.
    z = scale * cosine, the logits of a cosine head: models.CosineHead multiplies by the same scale. m is a margin of
    the cosine. If your head returns plain cosines, multiply them by scale first.
    Source: Cao et al. 2019, arXiv:1906.07413.

    Args: max_m: margin of the smallest class, >= 0. scale: > 0. `counts` as in `logit_adjustment_loss`. Others and
        errors as in `focal_loss`.

    >>> logits = torch.tensor([[0.0, 15.0]])
    >>> round(ldam_loss(logits, torch.tensor([1]), counts=[16, 1]).item(), 4)  # 15 - 30 * 0.5 = 0: log 2
    0.6931
    """
    _check_options(max_m=max_m, scale=scale, reduction=reduction)
    return _ldam(logits, targets, margins(counts, max_m, scale), weight, reduction)


def f1_loss(logits: Tensor, targets: Tensor, weight: Optional[Tensor] = None) -> Tensor:
    """Soft macro F1 as a loss: 1 - macro F1, computed from probabilities instead of counts.

    Formula: F1_c = 2 TP_c / (sum_i p_ic + sum_i y_ic) with TP_c = sum_i y_ic p_ic; the loss is 1 - mean_c F1_c.
    The mean (weighted by `weight` if given) is over the classes that occur in `targets`. A class without a sample has
    TP = 0 for any prediction: it would add a constant penalty and no information.
    The loss is a ratio of sums over the batch, not a mean over samples. So most classes should occur in each batch,
    and the losses of micro-batches cannot be added up (train.py accumulates it by gradient caching).
    Source: soft Dice with y in {0, 1}: Milletari et al. 2016, arXiv:1606.04797.

    Args: logits (N, C); targets (N,) class indices or (N, C) probabilities; weight (C,), >= 0.
    Returns a scalar in [0, 1]. Raises ValueError for wrong shapes or types.

    >>> round(f1_loss(torch.tensor([[9.0, 0.0], [0.0, 9.0]]), torch.tensor([0, 1])).item(), 3)
    0.0
    """
    logits, targets, weight = _check_inputs(logits, targets, weight)
    p = logits.softmax(1)  # (N, C)
    predicted = p.sum(0)  # (C,)
    if targets.ndim == 1:  # sums by index: no one-hot (N, C) is needed
        p_t = p.gather(1, targets.unsqueeze(1)).squeeze(1)  # (N,)
        zeros = torch.zeros_like(predicted)
        true_positives = zeros.index_add(0, targets, p_t)  # (C,)
        support = zeros.index_add(0, targets, torch.ones_like(p_t))  # (C,)
    else:
        true_positives = (targets * p).sum(0)
        support = targets.to(p.dtype).sum(0)
    present = support > 0
    # F1_c = 2 TP_c / (sum_i p_ic + sum_i y_ic); absent classes divide by 1 and do not count below
    f1 = 2 * true_positives / torch.where(present, predicted + support, torch.ones_like(support))  # (C,)
    share = present.to(p.dtype) if weight is None else present * weight
    return 1 - (f1 * share).sum() / share.sum()


def weight_of(targets: Tensor, weight: Optional[Tensor] = None) -> Union[int, Tensor]:
    """The divisor of "mean": the sum of the targets' class weights, or N (no class weights, or soft targets (N, C))."""
    if weight is None or targets.ndim == 2:
        return targets.shape[0]
    return weight.index_select(0, targets.long()).sum()


def log_prior(counts: Counts, tau: float = 1.0) -> Tensor:
    """tau log pi_c, (C,) float64, see `logit_adjustment_loss`."""
    n = _occurring(counts)
    return tau * (n / n.sum()).log()


def margins(counts: Counts, max_m: float = 0.5, scale: float = 30.0) -> Tensor:
    """scale * max_m (n_min / n_c)^(1/4), (C,) float64, see `ldam_loss`."""
    n = _occurring(counts)
    return scale * max_m * (n.min() / n) ** 0.25


def smoothing_of_classes(counts: Counts, smoothing: float = 0.3, smoothing_tail: float = 0.0) -> Tensor:
    """eps_c, (C,) float64, see `label_aware_smoothing_loss`."""
    n = _occurring(counts)
    place = (n - n.min()) / (n.max() - n.min()).clamp(min=1e-300)  # 0 for the smallest class, 1 for the largest
    return smoothing_tail + (smoothing - smoothing_tail) * (place * math.pi / 2).sin()


def class_weights(counts: Sequence[int], scheme: str = "inverse", beta: float = 0.999) -> Tensor:
    """(C,) float32 class weights from the training counts, with mean 1 over the training samples.

    inverse: 1 / n_c.
    sqrt: 1 / sqrt(n_c).
    effective: (1 - beta) / (1 - beta^n_c), the inverse of the effective number of samples (Cui et al. 2019,
    arXiv:1901.05555), with beta in [0, 1). For beta close to 1 it becomes inverse.
    "Mean 1 over the samples" means sum_c n_c w_c = sum_c n_c. So the weighted loss starts at the size of the
    unweighted one, and the same learning rate fits.
    A class without training samples gets the weight of a class with one. It matters only in validation.

    Raises: BadInput (a ValueError) for an unknown scheme; ValueError for negative counts, or beta out of range.

    >>> class_weights([90, 10], "inverse")
    tensor([0.5556, 5.0000])
    """
    n = _check_counts(counts)
    if scheme not in WEIGHTINGS:
        raise BadInput(f"unknown class weighting {scheme!r}: choose from {', '.join(WEIGHTINGS)}")
    if not 0 <= beta < 1:
        raise ValueError(f"beta must be in [0, 1), got {beta}")
    at_least_one = n.clamp(min=1)
    if scheme == "inverse":
        w = 1 / at_least_one
    elif scheme == "sqrt":
        w = at_least_one.rsqrt()
    else:
        w = (1 - beta) / (1 - beta**at_least_one)
    return (w * n.sum() / (w * n).sum()).float()


# ---------------------------------------------------------------------------------------------------------------------
# What the functions share
# ---------------------------------------------------------------------------------------------------------------------


def _check_counts(counts: Counts) -> Tensor:
    """Counts (C,) in float64. Reads their values, so it is not called in every step."""
    n = _tensor(counts, torch.float64)
    if n.ndim != 1 or not bool((n.isfinite() & (n >= 0)).all()) or not bool(n.any()):
        raise ValueError(f"counts must be one number >= 0 for each class, and not all 0, got {counts}")
    return n


def _occurring(counts: Counts) -> Tensor:
    """Counts (C,) in float64. A class without samples gets the count of the smallest class that has some."""
    n = _tensor(counts, torch.float64)
    return torch.where(n > 0, n, torch.where(n > 0, n, math.inf).min())


def _label_aware_smoothing(
    logits: Tensor, targets: Tensor, eps: Tensor, weight: Optional[Tensor], reduction: str
) -> Tensor:
    logits, targets, weight = _check_inputs(logits, targets, weight)
    eps = _per_class(eps, logits)  # (C,)
    eps = eps if targets.ndim == 2 else eps.index_select(0, targets)
    _, ce = _nll_and_ce(logits, targets, eps, weight)
    return _reduce(ce, targets, weight, reduction)


def _logit_adjustment(
    logits: Tensor, targets: Tensor, adjustment: Tensor, weight: Optional[Tensor], reduction: str
) -> Tensor:
    logits, targets, weight = _check_inputs(logits, targets, weight)
    _, ce = _nll_and_ce(logits + _per_class(adjustment, logits), targets, 0.0, weight)
    return _reduce(ce, targets, weight, reduction)


def _ldam(logits: Tensor, targets: Tensor, margin: Tensor, weight: Optional[Tensor], reduction: str) -> Tensor:
    logits, targets, weight = _check_inputs(logits, targets, weight)
    margin = _per_class(margin, logits)  # (C,)
    if targets.ndim == 1:
        lowered = logits.scatter_add(1, targets.unsqueeze(1), -margin.index_select(0, targets).unsqueeze(1))
        _, ce = _nll_and_ce(lowered, targets, 0.0, weight)  # (N,)
    else:  # (N, C): column c as if c were the true class
        ce = F.softplus(_log_sum_of_others(logits) - (logits - margin))  # log(1 + exp(others - own))
        ce = ce if weight is None else ce * weight
    return _reduce(ce, targets, weight, reduction)


def _log_sum_of_others(logits: Tensor) -> Tensor:
    """(N, C): column c is log sum_k exp(z_k) over k != c. Exact also for a class that has almost the whole sum."""
    is_top = torch.arange(logits.shape[1], device=logits.device) == logits.argmax(1, keepdim=True)  # (N, C)
    without_top = logits.masked_fill(is_top, -math.inf).logsumexp(1, keepdim=True)  # (N, 1)
    log_p = logits.log_softmax(1).masked_fill(is_top, -math.inf)  # at most log 1/2: 1 - p is exact
    return torch.where(is_top, without_top, logits.logsumexp(1, keepdim=True) + torch.log1p(-log_p.exp()))


def _per_class(values: Tensor, logits: Tensor) -> Tensor:
    """Values (C,) that were computed from counts, in type and on device of the logits."""
    if values.shape != logits.shape[1:]:
        C, shape = logits.shape[1], tuple(values.shape)
        raise ValueError(f"counts must be one number for each of the {C} classes, got shape {shape}")
    return values.to(logits)


def _nll_and_ce(
    logits: Tensor, targets: Tensor, smoothing: Union[float, Tensor], weight: Optional[Tensor]
) -> Tuple[Tensor, Tensor]:
    """-log p_t and CE of each sample, both (N,). For soft targets both (N, C): column c as if c were the true class.

    smoothing: one eps, or one per sample (N,); for soft targets one per class (C,).
    """
    is_smoothed = isinstance(smoothing, Tensor) or smoothing != 0
    if targets.ndim == 2:
        nll = -logits.log_softmax(1)  # (N, C)
        ce = nll if weight is None else nll * weight
        if is_smoothed:
            # (1 - eps) CE_c + eps / C sum_k CE_k
            ce = (1 - smoothing) * ce + smoothing * ce.mean(1, keepdim=True)
        return nll, ce
    log_p = logits.log_softmax(1)  # (N, C)
    if is_smoothed:  # before nll: autograd then adds the two (N, C) gradients in place
        sum_log_p = (log_p if weight is None else log_p * weight).sum(1)  # (N,)
    nll = F.nll_loss(log_p, targets, reduction="none", ignore_index=NO_IGNORED_INDEX)  # (N,)
    ce = nll if weight is None else nll * weight.index_select(0, targets)
    if is_smoothed:
        # (1 - eps) CE - eps / C sum_c w_c log p_c
        ce = (1 - smoothing) * ce - smoothing / logits.shape[1] * sum_log_p
    return nll, ce


def _reduce(losses: Tensor, targets: Tensor, weight: Optional[Tensor], reduction: str) -> Tensor:
    """Applies `reduction` to (N,) losses. Soft targets: averages (N, C) losses first, with the targets as weights."""
    if targets.ndim == 2:
        losses = (targets * losses).sum(1)  # (N,)
    if reduction == "none":
        return losses
    return losses.sum() if reduction == "sum" else losses.sum() / weight_of(targets, weight)


def _check_inputs(logits: Tensor, targets: Tensor, weight: Optional[Tensor]) -> Tuple[Tensor, Tensor, Optional[Tensor]]:
    """Logits in float32 or wider, int64 class indices, weight in the type of the logits. Reads shapes, not values."""
    if logits.ndim != 2:
        raise ValueError(f"logits must be (N, C), got shape {tuple(logits.shape)}")
    if targets.shape == logits.shape[:1]:
        if targets.dtype is not torch.int64:
            if targets.is_floating_point() or targets.is_complex():
                raise ValueError(f"targets of shape (N,) must be class indices (integers), got {targets.dtype}")
            targets = targets.long()
    elif targets.shape != logits.shape:
        N, C = logits.shape
        shape = tuple(targets.shape)
        raise ValueError(f"targets must be ({N},) class indices or ({N}, {C}) probabilities, got shape {shape}")
    if logits.dtype is not torch.float32:
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    if weight is not None:
        if weight.shape != logits.shape[1:]:
            C, shape = logits.shape[1], tuple(weight.shape)
            raise ValueError(f"weight must be one number for each of the {C} classes, got shape {shape}")
        weight = weight.to(logits.dtype)
    return logits, targets, weight


def _tensor(values: Union[Tensor, Sequence[float]], dtype: Optional[torch.dtype] = None) -> Tensor:
    """torch.as_tensor, but a numpy array is copied: torch refuses negative strides and a foreign byte order."""
    if hasattr(values, "strides"):
        values = values.astype(values.dtype.newbyteorder("="), order="C")
    return torch.as_tensor(values, dtype=dtype)


AT_LEAST_0 = ("gamma", "tau", "max_m")
FROM_0_TO_1 = ("smoothing", "smoothing_tail")


def _check_options(reduction: str = "mean", spread: str = "all", scale: float = 1.0, **options: float) -> None:
    for name, value in options.items():
        if name in AT_LEAST_0 and not 0 <= value < math.inf:
            raise BadInput(f"{name} must be >= 0, got {value}")
        if name in FROM_0_TO_1 and not 0 <= value <= 1:
            raise BadInput(f"{name} must be in [0, 1], got {value}")
    if not 0 < scale < math.inf:
        raise BadInput(f"scale must be > 0, got {scale}")
    if reduction not in REDUCTIONS:
        raise ValueError(f"unknown reduction {reduction!r}: choose from {', '.join(REDUCTIONS)}")
    if spread not in SPREADS:
        raise ValueError(f"unknown spread {spread!r}: choose from {', '.join(SPREADS)}")


# ---------------------------------------------------------------------------------------------------------------------
# Modules
# ---------------------------------------------------------------------------------------------------------------------


class ClassificationLoss(nn.Module):
    """Base of all losses: the class weight is a buffer (moved and saved with the module), and `weight_of`."""

    additive = True  # the loss is a sum over samples / weight_of(targets), so that micro-batches can be combined
    corrects_prior = False  # whether the logits are already corrected for the class prior

    def __init__(self, weight: Optional[Tensor] = None):
        super().__init__()
        if weight is not None:
            weight = _tensor(weight).clone()
            weight = weight if weight.is_floating_point() else weight.float()
            if weight.ndim != 1 or not bool(((weight >= 0) & weight.isfinite()).all()) or not bool(weight.any()):
                raise ValueError(f"weight must be (C,), finite, >= 0 and not all 0, got {weight.tolist()}")
        self.register_buffer("weight", weight)

    def weight_of(self, targets: Tensor) -> Union[int, Tensor]:
        """The divisor of "mean" for these targets."""
        return weight_of(targets, self.weight)

    def extra_repr(self) -> str:
        names = [
            name for name in inspect.signature(type(self)).parameters if name in vars(self) and name != "reduction"
        ]
        return ", ".join(f"{name}={getattr(self, name)}" for name in names)


class CrossEntropyLoss(ClassificationLoss):
    """`cross_entropy_loss` as a module."""

    def __init__(self, smoothing: float = 0.0, weight: Optional[Tensor] = None, reduction: str = "mean"):
        super().__init__(weight)
        _check_options(smoothing=smoothing, reduction=reduction)
        self.smoothing, self.reduction = smoothing, reduction

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        return cross_entropy_loss(logits, targets, self.smoothing, self.weight, self.reduction)


class FocalLoss(ClassificationLoss):
    """`focal_loss` as a module."""

    def __init__(
        self, gamma: float = 2.0, smoothing: float = 0.0, weight: Optional[Tensor] = None, reduction: str = "mean"
    ):
        super().__init__(weight)
        _check_options(gamma=gamma, smoothing=smoothing, reduction=reduction)
        self.gamma, self.smoothing, self.reduction = gamma, smoothing, reduction

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        return focal_loss(logits, targets, self.gamma, self.smoothing, self.weight, self.reduction)


class LabelSmoothingLoss(ClassificationLoss):
    """`label_smoothing_loss` as a module."""

    spread = "all"

    def __init__(self, smoothing: float = 0.1, weight: Optional[Tensor] = None, reduction: str = "mean"):
        super().__init__(weight)
        _check_options(smoothing=smoothing, reduction=reduction)
        self.smoothing, self.reduction = smoothing, reduction

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        return label_smoothing_loss(logits, targets, self.smoothing, self.spread, self.weight, self.reduction)


class LabelSmoothingOthersLoss(LabelSmoothingLoss):
    """`label_smoothing_loss` with spread="others", eps / (C - 1), as a module."""

    spread = "others"


class LabelAwareSmoothingLoss(ClassificationLoss):
    """`label_aware_smoothing_loss` as a module."""

    def __init__(
        self,
        counts: Counts,
        smoothing: float = 0.3,
        smoothing_tail: float = 0.0,
        weight: Optional[Tensor] = None,
        reduction: str = "mean",
    ):
        super().__init__(weight)
        _check_options(smoothing=smoothing, smoothing_tail=smoothing_tail, reduction=reduction)
        self.smoothing, self.smoothing_tail, self.reduction = smoothing, smoothing_tail, reduction
        self.register_buffer("eps", smoothing_of_classes(_check_counts(counts), smoothing, smoothing_tail).float())

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        return _label_aware_smoothing(logits, targets, self.eps, self.weight, self.reduction)


class LogitAdjustmentLoss(ClassificationLoss):
    """`logit_adjustment_loss` as a module."""

    corrects_prior = True

    def __init__(self, counts: Counts, tau: float = 1.0, weight: Optional[Tensor] = None, reduction: str = "mean"):
        super().__init__(weight)
        _check_options(tau=tau, reduction=reduction)
        self.tau, self.reduction = tau, reduction
        self.register_buffer("adjustment", log_prior(_check_counts(counts), tau).float())

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        return _logit_adjustment(logits, targets, self.adjustment, self.weight, self.reduction)


class LDAMLoss(ClassificationLoss):
    """`ldam_loss` as a module."""

    def __init__(
        self,
        counts: Counts,
        max_m: float = 0.5,
        scale: float = 30.0,
        weight: Optional[Tensor] = None,
        reduction: str = "mean",
    ):
        super().__init__(weight)
        _check_options(max_m=max_m, scale=scale, reduction=reduction)
        self.max_m, self.scale, self.reduction = max_m, scale, reduction
        self.register_buffer("margins", margins(_check_counts(counts), max_m, scale).float())

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        return _ldam(logits, targets, self.margins, self.weight, self.reduction)


class F1Loss(ClassificationLoss):
    """`f1_loss` as a module."""

    additive = False

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        return f1_loss(logits, targets, self.weight)


class SumLoss(nn.Module):
    """c_1 loss_1 + c_2 loss_2 + ...; additive if all parts are additive and have the same class weight."""

    def __init__(self, parts: Sequence[ClassificationLoss], coefficients: Sequence[float]):
        super().__init__()
        self.parts, self.coefficients = nn.ModuleList(parts), list(coefficients)
        first = self.parts[0].weight
        same_weight = all(
            part.weight is first or (part.weight is not None and first is not None and part.weight.equal(first))
            for part in self.parts
        )
        self.additive = same_weight and all(part.additive for part in self.parts)

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        return sum(c * part(logits, targets) for c, part in zip(self.coefficients, self.parts))

    def weight_of(self, targets: Tensor) -> Union[int, Tensor]:
        """The divisor of "mean" for these targets."""
        return self.parts[0].weight_of(targets)

    def __repr__(self) -> str:
        return " + ".join(f"{c:g} {part}" for c, part in zip(self.coefficients, self.parts))


LOSSES: Dict[str, type] = {
    "ce": CrossEntropyLoss,
    "cross_entropy": CrossEntropyLoss,
    "focal": FocalLoss,
    "label_smoothing": LabelSmoothingLoss,
    "label_smoothing_others": LabelSmoothingOthersLoss,
    "label_aware_smoothing": LabelAwareSmoothingLoss,
    "logit_adjustment": LogitAdjustmentLoss,
    "balanced_softmax": LogitAdjustmentLoss,
    "ldam": LDAMLoss,
    "f1": F1Loss,
}


def build_loss(name: str, counts: Optional[Counts] = None, **options: object) -> nn.Module:
    """A loss module by name: one of LOSSES, or a sum such as "ce+f1" or "focal:0.6+f1:0.4" (default coefficient 1).

    Each option (gamma, smoothing, tau, max_m, weight, ...) goes to every part of the sum that has this option.
    `counts`, (C,) training samples per class as they are drawn, goes to the parts that need them.
    Raises: BadInput (a ValueError) for an unknown name, a coefficient that is not a number > 0, an option that no
    part has, or missing counts.

    >>> build_loss("focal", gamma=1.0).gamma
    1.0
    """
    parts, coefficients, unused = [], [], set(options)
    for term in name.split("+"):
        kind, _, number = term.partition(":")
        if kind not in LOSSES:
            raise BadInput(f"unknown loss {kind!r}: choose from {', '.join(LOSSES)}, or a sum such as ce+f1")
        parameters = inspect.signature(LOSSES[kind]).parameters
        used = set(parameters) & set(options)
        context = {"counts": counts} if "counts" in parameters else {}
        if context and counts is None:
            raise BadInput(f"loss {kind!r} needs counts, the training samples of each class")
        parts.append(LOSSES[kind](**context, **{key: options[key] for key in used}))
        coefficients.append(_coefficient(term, number))
        unused -= used
    if unused:
        raise BadInput(f"loss {name!r} does not take {', '.join(sorted(unused))}")
    return parts[0] if len(parts) == 1 and coefficients == [1.0] else SumLoss(parts, coefficients)


def loss_classes(name: str) -> Sequence[type]:
    """The module classes of the parts of a name of `build_loss`, without building them. Unknown parts are left out.

    >>> [part.__name__ for part in loss_classes("logit_adjustment+f1:0.5")]
    ['LogitAdjustmentLoss', 'F1Loss']
    """
    kinds = (term.partition(":")[0] for term in name.split("+"))
    return [LOSSES[kind] for kind in kinds if kind in LOSSES]


def corrects_prior(name: str) -> bool:
    """Whether a network that was trained with this loss needs no post-hoc logit adjustment, see ClassificationLoss.

    >>> corrects_prior("balanced_softmax+f1"), corrects_prior("ce")
    (True, False)
    """
    return any(part.corrects_prior for part in loss_classes(name))


def _coefficient(term: str, number: str) -> float:
    try:
        value = float(number) if ":" in term else 1.0
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise BadInput(f"the coefficient of loss {term!r} must be a number > 0, for example ce:0.5")
    return value


# ---------------------------------------------------------------------------------------------------------------------
# python losses.py
# ---------------------------------------------------------------------------------------------------------------------


def _show() -> None:
    """The loss of one sample with true-class probability p_t, its gradient at that class's logit, and class weights."""
    shown = {
        "ce": {},
        "focal": {"gamma": 2.0},
        "label_smoothing": {"smoothing": 0.1},
        "focal, smoothing 0.1": {"gamma": 2.0, "smoothing": 0.1},
    }
    print("loss and |gradient| at the logit of the true class, 10 classes\n")
    print(f"{'p_t':>5}" + "".join(f"{name:>24}" for name in shown))
    for p_t in (0.01, 0.1, 0.5, 0.9, 0.99):
        cells = []
        for name, options in shown.items():
            logits = torch.tensor([[p_t] + [(1 - p_t) / 9] * 9]).log().requires_grad_()
            loss = build_loss(name.split(",")[0], **options)(logits, torch.tensor([0]))
            loss.backward()
            cells.append(f"{loss.item():>14.4f}{logits.grad[0, 0].abs().item():>10.4f}")
        print(f"{p_t:>5}" + "".join(cells))
    counts = [5000, 500, 50]
    print(f"\nclass weights for {counts} training images (mean 1 over the images)\n")
    for scheme in WEIGHTINGS:
        print(f"{scheme:>10}" + "".join(f"{w:>10.3f}" for w in class_weights(counts, scheme).tolist()))


if __name__ == "__main__":
    _show()

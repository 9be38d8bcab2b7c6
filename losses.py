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
    n = _tensor(counts, torch.float64)
    if scheme not in WEIGHTINGS:
        raise BadInput(f"unknown class weighting {scheme!r}: choose from {', '.join(WEIGHTINGS)}")
    if n.ndim != 1 or n.sum() == 0 or (n < 0).any():
        raise ValueError(f"counts must be one number >= 0 for each class, and not all 0, got {counts}")
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


def _nll_and_ce(logits: Tensor, targets: Tensor, smoothing: float, weight: Optional[Tensor]) -> Tuple[Tensor, Tensor]:
    """-log p_t and CE of each sample, both (N,). For soft targets both (N, C): column c as if c were the true class."""
    if targets.ndim == 2:
        nll = -logits.log_softmax(1)  # (N, C)
        ce = nll if weight is None else nll * weight
        if smoothing:
            # (1 - eps) CE_c + eps / C sum_k CE_k
            ce = (1 - smoothing) * ce + smoothing * ce.mean(1, keepdim=True)
        return nll, ce
    log_p = logits.log_softmax(1)  # (N, C)
    if smoothing:  # before nll: autograd then adds the two (N, C) gradients in place
        sum_log_p = (log_p if weight is None else log_p * weight).sum(1)  # (N,)
    nll = F.nll_loss(log_p, targets, reduction="none", ignore_index=NO_IGNORED_INDEX)  # (N,)
    ce = nll if weight is None else nll * weight.index_select(0, targets)
    if smoothing:
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


def _check_options(gamma: float = 0.0, smoothing: float = 0.0, reduction: str = "mean", spread: str = "all") -> None:
    if not 0 <= gamma < math.inf:
        raise BadInput(f"gamma must be >= 0, got {gamma}")
    if not 0 <= smoothing <= 1:
        raise BadInput(f"smoothing must be in [0, 1], got {smoothing}")
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
    "f1": F1Loss,
}


def build_loss(name: str, **options: object) -> nn.Module:
    """A loss module by name: one of LOSSES, or a sum such as "ce+f1" or "focal:0.6+f1:0.4" (default coefficient 1).

    Each option (gamma, smoothing, weight, reduction) goes to every part of the sum that has this option.
    Raises: BadInput (a ValueError) for an unknown name, a coefficient that is not a number > 0, or an option that no
    part has.

    >>> build_loss("focal", gamma=1.0).gamma
    1.0
    """
    parts, coefficients, unused = [], [], set(options)
    for term in name.split("+"):
        kind, _, number = term.partition(":")
        if kind not in LOSSES:
            raise BadInput(f"unknown loss {kind!r}: choose from {', '.join(LOSSES)}, or a sum such as ce+f1")
        used = set(inspect.signature(LOSSES[kind]).parameters) & set(options)
        parts.append(LOSSES[kind](**{key: options[key] for key in used}))
        coefficients.append(_coefficient(term, number))
        unused -= used
    if unused:
        raise BadInput(f"loss {name!r} does not take {', '.join(sorted(unused))}")
    return parts[0] if len(parts) == 1 and coefficients == [1.0] else SumLoss(parts, coefficients)


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

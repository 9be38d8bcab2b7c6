"""Classification losses for imbalanced data: logits and targets into one number to minimise.

    python losses.py          # a small table: what each loss makes of easy and hard samples

Copy this file alone into your project; it needs torch (1.13 or later) and nothing else of the kit.

    criterion = build_loss("focal", gamma=2.0, weight=class_weights(counts, "effective"))
    criterion = build_loss("ce+f1")            # a sum; with coefficients: "focal:0.6+f1:0.4"
    loss = criterion(logits, targets)

Four rules hold for every loss here.

1. Arguments are (logits, targets): raw logits (N, C), and class indices (N,) or class probabilities (N, C).
   A soft target is a mixture of hard ones: the loss is the same mixture of the hard labels' losses.
2. Arithmetic is in float32 at least, through log_softmax: finite, with finite gradients, at logits of +-200 in
   half precision too.
3. "mean" divides as torch.nn.CrossEntropyLoss does: by the sum of the targets' class weights; by N without class
   weights or with soft targets. `weight_of(targets)` says by what, so that micro-batches can be put together again.
4. p_t, the probability of the true class, never contains the class weight; the weight multiplies afterwards.
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
NO_IGNORED_INDEX = torch.iinfo(torch.int64).min  # a target of -100 is an error here, not a sample dropped in silence


# ---------------------------------------------------------------------------------------------------------------------
# Functions
# ---------------------------------------------------------------------------------------------------------------------


def cross_entropy_loss(
    logits: Tensor, targets: Tensor, smoothing: float = 0.0, weight: Optional[Tensor] = None, reduction: str = "mean"
) -> Tensor:
    """Cross-entropy, the same numbers as torch.nn.functional.cross_entropy(..., label_smoothing=smoothing).

    Formula: CE = -w_t log p_t. Arguments and errors as in `focal_loss`, of which this is the case gamma = 0.

    >>> round(cross_entropy_loss(torch.tensor([[2.0, 0.0]]), torch.tensor([0])).item(), 4)
    0.1269
    """
    return focal_loss(logits, targets, 0.0, smoothing, weight, reduction)


def focal_loss(
    logits: Tensor,
    targets: Tensor,
    gamma: float = 2.0,
    smoothing: float = 0.0,
    weight: Optional[Tensor] = None,
    reduction: str = "mean",
) -> Tensor:
    """Focal loss: cross-entropy scaled down where the model is already sure of the true class.

    Formula: FL = (1 - p_t)^gamma * CE, with CE = -w_t log p_t, or with smoothing eps
    CE = -(1 - eps) w_t log p_t - eps / C * sum_c w_c log p_c, exactly torch's weighted and smoothed cross-entropy
    (the smooth part carries the other classes' weights). p_t is always the probability of the true class: taken from
    the smoothed CE, exp(-CE) would stay below 0.6 and no sample would ever count as easy.
    Source: Lin et al. 2017, arXiv:1708.02002; smoothing: Szegedy et al. 2015, arXiv:1512.00567.

    Args:
        logits: (N, C), any float type.
        targets: (N,) class indices in [0, C), or (N, C) class probabilities, rows summing to 1.
        gamma: focusing parameter, >= 0; 0 is cross-entropy.
        smoothing: label smoothing eps in [0, 1], spread over all C classes.
        weight: (C,) class weights, >= 0.
        reduction: "mean" (divides by `weight_of(targets, weight)`), "sum", or "none" for (N,).

    Raises: ValueError for shapes that do not fit and for values out of range.

    >>> round(focal_loss(torch.tensor([[2.0, 0.0]]), torch.tensor([0])).item(), 4)  # (1 - 0.8808)^2 * 0.1269
    0.0018
    """
    _check_options(gamma=gamma, smoothing=smoothing)
    return _focal(logits, targets, gamma, smoothing, weight, reduction)


def label_smoothing_loss(
    logits: Tensor,
    targets: Tensor,
    smoothing: float = 0.1,
    spread: str = "all",
    weight: Optional[Tensor] = None,
    reduction: str = "mean",
) -> Tensor:
    """Cross-entropy against softened labels, in either of the two conventions that go by this name.

    spread="all": eps / C to every class, the true one included, so it gets 1 - eps + eps / C (torch, timm, Keras).
    spread="others": eps / (C - 1) to each other class, the true one keeps 1 - eps (the class that course notes copy).
    The second with eps is the first with eps * C / (C - 1): 0.1 at 17 classes is 0.10625. Rows sum to 1 in both.
    Source: Szegedy et al. 2015, arXiv:1512.00567. Other arguments as in `focal_loss`.

    >>> logits, target = torch.tensor([[2.0, 0.0, 0.0]]), torch.tensor([0])
    >>> round(label_smoothing_loss(logits, target, 0.1).item(), 4)
    0.3729
    >>> round(label_smoothing_loss(logits, target, 0.1, spread="others").item(), 4)
    0.4395
    """
    _check_options(smoothing=smoothing, spread=spread)
    if spread == "others":
        if logits.shape[1] < 2:
            raise ValueError(f"spread='others' needs at least 2 classes, got logits of shape {tuple(logits.shape)}")
        smoothing *= logits.shape[1] / (logits.shape[1] - 1)
    return _focal(logits, targets, 0.0, smoothing, weight, reduction)


def f1_loss(logits: Tensor, targets: Tensor, weight: Optional[Tensor] = None) -> Tensor:
    """Soft macro F1 as a loss: 1 - the mean over classes of F1 computed from probabilities instead of counts.

    Formula: F1_c = 2 TP_c / (2 TP_c + FP_c + FN_c) with TP_c = sum_i y_ic p_ic; the denominator is
    sum_i p_ic + sum_i y_ic. The mean (weighted by `weight` if given) runs over the classes that occur in `targets`:
    a class without a sample has TP = 0 whatever the model does, a constant penalty without information.
    The loss is a ratio of sums over the batch, not a mean over samples: it needs batches in which most classes occur,
    and micro-batches cannot be summed (train.py accumulates it by gradient caching).
    Source: soft Dice with y in {0, 1}: Milletari et al. 2016, arXiv:1606.04797.

    Args: logits (N, C); targets (N,) class indices or (N, C) probabilities; weight (C,), >= 0.
    Returns a scalar in [0, 1]. Raises ValueError for shapes that do not fit.

    >>> round(f1_loss(torch.tensor([[9.0, 0.0], [0.0, 9.0]]), torch.tensor([0, 1])).item(), 3)
    0.0
    """
    logits, weight = _checked(logits, targets, weight)
    p = logits.softmax(1)  # (N, C)
    if targets.ndim == 1:  # sums by index touch (N,) and (C,) only: no one-hot (N, C)
        p_t, predicted = _TrueAndSum.apply(p, targets, 0, None)  # (N,), (C,)
        zeros = torch.zeros_like(predicted)
        true_positives = zeros.index_add(0, targets, p_t)  # (C,)
        support = zeros.index_add(0, targets, torch.ones_like(p_t))  # (C,)
    else:
        predicted = p.sum(0)
        true_positives = (targets * p).sum(0)
        support = targets.to(p.dtype).sum(0)
    present = support > 0
    # F1_c = 2 TP_c / (sum_i p_ic + sum_i y_ic)
    f1 = 2 * true_positives / torch.where(present, predicted + support, torch.ones_like(support))  # (C,)
    share = present.to(p.dtype) if weight is None else present * weight
    return 1 - (f1 * share).sum() / share.sum()


def weight_of(targets: Tensor, weight: Optional[Tensor] = None) -> Union[int, Tensor]:
    """What "mean" divides by: the sum of the targets' class weights, or N (no weights, or soft targets (N, C))."""
    return len(targets) if weight is None or targets.ndim == 2 else weight[targets].sum()


def class_weights(counts: Sequence[int], scheme: str = "inverse", beta: float = 0.999) -> Tensor:
    """(C,) float32 class weights from the training counts, with mean 1 over the training samples.

    inverse: 1 / n_c; sqrt: 1 / sqrt(n_c); effective: (1 - beta) / (1 - beta^n_c), the effective number of samples
    (Cui et al. 2019, arXiv:1901.05555; beta in [0, 1), towards 1 it becomes inverse). "Mean 1 over the samples" means
    sum_c n_c w_c = sum_c n_c: the weighted loss starts at the size of the plain one, and the learning rate still fits.
    A class without a training sample is weighted as if it had one; it can only matter in validation.

    Raises: ValueError for an unknown scheme, negative counts, or beta out of range.

    >>> class_weights([90, 10], "inverse")
    tensor([0.5556, 5.0000])
    """
    n = torch.as_tensor(counts, dtype=torch.float64)
    if scheme not in WEIGHTINGS:
        raise ValueError(f"unknown class weighting {scheme!r}: choose from {', '.join(WEIGHTINGS)}")
    if n.ndim != 1 or n.sum() == 0 or (n < 0).any():
        raise ValueError(f"counts must be one number >= 0 for each class, not all 0, got {counts}")
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
# The arithmetic
# ---------------------------------------------------------------------------------------------------------------------


def _focal(
    logits: Tensor, targets: Tensor, gamma: float, smoothing: float, weight: Optional[Tensor], reduction: str
) -> Tensor:
    """The one formula behind cross-entropy, label smoothing and focal loss."""
    _check_options(reduction=reduction)
    logits, weight = _checked(logits, targets, weight)
    losses_of = _losses_of_indices if targets.ndim == 1 else _losses_of_probabilities
    losses = losses_of(logits, targets, gamma, smoothing, weight)  # (N,)
    if reduction == "none":
        return losses
    return losses.sum() if reduction == "sum" else losses.sum() / weight_of(targets, weight)


def _losses_of_probabilities(
    logits: Tensor, targets: Tensor, gamma: float, smoothing: float, weight: Optional[Tensor]
) -> Tensor:
    """(N,) losses for soft targets: for every class the loss were it the true one, averaged by the targets."""
    log_p = logits.log_softmax(1)  # (N, C)
    # CE_c = -w_c log p_c
    ce = -log_p if weight is None else -log_p * weight
    if smoothing:
        # (1 - eps) CE_c + eps / C sum_k CE_k
        ce = (1 - smoothing) * ce + smoothing * ce.mean(1, keepdim=True)
    if gamma:
        ce = _modulating_factor(-log_p, gamma) * ce
    return (targets * ce).sum(1)


def _losses_of_indices(
    logits: Tensor, targets: Tensor, gamma: float, smoothing: float, weight: Optional[Tensor]
) -> Tensor:
    """(N,) losses for class indices: the same numbers, with (N, C) touched as few times as possible."""
    if smoothing:
        log_p_t, sum_log_p = _TrueAndSum.apply(logits.log_softmax(1), targets, 1, weight)  # (N,), (N,)
        nll = -log_p_t
    else:
        nll = F.cross_entropy(logits, targets, reduction="none", ignore_index=NO_IGNORED_INDEX)  # (N,)
    # CE = -w_t log p_t
    ce = nll if weight is None else nll * weight[targets]
    if smoothing:
        # (1 - eps) CE - eps / C sum_c w_c log p_c
        ce = (1 - smoothing) * ce - smoothing / logits.shape[1] * sum_log_p
    if gamma:
        ce = _modulating_factor(nll, gamma) * ce
    return ce


def _modulating_factor(nll: Tensor, gamma: float) -> Tensor:
    """(1 - p_t)^gamma from nll = -log p_t; the clamp keeps its slope finite for gamma < 1 once p_t rounds to 1."""
    # 1 - p_t = 1 - exp(-nll) = -expm1(-nll), without cancellation
    return (-torch.expm1(-nll)).clamp(min=torch.finfo(nll.dtype).tiny) ** gamma


class _TrueAndSum(torch.autograd.Function):
    """m[i, t_i] (N,) and the sum of m * weight along `dim`, of a matrix m (N, C).

    Autograd would give each of the two a gradient of size (N, C) and add them up; here they share one.
    """

    @staticmethod
    def forward(ctx, m: Tensor, targets: Tensor, dim: int, weight: Optional[Tensor]) -> Tuple[Tensor, Tensor]:
        ctx.save_for_backward(targets, weight)
        ctx.shape, ctx.dim = m.shape, dim
        return m.gather(1, targets[:, None])[:, 0], (m if weight is None else m * weight).sum(dim)

    @staticmethod
    def backward(ctx, grad_true: Tensor, grad_sum: Tensor) -> Tuple[Tensor, None, None, None]:
        targets, weight = ctx.saved_tensors
        grad = grad_sum.unsqueeze(ctx.dim).expand(ctx.shape)
        grad = grad.clone(memory_format=torch.contiguous_format) if weight is None else grad * weight
        return grad.scatter_add_(1, targets[:, None], grad_true[:, None]), None, None, None


def _checked(logits: Tensor, targets: Tensor, weight: Optional[Tensor]) -> Tuple[Tensor, Optional[Tensor]]:
    """Logits in float32 or wider and the weight in the same type, once the shapes fit. Never reads a value."""
    if logits.ndim != 2:
        raise ValueError(f"logits must be (N, C), got shape {tuple(logits.shape)}")
    N, C = logits.shape
    if targets.shape == (N,):
        if targets.is_floating_point():
            raise ValueError(f"targets of shape (N,) must be class indices (int64), got {targets.dtype}")
    elif targets.shape != (N, C):
        shape = tuple(targets.shape)
        raise ValueError(f"targets must be ({N},) class indices or ({N}, {C}) probabilities, got shape {shape}")
    if weight is not None and weight.shape != (C,):
        raise ValueError(f"weight must have one number for each of the {C} classes, got shape {tuple(weight.shape)}")
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return logits, None if weight is None else weight.to(logits.dtype)


def _check_options(
    gamma: float = 0.0, smoothing: float = 0.0, reduction: str = "mean", spread: str = "all"
) -> None:
    if not 0 <= gamma < math.inf:
        raise ValueError(f"gamma must be >= 0, got {gamma}")
    if not 0 <= smoothing <= 1:
        raise ValueError(f"smoothing must be in [0, 1], got {smoothing}")
    if reduction not in REDUCTIONS:
        raise ValueError(f"unknown reduction {reduction!r}: choose from {', '.join(REDUCTIONS)}")
    if spread not in SPREADS:
        raise ValueError(f"unknown spread {spread!r}: choose from {', '.join(SPREADS)}")


# ---------------------------------------------------------------------------------------------------------------------
# Modules
# ---------------------------------------------------------------------------------------------------------------------


class ClassificationLoss(nn.Module):
    """What all losses here share: a class weight that moves and saves with the module, and `weight_of`."""

    additive = True  # the batch's loss is a sum over samples divided by weight_of: micro-batches can be summed

    def __init__(self, weight: Optional[Tensor] = None):
        super().__init__()
        if weight is not None:
            weight = torch.as_tensor(weight).clone()
            weight = weight if weight.is_floating_point() else weight.float()
            if weight.ndim != 1 or not bool(((weight >= 0) & weight.isfinite()).all()) or not bool(weight.any()):
                raise ValueError(f"weight must be (C,), finite, >= 0 and not all 0, got {weight.tolist()}")
        self.register_buffer("weight", weight)

    def weight_of(self, targets: Tensor) -> Union[int, Tensor]:
        """What "mean" divides by for these targets."""
        return weight_of(targets, self.weight)

    def extra_repr(self) -> str:
        return ", ".join(f"{name}={getattr(self, name)}" for name in ("gamma", "smoothing") if hasattr(self, name))


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
    """c_1 loss_1 + c_2 loss_2 + ...; additive if all its parts are and divide by the same weight."""

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
        """What "mean" divides by for these targets."""
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
    """A loss module by name: one of LOSSES, or a sum such as "ce+f1" or "focal:0.6+f1:0.4" (coefficient 1 if absent).

    Each option (gamma, smoothing, weight, reduction) goes to every part of the sum that takes it. Raises ValueError
    for an unknown name, a coefficient that is not a number > 0, or an option that no part takes.

    >>> build_loss("focal", gamma=1.0).gamma
    1.0
    """
    parts, coefficients, unused = [], [], set(options)
    for term in name.split("+"):
        kind, _, number = term.partition(":")
        if kind not in LOSSES:
            raise ValueError(f"unknown loss {kind!r}: choose from {', '.join(LOSSES)}, or a sum such as ce+f1")
        taken = set(inspect.signature(LOSSES[kind]).parameters) & set(options)
        parts.append(LOSSES[kind](**{key: options[key] for key in taken}))
        coefficients.append(_coefficient(term, number))
        unused -= taken
    if unused:
        raise ValueError(f"loss {name!r} takes no {', '.join(sorted(unused))}")
    return parts[0] if len(parts) == 1 and coefficients == [1.0] else SumLoss(parts, coefficients)


def _coefficient(term: str, number: str) -> float:
    try:
        value = float(number) if ":" in term else 1.0
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise ValueError(f"coefficient of loss {term!r} must be a number > 0")
    return value


# ---------------------------------------------------------------------------------------------------------------------
# python losses.py
# ---------------------------------------------------------------------------------------------------------------------


def _show() -> None:
    """For one sample whose true class has probability p_t: its loss, and how hard it pulls at that class's logit."""
    shown = {
        "ce": {},
        "focal": {"gamma": 2.0},
        "label_smoothing": {"smoothing": 0.1},
        "focal, smoothing 0.1": {"gamma": 2.0, "smoothing": 0.1},
    }
    print("loss and |gradient| at the true class's logit, 10 classes\n")
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

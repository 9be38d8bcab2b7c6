# From f1kit. MIT licence, copyright (c) 2026 The f1kit authors. Keep this line and LICENSE with a copy of this file.
"""Optimizers and learning-rate schedules by name. A schedule counts updates (optimizer steps), not epochs.

    python optim.py                              # the learning rate of every schedule, one digit per epoch

    optimizer = build_optimizer("adamw", model, lr=1e-3)
    schedule = build_schedule("cosine", optimizer, epochs=10, updates_per_epoch=25, warmup=1)
    ... optimizer.step(); schedule.step()        # once per update that was not skipped
    schedule.epoch_end(val_f1)                   # once per epoch; only plateau uses it

A schedule computes the learning rate from the number of updates done. So rounding errors do not add up. The state to
save is that number; for plateau also its best score and counters.

Warmup comes first: the learning rate grows linearly to lr. The schedule then covers the remaining updates. onecycle has
its own warmup: `warmup` sets its length.
"""

from __future__ import annotations

import inspect
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import nn


class Recipe(NamedTuple):
    """An optimizer class with its defaults: good first values when training from scratch."""

    optimizer: type[torch.optim.Optimizer]
    lr: float
    weight_decay: float
    options: dict[str, Any]  # further arguments of the class


class Ranger(torch.optim.RAdam):
    """RAdam with gradient centralization and lookahead: the main parts of Ranger (L. Wright 2019).

    Gradient centralization: the mean over all inputs of an output is subtracted from the gradient of a kernel (ndim >=
    2; Yong et al. 2020, arXiv:2004.01461). Lookahead: after every `sync` updates, slow <- slow + alpha (fast - slow)
    and fast <- slow (Zhang et al. 2019, arXiv:1907.08610). RAdam: Liu et al. 2019, arXiv:1908.03265.
    Weight decay is decoupled, as in AdamW.
    """

    def __init__(self, params: Any, lr: float = 1e-3, sync: int = 6, alpha: float = 0.5, **options: Any) -> None:
        super().__init__(params, lr=lr, decoupled_weight_decay=True, **options)
        for group in self.param_groups:
            group.update(sync=sync, alpha=alpha, updates=0)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        trained = [p for group in self.param_groups for p in group["params"] if p.grad is not None]
        for parameter in trained:
            if parameter.ndim >= 2:
                parameter.grad -= parameter.grad.mean(tuple(range(1, parameter.ndim)), keepdim=True)
        first = {parameter: parameter.clone() for parameter in trained if parameter not in self.state}
        super().step()
        for parameter, weights in first.items():
            self.state[parameter]["slow"] = weights
        for group in self.param_groups:
            group["updates"] += 1
            if group["updates"] % group["sync"]:
                continue
            fast = [parameter for parameter in group["params"] if parameter in self.state]
            if fast:  # a group may be frozen as a whole
                slow = [self.state[parameter]["slow"] for parameter in fast]
                torch._foreach_lerp_(slow, fast, group["alpha"])
                torch._foreach_copy_(fast, slow)
        return loss


OPTIMIZERS = {
    "sgd": Recipe(torch.optim.SGD, 0.1, 5e-4, {"momentum": 0.9, "nesterov": True, "fused": True}),
    "adam": Recipe(torch.optim.Adam, 1e-3, 0.0, {"fused": True}),
    "adamw": Recipe(torch.optim.AdamW, 1e-3, 1e-2, {"fused": True}),
    "radam": Recipe(torch.optim.RAdam, 1e-3, 0.0, {"foreach": True}),
    "ranger": Recipe(Ranger, 1e-3, 1e-2, {"foreach": True}),
}


def build_optimizer(
    name: str,
    model: nn.Module,
    lr: float | None = None,
    weight_decay: float | None = None,
    lr_factor: Callable[[str], float] = lambda name: 1.0,
) -> torch.optim.Optimizer:
    """An optimizer that applies weight decay only to weight matrices and convolution kernels.

    Those are the parameters that are named "weight" and have 2 or more dimensions. Weight decay pulls a parameter
    towards 0. For a bias, a norm layer's weight, a class token or a position embedding this only lowers accuracy.

    Args:
        name: one of OPTIMIZERS.
        lr, weight_decay: > 0 and >= 0, by default those of OPTIMIZERS[name].
        lr_factor: the learning rate of a parameter is lr * lr_factor(its name). The groups with factor 1 come first.
    Raises: ValueError for an unknown name, a value out of range, or a model without trainable parameters.
    """
    if name not in OPTIMIZERS:
        raise ValueError(f"unknown optimizer {name!r}: choose from {', '.join(OPTIMIZERS)}")
    recipe = OPTIMIZERS[name]
    lr = recipe.lr if lr is None else lr
    weight_decay = recipe.weight_decay if weight_decay is None else weight_decay
    if not 0 < lr < math.inf:
        raise ValueError(f"lr must be > 0, got {lr}")
    if not 0 <= weight_decay < math.inf:
        raise ValueError(f"weight_decay must be >= 0, got {weight_decay}")
    groups: dict[tuple[float, bool], list[nn.Parameter]] = {}
    for parameter_name, parameter in model.named_parameters():
        if parameter.requires_grad:
            is_kernel = parameter.ndim >= 2 and parameter_name.endswith("weight")
            groups.setdefault((lr_factor(parameter_name), is_kernel), []).append(parameter)
    if not groups:
        raise ValueError("the model has no trainable parameters")
    order = sorted(groups, key=lambda key: (key[0] != 1, -key[0], not key[1]))  # with weight decay before without
    parts = [
        {"params": groups[key], "lr": lr * key[0], "weight_decay": weight_decay if key[1] else 0.0} for key in order
    ]
    return recipe.optimizer(parts, lr=lr, **recipe.options)


# ---------------------------------------------------------------------------------------------------------------------
# Schedules: a function of t gives learning rate / lr. t counts the updates after warmup (`warmup` updates), T is their
# number.
# Keyword-only arguments are the options that build_schedule takes by name.
# ---------------------------------------------------------------------------------------------------------------------

Factor = Callable[[int], float]


def constant(T: int, per_epoch: int, lr: float, warmup: int = 0) -> Factor:
    return lambda t: 1.0


def step(
    T: int, per_epoch: int, lr: float, warmup: int = 0, *, step_epochs: int | None = None, lr_decay: float = 0.1
) -> Factor:
    """lr_decay^k after k * step_epochs epochs; step_epochs is by default a third of the run."""
    every = step_epochs * per_epoch if step_epochs else max(1, math.ceil(T / 3))
    return lambda t: lr_decay ** (t // every)


def multistep(
    T: int, per_epoch: int, lr: float, warmup: int = 0, *, milestones: Sequence[float] = (), lr_decay: float = 0.1
) -> Factor:
    """lr_decay^k after k milestones: numbers of epochs from the start of the run, as in torch's MultiStepLR.

    By default 1/2 and 3/4 of the run.
    """
    updates = [round(m * per_epoch) for m in milestones] or [round(share * (T + warmup)) for share in (0.5, 0.75)]
    return lambda t: lr_decay ** sum(t + warmup >= m for m in updates)


def cosine(T: int, per_epoch: int, lr: float, warmup: int = 0, *, min_lr: float = 0.0) -> Factor:
    """a + (1 - a) (1 + cos(pi t / T)) / 2, a = min_lr / lr (Loshchilov and Hutter 2016, arXiv:1608.03983)."""
    floor = min_lr / lr
    return lambda t: floor + (1 - floor) * (1 + math.cos(math.pi * min(t, T) / T)) / 2


def linear(T: int, per_epoch: int, lr: float, warmup: int = 0, *, min_lr: float = 0.0) -> Factor:
    """From 1 down to min_lr / lr in a straight line."""
    floor = min_lr / lr
    return lambda t: floor + (1 - floor) * (1 - min(t, T) / T)


def restarts(
    T: int, per_epoch: int, lr: float, warmup: int = 0, *, min_lr: float = 0.0, t0: int = 10, t_mult: int = 2
) -> Factor:
    """Cosine cycles that start again at lr. The first has t0 epochs, each next one is t_mult times as long."""

    def factor(t: int) -> float:
        length = t0 * per_epoch
        while t >= length:
            t, length = t - length, length * t_mult
        return cosine(length, per_epoch, lr, min_lr=min_lr)(t)

    return factor


def onecycle(T: int, per_epoch: int, lr: float, warmup_updates: int | None = None) -> Factor:
    """From 1/25 up to 1 during warmup (by default 30 % of the run), then down to 1/250,000.

    Both parts follow a half cosine (Smith and Topin 2017, arXiv:1708.07120), as in torch's OneCycleLR without its
    momentum cycle.
    """
    start, end = 1 / 25, 1 / 25e4
    peak = max((0.3 * T if warmup_updates is None else warmup_updates) - 1, 1e-9)  # the update with the factor 1

    def factor(t: int) -> float:
        if t <= peak:
            return start + (1 - start) * (1 - math.cos(math.pi * t / peak)) / 2
        down = min((t - peak) / max(T - 1 - peak, 1e-9), 1.0)
        return end + (1 - end) * (1 + math.cos(math.pi * down)) / 2

    return factor


class Schedule:
    """Sets the learning rate of the next update from the number of updates done."""

    def __init__(self, optimizer: torch.optim.Optimizer, factor: Factor, warmup_updates: int = 0):
        self.optimizer, self.factor, self.warmup_updates = optimizer, factor, warmup_updates
        self.base_lrs = [group["lr"] for group in optimizer.param_groups]
        self.updates = 0
        self._apply()

    @property
    def lr(self) -> float:
        return self.optimizer.param_groups[0]["lr"]

    def step(self) -> None:
        """To be called after each update that was not skipped."""
        self.updates += 1
        self._apply()

    def epoch_end(self, value: float) -> None:
        """To be called after each validation, with the monitored score."""

    def _apply(self) -> None:
        t = self.updates - self.warmup_updates
        # update u of W warmup updates: (u + 1) / W, so that the first update has a learning rate > 0
        factor = self.factor(t) if t >= 0 else (self.updates + 1) / self.warmup_updates
        for group, lr in zip(self.optimizer.param_groups, self.base_lrs, strict=True):
            group["lr"] = lr * factor

    def state_dict(self) -> dict[str, Any]:
        return {"updates": self.updates}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._apply()


class Plateau(Schedule):
    """Multiplies the learning rate by lr_decay after more than plateau_patience epochs without a better score."""

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        warmup_updates: int,
        mode: str,
        *,
        lr_decay: float = 0.1,
        plateau_patience: int = 3,
    ):
        self.sign = {"max": 1.0, "min": -1.0}[mode]
        self.patience, self.drops, self.bad_epochs, self.best = plateau_patience, 0, 0, -math.inf
        super().__init__(optimizer, lambda t: lr_decay**self.drops, warmup_updates)

    def epoch_end(self, value: float) -> None:
        if self.sign * value > self.best:
            self.best, self.bad_epochs = self.sign * value, 0
        else:
            self.bad_epochs += 1
        if self.bad_epochs > self.patience:
            self.drops, self.bad_epochs = self.drops + 1, 0
        self._apply()

    def state_dict(self) -> dict[str, Any]:
        return {key: getattr(self, key) for key in ("updates", "drops", "bad_epochs", "best")}


SCHEDULES: dict[str, Callable[..., Any]] = {
    "none": constant,
    "step": step,
    "multistep": multistep,
    "cosine": cosine,
    "linear": linear,
    "plateau": Plateau,
    "restarts": restarts,
    "onecycle": onecycle,
}


def schedule_options(name: str) -> tuple[str, ...]:
    """Names of the options that a schedule takes.

    >>> schedule_options("restarts"), schedule_options("none")
    (('min_lr', 't0', 't_mult'), ())
    """
    if name not in SCHEDULES:
        raise ValueError(f"unknown schedule {name!r}: choose from {', '.join(SCHEDULES)}")
    parameters = inspect.signature(SCHEDULES[name]).parameters.values()
    return tuple(parameter.name for parameter in parameters if parameter.kind is parameter.KEYWORD_ONLY)


def build_schedule(
    name: str,
    optimizer: torch.optim.Optimizer,
    epochs: int,
    updates_per_epoch: int,
    warmup: float = 0.0,
    mode: str = "max",
    **options: Any,
) -> Schedule:
    """A schedule by name, for epochs * updates_per_epoch updates. The first `warmup` epochs are linear warmup.

    The peak learning rate lr is that of the optimizer.

    Args:
        warmup: epochs, >= 0 and < epochs; need not be a whole number.
        mode: "max" if a larger score given to `epoch_end` is better (F1), "min" if a smaller one is (a loss).
        options: see `schedule_options`. step_epochs > 0, 0 < lr_decay < 1, plateau_patience >= 0 (epochs),
            0 <= min_lr <= lr, t0 > 0 (epochs), t_mult > 0.
    Raises: ValueError for an unknown name or mode, an option that the schedule does not take, a value out of range.
    """
    taken = schedule_options(name)
    unused = [option for option in options if option not in taken]
    if unused:
        takes = f"it takes {', '.join(taken)}" if taken else "it takes no options"
        raise ValueError(f"schedule {name!r} does not take {', '.join(unused)}: {takes}")
    if mode not in ("max", "min"):
        raise ValueError(f"mode must be 'max' or 'min', got {mode!r}")
    if not 0 <= warmup < epochs:
        raise ValueError(f"warmup must be >= 0 and < epochs, got {warmup} with {epochs} epochs")
    for option, value in options.items():
        if option == "milestones":
            rises = all(low < high for low, high in itertools.pairwise([0, *value, epochs]))
            if not (value and rises):
                raise ValueError(f"milestones must rise, and be > 0 and < epochs, got {value} with {epochs} epochs")
            continue
        may_be_0 = option in ("min_lr", "plateau_patience")
        if not (value > 0 or (value == 0 and may_be_0)):
            raise ValueError(f"{option} must be {'>=' if may_be_0 else '>'} 0, got {value}")
    if not options.get("lr_decay", 0) < 1:
        raise ValueError(f"lr_decay must be < 1, got {options['lr_decay']}")
    lr = optimizer.defaults["lr"]  # a group may have a different one
    if not options.get("min_lr", 0) <= lr:
        raise ValueError(f"min_lr must be <= lr, got {options['min_lr']} with lr {lr}")
    build, total, warmup_updates = SCHEDULES[name], epochs * updates_per_epoch, round(warmup * updates_per_epoch)
    if build is Plateau:
        return Plateau(optimizer, warmup_updates, mode, **options)
    if build is onecycle:
        return Schedule(optimizer, onecycle(total, updates_per_epoch, lr, warmup_updates if warmup else None))
    remaining = max(1, total - warmup_updates)
    return Schedule(optimizer, build(remaining, updates_per_epoch, lr, warmup_updates, **options), warmup_updates)


def _show() -> None:
    """One row per schedule over 30 epochs, one digit per epoch: tenths of lr, rounded up, 9 for both 9 and 10."""
    print("learning rate in tenths of lr, rounded up (9 also for 10), one digit per epoch")
    print("plateau: F1 does not improve after epoch 8\n")
    for name in SCHEDULES:
        optimizer = torch.optim.SGD([torch.zeros(1)], lr=1.0)
        schedule = build_schedule(name, optimizer, epochs=30, updates_per_epoch=10, warmup=3)
        row = ""
        for epoch in range(30):
            row += str(min(9, math.ceil(10 * schedule.lr)))
            for _ in range(10):
                schedule.step()
            schedule.epoch_end(min(epoch, 8))
        print(f"{name:>10}  {row}")


if __name__ == "__main__":
    _show()

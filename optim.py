"""Optimizers and learning-rate schedules by name, the schedule counted in optimizer updates.

    python optim.py                              # the learning rate of every schedule, an epoch a digit

    optimizer = build_optimizer("adamw", model, lr=1e-3)
    schedule = build_schedule("cosine", optimizer, epochs=10, updates_per_epoch=25, warmup=1)
    ... optimizer.step(); schedule.step()        # once per update, and only if the optimizer really stepped
    schedule.epoch_end(val_f1)                   # only plateau listens

A schedule is a closed formula of the number of updates done: nothing drifts, and the state to save is that number.
Warm-up comes first and rises linearly to --lr; the schedule then runs over the updates that remain. One-cycle has a
rise of its own, whose length the warm-up sets instead.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

# name: (class, learning rate and weight decay that are a good first try from scratch, further arguments)
OPTIMIZERS: dict[str, tuple[type[torch.optim.Optimizer], float, float, dict[str, Any]]] = {
    "sgd": (torch.optim.SGD, 0.1, 5e-4, {"momentum": 0.9, "nesterov": True, "fused": True}),
    "adam": (torch.optim.Adam, 1e-3, 0.0, {"fused": True}),
    "adamw": (torch.optim.AdamW, 1e-3, 1e-2, {"fused": True}),
    "radam": (torch.optim.RAdam, 1e-3, 0.0, {"foreach": True}),
}


def build_optimizer(
    name: str, model: nn.Module, lr: float | None = None, weight_decay: float | None = None
) -> torch.optim.Optimizer:
    """An optimizer whose weight decay touches weight matrices and kernels only.

    Decay pulls a weight towards 0; on a bias, a norm's gain, a class token or a position embedding that only costs
    accuracy. What decays is what is called "weight" and has 2 or more dimensions.

    Args: name from OPTIMIZERS; lr and weight_decay >= 0, by default the registry's.
    Raises: ValueError for an unknown name, a value out of range, or a model without trainable parameters.
    """
    if name not in OPTIMIZERS:
        raise ValueError(f"unknown optimizer {name!r}: choose from {', '.join(OPTIMIZERS)}")
    optimizer, default_lr, default_decay, options = OPTIMIZERS[name]
    lr = default_lr if lr is None else lr
    weight_decay = default_decay if weight_decay is None else weight_decay
    if not 0 < lr < math.inf:
        raise ValueError(f"learning rate must be > 0, got {lr}")
    if not 0 <= weight_decay < math.inf:
        raise ValueError(f"weight decay must be >= 0, got {weight_decay}")
    decaying, others = [], []
    for parameter_name, parameter in model.named_parameters():
        if parameter.requires_grad:
            is_kernel = parameter.ndim >= 2 and parameter_name.endswith("weight")
            (decaying if is_kernel else others).append(parameter)
    groups = [{"params": decaying, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]
    groups = [group for group in groups if group["params"]]
    if not groups:
        raise ValueError("the model has no parameter to train")
    return optimizer(groups, lr=lr, **options)


# ---------------------------------------------------------------------------------------------------------------------
# Schedules: the learning rate as a factor of --lr, t updates after the warm-up, of T in all
# ---------------------------------------------------------------------------------------------------------------------

Factor = Callable[[int], float]


def constant(T: int, per_epoch: int) -> Factor:
    return lambda t: 1.0


def step(T: int, per_epoch: int, step_epochs: int | None = None, lr_decay: float = 0.1) -> Factor:
    """lr_decay^k after k * step_epochs epochs; a third of the run if not given."""
    every = step_epochs * per_epoch if step_epochs else max(1, math.ceil(T / 3))
    return lambda t: lr_decay ** (t // every)


def cosine(T: int, per_epoch: int, floor: float = 0.0) -> Factor:
    """floor + (1 - floor) (1 + cos(pi t / T)) / 2 (Loshchilov and Hutter 2016, arXiv:1608.03983)."""
    return lambda t: floor + (1 - floor) * (1 + math.cos(math.pi * min(t, T) / T)) / 2


def restarts(T: int, per_epoch: int, floor: float = 0.0, t0: int = 10, t_mult: int = 2) -> Factor:
    """Cosine cycles of t0 epochs, each t_mult times as long as the one before, starting again at the full rate."""

    def factor(t: int) -> float:
        length = t0 * per_epoch
        while t >= length:
            t, length = t - length, length * t_mult
        return cosine(length, per_epoch, floor)(t)

    return factor


def onecycle(T: int, per_epoch: int, rise: float | None = None) -> Factor:
    """From 1/25 up to 1 in the first `rise` updates (30 % of the run if not given), then down to 1/250,000.

    Both ways along a half cosine (Smith and Topin 2017, arXiv:1708.07120, as torch's OneCycleLR without its
    momentum cycle).
    """
    start, end = 1 / 25, 1 / 25e4
    peak = max((0.3 * T if rise is None else rise) - 1, 1e-9)  # the update that has the full rate

    def factor(t: int) -> float:
        if t <= peak:
            return start + (1 - start) * (1 - math.cos(math.pi * t / peak)) / 2
        down = min((t - peak) / max(T - 1 - peak, 1e-9), 1.0)
        return end + (1 - end) * (1 + math.cos(math.pi * down)) / 2

    return factor


class Schedule:
    """Sets the learning rate of the coming update from the number of updates done."""

    def __init__(self, optimizer: torch.optim.Optimizer, factor: Factor, warmup_updates: int = 0):
        self.optimizer, self.factor, self.warmup_updates = optimizer, factor, warmup_updates
        self.base_lrs = [group["lr"] for group in optimizer.param_groups]
        self.updates = 0
        self._apply()

    @property
    def lr(self) -> float:
        return self.optimizer.param_groups[0]["lr"]

    def step(self) -> None:
        """After an update that really happened."""
        self.updates += 1
        self._apply()

    def epoch_end(self, value: float) -> None:
        """After a validation, with the monitored number."""

    def _apply(self) -> None:
        t = self.updates - self.warmup_updates
        # u-th of W warm-up updates: (u + 1) / W, so that the first already moves
        factor = self.factor(t) if t >= 0 else (self.updates + 1) / self.warmup_updates
        for group, lr in zip(self.optimizer.param_groups, self.base_lrs, strict=True):
            group["lr"] = lr * factor

    def state_dict(self) -> dict[str, Any]:
        return {"updates": self.updates}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._apply()


class Plateau(Schedule):
    """Multiplies the rate by lr_decay once the monitored number has not improved for more than `patience` epochs."""

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        warmup_updates: int,
        mode: str,
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
    "cosine": cosine,
    "plateau": Plateau,
    "restarts": restarts,
    "onecycle": onecycle,
}


def build_schedule(
    name: str,
    optimizer: torch.optim.Optimizer,
    epochs: int,
    updates_per_epoch: int,
    warmup: float = 0.0,
    mode: str = "max",
    **options: Any,
) -> Schedule:
    """A schedule by name over epochs * updates_per_epoch updates, after `warmup` epochs of linear rise.

    Args:
        mode: whether the number given to `epoch_end` is better when larger ("max", F1) or smaller ("min", a loss).
        options: step_epochs, lr_decay (step, plateau), plateau_patience, min_lr (cosine, restarts), t0, t_mult
            (restarts, in epochs); an option that the schedule does not take is an error.
    Raises: ValueError for an unknown name or mode, an option without effect, a value out of range.
    """
    if name not in SCHEDULES:
        raise ValueError(f"unknown schedule {name!r}: choose from {', '.join(SCHEDULES)}")
    if mode not in ("max", "min"):
        raise ValueError(f"mode must be 'max' or 'min', got {mode!r}")
    if not 0 <= warmup < epochs:
        raise ValueError(f"warm-up must be >= 0 and shorter than the run of {epochs} epochs, got {warmup}")
    for option, value in options.items():
        if not (value > 0 or (value == 0 and option in ("min_lr", "plateau_patience"))):
            raise ValueError(f"{option} must be > 0, got {value}")
    if not options.get("lr_decay", 0) < 1:
        raise ValueError(f"lr_decay must be < 1, got {options['lr_decay']}")
    if not options.get("min_lr", 0) <= optimizer.param_groups[0]["lr"]:
        raise ValueError(f"min_lr must be at most the learning rate, got {options['min_lr']}")
    build = SCHEDULES[name]
    if "min_lr" in options and "floor" in inspect.signature(build).parameters:
        options["floor"] = options.pop("min_lr") / optimizer.param_groups[0]["lr"]
    unused = set(options) - set(inspect.signature(build).parameters)
    if unused:
        raise ValueError(f"schedule {name!r} takes no {', '.join(sorted(unused))}")
    total, rise = epochs * updates_per_epoch, round(warmup * updates_per_epoch)
    if build is Plateau:
        return Plateau(optimizer, rise, mode, **options)
    if build is onecycle:
        return Schedule(optimizer, onecycle(total, updates_per_epoch, rise if warmup else None))
    return Schedule(optimizer, build(total - rise, updates_per_epoch, **options), rise)


def _show() -> None:
    """A row a schedule over 30 epochs, a digit an epoch: tenths of the full rate, rounded up, 9 for 10."""
    print("            the learning rate in tenths, an epoch a column (plateau: F1 stalls after epoch 8)")
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

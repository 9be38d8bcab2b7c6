# From f1kit. MIT licence, copyright (c) 2026 The f1kit authors. Keep this line and LICENSE with a copy of this file.
"""The training loop: exact gradient accumulation, one update per window, evaluation over a whole epoch.

    python loop.py          # a table: the gradient of accum 4 and of "loss / accum", compared with one big batch

Copy this file alone into your project. It needs torch (2.4 or later) and no other file.

    state = State(model, optimizer)                # optional: schedule=, scaler=, ema=
    for epoch in range(epochs):
        trained = train_epoch(state, train_loader, criterion, accum=4)
        scores, logits, targets = evaluate(model, val_loader, criterion)

A window is `accum` micro-batches. One update (optimizer step) follows each window. The gradient of a window is that of
one big batch, also with class weights, a short last micro-batch or window, or a loss that is a ratio of sums.

- batches: any iterable of (*inputs, targets), such as a DataLoader of (images, targets). Tensors are moved to the
  model's device. Targets are class indices (N, ...), or class probabilities (N, C, ...).
- forward: forward(*inputs) returns logits (N, C, ...). The default is the model.
- criterion: criterion(logits, targets) returns the mean loss. Like torch.nn.CrossEntropyLoss, the mean divides by N or,
  with class weights in `weight`, by the sum of the targets' weights. Targets equal to `ignore_index` do not count. The
  first window of an epoch checks this. For a different divisor, add a method `weight_of(targets)` that returns it. If
  the loss is not a sum over samples, such as an F1 loss, set the attribute `additive = False`.
- schedule, ema: schedule.step() and ema.update(model) are called after every update. To save State: state_dict().
"""

from __future__ import annotations

import copy
import itertools
import math
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Batch = Sequence[Any]  # (*inputs, targets)
Batches = Iterable[Batch]
Forward = Callable[..., Tensor]  # forward(*inputs) -> logits
AMP_OFF = torch.float32  # the type of a forward pass without autocast
NO_SCALER = torch.amp.GradScaler(enabled=False)  # scale() returns the loss unchanged, step() is optimizer.step()
NOTHING = SimpleNamespace(  # used if there is no schedule, no EMA, or nothing to restore
    step=lambda: 0, update=lambda model: 0, restore=lambda with_rng: 0, state_dict=dict, load_state_dict=lambda saved: 0
)


class NonFinite(Exception):
    """A loss, gradient or logit is NaN or infinite. The weights are unchanged."""


@dataclass
class State:
    """Everything that training changes. A run that is resumed from its state_dict() gives the same result."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    schedule: Any = field(default_factory=lambda: NOTHING)
    scaler: torch.amp.GradScaler = NO_SCALER
    ema: Any = field(default_factory=lambda: NOTHING)
    progress: dict[str, Any] = field(default_factory=dict)  # counts and sums of an unfinished epoch

    PARTS = ("model", "ema", "optimizer", "schedule", "scaler")

    def state_dict(self) -> dict[str, Any]:
        parts = {name: getattr(self, name).state_dict() for name in self.PARTS}
        return parts | {"rng": random_state(), "progress": copy.deepcopy(self.progress)}

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        for name in self.PARTS:
            getattr(self, name).load_state_dict(saved[name])
        set_random_state(saved["rng"])
        self.progress = copy.deepcopy(saved["progress"])


def random_state() -> list[Tensor]:
    return [torch.get_rng_state(), *(torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [])]


def set_random_state(state: list[Tensor]) -> None:
    torch.set_rng_state(state[0])
    for device, gpu_state in enumerate(state[1 : 1 + torch.cuda.device_count()]):
        torch.cuda.set_rng_state(gpu_state, device)


class WindowStart:
    """Copies of what a window changes before its update: buffers (BatchNorm's statistics) and random states."""

    def __init__(self, model: nn.Module):
        self.model, self.rng = model, random_state()
        self.buffers = [buffer.clone() for buffer in model.buffers()]

    @torch.no_grad()
    def restore(self, with_rng: bool) -> None:
        for buffer, before in zip(self.model.buffers(), self.buffers, strict=True):
            buffer.copy_(before)
        if with_rng:
            set_random_state(self.rng)


# ---------------------------------------------------------------------------------------------------------------------
# One window: the gradient of one big batch
# ---------------------------------------------------------------------------------------------------------------------


def windows(batches: Batches, accum: int, device: torch.device | str | None = None) -> Iterator[list[Batch]]:
    """`accum` micro-batches at a time, on the device. The last window of an epoch may be shorter: none is dropped."""
    if device is not None:
        batches = ([x.to(device, non_blocking=True) if isinstance(x, Tensor) else x for x in b] for b in batches)
    batches = ([*inputs, y if y.is_floating_point() else y.long()] for *inputs, y in batches)  # of any integer type
    while window := list(itertools.islice(batches, accum)):
        yield window


def weight_of(criterion: Any, targets: Tensor) -> int | Tensor:
    """The divisor of the criterion's mean over these targets (see the top of this file)."""
    if getattr(criterion, "reduction", "mean") != "mean":
        raise ValueError(f"the criterion needs reduction='mean', got {criterion.reduction!r}")
    if hasattr(criterion, "weight_of"):
        return criterion.weight_of(targets)
    if targets.is_floating_point():
        return targets.shape[0]
    weight, counts = getattr(criterion, "weight", None), targets.long() != getattr(criterion, "ignore_index", -100)
    return counts.sum() if weight is None else (weight[targets.long().where(counts, 0)] * counts).sum()


def _part_of_mean(criterion: Any, logits: Tensor, targets: Tensor, total: int | Tensor) -> Tensor:
    """A micro-batch's part of the window's mean loss: its own mean times its share of the window's weight."""
    logits = _wide(logits)
    if hasattr(criterion, "weight_of"):
        return criterion(logits, targets) * (criterion.weight_of(targets) / total)
    if not getattr(criterion, "additive", True):
        return criterion(logits, targets)  # its window has one micro-batch
    if targets.is_floating_point() or type(criterion) not in (nn.CrossEntropyLoss, nn.NLLLoss):
        return criterion(logits, targets) * weight_of(criterion, targets) / total
    summed = copy.copy(criterion)  # the same number; 0 instead of 0 / 0 if all targets of the micro-batch are ignored
    summed.reduction = "sum"
    return summed(logits, targets) / total


def _wide(logits: Tensor) -> Tensor:
    return logits.to(torch.promote_types(logits.dtype, torch.float32))  # a loss in half precision is not exact


def backward_window(
    model: nn.Module, forward: Forward, criterion: Any, window: list[Batch], scaler: torch.amp.GradScaler = NO_SCALER
) -> tuple[Tensor, Tensor, Tensor]:
    """Adds the gradient of the window's loss to the parameters. It equals the gradient of one big batch.

    Each micro-batch's mean counts by its share of the window's weight. If it were divided by `accum`, a short one, or
    one of classes with small weights, would count too much. Returns the loss (), logits (n, C) and targets, detached.
    """
    targets, additive = torch.cat([batch[-1] for batch in window]), getattr(criterion, "additive", True)
    if additive or len(window) == 1:
        total, loss, logits = weight_of(criterion, targets), 0.0, []
        for *inputs, micro_targets in window:
            micro_logits = forward(*inputs)
            micro_loss = _part_of_mean(criterion, micro_logits, micro_targets, total)
            scaler.scale(micro_loss).backward()
            loss = loss + micro_loss.detach()
            logits.append(micro_logits.detach())
        return loss, torch.cat(logits), targets

    # A ratio of sums (F1) needs all logits at once, but not all graphs: gradient caching (Gao et al. 2021,
    # arXiv:2101.06983). Pass 1: all logits without a graph, then the gradient of the loss with respect to them. Pass 2:
    # forward and backward per micro-batch with it. Both have the same dropout masks; BatchNorm is updated once.
    before = WindowStart(model)
    with torch.no_grad():
        logits = torch.cat([forward(*inputs) for *inputs, _ in window])
    before.restore(with_rng=True)
    logits.requires_grad_()
    loss = criterion(_wide(logits), targets)
    scaler.scale(loss).backward()
    sizes = [len(batch[-1]) for batch in window]
    for (*inputs, _), gradient in zip(window, logits.grad.split(sizes), strict=True):
        forward(*inputs).backward(gradient)
    return loss.detach(), logits.detach(), targets


def train_epoch(
    state: State,
    batches: Batches,
    criterion: Any,
    forward: Forward | None = None,
    accum: int = 1,
    clip: float | None = None,
    amp: torch.dtype = AMP_OFF,
    skip_nonfinite: int = 0,
    describe: Callable[[list[Batch]], str] = lambda window: "",
    check: Callable[[], None] = lambda: None,
    after_window: Callable[[dict[str, float]], None] = lambda numbers: None,
    backward: Callable[..., tuple[Tensor, Tensor, Tensor]] = backward_window,
) -> dict[str, float]:
    """One update per window of `accum` micro-batches. An interrupted epoch (state.progress) continues with `batches`.

    - clip: largest norm of the gradient, > 0. amp: torch.float16 (with a GradScaler) or torch.bfloat16.
    - skip_nonfinite: number of NaN or infinite windows to skip. describe(window) is added to the message about them.
    - check: called before each micro-batch. If it raises, the window is undone.
    - after_window: called with {"lr", "loss", "grad_norm", "outcome"} after each window, see `judge_window`.
    - backward: `backward_window`, or around it in several passes or processes, such as sam.SAM or ranks.py.

    Returns lr (of the first update), train_loss, train_ce (plain cross-entropy), skipped_steps (by the scaler),
    nonfinite_steps, images_per_second. Raises NonFinite before weights are changed.
    """
    if accum < 1 or not (clip is None or clip > 0):
        raise ValueError(f"accum must be >= 1, and clip > 0 or None; got accum={accum} and clip={clip}")
    model, optimizer, scaler = state.model.train(), state.optimizer, state.scaler
    device = next(model.parameters()).device
    forward, start = _wrapped(forward or model, device, amp, check), time.perf_counter()
    optimizer.zero_grad(set_to_none=True)
    counts = ("windows", "update", "overflow", "nonfinite", "images", "samples", "loss", "weight", "ce")
    state.progress = state.progress or dict.fromkeys(counts, 0) | {"lr": optimizer.param_groups[0]["lr"]}
    progress, images_before = state.progress, state.progress["images"]
    for window in windows(batches, accum, device):
        has_parts = accum > 1 or backward is not backward_window  # and may stop between them
        before = WindowStart(model) if has_parts or skip_nonfinite else NOTHING
        try:
            loss, logits, targets = backward(model, forward, criterion, window, scaler)
            if not progress["update"] and not hasattr(criterion, "weight_of"):
                _check_divisor(criterion, targets, loss, logits)
        except BaseException:
            optimizer.zero_grad(set_to_none=True)
            before.restore(with_rng=True)
            raise
        scaler.unscale_(optimizer)  # before the norm: the true gradient, not the scaled one
        norm = nn.utils.clip_grad_norm_(model.parameters(), clip or math.inf)
        if judge_window(loss, norm, state, before, skip_nonfinite, lambda w=window: describe(w)) == "update":
            scaler.step(optimizer)
            state.ema.update(model)
            state.schedule.step()  # EMA and schedule count the updates that happened
        scaler.update()
        optimizer.zero_grad(set_to_none=True)
        _count(progress, criterion, targets, loss, logits)
        after_window(progress["last"])
    state.progress, seconds = {}, time.perf_counter() - start
    return _means(progress) | {"images_per_second": (progress["images"] - images_before) / seconds}


def judge_window(
    loss: Tensor, norm: Tensor, state: State, before: Any, skip_nonfinite: int, describe: Callable[[], str]
) -> str:
    """Returns "update"; "overflow", for an infinite fp16 gradient that may be due to the scale (>= 1), which the scaler
    halves; or "nonfinite": BatchNorm's statistics are restored. After `skip_nonfinite` of these, raises NonFinite.
    """
    loss, norm = torch.stack([loss.float(), norm.float()]).tolist()  # the window's only host sync
    progress, optimizer, scaler, outcome = state.progress, state.optimizer, state.scaler, "update"
    if not (math.isfinite(loss) and math.isfinite(norm)):
        is_scale = math.isfinite(loss) and scaler.is_enabled() and scaler.get_scale() >= 1
        outcome = "overflow" if is_scale else "nonfinite"
    if outcome == "nonfinite":
        optimizer.zero_grad(set_to_none=True)
        before.restore(with_rng=False)
        message = f"loss {loss}, gradient norm {norm}: not finite. The weights are unchanged. {describe()}"
        if progress["nonfinite"] >= skip_nonfinite:
            raise NonFinite(message)
        print(f"skipped: {message}", file=sys.stderr)
    progress[outcome] += 1
    progress["last"] = {"lr": optimizer.param_groups[0]["lr"], "loss": loss, "grad_norm": norm, "outcome": outcome}
    return outcome


def _count(progress: dict[str, Any], criterion: Any, targets: Tensor, loss: Tensor, logits: Tensor) -> None:
    """Adds a window to the sums of the epoch, without a host sync."""
    if progress["last"]["outcome"] != "nonfinite":
        weight, ignored = weight_of(criterion, targets), getattr(criterion, "ignore_index", -100)
        progress["loss"] += loss * weight
        progress["weight"] += weight
        progress["ce"] += F.cross_entropy(_wide(logits), targets, reduction="sum", ignore_index=ignored)
        samples = targets.numel() // math.prod(targets.shape[1:2])  # of class probabilities (N, C, ...)
        progress["samples"] += samples if targets.is_floating_point() else (targets != ignored).sum()
        progress["images"] += len(targets)
    progress["windows"] += 1


def _means(progress: dict[str, Any]) -> dict[str, float]:
    return {
        "lr": progress["lr"],
        "train_loss": float(progress["loss"] / progress["weight"]) if progress["images"] else math.nan,
        "train_ce": float(progress["ce"]) / float(progress["samples"]) if progress["images"] else math.nan,
        "skipped_steps": progress["overflow"],
        "nonfinite_steps": progress["nonfinite"],
    }


@torch.no_grad()
def _check_divisor(criterion: Any, targets: Tensor, loss: Tensor, logits: Tensor) -> None:
    loss, expected = float(loss), float(criterion(_wide(logits), targets))
    if math.isfinite(loss) and not math.isclose(loss, expected, rel_tol=1e-4, abs_tol=1e-6):
        raise ValueError(
            f"the loss of a window is {loss:.6g}, but {criterion} of all its logits is {expected:.6g}: add a method "
            "weight_of(targets) that returns the divisor of its mean, or set additive = False"
        )


def _wrapped(forward: Forward, device: torch.device, amp: torch.dtype, check: Callable = lambda: None) -> Forward:
    def wrapped(*inputs: Any) -> Tensor:
        check()
        with torch.autocast(device.type, amp, enabled=amp != AMP_OFF):
            return forward(*inputs)

    return wrapped


@torch.no_grad()
def evaluate(
    model: nn.Module, batches: Batches, criterion: Any, forward: Forward | None = None, amp: torch.dtype = AMP_OFF
) -> tuple[dict[str, float], Tensor, Tensor]:
    """val_loss, val_ce (plain cross-entropy, comparable between criteria); logits (N, C) and targets of all batches.

    Scores are computed once, from all logits: a mean over batches is wrong for F1, and for a short last batch. For F1,
    pass logits and targets to metrics.ConfusionMatrix. Raises NonFinite for logits that are not finite.
    """
    device = next(model.eval().parameters()).device
    forward = _wrapped(forward or model, device, amp)
    parts = [(_wide(forward(*inputs)), targets) for [(*inputs, targets)] in windows(batches, 1, device)]
    logits, targets = (torch.cat([part[i] for part in parts]) for i in (0, 1))
    if not logits.isfinite().all():
        raise NonFinite("the network gives NaN or infinite logits for validation images")
    ce = F.cross_entropy(logits, targets, ignore_index=getattr(criterion, "ignore_index", -100))
    return {"val_loss": float(criterion(logits, targets)), "val_ce": float(ce)}, logits, targets


def main() -> None:
    torch.manual_seed(0)
    model, weights = nn.Linear(8, 5).double(), torch.tensor([0.2, 0.5, 1.0, 2.0, 5.0]).double()

    def gradient(criterion: nn.Module, window: list[Batch], divisor: int = 0) -> Tensor:
        model.zero_grad()
        for inputs, targets in window if divisor else ():
            (criterion(model(inputs), targets) / divisor).backward()
        if not divisor:
            backward_window(model, model, criterion, window)
        return torch.cat([parameter.grad.flatten() for parameter in model.parameters()])

    print("relative error of the gradient, compared with one big batch (batch 8, accum 4)\n")
    print(f"{'class weights':<15}{'images':>7}{'loop.py':>10}{'loss / accum':>14}")
    for weight, n in itertools.product((None, weights), (32, 27)):
        x, y, criterion = torch.randn(n, 8).double(), torch.arange(n) % 5, nn.CrossEntropyLoss(weight)
        window = list(zip(x.split(8), y.split(8), strict=True))
        big, exact, naive = (gradient(criterion, *how) for how in (([(x, y)], 1), (window,), (window, 4)))
        exact, naive = (((other - big).norm() / big.norm()).item() for other in (exact, naive))
        print(f"{'none' if weight is None else '0.2 to 5':<15}{n:>7}{exact:>10.0e}{naive:>14.1e}")


if __name__ == "__main__":
    main()

"""The training loop: exact gradient accumulation, one update per window, evaluation over a whole epoch.

    python loop.py          # a table: the gradient of accum 4 and of "loss / accum", each against the big batch

Copy this file alone into your project; it needs torch (2.4 or later) and nothing else of the kit.

    state = State(model, optimizer)                # and schedule=, scaler=, ema= if you have them
    for epoch in range(epochs):
        trained = train_epoch(state, train_loader, criterion, accum=4)
        scores, logits, targets = evaluate(model, val_loader, criterion)

A window is `accum` micro-batches, followed by one optimizer step. Its gradient is the gradient of one big batch: also
with class weights, with a short last micro-batch or window, and for a loss that is a ratio of sums.

- batches: any iterable of (*inputs, targets), such as a DataLoader of (images, targets). Tensors are moved to the
  model's device. Targets are class indices (N, ...), or class probabilities (N, C, ...).
- forward: forward(*inputs) returns logits (N, C, ...). The default is the model.
- criterion: criterion(logits, targets) returns the mean loss. If it has no method `weight_of(targets)`, the mean must
  divide by N or, if it has class weights in `weight`, by the sum of the targets' weights; targets equal to
  `ignore_index` do not count. This is true of torch.nn.CrossEntropyLoss, and checked in the first window of an epoch.
  A loss that is not a sum over samples, such as an F1 loss, says so by an attribute `additive = False`.
- schedule: schedule.step() after every update. ema: ema.update(model) after every optimizer step. Both are optional.
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
Check = Callable[[], None]
AMP_OFF = torch.float32  # the type of a forward pass without autocast
NO_SCALER = torch.amp.GradScaler(enabled=False)  # gives the loss back, and steps as the optimizer does
NOTHING = SimpleNamespace(  # in the place of a schedule or an EMA that was not given
    step=lambda: None, update=lambda model: None, state_dict=dict, load_state_dict=lambda saved: None
)


class NonFinite(Exception):
    """A loss or gradient is NaN or infinite. It has not changed the weights."""


@dataclass
class State:
    """What training changes: a run that is resumed from its state_dict() ends the same."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    schedule: Any = field(default_factory=lambda: NOTHING)
    scaler: torch.amp.GradScaler = NO_SCALER
    ema: Any = field(default_factory=lambda: NOTHING)
    progress: dict[str, Any] = field(default_factory=dict)  # counts and sums of an epoch that is not finished

    PARTS = ("model", "ema", "optimizer", "schedule", "scaler")

    def state_dict(self) -> dict[str, Any]:
        parts = {name: getattr(self, name).state_dict() for name in self.PARTS}
        return parts | {"rng": random_state(), "progress": self.progress}

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        for name in self.PARTS:
            getattr(self, name).load_state_dict(saved[name])
        set_random_state(saved["rng"])
        self.progress = saved["progress"]


def random_state() -> list[Tensor]:
    """The states of torch's generators: the CPU's, then one for each GPU."""
    return [torch.get_rng_state(), *(torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [])]


def set_random_state(state: list[Tensor]) -> None:
    torch.set_rng_state(state[0])
    for device, gpu_state in enumerate(state[1 : 1 + torch.cuda.device_count()]):
        torch.cuda.set_rng_state(gpu_state, device)


class WindowStart:
    """What a window changes before its update: buffers (BatchNorm's running statistics) and random states."""

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


def windows(batches: Batches, accum: int, device: torch.device | str = "cpu") -> Iterator[list[Batch]]:
    """`accum` micro-batches at a time, on the device. The last window of an epoch may be shorter: none is dropped."""
    batches = ([x.to(device, non_blocking=True) if isinstance(x, Tensor) else x for x in batch] for batch in batches)
    while window := list(itertools.islice(batches, accum)):
        yield window


def weight_of(criterion: Any, targets: Tensor) -> int | Tensor:
    """What the criterion's mean over these targets divides by (see the top of this file)."""
    if getattr(criterion, "reduction", "mean") != "mean":
        raise ValueError(f"the criterion needs reduction='mean', got {criterion.reduction!r}")
    if hasattr(criterion, "weight_of"):
        return criterion.weight_of(targets)
    if targets.is_floating_point():
        return len(targets)
    weight, counts = getattr(criterion, "weight", None), targets != getattr(criterion, "ignore_index", -100)
    return counts.sum() if weight is None else (weight[targets.where(counts, 0)] * counts).sum()


def _part_of_mean(criterion: Any, logits: Tensor, targets: Tensor, total: int | Tensor) -> Tensor:
    """What a micro-batch adds to the window's mean loss: its own mean times its share of the window's weight."""
    if hasattr(criterion, "weight_of"):
        return criterion(logits, targets) * (criterion.weight_of(targets) / total)
    if not getattr(criterion, "additive", True):
        return criterion(logits, targets)  # its window has one micro-batch
    if targets.is_floating_point() or not hasattr(criterion, "reduction"):
        return criterion(logits, targets) * weight_of(criterion, targets) / total
    summed = copy.copy(criterion)  # the same number; 0 instead of 0 / 0 if all targets of the micro-batch are ignored
    summed.reduction = "sum"
    return summed(logits, targets) / total


def backward_window(
    model: nn.Module, forward: Forward, criterion: Any, window: list[Batch], scaler: torch.amp.GradScaler = NO_SCALER
) -> tuple[Tensor, Tensor]:
    """Adds the gradient of the window's loss to the parameters: the gradient of one big batch, however it is split.

    Dividing each micro-batch's mean by `accum` is not the same: a short last micro-batch, or one of classes with small
    weights, would count as much as a full one. The targets are known before the first forward. So each micro-batch is
    multiplied by its share of the window's weight. Returns the loss () and the logits (n, C), detached.
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
        return loss, torch.cat(logits)

    # A ratio of sums (F1) needs all logits at once, but not all graphs: gradient caching (Gao et al. 2021,
    # arXiv:2101.06983). First the logits without a graph, and the gradient of the loss at them. Then one forward and
    # backward per micro-batch, which starts there. Both passes draw the same dropout masks; BatchNorm moves once.
    before = WindowStart(model)
    with torch.no_grad():
        logits = torch.cat([forward(*inputs) for *inputs, _ in window])
    before.restore(with_rng=True)
    logits.requires_grad_()
    loss = criterion(logits, targets)
    scaler.scale(loss).backward()
    sizes = [len(batch[-1]) for batch in window]
    for (*inputs, _), gradient in zip(window, logits.grad.split(sizes), strict=True):
        forward(*inputs).backward(gradient)
    return loss.detach(), logits.detach()


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
    check: Check = lambda: None,
    after_window: Callable[[dict[str, float]], None] = lambda numbers: None,
) -> dict[str, float]:
    """One update per window of `accum` micro-batches. An interrupted epoch goes on at window state.progress["windows"].

    - clip: largest norm of the gradient, > 0. amp: torch.float16 (with a GradScaler) or torch.bfloat16.
    - skip_nonfinite: how many windows with a NaN or infinite loss or gradient may be left out.
    - describe: what NonFinite says about a window, for example its file names.
    - check: called before each micro-batch; if it raises, the window is undone.
    - after_window: called with {"lr", "loss", "grad_norm", "outcome"} after each window, see `judge_window`.

    Returns lr (of the first update), train_loss, train_ce (plain cross-entropy, the same unit for every criterion),
    skipped_steps (by the scaler), nonfinite_steps, images_per_second. Raises NonFinite before weights are changed.
    """
    model, optimizer, scaler = state.model.train(), state.optimizer, state.scaler
    device = next(model.parameters()).device
    forward, start = _wrapped(forward or model, device, amp, check), time.perf_counter()
    if not state.progress:
        counts = ("windows", "update", "overflow", "nonfinite", "images", "samples", "loss", "weight", "ce")
        state.progress = dict.fromkeys(counts, 0) | {"lr": optimizer.param_groups[0]["lr"]}
    progress, images_before = state.progress, state.progress["images"]
    for window in windows(batches, accum, device):
        before = WindowStart(model) if accum > 1 or skip_nonfinite else None
        try:
            loss, logits = backward_window(model, forward, criterion, window, scaler)
        except BaseException:
            optimizer.zero_grad(set_to_none=True)
            if before:
                before.restore(with_rng=True)
            raise
        scaler.unscale_(optimizer)  # gradients in their true size, before anything looks at them
        norm = nn.utils.clip_grad_norm_(model.parameters(), clip or math.inf)
        if judge_window(loss, norm, state, before, skip_nonfinite, lambda w=window: describe(w)) == "update":
            scaler.step(optimizer)
            state.ema.update(model)
            state.schedule.step()  # EMA and schedule count the updates that happened
        scaler.update()
        optimizer.zero_grad(set_to_none=True)
        _count(progress, criterion, window, loss, logits)
        after_window(progress["last"])
    state.progress = {}
    samples = float(progress["samples"])
    return {
        "lr": progress["lr"],
        "train_loss": float(progress["loss"] / progress["weight"]) if samples else math.nan,
        "train_ce": float(progress["ce"]) / samples if samples else math.nan,
        "skipped_steps": progress["overflow"],
        "nonfinite_steps": progress["nonfinite"],
        "images_per_second": (progress["images"] - images_before) / (time.perf_counter() - start),
    }


def judge_window(
    loss: Tensor, norm: Tensor, state: State, before: Any, skip_nonfinite: int, describe: Callable[[], str]
) -> str:
    """What to do about a window: "update", or one of the cases of a loss or gradient that is not finite.

    - "overflow": an fp16 gradient is infinite, and the scale (>= 1) may be the reason. No update; the scaler halves it.
    - "nonfinite": no update, and BatchNorm's statistics are put back. After `skip_nonfinite` of them: NonFinite.
    """
    loss, norm = torch.stack([loss.float(), norm.float()]).tolist()  # the window's only host sync
    progress, scaler, outcome = state.progress, state.scaler, "update"
    if not (math.isfinite(loss) and math.isfinite(norm)):
        is_scale = math.isfinite(loss) and scaler.is_enabled() and scaler.get_scale() >= 1
        outcome = "overflow" if is_scale else "nonfinite"
    if outcome == "nonfinite":
        message = f"loss {loss}, gradient norm {norm}; the weights are as before this update. {describe()}"
        if progress["nonfinite"] >= skip_nonfinite:
            raise NonFinite(message)
        print(f"skipped: {message}", file=sys.stderr)
        before.restore(with_rng=False)
    progress[outcome] += 1
    lr = state.optimizer.param_groups[0]["lr"]
    progress["last"] = {"lr": lr, "loss": loss, "grad_norm": norm, "outcome": outcome}
    return outcome


def _count(progress: dict[str, Any], criterion: Any, window: list[Batch], loss: Tensor, logits: Tensor) -> None:
    """Adds a window to the sums of the epoch, without a host sync."""
    if progress["last"]["outcome"] != "nonfinite":
        targets, ignored = torch.cat([batch[-1] for batch in window]), getattr(criterion, "ignore_index", -100)
        weight = weight_of(criterion, targets)
        progress["loss"] += loss * weight
        progress["weight"] += weight
        progress["ce"] += F.cross_entropy(logits, targets, reduction="sum", ignore_index=ignored)
        progress["samples"] += len(targets) if targets.is_floating_point() else (targets != ignored).sum()
        progress["images"] += len(targets)
        if not progress["windows"] and not hasattr(criterion, "weight_of"):  # is it what is assumed of it?
            expected = float(criterion(logits, targets))
            if not math.isclose(float(loss), expected, rel_tol=1e-4, abs_tol=1e-6):
                raise ValueError(
                    f"a window's loss is {float(loss):.6g}, but {criterion} gives {expected:.6g} for all its logits: "
                    "give it a method weight_of(targets) that returns what its mean divides by, or additive = False"
                )
    progress["windows"] += 1


def _wrapped(forward: Forward, device: torch.device, amp: torch.dtype, check: Check = lambda: None) -> Forward:
    def wrapped(*inputs: Any) -> Tensor:
        check()
        with torch.autocast(device.type, amp, enabled=amp != AMP_OFF):
            logits = forward(*inputs)
        return logits.to(torch.promote_types(logits.dtype, torch.float32))  # so that the loss is float32 or wider

    return wrapped


@torch.no_grad()
def evaluate(
    model: nn.Module, batches: Batches, criterion: Any, forward: Forward | None = None, amp: torch.dtype = AMP_OFF
) -> tuple[dict[str, float], Tensor, Tensor]:
    """Scores, logits (N, C) and targets of all batches, in eval mode.

    A score is computed once, from all logits: a mean of the batches' scores is a different number, wrong for F1, and
    wrong for every score if the last batch is short. For F1 give the logits and targets to metrics.ConfusionMatrix.

    Returns val_loss, and val_ce: plain cross-entropy, the same unit for every criterion.
    Raises NonFinite for NaN or infinite logits, of which argmax would still name a class.
    """
    model.eval()
    device = next(model.parameters()).device
    forward, all_logits, all_targets = _wrapped(forward or model, device, amp), [], []
    for [(*inputs, targets)] in windows(batches, 1, device):
        all_logits.append(forward(*inputs))
        all_targets.append(targets)
    logits, targets = torch.cat(all_logits), torch.cat(all_targets)
    if not logits.isfinite().all():
        raise NonFinite("the network gives NaN or infinite logits for validation images")
    ce = F.cross_entropy(logits, targets, ignore_index=getattr(criterion, "ignore_index", -100))
    return {"val_loss": float(criterion(logits, targets)), "val_ce": float(ce)}, logits, targets


# ---------------------------------------------------------------------------------------------------------------------
# python loop.py
# ---------------------------------------------------------------------------------------------------------------------


def main() -> None:
    """Relative error of a window's gradient, against the gradient of the same images as one big batch."""
    torch.manual_seed(0)
    model, weights = nn.Linear(8, 5).double(), torch.tensor([0.2, 0.5, 1.0, 2.0, 5.0]).double()

    def gradient(criterion: nn.Module, window: list[Batch], divisor: int = 0) -> Tensor:
        model.zero_grad()
        for inputs, targets in window if divisor else ():
            (criterion(model(inputs), targets) / divisor).backward()
        if not divisor:
            backward_window(model, model, criterion, window)
        return torch.cat([parameter.grad.flatten() for parameter in model.parameters()])

    print("accum 4, batch 8: relative error of the window's gradient against the big batch's\n")
    print(f"{'class weights':<15}{'images':>7}{'loop.py':>10}{'loss / accum':>14}")
    for weight, n in itertools.product((None, weights), (32, 27)):
        x, y, criterion = torch.randn(n, 8).double(), torch.arange(n) % 5, nn.CrossEntropyLoss(weight)
        window = list(zip(x.split(8), y.split(8), strict=True))
        big, exact, naive = (gradient(criterion, *how) for how in (([(x, y)], 1), (window,), (window, 4)))
        exact, naive = (((other - big).norm() / big.norm()).item() for other in (exact, naive))
        print(f"{'none' if weight is None else '0.2 to 5':<15}{n:>7}{exact:>10.0e}{naive:>14.1e}")


if __name__ == "__main__":
    main()

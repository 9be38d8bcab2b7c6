# From f1kit. MIT licence, copyright (c) 2026 The f1kit authors. Keep this line and LICENSE with a copy of this file.
"""Several processes make the same run as one: torch.distributed for the windows of loop.py.

    torchrun --nproc_per_node=2 ranks.py       # a table: the gradient of 2 processes, compared with one process

Copy this file alone into your project, beside loop.py. It needs torch and no other file of the kit.

    with Ranks.of_torchrun(device) as ranks:   # without torchrun: one process, and nothing below changes anything
        mine = ranks.share(len(batches), accum)                    # numbers of this process's micro-batches
        train_epoch(state, (batches[i] if i is not None else empty for i in mine), criterion,
                    accum=ranks.accum(accum), backward=ranks.backward(backward_window, weight_of))
        logits = ranks.gather(logits)                              # the rows of all processes, in order

The micro-batches of each window are divided among the ranks (processes), in order: of 5 micro-batches, 2 ranks take
0 1 2 and 3 4. Each rank computes the gradient of its part. The sum over the ranks, each weighted by its part of the
window's weight, is the gradient of the window: so class weights and short last batches are exact, as in one process.
A ratio of sums (F1) is computed from the logits of all ranks. A rank without a micro-batch takes part with zeros.

BatchNorm normalizes each micro-batch, as in one process. Its running statistics are r <- (1 - m) r + m b for each
micro-batch b. They are combined after each window such that they are those of one process: if a rank has k
micro-batches and the ranks after it have a, its part is (1 - m)^a (r_rank - (1 - m)^k r_before). So all ranks have the
same state after each window, and any of them can save it. With momentum=None they are means, combined as such.

Do not use SyncBatchNorm. The number of images per mean belongs to the loss that is minimized (Goyal et al. 2017,
arXiv:1706.02677, section 2.3), so the run would depend on the number of processes. It also waits forever if a rank has
fewer micro-batches in a window. Instead, use larger and fewer micro-batches, or a network with GroupNorm or LayerNorm.
"""

from __future__ import annotations

import datetime
import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

WAIT = datetime.timedelta(days=1)  # for a rank that decodes images; a rank that has ended is noticed at once


class Lost(RuntimeError):
    """Another process of the run has ended."""


@contextmanager
def noticing() -> Iterator[None]:
    """Raises Lost if a collective fails because another process has ended."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:  # Gloo's and NCCL's errors are subclasses, with long texts
        raise Lost("another process of this run has ended") from error


class Ranks:
    """The processes of one run. Ranks() is one process alone: each method then returns what it was given."""

    def __init__(self, rank: int = 0, size: int = 1, local_rank: int = 0, device: torch.device | str = "cpu"):
        self.rank, self.size, self.local_rank, self.device = rank, size, local_rank, torch.device(device)

    @classmethod
    @contextmanager
    def of_torchrun(cls, device: torch.device | str = "cpu") -> Iterator[Ranks]:
        """The ranks that torchrun started (NCCL on GPUs, Gloo on CPUs), until the end of the block."""
        rank, size, local_rank = (int(os.environ.get(name, n)) for name, n in ENVIRONMENT.items())
        if size == 1:
            yield cls(device=device)
            return
        device = torch.device(device)
        if device.type == "cuda":
            device = torch.device("cuda", local_rank)
            torch.cuda.set_device(device)
        torch.distributed.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=WAIT)
        yield cls(rank, size, local_rank, device)
        torch.distributed.destroy_process_group()  # not after an error: it may wait for a process that has ended

    # ---- who does what ----

    def part(self, n: int) -> range:
        """The numbers of this rank's part of n things: in order, parts differ by at most one, the first are larger."""
        least, more = divmod(n, self.size)
        start = self.rank * least + min(self.rank, more)
        return range(start, start + least + (self.rank < more))

    def accum(self, accum: int) -> int:
        """Micro-batches of this rank in a full window. ValueError if a rank would have none."""
        if self.size > accum:
            raise ValueError(f"{self.size} processes need at least {self.size} micro-batches per window, got {accum}")
        return len(self.part(accum))

    def share(self, batches: int, accum: int, start: int = 0) -> list[int | None]:
        """The numbers of this rank's micro-batches in an epoch, from micro-batch `start` on, the first of a window.

        None stands for a window in which this rank has no micro-batch: yield an empty one there (targets of length 0).
        """
        found: list[int | None] = []
        for first in range(start, batches, accum):
            found += [first + i for i in self.part(min(accum, batches - first))] or [None]
        return found

    # ---- collectives ----

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum over the ranks, the same bits on each."""
        if self.size > 1:
            tensor = tensor.to(self.device, copy=True).contiguous()
            with noticing():
                torch.distributed.all_reduce(tensor)
        return tensor

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def any(self, flag: bool | int) -> bool:
        return bool(flag) if self.size == 1 else self.sum(torch.tensor(float(bool(flag)))).item() > 0

    def gather(self, rows: Tensor, counts: Sequence[int] | None = None) -> Tensor:
        """(n, ...) of each rank -> the rows of all ranks, in their order. n may differ, and be 0.

        counts: n of each rank, if it is known.
        """
        if self.size == 1:
            return rows
        rows = rows.to(self.device).contiguous()
        counts = counts or [int(n) for (n,) in self.table([len(rows)])]
        padded = rows.new_zeros(max(counts), *rows.shape[1:])
        padded[: len(rows)] = rows
        parts = [torch.empty_like(padded) for _ in counts]
        with noticing():
            torch.distributed.all_gather(parts, padded)
        return torch.cat([part[:n] for part, n in zip(parts, counts, strict=True)])

    def table(self, numbers: Sequence[float]) -> list[list[float]]:
        """The same k numbers of every rank: a row of k per rank, in float64."""
        rows = torch.zeros(self.size, len(numbers), dtype=torch.float64)
        rows[self.rank] = torch.tensor(numbers, dtype=torch.float64)
        return self.sum(rows).tolist()

    def agree(self, value: Any) -> Any:
        """The value of rank 0: any plain Python object."""
        values = [value]
        if self.size > 1:
            with noticing():
                torch.distributed.broadcast_object_list(values, src=0, device=self.device)
        return values[0]

    def same(self, text: str) -> bool:
        """Whether all ranks have the same text."""
        number = int(hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:12], 16)  # exact in float64
        return len({n for (n,) in self.table([number])}) == 1

    @contextmanager
    def one_first(self) -> Iterator[None]:
        """On each machine one rank runs the block first, such as one that fills a cache. Then the others do."""
        if self.local_rank:
            self.any(False)
        yield
        if self.size > 1 and not self.local_rank:
            self.any(False)

    # ---- a window ----

    def backward(self, backward: Callable[..., Any], weight_of: Callable[[Any, Tensor], Any]) -> Callable[..., Any]:
        """A function like `backward` (loop.backward_window) that adds the gradient of the window of all ranks.

        Each rank gives its own micro-batches. Returns loss, logits and targets of the whole window.
        """
        return backward if self.size == 1 else _Backward(self, backward, weight_of)


ENVIRONMENT = {"RANK": 0, "WORLD_SIZE": 1, "LOCAL_RANK": 0}  # what torchrun sets


class _Backward:
    def __init__(self, ranks: Ranks, backward: Callable[..., Any], weight_of: Callable[[Any, Tensor], Any]):
        self.ranks, self.backward, self.weight_of = ranks, backward, weight_of

    def __call__(
        self, model: nn.Module, forward: Callable[..., Tensor], criterion: Any, window: Sequence[Any], *scaler: Any
    ) -> tuple[Tensor, Tensor, Tensor]:
        ranks, targets = self.ranks, torch.cat([batch[-1] for batch in window])
        window = [batch for batch in window if len(batch[-1])]
        is_ratio, statistics = not getattr(criterion, "additive", True), RunningStatistics(model)
        wide = torch.promote_types(next(model.parameters()).dtype, torch.float32)  # as loop.py's loss
        loss, logits = torch.zeros(()), targets.new_zeros(0, 1, dtype=wide)
        if is_ratio:
            criterion = _OfAllRanks(criterion, ranks)
        if window:
            loss, logits, _ = self.backward(model, forward, criterion, window, *scaler)
        elif is_ratio:
            criterion(logits, targets)  # the other ranks wait for its (empty) rows

        parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        weight = float(bool(window)) if is_ratio else float(self.weight_of(criterion, targets))
        known = [weight, weight * float(loss) if weight else 0.0, len(window), len(targets), logits.shape[1]]
        each = ranks.table([*known, *(parameter.grad is not None for parameter in parameters)])
        weights, losses, micro_batches, rows, classes, *has_gradient = zip(*each, strict=True)
        total, rows = sum(weights), [int(n) for n in rows]

        factor = 1.0 if is_ratio else weight / total if weight else 0.0
        used = [parameter for parameter, has in zip(parameters, has_gradient, strict=True) if any(has)]
        for parameter in used:
            is_zero = not weight or parameter.grad is None  # None: only other ranks have used this parameter
            parameter.grad = torch.zeros_like(parameter) if is_zero else parameter.grad * factor
        gradients = [parameter.grad for parameter in used]
        summed = self._sum([*gradients, *statistics.parts(micro_batches, ranks.rank)])
        with torch.no_grad():  # a copy keeps the memory layout of the parameter, which fused optimizers need
            torch._foreach_copy_(gradients, summed[: len(used)])
        statistics.set(summed[len(used) :], micro_batches)
        loss = torch.tensor(sum(losses) / total if total else float("nan"), device=logits.device)
        logits = logits.to(wide) if len(logits) else logits.new_zeros(0, int(max(classes)))  # the same type on each
        return loss, ranks.gather(logits, rows), ranks.gather(targets, rows)

    def _sum(self, tensors: list[Tensor]) -> list[Tensor]:
        """The tensors summed over the ranks, with one collective for each type of number."""
        result: dict[int, Tensor] = {}
        for dtype in dict.fromkeys(tensor.dtype for tensor in tensors):
            numbers = [i for i, tensor in enumerate(tensors) if tensor.dtype == dtype]
            flat = self.ranks.sum(torch.cat([tensors[i].flatten() for i in numbers]))
            for i, part in zip(numbers, flat.split([tensors[i].numel() for i in numbers]), strict=True):
                result[i] = part.view(tensors[i].shape)
        return [result[i] for i in range(len(tensors))]


class _OfAllRanks:
    """A ratio of sums of the logits of all ranks. Its gradient is with respect to the logits of this rank."""

    def __init__(self, criterion: Any, ranks: Ranks):
        self.criterion, self.ranks = criterion, ranks

    def __getattr__(self, name: str) -> Any:
        return getattr(self.criterion, name)

    def __call__(self, logits: Tensor, targets: Tensor) -> Tensor:
        ranks = self.ranks
        rows, classes = zip(*ranks.table([len(logits), logits.shape[1]]), strict=True)
        rows, own = [int(n) for n in rows], logits if len(logits) else logits.new_zeros(0, int(max(classes)))
        others, start = ranks.gather(own.detach(), rows), sum(rows[: ranks.rank])
        return self.criterion(torch.cat([others[:start], own, others[start + len(own) :]]), ranks.gather(targets, rows))


class RunningStatistics:
    """BatchNorm's running means and variances before a window, combined over the ranks after it."""

    def __init__(self, model: nn.Module):
        kinds = nn.modules.batchnorm._BatchNorm
        modules = [module for module in model.modules() if isinstance(module, kinds) and module.training]
        self.modules = [module for module in modules if module.running_mean is not None]
        self.tensors = [tensor for module in self.modules for tensor in (module.running_mean, module.running_var)]
        self.before = [tensor.clone() for tensor in self.tensors]
        self.batches = [module.num_batches_tracked.clone() for module in self.modules]
        known = zip(self.modules, self.batches, strict=True)
        counts = [(module.momentum, int(n) if module.momentum is None else 0) for module, n in known]
        self.rates = [rate for rate in counts for _ in range(2)]  # for each tensor: momentum, micro-batches before

    def _kept(self, k: float) -> list[float]:
        """The part of each tensor that is left after k micro-batches. Momentum None: the mean of all micro-batches."""
        return [n / max(n + k, 1) if m is None else (1 - m) ** k for m, n in self.rates]

    def parts(self, micro_batches: Sequence[float], rank: int) -> list[Tensor]:
        """This rank's part of the new statistics, see the top of this file."""
        if not self.tensors:
            return []
        k, total, after = micro_batches[rank], sum(micro_batches), sum(micro_batches[rank + 1 :])
        changes = torch._foreach_sub(self.tensors, torch._foreach_mul(self.before, self._kept(k)))
        later = [(n + k) / (n + total) if m is None else (1 - m) ** after for m, n in self.rates]
        return list(torch._foreach_mul(changes, later))

    @torch.no_grad()
    def set(self, summed: Sequence[Tensor], micro_batches: Sequence[float]) -> None:
        if not self.tensors:
            return
        kept = torch._foreach_mul(self.before, self._kept(sum(micro_batches)))
        torch._foreach_copy_(self.tensors, torch._foreach_add(kept, list(summed)))
        for module, before in zip(self.modules, self.batches, strict=True):
            module.num_batches_tracked.copy_(before + int(sum(micro_batches)))


def main() -> None:
    with Ranks.of_torchrun() as ranks:
        torch.manual_seed(0)
        model, weights = nn.Linear(8, 5).double(), torch.tensor([0.2, 0.5, 1.0, 2.0, 5.0]).double()
        x, y = torch.randn(27, 8).double(), torch.arange(27) % 5
        batches = list(zip(x.split(8), y.split(8), strict=True))

        def backward(model: nn.Module, forward: Any, criterion: Any, window: Sequence[Any]) -> tuple[Tensor, ...]:
            logits, targets = model(torch.cat([x for x, _ in window])), torch.cat([y for _, y in window])
            loss = criterion(logits, targets)
            loss.backward()
            return loss.detach(), logits.detach(), targets

        def gradient(add: Callable[..., Any], criterion: nn.Module, window: Sequence[Any]) -> Tensor:
            model.zero_grad()
            add(model, model, criterion, window)
            return torch.cat([parameter.grad.flatten() for parameter in model.parameters()])

        if not ranks.rank:
            print(f"relative error of the gradient of {ranks.size} processes, compared with one process (27 images)\n")
            print(f"{'class weights':<15}{'ranks.py':>10}{'mean over the processes':>26}")
        mine = [batches[i] for i in ranks.share(4, 4) if i is not None]
        for name, w in (("none", torch.ones(5).double()), ("0.2 to 5", weights)):
            criterion, weight_of = nn.CrossEntropyLoss(w), lambda criterion, targets: criterion.weight[targets].sum()
            one = gradient(backward, criterion, batches)
            several = gradient(ranks.backward(backward, weight_of), criterion, mine)
            mean = ranks.sum(gradient(backward, criterion, mine)) / ranks.size
            exact, usual = (((other - one).norm() / one.norm()).item() for other in (several, mean))
            if not ranks.rank:
                print(f"{name:<15}{exact:>10.0e}{usual:>26.1e}")


if __name__ == "__main__":
    main()

# From f1kit. MIT licence, copyright (c) 2026 The f1kit authors. Keep this line and LICENSE with a copy of this file.
"""SAM, sharpness-aware minimization, on whole accumulation windows.

    python sam.py          # the gradient of a window of 4 micro-batches, compared with that of one big batch

Copy this file alone into your project, beside loop.py if you use it. It needs torch and no other file of the kit.

    train_epoch(state, batches, criterion, accum=4, backward=SAM(backward_window, rho=0.05))

Formula: g is the gradient of the window's loss at the weights w. The update uses the gradient of the same window at
w + rho g / |g|, where |g| is the norm over all parameters (Foret et al. 2020, arXiv:2010.01412).

Both passes see the same images, the same dropout masks and the same accumulation window. BatchNorm's running
statistics are those of the first pass. Each window costs two forward and two backward passes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class SAM:
    """A function like `backward`, which adds the gradient at the perturbed weights. The weights stay as they are.

    A gradient that is not finite (an fp16 overflow) perturbs nothing: it is left to the loop, which judges it.

    Args:
        backward: (model, forward, criterion, window, scaler) -> (loss, logits, targets). It adds the gradient of the
            window to the parameters, such as loop.backward_window. The gradients before must be None.
        rho: radius of the perturbation, > 0.
    Returns, as `backward`: loss, logits and targets, at the weights w.
    """

    def __init__(self, backward: Callable[..., Any], rho: float = 0.05):
        if not 0 < rho < float("inf"):
            raise ValueError(f"rho must be > 0, got {rho}")
        self.backward, self.rho = backward, rho

    def __call__(self, model: nn.Module, *window: Any) -> Any:
        rng = random_state()
        result = self.backward(model, *window)
        parameters = [parameter for parameter in model.parameters() if parameter.grad is not None]
        weights = [parameter.detach().clone() for parameter in parameters]
        buffers = [buffer.clone() for buffer in model.buffers()]
        gradients = [parameter.grad for parameter in parameters]
        try:
            with torch.no_grad():
                norm = torch.stack(
                    torch._foreach_norm(gradients)
                ).norm()  # a GradScaler's scale does not change g / |g|
                factor = torch.where(norm.isfinite() & (norm > 0), self.rho / norm, 0.0)
                for parameter, gradient in zip(parameters, gradients, strict=True):
                    parameter += torch.where(gradient.isfinite(), gradient * factor, 0.0)
            model.zero_grad(set_to_none=True)
            set_random_state(rng)
            self.backward(model, *window)
        finally:
            with torch.no_grad():
                for tensor, before in zip([*parameters, *model.buffers()], [*weights, *buffers], strict=True):
                    tensor.copy_(before)
        return result


def random_state() -> list[Tensor]:
    return [torch.get_rng_state(), *(torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [])]


def set_random_state(state: list[Tensor]) -> None:
    torch.set_rng_state(state[0])
    for device, gpu_state in enumerate(state[1 : 1 + torch.cuda.device_count()]):
        torch.cuda.set_rng_state(gpu_state, device)


def main() -> None:
    torch.manual_seed(0)
    model, x, y = nn.Linear(8, 5).double(), torch.randn(32, 8).double(), torch.arange(32) % 5
    window = list(zip(x.split(8), y.split(8), strict=True))

    def backward(model: nn.Module, window: list[tuple[Tensor, Tensor]]) -> None:
        n = sum(len(targets) for _, targets in window)
        for inputs, targets in window:
            (F.cross_entropy(model(inputs), targets) * len(targets) / n).backward()

    sam = SAM(backward, rho=0.5)

    def gradient(add: Callable[..., Any], *windows: list[tuple[Tensor, Tensor]]) -> Tensor:
        total = torch.zeros(45).double()
        for part in windows:
            model.zero_grad()
            add(model, part)
            total += torch.cat([parameter.grad.flatten() for parameter in model.parameters()]) / len(windows)
        return total

    big = gradient(sam, [(x, y)])
    print("relative error of the gradient of SAM, compared with one big batch of 32\n")
    found = {
        "one window of 4 x 8": gradient(sam, window),
        "SAM in each micro-batch": gradient(sam, *([part] for part in window)),
        "no SAM": gradient(backward, window),
    }
    for name, other in found.items():
        print(f"{name:<25}{((other - big).norm() / big.norm()).item():>10.0e}")


if __name__ == "__main__":
    main()

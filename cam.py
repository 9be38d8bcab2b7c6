# From f1kit. MIT licence, copyright (c) 2026 The f1kit authors. Keep this line and LICENSE with a copy of this file.
"""Where a network looks: Grad-CAM for any network that has a feature map with height and width.

    python cam.py             # a network that counts light in two corners, and its two maps

Copy this file alone into your project. It needs torch and no other file of the kit.

    maps = grad_cam(model, images, model(images).argmax(1))     # (N, h, w), or None for a network without such a map

Source: Selvaraju et al. 2017, Grad-CAM: Visual Explanations from Deep Networks via Gradient-based Localization,
arXiv:1610.02391.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def grad_cam(net: nn.Module, images: Tensor, classes: Tensor) -> Tensor | None:
    """The evidence for one class per image, at each position of the last feature map.

    Formula: a_k = mean over positions of d logit_c / d A_k, map = max(0, sum over k of a_k A_k), with A the last output
    (N, K, h, w) of a module with h, w > 1. None if there is no such output, or if an output (N, S, D) follows it: the
    tokens of a transformer have no height and width.

    The network runs once forward and once backward, in eval mode. Its parameters, their gradients, requires_grad,
    buffers and modes are afterwards as before.

    Args:
        net: from images to logits (N, C).
        images: what the network takes, float (N, ...), on its device.
        classes: int64 (N,), the class whose logit is explained.
    Returns: float32 (N, h, w), >= 0. It is 0 everywhere if no position raises the logit.
    """
    last: list[Tensor | None] = [None]

    def keep(module: nn.Module, inputs: Any, output: Any) -> None:
        if isinstance(output, Tensor) and output.dim() == 4 and min(output.shape[2:]) > 1:
            last[0] = output
        elif isinstance(output, Tensor) and output.dim() == 3:
            last[0] = None

    modes = {module: module.training for module in net.modules()}
    hooks = [module.register_forward_hook(keep) for module in modes]
    try:
        net.eval()
        with torch.enable_grad():
            x = images.detach().clone().requires_grad_()  # so that a network whose parameters are frozen has a graph
            logits = net(x.clone())  # a copy, because a network may change its input in place
            features = last[0]
            if features is None:
                return None
            score = logits.gather(1, classes.to(logits.device)[:, None]).sum()  # images do not depend on each other
            (gradient,) = torch.autograd.grad(score, features, allow_unused=True, materialize_grads=True)
    finally:
        for hook in hooks:
            hook.remove()
        for module, mode in modes.items():
            module.training = mode
    weights = gradient.float().mean((2, 3), keepdim=True)  # (N, K, 1, 1)
    return (weights * features.detach().float()).sum(1).clamp(min=0)


def enlarged(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Maps (N, h, w) to (N, H, W) for size (H, W), bilinear, each divided by its largest value: from 0 to 1."""
    maps = F.interpolate(maps[:, None], size, mode="bilinear", align_corners=False)[:, 0]
    return maps / maps.amax((1, 2), keepdim=True).clamp(min=torch.finfo(maps.dtype).tiny)


def main() -> None:
    """Class 0 is red light, class 1 is green light; the picture has red top left and green bottom right."""
    conv, head = nn.Conv2d(3, 2, 2, 2, bias=False), nn.Linear(2, 2, bias=False)
    net = nn.Sequential(conv, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), head)
    with torch.no_grad():
        conv.weight.zero_()
        conv.weight[0, 0], conv.weight[1, 1] = 0.25, 0.25
        head.weight.copy_(torch.eye(2))
    image = torch.zeros(1, 3, 16, 16)
    image[0, 0, :6, :6], image[0, 1, 8:, 10:] = 1, 1
    for c, name in enumerate(("red", "green")):
        (values,) = grad_cam(net, image, torch.tensor([c]))
        share = (values[:4, :4].sum() / values.sum()).item()
        print(f"class {name}: {share:.0%} of the map is in the top left quarter")
        print("\n".join("  " + " ".join(".:*#"[round(3 * v)] for v in row) for row in (values / values.max()).tolist()))


if __name__ == "__main__":
    main()

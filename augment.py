# From f1kit. MIT licence, copyright (c) 2026 The f1kit authors. Keep this line and LICENSE with a copy of this file.
"""Turn uint8 image batches into normalised float batches, on their device. Each image has its own random draw.

    python augment.py IMAGE --augment strong   # writes augment.png: 32 augmented versions of one image
    python augment.py IMAGES --csv train.csv --copies 10 --out DIR    # augmented copies as files, and a CSV with groups

    augment = Augment("light", seed=0)
    x = augment(images, index, epoch)   # images (N, 3, H, W) uint8, index (N,) -> (N, 3, H, W) float32, channels_last
    x = normalize(images)               # validation and test: no randomness

The random draws of an image depend only on (seed, epoch, index of the image). So the augmented images are the same for
any batch size, accumulation and device, and also after a resume. No global random state is used or changed.

Mixup and cutmix mix each image with the next one. For the same pairs with any batch size, append to each batch the
first image of the next batch, with its target and index (to the last batch: the first image of the epoch), and use
Augment(..., overlap=1): the result is without it. Otherwise the last image of a batch is mixed with the first one.
"""

from __future__ import annotations

import argparse
import csv
import functools
import inspect
import math
import os
import random
import re
import shutil
import threading
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont, ImageOps
from torch import Tensor
from torchvision.transforms.v2 import functional as V

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # as pretrained weights expect
FORMATS = ("JPEG", "PNG", "BMP", "GIF", "WEBP", "TIFF", "PPM")  # Pillow could also run Ghostscript for an EPS file
Augmented = tuple[Tensor, Tensor | float, Tensor | float]  # images, 0 to 255; contrast and brightness for normalize


class BadInput(ValueError):
    """A file or value that the user gave is wrong. The message tells which one, what is valid, and what to do."""


def normalize(
    images: Tensor,
    mean: Sequence[float] | Tensor = IMAGENET_MEAN,
    std: Sequence[float] | Tensor = IMAGENET_STD,
    contrast: Tensor | float = 1.0,
    brightness: Tensor | float = 0.0,
) -> Tensor:
    """Images (N, 3, H, W), 0 to 255, to float32: ((x / 255 - mean) * contrast + brightness) / std, as one multiply-add.

    Args:
        mean, std: one value per channel, for pixels in [0, 1]. Tensors on the device of the images avoid a copy per
            batch.
        contrast, brightness: a number, or (N, 1) with one value per image. The result is not clipped.
    """
    if images.dtype not in (torch.uint8, torch.float32):
        raise ValueError(f"images must be uint8, or float32 from 0 to 255, got {images.dtype}")
    mean, std = (_tensor(values).to(images.device) for values in (mean, std))  # (3,)
    scale = (contrast / (255 * std)).view(-1, 3, 1, 1)  # (1 or N, 3, 1, 1)
    shift = ((brightness - mean * contrast) / std).view(-1, 3, 1, 1)
    if images.dtype == torch.uint8:
        return images.to(torch.float32, memory_format=torch.channels_last).mul_(scale).add_(shift)
    return torch.addcmul(shift, images, scale).contiguous(memory_format=torch.channels_last)


def _tensor(values: Sequence[float] | np.ndarray | Tensor) -> Tensor:
    """A tensor of any array: torch refuses negative strides and a foreign byte order."""
    if isinstance(values, np.ndarray):
        values = np.ascontiguousarray(values, values.dtype.newbyteorder("="))
    return torch.as_tensor(values)


# ---------------------------------------------------------------------------------------------------------------------
# Random draws by counter
# ---------------------------------------------------------------------------------------------------------------------


def _mix(x):
    """A 32-bit hash of an int or tensor (C. Wellons, lowbias32): a changed bit changes half of the result's bits."""
    x = x & 0xFFFFFFFF
    x = ((x ^ (x >> 16)) * 0x7FEB352D) & 0xFFFFFFFF
    x = ((x ^ (x >> 15)) * 0x846CA68B) & 0xFFFFFFFF
    return x ^ (x >> 16)


FLIPS = ("random", "alternate")
DRAWN_AT_ONCE = 8


class Draws:
    """Independent uniform random numbers for every image of a batch: a hash of (seed, epoch, draw number, index).

    `first` is the number of the first draw. Two objects with distant values of `first` never share a draw number.
    """

    def __init__(self, seed: int, epoch: int, index: Tensor, first: int = 0, flips: str = "random"):
        self.key, self.index, self.drawn = _mix(seed) ^ _mix(epoch + 0x9E3779B9), index, first
        self.seed, self.epoch, self.flips, self.has_flipped = seed, epoch, flips, False
        self.ahead: list[Tensor] = []

    def uniform(self, low: float = 0.0, high: float = 1.0) -> Tensor:
        """(N,) float32 in [low, high). Every call is a new draw."""
        if not self.ahead:  # one hash for 8 draws: a GPU needs as long to start an operation on 8 x N numbers as on N
            keys = torch.tensor([_mix(self.key + self.drawn + 1 + i) for i in range(DRAWN_AT_ONCE)])[:, None]
            keys = keys.to(self.index.device, non_blocking=True)
            bits = _mix(_mix(self.index ^ keys) + keys) >> 8  # 24 bits: exact in a float32
            self.ahead = [*(bits.to(torch.float32) * 2**-24)]
        self.drawn += 1
        return self.ahead.pop(0) * (high - low) + low

    def flip(self) -> Tensor:
        """(N,) bool: which images are flipped horizontally.

        "random": half of them. "alternate": a random half in one epoch and the other half in the next, so that an image
        is seen from both sides equally often (K. Jordan 2024, arXiv:2404.00498). A second call flips nothing: it would
        flip the same images back.
        """
        drawn, is_first, self.has_flipped = self.uniform(), not self.has_flipped, True
        if self.flips == "random":
            return drawn < 0.5
        return is_first & ((Draws(self.seed, 0, self.index, first=2000).uniform() < 0.5) ^ bool(self.epoch % 2))

    def integer(self, n: int) -> Tensor:
        """(N,) int64 in [0, n)."""
        return (self.uniform() * n).long().clamp_(max=n - 1)

    def chance(self, p: float) -> Tensor:
        """(n,) int64: rows of the batch, each of the N chosen with probability p."""
        return torch.nonzero(self.uniform() < p).squeeze(1)


# ---------------------------------------------------------------------------------------------------------------------
# Augmentations: (images, draws) -> (images, contrast, brightness)
# ---------------------------------------------------------------------------------------------------------------------


def crop_and_flip(images: Tensor, draws: Draws, pad: int, border: str = "mirror") -> Tensor:
    """Shift each image by up to `pad` pixels in each direction. Flip half of them horizontally.

    It is one gather of pixels, and the flip is part of the column index: no padded copy, no loop over images.

    Args:
        border: pixels outside the image: "mirror", or "black", as torchvision's RandomCrop(padding=pad).
    """
    N, _, H, W = images.shape
    dy, dx, flip = draws.integer(2 * pad + 1) - pad, draws.integer(2 * pad + 1) - pad, draws.flip()
    rows = torch.arange(H, device=images.device) + dy[:, None]  # (N, H)
    columns = torch.arange(W, device=images.device)
    columns = torch.where(flip[:, None], W - 1 - columns, columns) + dx[:, None]  # (N, W)
    first = torch.arange(N, device=images.device)[:, None, None] * H  # first row of each image among all N * H
    pixels = (first + _mirrored(rows, H)[:, :, None]) * W + _mirrored(columns, W)[:, None, :]  # (N, H, W)
    flat = images.permute(0, 2, 3, 1).reshape(-1, 3)  # no copy: images are channels_last
    result = flat.index_select(0, pixels.view(-1)).view(N, H, W, 3)
    if border == "black":
        inside = ((rows >= 0) & (rows < H))[:, :, None] & ((columns >= 0) & (columns < W))[:, None, :]
        result *= inside[..., None]
    return result.permute(0, 3, 1, 2)


def _mirrored(position: Tensor, size: int) -> Tensor:
    """-1 -> 1, size -> size - 2, like "reflect" padding in torch."""
    position = position.abs()
    return size - 1 - (size - 1 - position).abs()


def warp(images: Tensor, maps: Tensor, padding: str) -> Tensor:
    """Bilinear sampling with one projective map per image: (N, 3, H, W) uint8 to float32, 0 to 255.

    Args:
        maps: (N, 3, 3), from positions in the result to positions in the image, both with (x, y) in [-1, 1].
        padding: pixels outside the image: "reflection", or "white".
    """
    N, _, H, W = images.shape
    y = (torch.arange(H, device=images.device) * 2 + 1) / H - 1
    x = (torch.arange(W, device=images.device) * 2 + 1) / W - 1
    grid = torch.stack([x.expand(H, W), y[:, None].expand(H, W), torch.ones_like(x).expand(H, W)], 2)  # (H, W, 3)
    grid = (grid.view(1, H * W, 3) @ maps.mT).view(N, H, W, 3)
    grid = grid[..., :2] / grid[..., 2:]
    if padding == "white":  # grid_sample can only pad with 0
        return F.grid_sample(images.float() - 255, grid, align_corners=False).add_(255)
    return F.grid_sample(images.float(), grid, padding_mode=padding, align_corners=False)


def affine(degrees: Tensor, shear: Tensor | float, width: Tensor, height: Tensor, aspect: float) -> Tensor:
    """Maps (N, 3, 3): rotate by degrees, shear, then take a centred window of this width and height (1: whole image).

    `aspect` is W / H of the image. With it, the rotation is correct in pixels and not only in [-1, 1].
    """
    cos, sin = torch.cos(torch.deg2rad(degrees)), torch.sin(torch.deg2rad(degrees))
    maps = torch.zeros(len(degrees), 3, 3, device=degrees.device)
    maps[:, 0, 0], maps[:, 0, 1] = cos * width, (shear * cos - sin) * height / aspect
    maps[:, 1, 0], maps[:, 1, 1] = sin * width * aspect, (shear * sin + cos) * height
    maps[:, 2, 2] = 1
    return maps


def blur(images: Tensor, sigma: Tensor, largest: float) -> Tensor:
    """Gaussian blur of float images (N, 3, H, W), each with its own sigma (N,), at most `largest` pixels."""
    N, _, H, W = images.shape
    radius = min(math.ceil(3 * largest), min(H, W) - 1)
    offsets = torch.arange(-radius, radius + 1, device=images.device)
    kernel = torch.exp(-0.5 * (offsets / sigma.clamp(min=1e-3)[:, None]) ** 2)  # (N, k)
    kernel = (kernel / kernel.sum(1, keepdim=True)).repeat_interleave(3, 0)[:, None]  # (3N, 1, k)
    if not N:
        return images
    x = F.pad(images.reshape(1, 3 * N, H, W), (radius,) * 4, mode="reflect")
    x = F.conv2d(F.conv2d(x, kernel[..., None], groups=3 * N), kernel[:, :, None], groups=3 * N)
    return x.view(N, 3, H, W)


@functools.lru_cache(maxsize=4)
def _noise_bank(length: int, device: torch.device) -> Tensor:
    return torch.randn(length, generator=torch.Generator().manual_seed(0)).to(device)


def noise(images: Tensor, sigma: Tensor, draws: Draws, rows: Tensor) -> Tensor:
    """Add Gaussian noise of sigma (n,) grey levels. Each image uses a random window of a million fixed numbers."""
    length = math.prod(images.shape[1:])
    bank = _noise_bank(max(2**20, 2 * length), images.device)
    first = draws.integer(len(bank) - length)[rows]
    windows = bank[first[:, None] + torch.arange(length, device=images.device)]
    return images + windows.view_as(images) * sigma[:, None, None, None]


def erase(images: Tensor, draws: Draws, rows: Tensor, largest: float = 0.5) -> Tensor:
    """Fill a random rectangle, each side at most `largest` of the image's, with ImageNet's mean."""
    H, W = images.shape[2:]
    boxes = _boxes(draws, draws.uniform(0.1, largest), draws.uniform(0.1, largest), H, W)[rows]
    colour = torch.tensor(IMAGENET_MEAN, device=images.device).view(3, 1, 1) * 255
    return torch.where(boxes, colour, images)


def _boxes(draws: Draws, height: Tensor, width: Tensor, H: int, W: int) -> Tensor:
    """(N, 1, H, W) bool: a box of this height and width (fractions of the image's) at a random position."""
    inside = []
    for fraction, size in ((height, H), (width, W)):
        length = (fraction * size).round()
        start = (draws.uniform() * (size + 1 - length)).floor()
        position = torch.arange(size, device=fraction.device)
        inside.append((position >= start[:, None]) & (position < (start + length)[:, None]))
    return (inside[0][:, :, None] & inside[1][:, None, :])[:, None]


def jpeg_like(images: Tensor, step: Tensor) -> Tensor:
    """Imitate strong JPEG compression: the cosine transform of 8 x 8 blocks is rounded to multiples of `step` (n,)."""
    n, _, H, W = images.shape
    h, w = H // 8, W // 8
    k = torch.arange(8, device=images.device)
    dct = torch.cos((2 * k + 1) * k[:, None] * math.pi / 16) * torch.where(k == 0, 0.125**0.5, 0.5)[:, None]
    blocks = images[:, :, : h * 8, : w * 8].reshape(n, 3, h, 8, w, 8).transpose(3, 4)  # (n, 3, h, w, 8, 8)
    steps = (1 + k + k[:, None]) * step.view(n, 1, 1, 1, 1, 1)  # coarser for high frequencies, as in JPEG
    blocks = dct.T @ ((dct @ blocks @ dct.T / steps).round() * steps) @ dct
    result = images.clone()
    result[:, :, : h * 8, : w * 8] = blocks.transpose(3, 4).reshape(n, 3, h * 8, w * 8)
    return result


def crop(images: Tensor, draws: Draws) -> Augmented:
    """Shift by up to 1/8 of the image (4 of 32 pixels) with black borders, and horizontal flip: as CIFAR papers."""
    return crop_and_flip(images, draws, min(images.shape[2:]) // 8, "black"), 1.0, 0.0


def light(images: Tensor, draws: Draws) -> Augmented:
    """Shift by up to 1/8 of the image (4 of 32 pixels, as in CIFAR papers), horizontal flip, contrast, brightness."""
    images = crop_and_flip(images, draws, pad=min(images.shape[2:]) // 8)
    return images, draws.uniform(0.8, 1.2)[:, None], draws.uniform(-0.1, 0.1)[:, None]


def strong(images: Tensor, draws: Draws) -> Augmented:
    """Random resized crop and horizontal flip, then one of eight operations at a random strength, as in TrivialAugment.

    Operations: rotation (up to 30 degrees), shear (0.3), saturation, contrast, brightness, blur, noise, or an erased
    rectangle. 1/9 of the images get none. One operation with uniform strength: Mueller and Hutter 2021,
    arXiv:2103.10158.
    """
    H, W = images.shape[2:]
    operation, strength = draws.integer(9), draws.uniform(-1, 1)

    def strength_of(number: int) -> Tensor:  # 0 for images that drew a different operation
        return torch.where(operation == number, strength, 0.0)

    area, ratio = draws.uniform(0.35, 1), torch.exp(draws.uniform(-1, 1) * math.log(4 / 3))
    width, height = (area * ratio).sqrt().clamp(max=1), (area / ratio).sqrt().clamp(max=1)
    maps = affine(30 * strength_of(1), 0.3 * strength_of(2), width, height, W / H)
    maps[:, 0, 2], maps[:, 1, 2] = draws.uniform(-1, 1) * (1 - width), draws.uniform(-1, 1) * (1 - height)
    maps[:, :, 0] *= torch.where(draws.flip(), -1, 1)[:, None]
    x = warp(images, maps, "reflection")
    contrast, brightness = 1 + 0.7 * strength_of(4), 0.3 * strength_of(5)
    rows_of = _rows_of(operation, 9)
    rows = rows_of[3]
    x[rows] = torch.lerp(_grey(x[rows]), x[rows], (1 + 0.9 * strength[rows])[:, None, None, None])
    rows = rows_of[6]
    x[rows] = blur(x[rows], strength[rows].abs() * min(H, W) / 80, largest=min(H, W) / 80)
    rows = rows_of[7]
    x[rows] = noise(x[rows], strength[rows].abs() * 40, draws, rows)
    rows = rows_of[8]
    x[rows] = erase(x[rows], draws, rows)
    return x, contrast[:, None], brightness[:, None]


def _rows_of(operation: Tensor, number: int) -> tuple[Tensor, ...]:
    """Rows of the batch by operation (N,) int64 in [0, number): a GPU is waited for once, not for each operation."""
    sizes = (operation == torch.arange(number, device=operation.device)[:, None]).sum(1).tolist()
    return operation.argsort(stable=True).split(sizes)


def _grey(images: Tensor) -> Tensor:
    """(N, 1, H, W) luma of ITU-R BT.601."""
    weights = torch.tensor([0.299, 0.587, 0.114], device=images.device).view(1, 3, 1, 1)
    return (images * weights).sum(1, keepdim=True)


def document(images: Tensor, draws: Draws) -> Augmented:
    """Defects of scanned documents. Pixels from outside the image are white.

    Rotation by 0, 90, 180 or 270 degrees and a small angle, horizontal flip, perspective, blur, noise, uneven light,
    JPEG blocks.
    """
    N, _, H, W = images.shape
    maps = affine(draws.uniform(-10, 10), 0.0, draws.uniform(0.85, 1.2), draws.uniform(0.85, 1.2), W / H)
    maps[:, 0, 2], maps[:, 1, 2] = draws.uniform(-0.1, 0.1), draws.uniform(-0.1, 0.1)
    maps[:, 2, 0], maps[:, 2, 1] = draws.uniform(-0.1, 0.1), draws.uniform(-0.1, 0.1)  # perspective
    rotations = torch.tensor([[1.0, 0, 0, 1], [0, -1, 1, 0], [-1, 0, 0, -1], [0, 1, -1, 0]], device=images.device)
    rotation = torch.eye(3, device=images.device).repeat(N, 1, 1)
    rotation[:, :2, :2] = rotations[draws.integer(4)].view(N, 2, 2)
    rotation[:, :, 0] *= torch.where(draws.flip(), -1, 1)[:, None]
    x = warp(images, rotation @ maps, "white")
    rows, sigma, largest = draws.chance(0.3), draws.uniform(0.3, min(H, W) / 120 + 0.3), min(H, W) / 120 + 0.3
    x[rows] = blur(x[rows], sigma[rows], largest)
    rows, sigma = draws.chance(0.3), draws.uniform(2, 30)
    x[rows] = noise(x[rows], sigma[rows], draws, rows)
    rows, field = draws.chance(0.4), _light_field(draws, H, W)
    x[rows] *= field[rows]
    rows, step = draws.chance(0.3), draws.uniform(4, 24)
    x[rows] = jpeg_like(x[rows], step[rows])
    return x, draws.uniform(0.7, 1.3)[:, None], draws.uniform(-0.15, 0.15)[:, None]


def _light_field(draws: Draws, H: int, W: int) -> Tensor:
    """(N, 1, H, W), 0.6 to 1.1, interpolated between four random corners: a shadow on one side."""
    corners = torch.stack([draws.uniform(0.6, 1.1) for _ in range(4)], 1).view(-1, 1, 2, 2)
    return F.interpolate(corners, (H, W), mode="bilinear", align_corners=True)


def rand(images: Tensor, draws: Draws) -> Augmented:
    """The shift and flip of `light`, then two random operations per image: RandAugment.

    Cubuk et al. 2019, arXiv:1909.13719, with the 14 operations and strengths of torchvision's RandAugment(num_ops=2,
    magnitude=9).
    """
    x = crop_and_flip(images, draws, pad=min(images.shape[2:]) // 8)
    if x.is_floating_point():  # after strong or document; the operations need whole grey levels
        x = x.round().clamp(0, 255).to(torch.uint8)
    for _ in range(2):
        operation, is_negative = draws.integer(len(RAND_OPERATIONS)), draws.uniform() < 0.5
        rows_of = _rows_of(2 * operation + is_negative, 2 * len(RAND_OPERATIONS))
        for number, (change, is_signed) in enumerate(RAND_OPERATIONS.values()):
            positive, negative = rows_of[2 * number : 2 * number + 2]
            signed = ((positive, 1), (negative, -1)) if is_signed else ((torch.cat([positive, negative]), 1),)
            for rows, sign in signed:
                if len(rows):
                    x[rows] = change(x[rows], sign)
    return x, 1.0, 0.0


def _sheared(x: Tensor, degrees_x: float, degrees_y: float) -> Tensor:
    return V.affine(x, 0.0, [0, 0], 1.0, [degrees_x, degrees_y], center=[0, 0])


def _translated(x: Tensor, right: float, down: float) -> Tensor:
    """right and down: fractions of width and height."""
    return V.affine(x, 0.0, [int(right * x.shape[3]), int(down * x.shape[2])], 1.0, [0.0, 0.0])


_SHEAR, _SHIFT = math.degrees(math.atan(0.3 * 0.3)), 0.3 * 150 / 331  # magnitude 9 of 30: 0.3 of the largest strength
RAND_OPERATIONS: dict[str, tuple[Callable[[Tensor, int], Tensor], bool]] = {  # change(images, sign), is it signed
    "identity": (lambda x, sign: x, False),
    "shear x": (lambda x, sign: _sheared(x, sign * _SHEAR, 0.0), True),
    "shear y": (lambda x, sign: _sheared(x, 0.0, sign * _SHEAR), True),
    "translate x": (lambda x, sign: _translated(x, sign * _SHIFT, 0.0), True),
    "translate y": (lambda x, sign: _translated(x, 0.0, sign * _SHIFT), True),
    "rotate": (lambda x, sign: V.rotate(x, sign * 0.3 * 30), True),
    "brightness": (lambda x, sign: V.adjust_brightness(x, 1 + sign * 0.27), True),
    "saturation": (lambda x, sign: V.adjust_saturation(x, 1 + sign * 0.27), True),
    "contrast": (lambda x, sign: V.adjust_contrast(x, 1 + sign * 0.27), True),
    "sharpness": (lambda x, sign: V.adjust_sharpness(x, 1 + sign * 0.27), True),
    "posterize": (lambda x, sign: V.posterize(x, 7), False),
    "solarize": (lambda x, sign: V.solarize(x, 0.7 * 255), False),
    "autocontrast": (lambda x, sign: V.autocontrast(x), False),
    "equalize": (lambda x, sign: V.equalize(x), False),
}


def cutout(images: Tensor, draws: Draws) -> Augmented:
    """A grey square with half the side of the image, at a random centre; it may reach over the border.

    DeVries and Taylor 2017, arXiv:1708.04552. Half the side: its choice for CIFAR-10. Grey: ImageNet's mean.
    """
    H, W = images.shape[2:]
    side, inside = min(H, W) // 2, []
    for size in (H, W):
        start = (draws.uniform() * size).floor() - side // 2
        position = torch.arange(size, device=images.device)
        inside.append((position >= start[:, None]) & (position < start[:, None] + side))
    box = (inside[0][:, :, None] & inside[1][:, None, :])[:, None]
    colour = (torch.tensor(IMAGENET_MEAN, device=images.device).view(3, 1, 1) * 255).round()
    return torch.where(box, colour.to(images.dtype), images), 1.0, 0.0


def none(images: Tensor, draws: Draws) -> Augmented:
    """The images unchanged."""
    return images, 1.0, 0.0


AUGMENTS: dict[str, Callable[[Tensor, Draws], Augmented]] = {
    "none": none,
    "crop": crop,
    "light": light,
    "strong": strong,
    "rand": rand,
    "cutout": cutout,
    "document": document,
}
WITHOUT_FLIP = ("none", "cutout")


def build_augment(name: str) -> Callable[[Tensor, Draws], Augmented]:
    """An augmentation by name: one of AUGMENTS, or several in turn, such as "crop+cutout". BadInput if unknown."""
    parts = name.split("+")
    for part in parts:
        if part not in AUGMENTS:
            several = ", or several such as crop+cutout"
            raise BadInput(f"unknown augmentation {part!r}: choose from {', '.join(AUGMENTS)}{several}")

    def augment(images: Tensor, draws: Draws) -> Augmented:
        contrast, brightness = 1.0, 0.0
        for part in parts:
            images, c, b = AUGMENTS[part](images, draws)
            contrast, brightness = contrast * c, brightness * c + b
        return images, contrast, brightness

    return augment


class Augment:
    """An augmentation by name, then normalisation, then mixing.

    Mixing: each image is mixed with the next one, with its own lambda from Beta(alpha, alpha). The next one of the last
    image of a batch is the first, or with overlap=1 an additional image.
    mixup: x = lambda * x + (1 - lambda) * other (Zhang et al. 2017, arXiv:1710.09412).
    cutmix: a box with 1 - lambda of the area comes from the other image (Yun et al. 2019, arXiv:1905.04899).
    `mix_targets` mixes the targets in the same way.

    Args:
        name: see `build_augment`.
        flips: one of FLIPS, see `Draws.flip`.
        mixup, cutmix: alpha >= 0, 0 for none. With both, each image gets one of them with probability 1/2.
        num_classes: needed for mixup and cutmix.
        overlap: 1 if each batch ends with the next image of the epoch. Mixing removes it from images and targets.
    """

    def __init__(
        self,
        name: str,
        seed: int = 0,
        mean: Sequence[float] | Tensor = IMAGENET_MEAN,
        std: Sequence[float] | Tensor = IMAGENET_STD,
        mixup: float = 0.0,
        cutmix: float = 0.0,
        num_classes: int = 0,
        overlap: int = 0,
        flips: str = "random",
    ):
        if flips not in FLIPS:
            raise ValueError(f"unknown flips {flips!r}: choose from {', '.join(FLIPS)}")
        for option, alpha in (("mixup", mixup), ("cutmix", cutmix)):
            if not 0 <= alpha < math.inf:
                raise ValueError(f"{option} must be a number >= 0, got {alpha}")
        if (mixup or cutmix) and num_classes < 2:
            raise ValueError(f"mixup and cutmix need num_classes >= 2, got {num_classes}")
        self.augment, self.seed, self.num_classes, self.flips = build_augment(name), seed, num_classes, flips
        self.mixup, self.cutmix, self.overlap = mixup, cutmix, overlap
        self.mean, self.std = _tensor(mean), _tensor(std)

    def __call__(self, images: Tensor, index: Tensor, epoch: int) -> Tensor:
        """Images (N, 3, H, W) uint8 and their indices (N,) int64, on one device -> (N, 3, H, W) float32.

        Mixing with an overlap returns (N - overlap, 3, H, W).
        """
        self.mean, self.std = self.mean.to(images.device), self.std.to(images.device)
        images, contrast, brightness = self.augment(images, Draws(self.seed, epoch, index, flips=self.flips))
        x = normalize(images, self.mean, self.std, contrast, brightness)
        if self.mixup or self.cutmix:
            keep = self._keep(index, epoch, *x.shape[2:])
            x = torch.lerp(x.roll(-1, 0), x, keep)[: len(x) - self.overlap]
            x = x.contiguous(memory_format=torch.channels_last)
        return x

    def mix_targets(self, targets: Tensor, index: Tensor, epoch: int, size: Sequence[int]) -> Tensor:
        """Targets (N,) or (N, C), unchanged without mixing, else (N - overlap, C), mixed as images of (H, W)."""
        if not (self.mixup or self.cutmix):
            return targets
        share = self._keep(index, epoch, *size).mean((1, 2, 3))[:, None]  # lambda; for a box: the area outside it
        soft = targets if targets.is_floating_point() else F.one_hot(targets, self.num_classes).float()
        return torch.lerp(soft.roll(-1, 0), soft, share)[: len(targets) - self.overlap]

    def _keep(self, index: Tensor, epoch: int, H: int, W: int) -> Tensor:
        """(N, 1, 1, 1) or (N, 1, H, W): weight of the image itself at each pixel. The other image has the rest."""
        draws = Draws(self.seed, epoch, index, first=1000)
        choice, u = draws.uniform(), draws.uniform()
        by_mixup = _beta_quantile(u, self.mixup)[:, None, None, None] if self.mixup else None
        if not self.cutmix:
            return by_mixup
        side = (1 - _beta_quantile(u, self.cutmix)).sqrt()
        by_cutmix = 1 - _boxes(draws, side, side, H, W).float()
        if not self.mixup:
            return by_cutmix
        return torch.where((choice < 0.5)[:, None, None, None], by_mixup, by_cutmix)


@functools.lru_cache(maxsize=8)
def _sorted_betas(alpha: float) -> np.ndarray:
    return np.sort(np.random.default_rng(0).beta(alpha, alpha, 2**16)).astype(np.float32)


def _beta_quantile(u: Tensor, alpha: float) -> Tensor:
    """Uniform (N,) to Beta(alpha, alpha), with 65,536 sorted draws: torch and numpy have no beta quantile function."""
    table = torch.from_numpy(_sorted_betas(alpha)).to(u.device)
    return table[(u * len(table)).long()]


# ---------------------------------------------------------------------------------------------------------------------
# Test-time augmentation
# ---------------------------------------------------------------------------------------------------------------------

VIEWS = ("none", "flip", "rot4", "d4", "crops")


def views(x: Tensor, name: str) -> list[Tensor]:
    """Views of a batch (N, 3, H, W) whose probabilities are averaged, the images themselves first.

    none: only the images. flip: also their horizontal flips. rot4: rotations by 0, 90, 180 and 270 degrees.
    d4: rot4 and the flips of these. crops: the images, four corner crops and the center crop, each 7/8 of a side.
    BadInput: an unknown name, or rot4 and d4 for images that are not square.
    """
    if name not in VIEWS:
        raise BadInput(f"unknown views {name!r}: choose from {', '.join(VIEWS)}")
    H, W = x.shape[2:]
    if name in ("rot4", "d4") and H != W:
        raise BadInput(f"{name} needs square images, got {H} x {W}")
    if name == "crops":
        h, w = H * 7 // 8, W * 7 // 8
        corners = [(0, 0), (0, W - w), (H - h, 0), (H - h, W - w), ((H - h) // 2, (W - w) // 2)]  # (top, left)
        crops = [x[:, :, top : top + h, left : left + w] for top, left in corners]
        return [x, *(F.interpolate(crop, (H, W), mode="bilinear", align_corners=False) for crop in crops)]
    rotated = [torch.rot90(x, k, (2, 3)) for k in range(4 if name in ("rot4", "d4") else 1)]
    return rotated + ([view.flip(3) for view in rotated] if name in ("flip", "d4") else [])


# ---------------------------------------------------------------------------------------------------------------------
# The user's own function
# ---------------------------------------------------------------------------------------------------------------------


def as_transform(function: Callable[..., np.ndarray]) -> Callable[[np.ndarray, np.random.Generator], np.ndarray]:
    """function(image, rng) or function(image) as a transform (image, rng) -> image; images are uint8 (H, W, 3).

    function(image, rng) may be called in several threads at once. rng is a numpy Generator for this image and epoch.
    function(image) is called in one thread at a time. Before each call, the global generators of Python and numpy are
    seeded from rng.
    BadInput if the function takes neither (image, rng) nor (image).
    """
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # not a function, or one written in C
        signature = None
    if _takes(signature, 2):
        return function
    name = getattr(function, "__name__", type(function).__name__)
    if not _takes(signature, 1):
        parameters = signature if signature else "unknown parameters"
        raise BadInput(f"the transform {name} must take (image, rng) or (image), got {parameters}")
    one_at_a_time = threading.Lock()

    def seeded(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        with one_at_a_time:
            random.seed(int(rng.integers(2**32)))
            np.random.seed(int(rng.integers(2**32)))
            return function(image)

    return seeded


def _takes(signature: inspect.Signature | None, n: int) -> bool:
    """Whether a function can be called with n positional arguments."""
    try:
        return signature is not None and signature.bind(*[None] * n) is not None
    except TypeError:
        return False


# ---------------------------------------------------------------------------------------------------------------------
# Augmented images as pictures and files
# ---------------------------------------------------------------------------------------------------------------------


def contact_sheet(images: Tensor, labels: Sequence[str], columns: int = 8) -> Image.Image:
    """One picture of uint8 images (N, 3, H, W), each above its label. If no font has it, only Latin-1 is drawn."""
    N, _, H, W = images.shape
    line = 16
    scale = max(1, round(96 / max(H, W)))
    width, height = W * scale + 4, H * scale + line + 4
    sheet = Image.new("RGB", (width * min(columns, N), height * math.ceil(N / columns)), "white")
    draw = ImageDraw.Draw(sheet)
    for i, (image, label) in enumerate(zip(images, labels, strict=True)):
        left, top = i % columns * width, i // columns * height
        picture = Image.fromarray(image.permute(1, 2, 0).cpu().numpy())
        sheet.paste(picture.resize((W * scale, H * scale), Image.Resampling.NEAREST), (left + 2, top + 2))
        font, text = find_font(label), "".join(c if c.isprintable() else "?" for c in _composed(label)[:100])
        if font is None:
            font, text = ImageFont.load_default(), text.encode("latin-1", "replace").decode("latin-1")
        while font.getlength(text) > width - 4:
            text = text[:-1]
        ascent = font.getmetrics()[0] if isinstance(font, ImageFont.FreeTypeFont) else 10
        draw.text((left + 2, top + H * scale + 14 - ascent), text, fill="black", font=font)
    return sheet


FONT_FOLDERS = ("/usr/share/fonts", "/usr/local/share/fonts", "~/.fonts", "~/.local/share/fonts")
FONT_FOLDERS += ("/System/Library/Fonts", "/Library/Fonts", "~/Library/Fonts")  # macOS
FONT_FOLDERS += ("C:/Windows/Fonts", "~/AppData/Local/Microsoft/Windows/Fonts")
LIKELY = re.compile("nanum|malgun|gothicneo|pretendard|cjk|notosanskr|sourcehan|gulim|wqy", re.I)  # Korean, Chinese


@functools.lru_cache(maxsize=1024)
def find_font(text: str) -> Any:
    """A font with a glyph for each character of the text: Pillow's own, or one of this machine. None if none has."""
    wanted = {c for c in _composed(text) if c.isprintable() and c != " "}
    return next((font for font in _fonts() if all(_glyph(font, c) != _glyph(font, "\U0010fffe") for c in wanted)), None)


def _fonts() -> Iterator[Any]:
    """Pillow's own font, then those in FONT_FOLDERS, likely ones first."""
    yield ImageFont.load_default()
    for file in _font_files():
        try:
            yield ImageFont.truetype(file, 12)
        except (OSError, ImportError):  # a damaged font, one of pictures only, or Pillow without FreeType
            continue


@functools.cache
def _font_files() -> list[str]:
    tops = map(os.path.expanduser, FONT_FOLDERS)
    found = (Path(at, name) for top in tops for at, _, names in os.walk(top) for name in names)
    files = [file for file in found if file.suffix.lower() in (".ttf", ".otf", ".ttc")]
    order = {file: (not LIKELY.search(file.name), "regular" not in file.name.lower(), str(file)) for file in files}
    return [str(file) for file in sorted(files, key=order.get)]


def _glyph(font: Any, character: str) -> tuple[Any, ...] | None:
    """The picture of a character. A font draws the same one for all characters that it does not have."""
    try:
        mask = font.getmask(character)
    except (UnicodeError, OSError):  # Pillow's font without FreeType has only Latin-1
        return None
    return mask.size, bytes(mask)


def _composed(text: str) -> str:
    """With whole Korean syllables, which file names of macOS have in parts."""
    return unicodedata.normalize("NFC", text)


def save_image(image: Image.Image, file: str | Path, **options: int) -> None:
    """image.save(file, **options). BadInput if Pillow cannot write the format of this file name."""
    try:
        image.save(file, **options)
    except (ValueError, KeyError) as error:
        raise BadInput(f"cannot write {file} ({error}); use a name that ends in .png or .jpg") from error


def draw_sheet(image_file: str, name: str, seed: int, out: str) -> None:
    """Write a picture with 32 augmented versions of one image."""
    image = _read(Path(image_file))
    images = image.expand(32, -1, -1, -1)
    x = Augment(name, seed, mean=(0, 0, 0), std=(1, 1, 1))(images, torch.arange(32), epoch=0)
    save_image(contact_sheet(_to_uint8(x), [f"{name} {i}" for i in range(32)]), out)
    print(f"{out}: 32 versions of {image_file} with the augmentation {name}")


def write_copies(images: Path, csv_file: Path, copies: int, out: Path, name: str = "strong", seed: int = 0) -> int:
    """Write the images of a CSV and `copies` augmented copies of each to OUT/images, and OUT/train.csv with groups.

    The group of a copy is its source image, or the group of the source if the CSV has a group column. So a split that
    keeps groups together cannot put copies of one image on both sides. The image column is the first whose values are
    files in `images`. All other columns are copied. Returns the number of files.
    BadInput: a wrong CSV, missing or broken images, or an OUT that is not empty.
    """
    rows = _read_rows(csv_file)
    column = next((key for key in rows[0] if (images / rows[0][key]).is_file()), None) if rows else None
    if column is None:
        raise BadInput(f"{csv_file} has no column whose values are files in {images}")
    missing = [row[column] for row in rows if not (images / row[column]).is_file()]
    if missing:
        raise BadInput(
            f"{csv_file}: {len(missing)} of {len(rows)} images cannot be found in {images}, such as {missing[0]}"
        )
    if out.exists() and any(out.iterdir()):
        raise BadInput(f"{out} is not empty: choose a new folder")
    group = next((key for key in rows[0] if key.lower() == "group"), "group")
    augment, written = Augment(name, seed, mean=(0, 0, 0), std=(1, 1, 1)), []
    for i, row in enumerate(rows):
        source = Path(row[column])
        target = out / "images" / source
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(images / source, target)
        group_name = row.get(group) or row[column]
        written.append(row | {group: group_name})
        image = _read(images / source)
        for k in range(copies):  # one at a time, because images may be large
            x = augment(image, torch.tensor([i]), epoch=k + 1)
            copy = source.with_name(f"{source.stem}_aug{k + 1}{source.suffix}")
            jpeg = {"quality": 95} if copy.suffix.lower() in (".jpg", ".jpeg") else {}
            save_image(Image.fromarray(_to_uint8(x)[0].permute(1, 2, 0).numpy()), out / "images" / copy, **jpeg)
            written.append(row | {column: copy.as_posix(), group: group_name})
    with open(out / "train.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, written[0])
        writer.writeheader()
        writer.writerows(written)
    return len(written)


def _read_rows(csv_file: Path) -> list[dict[str, str]]:
    try:
        with open(csv_file, newline="", encoding="utf-8-sig") as file:
            rows = list(csv.DictReader(file, strict=True))
    except (csv.Error, UnicodeDecodeError) as error:
        raise BadInput(f"{csv_file} is not a valid CSV in UTF-8: {error}") from error
    ragged = next((i for i, row in enumerate(rows, 2) if None in row or None in row.values()), None)
    if ragged:
        raise BadInput(f"{csv_file}: line {ragged} does not have the header's columns")
    return rows


def _read(file: Path) -> Tensor:
    """uint8 (1, 3, H, W), channels_last. BadInput if it cannot be decoded, OSError if it cannot be opened."""
    with open(file, "rb") as content:
        try:
            return _rgb(ImageOps.exif_transpose(Image.open(content, formats=FORMATS)))
        except Exception as error:  # Pillow raises many types for broken files
            raise BadInput(f"{file} cannot be decoded ({type(error).__name__}: {error})") from error


def _rgb(image: Image.Image) -> Tensor:
    """As in training: 16-bit grey is scaled to 8 bits, transparent pixels become white."""
    if image.mode == "F":
        raise ValueError("pixels are floating-point numbers of unknown range")
    if image.mode.startswith("I"):
        grey = np.asarray(image, dtype=np.float64)
        scale = 257 if image.mode.startswith("I;16") or grey.max() > 255 else 1
        image = Image.fromarray((grey / scale).round().clip(0, 255).astype(np.uint8))
    if image.has_transparency_data:
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
    return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)[None]


def _to_uint8(x: Tensor) -> Tensor:
    return x.mul(255).round().clamp(0, 255).byte()


def printable(text: object) -> str:
    """The text with escapes for control characters, direction marks and bytes that are not text. Keeps line breaks."""
    return "".join(c if c.isprintable() or c == "\n" else ascii(c)[1:-1] for c in str(text))


def main() -> None:
    about = "A picture with 32 augmented versions of an image, or augmented copies of all images of a CSV."
    parser = argparse.ArgumentParser(description=about)
    parser.add_argument("images", metavar="IMAGES", help="an image; with --csv, the folder of the images")
    parser.add_argument("--csv", help="CSV with a column of file names: write augmented copies of all these images")
    parser.add_argument("--copies", type=int, default=10, help="augmented copies per image (default 10)")
    parser.add_argument(
        "--out", help="with --csv, a new folder for images and train.csv; else a PNG file (default augment.png)"
    )
    parser.add_argument("--augment", choices=AUGMENTS, default="strong", help="augmentation (default strong)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the random draws (default 0)")
    options = parser.parse_args()
    try:
        if not options.csv:
            return draw_sheet(options.images, options.augment, options.seed, options.out or "augment.png")
        if not options.out or options.copies < 1:
            parser.error("--csv needs --out DIR, and --copies >= 1")
        folder = Path(options.out)
        n = write_copies(Path(options.images), Path(options.csv), options.copies, folder, options.augment, options.seed)
        print(f"{folder / 'train.csv'}: {n} images. Train with --csv {folder / 'train.csv'} --data {folder / 'images'}")
    except (BadInput, OSError) as error:
        parser.exit(2, printable(f"augment.py: error: {error}\n"))


if __name__ == "__main__":
    main()

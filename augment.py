"""uint8 image batches into normalised float batches, on their device, each image with its own random draw.

    python augment.py IMAGE             # writes augment.png: 4 x 8 draws of that image, to look at before training

    augment = Augment("light", seed=0)
    x = augment(images, index, epoch)   # images (N, 3, H, W) uint8, index (N,) -> (N, 3, H, W) float32, channels_last
    x = normalize(images)               # validation and test: no randomness

The draws of an image depend on (seed, epoch, the image's index) alone. So a run sees the same pictures whatever the
batch size, the accumulation or the device, a resumed run goes on with the pictures it would have seen, and no global
random state is touched.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # what pretrained weights expect


def normalize(
    images: Tensor,
    mean: Sequence[float] | Tensor = IMAGENET_MEAN,
    std: Sequence[float] | Tensor = IMAGENET_STD,
    contrast: Tensor | float = 1.0,
    brightness: Tensor | float = 0.0,
) -> Tensor:
    """uint8 (N, 3, H, W) to float32, ((x / 255 - mean) * contrast + brightness) / std, as one multiply-add.

    Args:
        mean, std: of each channel, for pixels in [0, 1]; tensors on the images' device spare a copy for each batch.
        contrast, brightness: a number, or (N, 1) with one value an image. Nothing is clipped: a network has no need.
    """
    if images.dtype != torch.uint8:
        raise ValueError(f"images must be uint8, got {images.dtype}")
    mean = torch.as_tensor(mean, device=images.device)  # (3,)
    std = torch.as_tensor(std, device=images.device)
    scale = (contrast / (255 * std)).view(-1, 3, 1, 1)  # (1 or N, 3, 1, 1)
    shift = ((brightness - mean * contrast) / std).view(-1, 3, 1, 1)
    return images.to(torch.float32, memory_format=torch.channels_last).mul_(scale).add_(shift)


# ---------------------------------------------------------------------------------------------------------------------
# Random draws by counter
# ---------------------------------------------------------------------------------------------------------------------


def _mix(x):
    """A 32-bit integer hash that flips half of the bits for each bit flipped (C. Wellons' lowbias32), int or tensor."""
    x = x & 0xFFFFFFFF
    x = ((x ^ (x >> 16)) * 0x7FEB352D) & 0xFFFFFFFF
    x = ((x ^ (x >> 15)) * 0x846CA68B) & 0xFFFFFFFF
    return x ^ (x >> 16)


class Draws:
    """Independent uniform numbers for every image of a batch: a hash of (seed, epoch, number of the draw, index)."""

    def __init__(self, seed: int, epoch: int, index: Tensor):
        self.key, self.index, self.drawn = _mix(seed) ^ _mix(epoch + 0x9E3779B9), index, 0

    def uniform(self, low: float = 0.0, high: float = 1.0) -> Tensor:
        """(N,) float32 in [low, high); every call draws anew."""
        self.drawn += 1
        key = _mix(self.key + self.drawn)
        bits = _mix(_mix(self.index ^ key) + key) >> 8  # 24 bits: as many as a float32 holds exactly
        return bits.to(torch.float32) * (2**-24 * (high - low)) + low

    def integer(self, n: int) -> Tensor:
        """(N,) int64 in [0, n)."""
        return (self.uniform() * n).long().clamp_(max=n - 1)


# ---------------------------------------------------------------------------------------------------------------------
# Augmentations: images and draws into images, contrast, brightness
# ---------------------------------------------------------------------------------------------------------------------


def crop_and_flip(images: Tensor, draws: Draws, pad: int) -> Tensor:
    """Shifts each image by up to `pad` pixels either way (borders mirrored) and flips half of them left to right.

    One flat gather of pixels, the flip folded into the column index: no padded copy, no loop over images.
    """
    N, _, H, W = images.shape
    dy, dx, flip = draws.integer(2 * pad + 1) - pad, draws.integer(2 * pad + 1) - pad, draws.uniform() < 0.5
    rows = _mirrored(torch.arange(H, device=images.device) + dy[:, None], H)  # (N, H)
    columns = torch.arange(W, device=images.device)
    columns = torch.where(flip[:, None], W - 1 - columns, columns)  # (N, W)
    columns = _mirrored(columns + dx[:, None], W)
    first = torch.arange(N, device=images.device)[:, None, None] * H  # an image's first row among all N * H
    pixels = (first + rows[:, :, None]) * W + columns[:, None, :]  # (N, H, W)
    flat = images.permute(0, 2, 3, 1).reshape(-1, 3)  # a view: images are channels_last
    return flat.index_select(0, pixels.view(-1)).view(N, H, W, 3).permute(0, 3, 1, 2)


def _mirrored(position: Tensor, size: int) -> Tensor:
    """-1 -> 1, size -> size - 2: as torch's "reflect" padding."""
    position = position.abs()
    return size - 1 - (size - 1 - position).abs()


def light(images: Tensor, draws: Draws) -> tuple[Tensor, Tensor | float, Tensor | float]:
    """Shift by up to an eighth (4 pixels of 32, as in the CIFAR papers), left-right flip, contrast and brightness."""
    images = crop_and_flip(images, draws, pad=min(images.shape[2:]) // 8)
    return images, draws.uniform(0.8, 1.2)[:, None], draws.uniform(-0.1, 0.1)[:, None]


def none(images: Tensor, draws: Draws) -> tuple[Tensor, Tensor | float, Tensor | float]:
    """The images as they are."""
    return images, 1.0, 0.0


AUGMENTS: dict[str, Callable[..., tuple[Tensor, Tensor | float, Tensor | float]]] = {"none": none, "light": light}


class Augment:
    """An augmentation by name, and the normalisation that follows it."""

    def __init__(
        self,
        name: str,
        seed: int = 0,
        mean: Sequence[float] | Tensor = IMAGENET_MEAN,
        std: Sequence[float] | Tensor = IMAGENET_STD,
    ):
        if name not in AUGMENTS:
            raise ValueError(f"unknown augmentation {name!r}: choose from {', '.join(AUGMENTS)}")
        self.augment, self.seed = AUGMENTS[name], seed
        self.mean, self.std = torch.as_tensor(mean), torch.as_tensor(std)

    def __call__(self, images: Tensor, index: Tensor, epoch: int) -> Tensor:
        """images (N, 3, H, W) uint8 and their indices (N,) int64, on one device, to (N, 3, H, W) float32."""
        self.mean, self.std = self.mean.to(images.device), self.std.to(images.device)
        images, contrast, brightness = self.augment(images, Draws(self.seed, epoch, index))
        return normalize(images, self.mean, self.std, contrast, brightness)


def _show(path: str) -> None:
    from torchvision.io import ImageReadMode, read_image, write_png
    from torchvision.utils import make_grid

    image = read_image(path, ImageReadMode.RGB)
    images = image.expand(32, -1, -1, -1).contiguous(memory_format=torch.channels_last)
    x = Augment("light", mean=(0, 0, 0), std=(1, 1, 1))(images, torch.arange(32), epoch=0)
    write_png(make_grid(x.mul(255).clamp(0, 255).byte(), nrow=8), "augment.png")
    print("augment.png: 32 draws of light")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    _show(sys.argv[1])

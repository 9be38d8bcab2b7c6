"""Compresses the images of a folder as JPEG once more, to measure what compression costs: see long-tail.md.

    python results/jpeg_again.py FOLDER OUT

Quality 75 and colours at half the resolution, as the files of the long-tailed CIFAR-10 have. The 8 x 8 blocks are
shifted by 4 pixels: with the same blocks, a second compression would change almost nothing. OUT has PNG files.
"""

import io
import sys
from pathlib import Path

import numpy as np
from PIL import Image


def compressed(pixels: np.ndarray) -> np.ndarray:
    """uint8 (H, W, 3) after a JPEG of the image with a border of 4 mirrored pixels, without the border."""
    file = io.BytesIO()
    border = np.pad(pixels, ((4, 4), (4, 4), (0, 0)), mode="reflect")
    Image.fromarray(border).save(file, "JPEG", quality=75, subsampling="4:2:0")
    return np.asarray(Image.open(file).convert("RGB"))[4:-4, 4:-4]


def main(folder: str, out: str) -> None:
    errors = []
    for path in sorted(Path(folder).rglob("*.jpg")):
        before = np.asarray(Image.open(path).convert("RGB"))
        after = compressed(before)
        errors.append(((after.astype(float) - before) ** 2).mean())
        new = Path(out) / path.relative_to(folder).with_suffix(".png")
        new.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(after).save(new)
    print(f"{len(errors):,} images, root mean square of the change {np.mean(errors) ** 0.5:.2f} of 255")


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    main(*sys.argv[1:])

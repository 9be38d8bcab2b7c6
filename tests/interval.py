"""Simulates how often compare.py's verdict is right. Prints the tables of results/compare-interval.md.

    python tests/interval.py          # about 4 minutes

A simulated run is correct on an image if skill + difficulty of the image + what the setting changes for the image +
what the seed changes for the class + noise of this run on this image > 0. The classes are imbalanced.

- seed noise: standard deviation of what the seed changes for a class.
- image effect: standard deviation of what the setting changes for an image, the same for all seeds. With 0 and no gain,
  the two settings are equal. With more, each is better on some images, and they are equal only on average.
- gain: what the second setting adds to the skill. Without a gain, every verdict but "within noise" is a false alarm.

Three rules give the verdict:

- both added: t for the seeds' differences, plus a bootstrap of the mean over seeds. compare.py used it before. A run's
  errors on single images are then in both.
- paired t: for the seeds' differences alone. It says nothing about new images.
- compare.py: the rule that it uses now.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import math
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import compare

CLASSES, SEEDS = 10, (2, 3, 5, 10)
RULES = ("both added", "paired t", "compare.py")


def simulate(rng, repeats, seeds, N, seed_noise, image_effect, gain):
    """targets (R, N) and preds (R, S, 2, N): the runs of two settings, on the same images."""
    p = 0.65 ** np.arange(CLASSES)
    targets = rng.choice(CLASSES, (repeats, N), p=p / p.sum())
    wrong = rng.choice(CLASSES, (repeats, 1, 1, N), p=p / p.sum())

    def normal(*shape):
        return rng.standard_normal(shape, dtype=np.float32)

    score = 1 + normal(repeats, 1, 1, N) + image_effect * normal(repeats, 1, 2, N) + normal(repeats, seeds, 2, N)
    score += np.array([[0], [gain]], np.float32)
    every = np.broadcast_to(targets[:, None, None], score.shape)
    score += seed_noise * np.take_along_axis(normal(repeats, seeds, 2, CLASSES), every, -1)
    return targets, np.where(score > 0, every, wrong)


def macro_f1(targets, preds, times):
    """(R, S, 2, B) from targets (R, N), preds (R, S, 2, N) and times (B, N): how often sample b contains image n."""
    one_hot = np.eye(CLASSES, dtype=np.float32)

    def count(columns):  # (..., N, C) -> (..., B, C), by one product of matrices
        rows = np.moveaxis(columns, -2, 0)
        return np.moveaxis((times @ rows.reshape(len(rows), -1)).reshape(-1, *rows.shape[1:]), 0, -2)

    predicted, true = one_hot[preds], one_hot[targets][:, None, None]
    return (2 * count(predicted * true) / np.maximum(count(predicted) + count(true), 1)).mean(-1)


@functools.lru_cache
def sum_quantiles(freedom):
    """The 95 % quantile of |r Z + T| by r: T has Student's t distribution, Z is normal."""
    rng, ratios = np.random.default_rng(0), np.geomspace(0.01, 1000, 80)
    normal, t = rng.standard_normal(100_000), rng.standard_t(freedom, 100_000)
    return ratios, [np.quantile(np.abs(r * normal + t), 0.95) for r in ratios]


def half_widths(differences, covariance):
    """The half-width of the interval by RULES, for the differences (S,) and their covariance over images (S, S)."""
    S = len(differences)
    error, images = differences.std(ddof=1) / math.sqrt(S), math.sqrt(covariance.mean())
    both_added = error * np.interp(images / error, *sum_quantiles(S - 1))
    return both_added, compare.student_t(S - 1) * error, compare.half_width(differences, covariance)


def verdicts(repeats, N, seed_noise, image_effect, gain, samples=400, block=20):
    """{S: (R, 3) of bool}: does the interval of each rule exclude 0? 2 seeds are the first two of the 10."""
    rng = np.random.default_rng([N, round(100 * seed_noise), round(100 * image_effect), round(100 * gain)])
    times = np.concatenate([np.ones((1, N)), rng.poisson(1, (samples, N))]).astype(np.float32)
    found = {S: [] for S in SEEDS}
    for _ in range(repeats // block):
        f1 = macro_f1(*simulate(rng, block, max(SEEDS), N, seed_noise, image_effect, gain), times)
        for change in (f1[:, :, 1] - f1[:, :, 0]).astype(np.float64):  # (S, 1 + samples)
            covariance = np.cov(change[:, 1:])
            for S in SEEDS:
                mean = abs(change[:S, 0].mean())
                found[S].append([mean > half for half in half_widths(change[:S, 0], covariance[:S, :S])])
    return {S: np.array(rows) for S, rows in found.items()}


def percent(share, n):
    """ "4.2 (3.1 to 5.5)": with the 95 % Wilson interval of a share of n."""
    z2 = compare.Z**2 / n
    centre, half = (share + z2 / 2) / (1 + z2), math.sqrt(z2 * (share * (1 - share) + z2 / 4)) / (1 + z2)
    return f"{100 * share:.1f} ({100 * (centre - half):.1f} to {100 * (centre + half):.1f})"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=2000, help="simulated comparisons per row (default %(default)s)")
    parser.add_argument("--images", type=int, default=500, help="validation images (default %(default)s)")
    options = parser.parse_args()
    for gain in (0.0, 0.25):
        print(f"\n{'Power' if gain else 'False alarms'}, gain {gain:g}: % of {options.repeats} (95 % interval)\n")
        head = ("image effect", "seed noise", "seeds", *RULES)
        print(f"| {' | '.join(head)} |\n|{' --- |' * len(head)}")
        for image_effect, seed_noise in itertools.product((0.0, 0.7), (0.0, 0.2, 0.6)):
            for S, found in verdicts(options.repeats, options.images, seed_noise, image_effect, gain).items():
                shares = [percent(share, len(found)) for share in found.mean(0)]
                print(f"| {image_effect:g} | {seed_noise:g} | {S} | {' | '.join(shares)} |", flush=True)


if __name__ == "__main__":
    main()

# From f1kit. MIT licence, copyright (c) 2026 The f1kit authors. Keep this line and LICENSE with a copy of this file.
"""Class shares: what the test set has, and validation scores as they would be under them.

    python shares.py          # estimated shares of an unlabelled set, and the macro F1 that validation promises for it

Copy this file alone into your project. It needs numpy and no other file of the kit.

    scale, bias, prior = calibration(val_probs, val_targets)
    shares = estimate_shares(calibrated(test_probs, scale, bias), prior)
    weights = weights_for(val_targets, shares)          # of the validation images, for a weighted confusion matrix

All of it assumes label shift: the classes have different shares in the test set, but the images of a class look as
they do in training. Shares are float64 (C,), >= 0, with sum 1. The share of a class is that of its images.

Which prior do the probabilities assume? Plain cross-entropy: the shares of the training images, as the sampler draws
them and class weights weigh them. A log-prior loss: uniform. Focal loss, label smoothing and margins: no prior exactly.
`calibration` reads it from labelled validation images instead, so no loss needs a rule of its own.
"""

from __future__ import annotations

import numpy as np


def _checked(probs: np.ndarray, *of_classes: np.ndarray) -> list[np.ndarray]:
    """In float64. Raises: ValueError for wrong shapes, negative values, values that are not finite, or a sum of 0."""
    arrays = [np.asarray(array, dtype=np.float64) for array in (probs, *of_classes)]
    if arrays[0].ndim != 2 or not arrays[0].size or any(a.shape != arrays[0].shape[1:] for a in arrays[1:]):
        shapes = ", ".join(str(array.shape) for array in arrays)
        raise ValueError(f"probs must be (N, C) with N >= 1, and prior and shares (C,); got {shapes}")
    for array in arrays:
        if not (np.isfinite(array).all() and (array >= 0).all() and (array.sum(-1) > 0).all()):
            raise ValueError("probs, prior and shares must be finite, >= 0, and not all 0")
    return [arrays[0], *(array / array.sum() for array in arrays[1:])]


# ---------------------------------------------------------------------------------------------------------------------
# The shares of an unlabelled set
# ---------------------------------------------------------------------------------------------------------------------


def estimate_shares(probs: np.ndarray, prior: np.ndarray, tolerance: float = 1e-6, rounds: int = 10_000) -> np.ndarray:
    """(C,) class shares of unlabelled images by expectation maximisation (Saerens, Latinne & Decaestecker 2002).

    Formula: p'_c proportional to p_c q_c / pi_c; q_c <- mean of p'_c over the images. It starts at q = pi.
    These are maximum likelihood shares. The likelihood is concave in q, so there is one maximum. The rounds end when
    the log-likelihood of all images together is within `tolerance` of it, for which there is a bound:
    N (max_c mean of p'_c / q_c - 1). Then q is within sqrt(2 tolerance) standard errors of the maximum.

    Args:
        probs: (N, C), calibrated probabilities of the images.
        prior: (C,), the class shares pi that the probabilities assume. A class with prior 0 gets the share 0.
    Raises: ValueError for a wrong shape or value.

    >>> estimate_shares([[1, 0], [1, 0], [1, 0], [0, 1]], [0.5, 0.5]).tolist()
    [0.75, 0.25]
    >>> estimate_shares([[0.8, 0.2], [0.8, 0.2], [0.2, 0.8]], [0.5, 0.5]).round(4).tolist()  # 0.8 q + 0.2 (1 - q) = 2/3
    [0.7778, 0.2222]
    """
    probs, prior = _checked(probs, prior)
    return _em(_ratios(probs, prior), np.ones((1, len(probs))), prior[None], tolerance, rounds)[0]


def _ratios(probs: np.ndarray, prior: np.ndarray) -> np.ndarray:
    """(N, C): p_c / pi_c, in proportion to the likelihood of the image in class c; 0 for a class with prior 0."""
    return np.divide(probs, prior, out=np.zeros_like(probs), where=prior > 0)


def _em(ratios: np.ndarray, counts: np.ndarray, q: np.ndarray, tolerance: float, rounds: int) -> np.ndarray:
    """(B, C) shares for B samples of the N images. counts (B, N): images of each sample; q (B, C): where to start."""
    total = counts.sum(1, keepdims=True)
    for _ in range(rounds):
        growth = (counts / np.maximum(q @ ratios.T, 1e-300)) @ ratios / total  # (B, C): mean of p'_c / q_c
        q = q * growth
        q /= q.sum(1, keepdims=True)
        if (total[:, 0] * (growth.max(1) - 1)).max() <= tolerance:
            break
    return q


def shares_interval(
    probs: np.ndarray, prior: np.ndarray, samples: int = 200, confidence: float = 0.95, seed: int = 0
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(low (C,), high (C,), draws (samples, C)): bootstrap over the images, of the shares of `estimate_shares`.

    The interval is for the chance of which images are in the set. It does not contain errors of the probabilities,
    which matter where `information` is low.

    Raises: ValueError for a wrong shape or value.
    """
    if samples < 1 or not 0 < confidence < 1:
        raise ValueError(f"samples must be >= 1 and confidence between 0 and 1, got {samples} and {confidence}")
    start, rng = estimate_shares(probs, prior), np.random.default_rng(seed)
    probs, prior = _checked(probs, prior)
    N, ratios, parts = len(probs), _ratios(probs, prior), []
    start = 0.999 * start + 0.001 * prior  # EM never leaves a share of exactly 0
    block = max(1, 2**22 // N)  # samples at once: 32 MiB per array
    for size in [block] * (samples // block) + [samples % block] * (samples % block > 0):
        counts = rng.multinomial(N, np.full(N, 1 / N), size).astype(np.float64)
        parts.append(_em(ratios, counts, np.tile(start, (size, 1)), tolerance=0.01, rounds=1000))
    draws = np.concatenate(parts)
    low, high = np.quantile(draws, [(1 - confidence) / 2, (1 + confidence) / 2], axis=0)
    return low, high, draws


def information(probs: np.ndarray, prior: np.ndarray, targets: np.ndarray) -> tuple[float, np.ndarray]:
    """How much an unlabelled image tells about the class shares, compared with a labelled one: from 0 to 1.

    Formula: with p' the probabilities adjusted to uniform shares, the smallest eigenvalue of the (C, C) matrix
    sum over the classes k of the mean, over the images of class k, of p'_c p'_d. It is 1 if every image is told for
    sure, and 0 if two classes are never told apart. In the direction that they tell least about, N images have as much
    information as N times this many labelled ones, and an error of the probabilities changes the shares by up to its
    inverse times as much. 1 - information is the fraction of missing information, the convergence rate of EM
    (Dempster, Laird & Rubin 1977).

    Args:
        probs: (N, C), calibrated probabilities of labelled images.
        prior: (C,), the class shares that they assume.
        targets: (N,), the classes of the images. Classes without an image are left out.
    Returns: it, and that direction (C,), with length 1. Its two largest components are the two classes that are told
        apart least.
    Raises: ValueError for a wrong shape or value.

    >>> value, direction = information([[0.8, 0.2], [0.2, 0.8]], [0.5, 0.5], [0, 1])
    >>> round(value, 4), abs(direction).round(4).tolist()  # of the matrix [[0.68, 0.32], [0.32, 0.68]]
    (0.36, [0.7071, 0.7071])
    """
    probs, prior = _checked(probs, prior)
    C, targets = probs.shape[1], np.asarray(targets)
    kept = (np.bincount(targets, minlength=C) > 0) & (prior > 0)
    p = adjust(probs, prior, kept / kept.sum())[:, kept]
    p *= np.sqrt(weights_for(targets, kept * 1.0) / len(p) * kept.sum())[:, None]
    values, vectors = np.linalg.eigh(p.T @ p)
    direction = np.zeros(C)
    direction[kept] = vectors[:, 0]
    return float(np.clip(values[0], 0, 1)), direction


# ---------------------------------------------------------------------------------------------------------------------
# Probabilities for other shares
# ---------------------------------------------------------------------------------------------------------------------


def adjust(probs: np.ndarray, prior: np.ndarray, shares: np.ndarray, tau: float = 1.0) -> np.ndarray:
    """float64 (N, C): probabilities p_c (q_c / pi_c)^tau, rows divided by their sums.

    tau = 1: those of an image from a set with the shares q. With uniform shares it is the post-hoc logit adjustment
    of Menon et al. 2020 (arXiv:2007.07314). A class with prior 0 or share 0 gets 0; tau = 0 changes nothing.

    Raises: ValueError for a wrong shape or value.

    >>> adjust([[0.9, 0.1]], [0.9, 0.1], [0.5, 0.5]).tolist()
    [[0.5, 0.5]]
    """
    probs, prior, shares = _checked(probs, prior, shares)
    with np.errstate(divide="ignore"):
        bias = np.log(shares) - np.log(np.where(prior > 0, prior, np.inf))
    return calibrated(probs, 1.0, tau * bias) if tau else probs / probs.sum(1, keepdims=True)


def calibrated(probs: np.ndarray, scale: float, bias: np.ndarray) -> np.ndarray:
    """float64 (N, C): softmax(scale log p + bias)."""
    with np.errstate(divide="ignore"):
        logits = scale * np.log(np.maximum(np.asarray(probs, dtype=np.float64), 1e-30)) + bias
    p = np.exp(logits - logits.max(1, keepdims=True))
    return p / p.sum(1, keepdims=True)


def calibration(
    probs: np.ndarray, targets: np.ndarray, ridge: float = 0.1, rounds: int = 100
) -> tuple[float, np.ndarray, np.ndarray]:
    """(scale, bias (C,), prior (C,)): the probabilities softmax(scale log p + bias) that fit labelled images best.

    They minimise the cross-entropy, summed over the images, plus ridge / 2 (|bias|^2 + (scale - 1)^2): temperature
    scaling with a bias, which maximum likelihood shares need (Alexandari et al. 2020, arXiv:1901.06852). Newton's
    method; the problem is convex.

    The prior is the mean of the fitted probabilities: without `ridge` it would be exactly the class shares of the
    images. `ridge` keeps the bias of a class without an image finite.

    Args: probs (N, C), of images that the network was not trained on; targets (N,), their classes.
    Raises: ValueError for a wrong shape or value.
    """
    (probs,), targets = _checked(probs), np.asarray(targets)
    N, C = probs.shape
    if targets.shape != (N,) or targets.dtype.kind not in "iu" or targets.min() < 0 or targets.max() >= C:
        raise ValueError(f"targets must be {N} integers in [0, {C})")
    log_p = np.log(np.maximum(probs, 1e-30))
    log_p -= log_p.max(1, keepdims=True)
    start = np.append(np.zeros(C), 1.0)

    def cost(theta: np.ndarray) -> float:
        z = theta[C] * log_p + theta[:C]
        top = z.max(1)
        total = (top + np.log(np.exp(z - top[:, None]).sum(1)) - z[np.arange(N), targets]).sum()
        return total + ridge / 2 * ((theta - start) ** 2).sum()

    theta = start
    for _ in range(rounds):
        p = calibrated(probs, theta[C], theta[:C])
        mean = (p * log_p).sum(1)
        spread = p * (log_p - mean[:, None])  # (N, C): derivative of p by the scale
        slope = np.append(p.sum(0) - np.bincount(targets, minlength=C), (mean - log_p[np.arange(N), targets]).sum())
        slope += ridge * (theta - start)
        curve = np.empty((C + 1, C + 1))
        curve[:C, :C] = np.diag(p.sum(0)) - p.T @ p
        curve[C, :C] = curve[:C, C] = spread.sum(0)
        curve[C, C] = (spread * log_p).sum()
        step = np.linalg.solve(curve + ridge * np.eye(C + 1), slope)
        now = cost(theta)
        while cost(theta - step) > now - 1e-4 * slope @ step and abs(step).max() > 1e-12:
            step = step / 2
        theta = theta - step
        if slope @ step < 1e-9:
            break
    scale, bias = float(theta[C]), theta[:C]
    return scale, bias, calibrated(probs, scale, bias).mean(0)


# ---------------------------------------------------------------------------------------------------------------------
# Validation scores under other shares
# ---------------------------------------------------------------------------------------------------------------------


def weights_for(targets: np.ndarray, shares: np.ndarray) -> np.ndarray:
    """(N,) weights q_c / v_c of validation images, for the shares q of another set; v are those of `targets` (N,).

    A weighted confusion matrix is then that of a set with the shares q. A class without a validation image has no
    weight: nothing is known about it.

    >>> weights_for([0, 0, 0, 1], [0.5, 0.5]).round(4).tolist()
    [0.6667, 0.6667, 0.6667, 2.0]
    """
    targets, shares = np.asarray(targets), np.asarray(shares, dtype=np.float64)
    counts = np.bincount(targets, minlength=len(shares))
    return (shares / shares.sum() * len(targets) / np.maximum(counts, 1))[targets]


def promised_counts(
    matrix: np.ndarray, shares: np.ndarray, images: int | None = None, samples: int = 1000, seed: int = 0
) -> np.ndarray:
    """(samples, C, C) confusion matrices [target, prediction] of sets with other class shares, for an interval.

    Each sample draws the validation images of every class again, and then, with `images`, a set of that many images.
    So the interval is that of the score to be measured, not that of its mean. It does not contain the chance of
    training again.

    Args:
        matrix: (C, C), counts of the validation images [target, prediction].
        shares: (C,), or (M, C) draws of `shares_interval`, of which each sample takes one.
    """
    rng, matrix, shares = np.random.default_rng(seed), np.asarray(matrix), np.atleast_2d(shares)
    C, n = len(matrix), matrix.sum(1)
    drawn = shares[np.arange(samples) % len(shares)]  # (samples, C)
    counts = np.zeros((samples, C, C))
    for c in np.flatnonzero(n):
        counts[:, c] = rng.multinomial(n[c], matrix[c] / n[c], samples) / n[c]
    if images is None:
        return counts * drawn[:, :, None]
    of_class = rng.multinomial(images, drawn / drawn.sum(1, keepdims=True))  # (samples, C)
    for c in np.flatnonzero(n):
        counts[:, c] = rng.multinomial(of_class[:, c], counts[:, c] / counts[:, c].sum(1, keepdims=True))
    return counts


# ---------------------------------------------------------------------------------------------------------------------
# python shares.py
# ---------------------------------------------------------------------------------------------------------------------


def main() -> None:
    rng, C = np.random.default_rng(0), 5

    def images(counts: list[int], noise: float) -> tuple[np.ndarray, np.ndarray]:
        """Probabilities of a classifier that was trained on long-tailed classes, and the targets."""
        targets = np.repeat(np.arange(C), counts)
        x = np.eye(C)[targets] + noise * rng.normal(size=(len(targets), C))
        return calibrated(np.exp(x / noise**2), 1.0, np.log(tail)), targets

    tail = np.array([0.60, 0.25, 0.10, 0.04, 0.01])
    print("5 classes, 4,000 validation images with the shares of training, 2,000 test images, one half of them class 4")
    for name, noise in (("strong", 0.4), ("weak", 1.5)):
        val_probs, val_targets = images((4000 * tail).astype(int).tolist(), noise)
        test_probs, test_targets = images([250, 250, 250, 250, 1000], noise)
        scale, bias, prior = calibration(val_probs, val_targets)
        p = calibrated(test_probs, scale, bias)
        found, (low, high, _) = estimate_shares(p, prior), shares_interval(p, prior)
        told, _ = information(calibrated(val_probs, scale, bias), prior, val_targets)
        print(f"\n{name} classifier, information {told:.3f}\nclass   training      true   estimated (95 % interval)")
        for c in range(C):
            true = np.mean(test_targets == c)
            print(f"{c:5d}{prior[c]:11.3f}{true:10.3f}{found[c]:12.3f} ({low[c]:.3f} to {high[c]:.3f})")


if __name__ == "__main__":
    main()

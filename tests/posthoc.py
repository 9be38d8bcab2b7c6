"""Measures post-hoc logit adjustment of finished runs: what it changes on their validation images, without training.

    python tests/posthoc.py runs/finetune/loss=ce               # a folder of compare.py with one run per seed
    python tests/posthoc.py runs/finetune/loss=ce --tau 0.5 1

Each run is its own baseline: argmax of log p_c - tau log(n_c / N) against argmax of log p_c (Menon et al. 2021,
arXiv:2007.07314), n_c the training images of class c. The interval is that of compare.py.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import compare
import improvements
import metrics
import runs


def adjusted(run: runs.Run, tau: float) -> compare.Predictions:
    stored = run.predictions
    probs = improvements.adjust_prior(stored.probs, run.train_counts(), tau) if tau else stored.probs
    return compare.Predictions(stored.paths, stored.targets, probs.argmax(1), probs.shape[1])


def group_f1(one: compare.Predictions, train_counts: list[float]) -> list[float]:
    """F1 of the head, medium and tail classes; [] if the classes are not long-tailed."""
    matrix = metrics.ConfusionMatrix(one.num_classes).update(one.preds, one.targets)
    scores = compare.group_scores(matrix, train_counts)
    return [scores[f"{group}_f1"] for group in compare.GROUPS if scores]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", help="one run, or a folder with runs seed0, seed1, ...")
    parser.add_argument("--tau", type=float, nargs="+", default=[1.0], help="strengths (default 1)")
    options = parser.parse_args()
    folders = sorted(Path(options.folder).glob("seed*/config.json")) or [Path(options.folder) / "config.json"]
    found = {i: runs.read(file.parent) for i, file in enumerate(folders)}
    before = {seed: adjusted(run, 0) for seed, run in found.items()}
    print("| tau | seeds | macro F1 | std | difference | 95 % interval | verdict | accuracy | head, medium, tail F1 |")
    print("|---|---|---|---|---|---|---|---|---|")
    for tau in (0.0, *options.tau):
        after = {seed: adjusted(run, tau) for seed, run in found.items()}
        change, f1 = compare.difference(before, after), [one.f1 for one in after.values()]
        accuracy = statistics.mean(float((one.preds == one.targets).mean()) for one in after.values())
        groups = [group_f1(one, found[seed].train_counts()) for seed, one in after.items()]
        std = f"{statistics.stdev(f1):.4f}" if len(f1) > 1 else ""
        cells = [f"{tau:g}", f"{len(f1)}", f"{statistics.mean(f1):.4f}", std, "", "", "(baseline)", f"{accuracy:.4f}"]
        if tau:
            cells[4:7] = f"{change.mean:+.4f}", f"{change.low:+.4f} to {change.high:+.4f}", change.verdict
        print(f"| {' | '.join(cells)} | {', '.join(f'{value:.4f}' for value in np.mean(groups, 0))} |")


if __name__ == "__main__":
    main()

"""Measures what finished runs gain without more training, on their validation images.

    python tests/posthoc.py runs/finetune/loss=ce --tau 0.5 1 auto     # a folder of compare.py with one run per seed
    python tests/posthoc.py runs/finetune/loss=ce --average

--tau: post-hoc logit adjustment, argmax of log p_c - tau log(n_c / N) instead of argmax of log p_c (Menon et al. 2021,
arXiv:2007.07314). n_c are the training images of class c. "auto" finds tau on each half of the images and judges it on
the other, as predict.py does. Each run is its own baseline. The interval is that of compare.py: it covers new seeds and
new images.

--average: the mean of the probabilities of k runs, as `predict.py RUN RUN ...` averages them. The score is the mean
over all choices of k runs. The interval covers new images, not new seeds: the choices share their runs.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import sys
from contextlib import redirect_stdout
from dataclasses import replace
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import compare
import improvements
import metrics
import runs
from predict import number_or_auto


def adjusted(run: runs.Run, tau: float | str) -> compare.Predictions:
    stored = run.predictions
    val = improvements.CrossFitted.of(stored.probs, stored.targets)
    with redirect_stdout(None):
        _, val = improvements.choose_tau(val, run.train_counts(), improvements.AS_THEY_ARE, tau)
    return compare.Predictions.of(replace(stored, probs=val.judged))


def group_f1(one: compare.Predictions, train_counts: list[float]) -> list[float]:
    """F1 of the head, medium and tail classes; [] if the classes are not long-tailed."""
    matrix = metrics.ConfusionMatrix(one.num_classes).update(one.preds, one.targets)
    scores = compare.group_scores(matrix, train_counts)
    return [scores[f"{group}_f1"] for group in compare.GROUPS if scores]


def print_adjusted(found: dict[int, runs.Run], taus: list[float | str]) -> None:
    """A table with a row for each tau, beginning with 0."""
    before = {seed: adjusted(run, 0) for seed, run in found.items()}
    print("| tau | seeds | macro F1 | std | difference | 95 % interval | verdict | accuracy | head, medium, tail F1 |")
    print("|---|---|---|---|---|---|---|---|---|")
    for tau in (0, *taus):
        after = {seed: adjusted(run, tau) for seed, run in found.items()}
        change, f1 = compare.difference(before, after), [one.f1 for one in after.values()]
        accuracy = statistics.mean(float((one.preds == one.targets).mean()) for one in after.values())
        groups = [group_f1(one, found[seed].train_counts()) for seed, one in after.items()]
        name, std = tau if tau == "auto" else f"{tau:g}", f"{statistics.stdev(f1):.4f}" if len(f1) > 1 else ""
        cells = [name, f"{len(f1)}", f"{statistics.mean(f1):.4f}", std, "", "", "(baseline)", f"{accuracy:.4f}"]
        if tau:
            cells[4:7] = f"{change.mean:+.4f}", f"{change.low:+.4f} to {change.high:+.4f}", change.verdict
        print(f"| {' | '.join(cells)} | {', '.join(f'{value:.4f}' for value in np.mean(groups, 0))} |")


def print_averaged(found: list[runs.Predictions]) -> None:
    """A table with a row for each number of runs that are averaged. Their validation images must be the same."""
    if len({compare.Predictions.of(stored).images for stored in found}) > 1:
        sys.exit("the runs have different validation images, so their predictions cannot be averaged")
    print("| runs averaged | choices | macro F1 | difference | 95 % interval |")
    print("|---|---|---|---|---|")
    for k in range(1, len(found) + 1):
        averages = map(improvements.counted_once, map(list, itertools.combinations(found, k)))
        after = [*map(compare.Predictions.of, averages)]
        f1, resampled = (np.mean([getattr(one, key) for one in after], 0) for key in ("f1", "resampled_f1"))
        if k == 1:
            alone, resampled_alone, cells = f1, resampled, ["(baseline)", ""]
        else:
            half = compare.Z * (resampled - resampled_alone).std(ddof=1)
            cells = [f"{f1 - alone:+.4f}", f"{f1 - alone - half:+.4f} to {f1 - alone + half:+.4f}"]
        print(f"| {' | '.join([f'{k}', f'{len(after)}', f'{f1:.4f}', *cells])} |")


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", help="one run, or a folder with runs seed0, seed1, ...")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--tau", type=number_or_auto, nargs="+", default=[1], help="strengths, or auto (default 1)")
    what.add_argument("--average", action="store_true", help="average 1, 2, ... runs")
    options = parser.parse_args(argv)
    folders = sorted(Path(options.folder).glob("seed*/config.json")) or [Path(options.folder) / "config.json"]
    found = {i: runs.read(file.parent) for i, file in enumerate(folders)}
    if options.average:
        print_averaged([run.predictions for run in found.values()])
    else:
        print_adjusted(found, options.tau)


if __name__ == "__main__":
    main()

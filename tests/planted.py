"""Plants wrong labels in a data set, and measures how many labels.py finds, beside the package cleanlab.

    python tests/planted.py plant FOLDER planted.csv             # 5 % of the labels become a different class
    python train.py --data FOLDER --csv planted.csv --folds 5 --out runs/planted
    python tests/planted.py score runs/planted planted.csv       # prints the rows of results/label-errors.md

planted.csv has a row per image: its path, its label now, and its label before (column `before`, which train.py does
not read). The images stay where they are.
"""

from __future__ import annotations

import argparse
import csv
import os
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import data
import labels
import runs


def plant(targets, num_classes, share, rng):
    """The targets with round(share x N) of them changed, each to any different class with the same probability."""
    rows = rng.choice(len(targets), round(share * len(targets)), replace=False)
    changed = targets.copy()
    changed[rows] = (targets[rows] + rng.integers(1, num_classes, len(rows))) % num_classes
    return changed


def write_planted(folder, file, share, seed):
    table = data.read(folder)
    changed = plant(table.targets, len(table.classes), share, np.random.default_rng(seed))
    names = np.array(table.classes)
    with open(file, "w", newline="", encoding="utf-8") as out:
        rows = zip(map(os.path.abspath, table.paths), names[changed], names[table.targets], strict=True)
        csv.writer(out).writerows([("path", "label", "before"), *rows])
    print(f"{file}: {(changed != table.targets).sum()} of {len(table)} labels changed")


def precision_and_recall(ranked, is_wrong):
    """Of the first n of the ranked rows, where n is the number of wrong labels: the share that is wrong.

    Where the list is shorter than n, the missing rows count as not found. So it is also the recall at n.
    """
    return is_wrong[np.asarray(ranked)[: is_wrong.sum()]].sum() / is_wrong.sum()


def cleanlab_rankings(probs, targets):
    """{name: rows, worst first} of cleanlab's filters and rankings. Empty if it is not installed."""
    try:
        from cleanlab.filter import find_label_issues
    except ImportError as error:
        print(f"cleanlab is not compared, because it cannot be imported: {error}")
        return {}
    filters, scores = (
        ("prune_by_noise_rate", "confident_learning", "low_self_confidence"),
        ("self_confidence", "normalized_margin"),
    )
    return {
        f"{by}, {score}": find_label_issues(targets, probs, filter_by=by, return_indices_ranked_by=score, n_jobs=1)
        for by in filters
        for score in scores
    }


def print_scores(run, file):
    found, classes = runs.read(run).predictions, runs.read(run).config["classes"]
    with open(file, newline="", encoding="utf-8") as source:
        before = {row["path"]: classes.index(row["before"]) for row in csv.DictReader(source)}
    truth = np.array([before[os.path.abspath(path)] for path in found.paths])
    probs, is_wrong = found.probs.astype(float), found.targets != truth
    accuracy = (probs.argmax(1) == truth).mean()
    print(f"images {len(truth)}, planted {is_wrong.sum()}, out-of-fold accuracy on the labels before {accuracy:.4f}\n")
    flagged = labels.find_suspects(probs, found.targets)
    networks = labels.networks_of(runs.read(run))
    chance = labels.by_chance(probs, found.targets, networks)
    print(f"labels.py flags {len(flagged)}, expected by chance {chance.mean:.1f} ({chance.low} to {chance.high})")
    print(f"share of wrong labels: estimated {chance.wrong:.4f}, planted {is_wrong.mean():.4f}")
    clean, n = labels.by_chance(probs, truth, networks), labels.count_suspects(probs, truth)
    print(
        f"with the labels before: flags {n}, expected by chance {clean.mean:.1f} ({clean.low} to {clean.high}), ",
        end="",
    )
    print(f"share of wrong labels estimated {clean.wrong:.4f}\n")
    ours = labels.ranked(probs, found.targets)
    rankings = {"labels.py": flagged, "labels.py, all images ranked": ours}
    rankings |= {f"cleanlab: {name}": rows for name, rows in cleanlab_rankings(probs, found.targets).items()}
    print("| ranking | flagged | precision of the flagged | recall of the flagged | precision at the planted number |")
    print("| --- | --- | --- | --- | --- |")
    for name, rows in rankings.items():
        hits = is_wrong[rows].sum()
        parts = f"{hits / max(len(rows), 1):.3f} | {hits / is_wrong.sum():.3f}"
        print(f"| {name} | {len(rows)} | {parts} | {precision_and_recall(rows, is_wrong):.3f} |")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    add = commands.add_parser("plant").add_argument
    add("folder")
    add("file")
    add("--share", type=float, default=0.05)
    add("--seed", type=int, default=0)
    add = commands.add_parser("score").add_argument
    add("run")
    add("file")
    options = parser.parse_args()
    if options.command == "plant":
        write_planted(options.folder, options.file, options.share, options.seed)
    else:
        print_scores(options.run, options.file)


if __name__ == "__main__":
    main()

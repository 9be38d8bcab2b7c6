# From f1kit. MIT licence, copyright (c) 2026 The f1kit authors. Keep this line and LICENSE with a copy of this file.
"""Finds labels that are probably wrong, from predictions of unseen images.

    python train.py --data FOLDER --folds 5 --out runs/five
    python labels.py runs/five      # writes labels.csv and labels.html there
    python train.py --data FOLDER --folds 5 --fixes runs/five/labels.csv

Look through labels.html, and write in the column `action` of labels.csv:

    fix     the label becomes the class in `suggested`, which you may change
    drop    the image is left out
    empty   nothing changes

A run with folds has predictions for all images (oof.npz). A run without folds
has them only for its validation images.

Method: confident learning (Northcutt et al. 2021, arXiv:1911.00068). The confident joint tells how many labels are
suspect. These are the images with the lowest probability of their label, as with the filter "low_self_confidence" of
the package cleanlab. An image whose label is the most probable class is never suspect.

The probabilities are used as they are. They are calibrated only to count how many suspects are expected by chance, see
by_chance. The functions of the first section need only numpy.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import checkpoint
import cli
import page
import report
import runs
from page import Html, tag
from runs import BadInput

# ---------------------------------------------------------------------------------------------------------------------
# Confident learning: probs (N, C) floats, out of fold; targets (N,) integers, the given labels
# ---------------------------------------------------------------------------------------------------------------------

TOLERANCE = 1e-6  # a probability this much below a threshold still reaches it


def class_thresholds(probs: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """(C,): the mean probability of class c over the images labelled c. Infinite for a class without images."""
    counts, own = np.bincount(targets, minlength=probs.shape[1]), probs[np.arange(len(targets)), targets]
    with np.errstate(invalid="ignore", divide="ignore"):
        means = np.bincount(targets, own, probs.shape[1]) / counts
    return np.where(counts > 0, means, np.inf)


def confident_classes(probs: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """int (N,): the class whose threshold the image reaches, -1 if there is none.

    If it reaches several, the most probable class counts, as in cleanlab.
    """
    reaches = probs >= class_thresholds(probs, targets) - TOLERANCE
    n = reaches.sum(1)
    return np.where(n == 0, -1, np.where(n == 1, reaches.argmax(1), probs.argmax(1)))


def confident_joint(probs: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """int (C, C): images with label i (row) that are confidently of class j (column). The diagonal is at least 1."""
    C, found = probs.shape[1], confident_classes(probs, targets)
    known = found >= 0
    joint = np.bincount(targets[known] * C + found[known], minlength=C * C).reshape(C, C)
    return np.maximum(joint, np.eye(C, dtype=joint.dtype))


def is_unlikely(probs: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """bool (N,): a different class is more probable than the label."""
    return probs[np.arange(len(targets)), targets] < probs.max(1) - TOLERANCE


def count_suspects(probs: np.ndarray, targets: np.ndarray) -> int:
    """Images off the diagonal of the confident joint, but for those whose label is the most probable class."""
    found = confident_classes(probs, targets)
    return int(((found >= 0) & (found != targets) & is_unlikely(probs, targets)).sum())


def ranked(probs: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """int (N,): all rows, the lowest probability of the label first; at the end those whose label is most probable."""
    return np.lexsort((probs[np.arange(len(targets)), targets], ~is_unlikely(probs, targets)))


def find_suspects(probs: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """int (n,): the rows whose labels are suspect, worst first."""
    return ranked(probs, targets)[: count_suspects(probs, targets)]


def calibrated(probs: np.ndarray, targets: np.ndarray, rounds: int = 100) -> tuple[np.ndarray, float]:
    """(N, C) calibrated probabilities q of the true class, and the estimated share of wrong labels.

    Fitted by expectation maximization, with z = log(probs), one temperature T, one bias b per class and a share e:

        q = softmax(z / T + b),    p(label = y) = (1 - e) q_y + e / C

    A plain temperature would take wrong labels for overconfidence of the network, and hide them. Here they are the
    part e / C that a temperature cannot explain.
    """
    C, rows = probs.shape[1], np.arange(len(targets))
    z = np.log(probs.astype(float).clip(1e-12))
    b, a, e = np.zeros(C), 1.0, 0.05  # a = 1 / T
    counts = np.bincount(targets, minlength=C)
    for _ in range(rounds):
        q = _softmax(a * z + b)
        right = (1 - e) * q[rows, targets] / ((1 - e) * q[rows, targets] + e / C)  # p(the label is right)
        e = min(max((1 - right).mean(), 1e-6), 0.9)
        mean = (q * z).sum(1)
        slope = (right * (z[rows, targets] - mean)).sum()  # of the log-likelihood in a; `curve` is minus its second
        curve = (right * ((q * z * z).sum(1) - mean**2)).sum()
        a = float(np.clip(a + slope / max(curve, 1e-12), a / 2, a * 2).clip(0.05, 20))
        b += np.log((np.bincount(targets, right, C) + 0.5) / (right @ q + 0.5))
    b[counts == 0] = -np.inf
    return _softmax(a * z + b), float(e) * (C - 1) / C  # e / C of the labels are right by luck


def _softmax(z: np.ndarray) -> np.ndarray:
    z = np.exp(z - z.max(1, keepdims=True))
    return z / z.sum(1, keepdims=True)


class Chance(NamedTuple):
    """How many suspects are expected if all labels are right: mean and 95 % range. `wrong`: see calibrated."""

    mean: float
    low: int
    high: int
    wrong: float


def by_chance(
    probs: np.ndarray, targets: np.ndarray, networks: np.ndarray | None = None, draws: int = 200, seed: int = 0
) -> Chance:
    """Counts the suspects among labels that are drawn from the calibrated probabilities, so that all are right.

    networks: int (N,), which network predicted each image (its fold). Each network is calibrated by itself: one is
    underconfident, another is not, and what one temperature cannot explain would count as wrong labels.
    """
    networks, q, wrong = np.zeros(len(probs), int) if networks is None else networks, np.empty(probs.shape), 0.0
    for number in np.unique(networks):
        rows = networks == number
        q[rows], share = calibrated(probs[rows], targets[rows])
        wrong += share * rows.mean()
    steps, rng = q.cumsum(1), np.random.default_rng(seed)
    steps /= steps[:, -1:]  # the last step is 1 exactly
    found = []
    for _ in range(draws):
        drawn = (steps < rng.random((len(probs), 1))).sum(1)
        found.append(count_suspects(probs, drawn))
    low, high = np.quantile(found, [0.025, 0.975])
    return Chance(float(np.mean(found)), int(np.floor(low)), int(np.ceil(high)), wrong)


# ---------------------------------------------------------------------------------------------------------------------
# What is shown together
# ---------------------------------------------------------------------------------------------------------------------

COLUMNS = (*runs.FIX_COLUMNS, "score", "why", "group")
MATES = 20  # at most this many images that are not suspect are listed with the suspects of their group
SUSPECT, MATE, TWO_LABELS, DECIDED = "suspect", "same group", "identical, two labels", "fixed before"


@dataclass
class Findings:
    """What labels.py finds in a run. A row is an image: its number in the predictions."""

    run: runs.Run
    same: np.ndarray  # (N,) int64: the first row with the same file content

    @cached_property
    def probs(self) -> np.ndarray:
        return self.run.predictions.probs.astype(float)

    @property
    def targets(self) -> np.ndarray:
        return self.run.predictions.targets

    @cached_property
    def suspects(self) -> np.ndarray:
        return find_suspects(self.probs, self.targets)

    @cached_property
    def chance(self) -> Chance:
        return by_chance(self.probs, self.targets, networks_of(self.run))

    @cached_property
    def contradictions(self) -> list[np.ndarray]:
        """The rows of each set of identical images that has more than one label."""
        rows = np.argsort(self.same, kind="stable")
        sets = np.split(rows, np.flatnonzero(np.diff(self.same[rows])) + 1)
        return [rows for rows in sets if len(set(self.targets[rows])) > 1]

    @cached_property
    def suggested(self) -> np.ndarray:
        """(N,): the most probable class. For identical images with several labels, the most probable of these."""
        suggested = self.probs.argmax(1)
        for rows in self.contradictions:
            labels = np.unique(self.targets[rows])
            suggested[rows] = labels[self.probs[rows].mean(0)[labels].argmax()]
        return suggested

    @cached_property
    def blocks(self) -> list[np.ndarray]:
        """Rows that are shown together, the block with the worst suspect first.

        A block is a suspect with the images of its group and the identical ones, without `contradictions`.
        """
        groups = self.run.predictions.groups
        groups = np.arange(len(self.same)) if groups is None else np.unique(groups, return_inverse=True)[1]
        unit = _tied(groups, self.same)
        listed = {row for rows in self.contradictions for row in rows.tolist()} | self.decided
        score, blocks = self.probs[np.arange(len(self.targets)), self.targets], []
        suspects = [row for row in self.suspects.tolist() if row not in listed]
        for u in dict.fromkeys(unit[suspects].tolist()):
            rows = [row for row in np.flatnonzero(unit == u).tolist() if row not in listed]
            own = sorted((row for row in rows if row in self.suspect_set), key=score.__getitem__)
            mates = sorted((row for row in rows if row not in self.suspect_set), key=score.__getitem__)
            blocks.append(np.array(own + mates[:MATES]))
        return blocks

    @cached_property
    def suspect_set(self) -> set[int]:
        return set(self.suspects.tolist())

    @cached_property
    def decided(self) -> set[int]:
        """Rows whose label the run has already changed (--fixes)."""
        fixed = {fix["image"] for fix in self.run.config.get("fixes", [])}
        return {row for row, path in enumerate(self.run.predictions.paths.tolist()) if path in fixed}

    def why(self, row: int) -> str:
        return SUSPECT if row in self.suspect_set else MATE

    @cached_property
    def group(self) -> list[str]:
        """(N,): the name of the image's group, empty if no other image has it."""
        groups = self.run.predictions.groups
        if groups is None:
            return [""] * len(self.same)
        _, number, counts = np.unique(groups, return_inverse=True, return_counts=True)
        return np.where(counts[number] > 1, groups, "").tolist()


def networks_of(run: runs.Run) -> np.ndarray:
    """int (N,): the fold that predicted each image of a run; -1 if it has no folds, or their files are gone."""
    parts = [(f, fold.predictions) for f, fold in enumerate(run.folds)]
    fold_of = {path: f for f, found in parts if found for path in found.paths.tolist()}
    return np.array([fold_of.get(path, -1) for path in run.predictions.paths.tolist()])


def _tied(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """int (N,): the number of each row's set, if rows with an equal number in `first` or in `second` are in one set."""
    unit = np.arange(len(first))
    while True:
        lowest = unit.copy()
        for number in (first, second):
            least = np.full(int(number.max()) + 1, len(unit))
            np.minimum.at(least, number, lowest)
            lowest = least[number]
        if (lowest == unit).all():
            return unit
        unit = lowest


def find(folder: str | Path) -> Findings:
    """Reads a run and compares its image files. BadInput if it has no predictions, or they are not probabilities."""
    run = runs.read(folder)
    if run.predictions is None:
        what = "the last fold" if run.folds else "its first epoch"
        raise BadInput(f"{folder} has no predictions yet: wait until {what} is finished")
    probs = run.predictions.probs
    if not (np.isfinite(probs).all() and (probs >= 0).all() and (abs(probs.sum(1) - 1) < 0.01).all()) or not len(probs):
        raise BadInput(f"{folder} is damaged: each image must have probabilities from 0 to 1 with the sum 1")
    cwd = run.config.get("cwd", "")
    return Findings(run, identical([os.path.join(cwd, path) for path in run.predictions.paths.tolist()]))


def identical(files: Sequence[str]) -> np.ndarray:
    """int64 (N,): for each file, the first one with the same content. A file that cannot be read is only itself."""
    sizes = [os.path.getsize(file) if os.path.isfile(file) else -1 for file in files]
    first: dict[Any, int] = {}
    of_size = np.unique(sizes, return_inverse=True, return_counts=True)
    repeated = (of_size[2] > 1)[of_size[1]]
    found = np.arange(len(files))
    for i, file in enumerate(files):
        if repeated[i] and sizes[i] > 0:
            try:
                found[i] = first.setdefault(hashlib.sha256(Path(file).read_bytes()).digest(), i)
            except OSError:
                continue
    return found


# ---------------------------------------------------------------------------------------------------------------------
# labels.csv
# ---------------------------------------------------------------------------------------------------------------------


def write_table(findings: Findings, file: Path, action: str = "") -> None:
    """Writes labels.csv. `action` is written for suspects and identical images whose suggestion differs."""
    names, paths = findings.run.config["classes"], findings.run.predictions.paths
    lines = []

    def add(row: int, why: str) -> None:
        given, suggested = findings.targets[row], findings.suggested[row]
        chosen = action if why != MATE and given != suggested else ""
        score = f"{findings.probs[row, given]:.4f}"
        lines.append([chosen, paths[row], names[given], names[suggested], score, why, findings.group[row]])

    for rows in findings.contradictions:
        for row in rows:
            add(row, TWO_LABELS)
    for rows in findings.blocks:
        for row in rows.tolist():
            add(row, findings.why(row))
    for fix in findings.run.config.get("fixes", []):
        done = "drop" if fix["to"] is None else "fix"
        lines.append([done, fix["image"], fix["from"], fix["to"] or "", "", DECIDED, ""])
    runs.write_csv(file, COLUMNS, ([runs.as_cell(str(cell)) for cell in line] for line in lines))


# ---------------------------------------------------------------------------------------------------------------------
# labels.html
# ---------------------------------------------------------------------------------------------------------------------


def verdict(findings: Findings) -> str:
    """How many suspects there are, how many are expected by chance, and what that means."""
    n, (mean, low, high, _) = len(findings.suspects), findings.chance
    text = f"Suspect labels: {n}. By chance, if all labels were right, about {mean:.0f} would be expected"
    text += f" (95 % range {low} to {high})"
    if n <= high:
        return f"{text}. That is no more than chance: the images may be difficult, and their labels right."
    return f"{text}. So about {n - mean:.0f} of the {n} are probably wrong labels, and most of the others are right."


def hardly_known(findings: Findings) -> str:
    """A warning of the classes of which most images are suspect, as rare classes may be. Empty if there are none."""
    names, n = findings.run.config["classes"], len(findings.run.config["classes"])
    counts = np.bincount(findings.targets, minlength=n)
    found = np.flatnonzero(np.bincount(findings.targets[findings.suspects], minlength=n) > counts / 2)
    if not len(found):
        return ""
    listed = ", ".join(names[c] for c in found[:20]) + (", ..." if len(found) > 20 else "")
    text = f"more than half of the images of these classes are suspect: {listed}. The network hardly knows them"
    return f"{text}, so a suspect of these classes is often a right label"


def make_page(findings: Findings, csv_file: Path, most: int) -> str:
    run, chance, shown = findings.run, findings.chance, 0
    images = "all images, out of fold" if run.folds else "only the validation images: the run has no folds"
    entries = [("images", f"{len(findings.targets):,}", images)]
    entries += [("suspect labels", f"{len(findings.suspects):,}", "confident learning")]
    entries += [("expected by chance", f"{chance.mean:.0f}", f"95 % range {chance.low} to {chance.high}")]
    remark = f"estimated, about {chance.wrong * len(findings.targets):,.0f} images, see below"
    entries += [("wrong labels", f"{chance.wrong:.1%}", remark)]
    contradictions = [block(findings, rows) for rows in findings.contradictions]
    blocks = []
    for rows in findings.blocks:
        if shown < most:
            blocks.append(rows)
            shown += len(rows)
    left_out = len(findings.blocks) - len(blocks)
    about = "Worst first. Below each image: its label → the suggested class, each with its probability."
    more = f" {left_out} more are only in {csv_file.name}: --most shows more." if left_out else ""
    sections: list[tuple[str, Any]] = []
    if contradictions:
        sections.append(("Identical images with different labels", page.join(contradictions)))
    found = [tag("p", about + more, class_="about"), *in_order(findings, blocks)]
    sections.append(("Suspect labels", page.join(found) if blocks else tag("p", "There are none.")))
    sections += [("From class to class", pairs(findings)), ("What to do", instructions(csv_file))]
    title = f"Labels of {'/'.join(run.folder.resolve().parts[-2:])}"
    warnings = page.warning(filter(None, [hardly_known(findings)]))
    return page.document(title, sections, page.join([warnings, page.cards(entries), tag("p", verdict(findings))]))


def in_order(findings: Findings, blocks: Sequence[np.ndarray]) -> list[Html]:
    """The blocks as HTML. Neighbours of one image each are in one grid."""
    parts: list[Html] = []
    singles: list[Html] = []
    for rows in [*blocks, np.arange(2)]:  # the last one only ends the grid
        if len(rows) == 1:
            singles.append(shot(findings, int(rows[0])))
            continue
        parts += [tag("ul", *singles, class_="shots")] if singles else []
        singles = []
        parts.append(block(findings, rows))
    return parts[:-1]


def block(findings: Findings, rows: np.ndarray) -> Html:
    rows, group = rows.tolist(), next(filter(None, (findings.group[row] for row in rows.tolist())), "")
    n = sum(row in findings.suspect_set for row in rows)
    name = page.join(["group ", tag("bdi", group)]) if group else "identical images"
    heading = tag("h3", name, f": {n} of {len(rows)} images suspect")
    return tag("div", heading, tag("ul", *(shot(findings, row) for row in rows), class_="shots"))


def shot(findings: Findings, row: int) -> Html:
    """One image with its label and the suggested class, each with its probability."""
    found, names = findings.run.predictions, findings.run.config["classes"]
    given, suggested = int(found.targets[row]), int(findings.suggested[row])
    p, path = found.probs[row], str(found.paths[row])
    image = report.thumbnail(findings.run, path, f"label {names[given]}, suggested {names[suggested]}")
    label = tag("span", tag("bdi", names[given]), f" {p[given]:.1%}")
    if given == suggested:
        return tag("li", image, report.short_path(path), tag("br"), label, tag("span", " not suspect", class_="dim"))
    change = page.join([label, " → ", tag("b", tag("bdi", names[suggested]), f" {p[suggested]:.1%}")])
    return tag("li", image, report.short_path(path), tag("br"), change)


def pairs(findings: Findings) -> Html:
    """The most frequent pairs of label and suggestion among the suspects."""
    C, rows = findings.probs.shape[1], findings.suspects
    if not len(rows):
        return tag("p", "There are none.")
    cells, counts = np.unique(findings.targets[rows] * C + findings.suggested[rows], return_counts=True)
    order = np.argsort(-counts, kind="stable")[:20]
    names, most = findings.run.config["classes"], counts.max()
    lines = [
        [page.named(cells[i] // C, names), page.named(cells[i] % C, names), page.Bar(str(counts[i]), counts[i] / most)]
        for i in order
    ]
    return page.table(["label", "suggested", "suspects"], lines, "Suspects by label and suggested class")


def instructions(csv_file: Path) -> Html:
    texts = [
        "Write in the column action: fix = the label becomes the class in the column suggested, which you may change; "
        "drop = leave the image out; empty = nothing changes.",
        "Expected by chance: labels are drawn from the calibrated probabilities of the network, so that all are right, "
        "and suspects are counted again. This is repeated 200 times.",
        "The estimated share of wrong labels is the part of the labels that no calibration of the probabilities "
        "explains. It assumes that wrong labels are spread evenly over the classes.",
    ]
    command = f"python train.py ... --fixes {csv_file}"
    return page.join([tag("ul", *(tag("li", text) for text in texts)), tag("pre", command)])


# ---------------------------------------------------------------------------------------------------------------------
# python labels.py RUN
# ---------------------------------------------------------------------------------------------------------------------


def main(argv: Sequence[str] | None = None) -> Findings:
    """Writes labels.csv and labels.html. Raises: SystemExit with code 2 if an argument is wrong."""
    cli.print_any_text()
    usage = "python labels.py RUN [--out FOLDER] [--action fix|drop] [--most N]"
    parser = cli.Parser(prog="labels.py", usage=usage, description=__doc__.partition("\nMethod:")[0])
    parser.add_argument("run", metavar="RUN", help="run folder of train.py, with folds for all images")
    parser.add_argument("--out", metavar="FOLDER", help="folder of labels.csv and labels.html (default RUN)")
    help_action = "write this action for every suspect, so that you remove it where you disagree (default: empty)"
    parser.add_argument("--action", choices=("fix", "drop"), help=help_action)
    help_most = "about how many images labels.html shows; labels.csv has all suspects (default %(default)s)"
    parser.add_argument("--most", type=int, default=300, metavar="N", help=help_most)
    options = parser.parse_args(argv)
    if options.most < 1:
        parser.error(f"--most must be at least 1, got {options.most}")
    folder = Path(options.out or options.run)
    file = folder / "labels.csv"
    try:
        if file.exists():
            raise BadInput(f"{file} exists, and may have your decisions: rename it, or choose a different --out")
        findings = find(options.run)
        folder.mkdir(parents=True, exist_ok=True)
        checkpoint.write_text(folder / "labels.html", make_page(findings, file, options.most))
        write_table(findings, file, options.action or "")
    except (BadInput, OSError) as error:
        cli.refuse(str(error), "labels.py", error)
    n = len(findings.targets)
    if not findings.run.folds:
        cli.print_note(f"the run has no folds, so only its {n:,} validation images are checked: train with --folds 5")
    if findings.run.predictions.groups is None:
        cli.print_note("the run is of an older version and has no groups: images of one group are not shown together")
    if findings.contradictions:
        images = sum(map(len, findings.contradictions))
        print(f"images that are identical to one with a different label: {images}. They are at the top")
    if hardly_known(findings):
        cli.print_note(hardly_known(findings), "warning")
    print(cli.wrapped(verdict(findings)))
    print(cli.wrapped(f"Share of wrong labels, estimated: {findings.chance.wrong:.1%} of {n:,} images."))
    print(cli.printable(f"files: {file}, {folder / 'labels.html'}"))
    print(cli.printable(f"next: write fix or drop in its column action, then: python train.py ... --fixes {file}"))
    return findings


if __name__ == "__main__":
    cli.use_utf8()
    main()

"""What a run did and what it gets wrong, on one page: RUN/report.html, or a comparison of several runs.

    python report.py runs/NAME                                # written at the end of every run as well
    python report.py runs/a runs/b runs/c --out abc.html      # curves on top of each other, a table, F1 class by class

The page is a single file without scripts and without requests: send it to anyone. It is made from what lies in the run
folder (config.json, log.csv, val_probs.npz), and works for a run that is still going on or was cut.
"""

from __future__ import annotations

import argparse
import math
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

import checkpoint
import cli
import metrics
import optim
import page
import pixels
import runs
from page import Html, Series, tag

MANY = 40  # classes above which a table of all of them is folded and their confusion matrix is a picture
PAIRS, SHOTS, SIDE = 9, 3, 112  # confused pairs that are shown, mistakes of each, and pixels of the longer side

# ---------------------------------------------------------------------------------------------------------------------
# Curves
# ---------------------------------------------------------------------------------------------------------------------


def column(run: runs.Run, name: str) -> list[float]:
    return [row[name] for row in run.log]


def learning_rates(run: runs.Run) -> tuple[list[float], list[float]] | None:
    """(updates, learning rates), the schedule played again; None if that does not give the rates of log.csv.

    Updates that were skipped are taken out at the end of their epoch: the log knows how many, not which.
    """
    options, updates = run.options, run.config.get("updates_an_epoch")
    if not updates or not run.log:
        return None
    given = argparse.Namespace(**options)
    more = cli.given(given, "step_epochs", "lr_decay", "plateau_patience", "min_lr", "t0", "t_mult")
    optimizer = optim.build_optimizer(given.optimizer, torch.nn.Linear(1, 1), given.lr, given.weight_decay)
    mode = cli.MONITORS[given.monitor]
    schedule = optim.build_schedule(given.scheduler, optimizer, given.epochs, updates, given.warmup, mode, **more)
    x, y = [], []
    for epoch, row in enumerate(run.log):
        if not math.isclose(schedule.lr, row["lr"], rel_tol=1e-6, abs_tol=1e-12):
            return None
        for update in range(updates - int(row["skipped_steps"] + row["nonfinite_steps"])):
            x.append(epoch * updates + update + 1)
            y.append(schedule.lr)
            schedule.step()
        schedule.epoch_end(row[f"val_{given.monitor}"])
    thin = math.ceil(len(x) / 600)
    return x[::thin], y[::thin]


def lr_chart(several: Sequence[runs.Run], names: Sequence[str]) -> Html:
    traces = [learning_rates(run) for run in several]
    if all(traces):
        series = [Series(name, *trace) for name, trace in zip(names, traces, strict=True)]
        return page.line_chart("Learning rate of each update", series, "update", with_legend=False)
    series = [Series(name, column(r, "epoch"), column(r, "lr")) for name, r in zip(names, several, strict=True)]
    return page.line_chart("Learning rate at the start of each epoch", series, "epoch", with_legend=False)


def curves_of_one(run: runs.Run) -> Html:
    best, epochs = run.best(), column(run, "epoch")
    mark = (best["epoch"], f"best, epoch {best['epoch']:.0f}")

    def chart(caption: str, lines: dict[str, str], about: str) -> Html:
        series = [Series(name, epochs, column(run, key)) for name, key in lines.items()]
        return page.line_chart(caption, series, "epoch", mark=mark, about=about)

    def losses(caption: str, kind: str) -> Html:
        lowest = run.best(f"val_{kind}", "min")
        about = f"Validation: lowest {lowest[f'val_{kind}']:.4g} in epoch {lowest['epoch']:.0f}."
        return chart(caption, {"training": f"train_{kind}", "validation": f"val_{kind}"}, about)

    charts = [losses(f"Loss ({run.options['loss']})", "loss")]
    if run.options["loss"] not in ("ce", "cross_entropy") or run.options["class_weights"] != "none":
        charts.append(losses("Plain cross-entropy, the same for every loss", "ce"))
    judged = {"macro F1, all classes": "val_f1", "macro F1, classes present": "val_f1_present"}
    about = f"Macro F1 {best['val_f1']:.4f} at best, {run.log[-1]['val_f1']:.4f} in the last epoch."
    charts.append(chart("Validation scores", judged | {"accuracy": "val_accuracy"}, about))
    return tag("div", *charts, lr_chart([run], ["learning rate"]), class_="grid2")


COMPARED = {
    "val_f1": "Macro F1, all classes", "val_f1_present": "Macro F1, classes present", "val_accuracy": "Accuracy",
    "val_ce": "Cross-entropy of validation", "val_loss": "Validation loss, each run's own",
    "train_loss": "Training loss, each run's own",
}  # fmt: skip


def curves_of_several(several: Sequence[runs.Run], names: Sequence[str]) -> Html:
    charts = [
        page.line_chart(
            caption, [Series(name, column(r, "epoch"), column(r, key)) for name, r in zip(names, several, strict=True)],
            "epoch", with_legend=False,
        )
        for key, caption in COMPARED.items()
    ]  # fmt: skip
    return page.join([page.legend(names), tag("div", *charts, lr_chart(several, names), class_="grid2")])


def epochs_table(run: runs.Run) -> Html:
    rows = ([f"{row['epoch']:.0f}", *(f"{row[key]:.5g}" for key in runs.LOG_COLUMNS[1:])] for row in run.log)
    return page.folded("Every epoch in numbers", page.table(runs.LOG_COLUMNS, rows, "log.csv"))


# ---------------------------------------------------------------------------------------------------------------------
# Classes
# ---------------------------------------------------------------------------------------------------------------------


def train_counts(run: runs.Run, key: str = "train_counts") -> list[float] | None:
    """Images of each class in training, or drawn in an epoch; of several folds their mean. None in an old run."""
    parts = [part.config.get(key) for part in run.folds or [run]]
    return np.mean(parts, axis=0).tolist() if all(parts) else None


def classes(run: runs.Run) -> Html:
    said, names = run.predictions, run.config["classes"]
    before, after = train_counts(run), train_counts(run, "drawn_counts")
    after = after if after != before else None  # each image once an epoch: nothing to add
    charts = []
    if before:
        order = np.argsort(before, kind="stable")[::-1]
        ranks = list(range(1, len(order) + 1))
        lines = [Series("in the training data", ranks, np.array(before)[order])]
        lines += [Series("in an epoch, after sampling", ranks, np.array(after)[order])] if after else []
        log = max(before) > 20 * max(min(before), 1)
        charts.append(page.line_chart("Images of each class", lines, "classes, most frequent first", log_y=log,
                                      about=f"{max(before):,.0f} to {min(before):,.0f} images"))  # fmt: skip
        f1 = said.matrix.f1("none").tolist()
        titles = [f"{names[c]}: F1 {f1[c]:.3f}, {before[c]:.0f} images" for c in range(len(f1))]
        charts.append(page.line_chart("F1 of each class over its training images",
                                      [Series("classes", before, f1, True, titles)], "training images", log_x=log,
                                      about="Each dot is a class; point at it for its name."))  # fmt: skip
    return page.join([tag("div", *charts, class_="grid2"), class_table(said, names, before, after)])


def class_table(said: runs.Predictions, names: Sequence[str], before: Any, after: Any) -> Html:
    """A line a class, the worst F1 first."""
    rows = said.matrix.per_class()
    rows.sort(key=lambda row: (row["support"] == 0, row["f1"]))
    most = max([*(before or []), *(after or []), 1])
    lines = []
    for row in rows:
        c = row["class"]
        line = [page.named(c, names), page.Bar(f"{row['f1']:.4f}", row["f1"]), f"{row['precision']:.4f}",
                f"{row['recall']:.4f}", f"{row['support']:,}"]  # fmt: skip
        line += [page.Bar(f"{counts[c]:,.0f}", counts[c] / most) for counts in (before, after) if counts]
        lines.append(line)
    head = ["class", "F1", "precision", "recall", "validation images"]
    head += ["training images"] if before else []
    head += ["drawn in an epoch"] if after else []
    if len(lines) <= MANY:
        return page.table(head, lines, "Every class, the lowest F1 first")
    shown = page.table(head, lines[: MANY // 2], f"The {MANY // 2} classes of the lowest F1")
    return page.join([shown, page.folded(f"All {len(lines)} classes", page.table(head, lines, "Every class"))])


# ---------------------------------------------------------------------------------------------------------------------
# Mistakes
# ---------------------------------------------------------------------------------------------------------------------


def confusion(run: runs.Run) -> Html:
    counts, names = run.predictions.matrix.matrix.numpy(), run.config["classes"]
    caption = "Rows are true classes, columns predicted ones; the colour is the share of the row, the number the images"
    if len(names) <= MANY:
        return page.heat_table(counts, names, caption)
    errors = counts.sum(1) + counts.sum(0) - 2 * counts.diagonal()
    worst = np.sort(np.argsort(-errors, kind="stable")[: MANY // 2])
    all_of_it = f"All {len(names)} classes, a pixel a cell: true downwards, predicted to the right"
    some = page.heat_table(counts, names, f"The {len(worst)} classes in most errors. {caption}", worst)
    return page.join([page.heat_picture(counts, all_of_it), some])


def mistakes(run: runs.Run) -> Html:
    """The most confused pairs, with the images of each that the network was most sure of."""
    said, names, parts = run.predictions, run.config["classes"], []
    preds, confidence = said.probs.argmax(1), said.probs.max(1)
    for target, pred, count in said.matrix.most_confused(PAIRS):
        rows = np.flatnonzero((said.targets == target) & (preds == pred))
        rows = rows[np.argsort(-confidence[rows], kind="stable")][:SHOTS]
        shots = []
        for i in rows:
            what = f"{names[target]} taken for {names[pred]}, {confidence[i]:.1%} sure"
            path = str(said.paths[i])
            shots.append(tag("li", thumbnail(run, path, what), short_path(path), tag("br"),
                             tag("span", f"{confidence[i]:.1%} sure", class_="dim")))  # fmt: skip
        heading = tag("h3", f"{count} × ", tag("bdi", names[target]), " → ", tag("bdi", names[pred]))
        parts.append(tag("div", heading, tag("ul", *shots, class_="shots")))
    return tag("div", *parts, class_="grid2") if parts else tag("p", "There are none.")


def short_path(path: str) -> Html:
    *folder, name = Path(path).parts[-2:]
    return tag("span", *(part for f in folder for part in (tag("bdi", f), "/")), tag("bdi", name), title=path)


def thumbnail(run: runs.Run, path: str, alt: str) -> Html:
    """The image, small; where the file is gone or broken, a word in its place."""
    try:
        there = os.path.join(run.config.get("cwd", ""), path)  # where the run was started
        image = Image.fromarray(pixels.decode_file(there).permute(1, 2, 0).numpy())
    except Exception as error:  # whatever a decoder says of a broken file
        return tag("span", f"not readable: {pixels.describe_error(error)}", class_="gone")
    is_small = max(image.size) <= SIDE // 2
    image.thumbnail((SIDE, SIDE))
    return page.picture(image, alt, class_="small" if is_small else None)


def calibration(run: runs.Run) -> Html:
    said = run.predictions
    parts = metrics.calibration(said.probs, said.targets)
    n, confidence, accuracy = map(list, zip(*parts, strict=True))
    mean, right = np.average(confidence, weights=n), np.average(accuracy, weights=n)
    word = "over-confident" if mean > right else "under-confident"
    about = (
        f"The network is {mean:.1%} sure on average and right in {right:.1%}: {word}. Expected calibration error "
        f"{metrics.expected_calibration_error(said.probs, said.targets):.3f} (15 bins)."
    )
    lines = [Series("this run", confidence, accuracy), Series("perfect", [0, 1], [0, 1])]
    rows = ([f"{c:.3f}", f"{a:.3f}", page.Bar(f"{k:,}", k / max(n))] for k, c, a in parts)
    chart = page.line_chart("Accuracy over confidence", lines, "confidence", about=about)
    numbers = page.table(["confidence", "accuracy", "images"], rows, "Images by the confidence of their prediction")
    return tag("div", chart, tag("div", numbers), class_="grid2")


# ---------------------------------------------------------------------------------------------------------------------
# The page
# ---------------------------------------------------------------------------------------------------------------------


def summary(run: runs.Run) -> Html:
    said = run.predictions
    if not said:
        begun = sum(bool(fold.log) for fold in run.folds)
        has = f"{begun} folds have results; what all images say comes with the last." if begun else ""
        return tag("p", has or "No epoch has been validated yet.")
    matrix, names = said.matrix, run.config["classes"]
    low, high = matrix.f1_interval()
    worst, worst_f1 = matrix.worst_class()
    entries = [("macro F1, all classes", f"{matrix.f1():.4f}", f"95 % interval {low:.4f} to {high:.4f}")]
    entries += [("macro F1, classes present", f"{matrix.f1('macro_present'):.4f}", "scikit-learn's default")]
    entries += [("accuracy", f"{matrix.accuracy():.4f}", f"{len(said.targets):,} images")]
    entries += [("worst class", f"{worst_f1:.4f}", f"F1 of {names[worst]}, {int(matrix.support()[worst])} images")]
    if run.log:
        done = f"of {len(run.log)} done, {run.options['epochs']} planned"
        entries += [("best epoch", f"{run.best()['epoch']:.0f}", done)]
    seconds = sum(row["seconds"] for part in run.folds or [run] for row in part.log)
    entries += [("time", f"{seconds / 60:.1f} min", "training and validation")]
    judged = "all images, each by the fold that did not see it" if run.folds else "the validation images"
    caution = f"Judged on {judged}; the best epoch was chosen on the same images, which flatters it a little."
    return page.join([page.cards(entries), tag("p", caution, class_="about")])


def about_run(run: runs.Run) -> Html:
    """The command, what was noted at the start, versions and every option."""
    config = run.config
    notes = [tag("li", note) for part in [run, *run.folds] for note in part.config.get("notes", [])]
    facts = {"started": config.get("started", "unknown"), **config["versions"], "data's checksum": config["data"][:16]}
    return page.join([
        tag("pre", config["command"]), tag("ul", *notes) if notes else "",
        page.table(["what", "value"], ([key, page.text(value)] for key, value in facts.items()), "When and with what"),
        page.folded("Every option", page.table(["option", "value"], (
            [f"--{name.replace('_', '-')}", page.text("" if value is None else value)]
            for name, value in run.options.items()
        ), "As resolved at the start")),
    ])  # fmt: skip


def of_one(run: runs.Run) -> str:
    parts = run.folds or [run]
    started = [part for part in parts if part.log]
    sections: list[tuple[str, Any]] = []
    if started and run.folds:
        names = [part.folder.name for part in started]
        sections += [("Folds", runs_table(started, names)), ("Curves", curves_of_several(started, names))]
    elif started:
        sections += [("Curves", page.join([curves_of_one(run), epochs_table(run)]))]
    if run.predictions:
        sections += [
            ("Classes", classes(run)), ("Confusion", confusion(run)), ("Worst mistakes", mistakes(run)),
            ("Calibration", calibration(run)),
        ]  # fmt: skip
    sections.append(("The run", about_run(run)))
    title = f"{'/'.join(run.folder.resolve().parts[-2:])}: {run.options['model']}, {run.options['loss']}"
    return page.document(title, sections, summary(run))


def differing(several: Sequence[runs.Run]) -> list[str]:
    """Names of the options that are not the same in all runs."""
    names = [name for name in several[0].options if name not in {"out", *cli.MAY_CHANGE}]
    return [name for name in names if len({str(run.options.get(name)) for run in several}) > 1]


def runs_table(several: Sequence[runs.Run], names: Sequence[str]) -> Html:
    varied = differing(several)
    head = ["run", "macro F1", "95 % interval", "accuracy", "best epoch", "its cross-entropy"]
    head += ["F1 of the best-loss model", "minutes", "images/s", *(f"--{name.replace('_', '-')}" for name in varied)]
    lines = []
    for run, name in zip(several, names, strict=True):
        best, (low, high) = run.best(), run.predictions.matrix.f1_interval()
        lines.append([
            name, page.Bar(f"{best['val_f1']:.4f}", best["val_f1"]), f"{low:.4f} to {high:.4f}",
            f"{best['val_accuracy']:.4f}", f"{best['epoch']:.0f}", f"{best['val_ce']:.4f}",
            f"{run.best('val_loss', 'min')['val_f1']:.4f}", f"{sum(column(run, 'seconds')) / 60:.1f}",
            f"{np.mean(column(run, 'images_per_second')):.0f}", *(str(run.options.get(key)) for key in varied),
        ])  # fmt: skip
    about = "The interval is over images alone; whether a difference is real takes several seeds: compare.py."
    return page.join([page.table(head, lines, "Best epoch of each run"), tag("p", about, class_="about")])


def f1_by_class(several: Sequence[runs.Run], names: Sequence[str]) -> Html:
    """A line a class, a column a run; the classes whose F1 differs most first if there are many."""
    f1 = np.array([run.predictions.matrix.f1("none").numpy() for run in several]).T  # (C, R)
    labels, order = several[0].config["classes"], np.argsort(f1.min(1) - f1.max(1), kind="stable")
    rows = sorted(order[:MANY])
    head = [tag("th", name, scope="col") for name in ("class", *names)]
    lines = [
        tag("tr", tag("th", page.named(c, labels), scope="row"), *(page.heat(f"{value:.3f}", value) for value in f1[c]))
        for c in rows
    ]
    caption = "F1 of each class" if len(rows) == len(f1) else f"F1 of the {MANY} classes in which the runs differ most"
    return page.scrolling_table(head, lines, caption, "heat")


def of_several(several: Sequence[runs.Run]) -> str:
    """ValueError if a run has no validated epoch, or other classes than the first."""
    for run in several:
        if not run.log or not run.predictions:
            raise ValueError(f"{run.folder} has no validated epoch yet")
        if run.config["classes"] != several[0].config["classes"]:
            raise ValueError(f"{run.folder} and {several[0].folder} have other classes")
    folder = os.path.commonpath([run.folder.resolve().parent for run in several])
    names = [os.path.relpath(run.folder.resolve(), folder) for run in several]
    sections = [
        ("Table", runs_table(several, names)), ("Curves", curves_of_several(several, names)),
        ("Classes", f1_by_class(several, names)),
    ]  # fmt: skip
    return page.document(f"{len(several)} runs", sections)


def write(folders: Sequence[str | Path], out: str | Path | None = None) -> Path:
    """Writes the page of one run, or of several, and returns its path (default report.html in the one run's folder).

    Raises: ValueError that names what is no run, OSError if the page cannot be written.
    """
    several = [runs.read(folder) for folder in folders]
    out = Path(out) if out else several[0].folder / "report.html"
    checkpoint.write_text(out, of_one(several[0]) if len(several) == 1 else of_several(list(flattened(several))))
    return out


def flattened(several: Sequence[runs.Run]) -> Iterator[runs.Run]:
    """Runs, those of several folds as their folds, as far as these have results."""
    for run in several:
        yield from [fold for fold in run.folds if fold.log] or [run]


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        usage="python report.py RUN [RUN ...] [--out FILE.html]", allow_abbrev=False, description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("runs", nargs="+", metavar="RUN", help="run folders of train.py")
    parser.add_argument("--out", help="the page (default RUN/report.html; needed for several runs)")
    options = parser.parse_args(argv)
    if len(options.runs) > 1 and not options.out:
        parser.error("--out is missing: where should the page of several runs be written?")
    try:
        print(write(options.runs, options.out))
    except (ValueError, OSError) as error:
        print(f"report.py: error: {error}", file=sys.stderr)
        raise SystemExit(2) from error


if __name__ == "__main__":
    main()

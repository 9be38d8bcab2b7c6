"""One HTML page about a run (curves, scores, mistakes), or about several runs.

    python report.py runs/NAME                    # writes runs/NAME/report.html
    python report.py runs/a runs/b --out ab.html  # curves in the same charts
    python report.py runs/NAME --cam              # and where the network looked

train.py writes the page of its run at the end. The page is a single file
without scripts and without requests: you can send it to anyone. It is made from
config.json, log.csv, updates.csv and val_probs.npz in the run folder. The run
may be unfinished. Only --cam loads the network, best_f1.pt, and runs it.
"""

from __future__ import annotations

import functools
import math
import os
import shlex
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

import augment
import cam
import checkpoint
import cli
import metrics
import models
import page
import pixels
import predictors
import runs
from page import Html, Series, tag
from runs import BadInput

MANY = 40  # with more classes, the table of all classes is folded and the confusion matrix is an image
NOTES = 3  # more notes, as those of each fold, are folded
POINTS = 600  # at most this many updates are drawn
PAIRS, SHOTS, SIDE = 9, 3, 112  # confused pairs shown, example images of each, and pixels of their longer side
HEAT = (255, 120, 0)  # colour of the parts of an image that a network looked at, in a grey picture

# ---------------------------------------------------------------------------------------------------------------------
# Curves
# ---------------------------------------------------------------------------------------------------------------------


def column(run: runs.Run, name: str) -> list[float]:
    return [row[name] for row in run.log]


def of_updates(run: runs.Run, name: str) -> tuple[list[float], list[float]] | None:
    """(updates, a column) of updates.csv, thinned to POINTS. None if the file is missing, as in older runs."""
    if not run.updates or not run.updates[name]:
        return None
    every = math.ceil(len(run.updates[name]) / POINTS)
    return run.updates["update"][::every], run.updates[name][::every]


def mean_log(run: runs.Run) -> list[dict[str, float]]:
    """The rows of log.csv. For a run with several folds: the mean over the folds, of the epochs that all have."""
    every = zip(*(part.log for part in run.folds or [run]), strict=False)
    return [{name: sum(row[name] for row in rows) / len(rows) for name in rows[0]} for rows in every]


def lr_chart(several: Sequence[runs.Run], names: Sequence[str]) -> Html:
    several = [(run.folds or [run])[0] for run in several]  # the same in all folds
    traces = [of_updates(run, "lr") for run in several]
    if all(traces):
        series = [Series(name, *trace) for name, trace in zip(names, traces, strict=True)]
        return page.line_chart("Learning rate of each update", series, "update", with_legend=False)
    series = [Series(name, column(r, "epoch"), column(r, "lr")) for name, r in zip(names, several, strict=True)]
    return page.line_chart("Learning rate at the start of each epoch", series, "epoch", with_legend=False)


def update_charts(run: runs.Run) -> Html:
    """Gradient norm of each update, of those that have one, and the GPU memory of each epoch, if a GPU was used."""
    charts = []
    if run.updates and any(run.updates["grad_norm"]):
        series = [Series("gradient norm", *of_updates(run, "grad_norm"))]
        about = f"Before clipping. Largest: {max(run.updates['grad_norm']):.4g}."
        charts.append(page.line_chart("Gradient norm of each update", series, "update", log_y=True, about=about))
    memory = column(run, "gpu_memory")
    if any(memory):
        series = [Series("GPU memory", column(run, "epoch"), memory)]
        about = f"Largest: {max(memory):.2f} GiB allocated."
        charts.append(page.line_chart("GPU memory of each epoch, GiB", series, "epoch", about=about))
    return page.join(charts)


def curves_of_one(run: runs.Run) -> Html:
    best, epochs = run.best(), column(run, "epoch")
    mark = (best["epoch"], f"best epoch: {best['epoch']:.0f}")

    def chart(caption: str, lines: dict[str, str], about: str) -> Html:
        series = [Series(name, epochs, column(run, key)) for name, key in lines.items()]
        return page.line_chart(caption, series, "epoch", mark=mark, about=about)

    def losses(caption: str, kind: str) -> Html:
        lowest = run.best(f"val_{kind}", "min")
        about = f"Lowest validation loss: {lowest[f'val_{kind}']:.4g} in epoch {lowest['epoch']:.0f}."
        return chart(caption, {"training": f"train_{kind}", "validation": f"val_{kind}"}, about)

    charts = [losses(f"Loss ({run.options['loss']})", "loss")]
    if run.options["loss"] not in ("ce", "cross_entropy") or run.options["class_weights"] != "none":
        charts.append(losses("Cross-entropy, without weights or smoothing", "ce"))
    scores = {"macro F1, all classes": "val_f1", "macro F1, classes present": "val_f1_present"}
    about = f"Macro F1: {best['val_f1']:.4f} in the best epoch, {run.log[-1]['val_f1']:.4f} in the last epoch."
    charts.append(chart("Validation scores", scores | {"accuracy": "val_accuracy"}, about))
    return tag("div", *charts, lr_chart([run], ["learning rate"]), update_charts(run), class_="grid2")


COMPARED = {
    "val_f1": "Macro F1, all classes",
    "val_f1_present": "Macro F1, classes present",
    "val_accuracy": "Accuracy",
    "val_ce": "Validation cross-entropy",
    "val_loss": "Validation loss (each run's own loss)",
    "train_loss": "Training loss (each run's own loss)",
}


def curves_of_several(several: Sequence[runs.Run], names: Sequence[str]) -> Html:
    charts = []
    for key, caption in COMPARED.items():
        logs = zip(names, map(mean_log, several), strict=True)
        series = [Series(name, [row["epoch"] for row in log], [row[key] for row in log]) for name, log in logs]
        charts.append(page.line_chart(caption, series, "epoch", with_legend=False))
    return page.join([page.legend(names), tag("div", *charts, lr_chart(several, names), class_="grid2")])


def epochs_table(run: runs.Run) -> Html:
    rows = ([f"{row['epoch']:.0f}", *(f"{row[key]:.5g}" for key in runs.LOG_COLUMNS[1:])] for row in run.log)
    return page.folded("All epochs in numbers", page.table(runs.LOG_COLUMNS, rows, "log.csv"))


# ---------------------------------------------------------------------------------------------------------------------
# Classes
# ---------------------------------------------------------------------------------------------------------------------


def classes(run: runs.Run) -> Html:
    predictions, names = run.predictions, run.config["classes"]
    train, sampled = run.train_counts(), run.train_counts("drawn_counts")
    sampled = sampled if sampled != train else None  # the same if every image is sampled once
    charts = []
    if train:
        order = np.argsort(train, kind="stable")[::-1]
        ranks = list(range(1, len(order) + 1))
        series = [Series("in the training set", ranks, np.array(train)[order])]
        series += [Series("sampled per epoch", ranks, np.array(sampled)[order])] if sampled else []
        log = max(train) > 20 * max(min(train), 1)
        caption, x_label = "Images of each class in the training set", "classes, most frequent first"
        about = f"Largest class: {max(train):,.0f} images. Smallest class: {min(train):,.0f} images."
        charts.append(page.line_chart(caption, series, x_label, log_y=log, about=about))
        f1 = predictions.matrix.f1("none").tolist()
        titles = [f"{names[c]}: F1 {f1[c]:.3f}, {train[c]:.0f} training images" for c in range(len(f1))]
        series = [Series("classes", train, f1, dots=True, titles=titles)]
        caption, x_label = "F1 of each class by its number of training images", "training images"
        about = "Each dot is a class. Point at a dot to see its name."
        charts.append(page.line_chart(caption, series, x_label, log_x=log, about=about))
    pseudo = run.train_counts("pseudo_counts")
    pseudo = pseudo if pseudo and any(pseudo) else None
    tables = [frequency_table(predictions, train), class_table(predictions, names, train, sampled, pseudo)]
    return page.join([tag("div", *charts, class_="grid2"), *filter(None, tables)])


def frequency_table(predictions: runs.Predictions, train: list[float] | None) -> Html | None:
    """Scores of head, medium and tail classes; None if the classes are not long-tailed."""
    rows = predictions.matrix.by_frequency(train) if train else []
    if not rows:
        return None
    lines = [
        [row["group"], f"{row['f1']:.4f}", f"{row['accuracy']:.4f}", f"{len(row['classes'])}"]
        + [f"{row['fewest']:,} to {row['most']:,}"]
        for row in rows
    ]
    head = ["classes", "macro F1", "mean recall", "number", "training images of a class"]
    return page.table(head, lines, "Head, medium and tail: classes with many, some and few training images")


def class_table(
    predictions: runs.Predictions,
    names: Sequence[str],
    train: list[float] | None,
    sampled: list[float] | None,
    pseudo: list[float] | None = None,
) -> Html:
    """One row per class, the lowest F1 first; `train`, `sampled` and `pseudo` are images of each class."""
    rows = predictions.matrix.per_class()
    rows.sort(key=lambda row: (row["support"] == 0, row["f1"]))
    most = max([*(train or []), *(sampled or []), 1])
    lines = []
    for row in rows:
        c, numbers = row["class"], [f"{row['precision']:.4f}", f"{row['recall']:.4f}", f"{row['support']:,}"]
        bars = [page.Bar(f"{counts[c]:,.0f}", counts[c] / most) for counts in (train, sampled, pseudo) if counts]
        lines.append([page.named(c, names), page.Bar(f"{row['f1']:.4f}", row["f1"]), *numbers, *bars])
    head = ["class", "F1", "precision", "recall", "validation images"]
    head += ["training images"] if train else []
    head += ["sampled per epoch"] if sampled else []
    head += ["pseudo-labels"] if pseudo else []
    if len(lines) <= MANY:
        return page.table(head, lines, "All classes, lowest F1 first")
    shown = page.table(head, lines[: MANY // 2], f"The {MANY // 2} classes with the lowest F1")
    return page.join([shown, page.folded(f"All {len(lines)} classes", page.table(head, lines, "All classes"))])


# ---------------------------------------------------------------------------------------------------------------------
# Mistakes
# ---------------------------------------------------------------------------------------------------------------------


def confusion(run: runs.Run) -> Html:
    counts, names = run.predictions.matrix.matrix.numpy(), run.config["classes"]
    axes = "Row: true class. Column: predicted class."
    caption = f"{axes} Number: images. Colour: share of the images in the row."
    if len(names) <= MANY:
        return page.heat_table(counts, names, caption)
    errors = counts.sum(1) + counts.sum(0) - 2 * counts.diagonal()
    worst = np.sort(np.argsort(-errors, kind="stable")[: MANY // 2])
    picture = page.heat_picture(counts, f"All {len(names)} classes, one pixel per cell. {axes}")
    return page.join(
        [picture, page.heat_table(counts, names, f"The {len(worst)} classes with the most errors. {caption}", worst)]
    )


def factors(run: runs.Run) -> list[tuple[str, Html]]:
    """A section with the scores and the confusion matrix of each factor, if the classes combine factors."""
    parts = []
    for name, (values, ids) in run.factors.items():
        matrix = run.predictions.matrix.regroup(ids)
        caption = f"{name}: macro F1 {matrix.f1():.4f}, accuracy {matrix.accuracy():.4f}"
        parts.append(page.heat_table(matrix.matrix.numpy(), values, caption))
    about = f"The same predictions for each factor alone. Macro F1 of the classes: {run.predictions.matrix.f1():.4f}."
    return [("Factors", page.join([tag("p", about, class_="about"), *parts]))] if parts else []


def mistakes(run: runs.Run, look: Look | None = None) -> Html:
    """The most confused pairs of classes, each with the wrong predictions of the highest confidence.

    With `look`, the picture of where the network looked is beside each image.
    """
    predictions, names, parts = run.predictions, run.config["classes"], []
    preds, confidence = predictions.probs.argmax(1), predictions.probs.max(1)
    pairs = predictions.matrix.most_confused(PAIRS)
    chosen = []
    for target, pred, _ in pairs:
        rows = np.flatnonzero((predictions.targets == target) & (preds == pred))
        chosen.append(rows[np.argsort(-confidence[rows], kind="stable")][:SHOTS])
    wrong = {str(predictions.paths[i]): int(preds[i]) for rows in chosen for i in rows}
    looked, about_look = look(run, wrong) if look and wrong else ({}, "")
    for (target, pred, count), rows in zip(pairs, chosen, strict=True):
        shots = []
        for i in rows:
            path, sure = str(predictions.paths[i]), f"confidence {confidence[i]:.1%}"
            image = thumbnail(run, path, f"true class {names[target]}, predicted {names[pred]}, {sure}")
            image = tag("div", image, looked[path], class_="pair") if path in looked else image
            shots.append(tag("li", image, short_path(path), tag("br"), tag("span", sure, class_="dim")))
        heading = tag("h3", f"{count} × ", tag("bdi", names[target]), " → ", tag("bdi", names[pred]))
        parts.append(tag("div", heading, tag("ul", *shots, class_="shots pairs" if looked else "shots")))
    if not parts:
        return tag("p", "No image is misclassified.")
    about = "Number of images × true class → predicted class, with the wrong predictions of the highest confidence."
    texts = [tag("p", text, class_="about") for text in (about, about_look) if text]
    return page.join([*texts, tag("div", *parts, class_="grid2")])


def short_path(path: str) -> Html:
    *folder, name = Path(path).parts[-2:]
    return tag("span", *(part for f in folder for part in (tag("bdi", f), "/")), tag("bdi", name), title=path)


def file_of(run: runs.Run, path: str) -> str:
    """The image file of a path, which is relative to where the run was started."""
    return os.path.join(run.config.get("cwd", ""), path)


def thumbnail(run: runs.Run, path: str, alt: str) -> Html:
    """The image, small. If the file is missing or damaged, a text instead."""
    try:
        image = Image.fromarray(pixels.decode_file(file_of(run, path)).permute(1, 2, 0).numpy())
    except Exception as error:  # a decoder can raise anything
        return tag("span", f"cannot read the image: {pixels.describe_error(error)}", class_="gone")
    return small_picture(image, alt)


def small_picture(image: Image.Image, alt: str) -> Html:
    is_small = max(image.size) <= SIDE // 2
    image.thumbnail((SIDE, SIDE))
    return page.picture(image, alt, class_="small" if is_small else None)


# (run, predicted class of each image path) -> (picture of each path, a text for the page)
Look = Callable[[runs.Run, dict[str, int]], tuple[dict[str, Html], str]]


def where_it_looked(
    run: runs.Run, wrong: dict[str, int], device: torch.device, functions: Sequence[str] = ()
) -> tuple[dict[str, Html], str]:
    """The Grad-CAM picture of each image that can be read: what raises the logit of the class in `wrong`.

    Each image goes through the best_f1.pt of its own fold, which was not trained on it.

    functions: the FILE.py:FUNCTION that the user typed. A checkpoint cannot execute a different file.
    Raises: BadInput if a checkpoint is missing, damaged, or not of this run.
    """
    looked: dict[str, Html] = {}
    for part in run.folds or [run]:
        own = [path for path in part.predictions.paths.tolist() if path in wrong] if part.predictions else []
        if not own:
            continue
        predictor = predictors.load_predictor(part.folder / "best_f1.pt", device, functions)
        if predictor.saved["classes"] != run.config["classes"]:
            raise BadInput(f"{predictor.path} has different classes than {run.folder / 'config.json'}: train again")
        for path in own:
            try:
                image = pixels.fitted(pixels.decode_file(file_of(run, path)), *predictor.shape)
            except Exception:  # a decoder can raise anything; the thumbnail has the reason
                continue
            x = torch.from_numpy(image).permute(2, 0, 1)[None].to(device)
            x = augment.normalize(x, predictor.saved["mean"], predictor.saved["std"])
            maps = cam.grad_cam(predictor.net, x, torch.tensor([wrong[path]]))
            if maps is None:
                name = predictor.saved["model_name"]
                return {}, f"{name} has no feature map with height and width, so --cam cannot show where it looked."
            name = run.config["classes"][wrong[path]]
            looked[path] = small_picture(tinted(image, cam.enlarged(maps, image.shape[:2])[0]), f"evidence for {name}")
    return looked, (
        "Beside each image: the network's input in grey, with the parts that raise the logit of the predicted class in "
        "orange (Grad-CAM on the last feature map). Without orange, no part raises it."
    )


def tinted(image: np.ndarray, heat: torch.Tensor) -> Image.Image:
    """The image (H, W, 3) in grey, and orange where `heat` (H, W), from 0 to 1, is large."""
    grey = np.asarray(Image.fromarray(image).convert("L"), dtype=np.float32)[..., None]
    share = 0.7 * heat.cpu().numpy()[..., None]
    return Image.fromarray(((1 - share) * grey + share * np.array(HEAT)).round().astype(np.uint8))


def calibration(run: runs.Run) -> Html:
    predictions = run.predictions
    parts = metrics.calibration(predictions.probs, predictions.targets)
    n, confidence, accuracy = map(list, zip(*parts, strict=True))
    mean_confidence, mean_accuracy = np.average(confidence, weights=n), np.average(accuracy, weights=n)
    word = "overconfident" if mean_confidence > mean_accuracy else "underconfident"
    error = metrics.expected_calibration_error(predictions.probs, predictions.targets)
    about = (
        f"Mean confidence {mean_confidence:.1%}, accuracy {mean_accuracy:.1%}: the network is {word}. "
        f"Expected calibration error (ECE): {error:.3f}, with 15 bins."
    )
    lines = [Series("this run", confidence, accuracy), Series("perfect calibration", [0, 1], [0, 1])]
    rows = ([f"{c:.3f}", f"{a:.3f}", page.Bar(f"{k:,}", k / max(n))] for k, c, a in parts)
    chart = page.line_chart("Reliability diagram: accuracy by confidence", lines, "confidence", about=about)
    numbers = page.table(["mean confidence", "accuracy", "images"], rows, "Confidence bins")
    return tag("div", chart, tag("div", numbers), class_="grid2")


# ---------------------------------------------------------------------------------------------------------------------
# The page
# ---------------------------------------------------------------------------------------------------------------------


def warnings(several: Sequence[runs.Run]) -> Html:
    """What makes all scores doubtful, each text once. Of the folds of a run, only the first one that has warnings."""
    texts: list[str] = []
    for run in several:
        texts += next(filter(None, (part.config.get("warnings") for part in [run, *run.folds])), [])
    return page.warning(dict.fromkeys(texts))


def notes(run: runs.Run) -> Html:
    """What the reader should know before the scores: that the run is not finished, and the notes of its start."""
    texts = [note for part in [run, *run.folds] for note in part.config.get("notes", [])]
    parts = run.folds or [run]
    if not run.is_finished and not all(part.is_finished or part.is_stopped_early for part in parts):
        epochs = f"{sum(len(part.log) for part in parts)} of {run.planned_epochs}"
        command = tag("code", f"python train.py --resume {shlex.quote(str(run.folder))}")
        texts.insert(0, page.join([f"Not finished, epochs: {epochs}. It is still training, or was stopped: ", command]))
    lines = [tag("li", text) for text in dict.fromkeys(texts)]
    first, rest = (tag("ul", *part, class_="notes") if part else "" for part in (lines[:NOTES], lines[NOTES:]))
    return page.join([first, page.folded(f"More notes: {len(lines) - NOTES}", rest) if rest else ""])


def summary(run: runs.Run) -> Html:
    """The key figures at the top of the page."""
    predictions = run.predictions
    if not predictions:
        started = sum(bool(fold.log) for fold in run.folds)
        text = f"Folds with results: {started}. The scores of all images are shown when the last fold is finished."
        return tag("p", text if started else "No epoch has been validated yet.")
    matrix, names = predictions.matrix, run.config["classes"]
    low, high = matrix.f1_interval()
    worst, worst_f1 = matrix.worst_class()
    entries = [("macro F1, all classes", f"{matrix.f1():.4f}", f"95 % interval {low:.4f} to {high:.4f}")]
    entries += [("macro F1, classes present", f"{matrix.f1('macro_present'):.4f}", "scikit-learn's default")]
    entries += [("accuracy", f"{matrix.accuracy():.4f}", f"{len(predictions.targets):,} images")]
    entries += [("worst class", f"{worst_f1:.4f}", f"F1 of {names[worst]}, images: {int(matrix.support()[worst])}")]
    if run.log:
        done = f"epochs done: {len(run.log)} of {run.options['epochs']}"
        entries += [("best epoch", f"{run.best()['epoch']:.0f}", done)]
    seconds = sum(row["seconds"] for part in run.folds or [run] for row in part.log)
    entries += [("time", f"{seconds / 60:.1f} min", "training and validation")]
    images = "the out-of-fold predictions of all images" if run.folds else "the validation images"
    about = (
        f"All scores are for {images}. The best epoch was chosen by its macro F1 on the same images, so these scores "
        "are a little too high."
    )
    return page.join([page.cards(entries), tag("p", about, class_="about")])


def option_text(value: Any) -> str:
    return "not set" if value is None else str(value)


def about_run(run: runs.Run) -> Html:
    """The command, versions and all options."""
    config = run.config
    facts = {"started": config.get("started", "unknown"), **config["versions"], "data checksum": config["data"][:16]}
    versions = ([name, page.text(value)] for name, value in facts.items())
    options = ([cli.flag_of(name), page.text(option_text(value))] for name, value in run.options.items())
    return page.join(
        [
            tag("pre", config["command"]),
            page.table(["name", "value"], versions, "Start and versions"),
            page.folded(
                "All options", page.table(["option", "value"], options, "Values that the run uses, with defaults")
            ),
        ]
    )


def of_one(run: runs.Run, look: Look | None = None) -> str:
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
            ("Classes", classes(run)),
            ("Confusion matrix", confusion(run)),
            *factors(run),
            ("Most confused classes", mistakes(run, look)),
            ("Calibration", calibration(run)),
        ]
    sections.append(("Settings", about_run(run)))
    title = f"{'/'.join(run.folder.resolve().parts[-2:])}: {run.options['model']}, {run.options['loss']}"
    return page.document(title, sections, page.join([warnings([run]), notes(run), summary(run)]))


def differing(several: Sequence[runs.Run]) -> list[str]:
    """Names of the options that differ between the runs."""
    names = [name for name in several[0].options if name not in {"out", *cli.MAY_CHANGE}]
    return [name for name in names if len({str(run.options.get(name)) for run in several}) > 1]


def runs_table(several: Sequence[runs.Run], names: Sequence[str]) -> Html:
    """One row per run: the scores of its best epoch, and the options in which the runs differ."""
    options = differing(several)
    head = ["run", "macro F1", "95 % interval", "accuracy", "best epoch", "validation cross-entropy"]
    head += ["macro F1 of the best-loss model", "minutes", "images/s"]
    head += map(cli.flag_of, options)
    lines = []
    for run, name in zip(several, names, strict=True):
        parts, matrix = run.folds or [run], run.predictions.matrix
        (low, high), rows = matrix.f1_interval(), [row for part in parts for row in part.log]
        line = [name, page.Bar(f"{matrix.f1():.4f}", matrix.f1()), f"{low:.4f} to {high:.4f}"]
        line += [f"{matrix.accuracy():.4f}", page.text(", ".join(f"{part.best()['epoch']:.0f}" for part in parts))]
        line += [f"{np.mean([part.best()['val_ce'] for part in parts]):.4f}"]
        line += [f"{np.mean([part.best('val_loss', 'min')['val_f1'] for part in parts]):.4f}"]
        line += [f"{sum(row['seconds'] for row in rows) / 60:.1f}"]
        line += [f"{np.mean([row['images_per_second'] for row in rows]):.0f}"]
        lines.append(line + [page.text(option_text(run.options.get(option))) for option in options])
    about = (
        "The interval covers different validation images, but not different seeds. To find out whether a difference is "
        "real, use compare.py with several seeds."
    )
    if any(run.folds for run in several):
        about += (
            " A run with several folds has its out-of-fold scores; cross-entropy and best-loss are means over folds."
        )
    return page.join([page.table(head, lines, "Best epoch of each run"), tag("p", about, class_="about")])


def f1_by_class(several: Sequence[runs.Run], names: Sequence[str]) -> Html:
    """One row per class, one column per run. With many classes, only those whose F1 differs most."""
    f1 = np.array([run.predictions.matrix.f1("none").numpy() for run in several]).T  # (C, R)
    labels, order = several[0].config["classes"], np.argsort(f1.min(1) - f1.max(1), kind="stable")
    rows = sorted(order[:MANY])
    head = [tag("th", name, scope="col") for name in ("class", *names)]
    lines = [
        tag("tr", tag("th", page.named(c, labels), scope="row"), *(page.heat(f"{value:.3f}", value) for value in f1[c]))
        for c in rows
    ]
    caption = (
        "F1 of each class" if len(rows) == len(f1) else f"The {MANY} classes whose F1 differs most between the runs"
    )
    return page.scrolling_table(head, lines, caption, "heat")


def of_several(several: Sequence[runs.Run]) -> str:
    """BadInput if a run has no validated epoch, or if its classes differ from those of the first run."""
    for run in several:
        if not run.predictions or not all(part.log for part in run.folds or [run]):
            raise BadInput(f"{run.folder} has no results yet: wait until its first epoch is finished")
        if run.config["classes"] != several[0].config["classes"]:
            raise BadInput(
                f"{run.folder} and {several[0].folder} have different classes; only runs with the same classes can be "
                "on one page"
            )
    folder = os.path.commonpath([run.folder.resolve().parent for run in several])
    names = [os.path.relpath(run.folder.resolve(), folder) for run in several]
    names = [
        f"{name} ({len(run.folds)} folds)" if run.folds else name for name, run in zip(names, several, strict=True)
    ]
    sections = [
        ("Scores", runs_table(several, names)),
        ("Curves", curves_of_several(several, names)),
        ("Classes", f1_by_class(several, names)),
    ]
    return page.document(f"{len(several)} runs", sections, warnings(several))


def write(folders: Sequence[str | Path], out: str | Path | None = None, look: Look | None = None) -> Path:
    """Writes the page of one run or of several, and returns its path (default: report.html in the folder of one run).

    `look` adds the pictures of where the network looked to the page of one run, see where_it_looked.

    Raises: BadInput that names the folder that is not a run or is damaged; OSError if the page cannot be written.
    """
    several = [runs.read(folder) for folder in folders]
    out = Path(out) if out else several[0].folder / "report.html"
    text = of_one(several[0], look) if len(several) == 1 else of_several(list(flattened(several)))
    checkpoint.write_text(out, text)
    return out


def flattened(several: Sequence[runs.Run]) -> Iterator[runs.Run]:
    """The runs. In place of a run with several folds that is not finished, its folds that have results."""
    for run in several:
        yield from [run] if run.predictions else [fold for fold in run.folds if fold.log] or [run]


def main(argv: Sequence[str] | None = None) -> Path:
    """Writes the page, prints its path and returns it. Raises: SystemExit with code 2 if an argument is wrong."""
    cli.print_any_text()
    usage = "python report.py RUN [RUN ...] [--out FILE.html] [--cam]"
    parser = cli.Parser(prog="report.py", usage=usage, description=__doc__)
    parser.add_argument("runs", nargs="+", metavar="RUN", help="run folder of train.py")
    help_out = "file of the page (default RUN/report.html; required for several runs)"
    parser.add_argument("--out", metavar="FILE.html", help=help_out)
    help_cam = "show where the network looked for each mistake (Grad-CAM); it loads best_f1.pt and runs the network"
    parser.add_argument("--cam", action="store_true", help=help_cam)
    help_model = "--cam: execute this file, for a run whose network is your own function"
    parser.add_argument("--model", metavar="FILE.py:FUNCTION", help=help_model)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument("--device", default=device, help="--cam: cpu, cuda or cuda:NUMBER (default %(default)s)")
    options = parser.parse_args(argv)
    if len(options.runs) > 1 and not options.out:
        parser.error("--out is missing: name the file of the page for several runs, for example --out compare.html")
    if len(options.runs) > 1 and options.cam:
        parser.error(f"--cam needs one run, got {len(options.runs)}: the page of several runs shows no images")
    if options.model and not (options.cam and models.is_function(options.model)):
        parser.error(f"--model must be FILE.py:FUNCTION together with --cam, got {options.model!r}")
    try:
        look = None
        if options.cam:
            device, functions = cli.usable_device(options.device), [options.model] if options.model else []
            look = functools.partial(where_it_looked, device=device, functions=functions)
        out = write(options.runs, options.out, look)
    except (*cli.BAD_INPUT, OSError) as error:
        cli.refuse(str(error), "report.py", error)
    print(cli.printable(out))
    return out


if __name__ == "__main__":
    cli.use_utf8()
    main()

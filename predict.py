"""From run folders to a submission file: average what they say of the test images, write what the template asks for.

    python predict.py runs/NAME --data TEST --out submission.csv
    python predict.py runs/five --data TEST --tta flip            # five folds and two views, averaged
    python predict.py a/best_f1.pt b/best_f1.pt --data TEST --probs probs.npz --answers my_labels.csv

Each argument is a checkpoint, a run folder (its best_f1.pt), or a run of several folds (each fold's). Probabilities are
averaged over folds and views, then over the arguments. TEST is a folder of images, or a competition folder with
sample_submission.csv or info.csv, whose rows, order, columns and header the submission keeps.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

import augment
import checkpoint
import data
import metrics
import models
import pixels
import runs

TEMPLATES = ("sample_submission.csv", "info.csv", "test.csv")


@contextmanager
def blaming(flag: str) -> Iterator[None]:
    """Turns what a module says of a bad value or file into one line that names the flag, and exit code 2."""
    try:
        yield
    except (ValueError, OSError) as error:
        print(f"predict.py: error: {flag}: {error}", file=sys.stderr)
        raise SystemExit(2) from error


# ---------------------------------------------------------------------------------------------------------------------
# Checkpoints
# ---------------------------------------------------------------------------------------------------------------------


@dataclass
class Predictor:
    """A network from a checkpoint, and how it wants its images."""

    path: Path
    net: nn.Module
    saved: dict[str, Any]  # classes, labels, size, fit, mean, std, train_counts

    @property
    def shape(self) -> tuple[int, int, str]:
        return (*models.sides(self.saved["size"]), self.saved["fit"])

    @torch.no_grad()
    def logits(self, images: Tensor, amp: bool) -> Tensor:
        """float images, normalised, to logits (N, C)."""
        with torch.autocast(images.device.type, enabled=amp):
            return self.net(images).float()


def checkpoints_of(argument: str) -> list[Path]:
    """The files that an argument stands for: itself, best_f1.pt of a run, or those of all its folds."""
    path = Path(argument)
    if path.is_file():
        return [path]
    if (path / "best_f1.pt").is_file():
        return [path / "best_f1.pt"]
    folds = sorted(path.glob("fold*/best_f1.pt"), key=lambda file: int(file.parent.name.removeprefix("fold")))
    if not folds:
        raise FileNotFoundError(f"{argument} is neither a checkpoint nor a run folder with a best_f1.pt")
    if not (path / "folds.csv").is_file():
        print(f"note: {argument} is not finished: {len(folds)} of its folds are used", file=sys.stderr)
    return folds


def load_predictor(path: Path, device: torch.device) -> Predictor:
    saved = checkpoint.load(path)
    missing = {"model", "model_name", "classes", "labels", "size", "fit", "mean", "std", "train_counts"} - saved.keys()
    if missing:
        raise ValueError(f"{path} is no checkpoint for prediction: it lacks {', '.join(sorted(missing))}")
    saved["size"] = saved["size"] if isinstance(saved["size"], int) else tuple(saved["size"])
    net = models.build_model(saved["model_name"], len(saved["classes"]), saved["size"])
    try:
        net.load_state_dict(saved.pop("model"))
    except RuntimeError as error:
        raise ValueError(f"{path} does not fit {saved['model_name']}: {str(error).splitlines()[-1].strip()}") from error
    return Predictor(path, net.to(device, memory_format=torch.channels_last).eval(), saved)


def load_all(arguments: list[str], device: torch.device) -> list[list[Predictor]]:
    """A list for each argument. All must have the same classes."""
    groups = [[load_predictor(path, device) for path in checkpoints_of(argument)] for argument in arguments]
    first = groups[0][0]
    for predictor in (p for group in groups for p in group):
        if predictor.saved["classes"] != first.saved["classes"]:
            raise ValueError(
                f"{predictor.path} and {first.path} have other classes: {predictor.saved['classes'][:5]} and "
                f"{first.saved['classes'][:5]} ..."
            )
    return groups


# ---------------------------------------------------------------------------------------------------------------------
# Test images and the template
# ---------------------------------------------------------------------------------------------------------------------


@dataclass
class Template:
    """The rows of the submission, as they were read; `label` is the column to fill in."""

    path: Path | None
    columns: list[str]
    rows: list[dict[str, str]]
    label: str
    images: list[str]  # the file of each row
    image: str  # the column that names it


def read_template(folder: Path, template: str | None) -> Template:
    """The template's rows and their images; without one, a row an image, with the columns ID and target.

    Raises: FileNotFoundError or ValueError that names the file, the column, rows without an image, images without a
        row in a folder that has images of rows, or an image in two rows.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is not a folder")
    if template:
        path = Path(template)
        if not path.is_file():
            raise FileNotFoundError(f"{template} is not a file")
    else:
        places = [place / name for name in TEMPLATES for place in (folder, folder / "eval", folder.parent)]
        path = next((place for place in places if place.is_file()), None)
    roots = [folder, folder / "test", folder / "images", folder / "eval" / "images", folder / "test" / "images"]
    if path is None:
        images, _ = data.image_files(folder)
        if not images:
            raise ValueError(f"{folder} holds no image")
        rows = [{"ID": Path(image).relative_to(folder).as_posix(), "target": ""} for image in images]
        return Template(None, ["ID", "target"], rows, "target", images, "ID")
    rows = data.read_rows(path)
    columns = data.columns_of(path, rows)
    known = [columns[name] for name in data.COLUMNS["image"] if name in columns]
    column, root = data.find_images(path, rows[0], known, roots)
    images = [data.find_file(root, row[column]) for row in rows]
    absent = [row[column] for row, image in zip(rows, images, strict=True) if image is None]
    if absent:
        raise ValueError(f"{path}: {len(absent)} rows have no image in {root}, such as {absent[0]}")
    if len(set(images)) < len(images):
        twice = next(image for i, image in enumerate(images) if image in images[:i])
        raise ValueError(f"{path}: {len(images) - len(set(images))} images are in two rows, such as {twice}")
    folders = {Path(image).parent for image in images}
    beside = {
        str(file) for parent in folders for file in parent.iterdir()
        if file.suffix.lower() in data.IMAGE_EXTENSIONS and not file.name.startswith(".")
    }  # fmt: skip
    others = sorted(beside - set(images))
    if others:
        raise ValueError(f"{path}: {len(others)} images beside those of its rows have no row, such as {others[0]}")
    labels = [columns[name] for name in data.COLUMNS["label"] if name in columns]
    names = list(rows[0])
    if labels or (names[-1] != column and path.name != "test.csv"):
        return Template(path, names, rows, [*labels, names[-1]][0], images, column)
    rows = [{"ID": str(i)} | row | {"target": ""} for i, row in enumerate(rows)]  # a test.csv has no label to fill in
    return Template(path, list(rows[0]), rows, "target", images, column)


def write_submission(path: Path, template: Template, labels: list[str]) -> None:
    """Whole or not at all."""
    filled = (row | {template.label: label} for row, label in zip(template.rows, labels, strict=True))
    runs.write_csv(path, template.columns, ([row[column] for column in template.columns] for row in filled))


# ---------------------------------------------------------------------------------------------------------------------
# Probabilities
# ---------------------------------------------------------------------------------------------------------------------


def decoded(paths: list[str], shapes: set[tuple[int, int, str]], batch_size: int) -> Iterator[dict[tuple, Tensor]]:
    """Batches of uint8 (n, 3, H, W) for every (H, W, fit), decoded in threads: one batch in memory, and the next."""

    def one(path: str) -> dict[tuple, np.ndarray] | str:
        try:
            image = pixels.decode_file(path)
            return {shape: pixels.fitted(image, *shape) for shape in shapes}
        except Exception as error:  # whatever a decoder says of a broken file is for the list
            return f"\n  {path}: {pixels.describe_error(error)}"

    with ThreadPoolExecutor() as pool:
        batches = [paths[start : start + batch_size] for start in range(0, len(paths), batch_size)]
        coming = [pool.submit(one, path) for path in batches[0]] if batches else []
        for batch in [*batches[1:], []]:
            now, coming = coming, [pool.submit(one, path) for path in batch]
            results = [future.result() for future in now]
            bad = [result for result in results if isinstance(result, str)]
            if bad:
                raise ValueError(f"{len(bad)} of {len(now)} images in one batch cannot be decoded:" + "".join(bad[:20]))
            yield {
                shape: torch.from_numpy(np.stack([result[shape] for result in results])).permute(0, 3, 1, 2)
                for shape in shapes
            }


def predict_probs(
    groups: list[list[Predictor]], paths: list[str], batch_size: int, device: torch.device, tta: str, amp: bool
) -> np.ndarray:
    """float32 (A, N, C): for each of A groups the mean of its networks' probabilities over the views of each image."""
    C = len(groups[0][0].saved["classes"])
    probs, done = np.zeros((len(groups), len(paths), C), np.float32), 0
    shapes = {predictor.shape for group in groups for predictor in group}
    with tqdm(total=len(paths), desc="predict", unit="img", disable=None) as bar:
        for batch in decoded(paths, shapes, batch_size):
            n = len(next(iter(batch.values())))
            for g, group in enumerate(groups):
                total = torch.zeros(n, C, device=device)
                for predictor in group:
                    images, saved = batch[predictor.shape].to(device), predictor.saved
                    made = augment.views(augment.normalize(images, saved["mean"], saved["std"]), tta)
                    total += sum(predictor.logits(view, amp).softmax(1) for view in made) / len(made)
                probs[g, done : done + n] = (total / len(group)).cpu().numpy()
            done += n
            bar.update(n)
    return probs


# ---------------------------------------------------------------------------------------------------------------------
# Decisions that are tried on validation first
# ---------------------------------------------------------------------------------------------------------------------


def macro_f1(probs: np.ndarray, targets: np.ndarray) -> float:
    return metrics.f1_score(probs.argmax(1), targets, probs.shape[1])


def validation_of(arguments: list[str]) -> list[dict[str, np.ndarray]]:
    """paths, targets and probs of each argument's validation images (of all its folds).

    ValueError for a checkpoint that is no best_f1.pt: what a run keeps of its validation is that model's alone.
    """
    found = []
    for argument in arguments:
        checkpoints, loaded = checkpoints_of(argument), []
        for path in checkpoints:
            if path.name != "best_f1.pt":
                raise ValueError(f"{path}: what it says of validation images is known of best_f1.pt alone")
            part = path.with_name("val_probs.npz")
            if not part.is_file():
                raise FileNotFoundError(f"{part} is not there: validation can only be had from run folders")
            loaded.append(runs.read_predictions(part))
        keys = ("paths", "targets", "probs")
        found.append({key: np.concatenate([getattr(part, key) for part in loaded]) for key in keys})
    return found


def adjust_prior(probs: np.ndarray, train_counts: list[int], tau: float) -> np.ndarray:
    """softmax(log p - tau log prior), the post-hoc logit adjustment of Menon et al. 2020 (arXiv:2007.07314)."""
    prior = np.maximum(np.array(train_counts, dtype=np.float64), 1)
    log_p = np.log(np.maximum(probs.astype(np.float64), 1e-30)) - tau * np.log(prior / prior.sum())
    p = np.exp(log_p - log_p.max(1, keepdims=True))
    return (p / p.sum(1, keepdims=True)).astype(np.float32)


def try_first(name: str, before: np.ndarray, after: np.ndarray, targets: np.ndarray, force: bool) -> bool:
    """Whether a change helps macro F1 on validation, said in one line; with `force` it is used all the same."""
    old, new = macro_f1(before, targets), macro_f1(after, targets)
    use = new > old or force
    verdict = "used" if new > old else "does not help, used because of --force" if force else "does not help, not used"
    print(f"{name}: macro F1 on {len(targets):,} validation images {old:.4f} -> {new:.4f}, {verdict}")
    return use


def choose_tta(
    options: argparse.Namespace, groups: list[list[Predictor]], device: torch.device, amp: bool
) -> Callable[[list[str]], np.ndarray]:
    """What predicts (A, N, C) with the views asked for, if they help each fold on its own validation images."""

    def plain(paths: list[str], tta: str = "none") -> np.ndarray:
        return predict_probs(groups, paths, options.batch_size, device, tta, amp)

    if options.tta == "none":
        return plain
    if options.force:
        print(f"--tta {options.tta}: not measured, used because of --force")
        return lambda paths: plain(paths, options.tta)
    with blaming("--tta"):
        before, after, targets = [], [], []
        for group in groups:
            for predictor in group:
                val = validation_of([str(predictor.path)])[0]
                paths = val["paths"].tolist()
                before.append(val["probs"])  # what the run itself said, without views
                after.append(predict_probs([[predictor]], paths, options.batch_size, device, options.tta, amp)[0])
                targets.append(val["targets"])
    use = try_first(f"--tta {options.tta}", *map(np.concatenate, (before, after, targets)), force=False)
    return (lambda paths: plain(paths, options.tta)) if use else plain


def common_validation(arguments: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """(A, N, C) probabilities and (N,) targets of the validation images that all arguments have: the same for each."""
    parts = validation_of(arguments)
    order = [np.argsort(part["paths"]) for part in parts]
    for argument, part, own in zip(arguments, parts, order, strict=True):
        if not np.array_equal(part["paths"][own], parts[0]["paths"][order[0]]):
            raise ValueError(f"{argument} and {arguments[0]} were validated on other images: weights need the same")
    probs = np.stack([part["probs"][own] for part, own in zip(parts, order, strict=True)])
    return probs, parts[0]["targets"][order[0]]


def blend_weights(probs: np.ndarray, targets: np.ndarray, rounds: int = 200) -> np.ndarray:
    """(A,) weights >= 0 that sum to 1 and maximise the likelihood of targets (N,) under the mixture of probs (A, N, C).

    The problem is convex; expectation maximisation, w_a <- mean of w_a p_a / sum_b w_b p_b, never makes it worse.
    """
    p = probs[:, np.arange(len(targets)), targets].astype(np.float64).clip(1e-12)  # (A, N) of the true class
    w = np.full(len(p), 1 / len(p))
    for _ in range(rounds):
        shares = w[:, None] * p
        w = (shares / shares.sum(0)).mean(1)
    return w


def fit_bias(log_p: np.ndarray, targets: np.ndarray, sweeps: int = 3) -> np.ndarray:
    """(C,) biases b that raise the macro F1 of argmax(log_p + b), one class after the other, the smallest of equals."""
    C = log_p.shape[1]
    bias, support = np.zeros(C), np.bincount(targets, minlength=C)
    candidates = np.array(sorted(np.linspace(-2, 2, 41), key=abs))

    def f1(predicted: np.ndarray) -> float:
        tp = np.bincount(targets[predicted == targets], minlength=C)
        return (2 * tp / np.maximum(support + np.bincount(predicted, minlength=C), 1)).mean()

    for _ in range(sweeps):
        for c in np.flatnonzero(support):
            scores = log_p + bias
            scores[:, c] = -np.inf
            best_other, other = scores.max(1), scores.argmax(1)
            tried = [f1(np.where(log_p[:, c] + b > best_other, c, other)) for b in candidates]
            if max(tried) > f1(np.where(log_p[:, c] + bias[c] > best_other, c, other)) + 1e-9:
                bias[c] = candidates[int(np.argmax(tried))]
    return bias


def tune_bias(probs: np.ndarray, targets: np.ndarray, force: bool, seed: int = 0) -> np.ndarray:
    """(C,) biases on log-probabilities, zeros unless they help where they were not fitted.

    Each half of the images is judged with the biases fitted on the other half, so the macro F1 that is printed is an
    honest one; what is returned is the mean of both fits.
    """
    log_p, N = np.log(probs.astype(np.float64).clip(1e-12)), len(targets)
    order = np.lexsort((np.random.default_rng(seed).random(N), targets))
    half = np.empty(N, dtype=bool)
    half[order] = np.arange(N) % 2 == 0  # every class in both halves
    fits = [fit_bias(log_p[half], targets[half]), fit_bias(log_p[~half], targets[~half])]
    honest = np.where(half[:, None], log_p + fits[1], log_p + fits[0])
    for what, scores in (("without", log_p), ("with, cross-fitted", honest)):
        matrix = metrics.ConfusionMatrix(probs.shape[1]).update(scores.argmax(1), targets)
        low, high = matrix.f1_interval()
        print(f"--tune-bias {what}: macro F1 {matrix.f1():.4f} (95 % interval {low:.4f} to {high:.4f})")
    return np.mean(fits, 0) if try_first("--tune-bias", log_p, honest, targets, force) else np.zeros(probs.shape[1])


def refine(
    probs: np.ndarray, saved: dict[str, Any], child_probs: np.ndarray, child: dict[str, Any], when: str
) -> tuple[np.ndarray, dict[str, Any]]:
    """The parent's probability of a group of classes, shared out as the child says; and the classes that come of it.

    p(c) = p_parent(group) p_child(c). The parent has the group as one class (--merge) or as its single classes.
    """
    chosen = [word.strip() for word in when.split(",")]
    by = next((by for by in ("labels", "classes") if set(chosen) == set(child[by])), None)
    if by is None:
        raise ValueError(f"{when!r} are not the classes of the child, {', '.join(child['labels'])}")
    merged = "+".join(child[by])
    if merged in saved[by]:
        group = [saved[by].index(merged)]
    elif set(chosen) <= set(saved[by]):
        group = [saved[by].index(name) for name in child[by]]
    else:
        raise ValueError(f"the parent has neither a class {merged!r} nor all of {when}: {', '.join(saved[by][:20])}")
    rest = [c for c in range(len(saved[by])) if c not in group]
    within = probs[:, group].sum(1, keepdims=True) * child_probs
    names = {key: [saved[key][c] for c in rest] + list(child[key]) for key in ("classes", "labels")}
    return np.concatenate([probs[:, rest], within], 1), saved | names


# ---------------------------------------------------------------------------------------------------------------------
# Scoring against a file of answers
# ---------------------------------------------------------------------------------------------------------------------


def score(answers: str, template: Template, probs: np.ndarray, saved: dict[str, Any]) -> None:
    """Macro F1, accuracy, F1 of each class, and the most confused pairs with their files."""
    rows = data.read_rows(Path(answers))
    names = [template.image, *(name for name in template.columns if name not in (template.image, template.label))]
    key = next((name for name in names if name in rows[0]), None)
    label = template.label if template.label in rows[0] else list(rows[0])[-1]
    if key is None or label == key:
        raise ValueError(f"{answers} has the columns {list(rows[0])}: one of {template.columns} and a label are needed")
    truth = {row[key]: row[label].strip() for row in rows}
    if len(truth) < len(rows) or len({row[key] for row in template.rows}) < len(template.rows):
        raise ValueError(f"{answers}: column {key} does not tell the rows apart")
    names = saved["labels"] if set(truth.values()) <= set(saved["labels"]) else saved["classes"]
    unknown = sorted(set(truth.values()) - set(names))
    if unknown:
        raise ValueError(f"{answers}: {unknown[0]!r} is no class")
    kept = [i for i, row in enumerate(template.rows) if row[key] in truth]
    if not kept:
        raise ValueError(f"{answers}: none of its {len(truth)} rows is in the template (column {key})")
    targets = np.array([names.index(truth[template.rows[i][key]]) for i in kept])
    probs, predicted, classes = probs[kept], probs[kept].argmax(1), saved["classes"]
    matrix = metrics.ConfusionMatrix(len(classes)).update(predicted, targets)
    low, high = matrix.f1_interval()
    print(f"\n{len(kept):,} of {len(template.rows):,} images have an answer")
    print(f"macro F1 {matrix.f1():.4f} (95 % interval {low:.4f} to {high:.4f}), accuracy {matrix.accuracy():.4f}")
    print(matrix.report(classes))
    print("most confused, true -> predicted, and the worst file of each:")
    for target, wrong, count in matrix.most_confused(5):
        those = np.flatnonzero((targets == target) & (predicted == wrong))
        worst = those[probs[those, wrong].argmax()]
        file, confidence = template.images[kept[worst]], probs[worst, wrong]
        print(f"{count:6d}  {classes[target]} -> {classes[wrong]}  {file} ({confidence:.2f})")


# ---------------------------------------------------------------------------------------------------------------------
# python predict.py
# ---------------------------------------------------------------------------------------------------------------------


def parse_options(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        usage="python predict.py RUN_OR_CHECKPOINT ... --data TEST [OPTION ...]", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False,
    )  # fmt: skip
    add = parser.add_argument
    add("runs", nargs="+", metavar="RUN_OR_CHECKPOINT", help="run folders or checkpoint files; their mean is predicted")
    add("--data", required=True, help="folder of the test images, or a competition folder")
    add("--template", help=f"CSV whose rows and columns to keep (default {', '.join(TEMPLATES)} in or beside --data)")
    add("--out", default="submission.csv", help="the file to write (default %(default)s)")
    add("--probs", metavar="FILE.npz", help="also write paths, classes and probs (N, C)")
    add("--answers", metavar="CSV", help="score against these labels, in the template's columns")
    add("--tta", choices=augment.VIEWS, default="none", help="views to average, if they help on validation")
    add("--prior-adjust", type=float, metavar="TAU", help="take TAU times the training classes' log share off, e.g. 1")
    add("--tune-bias", action="store_true", help="add to each class what raises macro F1 on validation, cross-fitted")
    add("--blend", action="store_true", help="weigh the runs by their likelihood on their common validation images")
    add("--refine", metavar="CHILD", help="run of --only CLASSES that decides inside a group of classes")
    add("--when", metavar="CLASSES", help="the group that --refine decides in, e.g. 3,7,14")
    add("--force", action="store_true", help="use --tta, --blend, --prior-adjust, --tune-bias though they do not help")
    add("--batch-size", type=int, default=64, help="images at a time (default 64)")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    add("--device", default=device, help="cpu, cuda or cuda:1 (default %(default)s)")
    options = parser.parse_args(argv)
    if options.batch_size < 1:
        parser.error(f"--batch-size must be at least 1, got {options.batch_size}")
    if bool(options.refine) != bool(options.when):
        parser.error("--refine CHILD and --when CLASSES go together")
    if options.blend and len(options.runs) < 2:
        parser.error("--blend needs two runs or more")
    for flag, file in (("--out", options.out), ("--probs", options.probs)):
        if file and Path(file).is_dir():
            parser.error(f"{flag} {file} is a folder")
        if file and not Path(file).parent.is_dir():
            parser.error(f"{flag} {file}: there is no folder {Path(file).parent}")
    if options.prior_adjust is not None and not math.isfinite(options.prior_adjust):
        parser.error(f"--prior-adjust must be a number, got {options.prior_adjust}")
    return options


def weigh(options: argparse.Namespace, each: np.ndarray, train_counts: list[int]) -> np.ndarray:
    """(A, N, C) to (N, C): the mean or the blend, then prior and bias, each tried on validation before it is used."""
    is_tried = options.blend or options.tune_bias or (options.prior_adjust is not None and not options.force)
    weights, targets = np.full(len(each), 1 / len(each)), np.zeros(0, np.int64)
    if is_tried:
        with blaming("validation"):
            val_each, targets = common_validation(options.runs)
    if options.blend:
        fitted = blend_weights(val_each, targets)
        for run, weight, own in zip(options.runs, fitted, val_each, strict=True):
            print(f"--blend: weight {weight:.3f}, macro F1 alone {macro_f1(own, targets):.4f}, {run}")
        before, after = val_each.mean(0), np.tensordot(fitted, val_each, 1)
        weights = fitted if try_first("--blend", before, after, targets, options.force) else weights
    probs = np.tensordot(weights, each, 1)
    val = np.tensordot(weights, val_each, 1) if is_tried else None
    if options.prior_adjust is not None:
        name, use = f"--prior-adjust {options.prior_adjust:g}", True
        if is_tried:
            after = adjust_prior(val, train_counts, options.prior_adjust)
            use = try_first(name, val, after, targets, options.force)
            val = after if use else val
        probs = adjust_prior(probs, train_counts, options.prior_adjust) if use else probs
    if options.tune_bias:
        probs = add_bias(probs, tune_bias(val, targets, options.force))
    return probs


def add_bias(probs: np.ndarray, bias: np.ndarray) -> np.ndarray:
    scaled = probs * np.exp(bias - bias.max())
    return (scaled / scaled.sum(1, keepdims=True)).astype(np.float32)


def main(argv: list[str] | None = None) -> None:
    options = parse_options(argv)
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="backslashreplace")  # a file name may hold bytes that are no text
    with blaming("--device"):
        try:
            device = torch.empty(0, device=options.device).device
        except (RuntimeError, AssertionError) as error:
            raise ValueError(f"{options.device!r} cannot be used here") from error
    with blaming("--template" if options.template else "--data"):
        template = read_template(Path(options.data), options.template)
    with blaming("checkpoints"):
        groups = load_all(options.runs, device)
    saved, amp = groups[0][0].saved, device.type == "cuda"
    print(f"{len(template.rows):,} images; {sum(map(len, groups))} networks, {len(saved['classes'])} classes")
    predict = choose_tta(options, groups, device, amp)
    with blaming("--data"):
        each = predict(template.images)  # (A, N, C)
    probs = weigh(options, each, saved["train_counts"])
    if options.refine:
        with blaming("--refine"):
            children = load_all([options.refine], device)
            shares = predict_probs(children, template.images, options.batch_size, device, "none", amp)[0]
        with blaming("--when"):
            probs, saved = refine(probs, saved, shares, children[0][0].saved, options.when)
    with blaming("--out"):
        write_submission(Path(options.out), template, [saved["labels"][c] for c in probs.argmax(1)])
    print(f"{options.out}: {len(template.rows):,} rows, column {template.label} filled in")
    if options.probs:
        with blaming("--probs"), checkpoint.replacing(options.probs) as file:
            np.savez(file, paths=np.array(template.images), classes=np.array(saved["classes"]), probs=probs)
    if options.answers:
        with blaming("--answers"):
            score(options.answers, template, probs, saved)


if __name__ == "__main__":
    main()

"""Networks loaded from checkpoints, and their probabilities for image files."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

import augment
import checkpoint
import cli
import losses
import models
import pixels
import runs
from ranks import Ranks
from runs import BadInput


@dataclass
class Predictor:
    """A network loaded from a checkpoint, and how its input images are prepared."""

    path: Path
    net: nn.Module
    saved: dict[str, Any]  # the other ENTRIES, and all_classes, all_labels: before --only and --merge

    @property
    def shape(self) -> tuple[int, int, str]:
        """(H, W, fit) of the input images."""
        return (*models.sides(self.saved["size"]), self.saved["fit"])

    @torch.no_grad()
    def logits(self, images: Tensor) -> Tensor:
        """Normalised float images (N, 3, H, W) to float32 logits (N, C). Mixed precision on CUDA."""
        with torch.autocast(images.device.type, enabled=images.device.type == "cuda"):
            return self.net(images).float()


def checkpoints_of(argument: str) -> list[Path]:
    """The checkpoint files of one RUN_OR_CHECKPOINT: the file itself, the run's best_f1.pt, or one per fold.

    Raises: BadInput if there is none.
    """
    path = Path(argument)
    if path.is_file():
        return [path]
    if (path / "best_f1.pt").is_file():
        return [path / "best_f1.pt"]
    files = {file.parent.name.removeprefix("fold"): file for file in path.glob("fold*/best_f1.pt")}
    folds = [files[number] for number in sorted(filter(str.isdecimal, files), key=int)]
    if not folds:
        raise BadInput(f"{argument} is not a checkpoint file, and not a run folder with a best_f1.pt")
    if not (path / "folds.csv").is_file():
        print(cli.printable(f"note: the run {argument} is not finished: folds used: {len(folds)}"), file=sys.stderr)
    return folds


def _are_texts(value: Any, count: int | None = None) -> bool:
    is_list = isinstance(value, list) and len(value) == (count or len(value)) > 0
    return is_list and all(isinstance(text, str) for text in value)


def _are_numbers(value: Any, count: int, least: float, most: float, kind: Any = (int, float)) -> bool:
    """False for NaN too."""
    is_list = isinstance(value, (list, tuple)) and len(value) == count
    return is_list and all(isinstance(number, kind) and least <= number <= most for number in value)


def _are_tensors(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(k, str) and isinstance(v, Tensor) for k, v in value.items())


# the entries of a checkpoint that prediction needs: (what is valid, test of the value and the whole checkpoint)
ENTRIES: dict[str, tuple[str, Callable[[Any, dict[str, Any]], bool]]] = {
    "classes": ("a list of names", lambda value, saved: _are_texts(value)),
    "labels": ("one text per class", lambda value, saved: _are_texts(value, len(saved["classes"]))),
    "all_classes": ("a list of names", lambda value, saved: _are_texts(value)),  # before train.py --only and --merge
    "all_labels": ("one text per class", lambda value, saved: _are_texts(value, len(saved["all_classes"]))),
    "model": ("a dict of tensors", lambda value, saved: _are_tensors(value)),
    "model_name": ("a name in one line", lambda value, saved: isinstance(value, str) and value.isprintable()),
    "size": (
        "one side, or height and width, in pixels, from 8 to 10000",
        lambda value, saved: _are_numbers([value, value] if isinstance(value, int) else value, 2, 8, 10_000, int),
    ),
    "head": (
        f"one of {', '.join(models.HEADS)}",
        lambda value, saved: isinstance(value, str) and value in models.HEADS,
    ),
    "loss": ("a text", lambda value, saved: isinstance(value, str)),
    "favours_rare": ("a list of texts", lambda value, saved: value == [] or _are_texts(value)),
    "fit": (f"one of {', '.join(pixels.FITS)}", lambda value, saved: isinstance(value, str) and value in pixels.FITS),
    "mean": ("3 finite numbers", lambda value, saved: _are_numbers(value, 3, -1e6, 1e6)),
    "std": ("3 finite numbers above 0", lambda value, saved: _are_numbers(value, 3, 1e-6, 1e6)),
    "train_counts": (
        "one number of images per class",
        lambda value, saved: _are_numbers(value, len(saved["classes"]), 0, 2**53, int),
    ),
    "factors": (
        "names with their values, of which factor_ids gives each class one",
        lambda value, saved: runs.are_factors(value, saved.get("factor_ids"), len(saved["classes"])),
    ),
}


def load_entries(path: Path) -> dict[str, Any]:
    """The contents of a checkpoint, which may come from a stranger.

    Raises: BadInput if the file is not a checkpoint of train.py: it lacks one of ENTRIES, or a value is not valid.
    """
    saved = checkpoint.load(path)
    for name in ("classes", "labels"):  # an older version did not store all_classes and all_labels
        saved.setdefault(f"all_{name}", saved.get(name))
    saved = {"head": "linear", "loss": ""} | saved
    if "favours_rare" not in saved:  # an older version did not store it
        saved["favours_rare"] = [f"--loss {saved['loss']}"] if losses.corrects_prior(str(saved["loss"])) else []
    if "factors" not in saved and isinstance(saved.get("classes"), list):
        saved |= {"factors": {}, "factor_ids": [[] for _ in saved["classes"]]}
    missing = {name for name in ENTRIES if saved.get(name) is None}
    if missing:
        missing -= {"all_classes", "all_labels"}
        raise BadInput(f"{path} is not a checkpoint for prediction: it has no {', '.join(sorted(missing))}")
    for name, (valid, is_valid) in ENTRIES.items():
        if not is_valid(saved[name], saved):
            raise BadInput(f"{path} cannot be used: its {name} must be {valid}. Use a different checkpoint")
    return saved


def load_predictor(path: Path, device: torch.device, functions: Sequence[str] = ()) -> Predictor:
    """The network of a checkpoint, on the device and in eval mode.

    functions: the FILE.py:FUNCTION that the user typed. A checkpoint cannot execute a different file.
    Raises: BadInput if the file is not a checkpoint of train.py, its weights do not fit its network or are not finite,
        or its network is a function that the user did not type.
    """
    saved = load_entries(path)
    name = saved["model_name"]
    if models.is_function(name) and name not in functions:
        raise BadInput(
            f"{path}: its network is a function in a file, which is not executed unless you name it. "
            f"If you trust the file, add: --model {shlex.quote(name)}"
        )
    saved["size"] = saved["size"] if isinstance(saved["size"], int) else tuple(saved["size"])
    net = models.build_model(name, len(saved["classes"]), saved["size"], saved["head"], saved["factor_ids"])
    try:
        net.load_state_dict(saved.pop("model"))
    except RuntimeError as error:
        raise BadInput(f"{path} does not fit {name}: {str(error).splitlines()[-1].strip()}") from error
    bad = [key for key, weight in net.named_parameters() if not weight.isfinite().all()]
    bad += [key for key, buffer in net.named_buffers() if buffer.isnan().any()]
    if bad:
        raise BadInput(f"{path} cannot be used: it has NaN or infinite weights in {bad[0]}. Use a different checkpoint")
    return Predictor(path, net.to(device, memory_format=torch.channels_last).eval(), saved)


def load_all(arguments: list[str], device: torch.device, functions: Sequence[str] = ()) -> list[list[Predictor]]:
    """One list of networks per argument. Raises: BadInput if they do not all have the same classes."""
    groups = [[load_predictor(path, device, functions) for path in checkpoints_of(argument)] for argument in arguments]
    first = groups[0][0]
    for predictor in (p for group in groups for p in group):
        if predictor.saved["classes"] != first.saved["classes"]:
            classes, expected = ([*map(str, p.saved["classes"])] for p in (predictor, first))
            raise BadInput(
                f"{predictor.path} and {first.path} have different classes: {len(classes)} classes "
                f"({', '.join(classes[:5])} ...) and {len(expected)} classes ({', '.join(expected[:5])} ...)"
            )
    return groups


def decoded(
    paths: list[str], shapes: set[tuple[int, int, str]], batch_size: int, threads: int | None = None
) -> Iterator[dict[tuple, Tensor]]:
    """Batches of decoded images: for each (H, W, fit) in shapes a uint8 tensor (n, 3, H, W).

    Threads decode the next batch while this one is used, so two batches are in memory.

    Raises: BadInput that lists the images of a batch that cannot be decoded.
    """

    def decode(path: str) -> dict[tuple, np.ndarray] | str:
        try:
            image = pixels.decode_file(path)
            return {shape: pixels.fitted(image, *shape) for shape in shapes}
        except Exception as error:  # decoders raise many types of exceptions
            return f"{path}: {pixels.describe_error(error)}"

    with ThreadPoolExecutor(threads) as pool:
        batches = [paths[start : start + batch_size] for start in range(0, len(paths), batch_size)]
        pending = [pool.submit(decode, path) for path in batches[0]] if batches else []
        for next_batch in [*batches[1:], []] if batches else []:
            current, pending = pending, [pool.submit(decode, path) for path in next_batch]
            results = [future.result() for future in current]
            bad = [result for result in results if isinstance(result, str)]
            if bad:
                count = f"{len(bad)} of {len(results)}"
                raise BadInput(f"{count} images in one batch cannot be decoded:" + pixels.listed(bad))
            yield {
                shape: torch.from_numpy(np.stack([result[shape] for result in results])).permute(0, 3, 1, 2)
                for shape in shapes
            }


def predict_probs(
    groups: list[list[Predictor]],
    tta: str,
    ranks: Ranks,
    batch_size: int,
    threads: int | None,
    paths: list[str],
) -> np.ndarray:
    """float32 (A, N, C): the probabilities of each of A groups, averaged over its networks and the views `tta`.

    Each of the ranks (processes, usually one) decodes and predicts its part of the images.
    """
    C, device, mine = len(groups[0][0].saved["classes"]), ranks.device, ranks.part(len(paths))
    paths = paths[mine.start : mine.stop]
    probs, done = np.zeros((len(groups), len(paths), C), np.float32), 0
    shapes = {predictor.shape for group in groups for predictor in group}
    with tqdm(total=len(paths), desc="predict", unit="img", disable=None if ranks.is_first else True) as bar:
        for batch in decoded(paths, shapes, batch_size, threads):
            n = len(next(iter(batch.values())))
            for g, group in enumerate(groups):
                total = torch.zeros(n, C, device=device)
                for predictor in group:
                    images, saved = batch[predictor.shape].to(device), predictor.saved
                    views = augment.views(augment.normalize(images, saved["mean"], saved["std"]), tta)
                    total += sum(predictor.logits(view).softmax(1) for view in views) / len(views)
                probs[g, done : done + n] = (total / len(group)).cpu().numpy()
            done += n
            bar.update(n)
    return ranks.gather(torch.from_numpy(probs).transpose(0, 1)).transpose(0, 1).cpu().numpy()

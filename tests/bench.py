"""Measures the speed of the kit against a reference in the same run. Compare the ratios, not the times.

    python tests/bench.py                    # all tables, on the CPU with 2 threads; a few minutes
    python tests/bench.py losses metrics     # some tables
    python tests/bench.py --device cuda --out results/bench-cuda.md

In every round, each row of a table is measured once, in shuffled order. A time is the median over the rounds. A ratio
is the median of the rounds' ratios to the first row. A second copy of the first row shows the noise.
Run it on an idle machine: other processes slow down the rows with two threads most.
glibc is set to keep freed memory. Otherwise it returns every 16 MB buffer to the system, and the page faults of the
next step hide the difference that is measured.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import math
import os
import platform
import random
import resource
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
import torchvision
from PIL import Image
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import DataLoader
from torchvision import transforms as T
from torchvision.transforms import v2

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from test_ranks import free_port

import augment
import data
import loop
import losses
import metrics
import models
import optim
import pixels
import sam
from ranks import Ranks

Times = dict[str, list[float]]  # seconds per call of each row of a table, one number per round


def race(contestants: dict[str, Callable[[], object]], rounds: int, seconds: float, device: str) -> Times:
    """Measures all contestants in every round. A measurement repeats the call until `seconds` are over."""

    def timed(call: Callable[[], object], repeats: int) -> float:
        synchronize(device)
        start = time.perf_counter()
        for _ in range(repeats):
            call()
        synchronize(device)
        return (time.perf_counter() - start) / repeats

    repeats = {}
    for name, call in contestants.items():
        call()
        repeats[name] = max(1, int(seconds / max(timed(call, 1), 1e-7)))
    times: Times = {name: [] for name in contestants}
    shuffle = random.Random(0)
    for _ in range(rounds):
        for name in shuffle.sample(list(contestants), len(contestants)):
            times[name].append(timed(contestants[name], repeats[name]))
    return times


def synchronize(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def ratio(times: Times, name: str) -> float:
    """The time of a row divided by that of the first row: the median over the rounds."""
    reference = next(iter(times.values()))
    return statistics.median(t / first for t, first in zip(times[name], reference, strict=True))


# ---------------------------------------------------------------------------------------------------------------------
# Losses
# ---------------------------------------------------------------------------------------------------------------------


def usual_focal(logits: torch.Tensor, targets: torch.Tensor, weight: torch.Tensor | None = None) -> torch.Tensor:
    """The focal loss that most people copy: the factor is computed for all N x C entries, and one per row is used."""
    log_p = F.log_softmax(logits, 1)
    return F.nll_loss((1 - log_p.exp()) ** 2 * log_p, targets, weight)


def smoothed_targets(log_p: torch.Tensor, targets: torch.Tensor, smoothing: float) -> torch.Tensor:
    with torch.no_grad():
        soft = torch.zeros_like(log_p)
        soft.fill_(smoothing / (log_p.shape[1] - 1))
        return soft.scatter_(1, targets.unsqueeze(1), 1 - smoothing)


def usual_label_smoothing(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """The label smoothing that most people copy: a matrix of soft targets, filled anew for each batch."""
    log_p = logits.log_softmax(1)
    return torch.mean(torch.sum(-smoothed_targets(log_p, targets, 0.1) * log_p, 1))


def usual_smoothed_focal(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """The usual label smoothing with the usual focal factor."""
    log_p = logits.log_softmax(1)
    return torch.mean(torch.sum(-smoothed_targets(log_p, targets, 0.1) * (1 - log_p.exp()) ** 2 * log_p, 1))


def usual_f1(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """The soft F1 that most people copy: one-hot targets, precision and recall, a small number against 0 / 0."""
    y, p = F.one_hot(targets, logits.shape[1]).float(), logits.softmax(1)
    tp, fp, fn = (y * p).sum(0), ((1 - y) * p).sum(0), (y * (1 - p)).sum(0)
    precision, recall = tp / (tp + fp + 1e-7), tp / (tp + fn + 1e-7)
    return 1 - (2 * precision * recall / (precision + recall + 1e-7)).mean()


class PeakMemory(TorchDispatchMode):
    """The largest number of bytes, at one time, in the tensors that were created inside the block."""

    def __init__(self):
        super().__init__()
        self.live, self.peak, self.known = 0, 0, set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        given = {t.untyped_storage()._cdata for t in self._tensors((args, kwargs))}
        for tensor in self._tensors(result):
            storage = tensor.untyped_storage()
            key, size = storage._cdata, storage.nbytes()
            if key not in given and key not in self.known:
                self.known.add(key)
                self.live += size
                self.peak = max(self.peak, self.live)
                weakref.finalize(storage, self._freed, key, size)
        return result

    def _freed(self, key: int, size: int) -> None:
        self.known.discard(key)
        self.live -= size

    @staticmethod
    def _tensors(tree: object) -> list[torch.Tensor]:
        return [leaf for leaf in torch.utils._pytree.tree_leaves(tree) if isinstance(leaf, torch.Tensor)]


def bench_losses(device: str, rounds: int) -> Iterator[str]:
    for N, C in ((32, 18), (256, 18), (4096, 100), (4096, 1000)):
        torch.manual_seed(0)
        x = torch.randn(N, C, device=device, requires_grad=True)
        t = torch.randint(0, C, (N,), device=device)
        weight = torch.rand(C, device=device) + 0.5
        of_counts = losses.LogitAdjustmentLoss, losses.LDAMLoss, losses.LabelAwareSmoothingLoss
        adjusted, ldam, aware = (loss(counts=torch.arange(C) + 5).to(device) for loss in of_counts)
        contestants = {
            "F.cross_entropy": lambda x=x, t=t: F.cross_entropy(x, t),
            "F.cross_entropy again": lambda x=x, t=t: F.cross_entropy(x, t),
            "kit cross-entropy": lambda x=x, t=t: losses.cross_entropy_loss(x, t),
            "kit focal": lambda x=x, t=t: losses.focal_loss(x, t),
            "kit focal, weighted": lambda x=x, t=t, w=weight: losses.focal_loss(x, t, weight=w),
            "kit focal, smoothing": lambda x=x, t=t: losses.focal_loss(x, t, smoothing=0.1),
            "kit label smoothing": lambda x=x, t=t: losses.label_smoothing_loss(x, t),
            "kit soft F1": lambda x=x, t=t: losses.f1_loss(x, t),
            "kit logit adjustment": lambda x=x, t=t, f=adjusted: f(x, t),
            "kit LDAM": lambda x=x, t=t, f=ldam: f(x, t),
            "kit label-aware smoothing": lambda x=x, t=t, f=aware: f(x, t),
            "F.cross_entropy(label_smoothing=0.1)": lambda x=x, t=t: F.cross_entropy(x, t, label_smoothing=0.1),
            "the usual focal": lambda x=x, t=t: usual_focal(x, t),
            "the usual focal, weighted": lambda x=x, t=t, w=weight: usual_focal(x, t, w),
            "the usual focal, smoothing": lambda x=x, t=t: usual_smoothed_focal(x, t),
            "the usual label smoothing": lambda x=x, t=t: usual_label_smoothing(x, t),
            "the usual soft F1": lambda x=x, t=t: usual_f1(x, t),
        }

        def step(loss: Callable[[], torch.Tensor], x: torch.Tensor = x) -> None:
            x.grad = None
            loss().backward()

        memory = {}
        for name, loss in contestants.items():
            x.grad = None
            with PeakMemory() as peak:
                loss().backward()
            memory[name] = peak.peak
        times = race({name: lambda f=f: step(f) for name, f in contestants.items()}, rounds, 0.05, device)
        yield f"\nLosses, forward and backward, logits ({N}, {C})\n"
        yield from ["| loss | ms | x limit | x the usual form | peak memory x limit |", "|---|---|---|---|---|"]
        for name in contestants:
            ms, share = 1e3 * statistics.median(times[name]), memory[name] / memory["F.cross_entropy"]
            usual = times.get(name.replace("kit", "the usual"), times["F.cross_entropy"])  # of cross-entropy: torch's
            over = statistics.median(own / u for own, u in zip(times[name], usual, strict=True))
            form = f"{over:.2f}" if name.startswith("kit") else ""
            yield f"| {name} | {ms:.3f} | {ratio(times, name):.2f} | {form} | {share:.2f} |"


# ---------------------------------------------------------------------------------------------------------------------
# Metrics
# ---------------------------------------------------------------------------------------------------------------------


def bench_metrics(device: str, rounds: int) -> list[str]:
    lines = ["\nConfusion matrix, one update\n", "| C, batch | method | us | x first |", "|---|---|---|---|"]
    for C, N in ((18, 64), (18, 256), (1000, 256)):
        generator = torch.Generator().manual_seed(0)
        p, t = (torch.randint(0, C, (N,), generator=generator).to(device) for _ in range(2))
        kit, counts = metrics.ConfusionMatrix(C, device=device), torch.zeros(C * C, dtype=torch.long, device=device)
        contestants = {
            "kit ConfusionMatrix.update": lambda kit=kit, p=p, t=t: kit.update(p, t),
            "counts += bincount": lambda c=counts, p=p, t=t, C=C: c.add_(torch.bincount(t * C + p, minlength=C * C)),
        }
        with contextlib.suppress(ImportError):
            from sklearn.metrics import f1_score

            contestants["scikit-learn f1_score of the batch"] = lambda p=p, t=t: f1_score(
                t.cpu(), p.cpu(), average="macro", zero_division=0
            )
        times = race(contestants, rounds, 0.05, device)
        for name in contestants:
            us = 1e6 * statistics.median(times[name])
            lines.append(f"| {C}, {N} | {name} | {us:.1f} | {ratio(times, name):.1f} |")
    return lines


# ---------------------------------------------------------------------------------------------------------------------
# The loop
# ---------------------------------------------------------------------------------------------------------------------


def tiny_net(num_classes: int) -> nn.Module:
    """A network so cheap that only the loader is measured, as with a GPU that is much faster than its host."""
    features = nn.Conv2d(3, 8, 4, 4), nn.ReLU(), nn.AdaptiveAvgPool2d(4), nn.Flatten()
    return nn.Sequential(*features, nn.Linear(128, num_classes))


def write_photos(root: Path, images: int, size: tuple[int, int], noise: float = 0.0, classes: int = 10) -> Path:
    """Writes JPEGs of (width, height). With noise 4 (grey levels), one of 384 x 512 has about 40 KB."""
    rng = np.random.default_rng(0)
    for i in range(images):
        folder = root / f"{i % classes}"
        folder.mkdir(parents=True, exist_ok=True)
        coarse = Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8))
        photo = np.asarray(coarse.resize(size, Image.Resampling.BICUBIC), dtype=np.float32)
        photo = photo + noise * rng.standard_normal(photo.shape[:2], dtype=np.float32)[:, :, None]
        Image.fromarray(photo.clip(0, 255).astype(np.uint8)).save(folder / f"{i:05d}.jpg", quality=90)
    return root


def usual_epoch(model: nn.Module, optimizer: torch.optim.Optimizer, loader: DataLoader, device: str) -> None:
    """The usual loop: ImageFolder, two workers, Pillow, and loss.item() after every batch."""
    for images, targets in loader:
        loss = F.cross_entropy(model(images.to(device)), targets.to(device))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        loss.item()


def kit_epochs(
    model: nn.Module,
    images: pixels.ImageArray,
    batch_size: int,
    augmentation: str,
    device: str,
    backward: Callable = loop.backward_window,
) -> Callable[[], None]:
    """A call that trains one epoch with the kit's loop."""
    optimizer = optim.build_optimizer("sgd", model, lr=0.01)
    batches = pixels.Batches(images, np.arange(len(images)), batch_size, shuffle=True, device=device)
    state = loop.State(model, optimizer, optim.build_schedule("none", optimizer, 1, len(batches)))
    criterion, transform = losses.build_loss("ce"), augment.Augment(augmentation)

    def forward(numbers: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        return model(transform(x, numbers, batches.epoch))

    def epoch() -> None:
        batches.epoch += 1
        loop.train_epoch(state, batches.indexed(), criterion, forward, backward=backward)

    return epoch


def usual_epochs(
    model: nn.Module, folder: Path, batch_size: int, per_image: Callable, device: str
) -> Callable[[], None]:
    """A call that trains one epoch with the usual loop."""
    dataset = torchvision.datasets.ImageFolder(str(folder), per_image)
    loader = DataLoader(dataset, batch_size, shuffle=True, num_workers=2, persistent_workers=True)
    optimizer = optim.build_optimizer("sgd", model, lr=0.01)
    return lambda: usual_epoch(model, optimizer, loader, device)


def bare_epochs(model: nn.Module, x: torch.Tensor, targets: torch.Tensor, steps: int) -> Callable[[], None]:
    """A call that trains on the same batch, which is on the device, `steps` times: no loop can be faster."""
    optimizer = optim.build_optimizer("sgd", model, lr=0.01)

    def epoch() -> None:
        for _ in range(steps):
            F.cross_entropy(model(x), targets).backward()
            optimizer.step()
            optimizer.zero_grad()

    return epoch


def bench_loop(device: str, rounds: int) -> Iterator[str]:
    per_image = [T.RandomCrop(32, 4), T.RandomHorizontalFlip(), T.ToTensor()]
    per_image = T.Compose([*per_image, T.Normalize(augment.IMAGENET_MEAN, augment.IMAGENET_STD)])
    for label, build, number in (
        ("resnet8", lambda: models.build_model("resnet8", 10, 32), 2560),
        ("a tiny network", lambda: tiny_net(10), 10240),
    ):

        def fresh(build: Callable[[], nn.Module] = build) -> nn.Module:
            return build().to(device, memory_format=torch.channels_last)

        with tempfile.TemporaryDirectory() as scratch:
            folder = write_photos(Path(scratch) / "photos", number, (32, 32))
            table = data.read(str(folder))
            images = pixels.decode(table.paths, table.targets, 32, scratch, progress=False)
            images.move_to(torch.device(device))
            batches = pixels.Batches(images, np.arange(number), 128, shuffle=True, device=device)
            x, targets = next(iter(batches))
            contestants = {
                "bare step on one resident batch": bare_epochs(fresh(), augment.normalize(x), targets, len(batches)),
                "kit train_epoch, light augmentation": kit_epochs(fresh(), images, 128, "light", device),
                "the same with SAM": kit_epochs(
                    fresh(), images, 128, "light", device, sam.SAM(loop.backward_window, 0.05)
                ),
                "ImageFolder + DataLoader(2) + Pillow": usual_epochs(fresh(), folder, 128, per_image, device),
            }
            times = race(contestants, rounds, 0.0, device)
        yield f"\nTraining loop, {label}, 32 x 32, batch 128, {number} images per epoch\n"
        yield from ["| loop | images/s | x bare step | x the usual loop |", "|---|---|---|---|"]
        usual = times["ImageFolder + DataLoader(2) + Pillow"]
        for name in contestants:
            speed = number / statistics.median(times[name])
            over = statistics.median(u / own for u, own in zip(usual, times[name], strict=True))
            yield f"| {name} | {speed:.0f} | {1 / ratio(times, name):.2f} | {over:.1f} |"


# ---------------------------------------------------------------------------------------------------------------------
# Photos: decoding, a later epoch, augmentation
# ---------------------------------------------------------------------------------------------------------------------


def pillow_decode(path: str, row: np.ndarray) -> None:
    """The usual decode and resize."""
    with Image.open(path) as image:
        row[:] = np.asarray(image.convert("RGB").resize((224, 224), Image.Resampling.BILINEAR))


def per_image_strong() -> v2.Compose:
    """torchvision's per-image transforms most similar to the kit's "strong": crop, flip, then one of nine."""
    one = [
        v2.Identity(),
        v2.RandomRotation(30),
        v2.RandomAffine(0, shear=17),
        v2.ColorJitter(saturation=0.9),
        v2.ColorJitter(contrast=0.7),
        v2.ColorJitter(brightness=0.3),
        v2.GaussianBlur(17, (0.1, 2.8)),
        v2.Lambda(lambda image: (image + 20 * torch.randn(image.shape)).clamp_(0, 255).byte()),
        v2.RandomErasing(p=1, scale=(0.01, 0.25)),
    ]
    return v2.Compose(
        [
            v2.RandomResizedCrop(224, (0.35, 1), antialias=True),
            v2.RandomHorizontalFlip(),
            v2.RandomChoice(one),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(augment.IMAGENET_MEAN, augment.IMAGENET_STD),
        ]
    )


def bench_decoding(paths: list[str], rounds: int) -> list[str]:
    kilobytes = statistics.mean(os.path.getsize(path) for path in paths) / 1000
    some, threads = paths[:256], torch.get_num_threads()
    rows = np.empty((len(some), 224, 224, 3), np.uint8)

    def pooled(decode: Callable[[str, np.ndarray], None], workers: int) -> None:
        with ThreadPoolExecutor(workers) as pool:
            list(pool.map(decode, some, rows))

    def kit_decode(path: str, row: np.ndarray) -> None:
        row[:] = pixels.fitted(pixels.decode_file(path), 224, 224, "squash")

    contestants = {
        "Pillow decode and resize, 1 thread": lambda: pooled(pillow_decode, 1),
        "Pillow, 2 threads": lambda: pooled(pillow_decode, 2),
        "kit, 1 thread": lambda: pooled(kit_decode, 1),
        "kit, 2 threads": lambda: pooled(kit_decode, 2),
    }
    torch.set_num_threads(1)
    times = race(contestants, 2 * rounds, 0.0, "cpu")
    torch.set_num_threads(threads)
    lines = [f"\nDecoding, 384 x 512 JPEG of {kilobytes:.0f} KB to 224 x 224\n"]
    lines += ["| method | images/s | x first |", "|---|---|---|"]
    for name in times:
        lines.append(f"| {name} | {len(some) / statistics.median(times[name]):.0f} | {1 / ratio(times, name):.2f} |")
    return lines


def bench_later_epoch(images: pixels.ImageArray, folder: Path, batch: int, rounds: int, device: str) -> list[str]:
    contestants = {}
    for name in ("none", "light", "strong"):
        model = tiny_net(10).to(device, memory_format=torch.channels_last)
        contestants[f"kit train_epoch, {name}"] = kit_epochs(model, images, batch, name, device)
    to_float = v2.ToDtype(torch.float32, scale=True), v2.Normalize(augment.IMAGENET_MEAN, augment.IMAGENET_STD)
    resize = v2.Compose([v2.Resize((224, 224)), v2.PILToTensor(), *to_float])
    for name, per_image in (("resize", resize), ("strong", v2.Compose([v2.PILToTensor(), per_image_strong()]))):
        usual = usual_epochs(tiny_net(10).to(device), folder, batch, per_image, device)
        contestants[f"ImageFolder + DataLoader(2) + Pillow, {name}"] = usual
    times = race(contestants, rounds, 0.0, device)
    lines = [f"\nA later epoch, a tiny network, 384 x 512 JPEG to 224 x 224, batch {batch}, {len(images)} images\n"]
    lines += ["| loop | images/s | x first |", "|---|---|---|"]
    for name in times:
        lines.append(f"| {name} | {len(images) / statistics.median(times[name]):.0f} | {1 / ratio(times, name):.2f} |")
    return lines


def bench_augmentation(images: pixels.ImageArray, batch: int, rounds: int, device: str) -> list[str]:
    x, index = images.gather(torch.arange(batch)), torch.arange(batch)
    epochs, singly = itertools.count(), per_image_strong()
    contestants = {"torchvision v2, image by image, strong": lambda: torch.stack([singly(image) for image in x])}
    for name in ("light", "strong", "document"):
        transform = augment.Augment(name)
        contestants[f"kit, the batch at once, {name}"] = lambda t=transform: t(x, index, next(epochs))
    times = race(contestants, rounds, 0.2, device)
    lines = [f"\nAugmentation and normalisation, 224 x 224, batch {batch}\n"]
    lines += ["| method | ms per image | x first |", "|---|---|---|"]
    for name in times:
        lines.append(f"| {name} | {1e3 * statistics.median(times[name]) / batch:.2f} | {ratio(times, name):.2f} |")
    return lines


def bench_photos(device: str, rounds: int) -> list[str]:
    number, batch = 384, 32
    with tempfile.TemporaryDirectory() as scratch:
        folder = write_photos(Path(scratch) / "photos", number, (384, 512), noise=4.0)
        table = data.read(str(folder))
        lines = bench_decoding(table.paths, rounds)
        images = pixels.decode(table.paths, table.targets, 224, scratch, progress=False)
        images.move_to(torch.device(device))
        lines += bench_later_epoch(images, folder, batch, rounds, device)
        return lines + bench_augmentation(images, batch, rounds, device)


# ---------------------------------------------------------------------------------------------------------------------
# Several processes
# ---------------------------------------------------------------------------------------------------------------------

WINDOWS, MICRO_BATCHES, BATCH = 6, 4, 64


def rank_worker(threads: int) -> None:
    """What each process of `bench_ranks` does: some windows of resnet20. The first one prints its figures as JSON."""
    torch.set_num_threads(threads)
    with Ranks.of_torchrun() as ranks:
        torch.manual_seed(0)
        model = models.build_model("resnet20", 10, 32).to(memory_format=torch.channels_last)
        x = torch.randn(BATCH, 3, 32, 32).to(memory_format=torch.channels_last)
        targets, spent = torch.randint(0, 10, (BATCH,)), [0.0]

        def timed(call: Callable[..., object]) -> Callable[..., object]:
            def wrapped(*arguments: object) -> object:
                start = time.perf_counter()
                result = call(*arguments)
                spent[0] += time.perf_counter() - start
                return result

            return wrapped

        if ranks.size > 1:
            torch.distributed.all_reduce = timed(torch.distributed.all_reduce)
            torch.distributed.all_gather = timed(torch.distributed.all_gather)
        state = loop.State(model, optim.build_optimizer("sgd", model, lr=0.01))
        backward, criterion = ranks.backward(loop.backward_window, loop.weight_of), losses.build_loss("ce")
        batches = [(x, targets)] * (ranks.accum(MICRO_BATCHES) * WINDOWS)
        for _ in range(2):  # the first epoch warms up
            ranks.any(False)
            spent[0], start = 0.0, time.perf_counter()
            loop.train_epoch(state, batches, criterion, accum=ranks.accum(MICRO_BATCHES), backward=backward)
            ranks.any(False)
            seconds = time.perf_counter() - start
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        if ranks.is_first:
            print(json.dumps({"seconds": seconds, "spent": spent[0], "peak": peak}))


def run_ranks(processes: int, threads: int) -> dict[str, float]:
    shared = os.environ | {"WORLD_SIZE": str(processes), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    command = [sys.executable, __file__, "--rank-worker", "--threads", str(threads)]
    every = [
        subprocess.Popen(
            command, env=shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)}, stdout=subprocess.PIPE, text=True
        )
        for rank in range(processes)
    ]
    printed = [process.communicate()[0] for process in every]
    return json.loads(printed[0])


# bytes per second of one direction of a link, as its all-reduce reaches it; images per second of one GPU with AMP
LINKS = {"8 GPUs, NVLink": (8, 200e9), "8 GPUs, PCIe 4": (8, 12e9), "2 nodes of 8, 100 Gbit/s": (16, 11e9)}
LINKS |= {"2 nodes of 8, 10 Gbit/s": (16, 1.1e9)}
NETWORKS = {"resnet50": 1000, "vit_b_16": 400}


def bench_ranks(device: str, rounds: int) -> list[str]:
    contestants = {"1 process, 2 threads": (1, 2), "1 process, 1 thread": (1, 1), "2 processes, 1 thread each": (2, 1)}
    found: dict[str, list[dict[str, float]]] = {name: [] for name in contestants}
    for _ in range(rounds):
        for name, how in contestants.items():
            found[name].append(run_ranks(*how))
    images = WINDOWS * MICRO_BATCHES * BATCH
    lines = [f"\nWindows of {MICRO_BATCHES} micro-batches of {BATCH}, resnet20, 32 x 32, Gloo\n"]
    lines += ["| processes | images/s | x first | waiting and communication | peak memory of a process, MB |"]
    lines += ["|---|---|---|---|---|"]
    first = found["1 process, 2 threads"]
    for name, runs in found.items():
        speed = images / statistics.median(run["seconds"] for run in runs)
        over = statistics.median(a["seconds"] / b["seconds"] for a, b in zip(first, runs, strict=True))
        share = statistics.median(run["spent"] / run["seconds"] for run in runs)
        peak = statistics.median(run["peak"] for run in runs)
        lines.append(f"| {name} | {speed:.0f} | {over:.2f} | {100 * share:.1f} % | {peak:.0f} |")
    lines += [
        "\nOn paper, not measured: a ring all-reduce sends 2 (N - 1) / N times the bytes of the gradient per GPU."
    ]
    lines += ["Assumed: micro-batches of 32, the links and speeds in the table, no overlap with the backward pass."]
    lines += ["Less than 5 % of the time of the forward and backward passes. `--accum` of train.py is this times the"]
    lines[-1] += " number of GPUs.\n"
    lines += [
        "| network | gradient, MB | images/s of a GPU | link | ms per window | --accum per GPU for less than 5 % |"
    ]
    lines += ["|---|---|---|---|---|---|"]
    for name, speed in NETWORKS.items():
        with torch.device("meta"):
            size = 4 * models.count_parameters(torchvision.models.get_model(name))
        for link, (N, bandwidth) in LINKS.items():
            seconds = 2 * (N - 1) / N * size / bandwidth
            accum = math.ceil(seconds / (0.05 * 32 / speed))
            lines.append(f"| {name} | {size / 1e6:.0f} | {speed} | {link} | {1e3 * seconds:.1f} | {accum} |")
    return lines


TABLES = {  # each with its default number of rounds
    "losses": (bench_losses, 31),
    "metrics": (bench_metrics, 31),
    "loop": (bench_loop, 5),
    "photos": (bench_photos, 7),
    "ranks": (bench_ranks, 5),
}


def main() -> None:
    keep = {"MALLOC_MMAP_THRESHOLD_": str(2**30), "MALLOC_TRIM_THRESHOLD_": str(2**32), "MALLOC_TOP_PAD_": str(2**28)}
    if not keep.items() <= os.environ.items():
        os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | keep)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tables", nargs="*", metavar="TABLE", help=f"one or more of {', '.join(TABLES)} (default all)")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"), help="default cpu")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads (default 2)")
    parser.add_argument("--rounds", type=int, help="rounds per table (default 31; loop and ranks 5, photos 7)")
    parser.add_argument("--out", help="also write the tables to this Markdown file")
    parser.add_argument("--rank-worker", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.rank_worker:
        rank_worker(options.threads)
        return
    unknown = set(options.tables) - set(TABLES)
    if unknown:
        parser.error(f"unknown table {sorted(unknown)[0]!r}: choose from {', '.join(TABLES)}")
    torch.set_num_threads(options.threads)
    device = torch.cuda.get_device_name() if options.device == "cuda" else f"CPU, {options.threads} threads"
    lines = [
        f"`{shlex.join(['python', *sys.argv])}`\n",
        f"{device}; torch {torch.__version__}, torchvision {torchvision.__version__}, "
        f"Python {platform.python_version()}",
    ]
    print("\n".join(lines), flush=True)
    for name in options.tables or TABLES:
        bench, rounds = TABLES[name]
        for line in bench(options.device, options.rounds or rounds):
            print(line, flush=True)
            lines.append(line)
    if options.out:
        Path(options.out).parent.mkdir(parents=True, exist_ok=True)
        Path(options.out).write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

"""train.py: the window's gradient, the order inside an update, what a run leaves, what it refuses."""

import contextlib
import csv
import io
import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import image_array, image_folder
from PIL import Image

import augment
import checkpoint
import cli
import data
import inputs
import loop
import losses
import metrics
import models
import optim
import pixels
import pseudo
import runs
import screen
import train
from ranks import Ranks

SOURCE = "".join(Path(module.__file__).read_text(encoding="utf-8") for module in (cli, inputs, screen, train))
LOSS_NAMES = [*(name for name in losses.LOSSES if name != "cross_entropy"), "ce+f1", "focal:0.6+f1:0.4"]


# --- small data ------------------------------------------------------------------------------------------------------


def run(*more, out="run", epochs=2):
    """A small run in this process; its log as a list of dicts."""
    options = {"--data": "d", "--size": 16, "--model": "resnet8", "--batch-size": 8, "--cache": "cache"}
    words = [str(word) for pair in options.items() for word in pair]
    train.main([*words, "--epochs", str(epochs), "--out", out, *map(str, more)])
    with open(Path(out) / "log.csv", newline="") as file:
        return list(csv.DictReader(file))


def refused(capsys, *words):
    """The one line that a refused command line prints, with exit code 2."""
    with pytest.raises(SystemExit) as stop:
        train.main([str(word) for word in words])
    assert stop.value.code == 2
    return capsys.readouterr().err.strip().splitlines()[-1]


# --- validation ------------------------------------------------------------------------------------------------------


def evaluate(model, batches, num_classes=3):
    """Scores and confusion matrix on images that are not augmented."""
    plain, criterion = augment.Augment("none"), losses.build_loss("ce")
    scores, logits, targets = loop.evaluate(
        model, batches.indexed(), criterion, lambda numbers, images: model(plain(images, numbers, 0))
    )
    return scores, metrics.ConfusionMatrix(num_classes).update(logits, targets)


def test_D4_D5_validation_images_are_never_augmented(workspace):
    plain, light = run("--epochs", 1, out="a"), run("--epochs", 1, "--augment", "light", out="b")
    assert plain[0]["train_loss"] != light[0]["train_loss"]
    table = data.read("d")
    _, val_rows = data.split(table)
    state = checkpoint.load("b/best_f1.pt")
    model = models.build_model("resnet8", 3, 16)
    model.load_state_dict(state["model"])
    val = pixels.Batches(pixels.decode(table.paths, table.targets, 16, "cache/images"), val_rows, 5)
    scores, matrix = evaluate(model, val)
    assert matrix.f1() == pytest.approx(state["scores"]["val_f1"])
    assert scores["val_loss"] == pytest.approx(state["scores"]["val_loss"], rel=1e-4)


# --- a run -----------------------------------------------------------------------------------------------------------


def test_a_run_leaves_what_the_readme_says(workspace, capsys):
    log = run("--loss", "focal", "--accum", 2, "--ema", 0.9, "--class-weights", "effective", epochs=3)
    printed = capsys.readouterr().out
    assert list(log[0]) == list(runs.LOG_COLUMNS) and [row["epoch"] for row in log] == ["1", "2", "3"]
    config = json.loads(Path("run/config.json").read_text())
    assert config["options"]["loss"] == "focal" and config["classes"] == ["class0", "class1", "class2"]
    for name in ("best_f1.pt", "best_loss.pt", "last.pt"):
        state = torch.load(f"run/{name}", weights_only=True)
        assert state["classes"] == config["classes"] and state["model_name"] == "resnet8" and state["size"] == 16
        models.build_model("resnet8", 3, 16).load_state_dict(state["model"])
    best = torch.load("run/best_f1.pt", weights_only=True)
    f1s = [float(row["val_f1"]) for row in log]
    assert best["scores"]["val_f1"] == max(f1s) and best["epoch"] == f1s.index(max(f1s)) + 1
    losses_ = [float(row["val_loss"]) for row in log]
    assert torch.load("run/best_loss.pt", weights_only=True)["epoch"] == losses_.index(min(losses_)) + 1
    for said in (
        "groups on both sides: 0",
        "imbalance",
        "batch size 8 x accum 2 = effective batch 16",
        "best macro F1",
        "interval",
        "worst class",
        "FocalLoss(gamma=2.0",
        "resnet8, 0.07 M",
        "best_f1.pt",
    ):
        assert said in printed, said
    assert "\r" not in printed  # plain lines where there is no terminal


def test_M6_D9_best_f1_holds_the_weights_of_the_best_epoch_and_best_loss_of_its_own(tmp_path):
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, 5))
    optimizer, waited = torch.optim.SGD(model.parameters(), lr=1.0), []
    state = runs.State(model, optimizer, optim.build_schedule("none", optimizer, 2, 3))
    for epoch, (f1, loss) in enumerate([(0.3, 2.0), (0.9, 1.5), (0.4, 1.0), (0.95, math.nan)], start=1):
        with torch.no_grad():
            state.model[1].bias.fill_(epoch)
        row = dict.fromkeys(runs.LOG_COLUMNS, 0.0) | {"epoch": epoch, "val_f1": f1, "val_loss": loss}
        runs.end_epoch(
            tmp_path, state, row, torch.zeros(7, 7), model.state_dict(), {"classes": ["a"]}, "f1", "max", min_delta=0.15
        )
        assert (state.best["epoch"] == epoch) == (epoch in (1, 2, 4)) and state.epoch == epoch
        waited.append(state.epochs_without_improvement)
    best_f1, best_loss, last = (checkpoint.load(tmp_path / f"{name}.pt") for name in ("best_f1", "best_loss", "last"))
    assert [x["epoch"] for x in (best_f1, best_loss, last)] == [4, 3, 4]  # a NaN loss is never the best
    assert best_loss["model"]["1.bias"].tolist() == [3.0] * 5 and best_f1["classes"] == ["a"]
    assert waited == [0, 0, 1, 2]  # 0.95 is the best model, but no improvement by 0.15


def test_E5_last_pt_holds_everything_that_changes(workspace):
    run("--ema", 0.9, "--scheduler", "plateau", epochs=2)
    state = torch.load("run/last.pt", weights_only=True)
    assert state["epoch"] == 2 and state["best"]["f1"] > 0 and state["epochs_without_improvement"] >= 0
    assert state["optimizer"]["state"] and state["schedule"]["updates"] == state["ema"]["updates"] == 10
    assert "drops" in state["schedule"] and "scaler" in state and len(state["rng"]) >= 1
    assert any(key.endswith("running_mean") for key in state["model"])
    model = models.build_model("resnet8", 3, 16)
    optim.build_optimizer("adamw", model).load_state_dict(state["optimizer"])


def test_the_same_seed_gives_the_same_run_and_another_another(workspace):
    def numbers(log):
        return [{k: v for k, v in row.items() if k not in ("images_per_second", "seconds")} for row in log]

    first = numbers(run("--augment", "light", out="a"))
    assert first == numbers(run("--augment", "light", out="b"))
    assert first != numbers(run("--augment", "light", "--seed", 1, out="c"))


@pytest.mark.parametrize("loss", ("ce", "focal+f1"))
def test_accumulation_gives_the_big_batchs_run(workspace, loss):
    options = ("--model", "nets.py:plain", "--loss", loss, "--optimizer", "sgd", "--lr", 0.05, "--augment", "light")
    options += ("--class-weights", "inverse")
    big = run(*options, "--batch-size", 16, out="big")
    small = run(*options, "--batch-size", 4, "--accum", 4, out="small")
    other = run(*options, "--batch-size", 4, "--accum", 2, out="other")
    for row, same, different in zip(big, small, other, strict=True):
        assert float(same["val_ce"]) == pytest.approx(float(row["val_ce"]), rel=1e-4)
        assert float(same["train_loss"]) == pytest.approx(float(row["train_loss"]), rel=1e-4)
        assert float(different["val_ce"]) != pytest.approx(float(row["val_ce"]), rel=1e-4)
    weights = [checkpoint.load(f"{name}/last.pt")["model"] for name in ("big", "small")]
    assert all(torch.allclose(weights[0][key], weights[1][key], atol=1e-5) for key in weights[0])


@pytest.mark.parametrize("loss", LOSS_NAMES)
def test_L7_every_loss_trains_end_to_end(workspace, loss):
    log = run("--loss", loss, "--class-weights", "sqrt")
    assert all(math.isfinite(float(row["train_loss"])) for row in log)


@pytest.mark.parametrize("scheduler", optim.SCHEDULES)
def test_A9_every_schedule_runs_and_its_rate_is_in_the_log(workspace, scheduler):
    more = ("--step-epochs", 1) if scheduler == "step" else ()
    log = run("--scheduler", scheduler, "--warmup", 1, "--lr", 0.01, "--optimizer", "sgd", *more, epochs=3)
    rates = [float(row["lr"]) for row in log]
    assert rates[0] < 0.01 and max(rates) <= 0.01 + 1e-12 and rates[1] > rates[0]


def test_early_stopping_waits_for_an_improvement_of_min_delta(workspace, capsys):
    assert len(run("--patience", 2, "--min-delta", 2.0, epochs=6)) == 3  # F1 never gains 2: epoch 1, then two more
    assert "early stopping: validation f1 has not improved (--patience 2)" in capsys.readouterr().out
    assert len(run("--patience", 2, "--monitor", "loss", "--min-delta", -9.0, out="b", epochs=4)) == 4  # always one


def test_A10_epochs_is_the_number_of_epochs(workspace):
    assert len(run(epochs=3)) == 3


def test_non_finite_in_a_run_exits_2_names_files_and_leaves_the_last_good_epoch(workspace, capsys):
    with pytest.raises(SystemExit) as stop:
        run("--model", "nets.py:Poisoned", "--batch-size", 16)  # 3 updates an epoch: the fourth is in epoch 2
    assert stop.value.code == 2
    said = capsys.readouterr().err
    assert "loss nan" in said and "epoch 2" in said and "class0" in said and "epochs saved in run: 1" in said
    assert checkpoint.load("run/last.pt")["epoch"] == 1


# --- options ---------------------------------------------------------------------------------------------------------


def options_of(*words):
    return cli.parse_options([str(word) for word in words])


def test_names_of_the_bootcamp_baseline_are_understood():
    options = options_of("--batch_size", 7, "--criterion=focal", "--weight_decay", 0.1)
    assert (options.batch_size, options.loss, options.weight_decay) == (7, "focal", 0.1)
    assert options_of("--data", "my_folder", "--class_weights=inverse").class_weights == "inverse"


def test_A5_D3_every_option_is_used():
    used = set(re.findall(r"options\.(\w+)", SOURCE.split("def given")[1]))
    used |= set(re.findall(r'"(\w+)"', " ".join(re.findall(r"given\(([^)]*)\)", SOURCE)))) | set(cli.SCHEDULE_OPTIONS)
    used |= {"only", "merge", *cli.LOSS_OPTIONS}  # read by name in inputs
    used |= {"config"}  # read before the other options
    used |= set(re.findall(r"options\.(\w+)", Path(pseudo.__file__).read_text(encoding="utf-8")))
    assert set(vars(options_of())) - used == set()


def test_E1_no_option_is_of_type_bool_or_list():
    assert not re.search(r"type=(bool|list|tuple)", SOURCE)


def test_defaults_of_the_demo_and_of_real_data_differ_and_are_resolved():
    demo, real = options_of(), options_of("--data", "x")
    assert (demo.model, demo.size) == ("resnet8", 48) and (real.model, real.size) == ("resnet18", 224)


@pytest.mark.parametrize(
    "words, said",
    [
        (["--data", "nowhere"], "--data: nowhere is neither a folder"),
        (["--data", "empty"], "--data: empty contains no class folders"),
        (["--data", "single"], "--data: single contains only one class"),
        (["--data", "lonely"], "--data: class 'class1' has only 1 image"),
        (["--data", "broken"], "of 43 images cannot be decoded"),
        (["--csv", "no.csv"], "--csv: no.csv is not a file"),
        (["--val-data", "nowhere"], "--val-data: nowhere is neither"),
        (["--val-data", "d"], "--val-data: files that are both in training and in validation: 42"),
        (["--val-data", "single"], "--val-data: single contains only one class"),
        (["--data", "constant"], "--data: all 4 validation images have the same class"),  # M7
        (["--val-frac", "1.5"], "--val-frac must be between 0 and 1, got 1.5"),
        (
            ["--val-frac", "0.3", "--val-data", "other"],
            "--val-frac: 0.3 has no effect because the validation",
        ),
        (["--size", "4"], "--size must be one side, or height and width, each at least 8 pixels; got 4"),
        (["--augment", "lots"], "--augment: unknown augmentation 'lots': choose from none, crop, light"),
        (["--loss", "focall"], "--loss: unknown loss 'focall': choose from ce"),
        (["--loss", "ce", "--gamma", "2"], "--gamma: loss 'ce' does not take gamma"),
        (["--loss", "focal", "--gamma", "-1"], "--gamma must be at least 0, got -1"),
        (["--class-weights", "balanced"], "argument --class-weights: invalid choice: 'balanced'"),
        (["--model", "resnet19"], "--model: unknown model 'resnet19'; close names: resnet18"),
        (["--model", "nets.py:missing"], "--model: nets.py has no function 'missing'"),
        (["--weights", "no.pt"], "--weights: there is no file no.pt"),
        (["--optimizer", "adamx"], "argument --optimizer: invalid choice: 'adamx'"),
        (["--lr", "-1"], "--lr must be greater than 0, got -1"),
        (["--lr", "nan"], "--lr must be greater than 0, got nan"),
        (["--weight-decay", "-1"], "--weight-decay must be at least 0, got -1"),
        (["--group-regex", "("], "--group-regex '(' is not a valid regular expression: missing )"),
        (["--group-regex", "x(y)z"], "--group-regex: "),
        (["--smoothing", "2"], "--smoothing must be from 0 to 1, got 2"),
        (["--scheduler", "cosin"], "argument --scheduler: invalid choice: 'cosin'"),
        (["--scheduler", "cosine", "--t0", "3"], "--t0: schedule 'cosine' does not take t0"),
        (["--warmup", "99"], "--warmup 99 must be shorter than the run of 1 epochs (--epochs)"),
        (["--epochs", "0"], "--epochs must be at least 1, got 0"),
        (["--batch-size", "0"], "--batch-size must be at least 1, got 0"),
        (["--accum", "0"], "--accum must be at least 1, got 0"),
        (["--clip", "0"], "--clip must be greater than 0, got 0"),
        (["--ema", "1"], "--ema must be between 0 and 1, got 1"),
        (["--device", "meta"], "--device: 'meta' is not a supported device: choose cpu, cuda or cuda:NUMBER"),
        (["--device", "gpu"], "--device: 'gpu' is not a supported device: choose cpu, cuda or cuda:NUMBER"),
        (["--device", "mps"], "--device: 'mps' is not a supported device: choose cpu, cuda or cuda:NUMBER"),
        (["--device", "nonsense"], "--device: 'nonsense' is not a supported device: choose cpu, cuda or cuda:NUMBER"),
        (["--device", "cuda:99"], "--device: 'cuda:99' is not available: CUDA GPUs found"),
        (["--out", "nets.py"], "--out: nets.py is a file"),
        (["--cache", "nets.py"], "--cache: "),
        (["--seed", "99999999999999999999"], "--seed must be less than 2^63"),
        (["--min-delta", "0.1"], "--min-delta 0.1 has no effect without --patience"),
        (["--scheduler", "step", "--lr-decay", "nan"], "--lr-decay must be between 0 and 1, got nan"),
        (["--scheduler", "step", "--lr-decay", "5"], "--lr-decay must be between 0 and 1, got 5"),
        (["--min-lr", "9"], "--min-lr 9 must be at most the learning rate 0.001 (--lr)"),
        (["--model", "resnet18", "--size", "32", "--batch-size", "1"], "--batch-size: resnet18 cannot take batches of"),
        (["--model", "nets.py:exits"], "nets.py:exits cannot be built (SystemExit"),
        (["--csv", "latin.csv"], "--csv: latin.csv is neither UTF-8 nor UTF-16 nor cp949"),
        (["--csv", "ragged.csv"], "--csv: ragged.csv: line 3 does not have the header's 2 columns"),
        (
            ["--csv", "twice.csv"],
            "--csv: twice.csv: images with two labels: 1; keep one row of each image:\n"
            "  d/class0/00.png: 0 (line 2) and 1 (line 3)",
        ),
        (["--csv", "huge.csv"], "--csv: huge.csv: 30000000000000000000 in column 'label' is not a valid class number"),
        (["--data", "untrained"], "--data: class 'class2' has validation images but no training images"),
        (["--data", "constant", "--val-data", "d"], "constant with train and val already contains validation images"),
        (["--folds", "1"], "--folds must be at least 2, got 1"),
        (["--folds", "50"], "--folds: the number of folds must be from 2 to 42, the number of groups, got 50"),
        (
            ["--folds", "20"],
            "at least two classes are needed (the smallest class is 'class2' with 6 images: use fewer",
        ),
        (["--num-classes", "1"], "--num-classes must be at least 2, got 1"),
        (["--num-classes", "3"], "--data: --num-classes is only for a CSV with class numbers, and d is a different"),
        (["--fold", "1"], "--fold: 1 has no effect without folds: add --folds"),
        (["--folds", "3", "--fold", "3"], "--fold: '3' is not a valid fold: choose from 0 to 2, or all"),
        (["--folds", "3", "--val-frac", "0.3"], "--val-frac: 0.3 has no effect with folds"),
        (["--folds", "3", "--val-data", "other"], "--folds: the validation images are given"),
        (["--fold-col", "part"], "image folder d has no CSV, so it has no column 'part'"),
        (["--only", "0"], "--only: '0' is fewer than two classes: give at least two"),
        (["--only", "0,9"], "--only: '9' is not a valid class: choose from 0 class0, 1 class1, 2 class2"),
        (["--merge", "0,1,2"], "--merge: '0,1,2' are all classes"),
        (["--imbalance", "0.5"], "--imbalance must be at least 1, got 0.5"),
        (["--imbalance", "nan"], "--imbalance must be at least 1, got nan"),
        (["--imbalance", "2"], "--imbalance: class 'class1' has 10 training images, and with imbalance 2 it would"),
        (["--sampler", "fair"], "argument --sampler: invalid choice: 'fair'"),
        (["--samples-per-class", "5"], "--samples-per-class needs --sampler balanced, got --sampler shuffle"),
        (["--mixup", "-0.1"], "--mixup must be at least 0, got -0.1"),
        (["--cutmix", "inf"], "--cutmix must be at least 0 and finite, got inf"),
        (["--transform", "mine"], "--transform: 'mine' is not FILE.py:FUNCTION"),
        (["--fit", "stretch"], "argument --fit: invalid choice: 'stretch'"),
        (["--bad", "ignore"], "argument --bad: invalid choice: 'ignore'"),
        (["--leaks", "ignore"], "argument --leaks: invalid choice: 'ignore'"),
        (["--out", "taken"], "--out: taken already contains a run"),
        (["--los", "ce"], "unknown option --los: did you mean --loss?"),
    ],
)
def test_bad_input_is_one_line_that_names_the_flag_and_exit_code_2(workspace, capsys, words, said):
    (workspace / "empty").mkdir()
    image_folder(workspace / "single", (5,))
    image_folder(workspace / "lonely", (5, 1))
    image_folder(workspace / "broken")
    image_folder(workspace / "other", seed=1)
    image_folder(workspace / "constant" / "train")
    image_folder(workspace / "constant" / "val", (4,))
    (workspace / "broken" / "class0" / "text.jpg").write_text("no image")
    image_folder(workspace / "untrained" / "train", (4, 4))
    image_folder(workspace / "untrained" / "val")
    (workspace / "latin.csv").write_bytes(b"file,label\nclass0/00.png,\xff\xff\n")
    (workspace / "ragged.csv").write_text("file,label\nclass0/00.png,0\nclass0/01.png\n")
    (workspace / "twice.csv").write_text("file,label\nclass0/00.png,0\nclass0/00.png,1\n")
    (workspace / "huge.csv").write_text("file,label\nclass0/00.png,0\nclass0/01.png,30000000000000000000\n")
    (workspace / "taken").mkdir()
    (workspace / "taken" / "config.json").write_text("{}")
    base = {"--data": "d", "--size": "16", "--model": "resnet8", "--cache": "cache", "--epochs": "1", "--out": "run"}
    base |= dict(zip(words[::2], words[1::2], strict=True))
    with pytest.raises(SystemExit) as stop:
        train.main([word for pair in base.items() for word in pair])
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert "train.py: error: " in error or "error: " in error
    assert said in error
    assert not (workspace / "run").exists()  # before the run starts


# --- on a GPU --------------------------------------------------------------------------------------------------------


def test_gpus_are_hidden_from_a_test_without_the_mark_and_from_what_it_starts():
    assert not torch.cuda.is_available() and torch.cuda.device_count() == 0
    code = "import os; print(repr(os.environ['CUDA_VISIBLE_DEVICES']))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "''"


@pytest.mark.gpu(1)
@pytest.mark.parametrize("amp", ("off", "fp16", "bf16"))
@pytest.mark.parametrize("loss", ("focal", "ce+f1"))
def test_a_run_on_cuda(workspace, amp, loss):
    log = run("--device", "cuda", "--amp", amp, "--loss", loss, "--accum", 2, epochs=3)
    assert all(math.isfinite(float(row["val_loss"])) for row in log)


@pytest.mark.gpu(1)
def test_batches_from_pinned_memory_are_those_of_the_cpu():
    images = image_array()
    pinned, plain = (pixels.Batches(images, np.arange(40), 8, True, device=device) for device in ("cuda", "cpu"))
    for ours, theirs in zip(pinned.indexed(), plain.indexed(), strict=True):
        assert all(a.is_cuda and torch.equal(a.cpu(), b) for a, b in zip(ours, theirs, strict=True))


@pytest.mark.gpu(1)
@pytest.mark.parametrize("name", ("focal", "ce+f1"))
def test_the_gradient_of_a_window_on_cuda_never_waits_for_the_device(name):
    images = image_array()
    assert images.move_to(torch.device("cuda"))
    model = models.build_model("resnet8", 5, 8).cuda()
    batches = pixels.Batches(images, np.arange(40), 8, device="cuda")
    transform, criterion = augment.Augment("light"), losses.build_loss(name).cuda()
    window = next(loop.windows(batches.indexed(), 4, "cuda"))
    loop.backward_window(model, lambda i, x: model(transform(x, i, 0)), criterion, window)
    torch.cuda.set_sync_debug_mode("error")
    try:
        loop.backward_window(model, lambda i, x: model(transform(x, i, 0)), criterion, window)
    finally:
        torch.cuda.set_sync_debug_mode("default")


# --- folds, leaks, samplers ------------------------------------------------------------------------------------------

TIMING = {"images_per_second", "seconds"}


def log_of(folder):
    with open(Path(folder) / "log.csv", newline="") as file:
        return [{key: value for key, value in row.items() if key not in TIMING} for row in csv.DictReader(file)]


def start(*words, out="run"):
    base = {"--data": "d", "--size": 16, "--model": "resnet8", "--batch-size": 8, "--cache": "cache", "--epochs": 2}
    base |= dict(zip(words[::2], words[1::2], strict=True)) | {"--out": out}
    train.main([str(word) for pair in base.items() for word in (pair[0], *str(pair[1]).split(" "))])


def test_D7_D8_D9_each_fold_is_a_run_of_its_own_from_fresh_weights(workspace, capsys):
    start("--folds", 3, "--ema", 0.5, "--scheduler", "plateau", out="all")
    said = capsys.readouterr().out
    with open("all/folds.csv", newline="") as file:
        folds = list(csv.DictReader(file))
    assert [row["fold"] for row in folds] == ["0", "1", "2"]
    out_of_fold = torch.zeros(3, 3, dtype=torch.long)
    for f in range(3):
        start("--folds", 3, "--fold", f, "--ema", 0.5, "--scheduler", "plateau", out=f"single{f}")
        assert log_of(f"all/fold{f}") == log_of(f"single{f}")  # nothing was carried over from the fold before
        best = max(log_of(f"all/fold{f}"), key=lambda row: float(row["val_f1"]))
        assert folds[f]["val_f1"] == best["val_f1"] and folds[f]["epoch"] == best["epoch"]
        saved = checkpoint.load(f"all/fold{f}/best_f1.pt")
        assert saved["scores"]["val_f1"] == float(best["val_f1"])
        table = data.read("d")
        val = np.flatnonzero(data.folds(table, 3) == f)
        images = pixels.decode(table.paths, table.targets, 16, "cache/images")
        model = models.build_model("resnet8", 3, 16)
        model.load_state_dict(saved["model"])
        _, matrix = evaluate(model, pixels.Batches(images, val, 8))
        assert matrix.f1() == pytest.approx(float(best["val_f1"]), abs=1e-12)
        out_of_fold += matrix.matrix
    assert out_of_fold.sum() == 42
    oof = np.load("all/oof.npz")
    assert sorted(oof["paths"].tolist()) == sorted(table.paths) and oof["probs"].shape == (42, 3)
    pairs = torch.tensor(oof["targets"]), torch.tensor(oof["probs"].argmax(1))
    counted = torch.zeros(3, 3, dtype=torch.long).index_put_(pairs, torch.tensor(1), accumulate=True)
    assert torch.equal(counted, out_of_fold)
    f1 = (2 * out_of_fold.diag() / (out_of_fold.sum(0) + out_of_fold.sum(1)).clamp(min=1)).double().mean()
    assert f"out-of-fold macro F1 of all images {float(f1):.4f}" in said
    wrong = re.findall(r"^ +\d+  (class\d) -> (class\d)  (\S+) \(([\d.]+)\)$", said, re.M)
    for target, _, file, confidence in wrong:
        assert f"/{target}/" in file and 1 / 3 < float(confidence) <= 1
    assert wrong
    values = [float(row["val_f1"]) for row in folds]
    assert f"mean {np.mean(values):.4f}, std {np.std(values, ddof=1):.4f}" in said
    assert log_of("single0") != log_of("single1")


def test_a_fold_column_is_obeyed_and_its_first_fold_is_the_default(workspace, capsys):
    table = data.read("d")
    with open("folds.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["image", "label", "fold"])
        rows = enumerate(zip(table.paths, table.targets, strict=True))
        writer.writerows([Path(path).relative_to("d"), target, "ab"[i % 2]] for i, (path, target) in rows)
    start("--csv", "folds.csv", "--epochs", 1, out="first")
    assert "21 training, 21 validation images (fold 0)" in capsys.readouterr().out
    start("--csv", "folds.csv", "--epochs", 1, "--fold", "all", out="both")
    assert log_of("both/fold0") == log_of("first") and Path("both/fold1/log.csv").exists()


@pytest.fixture
def copies(workspace):
    """d with six identical and six mirrored copies of images."""
    rng = np.random.default_rng(5)
    scenes = [
        Image.fromarray(rng.integers(0, 256, (4, 4, 3), dtype=np.uint8)).resize((16, 16), Image.Resampling.BICUBIC)
        for _ in range(12)
    ]
    for i, scene in enumerate(scenes):
        scene.save(workspace / "d" / f"class{i % 2}" / f"scene{i}.png")
    for i, scene in enumerate(scenes):
        copy = scene if i < 6 else scene.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        copy.save(workspace / "d" / f"class{i % 2}" / f"copy{i}.png")
    return workspace


def leaks_of(folder):
    path = Path(folder) / "leaks.csv"
    return list(csv.DictReader(open(path, newline=""))) if path.exists() else []


def test_copies_across_the_split_are_counted_and_named_and_can_be_kept_on_one_side(copies, capsys):
    start("--epochs", 1, "--val-frac", 0.5, out="warned")
    said, leaks = capsys.readouterr().out, leaks_of("warned")
    assert {leak["what"] for leak in leaks} == {"identical", "alike"}
    for what, name in (("identical", "an identical image"), ("alike", "a near-duplicate")):
        of_kind = [leak for leak in leaks if leak["what"] == what]
        assert f"validation images with {name} in the training set: {len(of_kind)} (see leaks.csv)" in said
        assert of_kind[0]["validation"] in said and of_kind[0]["training"] in said
    for leak in leaks:  # a copy is what its name says
        numbers = [re.search(r"\d+(?=\.png)", leak[side])[0] for side in ("validation", "training")]
        assert numbers[0] == numbers[1]
    start("--epochs", 1, "--val-frac", 0.5, "--leaks", "group", out="grouped")
    assert leaks_of("grouped") == [] and "(see leaks.csv)" not in capsys.readouterr().out
    with pytest.raises(SystemExit) as stop:
        train.main([str(word) for word in [*base_words(), "--val-frac", 0.5, "--leaks", "error", "--out", "no"]])
    error = capsys.readouterr().err
    assert stop.value.code == 2 and "validation images with a near-duplicate in the" in error
    assert f"training set: {len(leaks)}. Remove them, or use --leaks group" in error
    assert not Path("no").exists()


def base_words():
    return ["--data", "d", "--size", 16, "--model", "resnet8", "--cache", "cache", "--epochs", 1]


def test_identical_images_with_two_labels_stop_the_run_unless_told_otherwise(copies, capsys):
    for i in range(6, 12):
        Image.open(copies / "d" / f"class{i % 2}" / f"scene{i}.png").save(copies / "d" / "class2" / f"wrong{i}.png")
    with pytest.raises(SystemExit) as stop:
        train.main([str(word) for word in [*base_words(), "--out", "no"]])
    error = capsys.readouterr().err
    assert stop.value.code == 2 and "wrong" in error
    assert "validation images identical to a training image with a different label: " in error
    start("--epochs", 1, "--leaks", "warn", out="warned")
    assert "images identical to one with a different label: 6\n" in capsys.readouterr().out
    start("--epochs", 1, "--leaks", "group", out="grouped")
    assert leaks_of("grouped") == []


def test_leaks_group_cannot_change_a_given_split(copies, capsys):
    image_folder(copies / "v", (4, 4, 4), seed=9)
    assert "--leaks: group cannot change a split" in refused(
        capsys, *base_words(), "--val-data", "v", "--leaks", "group", "--out", "no"
    )


def test_D12_D13_D14_a_sampler_uses_the_training_rows_and_says_the_effective_prior(workspace, capsys):
    start("--sampler", "weighted", "--epochs", 1, out="a")
    said = capsys.readouterr().out
    # 24, 12 and 6 images: 19, 10 and 5 for training
    assert "weighted, 34 images per epoch, class prior " in said and "twice" not in said
    start("--sampler", "oversample", "--class-weights", "inverse", "--epochs", 1, out="b")
    said = capsys.readouterr().out
    assert "oversample, 57 images per epoch, class prior 33 to 33 %" in said
    assert "--sampler oversample and --class-weights inverse both favour rare classes. Together they correct" in said
    # weights as 1/19, 1/10, 1/5 of equal parts: 14.9, 28.4 and 56.7 %
    assert "effective class prior with class weights 15 to 57 %" in said
    start("--sampler", "balanced", "--samples-per-class", 7, "--epochs", 1, out="c")
    assert "balanced, 19 images per epoch, class prior 26 to 37 %" in capsys.readouterr().out  # 7, 7 and all 5


def test_a_sampler_makes_the_epochs_loss_the_mean_over_what_was_drawn(workspace):
    start("--sampler", "oversample", "--epochs", 1, "--lr", 1e-12)
    row = log_of("run")[0]
    assert 0.5 < float(row["train_ce"]) < 3
    assert float(row["train_loss"]) == pytest.approx(float(row["train_ce"]), rel=1e-5)


def test_mixing_trains_every_kind_of_loss_and_keeps_validation_clean(workspace):
    for loss in ("ce", "focal", "label_smoothing", "ce+f1"):
        start("--mixup", 0.4, "--cutmix", 1, "--loss", loss, "--accum", 2, "--epochs", 1, out=f"mixed-{loss}")
        assert math.isfinite(float(log_of(f"mixed-{loss}")[0]["train_loss"]))
    start("--mixup", 0.4, "--lr", 1e-12, "--epochs", 1, out="a")
    start("--lr", 1e-12, "--epochs", 1, out="b")
    a, b = log_of("a")[0], log_of("b")[0]
    assert float(a["val_ce"]) == pytest.approx(float(b["val_ce"]), abs=0.02)  # BatchNorm saw other images
    assert a["train_ce"] != b["train_ce"]


def test_F5_a_run_with_mixing_is_the_same_for_batch_8_accum_4_and_batch_32(workspace):
    (workspace / "plain.py").write_text(
        "from torch import nn\n"
        "def net(num_classes):\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(768, 8), nn.Tanh(), nn.Linear(8, num_classes))\n"
    )
    weights = []
    for batch_size, accum in ((8, 4), (32, 1), (16, 4)):
        words = ("--mixup", 0.4, "--cutmix", 1, "--optimizer", "sgd", "--lr", 0.05, "--sampler", "weighted")
        words += ("--epochs", 1, "--batch-size", batch_size, "--accum", accum, "--model", "plain.py:net")
        start(*words, out=f"mixed{batch_size}")
        state = checkpoint.load(f"mixed{batch_size}/last.pt")["model"]
        weights.append(torch.cat([value.flatten() for value in state.values()]))
    assert torch.allclose(weights[0], weights[1], rtol=1e-4, atol=1e-6)
    assert not torch.allclose(weights[0], weights[2], rtol=1e-2, atol=1e-4)  # negative control: a window of 64


def test_M8_the_loss_under_mixing_is_against_the_mixed_labels():
    images = image_array(N=8)
    mixed = augment.Augment("none", mixup=1.0, num_classes=5)
    targets = mixed.mix_targets(images.targets, torch.arange(8), 1, (8, 8))
    state_model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, 5))
    optimizer = optim.build_optimizer("sgd", state_model, lr=1e-30)
    state = runs.State(state_model, optimizer, optim.build_schedule("none", optimizer, 1, 1))
    batches = pixels.Batches(images, np.arange(8), 8)
    batches.epoch = 1
    logits = state_model(mixed(images.gather(torch.arange(8)), torch.arange(8), 1)).detach()
    options, counts = options_of("--mixup", "1"), np.bincount(images.targets, minlength=5)
    recipe = inputs.Recipe(options, counts, counts, torch.device("cpu"))
    scores = train.train_epoch(options, Path("no folder"), state, recipe, batches, {}, Ranks())
    assert scores["train_ce"] == pytest.approx(float(F.cross_entropy(logits, targets)), rel=1e-5)
    assert scores["train_ce"] != pytest.approx(float(F.cross_entropy(logits, images.targets)), rel=1e-3)


def test_a_transform_of_yours_runs_on_training_images_only(workspace, capsys):
    (workspace / "mine.py").write_text(
        "def black(image, rng):\n    return image * 0\ndef bad(image, rng):\n    return image / 2\n"
    )
    start("--transform", "mine.py:black", "--lr", 1e-12, "--epochs", 1, out="black")
    start("--lr", 1e-12, "--epochs", 1, out="plain")
    black, plain = log_of("black")[0], log_of("plain")[0]
    assert black["train_ce"] != plain["train_ce"]
    error = refused(capsys, *base_words(), "--transform", "mine.py:bad", "--out", "no")
    assert "--transform: the transform failed for " in error
    assert "no function 'none'" in refused(capsys, *base_words(), "--transform", "mine.py:none", "--out", "no")
    assert not Path("no").exists()


def test_a_run_begun_with_a_weights_file_goes_on_without_it_and_says_once_what_starts_fresh(workspace, capsys):
    torch.manual_seed(1)
    torch.save(models.build_model("resnet8", 5, 16).state_dict(), "first.pt")
    start("--weights", "first.pt", "--scheduler", "none", "--epochs", 1)
    assert capsys.readouterr().out.count("first.pt: loaded all but linear.weight, linear.bias") == 1
    start("--weights", "first.pt", "--scheduler", "none", "--epochs", 2, out="whole")
    Path("first.pt").unlink()
    train.main(["--resume", "run", "--epochs", "2"])
    assert log_of("run")[1]["val_ce"] == log_of("whole")[1]["val_ce"]
    Path("run/last.pt").unlink()  # negative control: where nothing was saved, the run begins with its file again
    Path("run/last.previous.pt").unlink()
    assert "there is no file first.pt" in refused(capsys, "--resume", "run", "--epochs", 2)


def test_a_preview_is_one_picture_and_no_run(workspace, capsys):
    start("--preview", "sheet.png", "--augment", "strong", "--mixup", 0.4, "--batch-size", 16, out="no")
    assert "sheet.png: 16 training images after augmentation" in capsys.readouterr().out
    assert Image.open("sheet.png").size[0] > 8 * 90 and not Path("no").exists()


def test_images_need_not_be_square(workspace):
    start("--size", "16 24", "--epochs", 1)
    saved = checkpoint.load("run/best_f1.pt")
    assert tuple(saved["size"]) == (16, 24) and saved["fit"] == "squash"


def test_bad_files_are_left_out_when_asked_and_counted(workspace, capsys):
    (workspace / "d" / "class0" / "text.png").write_text("no image")
    start("--bad", "skip", "--epochs", 1)
    said = capsys.readouterr().out
    assert (
        "42 images, 3 classes" in said and "1 of 43 images cannot be decoded and are left out; the list is in " in said
    )


def test_classes_can_be_merged_and_chosen(workspace):
    start("--merge", "class1,class2", "--epochs", 1, out="parent")
    start("--only", "1,2", "--epochs", 1, out="child")
    assert checkpoint.load("parent/best_f1.pt")["classes"] == ["class0", "class1+class2"]
    assert checkpoint.load("child/best_f1.pt")["classes"] == ["class1", "class2"]


def test_an_imbalance_is_cut_from_the_training_images_alone(workspace, capsys):
    image_folder(workspace / "even", (40, 40, 40), seed=3)
    start("--data", "even", "--imbalance", 8, "--epochs", 1)
    said = capsys.readouterr().out
    # of 32: 32, int(32 / sqrt(8)) = 11, 4
    assert "47 training, 24 validation images" in said and "imbalance 8.0" in said


def test_a_name_that_looks_like_a_copy_is_a_note_at_the_start(workspace, capsys):
    for path in list((workspace / "d").rglob("*.png")):
        path.rename(path.with_name(f"{path.parent.name}_{int(path.stem) // 3}_aug{int(path.stem) % 3}.png"))
    start("--epochs", 1)
    assert "--group-regex" in capsys.readouterr().out


def test_a_file_name_that_is_no_utf_8_goes_through_a_run(workspace, capsys):
    folder = os.fsencode(workspace / "d" / "class0")
    for i, name in enumerate(sorted(os.listdir(folder))[:8]):
        os.rename(os.path.join(folder, name), os.path.join(folder, b"\xb0\xa1_%d.png" % i))  # cp949, as unzip leaves it
    (workspace / "d" / "class0" / os.fsdecode(b"\xb0.png")).write_bytes(b"")
    start("--bad", "skip", "--epochs", 1)
    assert b"\xb0\xa1" in Path("run/val_predictions.csv").read_bytes()
    with pytest.raises(SystemExit):
        start(out="no")
    assert "1 of 43 images cannot be decoded" in capsys.readouterr().err
    train.main(["--resume", "run"])


# --- seams ------------------------------------------------------------------------------------------------------------


def test_a_fold_column_beside_given_validation_images_is_refused_or_a_note(workspace, capsys):
    image_folder(workspace / "v", (4, 4, 4), seed=9)
    rows = [
        {"file": str(path.relative_to("d")), "label": path.parent.name, "fold": i % 2}
        for i, path in enumerate(sorted(Path("d").rglob("*.png")))
    ]
    with open("with_folds.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    words = ["--csv", "with_folds.csv", "--val-data", "v"]
    said = refused(capsys, *base_words(), *words, "--fold-col", "fold", "--out", "no")
    assert "--fold-col: fold has no effect with --val-data" in said
    start("--csv", "with_folds.csv", "--val-data", "v", "--label-col", "label", "--epochs", 1, out="noted")
    assert "ignored the fold column, because validation images are given" in capsys.readouterr().out


def test_resuming_one_fold_names_the_run_that_it_is_of(workspace, capsys):
    start("--folds", 3, "--epochs", 1, out="five")
    assert f"is one fold of a run: resume the whole run with --resume {Path('five').resolve()}" in refused(
        capsys, "--resume", "five/fold1"
    )


@pytest.mark.parametrize("content, said", [("{", "is damaged"), ("{}", "it has no classes, command, data")])
def test_a_damaged_config_is_one_line(workspace, capsys, content, said):
    start("--epochs", 1, out="hurt")
    Path("hurt/config.json").write_text(content)
    assert said in refused(capsys, "--resume", "hurt")


def test_a_signal_before_the_run_has_a_folder_promises_no_resume(workspace, capsys, monkeypatch):
    def stop(*arguments):
        raise train.Stopped

    monkeypatch.setattr(inputs, "make_state", stop)
    monkeypatch.setattr(train.SIGNALS, "asked", 15)
    monkeypatch.setattr(train.SIGNALS, "installed", contextlib.nullcontext)
    with pytest.raises(SystemExit) as ended:
        start(out="never")
    assert ended.value.code == 143 and "stopped by SIGTERM before the run began" in capsys.readouterr().err


# --- the look --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "is_terminal, environment, coloured",
    [
        (True, {}, True),
        (True, {"NO_COLOR": "1"}, False),
        (True, {"NO_COLOR": ""}, True),
        (True, {"TERM": "dumb"}, False),
        (False, {}, False),
    ],
)
def test_colour_is_for_terminals_alone_and_never_with_no_color(monkeypatch, is_terminal, environment, coloured):
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("sys.stdout.isatty", lambda: is_terminal)
    assert (cli.coloured("best", cli.GREEN) != "best") is coloured


def test_rows_stand_under_their_heads_whatever_their_size(capsys):
    row = dict.fromkeys(runs.LOG_COLUMNS, 0.5) | {"epoch": 3, "lr": 1e-3}
    screen.print_row(row, True)
    screen.print_row(
        row | {"epoch": 100, "train_loss": 12345.678, "val_loss": 1e9, "images_per_second": 98765.4}, False
    )
    best, other = capsys.readouterr().out.splitlines()
    assert best.endswith("  best") and len(best) == len(other) + len("  best")


def test_every_group_of_the_help_has_an_example_that_parses():
    groups = cli.make_parser()._action_groups[2:]  # after argparse's own two
    assert len(groups) == 10
    for group in groups:
        assert group.description.startswith("e.g. --")
        cli.make_parser().parse_args(group.description.removeprefix("e.g. ").split())


# --- the second house: what main returns, which flag is named, what stays a traceback ---------------------------------


def test_main_returns_the_scores_of_the_best_epoch_and_needs_no_real_terminal(workspace):
    words = [str(word) for word in [*base_words(), "--epochs", 2, "--out", "run"]]
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):  # as in a notebook
        scores = train.main(words)
    best = max(log_of("run"), key=lambda row: float(row["val_f1"]))
    assert scores["out"] == "run" and scores["epoch"] == int(best["epoch"])
    assert scores["val_f1"] == float(best["val_f1"]) and scores["val_accuracy"] == float(best["val_accuracy"])


def test_main_returns_the_out_of_fold_score_of_several_folds(workspace):
    words = [*base_words(), "--folds", 3, "--epochs", 1, "--out", "run"]
    scores = train.main([str(word) for word in words])
    assert scores["val_f1"] == runs.read("run").predictions.matrix.f1() and len(scores["folds"]) == 3
    assert train.main([str(word) for word in [*base_words(), "--preview", "sheet.png"]]) == {"preview": "sheet.png"}


def test_updates_csv_has_the_learning_rate_of_every_update(workspace, monkeypatch):
    rates, step = [], torch.optim.AdamW.step

    def spy(self, *more):
        rates.append(self.param_groups[0]["lr"])
        return step(self, *more)

    monkeypatch.setattr(torch.optim.AdamW, "step", spy)
    run("--accum", 2, "--scheduler", "onecycle", epochs=3)
    updates = runs.read("run").updates
    assert list(updates) == list(runs.UPDATE_COLUMNS) and updates["lr"] == rates
    assert updates["update"] == list(range(1, len(rates) + 1)) and set(updates["epoch"]) == {1, 2, 3}
    assert min(updates["grad_norm"]) > 0 and all(map(math.isfinite, updates["loss"]))


def test_a_network_that_needs_square_images_says_so(workspace, capsys):
    error = refused(capsys, *base_words(), "--model", "vit_tiny", "--size", 256, 192)
    assert "--model: vit_tiny takes only square images, got size 256 x 192" in error


def test_a_full_cache_disk_names_the_cache(workspace, capsys, monkeypatch):
    monkeypatch.setattr(pixels.shutil, "disk_usage", lambda path: FullDisk)
    error = refused(capsys, *base_words())
    assert "--cache: " in error and "--data" not in error and "GB free" in error


class FullDisk:
    free = total = used = 0


def test_an_option_that_had_a_default_is_named_with_its_value_when_resuming(workspace, capsys):
    run(epochs=1)
    error = refused(capsys, "--resume", "run", "--lr", 0.5)
    assert "--lr 0.5: cannot change --lr when resuming; the run was started with --lr 0.001" in error


def test_D14_correcting_twice_is_in_the_config_and_the_report(workspace):
    run("--sampler", "weighted", "--class-weights", "inverse", epochs=1)
    notes = json.loads(Path("run/config.json").read_text())["notes"]
    assert sum("correct the imbalance twice" in note for note in notes) == 1
    assert "correct the imbalance twice" in Path("run/report.html").read_text("utf-8")


@pytest.mark.parametrize(
    "owner, name", [(data, "split"), (pixels, "decode"), (models, "build_model"), (runs, "end_epoch")]
)
def test_a_bug_of_our_own_keeps_its_traceback(workspace, monkeypatch, owner, name):
    """Only BadInput and OSError are one polite line."""

    def broken(*_, **__):
        raise ValueError("a bug")

    monkeypatch.setattr(owner, name, broken)
    with pytest.raises(ValueError, match="^a bug$"):
        run(epochs=1)


@pytest.mark.parametrize("module", cli.BAD_INPUT)
def test_bad_input_of_every_module_is_one_line(capsys, module):
    with pytest.raises(SystemExit) as stop, cli.blaming("--flag", program="some.py"):
        raise module("what is wrong")
    assert stop.value.code == 2 and capsys.readouterr().err == "some.py: error: --flag: what is wrong\n"


def test_resuming_with_the_runs_own_options_typed_again_is_accepted(workspace):
    run(
        "--loss",
        "focal",
        "--gamma",
        1,
        "--scheduler",
        "step",
        "--step-epochs",
        1,
        "--lr-decay",
        0.5,
        "--warmup",
        1,
        "--patience",
        5,
        "--min-delta",
        0.1,
        "--sampler",
        "balanced",
        "--samples-per-class",
        3,
        epochs=3,
    )
    words = "--gamma 1 --step-epochs 1 --lr-decay 0.5 --warmup 1 --min-delta 0.1 --samples-per-class 3"
    assert options_of("--resume", "run", *words.split()).gamma == 1


def test_a_last_file_that_is_not_the_state_of_a_run_is_one_line(workspace, capsys):
    run(epochs=1)
    for name in ("last.pt", "last.pt.sha256"):
        Path("run", name).unlink()
    torch.save({"model": {}}, "run/last.pt")
    assert "--resume: run/last.pt is not the state of a run: it has no" in refused(capsys, "--resume", "run")


def test_a_run_without_the_files_of_its_best_epoch_is_not_resumed(workspace, capsys):
    """As when only last.pt was copied from a server: the best epoch may never be reached again."""
    run("--save-top", 2, epochs=3)
    for name in ("best_f1.pt", "val_probs.npz"):
        Path("run", name).rename("kept")
        Path("run/log.csv").unlink(missing_ok=True)
        message = refused(capsys, "--resume", "run")
        assert "--resume: run needs best_f1.pt and val_probs.npz, of the best epoch so far: copy them" in message
        assert not Path("run/log.csv").exists()  # nothing was changed before
        Path("kept").rename(Path("run", name))
    tops = sorted(Path("run").glob("00*_f1_*.pt"))
    for path in (*tops[1:], Path("run/best_loss.pt"), Path("run/val_predictions.csv")):
        path.unlink()  # to save space: no later epoch needs them
    assert train.main(["--resume", "run"])["epoch"] in (1, 2, 3) and len(log_of("run")) == 3


@pytest.mark.parametrize("monitor", ("f1", "loss"))
def test_a_damaged_last_file_of_a_run_with_save_top_is_resumed_from_the_one_before(workspace, monitor):
    words = ("--save-top", 1, "--monitor", monitor, "--augment", "light")
    run(*words, epochs=4, out="whole")
    expected_log = log_of("whole")
    tops = [path.name for path in Path("whole").glob("00*.pt")]
    with open("whole/last.pt", "r+b") as file:
        file.truncate(3000)
    train.main(["--resume", "whole"])
    assert log_of("whole") == expected_log
    assert [path.name for path in Path("whole").glob("00*.pt")] == tops


def test_a_run_that_an_older_version_cut_within_an_epoch_is_resumed(workspace):
    log = run("--save-every", 2, epochs=2)
    saved = checkpoint.load("run/last.pt")
    old = dict.fromkeys(("skipped_steps", "nonfinite_steps"), 0) | {"epoch": 3, "windows": 2, "images": 16, "lr": 1e-3}
    state = runs.State(*(None,) * 2)
    for name in state.PARTS:
        setattr(state, name, loop.NOTHING)
    state.load_state_dict(saved | {"progress": old | {"loss": 1.0, "weight": 16, "ce": 1.0}})
    assert state.progress["update"] == 2 and state.progress["samples"] == 16 and len(log) == 2


def test_other_folders_beside_the_folds_are_ignored(workspace):
    train.main([str(word) for word in [*base_words(), "--folds", 3, "--epochs", 1, "--out", "run"]])
    Path("run/fold_old").mkdir()
    Path("run/fold_old/config.json").write_text(Path("run/fold0/config.json").read_text())
    assert [fold.folder.name for fold in runs.read("run").folds] == ["fold0", "fold1", "fold2"]


def test_a_network_without_trainable_parameters_is_one_line(workspace, capsys):
    Path("frozen.py").write_text(
        "def make(n):\n    import torch\n    return torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d("
        "1), torch.nn.Flatten(), torch.nn.Linear(3, n)).requires_grad_(False)\n"
    )
    assert "--model: frozen.py:make has no parameter to train" in refused(
        capsys, *base_words(), "--model", "frozen.py:make"
    )


def test_three_sides_are_refused_though_they_are_equal(workspace, capsys):
    assert "--size must be one side, or height and width" in refused(capsys, *base_words(), "--size", 16, 16, 16)


def test_E9_a_class_that_is_a_formula_is_text_in_a_spreadsheet(workspace, capsys):
    """In val_predictions.csv and leaks.csv alone: checkpoints and what is printed keep the name."""
    names = ["=cmd|' /C calc'!A0", "'-1", "+82"]
    for c, name in enumerate(names):
        Path("d", f"class{c}").rename(Path("d", name.replace("/", ":")))
    names = [name.replace("/", ":") for name in names]
    start("--epochs", 1, "--lr", 1e-12)
    cells = {row[key] for row in csv.DictReader(open("run/val_predictions.csv")) for key in ("class", "predicted")}
    assert cells == {"'" + name for name in names}
    read = {row["class"] for row in runs.read_val_predictions(Path("run"))}
    assert read == set(names) == set(checkpoint.load("run/best_f1.pt")["classes"])
    assert re.search(r"^ +\d+  \S.* -> \S.*  d/.*\.png \(0\.\d+\)$", capsys.readouterr().out, re.M)
    for text in ["plain", "a=b", "'quoted'", "''=x", "=", "@", "-", "\tx", ""]:
        assert runs.from_cell(runs.as_cell(text)) == text
        assert not runs.as_cell(text).startswith(("=", "+", "-", "@", "\t", "\r"))
    runs.write_leaks(Path("run"), [("alike", "a.png", "=1", "b.png", "x")])
    assert leaks_of("run")[0]["validation_class"] == "'=1"


# --- what a CSV needs ------------------------------------------------------------------------------------------------


def test_missing_files_spellings_and_the_number_of_classes_have_their_options(workspace, capsys):
    names = [f"class{c}/{i:02d}.png" for c, n in enumerate((24, 12, 6)) for i in range(n)]
    rows = [f"{name},{name[5]}.0" for name in names]
    (workspace / "float.csv").write_text("\n".join(["file,label", *rows, "class0/none.png,1.0"]) + "\n")
    rows = [f"{name},{'Cat' if i % 2 else 'cat'}" for i, name in enumerate(names[:36])]
    (workspace / "case.csv").write_text(
        "\n".join(["file,label", *rows, *(f"{name},dog" for name in names[36:])]) + "\n"
    )
    with pytest.raises(SystemExit):
        start("--csv", "float.csv", "--epochs", 1)
    assert "leave these rows out with --bad skip:\n  class0/none.png (line 44)" in capsys.readouterr().err
    start("--csv", "float.csv", "--bad", "skip", "--num-classes", 4, "--epochs", 1, out="four")
    said = capsys.readouterr().out
    assert "rows without an image file in d, left out: 1 of 43\n  class0/none.png (line 44)" in said
    assert torch.load("four/best_f1.pt", weights_only=True)["labels"] == ["0", "1", "2", "3"]
    with pytest.raises(SystemExit):
        train.main(["--resume", "four", "--num-classes", "5"])
    assert "--num-classes 5: cannot change --num-classes when resuming" in capsys.readouterr().err
    run("--csv", "case.csv", "--fold-case", out="folded", epochs=1)
    assert torch.load("folded/best_f1.pt", weights_only=True)["classes"] == ["cat", "dog"]

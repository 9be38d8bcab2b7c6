"""Runs with the options for long-tailed data: what they set in which epoch, and that a cut run ends as an uncut one."""

import csv
import dataclasses
import json
import math
import re
from argparse import Namespace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from test_train import refused, run

import augment
import checkpoint
import cli
import inputs
import losses
import models
import pixels
import predict
import runs
import screen
import train


def recipe(*words, counts=(40, 20, 4), drawn=None):
    options = cli.parse_options(["--data", "d", "--size", "16", "--model", "resnet8", *map(str, words)])
    counts = np.array(counts)
    return inputs.Recipe(options, counts, np.array(drawn or counts), torch.device("cpu"))


# --- the loss of an epoch --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("loss", ["ce", "focal", "ldam", "logit_adjustment", "ce+f1"])
def test_drw_weights_begin_after_its_share_of_the_epochs(loss):
    made = recipe("--loss", loss, "--drw", 0.8, "--epochs", 10)
    logits, targets = torch.randn(12, 3, generator=torch.Generator().manual_seed(0)), torch.arange(12) % 3
    weight = losses.class_weights([40, 20, 4], "effective", beta=0.9999)
    plain, weighted = (
        losses.build_loss(loss, [40, 20, 4], **more)(logits, targets) for more in ({}, {"weight": weight})
    )
    assert not plain.allclose(weighted, rtol=1e-3)
    for epoch in range(1, 11):
        expected = weighted if epoch > 8 else plain
        assert torch.equal(made.criterion(epoch)(logits, targets), expected), epoch
    assert torch.equal(made.judge(logits, targets), weighted)  # validation losses of all epochs compare


@pytest.mark.parametrize("share, epochs, first", [(0.7, 90, 64), (0.8, 10, 9), (0.5, 3, 2), (0.29, 100, 30)])
def test_the_first_epoch_of_drw_is_printed_and_does_not_depend_on_rounding(share, epochs, first):
    words = ["--drw", share, "--epochs", epochs]  # 0.7 * 90 is 62.99999999999999
    made = recipe(*words, "--patience", first - 1)
    weights = [made.criterion(epoch).weight for epoch in range(1, epochs + 1)]
    assert [weight is None for weight in weights] == [epoch < first for epoch in range(1, epochs + 1)]
    text = screen.describe_loss(made.options, made.judge, {"drawn_counts": [40, 20, 4]})
    assert f"class-balanced weights from epoch {first} on (DRW)" in text
    with pytest.raises(SystemExit):
        recipe(*words, "--patience", first - 2)


def test_the_weights_of_drw_are_of_the_training_counts_and_the_prior_of_the_drawn_ones():
    made = recipe("--drw", 0.5, "--loss", "logit_adjustment", drawn=(20, 20, 20)).criterion(15)
    assert torch.equal(made.weight, losses.class_weights([40, 20, 4], "effective", beta=0.9999))
    assert torch.equal(made.adjustment, losses.log_prior([1, 1, 1]).float())


def test_a_class_that_is_drawn_in_few_epochs_counts_as_one_image():
    images = pixels.ImageArray(np.zeros((6, 8, 8, 3), np.uint8), np.array([0, 0, 0, 1, 1, 2]), list("abcdef"))
    epochs = iter([[0, 1, 2, 3], [5, 0, 1, 3], *[[0, 1, 2, 3]] * 8])
    batches = pixels.Batches(images, np.arange(6), 4, True, sampler=lambda rng: np.arange(4))
    batches.sampler = lambda rng: np.array(next(epochs))
    assert inputs.drawn_counts(batches, 4).tolist() == [3, 1, 1, 0]  # 2.9, 1, 0.1 and 0 on average


def test_without_drw_every_epoch_has_the_same_loss():
    made = recipe("--class-weights", "sqrt", "--epochs", 3)
    weights = [made.criterion(epoch).weight for epoch in (1, 2, 3)]
    assert all(torch.equal(weight, losses.class_weights([40, 20, 4], "sqrt")) for weight in weights)


@pytest.mark.parametrize(
    "sampler, expected", [("shuffle", [24, 12, 6]), ("oversample", [24, 24, 24]), ("weighted", None)]
)
def test_the_class_prior_of_the_loss_is_that_of_the_sampler(sampler, expected):
    targets = np.repeat([0, 1, 2], [24, 12, 6])
    images = pixels.ImageArray(np.zeros((42, 8, 8, 3), np.uint8), targets, [f"{i}" for i in range(42)])
    batches = pixels.Batches(images, np.arange(42), 4, True, sampler=lambda rng: pixels.SAMPLERS[sampler](targets, rng))
    drawn = inputs.drawn_counts(batches, 3)
    assert batches.epoch == 0
    assert drawn.tolist() == expected if expected else abs(drawn - 14).max() < 3 and abs(drawn.sum() - 42) < 2
    made = recipe("--loss", "logit_adjustment", counts=(24, 12, 6), drawn=drawn.tolist())
    prior = torch.tensor(drawn / drawn.sum()).log().float()
    assert torch.allclose(made.criterion(1).adjustment, prior)


def test_weights_beside_a_prior_in_the_loss_are_noted(workspace, capsys):
    run("--loss", "logit_adjustment", "--class-weights", "sqrt", epochs=1)
    said = " ".join(capsys.readouterr().out.split())
    assert "--loss logit_adjustment and --class-weights sqrt both favour rare classes" in said
    run("--sampler", "weighted", "--loss", "logit_adjustment", out="b", epochs=1)
    said = " ".join(capsys.readouterr().out.split())
    assert "both favour rare classes" not in said and "class prior in the loss" in said


# --- the augmentation of an epoch ------------------------------------------------------------------------------------


def test_mixing_is_off_in_the_last_epochs():
    made = recipe("--mixup", 0.4, "--mix-off-last", 2, "--epochs", 5, "--augment", "light")
    for epoch in range(1, 6):
        transform = made.augment(epoch)
        assert (transform.mixup, transform.overlap) == ((0.4, 1) if epoch <= 3 else (0.0, 0))


def test_an_epoch_is_augmented_with_the_mean_std_and_flips_of_the_recipe():
    made = recipe("--augment", "light", "--flips", "alternate")
    transform = dataclasses.replace(made, mean=[0.5, 0.4, 0.3], std=[0.1, 0.2, 0.3]).augment(1)
    assert torch.equal(transform.mean, torch.tensor([0.5, 0.4, 0.3])) and transform.flips == "alternate"
    assert torch.equal(transform.std, torch.tensor([0.1, 0.2, 0.3])) and made.augment(1).mean[0] == 0.485


def test_mean_and_std_are_those_of_the_option_the_model_or_imagenet(workspace, monkeypatch):
    used, normalize = [], augment.normalize

    def spy(images, mean, std, *more):
        used.append(([round(x, 4) for x in mean.tolist()], [round(x, 4) for x in std.tolist()]))
        return normalize(images, mean, std, *more)

    monkeypatch.setattr(augment, "normalize", spy)
    (workspace / "timm_like.py").write_text(
        "import models\n"
        "def make(num_classes):\n"
        "    net = models.build_model('resnet8', num_classes, 16)\n"
        "    net.pretrained_cfg = {'mean': (0.5, 0.5, 0.5), 'std': (0.25, 0.25, 0.25)}\n"
        "    return net\n"
    )
    found = {}
    for name, words in {
        "imagenet": [],
        "own": ["--model", "timm_like.py:make"],
        "typed": ["--model", "timm_like.py:make", "--mean-std", 0.4, 0.2],
        "six": ["--mean-std", 0.1, 0.2, 0.3, 0.4, 0.5, 0.6],
    }.items():
        used.clear()
        run(*words, out=name, epochs=1)
        saved = checkpoint.load(f"{name}/best_f1.pt")
        found[name] = saved["mean"], saved["std"]
        assert len(used) > 5 and all(numbers == found[name] for numbers in used)  # training and validation images
    assert found == {
        "imagenet": (list(augment.IMAGENET_MEAN), list(augment.IMAGENET_STD)),
        "own": ([0.5] * 3, [0.25] * 3),
        "typed": ([0.4] * 3, [0.2] * 3),
        "six": ([0.1, 0.2, 0.3], [0.4, 0.5, 0.6]),
    }


# --- fine-tuning -----------------------------------------------------------------------------------------------------


def test_a_frozen_backbone_is_bitwise_that_of_init_after_the_run(workspace):
    run("--epochs", 2, out="first")
    run("--init", "first", "--freeze", "backbone", "--fresh-head", "--sampler", "balanced", "--ema", 0.9, out="crt")
    before, after = (checkpoint.load(f"{name}/best_f1.pt")["model"] for name in ("first", "crt"))
    last = checkpoint.load("crt/last.pt")["model"]
    for key, value in before.items():
        is_head = key.startswith("linear.")
        assert torch.equal(value, last[key]) != is_head and torch.equal(value, after[key]) != is_head, key
    run("--init", "first", "--sampler", "balanced", out="free", epochs=1)  # control: without --freeze all of it moves
    free = checkpoint.load("free/last.pt")["model"]
    assert not any(torch.equal(value, free[key]) for key, value in before.items() if "running" in key or "conv" in key)


def test_init_from_a_run_that_has_seen_the_validation_images_is_warned_of(workspace, capsys):
    run(out="first", epochs=1)
    run("--init", "first", out="same", epochs=1)
    run("--init", "first", "--seed", 1, out="different", epochs=1)
    warnings = [json.loads(Path(out, "config.json").read_text())["warnings"] for out in ("same", "different")]
    assert not warnings[0]
    assert "validation images were not validation images of --init first" in warnings[1][0]
    val = [set(runs.read(out).predictions.paths) for out in ("first", "different")]
    assert warnings[1][0].startswith(f"{len(val[1] - val[0])} of {len(val[1])} validation images")
    run("--init", "first/best_loss.pt", "--seed", 1, out="file", epochs=1)  # a checkpoint of that run
    (warning,) = json.loads(Path("file/config.json").read_text())["warnings"]
    assert warning == warnings[1][0].replace("--init first", "--init first/best_loss.pt")
    Path("first").rename("gone")
    train.main(["--resume", "different", "--cache", "cache"])
    assert json.loads(Path("different/config.json").read_text())["warnings"] == warnings[1]
    Path("gone").rename("first")
    Path("d").rename("e")  # a run on different images
    run("--data", "e", "--init", "first", "--seed", 1, out="other", epochs=1)
    assert not json.loads(Path("other/config.json").read_text())["warnings"]
    Path("first/val_probs.npz").write_text("damaged")
    words = "--data e --size 16 --model resnet8 --cache cache --init first --out bad".split()
    assert "train.py: error: --weights: first/val_probs.npz " in refused(capsys, *words)


def test_init_from_a_run_with_other_images_or_classes_is_noted(workspace, capsys):
    run(out="first", epochs=1)
    run("--init", "first", out="same", epochs=1)
    assert not [note for note in notes("same") if "--init" in note]
    run("--init", "first", "--size", 24, "--mean-std", 0.5, 0.25, out="other", epochs=1)
    (note,) = [note for note in notes("other") if "--init" in note]
    assert note == (
        "--init first was trained with size 16, here 24; mean [0.485, 0.456, 0.406], here [0.5, 0.5, 0.5]; "
        "std [0.229, 0.224, 0.225], here [0.25, 0.25, 0.25]"
    )
    folders = sorted(path for path in Path("d").iterdir() if path.is_dir())
    folders[0].rename(Path("d/z"))  # the class is now the last one
    run("--init", "first", out="renamed", epochs=1)
    (note,) = [note for note in notes("renamed") if "--init" in note]
    assert "was trained on classes with different names, or in a different order" in note
    assert note.endswith("add --fresh-head")
    run("--init", "first", "--fresh-head", out="fresh", epochs=1)
    assert not [note for note in notes("fresh") if "--init" in note]


def test_a_checkpoint_of_a_different_program_gives_no_notes_and_one_of_train_py_one_for_each_difference():
    model, table = models.build_model("resnet8", 3, 16), SimpleNamespace(classes=["a", "b", "c"])
    saved = {"model_name": "resnet8", "size": 16, "fit": "pad", "mean": [0.5] * 3, "std": [0.25] * 3}
    options = recipe("--init", "x.pt", "--mean-std", 0.5, 0.25, "--size", 24, 16).options
    (note,) = inputs.notes_of_init(options, table, saved | {"classes": ["a", "b", "c"]}, model, [])
    assert note == "--init x.pt was trained with size 16, here (24, 16); fit pad, here squash"
    assert len(inputs.notes_of_init(options, table, saved | {"classes": ["b", "a", "c"]}, model, [])) == 2
    for other in ({}, {"model_name": "resnet8", "model": {}}, {"mean": torch.zeros(3), "std": torch.ones(3)}):
        assert inputs.notes_of_init(options, table, other, model, []) == []


def test_the_checkpoint_of_init_is_read_once_for_all_folds(workspace, monkeypatch):
    run(out="first", epochs=1)
    read, files = models.read_checkpoint, []
    monkeypatch.setattr(models, "read_checkpoint", lambda file: files.append(file) or read(file))
    words = "--data d --size 16 --model resnet8 --epochs 1 --batch-size 8 --folds 2 --init first --out two"
    train.main([*words.split(), "--cache", "cache"])
    assert files == ["first"] and runs.has_last(Path("two/fold1"))


def test_init_from_a_run_with_folds_says_to_choose_one(workspace, capsys):
    Path("folds/fold0").mkdir(parents=True)
    rest = ["--data", "d", "--size", 16, "--model", "resnet8", "--epochs", 1, "--cache", "cache", "--out", "bad"]
    assert "--weights: folds has several folds: choose one of them" in refused(capsys, *rest, "--init", "folds")


def notes(out):
    return json.loads(Path(out, "config.json").read_text())["notes"]


def test_freeze_epochs_trains_the_head_first_and_then_all(workspace):
    run("--epochs", 1, out="first")
    run("--init", "first", "--freeze-epochs", 1, "--save-top", 9, out="two", epochs=2)
    start, first, second = (
        checkpoint.load(path)["model"] for path in ("first/best_f1.pt", *sorted(map(str, Path("two").glob("0*.pt"))))
    )
    same = [torch.equal(start[key], first[key]) for key in start if not key.startswith("linear.")]
    assert all(same) and not torch.equal(start["linear.weight"], first["linear.weight"])
    assert not torch.equal(first["conv1.weight"], second["conv1.weight"])


def test_the_first_n_stages_are_frozen_in_the_first_epochs():
    made, model = recipe("--init", "x", "--freeze", 2, "--freeze-epochs", 1), models.build_model("resnet8", 3, 16)
    for epoch, frozen in ((1, {"conv1", "bn1", "layer1"}), (2, set())):
        made.freeze(model, epoch)
        parts = {name.split(".")[0] for name, parameter in model.named_parameters() if not parameter.requires_grad}
        assert parts == frozen
    text = screen.describe_fine_tuning(made.options)
    assert text == ", the first 2 stages frozen in the first 1 epochs"


def test_the_optimizer_of_a_run_has_the_rates_of_its_stages():
    words = ["--layer-decay", 0.5, "--head-lr", 0.3, "--lr", 0.1, "--scheduler", "none", "--loss", "ldam"]
    table = SimpleNamespace(classes=["a", "b", "c"], factors={}, factor_ids=np.zeros((3, 0), int))
    state = inputs.make_state(recipe(*words).options, table, 4, torch.device("cpu"))
    rates = {id(p): group["lr"] for group in state.optimizer.param_groups for p in group["params"]}
    found = {name.split(".")[0]: rates[id(p)] for name, p in state.model.named_parameters()}
    expected = {"conv1": 0.00625, "bn1": 0.00625, "layer1": 0.0125, "layer2": 0.025, "layer3": 0.05, "linear": 0.3}
    assert found == pytest.approx(expected) and isinstance(state.model.linear, models.CosineHead)


def test_layer_decay_and_head_lr_set_the_rate_of_each_stage():
    options = Namespace(lr=0.1, layer_decay=0.5, head_lr=0.3)
    model = models.build_model("resnet8", 3, 16)
    factor = inputs.lr_factor(options, model)
    names = ["linear.weight", "layer3.0.conv1.weight", "layer2.0.bn1.bias", "layer1.0.conv2.weight", "conv1.weight"]
    assert [factor(name) for name in names] == pytest.approx([3.0, 0.5, 0.25, 0.125, 0.0625])
    assert inputs.lr_factor(Namespace(lr=0.1, layer_decay=None, head_lr=None), model)("conv1.weight") == 1.0


def test_a_cosine_head_comes_with_ldam_and_predict_rebuilds_it(workspace, capsys):
    run("--loss", "ldam", "--drw", 0.5, out="ldam")
    assert "cosine head" in capsys.readouterr().out
    saved = checkpoint.load("ldam/best_f1.pt")
    assert saved["head"] == "cosine" and "linear.bias" not in saved["model"]
    predict.main(["ldam", "--data", "d", "--out", "s.csv"])
    with open("s.csv", newline="") as file:
        assert len(list(csv.DictReader(file))) == 42


def test_a_prior_that_the_loss_has_corrected_is_not_corrected_again_in_silence(workspace, capsys):
    made = {
        "--loss logit_adjustment": ["--loss", "logit_adjustment"],
        "--sampler weighted": ["--sampler", "weighted", "--loss", "logit_adjustment"],  # its prior is the sampler's
        "--class-weights sqrt": ["--class-weights", "sqrt"],
        "--sampler oversample and --drw 0.5": ["--sampler", "oversample", "--drw", 0.5],
        "": [],
    }
    for i, words in enumerate(made.values()):
        run(*words, out=f"run{i}", epochs=1)

    def warned(*names):
        capsys.readouterr()
        predict.main([*names, "--data", "d", "--out", "s.csv", "--prior-adjust", "1", "--force"])
        found = re.search(
            "(run.)/best_f1.pt was trained with (.*), which favours .* corrected twice", capsys.readouterr().err
        )
        return found and found.groups()

    for i, flags in enumerate(made):
        assert warned(f"run{i}") == ((f"run{i}", flags) if flags else None)
    assert warned("run4", "run0") == ("run0", "--loss logit_adjustment")
    run("--drw", 0.5, out="run5", epochs=2)
    saved = checkpoint.load("run5/best_f1.pt")
    assert saved["favours_rare"] == ([] if saved["epoch"] == 1 else ["--drw 0.5"])  # of its epoch, not of the run
    options = cli.parse_options(["--drw", "0.5", "--epochs", "4"])
    assert [inputs.favours_rare(options, epoch) for epoch in (2, 3)] == [[], ["--drw 0.5"]]
    old = {key: value for key, value in checkpoint.load("run0/best_f1.pt").items() if key != "favours_rare"}
    checkpoint.save(Path("run0/best_f1.pt"), old)  # as an older version wrote it
    assert warned("run0") == ("run0", "--loss logit_adjustment")


@pytest.mark.parametrize("entry, value", [("head", ["cosine"]), ("head", "cosin"), ("loss", 3), ("favours_rare", "x")])
def test_a_head_or_loss_that_is_not_valid_is_one_line(workspace, capsys, entry, value):
    run(out="run", epochs=1)
    saved = checkpoint.load("run/best_f1.pt")
    checkpoint.save(Path("bad.pt"), saved | {entry: value})
    with pytest.raises(SystemExit) as stop:
        predict.main(["bad.pt", "--data", "d", "--out", "s.csv"])
    assert stop.value.code == 2 and f"bad.pt cannot be used: its {entry} must be" in capsys.readouterr().err
    without = {key: entry for key, entry in saved.items() if key not in ("head", "loss", "favours_rare")}  # older
    checkpoint.save(Path("old.pt"), without)
    predict.main(["old.pt", "--data", "d", "--out", "s.csv"])


# --- EMA, groups of classes ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("better", ["ema", "model", "equal"])
def test_ema_and_raw_weights_are_both_judged_and_the_ema_is_saved_on_a_tie(workspace, monkeypatch, better):
    judge, f1s = train.judge, {"ema": {"ema": 0.75, "model": 0.5}, "model": {"ema": 0.5, "model": 0.75}}
    f1 = f1s.get(better, {"ema": 0.75, "model": 0.75})

    def judged(model, *rest):
        scores, *more = judge(model, *rest)
        return scores | {"val_f1": f1["model" if next(model.parameters()).requires_grad else "ema"]}, *more

    monkeypatch.setattr(train, "judge", judged)
    (row,) = run("--ema", 0.5, epochs=1)
    assert (float(row["val_f1"]), float(row["val_f1_raw"])) == (0.75, f1["model"])
    best, last = (checkpoint.load(f"run/{name}.pt") for name in ("best_f1", "last"))
    weights = {"model": last["model"], "ema": last["ema"]["model"]}
    equal = {key: torch.equal(best["model"]["conv1.weight"], each["conv1.weight"]) for key, each in weights.items()}
    assert equal == {"model": better == "model", "ema": better != "model"}


def test_the_better_of_ema_and_raw_weights_is_saved(workspace):
    log = run("--ema", 0.999, "--lr", 0.02, out="slow", epochs=4)  # an EMA so slow that the raw weights win
    log = [{key: float(row[key]) for key in ("val_f1", "val_f1_raw", "epoch")} for row in log]
    assert all(row["val_f1"] >= row["val_f1_raw"] for row in log)
    best = max(log, key=lambda row: row["val_f1"])
    weights, last = checkpoint.load("slow/best_f1.pt")["model"], checkpoint.load("slow/last.pt")
    if best["epoch"] == 4:
        is_raw = best["val_f1"] == best["val_f1_raw"]
        saved = last["model"] if is_raw else last["ema"]["model"]
        assert all(torch.equal(weights[key], saved[key]) for key in weights)
    plain = run(out="plain")
    assert all(row["val_f1"] == row["val_f1_raw"] for row in plain)


# --- a cut run -------------------------------------------------------------------------------------------------------


CASES = {
    "drw": "--loss ldam --drw 0.4 --accum 2",
    "sam": "--sam 0.1 --accum 3 --mixup 0.3",
    "ranger": "--optimizer ranger --lr 0.01 --accum 2",
    "freeze epochs": "--freeze-epochs 2 --layer-decay 0.7 --head-lr 0.01 --accum 2",
    "mix off": "--mixup 0.5 --cutmix 0.5 --mix-off-last 2 --augment rand+cutout --flips alternate",
    "logit adjustment": "--loss logit_adjustment+f1:0.5 --sampler weighted --ema 0.8 --accum 2",
}


@pytest.mark.parametrize("case", CASES)
def test_a_resumed_run_ends_bitwise_as_one_that_was_not_cut(workspace, monkeypatch, case):
    words = [*CASES[case].split(), "--save-every", "1", "--threads", "1"]
    run(*words, out="whole", epochs=4)
    for cut in (1, 6, 11):  # in the first epoch, in the second or third, near the end
        calls, save = [], train.runs.save_last

        def dying(*arguments, save=save, calls=calls, cut=cut):
            save(*arguments)
            calls.append(1)
            if len(calls) == cut:
                raise KeyboardInterrupt

        monkeypatch.setattr(train.runs, "save_last", dying)
        out = f"cut{cut}"
        with pytest.raises(KeyboardInterrupt):
            run(*words, out=out, epochs=4)
        monkeypatch.setattr(train.runs, "save_last", save)
        train.main(["--resume", out, "--cache", "cache"])
        whole, other = (checkpoint.load(f"{name}/last.pt") for name in ("whole", out))
        for part in ("model", "ema"):
            mine, its = (saved[part].get("model", saved[part]) for saved in (whole, other))
            assert mine.keys() == its.keys() and all(
                torch.equal(torch.as_tensor(mine[k]), torch.as_tensor(its[k])) for k in mine
            )
        logs = [
            [{k: v for k, v in row.items() if k not in ("seconds", "images_per_second")} for row in saved["log"]]
            for saved in (whole, other)
        ]
        assert logs[0] == logs[1]


def test_the_cases_differ_from_a_plain_run(workspace):
    plain = run(epochs=4)
    for case, words in CASES.items():
        log = run(*words.split(), out=case.replace(" ", "-"), epochs=4)
        assert log[-1]["val_ce"] != plain[-1]["val_ce"], case


# --- bad input -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "words, message",
    [
        ("--drw 1.5", "--drw must be between 0 and 1, got 1.5"),
        ("--drw 0.8 --class-weights sqrt", "--drw 0.8 sets class weights itself: remove --class-weights sqrt"),
        (
            "--drw 0.8 --patience 1",
            "before epoch 3, in which --drw 0.8 begins: use --patience 2 or more, or remove",
        ),
        (
            "--mixup 1 --mix-off-last 1 --patience 1",
            "--patience 1 can end the run before epoch 3, in which --mix-off-last 1 begins: use --patience 2 or more",
        ),
        ("--freeze-epochs 2 --patience 1", "before epoch 3, in which --freeze-epochs 2 ends: use --patience 2"),
        ("--freeze-epochs 9 --patience 3", "--freeze-epochs 9 must be less than the 3 epochs of the run (--epochs)"),
        ("--tau 2", "--tau: loss 'ce' does not take tau"),
        ("--loss ldam --max-m -1", "--max-m must be at least 0, got -1"),
        ("--freeze backbon", "--freeze must be backbone or a number of stages, got 'backbon'"),
        ("--freeze 1", "--freeze 1 freezes random weights: add --weights DEFAULT, or --init with a run"),
        ("--loss ldam --head linear", "--head linear: the margins of --loss ldam are for --head cosine"),
        ("--freeze 9 --weights DEFAULT", "--freeze: resnet8 has 4 stages below its head: choose at most that"),
        ("--freeze-epochs 3", "--freeze-epochs 3 must be less than the 3 epochs of the run (--epochs)"),
        ("--mix-off-last 3", "--mix-off-last 3 must be less than the 3 epochs of the run (--epochs)"),
        ("--mix-off-last 1", "--mix-off-last 1 has no effect without --mixup or --cutmix"),
        ("--mean-std nan 1", "--mean-std must be a mean and a std"),
        ("--fresh-head", "--fresh-head has no effect without --weights: add --weights"),
        ("--layer-decay 2", "--layer-decay must be above 0 and at most 1, got 2"),
        ("--head-lr 0", "--head-lr must be greater than 0, got 0"),
        ("--sam 0", "--sam must be greater than 0, got 0"),
        ("--mean-std 0.5", "--mean-std must be a mean and a std, or 3 means and 3 stds"),
        (
            "--mean-std 0.5 0",
            "--mean-std must be a mean and a std, or 3 means and 3 stds, with each std greater than 0",
        ),
        ("--augment crop+cutuot", "--augment: unknown augmentation 'cutuot'"),
        ("--augment cutout --flips alternate", "--flips alternate has no effect with --augment cutout"),
        ("--scheduler multistep --milestones 2 1", "--milestones: milestones must rise"),
        ("--model squeezenet1_0 --size 32 --head cosine", "head cosine needs a classifier layer of type nn.Linear"),
        ("--init nowhere", "--weights: there is no file nowhere"),
    ],
)
def test_bad_input_is_one_line_that_names_its_flag(workspace, capsys, words, message):
    rest = ["--data", "d", "--size", 16, "--model", "resnet8", "--epochs", 3, "--cache", "cache", "--out", "bad"]
    assert message in refused(capsys, *rest, *words.split())
    assert not Path("bad").exists()


def test_a_short_patience_is_refused_for_a_new_run_alone(workspace, capsys):
    words = ("--freeze-epochs", 2, "--patience", 1)
    assert "--patience 1 can end the run" in refused(capsys, "--data", "d", "--epochs", 4, "--out", "run", *words)
    run("--freeze-epochs", 2, "--patience", 2, epochs=4)
    config = json.loads(Path("run/config.json").read_text())
    config["options"]["patience"] = 1  # of a version that did not refuse it
    Path("run/config.json").write_text(json.dumps(config))
    assert train.main(["--resume", "run", "--cache", "cache"])["out"] == "run"


def test_more_epochs_are_refused_where_an_option_depends_on_their_number(workspace, capsys):
    run("--scheduler", "none", "--drw", 0.5, epochs=2)
    said = refused(capsys, "--resume", "run", "--epochs", 4)
    assert "--epochs 4: cannot change --epochs 2 when resuming with --drw 0.5, because" in said
    capsys.readouterr()
    train.main(["--resume", "run", "--cache", "cache"])
    assert "--drw 0.5 ends here. To train longer, start a new run" in " ".join(capsys.readouterr().out.split())


def test_the_start_prints_the_effective_class_prior_of_drw(workspace, capsys):
    run("--drw", 0.5, "--loss", "ce+f1", out="drw", epochs=2)
    run("--class-weights", "inverse", out="inverse", epochs=1)
    run(out="plain", epochs=1)
    said = " ".join(capsys.readouterr().out.split())
    assert "effective class prior with DRW 33 to 33 %" in said  # at small counts its weights are almost inverse
    assert "effective class prior with class weights 33 to 33 %" in said and said.count("effective class prior") == 2


def test_config_json_takes_the_options_back(workspace):
    run("--scheduler", "multistep", "--milestones", 1.5, "--mean-std", 0.5, 0.25, epochs=2)
    options = json.loads(Path("run/config.json").read_text())["options"]
    assert options["milestones"] == [1.5] and options["mean_std"] == [0.5, 0.25]
    stored = cli.stored(Path("run"))
    assert stored.milestones == [1.5] and stored.mean_std == [0.5, 0.25] and math.isclose(stored.lr, options["lr"])

"""train.py: the window's gradient, the order inside an update, what a run leaves, what it refuses."""

import contextlib
import csv
import json
import math
import os
import re
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

import augment
import checkpoint
import cli
import data
import losses
import metrics
import models
import optim
import pixels
import runs
import train

SOURCE = "".join(Path(module.__file__).read_text(encoding="utf-8") for module in (cli, train))
OFF = torch.amp.GradScaler("cpu", enabled=False)
LOSS_NAMES = ["ce", "focal", "label_smoothing", "label_smoothing_others", "f1", "ce+f1", "focal:0.6+f1:0.4"]


# --- small data ------------------------------------------------------------------------------------------------------


def image_array(N=40, C=5, size=8, seed=0):
    rng = np.random.default_rng(seed)
    values, targets = rng.integers(0, 256, (N, size, size, 3), dtype=np.uint8), rng.integers(0, C, N)
    targets[:C] = np.arange(C)
    return pixels.ImageArray(values, targets, [f"{i:02d}.jpg" for i in range(N)])


def image_folder(root, per_class=(24, 12, 6), size=16, seed=0):
    """Classes told apart by their colour, with enough noise that a first epoch is not perfect."""
    rng = np.random.default_rng(seed)
    for c, n in enumerate(per_class):
        folder = root / f"class{c}"
        folder.mkdir(parents=True)
        for i in range(n):
            pixels = rng.integers(0, 120, (size, size, 3))
            pixels[:, :, c % 3] += 60
            Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{i:02d}.png")
    return root


NETS = """
import torch
from torch import nn

def plain(num_classes):
    "no BatchNorm, no dropout: accumulation can be exact"
    return nn.Sequential(nn.Conv2d(3, 8, 3, 2), nn.ReLU(), nn.Flatten(), nn.LazyLinear(num_classes))

def exits(num_classes):
    raise SystemExit(0)

class Poisoned(nn.Module):
    "logits turn into NaN at the fourth micro-batch; the first forward is the check before the run"
    def __init__(self, num_classes):
        super().__init__()
        self.net, self.calls = plain(num_classes), 0
    def forward(self, x):
        self.calls += self.training
        return self.net(x) * (float("nan") if self.calls == 5 and self.training else 1.0)
"""


@pytest.fixture
def workspace(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    image_folder(tmp_path / "d")
    (tmp_path / "nets.py").write_text(NETS)
    return tmp_path


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


# --- the window ------------------------------------------------------------------------------------------------------


def naive_backward(model, forward, criterion, window, accum):
    """What A2's correction looks like at first: every micro-batch's mean divided by `accum`."""
    for index, images, targets in window:
        (criterion(forward(index, images), targets) / accum).backward()


def window_gradients(model, forward, criterion, batches, accum, naive=False):
    """The gradient of each window of an epoch, with the row numbers in it."""
    for window in train.windows(batches, accum):
        model.zero_grad()
        if naive:
            naive_backward(model, forward, criterion, window, accum)
        else:
            train.backward_window(model, forward, criterion, window, OFF)
        yield torch.cat([i for i, _, _ in window]), torch.cat([p.grad.flatten() for p in model.parameters()])


def gradient_errors(name, weighted, dtype, sizes, naive=False):
    """Largest relative error against the big batch's gradient, over every n, batch and accum."""
    torch.manual_seed(0)
    images, C = image_array(), 5
    features = torch.randn(40, 3, dtype=dtype)
    model = torch.nn.Linear(3, C).to(dtype)
    weight = torch.tensor([0.3, 1.0, 2.0, 0.7, 4.0], dtype=dtype)
    criterion = losses.build_loss(name, **({"weight": weight} if weighted else {}))

    def forward(index, _):
        return model(features[index])

    big_batch, worst = {}, 0.0
    for n in sizes:
        for batch_size in (1, 2, 3, 4, 8):
            batches = pixels.Batches(images, np.arange(n), batch_size)
            for accum in range(1, 9):
                updates = 0
                for index, gradient in window_gradients(model, forward, criterion, batches, accum, naive):
                    key = int(index[0]), int(index[-1])
                    if key not in big_batch:
                        model.zero_grad()
                        criterion(forward(index, None), images.targets[index]).backward()
                        big_batch[key] = torch.cat([p.grad.flatten() for p in model.parameters()])
                    scale = big_batch[key].abs().max().clamp(min=1e-3)
                    worst = max(worst, float((gradient - big_batch[key]).abs().max() / scale))
                    updates += 1
                assert updates == math.ceil(len(batches) / accum)  # A1, A3, A4: nothing early, nothing left over
    return worst


@pytest.mark.parametrize("weighted", (False, True))
@pytest.mark.parametrize("name", LOSS_NAMES)
def test_A2_A6_the_windows_gradient_is_the_big_batchs_in_float64(name, weighted):
    assert gradient_errors(name, weighted, torch.float64, range(1, 41)) < 1e-12


@pytest.mark.parametrize("weighted", (False, True))
@pytest.mark.parametrize("name", LOSS_NAMES)
def test_A2_A6_the_windows_gradient_is_the_big_batchs_in_float32(name, weighted):
    assert gradient_errors(name, weighted, torch.float32, range(1, 41)) < 1e-6


@pytest.mark.parametrize("weighted", (False, True))
@pytest.mark.parametrize("name", LOSS_NAMES)
def test_A2_A6_dividing_by_accum_is_not_the_big_batchs_gradient(name, weighted):
    assert gradient_errors(name, weighted, torch.float64, (7, 17), naive=True) > 1e-2


def test_A6_dividing_by_accum_is_right_only_for_full_windows_of_an_unweighted_mean():
    """Why it goes unnoticed: with n = 32, batch 4, accum 4 both agree."""
    torch.manual_seed(0)
    images, features, model = image_array(), torch.randn(40, 3).double(), torch.nn.Linear(3, 5).double()
    batches, ce = pixels.Batches(images, np.arange(32), 4), losses.build_loss("ce")

    def both(accum):
        exact, naive = (
            [g for _, g in window_gradients(model, lambda i, _: model(features[i]), ce, batches, accum, flag)]
            for flag in (False, True)
        )
        return all(torch.allclose(a, b) for a, b in zip(exact, naive, strict=True))

    assert both(4) and not both(3)  # 8 micro-batches: the last window of 3 has only 2


class Stochastic(torch.nn.Module):
    """Dropout and BatchNorm: two forwards of one micro-batch must not differ, nor count twice."""

    def __init__(self):
        super().__init__()
        self.net = torch.nn.Sequential(
            torch.nn.Linear(192, 16), torch.nn.BatchNorm1d(16), torch.nn.Dropout(0.5), torch.nn.Linear(16, 5)
        )

    def forward(self, x):
        return self.net(x.flatten(1))


def test_gradient_caching_draws_the_same_masks_and_moves_batchnorm_once():
    images = image_array()

    def through(additive):
        torch.manual_seed(0)
        model, criterion = Stochastic(), losses.build_loss("focal")
        criterion.additive = additive
        window = next(train.windows(pixels.Batches(images, np.arange(22), 5), 5))
        loss, logits = train.backward_window(
            model, lambda _, x: model(x.float() / 255), criterion, window, OFF
        )
        gradient = torch.cat([p.grad.flatten() for p in model.parameters()])
        return [gradient, loss, logits, *model.buffers(), torch.get_rng_state()]

    for cached, direct in zip(through(False), through(True), strict=True):
        assert torch.allclose(cached.double(), direct.double(), rtol=1e-5, atol=1e-6)


def test_the_reported_loss_is_the_big_batchs_loss():
    images = image_array()
    for name in LOSS_NAMES:
        criterion, model = losses.build_loss(name), Stochastic().eval()
        window = next(train.windows(pixels.Batches(images, np.arange(22), 5), 5))
        loss, logits = train.backward_window(model, lambda _, x: model(x.float() / 255), criterion, window, OFF)  # noqa: B023
        assert torch.allclose(loss, criterion(logits, images.targets[:22]), atol=1e-6)


# --- an update -------------------------------------------------------------------------------------------------------


def state_of(model, lr=1.0, name="none", scaler=OFF, **options):
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    schedule = optim.build_schedule(name, optimizer, epochs=2, updates_per_epoch=3, **options)
    return train.State(model, None, optimizer, schedule, scaler)


def flat(model):
    return torch.cat([p.detach().flatten().clone() for p in model.parameters()])


def flat_net():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, 5))


def one_epoch(state, N=24, batch_size=8, criterion=None, **options):
    batches = pixels.Batches(image_array(N), np.arange(N), batch_size)
    return train.train_epoch(state, batches, criterion or losses.build_loss("ce"), augment.Augment("none"), **options)


@pytest.mark.parametrize("scale", (1.0, 1024.0))
def test_A7_clipping_sees_gradients_in_their_true_size(scale):
    scaler = torch.amp.GradScaler("cpu", init_scale=scale)
    state = state_of(flat_net(), lr=1.0, scaler=scaler)
    before = flat(state.model)
    one_epoch(state, accum=3, clip=0.01)
    assert (flat(state.model) - before).norm().item() == pytest.approx(0.01, rel=1e-3)
    state = state_of(flat_net(), lr=1.0, scaler=scaler)
    one_epoch(state, accum=3)
    assert (flat(state.model) - before).norm().item() > 0.1  # without --clip the step is longer


def test_A8_an_update_that_the_scaler_skips_moves_nothing_and_is_counted():
    state = state_of(flat_net(), lr=0.1, name="cosine", scaler=torch.amp.GradScaler("cpu", init_scale=2.0**24))
    state.ema = models.EMA(state.model, 0.9)
    before = flat(state.model)
    stats = one_epoch(state, amp=torch.float16)  # every gradient overflows fp16, and the scale halves three times
    assert stats["skipped_steps"] == 3 and state.scaler.get_scale() == 2.0**21
    assert torch.equal(flat(state.model), before) and state.schedule.updates == state.ema.updates == 0
    for _ in range(5):
        stats = one_epoch(state, amp=torch.float16)
    assert stats["skipped_steps"] == 0 and not torch.equal(flat(state.model), before)
    assert 3 <= state.schedule.updates == state.ema.updates < 15


def test_A8_mixed_precision_with_a_scaler_trains_on_the_cpu_too():
    state = state_of(flat_net(), lr=0.01, scaler=torch.amp.GradScaler("cpu"))
    first = one_epoch(state, amp=torch.float16)["train_ce"]
    for _ in range(10):
        last = one_epoch(state, amp=torch.float16)["train_ce"]
    assert last < first


def test_A7_the_order_in_a_window_is_unscale_clip_step_average_schedule_scale(monkeypatch):
    calls = []
    scaler, state = torch.amp.GradScaler("cpu", init_scale=2.0), state_of(flat_net())
    state.scaler, state.ema = scaler, models.EMA(state.model)

    def spy(owner, name, label):
        original = getattr(owner, name)
        monkeypatch.setattr(owner, name, lambda *a, **k: (calls.append(label), original(*a, **k))[1])

    spy(scaler, "unscale_", "unscale")
    spy(torch.nn.utils, "clip_grad_norm_", "clip")
    spy(scaler, "step", "step")
    spy(scaler, "update", "scale")
    spy(state.ema, "update", "average")
    spy(state.schedule, "step", "schedule")
    one_epoch(state, accum=2)  # 3 micro-batches: windows of 2 and of 1
    assert calls == ["unscale", "clip", "step", "average", "schedule", "scale"] * 2


@pytest.mark.parametrize("poison", ("loss", "gradient"))
def test_non_finite_stops_before_the_weights_are_touched_and_names_the_files(poison):
    model = flat_net()
    state, before = state_of(model), flat(model)
    if poison == "gradient":
        model[1].weight.register_hook(lambda g: g * math.inf)
    else:
        model.register_forward_hook(lambda module, inputs, output: output * math.nan)
    with pytest.raises(train.NonFinite) as error:
        one_epoch(state)
    assert torch.equal(flat(model), before)
    assert all(f"{i:02d}.jpg" in str(error.value) for i in range(8)) and "08.jpg" not in str(error.value)


def test_a_gradient_that_stays_nan_under_fp16_stops_the_run_when_the_scale_is_used_up():
    model = flat_net()
    model[1].weight.register_hook(lambda g: g * math.nan)
    state, before = state_of(model, scaler=torch.amp.GradScaler("cpu", init_scale=4.0)), flat(model)
    with pytest.raises(train.NonFinite):
        one_epoch(state, batch_size=2)  # 4, 2, 1, then it is no matter of scale
    assert torch.equal(flat(model), before) and state.scaler.get_scale() == 0.5


# --- judging ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch_size", (2, 7, 39, 40, 1000))
def test_M1_M2_M3_validation_does_not_depend_on_the_batch_size(batch_size):
    images, model = image_array(), flat_net()
    for name in ("ce", "f1"):
        criterion = losses.build_loss(name)
        batches = pixels.Batches(images, np.arange(40), batch_size)
        scores, matrix, _ = train.evaluate(model, batches, 5, criterion, augment.Augment("none"), torch.float32)
        logits = model(augment.normalize(images.gather(torch.arange(40)))).detach()
        assert int(matrix.matrix.sum()) == 40  # M2: none dropped
        assert scores["val_accuracy"] == pytest.approx((logits.argmax(1) == images.targets).double().mean().item())
        assert scores["val_loss"] == pytest.approx(float(criterion(logits, images.targets)), abs=1e-6)
        assert scores["val_ce"] == pytest.approx(float(F.cross_entropy(logits, images.targets)), abs=1e-6)


def test_D4_D5_validation_images_are_never_augmented(workspace):
    plain, light = run("--epochs", 1, out="a"), run("--epochs", 1, "--augment", "light", out="b")
    assert plain[0]["train_loss"] != light[0]["train_loss"]
    table = data.read("d")
    _, val_rows = data.split(table)
    state = checkpoint.load("b/best_f1.pt")
    model = models.build_model("resnet8", 3, 16)
    model.load_state_dict(state["model"])
    val = pixels.Batches(pixels.decode(table.paths, table.targets, 16, "cache/images"), val_rows, 5)
    scores, *_ = train.evaluate(model, val, 3, losses.build_loss("ce"), augment.Augment("none"), torch.float32)
    assert scores["val_f1"] == pytest.approx(state["scores"]["val_f1"])
    assert scores["val_loss"] == pytest.approx(state["scores"]["val_loss"], rel=1e-4)


def test_a_network_that_has_diverged_is_not_judged():
    model = flat_net()
    with torch.no_grad():
        model[1].weight.fill_(math.nan)
    with pytest.raises(train.NonFinite, match="NaN or infinite logits"):
        batches = pixels.Batches(image_array(), np.arange(40), 8)
        train.evaluate(model, batches, 5, losses.build_loss("ce"), augment.Augment("none"), torch.float32)


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
    for said in ("groups shared: 0", "imbalance", "8 x 2 accumulated = effective batch 16", "best macro F1", "interval",
                 "worst class", "FocalLoss(gamma=2.0", "resnet8, 0.07 M", "best_f1.pt"):  # fmt: skip
        assert said in printed, said
    assert "\r" not in printed  # plain lines where there is no terminal


def test_M6_D9_best_f1_holds_the_weights_of_the_best_epoch_and_best_loss_of_its_own(tmp_path):
    state, options = state_of(flat_net()), options_of("--min-delta", 0.15, "--patience", 9)
    waited = []
    for epoch, (f1, loss) in enumerate([(0.3, 2.0), (0.9, 1.5), (0.4, 1.0), (0.95, math.nan)], start=1):
        with torch.no_grad():
            state.model[1].bias.fill_(epoch)
        row = dict.fromkeys(runs.LOG_COLUMNS, 0.0) | {"epoch": epoch, "val_f1": f1, "val_loss": loss}
        train.end_epoch(tmp_path, state, row, metrics.ConfusionMatrix(5), {"classes": ["a"]}, options)
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
    assert "f1 has not improved for 2 epochs" in capsys.readouterr().out
    assert len(run("--patience", 2, "--monitor", "loss", "--min-delta", -9.0, out="b", epochs=4)) == 4  # always one


def test_A10_epochs_is_the_number_of_epochs(workspace):
    assert len(run(epochs=3)) == 3


def test_non_finite_in_a_run_exits_2_names_files_and_leaves_the_last_good_epoch(workspace, capsys):
    with pytest.raises(SystemExit) as stop:
        run("--model", "nets.py:Poisoned", "--batch-size", 16)  # 3 updates an epoch: the fourth is in epoch 2
    assert stop.value.code == 2
    said = capsys.readouterr().err
    assert "loss nan" in said and "epoch 2" in said and "class0" in said and "as of epoch 1" in said
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
    used |= set(re.findall(r'"(\w+)"', " ".join(re.findall(r"given\(([^)]*)\)", SOURCE))))
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
        (["--data", "empty"], "--data: empty holds no class folders"),
        (["--data", "single"], "--data: single holds only one class"),
        (["--data", "lonely"], "--data: class 'class1' has only 1 image"),
        (["--data", "broken"], "of 43 images cannot be decoded"),
        (["--csv", "no.csv"], "--csv: no.csv is not a file"),
        (["--val-data", "nowhere"], "--val-data: nowhere is neither"),
        (["--val-data", "d"], "--val-data: 42 validation files are training files too"),
        (["--val-data", "single"], "--val-data: single holds only one class"),
        (["--data", "constant"], "--data: all 4 validation images are of one class"),  # M7
        (["--val-frac", "1.5"], "--val-frac must be between 0 and 1, got 1.5"),
        (["--val-frac", "0.3", "--val-data", "other"], "--val-frac: 0.3 has no effect: the validation images are"),
        (["--size", "4"], "--size must be one side or H W, each at least 8, got 4"),
        (["--augment", "lots"], "argument --augment: invalid choice: 'lots' (choose from"),
        (["--loss", "focall"], "--loss: unknown loss 'focall': choose from ce"),
        (["--loss", "ce", "--gamma", "2"], "--loss: loss 'ce' takes no gamma"),
        (["--loss", "focal", "--gamma", "-1"], "--loss: gamma must be >= 0, got -1"),
        (["--class-weights", "balanced"], "argument --class-weights: invalid choice: 'balanced'"),
        (["--model", "resnet19"], "--model, --weights: unknown model 'resnet19'; close names: resnet18"),
        (["--model", "nets.py:missing"], "--model, --weights: nets.py has no function 'missing'"),
        (["--weights", "no.pt"], "--model, --weights: weights: there is no file no.pt"),
        (["--optimizer", "adamx"], "argument --optimizer: invalid choice: 'adamx'"),
        (["--lr", "-1"], "--optimizer: lr must be > 0, got -1"),
        (["--scheduler", "cosin"], "argument --scheduler: invalid choice: 'cosin'"),
        (["--scheduler", "cosine", "--t0", "3"], "--scheduler: schedule 'cosine' does not take t0"),
        (["--warmup", "99"], "--scheduler: warmup must be >= 0 and < epochs, got 99"),
        (["--epochs", "0"], "--epochs must be at least 1, got 0"),
        (["--batch-size", "0"], "--batch-size must be at least 1, got 0"),
        (["--accum", "0"], "--accum must be at least 1, got 0"),
        (["--clip", "0"], "--clip must be > 0, got 0"),
        (["--ema", "1"], "--ema must be between 0 and 1, got 1"),
        (["--device", "meta"], "--device: 'meta' is not a supported device: choose cpu, cuda or cuda:NUMBER"),
        (["--device", "gpu"], "--device: 'gpu' is not a supported device: choose cpu, cuda or cuda:NUMBER"),
        (["--device", "mps"], "--device: 'mps' is not a supported device: choose cpu, cuda or cuda:NUMBER"),
        (["--device", "nonsense"], "--device: 'nonsense' is not a supported device: choose cpu, cuda or cuda:NUMBER"),
        (["--device", "cuda:99"], "--device: 'cuda:99' cannot be used: torch finds "),
        (["--out", "nets.py"], "--out: nets.py is a file"),
        (["--cache", "nets.py"], "--cache: "),
        (["--seed", "99999999999999999999"], "--seed must be less than 2^63"),
        (["--min-delta", "0.1"], "--min-delta must be a number, with --patience, got 0.1"),
        (["--scheduler", "step", "--lr-decay", "nan"], "--scheduler: lr_decay must be > 0, got nan"),
        (["--scheduler", "step", "--lr-decay", "5"], "--scheduler: lr_decay must be < 1, got 5"),
        (["--min-lr", "9"], "--scheduler: min_lr must be <= lr, got 9"),
        (["--model", "resnet18", "--size", "32", "--batch-size", "1"], "--batch-size: resnet18 cannot take batches of"),
        (["--model", "nets.py:exits"], "nets.py:exits cannot be built (SystemExit"),
        (["--csv", "latin.csv"], "--csv: latin.csv is neither UTF-8 nor UTF-16 nor cp949"),
        (["--csv", "ragged.csv"], "--csv: ragged.csv: line 3 does not have the header's 2 columns"),
        (["--csv", "twice.csv"], "--csv: twice.csv: 1 images have two labels:\n  d/class0/00.png: 0 and 1"),
        (["--csv", "huge.csv"], "--csv: huge.csv: 30000000000000000000 in column 'label' is not a valid class number"),
        (["--data", "untrained"], "--data: class 'class2' is in the validation images and not in training"),
        (["--data", "constant", "--val-data", "d"], "constant with train and val holds validation images already"),
        (["--folds", "1"], "--folds must be at least 2, got 1"),
        (["--folds", "50"], "--folds: the number of folds must be from 2 to 42, the number of groups, got 50"),
        (["--fold", "1"], "--fold: 1 has no effect: there are no folds"),
        (["--folds", "3", "--fold", "3"], "--fold: '3' is no fold: choose from 0 to 2, or all"),
        (["--folds", "3", "--val-frac", "0.3"], "--val-frac: 0.3 has no effect: there are folds"),
        (["--folds", "3", "--val-data", "other"], "--folds: the validation images are given"),
        (["--fold-col", "part"], "image folder d has no CSV, so it has no column 'part'"),
        (["--only", "0"], "--only: '0' names fewer than two classes"),
        (["--only", "0,9"], "--only: '9' is not a valid class: choose from 0 class0, 1 class1, 2 class2"),
        (["--merge", "0,1,2"], "--merge: '0,1,2' are all classes"),
        (["--imbalance", "0.5"], "--imbalance: the imbalance factor must be at least 1, got 0.5"),
        (["--imbalance", "nan"], "--imbalance: the imbalance factor must be at least 1, got nan"),
        (["--imbalance", "2"], "--imbalance: class 'class1' has 10 training images, and with imbalance 2 it would"),
        (["--sampler", "fair"], "argument --sampler: invalid choice: 'fair'"),
        (["--samples-per-class", "5"], "--samples-per-class is of --sampler balanced, not of shuffle"),
        (["--mixup", "-0.1"], "--mixup, --cutmix: mixup must be a number >= 0, got -0.1"),
        (["--cutmix", "inf"], "--mixup, --cutmix: cutmix must be a number >= 0, got inf"),
        (["--transform", "mine"], "--transform: 'mine' is not FILE.py:FUNCTION"),
        (["--fit", "stretch"], "argument --fit: invalid choice: 'stretch'"),
        (["--bad", "ignore"], "argument --bad: invalid choice: 'ignore'"),
        (["--leaks", "ignore"], "argument --leaks: invalid choice: 'ignore'"),
        (["--out", "taken"], "--out: taken already holds a run"),
        (["--los", "ce"], "unrecognized arguments: --los ce"),
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

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@needs_gpu
@pytest.mark.parametrize("amp", ("off", "fp16", "bf16"))
@pytest.mark.parametrize("loss", ("focal", "ce+f1"))
def test_a_run_on_cuda(workspace, amp, loss):
    log = run("--device", "cuda", "--amp", amp, "--loss", loss, "--accum", 2, epochs=3)
    assert all(math.isfinite(float(row["val_loss"])) for row in log)


@needs_gpu
def test_batches_from_pinned_memory_are_those_of_the_cpu():
    images = image_array()
    pinned, plain = (pixels.Batches(images, np.arange(40), 8, True, device=device) for device in ("cuda", "cpu"))
    for ours, theirs in zip(pinned.indexed(), plain.indexed(), strict=True):
        assert all(a.is_cuda and torch.equal(a.cpu(), b) for a, b in zip(ours, theirs, strict=True))


@needs_gpu
@pytest.mark.parametrize("name", ("focal", "ce+f1"))
def test_the_gradient_of_a_window_on_cuda_never_waits_for_the_device(name):
    images = image_array()
    assert images.move_to(torch.device("cuda"))
    model = models.build_model("resnet8", 5, 8).cuda()
    batches = pixels.Batches(images, np.arange(40), 8, device="cuda")
    transform, criterion = augment.Augment("light"), losses.build_loss(name).cuda()
    window = next(train.windows(batches, 4))
    train.backward_window(model, lambda i, x: model(transform(x, i, 0)), criterion, window, OFF)
    torch.cuda.set_sync_debug_mode("error")
    try:
        train.backward_window(model, lambda i, x: model(transform(x, i, 0)), criterion, window, OFF)
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
        scores, matrix, _ = train.evaluate(
            model, pixels.Batches(images, val, 8), 3, losses.build_loss("ce"), augment.Augment("none"), torch.float32
        )
        assert scores["val_f1"] == pytest.approx(float(best["val_f1"]), abs=1e-12)
        out_of_fold += matrix.matrix
    assert out_of_fold.sum() == 42
    oof = np.load("all/oof.npz")
    assert sorted(oof["paths"].tolist()) == sorted(table.paths) and oof["probs"].shape == (42, 3)
    pairs = torch.tensor(oof["targets"]), torch.tensor(oof["probs"].argmax(1))
    counted = torch.zeros(3, 3, dtype=torch.long).index_put_(pairs, torch.tensor(1), accumulate=True)
    assert torch.equal(counted, out_of_fold)
    f1 = (2 * out_of_fold.diag() / (out_of_fold.sum(0) + out_of_fold.sum(1)).clamp(min=1)).double().mean()
    assert f"out-of-fold macro F1 over all images {float(f1):.4f}" in said
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
    for what in ("identical", "alike"):
        of_kind = [leak for leak in leaks if leak["what"] == what]
        assert f"{len(of_kind)} validation images have one in training that is {what}" in said
        assert of_kind[0]["validation"] in said and of_kind[0]["training"] in said
    for leak in leaks:  # a copy is what its name says
        numbers = [re.search(r"\d+(?=\.png)", leak[side])[0] for side in ("validation", "training")]
        assert numbers[0] == numbers[1]
    start("--epochs", 1, "--val-frac", 0.5, "--leaks", "group", out="grouped")
    assert leaks_of("grouped") == [] and "validation images have one" not in capsys.readouterr().out
    with pytest.raises(SystemExit) as stop:
        train.main([str(word) for word in [*base_words(), "--val-frac", 0.5, "--leaks", "error", "--out", "no"]])
    error = capsys.readouterr().err
    assert stop.value.code == 2 and f"{len(leaks)} validation images have a copy in training:" in error
    assert not Path("no").exists()


def base_words():
    return ["--data", "d", "--size", 16, "--model", "resnet8", "--cache", "cache", "--epochs", 1]


def test_identical_images_with_two_labels_stop_the_run_unless_told_otherwise(copies, capsys):
    for i in range(6, 12):
        Image.open(copies / "d" / f"class{i % 2}" / f"scene{i}.png").save(copies / "d" / "class2" / f"wrong{i}.png")
    with pytest.raises(SystemExit) as stop:
        train.main([str(word) for word in [*base_words(), "--out", "no"]])
    error = capsys.readouterr().err
    assert stop.value.code == 2 and "have a copy with another label in training:" in error and "wrong" in error
    start("--epochs", 1, "--leaks", "warn", out="warned")
    assert "6 images are identical to one of another class" in capsys.readouterr().out
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
    assert "weighted, 34 images an epoch, of each class" in said and "twice" not in said
    start("--sampler", "oversample", "--class-weights", "inverse", "--epochs", 1, out="b")
    said = capsys.readouterr().out
    assert "oversample, 57 images an epoch, of each class 33 to 33 %" in said
    assert "--sampler oversample and --class-weights inverse both favour rare classes, which corrects twice" in said
    # weights as 1/19, 1/10, 1/5 of equal parts: 14.9, 28.4 and 56.7 %
    assert "effective prior with class weights 15 to 57 %" in said
    start("--sampler", "balanced", "--samples-per-class", 7, "--epochs", 1, out="c")
    assert "balanced, 19 images an epoch, of each class 26 to 37 %" in capsys.readouterr().out  # 7, 7 and all 5


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


def test_M8_the_loss_under_mixing_is_against_the_mixed_labels():
    images = image_array(N=8)
    mixed = augment.Augment("none", mixup=1.0, num_classes=5)
    targets = mixed.mix_targets(images.targets, torch.arange(8), 1, (8, 8))
    state_model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, 5))
    optimizer = optim.build_optimizer("sgd", state_model, lr=1e-30)
    state = train.State(state_model, None, optimizer, optim.build_schedule("none", optimizer, 1, 1), OFF)
    batches = pixels.Batches(images, np.arange(8), 8)
    batches.epoch = 1
    logits = state_model(mixed(images.gather(torch.arange(8)), torch.arange(8), 1)).detach()
    scores = train.train_epoch(state, batches, losses.build_loss("ce"), mixed)
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
    assert "--transform: transform of " in refused(capsys, *base_words(), "--transform", "mine.py:bad", "--out", "no")
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
    assert "sheet.png: 16 training images as the network would see them" in capsys.readouterr().out
    assert Image.open("sheet.png").size[0] > 8 * 90 and not Path("no").exists()


def test_images_need_not_be_square(workspace):
    start("--size", "16 24", "--epochs", 1)
    saved = checkpoint.load("run/best_f1.pt")
    assert tuple(saved["size"]) == (16, 24) and saved["fit"] == "squash"


def test_bad_files_are_left_out_when_asked_and_counted(workspace, capsys):
    (workspace / "d" / "class0" / "text.png").write_text("no image")
    start("--bad", "skip", "--epochs", 1)
    said = capsys.readouterr().out
    assert "42 images, 3 classes" in said and "1 images cannot be decoded and are left out: " in said


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
    rows = [{"file": str(path.relative_to("d")), "label": path.parent.name, "fold": i % 2}
            for i, path in enumerate(sorted(Path("d").rglob("*.png")))]  # fmt: skip
    with open("with_folds.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    words = ["--csv", "with_folds.csv", "--val-data", "v"]
    said = refused(capsys, *base_words(), *words, "--fold-col", "fold", "--out", "no")
    assert "--fold-col: fold has no effect: the validation images are given" in said
    start("--csv", "with_folds.csv", "--val-data", "v", "--label-col", "label", "--epochs", 1, out="noted")
    assert "ignored: the fold column, because validation images are given" in capsys.readouterr().out


def test_resuming_one_fold_names_the_run_that_it_is_of(workspace, capsys):
    start("--folds", 3, "--epochs", 1, out="five")
    assert f"is a fold: resume the run that it is of, {Path('five').resolve()}" in refused(
        capsys, "--resume", "five/fold1"
    )


@pytest.mark.parametrize("content, said", [("{", "is damaged"), ("{}", "it lacks classes, command, data")])
def test_a_damaged_config_is_one_line(workspace, capsys, content, said):
    start("--epochs", 1, out="hurt")
    Path("hurt/config.json").write_text(content)
    assert said in refused(capsys, "--resume", "hurt")


def test_a_signal_before_the_run_has_a_folder_promises_no_resume(workspace, capsys, monkeypatch):
    def stop(*arguments):
        raise train.Stopped

    monkeypatch.setattr(train, "make_state", stop)
    monkeypatch.setattr(train.SIGNALS, "asked", 15)
    monkeypatch.setattr(train.SIGNALS, "installed", contextlib.nullcontext)
    with pytest.raises(SystemExit) as ended:
        start(out="never")
    assert ended.value.code == 143 and "stopped by SIGTERM before the run began" in capsys.readouterr().err


# --- the look --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "is_terminal, environment, coloured",
    [
        (True, {}, True), (True, {"NO_COLOR": "1"}, False), (True, {"NO_COLOR": ""}, True),
        (True, {"TERM": "dumb"}, False), (False, {}, False),
    ],
)  # fmt: skip
def test_colour_is_for_terminals_alone_and_never_with_no_color(monkeypatch, is_terminal, environment, coloured):
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("sys.stdout.isatty", lambda: is_terminal)
    assert (cli.coloured("best", cli.GREEN) != "best") is coloured


def test_rows_stand_under_their_heads_whatever_their_size(capsys):
    row = dict.fromkeys(runs.LOG_COLUMNS, 0.5) | {"epoch": 3, "lr": 1e-3}
    cli.print_row(row, True)
    cli.print_row(row | {"epoch": 100, "train_loss": 12345.678, "val_loss": 1e9, "images_per_second": 98765.4}, False)
    best, other = capsys.readouterr().out.splitlines()
    assert best.endswith("  best") and len(best) == len(other) + len("  best")


def test_every_group_of_the_help_has_an_example_that_parses():
    groups = cli.make_parser()._action_groups[2:]  # after argparse's own two
    assert len(groups) == 8
    for group in groups:
        assert group.description.startswith("e.g. --")
        cli.make_parser().parse_args(group.description.removeprefix("e.g. ").split())

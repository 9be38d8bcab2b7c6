"""loop.py: the window's gradient, the order inside an update, evaluation; with the kit's parts and without them."""

import copy
import itertools
import math
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import image_array

import augment
import loop
import losses
import metrics
import models
import optim
import pixels

ROOT = Path(loop.__file__).parent
COUNTS = [40, 20, 10, 5, 2]  # of the classes, for losses with a class prior
LOSS_NAMES = [
    *(name for name in losses.LOSSES if name != "cross_entropy"),
    "ce+f1",
    "focal:0.6+f1:0.4",
    "logit_adjustment+f1:0.5",
]


# --- the window ------------------------------------------------------------------------------------------------------


def naive_backward(model, forward, criterion, window, accum):
    """What A2's correction looks like at first: every micro-batch's mean divided by `accum`."""
    for index, images, targets in window:
        (criterion(forward(index, images), targets) / accum).backward()


def window_gradients(model, forward, criterion, batches, accum, naive=False):
    """The gradient of each window of an epoch, with the row numbers in it."""
    for window in loop.windows(batches.indexed(), accum):
        model.zero_grad()
        if naive:
            naive_backward(model, forward, criterion, window, accum)
        else:
            loop.backward_window(model, forward, criterion, window)
        yield torch.cat([i for i, _, _ in window]), torch.cat([p.grad.flatten() for p in model.parameters()])


def gradient_errors(name, weighted, dtype, sizes, naive=False):
    """Largest relative error against the big batch's gradient, over every n, micro-batch size and accum."""
    torch.manual_seed(0)
    images, C = image_array(), 5
    features = torch.randn(40, 3, dtype=dtype)
    model = torch.nn.Linear(3, C).to(dtype)
    weight = torch.tensor([0.3, 1.0, 2.0, 0.7, 4.0], dtype=dtype)
    criterion = losses.build_loss(name, COUNTS, **({"weight": weight} if weighted else {}))

    def forward(index, _):
        return model(features[index])

    big_batch, worst = {}, 0.0
    for n in sizes:
        for batch_size in (1, 2, 3, 4, 8):
            batches = pixels.Batches(images, np.arange(n), batch_size)
            for accum in (1, 2, 3, 4, 5, 8):
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
    assert gradient_errors(name, weighted, torch.float64, (*range(1, 10), 12, 13, 16, 17, 24, 25, 31, 32, 40)) < 1e-12


@pytest.mark.parametrize("weighted", (False, True))
@pytest.mark.parametrize("name", LOSS_NAMES)
def test_A2_A6_the_windows_gradient_is_the_big_batchs_in_float32(name, weighted):
    assert gradient_errors(name, weighted, torch.float32, (1, 3, 8, 13, 24, 32, 40)) < 1e-6


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
        window = next(loop.windows(pixels.Batches(images, np.arange(22), 5).indexed(), 5))
        loss, logits, _ = loop.backward_window(model, lambda _, x: model(x.float() / 255), criterion, window)
        gradient = torch.cat([p.grad.flatten() for p in model.parameters()])
        return [gradient, loss, logits, *model.buffers(), torch.get_rng_state()]

    for cached, direct in zip(through(False), through(True), strict=True):
        assert torch.allclose(cached.double(), direct.double(), rtol=1e-5, atol=1e-6)


def test_the_reported_loss_is_the_big_batchs_loss():
    images = image_array()
    for name in LOSS_NAMES:
        criterion, model = losses.build_loss(name, COUNTS), Stochastic().eval()
        window = next(loop.windows(pixels.Batches(images, np.arange(22), 5).indexed(), 5))
        loss, logits, _ = loop.backward_window(model, lambda _, x: model(x.float() / 255), criterion, window)  # noqa: B023
        assert torch.allclose(loss, criterion(logits, images.targets[:22]), atol=1e-6)


# --- an update -------------------------------------------------------------------------------------------------------


def state_of(model, lr=1.0, name="none", scaler=loop.NO_SCALER, **options):
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    schedule = optim.build_schedule(name, optimizer, epochs=2, updates_per_epoch=3, **options)
    return loop.State(model, optimizer, schedule, scaler)


def flat(model):
    return torch.cat([p.detach().flatten().clone() for p in model.parameters()])


def flat_net():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, 5))


def one_epoch(state, N=24, batch_size=8, criterion=None, **options):
    batches, transform = pixels.Batches(image_array(N), np.arange(N), batch_size), augment.Augment("none")

    def forward(numbers, images):
        return state.model(transform(images, numbers, 0))

    def describe(window):
        return ", ".join(batches.images.paths[i] for numbers, *_ in window for i in numbers.tolist())

    criterion = criterion or losses.build_loss("ce")
    return loop.train_epoch(state, batches.indexed(), criterion, forward, describe=describe, **options)


def evaluate(model, batches, criterion):
    transform = augment.Augment("none")
    return loop.evaluate(
        model, batches.indexed(), criterion, lambda numbers, images: model(transform(images, numbers, 0))
    )


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
    with pytest.raises(loop.NonFinite) as error:
        one_epoch(state)
    assert torch.equal(flat(model), before)
    assert all(f"{i:02d}.jpg" in str(error.value) for i in range(8)) and "08.jpg" not in str(error.value)


def test_a_gradient_that_stays_nan_under_fp16_stops_the_run_when_the_scale_is_used_up():
    model = flat_net()
    model[1].weight.register_hook(lambda g: g * math.nan)
    state, before = state_of(model, scaler=torch.amp.GradScaler("cpu", init_scale=4.0)), flat(model)
    with pytest.raises(loop.NonFinite):
        one_epoch(state, batch_size=2)  # 4, 2, 1, then it is no matter of scale
    assert torch.equal(flat(model), before) and state.scaler.get_scale() == 0.5


# --- judging ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch_size", (2, 7, 39, 40, 1000))
def test_M1_M2_M3_validation_does_not_depend_on_the_batch_size(batch_size):
    images, model = image_array(), flat_net()
    for name in ("ce", "f1"):
        criterion = losses.build_loss(name)
        batches = pixels.Batches(images, np.arange(40), batch_size)
        scores, logits, targets = evaluate(model, batches, criterion)
        matrix = metrics.ConfusionMatrix(5).update(logits, targets)
        logits = model(augment.normalize(images.gather(torch.arange(40)))).detach()
        assert int(matrix.matrix.sum()) == 40  # M2: none dropped
        assert matrix.accuracy() == pytest.approx((logits.argmax(1) == images.targets).double().mean().item())
        assert scores["val_loss"] == pytest.approx(float(criterion(logits, images.targets)), abs=1e-6)
        assert scores["val_ce"] == pytest.approx(float(F.cross_entropy(logits, images.targets)), abs=1e-6)


def test_a_network_that_has_diverged_is_not_judged():
    model = flat_net()
    with torch.no_grad():
        model[1].weight.fill_(math.nan)
    with pytest.raises(loop.NonFinite, match="NaN or infinite logits"):
        batches = pixels.Batches(image_array(), np.arange(40), 8)
        evaluate(model, batches, losses.build_loss("ce"))


# --- without the kit: torch's own loader, criterion, schedule --------------------------------------------------------


def foreign(n=27, dtype=torch.float64):
    """A network, a loader of (images, targets) with a short last batch, and the same images as big batches of 8 x 4."""
    torch.manual_seed(0)
    x, y = torch.randn(n, 3, 8, 8, dtype=dtype), torch.arange(n) % 5
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(144, 5))
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, y), batch_size=8)
    return net.to(dtype), loader, list(zip(x.split(32), y.split(32), strict=True))


WEIGHT = torch.tensor([0.2, 0.5, 1.0, 2.0, 5.0], dtype=torch.float64)


class CountingF1(torch.nn.Module):
    """Somebody's own F1 loss, which says that it is not additive."""

    additive = False

    def forward(self, logits, targets):
        return losses.f1_loss(logits, targets)


class OwnMean(torch.nn.Module):
    """Somebody's own mean, over something that only its own weight_of knows."""

    def forward(self, logits, targets):
        each = F.cross_entropy(logits, targets, reduction="none")
        return (each * (1 + targets.double())).sum() / self.weight_of(targets)

    def weight_of(self, targets):
        return (1.0 + targets.double()).sum()


CRITERIA = {
    "ce": torch.nn.CrossEntropyLoss(),
    "ce as a function": F.cross_entropy,
    "weight, smoothing": torch.nn.CrossEntropyLoss(weight=WEIGHT, label_smoothing=0.1),
    "a class of weight 0": torch.nn.CrossEntropyLoss(weight=WEIGHT * torch.tensor([0, 1, 1, 1, 1])),
    "ignore_index": torch.nn.CrossEntropyLoss(weight=WEIGHT, ignore_index=3, label_smoothing=0.1),
    "own F1": CountingF1(),
    "own mean with weight_of": OwnMean(),
}


def big_batch_epoch(net, big, criterion, lr=0.1):
    """The reference, written by hand: one step per big batch."""
    optimizer = torch.optim.SGD(net.parameters(), lr=lr, momentum=0.9)
    for x, y in big:
        optimizer.zero_grad()
        criterion(net(x), y).backward()
        optimizer.step()
    return flat(net)


@pytest.mark.parametrize("n", (27, 40, 71))
@pytest.mark.parametrize("name", CRITERIA)
def test_an_epoch_with_torchs_own_parts_equals_a_hand_written_big_batch_loop(name, n):
    (net, loader, _), (reference, _, big) = foreign(n), foreign(n)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    trained = loop.train_epoch(loop.State(net, optimizer), loader, CRITERIA[name], accum=4)
    assert torch.allclose(flat(net), big_batch_epoch(reference, big, CRITERIA[name]), rtol=1e-10, atol=1e-12)
    assert math.isfinite(trained["train_loss"]) and math.isfinite(trained["train_ce"])


@pytest.mark.parametrize("wrong", ({"accum": 0}, {"accum": -1}, {"clip": 0}, {"clip": -1.0}, {"clip": math.nan}))
def test_an_accum_or_clip_that_means_nothing_is_refused_by_name(wrong):
    net, loader, _ = foreign(40)
    before = flat(net).clone()
    state = loop.State(net, torch.optim.SGD(net.parameters(), lr=0.1))
    with pytest.raises(ValueError, match="accum must be >= 1, and clip > 0 or None; got"):
        loop.train_epoch(state, loader, torch.nn.CrossEntropyLoss(), **wrong)
    assert torch.equal(flat(net), before)


@pytest.mark.parametrize("dtype", (torch.uint8, torch.int16, torch.int32))
@pytest.mark.parametrize("weighted", (False, True))
def test_class_indices_of_any_integer_type_train_and_score_the_same(dtype, weighted):
    criterion = torch.nn.CrossEntropyLoss(WEIGHT if weighted else None)
    ends = []
    for kind in (torch.int64, dtype):
        net, loader, _ = foreign(40)
        batches = [(x, y.to(kind)) for x, y in loader]
        state = loop.State(net, torch.optim.SGD(net.parameters(), lr=0.1))
        trained = loop.train_epoch(state, batches, criterion, accum=2)
        scores, _, _ = loop.evaluate(net, batches, criterion)
        ends.append((flat(net), trained["train_loss"], trained["train_ce"], scores["val_loss"], scores["val_ce"]))
    assert torch.equal(ends[0][0], ends[1][0]) and ends[0][1:] == ends[1][1:]


def test_weight_of_reads_class_indices_as_numbers():
    targets, criterion = torch.tensor([0, 1, 1, 0, 1]), torch.nn.CrossEntropyLoss(WEIGHT)
    for dtype in (torch.uint8, torch.int8, torch.int16, torch.int32, torch.bool):
        assert loop.weight_of(criterion, targets.to(dtype)) == WEIGHT[targets].sum()
    assert loop.weight_of(torch.nn.CrossEntropyLoss(), torch.tensor([156, 3], dtype=torch.uint8)) == 2  # not -100
    assert torch.tensor([156], dtype=torch.uint8) == -100  # the control


def test_dividing_by_accum_does_not_equal_the_big_batch_loop():
    """The control of the test above."""
    (net, loader, _), (reference, _, big), criterion = foreign(), foreign(), CRITERIA["weight, smoothing"]
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    for i, (x, y) in enumerate(loader, 1):
        (criterion(net(x), y) / 4).backward()
        if i % 4 == 0 or i == len(loader):
            optimizer.step()
            optimizer.zero_grad()
    assert not torch.allclose(flat(net), big_batch_epoch(reference, big, criterion), rtol=1e-3)


def test_a_micro_batch_of_ignored_targets_weighs_nothing():
    (net, _, _), (reference, _, _), criterion = foreign(), foreign(), torch.nn.CrossEntropyLoss(WEIGHT, ignore_index=-1)
    x, y = torch.randn(8, 3, 8, 8).double(), torch.tensor([0, 1, 2, -1, -1, -1, -1, -1])
    window = list(zip(x.split(4), y.split(4), strict=True))  # the second micro-batch has nothing to learn from
    loss, *_ = loop.backward_window(net, net, criterion, window)
    expected = criterion(reference(x), y)
    expected.backward()
    assert loss == pytest.approx(expected.item(), rel=1e-10)  # a mean over nothing would be 0 / 0
    for ours, theirs in zip(net.parameters(), reference.parameters(), strict=True):
        assert torch.allclose(ours.grad, theirs.grad, rtol=1e-10)


def test_class_probabilities_as_targets_are_a_mean_over_samples():
    (net, _, _), (reference, _, _) = foreign(), foreign()
    x, y = torch.randn(11, 3, 8, 8).double(), torch.rand(11, 5).double().softmax(1)
    criterion = torch.nn.CrossEntropyLoss(WEIGHT)
    loop.backward_window(net, net, criterion, list(zip(x.split(4), y.split(4), strict=True)))
    criterion(reference(x), y).backward()
    assert torch.allclose(net[3].weight.grad, reference[3].weight.grad, rtol=1e-10)


class SumOverBatchSize(torch.nn.Module):
    """Divides by something that nobody can guess."""

    def forward(self, logits, targets):
        return F.cross_entropy(logits, targets, reduction="sum") / (1 + targets.sum())


def test_a_criterion_that_is_not_a_weighted_mean_is_refused_by_name():
    def hidden_f1(logits, targets):
        return losses.f1_loss(logits, targets)

    for criterion, name in ((SumOverBatchSize(), "SumOverBatchSize"), (hidden_f1, "hidden_f1")):
        net, loader, _ = foreign()
        with pytest.raises(ValueError, match=f"{name}.*weight_of.*additive = False"):
            loop.train_epoch(loop.State(net, torch.optim.SGD(net.parameters(), lr=0.1)), loader, criterion, accum=4)
    net, loader, _ = foreign()
    with pytest.raises(ValueError, match="reduction='mean', got 'sum'"):
        state = loop.State(net, torch.optim.SGD(net.parameters(), lr=0.1))
        loop.train_epoch(state, loader, torch.nn.CrossEntropyLoss(reduction="sum"), accum=4)


def test_torchs_schedules_step_once_per_update_and_the_hook_sees_each():
    net, loader, _ = foreign(71)  # 9 micro-batches, 3 windows
    optimizer, seen = torch.optim.SGD(net.parameters(), lr=1.0), []
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda update: 0.5**update)
    loop.train_epoch(
        loop.State(net, optimizer, schedule), loader, torch.nn.CrossEntropyLoss(), accum=4, after_window=seen.append
    )
    assert [window["lr"] for window in seen] == [1.0, 0.5, 0.25] and optimizer.param_groups[0]["lr"] == 0.125
    assert all(window["outcome"] == "update" and window["grad_norm"] > 0 for window in seen)


def test_ignored_targets_do_not_count_in_the_mean_cross_entropy():
    net, loader, _ = foreign()
    criterion = torch.nn.CrossEntropyLoss(ignore_index=3)
    scores, logits, targets = loop.evaluate(net, loader, criterion)
    kept = targets != 3
    assert scores["val_ce"] == pytest.approx(float(F.cross_entropy(logits[kept], targets[kept])))
    state = loop.State(net, torch.optim.SGD(net.parameters(), lr=0.0))
    assert loop.train_epoch(state, loader, criterion, accum=4)["train_ce"] == pytest.approx(scores["val_ce"])


def test_an_exception_in_a_window_undoes_it():
    torch.manual_seed(0)
    net, calls = Stochastic(), itertools.count()
    window_images = [(torch.randn(6, 192), torch.arange(6) % 5) for _ in range(4)]

    def stop_at_the_third():
        if next(calls) == 2:
            raise KeyboardInterrupt

    before = [*(b.clone() for b in net.state_dict().values()), torch.get_rng_state()]
    state = loop.State(net, torch.optim.SGD(net.parameters(), lr=0.1))
    with pytest.raises(KeyboardInterrupt):
        loop.train_epoch(state, window_images, torch.nn.CrossEntropyLoss(), accum=4, check=stop_at_the_third)
    after = [*net.state_dict().values(), torch.get_rng_state()]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True)) and state.progress["windows"] == 0
    assert all(parameter.grad is None for parameter in net.parameters())


class OwnFocal(torch.nn.Module):
    """A focal loss as many write it: it keeps `reduction`, and always takes the mean."""

    def __init__(self):
        super().__init__()
        self.reduction = "mean"

    def forward(self, logits, targets):
        ce = F.cross_entropy(logits, targets, reduction="none")
        return ((1 - torch.exp(-ce)) ** 2 * ce).mean()


class Proxies(torch.nn.Module):
    """A criterion with parameters of its own, which the optimizer trains too."""

    def __init__(self):
        super().__init__()
        self.shift = torch.nn.Parameter(torch.zeros(5, dtype=torch.float64))

    def forward(self, logits, targets):
        return F.cross_entropy(logits + self.shift, targets)


@pytest.mark.parametrize("build", (OwnFocal, Proxies))
def test_somebodys_own_criterion_is_exact_without_any_change(build):
    (net, loader, _), (reference, _, big) = foreign(), foreign()
    ours, theirs = build(), build()
    both = [*net.parameters(), *ours.parameters()], [*reference.parameters(), *theirs.parameters()]
    optimizers = [torch.optim.SGD(parameters, lr=0.1) for parameters in both]
    loop.train_epoch(loop.State(net, optimizers[0]), loader, ours, accum=4)
    for x, y in big:
        optimizers[1].zero_grad()
        theirs(reference(x), y).backward()
        optimizers[1].step()
    assert all(torch.allclose(a, b, rtol=1e-10, atol=1e-12) for a, b in zip(*both, strict=True))


def test_a_refused_criterion_has_changed_nothing():
    net, loader, _ = foreign()
    state, before = loop.State(net, torch.optim.SGD(net.parameters(), lr=0.1)), flat(net)
    with pytest.raises(ValueError, match="SumOverBatchSize"):
        loop.train_epoch(state, loader, SumOverBatchSize(), accum=4)
    assert torch.equal(flat(net), before) and all(parameter.grad is None for parameter in net.parameters())
    trained = loop.train_epoch(state, loader, torch.nn.CrossEntropyLoss(), accum=4)
    assert trained["train_loss"] == pytest.approx(trained["train_ce"])


def test_after_a_non_finite_window_training_can_go_on_with_clean_data():
    torch.manual_seed(0)
    net = Stochastic()
    clean = [(torch.randn(6, 192), torch.arange(6) % 5) for _ in range(4)]
    poisoned = [(clean[0][0] * math.nan, clean[0][1]), *clean[1:]]
    state = loop.State(net, torch.optim.SGD(net.parameters(), lr=0.1))
    with pytest.raises(loop.NonFinite):
        loop.train_epoch(state, poisoned, torch.nn.CrossEntropyLoss(), accum=4)
    assert math.isfinite(loop.train_epoch(state, clean, torch.nn.CrossEntropyLoss(), accum=4)["train_loss"])
    assert all(buffer.isfinite().all() for buffer in net.buffers())


class Average:
    """A minimal EMA."""

    def __init__(self, model):
        self.weights = {key: value.clone() for key, value in model.state_dict().items()}

    def update(self, model):
        for key, value in model.state_dict().items():
            self.weights[key] = 0.5 * self.weights[key] + 0.5 * value

    def state_dict(self):
        return self.weights

    def load_state_dict(self, saved):
        self.weights = saved


@pytest.mark.parametrize("forgotten", (None, "rng", "ema", "scaler", "schedule", "optimizer"))
def test_a_saved_state_goes_on_to_the_same_end_and_what_is_forgotten_shows(forgotten):
    """The round trip without the kit's parts, and its control: whatever is left out changes the end."""

    def fresh():
        torch.manual_seed(0)
        net = Stochastic()
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda update: 0.9**update)
        scaler = torch.amp.GradScaler("cpu", init_scale=4.0, growth_interval=2)
        return loop.State(net, optimizer, schedule, scaler, Average(net))

    data = [(torch.randn(6, 192), torch.arange(6) % 5) for _ in range(6)]

    def epoch(state):
        loop.train_epoch(state, data, torch.nn.CrossEntropyLoss(), accum=2)

    whole = fresh()
    epoch(whole)
    saved = copy.deepcopy(whole.state_dict())
    epoch(whole)
    torch.manual_seed(1)
    resumed = fresh()
    torch.manual_seed(1)
    start = copy.deepcopy(resumed.state_dict())
    resumed.load_state_dict(saved | ({forgotten: start[forgotten]} if forgotten else {}))
    epoch(resumed)
    ends = [(flat(s.model), *s.ema.weights.values(), torch.tensor(s.scaler.get_scale())) for s in (whole, resumed)]
    assert all(torch.equal(a, b) for a, b in zip(*ends, strict=True)) == (forgotten is None)


def test_gradient_caching_under_a_scaler_gives_the_scaled_gradient():
    images, criterion = image_array(), losses.build_loss("ce+f1")
    window = next(loop.windows(pixels.Batches(images, np.arange(22), 5).indexed(), 5))
    gradients = []
    for scaler in (loop.NO_SCALER, torch.amp.GradScaler("cpu", init_scale=8.0)):
        model = flat_net()
        loop.backward_window(model, lambda _, x, m=model: m(x.float() / 255), criterion, window, scaler)
        gradients.append(model[1].weight.grad)
    assert torch.allclose(gradients[1], 8 * gradients[0], rtol=1e-5) and gradients[0].abs().max() > 0


def test_training_is_in_training_mode_evaluation_is_not_and_the_loss_is_weighted():
    (net, loader, _), weighted = foreign(), torch.nn.CrossEntropyLoss(WEIGHT)
    modes = []
    net.register_forward_pre_hook(lambda module, inputs: modes.append(module.training))
    loop.evaluate(net.train(), loader, weighted)
    assert not any(modes)
    modes.clear()
    state = loop.State(net.eval(), torch.optim.SGD(net.parameters(), lr=0.0))
    trained = loop.train_epoch(state, loader, weighted, accum=2)  # nothing moves: windows of 16 and of 11 images
    assert modes and all(modes)
    x, y = loader.dataset.tensors
    assert trained["train_loss"] == pytest.approx(weighted(net(x), y).item())
    assert trained["train_loss"] != pytest.approx(
        sum(weighted(net(a), b).item() * len(b) for a, b in zip(x.split(16), y.split(16), strict=True)) / len(y)
    )


FOREIGN = """
import torch, torchvision
from torch import nn
import loop

torch.manual_seed(0)
net = torchvision.models.resnet18(num_classes=5, norm_layer=lambda channels: nn.GroupNorm(8, channels)).double()
copy = torchvision.models.resnet18(num_classes=5, norm_layer=lambda channels: nn.GroupNorm(8, channels)).double()
copy.load_state_dict(net.state_dict())
x, y = torch.randn(21, 3, 32, 32).double(), torch.arange(21) % 5
loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, y), batch_size=4)  # 5 full batches and one of 1
criterion = nn.CrossEntropyLoss(weight=torch.tensor([0.2, 0.5, 1, 2, 5]).double(), label_smoothing=0.1)

state = loop.State(net, torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9))
loop.train_epoch(state, loader, criterion, accum=4)

def by_hand(net, mean_of_means):
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    for images, targets in zip(x.split(16), y.split(16)):
        optimizer.zero_grad()
        for a, b in zip(images.split(4), targets.split(4)) if mean_of_means else [(images, targets)]:
            (criterion(net(a), b) / (4 if mean_of_means else 1)).backward()
        optimizer.step()
    return torch.cat([p.detach().flatten() for p in net.parameters()])

ours = torch.cat([p.detach().flatten() for p in net.parameters()])
net.load_state_dict(copy.state_dict())
naive = by_hand(net, True)
print(float((ours - by_hand(copy, False)).abs().max()), float((ours - naive).abs().max()))
"""


def test_loop_alone_in_an_empty_folder_trains_foreign_code_exactly(tmp_path):
    shutil.copy(ROOT / "loop.py", tmp_path)
    (tmp_path / "foreign.py").write_text(FOREIGN)
    done = subprocess.run([sys.executable, "foreign.py"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    exact, naive = map(float, done.stdout.split())
    assert exact < 1e-10 and naive > 1e-3

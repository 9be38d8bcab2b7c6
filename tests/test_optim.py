"""optim.py: every schedule against torch's own or an independent formula, over a whole run."""

import math

import pytest
import torch
from torch.optim import lr_scheduler

import optim
from optim import build_optimizer, build_schedule


def sgd(lr=0.5):
    return torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=lr)


def trace(schedule, epochs, per_epoch, values=None):
    """The learning rate of every update."""
    lrs = []
    for epoch in range(epochs):
        for _ in range(per_epoch):
            lrs.append(schedule.lr)
            schedule.optimizer.step()
            schedule.step()
        schedule.epoch_end(values[epoch] if values else 0.0)
    return lrs


def torch_trace(make, updates, lr=0.5):
    optimizer = sgd(lr)
    scheduler, lrs = make(optimizer), []
    for _ in range(updates):
        lrs.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return lrs


REFERENCES = {
    ("none", ()): lambda o: lr_scheduler.ConstantLR(o, 1.0),
    ("step", (("step_epochs", 3), ("lr_decay", 0.7))): lambda o: lr_scheduler.StepLR(o, 3 * 7, 0.7),
    ("step", ()): lambda o: lr_scheduler.StepLR(o, 28, 0.1),
    ("cosine", ()): lambda o: lr_scheduler.CosineAnnealingLR(o, 84),
    ("cosine", (("min_lr", 0.1),)): lambda o: lr_scheduler.CosineAnnealingLR(o, 84, 0.1),
    ("restarts", (("t0", 2), ("t_mult", 2))): lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, 14, 2),
    ("restarts", (("t0", 3), ("t_mult", 1), ("min_lr", 0.01))): lambda o: lr_scheduler.CosineAnnealingWarmRestarts(
        o, 21, 1, 0.01
    ),
    ("multistep", (("milestones", (4, 9)), ("lr_decay", 0.2))): lambda o: lr_scheduler.MultiStepLR(o, [28, 63], 0.2),
    ("multistep", ()): lambda o: lr_scheduler.MultiStepLR(o, [42, 63], 0.1),
    ("linear", ()): lambda o: lr_scheduler.LinearLR(o, 1.0, 0.0, 84),
    ("linear", (("min_lr", 0.1),)): lambda o: lr_scheduler.LinearLR(o, 1.0, 0.2, 84),
    ("onecycle", ()): lambda o: lr_scheduler.OneCycleLR(o, 0.5, total_steps=84, cycle_momentum=False),
}


@pytest.mark.parametrize("case", REFERENCES, ids=str)
def test_A9_every_schedule_follows_torchs_own_for_the_whole_run(case):
    name, options = case
    ours = trace(build_schedule(name, sgd(), 12, 7, **dict(options)), 12, 7)
    assert ours == pytest.approx(torch_trace(REFERENCES[case], 84), abs=1e-9)
    if name != "none":
        assert ours[0] != ours[50]  # the learning rate changes (A9)


@pytest.mark.parametrize("name", ["none", "step", "cosine", "restarts"])
def test_warmup_rises_linearly_to_lr_and_the_schedule_follows_on_the_rest(name):
    ours = trace(build_schedule(name, sgd(), 12, 7, warmup=2), 12, 7)
    assert ours[:14] == pytest.approx([0.5 * (u + 1) / 14 for u in range(14)])
    assert ours[14:] == pytest.approx(trace(build_schedule(name, sgd(), 10, 7), 10, 7))
    assert ours[:14] != pytest.approx(trace(build_schedule(name, sgd(), 12, 7), 12, 7)[:14])


def test_milestones_are_epochs_of_the_run_also_after_warmup():
    ours = trace(build_schedule("multistep", sgd(), 12, 7, warmup=2, milestones=[4.0, 9.5]), 12, 7)
    expected = [0.5 * (u + 1) / 14 for u in range(14)] + [0.5] * 14 + [0.05] * 38 + [0.005] * 18  # 9.5 * 7 = 66
    assert ours == pytest.approx(expected)


@pytest.mark.parametrize("milestones", [[], [0], [3, 2], [2, 2], [3], [math.nan]])
def test_milestones_that_do_not_rise_within_the_run_are_refused(milestones):
    with pytest.raises(ValueError, match="milestones must rise"):
        build_schedule("multistep", sgd(), 3, 7, milestones=milestones)


def networks(n=2):
    """n equal small networks."""
    made = []
    for _ in range(n):
        torch.manual_seed(0)
        made.append(torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.Flatten(), torch.nn.Linear(16, 5)))
    return made


def give_gradients(net, seed):
    g = torch.Generator().manual_seed(seed)
    for parameter in net.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=g)


@pytest.mark.parametrize("resumed", (False, True))
def test_ranger_is_radam_with_centralized_gradients_and_lookahead(resumed):
    ours, reference = networks()
    ranger = build_optimizer("ranger", ours, 0.1, 0.01)
    decays = [group["weight_decay"] for group in ranger.param_groups]
    groups = [
        {"params": group, "weight_decay": decay}
        for group, decay in zip(
            ([p for p in reference.parameters() if p.ndim > 1], [p for p in reference.parameters() if p.ndim == 1]),
            decays,
            strict=True,
        )
    ]
    radam = torch.optim.RAdam(groups, lr=0.1, decoupled_weight_decay=True, foreach=False)
    slow = [p.detach().clone() for p in reference.parameters()]
    for update in range(1, 20):
        for net in (ours, reference):
            give_gradients(net, update)
        if resumed and update == 8:
            ranger, state = build_optimizer("ranger", ours, 0.1, 0.01), ranger.state_dict()
            ranger.load_state_dict(state)
        ranger.step()
        for p in reference.parameters():
            if p.ndim > 1:
                p.grad = p.grad - p.grad.flatten(1).mean(1).view(-1, *[1] * (p.ndim - 1))
        radam.step()
        if update % 6 == 0:
            for p, s in zip(reference.parameters(), slow, strict=True):
                s += 0.5 * (p.detach() - s)
                p.data.copy_(s)
        for a, b in zip(ours.parameters(), reference.parameters(), strict=True):
            assert torch.allclose(a, b, atol=1e-6), update
    assert not torch.allclose(next(ours.parameters()), slow[0], atol=1e-3)  # update 19: fast weights have moved on


def test_ranger_passes_a_group_that_is_frozen_as_a_whole_and_trains_it_later():
    whole, head = networks()
    ranger = build_optimizer("ranger", whole, 0.1, 0.01, lambda name: 1.0 if name.startswith("2.") else 0.5)
    of_head = build_optimizer("ranger", head[2], 0.1, 0.01)  # control: an optimizer that has only the head
    before = whole[0].weight.clone()
    for update in range(12):
        for net in (whole, head):
            give_gradients(net, update)
        whole[0].weight.grad = whole[0].bias.grad = None
        ranger.step(), of_head.step()
    assert torch.equal(whole[0].weight, before)
    assert torch.equal(whole[2].weight, head[2].weight) and torch.equal(whole[2].bias, head[2].bias)
    give_gradients(whole, 12)
    ranger.step()
    assert not torch.equal(whole[0].weight, before)


def test_lr_factor_gives_each_parameter_its_learning_rate():
    net = networks(1)[0]
    optimizer = build_optimizer("sgd", net, 0.1, 0.01, lambda name: 1.0 if name.startswith("2.") else 0.25)
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    assert [rates[id(p)] for p in net.parameters()] == pytest.approx([0.025, 0.025, 0.1, 0.1])
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.1)  # the logged learning rate is that of factor 1
    schedule = build_schedule("step", optimizer, 2, 1, step_epochs=1, lr_decay=0.5)
    schedule.step()
    assert sorted({group["lr"] for group in optimizer.param_groups}) == pytest.approx([0.0125, 0.05])


def test_min_lr_belongs_to_lr_where_no_parameter_has_the_factor_1():
    net = networks(1)[0]
    optimizer = build_optimizer("sgd", net, 0.1, 0.01, lambda name: 0.2 if name.startswith("2.") else 0.5)
    schedule = build_schedule("linear", optimizer, 2, 2, min_lr=0.08)  # more than the lr of every group, less than lr
    for _ in range(4):
        schedule.step()
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.04, 0.04, 0.016, 0.016])


def test_warmup_is_the_length_of_onecycles_rise():
    ours = trace(build_schedule("onecycle", sgd(), 12, 7, warmup=6), 12, 7)
    torchs = torch_trace(
        lambda o: lr_scheduler.OneCycleLR(o, 0.5, total_steps=84, pct_start=0.5, cycle_momentum=False), 84
    )
    assert ours == pytest.approx(torchs, abs=1e-9)


@pytest.mark.parametrize("mode", ["max", "min"])
def test_A11_plateau_follows_torchs_in_the_direction_of_the_monitored_number(mode):
    values = [0.1, 0.5, 0.4, 0.4, 0.5, 0.3, 0.6, 0.2, 0.2, 0.1, 0.1, 0.1, 0.7, 0.7, 0.7, 0.7, 0.7, 0.7]
    schedule = build_schedule("plateau", sgd(), 18, 3, mode=mode, plateau_patience=2, lr_decay=0.3)
    ours = trace(schedule, 18, 3, values)
    optimizer = sgd()
    torchs = lr_scheduler.ReduceLROnPlateau(optimizer, mode, 0.3, patience=2, threshold=0.0)
    expected = []
    for value in values:
        expected += [optimizer.param_groups[0]["lr"]] * 3
        torchs.step(value)
    assert ours == pytest.approx(expected)
    opposite = "min" if mode == "max" else "max"
    wrong = build_schedule("plateau", sgd(), 18, 3, mode=opposite, plateau_patience=2, lr_decay=0.3)
    assert trace(wrong, 18, 3, values) != pytest.approx(expected)


def test_plateau_warms_up_too():
    schedule = build_schedule("plateau", sgd(), 4, 5, warmup=1)
    assert trace(schedule, 4, 5, [0, 1, 2, 3]) == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.5] + [0.5] * 15)


def test_A10_n_epochs_have_n_times_updates_and_the_last_still_moves():
    lrs = trace(build_schedule("cosine", sgd(), 3, 4), 3, 4)
    assert len(lrs) == 12 and lrs[0] == 0.5 and lrs[-1] > 0


@pytest.mark.parametrize("name", optim.SCHEDULES)
def test_a_schedule_goes_on_from_its_saved_state(name):
    values = [0.3, 0.2, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1]
    options = {"plateau_patience": 1} if name == "plateau" else {}
    whole = trace(build_schedule(name, sgd(), 10, 4, warmup=1, **options), 10, 4, values)
    first = build_schedule(name, sgd(), 10, 4, warmup=1, **options)
    head = trace(first, 6, 4, values)
    second = build_schedule(name, sgd(), 10, 4, warmup=1, **options)
    forgetful = trace(second, 4, 4, values[6:])
    second = build_schedule(name, sgd(), 10, 4, warmup=1, **options)
    second.load_state_dict(first.state_dict())
    assert head + trace(second, 4, 4, values[6:]) == whole
    assert head + forgetful != whole


@pytest.mark.parametrize("name", optim.OPTIMIZERS)
def test_no_weight_decay_on_biases_norms_and_tokens(name):
    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm, self.fc = torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.Linear(4, 2)
            self.class_token = torch.nn.Parameter(torch.ones(1, 1, 4))
            self.frozen = torch.nn.Linear(4, 4).requires_grad_(False)

    net = Net()
    optimizer = build_optimizer(name, net, 0.1, 0.5)
    decayed = {id(p) for group in optimizer.param_groups if group["weight_decay"] for p in group["params"]}
    assert decayed == {id(net.conv.weight), id(net.fc.weight)}
    assert sum(len(group["params"]) for group in optimizer.param_groups) == 7


@pytest.mark.parametrize("name", optim.OPTIMIZERS)
def test_every_optimizer_takes_a_step_downhill(name):
    torch.manual_seed(0)
    net, x = torch.nn.Linear(3, 1), torch.randn(8, 3)
    optimizer = build_optimizer(name, net, lr=0.01)
    losses = []
    for _ in range(20):
        loss = net(x).square().mean()
        losses.append(loss.item())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert losses[-1] < losses[0]


def test_sgd_is_nesterov_momentum():
    net = torch.nn.Linear(3, 1, bias=False)
    with torch.no_grad():
        net.weight.fill_(0)
    optimizer = build_optimizer("sgd", net, lr=1.0, weight_decay=0.0)
    net.weight.grad = torch.ones(1, 3)
    optimizer.step()  # v = g, w = -(g + 0.9 v) = -1.9; momentum without Nesterov would give -1
    assert net.weight.tolist() == [pytest.approx([-1.9] * 3)]


def test_the_defaults_are_read_by_name():
    sgd_defaults = optim.OPTIMIZERS["sgd"]
    assert (sgd_defaults.lr, sgd_defaults.weight_decay) == (0.1, 5e-4)
    for name, recipe in optim.OPTIMIZERS.items():
        group = build_optimizer(name, torch.nn.Linear(2, 2)).param_groups[0]
        assert (group["lr"], group["weight_decay"]) == (recipe.lr, recipe.weight_decay)


VALUES = {
    "milestones": [1],
    "step_epochs": 2,
    "lr_decay": 0.5,
    "plateau_patience": 0,
    "min_lr": 0.1,
    "t0": 1,
    "t_mult": 1,
}


@pytest.mark.parametrize("name", optim.SCHEDULES)
def test_a_schedule_takes_the_options_that_it_names_and_no_others(name):
    taken = optim.schedule_options(name)
    build_schedule(name, sgd(), 3, 2, **{option: VALUES[option] for option in taken})
    for option in VALUES.keys() - set(taken):
        with pytest.raises(ValueError, match=f"'{name}' does not take {option}: it takes {', '.join(taken) or 'no'}"):
            build_schedule(name, sgd(), 3, 2, **{option: VALUES[option]})
    for internal in ("T", "lr", "warmup_updates", "floor"):
        with pytest.raises(ValueError, match=f"does not take {internal}"):
            build_schedule(name, sgd(), 3, 2, **{internal: 1})


@pytest.mark.parametrize("name", optim.SCHEDULES)
def test_a_warmup_that_rounds_to_the_whole_run_ends_without_an_error(name):
    lrs = trace(build_schedule(name, sgd(), 2, 2, warmup=1.9), 2, 2)  # round(3.8) of 4 updates
    assert len(lrs) == 4 and lrs[-1] == 0.5


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda n, o: build_optimizer("adamx", n), "unknown optimizer 'adamx': choose from sgd"),
        (lambda n, o: build_optimizer("sgd", n, lr=-1.0), "lr must be > 0, got -1"),
        (lambda n, o: build_optimizer("sgd", n, lr=math.nan), "lr must be > 0, got nan"),
        (lambda n, o: build_optimizer("sgd", n, weight_decay=-1.0), "weight_decay must be >= 0, got -1"),
        (lambda n, o: build_optimizer("sgd", torch.nn.ReLU()), "no trainable parameters"),
        (
            lambda n, o: build_schedule("cosin", o, 2, 2),
            "unknown schedule 'cosin': choose from none, step, multistep, cosine",
        ),
        (
            lambda n, o: optim.schedule_options("cosin"),
            "unknown schedule 'cosin': choose from none, step, multistep, cosine",
        ),
        (lambda n, o: build_schedule("cosine", o, 2, 2, t0=3), "schedule 'cosine' does not take t0: it takes min_lr"),
        (lambda n, o: build_schedule("none", o, 2, 2, t0=3), "schedule 'none' does not take t0: it takes no options"),
        (lambda n, o: build_schedule("restarts", o, 2, 2, t0=0), "t0 must be > 0, got 0"),
        (lambda n, o: build_schedule("step", o, 2, 2, lr_decay=1.0), "lr_decay must be < 1, got 1.0"),
        (lambda n, o: build_schedule("cosine", o, 2, 2, min_lr=-1), "min_lr must be >= 0, got -1"),
        (lambda n, o: build_schedule("cosine", o, 2, 2, min_lr=9), "min_lr must be <= lr, got 9 with lr 0.5"),
        (lambda n, o: build_schedule("cosine", o, 2, 2, min_lr=math.nan), "min_lr must be >= 0, got nan"),
        (lambda n, o: build_schedule("cosine", o, 2, 2, warmup=2), "warmup must be >= 0 and < epochs, got 2 with 2"),
        (lambda n, o: build_schedule("plateau", o, 2, 2, mode="up"), "mode must be"),
    ],
)
def test_bad_input_is_an_error_that_names_it(call, message):
    with pytest.raises(ValueError) as error:
        call(torch.nn.Linear(2, 2), sgd())
    assert message in str(error.value)

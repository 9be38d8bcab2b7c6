"""losses.py: identities with torch, worked numbers, edge cases. Ids in test names (L1, ...): see tests/PITFALLS.md."""

import itertools
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import losses
from losses import class_weights, cross_entropy_loss, f1_loss, focal_loss, label_smoothing_loss

NAMES = list(losses.LOSSES) + ["ce+f1", "focal:0.6+f1:0.4"]
ADDITIVE = [name for name in NAMES if "f1" not in name]
REDUCTIONS = ("mean", "sum", "none")


def batch(N=7, C=5, seed=0, dtype=torch.float64, scale=2.0):
    """Logits with a gradient, class indices, class probabilities, class weights."""
    g = torch.Generator().manual_seed(seed)
    logits = (scale * torch.randn(N, C, generator=g, dtype=torch.float64)).to(dtype).requires_grad_()
    targets = torch.randint(0, C, (N,), generator=g)
    soft = torch.rand(N, C, generator=g, dtype=torch.float64).softmax(1).to(dtype)
    weight = torch.rand(C, generator=g, dtype=torch.float64).to(dtype) + 0.5
    return logits, targets, soft, weight


def counts_of(C):
    """Long-tailed counts: 1000 images of the first class, 1 of the last."""
    return torch.logspace(3, 0, C, dtype=torch.float64).round()


def build_loss(name, C=5, **options):
    """A loss by name, with the counts that long-tail losses need."""
    return losses.build_loss(name, counts_of(C), **options)


def value_and_gradient(loss, logits):
    value = loss(logits)
    return value.detach(), torch.autograd.grad(value.sum(), logits)[0]


def same(a, b, tolerance=1e-12):
    return all(torch.allclose(x, y, rtol=tolerance, atol=tolerance) for x, y in zip(a, b, strict=True))


# --- identities ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("smoothing", (0.0, 0.1, 1.0))
@pytest.mark.parametrize("weighted", (False, True))
@pytest.mark.parametrize("kind", ("indices", "probabilities"))
def test_L10_focal_with_gamma_0_is_cross_entropy_in_value_and_gradient(reduction, smoothing, weighted, kind):
    logits, targets, soft, weight = batch()
    t, w = targets if kind == "indices" else soft, weight if weighted else None

    def torchs(x):
        return F.cross_entropy(x, t, weight=w, label_smoothing=smoothing, reduction=reduction)

    def focal(x, gamma=0.0):
        return focal_loss(x, t, gamma, smoothing, w, reduction)

    expected = value_and_gradient(torchs, logits)
    assert same(value_and_gradient(focal, logits), expected)
    assert same(value_and_gradient(lambda x: cross_entropy_loss(x, t, smoothing, w, reduction), logits), expected)
    assert not same(value_and_gradient(lambda x: focal(x, gamma=1e-3), logits), expected)  # the test can fail


def test_L18_the_smooth_part_carries_the_other_classes_weights_as_in_torch():
    logits, targets, _, weight = batch()
    unweighted_smooth_part = 0.9 * F.cross_entropy(logits, targets, weight, reduction="sum") - 0.1 * (
        logits.log_softmax(1).mean(1).sum()
    )
    ours = label_smoothing_loss(logits, targets, 0.1, weight=weight, reduction="sum")
    assert ours.allclose(F.cross_entropy(logits, targets, weight, label_smoothing=0.1, reduction="sum"))
    assert not ours.allclose(unweighted_smooth_part)


@pytest.mark.parametrize("name", [*ADDITIVE, "f1"])  # not ce+f1: with weights its parts have different divisors
@pytest.mark.parametrize("weighted", (False, True))
def test_L19_one_hot_probabilities_give_the_indices_loss(name, weighted):
    logits, targets, _, weight = batch()
    criterion = build_loss(name, **({"weight": weight} if weighted else {}))
    one_hot = F.one_hot(targets, 5).double()
    # "mean" divides by N for soft targets, as torch does, so multiply by the divisor before comparing
    hard = value_and_gradient(lambda x: criterion(x, targets), logits)
    soft = value_and_gradient(lambda x: criterion(x, one_hot), logits)
    if criterion.additive:
        hard = [part * criterion.weight_of(targets) for part in hard]
        soft = [part * criterion.weight_of(one_hot) for part in soft]
    assert same(hard, soft)


@pytest.mark.parametrize("name", ADDITIVE)
def test_L19_the_loss_of_a_mixture_is_the_mixture_of_the_losses(name):
    logits, a, _, weight = batch()
    b = a.roll(1)
    criterion = build_loss(name, weight=weight, reduction="none")
    mixed = 0.3 * F.one_hot(a, 5).double() + 0.7 * F.one_hot(b, 5).double()
    assert criterion(logits, mixed).allclose(0.3 * criterion(logits, a) + 0.7 * criterion(logits, b))


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("name", ADDITIVE)
def test_equal_weights_are_no_weights_for_a_mean(name, reduction):
    logits, targets, _, _ = batch()
    equal = build_loss(name, weight=torch.full((5,), 2.0), reduction=reduction)(logits, targets)
    plain = build_loss(name, reduction=reduction)(logits, targets)
    assert equal.allclose(plain if reduction == "mean" else 2 * plain)


@pytest.mark.parametrize("name", ADDITIVE)
@pytest.mark.parametrize("kind", ("indices", "probabilities"))
def test_mean_is_sum_divided_by_weight_of(name, kind):
    logits, targets, soft, weight = batch()
    t = targets if kind == "indices" else soft
    mean, total = (build_loss(name, weight=weight, reduction=r) for r in ("mean", "sum"))
    divisor = mean.weight_of(t)
    assert float(divisor) == pytest.approx(float(weight[targets].sum()) if kind == "indices" else len(t))
    assert mean(logits, t).allclose(total(logits, t) / divisor)


# --- worked numbers --------------------------------------------------------------------------------------------------


def test_focal_worked_number():
    # p = (0.75, 0.25), t = 1, gamma 2: 0.75^2 * -ln 0.25 = 0.5625 * 1.386294 = 0.779791
    logits = torch.tensor([[math.log(3.0), 0.0]])
    assert focal_loss(logits, torch.tensor([1])).item() == pytest.approx(0.779791, abs=1e-6)


def test_L13_both_smoothing_conventions_have_targets_that_sum_to_1():
    # gradient at the logits is p - target, so the soft target can be read off: eps 0.3, C 4
    logits = torch.zeros(1, 4, dtype=torch.float64, requires_grad=True)
    target = torch.tensor([2])
    _, g = value_and_gradient(lambda x: label_smoothing_loss(x, target, 0.3, "all"), logits)
    assert torch.allclose(0.25 - g, torch.tensor([[0.075, 0.075, 0.775, 0.075]], dtype=torch.float64))
    _, g = value_and_gradient(lambda x: label_smoothing_loss(x, target, 0.3, "others"), logits)
    assert torch.allclose(0.25 - g, torch.tensor([[0.1, 0.1, 0.7, 0.1]], dtype=torch.float64))


def test_L13_the_conventions_convert_by_C_over_C_minus_1():
    logits, targets, _, _ = batch(C=17)
    others = label_smoothing_loss(logits, targets, 0.1, "others")
    assert others.allclose(label_smoothing_loss(logits, targets, 0.10625, "all"))
    assert not others.allclose(label_smoothing_loss(logits, targets, 0.1, "all"))


def test_smoothing_others_is_the_formula_course_notes_copy():
    logits, targets, _, _ = batch()
    soft = torch.full((7, 5), 0.1 / 4, dtype=torch.float64).scatter_(1, targets[:, None], 0.9)
    expected = -(soft * logits.log_softmax(1)).sum(1).mean()
    assert label_smoothing_loss(logits, targets, 0.1, "others").allclose(expected)
    assert build_loss("label_smoothing_others")(logits, targets).allclose(expected)


def test_f1_worked_number():
    # p_0 = 0.75, 0.25 for targets 0, 1: TP = 0.75 each, sum p = 1, n = 1: F1 = 1.5 / 2 = 0.75, loss 0.25
    logits = torch.tensor([[math.log(3.0), 0.0], [0.0, math.log(3.0)]])
    assert f1_loss(logits, torch.tensor([0, 1])).item() == pytest.approx(0.25)


def test_f1_of_sure_predictions_is_1_minus_the_metric():
    g = torch.Generator().manual_seed(1)
    preds, targets = torch.randint(0, 6, (2, 50), generator=g)
    sklearn = pytest.importorskip("sklearn.metrics")
    expected = 1 - sklearn.f1_score(targets, preds, labels=targets.unique(), average="macro")
    assert f1_loss(F.one_hot(preds, 6).double() * 200, targets).item() == pytest.approx(expected)


# --- pitfalls --------------------------------------------------------------------------------------------------------


def test_L1_p_t_comes_from_the_unweighted_probability():
    logits, targets, _, weight = batch()
    ce = F.cross_entropy(logits, targets, reduction="none")
    right = ((1 - torch.exp(-ce)) ** 2 * weight[targets] * ce).sum() / weight[targets].sum()
    weighted_ce = F.cross_entropy(logits, targets, weight, reduction="none")
    wrong = ((1 - torch.exp(-weighted_ce)) ** 2 * weighted_ce).sum() / weight[targets].sum()
    ours = focal_loss(logits, targets, weight=weight)
    assert ours.allclose(right) and not ours.allclose(wrong)


@pytest.mark.parametrize("C", (2, 17))
def test_L2_L9_with_smoothing_easy_samples_are_still_weighted_down(C):
    easy = torch.zeros(1, C, dtype=torch.float64)
    easy[0, 0] = 10.0
    target = torch.tensor([0])
    factor = focal_loss(easy, target, 2.0, 0.1) / cross_entropy_loss(easy, target, 0.1)
    assert factor < 1e-4
    from_smoothed = (1 - torch.exp(-cross_entropy_loss(easy, target, 0.1))) ** 2  # the defect L2: no sample is easy
    assert from_smoothed > 0.01


def test_L3_L4_L11_class_weights_have_mean_1_over_the_training_samples():
    counts = torch.tensor([5000, 500, 50, 0])
    for scheme in losses.WEIGHTINGS:
        w = class_weights(counts, scheme).double()
        assert (w * counts).sum() / counts.sum() == pytest.approx(1)
        assert (w[1:] >= w[:-1]).all() and w.isfinite().all()
    inverse, sqrt = class_weights(counts, "inverse"), class_weights(counts, "sqrt")
    assert (inverse[2] / inverse[0]).item() == pytest.approx(100)
    assert (sqrt[2] / sqrt[0]).item() == pytest.approx(10)
    # Cui et al.: w ~ (1 - b) / (1 - b^n), b = 0.9, n = 1 and 2: 1 and 1 / 1.9
    effective = class_weights([1, 2], "effective", beta=0.9)
    assert (effective[0] / effective[1]).item() == pytest.approx(1.9)


def test_L4_a_weight_of_the_wrong_length_is_an_error():
    logits, targets, _, _ = batch()
    for name in NAMES:
        with pytest.raises(ValueError, match="one number for each of the 5 classes"):
            build_loss(name, weight=torch.ones(2))(logits, targets)


@pytest.mark.parametrize("weighted", (False, True))
@pytest.mark.parametrize("kind", ("indices", "probabilities"))
@pytest.mark.parametrize("name", NAMES)
def test_L5_gradcheck(name, kind, weighted):
    logits, targets, soft, weight = batch()
    options = {"weight": weight} if weighted else {}
    criterion = build_loss(name, **options)
    assert torch.autograd.gradcheck(lambda x: criterion(x, targets if kind == "indices" else soft), logits)


@pytest.mark.parametrize("gamma, smoothing, weighted", [*itertools.product((0.0, 0.5, 2.0), (0.0, 0.1), (False, True))])
def test_L5_gradcheck_of_focal_with_every_option(gamma, smoothing, weighted):
    logits, targets, soft, weight = batch()
    for t in (targets, soft):
        assert torch.autograd.gradcheck(
            lambda x, t=t: focal_loss(x, t, gamma, smoothing, weight if weighted else None, "none"), logits
        )


@pytest.mark.parametrize("dtype", (torch.float16, torch.bfloat16, torch.float32))
@pytest.mark.parametrize("kind", ("indices", "probabilities"))
@pytest.mark.parametrize("name", NAMES)
def test_L6_finite_with_finite_gradients_at_logits_of_200(name, kind, dtype):
    for sign in (1.0, -1.0):
        logits = torch.zeros(6, 4, dtype=dtype)
        logits[:, 0] = sign * 200.0
        logits[3:, 1] = -sign * 200.0
        logits.requires_grad_()
        targets = torch.tensor([0, 1, 2, 0, 1, 3])
        t = targets if kind == "indices" else F.one_hot(targets, 4).to(dtype)
        value, gradient = value_and_gradient(lambda x, t=t: build_loss(name, C=4)(x, t), logits)
        assert value.isfinite() and gradient.isfinite().all()
        assert value.dtype == torch.float32 and gradient.dtype == dtype


@pytest.mark.parametrize("gamma", (0.01, 0.25, 0.5, 0.99, 1.0, 1.5, 2.0, 5.0))
@pytest.mark.parametrize("gap", (0.0, 1.0, 16.0, 17.0, 88.0, 104.0, 200.0, 400.0))
def test_L20_focal_gradients_are_finite_once_p_t_rounds_to_1(gamma, gap):
    for dtype, target in itertools.product((torch.float32, torch.float64), (0, 1)):
        logits = torch.tensor([[gap, 0.0]], dtype=dtype, requires_grad=True)
        value, gradient = value_and_gradient(
            lambda x, target=target: focal_loss(x, torch.tensor([target]), gamma), logits
        )
        assert value.isfinite() and gradient.isfinite().all()


@pytest.mark.parametrize("name", NAMES)
def test_L6_autocast_around_a_loss_changes_nothing(name):
    logits, targets, _, weight = batch(dtype=torch.float32)
    criterion = build_loss(name, weight=weight)
    outside = value_and_gradient(lambda x: criterion(x, targets), logits)
    with torch.autocast("cpu", torch.bfloat16):
        inside = value_and_gradient(lambda x: criterion(x, targets), logits)
    assert all(torch.equal(a, b) for a, b in zip(inside, outside, strict=True))


@pytest.mark.parametrize("name", NAMES)
def test_L7_L8_every_registered_loss_trains_end_to_end(name):
    torch.manual_seed(0)
    model = torch.nn.Linear(4, 3)
    x, targets = torch.randn(60, 4), torch.arange(60) % 3
    x[:, 0] += targets * 2
    criterion, optimizer = build_loss(name, C=3), torch.optim.Adam(model.parameters(), 0.05)
    first = criterion(model(x), targets).item()
    for _ in range(50):
        optimizer.zero_grad()
        criterion(model(x), targets).backward()
        optimizer.step()
    assert criterion(model(x), targets).item() < first


def test_L12_the_default_label_smoothing_is_not_cross_entropy():
    logits, targets, _, _ = batch()
    assert not build_loss("label_smoothing")(logits, targets).allclose(F.cross_entropy(logits, targets))


@pytest.mark.parametrize("C", (2, 3, 18, 100))
@pytest.mark.parametrize("name", NAMES)
def test_L14_any_number_of_classes(name, C):
    logits, targets, _, _ = batch(N=40, C=C)
    assert build_loss(name, C)(logits, targets).isfinite()


def test_L15_a_class_absent_from_the_batch_does_not_count():
    # two classes of ten in the batch, predicted perfectly: loss 0; a mean over all ten would be 0.8
    logits = 200 * F.one_hot(torch.tensor([3, 7, 7]), 10).double()
    assert f1_loss(logits, torch.tensor([3, 7, 7])).item() == pytest.approx(0)
    # but probability given to an absent class still increases the loss
    leaking = logits.clone()
    leaking[0, 0] = 200.0
    assert f1_loss(leaking, torch.tensor([3, 7, 7])).item() > 0.1


def test_L16_the_class_weight_is_a_buffer_that_moves_and_saves():
    for name in ("ce", "focal", "label_smoothing", "label_smoothing_others", "f1"):
        criterion = build_loss(name, weight=[1.0, 2.0])
        assert criterion.state_dict()["weight"].tolist() == [1.0, 2.0]
        assert criterion.double().weight.dtype == torch.float64


def test_L17_effective_number_weights_go_into_cross_entropy():
    logits, targets, _, _ = batch()
    w = class_weights(torch.bincount(targets, minlength=5).tolist(), "effective").double()
    assert build_loss("ce", weight=w)(logits, targets).allclose(F.cross_entropy(logits, targets, w))


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda x, t: focal_loss(x, t, gamma=-1), "gamma must be >= 0, got -1"),
        (lambda x, t: focal_loss(x, t, gamma=math.nan), "gamma must be >= 0, got nan"),
        (lambda x, t: focal_loss(x, t, smoothing=1.5), "smoothing must be in"),
        (lambda x, t: focal_loss(x, t, reduction="avg"), "unknown reduction 'avg': choose from mean, sum, none"),
        (lambda x, t: label_smoothing_loss(x, t, spread="C-1"), "unknown spread 'C-1': choose from all, others"),
        (lambda x, t: label_smoothing_loss(x[:, :1], t * 0, 0.1, "others"), "needs at least 2 classes"),
        (lambda x, t: focal_loss(x[0], t), "logits must be"),
        (lambda x, t: label_smoothing_loss(x[0], t, 0.1, "others"), "logits must be"),
        (lambda x, t: focal_loss(x, t[:3]), "targets must be"),
        (lambda x, t: f1_loss(x, t.double()), "must be class indices (integers), got torch.float64"),
        (lambda x, t: focal_loss(x, t.to(torch.complex64)), "must be class indices (integers), got torch.complex64"),
        (lambda x, t: build_loss("focall"), "unknown loss 'focall': choose from ce,"),
        (lambda x, t: build_loss("ce+"), "unknown loss ''"),
        (lambda x, t: build_loss("ce:x+f1"), "coefficient of loss 'ce:x'"),
        (lambda x, t: build_loss("ce:+f1"), "coefficient of loss 'ce:'"),
        (lambda x, t: build_loss("ce:-1+f1"), "must be a number > 0"),
        (lambda x, t: build_loss("ce", gamma=2.0), "loss 'ce' does not take gamma"),
        (lambda x, t: build_loss("f1", smoothing=0.1), "loss 'f1' does not take smoothing"),
        (lambda x, t: build_loss("ce", weight=[1.0, -1.0]), "weight must be"),
        (lambda x, t: build_loss("ce", weight=[0.0, 0.0]), "weight must be"),
        (lambda x, t: class_weights([1, 2], "balanced"), "unknown class weighting 'balanced'"),
        (lambda x, t: class_weights([1, -2]), "counts must be"),
        (lambda x, t: class_weights([0, 0]), "counts must be"),
        (lambda x, t: class_weights([1, 2], "effective", beta=1.0), "beta must be in"),
    ],
)
def test_L21_bad_input_is_an_error_that_names_it(call, message):
    logits, targets, _, _ = batch()
    with pytest.raises(ValueError) as error:
        call(logits, targets)
    assert message in str(error.value)


@pytest.mark.parametrize(
    "call",
    [
        lambda: build_loss("focall"),
        lambda: build_loss("ce:x"),
        lambda: build_loss("ce", gamma=2.0),
        lambda: build_loss("focal", gamma=-1.0),
        lambda: build_loss("ce", smoothing=2.0),
        lambda: class_weights([1, 2], "balanced"),
    ],
)
def test_values_that_a_user_types_raise_BadInput(call):
    with pytest.raises(losses.BadInput):
        call()


def test_errors_that_only_a_programmer_makes_are_not_BadInput():
    logits, targets, _, _ = batch()
    for call in (lambda: focal_loss(logits[0], targets), lambda: focal_loss(logits, targets, reduction="avg")):
        with pytest.raises(ValueError) as error:
            call()
        assert not isinstance(error.value, losses.BadInput)


@pytest.mark.parametrize("smoothing", (0.0, 0.1))
@pytest.mark.parametrize("bad", (-100, -1, 5))
def test_a_target_out_of_range_is_an_error_and_never_a_sample_silently_ignored(bad, smoothing):
    logits, targets, _, _ = batch()
    targets[2] = bad
    for call in (lambda: focal_loss(logits, targets, smoothing=smoothing), lambda: f1_loss(logits, targets)):
        with pytest.raises((IndexError, RuntimeError)):
            call()
    targets[2] = -100
    assert F.cross_entropy(logits, targets).isfinite()  # by default torch ignores the sample without a message


def test_L22_no_global_state_is_touched():
    logits, targets, soft, weight = batch(dtype=torch.float32)
    before = torch.get_default_dtype(), torch.is_grad_enabled(), torch.get_rng_state()
    for name in NAMES:
        build_loss(name, weight=weight)(logits, targets).backward()
        build_loss(name)(logits, soft).backward()
    assert (torch.get_default_dtype(), torch.is_grad_enabled()) == before[:2]
    assert torch.equal(torch.get_rng_state(), before[2])


# --- edge cases ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", (torch.uint8, torch.int8, torch.int16, torch.int32, torch.bool))
@pytest.mark.parametrize("name", NAMES)
def test_class_indices_of_any_integer_type_give_the_same_loss(name, dtype):
    logits, targets, _, weight = batch()
    if dtype == torch.bool:
        targets = targets % 2
    for criterion in (build_loss(name), build_loss(name, weight=weight)):
        expected = value_and_gradient(lambda x, f=criterion: f(x, targets), logits)
        other = value_and_gradient(lambda x, f=criterion: f(x, targets.to(dtype)), logits)
        assert all(torch.equal(a, b) for a, b in zip(other, expected, strict=True))
        assert float(criterion.weight_of(targets.to(dtype))) == float(criterion.weight_of(targets))


def test_weight_of_never_reads_class_indices_as_a_mask():
    weight, targets = torch.tensor([1.0, 10.0]), torch.tensor([True, True])
    assert losses.weight_of(targets, weight).item() == 20.0
    assert weight[targets].sum().item() == 11.0  # how torch indexes with bool (and uint8)


@pytest.mark.parametrize("kind", ("indices", "probabilities"))
@pytest.mark.parametrize("weighted", (False, True))
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore:.torch.jit.trace")
def test_a_traced_loss_divides_by_the_size_of_its_own_batch(name, weighted, kind):
    logits, targets, soft, weight = batch(N=9)
    t = targets if kind == "indices" else soft
    criterion = build_loss(name, **({"weight": weight} if weighted else {}))
    traced = torch.jit.trace(criterion, (logits[:4].detach(), t[:4]), check_trace=False)
    assert traced(logits, t).allclose(criterion(logits, t))
    assert not traced(logits[:4], t[:4]).allclose(criterion(logits, t))


@pytest.mark.parametrize("kind", ("indices", "probabilities"))
@pytest.mark.parametrize("weighted", (False, True))
@pytest.mark.parametrize("name", NAMES)
def test_torch_func_gives_the_gradients_and_losses_of_a_loop(name, weighted, kind):
    func = pytest.importorskip("torch.func")  # torch 2.0
    logits, targets, soft, weight = batch()
    t = targets if kind == "indices" else soft
    criterion = build_loss(name, **({"weight": weight} if weighted else {}))
    value, gradient = value_and_gradient(lambda x: criterion(x, t), logits)
    x = logits.detach()
    assert func.grad(criterion)(x, t).allclose(gradient)
    assert func.vmap(criterion)(torch.stack([x, 2 * x]), torch.stack([t, t])).allclose(
        torch.stack([value, criterion(2 * x, t)])
    )
    assert func.vmap(func.grad(criterion))(x[None], t[None])[0].allclose(gradient)
    one_by_one = func.vmap(lambda row, target: criterion(row[None], target[None]))(x, t)
    assert one_by_one.allclose(torch.stack([criterion(x[i : i + 1], t[i : i + 1]) for i in range(len(t))]))
    assert func.hessian(criterion)(x, t).isfinite().all()


@pytest.mark.parametrize("kind", ("indices", "probabilities"))
@pytest.mark.parametrize("weighted", (False, True))
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("how", ("trace", "export", "compile"))
@pytest.mark.filterwarnings("ignore")
def test_a_graph_made_at_12_samples_is_right_at_6(how, name, weighted, kind):
    logits, targets, soft, weight = batch(N=12, dtype=torch.float32)
    x, t = logits.detach(), targets if kind == "indices" else soft
    criterion = build_loss(name, **({"weight": weight} if weighted else {}))
    if how == "trace":
        graph = torch.jit.trace(criterion, (x, t), check_trace=False)
    elif how == "export":
        export = pytest.importorskip("torch.export")
        N = export.Dim("N", min=2)
        graph = export.export(criterion, (x, t), dynamic_shapes=({0: N}, {0: N})).module()
    else:
        graph = torch.compile(criterion, backend="aot_eager", fullgraph=True, dynamic=True)
    assert graph(x, t).allclose(criterion(x, t))
    assert graph(x[:6], t[:6]).allclose(criterion(x[:6], t[:6]))


@pytest.mark.filterwarnings("ignore")
def test_a_divisor_that_a_trace_bakes_in_is_half_at_half_the_batch():
    """The control of the test above: len() is a number of Python, targets.shape[0] is part of the graph."""
    logits, targets, _, _ = batch(N=12)
    x = logits.detach()

    def mean(x, t):
        return F.cross_entropy(x, t, reduction="sum") / len(t)

    graph = torch.jit.trace(mean, (x, targets), check_trace=False)
    assert graph(x[:6], targets[:6]).allclose(0.5 * mean(x[:6], targets[:6]))


@pytest.mark.parametrize("name", ("ce", "focal", "label_smoothing", "label_smoothing_others", "f1", "ce+f1"))
def test_the_class_indices_may_be_of_any_integer_type_where_N_is_C(name):
    """With N = C, indexing the class weights by a mask would be silently wrong."""
    logits, _, _, weight = batch(N=5, C=5)
    targets = torch.tensor([0, 1, 1, 0, 1])
    criterion = build_loss(name, weight=weight)
    expected = value_and_gradient(lambda x: criterion(x, targets), logits)
    for dtype in (torch.uint8, torch.int8, torch.int16, torch.int32, torch.bool):
        other = value_and_gradient(lambda x, dtype=dtype: criterion(x, targets.to(dtype)), logits)
        assert all(torch.equal(a, b) for a, b in zip(other, expected, strict=True))


LAYOUTS = {
    "negative strides": lambda array: np.ascontiguousarray(array[::-1])[::-1],
    "foreign byte order": lambda array: array.astype(array.dtype.newbyteorder(">")),
    "strided": lambda array: np.repeat(array, 2)[::2],
}


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS.keys())
def test_counts_and_weights_may_be_numpy_arrays_of_any_layout(layout):
    counts, weight = np.array([90, 10, 1]), np.array([0.5, 1.0, 2.0])
    assert torch.equal(class_weights(layout(counts)), class_weights([90, 10, 1]))
    assert build_loss("ce", weight=layout(weight)).weight.tolist() == [0.5, 1.0, 2.0]
    given = layout(weight)
    criterion = build_loss("ce", weight=given)
    given[0] = 7.0
    assert criterion.weight[0] == 0.5  # a copy


@pytest.mark.parametrize("weighted", (False, True))
def test_gamma_2_has_the_same_bits_as_the_general_power(weighted):
    logits, targets, _, weight = batch(N=64, dtype=torch.float32, scale=6.0)
    w = weight if weighted else None

    def general(x, gamma=2.0):
        nll = F.cross_entropy(x, targets, reduction="none")
        ce = nll * weight[targets] if weighted else nll
        return ((-torch.expm1(-nll)) ** gamma * ce).sum() / losses.weight_of(targets, w)

    ours = value_and_gradient(lambda x: focal_loss(x, targets, 2.0, weight=w), logits)
    assert all(torch.equal(a, b) for a, b in zip(ours, value_and_gradient(general, logits), strict=True))
    almost = value_and_gradient(lambda x: general(x, gamma=2.0 + 1e-5), logits)
    assert not any(torch.equal(a, b) for a, b in zip(ours, almost, strict=True))


def test_a_module_shows_its_options():
    assert repr(build_loss("focal", gamma=1.0, reduction="sum")) == "FocalLoss(gamma=1.0, smoothing=0.0)"
    assert repr(build_loss("focal:0.5+f1")) == "0.5 FocalLoss(gamma=2.0, smoothing=0.0) + 1 F1Loss()"


@pytest.mark.parametrize("name", NAMES)
def test_a_batch_of_one_and_non_contiguous_logits(name):
    logits, targets, _, _ = batch(N=1)
    assert build_loss(name)(logits, targets).isfinite()
    logits, targets, _, _ = batch(N=5, C=7)
    t = torch.arange(7) % 5
    assert build_loss(name)(logits.t(), t).allclose(build_loss(name)(logits.t().contiguous(), t))


def test_a_sum_is_the_sum_of_its_parts():
    logits, targets, _, weight = batch()
    total = build_loss("focal:0.6+f1:0.4", gamma=1.0, weight=weight)(logits, targets)
    parts = 0.6 * focal_loss(logits, targets, 1.0, weight=weight) + 0.4 * f1_loss(logits, targets, weight)
    assert total.allclose(parts)
    assert build_loss("ce+focal", weight=weight).additive and not build_loss("ce+f1").additive
    mixed = losses.SumLoss([losses.FocalLoss(weight=weight), losses.FocalLoss()], [1.0, 1.0])
    assert not mixed.additive  # its parts have different divisors
    assert build_loss("ce:2")(logits, targets).allclose(2 * F.cross_entropy(logits, targets))


@pytest.mark.parametrize("weighted", (False, True))
@pytest.mark.parametrize("name", NAMES)
def test_second_derivatives_are_right(name, weighted):
    logits, targets, _, weight = batch(N=4, C=3)
    criterion = build_loss(
        name, 3, **({"smoothing": 0.1} if name == "focal" else {"weight": weight} if weighted else {})
    )
    assert torch.autograd.gradgradcheck(lambda x: criterion(x, targets), logits)


# --- long-tail losses ------------------------------------------------------------------------------------------------


def prior_reference(z, y, n, tau):
    """-log of Menon et al.'s softmax with prior, sample by sample."""
    pi = n / n.sum()
    return torch.stack([-(z[i, c] + tau * pi[c].log()) + (z[i] + tau * pi.log()).logsumexp(0) for i, c in enumerate(y)])


def balanced_softmax_reference(z, y, n):
    """Ren et al.: p_y = n_y exp(z_y) / sum_k n_k exp(z_k)."""
    return torch.stack([-(n[c] * z[i, c].exp() / (n * z[i].exp()).sum()).log() for i, c in enumerate(y)])


def ldam_reference(z, y, n, max_m, scale):
    """Cao et al., equation 13, with z = scale * cosine."""
    margin = n**-0.25 * (max_m / (n**-0.25).max())
    rows = []
    for i, c in enumerate(y):
        true = (scale * (z[i, c] / scale - margin[c])).exp()
        rest = sum(z[i, k].exp() for k in range(len(n)) if k != c)
        rows.append(-(true / (true + rest)).log())
    return torch.stack(rows)


def label_aware_reference(z, y, n, head, tail):
    """Zhong et al.: eps_y from the tail to the head along a quarter of a sine."""
    rows = []
    for i, c in enumerate(y):
        eps = tail + (head - tail) * math.sin(math.pi * float(n[c] - n.min()) / (2 * float(n.max() - n.min())))
        q = torch.full_like(n, eps / len(n))
        q[c] += 1 - eps
        rows.append(-(q * z[i].log_softmax(0)).sum())
    return torch.stack(rows)


LONG_TAIL = {
    "logit_adjustment": (losses.logit_adjustment_loss, {"tau": 1.5}, lambda z, y, n: prior_reference(z, y, n, 1.5)),
    "balanced_softmax": (losses.logit_adjustment_loss, {}, balanced_softmax_reference),
    "ldam": (
        losses.ldam_loss,
        {"max_m": 0.3, "scale": 20.0},
        lambda z, y, n: ldam_reference(z, y, n, 0.3, 20.0),
    ),
    "label_aware_smoothing": (
        losses.label_aware_smoothing_loss,
        {"smoothing": 0.4, "smoothing_tail": 0.1},
        lambda z, y, n: label_aware_reference(z, y, n, 0.4, 0.1),
    ),
}


@pytest.mark.parametrize("name", LONG_TAIL)
@pytest.mark.parametrize("weighted", (False, True))
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_long_tail_losses_are_their_papers_formulas(name, weighted, reduction):
    function, options, reference = LONG_TAIL[name]
    logits, y, soft, weight = batch(N=20)
    n, w = counts_of(5), weight if weighted else None

    def expected(z):
        each = reference(z, y, n) * (weight[y] if weighted else 1)
        if name == "label_aware_smoothing" and weighted:  # as in torch, the smooth part has the weights of all classes
            eps = losses.smoothing_of_classes(n, 0.4, 0.1)[y]
            log_p = z.log_softmax(1)
            each = -(1 - eps) * weight[y] * log_p[torch.arange(20), y] - eps / 5 * (weight * log_p).sum(1)
        divisor = weight[y].sum() if weighted else 20
        return {"none": each, "sum": each.sum(), "mean": each.sum() / divisor}[reduction]

    def ours(z, **more):
        return function(z, y, n, **options | more, weight=w, reduction=reduction)

    assert same(value_and_gradient(ours, logits), value_and_gradient(expected, logits), 1e-10)
    wrong = {next(iter(options), "tau"): 0.2}
    assert not same(value_and_gradient(lambda z: ours(z, **wrong), logits), value_and_gradient(expected, logits), 1e-3)
    module = losses.build_loss(name, n, **options, weight=w, reduction=reduction)
    assert same(value_and_gradient(lambda z: module(z, y), logits), value_and_gradient(expected, logits), 1e-5)
    assert module.double()(logits, soft).allclose(function(logits, soft, n, **options, weight=w, reduction=reduction))


IDENTITIES = {
    "tau 0": lambda z, t: losses.logit_adjustment_loss(z, t, counts_of(5), tau=0.0),
    "tau 1, equal counts": lambda z, t: losses.logit_adjustment_loss(z, t, [7] * 5),
    "margin 0": lambda z, t: losses.ldam_loss(z, t, counts_of(5), max_m=0.0),
    "margin 0, scale 1": lambda z, t: losses.ldam_loss(z, t, counts_of(5), max_m=0.0, scale=1.0),
    "smoothing 0": lambda z, t: losses.label_aware_smoothing_loss(z, t, counts_of(5), 0.0),
    "tail smoothing 0, equal counts": lambda z, t: losses.label_aware_smoothing_loss(z, t, [7] * 5, 0.3),
    "effective weights, beta 0": lambda z, t: cross_entropy_loss(
        z, t, weight=class_weights(counts_of(5), "effective", beta=0.0).double()
    ),
}


@pytest.mark.parametrize("identity", IDENTITIES)
@pytest.mark.parametrize("kind", ("indices", "probabilities"))
def test_long_tail_losses_become_cross_entropy(identity, kind):
    logits, targets, soft, _ = batch(N=20)
    t = targets if kind == "indices" else soft
    expected = value_and_gradient(lambda z: F.cross_entropy(z, t), logits)
    assert same(value_and_gradient(lambda z: IDENTITIES[identity](z, t), logits), expected, 1e-6)


@pytest.mark.parametrize("name", ("logit_adjustment", "ldam"))
def test_without_the_identity_they_are_not_cross_entropy(name):
    logits, targets, _, _ = batch(N=20)
    assert not build_loss(name)(logits, targets).allclose(F.cross_entropy(logits, targets), rtol=1e-2)


@pytest.mark.parametrize("name", LONG_TAIL)
def test_only_the_ratios_of_counts_matter(name):
    logits, targets, _, _ = batch(N=20)
    function, options, _ = LONG_TAIL[name]
    counts = torch.tensor([500, 100, 20, 5, 0])  # also with a class that has no sample
    once, tenfold, other = (function(logits, targets, n, **options) for n in (counts, 10 * counts, counts**2 + 1))
    assert once.allclose(tenfold, rtol=1e-12) and once.isfinite()
    assert not once.allclose(other, rtol=1e-6)
    assert once.allclose(function(logits, targets, [500, 100, 20, 5, 5], **options))  # the smallest class that has some


def test_a_class_order_does_not_matter():
    logits, targets, _, _ = batch(N=20)
    order = torch.tensor([3, 1, 4, 0, 2])
    for name, (function, options, _) in LONG_TAIL.items():
        turned = function(logits[:, order], order.argsort()[targets], counts_of(5)[order], **options)
        assert turned.allclose(function(logits, targets, counts_of(5), **options)), name


@pytest.mark.parametrize("gap", (5.0, 15.0, 16.0, 20.0, 40.0))
def test_ldam_of_soft_targets_is_exact_where_p_is_almost_1(gap):
    logits = torch.tensor([[gap, 0.0, -1.0]])
    hard, soft = (losses.ldam_loss(logits, t, [100, 10, 1]) for t in (torch.tensor([0]), torch.tensor([[1.0, 0, 0]])))
    exact = losses.ldam_loss(logits.double(), torch.tensor([0]), [100, 10, 1])
    assert hard.item() == pytest.approx(exact.item(), rel=1e-5, abs=1e-7)
    assert soft.item() == pytest.approx(exact.item(), rel=1e-5, abs=1e-7)


def test_a_sum_gives_counts_to_the_parts_that_need_them():
    logits, targets, _, _ = batch(N=20)
    total = losses.build_loss("logit_adjustment+f1:0.5", counts_of(5), tau=2.0)
    parts = losses.logit_adjustment_loss(logits, targets, counts_of(5), 2.0) + 0.5 * f1_loss(logits, targets)
    assert total(logits, targets).allclose(parts, rtol=1e-5)
    assert not total.additive and losses.build_loss("ce+ldam", counts_of(5)).additive


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda x, t: losses.build_loss("ldam"), "loss 'ldam' needs counts"),
        (lambda x, t: losses.build_loss("ce+logit_adjustment"), "loss 'logit_adjustment' needs counts"),
        (lambda x, t: build_loss("logit_adjustment", tau=-1.0), "tau must be >= 0, got -1"),
        (lambda x, t: build_loss("ldam", max_m=math.nan), "max_m must be >= 0, got nan"),
        (lambda x, t: build_loss("ldam", scale=0.0), "scale must be > 0, got 0"),
        (lambda x, t: build_loss("label_aware_smoothing", smoothing_tail=2.0), "smoothing_tail must be in [0, 1]"),
        (lambda x, t: build_loss("ce", tau=1.0), "loss 'ce' does not take tau"),
        (lambda x, t: build_loss("ldam", C=4)(x, t), "counts must be one number for each of the 5 classes"),
        (lambda x, t: losses.ldam_loss(x, t, [1, 2]), "counts must be one number for each of the 5 classes"),
        (lambda x, t: losses.build_loss("ldam", [0, 0]), "counts must be one number >= 0"),
        (lambda x, t: losses.build_loss("ldam", [3, -1]), "counts must be one number >= 0"),
        (lambda x, t: losses.build_loss("ldam", [3, math.nan]), "counts must be one number >= 0"),
    ],
)
def test_bad_input_of_long_tail_losses_is_an_error_that_names_it(call, message):
    logits, targets, _, _ = batch()
    with pytest.raises(ValueError) as error:
        call(logits, targets)
    assert message in str(error.value)


def test_counts_without_a_loss_that_needs_them_change_nothing():
    logits, targets, _, _ = batch()
    assert torch.equal(build_loss("focal")(logits, targets), losses.build_loss("focal")(logits, targets))

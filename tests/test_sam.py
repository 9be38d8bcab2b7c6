"""sam.py: the gradient of a window at perturbed weights, against formulas written out by hand."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import loop
from sam import SAM


class Net(nn.Module):
    """A network with BatchNorm and dropout."""

    def __init__(self, norm=True):
        super().__init__()
        torch.manual_seed(0)
        self.hidden = nn.Linear(6, 16)
        self.norm = nn.BatchNorm1d(16) if norm else nn.Identity()
        self.dropout = nn.Dropout(0.3 if norm else 0.0)
        self.head = nn.Linear(16, 4)

    def forward(self, x):
        return self.head(self.dropout(torch.relu(self.norm(self.hidden(x)))))


def window(sizes=(8, 8, 5), dtype=torch.float64, seed=1):
    g = torch.Generator().manual_seed(seed)
    return [(torch.randn(n, 6, generator=g).to(dtype), torch.randint(0, 4, (n,), generator=g)) for n in sizes]


def flat(net, of=lambda p: p.grad):
    return torch.cat([of(p).detach().flatten() for p in net.parameters()])


def by_hand(net, batches, criterion, rho):
    """SAM on one big batch: two gradients, without the kit."""
    x, y = (torch.cat(parts) for parts in zip(*batches, strict=True))
    net.zero_grad()
    criterion(net(x), y).backward()
    g = [p.grad.clone() for p in net.parameters()]
    norm = math.sqrt(sum(float((part**2).sum()) for part in g))
    with torch.no_grad():
        for p, part in zip(net.parameters(), g, strict=True):
            p += rho * part / norm
    net.zero_grad()
    criterion(net(x), y).backward()
    return flat(net)


@pytest.mark.parametrize("weighted", (False, True))
@pytest.mark.parametrize("sizes", ((8, 8, 8, 8), (8, 8, 5), (21,)))
def test_the_gradient_of_a_window_is_that_of_one_big_batch(weighted, sizes):
    weight = torch.tensor([0.2, 1.0, 3.0, 7.0]).double() if weighted else None
    criterion, batches = nn.CrossEntropyLoss(weight, label_smoothing=0.1), window(sizes)
    expected = by_hand(Net(norm=False).double(), batches, criterion, 0.5)
    net = Net(norm=False).double()
    loss, logits, _ = SAM(loop.backward_window, 0.5)(net, net, criterion, batches)
    assert torch.allclose(flat(net), expected, rtol=1e-10, atol=1e-12)
    assert torch.equal(flat(net, lambda p: p), flat(Net(norm=False).double(), lambda p: p))  # weights as before
    x, y = (torch.cat(parts) for parts in zip(*batches, strict=True))
    assert torch.allclose(loss, criterion(net(x), y)) and logits.shape == (len(y), 4)
    net.zero_grad()
    loop.backward_window(net, net, criterion, batches)
    assert not torch.allclose(flat(net), expected, rtol=1e-3, atol=1e-4)  # the plain gradient differs


def test_both_passes_have_the_same_dropout_masks_and_batchnorm_statistics_move_once():
    net, plain, batches = Net().double(), Net().double(), window()
    torch.manual_seed(7)
    SAM(loop.backward_window, 1e-9)(net, net, nn.CrossEntropyLoss(), batches)
    after = torch.get_rng_state()
    torch.manual_seed(7)
    loop.backward_window(plain, plain, nn.CrossEntropyLoss(), batches)
    assert torch.allclose(flat(net), flat(plain), atol=1e-7)  # different masks would give a different gradient
    assert torch.equal(after, torch.get_rng_state())
    for a, b in zip(net.buffers(), plain.buffers(), strict=True):
        assert torch.equal(a, b)
    torch.manual_seed(8)
    plain.zero_grad()
    loop.backward_window(plain, plain, nn.CrossEntropyLoss(), batches)
    assert not torch.allclose(flat(net), flat(plain), atol=1e-3)


@pytest.mark.parametrize("scale", (1.0, 1024.0))
def test_a_scaler_changes_nothing(scale):
    scaler = torch.amp.GradScaler("cpu", enabled=scale != 1, init_scale=scale)
    net, batches = Net(norm=False), window(dtype=torch.float32)
    SAM(loop.backward_window, 0.5)(net, net, nn.CrossEntropyLoss(), batches, scaler)
    expected = by_hand(Net(norm=False), batches, nn.CrossEntropyLoss(), 0.5)
    assert torch.allclose(flat(net) / scale, expected, rtol=1e-4, atol=1e-6)


def test_a_gradient_that_is_not_finite_perturbs_nothing_and_is_left_to_the_loop():
    net, batches = Net(norm=False), window(dtype=torch.float32)
    batches[0][0][0, 0] = math.nan
    SAM(loop.backward_window, 0.5)(net, net, nn.CrossEntropyLoss(), batches)
    assert not flat(net).isfinite().all()
    assert torch.equal(flat(net, lambda p: p), flat(Net(norm=False), lambda p: p))


def test_weights_come_back_if_the_second_pass_fails():
    net, calls = Net().double(), []

    def backward(model, forward, criterion, batches):
        calls.append(flat(model, lambda p: p))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return loop.backward_window(model, forward, criterion, batches)

    with pytest.raises(KeyboardInterrupt):
        SAM(backward, 0.5)(net, net, nn.CrossEntropyLoss(), window())
    assert not torch.equal(*calls) and torch.equal(flat(net, lambda p: p), calls[0])


@pytest.mark.parametrize("passes", (1, 2))
def test_a_window_of_one_batch_that_is_stopped_between_the_two_passes_is_undone(passes):
    net, batches, calls = Net(), window((8,), torch.float32), []
    before = [tensor.clone() for tensor in (*net.parameters(), *net.buffers(), torch.get_rng_state())]

    def check():
        calls.append(1)
        if len(calls) == passes:
            raise KeyboardInterrupt

    state = loop.State(net, torch.optim.SGD(net.parameters(), 0.1))
    with pytest.raises(KeyboardInterrupt):
        loop.train_epoch(state, batches, nn.CrossEntropyLoss(), check=check, backward=SAM(loop.backward_window, 0.5))
    after = (*net.parameters(), *net.buffers(), torch.get_rng_state())
    assert len(calls) == passes and all(torch.equal(*pair) for pair in zip(before, after, strict=True))


def test_frozen_parameters_stay_and_do_not_count_in_the_norm():
    net, batches = Net(norm=False).double(), window()
    net.hidden.requires_grad_(False)
    SAM(loop.backward_window, 0.5)(net, net, nn.CrossEntropyLoss(), batches)
    assert net.hidden.weight.grad is None
    x, y = (torch.cat(parts) for parts in zip(*batches, strict=True))
    features = torch.relu(Net(norm=False).double().hidden(x)).detach()
    head = Net(norm=False).double().head
    expected = by_hand(head, [(features, y)], nn.CrossEntropyLoss(), 0.5)
    assert torch.allclose(torch.cat([p.grad.flatten() for p in net.head.parameters()]), expected, atol=1e-10)


@pytest.mark.parametrize("rho", (0.0, -1.0, math.inf, math.nan))
def test_rho_must_be_positive(rho):
    with pytest.raises(ValueError, match="rho must be > 0"):
        SAM(F.relu, rho)


def test_the_table_of_the_program_shows_the_error(capsys):
    import sam

    sam.main()
    exact, naive, none = (float(row.split()[-1]) for row in capsys.readouterr().out.splitlines()[-3:])
    assert exact < 1e-12 < 1e-3 < naive and none > 1e-3

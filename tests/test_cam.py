"""cam.py: the map is where the evidence is, by the formula of the paper, and the network stays as it was."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import models
from cam import enlarged, grad_cam

CORNERS = {0: (slice(0, 8), slice(0, 8)), 1: (slice(8, 16), slice(8, 16))}


def red_and_green():
    """Class 0 counts red light, class 1 green light, class 2 blue light."""
    net = nn.Sequential(
        nn.Conv2d(3, 3, 1, bias=False), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 3)
    )
    with torch.no_grad():
        net[0].weight.copy_(torch.eye(3)[:, :, None, None])
        net[4].weight.copy_(torch.eye(3))
    return net


def lights(N=4):
    """Red in the top left corner and green in the bottom right one, over a dim grey noise."""
    images = torch.rand(N, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 0.05
    images[:, 0, 1:6, 1:6] += 1
    images[:, 1, 9:15, 9:15] += 1
    return images


def mass(maps, c):
    y, x = CORNERS[c]
    return (maps[:, y, x].sum((1, 2)) / maps.sum((1, 2))).min().item()


@pytest.mark.parametrize("c", [0, 1])
def test_the_map_is_in_the_corner_with_the_evidence_and_that_of_another_class_is_not(c):
    maps = grad_cam(red_and_green(), lights(), torch.full((4,), c))
    assert maps.shape == (4, 16, 16) and mass(maps, c) > 0.8 > 0.2 > mass(maps, 1 - c)
    assert mass(grad_cam(red_and_green(), lights(), torch.full((4,), 2)), c) < 0.4  # blue light is everywhere


def trained():
    """A small network with BatchNorm that has learned in which colour the corner of an image is lit."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 8, 3, padding=1)
    )
    net = nn.Sequential(net, nn.ReLU(inplace=True), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 2))
    optimizer = torch.optim.Adam(net.parameters(), 0.01)
    for step in range(150):
        images, targets = scenes(32, step)
        optimizer.zero_grad()
        F.cross_entropy(net(images), targets).backward()
        optimizer.step()
    return net


def scenes(N, seed):
    """A red or a green square in the top left corner, noise elsewhere."""
    rng = torch.Generator().manual_seed(seed)
    images, targets = torch.rand(N, 3, 16, 16, generator=rng) * 0.2, torch.arange(N) % 2
    images[torch.arange(N), targets, :8, :8] += 0.8
    return images, targets


def test_a_trained_network_looks_at_the_evidence_and_with_shuffled_weights_it_does_not():
    net = trained()
    images, targets = scenes(16, 999)
    assert (net.eval()(images).argmax(1) == targets).all()
    assert corner_share(net, images, targets) > 0.6 and corner_share(net, images, 1 - targets) < 0.1
    shares = []
    for seed in range(5):
        shuffled, rng = copy.deepcopy(net), torch.Generator().manual_seed(seed)
        for parameter in shuffled.parameters():
            parameter.data = parameter.flatten()[torch.randperm(parameter.numel(), generator=rng)].view_as(parameter)
        shares.append(corner_share(shuffled, images, targets))
    assert sum(shares) / 5 < 0.4  # the corner is a quarter of the image


def corner_share(net, images, classes):
    maps = grad_cam(net, images, classes)
    return (maps[:, :4, :4].sum((1, 2)) / maps.sum((1, 2)).clamp(min=1e-9)).mean().item()


def test_the_map_is_grad_cam_computed_by_hand():
    torch.manual_seed(1)
    body, head = nn.Sequential(nn.Conv2d(3, 5, 3, 2), nn.Tanh()), nn.Sequential(nn.Flatten(), nn.Linear(5 * 7 * 7, 4))
    images, classes = torch.randn(6, 3, 16, 16), torch.tensor([0, 1, 2, 3, 0, 1])
    features = body(images).detach()
    gradient = head[1].weight[classes].view(6, 5, 7, 7)  # of a linear layer: its weights
    expected = torch.relu((gradient.mean((2, 3))[:, :, None, None] * features).sum(1))
    found = grad_cam(nn.Sequential(body, head), images, classes)
    assert torch.allclose(found, expected, atol=1e-6) and expected.max() > 0.01
    assert not torch.allclose(found, torch.relu((gradient * features).sum(1)), atol=1e-3)  # without the mean


@pytest.mark.parametrize("name", ["resnet8", "densenet121", "mobilenet_v3_small", "convnext_tiny", "swin_t", "vgg11"])
def test_a_batch_equals_its_images_one_by_one(name):
    torch.manual_seed(0)
    net, images = models.build_model(name, 5, 64), torch.randn(3, 3, 64, 64)
    classes = torch.tensor([0, 4, 2])
    maps = grad_cam(net, images, classes)
    singles = torch.cat([grad_cam(net, images[i : i + 1], classes[i : i + 1]) for i in range(3)])
    assert maps.dtype == torch.float32 and min(maps.shape[1:]) > 1 and maps.max() > 0
    assert torch.allclose(maps, singles, atol=1e-5 * maps.max().item() + 1e-8)
    assert not torch.allclose(maps, grad_cam(net, images, torch.tensor([1, 4, 2])), atol=1e-5 * maps.max().item())


@pytest.mark.parametrize("name", ["vit_tiny", "vit_b_32"])
def test_a_vision_transformer_has_no_such_map(name):
    assert grad_cam(models.build_model(name, 5, 64), torch.randn(2, 3, 64, 64), torch.tensor([0, 1])) is None


def test_a_network_without_a_map_has_none():
    net = nn.Sequential(nn.Flatten(), nn.Linear(48, 2))
    assert grad_cam(net, torch.randn(2, 3, 4, 4), torch.tensor([0, 1])) is None
    assert (
        grad_cam(
            nn.Sequential(nn.AdaptiveAvgPool2d(1), net[0], nn.Linear(3, 2)),
            torch.randn(2, 3, 4, 4),
            torch.tensor([0, 1]),
        )
        is None
    )


class Changing(nn.Module):
    """Changes its input and its last map in place, as DenseNet does."""

    def __init__(self):
        super().__init__()
        self.body, self.head = nn.Conv2d(3, 4, 3), nn.Linear(4, 3)

    def forward(self, x):
        return self.head(F.relu(self.body(x.sub_(0.5)), inplace=True).mean((2, 3)))


@pytest.mark.parametrize("is_frozen", [False, True])
def test_nothing_of_the_network_or_the_images_changes(is_frozen):
    for net in (models.build_model("resnet8", 3, 16).train(), Changing()):
        net.requires_grad_(not is_frozen)
        next(iter(net.children())).eval()  # modes may differ, as in a frozen stage
        images = torch.rand(4, 3, 16, 16)
        before, copied = copy.deepcopy(net), images.clone()
        with torch.no_grad():
            maps = grad_cam(net, images, torch.tensor([0, 1, 2, 0]))
        assert maps.max() > 0 and not maps.requires_grad and torch.equal(images, copied)
        assert all(
            torch.equal(a, b) for a, b in zip(before.state_dict().values(), net.state_dict().values(), strict=True)
        )
        assert [m.training for m in net.modules()] == [m.training for m in before.modules()]
        for old, new in zip(before.parameters(), net.parameters(), strict=True):
            assert new.grad is None and new.requires_grad == old.requires_grad == (not is_frozen)
        assert not any(module._forward_hooks for module in net.modules())


def test_the_map_is_that_of_eval_mode():
    torch.manual_seed(0)
    net, images, classes = models.build_model("resnet8", 3, 16), torch.rand(4, 3, 16, 16), torch.tensor([0, 1, 2, 0])
    assert torch.equal(grad_cam(net.train(), images, classes), grad_cam(net.eval(), images, classes))


def test_after_an_error_in_the_network_its_modes_and_hooks_are_as_before():
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(1, 2)).train()
    with pytest.raises(RuntimeError):
        grad_cam(net, torch.rand(1, 3, 8, 8), torch.tensor([0]))
    assert net.training and not any(module._forward_hooks for module in net.modules())


def test_enlarged_maps_are_from_0_to_1_and_a_map_of_zeros_stays_0():
    maps = torch.tensor([[[0.0, 0.0], [0.0, 8.0]], [[0.0, 0.0], [0.0, 0.0]]])
    large = enlarged(maps, (6, 8))
    assert large.shape == (2, 6, 8) and large[0].max() == 1 and large[0, 5, 7] == 1 and large[0, 0, 0] == 0
    assert (large[1] == 0).all()

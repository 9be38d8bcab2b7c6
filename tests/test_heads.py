"""models.py: heads, stages of a network, freezing."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import loop
import losses
import models

NETWORKS = {
    "resnet8": (32, 5),
    "vit_tiny": (32, 14),
    "resnet18": (64, 6),
    "efficientnet_b0": (64, 10),
    "convnext_tiny": (64, 9),
    "mobilenet_v3_small": (64, 15),
    "vgg11": (64, 10),
    "densenet121": (64, 9),
    "squeezenet1_0": (64, 10),
}


# --- heads -----------------------------------------------------------------------------------------------------------


def test_a_cosine_head_gives_scaled_cosines():
    head, x = models.CosineHead(6, 3, scale=20.0), torch.randn(4, 6)
    cosines = F.cosine_similarity(x[:, None], head.weight[None], dim=2)
    assert torch.allclose(head(x), 20 * cosines, atol=1e-5)
    assert torch.allclose(head(7 * x), head(x), atol=1e-4)  # the norm of the features does not matter
    assert not torch.allclose(F.linear(x, head.weight), head(x), atol=1e-2)


@pytest.mark.parametrize("name", ["resnet8", "resnet18", "efficientnet_b0", "vit_tiny", "vgg11"])
def test_a_network_takes_a_cosine_head_and_its_weights_load_again(name):
    size = NETWORKS[name][0]
    plain = models.build_model(name, 7, size)
    model, other = (models.build_model(name, 7, size, "cosine") for _ in range(2))
    head = models.find_head(model)
    assert head == models.find_head(plain) and isinstance(model.get_submodule(head), models.CosineHead)
    assert models.load_weights(other, model.state_dict()) == []
    x = torch.randn(2, 3, size, size)
    assert torch.equal(model.eval()(x), other.eval()(x)) and model(x).abs().max() <= 30.001
    fresh = models.load_weights(model, plain.state_dict())  # the backbone of a network with a linear head
    assert fresh == [head + ".weight"]


def test_heads_that_do_not_fit_are_refused():
    with pytest.raises(models.BadInput, match="unknown head 'cosin': choose from linear, cosine"):
        models.build_model("resnet8", 3, 32, "cosin")
    with pytest.raises(models.BadInput, match="head cosine needs a classifier layer of type nn.Linear: SqueezeNet has"):
        models.build_model("squeezenet1_0", 3, 64, "cosine")


# --- stages ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NETWORKS)
def test_stages_divide_all_parameters_from_stem_to_head(name):
    size, count = NETWORKS[name]
    model = models.build_model(name, 7, size)
    stages, names = models.stages(model), [key for key, _ in model.named_parameters()]
    assert sorted(sum(stages, [])) == sorted(names) and all(stages)
    assert len(stages) == count
    assert names[0] in stages[0]
    assert stages[-1] == [key for key in names if key.startswith(models.find_head(model) + ".")]


def test_the_stages_of_a_resnet_are_those_of_the_paper():
    model = models.build_model("resnet18", 7, 64)
    starts = [{name.split(".")[0] for name in stage} for stage in models.stages(model)]
    assert starts == [{"conv1", "bn1"}, {"layer1"}, {"layer2"}, {"layer3"}, {"layer4"}, {"fc"}]


# --- freezing --------------------------------------------------------------------------------------------------------


def trained(model, epochs=2):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=0.1)
    state, g = loop.State(model, optimizer), torch.Generator().manual_seed(0)
    batches = [(torch.randn(4, 3, 32, 32, generator=g), torch.randint(0, 5, (4,), generator=g)) for _ in range(4)]
    for _ in range(epochs):
        loop.train_epoch(state, iter(batches), nn.CrossEntropyLoss(), accum=2)
    return model


@pytest.mark.parametrize("frozen_stages", [1, 3, 4])
def test_frozen_weights_and_batchnorm_statistics_stay_bitwise_in_training(frozen_stages):
    torch.manual_seed(0)
    model = models.build_model("resnet8", 5, 32)
    before = copy.deepcopy(model.state_dict())
    names = sum(models.stages(model)[:frozen_stages], [])
    models.freeze(model, names)
    after = trained(model).state_dict()
    prefixes = {name.rpartition(".")[0] + "." for name in names}
    for key in before:
        is_frozen = any(key.startswith(prefix) for prefix in prefixes)
        assert torch.equal(before[key], after[key]) == is_frozen, key


def test_without_freezing_statistics_move_although_weights_do_not():
    model = models.build_model("resnet8", 5, 32).requires_grad_(False)
    model.linear.requires_grad_(True)
    before = model.bn1.running_mean.clone()
    assert not torch.equal(before, trained(model).bn1.running_mean)  # what freeze() prevents


def test_all_can_be_trained_again_and_a_copy_is_independent():
    model = models.build_model("resnet8", 5, 32)
    models.freeze(model, sum(models.stages(model)[:-1], []))
    other = copy.deepcopy(model)
    models.freeze(model, [])
    model.train(), other.train()
    assert model.bn1.training and not other.bn1.training and other.linear.training and other.training
    assert all(parameter.requires_grad for parameter in model.parameters())
    other.eval()
    assert not any(module.training for module in other.modules())


def test_batchnorm_without_parameters_is_frozen_with_the_module_before_it():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, affine=False)
            self.pool, self.head = nn.Conv2d(4, 4, 3), nn.Linear(4, 5)
            self.last_norm = nn.BatchNorm1d(5, affine=False)

        def forward(self, x):
            return self.last_norm(self.head(self.pool(F.relu(self.norm(self.conv(x)))).mean((2, 3))))

    for n, moves in ((2, ["last_norm"]), (1, ["last_norm"]), (0, ["norm", "last_norm"])):
        model = Net()
        models.freeze(model, sum(models.stages(model)[:n], []))
        trained(model, 1)
        assert [name for name in ("norm", "last_norm") if getattr(model, name).num_batches_tracked] == moves


def test_the_scale_of_a_cosine_head_is_that_of_the_margins_of_ldam():
    assert models.CosineHead(2, 3).scale == losses.LDAMLoss([2, 1, 1]).scale


def test_dropout_of_a_frozen_part_is_off_and_that_before_the_head_stays_on():
    model = models.build_model("vgg11", 7, 64)
    models.freeze(model, sum(models.stages(model)[:-1], []))
    model.train()
    assert model.classifier[5].training  # nn.Dropout in front of the head: it has no parameters and its parent trains
    model = models.build_model("vit_tiny", 7, 32)
    models.freeze(model, sum(models.stages(model)[:-1], []))
    model.train()
    assert not any(module.training for module in model.encoder.modules())

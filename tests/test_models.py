"""models.py: every name builds, weights load in full or not at all, EMA is the closed-form average."""

import copy
import gc
import io
import os
import pickle
import re
import subprocess
import sys
import urllib.error
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import nn

import models
from models import (
    EMA,
    BadInput,
    BasicBlock,
    CifarResNet,
    build_model,
    count_parameters,
    find_head,
    first_weights,
    load_function,
    load_weights,
    sides,
)

TORCHVISION = [
    ("resnet18", 64, "fc"),
    ("resnet50", 64, "fc"),
    ("resnext50_32x4d", 64, "fc"),
    ("efficientnet_b3", 64, "classifier.1"),
    ("densenet121", 64, "classifier"),
    ("vgg16_bn", 32, "classifier.6"),
    ("vit_b_16", 32, "heads.head"),
    ("convnext_tiny", 64, "classifier.2"),
    ("swin_t", 64, "head"),
    ("squeezenet1_1", 64, "classifier.1"),
    ("googlenet", 64, "fc"),
    ("inception_v3", 75, "fc"),
    ("mobilenet_v3_small", 64, "classifier.3"),
    ("mnasnet0_5", 64, "classifier.1"),
    ("maxvit_t", 224, "classifier.5"),
]


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Tiny networks: a second thread only waits, for a long time where cores are shared."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def net(name="resnet8", num_classes=5, size=32, seed=0):
    torch.manual_seed(seed)
    return build_model(name, num_classes, size)


def filled(weights, name="resnet8", num_classes=5, size=32, seed=1):
    """A network built, then filled as train.py does; and the keys that start fresh."""
    model = net(name, num_classes, size, seed)
    return model, load_weights(model, first_weights(name, weights), name, weights)


def images(n=2, size=32, seed=1):
    return torch.randn(n, 3, size, size, generator=torch.Generator().manual_seed(seed))


def outputs(model, x):
    with torch.no_grad():
        return copy.deepcopy(model).eval()(x)


def saved(tmp_path, content, name="weights.pt"):
    torch.save(content, tmp_path / name)
    return tmp_path / name


# ---------------------------------------------------------------------------------------------------------------------
# Names
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name, size, head", TORCHVISION)
def test_torchvision_network_gives_logits_from_a_layer_found_as_the_head(name, size, head):
    model = net(name, 7, size)
    layer = model.get_submodule(head)
    assert find_head(model) == head
    assert (layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels) == 7
    with torch.no_grad():
        assert model.eval()(images(1, size)).shape == (1, 7)
    del model, layer
    gc.collect()


@pytest.mark.parametrize("name, size", [("googlenet", 64), ("inception_v3", 75)])
def test_training_forward_returns_a_tensor_without_auxiliary_heads(name, size):
    model = net(name, 4, size)
    assert model.training and not [key for key in model.state_dict() if key.lower().startswith("aux")]
    assert model(images(2, size)).shape == (2, 4)
    with torch.device("meta"):  # negative control: what torchvision's default returns
        reference = torchvision.models.get_model(name, num_classes=4, aux_logits=True, init_weights=False)
        assert isinstance(reference(torch.zeros(2, 3, 299, 299)), tuple)


@pytest.mark.parametrize("size", [8, 31, 32, 48])
def test_resnet8_takes_any_size_from_8(size):
    assert net(size=size)(images(2, size)).shape == (2, 5)


@pytest.mark.parametrize("name, parameters", [("resnet8", 75290), ("resnet20", 269722), ("resnet32", 464154)])
def test_cifar_resnets_have_the_papers_parameter_counts(name, parameters):
    # A block a -> b has 9ab + 9bb convolution weights and two BatchNorms of 2b; n blocks a stage, depth 6n + 2.
    #   stem                             3*16*9 + 2*16           =     464
    #   16 -> 16   4640 + 32             2*16*16*9 + 4*16        =   4 672, n times
    #   16 -> 32                         (16+32)*32*9 + 4*32     =  13 952, once;   32 -> 32  18 560, n - 1 times
    #   32 -> 64                         (32+64)*64*9 + 4*64     =  55 552, once;   64 -> 64  73 984, n - 1 times
    #   linear                           64*10 + 10              =     650
    # resnet8  (n = 1): 464 +   4672 + 13952               + 55552                + 650 =  75 290
    # resnet20 (n = 3): 464 + 3*4672 + 13952 + 2*18560 + 55552 + 2*73984 + 650          = 269 722  (0.27 M, paper)
    # resnet32 (n = 5): 464 + 5*4672 + 13952 + 4*18560 + 55552 + 4*73984 + 650          = 464 154   (0.46 M)
    assert count_parameters(net(name, 10)) == parameters


def test_count_parameters_counts_a_shared_parameter_once_and_no_buffers():
    layer = nn.Linear(3, 3)
    assert count_parameters(nn.Sequential(layer, layer, nn.BatchNorm1d(3))) == 12 + 6


def test_depth_must_be_6n_plus_2():
    with pytest.raises(ValueError, match="got 18"):
        CifarResNet(18, 10)


def test_shortcut_is_option_a_subsampling_and_zero_channels_without_parameters():
    block = BasicBlock(16, 32, stride=2)
    assert {name.split(".")[0] for name, _ in block.named_parameters()} == {"conv1", "bn1", "conv2", "bn2"}
    x = torch.randn(2, 16, 9, 9, generator=torch.Generator().manual_seed(0))
    expected = torch.zeros(2, 32, 5, 5)
    for i in range(5):
        for j in range(5):
            expected[:, 8:24, i, j] = x[:, :, 2 * i, 2 * j]
    assert torch.equal(block.shortcut(x), expected)
    assert not torch.equal(F.avg_pool2d(x, 2, ceil_mode=True), expected[:, 8:24])  # negative control: pooling is not it
    plain = BasicBlock(16, 16, stride=1)
    assert torch.equal(plain.shortcut(x), x)


def test_convolutions_of_the_cifar_resnets_start_with_he_initialisation():
    weight = net("resnet20").layer3[0].conv1.weight  # (64, 32, 3, 3), fan out 64 * 9: std = sqrt(2 / 576) = 0.0589
    assert weight.std().item() == pytest.approx(0.0589, rel=0.02)


@pytest.mark.parametrize("size, patch", [(32, 4), (124, 4), (128, 16), (224, 16)])
def test_vit_tiny_chooses_its_patch_by_size(size, patch):
    model = net("vit_tiny", 5, size)
    assert model.patch_size == patch
    assert model.encoder.pos_embedding.shape == (1, (size // patch) ** 2 + 1, 192)


def test_vit_tiny_has_the_parameters_of_deit_ti():
    # A layer: 4*192*192 + 4*192 (attention) + 2*192*768 + 768 + 192 (MLP) + 4*192 (norms) = 444 864; 12 of them.
    # Patches 3*16*16*192 + 192 = 147 648; class token 192; positions 197*192 = 37 824; norm 384; head 193*1000.
    expected = 12 * 444864 + 147648 + 192 + 37824 + 384 + 193000
    assert count_parameters(net("vit_tiny", 1000, 224)) == expected == 5717416  # 5.7 M in the paper


@pytest.mark.parametrize(
    "name, size, near",
    [("vit_tiny", 50, "48, 52"), ("vit_tiny", 200, "192, 208"), ("vit_b_16", 100, "96, 112"), ("vit_b_32", 20, "32")],
)
def test_vit_refuses_a_size_that_its_patch_does_not_divide(name, size, near):
    with pytest.raises(BadInput, match=rf"{name}.*\[{near}\], got {size}"):
        build_model(name, 5, size)


@pytest.mark.parametrize("name", ["vit_tiny", "vit_b_16"])
def test_vit_refuses_a_size_that_is_not_square_and_takes_a_square_as_two_sides(name):
    with pytest.raises(BadInput, match=f"{name} takes only square images, got size 256 x 192"):
        build_model(name, 5, (256, 192))
    assert build_model(name, 5, (32, 32)).image_size == 32


@pytest.mark.parametrize("size", [(256, 192), [256, 192]])
def test_sides_of_a_size_are_height_and_width(size):
    assert sides(size) == (256, 192) and sides(224) == (224, 224)
    with pytest.raises(ValueError):
        sides((1, 2, 3))


def test_unknown_name_suggests_close_ones_and_says_how_to_list_all():
    with pytest.raises(BadInput, match=r"'ResNet81'.*resnet18.*python models.py"):
        build_model("ResNet81", 5)


@pytest.mark.parametrize("num_classes, size", [(0, 32), (5, 0)])
def test_senseless_numbers_are_named(num_classes, size):
    with pytest.raises(ValueError, match=f"num_classes {num_classes}, size {size}") as error:
        build_model("resnet8", num_classes, size)
    assert not isinstance(error.value, BadInput)  # of the caller, not of the user


def test_size_that_the_network_cannot_take_is_named_with_the_network():
    with pytest.raises(BadInput, match=r"inception_v3 cannot take batches of 2 images of size 32 x 32 \(RuntimeError"):
        build_model("inception_v3", 5, 32)


def test_check_leaves_buffers_mode_and_random_state_alone():
    model = net()
    for name, buffer in model.named_buffers():
        assert torch.equal(buffer, torch.full_like(buffer, float(name.endswith("running_var")))), name
    assert all(module.training for module in model.modules())
    model.layer1.eval()
    before, state = {module: module.training for module in model.modules()}, torch.get_rng_state()
    models.check_output(model, "resnet8", 5, 32)
    assert {module: module.training for module in model.modules()} == before
    assert torch.equal(torch.get_rng_state(), state)
    model(images())
    assert model.bn1.num_batches_tracked == 1  # negative control: a training forward does move them


class DrawsInEval(nn.Module):
    def forward(self, x):
        return F.dropout(x.mean(dim=(2, 3)), training=True)


def test_check_gives_back_the_random_numbers_of_a_network_that_draws_in_eval():
    state = torch.get_rng_state()
    models.check_output(DrawsInEval(), "drawing", 3, 8)
    assert torch.equal(torch.get_rng_state(), state)
    DrawsInEval()(images())
    assert not torch.equal(torch.get_rng_state(), state)  # negative control


def test_random_numbers_are_drawn_for_the_initialisation_only():
    torch.manual_seed(3)
    CifarResNet(8, 5)
    expected = torch.rand(1)
    net(seed=3)
    assert torch.equal(torch.rand(1), expected)


# ---------------------------------------------------------------------------------------------------------------------
# The user's own function
# ---------------------------------------------------------------------------------------------------------------------

FACTORY = """
from __future__ import annotations
from dataclasses import dataclass
from torch import nn
from sibling_of_the_factory import WIDTH

@dataclass
class Options:
    width: int = WIDTH

def make(num_classes):
    return nn.Sequential(nn.Conv2d(3, Options().width, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
                         nn.Dropout(), nn.Linear(WIDTH, num_classes))

def not_a_module(num_classes):
    return [num_classes]

def wrong_width(num_classes):
    return make(num_classes + 1)

def raises(num_classes):
    raise KeyError("backbone")

def exits(num_classes):
    raise SystemExit(3)

NUMBER = 5
"""


@pytest.fixture
def factory(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", [*sys.path])
    (tmp_path / "sibling_of_the_factory.py").write_text("WIDTH = 6\n")
    (tmp_path / "net.py").write_text(FACTORY)
    yield tmp_path / "net.py"
    sys.modules.pop("sibling_of_the_factory", None)


def test_factory_file_builds_with_its_siblings(factory):
    model = build_model(f"{factory}:make", 5, 32)
    assert model(images()).shape == (2, 5)
    assert model[0].out_channels == 6


@pytest.mark.parametrize(
    "name, message",
    [
        ("none.py:make", "no file .*none.py"),
        ("net.py:mak", "net.py has no function 'mak'; its functions: Options, make, not_a_module, wrong_width, raises"),
        ("net.py:NUMBER", "net.py has no function 'NUMBER'; its functions: Options, make, not_a_module"),
        ("net.py", "no function ''.*make, not_a_module"),
        ("net.py:", "no function ''.*make, not_a_module"),
        ("empty.py:make", "no function 'make'; its functions: none"),
        ("net.py:not_a_module", "must return an nn.Module, got list"),
        ("net.py:wrong_width", r"net.py:wrong_width at size 32 x 32 must give logits of shape \(2, 5\), got \(2, 6\)"),
        ("net.py:raises", "cannot be built .KeyError: 'backbone'"),
        ("net.py:exits", "cannot be built .SystemExit: 3"),
        ("broken.py:make", "broken.py cannot be executed .ModuleNotFoundError: .*no_such_package"),
    ],
)
def test_factory_errors_name_the_thing(factory, name, message):
    (factory.parent / "broken.py").write_text("import no_such_package\n")
    (factory.parent / "empty.py").write_text("from torch import nn\n")
    with pytest.raises(BadInput, match=message) as error:
        build_model(f"{factory.parent}/{name}", 5, 32)
    assert "\n" not in str(error.value)


def test_factory_takes_a_weights_file_but_not_default(factory, tmp_path):
    first = build_model(f"{factory}:make", 5, 32)
    second, fresh = filled(saved(tmp_path, first.state_dict()), f"{factory}:make")
    assert torch.equal(outputs(first, images()), outputs(second, images())) and fresh == []
    with pytest.raises(BadInput, match="net.py:make has no pretrained weights"):
        first_weights(f"{factory}:make", "DEFAULT")


@pytest.mark.parametrize("what", ["model", "transform"])
def test_a_function_is_loaded_by_one_rule_whatever_it_is_for(factory, what):
    assert load_function(f"{factory}:make", what)(3)[4].out_features == 3
    for name, message in (
        ("make", rf"'make' is not FILE.py:FUNCTION; give the {what}"),
        (".py:make", "'.py:make' is not FILE.py:FUNCTION"),
        ("none.py:make", f"{what} none.py:make: there is no file none.py"),
        (f"{factory}:mak", "net.py has no function 'mak'; its functions: Options, make"),
    ):
        with pytest.raises(BadInput, match=message):
            load_function(name, what)


def test_a_file_is_executed_once_for_each_call(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", [*sys.path])
    (tmp_path / "counts.py").write_text(
        "from pathlib import Path\n"
        "with open(Path(__file__).with_suffix('.log'), 'a') as log:\n    log.write('x')\n"
        "def f(image):\n    return image\n"
    )
    for calls in (1, 2):
        load_function(f"{tmp_path / 'counts.py'}:f", "transform")
        assert (tmp_path / "counts.log").read_text() == "x" * calls
    assert sys.path.count(str(tmp_path)) == 1
    with pytest.raises(BadInput, match="has no function 'g'; its functions: f"):
        load_function(f"{tmp_path / 'counts.py'}:g", "transform")
    assert (tmp_path / "counts.log").read_text() == "xxx"


# ---------------------------------------------------------------------------------------------------------------------
# Weights from a file
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: state,
        lambda state: {"model": dict(state), "epoch": 3},
        lambda state: {"state_dict": state},
        lambda state: {"module." + key: value for key, value in state.items()},
        lambda state: {"state_dict": {"module." + key: value for key, value in state.items()}},
    ],
    ids=["raw", "model", "state_dict", "module.", "state_dict of module."],
)
def test_weights_file_with_the_same_head_loads_bit_for_bit(tmp_path, wrap, capsys):
    first = net(seed=0)
    first(images())  # BatchNorm statistics that are not the initial ones
    second, fresh = filled(saved(tmp_path, wrap(first.state_dict())))
    assert torch.equal(outputs(first, images()), outputs(second, images()))
    assert not torch.equal(outputs(first, images()), outputs(net(seed=1), images()))  # negative control: other seed
    assert fresh == [] and capsys.readouterr().out == "" and second.training


def test_weights_file_with_another_head_loads_the_rest_and_returns_what_starts_fresh(tmp_path, capsys):
    first, initial = net(num_classes=9, seed=0), net(seed=1)
    second, fresh = filled(saved(tmp_path, first.state_dict()))
    assert fresh == ["linear.weight", "linear.bias"] and capsys.readouterr().out == ""
    state, old, new = second.state_dict(), first.state_dict(), initial.state_dict()
    assert all(torch.equal(state[key], old[key]) for key in state if not key.startswith("linear."))
    assert torch.equal(state["linear.weight"], new["linear.weight"])  # the head's own initial draw
    assert not torch.equal(state["conv1.weight"], new["conv1.weight"])  # negative control: the rest did change


@pytest.mark.parametrize("more", [{}, {"linear.bias": torch.ones(5)}, {"linear.weight.scale": torch.ones(1)}])
def test_a_head_that_is_incomplete_or_of_another_kind_starts_fresh_as_a_whole(tmp_path, more):
    body = {key: value for key, value in net().state_dict().items() if not key.startswith("linear.")}
    second, fresh = filled(saved(tmp_path, body | more))
    assert fresh == ["linear.weight", "linear.bias"]
    assert torch.equal(second.conv1.weight, body["conv1.weight"])
    assert torch.equal(second.linear.bias, net(seed=1).linear.bias)


def test_a_run_begun_with_a_weights_file_is_built_again_without_it(tmp_path, monkeypatch):
    file = saved(tmp_path, net(num_classes=9).state_dict())
    first, _ = filled(file)
    checkpoint = copy.deepcopy(first.state_dict())
    file.unlink()
    for opener in ("torch.load", "torch.hub.load_state_dict_from_url"):
        monkeypatch.setattr(opener, lambda *args, **kwargs: pytest.fail("build_model reads no weights"))
    second = net(seed=2)
    assert load_weights(second, checkpoint) == []
    assert torch.equal(outputs(first, images()), outputs(second, images()))
    with pytest.raises(BadInput, match="there is no file"):  # negative control: this is what needs the file
        first_weights("resnet8", file)


def test_weights_of_another_architecture_are_refused_with_key_names_E2(tmp_path):
    with pytest.raises(BadInput, match=r"does not fit resnet8: \d+ unexpected: layer1.1.conv1.weight") as error:
        filled(saved(tmp_path, net("resnet20").state_dict()))
    assert str(error.value).count("layer") == 5
    model = net()
    before = copy.deepcopy(model.state_dict())
    state = {**net(seed=1).state_dict(), "conv1.weight": torch.zeros(16, 1, 3, 3)}
    del state["bn1.bias"]
    said = "the state dict does not fit the model: 1 missing: bn1.bias; 1 of a different shape: conv1.weight"
    with pytest.raises(BadInput, match=said):
        load_weights(model, state)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_a_plain_dict_of_tensors_is_enough_for_mnasnet_which_asks_for_versions(tmp_path):
    state = dict(net("mnasnet0_5", size=64).state_dict())
    second, _ = filled(saved(tmp_path, {"model": state}), "mnasnet0_5", size=64)
    assert torch.equal(second.state_dict()["layers.0.weight"], state["layers.0.weight"])
    with pytest.raises(ValueError, match="version"):  # negative control: what torch does with the plain dict
        second.load_state_dict(state)


class Malicious:
    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return os.mkdir, (str(self.target),)


@pytest.mark.parametrize("write", [torch.save, lambda content, file: file.write_bytes(pickle.dumps(content, 2))])
def test_malicious_pickle_is_refused_and_not_executed(tmp_path, write):
    file, target = tmp_path / "bad.pt", tmp_path / "executed"
    write({"model": Malicious(target)}, file)
    with pytest.raises(BadInput, match=r"bad.pt is refused: it needs the Python object \S+, which could run code"):
        first_weights("resnet8", file)
    assert not target.exists()
    if write is torch.save:
        torch.load(file, weights_only=False)
        assert target.exists()  # negative control: the file does run code for who lets it


def text_file(tmp_path):
    (tmp_path / "weights.pt").write_text("epoch,loss\n1,2.3\n")
    return tmp_path / "weights.pt"


def cut_file(tmp_path):
    buffer = io.BytesIO()
    torch.save(net().state_dict(), buffer)
    (tmp_path / "weights.pt").write_bytes(buffer.getvalue()[:5000])
    return tmp_path / "weights.pt"


@pytest.mark.parametrize(
    "file, message",
    [
        (lambda tmp_path: tmp_path / "none.pt", "no file .*none.pt; valid are none, DEFAULT"),
        (text_file, "weights.pt is refused: not a file of tensors"),
        (cut_file, "weights.pt is refused: not a file of tensors"),
        (lambda tmp_path: saved(tmp_path, {"epoch": 3, "model": [1, 2]}), "has no state dict"),
        (lambda tmp_path: saved(tmp_path, {}), "has no state dict"),
        (lambda tmp_path: saved(tmp_path, torch.zeros(3)), "has no state dict"),
        (lambda tmp_path: saved(tmp_path, {0: torch.zeros(3)}), "has no state dict"),
    ],
)
def test_file_that_is_no_checkpoint_is_named(tmp_path, file, message):
    with pytest.raises(BadInput, match=message):
        first_weights("resnet8", file(tmp_path))


# ---------------------------------------------------------------------------------------------------------------------
# Pretrained weights: torch.hub's cache stands in for the network
# ---------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """An empty hub cache and no network; returns put(name, **options), which caches a random torchvision network.

    put(name, change=f) caches f(state dict). It returns the state dict with torchvision's own keys.
    """

    def no_network(*args, **kwargs):
        raise urllib.error.URLError("[Errno -3] Temporary failure in name resolution")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", no_network)

    def put(name, change=lambda state: state, **options):
        url = torchvision.models.get_model_weights(name).DEFAULT.url
        model = torchvision.models.get_model(name, **options)
        folder = Path(torch.hub.get_dir()) / "checkpoints"
        folder.mkdir(parents=True, exist_ok=True)
        torch.save(change(model.state_dict()), folder / Path(url).name)
        return model.state_dict()

    return put


@pytest.mark.parametrize("name", ["resnet8", "vit_tiny", "resnet19"])
def test_kit_networks_and_unknown_ones_have_no_pretrained_weights(name):
    with pytest.raises(BadInput, match=f"{name} has no pretrained weights"):
        first_weights(name, "DEFAULT")


def test_default_without_network_is_one_line_that_says_why_and_what_to_do(hub):
    with pytest.raises(BadInput, match="resnet18 failed .URLError: .*name resolution.*resnet18-.*FILE") as error:
        first_weights("resnet18", "DEFAULT")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["resnet18", "googlenet", "vit_b_16"])
def test_building_never_asks_for_pretrained_weights(monkeypatch, name):
    def asked(*args, **kwargs):
        pytest.fail("build_model asks for pretrained weights")

    monkeypatch.setattr(torchvision.models, "get_model_weights", asked)
    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", asked)
    monkeypatch.setattr(torch.hub, "download_url_to_file", asked)
    assert net(name, 7, 64)(images(2, 64)).shape == (2, 7)
    with pytest.raises(pytest.fail.Exception, match="asks for pretrained"):  # negative control
        first_weights(name, "DEFAULT")


@pytest.mark.parametrize(
    "name, size, options",
    [
        ("resnet18", 64, {}),
        ("densenet121", 64, {}),
        ("squeezenet1_0", 64, {}),
        ("mnasnet0_5", 64, {}),
        ("vit_b_16", 224, {}),
        ("googlenet", 64, {"init_weights": True}),
        ("inception_v3", 75, {"init_weights": True}),
    ],
)
def test_default_loads_the_pretrained_body_under_a_fresh_head(hub, name, size, options):
    pretrained = hub(name, **options)
    initial = net(name, 7, size, seed=1).state_dict()
    random = torch.get_rng_state()
    model, fresh = filled("DEFAULT", name, 7, size, seed=1)
    head = find_head(model) + "."
    state = model.state_dict()
    assert fresh == [key for key in state if key.startswith(head)] and state.keys() == initial.keys()
    for key in state:
        assert torch.equal(state[key], initial[key] if key in fresh else pretrained[key]), key
    assert state[head + "weight"].shape[0] == 7 and pretrained[head + "weight"].shape[0] == 1000
    assert not all(torch.equal(state[key], initial[key]) for key in state if key not in fresh)  # negative control
    assert torch.equal(torch.get_rng_state(), random)  # the same random numbers follow with and without weights
    with torch.no_grad():
        assert model(images(2, size)).shape == (2, 7)


def test_the_old_key_names_of_densenet_are_renamed_as_torchvision_does(hub):
    def as_published(state):  # "norm1" was "norm.1", and BatchNorm had no counter
        state = {key: value for key, value in state.items() if not key.endswith("num_batches_tracked")}
        return {re.sub(r"(denselayer\d+\.(norm|conv))([12])", r"\1.\3", key): value for key, value in state.items()}

    pretrained = hub("densenet121", change=as_published)
    assert len(as_published(pretrained).keys() - pretrained.keys()) > 500
    model, fresh = filled("DEFAULT", "densenet121", size=64)
    assert fresh == ["classifier.weight", "classifier.bias"]
    for key in ("features.denseblock1.denselayer1.conv1.weight", "features.denseblock4.denselayer16.norm2.running_var"):
        assert torch.equal(model.state_dict()[key], pretrained[key])
    with pytest.raises(BadInput, match="does not fit"):  # negative control: without torchvision's own renaming
        load_weights(model, as_published(pretrained))


def test_network_is_the_same_with_and_without_pretrained_weights(hub, tmp_path):
    hub("googlenet", init_weights=True)
    first, _ = filled("DEFAULT", "googlenet", size=64)
    for module in first.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
    first(images(4, 64))  # statistics that fit the random weights: without them every image has the same logits
    second, _ = filled(saved(tmp_path, first.state_dict()), "googlenet", size=64)
    expected = outputs(first, images(size=64))
    assert torch.equal(outputs(second, images(size=64)), expected)
    second.transform_input = False
    assert not torch.equal(outputs(second, images(size=64)), expected)  # negative control: torchvision's rule


def test_pretrained_vit_at_another_size_names_the_size_to_use(hub):
    hub("vit_b_16")
    with pytest.raises(BadInput, match="^DEFAULT is for images of size 224, vit_b_16 was built for 64: use size 224$"):
        filled("DEFAULT", "vit_b_16", size=64)


@pytest.mark.parametrize("sizes", [(32, 64), (128, 32)])
def test_weights_file_of_a_vit_at_another_size_names_the_size_to_use(sizes):
    state = net("vit_tiny", 9, sizes[0]).state_dict()
    with pytest.raises(BadInput, match=f"is for images of size {sizes[0]}, .* was built for {sizes[1]}: use size"):
        load_weights(net("vit_tiny", 5, sizes[1]), state)
    del state["encoder.ln.weight"]  # negative control: not only the size is different
    model = net("vit_tiny", 5, sizes[1])
    with pytest.raises(BadInput, match="does not fit the model: 1 missing: encoder.ln.weight; "):
        load_weights(model, state)
    for strange in (torch.zeros(3), torch.zeros(1, 0, 192)):
        with pytest.raises(BadInput, match="does not fit the model: 1 of a different shape: encoder.pos_embedding"):
            load_weights(model, dict(model.state_dict()) | {"encoder.pos_embedding": strange})


@pytest.mark.parametrize("name", ["resnet8", "resnet20", "vit_tiny"])
def test_A12_the_logits_of_the_kits_networks_take_both_signs(name):
    torch.manual_seed(0)
    model = build_model(name, 10, 32).eval()
    torch.nn.init.normal_(model.get_submodule(find_head(model)).weight)  # vit_tiny's head starts at 0
    logits = model(images(8, 32))
    assert (logits < 0).any() and (logits > 0).any()


# ---------------------------------------------------------------------------------------------------------------------
# EMA
# ---------------------------------------------------------------------------------------------------------------------


def trained(model, steps, seed=0):
    """A few SGD steps in training mode, with a pause after each: parameters and BatchNorm buffers move."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for step in range(steps):
        optimizer.zero_grad()
        F.cross_entropy(model(images(4, 8, seed + step)), torch.arange(4)).backward()
        optimizer.step()
        yield step


def closed_form(history, decay):
    """Weighted sum of history[0], ..., history[T] in float64: w_0 = d_1 ... d_T, w_k = (1 - d_k) d_{k+1} ... d_T.

    Update k = 1, 2, ... comes after t = k - 1 others: d_k = min(decay, (1 + t) / (10 + t)) = min(decay, k / (9 + k)).
    """
    d = [0.0] + [min(decay, k / (9 + k)) for k in range(1, len(history))]
    weights = [(1 - d[k]) * float(torch.tensor(d[k + 1 :], dtype=torch.float64).prod()) for k in range(len(history))]
    assert sum(weights) == pytest.approx(1)
    return {key: sum(w * state[key].double() for w, state in zip(weights, history, strict=True)) for key in history[0]}


def differs(state, expected):
    close = {key: torch.allclose(state[key].double(), expected[key].double(), rtol=1e-5, atol=1e-6) for key in state}
    return [key for key in state if not close[key]]


@pytest.mark.parametrize("decay", [0.0, 0.2, 0.999])
def test_ema_is_the_closed_form_average_of_parameters_and_float_buffers(decay):
    model = net(size=8)
    ema, history = EMA(model, decay), [copy.deepcopy(model.state_dict())]
    for _ in trained(model, steps=6):
        ema.update(model)
        history.append(copy.deepcopy(model.state_dict()))
    expected = closed_form(history, decay)
    counters = [key for key in expected if key.endswith("num_batches_tracked")]
    for key in counters:
        expected[key] = history[-1][key]  # integer buffers are copied
    assert counters and not differs(ema.model.state_dict(), expected)
    assert ema.updates == 6 and ema.model.bn1.num_batches_tracked == 6
    without_buffers = {**ema.model.state_dict(), **dict(EMA(net(size=8)).model.named_buffers())}
    assert {key.rpartition(".")[2] for key in differs(without_buffers, expected)} == {  # negative control
        "running_mean",
        "running_var",
        "num_batches_tracked",
    }
    if decay == 0.999:  # negative control: without the warm-up the average would be another
        assert differs(history[0], expected)


def test_ema_leaves_the_model_alone_and_is_a_frozen_eval_copy():
    model = net(size=8)
    state, random = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    ema = EMA(model, 0.5)
    ema.update(model)
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random) and model.training
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert not any(module.training for module in ema.model.modules())
    assert not any(parameter.requires_grad for parameter in ema.model.parameters())


def test_ema_resumed_from_its_state_dict_continues_bit_for_bit(tmp_path):
    model = net(size=8)
    ema = EMA(model)
    steps = trained(model, steps=6)
    for _ in range(3):
        next(steps)
        ema.update(model)
    file = saved(tmp_path, ema.state_dict())
    resumed = EMA(net(size=8, seed=9))
    resumed.load_state_dict(torch.load(file, weights_only=True))
    forgot = EMA(net(size=8, seed=9))
    forgot.load_state_dict({**torch.load(file, weights_only=True), "updates": 0})
    for _ in steps:
        for average in (ema, resumed, forgot):
            average.update(model)
    ours, theirs = ema.model.state_dict(), resumed.model.state_dict()
    assert all(torch.equal(ours[key], theirs[key]) for key in ours) and resumed.updates == 6
    assert not torch.equal(forgot.model.conv1.weight, ema.model.conv1.weight)  # negative control: updates matter


def test_ema_follows_tensors_that_are_swapped_and_a_model_that_is_another_object():
    model, other = net(size=8), net(size=8, seed=1)
    ema = EMA(model, decay=0.0)
    model.load_state_dict(copy.deepcopy(other.state_dict()), assign=True)  # new parameter objects
    ema.update(model)
    assert torch.equal(ema.model.conv1.weight, other.conv1.weight)
    third = net(size=8, seed=2)
    ema.update(third)
    assert torch.equal(ema.model.conv1.weight, third.conv1.weight)


def test_ema_averages_a_shared_weight_once():
    layer = nn.Linear(2, 2)
    model = nn.Sequential(layer, nn.Sequential(layer))
    model[1].append(nn.Linear(2, 2))
    model[1][1].weight = layer.weight
    ema, start = EMA(model), layer.weight.detach().clone()
    with torch.no_grad():
        layer.weight += 1
    ema.update(model)
    assert torch.allclose(ema.model[0].weight, start + 0.9)  # d_1 = 1/10; twice would be + 0.99


@pytest.mark.parametrize("decay", [-0.1, 1.0, 2.0])
def test_ema_refuses_a_decay_outside_0_1(decay):
    with pytest.raises(ValueError, match=rf"decay must be in \[0, 1\), got {decay}"):
        EMA(nn.Linear(1, 1), decay)


# ---------------------------------------------------------------------------------------------------------------------
# python models.py
# ---------------------------------------------------------------------------------------------------------------------


def test_models_py_alone_in_an_empty_folder_prints_its_table(tmp_path):
    (tmp_path / "models.py").write_bytes(Path(models.__file__).read_bytes())
    done = subprocess.run([sys.executable, "-W", "error", "models.py"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    rows = {line.split()[0]: line.split()[1:] for line in done.stdout.splitlines() if line[:1].isalpha()}
    assert rows["resnet20"] == ["0.27", "32"] and rows["efficientnet_b3"] == ["10.72", "300"]
    assert "wide_resnet50_2" in done.stdout


# --- timm ------------------------------------------------------------------------------------------------------------


def test_a_network_of_timm_has_this_many_outputs_its_size_and_its_own_mean_and_std():
    pytest.importorskip("timm")
    model = models.build_model("timm:vit_tiny_patch16_224", 7, 32)
    assert model(torch.zeros(2, 3, 32, 32)).shape == (2, 7) and tuple(model.pretrained_cfg["mean"]) == (0.5, 0.5, 0.5)
    model = models.build_model("timm:resnet18", 7, (32, 48), head="cosine")
    assert model(torch.zeros(2, 3, 32, 48)).shape == (2, 7) and len(models.stages(model)) > 3


def test_pretrained_weights_of_timm_are_loaded_without_the_head(monkeypatch):
    timm = pytest.importorskip("timm")
    create, asked = timm.create_model, []

    def offline(name, pretrained=False, **options):
        asked.append(pretrained)
        return create(name, **options)

    monkeypatch.setattr(timm, "create_model", offline)
    state = models.first_weights("timm:resnet18", "DEFAULT", 32)
    model = models.build_model("timm:resnet18", 7, 32)
    assert asked[0] is True and asked[-1] is False  # the weights, then the network of the run
    assert models.load_weights(model, state) == ["fc.weight", "fc.bias"]
    assert torch.equal(model.conv1.weight, state["conv1.weight"])


def test_an_unknown_network_of_timm_and_a_missing_timm_are_clear_errors(monkeypatch):
    timm = pytest.importorskip("timm")
    with pytest.raises(models.BadInput, match="has no network 'resnet1'; close names: resnet18"):
        models.build_model("timm:resnet1", 7, 32)
    monkeypatch.setattr(timm, "create_model", lambda *a, **k: 1 / 0)
    with pytest.raises(models.BadInput, match="timm.create_model failed for size .33, 33. .ZeroDivision"):
        models.build_model("timm:resnet18", 7, 33)
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(models.BadInput, match="needs the package timm: pip install timm"):
        models.build_model("timm:resnet18", 7, 32)

"""Networks by name: the small CIFAR ResNets, a tiny ViT, every torchvision classifier, or your own; and EMA.

    python models.py          # a small table: some networks, their parameters and sizes; then every name

Copy this file alone into your project; it needs torch (2.4 or later) and torchvision, and nothing else of the kit.

    model = build_model("resnet20", num_classes=10, size=32)                # He et al. 2015 for CIFAR
    model = build_model("resnet18", num_classes=18, weights="DEFAULT")      # torchvision's pretrained weights, new head
    model = build_model("resnet18", num_classes=18, weights="best_f1.pt")   # a state dict; a differing head stays out
    model = build_model("mine/net.py:make", num_classes=18)                 # your own make(num_classes) -> nn.Module

Each is a plain nn.Module: float images (N, 3, size, size) in, logits (N, num_classes) out, in training too.
"""

import copy
import difflib
import importlib.util
import re
import sys
import textwrap
from collections.abc import Callable
from itertools import compress
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn
from torchvision.models import VisionTransformer

Size = int | tuple[int, int]  # a square's side, or (H, W)

# ---------------------------------------------------------------------------------------------------------------------
# The kit's own networks
# ---------------------------------------------------------------------------------------------------------------------


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut without parameters (option A of arXiv 1512.03385): subsample, pad with zeros.

    Shapes: (N, in_channels, H, W) -> (N, channels, ceil(H / stride), ceil(W / stride)).
    """

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.stride = stride
        self.new_channels = channels - in_channels

    def shortcut(self, x: Tensor) -> Tensor:
        if self.stride == 1 and self.new_channels == 0:
            return x
        x = x[:, :, :: self.stride, :: self.stride]
        before = self.new_channels // 2  # the zeros stand on both sides of the old channels
        return F.pad(x, (0, 0, 0, 0, before, self.new_channels - before))

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        return F.relu(out + self.shortcut(x))


class CifarResNet(nn.Module):
    """The CIFAR-10 ResNet of He et al. 2015 (arXiv 1512.03385, section 4.2): depth 6n + 2, 16-32-64 channels.

    Meant for 32 x 32 images; any size from 8 up works, the features being averaged over all positions.
    Shapes: (N, 3, H, W) -> (N, num_classes). ValueError if depth is not 6n + 2.
    """

    def __init__(self, depth: int, num_classes: int) -> None:
        super().__init__()
        n, rest = divmod(depth - 2, 6)
        if n < 1 or rest:
            raise ValueError(f"depth must be 6n + 2 (8, 14, 20, 32, ...), got {depth}")
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = self.stage(n, 16, 16, stride=1)
        self.layer2 = self.stage(n, 16, 32, stride=2)
        self.layer3 = self.stage(n, 32, 64, stride=2)
        self.linear = nn.Linear(64, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):  # He initialisation, arXiv 1502.01852
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    @staticmethod
    def stage(n: int, in_channels: int, channels: int, stride: int) -> nn.Sequential:
        rest = [BasicBlock(channels, channels, stride=1) for _ in range(n - 1)]
        return nn.Sequential(BasicBlock(in_channels, channels, stride), *rest)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))  # (N, 16, H, W)
        x = self.layer3(self.layer2(self.layer1(x)))  # (N, 64, H/4, W/4)
        return self.linear(x.mean(dim=(2, 3)))  # (N, num_classes)


def vit_tiny(num_classes: int, size: Size) -> VisionTransformer:
    """DeiT-Ti (Touvron et al. 2020, arXiv 2012.12877): 12 layers, 3 heads, width 192; patch 16 from size 128, or 4.

    Shapes: (N, 3, size, size) -> (N, num_classes). ValueError if the patch does not divide the size.
    """
    patch = 16 if size >= 128 else 4
    check_patch("vit_tiny", size, patch)
    return VisionTransformer(size, patch, 12, num_heads=3, hidden_dim=192, mlp_dim=768, num_classes=num_classes)


KIT: dict[str, Callable[[int, Size], nn.Module]] = {
    "resnet8": lambda num_classes, size: CifarResNet(8, num_classes),
    "resnet20": lambda num_classes, size: CifarResNet(20, num_classes),
    "resnet32": lambda num_classes, size: CifarResNet(32, num_classes),
    "vit_tiny": vit_tiny,
}


# ---------------------------------------------------------------------------------------------------------------------
# Any network by name
# ---------------------------------------------------------------------------------------------------------------------


def list_names() -> list[str]:
    """Every name that build_model knows: the kit's own and torchvision's classifiers."""
    return [*KIT, *torchvision.models.list_models(module=torchvision.models)]


def build_model(name: str, num_classes: int, size: Size = 224, weights: str | Path = "none") -> nn.Module:
    """Build a classifier, load its weights, and prove with two images that it gives (2, num_classes) logits.

    name         one of list_names(), or FILE.py:FUNCTION for a factory of your own, FUNCTION(num_classes) -> nn.Module.
    num_classes  outputs of the head, >= 1.
    size         side of the square images, or (H, W), in pixels. A ViT is built for it (squares only); for other
                 networks it is only checked.
    weights      "none"; "DEFAULT", torchvision's best pretrained weights under a new head; or a FILE with a state dict,
                 see load_weights.

    Returns the model in train mode (a factory's own modes are kept).
    ValueError names what is wrong: name, size, file, keys, download or output shape.
    """
    if num_classes < 1 or min(_sides(size)) < 1:
        raise ValueError(f"num_classes and size must be >= 1, got num_classes {num_classes}, size {size}")
    is_factory = name.endswith(".py") or ".py:" in name
    if weights == "DEFAULT" and (is_factory or name in KIT):
        raise ValueError(f"{name} has no pretrained weights: weights must be none or the path of a state dict")
    if is_factory:
        model = build_from_file(name, num_classes)
    elif name in KIT:
        model = KIT[name](num_classes, size)
    elif name in list_names():
        model = build_torchvision(name, num_classes, size, pretrained=weights == "DEFAULT")
    else:
        close = ", ".join(difflib.get_close_matches(name.lower(), list_names(), n=5)) or "none"
        raise ValueError(f"unknown model {name!r}; close names: {close}; `python models.py` lists all")
    if weights not in ("none", "DEFAULT"):
        load_weights(model, weights, name)
    check_output(model, name, num_classes, size)
    return model


def build_torchvision(name: str, num_classes: int, size: Size, pretrained: bool) -> nn.Module:
    """A torchvision classifier with num_classes outputs and no auxiliary heads.

    SqueezeNet keeps torchvision's ReLU on its logits. A pretrained ViT takes the one size it was trained at.
    ValueError if a ViT cannot have this size, or if the pretrained weights cannot be had.
    """
    options: dict[str, Any] = {}
    if name.startswith("vit_"):
        check_patch(name, size, patch=int(name.rpartition("_")[2]))
        options = {} if pretrained else {"image_size": size}
    if name in ("googlenet", "inception_v3"):
        # torchvision rescales these nets' input only with its own weights. Here always: a checkpoint then means the
        # same network whether or not it once started from pretrained weights.
        options["transform_input"] = True
        if not pretrained:
            options |= {"init_weights": True, "aux_logits": False}
    if pretrained:
        model = load_pretrained(name, options)
        replace_head(model, num_classes)
    else:
        model = torchvision.models.get_model(name, num_classes=num_classes, **options)
    if name == "inception_v3":
        model.aux_logits, model.AuxLogits = False, None  # torchvision does this for googlenet
    return model


def load_pretrained(name: str, options: dict[str, Any]) -> nn.Module:
    """torchvision's network with its best weights, from the network or from torch.hub's cache. ValueError without."""
    best = torchvision.models.get_model_weights(name).DEFAULT
    try:
        return torchvision.models.get_model(name, weights=best, **options)
    except Exception as error:  # URLError, a timeout, a broken file in the cache
        raise ValueError(
            f"download of the pretrained weights of {name} failed ({describe(error)}): put {best.url} into "
            f"{torch.hub.get_dir()}/checkpoints by hand, or give a local FILE with a state dict as weights"
        ) from error


def build_from_file(name: str, num_classes: int) -> nn.Module:
    """FUNCTION(num_classes) of FILE.py, for the name "FILE.py:FUNCTION". The file runs, as it does on import.

    Its folder joins the end of sys.path for its siblings; a sibling named like a module already imported loses.
    ValueError if the file or the function is missing (it lists those there are), raises, or returns no nn.Module.
    """
    file, function = name.rsplit(":", 1) if ".py:" in name else (name, "")
    path = Path(file).resolve()
    if not path.is_file():
        raise ValueError(f"model {name}: there is no file {file}")
    if str(path.parent) not in sys.path:
        sys.path.append(str(path.parent))
    spec = importlib.util.spec_from_file_location(f"user_{path.stem}", path)
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)  # dataclasses look their module up there
    try:
        spec.loader.exec_module(module)
        own = [key for key, value in vars(module).items() if getattr(value, "__module__", "") == spec.name]
        model = getattr(module, function)(num_classes) if hasattr(module, function) else None
    except (Exception, SystemExit) as error:
        raise ValueError(f"model {name} cannot be built ({describe(error)})") from error
    if not hasattr(module, function):
        raise ValueError(f"{file} has no function {function!r}; give FILE.py:FUNCTION with one of: {', '.join(own)}")
    if not isinstance(model, nn.Module):
        raise ValueError(f"model {name} must return an nn.Module, got {type(model).__name__}")
    return model


def _sides(size: Size) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else tuple(size)


def check_patch(name: str, size: Size, patch: int) -> None:
    """ValueError unless size is a square's, and a multiple of a ViT's patch."""
    if not isinstance(size, int):
        raise ValueError(f"{name} takes square images only, got {size[0]} x {size[1]}")
    if size % patch:
        near = [multiple for multiple in (size // patch * patch, size // patch * patch + patch) if multiple]
        raise ValueError(f"{name} needs a size that is a multiple of its patch {patch}, such as {near}, got {size}")


def check_output(model: nn.Module, name: str, num_classes: int, size: Size, batch: int = 2) -> None:
    """ValueError unless zeros (batch, 3, H, W) give (batch, num_classes), in evaluation and in training.

    Every module ends in the mode it was in; buffers (BatchNorm statistics) and the CPU's random state are untouched.
    """
    modes = [(module, module.training) for module in model.modules()]
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            x = torch.zeros(batch, 3, *_sides(size))
            outputs = [model.eval()(x), model.train()(x)]
            for buffer, before in buffers:
                buffer.copy_(before)
    except Exception as error:
        what = f"batches of {batch} images of size {size}"
        raise ValueError(f"{name} cannot take {what} ({describe(error)})") from error
    finally:
        for module, mode in modes:
            module.training = mode
    for output in outputs:
        shape = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
        if shape != (batch, num_classes):
            raise ValueError(f"{name} at size {size} must give logits of shape ({batch}, {num_classes}), got {shape}")


def describe(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".partition("\n")[0]


def count_parameters(model: nn.Module) -> int:
    """Number of parameters, trainable or frozen; shared ones count once, buffers not at all."""
    return sum(parameter.numel() for parameter in model.parameters())


# ---------------------------------------------------------------------------------------------------------------------
# Heads and weights
# ---------------------------------------------------------------------------------------------------------------------


def find_head(model: nn.Module) -> str:
    """Name of the classifier layer: the last nn.Linear or nn.Conv2d in order of registration ("fc", "classifier.6").

    True of every torchvision classifier. ValueError if the model has no such layer.
    """
    names = [name for name, module in model.named_modules() if isinstance(module, (nn.Linear, nn.Conv2d))]
    if not names:
        raise ValueError(f"{type(model).__name__} has no nn.Linear or nn.Conv2d that could be its head")
    return names[-1]


def replace_head(model: nn.Module, num_classes: int) -> None:
    """Put a fresh layer with num_classes outputs, of the same kind as the old one, in the place of find_head(model)."""
    name = find_head(model)
    old, (parent, _, child) = model.get_submodule(name), name.rpartition(".")
    bias = old.bias is not None
    if isinstance(old, nn.Linear):
        new = nn.Linear(old.in_features, num_classes, bias)
    else:
        new = nn.Conv2d(old.in_channels, num_classes, old.kernel_size, old.stride, old.padding, bias=bias)
    setattr(model.get_submodule(parent), child, new.to(old.weight))


def read_state_dict(file: str | Path) -> dict[str, Tensor]:
    """The tensors of a checkpoint FILE by name: the file itself, or its "model" or "state_dict" entry.

    A "module." in front of every name (DataParallel) is dropped. Only tensors and plain containers are read
    (weights_only=True): a file that needs pickle is a ValueError, and none of its code runs.
    """
    if not Path(file).is_file():
        raise ValueError(f"weights: there is no file {file}; valid are none, DEFAULT and the path of a state dict")
    try:
        state = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # torch's text advises weights_only=False, so it is not repeated
        needs = re.search(r"GLOBAL (\S+)", str(error))
        reason = f"it needs the Python object {needs[1]}, which could run code" if needs else "not a file of tensors"
        raise ValueError(f"weights: {file} is refused: {reason}; save model.state_dict() with torch.save") from error
    for key in ("model", "state_dict"):
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
            break
    if not isinstance(state, dict) or not state or not all(isinstance(value, Tensor) for value in state.values()):
        raise ValueError(f'weights: {file} holds no state dict, neither itself nor under "model" or "state_dict"')
    if all(key.startswith("module.") for key in state):
        state = {key.removeprefix("module."): value for key, value in state.items()}
    return state


def load_weights(model: nn.Module, file: str | Path, name: str = "the model") -> None:
    """Load a checkpoint FILE into the model: everything, or, if nothing but the head differs, everything but the head.

    The second case prints one line. Anything else missing, unexpected or of another shape is a ValueError with up to
    five keys of each kind, and the model keeps its weights (strict=False would hide a wrong checkpoint).
    """
    state, own = read_state_dict(file), model.state_dict()
    problems = {
        "missing": [key for key in own if key not in state],
        "unexpected": [key for key in state if key not in own],
        "of another shape": [key for key in own if key in state and own[key].shape != state[key].shape],
    }
    keys = [key for found in problems.values() for key in found]
    if keys:
        head = find_head(model) + "."
        if not all(key.startswith(head) for key in keys):
            told = [f"{len(found)} {kind}: {', '.join(found[:5])}" for kind, found in problems.items() if found]
            raise ValueError(f"weights: {file} does not fit {name}; {'; '.join(told)}")
        print(f"{file}: loaded all but the head {head[:-1]}, which differs ({', '.join(keys)}) and starts fresh")
        state = {key: value for key, value in state.items() if not key.startswith(head)}
    own.update(state)  # own also carries the layers' versions, which a plain dict has lost and MNASNet asks for
    model.load_state_dict(own)


# ---------------------------------------------------------------------------------------------------------------------
# Exponential moving average of the weights
# ---------------------------------------------------------------------------------------------------------------------


class EMA:
    """Exponential moving average of a model's weights; `.model` is the averaged copy, in eval mode, to judge and save.

    Formula: average = d average + (1 - d) model, d = min(decay, (1 + t) / (10 + t)), t the number of updates so far
    (the warm-up of tf.train.ExponentialMovingAverage; averaging as in Mean Teacher, arXiv 1703.01780).
    Parameters and float buffers (BatchNorm statistics) are averaged, other buffers (BatchNorm's counter) copied.

    decay  in [0, 1), else ValueError; 0.999 looks back about 1000 updates.

    Call update(model) once per optimizer step.
    """

    def __init__(self, model: nn.Module, decay: float = 0.999) -> None:
        if not 0 <= decay < 1:
            raise ValueError(f"decay must be in [0, 1), got {decay}")
        self.model = copy.deepcopy(model).eval().requires_grad_(False)
        self.decay, self.updates = decay, 0

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Move the average towards the weights that the model has now."""
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        ours = [*self.model.parameters(), *self.model.buffers()]
        theirs = [*model.parameters(), *model.buffers()]
        is_float = [tensor.is_floating_point() for tensor in ours]
        # all tensors at once, as torch.optim.swa_utils does; an average of counters would mean nothing
        torch._foreach_lerp_(list(compress(ours, is_float)), list(compress(theirs, is_float)), 1 - decay)
        for counter, new in zip(ours, theirs, strict=True):
            if not counter.is_floating_point():
                counter.copy_(new)
        self.updates += 1

    def state_dict(self) -> dict[str, Any]:
        """{"model": the average's state dict, "updates": int}: all that a resumed run needs."""
        return {"model": self.model.state_dict(), "updates": self.updates}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.model.load_state_dict(state["model"])
        self.updates = int(state["updates"])


# ---------------------------------------------------------------------------------------------------------------------
# python models.py
# ---------------------------------------------------------------------------------------------------------------------


def main() -> None:
    shown = ["resnet18", "resnet50", "efficientnet_b3", "convnext_tiny", "swin_t", "vit_b_16", "mobilenet_v3_small"]
    print(f"{'name':<20}{'M parameters, 18 classes':>26}{'meant for size':>16}")
    for name in [*KIT, *shown]:
        size = 224 if name == "vit_tiny" else 32
        if name not in KIT:
            size = torchvision.models.get_model_weights(name).DEFAULT.transforms().crop_size[0]
        with torch.device("meta"):  # shapes only: no memory, no arithmetic
            parameters = count_parameters(build_model(name, num_classes=18, size=size))
        print(f"{name:<20}{parameters / 1e6:>26.2f}{size:>16}")
    print("\nEvery name (or FILE.py:FUNCTION, a factory of your own):")
    print(textwrap.fill(", ".join(list_names()), width=110, initial_indent="  ", subsequent_indent="  "))


if __name__ == "__main__":
    main()

# From f1kit. MIT licence, copyright (c) 2026 The f1kit authors. Keep this line and LICENSE with a copy of this file.
"""Networks by name: small CIFAR ResNets, a tiny ViT, all torchvision classifiers, or your own function. And EMA.

    python models.py          # a small table of networks with parameters and image size, then all names

Copy this file alone into your project. It needs torch (2.4 or later) and torchvision.

    model = build_model("resnet20", num_classes=10, size=32)                 # He et al. 2015, for CIFAR
    model = build_model("resnet18", 4, head="factored", factor_ids=[(0, 0), (0, 1), (1, 0), (1, 1)])  # FactoredHead
    model = build_model("my_nets.py:make", num_classes=18)                   # your make(num_classes) -> nn.Module
    model = build_model("resnet18", num_classes=18)                          # random weights; to load others:
    fresh = load_weights(model, first_weights("resnet18", "DEFAULT"))        # torchvision's pretrained weights, or
    fresh = load_weights(model, first_weights("resnet18", "best_f1.pt"))     # a state dict (its head may differ)

Each model is a plain nn.Module: float images (N, 3, H, W) in, logits (N, num_classes) out, also in training mode.
"""

import copy
import difflib
import importlib.util
import math
import re
import sys
import textwrap
import types
from collections.abc import Callable, Iterable, Sequence
from itertools import compress
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn
from torchvision.models import VisionTransformer

Size = int | tuple[int, int]  # side of a square, or (H, W), in pixels


class BadInput(ValueError):
    """A file or value that the user gave is wrong. The message tells which one, what is valid, and what to do."""


def sides(size: Size) -> tuple[int, int]:
    """(H, W) of a size: the side of a square, or (H, W)."""
    H, W = (size, size) if isinstance(size, int) else size
    return H, W


# ---------------------------------------------------------------------------------------------------------------------
# Networks of this file
# ---------------------------------------------------------------------------------------------------------------------


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut without parameters (option A of He et al. 2015, arXiv 1512.03385).

    The shortcut subsamples by the stride and pads new channels with zeros.
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
        before = self.new_channels // 2  # half of the zero channels come before the old ones, half after
        return F.pad(x, (0, 0, 0, 0, before, self.new_channels - before))

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        return F.relu(out + self.shortcut(x))


class CifarResNet(nn.Module):
    """The CIFAR-10 ResNet of He et al. 2015 (arXiv 1512.03385, section 4.2): depth 6n + 2, 16-32-64 channels.

    Made for 32 x 32 images. Any size >= 8 works, because features are averaged over all positions.
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
    """DeiT-Ti (Touvron et al. 2020, arXiv 2012.12877): 12 layers, 3 heads, width 192.

    The patch is 16 if size >= 128, else 4.
    Shapes: (N, 3, size, size) -> (N, num_classes). BadInput unless size is square and a multiple of the patch.
    """
    side = min(sides(size))
    patch = 16 if side >= 128 else 4
    check_patch("vit_tiny", size, patch)
    return VisionTransformer(side, patch, 12, num_heads=3, hidden_dim=192, mlp_dim=768, num_classes=num_classes)


KIT: dict[str, Callable[[int, Size], nn.Module]] = {
    "resnet8": lambda num_classes, size: CifarResNet(8, num_classes),
    "resnet20": lambda num_classes, size: CifarResNet(20, num_classes),
    "resnet32": lambda num_classes, size: CifarResNet(32, num_classes),
    "vit_tiny": vit_tiny,
}


# ---------------------------------------------------------------------------------------------------------------------
# Any network by name
# ---------------------------------------------------------------------------------------------------------------------


TIMM = "timm:"  # the beginning of a name of the package timm


def list_names() -> list[str]:
    """All names that build_model knows: the networks of this file and torchvision's classifiers."""
    return [*KIT, *torchvision.models.list_models(module=torchvision.models)]


def is_function(name: str) -> bool:
    """Whether a model name is FILE.py:FUNCTION: build_model executes the file."""
    return name.endswith(".py") or ".py:" in name


def build_model(
    name: str,
    num_classes: int,
    size: Size = 224,
    head: str = "linear",
    factor_ids: Sequence[Sequence[int]] = (),
) -> nn.Module:
    """Build a classifier with random weights, and check with two images that it gives logits of shape (2, num_classes).

    name         one of list_names(), timm:NAME (needs the package timm), or FILE.py:FUNCTION, your own function:
                 FUNCTION(num_classes) -> nn.Module.
    num_classes  outputs of the head, >= 1.
    size         side of the square images, or (H, W), in pixels. A ViT is built for this size (squares only). For
                 other networks it is only checked.
    head         one of HEADS: "linear" keeps the network's own, the others replace it.
    factor_ids   (num_classes, F): the value of each factor for each class, for the head "factored".

    Returns the model in training mode (modes that your own function sets are kept).
    No weights are read, neither from a file nor from the internet: see first_weights and load_weights.
    BadInput: unknown name, a size that the network cannot take, or a function that fails or gives a different shape.
    """
    if num_classes < 1 or min(sides(size)) < 1:
        raise ValueError(f"num_classes and size must be >= 1, got num_classes {num_classes}, size {size}")
    if is_function(name):
        model = build_from_file(name, num_classes)
    elif name in KIT:
        model = KIT[name](num_classes, size)
    elif name.startswith(TIMM):
        model = build_timm(name, size, num_classes=num_classes)
    elif name in list_names():
        model = build_torchvision(name, num_classes, size)
    else:
        close = ", ".join(difflib.get_close_matches(name.lower(), list_names(), n=5)) or "none"
        raise BadInput(f"unknown model {name!r}; close names: {close}; `python models.py` lists all names")
    set_head(model, head, factor_ids)
    check_output(model, name, num_classes, size)
    return model


def build_torchvision(name: str, num_classes: int, size: Size) -> nn.Module:
    """A torchvision classifier with num_classes outputs, random weights and no auxiliary heads.

    SqueezeNet keeps torchvision's ReLU on its logits. BadInput if a ViT cannot have this size.
    """
    options: dict[str, Any] = {}
    if name.startswith("vit_"):
        check_patch(name, size, patch=int(name.rpartition("_")[2]))
        options["image_size"] = min(sides(size))
    if name in ("googlenet", "inception_v3"):
        # torchvision sets transform_input only for its pretrained weights. Here it is always set, so that a checkpoint
        # gives the same network, whether or not training started from pretrained weights.
        options |= {"transform_input": True, "init_weights": True, "aux_logits": False}
    return torchvision.models.get_model(name, num_classes=num_classes, **options)


def build_timm(name: str, size: Size, **options: Any) -> nn.Module:
    """timm.create_model(NAME, **options) for the name "timm:NAME", for this size if the network has a fixed one.

    The network's `pretrained_cfg` has the mean and std of its pretrained weights.
    BadInput if timm is not installed, the name is unknown, or the network cannot be built.
    """
    try:
        import timm
    except ImportError as error:
        raise BadInput(f"model {name} needs the package timm: pip install timm") from error
    short = name.removeprefix(TIMM)
    if not timm.is_model(short):
        close = ", ".join(difflib.get_close_matches(short, timm.list_models(), n=5)) or "none"
        raise BadInput(f"model {name}: timm {timm.__version__} has no network {short!r}; close names: {close}")
    try:
        try:
            return timm.create_model(short, img_size=sides(size), **options)
        except TypeError:  # a network for every size
            return timm.create_model(short, **options)
    except Exception as error:
        raise BadInput(f"model {name}: timm.create_model failed for size {sides(size)} ({describe(error)})") from error


def build_from_file(name: str, num_classes: int) -> nn.Module:
    """FUNCTION(num_classes) for the name "FILE.py:FUNCTION". BadInput if it fails or does not return an nn.Module."""
    function = load_function(name, "model")
    try:
        model = function(num_classes)
    except (Exception, SystemExit) as error:
        raise BadInput(f"model {name} cannot be built ({describe(error)})") from error
    if not isinstance(model, nn.Module):
        raise BadInput(f"model {name} must return an nn.Module, got {type(model).__name__}")
    return model


def load_function(name: str, what: str) -> Callable[..., Any]:
    """The function of "FILE.py:FUNCTION". Every call executes the file once, as an import does.

    The folder of the file is added to the end of sys.path: the file can import the files beside it, unless a module of
    that name can already be imported.

    what  the purpose of the function, for messages: "model" or "transform".

    BadInput if the name has a different form, if the file is missing or fails, or if it has no such function. The
    message then lists the functions of the file.
    """
    match = re.fullmatch(r"(.+\.py)(?::(.*))?", name)
    if not match:
        raise BadInput(
            f"{name!r} is not FILE.py:FUNCTION; give the {what} as a file and a function in it, such as mine.py:make"
        )
    file, function = match[1], match[2] or ""
    path = Path(file).resolve()
    if not path.is_file():
        raise BadInput(f"{what} {name}: there is no file {file}")
    if str(path.parent) not in sys.path:
        sys.path.append(str(path.parent))
    spec = importlib.util.spec_from_file_location(f"user_{what}_{path.stem}", path)
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)  # dataclasses look up their module there
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        raise BadInput(f"{what} {name}: {file} cannot be executed ({describe(error)})") from error
    if not callable(getattr(module, function, None)):
        members = vars(module).items()
        own = [key for key, value in members if callable(value) and getattr(value, "__module__", "") == spec.name]
        raise BadInput(f"{file} has no function {function!r}; its functions: {', '.join(own) or 'none'}")
    return getattr(module, function)


def check_patch(name: str, size: Size, patch: int) -> None:
    """BadInput unless size is square and a multiple of the patch of a ViT."""
    H, W = sides(size)
    if H != W:
        raise BadInput(f"{name} takes only square images, got size {H} x {W}")
    if H % patch:
        near = [multiple for multiple in (H // patch * patch, H // patch * patch + patch) if multiple]
        raise BadInput(f"{name} needs a size that is a multiple of its patch {patch}, such as {near}, got {H}")


def check_output(model: nn.Module, name: str, num_classes: int, size: Size, batch: int = 2) -> None:
    """BadInput unless zeros (batch, 3, H, W) give logits (batch, num_classes), in evaluation and in training mode.

    The modes of the modules, buffers (BatchNorm statistics) and the random state of the CPU are not changed.
    """
    H, W = sides(size)
    modes = [(module, module.training) for module in model.modules()]
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            x = torch.zeros(batch, 3, H, W)
            outputs = [model.eval()(x), model.train()(x)]
            for buffer, before in buffers:
                buffer.copy_(before)
    except Exception as error:
        raise BadInput(f"{name} cannot take batches of {batch} images of size {H} x {W} ({describe(error)})") from error
    finally:
        for module, mode in modes:
            module.training = mode
    for output in outputs:
        shape = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
        if shape != (batch, num_classes):
            raise BadInput(f"{name} at size {H} x {W} must give logits of shape ({batch}, {num_classes}), got {shape}")


def describe(error: BaseException) -> str:
    """Type and first line of an error."""
    return f"{type(error).__name__}: {error}".partition("\n")[0]


def count_parameters(model: nn.Module) -> int:
    """Number of parameters, trainable or frozen. A shared parameter counts once, buffers do not count."""
    return sum(parameter.numel() for parameter in model.parameters())


# ---------------------------------------------------------------------------------------------------------------------
# Heads and weights
# ---------------------------------------------------------------------------------------------------------------------


def find_head(model: nn.Module) -> str:
    """Name of the classifier layer, such as "fc" or "classifier.6": the last nn.Linear or nn.Conv2d that is registered.

    This is the head of every torchvision classifier. BadInput if the model has no such layer.
    """
    names = [name for name, module in model.named_modules() if isinstance(module, (nn.Linear, nn.Conv2d))]
    if not names:
        raise BadInput(f"cannot find the head of {type(model).__name__}: it has no nn.Linear and no nn.Conv2d")
    return names[-1]


class CosineHead(nn.Linear):
    """A classifier layer with logits scale * cos(features, weight of the class): all classes have the same norm.

    With plain logits, frequent classes get longer weight vectors, and so larger logits. LDAM (losses.ldam_loss) sets
    its margins in units of this cosine. Shapes: (N, in_features) -> (N, out_features). There is no bias.
    """

    def __init__(self, in_features: int, out_features: int, scale: float = 30.0) -> None:
        super().__init__(in_features, out_features, bias=False)
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * F.linear(F.normalize(x), F.normalize(self.weight))


class FactoredHead(nn.Linear):
    """A classifier layer for classes that combine factors: mask x gender x age has 3 + 2 + 3 outputs for 18 classes.

    Each value of a factor has one output. The logit of a class is the sum of the outputs of its values:

        logit(mask, gender, age) = a(mask) + b(gender) + c(age)

    The softmax of sums over all combinations is the product of the factors' softmaxes. So cross-entropy on the classes
    is the sum of the factors' cross-entropies, and the most likely class has the most likely value of each factor. A
    rare class shares the weights of its values with frequent classes.

    factor_ids  C rows of F numbers: the value of each factor for each class, counted from 0.

    Shapes: (N, in_features) -> (N, C). ValueError if factor_ids is empty or has negative numbers.
    """

    def __init__(self, in_features: int, factor_ids: Sequence[Sequence[int]]) -> None:
        ids = torch.as_tensor(factor_ids, dtype=torch.long, device="cpu")  # (C, F)
        if ids.dim() != 2 or not ids.numel() or ids.min() < 0:
            raise ValueError(f"factor_ids must be integers (C, F) >= 0, got {factor_ids!r:.100}")
        sizes = (ids.amax(0) + 1).tolist()  # number of values of each factor
        super().__init__(in_features, sum(sizes))
        parts = [F.one_hot(column, size) for column, size in zip(ids.T, sizes, strict=True)]
        # 1 if the class has the value; a product is deterministic on every device, an index is not
        self.register_buffer("parts", torch.cat(parts, 1).to(self.weight))  # (C, out_features)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(super().forward(x), self.parts)


# From the number of features, the number of classes C and factor_ids (C, F) to the layer
HEADS: dict[str, Callable[[int, int, Any], nn.Module] | None] = {
    "linear": None,
    "cosine": lambda features, num_classes, factor_ids: CosineHead(features, num_classes),
    "factored": lambda features, num_classes, factor_ids: FactoredHead(features, factor_ids),
}


def set_head(model: nn.Module, head: str, factor_ids: Sequence[Sequence[int]] = ()) -> None:
    """Replaces the classifier layer by a new one of this kind, one of HEADS. "linear": the layer stays as it is.

    factor_ids  (C, F), the value of each factor for each class; only for "factored", see FactoredHead.

    BadInput for an unknown kind, a network whose classifier layer is not an nn.Linear, or "factored" without factors.
    """
    if head not in HEADS:
        raise BadInput(f"unknown head {head!r}: choose from {', '.join(HEADS)}")
    if HEADS[head] is None:
        return
    if head == "factored" and not any(map(len, factor_ids)):
        raise BadInput("head factored needs classes that combine factors, such as mask x gender x age")
    path, _, name = find_head(model).rpartition(".")
    parent = model.get_submodule(path)
    old = getattr(parent, name)
    if not isinstance(old, nn.Linear):
        found = f"{type(model).__name__} has {type(old).__name__}"
        raise BadInput(f"head {head} needs a classifier layer of type nn.Linear: {found}")
    setattr(parent, name, HEADS[head](old.in_features, old.out_features, factor_ids))


def first_weights(name: str, weights: str | Path, size: Size = 224) -> dict[str, Tensor]:
    """The initial weights of a training as a state dict for load_weights: pretrained weights, or those of a FILE.

    name     a name of build_model.
    weights  "DEFAULT": the best pretrained weights that torchvision has for this name, from torch.hub's cache or
             downloaded, without the head and the auxiliary heads; those of timm for "timm:NAME". Else a FILE, see
             read_checkpoint.
    size     of the images, for a network of timm whose weights depend on it.

    The random state of the CPU is not changed.
    BadInput: no pretrained weights for this name, a failed download, or a missing or refused FILE.
    """
    if weights != "DEFAULT":
        return state_dict_of(read_checkpoint(weights), weights)
    network = _pretrained(name, size)
    left_out = (find_head(network) + ".", "AuxLogits.")  # inception_v3 keeps its auxiliary head, googlenet does not
    return {key: value for key, value in network.state_dict().items() if not key.startswith(left_out)}


def _pretrained(name: str, size: Size) -> nn.Module:
    """The network with its pretrained weights and its own head. See first_weights."""
    if name.startswith(TIMM):
        with torch.random.fork_rng(devices=[]):
            return build_timm(name, size, pretrained=True)
    if name in KIT or name not in list_names():
        raise BadInput(f"{name} has no pretrained weights: weights must be none or the path of a state dict")
    best = torchvision.models.get_model_weights(name).DEFAULT
    try:
        with torch.random.fork_rng(devices=[]):  # torchvision's own network: it renames old keys (densenet)
            return torchvision.models.get_model(name, weights=best)
    except Exception as error:  # URLError, a timeout, a broken file in the cache
        raise BadInput(
            f"download of the pretrained weights of {name} failed ({describe(error)}): save {best.url} in "
            f"{torch.hub.get_dir()}/checkpoints yourself, or give a local FILE with a state dict as weights"
        ) from error


def read_checkpoint(file: str | Path) -> Any:
    """What is in a checkpoint FILE, or in the best_f1.pt of a run's folder. Usually a dict.

    Only tensors and plain containers are read (weights_only=True), so that no code of the file runs.
    BadInput: the file is missing, or needs pickled Python objects.
    """
    if Path(file, "fold0").is_dir():
        raise BadInput(f"{file} has several folds: choose one of them, such as {Path(file, 'fold0')}")
    if Path(file).is_dir():
        file = Path(file) / "best_f1.pt"
    if not Path(file).is_file():
        raise BadInput(f"there is no file {file}; valid are none, DEFAULT and the path of a state dict or run")
    try:
        return torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # torch's message advises weights_only=False: do not repeat it
        needs = re.search(r"GLOBAL (\S+)", str(error))
        reason = f"it needs the Python object {needs[1]}, which could run code" if needs else "not a file of tensors"
        raise BadInput(f"{file} is refused: {reason}; save model.state_dict() with torch.save") from error


def state_dict_of(saved: Any, file: str | Path) -> dict[str, Tensor]:
    """The tensors by name in what read_checkpoint returned: all of it, or its "model" or "state_dict" entry.

    If all names start with "module." (DataParallel), that prefix is removed. BadInput, with the name of the FILE, if
    there is no state dict.
    """
    state = saved
    for key in ("model", "state_dict"):
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
            break
    is_state_dict = isinstance(state, dict) and all(isinstance(key, str) for key in state)
    if not (is_state_dict and state and all(isinstance(value, Tensor) for value in state.values())):
        raise BadInput(f'{file} has no state dict, neither itself nor under "model" or "state_dict"')
    if all(key.startswith("module.") for key in state):
        state = {key.removeprefix("module."): value for key, value in state.items()}
    return state


def load_weights(
    model: nn.Module,
    state: dict[str, Tensor],
    name: str = "the model",
    source: str | Path = "the state dict",
    keep_head: bool = True,
) -> list[str]:
    """Load a state dict into the model: everything, or everything but the head if only the head does not fit.

    name, source  names of the model and of the state dict, for messages.
    keep_head     False: the head is not loaded, also if it fits.

    Returns the names of the head's weights that were not loaded and keep their random values: [] if all were loaded.
    BadInput, with up to five keys of each kind, if anything else is missing, unexpected or of a different shape. The
    model is then unchanged. (strict=False would hide a wrong checkpoint.)
    """
    if not keep_head:
        state = {key: value for key, value in state.items() if not key.startswith(find_head(model) + ".")}
    fixed = {f"{name}.parts" for name, module in model.named_modules() if isinstance(module, FactoredHead)}
    own = model.state_dict()  # it has the version numbers of layers, which MNASNet needs and a plain dict lacks
    problems = {
        "missing": [key for key in own if key not in state],
        "unexpected": [key for key in state if key not in own],
        "of a different shape": [key for key in own if key in state and own[key].shape != state[key].shape],
        "for different factors": [
            key for key in fixed & state.keys() if not torch.equal(own[key], state[key].to(own[key]))
        ],
    }
    fresh: list[str] = []
    if any(problems.values()):
        head = find_head(model) + "."
        body = {key for keys in problems.values() for key in keys if not key.startswith(head)}
        if body:
            size = _vit_size(state) if isinstance(model, VisionTransformer) and body <= {POSITIONS, PATCHES} else None
            if size and size != model.image_size:
                difference = f"{source} is for images of size {size}, {name} was built for {model.image_size}"
                raise BadInput(f"{difference}: use size {size}")
            parts = [f"{len(keys)} {kind}: {', '.join(keys[:5])}" for kind, keys in problems.items() if keys]
            raise BadInput(f"{source} does not fit {name}: {'; '.join(parts)}. Use the model that it was saved from")
        fresh = [key for key in own if key.startswith(head)]
        state = {key: value for key, value in state.items() if not key.startswith(head)}
    own.update(state)
    model.load_state_dict(own)
    return fresh


POSITIONS, PATCHES = "encoder.pos_embedding", "conv_proj.weight"  # what depends on the image size in torchvision's ViT


def _vit_size(state: dict[str, Tensor]) -> int | None:
    """Image size of a ViT's weights: position embedding (1, tokens, width), kernel of the patches (width, 3, P, P)."""
    if POSITIONS not in state or state[POSITIONS].dim() != 3 or PATCHES not in state or state[PATCHES].dim() != 4:
        return None
    patches = max(0, state[POSITIONS].shape[1] - 1)  # without the class token
    return math.isqrt(patches) * state[PATCHES].shape[3]


# ---------------------------------------------------------------------------------------------------------------------
# Fine-tuning: stages of a network, freezing
# ---------------------------------------------------------------------------------------------------------------------


def stages(model: nn.Module) -> list[list[str]]:
    """The names of all parameters, stage by stage: the stem first, the head (see find_head) last.

    A stage is a part of the network, such as layer1 of a ResNet or one block of a ViT. A part that has more than 80 %
    of the parameters, without the module of the head, is divided into its own parts. A part without kernels or weight
    matrices, such as a norm layer, belongs to the stage before it.
    """
    head = find_head(model)
    parent, named = head.rpartition(".")[0] or head, dict(model.named_parameters())
    of_head = [name for name in named if name.startswith(head + ".")]
    sizes = {name: 0 if name.startswith(parent + ".") else named[name].numel() for name in named.keys() - of_head}
    result: list[list[str]] = [[]]
    for part in _parts(model, "", sizes):
        if all(
            any(named[name].ndim >= 2 and name.endswith("weight") for name in names) for names in (part, result[-1])
        ):
            result.append([])
        result[-1] += part
    return [*result, of_head]


def _parts(module: nn.Module, prefix: str, sizes: dict[str, int]) -> list[list[str]]:
    """Names of parameters, part by part, without the head."""
    own = [prefix + name for name, _ in module.named_parameters(recurse=False)]
    result = [[name for name in own if name in sizes]]
    for child_name, child in module.named_children():
        inner = f"{prefix}{child_name}."
        names = [inner + name for name, _ in child.named_parameters() if inner + name in sizes]
        is_most = sum(sizes[name] for name in names) > 0.8 * sum(sizes.values())
        result += _parts(child, inner, sizes) if is_most and [*child.children()] else [names]
    return [names for names in result if names]


def freeze(model: nn.Module, names: Iterable[str]) -> None:
    """Freezes these parameters, and makes those trainable again that an earlier call froze.

    A module whose parameters are all frozen stays in eval mode, also after model.train(): BatchNorm's statistics do not
    change, and its dropout is off. BatchNorm without parameters is frozen with the module before it. Parameters that
    were never trainable stay as they are.
    """
    names, before = set(names), getattr(model, "frozen_names", set())
    parameters = dict(model.named_parameters())
    model.frozen_names = {name for name in names if parameters[name].requires_grad or name in before}
    for name in before | model.frozen_names:
        parameters[name].requires_grad_(name not in model.frozen_names)
    model.train = types.MethodType(_train_what_is_not_frozen, model)
    model.train(model.training)


def _train_what_is_not_frozen(model: nn.Module, mode: bool = True) -> nn.Module:
    type(model).train(model, mode)
    is_frozen = False
    for module in model.modules():
        parameters = [*module.parameters()]
        if parameters:  # BatchNorm without parameters is like the module before it
            is_frozen = not any(parameter.requires_grad for parameter in parameters)
        if model.frozen_names and is_frozen and (parameters or [*module.buffers(recurse=False)]):
            module.eval()
    return model


# ---------------------------------------------------------------------------------------------------------------------
# Exponential moving average of the weights
# ---------------------------------------------------------------------------------------------------------------------


class EMA:
    """Exponential moving average (EMA) of a model's weights. `.model` has the averaged weights: evaluate and save it.

    Formula: ema = d ema + (1 - d) model, d = min(decay, (1 + t) / (10 + t)), t the number of updates so far.
    The warmup of d is that of tf.train.ExponentialMovingAverage. The average is that of Mean Teacher, arXiv 1703.01780.
    Parameters and float buffers (BatchNorm statistics) are averaged. Other buffers (BatchNorm's counter) are copied.
    `.model` is in eval mode.

    decay  in [0, 1), else ValueError. 0.999 averages over about 1000 updates.

    Call update(model) once per update (optimizer step).
    """

    def __init__(self, model: nn.Module, decay: float = 0.999) -> None:
        if not 0 <= decay < 1:
            raise ValueError(f"decay must be in [0, 1), got {decay}")
        self.model = copy.deepcopy(model).eval().requires_grad_(False)
        self.decay, self.updates = decay, 0

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Move the EMA towards the current weights of the model."""
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        averages = [*self.model.parameters(), *self.model.buffers()]
        current = [*model.parameters(), *model.buffers()]
        is_float = [tensor.is_floating_point() for tensor in averages]
        # all float tensors in one call, as torch.optim.swa_utils does; counters are copied, not averaged
        torch._foreach_lerp_(list(compress(averages, is_float)), list(compress(current, is_float)), 1 - decay)
        for counter, new in zip(averages, current, strict=True):
            if not counter.is_floating_point():
                counter.copy_(new)
        self.updates += 1

    def state_dict(self) -> dict[str, Any]:
        """{"model": state dict of the EMA, "updates": int}, for load_state_dict in a resumed run."""
        return {"model": self.model.state_dict(), "updates": self.updates}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.model.load_state_dict(state["model"])
        self.updates = int(state["updates"])


# ---------------------------------------------------------------------------------------------------------------------
# python models.py
# ---------------------------------------------------------------------------------------------------------------------


def main() -> None:
    shown = ["resnet18", "resnet50", "efficientnet_b3", "convnext_tiny", "swin_t", "vit_b_16", "mobilenet_v3_small"]
    print(f"{'name':<20}{'M parameters, 18 classes':>26}{'image size':>16}")
    for name in [*KIT, *shown]:
        size = 224 if name == "vit_tiny" else 32
        if name not in KIT:
            size = torchvision.models.get_model_weights(name).DEFAULT.transforms().crop_size[0]
        with torch.device("meta"):  # shapes only: no memory, no arithmetic
            parameters = count_parameters(build_model(name, num_classes=18, size=size))
        print(f"{name:<20}{parameters / 1e6:>26.2f}{size:>16}")
    print("\nAll names (or FILE.py:FUNCTION, your own function):")
    print(textwrap.fill(", ".join(list_names()), width=80, initial_indent="  ", subsequent_indent="  "))


if __name__ == "__main__":
    main()

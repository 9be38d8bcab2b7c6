"""The recipe of Cao et al. 2019 (arXiv:1906.07413) in plain PyTorch, without a file of the kit: a check of the kit.

    python results/plain_cifar10_lt.py --train cifar10-lt/train --test cifar10-lt/test --epochs 200 --depth 32

SGD 0.1 with momentum 0.9, without Nesterov; weight decay 2e-4 on all parameters; batch 128; linear warmup. The short
schedule of results/long-tail.md is `--schedule cosine`. Prints the test accuracy of each epoch.
"""

import argparse
import math

import torch
import torch.nn.functional as F
from torch import nn
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)


class Block(nn.Module):
    def __init__(self, before, after, stride):
        super().__init__()
        self.conv1 = nn.Conv2d(before, after, 3, stride, 1, bias=False)
        self.conv2 = nn.Conv2d(after, after, 3, 1, 1, bias=False)
        self.bn1, self.bn2 = nn.BatchNorm2d(after), nn.BatchNorm2d(after)
        self.stride, self.new = stride, after - before

    def forward(self, x):
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        if self.new:  # shortcut of option A: every second pixel, and new channels of zeros
            x = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.new // 2, self.new // 2))
        return F.relu(x + y)


def resnet(depth):
    layers, width = [nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU()], 16
    for after in (16, 32, 64):
        for _ in range((depth - 2) // 6):
            layers.append(Block(width, after, after // width))
            width = after
    net = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))
    for module in net.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            nn.init.kaiming_normal_(module.weight)
    return net


def load(folder):
    to_tensor = v2.PILToTensor()
    images, targets = zip(*[(to_tensor(image), target) for image, target in ImageFolder(folder)], strict=True)
    return torch.stack(images), torch.tensor(targets)


def main():
    parser = argparse.ArgumentParser()
    for flag, kind, default in (
        ("train", str, None),
        ("test", str, None),
        ("schedule", str, "paper"),
        ("epochs", int, 200),
        ("depth", int, 32),
        ("warmup", float, 5),
        ("seed", int, 0),
    ):
        parser.add_argument(f"--{flag}", type=kind, default=default, required=default is None)
    parser.add_argument("--bf16", action="store_true")
    options = parser.parse_args()
    torch.manual_seed(options.seed)
    images, targets = load(options.train)
    test_images, test_targets = load(options.test)
    to_float = v2.Compose([v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD)])
    augment = v2.Compose([v2.RandomCrop(32, padding=4), v2.RandomHorizontalFlip()])
    net = resnet(options.depth).to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(net.parameters(), 0.1, momentum=0.9, weight_decay=2e-4)
    n, E, step = math.ceil(len(images) / 128), options.epochs, 0
    for epoch in range(1, E + 1):
        net.train()
        for rows in torch.randperm(len(images)).split(128):
            t = step / n  # epochs done
            if t < options.warmup:
                factor = (step + 1) / (options.warmup * n)
            elif options.schedule == "cosine":
                factor = (1 + math.cos(math.pi * (t - options.warmup) / (E - options.warmup))) / 2
            else:
                factor = 1.0 if t < 0.8 * E else 1e-2 if t < 0.9 * E else 1e-4
            optimizer.param_groups[0]["lr"] = 0.1 * factor
            x = to_float(torch.stack([augment(images[i]) for i in rows]))
            with torch.autocast("cpu", torch.bfloat16, enabled=options.bf16):
                logits = net(x.contiguous(memory_format=torch.channels_last))
            optimizer.zero_grad()
            F.cross_entropy(logits.float(), targets[rows]).backward()
            optimizer.step()
            step += 1
        net.eval()
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=options.bf16):
            found = torch.cat([net(to_float(x)).argmax(1) for x in test_images.split(500)])
        print(f"epoch {epoch}  test accuracy {(found == test_targets).float().mean():.4f}", flush=True)


if __name__ == "__main__":
    main()

"""Folds without a defect: new weights in each, OneCycleLR to its end, EMA, training accuracy, a reloaded best model."""
# finds:

import copy
import os
import tempfile

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, Subset, TensorDataset

ACCUM, EPOCHS = 4, 2
torch.manual_seed(0)
data = TensorDataset(torch.randn(96, 12), torch.arange(96) % 4)
order = torch.randperm(96).tolist()
path = os.path.join(tempfile.mkdtemp(), "best.pt")


def make():
    return nn.Sequential(nn.Linear(12, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 4))


def accuracy(model, loader):
    model.eval()
    with torch.inference_mode():
        return sum((model(x).argmax(1) == y).sum().item() for x, y in loader) / len(loader.dataset)


for fold in range(3):
    val = order[fold::3]
    train = [i for i in order if i not in val]
    train_loader, val_loader = DataLoader(Subset(data, train), 4, shuffle=True), DataLoader(Subset(data, val), 16)
    model = make()
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
    steps = len(train_loader) // ACCUM
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-2, epochs=EPOCHS, steps_per_epoch=steps)
    ema, best = copy.deepcopy(model), -1.0
    for _ in range(EPOCHS):
        model.train()
        for i, (x, y) in enumerate(train_loader):
            with torch.autocast("cpu", torch.bfloat16):
                loss = F.cross_entropy(model(x), y)
            (loss / ACCUM).backward()
            if (i + 1) % ACCUM == 0:
                nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                scheduler.step()
                optimizer.zero_grad()
                for average, new in zip(ema.parameters(), model.parameters(), strict=True):
                    average.data.lerp_(new.data, 0.1)
        scores = [accuracy(model, val_loader), accuracy(ema, val_loader)]
        print(accuracy(model, DataLoader(Subset(data, train), 16)), scores)
        if scores[0] > best:
            best = scores[0]
            torch.save({"model": model.state_dict(), "fold": fold}, path)
    judged = make()
    judged.load_state_dict(torch.load(path, weights_only=True)["model"])
    assert accuracy(judged, val_loader) == best

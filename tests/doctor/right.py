"""Correct code in the usual forms, and the kit's own, in which doctor.py must find nothing."""

import itertools
from functools import partial

import torch
import torch.nn.functional as F
from sklearn.metrics import f1_score, recall_score
from torch import nn

import loop
import metrics

macro_f1 = partial(f1_score, average="macro")
leaderboard_f1 = partial(f1_score, average="macro", labels=range(5), zero_division=0)


def kit_loop(model, loader, criterion, optimizer, device, accum_steps):
    return loop.train_epoch(loop.State(model, optimizer), loader, criterion, accum=accum_steps, clip=1.0)


def kit_loop_with_everything(model, loader, criterion, optimizer, device, accum_steps, scaler, scheduler):
    state = loop.State(model, optimizer, schedule=scheduler, scaler=scaler)
    return loop.train_epoch(state, loader, criterion, accum=accum_steps, clip=1.0)


def kit_validation(model, val_loader, criterion, device):
    scores, logits, targets = loop.evaluate(model, val_loader, criterion)
    return scores["val_loss"], metrics.f1_score(logits.argmax(1), targets, 5)


def plain_loop(model, loader, criterion, optimizer, device, epoch):
    model.train()
    for x, y in loader:
        optimizer.zero_grad()
        criterion(model(x.to(device)), y.to(device)).backward()
        optimizer.step()


def sum_and_divide(model, loader, criterion, optimizer, device, accum_steps=4):
    model.train()
    weight = criterion.weight
    batches = iter(loader)
    while window := list(itertools.islice(batches, accum_steps)):
        targets = torch.cat([y for _, y in window])
        total = len(targets) if weight is None else weight[targets].sum()
        for x, y in window:
            (F.cross_entropy(model(x), y, weight, reduction="sum") / total).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=False)


def amp_loop(model, loader, criterion, optimizer, device, scaler, scheduler, clip=1.0):
    model.train()
    for x, y in loader:
        optimizer.zero_grad()
        scaler.scale(criterion(model(x), y)).backward()
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(model.parameters(), clip)
        before = scaler.get_scale()
        scaler.step(optimizer)
        scaler.update()
        if scaler.get_scale() >= before:
            scheduler.step()


def train_and_keep_the_best(model, train_loader, val_loader, criterion, optimizer, device, epochs):
    scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, mode="max")
    best, best_state = -1.0, None
    for epoch in range(epochs):
        plain_loop(model, train_loader, criterion, optimizer, device, epoch)
        val_accuracy = validate(model, val_loader, device)["accuracy"]
        scheduler.step(val_accuracy)
        if val_accuracy > best:
            best, best_state = val_accuracy, {k: v.clone() for k, v in model.state_dict().items()}
    return best_state


@torch.no_grad()
def validate(model, loader, device):
    model.eval()
    true, pred = [], []
    for x, y in loader:
        true += y.tolist()
        pred += model(x.to(device)).argmax(1).tolist()
    right = sum(t == p for t, p in zip(true, pred, strict=True))
    return {"accuracy": right / len(true), "f1": f1_score(true, pred, average="macro", zero_division=0)}


def compute_metrics(eval_pred):
    logits, labels = eval_pred
    return {
        "f1": f1_score(labels, logits.argmax(-1), average="macro"),
        "accuracy": (logits.argmax(-1) == labels).mean(),
    }


def macro_recall(preds, targets):
    return recall_score(targets, preds, average="macro", zero_division=0)


class SmoothingOfNotes(nn.Module):
    """eps / (C - 1), the class of course notes, with a default that smooths."""

    def __init__(self, classes, smoothing=0.1, dim=-1):
        super().__init__()
        self.confidence, self.smoothing, self.cls, self.dim = 1.0 - smoothing, smoothing, classes, dim

    def forward(self, pred, target):
        pred = pred.log_softmax(dim=self.dim)
        with torch.no_grad():
            truth = torch.full_like(pred, self.smoothing / (self.cls - 1))
            truth.scatter_(1, target.unsqueeze(1), self.confidence)
        return torch.mean(torch.sum(-truth * pred, dim=self.dim))


def focal_of_targets_first(targets, logits, gamma=2.0):
    log_p = logits.log_softmax(1).gather(1, targets.unsqueeze(1)).squeeze(1)
    return ((1 - log_p.exp()).clamp(min=1e-30) ** gamma * -log_p).mean()


class WeightMovedInForward(nn.Module):
    """A plain attribute, but moved to the logits' device in forward."""

    def __init__(self, weight=None):
        super().__init__()
        self.weight = weight

    def forward(self, logits, targets):
        weight = None if self.weight is None else self.weight.to(logits.device)
        return F.cross_entropy(logits, targets, weight=weight)


class MacroF1(nn.Module):
    """A metric as a module that is called with (preds, target)."""

    def __init__(self, num_classes):
        super().__init__()
        self.num_classes = num_classes

    def forward(self, preds, target):
        counts = torch.zeros(self.num_classes, self.num_classes)
        counts.index_put_((target, preds.argmax(1)), torch.ones(()), accumulate=True)
        total = (counts.sum(0) + counts.sum(1)).clamp(min=1)
        return (2 * counts.diagonal() / total).mean()


def symmetric_ce(pred, labels, beta=0.1):
    """Cross-entropy plus reversed cross-entropy: neither a focal nor a smoothed loss."""
    reverse = -(pred.softmax(1) * F.one_hot(labels, pred.shape[1]).float().clamp(1e-4).log()).sum(1)
    return F.cross_entropy(pred, labels) + beta * reverse.mean()


def sam_loop(model, loader, criterion, optimizer, device, rho=0.05):
    model.train()
    for x, y in loader:
        criterion(model(x), y).backward()
        with torch.no_grad():
            moved = [(p, rho * p.grad) for p in model.parameters()]
            for p, step in moved:
                p.add_(step)
        optimizer.zero_grad()
        criterion(model(x), y).backward()
        with torch.no_grad():
            for p, step in moved:
                p.sub_(step)
        optimizer.step()
        optimizer.zero_grad()


def two_losses(model, loader, optimizer, accum_steps=4):
    """Sums of losses: the divisor cannot be observed, so nothing is claimed."""
    model.train()
    for i, (x, y) in enumerate(loader):
        logits = model(x)
        loss = 0.5 * F.cross_entropy(logits, y) + F.mse_loss(logits.softmax(1), F.one_hot(y, 5).float())
        (loss / accum_steps).backward()
        if (i + 1) % accum_steps == 0 or i + 1 == len(loader):
            optimizer.step()
            optimizer.zero_grad()


def example_train(args, model, device, train_loader, optimizer, epoch):
    model.train()
    for i, (data, target) in enumerate(train_loader):
        optimizer.zero_grad()
        loss = F.nll_loss(model(data.to(device)).log_softmax(1), target.to(device))
        loss.backward()
        optimizer.step()
        if i % args.log_interval == 0:
            print(loss.item())


def steps_across_epochs(model, loader, criterion, optimizer, device, accum_steps, steps=6):
    """Counts steps, not epochs: a window goes on with the images of the next epoch, so no micro-batch is lost."""
    model.train()
    batches = itertools.chain.from_iterable(itertools.repeat(loader))
    for _ in range(steps):
        window = list(itertools.islice(batches, accum_steps))
        weight = [len(y) if criterion.weight is None else criterion.weight[y].sum() for _, y in window]
        for (x, y), share in zip(window, weight, strict=True):
            (criterion(model(x), y) * (share / sum(weight))).backward()
        optimizer.step()
        optimizer.zero_grad()

"""Folds that share one model, and a softmax at the end of the network."""
# finds: folds_start_from_new_weights, model_gives_raw_logits, scheduler_is_stepped

import torch
from torch import nn
from torch.utils.data import DataLoader, Subset, TensorDataset

torch.manual_seed(0)
data = TensorDataset(torch.randn(60, 48), torch.arange(60) % 5)
model = nn.Sequential(nn.Linear(48, 5), nn.Softmax(dim=1))
criterion, optimizer = nn.CrossEntropyLoss(), torch.optim.SGD(model.parameters(), 0.1)
scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=60)

for fold in range(3):
    val = list(range(fold, 60, 3))
    train = [i for i in range(60) if i not in val]
    train_loader, val_loader = DataLoader(Subset(data, train), 8), DataLoader(Subset(data, val), 8)
    model.train()
    for x, y in train_loader:
        optimizer.zero_grad()
        criterion(model(x), y).backward()
        optimizer.step()
    scheduler.step()
    model.eval()
    with torch.no_grad():
        right = sum((model(x).argmax(1) == y).sum().item() for x, y in val_loader)
    print(right / len(val))

"""A validation part that is cut from the training part, placeholder labels, and the best model kept by reference."""
# finds: no_image_on_both_sides, validation_targets_are_labels, best_weights_are_a_copy, validation_images_come_once
# finds: imbalance_is_corrected_once, checkpoint_fits_the_model

import torch
from torch import nn
from torch.utils.data import DataLoader, Subset, TensorDataset, WeightedRandomSampler

torch.manual_seed(0)
data = TensorDataset(torch.randn(60, 48), torch.cat([torch.arange(40) % 5, torch.zeros(20, dtype=torch.long)]))
order = list(range(60))
train_set = Subset(data, order[:48])
val_set = Subset(train_set, order[40:48] * 2)
sampler = WeightedRandomSampler([1.0 + i % 3 for i in order[:48]], 48)
model = nn.Linear(48, 5)
model.load_state_dict({f"module.{key}": value for key, value in nn.Linear(48, 5).state_dict().items()}, strict=False)
criterion, optimizer = nn.CrossEntropyLoss(torch.arange(1.0, 6.0)), torch.optim.SGD(model.parameters(), 0.1)
best_loss, best_model = float("inf"), None

for _ in range(2):
    model.train()
    for x, y in DataLoader(train_set, 8, sampler=sampler):
        optimizer.zero_grad()
        criterion(model(x), y).backward()
        optimizer.step()
    model.eval()
    with torch.no_grad():
        loss = sum(criterion(model(x), y).item() for x, y in DataLoader(val_set, 8))
    if loss < best_loss:
        best_loss, best_model = loss, model

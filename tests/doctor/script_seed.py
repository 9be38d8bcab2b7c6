"""A whole script as course notes have it."""
# finds: first_step_after_a_full_window, gradient_is_a_mean, leftovers_are_used, every_validation_image_is_judged
# finds: validation_in_eval_mode, validation_without_gradients, f1_once_per_epoch
# finds: plateau_watches_in_the_right_direction
# finds: checkpoints_are_state_dicts

import os
import tempfile

import torch
from sklearn.metrics import f1_score
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

NUM_ACCUM = 4
torch.manual_seed(0)
x, y = torch.randn(120, 3, 4, 4), torch.arange(120) % 5
train_loader = DataLoader(TensorDataset(x[:88], y[:88]), batch_size=8, shuffle=True)
val_loader = DataLoader(TensorDataset(x[88:], y[88:]), batch_size=12, drop_last=True)
model = nn.Sequential(nn.Flatten(), nn.Linear(48, 16), nn.ReLU(), nn.Dropout(0.1), nn.Linear(16, 5))
criterion, optimizer = nn.CrossEntropyLoss(), torch.optim.Adam(model.parameters(), 1e-3)
scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=1)

for _ in range(2):
    model.train()
    for i, (inputs, label) in enumerate(train_loader):
        loss = criterion(model(inputs), label)
        loss.backward()
        if i % NUM_ACCUM == 0:
            optimizer.step()
            optimizer.zero_grad()
    val_f1 = 0.0
    for inputs, label in val_loader:
        output = model(inputs)
        val_f1 += f1_score(label, output.argmax(dim=1), average="macro", zero_division=0) / len(val_loader)
    scheduler.step(val_f1)
torch.save(model, os.path.join(tempfile.mkdtemp(), "best.pt"))

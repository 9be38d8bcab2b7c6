"""Training and validation functions with planted defects. `# finds:` names the checks of doctor.py."""

import torch
from sklearn.metrics import f1_score
from torch.nn.utils import clip_grad_norm_


# finds: first_step_after_a_full_window, gradient_is_a_mean, leftovers_are_used
def step_at_i_modulo_n(model, train_loader, criterion, optimizer, device, NUM_ACCUM=4):
    model.train()
    for i, (inputs, label) in enumerate(train_loader):
        loss = criterion(model(inputs.to(device)), label.to(device))
        loss.backward()
        if i % NUM_ACCUM == 0:
            optimizer.step()
            optimizer.zero_grad()


NUM_ACCUM = 4


# finds: first_step_after_a_full_window, gradient_is_a_mean, leftovers_are_used
def accum_as_a_constant(model, train_loader, criterion, optimizer, device):
    model.train()
    for i, (inputs, label) in enumerate(train_loader):
        criterion(model(inputs.to(device)), label.to(device)).backward()
        if i % NUM_ACCUM == 0:
            optimizer.step()
            optimizer.zero_grad()


# finds: gradient_is_a_mean
def no_division(model, loader, criterion, optimizer, device, accum_steps=4):
    model.train()
    for i, (x, y) in enumerate(loader):
        criterion(model(x.to(device)), y.to(device)).backward()
        if (i + 1) % accum_steps == 0 or i + 1 == len(loader):
            optimizer.step()
            optimizer.zero_grad()


# finds: leftovers_are_used, micro_batches_count_by_their_samples
def leftover_dropped(model, loader, criterion, optimizer, device, accum_steps=4):
    model.train()
    optimizer.zero_grad()
    for i, (x, y) in enumerate(loader):
        loss = criterion(model(x.to(device)), y.to(device)) / accum_steps
        loss.backward()
        if (i + 1) % accum_steps == 0:
            optimizer.step()
            optimizer.zero_grad()


# finds: short_window_is_divided_by_its_size
def always_divided_by_accum(model, loader, criterion, optimizer, device, accum_steps=4):
    model.train()
    for i, (x, y) in enumerate(loader):
        (criterion(model(x.to(device)), y.to(device)) / accum_steps).backward()
        if (i + 1) % accum_steps == 0 or i + 1 == len(loader):
            optimizer.step()
            optimizer.zero_grad()


# finds: micro_batches_count_by_their_samples
def mean_of_means(model, loader, criterion, optimizer, device, accum_steps=4):
    model.train()
    batches = list(loader)
    for start in range(0, len(batches), accum_steps):
        window = batches[start : start + accum_steps]
        for x, y in window:
            (criterion(model(x), y) / len(window)).backward()
        optimizer.step()
        optimizer.zero_grad()


# finds: accum_is_used
def accum_never_used(model, loader, criterion, optimizer, device, accum_steps=4):
    model.train()
    for x, y in loader:
        optimizer.zero_grad()
        criterion(model(x.to(device)), y.to(device)).backward()
        optimizer.step()


# finds: windows_start_from_zero
def zero_grad_forgotten(model, loader, criterion, optimizer, device):
    model.train()
    for x, y in loader:
        criterion(model(x.to(device)), y.to(device)).backward()
        optimizer.step()


# finds: gradients_reach_the_step
def zero_grad_after_backward(model, loader, criterion, optimizer, device):
    model.train()
    for x, y in loader:
        criterion(model(x.to(device)), y.to(device)).backward()
        optimizer.zero_grad()
        optimizer.step()


# finds: gradients_reach_the_step, short_window_is_divided_by_its_size
def zero_grad_in_each_micro_batch(model, loader, criterion, optimizer, device, accum_steps=4):
    model.train()
    for i, (x, y) in enumerate(loader):
        optimizer.zero_grad()
        (criterion(model(x.to(device)), y.to(device)) / accum_steps).backward()
        if (i + 1) % accum_steps == 0 or i + 1 == len(loader):
            optimizer.step()


# finds: clip_sees_the_true_gradient
def clip_before_unscale(model, loader, criterion, optimizer, device, scaler):
    model.train()
    for x, y in loader:
        optimizer.zero_grad()
        scaler.scale(criterion(model(x), y)).backward()
        clip_grad_norm_(model.parameters(), 1.0)
        scaler.step(optimizer)
        scaler.update()


# finds: clip_sees_the_true_gradient
def clip_after_the_step(model, loader, criterion, optimizer, device):
    model.train()
    for x, y in loader:
        optimizer.zero_grad()
        criterion(model(x), y).backward()
        optimizer.step()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)


# finds: clip_sees_the_true_gradient, short_window_is_divided_by_its_size
def clip_in_each_micro_batch(model, loader, criterion, optimizer, device, accum_steps=4):
    model.train()
    for i, (x, y) in enumerate(loader):
        (criterion(model(x), y) / accum_steps).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1e3)
        if (i + 1) % accum_steps == 0 or i + 1 == len(loader):
            optimizer.step()
            optimizer.zero_grad()


# finds: one_step_per_window
def both_steps(model, loader, criterion, optimizer, device, scaler):
    model.train()
    for x, y in loader:
        optimizer.zero_grad()
        scaler.scale(criterion(model(x), y)).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.step()


# finds: scheduler_waits_for_the_scaler
def schedule_ignores_the_scaler(model, loader, criterion, optimizer, device, scaler, scheduler):
    model.train()
    for x, y in loader:
        optimizer.zero_grad()
        scaler.scale(criterion(model(x), y)).backward()
        scaler.step(optimizer)
        scaler.update()
        scheduler.step()


# finds: scheduler_is_stepped
def scheduler_forgotten(model, loader, criterion, optimizer, device, scheduler, epochs=2):
    for _ in range(epochs):
        model.train()
        for x, y in loader:
            optimizer.zero_grad()
            criterion(model(x), y).backward()
            optimizer.step()


# finds: epochs_is_the_number_of_epochs
def epochs_from_1(model, loader, criterion, optimizer, device, epochs):
    for _ in range(1, epochs):
        model.train()
        for x, y in loader:
            optimizer.zero_grad()
            criterion(model(x), y).backward()
            optimizer.step()


@torch.no_grad()
def f1_of(model, loader):
    model.eval()
    true, pred = [], []
    for x, y in loader:
        true += y.tolist()
        pred += model(x).argmax(1).tolist()
    return f1_score(true, pred, average="macro", zero_division=0)


# finds: plateau_watches_in_the_right_direction
def plateau_of_f1(model, train_loader, val_loader, criterion, optimizer, epochs):
    scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=2)
    for _ in range(epochs):
        model.train()
        for x, y in train_loader:
            optimizer.zero_grad()
            criterion(model(x), y).backward()
            optimizer.step()
        val_f1 = f1_of(model, val_loader)
        scheduler.step(val_f1)


# finds: training_in_train_mode
def train_mode_once(model, train_loader, val_loader, criterion, optimizer, epochs):
    model.train()
    for _ in range(epochs):
        for x, y in train_loader:
            optimizer.zero_grad()
            criterion(model(x), y).backward()
            optimizer.step()
        f1_of(model, val_loader)


# finds: best_weights_are_a_copy
def best_by_reference(model, train_loader, val_loader, criterion, optimizer, epochs):
    best_f1, best_state = -1.0, None
    for epoch in range(epochs):
        model.train()
        for x, y in train_loader:
            optimizer.zero_grad()
            criterion(model(x), y).backward()
            optimizer.step()
        val_f1 = f1_of(model, val_loader) if epoch == 0 else 0.0
        if val_f1 > best_f1:
            best_f1, best_state = val_f1, model.state_dict()
    model.load_state_dict(best_state)
    return best_f1


# finds: f1_once_per_epoch
def train_f1_per_batch(model, loader, criterion, optimizer, device):
    model.train()
    epoch_f1 = 0.0
    for x, y in loader:
        optimizer.zero_grad()
        output = model(x)
        criterion(output, y).backward()
        optimizer.step()
        epoch_f1 += f1_score(y, output.argmax(1), average="macro", zero_division=0) / len(loader)
    return epoch_f1


# finds: f1_once_per_epoch
@torch.no_grad()
def validate_f1_per_batch(model, val_loader, device):
    model.eval()
    total = 0.0
    for x, y in val_loader:
        total += f1_score(y, model(x).argmax(1), average="macro", zero_division=0)
    return total / len(val_loader)


# finds: accuracy_divides_by_images
@torch.no_grad()
def validate_accuracy_by_steps(model, val_loader, device):
    model.eval()
    correct = 0
    for x, y in val_loader:
        correct += (model(x).argmax(1) == y).sum().item()
    return {"val_acc": correct / (val_loader.batch_size * len(val_loader))}


# finds: accuracy_divides_by_images
@torch.no_grad()
def validate_accuracy_of_batches(model, val_loader, criterion, device):
    model.eval()
    accuracy = loss = 0.0
    for x, y in val_loader:
        output = model(x)
        loss += criterion(output, y).item() * len(y) / len(val_loader.dataset)
        accuracy += (output.argmax(1) == y).float().mean().item() / len(val_loader)
    return loss, accuracy


# finds: validation_in_eval_mode
def validate_in_train_mode(model, val_loader, device):
    right = 0
    with torch.no_grad():
        for x, y in val_loader:
            right += (model(x).argmax(1) == y).sum().item()
    return right / len(val_loader.dataset)


# finds: validation_without_gradients
def validate_with_graph(model, val_loader, device):
    model.eval()
    right = 0
    for x, y in val_loader:
        right += (model(x).argmax(1) == y).sum().item()
    return right / len(val_loader.dataset)


# finds: every_validation_image_is_judged
@torch.no_grad()
def validate_all_but_the_last(model, val_loader, device):
    model.eval()
    true, pred = [], []
    for i, (x, y) in enumerate(val_loader):
        if i == len(val_loader) - 1:
            break
        true += y.tolist()
        pred += model(x).argmax(1).tolist()
    return sum(t == p for t, p in zip(true, pred, strict=True)) / len(true)

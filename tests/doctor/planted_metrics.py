"""Metrics with one planted defect each. `# finds:` names the checks of doctor.py."""

import numpy as np
import torch
from sklearn.metrics import f1_score, recall_score


# finds: score_does_not_depend_on_batches
class F1Meter:
    def __init__(self):
        self.reset()

    def reset(self):
        self.total, self.batches = 0.0, 0

    def update(self, y_true, y_pred):
        self.total += f1_score(y_true, y_pred, average="macro", zero_division=0)
        self.batches += 1

    def compute(self):
        return self.total / self.batches


# finds: reset_forgets
class F1WithoutReset:
    def __init__(self):
        self.matrix = np.zeros((5, 5))

    def reset(self):
        self.scores = []

    def update(self, y_true, y_pred):
        np.add.at(self.matrix, (y_true, y_pred), 1)

    def compute(self):
        return np.mean(2 * self.matrix.diagonal() / np.maximum(self.matrix.sum(0) + self.matrix.sum(1), 1))


# finds: f1_is_macro
def val_f1(y_true, y_pred):
    return f1_score(y_true, y_pred, average="micro")


# finds: f1_is_macro
def epoch_f1(y_true, y_pred):
    return f1_score(y_true, y_pred, average="weighted")


# finds: f1_is_macro
def f1_of_averages(y_true, y_pred):
    classes = range(5)
    precision = np.mean([np.mean(y_true[y_pred == c] == c) if (y_pred == c).any() else 0 for c in classes])
    recall = np.mean([np.mean(y_pred[y_true == c] == c) if (y_true == c).any() else 0 for c in classes])
    return 2 * precision * recall / (precision + recall)


# finds: absent_class
def f1_with_nan(preds, targets, num_classes=5):
    preds, targets = torch.as_tensor(preds), torch.as_tensor(targets)
    scores = []
    for c in range(num_classes):
        tp = ((preds == c) & (targets == c)).sum().float()
        precision, recall = tp / (preds == c).sum(), tp / (targets == c).sum()
        scores.append(2 * precision * recall / (precision + recall))
    return torch.stack(scores).mean()


# finds: gaps_in_the_class_numbers
def f1_of_the_labels_seen(y_true, y_pred):
    C = len(set(y_true.tolist()) | set(y_pred.tolist()))
    matrix = np.zeros((C, C))
    for t, p in zip(y_true, y_pred, strict=True):
        matrix[t, p] += 1
    return np.mean(2 * matrix.diagonal() / np.maximum(matrix.sum(0) + matrix.sum(1), 1))


# finds: order_of_the_arguments
def macro_recall(preds, targets):
    return recall_score(preds, targets, average="macro", zero_division=0)

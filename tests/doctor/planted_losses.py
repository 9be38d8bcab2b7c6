"""Losses with one planted defect each, as course notes carry them. `# finds:` names the checks of doctor.py."""

import torch
import torch.nn.functional as F
from torch import nn


# finds: p_t_is_unweighted
class FocalFromWeightedCE(nn.Module):
    def __init__(self, gamma=2.0, weight=None):
        super().__init__()
        self.gamma = gamma
        self.register_buffer("weight", weight)

    def forward(self, logits, targets):
        ce = F.cross_entropy(logits, targets, weight=self.weight, reduction="none")
        p_t = torch.exp(-ce)
        one = torch.ones(logits.shape[1], device=logits.device)
        loss = (1 - p_t).clamp(min=1e-30) ** self.gamma * ce
        return loss.sum() / (one if self.weight is None else self.weight)[targets].sum()


# finds: gradient_is_the_derivative
class FocalDetached(nn.Module):
    def __init__(self, gamma=2.0):
        super().__init__()
        self.gamma = gamma

    def forward(self, logits, targets):
        ce = F.cross_entropy(logits, targets, reduction="none")
        p_t = torch.exp(-ce).detach()
        return ((1 - p_t) ** self.gamma * ce).mean()


# finds: focal_factor_of_each_sample
class FocalOfTheMean(nn.Module):
    def __init__(self, gamma=2.0):
        super().__init__()
        self.gamma = gamma

    def forward(self, logits, targets):
        ce = F.cross_entropy(logits, targets)
        p_t = torch.exp(-ce)
        return (1 - p_t).clamp(min=1e-30) ** self.gamma * ce


# finds: p_t_is_unsmoothed
class SmoothFocalLoss(nn.Module):
    def __init__(self, gamma=2.0, smoothing=0.1):
        super().__init__()
        self.gamma, self.smoothing = gamma, smoothing

    def forward(self, logits, targets):
        ce = F.cross_entropy(logits, targets, label_smoothing=self.smoothing, reduction="none")
        p_t = torch.exp(-ce)
        return ((1 - p_t).clamp(min=1e-30) ** self.gamma * ce).mean()


# finds: alpha_is_not_a_scale
class FocalScalarAlpha(nn.Module):
    def __init__(self, alpha=0.25, gamma=2.0):
        super().__init__()
        self.alpha, self.gamma = alpha, gamma

    def forward(self, logits, targets):
        ce = F.cross_entropy(logits, targets, reduction="none")
        p_t = torch.exp(-ce)
        return (self.alpha * (1 - p_t).clamp(min=1e-30) ** self.gamma * ce).mean()


# finds: alpha_has_a_value_for_each_class
class FocalTwoAlphas(nn.Module):
    def __init__(self, gamma=2.0, alpha=0.25):
        super().__init__()
        self.gamma = gamma
        self.alpha = None if alpha is None else torch.tensor([alpha, 1 - alpha])

    def forward(self, logits, targets):
        ce = F.cross_entropy(logits, targets, reduction="none")
        loss = (1 - torch.exp(-ce)).clamp(min=1e-30) ** self.gamma * ce
        if self.alpha is not None:
            loss = self.alpha[targets] * loss
        return loss.mean()


# finds: weight_moves_with_the_module, finite_for_small_gamma
class FocalPlainAttribute(nn.Module):
    def __init__(self, weight=None, gamma=2.0, reduction="mean"):
        super().__init__()
        self.weight, self.gamma, self.reduction = weight, gamma, reduction

    def forward(self, input_tensor, target_tensor):
        log_prob = F.log_softmax(input_tensor, dim=-1)
        factor = (1 - torch.exp(log_prob)) ** self.gamma
        return F.nll_loss(factor * log_prob, target_tensor, weight=self.weight, reduction=self.reduction)


# finds: finite_for_extreme_logits
class LogOfSoftmax(nn.Module):
    def forward(self, logits, targets):
        p_t = F.softmax(logits, dim=1).gather(1, targets.unsqueeze(1))
        return -torch.log(p_t).mean()


# finds: returns_a_number
class FocalWithoutReturn(nn.Module):
    def __init__(self, gamma=2.0):
        super().__init__()
        self.gamma = gamma

    def forward(self, logits, targets):
        ce = F.cross_entropy(logits, targets, reduction="none")
        self.loss = ((1 - torch.exp(-ce)) ** self.gamma * ce).mean()


# finds: returns_a_number
def f1_loss_of_argmax(logits, targets):
    predictions = logits.argmax(1)
    return 1 - (predictions == targets).float().mean()


# finds: returns_a_number
def item_loss(logits, targets):
    return F.cross_entropy(logits, targets).item()


# finds: any_number_of_classes
def smoothed_loss_of_17(outputs, labels, label_eps=0.1):
    truth = F.one_hot(labels, 17) * (1 - label_eps) + label_eps / 17
    return -(truth * outputs.log_softmax(1)).sum(1).mean()


# finds: default_does_what_the_name_says
class FocalGammaZero(nn.Module):
    def __init__(self, gamma=0):
        super().__init__()
        self.gamma = gamma

    def forward(self, logits, targets):
        ce = F.cross_entropy(logits, targets, reduction="none")
        return ((1 - torch.exp(-ce)).clamp(min=1e-30) ** self.gamma * ce).mean()


# finds: default_does_what_the_name_says
class LabelSmoothingZero(nn.Module):
    def __init__(self, classes, smoothing=0.0, dim=-1):
        super().__init__()
        self.confidence, self.smoothing, self.classes, self.dim = 1.0 - smoothing, smoothing, classes, dim

    def forward(self, pred, target):
        pred = pred.log_softmax(dim=self.dim)
        with torch.no_grad():
            truth = torch.full_like(pred, self.smoothing / (self.classes - 1))
            truth.scatter_(1, target.unsqueeze(1), self.confidence)
        return torch.mean(torch.sum(-truth * pred, dim=self.dim))


# finds: smoothed_labels_sum_to_1
class LabelSmoothingThirty(nn.Module):
    def __init__(self, classes=30, smoothing=0.5, dim=-1):
        super().__init__()
        self.confidence, self.smoothing, self.classes, self.dim = 1.0 - smoothing, smoothing, classes, dim

    def forward(self, pred, target):
        pred = pred.log_softmax(dim=self.dim)
        with torch.no_grad():
            truth = torch.full_like(pred, self.smoothing / (self.classes - 1))
            truth.scatter_(1, target.unsqueeze(1), self.confidence)
        return torch.mean(torch.sum(-truth * pred, dim=self.dim))


# finds: smoothed_labels_sum_to_1
class LabelSmoothingUnnormalised(nn.Module):
    def __init__(self, smoothing=0.1):
        super().__init__()
        self.smoothing = smoothing

    def forward(self, logits, target):
        log_p = logits.log_softmax(1)
        truth = torch.full_like(log_p, self.smoothing / logits.shape[1])
        truth.scatter_(1, target.unsqueeze(1), 1 - self.smoothing)
        return -(truth * log_p).sum(1).mean()


# finds: any_number_of_classes, absent_classes_cost_nothing
class F1LossOfTwo(nn.Module):
    def __init__(self, epsilon=1e-7):
        super().__init__()
        self.epsilon = epsilon

    def forward(self, y_pred, y_true):
        truth = F.one_hot(y_true, 2).float()
        p = F.softmax(y_pred, dim=1)
        tp, fp, fn = ((a * b).sum(0) for a, b in ((truth, p), (1 - truth, p), (truth, 1 - p)))
        precision, recall = tp / (tp + fp + self.epsilon), tp / (tp + fn + self.epsilon)
        f1 = 2 * precision * recall / (precision + recall + self.epsilon)
        return 1 - f1.clamp(self.epsilon, 1 - self.epsilon).mean()


# finds: absent_classes_cost_nothing
class F1LossOverAllClasses(nn.Module):
    def forward(self, logits, targets):
        p, truth = logits.softmax(1), F.one_hot(targets, logits.shape[1]).float()
        return 1 - (2 * (truth * p).sum(0) / (truth.sum(0) + p.sum(0) + 1e-7)).mean()


# finds: batch_without_the_last_class
class OneHotGuesses(nn.Module):
    def forward(self, logits, targets):
        return -(F.one_hot(targets).float() * logits.log_softmax(1)).sum(1).mean()


# finds: raw_logits
class SoftmaxTwice(nn.Module):
    def forward(self, logits, targets):
        return F.cross_entropy(F.softmax(logits, dim=1), targets)


# finds: raw_logits
class BinaryOnSoftmax(nn.Module):
    def forward(self, logits, targets):
        truth = F.one_hot(targets, logits.shape[1]).float()
        return F.binary_cross_entropy_with_logits(logits.softmax(1), truth)


# finds: raw_logits
class ReluBeforeCE(nn.Module):
    def forward(self, logits, targets):
        return F.cross_entropy(F.relu(logits), targets)


# finds: weight_is_indexed_by_the_target
class WeightOfThePrediction(nn.Module):
    def __init__(self, weight=None):
        super().__init__()
        self.register_buffer("weight", weight)

    def forward(self, logits, targets):
        ce = F.cross_entropy(logits, targets, reduction="none")
        return ce.mean() if self.weight is None else (ce * self.weight[logits.argmax(1)]).mean()


# finds: weight_is_indexed_by_the_target
class AlphaAveraged(nn.Module):
    def __init__(self, alpha=None, gamma=2.0):
        super().__init__()
        self.alpha, self.gamma = alpha, gamma

    def forward(self, logits, targets):
        ce = F.cross_entropy(logits, targets, reduction="none")
        loss = ((1 - torch.exp(-ce)).clamp(min=1e-30) ** self.gamma * ce).mean()
        return loss if self.alpha is None else (torch.as_tensor(self.alpha).to(logits.device) * loss).mean()


# finds: weighted_mean_divides_by_the_weights
class WeightedMeanOverN(nn.Module):
    def __init__(self, weight=None):
        super().__init__()
        self.register_buffer("weight", weight)

    def forward(self, logits, targets):
        return F.cross_entropy(logits, targets, weight=self.weight, reduction="none").mean()


# finds: plain_options_give_cross_entropy
class FocalMeanOverClasses(nn.Module):
    def __init__(self, gamma=2.0):
        super().__init__()
        self.gamma = gamma

    def forward(self, logits, targets):
        log_p = logits.log_softmax(1)
        factor = (1 - log_p.exp()).clamp(min=1e-30) ** self.gamma
        return -(F.one_hot(targets, logits.shape[1]) * factor * log_p).mean()


# finds: unknown_reduction_is_an_error
class ReductionFallsThrough(nn.Module):
    def __init__(self, reduction="mean"):
        super().__init__()
        self.reduction = reduction

    def forward(self, logits, targets):
        loss = F.cross_entropy(logits, targets, reduction="none")
        if self.reduction == "mean":
            return loss.mean()
        elif self.reduction == "sum":
            return loss.sum()
        return loss


# finds: default_is_a_mean
class SumByDefault(nn.Module):
    def __init__(self, reduction="sum"):
        super().__init__()
        self.reduction = reduction

    def forward(self, logits, targets):
        return F.cross_entropy(logits, targets, reduction=self.reduction)


# finds: nothing_global_is_changed
class GlobalSwitch(nn.Module):
    def forward(self, logits, targets):
        torch.set_grad_enabled(False)
        truth = F.one_hot(targets, logits.shape[1]).float()
        torch.set_grad_enabled(True)
        return -(truth * logits.log_softmax(1)).sum(1).mean()


# finds: works_without_weights
class WeightNoneCrashes(nn.Module):
    def __init__(self, weight=None):
        super().__init__()
        self.weight = weight

    def forward(self, logits, targets):
        weight = self.weight.to(logits.device)
        return F.cross_entropy(logits, targets, weight=weight)


# finds: soft_targets
class SoftTargetsOverClasses(nn.Module):
    def forward(self, logits, targets):
        if targets.ndim == 1:
            return F.cross_entropy(logits, targets)
        return -(targets * logits.log_softmax(1)).mean()

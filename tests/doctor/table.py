"""The table of results/doctor.md: planted defects found, and correct implementations without a false alarm.

python tests/doctor/table.py > results/doctor.md
"""

import io
import re
import sys
from contextlib import redirect_stderr, redirect_stdout
from importlib.util import find_spec
from pathlib import Path

import torch

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
sys.path[:0] = [str(ROOT), str(HERE)]

import doctor  # noqa: E402

RIGHT = HERE / "right.py"
LOSSES = "losses.py:"
CORRECT = [  # target, kind, package that it needs
    *((f"losses.py:{name}", "loss", "") for name in ("CrossEntropyLoss", "FocalLoss", "LabelSmoothingLoss")),
    *((f"losses.py:{name}", "loss", "") for name in ("LabelSmoothingOthersLoss", "LabelAwareSmoothingLoss")),
    *((f"losses.py:{name}", "loss", "") for name in ("LogitAdjustmentLoss", "LDAMLoss", "F1Loss")),
    *((f"losses.py:{name}", "loss", "") for name in ("focal_loss", "label_smoothing_loss", "f1_loss", "ldam_loss")),
    *((f"losses.py:{name}", "loss", "") for name in ("cross_entropy_loss", "logit_adjustment_loss")),
    ('losses.py:build_loss("ce+f1")', "loss", ""),
    ('losses.py:build_loss("focal", gamma=1.0, weight=class_weights([50, 20, 10, 5, 5]))', "loss", ""),
    ("torch.nn:CrossEntropyLoss", "loss", ""),
    ("torch.nn:CrossEntropyLoss(weight=__import__('torch').tensor([1.0, 2, 3, 4, 5]))", "loss", ""),
    ("torch.nn:CrossEntropyLoss(label_smoothing=0.1)", "loss", ""),
    ("torch.nn:NLLLoss", "loss", ""),
    ("torch.nn.functional:cross_entropy", "loss", ""),
    ("torch.nn.functional:nll_loss", "loss", ""),
    ("torch.nn:MultiMarginLoss", "loss", ""),
    *((f"right.py:{name}", "loss", "") for name in ("SmoothingOfNotes", "focal_of_targets_first")),
    *((f"right.py:{name}", "loss", "") for name in ("WeightMovedInForward", "symmetric_ce")),
    *((f"timm.loss:{name}", "loss", "timm") for name in ("LabelSmoothingCrossEntropy", "BinaryCrossEntropy")),
    ("metrics.py:ConfusionMatrix", "metric", ""),
    ("metrics.py:f1_score", "metric", ""),
    *((f"right.py:{name}", "metric", "sklearn") for name in ("macro_f1", "leaderboard_f1", "compute_metrics")),
    ("right.py:macro_recall", "metric", "sklearn"),
    ("right.py:MacroF1", "metric", ""),
    ("sklearn.metrics:accuracy_score", "metric", "sklearn"),
    ("sklearn.metrics:balanced_accuracy_score", "metric", "sklearn"),
    ("torchmetrics.classification:MulticlassF1Score", "metric", "torchmetrics"),
    ('torchmetrics.classification:MulticlassF1Score(5, average="none")', "metric", "torchmetrics"),
    ("torchmetrics.classification:MulticlassAccuracy", "metric", "torchmetrics"),
    *((f"right.py:{name}", "loop", "") for name in ("kit_loop", "kit_loop_with_everything", "kit_validation")),
    *((f"right.py:{name}", "loop", "") for name in ("plain_loop", "sum_and_divide", "amp_loop", "validate")),
    *((f"right.py:{name}", "loop", "") for name in ("train_and_keep_the_best", "sam_loop", "example_train")),
    *((f"right.py:{name}", "loop", "") for name in ("two_losses", "steps_across_epochs")),
    *((name, "script", "") for name in ("script_right.py", "script_right_folds.py")),
]


def planted() -> list[tuple[str, set[str]]]:
    """(target, names of the checks that must find a defect) of every planted_*.py and script_*.py."""
    found = []
    for path in sorted(HERE.glob("planted_*.py")):
        text = path.read_text(encoding="utf-8")
        for keys, name in re.findall(r"^# finds: (.*)\n(?:@.*\n)*(?:class|def) (\w+)", text, re.M):
            found.append((f"{path.name}:{name}", set(keys.split(", "))))
    for path in sorted(HERE.glob("script_*.py")):
        keys = ", ".join(re.findall(r"^# finds: (.+)$", path.read_text(encoding="utf-8"), re.M))
        if keys:
            found.append((path.name, set(keys.split(", "))))
    return found


def is_missing(package: str) -> bool:
    return bool(package) and find_spec(package) is None


def examine(target: str, kind: str | None = None) -> tuple[str, str, dict[str, doctor.Finding]]:
    """doctor.examine in this process, of files of this folder or of the kit, or of modules."""
    name = target.partition(":")[0]
    folder = HERE if (HERE / name).exists() else ROOT
    target = str(folder / target) if name.endswith(".py") else target
    random_state = torch.get_rng_state()
    with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        result = doctor.examine(target, None if kind == "script" else kind)
    torch.set_rng_state(random_state)
    return result


def broken(findings: dict[str, doctor.Finding]) -> set[str]:
    return {key for key, finding in findings.items() if finding.state == "broken"}


def main() -> None:
    checks = {item.key: item for item in doctor.CHECKS}
    print("# doctor.py: planted defects, and correct implementations\n")
    print("`python tests/doctor/table.py > results/doctor.md` made this page")
    print(f"(torch {torch.__version__}). tests/test_doctor.py checks the same. doctor.py has {len(checks)} checks.\n")
    print("## Planted defects\n\n| code | found, with the numbers that show it | missed | false |\n|---|---|---|---|")
    missed = false = total = 0
    for target, expected in planted():
        _, _, findings = examine(target)
        found = broken(findings)
        cells = []
        for key in sorted(found & expected):
            id = f"{checks[key].id}: " * bool(checks[key].id)
            cells.append(id + doctor.shows(checks[key], findings[key], "en").replace("|", "\\|"))
        total, missed, false = total + len(expected), missed + len(expected - found), false + len(found - expected)
        lost, extra = (", ".join(sorted(keys)) or "-" for keys in (expected - found, found - expected))
        print(f"| `{target}` | {'<br>'.join(cells)} | {lost} | {extra} |")
    print(f"\nPlanted: {total}. Missed: {missed}. Found by a check that should not: {false}.\n")
    print("## Correct implementations\n\n| code | holds | cannot tell | false alarms |\n|---|---|---|---|")
    alarms = 0
    for target, kind, package in CORRECT:
        if is_missing(package):
            print(f"| `{target}` | {package} is not installed | | |")
            continue
        _, _, findings = examine(target, kind)
        states = [finding.state for finding in findings.values()]
        alarms += len(broken(findings))
        alarm = ", ".join(sorted(broken(findings))) or "-"
        print(f"| `{target}` | {states.count('holds')} | {states.count('unknown')} | {alarm} |")
    print(f"\nFalse alarms: {alarms}.")


if __name__ == "__main__":
    main()

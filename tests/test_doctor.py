"""doctor.py: every planted defect is found by its own check, and correct code gives no false alarm."""

import importlib.util
import inspect
import os
import signal
import string
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
import torch

import doctor

ROOT = Path(__file__).resolve().parent.parent
spec = importlib.util.spec_from_file_location("doctor_table", ROOT / "tests" / "doctor" / "table.py")
table = importlib.util.module_from_spec(spec)
spec.loader.exec_module(table)

PLANTED = table.planted()


@pytest.mark.parametrize(("target", "expected"), PLANTED, ids=[target for target, _ in PLANTED])
def test_a_planted_defect_is_found_by_its_own_check_and_by_no_other(target, expected):
    _, _, findings = table.examine(target)
    assert table.broken(findings) == expected


@pytest.mark.parametrize(("target", "kind", "package"), table.CORRECT, ids=[row[0] for row in table.CORRECT])
def test_correct_code_gives_no_false_alarm(target, kind, package):
    if table.is_missing(package):
        pytest.skip(f"{package} is not installed")
    found, _, findings = table.examine(target, kind)
    assert found == kind and not table.broken(findings)
    assert sum(finding.state == "holds" for finding in findings.values()) >= 2


# what a correct implementation proves, so that "no false alarm" is not "nothing was looked at"
PROVEN = {
    "losses.py:FocalLoss": "p_t_is_unweighted p_t_is_unsmoothed focal_factor_of_each_sample gradient_is_the_derivative",
    "losses.py:F1Loss": "absent_classes_cost_nothing any_number_of_classes batch_without_the_last_class",
    "losses.py:LabelSmoothingLoss": "smoothed_labels_sum_to_1 default_does_what_the_name_says",
    "torch.nn:CrossEntropyLoss": "weight_is_indexed_by_the_target weighted_mean_divides_by_the_weights raw_logits",
    "metrics.py:ConfusionMatrix": "score_does_not_depend_on_batches reset_forgets f1_is_macro absent_class",
    "right.py:macro_recall": "order_of_the_arguments",
    "right.py:kit_loop": "first_step_after_a_full_window gradient_is_a_mean leftovers_are_used "
    "short_window_is_divided_by_its_size micro_batches_count_by_their_samples clip_sees_the_true_gradient",
    "right.py:kit_loop_with_everything": "scheduler_waits_for_the_scaler one_step_per_window scheduler_is_stepped",
    "right.py:train_and_keep_the_best": "best_weights_are_a_copy plateau_watches_in_the_right_direction "
    "training_in_train_mode epochs_is_the_number_of_epochs",
    "right.py:validate": "f1_once_per_epoch accuracy_divides_by_images validation_in_eval_mode "
    "every_validation_image_is_judged validation_without_gradients",
    "script_right.py": "gradient_is_a_mean short_window_is_divided_by_its_size micro_batches_count_by_their_samples "
    "f1_once_per_epoch validation_in_eval_mode scheduler_is_stepped best_weights_are_a_copy",
}


@pytest.fixture(autouse=True)
def no_traces():
    """Targets are loaded in this process here. The tests of other files must not import them."""
    path, modules = list(sys.path), set(sys.modules)
    yield
    sys.path[:] = path
    for name in set(sys.modules) - modules:
        folder = Path(getattr(sys.modules[name], "__file__", None) or "").parent
        if folder == table.HERE or "pytest-" in str(folder):
            del sys.modules[name]


@pytest.mark.parametrize("target", PROVEN)
def test_checks_of_correct_code_hold_rather_than_cannot_tell(target):
    _, _, findings = table.examine(target)
    states = {key: findings[key].state for key in PROVEN[target].split()}
    assert set(states.values()) == {"holds"}, states


def test_every_check_finds_a_planted_defect():
    assert {key for _, keys in PLANTED for key in keys} == {item.key for item in doctor.CHECKS}


def test_the_results_page_is_what_the_table_says():
    page = (ROOT / "results" / "doctor.md").read_text(encoding="utf-8")
    assert "Missed: 0. Found by a check that should not: 0." in page and "False alarms: 0." in page
    for target, *_ in [*PLANTED, *table.CORRECT]:
        assert f"| `{target}` |" in page, "python tests/doctor/table.py > results/doctor.md"


def fields(template):
    return {name for _, name, _, _ in string.Formatter().parse(template) if name}


def test_both_languages_have_the_same_cases_and_numbers():
    for item in doctor.CHECKS:
        en, ko = item.texts["en"], item.texts["ko"]
        shown = [text.shows if isinstance(text.shows, dict) else {"": text.shows} for text in (en, ko)]
        assert shown[0].keys() == shown[1].keys(), item.key
        for case in shown[0]:
            assert fields(shown[0][case]) == fields(shown[1][case]), (item.key, case)
        for text in (en.title, en.fix, *shown[0].values()):
            assert text.isascii(), (item.key, text)
        assert not ko.title.isascii() and not ko.fix.isascii(), item.key
    for name, (en, ko) in doctor.REASONS.items():
        assert fields(en) == fields(ko) and en.isascii() and not ko.isascii(), name
    assert doctor.WORDS["en"].keys() == doctor.WORDS["ko"].keys()


def test_ids_are_those_of_the_list_of_pitfalls():
    lines = (ROOT / "tests" / "PITFALLS.md").read_text(encoding="utf-8").splitlines()
    ids = {line.split("|")[1].strip() for line in lines if "|" in line}
    assert {item.id for item in doctor.CHECKS} - {""} <= ids


@pytest.mark.parametrize("language", doctor.LANGUAGES)
def test_a_page_fits_into_80_columns(language):
    for target in ("planted_losses.py:F1LossOfTwo", "script_seed.py", "planted_metrics.py:macro_recall"):
        page = doctor.page(*table.examine(target), language)
        long = [line for line in page.splitlines() if doctor.columns(line) > 80 and " " in line.strip()]
        assert not long and doctor.WORDS[language]["broken"] in page


def test_numbers_are_worked_out_by_hand(tmp_path):
    """F1 of two batches: 1 and 1/3 (their mean 2/3), over all four images 11/15."""
    (tmp_path / "two_batches.py").write_text(
        textwrap.dedent("""
        import torch
        class F1:
            def __init__(self): self.reset()
            def reset(self): self.scores = []
            def update(self, preds, target):
                one = 0
                for c in range(2):
                    tp, both = ((preds == c) & (target == c)).sum(), (preds == c).sum() + (target == c).sum()
                    one += 2 * tp / both.clamp(min=1)
                self.scores.append(one / 2)
            def compute(self): return sum(self.scores) / len(self.scores)
        """)
    )
    metric = doctor.Metric(doctor.load(str(tmp_path / "two_batches.py"), "F1"), "F1")
    true, pred = torch.tensor([0, 1, 0, 1]), torch.tensor([0, 1, 0, 0])
    assert metric.score(true[:2], pred[:2], true[2:], pred[2:]) == pytest.approx((1 + 1 / 3) / 2)
    assert metric.score(true, pred) == pytest.approx(11 / 15)


def test_observing_leaves_torch_as_it_was():
    owners = [torch.Tensor, torch.optim.Optimizer, torch.utils.data.DataLoader, torch.nn.Module, torch.amp.GradScaler]
    owners += [torch.nn.utils, torch.nn.functional, torch, torch.optim.lr_scheduler.LRScheduler]
    importlib.import_module(
        "torch._dynamo"
    )  # torch does so at its first optimizer step, and replaces torch.manual_seed
    before = [dict(vars(owner)) for owner in owners]
    table.examine("right.py:kit_loop_with_everything")
    table.examine("script_folds.py")
    assert [dict(vars(owner)) for owner in owners] == before
    module = torch.nn.modules.module
    assert not module._global_forward_pre_hooks and not module._global_forward_hooks


HOSTILE = '''
"""Code that misbehaves."""
import os, time
import torch
import torch.nn.functional as F
print("a user's print")
class Loss(torch.nn.Module):
    def forward(self, logits, targets):
        return F.cross_entropy(logits.softmax(1), targets)
def slow_loss(logits, targets):
    time.sleep(600)
def exits_loss(logits, targets):
    os._exit(0)
def needs_loss(logits, targets, spell): pass
def train(model, loader, optimizer):
    raise RuntimeError("of the user")
def odd(a): pass
good = torch.nn.CrossEntropyLoss()
'''


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("doctor")
    (folder / "bad.py").write_text(HOSTILE)
    (folder / "syntax.py").write_text("def f(:\n")
    (folder / "script.py").write_text("import sys\nprint(sys.argv)\nsys.exit(len(sys.argv))\n")
    return folder


def test_a_defect_is_exit_code_1_and_outweighs_bad_input_of_another_target(folder):
    command = [sys.executable, str(ROOT / "doctor.py"), "nothing.py:f", "bad.py:Loss", "--lang", "ko"]
    environment = os.environ | {"PYTHONUTF8": "1"}
    done = subprocess.run(command, cwd=folder, capture_output=True, encoding="utf-8", env=environment)
    assert done.returncode == 1 and "별도 프로세스에서 실행: bad.py:Loss" in done.stdout
    assert "결함" in done.stdout and "수정: " in done.stdout and "a user's print" not in done.stdout
    assert done.stderr.startswith("doctor.py: error: nothing.py: no such file")
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["syntax.py:f"], "SyntaxError"),
        (["nothing.py:f"], "nothing.py: no such file"),
        (["bad.py:"], "nothing after the colon"),
        (["bad.py:needs_loss"], "needs_loss: do not know a value for its parameter 'spell'"),
        (["bad.py:train"], "line 16: RuntimeError: of the user"),
        (["bad.py:odd"], "cannot guess what it is. Give --kind"),
        (["bad.py:nothing"], "name 'nothing' is not defined. The file has: Loss, slow_loss"),
        (["script.py", "--", "--epochs", "1"], "script.py: ended with exit code 3"),
        (["bad.py:good", "--accum", "0"], "--accum must be >= 1, got 0"),
        (["bad.py:good", "--time-limit", "nan"], "--time-limit must be > 0 seconds, got nan"),
        (["bad.py:good", "--kind", "script"], "--kind script does not fit bad.py:good"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(words, part, folder, monkeypatch, capsys):
    def in_this_process(request, limit):
        messages = []
        try:
            doctor.examine(**request, tell=messages.append)
        except doctor.BadInput as error:
            messages.append({"error": str(error)})
        return messages

    monkeypatch.chdir(folder)
    monkeypatch.setattr(doctor, "launch", in_this_process)
    assert doctor.main(words) == 2
    error = capsys.readouterr().err
    assert part in error and error.startswith("doctor.py: error: ") and len(error.splitlines()) == 1


def test_code_that_does_not_end_or_ends_the_process_is_exit_code_2(folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    assert doctor.main(["bad.py:slow_loss", "--time-limit", "3"]) == 2
    assert doctor.main(["bad.py:exits_loss"]) == 2
    slow, exits = capsys.readouterr().err.splitlines()
    assert "--time-limit: bad.py:slow_loss was not done after 3 s" in slow
    assert "the subprocess ended with exit code 0" in exits


def test_a_script_that_does_not_end_is_judged_by_what_was_observed(folder, monkeypatch):
    text = (ROOT / "tests" / "doctor" / "script_seed.py").read_text(encoding="utf-8")
    text = text.replace("range(2)", "iter(int, 1)").replace("scheduler.step(val_f1)", "")
    (folder / "endless.py").write_text(text)
    monkeypatch.chdir(folder)
    table.examine("script_right.py")  # imports of scikit-learn and of optimizers take longer than these two seconds
    kind, about, findings = doctor.examine("endless.py", deadline=time.time() + 2)
    assert kind == "script" and about[0].endswith("stopped at the time limit")
    found = {"first_step_after_a_full_window", "gradient_is_a_mean", "leftovers_are_used"}
    found |= {"every_validation_image_is_judged", "validation_in_eval_mode", "validation_without_gradients"}
    assert table.broken(findings) == found | {"f1_once_per_epoch"}
    assert findings["scheduler_is_stepped"].reason == "cut"
    text = (ROOT / "tests" / "doctor" / "script_right.py").read_text(encoding="utf-8")
    (folder / "endless.py").write_text(text.replace("range(2)", "iter(int, 1)"))
    _, _, findings = doctor.examine("endless.py", deadline=time.time() + 2)
    assert not table.broken(findings) and findings["gradient_is_a_mean"].state == "holds"
    with pytest.raises(doctor.BadInput, match="before the time limit"):
        doctor.examine("endless.py", deadline=time.time() - 1)


def test_a_script_is_stopped_at_the_time_limit_also_in_a_process_that_ignores_ctrl_c(folder, monkeypatch):
    """As in the background of a shell. Without its own handler the script would go on to its own end, after 20 s."""
    text = (ROOT / "tests" / "doctor" / "script_right.py").read_text(encoding="utf-8")
    monkeypatch.chdir(folder)
    table.examine("script_right.py")  # imports
    start = time.time()
    (folder / "long.py").write_text(
        text.replace("range(2)", f"iter(lambda: __import__('time').time() > {start + 20}, True)")
    )
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        script = doctor.run_script("long.py", [], None, start + 2)
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)
    assert script.observer.is_cut and time.time() - start < 15


def test_nothing_to_find_is_exit_code_0_and_the_page_says_that_it_executes(capsys):
    assert doctor.main(["torch.nn:CrossEntropyLoss"]) == 0
    out, err = capsys.readouterr()
    assert out.startswith("Executing torch.nn:CrossEntropyLoss in a subprocess") and "0 broken" in out and not err
    assert "EXECUTES the file" in doctor.__doc__
    assert "The file is executed" in " ".join(doctor.make_parser().format_help().split())


def test_what_was_found_before_the_time_limit_is_kept(tmp_path, monkeypatch, capsys):
    kept = {"check": "raw_logits", "state": "broken", "numbers": {"yours": 0.9048}, "case": "softmax", "reason": ""}
    messages = [{"kind": "loss", "about": ["called", "호출"]}, kept, {"late": True}]
    monkeypatch.setattr(doctor, "launch", lambda request, limit: messages)
    (tmp_path / "a.py").write_text("")
    assert doctor.main([f"{tmp_path / 'a.py'}:f"]) == 1
    out = capsys.readouterr().out
    assert "costs 0.9048, whatever the logits" in out and "the time limit was reached" in out


def test_functions_of_checks_say_what_they_return():
    for item in doctor.CHECKS:
        assert inspect.signature(item.function).return_annotation == "Finding", item.key

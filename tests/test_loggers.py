"""loggers.py: the same numbers as log.csv, and no failure of a logger ends the run."""

import csv
import sys
import types

import numpy as np
import pytest
from PIL import Image

import loggers
import train

ROWS = [{"epoch": e, "val_f1": 0.1 * e, "lr": 1e-3 / e} for e in (1, 2, 3)]
CONFIG = {"started": "2026-01-01 00:00:00", "options": {"lr": 1e-3}}


def scalars(folder):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def small_data(folder):
    rng = np.random.default_rng(0)
    for i in range(48):
        file = folder / "ab"[i % 2] / f"{i}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(file)
    return folder


def run(tmp_path, *more, epochs=2):
    flags = ["--data", str(small_data(tmp_path / "data")), *"--size 16 --model resnet8 --batch-size 8".split()]
    out = tmp_path / "run"
    train.main([*flags, "--epochs", str(epochs), "--cache", str(tmp_path / "cache"), "--out", str(out), *more])
    return out


def test_tensorboard_has_the_numbers_of_log_csv(tmp_path):
    out = run(tmp_path, "--tensorboard")
    with open(out / "log.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    found = scalars(out)
    assert set(found) == set(rows[0]) - {"epoch"}
    for key, values in found.items():
        expected = [(int(row["epoch"]), np.float32(row[key])) for row in rows]
        assert values == [(step, pytest.approx(value, nan_ok=True)) for step, value in expected]


def test_after_a_resume_every_epoch_is_there_once(tmp_path):
    for upto in (2, 3):  # killed after the row of epoch 2 was sent, and resumed after epoch 1
        log = loggers.Loggers(tmp_path, CONFIG, ROWS[: upto - 2], tensorboard=True, wandb=None)
        for row in ROWS[upto - 2 : upto]:
            log.row(row)
        log.close()
    assert [step for step, _ in scalars(tmp_path)["val_f1"]] == [1, 2, 3]


class FakeRun:
    def __init__(self, step=0):
        self.step, self.sent, self.finished = step, [], False

    def log(self, values, step):
        self.sent.append((step, values))

    def finish(self):
        self.finished = True


def fake_wandb(monkeypatch, login=True, init=None, step=0):
    fake, started = types.ModuleType("wandb"), FakeRun(step)
    fake.asked = []
    fake.login = login if callable(login) else lambda prompt: login
    fake.Settings = lambda **options: options
    fake.init = init or (lambda **options: fake.asked.append(options) or started)
    monkeypatch.setitem(sys.modules, "wandb", fake)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    return fake, started


def test_wandb_gets_the_same_numbers_at_the_same_steps(tmp_path, monkeypatch, capsys):
    fake, started = fake_wandb(monkeypatch)
    out = run(tmp_path, "--wandb", "my-project")
    with open(out / "log.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert fake.asked[0]["project"] == "my-project" and fake.asked[0]["config"]["options"]["epochs"] == 2
    assert [step for step, _ in started.sent] == [1, 2] and started.finished
    for (_, values), row in zip(started.sent, rows, strict=True):
        assert values == pytest.approx({key: float(value) for key, value in row.items() if key != "epoch"}, nan_ok=True)
    assert "note: --wandb" not in capsys.readouterr().err


def test_a_resumed_wandb_run_has_the_same_id_and_gets_only_what_it_lacks(tmp_path, monkeypatch):
    ids = []
    for step in (0, 3):
        fake, started = fake_wandb(monkeypatch, step=step)
        loggers.Loggers(tmp_path, CONFIG, ROWS, tensorboard=False, wandb="p").close()
        ids.append(fake.asked[0]["id"])
    assert ids[0] == ids[1] and [step for step, _ in started.sent] == [3]
    loggers.Loggers(tmp_path, CONFIG | {"started": "later"}, [], tensorboard=False, wandb="p")
    assert fake.asked[1]["id"] != ids[0]


def refuse(*arguments, **options):
    raise RuntimeError("no such host\nmore lines")


@pytest.mark.parametrize(
    "how, message",
    [
        (dict(login=False), "not logged in to W&B"),
        (dict(login=refuse), "no such host; the run continues"),
        (dict(init=refuse), "no such host; the run continues"),
    ],
)
def test_no_login_or_no_network_is_one_line_and_the_run_goes_on(tmp_path, monkeypatch, capsys, how, message):
    fake_wandb(monkeypatch, **how)
    out = run(tmp_path, "--wandb", "p", epochs=1)
    lines = [line for line in capsys.readouterr().err.splitlines() if "--wandb" in line]
    assert len(lines) == 1 and message in lines[0] and (out / "report.html").exists()


@pytest.mark.parametrize("flag, package", [("--wandb=p", "wandb"), ("--tensorboard", "tensorboard")])
def test_a_missing_package_is_one_line_that_says_how_to_get_it(tmp_path, monkeypatch, capsys, flag, package):
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.delitem(sys.modules, "torch.utils.tensorboard", raising=False)
    out = run(tmp_path, flag, epochs=1)
    lines = [line for line in capsys.readouterr().err.splitlines() if "note:" in line]
    assert len(lines) == 1 and f"pip install {package}" in lines[0] and (out / "report.html").exists()


def test_what_fails_in_the_middle_is_dropped_once_and_the_other_goes_on(tmp_path, monkeypatch, capsys):
    _, started = fake_wandb(monkeypatch)
    log = loggers.Loggers(tmp_path, CONFIG, ROWS[:1], tensorboard=True, wandb="p")
    started.log = refuse
    for row in ROWS[1:]:
        log.row(row)
    log.close()
    assert capsys.readouterr().err.count("note: --wandb: no such host") == 1
    assert [step for step, _ in scalars(tmp_path)["val_f1"]] == [1, 2, 3]


def test_without_the_flags_neither_is_imported(tmp_path, monkeypatch):
    for package in ("wandb", "tensorboard", "torch.utils.tensorboard"):
        monkeypatch.setitem(sys.modules, package, None)  # importing them would fail
    loggers.Loggers(tmp_path, CONFIG, ROWS, tensorboard=False, wandb=None).close()
    assert list(tmp_path.iterdir()) == []

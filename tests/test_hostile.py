"""A run folder from a stranger: no program executes anything that it names, or writes outside of it for it."""

import json
import os
import pickle
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import checkpoint
import cli
import compare
import predict
import report
import runs
import train

EVIL = """
from pathlib import Path
Path("executed").write_text("")
import torch
def f(n, *more):
    return torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(3, n))
def g(image, rng):
    return image
"""
PLACES = ("outside.png", "cache-outside", "out-outside")  # that the config names


class Boom:
    def __reduce__(self):
        return os.system, ("touch executed",)


@pytest.fixture
def here(tmp_path, monkeypatch):
    """Images, evil.py, and a home folder, so that the default cache is inside."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    rng = np.random.default_rng(0)
    for i in range(24):
        file = Path("d", "ab"[i % 2], f"{i}.png")
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(file)
    Path("evil.py").write_text(EVIL)
    return tmp_path


def train_run(out="run", *more):
    words = "--data d --size 16 --model resnet8 --epochs 2 --batch-size 8 --threads 1 --scheduler none".split()
    return train.main([*words, "--out", str(out), *more])


def change(folder, **options):
    """Changes options in a config.json."""
    file = Path(folder, "config.json")
    config = json.loads(file.read_text())
    config["options"] |= options
    file.write_text(json.dumps(config))


def hostile(folder="run"):
    """A real run whose files are then changed by a stranger."""
    train_run(folder)
    change(folder, model="evil.py:f", transform="evil.py:g", preview=PLACES[0], cache=PLACES[1], out=PLACES[2])
    for name in ("best_f1.pt", "best_loss.pt", "last.pt", "last.previous.pt"):
        saved = checkpoint.load(Path(folder, name)) | {"model_name": "evil.py:f"}
        checkpoint.save(Path(folder, name), saved)
    return folder


def pickled(folder="run"):
    """A run whose binary files execute a command if they are unpickled."""
    train_run(folder)
    for path in Path(folder).glob("*.sha256"):
        path.unlink()
    for name in ("best_f1.pt", "best_loss.pt"):
        torch.save({"model": Boom()}, Path(folder, name))
    for name in ("last.pt", "last.previous.pt"):
        Path(folder, name).write_bytes(pickle.dumps(Boom()))
    objects = np.array([Boom()], dtype=object)
    np.savez(Path(folder, "val_probs.npz"), paths=objects, targets=objects, probs=objects)
    return folder


def nothing_happened():
    return not Path("executed").exists() and not any(map(os.path.lexists, PLACES))


def refused(capsys, program, *words):
    """The last line of an error, with exit code 2."""
    with pytest.raises(SystemExit) as stop:
        program.main([str(word) for word in words])
    assert stop.value.code == 2
    return capsys.readouterr().err.strip().splitlines()[-1]


def test_E1_resume_refuses_a_file_that_was_not_typed_and_shows_the_command(here, capsys):
    hostile()
    line = refused(capsys, train, "--resume", "run", "--epochs", 3)
    command = "python train.py --resume run --epochs 3 --model evil.py:f --transform evil.py:g"
    assert line.endswith(f"If you trust the file: {command}")
    assert "evil.py:f" in refused(capsys, train, "--resume", "run", "--model", "resnet8")
    line = refused(capsys, train, "--resume", "run", "--model", "evil.py:f")
    assert line.endswith("python train.py --resume run --model evil.py:f --transform evil.py:g")
    assert nothing_happened()
    with pytest.raises(SystemExit):  # the control: what was typed is executed. Its last.pt is of a different network
        train.main(command.split()[2:])
    assert Path("executed").exists() and not any(map(os.path.lexists, PLACES))


def test_E1_the_same_file_may_be_typed_in_a_different_way(here, capsys):
    train_run("own", "--model", "evil.py:f")
    for name in (f"{here}/evil.py:f", "./evil.py:f"):
        assert cli.parse_options(["--resume", "own", "--model", name]).model == name
    assert "cannot change --model" in refused(capsys, train, "--resume", "own", "--model", "evil.py:g")
    shutil.copy("evil.py", "other.py")
    assert "cannot change --model" in refused(capsys, train, "--resume", "own", "--model", "other.py:f")


def test_E1_a_resumed_run_writes_nowhere_but_in_its_folder_and_the_cache(here, capsys):
    train_run()
    change("run", preview=PLACES[0], cache=PLACES[1], out=PLACES[2], wandb="strangers-project", other={"a": [1]})
    before = set(here.iterdir())
    train.main(["--resume", "run", "--epochs", "3"])
    options = runs.read("run").options
    assert set(here.iterdir()) == before and nothing_happened() and len(runs.read("run").log) == 3
    assert (options["preview"], options["out"], options["wandb"]) == (None, "run", None)
    note = [line for line in capsys.readouterr().err.splitlines() if line.startswith("note: ")]
    cache = here / "home" / ".cache" / "f1kit"
    what = "note: --cache 'cache-outside', --wandb 'strangers-project' of this run must be typed"
    assert note == [f"{what} again to be used. Images are cached in {cache}"]
    change("run", cache=PLACES[1])
    train.main(["--resume", "run", "--cache", PLACES[1]])  # the control: typed again, it is used without a note
    assert Path(PLACES[1], "images").is_dir() and "note:" not in capsys.readouterr().err
    cli.parse_options(["--resume", "run", "--cache", "new"])  # nothing is missing: a different one was typed
    assert "note:" not in capsys.readouterr().err


def test_E1_the_command_to_train_longer_has_what_must_be_typed_again(here, capsys):
    train_run("own", "--model", "evil.py:f", "--cache", "mine")
    again = ["--resume", "own", "--model", "evil.py:f", "--cache", "mine"]
    train.main(again)
    command = capsys.readouterr().out.partition("To train longer: ")[2].partition("\n")[0]
    assert command.split() == ["python", "train.py", *again, "--epochs", "4"]


@pytest.mark.parametrize("link", ["fold0", "tensorboard", "fold1/wandb", "updates.csv"])
def test_E1_links_in_a_run_folder_are_not_followed(here, capsys, link):
    folder = train_run()["out"]
    Path("elsewhere").mkdir()
    path = Path(folder, link)
    path.parent.mkdir(exist_ok=True)
    if link == "updates.csv":
        path.unlink()
        path.symlink_to(here / "victim")
        with pytest.raises(runs.BadInput, match="updates.csv is a link, but a run writes only in its folder"):
            runs.append_updates(Path(folder), 1, 1, [[0.0, 0.0, 0.0]])
        assert not Path("victim").exists()
        return
    path.symlink_to(here / "elsewhere")
    assert f"--resume: {path} is a link, but a run writes only in its folder" in refused(
        capsys, train, "--resume", folder
    )
    assert not Path(folder, ".lock").exists()


@pytest.mark.parametrize(
    "options, said",
    [
        ({"epochs": "5"}, "run/config.json is damaged: epochs must be of type int"),
        ({"size": "x"}, "its options are not valid: argument --size: invalid int value: 'x'"),
        ({"size": ["16", "--preview=outside.png"]}, "its options are not valid: argument --size: invalid int value"),
        ({"size": [16, 16, 16]}, "its options are not valid: --size must be one side"),
        ({"batch_size": 1.5}, "its options are not valid: argument --batch-size: invalid int value: '1.5'"),
        ({"batch_size": -1}, "its options are not valid: --batch-size must be at least 1, got -1"),
        ({"lr": [1]}, "its options are not valid: argument --lr: invalid float value: '[1]'"),
        ({"lr": float("nan")}, "its options are not valid: --lr must be greater than 0, got nan"),
        ({"seed": 10**40}, "its options are not valid: --seed must be less than 2^63"),
        ({"optimizer": ["sgd"]}, "its options are not valid: argument --optimizer: invalid choice"),
        ({"tensorboard": "yes"}, "its options are not valid: argument --tensorboard: ignored explicit argument"),
        ({"data": "d\0"}, "its options are not valid: '--data=d\\x00' has control characters"),
        ({"transform": "\x1b[2Jevil.py:g"}, "its options are not valid: '--transform=\\x1b[2Jevil.py:g' has control"),
        ({"group_regex": "("}, "its options are not valid: --group-regex '(' is not a valid regular expression"),
    ],
)
def test_E1_options_of_a_config_are_checked_like_typed_ones(here, capsys, make_run, options, said):
    make_run(Path("run"), np.eye(3, dtype=np.float32), np.arange(3))
    change("run", **options)
    line = refused(capsys, train, "--resume", "run")
    assert line.startswith("train.py: error: --resume: run/config.json") and said in line


@pytest.mark.parametrize(
    "entry",
    [
        {"options": []},
        {"classes": "abc"},
        {"classes": [1, 2]},
        {"data": 5},
        {"versions": None},
        {"notes": [5]},
        {"warnings": 5},
        {"warnings": [{"a": 1}]},
        {"train_counts": ["a"] * 3},
        {"drawn_counts": [1]},
        {"options": {"epochs": 1, "model": 5}},
    ],
)
def test_E1_a_config_with_wrong_types_is_one_line_in_every_program(here, capsys, make_run, entry):
    folder = make_run(Path("cmp", "loss=ce", "seed0"), np.eye(3, dtype=np.float32), np.arange(3))
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | entry))
    for program, words in (
        (train, ["--resume", folder]),
        (report, [folder]),
        (compare, ["--vary", "loss=ce", "--seeds", "0", "--out", "cmp"]),
    ):
        assert f"{file} is damaged" in refused(capsys, program, *words)


def test_E1_a_config_nested_too_deeply_and_folds_that_are_links_to_their_run_end(here, make_run):
    folder = make_run(Path("run"), np.eye(3, dtype=np.float32), np.arange(3))
    for f in range(3):
        (folder / f"fold{f}").symlink_to(".")  # read recursively, this would be 3^40 runs
    assert [len(fold.folds) for fold in runs.read(folder).folds] == [0, 0, 0]
    (folder / "config.json").write_text("[" * 100_000)
    with pytest.raises(runs.BadInput, match="config.json is damaged"):
        runs.read(folder)


@pytest.mark.parametrize("make", [hostile, pickled])
def test_E1_report_compare_and_runs_execute_nothing(here, capsys, make):
    folder = make(Path("cmp", "loss=ce", "seed0"))
    capsys.readouterr()
    before = set(here.iterdir())
    if make is hostile:
        report.main([str(folder)])
    else:
        assert "val_probs.npz is damaged" in refused(capsys, report, folder)
        with pytest.raises(runs.BadInput, match="val_probs.npz is damaged"):
            assert runs.read(folder).predictions
    said = {hostile: "contains a run with --model evil.py:f", pickled: "val_probs.npz is damaged"}[make]
    shared = "--data d --size 16 --model resnet8 --epochs 2 --batch-size 8 --threads 1 --scheduler none".split()
    assert said in refused(capsys, compare, "--vary", "loss=ce", "--seeds", "0", "--out", "cmp", "--", *shared)
    assert nothing_happened() and set(here.iterdir()) == before


def test_E1_compare_types_again_what_a_config_may_not_decide(here, capsys):
    words = ["--vary", "loss=ce", "--seeds", "0", "--out", "cmp", "--", "--cache", "c", "--model", "evil.py:f"]
    job = compare.make_combinations([("loss", ["ce"])], [0], "cmp", words[7:])[0].jobs[0]
    again = compare.arguments_again(job)
    assert again[again.index("--model") + 1] == "evil.py:f" and again[again.index("--cache") + 1] == "c"


def test_E1_pickles_are_not_executed_by_train_and_checkpoint(here, capsys):
    pickled()
    assert "last.previous.pt is not a readable checkpoint" in refused(capsys, train, "--resume", "run", "--epochs", 3)
    assert nothing_happened()
    objects = zipfile.ZipFile("run/val_probs.npz").read("probs.npy")  # the control: these files would execute it
    pickle.loads(objects[objects.index(b"\n") + 1 :])
    assert not nothing_happened()


@pytest.mark.parametrize("make", [hostile, pickled])
def test_E1_predict_executes_nothing(here, capsys, make):
    folder = make()
    before = set(here.iterdir())
    for words in ([folder], [f"{folder}/best_loss.pt"], [folder, "--tta", "flip"]):
        line = refused(capsys, predict, *words, "--data", "d/a")
        assert "best_" in line
    assert nothing_happened() and set(here.iterdir()) == before


def test_E1_predictions_that_do_not_fit_are_one_line(here, make_run):
    folder = make_run(Path("run"), np.eye(3, dtype=np.float32), np.arange(3))
    good = dict(np.load(folder / "val_probs.npz"))
    wrong = [{"targets": np.array([0, 1, 9])}, {"probs": good["probs"][:2]}, {"paths": np.arange(3)}]
    for entry in [*wrong, {"probs": np.ones((3, 2), np.float32), "targets": np.zeros(3, np.int64)}]:
        np.savez(folder / "val_probs.npz", **good | entry)
        with pytest.raises(runs.BadInput, match="val_probs.npz is damaged"):
            assert runs.read(folder).predictions
    np.savez(folder / "val_probs.npz", **good)
    assert runs.read(folder).predictions.probs.shape == (3, 3)

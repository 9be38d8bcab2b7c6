"""cli.py: what is typed, and what is printed: widths, escapes, fonts, time left, notes."""

import contextlib
import io
import json
import os
import re
import runpy
import subprocess
import sys
import unicodedata
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import image_folder
from PIL import Image, ImageFont
from test_train import base_words, refused, run, start

import augment
import cli
import compare
import data
import demo
import inputs
import labels
import losses
import predict
import report
import runs
import screen
import train

ROOT = Path(__file__).resolve().parent.parent
HOSTILE = "cat\x1b[31m\x07\u202egnp"


class Terminal(io.StringIO):
    def isatty(self):
        return True


def on_terminal(monkeypatch, width=80):
    """A stdout that is a terminal of this width, without colours."""
    for name, value in {"COLUMNS": str(width), "NO_COLOR": "1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "stdout", Terminal())
    return sys.stdout


# --- what is typed ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "main, words, said",
    [
        (train.main, ["--batchsize", "32"], "train.py: error: unknown option --batchsize: did you mean --batch-size?"),
        (train.main, ["--learning-rat=3"], "train.py: error: unknown option --learning-rat: "),
        (train.main, ["-epochs", "3"], "unknown option -epochs: did you mean --epochs?"),
        (train.main, ["--zzzz"], "unknown option --zzzz: --help lists the options"),
        (predict.main, ["r", "--data", "d", "--batchsize", "3"], "predict.py: error: unknown option --batchsize: "),
        (compare.main, ["--very", "lr=1"], "compare.py: error: unknown option --very: did you mean --vary?"),
        (report.main, ["r", "--oot", "x"], "report.py: error: unknown option --oot: did you mean --out?"),
    ],
)  # fmt: skip
def test_B7_an_unknown_option_names_the_nearest(capsys, main, words, said):
    with pytest.raises(SystemExit) as stop:
        main(words)
    assert stop.value.code == 2 and said in capsys.readouterr().err.strip().splitlines()[-1]


@pytest.mark.parametrize(
    "flag", ["--batch-size", "--threads", "--epochs", "--save-every", "--size", "--t-mult", "--seed"]
)
def test_E9_2_to_the_70_is_one_line(capsys, flag):
    said = refused(capsys, flag, 2**70)
    assert said.startswith(f"train.py: error: {flag} must be") and str(2**70) in said
    with pytest.raises(SystemExit):
        predict.parse_options(["r", "--data", "d", "--batch-size", str(2**70)])
    assert "--batch-size must be at most" in capsys.readouterr().err


def test_E9_9999_threads_are_one_line(capsys):
    assert refused(capsys, "--threads", 9999) == "train.py: error: --threads must be at most 1024, got 9999"


@pytest.mark.parametrize("flag", ["--only", "--model", "--data", "--csv", "--resume", "--out", "--group-regex"])
def test_E9_empty_text_is_one_line(capsys, flag):
    assert refused(capsys, flag, "") == f"train.py: error: {flag} is empty: give a value, or leave out this option"


def test_an_option_and_a_column_are_named_by_their_own_flag(workspace, capsys):  # noqa: F811
    Path("t.csv").write_text(
        "file,label,fold\n" + "".join(f"class{i % 2}/{i // 2:02}.png,{i % 2},{i % 2}\n" for i in range(8))
    )
    words = [*base_words(), "--csv", "t.csv", "--out", "no"]
    assert "error: --label-col: t.csv has no column 'nope'" in refused(capsys, *words, "--label-col", "nope")
    assert "error: --fold-col: " in refused(capsys, *words)
    assert "error: --group-col: image folder d has no CSV" in refused(capsys, *base_words(), "--group-col", "who")


def test_the_help_of_every_program_fits_80_columns_and_train_begins_with_ten_options(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "80")
    for program in (train, predict, compare, report, labels, demo, augment):
        monkeypatch.setattr(sys, "argv", [f"{program.__name__}.py", "--help"])
        with pytest.raises(SystemExit) as error:
            program.main()
        text = capsys.readouterr().out
        assert not error.value.code and text and max(map(len, text.splitlines())) <= 80, program
    first = next(group for group in cli.make_parser()._action_groups if group._group_actions)
    names = [action.dest for action in first._group_actions]
    assert names == "data csv model weights size epochs batch_size lr loss resume".split()


# --- what is printed --------------------------------------------------------------------------------------------------


def test_E9_control_characters_and_direction_marks_become_escapes():
    assert cli.printable(HOSTILE + "\r\t\x9b\udcb0") == r"cat\x1b[31m\x07\u202egnp\r\t\x9b\udcb0"
    assert cli.printable("고양이 é 🐱\n  cat's") == "고양이 é 🐱\n  cat's"  # everything else is kept


def test_E9_a_class_with_control_characters_goes_raw_to_no_terminal(workspace, capsys, monkeypatch):  # noqa: F811
    Path("d/class0").rename(Path("d") / HOSTILE)
    start("--epochs", 1)
    for main, words in [
        (predict.main, ["run", "--data", "d", "--answers", "a.csv"]),
        (report.main, ["run"]),
        (compare.main, ["--vary", "lr=1", "--out", f"{HOSTILE}/x", "--", "--data", "nowhere"]),
    ]:
        if main is predict.main:
            files = sorted(str(path) for path in Path("d").rglob("*.png"))
            rows = [f"{Path(file).relative_to('d')},{Path(file).parent.name}" for file in files]
            Path("a.csv").write_text("\n".join(["ID,label", *rows]), encoding="utf-8")
        with pytest.raises(SystemExit) if main is compare.main else torch.no_grad():
            main(words)
    for program in ("data", "leaks", "pixels", "runs", "checkpoint"):
        argument = {"runs": "run", "checkpoint": "run/best_f1.pt"}.get(program, "d")
        monkeypatch.setattr(sys, "argv", [f"{program}.py", argument])
        with contextlib.suppress(SystemExit):
            runpy.run_path(str(ROOT / f"{program}.py"), run_name="__main__")
    said = "".join(capsys.readouterr())
    assert r"cat\x1b[31m\x07" in said
    assert not set(said) & {"\x1b", "\x07", "\u202e"}


@pytest.mark.parametrize(
    "flag, value", [("--data", "x" * 100_000), ("--augment", "y" * 100_000), ("--" + "z" * 9999, "3")]
)
def test_E9_an_error_line_is_cut_and_keeps_its_ends(capsys, flag, value):
    said = refused(capsys, flag, value)
    assert len(said) < 620 and said.startswith("train.py: error: ") and " ... " in said
    assert said.endswith(
        ("nor the name of a torchvision data set", "document)", "lists the options", "such as crop+cutout", "xxx'")
    )
    assert cli.printable("a" * 600) == "a" * 600  # negative control: what fits is not cut
    assert len(cli.printable("\n" * 100_000)) < 200


def test_lines_are_wrapped_for_a_terminal_and_whole_in_a_pipe(monkeypatch):
    text = "고양이 " * 30 + "end\n  " + "b" * 90
    assert cli.wrapped(text, 9) == text
    on_terminal(monkeypatch)
    first, *others, path = cli.wrapped(text, 9).split("\n")
    assert cli.columns(first) + 9 <= 80 and all(line.startswith(" " * 9) and cli.columns(line) < 80 for line in others)
    assert path.strip() == "b" * 90  # a word, such as a path, is never broken
    assert cli.columns("고a") == 3 and cli.columns(unicodedata.normalize("NFD", "é")) == 1


def test_D2_a_run_fits_80_columns(workspace, monkeypatch):  # noqa: F811
    monkeypatch.setattr(losses.CrossEntropyLoss, "__repr__", lambda self: "a loss with many settings, " * 5)
    terminal = on_terminal(monkeypatch)
    run(epochs=1)
    lines = terminal.getvalue().splitlines()
    assert max(cli.columns(line) for line in lines) <= 80
    assert sum(line.startswith(" " * 9 + "settings") or line.startswith(" " * 9) for line in lines) > 1
    row = dict.fromkeys(runs.LOG_COLUMNS, 1e9) | {"epoch": 99999, "val_f1": 0.5, "val_accuracy": 0.5}
    monkeypatch.setattr(sys, "stdout", Terminal())
    screen.print_row(row, True, "99:59:59")
    printed = sys.stdout.getvalue()
    assert len(printed.rstrip("\n")) <= 80 and len(printed.split()) == 9  # columns never touch


def test_D2_the_time_left_counts_all_folds_and_only_this_process(monkeypatch):
    options = SimpleNamespace(epochs=10)
    monkeypatch.setattr(screen.time, "perf_counter", lambda: 160.0)
    state = SimpleNamespace(epoch=4)
    left = [
        screen.time_left(state, 100.0, begun, options, SimpleNamespace(folds_after=n)) for begun, n in ((3, 0), (3, 4))
    ]
    assert left == ["0:06:00", "0:46:00"]  # 60 s per epoch: 6 epochs, and 4 folds more
    later = SimpleNamespace(folds_after=0)
    assert screen.time_left(state, 100.0, 3.5, options, later) == "0:12:00"  # half an epoch took 60 s
    assert screen.time_left(state, 100.0, 4, options, later) == ""  # only validation was left: nothing is known
    assert screen.time_left(state, -(10.0**7), 3, options, later) == "694 days"


def test_D2_folds_know_how_many_come_after(workspace, capsys):  # noqa: F811
    options = cli.parse_options([*map(str, base_words()), "--folds", "3"])
    assert [split.folds_after for split in inputs.make_splits(options, data.read("d"))] == [2, 1, 0]


# --- diverging, finished ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "train_losses, expected",
    [
        ([2.5, 1.6, 1.5, 1.4], False),
        ([9.0], False),  # a first epoch with a high loss says nothing yet
        ([2.0, 6.0], True),  # guessing would give 2.9
        ([1.5, 1.6, 1.8, 2.1], True),
        ([1.5, 1.55, 1.6, 1.65], False),  # within noise
        ([1.5, 2.1, 1.9, 2.1], False),
        ([0.01, 0.011, 0.02, 0.04], False),  # overfitted, and small
        ([0.5, 0.4, 0.9, 0.6, 0.4], False),  # a warm restart
    ],
)
def test_D2_which_losses_diverge(train_losses, expected):
    assert screen.diverges(train_losses, uniform=2.9) is expected


def test_the_loss_of_guessing_is_that_of_equal_logits_for_the_images_of_an_epoch():
    counts, device = [50, 30, 15, 5], torch.device("cpu")
    targets = torch.arange(4).repeat_interleave(torch.tensor(counts))
    for name in (*losses.LOSSES, "ce+f1", "focal:0.6+logit_adjustment:0.4"):
        for weight in (None, losses.class_weights(counts)):
            criterion = losses.build_loss(name, counts, weight=weight)
            every = criterion(torch.zeros(100, 4), targets).item()  # the loss of all images
            assert screen.loss_of_guessing(criterion, counts, device) == pytest.approx(every, rel=1e-4), name
    assert screen.loss_of_guessing(losses.build_loss("ce"), counts, device) == pytest.approx(np.log(4), rel=1e-5)
    prior, adjusted = np.array(counts) / 100, losses.build_loss("logit_adjustment", counts)
    entropy = -(prior * np.log(prior)).sum()
    assert screen.loss_of_guessing(adjusted, counts, device) == pytest.approx(entropy, rel=1e-5)
    assert screen.loss_of_guessing(adjusted, counts[::-1], device) > np.log(4)  # the control


def test_D2_a_diverging_run_gets_one_note_with_advice(workspace, capsys):  # noqa: F811
    run("--model", "nets.py:plain", "--optimizer", "sgd", "--lr", 3, "--scheduler", "none", epochs=6)
    assert capsys.readouterr().out.count("start again with a smaller --lr") == 1
    run("--model", "nets.py:plain", "--loss", "f1", out="calm", epochs=6)
    assert "smaller --lr" not in capsys.readouterr().out


def test_D2_resuming_a_finished_run_says_so_and_what_to_type(workspace, capsys):  # noqa: F811
    run("--scheduler", "none", epochs=1, out="grows")
    run(epochs=1, out="fixed")
    run("--patience", 1, "--min-delta", 2, epochs=9, out="early")
    said = {}
    for name in ("grows", "fixed", "early"):
        capsys.readouterr()
        train.main(["--resume", name])
        said[name] = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("resumed:"))
    begin = "resumed: this run is finished: epochs done: "
    assert said["grows"] == f"{begin}1 of 1. To train longer: python train.py --resume grows --epochs 2"
    assert said["fixed"].startswith(f"{begin}1 of 1. --scheduler cosine ends here. To train longer, start a new run")
    assert said["early"] == f"{begin}2 of 9, stopped by --patience 1. To train longer, start a new run"
    train.main(["--resume", "grows", "--epochs", "2"])
    assert "resumed: epochs done: 1, updates done in the next epoch: 0 of 5" in capsys.readouterr().out


# --- Korean -----------------------------------------------------------------------------------------------------------


def drawn(label, folders, monkeypatch):
    monkeypatch.setattr(augment, "FONT_FOLDERS", folders)
    augment._font_files.cache_clear()
    augment.find_font.cache_clear()
    return augment.find_font(label), np.asarray(augment.contact_sheet(torch.full((1, 3, 96, 96), 255).byte(), [label]))


@pytest.mark.skipif(augment.find_font("고양이") is None, reason="needs a font with Korean characters")
def test_D1_korean_labels_are_drawn_with_a_font_that_has_them(monkeypatch):
    folders = augment.FONT_FOLDERS
    _, cat = drawn("고양이", folders, monkeypatch)
    _, dog = drawn("강아지", folders, monkeypatch)
    _, parts = drawn(unicodedata.normalize("NFD", "고양이"), folders, monkeypatch)
    assert not np.array_equal(cat, dog) and np.array_equal(cat, parts)
    none, cat = drawn("고양이", (), monkeypatch)  # negative control: without fonts, all are ???
    assert none is None and np.array_equal(cat, drawn("강아지", (), monkeypatch)[1])


def test_D1_without_a_font_the_picture_shows_class_numbers_and_a_note_says_so(workspace, capsys, monkeypatch):  # noqa: F811
    labels = []
    monkeypatch.setattr(
        augment, "contact_sheet", lambda images, names: labels.extend(names) or Image.new("RGB", (9, 9))
    )
    monkeypatch.setattr(augment, "find_font", lambda text: ImageFont.load_default() if text.isascii() else None)
    Path("d/class1").rename("d/고양이")
    start("--preview", "sheet.png", "--batch-size", 32)
    said = capsys.readouterr().out
    assert set(labels) == {"class0", "class2", "2"} and "the picture shows class numbers instead" in said
    labels.clear()
    start("--preview", "sheet.png", "--batch-size", 32, "--only", "class0,class2")
    assert set(labels) == {"class0", "class2"} and "class numbers" not in capsys.readouterr().out


def test_D2_korean_names_in_the_C_locale_go_through_every_program(tmp_path):
    image_folder(tmp_path / "사진")
    for c, name in enumerate(("고양이", "강아지", "가방")):
        (tmp_path / "사진" / f"class{c}").rename(tmp_path / "사진" / name)
    files = sorted((tmp_path / "사진").rglob("*.png"))
    for file in files:
        file.rename(file.with_name(f"그림{file.name}"))
    rows = [f"{file.parent.name}/그림{file.name},{file.parent.name}" for file in files]
    (tmp_path / "표.csv").write_text("\n".join(["image,label", *rows]) + "\n", encoding="utf-8")
    environment = os.environ | {"LC_ALL": "C", "PYTHONUTF8": "0", "OMP_NUM_THREADS": "1"}
    small = "--size 16 --model resnet8 --cache cache --epochs 1"
    for command in (
        f"train.py --csv 표.csv --data 사진 {small} --out 실행",
        "predict.py 실행 --data 사진 --template 표.csv --out 답.csv",
        "data.py 사진",
    ):
        program, *words = command.split()
        words = [os.fsencode(word) for word in (sys.executable, str(ROOT / program), *words)]
        done = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True)
        assert done.returncode == 0 and b"Traceback" not in done.stderr, (command, done.stderr[-2000:])
    assert "고양이" in (tmp_path / "답.csv").read_text(encoding="utf-8")
    (tmp_path / "others.py").write_text(OTHERS, encoding="utf-8")
    every = ["train.py --resume 실행", "report.py 실행", "runs.py 실행", "leaks.py 사진", "pixels.py 사진"]
    every += ["checkpoint.py 실행/best_f1.pt"]
    words = [os.fsencode(word) for word in (sys.executable, "others.py", str(ROOT), *every)]
    done = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True)
    assert done.returncode == 0 and done.stdout.count(b"\ndone ") == len(every), done.stderr[-2000:]


OTHERS = """# several programs in one process, which has to import torch only once
import runpy, sys
root, *commands = sys.argv[1:]
sys.path.insert(0, root)
for command in commands:
    program, *words = command.split()
    sys.argv = [program, *words]
    try:
        runpy.run_path(root + "/" + program, run_name="__main__")  # the first starts all again in UTF-8 mode
    except SystemExit as error:
        assert not error.code, command
    print("\\ndone", program)
"""


@pytest.mark.parametrize("name", ["train", "predict", "report", "compare", "labels"])
def test_every_program_that_reads_names_starts_again_in_utf8_mode(name):
    assert "cli.use_utf8()" in (ROOT / f"{name}.py").read_text("utf-8").partition('if __name__ == "__main__":')[2]


@pytest.mark.parametrize("name", ["runs", "data", "leaks", "pixels", "checkpoint"])
def test_every_module_that_reads_names_starts_again_in_utf8_mode(name):
    assert "os.execve(sys.executable, sys.orig_argv" in (ROOT / f"{name}.py").read_text("utf-8")


def test_D2_the_summary_finds_the_worst_files_of_class_names_that_are_not_text(make_run, tmp_path, capsys):
    probs = np.full((6, 2), 0.5) + np.array([[0.1, -0.1]]) * np.array([1, 1, 1, 1, 1, -1])[:, None]
    names = [os.fsdecode(b"\xb0\xa1"), "b"]
    folder = make_run(tmp_path / "run", probs, np.array([0, 0, 0, 1, 1, 1]), classes=names)
    run = runs.read(folder)
    text = (folder / "val_predictions.csv").read_bytes().replace(b"\xb0\xa1", b"renamed")
    (folder / "val_predictions.csv").write_bytes(text)  # only numbers are compared
    table = data.ImageTable([], np.zeros(0, np.int64), [], names, "made")
    screen.print_summary(folder, run.log[-1] | {"epoch": 5}, run.predictions.matrix, table, run.config["train_counts"])
    assert r"b -> \udcb0\udca1  images/3.jpg (0.6000)" in capsys.readouterr().out


# --- presets ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", cli.PRESETS)
def test_a_preset_is_its_options_and_typed_options_win(name):
    words = cli.PRESETS[name].split()
    found, same = vars(cli.parse_options(["--preset", name])), vars(cli.parse_options(words))
    assert found.pop("preset") == name and same.pop("preset") is None and found == same
    assert found != vars(cli.parse_options([])) | {"preset": name}
    assert cli.parse_options(["--loss", "focal", "--preset", name]).loss == "focal"


def test_a_preset_is_printed_and_its_options_are_stored_and_resumed(workspace, capsys, monkeypatch):
    run("--preset", "scratch", "--lr", "0.02", "--epochs", 3, "--scheduler", "none")
    said = " ".join(capsys.readouterr().out.split())
    assert f"preset scratch = {cli.PRESETS['scratch']}" in said and "sgd, lr 0.02" in said
    monkeypatch.setitem(cli.PRESETS, "scratch", "--loss f1 --ema 0.5")  # a later version has other presets
    options = cli.stored(Path("run"))
    assert (options.preset, options.loss, options.lr, options.ema) == ("scratch", "logit_adjustment", 0.02, None)
    train.main(["--resume", "run", "--epochs", "4", "--cache", "cache"])
    assert len(Path("run/log.csv").read_text().splitlines()) == 5


# --- --config and --version ------------------------------------------------------------------------------------------


def parsed(*words):
    return {k: v for k, v in vars(cli.parse_options(list(words))).items() if k != "config"}


def test_a_json_of_options_is_what_would_be_typed_and_typed_options_win(tmp_path):
    file = tmp_path / "options.json"
    options = {"epochs": 3, "batch-size": 8, "criterion": "focal", "size": [32, 48], "fold_case": True, "clip": None}
    file.write_text(json.dumps(options))
    words = ("--epochs", "3", "--batch-size", "8", "--loss", "focal", "--size", "32", "48", "--fold-case")
    assert parsed("--config", str(file)) == parsed(*words)
    assert parsed("--config", str(file), "--epochs", "5") == parsed(*words, "--epochs", "5") != parsed(*words)


def test_a_runs_config_gives_the_options_of_the_run_but_not_its_folder_device_or_cache(workspace):
    run("--epochs", 1, "--loss", "focal", "--gamma", "3", "--cache", "c", out="first")
    config = json.loads((workspace / "first" / "config.json").read_text())
    config["options"] |= {"device": "cuda:7", "of_a_later_version": 1}
    (workspace / "first" / "config.json").write_text(json.dumps(config))
    found = cli.parse_options(["--config", "first/config.json", "--out", "second"])
    assert (found.loss, found.gamma, found.epochs, found.out) == ("focal", 3.0, 1, "second")
    assert found.device != "cuda:7" and found.cache != "c"
    train.main(["--config", "first/config.json", "--out", "second"])
    first, second = ((workspace / name / "val_predictions.csv").read_text() for name in ("first", "second"))
    assert first == second


@pytest.mark.parametrize(
    "content, message",
    [
        ('{"epohs": 3}', "'epohs' is not an option of a file: close names: epochs"),
        ('{"out": "x"}', "'out' is not an option of a file: type it"),
        ('{"epochs": "many"}', "--config o.json: argument --epochs: invalid int value: 'many'"),
        ("[3]", "--config o.json: it must be a JSON object"),
        ("{", "--config o.json: Expecting property name"),
        (None, "--config o.json: "),
        (
            '{"model": "nets.py:make"}',
            "executed only if it is typed: if you trust it, add --model nets.py:make",
        ),
        ('{"transform": "t.py:f"}', "add --transform t.py:f"),
    ],
)
def test_a_bad_options_file_is_an_error_that_names_it(workspace, capsys, content, message):
    if content:
        (workspace / "o.json").write_text(content)
    with pytest.raises(SystemExit) as error:
        cli.parse_options(["--config", "o.json"])
    assert error.value.code == 2 and message in capsys.readouterr().err


def test_a_python_file_of_an_options_file_may_be_typed_and_a_resumed_run_takes_no_options_file(workspace, capsys):
    (workspace / "o.json").write_text('{"model": "nets.py:make", "epochs": 2}')
    found = cli.parse_options(["--config", "o.json", "--model", "nets.py:plain"])
    assert (found.model, found.epochs) == ("nets.py:plain", 2)
    with pytest.raises(SystemExit):
        cli.parse_options(["--config", "o.json", "--resume", "r"])
    assert "leave out --config or --resume" in capsys.readouterr().err


def test_version_prints_what_config_json_has(capsys):
    for parser in (cli.make_parser(), cli.Parser(prog="x.py")):
        with pytest.raises(SystemExit) as error:
            parser.parse_args(["--version"])
        lines = dict(line.split(" ", 1) for line in capsys.readouterr().out.splitlines())
        assert error.value.code == 0 and lines == runs.versions("cuda" if torch.cuda.is_available() else "cpu")
    changes = (Path(cli.__file__).parent / "CHANGELOG.md").read_text("utf-8")
    assert lines["f1kit"] == runs.VERSION and re.search(r"^## ([\d.]+)", changes, re.M).group(1) == runs.VERSION

"""The house: no module imports a sibling, each runs alone, the README tells the truth, no pitfall is loose."""

import ast
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PROGRAMS = {"train", "predict", "compare", "report", "labels", "doctor"}
HELPERS = {"cli", "improvements", "inputs", "predictors", "pseudo", "runs", "screen", "submission"}  # of programs
MODULES = sorted(path.stem for path in ROOT.glob("*.py") if path.stem not in PROGRAMS | HELPERS)
README = (ROOT / "README.md").read_text(encoding="utf-8")
DOCS = README + (ROOT / "FAQ.md").read_text(encoding="utf-8")


def imports(name):
    tree = ast.parse((ROOT / f"{name}.py").read_text(encoding="utf-8"))
    names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    return {name.split(".")[0] for name in names}


def test_the_house_has_the_modules_it_should():
    expected = (
        "augment cam checkpoint data demo leaks loggers loop losses metrics models optim page pixels ranks sam shares "
        "stopping"
    )
    assert MODULES == expected.split()


HEAD = (
    "# From f1kit. MIT licence, copyright (c) 2026 The f1kit authors. "
    "Keep this line and LICENSE with a copy of this file.\n"
)


@pytest.mark.parametrize("name", [*MODULES, "labels", "doctor"])  # of labels.py, the first section
def test_the_first_line_of_what_is_copied_carries_licence_and_origin(name):
    source = (ROOT / f"{name}.py").read_text(encoding="utf-8")
    assert source.startswith(HEAD + '"""') and source.count(HEAD) == 1
    licence = (ROOT / "LICENSE").read_text(encoding="utf-8")
    holder = re.search("Copyright (.+)", licence)[1]
    assert licence.startswith("MIT License") and f"MIT licence, copyright {holder}." in HEAD


@pytest.mark.parametrize("name", [*MODULES, "doctor"])
def test_no_module_imports_a_sibling_or_anything_but_the_runtime_packages(name):
    outside = imports(name) - set(sys.stdlib_module_names)
    asked_for = {"loggers": {"wandb"}, "models": {"timm"}}.get(name, set())
    assert outside <= {"torch", "torchvision", "numpy", "PIL", "tqdm"} | asked_for


PRINT = ["loop", "losses", "metrics", "models", "optim", "demo", "page", "loggers", "sam", "cam", "ranks", "shares"]


@pytest.mark.parametrize("name", PRINT)
def test_each_module_alone_in_an_empty_folder_prints_its_table(name, tmp_path):
    shutil.copy(ROOT / f"{name}.py", tmp_path)
    more = ["--people", "20"] if name == "demo" else []
    done = subprocess.run([sys.executable, f"{name}.py", *more], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) > 4


@pytest.mark.parametrize("name", ["checkpoint", "data", "leaks", "pixels"])
def test_a_module_that_needs_a_path_says_so_alone_in_an_empty_folder(name, tmp_path):
    shutil.copy(ROOT / f"{name}.py", tmp_path)
    done = subprocess.run([sys.executable, f"{name}.py"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 1 and f"python {name}.py" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize("name", ["losses", "metrics"])
def test_what_travels_to_old_servers_keeps_to_python_3_8(name):
    source = (ROOT / f"{name}.py").read_text(encoding="utf-8")
    ast.parse(source, feature_version=(3, 8))
    assert "from __future__ import annotations" in source
    # annotations are not evaluated, other code is: X | Y of types, list[...] outside of annotations need 3.9 and 3.10
    tree = ast.parse(source)
    for node in ast.walk(tree):
        for attribute in ("annotation", "returns"):
            if getattr(node, attribute, None) is not None:
                setattr(node, attribute, ast.Constant(None))
    rest = ast.unparse(tree)
    assert not re.search(r"\b(list|dict|tuple|set|type)\[\w", rest)
    assert "removeprefix" not in rest and "strict=" not in rest and "match " not in source


@pytest.mark.parametrize("name", [*MODULES, *sorted(PROGRAMS | HELPERS)])
def test_the_docstrings_examples_are_true(name):
    if ">>>" in (ROOT / f"{name}.py").read_text(encoding="utf-8"):
        done = subprocess.run([sys.executable, "-m", "doctest", f"{name}.py"], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout


def test_the_readme_has_exactly_two_set_up_commands_each_complete():
    commands = [line for line in README.splitlines() if line.startswith("pip install")]
    assert commands == [
        "pip install -r requirements.txt && python train.py --loss focal --accum 4",
        "pip install -r requirements.txt -r tests/requirements.txt && python -m pytest",
    ]
    assert commands[1] in README and "grep -m 1 'python -m pytest' README.md" in (ROOT / ".ci/run").read_text()


def commands_of(program):
    """The words of its commands in README and FAQ: lines of code blocks, and cells of tables."""
    return re.findall(rf"^ *(?:\|[^|]+\| `)?python {program}\.py ([^`\n]+)", DOCS, re.M)


def test_every_train_command_parses_as_it_is_written():
    import cli

    commands = commands_of("train")
    assert len(commands) >= 15
    for command in commands:
        words = command.split("#")[0].split()
        if {"--resume", "--config"} & {*words}:
            cli.make_parser().parse_args(words)
        elif words != ["--help"]:
            cli.parse_options(words)


def test_every_compare_command_parses_as_it_is_written():
    import compare

    commands = commands_of("compare")
    assert len(commands) >= 4
    for command in commands:
        options = compare.parse_options(shlex.split(command))
        compare.make_combinations(options.vary, options.seeds, options.out, options.shared)


def test_every_predict_command_parses_as_it_is_written():
    import predict

    commands = commands_of("predict")
    assert len(commands) >= 7
    for command in commands:
        predict.parse_options(command.split())


def test_the_arrows_between_programs_and_their_helpers():
    allowed = {
        "train": {"cli", "inputs", "runs", "report", "screen"},
        "predict": {"cli", "improvements", "predictors", "runs", "submission"},
        "compare": {"cli", "runs"},
    }
    allowed |= {
        "report": {"cli", "predictors", "runs"},
        "labels": {"cli", "report", "runs"},
        "doctor": set(),
        "inputs": {"cli", "pseudo", "runs"},
        "pseudo": {"cli", "predictors", "runs", "submission"},
        "improvements": {"cli", "predictors", "runs"},
        "predictors": {"cli", "runs"},
        "submission": {"runs"},
        "screen": {"cli", "runs"},
        "cli": {"runs"},
        "runs": set(),
    }
    for name, others in allowed.items():
        assert imports(name) & (PROGRAMS | HELPERS) == others


def test_a_namespace_is_known_to_train_and_its_helpers_alone():
    """Elsewhere a program's own parse_options may return one; no function takes, builds or changes one."""
    takes = re.compile(r"\w+: argparse\.Namespace|argparse\.Namespace\(|setattr\(options")
    for path in ROOT.glob("*.py"):
        known = path.stem in ("train", "cli", "inputs", "pseudo", "screen")
        assert known or not takes.search(path.read_text(encoding="utf-8")), path


def test_the_readmes_list_of_files_is_the_folder():
    section = README[README.index("## The files") : README.index("## Limits")]
    listed = re.findall(r"^(\S+\.py) +\S", section, re.M)
    assert len(set(listed)) == len(listed) and set(listed) == {path.name for path in ROOT.glob("*.py")}


def test_files_and_functions_are_short_enough_to_be_read():
    lines = {path.stem: len(path.read_text(encoding="utf-8").splitlines()) for path in ROOT.glob("*.py")}
    assert lines["train"] <= 300 and lines["loop"] <= 350
    for path in (*ROOT.glob("*.py"), ROOT / "tests" / "bench.py", ROOT / "tests" / "kill.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef) and node.name != "make_parser":
                assert node.end_lineno - node.lineno < 60, (path.name, node.name)


def test_the_readmes_loop_trains_with_a_plain_loader(tmp_path, monkeypatch):
    import torch

    torch.manual_seed(0)
    monkeypatch.chdir(tmp_path)
    block = next(block for block in re.findall(r"```python\n(.*?)```", README, re.S) if "train_epoch(" in block)
    assert len(block.splitlines()) <= 18
    x, y = torch.randn(27, 3, 8, 8), torch.arange(27) % 5
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, y), batch_size=8)
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, 5))
    names = {"model": model, "train_loader": loader, "val_loader": loader, "epochs": 3}
    exec(block, names | {"class_weights": torch.tensor([0.2, 0.5, 1.0, 2.0, 5.0])})
    assert set(torch.load("best_f1.pt", weights_only=True)) == {"1.weight", "1.bias"}


def test_bad_input_of_every_module_is_known_to_the_command_line():
    import cli

    defined = {path.stem for path in ROOT.glob("*.py") if "\nclass BadInput(" in path.read_text(encoding="utf-8")}
    assert {module.__name__ for module in cli.MODULES} | {"doctor"} == defined  # doctor.py has its own command line


def test_what_is_repeated_on_purpose_is_the_same_everywhere():
    """Stand-alone modules import no sibling, so these few lines are in several of them."""
    found = {}
    for name in [*MODULES, "doctor"]:
        for node in ast.parse((ROOT / f"{name}.py").read_text(encoding="utf-8")).body:
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
                found.setdefault(node.name, {})[name] = ast.unparse(node)
    expected = {"BadInput": 9, "listed": 3, "describe_error": 2, "describe_bad": 2, "sides": 2, "printable": 6}
    expected |= {"random_state": 2, "set_random_state": 2}
    for name, least in expected.items():
        bodies = {text.replace("A file or value", "A value") for text in found[name].values()}
        assert len(found[name]) >= least and len(bodies) == 1, name


def test_the_requirements_are_the_four_packages_with_lower_bounds_only():
    lines = (ROOT / "requirements.txt").read_text().split()
    assert lines == ["torch>=2.4", "torchvision>=0.19", "numpy>=1.26", "tqdm>=4.66"]


PINNED = "M1-M10 A1-A12 L1-L22 D1-D16 E1-E7"


def pitfalls():
    for span in PINNED.split():
        letter, first, last = re.fullmatch(r"([A-Z])(\d+)-[A-Z](\d+)", span).groups()
        yield from (f"{letter}{i}" for i in range(int(first), int(last) + 1))


def test_every_pitfall_is_pinned_by_a_test_that_exists_or_impossible_for_a_stated_reason():
    table = (ROOT / "tests" / "PITFALLS.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| (\w+) \| [^|]+ \| (.+) \|$", table, re.M))
    assert list(rows) == ["id", *pitfalls()]  # the header, then every id in order
    tests = {
        f"{path.name}::{node.name}"
        for path in (ROOT / "tests").glob("test_*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef)
    }
    for pitfall, cell in list(rows.items())[1:]:
        named = re.findall(r"`(test_\w+\.py::test_\w+)`", cell)
        assert named or cell.startswith("impossible: "), pitfall
        assert set(named) <= tests, (pitfall, set(named) - tests)

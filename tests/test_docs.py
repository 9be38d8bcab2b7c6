"""README and FAQ, in English and Korean: every command and code block runs, in small; links and sizes hold."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import augment
import compare
import labels
import loop
import losses
import metrics
import predict
import report
import train

ROOT = Path(__file__).resolve().parent.parent
DOCS = {name: (ROOT / name).read_text("utf-8") for name in ("README.md", "README.ko.md", "FAQ.md", "FAQ.ko.md")}
SMALL = "--epochs 2 --size 16 --model resnet8 --weights none --cache cache --device cpu --threads 1".split()
PROGRAMS = {"train.py": train, "predict.py": predict, "compare.py": compare, "report.py": report, "labels.py": labels}
EXAMPLES = {"loop.py": loop, "losses.py": losses, "metrics.py": metrics, "augment.py": augment}


def commands(text):
    """The commands of a text, in order: lines of its plain code blocks, and code spans that begin with a program."""
    found = []
    for language, block, span in re.findall(r"^ *```(\w*)\n(.*?)^ *```$|`([^`\n]+)`", text, re.M | re.S):
        lines = [span] if span else block.splitlines() if not language else []
        found += [line.strip() for line in lines if re.match(r" *(python|torchrun|pip) ", line)]
    return found


def options_alone(text):
    """The options of train.py that the table "I want to" names without the whole command."""
    table = text[text.index("| I want to") :].split("\n\n")[0]
    return re.findall(r"`(--[^`]+)`", table)


EVERY = list(dict.fromkeys(command for text in DOCS.values() for command in commands(text)))
EVERY += [f"python train.py --data FOLDER {words}" for words in options_alone(DOCS["README.md"])]


def images(folder, names, seed=0):
    rng = np.random.default_rng(seed)
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(folder / name)


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    """A folder with everything that the commands name: images, CSV files, networks, finished runs."""
    root, before = tmp_path_factory.mktemp("docs"), os.getcwd()
    os.chdir(root)
    names = [f"{c}/{i}_aug.png" for c in range(15) for i in range(6)]
    for seed, folder in enumerate(("FOLDER", "SCANS", "TRAIN", "VALIDATION")):
        images(root / folder, names, seed)
    images(root / "TEST", [f"{i}.png" for i in range(12)], 9)
    flat = [f"{i}.png" for i in range(60)]
    images(root / "IMAGES", flat)
    rows = [f"{name},{i % 3},{i % 2},{i % 5},{i % 2},{i % 3},p{i}" for i, name in enumerate(flat)]
    Path("train.csv").write_text("\n".join(["image,label,mask,gender,x,age,person", *rows]) + "\n")
    Path("my_labels.csv").write_text("\n".join(["ID,target", *(f"{i}.png,{i}" for i in range(12))]) + "\n")
    Path("my_code.py").write_text(
        "from functools import partial\nfrom sklearn.metrics import f1_score\nfrom losses import FocalLoss\n"
        'f1 = partial(f1_score, average="macro")\n'
        "def train_one_epoch(model, loader, criterion, optimizer):\n"
        "    model.train()\n"
        "    for x, y in loader:\n"
        "        optimizer.zero_grad()\n"
        "        criterion(model(x), y).backward()\n"
        "        optimizer.step()\n"
    )
    (root / "my_train.py").write_text((ROOT / "tests" / "doctor" / "script_right.py").read_text("utf-8"))
    Path("my_nets.py").write_text(
        "from torch import nn\ndef make(n): return nn.Sequential(nn.AvgPool2d(4), nn.Flatten(), nn.LazyLinear(n))\n"
    )
    for words in (
        "NAME",
        "a",
        "b --loss focal",
        "five --folds 5",
        "first",
        "parent --folds 5 --merge 3,7,14",
        "child --folds 5 --only 3,7,14",
    ):
        train.main(["--data", "FOLDER", *SMALL, "--out", *f"runs/{words}".split()])
    train.main(["--data", "FOLDER", *SMALL, "--model", "my_nets.py:make", "--out", "runs/own"])
    labels.main(["runs/five", "--action", "drop"])
    header, first, *_ = Path("runs/five/labels.csv").read_text("utf-8").splitlines()
    Path("runs/five/labels.csv").write_text(f"{header}\n{first}\n", "utf-8")
    yield root
    os.chdir(before)


def unused(path):
    return path if not Path(path).exists() else unused(f"{path}-again")


def reduced(words):
    """The words of a command for small images, few epochs and one seed, with a new folder where one exists."""
    program, words = words[0], words[1:]
    if program == "compare.py":
        words = [re.sub(r"=([^,]*).*", r"=\1", word) if "=" in word else word for word in words]
        words = ["0" if words[i - 1] == "--seeds" else word for i, word in enumerate(words)]
        shared = words.index("--") if "--" in words else len(words)
        return [*words[:shared], *(() if "--seeds" in words else ("--seeds", "0")), "--", *words[shared + 1 :], *SMALL]
    if program == "train.py" and "--resume" in words:
        words = [word.replace("NAME", "own") if "--model" in words else word for word in words]
        return [*words, "--cache", "cache"]
    if program == "train.py" and "--help" not in words:
        words = [*words, *SMALL, *(("--model", "my_nets.py:make") if "my_nets.py:make" in words else ())]
        words += ["--init", words[words.index("--init") + 1]] if "--init" in words else []
        words += ["--weights", "runs/NAME"] if "--freeze" in words else []
    return [unused(word) if words[i - 1] == "--out" else word for i, word in enumerate(words)]


@pytest.mark.parametrize("command", EVERY)
def test_every_command_runs(command, here, monkeypatch):
    words = shlex.split(command)
    if command.startswith("pip ") or words[1:2] == ["-m"]:
        pytest.skip("installs packages, or is this test run: .ci/run does both")
    if any(word.startswith("timm:") for word in words):
        pytest.importorskip("timm")
    if words[0] == "torchrun":
        words = [str(ROOT / words[2]), *reduced(words[2:])]
        start = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2"]
        done = subprocess.run([*start, *words], capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        return
    program, arguments = words[1], reduced(words[1:])
    if program in PROGRAMS and arguments != ["--help"]:
        if program == "labels.py":
            arguments += ["--out", "labels"]
        PROGRAMS[program].main(arguments)
    elif program in PROGRAMS:
        with pytest.raises(SystemExit) as error:
            PROGRAMS[program].main(arguments)
        assert error.value.code == 0
    else:
        words = [sys.executable, str(ROOT / program), *arguments]
        done = subprocess.run(words, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(ROOT)})
        assert done.returncode == 0 and done.stdout, done.stdout + done.stderr


@pytest.mark.parametrize("name", ["README.md", "FAQ.md"])  # those of the other language are the same, see below
def test_every_python_block_runs(name, here, monkeypatch):
    main, model = train.main, torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, 18))
    monkeypatch.setattr(train, "main", lambda words: main([*words, "--epochs", "1", "--cache", "cache"]))
    x, y = torch.randn(27, 3, 8, 8), torch.arange(27) % 18
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, y), batch_size=8)
    names = {"model": model, "train_loader": loader, "val_loader": loader, "epochs": 2, "device": "cpu"}
    names |= {"train_counts": torch.arange(1, 19), "class_weights": torch.linspace(0.1, 1, 18)}
    blocks = re.findall(r"^```python\n(.*?)^```$", DOCS[name], re.M | re.S)
    assert blocks
    for block in blocks:
        if "albumentations" in block:
            pytest.importorskip("albumentations")
        exec(block, dict(names))


@pytest.mark.parametrize("name", ["README", "FAQ"])
def test_both_languages_have_the_same_commands_and_code_in_the_same_order(name):
    english, korean = DOCS[f"{name}.md"], DOCS[f"{name}.ko.md"]
    assert commands(korean) == commands(english)
    python = [re.findall(r"^```python\n(.*?)^```$", text, re.M | re.S) for text in (english, korean)]
    assert [re.sub(r" *#.*", "", block) for block in python[0]] == [re.sub(r" *#.*", "", block) for block in python[1]]


def test_the_readme_can_be_read_in_one_go():
    assert len(DOCS["README.md"].split()) <= 1500
    prose = re.sub(r"^ *```.*?^ *```$", "", DOCS["README.md"], flags=re.M | re.S)
    for paragraph in re.split(r"\n\s*\n", prose):
        is_list = re.match(r"\s*([-|#!\[]|\d\.)", paragraph)
        assert is_list or len(paragraph) <= 480, paragraph  # four lines of 120 characters


@pytest.mark.parametrize("name", DOCS)
def test_every_link_leads_to_a_file_or_a_heading(name):
    for target in re.findall(r"\]\(([^)\s]+)\)", DOCS[name]):
        file, _, anchor = target.partition("#")
        if file.startswith("http"):
            continue
        assert not file or (ROOT / file).exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.*)$", (ROOT / (file or name)).read_text("utf-8"), re.M)
            slugs = {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}
            assert anchor in slugs, target


def test_the_messages_that_the_korean_faq_explains_are_in_the_sources():
    table = DOCS["FAQ.ko.md"][DOCS["FAQ.ko.md"].index("## 자주 보는 메시지") :]
    messages = re.findall(r"^\| `([^`]+)` \|", table, re.M)
    sources = " ".join((ROOT / path).read_text("utf-8") for path in sorted(ROOT.glob("*.py")))
    sources = re.sub(r'"\s*\n\s*f?"', "", sources)  # texts over several lines
    assert len(messages) == 20 and [text for text in messages if text not in sources] == []

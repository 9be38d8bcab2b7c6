"""Runs that are killed, stopped or told to go on: the same end, bit for bit. kill.py has the long form."""

import csv
import errno
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import checkpoint
import cli
import loop
import pixels
import runs
import train

sys.path.insert(0, str(Path(__file__).resolve().parent))
KILL = Path(__file__).with_name("kill.py")
ROOT = KILL.parent.parent


def helper(folder, code):
    """Runs a piece of code beside kill.py, in a process whose forks are clean; the lines it prints."""
    script = f"import sys; sys.path.insert(0, {str(KILL.parent)!r})\nfrom kill import *\n{code}"
    done = subprocess.run([sys.executable, "-c", script], cwd=folder, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    """Data, and two runs that were never cut: one saved at every update, one after epochs alone."""
    folder = tmp_path_factory.mktemp("killed")
    code = "make_workspace(Path('.'))\n"
    code += "assert finish(start(new_run('every', '--save-every 1'))) == 0\n"
    code += "assert finish(start(new_run('epochs', '--loss ce+f1'))) == 0\n"
    helper(folder, code)
    return folder


@pytest.fixture
def here(workspace, monkeypatch):
    monkeypatch.chdir(workspace)
    return workspace


CASES = [
    "inside a window",
    "between windows",
    "at an epoch's last step",
    "in validation",
    "between step and schedule",
    "in a write",
    "three kills in one run",
    "during the resume",
    "at a random time",
]


@pytest.fixture(scope="module")
def killed(workspace):
    """kind -> (kills, differences) for each of the two runs, all from one process: torch is imported once."""
    code = f"""
for kind in {CASES!r}:
    for reference, more in (("every", "--save-every 1"), ("epochs", "--loss ce+f1")):
        out = kind.replace(" ", "-") + "-" + reference
        kills = kill_and_resume(kind, 1, out, 0.4, more)
        print(kind, kills, len(differences(ending(reference), ending(out))), sep=";")
"""
    found = {}
    for line in helper(workspace, code):
        kind, kills, differences = line.split(";")
        found.setdefault(kind, []).append((int(kills), int(differences)))
    return found


@pytest.mark.parametrize("kind", CASES)
def test_a_killed_run_ends_as_the_one_that_was_not(killed, kind):
    least = {"three kills in one run": 3, "during the resume": 2, "at a random time": 0, "in a write": 0}.get(kind, 1)
    assert len(killed[kind]) == 2
    assert all(kills >= least and differences == 0 for kills, differences in killed[kind])


FORGETTABLE = {
    "rng": "between windows",
    "sampler position": "between windows",
    "window position": "between windows",
    "scheduler": "between windows",
    "ema": "between windows",
    "batchnorm buffers": "between windows",
    "optimizer": "between windows",
    "best score": "in validation",
    "patience": "in validation",
    "nothing": "between windows",
    "nothing ": "in validation",
}


@pytest.fixture(scope="module")
def forgotten(workspace):
    """What a resume forgot -> in how many places the end differs."""
    code = f"""
for what, seam in {FORGETTABLE!r}.items():
    out = "forgets-" + what
    arm = lambda: SEAMS[seam](11 if seam == "in validation" else 2)
    assert finish(start(new_run(out, "--save-every 1"), arm)) == -signal.SIGKILL
    assert finish(start(resumed(out), lambda: forgets(what))) == 0
    print(what, len(differences(ending("every"), ending(out))), sep=";")
"""
    return dict(line.split(";") for line in helper(workspace, code))


@pytest.mark.parametrize("what", FORGETTABLE)
def test_E5_a_resume_that_forgets_one_thing_ends_otherwise(forgotten, what):
    """The controls of the comparison: what is left out shows. The random state is not needed, see train.train_epoch."""
    assert (int(forgotten[what]) > 0) == (what.strip() not in ("nothing", "rng"))


def test_SIGTERM_loses_no_update_and_the_resumed_run_ends_the_same(workspace):
    code = """
print(*terminate(4, 0.5, "--save-every 1", ending("every")))
print(*terminate(4, 0.5, "--loss ce+f1", ending("epochs")))
"""
    for line in helper(workspace, code):
        ended, exact, equal = map(int, line.split())
        assert equal == 4 and exact == ended


def command(*words, **more):
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    words = [sys.executable, str(ROOT / "train.py"), *map(str, words)]
    return subprocess.Popen(words, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **more)


@pytest.mark.parametrize("number, code", [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_stops_a_command_that_says_how_to_go_on(here, number, code):
    out = f"signal{code}"
    process = command(*train_words(out, "--epochs", 500, "--patience", 600, "--min-delta", 0))
    while not Path(out, "log.csv").exists():
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(number)
    printed, error = process.communicate(timeout=30)
    assert process.returncode == code
    command_line = f"python train.py --resume {out} --model nets.py:net --cache cache"
    assert error.strip() == f"train.py: stopped by {number.name}; continue with: {command_line}"
    assert cli.parse_options(command_line.split()[2:]).model == "nets.py:net"
    assert "stopped in epoch" in printed and "\r" not in printed  # plain lines where there is no terminal
    before = checkpoint.load(Path(out, "last.pt"))
    assert before["epoch"] + 1 >= 2


def resumed(out):
    import kill

    return kill.resumed(out)


def train_words(out, *more):
    import kill

    words = kill.new_run(out)
    for flag, value in zip(more[::2], more[1::2], strict=True):
        words[words.index(flag) + 1] = str(value)
    return words


def test_E9_a_signal_while_a_transform_hangs_saves_and_ends_the_run(here):
    (here / "hangs.py").write_text(
        "import os, time\n"
        "def f(image, rng):\n"
        "    if os.path.exists('hanging/log.csv'):\n"
        "        open('hangs.txt', 'w').close()\n"
        "        time.sleep(1000)\n"
        "    return image\n"
    )
    process = command(*train_words("hanging"), "--transform", "hangs.py:f")
    while not Path("hangs.txt").exists():
        assert process.poll() is None
        time.sleep(0.05)
    Path("hanging/last.pt").unlink()
    time.sleep(1)  # the main thread waits for the batch
    process.send_signal(signal.SIGTERM)
    printed, error = process.communicate(timeout=60)
    assert process.returncode == 143 and "continue with: python train.py --resume hanging" in error
    assert checkpoint.load("hanging/last.pt")["epoch"] >= 1


def test_a_second_signal_leaves_at_once_with_the_last_good_file(workspace):
    code = """
def slow():
    save = torch.save
    def late(state, file):
        if state.get("epoch") == 2 and "optimizer" in state:
            Path("saving.txt").write_text("")
            time.sleep(60)
        save(state, file)
    torch.save = late

began, child = time.time(), start(new_run("twice"), slow)
while not Path("saving.txt").exists():
    time.sleep(0.02)
os.kill(child, signal.SIGTERM)
time.sleep(0.3)
os.kill(child, signal.SIGTERM)
print(finish(child), time.time() - began < 30, checkpoint.load("twice/last.pt")["epoch"])
print(finish(start(resumed("twice"))), finish(start(new_run("once"))))
print(differences(ending("once"), ending("twice")))
"""
    assert helper(workspace, code) == ["143 True 1", "0 0", "[]"]


def test_a_signal_while_files_are_decoded_stops_at_once_and_leaves_no_cache(workspace):
    code = """
def slow():
    decode_file = train.pixels.decode_file
    def late(path):
        Path("decoding.txt").write_text("")
        time.sleep(0.05)
        return decode_file(path)
    train.pixels.decode_file = late

words = new_run("decoded")
words[words.index("--cache") + 1] = "another"
child = start(words, slow)
while not Path("decoding.txt").exists():
    time.sleep(0.01)
os.kill(child, signal.SIGTERM)
print(finish(child), Path("decoded").exists(), os.listdir("another/images"))
"""
    assert helper(workspace, code) == ["143 False []"]


def test_folds_go_on_at_the_fold_that_was_cut(workspace):
    code = """
more = "--folds 3 --epochs 2"
words = [word for word in new_run("folds")] + more.split()
assert finish(start(words)) == 0
words[words.index("--out") + 1] = "cut"
assert finish(start(words, lambda: at_call(runs, "end_epoch", 3))) == -signal.SIGKILL
first = Path("cut/fold0/last.pt").stat().st_mtime_ns
print(sorted(path.name for path in Path("cut").glob("[!.]*")))
assert finish(start(resumed("cut"))) == 0
print(Path("cut/fold0/last.pt").stat().st_mtime_ns == first, sorted(os.listdir("cut")))
print([differences(ending(f"folds/fold{f}"), ending(f"cut/fold{f}")) for f in range(3)])
"""
    lines = helper(workspace, code)
    assert lines[0] == "['config.json', 'fold0', 'fold1']"
    assert lines[1] == "True ['config.json', 'fold0', 'fold1', 'fold2', 'folds.csv', 'oof.npz', 'report.html']"
    assert lines[2] == "[[], [], []]"


# --- options ---------------------------------------------------------------------------------------------------------


def refused(capsys, *words):
    with pytest.raises(SystemExit) as stop:
        train.main([str(word) for word in words])
    assert stop.value.code == 2
    return capsys.readouterr().err.strip().splitlines()[-1]


@pytest.mark.parametrize(
    "words, said",
    [
        (["--loss", "focal"], "--loss focal: cannot change --loss when resuming; the run was started with --loss ce"),
        (["--accum", "2"], "--accum 2: cannot change --accum when resuming; the run was started with --accum 4"),
        (["--lr", "0.1"], "--lr 0.1: cannot change --lr when resuming; the run was started with --lr 0.02"),
        (["--batch_size", "8"], "--batch-size 8: cannot change --batch-size when resuming; the run was started with"),
        (["--seed", "1"], "--seed 1: cannot change --seed when resuming; the run was started with --seed 0"),
        (["--size", "24"], "--size 24: cannot change --size when resuming; the run was started with --size 16"),
        (["--epochs", "9"], "--epochs 9: cannot change --epochs 7 when resuming with --scheduler cosine, because"),
        (["--epochs", "3"], "--epochs 3: cannot change --epochs when resuming; the run was started with --epochs 7"),
        (["--out", "other"], "--out other: cannot change --out when resuming; the run was started with --out every"),
    ],
)
def test_an_option_that_would_change_the_result_is_refused(here, capsys, words, said):
    assert said in refused(capsys, "--resume", "every", *words)


def test_the_same_options_again_and_those_that_change_nothing_are_taken(here):
    options = cli.parse_options(
        [*resumed("every"), *"--loss ce --lr 0.02 --threads 1 --save-every 7 --out every/".split()]
    )
    assert options.out == "every" and options.save_every == 7 and options.accum == 4 and options.epochs == 7


def test_a_folder_without_a_run_and_other_data_are_refused(here, capsys):
    said = refused(capsys, "--resume", "nowhere")
    assert "--resume: nowhere is not a run folder: there is no nowhere/config.json" in said
    config = json.loads(Path("every/config.json").read_text())
    Path("moved").mkdir()
    Path("moved/config.json").write_text(json.dumps(config | {"data": "other"}))
    said = "--resume: cannot resume moved: its images, labels or split have changed since the run started"
    assert said in refused(capsys, *resumed("moved"))
    assert "every already contains a run: choose a different folder, or continue it with --resume every" in (
        refused(capsys, *train_words("every"))
    )


def test_E4_images_of_the_same_name_and_size_but_other_pixels_are_refused(tmp_path, monkeypatch, capsys):
    import kill

    monkeypatch.chdir(tmp_path)
    kill.make_workspace(tmp_path)
    for path in list(Path("d").rglob("*.png")):
        Image.open(path).save(path.with_suffix(".bmp"))  # the size of a file does not depend on its pixels
        path.unlink()
    for out in ("run", "older"):
        train.main(train_words(out, "--epochs", 1))
    config = json.loads(Path("older/config.json").read_text())
    assert len(config.pop("pixels")) == 64
    Path("older/config.json").write_text(json.dumps(config))  # as before the entry was there
    train.main(resumed("run"))  # unchanged images: accepted

    path = next(Path("d").rglob("*.bmp"))
    status = os.stat(path)
    content = bytearray(path.read_bytes())
    content[-1] ^= 255
    path.write_bytes(content)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    train.main(resumed("run"))  # the cache still has the images that the run began with
    said = "--resume: cannot resume run: the pixels of its images have changed since the run started, or"
    assert said in refused(capsys, *resumed("run"), "--cache", "other")
    train.main([*resumed("older"), "--cache", "other"])
    assert json.loads(Path("older/config.json").read_text())["pixels"] != config.get("pixels")
    os.utime(path, ns=(1, 1))
    assert said in refused(capsys, *resumed("run"))


def test_more_epochs_are_those_of_a_longer_run_where_the_schedule_allows_it(workspace):
    code = """
for name, more in (("step", "--scheduler step --step-epochs 2"), ("plateau", "--scheduler plateau")):
    words = new_run(name, more + " --warmup 0")
    for flag in ("--patience", "--min-delta"):
        del words[words.index(flag) : words.index(flag) + 2]
    for out, epochs in ((name + "-short", "2"), (name + "-long", "5")):
        words[words.index("--epochs") + 1], words[words.index("--out") + 1] = epochs, out
        assert finish(start(words)) == 0
    assert finish(start([*resumed(name + "-short"), "--epochs", "5"])) == 0
    print(differences(ending(name + "-long"), ending(name + "-short")))
    print(json.load(open(name + "-short/config.json"))["options"]["epochs"])
"""
    assert helper(workspace, "import json\n" + code) == ["[]", "5", "[]", "5"]


def test_a_run_that_is_over_is_left_as_it_is(workspace):
    code = """
before = ending("every")
print(finish(start(resumed("every"))), differences(before, ending("every")))
"""
    assert helper(workspace, code) == ["0 []"]


# --- what else can happen --------------------------------------------------------------------------------------------


def test_save_top_keeps_the_best_epochs_under_their_scores(here):
    log = list(csv.DictReader(open("every/log.csv", newline="")))
    best = sorted(log, key=lambda row: -float(row["val_f1"]))[:2]  # sorted is stable: of equals the earlier
    names = {f"{int(row['epoch']):03d}_f1_{float(row['val_f1']):.4f}.pt" for row in best}
    assert {path.name for path in Path("every").glob("0*.pt")} == names
    for name in names:
        assert checkpoint.load(Path("every", name))["epoch"] == int(name[:3])


def test_updates_that_are_not_finite_may_be_left_out_and_are_counted(here, capsys, monkeypatch):
    backward, calls = loop.backward_window, []

    def poisoned(model, *rest):
        loss, *more = backward(model, *rest)
        calls.append(1)
        if len(calls) in (2, 5):
            model[1].running_mean.fill_(math.nan)  # what such a batch does to BatchNorm
            return loss * math.nan, *more
        return loss, *more

    monkeypatch.setattr(loop, "backward_window", poisoned)
    with pytest.raises(SystemExit) as stop:
        train.main([*train_words("stopped"), "--skip-nonfinite", "1"])
    error = capsys.readouterr().err
    assert (
        stop.value.code == 2
        and "skipped: loss nan" in error
        and "class0/" in error
        and "epochs saved in stopped: 1" in error
    )
    calls.clear()
    train.main([*train_words("went-on"), "--skip-nonfinite", "2"])
    log = list(csv.DictReader(open("went-on/log.csv", newline="")))
    assert [row["nonfinite_steps"] for row in log[:3]] == ["1", "1", "0"]
    assert all(math.isfinite(float(row["train_loss"])) and math.isfinite(float(row["val_loss"])) for row in log)
    assert checkpoint.load("went-on/last.pt")["schedule"]["updates"] == 3 * len(log) - 2


@pytest.mark.parametrize("batch, accum, said", [(4, 4, "--batch-size 2 --accum 8"), (9, 2, "--batch-size 3 --accum 6")])
def test_out_of_memory_names_the_smaller_batch_with_the_same_window(here, capsys, monkeypatch, batch, accum, said):
    def full(*_):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes")

    monkeypatch.setattr(loop, "backward_window", full)
    out = f"oom{batch}"
    with pytest.raises(SystemExit) as stop:
        train.main(train_words(out, "--batch-size", batch, "--accum", accum))
    assert stop.value.code == 2 and f"{said}, which needs less memory for the same updates" in capsys.readouterr().err


def test_a_disk_that_fills_up_in_a_run_is_one_clear_message(here, capsys, monkeypatch):
    def full(path, *_, **__):
        raise OSError(28, f"the disk is full, 12 bytes free: {path} is as it was")

    monkeypatch.setattr(checkpoint, "save", full)
    with pytest.raises(SystemExit) as stop:
        train.main(train_words("full"))
    assert stop.value.code == 2 and "the disk is full, 12 bytes free: full/best_f1.pt" in capsys.readouterr().err


def test_a_damaged_last_file_is_replaced_by_the_one_before_and_the_run_ends_the_same(workspace):
    code = """
assert finish(start(new_run("damaged", "--save-every 1"), lambda: SEAMS["between windows"](7))) == -signal.SIGKILL
content = bytearray(Path("damaged/last.pt").read_bytes())
content[len(content) // 2] ^= 4
Path("damaged/last.pt").write_bytes(content)
Path("damaged/.last.pt.99.tmp").write_bytes(b"half")
Path("stderr.txt").unlink(missing_ok=True)
print(finish(start(resumed("damaged"))), differences(ending("every"), ending("damaged")))
print("last.previous.pt is loaded instead" in Path("stderr.txt").read_text(), Path("damaged/.last.pt.99.tmp").exists())
"""
    assert helper(workspace, code) == ["0 []", "True False"]


def test_the_batches_of_an_epoch_can_be_begun_anywhere():
    rows = np.arange(20)
    images = pixels.ImageArray(np.zeros((20, 8, 8, 3), np.uint8), rows, ["x"] * 20)
    batches = pixels.Batches(images, rows, 3, shuffle=True, seed=1)
    whole = [numbers.tolist() for numbers, _, _ in batches.indexed()]
    for first in range(len(whole) + 1):
        assert [numbers.tolist() for numbers, _, _ in batches.indexed(range(first, len(whole)))] == whole[first:]


# --- two processes and one folder ------------------------------------------------------------------------------------


def test_E2_of_two_runs_into_one_folder_one_is_refused_and_the_files_are_of_one_seed(workspace):
    code = """
for attempt in range(3):
    out = f"both{attempt}"
    children = {start(new_run(out, f"--seed {seed}")): seed for seed in range(4)}
    codes = {seed: finish(child) for child, seed in children.items()}
    winner = [seed for seed, code in codes.items() if code == 0]
    config = runs.read_config(Path(out))["options"]["seed"]
    assert finish(start(new_run(f"alone{attempt}", f"--seed {config}"))) == 0
    print(winner == [config], sorted(codes.values()), differences(ending(f"alone{attempt}"), ending(out)))
assert finish(start(new_run("other", f"--seed {config + 1}"))) == 0
print(differences(ending("other"), ending(out)) != [])
"""
    Path(workspace, "stderr.txt").unlink(missing_ok=True)
    assert helper(workspace, code) == 3 * ["True [0, 2, 2, 2] []"] + ["True"]
    lines = [line for line in Path(workspace, "stderr.txt").read_text().splitlines() if "error" in line]
    running = "another process is training the run in both{}: wait until it ends"
    ended = "both{} already contains a run"
    for line in lines:
        assert any(f"--out: {text.format(i)}" in line for text in (running, ended) for i in range(3)), line
    assert len(lines) == 9


def test_E2_resume_beside_a_live_run_is_refused_and_touches_none_of_its_files(workspace):
    code = """
def slow():
    fsync = os.fsync
    def late(file):
        if any("last.pt" in path.name for path in Path("live").glob(".*.tmp")):
            Path("writing.txt").write_text("")
            time.sleep(1)
        fsync(file)
    os.fsync = late

child = start(new_run("live", "--epochs 2"), slow)
while not Path("writing.txt").exists():
    time.sleep(0.01)
before = sorted(path.name for path in Path("live").glob(".*.tmp"))
print(finish(start(resumed("live"))), bool(before), set(before) <= {path.name for path in Path("live").glob(".*.tmp")})
os.kill(child, signal.SIGKILL)
print(finish(child), Path("live/.lock").exists(), Path("stderr.txt").read_text().splitlines()[-1])
print(finish(start(resumed("live"))), [path.name for path in Path("live").glob(".*")])
"""
    first, second, third = helper(workspace, code)
    assert first == "2 True True"
    running = "train.py: error: --resume: another process is training the run in live: wait until it ends"
    assert second == f"-9 True {running}"  # the lock of a killed process is no lock
    assert third == "0 []"


def test_E2_a_refused_command_leaves_no_folder_and_a_folder_that_was_there_stays(here, capsys):
    refused(capsys, *train_words("new"), "--data", "nowhere")
    assert not Path("new").exists()
    Path("mine").mkdir()
    refused(capsys, *train_words("mine"), "--data", "nowhere")
    assert list(Path("mine").iterdir()) == []


def test_E2_runs_without_out_that_begin_in_the_same_second_have_different_folders(here, monkeypatch):
    monkeypatch.setattr("time.strftime", lambda form: "now")
    with runs.locked(None, "a:b") as first, runs.locked(None, "a:b") as second:
        assert (first, second) == ("runs/now-a_b", "runs/now-a_b_")
        Path(first, "config.json").write_text("{}")
    assert os.listdir(first) == ["config.json"] and not Path(second).exists()


def test_E2_a_lock_that_its_owner_removed_is_taken_anew(here, monkeypatch):
    flock, removed = runs.fcntl.flock, []

    def removing(file, operation):
        if not removed:
            removed.append(Path("gone/.lock").unlink())  # as at the end of the run that had it
        return flock(file, operation)

    monkeypatch.setattr(runs.fcntl, "flock", removing)
    with runs.locked("gone"):
        assert removed and Path("gone/.lock").exists()
        with pytest.raises(runs.BadInput, match="another process"), runs.locked("gone"):
            pass


def test_E2_folders_that_cannot_be_written_or_locked_are_one_line(here, capsys, monkeypatch):
    assert "--out: [Errno" in refused(capsys, *train_words("/proc/f1kit"))  # even root cannot write there
    Path("linked").mkdir()
    Path("linked/.lock").symlink_to(Path("victim").resolve())
    assert "--out: linked/.lock is a link, but a run writes only" in refused(capsys, *train_words("linked"))  # E6
    assert not Path("victim").exists()

    def unsupported(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(runs.fcntl, "flock", unsupported)
    with runs.locked("network"):
        pass
    note = "note: network/.lock cannot be locked (No locks available): start no second run there"
    assert capsys.readouterr().err.strip() == note


def test_E2_temporary_files_beside_the_folds_are_removed_too(here):
    Path("several/fold0").mkdir(parents=True)
    for name in (".oof.npz.999999999.tmp", "fold0/.last.pt.999999999.0a1b2c3d.tmp"):
        Path("several", name).write_text("half")
    with runs.locked("several", is_resumed=True):
        assert sorted(path.name for path in Path("several").rglob("*")) == [".lock", "fold0"]


@pytest.mark.skipif(not shutil.which("sha256sum"), reason="needs sha256sum")
def test_D3_the_readmes_sha256sum_command_checks_a_run(workspace):
    command = re.search(r"`(\(cd runs/NAME && sha256sum .*?\))`", (ROOT / "FAQ.md").read_text("utf-8"))[1]
    shutil.copytree(workspace / "every", workspace / "checked")

    def check():
        words = ["bash", "-c", command.replace("runs/NAME", "checked")]
        return subprocess.run(words, cwd=workspace, capture_output=True, text=True)

    done = check()
    assert done.returncode == 0 and done.stdout.count(": OK") >= 6, done  # also last.previous.pt and --save-top 2
    content = bytearray((workspace / "checked" / "best_f1.pt").read_bytes())
    content[99] ^= 1
    (workspace / "checked" / "best_f1.pt").write_bytes(content)
    assert check().returncode == 1

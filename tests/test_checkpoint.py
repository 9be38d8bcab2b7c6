"""checkpoint.py: files that are never half-written, plain content, no code executed on loading."""

import errno
import hashlib
import os
import pickle
import random
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import checkpoint


def test_what_is_saved_comes_back(tmp_path):
    state = {"model": {"w": torch.arange(3.0)}, "classes": ["a", "나"], "epoch": 3, "f1": 0.5, "none": None, "ok": True}
    checkpoint.save(tmp_path / "x.pt", state)
    loaded = checkpoint.load(tmp_path / "x.pt")
    assert torch.equal(loaded.pop("model")["w"], state.pop("model")["w"]) and loaded == state
    torch.load(tmp_path / "x.pt", weights_only=True)  # for anyone, without this module


@pytest.mark.parametrize("value", [np.float64(0.5), np.int64(1), torch.nn.Linear(1, 1), {1, 2}, object()])
def test_E3_what_weights_only_would_refuse_is_refused_when_saving(tmp_path, value):
    with pytest.raises(TypeError, match=r"state\['scores'\]\['f1'\] is a"):
        checkpoint.save(tmp_path / "x.pt", {"scores": {"f1": value}})
    assert list(tmp_path.iterdir()) == []


def test_a_write_that_fails_leaves_the_old_file_and_no_temporary(tmp_path, monkeypatch):
    checkpoint.save(tmp_path / "x.pt", {"epoch": 1})

    def torn(state, file):
        file.write(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(torch, "save", torn)
    with pytest.raises(OSError, match="disk full"):
        checkpoint.save(tmp_path / "x.pt", {"epoch": 2})
    assert checkpoint.load(tmp_path / "x.pt") == {"epoch": 1}
    assert sorted(p.name for p in tmp_path.iterdir()) == ["x.pt", "x.pt.sha256"]


@pytest.fixture
def calls(monkeypatch):
    """The calls of fsync and replace, in order."""
    calls, fsync, replace = [], os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda fd: (calls.append("fsync"), fsync(fd)))
    monkeypatch.setattr(os, "replace", lambda a, b: (calls.append(f"rename to {Path(b).name}"), replace(a, b)))
    return calls


def test_the_bytes_are_on_the_disk_before_the_name(tmp_path, calls):
    checkpoint.write_text(tmp_path / "x.txt", "")
    assert calls == ["fsync", "rename to x.txt", "fsync"]


def test_a_save_syncs_its_bytes_once_before_the_checksums_and_any_renaming(tmp_path, calls):
    checkpoint.save(tmp_path / "x.pt", {"epoch": 1}, keep_previous=True)
    calls.clear()
    checkpoint.save(tmp_path / "x.pt", {"epoch": 2}, keep_previous=True)
    checksums = ["fsync", "rename to x.pt.sha256", "fsync"]
    assert calls == ["fsync", *checksums, "rename to x.previous.pt", "rename to x.pt", "fsync"]


def test_text_is_written_whole(tmp_path):
    checkpoint.write_text(tmp_path / "config.json", "마스크")
    assert (tmp_path / "config.json").read_text(encoding="utf-8") == "마스크"


class Boom:
    def __reduce__(self):
        return os.system, ("touch executed",)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 cut", b"not a checkpoint", pickle.dumps(Boom())])
def test_a_file_that_is_no_checkpoint_is_one_clear_error_and_nothing_runs(tmp_path, monkeypatch, content):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x.pt").write_bytes(content)
    with pytest.raises(checkpoint.BadInput, match="x.pt is not a readable checkpoint"):
        checkpoint.load(tmp_path / "x.pt")
    torch.save({"model": Boom()}, tmp_path / "y.pt")
    with pytest.raises(checkpoint.BadInput, match="y.pt is not a readable checkpoint"):
        checkpoint.load(tmp_path / "y.pt")
    assert not (tmp_path / "executed").exists()


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_whatever_a_damaged_file_makes_torch_raise_is_bad_input(tmp_path):
    """There is no checksum file here, so torch reads damaged bytes."""
    files, rng, causes = [], random.Random(0), set()
    for is_zip in (True, False):
        torch.save(
            {"w": torch.arange(50.0), "more": [1, "a"]}, tmp_path / "x.pt", _use_new_zipfile_serialization=is_zip
        )
        files.append((tmp_path / "x.pt").read_bytes())
    for i in range(600):
        content = bytearray(files[i % 2])
        for _ in range(rng.choice((1, 3, 10))):
            content[rng.randrange(len(content))] = rng.randrange(256)
        (tmp_path / "x.pt").write_bytes(content)
        try:
            checkpoint.load(tmp_path / "x.pt")
        except checkpoint.BadInput as error:
            causes.add(type(error.__cause__))
    assert causes - {pickle.UnpicklingError, RuntimeError, EOFError, KeyError}  # others too, such as IndexError


def test_a_missing_file_and_a_bare_tensor_are_named(tmp_path):
    with pytest.raises(checkpoint.BadInput, match="nowhere.pt does not exist"):
        checkpoint.load(tmp_path / "nowhere.pt")
    torch.save(torch.zeros(1), tmp_path / "x.pt")
    with pytest.raises(checkpoint.BadInput, match="must contain a dict, not a Tensor"):
        checkpoint.load(tmp_path / "x.pt")


def test_the_command_prints_the_content_and_ends_with_code_2_and_one_line_for_a_bad_file(tmp_path):
    checkpoint.save(tmp_path / "x.pt", {"epoch": 3, "model": {"w": torch.zeros(4)}})
    command = [sys.executable, checkpoint.__file__]
    done = subprocess.run([*command, tmp_path / "x.pt"], capture_output=True, text=True)
    assert done.returncode == 0 and "model  dict of 1, tensors: 1, numbers in them: 4" in done.stdout
    for path, message in ((tmp_path / "no.pt", "no.pt does not exist"), (tmp_path, "Is a directory")):
        done = subprocess.run([*command, path], capture_output=True, text=True)
        assert done.returncode == 2 and message in done.stderr and len(done.stderr.splitlines()) == 1


# --- damage ----------------------------------------------------------------------------------------------------------


def two_versions(folder):
    for epoch in (1, 2):
        checkpoint.save(folder / "last.pt", {"epoch": epoch, "w": torch.arange(1000.0) * epoch}, keep_previous=True)
    return folder / "last.pt"


@pytest.mark.skipif(not shutil.which("sha256sum"), reason="needs sha256sum")
def test_sha256sum_checks_a_checkpoint_inside_its_folder(tmp_path):
    two_versions(tmp_path)
    command = ["sha256sum", "-c", "last.pt.sha256"]
    assert subprocess.run(command, cwd=tmp_path, capture_output=True).returncode == 0
    command[-1] = str(tmp_path / "last.pt.sha256")
    assert subprocess.run(command, cwd=tmp_path.parent, capture_output=True).returncode == 1


def test_the_checksum_beside_a_checkpoint_is_what_sha256sum_makes(tmp_path):
    path = two_versions(tmp_path)
    lines = [f"{hashlib.sha256((tmp_path / n).read_bytes()).hexdigest()}  {n}" for n in ("last.pt", "last.previous.pt")]
    assert (tmp_path / "last.pt.sha256").read_text().splitlines() == lines
    assert checkpoint.load(path)["epoch"] == 2 and checkpoint.load(checkpoint.previous(path))["epoch"] == 1
    checkpoint.save(tmp_path / "best.pt", {"epoch": 1})
    checkpoint.save(tmp_path / "best.pt", {"epoch": 2})
    digest = hashlib.sha256((tmp_path / "best.pt").read_bytes()).hexdigest()
    assert (tmp_path / "best.pt.sha256").read_text().split() == [digest, "best.pt"]
    assert not (tmp_path / "best.previous.pt").exists()


@pytest.mark.parametrize("case", range(20))
def test_a_cut_or_flipped_file_is_found_and_the_one_before_is_taken(tmp_path, capsys, case):
    path, rng = two_versions(tmp_path), random.Random(case)
    content = bytearray(path.read_bytes())
    if case % 2:
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    else:
        del content[rng.randrange(len(content)) :]
    path.write_bytes(content)
    assert checkpoint.load(path)["epoch"] == 1
    message = (
        f"last.pt is damaged: its SHA-256 is not in the checksum file; {tmp_path}/last.previous.pt is loaded instead"
    )
    assert message in capsys.readouterr().err
    checkpoint.save(path, {"epoch": 3}, keep_previous=True)
    assert checkpoint.load(path)["epoch"] == 3


@pytest.mark.parametrize("calls_before_the_kill", range(4))
def test_a_damaged_file_never_takes_the_place_of_the_whole_one_before_it(tmp_path, monkeypatch, calls_before_the_kill):
    path = two_versions(tmp_path)
    path.write_bytes(path.read_bytes()[:-9])
    moves, replace = [], os.replace

    def killed(a, b):
        if len(moves) == calls_before_the_kill:
            raise KeyboardInterrupt
        moves.append((Path(a).name, Path(b).name))
        replace(a, b)

    monkeypatch.setattr(os, "replace", killed)
    try:
        checkpoint.save(path, {"epoch": 3}, keep_previous=True)
    except KeyboardInterrupt:
        pass
    assert checkpoint.load(path)["epoch"] == (1 if calls_before_the_kill < 2 else 3)
    assert ("last.pt", "last.previous.pt") not in moves


def test_without_its_checksum_a_flipped_bit_is_not_found(tmp_path):
    """The control: torch alone loads a file with a wrong number in it, or fails without an undamaged one."""
    path = two_versions(tmp_path)
    content = bytearray(path.read_bytes())
    place = content.index(torch.arange(1000.0).mul(2).numpy().tobytes()[400:440])
    content[place] ^= 1
    path.write_bytes(content)
    (tmp_path / "last.pt.sha256").unlink()
    try:
        assert not torch.equal(checkpoint.load(path)["w"], torch.arange(1000.0) * 2)
    except checkpoint.BadInput:
        pass


def test_a_missing_file_gives_way_to_the_one_before_and_two_bad_ones_are_an_error(tmp_path, capsys):
    path = two_versions(tmp_path)
    path.unlink()
    assert checkpoint.load(path)["epoch"] == 1 and "is loaded instead" in capsys.readouterr().err
    checkpoint.previous(path).write_bytes(b"")
    with pytest.raises(checkpoint.BadInput, match=r"last.previous.pt is damaged"):
        checkpoint.load(path)


@pytest.mark.parametrize(
    "content", [pickle.dumps(Boom()), pickle.dumps(Boom(), protocol=0), pickle.dumps({"model": Boom()}, protocol=2)]
)
def test_malicious_pickles_are_not_executed(tmp_path, monkeypatch, content):
    monkeypatch.chdir(tmp_path)
    for name in ("last.pt", "last.previous.pt"):
        (tmp_path / name).write_bytes(content)
    with pytest.raises(checkpoint.BadInput, match="is not a readable checkpoint"):
        checkpoint.load(tmp_path / "last.pt")
    assert not (tmp_path / "executed").exists()


def test_a_full_disk_names_path_and_free_bytes_and_leaves_the_old_file(tmp_path, monkeypatch):
    path = two_versions(tmp_path)
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage._replace(free=1234))

    def full(file):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=rf"the disk is full, 1,234 bytes free: cannot write {path}\. Free some space"):
        checkpoint.save(path, {"epoch": 3}, keep_previous=True)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


def test_what_killed_writes_left_is_removed(tmp_path):
    two_versions(tmp_path)
    (tmp_path / ".last.pt.123.tmp").write_bytes(b"half")
    checkpoint.remove_stray(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["last.previous.pt", "last.pt", "last.pt.sha256"]


def dead_process():
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_E2_the_next_write_of_a_file_removes_what_a_killed_write_of_it_left(tmp_path):
    dead, running = dead_process(), os.getppid()
    for name in (f".out.csv.{dead}.0a1b2c3d.tmp", f".out.csv.{dead}.tmp", f".{'x' * 40}.{dead}.0a1b2c3d.tmp"):
        (tmp_path / name).write_text("half")
    kept = [f".out.csv.{running}.0a1b2c3d.tmp", f".other.csv.{dead}.0a1b2c3d.tmp", ".out.csv.mine.tmp", "out.csv.1.tmp"]
    for name in kept:
        (tmp_path / name).write_text("of someone else")
    checkpoint.write_text(tmp_path / "out.csv", "whole")
    checkpoint.write_text(tmp_path / ("x" * 255), "whole")  # the longest name that a file can have
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([*kept, "out.csv", "x" * 255])


def test_E2_the_owner_of_a_folder_removes_strays_but_not_those_of_a_running_process(tmp_path):
    strays = [f".last.pt.{dead_process()}.0a1b2c3d.tmp", f".last.pt.{os.getpid()}.0a1b2c3d.tmp"]
    for name in [*strays, f".report.html.{os.getppid()}.0a1b2c3d.tmp"]:
        (tmp_path / name).write_text("half")
    checkpoint.remove_stray(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == [f".report.html.{os.getppid()}.0a1b2c3d.tmp"]


def test_E6_a_planted_link_is_not_followed(tmp_path, monkeypatch):
    (tmp_path / "victim").write_text("precious")
    monkeypatch.setattr("secrets.token_hex", lambda n: "0" * 2 * n)  # as if it had been guessed
    (tmp_path / f".x.pt.{os.getpid()}.00000000.tmp").symlink_to(tmp_path / "victim")
    (tmp_path / f".x.pt.{os.getpid()}.tmp").symlink_to(tmp_path / "victim")  # the name in older versions
    with pytest.raises(FileExistsError):
        checkpoint.write_text(tmp_path / "x.pt", "mine")
    (tmp_path / "y.pt").symlink_to(tmp_path / "victim")
    checkpoint.write_text(tmp_path / "y.pt", "mine")
    assert (tmp_path / "victim").read_text() == "precious" and not (tmp_path / "y.pt").is_symlink()


KILLED = """
import os, random, signal, sys, threading, time
import torch
import checkpoint

folder, first, kills = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
path = f"{folder}/last.pt"
state = {"epoch": 0, "w": torch.zeros(50_000)}
for kill in range(first, first + kills):
    child = os.fork()
    if child == 0:
        moment = random.Random(kill)
        left = [moment.randrange(14)]  # is killed at one of the system calls of a save, or while it writes its bytes

        def dying(call):
            def wrapped(*args, **more):
                if left[0] == 0:
                    os.kill(os.getpid(), signal.SIGKILL)
                left[0] -= 1
                return call(*args, **more)
            return wrapped

        os.fsync, os.replace = dying(os.fsync), dying(os.replace)
        checkpoint.os.open = dying(os.open)
        if kill % 3 == 0:
            timer = threading.Timer(moment.random() * 0.004, lambda: os.kill(os.getpid(), signal.SIGKILL))
            left[0] = 10**9
            timer.start()
        try:
            epoch = checkpoint.load(path)["epoch"] if os.listdir(folder) else 0
        except checkpoint.BadInput:
            epoch = 0
        while True:
            epoch += 1
            checkpoint.save(path, state | {"epoch": epoch}, keep_previous=True)
    os.waitpid(child, 0)
    if os.path.exists(path) or os.path.exists(path.replace("last", "last.previous")):
        loaded = checkpoint.load(path)
        assert loaded["w"].shape == (50_000,)
        print(loaded["epoch"])
    else:
        print(0)
"""


def killed_writes(folder, kills):
    words = [sys.executable, "-c", KILLED, str(folder), "0", str(kills)]
    done = subprocess.run(words, cwd=Path(checkpoint.__file__).parent, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return [int(line) for line in done.stdout.split()]


def test_a_good_file_loads_after_every_kill_in_a_write(tmp_path):
    epochs = killed_writes(tmp_path, 200)
    assert len(epochs) == 200
    assert all(later >= earlier for earlier, later in zip(epochs, epochs[1:], strict=False))  # no epoch is lost
    assert epochs[-1] > 20  # and some saves were completed

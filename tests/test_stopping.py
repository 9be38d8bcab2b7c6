"""stopping.py: a signal stops the program where stopping is allowed, a second one stops it at once."""

import errno
import os
import pty
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from stopping import Lasting, Signals, Stopped


def started(tmp_path):
    command = [sys.executable, Path(__file__).resolve().parent.parent / "stopping.py"]
    process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, text=True)
    assert "step 1 of 10" in process.stdout.readline()
    return process


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_stops_between_two_steps(tmp_path, number):
    process = started(tmp_path)
    process.send_signal(number)
    assert process.communicate(timeout=30)[0] == f"stopped by {number.name} between two steps\n"


def test_the_second_signal_stops_at_once(tmp_path):
    process = started(tmp_path)
    process.send_signal(signal.SIGTERM)
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=30) in (128 + signal.SIGTERM, 128 + signal.SIGINT)


def test_E9_a_thread_that_hangs_does_not_keep_a_stopped_process_alive(tmp_path):
    code = """
import threading, time, stopping
stopping.PATIENCE = 0.5
def items():
    yield 1
    print("waiting", flush=True)
    time.sleep(1000)
threading.Thread(target=time.sleep, args=(1000,)).start()
with stopping.SIGNALS.installed(), stopping.SIGNALS.stopping(at_once=False):
    try:
        for item in stopping.SIGNALS.waiting(items()):
            print(item, flush=True)
    except stopping.Stopped:
        print("saved", flush=True)
"""
    root = Path(__file__).resolve().parent.parent
    process = subprocess.Popen([sys.executable, "-c", code], cwd=root, stdout=subprocess.PIPE, text=True)
    assert [process.stdout.readline() for _ in range(2)] == ["1\n", "waiting\n"]
    process.send_signal(signal.SIGTERM)
    assert process.communicate(timeout=30)[0] == "saved\n" and process.returncode == 128 + signal.SIGTERM


def test_where_it_may_stop_at_once_it_does():
    signals = Signals()
    with signals.installed():
        with pytest.raises(Stopped):
            signal.raise_signal(signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_what_was_asked_while_it_might_not_stop_is_done_at_the_next_check():
    signals = Signals()
    with signals.installed(), pytest.raises(Stopped):
        with signals.stopping(at_once=False):
            signal.raise_signal(signal.SIGINT)
            done = True
            with signals.stopping(at_once=True):
                done = False
    assert done


GOES_ON = """
import sys, time
from tqdm import tqdm
from stopping import Signals
with Signals().installed():
    for i in tqdm(range(40), file=sys.stderr, mininterval=0):
        print(f"step {i}", flush=True)
        time.sleep(0.02)
    open("done", "w").close()
"""


@pytest.mark.parametrize("where", ["pipe", "terminal"])
@pytest.mark.parametrize("is_protected", [True, False])
def test_E9_a_terminal_that_is_gone_does_not_end_the_program(tmp_path, where, is_protected):
    ours, theirs = os.pipe() if where == "pipe" else pty.openpty()
    code = GOES_ON if is_protected else GOES_ON.replace("with Signals().installed():", "if True:")  # the control
    words = [sys.executable, "-c", code]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).resolve().parent.parent)}
    process = subprocess.Popen(
        words, cwd=tmp_path, env=environment, stdout=theirs, stderr=theirs, start_new_session=True
    )
    os.close(theirs)
    assert b"step" in os.read(ours, 1000) + os.read(ours, 1000) + os.read(ours, 1000)
    os.close(ours)
    assert (process.wait(timeout=60) == 0) is is_protected
    assert Path(tmp_path, "done").exists() is is_protected


class Full:
    def write(self, text):
        raise OSError(errno.ENOSPC, "No space left on device")


def test_only_the_loss_of_the_terminal_is_ignored(capsys):
    with pytest.raises(OSError, match="No space"):
        Lasting(Full()).write("x")
    with Signals().installed():
        print("as always")
        print("an error", file=sys.stderr)
    assert capsys.readouterr() == ("as always\n", "an error\n")

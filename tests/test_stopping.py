"""stopping.py: a signal stops the program where stopping is allowed, a second one stops it at once."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from stopping import Signals, Stopped


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

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

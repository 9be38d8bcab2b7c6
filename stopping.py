"""Stop a run by SIGTERM or Ctrl-C only where nothing is lost by it.

    with SIGNALS.installed():                             # around the whole program
        with SIGNALS.stopping(at_once=False):             # weights change, files are written: a signal only asks
            for batch in batches:
                train(batch)
                SIGNALS.check()                           # and here it stops, by raising Stopped

A second signal leaves at once. `python stopping.py` waits for you to try it.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class Stopped(BaseException):
    """SIGTERM or Ctrl-C, at a place where nothing is lost by it."""


class Signals:
    """The first SIGTERM or Ctrl-C stops the run where it can be resumed exactly, a second one at once.

    While weights change or files are written a signal only asks, and `check` stops; elsewhere it stops by itself.
    """

    def __init__(self) -> None:
        self.asked, self.stops_at_once = 0, True

    @contextmanager
    def installed(self) -> Iterator[None]:
        self.asked, self.stops_at_once = 0, True
        if threading.current_thread() is not threading.main_thread():
            yield  # Python delivers signals to the main thread alone
            return
        numbers = (signal.SIGTERM, signal.SIGINT)
        before = [signal.signal(number, self._handle) for number in numbers]
        try:
            yield
        finally:
            for number, handler in zip(numbers, before, strict=True):
                signal.signal(number, handler)

    def _handle(self, number: int, frame: Any) -> None:
        if self.asked:
            os._exit(128 + number)
        self.asked = number
        if self.stops_at_once:
            raise Stopped

    @contextmanager
    def stopping(self, at_once: bool) -> Iterator[None]:
        before, self.stops_at_once = self.stops_at_once, at_once
        try:
            if at_once:
                self.check()
            yield
        finally:
            self.stops_at_once = before

    def check(self) -> None:
        if self.asked:
            raise Stopped


SIGNALS = Signals()


if __name__ == "__main__":
    try:
        with SIGNALS.installed(), SIGNALS.stopping(at_once=False):
            for step in range(1, 11):
                print(f"step {step} of 10 begins; Ctrl-C stops after it, a second Ctrl-C within it", flush=True)
                time.sleep(1)
                SIGNALS.check()
    except Stopped:
        print(f"stopped by {signal.Signals(SIGNALS.asked).name}, between two steps")

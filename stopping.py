# From f1kit. MIT licence, copyright (c) 2026 The f1kit authors. Keep this line and LICENSE with a copy of this file.
"""Stop a run on SIGTERM or Ctrl-C only at points where no work is lost.

    with SIGNALS.installed():                             # around the whole program
        with SIGNALS.stopping(at_once=False):             # while weights change or files are written
            for batch in batches:
                train(batch)
                SIGNALS.check()                           # raises Stopped if a signal was received

A second signal ends the process at once. A terminal that is gone does not end it: what is printed is then dropped.
`python stopping.py` is a demonstration with 10 steps of 1 second.
"""

from __future__ import annotations

import errno
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from typing import Any

PATIENCE = 10  # seconds for threads that still run after a signal has stopped the main thread


class Stopped(BaseException):
    """SIGTERM or Ctrl-C was received, and the program may stop here."""


class Lasting:
    """A text stream that drops what is written after its terminal, or the reader of its pipe, is gone."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        return self._try(self._stream.write, text) or 0

    def flush(self) -> None:
        self._try(self._stream.flush)

    def _try(self, call: Callable[..., Any], *arguments: str) -> Any:
        try:
            return call(*arguments)
        except OSError as error:
            if error.errno not in (errno.EIO, errno.EPIPE):
                raise
            with suppress(OSError), open(os.devnull, "wb") as nowhere:  # also for its buffer, written at the end
                os.dup2(nowhere.fileno(), self._stream.fileno())
            return None


class Signals:
    """The first SIGTERM or Ctrl-C stops the run at a point from which it can be resumed. A second one ends it at once.

    Inside `stopping(at_once=False)` the first signal is only stored in `asked`, and the next `check` raises Stopped.
    Elsewhere the signal raises Stopped immediately.

    agree: with several processes, a function that tells whether any of them was asked (ranks.Ranks.any). They then stop
    together, only at `check`.
    """

    def __init__(self) -> None:
        self.asked, self.stops_at_once = 0, True  # asked: the number of the signal, or 0
        self.agree: Callable[[int], bool] = bool

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Handles the two signals and the loss of the terminal inside the block, then restores what was before."""
        self.asked, self.stops_at_once, self.agree = 0, True, bool
        is_main = threading.current_thread() is threading.main_thread()  # Python delivers signals only to this one
        numbers = (signal.SIGTERM, signal.SIGINT) if is_main else ()
        before = [signal.signal(number, self._handle) for number in numbers]
        try:
            out, err = (stream and Lasting(stream) for stream in (sys.stdout, sys.stderr))  # None: it is closed
            with redirect_stdout(out), redirect_stderr(err):
                yield
        finally:
            for number, handler in zip(numbers, before, strict=True):
                signal.signal(number, handler)
            if self.asked:
                threading.Thread(target=_leave, args=(128 + self.asked,), daemon=True).start()

    def _handle(self, number: int, frame: Any) -> None:
        if self.asked:
            os._exit(128 + number)
        self.asked = number
        if self.stops_at_once:
            raise Stopped

    @contextmanager
    def stopping(self, at_once: bool) -> Iterator[None]:
        """Sets, inside the block, whether a signal stops at once or at the next `check`."""
        at_once = at_once and self.agree is bool
        before, self.stops_at_once = self.stops_at_once, at_once
        try:
            if at_once:
                self.check()
            yield
        finally:
            self.stops_at_once = before

    def waiting(self, items: Iterable[Any]) -> Iterator[Any]:
        """The same items. While it waits for the next one, a signal stops at once: loading loses no work."""
        items, end = iter(items), object()
        while True:
            with self.stopping(at_once=True):
                item = next(items, end)
            if item is end:
                return
            yield item

    def check(self) -> None:
        """Raises Stopped if a signal was received, by any process."""
        if self.agree(self.asked):
            self.asked = self.asked or signal.SIGTERM
            raise Stopped

    def check_alone(self) -> None:
        """`check` of one process alone. Several processes do not stop here."""
        if self.agree is bool:
            self.check()


def _leave(code: int) -> None:
    """Ends the process if a thread still runs some seconds after the main thread, such as a transform that hangs."""
    while threading.main_thread().is_alive():
        time.sleep(0.1)
    time.sleep(PATIENCE)
    os._exit(code)


SIGNALS = Signals()


if __name__ == "__main__":
    try:
        with SIGNALS.installed(), SIGNALS.stopping(at_once=False):
            for step in range(1, 11):
                print(f"step {step} of 10: Ctrl-C stops after this step, a second Ctrl-C stops at once", flush=True)
                time.sleep(1)
                SIGNALS.check()
    except Stopped:
        print(f"stopped by {signal.Signals(SIGNALS.asked).name} between two steps")

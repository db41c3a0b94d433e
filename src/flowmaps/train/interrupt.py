"""Ctrl-C and SIGTERM while training: a flag that the loop reads between steps."""

import signal
import threading
import time
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import final

ECHO = 0.5
"""Signals within so many seconds are one: `timeout` and some launchers signal a process and then its whole group."""


@final
@dataclass
class Stop:
    """Set by Ctrl-C or SIGTERM; the loop ends after the step that it is in, a second signal ends it at once."""

    signal: int = 0
    at: float = 0.0

    def __call__(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if not self.signal:
            self.signal, self.at = number, now
        elif now - self.at >= ECHO:
            raise KeyboardInterrupt


@contextmanager
def interruptible() -> Generator[Stop]:
    """Within this block the two signals raise a flag; in threads other than the main one nothing changes."""
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(number, stop) for number in numbers]
    try:
        yield stop
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)

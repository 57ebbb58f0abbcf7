"""The wish to stop, as signals tell it. Imports nothing heavy: it listens from the very start."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from cluster.errors import StoppedError

SIGNALS = (signal.SIGTERM, signal.SIGINT)
SAID = "stopped before training began: run it again"


class Stop:
    """Turns SIGTERM and the first Ctrl-C into a wish, and the second Ctrl-C into an end."""

    def __init__(self) -> None:
        self._wanted = threading.Event()
        self._at_once = False
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> "Stop":
        self._previous = {number: signal.getsignal(number) for number in SIGNALS}
        self.listen()
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def listen(self) -> None:
        """Take the signals, also from a library that has put handlers of its own in place."""
        for number in SIGNALS:
            signal.signal(number, self._handle)

    @property
    def wanted(self) -> bool:
        """Whether somebody has asked."""
        return self._wanted.is_set()

    def check(self) -> None:
        """Raise StoppedError if somebody has asked."""
        if self.wanted:
            raise StoppedError(SAID)

    def sleep(self, seconds: float) -> None:
        """Wait, or raise StoppedError as soon as somebody asks."""
        self._wanted.wait(seconds)
        self.check()

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """A block that may be cut anywhere: a wish is raised in it as StoppedError."""
        self._at_once = True
        try:
            self.check()
            yield
        finally:
            self._at_once = False

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.wanted and number == signal.SIGINT:
            raise KeyboardInterrupt
        self._wanted.set()
        if self._at_once:
            raise StoppedError(SAID)

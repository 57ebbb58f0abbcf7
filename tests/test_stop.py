import os
import signal
import threading
import time

import pytest

from alexnet.errors import EXIT_STOPPED
from cluster.errors import StoppedError
from cluster.stop import Stop


def ask(number: int = signal.SIGTERM) -> None:
    os.kill(os.getpid(), number)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_is_a_wish(number: int) -> None:
    with Stop() as stop:
        stop.check()
        ask(number)
        assert stop.wanted
        with pytest.raises(StoppedError) as stopped:
            stop.check()
    assert stopped.value.exit_code == EXIT_STOPPED


def test_a_second_interrupt_ends_at_once_and_a_second_sigterm_does_not() -> None:
    with Stop():
        ask()
        ask()
        with pytest.raises(KeyboardInterrupt):
            ask(signal.SIGINT)


def test_handlers_are_given_back_and_taken_again() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with Stop() as stop:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # as a library does
        stop.listen()
        ask()
        assert stop.wanted
    assert signal.getsignal(signal.SIGTERM) == before


def test_work_that_may_be_cut_is_cut() -> None:
    with Stop() as stop:
        threading.Timer(0.2, ask).start()
        began = time.monotonic()
        with pytest.raises(StoppedError), stop.at_once():
            time.sleep(30)
        assert time.monotonic() - began < 10
        with pytest.raises(StoppedError), stop.at_once():  # asked before
            raise AssertionError("not reached")


def test_a_sleep_ends_with_a_wish() -> None:
    with Stop() as stop:
        stop.sleep(0.01)
        threading.Timer(0.2, ask).start()
        began = time.monotonic()
        with pytest.raises(StoppedError):
            stop.sleep(30)
        assert time.monotonic() - began < 10

"""What somebody sees on a terminal of 80 columns, as tmux keeps it."""

import os
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from tests.clusters import ROOT, free_ports, wait_until

pytestmark = [
    pytest.mark.ray,
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("tmux") is None, reason="no tmux here"),
]

CONFIG = """
run_dir: {run}
data: {{path: {data}, image_size: 67}}
train: {{global_batch: 32, micro_batch: 16, max_steps: 40, log_every: 1}}
schedule: {{learning_rate: {rate}}}
checkpoint: {{every: 5}}
cluster: {{workers: 2, threads_per_worker: 1, metrics_port: {port}, standby_after: null}}
"""
COLUMNS = 80


class Terminal:
    """A terminal of 80 x 40 with a training in it."""

    def __init__(self, socket: Path, command: list[str]) -> None:
        self._tmux = ["tmux", "-S", str(socket), "-f", os.devnull]
        line = f"{shlex.join(command)}; echo ended with $?; sleep 600"
        self._run("new-session", "-d", "-x", str(COLUMNS), "-y", "40", "-c", str(ROOT), line)

    def lines(self) -> list[str]:
        """What is on it, and what has left it at the top."""
        shown = self._run("capture-pane", "-p", "-S", "-500").splitlines()
        return [line.rstrip() for line in shown if line.strip()]

    def shows(self, words: str) -> bool:
        return any(words in line for line in self.lines())

    def end(self) -> None:
        self._run("kill-server")

    def _run(self, *arguments: str) -> str:
        done = subprocess.run([*self._tmux, *arguments], check=True, capture_output=True, text=True)
        return done.stdout


def trained(folder: Path, digits: Path, rate: float = 0.01, *overrides: str) -> Terminal:
    config = folder / "config.yaml"
    text = CONFIG.format(run=folder / "run", data=digits, rate=rate, port=free_ports(2)[0])
    config.write_text(text)
    command = [sys.executable, "-m", "cluster", "train", str(config), *overrides]
    return Terminal(folder / "tmux", command)


def kill_a_rank(folder: Path) -> None:
    """Kill rank 1: the process whose output is its log."""
    log = folder / "run" / "logs" / "rank-1.log"
    for process in psutil.process_iter():
        try:
            if Path(f"/proc/{process.pid}/fd/1").readlink() == log:
                process.send_signal(signal.SIGKILL)
                return
        except (OSError, psutil.Error):
            continue
    raise AssertionError("no rank 1")


def check(lines: list[str]) -> None:
    """Nobody's noise, no traceback, no line that has lost its place."""
    assert all(len(line) <= COLUMNS for line in lines)
    for noise in ("Traceback", "WARNING", "tensorflow/", "(raylet)", "\x1b"):
        assert not [line for line in lines if noise in line], lines


def test_a_healthy_run(tmp_path: Path, digits: Path) -> None:
    terminal = trained(tmp_path, digits)
    try:
        wait_until(lambda: terminal.shows("images/s"), 240, "figures")
        live = terminal.lines()
        check(live)
        assert any("/40" in line and "time left" in line for line in live)
        assert any("compute" in line and "exchange" in line for line in live)
        wait_until(lambda: terminal.shows("ended with 0"), 240, "the end")
        ended = terminal.lines()
        check(ended)
        assert any(line.startswith("completed: 40 steps") for line in ended)
        assert not any("time left" in line for line in ended)  # the view has gone
    finally:
        terminal.end()


def test_a_run_whose_worker_is_killed(tmp_path: Path, digits: Path) -> None:
    terminal = trained(tmp_path, digits)
    try:
        wait_until(lambda: terminal.shows("checkpoint: step"), 240, "a checkpoint")
        kill_a_rank(tmp_path)
        wait_until(lambda: terminal.shows("starting again"), 30, "its loss")
        wait_until(lambda: terminal.shows("ranks are starting"), 30, "the next attempt")
        check(terminal.lines())
        wait_until(lambda: terminal.shows("ended with 0"), 300, "the end")
        check(terminal.lines())
    finally:
        terminal.end()


def test_a_failing_run(tmp_path: Path, digits: Path) -> None:
    """The last line says why, and it is that of the rank that failed."""
    terminal = trained(tmp_path, digits, 1e30)
    try:
        wait_until(lambda: terminal.shows("ended with 1"), 240, "the end")
        lines = terminal.lines()
        check(lines)
        assert "not finite" in " ".join(lines[-4:])
        assert not any("time left" in line for line in terminal.lines())
    finally:
        terminal.end()

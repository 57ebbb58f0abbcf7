"""What a pod does before it ends: the script in k8s/, run here."""

import subprocess
import sys
import time
from pathlib import Path

from tests.manifests import config_map


def started(name: str, *, seconds: float = 0.0) -> subprocess.Popen[bytes]:
    """A process under another name, which ends `seconds` after SIGTERM, with exit code 75."""
    program = (
        "import signal, sys, time\n"
        "def end(*_):\n"
        f"    time.sleep({seconds}); sys.exit(75)\n"
        "signal.signal(signal.SIGTERM, end)\n"
        "print(flush=True)\n"
        "time.sleep(60)"
    )
    argv = [*name.split(), "-c", program] if name.startswith("/") else [name, "-c", program]
    process = subprocess.Popen(argv, executable=sys.executable, stdout=subprocess.PIPE)
    assert process.stdout
    process.stdout.readline()
    return process


def pre_stop(tmp_path: Path, processes: list[subprocess.Popen[bytes]]) -> str:
    """The script, shown none but these processes: there may be others' ranks on this machine."""
    proc = tmp_path / "proc"
    proc.mkdir()
    for process in processes:
        (proc / str(process.pid)).symlink_to(f"/proc/{process.pid}")
    return config_map("alexnet-scripts")["pre-stop.sh"].replace("/proc/", f"{proc}/")


def test_a_pod_that_is_ended_waits_for_its_rank(tmp_path: Path) -> None:
    rank, other = started("ray::Worker.train", seconds=1.5), started("ray::IDLE")
    script = pre_stop(tmp_path, [rank, other])
    try:
        began = time.monotonic()
        ended = subprocess.Popen(["sh", "-c", script])
        assert rank.wait(30) == 75
        assert ended.wait(30) == 0
        assert time.monotonic() - began > 1.5
        assert other.poll() is None  # not asked
    finally:
        for process in (rank, other):
            process.kill()
            process.wait()


def test_the_script_finds_a_driver_by_its_command(tmp_path: Path) -> None:
    """`/opt/alexnet/bin/python /opt/alexnet/bin/alexnet train ...`, and not the shell around it."""
    command = "/opt/alexnet/bin/python /opt/alexnet/bin/alexnet train /config/config.yaml"
    proc = tmp_path / "proc"
    for pid, line in {"11": command, "12": "/bin/bash -c alexnet train x", "13": "sh x"}.items():
        (proc / pid).mkdir(parents=True)
        (proc / pid / "cmdline").write_text(line.replace(" ", "\0") + "\0")
    script = config_map("alexnet-scripts")["pre-stop.sh"].replace("/proc/", f"{proc}/")
    only_find = script[: script.index("kill -TERM")] + "training\n"
    found = subprocess.run(["sh", "-c", only_find], capture_output=True, text=True, check=True)
    assert found.stdout.split() == ["11"]

"""Who may write to a run: one driver at a time, and of its attempts the last.

A driver renews `lease.json` for as long as it lives, and leaves a run alone that another one still
renews. It compares no clocks: it looks whether the file changes.

For every attempt it gives rank 0 a desk of its own in the archive of checkpoints, numbered by a
generation, and takes those of earlier ones away, so that whoever was left behind, a frozen rank or
a driver thought dead, can commit nothing.
"""

import fcntl
import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil

from alexnet.archive import Archive, Desk
from alexnet.errors import AlexnetError, ConfigError

LEASE, LOCK = "lease.json", ".lease.lock"
BOOT, PROCESSES = Path("/proc/sys/kernel/random/boot_id"), Path("/proc/self/ns/pid")
RENEW_SECONDS = 2.0
EXPIRE_SECONDS = 15.0
FIELDS = {"holder", "host", "pid", "process_started", "generation", "beat"}
Record = dict[str, Any]


def read_lease(run: Path) -> Record | None:
    """Return what the lease of `run` says; None: there is none, or it is damaged."""
    try:
        record = json.loads((run / LEASE).read_text())
    except (FileNotFoundError, ValueError):
        return None
    return record if isinstance(record, dict) and record.keys() >= FIELDS else None


def is_held(
    run: Path, record: Record, renew: float = RENEW_SECONDS, expire: float = EXPIRE_SECONDS
) -> bool:
    """Return whether the holder in `record` lives; one on another machine is waited for."""
    if record["holder"] is None:
        return False
    if record.get("machine") == this_machine():
        return _is_alive(record["pid"], record["process_started"])
    deadline = time.monotonic() + expire
    while time.monotonic() < deadline:
        time.sleep(renew / 4)
        if (now := read_lease(run)) != record:
            return now is not None and now["holder"] is not None
    return False


def this_machine() -> str:
    """Return where a process number means the same: containers may share a host's name."""
    return f"{BOOT.read_text().strip()} {PROCESSES.readlink()}"


class Lease:
    """The right to write to the run directory `run`, while in its context."""

    def __init__(
        self,
        run: Path,
        archive: Archive,
        renew: float = RENEW_SECONDS,
        expire: float = EXPIRE_SECONDS,
    ) -> None:
        """Renew every `renew` seconds; one that has not changed for `expire` is nobody's."""
        self._run = run
        self._archive = archive
        self._renew = renew
        self._expire = expire
        self._end = threading.Event()
        self._writing = threading.Lock()  # by the thread that renews, and by the driver
        self._thread = threading.Thread(target=self._keep, name="lease", daemon=True)
        self._lost = False
        self._desk: Desk | None = None
        self._record: Record = {
            "holder": secrets.token_hex(8),
            "host": socket.gethostname(),
            "machine": this_machine(),
            "pid": os.getpid(),
            "process_started": psutil.Process().create_time(),
            "generation": 0,
            "beat": 0,
        }

    def __enter__(self) -> "Lease":
        self._run.mkdir(parents=True, exist_ok=True)
        with _locked(self._run):
            before = read_lease(self._run)
            if before and is_held(self._run, before, self._renew, self._expire):
                raise ConfigError(
                    f"{self._run}: in use by another job, process {before['pid']} on "
                    f"{before['host']}; wait for its end, or name another run_dir"
                )
            self._write(generation=before["generation"] if before else 0)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()
        if self.held:
            if self._desk:
                self._desk.leave()
            self._write(holder=None)

    @property
    def held(self) -> bool:
        """Whether nobody has taken the run over."""
        return not self._lost and self._is_mine()

    def check(self) -> None:
        """Raise AlexnetError if another driver has taken the run over."""
        if self._lost:
            raise AlexnetError(f"{self._run}: another job has taken this run over")

    def next_desk(self) -> Desk:
        """Begin an attempt: return the desk from which its rank 0 commits checkpoints."""
        self.check()
        self._write(generation=self._record["generation"] + 1)
        name = f"{self._record['generation']}-{self._record['holder']}"
        self._desk = self._archive.take_over(name)
        return self._desk

    def _keep(self) -> None:
        while not self._end.wait(self._renew):
            with suppress(OSError):  # a full disk, a share that hangs: the next time, perhaps
                if not self._is_mine():
                    self._lost = True
                    return
                self._write(beat=self._record["beat"] + 1)

    def _is_mine(self) -> bool:
        record = read_lease(self._run)
        return record is not None and record["holder"] == self._record["holder"]

    def _write(self, **changes: Any) -> None:
        with self._writing:
            self._record |= changes
            partial = self._run / f".{LEASE}.{self._record['pid']}"
            partial.write_text(json.dumps(self._record) + "\n")
            partial.rename(self._run / LEASE)


@contextmanager
def _locked(run: Path) -> Iterator[None]:
    """Keep two drivers that begin at the same moment apart; the system ends it with the process."""
    with (run / LOCK).open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(f"{run}: another job is just starting in it") from None
        except OSError:  # a file system without locks
            pass
        yield


def _is_alive(pid: int, started: float) -> bool:
    try:
        process = psutil.Process(pid)
        same = abs(process.create_time() - started) < 1
        return same and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False

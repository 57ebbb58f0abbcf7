"""A tiny training, launches of it as a user would start them, and the model of an unbroken one."""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil

from benchmarks.faults.processes import MARK, Missed, ranks
from tests.clusters import HERE, Host, RayCluster, free_ports

ROOT = Path(__file__).resolve().parents[2]
INJECT = Path(__file__).parent / "inject"
WORK = ROOT / "runs" / "chaos"
STEPS, EVERY, STALL_SECONDS = 12, 4, 30
STEP = re.compile(r"step +(\d+)  epoch")

CONFIG = f"""
run_dir: {{run}}
data: {{{{path: "{{data}}", image_size: 67, augment: {{{{shift: 0.1}}}}}}}}
train:
  {{{{global_batch: 24, micro_batch: 8, max_steps: {STEPS}, log_every: 1, exact_sums: true,
  check_replicas_every: {EVERY}}}}}
schedule: {{{{learning_rate: 0.01, warmup_steps: 5}}}}
checkpoint: {{{{every: {EVERY}}}}}
cluster:
  {{{{workers: 2, threads_per_worker: 1, metrics_port: {{port}}, start_timeout: 60,
  stall_timeout: {STALL_SECONDS}, standby_after: null}}}}
"""


class Launch:
    """A driver that runs, and each line that it has printed, with its moment."""

    def __init__(self, command: list[str], environment: dict[str, str]) -> None:
        self.started = time.monotonic()
        self.lines: list[tuple[float, str]] = []
        self.driver = subprocess.Popen(
            command,
            cwd=ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.driver.stdout
        for line in self.driver.stdout:
            self.lines.append((time.monotonic(), line.rstrip()))

    def steps(self, after: float = 0.0) -> list[tuple[float, int]]:
        """Return the steps printed since a moment, each with its own."""
        found = [(moment, STEP.match(line)) for moment, line in self.lines if moment > after]
        return [(moment, int(match[1])) for moment, match in found if match]

    def moment(self, words: str, after: float = 0.0) -> float | None:
        """Return when a line with these words was printed."""
        found = (moment for moment, line in self.lines if words in line and moment > after)
        return next(found, None)

    def await_line(self, words: str, after: float = 0.0) -> float:
        """Return when a line with these words was printed; wait for it while the driver lives."""
        while (moment := self.moment(words, after)) is None:
            self.check_alive(f"{words!r}")
            time.sleep(0.02)
        return moment

    def await_step(self, step: int, after: float = 0.0) -> float:
        """Return when a step as late as this was printed; wait for it while the driver lives."""
        while True:
            for moment, reached in self.steps(after):
                if reached >= step:
                    return moment
            self.check_alive(f"step {step}")
            time.sleep(0.02)

    def check_alive(self, before: str) -> None:
        """Miss if the driver has ended before something that is waited for."""
        if self.driver.poll() is not None and not self._reader.is_alive():
            raise Missed(f"the driver ended with {self.driver.returncode} before {before}: {self}")

    def goes_on(self) -> bool:
        """Whether it starts its ranks again, and does not end; wait for one of the two."""
        while self.driver.poll() is None:
            if self.moment("starting again"):
                return True
            time.sleep(0.02)
        return False

    def end(self) -> int:
        """Return the exit code, once there is one."""
        code = self.driver.wait()
        self._reader.join(timeout=2)  # children of a killed driver may hold the pipe a while
        return code

    def expect(self, code: int) -> None:
        """Wait for the end; any other exit code is a miss."""
        if (was := self.end()) != code:
            raise Missed(f"exit code {was}, not {code}: {self}")

    def __str__(self) -> str:
        return self.lines[-1][1] if self.lines else "it said nothing"

    @property
    def output(self) -> str:
        """All that was printed."""
        return "\n".join(line for _, line in self.lines)


@dataclass(frozen=True, kw_only=True)
class Reference:
    """What an unbroken run of the same seed has come to."""

    weights_sha256: str
    cold_start: float  # seconds from the launch to the first step
    goodput: float


class Site:
    """A folder with a config of its own, a run directory, and what is to go wrong in its ranks."""

    def __init__(self, name: str, data: str | Path, reference: Reference | None = None) -> None:
        self.folder = WORK / "rows" / name
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)
        self.run = self.folder / "run"
        self.data = data
        self.port = free_ports(2)[0]  # and the next: one for each rank
        self.host = HERE
        self._reference = reference
        self.environment = {
            **{name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"},
            MARK: str(self.folder),
            "PYTHONPATH": f"{INJECT}:{ROOT}",
            "TF_CPP_MIN_LOG_LEVEL": "2",
        }

    @property
    def reference(self) -> Reference:
        """The unbroken run."""
        assert self._reference
        return self._reference

    def launch(self, *overrides: str) -> Launch:
        """Start `alexnet train`, with a Ray of its own unless the environment names one."""
        config = self.folder / "config.yaml"
        config.write_text(CONFIG.format(run=self.run, data=self.data, port=self.port))
        command = [sys.executable, "-m", "cluster", "train", str(config), *overrides]
        return Launch(self.host.inside(*command), self.environment)

    def join(self, cluster: RayCluster, host: Host) -> None:
        """Have launches use this cluster, from this host."""
        self.host = host
        self.environment |= {
            name: value for name, value in cluster.environment().items() if name.startswith("RAY_")
        }

    def break_ranks(self, fault: str, **details: Any) -> None:
        """Have a fault of `inject/sitecustomize.py` happen in the ranks of the next launches."""
        for word in ("happened", "let-go", "wrote"):
            (self.folder / word).unlink(missing_ok=True)
        (self.folder / "fault.json").write_text(json.dumps({"fault": fault, **details}))

    def await_fault(self, launch: Launch) -> float:
        """Return the moment at which it has happened; wait for it while the driver lives."""
        return float(self.await_word("happened", launch))

    def await_word(self, name: str, launch: Launch) -> str:
        """Return what the fault has left in a file."""
        path = self.folder / name
        while not (path.exists() and (text := path.read_text())):
            launch.check_alive(name)
            time.sleep(0.02)
        return text

    def let_go(self) -> None:
        """Have the fault's hold on the ranks, if it is one that holds them, end."""
        (self.folder / "let-go").touch()

    def ranks(self) -> dict[int, psutil.Process]:
        """Return the processes that train, by rank."""
        return ranks(self.folder)

    @property
    def summary(self) -> dict[str, Any]:
        """What the last launch has left."""
        try:
            tree: dict[str, Any] = json.loads((self.run / "summary.json").read_text())
        except (OSError, ValueError) as error:
            raise Missed(f"no summary: {error}") from None
        return tree

    def checkpoints(self) -> list[Path]:
        """Return the finished checkpoints, the newest last."""
        return sorted((self.run / "checkpoints").glob("step-*"))

    def check_model(self) -> None:
        """Miss unless the last launch has completed with the weights of the unbroken run."""
        summary = self.summary
        if summary["status"] != "completed":
            raise Missed(f"status {summary['status']}")
        if summary["weights_sha256"] != self.reference.weights_sha256:
            raise Missed("WRONG MODEL: other weights than the unbroken run")


def prepared_digits() -> Path:
    """Return the digits as a prepared set, made once."""
    folder = WORK / "digits"
    if not (folder / "manifest.json").exists():
        command = [sys.executable, "-m", "cluster", "prepare", "digits", str(folder)]
        subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    return folder


def unbroken(data: Path) -> Reference:
    """Return what a run comes to that nothing happens to; taken anew when the code has changed."""
    kept = WORK / "unbroken.json"
    state = _code_sha256()
    if kept.exists() and (found := json.loads(kept.read_text()))["code"] == state:
        return Reference(**found["reference"])
    site = Site("unbroken", data)
    launch = site.launch()
    first = launch.await_step(1)
    launch.expect(0)
    reference = Reference(
        weights_sha256=site.summary["weights_sha256"],
        cold_start=round(first - launch.started, 2),
        goodput=site.summary["goodput_ratio"],
    )
    kept.write_text(json.dumps({"code": state, "reference": asdict(reference)}))
    return reference


def _code_sha256() -> str:
    digest = hashlib.sha256(CONFIG.encode())
    for folder in ("alexnet", "cluster"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            digest.update(path.read_bytes())
    return digest.hexdigest()

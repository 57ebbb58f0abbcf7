"""Jobs sent to a real Ray cluster by `alexnet submit`: followed, left, stopped, refused."""

import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import threading
import urllib.request
import uuid
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st
from ray.job_submission import JobDetails, JobStatus

from alexnet.config import DataConfig, OptimizerConfig, load
from cluster.config import ClusterConfig, JobConfig
from cluster.submission import command, exit_code, new_name
from tests.clusters import ROOT, RayCluster, free_ports, ray_cluster, start, wait_until

SMOKE = str(ROOT / "configs" / "smoke.yaml")
STEPS = 8
SMALL = [f"train.max_steps={STEPS}", "train.log_every=1", "cluster.metrics_port=0"]
FOREVER = ["train.max_steps=null", "train.epochs=1000"]


def config(**settings: object) -> JobConfig:
    return JobConfig.model_validate({"run_dir": "/runs/a", "data": {"path": "/data"}, **settings})


@given(
    run=st.text(st.characters(exclude_categories=["Cc", "Cs"]), max_size=30),
    decay=st.floats(0, 1),
    standby=st.none() | st.floats(0, 1e9),
    path=st.sampled_from(["/data/'; rm -rf $HOME #", "s3://bucket/set?region=x", "/null", "/1e3"]),
)
def test_a_command_says_what_the_config_says(
    run: str, decay: float, standby: float | None, path: str
) -> None:
    asked = config(
        run_dir=f"/runs/{run}",
        data=DataConfig(path=path, source="digits"),
        optimizer=OptimizerConfig(weight_decay=decay),
        cluster=ClusterConfig(workers=3, standby_after=standby),
    )
    verb, train, file, *overrides = shlex.split(command(asked))
    assert (verb, train) == ("alexnet", "train")
    assert load(JobConfig, Path(file), overrides) == asked


def test_a_command_says_no_more_than_the_config() -> None:
    assert command(config()) == "alexnet train /dev/null run_dir=/runs/a data.path=/data"


def test_names_are_of_the_run_and_differ() -> None:
    names = {new_name(config(run_dir="/runs/My run/")) for _ in range(9)}
    assert len(names) == 9
    assert all(re.fullmatch("My-run-[0-9a-f]{6}", name) for name in names)


@pytest.mark.parametrize(
    ("status", "code", "expected"),
    [
        (JobStatus.SUCCEEDED, 0, 0),
        (JobStatus.FAILED, 3, 3),
        (JobStatus.FAILED, 75, 75),
        (JobStatus.FAILED, -9, 137),
        (JobStatus.FAILED, None, 1),
        (JobStatus.STOPPED, None, 75),
    ],
)
def test_exit_codes(status: JobStatus, code: int | None, expected: int) -> None:
    job = JobDetails(type="SUBMISSION", status=status, entrypoint="x", driver_exit_code=code)
    assert exit_code(job) == expected


def alexnet(
    *arguments: str, environment: dict[str, str] | None = None, timeout: float = 120
) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "cluster", *arguments],
        cwd=ROOT,
        env={**os.environ, **(environment or {})},
        capture_output=True,
        text=True,
        timeout=timeout,
    )


@pytest.mark.parametrize(
    ("arguments", "code", "expected"),
    [
        (["data.path=/data"], 2, "run_dir = 'runs/smoke': a path on the cluster begins with /"),
        (["run_dir=/runs/a"], 2, "data.path = 'data/digits': on the cluster it begins with /"),
        (["run_dir=/runs/a", "data.path=/d", "train.epochs=0"], 2, "train.epochs = 0"),
        (["run_dir=/runs/a", "data.path=s3://key:hidden@bucket/set"], 2, "credentials do not"),
        (["run_dir=/runs/a", "data.path=/d"], 1, "no answer from http://127.0.0.1:"),
        (["run_dir=/runs/a", "data.path=/d", "--address=head:6379"], 2, "as in http://head:8265"),
        (["run_dir=/r", "data.path=/d", "--address=http://me:hidden@head:8265"], 2, "credentials"),
    ],
)
def test_mistakes_are_told_in_one_line(arguments: list[str], code: int, expected: str) -> None:
    nobody = {"RAY_API_SERVER_ADDRESS": f"http://127.0.0.1:{free_ports(1)[0]}"}
    done = alexnet("submit", SMOKE, *arguments, environment=nobody)
    assert done.returncode == code, done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert expected in done.stderr
    assert "hidden" not in done.stderr


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RayCluster]:
    with ray_cluster(4, tmp_path_factory.mktemp("ray")) as running:
        yield running


class Client:
    """A machine that knows a cluster's job API and its token, and nothing else of it."""

    def __init__(self, folder: Path, digits: Path, cluster: RayCluster) -> None:
        self.folder, self.run, self.cluster = folder, folder / "run", cluster
        self.secret = uuid.uuid4().hex
        hidden = ("RAY_ADDRESS", "RAY_AUTH_MODE")
        known = {k: v for k, v in cluster.environment().items() if k not in hidden}
        self.environment = {
            **known,
            "RAY_API_SERVER_ADDRESS": cluster.dashboard,
            "AWS_SECRET_ACCESS_KEY": self.secret,
        }
        self.train = [SMOKE, *SMALL, f"data.path={digits}", f"run_dir={self.run}"]

    def __call__(self, *arguments: str) -> "subprocess.CompletedProcess[str]":
        return alexnet(*arguments, environment=self.environment, timeout=300)

    def start(self, *arguments: str, log: str = "log") -> "subprocess.Popen[bytes]":
        return start([*arguments], self.environment, self.folder / log)

    def output(self, log: str = "log") -> str:
        return (self.folder / log).read_text()

    def steps(self, log: str = "log") -> list[int]:
        return steps(self.output(log))

    def driver(self) -> psutil.Process:
        """The process of the job that trains in `run`."""
        [driver] = [
            process
            for process in psutil.process_iter(["cmdline"])
            if f"run_dir={self.run}" in (process.info["cmdline"] or ())
            and "train" in process.info["cmdline"][:4]
        ]
        return driver


def steps(log: str) -> list[int]:
    return [int(step) for step in re.findall(r"step +(\d+)  epoch", log)]


@pytest.fixture
def client(tmp_path: Path, digits: Path, cluster: RayCluster) -> Client:
    return Client(tmp_path, digits, cluster)


@pytest.mark.ray
def test_a_job_is_sent_followed_and_ends_as_its_driver_does(client: Client) -> None:
    done = client("submit", *client.train, "--name", "whole")
    assert done.returncode == 0, done.stdout + done.stderr
    assert steps(done.stdout) == list(range(1, STEPS + 1))
    assert done.stderr.splitlines()[-1] == "job whole SUCCEEDED, exit code 0"
    assert json.loads((client.run / "summary.json").read_text())["status"] == "completed"

    assert client("logs", "whole").stdout == done.stdout
    line = client("status", "whole").stdout
    assert re.match(r"whole  SUCCEEDED  0  .*" + re.escape(str(client.run)), line)
    assert line in client("status").stdout

    again = client("submit", *client.train, "--name", "whole")
    assert again.returncode == 2
    assert "has had a job 'whole': name another" in again.stderr

    shown = all_jobs(client) + done.stdout + done.stderr
    assert "whole" in shown
    assert client.secret not in shown
    assert client.cluster.token not in shown


def all_jobs(client: Client) -> str:
    """All that the cluster keeps of its jobs, as anyone with the token can read it."""
    headers = {"Authorization": f"Bearer {client.cluster.token}"}
    request = urllib.request.Request(f"{client.cluster.dashboard}/api/jobs/", headers=headers)
    with urllib.request.urlopen(request, timeout=30) as answer:
        return str(answer.read().decode())


@pytest.mark.ray
@pytest.mark.parametrize(
    ("override", "code", "expected"),
    [
        ("data.source=/nothing", 3, "no such dataset"),
        ("cluster.workers=5", 2, "1 to 2 workers"),
    ],
)
def test_the_exit_code_of_the_driver_comes_back(
    client: Client, override: str, code: int, expected: str
) -> None:
    path = [f"data.path={client.folder}/none"] if "source" in override else []
    done = client("submit", *client.train, *path, override)
    assert done.returncode == code, done.stdout + done.stderr
    assert expected in done.stdout.splitlines()[-1]
    assert f"FAILED, exit code {code}" in done.stderr.splitlines()[-1]


@pytest.mark.ray
def test_an_interrupt_leaves_the_job_running_and_a_second_one_goes_on(client: Client) -> None:
    watching = client.start("submit", *client.train, *FOREVER, "--name", "left")
    wait_until(lambda: 3 in client.steps(), 120, "three steps")
    watching.send_signal(signal.SIGINT)
    assert watching.wait(timeout=20) == 1
    assert "job left goes on: alexnet logs --follow left" in client.output().splitlines()[-1]

    following = client.start("logs", "--follow", "left", log="again")
    seen = max(client.steps())
    wait_until(lambda: seen + 2 in client.steps("again"), 120, "more steps")
    assert client.steps("again")[:3] == [1, 2, 3]
    assert client("status", "left").stdout.startswith("left  RUNNING  -  ")

    client.driver().send_signal(signal.SIGTERM)
    assert following.wait(timeout=60) == 75, client.output("again")
    assert "job left FAILED, exit code 75" in client.output("again").splitlines()[-1]

    reached = json.loads((client.run / "summary.json").read_text())["steps"]
    done = client("submit", *client.train, f"train.max_steps={reached + 2}")
    assert done.returncode == 0, done.stdout + done.stderr
    assert steps(done.stdout) == [reached + 1, reached + 2]


@pytest.mark.ray
def test_stop_waits_for_the_last_checkpoint(client: Client) -> None:
    name = client("submit", *client.train, *FOREVER, "--no-wait").stdout.strip()
    following = client.start("logs", "-f", name)
    wait_until(lambda: 3 in client.steps(), 120, "three steps")
    done = client("stop", name)
    assert done.returncode == 0, done.stderr
    assert f"job {name} STOPPED, exit code 75" in done.stderr
    assert json.loads((client.run / "summary.json").read_text())["status"] == "preempted"
    assert following.wait(timeout=20) == 75, client.output()
    assert "preempted" in client.output()
    assert "STOPPED" in client("stop", name).stderr  # there is nothing left to do


@pytest.mark.ray
def test_a_log_goes_on_where_its_connection_broke(client: Client) -> None:
    with Relay(client.cluster.dashboard) as relay:
        address = f"--address=http://127.0.0.1:{relay.port}"
        watching = client.start("submit", *client.train, *FOREVER, address, "--name", "broken")
        wait_until(lambda: 2 in client.steps(), 120, "two steps")
        for _ in range(2):
            before = relay.cuts
            relay.cut()
            assert relay.cuts > before
            seen = max(client.steps())
            wait_until(partial(reached, client, seen + 2, watching), 120, "more steps")
            assert watching.poll() is None, client.output()
        assert client("stop", "broken").returncode == 0
        assert watching.wait(timeout=60) == 75, client.output()
    assert client.steps() == list(range(1, len(client.steps()) + 1))
    assert client("logs", "broken").stdout in client.output()


def reached(client: Client, step: int, watching: "subprocess.Popen[bytes]") -> bool:
    return step in client.steps() or watching.poll() is not None


class Relay:
    """A way to a cluster's job API that can be cut, and is there again at once."""

    def __init__(self, address: str) -> None:
        host, port = address.removeprefix("http://").split(":")
        self._goal = (host, int(port))
        self._server = socket.create_server(("127.0.0.1", 0))
        self._open: list[socket.socket] = []
        self.port: int = self._server.getsockname()[1]
        self.cuts = 0

    def __enter__(self) -> "Relay":
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.close()
        self.cut()

    def cut(self) -> None:
        for end in self._open:
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
                self.cuts += 1
        self._open.clear()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                here, _ = self._server.accept()
                there = socket.create_connection(self._goal)
                self._open += [here, there]
                for pair in ((here, there), (there, here)):
                    threading.Thread(target=self._copy, args=pair, daemon=True).start()

    @staticmethod
    def _copy(source: socket.socket, target: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                target.sendall(data)
            target.shutdown(socket.SHUT_WR)


@pytest.mark.ray
def test_a_wrong_token_is_refused(client: Client) -> None:
    client.environment["RAY_AUTH_TOKEN"] = "0" * 32
    for arguments in (["submit", *client.train], ["status"], ["logs", "x"], ["stop", "x"]):
        done = client(*arguments)
        assert done.returncode == 1
        assert len(done.stderr.splitlines()) == 1
        assert "no entry to http://127.0.0.1:" in done.stderr


@pytest.mark.ray
@pytest.mark.parametrize("verb", ["status", "logs", "stop"])
def test_no_such_job(client: Client, verb: str) -> None:
    done = client(verb, "nobody")
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert "no job 'nobody' at http://127.0.0.1:" in done.stderr

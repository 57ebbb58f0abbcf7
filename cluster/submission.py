"""Jobs on a Ray cluster that is elsewhere: sent, followed and stopped through its job API.

The API is Ray's own, at the port of its dashboard; the token that it wants is read from where Ray
reads it. Nothing of this process's environment is sent: a job has its secrets from its cluster.
"""

import asyncio
import logging
import os
import re
import secrets
import shlex
import time
from collections.abc import Callable, Iterator
from contextlib import aclosing, contextmanager, suppress
from datetime import datetime, timedelta
from typing import Any

import aiohttp
from ray.exceptions import AuthenticationError
from ray.job_submission import JobDetails, JobStatus, JobSubmissionClient

from alexnet.config import overrides
from alexnet.data.storage import refuse_credentials
from alexnet.errors import EXIT_FAILED, EXIT_OK, EXIT_STOPPED, AlexnetError, ConfigError
from cluster.config import JobConfig
from cluster.errors import one_line

NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9_.-]*[A-Za-z0-9])?")
RUN = "run_dir"  # in a job's metadata
PATIENCE_SECONDS = 60.0
SILENCE_SECONDS = 60.0  # of a log: its connection may have been cut without a word


class NoAnswerError(AlexnetError):
    """The job API cannot be reached, or cannot answer now."""


def command(config: JobConfig) -> str:
    """Return what the cluster runs: `alexnet train` with every setting that `config` makes.

    Raises:
        ConfigError: a path that means nothing on another machine.
    """
    run, data = config.run_dir, config.data.path
    if not run.startswith("/"):
        raise ConfigError(f"run_dir = {run!r}: a path on the cluster begins with /")
    if "://" not in data and not data.startswith("/"):
        raise ConfigError(f"data.path = {data!r}: on the cluster it begins with /, or is a URI")
    settings = overrides(config.model_dump(exclude_unset=True))
    return shlex.join(["alexnet", "train", os.devnull, *settings])


def new_name(config: JobConfig) -> str:
    """Return a name for a job: that of its run, and some letters, since a run has many jobs."""
    run = re.sub(r"[^A-Za-z0-9]+", "-", config.run_path.name).strip("-")
    return f"{run or 'run'}-{secrets.token_hex(3)}"


def exit_code(job: JobDetails) -> int:
    """Return the exit code of a job's driver.

    Ray keeps none of a job that it was asked to stop. Such a job goes on when it is submitted
    again, and that is what 75 says. A signal counts as in a shell; a driver that Ray could not
    start, or has lost, has failed.
    """
    if job.status == JobStatus.STOPPED:
        return EXIT_STOPPED
    if job.driver_exit_code is None:
        return EXIT_OK if job.status == JobStatus.SUCCEEDED else EXIT_FAILED
    code = int(job.driver_exit_code)
    return code if code >= 0 else 128 - code


def facts(job: JobDetails) -> dict[str, Any]:
    """Return a job's name, status, exit code, when, for how long, and its run."""
    started = datetime.fromtimestamp((job.start_time or 0) / 1000).astimezone()
    ended = job.end_time / 1000 if job.end_time else time.time()
    return {
        "job": job.submission_id,
        "status": str(job.status),
        "exit_code": exit_code(job) if job.status.is_terminal() else None,
        "started_at": started.isoformat(timespec="seconds"),
        "seconds": max(0, round(ended - started.timestamp())),
        "run": (job.metadata or {}).get(RUN) or job.entrypoint,
    }


def describe(job: JobDetails) -> str:
    """Return a line with the `facts` of a job."""
    found = facts(job)
    code = "-" if found["exit_code"] is None else found["exit_code"]
    started = datetime.fromisoformat(found["started_at"])
    took = timedelta(seconds=found["seconds"])
    return "  ".join(
        [found["job"], found["status"], f"{code}", f"{started:%F %T%z}", f"{took}", found["run"]]
    )


class JobApi:
    """The job API of a cluster."""

    def __init__(self, address: str) -> None:
        """Reach the API at `address`, as in http://head:8265.

        Raises:
            AlexnetError: there is none, or it refuses the token.
        """
        refuse_credentials(address)
        if not address.startswith(("http://", "https://")):
            raise ConfigError(f"address {address!r}: expected a job API, as in http://head:8265")
        os.environ["RAY_API_SERVER_ADDRESS"] = address  # Ray prefers its variables to an argument
        logging.disable(logging.WARNING)  # Ray's, of every connection that closes
        self._address = address
        with self._told():
            self._client = JobSubmissionClient(address)

    def submit(self, name: str, entrypoint: str, run_dir: str) -> None:
        """Send a job; a cluster that has only just started is given time to take it.

        Raises:
            ConfigError: a name that cannot be one, or that another job has.
        """
        if not NAME.fullmatch(name):
            raise ConfigError(f"job name {name!r}: expected letters, digits, '-', '_' and '.'")
        deadline = time.monotonic() + PATIENCE_SECONDS
        while True:
            try:
                with self._told(name):
                    self._client.submit_job(
                        entrypoint=entrypoint, submission_id=name, metadata={RUN: run_dir}
                    )
                return
            except NoAnswerError as error:
                if "No available agent" not in str(error) or time.monotonic() > deadline:
                    raise
            time.sleep(1)

    def job(self, name: str) -> JobDetails:
        """Return what Ray knows about a job."""
        with self._told(name):
            return self._client.get_job_info(name)

    def jobs(self) -> list[JobDetails]:
        """Return all jobs that were sent to the cluster since it started, the oldest first."""
        with self._told():
            jobs = [job for job in self._client.list_jobs() if job.submission_id]
        return sorted(jobs, key=lambda job: job.start_time or 0)

    def log(self, name: str) -> str:
        """Return what a job has printed until now."""
        with self._told(name):
            return str(self._client.get_job_logs(name))

    def stop(self, name: str) -> JobDetails:
        """End a job as SIGTERM does, and return it once it has ended."""
        while not (job := self.job(name)).status.is_terminal():
            with self._told(name):
                self._client.stop_job(name)  # again: one that is only just starting does not hear
            time.sleep(1)
        return job

    def follow(self, name: str, write: Callable[[str], object]) -> JobDetails:
        """Hand a job's log to `write`, from its first line on; return the job once it has ended.

        A connection that breaks is made again, and the log goes on where it was.

        Raises:
            AlexnetError: the cluster has not answered for a minute, or has forgotten the job.
        """
        log, deadline = _Log(write), None
        while True:
            try:
                self.job(name)
                deadline = None
                with self._told(name), suppress(TimeoutError):
                    asyncio.run(self._tail(name, log))
                if (job := self.job(name)).status.is_terminal():
                    return job
            except NoAnswerError as error:
                deadline = deadline or time.monotonic() + PATIENCE_SECONDS
                if time.monotonic() > deadline:
                    message = f"{error}; the job may go on: alexnet logs --follow {name}"
                    raise AlexnetError(message) from error
            time.sleep(1)

    async def _tail(self, name: str, log: "_Log") -> None:
        log.rewind()
        tail = self._client.tail_job_logs(name)
        async with asyncio.timeout(SILENCE_SECONDS) as limit, aclosing(tail) as pieces:
            async for piece in pieces:
                log.add(piece)
                limit.reschedule(asyncio.get_running_loop().time() + SILENCE_SECONDS)

    @contextmanager
    def _told(self, name: str = "") -> Iterator[None]:
        """Tell what Ray's client raises in one line."""
        try:
            yield
        except BrokenPipeError:  # of our own output
            raise
        except AuthenticationError as error:
            raise AlexnetError(
                f"no entry to {self._address}: the token in RAY_AUTH_TOKEN, RAY_AUTH_TOKEN_PATH or "
                "~/.ray/auth_token is missing or not that cluster's"
            ) from error
        except (RuntimeError, OSError, aiohttp.ClientError) as error:
            said = one_line(error)
            if "does not exist" in said:
                raise AlexnetError(f"no job {name!r} at {self._address}") from error
            if "already exists" in said:
                raise ConfigError(
                    f"{self._address} has had a job {name!r}: name another"
                ) from error
            raise NoAnswerError(
                f"no answer from {self._address}: {said.rstrip('.')}; another address is given "
                "with --address or in RAY_API_SERVER_ADDRESS"
            ) from error


class _Log:
    """What has been read of a log that is read from its beginning after every interruption."""

    def __init__(self, write: Callable[[str], object]) -> None:
        self._write = write
        self._written = 0
        self._position = 0

    def rewind(self) -> None:
        self._position = 0

    def add(self, piece: str) -> None:
        new = piece[max(0, self._written - self._position) :]
        self._position += len(piece)
        if new:
            self._write(new)
            self._written = self._position

"""The Ray cluster that a launch runs on: one to join, or one that is started for it alone."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import ray
from ray._private import worker as ray_worker
from ray.exceptions import RayError

from alexnet.errors import AlexnetError
from cluster.config import JobConfig
from cluster.errors import StoppedError, one_line, refusal
from cluster.guard import guarded
from cluster.plan import plan_workers
from cluster.screen import Screen
from cluster.stop import Stop

GONE_SECONDS = "5"
GPUS = "CUDA_VISIBLE_DEVICES"


@contextmanager
def connected(config: JobConfig, screen: Screen, stop: Stop) -> Iterator[None]:
    """Join the cluster that RAY_ADDRESS names, or start one here for as long as this lasts.

    Raises:
        ConfigError: one that was started here has no room for the ranks.
    """
    address = os.environ.get("RAY_ADDRESS", "local")
    is_own = address == "local"
    screen.say("starting Ray here" if is_own else f"joining Ray at {address}")
    try:
        if is_own:  # its control store never comes back: whoever waits for it is left behind
            os.environ.setdefault("RAY_gcs_rpc_server_reconnect_timeout_s", GONE_SECONDS)
        own = {"include_dashboard": False} if is_own else {}
        ray.init(address, log_to_driver=False, logging_level=logging.WARNING, **own)
    except (RayError, ConnectionError, RuntimeError) as error:
        raise AlexnetError(f"Ray at {address}: {refusal(error)}") from error
    except SystemExit as error:  # Ray's answer to SIGTERM
        raise StoppedError("stopped while Ray was starting: run it again") from error
    stop.listen()
    with _without_gpus(), _without_repeats(), guarded() if is_own else nullcontext():
        try:
            stop.check()
            plan = plan_workers(config, ray.cluster_resources())
            if is_own:  # no node will ever join it
                plan.check_fits(ray.cluster_resources())
            yield
        except RayError as error:
            raise AlexnetError(f"Ray: {one_line(error)}") from error
        finally:
            ray.shutdown()


@contextmanager
def _without_repeats() -> Iterator[None]:
    """Keep off our output what Ray prints on it from its logs, whatever `log_to_driver` says.

    A lost worker, for one, is told of by whoever notices it here.
    """
    printing = "print_to_stdstream"  # a function of Ray's that no setting stands for
    before = getattr(ray_worker, printing)
    setattr(ray_worker, printing, lambda *_, **__: None)
    try:
        yield
    finally:
        setattr(ray_worker, printing, before)


@contextmanager
def _without_gpus() -> Iterator[None]:
    """Hide GPUs, which are the workers', from this process.

    No longer than this lasts: Ray would find none at a next launch.
    """
    before = os.environ.get(GPUS)
    os.environ[GPUS] = ""
    try:
        yield
    finally:
        os.environ.pop(GPUS)
        os.environ.update({} if before is None else {GPUS: before})

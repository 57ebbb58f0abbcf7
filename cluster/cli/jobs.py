"""Verbs of jobs on clusters: render, submit, logs, stop (status: see runs)."""

import sys
from typing import TYPE_CHECKING, Any, NoReturn

import click

from alexnet.errors import EXIT_FAILED
from cluster.cli.options import ADDRESS, CONFIG, OVERRIDES, settings_of

if TYPE_CHECKING:
    from ray.job_submission import JobDetails

    from cluster.submission import JobApi

JOB = click.argument("job")


@click.command()
@CONFIG
@OVERRIDES
@click.option("--name", help="Of the RayJob and, with -config, its ConfigMap.")
@click.option("--image", help="That all its containers run.")
@click.option(
    "--ranks-per-pod",
    type=click.IntRange(1, 8),
    default=1,
    show_default=True,
    help="Each gets what the worker's pod has as shipped.",
)
@click.option("--queue", help="Kueue's LocalQueue to wait in.")
@click.option("--data-claim", help="PersistentVolumeClaim that is /data.")
@click.option("--runs-claim", help="PersistentVolumeClaim that is /runs.")
def render(config: str, overrides: tuple[str, ...], **place: Any) -> None:
    """Print the RayJob that trains as CONFIG says, changed by KEY=VALUE, for kubectl create -f -.

    It is the one in k8s/, with pods for cluster.workers ranks of cluster.gpus_per_worker GPUs;
    what is not asked for is as shipped. Nothing is printed that KubeRay would refuse.
    """
    from cluster import render as rendering

    settings = settings_of(config, overrides)
    click.echo(rendering.render(settings, rendering.Place(**place)), nl=False)


@click.command()
@CONFIG
@OVERRIDES
@ADDRESS
@click.option("--name", help="Of the job; otherwise the run's, and some letters.")
@click.option("--no-wait", is_flag=True, help="Print the job's name and return.")
def submit(
    config: str, overrides: tuple[str, ...], address: str, name: str | None, no_wait: bool
) -> None:
    """Train as CONFIG says, changed by KEY=VALUE, on the Ray cluster at ADDRESS.

    CONFIG is read here, the paths in it are the cluster's. Shows the job's log and ends with its
    exit code. Ctrl-C leaves the job running: `logs --follow` takes it up again, `stop` ends it.

    The token is the one in RAY_AUTH_TOKEN, RAY_AUTH_TOKEN_PATH or ~/.ray/auth_token.
    """
    from cluster.submission import JobApi, command, new_name

    settings = settings_of(config, overrides)
    name, entrypoint = name or new_name(settings), command(settings)
    api = JobApi(address)
    api.submit(name, entrypoint, settings.run_dir)
    if no_wait:
        click.echo(name)
        return
    click.echo(f"job {name} at {address}", err=True)
    _follow(api, name)


@click.command()
@JOB
@ADDRESS
@click.option("--follow", "-f", is_flag=True, help="Until JOB ends, and end with its exit code.")
def logs(job: str, address: str, follow: bool) -> None:
    """Print what JOB has printed."""
    from cluster.submission import JobApi

    api = JobApi(address)
    if follow:
        _follow(api, job)
    click.echo(api.log(job), nl=False)


@click.command()
@JOB
@ADDRESS
def stop(job: str, address: str) -> None:
    """Have JOB write a last checkpoint and end; return when it has ended."""
    from cluster.submission import JobApi

    _say_end(JobApi(address).stop(job))


def _follow(api: "JobApi", name: str) -> NoReturn:
    """Show a job's log and end with its exit code; Ctrl-C ends no more than the showing."""
    from cluster.submission import exit_code

    try:
        job = api.follow(name, lambda text: click.echo(text, nl=False))
    except KeyboardInterrupt:
        click.echo(f"job {name} goes on: alexnet logs --follow {name}", err=True)
        sys.exit(EXIT_FAILED)
    _say_end(job)
    sys.exit(exit_code(job))


def _say_end(job: "JobDetails") -> None:
    from cluster.submission import exit_code

    code = exit_code(job)
    lines = (job.message or "").splitlines()
    reason = f": {lines[0]}" if lines and job.driver_exit_code is None else ""
    click.echo(f"job {job.submission_id} {job.status}, exit code {code}{reason}", err=True)

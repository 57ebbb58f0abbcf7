"""The verb that trains."""

import sys
from pathlib import Path

import click

from cluster.cli.options import CONFIG, OVERRIDES


@click.command()
@CONFIG
@OVERRIDES
@click.option("--replace", is_flag=True, help="Delete what RUN_DIR holds and start from nothing.")
@click.option("--print-config", is_flag=True, help="Print the resolved settings and do nothing.")
@click.option(
    "--fit-memory",
    is_flag=True,
    help="Take the largest train.micro_batch that there is memory for.",
)
@click.option(
    "--profile",
    type=click.IntRange(min=1),
    metavar="STEPS",
    help="Trace so many steps for TensorBoard and tell where their time goes.",
)
def train(
    config: Path,
    overrides: tuple[str, ...],
    replace: bool,
    print_config: bool,
    fit_memory: bool,
    profile: int | None,
) -> None:
    """Train as CONFIG says, changed by KEY=VALUE (as in train.epochs=5).

    Runs on the Ray cluster that RAY_ADDRESS names, or starts one here. A run that was stopped or
    killed goes on from its newest checkpoint.
    """
    from alexnet.config import dump, load
    from cluster.config import JobConfig

    profiled = [f"train.profile_steps={profile}"] if profile else []
    settings = load(JobConfig, config, [*overrides, *profiled])
    if print_config:
        click.echo(dump(settings), nl=False)
        return

    from cluster.stop import Stop

    with Stop() as stop:
        from rich.console import Console

        from cluster.job import run_job
        from cluster.screen import Screen

        screen = Screen(Console())
        summary = run_job(settings, replace, screen, stop, fit_memory)
    screen.end(summary)
    sys.exit(summary["exit_code"])

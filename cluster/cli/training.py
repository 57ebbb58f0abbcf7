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
@click.option("--dry-run", is_flag=True, help="Show the plan, time a few steps, write no run.")
@click.option(
    "--fit-memory",
    is_flag=True,
    help="Take the largest train.micro_batch that there is memory for.",
)
def train(
    config: Path,
    overrides: tuple[str, ...],
    replace: bool,
    print_config: bool,
    dry_run: bool,
    fit_memory: bool,
) -> None:
    """Train as CONFIG says, changed by KEY=VALUE (as in train.epochs=5).

    Runs on the Ray cluster that RAY_ADDRESS names, or starts one here. A run that was stopped or
    killed goes on from its newest checkpoint.
    """
    from alexnet.config import dump, load
    from cluster.config import JobConfig

    settings = load(JobConfig, config, overrides)
    if print_config:
        click.echo(dump(settings), nl=False)
        return

    from cluster.stop import Stop

    with Stop() as stop:
        from rich.console import Console

        from cluster.job import run_job
        from cluster.rehearsal import rehearse
        from cluster.screen import Screen

        with Screen(Console()) as screen:
            if dry_run:
                rehearse(settings, screen, stop, fit_memory)
                return
            summary = run_job(settings, replace, screen, stop, fit_memory)
            screen.end(summary)
    sys.exit(summary["exit_code"])

"""The verb that trains."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, NoReturn

import click

from cluster.cli.options import CONFIG, OVERRIDES, print_settings, settings_of

if TYPE_CHECKING:
    from cluster.config import JobConfig
    from cluster.screen import Screen
    from cluster.stop import Stop


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
@click.option(
    "--profile",
    type=click.IntRange(min=1),
    metavar="STEPS",
    help="Trace so many steps for TensorBoard and tell where their time goes.",
)
def train(
    config: str,
    overrides: tuple[str, ...],
    replace: bool,
    print_config: bool,
    dry_run: bool,
    fit_memory: bool,
    profile: int | None,
) -> None:
    """Train as CONFIG says, changed by KEY=VALUE (as in train.epochs=5).

    CONFIG is a file, or the name of a preset (`alexnet config presets`). Runs on the Ray cluster
    that RAY_ADDRESS names, or starts one here. A run that was stopped or killed goes on from its
    newest checkpoint.
    """
    profiled = [f"train.profile_steps={profile}"] if profile else []
    settings = settings_of(config, [*overrides, *profiled])
    if print_config:
        print_settings(settings)
    elif dry_run:
        with _launching() as (screen, stop):
            from cluster.rehearsal import rehearse

            rehearse(settings, screen, stop, fit_memory)
    else:
        run(settings, replace, fit_memory)


def run(settings: "JobConfig", replace: bool = False, fit_memory: bool = False) -> NoReturn:
    """Train, show how it goes, and end with the run's exit code."""
    with _launching() as (screen, stop):
        from cluster.job import run_job

        summary = run_job(settings, replace, screen, stop, fit_memory)
        screen.end(summary)
    sys.exit(summary["exit_code"])


@contextmanager
def _launching() -> Iterator[tuple["Screen", "Stop"]]:
    """Listen for a stop while Ray is imported, and keep a screen."""
    from cluster.stop import Stop

    with Stop() as stop:
        from rich.console import Console

        from cluster.screen import Screen

        with Screen(Console()) as screen:
            yield screen, stop

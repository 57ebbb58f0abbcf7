"""Verbs of run directories: runs list, diff, resume; and status, of a run or of jobs."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from cluster.cli.options import ADDRESS, JSON, OVERRIDES, settings_of
from cluster.cli.training import run as train

if TYPE_CHECKING:
    from cluster.config import JobConfig

LIST = "list"


class _ListsByDefault(click.Group):
    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if not args or args[0] not in (*self.commands, *ctx.help_option_names):
            args = [LIST, *args]
        return super().parse_args(ctx, args)


@click.group(cls=_ListsByDefault, options_metavar="", subcommand_metavar="[list | diff | resume]")
def runs() -> None:
    """List, compare and resume runs; `runs [FOLDER]` alone lists."""


@runs.command(LIST)
@click.argument("folder", default="runs", type=click.Path(path_type=Path))
@JSON
def list_(folder: Path, as_json: bool) -> None:
    """List the runs below FOLDER ("runs" unless told otherwise), the newest first."""
    from cluster.run_facts import row
    from cluster.runs import find_runs, open_runs
    from cluster.tables import listing, show

    found = open_runs(find_runs(folder))
    if as_json:
        for run in found:
            click.echo(json.dumps(row(run)))
    elif found:
        show(listing(found, folder))
    else:
        click.echo(f"{folder}: no runs")


@runs.command()
@click.argument("a", type=click.Path(path_type=Path))
@click.argument("b", type=click.Path(path_type=Path))
@JSON
def diff(a: Path, b: Path, as_json: bool) -> None:
    """Set the runs A and B against each other: settings that differ, and results."""
    from cluster.run_facts import compared
    from cluster.runs import Run
    from cluster.tables import pairs, results, show

    settings, found = compared(Run.open(a), Run.open(b))
    if as_json:
        click.echo(json.dumps({"settings": settings, "results": found}))
        return
    show(pairs(settings, "setting", str(a), str(b)))
    click.echo()
    show(results(found, str(a), str(b)))


@runs.command()
@click.argument("run")
@OVERRIDES
def resume(run: str, overrides: tuple[str, ...]) -> None:
    """Go on with RUN by its own config, changed by KEY=VALUE (as in train.epochs=5).

    It is `alexnet train RUN/config.yaml`, though RUN may have been moved.
    """
    train(settings_in(run, overrides))


def settings_in(run: str, overrides: Iterable[str] = ()) -> "JobConfig":
    """Return the settings of a run, to go on with it where it is now."""
    from alexnet.records import CONFIG

    config = Path(run, CONFIG)
    where = json.dumps(str(config.parent.absolute()), ensure_ascii=False)
    return settings_of(str(config), [f"run_dir={where}", *overrides])


@click.command()
@click.argument("run", required=False)
@ADDRESS
@JSON
def status(run: str | None, address: str, as_json: bool) -> None:
    """Say how RUN does: a run directory, or a job of the cluster at ADDRESS; or list all jobs.

    A line a job: name, status, exit code, start, duration, run directory (or command).
    """
    from cluster import run_facts
    from cluster.runs import Run, is_run
    from cluster.tables import description, show

    if run and (is_run(Path(run)) or "/" in run or run.startswith(".")):
        state = run_facts.state(Run.open(Path(run)))
        click.echo(json.dumps(state)) if as_json else show(description(state))
    else:
        _jobs(run, address, as_json)


def _jobs(name: str | None, address: str, as_json: bool) -> None:
    from cluster.submission import JobApi, describe, facts

    api = JobApi(address)
    for job in [api.job(name)] if name else api.jobs():
        click.echo(json.dumps(facts(job)) if as_json else describe(job))

"""The verb that looks for what would fail."""

import json
import os
import sys

import click

from alexnet.errors import EXIT_FAILED, EXIT_OK
from cluster.cli.options import OVERRIDES, settings_of


@click.command()
@click.argument("config", required=False)
@OVERRIDES
@click.option("--json", "as_json", is_flag=True, help="One JSON object, with all checks.")
def doctor(config: str | None, overrides: tuple[str, ...], as_json: bool) -> None:
    """Check this machine and, with CONFIG, what it names; say how to mend what is wrong.

    Takes less than a minute, most of it for two processes that train a step together. Run it on
    every node. Exit code: 1 if there is a problem; warnings are none.
    """
    from rich.console import Console

    from cluster.doctor import report
    from cluster.doctor.checks import examine

    job = settings_of(config, overrides) if config else None
    console, found = Console(), []
    for name, finding in examine(job):
        found.append((name, finding))
        if not as_json:
            console.print(report.line(name, finding))
    click.echo(json.dumps(report.as_json(found)) if as_json else report.total(found))
    has_problem = any(finding.status == "problem" for _, finding in found)
    sys.stdout.flush()
    os._exit(EXIT_FAILED if has_problem else EXIT_OK)  # waits for no check that was left behind

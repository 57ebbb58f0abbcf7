"""Arguments and options that several verbs take."""

from pathlib import Path

import click

OVERRIDES = click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
CONFIG = click.argument("config", type=click.Path(path_type=Path))
BEST = click.option(
    "--best", is_flag=True, help="Of a run: the one that scored highest, not the newest."
)
ADDRESS = click.option(
    "--address",
    envvar="RAY_API_SERVER_ADDRESS",
    default="http://127.0.0.1:8265",
    show_default=True,
    show_envvar=True,
    help="Of the cluster's job API.",
)

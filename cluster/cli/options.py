"""Arguments and options that several verbs take, and what they stand for."""

from collections.abc import Iterable
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from cluster.config import JobConfig

OVERRIDES = click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
CONFIG = click.argument("config")
JSON = click.option("--json", "as_json", is_flag=True, help="For programs.")
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


def settings_of(config: str, overrides: Iterable[str] = ()) -> "JobConfig":
    """Return the settings of CONFIG, a file or the name of a preset, changed by KEY=VALUE."""
    from alexnet.config import load
    from cluster.config import JobConfig
    from cluster.presets import find

    return load(JobConfig, find(config), overrides)


def print_settings(settings: "JobConfig") -> None:
    """Print settings as YAML that is itself a config."""
    from alexnet.config import dump

    click.echo(dump(settings), nl=False)

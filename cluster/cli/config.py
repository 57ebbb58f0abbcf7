"""Verbs of settings: config show, diff, schema, presets."""

import json
from dataclasses import asdict

import click

from cluster.cli.options import CONFIG, JSON, OVERRIDES, print_settings, settings_of


@click.group()
def config() -> None:
    """Show, compare and list settings. CONFIG is a file, or the name of a preset."""


@config.command()
@CONFIG
@OVERRIDES
def show(config: str, overrides: tuple[str, ...]) -> None:
    """Print every setting of CONFIG, changed by KEY=VALUE, as YAML."""
    print_settings(settings_of(config, overrides))


@config.command()
@click.argument("a")
@click.argument("b")
@JSON
def diff(a: str, b: str, as_json: bool) -> None:
    """Print the settings that are not the same in the configs A and B."""
    from alexnet.config import differences, flat
    from cluster.tables import pairs
    from cluster.tables import show as show_table

    left, right = (flat(settings_of(each).model_dump()) for each in (a, b))
    found = differences(left, right)
    if as_json:
        click.echo(json.dumps(found))
    elif found:
        show_table(pairs(found, "setting", a, b))
    else:
        click.echo("the same settings")


@config.command()
def schema() -> None:
    """Print the JSON schema of a config, for editors."""
    from alexnet.config import schema as schema_of
    from cluster.config import JobConfig

    click.echo(json.dumps(schema_of(JobConfig), indent=1))


@config.command()
@JSON
def presets(as_json: bool) -> None:
    """List the configs that come with this program, and what training by each of them costs.

    FLOPs are those of forward and backward passes. Images and classes are those of the set that
    is prepared where the preset looks for it, and otherwise those of the published set.
    """
    from cluster.presets import Preset, names
    from cluster.tables import about, costs
    from cluster.tables import show as show_table

    found = [Preset.read(name) for name in names()]
    if as_json:
        for preset in found:
            of_a_run = {"images": preset.images, "flops": preset.flops}
            click.echo(json.dumps(asdict(preset) | of_a_run))
    else:
        show_table(costs(found))
        click.echo()
        show_table(about(found))

"""The verb that predicts how training scales."""

import json
from pathlib import Path
from typing import Any

import click

from cluster.quantities import BANDWIDTH, DELAY, SHARE, TIME


@click.command()
@click.option(
    "--workers", type=click.IntRange(1, 1_000_000), default=1024, show_default=True, help="At most."
)
@click.option("--step-time", type=TIME, required=True, help="Of a worker alone.")
@click.option("--bandwidth", type=BANDWIDTH, required=True, help="Of a node, out and in, a second.")
@click.option("--latency", type=DELAY, default="5us", show_default=True, help="Of a message.")
@click.option("--batch", type=click.IntRange(1), default=32, show_default=True, help="Of a worker.")
@click.option(
    "--micro-batches",
    type=click.IntRange(1),
    default=1,
    show_default=True,
    help="That a worker takes its batch in.",
)
@click.option(
    "--update-time",
    type=DELAY,
    default="0ms",
    show_default=True,
    help="Of --step-time: what comes after the exchange.",
)
@click.option(
    "--overlap",
    type=SHARE,
    default="100%",
    show_default=True,
    help="Of the backward pass that an exchange can run beside.",
)
@click.option(
    "--gpus-per-node",
    "node_workers",
    type=click.IntRange(1),
    default=1,
    show_default=True,
    help="Workers that share a node's bandwidth.",
)
@click.option(
    "--node-bandwidth",
    type=BANDWIDTH,
    default="25GB",
    show_default=True,
    help="Between a node's workers, a second.",
)
@click.option(
    "--allreduce", type=click.Choice(["ring", "hierarchical"]), default="ring", show_default=True
)
@click.option(
    "--dense-layers",
    type=click.Choice(["auto", "dense", "factored"]),
    default="auto",
    show_default=True,
    help="What is exchanged of them: gradients, or inputs and output deltas.",
)
@click.option("--reader", type=click.IntRange(1), help="Images/s that a worker's loader makes.")
@click.option("--checkpoint-every", type=click.IntRange(1), default=200, show_default=True)
@click.option(
    "--write-bandwidth", type=BANDWIDTH, default="1GB", show_default=True, help="Of checkpoints."
)
@click.option(
    "--blocked",
    type=SHARE,
    default="15%",
    show_default=True,
    help="Of a checkpoint's writing for which steps wait.",
)
@click.option("--mtbf", type=TIME, help="Of a node, between failures; otherwise none fails.")
@click.option(
    "--restart-time", type=DELAY, default="60s", show_default=True, help="To the first step again."
)
@click.option(
    "--model", type=click.Choice(["seed", "original", "bn"]), default="seed", show_default=True
)
@click.option("--json", "as_json", is_flag=True, help="A JSON object a line: bytes and seconds.")
@click.option("--plot", type=click.Path(path_type=Path), metavar="FILE.svg", help="Draw it, too.")
def simulate(workers: int, model: str, as_json: bool, plot: Path | None, **settings: Any) -> None:
    """Predict how AlexNet scales: what a step takes on 1, 2, 4, ... workers, and so a whole run.

    All workers have the same batch. Times and bandwidths are numbers with a unit (25ms, 100Gbit),
    best measured where it is to run. docs/scaling.md has the formulas, and what they leave out.
    """
    from rich.console import Console

    from alexnet.config import ModelConfig
    from cluster import simulate as simulating
    from cluster.scaling import Scenario, doubling, layers_of, predict

    if plot:
        simulating.check_plot(plot)
    layers = layers_of(ModelConfig.model_validate({"name": model}))
    given = {name: value for name, value in settings.items() if value is not None}
    scenario = Scenario(layers=layers, **given)
    predictions = [predict(scenario, number) for number in doubling(workers)]
    if as_json:
        for prediction in predictions:
            click.echo(json.dumps(simulating.as_json(prediction)))
    else:
        Console(width=simulating.WIDTH).print(simulating.table(predictions))
    if plot:
        simulating.plot(predictions, plot)

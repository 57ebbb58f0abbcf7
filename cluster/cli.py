"""The verbs of `alexnet`. Heavy imports wait until a verb needs them."""

import json
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from alexnet.errors import EXIT_FAILED, AlexnetError

CONTEXT = {"help_option_names": ["-h", "--help"]}
OVERRIDES = click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
CONFIG = click.argument("config", type=click.Path(path_type=Path))


@click.group(context_settings=CONTEXT)
@click.option("--debug", is_flag=True, help="Show a traceback with an error.")
@click.pass_context
def cli(context: click.Context, debug: bool) -> None:
    """Train AlexNet on many GPUs: Ray launches Horovod workers on sharded Parquet data.

    Exit codes: 0 done, 1 failed, 2 bad configuration or usage, 3 bad data, 75 stopped with a
    checkpoint (run it again to go on).
    """
    context.obj = debug


@cli.command()
@click.argument("source")
@click.argument("out", type=click.Path(path_type=Path))
@click.option(
    "--validation-share",
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    default=0.1,
    show_default=True,
    help="Held out where SOURCE names no validation split.",
)
@click.option("--threads", type=click.IntRange(0), default=0, help="0: one a core.")
def prepare(source: str, out: Path, validation_share: float, threads: int) -> None:
    """Write SOURCE as checksummed Parquet shards to OUT.

    SOURCE is a folder of images (split/class/*.jpg or class/*.jpg), a tar of one, or 'digits', the
    handwritten digits that come with scikit-learn.
    """
    from alexnet.data import prepare as preparing

    options = preparing.PrepareOptions(validation_share=validation_share, threads=threads)
    with click.progressbar(length=1, label=f"preparing {source}", file=sys.stderr) as bar:

        def progress(done: int, total: int) -> None:
            bar.length = total
            bar.update(done - bar.pos)

        dataset = preparing.prepare(source, out, options, progress)
    for name, split in dataset.splits.items():
        click.echo(f"{name}: {split.rows} images in {len(split.shards)} shards")
    click.echo(f"{len(dataset.classes)} classes: {', '.join(dataset.classes[:10])}")
    if dataset.rejected:
        click.echo(f"left out: {dataset.rejected} unreadable, listed in {out / 'rejected.csv'}")


@cli.command()
@CONFIG
@OVERRIDES
@click.option("--replace", is_flag=True, help="Delete what RUN_DIR holds and start from nothing.")
@click.option("--print-config", is_flag=True, help="Print the resolved settings and do nothing.")
def train(config: Path, overrides: tuple[str, ...], replace: bool, print_config: bool) -> None:
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

    from rich.console import Console

    from cluster.job import run_job
    from cluster.screen import Screen

    screen = Screen(Console())
    summary = run_job(settings, replace, screen)
    screen.end(summary)
    sys.exit(summary["exit_code"])


@cli.command()
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.argument("dataset", required=False)
def evaluate(checkpoint: Path, dataset: str | None) -> None:
    """Score CHECKPOINT, a run directory or one of its checkpoints, on DATASET's validation split.

    Without DATASET, on the one that the run was trained on. Prints JSON.
    """
    from alexnet.task import evaluate_checkpoint

    click.echo(json.dumps(evaluate_checkpoint(checkpoint, dataset)))


def main() -> None:
    """Run the command line; an expected error is one line and its exit code."""
    _one_line(lambda: cli(prog_name="alexnet"))


def _one_line(run: Callable[[], Any]) -> None:
    try:
        run()
    except AlexnetError as error:
        if "--debug" in sys.argv:
            traceback.print_exc()
        click.echo(f"alexnet: {error}", err=True)
        sys.exit(error.exit_code)
    except OSError as error:
        if "--debug" in sys.argv:
            traceback.print_exc()
        click.echo(f"alexnet: {error}", err=True)
        sys.exit(EXIT_FAILED)
    except KeyboardInterrupt:
        sys.exit(EXIT_FAILED)

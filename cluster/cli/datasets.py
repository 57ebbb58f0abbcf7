"""Verbs of image sets: prepare, index, verify."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

from alexnet.errors import EXIT_DATA, EXIT_OK

if TYPE_CHECKING:
    from alexnet.data.shards import ShardSet

VALIDATION_SHARE = click.option(
    "--validation-share",
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    default=0.1,
    show_default=True,
    help="Held out where no part is named for validation.",
)


@click.command()
@click.argument("source")
@click.argument("out")
@VALIDATION_SHARE
@click.option("--size", type=click.IntRange(8), help="Resize the shorter side to this.")
@click.option(
    "--store",
    type=click.Choice(["jpeg", "raw"]),
    default="jpeg",
    show_default=True,
    help="raw: pixels; with --size, of the centre square.",
)
@click.option("--shard-rows", type=click.IntRange(1), default=4096, show_default=True)
@click.option(
    "--max-rejected",
    type=click.FloatRange(0, 1),
    default=0.1,
    show_default=True,
    help="Share of unreadable images at which SOURCE is refused.",
)
@click.option("--workers", type=click.IntRange(0), default=0, help="Threads; 0: one a core.")
def prepare(source: str, out: str, **options: Any) -> None:
    """Write SOURCE as checksummed Parquet shards to OUT.

    SOURCE is a folder, or a tar or zip of one, local or a URI, that holds class folders
    ([split/]class/*.jpg), CIFAR-10 or CIFAR-100 as their authors pack them, or ImageNet's archives
    (ILSVRC2012); or a name: digits, cifar10, cifar100, synthetic:IMAGES[:CLASSES[:SIDE]].

    A killed run goes on where it was when it is run again.
    """
    from alexnet.data import prepare as preparing

    with _progress(f"preparing {source}") as progress:
        dataset = preparing.prepare(source, out, preparing.PrepareOptions(**options), progress)
    _describe(dataset)
    if dataset.rejected:
        click.echo(f"left out: {dataset.rejected} unreadable, listed in {out}/rejected.csv")


@click.command()
@click.argument("folder")
@VALIDATION_SHARE
def index(folder: str, validation_share: float) -> None:
    """Write a manifest for the Parquet image files in FOLDER, so that they can be trained on.

    The image column may be a struct with bytes (as Hugging Face's datasets write it), binary, or a
    list of bytes; labels may be numbers or names. The files are not changed.
    """
    from alexnet.data import index as indexing

    with _progress(f"reading {folder}") as progress:
        dataset = indexing.index(folder, validation_share, progress)
    _describe(dataset)
    if dataset.rejected:
        click.echo(f"{dataset.rejected} cannot be decoded: train with data.on_bad_row=skip")


@click.command()
@click.argument("folder")
def verify(folder: str) -> None:
    """Compare every byte of the set in FOLDER with its manifest; exit with 3 if any differs."""
    from alexnet.data import index as indexing

    with _progress(f"verifying {folder}") as progress:
        problems = indexing.verify(folder, progress)
    for problem in problems:
        click.echo(problem)
    remedy = ": copy these files anew, or prepare the set again" if problems else ""
    click.echo(f"{folder}: {len(problems) or 'no'} problems{remedy}")
    sys.exit(EXIT_DATA if problems else EXIT_OK)


@contextmanager
def _progress(label: str) -> Iterator[Callable[[int, int], None]]:
    with click.progressbar(length=1, label=label, file=sys.stderr) as bar:

        def progress(done: int, total: int) -> None:
            bar.length = total
            bar.update(done - bar.pos)

        yield progress


def _describe(dataset: "ShardSet") -> None:
    for name, split in dataset.splits.items():
        click.echo(f"{name}: {split.rows} images in {len(split.shards)} shards")
    click.echo(f"{len(dataset.classes)} classes: {', '.join(dataset.classes[:10])}")

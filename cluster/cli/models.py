"""Verbs of what has been trained: evaluate, predict, export, report."""

import importlib
import json
import os
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

import click

from alexnet.errors import DataError
from cluster.cli.options import BEST

STDERR = 2


class _WithTensorFlow(click.Command):
    """A verb that has TensorFlow in its own process."""

    def invoke(self, context: click.Context) -> Any:
        _import_tensorflow()
        return super().invoke(context)


def _import_tensorflow() -> None:
    """Import it without its banners, which some of its libraries write whatever the log level."""
    has_gpu = Path("/dev/nvidiactl").exists()  # otherwise it is no error that none is found
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2" if has_gpu else "3")
    shown = os.dup(STDERR)
    with TemporaryFile() as said:
        os.dup2(said.fileno(), STDERR)
        try:
            importlib.import_module("tensorflow")
        except BaseException:
            said.seek(0)
            os.write(shown, said.read())
            raise
        finally:
            os.dup2(shown, STDERR)
            os.close(shown)


@click.command(cls=_WithTensorFlow)
@click.argument("checkpoint")
@click.argument("dataset", required=False)
@BEST
def evaluate(checkpoint: str, dataset: str | None, best: bool) -> None:
    """Score CHECKPOINT, a run or one of its checkpoints, on DATASET's validation split.

    Without DATASET, on the one that the run was trained on. Prints JSON.
    """
    from alexnet.trained import Trained

    click.echo(json.dumps(Trained.load(checkpoint, best).evaluate(dataset)))


@click.command(cls=_WithTensorFlow)
@click.argument("model")
@click.argument("images", nargs=-1, required=True)
@BEST
@click.option("--top", type=click.IntRange(1), default=3, show_default=True, help="Classes told.")
@click.option("--json", "as_json", is_flag=True, help="A JSON object a line, with all classes.")
def predict(model: str, images: tuple[str, ...], best: bool, top: int, as_json: bool) -> None:
    """Say what is on IMAGES, files or folders of them, as MODEL, a run or a checkpoint, sees it.

    An image that cannot be read is told on its line; the others are done, and the exit code is 3.
    """
    from dataclasses import asdict

    from alexnet.trained import Trained, image_files

    files = image_files(images)
    width = max(len(str(path)) for path in files)
    problems = 0
    for found in Trained.load(model, best).predict(files):
        problems += found.problem is not None
        if as_json:
            click.echo(json.dumps(asdict(found)))
            continue
        likely = list(found.probabilities.items())[:top]
        told = found.problem or "  ".join(f"{name} {share:.1%}" for name, share in likely)
        click.echo(f"{found.image:{width}}  {told}")
    if problems:
        raise DataError(f"{problems} of {len(files)} could not be read as images")


@click.command(cls=_WithTensorFlow)
@click.argument("model")
@click.argument("out")
@BEST
@click.option("--images", help="A folder, or a file, to compare on; otherwise held-out images.")
def export(model: str, out: str, best: bool, images: str | None) -> None:
    """Write MODEL, a run or a checkpoint, to OUT, to be used without this program.

    OUT's end says the format: .keras, .h5, .onnx, or / for a SavedModel's folder. It takes pixels
    and answers with probabilities; class names travel inside. It is read again and compared with
    the checkpoint first: if any probability is more than 1e-4 off, nothing is written.
    """
    os.environ["CUDA_VISIBLE_DEVICES"] = ""  # all formats on one device, in float32 as it is
    from alexnet import export as exporting
    from alexnet.trained import Trained, image_files

    exporting.format_of(out)  # before a checkpoint comes from afar
    files = image_files([images]) if images else []
    found = exporting.export(Trained.load(model, best), out, files)
    click.echo(f"{out}: at most {found.difference:.1e} from the checkpoint on {found.images}")


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), help="Instead of report.html in RUN.")
def report(run: Path, out: Path | None) -> None:
    """Write RUN on one page: curves, time, confusion, images, restarts, environment, config.

    The page is one file that needs no network. Every launch that trains writes it at its end.
    """
    from alexnet.report.page import write_report

    click.echo(write_report(run, out))

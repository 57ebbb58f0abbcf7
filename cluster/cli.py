"""The verbs of `alexnet`. Heavy imports wait until a verb needs them."""

import json
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click

from alexnet.errors import EXIT_DATA, EXIT_FAILED, EXIT_OK, AlexnetError, DataError
from cluster.quantities import BANDWIDTH, DELAY, SHARE, TIME

if TYPE_CHECKING:
    from ray.job_submission import JobDetails

    from alexnet.data.shards import ShardSet
    from cluster.submission import JobApi

DEBUG = "--debug"
CONTEXT = {"help_option_names": ["-h", "--help"]}
OVERRIDES = click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
CONFIG = click.argument("config", type=click.Path(path_type=Path))
JOB = click.argument("job")
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

VALIDATION_SHARE = click.option(
    "--validation-share",
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    default=0.1,
    show_default=True,
    help="Held out where no part is named for validation.",
)


@click.group(context_settings=CONTEXT)
@click.option(DEBUG, is_flag=True, help="Show a traceback with an error (of any verb).")
def cli(debug: bool) -> None:
    """Train AlexNet on many GPUs: Ray launches Horovod workers on sharded Parquet data.

    Exit codes: 0 done, 1 failed, 2 bad configuration or usage, 3 bad data, 75 stopped with a
    checkpoint (run it again to go on).
    """


@cli.command()
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


@cli.command()
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


@cli.command()
@click.argument("folder")
def verify(folder: str) -> None:
    """Compare every byte of the set in FOLDER with its manifest; exit with 3 if any differs."""
    from alexnet.data import index as indexing

    with _progress(f"verifying {folder}") as progress:
        problems = indexing.verify(folder, progress)
    for problem in problems:
        click.echo(problem)
    click.echo(f"{folder}: {len(problems) or 'no'} problems")
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


@cli.command()
@CONFIG
@OVERRIDES
@click.option("--replace", is_flag=True, help="Delete what RUN_DIR holds and start from nothing.")
@click.option("--print-config", is_flag=True, help="Print the resolved settings and do nothing.")
@click.option(
    "--fit-memory",
    is_flag=True,
    help="Take the largest train.micro_batch that there is memory for.",
)
def train(
    config: Path,
    overrides: tuple[str, ...],
    replace: bool,
    print_config: bool,
    fit_memory: bool,
) -> None:
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

    from cluster.stop import Stop

    with Stop() as stop:
        from rich.console import Console

        from cluster.job import run_job
        from cluster.screen import Screen

        screen = Screen(Console())
        summary = run_job(settings, replace, screen, stop, fit_memory)
    screen.end(summary)
    sys.exit(summary["exit_code"])


@cli.command()
@click.argument("checkpoint")
@click.argument("dataset", required=False)
@BEST
def evaluate(checkpoint: str, dataset: str | None, best: bool) -> None:
    """Score CHECKPOINT, a run or one of its checkpoints, on DATASET's validation split.

    Without DATASET, on the one that the run was trained on. Prints JSON.
    """
    from alexnet.trained import Trained

    click.echo(json.dumps(Trained.load(checkpoint, best).evaluate(dataset)))


@cli.command()
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


@cli.command()
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


@cli.command()
@CONFIG
@OVERRIDES
@click.option("--name", help="Of the RayJob and, with -config, its ConfigMap.")
@click.option("--image", help="That all its containers run.")
@click.option(
    "--ranks-per-pod",
    type=click.IntRange(1, 8),
    default=1,
    show_default=True,
    help="Each gets what the worker's pod has as shipped.",
)
@click.option("--queue", help="Kueue's LocalQueue to wait in.")
@click.option("--data-claim", help="PersistentVolumeClaim that is /data.")
@click.option("--runs-claim", help="PersistentVolumeClaim that is /runs.")
def render(config: Path, overrides: tuple[str, ...], **place: Any) -> None:
    """Print the RayJob that trains as CONFIG says, changed by KEY=VALUE, for kubectl create -f -.

    It is the one in k8s/, with pods for cluster.workers ranks of cluster.gpus_per_worker GPUs;
    what is not asked for is as shipped. Nothing is printed that KubeRay would refuse.
    """
    from alexnet.config import load
    from cluster import render as rendering
    from cluster.config import JobConfig

    settings = load(JobConfig, config, overrides)
    click.echo(rendering.render(settings, rendering.Place(**place)), nl=False)


@cli.command()
@CONFIG
@OVERRIDES
@ADDRESS
@click.option("--name", help="Of the job; otherwise the run's, and some letters.")
@click.option("--no-wait", is_flag=True, help="Print the job's name and return.")
def submit(
    config: Path, overrides: tuple[str, ...], address: str, name: str | None, no_wait: bool
) -> None:
    """Train as CONFIG says, changed by KEY=VALUE, on the Ray cluster at ADDRESS.

    CONFIG is read here, the paths in it are the cluster's. Shows the job's log and ends with its
    exit code. Ctrl-C leaves the job running: `logs --follow` takes it up again, `stop` ends it.

    The token is the one in RAY_AUTH_TOKEN, RAY_AUTH_TOKEN_PATH or ~/.ray/auth_token.
    """
    from alexnet.config import load
    from cluster.config import JobConfig
    from cluster.submission import JobApi, command, new_name

    settings = load(JobConfig, config, overrides)
    name, entrypoint = name or new_name(settings), command(settings)
    api = JobApi(address)
    api.submit(name, entrypoint, settings.run_dir)
    if no_wait:
        click.echo(name)
        return
    click.echo(f"job {name} at {address}", err=True)
    _follow(api, name)


@cli.command()
@click.argument("job", required=False)
@ADDRESS
def status(job: str | None, address: str) -> None:
    """List the jobs of the cluster at ADDRESS, or JOB alone.

    A line a job: name, status, exit code, start, duration, run directory (or command).
    """
    from cluster.submission import JobApi, describe

    api = JobApi(address)
    for each in [api.job(job)] if job else api.jobs():
        click.echo(describe(each))


@cli.command()
@JOB
@ADDRESS
@click.option("--follow", "-f", is_flag=True, help="Until JOB ends, and end with its exit code.")
def logs(job: str, address: str, follow: bool) -> None:
    """Print what JOB has printed."""
    from cluster.submission import JobApi

    api = JobApi(address)
    if follow:
        _follow(api, job)
    click.echo(api.log(job), nl=False)


@cli.command()
@JOB
@ADDRESS
def stop(job: str, address: str) -> None:
    """Have JOB write a last checkpoint and end; return when it has ended."""
    from cluster.submission import JobApi

    _say_end(JobApi(address).stop(job))


@cli.command()
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


def _follow(api: "JobApi", name: str) -> NoReturn:
    """Show a job's log and end with its exit code; Ctrl-C ends no more than the showing."""
    from cluster.submission import exit_code

    try:
        job = api.follow(name, lambda text: click.echo(text, nl=False))
    except KeyboardInterrupt:
        click.echo(f"job {name} goes on: alexnet logs --follow {name}", err=True)
        sys.exit(EXIT_FAILED)
    _say_end(job)
    sys.exit(exit_code(job))


def _say_end(job: "JobDetails") -> None:
    from cluster.submission import exit_code

    code = exit_code(job)
    lines = (job.message or "").splitlines()
    reason = f": {lines[0]}" if lines and job.driver_exit_code is None else ""
    click.echo(f"job {job.submission_id} {job.status}, exit code {code}{reason}", err=True)


def main() -> None:
    """Run the command line; an expected error is one line and its exit code.

    `--debug` is taken wherever it stands, before the verb or behind it.
    """
    arguments = [argument for argument in sys.argv[1:] if argument != DEBUG]
    try:
        cli(arguments, prog_name="alexnet")
    except (AlexnetError, OSError) as error:
        if DEBUG in sys.argv:
            traceback.print_exc()
        click.echo(f"alexnet: {error}", err=True)
        sys.exit(error.exit_code if isinstance(error, AlexnetError) else EXIT_FAILED)
    except KeyboardInterrupt:
        sys.exit(EXIT_FAILED)

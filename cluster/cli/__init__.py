"""The verbs of `alexnet`. Heavy imports wait until a verb needs them."""

import sys
import traceback

import click

from alexnet.errors import EXIT_FAILED, AlexnetError
from cluster.cli import config, datasets, diagnosis, jobs, models, runs, simulation, training

DEBUG = "--debug"
VERBS = (
    datasets.prepare,
    datasets.index,
    datasets.verify,
    training.train,
    runs.runs,
    runs.status,
    models.evaluate,
    models.predict,
    models.export,
    models.report,
    jobs.render,
    jobs.submit,
    jobs.logs,
    jobs.stop,
    config.config,
    simulation.simulate,
    diagnosis.doctor,
)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.option(DEBUG, is_flag=True, help="Show a traceback with an error (of any verb).")
def cli(debug: bool) -> None:
    """Train AlexNet on many GPUs: Ray launches Horovod workers on sharded Parquet data.

    Exit codes: 0 done, 1 failed, 2 bad configuration or usage, 3 bad data, 75 stopped with a
    checkpoint (run it again to go on).
    """


for verb in VERBS:
    cli.add_command(verb)


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

"""What a program of somebody's own calls. Heavy imports wait until it does."""

from collections.abc import Callable
from os import PathLike
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import keras


def launch(
    network: "Callable[[int, int], keras.Model]",
    config: str | PathLike[str] | None = None,
    *overrides: str,
    replace: bool = False,
    **settings: Any,
) -> dict[str, Any]:
    """Train what `network` builds, as `alexnet train` does; return what `summary.json` says.

    Shows the run as it goes. Ctrl-C and SIGTERM write a last checkpoint: `status` is then
    `preempted`, and the same call goes on from there.

    Args:
        network: from image size and number of classes to a Sequential or functional model, which
            takes images [n, size, size, 3] of pixels from 0 to 255 and returns logits [n, classes].
            Each rank calls it, and none keeps it: checkpoints hold Keras' description of the model.
        config: a file of settings (YAML); None: the defaults.
        overrides: settings on top, as on the command line: "train.epochs=5".
        replace: delete what the run directory holds and start from nothing.
        settings: as in the file, on top of all: run_dir="runs/mine", train={"epochs": 5}.

    Raises:
        AlexnetError: in one line, with its `exit_code`, why there is no trained model.
    """
    from rich.console import Console

    from alexnet.config import load
    from alexnet.config import overrides as as_overrides
    from cluster.config import JobConfig
    from cluster.job import run_job
    from cluster.parcel import pack
    from cluster.presets import find
    from cluster.screen import Screen
    from cluster.stop import Stop

    packed = pack(network)
    own = [*overrides, *as_overrides(settings), "model.name=own"]
    job = load(JobConfig, None if config is None else find(str(config)), own)
    with Stop() as stop, Screen(Console()) as screen:
        summary = run_job(job, replace, screen, stop, network=packed)
        screen.end(summary)
    return summary

"""Python runs this before anything else in each process of a run under test.

It puts the fault that `fault.json` names in place once the module that it is about is imported, so
that the product itself knows of no fault. `happened` tells the moment, and that it was.
"""

import importlib.util
import json
import math
import os
import signal
import sys
import time
from collections.abc import Callable
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

Plan = dict[str, Any]


class AfterImport(MetaPathFinder):
    """Calls `then` with a module as soon as it has been imported."""

    def __init__(self, name: str, then: Callable[[ModuleType], None]) -> None:
        self._name = name
        self._then = then

    def find_spec(self, fullname: str, path: Any, target: Any = None) -> ModuleSpec | None:
        """Find the module by the other finders, and change how it is executed."""
        if fullname != self._name:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)
        if spec is None or spec.loader is None:
            return spec
        execute = spec.loader.exec_module

        def exec_module(module: ModuleType) -> None:
            execute(module)
            self._then(module)

        spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


def happens(folder: Path) -> bool:
    """Whether this is the first time; leave word of the moment."""
    try:
        with (folder / "happened").open("x") as file:
            file.write(str(time.monotonic()))
    except FileExistsError:
        return False
    return True


def before_step(module: ModuleType, plan: Plan, folder: Path) -> None:
    """Have a rank do something else before a step, once."""
    take_step = module.TrainStep.__call__

    def broken(self: Any, images: Any, labels: Any, step: int, rate: float, stop: bool) -> Any:
        is_here = os.environ.get("HOROVOD_RANK") == str(plan["rank"]) and step == plan["step"]
        if is_here and happens(folder):
            images = DEEDS[plan["fault"]](self, images)
        return take_step(self, images, labels, step, rate, stop)

    module.TrainStep.__call__ = broken


def sleep(step: Any, images: Any) -> Any:
    """Never come back."""
    while True:
        time.sleep(3600)


def poison(step: Any, images: Any) -> Any:
    """Pixels that are not numbers."""
    import tensorflow as tf

    return tf.fill(images.shape, float("nan"))


def perturb(step: Any, images: Any) -> Any:
    """One weight of this replica is no longer that of the others, by its lowest bits."""
    variable = max(step.variables.values(), key=lambda v: v.shape.num_elements())
    value = variable.numpy()
    value.flat[7] += 1e-6
    variable.assign(value)
    return images


DEEDS = {"sleep": sleep, "poison": poison, "perturb": perturb}


def dawdle(module: ModuleType, plan: Plan, folder: Path) -> None:
    """Every step takes some seconds more on every rank, until they are let go."""
    take_step = module.TrainStep.__call__

    def slow(*arguments: Any) -> Any:
        wait_for(folder / "let-go", plan["seconds"])
        return take_step(*arguments)

    module.TrainStep.__call__ = slow


def hold_write(module: Any, plan: Plan, folder: Path) -> None:
    """The writer of a checkpoint is held before it writes; `wrote` says what came of it."""
    write = module.FolderDesk.write

    def held(desk: Any, step: int, *arguments: Any) -> Any:
        if step != plan["step"] or not happens(folder):
            return write(desk, step, *arguments)
        wait_for(folder / "let-go", math.inf)
        result = "nothing"
        try:
            path = write(desk, step, *arguments)
            result = f"committed {path.name}"
            return path
        finally:
            (folder / "wrote").write_text(result)

    module.FolderDesk.write = held


def wait_for(path: Path, seconds: float) -> None:
    """Return as soon as the path is there, or after some seconds."""
    end = time.monotonic() + seconds
    while not path.exists() and time.monotonic() < end:
        time.sleep(0.05)


def crash(module: ModuleType, plan: Plan, folder: Path) -> None:
    """Die at the first thing that only a rank does, every time."""
    os.kill(os.getpid(), signal.SIGKILL)


FAULTS = {
    "crash": ("cluster.rank", crash),
    "dawdle": ("alexnet.step", dawdle),
    "hold-write": ("alexnet.folder_archive", hold_write),
    **dict.fromkeys(DEEDS, ("alexnet.step", before_step)),
}


def main() -> None:
    """Put the fault of this run in place."""
    folder = Path(os.environ["ALEXNET_CHAOS"])
    try:
        plan = json.loads((folder / "fault.json").read_text())
    except FileNotFoundError:
        return
    module, put_in_place = FAULTS[plan["fault"]]
    finder = AfterImport(module, lambda imported: put_in_place(imported, plan, folder))
    sys.meta_path.insert(0, finder)


if "ALEXNET_CHAOS" in os.environ:
    main()

"""Copies of a training's state in host memory, which training waits for."""

import threading
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from alexnet.checkpoint import State


class HostCopy:
    """Memory for one copy of some variables, used again for the next.

    What takes long is not the copying but the first touch of memory: 1.0 s for 500 MB here, and
    0.03 s from the second copy on (docs/performance.md). So it is kept, and can be had beforehand.
    """

    def __init__(self, variables: Mapping[str, tf.Variable], is_kept: bool = True) -> None:
        """Copy `variables`, by name; into new memory each time unless it `is_kept`."""
        self._variables = variables
        self._is_kept = is_kept
        self._arrays: dict[str, npt.NDArray[Any]] = {}
        self._touching: threading.Thread | None = None

    def prepare(self) -> None:
        """Begin to get the memory, behind what the caller does next; once."""
        if self._is_kept and self._touching is None:
            self._arrays = {
                name: np.empty(variable.shape, variable.dtype.as_numpy_dtype)
                for name, variable in self._variables.items()
            }
            self._touching = threading.Thread(target=self._touch, name="touch", daemon=True)
            self._touching.start()

    def take(self) -> State:
        """Return the variables as they are now. The next copy overwrites this one if it is kept."""
        if not self._is_kept:
            return {name: variable.numpy() for name, variable in self._variables.items()}
        self.prepare()
        if self._touching:
            self._touching.join()
        for name, variable in self._variables.items():
            np.copyto(self._arrays[name], np.asarray(variable.read_value()))
        return self._arrays

    def _touch(self) -> None:
        for array in self._arrays.values():
            array[...] = 0

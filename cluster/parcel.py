"""A function of somebody's on its way to the ranks, and nowhere else: it is never stored.

Ray would carry it as well, but would load it before a rank's environment and log are set, and take
a failure for a fault of the rank.
"""

from typing import TYPE_CHECKING

import cloudpickle

from alexnet.errors import ConfigError

if TYPE_CHECKING:
    from alexnet.own_model import Network


def pack(network: "Network") -> bytes:
    """Return the function as bytes; all of it, if it is of the script that runs, else its name.

    Raises:
        ConfigError: it is no function, or holds something that cannot travel.
    """
    if not callable(network):
        raise ConfigError(
            f"network = {network!r}: expected a function of image size and classes that returns a "
            "keras.Model"
        )
    try:
        packed: bytes = cloudpickle.dumps(network)
    except Exception as error:  # of any object that the function refers to
        raise ConfigError(f"network: cannot be sent to the ranks: {error}") from error
    return packed


def unpack(packed: bytes) -> "Network":
    """Return the function that `pack` was given.

    Raises:
        ConfigError: something that it imports is not here.
    """
    try:
        network: Network = cloudpickle.loads(packed)
    except Exception as error:
        raise ConfigError(f"network: cannot be loaded at a rank: {error}") from error
    return network

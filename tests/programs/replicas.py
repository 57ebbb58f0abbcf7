"""One of the ranks that compare their state after steps 1 and 2; one rank's changes in between.

Usage: replicas.py RANK_THAT_CHANGES
"""

import sys

import tensorflow as tf

from alexnet.errors import AlexnetError
from alexnet.hooks import CheckReplicas
from alexnet.trainer import Phases
from cluster.collectives import HorovodExchange


def main() -> None:
    exchange = HorovodExchange()
    variable = tf.Variable(tf.ones([1000]))
    hook = CheckReplicas({"x": variable}, exchange, 1, Phases())
    try:
        hook.on_state(1)
        if exchange.rank == int(sys.argv[1]):
            variable.assign(tf.tensor_scatter_nd_update(variable, [[7]], [1 + 1e-7]))
        hook.on_state(2)
        print("equal")
    except AlexnetError as error:
        print(error)
    exchange.shutdown()


if __name__ == "__main__":
    main()

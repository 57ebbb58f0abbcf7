"""What is done in a process of its own. Usage: python -m cluster.doctor.programs NAME.

Each prints JSON objects, a line each, with what it has seen so far: what comes next may abort.
"""

import json
import logging
import os
import sys


def libraries() -> None:
    """Import TensorFlow, then Horovod's binary, and tell what they are."""
    import tensorflow as tf

    gpus = len(tf.config.list_physical_devices("GPU"))
    _tell(tensorflow=tf.__version__, gpus=gpus)

    from cluster.collectives import transports

    _tell(transports=transports())


def join() -> None:
    """Join the cluster that RAY_ADDRESS names, as a driver does, and tell how large it is."""
    os.environ.setdefault("RAY_AUTH_MODE", "token")  # before Ray reads it
    import ray
    from ray.exceptions import RayError

    from cluster.errors import refusal

    try:
        address = os.environ["RAY_ADDRESS"]
        ray.init(address, log_to_driver=False, logging_level=logging.WARNING)
    except (RayError, ConnectionError, RuntimeError) as error:
        _tell(refused=refusal(error))
        return
    nodes = sum(node["Alive"] for node in ray.nodes())
    _tell(nodes=nodes, resources=ray.cluster_resources())


def average() -> None:
    """Take a step as one of the ranks, each on images of its own; tell what came of the weights."""
    import keras
    import numpy as np
    import tensorflow as tf

    from alexnet.checkpoint import state_sha256
    from alexnet.config import ModelConfig, OptimizerConfig
    from alexnet.data.order import share
    from alexnet.exchange import of_all_ranks
    from alexnet.model import build_model
    from alexnet.optimizer import build_optimizer
    from alexnet.step import TrainStep
    from cluster.collectives import HorovodExchange

    exchange = HorovodExchange()
    keras.utils.set_random_seed(0)
    model = build_model(ModelConfig(), 67, 10, (0.0,) * 3, (255.0,) * 3)
    step = TrainStep(
        model,
        build_optimizer(OptimizerConfig(), [v.value for v in model.trainable_variables]),
        exchange,
        seed=0,
        virtual_workers=exchange.world_size,
        share=share(exchange.world_size, exchange.rank, exchange.world_size),
    )
    rng = np.random.default_rng(exchange.rank)
    images = rng.integers(0, 256, (1, 4, 67, 67, 3), np.uint8)
    labels = rng.integers(0, 10, (1, 4), np.int64)
    step.read(step(tf.constant(images), tf.constant(labels), 0, 0.01, False))
    weights = {name: variable.numpy() for name, variable in step.variables.items()}
    ranks = of_all_ranks(exchange, exchange.rank + 1, "ranks")
    _tell(ranks=ranks, sha256=state_sha256(weights), parameters=model.count_params())
    exchange.shutdown()


def _tell(**facts: object) -> None:
    print(json.dumps(facts), flush=True)


if __name__ == "__main__":
    {"libraries": libraries, "join": join, "average": average}[sys.argv[1]]()

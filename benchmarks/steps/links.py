"""What joins the ranks: latency and bandwidth, of Horovod's own allreduce, as `simulate` asks."""

import json
import time
from statistics import median

import horovod.tensorflow as hvd
import tensorflow as tf

from benchmarks.steps import common

SMALL, LARGE = 1, 4 << 20  # numbers of four bytes


def main() -> None:
    """Measure."""
    given = common.parser().parse_args()
    hvd.init()
    little, much = (_seconds(size, given.steps) for size in (SMALL, LARGE))
    messages = 2 * (given.ranks - 1)  # of a ring
    latency = little / messages
    bandwidth = messages / given.ranks * 4 * (LARGE - SMALL) / (much - little)
    print(json.dumps({"latency": latency, "bandwidth": bandwidth}), flush=True)
    hvd.shutdown()


def _seconds(size: int, times: int) -> float:
    numbers, taken = tf.ones([size]), []
    for _ in range(times + 1):
        start = time.perf_counter()
        hvd.allreduce(numbers, op=hvd.Sum, name=f"of {size}").numpy()
        taken.append(time.perf_counter() - start)
    return median(taken[1:])


if __name__ == "__main__":
    main()

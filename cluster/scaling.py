"""How steps, and a run, go on N workers: the model behind `alexnet simulate`.

    a message     takes latency + bytes / bandwidth (Hockney 1994)
    a collective  is a ring of messages (`ring_allreduce`, `ring_allgather`), or rings of rings
    a step        sends each group of gradients as soon as the backward pass has made it (`predict`)
    a run         stalls for checkpoints, and fails now and then (`lasting_share`)

All workers have the same batch, however many there are, so the global batch grows with them. Sizes
are in bytes, times in seconds. What is in, what is out and how far to trust it: docs/scaling.md.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Literal, NamedTuple

from alexnet.config import ModelConfig
from alexnet.errors import ConfigError
from alexnet.memory import CONVOLUTIONS, FLOAT, HIDDEN, convolutions, dense_layers

IMAGES, EPOCHS = 1_281_167, 100  # ImageNet's training images, and how often they are seen
NEVER = math.inf
GBIT = 1e9 / 8  # bytes
GROUP_BYTES = 3 << 20  # gradients travel together up to this: each large convolution by itself


@dataclass(frozen=True, kw_only=True)
class Layer:
    """A layer as the exchange sees it. Multiply-adds and factors are those of one image."""

    size: int  # bytes of its gradient, and of its BatchNorm statistics
    forward: int  # multiply-adds
    backward: int
    factors: int = 0  # bytes of a dense layer's inputs and output deltas (Xie et al. 2016)


def layers_of(model: ModelConfig, image_size: int = 227, classes: int = 1000) -> tuple[Layer, ...]:
    """Return a network's layers, the first one first."""
    found: list[Layer] = []
    below = convolutions(model, image_size)
    for (filters, _, _), layer in zip(CONVOLUTIONS, below, strict=True):
        forward = layer.weights * layer.output // filters  # each weight, once a position
        # Backward is once for the weights and once for the inputs, but for the images.
        backward = 2 * forward if found else forward
        found.append(Layer(size=FLOAT * layer.weights, forward=forward, backward=backward))
    widths = pairwise((below[-1].pooled, HIDDEN, HIDDEN, classes))
    for weights, ends in zip(dense_layers(model, image_size, classes), widths, strict=True):
        size, factors = FLOAT * weights, FLOAT * sum(ends)
        found.append(Layer(size=size, forward=weights, backward=2 * weights, factors=factors))
    return tuple(found)


@dataclass(frozen=True, kw_only=True)
class Scenario:
    """A worker, what joins it to the others, and what may get in its way."""

    step_time: float  # of a worker alone: forward, backward, and the update of the weights
    bandwidth: float  # a second, that a node sends while it receives as much
    latency: float = 0.0  # of a message, however small
    layers: tuple[Layer, ...] = field(default_factory=lambda: layers_of(ModelConfig()))

    batch: int = 32  # images of a worker in a step
    micro_batches: int = 1  # that it takes them in
    update_time: float = 0.0  # part of the step's that comes after the exchange
    overlap: float = 1.0  # share of the backward pass that an exchange can run beside

    node_workers: int = 1
    node_bandwidth: float = math.inf  # between a node's workers
    allreduce: Literal["ring", "hierarchical"] = "ring"
    dense_layers: Literal["auto", "dense", "factored"] = "auto"  # auto: the quicker one
    group_size: int = GROUP_BYTES

    reader: float = math.inf  # images a second that a worker's loader makes
    checkpoint_every: int = 200  # steps
    write_bandwidth: float = math.inf  # of the checkpoint's disk
    blocked: float = 0.15  # share of a checkpoint's writing for which steps wait
    mtbf: float = NEVER  # of a node: mean time between failures
    restart_time: float = 60.0  # from a failure to the first step after it

    def __post_init__(self) -> None:
        if self.update_time >= self.step_time:
            raise ConfigError(
                f"an update of {self.update_time:g} s is no part of a step of {self.step_time:g} s"
            )
        if self.batch % self.micro_batches:
            raise ConfigError(
                f"a batch of {self.batch} is not {self.micro_batches} equal micro-batches"
            )

    @property
    def computing(self) -> float:
        """Seconds of a step until all gradients are made."""
        return self.step_time - self.update_time

    def seconds(self, work: int) -> float:
        """Return what a worker takes for so many multiply-adds for each image of its batch."""
        return self.computing * work / sum(each.forward + each.backward for each in self.layers)


class Cost(NamedTuple):
    """What a collective takes of each worker."""

    seconds: float
    sent: float


def ring_allreduce(size: float, workers: int, bandwidth: float, latency: float) -> Cost:
    """Sum `size` bytes over `workers`: 2 (N - 1) messages of 1 / N of them.

    Half of them add up, half hand round the sums (Thakur et al. 2005); no algorithm sends
    less (Patarasu and Yuan 2009). The time to add up is part of a measured bandwidth: it
    grows with the same bytes.
    """
    messages = 2 * (workers - 1)
    part = size / workers
    return Cost(messages * (latency + part / bandwidth), messages * part)


def ring_allgather(size: float, workers: int, bandwidth: float, latency: float) -> Cost:
    """Hand the `size` bytes of each worker to all others: N - 1 messages (Thakur et al. 2005)."""
    messages = workers - 1
    return Cost(messages * (latency + size / bandwidth), messages * size)


def hierarchical_allreduce(size: float, nodes: int, per_node: int, s: Scenario) -> Cost:
    """Add up within the nodes, then between them, then hand round within them.

    Each of a node's workers does the second part for its share of the bytes, with its share of the
    node's bandwidth (Jia et al. 2018; so does Horovod).
    """
    within = ring_allreduce(size, per_node, s.node_bandwidth, s.latency)
    between = ring_allreduce(size / per_node, nodes, s.bandwidth / per_node, s.latency)
    return Cost(within.seconds + between.seconds, within.sent + between.sent)


class Group(NamedTuple):
    """Gradients that travel together, or a dense layer's factors."""

    ready: float  # seconds into the step
    size: float
    is_factors: bool


def groups(s: Scenario, factored: bool) -> Iterator[Group]:
    """Return what is exchanged, in the order in which the backward pass makes it: last layer first.

    A layer takes its share of the time by its multiply-adds. Sums over micro-batches are ready with
    the last one of these.
    """
    left = sum(layer.backward for layer in s.layers)
    size = 0
    for layer in reversed(s.layers):
        left -= layer.backward
        ready = s.computing - s.overlap * s.seconds(left) / s.micro_batches
        if factored and layer.factors:
            yield Group(ready, s.batch * layer.factors, True)
            continue
        size += layer.size
        if size >= s.group_size or not left:
            yield Group(ready, size, False)
            size = 0


def exchange(group: Group, workers: int, s: Scenario) -> Cost:
    """Return what it takes to exchange a group, beside nothing else.

    A ring through several nodes is as fast as its slowest part, a node's way in and out.
    """
    nodes = math.ceil(workers / s.node_workers)
    bandwidth = s.node_bandwidth if nodes == 1 else min(s.bandwidth, s.node_bandwidth)
    if group.is_factors:
        return ring_allgather(group.size, workers, bandwidth, s.latency)
    if s.allreduce == "hierarchical" and nodes > 1:
        return hierarchical_allreduce(group.size, nodes, s.node_workers, s)
    return ring_allreduce(group.size, workers, bandwidth, s.latency)


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """A step of `workers`, and what becomes of many. A step's parts add up to it."""

    workers: int
    dense_layers: str  # dense or factored
    images: int  # of all workers
    sent: float  # by each worker
    compute: float
    exchange: float  # that computing does not hide, and what it takes to multiply factors
    input: float  # waiting for images
    checkpoint: float  # waiting for checkpoints, shared by the steps between two of them
    lasting: float  # share of time that no failure takes

    @property
    def step(self) -> float:
        """Seconds from one step to the next."""
        return self.compute + self.exchange + self.input + self.checkpoint

    @property
    def images_per_second(self) -> float:
        """Of all workers, while nothing fails."""
        return self.images / self.step

    @property
    def efficiency(self) -> float:
        """Of N times what one worker does alone."""
        return self.compute / self.step

    @property
    def goodput(self) -> float:
        """Share of time spent computing steps that last: a summary's `goodput_ratio`."""
        return self.efficiency * self.lasting

    @property
    def training_time(self) -> float:
        """To see all images of ImageNet 100 times, failures included."""
        lasting = self.images_per_second * self.lasting
        return EPOCHS * IMAGES / lasting if lasting else NEVER


def predict(s: Scenario, workers: int) -> Prediction:
    """Return what a step takes on so many workers.

    To set it against a measured one, measure what goes in: the step of a worker alone, and the
    bandwidth and latency between the workers. `dataclasses.replace` makes one scenario of another.
    """
    ways = {"dense": [False], "factored": [True], "auto": [False, True]}[s.dense_layers]
    return min((_predict(s, workers, factored) for factored in ways), key=lambda p: p.step)


def _predict(s: Scenario, workers: int, factored: bool) -> Prediction:
    exchanged = sent = 0.0
    for group in groups(s, factored):
        cost = exchange(group, workers, s)
        exchanged = max(exchanged, group.ready) + cost.seconds
        sent += cost.sent
    waited = max(0.0, exchanged - s.computing)
    if factored:  # all workers' are multiplied at the end, while the last sums are under way
        own = s.seconds(sum(layer.forward for layer in s.layers if layer.factors))
        waited = max(waited - own, (workers - 1) * own)

    input_ = max(0.0, s.batch / s.reader - s.step_time - waited)
    interval = s.checkpoint_every * (s.step_time + waited + input_)
    write = 2 * sum(layer.size for layer in s.layers) / s.write_bandwidth  # with the momentum
    stall = max(s.blocked * write, write - interval)  # one at most is being written
    return Prediction(
        workers=workers,
        dense_layers="factored" if factored else "dense",
        images=workers * s.batch,
        sent=sent,
        compute=s.step_time,
        exchange=waited,
        input=input_,
        checkpoint=stall / s.checkpoint_every,
        # What is still being written when something fails is lost with it.
        lasting=lasting_share(
            interval + stall,
            s.restart_time + write - stall,
            s.mtbf / math.ceil(workers / s.node_workers),
        ),
    )


def lasting_share(interval: float, restart: float, mtbf: float) -> float:
    """Return the share of time that goes into work which no failure undoes.

    Failures come at random, every `mtbf` on average, also while restarting; each takes back to the
    last checkpoint. `interval` is from one to the next, stall included (Daly 2006, complete model).
    Young's (1974) best interval, sqrt(2 stall mtbf), is near its maximum.
    """
    if mtbf == NEVER:
        return 1.0
    try:
        return interval / (mtbf * math.exp(restart / mtbf) * math.expm1(interval / mtbf))
    except OverflowError:  # never gets to a checkpoint
        return 0.0


def doubling(most: int) -> list[int]:
    """Return 1, 2, 4, ... up to `most`, which is the last."""
    return [*(2**n for n in range((most - 1).bit_length())), most]

"""The scaling model: closed forms, what must grow with what, and what others have published."""

import math
import random
import subprocess
import sys
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alexnet.config import ModelConfig
from alexnet.errors import ConfigError
from cluster.scaling import (
    GBIT,
    IMAGES,
    Layer,
    Scenario,
    doubling,
    hierarchical_allreduce,
    lasting_share,
    layers_of,
    predict,
    ring_allgather,
    ring_allreduce,
)
from tests.clusters import ROOT

SEED = layers_of(ModelConfig())


def scenario(**settings: Any) -> Scenario:
    """AlexNet on GPUs of their own, joined by 100 Gbit/s."""
    return Scenario(**{"step_time": 0.025, "bandwidth": 100 * GBIT, "latency": 5e-6, **settings})


@pytest.mark.parametrize(
    ("name", "parameters", "flops"), [("seed", 62_383_848, 6.6e9), ("original", 60_965_224, 4.1e9)]
)
def test_layers_are_those_of_the_model(name: str, parameters: int, flops: float) -> None:
    """FLOPs of an image, forward and backward, as counted by hand."""
    layers = layers_of(ModelConfig.model_validate({"name": name}))
    assert sum(layer.size for layer in layers) == 4 * parameters
    assert 2 * sum(layer.forward + layer.backward for layer in layers) == pytest.approx(
        flops, rel=0.02
    )


def test_dense_layers_are_most_of_the_bytes_and_few_of_the_operations() -> None:
    dense = [layer for layer in SEED if layer.factors]
    assert [layer.factors for layer in dense] == [4 * (9216 + 4096), 4 * 8192, 4 * (4096 + 1000)]
    assert sum(d.size for d in dense) / sum(layer.size for layer in SEED) > 0.93
    assert sum(d.forward for d in dense) / sum(layer.forward for layer in SEED) < 0.06


# Collectives


@pytest.mark.parametrize(
    ("workers", "bandwidth", "latency", "seconds", "sent"),
    [
        (1, 10.0, 1.0, 0.0, 0.0),
        (2, 10.0, 1.0, 2 + 12.0, 120.0),  # to the other one and back
        (4, math.inf, 1.0, 6.0, 180.0),  # latency only
        (4, 10.0, 0.0, 18.0, 180.0),  # bytes only
        (1000, 10.0, 0.0, 2 * 0.999 * 12, 2 * 0.999 * 120),  # never twice the bytes
    ],
)
def test_ring_allreduce(
    workers: int, bandwidth: float, latency: float, seconds: float, sent: float
) -> None:
    cost = ring_allreduce(120.0, workers, bandwidth, latency)
    assert cost == pytest.approx((seconds, sent))


def test_ring_allgather_sends_all_that_the_others_have() -> None:
    assert ring_allgather(120.0, 4, 10.0, 1.0) == pytest.approx((3 * (1 + 12), 360.0))


def test_hierarchical_allreduce() -> None:
    one_each = hierarchical_allreduce(120.0, 4, 1, scenario(bandwidth=10.0, latency=1.0))
    assert one_each == ring_allreduce(120.0, 4, 10.0, 1.0)
    free_within = scenario(bandwidth=10.0, latency=0.0, node_bandwidth=math.inf)
    assert hierarchical_allreduce(120.0, 4, 8, free_within).seconds == pytest.approx(18.0)
    slow_within = replace(free_within, bandwidth=math.inf, node_bandwidth=10.0)
    assert hierarchical_allreduce(120.0, 4, 8, slow_within).seconds == pytest.approx(21.0)


def test_hierarchical_beats_the_ring_where_messages_are_many() -> None:
    many = scenario(node_workers=8, node_bandwidth=100e9, latency=50e-6, dense_layers="dense")
    assert predict(replace(many, allreduce="hierarchical"), 1024).step < predict(many, 1024).step


# A step

# Backward is 4 s for the last layer, then 3 s for the first one. At 1 MB/s between two workers an
# allreduce takes a second a megabyte.
MB = 1_000_000
TOY = {
    "layers": (
        Layer(size=4 * MB, forward=3, backward=3),
        Layer(size=8 * MB, forward=2, backward=4, factors=MB),
    ),
    "step_time": 12.0,
    "bandwidth": 1.0 * MB,
    "latency": 0.0,
    "batch": 2,
    "group_size": MB,
    "dense_layers": "dense",
}


@pytest.mark.parametrize(
    ("settings", "workers", "step"),
    [
        ({}, 1, 12.0),
        ({}, 2, 9 + 8 + 4.0),  # the last layer's gradient leaves at 9 s, the other one after it
        ({"bandwidth": 4.0 * MB}, 2, 12 + 1.0),  # the last layer's is there before the others'
        ({"group_size": 12 * MB}, 2, 12 + 12.0),  # together: it waits for the last one
        ({"overlap": 0.0}, 2, 12 + 12.0),
        ({"overlap": 0.5}, 2, 10.5 + 12.0),
        ({"micro_batches": 2}, 2, 10.5 + 12.0),  # half of the backward pass is the last one's
        ({"step_time": 18.0, "update_time": 6.0}, 2, 9 + 12 + 6.0),
        ({"latency": 1.0}, 2, 9 + 12 + 2 * 2.0),
        # The last layer's 2 s of multiplying go to the end. Factors: 2 messages of 2 MB from 7 s
        # on, then 2 x 2/3 of 4 MB; from 10 s on, and beside the sums, 3 x 2 s to multiply.
        ({"dense_layers": "factored"}, 3, 7 + 4 + 16 / 3),
        ({"dense_layers": "factored", "bandwidth": 4.0 * MB}, 3, 10 + 3 * 2.0),
        ({"dense_layers": "auto"}, 3, 7 + 4 + 16 / 3),
        ({"dense_layers": "auto", "bandwidth": 100.0 * MB}, 3, 12 + 0.04 * 4 / 3),
        ({"node_workers": 2, "node_bandwidth": 4.0 * MB}, 2, 12 + 1.0),
        ({"node_workers": 2, "node_bandwidth": 4.0 * MB}, 4, 9 + 18.0),  # as fast as between nodes
        ({"node_workers": 2, "node_bandwidth": 0.5 * MB}, 4, 9 + 36.0),  # or within
    ],
)
def test_a_step_by_hand(settings: dict[str, Any], workers: int, step: float) -> None:
    assert predict(Scenario(**{**TOY, **settings}), workers).step == pytest.approx(step)


@pytest.mark.parametrize("overlap", [0.0, 1.0])
def test_a_network_without_limits_costs_nothing(overlap: float) -> None:
    free = scenario(bandwidth=math.inf, latency=0.0, overlap=overlap)
    assert predict(free, 1024).efficiency == 1
    assert predict(free, 1024).images_per_second == pytest.approx(1024 * 32 / 0.025)


def test_bytes_are_those_that_a_rank_reports() -> None:
    """As `cluster.collectives.HorovodExchange.wire_bytes` has them."""
    for workers in (2, 3, 8):
        sent = predict(scenario(dense_layers="dense"), workers).sent
        assert sent == pytest.approx(2 * (workers - 1) / workers * 4 * 62_383_848)


def test_factors_are_a_tenth_of_the_bytes_on_two_workers_and_not_worth_it_on_many() -> None:
    dense, factored = (scenario(dense_layers=kind) for kind in ("dense", "factored"))
    assert predict(factored, 2).sent < 0.1 * predict(dense, 2).sent
    assert predict(scenario(bandwidth=GBIT), 2).dense_layers == "factored"
    assert predict(scenario(), 1024).dense_layers == "dense"


def test_a_slow_reader_is_the_limit() -> None:
    slow = predict(scenario(reader=400), 8)
    assert slow.step == pytest.approx(32 / 400)
    assert slow.images_per_second == pytest.approx(8 * 400)
    assert predict(scenario(reader=2000), 8).input == 0


def test_steps_wait_for_a_share_of_each_checkpoint() -> None:
    size = 2 * 4 * 62_383_848
    stall = predict(scenario(write_bandwidth=1e9, checkpoint_every=100), 1).checkpoint
    assert stall == pytest.approx(0.15 * size / 1e9 / 100)


def test_a_second_checkpoint_waits_for_the_first() -> None:
    step = predict(scenario(write_bandwidth=1e6, checkpoint_every=10), 1).step
    assert 10 * step == pytest.approx(2 * 4 * 62_383_848 / 1e6)


@pytest.mark.parametrize(
    "settings", [{"update_time": 0.025}, {"batch": 32, "micro_batches": 5}], ids=str
)
def test_what_makes_no_step_is_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        scenario(**settings)


SCENARIOS = st.builds(
    scenario,
    step_time=st.floats(1e-3, 10),
    bandwidth=st.floats(1e6, 1e11),
    latency=st.floats(0, 1e-2),
    batch=st.sampled_from([8, 32, 128]),
    micro_batches=st.sampled_from([1, 2, 8]),
    overlap=st.floats(0, 1),
    node_workers=st.sampled_from([1, 4, 8]),
    node_bandwidth=st.floats(1e11, 1e12),
    dense_layers=st.sampled_from(["auto", "dense", "factored"]),
    reader=st.floats(1, 1e5),
    write_bandwidth=st.floats(1e7, 1e11),
    mtbf=st.floats(1e5, 1e8),
)
WORKERS = st.integers(1, 4096)
MORE = st.floats(1, 10)


@given(SCENARIOS, WORKERS, MORE)
def test_a_better_machine_is_no_slower(s: Scenario, workers: int, more: float) -> None:
    step = predict(s, workers).step * (1 + 1e-9)
    assert predict(replace(s, bandwidth=s.bandwidth * more), workers).step <= step
    assert predict(replace(s, latency=s.latency / more), workers).step <= step
    assert predict(replace(s, reader=s.reader * more), workers).step <= step
    assert predict(replace(s, write_bandwidth=s.write_bandwidth * more), workers).step <= step
    assert predict(replace(s, overlap=1.0), workers).step <= step


@given(SCENARIOS, WORKERS, WORKERS)
def test_more_workers_are_no_quicker_in_a_step(s: Scenario, some: int, others: int) -> None:
    few, many = (predict(s, number) for number in sorted((some, others)))
    assert few.step <= many.step * (1 + 1e-9)
    assert few.goodput >= many.goodput * (1 - 1e-9)


@given(SCENARIOS, WORKERS)
def test_what_is_told_holds_together(s: Scenario, workers: int) -> None:
    p = predict(s, workers)
    assert min(p.compute, p.exchange, p.input, p.checkpoint) >= 0
    assert 0 <= p.goodput <= p.efficiency <= 1
    assert p.step >= max(s.step_time, s.batch / s.reader * (1 - 1e-9))
    if p.goodput:
        epoch = p.training_time / 100
        assert epoch * p.goodput * workers * s.batch / s.step_time == pytest.approx(IMAGES)


# Failures


@pytest.mark.parametrize(("mtbf", "best"), [(24 * 60, 117), (6 * 60, 57), (15, 9.1)])
def test_the_best_checkpoint_interval_is_dalys(mtbf: float, best: float) -> None:
    """Figures 3 to 5 of Daly 2006, in minutes: writing takes 5, restarting 10."""

    def useful(work: float) -> float:
        return lasting_share(work + 5, 10, mtbf) * work / (work + 5)

    found = max((tenths / 10 for tenths in range(1, 3000)), key=useful)
    assert found == pytest.approx(best, rel=0.015)  # his are approximate, too


def test_lasting_share_is_what_random_failures_leave() -> None:
    interval, restart, mtbf = 30.0, 10.0, 60.0
    chance = random.Random(0)
    clock, failure, done = 0.0, chance.expovariate(1 / mtbf), 0
    while done < 50_000:
        end = clock + interval
        while end > failure:  # back to the last checkpoint, and perhaps again while restarting
            end = failure + restart + interval
            failure += chance.expovariate(1 / mtbf)
        clock, done = end, done + 1
    assert done * interval / clock == pytest.approx(
        lasting_share(interval, restart, mtbf), rel=0.02
    )


def test_failures_that_are_rare_and_that_never_let_anything_be_done() -> None:
    assert lasting_share(100, 60, math.inf) == 1
    assert lasting_share(100, 60, 1e6) == pytest.approx(1 - (100 / 2 + 60) / 1e6, abs=1e-8)
    hopeless = predict(scenario(mtbf=1.0, restart_time=3600), 1024)
    assert (hopeless.goodput, hopeless.training_time) == (0, math.inf)


def test_a_failure_takes_half_an_interval_the_restart_and_what_was_being_written() -> None:
    p = predict(scenario(mtbf=1e7, checkpoint_every=100, write_bandwidth=1e9), 1)
    lost = 100 * p.step / 2 + 60 + 0.85 * 2 * 4 * 62_383_848 / 1e9
    assert (1 - p.lasting) * 1e7 == pytest.approx(lost, rel=1e-4)


def test_a_node_of_eight_fails_as_one() -> None:
    single, eight = (scenario(mtbf=1e6, node_workers=number) for number in (1, 8))
    assert predict(eight, 64).lasting > predict(single, 64).lasting


# What others have measured: docs/scaling.md says which points have the inputs that it takes.

VGG_CONVOLUTIONS = (  # channels in, channels out, side of the image
    (3, 64, 224),
    (64, 64, 224),
    (64, 128, 112),
    (128, 128, 112),
    (128, 256, 56),
    *[(256, 256, 56)] * 2,
    (256, 512, 28),
    *[(512, 512, 28)] * 2,
    *[(512, 512, 14)] * 3,
)


def vgg16() -> tuple[Layer, ...]:
    """Simonyan and Zisserman 2014, configuration D."""
    layers: list[Layer] = []
    for before, after, side in VGG_CONVOLUTIONS:
        work = 9 * before * after * side**2
        size = 4 * (9 * before + 1) * after
        layers.append(Layer(size=size, forward=work, backward=2 * work if layers else work))
    for before, after in ((25088, 4096), (4096, 4096), (4096, 1000)):
        work = before * after
        layers.append(Layer(size=4 * (work + after), forward=work, backward=2 * work))
    return tuple(layers)


HOROVOD = Scenario(
    layers=vgg16(),
    batch=64,  # as in the command that it gives
    step_time=64 / 154,  # TensorFlow's own figures of the same program on a P100, May 2017
    bandwidth=25 * GBIT,
    latency=5e-6,  # assumed; with 30 us, 512 GPUs come out at 0.67
    node_workers=4,
    node_bandwidth=10e9,  # assumed; does not matter above 25 Gbit/s
    dense_layers="dense",
    group_size=64 << 20,  # Horovod's default
)


def test_vgg16_has_its_parameters() -> None:
    assert sum(layer.size for layer in HOROVOD.layers) == 4 * 138_357_544


def test_horovod_on_128_gpus() -> None:
    """79 % on 32 servers of 4 Pascal GPUs with 25 Gbit/s, in its benchmarks' first edition."""
    assert predict(HOROVOD, 128).efficiency == pytest.approx(0.79, rel=0.15)


def test_horovod_on_512_gpus() -> None:
    """68 % on 128 servers, with the bandwidth at which 128 GPUs come out as published."""
    achieved = replace(HOROVOD, bandwidth=22.9 * GBIT)
    assert predict(achieved, 128).efficiency == pytest.approx(0.79, abs=0.005)
    assert predict(achieved, 512).efficiency == pytest.approx(0.68, rel=0.15)


@pytest.mark.parametrize(
    ("most", "series"), [(1, [1]), (2, [1, 2]), (3, [1, 2, 3]), (8, [1, 2, 4, 8])]
)
def test_doubling(most: int, series: list[int]) -> None:
    assert doubling(most) == series


def test_it_needs_neither_ray_nor_tensorflow() -> None:
    program = (
        "import sys, cluster.scaling, cluster.simulate\n"
        "sys.exit(str({'ray', 'tensorflow', 'keras', 'horovod', 'matplotlib'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert done.stderr.strip() == "set()"

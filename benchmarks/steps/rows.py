"""The rows of `make bench`: what is measured against what, and the bound that it must keep."""

import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from statistics import fmean, median

from alexnet.data.prepare import prepare
from alexnet.records import METRICS, read_records
from benchmarks.faults.processes import bounded, end_all, marking
from benchmarks.faults.runs import Launch, prepared_digits
from benchmarks.steps.common import RATE
from benchmarks.steps.contest import (
    Bench,
    Figure,
    Ratio,
    Row,
    Samples,
    compare,
    in_turns,
    namespaces,
)
from benchmarks.steps.peers import CORES, ROOT, Measured, Peer
from cluster.scaling import Scenario, predict
from tests.clusters import BIN, ray_cluster

DATA = ROOT / "benchmarks" / ".data" / "speed"
SMOKE = ROOT / "configs" / "smoke.yaml"
TURNS = 10  # pairs, of a life
RANKS, RATES = (2, 3, 4), (0.1, 0.3, 1.0)  # that simulate is held against; Gbit/s
APART = 0.0  # Gbit/s of ranks that nothing joins
SETTLED_STEPS, TIMED_STEPS = 120, 40  # of a training: standbys are there after half a minute
SETTLED_SECONDS = 10.0
FIRST_STEP = "step      1  epoch"


def ours(batch: int, *arguments: str, ranks: int = 2) -> Peer:
    """Return our own program at its defaults, on the full network."""
    data = f"data.path={_classes()}"
    return Peer(program="ours", batch=batch, ranks=ranks, arguments=(data, *arguments))


def torch(batch: int, ranks: int = 2) -> Peer:
    """Return PyTorch, with its fused optimizer, in its better memory format, compiled or not."""
    formats = "--format=contiguous", "--format=channels_last"
    variants = (*formats, *(f"{layout} --compile" for layout in formats))
    own = "torch_ddp"
    return Peer(program=own, batch=batch, ranks=ranks, variants=variants, environment=own)


def _classes() -> Path:
    """Return a prepared set of 1000 classes; its images are not looked at."""
    if not (DATA / "manifest.json").exists():
        prepare("synthetic:10000:1000:8", str(DATA))
    return DATA


def _two_ranks(batch: int, steps: int, goal: float) -> Row:
    apart, stock = f"two ranks / two apart, batch {batch}", f"ours / Horovod stock, batch {batch}"
    return compare(
        f"apart-{batch}",
        f"two ranks against two processes that don't communicate, {batch} a rank",
        lambda bench: {
            "ours": ours(bench.batch(batch)),
            "apart": ours(bench.batch(batch), "--apart"),
            "stock": Peer(
                program="horovod_stock", batch=bench.batch(batch), variants=("", "--grouped")
            ),
        },
        [
            Ratio(name=apart, above="ours", below="apart", goal=goal),
            Ratio(name=stock, above="ours", below="stock"),
        ],
        steps,
    )


def _against(
    name: str, title: str, batch: int, steps: int, goal: float, peer: Callable[[int], Peer]
) -> Row:
    return compare(
        f"{name}-{batch}",
        f"images/s against {title}, two ranks, {batch} a rank",
        lambda bench: {"ours": ours(bench.batch(batch)), name: peer(bench.batch(batch))},
        [Ratio(name=f"ours / {title}, batch {batch}", above="ours", below=name, goal=goal)],
        steps,
    )


def _mwms(batch: int) -> Peer:
    return Peer(program="mwms", batch=batch, variants=("--pack=0", "--pack=50"))


def _one_rank() -> Row:
    return compare(
        "one-rank",
        "one rank on all cores against a bare tf.function loop and PyTorch, batch 32",
        lambda bench: {
            "ours": ours(bench.batch(32), ranks=1),
            "bare": Peer(program="bare", batch=bench.batch(32), ranks=1),
            "torch": torch(bench.batch(32), ranks=1),
        },
        [
            Ratio(name="one rank / bare tf.function", above="ours", below="bare", goal=0.98),
            Ratio(name="one rank / PyTorch alone", above="ours", below="torch", goal=1.0),
        ],
        8,
    )


def _settings() -> Row:
    """What the defaults leave out, or pay for."""

    def peers(bench: Bench) -> dict[str, Peer]:
        batch = bench.batch(32)
        plain = Peer(program="bare", batch=batch, ranks=1)
        layers = Peer(program="convolutions", batch=batch, ranks=1)
        return {
            "ours": ours(batch, ranks=1),
            "bfloat16": ours(batch, "train.precision=bfloat16", ranks=1),
            "any": ours(batch, "train.deterministic=false", ranks=1),
            "parts": ours(2 * batch, f"train.micro_batch={batch}", ranks=1),
            "whole": replace(plain, batch=2 * batch),
            "thread": ours(batch, "cluster.threads_per_worker=1", ranks=1),
            "plain": plain,
            "xla": replace(plain, arguments=("--xla",)),
            "last": layers,
            "first": replace(layers, arguments=("--channels=first",)),
        }

    return compare(
        "settings",
        "one rank, 32 images: other settings than the defaults against them",
        peers,
        [
            Ratio(name="bfloat16 / float32", above="bfloat16", below="ours"),
            Ratio(name="any kernels / deterministic ones", above="any", below="ours"),
            Ratio(name="one thread / all cores", above="thread", below="ours"),
            Ratio(name="64 images in two parts / bare, in one", above="parts", below="whole"),
            Ratio(name="XLA / none, bare tf.function", above="xla", below="plain"),
            Ratio(name="channels first / last, convolutions", above="first", below="last"),
        ],
        8,
    )


def _factored(name: str, about: str, ratio: Ratio, batch: int, network: float) -> Row:
    return compare(
        name,
        about,
        lambda bench: {
            "factored": ours(bench.batch(batch), "--interface=cable"),
            "dense": ours(bench.batch(batch), "--interface=cable", "exchange.dense_layers=dense"),
        },
        [ratio],
        5,
        network,
    )


def _checkpoints() -> Row:
    pace = Figure(name="a checkpoint every 50 steps / none", goal=0.965)
    blocked = Figure(
        name="blocked by a save behind the steps / by Keras' save", goal=0.15, direction="max"
    )

    def measure(bench: Bench, number: int) -> Samples:
        every = f"checkpoint.every={bench.steps(50) + 2}"
        saving = replace(ours(bench.batch(32), every), program="turns")
        keras = Peer(program="keras_save", batch=1, ranks=1)
        turns = "--what=saving", "--turns=1", f"--round={number}"
        runs: dict[Peer, Callable[[], Measured]] = {
            saving: lambda: bench.run(saving, 50, *turns),
            keras: lambda: bench.run(keras, 5),
        }
        found = {peer: runs[peer]().first for peer in in_turns(runs, number)}
        return {
            pace.name: [off / on for on, off in found[saving]["turns"]],
            blocked.name: [found[saving]["blocked"] / found[keras]["blocked"]],
        }

    about = "two ranks, 32 a rank: a checkpoint every 50 steps; how long steps wait for it"
    return Row(name="checkpoint", about=about, figures=[pace, blocked], measure=measure)


def _watching() -> Row:
    figure = Figure(name="hooks, scrapes and looks of a watchdog, on / off", goal=0.995)

    def measure(bench: Bench, number: int) -> Samples:
        pairs = 2 if bench.quick else TURNS
        turns = ("--what=watching", f"--turns={pairs}", f"--round={number}")
        found = bench.run(replace(ours(bench.batch(8)), program="turns"), 10, *turns).first
        return {figure.name: [median(off / on for on, off in found["turns"])]}

    about = f"hooks, scrapes and the driver's looks, in {TURNS} pairs of turns of one life, batch 8"
    return Row(name="watching", about=about, figures=[figure], measure=measure)


def _launch() -> Row:
    name = "launch to first step on a running Ray cluster / horovodrun"
    figure = Figure(name=name, goal=1.25, direction="max")

    def measure(bench: Bench, number: int) -> Samples:
        with tempfile.TemporaryDirectory(prefix="bench-") as folder:
            seconds = _launch_seconds(Path(folder), in_turns(("ours", "horovodrun"), number))
        bench.runs.append({"peer": "launch", "seconds": seconds})
        return {figure.name: [seconds["ours"] / seconds["horovodrun"]]}

    about = "two ranks of the full network, 8 a rank, on a running Ray cluster"
    return Row(name="launch", about=about, figures=[figure], measure=measure)


def _launch_seconds(folder: Path, order: Iterable[str]) -> dict[str, float]:
    """Launch the same ranks both ways; return the seconds until the first step is told."""
    sizes = ["train.global_batch=16", "train.micro_batch=8", "train.log_every=1"]
    config = folder / "config.yaml"
    config.write_text(f"data: {{path: {_classes()}}}\n")
    horovodrun = [str(BIN / "horovodrun"), "-np", "2", "-H", "localhost:2", "--gloo"]
    programs = {
        "ours": [sys.executable, "-m", "cluster", "train"],
        "horovodrun": [*horovodrun, sys.executable, "-m", "benchmarks.steps.launched"],
    }
    seconds = {}
    try:
        with marking(folder), bounded(600), ray_cluster(2, folder) as cluster:
            environment = {**cluster.environment(), "PYTHONPATH": str(ROOT)}
            for who in order:
                os.sync()
                time.sleep(SETTLED_SECONDS)  # Ray's start, and what the one before has written
                command = [*programs[who], str(config), *sizes, f"run_dir={folder / who}"]
                launch = Launch(command, environment)
                try:
                    seconds[who] = launch.await_line(FIRST_STEP) - launch.started
                finally:
                    launch.driver.terminate()
                    launch.end()
    finally:
        end_all(folder, 0)
    return seconds


def _under_ray() -> Row:
    figure = Figure(name="alexnet train, with Ray and driver / its ranks alone, batch 8")

    def measure(bench: Bench, number: int) -> Samples:
        peer = ours(bench.batch(8))
        runs: dict[str, Callable[[], float]] = {
            "whole": lambda: _trained(peer, bench.steps(SETTLED_STEPS)),
            "ranks": lambda: bench.run(peer, 12).images_per_second,
        }
        pace = {name: runs[name]() for name in in_turns(runs, number)}
        bench.runs.append({"peer": "alexnet train", "images_per_second": pace["whole"]})
        return {figure.name: [pace["whole"] / pace["ranks"]]}

    about = (
        f"steps {SETTLED_STEPS} and more of alexnet train, by its own log, against its ranks alone"
    )
    return Row(name="under-ray", about=about, figures=[figure], measure=measure)


def _trained(peer: Peer, settled: int) -> float:
    """Train as a user does, without a cluster; return the images/s of the steps after `settled`."""
    steps = settled + TIMED_STEPS
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        config = Path(folder, "config.yaml")
        config.write_text(f"{{data: {{path: {_classes()}}}, run_dir: {folder}/run}}\n")
        sizes = [f"train.global_batch={peer.ranks * peer.batch}", f"train.micro_batch={peer.batch}"]
        others = [f"cluster.workers={peer.ranks}", "train.log_every=1"]
        others.append(f"schedule.learning_rate={RATE}")
        command = [sys.executable, "-m", "cluster", "train", str(config), *sizes, *others]
        environment = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
        with marking(Path(folder)), bounded(900):
            launch = Launch(command, environment)
            try:
                launch.await_step(steps)
            finally:
                launch.driver.terminate()
                launch.end()
                end_all(Path(folder), 0)
        records = read_records(Path(folder, "run", METRICS))
        paces = {
            record["step"]: record["images_per_second"]
            for record in records
            if record["kind"] == "step"
        }
    return median(pace for step, pace in paces.items() if settled < step <= steps)


def _simulated() -> Row:
    def name(ranks: int, gbits: float) -> str:
        shared = f" on {len(CORES)} cores" if ranks > len(CORES) else ""
        return f"simulate / measured, {ranks} ranks{shared}, {gbits:g} Gbit/s"

    def measure(bench: Bench, number: int) -> Samples:
        found = {}
        rates = RATES[-1:] if bench.quick else RATES
        for ranks in (4,) if bench.quick else RANKS:
            peer = ours(bench.batch(8), "cluster.threads_per_worker=1", ranks=ranks)
            links, joined = {}, {}
            for gbits in in_turns((APART, *rates), number):
                if gbits == APART:
                    apart = bench.run(peer, 5, "--apart")
                    continue
                with namespaces(ranks, gbits) as hosts:
                    asked = Peer(program="links", ranks=ranks)
                    links[gbits] = bench.run(asked, 3, hosts=hosts).first
                    joined[gbits] = bench.run(peer, 5, hosts=hosts).step
            for gbits, link in links.items():
                scenario = Scenario(
                    step_time=max(median(rank["seconds"]) for rank in apart.ranks),
                    update_time=fmean(rank["update"] for rank in apart.ranks),
                    bandwidth=link["bandwidth"],
                    latency=link["latency"],
                    batch=peer.batch,
                    dense_layers="factored",
                )
                predicted = predict(scenario, ranks).step
                bench.runs.append({"peer": name(ranks, gbits), "predicted": predicted, **link})
                found[name(ranks, gbits)] = [predicted / joined[gbits]]
        return found

    figures = [
        Figure(name=name(ranks, gbits), goal=0.15, direction="within")
        for ranks in RANKS
        for gbits in RATES
    ]
    about = "what `alexnet simulate` predicts, over the measured step in namespaces, 8 a rank"
    return Row(name="simulate", about=about, figures=figures, measure=measure)


def _smoke() -> Row:
    def peers(bench: Bench) -> dict[str, Peer]:
        half = bench.batch(32)
        preset = f"--config={SMOKE}", f"data.path={prepared_digits()}"
        one = (*preset, f"train.micro_batch={half}")
        fit = "", "--xla"
        return {
            "ours": Peer(program="ours", batch=half, arguments=preset),
            "apart": Peer(program="ours", batch=half, arguments=(*preset, "--apart")),
            "one": Peer(program="ours", batch=2 * half, ranks=1, arguments=one),
            "fit": Peer(program="keras_fit", batch=2 * half, ranks=1, variants=fit),
        }

    return compare(
        "smoke",
        "the smoke preset (67 x 67), two ranks, against Keras' fit on one process, all cores",
        peers,
        [
            Ratio(name="smoke preset / Keras fit", above="ours", below="fit", goal=1.0),
            Ratio(name="smoke preset, two apart / Keras fit", above="apart", below="fit"),
            Ratio(name="smoke preset on one rank / Keras fit", above="one", below="fit"),
        ],
        20,
    )


def rows() -> list[Row]:
    """Return all rows."""
    wire = Ratio(
        name="bytes sent a step, factored / dense",
        above="factored",
        below="dense",
        of="sent",
        goal=0.10,
        direction="max",
    )
    veth = Ratio(
        name="step at 1 Gbit/s, factored / dense",
        above="factored",
        below="dense",
        of="step",
        goal=0.40,
        direction="max",
    )
    ddp, strategy = "PyTorch DDP", "MultiWorkerMirroredStrategy"
    return [
        _two_ranks(32, 6, 0.95),
        _two_ranks(8, 12, 0.85),
        _against("ddp", ddp, 8, 12, 1.2, torch),
        _against("ddp", ddp, 32, 6, 1.1, torch),
        _against("mwms", strategy, 8, 12, 1.9, _mwms),
        _against("mwms", strategy, 32, 6, 1.3, _mwms),
        _one_rank(),
        _settings(),
        _factored("wire", "bytes that leave a rank's namespace, 32 a rank", wire, 32, 0),
        _factored("veth", "two namespaces joined at 1 Gbit/s, 8 a rank", veth, 8, 1),
        _checkpoints(),
        _watching(),
        _launch(),
        _under_ray(),
        _simulated(),
        _smoke(),
    ]

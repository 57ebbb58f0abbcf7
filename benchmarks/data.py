"""`make bench-data`: this project's loader against those that people use, on the same images.

All read the same JPEG bytes (a prepared set of shorter side 256), shuffled, cut 227 x 227 out at
random, mirror one time in two and put uint8 batches of 32 together. Every measurement is a fresh
process pinned to the same cores. Others' settings are tuned first, ours are the defaults: of each
setting in turn the quickest value stays. Then rounds: ours, ours from raw pixels, each other one,
ours again, and so on, so that whatever else the machine does falls on all of them alike. Ratios are
taken within a round; medians count. Files come out of the page cache, not from the disk.

Each other loader has an environment of its own in `.envs/`, made from `requirements-NAME.txt` by
plain pip: PIP_FIND_LINKS can name a folder of wheels (a CPU build of torch, say). Prepared inputs
are kept in `.data/`. A source should have many more images than the 5,000 or so that our loader
keeps encoded in memory, or it is spared the reading that a large set takes.
"""

import argparse
import hashlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import resultfile
from environments import make_environment, python_of

HERE = Path(__file__).resolve().parent
Setting = dict[str, int | str]
Stage = list[Setting]
DECODERS: Stage = [{"decoder": "simplejpeg"}, {"decoder": "opencv"}, {"decoder": "pillow"}]


@dataclass(frozen=True, kw_only=True)
class Loader:
    """A module of `loaders/`, and the stages of its tuning: a list of values to try each."""

    module: str
    title: str
    stages: tuple[Stage, ...] = ()
    settings: tuple[tuple[str, str], ...] = ()


def others(cores: int) -> list[Loader]:
    """Return the loaders to compare with."""
    workers: Stage = [{"workers": n} for n in (cores, cores + 1, 2 * cores, max(1, cores - 1))]
    prefetch: Stage = [{"prefetch": n} for n in (4, 2, 8)]
    grain: Stage = [
        {"workers": processes, "threads": threads}
        for processes in (0, cores)
        for threads in (cores, 1, 2 * cores)
    ]
    threads: Stage = [
        {"maps": maps, "pool": pool, "fuse": fuse}
        for maps, pool in ((0, 0), (cores, 0), (cores, cores), (2 * cores, cores))
        for fuse in (0, 1)
    ]
    tfrecord: tuple[Stage, ...] = (
        threads,
        [{"packs": n} for n in (0, cores)],
        [{"reads": n} for n in (4, 1)],
        [{"prefetch": n} for n in (0, 4)],
    )
    predownload: Stage = [{"predownload": n} for n in (256, 2048)]
    batch: Stage = [{"batch": "map"}, {"batch": "iter"}]
    return [
        Loader(module="tfrecord", title="tf.data, TFRecord", stages=tfrecord),
        Loader(
            module="torch_folder",
            title="torch DataLoader, folder",
            stages=(DECODERS, workers, prefetch),
        ),
        Loader(
            module="mds",
            title="MosaicML Streaming, MDS",
            stages=(DECODERS, workers, prefetch, predownload),
        ),
        Loader(
            module="grain",
            title="Grain, ArrayRecord",
            stages=(DECODERS, grain, batch, prefetch),
        ),
    ]


OURS = Loader(module="ours", title="ours, JPEG store")
OURS_RAW = Loader(module="ours", title="ours, raw store", settings=(("store", "raw"),))


def main() -> None:
    """Prepare, tune, measure and write `results/data.json`."""
    arguments = _arguments()
    cores = len(arguments.cores)
    peers = others(cores)
    for peer in peers:
        make_environment(peer.module)
    data = make_inputs(arguments.source, peers)
    os.sched_setaffinity(0, arguments.cores)  # and with it every process started from here

    bench = Bench(data=data, cores=cores, seconds=arguments.seconds)
    if arguments.tries:
        won = {peer.module: bench.tune(peer, arguments.tries) for peer in peers}
    else:
        won = json.loads((resultfile.FOLDER / "data.json").read_text())["settings"]
    rounds = [bench.round(peers, won, number) for number in range(arguments.rounds)]
    memory = [bench.run(OURS, {}, "--epochs", "3") for _ in range(3)]

    program = [sys.executable, "training_input.py", str(data / "jpeg"), str(arguments.rounds)]
    training = json.loads(_output(program).splitlines()[-1])

    rows = [*pace_rows(rounds, peers, cores), *memory_rows(memory)]
    rows.append(resultfile.row("training, shards / ready tensors", "ratio", training, 0.97))
    source = Path(arguments.source).name  # of a path its end; a built-in set's name is as it was
    path = resultfile.write("data", rows, source=source, cores=cores, settings=won, rounds=rounds)
    print(f"\n{resultfile.table(rows)}\n\n{path.relative_to(resultfile.ROOT)}")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--source", default="synthetic:10000", help="what `prepare` takes")
    parser.add_argument("--cores", type=_cores, default={0, 1}, help="which to use: 0,1")
    parser.add_argument("--seconds", type=float, default=3.0, help="a measurement's, warm-up apart")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument(
        "--tries",
        type=int,
        default=2,
        help="of each value when tuning; the best counts; 0: settings as in the last results",
    )
    return parser.parse_args()


def _cores(text: str) -> set[int]:
    return set(map(int, text.split(",")))


@dataclass(frozen=True, kw_only=True)
class Bench:
    """Where the inputs are and how long a measurement takes."""

    data: Path
    cores: int
    seconds: float

    def run(self, loader: Loader, settings: Setting, *more: str) -> dict[str, float]:
        """Measure in a fresh process."""
        pairs = {**dict(loader.settings), **settings}
        command = [
            *_command(loader.module),
            *("--data", self.data, "--cores", self.cores, "--seconds", self.seconds, *more),
            *("--setting", *(f"{key}={value}" for key, value in pairs.items())),
        ]
        return json.loads(_output([str(word) for word in command]).splitlines()[-1])

    def tune(self, loader: Loader, tries: int) -> Setting:
        """Return the settings under which a loader was quickest, found one stage at a time."""
        best: Setting = {}
        for stage in loader.stages:
            paces = [0.0] * len(stage)
            for _ in range(tries):
                for at, values in enumerate(stage):
                    pace = self.run(loader, {**best, **values})["images_per_second"]
                    paces[at] = max(paces[at], pace / self.cores)
            for values, pace in zip(stage, paces, strict=True):
                print(f"tuning {loader.module}: {_words(values)}: {pace:.0f}", flush=True)
            best.update(stage[paces.index(max(paces))])
        print(f"chosen for {loader.module}: {_words(best)}", flush=True)
        return best

    def round(
        self, peers: list[Loader], settings: dict[str, Setting], number: int
    ) -> dict[str, dict[str, float]]:
        """Measure every loader once, by title."""
        found = {}
        into_page_cache(self.data)
        for loader in (OURS, OURS_RAW, *peers):
            found[loader.title] = self.run(loader, settings.get(loader.module, {}))
            pace = found[loader.title]["images_per_second"] / self.cores
            others = _others_percent(found[loader.title], self.cores)
            print(
                f"round {number + 1}: {loader.title}: {pace:.0f} images/s/core "
                f"(others had {others:.0f} % of the cores)",
                flush=True,
            )
        return found


def pace_rows(
    rounds: list[dict[str, dict[str, float]]], peers: list[Loader], cores: int
) -> list[dict[str, Any]]:
    """Return images a second and core of each loader, and the ratios that have a goal."""
    paces = {
        title: [found[title]["images_per_second"] / cores for found in rounds]
        for title in rounds[0]
    }
    rows = {title: resultfile.row(title, "images/s/core", paces[title]) for title in paces}
    held = [
        resultfile.row(
            f"memory: {title}", "MiB", [found[title]["rss_bytes"] / 2**20 for found in rounds]
        )
        for title in paces
    ]
    taken = [_others_percent(run, cores) for found in rounds for run in found.values()]
    best = max((peer.title for peer in peers), key=lambda title: rows[title]["value"])

    def ratio(name: str, above: str, below: str, goal: float) -> dict[str, Any]:
        ratios = [a / b for a, b in zip(paces[above], paces[below], strict=True)]
        return resultfile.row(name, "ratio", ratios, goal)

    return [
        *rows.values(),
        ratio("ours / best of the others", OURS.title, best, 1.0),
        ratio("ours / tf.data, TFRecord", OURS.title, peers[0].title, 1.2),
        ratio("ours, raw store / JPEG store", OURS_RAW.title, OURS.title, 5.0),
        *held,
        resultfile.row("cores' time that others had", "%", taken),
    ]


def _others_percent(run: dict[str, float], cores: int) -> float:
    return 100 * run["cpu_seconds_of_others"] / (run["seconds"] * cores)


def memory_rows(runs: list[dict[str, float]]) -> list[dict[str, Any]]:
    """Return what three epochs of ours hold at most, and how that grows after the first."""
    peaks = [run["rss_bytes"] / 2**30 for run in runs]
    growths = [run["growth_percent"] for run in runs]
    return [
        resultfile.row("ours: peak memory, 3 epochs", "GiB", peaks, 1.0, "max"),
        resultfile.row("ours: growth after epoch 1", "%", growths, 5.0, "max"),
    ]


def make_inputs(source: str, peers: list[Loader]) -> Path:
    """Return a folder with `source` prepared, exported and converted, what is missing made."""
    place = Path(source).resolve() if Path(source).exists() else source
    slug = re.sub(r"\W+", "-", source).strip("-")[-40:]
    data = HERE / ".data" / f"{slug}-{hashlib.sha256(str(place).encode()).hexdigest()[:8]}"
    data.mkdir(parents=True, exist_ok=True)
    for store in ("jpeg", "raw"):
        if not (data / store / "manifest.json").exists():
            print(f"preparing {source}, {store}", flush=True)
            _output(_prepare(str(place), data / store, store))
    if not (data / "folder").exists():
        export(data / "jpeg", data / "folder")
    for peer in peers:
        _output([*_command(peer.module), "--data", str(data), "--convert"])
    return data


def into_page_cache(data: Path) -> None:
    """Read every input, so that none is measured against the disk."""
    for file in filter(Path.is_file, data.rglob("*")):
        with file.open("rb", buffering=0) as handle:
            while handle.read(1 << 22):
                pass


def _prepare(source: str, out: Path, store: str) -> list[str]:
    alexnet = Path(sys.executable).with_name("alexnet")
    return [str(alexnet), "prepare", source, str(out), "--size", "256", "--store", store]


def export(prepared: Path, folder: Path) -> None:
    """Write the training split of a prepared set as `folder/LABEL/NUMBER.jpg`."""
    partial = folder.with_name(f"{folder.name}.{os.getpid()}.partial")
    for number, (image, label) in enumerate(_training_images(prepared)):
        if not image.startswith(b"\xff\xd8"):
            raise SystemExit(f"bench-data: image {number} of the set is no JPEG")
        file = partial / str(label) / f"{number:08d}.jpg"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(image)
    partial.rename(folder)


def _training_images(prepared: Path) -> Iterator[tuple[bytes, int]]:
    for shard in sorted(prepared.glob("train-*.parquet")):
        for rows in pq.ParquetFile(shard).iter_batches(256, columns=["image.bytes", "label"]):
            for image, label in zip(rows["image"].to_pylist(), rows["label"], strict=True):
                yield image["bytes"], label.as_py()


def _command(module: str) -> list[str]:
    python = sys.executable if module == "ours" else str(python_of(module))
    return [python, "-m", f"loaders.{module}"]


def _output(command: list[str]) -> str:
    """Run a command in this folder; end with what it said if it fails."""
    done = subprocess.run(command, cwd=HERE, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"bench-data: {' '.join(command)}: {done.stderr[-4000:]}")
    return done.stdout


def _words(settings: Setting) -> str:
    return ", ".join(f"{key}={value}" for key, value in settings.items())


if __name__ == "__main__":
    main()

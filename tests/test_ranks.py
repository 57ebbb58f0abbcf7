"""What holds between real Horovod ranks: equal replicas, and the same model at any number."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from tests.ranks import run_ranks

State = dict[str, npt.NDArray[np.float32]]

CONFIG = """
seed: 3
data: {{path: {data}, image_size: 67, augment: {{shift: 0.1, zoom: 0.1}}}}
train: {{global_batch: 48, micro_batch: 8, max_steps: {steps}, exact_sums: {exact}}}
model: {{batchnorm_momentum: 0.9}}
schedule: {{learning_rate: 0.01, warmup_steps: 10, decay: cosine}}
cluster: {{threads_per_worker: 1}}
"""


@dataclass(frozen=True, kw_only=True)
class Ranks:
    """What a run of some ranks left behind."""

    hashes: list[list[str]]  # of all variables: by rank, then by step
    folder: Path

    def state(self, step: int) -> State:
        with np.load(self.folder / f"{step}.npz") as arrays:
            return dict(arrays)


def train(
    digits: Path, folder: Path, world_size: int, steps: int, exact: bool, *flags: str
) -> Ranks:
    """Train `steps` steps of six micro-batches of 8 with the full-width network at 67 x 67."""
    folder.mkdir()
    config = folder / "config.yaml"
    config.write_text(CONFIG.format(data=digits, steps=steps, exact=exact))
    arguments = [str(config), str(folder), "1", str(steps), *flags]
    outputs = run_ranks(world_size, "train_steps.py", arguments, timeout=900)
    hashes = [[json.loads(line)["sha256"] for line in output.splitlines()] for output in outputs]
    assert {len(of_rank) for of_rank in hashes} == {steps}
    return Ranks(hashes=hashes, folder=folder)


def relative_difference(a: State, b: State) -> float:
    """The largest |a - b| / |a| (L2 norms) over the variables."""

    def norm(value: npt.NDArray[np.float32]) -> float:
        return float(np.linalg.norm(value.astype(np.float64)))

    return max(norm(value - b[name]) / max(norm(value), 1e-12) for name, value in a.items())


def test_one_step_is_the_same_at_any_number_of_ranks(digits: Path, tmp_path: Path) -> None:
    one, two, three, again = (
        train(digits, tmp_path / name, world_size, steps=3, exact=False)
        for name, world_size in (("1", 1), ("2", 2), ("3", 3), ("3 again", 3))
    )
    for ranks in (two, three):
        assert relative_difference(one.state(1), ranks.state(1)) < 1e-6
        # Ranks were fed different micro-batches; only the exchange makes them equal.
        assert all(of_rank == ranks.hashes[0] for of_rank in ranks.hashes)
    assert three.hashes == again.hashes


def test_replicas_differ_without_the_exchange(digits: Path, tmp_path: Path) -> None:
    """The proof that the test above can fail."""
    ranks = train(digits, tmp_path / "ranks", 3, 1, False, "--exchange=none")
    assert len({of_rank[0] for of_rank in ranks.hashes}) == 3


@pytest.mark.parametrize("steps", [5, pytest.param(40, marks=pytest.mark.slow)])
def test_exact_sums_give_the_same_bits_at_any_number_of_ranks(
    digits: Path, tmp_path: Path, steps: int
) -> None:
    runs = [
        train(digits, tmp_path / str(world_size), world_size, steps, exact=True)
        for world_size in (1, 2, 3)
    ]
    assert len({tuple(of_rank) for ranks in runs for of_rank in ranks.hashes}) == 1


@pytest.mark.parametrize(
    ("changed", "said"), [(1, "the state of rank 1 of 3 is not"), (9, "equal")]
)
def test_a_replica_that_has_changed_is_named_on_every_rank(changed: int, said: str) -> None:
    outputs = run_ranks(3, "replicas.py", [str(changed)])
    assert all(said in output for output in outputs)
    if changed < 3:
        assert all("step 2: " in o and "equal after 1 steps" in o for o in outputs)

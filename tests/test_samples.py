"""What rank 0 keeps of an evaluation: confusion, a sample, the worst mistakes."""

import base64
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import pytest
import tensorflow as tf

from alexnet.data.images import decode
from alexnet.evaluation import Evaluation, Evaluator, Scored
from alexnet.samples import CENTRE, SHOWN, SIDE, KeepSamples
from tests.disks import full_disk

CLASSES = ("cat", "dog")
SCORES: Evaluation = {"top1": 0.5, "top5": 1.0, "loss": 1.25, "images": 359}
CONFUSION = np.array([[3, 1], [0, 4]], np.int64)


def keeper(path: Path) -> KeepSamples:
    return KeepSamples(path, cast(Evaluator, SimpleNamespace(confusion=CONFUSION)), CLASSES)


def scored(chances: npt.NDArray[Any], labels: list[int], views: int = 1, size: int = 8) -> Scored:
    """Images that are as bright as their place, with the chances of being a dog."""
    images = np.zeros((len(labels), views, size, size, 3), np.uint8)
    images += np.arange(len(labels), dtype=np.uint8).reshape(-1, 1, 1, 1, 1)
    logs = np.log(np.stack([1 - chances, chances], axis=1)).astype(np.float32)
    return Scored(images, np.array(labels, np.int64), tf.constant(logs))


def brightness(sample: dict[str, Any]) -> int:
    return int(decode(base64.b64decode(sample["jpeg"])).mean().round())


def test_the_worst_mistakes_are_the_surest_wrong_answers(tmp_path: Path) -> None:
    hook = keeper(tmp_path / "evaluation.json")
    chances = np.linspace(0.51, 0.99, 60)  # all are said to be dogs
    labels = [at % 2 for at in range(60)]  # and half of them are cats
    hook.look(scored(chances[:40], labels[:40]))
    hook.look(scored(chances[40:], labels[40:]))
    hook.on_evaluation(7, SCORES)
    found = json.loads((tmp_path / "evaluation.json").read_text())
    assert found["step"] == 7
    assert found["classes"] == ["cat", "dog"]
    assert found["confusion"] == [[0, 0, 3], [0, 1, 1], [1, 1, 4]]
    worst = found["mistakes"]
    assert [(m["class"], m["answer"]) for m in worst] == [(0, 1)] * SHOWN
    expected = chances[::2][-SHOWN:][::-1]
    assert [m["probability"] for m in worst] == pytest.approx(expected.tolist(), abs=1e-4)


def test_an_image_is_kept_when_its_memory_is_used_again(tmp_path: Path) -> None:
    hook = keeper(tmp_path / "evaluation.json")
    batch = scored(np.full(5, 0.9), [0] * 5)
    hook.look(batch)
    batch.images[:] = 200
    hook.on_evaluation(1, SCORES)
    found = json.loads((tmp_path / "evaluation.json").read_text())
    assert [brightness(sample) for sample in found["samples"]] == [0, 1, 2, 3, 4]
    assert [brightness(sample) for sample in found["mistakes"]] == [4, 3, 2, 1, 0]


def test_every_image_is_as_likely_in_the_sample(tmp_path: Path) -> None:
    """The same ones at each evaluation, from all over the split."""
    hook = keeper(tmp_path / "evaluation.json")
    drawn = []
    for step in (1, 2):
        for _ in range(10):
            hook.look(scored(np.linspace(0.1, 0.4, 25), [0] * 25))
        hook.on_evaluation(step, SCORES)
        found = json.loads((tmp_path / "evaluation.json").read_text())
        drawn.append([(sample["probability"], sample["jpeg"]) for sample in found["samples"]])
        assert found["mistakes"] == []
    assert drawn[0] == drawn[1]
    assert len(drawn[0]) == SHOWN
    assert len(set(drawn[0])) > SHOWN / 2


def test_of_ten_views_the_centre_is_shown_small(tmp_path: Path) -> None:
    hook = keeper(tmp_path / "evaluation.json")
    batch = scored(np.array([0.9]), [0], views=10, size=227)
    batch.images[:, CENTRE] = 77
    hook.look(batch)
    hook.on_evaluation(1, SCORES)
    (sample,) = json.loads((tmp_path / "evaluation.json").read_text())["samples"]
    assert decode(base64.b64decode(sample["jpeg"])).shape == (SIDE, SIDE, 3)
    assert brightness(sample) == 77


def test_a_full_disk_costs_the_file_and_not_the_run(tmp_path: Path) -> None:
    path = tmp_path / "evaluation.json"
    hook = keeper(path)
    hook.on_evaluation(1, SCORES)
    with full_disk():
        hook.on_evaluation(2, SCORES)
    assert json.loads(path.read_text())["step"] == 1
    hook.on_evaluation(3, SCORES)
    assert json.loads(path.read_text())["step"] == 3

"""Which held-out images a model is right about, and which it is most wrongly sure of.

Rank 0 keeps them for the report from what it scores anyway: its own share of the held-out split.
"""

import base64
import heapq
import json
import logging
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from alexnet.data.augment import resized
from alexnet.data.images import Pixels, encode_jpeg
from alexnet.evaluation import Evaluation, Evaluator, Scored
from alexnet.records import write_whole
from alexnet.trainer import Hook

SHOWN = 12  # of each kind
SIDE = 112  # pixels, of a shown image at most
QUALITY = 80
CENTRE = 4  # which of an image's ten views

log = logging.getLogger(__name__)


class _Sample(NamedTuple):
    """An image and its answer; the largest are those that the model was surest of."""

    probability: float  # of the answer
    number: int  # in the order of scoring
    answer: int
    label: int
    image: Pixels


class KeepSamples(Hook):
    """Writes the last evaluation's confusion, sample answers and worst mistakes into a file.

    The samples are drawn evenly, the same images at every evaluation; the worst mistakes are the
    wrong answers with the highest probabilities. A full disk costs the file, never the run.
    """

    def __init__(self, path: Path, evaluator: Evaluator, classes: Sequence[str]) -> None:
        """Write to `path` what `evaluator` has found."""
        self._path = path
        self._evaluator = evaluator
        self._classes = classes
        self._forget()

    def look(self, scored: Scored) -> None:
        """Take note of a scored batch."""
        scores = np.asarray(scored.scores)
        answers = scores.argmax(axis=1)
        chances = np.exp(scores.max(axis=1)).tolist()
        labels = np.asarray(scored.labels).tolist()
        for at, (answer, label) in enumerate(zip(answers.tolist(), labels, strict=True)):
            sample = _Sample(chances[at], self._seen, answer, label, scored.images[at])
            self._draw(sample)
            if answer != label:
                self._rank(sample)
            self._seen += 1

    def on_evaluation(self, step: int, evaluation: Evaluation) -> None:  # noqa: D102 - as in Hook
        confusion = self._evaluator.confusion
        pairs = np.argwhere(confusion).tolist()
        drawn = sorted(self._drawn, key=lambda sample: sample.number)
        found = {
            "step": step,
            "classes": list(self._classes),
            "scores": evaluation,
            "confusion": [[*pair, int(confusion[tuple(pair)])] for pair in pairs],
            "samples": [_shown(sample) for sample in drawn],
            "mistakes": [_shown(sample) for sample in sorted(self._worst, reverse=True)],
        }
        self._forget()
        try:
            write_whole(self._path, json.dumps(found) + "\n")
        except OSError as error:
            log.error("%s: this evaluation is not in it: %s", self._path, error.strerror)

    def _forget(self) -> None:
        self._seen = 0
        self._random = random.Random(0)
        self._drawn: list[_Sample] = []
        self._worst: list[_Sample] = []  # a heap

    def _draw(self, sample: _Sample) -> None:
        """Keep it with the same probability as any other (algorithm R, Vitter 1985)."""
        place = len(self._drawn)
        if place == SHOWN:
            place = self._random.randrange(sample.number + 1)
        if place < SHOWN:
            self._drawn[place : place + 1] = [_copied(sample)]

    def _rank(self, sample: _Sample) -> None:
        """Keep it if the model was surer than of another that is kept."""
        if len(self._worst) < SHOWN:
            heapq.heappush(self._worst, _copied(sample))
        elif sample.probability > self._worst[0].probability:
            heapq.heapreplace(self._worst, _copied(sample))


def _copied(sample: _Sample) -> _Sample:
    """Return it with an image of its own: one view, and not the memory of the whole batch."""
    views = np.asarray(sample.image)
    return sample._replace(image=views[CENTRE if len(views) > 1 else 0].copy())


def _shown(sample: _Sample) -> dict[str, Any]:
    side = min(SIDE, len(sample.image))
    jpeg = encode_jpeg(resized(sample.image, side, side), QUALITY)
    return {
        "class": sample.label,
        "answer": sample.answer,
        "probability": round(sample.probability, 4),
        "jpeg": base64.b64encode(jpeg).decode(),
    }

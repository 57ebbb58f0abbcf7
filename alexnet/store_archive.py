"""Checkpoints in an object store, which can neither rename nor lock.

Every attempt writes below a prefix of its own, `generation-000003-...`. Before its first step it
says there, in `lineage.json`, on which checkpoints it builds: those of which earlier generations,
up to which step. Only the newest generation that has said so counts, with its lineage. Whatever a
writer that was left behind still adds to an older one is therefore never restored.

A checkpoint is a prefix `step-00000400` with three objects. The manifest is written last, and a
prefix without it is none. Nothing is deleted before the deleting writer has seen that no newer
generation has been claimed, and then nothing that one could have gone on from.
"""

import json
import logging
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from alexnet.checkpoint import (
    FACTS,
    MANIFEST,
    STATE,
    Best,
    Checkpoint,
    State,
    Written,
    read,
    upload,
    verifies,
)
from alexnet.data.storage import Location
from alexnet.errors import AlexnetError, DataError

CLAIM, LINEAGE, BEST = "claim.json", "lineage.json", "best.json"
GENERATION = re.compile(r"(generation-(\d{6})-[^/]+)/")
MANIFESTS = re.compile(rf"(generation-[^/]+)/step-(\d{{8}})/{re.escape(MANIFEST)}")
Lineage = dict[str, int | None]  # steps (None: any number), by generation
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class StoreArchive:
    """The checkpoints below `place`. Methods as of `Archive`."""

    place: Location

    def __str__(self) -> str:
        return str(self.place)

    def newest(self) -> Checkpoint | None:  # noqa: D102
        return self.newest_of(self.lineage())

    def latest(self) -> Written | None:  # noqa: D102
        for step, place in reversed(self.finished(self.lineage()).items()):
            written = (place / MANIFEST).info().mtime
            return Written(step=step, at=written.timestamp()) if written else None
        return None

    def best(self) -> Best | None:  # noqa: D102
        lineage = self.lineage()
        found = self.best_of(next(iter(lineage), ""))
        return found if found and found.step in self.finished(lineage) else None

    def read_step(self, step: int) -> Checkpoint:  # noqa: D102
        found = self.finished(self.lineage()).get(step)
        if found is None:
            raise DataError(f"{self}: no checkpoint of step {step}")
        return read(found)

    def take_over(self, name: str) -> "StoreDesk":  # noqa: D102
        number = max((int(match[2]) for match in self.objects()), default=0) + 1
        generation = f"generation-{number:06d}-{name}"
        (self.place / generation / CLAIM).write(b"{}")
        return StoreDesk(str(self.place), generation)

    def clear(self) -> None:  # noqa: D102
        self.delete([match.string for match in self.objects()])

    def lineage(self) -> Lineage:
        """Return what the newest generation that has begun builds on, itself first."""
        begun = [match[1] for match in self.objects() if match.string.endswith(f"/{LINEAGE}")]
        if not begun:
            return {}
        newest = max(begun)
        return {newest: None, **json.loads((self.place / newest / LINEAGE).read())}

    def finished(self, lineage: Lineage) -> dict[int, Location]:
        """Return where the checkpoints of this lineage are, by step."""
        found = {}
        for match in filter(None, map(MANIFESTS.fullmatch, self.place.files())):
            generation, step = match[1], int(match[2])
            until = lineage.get(generation, 0)
            if until is None or step <= until:
                found[step] = self.place / match.string.removesuffix(f"/{MANIFEST}")
        return dict(sorted(found.items()))

    def newest_of(self, lineage: Lineage) -> Checkpoint | None:
        """Return the newest checkpoint of this lineage that verifies."""
        for place in reversed(self.finished(lineage).values()):
            try:
                return read(place)
            except DataError as error:
                log.warning("%s; trying the one before", error)
        return None

    def best_of(self, generation: str) -> Best | None:
        """Return what a generation has marked."""
        try:
            return Best(**json.loads((self.place / generation / BEST).read()))
        except FileNotFoundError:
            return None

    def generations(self) -> set[str]:
        """Return the names of all that have been claimed."""
        return {match[1] for match in self.objects()}

    def delete(self, names: Iterable[str]) -> None:
        """Delete these objects; what makes a checkpoint of the others goes first."""
        for name in sorted(names, key=lambda name: (not name.endswith(MANIFEST), name)):
            (self.place / name).delete()

    def name_of(self, place: Location) -> str:
        """Return the name of an object below here, as `objects` tells it."""
        return place.path.removeprefix(self.place.path.rstrip("/") + "/")

    def objects(self) -> list[re.Match[str]]:
        """Return the names of all objects of an archive that are here."""
        return list(filter(None, map(GENERATION.match, self.place.files())))


@dataclass
class StoreDesk:
    """The right to write below the prefix `generation` of `uri`. Methods as of `Desk`."""

    uri: str
    generation: str
    _lineage: Lineage = field(default_factory=dict)  # of the checkpoint restored from

    def __str__(self) -> str:
        return self.uri

    @property
    def _archive(self) -> StoreArchive:
        return StoreArchive(Location.of(self.uri))

    @property
    def _place(self) -> Location:
        return self._archive.place / self.generation

    def newest(self) -> Checkpoint | None:  # noqa: D102
        self._lineage = self._archive.lineage()
        return self._archive.newest_of(self._lineage)

    def begin(self, restored_step: int) -> None:  # noqa: D102
        before = next(iter(self._lineage), "")
        marked = self._archive.best_of(before) if restored_step else None
        if marked and marked.step <= restored_step:
            self.mark_best(marked)
        self._lineage = {
            generation: restored_step if until is None else min(until, restored_step)
            for generation, until in self._lineage.items()
            if restored_step
        }
        (self._place / LINEAGE).write(json.dumps(self._lineage).encode())
        self._lineage = {self.generation: None, **self._lineage}

    def best(self) -> Best | None:  # noqa: D102
        return self._archive.best_of(self.generation)

    def mark_best(self, found: Best) -> None:  # noqa: D102
        self._refuse_taken()
        (self._place / BEST).write(json.dumps(asdict(found)).encode())

    def write(self, step: int, state: State, facts: Mapping[str, Any]) -> Location:  # noqa: D102
        self._refuse_taken()
        place = self._place / f"step-{step:08d}"
        upload(place, state, {**facts, "step": step})
        return place

    def tidy(self, step: int, keep: int) -> None:  # noqa: D102
        archive, marked = self._archive, self.best()
        finished = archive.finished(self._lineage)
        kept = {*[*finished][-keep:], *([marked.step] if marked else [])}
        if {*finished} - kept:
            kept |= {next(filter(lambda step: verifies(finished[step]), reversed(finished)), step)}
        wanted = {f"{self.generation}/{name}" for name in (CLAIM, LINEAGE, BEST)}
        for place in (finished[step] for step in kept if step in finished):
            wanted |= {archive.name_of(place / part) for part in (STATE, FACTS, MANIFEST)}
        left = {match.string for match in archive.objects() if match[1] <= self.generation}
        self._refuse_taken()
        archive.delete(left - wanted)

    def is_taken(self) -> bool:  # noqa: D102
        return any(other > self.generation for other in self._archive.generations())

    def leave(self) -> None:  # noqa: D102
        pass

    def _refuse_taken(self) -> None:
        if self.is_taken():
            raise AlexnetError(f"{self}: taken over by another attempt or job")

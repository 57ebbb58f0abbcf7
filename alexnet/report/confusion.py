"""Which classes are taken for which, in so far as a page can show it."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice

LARGEST = 20  # classes of a matrix that is shown whole
LISTED = 10

Counts = Sequence[tuple[int, int, int]]  # class, answer, images


@dataclass(frozen=True, kw_only=True)
class Cell:
    """Images of a class with an answer, and their share of the class."""

    images: int
    share: float
    is_right: bool
    words: str


@dataclass(frozen=True, kw_only=True)
class Row:
    """A class: how many of its images there are, and what share is answered right."""

    name: str
    images: int
    right: float
    cells: list[Cell]


@dataclass(frozen=True, kw_only=True)
class Pair:
    """A class that is taken for another one."""

    name: str
    answer: str
    images: int
    share: float  # of the class


@dataclass(frozen=True, kw_only=True)
class Confusion:
    """The matrix, if it is small; the worst classes, if it is not; the commonest mistakes."""

    matrix: list[Row]
    worst: list[Row]
    pairs: list[Pair]

    @staticmethod
    def of(classes: Sequence[str], counts: Counts) -> "Confusion":
        """Summarize the counts that are not zero."""
        images: Counter[int] = Counter()
        for label, _, count in counts:
            images[label] += count
        by_pair = {(label, answer): count for label, answer, count in counts}
        columns = range(len(classes)) if len(classes) <= LARGEST else ()
        rows = [_row(classes, label, by_pair, images[label], columns) for label in sorted(images)]
        wrong = sorted((c for c in counts if c[0] != c[1]), key=lambda c: -c[2])
        return Confusion(
            matrix=rows if columns else [],
            worst=[] if columns else sorted(rows, key=lambda row: row.right)[:LISTED],
            pairs=[
                Pair(name=classes[c], answer=classes[a], images=n, share=n / images[c])
                for c, a, n in islice(wrong, LISTED)
            ],
        )


def _row(
    classes: Sequence[str],
    label: int,
    by_pair: dict[tuple[int, int], int],
    images: int,
    columns: Sequence[int],
) -> Row:
    def cell(answer: int) -> Cell:
        count = by_pair.get((label, answer), 0)
        return Cell(
            images=count,
            share=count / images,
            is_right=label == answer,
            words=f"{classes[label]} taken for {classes[answer]}: {count} of {images}",
        )

    right = by_pair.get((label, label), 0) / images
    return Row(
        name=classes[label],
        images=images,
        right=right,
        cells=[cell(answer) for answer in columns],
    )

"""Which of several ranks' failures is told."""

import pytest

from alexnet.errors import DataError
from cluster.watch import cause_of
from cluster.worker import RankFailure, _as_rank

DEAD = RankFailure(rank=2, message="its process died", died=True)
LEFT = RankFailure(rank=0, message="Horovod has been shut down", of_peers=True)
BROKEN = RankFailure(rank=0, message="UnknownError: what nobody has foreseen")
FINAL = RankFailure(rank=3, message="no such dataset", error=DataError("no such dataset"))


@pytest.mark.parametrize(
    ("failures", "cause"),
    [
        ([LEFT, DEAD], DEAD),
        ([BROKEN, DEAD], DEAD),
        (
            [LEFT, RankFailure(rank=1, message="KeyError: 3")],
            RankFailure(rank=1, message="KeyError: 3"),
        ),
        ([LEFT, DEAD, FINAL], FINAL),
        ([LEFT], LEFT),
    ],
)
def test_the_cause_is_told(failures: list[RankFailure], cause: RankFailure) -> None:
    assert cause_of(failures) == cause
    assert cause_of(reversed(failures)) == cause


@pytest.mark.parametrize(
    ("text", "of_peers"),
    [
        ("Horovod has been shut down. This was caused by", True),
        ("[third_party/gloo/transport/tcp/pair.cc:589] Read error: Connection reset by peer", True),
        ("out of memory", False),
    ],
)
def test_what_only_says_that_another_rank_has_gone(text: str, of_peers: bool) -> None:
    def work() -> None:
        raise RuntimeError(text)

    failure = _as_rank(0, {}, work)
    assert failure is not None
    assert failure.of_peers == of_peers

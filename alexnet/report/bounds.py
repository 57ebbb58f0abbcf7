"""What bounds a run: on what most of its time went, and what to do about it."""

from collections.abc import Mapping
from dataclasses import dataclass

LEAST = 0.2  # share of a loss that is worth more than faster computing
ADVICE = {  # by what seconds were spent on, as in `wall_seconds` of summary.json
    "productive": (
        "computing",
        "more or faster devices (cluster.workers) or train.precision=bfloat16 make it shorter",
    ),
    "data": (
        "waiting for data",
        "add readers (data.threads, cluster.cpus_per_worker), or prepare images smaller, or raw",
    ),
    "exchange": (
        "exchanging gradients, or waiting for slower ranks",
        "take a faster network, a larger train.global_batch or fewer workers; look for a rank "
        "that is slow",
    ),
    "checkpoint": (
        "waiting for checkpoints",
        "write them less often (checkpoint.every) or to a faster disk",
    ),
    "evaluation": (
        "evaluating",
        "do so less often (train.evaluate_every), or on fewer images",
    ),
    "start_up": (
        "starting up",
        "a longer run pays for it; warm processes make restarts quick (cluster.standby_after)",
    ),
    "detection": (
        "noticing that ranks were lost",
        "lower cluster.collective_timeout and cluster.stall_timeout",
    ),
    "replay": (
        "taking steps again after a loss",
        "write checkpoints more often (checkpoint.every)",
    ),
    "idle": (
        "between attempts, and at the end",
        "see in the timeline what was waited for",
    ),
}
AS_SPENT = {"compute": "productive", "eval": "evaluation"}  # names in `phase_seconds`
OF_A_STEP = ("compute", "data", "exchange")


@dataclass(frozen=True, kw_only=True)
class Part:
    """What a share of the time was spent on."""

    kind: str
    words: str
    seconds: float
    share: float


def parts(seconds: Mapping[str, float]) -> list[Part]:
    """Return what took any time, in the order of `ADVICE`: shares add up to 1."""
    spent = {AS_SPENT.get(name, name): max(0.0, value) for name, value in seconds.items()}
    total = sum(spent.values())
    return [
        Part(kind=kind, words=words, seconds=spent[kind], share=spent[kind] / total)
        for kind, (words, _) in ADVICE.items()
        if spent.get(kind)
    ]


def of_steps(phase_seconds: Mapping[str, float]) -> dict[str, float]:
    """Return the part of a rank's phases that its steps took."""
    return {name: phase_seconds[name] for name in OF_A_STEP if name in phase_seconds}


def sentence(found: list[Part]) -> str | None:
    """Say what bounds it: the largest loss, or computing if no loss is worth the trouble."""
    losses = [part for part in found if part.kind != "productive" and part.share >= LEAST]
    computing = [part for part in found if part.kind == "productive"]
    chosen = max(losses or computing or found, key=lambda part: part.share, default=None)
    if chosen is None:
        return None
    words, advice = ADVICE[chosen.kind]
    return f"{100 * chosen.share:.0f} % {words}: {advice}"

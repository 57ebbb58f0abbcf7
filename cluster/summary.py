"""`summary.json`: what has become of a run. Every key is there in every summary."""

from datetime import UTC, datetime
from typing import Any

from alexnet.config import RunConfig
from alexnet.errors import EXIT_FAILED, EXIT_OK, EXIT_STOPPED, AlexnetError
from cluster.board import RankResult
from cluster.history import History

MEASURED = (
    "images_per_second",
    "phase_seconds",
    "wall_seconds",
    "goodput_ratio",
    "wire_bytes_per_step",
)


def ended(
    config: RunConfig, history: History, result: RankResult, before: dict[str, Any]
) -> dict[str, Any]:
    """Summarize a launch whose ranks came to an end together.

    One that found nothing to do keeps what the launch `before` measured.
    """
    summary = {
        **_common(config, history, result.step),
        "status": "preempted" if result.stopped else "completed",
        "exit_code": EXIT_STOPPED if result.stopped else EXIT_OK,
        "eval": result.evaluation or history.evaluation,
        "weights_sha256": result.weights_sha256,
        "wire_bytes_per_step": result.wire_bytes_per_step,
    }
    if result.step == result.first_step and history.images_per_second is None:
        summary |= {name: before[name] for name in MEASURED if before.get(name) is not None}
    return summary


def stopped(config: RunConfig, history: History, saved_step: int) -> dict[str, Any]:
    """Summarize a launch that was stopped and could not write a checkpoint of its own."""
    ends = {"status": "preempted", "exit_code": EXIT_STOPPED}
    return {**_common(config, history, saved_step), **ends}


def failed(config: RunConfig, history: History, error: BaseException) -> dict[str, Any]:
    """Summarize a launch that ended with an error."""
    code = error.exit_code if isinstance(error, AlexnetError) else EXIT_FAILED
    ends = {"status": "failed", "exit_code": code, "error": str(error)}
    return {**_common(config, history, history.furthest), **ends}


def _common(config: RunConfig, history: History, steps: int) -> dict[str, Any]:
    ledger = history.ledger
    ledger.close("idle")
    return {
        "status": None,
        "exit_code": None,
        "world_size": history.workers,
        "virtual_workers": config.train.virtual_workers,
        "attempts": history.attempts,
        "steps": steps,
        "skipped_steps": history.skipped_steps,
        "rows_skipped": history.rows_skipped,
        "images_seen": steps * config.train.global_batch,
        "eval": history.evaluation,
        "images_per_second": history.images_per_second,
        "phase_seconds": _rounded(history.phase_seconds),
        "wall_seconds": _rounded(ledger.seconds),
        "goodput_ratio": round(ledger.seconds["productive"] / max(ledger.wall_seconds, 1e-9), 4),
        "checkpoint_failures": history.checkpoint_failures,
        "weights_sha256": None,
        "wire_bytes_per_step": None,
        "started_at": history.started_at.isoformat(timespec="seconds"),
        "ended_at": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _rounded(seconds: dict[str, float]) -> dict[str, float]:
    return {name: round(value, 3) for name, value in seconds.items()}

"""What one rank runs: an `alexnet` trainer, the exchange with the other ranks, and hooks.

Everything that rank 0 does and others don't is decided here. Importing this imports TensorFlow, so
a process does so only once its environment is set.
"""

import logging
import os
import time
from collections.abc import Callable
from statistics import median
from typing import Any

import keras
import tensorflow as tf

from alexnet.archive import Desk
from alexnet.background_writer import BackgroundWriter
from alexnet.checkpoint import state_sha256
from alexnet.evaluation import Evaluation, Scored
from alexnet.hooks import (
    CheckReplicas,
    Evaluate,
    LogLines,
    SaveCheckpoints,
    StopAtBadNumbers,
    TensorBoard,
)
from alexnet.memory import return_what_is_freed
from alexnet.own_model import Network
from alexnet.profile import Profile
from alexnet.records import EVALUATION, METRICS, JsonLines
from alexnet.samples import KeepSamples
from alexnet.spikes import LossSpikes
from alexnet.step import TrainStep, model_variables
from alexnet.task import Task
from alexnet.trainer import Hook, Phases, StepEvent, Trainer
from cluster.board import Board, RankResult
from cluster.collectives import HorovodExchange
from cluster.config import JobConfig
from cluster.metrics import Metrics

WARM_UP, TIMED = 2, 5  # steps of a rehearsal
log = logging.getLogger(__name__)


def train_rank(
    config: JobConfig, board: Board, desk: Desk, network: Network | None = None
) -> RankResult:
    """Train as one of the ranks, the one that Horovod's environment variables describe.

    Rank 0 writes its checkpoints on `desk`. `network` builds the model in the place of one of ours.
    """
    threads = configure_tensorflow(config)
    exchange = HorovodExchange()
    try:
        return _train(config.with_threads(threads), exchange, board, desk, network)
    finally:
        exchange.shutdown()


def time_steps(config: JobConfig) -> float:
    """Take a few steps as one of the ranks and forget them; return the seconds of one."""
    threads = configure_tensorflow(config)
    exchange = HorovodExchange()
    try:
        task = Task.build(config.with_threads(threads), exchange)
        _agree(exchange, task.step, 0)
        batches, seconds = iter(task.batches(0)), []
        for step in range(WARM_UP + TIMED):
            began = time.perf_counter()
            images, labels = next(batches)
            task.step.read(task.step(images, labels, step, task.rate(step), stop=False))
            seconds.append(time.perf_counter() - began)
        return median(seconds[WARM_UP:])
    finally:
        exchange.shutdown()


def configure_tensorflow(config: JobConfig) -> int:
    """Share the cores among the ranks of a node, take GPU memory as needed, repeat every bit.

    Returns:
        The threads that are this rank's.
    """
    if config.cluster.save_memory:
        return_what_is_freed()
    gpus = tf.config.list_physical_devices("GPU")
    for gpu in gpus:
        tf.config.experimental.set_memory_growth(gpu, True)
    cores = len(os.sched_getaffinity(0)) // int(os.environ["HOROVOD_LOCAL_SIZE"])
    threads = config.cluster.threads_per_worker or max(1, cores)
    tf.config.threading.set_intra_op_parallelism_threads(threads)
    tf.config.threading.set_inter_op_parallelism_threads(max(2, threads))
    if config.train.deterministic:
        tf.config.experimental.enable_op_determinism()
    log.info(
        "computing in %s on %s, %s kernels, channels last, no XLA",
        config.train.precision,
        gpus[0].name if gpus else f"the CPU (threads: {threads})",
        "deterministic" if config.train.deterministic else "any",
    )
    return threads


def _train(
    config: JobConfig,
    exchange: HorovodExchange,
    board: Board,
    desk: Desk,
    network: Network | None,
) -> RankResult:
    board.progress()
    log.info("rank %d of %d", exchange.rank, exchange.world_size)
    task = Task.build(config, exchange, board.bad_row, network)
    restored = _restore(task, desk) if exchange.rank == 0 else 0
    first_step = _agree(exchange, task.step, restored)

    phases = Phases()
    board.phase_seconds = phases.seconds
    board.progress(first_step)
    tensorboard = _tensorboard(config, task) if exchange.rank == 0 else None
    observers = _observers(config, exchange, task, phases, board, first_step, desk, tensorboard)
    every = config.train.evaluate_every * task.order.steps_per_epoch
    samples = _samples(config, task) if exchange.rank == 0 else None

    def on_batch(scored: Scored) -> None:
        board.progress()
        if samples:
            samples.look(scored)

    told = [*observers, samples] if samples else observers
    evaluate = Evaluate(task.evaluator, every, phases, told, on_batch)
    trainer = Trainer(
        step=task.step,
        batches=tensorboard.showing(task.batches) if tensorboard else task.batches,
        rate=task.rate,
        total_steps=task.total_steps,
        hooks=[*_guards(config, exchange, task, phases), *observers, evaluate],
        phases=phases,
        stop_requested=board.stop.is_set,
    )
    step, stopped = trainer.run(first_step)
    weights = {k: v.numpy() for k, v in model_variables(task.step.model).items()}
    return RankResult(
        first_step=first_step,
        step=step,
        stopped=stopped,
        evaluation=dict(evaluate.latest) if evaluate.latest else None,
        phase_seconds=phases.seconds,
        weights_sha256=state_sha256(weights),
        wire_bytes_per_step=exchange.wire_bytes("step", "factors"),
    )


def _restore(task: Task, desk: Desk) -> int:
    """Take over the newest checkpoint, if there is one; return the steps that it has taken."""
    saved = desk.newest()
    if saved is None:
        return 0
    log.info("restoring %s", saved.path)
    task.restore(saved)
    return saved.step


def _agree(exchange: HorovodExchange, step: TrainStep, first_step: int) -> int:
    """Give all ranks rank 0's state and the step that it is at."""
    at = tf.Variable(first_step, dtype=tf.int64)
    exchange.broadcast([at, *step.variables.values()])
    return int(at.numpy())


def _guards(config: JobConfig, exchange: HorovodExchange, task: Task, phases: Phases) -> list[Hook]:
    """Hooks, the same on every rank, that end a run before something bad is told or saved."""
    every = config.train.check_replicas_every if exchange.world_size > 1 else 0
    replicas = CheckReplicas(task.step.variables, exchange, every, phases)
    return [replicas, StopAtBadNumbers()] if config.train.on_bad_numbers == "stop" else [replicas]


def _samples(config: JobConfig, task: Task) -> KeepSamples:
    return KeepSamples(config.run_path / EVALUATION, task.evaluator, task.dataset.classes)


def _tensorboard(config: JobConfig, task: Task) -> TensorBoard:
    return TensorBoard(config.run_path / "tensorboard", model_variables(task.step.model))


def _observers(
    config: JobConfig,
    exchange: HorovodExchange,
    task: Task,
    phases: Phases,
    board: Board,
    first_step: int,
    desk: Desk,
    tensorboard: TensorBoard | None,
) -> list[Hook]:
    """Hooks without collective calls, so that ranks may have different ones."""
    images = len(task.share) * config.train.micro_batch
    metrics = Metrics(exchange.rank, exchange.world_size, images, phases, lambda: board.bad_rows)
    if exchange.rank == 0:
        metrics.tell_wall_seconds(lambda: board.wall_seconds)
    if config.cluster.metrics_port:
        port = config.cluster.metrics_port + int(os.environ["HOROVOD_LOCAL_RANK"])
        metrics.serve(config.cluster.metrics_host, port)
    hooks: list[Hook] = [metrics, _Heartbeat(board)]
    if tensorboard is None:  # the rest is rank 0's
        return hooks

    _describe(task.step.model, first_step, board)

    def written(step: int) -> None:
        metrics.on_checkpoint(step)
        board.record({"kind": "checkpoint", "step": step})

    def failed(step: int, reason: str) -> None:
        metrics.on_checkpoint_failure()
        board.record({"kind": "checkpoint_failure", "step": step, "reason": reason})

    run = config.run_path
    sinks: list[Callable[[dict[str, Any]], None]] = [
        board.record,
        JsonLines(run / METRICS, first_step),
        tensorboard,
    ]
    lines = LogLines(
        config.train.log_every,
        task.order.steps_per_epoch,
        config.train.global_batch,
        phases,
        sinks,
        task.total_steps,
    )
    writer = BackgroundWriter(
        desk,
        config.checkpoint.keep,
        written,
        failed,
        config.checkpoint.max_failures,
        first_step,
        waits=config.cluster.save_memory,
    )
    save = SaveCheckpoints(
        task.step.variables,
        task.facts,
        writer,
        config.checkpoint.every,
        phases,
        restored_step=first_step or None,
    )
    profile = Profile(run / "tensorboard", config.train.profile_steps, first_step, phases, sinks)
    spikes = LossSpikes([*sinks, metrics.on_loss_spike])
    return [*hooks, profile, spikes, lines, tensorboard, save]


def _describe(model: keras.Model, first_step: int, board: Board) -> None:
    """Log the model layer by layer, and leave word of its size."""
    model.summary(print_fn=log.info)
    size = model.count_params()
    board.record({"kind": "model", "step": first_step, "name": model.name, "parameters": size})


class _Heartbeat(Hook):
    """Tells the board that steps and evaluations go on."""

    def __init__(self, board: Board) -> None:
        self._board = board

    def on_step(self, event: StepEvent) -> None:
        self._board.progress(event.step)

    def on_evaluation(self, step: int, evaluation: Evaluation) -> None:
        self._board.progress(step)

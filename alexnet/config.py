"""Every setting of a training run: its type, unit, bound and default.

Pydantic checks types and bounds; what it finds is told in one line a mistake, with the nearest
right name for an unknown key. `load` merges three layers: defaults, a YAML file, `key=value`
overrides from the command line.
"""

import difflib
from collections.abc import Iterable, Iterator, Mapping
from os import PathLike, fspath
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, cast

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from alexnet.data.storage import refuse_credentials
from alexnet.errors import ConfigError

SCHEMA_DIALECT = "https://json-schema.org/draft/2020-12/schema"


class Settings(BaseModel):
    """A frozen, keyword-only group of settings that refuses keys that it does not know."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class AugmentConfig(Settings):
    """Random changes of a training image; the same for the same (seed, epoch, row)."""

    shift: float = Field(0.0, ge=0, lt=1, description="largest shift, as a share of each side")
    zoom: float = Field(0.0, ge=0, lt=1, description="sides scale by 1-zoom to 1+zoom")
    horizontal_flip: bool = Field(False, description="mirror left to right, one time in two")
    vertical_flip: bool = Field(False, description="mirror top to bottom, one time in two")
    colour: float = Field(
        0.0,
        ge=0,
        le=1,
        description="standard deviation along the principal colours; the paper: 0.1",
    )


class DataConfig(Settings):
    """Where the images come from and how they become tensors."""

    path: str = Field(
        "data/digits", description="a prepared set: the folder, or URI, of its manifest.json"
    )
    source: str | None = Field(
        None, description="prepared into `path` if no set is there: what `prepare` takes"
    )
    image_size: int = Field(227, ge=67, le=1024, description="side of the square input, pixels")
    fit: Literal["stretch", "crop"] = Field(
        "stretch", description="stretch: the whole image; crop: a part of its centre, as the paper"
    )
    resize: int = Field(256, ge=67, le=2048, description="crop: the shorter side before, pixels")
    evaluation_crops: Literal[1, 10] = Field(
        1, description="crop: views of an image whose predictions are averaged; the paper: 10"
    )
    standardize: bool = Field(
        True,
        description="by the training set's mean and standard deviation; false: pixels in 0..1",
    )
    augment: AugmentConfig = AugmentConfig()
    window: int = Field(2048, ge=1, description="rows of a stream shuffled together")
    threads: int = Field(0, ge=0, description="decoding threads a rank; 0: this rank's cores")
    read_ahead: int = Field(8, ge=0, description="batches whose row groups are read in advance")
    on_bad_row: Literal["fail", "skip"] = Field(
        "fail", description="skip: the next good row takes the place of one that is damaged"
    )
    max_bad_rows: float = Field(0.01, ge=0, le=1, description="share of a split skipped at most")
    cache_dir: str = Field(
        "~/.cache/alexnet/shards", description="where a node keeps row groups from far stores"
    )
    cache_bytes: int = Field(20 << 30, ge=0, description="what it keeps at most; 0: nothing")

    @field_validator("path", "source")
    @classmethod
    def _no_credentials(cls, name: str | None) -> str | None:
        refuse_credentials(name or "")
        return name

    @model_validator(mode="after")
    def _crop_fits(self) -> "DataConfig":
        if self.fit == "crop" and self.resize < self.image_size:
            raise ValueError(f"resize {self.resize} is less than image_size {self.image_size}")
        if self.evaluation_crops > 1 and self.fit != "crop":
            raise ValueError("evaluation_crops 10 needs fit: crop")
        return self


class ModelConfig(Settings):
    """Which network."""

    name: Literal["seed", "original", "bn", "own"] = Field(
        "seed",
        description="seed: ungrouped, BatchNorm after ReLU; original: Krizhevsky et al. 2012, two "
        "groups and LRN; bn: AlexNet-BN of the large-batch papers; own: what a function of yours "
        "builds, which only `cluster.launch` can be given; the settings below are not for it",
    )
    dropout: float = Field(0.5, ge=0, lt=1, description="share dropped after fc6 and fc7")
    batchnorm_momentum: float = Field(
        0.99, gt=0, lt=1, description="share of the old moving statistics kept at a step"
    )
    batchnorm_epsilon: float = Field(1e-3, gt=0, description="added to the variance")


class OptimizerConfig(Settings):
    """SGD with momentum, or LARS; weight decay on kernels only."""

    name: Literal["sgd", "lars"] = Field(
        "sgd", description="lars: a layer's rate follows its weights, for batches of thousands"
    )
    momentum: float = Field(0.9, ge=0, lt=1, description="share of the last change that goes on")
    weight_decay: float = Field(5e-4, ge=0, description="L2 factor; none on biases and BatchNorm")
    lars_trust: float = Field(
        0.001, gt=0, description="lars: eta, how far a layer moves for its size"
    )
    clip_norm: float | None = Field(
        None, gt=0, description="longest gradient, over all weights together; null: any"
    )


class ScheduleConfig(Settings):
    """Learning rate by step."""

    learning_rate: float = Field(0.01, gt=0, description="the peak, reached after warm-up")
    base_batch: int | None = Field(
        None,
        ge=1,
        description="the global batch that learning_rate is for; the peak is scaled to the one "
        "there is; null: as it stands",
    )
    warmup_steps: int = Field(0, ge=0, description="linear rise from 0 over this many steps")
    decay: Literal["constant", "cosine", "polynomial", "step", "inverse_time"] = Field(
        "constant", description="what becomes of the rate once warm-up is over"
    )
    power: float = Field(2.0, gt=0, description="polynomial: rate * (share of steps left)^power")
    milestones: tuple[Annotated[float, Field(gt=0, lt=1)], ...] = Field(
        (), description="step: shares of the steps at which the rate is multiplied by decay_factor"
    )
    decay_factor: float = Field(0.1, gt=0, lt=1, description="step: what it is multiplied by")
    decay_rate: float = Field(5e-4, ge=0, description="inverse_time: rate / (1 + decay_rate * t)")


class TrainConfig(Settings):
    """How long to train and on how much at once."""

    global_batch: int = Field(128, ge=1, description="images a step, over all ranks")
    micro_batch: int = Field(32, ge=1, description="images of one virtual worker")
    epochs: int = Field(10, ge=1, description="passes over the training split")
    max_steps: int | None = Field(None, ge=1, description="stop after this many steps in all")
    log_every: int = Field(10, ge=1, description="steps from one logged line to the next")
    evaluate_every: int = Field(1, ge=0, description="epochs; 0: only at the end")
    label_smoothing: float = Field(
        0.0, ge=0, lt=1, description="share of the target spread evenly over all classes"
    )
    precision: Literal["float32", "bfloat16", "float16"] = Field(
        "float32",
        description="of the layers; weights, sums and the loss are float32 with any of them",
    )
    ema_decay: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="scored and kept besides: a moving average of the weights, of which a step "
        "leaves this share; null: none",
    )
    exact_sums: bool = Field(
        False, description="add up in 64-bit fixed point: the same bits at any number of ranks"
    )
    deterministic: bool = Field(True, description="only kernels that repeat in every bit")
    on_bad_numbers: Literal["stop", "skip"] = Field(
        "stop", description="where gradients are not finite; skip: that step changes nothing"
    )
    check_replicas_every: int = Field(
        1000, ge=0, description="steps between comparisons of all ranks' state by hash; 0: never"
    )

    profile_steps: int = Field(
        0, ge=0, description="early steps of which rank 0 writes a trace and a table; 0: none"
    )

    @property
    def virtual_workers(self) -> int:
        """V: micro-batches in a global batch."""
        return self.global_batch // self.micro_batch

    def total_steps(self, steps_per_epoch: int) -> int:
        """Return the steps of all epochs, unless `max_steps` ends the run before."""
        planned = self.epochs * steps_per_epoch
        return min(planned, self.max_steps or planned)

    @model_validator(mode="after")
    def _whole_micro_batches(self) -> "TrainConfig":
        if self.global_batch % self.micro_batch:
            raise ValueError(
                f"global_batch {self.global_batch} is not a multiple of micro_batch "
                f"{self.micro_batch}"
            )
        return self


class ExchangeConfig(Settings):
    """How ranks share what they have computed."""

    dense_layers: Literal["auto", "dense", "factored"] = Field(
        "auto",
        description="gradients of dense layers: summed (dense), or made at every rank of what went "
        "in and came back for each image (factored); auto: whichever costs less, by layer",
    )


class CheckpointConfig(Settings):
    """When rank 0 writes the state, and how much of it is kept."""

    path: str | None = Field(
        None, description="URI in an object store (s3://...); null: checkpoints/ below run_dir"
    )
    every: int = Field(200, ge=0, description="steps between checkpoints; 0: only at the end")
    keep: int = Field(3, ge=1, description="newest checkpoints kept")
    max_failures: int = Field(
        3, ge=1, description="writes in a row that the disk may fail before the run ends"
    )

    @field_validator("path")
    @classmethod
    def _far(cls, name: str | None) -> str | None:
        refuse_credentials(name or "")
        if name and (name.startswith("file:") or "://" not in name):
            raise ValueError(f"{name} is not in an object store; checkpoints on disk: set run_dir")
        return name


class RunConfig(Settings):
    """A training run: all that decides what is learned."""

    run_dir: str = Field("runs/run", description="where everything of this run is written")
    seed: int = Field(0, ge=0, lt=2**31, description="of weights, order, augmentation and dropout")
    data: DataConfig = DataConfig()
    model: ModelConfig = ModelConfig()
    train: TrainConfig = TrainConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    exchange: ExchangeConfig = ExchangeConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()

    @model_validator(mode="after")
    def _sums_are_exact_or_factored(self) -> "RunConfig":
        if self.train.exact_sums and self.exchange.dense_layers == "factored":
            raise ValueError(
                "exchange.dense_layers = 'factored' adds nothing up exactly; take auto"
            )
        return self


C = TypeVar("C", bound=RunConfig)


def load(kind: type[C], path: Path | None, overrides: Iterable[str] = ()) -> C:
    """Return the settings in `path` (YAML; None: all defaults) changed by `key=value` overrides.

    Raises:
        ConfigError: no such file, not YAML, an unknown key, or a value out of its bounds.
    """
    origin = str(path) if path else "defaults"
    tree = _read_yaml(path) if path else {}
    for override in overrides:
        _set_override(tree, override)
    try:
        return kind.model_validate(tree)
    except ValidationError as error:
        problems = "; ".join(_explain(kind, dict(problem)) for problem in error.errors())
        raise ConfigError(f"{origin}: {problems}") from None


def dump(config: RunConfig) -> str:
    """Return the resolved settings as YAML that `load` reads back to an equal value."""
    return yaml.safe_dump(config.model_dump(), sort_keys=False)


def schema(kind: type[RunConfig]) -> dict[str, Any]:
    """Return the JSON schema of a YAML file of such settings, for editors and other programs."""
    return {"$schema": SCHEMA_DIALECT, **kind.model_json_schema()}


def flat(settings: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    """Return nested settings by their full keys, as in train.epochs."""
    found: dict[str, Any] = {}
    for key, value in settings.items():
        is_group = isinstance(value, Mapping)
        found |= flat(value, f"{above}{key}.") if is_group else {f"{above}{key}": value}
    return found


def differences(a: Mapping[str, Any], b: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Return the values that are not the same in two `flat` settings, None for one not there."""
    values = {key: (a.get(key), b.get(key)) for key in {**a, **b}}
    return {key: (left, right) for key, (left, right) in values.items() if left != right}


def overrides(settings: Mapping[str, Any]) -> Iterator[str]:
    """Yield settings as the overrides that `load` reads back."""
    for key, value in flat(settings).items():
        plain = fspath(value) if isinstance(value, PathLike) else value
        text = yaml.safe_dump(plain, width=float("inf"), allow_unicode=True)
        yield f"{key}=" + text.removesuffix("...\n").removesuffix("\n")


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        tree = yaml.safe_load(path.read_text())
    except OSError as error:
        raise ConfigError(f"{path}: cannot read the config: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(tree or {}, dict):
        raise ConfigError(f"{path}: expected `key: value` settings, got {type(tree).__name__}")
    return tree or {}


def _set_override(tree: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not all(key.split(".")) or key != key.strip():
        raise ConfigError(f"override {override!r}: expected key=value, as in train.epochs=5")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        raise ConfigError(f"override {override!r}: {text!r} is not a YAML value") from None
    *parents, leaf = key.split(".")
    for name in parents:
        below = tree.setdefault(name, {})
        if not isinstance(below, dict):
            raise ConfigError(f"override {override!r}: {name} is not a group of settings")
        tree = below
    tree[leaf] = value


def _explain(kind: type[Settings], problem: Mapping[str, Any]) -> str:
    where = [str(part) for part in problem["loc"]]
    if problem["type"] == "extra_forbidden":
        return f"unknown key {'.'.join(where)}; {_right_name(kind, where)}"
    message = problem["msg"].removeprefix("Value error, ")
    if problem["type"] == "value_error":
        return ": ".join(filter(None, [".".join(where), message]))
    return f"{'.'.join(where)} = {problem['input']!r}: {message[0].lower()}{message[1:]}"


def _right_name(kind: type[Settings], where: list[str]) -> str:
    """Say which key was meant: one like it in its group, or one of that name in another."""
    known = list(_group_at(kind, where[:-1]).model_fields)
    near = difflib.get_close_matches(where[-1], known, n=1)
    near = near or [key for key in flat(kind().model_dump()) if key.split(".")[-1] == where[-1]]
    return f"did you mean {' or '.join(near)}?" if near else f"known here: {', '.join(known)}"


def _group_at(kind: type[Settings], path: list[str]) -> type[Settings]:
    for name in path:
        kind = cast(type[Settings], kind.model_fields[name].annotation)
    return kind

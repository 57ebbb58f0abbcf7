from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from alexnet.config import AugmentConfig, DataConfig, RunConfig, TrainConfig, dump, load
from alexnet.errors import EXIT_CONFIG, AlexnetError, ConfigError
from cluster.config import JobConfig

CONFIGS = sorted((Path(__file__).parents[1] / "configs").glob("*.yaml"))


def refused(*overrides: str, text: str = "{}", path: Path) -> str:
    """Return why settings are refused."""
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load(RunConfig, path, overrides)
    assert isinstance(caught.value, AlexnetError)
    assert caught.value.exit_code == EXIT_CONFIG == 2
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "some.yaml"


def test_defaults_need_no_file() -> None:
    assert load(RunConfig, None) == RunConfig()
    assert RunConfig().train.virtual_workers == 4


def test_overrides_lie_over_the_file_and_the_file_over_the_defaults(path: Path) -> None:
    path.write_text("seed: 5\ntrain:\n  global_batch: 64\n  epochs: 3\n")
    config = load(RunConfig, path, ["train.epochs=7", "data.augment.shift=0.1", "run_dir=a=b"])
    assert config == RunConfig(
        seed=5,
        train=TrainConfig(global_batch=64, epochs=7),
        data=DataConfig.model_validate({"augment": {"shift": 0.1}}),
        run_dir="a=b",
    )


@pytest.mark.parametrize(
    ("override", "value"),
    [
        ("schedule.learning_rate=1e-3", 0.001),
        ("schedule.learning_rate=3", 3.0),
        ("data.augment.vertical_flip=true", True),
        ("data.source=null", None),
        ("data.source=", None),
        ("run_dir=runs/x y", "runs/x y"),
        ("train.max_steps= 12", 12),
        ("train={epochs: 4}", TrainConfig(epochs=4)),
    ],
)
def test_an_override_is_a_yaml_value(override: str, value: object) -> None:
    leaf: object = load(RunConfig, None, [override])
    for name in override.partition("=")[0].split("."):
        leaf = getattr(leaf, name)
    assert leaf == value
    assert type(leaf) is type(value)


def test_the_last_override_counts() -> None:
    assert load(RunConfig, None, ["seed=1", "seed=2"]).seed == 2


@given(
    st.builds(
        RunConfig,
        run_dir=st.text(st.characters(codec="utf-8"), min_size=1),
        seed=st.integers(0, 2**31 - 1),
        data=st.builds(
            DataConfig,
            path=st.sampled_from(["1e3", "null", "a: b", " x", "자료/ü", "0x1", "~"]),
            source=st.none() | st.text(st.characters(codec="ascii")),
        ),
        train=st.builds(
            TrainConfig,
            global_batch=st.just(96),
            micro_batch=st.sampled_from([1, 8, 96]),
            max_steps=st.none() | st.integers(1),
        ),
    )
)
def test_what_is_dumped_loads_as_the_same(
    tmp_path_factory: pytest.TempPathFactory, config: RunConfig
) -> None:
    path = tmp_path_factory.getbasetemp() / "dumped.yaml"
    path.write_text(dump(config), encoding="utf-8")
    assert load(RunConfig, path) == config


def test_a_dump_names_every_setting() -> None:
    tree = yaml.safe_load(dump(RunConfig()))
    assert set(tree) == set(RunConfig.model_fields)
    assert set(tree["data"]["augment"]) == set(AugmentConfig.model_fields)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        # unknown keys: the nearest known one
        ("trian.epochs=3", ["unknown key trian", "did you mean train?"]),
        ("train.epoch=3", ["unknown key train.epoch", "did you mean epochs?"]),
        ("data.augment.shft=1", ["unknown key data.augment.shft", "did you mean shift?"]),
        ("epochs=3", ["unknown key epochs", "did you mean train.epochs?"]),
        ("train.learning_rate=1", ["did you mean schedule.learning_rate?"]),
        ("name=bn", ["did you mean model.name or optimizer.name?"]),
        ("checkpoint.qqq=1", ["unknown key checkpoint.qqq", "known here: path, every, keep"]),
        # bounds: the value and the bound
        ("train.epochs=0", ["train.epochs = 0", "greater than or equal to 1"]),
        ("data.image_size=66", ["data.image_size = 66", "greater than or equal to 67"]),
        ("data.image_size=1025", ["data.image_size = 1025", "less than or equal to 1024"]),
        ("model.dropout=1", ["model.dropout = 1", "less than 1"]),
        ("schedule.learning_rate=0", ["schedule.learning_rate = 0", "greater than 0"]),
        ("schedule.learning_rate=.nan", ["schedule.learning_rate = nan", "finite"]),
        ("optimizer.weight_decay=-1", ["optimizer.weight_decay = -1", "equal to 0"]),
        ("seed=2147483648", ["seed = 2147483648", "less than 2147483648"]),
        ("checkpoint.keep=0", ["checkpoint.keep = 0", "greater than or equal to 1"]),
        # types
        ("train.epochs=1.5", ["train.epochs = 1.5", "integer"]),
        ("train.epochs=many", ["train.epochs = 'many'", "integer"]),
        ("data.augment=5", ["data.augment = 5", "dictionary"]),
        ("schedule.decay=linear", ["'linear'", "'constant', 'cosine'", "or 'inverse_time'"]),
        # combinations
        ("train.global_batch=100", ["global_batch 100", "not a multiple of micro_batch 32"]),
        ("train.micro_batch=256", ["global_batch 128", "not a multiple of micro_batch 256"]),
        # syntax of overrides
        ("train.epochs", ["'train.epochs'", "expected key=value"]),
        ("train.epochs=[", ["'train.epochs=['", "not a YAML value"]),
        ("seed.x=1", ["'seed.x=1'", "seed is not a group of settings"]),
    ],
)
def test_a_bad_override_is_refused_with_value_and_remedy(
    override: str, words: list[str], path: Path
) -> None:
    message = refused(override, text="seed: 1", path=path)
    for word in words:
        assert word in message


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a: [", "not YAML"),
        ("a: 1\n b: 2", "not YAML"),
        ("- 5", "expected `key: value` settings, got list"),
        ("just words", "expected `key: value` settings, got str"),
        ("1: 2", "keys should be strings"),
        ("train: 5", "train = 5"),
        ("a: !!python/object:os.system 1", "not YAML"),
    ],
)
def test_a_bad_file_is_refused_by_name(text: str, words: str, path: Path) -> None:
    message = refused(text=text, path=path)
    assert message.startswith(f"{path}: ")
    assert words in message


def test_all_mistakes_are_told_at_once(path: Path) -> None:
    message = refused(text="sed: 4\ntrain: {epochs: 0, micro_batch: x}", path=path)
    for word in ("sed; did you mean seed?", "train.epochs = 0", "train.micro_batch = 'x'"):
        assert word in message


@pytest.mark.parametrize("text", [b"\xff\xfe\xff", b"a: \x00"])
def test_bytes_that_are_no_text(text: bytes, path: Path) -> None:
    path.write_bytes(text)
    with pytest.raises(ConfigError, match="not YAML"):
        load(RunConfig, path)


@pytest.mark.parametrize("name", ["missing.yaml", "."])
def test_a_file_that_cannot_be_read(name: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot read the config"):
        load(RunConfig, tmp_path / name)


@pytest.mark.parametrize("field", ["schedule.learning_rate", "optimizer.weight_decay"])
def test_infinity_is_refused(field: str, path: Path) -> None:
    assert "inf" in refused(f"{field}=.inf", path=path)


def test_settings_do_not_change() -> None:
    with pytest.raises(ValueError, match="frozen"):
        RunConfig().train.epochs = 5  # type: ignore[misc]


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem)
def test_every_config_in_the_repository_loads(config: Path) -> None:
    assert load(JobConfig, config).train.virtual_workers >= 1


def test_there_are_configs_to_load() -> None:
    assert CONFIGS


@pytest.mark.parametrize(("workers", "fits"), [(0, False), (1, True), (4, True), (5, False)])
def test_every_worker_needs_a_micro_batch(workers: int, fits: bool) -> None:
    config = JobConfig()
    if fits:
        config.check_workers(workers)
    else:
        with pytest.raises(ConfigError, match=f"workers = {workers}: .* 1 to 4 workers"):
            config.check_workers(workers)


def test_an_unknown_key_of_a_job() -> None:
    with pytest.raises(ConfigError, match=r"cluster\.worker; did you mean workers\?"):
        load(JobConfig, None, ["cluster.worker=2"])

"""The image by itself: what is in it, what is not, and that it trains in a box."""

import json

import pytest

from tests.e2e.pods import IMAGE, podman

pytestmark = [pytest.mark.container, pytest.mark.slow, pytest.mark.usefixtures("image")]

LARGEST = 2.5e9  # bytes, uncompressed
BOXED = ["--read-only", "--read-only-tmpfs=false", "--network=none", "--cap-drop=all"]
BOXED += ["--security-opt=no-new-privileges", "--tmpfs=/tmp:mode=1777", "--shm-size=512m"]


def boxed(*command: str, timeout: float = 300) -> str:
    """Run a command in the image, with nothing that it could write to but /tmp, and no network."""
    return podman("run", "--rm", *BOXED, IMAGE, *command, timeout=timeout).stdout


def test_size_and_what_it_says_of_itself() -> None:
    [image] = json.loads(podman("image", "inspect", IMAGE).stdout)
    print(f"{IMAGE}: {image['Size'] / 1e6:.0f} MB")
    assert image["Size"] < LARGEST
    config = image["Config"]
    assert config["User"] == "1000:1000"
    assert config["WorkingDir"] == "/app"
    labels = {key.rsplit(".", 1)[1]: value for key, value in config["Labels"].items()}
    assert labels["version"] == IMAGE.split(":")[1]
    assert labels["licenses"] == "Apache-2.0"
    assert labels["revision"]
    assert image["Healthcheck"]["Test"][-1] == "/app/health.py"
    assert not any("TOKEN=" in each or "CERT=" in each for each in config["Env"])


def test_nothing_that_installs_or_compiles_is_in_it() -> None:
    tools = ["cc", "gcc", "g++", "c++", "clang", "make", "cmake", "nvcc", "pip", "pip3", "curl"]
    found = boxed("sh", "-c", f"for tool in {' '.join(tools)}; do command -v $tool; done; true")
    assert found == ""
    packages = boxed(
        "python",
        "-c",
        "from importlib.metadata import distributions as d\n"
        "print(*(each.name.lower() for each in d()))",
    ).split()
    assert {"alexnet", "horovod", "ray", "tensorflow", "pyarrow"} <= set(packages)
    assert not {"pip", "pytest", "mypy", "cmake", "moto", "flask"} & set(packages)


def test_nobody_has_more_rights_than_its_user() -> None:
    everywhere = ["find", "/", "-xdev", "-not", "-readable", "-prune", "-o"]
    found = boxed(*everywhere, "-perm", "/6000", "-type", "f", "-print")
    print("with the set-uid or set-gid bit, of no use with no-new-privileges:", found.split())
    mine = boxed(*everywhere, "-user", "1000", "-not", "-path", "/tmp*", "-print").split()
    assert sorted(mine) == ["/data", "/runs"]


def test_two_ranks_train_with_a_root_that_is_read_only() -> None:
    run = ["run_dir=/tmp/run", "data.path=/tmp/digits", "cluster.workers=2", "train.max_steps=3"]
    boxed("alexnet", "train", "configs/smoke.yaml", *run, "train.log_every=1", timeout=600)


def test_health_of_a_container_that_runs_no_node() -> None:
    boxed("python", "/app/health.py")

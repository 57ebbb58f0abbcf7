"""The directions of the arrows: who may import whom."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MODULES = sorted(
    path.relative_to(ROOT).as_posix()
    for room in ("alexnet", "cluster")
    for path in (ROOT / room).rglob("*.py")
)


def imported(file: str) -> set[str]:
    """All modules that a file imports, anywhere in it, each with the packages it is in."""
    names: set[str] = set()
    for node in ast.walk(ast.parse((ROOT / file).read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: a relative import"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return {".".join(name.split(".")[:n]) for name in names for n in range(1, name.count(".") + 2)}


def who_imports(module: str) -> list[str]:
    return [file for file in MODULES if module in imported(file)]


def test_imports_are_seen() -> None:
    assert len(MODULES) > 20
    assert {"alexnet.exchange", "keras", "tensorflow"} <= imported("alexnet/step.py")
    assert {"sklearn", "sklearn.datasets"} <= imported("alexnet/data/known.py")  # in a function


@pytest.mark.parametrize("module", ["ray", "horovod", "prometheus_client", "cluster"])
def test_alexnet_does_not_know_that_it_is_distributed(module: str) -> None:
    assert not [file for file in who_imports(module) if file.startswith("alexnet/")]


@pytest.mark.parametrize(
    ("module", "files"),
    [
        ("horovod.tensorflow", ["cluster/collectives.py"]),
        ("prometheus_client", ["cluster/metrics.py"]),
    ],
)
def test_a_dependency_has_its_one_file(module: str, files: list[str]) -> None:
    assert who_imports(module) == files


@pytest.mark.parametrize(
    ("file", "module"),
    [
        ("alexnet/data/batches.py", "alexnet.model"),
        ("alexnet/data/batches.py", "alexnet.step"),
        ("alexnet/data/batches.py", "alexnet.data.prepare"),
        ("alexnet/data/prepare.py", "alexnet.data.known"),
        ("alexnet/data/images.py", "alexnet.data.sources"),
        ("alexnet/checkpoint.py", "alexnet.trainer"),
        ("alexnet/checkpoint.py", "alexnet.step"),
        ("alexnet/checkpoint.py", "tensorflow"),
        ("alexnet/step.py", "alexnet.data"),
        ("alexnet/trainer.py", "alexnet.checkpoint"),
        ("alexnet/trainer.py", "alexnet.hooks"),
    ],
)
def test_a_part_does_not_know_another(file: str, module: str) -> None:
    assert (ROOT / file).exists()
    assert module not in imported(file)


@pytest.mark.parametrize("module", ["tensorflow", "keras"])
def test_data_are_read_without_tensorflow(module: str) -> None:
    """`known` asks Keras for CIFAR, in a function."""
    files = [file for file in who_imports(module) if file.startswith("alexnet/data/")]
    assert files == ([] if module == "tensorflow" else ["alexnet/data/known.py"])


@pytest.mark.parametrize(
    "modules",
    [
        "alexnet.config, alexnet.errors, alexnet.schedule, alexnet.data.order",
        "alexnet.data.prepare, alexnet.data.shards, alexnet.checkpoint",
        "alexnet.data.batches, alexnet.data.index, alexnet.data.known",
        "alexnet.report.page, cluster.job, cluster.cli",
    ],
)
def test_importing_the_light_parts_does_not_bring_in_tensorflow(modules: str) -> None:
    """A driver, and a command's --help, must not wait for it, nor take a GPU's memory."""
    program = (
        f"import sys, {modules}\n"
        "heavy = {'tensorflow', 'keras', 'sklearn'} & set(sys.modules)\n"
        "sys.exit(f'imported: {heavy}' if heavy else 0)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr

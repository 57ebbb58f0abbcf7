"""Environments of their own for what is compared with us, made by plain pip."""

import subprocess
import venv
from pathlib import Path

HERE = Path(__file__).resolve().parent


def python_of(name: str) -> Path:
    """Return the interpreter of `.envs/NAME`, which `make_environment` makes."""
    return HERE / ".envs" / name / "bin" / "python"


def make_environment(name: str) -> None:
    """Make `.envs/NAME` unless it is there as `requirements-NAME.txt` has it now."""
    folder, requirements = HERE / ".envs" / name, HERE / f"requirements-{name}.txt"
    stamp = folder / "ready"
    if stamp.exists() and stamp.read_text() == requirements.read_text():
        return
    print(f"making benchmarks/.envs/{name}", flush=True)
    venv.create(folder, clear=True, with_pip=True)
    pip = [str(python_of(name)), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    done = subprocess.run([*pip, "-r", str(requirements)], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{requirements.name}: {done.stderr[-4000:]}")
    stamp.write_text(requirements.read_text())

# `make train` on a fresh checkout sets everything up and trains. `make` lists the targets.

VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
PIP_INSTALL := $(BIN)/python -m pip install -qq --disable-pip-version-check

# With an NVIDIA driver in sight, the CUDA libraries are installed too.
LOCK = requirements/$(shell { [ -e /proc/driver/nvidia/version ] || nvidia-smi -L; } \
	>/dev/null 2>&1 && echo gpu || echo cpu).lock

PYTHON ?= python3
SUPPORTED := import sys; sys.exit(sys.version_info[:2] not in ((3, 11), (3, 12)))
INTERPRETER = $(or $(shell for python in $(PYTHON) python3.12 python3.11; do \
	$$python -c '$(SUPPORTED)' 2>/dev/null && echo $$python && break; done),\
	$(error Python 3.11 or 3.12 is needed: make setup PYTHON=/path/to/python3.12))

.DEFAULT_GOAL := help
.PHONY: help train test setup lint bench bench-data chaos soak accuracy image e2e audit lock clean

help: ## list the targets
	@sed -n 's/^\([a-z0-9-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 12

train: setup ## from pictures to an evaluated model: the smoke run, minutes on a CPU
	$(BIN)/alexnet train configs/smoke.yaml --replace

test: setup ## run the tests (ARGS="-k order" goes to pytest)
	$(BIN)/python -m pytest $(ARGS)

setup: $(READY) ## make .venv and all in it, Horovod included (minutes, once)

lint: setup ## check format, style and types
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy alexnet cluster tests tools

bench: setup ## ratios of step times, ours against others' (ARGS="ddp-8 --rounds 8"; hours)
	$(BIN)/python -m benchmarks.speed $(ARGS)

bench-data: setup ## the loader against others' (SOURCE=photos/, ARGS="--rounds 9"; half an hour)
	$(BIN)/python benchmarks/data.py $(if $(SOURCE),--source $(SOURCE)) $(ARGS)

chaos: setup ## every fault, done to real processes (ARGS="kill-rank --rounds 3", ARGS=--list)
	$(BIN)/python -m benchmarks.chaos $(ARGS)

soak: setup ## an hour of training, a fault a minute (ARGS="--minutes 4 --seed 7")
	$(BIN)/python -m benchmarks.soak $(ARGS)

accuracy: setup ## train the presets on real images (DATA=DIR, ARGS="catdog cifar10-0"; hours)
	$(BIN)/python -m benchmarks.accuracy $(if $(DATA),--data $(DATA)) $(ARGS)

image: ## build alexnet:VERSION (TARGET=gpu; buildah or podman) and say how large it is
	tools/image/build $(or $(TARGET),cpu) $(ARGS)

e2e: setup ## the image's pods under podman: job, scrapes, a lost pod, strangers (as root)
	$(BIN)/python -m pytest -m container $(ARGS) tests/e2e

audit: setup ## ask for advisories on every package of requirements/ (SECURITY.md has the exceptions)
	$(BIN)/python tools/audit.py

lock: ## write requirements/*.lock anew from pyproject.toml (needs uv)
	requirements/compile

clean: ## remove .venv, runs, build outputs and caches
	rm -rf $(VENV) runs build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The stamp comes last: a set-up that failed half-way is done again.
$(READY): $(wildcard requirements/*.lock tools/horovod/*.py) pyproject.toml
	@rm -f $@
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(INTERPRETER) -m venv --clear $(VENV)
	@echo "installing $(LOCK) into $(VENV) (a large download, once)"
	@$(PIP_INSTALL) --require-hashes -r $(LOCK)
	@$(BIN)/python tools/horovod/build.py
	@echo "installing alexnet, editable"
	@$(PIP_INSTALL) --no-deps --no-build-isolation -e .
	@touch $@
	@echo "ready"

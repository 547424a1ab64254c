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

# The accuracy tables of the README, about ten minutes each; an interrupted run goes on where it was. The choices
# are made on other documents than the first table is measured on.
CHOICES := madakv,madakv:compensation=none,madakv:compensation=demand,madakv:compensation=signal
results: venv
	$(BIN)/madakv eval --methods full,madakv --budgets 0.5,0.2,0.1,0.05 --samples 200 --out results/digits
	$(BIN)/madakv eval --methods $(CHOICES),madakv:text_pooling=1,madakv:proxies=3 --budgets 0.2,0.1,0.05 \
		--samples 60 --seed 100000 --out results/choices

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis

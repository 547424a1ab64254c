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

# The tables of README and docs. Each command goes on where an interrupted one stopped, and is fast where all is done.
# Choices are made on other documents (--seed) than the tables that compare methods.
comma := ,
EVAL := $(BIN)/madakv eval --model small-llava
RIVALS := full,random,streaming_llm,h2o,snapkv,pyramidkv,adakv,lookm,meda,prefixkv,mixkv,madakv-paper,mpa,hcc,madakv
DRAFTED := full,madakv:draft=8,madakv-paper:draft=8,snapkv:draft=8,snapkv:draft=8:window=question,adakv:draft=8
DRAFTED := $(DRAFTED),adakv:draft=8:window=question,mixkv:draft=8:window=question,h2o:draft=8,lookm:draft=8
CHOICES := full,madakv,madakv:compensation=capped,madakv:compensation=demand,madakv:compensation=signal
CHOICES := $(CHOICES),madakv:compensation=capped:theta=0.7,madakv:proxies=4,madakv:proxies=8,madakv:proxies=32
CHOICES := $(CHOICES),madakv:text_pooling=1,madakv:values=False,madakv:safeguard=1.0,madakv:safeguard=0.5
HELP := madakv:draft=1,madakv:draft=2,madakv:draft=4,madakv:draft=8,madakv:lookahead=1,madakv:lookahead=2
HELP := $(HELP),madakv:draft=8:text_pooling=1,madakv:draft=8:values=False,madakv:draft=8:safeguard=1.0
HELP := $(HELP),madakv:draft=8:answer_weight=1.0,madakv:draft=8:answer_weight=4.0
BUDGETS := 0.5,0.2,0.1,0.05,0.02

results: venv
	$(EVAL) --suite long-512 --methods $(RIVALS) --budgets $(BUDGETS) --samples 24 --out results/long-512/rivals
	$(EVAL) --suite long-512 --methods $(DRAFTED) --budgets $(BUDGETS) --samples 24 --out results/long-512/draft
	$(EVAL) --suite long-512 --methods $(CHOICES),$(HELP) --budgets 0.2,0.05 --samples 10 --seed 100000 \
		--out results/long-512/choices
	$(EVAL) --suite long-512 --methods full,madakv:draft=8,madakv:draft=8:answer_weight=4.0,madakv:draft=8:answer_weight=1.0 \
		--budgets 0.02 --samples 10 --seed 100000 --out results/long-512/answer-weight
	$(EVAL) --suite long --methods full,snapkv,adakv,madakv,madakv:draft=8,snapkv:draft=8 --budgets 0.2,0.05 --samples 8 \
		--out results/long
	$(BIN)/madakv distance --model small-llava --suite long-512 --methods $(subst full$(comma),,$(RIVALS)),madakv:draft=8 \
		--budgets 0.2 --samples 3 --out results/long-512/distance
	$(BIN)/madakv eval --methods full,madakv,madakv:compensation=capped,madakv:draft=12 --budgets 0.5,0.2,0.1,0.05 --samples 40 --out results/digits

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis

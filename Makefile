# `make` alone says what there is; `make demo` and `make test` each set up everything they need from a bare clone.
PYTHON ?= python3
# On Linux this pulls PyTorch's default build; name another one here, e.g. for a CPU-only wheel.
TORCH ?= torch==2.13.0
VENV := .venv
BIN := $(VENV)/bin

.PHONY: help venv demo test test-slow test-vllm results-vllm speed-vllm lint format results results-text speed clean

help:
	@echo "Each of these sets up what it needs in $(VENV), from a bare clone:"
	@echo "  make demo       a long document with pictures, full cache against a fifth: half a minute"
	@echo "  make test       everything CI runs: lint, types, tests: minutes"
	@echo "  make test-slow  tests that take minutes each, the wheel in an empty environment among them"
	@echo "  make test-vllm  the plug-in inside vLLM, on a CPU, in an environment of its own (VLLM=folder)"
	@echo "  make lint       ruff and mypy alone"
	@echo "  make format     mend what ruff can mend"
	@echo "  make results    answer the documents behind the tables again; goes on where it was stopped:"
	@echo "                  results-small-llava and results-small-qwen2.5-vl, an hour or two each, and"
	@echo "  make results-text   those of a published text model: half a day, and results-small-smolvlm: two hours"
	@echo "  make speed      measure speed and memory again, on a machine with nothing else to do"
	@echo "  make results-vllm  answers through vLLM beside those through transformers: half an hour"
	@echo "  make speed-vllm requests and tokens per second inside vLLM, ours and its own: an hour"
	@echo "  make venv       the environment alone"
	@echo "  make clean      remove it, and all caches"
	@echo "TORCH=...   which torch, such as TORCH=torch==2.13.0+cpu with PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu"
	@echo "PYTHON=...  which Python, 3.11 or newer; now: $(PYTHON)"

venv: $(VENV)/.ready

$(VENV)/.ready: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet "$(TORCH)"
	$(BIN)/python -m pip install --quiet --editable ".[dev]"
	$(BIN)/python -c "from madakv.native.build import kernels; kernels()"
	touch $@

demo: venv
	$(BIN)/madakv demo

# Files are dealt out over processes, so that what a file makes once it makes once.
test: venv lint
	$(BIN)/python -m pytest --numprocesses auto --dist loadfile

test-slow: venv
	$(BIN)/python -m pytest -m slow

# vLLM wants other versions of much: it lives apart.
VLLM ?= .venv-vllm
test-vllm: $(VLLM)/bin/vllm
	$(VLLM)/bin/python -m pytest -m slow tests/integrations/vllm

SPEED_VLLM := $(VLLM)/bin/python scripts/vllm_speed.py
speed-vllm: $(VLLM)/bin/vllm
	OMP_NUM_THREADS=1 $(SPEED_VLLM) attention --tokens 410,2048 --requests 16 --out results/speed/vllm/attention.json
	OMP_NUM_THREADS=1 $(SPEED_VLLM) capacity --requests 72 --pool 6 --say 64 --out results/speed/vllm/capacity.json
	OMP_NUM_THREADS=2 $(SPEED_VLLM) serving --batched 1 --pool 1,1.33,2 --requests 8 --say 1024 \
		--out results/speed/vllm/serving.json

ANSWERS_VLLM := OMP_NUM_THREADS=1 PYTHONPATH=src:. $(VLLM)/bin/python scripts/vllm_accuracy.py --model
results-vllm: $(VLLM)/bin/vllm
	$(ANSWERS_VLLM) small-llava --suite long-1024 --documents 8 --budgets 1,0.2,0.1,0.05 --out results/vllm/small-llava.json
	$(ANSWERS_VLLM) small-llava --suite long-1024 --documents 8 --budgets 0.2,0.1,0.05 --processes 2 \
		--out results/vllm/small-llava-2-processes.json
	$(ANSWERS_VLLM) small-smolvlm --suite long-512 --documents 4 --budgets 1,0.2,0.1 --out results/vllm/small-smolvlm.json
	$(ANSWERS_VLLM) smollm2 --suite text-1k --documents 2 --budgets 1,0.2,0.1 --out results/vllm/smollm2.json

$(VLLM)/bin/vllm:
	PYTHON=$(PYTHON) scripts/vllm_env.sh $(VLLM)

lint: venv
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: venv
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# The tables of README and docs. Each command goes on where an interrupted one stopped, and is fast where all is done.
# Choices are made on other documents (--seed) than the tables that compare methods.
# `make results RUN="$(BIN)/torchrun --nproc_per_node 2 -m madakv"` shares the work between two processes.
comma := ,
MODELS := small-llava small-qwen2.5-vl
RUN := $(BIN)/madakv
BUDGETS := 0.5,0.2,0.1,0.05,0.02
PUBLISHED := full,random,streaming_llm,h2o,snapkv,pyramidkv,adakv,lookm,meda,prefixkv,mixkv
PUBLISHED := $(PUBLISHED),snapkv:window_size=question:kernel_size=1,mpa,hcc,madakv-paper
PUBLISHED := $(PUBLISHED),madakv-paper:protected=0.0,keydiff,expected_attention,tgv_kv,kvzip,kvzip:budgets=uniform
# The last reads as many tokens again as our default does.
PUBLISHED := $(PUBLISHED),kvzip:echo=auto,madakv
# What even plans cost: engines hold them more easily.
SHAPES := madakv:shape=heads-even,madakv:shape=layers-even,madakv:shape=rectangular
# What helps us, for rivals as well: the question as their window, the prompt's own queries, an echo, a draft.
HELP := window_size=question:context=64:echo=auto
HELPED := full,madakv,madakv:echo=all,madakv:echo=0
HELPED := $(HELPED),snapkv:$(HELP):kernel_size=1,adakv:$(HELP):kernel_size=1,mixkv:$(HELP)
DRAFT := full,madakv:draft=8,madakv:draft=8:echo=all,madakv:draft=8:echo=0,madakv-paper:draft=8,snapkv:draft=8
DRAFT := $(DRAFT),adakv:draft=8:answer_weight=4.0:$(HELP):kernel_size=1,mixkv:draft=8:answer_weight=4.0:$(HELP)
EVEN := shape=rectangular
CHOICES := full,madakv,madakv:safeguard=0.0,madakv:safeguard=0.2
CHOICES := $(CHOICES),madakv:safeguard=0.7,madakv:values=False,madakv:text_pooling=5
CHOICES := $(CHOICES),madakv:protected=0.0,madakv:protected=1.0,madakv:context=0,madakv:context=256,madakv:echo=0
CHOICES := $(CHOICES),madakv:context=0:echo=0,madakv:echo=64,madakv:echo=all,madakv:echo_weight=0.5,madakv:echo_weight=16.0
CHOICES := $(CHOICES),madakv:groups=max,madakv:proxies=4,madakv:proxies=8,madakv:proxies=32
CHOICES := $(CHOICES),madakv:lookahead=2,madakv:draft=2,madakv:draft=4,madakv:draft=8,madakv:draft=8:answer_weight=1.0
CHOICES := $(CHOICES),madakv:draft=8:answer_weight=16.0,madakv:draft=8:$(EVEN),mpa,madakv-paper,madakv-paper:theta=0.5
CHOICES := $(CHOICES),madakv-paper:compensation=demand,madakv-paper:compensation=signal

results: venv $(MODELS:%=results-%) results-text results-small-smolvlm results-echo
	$(RUN) eval --methods full,madakv,madakv-paper,madakv:draft=12 --budgets 0.5,0.2,0.1,0.05 \
		--samples 40 --out results/digits
	$(BIN)/python scripts/fill_tables.py

results-%:
	$(RUN) eval --model $* --suite long-512 --methods $(PUBLISHED) --budgets $(BUDGETS) --samples 30 \
		--out results/$*/published
	$(RUN) eval --model $* --suite long-512 --methods $(HELPED) --budgets $(BUDGETS) --samples 12 --out results/$*/helped
	$(RUN) eval --model $* --suite long-512 --methods full,madakv,$(SHAPES) --budgets 0.2,0.1,0.05 --samples 30 \
		--out results/$*/shapes
	$(RUN) eval --model $* --suite long-512 --methods $(DRAFT) --budgets $(BUDGETS) --samples 12 --out results/$*/draft
	$(RUN) eval --model $* --suite long-512 --methods $(CHOICES) --budgets 0.2,0.1,0.05 --samples 12 --seed 100000 \
		--out results/$*/choices
	$(RUN) eval --model $* --suite long-512 --methods full,snapkv,kvzip,madakv --budgets 0.2,0.1,0.05 --samples 30 \
		--seed 200000 --out results/$*/unseen
	$(RUN) eval --model $* --suite long --methods full,snapkv,mixkv,madakv,madakv:echo=all,madakv:draft=8 \
		--budgets 0.2,0.05 --samples 12 --out results/$*/lengths
	$(RUN) eval --model $* --suite long-1024 --methods full --samples 200 --out results/$*/full-1024
	$(RUN) eval --model $* --suite long-4096 --methods full --samples 60 --out results/$*/full-4096
	$(BIN)/madakv distance --model $* --suite long-512 --methods $(subst full$(comma),,$(PUBLISHED)),madakv:$(EVEN),madakv:draft=8 \
		--budgets 0.2 --samples 3 --out results/$*/distance
	$(BIN)/madakv plot --model $* --suite long-512 --samples 8 --out results/$*/analysis
	$(BIN)/madakv plot --model $* --suite long-512 --samples 8 --figure tasks --method madakv-paper \
		--out results/$*/analysis/madakv-paper

# How long the default's echo is, and what it costs.
results-echo: venv
	for model in $(MODELS); do $(RUN) eval --model $$model --suite long-512 --seed 100000 --samples 12 --budgets 0.2,0.1,0.05 \
		--methods full,madakv:echo=0,madakv:echo=32,madakv,madakv:echo=128,madakv:echo=all \
		--out results/$$model/echo-lengths || exit; done
	$(RUN) eval --model smollm2 --dtype float32 --suite text-1k --seed 100000 --samples 2 --budgets 0.2,0.1 \
		--methods full,madakv:echo=0,madakv:echo=64,madakv,madakv:echo=400,madakv:echo=all --out results/smollm2/echo-lengths
	$(BIN)/python scripts/echo_curve.py results/*/echo-lengths --out results/echo

# Thirty layers of a published language model behind eyes trained here, which no option was chosen by.
SMOLVLM := $(RUN) eval --model small-smolvlm --dtype float32 --suite
UNEVEN := full,madakv,$(SHAPES)
results-small-smolvlm: venv
	$(BIN)/madakv models get smollm2
	$(SMOLVLM) long-512 --methods full,random,snapkv,madakv-paper,kvzip,kvzip:echo=auto,madakv --budgets 0.2,0.1,0.05 \
		--samples 6 --out results/small-smolvlm/published
	$(SMOLVLM) long-1024 --methods full --samples 12 --out results/small-smolvlm/full-1024
	$(SMOLVLM) long-4096 --methods full --samples 3 --out results/small-smolvlm/full-4096
	$(SMOLVLM) long-512 --seed 100000 --samples 4 --budgets 0.2,0.1,0.05 --methods $(UNEVEN) --out results/small-smolvlm/uneven
	$(SMOLVLM) long-512 --seed 200000 --samples 6 --budgets 0.2,0.1,0.05 --methods full,snapkv,kvzip,madakv \
		--out results/small-smolvlm/unseen
	$(BIN)/madakv plot --model small-smolvlm --dtype float32 --suite long-512 --samples 4 --out results/small-smolvlm/analysis
	$(BIN)/madakv plot --model small-smolvlm --dtype float32 --suite long-512 --samples 4 --figure tasks \
		--method madakv-paper --out results/small-smolvlm/analysis/madakv-paper

# A published model on real text; choices were made with seeds from 100000.
TOLD := full,snapkv,kvzip,kvzip:echo=auto,madakv
TRIAL := $(BIN)/python scripts/echo_trials.py
TRIED := eval --model smollm2 --dtype float32 --suite text-1k --seed 100000 --samples 2 --budgets 0.2,0.1 \
	--out results/smollm2/echo-trials
results-text: venv
	$(BIN)/madakv models get smollm2
	$(RUN) eval --model smollm2 --dtype float32 --suite text-1k --methods $(TOLD) --budgets 0.2,0.1 --samples 5 \
		--out results/smollm2/text-1k
	$(RUN) eval --model smollm2 --dtype float32 --suite text-1k --methods $(TOLD) --budgets 0.2,0.1 --samples 3 --seed 200000 \
		--out results/smollm2/unseen
	$(BIN)/python scripts/echo_reach.py --samples 6 --out results/smollm2/echo-reach
	$(RUN) eval --model smollm2 --dtype float32 --suite text-1k --seed 100000 --samples 3 --budgets 0.2,0.1 --methods $(UNEVEN) \
		--out results/smollm2/uneven
	$(BIN)/madakv distance --model smollm2 --dtype float32 --suite text-1k --methods snapkv,kvzip,madakv,madakv:echo=all \
		--budgets 0.2 --samples 1 --out results/smollm2/distance
	$(TRIAL) spread $(TRIED)/spread --methods full,madakv
	$(TRIAL) turned $(TRIED)/turned --methods full,madakv:echo=0
	$(TRIAL) lower $(TRIED)/lower --methods full,madakv:echo=all
	$(TRIAL) own $(TRIED)/own --methods full,madakv
	$(TRIAL) chunks $(TRIED)/chunks --methods full,madakv,madakv:echo=all
	$(BIN)/madakv $(TRIED)/draft --methods full,madakv:draft=8:echo=0,madakv:draft=8
	$(BIN)/madakv plot --figure concentration,layers --model smollm2 --suite text-1k --samples 2 --method snapkv \
		--dtype float32 --out results/smollm2/analysis

# Speed and memory on this machine, which should have nothing else to do.
# Brings numba, which one of the comparisons is with. With KVPRESS=/path/to/its/environment/bin/python, kvpress' too.
BENCH := $(BIN)/madakv bench
speed: venv
	rm -rf $(filter-out results/speed/vllm/,$(wildcard results/speed/*/))
	$(BENCH) decode --fast-linears --shape llava-1.5-7b --layers 2 --context 3300 --budgets 1.0,0.2,0.05 --repeats 9 \
		--out results/speed/llava-3k
	$(BENCH) decode --fast-linears --shape llava-1.5-7b --layers 2 --context 32768 --budgets 1.0,0.2,0.05 --tokens 4 \
		--out results/speed/llava-32k
	$(BENCH) decode --fast-linears --shape qwen2.5-vl-7b --layers 2 --context 3300,32768 --budgets 1.0,0.2,0.05 --tokens 8 \
		--out results/speed/qwen
	$(BENCH) decode --fast-linears --shape qwen2.5-vl-7b --layers 2 --context 32768 --batch 8 --shortest 1.0 --budgets 1.0,0.2,0.05 \
		--tokens 2 --repeats 3 --out results/speed/qwen-8-rows
	$(BENCH) kernel --shape llava-1.5-7b,qwen2.5-vl-7b --context 20000,40000 --budgets 0.2 --out results/speed/kernel
	$(BENCH) prefill --shape llava-1.5-7b --layers 1 --context 2048,8192 --methods madakv,madakv:echo=0 --budgets 1.0,0.2 \
		--repeats 3 --fill prefill --out results/speed/prefill
	$(BENCH) prefill --shape llava-1.5-7b --layers 1 --context 32768 --methods madakv:echo=0 --budgets 0.2 --repeats 3 \
		--fill prefill --out results/speed/prefill-32k
	$(BENCH) prefill --shape llava-1.5-7b,qwen2.5-vl-7b --layers 8 --context 8192,16384,32768 --budgets 0.2 \
		--fill synthetic --out results/speed/evict
	$(BENCH) memory --shape llava-1.5-7b --layers 2 --context 512 --batch 1,8 --budgets 0.2,0.05 --no-rivals \
		--out results/speed/memory
	$(BENCH) memory --shape llava-1.5-7b --layers 2 --context 3300 --batch 1 --budgets 0.2,0.05 --no-rivals \
		--out results/speed/memory-3k
	$(BIN)/python scripts/echo_price.py --out results/speed/echo
	$(BIN)/python scripts/recording_cost.py --tokens 1300 --rounds 4 --out results/speed/recording
	$(BIN)/python scripts/page_speed.py --rounds 3 --out results/speed/page
	$(BIN)/python -m pip install --quiet numba
	$(BIN)/python scripts/cpu_kernels.py --out results/speed/cpu-kernels
	$(if $(KVPRESS),$(BIN)/python scripts/kvpress_speed.py --kvpress-python $(KVPRESS) --out results/speed)
	$(BIN)/python scripts/fill_tables.py

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis

# Every target sets up what it needs in .venv by itself. PYTHON chooses the interpreter (3.11 to 3.13). Another torch
# than the usual one, as in `make test TORCH=2.11.0`, gets a venv of its own (.venv-torch-2.11.0).
PYTHON ?= python3
USUAL_TORCH := 2.13.0
TORCH ?= $(USUAL_TORCH)
VENV ?= .venv$(if $(filter-out $(USUAL_TORCH),$(TORCH)),-torch-$(TORCH))
# The versions that were tested. Another torch brings other versions of what it needs, so it is free of them.
CONSTRAINTS := $(if $(filter $(USUAL_TORCH),$(TORCH)),--constraint constraints.txt)
RUN := $(VENV)/bin/python
STAMP := $(VENV)/.installed
DEMO_OUTPUT ?= runs/demo
TURN ?= $(shell git rev-list --count HEAD)
# Tests of attacks that stand beside what they attack.
ATTACKS := tests/trainer/checkpoint/test_files.py tests/data_pipeline/test_untrusted.py \
	tests/trainer/checkpoint/test_reshard.py::test_no_code_in_a_checkpoint_is_run tests/data_pipeline/read/test_shared_memory.py \
	tests/trainer/texts/test_encoder.py tests/model/test_lpips_jax.py tests/data_pipeline/report/test_survey.py \
	tests/data_pipeline/test_texts.py::test_an_index_that_is_none_of_texts_is_refused
# The tests of a file share what it sets up, so a file stays in one process; tests/conftest.py says which come first.
AT_A_TIME := --dist loadfile --no-loadscope-reorder --numprocesses

# The tests start hundreds of processes. Python keeps what it has compiled for the next one, also where the environment
# says otherwise, as that of many containers does.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: setup demo demo-generate test test-all test-turn test-numeric test-attacks test-cluster lint bench clean

setup: $(STAMP)

$(STAMP): setup.py constraints.txt
	$(PYTHON) -m venv $(VENV)
	# torch first and exactly. Another release than the usual one may bring CUDA's libraries, several gigabytes; it runs
	# on machines without a GPU all the same.
	$(VENV)/bin/pip install --quiet torch==$(TORCH)
	$(VENV)/bin/pip install --quiet $(CONSTRAINTS) --editable '.[dev,demo]'
	touch $@

demo: $(STAMP)
	$(RUN) -m launch.demo --output $(DEMO_OUTPUT) $(if $(SOURCE),--source $(SOURCE))

# the demo, where it is not done yet, and then new clips by a diffusion model that has learnt the demo's latents
demo-generate: $(STAMP)
	$(RUN) -m launch.demo --output $(DEMO_OUTPUT) $(if $(SOURCE),--source $(SOURCE)) --generate

# one thread each; three processes keep two cores busy where tests wait for others, and slow tests have enough of their own
test test-all test-turn: export OMP_NUM_THREADS := 1

test: $(STAMP)
	$(RUN) -m pytest -m "not slow" $(AT_A_TIME) 3

test-all: $(STAMP)
	$(RUN) -m pytest $(AT_A_TIME) 2

# a part of the slow tests, another one after each commit; TURN=n chooses one of the 24
test-turn: $(STAMP)
	$(RUN) -m pytest -v --slow-turn $(TURN) $(AT_A_TIME) 2

# the numeric tests once for each instruction set of this processor, on one thread and on two: some half an hour;
# ISA="default avx2" chooses, QUICK=1 leaves out the second thread and DeepSpeed: a minute each
test-numeric: $(STAMP)
	$(RUN) -m tests.tools.numeric $(if $(ISA),--isa $(ISA)) $(if $(QUICK),--quick)

# files, datasets, models and checkpoints that a stranger could hand in; a minute
test-attacks: $(STAMP)
	OMP_NUM_THREADS=1 $(RUN) -m pytest tests/attacks tests/data_pipeline/outside $(ATTACKS)

# two hosts broken and resumed, SLURM, Ray through ssh: as root, some ten minutes
test-cluster: $(STAMP)
	$(RUN) -m pytest tests/cluster

lint: $(STAMP)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

bench: $(STAMP)
	$(RUN) -m tests.benchmarks

clean:
	rm -rf .venv .venv-torch-* build dist *.egg-info runs .pytest_cache .ruff_cache .mypy_cache

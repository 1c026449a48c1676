# Every target sets up what it needs in .venv by itself. PYTHON chooses the interpreter (3.11 or newer).
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python
STAMP := $(VENV)/.installed
DEMO_OUTPUT ?= runs/demo
# the tests of a file share what it sets up, so a file stays in one process; tests/conftest.py says which come first
TWO_AT_A_TIME := --numprocesses 2 --dist loadfile --no-loadscope-reorder

.PHONY: setup demo test test-all test-numeric test-cluster lint bench clean

setup: $(STAMP)

$(STAMP): setup.py
	$(PYTHON) -m venv $(VENV)
	# torch first and exactly: this release's wheel on the default index is the CPU build on machines without CUDA mirrors
	$(VENV)/bin/pip install --quiet torch==2.13.0
	$(VENV)/bin/pip install --quiet --editable '.[dev,demo]'
	touch $@

demo: $(STAMP)
	$(RUN) launch/demo.py --output $(DEMO_OUTPUT) $(if $(SOURCE),--source $(SOURCE))

# two processes for two cores: one thread each
test test-all: export OMP_NUM_THREADS := 1

test: $(STAMP)
	$(RUN) -m pytest -m "not slow" $(TWO_AT_A_TIME)

test-all: $(STAMP)
	$(RUN) -m pytest $(TWO_AT_A_TIME)

# the numeric tests once for each instruction set of this processor, on one thread and on two: some half an hour;
# ISA="default avx2" chooses, QUICK=1 leaves out the second thread and DeepSpeed: a minute each
test-numeric: $(STAMP)
	$(RUN) -m tests.tools.numeric $(if $(ISA),--isa $(ISA)) $(if $(QUICK),--quick)

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
	rm -rf $(VENV) build dist *.egg-info runs .pytest_cache .ruff_cache .mypy_cache

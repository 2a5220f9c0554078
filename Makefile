# Everything a newcomer needs: `make demo` and `make test`. Both create .venv on first use.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
SOURCES := pyproject.toml setup.py requirements/lock.txt $(wildcard csrc/* csrc/cuda/*)

.PHONY: help install demo test test-examples test-slow soak lint docs bench-kernels bench-quick bench lock clean

help:
	@echo "make demo          train CIFAR-10 on 2 processes, dense against gs-SGD, and write a report"
	@echo "make test          run the tests"
	@echo "make test-examples run every example, those with training libraries included"
	@echo "make test-slow     run the acceptance tiers"
	@echo "make soak          let jobs of a few processes fail at random for 20 minutes"
	@echo "make lint          check style, types and import rules"
	@echo "make docs          build the documentation into site/"
	@echo "make bench-kernels time the sketch kernels"
	@echo "make bench-quick   run the quick form of every benchmark and write runs/bench/report.html"
	@echo "make bench         run every benchmark in full (many hours) and write runs/bench-full/report.html"
	@echo "make lock          write the installed versions to requirements/lock.txt"
	@echo "make clean         remove the environment and all build outputs"

install: $(INSTALLED)

$(INSTALLED): $(SOURCES)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "gsdist needs Python 3.11 or newer; set PYTHON=/path/to/python3.11")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --constraint requirements/lock.txt --editable '.[dev]'
	touch $@

demo: $(INSTALLED)
	$(BIN)/python -m gsdist.training.demo

test: $(INSTALLED)
	GSDIST_REQUIRE_EXT=1 $(BIN)/python -m pytest -m "not slow"

test-examples: $(INSTALLED)
	GSDIST_REQUIRE_EXT=1 $(BIN)/python -m pytest tests/examples

test-slow: $(INSTALLED)
	GSDIST_REQUIRE_EXT=1 $(BIN)/python -m pytest -m slow

soak: $(INSTALLED)
	$(BIN)/python -m tests.fault.soak --minutes 20

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

docs: $(INSTALLED)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

bench-kernels: $(INSTALLED)
	$(BIN)/python -m benchmarks.kernels

bench-quick: $(INSTALLED)
	$(BIN)/gsdist data cifar10
	$(BIN)/gsdist data shakespeare
	mkdir -p runs/bench
	$(BIN)/python -m benchmarks.kernels --quick --json runs/bench/kernels.json
	$(BIN)/python -m benchmarks.collectives --quick --json runs/bench/collectives.json
	$(BIN)/python -m benchmarks.scaling --workers 4 16 --json runs/bench/scaling.json
	$(BIN)/python -m benchmarks.exchange --quick --json runs/bench/exchange.json
	$(BIN)/python -m benchmarks.convergence --quick --json runs/bench/convergence.json
	$(BIN)/python -m benchmarks.plan runs/bench/exchange.json --json runs/bench/plan.json
	$(BIN)/python -m benchmarks.what_if --json runs/bench/what-if.json
	$(BIN)/python -m benchmarks.report runs/bench/*.json --output runs/bench/report.html --markdown runs/bench/report.md

bench: $(INSTALLED)
	$(BIN)/gsdist data cifar10
	$(BIN)/gsdist data shakespeare
	mkdir -p runs/bench-full
	$(BIN)/python -m benchmarks.kernels --json runs/bench-full/kernels.json
	$(BIN)/python -m benchmarks.collectives --ranks 2 4 --json runs/bench-full/collectives.json
	$(BIN)/python -m benchmarks.directions --json runs/bench-full/directions.json
	$(BIN)/python -m benchmarks.scaling --json runs/bench-full/scaling.json
	$(BIN)/python -m benchmarks.exchange --json runs/bench-full/exchange.json
	$(BIN)/python -m benchmarks.step --json runs/bench-full/step.json
	$(BIN)/python -m benchmarks.simulated_link --json runs/bench-full/simulated-link.json
	$(BIN)/python -m benchmarks.convergence --json runs/bench-full/convergence.json
	$(BIN)/python -m benchmarks.convergence --workload gpt-1m --json runs/bench-full/convergence-gpt.json
	$(BIN)/python -m benchmarks.plan runs/bench-full/exchange.json --json runs/bench-full/plan.json
	$(BIN)/python -m benchmarks.what_if --json runs/bench-full/what-if.json
	$(BIN)/python -m benchmarks.hierarchical --json runs/bench-full/hierarchical.json
	$(BIN)/python -m benchmarks.outer_step --all --json runs/bench-full/outer-step.json
	-$(BIN)/python -m benchmarks.distillation --acceptance --json runs/bench-full/distillation-digits.json
	-$(BIN)/python -m benchmarks.distillation --cifar10 --folder runs/distillation-cifar10 --json runs/bench-full/distillation-cifar10.json
	-$(BIN)/python -m benchmarks.distillation --step-cost --json runs/bench-full/distillation-step-cost.json
	$(BIN)/python -m benchmarks.report runs/bench-full/*.json --output runs/bench-full/report.html --markdown runs/bench-full/report.md

lock: $(INSTALLED)
	{ sed -n 1p requirements/lock.txt; \
	  $(BIN)/python -m pip freeze --exclude-editable | grep -v -i -E '^(nvidia-|cuda-|triton)'; } > requirements/lock.tmp
	mv requirements/lock.tmp requirements/lock.txt

clean:
	rm -rf $(VENV) build dist runs site *.egg-info gsdist/*.so gsdist/_kernels.cu

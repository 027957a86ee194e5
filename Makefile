# Two commands on a fresh machine: `make demo` and `make test`. Both make .venv by themselves.
#
# pip takes its settings from the environment as always (PIP_INDEX_URL, PIP_FIND_LINKS ...), and from PIP_FLAGS.
# PyPI's PyTorch for x86-64 Linux brings gigabytes of CUDA: PIP_FLAGS="--extra-index-url URL" names PyTorch's CPU index.

VENV := .venv
BIN := $(VENV)/bin
JOBS ?= 2
PIP_FLAGS ?=
INSTALL = $(BIN)/python -m pip install --disable-pip-version-check -qq $(PIP_FLAGS) -c .ci/constraints.txt
DEMO_STAMP := $(VENV)/.installed-demo
TEST_STAMP := $(VENV)/.installed-test

# One thread for each worker: the numeric libraries would otherwise start one a core in every worker.
TEST_ENVIRONMENT := OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 MKL_NUM_THREADS=1 \
	TF_NUM_INTRAOP_THREADS=1 TF_NUM_INTEROP_THREADS=1 TF_CPP_MIN_LOG_LEVEL=2

# A .venv whose Python is gone, or that was made in another folder, is thrown away before anything reads it.
$(shell sh .ci/discard-stale-venv.sh $(VENV))

.DEFAULT_GOAL := help
.PHONY: help demo test lint format wheel constraints clean distclean system-packages

help:  ## Says what each target does.
	@sed -nE 's/^([a-z-]+):.*## (.*)/\1\t\2/p' $(MAKEFILE_LIST) | expand -t 18

demo: $(DEMO_STAMP)  ## Trains, quantizes, deploys and measures a small CNN on an embedded device.
	@$(BIN)/edgepipe demo

test: $(TEST_STAMP) system-packages lint  ## Checks style, types, layers and the agent's Python floor, then runs the tests.
	@$(TEST_ENVIRONMENT) $(BIN)/python -m pytest -n $(JOBS) --dist loadgroup -q

lint: $(TEST_STAMP)  ## Checks style, types, layers and the agent's Python floor.
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/vermin --quiet --no-tips --violations --target=3.6- device_agent

format: $(TEST_STAMP)  ## Formats the code and mends what can be mended by machine.
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

wheel: $(TEST_STAMP)  ## Builds sdist and wheel into dist/.
	$(BIN)/python -m build --no-isolation --outdir dist

constraints: $(TEST_STAMP)  ## Writes the versions in .venv to .ci/constraints.txt, after an upgrade that passes the tests.
	@sh .ci/freeze.sh $(VENV) >.ci/constraints.part && mv .ci/constraints.part .ci/constraints.txt
	@touch $(DEMO_STAMP) $(TEST_STAMP)

system-packages:
	@sh .ci/install-system-packages.sh

clean:  ## Removes what building and testing leave behind.
	rm -rf dist build .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +

distclean: clean  ## The same, and .venv.
	rm -rf $(VENV)

$(BIN)/python:
	@sh .ci/make-venv.sh $(VENV)

$(DEMO_STAMP): pyproject.toml .ci/constraints.txt | $(BIN)/python
	@echo 'Installing edgepipe[demo] into $(VENV), which takes minutes the first time ...'
	@$(INSTALL) -e '.[demo]'
	@touch $@

$(TEST_STAMP): pyproject.toml .ci/constraints.txt | $(BIN)/python
	@echo 'Installing edgepipe[all,dev] into $(VENV), which takes minutes the first time ...'
	@$(INSTALL) -e '.[all,dev]'
	@touch $(DEMO_STAMP) $@

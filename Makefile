# Two commands: `make reproduce` measures and reports, `make test` checks everything.
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet --progress-bar off --no-compile
# On all cores, which pip does not: without bytecode each process would compile what it imports. Left
# out are tests and models that nothing runs, a third of all. A package may hold files for other
# versions of Python, which do not compile here.
COMPILE = $(BIN)/python -m compileall -qq -j 0 -x '/tests/|/transformers/models/[^/]+/' .venv/lib || true

# A failed run (exit 1) is reported too, and still fails the target; mistakes and Ctrl-C just end it.
study = $(BIN)/gefen-bench study=$(1); code=$$?; [ $$code -gt 1 ] || $(BIN)/gefen-report runs/$(1) && exit $$code

.PHONY: claims help reproduce reproduce-full tune test clean

help: ## Show the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 18

reproduce: .venv/installed ## Run the embedded study (about 10 minutes on two cores) and report
	@$(call study,reproduce)

reproduce-full: .venv/installed ## The same at full size (up to 3 hours); its records are published
	@$(call study,reproduce_full)

tune: .venv/installed ## The learning-rate search behind configs/tuned (up to 2 hours)
	@$(BIN)/gefen-bench study=tune
	@$(BIN)/python -m harness.study.tuning runs/tune

claims: .venv/installed ## Judge every claim from the published records, without running anything
	@$(BIN)/gefen-claims

test: .venv/installed-dev ## Lint, types, import rules and the whole test suite
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports
	@OMP_NUM_THREADS=1 $(BIN)/pytest tests/gefen tests/harness tests/reports -n 2 --dist worksteal
	@$(BIN)/pytest tests/pipeline

# pip works on the installed torch alone: other installers would fetch gigabytes of CUDA packages.
.venv/installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed; name one with PYTHON=...")'
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || { echo "Creating .venv"; $(PYTHON) -m venv --clear .venv; }
	@echo "Installing the pinned packages into .venv (once, a few minutes)"
	@$(PIP) -e . -c constraints.txt
	@$(COMPILE)
	@touch $@

# A CUDA build of torch brings the Triton that it needs, so none is among the constraints; beside
# the CPU build Triton's interpreter runs the kernels in the tests.
.venv/installed-dev: .venv/installed
	@echo "Installing the test tools into .venv (once)"
	@$(PIP) -e ".[dev]" -c constraints.txt
	@$(BIN)/python -c 'import triton' 2>/dev/null || $(PIP) triton==3.6.0
	@$(COMPILE)
	@touch $@

clean: ## Remove the environment and caches; runs/ and results/ stay
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis *.egg-info

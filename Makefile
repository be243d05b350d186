# Two commands first: `make study` runs the whole demo study, `make test` the test suite.
# PYTHON chooses the interpreter that makes .venv; JOBS how many chains run side by side; ARGS is passed on.

PYTHON ?= python3
JOBS ?= 3
ARGS ?=
TEST_WORKERS ?= 2

VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
# Every module by its dotted name: pdoc alone would leave out those that a package's __all__ does not name.
MODULES = $(shell find -L edgemin_utils -name '*.py' ! -name __main__.py | sed 's|/__init__||; s|\.py$$||; s|/|.|g' | sort)

export TOKENIZERS_PARALLELISM := false
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.DEFAULT_GOAL := help
.PHONY: help study status report test lab demo reference lint hooks docs clean

help: ## this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 16

study: $(INSTALLED) ## install the pinned packages, run the demo study, print the main table and the report's path
	$(BIN)/edgemin run --jobs $(JOBS) $(ARGS)

status: $(INSTALLED) ## what is done, what is stale and why
	$(BIN)/edgemin status $(ARGS)

report: $(INSTALLED) ## tables, figures and the HTML report again, from the records on disk
	$(BIN)/edgemin report $(ARGS)

# One thread a worker: two workers already fill two cores.
test: $(INSTALLED) ## the whole test suite
	OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 $(BIN)/python -m pytest -n $(TEST_WORKERS) --dist loadfile --no-loadscope-reorder $(ARGS)

lab: $(INSTALLED) ## JupyterLab, opened on the notebooks
	$(BIN)/python -m jupyterlab --ServerApp.root_dir=. --LabApp.default_url=/lab/tree/notebooks/01_teacher.ipynb $(ARGS)

demo: $(INSTALLED) ## the newest bundle in a browser, or ARGS=FOLDER: prints the address (needs npm once)
	$(BIN)/edgemin demo $(ARGS)

# Rows and weights are the user's: make reference DATA_DIR=glue TEACHER_DIR=folder [OUTPUT_DIR=... SEEDS=0,1,2 TASKS=sst2]
SEEDS ?= 0,1,2
TASKS ?=
OUTPUT_DIR ?= outputs/laptop
reference: $(INSTALLED) ## the reference study on real rows (hours; resumes), and its results into outputs/reference
	@test -n "$(DATA_DIR)" -a -n "$(TEACHER_DIR)" || { \
		echo "Name GLUE's folder and the teacher's: make reference DATA_DIR=... TEACHER_DIR=..." >&2; exit 1; }
	$(BIN)/edgemin run --profile laptop --data-dir "$(DATA_DIR)" --teacher "$(TEACHER_DIR)" --tasks "$(TASKS)" \
		--seeds $(SEEDS) --models path,factorial,scans,none-pretrained,objectives,cuts,schemes,recipes \
		--output-dir "$(OUTPUT_DIR)" $(ARGS)
	$(BIN)/edgemin report --output-dir "$(OUTPUT_DIR)" --publish outputs/reference

lint: $(INSTALLED) ## ruff (lint and format) and mypy
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .
	$(BIN)/python -m mypy

hooks: $(INSTALLED) ## pre-commit's checks before every commit in this clone
	$(BIN)/python -m pre_commit install

docs: $(INSTALLED) ## API reference from the docstrings in outputs/api/
	$(BIN)/python -m pdoc --docformat google --math --output-directory outputs/api $(MODULES) $(ARGS)

clean: ## remove .venv and the page's packages; results in outputs/ stay
	rm -rf $(VENV) .browser

# The stamp is written last, so that an interrupted install is taken up again. setuptools is among the pinned
# packages, so the package itself needs no build environment of its own.
$(INSTALLED): requirements.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
		echo "EdgeMIN needs Python 3.11 or newer, and \"$(PYTHON)\" is $$($(PYTHON) -V 2>&1 || true)." >&2; \
		echo "Name another interpreter, as in: make PYTHON=python3.12 $(firstword $(MAKECMDGOALS))" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
		echo "$(PYTHON) cannot make virtual environments; install its venv package (Debian: python3-venv)." >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -r requirements.txt
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation -e .
	@touch $@

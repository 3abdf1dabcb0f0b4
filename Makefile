# Needs python >= 3.11 and nothing else. Every target installs first where needed, once.
# Overridable: PYTHON (which interpreter makes .venv), PIP_ARGS (more for pip install), ARGS (more for the target).

PYTHON ?= python3
PIP_ARGS ?=
ARGS ?=
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help install quickstart test check bench clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-11s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

install: $(INSTALLED) ## make .venv and install the package in it, with the tested versions

$(INSTALLED): pyproject.toml constraints.txt
	@command -v "$(PYTHON)" >/dev/null || { echo "error: $(PYTHON) not found; call make PYTHON=/path/to/python3.11" >&2; exit 2; }
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "error: $$("$(PYTHON)" --version) is too old, at least 3.11 is needed; call make PYTHON=/path/to/python3.11" >&2; exit 2; }
	@echo "== making $(VENV) with $$("$(PYTHON)" --version) and installing this package (some minutes, once)"
	@test -x $(BIN)/python || "$(PYTHON)" -m venv $(VENV)
	@$(BIN)/python -m pip install -c constraints.txt $(PIP_ARGS) torch -e '.[dev]'
	@touch $(INSTALLED)
	@echo "== installed; the command line is $(BIN)/smd"

quickstart: install ## train, continue with and without soft-masking, compare: minutes on a CPU
	@echo "== experiments/quickstart: smd run quickstart"
	@$(BIN)/smd run quickstart $(ARGS)

test: install ## the test suite, without what is slow or needs a GPU
	@echo "== pytest"
	@$(BIN)/python -m pytest -n 2 $(ARGS)

check: install ## ruff, mypy, every configuration, the links of the documents
	@echo "== ruff check"
	@$(BIN)/ruff check .
	@echo "== mypy"
	@$(BIN)/mypy sm_diffusion
	@echo "== every configuration composes and is valid"
	@$(BIN)/python -m pytest -q tests/config/test_shipped.py -k 'not two_steps'
	@echo "== links"
	@$(BIN)/python -m tests.helpers.links

bench: install ## time and memory of a training step: plain, MDLM, soft-masked
	@echo "== smd bench train"
	@$(BIN)/smd bench train $(ARGS)

clean: ## remove caches and builds; .venv, corpora and runs stay
	@echo "== removing caches and builds"
	@rm -rf .pytest_cache .mypy_cache .ruff_cache .hypothesis build dist *.egg-info
	@find sm_diffusion tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +

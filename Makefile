# Two commands do everything: `make demo` and `make test`. Both set up .venv first when it is missing.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: help setup demo test soak format clean

help: ## Say what each target does.
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

setup: $(STAMP) ## Make .venv and install what is pinned in constraints.txt.

$(STAMP): pyproject.toml constraints.txt
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing into $(VENV) (a few minutes the first time)" >&2
	@$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev,deploy,digits]'
	@touch $@

demo: setup ## Train a model on this machine with six nodes, killing some on the way.
	$(BIN)/murmura demo

test: setup ## Formatting, lint, types, and every tier of tests with its time budget.
	$(BIN)/python -m tests.tiers

soak: setup ## All that happens to real nodes, then MINUTES (30) of nodes that come and go.
	$(BIN)/python -m pytest -q -m "process or soak" tests/processes tests/swarm tests/moe
	$(BIN)/python -m tests.soak

format: setup ## Format and sort imports in place.
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean: ## Remove what setup made.
	rm -rf $(VENV)

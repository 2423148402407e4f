PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
# Tests run side by side, each worker on one core and with a gigabyte of memory.
WORKERS ?= 2

.PHONY: demo test tutorials docs coverage lint format clean

# Train, evaluate and draw, on a data set that needs no download.
demo: $(VENV)/.installed
	$(BIN)/ppl-vae fit

test: $(VENV)/.installed-test lint
	$(BIN)/python -m pytest --numprocesses=$(WORKERS) --dist=worksteal

# Execute the notebooks where they stand, in full: their outputs are part of the tree.
tutorials: $(VENV)/.installed-test
	$(BIN)/python tutorials/execute.py

# The site, in build/docs: a warning is an error. No network and no Graphviz is needed.
docs: $(VENV)/.installed-docs
	$(BIN)/python -m sphinx -b html -W --keep-going -n -j auto -d build/docs-read docs build/docs

# Lines and branches that the suite runs; fails below the share that pyproject.toml asks for.
coverage: $(VENV)/.installed-test
	$(BIN)/python -m pytest --numprocesses=$(WORKERS) --dist=worksteal --cov

lint: $(VENV)/.installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(VENV)/.installed-test
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) build dist *.egg-info

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "ppl_vae needs Python 3.11 or newer; name one: make $(MAKECMDGOALS) PYTHON=python3.12"; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: $(BIN)/python pyproject.toml
	$(BIN)/python -m pip install --quiet --editable .
	@touch $@

$(VENV)/.installed-test: $(BIN)/python pyproject.toml
	$(BIN)/python -m pip install --quiet --editable '.[test]'
	@touch $@ $(VENV)/.installed

$(VENV)/.installed-docs: $(BIN)/python pyproject.toml
	$(BIN)/python -m pip install --quiet --editable '.[docs]'
	@touch $@ $(VENV)/.installed

# make demo: the main job on embedded real data. make test: the whole test suite. Both set up .venv themselves.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
RUN_STAMP := $(VENV)/.installed-run

.PHONY: demo test lint evidence benchmarks clean
.DEFAULT_GOAL := demo

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit("heldout needs Python 3.11 or newer, this is %d.%d" % sys.version_info[:2] if sys.version_info < (3, 11) else 0)'
	@$(PYTHON) -m venv $(VENV)

$(RUN_STAMP): pyproject.toml constraints.txt | $(BIN)/python
	@echo "Setting up $(VENV) (once; downloads PyTorch)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e .
	@touch $@

$(STAMP): $(RUN_STAMP)
	@echo "Installing what the tests need"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

demo: $(RUN_STAMP)
	@$(BIN)/heldout improve digits --budget 4m --workers 2

test: $(STAMP)
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2

lint: $(STAMP)
	@$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy

evidence: $(STAMP)
	@for slug in $$($(BIN)/heldout list --built --json | $(BIN)/python -c 'import json,sys; print(*[r["slug"] for r in json.load(sys.stdin)])'); do \
		$(BIN)/heldout reproduce $$slug --workers 2 --record || exit 1; done
	@$(BIN)/python tools/readme_evidence.py

benchmarks: $(STAMP)
	@for file in benchmarks/*.py; do echo "== $$file"; $(BIN)/python $$file || exit 1; done

clean:
	rm -rf $(VENV) heldout-runs build dist

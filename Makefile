# make quickstart   the whole chain on the built-in data, from nothing to a report; SIZE=full adds experts
# make experts      eDiff-I's figures on the built-in data: an hour and more, to go on with
# make test         lint, formats, types and all tests but the slow ones
# make test-slow    whole processes, kills, browsers

# ARGS="key=value ..." goes to scripts/quickstart.py, or scripts/ediffi_report.py; TORCH_INDEX=URL is where pip gets torch
# and torchvision.

PYTHON ?= python3.11
SIZE ?= small
EXPERTS := family=quickstart_experts 'nodes=[[2,0],[2,1]]'
ifeq ($(filter small full,$(SIZE)),)
$(error SIZE=$(SIZE): choose small or full)
endif
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet --no-compile --disable-pip-version-check -c constraints.txt
SHELL := /bin/bash
# Where this is set, every process compiles all it imports anew: 16 s in place of 8.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: quickstart experts test test-slow lint clean

quickstart: .venv/.installed
	$(BIN)/python scripts/fetch_pretrained.py
	$(BIN)/python scripts/quickstart.py $(ARGS)
	$(if $(filter full,$(SIZE)),$(BIN)/python scripts/quickstart.py $(EXPERTS) $(ARGS))

experts: .venv/.installed
	$(BIN)/python scripts/fetch_pretrained.py
	OMP_NUM_THREADS=1 $(BIN)/python scripts/ediffi_report.py $(ARGS)

test: .venv/.installed-test lint
	$(BIN)/python scripts/fetch_pretrained.py
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not slow" -n 2 --dist loadfile

test-slow: .venv/.installed-test
	$(BIN)/python scripts/fetch_pretrained.py
	$(BIN)/python -m pytest -m slow tests/test_chaos.py  # its runs are forked, which a process that has trained cannot do
	$(BIN)/python -m pytest -m slow --ignore=tests/test_chaos.py

lint: .venv/.installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf .venv runs samples

# The markers say what is installed for which pyproject.toml and constraints.txt.
.venv/.installed: pyproject.toml constraints.txt
	@echo "installing into .venv (a few minutes the first time)"
	@date +%s > .install-began
	test -x $(BIN)/python || $$(command -v $(PYTHON) || command -v python3) -m venv .venv
	$(BIN)/python -c 'import sys; assert (3, 11) <= sys.version_info[:2] < (3, 14), "Python 3.11 to 3.13 is needed"'
	@$(if $(TORCH_INDEX),$(PIP) torch torchvision --index-url $(TORCH_INDEX))
	$(PIP) -e .
	@echo $$(( $$(date +%s) - $$(cat .install-began) )) > .venv/.install-seconds; rm .install-began
	@touch $@

.venv/.installed-test: .venv/.installed
	$(PIP) -e '.[test]'
	@touch $@

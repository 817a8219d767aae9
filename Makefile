# Everything runs in .venv, which `setup` makes from constraints.txt. There the package is installed in editable form;
# the tests and the type checker use a regular installation beside it, in build/installed: that proves that the wheel is
# complete, and a type checker cannot follow the import hook of an editable one.
PYTHON ?= python3.11
BIN := .venv/bin
PIP := $(BIN)/python -m pip --quiet --disable-pip-version-check
EXTRAS := cpu,export,bench,plugins,debug,dev
SOURCES := setup.py $(shell find mega_deploy exporters plugins bench -type f -not -name '*.pyc')
INSTALLED := $(CURDIR)/build/installed
# Processes that share the tests; each takes about a gigabyte.
WORKERS ?= 2

.PHONY: setup demo test lint clean

setup: .venv/ready

.venv/ready: constraints.txt pyproject.toml
	$(PYTHON) -m venv .venv
	$(PIP) install --constraint constraints.txt pip setuptools
	$(PIP) install --constraint constraints.txt --no-build-isolation --editable ".[$(EXTRAS)]"
	touch $@

build/ready: .venv/ready $(SOURCES)
	rm -rf build
	$(PIP) install --no-deps --no-build-isolation --target $(INSTALLED) .
	touch $@

demo: setup
	$(BIN)/mega-deploy demo

test: build/ready
	PYTHONPATH=$(INSTALLED) $(BIN)/pytest -n $(WORKERS) --dist loadscope

lint: build/ready
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	cd build && MYPYPATH=$(INSTALLED) ../$(BIN)/mypy --config-file ../pyproject.toml --package mega_deploy

clean:
	rm -rf .venv build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis speakers.mega

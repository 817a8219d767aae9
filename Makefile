# Everything runs in .venv, which `setup` makes from locks/: the SHA-256 of every file that is installed is held against
# them, and what is built from source is built with what they name. What they lack, on another platform, comes in the
# version of constraints.txt. There the package is installed in editable form; the tests and the type checker use a
# regular installation beside it, in build/installed: that proves that the wheel is complete, and a type checker cannot
# follow the import hook of an editable one.
PYTHON ?= python3.11
BIN := .venv/bin
PIP := $(BIN)/python -m pip --quiet --disable-pip-version-check
EXTRAS := cpu,export,bench,plugins,debug,dev
LOCKS := locks/build.txt locks/dev.txt
LOCK := UV_FIND_LINKS="$${UV_FIND_LINKS:-$$PIP_FIND_LINKS}" $(BIN)/uv pip compile --quiet --python-version 3.11 \
	--constraint constraints.txt --generate-hashes --no-header --annotation-style line
SOURCES := setup.py $(shell find mega_deploy exporters plugins bench -type f -not -name '*.pyc')
INSTALLED := $(CURDIR)/build/installed
# Processes that share the tests; each takes about a gigabyte.
WORKERS ?= 2

.PHONY: setup lock demo test fuzz sanitize faults soak lint clean

setup: .venv/ready

.venv/ready: constraints.txt pyproject.toml $(LOCKS)
	$(PYTHON) -m venv .venv
	$(PIP) install --require-hashes --no-deps --requirement locks/build.txt
	$(PIP) install --require-hashes --no-deps --no-build-isolation --requirement locks/dev.txt
	$(PIP) install --constraint constraints.txt --no-build-isolation --editable ".[$(EXTRAS)]"
	touch $@

# After a change of constraints.txt or pyproject.toml: the hashes of every package that `setup` installs, and what needs
# it. torch's wheel for the CPU is found where pip finds it, if that is in the environment.
lock: | $(BIN)/uv
	$(LOCK) locks/build.in --output-file locks/build.txt
	$(LOCK) pyproject.toml --extra $(EXTRAS) --output-file locks/dev.txt

$(BIN)/uv:
	$(MAKE) setup

build/ready: .venv/ready $(SOURCES)
	rm -rf build
	$(PIP) install --no-deps --no-build-isolation --target $(INSTALLED) .
	touch $@

demo: setup
	$(BIN)/mega-deploy demo

test: build/ready
	PYTHONPATH=$(INSTALLED) $(BIN)/pytest -n $(WORKERS) --dist loadscope

# Seconds that `make fuzz` and `make sanitize` take.
FUZZ_SECONDS ?= 600
SANITIZE_SECONDS ?= 60

fuzz: build/ready
	FUZZ_SECONDS=$(FUZZ_SECONDS) PYTHONPATH=$(INSTALLED) $(BIN)/pytest tests/fuzz

sanitize: build/ready
	MEGA_DEPLOY_SANITIZE_SECONDS=$(SANITIZE_SECONDS) PYTHONPATH=$(INSTALLED) $(BIN)/pytest tests/plugins/test_sanitizers.py

# Calls of each kind of fault that `make faults` tries of each operation (a large number: all), and seconds of `make soak`.
FAULTS ?= 40
SOAK_SECONDS ?= 3600

faults: build/ready
	FAULTS=$(FAULTS) PYTHONPATH=$(INSTALLED) $(BIN)/pytest tests/faults

soak: build/ready
	SOAK_SECONDS=$(SOAK_SECONDS) PYTHONPATH=$(INSTALLED) $(BIN)/python tests/soak/soak.py

lint: build/ready
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	cd build && MYPYPATH=$(INSTALLED) ../$(BIN)/mypy --config-file ../pyproject.toml --package mega_deploy

clean:
	rm -rf .venv build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis speakers.mega

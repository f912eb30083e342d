# make run TASK=attention [TARGET=auto|cuda|cpu] [ARGS="--budget-evals 40"]   search for kernels
# make test                                                                   everything that needs no GPU and no Docker
# make check                                                                  format, lint, types, layers
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
TASK ?= attention
TARGET ?= auto
ARGS ?=
PYTEST_ARGS ?= -m "not gpu and not docker"

GPU := $(or $(shell command -v nvidia-smi 2>/dev/null),$(wildcard /dev/nvidia0))
RUN_EXTRAS := $(if $(GPU),[cuda],)
PIP := $(BIN)/python -m pip install -qq --disable-pip-version-check --constraint constraints.txt
RUN_STAMP := $(VENV)/.installed-run$(if $(GPU),-cuda,)
DEV_STAMP := $(VENV)/.installed-dev

.PHONY: run test check format clean

run: $(RUN_STAMP)
	$(BIN)/python -m agent run --task $(TASK) --target $(TARGET) $(ARGS)

test: $(DEV_STAMP)
	$(BIN)/python -m pytest $(PYTEST_ARGS)

check: $(DEV_STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(DEV_STAMP)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

$(VENV)/pyvenv.cfg:
	$(PYTHON) -m venv $(VENV)

$(RUN_STAMP): $(VENV)/pyvenv.cfg pyproject.toml constraints.txt
	@echo "installing into $(VENV), once"
	@$(PIP) --editable '.$(RUN_EXTRAS)'
	@touch $@

$(DEV_STAMP): $(VENV)/pyvenv.cfg pyproject.toml constraints.txt
	@echo "installing into $(VENV) with everything the tests need, once"
	@$(PIP) --editable '.[cuda,dev]'
	@touch $@

clean:
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis

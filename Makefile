PYTHON ?= python3
VENV ?= .venv
OUT ?= demo-out
BIN := $(VENV)/bin
PIP := $(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt
TORCH := torch==2.13.0
# One process a core, which take tests from each other; a test that fails alone: ARGS="-n 0 -k NAME".
SIDE_BY_SIDE := -n logical --maxprocesses 4 --dist worksteal
PACKAGES := -p fedofa.supernet -p fedofa.protos -p fedofa.specialize -p fedofa.client \
	-p fedofa.server -p fedofa.benchmarks

.PHONY: demo test test-slow bench bench-accuracy check lint types contracts format protos wheel clean

demo: $(VENV)/.server  ## The main job on real data; OUT=dir for another output folder
	$(BIN)/fedofa demo --out $(OUT) $(ARGS)

test: $(VENV)/.dev  ## All tests but the slow ones
	$(BIN)/pytest $(SIDE_BY_SIDE) $(ARGS)

test-slow: $(VENV)/.dev  ## The slow tests: killed servers, demos over several seeds
	$(BIN)/pytest -m slow --timeout 1200 $(ARGS)

bench: $(VENV)/.server  ## The benchmarks that the README's figures come from
	$(BIN)/fedofa bench

bench-accuracy: $(VENV)/.server  ## Recipes at equal cost on real data (FEDOFA_DATA); hours
	$(BIN)/fedofa bench accuracy --pictures docs --data fashion
	$(BIN)/fedofa bench accuracy --pictures docs --data cifar10
	$(BIN)/fedofa bench accuracy --pictures docs --data har

check: lint types contracts  ## All that needs no test

lint: $(VENV)/.dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

format: $(VENV)/.dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Type checkers see the flat folders as fedofa.<folder> through this alias.
types: $(VENV)/.dev
	mkdir -p build/types && ln -sfn ../.. build/types/fedofa
	$(BIN)/mypy $(PACKAGES)

contracts: $(VENV)/.dev
	$(BIN)/lint-imports

protos: $(VENV)/.dev  ## Generate the depot's code again
	$(BIN)/python tests/regenerate_protos.py

wheel: $(VENV)/.dev
	$(BIN)/python -m build --wheel

clean:
	rm -rf $(VENV) build dist *.egg-info demo-out

# The CPU build of torch where it can be had, several GB smaller; else the default build.
$(VENV)/.torch: constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) "$(TORCH)+cpu" || $(PIP) "$(TORCH)"
	touch $@

$(VENV)/.server: $(VENV)/.torch pyproject.toml constraints.txt
	$(PIP) -e ".[server]"
	touch $@

$(VENV)/.dev: $(VENV)/.torch pyproject.toml constraints.txt
	$(PIP) -e ".[dev]"
	touch $@

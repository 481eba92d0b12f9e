# make demo: train for a minute on the bundled names.  make test: all checks.  make audit: known vulnerabilities.
# make engine: compile context mixing for exported web pages.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: demo test lint audit engine site clean

$(READY): requirements.txt pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile -r requirements.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	touch $(READY)

demo: $(READY)
	$(BIN)/makemore train --max-time 60s --out checkpoints/demo --overwrite
	$(BIN)/makemore sample checkpoints/demo -n 20

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

test: $(READY) lint
	$(BIN)/pytest -m "slow or not slow"

# Known vulnerabilities of installed packages; queries an online service; strict: a failed query is an error.
audit: $(READY)
	$(BIN)/pip-audit --strict --no-deps --disable-pip -r requirements.txt

# Compile context mixing to WebAssembly, after every change of its C code; a test compares the sources' checksum.
ENGINE := makemore/interop/html/context_mixing
ENGINE_SOURCES := $(ENGINE).c makemore/runtime/native/simd.h $(sort $(wildcard makemore/models/context_mixing/*.[ch]))
engine: $(READY)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check ziglang==0.17.1
	$(BIN)/python -m ziglang cc --target=wasm32-wasi -mexec-model=reactor -O3 -msimd128 -Wl,--strip-all \
	  -Imakemore/runtime/native -DSOURCES="\"$$(cat $(ENGINE_SOURCES) | sha256sum | cut -c1-64)\"" $(ENGINE).c -o $(ENGINE).wasm

# The docs as a site, in site/: warnings are errors.
site: $(READY)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

clean:
	rm -rf $(VENV) site build dist .pytest_cache .ruff_cache .mypy_cache .hypothesis .import_linter_cache

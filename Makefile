# Two commands do everything: `make demo` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
FOLDERS := passes export runtime tools
INSTALLED := $(VENV)/installed
DRYRUN := .venv-dryrun
DRYRUN_PIP := $(DRYRUN)/bin/python -m pip --disable-pip-version-check --quiet

.PHONY: demo test install lint types unit wheel dryrun clean

demo: $(INSTALLED)
	$(BIN)/ditc demo --out out/demo

test: lint types unit wheel

install: $(INSTALLED)

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) install --constraint constraints.txt torch
	$(PIP) install --constraint constraints.txt --editable '.[dev]'
	touch $@

lint: $(INSTALLED)
	$(BIN)/ruff check $(FOLDERS) tests
	$(BIN)/ruff format --check $(FOLDERS) tests

# mypy wants folders laid out as the packages are named.
types: $(INSTALLED)
	mkdir -p build/types/ditc
	for folder in $(FOLDERS); do ln -sfn ../../../$$folder build/types/ditc/$$folder; done
	$(BIN)/mypy $(foreach folder,$(FOLDERS),-p ditc.$(folder))

unit: $(INSTALLED)
	$(BIN)/python -m pytest --numprocesses auto --dist worksteal

# The wheel in an environment of its own, without torch, on a bundle made by the first one.
wheel: $(INSTALLED)
	rm -rf build/wheel build/lib dist && mkdir -p build/wheel
	$(PIP) wheel --no-deps --constraint constraints.txt --wheel-dir dist .
	$(BIN)/python -m tests.smoke_bundle build/wheel/bundle
	$(PYTHON) -m venv build/wheel/venv
	build/wheel/venv/bin/python -m pip --disable-pip-version-check --quiet install \
	    --constraint constraints.txt "$$(ls dist/ditc-*.whl)[ort]"
	cd build/wheel && venv/bin/python ../../tests/smoke_wheel.py bundle

# Torch-TensorRT wants a torch for CUDA, 5 GB with its libraries, but no GPU to tell what it converts.
dryrun: $(DRYRUN)/installed
	$(DRYRUN)/bin/python -m ditc.tools.dryrun

$(DRYRUN)/installed: pyproject.toml constraints-dryrun.txt
	$(PYTHON) -m venv $(DRYRUN)
	$(DRYRUN_PIP) install --constraint constraints-dryrun.txt torch torch-tensorrt-rtx
	$(DRYRUN_PIP) install --constraint constraints-dryrun.txt --editable '.[compile,ort]'
	touch $@

clean:
	rm -rf $(VENV) $(DRYRUN) build dist out *.egg-info

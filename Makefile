# make demo: installs into .venv and runs the main job; make test: the same, and passes the tests.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
TORCH := torch==2.13.0

.PHONY: demo test aot clean

demo: $(VENV)/installed
	$(BIN)/bridgex demo --out runs/demo

test: $(VENV)/tested-with
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/pytest -n 2 --dist loadfile

$(VENV)/installed: setup.cfg pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -e .
	@touch $@

# torch first: whatever would resolve another build of it finds this one there.
$(VENV)/tested-with: $(VENV)/installed
	$(BIN)/pip install --quiet --disable-pip-version-check $(TORCH)
	$(BIN)/pip install --quiet --disable-pip-version-check -e ".[test]"
	@touch $@

# For devices that this machine need not have; libtpu and the CUDA plugin are large, so an extra.
# It has an environment of its own: beside them, JAX looks for a TPU and a GPU in every command.
aot:
	$(PYTHON) -m venv build/aot
	build/aot/bin/pip install --quiet --disable-pip-version-check -e ".[aot]"
	build/aot/bin/python experiments/aot.py

clean:
	rm -rf $(VENV) build runs *.egg-info

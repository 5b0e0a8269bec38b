# make demo: everything from a fresh machine to a trained model and its Dice table.
# make test: every test, on the CPU.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
export TF_CPP_MIN_LOG_LEVEL ?= 3
export GRPC_VERBOSITY ?= ERROR

.PHONY: demo test test-slow test-py312 lint clean

$(VENV)/run.stamp: requirements.txt requirements-predict.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	touch $@

$(VENV)/dev.stamp: requirements-dev.txt $(VENV)/run.stamp
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	touch $@

demo: $(VENV)/run.stamp
	$(BIN)/python -m input_pipeline.prepare --source=phantom --data_dir=runs/data --spacing=6 --brick=32
	$(BIN)/python -m mome_jax.main --config=mome_jax/configs/demo.py --workdir=runs/demo

test: $(VENV)/dev.stamp lint
	$(BIN)/python -m pytest

test-slow: $(VENV)/dev.stamp
	$(BIN)/python -m pytest -m slow

# The suite on a newer Python, which gets a newer jax.
test-py312:
	$(MAKE) test PYTHON=python3.12 VENV=.venv312

lint: $(VENV)/dev.stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

clean:
	rm -rf runs .venv .venv312

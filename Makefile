# make demo: everything from a fresh machine to a trained model and its Dice table.
# make test: every test on the CPU but the slow ones; make test-slow: those.
# make test-fast: those that neither train nor compile a network; make coverage: what all reach.
# make package: wheel and sdist, and the wheel tried in an empty environment.
# make docs: the documentation site, into build/site.
# make accelerator: what is measured on a GPU or TPU, in parts that resume.
# make clean: without caches and environments again; make clean-runs: without trained models too.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
# Python compiles what it imports; all of TensorFlow's modules would take longer than the download.
PIP = $(BIN)/python -m pip install --quiet --no-compile --disable-pip-version-check
# Files of tests go to the first of two processes that is free, in the order of tests/long.txt.
TWO = -n 2 --dist loadfile --no-loadscope-reorder
export TF_CPP_MIN_LOG_LEVEL ?= 3
export GRPC_VERBOSITY ?= ERROR
# Where it is set, as in many containers, every process compiles all Python code that it imports:
# 8 s with TensorFlow.
unexport PYTHONDONTWRITEBYTECODE
# Large pages for large arrays: steps on the CPU otherwise pay for many page faults.
export GLIBC_TUNABLES ?= glibc.malloc.hugetlb=1

.PHONY: demo test test-fast test-napari test-slow coverage test-py312 lint package docs vendor accelerator clean clean-runs

$(VENV)/run.stamp: requirements.txt requirements-grain.txt requirements-predict.txt
	@echo 'Installing jax, TensorFlow and others into $(VENV), 2.4 GB: half a minute to two minutes.'
	$(PYTHON) -m venv $(VENV)
	$(PIP) -r requirements.txt
	touch $@

# What runs need is among it, and installed along with it where it is not there yet.
$(VENV)/dev.stamp: requirements.txt $(addprefix requirements-,$(addsuffix .txt,dev docs grain napari package predict serve))
	@echo 'Installing all that tests use into $(VENV), 4 GB: one to three minutes.'
	$(PYTHON) -m venv $(VENV)
	$(PIP) -r requirements-dev.txt
	touch $(VENV)/run.stamp $@

demo: $(VENV)/run.stamp
	@echo 'Making 30 synthetic CT scans, about 20 seconds:'
	$(BIN)/python -m input_pipeline.prepare --source=phantom --data_dir=runs/data --spacing=6 --brick=32
	@echo 'Compiling, half a minute; training, 3 to 5 minutes on two idle cores; scores and pictures, half a minute:'
	$(BIN)/python -m mome_jax.main --config=demo --workdir=runs/demo

# First what has no work for two cores, side by side.
test: $(VENV)/dev.stamp
	$(MAKE) --jobs=2 --output-sync=target lint test-napari
	$(BIN)/python -m pytest $(TWO) --ignore=tests/integrations

# Those of napari have a process of their own: what draws for Qt does not bear TensorFlow beside it.
# 5 is pytest's code where all are skipped: good only where the system lacks a library of Qt, which
# is printed; napari itself is there, from the requirements.
test-napari: $(VENV)/dev.stamp
	$(BIN)/python -m pytest tests/integrations || { [ $$? = 5 ] && \
	  $(BIN)/python -c 'import PyQt6.QtWidgets' 2>&1 | grep 'cannot open shared object file'; }

# Without the files of tests/long.txt.
test-fast: $(VENV)/dev.stamp
	$(BIN)/python -m pytest $(TWO) -m 'not slow and not long'

test-slow: $(VENV)/dev.stamp
	$(BIN)/python -m pytest -m slow

# What runs in processes that tests start does not count.
coverage: $(VENV)/dev.stamp
	$(BIN)/python -m pytest $(TWO) --cov

# The suite on a newer Python, which gets a newer jax.
test-py312:
	$(MAKE) test PYTHON=python3.12 VENV=.venv312

lint: $(VENV)/dev.stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

$(VENV)-package/stamp: requirements-package.txt
	$(PYTHON) -m venv $(VENV)-package
	$(VENV)-package/bin/python -m pip install --quiet --disable-pip-version-check -r requirements-package.txt
	touch $@

# What users get: the wheel, with the newest dependencies that it allows, far from the checkout.
package: $(VENV)-package/stamp
	rm -rf dist
	$(VENV)-package/bin/python -m build
	$(VENV)-package/bin/python -m twine check --strict dist/*
	folder=$$(mktemp -d) && trap 'rm -rf "$$folder"' EXIT && \
	  $(PYTHON) -m venv $$folder && \
	  $$folder/bin/python -m pip install --quiet --disable-pip-version-check dist/*.whl && \
	  cd $$folder && bin/mome info && bin/mome predict --demo --output out --report && \
	  test -s out/head_neck_seg.nii.gz && test -s out/head_neck_report.html
	@ls -l dist

# Its own environment, without jax: the site is made from the sources as text.
$(VENV)-docs/stamp: requirements-docs.txt
	$(PYTHON) -m venv $(VENV)-docs
	$(VENV)-docs/bin/python -m pip install --quiet --disable-pip-version-check -r requirements-docs.txt
	touch $@

docs: $(VENV)-docs/stamp
	NO_MKDOCS_2_WARNING=1 $(VENV)-docs/bin/mkdocs build --quiet
	@echo 'build/site/index.html'

# How mome_jax/assets/niivue-*.js.gz was made; needs npm, and changes nothing if all is as recorded.
NIIVUE = 0.69.0
vendor:
	rm -rf build/niivue && mkdir -p build/niivue
	cd build/niivue && npm pack --silent @niivue/niivue@$(NIIVUE)
	awk '/of the package/ {print $$5 "  build/niivue/niivue-niivue-$(NIIVUE).tgz"}' mome_jax/assets/niivue-LICENSE.txt | sha256sum --check
	tar -xzf build/niivue/niivue-niivue-$(NIIVUE).tgz -C build/niivue package/dist/niivue.umd.js
	awk '/of dist/ {print $$4 "  build/niivue/package/dist/niivue.umd.js"}' mome_jax/assets/niivue-LICENSE.txt | sha256sum --check
	gzip -9nc build/niivue/package/dist/niivue.umd.js > mome_jax/assets/niivue-$(NIIVUE).umd.js.gz

# With the Python that has jax for the device; PARTS='a b' chooses, DATA=FOLDER holds prepared sources.
accelerator:
	$(PYTHON) -m tests.benchmarks.accelerator $(if $(PARTS),--parts $(PARTS)) $(if $(DATA),--data-dir $(DATA))

# Caches, environments and what can be built again; trained models in runs/ stay.
clean:
	rm -rf build dist .venv .venv-docs .venv-package .venv312 .pytest_cache .ruff_cache .mypy_cache .hypothesis *.egg-info
	find . -path ./runs -prune -o -type d -name __pycache__ -prune -exec rm -rf {} +

# Everything in runs/: prepared data, trained models, their evaluations.
clean-runs:
	rm -rf runs

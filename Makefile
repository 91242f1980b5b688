# Two commands for everyone: `make demo` and `make test`. Each works alone on a fresh machine.
PYTHON ?= python3
VENV := .venv
PARITY := .venv-parity
SEQIO := .venv-seqio
PLAN := .venv-plan
DOCS := .venv-docs
INPUTS := pyproject.toml constraints.txt

.PHONY: demo test test-slow test-parity test-seqio test-plan test-plan-slow plan docs lint format bench constraints clean

demo: $(VENV)/.done
	$(VENV)/bin/mot demo

test: $(VENV)/.done
	$(VENV)/bin/pytest -n 2 --ignore=tests/parity --ignore=tests/seqio --ignore=tests/plan tests

test-slow: $(VENV)/.done
	$(VENV)/bin/pytest -m slow --ignore=tests/parity --ignore=tests/seqio --ignore=tests/plan tests

test-parity: $(PARITY)/.done
	$(PARITY)/bin/pytest -n 2 tests/parity

test-seqio: $(SEQIO)/.done
	$(SEQIO)/bin/pytest -n 2 tests/seqio

# A few programs for TPUs, of which none is needed.
test-plan: $(PLAN)/.done
	$(PLAN)/bin/pytest -n 2 tests/plan

test-plan-slow: $(PLAN)/.done
	$(PLAN)/bin/pytest -m slow tests/plan

# Every rung of every architecture into docs/reference/plan.md; it goes on where it was stopped.
plan: $(PLAN)/.done
	$(PLAN)/bin/mot plan --ladder

# The pages of docs/ into build/docs; a link that leads nowhere is an error.
docs: $(DOCS)/.done
	$(DOCS)/bin/zensical build --clean --strict

lint: $(VENV)/.done
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .

format: $(VENV)/.done
	$(VENV)/bin/ruff format .
	$(VENV)/bin/ruff check --fix .

bench: $(PARITY)/.done
	$(PARITY)/bin/python -m bench.__main__

# After changing dependencies: one resolution for all extras and Pythons, without an index address.
constraints: $(VENV)/.done
	$(VENV)/bin/python -m pip install --quiet uv
	$(VENV)/bin/uv pip compile --quiet pyproject.toml --universal --python-version 3.11 --all-extras --no-header \
	  --no-annotate -o constraints.txt

$(VENV)/.done: $(INPUTS)
	$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14) and "mot needs Python 3.11, 3.12 or 3.13; PYTHON=... chooses one")'
	$(PYTHON) -m venv --clear $(VENV)
	@echo 'pip installs into $(VENV) what pyproject.toml names: 1 to 5 minutes, 1.3 GB'
	$(VENV)/bin/python -m pip install --progress-bar on --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

$(PARITY)/.done: $(INPUTS)
	$(PYTHON) -m venv --clear $(PARITY)
	@echo 'pip installs into $(PARITY), with PyTorch: some minutes, some GB'
	$(PARITY)/bin/python -m pip install --progress-bar on --disable-pip-version-check -c constraints.txt -e '.[dev,parity]'
	touch $@

# TensorFlow makes it 3.5 GB.
$(SEQIO)/.done: $(INPUTS)
	$(PYTHON) -m venv --clear $(SEQIO)
	@echo 'pip installs into $(SEQIO), with TensorFlow: some minutes, 3.5 GB'
	$(SEQIO)/bin/python -m pip install --progress-bar on --disable-pip-version-check -c constraints.txt -e '.[dev,seqio]'
	touch $@

# tokamax's kernels and the compiler for TPUs, which needs no TPU.
$(PLAN)/.done: $(INPUTS)
	$(PYTHON) -m venv --clear $(PLAN)
	@echo 'pip installs into $(PLAN), with the compiler for TPUs: some minutes'
	$(PLAN)/bin/python -m pip install --progress-bar on --disable-pip-version-check -c constraints.txt -e '.[dev,tpu]'
	touch $@

# The builder of pages alone: neither mot nor JAX.
$(DOCS)/.done: $(INPUTS)
	$(PYTHON) -m venv --clear $(DOCS)
	@echo 'pip installs into $(DOCS) what builds the pages: some seconds, 80 MB'
	$(DOCS)/bin/python -m pip install --progress-bar on --disable-pip-version-check -c constraints.txt zensical
	touch $@

clean:
	rm -rf $(VENV) $(PARITY) $(SEQIO) $(PLAN) $(DOCS) build .cache

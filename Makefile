# Two commands for everyone: `make demo` and `make test`. Each works alone on a fresh machine.
PYTHON ?= python3
VENV := .venv
PARITY := .venv-parity
SEQIO := .venv-seqio
TRACKERS := .venv-trackers
PLAN := .venv-plan
CUDA := .venv-cuda
DOCS := .venv-docs
MAXTEXT := .venv-maxtext

# An environment is made anew where what decides it has changed, and not where a fresh checkout has changed the times of
# files: a machine that keeps the folders by this hash installs nothing.
HASH := $(shell $(PYTHON) -c 'import hashlib, os, sys; \
  decides = [open(name, "rb").read() for name in ("pyproject.toml", "constraints.txt")]; \
  print(hashlib.sha256(b"".join([*decides, sys.version.encode(), os.getcwd().encode()])).hexdigest()[:16])')
DONE := .done-$(HASH)
# Another trainer, for `make bench-maxtext` alone: in no extra, as extras are resolved together. Of what it needs the
# lowest versions are taken, with which it is tested: among them our jax and libtpu.
MAXTEXT_PYTHON ?= python3.12
MAXTEXT_VERSION := 0.2.4
MAXTEXT_DONE := $(DONE)-maxtext-$(MAXTEXT_VERSION)
INSTALL := -m pip install --progress-bar on --disable-pip-version-check -c constraints.txt

# An environment for what this machine has: NVIDIA's GPUs, TPUs (older or newer ones), or a CPU alone.
DEVICE := $(if $(wildcard /dev/nvidia[0-9]*),$(CUDA),$(if $(wildcard /dev/accel0 /dev/vfio/0),$(PLAN),$(VENV)))

# Tests that need more than $(VENV), and have a target of their own.
APART := --ignore=tests/parity --ignore=tests/seqio --ignore=tests/plan --ignore=tests/slurm --ignore=tests/trackers

.PHONY: demo test test-slow test-parity test-seqio test-trackers test-plan test-plan-slow test-slurm mutations soak \
  notebooks environments plan-environment hash plan docs lint format bench bench-device bench-maxtext constraints clean

demo: $(VENV)/$(DONE)
	$(VENV)/bin/mot demo

test: $(VENV)/$(DONE)
	$(VENV)/bin/pytest -n 2 --dist worksteal $(APART) tests

test-slow: $(VENV)/$(DONE)
	$(VENV)/bin/pytest -m slow $(APART) tests

# Small faults, one by one, in a copy: each must be found.
mutations: $(VENV)/$(DONE)
	$(VENV)/bin/python -m tests.mutations

# Checkpoints of which a bit flips, and runs that are killed again and again, for at most 40 minutes.
soak: $(VENV)/$(DONE)
	$(VENV)/bin/pytest -m soak -s tests/train/test_soak.py

test-parity: $(PARITY)/$(DONE)
	$(PARITY)/bin/pytest -n 2 --dist worksteal tests/parity

test-seqio: $(SEQIO)/$(DONE)
	$(SEQIO)/bin/pytest -n 2 --dist worksteal tests/seqio

# The real W&B and trackio, offline.
test-trackers: $(TRACKERS)/$(DONE)
	$(TRACKERS)/bin/pytest -n 2 --dist worksteal tests/trackers

# A few programs for TPUs, of which none is needed.
test-plan: $(PLAN)/$(DONE)
	$(PLAN)/bin/pytest -n 2 --dist worksteal tests/plan

test-plan-slow: $(PLAN)/$(DONE)
	$(PLAN)/bin/pytest -m slow tests/plan

# A cluster of Debian's Slurm on loopback, for the time of its tests. They take minutes, as a job that is queued again
# waits first, and Slurm's daemons must be installed: so no other target runs them.
test-slurm: $(VENV)/$(DONE)
	@PATH="$$PATH:/usr/sbin" sh -c 'command -v slurmctld && command -v slurmd && command -v munged' >/dev/null || \
	  { apt-get update && apt-get install -y --no-install-recommends slurmctld slurmd slurm-client munge; }
	$(VENV)/bin/pytest -p no:xdist tests/slurm

# Every rung of every architecture into docs/reference/plan.md; it goes on where it was stopped.
plan: $(PLAN)/$(DONE)
	$(PLAN)/bin/mot plan --ladder

# After a change of scaling/notebooks/*.py: the same as .ipynb, without outputs.
notebooks: $(VENV)/$(DONE)
	$(VENV)/bin/jupytext --quiet --sync scaling/notebooks/*.py

# What decides an environment, for those who keep them; and those of the heavy extras.
hash:
	@echo $(HASH)

# To plan by hand, without the whole table.
plan-environment: $(PLAN)/$(DONE)

environments: $(PARITY)/$(DONE) $(SEQIO)/$(DONE) $(TRACKERS)/$(DONE) $(PLAN)/$(DONE)

# The pages of docs/ into build/docs; a link that leads nowhere is an error.
docs: $(DOCS)/$(DONE)
	$(DOCS)/bin/zensical build --clean --strict

lint: $(VENV)/$(DONE)
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .

format: $(VENV)/$(DONE)
	$(VENV)/bin/ruff format .
	$(VENV)/bin/ruff check --fix .

bench: $(PARITY)/$(DONE)
	$(PARITY)/bin/python -m bench.__main__

# What this machine's accelerators reach, in at most 10 minutes; installing apart.
bench-device: $(DEVICE)/$(DONE)
	$(DEVICE)/bin/python -m bench.device

# Our step beside MaxText's, compiled for TPUs that are not there with least effort, into docs/reference/maxtext.md.
bench-maxtext: $(MAXTEXT)/$(MAXTEXT_DONE)
	$(MAXTEXT)/bin/python -m bench.maxtext --quick

# After changing dependencies: one resolution for all extras and Pythons, without an index address.
constraints: $(VENV)/$(DONE)
	$(VENV)/bin/python -m pip install --quiet uv
	$(VENV)/bin/uv pip compile --quiet pyproject.toml --universal --python-version 3.11 --all-extras --no-header \
	  --no-annotate -o constraints.txt

$(VENV)/$(DONE):
	$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14) and "mot needs Python 3.11, 3.12 or 3.13; PYTHON=... chooses one")'
	@if [ -e $(VENV) ] && ! ls $(VENV)/.made $(VENV)/.done-* >/dev/null 2>&1; then \
	  echo '$(VENV) was not made by make, which would clear it: use its programs, or name another folder: make VENV=.venv-cpu'; exit 1; fi
	$(PYTHON) -m venv --clear $(VENV)
	touch $(VENV)/.made
	@echo 'pip installs into $(VENV) what pyproject.toml names: 1 to 5 minutes, 1.5 GB'
	$(VENV)/bin/python $(INSTALL) -e '.[dev]'
	touch $@

$(PARITY)/$(DONE):
	$(PYTHON) -m venv --clear $(PARITY)
	@echo 'pip installs into $(PARITY), with PyTorch: some minutes, some GB'
	$(PARITY)/bin/python $(INSTALL) -e '.[dev,parity]'
	touch $@

# TensorFlow makes it 3.5 GB.
$(SEQIO)/$(DONE):
	$(PYTHON) -m venv --clear $(SEQIO)
	@echo 'pip installs into $(SEQIO), with TensorFlow: some minutes, 3.5 GB'
	$(SEQIO)/bin/python $(INSTALL) -e '.[dev,seqio]'
	touch $@

$(TRACKERS)/$(DONE):
	$(PYTHON) -m venv --clear $(TRACKERS)
	@echo 'pip installs into $(TRACKERS), with W&B and trackio: 1 to 5 minutes, 1.5 GB'
	$(TRACKERS)/bin/python $(INSTALL) -e '.[dev,wandb,trackio]'
	touch $@

# tokamax's kernels and the compiler for TPUs, which needs no TPU.
$(PLAN)/$(DONE):
	$(PYTHON) -m venv --clear $(PLAN)
	@echo 'pip installs into $(PLAN), with the compiler for TPUs: some minutes'
	$(PLAN)/bin/python $(INSTALL) -e '.[dev,tpu]'
	touch $@

$(CUDA)/$(DONE):
	$(PYTHON) -m venv --clear $(CUDA)
	@echo 'pip installs into $(CUDA), with CUDA: some minutes, some GB'
	$(CUDA)/bin/python $(INSTALL) -e '.[dev,cuda]'
	touch $@

# One environment for both trainers, and so one compiler.
$(MAXTEXT)/$(MAXTEXT_DONE):
	@$(MAXTEXT_PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 12))' || \
	  { echo 'MaxText needs Python 3.12; MAXTEXT_PYTHON=... chooses one'; exit 1; }
	$(MAXTEXT_PYTHON) -m venv --clear $(MAXTEXT)
	@echo 'uv installs into $(MAXTEXT), with TensorFlow: some minutes, 4 GB'
	$(MAXTEXT)/bin/python -m pip install --quiet --disable-pip-version-check uv
	$(MAXTEXT)/bin/uv pip install --quiet --python $(MAXTEXT)/bin/python --resolution=lowest -e '.[tpu]' \
	  'maxtext[tpu]==$(MAXTEXT_VERSION)'
	touch $@

# The builder of pages alone: neither mot nor JAX.
$(DOCS)/$(DONE):
	$(PYTHON) -m venv --clear $(DOCS)
	@echo 'pip installs into $(DOCS) what builds the pages: some seconds, 80 MB'
	$(DOCS)/bin/python $(INSTALL) zensical
	touch $@

clean:
	rm -rf $(VENV) $(PARITY) $(SEQIO) $(TRACKERS) $(PLAN) $(CUDA) $(MAXTEXT) $(DOCS) build .cache

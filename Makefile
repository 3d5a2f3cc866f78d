# `make reproduce` runs the pipeline, `make test` runs the tests. Both first install what they need.
PYTHON ?= python3
VENV := .venv
CONSTRAINTS := constraints.txt
export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)

.PHONY: reproduce test test-lower-bounds lint fresh attest docs setup chrome lock clean

reproduce: setup
	toycircuits repro --scale quick

# Test files run in alphabetical order. The order of xdist would run a file with one long test last, alone.
# Each process uses one thread. Idle threads of OpenBLAS spin, and take cores from the other processes.
test: setup lint
	OMP_NUM_THREADS=1 pytest -n 2 --dist loadfile --no-loadscope-reorder
	$(MAKE) fresh
	$(MAKE) attest

# The fast tests and one small pipeline, at the lowest versions that pyproject.toml allows. Warnings of
# old libraries are not failures here.
test-lower-bounds: chrome
	$(MAKE) VENV=.venv-lower CONSTRAINTS=constraints-lower.txt .venv-lower/.installed
	PATH="$(CURDIR)/.venv-lower/bin:$$PATH" pytest -W default -m "not slow"
	PATH="$(CURDIR)/.venv-lower/bin:$$PATH" pytest -W default tests/test_remote.py

lint: setup
	ruff format --check .
	ruff check .
	mypy

# Check that dvc.lock, tables and figures in git belong to the code and params in git.
fresh: setup
	toycircuits fresh

# Compute the quick scale in quick/, and check that it has the bytes that another machine has computed.
attest: setup
	toycircuits repro --scale quick
	toycircuits attest --scale quick

# Build the documentation as a site, in site/.
docs: setup
	NO_MKDOCS_2_WARNING=1 mkdocs build

setup: $(VENV)/.installed chrome

$(VENV)/.installed: pyproject.toml $(CONSTRAINTS)
	$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed" if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install --quiet --constraint $(CONSTRAINTS) --editable '.[dev]'
	touch $@

# Chrome draws the static pictures. Without it, everything else still runs. Kaleido looks for these
# names. The loop tries one at a time, because `command -v` of dash reads only its first argument.
BROWSERS := chrome google-chrome google-chrome-stable chromium chromium-browser
chrome:
	@for name in "$$BROWSER_PATH" $(BROWSERS); do \
		if command -v "$$name" >/dev/null 2>&1; then exit 0; fi; \
	done; \
	{ [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null && apt-get -qq update \
		&& DEBIAN_FRONTEND=noninteractive apt-get -qq -y install chromium >/dev/null; } \
	|| echo "note: no Chrome or Chromium found; everything but the PNG pictures will run"

# Run this after a change of dependencies. It keeps the present pins where it can. `make lock UPGRADE=--upgrade`
# moves all pins to the newest versions; make the results again after that.
lock: setup
	cp constraints.txt $(VENV)/constraints.txt
	$(call compile,constraints.txt,$(UPGRADE))
	rm -f $(VENV)/constraints-lower.txt
	$(call compile,constraints-lower.txt,--resolution lowest-direct)

# Write file $(1): its old comments, then pins for every platform, without the libraries of torch's CUDA builds.
define compile
uv pip compile --quiet --universal --python-version 3.11 --extra dev --no-annotate --no-header $(2) \
	--output-file $(VENV)/$(1) pyproject.toml
{ grep '^#' $(1); grep -vE '^(cuda|nvidia|triton)' $(VENV)/$(1); } >$(VENV)/pins
mv $(VENV)/pins $(1)
endef

clean:
	rm -rf $(VENV) .venv-lower site .resume .mypy_cache .pytest_cache .ruff_cache

# `make reproduce` runs the pipeline, `make test` the tests. Both set up what they need first.
PYTHON ?= python3
VENV := .venv
export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)

.PHONY: reproduce test lint fresh setup chrome clean

reproduce: setup
	toycircuits repro

test: setup lint
	pytest -n 2 --dist loadfile
	$(MAKE) fresh

lint: setup
	ruff format --check .
	ruff check .
	mypy

# Do the committed lock, tables and figures belong to the committed code and params?
fresh: setup
	toycircuits fresh

setup: $(VENV)/.installed chrome

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed" if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

# Chrome draws the static pictures; without one everything else still runs.
chrome:
	@command -v chromium google-chrome google-chrome-stable chrome >/dev/null 2>&1 \
	|| { [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null && apt-get -qq update \
		&& DEBIAN_FRONTEND=noninteractive apt-get -qq -y install chromium >/dev/null; } \
	|| echo "note: no Chrome or Chromium found; everything but the PNG pictures will run"

clean:
	rm -rf $(VENV) .resume .mypy_cache .pytest_cache .ruff_cache

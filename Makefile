# `make demo` and `make test` work on a fresh machine: they make their own environment in .venv.
PYTHON ?= python3
VENV ?= .venv
TORCH ?= torch==2.13.0
RUN = $(VENV)/bin/python
READY = $(VENV)/.ready

.PHONY: demo test lint slow triton clean

demo: $(READY)
	$(RUN) experiments/demo.py --output demo_output

test: lint
	$(RUN) -m pytest -q

slow: $(READY)
	$(RUN) -m pytest -q -m slow

lint: $(READY)
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy

# The GPU kernels in Triton's interpreter on the CPU; needs no GPU, takes some minutes.
triton:
	$(MAKE) VENV=.venv-triton .venv-triton/.ready
	.venv-triton/bin/python -m pip install --quiet --disable-pip-version-check 'triton>=3.3'
	TRITON_INTERPRET=1 .venv-triton/bin/python -m pytest -q tests/test_scan_triton.py

$(READY): pyproject.toml
	$(PYTHON) -m venv $(VENV) || { \
	  rm -rf $(VENV); \
	  if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	    apt-get update -qq && apt-get install -y -qq python3-venv && $(PYTHON) -m venv $(VENV); \
	  else \
	    echo "Python's venv module is missing. Debian: sudo apt-get install python3-venv" >&2; exit 1; \
	  fi; }
	$(RUN) -m pip install --quiet --disable-pip-version-check "$(TORCH)"
	$(RUN) -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	touch $(READY)

clean:
	rm -rf $(VENV) .venv-triton demo_output build dist

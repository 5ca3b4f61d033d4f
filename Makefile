# `make demo` and `make test` work on a fresh machine: they make their own environment in .venv.
PYTHON ?= python3
VENV ?= .venv
TORCH ?= torch==2.13.0
RUN = $(VENV)/bin/python
READY = $(VENV)/.ready
BENCH = .venv-bench
NNUNET = .venv-nnunet
PEERS = torch-em==0.10.9 mambapy==1.2.0
BENCHMARKS = start scan networks models road training_step growth comparison corrections

# Runs the command in the shell's arguments, on a virtual screen if there is no other.
ON_SCREEN = if [ -z "$$DISPLAY" ] && command -v xvfb-run >/dev/null; \
  then set -- xvfb-run -a -s "-screen 0 1400x900x24" "$$@"; fi; "$$@"
XVFB = xvfb xauth libegl1 libgl1 libgl1-mesa-dri libopengl0 libxkbcommon-x11-0 libxcb-cursor0 \
  libxcb-icccm4 libxcb-image0 libxcb-keysyms1 libxcb-randr0 libxcb-render-util0 libxcb-shape0 \
  libxcb-xinerama0 libdbus-1-3 libfontconfig1

.PHONY: demo test lint slow triton screen screenshots bench bench-quick bench-ready nnunet clean

demo: $(READY)
	$(RUN) experiments/demo.py --output demo_output

test: lint screen
	set -- $(RUN) -m pytest -q -rs; $(ON_SCREEN)

slow: $(READY)
	$(RUN) -m pytest -q -m slow

lint: $(READY)
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy

# Installs a virtual screen where Qt finds none and that is allowed; says what is left out otherwise.
screen: $(READY)
	@set -- $(RUN) -c 'from qtpy.QtWidgets import QApplication; QApplication([])'; \
	if [ "$$(uname)" = Linux ] && ! ( $(ON_SCREEN) ) >/dev/null 2>&1 && ! ( [ "$$(id -u)" = 0 ] && \
	  apt-get update -qq && apt-get install -y -qq --no-install-recommends $(XVFB) ); then \
	  echo "NO SCREEN: the tests of the napari plugin will be skipped. To run them on Debian:" >&2; \
	  echo "  sudo apt-get install --no-install-recommends $(XVFB)" >&2; \
	fi

# The pictures of the plugin's manual.
screenshots: $(READY) screen
	set -- $(RUN) napari_plugin/screenshots.py --output docs/images; $(ON_SCREEN)

# The GPU kernels in Triton's interpreter on the CPU; needs no GPU, takes some minutes.
triton:
	$(MAKE) VENV=.venv-triton .venv-triton/.ready
	.venv-triton/bin/python -m pip install --quiet --disable-pip-version-check 'triton>=3.3'
	TRITON_INTERPRET=1 .venv-triton/bin/python -m pytest -q tests/test_scan_triton.py

# Speed and memory, on an idle machine.
bench: bench-ready
	for name in $(BENCHMARKS); do $(BENCH)/bin/python -m benchmarks.$$name $(FLAGS) || exit 1; done
	$(BENCH)/bin/python -m benchmarks.report

# Tiny sizes, into build/: do all benchmarks run?
bench-quick: bench-ready
	for name in $(BENCHMARKS); do \
	  $(BENCH)/bin/python -m benchmarks.$$name --quick --repeats 2 --output build/bench || exit 1; done
	cp docs/performance.md docs/models.md build/bench
	$(BENCH)/bin/python -m benchmarks.report --results build/bench --docs build/bench

# With other people's code to measure against: torch-em without its dependencies (benchmarks/peers.py).
bench-ready:
	$(MAKE) VENV=$(BENCH) $(BENCH)/.ready
	$(BENCH)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps $(PEERS)

# The whole way through nnU-Net as it is installed, some minutes.
nnunet:
	$(MAKE) VENV=$(NNUNET) $(NNUNET)/.ready
	$(NNUNET)/bin/python -m pip install --quiet --disable-pip-version-check "$(TORCH)" nnunetv2==2.8.1
	$(NNUNET)/bin/python -m pytest -q -m slow tests/test_nnunet_stock.py
	$(NNUNET)/bin/python -m pytest -q tests/test_nnunet.py

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
	rm -rf $(VENV) .venv-triton $(BENCH) $(NNUNET) demo_output build dist

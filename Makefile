# make demo, make test: all that a fresh machine needs is Python 3.11+, a C compiler and make.
# Another interpreter: make test PYTHON=python3.13 VENV=.venv-313

PYTHON ?= python3
VENV ?= .venv
ARGS ?=
SOAK ?= 3600
FUZZ ?= 1000000
LONG ?=
SEED ?=

# Whatever the tools keep for themselves goes to build/, too; compiled Python as well, since the tests
# start hundreds of interpreters.
export PYTHONPYCACHEPREFIX := $(CURDIR)/build/pycache
unexport PYTHONDONTWRITEBYTECODE
export MYPY_CACHE_DIR := $(CURDIR)/build/mypy
export RUFF_CACHE_DIR := $(CURDIR)/build/ruff

bin := $(VENV)/bin
tag := $(shell $(PYTHON) -c 'import sysconfig; print(sysconfig.get_config_var("SOABI"))')
build := build/$(tag)
stamp := $(VENV)/.installed-$(tag)

.PHONY: demo test threads protocol soak coverage fuzz asan tsan planted bench check install clean

install: $(stamp)

# An editable install: it rebuilds itself when a source file has changed, by the ninja that it finds now.
$(stamp): pyproject.toml meson.build
	$(PYTHON) -m venv $(VENV)
	$(bin)/python -m pip install --quiet --upgrade pip
	$(bin)/python -m pip install --quiet --group build --group dev
	PATH="$(CURDIR)/$(bin):$$PATH" $(bin)/python -m pip install --quiet --no-build-isolation --config-settings=build-dir=$(build) --editable '.[plot,top]'
	touch $@

demo: $(stamp)
	$(bin)/pageframe demo --picture build/arena.png $(ARGS)

# make test LONG=10 has the tests that draw at random do ten times as much; SEED repeats such a run.
test: $(stamp)
	PAGEFRAME_TEST_LONG=$(LONG) PAGEFRAME_TEST_SEED=$(SEED) $(bin)/python -m pytest tests $(ARGS)

# What threads share, with an interpreter that has no lock.
threads: $(stamp)
	$(bin)/python -c "import sys, pageframe; assert not sys._is_gil_enabled()"
	$(bin)/python -m pytest tests/test_thread_races.py tests/test_threads.py $(ARGS)

# Processes are killed at random for so many seconds: make soak SOAK=60 SEED=1; the report is build/soak.json.
soak: $(stamp)
	PYTHONPATH=tests OPENBLAS_NUM_THREADS=1 $(bin)/python tests/steps/campaign.py --seed $(or $(SEED),$$(date +%s)) --seconds $(SOAK) \
		--report build/soak.json $(ARGS)

# Every interleaving of the small processes of tests/protocol.
protocol: $(stamp)
	PYTHONPATH=tests $(bin)/python tests/protocol/all.py --json build/protocol.json $(ARGS)

# So many damaged arenas, also with the sanitizers: make fuzz FUZZ=10000 SEED=1; make fuzz SANITIZE=address
fuzz: $(stamp)
	PYTHONPATH=tests OPENBLAS_NUM_THREADS=1 $(bin)/python $(if $(SANITIZE),-m sanitized.run $(SANITIZE)) -m damage.fuzz \
	  --inputs $(FUZZ) --seed $(or $(SEED),$$(date +%s)) $(ARGS)

# The suite with AddressSanitizer and UndefinedBehaviorSanitizer; threads of C with ThreadSanitizer;
# and with planted faults, which each must report.
asan: $(stamp)
	PYTHONPATH=tests $(bin)/python -m sanitized.run address tests/sanitized/stress.py
	PYTHONPATH=tests $(bin)/python -m sanitized.run address -m pytest tests $(ARGS)

tsan: $(stamp)
	PYTHONPATH=tests $(bin)/python -m sanitized.run thread tests/sanitized/stress.py $(ARGS)

planted: $(stamp)
	$(bin)/python -m pytest tests/sanitized/planted.py $(ARGS)

# Which lines of Python, Cython and C the tests run: make coverage ARGS=tests/test_frame.py
coverage: $(stamp)
	$(bin)/python -m pip install --quiet --group coverage
	$(bin)/python tests/covered/measure.py -- $(or $(ARGS),tests)

bench: $(stamp)
	$(bin)/python -m pytest bench $(ARGS)

check: $(stamp)
	$(bin)/ruff check .
	$(bin)/ruff format --check .
	PATH="$(CURDIR)/$(bin):$$PATH" cython-lint src tests
	$(bin)/mypy
	MYPYPATH=src $(bin)/python -m mypy.stubtest pageframe._core --mypy-config-file pyproject.toml --allowlist tests/typing/stubtest.txt
	$(bin)/pyright

clean:
	rm -rf build $(VENV)

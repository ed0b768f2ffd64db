# The project's habits. `make` alone lists them.
#
# Variables: PYTHON (the interpreter to build for), VENV (where it is installed), APP (for run),
# TESTS (files for test and test-asan), JOBS (how many processes share them; 0: none but pytest's
# own), PEERS (where the other servers are installed for conformance), OPTIONS (more options for
# most of them).

PYTHON ?= python3
VENV ?= .venv
APP ?= hello:app
ASAN ?= build/asan
PEERS ?= .venv-peers
COVERAGE ?= build/coverage
TESTS ?=
JOBS ?= auto
OPTIONS ?=

# Seconds after which a single test counts as hung.
TIMEOUT ?= 120

# Neighbours stay together, since they share a server, until a process has nothing left to do.
PYTEST = -m pytest --numprocesses $(JOBS) --dist worksteal

SOURCES := $(wildcard src/*.pyx src/fastserve/*.pxd) setup.py pyproject.toml
MODULES := $(patsubst src/%.pyx,%,$(wildcard src/*.pyx))

PIP_INSTALL = python -m pip install --quiet --disable-pip-version-check
# One home for the versions: the list is read from pyproject.toml.
BUILD_REQUIRES = python -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["build-system"]["requires"], sep="\n")'

.PHONY: help run test test-long soak lint stubtest test-asan coverage fuzz conformance bench report instructions annotate options docs sdist wheel identifiers clean

help:
	@echo 'make run        serve examples/hello.py, or another one: make run APP=chat:app'
	@echo 'make test       run all tests'
	@echo 'make test-long  reloads, kills and new programs by the hundred (half an hour)'
	@echo 'make soak       traffic of all kinds, and reloads, with memory and descriptors watched (6 minutes)'
	@echo 'make lint       ruff, mypy, stubtest, cython-lint, warnings of Cython as errors'
	@echo 'make stubtest   compare the type stubs with the compiled modules'
	@echo 'make test-asan  run the tests on a build with AddressSanitizer and UBSan'
	@echo 'make coverage   which lines of Python and Cython the tests run, and whether they are enough'
	@echo 'make fuzz       run the fuzz targets (OPTIONS: see tests/fuzz/run.py)'
	@echo 'make conformance  judge fastserve and its peers, and write docs/conformance.md (5 minutes)'
	@echo 'make bench      measure everything against the peers (35 minutes; OPTIONS: see bench/README.md)'
	@echo 'make report     write docs/performance.md and its charts from bench/published'
	@echo 'make instructions  count instructions per request, and compare with those recorded'
	@echo 'make annotate   write what Cython makes of each line, into build/_*.html'
	@echo 'make options    write docs/options.md, the table of the options'
	@echo 'make docs       build the site, into build/docs/; warnings are errors'
	@echo 'make sdist      build the sdist, into wheelhouse/'
	@echo 'make wheel      build the sdist and wheels for the Pythons at hand, into wheelhouse/, and test'
	@echo '                each (OPTIONS, TESTS: see tools/wheels.py)'
	@echo 'make identifiers  check which wheels cibuildwheel would build'
	@echo 'make clean      remove everything that was built'

run: $(VENV)/.built
	$(VENV)/bin/fastserve --app-dir examples $(OPTIONS) $(APP)

test: $(VENV)/.test
	$(VENV)/bin/python $(PYTEST) --timeout $(TIMEOUT) $(OPTIONS) $(TESTS)

test-long: $(VENV)/.test
	$(VENV)/bin/python -m pytest -m long $(OPTIONS) $(TESTS)

soak: $(VENV)/.test
	$(VENV)/bin/python tests/soak.py $(OPTIONS)

lint: $(VENV)/.lint stubtest
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	PATH="$(abspath $(VENV))/bin:$$PATH" cython-lint src/*.pyx src/fastserve/*.pxd
	@mkdir -p build/lint
	for module in $(MODULES); do \
	    $(VENV)/bin/cython -3 -Wextra -Werror -I src --module-name fastserve.$$module \
	        -o build/lint/$$module.c src/$$module.pyx || exit 1; \
	done

# A stub has what our Python code may use. What it leaves out is for compiled code alone.
stubtest: $(VENV)/.lint
	MYPYPATH=src $(VENV)/bin/stubtest --ignore-missing-stub --ignore-disjoint-bases \
	    $(addprefix fastserve.,$(MODULES))

# The sanitizers' runtime must be there before the interpreter's own malloc is. What they
# find goes to files: pytest keeps what is written to stderr, and is lost with it.
ASAN_REPORT = $(abspath $(ASAN))/report
test-asan: $(ASAN)/.built
	rm -f $(ASAN_REPORT).*
	LD_PRELOAD="$$($(CC) -print-file-name=libasan.so)" PYTHONMALLOC=malloc \
	ASAN_OPTIONS=detect_leaks=0:log_path=$(ASAN_REPORT) \
	UBSAN_OPTIONS=print_stacktrace=1:log_path=$(ASAN_REPORT) \
	$(ASAN)/venv/bin/python $(PYTEST) --timeout $$((5 * $(TIMEOUT))) $(OPTIONS) $(TESTS); \
	status=$$?; \
	for report in $(ASAN_REPORT).*; do \
	    if [ -e "$$report" ]; then cat "$$report" >&2; status=1; fi; \
	done; \
	exit $$status

# The modules lie beside the C that their lines are found by, in a copy that is the working folder.
# Tracing makes some tests a hundred times slower: by default without those of the parser, which HTTP's
# go through as well, and without those of whole applications.
TRACED = $(addprefix tests/test_,$(addsuffix .py,admin application asgi asgi_extensions buffer cli \
    config cpus drain headers http1 lifespan limits log middleware pidfile proxied proxy shared \
    sockets sources supervisor tls traps websocket))
coverage: $(COVERAGE)/.built
	cd $(COVERAGE)/tree && rm -f .coverage* && \
	TEST_PATIENCE=60 ../venv/bin/coverage run $(PYTEST) --timeout $$((5 * $(TIMEOUT))) \
	    $(OPTIONS) $(addprefix $(CURDIR)/,$(or $(TESTS),$(TRACED))) && \
	../venv/bin/coverage combine --quiet && ../venv/bin/coverage report

fuzz: $(VENV)/.test
	$(VENV)/bin/python tests/fuzz/run.py $(OPTIONS)

conformance: $(VENV)/.test $(PEERS)/.installed
	cd tests && $(abspath $(VENV))/bin/python -m conformance --all --jobs 3 \
	    --peers $(abspath $(PEERS))/bin/python --table ../docs/conformance.md $(OPTIONS)

bench: $(VENV)/.test
	$(VENV)/bin/python bench/suite.py $(OPTIONS)

report: $(VENV)/.created
	$(VENV)/bin/python bench/report.py $(OPTIONS)

instructions: $(VENV)/.test
	$(VENV)/bin/python bench/instructions.py --check $(OPTIONS)

annotate: $(VENV)/.built
	for module in $(MODULES); do \
	    $(VENV)/bin/cython -3 --annotate -I src --module-name fastserve.$$module \
	        -o build/$$module.c src/$$module.pyx || exit 1; \
	done
	@echo 'build/_*.html'

options: $(VENV)/.built
	$(VENV)/bin/python docs/options.py

docs: $(VENV)/.docs
	$(VENV)/bin/sphinx-build --fail-on-warning --keep-going --quiet $(OPTIONS) docs build/docs

sdist: $(VENV)/.wheel
	$(VENV)/bin/python -m build --quiet --sdist --outdir wheelhouse

wheel: $(VENV)/.wheel
	$(VENV)/bin/python tools/wheels.py $(OPTIONS) $(TESTS)

identifiers: $(VENV)/.wheel
	$(VENV)/bin/python tools/wheels.py --identifiers

clean:
	rm -rf .venv* build dist src/*.egg-info src/*.c src/*.html src/fastserve/*.so
	rm -rf .pytest_cache .mypy_cache .ruff_cache .hypothesis .coverage
	find wheelhouse -type f ! -name README.md -delete
	find src tests examples bench docs tools -name __pycache__ -prune -exec rm -rf {} +

# Stamps: a step is done again when something it depends on is newer.

$(VENV)/.created $(ASAN)/venv/.created $(COVERAGE)/venv/.created $(PEERS)/.created: %/.created:
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("fastserve needs Python 3.11 or later; this is " + sys.version.split()[0] + ": make PYTHON=...")'
	$(PYTHON) -m venv $*
	$*/bin/$(PIP_INSTALL) --upgrade 'pip>=25.1'
	@touch $@

# Cython does not look at the age of a module's own .pxd: with no generated C
# left, every build is a whole one.
$(VENV)/.built: $(VENV)/.created $(SOURCES)
	$(VENV)/bin/$(BUILD_REQUIRES) > $(VENV)/requires.txt
	$(VENV)/bin/$(PIP_INSTALL) -r $(VENV)/requires.txt
	rm -f src/*.c
	$(VENV)/bin/$(PIP_INSTALL) --no-build-isolation --editable .
	@touch $@

$(VENV)/.test: $(VENV)/.built pyproject.toml
	$(VENV)/bin/$(PIP_INSTALL) --group test
	@touch $@

$(PEERS)/.installed: $(PEERS)/.created tests/conformance/peers.txt bench/peers.txt
	$(PEERS)/bin/$(PIP_INSTALL) -r tests/conformance/peers.txt
	@touch $@

$(VENV)/.lint: $(VENV)/.built pyproject.toml
	$(VENV)/bin/$(PIP_INSTALL) --group lint
	@touch $@

# These two need no build of fastserve.
$(VENV)/.wheel $(VENV)/.docs: $(VENV)/.%: $(VENV)/.created pyproject.toml
	$(VENV)/bin/$(PIP_INSTALL) --group $*
	@touch $@

# From copies of the sources: their modules must never be taken for those of the ordinary build.
# Those for coverage are looked for beside their C, and so installed in place.
$(ASAN)/.built: SWITCH = FASTSERVE_SANITIZE
$(ASAN)/.built: GROUP = test
$(COVERAGE)/.built: SWITCH = FASTSERVE_TRACE
$(COVERAGE)/.built: GROUP = coverage
$(COVERAGE)/.built: INPLACE = --editable
$(ASAN)/.built $(COVERAGE)/.built: %/.built: %/venv/.created $(SOURCES) $(wildcard src/fastserve/*.py src/fastserve/*.pyi)
	rm -rf $*/tree
	mkdir -p $*/tree
	cp -R setup.py pyproject.toml README.md LICENSE src $*/tree
	rm -rf $*/tree/src/*.c $*/tree/src/*.egg-info $*/tree/src/fastserve/*.so
	$*/venv/bin/$(BUILD_REQUIRES) > $*/requires.txt
	$*/venv/bin/$(PIP_INSTALL) -r $*/requires.txt --group $(GROUP)
	$(SWITCH)=1 $*/venv/bin/$(PIP_INSTALL) --no-build-isolation --force-reinstall $(INPLACE) $*/tree
	@touch $@

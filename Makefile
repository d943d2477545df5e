# Fusing Sideways. Every target makes .venv and installs what it needs.
PYTHON ?= python3
BIN    := .venv/bin
JOBS   ?= 2
OR_SAY := || { echo "The packages could not be installed; above is what pip says. Is there a network? Then make the same target again."; exit 1; }
# jupyter-book builds the pages, sphinx-exercise and sphinx-proof their boxes, sphinx-mathjax-offline
# their equations without a network, hatchling the wheel that they offer.
BOOK   := jupyter-book sphinx-exercise sphinx-proof sphinx-mathjax-offline hatchling
# playwright prints, pypdf adds the bookmarks; beautifulsoup4 and pyyaml read pages and contents.
PDF    := beautifulsoup4 playwright pypdf pyyaml

# One thing at a time: all of them install into one .venv and build into one _build.
.NOTPARALLEL:
.PHONY: help book wheel pdf zip test test-quick test-all units nbval zoo mutants bench record lab run lint lock clean

help:
	@echo "To read"
	@echo "  make book      the pages, _build/html/index.html"
	@echo "  make pdf       the whole book as _build/fusing-sideways.pdf (wants Chromium or Chrome)"
	@echo "  make zip       the pages as _build/fusing-sideways.zip, to read anywhere"
	@echo "To run"
	@echo "  make lab       the book in JupyterLab (OPTIONS=\"--no-browser --port 8890\")"
	@echo "  make wheel     one file, with which a chapter runs in a folder of its own"
	@echo "  make record    the experiments on this machine, into records/ (MINUTES=8)"
	@echo "  make run       every chapter again, in place (CHAPTERS=… MACHINE=…)"
	@echo "To change"
	@echo "  make test-quick  the library's core, in a minute"
	@echo "  make test      most tests, and every cell compared with what it printed, in five"
	@echo "  make test-all  all tests: browsers, JupyterLab, each chapter alone from the wheel"
	@echo "  make lint      style, types and spelling of code, text and notebooks"
	@echo "  make zoo       fuse a hundred models of others, with a table; ONNX export"
	@echo "  make mutants   ten thousand changes of the code: does a test notice? (SAMPLE=500)"
	@echo "  make bench     how long planning takes, beside torch.compile"
	@echo "  make lock      constraints.txt again, from the newest versions"
	@echo "  make clean     delete all that make has made"
	@echo "make PYTHON=python3.12 … takes another Python. The first time, each needs a network."

# One stamp for each set of packages; pip sees the exact versions of all of them.
.venv/pip:
	@$(PYTHON) -c 'import sys, ensurepip, venv; assert (3, 11) <= sys.version_info < (3, 15)' || \
		{ echo "$(PYTHON): expected Python 3.11 to 3.14 with its venv module (Debian: apt install python3-venv); or make PYTHON=python3.12 …"; exit 1; }
	$(PYTHON) -m venv .venv || { rm -rf .venv; echo "$(CURDIR): .venv could not be made there; the folder has to be writable"; exit 1; }
	touch $@

.venv/%.stamp: .venv/pip pyproject.toml constraints.txt
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[$*]" $(OR_SAY)
	touch $@

# The pages are built from executed notebooks: no torch, and little to download.
.venv/book.stamp: .venv/pip Makefile constraints.txt
	$(BIN)/python -m pip install --quiet -c constraints.txt $(BOOK) $(OR_SAY)
	touch $@

# The library with all that the notebooks read; pages built after it offer it.
wheel: .venv/book.stamp
	$(BIN)/python -m pip wheel --quiet --no-deps --no-build-isolation --wheel-dir _build .

book: .venv/book.stamp wheel
	rm -rf _build/html
	$(BIN)/jupyter-book build . --all -W -n --keep-going

.venv/pdf.stamp: .venv/pip Makefile constraints.txt
	$(BIN)/python -m pip install --quiet -c constraints.txt $(PDF) $(OR_SAY)
	touch $@

pdf: book .venv/pdf.stamp
	$(BIN)/python tools/pdf.py _build/html _build/fusing-sideways.pdf

# Under another name until it is whole.
zip: book
	rm -rf _build/zip && mkdir _build/zip && cp -r _build/html _build/zip/fusing-sideways
	cd _build/zip && ../../$(BIN)/python -m zipfile -c unfinished fusing-sideways
	mv _build/zip/unfinished _build/fusing-sideways.zip && rm -rf _build/zip
	@echo _build/fusing-sideways.zip

# JOBS processes share the cores: with more than a thread each they wait for one another.
test test-quick test-all units nbval: export OMP_NUM_THREADS ?= 1
# Whose records the chapters read first, a folder in records/; else GPUs first, then by name.
test test-all nbval run: export HFUSION_MACHINE := $(MACHINE)
PYTEST := $(BIN)/python -m pytest -n $(JOBS) --dist loadfile

QUICK := $(addprefix tests/library/test_,$(addsuffix .py,algebra stacking plan siblings packing \
	packing_windows folding models)) tests/book/test_architecture.py tests/book/test_records.py

# What shows soonest that a change of the library is wrong.
test-quick: .venv/test.stamp
	$(PYTEST) -m "not slow" $(QUICK)

test: units nbval

units: .venv/test.stamp .venv/book.stamp
	$(PYTEST) --doctest-modules -m "not slow" tests code

# Also what takes minutes: the built pages, browsers, every notebook alone from the wheel, and
# JupyterLab, which may not be missing here.
test-all: export HFUSION_TESTS := all
test-all: export HFUSION_CASES ?= 300
test-all: .venv/test.stamp .venv/book.stamp .venv/lab.stamp nbval
	$(PYTEST) --doctest-modules tests code

nbval: .venv/test.stamp
	$(BIN)/python -m pytest -n $(JOBS) --dist loadscope --nbval --nbval-current-env \
		--nbval-sanitize-with tests/nbval.cfg --nbval-cell-timeout 300 chapters back

# Its table is stored in records/zoo.json, for chapter 7.
zoo: export HFUSION_ZOO := 1
zoo: .venv/zoo.stamp
	$(BIN)/python -m pytest tests/library/test_zoo.py tests/library/test_lowering.py \
		tests/library/test_packing_windows.py tests/library/test_packing_tools.py

mutants: .venv/mutants.stamp
	JOBS=$(JOBS) $(BIN)/python tools/mutation/run.py $(MUTANTS) $(SAMPLE:%=--sample %) $(if $(TESTS),--tests $(TESTS))

bench: .venv/test.stamp
	$(BIN)/python tools/benchmarks/planning.py

# With EXTRAS=peers beside ONNX Runtime, OpenVINO and torchvision's GoogLeNet. What does not
# fit into the time is skipped, which is status 3; on a GPU max-autotune alone wants
# MINUTES=30. FROM=file adds what a lab of a page has saved. It replaces no committed record and none of another machine.
record: .venv/$(or $(EXTRAS),record).stamp
	$(BIN)/python -m hfusion record $(EXPERIMENTS) $(MINUTES:%=--minutes %) $(if $(FROM),--from "$(FROM)")

# The whole book with its look, by tools/lab; the reader's own settings stay in force.
lab: export JUPYTER_CONFIG_PATH := $(CURDIR)/tools/lab$(if $(JUPYTER_CONFIG_PATH),:$(JUPYTER_CONFIG_PATH))
lab: .venv/lab.stamp
	@echo "JupyterLab opens the book; stop it with Ctrl-C. What you save stays: 'git diff' shows it,"
	@echo "and 'git checkout chapters back' brings the notebooks back as they were."
	@[ "$$(id -u)" != 0 ] || echo "You are root, as in a container, so JupyterLab's refusal of root is turned off."
	$(BIN)/jupyter lab $(OPTIONS)

run: .venv/test.stamp
	$(BIN)/python tools/execute_chapters.py $(CHAPTERS)

# The hooks of pre-commit over everything: style, types and spelling.
lint: .venv/lint.stamp
	$(BIN)/pre-commit run --all-files

# The local package is not a version, and torch's "+cpu" is a build, not a release.
lock:
	$(PYTHON) -m venv .venv-lock
	.venv-lock/bin/python -m pip install --quiet --upgrade "jupyter-book<2" $(BOOK) ".[lab,lint,mutants]"
	.venv-lock/bin/python -m pip freeze --exclude hfusion | sed 's/+cpu$$//' \
		| grep -v -i -E '^(nvidia|triton|cuda)' > .venv-lock/constraints.txt
	mv .venv-lock/constraints.txt constraints.txt
	rm -rf .venv-lock

clean:
	rm -rf _build .venv .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# `make demo` and `make test` need Python 3.11 or newer, git and make; they set up .venv themselves, with uv if there is
# one. The demo installs what Conan needs to run, the tests add the extras and tools.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
INSTALLED := $(VENV)/.installed
# Compiling every module of the libraries, as pip does, takes as long as installing them; Python compiles what it imports.
INSTALL = $(if $(shell command -v uv),uv pip install --python $(BIN)/python,$(BIN)/python -m pip install --no-compile) \
	--quiet --constraint constraints.txt --editable

CUT_STAGES = filter dedup score convert mine

.PHONY: demo cut test fuzz check phrases docs bench clean

demo: $(READY)
	$(BIN)/conan demo demo

cut: demo
	rm -rf demo/cut
	$(BIN)/conan sample demo/corpus demo/cut --rows 300
	for stage in $(CUT_STAGES); do $(BIN)/conan $$stage demo/cut --set score.model=demo/corpus/model \
		--set mine.model=demo/corpus/model || exit 1; done

# One more than there are cores, as some tests wait for processes that they start.
TEST_WORKERS ?= $(shell expr $$(nproc 2>/dev/null) + 1 2>/dev/null || echo auto)

# Bytecode is kept even where the environment forbids it: the processes that tests start would compile all modules again.
test: $(INSTALLED)
	PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest -n $(TEST_WORKERS)

# Property tests, and kills at random moments, on examples that nobody has seen: ten minutes, a share for each test.
# What it finds becomes an @example, or a test of its own. `make fuzz SEED=7` draws what seed 7 drew.
SEED ?= $(shell od -An -N4 -tu4 /dev/urandom | tr -d ' ')
fuzz: $(INSTALLED)
	@echo "SEED=$(SEED)"
	CONAN_FUZZ=$(SEED) $(BIN)/python -m pytest -n auto -m "hypothesis or fuzz" --hypothesis-seed=$(SEED) --timeout=1200

check: $(INSTALLED)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	mkdir -p .mypy && ln -sfn .. .mypy/conan_embedding
	MYPYPATH=.mypy $(BIN)/mypy -m conan_embedding -m conan_embedding.cli -m conan_embedding.api -m conan_embedding.losses -m conan_embedding.cbb -m conan_embedding.dhnm -p conan_embedding.schemas -p conan_embedding.pipeline -p conan_embedding.trainer
	$(MAKE) --silent phrases
	$(BIN)/zensical build --clean --strict

phrases:
	@sed '/^#/d; /^$$/d' .ci/phrases | git grep --untracked -nEf - -- '*.py' '*.md'; \
		test $$? -eq 1 || { echo ".ci/phrases says what to write instead"; exit 1; }

# The site, in build/site; its pages on settings and the API are written from the code.
docs: $(INSTALLED)
	$(BIN)/python docs/generate.py
	$(BIN)/zensical build --clean --strict

bench: $(INSTALLED)
	for script in $$(grep -L required=True benchmarks/*.py); do $(BIN)/python $$script || exit 1; done

clean:
	rm -rf demo .cache .mypy .mypy_cache .pytest_cache .ruff_cache build *.egg-info

$(READY): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(INSTALL) .
	touch $@

$(INSTALLED): $(READY)
	$(INSTALL) ".[docs,test]"
	touch $@

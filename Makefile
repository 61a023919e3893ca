# Needs Python 3.11 or newer, make and git; everything else goes into .venv.
PROFILE ?= quick
PYTHON ?= python3
ARGS ?=
VENV := .venv
BIN := $(VENV)/bin

.DEFAULT_GOAL := help
.PHONY: help env book night test lab lock clean

help:
	@echo 'make book            run every notebook at PROFILE (now $(PROFILE)) and build the book'
	@echo '                     PROFILE=record|smoke|quick|night|gpu|paper, ARGS="-p device cpu --force"'
	@echo 'make night           what is left of the long runs, at low priority; stop and start it at will'
	@echo 'make test            the whole test suite, with a book built from smoke runs'
	@echo 'make lab             JupyterLab on the notebooks (ARGS=--allow-root as root)'
	@echo 'make env             the environment alone, in $(VENV) (PYTHON=python3.12 to name another Python)'
	@echo 'make lock            renew requirements.lock from pyproject.toml'
	@echo 'make clean           remove the built book, executed notebooks and caches; keep $(VENV) and data'

# The stamp ties the environment to the lock, the project file, this folder and the Python in it.
env:
	@$(PYTHON) -c 'import sys; v = sys.version_info; v >= (3, 11) or sys.exit("psmlib needs Python 3.11 or newer, but $(PYTHON) is %d.%d: install one, or name one as in: make $(or $(MAKECMDGOALS),env) PYTHON=python3.12" % v[:2])'
	@stamp=$$($(PYTHON) -c 'import hashlib, os, sys; print(hashlib.sha256(b"".join(open(f, "rb").read() for f in ("requirements.lock", "pyproject.toml")) + repr((os.getcwd(), sys.version_info[:2])).encode()).hexdigest())') && \
	if [ -x $(BIN)/python ] && [ "$$(cat $(VENV)/.stamp 2>/dev/null)" = "$$stamp" ]; then exit 0; fi; \
	$(MAKE) --no-print-directory .install && echo "$$stamp" > $(VENV)/.stamp && echo 'The environment is ready in $(VENV).'

# uv is quick where it can reach the index; plain pip reads the same lock. A folder that was moved or copied has
# scripts that still call the old place: it is made anew.
.PHONY: .install
.install:
	@echo 'Making the environment in $(VENV): a few minutes, some 6 GB.'
	@rm -f $(VENV)/.stamp
	@if [ -e $(BIN)/pip ] && ! head -n 2 $(BIN)/pip | grep -qF '$(CURDIR)/$(BIN)/'; then rm -rf $(VENV); fi
	@$(PYTHON) -m venv $(VENV)
	@{ $(BIN)/python -m pip install --quiet "$$(grep '^uv==' requirements.lock)" && \
	   $(BIN)/uv pip install --quiet --compile-bytecode --python $(BIN)/python -r requirements.lock; } || \
	 { echo 'uv could not install the lock; plain pip does it now.'; \
	   $(BIN)/python -m pip install --quiet -r requirements.lock; }
	@$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation -e .

book: env
	@$(BIN)/python -m psmlib.run book --profile $(PROFILE) $(ARGS)

night: env
	@$(BIN)/python -m psmlib.run night $(ARGS)

# One pytest run holds every part, so that one line counts them all; conftest.py puts the book first, because it takes
# longest. Whatever it writes goes to build/test.
test: env
	@rm -rf build/test
	@PSMLIB_OUTPUT='$(CURDIR)/build/test' PSMLIB_BATCH=1 PSMLIB_WORKERS=1 OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 \
	  $(BIN)/python -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder \
	  --nbval-lax --nbval-current-env --nbval-cell-timeout 120 --durations 8 \
	  notebooks tests psmlib $(ARGS)

lab: env
	@$(BIN)/jupyter lab notebooks $(ARGS)

lock: env
	@$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --extra test --no-annotate --no-header \
	  --upgrade pyproject.toml -o requirements.lock
	@echo 'requirements.lock is renewed; make test installs and tries it.'

clean:
	@rm -rf build book/_executed book/_generated book/_build .pytest_cache .ruff_cache .hypothesis
	@find psmlib tests notebooks -name __pycache__ -prune -exec rm -rf {} + 2>/dev/null || true
	@find . -name .ipynb_checkpoints -not -path './$(VENV)/*' -prune -exec rm -rf {} + 2>/dev/null || true

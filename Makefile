# Every target brings its own tools: `sh hooks/uv.sh` is uv, installed into .venv if it is missing.
UV := sh hooks/uv.sh
# Copier alone: no one waits for Sphinx and mypy to see the demo.
GROW := run --quiet --no-default-groups --group grow python
KIND ?= llm

.PHONY: help demo test test-fast lint docs link clean

help:  ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/'

demo:  ## grow build/demo, train it on real text (minutes) and sample from it
	@$(UV) $(GROW) hooks/demo.py $(KIND)

test:  ## the whole suite, the tests of an emitted project included
	$(UV) run pytest

test-fast:  ## the template's own tests only
	$(UV) run pytest -m "not slow"

lint:  ## format, lint, types
	$(UV) run ruff format --check .
	$(UV) run ruff check .
	$(UV) run mypy

docs:  ## build/docs/index.html; a warning is an error
	$(UV) run sphinx-build -W --keep-going -q -b html docs build/docs

link:  ## build/link/KIND: a working project whose files are links to templates/
	@$(UV) $(GROW) hooks/link.py $(KIND)

clean:  ## remove build/ (demo, links, docs)
	rm -rf build

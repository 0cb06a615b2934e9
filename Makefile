# `sh hooks/uv.sh` runs uv, which it installs into .venv where it is missing.
UV := sh hooks/uv.sh
# Copier alone, so that the demo does not wait for Sphinx and mypy to be installed.
GROW := run --quiet --no-default-groups --group grow python
KIND ?= llm
# An image may forbid it; then each of many processes compiles all that it imports, for seconds.
unexport PYTHONDONTWRITEBYTECODE
LONG := tests/test_project.py tests/test_diffusion.py tests/test_bayes.py tests/test_tpu.py tests/test_versions.py tests/test_changes.py tests/test_buckets.py tests/test_update.py
OTHERS := $(filter-out $(LONG), $(wildcard tests/test_*.py))

.PHONY: help demo test test-fast faults slurm lint docs link clean

help:  ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/'

demo:  ## grow build/demo, train it (five to eight minutes on two cores) and sample from it
	@$(UV) $(GROW) hooks/demo.py $(KIND)

# Three files at a time, the long ones first: one half of the time is an emitted project's own tests,
# and a third of it they wait, for processes and servers that they start.
test:  ## all tests, those of an emitted project included
	$(UV) run pytest -n 3 --dist loadfile --no-loadscope-reorder $(LONG) $(OTHERS)

test-fast:  ## the tests of the template alone
	$(UV) run pytest -m "not slow"

faults:  ## the full tables: every fault, and every move to other hosts and devices (half an hour)
	@$(UV) $(GROW) hooks/link.py tpu
	@for table in runtime.tests.faults cluster.tests.faults tests.elastic; do \
		JAX_PLATFORMS=cpu $(UV) run --directory build/link/tpu python -m acorn_tpu.$$table \
			|| failed=yes; \
	done; test -z "$$failed"

slurm:  ## a job of the kind tpu in a real Slurm on this machine, preempted (six minutes, as root)
	@$(UV) $(GROW) hooks/link.py tpu
	@$(UV) run python tests/slurm/requeue.py

lint:  ## formatter, linter and type checker
	$(UV) run ruff format --check .
	$(UV) run ruff check .
	$(UV) run mypy

docs:  ## build build/docs/index.html; a warning is an error
	$(UV) run sphinx-build -W --keep-going -q -b html docs build/docs

link:  ## build/link/KIND: a working project whose files are links to templates/
	@$(UV) $(GROW) hooks/link.py $(KIND)

clean:  ## remove build/ (demo, links, docs)
	rm -rf build

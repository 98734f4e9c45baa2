# `make demo` and `make test` set up everything they need in .venv. Only what is imported is compiled
# to bytecode: all that pip installs takes a minute.
PYTHON ?= python3
BIN := .venv/bin

demo: .venv/demo-ready
	$(BIN)/interp-patch --ckpt checkpoints/demo
	$(BIN)/interp-analyse report --ckpt checkpoints/demo

test: .venv/test-ready
	$(BIN)/ruff check interp analyses tests benchmarks
	$(BIN)/pytest

docs: .venv/docs-ready
	$(BIN)/mkdocs build --strict

# Style, types of the public API, and the tests with the share of the code that they run.
check: .venv/check-ready
	$(BIN)/ruff check interp analyses tests benchmarks
	$(BIN)/ruff format --check interp analyses tests benchmarks
	$(BIN)/mypy
	$(MAKE) coverage

# That share alone. What tests run in processes of their own, such as full disks, is not counted.
coverage: .venv/check-ready
	$(BIN)/pytest --cov

bench: .venv/bench-ready
	$(BIN)/python -m benchmarks.training
	$(BIN)/python -m benchmarks.patching
	$(BIN)/python -m benchmarks.attribution
	$(BIN)/python -m benchmarks.limits
	$(BIN)/python -m benchmarks.commands
	$(BIN)/python -m benchmarks.audit_speed
	$(BIN)/python -m benchmarks.planted

.venv/demo-ready: setup.cfg pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --no-compile --disable-pip-version-check --constraint constraints.txt --editable .
	$(BIN)/python -c "import analyses.report.one_page, interp.report.patching_page"
	touch $@

.venv/test-ready: .venv/demo-ready
	$(BIN)/pip install --quiet --no-compile --disable-pip-version-check --constraint constraints.txt --editable ".[test]"
	touch $@

.venv/docs-ready: .venv/demo-ready
	$(BIN)/pip install --quiet --no-compile --disable-pip-version-check --constraint constraints.txt --editable ".[docs]"
	touch $@

.venv/check-ready: .venv/test-ready
	$(BIN)/pip install --quiet --no-compile --disable-pip-version-check --constraint constraints.txt --editable ".[check]"
	touch $@

.venv/bench-ready: .venv/demo-ready
	$(BIN)/pip install --quiet --no-compile --disable-pip-version-check --constraint constraints.txt --editable ".[bench]"
	touch $@

.PHONY: demo test check coverage docs bench

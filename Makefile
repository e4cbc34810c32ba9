# The usual tasks of working on filterscope. `make` alone lists them.
.DEFAULT_GOAL := help
.PHONY: help setup check test docs lowest

help:  ## list the targets
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/'

setup:  ## install filterscope with everything for development, and the pre-commit hooks
	pip install -e ".[dev,docs]"
	pre-commit install

check:  ## style, format and types
	ruff check .
	ruff format --check .
	mypy

test:  ## the whole test suite
	pytest

docs:  ## build the documentation site into site/, strictly
	NO_MKDOCS_2_WARNING=1 mkdocs build --strict

lowest:  ## the whole test suite with the oldest versions that pyproject.toml allows, in a new environment
	uv venv --clear build/lowest
	uv pip install --python build/lowest --resolution lowest-direct ".[dev]"
	build/lowest/bin/python -m pytest -o filterwarnings=default

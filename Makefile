# The usual tasks of working on filterscope. `make` alone lists them.
.DEFAULT_GOAL := help
.PHONY: help setup check test demo docs lowest

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

demo: build/demo/gallery/index.html  ## train the demo and draw the gallery that the documentation shows, once

build/demo/gallery/index.html:
	rm -rf build/demo
	python train.py hydra.run.dir=build/demo visuals=[default,gallery] visuals.gallery.quality=draft \
	  visuals.gallery.layers=[block1_conv1,block2_conv1,block3_conv3] visuals.gallery.title=demo visuals.gallery.max_megabytes=25

docs: demo  ## build the documentation site into site/, strictly, with the gallery of the demo
	NO_MKDOCS_2_WARNING=1 mkdocs build --strict

lowest:  ## the whole test suite with the oldest versions that pyproject.toml allows, in a new environment
	uv venv --clear build/lowest
	uv pip install --python build/lowest --resolution lowest-direct ".[dev]"
	build/lowest/bin/python -m pytest -o filterwarnings=default

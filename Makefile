# The usual tasks of working on filterscope. `make` alone lists them.
.DEFAULT_GOAL := help
.PHONY: help setup check test demo docs pictures lowest

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

demo: build/demo_gallery/gallery/index.html  ## train the demo and draw the gallery that the documentation shows, once

build/demo/README.md:
	rm -rf build/demo
	python train.py hydra.run.dir=build/demo

build/demo_gallery/gallery/index.html: build/demo/README.md
	rm -rf build/demo_gallery
	python visualize.py ckpt=build/demo/checkpoints/last.ckpt hydra.run.dir=build/demo_gallery visuals=gallery

docs: demo  ## build the documentation site into site/, strictly, with the gallery of the demo
	NO_MKDOCS_2_WARNING=1 mkdocs build --strict

build/sweep/runs.csv:
	rm -rf build/sweep
	python train.py -m hydra.sweep.dir=build/sweep finetune.lr=0.0001,0.0002,0.0004,0.0008,0.0016 \
	  trainer.max_epochs=3 data.num_train=500 visuals=[health,history]

build/compared/gallery/index.html: build/sweep/runs.csv
	rm -rf build/compared
	python visualize.py runs=build/sweep hydra.run.dir=build/compared visuals=gallery visuals.gallery.quality=draft \
	  visuals.gallery.layers=[block1_conv1]

pictures: demo build/compared/gallery/index.html  ## draw the pictures of README.md and docs/gallery.md anew, from real runs
	python docs/make_readme_images.py build/demo
	python docs/make_gallery_pictures.py build/demo_gallery/gallery build/compared/gallery build/demo

lowest:  ## the whole test suite with the oldest versions that pyproject.toml allows, in a new environment
	uv venv --clear build/lowest
	uv pip install --python build/lowest --resolution lowest-direct ".[dev]"
	build/lowest/bin/python -m pytest -o filterwarnings=default

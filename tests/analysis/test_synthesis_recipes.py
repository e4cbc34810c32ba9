from dataclasses import fields
from pathlib import Path

import pytest
from hydra.errors import MissingConfigException
from hydra.utils import instantiate
from omegaconf import OmegaConf

from filterscope.analysis.synthesis import Recipe

FOLDER = Path(__file__).parents[2] / "conf" / "recipe"
NAMES = sorted(file.stem for file in FOLDER.glob("*.yaml") if file.stem != "_base")


def test_the_base_file_has_every_option_in_order_and_the_default_values():
    content = OmegaConf.load(FOLDER / "_base.yaml")
    assert list(content) == ["_target_", *(field.name for field in fields(Recipe))]
    assert instantiate(content, _convert_="all") == Recipe()


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_file_has_every_option_and_builds(name, composed):
    content = composed(f"recipe={name}")["recipe"]
    assert list(content) == ["_target_", *(field.name for field in fields(Recipe))]
    recipe = instantiate({**content, "size": content["size"] or 128}, _convert_="all")
    assert (recipe == Recipe()) is (name == "natural")


@pytest.mark.parametrize("script", ["train", "visualize"])
def test_an_unknown_recipe_is_refused(script, composed):
    with pytest.raises(MissingConfigException, match="recipe/nonsense"):
        composed("recipe=nonsense", config=script)

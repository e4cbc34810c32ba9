from dataclasses import fields
from pathlib import Path

import pytest
from hydra.errors import MissingConfigException
from hydra.utils import instantiate
from omegaconf import OmegaConf

from filterscope.analysis.synthesis import Recipe

FILES = sorted((Path(__file__).parents[2] / "conf" / "recipe").glob("*.yaml"))


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_recipe_file_holds_every_knob_in_order_and_builds(file):
    content = OmegaConf.load(file)
    assert list(content) == ["_target_", *(field.name for field in fields(Recipe))]
    assert isinstance(instantiate(content, _convert_="all"), Recipe)


def test_the_specific_recipe_is_what_a_recipe_is_by_default():
    specific = instantiate(OmegaConf.load(next(file for file in FILES if file.stem == "specific")), _convert_="all")
    assert specific == Recipe()


@pytest.mark.parametrize("script", ["train", "visualize"])
def test_an_unknown_recipe_is_refused(script, composed):
    with pytest.raises(MissingConfigException, match="recipe/nonsense"):
        composed("recipe=nonsense", config=script)

"""A network of one's own is trained, resumed and drawn if its user names it, and never because a file names it."""

import sys

import pytest
import yaml
from train import train
from visualize import visualize

from filterscope.cli.resume_arguments import check_stored_config
from filterscope.config import from_checkpoint
from filterscope.errors import UserError
from filterscope.registry import _registered
from tiny import TINY

CODE = """
from torch import nn

def net(num_classes, width=4):
    convolutions = nn.Sequential(nn.Conv2d(3, width, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(width, 8, 3), nn.ReLU())
    return nn.Sequential(convolutions, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, num_classes))

def text(num_classes):
    return "no network"
"""
OWN = (*(each for each in TINY if not each.startswith("model")), "model=callable", "trainer.max_epochs=1")


@pytest.fixture
def own(tmp_path, monkeypatch):
    (tmp_path / "own_net.py").write_text(CODE)
    monkeypatch.syspath_prepend(tmp_path)
    yield "model.path=own_net.net"
    sys.modules.pop("own_net", None)
    _registered["model"].pop("own_net.net", None)
    _registered["model"].pop("own_net.text", None)


def test_an_own_network_is_trained_and_drawn_if_it_is_named(own, composed, tmp_path):
    train(composed(*OWN, own, "+model.options.width=6", "visuals=filters", "head=replace"), tmp_path / "run")
    _registered["model"].pop("own_net.net")
    with pytest.raises(UserError, match=r"model\.path='own_net\.net' is not registered"):
        from_checkpoint.load(tmp_path / "run")
    looked = composed(f"ckpt={tmp_path / 'run'}", "model=callable", own, "visuals=filters", config="visualize")
    assert visualize(looked, tmp_path / "look") == ["filters/block1_conv1", "filters/block2_conv1"]
    assert from_checkpoint.load(tmp_path / "run").backbone.network[0][0].out_channels == 6


def test_a_stored_config_does_not_choose_what_is_imported(tmp_path):
    (tmp_path / ".hydra").mkdir()
    content = {"data": {}, "trainer": {}, "callbacks": {}, "model": {"path": "os.system"}}
    (tmp_path / ".hydra" / "config.yaml").write_text(yaml.safe_dump(content))
    with pytest.raises(UserError, match=r"config\.model\.path='os\.system' is not registered"):
        check_stored_config(tmp_path)


@pytest.mark.usefixtures("own")
@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("own_net.nowhere", "cannot be imported"),
        ("nowhere.net", "cannot be imported"),
        ("own_net.text", "returned a str, not a torch.nn.Module"),
    ],
)
def test_a_wrong_path_is_one_line(path, message, composed, tmp_path):
    with pytest.raises(UserError, match=message) as caught:
        train(composed(*OWN, f"model.path={path}", "visuals=none"), tmp_path / "run")
    assert "\n" not in str(caught.value)

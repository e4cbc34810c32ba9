import pytest
import torch
from torch import nn

from filterscope.errors import UserError
from filterscope.models import heads
from filterscope.models.backbone import Backbone, small_cnn_backbone
from filterscope.models.classifier import Classifier
from filterscope.training.policies import Full, Gradual, LastBlocks, LinearProbe, Policy


def classifier(weights: str | None = None) -> Classifier:
    return heads.replace(small_cnn_backbone(weights=weights), num_classes=7)


@pytest.mark.parametrize("policy", [Full(), Gradual(release_epoch=2)])
def test_every_parameter_is_in_exactly_one_group(policy: Policy) -> None:
    network = classifier()
    grouped = [id(p) for group in policy.groups(network, 1e-3, 0.1) for p in group["params"]]
    assert sorted(grouped) == sorted(id(p) for p in network.parameters())


def test_linear_probe_gives_only_the_head_to_the_optimizer() -> None:
    network = classifier()
    policy = LinearProbe()
    policy.freeze(network)
    grouped = {id(p) for group in policy.groups(network, 1e-3, 0.0) for p in group["params"]}
    assert grouped == {id(p) for p in network.head.parameters()}
    assert {name for name, p in network.named_parameters() if p.requires_grad} == {"head.weight", "head.bias"}


def test_linear_probe_refuses_layers_that_the_weights_file_does_not_hold(tmp_path) -> None:
    torch.save({"conv1.weight": torch.zeros(10, 1, 3, 3)}, tmp_path / "part.pt")
    with pytest.raises(UserError, match=r"conv2.*head=linear"):
        LinearProbe().freeze(classifier(str(tmp_path / "part.pt")))


def test_linear_probe_needs_a_linear() -> None:
    network = classifier()
    network.head = nn.Identity()
    with pytest.raises(UserError, match="needs a Linear"):
        LinearProbe().freeze(network)


def test_gradual_needs_a_head_to_train_first() -> None:
    network = classifier()
    network.head = nn.Identity()
    with pytest.raises(UserError, match="gradual trains the head alone before epoch 2, but small_cnn has none here"):
        Gradual(release_epoch=2).freeze(network)
    Gradual(release_epoch=0).freeze(network)


def test_last_blocks_of_a_network_with_one_block_is_refused() -> None:
    parts = [nn.Conv2d(3, 4, 3), nn.MaxPool2d(2), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)]
    network = heads.replace(Backbone(nn.Sequential(*parts), name="small", mean=[0] * 3, std=[1] * 3), num_classes=3)
    with pytest.raises(UserError, match="small has one block, which cannot be trained in parts"):
        LastBlocks(blocks=1).freeze(network)


def test_pretrained_backbones_learn_at_a_tenth_of_the_heads_rate(tmp_path) -> None:
    torch.save(small_cnn_backbone().network.state_dict(), tmp_path / "whole.pt")
    groups = {group["name"]: group for group in Full().groups(classifier(str(tmp_path / "whole.pt")), 1e-3, 0.1)}
    assert groups["head"]["lr"] == 1e-3
    assert groups["backbone"]["lr"] == groups["first_layer"]["lr"] == pytest.approx(1e-4)
    assert groups["first_layer"]["weight_decay"] == 0.1


def test_first_layer_from_random_weights_learns_ten_times_as_fast_and_forgets_its_noise() -> None:
    groups = {group["name"]: group for group in Full().groups(classifier(), 1e-3, 0.1)}
    assert groups["backbone"]["lr"] == 1e-3
    assert groups["first_layer"]["lr"] == pytest.approx(1e-2)
    assert groups["first_layer"]["weight_decay"] == 4.0


def test_biases_are_not_decayed() -> None:
    for group in Full().groups(classifier(), 1e-3, 0.1):
        if any(p.ndim == 1 for p in group["params"]):
            assert group["weight_decay"] == 0.0


def test_gradual_releases_the_backbone_at_its_epoch() -> None:
    policy = Gradual(release_epoch=2)
    assert [policy.trains_backbone(epoch) for epoch in range(4)] == [False, False, True, True]

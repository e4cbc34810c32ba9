"""Weights files are read safely, and loaded exactly or refused in one line."""

import argparse
import contextlib
import logging
import os
import pathlib
import random

import pytest
import torch
import torchvision
from safetensors.torch import save_file

from filterscope.errors import UserError
from filterscope.models import heads
from filterscope.models.backbone import SmallCNN, small_cnn_backbone, torchvision_backbone
from filterscope.models.weights import on_meta_device, read_weights

SMALL = "squeezenet1_1"  # 5 MB


def saved(content: object, file: pathlib.Path) -> str:
    torch.save(content, file)
    return str(file)


def published(name: str, **options: object) -> torch.nn.Module:
    torch.manual_seed(1)
    return torchvision.models.get_model(name, weights=None, **options)


@pytest.fixture(scope="module")
def alexnet_features(tmp_path_factory: pytest.TempPathFactory) -> str:
    state = published("alexnet").state_dict()
    part = {key: tensor for key, tensor in state.items() if key.startswith("features.")}
    return saved(part, tmp_path_factory.mktemp("weights") / "alexnet_features.pth")


def test_a_whole_state_dict_is_loaded_exactly_and_nothing_is_missing(tmp_path):
    expected = published("mobilenet_v3_small").state_dict()
    backbone = torchvision_backbone(name="mobilenet_v3_small", weights=saved(expected, tmp_path / "w.pth"))
    state = backbone.network.state_dict()
    assert state.keys() == expected.keys()
    assert all(torch.equal(state[key], expected[key]) for key in expected)
    assert all(parameter.requires_grad for parameter in backbone.parameters())
    assert backbone.pretrained
    assert backbone.missing == ()


@pytest.mark.parametrize("name", ["mnasnet0_5", "regnet_x_400mf"])
def test_networks_with_buffers_and_versions_load_whole(name, tmp_path):
    network = published(name).eval()
    backbone = torchvision_backbone(name=name, weights=saved(network.state_dict(), tmp_path / "w.pth")).eval()
    images = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(backbone.network(images), network(images))


def test_googlenet_loads_its_published_file_without_the_auxiliary_classifiers(tmp_path):
    # Built as torchvision builds the published one: with auxiliary classifiers and its own change of normalisation.
    network = published("googlenet", init_weights=False, transform_input=True).eval()
    backbone = torchvision_backbone(name="googlenet", weights=saved(network.state_dict(), tmp_path / "w.pth")).eval()
    images = torch.rand(1, 3, 96, 96)
    with torch.no_grad():
        assert torch.equal(backbone.network(images), network(images))


def test_densenet_loads_weights_with_the_published_names(tmp_path):
    network = published("densenet121")
    parts = ("norm", "conv")
    old = {
        ".".join(f"{p[:-1]}.{p[-1]}" if "denselayer" in key and p[:-1] in parts else p for p in key.split(".")): tensor
        for key, tensor in network.state_dict().items()
    }
    assert "features.denseblock1.denselayer1.norm.1.weight" in old
    backbone = torchvision_backbone(name="densenet121", weights=saved(old, tmp_path / "w.pth"))
    state = backbone.network.state_dict()
    assert all(torch.equal(tensor, state[key]) for key, tensor in network.state_dict().items())


def test_convolutional_weights_are_loaded_and_one_log_line_names_the_missing_layers(alexnet_features, caplog):
    with caplog.at_level(logging.INFO, "filterscope"):
        backbone = torchvision_backbone(name="alexnet", weights=alexnet_features)
    assert caplog.messages == [
        f"{alexnet_features}: does not hold classifier.1, classifier.4, classifier.6: random, if these layers are kept"
    ]
    expected = torch.load(alexnet_features, weights_only=True)
    assert all(torch.equal(tensor, backbone.network.state_dict()[key]) for key, tensor in expected.items())
    assert len(backbone.missing) == 6


def test_heads_refuse_to_keep_random_layers(alexnet_features):
    def backbone(**options):
        return torchvision_backbone(name="alexnet", weights=alexnet_features, **options)

    partial_weights = backbone()
    for head in (heads.append, heads.keep):
        with pytest.raises(UserError, match=r"not hold \(classifier.1, classifier.4, classifier.6\); use head=linear"):
            head(partial_weights, num_classes=1000)
    # The last layer is thrown away, so only the two before it matter.
    assert heads.replace(partial_weights, num_classes=7).untrained == ("classifier.1", "classifier.4")
    assert heads.linear(backbone(), num_classes=7).untrained == ()
    allowed = heads.append(backbone(allow_random=True), num_classes=7)
    assert allowed.untrained == ("classifier.1", "classifier.4", "classifier.6")


def test_random_weights_on_request_do_not_count_as_missing():
    with on_meta_device():
        classifier = heads.append(torchvision_backbone(name="alexnet", weights=None), num_classes=7)
    assert classifier.untrained == ()
    assert not classifier.backbone.pretrained


def test_the_weights_file_sets_the_number_of_classes(tmp_path):
    file = saved(published("resnet18", num_classes=5).state_dict(), tmp_path / "w.pth")
    kept = heads.keep(torchvision_backbone(name="resnet18", weights=file), num_classes=5)
    assert kept.head.out_features == kept.num_classes == 5
    assert heads.replace(torchvision_backbone(name="resnet18", weights=file), num_classes=7).head.out_features == 7
    assert heads.append(torchvision_backbone(name="resnet18", weights=file), num_classes=7).head.in_features == 5
    with pytest.raises(UserError, match="head=keep outputs the 5 classes of resnet18, the data has 7"):
        heads.keep(torchvision_backbone(name="resnet18", weights=file), num_classes=7)


def test_num_classes_sets_the_classes_of_a_random_network():
    with on_meta_device():
        backbone = torchvision_backbone(name="resnet18", weights=None, num_classes=5)
    assert heads.keep(backbone, num_classes=5).num_classes == 5


def test_the_weights_file_sets_the_classes_of_squeezenet(tmp_path):
    file = saved(published(SMALL, num_classes=5).state_dict(), tmp_path / "w.pth")
    assert heads.keep(torchvision_backbone(name=SMALL, weights=file)).num_classes == 5


def test_an_exported_state_dict_loads_with_head_keep(tmp_path):
    first = heads.replace(torchvision_backbone(name="resnet18", weights=None), num_classes=4).eval()
    file = saved(first.export_state_dict(), tmp_path / "w.pth")
    second = heads.keep(torchvision_backbone(name="resnet18", weights=file), num_classes=4).eval()
    images = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(first(images), second(images))


def test_the_weights_file_sets_the_classes_of_small_cnn(tmp_path):
    file = saved(SmallCNN(num_classes=4).state_dict(), tmp_path / "w.pt")
    assert heads.keep(small_cnn_backbone(weights=file), num_classes=4).num_classes == 4


def test_small_cnn_weights_for_another_image_size_are_refused(tmp_path):
    file = saved(SmallCNN(image_size=28).state_dict(), tmp_path / "w.pt")
    with pytest.raises(UserError, match=r"not for small_cnn for images of 64×64 pixels: fc1.weight is \(50, 500\)"):
        small_cnn_backbone(weights=file, image_size=64)


def test_half_precision_weights_become_float32(tmp_path):
    state = {key: tensor.half() for key, tensor in published(SMALL).state_dict().items()}
    backbone = torchvision_backbone(name=SMALL, weights=saved(state, tmp_path / "w.pth"))
    assert {parameter.dtype for parameter in backbone.parameters()} == {torch.float32}


class Harmful:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, ("harm-done",)


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ({}, "does not hold a state dict (names and tensors) but nothing"),
        ([torch.zeros(3)], "lists 1 weight tensors, squeezenet1_1 has 26 convolutions"),
        ([torch.zeros(3), 3], "but a list"),
        (torch.zeros(3), "but a Tensor"),
        ({"epoch": 3, "features.0.weight": torch.zeros(3)}, "but a dict of 2 entries that are not all tensors"),
        ({"conv1.weight": torch.zeros(64, 3, 7, 7)}, "not for squeezenet1_1: it holds 'conv1.weight'"),
        ({"features.0.weight": torch.zeros(64, 3, 7, 7)}, "features.0.weight is (64, 3, 7, 7) there and (64, 3, 3, 3)"),
        ({"classifier.1.weight": torch.zeros(())}, "classifier.1.weight is () there"),
        ({"features.0.weight": Harmful()}, "is not a readable weights file"),
    ],
)
def test_files_for_other_networks_are_refused_in_one_line(content, complaint, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as caught:
        torchvision_backbone(name=SMALL, weights=saved(content, tmp_path / "w.pth"))
    assert complaint in str(caught.value)
    assert str(tmp_path / "w.pth") in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "harm-done").exists()


@pytest.mark.parametrize("kept", [0, 10, 0.5, 0.99])
def test_a_truncated_file_is_refused_in_one_line(kept, tmp_path):
    file = tmp_path / "w.pth"
    torch.save(published(SMALL).state_dict(), file)
    whole = file.read_bytes()
    file.write_bytes(whole[: int(kept * len(whole)) if isinstance(kept, float) else kept])
    with pytest.raises(UserError, match="is not a readable weights file: ") as caught:
        torchvision_backbone(name=SMALL, weights=str(file))
    assert "\n" not in str(caught.value)


def test_any_damaged_file_is_reported_as_unreadable(tmp_path):
    file = tmp_path / "w.pth"
    chance = random.Random(0)
    for old_format in (True, False):
        torch.save({"a.weight": torch.randn(3, 4)}, file, _use_new_zipfile_serialization=not old_format)
        whole = file.read_bytes()
        for _ in range(300):
            damaged = bytearray(whole)
            for _ in range(chance.choice([1, 8])):
                damaged[chance.randrange(min(len(whole), 600))] = chance.randrange(256)
            file.write_bytes(damaged)
            with contextlib.suppress(UserError):
                read_weights(file)


def test_a_text_file_a_folder_and_a_missing_file_are_refused(tmp_path):
    (tmp_path / "w.txt").write_text("these are no weights\n")
    with pytest.raises(UserError, match="is not a readable weights file"):
        read_weights(tmp_path / "w.txt")
    for path in (tmp_path, tmp_path / "nowhere.pth"):
        with pytest.raises(UserError, match=r"no file at .*; give imagenet, the path of a state dict, a run"):
            read_weights(path)


@pytest.mark.real
@pytest.mark.parametrize("name", ["alexnet", "vgg16"])
def test_the_real_convolutional_weights_are_loaded(name, real, caplog):
    file = real / "weights" / f"{name}_features.pth"
    with caplog.at_level(logging.INFO, "filterscope"):
        backbone = torchvision_backbone(name=name, weights=str(file))
    assert len(caplog.messages) == 1
    assert torch.equal(backbone.network.features[0].weight, read_weights(file)[0]["features.0.weight"])
    assert heads.linear(backbone, num_classes=7).untrained == ()


@pytest.mark.real
def test_the_notebook_s_own_state_dict_is_loaded_whole(real):
    classifier = heads.keep(small_cnn_backbone(weights=str(real / "weights" / "fashion_net_ex.pt")), num_classes=10)
    own, _ = read_weights(real / "weights" / "fashion_net_ex.pt")
    assert classifier.backbone.missing == ()
    assert torch.equal(classifier.head.weight, own["fc2.weight"])


def test_the_network_of_a_run_folder_is_loaded_exactly(tmp_path):
    state = small_cnn_backbone().state_dict()
    run = {f"classifier.backbone.{key}": tensor for key, tensor in state.items()} | {
        "classifier.head.weight": state["mean"]
    }
    (tmp_path / "checkpoints").mkdir()
    torch.save({"state_dict": run, "filterscope": {"config": {}}}, tmp_path / "checkpoints" / "best.ckpt")
    loaded = small_cnn_backbone(weights=str(tmp_path))
    assert loaded.missing == ()
    assert all(torch.equal(state[name], tensor) for name, tensor in loaded.state_dict().items())


def test_a_folder_without_a_checkpoint_is_a_clear_error(tmp_path):
    with pytest.raises(
        UserError, match=r"no file at .*best\.ckpt; give imagenet, the path of a state dict, a run folder"
    ):
        small_cnn_backbone(weights=str(tmp_path))


def of_lightning(state):
    return {"state_dict": {f"net.{key}": t for key, t in state.items()} | {"loss.weight": torch.ones(3)}, "epoch": 2}


CONTAINERS = {
    "of nn.DataParallel": lambda state: {f"module.{key}": tensor for key, tensor in state.items()},
    "of torch.compile and DDP": lambda state: {f"_orig_mod.module.{key}": tensor for key, tensor in state.items()},
    "of a compiled module inside": lambda state: {
        f"model.{k}".replace("fc", "_orig_mod.fc"): t for k, t in state.items()
    },
    "of a Lightning module with another part": of_lightning,
    "of a course": lambda state: {"arch": "small", "model_state_dict": state, "class_to_idx": {"a": 0}},
    "of timm, with arguments": lambda state: {"state_dict": state, "args": argparse.Namespace(lr=0.1), "epoch": 3},
    "of torchvision, with an average": lambda state: {
        "model": {key: torch.zeros_like(tensor) for key, tensor in state.items()},
        "model_ema": {"n_averaged": torch.tensor(9)} | {f"module.{key}": tensor for key, tensor in state.items()},
    },
    "in half precision": lambda state: {key: tensor.half() for key, tensor in state.items()},
}


@pytest.mark.parametrize("kind", CONTAINERS)
def test_checkpoints_of_other_programs_load_to_the_same_weights(kind, tmp_path):
    state = {key: tensor.half().float() for key, tensor in SmallCNN().state_dict().items()}
    backbone = small_cnn_backbone(weights=saved(CONTAINERS[kind](state), tmp_path / "w.pth"))
    assert backbone.missing == ()
    assert all(torch.equal(tensor, state[key]) for key, tensor in backbone.network.state_dict().items())


def test_safetensors_load_to_equal_logits(tmp_path):
    network = SmallCNN().eval()
    save_file(
        {"odd": torch.zeros(3)} | {f"net.{k}": t for k, t in network.state_dict().items()}, tmp_path / "w.safetensors"
    )
    loaded = small_cnn_backbone(weights=str(tmp_path / "w.safetensors")).network.eval()
    images = torch.rand(3, 1, 28, 28)
    assert torch.equal(loaded(images), network(images))


def test_one_line_says_what_was_renamed_and_left_out(tmp_path, caplog):
    state = {f"net.{key}": tensor for key, tensor in published("resnet18").state_dict().items() if key[:2] != "fc"}
    state |= {"net.fc.1.weight": torch.zeros(7, 512), "accuracy.total": torch.zeros(())}
    file = saved(state, tmp_path / "w.pth")
    with caplog.at_level(logging.INFO, "filterscope"):
        backbone = torchvision_backbone(name="resnet18", weights=file)
    assert caplog.messages == [
        f"{file}: names without 'net.', 1 tensors of other parts left out; fc.1 left out, of another classifier; "
        "does not hold fc: random, if these layers are kept"
    ]
    assert backbone.missing == ("fc.weight", "fc.bias")


def test_the_convolutional_part_alone_gets_the_names_of_the_network(tmp_path):
    features = published("mobilenet_v3_small").features
    file = saved(features.state_dict(), tmp_path / "w.pth")
    own = torchvision_backbone(name="mobilenet_v3_small", weights=file).network.features.state_dict()
    assert all(torch.equal(own[key], tensor) for key, tensor in features.state_dict().items())

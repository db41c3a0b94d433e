"""What changes with the share of the run that is done."""

import math

import pytest
import torch
from torch.testing import assert_close

from flowmaps.errors import RecipeError
from flowmaps.learn.ramps import Count, Decay, Ramp, Sigmoid, stage


def test_ramp() -> None:
    ramp = Ramp(0.2, 1.4, begin=0.25, end=0.75)
    for progress, value in (
        (0.0, 0.2),
        (0.25, 0.2),
        (0.35, 0.44),
        (0.6, 1.04),
        (0.75, 1.4),
        (1.0, 1.4),
    ):
        assert_close(ramp(torch.tensor(progress)), torch.tensor(value), rtol=1e-6, atol=0)
    closer = ramp.finer(4)
    for progress in (0.0, 0.4, 0.6, 1.0):
        p = torch.tensor(progress)
        assert_close(1 - closer(p), (1 - ramp(p)) / 4, rtol=1e-5, atol=1e-7)
    for begin, end in ((0.5, 0.5), (-0.1, 1.0), (0.0, 1.1)):
        with pytest.raises(RecipeError, match="Ramp needs 0 <= begin < end <= 1"):
            Ramp(0.0, 1.0, begin, end)


def test_the_ramp_of_alpha_flow() -> None:
    ramp = Sigmoid()
    assert [float(ramp(torch.tensor(p))) for p in (0.0, 0.28, 0.5, 0.72, 1.0)] == pytest.approx(
        [1.0, 1.0, 0.5, 0.0, 0.0]
    )
    assert float(ramp(torch.tensor(0.45))) == pytest.approx(1 - 1 / (1 + math.exp(25 * 0.05)))
    late = Sigmoid(begin=0.5, end=1.0)
    assert float(late(torch.tensor(0.75))) == pytest.approx(0.5)
    assert float(late(torch.tensor(0.3))) == 1.0


def test_decay_is_geometric() -> None:
    decay = Decay(0.1, 0.002)
    assert float(decay(torch.tensor(0.25))) == pytest.approx(0.1 * 0.02**0.25)
    with pytest.raises(RecipeError, match="0 < stop <= start"):
        Decay(0.1, 0.2)


@pytest.mark.parametrize("stages", range(1, 80))
def test_stages_change_exactly_when_the_teacher_does(stages) -> None:
    """`Recipe.refresh` is i / stages: also where i / stages * stages falls short of i."""
    assert [stage(i / stages, stages) for i in range(stages)] == list(range(stages))
    assert stage(1.0, stages) == stages - 1


def test_curriculum_of_counts() -> None:
    """iCT: 10 steps, doubled in eight equal stages to 1280. CT: 2 points to 150 + 1, by the square root."""
    ict = Count(10, 1280)
    stages = [ict(i / 8 + 1e-6) for i in range(8)]
    assert stages == [11, 21, 41, 81, 161, 321, 641, 1281]
    assert ict(0.124) == 11
    assert ict(1.0) == 1281
    ct = Count(2, 150, "sqrt")
    assert (ct(0.0), ct(1.0)) == (2, 151)
    half = math.ceil(math.sqrt(0.5 * (151**2 - 4) + 4) - 1) + 1
    assert ct(0.5) == half
    with pytest.raises(RecipeError, match="1 <= start <= stop"):
        Count(4, 3)


def test_counts_double_where_a_stage_begins() -> None:
    """Of 7 stages: k / 7 of the run, which times 7 may fall short of k by rounding, belongs to stage k."""
    count = Count(3, 3 * 2**6)
    assert [count(k / 7) for k in range(8)] == [3 * 2 ** min(k, 6) + 1 for k in range(8)]
    assert [count((k + 0.99) / 7) for k in range(7)] == [3 * 2**k + 1 for k in range(7)]

"""The one broadcast: a time per row, never per column, also where a batch is as large as an image is wide."""

import pytest
import torch

from flowmaps.core.shape import as_time, like, spread
from flowmaps.errors import ShapeError


def test_time_goes_with_rows_when_batch_equals_width() -> None:
    x = torch.zeros(5, 3, 5, 5)
    t = torch.tensor([0.1, 0.23, 0.37, 0.61, 0.89])
    times = (like(t, x) + x).flatten(1)
    assert torch.equal(times, t[:, None].expand(5, 75))


def test_scalar_time_broadcasts_and_owns_its_memory() -> None:
    x = torch.zeros(5, 7)
    assert like(torch.tensor(0.3), x).ndim == 0
    rows = as_time(torch.tensor(0.3), x)
    assert rows.shape == (5,)
    assert rows.stride() == (1,)  # not expanded: forward-mode AD refuses shared memory
    assert torch.equal(rows, torch.full((5,), 0.3))


@pytest.mark.parametrize(
    ("x", "t", "expected"),
    [
        (torch.float64, 0.3, torch.float64),
        (torch.float32, 0.3, torch.float32),
        (torch.bfloat16, 0.3, torch.float32),
        (torch.bfloat16, torch.tensor(0.3, dtype=torch.bfloat16), torch.float32),
        (torch.float32, torch.tensor(0.3, dtype=torch.float64), torch.float64),
        (torch.float64, torch.tensor(1), torch.float64),
    ],
)
def test_times_are_wide(x, t, expected) -> None:
    assert as_time(t, torch.zeros(5, 3, dtype=x)).dtype == expected


@pytest.mark.parametrize(
    "bad", [torch.zeros(7), torch.zeros(1), torch.zeros(5, 1), torch.zeros(5, 7)]
)
@pytest.mark.parametrize("function", [like, as_time])
def test_other_shapes_are_refused(function, bad) -> None:
    with pytest.raises(
        ShapeError, match=r"time must have shape \(\) or \(5,\) for x \(5, 7\); got"
    ):
        function(bad, torch.zeros(5, 7))


def test_one_row_or_a_number_for_all() -> None:
    x = torch.zeros(3, 8)
    row = torch.tensor([[0.1, 0.2], [0.3, 0.4]])
    assert torch.equal(spread(row, x), torch.stack([row] * 3))
    assert torch.equal(spread(7, x), torch.tensor([7, 7, 7]))
    assert spread(row, x).is_contiguous()

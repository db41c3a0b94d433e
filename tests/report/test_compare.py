import json
from typing import Any

import pytest
import torch
from torch import Generator, Tensor

from flowmaps.core import oracle
from flowmaps.core.flow_map import FlowMap
from flowmaps.core.interpolant import linear
from flowmaps.errors import ShapeError
from flowmaps.metrics import frechet
from flowmaps.report import Row, compare, compare_figure, compare_table, png_bytes

WORLD = oracle.Gaussian(torch.tensor([0.7, -1.0]), torch.tensor([0.3, 1.6]), linear())


class Counting(FlowMap):
    """The exact map, counting its calls and their rows."""

    def __init__(self) -> None:
        super().__init__()
        self.interpolant, self.rows = WORLD.interpolant, list[int]()

    def mean_velocity(self, x: Tensor, s: Tensor, t: Tensor, **cond: Any) -> Tensor:
        self.rows.append(len(x))
        if cond:
            torch.testing.assert_close(x[:, 0] * 0 + cond["label"], cond["label"])
        return WORLD.flow_map.mean_velocity(x, s, t)


NOISE = torch.randn(11, 2, generator=Generator().manual_seed(1))
DATA = WORLD.sample(200, Generator().manual_seed(2))


@pytest.mark.parametrize(
    ("solver", "calls"), [("euler", 1), ("heun", 2), ("rk4", 4), ("dpm++2m", 1)]
)
def test_nfe_is_what_was_called(solver: str, calls: int):
    jumps, walks = Counting(), Counting()
    rows = compare(jumps, NOISE, DATA, steps=(1, 3), solver=solver, batch=5, local=walks)
    assert [(r.model, r.sampler, r.steps, r.nfe) for r in rows] == [
        ("flow_map", "jump", 1, 1),
        ("flow_map", "jump", 3, 3),
        ("solved", solver, 1, calls),
        ("solved", solver, 3, 3 * calls),
    ]
    # one warm-up step on the first batch, then 1 and 3 steps on batches of 5, 5 and 1
    assert jumps.rows == [5] + [5, 5, 1] + [5] * 6 + [1] * 3
    assert sum(walks.rows) == calls * (5 + 11 * 4)
    assert all(r.seconds > 0 for r in rows)


def test_adaptive_solvers_are_counted_too():
    local = Counting()
    row = compare(local, NOISE, DATA, steps=(1,), solver="dopri5", local=local)[1]
    # the flow map: warm-up and one jump; the solver: warm-up and the walk that counts
    assert row.nfe == (len(local.rows) - 2) / 2 > 5


def test_quality_sees_the_samples_in_order_and_the_default_is_frechet():
    seen: list[Tensor] = []

    def quality(x: Tensor) -> dict[str, float]:
        seen.append(x)
        return {"mean": float(x.mean())}

    label = torch.arange(11.0)
    rows = compare(
        Counting(), NOISE, DATA, steps=(1, 2), batch=4, quality=quality, cond={"label": label}
    )
    end = WORLD.flow_map(NOISE, 1.0, 0.0)
    torch.testing.assert_close(seen[0], end)
    torch.testing.assert_close(seen[1], end)
    assert [row.quality["mean"] for row in rows] == [float(x.mean()) for x in seen]
    plain = compare(WORLD.flow_map, NOISE, DATA, steps=(1,))
    assert plain[0].quality == {"frechet": frechet(end, DATA)}


def test_what_does_not_fit_is_refused():
    with pytest.raises(ShapeError, match=r"solver must be one of euler, .*; got 'huen'"):
        compare(WORLD.flow_map, NOISE, DATA, solver="huen")
    with pytest.raises(ShapeError, match="positive steps and batch"):
        compare(WORLD.flow_map, NOISE, DATA, steps=(0,))
    with pytest.raises(ShapeError, match="label must have one row per noise, 11; got 3"):
        compare(WORLD.flow_map, NOISE, DATA, cond={"label": torch.zeros(3)})


def rows() -> list[Row]:
    return [
        Row("flow_map", "jump", 1, 1.0, 0.01, {"frechet": 0.2, "accuracy": 0.98}),
        Row("solved", "dopri5", 1, 7.5, 0.3, {"frechet": 4.1, "accuracy": 0.4}),
        Row("solved", "dopri5", 2, 14.0, 0.6, {"frechet": 0.25, "accuracy": 0.97}),
    ]


def test_table_and_figure():
    table, dicts = compare_table(rows())
    assert [column.header for column in table.columns] == [
        *("model", "sampler", "steps", "NFE", "frechet", "accuracy", "seconds")
    ]
    assert table.row_count == 3
    assert json.loads(json.dumps(dicts))[0] == {
        "model": "flow_map", "sampler": "jump", "steps": 1, "nfe": 1,
        "frechet": 0.2, "accuracy": 0.98, "seconds": 0.01,
    }  # fmt: skip
    assert isinstance(dicts[0]["nfe"], int)
    assert dicts[1]["nfe"] == 7.5
    figure = compare_figure(rows())
    assert [axes.get_xscale() for axes in figure.get_axes()] == ["log"] * 3
    assert png_bytes(figure) == png_bytes(compare_figure(rows()))

import json
from typing import Any

import pytest
import torch
from torch import Generator, Tensor, nn

from flowmaps.core import oracle
from flowmaps.core.flow_map import FlowMap, NetFlowMap
from flowmaps.core.interpolant import linear, ve
from flowmaps.errors import ShapeError
from flowmaps.report import Audit, audit, audit_figure, png_bytes

WORLD = oracle.Gaussian(torch.tensor([0.7, -1.0, 0.2]), torch.tensor([0.3, 1.6, 0.5]), linear())


class Bent(FlowMap):
    """The exact map, off by a share that grows with the length of the jump."""

    def __init__(self, error: float) -> None:
        super().__init__()
        self.error, self.interpolant = error, WORLD.interpolant

    def mean_velocity(self, x: Tensor, s: Tensor, t: Tensor, **cond: Any) -> Tensor:
        share = 1 + self.error * (s - t).abs() ** 4
        return share[:, None] * WORLD.flow_map.mean_velocity(x, s, t)


def run(flow_map: FlowMap, **options: Any) -> Audit:
    x_0 = WORLD.sample(50, Generator().manual_seed(1)).to(options.pop("dtype", torch.float32))
    return audit(flow_map, x_0, Generator().manual_seed(2), bins=4, per_cell=16, **options)


def test_exact_map_is_found_consistent():
    found = run(WORLD.flow_map, velocity=WORLD.velocity)
    assert found.consistent
    assert found.verdict[0].startswith("consistent: tangent 0, lagrangian ")
    assert len(found.verdict) == 1
    assert found.edges == (0, 0.25, 0.5, 0.75, 1)
    assert max(part["worst"] or 0 for part in found.summary.values()) < 1e-4
    assert found.jvp is not None
    assert found.jvp.agrees
    assert not found.layer_norm
    assert found.hazards == ()


def test_verdict_flips_and_says_which_jumps_are_wrong():
    assert run(Bent(0.01)).consistent
    found = run(Bent(1.0))
    assert not found.consistent
    assert "the map and its own velocity disagree for long jumps (median " in found.verdict[0]
    assert "for s - t > 0.5)" in found.verdict[0]
    assert any(line.startswith("a jump there and back does not return") for line in found.verdict)


def test_wrong_velocity_is_seen_by_tangent_alone():
    found = run(WORLD.flow_map, velocity=lambda x, t: 2 * WORLD.velocity(x, t))
    # every row is off by |v| of rms 2|v|: half on average, the median of rows somewhat below
    assert 0.3 < (found.summary["tangent"]["median"] or 0) < 0.5
    assert found.verdict[0].startswith("the map's own velocity is not the reference's (median 0.")
    assert found.verdict[1].startswith("what holds: lagrangian ")
    assert not found.consistent


def test_cells_fill_the_triangle():
    found = run(WORLD.flow_map, velocity=WORLD.velocity)
    for name, rows in found.cells.items():
        for i, row in enumerate(rows):
            there = [j for j, cell in enumerate(row) if cell is not None]
            assert there == ([i] if name == "tangent" else list(range(i + 1)))


def test_json_round_trip():
    found = run(Bent(1.0))
    tree = found.to_json()
    assert Audit.from_json(json.loads(json.dumps(tree, allow_nan=False))) == found
    assert tree["consistent"] is False


def test_broken_map_gives_finite_json_and_a_verdict():
    class Broken(FlowMap):
        interpolant = linear()

        def mean_velocity(self, x: Tensor, s: Tensor, t: Tensor, **cond: Any) -> Tensor:
            return x * float("nan")

    found = run(Broken())
    assert not found.consistent
    json.dumps(found.to_json()["cells"], allow_nan=False)
    audit_figure(found)


def test_networks_that_cannot_be_trained_are_named():
    norm = nn.LayerNorm(3)
    trapped = run(NetFlowMap(lambda x, s, t: norm(x) * (1 + s - t)[:, None]))
    assert trapped.layer_norm
    assert [hazard.name for hazard in trapped.hazards] == ["layer_norm"]
    assert Audit.from_json(json.loads(json.dumps(trapped.to_json()))) == trapped
    assert "F.layer_norm" in trapped.verdict[-1]
    centres = torch.randn(3, 3, generator=Generator().manual_seed(3))
    reverse = run(NetFlowMap(lambda x, s, t: torch.cdist(x, centres, p=3.0)))
    assert reverse.jvp is None
    assert [hazard.name for hazard in reverse.hazards] == ["forward_mode"]
    assert "no forward-mode derivative" in reverse.verdict[-1]


def test_conditions_travel_with_their_rows_and_paths_with_a_start_are_respected():
    seen: list[Tensor] = []
    world = oracle.Gaussian(WORLD.mean, WORLD.std, ve())

    def net(x: Tensor, s: Tensor, t: Tensor, label: Tensor) -> Tensor:
        seen.append(label)
        assert len(label) == len(x)
        return world.flow_map.mean_velocity(x, s, t)

    x_0 = WORLD.sample(50, Generator().manual_seed(1))
    label = torch.arange(50)
    found = audit(
        NetFlowMap(net, ve()),
        x_0,
        Generator().manual_seed(2),
        bins=2,
        per_cell=7,
        cond={"label": label},
    )
    assert found.consistent
    assert len(torch.cat(seen).unique()) > 10
    with pytest.raises(ShapeError, match="conditions of the same length"):
        audit(NetFlowMap(net), x_0, Generator(), cond={"label": label[:9]})


def test_figure_has_a_panel_per_condition_and_fixed_bytes():
    found = run(Bent(1.0), velocity=WORLD.velocity)
    assert png_bytes(audit_figure(found)) == png_bytes(audit_figure(found))
    titles = [a.get_title(loc="left") for a in audit_figure(found).get_axes()]
    assert titles[:5] == ["Tangent", "Lagrangian", "Eulerian", "Compositional", "Round trip"]

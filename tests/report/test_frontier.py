"""The frontier on a Gaussian, where best-of-N and the tilt are known: rewards, budgets kept, divergences, table and picture."""

import math

import pytest
import torch

from flowmaps.control.rewards import linear
from flowmaps.core.flow_map import SolvedFlowMap
from flowmaps.core.interpolant import linear as path
from flowmaps.core.oracle import Gaussian
from flowmaps.core.solver import HEUN
from flowmaps.errors import ShapeError
from flowmaps.report.frontier import (
    METHODS,
    Contest,
    divergence,
    entrants,
    frontier,
    frontier_figure,
    frontier_table,
    spread,
)

WORLD = Gaussian(torch.tensor([0.4]).double(), torch.tensor([1.7]).double(), path())
REWARD = linear(torch.tensor([0.5], dtype=torch.float64))
WALK = SolvedFlowMap(WORLD.velocity, path(), HEUN, 2)
BUDGETS = (4, 8, 16)


def prior(count: int, generator: torch.Generator) -> torch.Tensor:
    return torch.randn(count, 1, generator=generator, dtype=torch.float64)


@pytest.fixture(scope="module")
def marks():
    contest = Contest(WORLD.flow_map, REWARD, 1.0, prior, n=200)
    field = entrants(contest, {"4-call model": (WALK, 4)})
    assert set(METHODS) < set(field)
    return frontier(field, REWARD, BUDGETS, runs=3, scores=lambda x: {"spread": spread(x)})


def test_best_of_n_is_where_order_statistics_put_it(marks) -> None:
    """The mean of the largest of N normal numbers: 1.0294, 1.4236, 1.7660 for 4, 8, 16; 4 standard errors of 600 samples."""
    for mark in marks:
        if mark.method == "best of N":
            wanted = 0.2 + 0.85 * {4: 1.0294, 8: 1.4236, 16: 1.7660}[mark.budget]
            assert abs(mark.reward - wanted) < 4 * 0.85 * 0.7 / math.sqrt(600)
            assert mark.spent == mark.budget
    walks = {m.budget: m for m in marks if m.method == "best of N, 4-call model"}
    low, high = WALK(torch.tensor([[0.0], [1.0]]).double(), 1.0, 0.0)[:, 0].tolist()
    wanted = 0.5 * (low + (high - low) * 1.0294)  # four walks, each affine in its noise
    assert abs(walks[16].reward - wanted) < 4 * 0.85 * 0.7 / math.sqrt(600)


def test_nobody_spends_more_than_given(marks) -> None:
    assert all(0 < mark.spent <= mark.budget for mark in marks)
    taken = {(mark.method, mark.budget): mark.spent for mark in marks}
    for method, share in {"chain": 1, "tempered": 0.8, "search": 1, "lean, Tweedie": 1}.items():
        assert taken[method, 16] >= share * 15, method
    present = {mark.method for mark in marks if mark.budget == 4}
    assert not present & {"fmtt", "chain", "climb in noise"}
    assert {mark.method for mark in marks} == {*METHODS, "best of N", "best of N, 4-call model"}


def test_weights_and_chains_draw_the_tilt_and_climbs_go_beyond(marks) -> None:
    """E r of the tilt: .5 (.4 + .5 1.7^2) = .9225."""
    last = {mark.method: mark for mark in marks if mark.budget == 16}
    for name in ("tempered", "chain", "smc"):
        assert abs(last[name].reward - 0.9225) < 0.2, name
        assert abs(last[name].scores["spread"] / (1.7 * math.sqrt(2)) - 1) < 0.2
    assert last["climb in noise"].reward > 1.2
    assert 0 < last["chain"].error < 0.1


def test_a_method_that_fails_says_why(marks) -> None:
    """A black box: whoever needs a gradient is refused, and the table does not hide it."""
    contest = Contest(WORLD.flow_map, lambda x: REWARD(x).detach().round(), 1.0, prior, n=4)
    field = {name: each for name, each in entrants(contest).items() if name in ("smc", "fmrg")}
    both = frontier(field, contest.reward, (8,), runs=2)
    notes = {mark.method: mark.note for mark in both}
    assert notes["smc"] == ""
    assert "the reward has none" in notes["fmrg"]
    assert both[1].to_json()["reward"] is None
    assert "| fmrg | optimiser | failed |" in frontier_table(both)
    assert len(frontier_figure(both).axes[0].get_lines()) == 2


def test_divergence_counts_cells(gen) -> None:
    line = torch.linspace(0, 1, 4001, dtype=torch.float64)[:, None]
    assert divergence(line, line) < 1e-4
    assert divergence(line[:1000], line) == pytest.approx(math.log(4), abs=1e-2)
    assert divergence(line**2, line) > 0.05
    draws = torch.randn(2, 2000, 1, generator=gen)
    assert divergence(draws[0], draws[1].repeat(20, 1)) < 0.03
    # half a deviation apart, KL is 1/8; cells of one sixteenth see most of it
    assert 0.09 < divergence(draws[0] + 0.5, torch.randn(200_000, 1, generator=gen)) < 0.15
    with pytest.raises(ShapeError, match="on finite samples of a line"):
        divergence(torch.zeros(3, 2), line)
    assert spread(draws[0]) == pytest.approx(math.sqrt(2), abs=0.06)


def test_table_and_picture(marks) -> None:
    table = frontier_table(marks)
    lines = {line.split(" | ")[0].strip("| "): line for line in table.splitlines()}
    assert lines["method"].count("|") == lines["fmtt"].count("|") == 6
    mark = next(m for m in marks if m.method == "smc" and m.budget == 8)
    assert f"{mark.reward:.3f} (" in lines["smc"]
    assert "in brackets: spread" in table
    figure = frontier_figure(
        marks, of=["spread"], logarithmic=["spread"], levels={"reward": (0.9225, "tilt")}
    )
    left, right = figure.axes
    assert right.get_yscale() == "log"
    drawn = {line.get_label(): line for line in left.get_lines()}
    assert set(drawn) >= set(METHODS)
    own = [m for m in marks if m.method == "smc"]
    assert list(drawn["smc"].get_ydata()) == [m.reward for m in own]
    assert {tuple(line.get_color()) for line in drawn.values()} >= {
        tuple("#0072b2"),
        tuple("#d55e00"),
    }
    assert marks[0].to_json()["method"] == "best of N"

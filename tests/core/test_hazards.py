"""The numerical hazards of methods.md 7: each is met by a mechanism, and each mechanism is seen to be needed."""

import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from flowmaps import recipes
from flowmaps.core.autodiff import Derivative, along_source
from flowmaps.core.flow_map import NetFlowMap
from flowmaps.errors import TrainingError
from flowmaps.learn.masks import random_layers, shared_masks
from flowmaps.learn.objective import Objective, Recipe, Term, shard
from flowmaps.learn.rules import Compositional, Points
from flowmaps.learn.times import SortedPair, Times, Uniform

sys.path.append(str(Path(__file__).parents[1] / "train"))
import train_kit as kit

S = torch.tensor([0.93, 0.81, 0.64, 0.52, 0.37], dtype=torch.float64)
T = torch.tensor([0.21, 0.08, 0.15, 0.77, 0.59], dtype=torch.float64)


# Dropout --------------------------------------------------------------------------------------------------------------


class Dropping(nn.Module):
    """Two layers with dropout between them."""

    def __init__(self, p: float = 0.5, size: int = 3, width: int = 48) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(size + 2, width), nn.Linear(width, size)
        self.dropout = nn.Dropout(p)

    def forward(self, x, s, t, **cond):
        flat = torch.cat([x.flatten(1), s[:, None], t[:, None]], 1)
        return self.last(self.dropout(torch.tanh(self.first(flat)))).reshape(x.shape)


def points(gen: torch.Generator, seed: int = 1) -> Points:
    x, v = torch.randn(2, 5, 3, generator=gen, dtype=torch.float64)
    return Points(x, v, Times(S, S, T), {}, torch.tensor(0.3), seed=torch.tensor(seed))


def test_evaluations_of_a_rule_share_their_masks(gen) -> None:
    """Two jumps of which the first has length zero are the jump itself, if and only if the masks are the same."""
    f = NetFlowMap(Dropping().double())
    b, rule = points(gen), Compositional()
    term = Term(rule=rule, times=SortedPair(Uniform()))
    objective = Objective(Recipe(name="one", cite=(), terms=(term,)), f)
    assert objective((b,)).total == 0
    prediction, target = rule(f, b, objective)
    assert (prediction - target).abs().max() > 0.1  # without the objective's care
    assert objective((b,)).total == 0


@pytest.mark.parametrize("through", [False, True])
def test_masks_are_shared_by_value_and_derivative(through, gen) -> None:
    """Exact and finite derivatives agree to O(h^2), and the value of the derivative's pass is that of the plain one."""
    f, b = NetFlowMap(Dropping().double()), points(gen)
    with shared_masks(f, b):
        plain = f.mean_velocity(b.x, S, T)
        value, exact = along_source(f.mean_velocity, b.x, S, T, b.v, through=through)
        finite = along_source(
            f.mean_velocity, b.x, S, T, b.v, derivative=Derivative("finite", 1e-4)
        )[1]
    assert_close(value, plain, rtol=0, atol=0)
    assert_close(exact, finite, rtol=0, atol=1e-7)
    other = replace(b, seed=torch.tensor(2))
    with shared_masks(f, other):
        assert (f.mean_velocity(b.x, S, T) - plain).abs().max() > 0.1


@pytest.mark.parametrize("name", ["mean_flow", "lsd", "psd", "shortcut"])
def test_masks_follow_the_draw_and_nothing_else(name, gen) -> None:
    recipe = recipes.get(name)
    f = NetFlowMap(Dropping())
    objective = Objective(recipe, f, ema=NetFlowMap(Dropping()))
    drawn = recipe.draw(torch.randn(64, 3, generator=gen), gen)
    state = torch.get_rng_state()
    first = objective(drawn).total
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(3)
    assert torch.equal(objective(drawn).total, first)
    seeds = [int(b.seed) for b in (*drawn, *recipe.draw(drawn[0].x, gen))]
    assert len(set(seeds)) == len(seeds)
    other = tuple(replace(b, seed=b.seed + 1) for b in drawn)
    assert not torch.equal(objective(other).total, first)
    assert [int(shard(b, 1, 2).seed - b.seed) for b in drawn] == [1] * len(drawn)
    f.eval()
    assert torch.equal(objective(other).total, objective(drawn).total)


def test_seeds_do_not_move_the_generator(gen) -> None:
    """Peeked, not drawn: noise and times of runs without dropout are what they were before masks had seeds."""
    recipe, x_0 = recipes.get("psd"), torch.randn(8, 2, generator=gen)
    ahead = torch.Generator()
    ahead.set_state(gen.get_state())
    recipe.draw(x_0, gen)
    for term in recipe.terms:
        n = max(1, round(term.share * 8))
        term.times(n, ahead, 0.0)
        torch.randn(n, 2, generator=ahead)
    assert torch.equal(ahead.get_state(), gen.get_state())


class Own(nn.Module):
    def __init__(self, **numbers: float) -> None:
        super().__init__()
        vars(self).update(numbers)


def test_random_layers_are_found() -> None:
    found = nn.ModuleDict(
        {
            "dropout": nn.Dropout2d(0.1),
            "attention": nn.MultiheadAttention(4, 2, dropout=0.1),
            "depth": Own(drop_prob=0.2),
            "label": Own(p_drop=0.1),
            "off": nn.Dropout(0.0),
            "p": Own(p=0.5),
            "count": Own(n_dropped=3),
        }
    )
    assert random_layers(found) == ["dropout", "attention", "depth", "label"]
    assert random_layers(found.eval()) == []


def test_networks_without_dropout_pay_nothing(gen, monkeypatch) -> None:
    monkeypatch.setattr("flowmaps.learn.objective.shared_masks", None)
    recipe = recipes.get("psd")
    objective = Objective(recipe, NetFlowMap(Dropping(0.0)))
    assert objective(recipe.draw(torch.randn(8, 3, generator=gen), gen)).total.isfinite()


def test_dropout_is_not_compiled(gen, monkeypatch) -> None:
    recipe = recipes.get("psd")
    objective = Objective(recipe, NetFlowMap(Dropping()))
    drawn = recipe.draw(torch.randn(8, 3, generator=gen), gen)
    with pytest.raises(Exception, match="evaluations of a rule would not share their masks"):
        torch.compile(objective, backend="eager", fullgraph=True)(drawn)
    loose = torch.compile(objective, backend="aot_eager")(drawn)  # terms that drop run eagerly
    assert torch.equal(loose.total, objective(drawn).total)
    with pytest.raises(TrainingError, match=r"network has dropout cannot be compiled.*compile=no"):
        fitted(kit.run_of(steps=1, compile="yes"))
    monkeypatch.setattr("flowmaps.train.machine._worth_compiling", lambda run: True)
    monkeypatch.setattr("flowmaps.train.loop.compiled", None)
    assert fitted(kit.run_of(steps=1, compile="auto")).step == 1


def fitted(run, out=None, hooks=(), resume=False):
    from flowmaps.train import fit

    torch.manual_seed(1)
    f = NetFlowMap(Dropping(size=12))
    about = {"flow_map": None}
    return fit(
        replace(recipes.get("mean_flow"), guidance=None), f, kit.toy(), run,
        out=out, hooks=hooks, resume=resume, about=about,
    )  # fmt: skip


def test_runs_with_dropout_resume_bit_for_bit(tmp_path) -> None:
    class Crash(Exception):
        pass

    def crash(event) -> None:
        if event.state.step == 7:
            raise Crash

    fitted(kit.run_of(), tmp_path / "straight")
    with pytest.raises(Crash):
        fitted(kit.run_of(), tmp_path / "run", [crash])
    torch.rand(11)
    fitted(kit.run_of(), tmp_path / "run", resume=True)
    assert kit.same(tmp_path / "straight", tmp_path / "run") == []

"""The numerical hazards of methods.md 7: each is met by a mechanism, and each mechanism is seen to be needed."""

import json
import math
import sys
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from flowmaps import recipes
from flowmaps.core.autodiff import Derivative, along_source, along_target
from flowmaps.core.flow_map import NetFlowMap, rematch
from flowmaps.core.interpolant import vp
from flowmaps.core.shape import like
from flowmaps.errors import DerivativeError, TrainingError
from flowmaps.learn.legs import ShortLeg
from flowmaps.learn.masks import random_layers, shared_masks
from flowmaps.learn.objective import Objective, Recipe, Term
from flowmaps.learn.points import shard
from flowmaps.learn.rules import Compositional, Eulerian, Lagrangian, Points
from flowmaps.learn.times import Fixed, SortedPair, Times, Uniform
from flowmaps.learn.weights import L2, Adaptive, Huber, TangentNorm
from flowmaps.nets import MLP, DiT
from flowmaps.nets.embed import Conditioning
from flowmaps.testing import worlds
from flowmaps.train.ema import Average, span_of

ROOT = Path(__file__).parents[2]
sys.path += [str(ROOT / "tests" / "train"), str(ROOT / "benchmarks")]
import hazards  # noqa: E402
import train_kit as kit  # noqa: E402

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


def test_seeds_of_masks_do_not_come_again(gen) -> None:
    """Of 62 bits: 200 draws are 200 seeds, but for one chance in 1e14."""
    recipe, x_0 = recipes.get("flow_matching"), torch.zeros(2, 2)
    assert len({int(b.seed) for _ in range(200) for b in recipe.draw(x_0, gen)}) == 200


def test_dropout_that_sleeps_is_kept_from_compilers_too() -> None:
    """A student may be in evaluation mode when the objective is built, and train afterwards."""
    recipe, plain = recipes.get("flow_matching"), Objective._masked_term
    nets = [nn.Linear(2, 2), nn.Dropout(0.2), nn.Dropout(0.2).eval()]
    kept = [Objective(recipe, NetFlowMap(net))._masked is not plain for net in nets]
    assert kept == [False, True, True]


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


# Precision of derivatives ---------------------------------------------------------------------------------------------


def awake(net: nn.Module, seed: int = 3) -> nn.Module:
    """A network whose zero-initialised layers were moved: at the start every derivative would be 0."""
    gen = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in net.parameters():
            p.add_(0.1 * torch.randn(p.shape, generator=gen))
    return net


BOUNDS = {
    # relative errors against float64; the figures are in benchmarks/hazards.json, the bounds half as large again
    ("float32", "exact"): 2e-6,
    ("bfloat16", "exact"): 0.025,
    ("float32", "finite 0.001"): 3e-4,
    ("float32", "finite 1e-05"): 0.02,
    ("bfloat16", "finite 0.001"): 3e-4,  # autocast is off while a difference is taken
}


@pytest.mark.parametrize("family", ["MLP", "DiT"])
def test_derivatives_against_float64(family) -> None:
    measured = hazards.derivatives(family)
    for (precision, way), bound in BOUNDS.items():
        assert measured[precision][way] < bound, (precision, way)
    # the hazards are real: a difference of bfloat16 evaluations, and a leg of the same length
    raw = measured["bfloat16, differenced as it is"]
    assert raw["finite 0.001"] > 0.5
    assert raw["leg 0.001"] > 0.5
    assert raw["leg 0.05"] < 0.4


def test_short_legs_keep_their_digits_under_autocast(gen) -> None:
    """What is divided by the leg's share is float32: bfloat16 is a fifth off at a fiftieth of the jump."""
    f = NetFlowMap(awake(DiT((1, 4, 4), patch=2, width=16, depth=1, heads=2)))
    term = Term(rule=ShortLeg(), times=SortedPair(Uniform(), split=Fixed(0.02)))
    recipe = Recipe(name="legs", cite=(), terms=(term,))
    (b,) = recipe.draw(torch.randn(64, 1, 4, 4, generator=gen), gen)
    objective, (s, w, t) = Objective(recipe, f), b.times

    def residual() -> torch.Tensor:
        u, target = term.rule(f, b, objective)
        return (u - target).detach()

    wide = residual()
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        assert_close(residual(), wide, rtol=0, atol=1e-5)
        whole = f.mean_velocity(b.x, s, t).float()
        rest = f.mean_velocity(b.x + like(w - s, b.x) * b.v, w, t).float()
    raw = rest - b.v + (whole - rest) / 0.02
    assert (raw - wide).norm() > 0.05 * wide.norm()  # the hazard is real


def test_stored_figures_are_those_of_the_script() -> None:
    stored = json.loads(Path(hazards.__file__).with_suffix(".json").read_text())["derivatives"]
    for family in ("MLP", "DiT"):
        for (precision, way), bound in BOUNDS.items():
            assert stored[family][precision][way] < bound


@pytest.mark.parametrize(
    ("dtype", "step"),
    [(torch.bfloat16, 0.04), (torch.float16, 5e-3), (torch.float32, 5e-6), (torch.float64, 1e-13)],
)
def test_steps_below_the_rounding_are_refused(dtype, step) -> None:
    x, times = torch.ones(2, 3, dtype=dtype), torch.full((2,), 0.5)

    def slope(step: float) -> torch.Tensor:
        finite = Derivative("finite", step)
        return along_source(lambda x, s, t: x, x, times, times, x, derivative=finite)[1]

    with pytest.raises(DerivativeError, match=r"is rounding noise: use step >= .* or an exact"):
        slope(step)
    assert slope(20 * step).isfinite().all()
    with pytest.raises(DerivativeError, match="needs a step > 0; got 0"):
        Derivative("finite", 0)


def test_finite_differences_stay_within_time(gen) -> None:
    """sqrt(t) has no value below 0, and no network was trained beyond 0 and 1: one side is used there."""
    asked: list[torch.Tensor] = []

    def fn(x, s, t):
        asked.extend((s, t))
        return x * (s.sqrt() + (1 - t).sqrt() + s * t)[:, None]

    s = torch.tensor([1.0, 0.998, 0.0, 0.5, 0.001], dtype=torch.float64)
    t = torch.tensor([0.0, 1.0, 0.0, 0.0, 1.0], dtype=torch.float64)
    x, dx = torch.randn(2, 5, 3, generator=gen, dtype=torch.float64)
    finite = Derivative("finite", 5e-3)
    slope = along_source(fn, x, s, t, dx, derivative=finite)[1]
    assert slope.isfinite().all()
    assert along_target(fn, x, s, t, derivative=finite)[1].isfinite().all()
    assert min(a.min() for a in asked) >= 0
    assert max(a.max() for a in asked) <= 1
    smooth = lambda x, s, t: x * (s.cos() + s * t)[:, None]
    exact = along_source(smooth, x, s, t, dx)[1]
    error = (along_source(smooth, x, s, t, dx, derivative=finite)[1] - exact).abs().amax(1)
    assert bool((error < 5e-3 * 3 * (x.abs() + dx.abs()).amax(1)).all())  # O(h) at the ends
    assert error[3] < 1e-4  # O(h^2) within


# Times ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("points_in", [torch.float32, torch.bfloat16])
def test_times_stay_float32_under_autocast(points_in, gen) -> None:
    """bfloat16 rounds 0.7 and 0.701 to one number; networks get float32 times, and ours keep them apart inside."""
    asked: list[torch.dtype] = []

    def net(x, s, t):
        asked.extend((s.dtype, t.dtype))
        return x

    x = torch.randn(4, 3, generator=gen).to(points_in)
    with torch.autocast("cpu", torch.bfloat16):
        NetFlowMap(net)(x, 0.7, torch.full((4,), 0.2, dtype=torch.bfloat16))
        f = NetFlowMap(net)
        along_source(f, x, *torch.rand(2, 4, generator=gen), x)
        own = Conditioning(16)
        with torch.no_grad():
            own.jump.last.weight.normal_(generator=gen)
        close = own(torch.tensor([0.7, 0.7]), torch.tensor([0.2, 0.201]))
    assert set(asked) == {torch.float32}
    assert (close[0] - close[1]).abs().max() > 1e-4
    assert torch.tensor(0.2).bfloat16() == torch.tensor(0.2002).bfloat16()


@pytest.mark.parametrize("name", sorted(recipes.all_recipes()))
def test_no_loss_divides_by_the_length_of_a_jump(name) -> None:
    """Float32, legs of length 0, one rounding and little: loss and gradient stay within what jumps of length 0.3 give."""
    recipe = recipes.get(name)
    world = worlds.rotated(recipe.interpolant, torch.float32)
    x_0 = world.sample(512, torch.Generator().manual_seed(4))

    def measured(length: float) -> tuple[float, float]:
        torch.manual_seed(0)
        f = NetFlowMap(
            awake(MLP((2,), 16, 1, classes=3, guided=True)),
            recipe.interpolant,
            recipe.parametrization,
            local=recipe.local,
        )
        companions = [NetFlowMap(awake(MLP((2,), 16, 1)), recipe.interpolant) for _ in "ab"]
        objective = Objective(recipe, f, *companions)
        g = torch.Generator().manual_seed(5)
        drawn = recipe.draw(x_0, g)
        moved = []
        for b in drawn:
            s = b.times.s.clamp(0.35, 0.98)
            short = replace(b, times=Times(s, s - length / 3, s - length))
            # consistency models jump to 0 and nowhere else, and their weight of a step is their law's affair
            moved.append(b if bool((b.times.t == b.times.t[0]).all()) else short)
        loss = objective(tuple(moved)).total
        loss.backward()
        norms = [p.grad.norm() for p in f.parameters() if p.grad is not None]
        return float(loss.detach()), float(torch.stack(norms).norm())

    usual, usual_slope = measured(0.3)
    for length in (0.0, 1e-7, 1e-4):
        loss, slope = measured(length)
        assert loss < 30 * abs(usual) + 1, length
        assert slope < 30 * usual_slope + 1, length


# Outliers -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("metric", [Adaptive(1.0), Huber(), L2()])
@pytest.mark.parametrize("tangent", [None, TangentNorm(0.1)])
def test_outliers_of_the_tangent_bound_the_update(metric, tangent, gen) -> None:
    """One row's derivative is a million times too long: the update of the prediction stays bounded, of L2 alone not."""
    term = Term(rule=Eulerian(), times=SortedPair(Uniform()), metric=metric, tangent=tangent)
    prediction = torch.randn(4, 3, generator=gen, dtype=torch.float64, requires_grad=True)
    target = torch.randn(4, 3, generator=gen, dtype=torch.float64)

    def update(scale: float) -> float:
        wild = target * torch.tensor([scale, 1, 1, 1])[:, None]
        slope = torch.autograd.grad(term.per_row(prediction, wild, points(gen)).sum(), prediction)[
            0
        ]
        return float(slope[0].norm())

    growth = update(1e6) / update(10)
    assert growth > 1e4 if isinstance(metric, L2) and tangent is None else growth < 2


# Averages -------------------------------------------------------------------------------------------------------------


def test_averages_do_not_lose_small_updates() -> None:
    """Half-life 10^5 steps: updates of 7e-6 of a difference of a thousandth. In float32, step by step, none arrives."""
    module = nn.Linear(1, 1, bias=False)
    with torch.no_grad():
        module.weight.fill_(1.0)
    average, naive = Average(module, 0.1), torch.ones(1)
    with torch.no_grad():
        module.weight.fill_(1.001)
    began, steps = 1_000_000, 100_000
    expected = 1.0
    for step in range(began + 1, began + steps + 1):
        if step % 64 == 0:
            average.update(module, step)
        if step % 8 == 0 and step < began + 8000:
            naive.lerp_(module.weight.detach()[0], math.log(2) / (0.1 * step) * 8)
        expected += -math.expm1(-math.log(2) / (0.1 * step)) * (1.001 - expected)
    assert float(naive) == 1.0
    assert 0.45e-3 < expected - 1 < 0.55e-3
    assert float(average.weights["weight"]) - 1 == pytest.approx(expected - 1, rel=0.03)
    assert [span_of(1 - d) for d in (0.99, 0.999, 0.9999, 0.99999)] == [1, 1, 16, 128]


def test_averages_of_half_precision_weights_are_wide() -> None:
    module = nn.Linear(1, 1, bias=False).bfloat16()
    with torch.no_grad():
        module.weight.fill_(1.0)
    average = Average(module, 0.5)
    with torch.no_grad():
        module.weight.fill_(2.0)
    average.update(module, 256)  # 1/128 of the way, twice: half a spacing of bfloat16 each
    first = float(average.weights["weight"])
    average.update(module, 256)
    assert first < float(average.weights["weight"]) < 1.02
    assert first > 1.004
    average.copy_to(module)
    assert module.weight.dtype == torch.bfloat16


def test_students_in_half_precision_are_refused() -> None:
    from flowmaps.train import fit

    f = NetFlowMap(Dropping(size=12).bfloat16())
    with pytest.raises(
        TrainingError, match=r"half precision \(first 'net.first.weight'\).*float\(\)"
    ):
        fit(recipes.get("psd"), f, kit.toy(), kit.run_of())


def test_the_target_average_is_updated_in_steps_that_are_not_lost(monkeypatch) -> None:
    """After its warm-up, which is skipped here."""
    from flowmaps.train import fit

    monkeypatch.setattr("flowmaps.train.loop.warmed", lambda decay, step: decay)
    recipe = replace(kit.RECIPES["shortcut"](), ema_target=0.9995)
    seen = []

    def hook(event) -> None:
        seen.append(event.state.objective.ema.net.last.weight.clone())

    f = kit.student(recipe)
    start = f.net.last.weight.detach().clone()
    fit(recipe, f, kit.toy(), kit.run_of(steps=4), hooks=[hook])
    assert torch.equal(seen[0], start)
    assert torch.equal(seen[2], seen[1])
    assert not torch.equal(seen[3], seen[2])
    assert_close(seen[3], seen[2].lerp(f.net.last.weight.detach(), 1 - 0.9995**2))


# A teacher in bfloat16 ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["MLP", "DiT"])
def test_a_teacher_in_bfloat16(family, gen) -> None:
    """It is fed points of its own precision and float32 times, and read in the precision of the points: 1 % off."""
    net, shape = hazards.network(family)
    wide = NetFlowMap(net)
    narrow = NetFlowMap(deepcopy(net).bfloat16())
    x = torch.randn(16, *shape, generator=gen)
    s, t = torch.rand(2, 16, generator=gen)
    expected = wide.mean_velocity(x, s, t)
    found = narrow.mean_velocity(x, s, t)
    assert found.dtype == torch.float32
    assert 0 < (found - expected).norm() < 0.02 * expected.norm()
    rule = Lagrangian("teacher", through="all")
    recipe = Recipe(name="x", cite=(), terms=(Term(rule=rule, times=SortedPair(Uniform())),))
    drawn = recipe.draw(x, gen)
    grads = []
    for teacher in (wide, narrow):
        student = NetFlowMap(deepcopy(net)).requires_grad_(True)
        Objective(recipe, student, deepcopy(teacher))(drawn).total.backward()
        grads.append(torch.cat([p.grad.flatten() for p in student.parameters()]))
    assert (grads[1] - grads[0]).norm() < 0.1 * grads[0].norm()
    seen = rematch(narrow, vp()).velocity(x, s.clamp(0.1, 0.9))
    assert (seen - rematch(wide, vp()).velocity(x, s.clamp(0.1, 0.9))).norm() < 0.02 * seen.norm()

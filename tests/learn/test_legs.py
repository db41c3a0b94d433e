"""Finite first legs: their limit and its order, where they are exact and where they are biased."""

import math
from dataclasses import replace

import pytest
import torch

from flowmaps.core.autodiff import EXACT, along_source
from flowmaps.core.flow_map import NetFlowMap
from flowmaps.core.interpolant import INTERPOLANTS, edm, linear, trig
from flowmaps.core.shape import like
from flowmaps.core.solver import EULER, HEUN
from flowmaps.errors import RecipeError
from flowmaps.learn.legs import LastLeg, ShortLeg
from flowmaps.learn.objective import Objective, Recipe, Term
from flowmaps.learn.rules import Eulerian, Lagrangian, Points
from flowmaps.learn.splits import LastGap, Neighbours
from flowmaps.learn.times import SortedPair, Times, Uniform
from flowmaps.learn.weights import AtData, AtTarget, EDMWeight, PerLeg
from flowmaps.recipes import get
from flowmaps.testing import worlds
from flowmaps.testing.contract import STANDARD_ERRORS, refined_stationarity

S = torch.tensor([0.93, 0.81, 0.64, 0.52, 0.37], dtype=torch.float64)
T = torch.tensor([0.21, 0.08, 0.15, 0.77, 0.59], dtype=torch.float64)


class Exact:
    """Models that answer with the world's own velocity and jumps, or with a given map's."""

    def __init__(self, world, f=None) -> None:
        self.world, self.f = world, f or world.flow_map

    def velocity(self, source, x, t, b):
        return b.v if source == "conditional" else self.world.velocity(x, t)

    def jump(self, source, x, s, t, b):
        return self.f.mean_velocity(x, s, t).detach()


def bent(x, s, t):
    """A field that no symmetry excuses."""
    return torch.sin(2 * x + s[:, None]) * (1 + t[:, None]) + 0.5 * x.square()


def perturbed(world) -> NetFlowMap:
    exact = world.flow_map
    return NetFlowMap(
        lambda x, s, t: exact.mean_velocity(x, s, t) + 0.3 * bent(x, s, t), world.interpolant
    )


def batch(world, gen, v: torch.Tensor | None = None) -> Points:
    x_0 = world.sample(5, gen)
    x = world.interpolant.sample(x_0, torch.randn(x_0.shape, generator=gen).double(), S)[0]
    return Points(
        x, world.velocity(x, S) if v is None else v, Times(S, S, T), {}, torch.tensor(0.4)
    )


def split(b: Points, gamma: float) -> Points:
    """The same jumps, divided at a share gamma."""
    s, _, t = b.times
    return replace(b, times=Times(s, s + gamma * (t - s), t))


def slope(rule: ShortLeg, f, b: Points, models) -> torch.Tensor:
    prediction, target = rule(f, b, models)
    return (prediction - target).detach()


def meanflow(f, b: Points) -> torch.Tensor:
    """u - a - (t - s) JE[u; a] with the conditional velocity of the points."""
    prediction, target = Eulerian()(f, b, Exact(worlds.gaussian(f.interpolant), f))
    return (prediction - target).detach()


def order(errors: list[float]) -> float:
    """Of errors at successive halvings."""
    return math.log2(errors[-2] / errors[-1])


# The limit ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["linear", "trig", "edm"])
@pytest.mark.parametrize(
    "rule",
    [ShortLeg(), ShortLeg(leg="path"), ShortLeg(legs=3), ShortLeg("self", steps=2)],
    ids=["euler", "path", "legs", "steps"],
)
def test_the_limit_is_mean_flow_with_order_one(rule, path, gen) -> None:
    """methods.md 6.3, item 2, on a perturbed map with generic velocities; several long legs have their own limit."""
    world = worlds.gaussian(INTERPOLANTS[path]())
    f = perturbed(world)
    if rule.legs > 1:  # several frozen jumps compose to u only where u is a flow map
        f = world.flow_map
    v = None if rule.velocity == "self" else 0.7 * torch.randn(5, 3, generator=gen).double()
    b = batch(world, gen, v)
    models = Exact(world, f)
    limit = meanflow(f, b)
    errors = [
        float((slope(rule, f, split(b, gamma), models) - limit).norm() / limit.norm().clamp(min=1))
        for gamma in (4e-5, 2e-5, 1e-5)
    ]
    assert errors[-1] < 0.05
    assert order(errors) == pytest.approx(1, abs=0.05)


def test_heun_legs_have_order_two(gen) -> None:
    """With the exact velocity and map g is all bias: it falls with the square of the leg, by Euler with the leg itself."""
    world = worlds.rotated(trig())
    s = torch.tensor([0.93, 0.81, 0.64], dtype=torch.float64)
    t = torch.tensor([0.21, 0.08, 0.15], dtype=torch.float64)
    x = torch.randn(3, 2, generator=gen, dtype=torch.float64)
    b = Points(x, world.velocity(x, s), Times(s, s, t), {}, torch.tensor(0.4))
    for leg, expected in (("euler", 1), ("heun", 2)):
        rule = ShortLeg("teacher", "teacher", leg=leg)
        errors = [
            float(slope(rule, world.flow_map, split(b, gamma), Exact(world)).norm())
            for gamma in (4e-2, 2e-2, 1e-2)
        ]
        assert order(errors) == pytest.approx(expected, abs=0.1)
        assert rule.order == expected


@pytest.mark.parametrize("path", ["linear", "trig", "vp", "edm"])
@pytest.mark.parametrize("legs", [1, 2])
def test_an_exact_leg_leaves_nothing(path, legs, gen) -> None:
    """The mean velocity of the exact first leg, as if a solver had no error: g = 0 at any split."""
    world = worlds.rotated(INTERPOLANTS[path]())
    b = split(batch(world, gen), 0.37)

    class Solved(Exact):
        def velocity(self, source, x, t, b):
            return world.flow_map.mean_velocity(x, b.times.s, b.times.w)

    g = slope(ShortLeg("teacher", "teacher", legs=legs), world.flow_map, b, Solved(world))
    assert g.abs().max() < 1e-8 * b.v.abs().max()


@pytest.mark.parametrize(("leg", "solver"), [("euler", EULER), ("heun", HEUN)])
def test_steps_are_those_of_the_solver(leg, solver, gen) -> None:
    """The long leg starts where three steps of the solver end, and T holds their mean velocity."""
    world = worlds.gaussian(trig())
    b = split(batch(world, gen), 0.4)
    s, w, _ = b.times
    grid = s + (w - s) * torch.linspace(0, 1, 4, dtype=s.dtype)[:, None]
    *_, end = solver.integrate(world.velocity, b.x, grid, trig())
    seen = []

    class Spy(Exact):
        def jump(self, source, x, s, t, b):
            seen.append(x)
            return torch.zeros_like(x)

    rule = ShortLeg("teacher", "teacher", leg=leg, steps=3, form="velocity")
    _, target = rule(world.flow_map, b, Spy(world))
    assert (seen[0] - end).abs().max() < 1e-12
    assert (target - 0.4 * (end - b.x) / (w - s)[:, None]).abs().max() < 1e-11


def test_one_leg_of_the_whole_jump_is_flow_matching_and_denoising(gen) -> None:
    """gamma = 1: T = a, whatever the long leg says. On t = 0, CT's target is the data (methods.md 6.3, item 7)."""

    class Broken(Exact):
        def jump(self, source, x, s, t, b):
            assert bool((s != t).all())
            return super().jump(source, x, s, t, b)

    for path in (linear(), edm(), INTERPOLANTS["ve"]()):
        world = worlds.gaussian(path)
        x_0 = world.sample(5, gen)
        eps = torch.randn(x_0.shape, generator=gen).double()
        x, v = path.sample(x_0, eps, S)
        zero = torch.zeros_like(S)
        b = Points(x, v, Times(S, zero, zero), {}, torch.tensor(0.0))
        rule = ShortLeg(leg="path", form="velocity")
        _, target = rule(world.flow_map, b, Broken(world))
        clean = x_0 + path.sigma(zero)[:, None] * eps
        at_zero = path.alpha(zero)[:, None] * clean
        assert (x + like(zero - S, x) * target - at_zero).abs().max() < 1e-11
        assert (AtTarget()(target, x, S, zero) - at_zero).abs().max() < 1e-11
        assert (AtData(path)(target, x, S, zero) - x_0).abs().max() < 1e-10


def test_on_the_linear_path_path_and_euler_are_one(gen) -> None:
    world = worlds.gaussian()
    b = split(batch(world, gen, torch.randn(5, 3, generator=gen).double()), 0.3)
    one, two = (
        slope(ShortLeg(leg=leg), perturbed(world), b, Exact(world)) for leg in ("euler", "path")
    )
    assert (one - two).abs().max() < 1e-12
    other = worlds.gaussian(trig())
    b = split(batch(other, gen, torch.randn(5, 3, generator=gen).double()), 0.3)
    one, two = (
        slope(ShortLeg(leg=leg), perturbed(other), b, Exact(other)) for leg in ("euler", "path")
    )
    assert (one - two).abs().max() > 1e-2


def test_the_path_leg_ends_on_the_interpolant(gen) -> None:
    world = worlds.gaussian(trig())
    x_0, eps = world.sample(5, gen), torch.randn(5, 3, generator=gen).double()
    x, v = trig().sample(x_0, eps, S)
    w = S + 0.4 * (T - S)
    seen = []

    class Spy(Exact):
        def jump(self, source, x, s, t, b):
            seen.append((x, s))
            return super().jump(source, x, s, t, b)

    b = Points(x, v, Times(S, w, T), {}, torch.tensor(0.0))
    ShortLeg(leg="path")(world.flow_map, b, Spy(world))
    assert (seen[0][0] - trig().sample(x_0, eps, w)[0]).abs().max() < 1e-12
    assert torch.equal(seen[0][1], w)


# Bias -----------------------------------------------------------------------------------------------------------------


def test_conditional_legs_are_biased_with_order_one_and_unbiased_in_the_limit(gen) -> None:
    """methods.md 6.3, item 3: E[g | x] over 400,000 exact posterior draws, on a mixture, whose map bends."""
    world = worlds.product(linear())
    n = 400_000
    x = torch.tensor([[0.35, -0.6]], dtype=torch.float64)
    s, t = torch.tensor([0.7], dtype=torch.float64), torch.tensor([0.1], dtype=torch.float64)
    x_0, eps = (part[:, 0] for part in world.posterior(x, s, n, gen))
    v = eps - x_0
    f = NetFlowMap(bent, linear())
    models = Exact(world, f)

    def mean(gamma: float) -> tuple[torch.Tensor, float]:
        rows = Points(x.expand(n, 2), v, Times(s.expand(n), s.expand(n), t.expand(n)), {}, s[0])
        short = ShortLeg(derivative=EXACT)
        g = slope(short, f, split(rows, gamma), models)
        return g.mean(0), float(g.std(0).norm() / n**0.5)

    exact = Points(x, world.velocity(x, s), Times(s, s, t), {}, s[0])
    truth = meanflow_of(f, exact)[0]
    limit, error = mean(0.0)
    assert (limit - truth).norm() < 5 * error
    # the same draws for every leg: their common noise leaves with the limit
    biases = [float((mean(gamma)[0] - limit).norm()) for gamma in (0.2, 0.1, 0.05)]
    own = [
        float((slope(ShortLeg("teacher"), f, split(exact, gamma), models)[0] - truth).norm())
        for gamma in (0.2, 0.1, 0.05)
    ]
    assert order(biases) == pytest.approx(1, abs=0.2)
    assert biases[0] > 5 * error
    # what the variance of v adds, beyond Euler's own error
    assert biases[-1] > 1.5 * own[-1]


def meanflow_of(f, b: Points) -> torch.Tensor:
    u, derivative = along_source(f.mean_velocity, b.x, b.times.s, b.times.t, b.v)
    return (u - b.v - like(b.times.t - b.times.s, b.v) * derivative).detach()


# The switch, the boundary, the data form ------------------------------------------------------------------------------


def test_the_switch_takes_the_limit_itself(gen) -> None:
    world = worlds.gaussian()
    b = batch(world, gen)
    b = replace(b, times=Times(S, S, T))
    switched = slope(ShortLeg(derivative=EXACT), perturbed(world), b, Exact(world))
    assert (switched - meanflow(perturbed(world), b)).abs().max() == 0
    assert not slope(ShortLeg(), perturbed(world), b, Exact(world)).isfinite().any()
    assert slope(ShortLeg(), perturbed(world), split(b, 1e-3), Exact(world)).isfinite().all()
    diagonal = replace(b, times=Times(S, S, S))
    u, target = ShortLeg(derivative=EXACT)(perturbed(world), diagonal, Exact(world))
    assert torch.equal(target, u.detach() - (u.detach() - b.v))


@pytest.mark.parametrize("make", [edm, trig])
def test_below_the_boundary_another_model_answers(make, gen) -> None:
    """The boundary is a noise level sigma / alpha, of the begin of the leg; both models jump to t = 0."""
    world = worlds.gaussian(make())
    noise = world.interpolant.sigma(0.9 * S) / world.interpolant.alpha(0.9 * S)
    b = replace(batch(world, gen), times=Times(S, 0.9 * S, 0 * S))
    asked = []

    class Spy(Exact):
        def jump(self, source, x, s, t, b):
            asked.append(source)
            return torch.full_like(x, {"self": 1.0, "teacher": 2.0}[source]) + t[:, None]

    cut = float(noise.median())
    rule = ShortLeg(form="velocity", below="teacher", boundary=cut)
    _, target = rule(world.flow_map, b, Spy(world))
    expected = torch.where(noise < cut, 2.0, 1.0).double()[:, None]
    assert set(asked) == {"self", "teacher"}
    assert (target - (0.1 * b.v + 0.9 * expected)).abs().max() < 1e-9 * b.v.abs().max()
    assert (
        "teacher" in Recipe(name="x", cite=(), terms=(Term(rule=rule, times=Neighbours()),)).sources
    )


def test_data_form_compares_at_the_data_with_the_gradient_of_the_outer_map(gen) -> None:
    """d/du of (X^-(x + (t - s) u, t, 0)) is (t - s) times the Jacobian of the exact map, which is affine on a Gaussian."""
    world = worlds.gaussian()
    student = NetFlowMap(_Shift(), linear())
    student.net.exact = world.flow_map
    term = Term(rule=ShortLeg("teacher", "ema", form="data"), times=SortedPair(Uniform()))
    recipe = Recipe(name="x", cite=(), terms=(term,), ema_target=0.9)
    objective = Objective(recipe, student, world.flow_map, world.flow_map)
    b = split(batch(world, gen), 0.4)
    prediction, target = term.rule(student, b, objective)
    zero = torch.zeros_like(T)
    assert not target.requires_grad
    # the exact map carried on from t is the exact map
    assert (prediction - world.endpoint(b.x, S, zero)).abs().max() < 1e-10
    gradient = torch.autograd.grad(prediction.sum(), student.net.shift)[0]
    probe = torch.ones_like(b.x)
    jacobian = world.endpoint(probe, T, zero) - world.endpoint(0 * probe, T, zero)
    assert (gradient - ((T - S)[:, None] * jacobian).sum(0)).abs().max() < 1e-10


class _Shift(torch.nn.Module):
    """The exact map and a constant."""

    def __init__(self) -> None:
        super().__init__()
        self.shift = torch.nn.Parameter(torch.zeros(3, dtype=torch.float64))
        self.exact = None

    def forward(self, x, s, t):
        return self.exact.mean_velocity(x, s, t) + self.shift


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"jump": "conditional"}, "the long leg is a jump"),
        ({"legs": 0}, "count from 1"),
        ({"leg": "path", "velocity": "teacher"}, "own \\(x_0, eps\\)"),
        ({"leg": "heun"}, "known at x alone"),
        ({"steps": 2}, "known at x alone"),
        ({"form": "data"}, "frozen outer map"),
        ({"below": "teacher"}, "belong together"),
        ({"boundary": 1.0}, "belong together"),
        ({"derivative": EXACT, "legs": 2}, "the limit of a short leg"),
    ],
)
def test_illegal_combinations_are_refused(arguments, words) -> None:
    with pytest.raises(RecipeError, match=words):
        ShortLeg(**arguments)


@pytest.mark.parametrize("leg", ["euler", "heun"])
def test_the_exam_tells_the_bias_of_a_leg_from_a_wrong_one(leg, monkeypatch) -> None:
    """Distillation has no noise at the optimum: the bias falls with power 2 or 3 of the leg, 5% of a wrong velocity with 1."""
    recipe = get("consistency_distillation", leg=leg)
    drift, norms = refined_stationarity(recipe)
    assert drift < STANDARD_ERRORS
    fall = recipe.terms[0].rule.fall
    assert math.log2(norms[0] / norms[1]) == pytest.approx(fall, abs=0.2)
    right = ShortLeg._first
    monkeypatch.setattr(ShortLeg, "_first", lambda *given: 0.95 * right(*given))
    assert refined_stationarity(recipe)[0] > 2 * STANDARD_ERRORS


def test_a_leg_below_the_resolution_of_times_is_a_velocity(gen) -> None:
    """Rows whose w rounds to s, though t does not: 1 in 10^5 of a law of pairs, and enough to end a run."""
    s = torch.tensor([0.1635, 0.87, 0.5, 0.7])
    t = s - torch.tensor([3e-8, 6e-8, 2.4e-7, 0.6])
    times = Times(s, s + 0.02 * (t - s), t)
    assert times.w[:3].equal(s[:3])
    assert not times.t[:3].eq(s[:3]).any()
    x, v = torch.randn(2, 4, 2, generator=gen)
    f = NetFlowMap(lambda x, s, t: torch.tanh(x) * (1 + s[:, None] - t[:, None]), linear())
    u, target = ShortLeg()(f, Points(x, v, times, {}, torch.tensor(0.5)), Exact(None, f))
    torch.testing.assert_close(target[:3], v[:3], rtol=1e-4, atol=1e-4)
    assert bool((target[3] - v[3]).abs().max() > 0.1)
    assert bool(u.isfinite().all())


def test_gradients_reach_the_prediction_alone(gen) -> None:
    """Gradient-as-target: the gradient of |u - sg(u) + sg(g)|^2 / 2 is <g, du>, that of |u - T|^2 / 2 gamma times less."""
    world = worlds.gaussian()
    student = NetFlowMap(_Shift(), linear())
    student.net.exact = perturbed(world)
    b = split(batch(world, gen), 0.3)
    gradients = []
    for form in ("slope", "velocity"):
        u, target = ShortLeg(form=form)(student, b, Exact(world, student))
        assert not target.requires_grad
        loss = (u - target).square().sum() / 2
        gradients.append(torch.autograd.grad(loss, student.net.shift)[0])
    assert (gradients[0] - gradients[1] / 0.3).abs().max() < 1e-12
    assert gradients[0].abs().max() > 1e-3


def test_weights_of_the_first_leg() -> None:
    s, w, t = torch.tensor([0.8, 0.6]), torch.tensor([0.7, 0.5]), torch.zeros(2)
    term = Term(rule=ShortLeg(), times=Neighbours(), weight=PerLeg())
    far = term.span(Times(s, w, t))
    assert far[1] is w
    expected = 1 / (edm().sigma(s) - edm().sigma(w))
    torch.testing.assert_close(PerLeg()(edm(), *far), expected)
    torch.testing.assert_close(PerLeg()(linear(), s, w), 1 / (s / (1 - s) - w / (1 - w)))
    sigma = edm().sigma(s)
    torch.testing.assert_close(EDMWeight()(edm(), s, t), (sigma**2 + 0.25) / (0.5 * sigma) ** 2)
    assert Term(rule=ShortLeg(), times=Neighbours()).span(Times(s, w, t))[1] is t


# The last leg -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("leg", "expected"), [("euler", 2), ("heun", 3)])
@pytest.mark.parametrize("make", [linear, trig])
def test_a_last_leg_is_right_to_the_order_of_its_solver(make, leg, expected, gen) -> None:
    """On the exact map u - T is (1 - gamma) times the local error of one step: the leg's length to the power `fall`."""
    world = worlds.rotated(make())
    b, rule = batch(world, gen), LastLeg("teacher", leg=leg)
    errors = [
        float(slope(rule, world.flow_map, split(b, 1 - h), Exact(world)).norm())
        for h in (0.1, 0.05, 0.025)
    ]
    assert rule.fall == expected
    assert order(errors) == pytest.approx(expected, abs=0.15)


def test_the_last_leg_becomes_the_lagrangian_rule(gen) -> None:
    """(u - T) / (1 - gamma) -> u + (t - s) du/dt - b_t(X), on a map that is wrong."""
    world = worlds.rotated()
    f, b = perturbed(world), batch(world, gen)
    models = Exact(world, f)
    prediction, target = Lagrangian("teacher", through="target")(f, b, models)
    limit = (prediction - target).detach()
    gaps = [
        float((slope(LastLeg(), f, split(b, 1 - h), models) / h - limit).norm())
        for h in (0.02, 0.01, 0.005)
    ]
    assert order(gaps) == pytest.approx(1, abs=0.1)
    assert gaps[-1] < 0.05 * float(limit.norm())


def test_the_last_leg_is_frozen_and_of_any_length(gen) -> None:
    world = worlds.rotated()
    f, b = perturbed(world), batch(world, gen)
    whole = split(b, 0.0)  # the leg is all of the jump: one Heun step of the velocity
    assert torch.equal(
        LastLeg()(f, whole, Exact(world, f))[1],
        HEUN.slope(world.velocity, b.x, b.times.s, b.times.t),
    )
    still = replace(b, times=Times(S, S, S))
    assert torch.allclose(LastLeg()(f, still, Exact(world, f))[1], world.velocity(b.x, S))
    assert not LastLeg()(f, split(b, 0.7), Exact(world, f))[1].requires_grad
    with pytest.raises(RecipeError, match="not known"):
        LastLeg("conditional")


def test_last_gaps_end_at_the_target_and_inside_the_jump(gen) -> None:
    """Lengths uniform up to the bound, or the jump: 5 standard errors of the mean."""
    n = 20_000
    s, w, t = LastGap(SortedPair(Uniform(), both=True), 0.1)(n, gen)
    lengths, jumps = (w - t).abs(), (s - t).abs()
    assert bool((lengths <= jumps + 1e-6).all())
    assert bool(((w - t) * (s - t) >= 0).all())
    long = jumps > 0.1
    assert abs(float(lengths[long].mean()) - 0.05) < 5 * 0.03 / float(long.sum()) ** 0.5
    assert float(LastGap(SortedPair(Uniform()), 0.1).finer(4).length) == 0.025

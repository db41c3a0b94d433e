"""The proof groups of methods.md 6.3 that other files leave open; docs/proof.md says which test proves what.

Exact worlds, float64, generic points. Statistical tests: 5 standard errors, false alarm 6e-7 per number.
"""

import itertools
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from flowmaps import recipes
from flowmaps.core.autodiff import along_source
from flowmaps.core.flow_map import NetFlowMap, SolvedFlowMap
from flowmaps.core.interpolant import INTERPOLANTS
from flowmaps.core.oracle import ExactFlowMap
from flowmaps.core.parametrization import Average, Boundary, Denoised, EDMTwoTime
from flowmaps.core.solver import RK4
from flowmaps.learn.endpoints import Endpoint, Inverse, Return
from flowmaps.learn.legs import ShortLeg
from flowmaps.learn.objective import Objective, Recipe, Term
from flowmaps.learn.rules import Compositional, DiagonalRule, Eulerian, Lagrangian, Points
from flowmaps.learn.times import Diagonal, SortedPair, Times, Uniform
from flowmaps.testing import worlds
from flowmaps.testing.contract import learn

S = torch.tensor([0.93, 0.81, 0.64, 0.52, 0.37], dtype=torch.float64)
W = torch.tensor([0.62, 0.71, 0.33, 0.61, 0.46], dtype=torch.float64)
T = torch.tensor([0.21, 0.08, 0.15, 0.77, 0.59], dtype=torch.float64)
PARAMETRIZATIONS = {
    "average": lambda path: Average(),
    "x0": lambda path: Denoised(path, "x0"),
    "eps": lambda path: Denoised(path, "eps"),
    "velocity": lambda path: Denoised(path, "velocity"),
    "edm": lambda path: EDMTwoTime(path, 0.7),
    "boundary": lambda path: Boundary(path, 0.6, 0.01),
}
RULES = {
    "diagonal": DiagonalRule("teacher"),
    "eulerian-target": Eulerian("teacher"),
    "eulerian-tangent": Eulerian("teacher", tangent="self"),
    "eulerian-partial": Eulerian("self", through="partial"),
    "eulerian-all": Eulerian("teacher", through="all"),
    "lagrangian-jvp": Lagrangian(),
    "lagrangian-target": Lagrangian(through="target"),
    "lagrangian-all": Lagrangian("teacher", through="all"),
    "compositional": Compositional(),
    "inverse": Inverse("teacher"),
    "endpoint": Endpoint(),
    "return": Return(),
}


class Exact:
    """Models that answer with a world's own velocity and a map's own jumps."""

    def __init__(self, world, f) -> None:
        self.world, self.f = world, f

    def velocity(self, source, x, t, b):
        return b.v if source == "conditional" else self.world.velocity(x, t)

    def jump(self, source, x, s, t, b, through=False):
        return self.f.mean_velocity(x, s, t)


def exact_map(world, name: str) -> NetFlowMap:
    """The network whose reading through a parametrization is the exact map: the mean velocity is affine in its output."""
    p = PARAMETRIZATIONS[name](world.interpolant)

    def net(z: Tensor, s: Tensor, t: Tensor) -> Tensor:
        x = z / p.network_input(torch.ones_like(z), s)
        zero, one = (p.mean_velocity(torch.full_like(x, k), x, s, t) for k in (0.0, 1.0))
        return (world.flow_map.mean_velocity(x, s, t) - zero) / (one - zero)

    return NetFlowMap(net, world.interpolant, p)


def batch(world, gen, times: Times | None = None) -> Points:
    s, w, t = times or Times(S, W, T)
    x_0 = world.sample(len(s), gen)
    x = world.interpolant.sample(x_0, torch.randn(x_0.shape, generator=gen).double(), s)[0]
    end = world.endpoint(x, s, t)
    return Points(x, world.velocity(x, s), Times(s, w, t), {}, torch.tensor(0.4), end=end)


# 1: every rule, path and parametrization ------------------------------------------------------------------------------


@pytest.mark.parametrize("path_name", INTERPOLANTS)
@pytest.mark.parametrize("parametrization", PARAMETRIZATIONS)
def test_every_rule_holds_on_the_exact_map(path_name, parametrization, gen) -> None:
    world = worlds.gaussian(INTERPOLANTS[path_name]())
    b, f = batch(world, gen), exact_map(world, parametrization)
    size = b.v.abs().max() + b.x.abs().max()
    for name, rule in RULES.items():
        prediction, target = rule(f, b, Exact(world, f))
        assert (prediction - target).abs().max() < 1e-9 * size, name
        assert name == "eulerian-all" or prediction.abs().max() > 0.1, name


# 2: finite legs -------------------------------------------------------------------------------------------------------


def legs(gamma: float) -> Times:
    return Times(S, S + gamma * (T - S), T)


def wavy(path) -> NetFlowMap:
    """A map that is bent in everything, and wrong."""
    return NetFlowMap(
        lambda x, s, t: (
            torch.sin(x.cumsum(1) + s[:, None]) - torch.cos(2 * x) * (0.5 + t * s)[:, None]
        ),
        path,
    )


@pytest.mark.parametrize("form", ["slope", "velocity"])
def test_a_leg_on_a_wrong_map_is_its_formula(form, unit_path, gen) -> None:
    """T = gamma a + (1 - gamma) u(x + (w - s) a, w, t), and g = (u - T) / gamma."""
    world, f = worlds.rotated(unit_path), wavy(unit_path)
    b = batch(world, gen)
    gamma = ((W - S) / (T - S))[:, None]
    moved = b.x + (W - S)[:, None] * b.v
    target = gamma * b.v + (1 - gamma) * f.net(moved, W, T)
    g = f.net(b.x, S, T) - target
    prediction, got = ShortLeg("teacher", form=form)(f, b, Exact(world, f))
    assert_close(prediction - got, g / gamma if form == "slope" else g, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize(("leg", "order"), [("euler", 1), ("heun", 2)])
def test_finite_legs_have_their_order(leg, order, path, gen) -> None:
    """At a wrong map g tends to the Eulerian residual, at the exact map to 0, both as gamma to the order."""
    world = worlds.rotated(path)
    size = 80.0 if path.name in ("ve", "edm") else 1.0
    rule = ShortLeg("teacher", leg=leg)
    assert rule.order == order
    for f, first in ((wavy(path), 1), (world.flow_map, order)):
        b = batch(world, gen)
        models = Exact(world, f)
        prediction, target = Eulerian("teacher")(f, b, models)
        limit, errors = prediction - target, []
        for gamma in (2e-3, 1e-3, 5e-4):
            prediction, target = rule(f, replace(b, times=legs(gamma)), models)
            errors.append(float(((prediction - target) - limit).norm()) / size)
        assert (limit.abs().max() < 1e-9 * size) == isinstance(f, ExactFlowMap)
        for one, two in itertools.pairwise(errors):
            assert 2**first * 0.85 < one / two < 2**first * 1.2, (first, errors)


# 3, 6, 7: what is right on average, and what is not -------------------------------------------------------------------


def draws(world, b: Points, n: int, gen) -> Points:
    """Every point n times, with conditional velocities of its exact posterior: (n B, D)."""
    x_0, eps = world.posterior(b.x, b.times.s, n, gen)
    c = world.interpolant.at(b.times.s, b.x)
    v = (c.dalpha * x_0 + c.dsigma * eps).flatten(0, 1)
    many = lambda z: z.repeat(n, *[1] * (z.ndim - 1))
    return Points(many(b.x), v, Times(*map(many, b.times)), {}, b.progress)


@pytest.mark.parametrize("leg", ["euler", "path"])
def test_finite_legs_are_biased_by_their_length(leg, unit_path, gen) -> None:
    """E[g | x] with conditional velocities against g with the exact one: O(gamma), not 0; 0 in the limit.

    The same draws serve all lengths, so the ratio of the biases is sharper than each of them.
    """
    world, n = worlds.rotated(unit_path), 20_000
    f, b = wavy(unit_path), batch(world, gen)
    many, models, biases = draws(world, b, n, gen), Exact(world, f), []

    def residual(rule, points: Points) -> Tensor:
        prediction, target = rule(f, points, models)
        return prediction - target

    def bias(rule, exact, times: Times | None) -> tuple[Tensor, Tensor]:
        one = b if times is None else replace(b, times=times)
        all_times = many.times if times is None else Times(*(z.repeat(n) for z in times))
        g = residual(rule, replace(many, times=all_times)).reshape(n, 5, 2)
        return g.mean(0) - residual(exact, one), 5 * g.std(0) / n**0.5

    for gamma in (0.1, 0.05, 0.025):
        found, error = bias(ShortLeg(leg=leg), ShortLeg("teacher"), legs(gamma))
        biases.append(found)
        if gamma == 0.1:
            assert bool((found.abs() > error).any())
    limit, error = bias(Eulerian(), Eulerian("teacher"), None)
    assert bool((limit.abs() < error).all())
    for one, two in itertools.pairwise(biases):
        assert 1.6 < float((one - limit).norm() / (two - limit).norm()) < 2.4


def test_a_finite_composition_of_data_has_another_answer(gen) -> None:
    """A jump of half the way made with conditional velocities at the exact map: far from its own fixed point."""
    world, n = worlds.rotated(), 4000
    f, b = world.flow_map, replace(batch(world, gen), times=legs(0.5))
    models, many = Exact(world, f), draws(world, b, n, gen)
    prediction, target = ShortLeg(form="velocity")(f, many, models)
    g = (prediction - target).detach().reshape(n, 5, 2)
    euler = ShortLeg("teacher", form="velocity")(f, b, models)
    own = (euler[0] - euler[1]).detach()  # what Euler's half step is off by, without any noise
    off = (g.mean(0) - own).abs()
    assert bool((off > 10 * g.std(0) / n**0.5).any())
    assert off.max() > 0.02


def test_differences_along_the_conditional_path_are_the_tangent(path, gen) -> None:
    """u at x_{s +- h} of the same data and noise: its slope is the derivative along v_c, to O(h^2)."""
    world = worlds.rotated(path)
    x_0, eps = world.sample(5, gen), torch.randn(5, 2, generator=gen, dtype=torch.float64)
    f = wavy(path)
    scale = 80 if path.name in ("ve", "edm") else 1  # distances there are 80 times as long
    x, v = path.sample(x_0, eps, S)
    exact, errors = along_source(f.mean_velocity, x, S, T, v)[1], []
    for h in (2e-3 / scale, 1e-3 / scale):
        ahead = f.mean_velocity(path.sample(x_0, eps, S + h)[0], S + h, T)
        behind = f.mean_velocity(path.sample(x_0, eps, S - h)[0], S - h, T)
        errors.append(float(((ahead - behind) / (2 * h) - exact).norm() / exact.norm()))
    assert errors[1] < 1e-4
    assert 3.8 < errors[0] / errors[1] < 4.2


def test_consistency_training_is_biased_by_its_step(unit_path, gen) -> None:
    """CT at the exact map: E[X(x_w, w, 0) | x] - X(x, s, 0) is O((s - w)^2) with v_c, and o(that) with the exact x_w."""
    world, n = worlds.rotated(unit_path), 20_000
    f, zero = world.flow_map, torch.full_like(S, unit_path.t_min)
    point = batch(world, gen, Times(S, S, zero))
    x_0, eps = world.posterior(point.x, S, n, gen)
    end, rates, exacts = f(point.x, S, zero), [], []
    for length in (0.02, 0.01):
        w = S - length
        x_w = unit_path.sample(x_0.flatten(0, 1), eps.flatten(0, 1), w.repeat(n))[0]
        moved = f(x_w, w.repeat(n), zero.repeat(n)).reshape(n, 5, 2)
        rates.append((moved.mean(0) - end) / length)
        exacts.append(f(world.endpoint(point.x, S, w), w, zero) - end)
    assert max(float(e.abs().max()) for e in exacts) < 1e-9
    assert rates[0].norm() > 0.02
    assert 1.5 < float(rates[0].norm() / rates[1].norm()) < 2.5


# 4: loss floors on every path -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("path_name", ["trig", "vp", "ve"])
@pytest.mark.parametrize("name", ["flow matching", "meanflow", "imf"])
def test_loss_floors_on_other_paths(name, path_name, gen) -> None:
    """As tests/learn/test_rules.py for the linear path: E|delta|^2 for two of them, E|grad X delta|^2 for MeanFlow."""
    world, n = worlds.gaussian(INTERPOLANTS[path_name]()), 20_000
    rule = {"meanflow": Eulerian(), "imf": Eulerian(tangent="self")}.get(name, DiagonalRule())
    pair = SortedPair(Uniform(0.05, 0.98))
    term = Term(rule=rule, times=Diagonal(pair) if name == "flow matching" else pair)
    recipe = Recipe(name="floor", cite=(), terms=(term,), interpolant=world.interpolant)
    (b,) = recipe.draw(world.sample(n, gen), gen)
    objective = Objective(recipe, world.flow_map)
    prediction, target = rule(world.flow_map, b, objective)
    rows = (prediction - target).square().mean(1)
    s, t = b.times.s.double(), b.times.t.double()
    floor = world.velocity_variance(s, b.x)
    if name == "meanflow":
        floor = floor * (world.marginal(t, b.x)[1] / world.marginal(s, b.x)[1]).square()
    excess = rows - floor.mean(1)
    assert abs(excess.mean()) < 5 * excess.std() / n**0.5
    assert floor.mean() > 0.05


# 5: where gradients stop ----------------------------------------------------------------------------------------------


class Graphs(Exact):
    """Companions whose answers carry a graph of their own, as a careless third party's might."""

    def __init__(self, world, f) -> None:
        super().__init__(world, f)
        self.theta = torch.ones((), dtype=torch.float64, requires_grad=True)
        self.asked: list[bool] = []

    def velocity(self, source, x, t, b):
        self.asked.append(x.requires_grad)
        return self.theta * super().velocity(source, x, t, b)


@pytest.mark.parametrize(
    ("rule", "inside"),
    [
        (Eulerian("teacher"), False),
        (Eulerian(tangent="teacher"), False),
        (Eulerian("teacher", through="partial"), False),
        (Lagrangian("teacher"), False),
        (Lagrangian("teacher", through="target"), False),
        (Lagrangian("teacher", through="all"), True),
    ],
)
def test_targets_stop_gradients_whatever_companions_do(rule, inside, gen) -> None:
    """And no companion is asked at a point that carries the student's graph, unless the rule is through all."""
    world = worlds.gaussian()
    weight = torch.ones((), dtype=torch.float64, requires_grad=True)
    f = NetFlowMap(lambda x, s, t: weight * torch.sin(x + s[:, None] - t[:, None]))
    models = Graphs(world, f)
    prediction, target = rule(f, batch(world, gen), models)
    assert prediction.requires_grad
    assert target.requires_grad == inside
    assert any(models.asked) == inside


# 9: DDIM and progressive distillation ---------------------------------------------------------------------------------


def test_ddim_is_the_exact_map_of_a_constant_denoiser(path, gen) -> None:
    c, x = torch.randn(2, 5, 3, generator=gen, dtype=torch.float64)

    def velocity(x, t, **cond):
        return path.convert(c, x, t, source="x0", target="velocity")

    solved = SolvedFlowMap(velocity, path, RK4, 400)(x, S, T)
    stepped = Denoised(path).endpoint(c, x, S, T)
    assert_close(stepped, solved, rtol=1e-7, atol=1e-7)
    eulerian = along_source(
        lambda x, s, t: Denoised(path).endpoint(c, x, s, t), x, S, T, velocity(x, S)
    )[1]
    assert eulerian.abs().max() < 1e-9 * velocity(x, S).abs().max()


def test_two_ddim_steps_invert_to_their_published_target(gen, unit_path) -> None:
    """Salimans & Ho 2022 (arXiv:2202.00512), eq. 8: the x that one DDIM step would need to land where two do."""
    path = unit_path
    world = worlds.gaussian(path)
    teacher = NetFlowMap(
        lambda x, s, t: path.convert(world.velocity(x, s), x, s, source="velocity", target="x0"),
        path,
        Denoised(path),
        local=True,
    )
    b = batch(world, gen)
    s, w, t = (path.at(time, b.x) for time in b.times)
    x_1 = teacher.denoise(b.x, S)
    z_w = w.alpha * x_1 + w.sigma / s.sigma * (b.x - s.alpha * x_1)
    x_2 = teacher.denoise(z_w, W)
    z_t = t.alpha * x_2 + t.sigma / w.sigma * (z_w - w.alpha * x_2)
    ratio = t.sigma / s.sigma
    published = (z_t - ratio * b.x) / (t.alpha - ratio * s.alpha)
    _, u = Compositional("teacher")(teacher, b, Exact(world, teacher))
    x_0 = (b.x + (T - S)[:, None] * u - ratio * b.x) / (t.alpha - ratio * s.alpha)
    assert_close(x_0, published, rtol=1e-9, atol=1e-9)
    again = Denoised(path).mean_velocity(published, b.x, S, T)
    assert_close(again, u, rtol=1e-9, atol=1e-9)


# 11, 12: end to end ---------------------------------------------------------------------------------------------------


def test_more_steps_help_and_both_directions_invert() -> None:
    """PSD trained towards data and towards noise: four steps beat one, each direction is the exact map's, and they invert."""
    recipe = recipes.get("psd", channels=0)
    terms = tuple(
        replace(term, times=replace(term.times, both=True))
        if isinstance(term.times, SortedPair)
        else term
        for term in recipe.terms
    )
    world, wide = worlds.rotated(dtype=torch.float32), worlds.rotated()
    f = learn(replace(recipe, terms=terms), world, 400, 256, 0)
    x = torch.randn(1000, 2, generator=torch.Generator().manual_seed(3))
    one, zero = torch.ones(1000).double(), torch.zeros(1000).double()
    exact = wide.endpoint(x.double(), one, zero)
    with torch.no_grad():
        jumped, walked = f(x, 1.0, 0.0), x
        for s, t in itertools.pairwise((1.0, 0.75, 0.5, 0.25, 0.0)):
            walked = f(walked, s, t)
        back, lifted = f(jumped, 0.0, 1.0), f(exact.float(), 0.0, 1.0)
    error = lambda a, b: float((a - b).square().mean().sqrt())
    assert error(walked, exact) < 0.9 * error(jumped, exact)
    assert error(back, x) < 0.5
    assert error(lifted, x) < 0.5

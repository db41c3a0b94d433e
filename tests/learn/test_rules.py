"""The rules on exact maps, on maps that are wrong by a known amount, and with velocities that are right only on average.

The perturbed map is u + epsilon phi with phi(x, s, t) = (k + M x)(1 + s/2 + t/3 + s t): every derivative of phi is
written out below, and the Gaussian world's velocity and map are affine in x, so each residual has a closed form.
Statistical tests: 5 standard errors, false alarm 6e-7 per number, 2e-5 in the file.
"""

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from flowmaps.core.autodiff import Derivative, along_source, along_target
from flowmaps.core.flow_map import FlowMap, NetFlowMap
from flowmaps.core.interpolant import INTERPOLANTS
from flowmaps.errors import RecipeError
from flowmaps.learn.objective import Objective, Recipe, Term
from flowmaps.learn.ramps import Ramp
from flowmaps.learn.rules import Compositional, DiagonalRule, Eulerian, Lagrangian, Points
from flowmaps.learn.times import Diagonal, SortedPair, Times, Uniform
from flowmaps.learn.weights import L2
from flowmaps.testing import worlds

S = torch.tensor([0.93, 0.81, 0.64, 0.52, 0.37], dtype=torch.float64)
W = torch.tensor([0.62, 0.71, 0.33, 0.61, 0.46], dtype=torch.float64)
T = torch.tensor([0.21, 0.08, 0.15, 0.77, 0.59], dtype=torch.float64)
EPS = 0.3

EXACT_RULES = {
    "diagonal": DiagonalRule("teacher"),
    "eulerian-target": Eulerian("teacher"),
    "eulerian-conditional": Eulerian(),
    "eulerian-tangent": Eulerian(tangent="self"),
    "eulerian-partial": Eulerian("self", through="partial"),
    "eulerian-all": Eulerian("teacher", through="all"),
    "lagrangian-jvp": Lagrangian(),
    "lagrangian-target": Lagrangian(through="target"),
    "lagrangian-all": Lagrangian("teacher", through="all"),
    "compositional": Compositional(),
    "compositional-teacher": Compositional("teacher"),
}


class Exact:
    """Models that answer with the world's own velocity and jumps, or with a given map's."""

    def __init__(self, world, f: FlowMap | None = None) -> None:
        self.world, self.f = world, f or world.flow_map

    def velocity(self, source, x, t, b):
        return b.v if source == "conditional" else self.world.velocity(x, t)

    def jump(self, source, x, s, t, b):
        return self.f.mean_velocity(x, s, t).detach()


class Phi:
    """phi and its derivatives."""

    gen = torch.Generator().manual_seed(11)
    k = torch.randn(3, generator=gen, dtype=torch.float64)
    m = torch.randn(3, 3, generator=gen, dtype=torch.float64)

    @classmethod
    def at(cls, x, s, t):
        return (cls.k + x @ cls.m.T) * (1 + s / 2 + t / 3 + s * t)[:, None]

    @classmethod
    def ds(cls, x, s, t):
        return (cls.k + x @ cls.m.T) * (0.5 + t)[:, None]

    @classmethod
    def dt(cls, x, s, t):
        return (cls.k + x @ cls.m.T) * (1 / 3 + s)[:, None]

    @classmethod
    def dx(cls, v, s, t):
        return (v @ cls.m.T) * (1 + s / 2 + t / 3 + s * t)[:, None]


def perturbed(world, eps=EPS) -> NetFlowMap:
    exact = world.flow_map
    return NetFlowMap(
        lambda x, s, t: exact.mean_velocity(x, s, t) + eps * Phi.at(x, s, t), world.interpolant
    )


def batch(world, gen, v: Tensor | None = None) -> Points:
    x_0 = world.sample(5, gen)
    x = world.interpolant.sample(x_0, torch.randn(x_0.shape, generator=gen).double(), S)[0]
    v = world.velocity(x, S) if v is None else v
    return Points(x, v, Times(S, W, T), {}, torch.tensor(0.4))


def rate(world, t: Tensor, x: Tensor) -> Tensor:
    """Slope of the Gaussian velocity in x."""
    return world.velocity(torch.ones_like(x), t) - world.velocity(torch.zeros_like(x), t)


@pytest.mark.parametrize("name", EXACT_RULES)
@pytest.mark.parametrize(
    ("make", "path_name"),
    [(worlds.gaussian, name) for name in ("linear", "trig", "vp")] + [(worlds.rotated, "trig")],
)
def test_rules_hold_on_exact_maps(name, make, path_name, gen) -> None:
    world = make(INTERPOLANTS[path_name]())
    b = batch(world, gen)
    prediction, target = EXACT_RULES[name](world.flow_map, b, Exact(world))
    # no test of nothing: only "all" of the Eulerian rule predicts zero
    assert name == "eulerian-all" or prediction.abs().max() > 0.1
    assert (prediction - target).abs().max() < 1e-10 * b.v.abs().max()


@pytest.mark.parametrize("name", EXACT_RULES)
def test_residuals_of_a_perturbed_map(name, unit_path, gen) -> None:
    world = worlds.gaussian(unit_path)
    b, f = batch(world, gen), perturbed(world)
    x, v, phi = b.x, b.v, EPS * Phi.at(b.x, S, T)
    gap = (T - S)[:, None]
    end = world.endpoint(x, S, T)
    eulerian = phi - gap * EPS * (Phi.ds(x, S, T) + Phi.dx(v, S, T))
    lagrangian = phi + gap * EPS * Phi.dt(x, S, T) - rate(world, T, x) * gap * phi
    leg, first = (W - S)[:, None], EPS * Phi.at(x, S, W)
    middle = world.endpoint(x, S, W) + leg * first
    slope = world.flow_map.mean_velocity(torch.ones_like(x), W, T) - world.flow_map.mean_velocity(
        0 * x, W, T
    )
    gamma = leg / gap
    second = slope * leg * first + EPS * Phi.at(middle, W, T)
    expected = {
        "diagonal": EPS * Phi.at(x, S, S),
        "eulerian-target": eulerian,
        "eulerian-conditional": eulerian,
        "eulerian-tangent": eulerian,
        "eulerian-partial": -eulerian,
        "eulerian-all": -eulerian,
        "lagrangian-jvp": lagrangian,
        "lagrangian-target": lagrangian,
        "lagrangian-all": lagrangian,
        "compositional": phi - gamma * first - (1 - gamma) * second,
        "compositional-teacher": phi - gamma * first - (1 - gamma) * second,
    }[name]
    prediction, target = EXACT_RULES[name](f, b, Exact(world, f))
    assert end.isfinite().all()
    assert expected.abs().max() > 0.1
    assert_close(prediction - target, expected, rtol=1e-9, atol=1e-9)


def test_eulerian_tangent_and_warmup(gen) -> None:
    """iMF: target = v + (t - s) JE[u; push], where push is another velocity than v; the warm-up scales JE alone."""
    world = worlds.gaussian()
    f, v = perturbed(world), torch.randn(5, 3, generator=gen).double()
    b = batch(world, gen, v)
    gap = (T - S)[:, None]
    own = along_source(f.mean_velocity, b.x, S, T, world.velocity(b.x, S))[1]
    given = along_source(f.mean_velocity, b.x, S, T, v)[1]
    assert_close(Eulerian(tangent="self")(f, b, Exact(world))[1], v + gap * own)
    assert_close(Eulerian()(f, b, Exact(world))[1], v + gap * given)
    ramp = Ramp(0.1, 0.6)  # progress is 0.4
    assert_close(Eulerian(warmup=ramp)(f, b, Exact(world))[1], v + gap * 0.3 * given)
    u, slope = along_target(f.mean_velocity, b.x, S, T)
    moved = world.velocity(b.x + gap * u, T)
    got = Lagrangian(through="target", warmup=ramp)(f, b, Exact(world))[1]
    assert_close(got, moved - gap * 0.3 * slope)


@pytest.mark.parametrize("rule", ["eulerian-target", "lagrangian-jvp"])
def test_finite_differences_serve_a_rule(rule, gen) -> None:
    world = worlds.gaussian()
    b, f = batch(world, gen), perturbed(world)
    finite = {
        "eulerian-target": Eulerian("teacher", derivative=Derivative("finite", 1e-4)),
        "lagrangian-jvp": Lagrangian(derivative=Derivative("finite", 1e-4)),
    }[rule]
    exact, fd = (r(f, b, Exact(world)) for r in (EXACT_RULES[rule], finite))
    assert_close(fd[0] - fd[1], exact[0] - exact[1], rtol=0, atol=1e-6)


@pytest.mark.parametrize("side", ["eulerian", "lagrangian"])
def test_short_legs_become_derivatives(side, gen) -> None:
    """(u - T) / gamma tends to the Eulerian residual, (u - T) / (1 - gamma) to the Lagrangian one, with error O(gamma)."""
    world = worlds.gaussian()
    f, b = perturbed(world), batch(world, gen)
    own = Exact(type("Own", (), {"velocity": staticmethod(f.velocity), "flow_map": f})(), f)
    rule = Eulerian("self") if side == "eulerian" else Lagrangian(through="target")
    prediction, target = rule(f, b, own)
    limit, errors = prediction - target, []
    for gamma in (1e-2, 1e-3, 1e-4):
        w = S + (gamma if side == "eulerian" else 1 - gamma) * (T - S)
        short = Points(b.x, b.v, Times(S, w, T), {}, b.progress)
        prediction, target = Compositional()(f, short, own)
        errors.append(((prediction - target) / gamma - limit).abs().max().item())
    assert limit.abs().max() > 0.05
    assert errors[0] < 0.1
    assert 8 < errors[0] / errors[1] < 12
    assert 8 < errors[1] / errors[2] < 12


def draws(world, b: Points, n: int, gen) -> tuple[Points, Tensor]:
    """Every point n times, each with a conditional velocity drawn from its exact posterior: (n B, D)."""
    x_0, eps = world.posterior(b.x, S, n, gen)
    c = world.interpolant.at(S, b.x)
    v = (c.dalpha * x_0 + c.dsigma * eps).flatten(0, 1)
    many = lambda z: z.repeat(n, *[1] * (z.ndim - 1))
    return Points(many(b.x), v, Times(*map(many, b.times)), {}, b.progress), v


@pytest.mark.parametrize("tangent", [None, "self"])
def test_conditional_velocity_is_unbiased_where_it_enters_linearly(tangent, unit_path, gen) -> None:
    world, n = worlds.rotated(unit_path), 4000
    b = batch(world, gen)
    shift = NetFlowMap(  # any map will do
        lambda x, s, t: torch.sin(x.cumsum(1) + s[:, None]) - torch.cos(2 * x) * (t * s)[:, None],
        unit_path,
    )
    many, _ = draws(world, b, n, gen)
    rule = Eulerian(tangent=tangent)
    _, target = rule(shift, many, Exact(world))
    _, exact = rule(shift, b, Exact(world))
    target = target.reshape(n, 5, 2)
    assert bool(((target.mean(0) - exact).abs() < 5 * target.std(0) / n**0.5).all())
    assert target.std(0).min() > 1e-2  # it is a random target


def test_conditional_velocity_is_biased_where_it_is_squared(gen) -> None:
    """E|d_s X + grad X v_c|^2 exceeds its exact value by E|grad X delta|^2, which moves the minimum off the exact map."""
    world, n = worlds.gaussian(), 4000
    b = batch(world, gen)
    many, v = draws(world, b, n, gen)
    theta = torch.zeros((), dtype=torch.float64, requires_grad=True)
    f = NetFlowMap(
        lambda x, s, t: world.flow_map.mean_velocity(x, s, t) + theta * x, world.interpolant
    )
    slope = along_source(f, many.x, *(many.times.s, many.times.t), v, through=True)[1]
    rows = slope.square().sum(1).reshape(n, 5).sum(1)
    spread = (
        world.marginal(T, b.x)[1] / world.marginal(S, b.x)[1]
    ).square() * world.velocity_variance(S, b.x)
    assert abs(rows.mean() - spread.sum()) < 5 * rows.std() / n**0.5
    # the gradient at the exact map is d/dtheta of that spread: 2 (t - s) (Lambda_t / Lambda_s) Var, far from 0
    bias = torch.autograd.grad(rows.mean(), theta)[0]
    gap = (T - S)[:, None]
    expected = (
        2
        * gap
        * world.marginal(T, b.x)[1]
        / world.marginal(S, b.x)[1]
        * world.velocity_variance(S, b.x)
    ).sum()
    assert abs(bias / expected - 1) < 0.1
    assert abs(bias) > 0.5


def test_conditional_velocity_fails_for_the_lagrangian_rule(gen) -> None:
    """Regressing d_t X on v_c, known at x and not at X(x, s, t), has another answer: E[v_c | x] = b_s(x)."""
    world = worlds.gaussian()
    b = batch(world, gen)
    slope = along_target(world.flow_map, b.x, S, T)[1]
    assert (slope - world.velocity(b.x, S)).abs().mean() > 0.2


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: Lagrangian("conditional"), "Lagrangian rule"),
        (
            lambda: Compositional("conditional"),
            "the compositional rule composes jumps of 'self', 'ema' or 'teacher'",
        ),
        (lambda: Eulerian(through="all"), "quadratic in the velocity"),
        (
            lambda: Eulerian("self", tangent="conditional", through="partial"),
            "quadratic in the velocity",
        ),
        (lambda: Eulerian("self", through="jvp"), "got 'jvp'"),
        (
            lambda: Eulerian("self", through="all", warmup=Ramp(0, 1)),
            "belong to the Eulerian rule with through='target'",
        ),
        (lambda: Lagrangian("self", through="all"), "needs velocity='teacher'"),
        (lambda: Lagrangian("self", through="partial"), "partial"),
        (lambda: Lagrangian("self", warmup=Ramp(0, 1)), "only with through='target'"),
    ],
)
def test_illegal_rules_cannot_be_built(make, text) -> None:
    with pytest.raises(RecipeError, match=text):
        make()


def test_compositional_clips_point_and_target(gen) -> None:
    world = worlds.gaussian()
    b, seen = batch(world, gen), []

    class Loud(Exact):
        def jump(self, source, x, s, t, b):
            seen.append(x)
            return 10 + x

    _, target = Compositional("ema", clip=0.8)(world.flow_map, b, Loud(world))
    assert seen[1].abs().max() <= 0.8
    assert bool((target == 0.8).all())
    still = Points(b.x, b.v, Times(S, S, S), {}, b.progress)
    prediction, target = Compositional()(world.flow_map, still, Exact(world))
    assert_close(prediction, target)  # s = t: a jump of length zero is the velocity, not 0/0


# What carries gradient ------------------------------------------------------------------------------------------------


class Linear(torch.nn.Module):
    """The exact mean velocity plus a trainable affine part, so that every derivative depends on the weights."""

    def __init__(self, world) -> None:
        super().__init__()
        gen = torch.Generator().manual_seed(7)
        self.w = torch.nn.Parameter(0.3 * torch.randn(4, 3, 3, generator=gen, dtype=torch.float64))
        self.exact = world.flow_map

    def forward(self, x, s, t):
        a, b, c, d = self.w
        source, target = s[:, None], t[:, None]
        own = x @ a + torch.sin(x @ b) * source + (x @ c) * source * target + torch.cos(x @ d)
        return self.exact.mean_velocity(x, s, t) + own


def gradient(world, term: Term, b: Points, teacher=None) -> Tensor:
    student = NetFlowMap(Linear(world), world.interpolant)
    recipe = Recipe(name="one", cite=(), terms=(term,), interpolant=world.interpolant)
    objective = Objective(recipe, student, teacher=teacher)
    return torch.autograd.grad(objective((b,)).total, student.net.w)[0]


def terms(rule, **kw) -> Term:
    return Term(rule=rule, times=SortedPair(Uniform()), **kw)


def test_three_ways_to_regress_on_a_detached_target(gen) -> None:
    """|u - sg T|^2, |u - sg u + sg g|^2 and 2<u, sg g> have one gradient."""
    world = worlds.gaussian()
    b = batch(world, gen)
    for rule in (Eulerian(), Lagrangian("teacher", through="target"), Compositional("teacher")):
        plain = gradient(world, terms(rule), b, world.flow_map)
        as_target = gradient(world, terms(rule, tangent=lambda g, s, t: g), b, world.flow_map)
        student = NetFlowMap(Linear(world), world.interpolant)
        u, target = rule(student, b, Exact(world))
        linearised = torch.autograd.grad(2 * (u * (u - target).detach()).mean(), student.net.w)[0]
        assert_close(as_target, plain, rtol=1e-12, atol=1e-14)
        assert_close(linearised, plain, rtol=1e-10, atol=1e-12)
        doubled = gradient(world, terms(rule, tangent=lambda g, s, t: 2 * g), b, world.flow_map)
        assert_close(doubled, 2 * plain, rtol=1e-12, atol=1e-14)


def through_by_hand(world, b: Points, kind: str) -> Tensor:
    student = NetFlowMap(Linear(world), world.interpolant)
    end, slope = along_target(student, b.x, S, T, through=True)
    point = end if kind == "all" else end.detach()
    loss = (slope - world.velocity(point, T)).square().mean()
    return torch.autograd.grad(loss, student.net.w)[0]


def test_lagrangian_gradients_are_where_they_are_said_to_be(gen) -> None:
    world = worlds.gaussian()
    b, teacher = batch(world, gen), world.flow_map
    got = {
        k: gradient(world, terms(Lagrangian("teacher", through=k)), b, teacher)
        for k in ("target", "jvp", "all")
    }
    assert_close(got["jvp"], through_by_hand(world, b, "jvp"), rtol=1e-10, atol=1e-12)
    assert_close(got["all"], through_by_hand(world, b, "all"), rtol=1e-10, atol=1e-12)
    for one, two in (("target", "jvp"), ("jvp", "all")):
        assert (got[one] - got[two]).norm() > 0.05 * got[two].norm()
    own = gradient(world, terms(Lagrangian("self")), b)
    assert own.isfinite().all()


def test_eulerian_gradients_are_where_they_are_said_to_be(gen) -> None:
    world = worlds.gaussian()
    b, teacher = batch(world, gen), world.flow_map
    got = {
        k: gradient(world, terms(Eulerian("teacher", through=k)), b, teacher)
        for k in ("target", "partial", "all")
    }
    student = NetFlowMap(Linear(world), world.interpolant)
    v = world.velocity(b.x, S)
    slope = along_source(student, b.x, S, T, v, through=True)[1]
    assert_close(
        got["all"],
        torch.autograd.grad(slope.square().mean(), student.net.w)[0],
        rtol=1e-10,
        atol=1e-12,
    )
    alone = along_source(student, b.x, S, T, 0 * v, through=True)[1]
    residual = alone + (slope - alone).detach()
    partial = torch.autograd.grad(residual.square().mean(), student.net.w)[0]
    assert_close(got["partial"], partial, rtol=1e-10, atol=1e-12)
    for one, two in (("target", "partial"), ("partial", "all")):
        assert (got[one] - got[two]).norm() > 0.05 * got[two].norm()


@pytest.mark.parametrize(
    "rule",
    [Eulerian(), Eulerian(tangent="self"), Lagrangian("self", through="target"), Compositional()],
)
def test_targets_are_detached(rule, gen) -> None:
    world = worlds.gaussian()
    student = NetFlowMap(Linear(world), world.interpolant)
    recipe = Recipe(name="one", cite=(), terms=(terms(rule),))
    prediction, target = rule(student, batch(world, gen), Objective(recipe, student))
    assert prediction.requires_grad
    assert not target.requires_grad


# Loss floors ----------------------------------------------------------------------------------------------------------

FLOORS = {
    "flow matching": (DiagonalRule(), "diagonal"),
    "meanflow": (Eulerian(), "expanded"),
    "imf": (Eulerian(tangent="self"), "diagonal"),
    "lsd": (Lagrangian(), "zero"),
    "psd": (Compositional(), "zero"),
    "lmd": (Lagrangian("teacher", through="all"), "zero"),
    "emd": (Eulerian("teacher", through="all"), "zero"),
    "emd-target": (Eulerian("teacher"), "zero"),
}


@pytest.mark.parametrize("name", FLOORS)
def test_loss_floors_of_the_exact_map(name, gen) -> None:
    """methods.md 6.1: MeanFlow E|grad X delta|^2, iMF and flow matching E|delta|^2, the others 0 (float32 times: 1e-10)."""
    world, n = worlds.gaussian(), 20_000
    rule, kind = FLOORS[name]
    pair = SortedPair(Uniform(0.05, 0.98))
    term = Term(rule=rule, times=Diagonal(pair) if name == "flow matching" else pair)
    recipe = Recipe(name="floor", cite=(), terms=(term,))
    objective = Objective(recipe, world.flow_map, teacher=world.flow_map)
    (b,) = recipe.draw(world.sample(n, gen), gen)
    rows = term.per_row(*rule(world.flow_map, b, objective), b)
    assert_close(objective((b,)).parts[term.label], rows.mean(), rtol=1e-9, atol=1e-12)
    if kind == "zero":
        assert rows.mean() < 1e-10
        return
    s, t = b.times.s.double(), b.times.t.double()
    floor = world.velocity_variance(s, b.x)
    if kind == "expanded":
        floor = floor * (world.marginal(t, b.x)[1] / world.marginal(s, b.x)[1]).square()
    excess = rows - floor.mean(
        1
    )  # given the times the loss has this mean: a paired, sharper comparison
    assert abs(excess.mean()) < 5 * excess.std() / n**0.5
    assert floor.mean() > 0.1
    assert L2()(torch.ones(2, 3)).tolist() == [1.0, 1.0]

"""Reward fine-tuning on laws whose tilt is known: what each recipe converges to, and what each rule says at generic points."""

import pytest
import torch
from torch import nn
from worlds import G_MEAN, G_VAR, M1, PULL, D

from flowmaps.control.rewards import linear
from flowmaps.control.tune import backprop, nft, tilt
from flowmaps.control.tune_rules import (
    NFT,
    Advantage,
    Climb,
    FromBase,
    FromPolicy,
    FromSelf,
    Signed,
    Stay,
    Weighted,
    groups,
)
from flowmaps.core.flow_map import FlowMap
from flowmaps.core.interpolant import linear as line
from flowmaps.core.interpolant import trig, vp
from flowmaps.errors import ControlError
from flowmaps.learn.objective import Objective, Points, Recipe, Term
from flowmaps.learn.rules import Compositional, DiagonalRule, Eulerian
from flowmaps.learn.times import Diagonal, SortedPair, Times, Uniform
from flowmaps.learn.weights import Adaptive
from flowmaps.testing.worlds import gaussian
from flowmaps.train import Run, fit


class Affine(FlowMap):
    """The maps of all one-dimensional Gaussian laws: N(mean, std^2), both learned. Its velocity is that of its jumps."""

    def __init__(self, mean: float = 0.4, std: float = 1.7, path=None) -> None:
        super().__init__()
        self.interpolant = path or line()
        self.mean = nn.Parameter(torch.tensor([mean], dtype=D))
        self.log_std = nn.Parameter(torch.tensor([std], dtype=D).log())

    def mean_velocity(self, x, s, t, **cond):
        from flowmaps.core.oracle import Gaussian

        return Gaussian(self.mean, self.log_std.exp(), self.interpolant).flow_map.mean_velocity(
            x, s, t
        )


class Rows:
    """Data that are only counted: their law is not the map's, so whoever looks at them is found out."""

    shape, classes, name = (1,), (), "none"

    def __len__(self) -> int:
        return 4096

    def batch(self, index):
        return torch.full((len(index), 1), 7.0), None


def tuned(recipe: Recipe, steps: int, batch: int = 512, lr: float = 0.02, seed: int = 0) -> Affine:
    student = Affine()
    run = Run(
        steps=steps,
        batch=batch,
        lr=lr,
        warmup=1,
        schedule="cosine",
        seed=seed,
        ema=(),
        clip=1e9,
        precision="fp32",
        compile="no",
    )
    fit(recipe, student, Rows(), run, teacher=Affine())
    return student


def law(map_: Affine) -> tuple[float, float]:
    return map_.mean.item(), map_.log_std.exp().square().item()


@pytest.mark.parametrize(("rounds", "steps", "share"), [(1, 110, 0.05), (2, 120, 0.1)])
def test_tilt_ends_at_the_exact_tilt_and_stays_there(rounds, steps, share) -> None:
    """Gaussian data, quadratic reward: mean and variance are those of p e^r, not of p or p e^{r/2} (1.07, 1.68)."""
    mean, var = law(tuned(tilt(PULL, rounds=rounds), steps, 1500, lr=0.05))
    assert mean == pytest.approx(G_MEAN, abs=share)
    assert var == pytest.approx(G_VAR, rel=1.5 * share)


def points(world, s: float, t: float, n: int, seed: int = 0) -> Points:
    """Exact samples of a world, noised to s by its path, in float64."""
    generator = torch.Generator().manual_seed(seed)
    x_0 = world.sample(n, generator)
    eps = torch.randn(x_0.shape, generator=generator, dtype=D)
    times = Times(*(torch.full((n,), time, dtype=D) for time in (s, (s + t) / 2, t)))
    x, v = world.interpolant.sample(x_0, eps, times.s)
    return Points(x, v, times, {}, torch.tensor(0.0))


def off_by(rule, student: FlowMap, b: Points, models=None) -> torch.Tensor:
    """Mean errors of a weighted regression against features of the point, in standard errors."""
    prediction, target = rule(student, b, models)
    root = rule.weights(student, b).sqrt()[:, None]
    features = torch.stack([torch.ones_like(b.x), b.x, (1.3 * b.x).sin(), b.x.abs()], 1)
    moments = ((prediction - target) * root)[:, None] * features
    return moments.mean(0) / (moments.std(0) / len(b.x) ** 0.5)


@pytest.mark.parametrize("s", [0.37, 0.8])
def test_weights_make_the_exact_tilt_of_two_modes_stationary(s) -> None:
    """Not the base, not a mean-shifted base: only the mixture with tilted weights and means (false alarms: 8 draws at 4.5)."""
    slope, tilted = 0.6, Product_of_m1(0.6)
    b, rule = (
        points(M1, s, 0.1, 20_000),
        Weighted(DiagonalRule(), linear(torch.tensor([slope]).double())),
    )
    objective = Objective(one(DiagonalRule(), M1.interpolant), M1.flow_map)
    assert float(off_by(rule, tilted.flow_map, b, objective).abs().max()) < 4.5
    assert float(off_by(rule, M1.flow_map, b, objective).abs().max()) > 8


def test_weights_make_the_exact_flow_map_of_the_tilt_stationary() -> None:
    """Mean velocities are weighted as velocities are: MeanFlow on weighted samples learns the map of the tilt."""
    b = points(M1, 0.7, 0.15, 1500)
    rule = Weighted(Eulerian(), linear(torch.tensor([0.6]).double()))
    for world, right in ((Product_of_m1(0.6), True), (M1, False)):
        objective = Objective(one(Eulerian(), M1.interpolant), world.flow_map)
        error = float(off_by(rule, world.flow_map, b, objective).abs().max())
        assert (error < 4.5) == right, error


def Product_of_m1(slope: float):
    """M1 tilted by slope x: a mixture again."""
    from flowmaps.core.oracle import Product

    weight = torch.softmax(torch.tensor([-2.0, 2.0], dtype=D) * slope, 0)
    return Product(weight[:, None], M1.means + slope * 0.16, M1.stds, M1.interpolant)


def one(rule, path, **kw) -> Recipe:
    return Recipe(
        name="one",
        cite=(),
        terms=(Term(rule=rule, times=SortedPair(Uniform())),),
        interpolant=path,
        **kw,
    )


@pytest.mark.parametrize(
    ("make", "s", "t"), [(line, 0.6, 0.6), (trig, 0.7, 0.2), (line, 0.35, 0.0)]
)
def test_the_minimum_of_nft_is_a_step_along_the_covariance(make, s, t) -> None:
    r"""u = u_old + dX/dx Cov(A, v | x) / (beta c), for jumps of any length, on Gaussian data with a linear reward."""
    world = gaussian(make())
    a = torch.tensor([0.8, -0.5, 1.1], dtype=D)
    b = points(world, s, t, 40_000)
    beta, clip = 0.7, 30.0
    rule = NFT(Advantage(linear(a), clip), beta, kl=0.0, adaptive=False)
    student, old = Shifted(world.flow_map), world.flow_map
    recipe = one(rule, world.interpolant, ema_target=0.5)
    objective = Objective(recipe, student, teacher=old, ema=old)

    def slope(shift: torch.Tensor) -> torch.Tensor:
        student.shift.data = shift
        prediction, _ = rule(student, b, objective)
        loss = prediction.square().flatten(1).sum(1).mean()
        return torch.autograd.grad(loss, student.shift)[0]

    zero, step = torch.zeros(3, dtype=D), torch.ones(3, dtype=D)
    at_zero = slope(zero)
    found = -at_zero / (slope(step) - at_zero)
    c = world.interpolant.at(b.times.s[:1], b.x[:1])
    rate = float(c.dalpha - c.dsigma * c.alpha / c.sigma)
    var_s, var_t = (world.marginal(time[:1], b.x[:1])[1] ** 2 for time in (b.times.s, b.times.t))
    spread = (a * world.std).square().sum().sqrt()
    covariance = a * rate * (c.sigma**2 * world.std**2 / var_s)[0] / spread
    exact = (var_t / var_s).sqrt()[0] * covariance / (beta * clip)
    torch.testing.assert_close(found, exact, atol=0.06 * float(exact.abs().max()), rtol=0)


class Shifted(FlowMap):
    """A map whose mean velocity is off by a learned constant."""

    def __init__(self, exact: FlowMap) -> None:
        super().__init__()
        self.exact, self.interpolant = exact, exact.interpolant
        self.shift = nn.Parameter(torch.zeros(3, dtype=D))

    def mean_velocity(self, x, s, t, **cond):
        return self.exact.mean_velocity(x, s, t) + self.shift


def test_the_parts_of_nft_are_those_of_the_papers() -> None:
    """Errors of the clean sample, q |x+ - x0|^2 / w+ and so on, computed as the papers write them, at a generic point."""
    world = gaussian()
    b = points(world, 0.6, 0.25, 7)
    student, old, base = (Shifted(world.flow_map) for _ in range(3))
    student.shift.data += 0.3
    old.shift.data += torch.tensor([0.1, -0.2, 0.05])
    advantage = Advantage(linear(torch.tensor([0.8, -0.5, 1.1]).double()), 2.0)
    rule = NFT(advantage, 0.4, kl=0.3)
    objective = Objective(one(rule, line(), ema_target=0.5), student, teacher=base, ema=old)
    up, down, stay = rule(student, b, objective)[0].unbind(1)
    s, _, t = b.times
    u, u_old = student.mean_velocity(b.x, s, t), old.mean_velocity(b.x, s, t)
    h = 1e-5
    far, near = (old.mean_velocity(b.x + k * b.v, s + k, t) for k in (h, -h))
    total = (far - near) / (2 * h)
    v, v_old = (each + 0.35 * total for each in (u, u_old))  # t - s = -.35
    x_0 = b.x - 0.6 * b.v
    q = ((advantage(x_0, {}).clamp(-2, 2) / 2 + 1) / 2)[:, None]
    plus, minus = 0.4 * v + 0.6 * v_old, 1.4 * v_old - 0.4 * v
    for part, velocity, share in ((up, plus, q), (down, minus, 1 - q)):
        error = b.x - 0.6 * velocity - x_0
        expected = share * error.square() / error.abs().mean(1, keepdim=True)
        torch.testing.assert_close(part.square(), expected, atol=1e-7, rtol=1e-5)
    torch.testing.assert_close(stay.square(), 0.3 * (u - base.mean_velocity(b.x, s, t)).square())


def test_nft_tilts_further_with_every_step_unless_it_is_anchored() -> None:
    reward = linear(torch.tensor([1.0]))
    settings = dict(beta=1.0, clip=5.0, diagonal=1.0, ends=0.0)
    few, many = (law(tuned(nft(reward, kl=0.0, **settings), n, 128, lr=0.02)) for n in (20, 50))
    held = law(tuned(nft(reward, kl=100.0, **settings), 50, 128, lr=0.02))
    assert 0.4 + 0.05 < few[0] < many[0]
    assert abs(held[0] - 0.4) < 0.3 * (many[0] - 0.4)
    assert many[1] == pytest.approx(1.7**2, rel=0.15)


@pytest.mark.parametrize("jumps", [1, 2])
def test_backprop_with_an_anchor_is_the_proximal_step(jumps) -> None:
    r"""Each noise ends where r(y) - lambda |y - x|^2 is largest: shrunk towards the centre, narrower than the tilt."""
    strength, weight = 0.5, 0.4  # PULL is -.25 (x - 2)^2
    share = 2 * weight / (2 * weight + strength)
    mean, var = law(tuned(backprop(PULL, jumps=jumps, output=weight, keep=0.0), 80, 256, lr=0.1))
    assert mean == pytest.approx(share * 0.4 + (1 - share) * 2.0, abs=0.02)
    assert var == pytest.approx((share * 1.7) ** 2, rel=0.03)
    assert var < G_VAR


def test_an_anchor_on_velocities_holds_the_base() -> None:
    held = law(tuned(backprop(PULL, output=0.0, velocity=300.0, keep=0.0), 30, 128))
    assert held == pytest.approx((0.4, 1.7**2), abs=0.1)


def test_kept_maps_learn_from_their_own_samples() -> None:
    """The velocity that `keep` teaches is that of the student's samples: at the exact map nothing moves."""
    still = backprop(linear(torch.zeros(1)), output=1e-6, keep=1.0)
    assert law(tuned(still, 20, 256, lr=0.005)) == pytest.approx((0.4, 1.7**2), rel=0.1)
    recipe = backprop(PULL, keep=2.0)
    kept = {term.label: term for term in recipe.terms if isinstance(term.state, FromSelf)}
    assert {type(term.rule) for term in kept.values()} == {DiagonalRule, Compositional}


def carried(state, student: FlowMap, base: FlowMap, old: FlowMap, n: int = 12, cond=None):
    recipe = Recipe(
        name="one",
        cite=(),
        terms=(Term(rule=Stay(), times=SortedPair(Uniform(0.2, 0.9)), state=state),),
        interpolant=student.interpolant,
        ema_target=0.5,
    )
    generator = torch.Generator().manual_seed(4)
    (b,) = recipe.draw(torch.full((n, 1), 9.0), generator, cond)
    return Objective(recipe, student, teacher=base, ema=old).prepared(recipe.terms[0], b), b


@pytest.mark.parametrize("make", [line, vp])
@pytest.mark.parametrize(("state", "who"), [(FromSelf, 0), (FromPolicy, 2), (FromBase, 1)])
def test_samples_come_from_whom_they_should_and_are_noised_afresh(state, who, make) -> None:
    maps = [Affine(mean, std, make()) for mean, std in ((0.0, 1.0), (3.0, 0.5), (-4.0, 0.2))]
    after, before = carried(state(jumps=2), *maps)
    path = maps[0].interpolant
    x_0, eps = path.endpoints(
        after.v.double(), after.x.double(), after.times.s.double(), "velocity"
    )
    exact = maps[who](before.x, 1.0, 0.0)
    torch.testing.assert_close(x_0, exact.detach(), atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(eps, before.v.double(), atol=1e-3, rtol=1e-3)
    assert float((before.v - before.x).abs().min()) > 1e-3
    assert not after.x.requires_grad


def test_groups_are_told_the_same() -> None:
    label = torch.arange(12)
    after, before = carried(FromSelf(group=4), Affine(), Affine(), Affine(), cond={"label": label})
    assert after.cond["label"].tolist() == [0] * 4 + [4] * 4 + [8] * 4
    assert torch.equal(before.cond["label"], label)


def test_advantages_compare_within_a_group() -> None:
    r = torch.tensor([1.0, 2.0, 6.0, -1.0, 3.0, 100.0], dtype=D)
    label = torch.tensor([3, 3, 3, 5, 5, 8])
    found = Advantage(lambda x: x[:, 0])(r[:, None], {"label": label})
    off = torch.tensor([-2.0, -1.0, 3.0, -2.0, 2.0, 0.0], dtype=D)
    torch.testing.assert_close(found, off / off.square().mean().sqrt())
    text = torch.stack([torch.full((2, 3), float(k)) for k in label.tolist()])
    torch.testing.assert_close(
        Advantage(lambda x: x[:, 0])(r[:, None], {"text": text, "label": label}), found
    )
    clipped = Advantage(lambda x: x[:, 0], clip=0.7)(r[:, None], {"label": label})
    torch.testing.assert_close(clipped, found.clamp(-0.7, 0.7))
    assert groups({}, 3).tolist() == [0, 0, 0]


def test_equal_and_forbidden_samples_have_advantages() -> None:
    same = Advantage(lambda x: 0 * x[:, 0] + 2.0)(torch.randn(5, 1), {})
    assert same.tolist() == [0.0] * 5
    r = torch.tensor([0.0, 1.0, -torch.inf, 2.0])
    found = Advantage(lambda x: r)(torch.zeros(4, 1), {})
    assert found[2] == found[0] == found.min()
    with pytest.raises(ControlError, match="forbids every sample"):
        Advantage(lambda x: torch.full((4,), -torch.inf))(torch.zeros(4, 1), {})


def test_what_cannot_be_meant_is_refused() -> None:
    reward = linear(torch.ones(1))
    with pytest.raises(ControlError, match="an anchor"):
        backprop(reward, output=0.0)
    with pytest.raises(ControlError, match="shares that are at most 1"):
        nft(reward, diagonal=0.9, ends=0.3)
    with pytest.raises(ControlError, match="beta > 0"):
        nft(reward, beta=0.0)
    with pytest.raises(ControlError, match="rounds >= 1"):
        tilt(reward, rounds=0)
    with pytest.raises(ControlError, match="other metrics"):
        tilt(
            reward,
            recipe=one(DiagonalRule(), line()).__class__(
                name="x",
                cite=(),
                terms=(Term(rule=DiagonalRule(), times=Diagonal(Uniform()), metric=Adaptive()),),
            ),
        )
    with pytest.raises(ControlError, match="asks for the velocity 'teacher'"):
        Weighted(DiagonalRule("teacher"), reward)
    with pytest.raises(ControlError, match="jumps >= 1"):
        FromSelf(jumps=0)
    with pytest.raises(ControlError, match="the reward has none"):
        tuned(backprop(lambda x: x[:, 0].detach()), 1)


def test_recipes_print_and_resume_as_others_do() -> None:
    reward = linear(torch.ones(1))
    for recipe in (backprop(reward), nft(reward), tilt(reward)):
        assert recipe.needs_teacher
        assert "Recipe(name=" in repr(recipe)
    assert nft(reward).sources == {"conditional", "ema", "teacher"}
    assert tilt(reward, rounds=4).refresh == (0.25, 0.5, 0.75)
    assert [term.share for term in nft(reward, diagonal=1.0, ends=0.0).terms] == [1.0]
    composed = nft(reward, diagonal=0.6, ends=0.0, compose=0.4)
    assert [term.label for term in composed.terms] == ["velocity", "compositional"]
    assert Signed()(torch.tensor([[2.0, 4.0]]), torch.tensor([[1.0, 1.0]])).tolist() == [2.0]
    assert isinstance(Climb(reward), Climb)

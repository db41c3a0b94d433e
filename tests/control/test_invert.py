"""Inversion and editing: exact on exact maps, of known order where the velocity is integrated."""

import math

import pytest
import torch

from flowmaps.control.edit import edit, interpolate, sdedit, slerp
from flowmaps.control.invert import (
    BDIA,
    WAYS,
    FixedPoint,
    Jump,
    Ode,
    invert,
    noise_statistics,
)
from flowmaps.control.likelihood import ByJumps, log_prob
from flowmaps.core.flow_map import FlowMap, NetFlowMap
from flowmaps.core.interpolant import linear
from flowmaps.core.oracle import Gaussian
from flowmaps.core.parametrization import Denoised
from flowmaps.core.solver import EULER, HEUN
from flowmaps.errors import ControlError
from flowmaps.sample import CFG
from flowmaps.testing.worlds import gaussian, product, rotated


class DownOnly(FlowMap):
    """An exact map below the diagonal, and a network that was never asked above it."""

    def __init__(self, world) -> None:
        super().__init__()
        self.exact, self.interpolant = world.flow_map, world.interpolant

    def mean_velocity(self, x, s, t, **cond):
        u = self.exact.mean_velocity(x, s, t)
        return torch.where((t > s)[:, None], torch.sin(3 * x), u)


class Long(DownOnly):
    """An exact map below the diagonal; above it its jumps are 3 % too long."""

    def mean_velocity(self, x, s, t, **cond):
        return self.exact.mean_velocity(x, s, t) * torch.where(t > s, 1.03, 1.0)[:, None]


def test_a_network_that_predicts_the_image_has_no_jump_up_from_data(gen) -> None:
    """It says nothing of the noise there: refused, where it went up to no noise at all. Its velocity and its jumps down serve."""
    world = gaussian()
    x = world.sample(7, gen)

    def data(x, s, t):
        """The image that makes the exact jump, and the mean one on the diagonal."""
        u, inside = world.flow_map.mean_velocity(x, s, t), s.clamp(min=1e-6)[:, None]
        return x - inside * u

    f = NetFlowMap(data, linear(), Denoised(linear()))
    for way in (lambda: invert(f, x, Jump()), lambda: log_prob(f, x, ByJumps())):
        with pytest.raises(ControlError, match="predicts the image says nothing"):
            way()
    by_ode, back = invert(f, x, Ode(64), back=1), invert(f, x, FixedPoint(1))
    exact = world.flow_map(x, 0.0, 1.0)
    torch.testing.assert_close(by_ode.x, exact, rtol=0, atol=1e-3)
    torch.testing.assert_close(back.x, exact, rtol=0, atol=1e-4)
    later = world.flow_map(x, 0.0, 0.1)
    torch.testing.assert_close(invert(f, later, Jump(), start=0.1).x, exact)


@pytest.mark.parametrize("world", [gaussian, product, rotated])
@pytest.mark.parametrize("steps", [1, 3])
def test_jumps_invert_an_exact_map(world, steps, gen) -> None:
    exact = world()
    x = exact.sample(7, gen)
    found = invert(exact.flow_map, x, Jump(steps), back=2)
    assert float(found.error.max()) < 1e-9
    torch.testing.assert_close(found.x, exact.flow_map(x, 0.0, 1.0))
    assert found.cost.forward == 7 * (steps + 2)


@pytest.mark.parametrize("solver", [EULER, HEUN])
def test_the_round_trip_of_the_ode_has_its_solvers_order(solver, gen) -> None:
    world = product()
    x = world.sample(20, gen)
    errors = [
        float(invert(world.flow_map, x, Ode(k, solver), back=1).error.norm()) for k in (16, 32)
    ]
    assert math.log2(errors[0] / errors[1]) == pytest.approx(solver.order, abs=0.35)


@pytest.mark.parametrize("steps", [1, 4])
def test_fixed_point_inverts_what_jumps_do(steps, gen) -> None:
    """Where the network is wrong above the diagonal jumps fail, and the fixed point does not notice."""
    world = rotated()
    x = world.sample(9, gen)
    assert float(invert(DownOnly(world), x).error.max()) > 0.1
    sharp = FixedPoint(steps, iterations=200, memory=4, rate=0.7, tolerance=1e-11)
    found = invert(DownOnly(world), x, sharp)
    assert float(found.error.max()) < 1e-10
    torch.testing.assert_close(found.x, world.flow_map(x, 0.0, 1.0), atol=1e-8, rtol=0)


def test_memory_makes_the_fixed_point_converge(gen) -> None:
    """A linear map of slopes 0.4 to 3: the plain iteration diverges, d + 1 residuals solve it."""
    stds = torch.tensor([0.4, 1.3, 3.0]).double()
    world = Gaussian(torch.tensor([0.7, -1.1, 0.3]).double(), stds, linear())
    x = world.sample(5, gen)
    plain = FixedPoint(iterations=12, memory=0, tolerance=1e-9)
    mixed = FixedPoint(iterations=12, memory=3, tolerance=1e-9)
    assert float(invert(world.flow_map, x, plain).error.max()) > 1e-2
    found = invert(world.flow_map, x, mixed)
    assert float(found.error.max()) < 1e-8
    assert found.cost.forward < 5 * 13


def test_part_of_the_way_and_its_noise(gen) -> None:
    world = gaussian()
    x = world.sample(4000, gen)
    part = invert(world.flow_map, x, start=0.0, stop=0.4)
    torch.testing.assert_close(part.x, world.flow_map(x, 0.0, 0.4))
    told = noise_statistics(invert(world.flow_map, x).x)
    assert told.pop("size") == pytest.approx(1, abs=0.05)
    assert all(abs(value) < 0.1 for value in told.values()), told
    assert abs(noise_statistics(x)["neighbours"]) > 0.2
    for start, stop in ((0.5, 0.5), (0.7, 0.2), (-0.1, 1.0)):
        with pytest.raises(ControlError, match="start < stop"):
            invert(world.flow_map, x, start=start, stop=stop)
    for broken in (lambda: Jump(0), lambda: Ode(0), lambda: FixedPoint(iterations=0)):
        with pytest.raises(ControlError):
            broken()


class Two(FlowMap):
    """Two classes, each a Gaussian; `bend` is an error of the jumps."""

    def __init__(self, bend: float = 0.0) -> None:
        super().__init__()
        means, stds = ([[0.4, -1.0], [1.1, 0.5]]), ([[1.7, 0.6], [0.6, 1.2]])
        self.worlds = [
            Gaussian(torch.tensor(m).double(), torch.tensor(s).double(), linear())
            for m, s in zip(means, stds, strict=True)
        ]
        self.interpolant, self.bend = linear(), bend

    def mean_velocity(self, x, s, t, *, label):
        a, b = (world.flow_map.mean_velocity(x, s, t) for world in self.worlds)
        return torch.where((label == 0)[:, None], a, b) + self.bend * torch.cos(2 * x)


def labels(n: int, k: int) -> dict[str, torch.Tensor]:
    return {"label": torch.full((n,), k)}


@pytest.mark.parametrize("residual", [False, True])
def test_editing_between_gaussians(residual, gen) -> None:
    """From pure noise the edit is the transport between the two laws; from earlier times it keeps more."""
    model = Two()
    a, b = model.worlds
    x = a.sample(6, gen)
    found = edit(model, x, labels(6, 0), labels(6, 1), time=1.0, residual=residual)
    torch.testing.assert_close(found.x, b.mean + b.std / a.std * (x - a.mean))
    z = a.flow_map(x, 0.0, 0.3)
    early = edit(model, x, labels(6, 0), labels(6, 1), time=0.3, residual=residual)
    torch.testing.assert_close(early.middle, z)
    torch.testing.assert_close(early.x, b.flow_map(z, 0.3, 0.0))
    assert early.cost.forward == 6 * (3 if residual else 2)


def test_the_residual_forgives_a_bad_inversion(gen) -> None:
    model = Two(bend=0.3)
    x = model.worlds[0].sample(6, gen)
    kept = edit(model, x, labels(6, 0), labels(6, 0), residual=True)
    torch.testing.assert_close(kept.x, x)
    lost = edit(model, x, labels(6, 0), labels(6, 0), residual=False)
    assert float((lost.x - x).norm(dim=1).min()) > 0.02


def test_guidance_belongs_on_the_way_down(gen) -> None:
    """Guided both ways (trap 7) the unedited picture drifts; guided down only from a guided map, it is the guided end."""
    model = Two()
    x = model.worlds[0].sample(6, gen)
    guided = CFG(model, 2.0, {"label": 1})
    found = edit(model, x, labels(6, 0), labels(6, 0), time=0.6, residual=False, onto=guided)
    up = model.worlds[0].flow_map(x, 0.0, 0.6)
    torch.testing.assert_close(found.x, guided(up, 0.6, 0.0, **labels(6, 0)))
    assert found.cost.forward == 6 * 3


@pytest.mark.parametrize(("time", "wanted"), [(0.1, 0.998), (0.4, 0.931), (0.7, 0.589)])
def test_sdedit_keeps_the_known_correlation(time, wanted, gen) -> None:
    world = Gaussian(torch.tensor([0.4]).double(), torch.tensor([1.7]).double(), linear())
    x = world.sample(40_000, gen)
    found = sdedit(world.flow_map, x, time=time, generator=gen)
    both = torch.corrcoef(torch.stack([x[:, 0], found.x[:, 0]]))[0, 1]
    assert float(both) == pytest.approx(wanted, abs=0.006)
    assert float(found.x.std()) == pytest.approx(1.7, rel=0.02)
    with pytest.raises(ControlError, match="time in"):
        sdedit(world.flow_map, x, time=0.0, generator=gen)


def test_interpolation_is_the_great_circle_of_the_noises(gen) -> None:
    world = gaussian()
    a, b = world.sample(4, gen), world.sample(4, gen)
    found = interpolate(world.flow_map, a, b, 5)
    white = [(x - world.mean) / world.std for x in (a, b)]
    for i, share in enumerate((0.0, 0.25, 0.5, 0.75, 1.0)):
        wanted = world.mean + world.std * slerp(*white, share)
        torch.testing.assert_close(found.x[i], wanted)
    assert found.cost.forward == 4 * 7
    with pytest.raises(ControlError, match="two ends"):
        interpolate(world.flow_map, a, b, 1)


def test_interpolated_conditions(gen) -> None:
    model = Two()
    a, b = (world.sample(3, gen) for world in model.worlds)
    found = interpolate(model, a, b, 4, source=labels(3, 0), target=labels(3, 1))
    torch.testing.assert_close(found.x[0], a)
    torch.testing.assert_close(found.x[-1], b)
    first = model.worlds[0].flow_map(found.middle[1], 1.0, 0.0)
    torch.testing.assert_close(found.x[1], first)


def test_slerp_turns_and_keeps_lengths(gen) -> None:
    a, b = torch.randn(2, 5, 3, 2, generator=gen).double()
    b = b * (a.flatten(1).norm(dim=1) / b.flatten(1).norm(dim=1))[:, None, None]
    dot = lambda x, y: (
        (x * y).flatten(1).sum(1) / x.flatten(1).norm(dim=1) / y.flatten(1).norm(dim=1)
    )
    middle = slerp(a, b, 0.3)
    torch.testing.assert_close(middle.flatten(1).norm(dim=1), a.flatten(1).norm(dim=1))
    torch.testing.assert_close(dot(a, middle).acos(), 0.3 * dot(a, b).acos())
    torch.testing.assert_close(slerp(a, a, 0.4), a)
    near = slerp(a, a + 1e-7 * b, 0.5)
    torch.testing.assert_close(near, a + 0.5e-7 * b, atol=1e-12, rtol=0)


def test_a_jump_up_is_where_a_fixed_point_may_begin() -> None:
    """Of an exact map it is the answer; of one whose jumps up are 3 % too long, a few corrections are left to do."""
    world = rotated()
    x = world.sample(50, torch.Generator().manual_seed(5))
    exact = invert(world.flow_map, x, FixedPoint(1, iterations=1, jump=True))
    assert exact.error.max() < 1e-9
    assert exact.cost.equivalents == pytest.approx(3 * len(x))  # up, its misfit, down

    long = Long(world)
    alone, corrected, cold = (
        invert(long, x, way).error.mean()
        for way in (Jump(1), WAYS["corrected"](1), FixedPoint(1, iterations=5))
    )
    assert corrected < alone / 20
    assert corrected < cold / 2


@pytest.mark.parametrize("gamma", [1.0, 0.6])
@pytest.mark.parametrize("steps", [2, 5])
def test_jumps_both_ways_find_the_noise_of_an_exact_map(steps, gamma, gen) -> None:
    world = rotated()
    x = world.sample(7, gen)
    found = invert(world.flow_map, x, BDIA(steps, gamma), stop=0.9)
    torch.testing.assert_close(found.x, world.flow_map(x, 0.0, 0.9))
    torch.testing.assert_close(found.before, world.flow_map(x, 0.0, 0.9 * (1 - 1 / steps)))
    assert float(found.error.max()) < 1e-9
    assert found.cost.forward == 7 * (4 * steps - 3)


def test_jumps_both_ways_come_back_through_any_network(gen) -> None:
    """Where the network is wrong above the diagonal jumps lose the data and the pair does not; nor does an edit of nothing."""
    world = rotated()
    x, wrong = world.sample(9, gen), DownOnly(world)
    assert float(invert(wrong, x, Jump(4)).error.max()) > 0.1
    for way in (BDIA(4), BDIA(4, gamma=0.5)):
        assert float(invert(wrong, x, way).error.max()) < 1e-9
        torch.testing.assert_close(edit(wrong, x, {}, {}, time=0.8, method=way).x, x)
    model = Two(bend=0.3)
    kept = edit(model, x[:, :2], labels(9, 0), labels(9, 0), method=BDIA(3))
    torch.testing.assert_close(kept.x, x[:, :2])
    assert kept.cost.forward == 9 * 9


@pytest.mark.parametrize("gamma", [1.0, 0.4])
def test_gamma_is_the_share_of_what_was_missed(gamma, gen) -> None:
    world = rotated()
    x, f = world.sample(5, gen), Long(world)
    middle = f(x, 0.0, 0.5)
    wanted = f(middle, 0.5, 1.0) + gamma * (x - f(middle, 0.5, 0.0))
    torch.testing.assert_close(invert(f, x, BDIA(2, gamma)).x, wanted)


def test_an_edit_of_a_pair_starts_from_both_points(gen) -> None:
    model = Two()
    a, b = model.worlds
    x = a.sample(6, gen)
    found = edit(model, x, labels(6, 0), labels(6, 1), time=1.0, method=BDIA(2))
    z, half = a.flow_map(x, 0.0, 1.0), a.flow_map(x, 0.0, 0.5)
    wanted = b.flow_map(half, 0.5, 0.0) + z - b.flow_map(half, 0.5, 1.0)
    torch.testing.assert_close(found.x, wanted)
    torch.testing.assert_close(found.middle, z)
    # guided on the way down only, along the old path's two points
    guided = CFG(model, 2.0, {"label": 0})
    led = edit(model, x, labels(6, 0), labels(6, 1), time=1.0, method=BDIA(2), onto=guided)
    to = labels(6, 1)
    wanted = guided(half, 0.5, 0.0, **to) + z - guided(half, 0.5, 1.0, **to)
    torch.testing.assert_close(led.x, wanted)


def test_what_a_pair_asks_for(gen) -> None:
    for broken in (lambda: BDIA(1), lambda: BDIA(4, gamma=0.0), lambda: BDIA(4, gamma=1.2)):
        with pytest.raises(ControlError):
            broken()
    x, f = gaussian().sample(3, gen), gaussian().flow_map
    for asked in (
        lambda: invert(f, x, BDIA(4), back=2),
        lambda: edit(f, x, {}, {}, method=BDIA(4), jumps=2),
    ):
        with pytest.raises(ControlError, match="its own 4 steps; got 2"):
            asked()

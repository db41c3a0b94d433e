"""Where points come from: each state against the exact map, orders of solvers, what is refused, and that draws hold all chance."""

from dataclasses import replace

import pytest
import torch
from torch.testing import assert_close

from flowmaps.core import solver
from flowmaps.core.flow_map import NetFlowMap
from flowmaps.core.interpolant import linear, trig, ve, vp
from flowmaps.errors import RecipeError
from flowmaps.learn.endpoints import Endpoint
from flowmaps.learn.objective import Objective, Recipe, Term
from flowmaps.learn.points import map_points, move, shard
from flowmaps.learn.rules import DiagonalRule, Eulerian, Lagrangian
from flowmaps.learn.states import Coupled, OnPolicy, Prior, Stored, Trajectories, Trajectory
from flowmaps.learn.times import Diagonal, SortedPair, Times, ToData, Uniform
from flowmaps.testing import worlds
from flowmaps.testing.contract import Straight, trajectories

PAIR = SortedPair(Uniform(0.1, 0.9))


def recipe(state, rule=None, times=PAIR, **kw) -> Recipe:
    term = Term(rule=rule or Eulerian("teacher"), times=times, state=state)
    return Recipe(name="one", cite=(), terms=(term,), **kw)


def carried(state, world, gen, *, n=64, times=PAIR):
    """Points after the state, in float64, the noise that they came from, and the objective."""
    r = recipe(state, times=times, interpolant=world.interpolant)
    (b,) = r.draw(world.sample(n, gen).float(), gen)
    b = map_points(lambda t: t.double() if t.is_floating_point() else t, b)
    objective = Objective(r, world.flow_map, teacher=world.flow_map)
    return objective.prepared(r.terms[0], b), b.x


@pytest.mark.parametrize("make", [linear, trig, vp])
def test_trajectories_land_on_the_map_with_the_order_of_the_solver(make, gen) -> None:
    world = worlds.gaussian(make())
    for method, order in ((solver.EULER, 1), (solver.HEUN, 2), (solver.RK4, 4)):
        off = []
        for k in (8, 16):
            b, noise = carried(Trajectory(method, k, k), world, torch.Generator().manual_seed(3))
            one = torch.ones(len(noise), dtype=torch.float64)
            exact = world.flow_map(noise, one, b.times.s), world.flow_map(noise, one, b.times.t)
            off.append(
                [float((a - e).abs().mean()) for a, e in zip((b.x, b.end), exact, strict=True)]
            )
        for coarse, fine in zip(*off, strict=True):
            assert coarse / fine > 2 ** (order - 0.5), (method.name, coarse, fine)
            assert fine < 0.2


def test_a_trajectory_without_steps_before_stays_at_noise(gen) -> None:
    world = worlds.gaussian()
    b, noise = carried(Trajectory(solver.RK4, 0, 24), world, gen)
    assert torch.equal(b.x, noise)
    assert bool((b.times.s == 1).all())
    assert_close(b.end, world.flow_map(noise, 1.0, b.times.t), atol=1e-5, rtol=0)
    assert len(b.times.t.unique()) > 30


def test_coupled_noise_is_read_in_units_of_the_prior(gen) -> None:
    """Where pure noise is 3 times as wide, a third of it is eps: x = x_0 + 3 s eps on the path ve."""
    world = worlds.gaussian(ve(3.0))
    b, noise = carried(Coupled(solver.RK4, 40), world, gen)
    x_0 = world.flow_map(noise, 1.0, 0.0)
    x, v = world.interpolant.sample(x_0, noise / 3, b.times.s)
    assert_close(b.x, x, atol=1e-5, rtol=0)
    assert_close(b.v, v, atol=1e-5, rtol=0)


@pytest.mark.parametrize("make", [linear, trig])
def test_coupled_pairs_lie_on_straight_lines(make, gen) -> None:
    """x and v are those of the pair (noise, its solution): so they obey the map of straight lines, on any path."""
    world = worlds.rotated(make())
    plane = type(world)(worlds.plane(make()), world.rotation)
    b, noise = carried(Coupled(solver.RK4, 32), plane, gen)
    lines = Straight(plane)
    one = torch.ones(len(noise), dtype=torch.float64)
    assert_close(b.x, lines(noise, one, b.times.s), atol=1e-5, rtol=0)
    assert_close(b.v, lines.velocity(b.x, b.times.s), atol=1e-4, rtol=0)
    assert_close(lines(noise, one, 0 * one), plane.flow_map(noise, one, 0 * one), atol=1e-9, rtol=0)


def test_the_students_own_points(gen) -> None:
    world = worlds.gaussian()
    b, noise = carried(OnPolicy(3), world, gen)
    assert_close(b.x, world.flow_map(noise, 1.0, b.times.s), atol=1e-9, rtol=0)
    wrong = NetFlowMap(lambda x, s, t: 0.3 * x + s[:, None] - 2 * t[:, None])
    r = recipe(OnPolicy(2))
    (drawn,) = r.draw(world.sample(8, gen).float(), gen)
    seen = Objective(r, wrong, teacher=world.flow_map).prepared(r.terms[0], drawn)
    middle = (1 + drawn.times.s) / 2
    assert_close(seen.x, wrong(wrong(drawn.x, 1.0, middle), middle, drawn.times.s))


@pytest.mark.parametrize("state", [Prior(), Trajectory(before=2, after=2), OnPolicy()])
@pytest.mark.parametrize("make", [linear, vp])
def test_data_are_not_used(state, make) -> None:
    """Two data sets, one seed: the same points, bit for bit, and pure noise before the state."""
    world = worlds.gaussian(make())
    r = recipe(state, Lagrangian("teacher", through="target"), interpolant=world.interpolant)
    losses = []
    for data in (torch.zeros(32, 3), 100 * torch.ones(32, 3)):
        drawn = r.draw(data, torch.Generator().manual_seed(5))
        teacher = worlds.gaussian(make(), torch.float32).flow_map
        student = NetFlowMap(lambda x, s, t: x.sin() + t[:, None], world.interpolant)
        losses.append(Objective(r, student, teacher=teacher)(drawn).total)
    assert torch.equal(*losses)
    assert (drawn[0].times.s == 1).all() == isinstance(state, Prior)


def test_states_compute_and_draw_nothing(gen) -> None:
    """The same points twice give the same loss, shards add up, and gradients reach the student through the rule only."""
    world = worlds.gaussian(dtype=torch.float32)
    net = torch.nn.Linear(3, 3)
    student = NetFlowMap(lambda x, s, t: net(x) * (1 + s - t)[:, None])
    student.net_module = net
    r = recipe(Trajectory(solver.HEUN, 2, 2), Endpoint())
    objective = Objective(r, student, teacher=world.flow_map)
    (b,) = r.draw(world.sample(40, gen), gen)
    whole = objective((b,)).total
    assert torch.equal(whole, objective((b,)).total)
    parts = [objective((shard(b, k, 4),)).total for k in range(4)]
    assert_close(torch.stack(parts).mean(), whole)
    ready = objective.prepared(r.terms[0], b)
    assert not ready.x.requires_grad
    assert not ready.end.requires_grad
    assert move(ready, "cpu").end.shape == (40, 3)


# Stored trajectories --------------------------------------------------------------------------------------------------


def test_stored_points_are_those_of_the_nearest_times(gen) -> None:
    world = worlds.plane()
    stored = trajectories(world.flow_map, 200, gen, torch.float64, count=6)
    r = recipe(Stored(), Endpoint(), SortedPair(Uniform()))
    (b,) = r.draw(torch.zeros(200, 2), gen, stored=stored)
    assert bool((b.times.s > b.times.t + 0.19).all())  # neighbours are 0.2 apart
    assert_close(
        b.end, world.flow_map(b.x, b.times.s.double(), b.times.t.double()), atol=1e-6, rtol=0
    )
    assert_close(
        world.flow_map(b.x, b.times.s.double(), 1.0), stored.points[:, 0], atol=1e-6, rtol=0
    )
    for time in b.times.s, b.times.t:
        assert bool(((time[:, None] - stored.times).abs().min(1).values == 0).all())
    # near what was drawn: a law in the middle of the cells moves by no more than half of one, or to its neighbour
    near = stored.at(Times(*(torch.tensor([v]).expand(200) for v in (0.77, 0.5, 0.23))))[2]
    assert (float(near.s[0]), float(near.t[0])) == pytest.approx((0.8, 0.2))
    close = stored.at(Times(*(torch.tensor([v]).expand(200) for v in (0.62, 0.61, 0.6))))[2]
    assert (float(close.s[0]), float(close.t[0])) == pytest.approx((0.6, 0.4))
    low = stored.at(Times(*(torch.zeros(200) for _ in range(3))))[2]
    assert (float(low.s[0]), float(low.t[0])) == pytest.approx((0.2, 0.0))


@pytest.mark.parametrize("make", [linear, vp, lambda: ve(3.0)])
def test_stored_pairs_replace_the_noise_of_coupled_data_only(make, gen) -> None:
    world = worlds.plane(make())
    stored = trajectories(world.flow_map, 50, gen, torch.float32, count=2)
    end = stored.points[:, -1]
    r = recipe(None, DiagonalRule(), Diagonal(Uniform(0.2, 0.8)), interpolant=make())
    (b,) = r.draw(end, torch.Generator().manual_seed(1), stored=stored)
    x_0, eps = r.interpolant.endpoints(b.v, b.x, b.times.s, "velocity")
    full = r.interpolant.sigma(torch.ones(()))
    assert_close(full * eps, stored.points[:, 0], atol=1e-4, rtol=1e-4)
    assert_close(x_0, end, atol=1e-4, rtol=1e-4)
    (free,) = r.draw(end, torch.Generator().manual_seed(1), stored=replace(stored, coupled=False))
    (plain,) = r.draw(end, torch.Generator().manual_seed(1))
    assert torch.equal(free.x, plain.x)
    assert not torch.equal(free.x, b.x)


def test_stored_times_keep_the_share_of_the_middle() -> None:
    """s and t go to the nearest stored times, w with them: (w - s) / (t - s) stays; half of it where s = t."""
    points = torch.arange(20.0, dtype=torch.float64).reshape(5, 4, 1)
    stored = Trajectories(points, torch.tensor([1.0, 0.7, 0.4, 0.0], dtype=torch.float64))
    s = torch.tensor([0.93, 0.66, 0.81, 0.02, 0.72], dtype=torch.float64)
    t = torch.tensor([0.35, 0.03, 0.81, 0.01, 0.61], dtype=torch.float64)
    share = torch.tensor([0.3, 0.8, 0.5, 0.25, 0.6], dtype=torch.float64)
    x, end, times = stored.at(Times(s, torch.lerp(s, t, share), t))
    begins, ends = [0, 1, 1, 2, 1], [2, 3, 2, 3, 2]
    assert x.flatten().tolist() == [4 * i + k for i, k in enumerate(begins)]
    assert end.flatten().tolist() == [4 * i + k for i, k in enumerate(ends)]
    a, c = stored.times[begins], stored.times[ends]
    assert torch.equal(times.s, a)
    assert torch.equal(times.t, c)
    assert_close(times.w, a + share * (c - a), rtol=0, atol=1e-12)


def test_labels_of_trajectories_beside_the_data_are_their_own(gen) -> None:
    stored = trajectories(worlds.plane().flow_map, 6, gen, torch.float32)
    stored = replace(stored, labels=torch.arange(6) + 10, coupled=False)
    one = Term(rule=Endpoint(), times=PAIR, state=Stored(), share=0.5)
    two = Term(rule=DiagonalRule(), times=Diagonal(Uniform()), share=0.5)
    r = Recipe(name="two", cite=(), terms=(one, two))
    a, b = r.draw(torch.zeros(6, 2), gen, {"label": torch.arange(6)}, stored=stored)
    assert a.cond["label"].tolist() == [10, 11, 12]
    assert b.cond["label"].tolist() == [3, 4, 5]
    (c, _) = r.draw(torch.zeros(6, 2), gen, {}, stored=stored)
    assert c.cond == {}


# What is refused ------------------------------------------------------------------------------------------------------


def test_refusals() -> None:
    with pytest.raises(
        RecipeError, match="asks for the conditional velocity, which the points of Prior"
    ):
        recipe(Prior(), Eulerian())
    with pytest.raises(RecipeError, match="asks for the conditional velocity"):
        recipe(OnPolicy(), Eulerian("self", tangent="conditional"))
    with pytest.raises(
        RecipeError, match="regresses on the end of a trajectory, which data does not know"
    ):
        recipe(None, Endpoint())
    with pytest.raises(RecipeError, match="which Coupled"):
        recipe(Coupled(), Endpoint())
    for bad in (
        lambda: Trajectory(before=-1),
        lambda: Trajectory(after=0),
        lambda: Coupled(steps=0),
    ):
        with pytest.raises(RecipeError, match="steps"):
            bad()
    with pytest.raises(RecipeError, match="jumps >= 1"):
        OnPolicy(0)
    with pytest.raises(
        RecipeError, match="reads stored trajectories: make them with flowmaps pairs"
    ):
        recipe(Stored(), Endpoint()).draw(torch.zeros(2, 2), torch.Generator())
    for times in ([1.0, 0.5], [0.9, 0.5, 0.0], [1.0, 0.5, 0.5]):
        with pytest.raises(RecipeError, match="times that fall from 1"):
            Trajectories(torch.zeros(4, 3, 2), torch.tensor(times))


def test_who_begins_at_pure_noise() -> None:
    """A trajectory without steps before s begins there, and of the others only those whose points are noise."""
    assert [s.at_noise for s in (Prior(), Trajectory(before=0), Trajectory(before=1))] == [
        True,
        True,
        False,
    ]
    assert not any(s.at_noise for s in (Coupled(), OnPolicy(), Stored()))


def test_who_is_needed() -> None:
    assert recipe(Trajectory(), Endpoint()).needs_teacher
    assert recipe(Coupled(), DiagonalRule()).needs_teacher
    assert not recipe(Stored(), Endpoint()).needs_teacher
    assert recipe(Stored(), Endpoint()).needs_trajectories
    assert not recipe(Trajectory(), Endpoint(), ToData(Uniform())).needs_trajectories
    assert recipe(OnPolicy(), Eulerian("teacher")).sources == {"self", "teacher"}

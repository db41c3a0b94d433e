"""The pooled velocity: exact over all data, right on average over any, and refused where that is not enough.

Statistical tests: 5 standard errors, false alarm 6e-7 per number.
"""

import pytest
import torch
from torch import Generator
from torch.testing import assert_close

from flowmaps.core.flow_map import NetFlowMap
from flowmaps.core.interpolant import INTERPOLANTS, linear
from flowmaps.data import TensorData
from flowmaps.errors import RecipeError
from flowmaps.learn.guidance import Guidance
from flowmaps.learn.legs import LastLeg, ShortLeg
from flowmaps.learn.objective import Objective, Recipe, Term
from flowmaps.learn.points import shard
from flowmaps.learn.pooled import Pool, kept, pooled
from flowmaps.learn.rules import DiagonalRule, Eulerian, Lagrangian
from flowmaps.learn.states import Coupled, Prior, Trajectories
from flowmaps.learn.times import Diagonal, Fixed, SortedPair, Uniform
from flowmaps.nets import MLP
from flowmaps.recipes import get
from flowmaps.testing import worlds

TIMES = torch.tensor([0.93, 0.71, 0.52, 0.37, 0.13], dtype=torch.float64)


def alone(rule, **settings) -> Recipe:
    times = Diagonal(Uniform()) if isinstance(rule, DiagonalRule) else SortedPair(Uniform())
    return Recipe(name="alone", cite=(), terms=(Term(rule=rule, times=times),), **settings)


@pytest.mark.parametrize("name", INTERPOLANTS)
def test_over_all_data_it_is_the_velocity_of_their_law(name: str, gen: Generator) -> None:
    """Against the score of a sum of Gaussians, differentiated by autograd: $E = -\\sigma\\nabla\\log p$."""
    path, data = INTERPOLANTS[name](), torch.randn(7, 3, generator=gen).double()
    eps = torch.randn(5, 3, generator=gen).double()
    x, v = path.sample(data[[0, 2, 2, 5, 6]], eps, TIMES)
    a, sigma = path.alpha(TIMES)[:, None], path.sigma(TIMES)[:, None]
    x.requires_grad_(True)
    squares = (x[:, None] - a[..., None] * data).square().sum(-1)
    score = torch.autograd.grad((-squares / (2 * sigma**2)).logsumexp(1).sum(), x)[0]
    noise = -sigma * score
    mean = (x - sigma * noise) / a
    exact = path.dalpha(TIMES)[:, None] * mean + path.dsigma(TIMES)[:, None] * noise
    every = Pool(data, torch.ones(5, 7, dtype=torch.bool))
    found = pooled(path, x.detach(), v, TIMES, every)
    assert (found - v).abs().max() > 1e-3 * v.abs().max()
    assert_close(found, exact.detach(), rtol=1e-8, atol=1e-8 * float(v.abs().max()))


@pytest.mark.parametrize("name", ["linear", "trig", "vp"])
def test_it_is_right_on_average_and_varies_less(name: str, gen: Generator) -> None:
    """Whatever the number of data, here 4; leaving a row's own sample out of them makes a bias."""
    world = worlds.gaussian(INTERPOLANTS[name]())
    path, n, groups = world.interpolant, 4, 1500
    x_0 = world.sample(n * groups, gen)
    s = (0.15 + 0.8 * torch.rand(groups, generator=gen).double()).repeat_interleave(n)
    x, v = path.sample(x_0, torch.randn(x_0.shape, generator=gen).double(), s)
    exact = world.velocity(x, s)
    own = torch.eye(n, dtype=torch.bool).repeat(1, 1)

    def over(same):
        rows = zip(x.split(n), v.split(n), s.split(n), x_0.split(n), strict=True)
        return torch.cat([pooled(path, *row, Pool(data, same)) for *row, data in rows])

    test = torch.stack([torch.ones_like(s), x[:, 0], torch.sin(x[:, 1] + s)], 1)
    moments = lambda found: ((found - exact)[:, :, None] * test[:, None]).flatten(1)
    among = moments(over(torch.ones(n, n, dtype=torch.bool)))
    error = among.view(groups, n, -1).mean(1)
    assert (error.mean(0).abs() < 5 * error.std(0) / groups**0.5).all()
    assert_close(over(own), v)  # nothing to pool over: the conditional velocity
    variance = lambda found: (found - exact).square().mean()
    assert variance(over(torch.ones(n, n, dtype=torch.bool))) < 0.75 * variance(v)
    without = moments(over(~own)).view(groups, n, -1).mean(1)
    assert (without.mean(0).abs() > 10 * without.std(0) / groups**0.5).any()


def test_an_objective_pools_at_the_source_of_a_jump(gen: Generator) -> None:
    world = worlds.gaussian(linear())
    recipe = alone(Eulerian("pooled"))
    (b,) = recipe.draw(world.sample(7, gen), gen)
    term = recipe.terms[0]
    found = Objective(recipe, world.flow_map).prepared(term, b).v
    assert_close(found, pooled(linear(), b.x, b.v, b.times.s, b.pool))


def test_clean_data_keep_their_own_velocity(gen: Generator) -> None:
    path, data = linear(), torch.randn(4, 3, generator=gen)
    s = torch.tensor([0.0, 1e-7, 1e-3, 1.0])
    x, v = path.sample(data, torch.randn(4, 3, generator=gen), s)
    found = pooled(path, x, v, s, Pool(data, torch.ones(4, 4, dtype=torch.bool)))
    assert torch.equal(found[:3], v[:3])
    assert_close(found[3], x[3] - data.mean(0))  # pure noise tells nothing


def test_rows_pool_over_what_was_told_the_same_and_dropped_ones_over_all(gen: Generator) -> None:
    recipe = alone(DiagonalRule("pooled"), guidance=Guidance({"label": 3}, Fixed(1.0), 0.5))
    x_0, label = torch.randn(12, 2, generator=gen), torch.arange(12) % 3
    earlier = kept(torch.randn(6, 2, generator=gen), {"label": torch.arange(6) % 3})
    (b,) = recipe.draw(x_0, gen, {"label": label}, before=earlier)
    every = torch.cat([label, torch.arange(6) % 3])
    dropped = b.cond["label"] == 3
    assert dropped.any()
    assert not dropped.all()
    assert torch.equal(b.pool.same, (label[:, None] == every) | dropped[:, None])
    assert torch.equal(b.pool.x, torch.cat([x_0, earlier.x]))


def test_terms_that_ask_for_the_conditional_velocity_keep_it(gen: Generator) -> None:
    terms = (
        Term(rule=DiagonalRule("pooled"), times=Diagonal(Uniform()), share=0.5),
        Term(rule=Eulerian(), times=SortedPair(Uniform()), share=0.5),
    )
    one, two = Recipe(name="two", cite=(), terms=terms).draw(torch.randn(8, 2, generator=gen), gen)
    assert one.pool is not None
    assert two.pool is None


def test_conditions_of_any_kind_are_told_apart(gen: Generator) -> None:
    text = torch.randn(3, 4, 2, generator=gen)[[0, 1, 0, 2]]
    told = kept(torch.zeros(4, 1), {"text": text, "label": torch.tensor([0, 0, 0, 1])}).told
    assert told[0] == told[2]
    assert len(set(told.tolist())) == 3
    assert torch.equal(kept(torch.zeros(2, 1), {}).told, torch.zeros(2, dtype=torch.int64))


def test_shards_pool_as_one_process(gen: Generator) -> None:
    world = worlds.gaussian(linear())
    recipe = alone(DiagonalRule("pooled"))
    objective = Objective(recipe, world.flow_map)
    drawn = recipe.draw(world.sample(8, gen).float(), gen)
    whole = objective.prepared(recipe.terms[0], drawn[0]).v
    parts = [objective.prepared(recipe.terms[0], shard(drawn[0], rank, 2)).v for rank in (0, 1)]
    assert_close(torch.stack(parts, 1).flatten(0, 1), whole)
    assert not torch.equal(whole, drawn[0].v)


def test_the_memory_is_read_again_when_a_run_goes_on(tmp_path, gen: Generator) -> None:
    """Bit for bit, mirrored pictures included; and it matters, for without it the run is another."""
    from flowmaps.train import Run, fit

    data = TensorData(
        "noise", torch.randn(23, 1, 2, 2, generator=gen), torch.arange(23) % 2, ("a", "b")
    )

    def run(steps: int, memory: int = 11, **options):
        torch.manual_seed(3)
        net = NetFlowMap(MLP((1, 2, 2), width=8, depth=1, classes=2))
        settings = Run(
            steps=steps,
            batch=4,
            flip=True,
            precision="fp32",
            schedule="constant",
            warmup=0,
            compile="no",
        )
        fit(get("default", memory=memory), net, data, settings, **options)
        return torch.cat([p.detach().flatten() for p in net.parameters()])

    whole = run(6)
    run(3, out=tmp_path / "run")
    assert torch.equal(run(6, out=tmp_path / "run", resume=True), whole)
    assert not torch.equal(run(6, memory=0), whole)


def test_the_loss_is_one_graph(gen: Generator) -> None:
    """Short legs, the pool and float32 under autocast: nothing of it falls back to Python when a run compiles."""
    recipe = get("default")
    objective = Objective(recipe, NetFlowMap(MLP((3,), width=8, depth=1)))
    drawn = recipe.draw(torch.randn(8, 3, generator=gen), gen)
    torch.compiler.reset()
    traced = torch.compile(objective, backend="aot_eager", fullgraph=True)
    assert_close(traced(drawn).total, objective(drawn).total)


@pytest.mark.parametrize(("limit", "rows"), [(2**28, 11), (100, 8), (10, 0)])
def test_a_memory_has_room_for_so_many_bytes(
    limit: int, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whole steps of 4 rows of 12 bytes; a run that goes on reads what a run in one go remembers."""
    from flowmaps.train import memory

    def read(step: int) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        return torch.full((4, 3), float(step)), {"label": torch.full((4,), step)}

    monkeypatch.setattr(memory, "LIMIT", limit)
    straight, steps = memory.Memory(11, 4, read), -(-rows // 4)
    for step in range(7):
        one = straight.before(step, torch.neg)
        other = memory.Memory(11, 4, read).before(step, torch.neg)
        if not rows:
            assert one is other is None
            continue
        assert one is not None
        assert other is not None
        # full from the first step on: of steps whose own memory this is not, and never of the step itself
        come = [k if k >= 0 else k + 6 for k in range(step - steps, step)]
        assert one.x[:, 0].tolist() == [-float(k) for k in come for _ in range(4)]
        assert step not in one.told
        assert torch.equal(one.x, other.x)
        assert torch.equal(one.told, other.told)
        straight.add(*read(step))


@pytest.mark.parametrize(
    ("build", "expected"),
    [
        (lambda: Lagrangian("pooled"), "not known"),
        (lambda: LastLeg("pooled"), "not known"),
        (lambda: Eulerian("pooled", through="partial"), "quadratic"),
        (lambda: ShortLeg("pooled", leg="path"), "leg='path'"),
        (lambda: ShortLeg("pooled", leg="heun"), "one Euler step"),
        (lambda: Term(rule=DiagonalRule("pooled"), times=Diagonal(Uniform()), state=Prior()), "leave the state out"),
        (lambda: Term(rule=DiagonalRule("pooled"), times=Diagonal(Uniform()), state=Coupled()), "leave the state out"),
        (lambda: Term(rule=Eulerian("pooled", tangent="conditional"), times=SortedPair(Uniform())), "'conditional'"),
    ],
)  # fmt: skip
def test_it_is_refused_where_it_would_be_wrong(build, expected: str) -> None:
    with pytest.raises(RecipeError, match=expected):
        build()


def test_stored_noise_is_refused(gen: Generator) -> None:
    x_0 = torch.randn(4, 2, generator=gen)
    stored = Trajectories(x_0[:, None].repeat(1, 2, 1), torch.tensor([1.0, 0.0]))
    with pytest.raises(RecipeError, match="belongs to them"):
        alone(DiagonalRule("pooled")).draw(x_0, gen, stored=stored)
    assert alone(DiagonalRule()).draw(x_0, gen, stored=stored)[0].pool is None

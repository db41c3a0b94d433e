"""Recipes and objectives: what is drawn, how losses add up, who answers, and guidance against its closed form."""

from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from flowmaps.core import interpolant
from flowmaps.core.flow_map import FlowMap, NetFlowMap
from flowmaps.core.parametrization import Denoised
from flowmaps.errors import RecipeError
from flowmaps.learn.guidance import Guidance
from flowmaps.learn.jumps import Dyadic
from flowmaps.learn.objective import Objective, Recipe, Term
from flowmaps.learn.points import move, shard
from flowmaps.learn.rules import Compositional, DiagonalRule, Eulerian, Lagrangian
from flowmaps.learn.times import Diagonal, Fixed, LogUniform, SortedPair, Uniform
from flowmaps.learn.weights import InSpace, LearnedLogVar, MaxSNR, TangentNorm
from flowmaps.testing import worlds

PAIR = SortedPair(Uniform(0.05, 0.95))


class Net(nn.Module):
    """A small smooth network with every dependence, float64, that counts its calls."""

    def __init__(self, seed: int = 0, dim: int = 3) -> None:
        super().__init__()
        gen = torch.Generator().manual_seed(seed)
        self.a = nn.Parameter(0.4 * torch.randn(dim, 16, generator=gen, dtype=torch.float64))
        self.b = nn.Parameter(0.4 * torch.randn(16, dim, generator=gen, dtype=torch.float64))
        self.seen: list[dict] = []

    def forward(self, x, s, t, **cond):
        self.seen.append(cond)
        shift = 0.0
        if "label" in cond:
            shift = shift + 0.1 * cond["label"].double()[:, None]
        if "scale" in cond:
            shift = shift + 0.2 * cond["scale"].double()[:, None]
        return torch.tanh(x @ self.a + s[:, None] - 2 * t[:, None] + shift) @ self.b


def recipe(*terms: Term, **kw) -> Recipe:
    return Recipe(name="one", cite=(), terms=terms, **kw)


def student(seed: int = 0) -> NetFlowMap:
    return NetFlowMap(Net(seed))


EVERYTHING = recipe(
    Term(rule=DiagonalRule(), times=Diagonal(PAIR), share=0.5, weight=LearnedLogVar(8)),
    Term(rule=Eulerian(), times=PAIR, share=0.25, tangent=TangentNorm(), scale=1.7),
    Term(rule=Compositional("ema"), times=Dyadic(3), share=0.25, weight=MaxSNR()),
    ema_target=0.9,
)


def test_total_is_the_sum_of_shares_times_scales_times_means(gen) -> None:
    world = worlds.gaussian()
    drawn = EVERYTHING.draw(world.sample(40, gen), gen)
    assert [len(b.x) for b in drawn] == [20, 10, 10]
    f, ema = student(), student(5)
    objective = Objective(EVERYTHING, f, ema=ema)
    with torch.no_grad():
        objective.logvar.last.bias.fill_(0.3)
        objective.logvar.last.weight.normal_(std=0.3, generator=gen)
    loss, parts = objective(drawn)
    expected = 0.0
    for term, b in zip(EVERYTHING.terms, drawn, strict=True):
        prediction, target = term.rule(f, b, objective)
        row = term.per_row(prediction, target, b)
        assert_close(parts[term.label], row.detach().mean(), rtol=1e-12, atol=0)
        s, t = b.times.s, b.times.t
        if isinstance(term.weight, LearnedLogVar):
            omega = objective.logvar(s, t)
            row = row / omega.exp() + omega
        elif term.weight is not None:
            row = row * term.weight(interpolant.linear(), s, t)
        expected = expected + term.share * term.scale * row.mean()
    assert_close(loss, expected, rtol=1e-6, atol=0)  # the learned variance is float32
    assert list(parts) == ["diagonal", "eulerian", "compositional"]
    assert not any(part.requires_grad for part in parts.values())  # they are kept by logs


@pytest.mark.parametrize("ranks", [2, 5])
def test_shards_add_up_to_the_whole(ranks, gen) -> None:
    drawn = EVERYTHING.draw(worlds.gaussian().sample(40, gen), gen, {"label": torch.arange(40) % 3})
    objective = Objective(EVERYTHING, student(), ema=student(5))
    pieces = [tuple(shard(b, rank, ranks) for b in drawn) for rank in range(ranks)]
    losses = [objective(piece).total for piece in pieces]
    whole = objective(drawn).total
    assert_close(torch.stack(losses).mean(), whole, rtol=1e-10, atol=0)
    slope = torch.autograd.grad(torch.stack(losses).mean(), objective.student.net.a)[0]
    assert_close(
        slope, torch.autograd.grad(whole, objective.student.net.a)[0], rtol=1e-9, atol=1e-14
    )
    rows = torch.cat([piece[0].cond["label"] for piece in pieces])
    assert torch.equal(rows.sort().values, drawn[0].cond["label"].sort().values)


def test_uneven_shards_are_refused(gen) -> None:
    drawn = EVERYTHING.draw(worlds.gaussian().sample(40, gen), gen)
    with pytest.raises(
        RecipeError, match="a term has 10 rows, which 3 processes cannot share evenly"
    ):
        shard(drawn[1], 0, 3)


def test_draws_are_the_generators(gen) -> None:
    x_0 = torch.arange(40.0).reshape(40, 1).repeat(1, 3)
    one, two, other = (
        EVERYTHING.draw(x_0, torch.Generator().manual_seed(seed), progress=0.37)
        for seed in (1, 1, 2)
    )
    for a, b, c in zip(one, two, other, strict=True):
        assert torch.equal(a.x, b.x)
        assert not torch.equal(a.x, c.x)
        assert a.progress == torch.tensor(0.37)
        # x and v lie on the path of one (x_0, eps): linear, x - s v is the data; terms take successive rows
        data = a.x - a.times.s[:, None] * a.v
        assert_close(data, data.round(), rtol=0, atol=1e-4)
    starts = [(b.x - b.times.s[:, None] * b.v).round()[0, 0].item() for b in one]
    assert starts == [0.0, 20.0, 30.0]
    noise = one[0].v + x_0[:20]
    assert abs(noise.mean()) < 5 / 60**0.5  # standard normal: five standard errors
    moved = move(one[0], "cpu")
    assert torch.equal(moved.times.w, one[0].times.w)


def test_small_batches_wrap_around(gen) -> None:
    many = recipe(
        *(Term(rule=DiagonalRule(), times=Diagonal(PAIR), share=0.6, name=k) for k in "abc")
    )
    drawn = many.draw(torch.arange(5.0)[:, None].repeat(1, 3), gen)
    assert [len(b.x) for b in drawn] == [3, 3, 3]


def test_vp_times_are_kept_where_velocities_are_finite(gen) -> None:
    path = interpolant.vp()
    one = recipe(Term(rule=DiagonalRule(), times=Diagonal(Fixed(0.0))), interpolant=path)
    (b,) = one.draw(torch.randn(5, 3, generator=gen), gen)
    assert bool((b.times.s == torch.tensor(path.t_min)).all())
    assert b.v.isfinite().all()


def test_ddpm_term_is_the_noise_loss(gen) -> None:
    """E|eps^ - eps|^2, the long way, for a network that predicts noise on the VP path."""
    path, net = interpolant.vp(), Net()
    one = recipe(
        Term(rule=DiagonalRule(), times=Diagonal(Uniform(0.02, 1.0)), weight=InSpace("eps")),
        interpolant=path,
        parametrization=Denoised(path, "eps"),
        local=True,
    )
    f = NetFlowMap(net, path, Denoised(path, "eps"), local=True)
    (b,) = one.draw(worlds.gaussian(path).sample(40, gen), gen)
    s = b.times.s
    eps = path.convert(b.v, b.x, s, source="velocity", target="eps")
    direct = (net(b.x, s, s) - eps).square().mean()
    assert_close(
        Objective(one, f)((b,)).total, direct, rtol=1e-4, atol=0
    )  # float32 times on a steep path


# Companions -----------------------------------------------------------------------------------------------------------


def test_missing_companions_are_refused() -> None:
    taught = recipe(Term(rule=Lagrangian("teacher"), times=PAIR))
    averaged = recipe(Term(rule=Compositional("ema"), times=PAIR), ema_target=0.9)
    with pytest.raises(RecipeError, match="learns from a teacher: give one"):
        Objective(taught, student())
    with pytest.raises(RecipeError, match="needs a moving average of the student: give ema="):
        Objective(averaged, student())
    with pytest.raises(
        RecipeError, match=r"its teacher on vp.*bring it there with flowmaps.rematch"
    ):
        Objective(taught, student(), teacher=worlds.gaussian(interpolant.vp()).flow_map)
    with pytest.raises(RecipeError, match=r"lives on linear\(\), its student on trig\(\)"):
        Objective(taught, NetFlowMap(Net(), interpolant.trig()), teacher=worlds.gaussian().flow_map)


def test_recipes_are_checked_when_they_are_built() -> None:
    term = Term(rule=DiagonalRule(), times=Diagonal(PAIR))
    with pytest.raises(RecipeError, match="needs at least one term"):
        recipe()
    with pytest.raises(RecipeError, match="give each a name of its own"):
        recipe(term, term)
    with pytest.raises(RecipeError, match="give both one path"):
        recipe(term, parametrization=Denoised(interpolant.vp()))
    with pytest.raises(RecipeError, match="set ema_target"):
        recipe(Term(rule=Lagrangian("ema"), times=PAIR))
    for share in (0.0, 1.2):
        with pytest.raises(RecipeError, match="share is a fraction of the batch"):
            replace(term, share=share)
    with pytest.raises(RecipeError, match="the rule must have through='target'"):
        Term(rule=Lagrangian(), times=PAIR, tangent=TangentNorm())


def test_needs_are_read_off_the_rules() -> None:
    assert not EVERYTHING.needs_teacher
    assert EVERYTHING.needs_jvp
    assert EVERYTHING.sources == {"conditional", "ema"}
    psd = recipe(Term(rule=Compositional("teacher"), times=PAIR))
    assert psd.needs_teacher
    assert not psd.needs_jvp
    assert recipe(Term(rule=Eulerian(tangent="teacher"), times=PAIR)).needs_teacher


@pytest.mark.parametrize("rule", [Compositional("ema"), Lagrangian("ema"), DiagonalRule("ema")])
def test_the_average_answers_for_ema(rule, gen) -> None:
    one = recipe(Term(rule=rule, times=PAIR), ema_target=0.9)
    drawn = one.draw(worlds.gaussian().sample(7, gen), gen)
    f = student()
    losses = [Objective(one, f, ema=student(seed))(drawn).total for seed in (0, 5)]
    assert (losses[0] - losses[1]).abs() > 1e-3
    own = replace(one, terms=(Term(rule=type(rule)("self"), times=PAIR),))
    assert_close(
        losses[0], Objective(own, f)(drawn).total, rtol=1e-12, atol=0
    )  # an average equal to the student


def test_companions_are_frozen_and_the_student_is_not(gen) -> None:
    teacher, ema = student(3), student(4)
    one = recipe(
        Term(rule=Lagrangian("teacher", through="all"), times=PAIR, share=0.5),
        Term(rule=Compositional("ema"), times=PAIR, share=0.5),
        ema_target=0.9,
    )
    objective = Objective(one, student(), teacher=teacher, ema=ema)
    objective(one.draw(worlds.gaussian().sample(8, gen), gen)).total.backward()
    assert all(p.grad is None for m in (teacher, ema) for p in m.parameters())
    assert all(p.grad is not None for p in objective.student.parameters())
    assert {n.split(".")[0] for n, p in objective.named_parameters() if p.requires_grad} == {
        "student"
    }


# Guidance -------------------------------------------------------------------------------------------------------------


class Classes(FlowMap):
    """Class k is a Gaussian; label 2 is their mixture's stand-in, another Gaussian. u(x, t, t | k) is exact.

    With `scale` w the map contains the guided field b_null + w (b_k - b_null) for labels below 2.
    """

    interpolant = interpolant.linear()

    def __init__(self, guided: float | None = None) -> None:
        super().__init__()
        self.guided, self.asked = guided, []

    def field(self, x, t, label):
        mean = torch.tensor([-0.9, 1.1, 0.2], dtype=x.dtype)[label][:, None]
        var = torch.tensor([0.3, 0.7, 1.4], dtype=x.dtype)[label][:, None]
        a, s = (1 - t)[:, None], t[:, None]
        return -mean + (s - a * var) / (a**2 * var + s**2) * (x - a * mean)

    def mean_velocity(self, x, s, t, *, label, scale=None):
        self.asked.append((label, scale))
        b, none = self.field(x, s, label), self.field(x, s, torch.full_like(label, 2))
        w = scale.to(x)[:, None] if scale is not None else self.guided
        return b if w is None else none + w * (b - none)


LABEL = torch.tensor([0, 1, 2, 1, 0])
TIME = torch.tensor([0.9, 0.7, 0.6, 0.4, 0.2], dtype=torch.float64)


def test_guided_field_is_the_fixed_point(gen) -> None:
    """v_g in terms of the student and b(x | c) is the student's own velocity when that is the guided field."""
    x, bare = torch.randn(5, 3, generator=gen, dtype=torch.float64), Classes()
    v, none = bare.field(x, TIME, LABEL), bare.field(x, TIME, torch.full((5,), 2))
    scale = 1 + 1.7 * (LABEL != 2).double()
    truth = none + scale[:, None] * (v - none)
    fixed = Guidance({"label": 2}, Fixed(2.7))
    got = fixed.conditional(Classes(2.7), v, x, TIME, {"label": LABEL}, scale)
    assert_close(got, truth, rtol=1e-11, atol=1e-11)
    by_input = Guidance({"label": 2}, LogUniform(1.0, 4.0))
    student = Classes()
    got = by_input.conditional(student, v, x, TIME, {"label": LABEL, "scale": scale}, scale)
    assert_close(got, truth, rtol=1e-11, atol=1e-11)
    # the unconditional prediction is asked without guidance
    assert torch.equal(student.asked[1][0], torch.full((5,), 2))
    assert torch.equal(student.asked[1][1], torch.ones(5).double())
    # and away from the fixed point it is the formula
    got = fixed.conditional(Classes(), v + 0.5, x, TIME, {"label": LABEL}, scale)
    assert_close(got, v + 0.5 + (1 - 1 / scale)[:, None] * (v - none), rtol=1e-11, atol=1e-11)


def test_teacher_is_guided_as_when_sampling(gen) -> None:
    x, teacher = torch.randn(5, 3, generator=gen, dtype=torch.float64), Classes()
    v, none = teacher.field(x, TIME, LABEL), teacher.field(x, TIME, torch.full((5,), 2))
    scale = torch.tensor([1.5, 2.7, 1.0, 3.2, 0.8], dtype=torch.float64)
    cond = {"label": LABEL, "scale": scale}
    got = Guidance({"label": 2}, LogUniform()).teacher(teacher, x, TIME, cond, scale)
    assert_close(got, none + scale[:, None] * (v - none), rtol=1e-11, atol=1e-11)
    assert all(asked is None for _, asked in teacher.asked)  # a teacher knows no scale
    part = Guidance({"label": 2}, LogUniform(), low=0.4, high=0.7).teacher(
        teacher, x, TIME, cond, scale
    )
    inside = torch.tensor([False, True, True, True, False])
    assert_close(part, torch.where(inside[:, None], got, v), rtol=1e-11, atol=1e-11)
    assert_close(Guidance({"label": 2}).teacher(teacher, x, TIME, {"label": LABEL}, scale), v)


def test_dropped_labels_are_not_guided(gen) -> None:
    n = 20_000
    label = torch.randint(3, (n,), generator=gen)
    cond, scale = Guidance({"label": 3}, LogUniform(1.5, 4.0), dropout=0.2).draw(
        {"label": label}, n, gen
    )
    dropped = cond["label"] == 3
    assert abs(dropped.double().mean().item() - 0.2) < 5 * (0.16 / n) ** 0.5
    assert bool((scale[dropped] == 1).all())
    assert bool((scale[~dropped] >= 1.5).all())
    assert torch.equal(cond["label"][~dropped], label[~dropped])
    assert torch.equal(cond["scale"], scale)
    fixed, scale = Guidance({"label": 3}, Fixed(2.0)).draw({"label": label}, n, gen)
    assert "scale" not in fixed
    assert set(scale.unique().tolist()) == {1.0, 2.0}


def test_scale_reaches_the_network_and_the_target(gen) -> None:
    net = Net()
    one = recipe(
        Term(rule=Eulerian(), times=PAIR),
        guidance=Guidance({"label": 2}, LogUniform(1.5, 4.0), dropout=0.3),
    )
    f = NetFlowMap(net)
    drawn = one.draw(worlds.gaussian().sample(9, gen), gen, {"label": torch.arange(9) % 2})
    objective = Objective(one, f)
    with_guidance = objective(drawn).total
    assert all(
        torch.equal(cond["scale"], drawn[0].scale)
        for cond in net.seen
        if bool((cond["scale"] != 1).any())
    )
    b = drawn[0]
    v = one.guidance.conditional(f, b.v, b.x, b.times.s, b.cond, b.scale).detach()
    by_hand = Objective(replace(one, guidance=None), f)((replace(b, v=v),)).total
    assert_close(with_guidance, by_hand, rtol=1e-10, atol=0)
    plain = Objective(replace(one, guidance=None), f)(drawn).total
    assert (plain - with_guidance).abs() > 1e-4


def test_guidance_that_is_off_only_drops_labels(gen) -> None:
    one = recipe(
        Term(rule=DiagonalRule(), times=Diagonal(PAIR)),
        guidance=Guidance({"label": 2}, dropout=0.5),
    )
    f = student()
    drawn = one.draw(worlds.gaussian().sample(9, gen), gen, {"label": torch.arange(9) % 2})
    assert bool((drawn[0].cond["label"] == 2).any())
    loss = Objective(one, f)(drawn).total
    assert_close(loss, Objective(replace(one, guidance=None), f)(drawn).total, rtol=0, atol=0)
    assert len(f.net.seen) == 2  # no extra calls


def test_guided_teacher_in_a_rule(gen) -> None:
    one = recipe(
        Term(rule=DiagonalRule("teacher"), times=Diagonal(PAIR)),
        guidance=Guidance({"label": 2}, Fixed(2.5), dropout=0.4),
    )
    teacher, drawn = Classes(), None
    drawn = one.draw(worlds.gaussian().sample(9, gen), gen, {"label": torch.arange(9) % 2})
    b = drawn[0]
    target = one.terms[0].rule(student(), b, Objective(one, student(), teacher=teacher))[1]
    t = b.times.s
    v, none = teacher.field(b.x, t, b.cond["label"]), teacher.field(b.x, t, torch.full((9,), 2))
    assert_close(target, none + b.scale[:, None] * (v - none), rtol=1e-6, atol=1e-6)


def test_guidance_errors(gen) -> None:
    with pytest.raises(
        RecipeError, match="guidance needs conditional data, such as labelled data; got none"
    ):
        Guidance({})
    with pytest.raises(RecipeError, match=r"dropout is a share in \[0, 1\); got 1.0"):
        Guidance({"label": 2}, dropout=1.0)
    with pytest.raises(RecipeError, match="a guidance scale is positive"):
        Guidance({"label": 2}, Fixed(0.0))
    with pytest.raises(
        RecipeError, match=r"drops the conditions .*label.*, but the batch has no such"
    ):
        Guidance({"label": 2}).draw({}, 5, gen)


def test_models_answer_without_a_gradient_but_through_a_jump(gen) -> None:
    """Rules take velocities for targets: the student's own and the average's are constants."""
    objective = Objective(EVERYTHING, student(), ema=student(5))
    b = EVERYTHING.draw(worlds.gaussian().sample(8, gen), gen)[1]
    s, _, t = b.times
    for source in ("self", "ema"):
        assert not objective.velocity(source, b.x, s, b).requires_grad
        assert not objective.jump(source, b.x, s, t, b).requires_grad
    assert objective.jump("self", b.x, s, t, b, through=True).requires_grad
    with torch.no_grad():
        assert not objective.jump("self", b.x, s, t, b, through=True).requires_grad

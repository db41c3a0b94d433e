"""Learned restorers on a Gaussian world: the evidence bound to the digit, what training converges to, draws that cover."""

import math

import pytest
import torch
from torch import nn

from flowmaps.control.amortised import (
    TOLD,
    VFM,
    Adapted,
    Branched,
    CoSIGN,
    Evidence,
    GaussianNoise,
    NoiseLaw,
    Recover,
    cosign,
    told,
    vfm,
)
from flowmaps.control.operators import Mask, Matrix, Measurement, gaussian_blur
from flowmaps.control.restore import coverage, restore
from flowmaps.core.interpolant import linear, trig
from flowmaps.core.oracle import Gaussian, Rotated
from flowmaps.data import TensorData
from flowmaps.data.measured import Measured
from flowmaps.errors import ControlError, DataError
from flowmaps.learn.objective import Objective
from flowmaps.learn.rules import Points
from flowmaps.learn.times import Times
from flowmaps.nets import MLP
from flowmaps.recipes import get
from flowmaps.train import Run, fit

D = torch.float64
A = torch.tensor([[1.0, 0.4, -0.3], [0.2, -0.8, 0.6]], dtype=D)
SIGMA = 0.3
MEAN = torch.tensor([0.7, -1.1, 0.3], dtype=D)
STD = torch.tensor([0.55, 1.0, 1.6], dtype=D)
BASIS = torch.linalg.qr(torch.tensor([[1, 2, 0.5], [-0.3, 1, 2], [1, -1, 1.4]], dtype=D))[0]


def world(path=None, dtype=D):
    return Rotated(Gaussian(MEAN.to(dtype), STD.to(dtype), path or linear()), BASIS.to(dtype))


WORLD, SINGLE = world(), world(dtype=torch.float32)
CENTRE, SPREAD = BASIS @ MEAN, BASIS @ torch.diag(STD**2) @ BASIS.T


def bayes(back, seen=None, sigma=SIGMA):
    """Mean (B, 3) and covariances (B, 3, 3) of data given A^T y, of masked A."""
    seen = torch.ones_like(back) if seen is None else seen
    masked = A * seen[:, None]
    precision = torch.linalg.inv(SPREAD) + masked.mT @ masked / sigma**2
    covariance = torch.linalg.inv(precision)
    pull = back / sigma**2 + torch.linalg.solve(SPREAD, CENTRE)
    return (covariance @ pull[..., None])[..., 0], covariance


def root(path):
    """The matrix G of the map from noise to data: x = centre + G z."""
    zero = torch.zeros(1, 3, dtype=D)
    full = float(path.sigma(torch.ones((), dtype=D)))
    base = world(path).flow_map
    start = base(zero, 1.0, 0.0)
    return (base(full * torch.eye(3, dtype=D), 1.0, 0.0) - start).T


def measured(n, generator, seen=None):
    x = WORLD.sample(n, generator)
    clean = (x if seen is None else x * seen) @ A.T
    return x, clean + SIGMA * torch.randn(n, 2, generator=generator, dtype=D)


class Linear(nn.Module):
    """A Gaussian whose mean is affine in A^T y and whose factor is the same for all: the exact posterior is one of these."""

    def __init__(self, generic=None) -> None:
        super().__init__()
        draw = (
            torch.zeros if generic is None else lambda *n: 0.4 * torch.randn(*n, generator=generic)
        )
        self.slope = nn.Parameter(draw(3, 3).to(D))
        self.shift = nn.Parameter(draw(3).to(D))
        self.scale = nn.Parameter(draw(3).to(D))
        self.lower = nn.Parameter(draw(3, 3).to(D))

    def forward(self, back, seen, sigma, **cond):
        factor = self.scale.exp().diag() + self.lower.tril(-1)
        return NoiseLaw(back @ self.slope.T + self.shift, factor.expand(len(back), 3, 3))


def gaussian_kl(m, s, mean, covariance):
    gap = mean - m
    inverse = torch.linalg.inv(covariance)
    trace = (inverse @ s).diagonal(dim1=-2, dim2=-1).sum(-1)
    logs = torch.logdet(covariance) - torch.logdet(s)
    return 0.5 * (trace + torch.einsum("bi,bij,bj->b", gap, inverse, gap) - 3 + logs)


@pytest.mark.parametrize("path", [linear(), trig()], ids=["linear", "trig"])
def test_the_bound_misses_the_evidence_by_the_divergence(path, gen) -> None:
    """At a generic q: bound + log p(y) = KL(q || posterior), in data, for masks that differ from row to row; no draws needed."""
    net = Adapted(world(path).flow_map, Linear(gen.manual_seed(5)))
    full = float(path.sigma(torch.ones((), dtype=D)))
    seen = torch.tensor([[1.0, 1, 1], [1, 0, 1], [0, 1, 1], [1, 1, 0]], dtype=D)
    _, y = measured(4, gen, seen)
    back = (y @ A) * seen
    # six points whose mean is 0 and covariance 1 integrate a quadratic exactly
    nodes = math.sqrt(3) * torch.cat([torch.eye(3, dtype=D), -torch.eye(3, dtype=D)])
    sigma, g = torch.full((4,), SIGMA, dtype=D), root(path)
    loss = torch.zeros(4, dtype=D)
    for node in nodes:
        cond = {"back": back, "seen": seen, "sigma": sigma}
        one = torch.ones(4, dtype=D)
        x = full * node.expand(4, 3)
        b = Points(x, x, Times(one, one, 0 * one), cond, one[0])
        prediction, target = Evidence(Matrix(A))(net, b, None)
        assert prediction.shape == (4, 1)
        assert not target.any()
        loss += 3 * prediction[:, 0].detach() / 6
    law = net.noise(back, seen, sigma)
    masked = A * seen[:, None]
    marginal = masked @ SPREAD @ masked.mT + SIGMA**2 * torch.eye(2, dtype=D)
    centre = (masked @ CENTRE[:, None])[..., 0]
    evidence = torch.distributions.MultivariateNormal(centre, marginal).log_prob(y)
    constant = y.square().sum(1) / 2 / SIGMA**2 + math.log(2 * math.pi * SIGMA**2)
    x_0 = world(path).flow_map(full * law.mean, 1.0, 0.0)
    spread = g @ law.factor @ law.factor.mT @ g.T
    wanted = gaussian_kl(x_0, spread, *bayes(back, seen))
    torch.testing.assert_close(loss + constant + evidence, wanted.detach())
    assert bool((wanted > 0.1).all())


def test_the_default_law_and_its_divergence(gen) -> None:
    law = NoiseLaw(*torch.randn(2, 5, 1, 2, 2, generator=gen, dtype=D).abs())
    normal = torch.distributions.Normal
    kl = torch.distributions.kl_divergence(normal(*law), normal(0.0, 1.0)).flatten(1).sum(1)
    torch.testing.assert_close(law.divergence(), kl)
    dense = NoiseLaw(law.mean, torch.diag_embed(law.factor.flatten(1)))
    torch.testing.assert_close(dense.divergence(), kl)
    eps = torch.randn(5, 1, 2, 2, generator=gen, dtype=D)
    torch.testing.assert_close(dense(eps), law(eps))
    torch.testing.assert_close(law(eps), law.mean + law.factor * eps)
    lower = torch.randn(5, 4, 4, generator=gen, dtype=D).tril().abs()
    z = NoiseLaw(law.mean, lower)(eps) - law.mean
    torch.testing.assert_close(z.flatten(1), torch.einsum("bij,bj->bi", lower, eps.flatten(1)))
    start = GaussianNoise(MLP((3, 2, 2), 16, 1))(torch.ones(5, 1, 2, 2), law.mean, torch.ones(5))
    assert not start.mean.any()
    assert bool((start.factor == 1).all())


def learned(recipe, net, steps, lr=0.02, batch=256, masks=None):
    """After training on 20,000 data, by the moving average."""
    generator = torch.Generator().manual_seed(1)
    data = TensorData("gaussian", WORLD.sample(20_000, generator).float())
    run = Run(
        steps=steps,
        batch=batch,
        lr=lr,
        warmup=10,
        precision="fp32",
        compile="no",
        device="cpu",
        clip=1e3,
        ema=(0.1,),
    )
    state = fit(recipe, net, Measured(data, SIGMA, lambda x: x @ A.T.to(x), masks), run)
    return state.averaged()


def test_training_finds_the_posterior_and_its_draws_cover(gen) -> None:
    net = Adapted(SINGLE.flow_map, Linear().float())
    found = learned(vfm(Matrix(A)), net, 1500).double()
    x, y = measured(1500, gen)
    mean, covariance = bayes(y @ A)
    law = found.noise(y @ A, None, None)
    centre = WORLD.flow_map(law.mean, 1.0, 0.0)
    g = root(linear())
    spread = g @ law.factor[0] @ law.factor[0].T @ g.T
    size = float(covariance[0].max())
    torch.testing.assert_close(spread, covariance[0], atol=0.02 * size, rtol=0)
    torch.testing.assert_close(centre, mean, atol=0.03 * size**0.5, rtol=0)
    found = Adapted(WORLD.flow_map, found.noise)
    out = restore(found, y, Matrix(A), SIGMA, shape=(3,), method=VFM(), draws=19, generator=gen)
    for level, share in coverage(out.x, x).items():
        assert share == pytest.approx(level, abs=0.02)
    z = out.x - mean
    drawn = torch.einsum("nbi,nbj->ij", z, z) / z[..., 0].numel()
    torch.testing.assert_close(drawn, covariance[0], atol=0.03 * size, rtol=0)
    # one call of q and one of the map for each draw
    assert out.cost.forward == 2 * 19 * 1500
    assert out.cost.backward == 0


def test_a_told_map_is_the_map_until_it_learns(gen) -> None:
    base = WORLD.flow_map
    x, y = measured(7, gen)
    cond = told(Measurement(y, Matrix(A), SIGMA), x)
    s, t = torch.rand(2, 7, generator=gen, dtype=D)
    net = MLP((12,), 16, 1).double()
    branched = Branched(base, net)
    assert torch.equal(branched(x, s, t, **cond), base(x, s, t))
    nn.init.normal_(net.last.weight, generator=gen)
    assert not torch.allclose(branched(x, s, t, **cond), base(x, s, t))
    assert torch.equal(branched(x, s, t), base(x, s, t))
    h = torch.cat([x, y @ A, torch.ones(7, 3), torch.full((7, 3), math.log(SIGMA))], 1)
    u = base.mean_velocity(x, s, t) + net(h, s, t)[:, :3]
    torch.testing.assert_close(branched.mean_velocity(x, s, t, **cond), u)
    adapted = Adapted(base, Linear(gen))
    assert torch.equal(adapted(x, s, t, **cond), base(x, s, t))


def test_a_branch_learns_the_conditional_mean(gen) -> None:
    """E[x_0 | y, x_s] in closed form: x_s is one more measurement. Masks differ from row to row."""
    torch.random.default_generator.manual_seed(0)
    net = Branched(SINGLE.flow_map, MLP((12,), 64, 1))
    masks = lambda n, g: (torch.rand(n, 3, generator=g) < 0.7).float()
    before = Branched(SINGLE.flow_map, MLP((12,), 8, 1)).requires_grad_(False)
    after = learned(cosign(), net, 900, lr=1e-2, masks=masks)
    seen = masks(1000, gen).to(D)
    x, y = measured(1000, gen, seen)
    cond = {"back": (y @ A) * seen, "seen": seen, "sigma": torch.full((1000,), SIGMA, dtype=D)}
    cond = {name: value.float() for name, value in cond.items()}
    for s in (1.0, 0.5):
        x_s = (1 - s) * x + s * torch.randn(1000, 3, generator=gen, dtype=D)
        masked = A * seen[:, None]
        precision = torch.linalg.inv(SPREAD) + masked.mT @ masked / SIGMA**2
        precision = precision + ((1 - s) / s) ** 2 * torch.eye(3, dtype=D)
        pull = cond["back"].to(D) / SIGMA**2 + torch.linalg.solve(SPREAD, CENTRE)
        pull = pull + (1 - s) / s**2 * x_s
        mean = torch.linalg.solve(precision, pull)
        errors = [
            float((f(x_s.float(), s, 0.0, **cond) - mean).square().mean().sqrt())
            for f in (before, after)
        ]
        assert errors[1] < 0.1 < 0.4 < errors[0], (s, errors)


@pytest.mark.parametrize("steps", [1, 2])
def test_what_is_measured_is_met(steps, gen) -> None:
    torch.random.default_generator.manual_seed(0)
    net = Branched(WORLD.flow_map, MLP((12,), 16, 1).double())
    _, y = measured(40, gen)

    def call(method, sigma=SIGMA):
        return restore(net, y, Matrix(A), sigma, shape=(3,), method=method, draws=3, generator=gen)

    found = call(CoSIGN(steps))
    torch.testing.assert_close(found.x @ A.T, y.expand(3, -1, -1), atol=1e-6, rtol=0)
    assert found.cost.forward == 2 * 3 * 40 * steps
    assert float(found.std.mean()) > 0.1
    soft = call(CoSIGN(steps, scale=1.0), 3.0).x @ A.T - y
    assert float(soft.square().mean().sqrt()) > 0.5
    # one jump, projected by hand
    noise = linear().prior((40, 3), gen.manual_seed(9)).double()
    out = restore(
        net, y, Matrix(A), SIGMA, shape=(3,), method=CoSIGN(), generator=gen.manual_seed(9)
    )
    ahead = WORLD.flow_map(noise, 1.0, 0.0)
    wanted = ahead + (y - ahead @ A.T) @ torch.linalg.pinv(A).T
    torch.testing.assert_close(out.x[0], wanted)


def test_a_projection_leaves_what_a_mask_blanks(gen) -> None:
    x = torch.randn(5, 1, 6, 6, generator=gen, dtype=D)
    keep = (torch.rand(6, 6, generator=gen) < 0.5).to(D)
    y = torch.randn(5, 1, 6, 6, generator=gen, dtype=D)
    found = Measurement(y, Mask(keep), 0.1).projected(x)
    torch.testing.assert_close(found, torch.where(keep.bool(), y, x))
    blur = gaussian_blur(0.5)
    seen = Measurement(blur(x), blur, 0.1)
    near = seen.projected(x + 0.3 * torch.randn(x.shape, generator=gen, dtype=D), 200)
    assert float(seen.misfit(near).abs().max()) < 1e-6


def test_measured_data_say_how_they_were_seen(gen) -> None:
    x = torch.randn(50, 1, 4, 4, generator=gen)
    rows = TensorData("rows", x, torch.arange(50) % 3, ("a", "b", "c"))
    masks = lambda n, g: (torch.rand(n, 1, 1, 4, generator=g) < 0.5).float()
    data, index = Measured(rows, 1e-4, lambda x: 2 * x[..., :3], masks), torch.arange(7, 27)
    one, again = data.conditions(index), data.conditions(index)
    assert set(one) == {"label", *TOLD} == set(data.null)
    assert all(torch.equal(one[name], again[name]) for name in one)
    wanted = 4 * x[index] * one["seen"]
    wanted[..., 3] = 0
    torch.testing.assert_close(one["back"], wanted, atol=2e-3, rtol=0)
    assert torch.equal(one["label"], index % 3)
    assert 0.3 < float(one["seen"].mean()) < 0.7
    other = data.conditions(index.flip(0))
    assert not torch.equal(other["seen"].flip(0), one["seen"])
    for name, value in data.null.items():
        assert one[name].shape == (20, *value.shape)
    noisy = Measured(rows, 0.7).conditions(torch.arange(50))
    assert float((noisy["back"] - x).std()) == pytest.approx(0.7, abs=0.07)
    # a measurement tells a restorer the same
    keep = one["seen"][:1]
    seen = told(Measurement(x[index] * keep, Mask(keep[0]), 0.2), x[index])
    assert torch.equal(seen["seen"], keep.expand(20, 1, 4, 4))
    torch.testing.assert_close(seen["back"], x[index] * keep)
    assert float(seen["sigma"].mean()) == pytest.approx(0.2)


def test_a_recipe_may_be_given(gen) -> None:
    """Jointly for VFM, whose other terms see the map itself; in place of the regression for CoSIGN."""
    psd = get("psd")
    joint, posterior = vfm(Matrix(A), recipe=psd), cosign(recipe=psd)
    assert [term.rule for term in joint.terms[1:]] == [term.rule for term in psd.terms]
    assert posterior.terms == psd.terms
    assert (joint.name, posterior.name) == ("vfm", "cosign")
    base = MLP((3,), 16, 1)
    from flowmaps.core.flow_map import NetFlowMap

    net = Adapted(NetFlowMap(base), GaussianNoise(MLP((9,), 16, 1)))
    x = WORLD.sample(64, gen).float()
    cond = {"back": x, "seen": torch.ones_like(x), "sigma": torch.full((64,), SIGMA)}
    loss = Objective(joint, net)(joint.draw(x, gen, cond))
    assert set(loss.parts) == {"evidence", *(term.label for term in psd.terms)}
    loss.total.backward()
    assert all(p.grad is not None for p in (base.last.weight, net.noise.net.last.weight))


def test_refusals(gen) -> None:
    y, more = torch.zeros(2, 2, dtype=D), {"shape": (3,), "generator": gen}
    for method, match in ((VFM(), "Adapted"), (CoSIGN(), "Branched")):
        with pytest.raises(ControlError, match=match):
            restore(WORLD.flow_map, y, Matrix(A), SIGMA, method=method, **more)
    one = torch.ones(2, dtype=D)
    b = Points(torch.zeros(2, 3), torch.zeros(2, 3), Times(one, one, 0 * one), {}, one[0])
    with pytest.raises(ControlError, match="Adapted"):
        Evidence(Matrix(A))(WORLD.flow_map, b, None)
    for broken in (lambda: CoSIGN(0), lambda: CoSIGN(scale=0.0)):
        with pytest.raises(ControlError, match="CoSIGN needs"):
            broken()
    with pytest.raises(DataError, match="sigma > 0"):
        Measured(TensorData("one", torch.zeros(1, 1)), 0.0)
    assert Recover().velocity == "conditional"

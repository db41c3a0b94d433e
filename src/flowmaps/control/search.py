r"""Search: draw many, keep the best. No gradients, any reward; the baseline that everything else has to beat.

The law of best-of-N is known: density $Np(x)P(r\le r(x))^{N-1}$, hence KL(best-of-N || p) = log N - (N-1)/N for every reward
with a density. Search maximises; only weights (`smc`) or chains (`mcmc`) sample the tilt.
"""

import math
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Generator, Tensor

from ..core.flow_map import FlowMap
from ..core.shape import like
from ..errors import ControlError
from ..sample.sample import renoise, sample
from .budget import Budget, Cost, Result
from .conditions import ONE_JUMP, normal, pick, prior_scale, spread
from .rewards import Reward


@final
@dataclass(frozen=True, eq=False)
class Found(Result):
    """What a search found, best first within every group.

    Attributes:
        noise: The noises (N, *D) that became `x`.
        preview: The rewards (N,) by which they were chosen: those of the previews, or of the samples themselves.
        kl: KL divergence of the law of `x` from that of the map in nats, where it is known.
    """

    noise: Tensor = torch.empty(0)
    preview: Tensor = torch.empty(0)
    kl: float | None = None


def best_of_n(
    flow_map: FlowMap,
    reward: Reward,
    noise: Tensor,
    n: int | None = None,
    *,
    times: Tensor = ONE_JUMP,
    preview: Tensor | None = None,
    keep: int = 1,
    **cond: Any,
) -> Found:
    """The best of every n samples.

    A flow map shows a sample in one jump, so choosing can be cheaper than drawing: with `preview`, all noises are decoded by that
    grid, and only the winners by `times`.

    Args:
        flow_map: Any flow map; deterministic, so a noise is a sample.
        reward: Any reward.
        noise: Draws of the prior (G n, *D); rows come in groups of n.
        n: Size of a group; by default all rows are one.
        times: Grid of the samples.
        preview: Grid of the previews, such as `uniform(1)`; None chooses by the samples themselves.
        keep: Winners of every group.
        cond: Conditions, with a leading 1 or G n.

    Raises:
        ControlError: For a reward that cannot be used, or groups that do not come out even.
    """
    n = len(noise) if n is None else n
    if not 1 <= keep <= n or len(noise) % n:
        raise ControlError(
            f"noise comes in whole groups of n, and 1 <= keep <= n; got {len(noise)} rows, n={n}, keep={keep}"
        )
    cond = spread(cond, len(noise))
    with Budget() as budget, torch.no_grad():
        model, score = budget.watch(flow_map), budget.score(reward)
        x = sample(model, noise, times if preview is None else preview, **cond)
        r = score(x)
        order = r.reshape(-1, n).topk(keep, 1).indices
        groups = torch.arange(len(order), device=order.device)[:, None]
        rows = (order + n * groups).flatten()
        seen, x = r[rows], x[rows]
        if preview is not None:
            x = sample(model, noise[rows], times, **pick(cond, rows))
        final_r = seen if preview is None else score(x)
    kl = best_of_n_kl(n) if preview is None and keep == 1 else None
    return Found(x, budget.cost, final_r, noise=noise[rows], preview=seen, kl=kl)


def best_of_n_kl(n: int) -> float:
    """KL(best-of-n || base) = log n - (n-1)/n nats, for rewards without ties.

    Example:
        >>> best_of_n_kl(8)
        1.20
    """
    return math.log(n) - (n - 1) / n


@final
@dataclass(frozen=True)
class ZeroOrder:
    """Try noises around the best so far, on its sphere; keep the best.

    Attributes:
        step: How far, as a share of the radius of new noise.
        tries: Noises per round and row.
    """

    step: float = 0.3
    tries: int = 8


@final
@dataclass(frozen=True)
class Paths:
    """Search over partial paths: re-noise every survivor into children, jump further down, keep the best by look-ahead.

    Attributes:
        width: Survivors per row.
        children: Children of each.
        up: How far in time children are re-noised.
        down: How far they jump afterwards; more than `up`.
        start: Time at which the first survivors, draws of the map, are compared.
    """

    width: int = 4
    children: int = 4
    up: float = 0.1
    down: float = 0.25
    start: float = 0.9

    def __post_init__(self) -> None:
        if (
            not 0 < self.up < self.down
            or not 0 < self.start < 1
            or min(self.width, self.children) < 1
        ):
            raise ControlError(
                f"paths need 0 < up < down, 0 < start < 1, width and children >= 1; got {self}"
            )


def search_noise(
    flow_map: FlowMap,
    reward: Reward,
    noise: Tensor,
    *,
    how: ZeroOrder | Paths | None = None,
    budget: float = 64,
    times: Tensor = ONE_JUMP,
    generator: Generator,
    **cond: Any,
) -> Found:
    """Climb a black-box reward by trying noises, every row on its own, until the budget is spent.

    Args:
        flow_map: Any flow map.
        reward: Any reward.
        noise: Where rows start (B, *D): draws of the prior.
        how: `ZeroOrder()` (Ma et al. 2025) by default, or `Paths()`.
        budget: Forwards per row; never overspent.
        times: Grid by which noise is decoded (`ZeroOrder`).
        generator: CPU generator; it advances.
        cond: Conditions, with a leading 1 or B.
    """
    cond = spread(cond, len(noise))
    with Budget(limit=budget * len(noise)) as ledger, torch.no_grad():
        model, score = ledger.watch(flow_map), ledger.score(reward)
        if isinstance(how, Paths):
            x, r = _paths(model, score, noise, how, ledger, generator, cond)
        else:
            walk = how or ZeroOrder()
            noise, x, r = _sphere(model, score, noise, walk, ledger, times, generator, cond)
    return Found(x, ledger.cost, r, noise=noise, preview=r)


def _sphere(
    model: FlowMap,
    score: Reward,
    noise: Tensor,
    how: ZeroOrder,
    ledger: Budget,
    times: Tensor,
    generator: Generator,
    cond: dict[str, Any],
) -> tuple[Tensor, Tensor, Tensor]:
    x = sample(model, noise, times, **cond)
    r, price = score(x), Cost(**ledger.counts).equivalents
    scale, radius = prior_scale(model.interpolant), noise.flatten(1).norm(dim=1)
    while ledger.affords(price):
        tries = min(how.tries, int(ledger.left // max(price, 1)))
        tried = noise.repeat_interleave(tries, 0)
        tried = tried + how.step * scale * normal(tried, generator)
        size = radius.repeat_interleave(tries) / tried.flatten(1).norm(dim=1)
        tried = like(size, tried) * tried
        ends = sample(model, tried, times, **_repeated(cond, tries))
        best, rows = _best(score(ends), tries)
        better = best > r
        noise = torch.where(like(better, noise), tried[rows], noise)
        x, r = torch.where(like(better, x), ends[rows], x), torch.where(better, best, r)
    return noise, x, r


def _paths(
    model: FlowMap,
    score: Reward,
    noise: Tensor,
    how: Paths,
    ledger: Budget,
    generator: Generator,
    cond: dict[str, Any],
) -> tuple[Tensor, Tensor]:
    path, rows_of = model.interpolant, len(noise)
    if not ledger.affords(2 * rows_of * how.width):
        raise ControlError(
            f"{how.width} paths need at least {2 * how.width} forwards per row to start: a larger budget, or fewer"
        )
    more = how.width - 1
    fresh = prior_scale(path) * normal(noise.repeat_interleave(max(more, 1), 0), generator)
    fresh = fresh.reshape(rows_of, max(more, 1), *noise.shape[1:])[:, :more]
    z = torch.cat([noise[:, None], fresh], 1).flatten(0, 1)
    wide = _repeated(cond, how.width)
    s = torch.tensor(how.start, dtype=torch.float64).to(z)
    x = model(z, 1.0, float(s), **wide)
    ahead = model(x, float(s), 0.0, **wide)
    best_x, best_r = ahead, score(ahead)
    while s > 0 and ledger.affords(2 * rows_of * how.width * how.children):
        up = (s + how.up).clamp(max=0.999)
        down = (up - how.down).clamp(min=0.0)
        kids = _repeated(wide, how.children)
        x = renoise(path, x.repeat_interleave(how.children, 0), s, up, generator)
        x = model(x, up, down, **kids)
        ahead = model(x, down, 0.0, **kids) if down > 0 else x
        r = score(ahead)
        top = r.reshape(rows_of, -1).topk(how.width, 1).indices
        offset = how.width * how.children * torch.arange(rows_of, device=r.device)[:, None]
        rows = (top + offset).flatten()
        x, s = x[rows], down
        better = r[rows] > best_r
        best_x = torch.where(like(better, best_x), ahead[rows], best_x)
        best_r = torch.where(better, r[rows], best_r)
    best, rows = _best(best_r, how.width)
    return best_x[rows], best


def _best(r: Tensor, group: int) -> tuple[Tensor, Tensor]:
    """The largest of every group of consecutive rows, and where it is."""
    best, index = r.reshape(-1, group).max(1)
    return best, index + group * torch.arange(len(best), device=r.device)


def _repeated(cond: dict[str, Any], times: int) -> dict[str, Any]:
    return {
        k: v.repeat_interleave(times, 0) if isinstance(v, Tensor) else v for k, v in cond.items()
    }

r"""Control at equal cost: every method at every budget, beside best-of-N, with what it did to the law.

A reward that rises says little. Best-of-N raises it as well, with no gradient and a law that is known, and whoever leaves the
tilt $p(x)e^{\beta r(x)}$ far behind raises it most. So `frontier` gives each method the same forward passes per sample (a backward
pass counts as two) and puts scores of your own beside the reward; on a world on a line `divergence` from the exact tilt is one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, final

import torch
from torch import Generator, Tensor

from ..control.budget import Result
from ..control.mcmc import noise_mcmc
from ..control.noise import optimize_noise
from ..control.rewards import Reward
from ..control.search import best_of_n, search_noise
from ..control.smc import smc, tempered_smc
from ..control.steer import fmrg, steer
from ..control.tilt import fmtt
from ..control.values import LookAhead, Tweedie, Value
from ..core.flow_map import FlowMap
from ..errors import ControlError, ShapeError
from ..sample import uniform
from .style import EXACT, FAINT, JUMP, SOFT, WALK, new_figure, plain, tidy

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Kind = Literal["baseline", "tilt", "optimiser"]
Scores = Callable[[Tensor], Mapping[str, float]]
"""From all samples of a method at a budget to numbers by name."""


@final
@dataclass(frozen=True)
class Entrant:
    """A method that spends a budget.

    Attributes:
        kind: "baseline" chooses among samples; "tilt" draws the tilt as budgets grow; "optimiser" follows no law.
        run: From forward-pass equivalents per sample and a generator to samples; None where the budget does not suffice.
    """

    kind: Kind
    run: Callable[[int, Generator], Result | None]


@final
@dataclass(frozen=True)
class Mark:
    """What a method reached at a budget.

    Attributes:
        method: Its name.
        kind: Its kind.
        budget: Forward-pass equivalents per sample that it was given.
        spent: Those that it took.
        reward: Mean reward.
        error: Its standard error, from run to run.
        scores: Of all samples together.
        note: Why it failed, where it did; the numbers are NaN then.
    """

    method: str
    kind: Kind
    budget: int
    spent: float
    reward: float
    error: float
    scores: Mapping[str, float]
    note: str = ""

    def to_json(self) -> dict[str, Any]:
        """One flat dictionary; what is not a number is None."""
        row: dict[str, Any] = {"method": self.method, "kind": self.kind, "budget": self.budget}
        numbers = {"spent": self.spent, "reward": self.reward, "error": self.error, **self.scores}
        row |= {key: float(f"{v:.5g}") if math.isfinite(v) else None for key, v in numbers.items()}
        return row | ({"note": self.note} if self.note else {})


@final
@dataclass(frozen=True, eq=False)
class Contest:
    """What all methods are given.

    Attributes:
        flow_map: Any flow map.
        reward: Differentiable, for the methods that follow its gradient.
        beta: Strength of the tilt.
        prior: Draws of the prior, (count, *D), with a generator.
        n: Samples per run, which is also the number of particles.
        cond: Conditions with a leading 1.
    """

    flow_map: FlowMap
    reward: Reward
    beta: float
    prior: Callable[[int, Generator], Tensor]
    n: int = 64
    cond: Mapping[str, Any] = field(default_factory=dict[str, Any])

    @property
    def tilt(self) -> dict[str, Any]:
        """Arguments of whatever takes beta."""
        return {"beta": self.beta, **self.cond}

    def best(self, model: FlowMap | None = None, each: int = 1) -> Entrant:
        """Best-of-N with samples that cost `each` forward passes: jumps of the map, or walks of another model."""
        chosen = model or self.flow_map

        def run(budget: int, g: Generator) -> Result | None:
            tries = budget // each
            if not tries:
                return None
            return best_of_n(chosen, self.reward, self.prior(self.n * tries, g), tries, **self.cond)

        return Entrant("baseline", run)

    def entrant(self, method: Method) -> Entrant:
        """A method that takes as many steps as it can afford."""

        def run(budget: int, g: Generator) -> Result | None:
            steps = budget // method.each
            return (
                method.run(self, steps, self.prior(self.n, g), g) if steps >= method.least else None
            )

        return Entrant(method.kind, run)


class Method(NamedTuple):
    """How a method spends: forward-pass equivalents per step, and the steps that it needs at least."""

    kind: Kind
    each: int
    least: int
    run: Callable[[Contest, int, Tensor, Generator], Result]


def _tempered(c: Contest, budget: int, z: Tensor, g: Generator) -> Result:
    levels = (budget - 1) // 2
    shares = [(i + 1) / levels for i in range(levels)]
    out = tempered_smc(
        *(c.flow_map, c.reward, z), temperatures=shares, moves=2, generator=g, **c.tilt
    )
    return Result(out.resample(c.n, g), out.cost)


def _chain(c: Contest, budget: int, z: Tensor, g: Generator) -> Result:
    return noise_mcmc(c.flow_map, c.reward, z, n=budget - 1, generator=g, **c.tilt)


def _smc(c: Contest, steps: int, z: Tensor, g: Generator) -> Result:
    look = LookAhead()
    out = smc(c.flow_map, c.reward, z, uniform(steps), potential=look, generator=g, **c.tilt)
    return Result(out.resample(c.n, g), out.cost)


def _fmtt(c: Contest, moves: int, z: Tensor, g: Generator) -> Result:
    # nothing moves at t = 0: the last step is one jump
    out = fmtt(c.flow_map, c.reward, z, uniform(moves + 1), generator=g, **c.tilt)
    return Result(out.resample(c.n, g), out.cost)


def leaning(value: Value) -> Callable[[Contest, int, Tensor, Generator], Result]:
    """Steering by an estimate of the value, as a `Method` runs it."""
    return lambda c, k, z, g: steer(c.flow_map, c.reward, z, uniform(k), value=value, **c.tilt)


def _fmrg(
    through: Literal["map", "endpoint"],
) -> Callable[[Contest, int, Tensor, Generator], Result]:
    return lambda c, k, z, g: fmrg(c.flow_map, c.reward, z, uniform(k), through=through, **c.tilt)


def _climb(c: Contest, steps: int, z: Tensor, g: Generator) -> Result:
    return optimize_noise(c.flow_map, c.reward, z, steps=steps - 1, **c.cond)


def _search(c: Contest, budget: int, z: Tensor, g: Generator) -> Result:
    return search_noise(c.flow_map, c.reward, z, budget=budget, generator=g, **c.cond)


METHODS: dict[str, Method] = {
    "tempered": Method("tilt", 1, 3, _tempered),
    "chain": Method("tilt", 1, 5, _chain),
    "smc": Method("tilt", 2, 1, _smc),
    "fmtt": Method("tilt", 10, 1, _fmtt),
    "lean, look-ahead": Method("optimiser", 4, 1, leaning(LookAhead())),
    "lean, Tweedie": Method("optimiser", 4, 1, leaning(Tweedie())),
    "fmrg": Method("optimiser", 4, 1, _fmrg("map")),
    "fmrg, endpoint": Method("optimiser", 2, 1, _fmrg("endpoint")),
    "climb in noise": Method("optimiser", 3, 2, _climb),
    "search": Method("optimiser", 1, 2, _search),
}
"""The methods of `flowmaps.control` that spend a budget as it comes; none is tuned to it."""


def entrants(
    contest: Contest, walks: Mapping[str, tuple[FlowMap, int]] | None = None
) -> dict[str, Entrant]:
    """Best-of-N with the map and with many-step models (by name, with their forward passes per sample), and all `METHODS`."""
    found = {"best of N": contest.best()}
    found |= {f"best of N, {name}": contest.best(*walk) for name, walk in (walks or {}).items()}
    return found | {name: contest.entrant(method) for name, method in METHODS.items()}


def frontier(
    entrants: Mapping[str, Entrant],
    reward: Reward,
    budgets: Sequence[int] = (8, 16, 32, 64, 128),
    *,
    runs: int = 8,
    scores: Scores | None = None,
    seed: int = 0,
) -> list[Mark]:
    """Every entrant at every budget that it can live on, in independent runs with the same seeds for all.

    Args:
        entrants: By name.
        reward: By which samples are judged, once more and for all.
        budgets: Forward-pass equivalents per sample.
        runs: Of every entrant at every budget.
        scores: Of the samples of all runs together: `{"kl": divergence(x, tilt)}`, say.
        seed: Of the first run.
    """
    return [
        mark
        for name, entrant in entrants.items()
        for budget in budgets
        if (mark := _mark(name, entrant, budget, reward, range(seed, seed + runs), scores))
    ]


def _mark(
    name: str, entrant: Entrant, budget: int, reward: Reward, seeds: range, scores: Scores | None
) -> Mark | None:
    try:
        found = [entrant.run(budget, Generator().manual_seed(seed)) for seed in seeds]
    except (
        ControlError
    ) as refused:  # a climb that left the numbers behind, or a reward without the gradient it needs
        return Mark(name, entrant.kind, budget, math.nan, math.nan, math.nan, {}, str(refused))
    kept = [each for each in found if each is not None]
    if not kept:
        return None
    x = torch.cat([each.x for each in kept])
    with torch.no_grad():
        r = torch.stack([reward(each.x).mean() for each in kept]).double()
    spent = sum(each.cost.equivalents for each in kept) / len(x)
    error = float(r.std() / len(r) ** 0.5) if len(r) > 1 else math.nan
    numbers = scores(x) if scores else {}
    return Mark(name, entrant.kind, budget, spent, float(r.mean()), error, numbers)


def divergence(x: Tensor, reference: Tensor, cells: int = 16) -> float:
    """KL(law of x || law of the reference) in nats, over cells on the line that hold equally many draws of the reference.

    A lower bound of the divergence itself; N draws of the reference have (cells - 1) / 2N on average, not 0.

    Args:
        x: Samples (N, 1).
        reference: Many draws (M, 1) of the law to compare with.
        cells: How many.

    Raises:
        ShapeError: If samples are not on a line, or not finite.

    Example:
        >>> line = torch.linspace(0, 1, 1000)[:, None]
        >>> divergence(line[:500], line)  # half of the cells, twice as often: log 2
        0.69
    """
    if x.shape[1:] != (1,) or reference.shape[1:] != (1,) or not bool(x.isfinite().all()):
        raise ShapeError(
            f"a divergence is counted on finite samples of a line, (N, 1); got {tuple(x.shape)} and {tuple(reference.shape)}"
        )
    shares = torch.linspace(0, 1, cells + 1, dtype=torch.float64)[1:-1]
    edges = reference[:, 0].double().quantile(shares)
    p = torch.bincount(torch.bucketize(x[:, 0].double(), edges), minlength=cells) / len(x)
    return float(torch.special.xlogy(p, p * cells).sum())


def spread(x: Tensor) -> float:
    """The root mean square distance of two samples, per coordinate: what is left of their diversity."""
    return float((2 * x.flatten(1).var(0).mean()).sqrt())


def frontier_table(marks: Sequence[Mark]) -> str:
    """The marks in Markdown: a line per method, a column per budget, the reward and in brackets the scores."""
    budgets = sorted({mark.budget for mark in marks})
    names = list(dict.fromkeys(name for mark in marks for name in mark.scores))
    heads = " | ".join(f"{budget}" for budget in budgets)
    told = f" (in brackets: {', '.join(names)})" if names else ""
    lines = [f"Reward by forward-pass equivalents per sample{told}", ""]
    lines += [f"| method | kind | {heads} |", "|---|---" + "|---:" * len(budgets) + "|"]
    for name in dict.fromkeys(mark.method for mark in marks):
        own = {mark.budget: mark for mark in marks if mark.method == name}
        cells = [_cell(own[b]) if b in own else "" for b in budgets]
        kind = next(iter(own.values())).kind
        lines.append(f"| {name} | {kind} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _cell(mark: Mark) -> str:
    if mark.note:
        return "failed"
    scores = ", ".join(plain(float(f"{value:.3g}")) for value in mark.scores.values())
    return f"{mark.reward:.3f}" + f" ({scores})" * bool(scores)


def frontier_figure(
    marks: Sequence[Mark],
    *,
    of: Sequence[str] = (),
    logarithmic: Sequence[str] = (),
    levels: Mapping[str, tuple[float, str]] | None = None,
    limits: Mapping[str, tuple[float, float]] | None = None,
    title: str = "Reward",
) -> Figure:
    """The reward, and the scores named in `of`, against what was spent; a panel each.

    Args:
        marks: Of `frontier`.
        of: Scores to show.
        logarithmic: Those of them on a logarithmic axis.
        levels: By panel ("reward" or a score), a height and its name: the exact tilt's, for example.
        limits: By panel, the heights between which it is drawn, where a method would flatten all others.
        title: Of the first panel.
    """
    figure = new_figure(4.6 * (1 + len(of)) + 1.7, 4.0)
    panels = figure.subplots(1, 1 + len(of), squeeze=False)[0]
    looks = _looks(marks)
    for axes, score in zip(panels, ("reward", *of), strict=True):
        tidy(axes, title if score == "reward" else score, "forward-pass equivalents per sample")
        for name, look in looks.items():
            own = [mark for mark in marks if mark.method == name and not mark.note]
            heights = [m.reward if score == "reward" else m.scores[score] for m in own]
            axes.plot([m.spent for m in own], heights, label=name, **look)
        if levels and score in levels:
            height, text = levels[score]
            axes.axhline(height, color=EXACT, linewidth=0.9, linestyle=(0, (1, 2)), zorder=1)
            axes.annotate(
                text, (0, height), xycoords=("axes fraction", "data"), xytext=(3, -10),
                textcoords="offset points", fontsize=8, color=SOFT,
            )  # fmt: skip
        if limits and score in limits:
            axes.set_ylim(*limits[score])
        _scales(axes, sorted({mark.budget for mark in marks}), score in logarithmic)
    panels[-1].legend(
        loc="upper left", bbox_to_anchor=(1.02, 1.0), frameon=False, fontsize=8, labelcolor=SOFT
    )
    return figure


def _scales(axes: Axes, budgets: Sequence[int], logarithmic: bool) -> None:
    axes.set_xscale("log", base=2)
    axes.set_xticks(budgets, [str(budget) for budget in budgets])
    axes.set_yscale("log" if logarithmic else "linear")
    axes.yaxis.set_major_formatter(lambda y, _: plain(float(f"{y:.3g}")))
    axes.yaxis.set_minor_formatter(lambda y, _: "")
    axes.grid(axis="y", color=FAINT, linewidth=0.6)


def _looks(marks: Sequence[Mark]) -> dict[str, dict[str, Any]]:
    """A colour per kind (grey, blue, vermilion), told apart within it by marker and dash."""
    colours: dict[Kind, str] = {"baseline": EXACT, "tilt": JUMP, "optimiser": WALK}
    shapes, dashes = "osD^vPX", ((0, ()), (0, (4, 1.5)), (0, (1, 1)), (0, (6, 1, 1, 1)))
    looks: dict[str, dict[str, Any]] = {}
    for mark in marks:
        if mark.method in looks:
            continue
        i = sum(look["color"] == colours[mark.kind] for look in looks.values())
        looks[mark.method] = {
            "color": colours[mark.kind], "marker": shapes[i % len(shapes)], "markersize": 4.5,
            "linestyle": dashes[i % len(dashes)], "linewidth": 1.5, "alpha": 0.9,
        }  # fmt: skip
    return looks

r"""Reward fine-tuning: three recipes that make a flow map draw what is wanted, trained by the one loop (`flowmaps.train.fit`).

    backprop    through one or two jumps, with anchors        needs the gradient of the reward
    nft         from samples and their rewards                a black box; steps of the tilt that add up
    tilt        the law p(x) exp(r(x)) itself                 a black box; exact, and ends there

A tuning is a `Recipe`: give it to `fit` with the base as student *and* as teacher.

    fit(nft(reward), flow_map, data, run, teacher=base)

The reward is in natural units: `tilt` asks for $e^r$, so scale it (`rewards.Scaled`), for example by 2 over its standard deviation
on samples of the base. Its conditions are those of the data; guidance that the base has folded in stays in it, as the tuned map
learns from the base's samples and not from data.
"""

from dataclasses import replace

from ..core.autodiff import EXACT, Derivative
from ..core.interpolant import Interpolant, linear
from ..errors import ControlError
from ..learn.objective import Recipe, Term
from ..learn.rules import Compositional, DiagonalRule
from ..learn.states import Prior, State
from ..learn.times import Diagonal, Fixed, SortedPair, TimeLaw, ToData, Uniform
from ..learn.weights import L2
from ..recipes import get
from .rewards import Reward, Scaled
from .tune_rules import (
    NFT,
    Advantage,
    Climb,
    FromBase,
    FromPolicy,
    FromSelf,
    Rollout,
    Signed,
    Stay,
    Weighted,
)

SPANS = SortedPair(Uniform(), starts=0.3, ends=0.3)
"""Jumps of every length, with those that a sampler of few steps asks for drawn more often."""


def backprop(
    reward: Reward,
    *,
    jumps: int = 1,
    output: float = 10.0,
    velocity: float = 0.0,
    keep: float = 1.0,
    path: Interpolant | None = None,
) -> Recipe:
    r"""Direct back-propagation of the reward through the map's own jumps, with explicit anchors.

    Minimises $-E\,r(X(z,1,0)) + \lambda_o\,E|X(z,1,0)-X_{base}(z,1,0)|^2/d + \lambda_v\,E|b-b_{base}|^2/d$. With the first
    anchor alone every noise climbs by itself: $X(z) = \arg\max_y r(y) - \lambda_o|y-X_{base}(z)|^2/d$, a proximal step, no law
    that anyone asked for, and narrower than the tilt. Without anchors all samples end in one: it is refused.

    Args:
        reward: Differentiable.
        jumps: Jumps that the gradient goes through.
        output: $\lambda_o$, on pure noise.
        velocity: $\lambda_v$, on data. Data of the run must then be those of the base.
        keep: Weight of what keeps the result a flow map: flow matching on its own samples and the compositional rule.
        path: The base's; linear by default.

    Raises:
        ControlError: Without any anchor, or with less than one jump.

    Source:
        DRaFT (Clark et al. 2024, arXiv:2309.17400), AlignProp (Prabhudesai et al. 2023, arXiv:2310.03739).
    """
    if jumps < 1 or min(output, velocity, keep) < 0 or output + velocity == 0:
        raise ControlError(
            "backprop needs jumps >= 1 and an anchor (output or velocity above 0): without one every sample becomes the same; "
            f"got jumps={jumps}, output={output}, velocity={velocity}, keep={keep}"
        )
    noise = ToData(Fixed(1.0))
    climb = Term(
        rule=Climb(reward, jumps), times=noise, share=0.5, scale=2.0, metric=Signed(), state=Prior()
    )
    terms = [climb]
    if output:
        terms.append(_anchor("output", output, noise, Prior()))
    if velocity:
        terms.append(_anchor("velocity", velocity, Diagonal(Uniform()), None))
    if keep:
        terms += _kept(keep, FromSelf(jumps))
    return Recipe(
        name="backprop",
        cite=("clark2024draft",),
        terms=tuple(terms),
        interpolant=path or linear(),
        status="own",
    )


def nft(
    reward: Reward,
    *,
    beta: float = 0.1,
    kl: float = 1e-4,
    policy: float = 0.9,
    jumps: int = 1,
    group: int = 1,
    diagonal: float = 0.5,
    ends: float = 0.25,
    compose: float = 0.0,
    clip: float = 5.0,
    adaptive: bool = True,
    derivative: Derivative = EXACT,
    path: Interpolant | None = None,
) -> Recipe:
    r"""Forward-process reinforcement learning, for any reward: MeanFlowNFT, and with `diagonal=1` DiffusionNFT.

    The policy, a moving average of the student, draws samples; those better than their group attract, the others repel. Nothing
    is stored of the way they were drawn, no likelihood and no gradient of the reward is needed. Every step tilts a little more:
    stop it by the number of steps, and read the curves (`kl` slows it, and in the long run balances it).

    Args:
        reward: Any callable.
        beta: Strength of a step, see `NFT`; smaller is stronger.
        kl: Weight of the anchor to the base.
        policy: Decay of the average that samples.
        jumps: Jumps of its samples.
        group: Neighbouring rows that are told the same; with classes 1 will do, as rows of one class are a group anyhow.
        diagonal: Share of the batch with t = s; 1 suits a model of velocities and leaves the jumps of a flow map stale.
        ends: Share with t = 0; the rest are jumps of any length.
        compose: Share on which jumps learn from shorter ones of the student (`Compositional`), in place of their own reward: no
            derivative is taken, and a map that was trained so stays as good as it was. With `diagonal + compose = 1` it is
            DiffusionNFT, distilled into jumps while it learns.
        clip: Bound of advantages, in deviations.
        adaptive: Whether errors are divided by their size.
        derivative: Of the old map along the path; the paper's is `Derivative("finite")`.
        path: The base's; linear by default.

    Raises:
        ControlError: If the shares are none.

    Source:
        Zheng et al. 2025, DiffusionNFT (arXiv:2509.16117); MeanFlowNFT (arXiv:2607.15273), time pairs 50 % t = s, 25 % t = 0.
    """
    rest = 1 - diagonal - ends - compose
    if not (0 < diagonal <= 1 and min(ends, compose) >= 0 and rest > -1e-9):
        raise ControlError(
            "nft needs diagonal > 0 and shares that are at most 1 together; got "
            f"diagonal={diagonal}, ends={ends}, compose={compose}"
        )
    rule = NFT(Advantage(reward, clip), beta, kl, derivative, adaptive)
    laws: dict[str, tuple[float, TimeLaw]] = {
        "velocity": (diagonal, Diagonal(Uniform())),
        "to data": (ends, ToData(Uniform())),
        "jumps": (rest, SPANS),
    }
    state = FromPolicy(jumps, group)
    terms = [
        # the metric is a mean over the rule's three parts, which are summed
        Term(rule=rule, times=law, share=share, scale=3.0, state=state, name=name)
        for name, (share, law) in laws.items()
        if share > 1e-9
    ]
    if compose:
        terms.append(Term(rule=Compositional("self"), times=SPANS, share=compose, state=state))
    return Recipe(
        name="nft",
        cite=("zheng2025nft", "huang2026meanflownft"),
        terms=tuple(terms),
        interpolant=path or linear(),
        ema_target=policy,
    )


def tilt(
    reward: Reward,
    *,
    rounds: int = 4,
    jumps: int = 1,
    recipe: Recipe | None = None,
    path: Interpolant | None = None,
) -> Recipe:
    r"""The tilt $p(x)\,e^{r(x)}$ of the base's own law, and no more: longer training does not go beyond it.

    In each of `rounds` equal parts of the run the last map is frozen, draws samples, and the student learns them with weights
    $e^{r/rounds}$; then it is the map that draws. One round is exact already, for the law of the samples; rounds keep the
    weights even, as the efficiency of one falls like $e^{-\mathrm{Var}\,r}$.

    Args:
        reward: Any callable, in natural units.
        rounds: Parts of the run.
        jumps: Jumps of the samples.
        recipe: How the weighted samples are learned: any recipe that learns from data with a quadratic metric; by default flow
            matching and the compositional rule (PSD).
        path: The base's; linear by default.

    Raises:
        ControlError: If the recipe cannot be weighted: its metric is not quadratic, or no term learns from data.

    Source:
        Tilt Matching (arXiv:2512.21829), the implicit step; with one round reward-weighted flow matching (arXiv:2502.06061).
    """
    if rounds < 1:
        raise ControlError(f"tilt needs rounds >= 1; got {rounds}")
    recipe = recipe or replace(
        get("psd", channels=0, diagonal=0.5, starts=0.3, ends=0.3), interpolant=path or linear()
    )
    learned = [term for term in recipe.terms if _from_data(term)]
    if not learned or any(term.metric != L2() or term.state is not None for term in learned):
        raise ControlError(
            f"tilt weighs the rows of a recipe that learns from data with the metric L2(); got {recipe.name!r} with "
            f"{[term.metric for term in recipe.terms]}: other metrics would see the weights as errors"
        )
    part, state = Scaled(reward, 1 / rounds), FromBase(jumps)
    terms = tuple(
        replace(
            term,
            state=state,
            rule=Weighted(term.rule, part) if _from_data(term) else term.rule,
            name=term.label,
        )
        for term in recipe.terms
    )
    return replace(
        recipe,
        name="tilt",
        cite=("potaptchik2025tilt", "fan2025orw"),
        terms=terms,
        refresh=tuple(k / rounds for k in range(1, rounds)),
        guidance=None,
        status="own",
    )


def _from_data(term: Term) -> bool:
    return getattr(term.rule, "velocity", None) == "conditional"


def _anchor(name: str, weight: float, times: TimeLaw, state: State | None) -> Term:
    """The distance to the base's jumps on a quarter of the batch, counted `weight` times."""
    return Term(
        rule=Stay(), times=times, share=0.25, scale=4 * weight, state=state, name=f"{name} anchor"
    )


def _kept(weight: float, state: Rollout) -> list[Term]:
    """What makes velocities and jumps those of the samples."""
    velocity = Term(
        rule=DiagonalRule(), times=Diagonal(Uniform()), share=0.25, scale=weight, state=state
    )
    jumps = Term(rule=Compositional("self"), times=SPANS, share=0.25, scale=weight, state=state)
    return [velocity, jumps]

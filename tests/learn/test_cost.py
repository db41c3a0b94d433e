"""Counted costs against the table of methods.md 5.2 and against recipes made for the purpose."""

from dataclasses import replace

import pytest
import torch

from flowmaps import recipes
from flowmaps.core import solver
from flowmaps.core.autodiff import Derivative
from flowmaps.learn.cost import UNITS, count, fpe
from flowmaps.learn.endpoints import Endpoint
from flowmaps.learn.guidance import Guidance
from flowmaps.learn.objective import Recipe, Term
from flowmaps.learn.rules import Compositional, DiagonalRule, Eulerian, Lagrangian
from flowmaps.learn.states import Coupled, OnPolicy, Prior, Stored, Trajectory
from flowmaps.learn.times import Diagonal, SortedPair, Uniform
from flowmaps.learn.weights import LearnedLogVar

PAIR = SortedPair(Uniform())


def recipe(rule, **kw) -> Recipe:
    term = Term(rule=rule, times=PAIR, **kw)
    return Recipe(name="one", cite=(), terms=(term,), ema_target=0.9)


# methods.md 5.2, where the authors' form is counted as a whole batch of every term
TABLE = {
    "flow_matching": 3,
    "ddpm": 3,
    "progressive_distillation": 5,
    "consistency_training": 4,
    "improved_consistency_training": 4,
    "easy_consistency_tuning": 4,
    "consistency_distillation": 6,
    "ayf_emd": 6,  # FB + J + F teacher
    "ayf_lmd": 6,
    "progressive_flow_map_matching": 5,
    "flow_map_matching": 9,
    "emd": 7,
    "lmd": 9,
    "imm": 4,
    "rcgm": 5,
    "boot": 6,  # a central difference, detached; one-sided with gradient it is the table's 7
    "free_flow": 6,  # the prediction half, FB + J
}


@pytest.mark.parametrize("name", TABLE)
def test_costs_are_those_of_the_table(name) -> None:
    assert fpe(recipes.get(name)) == TABLE[name]


def test_terms_in_full_batches_are_those_of_the_table() -> None:
    """LSD JB + F + FB; PSD and shortcut FB + 2F + FB; ESD JB + J + F + FB; MeanFlow's FB + J in a pass of its own."""
    for name, expected in {
        "lsd": {"diagonal": 3, "lagrangian": 7},
        "psd": {"diagonal": 3, "compositional": 5},
        "shortcut": {"diagonal": 3, "compositional": 5},
        "mean_flow": {"diagonal": 3, "eulerian": 5},
        "improved_mean_flow": {"diagonal": 3, "eulerian": 6},
        "esd": {"diagonal": 3, "eulerian": 9},
        "so_flow": {"diagonal": 3, "shortleg": 4},
    }.items():
        r = recipes.get(name)
        per_share = {t.label: count(r).terms[t.label] / t.share for t in r.terms}
        assert per_share == pytest.approx(expected), name


def test_passes_are_rounded_to_thousandths() -> None:
    one = Term(rule=DiagonalRule(), times=Diagonal(Uniform()), share=1 / 7)
    seventh = Recipe(name="seventh", cite=(), terms=(one,))
    assert fpe(seventh) == 0.429
    assert count(seventh).calls == {"student FB": 0.142857}


def test_shares_weigh_terms() -> None:
    one = Term(rule=DiagonalRule(), times=Diagonal(Uniform()), share=0.7)
    two = Term(rule=Compositional(), times=PAIR, share=0.3)
    found = count(Recipe(name="two", cite=(), terms=(one, two)))
    assert found.fpe == pytest.approx(0.7 * 3 + 0.3 * 5)
    assert found.calls == pytest.approx({"student F": 0.6, "student FB": 1.0})


@pytest.mark.parametrize(
    ("rule", "calls"),
    [
        (Eulerian(), {"student FB": 1, "student J": 1}),
        (Eulerian("self", through="partial"), {"student F": 1, "student J": 1, "student JB": 1}),
        (Eulerian("teacher", through="all"), {"student JB": 1, "teacher F": 1}),
        (Lagrangian("ema"), {"student JB": 1, "ema F": 1}),
        (Lagrangian("teacher", through="all"), {"student JB": 1, "teacher FB": 1}),
        (Eulerian(derivative=Derivative("finite", 0.05)), {"student FB": 1, "student F": 2}),
        (Compositional("teacher"), {"student FB": 1, "teacher F": 2}),
    ],
)
def test_calls_by_kind(rule, calls) -> None:
    found = count(recipe(rule))
    assert found.calls == calls
    assert found.fpe == sum(UNITS[kind.split()[1]] * number for kind, number in calls.items())


@pytest.mark.parametrize(
    ("state", "rule", "calls"),
    [
        (Trajectory(solver.HEUN, 3, 5), Endpoint(), {"student FB": 1, "teacher F": 16}),
        (Trajectory(solver.DPMSolverPP(), 0, 7), Endpoint(), {"student FB": 1, "teacher F": 7}),
        (Stored(), Endpoint(), {"student FB": 1}),
        (Coupled(solver.EULER, 6), Eulerian(), {"student FB": 1, "student J": 1, "teacher F": 6}),
        (OnPolicy(3), Compositional("ema"), {"student F": 3, "student FB": 1, "ema F": 2}),
        (Prior(), Compositional("ema"), {"student FB": 1, "ema F": 2}),
    ],
)
def test_states_are_counted(state, rule, calls) -> None:
    assert count(recipe(rule, state=state)).calls == calls


def test_guidance_is_counted_and_nothing_global_moves() -> None:
    guided = replace(
        recipe(Lagrangian("teacher", through="target")), guidance=Guidance({"label": 10})
    )
    assert count(guided).calls["teacher F"] == 1  # scale 1 guides nothing
    strong = replace(guided, guidance=Guidance({"label": 10}, scale=Uniform(1.0, 3.0)))
    assert count(strong).calls["teacher F"] == 2
    before = torch.get_rng_state()
    assert fpe(recipe(Eulerian(), weight=LearnedLogVar(16))) == 5
    assert torch.equal(before, torch.get_rng_state())


def test_recipes_that_change_are_averaged() -> None:
    """alpha-Flow: a leg that is the whole jump (3), then a shorter one with a detached jump (4), at last the JVP (5)."""
    r = recipes.get("alpha_flow")
    found = count(r)
    finite, derivative = found.calls["student F"], found.calls["student J"]
    # of 20 moments 14 lie after 1/2 - log(199) / 25 = 0.288, and 6 after 0.712
    assert (finite, derivative) == pytest.approx((0.75 * 14 / 20, 0.75 * 6 / 20))
    assert found.terms["shortleg"] == pytest.approx(0.75 * 3 + finite + 2 * derivative)


@pytest.mark.parametrize(("begin", "end", "derivatives"), [(0.0, 0.4, 14), (0.6, 1.0, 2)])
def test_a_change_in_either_half_of_the_run_is_seen(begin, end, derivatives) -> None:
    """alpha is 0 beyond begin + 0.712 (end - begin): so many of the 20 moments take the derivative."""
    found = count(recipes.get("alpha_flow", begin=begin, end=end)).calls
    assert found["student J"] == pytest.approx(0.75 * derivatives / 20)


def test_counting_is_cached() -> None:
    first = count(recipes.get("lsd"))
    assert count(recipes.get("lsd")) is first

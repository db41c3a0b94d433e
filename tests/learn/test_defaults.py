"""Defaults are numerics that users see: one that changes must be changed here as well, and told in the changelog."""

import inspect

import pytest

from flowmaps.core.autodiff import Derivative
from flowmaps.core.solver import HEUN
from flowmaps.learn import (
    cost,
    endpoints,
    guidance,
    jumps,
    legs,
    masks,
    objective,
    outputs,
    particles,
    ramps,
    rules,
    splits,
    states,
    term,
    times,
    weights,
)

EXACT = Derivative("exact", 5e-3)
UNIT = times.Uniform(0.0, 1.0)
DEFAULTS = {
    endpoints.Inverse: {"velocity": "conditional", "place": 1.0, "derivative": EXACT},
    guidance.Guidance: {"scale": times.Fixed(1.0), "dropout": 0.1, "low": 0.0, "high": 1.0},
    jumps.Dyadic: {"levels": 7},
    jumps.HalvingGrid: {"stages": 6},
    jumps.Within: {"band": 1.0, "stages": 1, "both": False},
    jumps.SourceThenGap: {
        "source": times.UShaped(4.0),
        "gap": times.LogitNormal(-0.4, 1.0),
        "split": UNIT,
        "early": 0.8,
        "late": 0.4,
    },
    jumps.GapThenTarget: {"gap": times.LogitNormal(-0.8, 1.0), "mean": -0.4, "std": 1.0},
    jumps.Inductive: {"high": 0.994, "k": 12.0},
    legs.ShortLeg: {
        "velocity": "conditional", "jump": "self", "leg": "euler", "steps": 1, "legs": 1, "form": "slope",
        "below": None, "boundary": 0.0, "derivative": None,
    },
    legs.LastLeg: {"velocity": "teacher", "jump": "self", "leg": "heun"},
    masks.random_layers: {"ever": False},
    objective.Recipe: {"local": False, "status": "faithful", "refresh": (), "memory": 0},
    objective.Recipe.draw: {"progress": 0.0},
    objective.Objective.jump: {"through": False},
    outputs.Trig: {"velocity": "conditional", "derivative": EXACT, "warmup": None, "steep": False},
    particles.PushForward: {"told": 0.0},
    particles.Moments: {"floor": 1e-2},
    particles.EnergyDistance: {"group": None, "eps": 1e-6},
    particles.KernelDistance: {"group": 4, "eps": 1e-8},
    particles.InductiveWeight: {"a": 1, "b": 5.0},
    particles.Grouped: {"size": None},
    ramps.Ramp: {"begin": 0.0, "end": 1.0},
    ramps.Sigmoid: {"begin": 0.0, "end": 1.0, "slope": 25.0, "floor": 5e-3},
    ramps.Count: {"growth": "double"},
    rules.Models.jump: {"through": False},
    rules.DiagonalRule: {"velocity": "conditional"},
    rules.Eulerian: {"velocity": "conditional", "through": "target", "derivative": EXACT},
    rules.Lagrangian: {"velocity": "self", "through": "jvp", "derivative": EXACT},
    rules.Compositional: {"jump": "self", "clip": None},
    splits.FixedLeg: {"length": 0.01},
    splits.LastGap: {"length": 0.1},
    splits.Neighbours: {"law": UNIT, "points": 18},
    splits.GridTriple: {"points": 18, "reach": 17},
    splits.Tuning: {"stages": 8, "q": 2.0, "limit": 1.0},
    states.Trajectory: {"solver": HEUN, "before": 8, "after": 8},
    states.Coupled: {"solver": HEUN, "steps": 16},
    states.OnPolicy: {"jumps": 1},
    states.Trajectories: {"labels": None, "coupled": True},
    term.Term: {"share": 1.0, "metric": weights.L2(), "scale": 1.0, "name": ""},
    times.Uniform: {"low": 0.0, "high": 1.0},
    times.LogitNormal: {"mean": 0.0, "std": 1.0},
    times.LogUniform: {"low": 1.0, "high": 4.0},
    times.Either: {"odds": 0.5},
    times.NoiseLevel: {"low": 0.002, "high": 80.0, "freedom": None},
    times.UShaped: {"a": 4.0},
    times.SortedPair: {"target": None, "split": UNIT, "both": False, "starts": 0.0, "ends": 0.0},
    times.skewed: {"skew": None, "starts": 0.0, "ends": 0.0, "split": UNIT},
    times.ToData: {"split": UNIT},
    times.Downwards: {"law": UNIT},
    weights.ClippedTime: {"floor": 0.05},
    weights.Adaptive: {"p": 1.0, "c": 1e-3, "of": None},
    weights.Huber: {"c": 0.00054},
    weights.MaxSNR: {"limit": 100.0},
    weights.TangentGap: {"sigma_data": 1.0},
    weights.EDMWeight: {"sigma_data": 0.5},
    weights.TangentNorm: {"c": 0.1},
    weights.Clip: {"c": 1.0},
    weights.Relax: {"p": 0.5, "of": None},
    weights.LearnedLogVar: {"channels": 128, "cauchy": None, "floor": 0.0},
}  # fmt: skip


# what a part says about itself, and recipes are refused by
FLAGS = {
    endpoints.Endpoint: {"needs_end": True},
    particles.PushForward: {"velocity": "conditional", "unguided": True},
    particles.Moments: {"velocity": "conditional"},
    states.Prior: {"source": None, "conditional": False, "knows_end": False},
    states.Trajectory: {"source": "teacher", "conditional": False, "knows_end": True},
    states.Coupled: {"source": "teacher", "conditional": True, "knows_end": False},
    states.OnPolicy: {"source": "self", "conditional": False, "knows_end": False},
    states.Stored: {"source": None, "conditional": False, "knows_end": True},
    weights.PerLeg: {"first_leg": True},
}


@pytest.mark.parametrize("part", FLAGS, ids=lambda part: part.__name__)
def test_flags_are_those_that_are_written_here(part) -> None:
    assert {name: getattr(part, name) for name in FLAGS[part]} == FLAGS[part]


@pytest.mark.parametrize("part", DEFAULTS, ids=lambda part: part.__qualname__)
def test_defaults_are_those_that_are_written_here(part) -> None:
    arguments = inspect.signature(part).parameters
    assert {name: arguments[name].default for name in DEFAULTS[part]} == DEFAULTS[part]


def test_a_run_begins_where_nothing_is_said_of_its_progress() -> None:
    """Every law, ramp and weight that takes the progress of the run takes 0 for it by default."""
    for module in (jumps, splits, times, particles):
        for part in vars(module).values():
            if inspect.isclass(part) and part.__module__ == module.__name__ and callable(part):
                progress = inspect.signature(part.__call__).parameters.get("progress")
                assert progress is None or progress.default in (0.0, inspect.Parameter.empty)


def test_metrics_are_of_differences_from_zero() -> None:
    """A metric of one argument measures it against 0."""
    for module in (weights, particles):
        for part in vars(module).values():
            if inspect.isclass(part) and part.__module__ == module.__name__ and callable(part):
                target = inspect.signature(part.__call__).parameters.get("target")
                assert target is None or target.default in (0.0, inspect.Parameter.empty)


def test_the_units_of_cost_are_those_of_the_table() -> None:
    """A forward pass is 1, with its backward 3; a JVP doubles the passes it goes through."""
    assert cost.UNITS == {"F": 1, "J": 2, "FB": 3, "JF": 4, "JB": 6}

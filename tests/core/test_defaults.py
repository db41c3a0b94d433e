"""Defaults are numerics that users see: one that changes must be changed here as well, and told in the changelog."""

import inspect

import pytest
import torch

from flowmaps.core import autodiff, flow_map, interpolant, oracle, parametrization, solver, velocity

EXACT = {"method": "exact", "step": 5e-3, "path": None}
DEFAULTS = {
    autodiff.Derivative: EXACT,
    autodiff.along_source: {"derivative": autodiff.Derivative(**EXACT), "through": False},
    autodiff.along_target: {"derivative": autodiff.Derivative(**EXACT), "through": False},
    autodiff.advection: {"derivative": autodiff.Derivative(**EXACT)},
    flow_map.NetFlowMap: {"local": False, "to_data": False},
    flow_map.SolvedFlowMap: {"solver": solver.HEUN, "steps": 64},
    interpolant.Interpolant: {"t_min": 0.0},
    interpolant.vp: {"beta_min": 0.1, "beta_max": 20.0},
    interpolant.ve: {"sigma_max": 80.0},
    interpolant.edm: {
        "sigma_min": 0.002,
        "sigma_max": 80.0,
        "rho": 7,
    },
    oracle.Mixture: {"steps": 200},
    oracle.Checkerboard: {"cells": 4, "half": 2.0, "steps": 400},
    parametrization.Denoised: {"prediction": "x0"},
    parametrization.EDMTwoTime: {"sigma_data": 1.0},
    parametrization.Boundary: {"sigma_data": 0.5, "sigma_min": 0.002},
    parametrization.trig_two_time: {"sigma_data": 1.0},
    solver.DormandPrince: {"rtol": 1e-6, "atol": 1e-8, "name": "dopri5", "order": 5},
    solver.DDIM: {"name": "ddim", "order": 1},
    solver.DPMSolverPP: {"name": "dpm++2m", "order": 2},
    solver.UniPC: {"name": "unipc", "order": 3},
    velocity.NetVelocity: {"prediction": "velocity"},
}


@pytest.mark.parametrize("part", DEFAULTS, ids=lambda part: part.__name__)
def test_defaults_are_those_that_are_written_here(part) -> None:
    arguments = inspect.signature(part).parameters
    assert {name: arguments[name].default for name in DEFAULTS[part]} == DEFAULTS[part]


def test_least_steps_of_differences_are_written_here() -> None:
    """Where the rounding of a type drowns a difference, `Derivative` refuses to take it."""
    assert {
        torch.float64: 1e-12,
        torch.float32: 1e-5,
        torch.float16: 1e-2,
        torch.bfloat16: 5e-2,
    } == autodiff.LEAST_STEP


def test_the_registries_build_what_they_name() -> None:
    assert {name: make().name for name, make in interpolant.INTERPOLANTS.items()} == {
        name: name for name in ("linear", "trig", "vp", "ve", "edm")
    }
    assert {name: method.order for name, method in solver.SOLVERS.items()} == {
        "euler": 1, "midpoint": 2, "heun": 2, "rk4": 4, "dopri5": 5, "ddim": 1, "dpm++2m": 2, "unipc": 3,
    }  # fmt: skip

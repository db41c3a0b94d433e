"""FMTT: weights that are exact for any step, motions that raise the effective size, and the term that must not be left out."""

import pytest
import torch
from worlds import (
    G_LOG_Z,
    G_MEAN,
    G_VAR,
    GAUSS,
    LOG_Z,
    M1,
    MEAN,
    PULL,
    RIGHT,
    STD,
    TILT,
    modes,
    moments,
    noise,
)

from flowmaps.control import tilt
from flowmaps.control.tilt import fmtt
from flowmaps.errors import ControlError
from flowmaps.sample import uniform

SHARES = {
    (0.0, 0.0): 0.664,
    (1.0, 0.0): 0.726,
    (4.0, 0.0): 0.818,
    (0.0, 1.0): 0.804,
    (1.0, 1.0): 0.85,
}
"""Effective share of particles on the Gaussian, by (langevin, extra): steering.md A.3."""


@pytest.mark.parametrize("how", SHARES)
def test_the_gaussian_and_its_effective_sizes(gen, how) -> None:
    langevin, extra = how
    out = fmtt(
        *(GAUSS.flow_map, PULL, noise(8000), uniform(20)),
        **{"langevin": langevin, "extra": extra, "resample_below": 0.0, "generator": gen},
    )
    mean, var = moments(out.x, out.weights)
    assert abs(mean - G_MEAN) < 0.06
    assert abs(var / G_VAR - 1) < 0.06
    assert abs(out.log_z - G_LOG_Z) < 3 * out.log_z_error
    assert abs(out.ess / 8000 - SHARES[how]) < 0.015


def test_without_motions_it_is_importance_sampling_on_any_grid(gen) -> None:
    one, five = (
        fmtt(
            GAUSS.flow_map, PULL, noise(50), uniform(k), langevin=0, resample_below=0, generator=gen
        )
        for k in (1, 5)
    )
    torch.testing.assert_close(one.log_weights, five.log_weights)
    torch.testing.assert_close(one.log_weights, PULL(one.x))
    assert (one.cost.backward, five.cost.backward) == (0, 0)


def test_the_correction_term_must_not_be_left_out(gen, monkeypatch) -> None:
    """Trap 2: with the extra drift, chi = t, and without its work log Z is -.62 instead of -.709."""
    monkeypatch.setattr(tilt._Path, "work", lambda self, here, probes, g: torch.zeros(len(here.x)))
    out = fmtt(
        *(GAUSS.flow_map, PULL, noise(4000), uniform(20)),
        **{"langevin": 0.0, "extra": 1.0, "resample_below": 0.0, "generator": gen},
    )
    assert 0.07 < out.log_z - G_LOG_Z < 0.12


@pytest.mark.parametrize(("langevin", "steps"), [(0.0, 2), (1.0, 8)])
def test_two_modes(gen, langevin, steps) -> None:
    out = fmtt(M1.flow_map, TILT, noise(2500), uniform(steps), langevin=langevin, generator=gen)
    right, mean, std = modes(out.x, out.weights)
    assert abs(right - RIGHT) < 0.03
    assert abs(mean / MEAN - 1) < 0.02
    assert abs(std / STD - 1) < 0.04
    assert abs(out.log_z - LOG_Z) < 3 * out.log_z_error + 0.01
    assert out.degenerate == ""


def test_settings_without_meaning(gen) -> None:
    with pytest.raises(ControlError, match="grid ends at 0"):
        fmtt(GAUSS.flow_map, PULL, noise(4), torch.tensor([1.0, 0.2]), generator=gen)

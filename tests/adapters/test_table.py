"""The path through a table of alphas: exact at the table, monotone, with derivatives, secants and an inverse that are right."""

import pytest
import torch

from flowmaps.adapters.table import MonotoneCubic, tabulated

betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
STABLE_DIFFUSION = (1 - betas).cumprod(0)
TABLES = {
    "stable diffusion": STABLE_DIFFUSION,
    "zero terminal SNR": (
        (STABLE_DIFFUSION.sqrt() - STABLE_DIFFUSION[-1].sqrt()) / (1 - STABLE_DIFFUSION[-1].sqrt())
    )
    ** 2,
    "five steps": torch.tensor([0.99, 0.9, 0.6, 0.59, 0.1], dtype=torch.float64),
}


@pytest.fixture(params=TABLES)
def table(request: pytest.FixtureRequest) -> torch.Tensor:
    return TABLES[request.param]


def inner(gen: torch.Generator, n: int = 200) -> torch.Tensor:
    return torch.rand(n, generator=gen, dtype=torch.float64)


def test_it_is_the_table_at_the_trained_timesteps(table: torch.Tensor) -> None:
    path = tabulated(table)
    t = torch.arange(1, len(table) + 1, dtype=torch.float64) / len(table)
    torch.testing.assert_close(path.alpha(t).square(), table, rtol=1e-9, atol=1e-15)
    torch.testing.assert_close(path.sigma(t).square(), 1 - table, rtol=1e-9, atol=1e-15)
    clean = torch.zeros(1, dtype=torch.float64)
    assert (path.alpha(clean).item(), path.sigma(clean).item()) == (1.0, 0.0)


def test_noise_grows(table: torch.Tensor) -> None:
    path = tabulated(table)
    t = torch.linspace(0, 1, 20 * len(table) + 1, dtype=torch.float64)
    assert bool((path.sigma(t).diff() >= 0).all())
    assert bool((path.log_snr(t).diff() <= 1e-12).all())


def test_derivatives_are_those_of_the_coefficients(
    table: torch.Tensor, gen: torch.Generator
) -> None:
    path, t = tabulated(table), inner(gen)
    for f, df in ((path.alpha, path.dalpha), (path.sigma, path.dsigma)):
        _, slope = torch.func.jvp(f, (t,), (torch.ones_like(t),))
        torch.testing.assert_close(slope, df(t), rtol=1e-8, atol=1e-10)


def test_derivatives_are_continuous_at_the_knots() -> None:
    path = tabulated(STABLE_DIFFUSION)
    t = torch.arange(1, 1000, dtype=torch.float64) / 1000
    for df in (path.dalpha, path.dsigma):
        torch.testing.assert_close(df(t - 1e-9), df(t + 1e-9), rtol=1e-4, atol=1e-6)


def test_secants(table: torch.Tensor, gen: torch.Generator) -> None:
    path, s, t = tabulated(table), inner(gen), inner(gen)
    for f, secant in zip((path.alpha, path.sigma), path.secant(s, t), strict=True):
        torch.testing.assert_close(secant * (t - s), f(t) - f(s), rtol=1e-8, atol=1e-12)
    for df, same in zip((path.dalpha, path.dsigma), path.secant(s, s), strict=True):
        torch.testing.assert_close(same, df(s), rtol=1e-10, atol=1e-12)


def test_secants_of_neighbours_do_not_cancel() -> None:
    """Across a knot in float32, where the difference of the coefficients has no digit left."""
    path = tabulated(STABLE_DIFFUSION)
    s = torch.arange(10, 990, dtype=torch.float32) / 1000 - 2e-7
    t = s + 4e-7
    wide = path.dsigma((s + t).double() / 2)
    torch.testing.assert_close(path.secant(s, t)[1].double(), wide, rtol=2e-3, atol=1e-4)


def test_the_inverse_and_its_derivative(table: torch.Tensor, gen: torch.Generator) -> None:
    path, t = tabulated(table), inner(gen)
    torch.testing.assert_close(path.time_at(path.log_snr(t)), t, rtol=0, atol=1e-9)
    there = lambda t: path.time_at(path.log_snr(t))
    _, slope = torch.func.jvp(there, (t,), (torch.ones_like(t),))
    torch.testing.assert_close(slope, torch.ones_like(t), rtol=1e-6, atol=1e-6)
    ends = torch.tensor([torch.inf, -torch.inf], dtype=torch.float64)
    assert path.time_at(ends).tolist() == pytest.approx([0.0, 1.0], abs=1e-12)


def test_zero_terminal_snr_is_pure_noise_in_float32() -> None:
    path, one = tabulated(TABLES["zero terminal SNR"]), torch.ones(1)
    assert path.alpha(one).item() < 1e-7
    assert not bool(path.log_snr(one).isnan())
    assert path.sigma(one).item() == 1.0


def test_a_table_that_stands_still() -> None:
    """Equal neighbours (float32 cannot tell them apart) are no division by zero."""
    cubic = MonotoneCubic(torch.tensor([0.0, 0.0, 0.5, 0.5, 1.0]))
    t = torch.linspace(0, 1, 101, dtype=torch.float64)
    assert bool(cubic.value(t).diff().ge(0).all())
    assert bool(cubic.derivative(t).isfinite().all())
    assert bool(cubic.inverse(cubic.value(t)).isfinite().all())


def test_paths_of_different_tables_differ() -> None:
    assert tabulated(STABLE_DIFFUSION) == tabulated(STABLE_DIFFUSION.clone())
    assert tabulated(STABLE_DIFFUSION) != tabulated(TABLES["zero terminal SNR"])

"""How a flow map is sampled: one loop over a grid of times, the ancestors' stochastic steps, and guidance."""

from .grids import GRIDS, from_times, grid, karras, log_snr, shifted, uniform
from .guidance import CFG, Autoguidance
from .sample import generate, sample, sample_churn, sample_eta, sample_gamma, solve, trajectory

__all__ = [
    "CFG",
    "GRIDS",
    "Autoguidance",
    "from_times",
    "generate",
    "grid",
    "karras",
    "log_snr",
    "sample",
    "sample_churn",
    "sample_eta",
    "sample_gamma",
    "shifted",
    "solve",
    "trajectory",
    "uniform",
]

"""Metrics: how near samples are to data.

*Frechet* and *kernel* distance compare two sets by moments, *Wasserstein* by matching,
*precision and recall* by supports, *agreement* by classes. All take tensors of samples; those that
have an argument `features` look at pixels by default, or through `Classifier.features`.

Of a map itself: *residuals* says how far it is from a flow map, *hazards* what in its network spoils the training.
"""

from flowmaps.metrics.agreement import Agreement, fit_agreement
from flowmaps.metrics.classifier import (
    Classifier,
    accuracy,
    fit_classifier,
    load_classifier,
    save_classifier,
)
from flowmaps.metrics.frechet import Moments, frechet, frechet_distance, moments
from flowmaps.metrics.hazards import HAZARDS, Hazard, hazards
from flowmaps.metrics.identity import JvpCheck, jvp_check, layer_norm_trap, residuals
from flowmaps.metrics.precision import PrecisionRecall, kernel_distance, precision_recall
from flowmaps.metrics.wasserstein import sliced_wasserstein, wasserstein

__all__ = [
    "HAZARDS",
    "Agreement",
    "Classifier",
    "Hazard",
    "JvpCheck",
    "Moments",
    "PrecisionRecall",
    "accuracy",
    "fit_agreement",
    "fit_classifier",
    "frechet",
    "frechet_distance",
    "hazards",
    "jvp_check",
    "kernel_distance",
    "layer_norm_trap",
    "load_classifier",
    "moments",
    "precision_recall",
    "residuals",
    "save_classifier",
    "sliced_wasserstein",
    "wasserstein",
]

"""The package's exceptions: one class per kind of mistake, all `ValueError`s, all caught by `FlowmapsError`."""


class FlowmapsError(Exception):
    """Base of every exception that flowmaps raises for what a user can cause."""


class ShapeError(FlowmapsError, ValueError):
    """A tensor has a shape that cannot be meant."""


class RecipeError(FlowmapsError, ValueError):
    """A recipe, rule or law whose parts do not fit together."""


class DerivativeError(FlowmapsError, ValueError):
    """A network whose directional derivative would be wrong or does not exist."""


class CheckpointError(FlowmapsError, ValueError):
    """A checkpoint that is truncated, foreign, newer than this version, or in the way."""


class DataError(FlowmapsError, ValueError):
    """Data that is missing, broken or not understood."""


class TrainingError(FlowmapsError, RuntimeError):
    """A training run that cannot go on, such as one whose loss is no longer finite."""


class ControlError(FlowmapsError, ValueError):
    """A reward, an operator or a setting of a control that cannot be used."""


class AdapterError(FlowmapsError, ValueError):
    """A model, folder or scheduler of another library that cannot be read as it stands."""


class MissingExtraError(FlowmapsError, ImportError):
    """A part of flowmaps whose optional packages are not installed."""

"""Stored trajectories as a data set: `pairs:FOLDER`."""

from __future__ import annotations

from pathlib import Path

from flowmaps.data.pairs import PairData, read_pairs
from flowmaps.data.sets import Ask
from flowmaps.errors import DataError


def pairs(ask: Ask) -> PairData:
    """The trajectories that `flowmaps pairs` wrote into a folder; they come in one size."""
    if ask.size is not None:
        raise DataError(f"{ask.name}: expected no size, trajectories have theirs; got {ask.size}")
    return read_pairs(Path(ask.rest).expanduser(), ask.name)


LOADERS = {"pairs:": pairs}

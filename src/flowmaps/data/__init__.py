"""Data: what a flow map is learned from.

[`load`][flowmaps.data.load] turns a name or a folder into [`Data`][flowmaps.data.Data];
a [`Sampler`][flowmaps.data.Sampler] says which of its rows come at which step. A new named set is
one file in `sets/`.
"""

from flowmaps.data.base import Conditioned, Data, Judging, TensorData, nulls
from flowmaps.data.batches import Sampler
from flowmaps.data.huggingface import HubData, hub_data
from flowmaps.data.images import FolderData, folder_data
from flowmaps.data.open import load, names

__all__ = [
    "Conditioned",
    "Data",
    "FolderData",
    "HubData",
    "Judging",
    "Sampler",
    "TensorData",
    "folder_data",
    "hub_data",
    "load",
    "names",
    "nulls",
]

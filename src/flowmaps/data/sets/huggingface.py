"""Images of the Hugging Face hub, or of a local folder that `datasets` can read: `hf:NAME`."""

from __future__ import annotations

from flowmaps.data.captions import CaptionedImages
from flowmaps.data.huggingface import HubData, hub_data
from flowmaps.data.sets import Ask


def huggingface(ask: Ask) -> HubData | CaptionedImages:
    """The data set behind `hf:`; columns of images and labels are found by their types, captions by their name."""
    return hub_data(ask.rest, split=ask.split, size=ask.size)


LOADERS = {"hf:": huggingface}

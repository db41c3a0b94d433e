"""Codecs: data as points that a flow map learns more easily, and the way back.

A [`Codec`][flowmaps.codec.Codec] turns clips of sound into time and frequency, or images into latents; `open_codec` knows
codecs by name. `flowmaps.data.encoded` shows a data set through one.
"""

from .base import CODECS, Codec, open_codec
from .mdct import MDCT
from .stft import STFT, LogMel

__all__ = ["CODECS", "MDCT", "STFT", "Codec", "LogMel", "open_codec"]

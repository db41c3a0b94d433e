"""Data encoded once: what an encoder makes of every sample, kept in a file that is named by both."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from flowmaps.data.base import Data, TensorData
from flowmaps.errors import DataError


def cached(
    data: Data, encode: Callable[[Tensor], Tensor], key: str, folder: Path, *, batch: int = 16
) -> TensorData:
    """The data as `encode` (B, *D) to (B, *latent) sees them, computed at most once.

    Args:
        data: What is encoded.
        encode: The encoder; it is called without gradients.
        key: Names the encoder, weights included.
        folder: Where `latents-KEY.safetensors` lies, or will lie.
        batch: Rows at a time.

    Raises:
        DataError: If the file is damaged, or cannot be written.
    """
    file = folder / f"latents-{_fingerprint(data, key)}.safetensors"
    named = kept(file, lambda: _encoded(data, encode, batch))
    return TensorData(data.name, named["x"], named.get("labels"), data.classes)


def kept(file: Path, make: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
    """The tensors of a file, which is made if it is not there.

    Raises:
        DataError: If it is damaged, or cannot be written.
    """
    if not file.exists():
        _write(file, make())
    try:
        return load_file(file)
    except (OSError, SafetensorError) as error:
        raise DataError(f"{file} is damaged ({error}); delete it and it is made again") from error


def _fingerprint(data: Data, key: str) -> str:
    """Of the encoder, and of the data by name, size and some of their rows."""
    some = torch.linspace(0, len(data) - 1, min(len(data), 8)).long()
    x, _ = data.batch(some)
    said = f"{key}|{data.name}|{len(data)}|{data.shape}|{data.classes}".encode()
    return hashlib.sha256(said + x.contiguous().numpy().tobytes()).hexdigest()[:16]


@torch.no_grad()
def _encoded(data: Data, encode: Callable[[Tensor], Tensor], batch: int) -> dict[str, Tensor]:
    found: list[Tensor] = []
    labels: list[Tensor] = []
    for rows in torch.arange(len(data)).split(batch):
        x, told = data.batch(rows)
        found.append(encode(x).float().cpu())
        labels += [] if told is None else [told]
    named = {"x": torch.cat(found).contiguous()}
    return named | {"labels": torch.cat(labels)} if labels else named


def _write(file: Path, named: dict[str, Tensor]) -> None:
    draft = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        save_file(named, draft)
        draft.replace(file)
    except (OSError, SafetensorError) as error:
        with contextlib.suppress(OSError):
            draft.unlink()
        raise DataError(
            f"{file} could not be written ({error}): its folder needs room, and leave to write"
        ) from error

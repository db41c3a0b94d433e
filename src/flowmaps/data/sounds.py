"""Clips that lie on disk: wav by scipy, flac, ogg and others by `soundfile`, at one rate and length."""

from __future__ import annotations

import io
import warnings
from dataclasses import dataclass
from math import gcd
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor

from flowmaps.data.base import TensorData
from flowmaps.data.folders import files_below, labels_of, split_folder, sub_folders
from flowmaps.errors import DataError, MissingExtraError

SUFFIXES = {".wav", ".flac", ".ogg", ".mp3", ".aiff", ".aif"}
RATE = 16_000
_SILENT = 1e-4  # of full scale: -80 dB


@final
@dataclass(frozen=True, eq=False)
class SoundData(TensorData):
    """Clips of one shape (channels, samples), float32 in [-1, 1]; build it with `sound_data`.

    Args:
        rate: Samples per second.
        skipped: Files that were left out, and why.
    """

    rate: int = RATE
    skipped: tuple[str, ...] = ()


def sound_data(
    folder: Path,
    *,
    samples: int = RATE,
    rate: int = RATE,
    channels: int = 1,
    split: str = "train",
    skip: bool = False,
) -> SoundData:
    """Every file of sound below a folder, the first `samples` of each; shorter ones end in silence.

    Args:
        folder: Files, or sub-folders of files (then they are the classes), or sub-folders named after splits.
        samples: Length of a clip.
        rate: Samples per second; files of other rates are resampled.
        channels: 1 mixes the channels of a file, 2 keeps them (and doubles the one of a mono file).
        split: Sub-folder to look into; "train" takes the folder itself if there is none.
        skip: Leave broken and silent files out, with a warning that names them, instead of refusing them.

    Raises:
        DataError: If there are no files, or one is broken or silent (it is named).
        MissingExtraError: If a file is no wav and the package soundfile is not installed.
    """
    root = split_folder(folder, split)
    classes = sub_folders(root, SUFFIXES)
    files = [f for c in classes or ("",) for f in files_below(root / c, SUFFIXES)]
    found: list[Tensor] = []
    kept: list[Path] = []
    skipped: list[str] = []
    for file in files:
        try:
            found.append(read_clip(file, samples, rate, channels))
            kept.append(file)
        except DataError as error:
            if not skip:
                raise
            skipped.append(str(error))
    if not found:
        raise DataError(
            f"{root}: expected files of sound ({', '.join(sorted(SUFFIXES))}); got "
            f"{f'{len(files)} that cannot be used' if files else 'none'}; check the path"
        )
    if skipped:
        warnings.warn(f"left out {len(skipped)} files: " + "; ".join(skipped), stacklevel=2)
    labels = labels_of(root, tuple(kept), classes)
    return SoundData(
        folder.name, torch.stack(found), labels, classes, rate=rate, skipped=tuple(skipped)
    )


def has_sound(folder: Path) -> bool:
    """Whether any file of sound lies below the folder."""
    return bool(files_below(folder, SUFFIXES))


def read_clip(path: Path, samples: int, rate: int = RATE, channels: int = 1) -> Tensor:
    """The beginning of a file as (channels, samples), float32.

    Raises:
        DataError: If the file is missing, broken, empty or silent.
        MissingExtraError: As `read_sound`.
    """
    x, own = read_sound(path)
    x = x.mean(0, keepdim=True) if channels == 1 else x[:channels].expand(channels, -1)
    x = resampled(x, own, rate)[:, :samples]
    if x.numel() == 0 or float(x.abs().max()) < _SILENT:
        raise DataError(
            f"{path}: expected sound; got {'silence' if x.numel() else 'an empty file'}; take the file out, or skip such files"
        )
    return torch.nn.functional.pad(x, (0, samples - x.shape[1]))


def read_sound(path: Path) -> tuple[Tensor, int]:
    """A file of sound as (channels, samples), float32 in [-1, 1], and its rate.

    Raises:
        DataError: If the file is missing, damaged, or no sound.
        MissingExtraError: If it is no plain wav and the package soundfile is not installed.
    """
    try:
        riff = path.read_bytes()[:4] == b"RIFF"
    except OSError as error:
        raise DataError(
            f"{path}: expected a file of sound; got '{error.strerror}'; check the path"
        ) from error
    if not riff and path.suffix.lower() == ".wav":
        raise DataError(
            f"{path}: expected a wav file; got other bytes; replace the file, take it out, or skip such files"
        )
    return (_read_wav(path) if riff else None) or _read_other(path)


def _read_wav(path: Path) -> tuple[Tensor, int] | None:
    """None of samples that are compressed: soundfile reads them."""
    from scipy.io import wavfile

    try:
        with warnings.catch_warnings(action="ignore", category=wavfile.WavFileWarning):
            rate, found = wavfile.read(path)
    except ValueError:
        return None
    x = torch.atleast_2d(torch.from_numpy(found.astype("float32").T))
    if found.dtype.kind == "f":
        return x, rate
    full = 2.0 ** (8 * found.dtype.itemsize - 1)
    return (x - full if found.dtype.kind == "u" else x) / full, rate  # bytes alone have no sign


def _read_other(path: Path) -> tuple[Tensor, int]:
    soundfile = _soundfile(f"{path}: no plain wav, so it")
    try:
        x, rate = soundfile.read(path, dtype="float32", always_2d=True)
    except (soundfile.LibsndfileError, RuntimeError, OSError) as error:
        raise DataError(
            f"{path}: expected a file of sound; got '{error}'; replace the file, take it out, or skip such files"
        ) from error
    return torch.from_numpy(x).T, int(rate)


def _soundfile(what: str) -> Any:  # noqa: ANN401
    try:
        import soundfile  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise MissingExtraError(
            f"{what} needs the package soundfile; got no such package; pip install 'flowmaps[sound]', or use wav"
        ) from error
    return soundfile


def resampled(x: Tensor, own: int, rate: int) -> Tensor:
    """Sound (..., samples) at another rate, by a polyphase filter."""
    if own == rate or x.shape[-1] == 0:
        return x
    from scipy.signal import resample_poly

    common = gcd(own, rate)
    found = resample_poly(x.double().numpy(), rate // common, own // common, axis=-1)
    return torch.from_numpy(found).float()


def sound_bytes(x: Tensor, rate: int, suffix: str = ".wav") -> bytes:
    """Sound (channels, samples) as a file, a wav one of 16 bits; what is outside [-1, 1] is clipped.

    Raises:
        MissingExtraError: For another suffix than .wav without the package soundfile.
        DataError: If soundfile does not write such files.
    """
    buffer, heard = io.BytesIO(), x.detach().cpu().float().clamp(-1, 1).T
    if suffix == ".wav":
        from scipy.io import wavfile

        wavfile.write(buffer, rate, (heard * 32767).round().short().numpy())
        return buffer.getvalue()
    soundfile = _soundfile(f"a file of sound that ends in {suffix}")
    if suffix[1:].upper() not in soundfile.available_formats():
        raise DataError(f"expected sound as .wav, .flac or .ogg; got {suffix}; choose one of them")
    soundfile.write(buffer, heard.numpy(), rate, format=suffix[1:])
    return buffer.getvalue()


def in_a_row(x: Tensor, rate: int, gap: float = 0.15) -> Tensor:
    """Clips (N, channels, samples) one after the other as (channels, samples), with silence between them."""
    pause = x.new_zeros(x.shape[1], round(gap * rate))
    return torch.cat([part for clip in x for part in (clip, pause)][:-1], 1)

import math

import pytest
import torch
from torch import Tensor

from flowmaps.codec import CODECS, MDCT, STFT, Codec, LogMel, open_codec
from flowmaps.codec.stft import mel_bank
from flowmaps.data import TensorData
from flowmaps.data.encoded import encoded, medium
from flowmaps.errors import DataError


def clips(*shape: int, seed: int = 0) -> Tensor:
    return 0.3 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def window_mdct(x: Tensor, bins: int, block: int) -> Tensor:
    """Coefficients (bins,) of an inner block by their definition: sine window times cosine, over two blocks."""
    n = torch.arange(2 * bins, dtype=torch.float64)
    k = torch.arange(bins, dtype=torch.float64)[:, None]
    basis = torch.cos(math.pi / bins * (n + 0.5 - bins / 2) * (k + 0.5))
    start = block * bins - bins // 2
    return (
        math.sqrt(2 / bins)
        * basis
        @ (x[start : start + 2 * bins] * torch.sin(math.pi / (2 * bins) * (n + 0.5)))
    )


def test_inner_frames_are_windowed_cosines():
    x = clips(1, 1, 70).double()
    y = MDCT((1, 70), bins=10, power=1.0, gain=1.0).encode(x)
    for block in (1, 3, 5):
        torch.testing.assert_close(y[0, :, block], window_mdct(x[0, 0], 10, block))


def test_without_companding_the_mdct_is_orthogonal():
    codec = MDCT((1, 42), bins=6, power=1.0, gain=1.0)
    basis = codec.encode(torch.eye(42, dtype=torch.float64)[:, None]).flatten(1)
    torch.testing.assert_close(basis @ basis.T, torch.eye(42, dtype=torch.float64))


@pytest.mark.parametrize(
    "name", ["mdct", "mdct:6", "mdct:250", "stft", "stft:100", "advance", "advance:128"]
)
@pytest.mark.parametrize("shape", [(1, 16000), (2, 12345)])
def test_round_trips_are_exact(name: str, shape: tuple[int, int]):
    x = clips(2, *shape)
    codec = open_codec(name, shape)
    z = codec.encode(x)
    assert z.shape == (2, *codec.shape)
    torch.testing.assert_close(codec.decode(z), x, atol=1e-5, rtol=0)  # the bar is 1e-4
    assert open_codec(codec.name, shape) == codec
    torch.testing.assert_close(codec.encode(x[1:]), z[1:])  # a row's neighbours do not matter


@pytest.mark.parametrize("kind", [MDCT, STFT])
def test_companding_brings_quiet_sound_up(kind: type[MDCT | STFT]):
    x = clips(1, 1, 4000)
    loud, quiet = (kind((1, 4000)).encode(scale * x) for scale in (1, 1e-3))
    power = kind((1, 4000)).power
    torch.testing.assert_close(quiet, loud * 1e-3**power, rtol=1e-3, atol=1e-3)


def test_a_steady_note_has_the_same_numbers_in_every_frame():
    time = torch.arange(16000, dtype=torch.float64) / 16000
    x = torch.sin(2 * math.pi * 443.7 * time + 1)[None, None]
    z = open_codec("advance", (1, 16000)).encode(x).unflatten(1, (2, 501))
    angle = torch.atan2(z[:, 1], z[:, 0])[0, 27:29, 2:-2]  # 443.7 Hz lie between bins 27 and 28
    expected = 2 * math.pi * 443.7 * 500 / 16000
    assert torch.cos(angle - expected).min() > 1 - 1e-6
    phases = open_codec("stft", (1, 16000)).encode(x).unflatten(1, (2, 501))
    assert phases[0, 0, 27, 2:-2].std() > 0.5 * phases[0, :, 27, 2:-2].norm(dim=0).mean()


def test_channels_do_not_mix():
    x = clips(1, 2, 1000)
    for name in ("mdct:100", "stft:100", "mel:8"):
        both = open_codec(name, (2, 1000)).encode(x)
        left = open_codec(name, (1, 1000)).encode(x[:, :1])
        torch.testing.assert_close(both[:, : left.shape[1]], left)


def test_phases_that_are_guessed_sound_alike():
    time = torch.arange(8000) / 16000
    x = 0.3 * torch.sin(2 * math.pi * 440 * time)[None, None]
    codec = LogMel((1, 8000))
    again = codec.encode(codec.decode(codec.encode(x)))
    inner = slice(2, -2)
    assert (again - codec.encode(x))[
        ..., inner
    ].abs().mean() < 0.25  # 1 is a factor of 18 in loudness


def test_mel_bands_share_every_frequency_between_two():
    bank = mel_bank(12, 401)
    centres = bank.argmax(1)
    torch.testing.assert_close(
        bank.sum(0)[centres[0] : centres[-1]], torch.ones(int(centres[-1] - centres[0]))
    )
    assert (bank > 0).sum(0).max() == 2


def test_loudness_is_logarithmic():
    codec = LogMel((1, 4096))
    x = clips(1, 1, 4096)
    gap = codec.encode(10 * x) - codec.encode(x)
    torch.testing.assert_close(gap, torch.full_like(gap, 1 / 1.25), atol=0.01, rtol=0)


def test_what_cannot_be_opened_is_refused_in_a_sentence():
    with pytest.raises(
        DataError, match=r"expected a codec of advance, mdct, mel, stft, vae; got 'mp3'"
    ):
        open_codec("mp3", (1, 16000))
    with pytest.raises(
        DataError, match=r"codec mdct: expected clips of shape \(channels, samples\)"
    ):
        open_codec("mdct", (1, 8, 8))
    with pytest.raises(DataError, match="expected a number of at least 2 after the colon; got 'x'"):
        open_codec("stft:x", (1, 16000))


class Doubled(Codec):
    """A codec that counts how many rows it was given."""

    name = "doubled"
    shape = (4,)
    rows = 0

    def encode(self, x: Tensor) -> Tensor:
        self.rows += len(x)
        return torch.cat([x, x], 1)

    def decode(self, z: Tensor) -> Tensor:
        return z[:, :2]


@pytest.fixture
def doubled(monkeypatch: pytest.MonkeyPatch) -> Doubled:
    codec = Doubled()
    monkeypatch.setitem(CODECS, "doubled", lambda rest, shape: codec)
    return codec


def test_encoded_data_are_encoded_once_and_keep_their_labels(doubled: Doubled):
    x, labels = clips(7, 2), torch.tensor([0, 1, 2, 0, 1, 2, 0])
    data = encoded(TensorData("seven", x, labels, ("a", "b", "c")), "doubled")
    assert (data.name, data.shape, data.classes, len(data)) == ("seven", (4,), ("a", "b", "c"), 7)
    for index in ([5, 1, 5], [1, 6], [6, 5, 1]):
        z, told = data.batch(torch.tensor(index))
        torch.testing.assert_close(z, torch.cat([x, x], 1)[index])
        assert told is not None
        assert told.tolist() == labels[index].tolist()
    assert doubled.rows == 3
    assert medium(data) == {"codec": "doubled", "decoded": [2]}


def test_without_a_codec_data_are_what_they_were(doubled: Doubled):
    data = TensorData("seven", clips(7, 2))
    assert encoded(data, None) is data
    assert medium(data) == {}
    assert encoded(data, "doubled").batch(torch.tensor([0]))[1] is None

r"""What conditions a network: two times, a class, a guidance scale.

The derivative of a time feature $\sin(\omega s)$ is $\omega\cos(\omega s)$, and flow-map rules differentiate it, so the
usual frequencies (times x 1000) would drown the tangent of everything else (methods.md 7; sCM, arXiv:2410.11081, sec. 4).
The largest frequency here is 16: enough to tell times a hundredth apart, and tangents stay of order one to ten.
"""

from typing import final

import torch
from torch import Tensor, nn

MAX_FREQUENCY = 16.0  # radians per unit of time


def rms_norm(x: Tensor, eps: float = 1e-6) -> Tensor:
    r"""$x / \sqrt{mean(x^2)}$ over the last axis, without parameters, in float32: exact under forward-mode AD and its gradient."""
    wide = x.float() if x.dtype in (torch.bfloat16, torch.float16) else x
    return (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)).to(x.dtype)


@final
class Frequencies(nn.Module):
    """Sines and cosines of a scalar at geometrically spaced frequencies in [0.5, 16]: (B,) to (B, features)."""

    omega: Tensor

    def __init__(self, features: int) -> None:
        super().__init__()
        steps = torch.linspace(-1, 4, features // 2)
        self.register_buffer("omega", 2**steps, persistent=False)

    def forward(self, value: Tensor) -> Tensor:
        phase = value[:, None] * self.omega.to(value.dtype)
        return torch.cat([phase.sin(), phase.cos()], -1)


@final
class Conditioning(nn.Module):
    """Embeds source and jump (s, s - t), a class label and a guidance scale into one vector (B, width).

    Args:
        width: Size of the result.
        classes: Number of classes; 0 for none. Label `classes` means "no class".
        guided: Whether the guidance scale is an input.
        features: Sines and cosines per time.
        spread: Standard deviation of the classes' vectors before training.

    The jump and the scale are anchored: at s = t and scale 1 they add nothing (see `_TimeMLP`).
    """

    def __init__(
        self,
        width: int,
        classes: int = 0,
        *,
        guided: bool = False,
        features: int = 64,
        spread: float = 0.02,
    ) -> None:
        super().__init__()
        self.classes = classes
        self.source = _TimeMLP(features, width)
        self.jump = _TimeMLP(features, width, anchored=True)
        self.label = nn.Embedding(classes + 1, width) if classes else None
        self.scale = _TimeMLP(features, width, anchored=True) if guided else None
        if self.label is not None:
            nn.init.normal_(self.label.weight, std=spread)

    def forward(
        self, s: Tensor, t: Tensor, label: Tensor | None = None, scale: Tensor | None = None
    ) -> Tensor:
        # s - t is formed here, inside the differentiated function, so that the chain rule is automatic
        with torch.autocast(s.device.type, enabled=False):  # bfloat16 cannot tell close times apart
            s, t = _wide(s), _wide(t)
            out = self.source(s) + self.jump(s - t)
            if self.scale is not None:
                value = torch.ones_like(s) if scale is None else scale
                out = out + self.scale(_wide(value).log())
            if self.label is not None:
                out = out + self.label(self._labels(label, s))
        return out

    def _labels(self, label: Tensor | None, s: Tensor) -> Tensor:
        if label is None:
            return torch.full(s.shape, self.classes, dtype=torch.long, device=s.device)
        return label


def _wide(value: Tensor) -> Tensor:
    """Float32 at least, for differences of close times."""
    return value if value.dtype == torch.float64 else value.float()


class _TimeMLP(nn.Module):
    """Two layers on sines and cosines; `anchored`, it is zero at value 0 and, before training, everywhere.

    Anchored, an embedding that only ever saw 0 (the jump of a one-time model) has had no gradient and is still zero
    everywhere: a two-time network loaded from such a model is that model, exactly.
    """

    def __init__(self, features: int, width: int, *, anchored: bool = False) -> None:
        super().__init__()
        self.anchored = anchored
        self.frequencies = Frequencies(features)
        self.first, self.last = (
            nn.Linear(features, width),
            nn.Linear(width, width, bias=not anchored),
        )
        if anchored:
            nn.init.zeros_(self.last.weight)

    def forward(self, value: Tensor) -> Tensor:
        hidden = self._hidden(value)
        if self.anchored:
            # as many zeros as values: products of other shapes round differently, and Adam would make a gradient of that
            hidden = hidden - self._hidden(torch.zeros_like(value))
        return self.last(hidden)

    def _hidden(self, value: Tensor) -> Tensor:
        return nn.functional.silu(self.first(self.frequencies(value).to(self.first.weight.dtype)))

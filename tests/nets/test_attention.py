"""Attention by any kernel is the same formula, keys that may not be seen have no say, and both directions of AD go through."""

import math

import pytest
import torch

from flowmaps.nets.attention import attend
from flowmaps.nets.block import gelu


def sides(dtype: torch.dtype, gen: torch.Generator) -> tuple[torch.Tensor, ...]:
    q = torch.randn(3, 2, 5, 8, generator=gen)
    k, v = (torch.randn(3, 2, 7, 8, generator=gen) for _ in range(2))
    return q.to(dtype), k.to(dtype), v.to(dtype)


def formula(q, k, v, mask=None):
    logits = torch.einsum("bhnd,bhmd->bhnm", q, k) / math.sqrt(8)
    if mask is not None:
        logits = logits - 1e9 * (~mask)[:, None, None]
    weights = logits.exp() / logits.exp().sum(-1, keepdim=True)
    return torch.einsum("bhnm,bhmd->bhnd", weights, v)


MASK = torch.tensor([[True] * 7, [True] * 3 + [False] * 4, [False] * 6 + [True]])


@pytest.mark.parametrize("mask", [None, MASK])
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, 0.03)]
)
def test_every_kernel_is_the_formula(dtype, tolerance, mask, gen) -> None:
    q, k, v = sides(dtype, gen)
    wide = formula(q.double(), k.double(), v.double(), mask)
    torch.testing.assert_close(attend(q, k, v, mask).double(), wide, rtol=tolerance, atol=tolerance)


def test_gradients_of_the_low_precision_kernel(gen) -> None:
    wide = [side.requires_grad_() for side in sides(torch.float32, gen)]
    low = [side.detach().bfloat16().requires_grad_() for side in wide]
    towards = torch.randn(3, 2, 5, 8, generator=gen)
    want = torch.autograd.grad((attend(*wide, MASK) * towards).sum(), wide)
    got = torch.autograd.grad((attend(*low, MASK).float() * towards).sum(), low)
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a.float(), b, rtol=0.05, atol=0.05)


def test_the_low_precision_kernel_has_a_forward_mode(gen) -> None:
    q, k, v = sides(torch.bfloat16, gen)
    along = torch.randn(q.shape, generator=gen)
    _, tangent = torch.func.jvp(lambda x: attend(x, k, v), (q,), (along.bfloat16(),))
    _, want = torch.func.jvp(
        lambda x: formula(x, k.double(), v.double()), (q.double(),), (along.double(),)
    )
    torch.testing.assert_close(tangent.double(), want, rtol=0.1, atol=0.05)


def test_gelu_is_the_same_where_it_is_compiled(gen, monkeypatch) -> None:
    x = 4 * torch.randn(1000, generator=gen).double()
    plain = gelu(x)
    monkeypatch.setattr("torch.compiler.is_compiling", lambda: True)
    torch.testing.assert_close(gelu(x), plain, rtol=1e-7, atol=1e-7)
    assert (gelu(x) - x).abs().max() > 0.1

"""CLIP rewards on a tiny random model: cosines, the head's stack, gradients, and what is refused."""

import json

import pytest
import torch
from safetensors.torch import save_file

transformers = pytest.importorskip("transformers")

from flowmaps.adapters.clip import aesthetic, clip_score  # noqa: E402
from flowmaps.errors import AdapterError  # noqa: E402


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A CLIP of random weights, and a tokenizer of single letters."""
    place = tmp_path_factory.mktemp("clip")
    small = dict(hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2)
    text = dict(small, vocab_size=30, max_position_embeddings=12, bos_token_id=0, eos_token_id=1)
    vision = dict(small, image_size=16, patch_size=8)
    with torch.random.fork_rng():
        torch.default_generator.manual_seed(0)
        config = transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=6)
        transformers.CLIPModel(config).save_pretrained(place)
    letters = [f"{c}</w>" for c in "abcdefghijklmnopqrstuvwxyz"]
    vocab = {c: i for i, c in enumerate(["<|startoftext|>", "<|endoftext|>", *letters])}
    (place / "vocab.json").write_text(json.dumps(vocab))
    (place / "merges.txt").write_text("#version: 0.2\n")
    transformers.CLIPTokenizer(
        str(place / "vocab.json"), str(place / "merges.txt")
    ).save_pretrained(place)
    return place


X = torch.rand(5, 3, 20, 20, generator=torch.Generator().manual_seed(1)) * 2 - 1


def test_a_score_is_the_cosine_of_picture_and_prompt(folder) -> None:
    reward = clip_score(folder, "a b c")
    found = reward(X)
    assert found.shape == (5,)
    torch.testing.assert_close(reward.embed(X).norm(dim=1), torch.ones(5))
    torch.testing.assert_close(reward.weight.norm(), torch.ones(()))
    model = reward.model
    mean, std = (torch.tensor(c)[:, None, None] for c in (
        (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)))  # fmt: skip
    exact = X[:, :, 2:18, 2:18]
    image = model.vision_model(pixel_values=((exact + 1) / 2 - mean) / std).pooler_output
    image = model.visual_projection(image)
    cosine = torch.nn.functional.cosine_similarity(image, reward.weight[None])
    torch.testing.assert_close(reward(exact), cosine, atol=1e-5, rtol=1e-5)
    assert float((clip_score(folder, "x y z")(X) - found).abs().max()) > 1e-4


def test_it_is_differentiable_and_grey_is_three_equal_channels(folder) -> None:
    reward = clip_score(folder, "a")
    x = X[:, :1].clone().requires_grad_(True)
    value = reward(x)
    torch.testing.assert_close(value, reward(X[:, :1].expand(-1, 3, -1, -1)))
    assert float(torch.autograd.grad(value.sum(), x)[0].abs().max()) > 0


def test_a_head_is_its_stack_of_layers(folder, tmp_path) -> None:
    generator = torch.Generator().manual_seed(2)
    a, b = (torch.randn(*shape, generator=generator) for shape in ((4, 6), (1, 4)))
    c, d = torch.randn(4, generator=generator), torch.randn(1, generator=generator)
    head = {"layers.0.weight": a, "layers.0.bias": c, "layers.2.weight": b, "layers.2.bias": d}
    save_file(head, tmp_path / "head.safetensors")
    reward = aesthetic(folder, tmp_path / "head.safetensors")
    exact = ((reward.embed(X) @ a.T + c) @ b.T + d)[:, 0]
    torch.testing.assert_close(reward(X), exact, atol=1e-5, rtol=1e-5)
    save_file({"layers.0.weight": b, "layers.0.bias": d}, tmp_path / "odd.safetensors")
    with pytest.raises(AdapterError, match="no stack of linear layers from 6"):
        aesthetic(folder, tmp_path / "odd.safetensors")


def test_what_is_not_there_is_said(folder, tmp_path) -> None:
    with pytest.raises(AdapterError, match="no CLIP model at"):
        clip_score(tmp_path / "nothing", "a")
    with pytest.raises(AdapterError, match="pictures"):
        clip_score(folder, "a")(torch.zeros(2, 4, 8, 8))

"""A latent model that reads text, from a folder to pictures: plumbing, since all of its weights are random."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("diffusers", reason="needs the extra: pip install 'flowmaps[diffusers]'")

import diffusers
import transformers
from PIL import Image

from flowmaps.adapters.diffusers import denoiser
from flowmaps.adapters.export import start
from flowmaps.adapters.prompts import Piped
from flowmaps.adapters.vae import VaeCodec
from flowmaps.cli.main import main
from flowmaps.codec import Codec, open_codec
from flowmaps.data import TensorData
from flowmaps.data.cached import cached
from flowmaps.data.text import encoder
from flowmaps.errors import AdapterError, DataError
from flowmaps.sample import sample
from flowmaps.testing.zoo import ZOO
from flowmaps.train import checkpoint

SCHEDULER = diffusers.DDIMScheduler(
    beta_schedule="scaled_linear",
    beta_start=0.00085,
    beta_end=0.012,
    clip_sample=False,
    steps_offset=1,
)
FAST = ["--run.steps", "2", "--run.batch", "4", "--run.precision", "fp32"]


def tokenizer(folder: Path) -> transformers.CLIPTokenizer:
    letters = [chr(c) for c in range(33, 127)]
    words = [*letters, *(x + "</w>" for x in letters), "<|startoftext|>", "<|endoftext|>"]
    folder.mkdir(parents=True)
    (folder / "vocab.json").write_text(json.dumps({w: i for i, w in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    files = str(folder / "vocab.json"), str(folder / "merges.txt")
    return transformers.CLIPTokenizer(*files, model_max_length=12)


def vae() -> diffusers.AutoencoderKL:
    return diffusers.AutoencoderKL(
        block_out_channels=(4, 8), layers_per_block=1, norm_num_groups=4, sample_size=16, scaling_factor=0.5, shift_factor=0.25,
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
    )  # fmt: skip


@pytest.fixture(scope="module")
def stable(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder of Stable Diffusion, tiny."""
    place = tmp_path_factory.mktemp("stable")
    config = transformers.CLIPTextConfig(
        vocab_size=190, hidden_size=8, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=12, bos_token_id=188, eos_token_id=189, pad_token_id=189,
    )  # fmt: skip
    pipeline = diffusers.StableDiffusionPipeline(
        vae=vae(), text_encoder=transformers.CLIPTextModel(config), tokenizer=tokenizer(place / "words"),
        unet=ZOO["SD 1.5 UNet"].build(), scheduler=SCHEDULER, safety_checker=None, feature_extractor=None,
        requires_safety_checker=False,
    )  # fmt: skip
    pipeline.save_pretrained(place / "model")
    return str(place / "model")


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Six pictures, three captions."""
    folder = tmp_path / "photos"
    folder.mkdir()
    rows = []
    for k in range(6):
        pixels = np.random.default_rng(k).integers(0, 255, (16, 16, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{k}.png")
        rows.append(json.dumps({"file_name": f"{k}.png", "text": f"thing {k % 3}"}))
    (folder / "metadata.jsonl").write_text("\n".join(rows))
    return folder


def test_from_captions_to_pictures(stable: str, photos: Path, tmp_path: Path) -> None:
    """Latents are encoded once, captions are read by the pipeline, guidance drops them, and a prompt draws pictures."""
    run, out = tmp_path / "map", tmp_path / "x.npy"
    command = ["distill", "--teacher", stable, "--data", str(photos)]
    assert main([*command, "--lora", "2", "--guidance.scale", "3", *FAST, "--out", str(run)]) == 0
    about = checkpoint.read(run)[0]
    assert about["recipe"]["name"] == "ayf_lmd"  # guided samples have another law than the data
    assert about["data"]["conditions"] == ["encoder_hidden_states"]
    assert about["data"]["shape"] == [4, 8, 8]
    assert about["data"]["decoded"] == [3, 16, 16]
    assert about["data"]["examples"] == [f"thing {k % 3}" for k in range(6)]
    latents = list((run / "cache").glob("latents-*.safetensors"))
    assert len(latents) == 1
    assert list((run / "previews").glob("*.png"))
    for words in ([], ["--prompt", "a red dot"]):
        assert main(["sample", str(run), "-n", "2", *words, "--out", str(out)]) == 0
        assert np.load(out).shape == (2, 3, 16, 16)
    # the folder is the same map for every command, texts and autoencoder included; taught, it is a folder again
    folder, again, asked = (
        run / "distilled",
        tmp_path / "y.npy",
        ["-n", "2", "--prompt", "a red dot"],
    )
    assert main(["sample", str(folder), *asked, "--out", str(again)]) == 0
    np.testing.assert_allclose(np.load(again), np.load(out), atol=1e-5)
    taught, mine = ["finetune", str(folder), "--data", str(photos)], tmp_path / "mine"
    assert main([*taught, *FAST, "--out", str(mine)]) == 0
    assert (mine / "distilled" / "text_encoder").is_dir()
    assert main(["sample", str(mine / "distilled"), *asked, "--out", str(again)]) == 0
    assert np.abs(np.load(again) - np.load(out)).max() > 1e-6
    walk = ["--solver", "ddim", "--steps", "2", "--out", str(again)]
    assert main(["sample", stable, *asked, *walk]) == 0
    stamp = latents[0].stat().st_mtime_ns
    assert (
        main(["distill", "--resume", str(run)]) == 0
    )  # it was at its end: everything is read again
    assert latents[0].stat().st_mtime_ns == stamp


def test_prompts_of_a_file_and_no_data(
    stable: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines, run = tmp_path / "lines.txt", ["--out", str(tmp_path / "map")]
    command = ["distill", "--teacher", stable, "--recipe", "cmt", "--set.steps", "2", *FAST, *run]
    assert main(command) == 2
    assert "--prompts FILE" in capsys.readouterr().err
    lines.write_text("a red dot\n\nnothing at all\n")
    assert main([*command, "--prompts", str(lines)]) == 0
    assert checkpoint.read(tmp_path / "map")[0]["data"]["examples"][:2] == [
        "a red dot",
        "nothing at all",
    ]
    assert main([*command, "--prompts", str(tmp_path / "none.txt")]) == 2
    asks = ["distill", "--teacher", stable, "--recipe", "push_forward", *FAST, "--out"]
    assert main([*asks, str(tmp_path / "other"), "--prompts", str(lines)]) == 2
    assert "learns from data" in capsys.readouterr().err


def flux(folder: Path, *, guided: bool) -> str:
    """A folder of Flux, tiny; both of its text encoders read the same letters."""
    words = tokenizer(folder / "words")
    small = {
        "vocab_size": 190,
        "num_hidden_layers": 1,
        "num_layers": 1,
        "num_heads": 2,
        "num_attention_heads": 2,
    }
    clip = transformers.CLIPTextConfig(
        **small, hidden_size=8, intermediate_size=16, max_position_embeddings=12, bos_token_id=188, eos_token_id=189,
        pad_token_id=189,
    )  # fmt: skip
    t5 = transformers.T5Config(**small, d_model=8, d_ff=16, d_kv=4)
    model = ZOO["Flux"]
    transformer = diffusers.FluxTransformer2DModel(
        **dict(model.config) | {"in_channels": 16, "guidance_embeds": guided}
    )
    torch.nn.init.normal_(transformer.proj_out.weight, std=0.05)
    pipeline = diffusers.FluxPipeline(
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0), vae=vae(), text_encoder=transformers.CLIPTextModel(clip),
        tokenizer=words, text_encoder_2=transformers.T5EncoderModel(t5), tokenizer_2=words, transformer=transformer,
    )  # fmt: skip
    pipeline.save_pretrained(folder / "model")
    return str(folder / "model")


@pytest.mark.parametrize("guided", [False, True])
def test_flux_sees_squares_of_latents_and_their_places(
    guided: bool, photos: Path, tmp_path: Path
) -> None:
    """Packed as by the pipeline, which from the folder of the map draws what we draw, its own guidance told."""
    folder, run, out = flux(tmp_path, guided=guided), tmp_path / "map", tmp_path / "x.npy"
    codec = VaeCodec(folder)
    z = torch.arange(2 * 4 * 8 * 8.0).reshape(2, 4, 8, 8)
    plain = VaeCodec(f"{folder}/vae")
    x = torch.rand(2, 3, 16, 16) * 2 - 1
    theirs = diffusers.FluxPipeline._pack_latents(plain.encode(x), 2, 4, 8, 8)
    torch.testing.assert_close(codec.encode(x), theirs)
    assert codec.shape == (16, 16)
    packed = diffusers.FluxPipeline._pack_latents(z, 2, 4, 8, 8)
    torch.testing.assert_close(codec.decode(packed / 100), plain.decode(z / 100))
    command = ["distill", "--teacher", folder, "--data", str(photos), "--lora", "2"]
    assert main([*command, *FAST, "--out", str(run)]) == 0
    assert main(["sample", str(run), "-n", "2", "--prompt", "a red dot", "--out", str(out)]) == 0
    assert np.load(out).shape == (2, 3, 16, 16)
    saved = checkpoint.load(run)
    net = denoiser(saved.flow_map)
    assert net.constant["img_ids"].tolist()[:5] == [[0, 0, k] for k in range(4)] + [[0, 1, 0]]
    assert ("guidance" in net.constant) == guided
    pipeline = diffusers.DiffusionPipeline.from_pretrained(
        str(run / "distilled"), trust_remote_code=True
    )
    noise = torch.randn(1, 16, 16)
    told = Piped(folder, tuple(sorted(net.names)), 16)(["a red dot"])
    with torch.no_grad():
        # the stock pipeline scales the sides of its images by 8, whatever its autoencoder
        size = 16 * pipeline.vae_scale_factor // 2
        theirs = pipeline(
            "a red dot", height=size, width=size, num_inference_steps=1, latents=noise, output_type="latent"
        ).images  # fmt: skip
        ours = sample(saved.flow_map, *start(saved.flow_map, noise, 1), **told)
    torch.testing.assert_close(theirs, ours, rtol=1e-4, atol=1e-5)


def test_texts_are_read_as_the_pipeline_reads_them(stable: str) -> None:
    pipeline = diffusers.StableDiffusionPipeline.from_pretrained(stable, safety_checker=None)
    texts = ["a red dot", ""]
    with torch.no_grad():
        theirs, _ = pipeline.encode_prompt(texts, "cpu", 1, False)
    ours = Piped(stable, ("encoder_hidden_states", "class_labels"), 16)
    assert list(ours(texts)) == ["encoder_hidden_states"]
    torch.testing.assert_close(ours(texts)["encoder_hidden_states"], theirs, rtol=1e-5, atol=1e-6)
    twin = encoder(json.loads(json.dumps(ours.settings)))
    assert twin == ours
    assert (twin.length, twin.count("dot")) == (12, 5)


def test_what_pipelines_give_is_told_apart_by_shape() -> None:
    """SD3 and Flux (a pooled vector), SDXL (the same, with sizes), PixArt (a mask)."""
    words, pooled, mask = (
        torch.zeros(1, 3, 8),
        torch.zeros(1, 8),
        torch.ones(1, 3, dtype=torch.long),
    )
    state = "encoder_hidden_states"
    added = (state, "added_cond_kwargs")
    cases = [
        ((state, "pooled_projections"), (words, None, pooled, None), {state, "pooled_projections"}),
        (added, (words, None, pooled, None), {state, "text_embeds", "time_ids"}),
        ((state, "encoder_attention_mask"), (words, mask, None), {state, "encoder_attention_mask"}),
    ]
    for names, values, told in cases:
        found = Piped("folder", names, 64)._named(values)
        assert set(found) == told
    assert Piped("folder", added, 64)._named((words, pooled))["time_ids"].tolist() == [
        [64, 64, 0, 0, 64, 64]
    ]
    with pytest.raises(AdapterError, match="takes none"):
        Piped("folder", ("hint",), 64)._named((words,))


@pytest.mark.parametrize(
    "model", [vae, lambda: diffusers.AutoencoderTiny(encoder_block_out_channels=(4, 4), decoder_block_out_channels=(4, 4),
    num_encoder_blocks=(1, 1), num_decoder_blocks=(1, 1), scaling_factor=0.5)],
)  # fmt: skip
def test_latents_are_those_that_pipelines_use(
    model: Callable[[], torch.nn.Module], tmp_path: Path, gen: torch.Generator
) -> None:
    """(E(x) - shift) scale and back, from the model's own methods; a row's neighbours do not matter."""
    net = model().eval()
    net.save_pretrained(tmp_path)
    codec = open_codec(f"vae:{tmp_path}", (3, 16, 16))
    assert isinstance(codec, Codec)
    x = torch.rand(3, 3, 16, 16, generator=gen) * 2 - 1
    shift = net.config.get("shift_factor") or 0.0
    with torch.no_grad():
        found = net.encode(x)
        mean = found.latents if hasattr(found, "latents") else found.latent_dist.mean
        z = codec.encode(x)
        torch.testing.assert_close(z, (mean - shift) * net.config.scaling_factor)
        back = net.decode(z / net.config.scaling_factor + shift).sample.clamp(-1, 1)
        torch.testing.assert_close(codec.decode(z), back)
    assert z.shape[1:] == codec.shape
    torch.testing.assert_close(codec.encode(x[1:2])[0], z[1], rtol=1e-4, atol=1e-5)
    grey = VaeCodec(tmp_path, (1, 16, 16))
    assert grey.decode(grey.encode(x[:, :1])).shape == (3, 1, 16, 16)
    with pytest.raises(AdapterError, match="multiples"):
        VaeCodec(tmp_path, (3, 15, 15))


def test_a_cache_is_of_these_data_and_this_encoder(tmp_path: Path) -> None:
    calls: list[int] = []

    def encode(x: torch.Tensor) -> torch.Tensor:
        calls.append(len(x))
        return 2 * x

    x = torch.arange(10.0).reshape(5, 2)
    data = TensorData("five", x, torch.arange(5) % 2, ("a", "b"))
    first = cached(data, encode, "key", tmp_path, batch=2)
    again = cached(data, encode, "key", tmp_path)
    assert calls == [2, 2, 1]
    assert torch.equal(first.x, 2 * x)
    assert torch.equal(again.x, first.x)
    assert torch.equal(again.batch(torch.tensor([3]))[1], torch.tensor([1]))
    cached(data, encode, "other", tmp_path)
    cached(TensorData("five", x + 1, data.labels, data.classes), encode, "key", tmp_path)
    assert len(calls) == 5
    files = list(tmp_path.glob("latents-*"))
    assert len(files) == 3
    for file in files:
        file.write_bytes(b"broken")
    with pytest.raises(DataError, match="delete it"):
        cached(data, encode, "key", tmp_path)

# The extra may not be installed.
# pyright: basic, reportMissingImports=false, reportPrivateImportUsage=false
"""Tiny instances with random weights of the denoisers of diffusers, with points and conditioning that fit them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, final

import torch
from torch import Tensor, nn


@final
@dataclass(frozen=True)
class Specimen:
    """One class of the zoo.

    Attributes:
        kind: Name of the class in diffusers.
        config: Arguments of its constructor.
        shape: Shape of a point, without its batch axis.
        cond: Shapes of its conditioning, without the batch axis; a number n stands for a class below n.
        constant: Arguments without a batch axis.
        flow: Whether it was made for flow matching (else for a table of alphas).
        audio: Whether its times are those of EDM's cosine scheduler.
    """

    kind: str
    config: Mapping[str, Any]
    shape: tuple[int, ...]
    cond: Mapping[str, tuple[int, ...] | int] = field(default_factory=dict[str, Any])
    constant: Callable[[], dict[str, Any]] = dict[str, Any]
    flow: bool = False
    audio: bool = False

    def build(self, dtype: torch.dtype = torch.float32) -> nn.Module:
        """The model, in evaluation mode, none of its weights zero (several classes start at an output of zero)."""
        import diffusers

        model: nn.Module = getattr(diffusers, self.kind)(**self.config)
        for parameter in model.parameters():
            if not bool(parameter.any()):
                nn.init.normal_(parameter, std=0.05)
        return nn.Module.to(model, dtype).eval()

    def scheduler(self) -> Any:
        """A scheduler of its usual kind, as users have it."""
        import diffusers

        if self.flow:
            return diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
        if self.audio:
            return diffusers.CosineDPMSolverMultistepScheduler()
        return diffusers.DDIMScheduler(
            beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, clip_sample=False
        )

    def inputs(
        self, n: int, generator: torch.Generator, dtype: torch.dtype = torch.float32
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Points (n, *shape) and their conditioning."""
        x = torch.randn(n, *self.shape, generator=generator, dtype=dtype)
        cond = {
            name: torch.randint(shape, (n,), generator=generator)
            if isinstance(shape, int)
            else torch.randn(n, *shape, generator=generator, dtype=dtype)
            for name, shape in self.cond.items()
        }
        return x, cond


_SMALL_UNET: dict[str, Any] = {
    "sample_size": 8,
    "in_channels": 4,
    "out_channels": 4,
    "block_out_channels": (8, 16),
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "attention_head_dim": 4,
}
_CROSS: dict[str, Any] = _SMALL_UNET | {
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    "cross_attention_dim": 8,
}


def _flux_ids() -> dict[str, Any]:
    rows, columns = torch.meshgrid(torch.arange(4.0), torch.arange(4.0), indexing="ij")
    image = torch.stack([torch.zeros(16), rows.flatten(), columns.flatten()], -1)
    return {"img_ids": image, "txt_ids": torch.zeros(3, 3)}


def _stable_audio_rotary() -> dict[str, Any]:
    from diffusers.models.embeddings import get_1d_rotary_pos_embed

    return {
        "rotary_embedding": get_1d_rotary_pos_embed(
            4, 9, use_real=True, repeat_interleave_real=False
        )
    }


ZOO: dict[str, Specimen] = {
    "UNet2D": Specimen(
        "UNet2DModel",
        _SMALL_UNET
        | {
            "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
            "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
        },
        (4, 8, 8),
    ),
    "SD 1.5 UNet": Specimen(
        "UNet2DConditionModel", _CROSS, (4, 8, 8), {"encoder_hidden_states": (3, 8)}
    ),
    "SDXL UNet": Specimen(
        "UNet2DConditionModel",
        _CROSS
        | {
            "use_linear_projection": True,
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 4,
            "projection_class_embeddings_input_dim": 8 + 6 * 4,
        },
        (4, 8, 8),
        {"encoder_hidden_states": (3, 8), "text_embeds": (8,), "time_ids": (6,)},
    ),
    "DiT": Specimen(
        "DiTTransformer2DModel",
        {
            "num_attention_heads": 2,
            "attention_head_dim": 8,
            "in_channels": 4,
            "out_channels": 8,
            "num_layers": 2,
            "sample_size": 8,
            "num_embeds_ada_norm": 10,
            "norm_num_groups": 4,
        },
        (4, 8, 8),
        {"class_labels": 10},
    ),
    "PixArt": Specimen(
        "PixArtTransformer2DModel",
        {
            "num_attention_heads": 2,
            "attention_head_dim": 8,
            "in_channels": 4,
            "out_channels": 8,
            "num_layers": 2,
            "sample_size": 8,
            "norm_num_groups": 4,
            "cross_attention_dim": 16,
            "caption_channels": 8,
            "use_additional_conditions": False,
        },
        (4, 8, 8),
        {"encoder_hidden_states": (3, 8)},
    ),
    "Sana": Specimen(
        "SanaTransformer2DModel",
        {
            "in_channels": 4,
            "out_channels": 4,
            "num_attention_heads": 2,
            "attention_head_dim": 8,
            "num_layers": 2,
            "num_cross_attention_heads": 2,
            "cross_attention_head_dim": 8,
            "cross_attention_dim": 16,
            "caption_channels": 8,
            "sample_size": 8,
        },
        (4, 8, 8),
        {"encoder_hidden_states": (3, 8)},
        flow=True,
    ),
    "SD3": Specimen(
        "SD3Transformer2DModel",
        {
            "sample_size": 8,
            "in_channels": 4,
            "out_channels": 4,
            "num_layers": 2,
            "attention_head_dim": 8,
            "num_attention_heads": 2,
            "joint_attention_dim": 8,
            "caption_projection_dim": 16,
            "pooled_projection_dim": 8,
            "pos_embed_max_size": 8,
        },
        (4, 8, 8),
        {"encoder_hidden_states": (3, 8), "pooled_projections": (8,)},
        flow=True,
    ),
    "Flux": Specimen(
        "FluxTransformer2DModel",
        {
            "in_channels": 4,
            "num_layers": 1,
            "num_single_layers": 1,
            "attention_head_dim": 8,
            "num_attention_heads": 2,
            "joint_attention_dim": 8,
            "pooled_projection_dim": 8,
            "axes_dims_rope": (2, 2, 4),
        },
        (16, 4),
        {"encoder_hidden_states": (3, 8), "pooled_projections": (8,)},
        _flux_ids,
        flow=True,
    ),
    "Stable Audio": Specimen(
        "StableAudioDiTModel",
        {
            "sample_size": 8,
            "in_channels": 4,
            "out_channels": 4,
            "num_layers": 2,
            "attention_head_dim": 8,
            "num_attention_heads": 2,
            "num_key_value_attention_heads": 1,
            "cross_attention_dim": 8,
            "time_proj_dim": 8,
            "global_states_input_dim": 8,
            "cross_attention_input_dim": 8,
        },
        (4, 8),
        {"encoder_hidden_states": (3, 8), "global_hidden_states": (1, 8)},
        _stable_audio_rotary,
        audio=True,
    ),
    "AudioLDM2 UNet": Specimen(
        "AudioLDM2UNet2DConditionModel",
        _CROSS | {"cross_attention_dim": ((8, 8), (8, 8))},
        (4, 8, 8),
        {"encoder_hidden_states": (3, 8), "encoder_hidden_states_1": (3, 8)},
    ),
    "AnyFlow": Specimen(
        "AnyFlowTransformer3DModel",
        {
            "num_attention_heads": 2,
            "attention_head_dim": 12,
            "in_channels": 4,
            "out_channels": 4,
            "text_dim": 8,
            "freq_dim": 16,
            "ffn_dim": 32,
            "num_layers": 2,
            "rope_max_seq_len": 32,
        },
        (2, 4, 8, 8),
        {"encoder_hidden_states": (3, 8)},
        flow=True,
    ),
}
"""The classes by the name that people know them by."""

_ROPED: dict[str, Any] = {
    "num_attention_heads": 2,
    "num_layers": 1,
    "num_refiner_layers": 1,
    "text_embed_dim": 8,
}
_MASKED: dict[str, tuple[int, ...] | int] = {
    "encoder_hidden_states": (3, 8),
    "encoder_attention_mask": (3,),
}


def _flux3_ids() -> dict[str, Any]:
    return {"img_ids": torch.zeros(16, 4), "txt_ids": torch.zeros(3, 4)}


TWO_TIME: dict[str, Specimen] = {
    "Flux3": Specimen(
        "Flux3Transformer2DModel",
        {
            "in_channels": 4,
            "cond_in_channels": 4,
            "num_layers": 1,
            "num_single_layers": 1,
            "attention_head_dim": 8,
            "num_attention_heads": 2,
            "joint_attention_dim": 8,
            "timestep_channels": 16,
            "axes_dims_rope": (2, 2, 2, 2),
        },
        (16, 4),
        {"encoder_hidden_states": (3, 8)},
        _flux3_ids,
        flow=True,
    ),
    "HunyuanImage": Specimen(
        "HunyuanImageTransformer2DModel",
        _ROPED
        | {
            "in_channels": 4,
            "out_channels": 4,
            "attention_head_dim": 8,
            "num_single_layers": 1,
            "rope_axes_dim": (4, 4),
        },
        (4, 4, 4),
        _MASKED,
        flow=True,
    ),
    "HunyuanVideo15": Specimen(
        "HunyuanVideo15Transformer3DModel",
        _ROPED
        | {
            "in_channels": 4,
            "out_channels": 4,
            "attention_head_dim": 12,
            "rope_axes_dim": (4, 4, 4),
            "text_embed_2_dim": 8,
            "image_embed_dim": 8,
        },
        (4, 2, 4, 4),
        _MASKED
        | {
            "encoder_hidden_states_2": (2, 8),
            "encoder_attention_mask_2": (2,),
            "image_embeds": (2, 8),
        },
        flow=True,
    ),
    "ACE-Step": Specimen(
        "AceStepTransformer1DModel",
        {
            "hidden_size": 16,
            "intermediate_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "head_dim": 8,
            "in_channels": 12,
            "audio_acoustic_hidden_dim": 4,
            "sliding_window": 4,
        },
        (8, 4),
        {"encoder_hidden_states": (3, 16), "context_latents": (8, 8)},
        flow=True,
    ),
}
"""Classes with a second time of their own that `ZOO` lacks: switched off, but for ACE-Step's."""

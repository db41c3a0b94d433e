"""One typed description of a run: what the command line sets, what is saved beside a checkpoint, what rebuilds the run.

Nothing here imports torch, so that help and error messages are immediate.
"""

from typing import Annotated, Any, Literal, final

from pydantic import BaseModel, ConfigDict, Field

Share = Annotated[float, Field(gt=0, lt=1)]


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


@final
class Run(_Model):
    """How long and how a flow map is trained."""

    steps: int = Field(10_000, ge=1)
    """Optimiser steps."""
    seconds: float | None = Field(None, gt=0)
    """Wall-clock budget of training; progress is then the larger of the shares of steps and of time. Such a run is not
    repeatable bit for bit, since its schedule follows the clock."""
    batch: int = Field(256, ge=1)
    """Samples per step, over all processes."""
    seed: int = Field(0, ge=0, lt=2**63)
    """Of everything random: initial weights, order of the data, noise, times."""
    lr: float = Field(1e-3, gt=0, allow_inf_nan=False)
    """Peak learning rate of AdamW."""
    warmup: int = Field(100, ge=0)
    """Steps of linear warm-up."""
    schedule: Literal["cosine", "constant", "linear"] = "cosine"
    """Learning rate after the warm-up: to zero by half a cosine or a line, or constant."""
    weight_decay: float = Field(0.0, ge=0)
    """AdamW's decoupled decay."""
    beta2: float = Field(0.99, gt=0, lt=1)
    """Adam's second-moment decay; 0.95 is steadier with gradients through JVPs (TVM)."""
    clip: float = Field(1.0, gt=0)
    """Bound on the gradient norm."""
    ema: tuple[Share, ...] = (0.02, 0.05, 0.1)
    """Half-lives of the moving averages of the weights, as shares of the steps done so far. The first is the one that
    `load`, previews and samples use."""
    flip: bool = False
    """Mirror images left to right at random."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """bf16 runs matrix products in bfloat16 (autocast); auto takes it where the machine has matrix units for it."""
    compile: Literal["auto", "yes", "no"] = "auto"
    """torch.compile of the loss; auto takes it for runs long enough to repay the minutes of compilation."""
    device: str = "auto"
    """auto is the GPU if there is one."""
    log_every: int = Field(50, ge=1)
    """Steps between lines of metrics.jsonl and TensorBoard."""
    preview_every: int = Field(1000, ge=1)
    """Steps between preview images."""
    save_every: int = Field(1000, ge=1)
    """Steps between checkpoints."""
    keep: int = Field(2, ge=1)
    """Checkpoints kept; older ones are removed once a newer one is complete."""


@final
class GuidanceConfig(_Model):
    """Classifier-free guidance folded into the map (needs labelled data)."""

    scale: float = Field(1.0, ge=1)
    """Scale that is baked in; 1 drops labels and guides nothing."""
    max_scale: float | None = Field(None, gt=1)
    """If set, the scale becomes an input of the network, drawn log-uniformly in [scale, max_scale]."""
    dropout: float = Field(0.1, ge=0, lt=1)
    """Share of the labels that is dropped."""
    low: float = Field(0.0, ge=0, le=1)
    """Smallest source time that is guided."""
    high: float = Field(1.0, ge=0, le=1)
    """Largest source time that is guided."""


@final
class StudentConfig(_Model):
    """How a pipeline of diffusers becomes a student (`flowmaps distill`)."""

    lora: int | None = Field(None, ge=1)
    """Rank of the LoRA that is trained in place of all weights."""
    targets: tuple[str, ...] = ("to_q", "to_k", "to_v", "to_out.0")
    """Ends of the names of the layers that get it."""
    prompts: str | None = None
    """File of prompts, one per line, of a teacher that reads text; by default the captions of the data."""
    floor: float = Field(0.2, gt=0, lt=1)
    """Least share of data in what a student that predicts noise takes for pure noise."""


@final
class ChangeConfig(_Model):
    """How a trained map is taught new data (`flowmaps finetune`)."""

    keep: float = Field(0.3, ge=0, lt=1)
    """Share of the rows that are the old map's own samples, so that it is not forgotten."""
    steps: int = Field(4, ge=1)
    """Jumps that they are drawn in."""


@final
class Config(_Model):
    """A training run from end to end."""

    recipe: str = "mean_flow"
    """Name of a recipe; `flowmaps recipes` lists them."""
    set: dict[str, Any] = Field(default_factory=dict[str, Any])
    """Arguments of the recipe, such as {"diagonal": 0.5}."""
    data: str = "digits"
    """Name or path of the data."""
    size: int | None = Field(None, ge=1)
    """Side of the images, for folders of pictures of any size; samples of a clip, for folders of sound (16 kHz)."""
    codec: str | None = None
    """Learn points of a codec instead of the data: advance, mdct, stft or mel of sound, vae:FOLDER of images."""
    text: str | None = None
    """Text model of transformers (a folder, or a name on the hub) that reads captions; by default a dit learns to read bytes."""
    net: str = "mlp-base"
    """Named network: mlp-{tiny,small,base,large} or dit-{tiny,small,base,large}."""
    patch: int | None = Field(None, ge=1)
    """Side of a patch of a dit; by default 4, or 2 for images under 16 pixels."""
    skip: Literal["auto", "yes", "no"] = "auto"
    """Carry the noise of a dit's patches around its tokens; auto where a patch has more numbers than a token."""
    labels: bool = True
    """Condition on the classes of the data, if it has any."""
    guidance: GuidanceConfig | None = None
    """Guidance folded into the map; none by default."""
    teacher: str | None = None
    """Checkpoint of the teacher, for recipes that distil; the student starts at its weights if they mean the same to it."""
    student: StudentConfig | None = None
    """Set if the teacher is a pipeline of diffusers; its network is then the student's as well."""
    change: ChangeConfig | None = None
    """Set if `init` is a map that is taught new data; its network, path and conditions are then kept."""
    init: str | None = None
    """Checkpoint whose weights the student starts from; by default the teacher's, if there is one."""
    run: Run = Run()  # pyright: ignore[reportCallIssue]  # every field has a default
    """How long and how."""

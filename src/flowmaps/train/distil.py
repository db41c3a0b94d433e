# The extra may not be installed.
# pyright: reportMissingImports=false
"""From a pipeline of diffusers to a run: its denoiser teaches, and a copy of it with a second time learns. The loop is `fit`'s."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..core.flow_map import NetFlowMap
from ..core.parametrization import Average
from ..data import Conditioned, Data, nulls
from ..data import load as load_data
from ..data.cached import cached
from ..data.captions import Captioned, texts
from ..data.told import Nothing, Prompted, no_samples
from ..errors import DataError, RecipeError
from ..learn.jumps import Until
from ..learn.legs import ShortLeg
from ..learn.objective import Recipe
from ..learn.rules import Eulerian
from ..recipes import get
from . import checkpoint
from .hooks import Hook
from .run import Config, StudentConfig
from .setup import Prepared, make_guidance, start_from
from .state import State

if TYPE_CHECKING:
    from ..adapters.denoiser import Denoiser
    from ..adapters.vae import VaeCodec


def prepare(config: Config, cache: Path | None = None) -> Prepared:
    """Build everything that a configuration with a pipeline as its teacher names.

    Args:
        config: Its `teacher` is a folder of diffusers, its `student` says how the student is made.
        cache: Folder of encoded data; by default `latents` in the current one.

    Raises:
        RecipeError: For an unknown recipe, or one that needs data or reads its network in a way of its own.
        DataError: For data that is missing, broken or of another shape.
        AdapterError: For a folder that is not understood.
        CheckpointError: If it starts at a map of another model or path.
    """
    from ..adapters.constant import constants
    from ..adapters.diffusers import denoiser, velocity

    settings = config.student or StudentConfig()  # pyright: ignore[reportCallIssue]
    if config.teacher is None:
        raise RecipeError("a student of diffusers has a teacher: give --teacher FOLDER, a pipeline")
    recipe = get(config.recipe, **config.set)
    teacher = velocity(config.teacher, path=recipe.interpolant)
    codec = _codec(config)
    model = denoiser(teacher).model
    data = _data(config, denoiser(teacher), codec, cache or Path("latents"))
    if codec is not None and codec.squares is not None:
        told = data.conditions(torch.tensor([0])) if isinstance(data, Conditioned) else {}
        words = told["encoder_hidden_states"].shape[1] if "encoder_hidden_states" in told else 0
        denoiser(teacher).constant |= constants(model, codec.squares, words)
    null = _null(data, model) if config.labels else {}
    if config.guidance is not None:
        recipe = replace(recipe, guidance=make_guidance(config.guidance, null))
    parts = bind(recipe, teacher, data, settings, config.run.seed)
    if config.init is not None:
        start_from(parts.flow_map, checkpoint.load(config.init).flow_map, config.init)
    described: dict[str, Any] = parts.about["data"] | {
        "name": config.data,
        "size": config.size,
        "classes": list(data.classes) if "label" in null else [],
        "conditions": list(null),
        **texts(data),
    }
    if codec is not None:
        described |= {"codec": codec.name, "decoded": list(codec.data_shape)}
    about = {
        "recipe": {"name": recipe.name, "set": config.set, "value": repr(recipe)},
        "data": described,
        "config": config.model_dump(mode="json"),
        "pipeline": config.teacher,
        "start": config.init or config.teacher,
    }
    return replace(parts, about=parts.about | about)


def bind(
    recipe: Recipe,
    teacher: NetFlowMap,
    data: Data,
    settings: StudentConfig = StudentConfig(),  # pyright: ignore[reportCallIssue]
    seed: int = 0,
) -> Prepared:
    """What `fit` takes to distil a velocity of `adapters.diffusers`, from data that tell what its denoiser wants.

    The student is a copy of the teacher with a second time, on the recipe's path. One that predicts noise takes as pure noise
    the last timestep whose share of data is at least `settings.floor`: below it, what a prediction of noise says of the data is
    its rounding error divided by that share.

    Raises:
        RecipeError: If the recipe reads its network in a way of its own, or needs data and there are none.
    """
    from ..adapters.diffusers import add_lora, floored, flow_map
    from ..adapters.stored import describe

    if not isinstance(recipe.parametrization, Average):
        raise RecipeError(
            f"recipe {recipe.name!r} reads its network as {type(recipe.parametrization).__name__}, a model of diffusers is read "
            "as its scheduler says: choose a recipe of the average velocity, such as push_forward, lmd or free_flow"
        )
    if recipe.needs_data and no_samples(data):
        raise RecipeError(
            f"recipe {recipe.name!r} learns from data: give --data, or a recipe of noise and a teacher alone, such as "
            "free_flow or cmt"
        )
    with torch.random.fork_rng(
        devices=[]
    ):  # the second time and LoRA draw from the global generator
        torch.default_generator.manual_seed(seed)
        student = flow_map(floored(teacher, settings.floor), path=recipe.interpolant).float()
        if settings.lora is not None:
            add_lora(student, settings.lora, settings.targets)
    student.local = recipe.local
    recipe = _where_told(recipe, student)
    about = {
        "flow_map": checkpoint.describe_map(student, describe(student)),
        "recipe": {"name": recipe.name, "value": repr(recipe)},
        "data": {
            "name": data.name,
            "shape": list(data.shape),
            "classes": list(data.classes),
            "conditions": list(nulls(data)),
        },
        "pipeline": "",
    }
    return Prepared(recipe, student, data, teacher if recipe.needs_teacher else None, about)


def _where_told(recipe: Recipe, student: NetFlowMap) -> Recipe:
    """The recipe with the rules that move a jump's source kept to the times that the model tells apart.

    Beyond the end of its own path it takes every point for one of that end: there the derivative by the source is not the map's,
    and following it drives the first jump away (a DDPM of digits by `default`, 5,000 steps: one step at a Frechet distance of 40).
    """
    end = getattr(student.net, "end", 1.0)
    if end >= 1:
        return recipe
    terms = (
        replace(term, times=Until(term.times, end))
        if isinstance(term.rule, Eulerian | ShortLeg)
        else term
        for term in recipe.terms
    )
    return replace(recipe, terms=tuple(terms))


def _codec(config: Config) -> "VaeCodec | None":
    from ..adapters.load import component
    from ..adapters.vae import VaeCodec

    assert config.teacher is not None
    if component(config.teacher, "vae") is None:
        return None
    shape = None if config.size is None else (3, config.size, config.size)
    return VaeCodec(config.teacher, shape)


def _data(config: Config, net: "Denoiser", codec: "VaeCodec | None", cache: Path) -> Data:
    """The data as the denoiser sees them, with their captions if it reads text."""
    from ..adapters.denoiser import classes_of, shape_of

    model = net.model
    classes = classes_of(model) or 0
    shape = shape_of(model) if codec is None else codec.shape
    if config.data == "none":
        if shape is None:
            raise DataError(
                f"{type(model).__name__} does not say what shape its points have: give --data"
            )
        return _told(config, net, Nothing(shape, tuple(str(k) for k in range(classes))), (), codec)
    own = shape[-1] if shape else None
    data = load_data(config.data, size=config.size or (codec.data_shape[-1] if codec else own))
    captions = data.captions(torch.arange(len(data))) if isinstance(data, Captioned) else ()
    if codec is not None:
        data = cached(data, codec.encode, codec.key, cache)
    if shape is not None and (data.shape[0], len(data.shape)) != (shape[0], len(shape)):
        raise DataError(
            f"{config.data} has samples of shape {data.shape}, the teacher sees {shape}: give data that fit, or --size"
        )
    if classes and len(data.classes) > classes:
        raise DataError(
            f"{config.data} has {len(data.classes)} classes, the teacher knows {classes}"
        )
    return _told(config, net, data, captions, codec)


def _told(
    config: Config, net: "Denoiser", data: Data, captions: Sequence[str], codec: "VaeCodec | None"
) -> Data:
    """With a text for every sample, read by the teacher's pipeline, if it reads any."""
    from ..adapters import prompts

    assert config.teacher is not None
    if not prompts.reads_text(config.teacher):
        return data
    lines = _lines(config.student.prompts) if config.student and config.student.prompts else None
    chosen = lines or captions
    if not chosen:
        raise DataError(
            f"{config.teacher} reads text and {config.data} has none: give --prompts FILE, one per line, or captions "
            "in metadata.jsonl"
        )
    size = codec.data_shape[-1] if codec else data.shape[-1]
    return Prompted(
        data, tuple(chosen), prompts.Piped(config.teacher, tuple(sorted(net.names)), size)
    )


def _lines(file: str) -> list[str]:
    """The prompts of a file.

    Raises:
        DataError: If it cannot be read, or holds none.
    """
    try:
        lines = Path(file).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"--prompts {file} cannot be read ({error})") from error
    found = [line.strip() for line in lines if line.strip()]
    if not found:
        raise DataError(f"--prompts {file} holds no prompt: write one per line")
    return found


def _null(data: Data, model: nn.Module) -> Mapping[str, Tensor]:
    """What stands for "nothing is told": of a teacher of classes, the label after its last; without its classes, nothing."""
    from ..adapters.denoiser import classes_of

    null = dict(nulls(data))
    if "label" not in null:
        return null
    known = classes_of(model)
    return {"label": torch.tensor(known)} if known else {}


def distil(
    config: Config,
    out: Path,
    *,
    resume: bool = False,
    hooks: Sequence[Hook] = (),
    measure: Callable[[NetFlowMap, Prepared], Sequence[Mapping[str, Any]]] = lambda *_: (),
) -> State:
    """Prepare and fit; at the end the averaged student lies in `out/distilled` as diffusers would save it.

    Args:
        config: As in `prepare`.
        out: Folder of the run.
        resume: Go on from its newest checkpoint.
        hooks: As in `fit`.
        measure: From the averaged student, and what it was trained on, to the table on the model card.

    Raises:
        AdapterError, CheckpointError, DataError, RecipeError, TrainingError: As `prepare` and `fit`.
    """
    parts = prepare(config, out / "cache")
    state = parts.fit(config.run, out=out, resume=resume, hooks=hooks)
    if state.progress(config.run) >= 1 and not parts.recipe.local:
        student = _learned(state)
        note = f"Distilled by `{parts.recipe.name}` of flowmaps, {state.step} steps, data: {config.data}."
        _save(student, out, config.teacher, measure(student, parts), note, parts.data.shape)
    return state


def save_changed(
    state: State, parts: Prepared, out: Path, rows: Sequence[Mapping[str, Any]], note: str
) -> None:
    """A fine-tuned map of diffusers as its folder, `out/distilled`; of another map nothing is written.

    Args:
        state: What was learned.
        parts: What `train.finetune.prepare` made.
        out: Folder of the run.
        rows: The table on the model card.
        note: A paragraph there.
    """
    if parts.about.get("pipeline"):
        from ..adapters.folder import around

        student = _learned(state)
        pipeline = around(parts.about["pipeline"], student)
        _save(student, out, pipeline, rows, note, parts.data.shape)


def _learned(state: State) -> NetFlowMap:
    """The averaged student."""
    student = state.averaged().cpu()
    assert isinstance(student, NetFlowMap)
    return student


def _save(
    student: NetFlowMap,
    out: Path,
    pipeline: object,
    rows: Sequence[Mapping[str, Any]],
    note: str,
    shape: tuple[int, ...],
) -> None:
    from ..adapters.export import save

    told: dict[str, Any] = {"pipeline": pipeline, "results": rows, "notes": note, "shape": shape}
    save(student, out / "distilled", **told, overwrite=True)

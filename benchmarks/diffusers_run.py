"""A real run through diffusers: a UNet2DModel is a DDPM of digits, is distilled from its folder, and sampled by diffusers alone.

Writes diffusers_run.json and docs/pictures/diffusers.png. The teacher is trained as diffusers' own example does (epsilon, linear
betas, AdamW, cosine, EMA); `flowmaps distill` makes the map of the folder that `DDPMPipeline.save_pretrained` wrote; every row of
the table is drawn by a process in which flowmaps cannot be imported. Frechet distances in pixels to all 1,797 digits. About 15
minutes of one core; what lies in runs/diffusers already is used as it is. Needs the extra: pip install 'flowmaps[diffusers]'.
"""

# %% the extra
import json
import os
import subprocess
import sys
import textwrap
from importlib.util import find_spec
from pathlib import Path

if find_spec("diffusers") is None:
    sys.exit(print("left out: pip install 'flowmaps[diffusers]' first"))

import diffusers
import torch
from diffusers.training_utils import EMAModel

from flowmaps.cli.main import main
from flowmaps.data import load
from flowmaps.metrics import frechet_distance, moments

HERE = Path(__file__).parent
FAST = os.environ.get("FLOWMAPS_FAST") == "1"
PLACE = HERE.parent / "runs" / ("diffusers-fast" if FAST else "diffusers")
TEACHER, STUDENT, COUNT = (5, 5, 20) if FAST else (3000, 1500, 1000)
DATA = load("digits")
X, _ = DATA.batch(torch.arange(len(DATA)))


# %% the teacher, as diffusers' example trains it
def teacher(folder: Path) -> None:
    torch.manual_seed(0)
    model = diffusers.UNet2DModel(
        sample_size=8, in_channels=1, out_channels=1, layers_per_block=1, block_out_channels=(16, 32), norm_num_groups=8,
        down_block_types=("DownBlock2D",) * 2, up_block_types=("UpBlock2D",) * 2, add_attention=False,
    )  # fmt: skip
    scheduler = diffusers.DDPMScheduler(num_train_timesteps=1000)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3, weight_decay=1e-6)
    rate = diffusers.optimization.get_cosine_schedule_with_warmup(optimizer, 100, TEACHER)
    average = EMAModel(model.parameters(), decay=0.999, use_ema_warmup=True, power=0.75)
    for _ in range(TEACHER):
        clean = X[torch.randint(len(X), (128,))]
        noise, t = torch.randn_like(clean), torch.randint(0, 1000, (128,))
        guess = model(scheduler.add_noise(clean, noise, t), t, return_dict=False)[0]
        torch.nn.functional.mse_loss(guess, noise).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        rate.step()
        optimizer.zero_grad()
        average.step(model.parameters())
    average.copy_to(model.parameters())
    diffusers.DDPMPipeline(model, scheduler).save_pretrained(folder)


if not (PLACE / "teacher").exists():
    teacher(PLACE / "teacher")
if not (PLACE / "map" / "distilled").exists():
    code = main(
        ["distill", f"--teacher={PLACE}/teacher", "--data=digits", f"--out={PLACE}/map", f"--run.steps={STUDENT}",
         "--run.batch=64", "--run.lr=5e-4", "--run.precision=fp32"]
    )  # fmt: skip
    assert code == 0


# %% sampling, by diffusers alone
STOCK = textwrap.dedent("""
    import sys, time
    sys.modules["flowmaps"] = None  # an import of it fails
    import diffusers, torch
    torch.set_num_threads(1)
    folder, kind, steps, count, out = sys.argv[1:]
    if kind == "map":
        pipeline = diffusers.DiffusionPipeline.from_pretrained(folder, trust_remote_code=True)
    else:
        pipeline = diffusers.DDPMPipeline.from_pretrained(folder)
    if kind == "DDIM":
        pipeline = diffusers.DDIMPipeline(pipeline.unet, diffusers.DDIMScheduler.from_config(pipeline.scheduler.config))
    pipeline.set_progress_bar_config(disable=True)
    found, seconds = [], []
    for seed in range(-1, -(-int(count) // 100)):  # the first batch warms up
        generator = torch.Generator().manual_seed(max(seed, 0))
        begin = time.process_time()
        few = 2 if seed < 0 else int(steps)
        x = pipeline(batch_size=100, generator=generator, num_inference_steps=few, output_type="np").images
        if seed >= 0:
            seconds.append((time.process_time() - begin) / 100)
            found.append(torch.as_tensor(x).float().reshape(100, 1, 8, 8) * 2 - 1)
    torch.save({"x": torch.cat(found)[: int(count)], "seconds": sum(seconds) / len(seconds)}, out)
""")


def drawn(folder: Path, kind: str, steps: int, count: int) -> tuple[torch.Tensor, float]:
    """Samples and processor seconds per image, pipeline to pipeline."""
    out = PLACE / "samples.pt"
    command = [sys.executable, "-c", STOCK, str(folder), kind, str(steps), str(count), str(out)]
    subprocess.run(command, check=True)
    found = torch.load(out)
    return found["x"], found["seconds"]


real, rows, shown = moments(X), [], {}
plan = [
    ("DDIM", 50),
    ("map", 1),
    ("map", 2),
    ("map", 4),
    ("map", 8),
    ("DDIM", 20),
    ("DDIM", 10),
    ("DDIM", 4),
    ("DDPM", 1000),
]
for kind, steps in plan:
    count = COUNT if steps < 1000 else COUNT // 4
    folder = PLACE / "map" / "distilled" if kind == "map" else PLACE / "teacher"
    x, seconds = drawn(folder, kind, 3 if FAST and steps == 1000 else steps, count)
    found = moments(x)
    distance = frechet_distance(found.mean, found.cov, real.mean, real.cov)
    rows.append(
        {
            "sampler": kind,
            "steps": steps,
            "images": count,
            "frechet": round(distance, 4),
            "seconds_per_image": seconds,
        }
    )
    shown[f"{kind} {steps}"] = x[:20]
    print(rows[-1], flush=True)
base = rows[0]
for row in rows:
    row["frechet_to_ddim50"] = round(row["frechet"] / base["frechet"], 3)
    row["times_faster"] = round(base["seconds_per_image"] / row["seconds_per_image"], 1)


# %% table and picture
if not FAST:
    from flowmaps.report.images import ladder
    from flowmaps.report.style import save_png

    about = {
        "teacher": f"UNet2DModel, {TEACHER} steps of batch 128, epsilon, linear betas",
        "student": f"push_forward, {STUDENT} steps of batch 64",
        "data": "digits, 1 x 8 x 8", "rows": rows,
    }  # fmt: skip
    (HERE / "diffusers_run.json").write_text(json.dumps(about, indent=1) + "\n")
    names = ["DDPM 1000", "DDIM 50", "DDIM 4", "map 4", "map 1"]
    save_png(
        ladder({name: shown[name] for name in names}, across=4),
        HERE.parent / "docs" / "pictures" / "diffusers.png",
    )

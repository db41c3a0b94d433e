"""A real run through diffusers: a UNet2DModel is a DDPM of digits, is distilled from its folder, and sampled by diffusers alone.

Writes diffusers_run.json and docs/pictures/diffusers.png. The teacher is trained as diffusers' own example does (epsilon, linear
betas, AdamW, cosine, EMA); `flowmaps distill` makes the map of the folder that `DDPMPipeline.save_pretrained` wrote, in two
stages: `default` learns the jumps from the data, starting as the teacher, and `psd` joins two of them to the one from pure noise.
Every row of the table is drawn by a process in which flowmaps cannot be imported, in batches of 250, in rounds of one batch of
every row, so that whatever else the machine does falls on all alike; seconds are the median of the rounds. Frechet distances in
pixels to all 1,797 digits, of 2,000 samples (DDPM: 250; a distance of few samples is too large). About 45 minutes of one core;
what lies in runs/diffusers already is used as it is. Needs the extra: pip install 'flowmaps[diffusers]'.
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
from safetensors.torch import load_file

from flowmaps.cli.main import main
from flowmaps.data import load
from flowmaps.metrics import frechet_distance, moments
from flowmaps.train import checkpoint

HERE = Path(__file__).parent
FAST = os.environ.get("FLOWMAPS_FAST") == "1"
PLACE = HERE.parent / "runs" / ("diffusers-fast" if FAST else "diffusers")
TEACHER, FIRST, SECOND, BATCH = (5, 3, 3, 10) if FAST else (3000, 5000, 1500, 250)
COUNT, FEW = (20, 20) if FAST else (2000, 250)
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
COMMON = [
    f"--teacher={PLACE}/teacher",
    "--data=digits",
    "--run.batch=128",
    "--run.precision=fp32",
    "--floor=0.2",
]
STAGES = {
    "first": ["--recipe=default", "--set.predict=velocity", f"--run.steps={FIRST}", "--run.lr=1e-3"],
    # a jump from pure noise is two jumps, which the first stage has learned
    "map": ["--recipe=psd", "--set.channels=0", "--set.diagonal=0.5", "--set.starts=0.6", "--set.ends=0.5",
            f"--init={PLACE}/first", f"--run.steps={SECOND}", "--run.lr=5e-4"],
}  # fmt: skip
for name, settings in STAGES.items():
    run = PLACE / name
    if not (run / "distilled").exists():
        begun = (run / "config.json").exists()
        told = ["--resume", str(run)] if begun else [*COMMON, *settings, f"--out={run}"]
        assert main(["distill", *told]) == 0


# %% sampling, by diffusers alone
STOCK = textwrap.dedent("""
    import json, statistics, sys, time
    sys.modules["flowmaps"] = None  # an import of it fails
    import diffusers, torch
    from safetensors.torch import save_file
    torch.set_num_threads(1)
    teacher, first, student, plan, out = sys.argv[1:]
    ddpm = diffusers.DDPMPipeline.from_pretrained(teacher)
    ddim = diffusers.DDIMScheduler.from_config(ddpm.scheduler.config)
    pipelines = {
        "DDPM": ddpm, "DDIM": diffusers.DDIMPipeline(ddpm.unet, ddim),
        "first stage": diffusers.DiffusionPipeline.from_pretrained(first, trust_remote_code=True),
        "map": diffusers.DiffusionPipeline.from_pretrained(student, trust_remote_code=True),
    }
    found, seconds = {}, {}
    for round in range(-1, 1000):  # the first one warms up
        left = [(kind, steps) for kind, steps, count in json.loads(plan) if round * BATCH < count]
        for kind, steps in left:
            pipeline = pipelines[kind]
            pipeline.set_progress_bar_config(disable=True)
            generator = torch.Generator().manual_seed(max(round, 0))
            begin = time.process_time()
            images = pipeline(batch_size=BATCH, generator=generator, num_inference_steps=steps if round >= 0 else 2,
                              output_type="np").images
            spent = time.process_time() - begin
            if round >= 0:
                name = f"{kind} {steps}"
                found.setdefault(name, []).append(torch.as_tensor(images).float().reshape(-1, 1, 8, 8) * 2 - 1)
                seconds.setdefault(name, []).append(spent / BATCH)
        if not left:
            break
    samples = {name: torch.cat(parts) for name, parts in found.items()}
    seconds = {name: statistics.median(parts) for name, parts in seconds.items()}
    save_file(samples, out)
    print(json.dumps(seconds))
""").replace("BATCH", str(BATCH))
PLAN = [("DDPM", 3 if FAST else 1000, FEW)]
PLAN += [("DDIM", k, COUNT) for k in (50, 20, 10, 4)]
PLAN += [(stage, k, COUNT) for stage in ("first stage", "map") for k in (1, 2, 4, 8)]
out = PLACE / "samples.safetensors"
places = [PLACE / name / "distilled" for name in STAGES]
command = [PLACE / "teacher", *places, json.dumps(PLAN), out]
said = subprocess.run(
    [sys.executable, "-c", STOCK, *map(str, command)], check=True, stdout=subprocess.PIPE, text=True
)
seconds, samples = json.loads(said.stdout.splitlines()[-1]), load_file(out)
real, rows = moments(X), []
for kind, steps, count in PLAN:
    found = moments(samples[f"{kind} {steps}"])
    distance = frechet_distance(found.mean, found.cov, real.mean, real.cov)
    rows.append(
        {
            "sampler": kind,
            "steps": steps,
            "images": count,
            "frechet": distance,
            "seconds_per_image": seconds[f"{kind} {steps}"],
        }
    )
base = rows[1]
for row in rows:
    row["frechet_to_ddim50"] = round(row["frechet"] / base["frechet"], 3)
    row["times_faster"] = round(base["seconds_per_image"] / row["seconds_per_image"], 1)
    print(row)


# %% table and picture
if not FAST:
    from flowmaps.report.images import ladder
    from flowmaps.report.style import save_png

    runs = {name: checkpoint.load(PLACE / name).about for name in STAGES}
    about = {
        "teacher": f"UNet2DModel, {TEACHER} steps of batch 128, epsilon, linear betas",
        "stages": {k: {"step": v["step"], "seconds": round(v["seconds"]), "config": v["config"]} for k, v in runs.items()},
        "data": "digits, 1 x 8 x 8", "rows": rows,
    }  # fmt: skip
    (HERE / "diffusers_run.json").write_text(json.dumps(about, indent=1) + "\n")
    names = ["DDPM 1000", "DDIM 50", "DDIM 4", "map 4", "map 1"]
    save_png(
        ladder({name: samples[name][:20] for name in names}, across=4),
        HERE.parent / "docs" / "pictures" / "diffusers.png",
    )

"""A flow map of scenes by their captions against the walks of its teacher and of itself: numbers and a picture of two runs.

    make demo-prompts && python benchmarks/prompts.py demo-prompts        from the demo's runs
    python benchmarks/prompts.py FOLDER --scenes 200                      of fewer scenes

FOLDER holds the runs `baseline` and `flow_map`. Writes prompts.json beside itself and docs/pictures/prompts.png.
"""

import argparse
import json
from dataclasses import replace
from pathlib import Path

from histories import add_histories

from flowmaps.cli.demo import measure
from flowmaps.cli.demo_page import samples_picture
from flowmaps.cli.demo_settings import DEMOS
from flowmaps.report import save_png

HERE = Path(__file__).parent


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--scenes", type=int, default=DEMOS["prompts"].samples)
    options = parser.parse_args()
    demo = replace(DEMOS["prompts"], baseline_steps=(16, 64))
    report, measured = measure(demo, options.folder, options.scenes)
    add_histories(report, baseline=measured.baseline, flow_map=measured.model)
    (HERE / "prompts.json").write_text(json.dumps(report, indent=1) + "\n")
    save_png(samples_picture(measured), HERE.parent / "docs" / "pictures" / "prompts.png")


if __name__ == "__main__":
    main()

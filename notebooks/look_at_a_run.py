# %% [markdown]
# # Look at a finished run
# Reads the store, computes nothing new. Open as a notebook (percent format) or run it: `python notebooks/look_at_a_run.py`.
# `make demo` leaves a run to look at.

# %%
import json
import sys
from pathlib import Path

import numpy as np

from ldmlab.pipeline.sampling import contact_sheet

runs = sorted(Path("store/runs").glob("*/run.json"))
if not runs:
    sys.exit("no run in store/runs yet: make demo")
folder = runs[-1].parent
run = json.loads(runs[-1].read_text())
print(run["title"], "·", run["command"])

# %% The plan: each stage, its id and what it took
for stage in run["stages"]:
    print(f"{stage['stage']:<16}{stage['id']}  {stage['seconds']:8.1f} s  {stage['what']}")

# %% Scores with their intervals, snapshot by snapshot
for stage in run["stages"]:
    if stage["stage"] == "scores" and stage["state"] == "done":
        found = json.loads((folder / stage["folder"] / "scores.json").read_text())
        print(found["snapshot_images"], found["card_short"])
        for name, score in found["scores"].items():
            print(f"  {name:<16}{score['value']:8.3f}  [{score['low']:.3f}, {score['high']:.3f}]")

# %% The first samples, by class
samples = [s for s in run["stages"] if s["stage"] == "samples" and s["state"] == "done"]
if samples:
    images = np.load(folder / samples[-1]["folder"] / "images.npy", mmap_mode="r")
    sheet = contact_sheet(np.asarray(images[:80]), columns=10, scale=2)
    print("sheet", sheet.shape, "- show it with PIL.Image.fromarray(sheet)")

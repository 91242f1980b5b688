# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#       format_version: '1.3'
#       jupytext_version: 1.19.6
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %%
from scaling import runs  # mot.scaling, where mot is installed from a wheel

found = runs.find(["runs/demo/*"])  # your run directories: paths and globs
routed = [run for run in found if runs.loads(run)]

# %%
from itertools import combinations

import numpy as np
import pandas as pd
from IPython.display import Image, display

from scaling import pictures

# %% [markdown]
# # Routing
#
# Which experts serve which modality? `runs.loads(run)` has, by tower and modality, the share of its choices that each
# expert took in each layer, at the last evaluation. Runs without experts have none.

# %%
[f"{run.path.name}: {', '.join(runs.loads(run))}" for run in routed]

# %%
for run in routed:
    for panel in pictures.panels(runs.loads(run)):
        display(Image(pictures.both(pictures.experts, *panel)["light"], width=420))

# %% [markdown]
# ## How even, and how special
#
# `unevenness` is the standard deviation of an expert's load over its mean: 0 where all experts serve as many tokens.
# `overlap` is how much of two modalities' loads fall on the same experts: 1 where they are spread alike, 0 where no
# expert serves both.

# %%
rows = []
for run in routed:
    for tower, by_modality in runs.loads(run).items():
        load_of = {modality: np.array(load) for modality, load in by_modality.items()}  # [layers, experts]
        for modality, load_LE in load_of.items():
            uneven_L = load_LE.std(1) / load_LE.mean(1)
            row = {"run": run.path.name, "tower": tower, "modality": modality, "what": "unevenness"}
            rows += [row | {"layer": layer, "value": x} for layer, x in enumerate(uneven_L)]
        for a, b in combinations(load_of, 2):
            share_LE, other_LE = (load_of[m] / load_of[m].sum(1, keepdims=True) for m in (a, b))
            overlap_L = np.minimum(share_LE, other_LE).sum(1)
            row = {"run": run.path.name, "tower": tower, "modality": f"{a} and {b}", "what": "overlap"}
            rows += [row | {"layer": layer, "value": x} for layer, x in enumerate(overlap_L)]
routing = pd.DataFrame(rows, columns=["run", "tower", "modality", "what", "layer", "value"])
routing.pivot_table(index=["run", "tower", "what", "modality"], columns="layer", values="value", sort=False)

# %% [markdown]
# ## Over training
#
# A router settles early or late. Each line of an evaluation has the loads of its step.

# %%
over_time = []
for run in routed:
    for evaluation in [row for row in run.rows if row["kind"] == "eval" and "experts" in row]:
        for tower, by_modality in evaluation["experts"].items():
            for modality, load in by_modality.items():
                uneven = float(np.mean(np.std(load, 1) / np.mean(load, 1)))
                row = {"run": run.path.name, "step": evaluation["step"], "tower": tower, "modality": modality}
                over_time.append(row | {"unevenness": uneven})
over_time = pd.DataFrame(over_time, columns=["run", "step", "tower", "modality", "unevenness"])
over_time.pivot_table(index=["run", "tower", "modality"], columns="step", values="unevenness", sort=False)

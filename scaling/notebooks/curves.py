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
tables = runs.load("runs/demo/*")

# %%
import numpy as np
import pandas as pd
from IPython.display import Image, display

from scaling import match, pictures

# %% [markdown]
# # Loss curves and matching
#
# How many of dense's steps did each architecture need for dense's loss? `tables.runs` has a row for each run,
# `tables.losses` one for each step and modality, `tables.slopes` one for each matching slope; `help(runs.load)` tells
# every column.

# %%
tables.runs[["run", "group", "arch", "steps", "parameters", "faults"]]

# %% [markdown]
# A run with a fault is in no mean and in no slope. These are the runs that are left, by group:

# %%
groups = runs.sound(found)
colour = pictures.colours(groups)
{group: [run.path.name for run in of_group] for group, of_group in groups.items()}

# %% [markdown]
# Held-out losses have markers; training losses are thin, and smoothed in time. Bands span the seeds.

# %%
for modality in runs.modalities(groups):
    display(Image(pictures.both(pictures.curves, groups, colour, modality, "step")["light"], width=600))

# %% [markdown]
# ## Matching slopes
#
# A slope of 0.5 means half of dense's cost. It is fitted through the origin to the costs at which the other run first
# had each of dense's smoothed losses, over the last three quarters of dense's run.

# %%
chosen = tables.slopes.query("kind == 'train' and rates == 'equal' and half_life == @match.HALF_LIFE")
chosen.pivot_table(index=["group", "modality"], columns="cost", values="value", sort=False)

# %% [markdown]
# With their 95 % intervals over pairs of seeds, and beside the half-life of the smoothing, which should not matter:

# %%
by_half_life = tables.slopes.query("kind == 'train' and rates == 'equal' and cost == 'step'")
by_half_life[["group", "modality", "half_life", "value", "low", "high", "seeds", "bound"]]

# %% [markdown]
# ## One pair, step by step
#
# Where on its way does an architecture gain? This is the fraction of dense's steps at each of dense's losses.

# %%
pairs = []
for group in [group for group in groups if groups[group][0].arch != "dense"]:
    for dense, other in runs.partners(groups, group)[0]:
        for modality in runs.modalities(groups):
            curves = [match.smooth(run.curve("train", modality, "step"), match.HALF_LIFE) for run in (dense, other)]
            late = curves[0].step >= curves[0].step[-1] / 4
            there = np.array([match.first_at_or_below(curves[1], level) for level in curves[0].loss[late]])
            share = there / curves[0].cost[late]
            row = {"group": group, "seed": dense.seeds[0], "modality": modality}
            pairs += [row | {"step": step, "share": x} for step, x in zip(curves[0].step[late], share, strict=True)]
pairs = pd.DataFrame(pairs, columns=["group", "seed", "modality", "step", "share"])
pairs.groupby(["group", "modality"], sort=False)["share"].describe()

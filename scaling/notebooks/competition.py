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
from scaling import runs, within  # mot.scaling, where mot is installed from a wheel

groups = runs.sound(runs.find(["runs/demo/*"]))  # your run directories: paths and globs
probed = within.table(groups)

# %%
import numpy as np
import pandas as pd
from IPython.display import Image, Markdown, display

from scaling import pictures

# %% [markdown]
# # Competition by layer
#
# Where in the network do modalities meet, and where do they part? `probed` has a row for each number that `mot probe`
# or `run.probe_every` wrote, by group, run, step, kind and layer. Runs that were never probed have none:
# `mot probe RUN` measures their checkpoints.

# %%
probed.groupby(["kind", "group"], sort=False).agg(runs=("run", "nunique"), steps=("step", "nunique"))

# %% [markdown]
# By layer, at each run's newest step; bands span the seeds.

# %%
colour = pictures.colours(groups)
for kind in within.kinds(probed):
    title, reads, even = within.KINDS[kind]
    display(Markdown(f"## {title}\n\n{reads}"))
    lines = within.by_layer(probed, kind)
    picture = pictures.both(pictures.lines, lines, within.layers(probed, kind), "layer", even, colour)
    display(Image(picture["light"], width=700))

# %% [markdown]
# ## Over training
#
# The same as means over layers. A cosine that falls below 0 says that what helps one modality undoes the other.

# %%
for kind in within.kinds(probed):
    if over := within.over_training(probed, kind):
        picture = pictures.both(
            pictures.lines, over, within.steps(probed, kind), "step", within.KINDS[kind].even, colour
        )
        display(Markdown(f"**{kind}**"), Image(picture["light"], width=700))

# %% [markdown]
# ## Principal components over training
#
# Sampled tokens of the first run of each group, on the two principal components of the last layer's states; the tokens
# are the same at every step.

# %%
for group, of_group in groups.items():
    files = {int(file.name.partition("-")[0]): file for file in of_group[0].path.glob("probes/*-representation.npz")}
    arrays = {step: np.load(files[step]) for step in sorted(files)[:: max(1, len(files) // 4)]}
    if arrays:
        points = [found["points_LR2"][-1] for found in arrays.values()]
        modalities = next(iter(arrays.values()))["modality_R"].tolist()
        picture = pictures.both(pictures.components, group, list(arrays), points, modalities)
        display(Image(picture["light"], width=200 + 180 * len(arrays)))

# %% [markdown]
# ## Does a gradient's conflict foretell the gain of towers of one's own?
#
# Beside each other: how dense's gradients agree, in the mean over layers, and the share of dense's steps that each
# architecture needed.

# %%
cosines = probed.query("kind == 'gradients/cosine' and arch == 'dense' and layer >= 0")
agreement = cosines.groupby("series", sort=False)["value"].agg(["mean", "min", "max"])
display(agreement)
slopes = runs.slopes(groups)
gains = [key._asdict() | slope._asdict() for key, slope in slopes.items() if key.kind == "train" and key.cost == "step"]
gains = pd.DataFrame(gains, columns=["group", "modality", "half_life", "value", "low", "high"])
gains.query("half_life == 0.02").drop(columns="half_life")

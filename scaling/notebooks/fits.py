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
from scaling import fit, runs  # mot.scaling, where mot is installed from a wheel

found = runs.find(["runs/ladder/*"])  # your run directories of one sweep: paths and globs
scalings = fit.scalings(found)

# %%
import numpy as np
import pandas as pd
from IPython.display import Image, display

from scaling import equal, fit_pictures, pictures

# %% [markdown]
# # Scaling laws
#
# L(N, D) = E + A N^-alpha + B D^-beta, fitted for each architecture and modality to the last held-out losses of runs.
# N are parameters that a token of the modality meets, D its tokens; `help(fit)` tells more. Where runs do not tell a
# law, `why` says what is missing, and no number stands there. Intervals are of 95 %, bootstrapped over runs and seeds.


# %%
def told(one):
    """A law's numbers with their intervals, as a row."""
    row = {"architecture": one.arch, "modality": one.modality, "runs": len(one.fit.measured.points.loss)}
    for name, interval in one.fit.intervals.items():
        row[name] = f"{getattr(one.fit.law, name):.3g} [{interval[0]:.3g}, {interval[1]:.3g}]"
    if one.fit.law is not None and not one.fit.intervals:
        row |= {name: f"{getattr(one.fit.law, name):.3g}" for name in ("E", "A", "alpha")}
    return row | {"why": one.fit.why or one.fit.unsure}


pd.DataFrame([told(one) for one in scalings])

# %%
for one in scalings:
    what = f"{one.arch}: held-out {one.modality} loss"
    display(Image(pictures.both(fit_pictures.law, one, what)["light"], width=560))

# %% [markdown]
# ## What the law does not tell
#
# How far each run lies from the law: a pattern over size or tokens says that the law is the wrong one.

# %%
for one in [one for one in scalings if one.fit.law is not None]:
    display(one.arch, one.modality, Image(pictures.both(fit_pictures.residuals, one.fit)["light"], width=480))

# %% [markdown]
# ## Budgets of FLOPs
#
# Where several sizes spent one budget, the best of them, from the law along that budget. (A parabola through the
# losses is biased where the grid is not centred on the optimum: 2603.22339.)

# %%
budgets = []
for one in scalings:
    for budget in one.budgets:
        row = {"architecture": one.arch, "modality": one.modality, "FLOPs": budget.flops}
        budgets.append(row | {"best size": budget.n, "loss there": budget.loss, "why not": budget.why})
pd.DataFrame(budgets)

# %% [markdown]
# ## Predictions, and what came of them
#
# Each size as the law of all other sizes predicts it; then sizes that the sweep held out beforehand (`run.role`).

# %%
predictions = []
for one in scalings:
    for prediction in [*one.without, *one.ahead]:
        row = {"architecture": one.arch, "modality": one.modality, "role": prediction.role}
        row |= {"parameters": prediction.n, "tokens": prediction.d, "predicted": prediction.loss}
        row |= {"interval": prediction.interval, "measured": prediction.measured, "error": prediction.error}
        predictions.append(row | {"why": prediction.why})
pd.DataFrame(predictions)

# %% [markdown]
# ## At equal FLOPs, seconds and parameters

# %%
groups = runs.sound(found)
equals = [one for one in equal.equal(groups) if np.isfinite(one.at) or one.why]
pd.DataFrame([one._asdict() | {"ratio": one.ratio} for one in equals])

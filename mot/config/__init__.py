"""What a run is: a tree of values (configs/) becomes a frozen, checked `Config`, once and strictly."""

from mot.config.build import Check, differences, reads, resolve
from mot.config.schema import (
    Config,
    ConfigError,
    Data,
    Diffusion,
    Experts,
    Init,
    Mesh,
    Model,
    Objective,
    Optim,
    Rule,
    Run,
    Stage,
    StopGradient,
    Stream,
    Towers,
)

__all__ = [
    "Check",
    "Config",
    "ConfigError",
    "Data",
    "Diffusion",
    "Experts",
    "Init",
    "Mesh",
    "Model",
    "Objective",
    "Optim",
    "Rule",
    "Run",
    "Stage",
    "StopGradient",
    "Stream",
    "Towers",
    "differences",
    "reads",
    "resolve",
]

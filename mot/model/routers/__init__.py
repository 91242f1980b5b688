"""How tokens and experts choose each other: a file for each row of `mot.config.routers.ROUTERS`.

Each has three functions. `weights(spec, D)` yields its parameters, as `mot.model.params` has them; `most_choices(spec,
tokens, causal)` is what a dispatch must have room for; `choose(traffic, weights, spec, causal)` decides.
"""

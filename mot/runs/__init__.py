"""A run's folder: `rundir` and `written` (its configuration), `log` (rows of its steps), `writer` (their files).

Beside them `metrics` (figures), `peak`, `profile`, `provenance` (where a run came from), and boards: `curves` (what
they show), `tensorboard`, `trackers` (others, in threads) and `services` (W&B and trackio themselves).
"""

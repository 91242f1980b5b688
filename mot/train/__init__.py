"""Training. Reading order: `step` (of a `state`), `loop`, `restore` (what a run begins with), `evaluate`.

Beside them `memory`, `signals`, `upcycle` (weights of another run), and `ensemble` (several runs in one program).
"""

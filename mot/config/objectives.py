"""What a stream's tokens may learn, a row each; `mot/objectives/<name>.py` computes it.

The checks, help and messages read this table.
"""

from typing import NamedTuple


class Kind(NamedTuple):
    about: str
    of: str  # what the tokens are: ids, vectors
    denoises: bool = False  # vectors are noised, and a sampler makes them from noise


OBJECTIVES = {
    "next_token": Kind("the next token's id, by cross-entropy", "ids"),
    "flow": Kind("the velocity from data to noise (2209.03003)", "vectors", True),
    "x": Kind("the data, weighed as its velocity (2511.13720)", "vectors", True),
    "ddpm": Kind("the noise, on a cosine schedule (2006.11239, 2102.09672)", "vectors", True),
    "latent": Kind("the states of what is hidden of a unit, from the rest of it (2301.08243)", "vectors"),
}
NONE = "none"  # inputs only: nothing is learnt of these tokens
OF_IDS = (*(name for name, kind in OBJECTIVES.items() if kind.of == "ids"), NONE)
OF_VECTORS = (*(name for name, kind in OBJECTIVES.items() if kind.of == "vectors"), NONE)

"""What a stream's tokens may learn, a row each; `mot/objectives/<name>.py` computes it.

The checks, help and messages read this table.
"""

from typing import NamedTuple


class Kind(NamedTuple):
    about: str
    of: str  # what the tokens are: ids, vectors
    hides: bool = False  # of vectors: parts of a unit are hidden; other vectors are noised, and drawn from noise

    @property
    def denoises(self) -> bool:
        return self.of == "vectors" and not self.hides


OBJECTIVES = {
    "next_token": Kind("the next token's id, by cross-entropy", "ids"),
    "masked": Kind("ids that are hidden among others, by cross-entropy (2502.09992)", "ids"),
    "flow": Kind("the velocity from data to noise (2209.03003)", "vectors"),
    "x": Kind("the data, weighed as its velocity (2511.13720)", "vectors"),
    "ddpm": Kind("the noise, on a cosine schedule (2006.11239, 2102.09672)", "vectors"),
    "latent": Kind("the states of what is hidden of a unit, from the rest of it (2301.08243)", "vectors", hides=True),
}
NONE = "none"  # inputs only: nothing is learnt of these tokens
OF_IDS = (*(name for name, kind in OBJECTIVES.items() if kind.of == "ids"), NONE)
OF_VECTORS = (*(name for name, kind in OBJECTIVES.items() if kind.of == "vectors"), NONE)

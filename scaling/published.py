"""Published matching slopes: the fraction of the dense model's steps that reaches its loss, lower is better.

From Mixture-of-Transformers, 2411.04996v2, training loss, in its two settings.
"""

from collections.abc import Mapping
from typing import NamedTuple

from mot.config import Config


class Published(NamedTuple):
    source: str
    rungs: tuple[str, ...]
    slopes: Mapping[str, Mapping[str, tuple[float, ...]]]  # architecture -> modality -> by rung


CHAMELEON = Published(
    "Mixture-of-Transformers, arXiv:2411.04996v2, Chameleon setting (images as ids), training loss",
    ("37M", "94M", "443M", "1.5B", "7B"),
    {
        "mot": {"image": (0.260, 0.199, 0.271, 0.350, 0.348), "text": (0.546, 0.530, 0.610, 0.662, 0.558)},
        "moe_ec4": {"image": (0.496, 0.358, 0.490, 0.745, 1.012), "text": (0.591, 0.531, 0.731, 0.713, 0.635)},
    },
)
TRANSFUSION = Published(
    "Mixture-of-Transformers, arXiv:2411.04996v2, Transfusion setting (images by diffusion), training loss",
    ("163M", "760M", "1.4B"),
    {
        "mot": {"image": (0.254, 0.176, 0.175), "text": (0.98, 0.97, 0.93)},
        "moe_ec4": {"image": (0.691, 0.595, 0.626)},
    },
)


def of(config: Config) -> Published:
    """Of the setting that a run is in."""
    return TRANSFUSION if any(stream.diffuses for stream in config.streams.values()) else CHAMELEON

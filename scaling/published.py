"""What has been published: matching slopes, losses and claims, each with its source, to stand beside a run's own.

A matching slope is the fraction of the dense model's steps that reaches its loss; lower is better. Of
Mixture-of-Transformers, 2411.04996v2, they are of training loss, in its two settings.
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
# Which towers -> modality -> slope, in that paper's setting of three modalities.
LEAVE_ONE_OUT = {
    "dense": {"text": 1.0, "image": 1.0, "speech": 1.0},
    "loo_text": {"text": 0.548, "image": 0.321, "speech": 0.304},
    "loo_image": {"text": 0.684, "image": 0.272, "speech": 0.653},
    "loo_speech": {"text": 0.875, "image": 0.892, "speech": 0.147},
    "mot": {"text": 0.557, "image": 0.262, "speech": 0.151},
}
LEFT_OUT_IN = "Mixture-of-Transformers, arXiv:2411.04996v2, 443M, text, image and speech, training loss"
# What attention apart, too, needs of the FLOPs that the FFN apart needs, in words: the paper gives no decimals.
ATTENTION_TOO = {"image": "about 0.67", "text": "about 0.9"}

# By the sweep that asks the question, what has been claimed of it.
CLAIMS: Mapping[str, tuple[str, ...]] = {
    "archs": (
        "At equal FLOPs towers by modality beat a mixture of four experts: images in 0.26 to 0.35 of dense's steps "
        "against 0.36 to 1.01 (Mixture-of-Transformers, arXiv:2411.04996v2, 37M to 7B).",
        "At equal active compute experts that learn beat such towers: perplexity of text 12.49 against 14.74, 15.93 "
        "of a shared FFN (Beyond Language Modeling, arXiv:2603.03276).",
    ),
    "untying": (
        "The FFN apart helps, QKV apart as well needs a further third less of the FLOPs for images and a tenth less "
        "for text, and all apart is about the same (Mixture-of-Transformers, arXiv:2411.04996v2, 880M).",
        "A split FFN: perplexity of text 15.13 against 15.93 of a shared one (Beyond Language Modeling, "
        "arXiv:2603.03276).",
    ),
    "leave_one_out": (
        f"{LEFT_OUT_IN}: text apart alone 0.548 for text, image 0.272 for image, speech 0.147 for speech.",
    ),
    "routing": (
        "At equal active and not equal total parameters: perplexity of text, score of images: shared FFN 15.93, 0.45; "
        "split FFN 15.13, 0.47; towers by modality 14.74, 0.58; fine-grained experts 12.49, 0.63 (Beyond Language "
        "Modeling, arXiv:2603.03276).",
        "Experts that choose tokens, 4 of them: 0.36 to 1.01 of dense's steps for images, 0.53 to 0.73 for text; "
        "towers by modality 0.20 to 0.35 and 0.53 to 0.66 (Mixture-of-Transformers, arXiv:2411.04996v2, 37M to 7B).",
    ),
    "mixture": (
        "Below a size modalities compete, and above it they help one another: the mixed law's competition term "
        "(Scaling Laws for Generative Mixed-Modal Language Models, arXiv:2301.03728).",
    ),
    "caption_shift": (
        "Text suffers from the shift to the language of captions, not from raw video (Beyond Language Modeling, "
        "arXiv:2603.03276; in words).",
    ),
    "ladder": (
        "Towers by modality need 0.26, 0.20, 0.27, 0.35, 0.35 of dense's steps for images and 0.55, 0.53, 0.61, 0.66, "
        "0.56 for text, from 37M to 7B (Mixture-of-Transformers, arXiv:2411.04996v2, Chameleon setting).",
    ),
    "isoflop": (
        "The best size grows with compute as C^0.47 for language and C^0.37 for vision in a dense model, C^0.41 and "
        "C^0.36 with experts (Beyond Language Modeling, arXiv:2603.03276).",
    ),
}


def of(config: Config) -> Published:
    """Of the setting that a run is in."""
    return TRANSFUSION if any(stream.diffuses for stream in config.streams.values()) else CHAMELEON

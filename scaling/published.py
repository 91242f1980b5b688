"""Published matching slopes: the fraction of the dense model's steps that reaches its loss, lower is better.

From Mixture-of-Transformers, 2411.04996v2: the Chameleon setting (text and images as discrete tokens), training loss.
"""

SOURCE = "Mixture-of-Transformers, arXiv:2411.04996v2, Chameleon setting, training loss"
RUNGS = ("37M", "94M", "443M", "1.5B", "7B")
SLOPES = {  # architecture -> modality -> by rung
    "mot": {"image": (0.260, 0.199, 0.271, 0.350, 0.348), "text": (0.546, 0.530, 0.610, 0.662, 0.558)},
    "moe_ec4": {"image": (0.496, 0.358, 0.490, 0.745, 1.012), "text": (0.591, 0.531, 0.731, 0.713, 0.635)},
}

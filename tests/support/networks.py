"""Networks of other libraries, for parity tests alone: they need torch."""

import torch


def shaken(network):
    """Random weights, also where the library initialises ones and zeros."""
    torch.manual_seed(0)
    with torch.no_grad():
        for weight in network.parameters():
            weight.add_(0.2 * torch.randn_like(weight))
    return network.eval().float()

"""Our own learned tokenizers: convolutional autoencoders with finite scalars, codebooks or Gaussians in the middle."""

from mot.tokenizers.learned.folder import open_

__all__ = ["open_"]

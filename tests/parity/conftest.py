"""PyTorch alone: torchvision comes with torch-fidelity, and is often built for another PyTorch than the one for CPUs.

Such a one cannot be imported, and transformers fails on it. None here says that there is none; nothing needs it.
"""

import sys

sys.modules["torchvision"] = None

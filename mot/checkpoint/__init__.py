"""Checkpoints: orbax items in `checkpoints/<step>/`, saved beside training and verified before use.

A step is written under a temporary name and renamed when it is whole, so a folder named by a number is complete. Its
`manifest.json` has a digest of every file, and of every array one that no sharding changes.
"""

from mot.checkpoint.folder import Position, goes_on, refuse_odd, steps
from mot.checkpoint.manifest import made_by, verify
from mot.checkpoint.restoring import fitted, listed, newest, position, restore, unlike
from mot.checkpoint.saving import Keep, Outcome, Saver, refuse_unwritable, save

__all__ = [
    "Keep",
    "Outcome",
    "Position",
    "Saver",
    "fitted",
    "goes_on",
    "listed",
    "made_by",
    "newest",
    "position",
    "refuse_odd",
    "refuse_unwritable",
    "restore",
    "save",
    "steps",
    "unlike",
    "verify",
]

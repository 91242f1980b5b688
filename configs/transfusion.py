"""The Transfusion setting (2408.11039): text by next token, images by flow in the same stack.

--config=configs/transfusion.py:arch=mot                     captioned digits in 2x2 patches, and Python's manual
--config=configs/transfusion.py:size=draw                    captioned digits alone: to draw and to read them
--config=configs/transfusion.py:data=data/emoji,size=demo    your own: `mot data prepare --vectors ...` (docs/data.md)
--config=configs/transfusion.py:data=data/web,size=163m      the published ladder

`predicts=flow|x|ddpm` chooses the objective of all vectors; `copies=both` gives images that later text reads a clean
copy (BAGEL, 2505.14683), where the default has it read what is noised.
"""

from ml_collections import ConfigDict

from configs import archs, base, digits, ladder, records

PATCHES, FEATURES = 16, 4  # of an embedded digit


def get_config(arg: str = "") -> ConfigDict:
    arg = base.parse(arg, arch="mot", size="demo", data="", predicts="flow", copies="noised", length="")
    raise NotImplementedError

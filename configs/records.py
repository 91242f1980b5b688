"""Your own data: datasets that `mot data prepare` has written, one or several, mixed.

--config=configs/records.py:data=data/photos,arch=mot           text and images, a small model
--config=configs/records.py:data=data/photos+data/books,size=smoke,length=512

Several datasets must share their tokenizers (`mot data prepare --like`); `NAME@FOLDER` gives one another name than its
folder's. `--config.data.shares.books=0.5` changes how
much of each is read; `length` is a row's, divided among the streams as the mixture divides.
"""

import json
import re
from pathlib import Path

import fsspec
from ml_collections import ConfigDict

from configs import archs, base

SIZES = {
    "smoke": dict(width=32, layers=2, heads=2, head_size=16, ffn=64, rows=2, steps=2, warmup=1, every=1),
    "demo": dict(width=128, layers=4, heads=4, head_size=32, ffn=352, rows=4, steps=400, warmup=40, every=50),
    "small": dict(width=512, layers=8, heads=8, head_size=64, ffn=1408, rows=16, steps=10_000, warmup=500, every=500),
}


def get_config(arg: str = "") -> ConfigDict:
    arg = base.parse(arg, data="data", arch="mot", size="demo", length="1024")
    if arg["size"] not in SIZES:
        raise ValueError(f"size={arg['size']}: no such size; allowed: {', '.join(SIZES)}; choose one")
    if not arg["length"].isdecimal() or not int(arg["length"]):
        raise ValueError(f"length={arg['length']}: must be a number of tokens, 1 or more")
    size = SIZES[arg["size"]]
    given = [part.rpartition("@") for part in arg["data"].split("+")]
    folders, names = (
        [folder for _, _, folder in given],
        [name or re.sub(r"[^A-Za-z0-9_-]", "_", Path(folder).name) for name, _, folder in given],
    )
    c = base.get_config()
    ids, next_id = _ids(folders), 0
    c.streams = ConfigDict()
    for modality, n in ids.items():
        c.streams[modality] = base.stream(modality, size["width"], size["ffn"], first_id=next_id, ids=n)
        next_id += n
    c.model.update({k: size[k] for k in ("layers", "heads", "head_size")}, kv_heads=size["heads"])
    archs.choose(c, arg["arch"])
    if len(set(names)) < len(names):
        raise ValueError(f"data={arg['data']}: two datasets of one name; rename a folder")
    shares = {name: 1.0 for name in names}
    c.data.update(batch=size["rows"], sources=dict(zip(names, folders, strict=True)), shares=shares)
    c.data.length = int(arg["length"])
    c.optim.update(lr=2e-3, end_lr=1e-4, warmup=size["warmup"])
    c.run.update(
        name=f"{'+'.join(names)}-{arg['arch']}-{arg['size']}",
        steps=size["steps"],
        eval_every=size["every"],
        eval_batches=4,
        save_every=max(size["steps"] // 4, 2),
    )
    return c.lock()


def _ids(folders: list[str]) -> dict[str, int]:
    """How many ids each modality of some datasets has; text comes first."""
    found = {}
    for folder in folders:
        try:
            with fsspec.open(f"{folder}/dataset.json") as file:
                tokenizers = json.load(file)["tokenizers"]
            found |= {modality: tokenizer["ids"] for modality, tokenizer in tokenizers.items() if modality not in found}
        except FileNotFoundError:
            raise ValueError(
                f"data={folder}: there is no {folder}/dataset.json; `mot data prepare` makes one; of one that was "
                "moved and renamed write data=NAME@FOLDER"
            ) from None
        except (OSError, ValueError, KeyError, TypeError, AttributeError, ImportError) as error:
            raise ValueError(f"data={folder}: its dataset.json cannot be read ({error}); copy it again") from error
    return dict(sorted(found.items(), key=lambda item: item[0] != "text"))

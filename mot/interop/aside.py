"""What a published folder has beside the model that ours is: kept in the run as it was, and put back by an export.

`aside/` of a run that was imported has the folder's config.json, its files for image processors, and the tensors that
no parameter of ours is, such as an image tokenizer's.
"""

import json
import shutil
from collections.abc import Collection, Mapping
from pathlib import Path

import numpy as np

from mot.errors import UserError
from mot.files import make_folder
from mot.interop import families, shards
from mot.interop.families import Said
from mot.interop.shards import Header
from mot.runs import rundir
from mot.tokenizers import safetensors

FOLDER = "aside"
PROCESSORS = ("preprocessor_config.json", "processor_config.json")
MOST_RUNS = 100  # of which each began with the weights of the next; more go in a circle


def write(run: Path, theirs: Path, about: Mapping, found: Mapping[str, Header]) -> None:
    """Keeps in a run these tensors of a folder of theirs, and its config.json, which is `about`."""
    folder = run / FOLDER
    make_folder(folder)
    (folder / "config.json").write_text(json.dumps(about, indent=1), encoding="utf-8")
    for name in PROCESSORS:
        if (theirs / name).is_file():
            shutil.copyfile(theirs / name, folder / name)
    held = dict(shards.tensors(found, "keeping what is outside of the model"))
    # Also where there are none: a file that is lost is missed.
    shards.write(folder, {safetensors.SINGLE: sorted(held)}, held.__getitem__, {n: x.shape for n, x in held.items()})


def of_run(run: Path, family: str, is_needed: bool = True) -> Path | None:
    """Where it lies for a run: in itself, or in a run with whose weights it, or such a one, began.

    Where no such run is there None, or `UserError` where it `is_needed`.
    """
    at: Path | str = run
    for _ in range(MOST_RUNS):
        if not (Path(at) / "config.json").is_file():
            break
        if (Path(at) / FOLDER).is_dir():
            return Path(at) / FOLDER
        at = rundir.config_of(Path(at)).init.run
    if not is_needed:
        return None
    raise UserError(
        f"{run}: a published {family} has more than this model, which `mot import` keeps in {FOLDER}/ of a run, and "
        f"neither this run nor one with whose weights it began has that{f' ({at})' if at else ''}; begin with the "
        "weights of an imported run (init.run), and leave that where it is"
    )


def about(folder: Path) -> dict:
    """The config.json that was kept."""
    return safetensors.read_json(folder / "config.json")


def said(folder: Path, family: str) -> Said:
    """What it says in our words; raises `UserError` where it is of another family than the run."""
    name, found = families.of_theirs(about(folder), str(folder / "config.json"))
    if name != family:
        raise UserError(f"{folder} is of a {name}, and the run is a {family}; import the model again")
    return found


def tensors(folder: Path, of_ids: Collection[str], vocab: int) -> dict[str, np.ndarray]:
    """What was kept, by its name; those `of_ids` get rows of zeros for ids that are new.

    Raises `UserError` where the file is missing or damaged.
    """
    found = dict(shards.tensors(shards.headers(folder), "reading what is outside of the model"))
    for name in found.keys() & set(of_ids):
        if found[name].ndim != 2:
            raise UserError(
                f"{folder}: {name} has shape {[*found[name].shape]}; must have a row for each id; import the model "
                "again"
            )
        found[name] = np.pad(found[name], ((0, max(vocab - len(found[name]), 0)), (0, 0)))
    return found


def copy_processors(folder: Path, out: Path) -> None:
    for name in PROCESSORS:
        if (folder / name).is_file():
            shutil.copyfile(folder / name, out / name)

"""A folder of samples: written whole, over what an earlier `mot sample` wrote there, and over nothing else."""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from mot.errors import UserError
from mot.files import make_folder, move, remove, write_atomically
from mot.runs import tensorboard

RECORD = "samples.json"
PARTIAL = ".samples.partial"
NAMES = re.compile(
    r"(digits|captions|grid|documents)\.png|grid\.wav|samples\.json|document-\d+(-\d+)?\.(json|txt|png|npy|wav)"
)


def fresh(samples: Path, step: int) -> Path:
    """The folder for further samples of a step: STEP, or STEP-2, ... where earlier ones have samples.

    What was interrupted is no loss.
    """
    number = 1
    while _is_taken(out := samples / (str(step) if number == 1 else f"{step}-{number}")):
        number += 1
    return out


def _is_taken(out: Path) -> bool:
    if not out.is_dir():
        return out.exists()
    return not _record(out).get("interrupted") and any(NAMES.fullmatch(file.name) for file in out.iterdir())


def refuse_prompts(out: Path, prompts: Sequence[Path]) -> None:
    """Raises `UserError` where a prompt lies in the folder whose earlier samples would be replaced."""
    for file in prompts:
        if refuse_foreign(out) and file.resolve().parent == out.resolve():
            raise UserError(
                f"--prompt-file={file}: lies in --out {out}, whose earlier samples would be replaced; choose another "
                "--out, or leave it out for a new folder"
            )


def refuse_foreign(out: Path) -> set[str]:
    """The files there that an earlier `mot sample` wrote; raises `UserError` for one of such a name that it did not."""
    if not out.exists():
        return set()
    if not out.is_dir():
        raise UserError(f"{out} is no folder; choose another --out")
    ours = _earlier(out)
    for file in sorted(out.iterdir()):
        if NAMES.fullmatch(file.name) and file.name not in ours:
            raise UserError(f"{file} was not written by mot sample and is not overwritten; choose another --out")
    return ours


def _record(out: Path) -> dict:
    """What `samples.json` says; {} where it is none of ours."""
    try:
        record = json.loads((out / RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return record if isinstance(record, dict) else {}


def _earlier(out: Path) -> set[str]:
    record = _record(out)
    try:
        if {"drawn", "read", "judge"} <= record.keys() and "files" not in record:  # an earlier version's
            return {"digits.png", "captions.png", RECORD}
        return {name for name in record["files"] if NAMES.fullmatch(name)} | {RECORD}
    except (TypeError, KeyError):
        return set()


def write(out: Path, files: dict[str, bytes], record: dict) -> None:
    """The files and, last, `samples.json`, which names them; then what earlier samples there have beyond these goes.

    Interrupted, it leaves a record that says so and names what is ours, so that the next call can replace it.
    """
    ours = refuse_foreign(out)
    make_folder(out)
    stage = out / PARTIAL
    remove(stage)
    make_folder(stage)
    try:
        for name, content in files.items():
            write_atomically(stage / name, content)
        write_atomically(stage / RECORD, json.dumps(record | {"files": sorted(files)}, indent=1))
        write_atomically(out / RECORD, json.dumps({"interrupted": True, "files": sorted({*ours, *files})}))
        for name in files:
            move(stage / name, out / name)
        for name in ours - files.keys() - {RECORD}:
            (out / name).unlink(missing_ok=True)
        move(stage / RECORD, out / RECORD)
    finally:
        remove(stage)


def show(run: Path, step: int, files: Mapping[str, bytes], words: str) -> None:
    """In the run's TensorBoard at that step: words, pages, and sounds, but no picture of a single part."""
    pages, sounds = {}, {}
    for name, content in files.items():
        if name.endswith(".wav"):
            sounds[Path(name).stem] = content
        elif name.endswith(".png") and not name.startswith("document-"):
            pages[Path(name).stem] = content
    tensorboard.samples(run, step, words, pages, sounds)

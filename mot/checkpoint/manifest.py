"""A step's `manifest.json`: the digest of every file, of every array and of itself, and what these say of damage."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from mot.checkpoint import arrays
from mot.checkpoint.folder import MANIFEST, steps
from mot.errors import Damaged
from mot.files import digest_of, is_bucket, names_within, sync, write_atomically

FORMAT = 2
THREADS = 8  # hashing lets other threads run


def write(target: Path, step: int, described: Mapping[str, dict], made_by: Mapping, files: Mapping[str, str]) -> None:
    """Writes the manifest of a step's folder; `described` are its arrays, `files` the digests of its files."""
    content = {"format": FORMAT, "step": step, "made_by": made_by, "files": files, "arrays": described}
    write_atomically(target / MANIFEST, json.dumps(content | {"digest": digest_of(content)}, indent=1))


def read(target: Path) -> dict:
    """What the manifest of a step says; `Damaged` where it is none, was changed, or is of another version."""
    file = target / MANIFEST
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(content, dict):
            raise ValueError("not an object")
        if "format" not in content and all(isinstance(digest, str) for digest in content.values()):
            return {"format": 1, "files": content, "arrays": {}}  # of a version that described no arrays
        if type(content.get("format")) is not int:
            raise ValueError("it has no format")
        if content["format"] == FORMAT and content.get("digest") != digest_of(content):
            raise ValueError("its own digest does not match: it was changed after it was written")
        if content["format"] == FORMAT and not _is_whole(content):
            raise ValueError("it does not describe files and arrays as this version does")
    except (OSError, ValueError, RecursionError) as error:
        raise Damaged(f"{file} cannot be read ({error}); {remedy(target)}") from None
    if content["format"] != FORMAT:
        raise Damaged(
            f"{target} has format {content['format']}; this version reads 1 and {FORMAT}; use the one that wrote it"
        )
    return content


def _is_whole(content: Mapping) -> bool:
    """Is everything there that `write` writes, each of its type?"""

    def describes(said: object) -> bool:
        if not isinstance(said, dict) or not {"shape", "dtype", "digest"} <= said.keys():
            return False
        is_shape = isinstance(said["shape"], list) and all(type(n) is int for n in said["shape"])
        return is_shape and isinstance(said["dtype"], str) and isinstance(said["digest"], str)

    files, described, made_by = (content.get(key) for key in ("files", "arrays", "made_by"))
    are_objects = all(isinstance(part, dict) for part in (files, described, made_by))
    return (
        are_objects
        and type(content.get("step")) is int
        and all(isinstance(digest, str) for digest in files.values())
        and all(map(describes, described.values()))
    )


def verify(target: Path) -> dict:
    """The manifest of a step whose files are all as it says.

    Raises `Damaged`, naming the first file that is missing, foreign or changed, and arrays that it harms.
    """
    content = read(target)
    if content.get("step", int(target.name)) != int(target.name):
        raise Damaged(f"{target} holds step {content['step']}, not {target.name}; give the folder its own name back")
    expected = content["files"]
    present = files(target)
    for name in sorted({*expected, *present}):
        if name not in expected:
            raise Damaged(f"{target / name} is foreign: the manifest does not list it; {remedy(target)}")
        if name not in present:
            raise Damaged(f"{target / name} is missing{_harmed(target, name, content)}; {remedy(target)}")
    found = digests(target, present)
    for name in present:
        if expected[name] != found[name]:
            what = f"is damaged: its digest is not the manifest's{_harmed(target, name, content)}"
            raise Damaged(f"{target / name} {what}; {remedy(target)}")
    return content


def _harmed(target: Path, name: str, content: Mapping) -> str:
    """Which arrays of the item to which a damaged file belongs do not come back, in words."""
    item = name.partition("/")[0]
    of_item = {path: said for path, said in content["arrays"].items() if path.startswith(f"{item}/")}
    if not of_item:
        return ""
    harmed = [path for path, said in of_item.items() if arrays.fault(target, path, said)]
    more = f" and {len(harmed) - 3} more" if len(harmed) > 3 else ""
    return f" ({', '.join(harmed[:3])}{more} cannot be read from it)" if harmed else " (no array is changed by it)"


def files(target: Path) -> list[str]:
    """The names of all files of a step but its manifest, in order."""
    return [name for name in names_within(target) if name != MANIFEST]


def digests(target: Path, names: Iterable[str]) -> dict[str, str]:
    """SHA-256 of files, by name; several threads read them."""
    names = list(names)
    with ThreadPoolExecutor(THREADS) as pool:
        return dict(zip(names, pool.map(lambda name: _digest_of_file(target / name), names), strict=True))


def _digest_of_file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sync_all(target: Path) -> None:
    """Waits until the disk has every file and folder of a step. A bucket has what it has taken."""
    if is_bucket(target):
        return
    for path in (*target.rglob("*"), target):
        sync(path)


def made_by(target: Path) -> dict:
    """Where a step comes from: `runs.provenance.made_by`; empty where its version did not write that down."""
    content = read(target)
    if content["format"] > 1:
        return content["made_by"]
    meta = json.loads((target / "meta" / "metadata").read_text(encoding="utf-8"))
    return meta.get("made_by", {})


def remedy(target: Path) -> str:
    others = [step for step in steps(target.parent) if str(step) != target.name]
    older = f"the run then resumes from step {others[-1]}" if others else "the run then starts anew"
    return f"move {target} away to go on without it ({older}); nothing was overwritten"

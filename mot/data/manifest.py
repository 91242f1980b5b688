"""What a dataset says of itself, `dataset.json`: its splits, tokenizers and files; and whether these are as it says.

A tokenizer's entry has the number of its `ids`, or the `width` of its vectors, P; and where all its spans have one
length, their `tokens`. `shape` has the rows and columns of a unit, or, where `tokens` are missing, the most of them. It
may be another representation `of` a modality's units.
"""

import hashlib
import json
import math
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from mot.config.modalities import TEXT, markers
from mot.errors import UserError

FORMAT = 1
SPLITS = ("train", "held_out")
INDEX = ("lengths.npy", "atoms.npy", "firsts.npy")
BYTES = "text_bytes.npy"  # [ids] bytes that each id of the text tokenizer stands for
NAME = re.compile(r"\w[\w.-]{0,99}", re.ASCII)  # of a file, a modality, a digest: no path, no markup, no control codes


def special_tokens(modalities: Sequence[str]) -> list[str]:
    enclosing = [mark for modality in modalities if modality != TEXT for mark in markers(modality)]
    return list(dict.fromkeys(["<pad>", "<bos>", "<eos>", "<boi>", "<eoi>", *enclosing]))


def file_digest(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_json(folder: Path) -> dict:
    """A dataset's `dataset.json`; raises `UserError` if there is none of this format."""
    file = folder / "dataset.json"
    try:
        str(folder).encode()
    except UnicodeEncodeError:  # the readers of records take no other
        raise UserError(f"{folder}: the name of a dataset's folder must be UTF-8; rename it") from None
    try:
        about = json.loads(file.read_text(encoding="utf-8"))
        _check_json(about)
    except FileNotFoundError:
        if (folder / "recipe.json").exists():
            raise UserError(
                f"{folder} is begun and not finished; the same `mot data prepare` command goes on"
            ) from None
        raise UserError(f"{folder} is no dataset: it has no dataset.json; `mot data prepare` makes one") from None
    except (ValueError, KeyError, TypeError, IndexError, AttributeError, OSError, RecursionError) as error:
        what = f"it lacks {error}" if isinstance(error, KeyError) else error
        raise UserError(f"{file} is damaged or foreign ({what}); prepare the dataset anew") from None
    return about


def _check_json(about: dict) -> None:
    """Raises `ValueError`, or Python's error for a wrong type, unless each value that is read later is allowed."""
    if type(about["format"]) is not int or about["format"] != FORMAT:
        raise ValueError(f"its format is {about['format']!r:.60}; this version reads {FORMAT}")
    modalities, tokenizers, splits = about["modalities"], about["tokenizers"], about["splits"]
    if type(modalities) is not list or modalities[:1] != ["text"] or len(set(modalities)) < len(modalities):
        raise ValueError(f"its modalities are {modalities!r:.60}; text must come first, and none twice")
    for modality in modalities:
        _check_name("a modality", modality)
    if "latents" in modalities and "latents" not in tokenizers:
        raise ValueError("it does not say how many features its latents have: an earlier version wrote it")
    if tokenizers.keys() != set(modalities):
        raise ValueError(f"its tokenizers are of {list(tokenizers)!r:.60}; they must be of its modalities")
    for modality, tokenizer in tokenizers.items():
        _check_tokenizer(f"its {modality} tokenizer's", tokenizer)
    for modality, of in representations(about).items():
        if modality == TEXT or of not in set(modalities) - {TEXT} - representations(about).keys():
            raise ValueError(f"its {modality!r:.60} are another form of {of!r:.60}; it must be of a medium of its own")
    text = tokenizers["text"]
    _check_number("its text tokenizer's ids", text["ids"], 1, 2**31)
    for name, id_ in text["special"].items():
        _check_number(f"its special token {name!r:.60}", id_, 0, text["ids"] - 1)
    if missing := set(special_tokens(modalities)) - text["special"].keys():
        raise ValueError(f"its text tokenizer lacks {', '.join(sorted(missing))}")
    if len(set(text["special"].values())) < len(text["special"]) or "tokens" in text:
        raise ValueError("its text tokenizer has an id for two special tokens, or says how long a text is")
    if splits.keys() != set(SPLITS):
        raise ValueError(f"its splits are {list(splits)!r:.60}; it needs {', '.join(SPLITS)}")
    for split in splits.values():
        _check_split(split, modalities)
    for why, n in about["left_out"].items():
        _check_number(f"left out because {why!r:.60}", n)
    for modality, n in about.get("missing", {}).items():  # earlier versions had none
        _check_name("a modality that is missing", modality)
        _check_number(f"missing {modality}", n)
    for what, n in (about.get("not_read", {}) | about.get("unpacked", {})).items():
        _check_number(f"files that are {what!r:.60}", n)
    if not all(type(line) is str for line in about.get("warnings", [])):
        raise ValueError("its warnings are no lines of text")
    if lossy := text.get("lossy"):
        _check_lossy(lossy)
    listed = files(about)
    for name, size, digest in listed:
        # A dataset from elsewhere must not name files outside of its folder.
        if name.count("/") != 1 or not all(map(NAME.fullmatch, (*name.split("/"), digest))):
            raise ValueError(f"{name!r:.60} with the digest {digest!r:.60} is no file of a dataset")
        _check_number(f"the bytes of {name}", size)
    if len({name for name, _, _ in listed}) < len(listed):
        raise ValueError("it lists a file twice")


def _check_tokenizer(whose: str, tokenizer: dict) -> None:
    _check_name(f"{whose} digest", tokenizer["digest"])
    if ("ids" in tokenizer) == ("width" in tokenizer):
        raise ValueError(f"{whose} entry has {list(tokenizer)!r:.60}; it needs ids, or the width of its vectors")
    for key, most in (("ids", 2**31), ("width", 2**20), ("tokens", 2**20)):
        if key in tokenizer:
            _check_number(f"{whose} {key}", tokenizer[key], 1, most)
    if shape := tokenizer.get("shape"):  # earlier versions had none
        if type(shape) is not list or len(shape) not in (2, 3):
            raise ValueError(f"{whose} shape is {shape!r:.60}; rows and columns are needed, or frames before them")
        for side in shape:
            _check_number(f"{whose} shape", side, 1, 2**20)
        if tokenizer.get("tokens", math.prod(shape)) != math.prod(shape):
            raise ValueError(f"{whose} shape {shape} is not of {tokenizer['tokens']} tokens")


def most_shape(modality: str, tokenizer: dict) -> tuple[int, ...]:
    """Rows and columns of a unit, or the most of them where units differ, by a tokenizer's entry; () = it has none.

    Earlier versions did not say it: their own pictures are square.
    """
    if "shape" in tokenizer:
        return tuple(tokenizer["shape"])
    side = math.isqrt(tokenizer.get("tokens", 0))
    is_own = modality == "image" and not tokenizer["digest"].startswith("ids-")
    return (side, side) if is_own and side and side**2 == tokenizer["tokens"] else ()


def _check_lossy(lossy: dict) -> None:
    shares = [lossy[key] for key in ("documents", "bytes", "counted")]
    words = [lossy["text"], lossy["back"]]
    if not all(type(x) in (int, float) and 0 <= x < 1000 for x in shares) or not all(type(x) is str for x in words):
        raise ValueError(f"what its text tokenizer loses is {lossy!r:.60}")


def _check_split(split: dict, modalities: list[str]) -> None:
    _check_number("a split's documents", split["documents"])
    for shard in split["shards"]:
        _check_number("a shard's documents", shard["documents"])
    if (n := sum(shard["documents"] for shard in split["shards"])) != split["documents"]:
        raise ValueError(f"a split has {split['documents']} documents and its shards have {n}")
    if sorted(file["file"] for file in split["index"]) != sorted(INDEX):
        raise ValueError(f"a split's index must be {', '.join(INDEX)}")
    if split["tokens"].keys() != set(modalities) or split["spans"].keys() - set(modalities):
        raise ValueError("a split's tokens and spans must be those of its modalities")
    for n in (*split["tokens"].values(), *split["spans"].values()):
        _check_number("tokens or spans of a split", n)


def _check_name(what: str, name) -> None:
    if type(name) is not str or not NAME.fullmatch(name):
        raise ValueError(f"{what} is {name!r:.60}; letters, digits, _, - and . are allowed, 100 of them")


def _check_number(what: str, n, low: int = 0, high: int = 2**48) -> None:
    if type(n) is not int or not low <= n <= high:
        raise ValueError(f"{what}: {n!r:.60} is no whole number from {low} to {high}")


def representations(about: dict) -> dict[str, str]:
    """Modalities that are further representations of another one's units, which their spans follow; and of which."""
    return {modality: known["of"] for modality, known in about["tokenizers"].items() if "of" in known}


def files(about: dict) -> list[tuple[str, int, str]]:
    """Every file of a dataset but `dataset.json`: path in the folder, bytes, digest."""
    splits = about["splits"]
    known = [(split, f) for split in SPLITS for f in splits[split]["shards"] + splits[split]["index"]]
    known += [("tokenizers", f) for tokenizer in about["tokenizers"].values() for f in tokenizer["files"]]
    return [(folder + "/" + f["file"], f["bytes"], f["digest"]) for folder, f in known]


def check_files(folder: Path, listed: Sequence[tuple[str, int, str]], digests: bool) -> None:
    """Raises `UserError` for the first file that is absent, or is not as `dataset.json` says."""
    for name, size, _ in listed:
        path = folder / name
        if not path.is_file():
            raise UserError(f"{path} is missing; copy it again, or prepare the dataset anew")
        if path.stat().st_size != size:
            raise UserError(f"{path} has {path.stat().st_size} bytes, dataset.json says {size}; copy it again")
    if not digests:
        return
    with ThreadPoolExecutor() as pool:
        digests_found = pool.map(lambda known: file_digest(folder / known[0]), listed)
        for (name, _, digest), found in zip(listed, digests_found, strict=True):
            if found != digest:
                raise UserError(
                    f"{folder / name} is damaged: its digest is {found[:16]}, dataset.json says {digest[:16]}; copy it "
                    "again, or prepare the dataset anew"
                )

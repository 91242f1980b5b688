"""Your own data: datasets that `mot data prepare` has written, one or several, mixed.

mot train --config=configs/records.py:data=data/photos,arch=mot           text and images, a small model
mot train --config=configs/records.py:data=data/photos+data/books,size=smoke,length=512
mot train --config=configs/records.py:data=data/photos,arch=mot,init=runs/qwen

size=smoke (two steps) takes some 13 s on two AVX2 cores with an empty cache; the cost of the others is not measured.
The loss depends on the data: that of ids begins near the logarithm of all ids, of every modality together.

Several datasets must share their tokenizers (`mot data prepare --like`); `NAME@FOLDER` gives one another name than its
folder's. `--config.data.shares.books=0.5` changes how much of each is read; `length` is a row's, divided among the
streams as the mixture divides.

`init` names a run, as `mot import` makes one: its layers, widths, block and experts are taken, and its weights
(init.run).
`size` decides the batch and the schedule then, at a peak rate of 1e-4 at most.
"""

import json
import re
from pathlib import Path

import fsspec
from ml_collections import ConfigDict

from configs import archs, base, sizes

OWN = "folders or addresses of datasets that `mot data prepare` wrote, joined by +"
ARGUMENTS = {
    "data": base.Argument("data", about=f"{OWN}; NAME@FOLDER names one"),
    "arch": archs.ARGUMENT,
    "size": base.Argument("demo", sizes.LAPTOP),
    "length": base.Argument("1024", about="tokens of a row"),
    "init": base.Argument("", about="a run, whose sizes and weights it begins with"),
}
# Keys of a stream that say what the model is.
OF_STREAM = ("width", "ffn", "first_id", "objective", "entry", "diffusion", "place_table", "rope_gap", "ends_prefix")
FURTHER = 1e-4  # the peak rate of a run that begins with trained weights; a size's own would undo them
# Keys of `model` that say how it is computed, and not what.
COMPUTE = ("scan", "remat", "dtype", "attention", "dispatch", "seed", "dropout")


def get_config(arg: str = "") -> ConfigDict:
    arg = base.parse(arg, ARGUMENTS)
    size = sizes.choose(sizes.LAPTOP, arg["size"])
    if not arg["init"]:
        return build(arg["data"], arg["arch"], arg["size"], size, arg["length"]).lock()
    streams, model, blocks, experts = _run(arg["init"])
    first = streams.get("text") or next(iter(streams.values()))
    of_run = {key: first[key] for key in ("width", "ffn")} | {k: model[k] for k in ("layers", "heads", "head_size")}
    c = build(arg["data"], arg["arch"], arg["size"], size | of_run, arg["length"])
    c.model.update({key: value for key, value in model.items() if key in c.model and key not in COMPUTE})
    for name in c.streams.keys() & streams.keys():
        c.streams[name].update({key: streams[name][key] for key in OF_STREAM if key in streams[name]})
    for component, towers in experts.items():
        for name in c[component].keys() & towers.keys():
            if towers[name]["experts"] and not c[component][name].experts:  # else the architecture's own
                c[component][name].update({k: x for k, x in towers[name].items() if k in c[component][name]})
    c.data.blocks, c.init.run = blocks, arg["init"]
    c.optim.lr = min(c.optim.lr, FURTHER)
    return c.lock()


def _run(folder: str) -> tuple[dict, dict, str, dict]:
    """The streams, the model, `data.blocks` and the experts of a run's config.json."""
    try:
        opened = fsspec.open if "://" in folder else open
        with opened(f"{folder}/config.json", "rb") as file:
            config = json.load(file)
        streams, model, blocks = config["streams"], config["model"], config["data"]["blocks"]
        numbers = [stream[key] for stream in streams.values() for key in ("width", "ffn")]
        numbers += [model[key] for key in ("layers", "heads", "head_size")]
        experts = {component: config[component] for component in ("attn", "ffn")}
        numbers += [tower["experts"] for towers in experts.values() for tower in towers.values()]
        if not streams or not all(type(n) is int for n in numbers):
            raise TypeError("its sizes are no numbers")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ImportError) as error:
        raise ValueError(
            f"init={folder}: no run's config.json can be read there ({error!r}); name a run directory"
        ) from error
    return streams, model, blocks, experts


def build(
    data: str, arch: str, name: str, size: dict, length: str, diffuses: dict | None = None, needs: str = "text"
) -> ConfigDict:
    """Prepared datasets at a size; `diffuses` is what streams of vectors have beside theirs, `needs` a modality."""
    if not length.isdecimal() or not int(length):
        raise ValueError(f"length={length}: must be a number of tokens, 1 or more")
    given = [_named(part) for part in _datasets(data)]
    folders = [folder for _, folder in given]
    names = [own or _name(folder) for own, folder in given]
    if len(set(names)) < len(names):
        raise ValueError(f"data={data}: two datasets of one name; rename a folder")
    tokenizers = _tokenizers(folders)
    if needs not in tokenizers:
        raise ValueError(f"data={data}: it has {', '.join(tokenizers)}, and no {needs}; prepare data that has it")
    c = base.get_config()
    sizes.apply(c, size)
    c.streams, next_id = ConfigDict(), 0
    for modality, tokenizer in tokenizers.items():
        if width := tokenizer.get("width"):
            kind = dict(latent=width, objective="flow") | (diffuses or {})
        else:
            kind = dict(first_id=next_id, ids=tokenizer["ids"])
            next_id += tokenizer["ids"]
        if of := tokenizer.get("of"):  # another representation of its units, which is read unless a file says more
            kind |= dict(representation=modality, objective="none")
        c.streams[modality] = base.stream(of or modality, size["width"], size["ffn"], **kind)
    for stream in c.streams.values():  # a modality has one weight
        stream.loss_weight = c.streams[stream.modality].loss_weight
    archs.choose(c, arch)
    c.data.update(sources=dict(zip(names, folders, strict=True)), shares={source: 1.0 for source in names})
    c.data.length = int(length)
    c.run.update(name=f"{'+'.join(names)}-{arch}-{name}", eval_batches=4)
    return c


def _datasets(data: str) -> list[str]:
    """The datasets that + joins; a folder whose own name has one is meant as it stands."""
    return [data] if (Path(data) / "dataset.json").is_file() else data.split("+")


def _named(part: str) -> tuple[str, str]:
    """The name, "" where none is given, and the folder; a folder whose own path has an @ is meant as it stands."""
    if (Path(part) / "dataset.json").is_file():
        return "", part
    name, _, folder = part.rpartition("@")
    return name, folder


def _name(folder: str) -> str:
    """A name for what lies in a folder, with which a run's may begin."""
    return re.sub(r"[^A-Za-z0-9_-]", "_", Path(folder).name).lstrip("_-")[:100] or "data"


def shares(folders: list[str]) -> dict[str, float]:
    """By modality, its share of the tokens of a mixture that takes as many documents of each dataset."""
    tokens: dict[str, float] = {}
    for folder in folders:
        try:
            split = _about(folder)["splits"]["train"]
            for modality, n in split["tokens"].items():
                tokens[modality] = tokens.get(modality, 0.0) + n / split["documents"]
        except (KeyError, TypeError, AttributeError, ZeroDivisionError) as error:
            raise ValueError(f"data={folder}: its dataset.json counts no tokens ({error!r}); copy it again") from error
    return {modality: n / sum(tokens.values()) for modality, n in tokens.items()}


def _of(known: dict) -> dict:
    """Of which modality a tokenizer's is another representation; {} where it is none."""
    return {"of": known["of"]} if "of" in known else {}


def _about(folder: str) -> dict:
    opened = fsspec.open if "://" in folder else open  # elsewhere fsspec reads ~ and :: as more than a name
    with opened(f"{folder}/dataset.json", "rb") as file:
        return json.load(file)


def _tokenizers(folders: list[str]) -> dict[str, dict]:
    """What dataset.json says of each modality of some datasets; text comes first."""
    found = {}
    for folder in folders:
        try:
            tokenizers = _about(folder)["tokenizers"]
            for modality, known in tokenizers.items():
                if not isinstance(known.get("width", 0), int) or not isinstance(known.get("ids", 0), int):
                    raise ValueError(f"its {modality} have neither ids nor a width")
                found.setdefault(modality, known if known.get("width") else {"ids": known["ids"]} | _of(known))
        except FileNotFoundError:
            beside = [path.parent.name for path in Path(folder).parent.glob("*/dataset.json")]
            near = base.meant(Path(folder).name, beside)
            raise ValueError(
                f"data={folder}: there is no {folder}/dataset.json{near}; `mot data prepare` makes one; of one that "
                "was moved and renamed write data=NAME@FOLDER (here + joins datasets, @ follows a name, a comma ends "
                "the value: a folder with one of these in its name may have to be renamed)"
            ) from None
        except (OSError, ValueError, KeyError, TypeError, AttributeError, ImportError) as error:
            raise ValueError(f"data={folder}: its dataset.json cannot be read ({error}); copy it again") from error
    return dict(sorted(found.items(), key=lambda item: item[0] != "text"))

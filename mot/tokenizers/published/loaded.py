"""A published network with its weights, ready to run, and what its files say of it."""

import contextlib
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from mot.errors import UserError, reason
from mot.tokenizers.networks import Network
from mot.tokenizers.published import weights
from mot.tokenizers.published.weights import package
from mot.tokenizers.safetensors import read_json

# Keys of a config.json that would have other code loaded or chosen.
UNREAD = (
    "auto_map",
    "custom_pipelines",
    "attn_implementation",
    "_attn_implementation",
    "_attn_implementation_internal",
)
# Keys that say who wrote a config.json, or how the weights are stored: saved again, it is the same network.
UNDECIDING = ("transformers_version", "_diffusers_version", "_name_or_path", "architectures", "dtype", "torch_dtype")
# What diffusers' attention was called in the first autoencoders' files, and is now.
RENAMED = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


class Part(NamedTuple):
    """What a config.json says of a network."""

    kind: str
    about: dict  # of the network itself
    whole: dict  # all of the file


class Pixels(NamedTuple):
    """How a picture's bytes become the numbers that a network takes: `(byte * scale - mean) / std`."""

    scale: float
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


class Loaded(NamedTuple):
    folder: Path
    model: Any
    config: Any
    whole: dict
    processor: dict  # what the folder says of preparing pictures, {} = nothing
    digest: str
    device: str


class Row(NamedTuple):
    name: str  # of the class
    own: str  # a tensor that it has, and nothing else of a whole model
    opened: Callable[..., Network]  # of a `Loaded` and the option
    option: str = "side"  # that it takes
    library: str = "transformers"


def loaded(row: Row, part: Part, folder: Path) -> Loaded:
    """Raises `UserError` where files are missing or do not fit each other."""
    if "quantization_config" in part.whole:
        raise UserError(f"{folder}: its weights are quantised; name a folder with the weights as they were trained")
    taken = weights.tensors(folder, row.own)
    processor = _processor(folder)
    # Before they are renamed: of what the files hold.
    deciding = {key: value for key, value in part.about.items() if key not in (*UNREAD, *UNDECIDING)}
    digest = weights.digest([row.name, deciding, processor], taken)
    about = {key: value for key, value in part.about.items() if key not in UNREAD}
    floats = {name: x.float() if x.is_floating_point() else x for name, x in taken.items()}
    build = _of_diffusers if row.library == "diffusers" else _of_transformers
    try:
        with _quiet():
            model, config, odd = build(row.name, about, floats)
    except UserError:
        raise
    except Exception as error:  # configurations and weights that do not fit raise of every kind
        raise UserError(
            f"{folder}: its config.json and weights make no {row.name} ({reason(error)}); copy the folder again"
        ) from None
    for what, names in odd.items():
        if names:
            raise UserError(f"{folder}: {min(names)} is {what} of a {row.name}; copy the folder again")
    device = "cuda" if package("torch").cuda.is_available() else "cpu"
    model = model.to(device).eval().requires_grad_(False)
    return Loaded(folder, model, config, part.whole, processor, digest, device)


def _of_transformers(name: str, about: dict, taken: dict) -> tuple[Any, Any, dict]:
    transformers = package("transformers")
    kind = _class(transformers, name)
    config = kind.config_class.from_dict(about)
    # Without a folder nothing is looked for: these tensors are all; their names may be those of earlier versions.
    model, told = kind.from_pretrained(
        None, config=config, state_dict=taken, dtype=package("torch").float32, output_loading_info=True
    )
    odd = {"missing from the weights": told["missing_keys"], "no tensor": told["unexpected_keys"]}
    shapes = [name if isinstance(name, str) else name[0] for name in told["mismatched_keys"]]
    return model, config, odd | {"no tensor of this shape": shapes}


def _of_diffusers(name: str, about: dict, taken: dict) -> tuple[Any, Any, dict]:
    kind = _class(package("diffusers"), name)
    model = kind.from_config(about)
    renamed = {_renamed(name): tensor for name, tensor in taken.items()}
    told = model.load_state_dict(renamed, strict=False)
    return model, model.config, {"missing from the weights": told.missing_keys, "no tensor": told.unexpected_keys}


def _class(library: Any, name: str) -> Any:
    """Raises `UserError` where the library that is installed cannot give it."""
    try:
        return getattr(library, name)
    except Exception as error:  # it imports what it needs now, and wraps what that raises
        while error.__cause__:
            error = error.__cause__
        raise UserError(
            f"{library.__name__} {library.__version__} has no {name} ({reason(error)}); install another version of it"
        ) from None


def _renamed(name: str) -> str:
    head, dot, tail = name.rpartition(".attentions.0.")
    part, _, kind = tail.partition(".")
    return f"{head}{dot}{RENAMED[part]}.{kind}" if dot and part in RENAMED else name


@contextlib.contextmanager
def _quiet():
    """transformers' own bars and hints of loading would break mot's line of progress."""
    logging = package("transformers").utils.logging
    before = logging.get_verbosity()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(before)
        logging.enable_progress_bar()


def _processor(folder: Path) -> dict:
    for file, key in (("preprocessor_config.json", ""), ("processor_config.json", "image_processor")):
        if (folder / file).is_file():
            found = read_json(folder / file)
            found = found.get(key) if key else found
            return found if isinstance(found, dict) else {}
    return {}


def pixels(found: Loaded, usual: Pixels) -> Pixels:
    """How the folder says that pictures are prepared, or as usual; raises `UserError` for what is no such thing."""
    told = found.processor
    scale = told.get("rescale_factor", usual.scale) if told.get("do_rescale", True) else 1.0
    mean, std = told.get("image_mean", usual.mean), told.get("image_std", usual.std)
    if not told.get("do_normalize", True):
        mean, std = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    triples = [x if isinstance(x, list | tuple) else [x] for x in (mean, std)]
    numbers = [scale, *triples[0], *triples[1]]
    fits = all(type(x) in (int, float) and math.isfinite(x) for x in numbers) and all(len(x) == 3 for x in triples)
    if not fits or scale <= 0 or min(triples[1]) <= 0:
        raise UserError(
            f"{found.folder}: pictures are prepared with rescale_factor {scale!r:.40}, image_mean {mean!r:.80}, "
            f"image_std {std!r:.80}; a number above 0 and three numbers each are needed; mend it"
        )
    return Pixels(scale, tuple(triples[0]), tuple(triples[1]))

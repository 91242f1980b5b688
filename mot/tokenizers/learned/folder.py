"""The folder of a learned tokenizer: `mot-tokenizer.json` says what it is, and `weights.npz` holds its arrays."""

import hashlib
import json
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import jax
import numpy as np
from flax import nnx

from mot.config.tokenizer import KINDS, OF_MEDIUM, Settings, faults
from mot.errors import UserError
from mot.files import digest_of, whole_folder
from mot.tokenizers import archive, audio, image, waveform
from mot.tokenizers.learned import coding, training
from mot.tokenizers.learned.nets import shape_of, shaped
from mot.tokenizers.networks import Network

FORMAT = "mot learned tokenizer 1"
ABOUT, WEIGHTS, PICTURE = "mot-tokenizer.json", "weights.npz", "reconstructions.png"
ALWAYS = ("kind", "width", "blocks", "steps", "batch", "lr", "patience", "seed")
LARGEST = 1 << 31  # bytes of the weights
LARGEST_ABOUT = 1 << 20  # bytes of what it is
SHORTEST = 64  # frames to which a sound is filled; else the next power of two


def save(
    folder: Path, settings: Settings, fitted: training.Fitted, figures: dict, drawn: Callable[[Network], bytes]
) -> Network:
    """Writes a new folder, whole or not at all, and opens it. Equal weights give equal bytes.

    `drawn` makes the PNG of what the network gives back.
    """
    weights = archive.pack(FORMAT, fitted.arrays)
    names = (*ALWAYS, *OF_MEDIUM[settings.medium], *KINDS[settings.kind].sizes)
    about = {
        "format": FORMAT,
        "medium": settings.medium,
        "settings": {name: getattr(settings, name) for name in names},
        "figures": figures,
        "weights": hashlib.sha256(weights).hexdigest(),
    }
    about["digest"] = digest_of(about)
    with whole_folder(folder) as half_written:
        (half_written / WEIGHTS).write_bytes(weights)
        (half_written / ABOUT).write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
        (half_written / PICTURE).write_bytes(drawn(open_(half_written)))
    return open_(folder)


def open_(folder: Path | str) -> Network:
    """The tokenizer that `mot tokenizer train` wrote; raises `UserError` where it is damaged, or none."""
    folder = Path(folder)
    about = _about(folder)
    settings = _settings(folder, about)
    graph, state = _model(folder, settings, about["weights"])
    encode, decode = (partial(f, (state,)) for f in coding.coder(graph))
    if settings.medium == "audio":
        size = settings.ids * settings.layers
        coded, back, shape = partial(_encode_sounds, encode), partial(_decode_sound, decode), ()
    else:
        size = {"fsq": int(np.prod(settings.levels)), "vq": settings.ids, "kl": settings.features}[settings.kind]
        coded, back = partial(_encode_pictures, encode), partial(_decode_picture, decode, size)
        shape = shape_of(settings)[1]
    return Network(
        medium=settings.medium,
        digest=about["digest"],
        size=size,
        is_of_ids=settings.kind != "kl",
        shape=shape,
        layers=settings.layers if settings.kind == "rvq" else 1,
        rate=settings.rate if settings.medium == "audio" else 0,
        side=settings.side if settings.medium == "image" else 0,
        encode=partial(coded, settings),
        decode=partial(back, settings),
    )


def _about(folder: Path) -> dict:
    file = folder / ABOUT
    try:
        if file.exists() and not file.is_file():
            raise ValueError("it is no file")
        if file.stat().st_size > LARGEST_ABOUT:
            raise ValueError(f"it has more than {LARGEST_ABOUT} bytes")
        about = json.loads(file.read_text(encoding="utf-8"))
        is_ours = about["format"] == FORMAT and about["digest"] == digest_of(about)
        is_ours &= isinstance(about["settings"], dict) and isinstance(about["weights"], str)
    except OSError as error:
        raise UserError(f"{file}: {error.strerror}; name a folder that `mot tokenizer train` has written") from None
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(f"{file} is damaged or foreign ({error!r}); copy the folder again, or train it anew") from None
    if not is_ours:
        raise UserError(f"{file} is not as {FORMAT!r} was written; copy the folder again, or train it anew")
    return about


def _settings(folder: Path, about: dict) -> Settings:
    """Judged as the command's own, as the file may be anybody's."""
    given = about["settings"]
    usual = Settings("fsq")._asdict()
    try:
        given = given | {"levels": tuple(given["levels"])} if "levels" in given else given
        odd = [name for name, value in given.items() if type(value) is not type(usual[name])]
        if odd or given["kind"] not in KINDS:
            raise ValueError(f"{odd[0] if odd else 'kind'} is {given[odd[0] if odd else 'kind']!r}")
        settings = Settings(**given)
        if fault := next(faults(settings), ""):
            raise ValueError(fault)
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{folder / ABOUT}: its settings are none of mot's ({error}); train it anew") from None
    return settings


def _model(folder: Path, settings: Settings, digest: str) -> tuple[nnx.GraphDef, nnx.State]:
    """The network with the arrays of its file; nothing is initialised."""
    file = folder / WEIGHTS
    layers = settings.layers if settings.kind == "rvq" else 1
    codes = np.zeros((layers, settings.ids if settings.kind in ("vq", "rvq") else 1, shape_of(settings)[0]), np.float32)
    graph, state = shaped(settings, codes)
    shapes = {"/".join(map(str, path)): variable.get_value() for path, variable in nnx.to_flat_state(state)}
    try:
        if file.exists() and not file.is_file():
            raise ValueError("it is no file")
        if file.stat().st_size > LARGEST:
            raise ValueError(f"it has more than {LARGEST} bytes")
        content = file.read_bytes()
        if hashlib.sha256(content).hexdigest() != digest:
            raise ValueError("its digest is another one")
        arrays = archive.unpack(content, FORMAT, list(shapes))
        for name, of in shapes.items():
            if (arrays[name].shape, arrays[name].dtype) != (of.shape, of.dtype):
                raise ValueError(f"{name} is {arrays[name].dtype} {list(arrays[name].shape)}, not {list(of.shape)}")
    except (OSError, ValueError) as error:
        raise UserError(f"{file}: {error}; copy the folder again, or train it anew") from None
    flat = [(path, variable.replace(arrays["/".join(map(str, path))])) for path, variable in nnx.to_flat_state(state)]
    return graph, jax.tree.map(jax.numpy.asarray, nnx.from_flat_state(flat))


def _encode_pictures(encode: Callable, settings: Settings, pictures: Sequence[np.ndarray]) -> list[np.ndarray]:
    """int32 `[tokens]` of each picture uint8 `[H, W, 3]`, row by row, or float32 `[tokens, features]`."""
    if not len(pictures):
        return []
    examples = training.pictures([image.patches(x, settings.side, settings.patch) for x in pictures], settings)
    tokens = coding.in_batches(encode, *examples)
    return [x.reshape(-1, x.shape[-1]) if settings.kind == "kl" else x.reshape(-1) for x in tokens]


def _decode_picture(decode: Callable, size: int, settings: Settings, tokens: np.ndarray) -> np.ndarray:
    """uint8 `[side, side, 3]`; raises `ValueError` where these are no picture's tokens."""
    grid = shape_of(settings)[1]
    count = grid[0] * grid[1]
    tokens = np.asarray(tokens)
    if settings.kind == "kl":
        if tokens.shape != (count, size) or not np.isfinite(tokens).all():
            raise ValueError(f"latents {list(tokens.shape)} are no picture: finite [{count}, {size}] are needed")
        tokens = tokens.astype(np.float32).reshape(1, *grid, size)
    else:
        if tokens.size != count:
            raise ValueError(f"{tokens.size} ids are no picture: it has {count}; give as many")
        tokens = _checked(tokens, size).reshape(1, *grid, 1)
    places = coding.in_batches(decode, tokens, np.ones((1, *grid, 1), np.float32))[0]
    return image.assembled(np.rint(places).astype(np.uint8).reshape(count, -1), grid, settings.patch)


def _encode_sounds(encode: Callable, settings: Settings, sounds: Sequence[np.ndarray]) -> list[np.ndarray]:
    """int32 `[layers * ceil(samples / hop)]` of each, layer by layer; a layer's ids follow those of the one before."""
    found: list[np.ndarray] = []
    for sound in sounds:
        clip = training.frames(sound, settings.rate, settings)
        length = max(1 << (len(clip) - 1).bit_length(), SHORTEST)  # by which few programs are compiled
        bytes_ = np.pad(clip, ((0, length - len(clip)), (0, 0)))[None]
        mask = (np.arange(length) < len(clip)).astype(np.float32)[None, :, None]
        ids = np.asarray(encode(bytes_, mask))[0, : len(clip)]
        found.append((ids + np.arange(settings.layers, dtype=np.int32) * settings.ids).T.reshape(-1))
    return found


def _decode_sound(decode: Callable, settings: Settings, ids: np.ndarray) -> np.ndarray:
    """float32 `[frames * hop]`, -1 to 1, as many frames as ids of the first layer.

    The i-th id of each layer is of frame i; what a layer lacks adds nothing, and what it has beyond is not heard.
    Raises `ValueError` where there is no frame, or an id has no code.
    """
    ids = _checked(np.asarray(ids).reshape(-1), settings.ids * settings.layers)
    layer_of = ids // settings.ids
    count = int((layer_of == 0).sum())
    if not count:
        raise ValueError(f"{len(ids)} ids and none of the first layer, 0 to {settings.ids - 1}")
    length = max(1 << (count - 1).bit_length(), SHORTEST)
    tokens = np.full((1, length, settings.layers), -1, np.int32)
    for layer in range(settings.layers):
        of_layer = ids[layer_of == layer][:count] - layer * settings.ids
        tokens[0, : len(of_layer), layer] = of_layer
    mask = (np.arange(length) < count).astype(np.float32)[None, :, None]
    levels = np.asarray(decode(tokens, mask))[0, :count]
    decibels = (levels.T / 255 - 1) * audio.RANGE
    return waveform.wave(decibels, settings.rate, settings.frame)


def _checked(ids: np.ndarray, count: int) -> np.ndarray:
    """int32; raises `ValueError` where an id has no code."""
    if ids.dtype.kind not in "iu":
        raise ValueError(f"ids are {ids.dtype}; they must be whole numbers")
    if len(odd := ids[(ids < 0) | (ids >= count)]):
        raise ValueError(f"id {odd[0]} has no code; ids are from 0 to {count - 1}")
    return ids.astype(np.int32)

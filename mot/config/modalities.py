"""The modalities that mot opens itself, a row each: what can be said of one without opening anything.

`mot/prepare/codecs/<name>.py` opens its files, tokenises, shows and gives back. The readers, checks, help and options
of `mot data prepare` read this table. Rows stand in the order in which a document has its parts where nobody says; text
is first. A modality of ids that somebody's own tokenizer made (`--ids`) has no row.
"""

from collections.abc import Callable, Collection, Iterator, Mapping
from functools import partial
from typing import Any, NamedTuple

IDS, VECTORS = "ids", "vectors"  # what tokens may be
TEXT = "text"  # holds the document together: it has the markers of all others
IMAGE_SIDE = 1024  # pixels of a picture's side at most
AUDIO_RATES = (8000, 48000)  # samples a second of a tokenizer of sound
ACTION_POINTS = (2, 4096)  # of a drawing
FAST_POINTS = (2, 4096)  # of a chunk of actions
FAST_IDS = (2, 1 << 16)
AUDIO_LAYERS = 16  # codebooks of mot's own tokenizer of sound at most
LAYERS, FRAMES = "layers", "frames"  # how a sound's ids of several codebooks follow one another
MAX_IDS = 1 << 24  # of a modality that somebody's own tokenizer made
NPY_HEADER = 64 * 2**10  # bytes of a .npy's header


class Option(NamedTuple):
    """Of `mot data prepare`: `--image-side` is a field `image_side` of the recipe."""

    name: str
    about: str
    default: int | str | None  # None: how many ids, where nobody says: `Modality.usual_ids` at most
    least: int = 1
    most: int = 2**31
    choices: tuple[str, ...] = ()
    unsaid: int = 0  # what 0 stands for where no network of the row decides


def _none(recipe: Any) -> Iterator[str]:
    return iter(())


class Modality(NamedTuple):
    suffixes: tuple[str, ...]  # of its files; the first that is there is taken
    fields: tuple[str, ...]  # of a row, that are taken for it where nobody names one: the first that is there
    called: str = ""  # where a message says what files there are; "" = by its name
    paths: tuple[str, ...] = ()  # fields that name files of it
    max_bytes: int = 0  # of a file
    forms: tuple[str, ...] = (IDS,)  # what its tokens may be; the first, unless --vectors asks for the other
    as_vectors: str = ""  # what these are where --vectors may ask for them
    learns_from: int = (
        0  # media from which its tokenizer is learnt at most; 0 = nothing is learnt, and there is no file
    )
    usual_ids: int = 0  # at most, where nobody says how many
    is_listed: bool = False  # a field may hold a list of it; a list of any other is numbers
    is_joined: bool = False  # several fields, joined by +, may be the columns of one
    is_sampled: bool = False  # an array of it needs to be told its samples a second
    markers: tuple[str, ...] = ()  # what encloses it among text; () = <name> and </name>
    options: tuple[Option, ...] = ()
    networks: Mapping[str, str] = {}  # by form, the option that names a folder with a network that makes it
    opened_with: tuple[tuple[str, str], ...] = ()  # what such a network is told, and the option that says it
    faults: Callable[[Any], Iterator[str]] = _none  # what is wrong with its options together
    codec: str = ""  # the row whose codec opens it; "" = it has its own


def _patches_do_not_fit(recipe, name: str = "image") -> Iterator[str]:
    side, patch = (getattr(recipe, f"{name}_{what}") for what in ("side", "patch"))
    if patch > 0 and side % patch:
        yield f"--{name}-side={side} is no multiple of --{name}-patch={patch}; change one"


def _fast_faults(recipe) -> Iterator[str]:
    if recipe.fast_points == 1:
        least, most = FAST_POINTS
        yield f"--fast-points=1; must be 0 (chunks as they are), or from {least} to {most}; change it"


LETTER = (6, 12)  # pixels of the cell, width and height, in which `--image-render` draws a letter


def _image_faults(recipe) -> Iterator[str]:
    yield from _network_faults(recipe, "image", ("image_ids", "image_patch", "image_aspect", "image_render"))
    if is_own(recipe, "image"):
        yield from _own_image_faults(recipe)


def _own_image_faults(recipe) -> Iterator[str]:
    """Of pictures in mot's own patches."""
    if not recipe.image_side:
        yield "--image-side=0: patches of mot's own need a side; say it, as --image-side 32"
    yield from _patches_do_not_fit(recipe)
    columns, side = recipe.image_render, recipe.image_side
    if columns > 0 and (recipe.image_aspect != "native" or side < columns * LETTER[0]):
        yield (
            f"--image-render={columns}, --image-aspect={recipe.image_aspect}, --image-side={side}: a line of {columns} "
            f"letters is {columns * LETTER[0]} pixels long and would be cut or shrunk; write --image-aspect native, "
            f"--image-side {columns * LETTER[0]}"
        )


def _audio_faults(recipe) -> Iterator[str]:
    yield from _network_faults(recipe, "audio", ("audio_ids", "audio_rate"))
    if not is_own(recipe, "audio"):
        return
    if not 1 <= recipe.audio_layers <= AUDIO_LAYERS:
        remedy = "lower it" if recipe.audio_layers else "raise it"
        yield f"--audio-layers={recipe.audio_layers}; must be from 1 to {AUDIO_LAYERS}; {remedy}"
    if recipe.audio_order != LAYERS:
        yield f"--audio-order={recipe.audio_order}: is for --audio-tokens alone; leave it out"


def _network_faults(recipe, name: str, own: Collection[str]) -> Iterator[str]:
    """Of the options that name networks, and of mot's `own` options where networks leave nothing for them to do."""
    row = MODALITIES[name]
    asked = {form: option for form, option in row.networks.items() if getattr(recipe, option)}
    kept = kept_forms(recipe, name)
    for form, option in asked.items():
        flag = f"--{option.replace('_', '-')}={getattr(recipe, option)}"
        if form not in kept and len(asked) > 1:
            yield f"{flag}: {name} are kept as {' and '.join(kept)}; write --also {name}={form}, or leave one out"
        elif form not in kept:
            yield f"{flag}: {name} are kept as {' and '.join(kept)}; write --vectors {name}, or leave it out"
    if is_own(recipe, name):
        return
    usual = {option.name: option.default for option in row.options}
    for option in own:
        if (value := getattr(recipe, option)) != usual[option]:
            decides = " and ".join(f"--{network.replace('_', '-')}" for network in asked.values())
            yield f"--{option.replace('_', '-')}={value}: {decides} decides this; leave it out"


def kept_forms(recipe, name: str) -> list[str]:
    """The forms, ids and vectors, in which a recipe keeps a modality."""
    forms = [form_of(name, recipe.vectors)]
    return forms + [form for form in MODALITIES[name].forms if f"{name}={form}" in recipe.also and form not in forms]


def network_of(recipe, name: str, form: str) -> str:
    """The folder of the network that makes a form of a modality; "" where it is mot's own tokenizer."""
    row = MODALITIES.get(name)
    return getattr(recipe, row.networks[form]) if row and form in row.networks else ""


def networks_of(recipe) -> list[str]:
    """All folders of networks that a recipe names."""
    named = [getattr(recipe, option) for row in MODALITIES.values() for option in row.networks.values()]
    return [folder for folder in named if folder]


def is_own(recipe, name: str) -> bool:
    """Does a tokenizer of mot's own make some form of a modality?"""
    return not all(network_of(recipe, name, form) for form in kept_forms(recipe, name))


MODALITIES: dict[str, Modality] = {
    TEXT: Modality(
        suffixes=("txt", "text", "caption"),
        fields=("caption", "text", "title", "name", "transcription", "sentence", "labels", "label"),
        usual_ids=8192,
        options=(Option("text_ids", "entries of a trained text tokenizer, at most", None, 300, 2**20),),
    ),
    "image": Modality(
        suffixes=("jpg", "jpeg", "png", "webp", "bmp", "gif", "tif", "tiff", "avif", "ppm", "pgm"),
        fields=("image", "images", "jpg", "jpeg", "png", "webp"),
        paths=("image", "images"),
        max_bytes=256 * 2**20,
        forms=(IDS, VECTORS),
        as_vectors="patches of pixels",
        learns_from=2000,
        usual_ids=1024,
        is_listed=True,
        markers=("<boi>", "<eoi>"),
        options=(
            Option(
                "image_side",
                "pixels to which images are brought; 0: 32, or a network's own side",
                0,
                0,
                IMAGE_SIDE,
                unsaid=32,
            ),
            Option(
                "image_aspect",
                "square: the square in the middle; native: whole images, with sides of image-side at most",
                "square",
                choices=("square", "native"),
            ),
            Option("image_patch", "pixels of a patch's side; a patch is a token, 1 is a pixel", 4),
            Option("image_ids", "codes of patches", None, 2),
            Option(
                "image_render",
                "letters of a line, where text is kept as pictures of its lines; 0: it is text",
                0,
                0,
                170,
            ),
            Option("image_tokens", "a folder of a network that makes ids of images: a VQ model", ""),
            Option("image_latents", "a folder of a network that makes vectors of images: latents or features", ""),
        ),
        networks={IDS: "image_tokens", VECTORS: "image_latents"},
        opened_with=(("side", "image_side"),),
        faults=_image_faults,
    ),
    "audio": Modality(
        suffixes=("wav", "flac", "ogg", "oga", "opus", "mp3"),
        fields=("audio", "wav", "flac", "ogg", "mp3"),
        called="sound",
        paths=("audio",),
        max_bytes=512 * 2**20,
        forms=(IDS, VECTORS),
        as_vectors="log-mel frames",
        learns_from=2000,
        usual_ids=512,
        is_listed=True,
        is_sampled=True,
        options=(
            Option("audio_rate", "samples a second; a token is 20 ms", 16000, *AUDIO_RATES),
            Option("audio_ids", "codes of sounds; of several layers, of each", None, 2),
            Option(
                "audio_layers",
                "codebooks: each of what those before leave; 0: 1, or as many as a network gives unasked",
                0,
                0,
                256,
                unsaid=1,
            ),
            Option(
                "audio_order",
                "ids of several codebooks of a network: layers, those of one after those of another; frames, together",
                LAYERS,
                choices=(LAYERS, FRAMES),
            ),
            Option("audio_tokens", "a folder of a network that makes ids of sounds: a codec", ""),
        ),
        networks={IDS: "audio_tokens"},
        opened_with=(("layers", "audio_layers"), ("order", "audio_order")),
        faults=_audio_faults,
    ),
    "action": Modality(
        suffixes=("action.npy",),
        fields=("action", "actions", "trajectory", "strokes"),
        paths=("action",),
        max_bytes=16 * 2**20 + NPY_HEADER,
        forms=(VECTORS,),
        learns_from=2000,
        is_joined=True,
        options=(
            Option("action_points", "points to which a trajectory is brought; a point is a token", 64, *ACTION_POINTS),
            Option("action_as", "what a point says", "positions", choices=("positions", "offsets")),
        ),
    ),
    "latents": Modality(
        suffixes=("npy",),
        fields=("latents", "npy"),
        paths=("latents",),
        max_bytes=256 * 2**20 + NPY_HEADER,
        forms=(VECTORS,),
    ),
    "state": Modality(
        suffixes=("state.npy",),
        fields=(),  # they are asked for: a table may well have a state of something else
        called="a robot's state",
        max_bytes=16 * 2**20 + NPY_HEADER,
        forms=(VECTORS,),
        codec="latents",
    ),
    "chunk": Modality(
        suffixes=("chunk.npy",),
        fields=(),
        called="a chunk of a robot's actions",
        max_bytes=16 * 2**20 + NPY_HEADER,
        forms=(VECTORS,),
        codec="latents",
    ),
    "video": Modality(
        suffixes=("video.gif", "video.webp", "video.png"),
        fields=("video", "videos"),
        paths=("video",),
        max_bytes=256 * 2**20,
        learns_from=500,
        usual_ids=1024,
        options=(
            Option("video_frames", "frames of a film, at equal distances in time", 4, most=4096),
            Option("video_side", "pixels to which frames are brought", 32, most=IMAGE_SIDE),
            Option("video_patch", "pixels of a patch's side; a patch of a frame is a token", 8),
            Option("video_ids", "codes of patches of frames", None, 2),
            Option(
                "video_order",
                "frames as they were taken, the last first, or in an order that follows from what they show",
                "ordered",
                choices=("ordered", "reversed", "shuffled"),
            ),
        ),
        faults=partial(_patches_do_not_fit, name="video"),
    ),
    "fast": Modality(
        suffixes=("fast.npy",),
        fields=("fast",),
        called="chunk of actions",
        paths=("fast",),
        max_bytes=16 * 2**20 + NPY_HEADER,
        learns_from=10_000,
        usual_ids=1024,
        is_joined=True,
        options=(
            Option("fast_points", "points to which a pen's path is resampled; 0: chunks as they are", 0, 0, 4096),
            Option("fast_scale", "how finely FAST rounds a chunk's coefficients", 10, 1, 10_000),
            Option("fast_ids", "ids of pieces of chunks", None, *FAST_IDS),
        ),
        faults=_fast_faults,
    ),
}


def names() -> tuple[str, ...]:
    return tuple(MODALITIES)


def media() -> tuple[str, ...]:
    """All but text."""
    return tuple(name for name in MODALITIES if name != TEXT)


def listed() -> tuple[str, ...]:
    """Those of which a field may hold a list."""
    return tuple(name for name, row in MODALITIES.items() if row.is_listed)


def joined() -> tuple[str, ...]:
    """Those that several fields may make together."""
    return tuple(name for name, row in MODALITIES.items() if row.is_joined)


def arrays() -> tuple[str, ...]:
    """Those whose files are arrays: a .npy may be any of them."""
    return tuple(name for name, row in MODALITIES.items() if all(suffix.endswith("npy") for suffix in row.suffixes))


def given() -> tuple[str, ...]:
    """Those that are as somebody's own encoder made them: nothing is learnt but their width."""
    return tuple(name for name in media() if not MODALITIES[name].learns_from)


def of_either_form() -> dict[str, str]:
    """Those that are kept as vectors where --vectors says so, and what these are."""
    return {name: row.as_vectors for name, row in MODALITIES.items() if len(row.forms) > 1}


def form_of(name: str, vectors: Collection[str]) -> str:
    """What the tokens of a modality are, where `vectors` are those that --vectors names."""
    return VECTORS if name in vectors else MODALITIES[name].forms[0]


def other_form(name: str, form: str) -> str:
    """What a modality is called in its other form, ids or vectors, where both are kept."""
    return f"{name}_{form}"


def row_of(name: str) -> str:
    """The row by which a modality is opened and shown: its own name, or that of which it is the other form."""
    base, _, form = name.rpartition("_")
    return base if base in of_either_form() and form in MODALITIES[base].forms else name


def options(of_vectors_alone: bool) -> Iterator[tuple[Option, Modality]]:
    """The options of those that are always vectors, or of the others, each with its row."""
    for row in MODALITIES.values():
        if (IDS not in row.forms) == of_vectors_alone:
            yield from ((option, row) for option in row.options)


def markers(name: str) -> tuple[str, str]:
    """What encloses a unit of a modality among text; also of one that has no row."""
    row = MODALITIES.get(row_of(name))
    opens, closes = row.markers if row and row.markers else (f"<{name}>", f"</{name}>")
    return opens, closes


def kind_of_file(parts: list[str]) -> tuple[str, str]:
    """The modality of a file whose name has these `parts` between its dots, and its suffix; "" twice where none has it.

    A suffix of two parts, as action.npy, goes before one of one.
    """
    for count in (2, 1):
        suffix = ".".join(parts[-count:])
        for name, row in MODALITIES.items():
            if len(parts) > count and suffix in row.suffixes:
                return name, suffix
    return "", ""

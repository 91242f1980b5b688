"""How a document is written: which ids begin and end it, and which enclose an image or clip among its text."""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from mot.config import Config
from mot.config.modalities import markers
from mot.data import embedded, folding, packing, records, seqio_bridge
from mot.data.manifest import most_shape, read_json
from mot.data.packing import Document
from mot.data.positions import places, shape_of
from mot.data.remote import local
from mot.data.sources import is_embedded, unit_lengths
from mot.errors import UserError
from mot.tokenizers import text


class Medium(NamedTuple):
    """A stream of a modality other than text; the markers are its modality's."""

    stream: str
    opens: int  # id of the marker before a unit
    closes: int
    tokens: int  # of a unit; 0 = any number
    shape: tuple[int, ...] = ()  # its rows and columns, the most of them where `tokens` is 0; () = it has none

    @property
    def is_of_any_size(self) -> bool:
        return bool(self.shape) and not self.tokens


class Format(NamedTuple):
    text: str  # the stream of text, of <bos>, <eos> and of all markers
    bos: int
    eos: int
    special: tuple[int, ...]  # ids that no text holds
    media: tuple[Medium, ...]  # of those that a marker opens the first is drawn: what learns comes first

    def medium(self, stream: str) -> Medium | None:
        return next((medium for medium in self.media if medium.stream == stream), None)


class Stretch(NamedTuple):
    """A stretch of one stream: ids from 0 on, of the stream's own tokenizer, or vectors `[n, P]`.

    A unit of any size has its rows: `[rows, columns]` in place of `[n]` (`mot.data.records.Span`).
    """

    stream: str
    data: np.ndarray
    is_same: bool = False  # another representation of the unit before it, between the same markers


def of(config: Config) -> Format:
    """The format of the data that a run was trained on."""
    if is_embedded(config):
        special = dict(zip(text.SPECIAL, range(len(text.SPECIAL)), strict=True))
        shapes = {s.holds: embedded.shape(s) for s in config.streams.values() if s.modality != "text"}
        tokens = {name: math.prod(shape) for name, shape in shapes.items()}
        return _format(config, special, tokens | {"text": 0}, shapes)
    abouts = []
    for address in config.data.sources.values():
        if seqio_bridge.is_address(address):
            raise UserError(
                f"{address}: generation needs a tokenizer that decodes; export it: `mot data prepare --seqio`"
            )
        abouts.append(read_json(local(address, whole=False)))
    last = abouts[-1]["tokenizers"]
    shapes = {m: most_shape(m, about["tokenizers"][m]) for about in abouts for m in about["tokenizers"]}
    return _format(config, last["text"]["special"], unit_lengths(abouts), shapes)


def _format(
    config: Config, special: Mapping[str, int], tokens: Mapping[str, int], shapes: Mapping[str, tuple[int, ...]]
) -> Format:
    text = next(name for name, stream in config.streams.items() if stream.holds == "text")

    def id_of(mark):
        return config.streams[text].first_id + special[mark]

    held = [(name, s) for m in tokens for name, s in config.streams.items() if s.holds == m != "text"]
    held = sorted(held, key=lambda one: not one[1].is_drawn)
    return Format(
        text,
        id_of("<bos>"),
        id_of("<eos>"),
        tuple(map(id_of, special)),
        tuple(
            Medium(name, *map(id_of, markers(s.modality)), tokens[s.holds], shapes.get(s.holds, ())) for name, s in held
        ),
    )


def document(
    stretches: Sequence[Stretch],
    config: Config,
    format: Format,
    opens: str = "",
    scored: int | None = None,
    ends: bool = False,
) -> Document:
    """<bos> and stretches, units between markers; then the marker that opens a unit of a stream, or <eos>.

    Vectors are clean. Ids from the stretch of number `scored` on weigh 1, but for what the format forces; None: none
    does.
    """
    names = list(config.streams)
    runs = [_marker(format.bos, format)]
    vectors: dict[int, list[np.ndarray]] = {}  # by stream
    for number, stretch in enumerate(stretches):
        stream = config.streams[stretch.stream]
        medium = format.medium(stretch.stream)
        is_scored = scored is not None and number >= scored
        data = np.asarray(stretch.data)
        if stream.latent:
            x = folding.data(records.flat(data), stream.entry.fold)
            ids = np.zeros(len(x), int)
            vectors.setdefault(names.index(stretch.stream), []).append(x)
        else:
            ids = data.reshape(-1) + stream.first_id
        learns_ids = is_scored and not stream.latent and stream.objective != "none"
        place = unit_places(data, medium)[:: stream.entry.fold]
        unit = _Run(ids, stretch.stream, (number + 1) * (medium is not None), learns_ids, place)
        if medium:
            is_news = is_scored and not (stream.latent or medium.tokens)  # where a unit ends
            before = runs[:-1] if stretch.is_same else [*runs, _marker(medium.opens, format, is_scored)]
            runs = [*before, unit, _marker(medium.closes, format, is_news)]
        else:
            runs.append(unit)
    if opens:
        runs.append(_marker(format.medium(opens).opens, format))
    if ends:
        runs.append(_marker(format.eos, format, scored is not None))
    sizes = [len(run.ids) for run in runs]
    token = np.concatenate([run.ids for run in runs])
    stream = np.repeat([names.index(run.stream) for run in runs], sizes)
    unit = np.repeat([run.unit for run in runs], sizes)
    weight = np.repeat([run.is_scored for run in runs], sizes)
    masked = [s for s, name in enumerate(names) if config.streams[name].masks == "unit"]
    span = np.where(np.isin(stream, [*vectors, *masked]), unit, 0)  # these see their unit both ways
    values = {s: np.concatenate(x) for s, x in vectors.items()}
    place = np.concatenate([np.zeros((len(run.ids), 3), int) if run.place is None else run.place for run in runs])
    return packing.document(0, 0, token, stream, values, weight=weight, unit=unit, span=span, place=place)


def unit_places(data: np.ndarray, medium: Medium | None) -> np.ndarray:
    """int32 `[n, 3]`: frame, row and column of the tokens of a stretch, by its own rows or those of all units."""
    shape = records.shape_of(data)
    if len(shape) == 1 and medium and medium.tokens:
        shape = medium.shape
    return places(shape, records.count(data))


class _Run(NamedTuple):
    """Tokens of one stream that follow one another in a document."""

    ids: Sequence[int] | np.ndarray  # in the unified vocabulary; 0 for vectors
    stream: str
    unit: int  # from 1; 0 = none
    is_scored: bool
    place: np.ndarray | None = None  # [n, 3]; None = text


def _marker(id_: int, format: Format, is_scored: bool = False) -> _Run:
    return _Run([id_], format.text, 0, is_scored)


def stretches(d: Document, config: Config, format: Format) -> list[Stretch]:
    """What a document as its data has it holds, in order; undoes `document`."""
    names = list(config.streams)
    begins = np.flatnonzero(np.diff(d.stream.astype(int), prepend=-1))  # markers lie between two units
    taken = dict.fromkeys(d.values, 0)
    found = []
    for begin, end in zip(begins, [*begins[1:], len(d.token)], strict=True):
        s = int(d.stream[begin])
        if s in taken:
            x = folding.undone(d.values[s][taken[s] : taken[s] + end - begin], config.streams[names[s]].entry.fold)
            data = _with_rows(x, d.place[begin:end], names[s], format)
            taken[s] += end - begin
        else:
            ids = d.token[begin:end]
            data = ids[~np.isin(ids, format.special)] - config.streams[names[s]].first_id
            data = _with_rows(data, d.place[begin:end], names[s], format)
        if len(data):
            is_same = begin > 0 and format.text not in (names[s], names[d.stream[begin - 1]])
            found.append(Stretch(names[s], data, is_same))
    return found


def _with_rows(data: np.ndarray, place: np.ndarray, stream: str, format: Format) -> np.ndarray:
    """A unit of a stream whose units differ in size with its rows; all else as it is."""
    medium = format.medium(stream)
    if medium is None or not medium.is_of_any_size:
        return data
    shape = shape_of(place)
    return data.reshape(*(shape if len(shape) > 1 else (1, 1)), *data.shape[1:])

"""How a document is written: which ids begin and end it, and which enclose an image or clip among its text."""

from collections.abc import Mapping
from typing import NamedTuple

from mot.config import Config
from mot.config.modalities import markers
from mot.data import embedded, seqio_bridge
from mot.data.manifest import read_json
from mot.data.remote import local
from mot.data.sources import is_embedded, unit_lengths
from mot.errors import UserError
from mot.tokenizers import text


class Medium(NamedTuple):
    """A modality other than text."""

    stream: str
    opens: int  # id of the marker before a unit
    closes: int
    tokens: int  # of a unit; 0 = any number


class Format(NamedTuple):
    text: str  # the stream of text, of <bos>, <eos> and of all markers
    bos: int
    eos: int
    special: tuple[int, ...]  # ids that no text holds
    media: tuple[Medium, ...]

    def medium(self, stream: str) -> Medium | None:
        return next((medium for medium in self.media if medium.stream == stream), None)


def of(config: Config) -> Format:
    """The format of the data that a run was trained on."""
    if is_embedded(config):
        special = dict(zip(text.SPECIAL, range(len(text.SPECIAL)), strict=True))
        tokens = embedded.PATCHES if config.streams["image"].latent else embedded.PIXELS
        return _format(config, special, {"text": 0, "image": tokens})
    abouts = []
    for address in config.data.sources.values():
        if seqio_bridge.is_address(address):
            raise UserError(
                f"{address}: generation needs a tokenizer that decodes; export it: `mot data prepare --seqio`"
            )
        abouts.append(read_json(local(address, whole=False)))
    return _format(config, abouts[-1]["tokenizers"]["text"]["special"], unit_lengths(abouts))


def _format(config: Config, special: Mapping[str, int], tokens: Mapping[str, int]) -> Format:
    streams = {stream.modality: name for name, stream in config.streams.items()}
    first = config.streams[streams["text"]].first_id

    def id_of(mark):
        return first + special[mark]

    media = [m for m in tokens if m != "text" and m in streams]
    pairs = {m: [id_of(mark) for mark in markers(m)] for m in media}
    return Format(
        streams["text"],
        id_of("<bos>"),
        id_of("<eos>"),
        tuple(first + i for i in special.values()),
        tuple(Medium(streams[m], *pairs[m], tokens[m]) for m in media),
    )

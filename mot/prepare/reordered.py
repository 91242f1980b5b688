"""Films whose frames stand in another order than they were taken in, to see what a model makes of time."""

import zlib
from collections.abc import Iterable, Iterator

import numpy as np

from mot.prepare.codecs import video
from mot.prepare.raw import Part, Raw


def documents(raws: Iterable[Raw], order: str) -> Iterator[Raw]:
    """Documents with the frames of their films `ordered` as they are, `reversed`, or `shuffled` by what they show."""
    for raw in raws:
        yield raw if order == "ordered" else raw._replace(parts=_parts(raw.parts, order), rest=_parts(raw.rest, order))


def _parts(parts: Iterable[Part], order: str) -> tuple[Part, ...]:
    return tuple(_part(part, order) if part.kind == "video" else part for part in parts)


def _part(part: Part, order: str) -> Part:
    if isinstance(part.content, ValueError):
        return part
    try:
        frames = video.frames(part.content)
    except ValueError as error:  # told when its turn comes
        return part._replace(content=error)
    n = len(frames)
    if order == "reversed":
        return part._replace(content=frames[::-1])
    return part._replace(content=frames[np.random.default_rng(zlib.crc32(frames.tobytes())).permutation(n)])

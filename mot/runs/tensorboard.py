"""What TensorBoard shows of a run: curves in few groups, its configuration, and samples. metrics.jsonl has everything.

Samples are a run of their own, in a folder below the curves': where a second file lies beside one that is still
written, TensorBoard reads the newer one alone.
"""

import io
import json
import struct
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from PIL import Image
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.proto.summary_pb2 import Summary, SummaryMetadata
from tensorboardX.proto.tensor_pb2 import TensorProto
from tensorboardX.proto.tensor_shape_pb2 import TensorShapeProto
from tensorboardX.record_writer import masked_crc32c
from tensorboardX.summary import hparams, scalar, text

from mot.files import appender, make_folder, move
from mot.runs import rundir
from mot.runs.curves import curves

COMPARED = ("model", "optim", "objective", "data")  # sections whose numbers and words the table of runs has
NO_RESULT = {*rundir.HOW_DATA_IS_READ, *rundir.HOW_IT_IS_COMPUTED, "patience"}  # but for those that decide none
WAV = b"\x10\x0b"  # TensorBoard's AudioPluginData with encoding = WAV, of which tensorboardX has no message
IMAGES, SOUNDS = 4, 8  # of a step's samples at most


class Board:
    """A file of events. What a full disk does not take waits for the next event.

    tensorboardX's own writer has a thread, which ends when the disk is full; whoever gives it more then waits forever.
    """

    def __init__(self, folder: Path, purge_step: int, sources: int = 1):
        make_folder(folder)
        self.sources = sources  # of the run's documents
        now = time.time()
        self.file = appender(folder / f"events.out.tfevents.{now:.6f}")
        self.error: OSError | None = None  # why what was added last is not in the file yet
        self.add(Event(wall_time=now, file_version="brain.Event:2"))
        self.add(Event(wall_time=now, step=purge_step, session_log=SessionLog(status=SessionLog.START)))

    def add(self, event: Event) -> None:
        self.error = self.file.append(_record(event))

    def add_summary(self, summary: Summary, step: int = 0) -> None:
        self.add(Event(wall_time=time.time(), step=step, summary=summary))

    def add_scalar(self, tag: str, value: float, step: int) -> None:
        self.add_summary(scalar(tag, value), step)

    def write(self, kind: str, step: int, values: Mapping) -> OSError | None:
        """Shows a row's curves; why its file did not take them, or None."""
        for tag, value in curves(kind, values, self.sources):
            self.add_scalar(tag, value, step)
        return self.error

    def close(self) -> None:
        self.file.close()


def opened(path: Path, resumed_at: int, config: dict) -> Board:
    """Of the run at `path`, whose earlier points after `resumed_at` go; a new one begins with its `config`."""
    folder = path / "tensorboard"
    fresh = not any(folder.glob("*tfevents*"))
    board = Board(folder, resumed_at + 1, len(config["data"]["sources"]))
    if fresh:
        board.add_summary(text("config", _block(json.dumps(config, indent=1))))
        compared, metrics = _compared(config)
        # `add_hparams` would do this in a folder, and so a run, of its own.
        for summary in hparams(compared, dict.fromkeys(metrics))[:2]:
            board.add_summary(summary)
    return board


def _compared(config: dict) -> tuple[dict, list[str]]:
    """What a table of runs shows: options by dotted key, and the tags of curves whose last points stand beside them."""
    values = {
        f"{section}.{key}": value
        for section in COMPARED
        for key, value in config[section].items()
        if isinstance(value, str | int | float) and key not in NO_RESULT
    }
    modalities = dict.fromkeys(stream["modality"] for stream in config["streams"].values())
    return values, ["eval/loss", *(f"eval/loss/{modality}" for modality in modalities)]


def _block(words: str) -> str:
    """Markdown that shows text as it is."""
    return "\n".join(f"    {line}" for line in words.splitlines())


def samples(path: Path, step: int, words: str, pictures: Mapping[str, bytes], sounds: Mapping[str, bytes]) -> None:
    """Shows what the run at `path` drew at a step: words, PNGs and WAVs by name, the first of each.

    What it showed of that step before goes. The file is written anew, in the order of steps, as one that comes after a
    later one hides it.
    """
    values = list(text("samples", _block(words)).value)
    values += [_image(name, png) for name, png in list(pictures.items())[:IMAGES]]
    values += [_audio(name, wav) for name, wav in list(sounds.items())[:SOUNDS]]
    folder = path / "tensorboard" / "samples"
    make_folder(folder)
    earlier = sorted(folder.glob("*tfevents*"))
    records = [(event.step, raw) for file in earlier for event, raw in read(file) if event.HasField("summary")]
    records = [(of, raw) for of, raw in records if of != step]
    now = time.time()
    records += [(step, _record(Event(wall_time=now, step=step, summary=Summary(value=[value])))) for value in values]
    records.sort(key=lambda record: record[0])
    version = _record(Event(wall_time=now, file_version="brain.Event:2"))
    file = folder / f"events.out.tfevents.{now:.6f}.samples"  # a new name, or TensorBoard goes on in what it has open
    partial = folder / ".partial"
    partial.write_bytes(version + b"".join(raw for _, raw in records))
    move(partial, file)
    for old in earlier:
        old.unlink(missing_ok=True)


def _image(name: str, png: bytes) -> Summary.Value:
    with Image.open(io.BytesIO(png)) as picture:
        width, height = picture.size
    image = Summary.Image(width=width, height=height, colorspace=3, encoded_image_string=png)
    return Summary.Value(tag=f"pictures/{name}", image=image)  # a tag has content of one kind


def _audio(name: str, wav: bytes) -> Summary.Value:
    """In the form of TensorBoard 2: of the older one, which tensorboardX writes, it does not say that it is a WAV."""
    plugin = SummaryMetadata.PluginData(plugin_name="audio", content=WAV)
    shape = TensorShapeProto(dim=[TensorShapeProto.Dim(size=1), TensorShapeProto.Dim(size=2)])  # the sound, its label
    tensor = TensorProto(dtype="DT_STRING", string_val=[wav, b""], tensor_shape=shape)
    return Summary.Value(tag=f"sounds/{name}", tensor=tensor, metadata=SummaryMetadata(plugin_data=plugin))


def _record(event: Event) -> bytes:
    """As TFRecord frames it: length, data, and a checksum of each."""
    data = event.SerializeToString()
    length = struct.pack("<Q", len(data))
    checksums = [struct.pack("<I", masked_crc32c(x)) for x in (length, data)]
    return length + checksums[0] + data + checksums[1]


def read(file: Path) -> Iterator[tuple[Event, bytes]]:
    """The events of a file, each with its record; ends where the file is cut off."""
    content = file.read_bytes()
    start = 0
    while len(content) >= start + 12:
        end = start + 16 + int.from_bytes(content[start : start + 8], "little")
        if end > len(content):
            return
        yield Event.FromString(content[start + 12 : end - 4]), content[start:end]
        start = end

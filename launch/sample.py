"""Pictures, text and whole documents from a run: what it draws when asked, and how it goes on with a document.

A run on the embedded digits draws and reads them, and a classifier judges it; --prompt-file, --draw, --max-text and
--max-media have it go on with any document, as every other run does. Files go to --out, what was asked and what came of
it into its samples.json.
"""

import sys
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePath

from launch import arguments, refusals
from launch.arguments import ANY, GUIDANCE, MEDIA, TEXT, UNPROMPTED, Options
from launch.process import guarded
from mot.config import Config
from mot.config.options import Settings
from mot.data import layout, remote
from mot.data.manifest import read_json
from mot.generate import codecs, digits, documents, opened, results
from mot.generate.documents import Request
from mot.generate.opened import LoadedModel
from mot.prepare.raw import Part
from mot.runs import rundir


def main(argv: list[str] | None = None) -> int:
    p = arguments.sample()
    given = p.parse_args(argv)
    print(summary(draw(given.run, given.step, arguments.asked_of(given))))
    return 0


def draw(run: Path | LoadedModel, step: int | None = None, options: Options = Options()) -> dict:  # noqa: B008
    """Samples, written as `options` say; the record of them, with the folder as `out`. Raises `UserError`."""
    path = run if isinstance(run, PurePath) else run.path
    config = rundir.config_of(path)
    format = layout.of(config)
    refusals.known_data(path, config, options.fetch)
    refusals.refuse(_faults(options, config, format))
    asked = [] if _of_digits(options, config) else _requests(options, config, format)
    if isinstance(run, PurePath):
        model = opened.opened(run, step, options.fetch)
    else:
        model = run if step in (None, run.step) else opened.at(run, step)
    out = options.out or results.fresh(path / "samples", model.step)
    results.refuse_prompts(out, options.files)
    if earlier := results.refuse_foreign(out):
        print(f"{out}: {len(earlier)} files of an earlier mot sample will be replaced", file=sys.stderr)
    chosen = settings(options, config)
    if asked:
        length = options.length or usual_length(config, format)
        sizes = usual_sizes(config, format) | _sizes(options, format, model.codec.tokenizers, config)
        files, record = documents.samples(model, asked, chosen, length, sizes, options.seed, options.grid)
    else:
        files, record = digits.samples(model, _digits(options), chosen)
    record = {"step": model.step, "seed": options.seed} | chosen._asdict() | record
    results.write(out, files, record)
    record |= {"files": sorted(files), "out": str(out)}
    if out.resolve().parent == (path / "samples").resolve():  # elsewhere they are not the run's own
        results.show(path, model.step, files, summary(record))
    return record


def summary(record: dict) -> str:
    lines = [f"step {record['step']}, temperature {record['temperature']}, seed {record['seed']}"]
    lines += documents.summary(record) if "documents" in record else digits.summary(record)
    files = record["files"]
    named = ", ".join(files) if len(files) <= 4 else f"{len(files)} files" + ", documents.png shows all"
    return "\n".join([*lines, f"{record['out']}: {named + ', ' if files else ''}{results.RECORD}"])


def _digits(o: Options) -> digits.Wanted:
    prompts = digits.PROMPTS if o.prompts is None else o.prompts
    drawn = len(prompts) * (4 if o.each is None else o.each) if o.n is None else o.n
    read = (20 if o.n is None else 0) if o.read is None else o.read
    return digits.Wanted(prompts, drawn, read, o.texts, o.seed, o.grid)


def _requests(o: Options, config: Config, format: layout.Format) -> list[Request]:
    """One for each row, the prompts in turn."""
    drawn = opened.draws(config, format)

    def pick(value, usual):
        return usual if value is None else value

    usual = drawn[0] if drawn else ANY

    def room(opens):
        return (
            pick(o.max_text, 0 if opens else TEXT),
            pick(o.max_media, 1 if opens else MEDIA * bool(drawn)),
        )

    def asked(name, parts, draw):
        opens = "" if draw == ANY else draw
        return Request(name, parts, opens, *room(opens))

    found = [asked(f"--prompt {p[:60]!r}", (Part("text", p),), pick(o.draw, usual)) for p in o.prompts or ()]
    found += [Request(f"--text {t[:60]!r}", (Part("text", t),), "", pick(o.max_text, TEXT), 0) for t in o.texts]
    found += [asked(f"--prompt-file={f}", codecs.read_document(f), pick(o.draw, ANY)) for f in o.files]
    if not found:
        return [asked("no prompt", (), pick(o.draw, ANY))] * pick(o.n, UNPROMPTED)
    return [found[i % len(found)] for i in range(pick(o.n, len(found)))]


def settings(o: Options, config: Config) -> Settings:
    """How a run is sampled, where the options do not say it as is usual for it."""
    diffusing = [s.diffusion for s in config.streams.values() if s.diffuses]
    rates = [s.drop_rate for s in config.streams.values() if s.diffuses or s.masks == "unit"]
    usual = GUIDANCE if rates and all(rates) else 1.0
    given = {key: value for key in ("solver", "steps", "block") if (value := getattr(o, key)) is not None}
    shift = diffusing[0].shift if diffusing else 1.0
    guidance = usual if o.guidance is None else o.guidance
    return Settings(o.temperature, o.top_k, o.top_p, shift=shift, guidance=guidance, **given)


def usual_length(config: Config, format: layout.Format) -> int:
    """Tokens of a unit that has no fixed length: vectors as many as the data's mean, ids at most twice as many."""
    lengths = [0]
    for medium, mean in _means(config, format):
        stream = config.streams[medium.stream]
        lengths.append(min(round(mean * (1 if stream.latent else 2)), stream.max_tokens or stream.budget))
    return max(lengths)


def usual_sizes(config: Config, format: layout.Format) -> dict[str, tuple[int, int]]:
    """Rows and columns of drawn units of any size, by stream: a square of about the tokens of the data's mean."""
    sizes = {}
    for medium, mean in _means(config, format):
        if medium in _sized(format, config):
            side = min(round(mean**0.5), *medium.shape)
            sizes[medium.stream] = max((side, side), sizes.get(medium.stream, (1, 1)))
    return sizes


def _means(config: Config, format: layout.Format) -> Iterator[tuple[layout.Medium, float]]:
    """By source, the media that have units of no fixed length, with the mean length of these."""
    open_ = [m for m in format.media if not m.tokens]
    for address in config.data.sources.values() if open_ else ():
        training = read_json(remote.local(address, whole=False))["splits"]["train"]
        for medium in open_:
            held = config.streams[medium.stream].holds
            if n := training["spans"].get(held, 0):
                yield medium, training["tokens"][held] / n


def _sizes(o: Options, format: layout.Format, tokenizers: Mapping, config: Config) -> dict[str, tuple[int, int]]:
    """Rows and columns of the size that is asked for, by stream; of no own patches a token is a pixel."""
    if o.size is None:
        return {}
    width, height = map(int, o.size.split("x"))
    sized = {m.stream: _patch(tokenizers, m, config) for m in _sized(format, config)}
    return {stream: (height // patch, width // patch) for stream, patch in sized.items()}


def _patch(tokenizers: Mapping, medium: layout.Medium, config: Config) -> int:
    return getattr(tokenizers.get(config.streams[medium.stream].holds), "patch", 1)


def _sized(format: layout.Format, config: Config) -> list[layout.Medium]:
    """The media that are drawn in any size."""
    return [m for m in format.media if m.is_of_any_size and config.streams[m.stream].is_drawn]


def _size_faults(o: Options, config: Config, format: layout.Format) -> Iterator[str]:
    """What is wrong with a size that is written as one."""
    sized = _sized(format, config)
    if not sized:
        yield f"--size={o.size}: units of this run have no size to choose; leave it out"
    tokenizers = codecs.of(config).tokenizers if sized else {}
    width, height = map(int, o.size.split("x"))
    for medium in sized:
        patch = _patch(tokenizers, medium, config)
        rows, columns = (most * patch for most in medium.shape)
        if width % patch or height % patch or not (0 < width <= columns and 0 < height <= rows):
            yield (
                f"--size={o.size}: {medium.stream} has patches of {patch} x {patch} pixels; sides must be multiples of "
                f"{patch}, up to {columns}x{rows}; change it"
            )


def _of_digits(options: Options, config: Config) -> bool:
    return refusals.is_of_digits(options, config)


def _faults(o: Options, config: Config, format: layout.Format) -> Iterator[str]:
    """Everything that is wrong with the options for this run; what its configuration tells was said before JAX."""
    yield from refusals.of_options(o, config, _of_digits(o, config))
    if o.length is not None and all(m.tokens for m in format.media):
        yield f"--length={o.length}: all units of this run have a fixed length; leave it out"
    if o.size is not None and refusals.is_size(o.size):
        yield from _size_faults(o, config, format)


if __name__ == "__main__":
    sys.exit(guarded(main))

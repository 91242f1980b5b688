"""Evaluates a run's newest checkpoint: its held-out losses by modality and source; with --what more than its loss."""

import dataclasses
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from launch import answers, arguments, flags, refusals, sample
from launch.process import guarded
from mot import checkpoint, sharding
from mot.config import Config, Masking, load
from mot.console import phase
from mot.data import captions, embedded, layout
from mot.data.layout import Format
from mot.data.manifest import file_digest
from mot.errors import UserError, reason
from mot.files import make_folder, write_atomically
from mot.generate import codecs, digits, judge, opened, redrawn
from mot.generate.opened import LoadedModel
from mot.measures import conditioning, distances, labels, likelihood, ranking, retrieval
from mot.measures.figures import Figure, share
from mot.runs import evaluated, provenance, rundir
from mot.train import evaluate

LARGE = 1e6  # a figure of more is shown with its exponent


class Found(NamedTuple):
    """What one kind of evaluation tells."""

    figures: dict[str, Figure]
    asked: dict[str, Any] = {}  # what decides the figures, beside the checkpoint
    notes: tuple[str, ...] = ()  # what has no figure, and why


def main(argv: list[str] | None = None) -> int:
    p = arguments.evaluate()
    options, overrides = flags.parse(p, argv)
    config = flags.build(load.read(options.config, overrides)) if options.config else None
    what = refusals.evaluation(options, overrides, config)
    if options.run:
        config = rundir.config_of(options.run)
        run = dataclasses.replace(config.run, root=str(options.run.parent), name=options.run.name)
        config = dataclasses.replace(config, run=run)
    path = rundir.folder(config)
    step, found = options.step, {}
    beyond = [kind for kind in what if kind not in refusals.WITHOUT_SAMPLES]
    if beyond:
        step, found = of_model(path, beyond, options)
    if len(beyond) < len(what):
        # A configuration says how its rows are split; a run is read wherever it lies.
        devices = sharding.dividing(config) if options.run else None
        step, row = evaluate.run(config, step, devices, bool(options.run))
        of_row = {"loss": losses(row), "bits": bits(row, config)}
        found |= {kind: of_row[kind] for kind in what if kind in of_row}
    for kind in what:
        show(kind, found[kind], f"{config.run.name}, step {step}")
    made = checkpoint.made_by(path / "checkpoints" / str(step))
    print(f"checkpoint of step {step}: {provenance.told(made)}")
    keep(path, step, {kind: found[kind] for kind in beyond})
    if options.out:
        make_folder(options.out.parent)
        whole = {"run": config.run.name, "step": step} | {kind: plain(found[kind]) for kind in what}
        write_atomically(options.out, json.dumps(whole, indent=1) + "\n")
    return 0


def losses(row: dict) -> Found:
    """Of what an evaluation measured; loads by layer and expert are for the report."""
    return Found({name: Figure(value) for name, value in row.items() if isinstance(value, float)})


def bits(row: dict, config: Config) -> Found:
    """Of ids: bits a token by modality and source; of text a byte, as the row has it. Causal ones, where there are."""
    prefix = "loss/" if config.causal else "causal_loss/"
    vectors = {s.modality for s in config.streams.values() if s.latent}
    masked = {s.modality: s.masking for s in config.streams.values() if s.masks}
    found = {name: Figure(value) for name, value in row.items() if name.startswith("bits_per_byte/")}
    for name, value in row.items():
        modality, slash, source = name.removeprefix(prefix).partition("/")
        if name.startswith(prefix) and slash and modality not in vectors:
            found[f"bits_per_token/{modality}/{source}"] = Figure(value / np.log(2))
    notes = [f"{m}: vectors, whose loss is a squared error, have no bits" for m in sorted(vectors)]
    return Found(found, notes=(*notes, *(_of_a_bound(m, masking) for m, masking in sorted(masked.items()))))


def _of_a_bound(modality: str, masking: Masking) -> str:
    """What the bits of ids that are masked mean: that of LLaDA's eq. 3 (2502.09992)."""
    if (masking.weighting, masking.distribution, masking.most) == ("elbo", "uniform", 1):
        return f"{modality}: masked, so that its bits are an upper bound, from one draw of what is hidden"
    return (
        f"{modality}: masked, and its bits are those of a hidden id at this run's ratios; they bound its likelihood "
        "where these are uniform up to 1 with weighting='elbo'"
    )


def of_model(path: Path, what: list[str], options) -> tuple[int, dict[str, Found]]:
    """The step of the checkpoint, and what each kind finds. Files that a user names are read before it is."""
    config = rundir.config_of(path)
    format = layout.of(config)
    asked = {kind: ASKED[kind](options, config, format) for kind in what if kind in ASKED}
    model = opened.opened(path, options.step, options.fetch)
    return model.step, {kind: MEASURES[kind](model, options, asked.get(kind)) for kind in what}


def _ranking(model: LoadedModel, options, questions: list[ranking.Question]) -> Found:
    score = likelihood.make(model.sampler.params, model.config)
    with phase(f"ranking the candidates of {len(questions)} questions; their program is compiled the first time"):
        found = ranking.accuracies(questions, score, model.config, model.format, model.held_out.byte_lengths)
    return Found(found, {"answers": options.answers.name, "digest": file_digest(options.answers)[:16]})


def _harness(model: LoadedModel, options, _) -> Found:
    from mot.generate import harness  # of an extra

    tasks = [task.strip() for task in options.tasks.split(",") if task.strip()]
    found = harness.figures(model, tasks, options.task_folder, options.shots, options.limit)
    return Found(found, {"tasks": options.tasks, "shots": options.shots, "limit": options.limit})


def _retrieval(model: LoadedModel, options, _) -> Found:
    """By embeddings of what was contrasted, and of text alone; else by likelihood."""
    contrasted = len(model.config.objective.contrastive.pools) > 1
    size, most = options.pool or arguments.POOL, options.pools or arguments.POOLS
    asked = {"pool": size, "pools": most}
    if contrasted or len(model.config.streams) == 1:
        return _by_embeddings(model, size, most, retrieval.parts if contrasted else retrieval.halves, asked)
    score = likelihood.make(model.sampler.params, model.config)
    modality = {name: s.modality for name, s in model.config.streams.items()}
    figures: dict[str, Figure] = {}
    notes = []
    for source in model.held_out.read_by(model.config.data):
        by_streams: dict[tuple[str, str], list[retrieval.Pool]] = {}
        try:
            for pool in retrieval.pools(source, size, most, model.config, model.format):
                by_streams.setdefault(pool.streams, []).append(pool)
        except UserError as error:
            notes.append(str(error))
        for streams, pools in by_streams.items():
            for way, why in retrieval.ways(streams, model.config).items():
                given, other = (modality[streams[side]] for side in way)
                if why:
                    notes.append(f"{source.name}: no {other} by {given}: {why}")
                    continue
                with phase(f"{source.name}: {other} by {given}, {len(pools)} pools of {size}"):
                    found = retrieval.recalls(pools, way, score, model.config, model.format)
                figures |= {f"{given}/{other}/{source.name}/{name}": figure for name, figure in found.items()}
    if not figures:
        none = "no held-out document has one stretch of each of two modalities, as a picture and its caption"
        raise UserError(f"--what=retrieval: {'; '.join(notes) or f'{none}; prepare such, or leave it out'}")
    return Found(figures, asked, tuple(notes))


def _by_embeddings(model: LoadedModel, size: int, most: int, of: Callable, asked: dict) -> Found:
    embed = retrieval.make_embed(model.sampler.params, model.config)
    figures: dict[str, Figure] = {}
    notes = []
    for source in model.held_out.read_by(model.config.data):
        try:
            pools = retrieval.pools(source, size, most, model.config, model.format, of=of)
        except UserError as error:
            notes.append(str(error))
            continue
        if not pools:
            continue
        with phase(f"{source.name}: {' and '.join(pools[0].streams)}, {len(pools)} pools of {size}"):
            figures |= retrieval.by_embeddings(pools, embed, source.name)
    if not figures:
        none = "no held-out document has both parts that are contrasted, or two halves of text"
        raise UserError(f"--what=retrieval: {'; '.join(notes) or f'{none}; prepare such, or leave it out'}")
    return Found(figures, asked, tuple(notes))


def _conditioning(model: LoadedModel, options, _) -> Found:
    most = options.documents or arguments.DOCUMENTS
    score = likelihood.make(model.sampler.params, model.config)
    modality = {name: s.modality for name, s in model.config.streams.items()}
    figures: dict[str, Figure] = {}
    notes = []
    for source in model.held_out.read_by(model.config.data):
        for (given, unit), documents in conditioning.by_direction(source, most, model.config, model.format).items():
            direction = (
                f"{'+'.join(dict.fromkeys(modality[stream] for stream in given))}/{modality[unit[0]]}/{source.name}"
            )
            pairs = conditioning.crossed(documents, model.config)
            unscored = [why for stream in unit if (why := likelihood.why_none(stream, model.config))]
            if len(unscored) == len(unit) or not pairs:
                notes.append(f"{direction}: {unscored[0] if unscored else 'no two prompts differ'}")
                continue
            with phase(f"{direction}: {len(pairs)} units after their own and another's prompt"):
                found = conditioning.figures(pairs, score, model.config, model.format)
            figures |= {f"{direction}/{name}": figure for name, figure in found.items()}
    if not figures:
        none = "no held-out document has a unit after something else, as a picture after its caption"
        raise UserError(f"--what=conditioning: {'; '.join(notes) or f'{none}; prepare such, or leave it out'}")
    return Found(figures, {"documents": most}, tuple(notes))


def _labels(model: LoadedModel, options, _) -> Found:
    """Of units whose document says what they show: a digit of the embedded data, elsewhere all of its text; and of
    units without a text from several sources, which of them they are from."""
    is_embedded = "embedded" in model.config.data.sources.values()
    names = {caption: str(embedded.named(caption)) for caption in captions.all_captions()}

    def label(words) -> str:
        said = model.codec.decode("text", words.data).strip()
        return names.get(said, "") if is_embedded else said

    both = [side.read_by(model.config.data) for side in (model.training, model.held_out)]
    of_sources = {
        learnt.name: [labels.labelled(side, model.config, model.format, label) for side in (learnt, asked)]
        for learnt, asked in zip(*both, strict=True)
    }
    of_sources["source"] = [labels.by_source(side, model.config, model.format) for side in both]
    figures: dict[str, Figure] = {}
    for name, sides in of_sources.items():
        for stream in sides[0].keys() & sides[1].keys():
            if len(set(sides[0][stream].labels.tolist())) < 2:
                continue  # there is nothing to tell
            with phase(f"{name}: what a probe tells of states; their program is compiled the first time"):
                found = labels.probed(
                    model.sampler.params, model.config, model.format, stream, *(side[stream] for side in sides)
                )
            modality = model.config.streams[stream].modality
            figures |= {f"{modality}/{name}/{key}": figure for key, figure in found.items()}
    if not figures:
        raise UserError(
            "--what=labels: no source has documents of one unit that has states and one stretch of text, which differ "
            "in what the text says, and no two sources have documents of a unit alone; leave it out"
        )
    return Found(figures)


def _judged(model: LoadedModel, options, _) -> Found:
    """Of digits drawn from prompts, and of held-out ones captioned, as `mot sample` does it."""
    draws = options.draws or arguments.DRAWS
    settings = sample.settings(arguments.Options(steps=options.steps), model.config)
    wanted = digits.Wanted(digits.PROMPTS, draws, draws, (), 0, False)
    _, record = digits.judged(model, wanted, settings)
    found = {}
    for name, count in (("image/drawn", record["drawn"]), ("text/read", record["read"])):
        right, asked = count["right"], count["asked"]
        found[name] = share([1] * right + [0] * (asked - right), 1 / len(digits.PROMPTS))
    found["classifier"] = Figure(record["judge"])
    return Found(found, {"draws": draws} | settings._asdict())


def _distances(model: LoadedModel, options, given: distances.Features | Callable | None) -> Found:
    """Of features that are given; else of held-out media and of those drawn in their place, by modality and source."""
    if isinstance(given, distances.Features):
        return Found(distances.figures(given), {"features": options.features})
    draws = options.draws or arguments.DRAWS
    settings = sample.settings(arguments.Options(steps=options.steps), model.config)
    length = sample.usual_length(model.config, model.format)
    sizes = sample.usual_sizes(model.config, model.format)
    figures: dict[str, Figure] = {}
    for modality in opened.draws(model.config, model.format):
        of_modality = given or _of_digits(model)
        for source, media in redrawn.media(model, modality, draws, settings, length, sizes).items():
            held = model.config.streams[opened.stream_of(model.config, modality)].holds
            decoded = [[model.codec.decode(held, data) for data in side] for side in media]
            found = _features(of_modality, decoded, options.features or "the digits' classifier")
            figures |= {f"{modality}/{source}/{name}": figure for name, figure in distances.figures(found).items()}
    return Found(figures, {"features": options.features or "digits", "draws": draws} | settings._asdict())


def _of_digits(model: LoadedModel) -> Callable[[list], np.ndarray]:
    """How much the classifier finds each picture like each digit, `[n, 10]`."""
    classifier = judge.trained(model.training)
    return lambda pictures: classifier.decision_function(np.stack([codecs.grey(x) for x in pictures]))


def _features(function: Callable, decoded: list[list], said: str) -> distances.Features:
    try:
        made = [np.asarray(function(side)) for side in decoded]
    except (Exception, SystemExit) as error:  # the user's own function may raise anything, and end the program
        raise UserError(f"--features={said}: it failed: {error!r:.300}; mend it") from error
    for side, found in zip(decoded, made, strict=True):
        if found.ndim != 2 or len(found) != len(side):
            raise UserError(
                f"--features={said}: it made {list(found.shape)} of {len(side)} media, not [{len(side)}, D]; mend it"
            )
    try:
        return distances.checked(*made, said)
    except ValueError as error:
        raise UserError(f"--features={error}") from None


def _given_features(options, config: Config, format: Format) -> distances.Features | Callable | None:
    """The arrays or the function that --features names; None where it names none."""
    if options.features is None:
        return None
    name, colon, function = options.features.partition(":")
    if colon:
        made = load.run(Path(name), options.features, "--features", "file of features").get(function)
        if not callable(made):
            raise UserError(
                f"--features={options.features}: {name} defines no function {function}; name one that it has"
            )
        return made
    try:
        with np.load(name, allow_pickle=False) as arrays:
            if absent := [key for key in distances.Features._fields if key not in arrays]:
                raise ValueError(f"{name}: it has no array {absent[0]}, but {', '.join(arrays)[:80] or 'none'}")
            return distances.checked(*(arrays[key] for key in distances.Features._fields), name)
    except Exception as error:  # a damaged archive raises any of a dozen kinds
        why = str(error) if str(error).startswith(name) else f"{name}: {reason(error)}"
        raise UserError(f"--features={why}; write it with np.savez(FILE, real=..., generated=...)") from None


def _questions(options, config: Config, format: Format) -> list[ranking.Question]:
    likelihood.refuse(config)
    return answers.read(options.answers, config, format, codecs.of(config))


ASKED = {"ranking": _questions, "distances": _given_features}
MEASURES = {"ranking": _ranking, "retrieval": _retrieval, "conditioning": _conditioning, "labels": _labels}
MEASURES |= {"harness": _harness}
MEASURES |= {"judged": _judged, "distances": _distances}


def show(kind: str, found: Found, title: str) -> None:
    """A table of figures; columns that none of them has are left out."""
    figures = found.figures.values()
    heads = {"95 % interval": "low", "chance": "chance", "of": "n"}
    heads = {head: key for head, key in heads.items() if any(getattr(f, key) is not None for f in figures)}
    names = Column(overflow="fold")  # a narrow screen cuts none off
    places = 4 if kind in refusals.WITHOUT_SAMPLES else 3
    table = Table(names, "held out" if kind == "loss" else kind, *heads, title=title, title_justify="left")
    for name, figure in found.figures.items():
        table.add_row(Text(name), *(_cell(figure, key, places) for key in ("value", *heads.values())))
    Console().print(table)
    for note in found.notes:
        print(note)


def _cell(figure: Figure, key: str, places: int) -> str:
    if (value := getattr(figure, key)) is None:
        return ""
    if key == "low":
        return f"{_number(figure.low, places)} to {_number(figure.high, places)}"
    return str(value) if key == "n" else _number(value, places)


def _number(x: float, places: int) -> str:
    return f"{x:.{places}f}" if abs(x) < LARGE else f"{x:.3g}"


def plain(found: Found) -> dict:
    """As JSON holds it: what is None is left out, and what is not finite is text."""

    def number(x: float) -> float | str:
        return x if np.isfinite(x) else str(x)

    figures = {
        name: {key: number(x) for key, x in figure._asdict().items() if x is not None}
        for name, figure in found.figures.items()
    }
    return {"asked": found.asked, "figures": figures, "notes": list(found.notes)}


def keep(path: Path, step: int, found: dict[str, Found]) -> None:
    """Into the run's folder; where nothing can be written there, that is told."""
    for kind, one in found.items():
        try:
            evaluated.write(path, step, kind, plain(one))
        except OSError as error:
            print(f"{path}: {kind} was not kept there ({reason(error)}); --out names another file", file=sys.stderr)
            return


if __name__ == "__main__":
    sys.exit(guarded(main))

"""Which question a sweep asked, and its answer: one sentence, one picture, and numbers with their intervals and runs.

A sweep of configs/sweeps.py says by its name what it asked (`sweep.json`); a user's own asks nothing that is known
here, and its page is the general one. What arm a run belongs to is read from its configuration, never from its name.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from mot.errors import UserError
from mot.model import flops
from mot.runs import swept

from . import best, competition, match, pictures, published, runs
from .competition import Estimate
from .match import Slope
from .runs import SlopeKey, TrainedRun

Groups = dict[str, list[TrainedRun]]
Slopes = dict[SlopeKey, Slope]
TOO_SHORT = "These runs are too short for a verdict, and what follows is a trial of the tools. "
FILE = "sweeps.py"  # of configs/, whose sweeps ask what is known here


class Sweep(NamedTuple):
    """A sweep's folder: what it is, and which runs it shall have."""

    folder: Path
    text: str  # FILE:NAME,arg
    name: str  # of a question in ASKED; empty where it asks something of its own
    rows: tuple[str, ...]  # the names of its runs


class Number(NamedTuple):
    """One number of an answer, with its 95 % interval over seeds (NaN with one) and the runs it is made of."""

    what: str
    group: str
    modality: str
    value: float
    low: float
    high: float
    bound: str  # as `match.Slope.bound`
    n: int  # pairs of runs, or runs
    published: str
    runs: tuple[str, ...]


class Picture(NamedTuple):
    draw: Callable[..., Any]
    args: tuple
    words: str


class Answer(NamedTuple):
    question: str
    sentence: str
    how: str  # how to read its numbers
    numbers: list[Number]
    picture: Picture | None = None  # the one that shows the answer; None: the page's own of matching slopes
    maps: list[Picture] = []  # heat maps, and a fit's pictures
    left_out: list[str] = []  # pairs that could not be made, and why


def of(found: Sequence[TrainedRun]) -> tuple[Sweep | None, str]:
    """The sweep in whose folder all these runs lie; None where there is none, with a caution where it is unreadable."""
    folders = {run.path.parent for run in found}
    if len(folders) != 1 or not (folder := folders.pop()) or not (folder / swept.FILE).exists():
        return None, ""
    return at(folder)


def at(folder: Path) -> tuple[Sweep | None, str]:
    """As `of`, of a folder that has a sweep.json."""
    try:
        saved = swept.saved(folder)
        file, name, _ = swept.parse(saved["sweep"])
    except UserError as error:
        return None, f"It is not known which question these runs were to answer, and what follows is general: {error}"
    is_shipped = file.replace("\\", "/").rpartition("/")[2] == FILE
    name = name if is_shipped and name in ASKED else ""
    return Sweep(folder, saved["sweep"], name, tuple(row[swept.NAME] for row in saved["rows"])), ""


def answer(sweep: Sweep | None, found: Sequence[TrainedRun], groups: Groups, slopes: Slopes) -> Answer | None:
    """What the runs say to the sweep's question; None where it is not known, or no run can say anything to it."""
    if sweep is None or not sweep.name or not groups:
        return None
    told = ASKED[sweep.name](found, groups, slopes)
    left = [f"{run.config.run.name}: {fault}" for run in found for fault in run.faults]
    points = [s.points for key, s in slopes.items() if key.kind == "train" and key.cost == "step"]
    short = TOO_SHORT if points and max(points) < match.LEAST else ""
    return told._replace(sentence=f"{short}{told.sentence}", left_out=[*left, *dict.fromkeys(told.left_out)])


def table(numbers: Sequence[Number]) -> pd.DataFrame:
    """A row a number, for CSV and Parquet."""
    rows = [number._replace(runs=" ".join(number.runs)) for number in numbers]
    return pd.DataFrame(rows, columns=Number._fields)


# --- which architecture ----------------------------------------------------------------------------------------------

IN_STEPS = "share of dense's steps"
IN_TRAINING = f"{IN_STEPS}, {runs.KINDS['train']} loss"
HOW_SLOPES = (
    "A share of dense's steps says how much of dense's training an architecture needed for dense's loss: 60 % is "
    "better than dense, 120 % is worse. It is a mean over pairs of runs with equal seeds and equal batches; brackets "
    "hold its 95 % interval. '>' and '<' are bounds: the run ended before, or was there when first measured."
)


def archs(found, groups: Groups, slopes: Slopes) -> Answer:
    numbers = _of_slopes(slopes, groups)
    question = "Which architecture ends the modalities' competition for parameters?"
    return Answer(question, _ranking(numbers), HOW_SLOPES, numbers)


def untying(found, groups: Groups, slopes: Slopes) -> Answer:
    numbers = _of_slopes(slopes, groups)
    told = _ranking(numbers)
    for modality in runs.modalities(groups):
        ratios = _ratios(groups, "mot_ffn", "mot_attn_ffn", modality)
        if ratios:
            numbers.append(_attention_too(groups, modality, ratios))
    question = "What must a modality have for itself: nothing, the FFN, attention too, or all?"
    how = f"{HOW_SLOPES} 'Attention apart, too' is what it then needs of the steps that the FFN apart alone needs."
    heat = _heat(slopes, groups, ("dense", "mot_ffn", "mot_attn_ffn", "mot"))
    return Answer(question, told, how, numbers, maps=[heat] if heat else [])


def towers_by_depth(found, groups: Groups, slopes: Slopes) -> Answer:
    numbers = _of_slopes(slopes, groups)
    question = "In which layers must a modality have its own: at both ends, between these, or in all?"
    heat = _heat(slopes, groups, ("dense", "mot_ends", "mot_middle", "mot"))
    return Answer(question, _ranking(numbers), HOW_SLOPES, numbers, maps=[heat] if heat else [])


def _ratios(groups: Groups, before: str, after: str, modality: str) -> list[float]:
    """Of each seed, which share of one architecture's steps another needs for its loss; [] where one is a bound."""
    if before not in groups or after not in groups:
        return []
    curves = [
        (one.curve("train", modality, "step"), other.curve("train", modality, "step"))
        for one in groups[before]
        for other in groups[after]
        if one.seeds == other.seeds and not runs.comparable(one, other)
    ]
    found = [match.slope(*pair) for pair in curves if all(pair)]
    return [] if any(s.bound for s in found) else [s.value for s in found]


def _attention_too(groups: Groups, modality: str, ratios: list[float]) -> Number:
    e = competition.mean(np.log(ratios).tolist())
    value, low, high = np.exp([e.value, e.low, e.high]).tolist()
    known = published.ATTENTION_TOO.get(modality, "")
    of = [*groups["mot_ffn"], *groups["mot_attn_ffn"]]
    return Number("attention apart, too", "mot_attn_ffn", modality, value, low, high, "", e.n, known, _names(of))


def leave_one_out(found, groups: Groups, slopes: Slopes) -> Answer:
    numbers = _of_slopes(slopes, groups, published.LEAVE_ONE_OUT)
    by = {(n.group, n.modality): n for n in numbers if n.what == IN_TRAINING}
    parts = []
    for modality in runs.modalities(groups):
        own, all_apart = by.get((f"loo_{modality}", modality)), by.get(("mot", modality))
        if own and all_apart:
            others = [n for (group, m), n in by.items() if group.startswith("loo_") and m == modality and n is not own]
            told = f"for {modality} {_percent(own)} of dense's steps were needed with {modality} apart alone"
            if others:
                told += f", {' or '.join(map(_percent, others))} with another apart in its place"
            told += f" and {_percent(all_apart)} with all apart"
            parts.append(told)
    question = "Which modality suffers from sharing parameters, and which makes the others suffer?"
    order = ("dense", *sorted(label for label in groups if label.startswith("loo_")), "mot")
    picture = _heat(slopes, groups, order, published.LEAVE_ONE_OUT)
    told = _sentences(parts) if parts else _ranking(numbers)
    return Answer(question, told, HOW_SLOPES, numbers, picture)


def routing(found, groups: Groups, slopes: Slopes) -> Answer:
    numbers = _of_slopes(slopes, groups)
    parts = []
    total = {label: flops.total_parameters(group[0].config) for label, group in groups.items()}
    for modality in runs.modalities(groups):
        of = {n.group: n for n in numbers if n.modality == modality and n.what == IN_TRAINING}
        learned = [n for label, n in of.items() if label != "mot" and _routes(groups[label][0])]
        if "mot" not in of or not learned:
            continue
        alike = [n for n in learned if abs(total[n.group] / total["mot"] - 1) < 0.1]
        told = f"for {modality}, towers by modality needed {_percent(of['mot'])} of dense's steps; of learned routers"
        told += f" {_best(learned).group} was best, with {_percent(_best(learned))}"
        if alike:
            told += f", and {_best(alike).group} of those with as many parameters in all, with {_percent(_best(alike))}"
        parts.append(told)
    question = "Does a router that learns beat towers that know the modality?"
    return Answer(question, _sentences(parts) if parts else _ranking(numbers), HOW_SLOPES, numbers)


def _routes(run: TrainedRun) -> bool:
    return any(e.experts for e in (*run.config.attn.values(), *run.config.ffn.values()))


def _of_slopes(slopes: Slopes, groups: Groups, known: dict[str, dict[str, float]] | None = None) -> list[Number]:
    """Matching slopes in steps, on training and held-out loss; `known` are published ones of this very question."""
    numbers = []
    pairs = {label: runs.partners(groups, label)[0] for label in dict.fromkeys(key.group for key in slopes)}
    for key, slope in slopes.items():
        if key.cost == "step" and key.half_life == match.HALF_LIFE and key.rates == "equal":
            told = (known or {}).get(key.group, {}).get(key.modality)
            beside = f"{told:g}" if told else "" if known else in_print(groups[key.group][0], key.modality)
            numbers.append(
                Number(
                    f"{IN_STEPS}, {runs.KINDS[key.kind]} loss",
                    key.group,
                    key.modality,
                    *(slope.value, slope.low, slope.high, slope.bound, slope.seeds),
                    beside if key.kind == "train" else "",
                    _names(run for pair in pairs[key.group] for run in pair),
                )
            )
    return numbers


def in_print(run: TrainedRun, modality: str) -> str:
    """The range of published slopes of a run's architecture; empty where there is none."""
    values = published.of(run.config).slopes.get(run.arch, {}).get(modality)
    return f"{min(values):g} to {max(values):g}" if values else ""


def _names(of) -> tuple[str, ...]:
    return tuple(dict.fromkeys(run.config.run.name for run in of))


def _ranking(numbers: Sequence[Number]) -> str:
    """By modality the architectures in order of the steps they needed."""
    parts = []
    trained = [n for n in numbers if n.what == IN_TRAINING]
    for modality in dict.fromkeys(n.modality for n in trained):
        ordered = sorted((n for n in trained if n.modality == modality), key=_rank)
        told = [f"{n.group} {_percent(n)}" for n in ordered[:RANKED]]
        told += [f"{len(ordered) - RANKED} others more"] if len(ordered) > RANKED else []
        parts.append(f"dense's {modality} loss took {_listed(told)} of dense's steps")
    pairs = min((n.n for n in trained), default=0)
    of = "one seed: no verdict" if pairs == 1 else f"95 % intervals over {pairs} pairs of runs in brackets"
    return (
        _sentences([*parts[:-1], f"{parts[-1]} ({of})"]) if parts else "No run here can be compared with a dense one."
    )


RANKED = 4  # architectures that a sentence names for a modality


def _rank(number: Number) -> float:
    return number.value if np.isfinite(number.value) else np.inf


def _best(numbers: Sequence[Number]) -> Number:
    return min(numbers, key=_rank)


def _percent(n: Number) -> str:
    if not np.isfinite(n.value):
        return "an unknown share"
    sign = {">": "more than ", "<": "less than "}.get(n.bound, "")
    spread = f" [{100 * n.low:.0f}, {100 * n.high:.0f}]" if n.n > 1 and not n.bound else ""
    return f"{sign}{100 * n.value:.0f} %{spread}"


def _listed(parts: Sequence[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"


def _sentences(parts: Sequence[str]) -> str:
    return "; ".join([parts[0][0].upper() + parts[0][1:], *parts[1:]]) + "." if parts else ""


def _heat(slopes: Slopes, groups: Groups, order: Sequence[str], known=None) -> Picture | None:
    """A map of architectures by modalities, and the published one beside it; None where it would have one row."""
    modalities = runs.modalities(groups)
    cells = {}
    for label in order:
        of = {m: slopes.get(SlopeKey(label, m, "train", "step", match.HALF_LIFE)) for m in modalities}
        if label in groups and (label == "dense" or any(of.values())):
            cells[label] = {m: s.value if s else 1.0 if label == "dense" else np.nan for m, s in of.items()}
    if len(cells) < 2:
        return None
    words = "Shares of dense's steps on training loss, towers by modality: 1 is dense, less is better."
    if not known:
        return Picture(pictures.heat, ({"ours": cells},), words)
    maps = {"ours": cells, "published": {label: known[label] for label in sorted(known, key=_dense_to_mot)}}
    return Picture(pictures.heat, (maps,), f"{words} Published: {published.LEFT_OUT_IN}, far beyond these sizes.")


def _dense_to_mot(label: str) -> tuple:
    return label == "mot", label != "dense", label


# --- alone and joint -------------------------------------------------------------------------------------------------


def mixture(found, groups: Groups, slopes: Slopes) -> Answer:
    arms = _arms(run for group in groups.values() for run in group)
    numbers, left, each = [], [], {}
    for arch in dict.fromkeys(arch for arch, _ in arms):
        joint = next((rs for (a, _), rs in arms.items() if a == arch and rs[0].is_joint), [])
        for (of, trained), solo in arms.items():
            if of == arch and len(trained) == 1 and joint:
                modality = trained[0]
                pairs, why = competition.pairs(solo, joint, (".loss_weight",))
                left += why
                each[arch, modality] = _excesses(pairs, modality, left)
                numbers += _estimated("tax", arch, modality, each[arch, modality], pairs)
        if not joint:
            left.append(f"{arch}: no faultless joint run, so nothing is known of what it loses or gains")
    numbers += _relieved(each, arms)
    taxes = [n for n in numbers if n.what == "tax"]
    question = "What does a modality lose, or gain, because others are trained with it?"
    how = (
        "The tax is the held-out loss of the joint run minus that of the run that trained the modality alone, after "
        "equally many of its tokens, on the same batches, in the units of the loss. Above 0 the modalities compete; "
        "below 0 they help one another (synergy). Brackets hold 95 % intervals over pairs of runs with equal seeds."
    )
    drawn = Picture(pictures.intervals, (taxes, "joint minus alone, held-out loss"), "Right of the line: competition.")
    return Answer(question, _taxed(taxes, numbers), how, numbers, drawn if taxes else None, left_out=left)


def _arms(of) -> dict[tuple[str, tuple[str, ...]], list[TrainedRun]]:
    """Runs by architecture and by the modalities that they trained."""
    arms: dict[tuple[str, tuple[str, ...]], list[TrainedRun]] = {}
    for run in of:
        arms.setdefault((run.arch, tuple(run.trained)), []).append(run)
    return arms


def _excesses(pairs, modality: str, left: list[str], source: str = "") -> dict[tuple[int, int], float]:
    """By seeds, what the second run of a pair has above the first; `left` gets the pairs that have no such curves."""
    found = {}
    for solo, joint in pairs:
        value = competition.excess(solo, joint, modality, source)
        if np.isfinite(value):
            found[solo.seeds] = value
        else:
            names = f"{solo.config.run.name} and {joint.config.run.name}"
            left.append(f"{names}: one has fewer than two held-out losses of {source or modality}")
    return found


def _estimated(what: str, group: str, modality: str, values: dict, pairs) -> list[Number]:
    if not values:
        return []
    names = _names(run for pair in pairs if pair[0].seeds in values for run in pair)
    return [_number(what, group, modality, competition.mean([*values.values()]), names)]


def _number(what: str, group: str, modality: str, e: Estimate, names: tuple[str, ...], known: str = "") -> Number:
    return Number(what, group, modality, e.value, e.low, e.high, "", e.n, known, names)


def _relieved(each: dict, arms) -> list[Number]:
    """How much of dense's tax another architecture takes away, by seeds that both have."""
    numbers = []
    for (arch, modality), mine in each.items():
        dense = each.get(("dense", modality), {})
        if arch == "dense" or not (both := [seeds for seeds in mine if seeds in dense]):
            continue
        e = competition.mean([dense[seeds] - mine[seeds] for seeds in both])
        of = [r for (a, trained), rs in arms.items() if a in ("dense", arch) and modality in trained for r in rs]
        numbers.append(
            _number("of dense's tax it takes away", arch, modality, e, _names(r for r in of if r.seeds in both))
        )
    return numbers


def _taxed(taxes: Sequence[Number], numbers: Sequence[Number]) -> str:
    if not taxes:
        return "No pair of runs, one alone and one joint, can be compared; what was left out is below."
    parts = []
    for arch in dict.fromkeys(n.group for n in taxes):
        told = [f"{n.modality} {_paid(n)}" for n in taxes if n.group == arch]
        parts.append(f"in {arch} {_listed(told)}")
    n = min(n.n for n in taxes)
    of = f" (in brackets 95 % intervals over {n} pairs of runs)" if n > 1 else ""
    return f"When all are trained together, {'; '.join(parts)}{of}."


def _paid(n: Number) -> str:
    """`pays 0.120 [0.080, 0.160]`, `gains ...`, whose interval is of the gain, or that neither is clear."""
    low, high = (n.low, n.high) if n.value > 0 else (-n.high, -n.low)
    spread = f" [{low:.3f}, {high:.3f}]" if n.n > 1 else " (one seed: no verdict)"
    word = "pays" if n.value > 0 else "gains"
    if n.n > 1 and n.low <= 0 <= n.high:
        return f"neither clearly pays nor gains [{n.low:+.3f}, {n.high:+.3f}]"
    return f"{word} {abs(n.value):.3f}{spread}"


def caption_shift(found, groups: Groups, slopes: Slopes) -> Answer:
    whole = [run for group in groups.values() for run in group]
    most = max((len(run.config.data.sources) for run in whole), default=0)
    numbers, left = [], []
    for arch in dict.fromkeys(run.arch for run in whole):
        of = [run for run in whole if run.arch == arch]
        joint = [run for run in of if run.is_joint]
        captions = [run for run in of if run not in joint and len(run.config.data.sources) == most]
        text = [run for run in of if run not in joint and len(run.config.data.sources) < most]
        data = (".loss_weight", ".budget", "data.sources", "data.shares", "data.length")
        for what, one, other, apart in (
            (CAPTIONS, text, captions, data),
            (IMAGES, captions, joint, (".loss_weight",)),
        ):
            if not one or not other:
                left.append(f"{arch}: no faultless run of an arm, so {what} is not known")
                continue
            pairs, why = competition.pairs(one, other, apart)
            left += why
            for source in sorted(
                one[0].config.data.sources if one is text else text[0].config.data.sources if text else ()
            ):
                values = _excesses(pairs, "text", left, source)
                numbers += _estimated(f"{what}, on {source}", arch, "text", values, pairs)
    question = "Is it images that text suffers from, or the language of their captions?"
    how = (
        "Held-out loss of the text's own sources, in nats. 'What captions cost' is the arm that also reads captions "
        "minus the arm of text alone, after equally many tokens of text; 'what images cost' is the joint arm minus the "
        "arm that reads the same documents and trains on text alone. Above 0 text suffers. Brackets hold 95 % "
        "intervals over pairs of runs with equal seeds. The first contrast is of other documents, as it asks for them, "
        "also of held-out ones."
    )
    drawn = Picture(
        pictures.intervals, (numbers, "held-out text loss more than without (nats)"), "Right of the line: text suffers."
    )
    return Answer(question, _shifted(numbers), how, numbers, drawn if numbers else None, left_out=left)


CAPTIONS, IMAGES = "what captions cost", "what images cost"


def _shifted(numbers: Sequence[Number]) -> str:
    if not numbers:
        return "No two arms can be compared; what was left out is below."
    parts = []
    for arch in dict.fromkeys(n.group for n in numbers):
        told = []
        for n in (n for n in numbers if n.group == arch):
            what = "captions" if n.what.startswith(CAPTIONS) else "images"
            spread = f" [{n.low:+.3f}, {n.high:+.3f}]" if n.n > 1 else " (one seed: no verdict)"
            clear = "" if n.n == 1 or n.low > 0 or n.high < 0 else ", not clearly different from 0"
            told.append(f"{what} cost {n.value:+.3f} nats{spread} on {n.what.rpartition(' ')[2]}{clear}")
        parts.append(f"in {arch} {_listed(told)}")
    return f"Of text's loss, {'; '.join(parts)}."


# --- sizes and budgets -----------------------------------------------------------------------------------------------


def ladder(found, groups: Groups, slopes: Slopes) -> Answer:
    """Slopes by size. A law that is fitted to them is one more picture of `maps`."""
    numbers, sizes = [], {}
    for number in _of_slopes(slopes, groups):
        pairs = runs.partners(groups, number.group)[0]
        size = flops.total_parameters(pairs[0][0].config)
        arch = groups[number.group][0].arch
        name = f"{arch} at {short(size)}"
        sizes[name] = (arch, size)
        numbers.append(number._replace(group=name))
    numbers.sort(key=_by_size(sizes))
    trained = [n for n in numbers if n.what == IN_TRAINING]
    parts = []
    for arch in dict.fromkeys(arch for arch, _ in sizes.values()):
        for modality in runs.modalities(groups):
            of = [n for n in trained if sizes[n.group][0] == arch and n.modality == modality]
            if len(of) > 1:
                told = f"{short(sizes[of[0].group][1])} to {short(sizes[of[-1].group][1])} parameters"
                went = f"{_percent(of[0])} to {_percent(of[-1])} of dense's steps for {modality}"
                parts.append(f"from {told}, {arch} went from {went}")
    question = "Does an architecture's gain last as models grow?"
    drawn = Picture(
        pictures.by_size,
        (trained, sizes, published.of(_first(groups).config)),
        "Grey: the published range over its ladder.",
    )
    told = _sentences(parts) if parts else f"One size alone says nothing of growth. {_ranking(numbers)}"
    return Answer(question, told, HOW_SLOPES, numbers, drawn if trained else None)


def _by_size(sizes):
    def key(number: Number):
        return number.what, sizes[number.group][0], number.modality, sizes[number.group][1]

    return key


def _first(groups: Groups) -> TrainedRun:
    return next(iter(groups.values()))[0]


def isoflop(found, groups: Groups, slopes: Slopes) -> Answer:
    """Losses by size at equal model FLOPs. A law that is fitted to them is one more picture of `maps`."""
    table: dict[tuple[float, str, str], dict[int, list[TrainedRun]]] = {}
    whole = [run for group in groups.values() for run in group]
    for run, budget in zip(whole, _budgets([float(run.series("train", "flops")[1][-1]) for run in whole]), strict=True):
        for modality in run.trained:
            place = table.setdefault((budget, run.arch, modality), {})
            place.setdefault(flops.total_parameters(run.config), []).append(run)
    numbers, left, drawn = [], [], {}
    for (budget, arch, modality), by_size in sorted(table.items()):
        ends = {size: _ends(of, modality) for size, of in sorted(by_size.items())}
        ends = {size: values for size, values in ends.items() if values}
        if not ends:
            continue
        drawn[budget, arch, modality] = {size: float(np.mean(values)) for size, values in ends.items()}
        least = min(ends, key=lambda size: np.mean(ends[size]))
        at_edge = least in (min(ends), max(ends))
        if at_edge:
            left.append(f"{arch}, {modality}, {budget:g} FLOPs: {AT_EDGE}")
        e = competition.mean(ends[least])
        what = f"least held-out loss at {budget:.3g} FLOPs"
        number = _number(what, f"{arch} at {short(least)}", modality, e, _names(by_size[least]))
        numbers.append(number._replace(bound="<" if at_edge else ""))
    question = "At equal model FLOPs, which architecture is best, and how large should it be?"
    how = (
        "Each budget of model FLOPs was spent on models of several sizes. The least held-out loss is told with its "
        "size (all parameters); '<' marks one at the edge of the sizes: the true one lies lower, at a size not run. "
        "No line is fitted through fewer sizes than a parabola needs."
    )
    picture = Picture(pictures.isoflop, (drawn,), "A line is an architecture at a budget: held-out loss against size.")
    return Answer(question, _cheapest(numbers), how, numbers, picture if drawn else None, left_out=left)


def _budgets(spent: Sequence[float]) -> list[float]:
    """Of model FLOPs that runs came to, the most of those that lie near: a budget pays for whole steps alone."""
    order = sorted(set(spent), reverse=True)
    budgets = {}
    for value in order:
        usual = next(reversed(budgets.values()), np.inf)
        budgets[value] = usual if value > 0.75 * usual else value
    return [budgets[value] for value in spent]


AT_EDGE = "the least loss lies at the edge of the sizes that were run, so the best size is not known"


def _ends(of: Sequence[TrainedRun], modality: str) -> list[float]:
    """Last held-out losses."""
    curves = [run.curve("eval", modality, "step") for run in of]
    return [float(curve.loss[-1]) for curve in curves if curve is not None]


def _cheapest(numbers: Sequence[Number]) -> str:
    if not numbers:
        return "No run has a held-out loss that can be told."
    last = numbers[-1].what
    parts = []
    for modality in dict.fromkeys(n.modality for n in numbers):
        of = sorted((n for n in numbers if n.what == last and n.modality == modality), key=_rank)
        told = [f"{n.value:.3f} by {n.group}{' (at the edge of the sizes)' * bool(n.bound)}" for n in of]
        parts.append(f"for {modality} {_listed(told)}")
    return f"The {last} is {'; '.join(parts)}."


def search(found, groups: Groups, slopes: Slopes) -> Answer:
    tried = best.searches(list(found))
    numbers, parts = [], []
    question = "Which architecture is best when each has its own best rate?"
    how = (
        "Each architecture was tried at the same points. The loss of the best of n points is a mean over all draws of "
        "n; brackets hold four fifths of the draws. Compare at equal n."
    )
    for modality in runs.modalities(groups) if tried else ():
        of = {arch: one.losses(modality) for arch, one in tried.items()}
        curves = {arch: best.best_of(losses) for arch, losses in of.items() if np.isfinite(losses).any()}
        for arch, curve in curves.items():
            half = max(1, len(curve.n) // 2)
            values = (curve.mean[half - 1], curve.low[half - 1], curve.high[half - 1])
            names = _names(run for point in tried[arch].points for run in point)
            numbers.append(
                Number(f"held-out loss, best of {half}", arch, modality, *map(float, values), "", half, "", names)
            )
            if arch != "dense" and "dense" in curves:
                parts.append(f"for {modality} {arch} is {best.told(curve, curves['dense'])}")
    if not numbers:
        return Answer(
            question, f"Fewer than {best.LEAST} points of an architecture are whole: no best of n is told.", how, []
        )
    curves = {arch: best.best_of(one.losses()) for arch, one in tried.items()}
    colour = pictures.colours({arch: one.best() for arch, one in tried.items()})
    drawn = Picture(pictures.best_of, (curves, colour, "held-out loss over all modalities"), "The best of n points.")
    return Answer(question, _sentences(parts) or "Only one architecture was searched.", how, numbers, drawn)


def short(n: float) -> str:
    """Three significant digits: 67.2 K, 1.23 M."""
    for size, letter in ((1e12, " T"), (1e9, " B"), (1e6, " M"), (1e3, " K")):
        if n >= 0.9995 * size:
            scaled = n / size
            return f"{scaled:.{max(0, 2 - int(np.floor(np.log10(scaled * 1.0005))))}f}{letter}"
    return f"{n:.3g}"


# The sweeps of configs/sweeps.py, by name.
ASKED: dict[str, Callable[[Sequence[TrainedRun], Groups, Slopes], Answer]] = {
    "archs": archs,
    "untying": untying,
    "towers_by_depth": towers_by_depth,
    "leave_one_out": leave_one_out,
    "routing": routing,
    "mixture": mixture,
    "caption_shift": caption_shift,
    "ladder": ladder,
    "isoflop": isoflop,
    "search": search,
}

"""One page that answers: how many of the dense model's steps did each architecture need, modality by modality?"""

import base64
import json
import os
import re
import statistics
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

import jinja2
import numpy as np
import pandas as pd
from rich.console import Console
from rich.table import Table

from mot.config import differences
from mot.errors import UserError
from mot.files import is_bucket, write_atomically
from mot.model import flops
from mot.runs import states, swept

from . import best, facts, match, pictures, published, questions, runs, sections, within
from .best import BestOf, Search
from .match import Slope
from .runs import TrainedRun

HEADLINE = ("train", "step", match.HALF_LIFE, "equal")  # the slopes that the page begins with
MARK = '<meta name="generator" content="mot report">'
STAGES = 3  # checkpoints whose samples are shown
MOST_ANSWERS = 8  # that are one sentence
LONGER = 2  # runs beside the reported ones whose samples are shown


Drawn = dict[str, dict[str, bytes]]  # PNGs by name and theme


class Page(NamedTuple):
    sentence: str
    html: str
    drawn: Drawn
    tables: dict[str, pd.DataFrame]


def write(found: list[TrainedRun], out: Path, watched: Path | None = None) -> str:
    """`report.html` with its pictures and tables beside it, in the folder `out`; returns the headline sentence.

    Where the runs are a sweep's, the page begins with the answer to what it asked (`questions`). `watched` is the
    folder of a sweep that runs, or has not yet begun: the state of each of its rows comes first.
    """
    _refuse_foreign(out / "report.html")
    page = _page(found, out, watched)
    # All is made; only now is anything written.
    out.mkdir(parents=True, exist_ok=True)
    for name, themes in page.drawn.items():
        write_atomically(out / f"{name}.png", themes["light"])
    for name, frame in page.tables.items():
        _write_table(out / name, frame)
    write_atomically(out / "report.html", page.html)
    return page.sentence


def _page(every_run: list[TrainedRun], out: Path, watched: Path | None) -> Page:
    tried = best.searches(every_run)
    found = best.without_the_rest(every_run, tried)
    groups = runs.sound(found)
    slopes = runs.slopes(groups)
    sweep, caution = questions.at(watched) if watched else questions.of(every_run)
    told = questions.answer(sweep, every_run, groups, slopes)
    headline = _headline(slopes, tried)
    shown = _shown(groups)
    colour = pictures.colours(groups) | pictures.colours(shown)
    probed = within.table(groups)
    # What the page says, by the template's names, and its pictures by theirs.
    parts: list[tuple[dict, Drawn]] = [
        _of_answer(told, _main(slopes, headline, shown), shown, colour),
        _of_curves(shown, colour),
        _of_experts(shown),
        _of_searches(tried, groups),
        _of_unfinished(every_run),
        _of_layers(probed[probed.group.isin(list(shown))], colour),
        _of_sections(groups, shown, colour),
        (_of_states(sweep, watched), {}),
        (_of_groups(shown, len(groups) - len(shown)), {}),
        (_of_runs(found, groups, out), {}),
        (_of_slopes(groups, slopes, tried), {}),
    ]
    drawn = {name: png for _, of in parts for name, png in of.items()}
    context = {name: value for of, _ in parts for name, value in of.items()}
    sentence = told.sentence if told else _sentence(slopes, headline)
    html = _template().render(
        sentence=sentence,
        title=told.question if told else _title(groups, slopes),
        cautions=[*filter(None, [caution]), *facts.overfits(groups)],
        claims=published.CLAIMS.get(sweep.name, ()) if sweep else (),
        pictures={name: {t: _inline(png) for t, png in themes.items()} for name, themes in drawn.items()},
        colour=colour,
        **context,
    )
    tables = runs.tables(every_run, slopes)._asdict() | ({"probes": probed} if len(probed) else {})
    return Page(sentence, html, drawn, tables | ({"answer": questions.table(told.numbers)} if told else {}))


MOST_GROUPS = 12  # that one picture, and one table's columns, can show


def _shown(groups) -> dict[str, list[TrainedRun]]:
    """The groups in pictures: all, or where they are too many of each architecture the one of the least loss."""
    if len(groups) <= MOST_GROUPS:
        return groups
    losses = {label: runs.held_out(group) for label, group in groups.items()}
    ordered = sorted(groups, key=lambda label: (not np.isfinite(losses[label]), losses[label]))
    best_of: dict[str, str] = {}
    for label in ordered:
        best_of.setdefault(groups[label][0].arch, label)
    chosen = list(best_of.values())[:MOST_GROUPS]
    return {label: group for label, group in groups.items() if label in chosen}


def _main(slopes, headline, groups) -> dict[str, dict[str, Slope]]:
    """By group and modality the slopes that the page begins with."""
    main: dict[str, dict[str, Slope]] = {}
    for key, slope in slopes.items():
        if key[2:] == headline and key.group in groups:
            main.setdefault(key.group, {})[key.modality] = slope
    return main


def _of_answer(told: questions.Answer | None, main, groups, colour) -> tuple[dict, Drawn]:
    """The answer's numbers and its maps; and the page's first picture: the answer's own, or matching slopes."""
    drawn = {}
    if told and told.picture:
        drawn["answer"] = pictures.both(told.picture.draw, *told.picture.args)
    elif main:
        known = published.of(groups[next(iter(main))][0].config)
        drawn["headline"] = pictures.both(pictures.headline, main, colour, known)
    maps = {f"map_{i}": picture for i, picture in enumerate(told.maps if told else ())}
    drawn |= {name: pictures.both(picture.draw, *picture.args) for name, picture in maps.items()}
    rows = _answer_rows(told) if told else {}
    printed = bool(told) and any(n.published for n in told.numbers)
    return {"answer": told, "answers": rows, "maps": maps, "printed": printed}, drawn


def _of_curves(groups, colour) -> tuple[dict, Drawn]:
    """By modality, the costs against which its losses are drawn, each with its picture's name."""
    costs = ("step",) if _cost_alike(groups) else ("step", "flops")
    names = {m: [(cost, _curves(m, cost)) for cost in costs] for m in runs.modalities(groups)}
    drawn = {
        name: pictures.both(pictures.curves, groups, colour, modality, cost)
        for modality, of in names.items()
        for cost, name in of
    }
    return {"curves": names}, drawn


def _of_groups(shown, hidden: int) -> dict:
    """What has a column of each group."""
    measured = measures(shown) if shown else []
    return dict(
        hidden=hidden,
        columns=list(shown),
        costs=measured,
        mfu=any(what == "MFU" for what, _ in measured),
        differences=_differences(shown),
    )


def _of_states(sweep: questions.Sweep | None, watched: Path | None) -> dict:
    """How far the rows of a sweep are: all of them, and of how many what is true; nothing where all have ended."""
    if sweep is None:
        return {}
    known = {name: states.of(sweep.folder / name) for name in swept.names(sweep.folder)}
    counts = Counter(state.name for state in known.values())
    if not watched and not set(counts) - set(states.ENDED):
        return {}
    told = f"{len(known)} runs: {', '.join(f'{n} {name}' for name, n in counts.items())}"
    rows = [
        {
            "name": name,
            "state": state.name,
            "step": f"{state.step:,} of {state.steps:,}" if state.step else "",
            "losses": ", ".join(f"{m} {loss:.3f}" for m, loss in state.losses.items() if isinstance(loss, float)),
            "left": "" if state.seconds_left is None else _duration(state.seconds_left),
            "why": state.why,
        }
        for name, state in known.items()
    ]
    now = datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    return {"counts": told, "states": rows if watched else [], "made": now}


def _of_unfinished(every_run) -> tuple[dict, Drawn]:
    """Pictures of runs that are sound so far and not at their end; they are in no mean, slope or verdict."""
    begun = [run for run in every_run if run.faults and all(fault.startswith("unfinished") for fault in run.faults)]
    groups = _shown(runs.grouped(begun))
    colour = pictures.colours(groups)
    drawn = {}
    for modality in runs.modalities(groups):
        if any(run.curve(kind, modality, "step") for run in begun for kind in runs.KINDS):
            drawn[f"unfinished_{modality}"] = pictures.both(pictures.curves, groups, colour, modality, "step")
    return {"unfinished": list(drawn)}, drawn


def _of_layers(probed: pd.DataFrame, colour) -> tuple[dict, Drawn]:
    """Of what probes measured: its title, how to read it, and its pictures, by layer and over training."""
    shown, drawn = [], {}
    for kind in within.kinds(probed):
        title, reads, even = within.KINDS[kind]
        name = f"where_{_file(kind)}"
        by_layer = within.by_layer(probed, kind)
        over = within.over_training(probed, kind) if kind in within.MOVES else {}
        steps = within.steps(probed, kind)
        drawn[name] = pictures.both(pictures.lines, by_layer, within.layers(probed, kind), "layer", even, colour)
        names = [(name, f"by layer, at the newest step measured ({steps[-1]:,})")]
        if over:
            drawn[f"{name}_steps"] = pictures.both(pictures.lines, over, steps, "step", even, colour)
            names.append((f"{name}_steps", "over training, a mean over layers"))
        shown.append({"title": title, "reads": reads, "names": names})
    return {"where": shown}, drawn


def _of_sections(groups, shown, colour) -> tuple[dict, Drawn]:
    found = sections.of(groups, shown, colour)
    return {"sections": found}, {name: png for one in found for name, (_, png) in one.pictures.items()}


def _of_experts(groups) -> tuple[dict, Drawn]:
    """By group the names of its pictures of experts' loads, and these."""
    names, drawn = {}, {}
    for label, group in groups.items():
        panels = pictures.panels(runs.loads(group[0]))
        names[label] = [f"experts_{_file(label)}_{i}" for i in range(len(panels))]
        drawn |= {
            name: pictures.both(pictures.experts, *panel) for name, panel in zip(names[label], panels, strict=True)
        }
    return {"experts": {label: of for label, of in names.items() if of}}, drawn


def _of_runs(found, groups, out) -> dict:
    """What the page says of the runs themselves."""
    notes = _notes(found, groups)
    listed = [(label, run) for label, group in runs.grouped(found).items() for run in group]
    return dict(
        facts=facts.facts(groups),
        command=facts.COMMAND,
        architectures=facts.architectures(groups),
        shared=facts.shared(groups),
        groups=list(groups),
        leaking=[label for label, group in groups.items() if not group[0].config.causal],
        vectors=any("squared" in runs.unit(groups, m) for m in runs.modalities(groups)),
        seeds=max(map(len, groups.values()), default=0),
        kinds=SPENT,
        spent=_spent(found),
        samples=_samples(groups),
        longer=_longer(found, out),
        runs=[_entry(run, label, out, notes) for label, run in listed],
        numbered={run.config.run.name: i for i, (_, run) in enumerate(listed, 1)},
    )


def _of_slopes(groups, slopes, tried) -> dict:
    """What the page says of matching slopes."""
    known = {k.source: k for group in groups.values() for k in [published.of(group[0].config)]}
    return dict(
        slopes=_slope_rows(slopes, groups),
        points=_points(tried),
        best=_best_rows(slopes, groups, tried),
        half_lives=_half_life_rows(slopes),
        definition=match.__doc__.split("\n\n")[1],
        begins=_begins(groups),
        published=list(known.values()),
    )


def _write_table(path: Path, frame: pd.DataFrame) -> None:
    """As CSV, and as Parquet, which keeps types."""
    write_atomically(path.with_suffix(".csv"), frame.to_csv(index=False))
    mixed = [name for name in frame if frame[name].map(type).nunique() > 1 and frame[name].dtype == object]
    write_atomically(path.with_suffix(".parquet"), frame.astype(dict.fromkeys(mixed, "string")).to_parquet(index=False))


def _answer_rows(told: questions.Answer) -> dict[str, list[dict]]:
    """By what a number is of, a row a (group, modality)."""
    rows: dict[str, list[dict]] = {}
    for n in told.numbers:
        row = {"group": n.group, "modality": n.modality, "cell": _told(n), "n": n.n, "published": n.published}
        rows.setdefault(n.what, []).append(row | {"runs": n.runs})
    return rows


def _told(n: questions.Number) -> str:
    if not np.isfinite(n.value):
        return "not known"
    spread = f" [{n.low:.3f}, {n.high:.3f}]" if np.isfinite([n.low, n.high]).all() and not n.bound else ""
    return f"{n.bound} {n.value:.3f}{spread}".strip()


def _curves(modality: str, cost: str) -> str:
    return f"curves_{modality}" if cost == "step" else f"curves_{modality}_{cost}"


def _file(label: str) -> str:
    return re.sub(r"[^A-Za-z0-9]+", "_", label)


def _refuse_foreign(file: Path) -> None:
    if file.exists() and not (file.is_file() and MARK in file.read_text(errors="replace", encoding="utf-8")):
        raise UserError(f"{file} was not written by mot report and is not overwritten; choose another --out")


def _notes(found, groups) -> dict[Path, list[str]]:
    """What a reader must know of each run, by path."""
    notes = {run.path: [*(f"left out: {fault}" for fault in run.faults), *run.notes] for run in found}
    for label, group in groups.items():
        pairs, why = runs.partners(groups, label)
        paired = {o.path for _, o in pairs}
        for run in group:
            if run.arch != "dense" and run.path not in paired:
                notes[run.path].append(why or "no dense partner with the same seeds")
            if len(group) == 1:
                notes[run.path].append("one seed: no interval, no band")
    return notes


def _title(groups, slopes) -> str:
    """The question where there is an answer to it, else what the runs are of."""
    if slopes:
        return "How much do modalities compete for one model's parameters, and which architecture ends it?"
    return "Runs" + (f" of {', '.join(dict.fromkeys(group[0].arch for group in groups.values()))}" if groups else "")


def _begins(groups) -> str:
    """Where the curves of losses begin, which is the part that slopes are read from."""
    logged = [run.series("train", "loss")[0] for group in groups.values() for run in group]
    last = sorted({steps[-1] for steps in logged if len(steps)})  # a run that contrasts alone has no such loss
    return " or ".join(f"{-(-int(step) // 4):,}" for step in last)


def _headline(slopes, tried) -> tuple:
    """HEADLINE; of searches best against best, since dense at another one's best point is dense at its worse."""
    at_best = (*HEADLINE[:3], "best")
    return at_best if tried and any(key[2:] == at_best for key in slopes) else HEADLINE


def _sentence(slopes, headline=HEADLINE) -> str:
    """The answer, for whoever reads one line."""
    keys = [key for key in slopes if key[2:] == headline]
    if not keys:
        return "No run here can be compared with a dense one; the page says of each run why."
    if len(keys) > MOST_ANSWERS:
        return _tally(slopes, keys)
    return "; ".join(_answer(slopes, key) for key in keys) + "."


def _tally(slopes, keys) -> str:
    """Of many groups, how many are ahead and behind: of each a sentence is no answer any more."""
    parts = []
    for modality in dict.fromkeys(key.modality for key in keys):
        found = Counter(verdict(slopes[key]) for key in keys if key.modality == modality)
        told = ", ".join(f"{n} {one}" for one, n in found.most_common())
        parts.append(f"for {modality} {told}")
    return f"Of {len({key.group for key in keys})} groups beside dense, by training loss: {'; '.join(parts)}."


def _answer(slopes, key: runs.SlopeKey) -> str:
    """Of a group and a modality, with what held-out loss says where that is another thing."""
    s = slopes[key]
    loss = f"dense's {key.modality} training loss"
    percent = f"{100 * s.value:.0f} %"
    of = f" with {s.bounded} of {s.seeds} seeds" if 0 < s.bounded < s.seeds else ""
    what = {
        "": f"needed {percent} of dense's steps for {loss}",
        ">": f"did not reach {loss} in the time given{of}",
        "<": f"was at {loss} when first measured{of}, within {percent} of dense's steps",
        "?": f"did not reach {loss} with some seeds and was there from the start with others",
    }[s.bound]
    if s.seeds == 1:
        return f"{key.group} {what} ({verdict(s)})"
    spread = "" if s.bound else f"95 % interval {100 * s.low:.0f} to {100 * s.high:.0f} over "
    held_out = slopes.get(key._replace(kind="eval"))
    unlike = held_out and verdict(held_out) != verdict(s)
    but = f", but on held-out loss {verdict(held_out)} ({_cell(held_out)})" if unlike else ""
    return f"{key.group} {what} ({spread}{s.seeds} pairs of runs): {verdict(s)}{but}"


def verdict(s: Slope) -> str:
    """One word: ahead of dense, behind it, or undecided.

    By the 95 % interval over seeds, or where there are bounds by whether every seed's is above 1, or below it. Runs of
    which few steps were measured, as of a first trial, have none.
    """
    if s.points < match.LEAST:
        return "too short: no verdict"
    if s.seeds == 1:
        return "one seed: no verdict"
    return "ahead" if s.high < 1 else "behind" if s.low > 1 else "undecided"


def _slope_rows(slopes, groups) -> list[dict]:
    """A row a (group, modality, kind), at the usual half-life and at equal learning rates."""
    rows = []
    for group, modality, kind in dict.fromkeys(k[:3] for k in slopes if k.rates == "equal"):
        of = {cost: slopes.get(runs.SlopeKey(group, modality, kind, cost, match.HALF_LIFE)) for cost in runs.COSTS}
        cells = {cost: _cell(s) if s else "-" for cost, s in of.items()}
        mark = "" if groups[group][0].config.causal else {"train": ", non-causal", "eval": ", causal"}[kind]
        rows.append({"group": group, "modality": modality, "kind": runs.KINDS[kind] + mark, **cells})
        rows[-1] |= {
            "pairs": of["step"].seeds,
            "verdict": verdict(of["step"]),
            "published": questions.in_print(groups[group][0], modality) or "-" if kind == "train" else "-",
        }
    return rows


def _of_searches(tried: dict[str, Search], groups) -> tuple[dict, Drawn]:
    """By modality, a row of each architecture that was searched; and pictures of all by name."""
    rows, drawn = {}, {}
    colour = pictures.colours({arch: search.best() for arch, search in tried.items()})
    for modality in runs.modalities(groups) if tried else ():
        of = {arch: search.losses(modality) for arch, search in tried.items()}
        found = {arch: best.best_of(losses) for arch, losses in of.items() if np.isfinite(losses).any()}
        if not found:
            continue
        what = f"held-out {modality} loss ({runs.unit(groups, modality)})"
        drawn[f"best_{modality}"] = pictures.both(pictures.best_of, found, colour, what)
        shown = [2**i for i in range(max(len(one.n) for one in found.values()).bit_length())]
        rows[modality] = [
            {"arch": arch, "colour": colour[arch], "cells": [_at(one, n) for n in shown]}
            | {"shown": shown, "told": best.told(one, found.get("dense") if arch != "dense" else None)}
            for arch, one in found.items()
        ]
    return {"searched": rows}, drawn


def _at(found: BestOf, n: int) -> str:
    """The loss of the best of n points, and its spread where enough draws are left to tell one."""
    if n > len(found.n):
        return ""
    spread = f" [{found.low[n - 1]:.3f}, {found.high[n - 1]:.3f}]" if n <= max(1, len(found.n) // 2) else ""
    return f"{found.mean[n - 1]:.3f}{spread}"


def _points(tried: dict[str, Search]) -> list[dict]:
    """Of each architecture that was searched, how many points, how many of them diverged, and its best."""
    rows = []
    for arch, search in tried.items():
        values = best.tuning(search.best()[0])
        told = ", ".join(f"{key} {values[key]:g}" for key in search.keys)
        lost = sum(not np.isfinite(loss) for loss in search.losses())
        rows.append({"arch": arch, "points": len(search.points), "diverged": lost, "best": told})
    return rows


def _best_rows(slopes, groups, tried) -> list[dict]:
    """A row a (group, modality): each architecture at its best learning rate against dense at its own."""
    at_best = runs.best_rates(groups)
    rows = []
    for group, modality in dict.fromkeys(k[:2] for k in slopes if k.rates == "best"):
        key = runs.SlopeKey(group, modality, "eval", "step", match.HALF_LIFE, "best")
        found = [slopes.get(key._replace(kind=kind)) for kind in runs.KINDS]
        arch = groups[group][0].arch
        rows.append(
            {
                "group": group,
                "modality": modality,
                "rate": _tried(groups, arch, at_best[arch], tried),
                "dense": _tried(groups, "dense", at_best["dense"], tried),
                "cells": [_cell(s) if s else "" for s in found],
                "verdict": verdict(found[0]) if found[0] else "",
            }
        )
    return rows


def _tried(groups, arch, label, tried: dict[str, Search]) -> str:
    rates = sorted({group[0].config.optim.lr for group in groups.values() if group[0].arch == arch})
    rate = groups[label][0].config.optim.lr
    if arch in tried:
        return f"{rate:g}, of the best of {len(tried[arch].points)} points"
    return f"{rate:g}, the only one tried" if len(rates) == 1 else f"{rate:g} of {', '.join(f'{r:g}' for r in rates)}"


def _half_life_rows(slopes) -> list[dict]:
    return [
        {
            "group": group,
            "modality": modality,
            "cells": [_cell(slopes[runs.SlopeKey(group, modality, "train", "step", h)]) for h in runs.HALF_LIVES],
        }
        for group, modality in dict.fromkeys(k[:2] for k in slopes if k.rates == "equal")
    ]


def _cell(s: Slope) -> str:
    return pictures.text(s) + ("" if s.bound or s.seeds == 1 else f" [{s.low:.2f}, {s.high:.2f}]")


def measures(groups: dict[str, list[TrainedRun]]) -> list[tuple[str, list[str]]]:
    """Rows of (what, a value a group): losses, size, cost and speed; means over seeds, medians over steps."""
    rows = [row for modality in runs.modalities(groups) for row in _held_out(groups, modality)]

    def row(what: str, of: Callable[[list[TrainedRun]], str]) -> None:
        rows.append((what, [of(group) for group in groups.values()]))

    row("parameters", lambda group: questions.short(flops.total_parameters(group[0].config)))
    streams = list(next(iter(groups.values()))[0].config.streams)
    for stream in streams:
        active = {label: flops.active_parameters(group[0].config).get(stream) for label, group in groups.items()}
        rows.append(
            (f"active parameters for a token of {stream}", [questions.short(n) if n else "" for n in active.values()])
        )
    row("FLOPs per token", lambda group: questions.short(_flops_per_token(group[0])))
    row("time of a step", lambda group: f"{1e3 * _middle(group, 'step_seconds'):.3g} ms")
    row("tokens per second", lambda group: f"{_middle(group, 'tokens_per_s'):,.0f}")
    peaks = {run.started.get("matmul_peak") for group in groups.values() for run in group}
    if len(peaks) == 1:  # what is told against different peaks cannot be compared
        row("MFU", lambda group: f"{100 * _middle(group, 'mfu'):.3g} %")
    for stream in streams:
        fill = [group[0].series("train", f"fill/{stream}")[1] for group in groups.values()]
        rows.append((f"fill, {stream}", [f"{100 * x.mean():.3g} %" if len(x) else "" for x in fill]))
    return rows


def _held_out(groups, modality: str) -> list[tuple[str, list[str]]]:
    """The last held-out losses, and those of routers that see no later tokens where some group's otherwise do."""

    def ends(group: list[TrainedRun], key: str) -> list[float]:
        of = [run.series("eval", f"{key}/{modality}")[1] for run in group if modality in run.trained]
        return [values[-1] for values in of if len(values)]

    unit = runs.unit(groups, modality)
    rows = [(f"held-out {modality} loss ({unit})", [_spread(ends(g, "loss")) for g in groups.values()])]
    causal = [ends(group, "causal_loss") for group in groups.values()]
    if any(causal):
        cells = [_spread(values or ends(g, "loss")) for values, g in zip(causal, groups.values(), strict=True)]
        rows.append((f"held-out {modality} loss, causal ({unit})", cells))
    return rows


# Kinds of `goodput.KINDS` as the page names them, in the order of its bars, each with its colour.
SPENT = {
    "step": ("steps", "#2a9d5c"),
    "start": ("start", "#8d99ae"),
    "compile": ("compile", "#5c6b8a"),
    "data": ("data wait", "#e0a526"),
    "evaluation": ("evaluation", "#4a90c4"),
    "save": ("save stall", "#a05cb5"),
    "lost": ("lost work", "#d1495b"),
    "other": ("other", "#b8b0a4"),
}


def _spent(found: list[TrainedRun]) -> list[dict]:
    """Of each run that recorded it, where its time went: the whole, and the share and seconds of each kind."""
    rows = []
    for run in found:
        if whole := sum(run.wall.values()):
            parts = {kind: (100 * run.wall[kind] / whole, _duration(run.wall[kind])) for kind in SPENT}
            rows.append({"name": run.config.run.name, "whole": _duration(whole), "parts": parts})
    return rows


def _duration(seconds: float) -> str:
    """In one unit or two: 0 s, 3.2 s, 5 min 20 s, 3 h 10 min."""
    if seconds < 99.5:
        return f"{seconds:.0f} s" if seconds >= 9.95 or seconds < 0.05 else f"{seconds:.1f} s"
    count, larger, smaller = (seconds / 60, "h", "min") if seconds >= 99 * 60 else (seconds, "min", "s")
    whole, rest = divmod(round(count), 60)
    return f"{whole} {larger}" + (f" {rest} {smaller}" if rest else "")


def _flops_per_token(run: TrainedRun) -> float:
    return run.series("train", "flops")[1][-1] / sum(facts.seen(run).values())


def _middle(group: list[TrainedRun], key: str) -> float:
    """The median over steps and seeds, without the first step, which warms up."""
    return statistics.median([x for run in group for x in _warm(run.series("train", key)[1])])


def _warm(values):
    return values[1:] if len(values) > 1 else values


def _spread(values) -> str:
    if not values:
        return ""
    mean = f"{statistics.mean(values):.3f}"
    return mean if len(values) == 1 else f"{mean} [{min(values):.3f}, {max(values):.3f}]"


def print_table(found: list[TrainedRun], title: str = "") -> None:
    """What the page says of the groups' losses, sizes and costs; nothing where no run is sound."""
    groups = _shown(runs.sound(found))
    if not groups:
        return
    table = Table("", *groups, title=title or None, title_justify="left")
    for what, values in measures(groups):
        table.add_row(what, *values)
    Console().print(table)


def _samples(groups) -> list[dict]:
    """The first run of each group that has samples: a picture a stage, from the first to the last."""
    shown = []
    for label, group in groups.items():
        for run in group:
            if folders := _sampled(run.path):
                stages = [_stage(folder) for folder in _spread_out(folders)]
                settings = list(dict.fromkeys(stage["settings"] for stage in stages if stage.get("settings")))
                shown.append({"group": label, "run": run, "stages": stages, "settings": settings})
                break
    return shown


def _spread_out(folders: list[Path]) -> list[Path]:
    """Of folders named by their step, those nearest to STAGES steps that are evenly spaced over all of them."""
    steps = [_step(folder) for folder in folders]
    even = np.linspace(steps[0], steps[-1], STAGES)
    return [folders[i] for i in sorted({int(np.abs(np.array(steps) - step).argmin()) for step in even})]


def _sampled(path: Path) -> list[Path]:
    """The folders of a run's samples, from the first step to the last; of a step's, as 50 and 50-2, the newest."""
    folders = [p.parent for p in (path / "samples").glob("*/samples.json")]
    numbers = {p: found for p in folders if (found := re.fullmatch(r"(\d+)(?:-(\d+))?", p.name, re.ASCII))}
    ordered = sorted(numbers, key=lambda p: (int(numbers[p][1]), int(numbers[p][2] or 1)))
    return list({_step(p): p for p in ordered}.values())


def _step(samples: Path) -> int:
    return int(samples.name.partition("-")[0])


def _longer(found: list[TrainedRun], out: Path) -> list[dict]:
    """Runs beside the ones reported that drew digits after more steps: their last samples, and a link to them.

    A demo's few steps draw blobs, and a run of `size=draw` in a folder beside them shows what training comes to.
    """
    found = [run for run in found if not is_bucket(run.path)]  # beside a bucket's runs may lie thousands
    reported = {run.path.resolve() for run in found}
    most = max((run.config.run.steps for run in found), default=0)
    beside = dict.fromkeys(path for run in found for path in run.path.resolve().parent.parent.glob("*/*/config.json"))
    shown = []
    for path in [config.parent for config in beside if config.parent not in reported]:
        folders = _sampled(path)
        if folders and _step(folders[-1]) > most and "drawn" in (stage := _stage(folders[-1])):
            shown.append({"path": os.path.relpath(path, out), "stage": stage})
    return shown[:LONGER]


def _stage(folder) -> dict:
    """A step's pictures and, of digits, what they score; where a file is not what `mot sample` writes, that instead."""
    try:
        record = json.loads((folder / "samples.json").read_text(encoding="utf-8"))
        if "documents" in record:
            counts = {"documents": len(record["documents"])}
        else:
            counts = {k: (int(record[k]["right"]), int(record[k]["asked"])) for k in ("drawn", "read")}
            counts["judge"] = float(record["judge"])
        names = ("digits", "captions", "documents", "grid")
        images = {n: f.read_bytes() for n in names if (f := folder / f"{n}.png").exists()}
        if foreign := [name for name, png in images.items() if not png.startswith(b"\x89PNG\r\n\x1a\n")]:
            raise ValueError(f"{foreign[0]}.png is no PNG")
        main = next((name for name in ("digits", "grid", "documents") if name in images), "")
        stage = counts | {"main": main and _inline(images[main])}
        stage |= {"captions": _inline(images["captions"])} if "captions" in images else {}
        stage["settings"] = _settings(record)
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        stage = {"damaged": f"{folder} is damaged: {error!r}"}
    return {"step": _step(folder), **stage}


def _settings(record) -> str:
    """How the sampler chose, in words; empty where it was not recorded."""
    known = {"temperature": "temperature {}", "top_k": "among the {} likeliest", "top_p": "among the likeliest {:.0%}"}
    known |= {"guidance": "guidance {}", "seed": "seed {}"}
    idle = {"top_k": 0, "top_p": 1, "guidance": 1}
    told = {key: record[key] for key in known if isinstance(record.get(key), (int, float))}
    return ", ".join(known[key].format(x) for key, x in told.items() if idle.get(key) != x)


def _cost_alike(groups) -> bool:
    """Does a step cost all runs the same FLOPs, within 1 %? Then curves against FLOPs are those against steps."""
    each = []
    for run in [run for group in groups.values() for run in group]:
        steps, flops_so_far = run.series("train", "flops")
        each += [flops_so_far[-1] / steps[-1]] if len(steps) else []
    return bool(each) and max(each) <= 1.01 * min(each)


def _differences(groups) -> list[tuple[str, list[str]]]:
    """Each group's configuration against the first's: seeds, names, and what the architectures' drawings show apart."""
    first = next(iter(groups.values()))[0] if groups else None
    found = []
    for label, group in groups.items():
        if group[0] is not first:
            every = differences(first.plain, group[0].plain)
            found.append((label, [d for d in every if not d.startswith((*runs.APART, *runs.ARCHITECTURE))]))
    return found


def _entry(run, label, out, notes) -> dict:
    def link(path):
        return str(path) if is_bucket(path) else os.path.relpath(path, out)

    return {
        "name": run.config.run.name,
        "group": label,
        "arch": run.arch,
        "seed": run.seeds[0],
        "path": str(run.path),
        "config": link(run.path / "config.json"),
        "metrics": link(run.path / "metrics.jsonl"),
        "faults": run.faults,
        "notes": notes[run.path],
    }


def _inline(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode()


def _template() -> jinja2.Template:
    loader = jinja2.FileSystemLoader(Path(__file__).parent)
    return jinja2.Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True).get_template(
        "report.html"
    )

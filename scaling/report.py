"""One page that answers: how many of the dense model's steps did each architecture need, modality by modality?"""

import base64
import json
import os
import re
import statistics
from pathlib import Path

import jinja2
from rich.console import Console
from rich.table import Table

from mot.config import differences
from mot.errors import UserError
from mot.files import write_atomically
from mot.model import flops
from mot.runs import rundir
from scaling import match, pictures, published, runs
from scaling.match import Slope
from scaling.runs import Run

HEADLINE = ("train", "step", match.HALF_LIFE, "equal")  # the slopes that the page begins with
MARK = '<meta name="generator" content="mot report">'
STAGES = 4  # checkpoints whose samples are shown
LONGER = 2  # runs beside the reported ones whose samples are shown


def write(found: list[Run], out: Path) -> str:
    """`report.html` with its pictures and tables beside it, in the folder `out`; returns the headline sentence."""
    groups = runs.sound(found)
    notes = _notes(found, groups)
    slopes = runs.slopes(groups)
    sentence = _sentence(slopes)
    colour = pictures.colours(groups)
    _refuse_foreign(out / "report.html")
    drawn = {}
    main: dict[str, dict[str, Slope]] = {}
    for key, slope in slopes.items():
        if key[2:] == HEADLINE:
            main.setdefault(key.group, {})[key.modality] = slope
    if main:
        known = published.of(groups[next(iter(main))][0].config)
        drawn["headline"] = pictures.both(pictures.headline, main, colour, known)
    costs = ("step",) if _cost_alike(groups) else ("step", "flops")
    for modality in runs.modalities(groups):
        for cost in costs:
            drawn[_curves(modality, cost)] = pictures.both(pictures.curves, groups, colour, modality, cost)
    experts = {}
    for label, group in groups.items():
        panels = pictures.panels(runs.loads(group[0]))
        experts[label] = [f"experts_{_file(label)}_{i}" for i in range(len(panels))]
        drawn |= {
            name: pictures.both(pictures.experts, *panel) for name, panel in zip(experts[label], panels, strict=True)
        }
    every = runs.tables(found, slopes)
    page = _template().render(
        sentence=sentence,
        facts=_facts(groups),
        architectures=_architectures(groups),
        curves={m: [(cost, _curves(m, cost)) for cost in costs] for m in runs.modalities(groups)},
        pictures={name: {t: _inline(png) for t, png in themes.items()} for name, themes in drawn.items()},
        experts={label: names for label, names in experts.items() if names},
        groups=list(groups),
        leaking=[label for label, group in groups.items() if not group[0].config.causal],
        colour=colour,
        slopes=_slope_rows(slopes, groups),
        best=_best_rows(slopes, groups),
        half_lives=_half_life_rows(slopes),
        definition=match.__doc__.split("\n\n")[1],
        units={m: runs.unit(groups, m) for m in runs.modalities(groups)},
        published=list({k.source: k for group in groups.values() for k in [published.of(group[0].config)]}.values()),
        costs=measures(groups) if groups else [],
        samples=_samples(groups),
        longer=_longer(found, out),
        differences=_differences(groups),
        runs=[_entry(run, label, out, notes) for label, group in runs.grouped(found).items() for run in group],
    )
    # All is made; only now is anything written.
    out.mkdir(parents=True, exist_ok=True)
    for name, themes in drawn.items():
        write_atomically(out / f"{name}.png", themes["light"])
    for name, frame in every._asdict().items():
        write_atomically(out / f"{name}.csv", frame.to_csv(index=False))
    write_atomically(out / "report.html", page)
    return sentence


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


def _sentence(slopes) -> str:
    """The answer, for whoever reads one line."""
    parts = []
    for key, s in slopes.items():
        if key[2:] == HEADLINE:
            spread = f"95 % interval {100 * s.low:.0f} to {100 * s.high:.0f}, " if s.low == s.low else ""
            seeds = f"{s.seeds} seed" + "s" * (s.seeds > 1)
            loss = f"dense's {key.modality} training loss"
            if s.bound:
                what = f"did not reach {loss} in the time given ({seeds})"
            else:
                what = f"needed {100 * s.value:.0f} % of dense's steps for {loss} ({spread}{seeds})"
            parts.append(f"{key.group} {what}: {verdict(s)}")
    return "; ".join(parts) + "." if parts else "No run here can be compared with a dense one; the runs below say why."


def verdict(s: Slope) -> str:
    """One word, by the 95 % interval over seeds: ahead of dense, behind it, or undecided."""
    if s.seeds == 1:
        return "one seed: no verdict"
    if s.bound:  # without an interval
        return "undecided"
    return "ahead" if s.high < 1 else "behind" if s.low > 1 else "undecided"


def _slope_rows(slopes, groups) -> list[dict]:
    """A row a (group, modality, kind), at the usual half-life and at equal learning rates."""
    rows = []
    for group, modality, kind in dict.fromkeys(k[:3] for k in slopes if k.rates == "equal"):
        cell = {cost: _cell(slopes[runs.Key(group, modality, kind, cost, match.HALF_LIFE)]) for cost in runs.COSTS}
        mark = "" if groups[group][0].config.causal else {"train": ", sees later tokens", "eval": ", causal"}[kind]
        rows.append({"group": group, "modality": modality, "kind": runs.KINDS[kind] + mark, **cell})
        seeds = slopes[runs.Key(group, modality, kind, "step", match.HALF_LIFE)].seeds
        rows[-1] |= {
            "seeds": seeds,
            "verdict": verdict(slopes[runs.Key(group, modality, kind, "step", match.HALF_LIFE)]),
            "published": _published(groups[group][0], modality) if kind == "train" else "",
        }
    return rows


def _best_rows(slopes, groups) -> list[dict]:
    """A row a (group, modality): each architecture at its best learning rate against dense at its own."""
    best = runs.best_rates(groups)
    rows = []
    for group, modality in dict.fromkeys(k[:2] for k in slopes if k.rates == "best"):
        key = runs.Key(group, modality, "eval", "step", match.HALF_LIFE, "best")
        found = [slopes.get(key._replace(kind=kind)) for kind in runs.KINDS]
        arch = groups[group][0].arch
        rows.append(
            {
                "group": group,
                "modality": modality,
                "rate": _tried(groups, arch, best[arch]),
                "dense": _tried(groups, "dense", best["dense"]),
                "cells": [_cell(s) if s else "" for s in found],
                "verdict": verdict(found[0]) if found[0] else "",
            }
        )
    return rows


def _tried(groups, arch, best) -> str:
    rates = sorted({group[0].config.optim.lr for group in groups.values() if group[0].arch == arch})
    rate = groups[best][0].config.optim.lr
    return f"{rate:g}, the only one tried" if len(rates) == 1 else f"{rate:g} of {', '.join(f'{r:g}' for r in rates)}"


def _half_life_rows(slopes) -> list[dict]:
    return [
        {
            "group": group,
            "modality": modality,
            "cells": [_cell(slopes[runs.Key(group, modality, "train", "step", h)]) for h in runs.HALF_LIVES],
        }
        for group, modality in dict.fromkeys(k[:2] for k in slopes if k.rates == "equal")
    ]


def _published(run, modality) -> str:
    values = published.of(run.config).slopes.get(run.arch, {}).get(modality)
    return f"{min(values):g} to {max(values):g}" if values else ""


def _cell(s: Slope) -> str:
    return pictures.text(s) + (f" [{s.low:.2f}, {s.high:.2f}]" if s.low == s.low else "")


def measures(groups: dict[str, list[Run]]) -> list[tuple[str, list[str]]]:
    """Rows of (what, a value a group): losses, size, cost and speed; means over seeds, medians over steps."""
    last = lambda run, key: run.series("train", key)[1][-1]
    tokens = lambda run: sum(last(run, f"tokens/{m}") for m in run.config.modalities)
    # The first step warms up.
    middle = lambda group, key: statistics.median([x for run in group for x in _warm(run.series("train", key)[1])])
    millions = lambda n: f"{n / 1e6:.2f} M"
    rows = []
    for modality in runs.modalities(groups):
        ends = lambda g: [v[-1] for r in g if len(v := r.series("eval", f"loss/{modality}")[1])]  # noqa: B023
        unit = f", {runs.unit(groups, modality)}"
        rows.append((f"held-out {modality} loss{unit}", [_spread(ends(g)) for g in groups.values()]))
        causal = lambda g: [v[-1] for r in g if len(v := r.series("eval", f"causal_loss/{modality}")[1])]  # noqa: B023
        if any(map(causal, groups.values())):
            rows.append(
                (f"held-out {modality} loss, causal{unit}", [_spread(causal(g) or ends(g)) for g in groups.values()])
            )
    rows.append(("parameters", [millions(flops.total_parameters(g[0].config)) for g in groups.values()]))
    streams = list(next(iter(groups.values()))[0].config.streams)
    for stream in streams:
        active = lambda g: flops.active_parameters(g[0].config).get(stream)  # noqa: B023
        rows.append((f"active, {stream} token", [millions(n) if (n := active(g)) else "" for g in groups.values()]))
    rows.append(("FLOPs per token", [millions(last(g[0], "flops") / tokens(g[0])) for g in groups.values()]))
    rows.append(("step time", [f"{1e3 * middle(g, 'step_seconds'):.0f} ms" for g in groups.values()]))
    rows.append(("tokens per second", [f"{middle(g, 'tokens_per_s'):,.0f}" for g in groups.values()]))
    peaks = {run.started.get("matmul_peak") for group in groups.values() for run in group}
    if len(peaks) == 1:  # what is told against different peaks cannot be compared
        rows.append(("of matmul peak", [f"{100 * middle(g, 'mfu'):.0f} %" for g in groups.values()]))
    for stream in streams:
        fill = lambda g: g[0].series("train", f"fill/{stream}")[1]  # noqa: B023
        rows.append(
            (f"fill, {stream}", [f"{100 * x.mean():.1f} %" if len(x := fill(g)) else "" for g in groups.values()])
        )
    return rows


def _warm(values):
    return values[1:] if len(values) > 1 else values


def _spread(values):
    if not values:
        return ""
    mean = f"{statistics.mean(values):.3f}"
    return mean if len(values) == 1 else f"{mean} [{min(values):.3f}, {max(values):.3f}]"


def print_table(found: list[Run]) -> None:
    groups = runs.grouped(found)
    table = Table("", *groups, title="after the same steps on the same batches", title_justify="left")
    for what, values in measures(groups):
        table.add_row(what, *values)
    Console().print(table)


def _samples(groups) -> list[dict]:
    """The first run of each group that has samples: a picture a stage, from the first to the last."""
    shown = []
    for label, group in groups.items():
        for run in group:
            if folders := _sampled(run.path):
                chosen = sorted({round(i * (len(folders) - 1) / max(STAGES - 1, 1)) for i in range(STAGES)})
                stages = [_stage(folders[i]) for i in chosen]
                shown.append({"group": label, "run": run, "stages": stages})
                break
    return shown


def _sampled(path: Path) -> list[Path]:
    """The folders of a run's samples, from the first step to the last; of a step's, as 50 and 50-2, the newest."""
    folders = [p.parent for p in (path / "samples").glob("*/samples.json")]
    numbers = {p: found for p in folders if (found := re.fullmatch(r"(\d+)(?:-(\d+))?", p.name, re.ASCII))}
    ordered = sorted(numbers, key=lambda p: (int(numbers[p][1]), int(numbers[p][2] or 1)))
    return list({_step(p): p for p in ordered}.values())


def _step(samples: Path) -> int:
    return int(samples.name.partition("-")[0])


def _longer(found: list[Run], out: Path) -> list[dict]:
    """Runs beside the ones reported that drew digits after more steps: their last samples, and a link to them.

    A demo's few steps draw blobs, and a run of `size=draw` in a folder beside them shows what training comes to.
    """
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
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        stage = {"damaged": f"{folder} is damaged: {error!r}"}
    return {"step": _step(folder), **stage}


def _cost_alike(groups) -> bool:
    """Does a step cost all runs the same FLOPs, within 1 %? Then curves against FLOPs are those against steps."""
    each = []
    for run in [run for group in groups.values() for run in group]:
        steps, flops_so_far = run.series("train", "flops")
        each += [flops_so_far[-1] / steps[-1]] if len(steps) else []
    return bool(each) and max(each) <= 1.01 * min(each)


def _facts(groups) -> list[tuple[str, str]]:
    """What was run, on what, where, when and by what: a value once, or each that differs."""
    every = [run for group in groups.values() for run in group]
    started = sorted(run.started["time"] for run in every if run.started.get("time"))
    facts = [(what, _each(map(of, every))) for what, of in FACTS.items()] if every else []
    return [*facts, ("begun", _each([*started[:1], *started[-1:]]))] if facts else []


def _each(values) -> str:
    told = dict.fromkeys(str(value) for value in values if value not in (None, ""))
    return "; ".join(told) or "not recorded"


def _data(run) -> str:
    return f"{', '.join(run.config.data.sources)} (digest {run.digest})" if run.digest else ""


def _tokens(run) -> str:
    counts = {m: run.series("train", f"tokens/{m}")[1] for m in run.config.modalities}
    return ", ".join(f"{m} {int(n[-1]):,}" for m, n in counts.items() if len(n))


def _batch(run) -> str:
    return f"{run.config.data.batch} x {run.config.length:,}"


def _rate(run) -> str:
    return f"{run.config.optim.lr:g}, {run.config.optim.schedule}"


def _sizes(run) -> str:
    widths = dict.fromkeys(str(stream.width) for stream in run.config.streams.values())
    return f"{run.config.model.layers}, {'/'.join(widths)}"


def _machine(run) -> str:
    s = run.started
    device = f"{s.get('devices', '?')} x {s['device_kind']}" if "device_kind" in s else ""
    return ", ".join(filter(None, [s.get("host"), s.get("cpu"), device]))


def _peak(run) -> str:
    s = run.started
    measured = f", measured {s['matmul_peak_measured']}" if s.get("matmul_peak_measured") else ""
    return f"{s['matmul_peak'] / 1e9:,.1f} GFLOP/s{measured}" if s.get("matmul_peak") else ""


def _code(run) -> str:
    s = run.started
    if not s.get("version"):
        return ""
    commit = f", commit {s['commit']}" + " and changes" * bool(s.get("dirty")) if s.get("commit") else ""
    return f"mot {s['version']}{commit}; jax {s.get('jax', '?')}, Python {s.get('python', '?')}"


FACTS = {
    "data": _data,
    "steps": lambda run: f"{run.config.run.steps:,}",
    "tokens seen by a run": _tokens,
    "rows and tokens of a batch": _batch,
    "learning rate": _rate,
    "layers, widths": _sizes,
    "machine": _machine,
    "matmul peak that MFU is told against": _peak,
    "code": _code,
    "by": lambda run: run.started.get("command"),
}


PLAIN = {
    "dense": "one set of parameters serves all modalities: an ordinary transformer",
    "mot": "each modality has its own attention projections, FFN and norms; they meet in one attention",
    "mot_ffn": "each modality has its own FFN; attention projections and norms are shared",
    "mot_attn_ffn": "each modality has its own attention projections and FFN; norms are shared",
}


def _architectures(groups) -> list[dict]:
    """Of each group what it is in a line, and which streams share a tower, by component."""
    found = []
    for label, group in groups.items():
        config = group[0].config
        components = []
        for component in ("attn", "ffn", "norm"):
            mapping = getattr(config.towers, component)
            towers = {t: [s for s in config.streams if mapping[s] == t] for t in dict.fromkeys(mapping.values())}
            experts = {} if component == "norm" else getattr(config, component)
            boxes = [(" + ".join(streams), _experts(experts.get(tower))) for tower, streams in towers.items()]
            components.append((COMPONENTS[component], boxes))
        maps = group[0].arch.split(" ")[0]
        line = PLAIN.get(maps, "towers as drawn")
        if any(note for _, boxes in components for _, note in boxes):
            line += "; where experts are named, a router learns which of them serves a token"
        found.append({"group": label, "line": line, "components": components})
    return found


COMPONENTS = {"attn": "QKV and O", "ffn": "FFN", "norm": "norms"}


def _experts(sets) -> str:
    if sets is None or not sets.experts:
        return ""
    return f"{sets.experts} experts, {sets.active} active"


def _differences(groups) -> list[tuple[str, list[str]]]:
    """Each group's configuration against the first's: seeds, names, and what the architectures' drawings show apart."""
    first = next(iter(groups.values()))[0] if groups else None
    found = []
    for label, group in groups.items():
        if group[0] is not first:
            every = differences(rundir.plain(first.config), rundir.plain(group[0].config))
            found.append((label, [d for d in every if not d.startswith((*runs.APART, *runs.ARCHITECTURE))]))
    return found


def _entry(run, label, out, notes) -> dict:
    link = lambda path: os.path.relpath(path, out)
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

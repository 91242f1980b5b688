"""Sweeps: a sweep is a list of rows, and a row is a dict of a configuration and of what is changed in it.

mot sweep configs/sweeps.py:leave_one_out,size=smoke --out runs/loo    each modality apart, and all
mot sweep configs/sweeps.py:isoflop,budgets=1e13+1e14,data=data/web    budgets by sizes by architectures
mot sweep my_sweeps.py:rates --dry-run                                 a file of your own (docs/howto/sweep.md)

A row has `config`, FILE:arg as `--config` takes it, and values by dotted key, as `--config.KEY=VALUE` takes them. Its
`run.name` is its folder. Each function of (arg) below takes arguments of its own, and gives the others to the
configuration's file:

config   the configuration's file
archs    architectures of configs/archs.py, with + between
seeds    how many; each is a `model.seed`

Rows are paired by construction: they differ in what is asked and in `model.seed`, never in `data.seed`, so all read the
same batches, and the runs of an architecture that differ in their seed alone are one program.
"""

import runpy
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from configs import base

Row = dict[str, Any]
NAME = "run.name"  # names are joined; any other key has one value


def product(*sweeps: Iterable[Row]) -> list[Row]:
    """Each row of the first with each of the next, and so on; the last varies fastest."""
    rows: list[Row] = [{}]
    for sweep in map(list, sweeps):
        rows = [joined(row, more) for row in rows for more in sweep]
    return rows


def zip_(*sweeps: Iterable[Row]) -> list[Row]:
    """The first row of each, the second of each, and so on; `ValueError` where one is longer than another."""
    lists = [list(sweep) for sweep in sweeps]
    if len({len(rows) for rows in lists}) > 1:
        lengths = ", ".join(str(len(rows)) for rows in lists)
        raise ValueError(f"zip_ of sweeps of {lengths} rows; make them equally long")
    return [joined(*rows) for rows in zip(*lists, strict=True)]


def chain(*sweeps: Iterable[Row]) -> list[Row]:
    """The rows of the first, then those of the next."""
    return [row for sweep in sweeps for row in sweep]


def joined(*rows: Row) -> Row:
    """One row of several. Names are joined by a hyphen; `ValueError` where two say what one key, or one group, is."""
    result: Row = {}
    for row in rows:
        for key, value in row.items():
            if key == NAME and NAME in result:
                value = f"{result[NAME]}-{value}"
            elif other := next((k for k in result if _is_within(k, key) or _is_within(key, k)), ""):
                raise ValueError(
                    f"{key}={value!r} and {other}={result[other]!r} are to be joined in one row; vary a key once"
                )
            result[key] = value
    return result


def _is_within(key: str, group: str) -> bool:
    return key == group or key.startswith(f"{group}.")


def over(key: str, *values: Any) -> list[Row]:
    """A row for each value of a key, called by the key's last word and the value, as in lr0.001."""
    return [{key: value, NAME: f"{key.rpartition('.')[2]}{value}"} for value in values]


def seeds(number: int) -> list[Row]:
    return [{"model.seed": seed, NAME: f"seed{seed}"} for seed in range(number)]


# --- sweeps that come with mot ---------------------------------------------------------------------------------------


def archs(arg: str = "", archs: str = "dense+mot+moe_ec4+mot_moe", config: str = "configs/digits.py") -> list[Row]:
    """Architectures, each with every seed."""
    own, rest = _own(arg, archs=archs, config=config, seeds="3")
    return product(_of_archs(own, rest), seeds(_number(own, "seeds")))


def untying(arg: str = "") -> list[Row]:
    """What a modality has for itself: nothing, the FFN, attention too, and all."""
    return archs(arg, "dense+mot_ffn+mot_attn_ffn+mot")


def towers_by_depth(arg: str = "") -> list[Row]:
    """Where in depth towers are apart: nowhere, at both ends, between these, and everywhere."""
    return archs(arg, "dense+mot_ends+mot_middle+mot")


def leave_one_out(arg: str = "") -> list[Row]:
    """No stream apart, each apart from all others, and all apart. Of two streams, one apart is all apart: one row."""
    own, rest = _own(arg, config="configs/digits.py", archs="", seeds="3")
    if own["archs"]:
        raise ValueError(f"archs={own['archs']}: leave_one_out has its own; leave it out, or use the sweep `archs`")
    streams = sorted(_tree(own["config"], rest | {"arch": "dense"}).streams)
    one_out = [f"loo_{stream}" for stream in streams] if len(streams) > 2 else []
    return archs(arg, "+".join(["dense", *one_out, "mot"]))


def routing(arg: str = "") -> list[Row]:
    """Learned routers beside towers. match=active: equal active parameters; total: equal ones in all; both."""
    own, rest = _own(arg, match="both")
    active = ["moe_ec4", "moe_tc4", "moe_fine", "mot_moe"]
    matched = {"active": active, "total": [f"{arch}_total" for arch in active]}
    matched["both"] = matched["active"] + matched["total"]
    chosen = matched[base.chosen("match", own["match"], matched)]
    return archs(_joined_arg(rest), "+".join(["dense", "mot", *chosen]))


def mixture(arg: str = "") -> list[Row]:
    """Each modality alone, and joint, in each architecture.

    Alone, the loss of the others has no weight: their tokens are still read, and train nothing. So the batches are the
    same, and what a modality loses in the joint run is what it pays for the others' training.
    """
    own, rest = _own(arg, config="configs/digits.py", archs="dense+mot", seeds="3")
    streams = _tree(own["config"], rest | {"arch": "dense"}).streams
    modalities = sorted({streams[name].modality for name in streams if streams[name].objective != "none"})
    alone = [
        {f"streams.{name}.loss_weight": 0.0 for name in streams if streams[name].modality != modality}
        | {NAME: modality}
        for modality in modalities
    ]
    arms = chain(alone, [{NAME: "joint"}])
    return product(_of_archs(own, rest), arms, seeds(_number(own, "seeds")))


def caption_shift(arg: str = "") -> list[Row]:
    """Is it images that text suffers from, or the language of their captions?

    text: the sources of text alone (`text=`, with + between). captions: all sources, and only text is trained. joint:
    all, and all is trained. The first arm reads other documents than the others, as it asks for them; in each arm the
    architectures read the same.
    """
    own, rest = _own(arg, config="configs/digits.py", archs="dense+mot", seeds="3", text="manual")
    tree = _tree(own["config"], rest | {"arch": "dense"})
    named = own["text"].split("+")
    for source in named:
        base.chosen("text", source, sorted(tree.data.sources))
    others = {f"streams.{s}.loss_weight": 0.0 for s in tree.streams if tree.streams[s].modality != "text"}
    alone = {f"data.{group}": {source: tree.data[group][source] for source in named} for group in ("sources", "shares")}
    arms = [others | alone | {NAME: "text"}, others | {NAME: "captions"}, {NAME: "joint"}]
    return product(_of_archs(own, rest), arms, seeds(_number(own, "seeds")))


# Arguments of sweeps over rungs.
RUNGS = {"config": "configs/ladder.py", "archs": "dense+mot", "rungs": "0.3m+1m+3m", "seeds": "1"}
RUNGS |= {"validation": "", "test": ""}


def ladder(arg: str = "") -> list[Row]:
    """Rungs by architectures: rungs=0.3m+1m. Other configurations than configs/ladder.py call a rung its `size`.

    validation=3m,test=10m: no scaling law is fitted to these rungs (`run.role`), and none of them can be changed later.
    """
    own, rest = _own(arg, **RUNGS)
    return product(_of_rungs(own, rest), seeds(_number(own, "seeds")))


def isoflop(arg: str = "") -> list[Row]:
    """Budgets of model FLOPs by rungs by architectures: budgets=1e14+1e15; each run has the steps that its budget pays
    for. validation= and test= as in `ladder`."""
    own, rest = _own(arg, **RUNGS, budgets="1e14+1e15")
    flops = [base.budget("budgets", text) for text in own["budgets"].split("+")]
    budgets = [{"run.flops": n, "run.steps": 0, NAME: f"{n:g}".replace("+", "")} for n in flops]
    return product(budgets, _of_rungs(own, rest), seeds(_number(own, "seeds")))


def search(arg: str = "") -> list[Row]:
    """Architectures, each at the same points of configs/search.py: points=16, how=sobol or random."""
    from configs import search as ranges  # which may need scipy

    own, rest = _own(arg, config="configs/digits.py", archs="dense+mot", points="16", how="sobol", seeds="1")
    points = ranges.rows(ranges.RANGES, _number(own, "points"), own["how"])
    return product(_of_archs(own, rest), points, seeds(_number(own, "seeds")))


# --- arguments -------------------------------------------------------------------------------------------------------


def _own(arg: str, **defaults: str) -> tuple[dict[str, str], dict[str, str]]:
    """A sweep's own arguments over their defaults, and the others, which are the configuration's."""
    pairs = [tuple(part.partition("=")[::2]) for part in arg.split(",") if part]
    given = dict(pairs)
    if len(given) < len(pairs):
        raise ValueError(f"{arg}: an argument stands there twice; leave one out")
    own = {name: given.pop(name, default) for name, default in defaults.items()}
    if empty := [name for name, value in own.items() if not value and defaults[name]]:
        raise ValueError(f"{empty[0]}=: has no value; the default is {defaults[empty[0]]}")
    return own, given


def _joined_arg(given: dict[str, str]) -> str:
    return ",".join(f"{name}={value}" for name, value in given.items())


def _number(own: dict[str, str], name: str) -> int:
    if not own[name].isdecimal() or not int(own[name]):
        raise ValueError(f"{name}={own[name]}: must be a whole number, 1 or more")
    return int(own[name])


def _of_archs(own: dict[str, str], rest: dict[str, str]) -> list[Row]:
    if "arch" in rest:
        raise ValueError(f"arch={rest['arch']}: the sweep chooses architectures; write archs={rest['arch']}")
    return [
        {"config": f"{own['config']}:{_joined_arg(rest | {'arch': arch})}", NAME: arch}
        for arch in own["archs"].split("+")
    ]


def _of_rungs(own: dict[str, str], rest: dict[str, str]) -> list[Row]:
    size = "rung" if "rung" in _namespace(own["config"]).get("ARGUMENTS", {}) else "size"
    if size in rest:
        raise ValueError(f"{size}={rest[size]}: the sweep chooses rungs; write rungs={rest[size]}")
    rungs, roles = own["rungs"].split("+"), _roles(own)
    return [joined({NAME: rung} | roles[rung], row) for rung in rungs for row in _of_archs(own, rest | {size: rung})]


def _roles(own: dict[str, str]) -> dict[str, Row]:
    """By rung, what says that a scaling law is not fitted to it; nothing of those it is fitted to."""
    rungs = own["rungs"].split("+")
    roles: dict[str, Row] = {rung: {} for rung in rungs}
    for role in ("validation", "test"):
        for rung in filter(None, own[role].split("+")):
            if roles[base.chosen(role, rung, rungs, " among rungs")]:
                raise ValueError(f"{role}={own[role]}: {rung} has a role already; name it once")
            roles[rung] = {"run.role": role}
    return roles


def _namespace(file: str) -> dict[str, Any]:
    """What a configuration's file defines: the user's own, or the one of this name that lies beside this one."""
    path = Path(file)
    below = path.parts[1:] if path.parts[:1] == ("configs",) else path.parts[-1:]
    shipped = Path(__file__).parent.joinpath(*below)
    if not path.is_file() and not shipped.is_file():
        raise ValueError(f"config={file}: there is no such file; name a configuration's, as configs/digits.py")
    return runpy.run_path(str(path if path.is_file() else shipped))


def _tree(file: str, given: dict[str, str]) -> Any:
    """The configuration of a file, of which a sweep needs to know streams and sources."""
    get_config = _namespace(file).get("get_config")
    if get_config is None:
        raise ValueError(f"config={file}: defines no get_config(arg); see configs/digits.py, or name another file")
    return get_config(_joined_arg(given))

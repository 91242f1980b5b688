"""The table of every rung and architecture, docs/reference/plan.md, and plan.json, with which a second call goes on."""

import hashlib
import json
import math
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, fields
from pathlib import Path

from rich.console import Console

from mot import optim
from mot.config import load, resolve
from mot.errors import UserError
from mot.files import write_atomically
from mot.plan import chips, process, search
from mot.runs import provenance, rundir

ARCHS = ("dense", "mot", "moe_ec4", "mot_moe")
# Where each rung would be trained: a slice on which its run takes days.
RUNGS = {
    "chameleon": {
        "37m": ("v5p:2x2x1",),
        "94m": ("v5p:2x2x1",),
        "443m": ("v5p:2x2x4",),
        "1.5b": ("v5p:4x4x4",),
        "7b": ("v5p:4x4x4", "v5e:16x16", "v6e:16x16", "tpu7x:4x4x4"),
    },
    "transfusion": {"163m": ("v5p:2x2x1",), "760m": ("v5p:2x2x4",), "1.4b": ("v5p:4x4x4",), "7b": ("v5p:4x4x4",)},
    "chameleon_speech": {"443m": ("v5p:2x2x4",), "880m": ("v5p:2x4x4",), "1.5b": ("v5p:4x4x4",), "7b": ("v5p:4x4x4",)},
}
ROWS = 16  # of a device's microbatch at most, where it has v5p's memory
# Of these rungs, what is not routed gets the compiler's full effort.
THOROUGH = ("37m", "94m", "163m", "443m", "760m", "880m")
AT_ONCE = 2  # a program takes one core to compile, and up to 8 GB


@dataclass(frozen=True)
class Entry:
    setting: str
    rung: str
    arch: str
    topology: str

    @property
    def config(self) -> str:
        return f"configs/ladder.py:setting={self.setting},rung={self.rung},arch={self.arch}"

    @property
    def quick(self) -> bool:
        """The compiler's least effort: of large rungs and of experts a full one takes minutes more, each."""
        return self.rung not in THOROUGH or self.arch not in ("dense", "mot")

    def overrides(self) -> dict[str, str]:
        """Devices along fsdp, and microbatches of at most `ROWS` rows on each.

        In as few groups as send least, or where that takes too much memory all in one.
        """
        chip, sides = chips.parse(self.topology)
        devices = math.prod(sides) * chip.devices
        rows = load.read(self.config, {}).data.batch // devices
        most = max(ROWS * chip.memory // chips.CHIPS["v5p"].memory, 1)
        parts = next(n for n in range(1, rows + 1) if rows % n == 0 and rows // n <= most)
        groups = next(n for n in range(1, devices) if devices % n == 0 and chip.scatters_over(devices // n, devices))
        grouped, whole = (
            {"mesh.fsdp": str(devices // n), "mesh.data": str(n), "optim.accumulate": str(parts)} for n in (groups, 1)
        )
        held = search.memory(resolve(load.read(self.config, grouped), optim.uncovered))
        return grouped if held <= search.ROOM * chip.memory / chip.devices else whole


def entries() -> list[Entry]:
    return [
        Entry(setting, rung, arch, topology)
        for setting, rungs in RUNGS.items()
        for rung, topologies in rungs.items()
        for topology in topologies
        for arch in ARCHS
    ]


def digest(entry: Entry, versions: dict[str, str]) -> str:
    """Of what a plan follows from, the program's own text apart."""
    config = resolve(load.read(entry.config, entry.overrides()), optim.uncovered)
    text = json.dumps([rundir.plain(config), entry.topology, entry.quick, versions], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def main(folder: Path) -> int:
    """Compiles what `folder/plan.json` lacks; 1 where a rung does not fit or does not compile."""
    out = Console(stderr=True)
    versions = chips.topology("v5p:2x2x1").versions
    wanted = {entry: digest(entry, versions) for entry in entries()}
    # An older plan of an entry stays until it has a new one, but for those that bound the step in another way.
    rows = {entry: row for entry, row in _known(folder / "plan.json").items() if entry in wanted}
    todo = [e for e, key in wanted.items() if e not in rows or rows[e]["digest"] != key or rows[e].get("failed")]
    with process.progress(out) as progress, ThreadPoolExecutor(AT_ONCE) as pool:
        task = progress.add_task("", total=len(wanted), completed=len(wanted) - len(todo))
        waiting = {pool.submit(compiled, entry): entry for entry in todo}
        for done in as_completed(waiting):
            entry = waiting[done]
            rows[entry] = {"digest": wanted[entry], **vars(entry), **done.result()}
            write(folder, [rows[e] for e in wanted if e in rows])
            progress.update(task, advance=1, description=f"{entry.setting} {entry.rung} {entry.arch}")
    write(folder, [rows[entry] for entry in wanted])
    return int(any(not row.get("fits") for row in rows.values()))


def _known(path: Path) -> dict[Entry, dict]:
    if not path.is_file():
        return {}
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))["plans"]
        rows = [row for row in rows if row["digest"] and not (row.get("fits") and "step" not in row["roofline"])]
        return {Entry(*(row[x.name] for x in fields(Entry))): row for row in rows}
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} holds no plans ({error!r}); move it away, and all are compiled anew") from error


def compiled(entry: Entry) -> dict:
    plan = process.plan(entry.config, entry.topology, entry.overrides(), entry.quick)
    return plan | {"commit": provenance.commit()[0]}


# --- the page --------------------------------------------------------------------------------------------------------

HEAD = """# Plans

Rungs of every architecture, compiled for TPUs that were not there: `make plan` (`mot plan --ladder`) writes this page
and `plan.json`, which has every figure. {versions}. {made} of {wanted} are compiled{rest}.

Each step is the one that `mot train` runs, all devices along `fsdp`, or groups of up to 64 where that sends less and
fits. Memory, matmuls and what is sent are the compiler's. The step's time is at peak figures: each operation takes as
long as the most of its matmuls, its memory traffic and what is waited for on the links, one operation after another.
"Overlapped" is the least if all of these overlapped. {assumed}.
"Matmuls" is what the program multiplies outside attention over the formula and the recomputation that the remat policy
asks for. Rungs from 1 G parameters, and experts, are compiled with the least effort (`mot plan --quick`): it takes more
memory, and sends nothing beside other work. All figures are one device's; tpu7x has two devices a chip.
"""


def write(folder: Path, rows: list[dict]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / "plan.json", json.dumps({"plans": rows}, indent=1) + "\n")
    write_atomically(folder / "plan.md", page(rows))


def page(rows: list[dict]) -> str:
    made = [row for row in rows if "versions" in row]
    versions = ", ".join(f"{k} {v}" for k, v in made[0]["versions"].items()) if made else ""
    # A row is compiled anew where its configuration changes, and not with every change of the program.
    commits = sorted({row["commit"][:7] for row in made if row.get("commit")})
    versions += f", mot at {', '.join(commits)}" if commits else ""
    assumed = made[0]["assumed"].capitalize() if made else ""
    counts = {"made": len(made), "wanted": len(entries())}
    counts["rest"] = "; `make plan` goes on with the rest" if counts["made"] < counts["wanted"] else ""
    parts = [HEAD.format(versions=versions.capitalize(), assumed=assumed, **counts)]
    for setting in RUNGS:
        parts += [f"\n## {setting}\n", *_table([row for row in rows if row["setting"] == setting])]
    return "\n".join([*parts, "\n## MoT over dense, on the same mesh\n", *_ratios(made), ""])


COLUMNS = (
    "rung",
    "architecture",
    "slice",
    "parameters",
    "GB, of",
    "matmuls",
    "ms",
    "overlapped",
    "binds",
    "MFU at most",
    "tokens a day",
    "days",
    "chip-hours",
    "GB sent",
    "compiled, s",
)


def _table(rows):
    yield "| " + " | ".join(COLUMNS) + " |"
    yield "|---" * len(COLUMNS) + "|"
    for row in rows:
        name = [row["rung"], row["arch"], row["topology"]]
        if not row["fits"]:
            told = row.get("trouble") or f"did not compile: {row['failed']}"
            yield "| " + " | ".join([*name, told, *[""] * (len(COLUMNS) - 4)]) + " |"
            continue
        line = row["roofline"]
        sent = sum(c["wire"] for c in row["collectives"].values())
        cells = [
            *name,
            f"{row['parameters'] / 1e9:.2f} G",
            f"{row['memory']['peak'] / 1e9:.1f}, {row['memory_of_chip'] / 1e9:.0f}",
            f"{row['matmul_ratio']:.3f}",
            f"{line['step'] * 1e3:.0f}",
            f"{line['overlapped'] * 1e3:.0f}",
            row["binding"],
            f"{row['mfu_bound']:.0%}",
            f"{row['tokens_per_day'] / 1e9:.1f} G",
            f"{row['days']:.1f}",
            f"{row['chip_hours']:,.0f}",
            f"{sent / 1e9:.1f}",
            f"{row['compile_seconds']:.0f}",
        ]
        yield "| " + " | ".join(cells) + " |"


def _ratios(rows):
    yield "| setting | rung | slice | matmul FLOPs | step | temporaries | compiler's effort |"
    yield "|---|---|---|---|---|---|---|"
    by = {(row["setting"], row["rung"], row["topology"], row["arch"]): row for row in rows if row["fits"]}
    for (setting, rung, topology, arch), dense in by.items():
        mot = by.get((setting, rung, topology, "mot"))
        if arch == "dense" and mot:
            computed = mot["matmul_flops"] / dense["matmul_flops"]
            step = mot["roofline"]["step"] / dense["roofline"]["step"]
            held = mot["memory"]["temporaries"] / dense["memory"]["temporaries"]
            effort = "least" if dense["effort"] < 0 else "full"
            yield f"| {setting} | {rung} | {topology} | {computed:.3f} | {step:.2f} | {held:.2f} | {effort} |"

"""Our training step beside MaxText's: the same work, one compiler, one reader; no TPU is needed.

`make bench-maxtext` makes an environment for both and writes docs/reference/maxtext.md and maxtext.json. Each program
is compiled in a process of its own and left in a folder, as text. MaxText's is compiled again only where what is asked
of it, or a version, has changed; ours always.
"""

import argparse
import datetime
import gzip
import json
import math
import os
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from rich.console import Console

from bench import compared
from launch import process
from mot import optim
from mot.config import Config, load, resolve
from mot.errors import UserError
from mot.files import write_atomically
from mot.plan import chips
from mot.plan.process import last_words, progress

SLICES = {"v5p:4x4x4": 16, "v6e:16x16": 256}  # devices along fsdp
# Rungs of configs/ladder.py, and what makes MaxText's decoder the same.
MODELS = {
    "dense": ("dense", {"decoder_block": "llama2"}),
    "mixtral": ("moe_tc4", {"decoder_block": "mixtral", "num_experts_per_tok": 1, "sparse_matmul": True}),
}
# What MaxText's blocks do not have.
LLAMA = {"model.norm": "pre", "model.qk_norm": "none", "objective.z_loss": "0"}
# Of attention's kernels: those that `mot/model/kernels.py` takes for heads of 128 and rows of 4096.
BLOCKS = {name: 1024 for name in ("q", "kv", "q_dkv", "kv_dkv", "q_dq", "kv_dq")}
BLOCKS |= {"kv_compute": 512, "kv_dkv_compute": 512}
# MaxText asks nobody: no bucket, no hub, no metadata of a machine in the cloud.
OFFLINE = {"DECOUPLE_GCLOUD": "TRUE", "HF_HUB_OFFLINE": "1", "TF_CPP_MIN_LOG_LEVEL": "3", "PYTHONIOENCODING": "utf-8"}
PACKAGES = ("mot", "maxtext", "jax", "libtpu", "tokamax")
CHANGED = {"mot": "ours", "MaxText": "theirs"}  # fields of `Work`
STEPS = "bench.steps"  # the module that compiles


@dataclass(frozen=True)
class Work:
    model: str
    slice: str
    layers: int
    quick: bool
    ours: tuple[str, ...] = ()  # KEY=VALUE, of our configuration
    theirs: tuple[str, ...] = ()  # of MaxText's

    @property
    def name(self) -> str:
        return f"{self.model}-{self.slice.replace(':', '-')}-{self.layers}{'-quick' * self.quick}"

    @property
    def config(self) -> str:
        return f"configs/ladder.py:rung=7b,arch={MODELS[self.model][0]}"

    @property
    def topology(self) -> chips.Topology:
        """Without devices: figures need none."""
        chip, sides = chips.parse(self.slice)
        return chips.Topology(self.slice, chip, math.prod(sides), (), {})

    @property
    def overrides(self) -> dict[str, str]:
        along = SLICES[self.slice]
        mesh = {"mesh.fsdp": along, "mesh.data": self.topology.chips // along, "model.layers": self.layers}
        return LLAMA | {key: str(value) for key, value in mesh.items()} | _pairs(self.ours)


def _pairs(given: Iterable[str]) -> dict[str, str]:
    for text in given:
        if not text.partition("=")[0] or "=" not in text:
            raise UserError(f"{text!r} changes nothing: write KEY=VALUE, as in optim.moments=bfloat16")
    return dict(text.split("=", 1) for text in given)


def settings(work: Work, config: Config) -> dict[str, Any]:
    """MaxText's, for the work that `config` says."""
    stream = next(iter(config.streams.values()))
    tower = next(iter(config.ffn.values()))
    model = config.model
    return {
        "base_emb_dim": stream.width,
        "base_num_decoder_layers": model.layers,
        "base_num_query_heads": model.heads,
        "base_num_kv_heads": model.kv_heads,
        "head_dim": model.head_size,
        "base_mlp_dim": stream.ffn,
        "base_moe_mlp_dim": stream.ffn,
        "num_experts": max(tower.experts, 1),
        "vocab_size": config.vocab,
        "max_target_length": config.length,
        "per_device_batch_size": config.data.batch // (config.mesh.data * config.mesh.fsdp),
        "ici_data_parallelism": config.mesh.data,
        "ici_fsdp_parallelism": config.mesh.fsdp,
        "compile_topology_num_slices": 1,
        "remat_policy": "full",
        "attention": "flash",
        "use_tokamax_splash": True,
        "dq_reduction_steps": 3,
        "use_iota_embed": True,
        **{f"sa_block_{name}": size for name, size in BLOCKS.items()},
        "dataset_type": "synthetic",
        "enable_checkpointing": False,
        "skip_jax_distributed_system": True,
        "log_config": False,
        "run_name": work.name,
        **MODELS[work.model][1],
        **_pairs(work.theirs),
    }


def compiled(wanted: dict, files: Path) -> tuple[str, dict]:
    """The text of a program and what was told of it, compiled in a process of its own."""
    files.parent.mkdir(parents=True, exist_ok=True)
    told = files.with_name(f"{files.name}.json")
    told.unlink(missing_ok=True)
    command = [sys.executable, "-m", STEPS, json.dumps(wanted), str(files), str(os.getpid())]
    env = os.environ | process.PLANNING | OFFLINE
    done = subprocess.run(command, capture_output=True, encoding="utf-8", env=env, check=False)
    files.with_name(f"{files.name}.log").write_text(done.stdout + done.stderr, encoding="utf-8")
    if done.returncode:
        raise UserError(f"{files.name} of {files.parent.name} did not compile: {last_words(done.stderr)}; see its .log")
    return kept(files)


def kept(files: Path) -> tuple[str, dict]:
    told = json.loads(files.with_name(f"{files.name}.json").read_text(encoding="utf-8"))
    return gzip.decompress(files.with_name(f"{files.name}.hlo.gz").read_bytes()).decode(), told


def is_kept(wanted: dict, files: Path) -> bool:
    try:
        return kept(files)[1]["wanted"] == wanted
    except (OSError, ValueError, KeyError, EOFError):
        return False


def _versions() -> dict[str, str]:
    try:
        return {name: metadata.version(name) for name in PACKAGES}
    except metadata.PackageNotFoundError as error:
        raise UserError(
            f"{error.name} is not installed here; `make bench-maxtext` makes an environment that has it"
        ) from error


def configured(work: Work) -> Config:
    """Of our step. Raises UserError of what either's changes have wrong, as far as ours can tell."""
    _pairs(work.theirs)
    return resolve(load.read(work.config, work.overrides), optim.uncovered)


def beside(work: Work, folder: Path) -> dict:
    """Both programs' figures, each compiled if it must be."""
    config = configured(work)
    given = [f"{key}={value}" for key, value in settings(work, config).items()]
    versions = _versions()
    common = {"slice": work.slice, "quick": work.quick, "versions": versions}
    files = folder / work.name
    theirs = {"trainer": "MaxText", "arguments": {"settings": given}, **common}
    ours = {"trainer": "mot", "arguments": {"config": work.config, "overrides": work.overrides}, **common}
    them = kept(files / "maxtext") if is_kept(theirs, files / "maxtext") else compiled(theirs, files / "maxtext")
    us = compiled(ours, files / "mot")
    found = {
        name: compared.figures(text, told["memory"], told["cpu_seconds"], config, work.topology)
        for name, (text, told) in {"mot": us, "MaxText": them}.items()
    }
    mesh = {axis: n for axis in ("data", "fsdp") if (n := getattr(config.mesh, axis)) > 1}
    day = datetime.datetime.now(datetime.UTC).date().isoformat()
    return {**vars(work), "mesh": mesh, "versions": versions, "day": day, "figures": found}


# --- the command and its page ----------------------------------------------------------------------------------------

HEAD = """# Beside MaxText

A training step of ours and one of [MaxText](https://github.com/AI-Hypercomputer/maxtext) of the same work, compiled for
TPUs that were not there by one compiler and read by one reader: `make bench-maxtext` writes this page and
`maxtext.json`. Nothing ran on a TPU: times are of peak figures.

The work is `configs/ladder.py:rung=7b` without norms after blocks and of queries and keys, and without z-loss: a Llama
4096 wide, with 32 heads of 128 and FFNs of 11008 (`mixtral`: 4 of them, of which a token chooses one), 65,536 ids, and
768 rows of 4096 tokens. Both compute in bfloat16, keep float32 parameters and AdamW's moments, run each block forward
again on the way back, and have tokamax's splash attention in blocks of 1024.

Ours: the step that `mot train` runs, its layout, its loss and the options that it gives the compiler. MaxText's: its
`train_compile` with its defaults, experts by `sparse_matmul` and `megablox`, and embeddings by a matmul, as its recipes
for TPUs have them (`use_iota_embed`: less memory for two more matmuls of the vocabulary). Flags for the compiler, as
its recipes have them, too, are in a table that says so alone.

Figures are one device's. Attention's FLOPs are those of the blocks visited, the same for both. "Sum by operation" is
each operation's most of matmuls, memory and links, one after another (`mot/plan/bound.py`). Bytes accessed are an upper
bound. "Reduced" is gradients, but for some scalars. A ratio below 1 says that ours has less of it.
"""


def page(rows: list[dict]) -> str:
    parts = [HEAD]
    for row in rows:
        mesh = " x ".join(f"{axis} {n}" for axis, n in row["mesh"].items())
        versions = ", ".join(f"{name} {version}" for name, version in row["versions"].items())
        effort = "the compiler's least effort" if row["quick"] else "full effort"
        parts.append(f"## {row['model']}, {row['slice']}, {row['layers']} layers\n")
        changed = [f"{name} with {', '.join(row[key])}; " for name, key in CHANGED.items() if row[key]]
        parts.append(f"Mesh: {mesh}; {effort}; {''.join(changed)}{versions}; {row['day']}.\n")
        parts.append(compared.table(row["figures"]["mot"], row["figures"]["MaxText"]) + "\n")
    return "\n".join(parts)


def written(out: Path) -> list[dict]:
    """The rows that the folder has, also older ones. Raises UserError where its file cannot be read."""
    file = out / "maxtext.json"
    if not file.exists():
        return []
    try:
        rows = json.loads(file.read_text(encoding="utf-8"))["rows"]
        return [row for row in rows if row["figures"]["mot"]]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{file} is no table of this command's; move it away, or name another --out") from error


def write(out: Path, rows: list[dict]) -> None:
    """The page and its figures: those of `rows`, and what the folder has of other work."""
    known = [row for row in written(out) if row["figures"]["mot"].keys() == rows[0]["figures"]["mot"].keys()]

    def key(row):
        return row["model"], row["slice"], row["layers"], row["quick"], tuple(row["ours"]), tuple(row["theirs"])

    merged = {key(row): row for row in (*known, *rows)}
    ordered = [merged[k] for k in sorted(merged)]
    write_atomically(out / "maxtext.json", json.dumps({"rows": ordered}, indent=1) + "\n")
    write_atomically(out / "maxtext.md", page(ordered))


def arguments(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.maxtext", description=__doc__.splitlines()[0])
    parser.add_argument("--model", action="append", choices=MODELS, help="again for several; default: all")
    parser.add_argument("--slice", action="append", choices=SLICES, help="again for several; default: all")
    parser.add_argument("--layers", type=int, default=32, help="fewer for a quick table")
    parser.add_argument("--quick", action="store_true", help="the compiler's least effort, for both")
    for name, whose in CHANGED.items():
        help = f"another value of {name}'s configuration, again for several"
        parser.add_argument(f"--{whose}", action="append", default=[], metavar="KEY=VALUE", help=help)
    parser.add_argument("--keep", type=Path, default=Path("build/maxtext"), help="a folder for the programs' texts")
    parser.add_argument("--out", type=Path, default=Path("docs/reference"), help="a folder for the page")
    return parser.parse_args(argv)


def main(argv: list[str]) -> int:
    given = arguments(argv)
    works = [
        Work(model, slice, given.layers, given.quick, tuple(given.ours), tuple(given.theirs))
        for model in dict.fromkeys(given.model or MODELS)
        for slice in dict.fromkeys(given.slice or SLICES)
    ]
    for work in works:  # compiling takes minutes: what can be refused is refused before
        configured(work)
    _versions()
    written(given.out)
    for folder in (given.keep, given.out):
        folder.mkdir(parents=True, exist_ok=True)
    rows = []
    with progress(Console(stderr=True)) as bar:
        task = bar.add_task("", total=len(works))
        for work in works:
            bar.update(task, description=work.name)
            rows.append(beside(work, given.keep))
            write(given.out, rows)
            bar.advance(task)
    print(page(rows))
    return 0


if __name__ == "__main__":
    sys.exit(process.guarded(main, sys.argv[1:]))

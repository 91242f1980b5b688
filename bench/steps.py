"""One training step compiled for TPUs that are not there, in a process of its own: ours or MaxText's.

`python -m bench.steps WANTED FILES PARENT` is run by `bench/maxtext.py`, and ends with the process PARENT. WANTED is
JSON. FILES is a path to which `.hlo.gz`, the program's text, and `.json`, what was wanted and what the compiler said,
are added.
"""

import gzip
import json
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from launch import process
from mot import optim
from mot.config import load, resolve
from mot.errors import UserError
from mot.files import write_atomically
from mot.plan import chips, forecast

MEMORY = ("argument", "output", "alias", "temp", "generated_code")


def ours(slice: str, config: str, overrides: Mapping[str, str]) -> tuple[str, Any, float]:
    """The program's text, the compiler's figures of memory, and CPU-seconds of tracing and compiling."""
    resolved = resolve(load.read(config, overrides), optim.uncovered)
    topology = chips.topology(slice)
    began = time.process_time()
    compiled = forecast.compile_step(resolved, topology)
    return compiled.text, compiled.memory, time.process_time() - began


def theirs(slice: str, settings: Sequence[str]) -> tuple[str, Any, float]:
    """As `ours`, of MaxText's own ahead-of-time compilation, whose result is kept as it passes."""
    import maxtext
    from maxtext.trainers.pre_train import train_compile

    base = Path(maxtext.__file__).parent / "configs/base.yml"
    compile, kept = train_compile.jit_and_compile, []

    def keeping(*args, **kwargs):
        began = time.process_time()
        compiled = compile(*args, **kwargs)
        kept.append((compiled.as_text(), compiled.memory_analysis(), time.process_time() - began))
        return compiled

    train_compile.jit_and_compile = keeping
    try:
        train_compile.main(["train_compile", str(base), *settings, f"compile_topology={_name(slice)}"])
    except ValueError as error:  # a key that it has not, or a value that it does not allow
        raise UserError(f"MaxText refuses its settings: {error}; see --theirs") from error
    return kept[0]


def _name(slice: str) -> str:
    """MaxText's name of a slice. Raises UserError where it has none, or takes other sides for rings than we do."""
    from maxtext.utils import accelerator_to_spec_map

    known = accelerator_to_spec_map.UserFacingNameToSystemCharacteristics
    wanted = slice.replace("v5p:", "v5:")
    names = [name for name, system in known.items() if system.topology_name == wanted]
    if not names:
        raise UserError(f"--slice {slice}: MaxText has no such slice; allowed: those of its accelerator_to_spec_map.py")
    if known[names[0]].wrap != chips.wrap(slice):
        raise UserError(
            f"--slice {slice}: MaxText takes {known[names[0]].wrap} of its sides for rings, mot {chips.wrap(slice)}; "
            "programs for different links cannot be compared: choose another slice"
        )
    return names[0]


def main(argv: list[str]) -> int:
    wanted, files, parent = json.loads(argv[0]), argv[1], int(argv[2])
    process.end_with(parent)
    if wanted["quick"]:
        forecast.hurry()
    compile = {"mot": ours, "MaxText": theirs}[wanted["trainer"]]
    text, memory, seconds = compile(wanted["slice"], **wanted["arguments"])
    sizes = {name: getattr(memory, f"{name}_size_in_bytes") for name in MEMORY}
    write_atomically(Path(f"{files}.hlo.gz"), gzip.compress(text.encode(), mtime=0))
    told = {"wanted": wanted, "memory": sizes, "cpu_seconds": seconds}
    write_atomically(Path(f"{files}.json"), json.dumps(told, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(process.guarded(main, sys.argv[1:]))

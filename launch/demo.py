"""Trains architectures on the same batches of real text and images, lets them draw and read, and reports."""

import sys
from pathlib import Path

from launch import flags, sample
from launch.cli import guarded
from mot import checkpoint, train
from mot.errors import UserError
from scaling import report, runs


def main(argv: list[str] | None = None) -> int:
    p = flags.parser("demo", __doc__, "mot demo --archs dense,mot --seeds 2")
    flags.add_config(p, str(Path(__file__).parent.parent / "configs" / "digits.py"))
    p.add_argument("--archs", default="dense,mot", help="of configs/archs.py; default %(default)s")
    p.add_argument("--seeds", type=int, default=2, help="runs of each architecture; default %(default)s")
    p.add_argument("--out", type=Path, default=Path("runs/demo"), help="where runs and results go; default %(default)s")
    options, overrides = flags.parse(p, argv)
    if options.seeds < 1:
        raise UserError(f"--seeds={options.seeds}; must be 1 or more")
    for key in sorted(overrides.keys() & {"run.root", "run.name", "model.seed", "data.seed"}):
        raise UserError(f"--config.{key}={overrides[key]}: the demo names and seeds its runs; use --out and --seeds")
    configs = [
        _config(options, overrides, arch, seed)
        for seed in range(options.seeds)
        for arch in dict.fromkeys(options.archs.split(","))
    ]
    folders = [train.run(config) for config in configs]
    for folder in folders[: len(configs) // options.seeds]:  # of the first seed: a digit of each kind at every stage
        *early, last = checkpoint.steps(folder / "checkpoints")
        for step in early:
            sample.draw(folder, step, each=1, read=0)
        print(f"{folder.name}: {sample.summary(sample.draw(folder, last, each=2, read=10))}")
    found = runs.find(folders)
    report.print_table(found)
    sentence = report.write(found, options.out)
    print(f"{sentence}\nruns:   {options.out}\nreport: {options.out / 'report.html'}")
    return 0


def _config(options, overrides, arch, seed):
    """The same seeds for every architecture: the same batches, and the same initial values of what they share."""
    file, _, arg = options.config.partition(":")
    config = flags.read(f"{file}:{arg + ',' if arg else ''}arch={arch}", overrides)
    config.run.update(root=str(options.out), name=f"{arch}-seed{seed}")
    config.model.seed, config.data.seed = seed, seed
    return flags.build(config)


if __name__ == "__main__":
    sys.exit(guarded(main))

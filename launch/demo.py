"""Trains architectures on the same batches of real text and images, lets them draw and read, and reports."""

import sys
from pathlib import Path

from launch import cores, flags, generate, sample
from launch.process import guarded
from launch.sample import Options
from mot import checkpoint, train
from mot.data import sources
from mot.errors import UserError
from scaling import report, runs

OWN = ("run.root", "run.name", "model.seed", "data.seed")  # what the demo decides
SETTINGS = {"discrete": "digits.py", "chameleon": "chameleon.py", "transfusion": "transfusion.py"}  # of configs/


def main(argv: list[str] | None = None) -> int:
    p = flags.parser("demo", __doc__, "mot demo --setting transfusion --archs dense,mot --seeds 2")
    p.add_argument("--setting", choices=SETTINGS, help="images as ids (discrete, the default) or vectors (transfusion)")
    flags.add_config(p, "")
    p.add_argument("--archs", default="dense,mot", help="of configs/archs.py; default %(default)s")
    p.add_argument("--seeds", type=int, default=2, help="runs of each architecture; default %(default)s")
    p.add_argument("--out", type=Path, help="where runs and results go; default runs/demo, or runs/demo-SETTING")
    options, overrides = flags.parse(p, argv)
    _settle(options)
    if options.seeds < 1:
        raise UserError(f"--seeds={options.seeds}; must be 1 or more")
    archs = list(dict.fromkeys(arch.strip() for arch in options.archs.split(",") if arch.strip()))
    if not archs:
        raise UserError(f"--archs={options.archs!r}: names no architecture; see configs/archs.py")
    if "arch=" in options.config.partition(":")[2]:
        raise UserError(f"--config={options.config}: the demo chooses architectures; use --archs")
    for key in sorted(k for k in overrides if k.startswith(OWN)):
        raise UserError(f"--config.{key}={overrides[key]}: the demo names and seeds its runs; use --out and --seeds")
    configs = [_config(options, overrides, arch, seed) for seed in range(options.seeds) for arch in archs]
    cores.take(*configs)
    folders = [train.run(config) for config in configs]
    for folder in folders[: len(configs) // options.seeds]:  # of the first seed: a digit of each kind at every stage
        *early, last = checkpoint.steps(folder / "checkpoints")
        model = generate.opened(folder, last)
        asked = Options(each=2, read=10) if sources.is_embedded(model.config) else Options()
        print(f"{folder.name}: {sample.summary(sample.draw(model, last, asked))}")
        for step in early:
            sample.draw(model, step, asked._replace(read=0) if asked.read else asked)
    found = runs.find(folders)
    report.print_table(found)
    sentence = report.write(found, options.out)
    print(f"{sentence}\nruns:   {options.out}\nreport: {options.out / 'report.html'}")
    return 0


def _settle(options) -> None:
    """The setting's file and folder, where the command line names none."""
    if options.config and options.setting:
        raise UserError(
            f"--config={options.config}, --setting={options.setting}: a setting is a configuration; give one"
        )
    setting = options.setting or "discrete"
    options.config = options.config or str(Path(__file__).parent.parent / "configs" / SETTINGS[setting])
    options.out = options.out or Path("runs") / ("demo" if setting == "discrete" else f"demo-{setting}")


def _config(options, overrides, arch, seed):
    """The same seeds for every architecture: the same batches, and the same initial values of what they share."""
    file, _, arg = options.config.partition(":")
    config = flags.read(f"{file}:{arg + ',' if arg else ''}arch={arch}", overrides)
    own = {"run.root": str(options.out), "run.name": f"{arch}-seed{seed}", "model.seed": seed, "data.seed": seed}
    for key, value in own.items():
        group, name = key.split(".")
        if hasattr(config[group], "keys"):  # else `build` says what is wrong with it
            config[group][name] = value
    return flags.build(config)


if __name__ == "__main__":
    sys.exit(guarded(main))

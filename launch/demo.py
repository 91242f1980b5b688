"""Trains architectures on the same batches of real text and images, lets them draw and read, and reports."""

import sys

from launch import arguments, cores, flags, sample
from launch.process import guarded
from launch.sample import Options
from mot import checkpoint
from mot.data import sources
from mot.generate import opened
from mot.train import loop
from scaling import report, runs


def main(argv: list[str] | None = None) -> int:
    p = arguments.demo()
    options, overrides = flags.parse(p, argv)
    configs = [flags.build(tree) for tree in arguments.demo_trees(options, overrides)]
    cores.take(*configs)
    folders = [loop.run(config) for config in configs]
    for folder in folders[: len(configs) // options.seeds]:  # of the first seed: a digit of each kind at every stage
        *early, last = checkpoint.steps(folder / "checkpoints")
        model = opened.opened(folder, last)
        asked = Options(each=2, read=10) if sources.is_embedded(model.config) else Options()
        for step in (last, *early):  # of the last step, which is best, digits are also read
            less = {"read": 0} if asked.read and step != last else {}
            record = sample.draw(model, step, asked._replace(out=folder / "samples" / str(step), **less))
            if step == last:
                print(f"{folder.name}: {sample.summary(record)}")
    found = runs.find(folders)
    report.print_table(found, "after the same steps on the same batches")
    sentence = report.write(found, options.out)
    print(f"{sentence}\nruns:   {options.out}\nreport: {options.out / 'report.html'}")
    return 0


if __name__ == "__main__":
    sys.exit(guarded(main))

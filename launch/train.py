"""Trains one configuration, or resumes it: the same command does both."""

import sys

from launch import flags
from launch.cli import guarded
from mot import train


def main(argv: list[str] | None = None) -> int:
    p = flags.parser(
        "train", __doc__, "mot train --config=configs/digits.py:arch=mot,size=smoke --config.optim.lr=1e-3"
    )
    flags.add_config(p)
    options, overrides = flags.parse(p, argv)
    print(train.run(flags.build(flags.read(options.config, overrides))))
    return 0


if __name__ == "__main__":
    sys.exit(guarded(main))

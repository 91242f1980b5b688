"""Writes a run's weights and tokenizer as others read them: a folder in Hugging Face's layout, with a model card."""

import sys

from launch import arguments
from launch.process import guarded
from mot.interop import exporting


def main(argv: list[str] | None = None) -> int:
    options = arguments.export().parse_args(argv)
    done = exporting.run(options.run, options.step, options.out, options.shard_mb * 10**6, options.dtype)
    print(f"{options.out}: step {done.step} as a {done.family}, {done.files} files of weights")
    for line in done.told:
        print(line)
    return 0


if __name__ == "__main__":
    sys.exit(guarded(main))

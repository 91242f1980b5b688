"""Brings a published model into a run directory: weights and tokenizer of a folder in Hugging Face's layout."""

import sys

from launch import arguments, flags
from launch.process import guarded
from mot.interop import importing


def main(argv: list[str] | None = None) -> int:
    options = arguments.import_().parse_args(argv)
    done = importing.run(options.path, options.data, options.out, options.arch)
    print(f"{done.path}: a {done.family} of {done.parameters:,} parameters, as step 0 ({done.arch})")
    for line in done.told:
        print(line)
    begun = f"configs/records.py:data={options.data},arch={done.arch},init={done.path}"
    asked = ("--text", "Once upon a time") if done.writes else ()
    lines = [
        ("what it makes", flags.command("sample", str(done.path), *asked)),
        ("its held-out loss on these data", flags.command("evaluate", str(done.path))),
        (
            "another run begins from it",
            flags.command("train", f"--config={begun}", f"--config.run.name={done.path.name}-further"),
        ),
    ]
    print("next:", *(f"  {line}  # {what}" for what, line in lines), sep="\n", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(guarded(main))

"""The process that has the devices: it is asked for parts, a line of JSON each, and answers with rows, a line each."""

import json
import os
import sys
from collections.abc import Callable, Iterator

from bench.device import kernels, machine, steps
from launch import process

PARTS: dict[str, Callable[..., Iterator[dict]]] = {
    "machine": machine.found,
    "peak": machine.peaks,
    "step": steps.step,
    "attention": kernels.attend,
    "grouped": kernels.group,
}
END = {"end": True}  # of a part's rows


def main(parent: int) -> None:
    process.end_with(parent)  # also amid a kernel that hangs: the devices are needed
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what libraries print is no answer

    def answer(row: dict) -> None:
        print(json.dumps(row), file=answers, flush=True)

    for line in sys.stdin:
        part = json.loads(line)
        try:
            for row in PARTS[part.pop("part")](**part):
                answer(row)
        except Exception as error:  # of this part alone
            meant = None if steps.is_out_of_memory(error) else process.meaning(error)
            answer({"failed": " ".join((meant or steps.told(error)).split())})
        answer(END)


if __name__ == "__main__":
    main(int(sys.argv[1]))

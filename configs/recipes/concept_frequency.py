r"""Concept frequency (2404.04125): what is known of a concept grows with the logarithm of how often it was seen.

python -c "from configs.recipes import concept_frequency as c; c.plant('data/concepts')"     all.jsonl, n1.jsonl, ...
mot data prepare data/concepts/all.jsonl --content text:text --text-ids 400 --out data/concepts/all
mot data prepare data/concepts/n1.jsonl --content text:text --like data/concepts/all --held-out 0.25 \
    --out data/concepts/n1
mot train --config=configs/recipes/concept_frequency.py:data=data/concepts,size=cpu

The third command once for each of n1 to n64: all have the ids of one tokenizer. A concept is an invented name with
three properties that nothing else tells. Captions of a file name concepts which are seen as often as it says: its share
of the mixture. The held-out loss of each source is then that of concepts seen 1, 2, 4, ... times as often. `planted=no`
gives all concepts one share.
"""

import json
from pathlib import Path

from ml_collections import ConfigDict

from configs import base, records, sizes

COUNTS = (1, 2, 4, 8, 16, 32, 64)
CONCEPTS, PHRASES = 4, 24  # of each count; and captions of each concept
PROPERTIES = (  # words of each
    "amber black blue bronze brown coral gold green grey ivory olive pink plum red teal white",
    "bark brass clay cloth cork felt flint glass horn iron lace oak paper silk stone wax",
    "barn cave cliff creek dune fen ford glen grove hill isle lake marsh moor pond reef",
)
SIZES = {
    "smoke": sizes.LAPTOP["smoke"] | dict(rows=4),
    "cpu": sizes.LAPTOP["smoke"] | dict(width=64, heads=4, ffn=176, rows=4, steps=100, warmup=20, every=50, lr=3e-3),
}
ARGUMENTS = {
    "size": base.Argument("cpu", SIZES),
    "data": base.Argument("data/concepts", about="the folder of the datasets n1, n2, n4, ..."),
    "planted": base.Argument("yes", ("yes", "no")),
}


def get_config(arg: str = "") -> ConfigDict:
    arg = base.parse(arg, ARGUMENTS)
    size = sizes.choose(SIZES, arg["size"])
    folders = "+".join(f"{arg['data']}/n{count}" for count in COUNTS)
    c = records.build(folders, "dense", arg["size"], size, "256")
    c.data.shares = {f"n{count}": float(count if arg["planted"] == "yes" else 1) for count in COUNTS}
    c.run.update(name=f"concept_frequency-{arg['planted']}-{arg['size']}", eval_batches=2 if size["steps"] < 9 else 16)
    return c.lock()


def captions() -> dict[int, list[str]]:
    """The captions of each count: of each of its concepts, as many as there are phrases.

    Names and properties follow from a concept's number by steps that have no factor in common with how many there are.
    """
    syllables = [a + b for a in "bdfgklmnprstvz" for b in "aeiou"]
    found = {}
    for i, count in enumerate(COUNTS):
        found[count] = []
        for number in range(i * CONCEPTS, (i + 1) * CONCEPTS):
            name = "".join(
                syllables[(number * step + place) % len(syllables)] for place, step in enumerate((9, 11, 13))
            )
            words = [names.split() for names in PROPERTIES]
            chosen = " ".join(w[(number * step + number // 16) % 16] for w, step in zip(words, (3, 5, 7), strict=True))
            numbers = [(number * 37 + k * 61) % 100 for k in range(PHRASES)]
            found[count] += [f"Picture {n}: the {name} is {chosen}." for n in numbers]
    return found


def plant(folder: str) -> None:
    """Writes the captions of each count, and all of them, of which the tokenizer is learnt; to be prepared."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    files = {f"n{count}": lines for count, lines in captions().items()}
    files["all"] = [line for lines in files.values() for line in lines]
    for name, lines in files.items():
        rows = [json.dumps({"id": f"{name}-{i}", "text": line}) for i, line in enumerate(lines)]
        (Path(folder) / f"{name}.jsonl").write_text("\n".join(rows) + "\n", encoding="utf-8")

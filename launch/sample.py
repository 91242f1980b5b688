"""Digits drawn from captions, captions read from held-out digits, and free text, from a run on the embedded data."""

import json
import re
import sys
import textwrap
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from launch import flags
from launch.cli import guarded
from mot import rundir, sample, train
from mot.data import embedded, sources
from mot.data.embedded import NAMES, PIXELS, TEXT_IDS
from mot.errors import UserError
from mot.rundir import write_atomically
from mot.tokenizers.text import BOI, BOS, EOI, EOS
from scaling.judge import judge

CAPTION, READ, TEXT = 24, 48, 96  # text tokens there is room for: a caption and what surrounds it, one read, free text
PROMPTS = [f"a handwritten {name}" for name in NAMES]


def main(argv: list[str] | None = None) -> int:
    p = flags.parser("sample", __doc__, 'mot sample runs/demo/mot-seed0 --prompt "a handwritten seven"')
    p.add_argument("run", type=Path, help="a run directory")
    p.add_argument("--step", type=int, help="of the checkpoint; default the newest")
    p.add_argument("--prompt", action="append", help='of digits, may be repeated; default: "a handwritten <name>", ten')
    p.add_argument("--text", action="append", default=[], help="how a free text begins, may be repeated")
    p.add_argument("--each", type=int, default=4, help="digits drawn from each prompt; default %(default)s")
    p.add_argument("--read", type=int, default=20, help="held-out digits to caption; default %(default)s")
    p.add_argument("--temperature", type=float, default=0.7, help="0 takes the likeliest; default %(default)s")
    p.add_argument("--top-k", type=int, default=0, help="choose among so many, 0 is all; default %(default)s")
    p.add_argument("--seed", type=int, default=0, help="default %(default)s")
    p.add_argument("--out", type=Path, help="folder of the results; default RUN/samples/STEP")
    options = vars(p.parse_args(argv))
    result = draw(options.pop("run"), prompts=options.pop("prompt"), texts=options.pop("text"), **options)
    print(summary(result))
    return 0


def draw(
    run: Path, step=None, prompts=None, texts=(), each=4, read=20, temperature=0.7, top_k=0, seed=0, out=None
) -> dict:
    """Samples, as `samples.json` records them beside `digits.png` and `captions.png`."""
    if not sources.is_embedded(known := rundir.config_of(run)):
        named = ", ".join(known.data.sources)
        raise UserError(f"{run} was trained on {named}; mot sample knows the embedded digits and manual alone")
    prompts = PROMPTS if prompts is None else prompts
    _check(prompts, texts, each, read, temperature, top_k, seed)
    config, position, params = train.load(run, step)
    training, held_out = embedded.load(config)
    if position.data != training.digest:
        raise UserError(
            f"{run} was trained on other data: its digest is {position.data}, now {training.digest} (another Python "
            "has another manual, and so another tokenizer); sample where it was trained"
        )
    tokenizer = embedded.load_tokenizer()
    ids = lambda text: tokenizer.encode(text).ids
    for flag, given, most in (("prompt", prompts, CAPTION - 3), ("text", texts, TEXT // 2)):
        for value in given:
            if (n := len(ids(value))) > most:
                raise UserError(f"--{flag} {value[:60]!r}: {n} tokens; there is room for {most}; shorten it")
    out = out or run / "samples" / str(position.step)
    files = {"digits": out / "digits.png", "captions": out / "captions.png", "record": out / "samples.json"}
    _refuse_foreign(files)

    def generate(beginnings, grammar, text):
        room = {"text": text, "image": PIXELS}
        return (
            sample.generate(params, config, beginnings, grammar, room, seed, temperature, top_k) if beginnings else []
        )

    image_alone = lambda row: embedded.grammar(row) & (EOI not in row)
    drawn = generate([[BOS, *ids(prompt), BOI] for prompt in prompts * each], image_alone, CAPTION)
    drawn = np.array([[i - TEXT_IDS for i in row if i >= TEXT_IDS] for row in drawn]).reshape(-1, PIXELS)
    pixels, labels = (x[:read] for x in embedded.labelled(held_out))
    captions = generate([[BOS, BOI, *(TEXT_IDS + image), EOI] for image in pixels], embedded.grammar, READ)
    captions = [tokenizer.decode(row[row.index(EOI) + 1 :]) for row in captions]
    free = generate([[BOS, *ids(text)] for text in texts], lambda row: embedded.grammar(row) & _TEXT, TEXT)

    classify, accuracy = judge(training, held_out)
    asked = [embedded.named(prompt) for prompt in prompts * each]
    judged = classify(drawn).tolist() if len(drawn) else []
    result = {"step": position.step, "temperature": temperature, "top_k": top_k, "seed": seed, "judge": accuracy}
    result["drawn"] = {"asked": sum(a is not None for a in asked), "right": _equal(asked, judged), "prompts": prompts}
    named = [embedded.named(caption) for caption in captions]
    result["read"] = {"asked": len(labels), "right": _equal(labels.tolist(), named), "captions": captions}
    cut = lambda row: "" if row[-1] == EOS else f" ... (cut at {TEXT} tokens)"
    result["text"] = [tokenizer.decode([i for i in row if i < TEXT_IDS]) + cut(row) for row in free]

    out.mkdir(parents=True, exist_ok=True)
    for file in files.values():
        file.unlink(missing_ok=True)
    if prompts:
        _grid(drawn, prompts * each, min(len(prompts), 10), files["digits"])
    if len(pixels):
        wrong = ["" if n == label else "WRONG: " for n, label in zip(named, labels, strict=True)]
        _grid(pixels, [w + c for c, w in zip(captions, wrong, strict=True)], 5, files["captions"])
    write_atomically(files["record"], json.dumps(result, indent=1))
    return result | {"files": {name: str(file) for name, file in files.items() if file.exists()}}


def _refuse_foreign(files: dict[str, Path]) -> None:
    """Samples are drawn anew over older ones, and over nothing else."""
    present = [file for file in files.values() if file.exists()]
    try:
        ours = {"drawn", "read", "judge"} <= json.loads(files["record"].read_text()).keys()
    except (OSError, ValueError, AttributeError, RecursionError):
        ours = False
    if present and not ours:
        raise UserError(f"{present[0]} was not written by mot sample and is not overwritten; choose another --out")


_TEXT = np.arange(len(embedded.grammar([BOS]))) < TEXT_IDS
_TEXT[BOI] = False


def _equal(a, b) -> int:
    return sum(x == y and x is not None for x, y in zip(a, b, strict=True))


def _check(prompts, texts, each, read, temperature, top_k, seed) -> None:
    """One message with every fault."""
    known = set(_words(" ".join(embedded.all_captions())))
    faults = []
    for prompt in prompts:
        odd = [word for word in _words(prompt) if word not in known]
        if unknown := odd or ([] if _words(prompt) else [prompt.strip() or "nothing"]):
            faults.append(
                f"--prompt {prompt!r}: {', '.join(unknown)} is in no caption; allowed words: {' '.join(sorted(known))}"
                "; free text goes with --text"
            )
    for text in texts:
        if not all(c.isprintable() or c.isspace() for c in text):
            faults.append(f"--text {text!r}: holds characters that are no text; remove them")
    for name, value, least, most in (
        ("each", each, 1, 1000),
        ("read", read, 0, 1000),
        ("temperature", temperature, 0, 100),
        ("top-k", top_k, 0, 2**31 - 1),
        ("seed", seed, 0, 2**31 - 1),
    ):
        if not least <= value <= most:
            faults.append(f"--{name}={value}; must be from {least} to {most}")
    if faults:
        raise UserError("\n  ".join(["nothing was sampled", *faults]) if len(faults) > 1 else faults[0])


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text)


def _grid(images, titles, columns, file) -> None:
    """Digits `[n, 64]` in rows of `columns`, each under its title."""
    rows = -(-len(images) // columns)
    figure = Figure(figsize=(1.6 * columns, 2 * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for axis in axes:
        axis.set_axis_off()
    for axis, image, title in zip(axes, images, titles, strict=False):
        axis.imshow(image.reshape(8, 8), cmap="gray_r", vmin=0, vmax=16)
        axis.set_title(_label(title), fontsize=9, parse_math=False)
    figure.savefig(file, dpi=100)


def _label(text: str, width: int = 19, lines: int = 3) -> str:
    """What a model wrote, as a title can show it: printable, wrapped, cut off after some lines."""
    shown = "".join(c if c.isprintable() and ord(c) < 0x250 else " " for c in text)
    return "\n".join(textwrap.wrap(shown, width, max_lines=lines, placeholder=" ..."))


def summary(result: dict) -> str:
    lines = [f"step {result['step']}, temperature {result['temperature']}"]
    if result["drawn"]["asked"]:
        lines.append(
            f"digits drawn as asked: {result['drawn']['right']} of {result['drawn']['asked']}, by a classifier right "
            f"on {100 * result['judge']:.1f} % of real held-out digits"
        )
    if result["read"]["asked"]:
        lines.append(f"captions that name the digit: {result['read']['right']} of {result['read']['asked']}")
    lines += [f"text: {text!r}" for text in result["text"]]
    return "\n".join([*lines, *(f"{kind}: {file}" for kind, file in result["files"].items())])


if __name__ == "__main__":
    sys.exit(guarded(main))

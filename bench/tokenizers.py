"""What a learned tokenizer gains over k-means at equal rate: the same tokens of a unit, and no more ids.

python -m bench.tokenizers images emoji_32.npz --kind fsq      `images` uint8 [n, H, W, 3], `split` 0 or 1
python -m bench.tokenizers sounds fsdd_8k.npz                  `audio` int16, `offsets` [n + 1], `sample_rate`, `index`

Both learn from the same units and are measured on the same held-out ones. CPU minutes are this process's, of all its
threads, from the start of training on: compilation counts, and what other programs take of the machine does not.
"""

import argparse
import itertools
import math
import resource
from functools import partial

import numpy as np

from mot.config.tokenizer import Settings
from mot.tokenizers import audio, image
from mot.tokenizers.learned import training

HELD_OUT = 5  # recordings of each digit and speaker, as their publisher says


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    p.add_argument("medium", choices=("images", "sounds"))
    p.add_argument("file")
    p.add_argument("--kind", choices=("fsq", "vq"), default="fsq", help="of images")
    usual = Settings("fsq")
    for name in ("patch", "ids", "layers", "width", "blocks", "steps", "batch", "lr", "seed"):
        p.add_argument(f"--{name}", type=type(getattr(usual, name)), default=getattr(usual, name))
    options = vars(p.parse_args())
    medium, file = options.pop("medium"), options.pop("file")
    given = np.load(file, allow_pickle=False)
    if medium == "images":
        of_images(given, Settings(**options))
    else:
        of_sounds(given, Settings(**options | {"kind": "rvq", "rate": int(given["sample_rate"])}))


def of_images(given, settings: Settings) -> None:
    pictures, split = given["images"], given["split"]
    fitted = image.fit_image(pictures[split == 0], settings.side, settings.patch, settings.ids)
    seen = [partial(image.patches, side=settings.side, patch=settings.patch)(x) for x in pictures[split == 1]]
    back = [image.patches(fitted.decode(fitted.encode(x)), settings.side, settings.patch) for x in pictures[split == 1]]
    error = np.square(np.array(back, np.float64) - np.array(seen)).mean()
    count = math.prod(settings.levels) if settings.kind == "fsq" else settings.ids
    print(f"{fitted.tokens} tokens a picture; k-means {fitted.ids} ids, {settings.kind} {count}; {len(seen)} held out")
    print(f"k-means: {10 * math.log10(255**2 / error):.2f} dB", flush=True)

    def examples(side: int) -> training.Examples:
        of_side = [image.patches(x, settings.side, settings.patch) for x in pictures[split == side]]
        return training.pictures(of_side, settings)

    run(settings, examples(0), examples(1))


def of_sounds(given, settings: Settings) -> None:
    rate = settings.rate
    every = [given["audio"][a:b].astype(np.float32) / 2**15 for a, b in itertools.pairwise(given["offsets"])]
    sides = [
        [x for x, i in zip(every, given["index"], strict=True) if (i < HELD_OUT) == side] for side in (False, True)
    ]
    fitted = audio.fit_audio(((x, rate) for x in sides[0]), rate, ids=settings.ids, layers=settings.layers)
    train, held_out = ([training.frames(x, rate, settings) for x in clips] for clips in sides)
    levels = [(fitted.decode(fitted.encode(x, rate)).T / audio.RANGE + 1) * 255 for x in sides[1]]
    errors = [np.square(a - b) for a, b in zip(levels, held_out, strict=True)]
    error = audio.RANGE / 255 * math.sqrt(np.concatenate(errors).mean())
    print(
        f"{settings.layers} layers of {fitted.ids // settings.layers} ids; {len(held_out)} clips held out", flush=True
    )
    print(f"k-means: {error:.3f} dB", flush=True)
    run(settings, training.windows(train), training.windows(held_out))


def run(settings: Settings, train: training.Examples, held_out: training.Examples) -> None:
    began = cpu_seconds()

    def tell(step: int, found: training.Quality | None) -> None:
        if found:
            used = f"used {np.mean(found.used):.3f}, perplexity {np.mean(found.perplexity):.0f}"
            print(
                f"{(cpu_seconds() - began) / 60:.1f} CPU min: step {step}, {found.decibels:.3f} dB, {used}", flush=True
            )

    fitted = training.fit(settings, train, held_out, tell)
    print(f"best: {fitted.held_out.decibels:.3f} dB after step {fitted.step} of {settings.steps}; {settings}")


def cpu_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


if __name__ == "__main__":
    main()

"""The captions of the embedded digits: the words that a prompt for one may have."""

import re
from collections.abc import Iterator, Sequence

NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
CAPTIONS = ("a handwritten {}", "the digit {}, written by hand", "a picture of the number {}", "{} in handwriting")


def all_captions() -> list[str]:
    """Every caption there is."""
    return [caption.format(name) for caption in CAPTIONS for name in NAMES]


def faults(prompts: Sequence[str]) -> Iterator[str]:
    """The faults of prompts that are no captions."""
    known = set(_words(" ".join(all_captions())))
    for prompt in prompts:
        odd = list(dict.fromkeys(word for word in _words(prompt) if word not in known))
        allowed = f"allowed words: {' '.join(sorted(known))}; free text goes with --text"
        if odd:
            unknown = ", ".join(map(_short, odd[:5])) + ", ..." * (len(odd) > 5)
            yield f"--prompt {_short(prompt)!r}: {unknown} is in no caption; {allowed}"
        elif not _words(prompt):
            yield f"--prompt {_short(prompt)!r}: it has no word; write a caption, as 'a handwritten seven'; {allowed}"


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text)


def _short(text: str) -> str:
    """As a message shows it, which nobody wants to be as long as what was given."""
    return text if len(text) <= 60 else text[:57] + "..."

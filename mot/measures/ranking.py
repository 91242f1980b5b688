"""Questions with candidate answers, which a model ranks by likelihood: multiple choice, a caption among distractors."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from mot.config import Config
from mot.data import layout
from mot.data.layout import Format, Stretch
from mot.data.packing import Document
from mot.measures.figures import Figure, share
from mot.measures.likelihood import Score

NEAR = 1e-6  # relative: scores that differ by rounding alone are equal


class Question(NamedTuple):
    prompt: tuple[Stretch, ...]
    candidates: tuple[tuple[Stretch, ...], ...]
    answer: int  # the right candidate, from 0
    source: str  # what it counts for, beside its modality


def document(prompt: Sequence[Stretch], candidate: Sequence[Stretch], config: Config, format: Format) -> Document:
    """A candidate after its prompt; the candidate's tokens weigh 1. Its end is not asked for, as in 2005.14165, 2.4."""
    return layout.document([*prompt, *candidate], config, format, scored=len(prompt))


def accuracies(
    questions: Sequence[Question], score: Score, config: Config, format: Format, byte_lengths: np.ndarray
) -> dict[str, Figure]:
    """The share of questions whose right candidate is ranked first, by modality of the candidates and by source.

    A candidate's log-likelihood given the prompt, `sum`, is also divided by its tokens, `token`, and by its bytes of
    text, `byte`; `pmi` subtracts its log-likelihood without the prompt (2104.08315, with <bos> alone for its domain).
    Where several tie for the first place, the right one counts as a guess among them. Questions without text, or
    without a prompt, are left out of the last two.
    """
    given = [document(q.prompt, c, config, format) for q in questions for c in q.candidates]
    alone = [document((), c, config, format) for q in questions for c in q.candidates]
    nats, nats_alone = np.split(score([*given, *alone]), 2)
    tokens = np.array([d.weight.sum() for d in given])
    sizes = np.array([byte_lengths[d.token][d.weight > 0].sum() for d in given])
    ends = np.cumsum([len(q.candidates) for q in questions])[:-1]
    scores = {"sum": nats, "token": nats / tokens, "byte": nats / np.maximum(sizes, 1), "pmi": nats - nats_alone}
    of_questions = {name: np.split(x, ends) for name, x in scores.items()}
    has_bytes = [part.all() for part in np.split(sizes > 0, ends)]
    has_prompt = [bool(q.prompt) for q in questions]
    of_those = dict.fromkeys(scores, [True] * len(questions)) | {"byte": has_bytes, "pmi": has_prompt}
    found = {}
    for group, members in _groups(questions, config).items():
        for name, each in of_questions.items():
            if those := [i for i in members if of_those[name][i]]:
                chance = float(np.mean([1 / len(questions[i].candidates) for i in those]))
                found[f"{group}/{name}"] = share([first(each[i], questions[i].answer) for i in those], chance)
    return found


def first(scores: np.ndarray, answer: int) -> float:
    """1 where the answer's score `[n]` is the highest, a share of it where others are as high, else 0."""
    best = scores.max()
    ties = np.isclose(scores, best, rtol=NEAR, atol=0)
    return float(ties[answer] / ties.sum())


def _groups(questions: Sequence[Question], config: Config) -> dict[str, list[int]]:
    """Questions by modality of their candidates, and by modality and source where there are several."""
    groups: dict[str, list[int]] = {}
    for i, q in enumerate(questions):
        streams = [stretch.stream for candidate in q.candidates for stretch in candidate]
        modality = "+".join(dict.fromkeys(config.streams[s].modality for s in streams))
        groups.setdefault(modality, []).append(i)
        groups.setdefault(f"{modality}/{q.source}", []).append(i)
    return groups

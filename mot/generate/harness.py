"""A run as lm-eval, the harness of EleutherAI, asks it: likelihoods of continuations, of whole texts, and new text.

The package `lm_eval` is of the extra `eval`. It chooses documents, writes prompts, and counts; this tells it of a
model.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from lm_eval import simple_evaluate
from lm_eval.api.model import TemplateLM
from lm_eval.tasks import TaskManager
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from mot.config.options import Settings
from mot.data import layout
from mot.data.layout import Stretch
from mot.data.packing import Document
from mot.errors import UserError, reason
from mot.generate import opened
from mot.generate.opened import LoadedModel
from mot.measures import likelihood
from mot.measures.figures import Figure

LONGEST = 256  # tokens that follow where a task does not say


class Run(TemplateLM):
    """A run of mot. Contexts that are too long for its rows lose their beginning, as in the harness' own models."""

    def __init__(self, model: LoadedModel):
        super().__init__()
        self.model = model
        self.stream = model.format.text
        self.room = model.config.streams[self.stream].budget - 1  # <bos> takes a place
        self.score = likelihood.with_greedy(model.sampler.params, model.config)

    @property
    def eot_token_id(self) -> int:
        return self.model.format.eos

    @property
    def prefix_token_id(self) -> int:
        return self.model.format.bos

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        return self.model.codec.tokenizers["text"].encode(string, add_special_tokens=False).ids

    def _loglikelihood_tokens(self, requests: Sequence[tuple], **_: Any) -> list[tuple[float, bool]]:
        """Log-likelihoods in nats, and whether each continuation is what the model would write at temperature 0."""
        nats, is_greedy = self.score([self._document(context, continuation) for _, context, continuation in requests])
        return list(zip(nats.tolist(), is_greedy.tolist(), strict=True))

    def _document(self, context: Sequence[int], continuation: Sequence[int]) -> Document:
        continuation = list(continuation)[-self.room :]
        context = list(context)
        if context[:1] == [self.prefix_token_id]:  # every document begins with it
            context = context[1:]
        context = context[max(len(context) + len(continuation) - self.room, 0) :]
        parts = [Stretch(self.stream, np.array(ids, np.int64)) for ids in (context, continuation) if ids]
        return layout.document(parts, self.model.config, self.model.format, scored=len(parts) - 1)

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        """Of whole texts; those longer than a row in windows that overlap by a token."""
        documents, number = [], []
        for n, request in enumerate(requests):
            ids = self.tok_encode(request.args[0])
            for window in get_rolling_token_windows(ids, self.prefix_token_id, self.room, 1):
                documents.append(self._document(*make_disjoint_window(window)))
                number.append(n)
        total = np.zeros(len(requests))
        np.add.at(total, number, self.score(documents)[0])
        return total.tolist()

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        found: dict[int, str] = {}
        asked = [_asked(request.args[1]) for request in requests]
        for settings, most in dict.fromkeys((settings, most) for settings, most, _ in asked):
            alike = [n for n, one in enumerate(asked) if one[:2] == (settings, most)]
            prompts = [self._prompt(requests[n].args[0], most) for n in alike]
            rows = opened.rows(self.model, prompts, settings, "the harness' texts", seed=0, text=most, media=0)
            for n, row in zip(alike, rows, strict=True):
                text = "".join(self.model.codec.decode("text", part.data) for part in row.parts)
                found[n] = _cut(text, asked[n][2])
        return [found[n] for n in range(len(requests))]

    def _prompt(self, context: str, most: int) -> list[Stretch]:
        ids = self.tok_encode(context)[-max(self.room - most, 1) :]
        return [Stretch(self.stream, np.array(ids, np.int64))] if ids else []


def _asked(how: Mapping[str, Any]) -> tuple[Settings, int, tuple[str, ...]]:
    """How a task wants text: the sampler's settings, tokens at most, and what ends it."""
    until = how.get("until") or []
    ends = tuple([until] if isinstance(until, str) else until)
    does_sample = how.get("do_sample", float(how.get("temperature", 0.0)) > 0)
    temperature = float(how.get("temperature", 1.0)) if does_sample else 0.0
    settings = Settings(temperature=temperature, top_k=int(how.get("top_k", 0)), top_p=float(how.get("top_p", 1.0)))
    return settings, int(how.get("max_gen_toks", LONGEST)), ends


def _cut(text: str, ends: Sequence[str]) -> str:
    """The text before the first of some endings."""
    return text[: min([at for end in ends if end and (at := text.find(end)) >= 0], default=len(text))]


def figures(
    model: LoadedModel, tasks: Sequence[str], folder: Path | None, shots: int | None, limit: int | None
) -> dict[str, Figure]:
    """What the harness finds, by `task/metric`; the interval is of its own standard error.

    `folder` has tasks of the user's own, whose functions are run. Raises `UserError` for tasks that are not known, and
    where the harness cannot load or judge one.
    """
    manager = _manager(tasks, folder)
    if unknown := [task for task in tasks if task not in manager.all_tasks]:
        raise UserError(
            f"--tasks={','.join(tasks)}: {unknown[0]!r} is no task of lm-eval's; `lm-eval ls tasks` lists them, and "
            "--task-folder adds your own"
        )
    try:
        found = simple_evaluate(
            Run(model), tasks=list(tasks), task_manager=manager, num_fewshot=shots, limit=limit, log_samples=False
        )
    except UserError:
        raise
    except Exception as error:  # of a task's dataset, template or function, which have errors of every kind
        raise UserError(f"--tasks={','.join(tasks)}: lm-eval ended with {reason(error)}; mend the task") from error
    return _figures(found)


def _manager(tasks: Sequence[str], folder: Path | None) -> TaskManager:
    """With the harness' own tasks, thousands of files, where some are asked for that the folder has not."""
    if folder:
        own = TaskManager(include_path=str(folder), include_defaults=False)
        if {*tasks} <= {*own.all_tasks}:
            return own
    return TaskManager(include_path=str(folder) if folder else None)


def _figures(found: Mapping[str, Any]) -> dict[str, Figure]:
    result = {}
    for task, row in found["results"].items():
        for key, value in row.items():
            metric, comma, filter_ = key.partition(",")
            if not comma or metric.endswith("_stderr") or not isinstance(value, (int, float)):
                continue
            error = row.get(f"{metric}_stderr,{filter_}")
            half = 1.96 * error if isinstance(error, (int, float)) else None
            name = f"{task}/{metric}" + (f"/{filter_}" if filter_ != "none" else "")
            n = found.get("n-samples", {}).get(task, {}).get("effective")
            low, high = (None, None) if half is None else (value - half, value + half)
            result[name] = Figure(float(value), low, high, None, n)
    return result

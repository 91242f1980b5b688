"""Generation, the obvious way: the whole document again for every token. Documents grow on the host and are packed as
in training; a grammar says which ids may come next."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from mot import model
from mot.config import Config
from mot.data.packing import document, pack

Grammar = Callable[[list[int]], np.ndarray]  # ids so far -> [V] bool, what may follow; nothing: the document is done


def generate(
    params: dict,
    config: Config,
    prompts: Sequence[Sequence[int]],
    grammar: Grammar,
    room: Mapping[str, int],
    seed: int = 0,
    temperature: float = 1.0,
    top_k: int = 0,
) -> list[list[int]]:
    """Each prompt's ids with what follows, until the grammar allows nothing for which its stream has `room`.

    `temperature` 0 takes the likeliest id; `top_k` > 0 chooses among so many. Row i depends on i, its
    prompt and the settings, and on no other row. Raises `ValueError` where a prompt does not fit the room.
    """
    # Rows are short: the whole score matrix is small, and one scanned layer compiles soonest.
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, attention="reference", scan=True))
    names, budgets = list(config.streams), [room[name] for name in config.streams]
    first = np.array([s.first_id for s in config.streams.values()])
    stream_of = lambda ids: np.searchsorted(first, ids, side="right") - 1
    rows = [list(map(int, prompt)) for prompt in prompts]
    stream_V = stream_of(np.arange(config.vocab))

    def allowed(row) -> np.ndarray:
        used = np.bincount(stream_of(np.array(row)), minlength=len(budgets))
        return grammar(row) & (used < budgets)[stream_V]

    key = jax.random.key(seed)

    @jax.jit
    def draw(params, batch, last_B, allowed_BV):
        at_last = [
            (jnp.where((t.rank == last_B[:, None])[..., None], h_RD.reshape(*t.rank.shape, -1), 0)).sum(1)
            for h_RD, t in model.forward(params, batch, config, causal=True).hidden
        ]
        logits_BV = jnp.matmul(sum(at_last), model.head(params, config), preferred_element_type=jnp.float32)
        logits_BV = jnp.where(allowed_BV, logits_BV, -jnp.inf)
        if top_k:
            least_B1 = jax.lax.top_k(logits_BV, min(top_k, logits_BV.shape[1]))[0][:, -1:]
            logits_BV = jnp.where(logits_BV >= least_B1, logits_BV, -jnp.inf)
        if temperature == 0:
            return logits_BV.argmax(-1)
        keys = jax.vmap(lambda i, n: jax.random.fold_in(jax.random.fold_in(key, i), n))(jnp.arange(len(last_B)), last_B)
        return jax.vmap(jax.random.categorical)(keys, logits_BV / temperature)

    while True:
        allowed_BV = np.stack([allowed(row) for row in rows])
        going = allowed_BV.any(1)
        if not going.any():
            return rows
        batch = pack([[document(0, i, row, stream_of(np.array(row)))] for i, row in enumerate(rows)], names, budgets)
        last_B = np.array([len(row) - 1 for row in rows])
        chosen_B = np.asarray(draw(params, batch, last_B, allowed_BV))
        for row, on, token in zip(rows, going, chosen_B, strict=True):
            if on:
                row.append(int(token))

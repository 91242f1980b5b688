"""The slow, obvious oracle. Imports nothing from mot. Everything is per token, by loops and masks, in float32."""

import jax
import jax.numpy as jnp
import numpy as np


def visible(rank, segment, span, private):
    """[T, T] of one row, by the definition, pair by pair."""
    T = len(rank)
    see = np.zeros((T, T), bool)
    for q in range(T):
        for k in range(T):
            if segment[q] != segment[k] or segment[q] == 0:
                continue
            causal = rank[k] <= rank[q] and not private[k]
            together = span[q] == span[k] and span[q] != 0
            see[q, k] = causal or together
    return see


def attention(q, k, v, see):
    """One row: q [T, N, H], k and v [S, K, H], see [T, S]."""
    N, K = q.shape[1], k.shape[1]
    heads = []
    for n in range(N):
        kn, vn = k[:, n * K // N], v[:, n * K // N]
        score = jnp.where(see, q[:, n] @ kn.T / np.sqrt(q.shape[-1]), -jnp.inf)
        score = jnp.where(see.any(1)[:, None], score, 0.0)
        p = jax.nn.softmax(score, axis=-1) * see
        heads.append(p @ vn)
    return jnp.stack(heads, axis=1)


def rms(x, scale, eps):
    return x / jnp.sqrt((x**2).mean(-1, keepdims=True) + eps) * jnp.broadcast_to(scale, x.shape)


def layer(x, scale, bias, eps):
    x = x - x.mean(-1, keepdims=True)
    x = x / jnp.sqrt((x**2).mean(-1, keepdims=True) + eps)
    return x * jnp.broadcast_to(scale, x.shape) + jnp.broadcast_to(bias, x.shape)


def rope(x, position, theta):
    half = x.shape[-1] // 2
    angle = np.asarray(position, np.float64)[:, None, None] * theta ** (-np.arange(half) / half)
    a, b = x[..., :half], x[..., half:]
    cos, sin = (jnp.asarray(f(angle), jnp.float32) * jnp.ones_like(a) for f in (np.cos, np.sin))
    return jnp.concatenate([a * cos - b * sin, a * sin + b * cos], axis=-1)


def hidden(flat, row, towers, streams, o):
    """One row's normed last hidden states [T, D].

    flat: {path: array}; row: token, stream, rank, segment, span, private, position [T]; towers: component -> stream ->
    tower; o: layers, eps, theta, norm, qk_norm. Every tower computes every token's projection; one is selected.
    """

    def select(component, f):
        """f(tower name) of each token's own tower."""
        result = None
        for m, stream in enumerate(streams):
            y = f(towers[component][stream])
            mask = (row["stream"] == m).reshape(-1, *(1,) * (y.ndim - 1))
            result = jnp.where(mask, y, 0) if result is None else jnp.where(mask, y, result)
        return result

    see = visible(row["rank"], row["segment"], row["span"], row["private"])
    x = flat["embed/tokens"][row["token"]]
    for i in range(o["layers"]):
        w = lambda component, tower, name, i=i: flat[f"blocks/main/{component}/{tower}/{name}"][i]

        def norm(x, name, w=w):
            return select("norm", lambda t: rms(x, w("norm", t, name), o["eps"]))

        def project(x, name, t, w=w):
            y = jnp.einsum("td,dnh->tnh", x, w("attn", t, f"w{name}"))
            if name != "v" and o["qk_norm"] == "rms":
                y = rms(y, w("attn", t, f"{name}_norm"), o["eps"])
            if name != "v" and o["qk_norm"] == "layer":
                y = layer(y, w("attn", t, f"{name}_norm"), w("attn", t, f"{name}_norm_bias"), o["eps"])
            return y

        def attend(x, w=w, project=project):
            q, k, v = (select("attn", lambda t, name=name: project(x, name, t)) for name in "qkv")
            mixed = attention(rope(q, row["position"], o["theta"]), rope(k, row["position"], o["theta"]), v, see)
            return select("attn", lambda t: jnp.einsum("tnh,nhd->td", mixed, w("attn", t, "wo")))

        def ffn(x, w=w):
            one = lambda t: (jax.nn.silu(x @ w("ffn", t, "w1")) * (x @ w("ffn", t, "w3"))) @ w("ffn", t, "w2")
            return select("ffn", one)

        for f, name in ((attend, "attn"), (ffn, "ffn")):
            x = x + (f(norm(x, name)) if o["norm"] == "pre" else norm(f(x), name))
    return select("norm", lambda t: rms(x, flat[f"final_norm/{t}/scale"], o["eps"]))


def cross_entropy(h, head, target, scale, z_loss):
    """sum(scale * (l + z * lse^2)) with all logits at once, and l."""
    logits = h.astype(jnp.float32) @ head
    lse = jnp.log(jnp.exp(logits).sum(-1))
    nats = lse - jnp.take_along_axis(logits, target[..., None], axis=-1)[..., 0]
    return jnp.where(scale > 0, scale * (nats + z_loss * lse**2), 0).sum(), nats


def choices(score, liked, real, rank, o):
    """Of one row: which (token, expert) pairs are wanted and which find a place, `[C, E]` bool. Loops over tokens.

    score, liked [C, E] numpy; o: router, active, capacity, wins.
    """
    C, E = score.shape
    tokens = [t for t in range(C) if real[t]]
    wanted, found = np.zeros((C, E), bool), np.zeros((C, E), bool)
    if o["router"] == "expert":
        for e in range(E):
            for t in sorted(tokens, key=lambda t, e=e: (-score[t, e], rank[t]))[: int(o["active"] * len(tokens) // E)]:
                wanted[t, e] = True
        return wanted, wanted
    for t in tokens:
        for e in sorted(range(E), key=lambda e, t=t: (-liked[t, e], e))[: o["active"]]:
            wanted[t, e] = True
    if not o["capacity"]:
        return wanted, wanted
    for e in range(E):
        first = (lambda t: rank[t]) if o["wins"] == "earliest" else (lambda t, e=e: (-liked[t, e], rank[t]))
        asking = sorted((t for t in tokens if wanted[t, e]), key=first)
        for t in asking[: int(np.floor(o["capacity"] * o["active"] * len(tokens) / E + 1e-6))]:
            found[t, e] = True
    return wanted, found


def scores(x, w, o):
    logits = x @ w["router"]
    return jax.nn.softmax(logits, axis=-1) if o["score"] == "softmax" else 1 / (1 + jnp.exp(-logits))


def routed(x, w, wanted, found, o):
    """One row [C, D] through every expert, of which each token keeps those that it found, with their weights."""
    weight = scores(x, w, o)
    if o["normalise"]:
        weight = weight / jnp.where(wanted.any(1), jnp.where(wanted, weight, 0).sum(1), 1)[:, None]
    y = jnp.zeros_like(x)
    for e in range(wanted.shape[1]):
        hidden = jax.nn.silu(x @ w["w1"][e]) * (x @ w["w3"][e])
        y = y + jnp.where(found[:, e], weight[:, e], 0)[:, None] * (hidden @ w["w2"][e])
    return y

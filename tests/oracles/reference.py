"""The slow, obvious oracle. Imports nothing from mot. Everything is per token, by loops and masks, in float32."""

import jax
import jax.numpy as jnp
import numpy as np


def visible(position, segment, span, private):
    """[T, T] of one row, by the definition, pair by pair."""
    T = len(position)
    see = np.zeros((T, T), bool)
    for q in range(T):
        for k in range(T):
            if segment[q] != segment[k] or segment[q] == 0:
                continue
            causal = position[k] <= position[q] and not private[k]
            together = span[q] == span[k] and span[q] != 0
            see[q, k] = causal or together
    return see


def attention(q, k, v, see, cap=0.0):
    """One row: q [T, N, H], k and v [S, K, H], see [T, S]; scores are capped where there is a cap."""
    N, K = q.shape[1], k.shape[1]
    heads = []
    for n in range(N):
        kn, vn = k[:, n * K // N], v[:, n * K // N]
        score = q[:, n] @ kn.T / np.sqrt(q.shape[-1])
        score = jnp.where(see, cap * jnp.tanh(score / cap) if cap else score, -jnp.inf)
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


def rope(x, position, theta, sections=(), interleaved=False, time_last=False):
    """x [T, N, H]; position [T], or with sections [T, 3], of which each pair of a head reads one."""
    half = x.shape[-1] // 2
    position = np.asarray(position, np.float64)
    angle = np.zeros((len(position), 1, half))
    for i in range(half):
        of_pair = position[:, axis_of_pair(i, sections, interleaved, time_last)] if sections else position
        angle[:, 0, i] = of_pair * theta ** (-i / half)
    a, b = x[..., :half], x[..., half:]
    cos, sin = (jnp.asarray(f(angle), jnp.float32) * jnp.ones_like(a) for f in (np.cos, np.sin))
    return jnp.concatenate([a * cos - b * sin, a * sin + b * cos], axis=-1)


def axis_of_pair(i, sections, interleaved, time_last=False):
    """0 time, 1 row, 2 column. Interleaved as Qwen3-VL does it: rows and columns take every third pair of the first; or
    as ERNIE 4.5 does: every second, of as many rows as columns, before those of time."""
    if time_last and i >= sections[1] + sections[2]:
        return 0
    if time_last:
        return 1 + (i % 2 if interleaved else i >= sections[1])
    if not interleaved:
        return 0 if i < sections[0] else 1 if i < sections[0] + sections[1] else 2
    return next((axis for axis in (1, 2) if i % 3 == axis and i < 3 * sections[axis]), 0)


def rope_positions(unit, private, place, gap, step, reset, used):
    """[n, 3] by one copy of a unit, or one word, after the other. gap, step: of each token's stream; used: by axis."""
    found = []
    following = 0  # where a word would lie now
    while len(found) < len(unit):
        first = last = len(found)
        while (
            unit[first]
            and last + 1 < len(unit)
            and (unit[last + 1], private[last + 1]) == (unit[first], private[first])
        ):
            last += 1
        inside = []
        for i in range(first, last + 1):
            has_rows = place[first : last + 1].any()
            time = int((place[i][0] if has_rows else i - first) * step[i])
            inside.append([time, *(place[i][1:] if has_rows else [0 if reset else time] * 2)])
        start = following + gap[first] * bool(unit[first])
        from_start = [True, not reset or not unit[first], not reset or not unit[first]]
        at = [[x + start * moved for x, moved in zip(three, from_start, strict=True)] for three in inside]
        found += at
        if not private[first]:
            following = 1 + max(three[axis] for three in at for axis in range(3) if used[axis] and from_start[axis])
    return np.array(found)


def time_features(flat, stream, noise, o):
    """[T, features] of noise levels; 0 where there is none, unless the stream is one of o["clean"]."""
    w = {path.split("/")[-1]: x for path, x in flat.items() if path.startswith(f"latent/{stream}/time_")}
    dit = "time_in_bias" in w
    radians = np.exp(-np.log(10000) * np.arange(128) / 128) if dit else 1000.0 ** jnp.linspace(0, 1, 32)
    angle = noise[:, None] * radians[None]
    waves = jnp.concatenate([jnp.cos(angle), jnp.sin(angle)], axis=1)
    hidden = waves @ w["time_in"] + (w["time_in_bias"][None] if dit else 0)
    hidden = hidden / (1 + jnp.exp(-hidden))
    found = hidden @ w["time_out"] + (w["time_out_bias"][None] if dit else 0)
    return found if stream in o.get("clean", ()) else jnp.where(noise[:, None] > 0, found, 0)


def with_time(flat, stream, x, noise):
    """[T, D] of vectors beside their noise levels, each wave with its period from 0.004 to 4, through two layers."""
    w = {path.split("/")[-1]: y for path, y in flat.items() if path.startswith(f"latent/{stream}/time")}
    n = x.shape[1] // 2
    angle = 2 * np.pi * noise[:, None] / (0.004 * 1000 ** (np.arange(n) / (n - 1)))[None]
    waves = jnp.where(noise[:, None] > 0, jnp.concatenate([jnp.sin(angle), jnp.cos(angle)], axis=1), 0)
    hidden = jnp.concatenate([x, waves], axis=1) @ w["time_in"] + w["time_in_bias"][None]
    return hidden / (1 + jnp.exp(-hidden)) @ w["time_out"] + w["time_out_bias"][None]


def entry(flat, stream, value, unit, o):
    """[C, D] of what a stream's vectors [C, R * P] become: by a matrix, two layers, or a resampler, unit by unit.

    Units lie one after another in the stream; 0 is padding.
    """
    w = {path.split("/")[-1]: x for path, x in flat.items() if path.startswith(f"latent/{stream}/")}
    if "in_2" in w:
        hidden = value @ w["in"] + w["in_bias"][None]
        hidden = hidden * (1 + jax.scipy.special.erf(hidden / np.sqrt(2))) / 2
        return hidden @ w["in_2"] + w["in_2_bias"][None]
    if "queries" not in w:
        return value @ w["in"] + (w["in_bias"][None] if "in_bias" in w else 0)
    P, D = w["in"].shape
    R = value.shape[1] // P
    found = jnp.zeros((len(value), D))
    for u in sorted(set(unit.tolist()) - {0}):
        mine = np.flatnonzero(unit == u)
        vectors = value[mine].reshape(-1, P) @ w["in"]
        x = w["queries"][: len(mine)]
        for i in range(len(w["wq"])):
            kv = jnp.concatenate([rms(vectors, w["vectors_norm"][i], o["eps"]), rms(x, w["queries_norm"][i], o["eps"])])
            places = np.concatenate([np.arange(len(vectors)), R * np.arange(len(mine))])
            q = jnp.einsum("td,dnh->tnh", rms(x, w["queries_norm"][i], o["eps"]), w["wq"][i])
            k, v = (jnp.einsum("td,dnh->tnh", kv, w[name][i]) for name in ("wk", "wv"))
            q, k = rope(q, R * np.arange(len(mine)), o["theta"]), rope(k, places, o["theta"])
            mixed = attention(q, k, v, np.ones((len(mine), len(places)), bool))
            x = x + jnp.einsum("tnh,nhd->td", mixed, w["wo"][i])
            h = rms(x, w["ffn_norm"][i], o["eps"])
            x = x + (jax.nn.silu(h @ w["w1"][i]) * (h @ w["w3"][i])) @ w["w2"][i]
        found = found.at[mine].set(rms(x, w["out_norm"], o["eps"]))
    return found


def last_unit(row, m):
    """[T, T]: which tokens of stream m each other token sees: those of its document's last unit before it."""
    T = len(row["position"])
    seen = np.zeros((T, T), bool)
    for q in range(T):
        mine = (row["stream"] == m) & (row["segment"] == row["segment"][q]) & (row["segment"] != 0)
        before = np.flatnonzero(mine & (row["position"] < row["position"][q]))
        if row["stream"][q] != m and len(before):
            last = before[row["position"][before].argmax()]
            seen[q] = mine & (row["unit"] == row["unit"][last])
    return seen


def cross(flat, x, media, seen, stream, number, o):
    """Every stream's states [T, D] past a gated cross-attention to what each token sees of media [T, D], and FFN."""
    w = {path.split("/")[-1]: y[number] for path, y in flat.items() if path.startswith(f"cross/{stream}/")}
    k, v = (jnp.einsum("td,dnh->tnh", rms(media, w["seen_norm"], o["eps"]), w[name]) for name in ("wk", "wv"))
    result = {}
    for s, y in x.items():
        q = jnp.einsum("td,dnh->tnh", rms(y, w["attn_norm"], o["eps"]), w["wq"])
        y = y + jnp.tanh(w["attn_gate"][0]) * jnp.einsum("tnh,nhd->td", attention(q, k, v, seen), w["wo"])
        h = rms(y, w["ffn_norm"], o["eps"])
        result[s] = y + jnp.tanh(w["ffn_gate"][0]) * ((jax.nn.silu(h @ w["w1"]) * (h @ w["w3"])) @ w["w2"])
    return result


def states(flat, row, towers, streams, o):
    """One row's normed last hidden states [T, D] by stream: of every token, as if it were that stream's.

    flat: {path: array}; row: token, stream, position, segment, span, private, rope_position [T], and of vectors
    noise [T] and value, a dict by stream of [T, P]; towers: component -> stream -> tower, or a list of them by
    layer; o: layers, eps, theta, norm, qk_norm, and of vectors time, a dict by stream of add, norm or None, clean,
    the streams whose clean vectors have a level, walls, pairs of streams (queries, keys), and of dropout kept, by
    layer and branch the factor [T, D] of what is added; crossed, by stream that is no part of the joint attention
    the number of layers from one cross-attention to the next (row: unit); where they are, activation (geglu),
    offset (of norms) and scaled (embeddings); where towers are by layer also places, each layer's stack and its
    number in it. With sections rope_position is [T, 3], and place [T, 2] is added by tables where a stream has
    some.
    """
    by_layer = towers if isinstance(towers, list) else [towers] * o["layers"]
    places = o.get("places") or [("main", i) for i in range(o["layers"])]
    time, walls = o.get("time", {}), o.get("walls", ())
    of = {s: row["stream"] == m for m, s in enumerate(streams)}

    def select(ys):
        """Each token's own stream's."""
        result = 0
        for s, y in ys.items():
            result = jnp.where(of[s].reshape(-1, *(1,) * (y.ndim - 1)), y, result)
        return result

    def rms_norm(x, w):
        return rms(x, w + o.get("offset", 0), o["eps"])

    def activation(x):
        if o.get("activation") == "geglu":
            return 0.5 * x * (1 + jnp.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))
        return jax.nn.silu(x)

    crossed = o.get("crossed", {})
    joint = np.where(np.isin(row["stream"], [streams.index(s) for s in crossed]), 0, row["segment"])
    see = visible(row["position"], joint, row["span"], row["private"])
    x, condition = {}, {}
    for s in streams:
        if s not in row.get("value", {}):
            x[s] = flat["embed/tokens"][row["token"]]
            if o.get("scaled"):
                x[s] = x[s] * np.sqrt(x[s].shape[1])
            continue
        x[s] = entry(flat, s, row["value"][s], row.get("unit"), o)
        if f"latent/{s}/rows" in flat:
            x[s] = x[s] + flat[f"latent/{s}/rows"][row["place"][:, 0]] + flat[f"latent/{s}/columns"][row["place"][:, 1]]
        if time[s] == "add":
            x[s] = x[s] + time_features(flat, s, row["noise"], o)
        if time[s] == "mlp":
            x[s] = with_time(flat, s, x[s], row["noise"])
        if time[s] == "norm":
            condition[s] = time_features(flat, s, row["noise"], o)
    x_0 = dict(x)
    for i in range(o["layers"]):

        def w(component, s, name, i=i):
            stack, number = places[i]
            return flat[f"blocks/{stack}/{component}/{by_layer[i][component][s]}/{name}"][number]

        def norm(x, name, w=w):
            ys = {s: rms_norm(x[s], w("norm", s, name)) for s in streams}
            for s, c in condition.items():
                scale, shift = jnp.split(c @ w("norm", s, f"{name}_ada"), 2, axis=1)
                ys[s] = ys[s] * (1 + scale) + shift
            return ys

        def project(x, name, s, w=w):
            y = jnp.einsum("td,dnh->tnh", x, w("attn", s, f"w{name}"))
            if f"blocks/{places[0][0]}/attn/{by_layer[0]['attn'][s]}/{name}_bias" in flat:
                y = y + w("attn", s, f"{name}_bias")[None]
            if name != "v" and o["qk_norm"] == "rms":
                y = rms_norm(y, w("attn", s, f"{name}_norm"))
            if name != "v" and o["qk_norm"] == "rms_flat":
                flat_scale = w("attn", s, f"{name}_norm").reshape(-1)
                y = rms_norm(y.reshape(len(y), -1), flat_scale).reshape(y.shape)
            if name != "v" and o["qk_norm"] == "layer":
                y = layer(y, w("attn", s, f"{name}_norm"), w("attn", s, f"{name}_norm_bias"), o["eps"])
            if name == "v":
                return y
            y = rope(y, row["rope_position"], o["theta"], *o.get("sections", ()))
            return y * (y.shape[-1] / o["query_size"]) ** 0.5 if name == "q" and o.get("query_size") else y

        def attend(x, w=w, project=project):
            q, k, v = ({s: project(x[s], name, s) for s in streams} for name in "qkv")
            mixed = {}
            for s in streams:
                shut = [b for a, b in walls if a == s]

                def one(b, y, shut=shut):
                    return jax.lax.stop_gradient(y) if b in shut else y

                mine = [select({b: one(b, y) for b, y in ys.items()}) for ys in (k, v)]
                mixed[s] = attention(q[s], *mine, see, o.get("cap", 0.0))
            return {s: jnp.einsum("tnh,nhd->td", mixed[s], w("attn", s, "wo")) for s in streams}

        def ffn(x, w=w):
            def gate(s):
                return activation(x[s] @ w("ffn", s, "w1"))

            return {s: (gate(s) * (x[s] @ w("ffn", s, "w3"))) @ w("ffn", s, "w2") for s in streams}

        for s, every in crossed.items():
            if (i + 1) % every == 0:
                x = cross(flat, x, x_0[s], last_unit(row, streams.index(s)), s, i // every, o)
        for f, name in ((attend, "attn"), (ffn, "ffn")):
            ys = f(x if o["norm"] == "post" else norm(x, name))
            if o["norm"] == "post":
                ys = norm(ys, name)
            if o["norm"] == "both":
                ys = {s: rms_norm(ys[s], w("norm", s, f"{name}_post")) for s in streams}
            kept = o["kept"][i][name] if "kept" in o else 1
            x = {s: x[s] + kept * ys[s] for s in streams}
    return {s: rms_norm(x[s], flat[f"final_norm/{by_layer[-1]['norm'][s]}/scale"]) for s in streams}


def hidden(flat, row, towers, streams, o):
    """`states` of each token's own stream [T, D], where all have one width."""
    ys = states(flat, row, towers, streams, o)
    masks = [(row["stream"] == m)[:, None] for m in range(len(streams))]
    return sum(jnp.where(mask, ys[s], 0) for mask, s in zip(masks, streams, strict=True))


def cross_entropy(h, head, target, scale, z_loss, cap=0.0):
    """sum(scale * (l + z * lse^2)) with all logits at once, and l; logits are capped where there is a cap."""
    logits = h.astype(jnp.float32) @ head
    logits = cap * jnp.tanh(logits / cap) if cap else logits
    lse = jnp.log(jnp.exp(logits).sum(-1))
    nats = lse - jnp.take_along_axis(logits, target[..., None], axis=-1)[..., 0]
    return jnp.where(scale > 0, scale * (nats + z_loss * lse**2), 0).sum(), nats


def choices(score, liked, real, position, o):
    """Of one row: which (token, expert) pairs are wanted and which find a place, `[C, E]` bool. Loops over tokens.

    score, liked [C, E] numpy; o: router, active, capacity, overflow, groups, active_groups.
    """
    C, E = score.shape
    tokens = [t for t in range(C) if real[t]]
    wanted, found = np.zeros((C, E), bool), np.zeros((C, E), bool)
    if o["router"] == "expert":
        for e in range(E):
            for t in sorted(tokens, key=lambda t, e=e: (-score[t, e], position[t]))[
                : int(o["active"] * len(tokens) // E)
            ]:
                wanted[t, e] = True
        return wanted, wanted
    size = E // o["groups"]
    for t in tokens:
        best = [sum(sorted(liked[t, g * size : g * size + size])[-2:]) for g in range(o["groups"])]
        groups = sorted(range(o["groups"]), key=lambda g, best=best: (-best[g], g))[: o["active_groups"]]
        allowed = [e for e in range(E) if e // size in groups]
        for e in sorted(allowed, key=lambda e, t=t: (-liked[t, e], e))[: o["active"]]:
            wanted[t, e] = True
    if not o["capacity"]:
        return wanted, wanted
    for e in range(E):
        first = (lambda t: position[t]) if o["overflow"] == "earliest" else (lambda t, e=e: (-liked[t, e], position[t]))
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
    weight = weight * o["weight_scale"]
    y = jnp.zeros_like(x)
    for e in range(wanted.shape[1]):
        hidden = jax.nn.silu(x @ w["w1"][e]) * (x @ w["w3"][e])
        y = y + jnp.where(found[:, e], weight[:, e], 0)[:, None] * (hidden @ w["w2"][e])
    return y


def muon(gradient, steps=5):
    """The first step of Muon for one matrix [in, out], float64: Newton-Schulz written out (2502.16982, 2.1)."""
    x = np.asarray(gradient, np.float64)
    x = x / np.linalg.norm(x)
    for _ in range(steps):
        square = x @ x.T
        x = 3.4445 * x + (-4.7750 * square + 2.0315 * square @ square) @ x
    return 0.2 * max(x.shape) ** 0.5 * x


def place_of_unit(kinds: list, i: int) -> str:
    """Of unit i of a document of these modalities: does another come before it, and does another come after?"""
    before = any(kind != kinds[i] for kind in kinds[:i])
    after = any(kind != kinds[i] for kind in kinds[i + 1 :])
    return {(False, False): "only", (False, True): "first", (True, False): "last", (True, True): "middle"}[
        before, after
    ]


def sees_by_runs(runs: list[tuple[str, int]]) -> np.ndarray:
    """`[T, T]` bool: who sees whom in one document, given as runs `(kind, tokens)` in document order.

    Kinds are ids (which see what came before), vectors (which also see all of their own run) and noised (vectors that
    nobody else sees).
    """
    kind = [k for k, n in runs for _ in range(n)]
    run = [i for i, (_, n) in enumerate(runs) for _ in range(n)]
    sees = np.zeros((len(kind), len(kind)), bool)
    for q in range(len(kind)):
        for k in range(len(kind)):
            if run[q] == run[k]:
                sees[q, k] = kind[q] != "ids" or k <= q
            else:
                sees[q, k] = run[k] < run[q] and kind[k] != "noised"
    return sees


def parts(states, batch, pools):
    """What stands for each document's part in each stream of `pools`: {(row, source, doc_id): {stream: [D]}}.

    states: stream -> [B, C, D]; batch: stream -> field -> [B, C]; pools: stream -> mean, last or a token's id.
    """
    found = {}
    for name, pool in pools.items():
        fields = batch[name]
        members = {}
        for r, row in enumerate(np.asarray(fields["segment"])):
            for i in np.flatnonzero(row):
                key = (r, int(fields["source"][r][i]), int(fields["doc_id"][r][i]))
                if not fields["private"][r][i]:
                    members.setdefault(key, []).append(i)
        for key, tokens in members.items():
            chosen = {"mean": tokens, "last": tokens[-1:]}.get(pool)
            if chosen is None:
                chosen = [i for i in tokens if fields["token"][key[0]][i] == int(pool)]
            if chosen:
                total = sum(states[name][key[0], i] for i in chosen)
                found.setdefault(key, {})[name] = total / len(chosen)
    return found


def contrastive(states, batch, pools, weights, kind, skip_equal=False):
    """The loss of all documents with a part in both streams: of each pair of them by itself. `weights` has scale, bias,
    and by stream a projection."""
    names = list(pools)
    whole = [(key, found) for key, found in parts(states, batch, pools).items() if len(found) == 2]
    x, y = ([found[name] @ weights[name] for _, found in whole] for name in names)
    x, y = ([v / jnp.sqrt((v**2).sum()) for v in side] for side in (x, y))

    def ids(key, name):
        fields, (r, source, doc_id) = batch[name], key
        mine = (fields["segment"][r] != 0) & (fields["source"][r] == source) & (fields["doc_id"][r] == doc_id)
        return tuple(np.asarray(fields["token"][r])[np.asarray(mine)])

    def compared(i, j):
        return i == j or not skip_equal or ids(whole[i][0], names[0]) != ids(whole[j][0], names[0])

    n = len(whole)
    cosine = [[x[i] @ y[j] for j in range(n)] for i in range(n)]
    logit = [[jnp.exp(weights["scale"]) * cosine[i][j] + weights["bias"] for j in range(n)] for i in range(n)]
    total = 0.0
    for i in range(n):
        if kind == "sigmoid":
            for j in range(n):
                if compared(i, j):
                    total += jnp.log(1 + jnp.exp(-logit[i][j] if i == j else logit[i][j]))
        else:
            by_row = sum(jnp.exp(logit[i][j]) for j in range(n) if compared(i, j))
            by_column = sum(jnp.exp(logit[j][i]) for j in range(n) if compared(j, i))
            total += (jnp.log(by_row) + jnp.log(by_column)) / 2 - logit[i][i]
    return total / n


def predicted(flat, name, states, seen, target, unit, rope_position, o):
    """What a stream's predictor tells of the states of one row's targets: {token: [D]}, unit by unit.

    states: {token: [D]} of those that are seen; seen, target, unit, rope_position [C]; o: layers, eps, theta, norm,
    qk_norm.
    """

    def w(path, i=None):
        x = flat[f"predictor/{name}/{path}"]
        return x if i is None else x[i]

    def normed(x, branch, i):
        return rms(x, w(f"blocks/main/norm/{name}/{branch}", i), o["eps"])

    found = {}
    for u in sorted(set(unit[target])):
        tokens = [t for t in range(len(unit)) if unit[t] == u and (seen[t] or target[t])]
        x = jnp.stack([states[t] @ w("in") if seen[t] else w("hidden")[0] for t in tokens])
        position = np.array([rope_position[t] for t in tokens])
        for i in range(o["layers"]):
            a = normed(x, "attn", i) if o["norm"] == "pre" else x
            q, k, v = (jnp.einsum("td,dnh->tnh", a, w(f"blocks/main/attn/{name}/w{n}", i)) for n in "qkv")
            if o["qk_norm"] == "rms":
                q, k = (
                    rms(y, w(f"blocks/main/attn/{name}/{n}_norm", i), o["eps"])
                    for y, n in zip((q, k), "qk", strict=True)
                )
            q, k = (rope(y, position, o["theta"]) for y in (q, k))
            mixed = attention(q, k, v, np.ones((len(tokens), len(tokens)), bool))
            y = jnp.einsum("tnh,nhd->td", mixed, w(f"blocks/main/attn/{name}/wo", i))
            x = x + (y if o["norm"] == "pre" else normed(y, "attn", i))
            a = normed(x, "ffn", i) if o["norm"] == "pre" else x
            gate = jax.nn.silu(a @ w(f"blocks/main/ffn/{name}/w1", i))
            y = (gate * (a @ w(f"blocks/main/ffn/{name}/w3", i))) @ w(f"blocks/main/ffn/{name}/w2", i)
            x = x + (y if o["norm"] == "pre" else normed(y, "ffn", i))
        out = rms(x, w("final_norm"), o["eps"]) @ w("out")
        found |= {t: y for t, y in zip(tokens, out, strict=True) if target[t]}
    return found


def smooth_l1(x):
    return jnp.where(jnp.abs(x) < 1, 0.5 * x**2, jnp.abs(x) - 0.5)


def sigreg(x, directions):
    """Epps and Pulley's statistic of states x [N, D] along unit directions [D, S], by complex exponentials."""
    t = np.linspace(-3, 3, 33)
    gauss = np.exp(-(t**2) / 2)
    total = 0.0
    for s in range(directions.shape[1]):
        phi = jnp.exp(1j * (x @ directions[:, s])[:, None] * t[None]).mean(0)
        total = total + jnp.trapezoid(jnp.abs(phi - gauss) ** 2 * gauss, t)
    return len(x) * total / directions.shape[1]


def blocks(count, columns, draws, p):
    """The context and target sets of a unit of so many tokens, cell by cell; draws [blocks + 1, 4] in 0..1."""
    rows, columns = -(-count // columns), min(count, columns)

    def block(draw, share, aspect):
        area = np.float32(count) * np.float32(share[0] + (share[1] - share[0]) * draw[0])
        ratio = np.float32(aspect[0] + (aspect[1] - aspect[0]) * draw[1])
        height, width = np.sqrt(area * ratio), np.sqrt(area / ratio)
        if width > columns:
            height = area / columns
        elif height > rows:
            width = area / rows
        height, width = (int(np.clip(np.round(x), 1, most)) for x, most in ((height, rows), (width, columns)))
        top, left = int(draw[2] * (rows - height + 1)), int(draw[3] * (columns - width + 1))
        cells = {r * columns + c for r in range(top, top + height) for c in range(left, left + width)}
        return {cell for cell in cells if cell < count}

    context = block(draws[-1], (p["least_context"], p["most_context"]), (1, 1))
    targets: set[int] = set()
    for draw in draws[:-1]:
        more = targets | block(draw, (p["least_block"], p["most_block"]), (p["least_aspect"], p["most_aspect"]))
        if context - more:
            targets = more
    return context - targets, targets


def masked_terms(token, hidden, ratio, weight, shift=False):
    """What ids learn of which are hidden, one by one: (place that predicts, id, factor of its -log p)."""
    terms = []
    for i in range(len(token)):
        if hidden[i]:
            terms.append((i - 1 if shift else i, int(token[i]), float(weight[i]) / float(ratio[i])))
    return terms


def surest(logits, hidden, count):
    """The places `count` of the `hidden` ones whose likeliest id has the highest probability, and all likeliest ids."""
    probability = np.exp(logits - logits.max(-1, keepdims=True))
    probability = probability / probability.sum(-1, keepdims=True)
    places = sorted((i for i in range(len(hidden)) if hidden[i]), key=lambda i: (-probability[i].max(), i))
    return places[:count], logits.argmax(-1)

"""BAGEL's language model, slow and plain in torch, from its paper (2505.14683) and its public repository.

Every token passes both towers' matrices, and its own tower's result is taken. `w` are tensors by the published names.
"""

import math

import torch


def visible(splits):
    """bool [T, T]: does token t see token s? Splits are (kind, length), one after the other.

    A causal one sees what comes before each of its tokens; the others see all of themselves and all before; what is
    noise is seen by its own tokens alone.
    """
    kind = [kind for kind, length in splits for _ in range(length)]
    split = [i for i, (_, length) in enumerate(splits) for _ in range(length)]
    T = len(kind)
    see = torch.zeros(T, T, dtype=torch.bool)
    for t in range(T):
        for s in range(T):
            same = split[t] == split[s]
            see[t, s] = (s <= t or (same and kind[t] != "causal")) and (same or kind[s] != "noise")
    return see


def rms(x, scale, eps):
    return x * torch.rsqrt((x * x).mean(-1, keepdim=True) + eps) * scale


def turned(x, position, theta):
    """[T, N, H] by RoPE: the first half of a head against the second."""
    half = x.shape[-1] // 2
    angle = position[:, None].float() * theta ** (-torch.arange(half).float() / half)[None]
    cos, sin = angle.cos()[:, None], angle.sin()[:, None]
    a, b = x[..., :half], x[..., half:]
    return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)


def linear(x, w, name):
    bias = w.get(f"{name}.bias")
    return x @ w[f"{name}.weight"].T + (0 if bias is None else bias)


def time_features(w, level):
    """[T, D] of noise levels from 0 to 1, which clean latents have too."""
    angle = level[:, None] * torch.exp(-math.log(10000) * torch.arange(128) / 128)[None]
    waves = torch.cat([angle.cos(), angle.sin()], -1)
    hidden = linear(waves, w, "time_embedder.mlp.0")
    return linear(hidden * torch.sigmoid(hidden), w, "time_embedder.mlp.2")


def places(side, D):
    """[side * side, D], row by row: sines and cosines of the column, then those of the row."""
    quarter = D // 4
    table = torch.zeros(side * side, D)
    for row in range(side):
        for column in range(side):
            for first, at in ((0, column), (2 * quarter, row)):
                for i in range(quarter):
                    angle = at / 10000 ** (i / quarter)
                    table[row * side + column, first + i] = math.sin(angle)
                    table[row * side + column, first + quarter + i] = math.cos(angle)
    return table


def layer(w, at, x, is_latent, position, see, o):
    """One layer over [T, D]; of two towers' results each token has its own."""

    def towers(f):
        return torch.where(is_latent[:, None], f("_moe_gen"), f(""))

    def heads(y, name):
        found = towers(lambda tower: linear(y, w, f"{at}.self_attn.{name}_proj{tower}"))
        return found.reshape(len(x), -1, o["head_size"])

    def normed(y, name):
        return torch.where(
            is_latent[:, None, None],
            rms(y, w[f"{at}.self_attn.{name}_norm_moe_gen.weight"], o["eps"]),
            rms(y, w[f"{at}.self_attn.{name}_norm.weight"], o["eps"]),
        )

    y = towers(lambda tower: rms(x, w[f"{at}.input_layernorm{tower}.weight"], o["eps"]))
    q, k, v = (heads(y, name) for name in "qkv")
    q, k = (turned(normed(z, name), position, o["theta"]) for z, name in ((q, "q"), (k, "k")))
    mixed = []
    for n in range(q.shape[1]):
        of = n * k.shape[1] // q.shape[1]  # whose keys and values these queries share
        scores = q[:, n] @ k[:, of].T / math.sqrt(o["head_size"])
        mixed.append(torch.softmax(scores.masked_fill(~see, -torch.inf), -1) @ v[:, of])
    mixed = torch.cat(mixed, -1)
    x = x + towers(lambda tower: linear(mixed, w, f"{at}.self_attn.o_proj{tower}"))

    def mlp(tower):
        y = rms(x, w[f"{at}.post_attention_layernorm{tower}.weight"], o["eps"])
        gate = linear(y, w, f"{at}.mlp{tower}.gate_proj")
        return linear(
            gate * torch.sigmoid(gate) * linear(y, w, f"{at}.mlp{tower}.up_proj"), w, f"{at}.mlp{tower}.down_proj"
        )

    return x + towers(mlp)


def states(w, row, o):
    """Normed last states [T, D].

    row: token [T] (of latents any), is_latent [T], latent [T, P], level [T], place [T, 2], position [T], see [T, T]; o:
    layers, head_size, theta, eps and side, of the table of places.
    """
    text = w["language_model.model.embed_tokens.weight"][row["token"]]
    latent = linear(row["latent"], w, "vae2llm") + time_features(w, row["level"])
    latent = latent + w["latent_pos_embed.pos_embed"][row["place"][:, 0] * o["side"] + row["place"][:, 1]]
    x = torch.where(row["is_latent"][:, None], latent, text)
    for i in range(o["layers"]):
        x = layer(w, f"language_model.model.layers.{i}", x, row["is_latent"], row["position"], row["see"], o)
    norm = "language_model.model.norm"
    return torch.where(
        row["is_latent"][:, None],
        rms(x, w[f"{norm}_moe_gen.weight"], o["eps"]),
        rms(x, w[f"{norm}.weight"], o["eps"]),
    )


def weights(o):
    """Random tensors by the published names; o: as above, and width, ffn, heads, kv_heads, features and ids."""
    rng = torch.Generator().manual_seed(0)
    D, H, P = o["width"], o["head_size"], o["features"]
    found = {}

    def draw(name, *shape, mean=0.0):
        scale = 1 / math.sqrt(shape[-1]) if len(shape) > 1 else 0.2
        found[name] = mean + scale * torch.randn(*shape, generator=rng)

    def matrix(name, outs, ins, bias=False):
        draw(f"{name}.weight", outs, ins)
        if bias:
            draw(f"{name}.bias", outs)

    matrix("language_model.model.embed_tokens", o["ids"], D)
    matrix("language_model.lm_head", o["ids"], D)
    matrix("vae2llm", D, P, bias=True)
    matrix("llm2vae", P, D, bias=True)
    matrix("time_embedder.mlp.0", D, 256, bias=True)
    matrix("time_embedder.mlp.2", D, D, bias=True)
    found["latent_pos_embed.pos_embed"] = places(o["side"], D)
    for tower in ("", "_moe_gen"):
        draw(f"language_model.model.norm{tower}.weight", D, mean=1.0)
        for i in range(o["layers"]):
            at = f"language_model.model.layers.{i}"
            for name, n in (("q", o["heads"]), ("k", o["kv_heads"]), ("v", o["kv_heads"])):
                matrix(f"{at}.self_attn.{name}_proj{tower}", n * H, D, bias=True)
            matrix(f"{at}.self_attn.o_proj{tower}", D, o["heads"] * H)
            for name in "qk":
                draw(f"{at}.self_attn.{name}_norm{tower}.weight", H, mean=1.0)
            for name in ("input", "post_attention"):
                draw(f"{at}.{name}_layernorm{tower}.weight", D, mean=1.0)
            for name, outs, ins in (("gate", o["ffn"], D), ("up", o["ffn"], D), ("down", D, o["ffn"])):
                matrix(f"{at}.mlp{tower}.{name}_proj", outs, ins)
    return found

"""What stands between an encoder and a decoder: finite scalars, codebooks, or Gaussians.

Each is a module that takes `width` features of a token and gives `given` features to the decoder. `train` is the way
through it while it is trained: what the decoder sees, a loss, and tokens. `learn` then changes what no gradient does.
`encode` makes tokens, and `decode` makes of tokens what the decoder sees.
"""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

DECAY = 0.99  # of a codebook's moving averages (1711.00937, appendix A.1)
COMMITMENT = 0.25  # of the loss that draws an encoder towards its codes (1711.00937, 3.2)
# A code is dead that is chosen less often than this part of what even use would give; a row of the batch takes its
# place, as in SoundStream (2107.03312, III.C).
DEAD = 0.03
DIVERGENCE = 1e-4  # weight of a feature's Kullback-Leibler divergence against the squared error of pixels in -1..1
WIDEST = 6.0  # of the logarithm of a variance, up and down
SHORT = 1e-3  # by which a bounded feature stays short of the next level beyond its last


class Constant(nnx.Variable):
    """An array that no gradient changes."""


class Scalars(nnx.Module):
    """Finite scalar quantisation (2309.15505): each feature is rounded to one of its levels.

    A code is a level of each feature; its id counts them, the first feature's fastest.
    """

    layers = 1

    def __init__(self, levels: Sequence[int]):
        self.levels = tuple(levels)
        self.width = self.given = len(self.levels)
        self.ids = math.prod(self.levels)

    def train(self, z: jax.Array, key: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        bounded = self.bounded(z)
        rounded = bounded + jax.lax.stop_gradient(jnp.round(bounded) - bounded)  # the gradient passes straight through
        return rounded / self._half(z), jnp.zeros(()), self.encode(z)

    def learn(self, z: jax.Array, tokens: jax.Array, mask: jax.Array, key: jax.Array) -> None:
        """Its levels are fixed."""

    def bounded(self, z: jax.Array) -> jax.Array:
        """Features that round to one of L whole numbers around 0, from -(L // 2) on (2309.15505, appendix A.1)."""
        levels = along(z, self.levels)
        reach = levels / 2 - SHORT
        shift = jnp.where(levels % 2 == 0, 0.5, 0.0)  # an even number of levels has no middle one
        return jnp.tanh(z + jnp.arctanh(shift / reach)) * reach - shift

    def encode(self, z: jax.Array) -> jax.Array:
        """int32 `[..., 1]` of features `[..., width]`."""
        places = jnp.round(self.bounded(z)).astype(jnp.int32) + along(z, self.levels) // 2
        return (places * self._strides(z)).sum(-1, keepdims=True)

    def decode(self, ids: jax.Array) -> jax.Array:
        """float32 `[..., given]`, about -1 to 1, of ids `[..., 1]`."""
        levels = along(ids, self.levels)
        return (ids // self._strides(ids) % levels - levels // 2) / self._half(ids)

    def _strides(self, like: jax.Array) -> jax.Array:
        return along(like, [math.prod(self.levels[:i]) for i in range(self.width)])

    def _half(self, like: jax.Array) -> jax.Array:
        return (along(like, self.levels) // 2).astype(jnp.float32)


def along(x: jax.Array, features) -> jax.Array:
    """Numbers by feature with as many axes as `x`, whose last is of features."""
    return jnp.reshape(jnp.asarray(features), (1,) * (x.ndim - 1) + (-1,))


class Codebooks(nnx.Module):
    """Vector quantisation whose codes are moving averages (1711.00937, appendix A.1).

    Of several layers it is residual (2107.03312, III.C): each layer's codebook is of what those before it leave.
    """

    def __init__(self, codes_LKP: np.ndarray):
        self.layers, self.ids, self.width = codes_LKP.shape  # `ids` are a layer's
        self.given = self.width
        self.codes_LKP = Constant(jnp.asarray(codes_LKP, jnp.float32))
        self.counts_LK = Constant(jnp.ones((self.layers, self.ids)))
        self.sums_LKP = Constant(jnp.asarray(codes_LKP, jnp.float32))

    def train(self, z: jax.Array, key: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        ids = self.encode(jax.lax.stop_gradient(z))
        found = jax.lax.stop_gradient(self.decode(ids))
        loss = COMMITMENT * jnp.square(z - found).mean()
        return z + jax.lax.stop_gradient(found - z), loss, ids

    def learn(self, z: jax.Array, tokens: jax.Array, mask: jax.Array, key: jax.Array) -> None:
        """Moves codes towards the mean of the rows that chose them; rows of the batch take the place of dead ones."""
        left_RP = z.reshape(-1, self.width)
        weight_R = mask.reshape(-1)
        layers = []
        for i, key_of_layer in enumerate(jax.random.split(key, self.layers)):
            ids_R = tokens[..., i].reshape(-1)
            layers.append(moved(left_RP, weight_R, ids_R, self.counts_LK[i], self.sums_LKP[i], key_of_layer))
            left_RP = left_RP - self.codes_LKP[i][ids_R]
        counts, sums = zip(*layers, strict=True)
        self.counts_LK[...] = jnp.stack(counts)
        self.sums_LKP[...] = jnp.stack(sums)
        self.codes_LKP[...] = self.sums_LKP[...] / self.counts_LK[...][..., None]

    def encode(self, z: jax.Array) -> jax.Array:
        """int32 `[..., layers]`: in each layer the nearest code to what those before it leave of `[..., width]`."""
        left_RP = z.reshape(-1, self.width)
        found = []
        for i in range(self.layers):
            codes_KP = self.codes_LKP[i]
            found.append(nearest(left_RP, codes_KP))
            left_RP = left_RP - codes_KP[found[-1]]
        return jnp.stack(found, axis=-1).reshape(*z.shape[:-1], self.layers)

    def decode(self, ids: jax.Array) -> jax.Array:
        """float32 `[..., given]`: the sum of the codes of ids `[..., layers]`; below 0 is none."""
        chosen = [self.codes_LKP[i][ids[..., i]] for i in range(self.layers)]
        return sum(jnp.where(ids[..., i, None] < 0, 0.0, codes) for i, codes in enumerate(chosen))


def nearest(x_RP: jax.Array, codes_KP: jax.Array) -> jax.Array:
    """int32 `[R]`: the code with the least squared distance to each row, of equally near ones the lowest id."""
    distance_RK = jnp.square(codes_KP).sum(1)[None] - 2 * x_RP @ codes_KP.T
    return distance_RK.argmin(1).astype(jnp.int32)


def moved(
    x_RP: jax.Array, weight_R: jax.Array, ids_R: jax.Array, counts_K: jax.Array, sums_KP: jax.Array, key: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """A codebook's averages after rows that chose these ids: how often each code is chosen, and the sum of its rows.

    A row counts as its weight says: 1, or 0 where there is nothing.
    """
    chosen_K = jnp.zeros_like(counts_K).at[ids_R].add(weight_R)
    total_KP = jnp.zeros_like(sums_KP).at[ids_R].add(x_RP * weight_R[:, None])
    counts_K = DECAY * counts_K + (1 - DECAY) * chosen_K
    sums_KP = DECAY * sums_KP + (1 - DECAY) * total_KP
    even = weight_R.sum() / len(counts_K)
    is_dead_K = counts_K < DEAD * even
    taken_K = jax.random.choice(key, len(x_RP), (len(counts_K),), p=weight_R / weight_R.sum())
    counts_K = jnp.where(is_dead_K, even, counts_K)
    return counts_K, jnp.where(is_dead_K[:, None], even * x_RP[taken_K], sums_KP)


class Gaussians(nnx.Module):
    """A Gaussian for each token (1312.6114), of which the mean is the latent; the encoder gives means and variances.

    At the end of training latents are moved and scaled to mean 0 and variance 1, as flows expect of data.
    """

    layers = 1

    def __init__(self, features: int):
        self.given = features
        self.width = 2 * features
        self.mean_P = Constant(jnp.zeros(features))
        self.scale_P = Constant(jnp.ones(features))

    def train(self, z: jax.Array, key: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        mean, log_variance = jnp.split(z, 2, axis=-1)
        log_variance = jnp.clip(log_variance, -WIDEST, WIDEST)
        divergence = 0.5 * (jnp.square(mean) + jnp.exp(log_variance) - 1 - log_variance).mean()
        drawn = mean + jnp.exp(log_variance / 2) * jax.random.normal(key, mean.shape)
        return drawn, DIVERGENCE * divergence, mean

    def learn(self, z: jax.Array, tokens: jax.Array, mask: jax.Array, key: jax.Array) -> None:
        """The constants as moving averages over batches: at the end they are those of the trained encoder."""
        means_RP = z[..., : self.given].reshape(-1, self.given)
        self.mean_P[...] = DECAY * self.mean_P[...] + (1 - DECAY) * means_RP.mean(0)
        self.scale_P[...] = DECAY * self.scale_P[...] + (1 - DECAY) * means_RP.std(0)

    def encode(self, z: jax.Array) -> jax.Array:
        """float32 `[..., given]`, about of mean 0 and variance 1, of `[..., width]`."""
        return (z[..., : self.given] - along(z, self.mean_P[...])) / along(z, self.scale_P[...])

    def decode(self, latents: jax.Array) -> jax.Array:
        return latents * along(latents, self.scale_P[...]) + along(latents, self.mean_P[...])

"""The autoencoder of all kinds: residual convolutions over a picture's grid of patches, or a sound's row of frames.

The pixels of a patch are the features of a place, so the network works at the tokens' own resolution. What a token
stands for depends on its surroundings, which a codebook of patches does not see.
"""

import jax
import jax.numpy as jnp
from flax import nnx

from mot.config.tokenizer import Settings
from mot.tokenizers import audio
from mot.tokenizers.learned import quantisers

KERNEL = 3
BYTE = 127.5  # half of a byte's range: features are bytes, brought to -1..1


class Block(nnx.Module):
    """Adds to each place what its neighbours tell, and before that, where `grid` fixes the places, what all tell."""

    def __init__(self, width: int, grid: tuple[int, ...], rngs: nnx.Rngs):
        places = grid[0] * grid[1] if grid else 0
        if places:  # as MLP-Mixer's token mixing (2105.01601): busy places may use the tokens of empty ones
            self.norm_of_all = nnx.RMSNorm(width, rngs=rngs)
            self.from_all = nnx.Linear(places, places, rngs=rngs)
        self.norm = nnx.RMSNorm(width, rngs=rngs)
        self.around = nnx.Conv(width, width, (KERNEL,) * max(len(grid), 1), rngs=rngs)
        self.out = nnx.Linear(width, width, kernel_init=nnx.initializers.zeros_init(), rngs=rngs)
        self.places = places

    def __call__(self, x: jax.Array, mask: jax.Array) -> jax.Array:
        if self.places:
            told = self.norm_of_all(x).reshape(len(x), self.places, -1).swapaxes(1, 2)
            x = x + self.from_all(told).swapaxes(1, 2).reshape(x.shape)
        return x + self.out(nnx.silu(self.around(self.norm(x) * mask)))


class Trunk(nnx.Module):
    """Features of places to other features of the same places."""

    def __init__(self, came: int, left: int, settings: Settings, grid: tuple[int, ...], rngs: nnx.Rngs):
        width = settings.width
        self.first = nnx.Conv(came, width, (KERNEL,) * max(len(grid), 1), rngs=rngs)
        self.blocks = nnx.List([Block(width, grid, rngs) for _ in range(settings.blocks)])
        self.norm = nnx.RMSNorm(width, rngs=rngs)
        self.last = nnx.Linear(width, left, kernel_init=nnx.initializers.zeros_init(), rngs=rngs)
        # What is of one width on both sides begins as it is: a codebook of patches, found by k-means, then serves.
        beginning = _identity if came == left else nnx.initializers.lecun_normal()
        self.past = nnx.Linear(came, left, kernel_init=beginning, rngs=rngs)

    def __call__(self, x: jax.Array, mask: jax.Array) -> jax.Array:
        """`[B, *places, left]` of `[B, *places, came]`; `mask` `[B, *places, 1]` is 0 where a sound has ended."""
        h = self.first(x * mask)
        for block in self.blocks:
            h = block(h, mask)
        return self.past(x) + self.last(self.norm(h))


def _identity(key, shape, dtype, **_) -> jax.Array:
    return jnp.eye(*shape, dtype=dtype)


class Autoencoder(nnx.Module):
    """Bytes of patches or frames to tokens, and back."""

    def __init__(self, settings: Settings, codes_LKP=None):
        """`codes_LKP` float32 -1..1, of a kind that has codebooks: those that it begins with."""
        rngs = nnx.Rngs(settings.seed)
        features, grid = shape_of(settings)
        if settings.kind == "fsq":
            self.quantiser = quantisers.Scalars(settings.levels)
        elif settings.kind == "kl":
            self.quantiser = quantisers.Gaussians(settings.features)
        else:
            self.quantiser = quantisers.Codebooks(codes_LKP)
        self.encoder = Trunk(features, self.quantiser.width, settings, grid, rngs)
        self.decoder = Trunk(self.quantiser.given, features, settings, grid, rngs)

    def encode(self, bytes_: jax.Array, mask: jax.Array) -> jax.Array:
        """Tokens `[B, *places, layers]`, or latents `[B, *places, features]`, of uint8 `[B, *places, P]`."""
        return self.quantiser.encode(self.encoder(scaled(bytes_), mask))

    def decode(self, tokens: jax.Array, mask: jax.Array) -> jax.Array:
        """float32 `[B, *places, P]`, 0 to 255."""
        return (self.decoder(self.quantiser.decode(tokens), mask).clip(-1, 1) + 1) * BYTE


def begun(settings: Settings, codes_LKP=None) -> tuple[nnx.GraphDef, nnx.State]:
    """A new network, whose weights are drawn in one program: one by one they would take as long as some training."""
    graph = shaped(settings, codes_LKP)[0]
    return graph, jax.jit(lambda codes: nnx.state(Autoencoder(settings, codes)))(codes_LKP)


def shaped(settings: Settings, codes_LKP=None) -> tuple[nnx.GraphDef, nnx.State]:
    """The network without its weights, of which there are shapes alone."""
    return nnx.split(nnx.eval_shape(lambda codes: Autoencoder(settings, codes), codes_LKP))


def scaled(bytes_: jax.Array) -> jax.Array:
    """float32, -1 to 1."""
    return bytes_.astype(jnp.float32) / BYTE - 1


def shape_of(settings: Settings) -> tuple[int, tuple[int, ...]]:
    """Features of a place, and the rows and columns of a picture; () of sounds, which have any number of frames."""
    if settings.medium == "audio":
        return audio.BANDS, ()
    return 3 * settings.patch**2, (settings.side // settings.patch,) * 2

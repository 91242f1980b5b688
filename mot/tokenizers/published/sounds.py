"""Sounds by published codecs of residual codebooks: the ids of all frames in the first one, those in the second, ...

A codebook's ids follow those of the one before it, so that an id tells its layer.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from mot.errors import UserError
from mot.tokenizers.networks import Network
from mot.tokenizers.published.loaded import Loaded
from mot.tokenizers.published.weights import package


def mimi(found: Loaded, layers: int = 0) -> Network:
    """Mimi (Moshi, 2410.00037): 12.5 frames a second, a semantic codebook first."""
    config = found.config
    layers = _layers(found, layers or config.num_quantizers, config.num_semantic_quantizers, config.num_quantizers)

    def encode(wave_B1S: Any) -> Any:
        return found.model.encode(wave_B1S, num_quantizers=layers).audio_codes

    def decode(codes_BKC: Any) -> Any:
        return found.model.decode(codes_BKC).audio_values

    return _network(found, layers, encode, decode)


def encodec(found: Loaded, layers: int = 0) -> Network:
    """EnCodec (2210.13438) of one channel, as a whole: of two channels or in chunks its codes alone are no sound."""
    config = found.config
    if config.audio_channels != 1 or config.normalize or config.chunk_length_s is not None:
        raise UserError(
            f"{found.folder}: an EnCodec of {config.audio_channels} channels, or of chunks with a loudness beside "
            "their codes; one channel without chunks is needed, as encodec_24khz or encodec_32khz"
        )
    quantizer = found.model.quantizer
    of_bandwidth = {b: quantizer.get_num_quantizers_for_bandwidth(b) for b in sorted(config.target_bandwidths)}
    unasked = of_bandwidth[config.target_bandwidths[0]]
    layers = _layers(found, layers or unasked, 1, max(of_bandwidth.values()))
    bandwidth = next(b for b, n in of_bandwidth.items() if n >= layers)

    def encode(wave_B1S: Any) -> Any:
        # Each codebook is of what those before leave, so the first ones are the same with fewer.
        return found.model.encode(wave_B1S, bandwidth=bandwidth).audio_codes[0][:, :layers]

    def decode(codes_BKC: Any) -> Any:
        return found.model.decode(codes_BKC[None], [None]).audio_values

    return _network(found, layers, encode, decode)


def _layers(found: Loaded, layers: int, least: int, most: int) -> int:
    if not least <= layers <= most:
        raise UserError(
            f"{found.folder}: {layers} layers of codes; it has {least} to {most}; write --audio-layers {most}, or fewer"
        )
    return layers


def _network(found: Loaded, layers: int, encode: Callable[[Any], Any], decode: Callable[[Any], Any]) -> Network:
    """`encode` and `decode` are of batches of torch tensors: waves `[B, 1, S]`, and codes `[B, layers, frames]`."""
    torch = package("torch")
    of_layer = found.config.codebook_size

    def encoded(sounds: Sequence[np.ndarray]) -> list[np.ndarray]:
        with torch.inference_mode():
            codes_BKC = encode(torch.from_numpy(np.stack(sounds)).to(found.device)[:, None]).cpu().numpy()
        ids_BKC = codes_BKC + np.arange(layers)[:, None] * of_layer
        return list(ids_BKC.reshape(len(sounds), -1).astype(np.int32))

    def decoded(ids: np.ndarray) -> np.ndarray:
        codes_KC = _codes(ids, layers, of_layer)
        with torch.inference_mode():
            wave = decode(torch.from_numpy(codes_KC).to(found.device)[None])[0, 0]
        return wave.clamp(-1, 1).float().cpu().numpy()

    size = layers * of_layer
    return Network("audio", found.digest, size, True, (), layers, found.config.sampling_rate, encoded, decoded)


def _codes(ids: np.ndarray, layers: int, of_layer: int) -> np.ndarray:
    """int64 `[layers, frames]` of a sound's ids; a layer that lacks frames, and those after it, are not heard.

    The i-th id of a layer is of frame i; there are as many frames as ids of the first layer. Raises `ValueError` where
    there is none.
    """
    ids = np.asarray(ids).astype(np.int64)
    if len(ids) and not (ids.min() >= 0 and ids.max() < layers * of_layer):
        raise ValueError(f"ids from {ids.min()} to {ids.max()}; must be from 0 to {layers * of_layer - 1}")
    by_layer = [ids[ids // of_layer == layer] % of_layer for layer in range(layers)]
    frames = len(by_layer[0])
    if not frames:
        raise ValueError(f"{len(ids)} ids and none of the first layer, 0 to {of_layer - 1}")
    heard = next((i for i, of_it in enumerate(by_layer) if len(of_it) < frames), layers)
    return np.stack([of_it[:frames] for of_it in by_layer[:heard]])

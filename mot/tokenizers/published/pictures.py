"""Pictures by published networks: ids of VQ models, latents of autoencoders, features of encoders.

Tokens are row by row. Pictures are prepared as the folder's preprocessor_config.json says; without one, as the network
was trained.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from mot.config.modalities import IMAGE_SIDE
from mot.errors import UserError
from mot.tokenizers.networks import Network
from mot.tokenizers.published.loaded import Loaded, Pixels, pixels
from mot.tokenizers.published.weights import package

SIGNED = Pixels(1 / 255, (0.5,) * 3, (0.5,) * 3)  # -1 to 1
CHAMELEON = Pixels(0.0078, (1.0,) * 3, (1.0,) * 3)  # about -1 to 1, by the factor that it is published with
IMAGENET = Pixels(1 / 255, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


class Grid(NamedTuple):
    """The tokens of a picture of `side` x `side` pixels, one for `stride` x `stride` of them."""

    side: int
    stride: int
    size: int  # ids, or features of a vector
    is_of_ids: bool = False


def chameleon(found: Loaded, side: int = 0) -> Network:
    """Chameleon's VQ-GAN (2405.09818); transformers has no decoder of it."""
    scale = pixels(found, CHAMELEON)
    config = found.config
    stride = _stride(config)
    side = _side(found, side or config.resolution, stride)

    def encode(x_BCHW: Any) -> Any:
        return found.model.encode(x_BCHW).image_tokens.reshape(len(x_BCHW), -1)

    return _network(found, scale, Grid(side, stride, config.num_embeddings, is_of_ids=True), encode, None)


def janus(found: Loaded, side: int = 0) -> Network:
    """Janus' VQ model, which is LlamaGen's (2410.13848, 2406.06525)."""
    scale = pixels(found, SIGNED)
    config = found.config
    stride = _stride(config)
    vision = found.whole.get("vision_config") or {}
    # Of a whole model its pictures' size decides, as transformers has it.
    own = vision["image_size"] // vision["patch_size"] if vision.keys() >= {"image_size", "patch_size"} else 0
    side = _side(found, side or (own or config.num_patches) * stride, stride)
    found.model.quantize.quant_state_dims = [side // stride] * 2  # the decoder gives pictures of this size

    def encode(x_BCHW: Any) -> Any:
        return found.model.encode(x_BCHW).image_tokens.reshape(len(x_BCHW), -1)

    def decode(ids_BC: Any) -> Any:
        return found.model.decode(ids_BC)

    return _network(found, scale, Grid(side, stride, config.num_embeddings, is_of_ids=True), encode, decode)


def emu3(found: Loaded, side: int = 0) -> Network:
    """Emu3's VQ model (2409.18869), of single pictures."""
    scale = pixels(found, SIGNED)
    config = found.config
    stride = _stride(config)
    if not side:
        raise UserError(f"{found.folder} takes pictures of any side; say one, a multiple of {stride}: --image-side 512")
    rows = _side(found, side, stride) // stride

    def encode(x_BCHW: Any) -> Any:
        sizes = package("torch").tensor([[side, side]] * len(x_BCHW))
        return package("torch").stack([x.reshape(-1) for x in found.model.encode(x_BCHW, sizes).image_tokens])

    def decode(ids_BC: Any) -> Any:
        return found.model.decode(ids_BC.reshape(-1, rows, rows))

    return _network(found, scale, Grid(side, stride, config.codebook_size, is_of_ids=True), encode, decode)


def autoencoder(found: Loaded, side: int = 0) -> Network:
    """diffusers' AutoencoderKL: the mean of a picture's latents, shifted and scaled as a diffusion model takes them."""
    scale = pixels(found, SIGNED)
    config = found.config
    stride = 2 ** (len(config.block_out_channels) - 1)
    side = _side(found, side or config.sample_size, stride)
    rows, features = side // stride, config.latent_channels
    shift = config.shift_factor or 0.0

    def encode(x_BCHW: Any) -> Any:
        mean_BPHW = found.model.encode(x_BCHW).latent_dist.mode()
        return ((mean_BPHW - shift) * config.scaling_factor).flatten(2).transpose(1, 2)

    def decode(x_BCP: Any) -> Any:
        x_BPHW = x_BCP.transpose(1, 2).reshape(-1, features, rows, rows)
        return found.model.decode(x_BPHW / config.scaling_factor + shift).sample

    return _network(found, scale, Grid(side, stride, features), encode, decode)


def siglip(found: Loaded, side: int = 0) -> Network:
    """Features of SigLIP, or of a SigLIP 2 of one resolution (2303.15343, 2502.14786)."""
    own, patch = found.config.image_size, found.config.patch_size
    side = _side(found, side or own, patch)

    def encode(x_BCHW: Any) -> Any:
        return found.model(x_BCHW, interpolate_pos_encoding=side != own).last_hidden_state

    return _network(found, pixels(found, SIGNED), Grid(side, patch, found.config.hidden_size), encode, None)


def siglip2(found: Loaded, side: int = 0) -> Network:
    """Features of SigLIP 2 for any resolution, NaFlex (2502.14786): patches with their rows and columns."""
    patch = found.config.patch_size
    side = _side(found, side or math.isqrt(found.config.num_patches) * patch, patch)
    rows = side // patch

    def encode(x_BCHW: Any) -> Any:
        torch = package("torch")
        by_patch = x_BCHW.reshape(len(x_BCHW), 3, rows, patch, rows, patch).permute(0, 2, 4, 3, 5, 1)
        patches = by_patch.reshape(len(x_BCHW), rows**2, -1)
        mask = torch.ones(patches.shape[:2], dtype=torch.int32, device=patches.device)
        shapes = torch.tensor([[rows, rows]] * len(patches), device=patches.device)
        return found.model(patches, pixel_attention_mask=mask, spatial_shapes=shapes).last_hidden_state

    return _network(found, pixels(found, SIGNED), Grid(side, patch, found.config.hidden_size), encode, None)


def dinov2(found: Loaded, side: int = 0) -> Network:
    """Features of DINOv2's patches, with registers or without (2304.07193, 2309.16588)."""
    patch = found.config.patch_size
    side = _side(found, side or found.config.image_size, patch)
    others = 1 + getattr(found.config, "num_register_tokens", 0)  # the class token and registers, which come first

    def encode(x_BCHW: Any) -> Any:
        return found.model(x_BCHW).last_hidden_state[:, others:]

    return _network(found, pixels(found, IMAGENET), Grid(side, patch, found.config.hidden_size), encode, None)


def _stride(config: Any) -> int:
    """Pixels of a token's side: each level but the last halves a picture."""
    return 2 ** (len(config.channel_multiplier) - 1)


def _side(found: Loaded, side: int, stride: int) -> int:
    if type(side) is not int or side < stride or side % stride or side > IMAGE_SIDE:
        raise UserError(
            f"{found.folder}: pictures of side {side}; must be a multiple of its stride {stride}, up to {IMAGE_SIDE} "
            f"pixels; write --image-side {max(1, min(int(side), IMAGE_SIDE) // stride) * stride}"
        )
    return side


def _network(
    found: Loaded, scale: Pixels, grid: Grid, encode: Callable[[Any], Any], decode: Callable[[Any], Any] | None
) -> Network:
    """`encode` and `decode` are of batches of torch tensors: pixels `[B, 3, H, W]`; tokens `[B, C]` or `[B, C, P]`."""
    torch = package("torch")
    shape = (grid.side // grid.stride,) * 2
    wanted = (math.prod(shape),) if grid.is_of_ids else (math.prod(shape), grid.size)
    mean, std = (torch.tensor(x, device=found.device).reshape(3, 1, 1) for x in (scale.mean, scale.std))

    def encoded(pictures: Sequence[np.ndarray]) -> list[np.ndarray]:
        with torch.inference_mode():
            bytes_BHWC = torch.from_numpy(np.stack(pictures)).to(found.device)
            made = encode((bytes_BHWC.permute(0, 3, 1, 2).float() * scale.scale - mean) / std).cpu().numpy()
        return list(made.astype(np.int32 if grid.is_of_ids else np.float32))

    def decoded(data: np.ndarray) -> np.ndarray:
        if data.shape != wanted:
            raise ValueError(
                f"tokens {list(data.shape)} are no picture: {found.folder} has {list(wanted)}; give as many"
            )
        if grid.is_of_ids and not (data.min() >= 0 and data.max() < grid.size):
            raise ValueError(f"ids from {data.min()} to {data.max()}; must be from 0 to {grid.size - 1}")
        with torch.inference_mode():
            tokens = torch.from_numpy(data.astype(np.int64 if grid.is_of_ids else np.float32)).to(found.device)
            x_CHW = decode(tokens[None])[0]
            bytes_HWC = ((x_CHW * std + mean) / scale.scale).round().clamp(0, 255).permute(1, 2, 0)
        return bytes_HWC.to(torch.uint8).cpu().numpy()

    way_back = None if decode is None else decoded
    return Network("image", found.digest, grid.size, grid.is_of_ids, shape, 1, 0, encoded, way_back, grid.side)

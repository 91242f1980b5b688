"""Networks that others published, in their own libraries' classes: VQ models, autoencoders, features, sound codecs.

A class is chosen by a fixed table of what config.json says of itself. Weights are safetensors, of the network itself or
of a whole model of which it is a part. Nothing is unpickled, and no code of a folder is run.
"""

from pathlib import Path

from mot.config.allowed import meant
from mot.errors import UserError
from mot.tokenizers.networks import Network
from mot.tokenizers.published import pictures, sounds
from mot.tokenizers.published.loaded import Part, Row, loaded
from mot.tokenizers.safetensors import read_json

# By `model_type` of transformers' config.json, or `_class_name` of diffusers'.
ROWS = {
    "chameleon_vqgan": Row("ChameleonVQVAE", "quantize.embedding.weight", pictures.chameleon),
    "emu3_vqgan": Row("Emu3VQVAE", "quantize.embedding.weight", pictures.emu3),
    "janus_vqgan": Row("JanusVQVAE", "quantize.embedding.weight", pictures.janus),
    "siglip_vision_model": Row("SiglipVisionModel", "embeddings.patch_embedding.weight", pictures.siglip),
    "siglip2_vision_model": Row("Siglip2VisionModel", "embeddings.patch_embedding.weight", pictures.siglip2),
    "dinov2": Row("Dinov2Model", "embeddings.patch_embeddings.projection.weight", pictures.dinov2),
    "dinov2_with_registers": Row(
        "Dinov2WithRegistersModel", "embeddings.patch_embeddings.projection.weight", pictures.dinov2
    ),
    "AutoencoderKL": Row("AutoencoderKL", "encoder.conv_in.weight", pictures.autoencoder, library="diffusers"),
    "mimi": Row("MimiModel", "quantizer.semantic_residual_vector_quantizer.input_proj.weight", sounds.mimi, "layers"),
    "encodec": Row("EncodecModel", "quantizer.layers.0.codebook.embed", sounds.encodec, "layers"),
}
# Whole models: the key of config.json under which their network is described, and its row.
WHOLE = {
    "chameleon": ("vq_config", "chameleon_vqgan"),
    "emu3": ("vq_config", "emu3_vqgan"),
    "janus": ("vq_config", "janus_vqgan"),
    "siglip": ("vision_config", "siglip_vision_model"),
    "siglip2": ("vision_config", "siglip2_vision_model"),
}


def open_(folder: Path, **options: int) -> Network:
    """The network of a folder; `side` of pictures or `layers` of codes, 0 = as it says itself.

    Raises `UserError` where the folder holds none that is known, its files are not as they should be, or do not fit
    each other, and where a package is missing.
    """
    part = _part(folder)
    row = ROWS[part.kind]
    if unfit := [name for name in options if name != row.option]:
        of_pictures = ("image", "--image-tokens or --image-latents")
        medium, takes = of_pictures if row.option == "side" else ("audio", "--audio-tokens")
        raise UserError(f"{folder}: {row.name} is a network of {medium}, and has no {unfit[0]}; give it as {takes}")
    return row.opened(loaded(row, part, folder), **options)


def _part(folder: Path) -> Part:
    """What config.json says of the network, in which row that is, and what else it says."""
    whole = read_json(folder / "config.json")
    kind = whole.get("model_type", whole.get("_class_name"))
    if not isinstance(kind, str):
        raise UserError(f"{folder / 'config.json'} has no model_type or _class_name; name a folder as it was saved")
    if kind in WHOLE:
        key, kind = WHOLE[kind]
        about = whole.get(key)
        if not isinstance(about, dict):
            raise UserError(f"{folder / 'config.json'} has no {key}, which describes its {kind}; copy the folder again")
        return Part(kind, about, whole)
    if kind in ROWS:
        return Part(kind, whole, whole)
    known = [*ROWS, *WHOLE]
    near = meant(kind, known) or "name a folder of one"
    raise UserError(f"{folder / 'config.json'} is of {kind!r:.80}; known are {', '.join(known)}; {near}")

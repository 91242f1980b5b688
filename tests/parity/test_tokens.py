"""Published networks as tokenizers give what their own classes give: transformers' and diffusers', tiny and random."""

import dataclasses
import json
import re

import diffusers
import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from safetensors.torch import load_file, save_file

from mot.data.records import Dataset
from mot.errors import UserError
from mot.prepare import codecs, dataset_tokenizers, job
from mot.tokenizers import image, networked, networks
from tests.support.datasets import SMALL, write_inputs
from tests.support.files import write_lines
from tests.support.media import sound
from tests.support.networks import shaken

RATE = 8000
VQ = dict(latent_channels=32, base_channels=32, channel_multiplier=[1, 1], num_res_blocks=1)
EMU3 = dict(codebook_size=32, attn_resolutions=[1], hidden_size=32) | VQ | dict(latent_channels=4)
ENCODER = dict(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, patch_size=4)
LANGUAGE = dict(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=2, vocab_size=48)
LANGUAGE |= dict(intermediate_size=16)


def chameleon():
    config = transformers.ChameleonVQVAEConfig(embed_dim=8, num_embeddings=32, resolution=16, **VQ)
    return transformers.ChameleonVQVAE(config)


def emu3():
    return transformers.Emu3VQVAE(transformers.Emu3VQVAEConfig(**EMU3))


def janus():
    return transformers.JanusVQVAE(transformers.JanusVQVAEConfig(num_embeddings=32, num_patches=8, **VQ))


def autoencoder(**more):
    levels = dict(down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2)
    sizes = dict(block_out_channels=(8, 8), norm_num_groups=4, sample_size=16)
    return diffusers.AutoencoderKL(**levels, **sizes, **{"latent_channels": 4} | more)


def flux():
    return autoencoder(latent_channels=3, shift_factor=0.5, scaling_factor=0.7, use_quant_conv=False)


def siglip():
    return transformers.SiglipVisionModel(
        transformers.SiglipVisionConfig(image_size=16, intermediate_size=16, **ENCODER)
    )


def siglip2():
    return transformers.Siglip2VisionModel(
        transformers.Siglip2VisionConfig(num_patches=16, intermediate_size=16, **ENCODER)
    )


def dinov2():
    return transformers.Dinov2Model(transformers.Dinov2Config(image_size=16, **ENCODER))


def dinov2_with_registers():
    config = transformers.Dinov2WithRegistersConfig(image_size=16, num_register_tokens=2, **ENCODER)
    return transformers.Dinov2WithRegistersModel(config)


def mimi():
    sizes = dict(hidden_size=16, num_filters=4, upsampling_ratios=[5, 4], num_hidden_layers=1, intermediate_size=16)
    codes = dict(codebook_size=16, codebook_dim=8, num_quantizers=4, vector_quantization_hidden_dimension=8)
    heads = dict(num_attention_heads=2, num_key_value_heads=2, head_dim=8, upsample_groups=16)
    model = transformers.MimiModel(
        transformers.MimiConfig(sampling_rate=RATE, frame_rate=RATE / 40, **sizes, **codes, **heads)
    )
    for name, x in model.quantizer.named_buffers():
        if name.endswith("embed_sum"):
            x.normal_()
    return model


def encodec(**more):
    sizes = dict(hidden_size=8, num_filters=4, upsampling_ratios=[5, 4], codebook_size=16, sampling_rate=RATE)
    model = transformers.EncodecModel(transformers.EncodecConfig(**sizes, **{"target_bandwidths": [3.2, 6.4]} | more))
    for name, x in model.quantizer.named_buffers():
        if name.endswith("embed"):
            x.normal_()
    return model


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)
    torch.set_num_threads(1)  # of so small networks more cost time


def saved(model, folder):
    shaken(model).save_pretrained(folder)
    return model


def pictures(count=5, side=16):
    return [np.random.default_rng(i).integers(0, 256, (side, side, 3), np.uint8) for i in range(count)]


def sounds(*lengths):
    return [np.random.default_rng(n).uniform(-1, 1, n).astype(np.float32) for n in lengths]


def pixels(picture, scale=2 / 255, mean=1.0, std=1.0):
    x = torch.tensor(picture).permute(2, 0, 1)[None].float()
    return (x * scale - torch.tensor(mean).reshape(-1, 1, 1)) / torch.tensor(std).reshape(-1, 1, 1)


def unsigned(x):
    """-1 to 1 as a picture's bytes."""
    return ((x[0] + 1) * 127.5).round().clamp(0, 255).permute(1, 2, 0).to(torch.uint8).numpy()


IDS = {  # a class's own way from pixels to ids, and from ids back to pixels
    "chameleon": (chameleon, lambda m, x: m.encode(x * 0.0078 - 1).image_tokens, None),
    "janus": (janus, lambda m, x: m.encode(x / 127.5 - 1).image_tokens, lambda m, ids: m.decode(ids)),
    "emu3": (
        emu3,
        lambda m, x: m.encode(x / 127.5 - 1, torch.tensor([[16, 16]])).image_tokens[0].reshape(-1),
        lambda m, ids: m.decode(ids.reshape(1, 8, 8)),
    ),
}


@pytest.mark.parametrize("name", IDS)
@torch.no_grad()
def test_ids_of_pictures_are_those_of_the_class(tmp_path, name):
    build, encode, decode = IDS[name]
    model = saved(build(), tmp_path / "vq")
    network = networks.opened(tmp_path / "vq", side=16)
    assert (network.medium, network.size, network.shape, network.side) == ("image", 32, (8, 8), 16)
    found = network.encode(pictures())
    bytes_ = [torch.tensor(picture).permute(2, 0, 1)[None].float() for picture in pictures()]
    for ids, x in zip(found, bytes_, strict=True):
        assert ids.dtype == np.int32
        assert np.array_equal(ids, encode(model, x))
        if decode:
            own = unsigned(decode(model, torch.tensor(ids)[None].long()))
            assert np.abs(network.decode(ids).astype(int) - own).max() <= 1  # rounded to bytes by two ways
        else:
            assert network.decode is None
    assert len(np.unique(found)) > 4


@pytest.mark.parametrize("build", [autoencoder, flux])
@torch.no_grad()
def test_latents_are_the_scaled_mean_of_the_class(tmp_path, build):
    model = saved(build(), tmp_path / "vae")
    network = networks.opened(tmp_path / "vae")
    scale, shift = model.config.scaling_factor, model.config.shift_factor or 0
    assert (network.shape, network.size, network.side) == ((8, 8), model.config.latent_channels, 16)
    for x, picture in zip(network.encode(pictures()), pictures(), strict=True):
        mean = model.encode(pixels(picture)).latent_dist.mean
        own = ((mean - shift) * scale)[0].permute(1, 2, 0).reshape(64, -1)
        assert np.abs(x - own.numpy()).max() < 1e-5
        back = unsigned(model.decode(mean).sample)
        assert np.abs(network.decode(x).astype(int) - back).max() <= 1


def test_the_first_autoencoders_names_of_attention_are_known(tmp_path):
    saved(autoencoder(), tmp_path / "vae")
    file = tmp_path / "vae" / "diffusion_pytorch_model.safetensors"
    before = networks.opened(tmp_path / "vae").encode(pictures())
    new = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    tensors = load_file(file)
    for name in [name for name in tensors if ".attentions.0." in name]:
        for now, then in new.items():
            if f".{now}." in name:
                tensors[name.replace(now, then)] = tensors.pop(name)
    assert any("proj_attn" in name for name in tensors)
    save_file(tensors, file)
    assert np.array_equal(networks.opened(tmp_path / "vae").encode(pictures()), before)


def patches(x):
    return x.reshape(1, 3, 4, 4, 4, 4).permute(0, 2, 4, 3, 5, 1).reshape(1, 16, 48)


FEATURES = {
    "siglip": (siglip, lambda m, x: m(x / 127.5 - 1).last_hidden_state),
    "siglip2": (
        siglip2,
        lambda m, x: (
            m(
                patches(x / 127.5 - 1), pixel_attention_mask=torch.ones(1, 16), spatial_shapes=torch.tensor([[4, 4]])
            ).last_hidden_state
        ),
    ),
    "dinov2": (dinov2, lambda m, x: m(imagenet(x)).last_hidden_state[:, 1:]),
    "dinov2_with_registers": (dinov2_with_registers, lambda m, x: m(imagenet(x)).last_hidden_state[:, 3:]),
}


def imagenet(x):
    mean, std = (torch.tensor(v).reshape(3, 1, 1) for v in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))
    return (x / 255 - mean) / std


@pytest.mark.parametrize("name", FEATURES)
@torch.no_grad()
def test_features_are_those_of_the_class(tmp_path, name):
    build, features = FEATURES[name]
    model = saved(build(), tmp_path / "encoder")
    network = networks.opened(tmp_path / "encoder")
    assert (network.shape, network.size, network.is_of_ids, network.decode) == ((4, 4), 16, False, None)
    for x, picture in zip(network.encode(pictures()), pictures(), strict=True):
        own = features(model, torch.tensor(picture).permute(2, 0, 1)[None].float())[0].numpy()
        assert np.abs(x - own).max() < 1e-5
    assert networks.opened(tmp_path / "encoder", side=24).encode(pictures(side=24))[0].shape == (36, 16)


@pytest.mark.parametrize(("build", "unasked"), [(mimi, 4), (encodec, 2)])
@torch.no_grad()
def test_ids_of_sounds_are_those_of_the_class(tmp_path, build, unasked):
    model = saved(build(), tmp_path / "codec")
    for layers in (0, 1, 3):
        network = networks.opened(tmp_path / "codec", layers=layers)
        kept = layers or unasked
        assert (network.medium, network.layers, network.size, network.rate) == ("audio", kept, 16 * kept, RATE)
        for wave in sounds(1999, 400):
            (ids,) = network.encode([wave])
            x = torch.tensor(wave)[None, None]
            whole = model.encode(x).audio_codes if build is mimi else model.encode(x, bandwidth=6.4).audio_codes[0]
            codes = whole[:, :kept]
            assert np.array_equal(ids.reshape(kept, -1) - 16 * np.arange(kept)[:, None], codes[0])
            own = model.decode(codes) if build is mimi else model.decode(codes[None], [None])
            assert np.allclose(network.decode(ids), own.audio_values[0, 0].clamp(-1, 1), atol=1e-5)
            assert np.abs(network.decode(ids)).max() > 0
    with pytest.raises(UserError, match="9 layers of codes; it has 1 to 4"):
        networks.opened(tmp_path / "codec", layers=9)


def whole_chameleon():
    words = {f"IMGIMG{chr(65 + i)}Z": i for i in range(32)} | {"<image>": 40}
    vq = dict(embed_dim=8, num_embeddings=32, resolution=16, **VQ)
    return transformers.ChameleonForConditionalGeneration(
        transformers.ChameleonConfig(**LANGUAGE, vocabulary_map=words, vq_config=vq)
    )


def whole_janus():
    vq = dict(num_embeddings=32, projection_dim=16, image_token_embed_dim=16, **VQ)
    vision = dict(image_size=16, projection_dim=16, num_image_tokens=16) | ENCODER | {"patch_size": 2}
    return transformers.JanusForConditionalGeneration(
        transformers.JanusConfig(text_config=LANGUAGE | {"model_type": "llama"}, vision_config=vision, vq_config=vq)
    )


def whole_emu3():
    words = {f"<|visual token {i:06}|>": i for i in range(32)} | {"<|extra_200|>": 40, "<image>": 41}
    return transformers.Emu3ForConditionalGeneration(
        transformers.Emu3Config(text_config=LANGUAGE | {"pad_token_id": 0}, vq_config=EMU3, vocabulary_map=words)
    )


@pytest.mark.parametrize("build", [whole_chameleon, whole_janus, whole_emu3])
def test_of_a_whole_model_its_vq_part_is_taken(tmp_path, build):
    whole = saved(build(), tmp_path / "whole")
    whole.model.vqmodel.save_pretrained(tmp_path / "part")
    found = [networks.opened(tmp_path / name, side=16) for name in ("whole", "part")]
    assert np.array_equal(*(network.encode(pictures()) for network in found))
    assert found[0].side == found[1].side == 16
    whole.save_pretrained(tmp_path / "shards", max_shard_size="20KB")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 2
    shards = networks.opened(tmp_path / "shards", side=16)
    assert np.array_equal(shards.encode(pictures()), found[0].encode(pictures()))
    assert shards.digest == found[0].digest


def test_of_a_whole_siglip_its_vision_part_is_taken(tmp_path):
    words = dict(hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, vocab_size=20)
    vision = dict(image_size=16, intermediate_size=16, **ENCODER)
    whole = saved(
        transformers.SiglipModel(transformers.SiglipConfig(text_config=words, vision_config=vision)), tmp_path / "whole"
    )
    whole.vision_model.save_pretrained(tmp_path / "part")
    found = [networks.opened(tmp_path / name).encode(pictures()) for name in ("whole", "part")]
    assert np.array_equal(*found)


def test_pictures_are_prepared_as_the_folder_says(tmp_path):
    model = saved(janus(), tmp_path / "vq")
    first = networks.opened(tmp_path / "vq", side=16)
    told = {"image_mean": [0.4, 0.5, 0.6], "image_std": [0.3, 0.2, 0.1], "rescale_factor": 1 / 255}
    (tmp_path / "vq" / "preprocessor_config.json").write_text(json.dumps(told), encoding="utf-8")
    network = networks.opened(tmp_path / "vq", side=16)
    assert network.digest != first.digest
    with torch.no_grad():
        for ids, picture in zip(network.encode(pictures()), pictures(), strict=True):
            x = pixels(picture, 1 / 255, told["image_mean"], told["image_std"])
            assert np.array_equal(ids, model.encode(x).image_tokens)
    told["image_std"] = [0.3, 0.0, "x"]
    (tmp_path / "vq" / "preprocessor_config.json").write_text(json.dumps(told), encoding="utf-8")
    with pytest.raises(UserError, match="three numbers each are needed"):
        networks.opened(tmp_path / "vq", side=16)


def test_a_dataset_of_pictures_and_back(tmp_path):
    """Pictures of another size are brought to the network's, ids are its own, and a changed network is refused."""
    saved(janus(), tmp_path / "vq")
    own = dict(image_side=0, image_patch=4, image_ids=None, image_tokens=str(tmp_path / "vq"))
    recipe = dataclasses.replace(write_inputs(tmp_path / "in"), **own)
    about = job.prepare(recipe, tmp_path / "out", 1, 0).about
    entry = about["tokenizers"]["image"]
    network = networks.opened(tmp_path / "vq")
    assert entry["network"] == {"folder": str(tmp_path / "vq"), "digest": network.digest}
    assert (entry["ids"], entry["tokens"], entry["shape"]) == (32, 64, [8, 8])
    tokenizers = dataset_tokenizers.load(tmp_path / "out" / "tokenizers")
    seen = 0
    for record in map(Dataset(tmp_path / "out", "train").__getitem__, range(about["splits"]["train"]["documents"])):
        for data in (span.data for span in record.spans if span.modality == "image"):
            (number,) = re.findall(r":doc(\d+)", record.id)
            picture = np.asarray(Image.open(tmp_path / "in" / f"{number}.png"))
            assert np.array_equal(data, network.encode([image.square(picture, 16)])[0])
            shown = tokenizers.decode("image", data)
            assert shown.shape == (16, 16, 3)
            assert codecs.files("image", tokenizers.of("image"), shown, 0)["png"][:4] == b"\x89PNG"
            seen += 1
    assert seen > 10
    weights = load_file(tmp_path / "vq" / "model.safetensors")
    weights["quant_conv.bias"] += 1
    save_file(weights, tmp_path / "vq" / "model.safetensors", metadata={"format": "pt"})
    networked._opened.cache_clear()
    with pytest.raises(UserError, match="another network than the dataset was made with"):
        dataset_tokenizers.load(tmp_path / "out" / "tokenizers").of("image").open()


@pytest.mark.parametrize("order", ["layers", "frames"])
def test_a_dataset_of_sounds_and_back(tmp_path, order):
    saved(mimi(), tmp_path / "mimi")
    waves = sounds(*range(1600, 3200, 160))
    for i, wave in enumerate(waves):
        (tmp_path / f"{i}.wav").write_bytes(sound(wave, "WAV", "FLOAT", RATE if i % 2 else 2 * RATE))
    write_lines(tmp_path / "all.jsonl", *({"text": f"sound {i}", "audio": f"{i}.wav"} for i in range(len(waves))))
    own = dict(audio_rate=16000, audio_ids=None, audio_layers=3, audio_tokens=str(tmp_path / "mimi"), audio_order=order)
    recipe = dataclasses.replace(SMALL, inputs=(str(tmp_path / "all.jsonl"),), held_out=0, **own)
    job.prepare(recipe, tmp_path / "out", 1, 0)
    tokenizers = dataset_tokenizers.load(tmp_path / "out" / "tokenizers")
    network = networks.opened(tmp_path / "mimi", layers=3)
    dataset = Dataset(tmp_path / "out", "train")
    for record in map(dataset.__getitem__, range(dataset.count)):
        i = int(record.id.split(":")[-1]) - 1 if ":" in record.id else int(record.id)
        (data,) = [span.data for span in record.spans if span.modality == "audio"]
        layer = data // 16
        frames = len(data) // 3
        assert layer.tolist() == (
            [0] * frames + [1] * frames + [2] * frames if order == "layers" else [0, 1, 2] * frames
        )
        back = tokenizers.decode("audio", data)
        by_layer = np.concatenate([data[layer == n] for n in range(3)])
        assert np.array_equal(back.wave, network.decode(by_layer))
        assert back.rate == RATE
        assert codecs.files("audio", tokenizers.of("audio"), back, 0)["wav"][:4] == b"RIFF"
        if i % 2:
            assert np.array_equal(network.encode([waves[i]])[0], by_layer)


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        ({"model_type": "chameleon_vqgam"}, r"is of 'chameleon_vqgam'; known are .* did you mean 'chameleon_vqgan'"),
        ({"model_type": "llama"}, "is of 'llama'; known are"),
        ({"num_embeddings": 33}, "make no ChameleonVQVAE|no tensor of this shape"),
        ({"num_res_blocks": 2}, "missing from the weights of a ChameleonVQVAE"),
        ({"channel_multiplier": "x"}, "make no ChameleonVQVAE"),
        ({"resolution": 15}, "pictures of side 15; must be a multiple of its stride 2"),
        ({"quantization_config": {}}, "quantised"),
    ],
)
def test_bad_folders_are_told(tmp_path, changed, why):
    saved(chameleon(), tmp_path / "vq")
    config = tmp_path / "vq" / "config.json"
    about = json.loads(config.read_text(encoding="utf-8")) | changed
    config.write_text(json.dumps(about), encoding="utf-8")
    with pytest.raises(UserError, match=why):
        networks.opened(tmp_path / "vq")


def test_files_that_are_no_weights_are_told(tmp_path):
    folder = tmp_path / "vq"
    saved(chameleon(), folder)
    weights = folder / "model.safetensors"
    kept = weights.read_bytes()
    weights.write_bytes(kept[:100])
    with pytest.raises(UserError, match="is no safetensors file"):
        networks.opened(folder)
    save_file({"quantize.embedding.weight": torch.zeros(32, 8)}, weights)
    with pytest.raises(UserError, match="missing from the weights"):
        networks.opened(folder)
    save_file({"other": torch.zeros(2)}, weights)
    with pytest.raises(UserError, match=r"no network with a tensor quantize\.embedding\.weight"):
        networks.opened(folder)
    weights.rename(folder / "pytorch_model.bin")
    with pytest.raises(UserError, match="pickle can run code"):
        networks.opened(folder)
    (folder / "pytorch_model.bin").unlink()
    with pytest.raises(UserError, match="has neither"):
        networks.opened(folder)


def test_options_of_another_medium_and_codecs_that_do_not_fit_are_told(tmp_path):
    saved(mimi(), tmp_path / "mimi")
    with pytest.raises(UserError, match="MimiModel is a network of audio, and has no side; give it as --audio-tokens"):
        networks.opened(tmp_path / "mimi", side=16)
    saved(encodec(normalize=True), tmp_path / "loud")
    with pytest.raises(UserError, match="one channel without chunks is needed"):
        networks.opened(tmp_path / "loud")
    saved(emu3(), tmp_path / "emu3")
    with pytest.raises(UserError, match="say one, a multiple of 2: --image-side 512"):
        networks.opened(tmp_path / "emu3")
    with pytest.raises(UserError, match="multiple of its stride 2, up to 1024 pixels; write --image-side 16"):
        networks.opened(tmp_path / "emu3", side=17)
    own = dict(audio_rate=16000, audio_ids=None, audio_layers=0, audio_tokens=str(tmp_path / "emu3"))
    (tmp_path / "a.wav").write_bytes(sound(sounds(900)[0], "WAV", rate=RATE))
    write_lines(tmp_path / "all.jsonl", {"text": "a", "audio": "a.wav"})
    recipe = dataclasses.replace(SMALL, inputs=(str(tmp_path / "all.jsonl"),), **own)
    with pytest.raises(
        UserError, match="Emu3VQVAE is a network of image, and has no layers; give it as --image-tokens"
    ):
        job.prepare(recipe, tmp_path / "out", 1, 0)
    assert not (tmp_path / "out").exists()

"""Texts, their tokenizer, and the dataset that was prepared with it: what a published model is imported with."""

import json
import shutil

import numpy as np
from safetensors.numpy import load_file, save_file

from mot.tokenizers import text
from tests.support.commands import succeeds

IDS = 300  # of the tokenizer, without the five special tokens of mot's


def write(folder):
    """`tokenizer.json` and the dataset `data` in a new folder."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    words = ["one fox", "two dogs", "the quick", "a lazy day", "brown", "jumps", "over"]
    texts = [" ".join(rng.choice(words, 30)) + "." for _ in range(40)]
    text.train(texts, IDS, special=("<unk>",)).save(str(folder / "tokenizer.json"))
    (folder / "all.txt").write_text("\n\n".join(texts), encoding="utf-8")
    arguments = [folder / "all.txt", "--format=text", "--separator=\n\n", "--held-out=0.2", "--workers=1"]
    succeeds("data", "prepare", *arguments, f"--tokenizer={folder / 'tokenizer.json'}", f"--out={folder / 'data'}")
    return folder


def pictures(folder, texts):
    """The dataset `data` of pictures that are described, with the tokenizer of `texts`."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    np.savez(folder / "all.npz", text=["one fox", "two dogs"] * 10, image=rng.integers(0, 256, (20, 8, 8, 3), np.uint8))
    asked = [folder / "all.npz", "--content=text:{text}|image:image", "--image-side=8", "--image-patch=2"]
    asked += ["--image-ids=12", "--held-out=0.2", "--workers=1"]
    succeeds("data", "prepare", *asked, f"--tokenizer={texts / 'tokenizer.json'}", f"--out={folder / 'data'}")


def latents(folder, texts, features):
    """The dataset `data` of pictures that are described and then drawn, as latents of 2 by 3, of as many features."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    drawn = rng.standard_normal((20, 2, 3, features)).astype(np.float32)
    np.savez(folder / "all.npz", text=["one fox", "two dogs"] * 10, latents=drawn)
    asked = [folder / "all.npz", "--content=text:{text}|latents:latents", "--held-out=0.2", "--workers=1"]
    succeeds("data", "prepare", *asked, f"--tokenizer={texts / 'tokenizer.json'}", f"--out={folder / 'data'}")


def codes(folder, special, ids):
    """`tokenizer.json` with these special tokens first, and the dataset `data` of text and ready ids of images."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    words = ["one fox", "two dogs", "the quick", "a lazy day", "brown", "jumps", "over"]
    texts = [" ".join(rng.choice(words, 8)) + "." for _ in range(40)]
    text.train(texts, IDS, special=special).save(str(folder / "tokenizer.json"))
    rows = [{"text": one, "ids": rng.integers(0, ids, 9).tolist(), "modality": "image"} for one in texts]
    (folder / "all.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    arguments = [folder / "all.jsonl", f"--ids=image={ids}", "--held-out=0.2", "--workers=1"]
    succeeds("data", "prepare", *arguments, f"--tokenizer={folder / 'tokenizer.json'}", f"--out={folder / 'data'}")
    return folder


def robot(folder, texts, latents=12, state=4, actions=3):
    """The dataset `data` of pictures' features, text, states and chunks of actions, all of so many features."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    sizes = dict(latents=(20, 8, latents), state=(20, state), chunk=(20, 5, actions))
    arrays = {name: rng.standard_normal(size).astype(np.float32) for name, size in sizes.items()}
    np.savez(folder / "all.npz", text=["one fox", "two dogs"] * 10, **arrays)
    asked = [folder / "all.npz", "--content=latents:latents|text:text|state:state|chunk:chunk", "--held-out=0.2"]
    asked += ["--workers=1", f"--tokenizer={texts / 'tokenizer.json'}", f"--out={folder / 'data'}"]
    succeeds("data", "prepare", *asked)
    return folder


def pictured(folder, texts, features):
    """The dataset `data` of text and of pictures' features, `[2, 3, features]`."""
    folder.mkdir()
    latents = np.random.default_rng(0).standard_normal((20, 2, 3, features)).astype(np.float32)
    np.savez(folder / "all.npz", text=["one fox", "two dogs"] * 10, latents=latents)
    asked = [folder / "all.npz", "--content=latents:latents|text:text", "--held-out=0.2", "--workers=1"]
    succeeds("data", "prepare", *asked, f"--tokenizer={texts / 'tokenizer.json'}", f"--out={folder / 'data'}")
    return folder


ABOUT = dict(
    architectures=["LlamaForCausalLM"],
    model_type="llama",
    hidden_act="silu",
    hidden_size=16,
    intermediate_size=24,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    rms_norm_eps=1e-5,
    tie_word_embeddings=False,
    vocab_size=IDS,
    max_position_embeddings=64,
)


def shapes(about=ABOUT):
    """Of every tensor of a Llama, by its name."""
    D, F, V = about["hidden_size"], about["intermediate_size"], about["vocab_size"]
    head = D // about["num_attention_heads"]
    N, K = D, head * about["num_key_value_heads"]  # of all heads
    found = {"model.embed_tokens.weight": (V, D), "model.norm.weight": (D,), "lm_head.weight": (V, D)}
    attention = {"q": (N, D), "k": (K, D), "v": (K, D), "o": (D, N)}
    mlp = {"gate": (F, D), "up": (F, D), "down": (D, F)}
    for layer in range(about["num_hidden_layers"]):
        at = f"model.layers.{layer}"
        found |= {f"{at}.self_attn.{x}_proj.weight": shape for x, shape in attention.items()}
        found |= {f"{at}.mlp.{x}_proj.weight": shape for x, shape in mlp.items()}
        found |= {f"{at}.{x}_layernorm.weight": (D,) for x in ("input", "post_attention")}
    return found


def tensors():
    """Random ones of the Llama that ABOUT describes."""
    rng = np.random.default_rng(0)
    return {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes().items()}


def save(folder, arrays, about=ABOUT, tokenizer=None):
    """A folder as save_pretrained writes it, in two shards."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(about), encoding="utf-8")
    names = sorted(arrays)
    files = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
    for file, own in files.items():
        save_file({name: arrays[name] for name in own}, folder / file)
    weight_map = {name: file for file, own in files.items() for name in own}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}), encoding="utf-8")
    if tokenizer:
        shutil.copy(tokenizer, folder / "tokenizer.json")
    return folder


def read(folder):
    """The tensors of such a folder."""
    return {name: x for file in sorted(folder.glob("*.safetensors")) for name, x in load_file(file).items()}

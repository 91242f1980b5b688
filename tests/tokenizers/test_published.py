"""What is told of a folder before any library is imported: parity tests open whole ones."""

import json
import sys

import numpy as np
import pytest
from safetensors.numpy import save_file

from mot.errors import UserError
from mot.tokenizers import networks

VQ = {"model_type": "chameleon_vqgan", "resolution": 16}
FILE = "model-00001-of-00002.safetensors"


def folder(path, about=VQ, **files):
    """A folder with this config.json and these files, a name's `__` being a dot."""
    path.mkdir()
    for name, content in {"config__json": about, **files}.items():
        text = content if isinstance(content, str) else json.dumps(content)
        (path / name.replace("__", ".")).write_text(text, encoding="utf-8")
    return path


def index(**listed):
    return {"model__safetensors__index__json": {"weight_map": listed}}


@pytest.mark.parametrize(
    ("about", "files", "why"),
    [
        ({"model_type": "janus_vqgam"}, {}, r"'janus_vqgam'; known are .*; did you mean 'janus_vqgan'\?"),
        ({"model_type": "llama"}, {}, "is of 'llama'; known are chameleon_vqgan, .*, siglip2; name a folder"),
        ({"auto_map": {"AutoModel": "own.Model"}}, {}, "has no model_type or _class_name"),
        ({"model_type": ["x"]}, {}, "has no model_type or _class_name"),
        ({"model_type": "chameleon"}, {}, "has no vq_config, which describes its chameleon_vqgan"),
        ("[]", {}, "cannot be read .no object.; name a folder as save_pretrained"),
        ("{", {}, r"config\.json cannot be read"),
        (VQ, {}, r"has neither model\.safetensors nor model\.safetensors\.index\.json"),
        (VQ, {"pytorch_model__bin": ""}, r"has pytorch_model\.bin and no model\.safetensors: a pickle can run code"),
        (VQ, index(), "has no weight_map"),
        (VQ, index(a="model.bin"), r"a lies in 'model\.bin': a pickle can run code"),
        (
            VQ,
            index(a="../x.safetensors"),
            r"a lies in '\.\./x\.safetensors'; must be the name of a \.safetensors file of this folder",
        ),
        (VQ | {"quantization_config": {}}, {}, "its weights are quantised"),
    ],
)
def test_folders_that_cannot_be_opened_are_told(tmp_path, about, files, why):
    with pytest.raises(UserError, match=why):
        networks.opened(folder(tmp_path / "vq", about, **files))


@pytest.mark.parametrize("missing", ["safetensors", "torch"])
def test_a_package_that_is_missing_is_told(tmp_path, monkeypatch, missing):
    given = folder(tmp_path / "vq", VQ)
    save_file({"quantize.embedding.weight": np.zeros(1, np.float32)}, given / "model.safetensors")
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(UserError, match=f"the package {missing} cannot be imported .*or mot's extra networks"):
        networks.opened(given)

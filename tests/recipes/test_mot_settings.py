"""MoT's three settings are this project's own configurations, under one name."""

import json

import numpy as np
import pytest
import soundfile
from PIL import Image

from configs import chameleon, transfusion
from configs.recipes import mot_settings
from tests.support import recipes


def test_settings_are_the_configurations_that_they_name():
    assert mot_settings.get_config("size=smoke") == chameleon.get_config("size=smoke")
    ddpm = transfusion.get_config("size=smoke,predicts=ddpm,arch=dense")
    assert mot_settings.get_config("setting=transfusion,size=smoke,arch=dense") == ddpm
    with pytest.raises(ValueError, match="data=embedded: it has no speech"):
        mot_settings.get_config("setting=speech,size=smoke")


@pytest.mark.parametrize("setting", ["chameleon", pytest.param("transfusion", marks=pytest.mark.slow)])
def test_a_setting_takes_two_steps(setting, tmp_path):
    recipes.two_steps("mot_settings", tmp_path, f"setting={setting}")


def test_speech_has_a_tower_of_its_own(tmp_path):
    rng, lines = np.random.default_rng(0), []
    for i in range(24):
        Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8)).save(tmp_path / f"{i}.png")
        soundfile.write(tmp_path / f"{i}.wav", rng.uniform(-0.5, 0.5, 1600), 8000)
        content = [{"text": f"Number {i}."}, {"image": f"{i}.png"}, {"audio": f"{i}.wav"}]
        lines.append(json.dumps({"id": str(i), "content": content}))
    (tmp_path / "all.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    folder = recipes.prepared(tmp_path / "speech", tmp_path / "all.jsonl")
    run = recipes.config("mot_settings", tmp_path, "setting=speech", f"data={folder}")
    assert sorted(run.streams) == sorted(run.ffn) == ["audio", "image", "text"]
    recipes.two_steps("mot_settings", tmp_path, "setting=speech", f"data={folder}")

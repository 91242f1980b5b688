"""The three settings of Mixture-of-Transformers (2411.04996), which are other configurations of this project.

mot train --config=configs/recipes/mot_settings.py:setting=chameleon,arch=mot,size=cpu     text and images as ids
mot train --config=configs/recipes/mot_settings.py:setting=transfusion,arch=mot,size=cpu   images by diffusion
mot data prepare --input=speech.jsonl --out=data/speech                                    text, images and speech
mot train --config=configs/recipes/mot_settings.py:setting=speech,data=data/speech,size=cpu

setting=chameleon is configs/chameleon.py; speech is the same with a third tower, of speech as ids; transfusion is
configs/transfusion.py, which learns images by the objective `predicts`: the paper's is ddpm. `arch=dense` is what the
paper compares with, at equal FLOPs.
"""

from ml_collections import ConfigDict

from configs import archs, base, chameleon, sizes, transfusion

SETTINGS = {
    "chameleon": "text and images, all ids (2405.09818)",
    "speech": "text, images and speech, all ids: data of your own",
    "transfusion": "text by next token, images by diffusion (2408.11039)",
}
CPU = "demo"  # what size=cpu is called in the settings' own files
ARGUMENTS = {
    "setting": base.Argument("chameleon", SETTINGS),
    "arch": archs.ARGUMENT,
    "size": base.Argument("cpu", ["cpu", *(sizes.LAPTOP | sizes.TINY | sizes.SPEECH | sizes.TRANSFUSION)]),
    "data": chameleon.ARGUMENTS["data"],
}


def get_config(arg: str = "") -> ConfigDict:
    arg = base.parse(arg, ARGUMENTS)
    setting = base.chosen("setting", arg.pop("setting"), SETTINGS)
    if setting == "speech" and arg["data"] == "embedded":
        raise ValueError("data=embedded: it has no speech; prepare data that has (docs/howto/own-data.md), and name it")
    arg["size"] = CPU if arg["size"] == "cpu" else arg["size"]
    if setting == "transfusion":
        return transfusion.get_config(",".join(f"{key}={value}" for key, value in (arg | {"predicts": "ddpm"}).items()))
    c = chameleon.get_config(",".join(f"{key}={value}" for key, value in arg.items()))
    if setting == "speech" and len(c.streams) < 3:
        raise ValueError(f"data={arg['data']}: has {', '.join(c.streams)}; this setting is of text, images and speech")
    return c

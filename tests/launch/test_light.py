"""Help and typing errors are answered before anything heavy is imported, with what may have been meant."""

import dataclasses
import json

from launch.arguments import CHECKPOINT, PARSERS
from launch.cli import COMMANDS
from mot.config import resolve
from mot.config.load import read
from tests.conftest import ROOT
from tests.support.commands import answers

SMOKE = "--config=configs/digits.py:size=smoke"
TYPOS = {  # command line: what is said
    ("trian",): "did you mean 'train'?",
    ("data", "prepar", "README.md"): "did you mean 'prepare'?",
    ("train", "--config=configs/digit.py"): "did you mean 'configs/digits.py'?",
    ("train", "--config=digits.py"): "did you mean 'configs/digits.py'?",
    ("train", "--config=configs/digits.py:archs=mot"): "did you mean 'arch'?",
    ("train", "--config=configs/digits.py:arch=mott"): "did you mean 'mot'?",
    ("train", "--config=configs/digits.py:size=smokey"): "allowed: smoke, demo, draw; did you mean 'smoke'?",
    ("train", "--config=configs/ladder.py:setting=chameleo"): "did you mean 'chameleon'?",
    ("train", "--config=configs/transfusion.py:copies=boht"): "allowed: noised, both; did you mean 'both'?",
    ("train", SMOKE, "--profil2"): "did you mean '--profile'?",
    ("train", SMOKE, "--confg.optim.lr=3"): "did you mean '--config.optim.lr=3'?",
    ("train", SMOKE, "--config.optim.lrr=3"): "optim.lrr: unknown key, value 3; allowed: name, ",
    ("train", SMOKE, "--config.optim.scedule=linear"): "did you mean 'schedule'?",
    ("train", SMOKE, "--config.optim.schedule=cosin"): "did you mean 'cosine'?",
    ("train", SMOKE, "--config.optim.lr=fast"): "optim.lr: 'fast' is str; must be of type float",
    ("config", "configs/digits.py", "optim.schedul"): "did you mean 'optim.schedule'?",
    ("evaluate", "configz"): "there is no such run directory; name one that exists; did you mean 'configs'?",
    ("evaluate", "configs", "--what=rankin"): "did you mean 'ranking'?",
    (
        "evaluate",
        "configs",
        "--what=ranking",
        "--answers=README.mb",
    ): "there is no such file; name one that exists; did",
    ("sample", "configs", "--solver=heum"): "did you mean 'heun'?",
    ("data", "inspect", "configz"): "there is no such dataset; name one that exists; did you mean 'configs'?",
    ("data", "prepare", "README.mb", "--out=nowhere"): "did you mean 'README.md'?",
    ("data", "prepare", "README.md", "--out=nowhere", "--format=txt"): "did you mean 'text'?",
    (
        "data",
        "prepare",
        "README.md",
        "--out=nowhere",
        "--held-out=2",
    ): "--held-out=2.0; must be a fraction, from 0 to below 1",
    ("data", "prepare", "README.md", "--out=nowhere", "--ids=depth"): "--ids depth: write NAME=COUNT",
    ("data", "prepare", "README.md", "--out=nowhere", "--ids=Depth=4"): "a modality's name is lower-case letters",
    ("data", "prepare", "README.md", "--out=nowhere", "--ids=depth=4", "--ids=depth=5"): "says 2 times how many",
    ("data", "prepare", "README.md", "--out=nowhere", "--content=caption"): "write kind:field, the kind one of text",
    ("data", "prepare", "README.md", "--out=nowhere", "--content=depth:codes"): "a modality that --ids declares",
    ("data", "prepare", "README.md", "--out=nowhere", "--separator="): "--separator '': it is empty",
    ("data", "prepare", "README.md", "--out=nowhere", "--image-side=30"): "is no multiple of --image-patch=4",
    ("data", "prepare", "README.md", "--out=nowhere", "--image-side=5000"): "--image-side=5000; at most 1024; lower it",
    ("data", "prepare", "README.md", "--out=nowhere", "--audio-rate=96000"): "at most 48000; lower it",
    ("data", "prepare", "README.md", "--out=nowhere", "--sample=0"): "--sample=0; must be 1 or more; raise it",
    ("data", "prepare", "--out=nowhere"): "give files or folders, or --seqio=NAME",
    ("demo", "--archs=dense,motr"): "did you mean 'mot'?",
    ("demo", "--setting=transfuson"): "did you mean 'transfusion'?",
    ("report", "--ouT=x", "configs"): "did you mean '--out'?",
    ("plan", "--topology=v5q:4x4x4"): "no such chip as 'v5q'",
    ("plan",): "--topology is missing; write as in",
    ("train", SMOKE, "--runs=0"): "--runs 0: must be KEY=V1,V2,... or how many seeds, 2 to 1024",
    ("train", SMOKE, "--runs=optim.lrr=1,2"): "did you mean 'optim.lr'?",
    ("train", SMOKE, "--runs=optim.lr=a,2"): "--runs optim.lr=a,2:\n  optim.lr: 'a' is str",
    ("train", SMOKE, "--runs=optim.lr=1e-3,1e-5"): "optim.lr=1e-3,1e-5:\n  of 1e-5: optim.end_lr: 0.0001 is above",
    ("train", SMOKE, "--config.init.run=nowhere"): "init.run: nowhere: there is no such run directory",
    ("train", SMOKE, "--config.run.root=README.md"): "README.md is a file, not a folder; move it away, or name another",
    ("train", SMOKE, "--config.run.root=/proc/mine"): "nothing can be written in /proc",
    ("evaluate",): "give a run directory, or the --config=FILE:arg",
    ("data", "inspect"): "give a dataset's folder, or --config=FILE:arg",
    ("train", SMOKE, "--steps=20"): "'--steps=20' is unknown; did you mean '--config.run.steps=20'?",
    ("train", SMOKE, "--batch-size", "8"): "'--batch-size' is unknown; did you mean '--config.data.batch=8'?",
    ("train", SMOKE, "--lr", "1e-3"): "did you mean '--config.optim.lr=1e-3'?",
    ("train", SMOKE, "--config.run.steps", "20"): "lacks its value; write --config.run.steps=20, with = and no space",
    ("train", SMOKE, "--config.run.steps"): "lacks its value; write --config.run.steps=VALUE",
    ("train", SMOKE, "--run", "3"): "'--run' is unknown; did you mean '--runs'?",
    ("train", "--conf=configs/digits.py"): "the following arguments are required: --config",
    (
        "train",
        "configs/digits.py:arch=mto,size=smok",
    ): "did you mean 'mot'?\n  size=smok: no such size; allowed: smoke,",
    ("train", "configs/digits.py:size=smoke", "--config.optim.lrr=1"): "optim.lrr: unknown key, value 1",
    ("evaluate", "configs/digits.py:size=smoke", "--config.optim.lrr=1"): "optim.lrr: unknown key, value 1",
    ("plan", "configs/ladder.py:rung=2m"): "rung=2m: no such rung of chameleon; allowed: 0.3m, 1m",
    ("train", SMOKE, "--config.optim.learning_rate=1"): "did you mean 'optim.lr'?",
    ("train", SMOKE, "--config.optim.inertia=1"): "optim.inertia: unknown key, value 1; allowed: ",
    ("train", SMOKE, "--config.lr=1"): "did you mean 'optim.lr'?",
    ("train", SMOKE, "--config.run.seed=1"): "did you mean 'model.seed' or 'data.seed'?",
    ("data", "prepare", "README.md"): "required: --out; `mot data prepare --help` shows its options",
    ("tokenizer", "train", "nowhere", "--kind=fsq", "--out=x"): "nowhere: there is no such file or folder; name one",
    ("tokenizer", "train", ".", "--kind=fsq", "--out=docs"): "--out docs: exists; nothing was overwritten; name a new",
    ("tokenizer", "train", ".", "--kind=fsq", "--out=x", "--patch=5"): "--patch=5: must divide --side=32; choose one",
    ("tokenizer", "train", ".", "--kind=fsq", "--out=x", "--layers=2"): "--layers=2: is not for --kind fsq; leave it",
    ("tokenizer", "train", ".", "--kind=fsk", "--out=x"): "did you mean 'fsq'?",
    ("tokenizer", "train", ".", "--out=x"): "required: --kind; `mot tokenizer --help` shows its options",
    ("sample",): "mot sample: the following arguments are required: run; `mot sample --help` shows its options",
    ("sweep", "configs/sweep.py:archs"): "did you mean 'configs/sweeps.py'?",
    ("sweep", "configs/sweeps.py:arch"): "did you mean 'archs'?",
    ("sweep", "configs/sweeps.py:archs,arch=mot"): "write archs=mot",
    ("sweep", "status", "nowhere"): "nowhere: there is no such folder of a sweep; name one that exists",
    ("sweep", "configs/sweeps.py:archs", "--dryrun"): "did you mean '--dry-run'?",
    ("report", "nowhere"): "nowhere: no run directory there; give folders that hold a config.json",
}
# In a folder with the run `base` of digits in ids, whose step 2 was saved, and the dataset `set` of 3 documents.
OF_A_RUN = {
    ("evaluate", "base", "--step=99"): "base has no checkpoint of step 99; it has 2; choose one",
    ("evaluate", "broken"): "broken/config.json is damaged or foreign (it needs the sections ",
    ("sample", "broken"): "broken/config.json is damaged or foreign (it needs the sections ",
    ("report", "broken"): "broken/config.json is damaged or foreign (it needs the sections ",
    ("report", "base", "--out=base/config.json"): "--out base/config.json: base/config.json is a file, not a folder",
    ("report", "base", "--out=/proc/mine"): "--out /proc/mine: nothing can be written in /proc",
    ("sample", "base", "--out=base/config.json"): "--out base/config.json: base/config.json is a file, not a folder",
    ("sample", "base", "--out=/proc/mine"): "--out /proc/mine: nothing can be written in /proc",
    ("sample", "base", "--temperature=-1"): "--temperature=-1.0; must be from 0 to 100",
    ("sample", "base", "--draw=audio"): "--draw=audio: this run draws image; write one of these, or any",
    ("sample", "base", "--draw=imge"): "write one of these, or any; did you mean 'image'?",
    ("sample", "base", "--prompt="): "--prompt '': it has no word; write a caption, as 'a handwritten seven'",
    ("sample", "base", "--prompt=cat " + "dog " * 1000): "...': cat, dog is in no caption",
    ("sample", "base", "--prompt-file=."): "--prompt-file=.: is a folder; name a document in it",
    ("sample", "base", "--prompt-file=bse"): "--prompt-file=bse: there is no such file; name one that exists; did you ",
    ("export", "base", "--step=9", "--out=x"): "base has no checkpoint of step 9; it has 2; choose one",
    ("export", "base", "--shard-mb=0", "--out=x"): "--shard-mb=0; must be from 1 to 1,000,000",
    ("import", "st", "--data=set", "--out=x"): "st: there is no such folder; name one that exists; did you mean 'set'?",
    ("sample", "base", "--step=7"): "base has no checkpoint of step 7; it has 2; choose one",
    ("data", "inspect", "set", "--document=99"): "--document=99; train has documents 0 to 2; name one of these",
    ("data", "inspect", "set", "--out=."): "--out .: is a folder; name a file in it",
    ("train", SMOKE, "--config.init.run=base", "--config.init.step=9"): "init.run: base has no checkpoint of step 9",
    ("evaluate", "seven"): "there is no such run directory; name one that exists; did you mean 'runs/seven'?",
    ("sample", "nine"): "did you mean 'runs/demo/nine'?",
    ("train", "--config=configs/records.py:data=st"): "there is no st/dataset.json; did you mean 'set'?",
    ("train", SMOKE, "--config.init.run=broken"): "init.run: broken/config.json is damaged or foreign (it needs ",
}


def test_help_needs_nothing_heavy_and_lists_the_arguments_of_a_configuration():
    lines = [["--help"], ["data", "--help"], ["checkpoint", "--help"]]
    lines += [[name, "--help"] for name in COMMANDS if name not in ("data", "checkpoint")]
    lines += [["data", name, "--help"] for name in ("prepare", "inspect")]
    lines += [["checkpoint", name, "--help"] for name in CHECKPOINT]
    assert {line[-2] for line in lines[3:]} == set(PARSERS)
    takes = [["train"], ["evaluate"], ["demo"], ["plan"], ["data", "inspect"]]
    of_file = [[*command, "--config=configs/digits.py", "--help"] for command in takes]
    found = answers([*lines, *of_file, ["config", "configs/digits.py", "--help"]], ROOT, ROOT)
    for line, (code, heavy, said) in zip(lines, found, strict=False):
        assert (code, heavy) == (0, []), line
        assert "usage: mot" in said
    for code, heavy, said in found[len(lines) :]:
        assert (code, heavy) == (0, [])
        for text in ("arguments of configs/digits.py", "arch=mot", "mot_attn_ffn", "size=demo: smoke, demo, draw"):
            assert text in said


def test_typing_errors_are_answered_before_anything_heavy_is_imported():
    for (line, says), (code, heavy, said) in zip(TYPOS.items(), answers(TYPOS, ROOT, ROOT), strict=True):
        assert (code, heavy) == (2, []), (line, said)
        assert says in said, (line, said)
        assert "Traceback" not in said
        assert "usage:" not in said or line[0] in ("trian", "data"), said


def dataset(documents):
    """A dataset.json that is whole; none of the files that it lists is there."""

    def listed(name):
        return {"file": name, "bytes": 1, "digest": "a"}

    special = {name: i for i, name in enumerate(("<pad>", "<bos>", "<eos>", "<boi>", "<eoi>"))}
    split = {"documents": documents, "shards": [listed("shard-00000.array_record") | {"documents": documents}]}
    split |= {"index": [listed(f"{name}.npy") for name in ("lengths", "atoms", "firsts")]}
    split |= {"tokens": {"text": 9}, "spans": {}}
    text = {"ids": 9, "digest": "a", "special": special, "files": [listed("text.json")]}
    splits = {"train": split, "held_out": split}
    return {"format": 1, "modalities": ["text"], "tokenizers": {"text": text}, "splits": splits, "left_out": {}}


def test_what_a_run_or_a_dataset_says_is_answered_before_anything_heavy_is_imported(tmp_path):
    for folder in ("base/checkpoints/2", "broken", "set", "runs/seven", "runs/demo/nine"):
        (tmp_path / folder).mkdir(parents=True)
    config = dataclasses.asdict(resolve(read("configs/digits.py:size=smoke", {})))
    (tmp_path / "base" / "config.json").write_text(json.dumps(config), encoding="utf-8")
    (tmp_path / "base" / "checkpoints" / "2" / "manifest.json").write_text("{}", encoding="utf-8")
    (tmp_path / "broken" / "config.json").write_text("[]", encoding="utf-8")
    (tmp_path / "set" / "dataset.json").write_text(json.dumps(dataset(3)), encoding="utf-8")
    before = sorted(tmp_path.rglob("*"))
    for (line, says), (code, heavy, said) in zip(OF_A_RUN.items(), answers(OF_A_RUN, ROOT, tmp_path), strict=True):
        assert (code, heavy) == (2, []), (line, said)
        assert says in said, (line, said)
        assert said.count("mot:") == 1
        assert said.count("config.json is damaged") < 2, said
        assert len(said) < 1000, line
    assert sorted(tmp_path.rglob("*")) == before

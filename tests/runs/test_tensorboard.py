"""What TensorBoard shows of a run, read from its event files: few groups, one point a step, samples in order."""

import io
import json

import jax
import numpy as np
import pytest
from PIL import Image
from tensorboardX.proto.event_pb2 import SessionLog
from tensorboardX.proto.plugin_hparams_pb2 import HParamsPluginData

from configs import digits as digits_config
from launch import sample
from launch.sample import Options
from mot.config import resolve
from mot.data import sources
from mot.generate import opened, results
from mot.runs import rundir, tensorboard
from mot.runs.writer import Writer
from mot.tokenizers import waveform
from mot.train import loop

GROUPS = {"loss", "by_source", "optim", "speed", "data", "eval"}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    tree = digits_config.get_config("arch=mot,size=smoke").unlock()
    tree.run.update(root=str(tmp_path_factory.mktemp("runs")), name="run", steps=2, eval_every=1, save_every=1)
    return loop.run(resolve(tree, sources.faults), devices=jax.devices()[:1])


def shown(folder):
    """`[(step, value)]` by tag, as TensorBoard reads the files of a folder: what a restart purges is gone."""
    found = {}
    for file in sorted(folder.glob("*tfevents*")):
        for event, _ in tensorboard.read(file):
            if event.HasField("session_log") and event.session_log.status == SessionLog.START:
                found = {tag: [x for x in points if x[0] < event.step] for tag, points in found.items()}
            for value in event.summary.value:
                found.setdefault(value.tag, []).append((event.step, value))
    return {tag: points for tag, points in found.items() if points}


def steps(folder):
    return {tag: [step for step, _ in points] for tag, points in shown(folder).items()}


def test_curves_are_in_few_groups(run):
    found = steps(run / "tensorboard")
    curves = {tag: at for tag, at in found.items() if not tag.startswith("_hparams_") and tag != "config/text_summary"}
    assert {tag.partition("/")[0] for tag in curves} == GROUPS
    for tag, at in curves.items():
        assert at == ([0, 1, 2] if "eval" in tag else [1, 2]), tag
    assert {"loss", "loss/text", "loss/image", "loss/objective", "eval/loss/image", "by_source/loss/text/manual"} < {
        *curves
    }
    assert not any(word in tag for tag in curves for word in ("flops", "tokens/", "idle", "seconds/"))
    rows = [row for row in rundir.read_metrics(run) if row["kind"] == "train"]
    assert {"flops", "seconds", "idle_seconds", "tokens/text"} < rows[-1].keys(), "the file has everything"
    told = [value.simple_value for _, value in shown(run / "tensorboard")["loss/text"]]
    np.testing.assert_allclose(told, [row["loss/text"] for row in rows], rtol=1e-6)


def test_the_configuration_is_there_once_as_text_and_in_the_table_of_runs(run):
    board = shown(run / "tensorboard")
    ((step, value),) = board["config/text_summary"]
    words = value.tensor.string_val[0].decode()
    assert step == 0
    assert all(line.startswith("    ") for line in words.splitlines())
    assert json.loads(words) == rundir.read_config(run)
    ((_, value),) = board["_hparams_/session_start_info"]
    data = HParamsPluginData.FromString(value.metadata.plugin_data.content)
    told = data.session_start_info.hparams
    assert told["optim.lr"].number_value == rundir.read_config(run)["optim"]["lr"]
    assert told["model.norm"].string_value == "pre"
    assert not {"data.workers", "model.attention", "optim.rules"} & told.keys()
    ((_, value),) = board["_hparams_/experiment"]
    metrics_of = HParamsPluginData.FromString(value.metadata.plugin_data.content).experiment.metric_infos
    assert {m.name.tag for m in metrics_of} == {"eval/loss", "eval/loss/text", "eval/loss/image"} < board.keys()
    assert [p.name for p in (run / "tensorboard").iterdir() if p.is_dir()] in ([], ["samples"]), "no run beside it"


def test_samples_are_shown_at_their_step(run, tmp_path):
    """In whichever order they were drawn; drawn anew they replace what was shown; elsewhere they are not the run's."""
    model, options = opened.opened(run, 2), Options(prompts=("a handwritten seven",), each=1, read=1)
    for step in (2, 1, 2):
        sample.draw(model, step, options)
    sample.draw(model, 1, options._replace(out=tmp_path / "elsewhere"))
    found = shown(run / "tensorboard" / "samples")
    assert {tag: [step for step, _ in points] for tag, points in found.items()} == {
        "samples/text_summary": [1, 2],
        "pictures/digits": [1, 2],
        "pictures/captions": [1, 2],
    }
    png = (run / "samples" / "2-2" / "digits.png").read_bytes()  # the newest of that step
    image = found["pictures/digits"][1][1].image
    assert image.encoded_image_string == png
    assert (image.width, image.height) == Image.open(io.BytesIO(png)).size
    words = found["samples/text_summary"][1][1].tensor.string_val[0].decode()
    assert "    digits drawn as asked: " in words
    assert len(list((run / "tensorboard" / "samples").iterdir())) == 1


def test_sounds_are_heard_and_pictures_of_single_parts_left_out(tmp_path):
    wav = waveform.wav(np.linspace(-0.5, 0.5, 800), 8000)
    png = io.BytesIO()
    Image.new("RGB", (5, 4)).save(png, "png")
    many = {f"document-{i}-2.wav": wav for i in range(12)} | {f"document-{i}-2.png": png.getvalue() for i in range(12)}
    results.show(tmp_path, 7, many | {"documents.png": png.getvalue(), "document-0.txt": b"a"}, "two\nlines")
    found = shown(tmp_path / "tensorboard" / "samples")
    heard = [f"sounds/document-{i}-2" for i in range(tensorboard.SOUNDS)]
    assert found.keys() == {"samples/text_summary", "pictures/documents", *heard}
    ((step, value),) = found[heard[0]]
    assert (step, value.metadata.plugin_data.plugin_name) == (7, "audio")
    assert list(value.tensor.string_val) == [wav, b""]
    assert [dim.size for dim in value.tensor.tensor_shape.dim] == [1, 2]
    # What was cut off, as by a full disk, is left out; what comes after a later step is put before it.
    (file,) = (tmp_path / "tensorboard" / "samples").iterdir()
    file.write_bytes(file.read_bytes()[:-3])
    results.show(tmp_path, 3, {"grid.png": png.getvalue(), "grid.wav": wav}, "one")
    at = [event.step for event, _ in tensorboard.read(next((tmp_path / "tensorboard" / "samples").iterdir()))]
    assert at == sorted(at)
    assert steps(tmp_path / "tensorboard" / "samples")["samples/text_summary"] == [3, 7]


def test_a_restart_keeps_one_point_a_step(run, tmp_path, monkeypatch):
    """Also one before the first checkpoint, whose rows of step 0 stay."""
    (tmp_path / "config.json").write_bytes((run / "config.json").read_bytes())
    for name, resumed_at in (("a", 0), ("b", 0), ("c", 2)):
        monkeypatch.setattr("socket.gethostname", lambda name=name: name)  # within a second files have it alone apart
        writer = Writer(tmp_path, resumed_at)
        writer.write("eval", 0, {"loss": 1.0})
        for step in range(resumed_at + 1, 5):
            writer.write("train", step, {"loss": float("nan"), "lr": 0.5, "why": "words"})
        writer.close()
    found = steps(tmp_path / "tensorboard")
    assert found["eval/loss"] == [0]
    assert found["loss"] == found["optim/lr"] == [1, 2, 3, 4]
    assert found["config/text_summary"] == [0]

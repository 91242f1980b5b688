"""Our step beside MaxText's, without MaxText: a small program's figures by hand, and what is compiled again."""

import gzip
import json
import os
import sys
from types import SimpleNamespace

import pytest

from bench import compared, maxtext, steps
from launch.process import guarded
from mot import optim
from mot.config import load, resolve
from mot.errors import UserError
from mot.model import flops
from mot.plan import chips
from tests.support import examples

# Four turns of a matmul and a copy; then attention, experts, a gather in bfloat16 and two sums, of which one is mixed.
TEXT = """HloModule jit_step, is_scheduled=true

%add (l: f32[], r: f32[]) -> f32[] {
  %l = f32[] parameter(0)
  %r = f32[] parameter(1)
  ROOT %s = f32[] add(%l, %r)
}

%body (s.0: (s32[], bf16[64,128], bf16[128,256])) -> (s32[], bf16[64,128], bf16[128,256]) {
  %s.0 = (s32[], bf16[64,128]{1,0}, bf16[128,256]{1,0}) parameter(0)
  %i = s32[] get-tuple-element(%s.0), index=0
  %x = bf16[64,128]{1,0} get-tuple-element(%s.0), index=1
  %w = bf16[128,256]{1,0} get-tuple-element(%s.0), index=2
  %y = bf16[64,256]{1,0} dot(%x, %w), lhs_contracting_dims={1}, rhs_contracting_dims={0}
  %turned = bf16[64,128]{0,1} copy(%x)
  ROOT %t = (s32[], bf16[64,128]{1,0}, bf16[128,256]{1,0}) tuple(%i, %x, %w)
}

%condition (s.1: (s32[], bf16[64,128], bf16[128,256])) -> pred[] {
  %s.1 = (s32[], bf16[64,128]{1,0}, bf16[128,256]{1,0}) parameter(0)
  %i.1 = s32[] get-tuple-element(%s.1), index=0
  %n = s32[] constant(4)
  ROOT %lt = pred[] compare(%i.1, %n), direction=LT
}

ENTRY %main (a.0: (s32[], bf16[64,128], bf16[128,256]), q: bf16[8,128], e: bf16[2,128,32], g: f32[16]) -> bf16[8,128] {
  %a.0 = (s32[], bf16[64,128]{1,0}, bf16[128,256]{1,0}) parameter(0)
  %q = bf16[8,128]{1,0} parameter(1)
  %e = bf16[2,128,32]{2,1,0} parameter(2)
  %g = f32[16]{0} parameter(3)
  %loop = (s32[], bf16[64,128]{1,0}, bf16[128,256]{1,0}) while(%a.0), condition=%condition, body=%body
  %splash_mha_fwd.3 = bf16[8,128]{1,0} custom-call(%q, %q, %q), custom_call_target="tpu_custom_call"
  %gmm.7 = bf16[8,32]{1,0} custom-call(%q, %e), custom_call_target="tpu_custom_call", backend_config={EXPERTS}
  %all = bf16[32,128]{1,0} all-gather(%q), channel_id=1, replica_groups={{0,1,2,3}}, dimensions={0}
  %part = f32[4]{0} reduce-scatter(%g), channel_id=2, replica_groups={{0,1,2,3}}, dimensions={0}, to_apply=%add
  %both = (bf16[8,128]{1,0}, f32[16]{0}) all-reduce(%q, %g), channel_id=3, replica_groups={{0,1,2,3}}, to_apply=%add
  ROOT %out = bf16[8,128]{1,0} get-tuple-element(%both), index=0
}
""".replace("EXPERTS", '"custom_call_config":{"cost_estimate":{"flops":"65536"}}')
MEMORY = {"argument": 8, "output": 7, "alias": 6, "temp": 10, "generated_code": 1}


@pytest.fixture(scope="module")
def figures():
    slice = chips.Topology("v5p:2x2x1", chips.CHIPS["v5p"], 4, (), {})
    return compared.figures(TEXT, MEMORY, 3.5, examples.make("mot"), slice)


def test_figures_by_hand(figures):
    config = examples.make("mot")
    dots, grouped = 4 * 2 * 64 * 128 * 256, 65536
    formula = flops.train_step(config, {"text": 4 * 24, "image": 4 * 24}, 0) / 4
    assert figures["matmul_flops"] == dots + grouped
    assert figures["over_formula"] == pytest.approx((dots + grouped) / formula)
    assert figures["float32_flops"] == 0
    assert (figures["arguments"], figures["temporaries"], figures["peak"]) == (8, 10, 8 + 7 - 6 + 10 + 1)
    assert figures["passes"] == pytest.approx(4 * 2 * 64 * 128 * 2 / 2765e9)  # the copy reads and writes
    assert figures["instructions"] == 4 * 2 + 5
    assert figures["attention_calls"] == figures["grouped_calls"] == 1
    assert figures["collectives"] == {"waited for": 3}
    assert figures["endless"] == 0
    assert figures["cpu_seconds"] == 3.5
    vector, numbers = 8 * 128 * 2, 16 * 4
    assert figures["gathered"] == {"bf16 all-gather": 3 * vector}
    assert figures["reduced"] == pytest.approx(
        {"f32 reduce-scatter": 3 / 4 * numbers, "bf16 all-reduce": 3 / 2 * vector, "f32 all-reduce": 3 / 2 * numbers}
    )
    assert figures["sent_otherwise"] == {}
    wire = 3 * vector + 3 / 4 * numbers + 3 / 2 * (vector + numbers)
    assert figures["interconnect"] == pytest.approx(wire / 600e9)


def test_attention_counts_by_the_formula_for_both(figures):
    """So that neither program's kernels, whose FLOPs are their authors' estimates, say how long it takes."""
    pairs = 4 * 48 * 49 // 2  # rows of 48 tokens, each a causal document
    attention = 3 * 4 * 2 * 4 * 8 * pairs / 4
    formula = flops.train_step(examples.make("mot"), {"text": 4 * 24, "image": 4 * 24}, 0) / 4
    compute = (figures["matmul_flops"] + attention * 7 / 6) / 459e12
    assert figures["overlapped"] == pytest.approx(max(compute, figures["bytes"] / 2765e9, figures["interconnect"]))
    assert figures["mfu"] == pytest.approx((formula + attention) / 459e12 / figures["step"])
    other = TEXT.replace("splash_mha_fwd", "other_mha_fwd")
    slice = chips.Topology("v5p:2x2x1", chips.CHIPS["v5p"], 4, (), {})
    assert compared.figures(other, MEMORY, 0, examples.make("mot"), slice)["attention_calls"] == 0


def test_the_table_has_both_and_their_ratio(figures):
    ours = figures | {"temporaries": 10e9, "gathered": {"bf16 all-gather": 3e9}}
    lines = compared.table(ours, figures | {"temporaries": 40e9, "endless": 2}).splitlines()
    row = {line.split(" | ")[0].removeprefix("| "): line for line in lines}
    assert row["temporaries, GB"].endswith("| 10.0 | 40.0 | 0.25 |")
    assert row["loops of unknown length"].endswith("| 0 | 2 | 0.00 |")
    assert row["collectives"].endswith("| 3 waited for | 3 waited for | 1.00 |")
    assert row["gathered, GB sent"].endswith("| 3.0 bf16 all-gather | 0.0 bf16 all-gather |  |")
    assert "sent otherwise, GB" not in row  # neither has it
    assert all(line.count("|") == 5 for line in lines)


def test_a_cell_names_the_parts_that_count():
    row = compared.Row("reduced, GB sent", "reduced", 1e9, 1)
    assert compared.cell({"f32 all-reduce": 1e6, "bf16 all-gather": 1e9, "f32 all-gather": 2e9}, row) == (
        "2.0 f32 all-gather + 1.0 bf16 all-gather"
    )


# --- the command -----------------------------------------------------------------------------------------------------


def test_maxtext_gets_the_work_of_our_configuration():
    work = maxtext.Work("mixtral", "v5p:4x4x4", 2, quick=True)
    given = maxtext.settings(work, resolve(load.read(work.config, work.overrides), optim.uncovered))
    wanted = dict(base_emb_dim=4096, base_num_decoder_layers=2, base_num_query_heads=32, head_dim=128, num_experts=4)
    wanted |= dict(base_mlp_dim=11008, base_moe_mlp_dim=11008, vocab_size=65536, max_target_length=4096)
    wanted |= dict(ici_data_parallelism=4, ici_fsdp_parallelism=16, decoder_block="mixtral", num_experts_per_tok=1)
    assert given.items() >= wanted.items()
    assert given["per_device_batch_size"] * 64 == 768


@pytest.fixture
def compiler(monkeypatch):
    """In place of the processes that compile: it lists whose step was asked for."""
    asked = []

    def compiled(wanted, files):
        asked.append(wanted["trainer"])
        files.parent.mkdir(parents=True, exist_ok=True)
        files.with_name(f"{files.name}.hlo.gz").write_bytes(gzip.compress(TEXT.encode()))
        told = {"wanted": wanted, "memory": MEMORY, "cpu_seconds": 1.0}
        files.with_name(f"{files.name}.json").write_text(json.dumps(told), encoding="utf-8")
        return maxtext.kept(files)

    monkeypatch.setattr(maxtext, "compiled", compiled)
    monkeypatch.setattr(maxtext.metadata, "version", lambda name: "1")
    return asked


def ran(tmp_path, *more):
    argv = ["--model=dense", "--layers=2", f"--keep={tmp_path / 'kept'}", f"--out={tmp_path / 'out'}", *more]
    assert maxtext.main(argv) == 0
    return (tmp_path / "out/maxtext.md").read_text(encoding="utf-8")


def test_maxtexts_step_is_compiled_once_and_ours_always(tmp_path, compiler, monkeypatch, capsys):
    ran(tmp_path, "--slice=v5p:4x4x4")
    ran(tmp_path, "--slice=v5p:4x4x4")
    assert compiler == ["MaxText", "mot", "mot"]
    monkeypatch.setattr(maxtext.metadata, "version", lambda name: "2")
    ran(tmp_path, "--slice=v5p:4x4x4")
    assert compiler[3:] == ["MaxText", "mot"]


def test_the_page_keeps_other_work(tmp_path, compiler, capsys):
    ran(tmp_path, "--slice=v5p:4x4x4")
    page = ran(tmp_path, "--slice=v6e:16x16", "--quick")
    assert "## dense, v5p:4x4x4, 2 layers\n\nMesh: data 4 x fsdp 16; full effort" in page
    assert "## dense, v6e:16x16, 2 layers\n\nMesh: fsdp 256; the compiler's least effort" in page
    assert page.count("| instructions |") == 2
    assert ran(tmp_path, "--slice=v6e:16x16", "--quick") == page


def test_changes_of_either_reach_it_and_the_page(tmp_path, compiler, capsys):
    ran(tmp_path, "--slice=v5p:4x4x4")
    page = ran(tmp_path, "--slice=v5p:4x4x4", "--ours=optim.moments=bfloat16", "--theirs=use_iota_embed=False")
    assert compiler == ["MaxText", "mot", "MaxText", "mot"]
    wanted = {
        name: maxtext.kept(tmp_path / "kept/dense-v5p-4x4x4-2" / name)[1]["wanted"] for name in ("mot", "maxtext")
    }
    assert wanted["mot"]["arguments"]["overrides"]["optim.moments"] == "bfloat16"
    assert "use_iota_embed=False" in wanted["maxtext"]["arguments"]["settings"]
    assert "full effort; mot with optim.moments=bfloat16; MaxText with use_iota_embed=False; mot 1" in page
    assert page.count("## dense, v5p:4x4x4, 2 layers") == 2


def test_a_change_without_a_value_is_refused(tmp_path, compiler, capsys):
    argv = ["--model=dense", "--slice=v5p:4x4x4", f"--keep={tmp_path}", f"--out={tmp_path}", "--ours=optim.moments"]
    assert guarded(maxtext.main, argv) == 2
    assert "'optim.moments' changes nothing: write KEY=VALUE" in capsys.readouterr().err
    assert compiler == []


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        (["--layers=0"], "model.layers: 0"),
        (["--ours=optim.no_such=1"], "optim.no_such: unknown key"),
        (["--theirs==3"], "'=3' changes nothing"),
    ],
)
def test_what_is_wrong_is_refused_before_anything_is_compiled(changed, said, tmp_path, compiler, capsys):
    argv = ["--model=dense", f"--keep={tmp_path / 'kept'}", f"--out={tmp_path / 'out'}", *changed]
    assert guarded(maxtext.main, argv) == 2
    assert said in capsys.readouterr().err
    assert compiler == []
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize("content", ["", "[]", '{"rows": [{}]}', '{"rows": 3}'])
def test_a_file_that_cannot_be_read_is_refused_before_anything_is_compiled(content, tmp_path, compiler, capsys):
    file = tmp_path / "maxtext.json"
    file.write_text(content, encoding="utf-8")
    argv = ["--model=dense", "--slice=v5p:4x4x4", f"--keep={tmp_path / 'kept'}", f"--out={tmp_path}"]
    assert guarded(maxtext.main, argv) == 2
    assert f"{file} is no table of this command's" in capsys.readouterr().err
    assert compiler == []
    assert file.read_text(encoding="utf-8") == content


def test_an_out_that_is_no_folder_is_refused_before_anything_is_compiled(tmp_path, compiler, capsys):
    (tmp_path / "file").touch()
    argv = ["--model=dense", f"--keep={tmp_path / 'kept'}", f"--out={tmp_path / 'file'}"]
    assert guarded(maxtext.main, argv) == 2
    assert "it is in the way" in capsys.readouterr().err
    assert compiler == []


def test_a_slice_that_is_given_twice_is_compiled_once(tmp_path, compiler, capsys):
    ran(tmp_path, "--slice=v5p:4x4x4", "--slice=v5p:4x4x4")
    assert compiler == ["MaxText", "mot"]


def test_without_maxtext_the_remedy_is_told(tmp_path, capsys):
    argv = ["--model=dense", "--slice=v5p:4x4x4", f"--keep={tmp_path / 'kept'}", f"--out={tmp_path / 'out'}"]
    assert guarded(maxtext.main, argv) == 2
    assert "make bench-maxtext" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_step_that_does_not_compile_says_where_its_words_are(tmp_path, monkeypatch):
    monkeypatch.setattr(maxtext, "STEPS", "bench.no_such_module")
    with pytest.raises(UserError, match=r"mot of some did not compile: .*no_such_module.*\.log"):
        maxtext.compiled({"trainer": "mot"}, tmp_path / "some/mot")
    assert "no_such_module" in (tmp_path / "some/mot.log").read_text(encoding="utf-8")


def test_a_step_is_handed_over_by_files(tmp_path, monkeypatch):
    sizes = SimpleNamespace(**{f"{name}_size_in_bytes": n for name, n in MEMORY.items()})
    monkeypatch.setattr(steps, "ours", lambda slice, config, overrides: (f"{slice} {config}", sizes, 2.5))
    wanted = {"trainer": "mot", "arguments": {"config": "some.py", "overrides": {}}, "slice": "v5p:4x4x4"}
    assert steps.main([json.dumps(wanted | {"quick": False}), str(tmp_path / "mot"), str(os.getppid())]) == 0
    text, told = maxtext.kept(tmp_path / "mot")
    assert text == "v5p:4x4x4 some.py"
    assert told == {"wanted": wanted | {"quick": False}, "memory": MEMORY, "cpu_seconds": 2.5}


def test_both_take_the_same_sides_for_rings(monkeypatch):
    def knows(wrap):
        known = {"v5p-128": SimpleNamespace(topology_name="v5:4x4x4", wrap=wrap)}
        table = SimpleNamespace(UserFacingNameToSystemCharacteristics=known)
        monkeypatch.setitem(sys.modules, "maxtext", SimpleNamespace())
        monkeypatch.setitem(sys.modules, "maxtext.utils", SimpleNamespace(accelerator_to_spec_map=table))

    knows((True, True, True))
    assert steps._name("v5p:4x4x4") == "v5p-128"
    with pytest.raises(UserError, match="MaxText has no such slice"):
        steps._name("v6e:16x16")
    knows((True, True, False))
    with pytest.raises(UserError, match="for different links cannot be compared"):
        steps._name("v5p:4x4x4")

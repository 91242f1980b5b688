"""The reader of compiled programs, against what is counted by hand."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from mot.plan import hlo


def text(f, *shapes, **options):
    arguments = [s if isinstance(s, jax.ShapeDtypeStruct) else jax.ShapeDtypeStruct(s, jnp.float32) for s in shapes]
    return jax.jit(f, **options).lower(*arguments).compile().as_text()


def test_a_dot_is_counted():
    program = hlo.read(text(lambda a, b: a @ b, (8, 16), (16, 32)))
    assert program.flops == 2 * 8 * 16 * 32
    (found,) = program.matmuls
    assert (found.dtype, found.passes, found.shape) == ("f32", 1, "f32[8,32]")
    assert found.at.within("test_hlo.py")
    assert not found.at.within("hlo.py")


def test_a_batched_dot_is_counted():
    assert (
        hlo.read(text(lambda a, b: jnp.einsum("bij,bjk->bik", a, b), (3, 8, 16), (3, 16, 4))).flops
        == 2 * 3 * 8 * 16 * 4
    )


@pytest.mark.parametrize("n", [1, 5])
def test_a_scanned_layer_counts_as_often_as_it_runs(n):
    def f(x, w):
        return lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, w)[0]

    assert hlo.read(text(f, (8, 16), (n, 16, 16))).flops == n * 2 * 8 * 16 * 16


def test_nested_scans_multiply():
    def f(x, w):
        def inner(x, _):
            return (jnp.tanh(x @ w), None)

        def outer(x, _):
            return (lax.scan(inner, x, None, length=3)[0] @ w, None)

        return lax.scan(outer, x, None, length=5)[0]

    assert hlo.read(text(f, (8, 16), (16, 16))).flops == 5 * (3 + 1) * 2 * 8 * 16 * 16


def test_the_costlier_branch_counts():
    def f(p, x, w):
        return lax.cond(p[0] > 0, lambda: (x @ w) @ w, lambda: x @ w)

    assert hlo.read(text(f, (1,), (8, 16), (16, 16))).flops == 2 * 2 * 8 * 16 * 16


def test_a_loop_of_unknown_length_counts_once_and_is_told():
    def f(n, x, w):
        return lax.while_loop(lambda c: c[0] < n[0], lambda c: (c[0] + 1, jnp.tanh(c[1] @ w)), (0.0, x))[1] @ w

    program = hlo.read(text(f, (1,), (8, 16), (16, 16)))
    assert [m.at.endless for m in program.matmuls].count(True) == 1
    assert program.flops == 2 * 8 * 16 * 16  # that of the loop is not known
    assert len(program.endless) == 1


@pytest.mark.parametrize(
    ("kind", "f", "out", "share"),
    [
        ("all-reduce", lambda x: lax.psum(x, "x"), P(), 2 * 3 / 4),
        ("all-gather", lambda x: lax.all_gather(x, "x", tiled=True), P(), 3),
        ("reduce-scatter", lambda x: lax.psum_scatter(x, "x", tiled=True), P("x"), 3 / 4),
        ("collective-permute", lambda x: lax.ppermute(x, "x", [(i, (i + 1) % 4) for i in range(4)]), P("x"), 1),
        ("all-to-all", lambda x: lax.all_to_all(x, "x", 0, 0, tiled=True), P("x"), 3 / 4),
    ],
)
def test_collectives_are_counted_in_bytes(kind, f, out, share):
    mesh = Mesh(np.array(jax.devices()[:4]), ("x",))
    run = jax.shard_map(f, mesh=mesh, in_specs=P("x"), out_specs=out, check_vma=False)
    place = jax.ShapeDtypeStruct((64, 8), jnp.float32, sharding=NamedSharding(mesh, P("x")))
    program = hlo.read(jax.jit(lambda x: run(x * 2)).lower(place).compile().as_text())
    (found,) = program.collectives
    given = 16 * 8 * 4
    assert (found.kind, found.bytes, found.at.times) == (kind, given, 1)
    assert found.wire == given * share


def test_a_collective_in_a_scan_counts_as_often_as_it_runs():
    mesh = Mesh(np.array(jax.devices()[:4]), ("x",))

    def f(x):
        return lax.scan(lambda x, _: (lax.psum(jnp.tanh(x), "x"), None), x, None, length=7)[0]

    run = jax.shard_map(f, mesh=mesh, in_specs=P(), out_specs=P(), check_vma=False)
    place = jax.ShapeDtypeStruct((64,), jnp.float32, sharding=NamedSharding(mesh, P()))
    (found,) = hlo.read(jax.jit(run).lower(place).compile().as_text()).collectives
    assert (found.at.times, found.bytes, found.group) == (7, 256, 4)


def test_a_tpus_text():
    """A convolution in a fusion, fast memory, an asynchronous collective among named axes, a loop without a note."""
    program = hlo.read((Path(__file__).parent / "tpu.hlo").read_text(encoding="utf-8"))
    (matmul,), (collective,), (kernel,) = program.matmuls, program.collectives, program.kernels
    assert (matmul.flops, matmul.at.times, matmul.dtype, matmul.passes) == (2 * 64 * 128 * 256, 4, "bf16", 6)
    assert matmul.at.source == "ops.py:7 linear.one"
    assert (collective.kind, collective.group, collective.at.times) == ("all-gather", 8, 4)
    assert collective.wire == 4 * 7 * 8 * 128 * 2
    assert (kernel.name, kernel.flops, kernel.at.times, kernel.operands) == (
        "gmm_of_some",
        1000,
        4,
        ("f32[64,256]",),
    )
    # What is gathered; one of four matrices, a counter and the product; the kernel reads that and writes its like.
    assert program.bytes == 4 * ((8 + 64) * 128 * 2 + (128 * 256 * 2 + 4 + 64 * 256 * 4) + 2 * 64 * 256 * 4)


# As XLA writes a GPU's matmul: a call of cuBLAS, whose second result is room to work in, and one that Triton fuses.
GPU = """HloModule m, is_scheduled=true

%gemm_fusion (p.0: bf16[64,32], p.1: bf16[32,16]) -> bf16[64,16] {
  %p.0 = bf16[64,32]{1,0} parameter(0)
  %p.1 = bf16[32,16]{1,0} parameter(1)
  ROOT %dot.1 = bf16[64,16]{1,0} dot(%p.0, %p.1), lhs_contracting_dims={1}, rhs_contracting_dims={0}
}

ENTRY %main (a: bf16[64,128], b: bf16[32,128], c: bf16[32,16]) -> bf16[64,16] {
  %a = bf16[64,128]{1,0} parameter(0)
  %b = bf16[32,128]{1,0} parameter(1)
  %c = bf16[32,16]{1,0} parameter(2)
  %cublas-gemm.1 = (bf16[64,32]{1,0}, s8[33554432]{0}) custom-call(%a, %b), custom_call_target="__cublas$gemm", backend_config={"operation_queue_id":"0","gemm_backend_config":{"alpha_real":1,"beta":0,"dot_dimension_numbers":{"lhs_contracting_dimensions":["1"],"rhs_contracting_dimensions":["1"],"lhs_batch_dimensions":[],"rhs_batch_dimensions":[]},"epilogue":"DEFAULT"}}
  %get-tuple-element.1 = bf16[64,32]{1,0} get-tuple-element(%cublas-gemm.1), index=0
  ROOT %fusion.1 = bf16[64,16]{1,0} fusion(%get-tuple-element.1, %c), kind=kCustom, calls=%gemm_fusion, backend_config={"fusion_backend_config":{"kind":"__triton_gemm"}}
}
"""  # noqa: E501


def test_a_gpus_matmuls_are_counted():
    program = hlo.read(GPU)
    assert [(m.flops, m.dtype) for m in program.matmuls] == [(2 * 64 * 128 * 32, "bf16"), (2 * 64 * 32 * 16, "bf16")]
    assert not program.kernels
    of_first = 2 * (64 * 128 + 32 * 128 + 64 * 32)
    assert program.bytes == of_first + 2 * (64 * 32 + 32 * 16 + 64 * 16)


# A gather that runs beside two matmuls stands in four fusions: it starts, goes on twice, and ends.
BESIDE = """HloModule m, is_scheduled=true

%start (a.0: bf16[8,128]) -> (bf16[8,128], bf16[32,128], u32[]) {
  %a.0 = bf16[8,128]{1,0} parameter(0)
  %g.0 = bf16[32,128]{1,0} all-gather(%a.0), channel_id=7, replica_groups=[2,4]<=[8], dimensions={0}
  ROOT %c.0 = (bf16[8,128]{1,0}, bf16[32,128]{1,0}, u32[]{:S(2)}) custom-call(%g.0), custom_call_target="AsyncCollectiveStart"
}

%beside (a.1: bf16[8,128], b.1: bf16[32,128], x.1: bf16[64,64], y.1: bf16[64,64]) -> (bf16[64,64], bf16[32,128]) {
  %a.1 = bf16[8,128]{1,0} parameter(0)
  %b.1 = bf16[32,128]{1,0} parameter(1)
  %x.1 = bf16[64,64]{1,0} parameter(2)
  %y.1 = bf16[64,64]{1,0} parameter(3)
  %dot.1 = bf16[64,64]{1,0} dot(%x.1, %y.1), lhs_contracting_dims={1}, rhs_contracting_dims={0}
  %g.1 = bf16[32,128]{1,0} all-gather(%a.1), channel_id=7, replica_groups=[2,4]<=[8], dimensions={0}
  ROOT %t.1 = (bf16[64,64]{1,0}, bf16[8,128]{1,0}, bf16[32,128]{1,0}) tuple(%dot.1, %a.1, %g.1)
}

%end (a.2: bf16[8,128], b.2: bf16[32,128]) -> bf16[32,128] {
  %a.2 = bf16[8,128]{1,0} parameter(0)
  %b.2 = bf16[32,128]{1,0} parameter(1)
  %g.2 = bf16[32,128]{1,0} all-gather(%a.2), channel_id=7, replica_groups=[2,4]<=[8], dimensions={0}
  ROOT %c.2 = bf16[32,128]{1,0} custom-call(%a.2, %b.2, %g.2), custom_call_target="AsyncCollectiveDone"
}

ENTRY %main (p.0: bf16[8,128], p.1: bf16[64,64]) -> bf16[32,128] {
  %p.0 = bf16[8,128]{1,0} parameter(0)
  %p.1 = bf16[64,64]{1,0} parameter(1)
  %s = (bf16[8,128]{1,0}, bf16[32,128]{1,0}, u32[]{:S(2)}) fusion(%p.0), kind=kCustom, calls=%start
  %s.0 = bf16[8,128]{1,0} get-tuple-element(%s), index=0
  %s.1 = bf16[32,128]{1,0} get-tuple-element(%s), index=1
  %m = (bf16[64,64]{1,0}, bf16[8,128]{1,0}, bf16[32,128]{1,0}) fusion(%s.0, %s.1, %p.1, %p.1), kind=kOutput, calls=%beside
  %m.0 = bf16[64,64]{1,0} get-tuple-element(%m), index=0
  %n = (bf16[64,64]{1,0}, bf16[8,128]{1,0}, bf16[32,128]{1,0}) fusion(%s.0, %s.1, %m.0, %p.1), kind=kOutput, calls=%beside
  %n.1 = bf16[8,128]{1,0} get-tuple-element(%n), index=1
  %n.2 = bf16[32,128]{1,0} get-tuple-element(%n), index=2
  ROOT %e = bf16[32,128]{1,0} fusion(%n.1, %n.2), kind=kCustom, calls=%end
}
"""  # noqa: E501


def test_a_gather_beside_matmuls_counts_once():
    program = hlo.read(BESIDE)
    (found,) = program.collectives
    assert (found.kind, found.group, found.wire, found.awaited) == ("all-gather", 4, 3 * 8 * 128 * 2, "7")
    assert [operation.waits for operation in program.operations] == [(), (), (), ("7",)]
    assert program.flops == 2 * 2 * 64**3
    gathered, multiplied = (8 + 32) * 128 * 2, 3 * 64 * 64 * 2
    assert program.bytes == gathered + 2 * multiplied


@pytest.mark.parametrize(
    ("kind", "share"), [("ALL_REDUCE", 2 * 2 / 3), ("REDUCE_SCATTER", 2 / 3), ("ALL_GATHER", 2), ("ALL_TO_ALL", 2 / 3)]
)
def test_what_goes_between_slices_is_counted(kind, share):
    """Each device gives its host 64 KiB, and the hosts of three slices exchange them."""
    sent = f'_xla_megascale_target="{{1,2,3}}x{{0:7}}",_xla_megascale_transfer_type="{kind}"'
    buffer = "bf16[64,512]{1,0}"
    program = hlo.read(f"""HloModule m

ENTRY %main (p: bf16[64,512]) -> bf16[64,512] {{
  %p = {buffer} parameter(0)
  %a = token[] after-all()
  %s = ({buffer}, u32[], token[]) send(%p, %a), channel_id=2, is_host_transfer=true, frontend_attributes={{{sent}}}
  %r = ({buffer}, u32[], token[]) recv(%a), channel_id=1, is_host_transfer=true, frontend_attributes={{{sent}}}
  %d = token[] send-done(%s), channel_id=2, is_host_transfer=true
  %e = ({buffer}, token[]) recv-done(%r), channel_id=1, is_host_transfer=true
  ROOT %o = {buffer} get-tuple-element(%e), index=0
}}
""")
    (found,) = program.collectives
    given = 64 * 512 * 2
    assert (found.kind, found.group, found.between) == (kind.lower().replace("_", "-"), 3, True)
    assert found.wire == pytest.approx(share * given)
    assert program.bytes == 2 * given + 4  # read, written, and a number


def test_a_buffer_that_is_allocated_and_then_updated_is_listed_once():
    program = hlo.read("""HloModule m

ENTRY %main (x: f32[1,1024]) -> f32[1024,1024] {
  %x = f32[1,1024]{1,0} parameter(0)
  %i = s32[] constant(0)
  %b = f32[1024,1024]{1,0} custom-call(), custom_call_target="AllocateBuffer"
  ROOT %u = f32[1024,1024]{1,0} dynamic-update-slice(%b, %x, %i, %i), metadata={op_name="jit(f)/update"}
}
""")
    assert [(held, shape, at.op_name) for held, shape, at in program.sizes] == [
        (4 * 2**20, "f32[1024,1024]", "jit(f)/update")
    ]


@pytest.mark.parametrize(
    ("groups", "n"),
    [
        ("replica_groups={{0,1},{2,3}}", 2),
        ("replica_groups=[2,4]<=[8]", 4),
        ("replica_groups=[4,2]<=[2,4]T(1,0)", 2),
        ("replica_groups=mesh['a'=2,'b'=4] {'a','b'}", 8),
        ("replica_groups=mesh['a'=8] {'a':(2)4}", 4),
        ("source_target_pairs={{0,1},{1,0}}", 2),
        ("replica_groups={}", 1),
    ],
)
def test_groups_in_every_form(groups, n):
    assert hlo.devices(f"x), {groups}, dimensions={{0}}") == n


@pytest.mark.parametrize(
    ("window", "shapes", "labels", "flops"),
    [
        # A batched dot as TPU writes it: of six by six products the diagonal's are real.
        (
            "window={size=6 stride=5 lhs_dilate=6}, ",
            ((6, 8, 16), (6, 4, 16), (6, 8, 4)),
            "0bf_0oi->0bf",
            2 * 6 * 8 * 16 * 4,
        ),
        ("window={size=3 pad=1_1}, ", ((10, 8, 16), (3, 16, 4), (10, 8, 4)), "0bf_0io->0bf", 2 * 28 * 8 * 16 * 4),
    ],
)
def test_convolutions_count_what_is_no_padding(window, shapes, labels, flops):
    lines = [
        f"  %{name} = f32[{','.join(map(str, s))}]{{2,1,0}} parameter({i})"
        for i, (name, s) in enumerate(zip("ab", shapes, strict=False))
    ]
    out = ",".join(map(str, shapes[2]))
    lines.append(f"  ROOT %c = f32[{out}]{{2,1,0}} convolution(%a, %b), {window}dim_labels={labels}")
    module = "HloModule m\n\nENTRY %main (a: f32[], b: f32[]) -> f32[] {\n" + "\n".join(lines) + "\n}\n"
    assert hlo.read(module).flops == flops

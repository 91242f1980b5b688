"""`make bench`: speed and memory as ratios, each figure paired in turn with its reference in this one process.

Shared machines are noisy: ratios of steps are of the least seconds of rounds in turn, others of medians, and the matmul
peak is measured again beside each row.
"""

import dataclasses
import statistics
import tempfile
import time

import jax
import jax.numpy as jnp
import numpy as np
import torch
from jax.sharding import NamedSharding, PartitionSpec
from rich.console import Console
from rich.table import Table

from bench import data, demo, growth, memory, probes, processes, published, sampling, saves, search
from bench.timing import in_turn, mesh_of, ratio, stepper
from configs import archs, base, digits
from launch import cores, process
from mot import batches, optim, sharding
from mot.batches import Info
from mot.config import Experts, resolve
from mot.data import budgets, embedded, pipeline, roles, sources
from mot.data.packing import document, pack
from mot.model import attention, flops, params, transformer
from mot.objectives import losses, next_token
from mot.plan import hlo
from mot.runs import peak, rundir
from mot.train import ensemble, loop
from mot.train.state import init_state
from mot.train.step import make_step

STREAMS = ("text", "image")
B = 4
T = 1024
D = 512
LAYERS = 8
HEADS = 8
F = 1408
V = 4096


def configuration(arch, layers=LAYERS, dtype="float32", how="chunked", latent=0, scan=False):
    c = base.get_config()
    half = dict(budget=T // 2, max_tokens=T // 2)
    vectors = dict(latent=latent, objective="flow")
    kinds = dict(ids=V // 2), vectors if latent else dict(first_id=V // 2, ids=V // 2)
    c.streams = {name: base.stream(name, D, F, **half, **kind) for name, kind in zip(STREAMS, kinds, strict=True)}
    c.model.update(layers=layers, heads=HEADS, kv_heads=HEADS, head_size=D // HEADS, dtype=dtype, attention=how)
    c.model.scan = scan
    archs.choose(c, arch)
    c.data.update(batch=B, sources=dict(random="embedded"), shares=dict(random=1))
    return resolve(c, optim.uncovered)


def batch(documents, latent=0):
    """Rows of randomly interleaved spans of 16 to 128 tokens, no padding, cut into some documents.

    Of `latent` features, images are noised vectors.
    """
    rng = np.random.default_rng(0)
    rows = []
    for _ in range(B):
        room = [T // 2, T // 2]
        runs = []
        m = 0
        while sum(room):
            n = min(int(rng.integers(16, 129)), room[m])
            room[m], m, runs = room[m] - n, 1 - m, [*runs, np.full(n, m)]
        stream = np.concatenate(runs)
        cuts = np.sort(rng.choice(np.arange(1, T), documents - 1, replace=False))
        ids = rng.integers(0, V // 2, T) + V // 2 * stream
        unit = np.cumsum(np.diff(stream, prepend=0) != 0) * stream
        parts = zip(*(np.split(x, cuts) for x in (ids, stream, unit)), strict=True)
        documents_of_row = [document(0, i, token, stream, unit=unit) for i, (token, stream, unit) in enumerate(parts)]
        rows.append([_vectors(d, latent, rng) if latent else d for d in documents_of_row])
    return pack(rows, STREAMS, (T // 2, T // 2), (0, latent))


def _vectors(d, latent, rng):
    values = rng.standard_normal(((d.stream == 1).sum(), latent), dtype=np.float32)
    streams = configuration("dense", latent=latent).streams.values()
    return roles.assign(d._replace(token=d.token * (d.stream == 0), values={1: values}), [*streams], "units", 0)


class TorchModel(torch.nn.Module):
    """The same dense model, eager."""

    def __init__(self):
        super().__init__()

        def linear(a, b):
            return torch.nn.Linear(a, b, bias=False)

        def norm(n):
            return torch.nn.RMSNorm(n, eps=1e-5)

        shapes = {"q": (D, D), "k": (D, D), "v": (D, D), "o": (D, D), "1": (D, F), "3": (D, F), "2": (F, D)}
        norms = {"attn": D, "ffn": D, "qn": D // HEADS, "kn": D // HEADS}

        def block():
            return torch.nn.ModuleDict(
                {k: linear(*s) for k, s in shapes.items()} | {k: norm(n) for k, n in norms.items()}
            )

        self.embed, self.norm, self.head = torch.nn.Embedding(V, D), norm(D), linear(D, V)
        self.blocks = torch.nn.ModuleList(block() for _ in range(LAYERS))

    def forward(self, ids, cos, sin):
        half = D // HEADS // 2

        def turn(x):
            return x * cos + torch.cat([-x[..., half:], x[..., :half]], -1) * sin

        def heads(x):
            return x.view(B, T, HEADS, -1).transpose(1, 2)

        x = self.embed(ids)
        for b in self.blocks:
            h = b["attn"](x)
            q = b["qn"](heads(b["q"](h)))
            k = b["kn"](heads(b["k"](h)))
            v = heads(b["v"](h))
            o = torch.nn.functional.scaled_dot_product_attention(turn(q), turn(k), v, is_causal=True)
            x = x + b["o"](o.transpose(1, 2).reshape(B, T, D))
            h = b["ffn"](x)
            x = x + b["2"](torch.nn.functional.silu(b["1"](h)) * b["3"](h))
        return self.head(self.norm(x))


def torch_stepper(half):
    net = TorchModel()
    optimiser = torch.optim.AdamW(net.parameters(), 1e-4, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
    ids = torch.randint(0, V, (B, T))
    n = D // HEADS // 2
    angle = (torch.arange(T)[:, None] * 10000 ** (-torch.arange(n) / n)[None]).repeat(1, 2)

    def once():
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            logits = net(ids, angle.cos(), angle.sin())
        torch.nn.functional.cross_entropy(logits.float().view(-1, V), ids.view(-1)).backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimiser.step()
        optimiser.zero_grad()

    return once


def attention_case(how, length, heads=12, mesh=None):
    """The whole of attention, forward and backward, on rows of one document in document order, split over a mesh."""
    rows = B if length == 1024 else 1
    x = [jax.random.normal(jax.random.key(i), (rows, length, heads, 64)) for i in range(3)]
    position = jnp.broadcast_to(jnp.arange(length), (rows, length))
    info = Info(position, jnp.ones_like(position), jnp.zeros_like(position), position < 0)

    def f(q, k, v, info):
        if how == "jax":
            return jax.nn.dot_product_attention(q, k, v, mask=batches.visible(info, info)[:, None])
        return attention.attend(q, k, v, info, info, how)

    whole = f
    by_rows = PartitionSpec("data")
    if mesh:
        whole = jax.shard_map(f, mesh=mesh, in_specs=by_rows, out_specs=by_rows, check_vma=False)
        x = jax.device_put(x, NamedSharding(mesh, by_rows))
    compiled = jax.jit(jax.grad(lambda q, k, v: (whole(q, k, v, info) ** 2).sum(), (0, 1, 2))).lower(*x).compile()
    return (lambda: jax.block_until_ready(compiled(*x))), compiled.memory_analysis().temp_size_in_bytes / 2**20


def expert_layers(experts, active, width):
    """A step's program over two layers with experts of that width: MiB of temporaries, seconds to compile."""
    c = configuration("dense", layers=2)
    chosen = Experts(**base.moe(experts, active=active, width=width))
    return compiling(dataclasses.replace(c, ffn={STREAMS[0]: chosen}))


def compiling(c):
    """A step's program: MiB of temporaries, seconds to compile."""
    shapes = jax.eval_shape(lambda: init_state(c))
    host = batch(4)
    lowered = jax.jit(make_step(c, 1), donate_argnums=0).lower(shapes, host)
    start = time.perf_counter()
    with growth.without_cache():
        compiled = lowered.compile()
    return compiled.memory_analysis().temp_size_in_bytes / 2**20, time.perf_counter() - start


def counted_flops():
    """Formula over compiler, on an unrolled model that computes every pair and all logits at once."""
    c = configuration("mot", layers=2, how="reference")
    host = batch(4)

    def loss(weights):
        hidden = transformer.forward(weights, host, c).hidden
        return next_token.loss(hidden, transformer.head(weights, c), losses.totals(host, c), c, 1)[0]

    shapes = jax.eval_shape(lambda: params.init(params.table(c), 0))
    text = jax.jit(jax.grad(loss)).lower(shapes).compile().as_text()
    counted = flops.train_step(c, dict.fromkeys(STREAMS, B * T // 2), B * T * T)
    return counted / hlo.read(text).flops, params.count(params.table(c)) == sum(x.size for x in jax.tree.leaves(shapes))


def eight_runs(size):
    """A step of eight runs in one program, and of the same eight in turn: two functions that wait for it."""
    c = resolve(digits.get_config(f"arch=mot,size={size}"), embedded.faults)
    training, _ = sources.open_(c)
    c = budgets.resolve(c, training)
    host = pipeline.Batches(training, c, 0, 1)[0].batch
    runs = [dataclasses.replace(c, model=dataclasses.replace(c.model, seed=seed)) for seed in range(8)]
    mesh = ensemble.make_mesh(c, 8)
    each = ensemble.for_each(runs, mesh)
    place = NamedSharding(mesh, PartitionSpec("runs"))

    def take_one(c, state, batch):
        return make_step(c, len(training.names))(state, batch)

    with jax.set_mesh(mesh):
        state = jax.jit(each(lambda c, _: init_state(c)), out_shardings=place)(np.arange(8))
        step = jax.jit(each(take_one), donate_argnums=0, out_shardings=(place, None))
        batch = sharding.to_global(host, c, mesh)

    def together():
        nonlocal state
        with jax.set_mesh(mesh):
            state, measured = step(state, batch)
        jax.block_until_ready(measured)

    alone = stepper(c, host, len(training.names))
    return together, lambda: [alone() for _ in runs]


def waiting():
    """The fraction of a training run's time that the device may have waited for the host."""
    with tempfile.TemporaryDirectory() as folder:
        tree = digits.get_config("arch=mot,size=demo")
        tree.run.update(root=folder, steps=40, eval_every=40, save_every=40)
        rows = rundir.read_metrics(loop.run(resolve(tree, embedded.faults)))
    steps = [row for row in rows if row["kind"] == "train"]
    return sum(row["idle_seconds"] for row in steps) / sum(row["step_seconds"] for row in steps)


def main():
    cores.take(configuration("dense"))
    mesh = mesh_of(configuration("dense"))
    one_device = sharding.one_device()

    def matmul_peak(dtype="float32"):
        return peak.measure(mesh, dtype, (2048,), 1.0).flops / 1e9

    table = Table("figure", "measured", "bar", "float32 matmul peak beside it (GFLOP/s)", title="mot bench, CPU")
    table.caption = f"rows split over {mesh.size} devices, unless said"

    def add(figure, value, bar):
        print(f"{figure}: {value}" + (f" ({bar})" if bar else ""), flush=True)  # the table comes at the end
        table.add_row(figure, value, bar, f"{matmul_peak():.0f}")
        memory.give_back()

    several, one = batch(4), batch(1)
    dense, mot = (stepper(configuration(arch), several) for arch in ("dense", "mot"))
    seconds = in_turn(mot, dense)
    add("mot step / dense step", f"{ratio(seconds):.3f}", "at most 1.05")
    del mot, dense
    for arch in ("dense", "mot"):
        flow = stepper(configuration(arch, latent=48), batch(4, latent=48))
        ids = stepper(configuration(arch), several)
        add(f"{arch} step with flow images / with ids", f"{ratio(in_turn(flow, ids)):.3f}", "at most 1.05")
        del flow, ids

    for scan in (False, True):
        ends, middle, mot = (stepper(configuration(x, scan=scan), several) for x in ("mot_ends", "mot_middle", "mot"))
        seconds = in_turn(ends, middle, mot)
        how = "one scan a stretch of layers" if scan else "unrolled"
        told = f"{ratio(seconds, 0, 2):.3f}, {ratio(seconds, 1, 2):.3f}"
        add(f"mot_ends and mot_middle step / mot step, {how}", told, "at most 1.03")
        del ends, middle, mot
    for arch in ("mot", "mot_ends"):
        few, many = (compiling(configuration(arch, layers=n, scan=True))[1] for n in (6, 24))
        add(f"seconds to compile {arch} of 24 layers / of 6, scan", f"{many / few:.2f}", "about 1")

    dense, alone = (stepper(configuration("dense"), one, mesh=x) for x in (mesh, one_device))
    eager = torch_stepper(half=False)
    rates = []

    def and_peak():
        rates.append(matmul_peak())

    seconds = in_turn(dense, eager, alone, and_peak)
    work = flops.train_step(configuration("dense"), dict.fromkeys(STREAMS, B * T // 2), flops.visible_pairs(one)) / 1e9

    def mfu(i):
        return statistics.median(work / s / p for s, p in zip(seconds[:, i], rates[1:], strict=True))

    add("dense step, float32: model FLOPs of matmul peak", f"{mfu(0):.2f}", "at least 0.55, aim 0.70")
    add("dense step / PyTorch eager", f"{ratio(seconds):.2f}", "at most 1.5, aim 1.0")
    told = "{:.2f}, {:.2f}, {:.2f}".format(*np.median(seconds[:, :3], axis=0))
    add("  seconds: ours, PyTorch's, ours on one device", told, "")
    add("  on one device: of matmul peak, / PyTorch eager", f"{mfu(2):.2f}, {ratio(seconds, 2):.2f}", "reported")
    del dense, alone, eager

    half = stepper(configuration("dense", dtype="bfloat16"), one)
    eager = torch_stepper(half=True)
    seconds = in_turn(half, eager)
    add("dense step, bfloat16 / PyTorch autocast", f"{ratio(seconds):.2f}", "reported, aim 1.3")
    add("  seconds, ours and PyTorch's", "{:.2f}, {:.2f}".format(*np.median(seconds, axis=0)), "")
    del half, eager

    for arch, bar in (
        ("moe_ec4", "at most 1.20"),
        ("mot_moe", "at most 1.15"),
        ("moe_tc4", "at most 1.30"),
        ("moe_fine", "at most 2.3, aim 2.0"),
    ):
        routed, dense = (stepper(configuration(x), several) for x in (arch, "dense"))
        add(f"{arch} step / dense step", f"{ratio(in_turn(routed, dense)):.3f}", bar)
        del routed, dense
    # As many parameters and routed rows in 64 experts as in 4; then 16 times the rows.
    few, many, fine = expert_layers(4, 1, F), expert_layers(64, 1, F // 16), expert_layers(64, 16, F // 16)
    sizes = f"{few[0]:.0f}, {many[0]:.0f}, {fine[0]:.0f} MiB"
    add("temporaries of a step: 4 experts, 64, 64 with 16 active", sizes, "the first two alike")
    add("seconds to compile, 64 experts, 16 active / 4 and 1", f"{fine[1] / few[1]:.2f}", "below 1.3")

    cases = [attention_case(how, 1024, mesh=on) for on in (mesh, None) for how in ("chunked", "jax")]
    seconds = in_turn(*(run for run, _ in cases))
    add("jax.nn attention / chunked, T 1024, 12 heads", f"{ratio(seconds, 1, 0):.2f}", "at least 3")
    times = f"{ratio(seconds, 3, 2):.2f}, {ratio(seconds, 3, 0):.2f}"
    add("  both on one device, jax.nn alone on one", times, "reported")
    small, large = attention_case("chunked", 4096)[1], attention_case("reference", 4096)[1]
    add("chunked / reference attention memory, T 4096", f"{small / large:.3f} ({small:.0f} MiB)", "below 0.25")

    c = configuration("mot", layers=1)
    c = dataclasses.replace(c, model=dataclasses.replace(c.model, norm="post"))
    told = "{:.2f}, {:.2f}".format(*published.times(c, one, mesh))
    add("published MoT block / ours, forward and back: CPU-seconds, wall time", told, "at least 1.5, aim 2")
    for figure, (value, bar) in demo.figures().items():
        add(figure, value, bar)
    for figure, (value, bar) in sampling.figures(configuration("dense")).items():
        add(figure, value, bar)
    of_two = statistics.median(processes.steps_of_two("10M", rounds=3, steps=20))
    add("steps of two processes / of one with two devices, 10M", f"{of_two:.3f}", "at most 1.10")
    add("time the device may wait for the host", f"{100 * waiting():.2f} %", "below 3 %")
    for figure, (value, bar) in saves.figures().items():
        add(figure, value, bar)
    for name, rate in data.throughput().items():
        times = rate * 6 * data.RUNG / (matmul_peak() * 1e9)
        value = f"{rate / 1e3:.0f} thousand, {times:.0f} times what 163M parameters could use"
        add(f"packed tokens a second and core from records, {name}", value, "at least 300 thousand, 20 times")
    for size in ("smoke", "demo"):
        add(
            f"eight runs of {size} size in one program / in turn",
            f"{ratio(in_turn(*eight_runs(size))):.2f}",
            "reported",
        )
    for figure, (value, bar) in search.figures().items():
        add(figure, value, bar)
    for figure, (value, bar) in probes.figures().items():
        add(figure, value, bar)
    for figure, (value, bar) in growth.figures().items():
        add(figure, value, bar)
    share, equal = counted_flops()
    add("counted FLOPs / compiler's", f"{share:.4f}", "0.98 to 1.02")
    add("counted parameters equal the tree", "yes" if equal else "NO", "yes")
    Console(width=120).print(table)


if __name__ == "__main__":
    process.with_environment()  # as `mot` has it; PyTorch gets it, too
    main()

"""Experts of a `config.json`: how many, which layers have them, how they are chosen, and their tensors."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from mot.config import Config
from mot.interop.families.fields import LARGEST, is_number, is_size
from mot.interop.families.rows import Row


class Moe(NamedTuple):
    experts: tuple[str, ...]  # the names of the field that has their number, as it is written first
    width: str  # the field that has their hidden size
    coefficient: float  # of the balance loss, where the field is absent
    normalise: bool | None  # do the weights of a token add up to 1? None: `norm_topk_prob` says it
    every_layer: bool  # has every layer experts? Else `decoder_sparse_step` and `mlp_only_layers` say which
    shared: str  # the field that has the hidden size of the shared expert; "" = there is none
    only: Mapping[str, Sequence[Any]]  # further fields that have some values alone
    rows: tuple[Row, ...]


FFN = "blocks/{stack}/ffn/text"


def _rows(gate: str, expert: str, names: Sequence[str], shared: str = "") -> tuple[Row, ...]:
    """The tensors of a layer's experts; `names` are of gate, up and down, our w1, w3 and w2."""
    layer = "model.layers.{layer}"
    found = [Row(f"{layer}.{gate}.weight", f"{FFN}/router", "transpose")]
    for name, ours in zip(names, ("w1", "w3", "w2"), strict=True):
        found.append(Row(f"{layer}.{expert}.{{expert}}.{name}.weight", f"{FFN}/{ours}", "transpose"))
        if shared:
            found.append(Row(f"{layer}.{shared}.{name}.weight", f"{FFN}/shared_{ours}", "transpose"))
    if shared:
        found.append(Row(f"{layer}.{shared}_gate.weight", f"{FFN}/shared_gate", "transpose"))
    return tuple(found)


PROJECTIONS = ("gate_proj", "up_proj", "down_proj")
OF_MLP = _rows("mlp.gate", "mlp.experts", PROJECTIONS)
MIXTRAL = Moe(
    ("num_local_experts", "num_experts"),
    "intermediate_size",
    0.001,
    normalise=True,
    every_layer=True,
    shared="",
    only={"router_jitter_noise": (0,)},
    rows=_rows("block_sparse_moe.gate", "block_sparse_moe.experts", ("w1", "w3", "w2")),
)
QWEN3 = Moe(
    ("num_experts", "num_local_experts"),
    "moe_intermediate_size",
    0.001,
    normalise=None,
    every_layer=False,
    shared="",
    only={},
    rows=OF_MLP,
)
QWEN2 = QWEN3._replace(
    shared="shared_expert_intermediate_size",
    only={"qkv_bias": (True,)},
    rows=_rows("mlp.gate", "mlp.experts", PROJECTIONS, "mlp.shared_expert"),
)
OLMOE = QWEN3._replace(width="intermediate_size", coefficient=0.01, every_layer=True, only={"clip_qkv": ()})


def fields(of: Moe) -> set[str]:
    """Those that are said, and one that changes nothing of a text's logits."""
    found = {*of.experts, of.width, "num_experts_per_tok", "router_aux_loss_coef", "output_router_logits"}
    found |= {of.shared} if of.shared else set()
    found |= set() if of.every_layer else {"decoder_sparse_step", "mlp_only_layers"}
    return found | ({"norm_topk_prob"} if of.normalise is None else set())


def said(of: Moe, given: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """The values of our configuration by dotted key, and what cannot be said."""
    count = next((given[key] for key in of.experts if given.get(key) is not None), None)
    numbers = {of.experts[0]: count} | {key: given.get(key) for key in (of.width, "num_experts_per_tok")}
    numbers |= {of.shared: given.get(of.shared)} if of.shared else {}
    faults = [
        f"{key}: {value!r:.80}; must be a whole number from 1 to {LARGEST}"
        for key, value in numbers.items()
        if not is_size(value)
    ]
    coefficient = given.get("router_aux_loss_coef")
    coefficient = of.coefficient if coefficient is None else coefficient
    if coefficient != 0 and not is_number(coefficient):
        faults.append(f"router_aux_loss_coef: {coefficient!r:.80}; must be a number of 0 or more")
    dense, every = _layers(of, given)
    if not every:
        faults.append(
            f"decoder_sparse_step, mlp_only_layers: {given.get('decoder_sparse_step')!r}, "
            f"{given.get('mlp_only_layers')!r:.80}; layers with experts must come at equal distances, after the first "
            "ones without, and the last layer must be one"
        )
    if faults:
        return {}, faults
    normalise = bool(given.get("norm_topk_prob")) if of.normalise is None else of.normalise
    values = dict(experts=count, active=numbers["num_experts_per_tok"], width=numbers[of.width])
    values |= dict(router="token", score="softmax", normalise=normalise, capacity=0.0, z_loss=0.0)
    values |= dict(balance="pooled" if coefficient else "none", balance_rate=float(coefficient))
    values |= dict(shared=numbers[of.shared] if of.shared else 0, shared_gate=bool(of.shared))
    layers = {"model.dense_layers": dense, "model.sparse_every": every}
    return layers | {f"ffn.text.{key}": value for key, value in values.items()}, []


def _layers(of: Moe, given: Mapping[str, Any]) -> tuple[int, int]:
    """`model.dense_layers` and `sparse_every`; the second is 0 where they cannot say which layers have experts."""
    layers, step, without = (given.get(key) for key in ("num_hidden_layers", "decoder_sparse_step", "mlp_only_layers"))
    step, without = 1 if step is None else step, without or []
    if of.every_layer:
        return 0, 1
    if not is_size(layers) or not is_size(step) or not isinstance(without, list):
        return 0, 0
    has = [layer not in without and (layer + 1) % step == 0 for layer in range(layers)]
    if not any(has) or not has[-1]:
        return 0, 0
    sparse = [layer for layer, one in enumerate(has) if one]
    every = sparse[1] - sparse[0] if len(sparse) > 1 else 1
    dense = sparse[0] + 1 - every
    return (dense, every) if dense >= 0 and sparse == list(range(sparse[0], layers, every)) else (0, 0)


def faults(of: Moe, config: Config) -> Iterator[str]:
    e = config.ffn["text"]
    if not e.experts:
        yield "ffn.text.experts: 0; must be above 0"
        return
    wanted = dict(router="token", score="softmax", weight_scale=1.0, groups=1, capacity=0.0)
    wanted |= {} if of.normalise is None else dict(normalise=of.normalise)
    wanted |= {} if of.shared else dict(shared=0)
    for key, value in wanted.items():
        if getattr(e, key) != value:
            yield f"ffn.text.{key}: {getattr(e, key)!r}; must be {value!r}"
    if of.shared and not e.shared_gate:
        yield f"ffn.text.shared, shared_gate: {e.shared}, {e.shared_gate}; it must have a shared expert with a gate"
    if of.every_layer and not all(config.sparse):
        m = config.model
        yield f"model.dense_layers, sparse_every: {m.dense_layers}, {m.sparse_every}; every layer must have experts"


def about(of: Moe, config: Config) -> dict[str, Any]:
    e = config.ffn["text"]
    found = {of.experts[0]: e.experts, of.width: e.width or config.streams["text"].ffn, "num_experts_per_tok": e.active}
    found |= {"router_aux_loss_coef": e.balance_rate if e.balance == "pooled" else 0.0}
    found |= {of.shared: e.shared} if of.shared else {}
    found |= {"norm_topk_prob": e.normalise} if of.normalise is None else {}
    if not of.every_layer:
        without = [layer for layer, is_sparse in enumerate(config.sparse) if not is_sparse]
        found |= {"decoder_sparse_step": 1, "mlp_only_layers": without}
    return found

"""What a key may have been meant by a name that is none: other projects' names, and keys of other groups."""

import dataclasses
import typing
from collections.abc import Iterable
from functools import cache

from mot.config.allowed import meant, nearest
from mot.config.schema import Config

# What MaxText, levanter, nanoGPT, transformers and others call it.
SYNONYMS = {
    "learning_rate": ["optim.lr"],
    "max_lr": ["optim.lr"],
    "peak_lr": ["optim.lr"],
    "min_lr": ["optim.end_lr"],
    "warmup_steps": ["optim.warmup"],
    "num_warmup_steps": ["optim.warmup"],
    "warmup_iters": ["optim.warmup"],
    "lr_schedule": ["optim.schedule"],
    "lr_scheduler_type": ["optim.schedule"],
    "weight_decay": ["optim.rules"],
    "wd": ["optim.rules"],
    "grad_clip": ["optim.clip"],
    "clip_norm": ["optim.clip"],
    "max_grad_norm": ["optim.clip"],
    "gradient_clip": ["optim.clip"],
    "grad_accum": ["optim.accumulate"],
    "gradient_accumulation_steps": ["optim.accumulate"],
    "adam_b1": ["optim.beta1"],
    "adam_b2": ["optim.beta2"],
    "epsilon": ["optim.eps"],
    "num_steps": ["run.steps"],
    "max_steps": ["run.steps"],
    "train_steps": ["run.steps"],
    "num_train_steps": ["run.steps"],
    "total_steps": ["run.steps"],
    "max_iters": ["run.steps"],
    "eval_steps": ["run.eval_every"],
    "eval_interval": ["run.eval_every"],
    "save_steps": ["run.save_every"],
    "save_interval": ["run.save_every"],
    "checkpoint_every": ["run.save_every"],
    "checkpoint_period": ["run.save_every"],
    "output_dir": ["run.root"],
    "out_dir": ["run.root"],
    "workdir": ["run.root"],
    "run_name": ["run.name"],
    "batch_size": ["data.batch"],
    "global_batch_size": ["data.batch"],
    "train_batch_size": ["data.batch"],
    "seq_len": ["data.length"],
    "seq_length": ["data.length"],
    "sequence_length": ["data.length"],
    "max_seq_len": ["data.length"],
    "block_size": ["data.length"],
    "context_length": ["data.length"],
    "num_workers": ["data.workers"],
    "num_layers": ["model.layers"],
    "n_layers": ["model.layers"],
    "n_layer": ["model.layers"],
    "depth": ["model.layers"],
    "num_heads": ["model.heads"],
    "n_heads": ["model.heads"],
    "n_head": ["model.heads"],
    "num_kv_heads": ["model.kv_heads"],
    "n_kv_heads": ["model.kv_heads"],
    "head_dim": ["model.head_size"],
    "attn_impl": ["model.attention"],
    "random_seed": ["model.seed", "data.seed"],
    "remat_policy": ["model.remat"],
    "precision": ["model.dtype"],
    "d_model": ["streams.NAME.width"],
    "n_embd": ["streams.NAME.width"],
    "emb_dim": ["streams.NAME.width"],
    "hidden_size": ["streams.NAME.width"],
    "mlp_dim": ["streams.NAME.ffn"],
    "d_ff": ["streams.NAME.ffn"],
    "intermediate_size": ["streams.NAME.ffn"],
    "num_experts": ["ffn.TOWER.experts"],
    "top_k": ["ffn.TOWER.active"],
}


@cache
def _keys() -> tuple[tuple[str, str], ...]:
    """Group and name of every key that is in no stream and no tower."""
    groups = {name: kind for name, kind in typing.get_type_hints(Config).items() if dataclasses.is_dataclass(kind)}
    return tuple((group, field.name) for group, kind in groups.items() for field in dataclasses.fields(kind))


def keys_named(name: str) -> list[str]:
    """The dotted keys that this is a name of."""
    return SYNONYMS.get(name) or [f"{group}.{key}" for group, key in _keys() if key == name]


def remedy(name: str, allowed: Iterable[str]) -> str:
    """`did you mean 'optim.lr'?`, or "" where no key has this name and nothing that is allowed looks like it."""
    if keys := keys_named(name):
        return f"did you mean {' or '.join(map(repr, keys))}?"
    return meant(name, allowed)


def key_like(name: str) -> str:
    """The dotted key whose last part is this name, or looks like it; "" where none does."""
    if keys := keys_named(name):
        return keys[0]
    near = nearest(name, [key for _, key in _keys()])
    return keys_named(near)[0] if near else ""

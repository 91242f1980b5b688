"""How large activations are at several widths: a check of `optim.transfer`, in numbers and in a picture."""

import sys
from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict
from rich.console import Console
from rich.table import Table

from launch import arguments, flags
from launch.process import guarded
from mot import optim, sharding
from mot.batches import Batch
from mot.config import Config, load, resolve
from mot.console import phase
from mot.errors import UserError
from mot.files import write_atomically
from mot.measures import representation
from mot.train import evaluate, restore
from mot.train.memory import too_large
from mot.train.state import init_state
from mot.train.step import make_step
from scaling import pictures

TRANSFERS = {"": "no transfer", "mup": "mup"}


class Sizes(NamedTuple):
    """Activations of one model: the root mean square of each block's residual, and of how it moved since step 0."""

    value: np.ndarray  # [steps, layers, groups]
    moved: np.ndarray  # of the same


def at_width(tree: ConfigDict, width: int, transfer: str) -> ConfigDict:
    """The configuration with all widths in proportion, its first stream `width` wide; heads keep their size.

    With mup its own width is the base, unless it names another.
    """
    tree = tree.copy_and_resolve_references().unlock()
    base = next(iter(resolve(tree).streams.values())).width

    def scale(group: ConfigDict, *keys: str) -> None:
        for key in keys:
            group[key] = max(round(group[key] * width / base), 1 if group[key] else 0)

    for stream in tree.streams.values():
        scale(stream, "width", "ffn")
    for experts in (*tree.attn.values(), *tree.ffn.values()):
        scale(experts, "width", "shared")
    scale(tree.model, "heads", "kv_heads")
    tree.model.scan = False
    tree.optim.update(schedule="constant", warmup=0)  # the peak rate from the first step
    tree.optim.update(transfer=transfer, base_width=(tree.optim.base_width or base) if transfer else 0)
    if not transfer:
        tree.optim.update(base_head_size=0, base_layers=0)
    return tree


def built(tree: ConfigDict, width: int, transfer: str) -> Config:
    """`at_width`, judged; `UserError` where a width has no room on this machine."""
    config = resolve(at_width(tree, width, transfer), optim.uncovered)
    if fault := too_large(config, sharding.abstract(config, 1), sharding.memory(sharding.one_device())):
        raise UserError(f"--widths: {width} has no room here; leave it out: {fault}")
    return config


def first_batch(tree: ConfigDict) -> tuple[ConfigDict, Batch, int]:
    """The configuration with every budget, its first held-out batch, and the number of its sources."""
    config, _, held_out = restore.open_data(flags.judged(tree))
    tree = tree.copy_and_resolve_references().unlock()
    for name, stream in config.streams.items():
        tree.streams[name].budget = stream.budget
    mesh = sharding.make_mesh(config, jax.devices()[:1])
    with jax.set_mesh(mesh):
        batches, _ = evaluate.held_out(config, held_out, mesh)
    return tree, jax.device_get(batches[0]), len(held_out.names)


def measure(config: Config, batch: Batch, sources: int, steps: Sequence[int]) -> Sizes:
    """Trains on one batch, and measures it after each number of `steps`, which ascend from 0.

    `config` is of `at_width`, whose rate is the peak from the first step on.
    """
    mesh = sharding.make_mesh(config, jax.devices()[:1])
    found = []
    with jax.set_mesh(mesh):
        state = jax.jit(partial(init_state, config))()
        step = jax.jit(make_step(config, sources))
        look = jax.jit(partial(representation.residuals, config=config))
        for number in range(max(steps) + 1):
            if number in steps:
                found.append(jax.device_get(look(state.params, batch)))
            if number < max(steps):
                state = step(state, batch)[0]

    def size(xs: Sequence[np.ndarray]) -> list:
        return [np.sqrt(np.mean(np.square(x_LRD), axis=(1, 2))) for x_LRD in xs]

    values = [size(xs) for xs in found]
    moved = [size([x - first for x, first in zip(xs, found[0], strict=True)]) for xs in found]
    return Sizes(*(np.moveaxis(np.array(each), 1, 2) for each in (values, moved)))


def slopes(by_width: dict[int, Sizes]) -> Sizes:
    """The power of the width with which each size grows, by least squares of logarithms; 0 is flat."""
    x = np.log2([*by_width])

    def fit(name: str) -> np.ndarray:
        y = np.log2(np.maximum([getattr(sizes, name) for sizes in by_width.values()], 1e-30))
        return np.tensordot((x - x.mean()) / np.square(x - x.mean()).sum(), y, 1)

    return Sizes(fit("value"), fit("moved"))


def numbers(option: str, text: str, least: int) -> list[int]:
    """`64,128` as numbers that ascend, two or more; `UserError` else."""
    words = text.split(",")
    found = [int(word) for word in words if word.strip().isdecimal()]
    if len(found) < len(words) or found != sorted(set(found)) or found[0] < least or len(found) < 2:
        raise UserError(
            f"{option}: {text!r}; must be two or more whole numbers from {least} on, ascending, with commas between; "
            "write others"
        )
    return found


def main(argv: list[str] | None = None) -> int:
    options, overrides = flags.parse(arguments.coords(), argv)
    widths, steps = numbers("--widths", options.widths, 1), [0, *numbers("--steps", options.steps, 1)]
    tree, batch, sources = first_batch(load.read(options.config, overrides))
    configs = {(transfer, width): built(tree, width, transfer) for transfer in TRANSFERS for width in widths}
    found: dict[str, dict[int, Sizes]] = {name: {} for name in TRANSFERS.values()}
    for (transfer, width), config in configs.items():
        name = TRANSFERS[transfer]
        with phase(f"{name}: {width} wide"):
            found[name][width] = measure(config, batch, sources, steps)
    write_atomically(options.out, pictures.both(pictures.coords, found, steps)["light"])
    show({name: slopes(by_width) for name, by_width in found.items()}, steps)
    print(f"picture: {options.out}")
    return 0


def show(by_transfer: dict[str, Sizes], steps: Sequence[int]) -> None:
    """A table of the steepest slope of any block."""
    table = Table("transfer", "after steps", "activations", "their change", box=None, padding=(0, 2))
    for name, slope in by_transfer.items():
        for i, number in enumerate(steps):
            steepest = [max(each[i].ravel(), key=abs) for each in slope]
            table.add_row(name, str(number), f"{steepest[0]:+.2f}", f"{steepest[1]:+.2f}" if number else "")
    out = Console(soft_wrap=True, highlight=False)
    out.print("The steepest power of the width with which a block's activations grow; 0 is flat:")
    out.print(table)


if __name__ == "__main__":
    sys.exit(guarded(main))

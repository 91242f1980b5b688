"""Does the best rate at one width serve another? Final losses by rate, architecture and width, with mup and without.

python -m bench.transfer                     all of it: some minutes on two cores
python -m bench.transfer --archs mot --steps 100 --rates=-9,-8,-7,-6,-5

Each row of the table is a model; the loss is the mean of the last quarter of a run's steps, each on a new batch. The
best rate is where a parabola through the best three points is lowest.
"""

import argparse
from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from launch.coords import TRANSFERS, at_width
from mot import optim, sharding
from mot.config import Config, load, resolve
from mot.train import ensemble, evaluate, restore
from mot.train.state import init_state
from mot.train.step import make_step


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    p.add_argument("--archs", default="dense,mot,moe_tc4")
    p.add_argument("--widths", default="64,256")
    p.add_argument("--rates", default="-9,-8,-7,-6,-5,-4", help="powers of 2")
    p.add_argument("--steps", type=int, default=48)
    p.add_argument("--rows", type=int, default=1)
    p.add_argument("--transfers", default="mup", help="'none,mup' also measures without")
    options = p.parse_args()
    rates = [2.0 ** int(power) for power in options.rates.split(",")]
    print(f"{'':30}" + "".join(f"{rate:9.4f}" for rate in rates) + "     best")
    for transfer in [name.replace("none", "") for name in options.transfers.split(",")]:
        for arch in options.archs.split(","):
            tree, batches, sources = data(arch, options)
            for width in map(int, options.widths.split(",")):
                config = resolve(at_width(tree, width, transfer), optim.uncovered)
                losses = train(config, sources, batches, rates)
                told = "".join(f"{loss:9.4f}" for loss in losses)
                print(f"{TRANSFERS[transfer]:12} {arch:10} {width:5}  {told}{best(rates, losses):9.4f}", flush=True)


def data(arch: str, options: argparse.Namespace) -> tuple:
    """The digits' smoke size with a base of 64, a batch for each step, and the number of sources."""
    rows = {"data.batch": str(options.rows), "run.steps": str(options.steps)}
    more = {"run.eval_batches": str(options.steps), "optim.base_width": "0"}
    tree = load.read(f"configs/digits.py:arch={arch},size=smoke", rows | more)
    tree = at_width(tree, 64, "")
    config, _, held_out = restore.open_data(resolve(tree, optim.uncovered))
    mesh = sharding.make_mesh(config, jax.devices()[:1])
    with jax.set_mesh(mesh):
        return tree, evaluate.held_out(config, held_out, mesh)[0], len(held_out.names)


def train(config: Config, sources: int, batches: list, rates: Sequence[float]) -> list[float]:
    """The loss at the end of a run of each rate; all are one program."""

    def of_rate(state, batch, rate):
        return make_step(ensemble.with_values(config, {"optim.lr": rate}), sources)(state, batch)

    losses = []
    with jax.set_mesh(sharding.make_mesh(config, jax.devices()[:1])):
        begin, step = jax.jit(partial(init_state, config)), jax.jit(of_rate, donate_argnums=0)
        for rate in rates:
            state, of_run = begin(), []
            for batch in batches:
                state, measured = step(state, batch, jnp.float32(rate))
                of_run.append(measured["loss"])
            losses.append(float(np.mean(jax.device_get(of_run[-max(len(of_run) // 4, 1) :]))))
    return losses


def best(rates: list[float], losses: list[float]) -> float:
    """The rate at which a parabola through the best point and its neighbours is lowest; at an edge that edge."""
    i = int(np.nanargmin(losses))
    if not 0 < i < len(rates) - 1:
        return rates[i]
    a, b, _ = np.polyfit(np.log2(rates[i - 1 : i + 2]), losses[i - 1 : i + 2], 2)
    return 2 ** (-b / (2 * a))


if __name__ == "__main__":
    main()

"""Compiles the best few candidates of `scaling/search.py` in full, and takes the fastest that fits."""

from rich.console import Console

from launch import flags
from mot.config import Config
from mot.errors import UserError
from scaling import plan as plans
from scaling import search
from scaling.chips import Topology


def main(config: Config, topology: Topology, out: Console) -> plans.Plan:
    """The fastest plan; candidates and how to choose the best go to `out`."""
    found = search.candidates(config, topology)
    out.print(f"{len(found)} candidates may fit {topology.name}; compiling the best by estimate")
    made: list[tuple[search.Candidate, plans.Plan]] = []
    with flags.progress(Console(stderr=True)) as progress:
        task = progress.add_task("", total=min(search.FINISHED, len(found)))
        for candidate in found[: search.TRIED]:
            progress.update(task, description=candidate.told)
            try:
                plan = plans.plan(candidate.config, topology)
            except UserError as error:  # of a kernel that takes no such share of heads or tokens
                progress.console.print(f"{candidate.told}: {error}", markup=False)
                continue
            made.append((candidate, plan))
            progress.console.print(f"{candidate.told}: {_told(plan)}", markup=False)
            if plan.fits:
                progress.advance(task)
            if sum(plan.fits for _, plan in made) == search.FINISHED:
                break
    fitting = [pair for pair in made if pair[1].fits]
    if not made:
        raise UserError(
            f"{topology.name}: none of the best {search.TRIED} candidates compiles; set config.mesh yourself"
        )
    candidate, best = min(fitting, key=lambda pair: pair[1].roofline["max"]) if fitting else made[0]
    if fitting:
        m, c = candidate.config.mesh, candidate.config
        axes = [f"--config.mesh.{axis}={getattr(m, axis)}" for axis in ("data", "fsdp", "expert", "context", "tensor")]
        axes += [f"--config.model.remat={c.model.remat}", f"--config.optim.accumulate={c.optim.accumulate}"]
        out.print("the fastest that fits: " + " ".join(axes), markup=False)
    return best


def _told(plan: plans.Plan) -> str:
    if not plan.fits:
        return f"does not fit: {plan.trouble}"
    return f"{plan.roofline['max'] * 1e3:.1f} ms, {plan.binding} binds, {plan.memory['peak'] / 1e9:.1f} GB"

"""Compiles the best few candidates of `mot/plan/search.py` in full, and takes the fastest that fits."""

from collections.abc import Callable

from rich.console import Console

from mot.config import Config
from mot.config.axes import MESH_AXES
from mot.errors import UserError
from mot.plan import forecast, process, search
from mot.plan.chips import Topology


def main(
    config: Config, topology: Topology, judge: Callable[[dict[str, str]], dict], out: Console
) -> forecast.Forecast:
    """The fastest plan; candidates and how to choose the best go to `out`.

    `judge` makes a plan with these overrides, as `process.plan`.
    """
    candidates = search.candidates(config, topology)
    out.print(f"{len(candidates)} candidates may fit {topology.name}; compiling the best by estimate")
    compiled: list[tuple[search.Candidate, forecast.Forecast]] = []
    with process.progress(Console(stderr=True)) as progress:
        task = progress.add_task("", total=min(search.FINISHED, len(candidates)))
        for candidate in candidates[: search.TRIED]:
            progress.update(task, description=candidate.told)
            answer = judge(overrides(candidate.config))
            if "failed" in answer:  # a kernel takes no such share of heads or tokens, or the compiler gave up
                progress.console.print(f"{candidate.told}: does not compile: {answer['failed']}", markup=False)
                continue
            plan = forecast.from_json(answer)
            compiled.append((candidate, plan))
            progress.console.print(f"{candidate.told}: {_told(plan)}", markup=False)
            if plan.fits:
                progress.advance(task)
            if sum(plan.fits for _, plan in compiled) == search.FINISHED:
                break
    fitting = [pair for pair in compiled if pair[1].fits]
    if not compiled:
        raise UserError(
            f"{topology.name}: none of the best {search.TRIED} candidates compiles; set config.mesh yourself"
        )
    candidate, best = min(fitting, key=lambda pair: pair[1].roofline["step"]) if fitting else compiled[0]
    if fitting:
        flags = [f"--config.{key}={value}" for key, value in overrides(candidate.config).items()]
        out.print("the fastest that fits: " + " ".join(flags), markup=False)
    return best


def overrides(config: Config) -> dict[str, str]:
    """What a candidate chooses."""
    chosen = {f"mesh.{axis}": getattr(config.mesh, axis) for axis in MESH_AXES}
    chosen |= {"model.remat": config.model.remat, "optim.accumulate": config.optim.accumulate}
    return {key: str(value) for key, value in chosen.items()}


def _told(plan: forecast.Forecast) -> str:
    if not plan.fits:
        return f"does not fit: {plan.trouble}"
    return f"{plan.roofline['step'] * 1e3:.1f} ms, {plan.binding} binds, {plan.memory['peak'] / 1e9:.1f} GB"

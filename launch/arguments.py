"""What each command takes: its options, and what can be said of them at once.

Nothing heavy is imported here, so that help and a typing error are answered before JAX is there.
"""

import itertools
import math
import re
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path, PurePath
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from launch import flags, refusals, sweep_rows
from launch.process import typed
from launch.targets import job
from mot.config import Config, ConfigError, load, modalities
from mot.config.modalities import Modality, Option
from mot.config.options import (
    ACCEPTED,
    ANY,
    DROP_DOCUMENT,
    DROP_MEDIUM,
    EVALUATIONS,
    EXAMPLE,
    FORMATS,
    PROBES,
    QUESTION,
    SOLVERS,
    VARIED,
    Settings,
)
from mot.config.tokenizer import EVALUATIONS as TOKENIZER_MEASURED
from mot.config.tokenizer import KINDS, OF_MEDIUM
from mot.config.tokenizer import Settings as TokenizerSettings
from mot.config.tokenizer import faults as tokenizer_faults
from mot.config.varied import flat, put, varies
from mot.data.manifest import SPLITS
from mot.errors import UserError
from mot.files import as_path
from mot.plan import chips
from mot.prepare import asked

SETTINGS = {"discrete": "digits.py", "chameleon": "chameleon.py", "transfusion": "transfusion.py"}  # of configs/
OWN = ("run.root", "run.name", "model.seed", "data.seed")  # what the demo decides
MOST_RUNS = 1024
ALL = "all"  # checkpoints of a run
STATUS = "status"  # in place of a sweep: how far one is
POOL, POOLS, DRAWS, DOCUMENTS = 20, 8, 200, 100  # of `mot evaluate`
UNPROMPTED = 4  # documents, where nothing is asked for
TEXT, MEDIA = 96, 4  # tokens of text and media that may follow, where the model decides
STEPS = Settings().steps
GUIDANCE = 2.0  # of 1, 2 and 3 on the digits, after 2,000 steps: 39, 48 and 50 of 50 as asked


def check(command: str, argv: Sequence[str]) -> int | None:
    """Ends with help, or raises what is wrong with a command line as far as it can be told without data or JAX.

    An exit code where there is nothing more to do.
    """
    if command == "data":
        if (code := of_data(argv)) is not None:
            return code
        command, argv = argv[0], argv[1:]
    if command == "checkpoint":
        if (code := of_checkpoint(argv)) is not None:
            return code
        command, argv = argv[0], argv[1:]
    if command == "launch":
        from launch import judging

        judging.judge(argv)
        return None
    p = PARSERS[command]()
    if command == "config" or "--config" in p.flags():
        options, overrides = flags.parse(p, argv)
    else:
        options = p.parse_args(argv)
        overrides = {}
    if command == "sweep":
        of_sweep(p, options)
        return None
    if command == "demo":
        trees = demo_trees(options, overrides)
        refusals.training([flags.judged(tree) for tree in trees])
        return None
    if command == "prepare":
        judged_data(p, options)
        for folder in modalities.networks_of(options):
            flags.refuse_absent(Path(folder), "folder of a network")
    if command == "plan" and options.topology:
        chips.parse(options.topology)
    if command == "import":
        flags.refuse_absent(options.path, "folder")
    if command == "tokenizer":
        tokenizer_settings(options)
    if command == "export":
        refusals.exports(options)
    if command == "train":
        accepted(options.accept)
    if command == "train" and options.runs is not None:
        for text in options.runs:  # whatever is wrong with the configuration, these keys cannot vary
            _varied_key(text)
    config = None
    if getattr(options, "config", ""):
        config = flags.judged(load.read(options.config, overrides))
    for option, what in (("run", "run directory"), ("dataset", "dataset"), ("inputs", "file or folder")):
        given = getattr(options, option, None) or ()
        for path in [given] if isinstance(given, PurePath) else map(Path, given):
            flags.refuse_absent(path, what)
    _refuse(command, options, overrides, config)
    return None


def _refuse(command: str, options, overrides: dict[str, str], judged: Config | None) -> None:
    """Raises what run directories and datasets, as they are written, have against a command line."""
    if command == "train":
        configs = [judged]
        if options.runs is not None:
            configs = several(options.runs, options.config, overrides, judged, flags.judged)
        if options.distributed is None:  # else another process may be the one that writes
            refusals.training(configs)
    elif command == "evaluate":
        refusals.evaluation(options, overrides, judged)
    elif command == "replay":
        refusals.replay(options)
    elif command == "probe":
        refusals.probe(options, *probed(options))
    elif command == "sample":
        refusals.sampling(options.run, options.step, asked_of(options))
    elif command == "report":
        refusals.report(options)
    elif command == "inspect":
        refusals.inspection(options)
    elif command == "coords":
        refusals.file_to_write(options.out)
    elif command == "plan":
        refusals.plan(options, overrides, plan().get_default("config"))


def of_sweep(p: flags.Parser, options) -> None:
    """Raises, or ends, where a command line of `mot sweep` cannot be meant so, or its file gives no rows."""
    if (options.sweep == STATUS) != (options.folder is not None):
        p.error(f"write `mot sweep FILE:NAME,arg`, or `mot sweep {STATUS} OUT`")
    if options.topology is not None and not options.dry_run:
        p.error(f"--topology={options.topology}: is for --dry-run alone: rows run on this machine")
    if options.dry_run and options.row is not None:
        p.error(f"--dry-run, --row={options.row}: a dry run is of all rows; leave one out")
    if options.distributed is not None and options.row is None:
        p.error("--distributed: is for --row: the processes of one row")
    if options.topology is not None:
        chips.parse(options.topology)
    if options.sweep == STATUS:
        flags.refuse_absent(as_path(options.folder), "folder of a sweep")
        return
    rows = sweep_rows.read(options.sweep)
    sweep_rows.refuse_twice(options.sweep, rows)
    if options.row is not None:
        sweep_rows.chosen(options.sweep, options.row, len(rows))


def several(
    texts: Sequence[str],
    file_and_arg: str,
    overrides: dict[str, str],
    config: Config,
    build: Callable[[ConfigDict], Config],
) -> list[Config]:
    """The configurations that `--runs` asks for, each as a command of its own would read it and `build` make it.

    Several `--runs` are a product: every value of one with every value of the others, the last changing fastest.
    """

    def of_row(row: dict[str, str]) -> Config:
        return build(load.read(file_and_arg, overrides | row))

    said = f"--runs {' --runs '.join(texts)}"
    rows = _rows(texts, config)
    built = _built(said, rows, of_row)
    numbers = [flat(c) for c in built]
    keys = list(rows[0])
    for key in keys:
        typed = {row[key]: of_run[key] for row, of_run in zip(rows, numbers, strict=True)}
        _refuse_twice(said, [str(number) for number in typed.values()])
    suffixes = _suffixes(keys)
    names = [
        c.run.name + "".join(f"-{suffixes[key]}{of_run[key]}" for key in keys)
        for c, of_run in zip(built, numbers, strict=True)
    ]
    return [put(c, "run.name", name) for c, name in zip(built, names, strict=True)]


def _rows(texts: Sequence[str], config: Config) -> list[dict[str, str]]:
    """What each run of `--runs` has of its own, as it was typed, by key."""
    each = [_varied(text, config) for text in texts]
    keys = [key for key, _ in each]
    said = f"--runs {' --runs '.join(texts)}"
    _refuse_twice(said, keys)
    count = math.prod(len(values) for _, values in each)
    if count > MOST_RUNS:
        raise UserError(f"{said}: {count} runs; must be 2 to {MOST_RUNS}; give fewer values, or start several programs")
    return [dict(zip(keys, row, strict=True)) for row in itertools.product(*(values for _, values in each))]


def _built(said: str, rows: Sequence[dict[str, str]], of_row: Callable[[dict[str, str]], Config]) -> list[Config]:
    """The configuration of every row; `UserError` with the faults of all, each told once with the rows that have it."""
    built = []
    faults: dict[str, list[str]] = {}
    for row in rows:
        try:
            built.append(of_row(row))
        except ConfigError as error:
            for fault in error.faults:
                faults.setdefault(fault, []).append(_of(row))
    if not faults:
        return built
    lines = []
    for fault, having in faults.items():
        own = any(fault.startswith(f"{key}: ") for key in rows[0])
        some = having if len(having) < 5 else [*having[:3], f"{len(having) - 3} more"]
        lines.append(fault if own or len(having) == len(rows) else f"of {', '.join(some)}: {fault}")
    raise UserError("\n  ".join([f"{said}:", *lines]))


def _of(row: dict[str, str]) -> str:
    """A row as messages name it: by its value, or with their keys where it has several."""
    return next(iter(row.values())) if len(row) == 1 else " ".join(f"{key}={value}" for key, value in row.items())


def _suffixes(keys: Sequence[str]) -> dict[str, str]:
    """What a run's name says of each key: its last word, with the one before where several end alike."""
    words = {key: re.findall(r"\w+", key) for key in keys}
    last = Counter(found[-1] for found in words.values())
    return {key: ".".join(found[-1:] if last[found[-1]] == 1 else found[-2:]) for key, found in words.items()}


def _refuse_twice(said: str, values: Sequence[str]) -> None:
    if twice := [value for value, times in Counter(values).items() if times > 1]:
        raise UserError(f"{said}: {', '.join(twice)} stands there twice; every run needs its own value; drop one")


def _varied(text: str, config: Config) -> tuple[str, list[str]]:
    """The key in which runs of one `--runs` differ, and its values as they were typed."""
    key = _varied_key(text)
    if key not in flat(config):
        raise UserError(f"--runs {text}: the configuration has no {key}; `mot config FILE:arg` shows each key")
    values = text.partition("=")[2]
    if "=" not in text:
        seed = config.model.seed
        values = ",".join(str(n) for n in range(seed, seed + int(text)))
    given = values.split(",")
    if not 2 <= len(given) <= MOST_RUNS or not all(given):
        empty = f", {given.count('')} of them empty" if "" in given else ""
        raise UserError(f"--runs {text}: {len(given)} values{empty}; must be 2 to {MOST_RUNS}; `mot train` runs one")
    _refuse_twice(f"--runs {text}", given)
    return key, given


def _varied_key(text: str) -> str:
    """The key in which runs of one `--runs` differ."""
    key, equals, _ = text.partition("=")
    if not equals:
        if not re.fullmatch(r"\d{1,9}", text, re.ASCII) or not 2 <= int(text) <= MOST_RUNS:
            raise UserError(
                f"--runs {text}: must be KEY=V1,V2,... or how many seeds, 2 to {MOST_RUNS}; give one of these"
            )
        return "model.seed"
    if not varies(key):
        why = "draws other batches" if key == "data.seed" else "makes another program, or other batches"
        raise UserError(
            f"--runs {text}: {key or 'no key'} {why}; runs in one program may differ "
            f"in {', '.join(VARIED)}; name one of these, or start separate runs{load.asked(key, VARIED)}"
        )
    return key


def accepted(text: str | None) -> set[str]:
    """The kinds of differences that `--accept` names; none where it is not given."""
    if text is None:
        return set()
    kinds = [kind.strip() for kind in text.split(",")]
    for kind in kinds:
        if kind not in ACCEPTED:
            raise UserError(
                f"--accept={text}: {kind!r} is no kind of difference; allowed: {', '.join(ACCEPTED)}, with commas "
                f"between; name those that a refusal lists{load.asked(kind, ACCEPTED)}"
            )
    return {*kinds}


def of_data(argv: Sequence[str]) -> int | None:
    """The exit code of `mot data` where no command of it follows, whose names are then told."""
    if argv and argv[0] in ("prepare", "inspect"):
        return None
    wanted = bool(argv) and argv[0] in ("-h", "--help")
    if argv and not wanted:
        near = load.asked(argv[0], ("prepare", "inspect"))
        print(f"mot data: no command {argv[0]!r}; allowed: prepare, inspect{near}", file=sys.stderr)
    print(
        "usage: mot data prepare|inspect ...\n\nPrepares a dataset of records from files, or shows one: `mot data "
        "prepare`, `mot data inspect`.\n\nexamples:\n  mot data prepare photos/ --out data/photos\n"
        "  mot data inspect data/photos --document 3"
    )
    return 0 if wanted else 2


CHECKPOINT = ("list", "verify", "show", "diff")


def of_checkpoint(argv: Sequence[str]) -> int | None:
    """The exit code of `mot checkpoint` where no command of it follows, whose names are then told."""
    if argv and argv[0] in CHECKPOINT:
        return None
    wanted = bool(argv) and argv[0] in ("-h", "--help")
    if argv and not wanted:
        near = load.asked(argv[0], CHECKPOINT)
        print(f"mot checkpoint: no command {argv[0]!r}; allowed: {', '.join(CHECKPOINT)}{near}", file=sys.stderr)
    print(f"usage: mot checkpoint {'|'.join(CHECKPOINT)} ...\n\nexample:\n  mot checkpoint list runs/digits-mot-smoke")
    return 0 if wanted else 2


def demo_trees(options, overrides: dict[str, str]) -> list[ConfigDict]:
    """The configurations of a demo, seed by seed; the same seeds, and so the same batches, for every architecture.

    `options` get the setting's file and folder, where the command line names none.
    """
    if options.config and options.setting:
        raise UserError(
            f"--config={options.config}, --setting={options.setting}: a setting is a configuration; give one"
        )
    setting = options.setting or "discrete"
    options.config = options.config or f"configs/{SETTINGS[setting]}"
    options.out = options.out or Path("runs") / ("demo" if setting == "discrete" else f"demo-{setting}")
    if options.seeds < 1:
        raise UserError(f"--seeds={options.seeds}; must be 1 or more")
    archs = list(dict.fromkeys(arch.strip() for arch in options.archs.split(",") if arch.strip()))
    if not archs:
        raise UserError(f"--archs={options.archs!r}: names no architecture; see configs/archs.py")
    if "arch=" in options.config.partition(":")[2]:
        raise UserError(f"--config={options.config}: the demo chooses architectures; use --archs")
    for key in sorted(k for k in overrides if k.startswith(OWN)):
        raise UserError(f"--config.{key}={overrides[key]}: the demo names and seeds its runs; use --out and --seeds")
    return [_demo_tree(options, overrides, arch, seed) for seed in range(options.seeds) for arch in archs]


def _demo_tree(options, overrides, arch: str, seed: int) -> ConfigDict:
    file, _, arg = options.config.partition(":")
    tree = load.read(f"{file}:{arg + ',' if arg else ''}arch={arch}", overrides)
    own: dict[str, Any] = {"run.root": str(options.out), "run.name": f"{arch}-seed{seed}"}
    own |= {"model.seed": seed, "data.seed": seed}
    for key, value in own.items():
        group, name = key.split(".")
        if hasattr(tree[group], "keys"):  # else `build` says what is wrong with it
            tree[group][name] = value
    return tree


class Options(NamedTuple):
    prompts: tuple[str, ...] | None = None
    texts: tuple[str, ...] = ()
    files: tuple[Path, ...] = ()
    n: int | None = None
    each: int | None = None
    read: int | None = None
    draw: str | None = None
    max_text: int | None = None
    max_media: int | None = None
    length: int | None = None
    size: str | None = None
    temperature: float = 0.7
    top_k: int = 0
    top_p: float = 1.0
    guidance: float | None = None
    solver: str | None = None
    steps: int | None = None
    block: int | None = None
    seed: int = 0
    grid: bool = False
    fetch: bool = False  # data from addresses that only the run names
    out: Path | None = None

    @property
    def continues(self) -> bool:
        """Is a document to be gone on with, also of a run on digits?"""
        asked = (self.draw, self.max_text, self.max_media, self.length, self.size)
        return bool(self.files) or any(x is not None for x in asked)


def asked_of(options) -> Options:
    """What a command line of `mot sample` asks for, without its run and step."""
    given = {key: value for key, value in vars(options).items() if key not in ("run", "step")}
    given |= {key: tuple(given[key]) for key in ("texts", "files")}
    return Options(**given | {"prompts": None if given["prompts"] is None else tuple(given["prompts"])})


def demo() -> flags.Parser:
    p = flags.parser(
        "demo",
        "Trains architectures on the same batches of real text and images, lets them draw and read, and reports.",
        "mot demo --setting transfusion --archs dense,mot --seeds 2",
    )
    p.add_argument("--setting", choices=SETTINGS, help="images as ids (discrete, the default) or vectors (transfusion)")
    flags.add_config(p, "")
    p.add_argument(
        "--archs",
        default="dense,mot",
        help="architectures of configs/archs.py, with commas between; default %(default)s",
    )
    p.add_argument("--seeds", type=int, default=2, help="runs of each architecture; default %(default)s")
    p.add_argument(
        "--out", type=flags.of_this_machine, help="where runs and results go; default runs/demo, or runs/demo-SETTING"
    )
    return p


def train() -> flags.Parser:
    p = flags.parser(
        "train",
        "Trains one configuration, or resumes it: the same command does both. --runs: several that differ in numbers.",
        "mot train --config=configs/digits.py:arch=mot,size=smoke --config.optim.lr=1e-3\n"
        "  mot train --config=configs/digits.py:arch=mot,size=smoke --runs optim.lr=1e-3,2e-3,4e-3 --runs 3",
    )
    flags.add_config(p)
    p.add_argument(
        "--runs",
        action="append",
        help="KEY=V1,V2,...: one run a value, in one program, as NAME-KEYVALUE; or N: as many model.seeds; given "
        "again: every value of the one with every value of the other",
    )
    p.add_argument("--profile", action="store_true", help="trace a few steps into the run's folder profile/")
    p.add_argument(
        "--accept",
        metavar="KIND[,KIND]",
        help="resume in spite of differences from the checkpoint, which a refusal lists by kind; each is told and "
        "recorded. " + "; ".join(f"{kind}: {effect}" for kind, effect in ACCEPTED.items()),
    )
    _add_distributed(p)
    return p


def _add_distributed(p: flags.Parser) -> None:
    p.add_argument(
        "--distributed",
        nargs="?",
        const="auto",
        metavar="HOST:PORT,I,N",
        help="one of several processes of one run: as the cluster says (TPU pods, Slurm, Kubernetes), or process I of "
        "N that meet at process 0's HOST:PORT",
    )


def sweep() -> flags.Parser:
    p = flags.parser(
        "sweep",
        "Trains every row of a sweep, and goes on where it stopped; or shows what it would cost; or how far one is.",
        "mot sweep configs/sweeps.py:leave_one_out,size=smoke --dry-run\n"
        "  mot sweep configs/sweeps.py:leave_one_out,size=smoke --out runs/loo\n  mot sweep status runs/loo",
    )
    p.add_argument(
        "sweep",
        metavar="FILE:NAME,arg",
        help="a function of a file of sweeps, and its arguments; FILE is a program that is run: name only such as you "
        f"trust; or `{STATUS}`",
    )
    p.add_argument("folder", metavar="OUT", nargs="?", help=f"of `{STATUS}`: the sweep's folder")
    p.add_argument(
        "--out", type=as_path, help="the sweep's folder, in which each row has one, its run.name; default runs/NAME"
    )
    p.add_argument("--dry-run", action="store_true", help="show the rows and what they would cost; write nothing")
    p.add_argument(
        "--topology", help=f"of --dry-run: the devices that are counted with, as {chips.EXAMPLES}; default these here"
    )
    p.add_argument(
        "--row",
        metavar="I[,J]",
        help="train row I alone, the first is 0; or some rows in one program; as a task of a cluster's array does",
    )
    _add_distributed(p)
    return p


def config() -> flags.Parser:
    p = flags.parser(
        "config",
        "Shows a configuration as it is resolved: every key, its value, what it is for, what it may be, its default.",
        "mot config configs/digits.py:arch=mot,size=smoke\n  mot config configs/digits.py optim.schedule",
    )
    p.add_argument("file", metavar="FILE:arg", help="as configs/digits.py:arch=mot,size=smoke")
    p.add_argument("key", metavar="KEY", nargs="?", help="a dotted key, or a group of keys; default: all")
    p.add_argument_group("overrides", "--config.KEY=VALUE changes a value, as in --config.optim.lr=1e-3")
    return p


def evaluate() -> flags.Parser:
    p = flags.parser(
        "evaluate",
        "Prints the held-out losses of a run's newest checkpoint, by modality and source; and more with --what.",
        "mot evaluate runs/digits-mot-smoke\n  mot evaluate runs/digits-mot-smoke --what bits,retrieval --pool 10",
    )
    p.add_argument("run", type=as_path, nargs="?", help="a run directory; or --config, which names one")
    flags.add_config(p, "")
    p.add_argument("--step", type=int, help="which checkpoint; default the newest")
    kinds = "; ".join(f"{name}: {about}" for name, about in EVALUATIONS.items())
    p.add_argument("--what", metavar="KIND[,KIND]", default="loss", help=f"{kinds}; default %(default)s")
    p.add_argument(
        "--answers",
        type=flags.of_this_machine,
        metavar="FILE.jsonl",
        help="of ranking: a question a line, as " + QUESTION,
    )
    p.add_argument("--pool", type=int, help=f"of retrieval: documents of a pool; default {POOL}")
    p.add_argument("--pools", type=int, help=f"of retrieval: pools of a source at most; default {POOLS}")
    p.add_argument(
        "--documents",
        type=int,
        help=f"of conditioning: documents of a source and direction at most; default {DOCUMENTS}",
    )
    p.add_argument("--draws", type=int, help=f"of judged and distances: how many are drawn; default {DRAWS}")
    p.add_argument("--steps", type=int, help=f"of these: steps that draw vectors, or masked ids; default {STEPS}")
    p.add_argument(
        "--features",
        metavar="FILE",
        help="of distances: an .npz of arrays real and generated [N, D]; or FILE.py:NAME, a function from a list of "
        "decoded media to features [N, D], a program that is run: name only such as you trust",
    )
    p.add_argument("--tasks", metavar="TASK[,TASK]", help="of harness: which; `lm-eval ls tasks` lists them")
    p.add_argument(
        "--task-folder",
        type=flags.of_this_machine,
        metavar="FOLDER",
        help="of harness: tasks of your own, in lm-eval's YAML; functions that it names are run: only those you trust",
    )
    p.add_argument("--shots", type=int, help="of harness: examples before a question; default what the task says")
    p.add_argument("--limit", type=int, help="of harness: documents of a task at most; default all")
    p.add_argument("--out", type=flags.of_this_machine, metavar="FILE.json", help="also all figures, as JSON")
    _add_fetch(p)
    return p


def _add_fetch(p: flags.Parser) -> None:
    text = "read data also at an address that only the run's config.json names, and no command of yours has named"
    p.add_argument("--fetch", action="store_true", help=text)


def replay() -> flags.Parser:
    p = flags.parser(
        "replay",
        "Makes one step of a run again, exactly, from the checkpoint before it; nothing is written. Prints its loss, "
        "every parameter's gradient, every document's loss, and whether they are those of metrics.jsonl, to the bit.",
        "mot replay runs/digits-mot-smoke 2",
    )
    p.add_argument("run", type=as_path, help="a run directory")
    p.add_argument("step", type=int, help="which of its steps; the first is 1")
    p.add_argument("--rows", type=int, default=20, help="of each table, 0 is all; default %(default)s")
    _add_fetch(p)
    return p


def probe() -> flags.Parser:
    p = flags.parser(
        "probe",
        "Measures how modalities compete inside a run's checkpoints: how their gradients agree, how far apart they\n"
        "lie, who attends to whom, who uses which experts. It is written into the run's probes.jsonl and probes/.",
        "mot probe runs/digits-mot-smoke --what gradients,attention",
    )
    p.add_argument("run", type=as_path, help="a run directory")
    p.add_argument("--steps", metavar="STEP[,STEP]", help=f"of which checkpoints, or {ALL}; default the newest")
    p.add_argument("--what", metavar="KIND[,KIND]", help=f"{', '.join(PROBES)}; default all that the run has")
    _add_fetch(p)
    return p


def probed(options) -> tuple[list[int] | None, list[str]]:
    """The steps that a command line of `mot probe` names, None = all, and the kinds; none where it names none.

    `UserError` for what is no step, and no kind.
    """
    what = [kind.strip() for kind in options.what.split(",")] if options.what is not None else []
    for kind in what:
        if kind not in PROBES:
            raise UserError(
                f"--what={options.what}: {kind!r} is no kind of probe; allowed: {', '.join(PROBES)}, with commas "
                f"between{load.asked(kind, PROBES) or '; write one of these'}"
            )
    if options.steps == ALL:
        return None, what
    words = [word.strip() for word in options.steps.split(",")] if options.steps is not None else []
    if not all(re.fullmatch(r"\d{1,9}", word, re.ASCII) for word in words):
        raise UserError(
            f"--steps={options.steps}: must be whole numbers with commas between, or {ALL}; `mot checkpoint list "
            f"{options.run}` shows which there are"
        )
    return sorted({int(word) for word in words}), what


def sample() -> flags.Parser:
    p = flags.parser(
        "sample",
        "Pictures, text and whole documents from a run: what it draws when asked, and how it goes on with one.\n\n"
        "A run on the embedded digits draws and reads them, and a classifier judges it; --prompt-file, --draw,\n"
        "--max-text and --max-media have it go on with any document, as every other run does. Files go to --out,\n"
        "what was asked and what came of it into its samples.json.",
        'mot sample runs/demo/mot-seed0 --prompt "a handwritten seven" --n 64 --grid',
    )
    p.add_argument("run", type=as_path, help="a run directory")
    p.add_argument("--step", type=int, help="of which checkpoint; default the newest")
    _add_fetch(p)
    o = Options()
    ask = p.add_argument_group("what is asked for").add_argument
    ask(
        "--prompt",
        action="append",
        type=typed,
        dest="prompts",
        metavar="TEXT",
        help="a text to draw from; may be repeated",
    )
    given = dict(action="append", type=typed, dest="texts", default=[], metavar="TEXT")
    ask("--text", **given, help="a text to go on with in text alone; may be repeated")
    name = "DOC.json"
    ask(
        "--prompt-file",
        action="append",
        dest="files",
        default=[],
        type=flags.of_this_machine,
        metavar=name,
        help=f"a document to go on with, as {EXAMPLE}",
    )
    ask("--n", type=int, help="rows in all, prompts in turn; default: each prompt once, the digits' as --each says")
    kinds = ", ".join(modalities.media()[:2])
    ask("--draw", metavar="KIND", help=f"opened right after the prompt: {kinds}, ..., or {ANY}: the model decides")
    ask("--max-text", type=int, help=f"tokens of text that may follow; default {TEXT}, after --prompt 0")
    ask("--max-media", type=int, help=f"media that may follow; default {MEDIA}, after --prompt 1")
    ask("--length", type=int, help="tokens of a unit that has no fixed length; default: about the data's mean")
    size = "WIDTHxHEIGHT in pixels of a picture that may have any size; default: about the data's mean, square"
    ask("--size", metavar="24x40", help=size)
    ask("--each", type=int, help="digits drawn from each prompt, in place of --n; default 4")
    ask("--read", type=int, help="held-out digits to caption; default 20, with --n 0")
    how = p.add_argument_group("how").add_argument
    how("--temperature", type=float, default=o.temperature, help="0 takes the likeliest; default %(default)s")
    how("--top-k", type=int, default=o.top_k, help="choose among so many, 0 is all; default %(default)s")
    how("--top-p", type=float, default=o.top_p, help="among the likeliest of this probability; default %(default)s")
    known = f"default {GUIDANCE:g} where the run was trained for it (drop_rate above 0), else 1"
    how("--guidance", type=float, help=f"how strongly vectors follow their text; {known}")
    how("--solver", choices=SOLVERS, help=f"how vectors are solved from noise; default {Settings().solver}")
    how("--steps", type=int, help=f"steps of the solver, and of unmasking ids; default {STEPS}")
    how("--block", type=int, help="of masked text: so many tokens are unmasked before those after them; default all")
    how("--seed", type=int, default=o.seed, help="another seed draws others; default %(default)s")
    p.add_argument("--grid", action="store_true", help="one picture of all, in place of a file for each")
    p.add_argument(
        "--out",
        type=as_path,
        help="folder of the results, in place of earlier ones there; default: a new one, RUN/samples/STEP, STEP-2, ...",
    )
    return p


def _add_reading(p: flags.Parser, content: str) -> None:
    """How files are read as documents."""
    p.add_argument(
        "--format", choices=("auto", *FORMATS), default="auto", help="default %(default)s, by the files' names"
    )
    p.add_argument("--content", action="append", type=typed, default=[], help=content)


def prepare() -> flags.Parser:
    p = flags.parser(
        "data prepare",
        "Tokenises documents into a dataset of records; goes on where it stopped.",
        "mot data prepare photos/ --out data/photos",
    )
    p.add_argument("inputs", nargs="*", help="files or folders")
    p.add_argument("--out", type=flags.of_this_machine, required=True, help="the dataset's folder")
    _add_reading(p, 'what a row becomes, as "text:a drawing of {name}|image:image"; repeated, documents take turns')
    p.add_argument(
        "--join",
        default="",
        type=typed,
        metavar="FIELD[,FIELD]",
        help="one document of a row of each input, rows that have one value of this field (or of a field of each): at "
        "random within a split where an input has several; row_number: rows of one number; --content names a field of "
        "the second input as 2.NAME",
    )
    _number(p, "--join-documents", 0, "how many documents joined rows make; 0: each row of the largest input once")
    _number(p, "--join-seed", 0, "another seed pairs others")
    p.add_argument("--separator", type=typed, help="of documents in a text file, as \\n\\n; default: a file is one")
    _tokenizer_arguments(p)
    p.add_argument(
        "--missing",
        choices=(DROP_DOCUMENT, DROP_MEDIUM),
        default=DROP_DOCUMENT,
        help="what a picture (a sound, ...) costs that is missing or cannot be read; default %(default)s",
    )
    _number(p, "--held-out", 0.01, "fraction of documents held out, one at least, where the files name no split")
    _number(p, "--max-tokens", 8192, "tokens of a record; longer documents become several")
    _number(p, "--sample", 10000, "documents that the tokenizers learn from")
    _number(p, "--shard", 4096, "documents in a shard")
    p.add_argument("--workers", type=int, help="processes; default: one for each core, or one that runs networks")
    _number(p, "--max-skipped", 100, "bad documents, before it stops")
    p.add_argument(
        "--seqio",
        default="",
        metavar="NAME",
        help="a seqio task or mixture in place of files; a mixture ends with its first task to end",
    )
    p.add_argument("--seqio-module", default="", help="what registers it, and is run: a module, or a FILE.py")
    p.add_argument("--seqio-split", default="train", help="of it; default %(default)s")
    p.add_argument("--seqio-features", default="", help="of it, as inputs,targets; default: all lists of ids")
    p.add_argument("--preview", action="store_true", help="also draw a page of documents, OUT/preview.png")
    return p


def _number(p, flag: str, default, text: str) -> None:
    p.add_argument(flag, type=type(default), default=default, help=f"{text}; default %(default)s")


def _tokenizer_arguments(p) -> None:
    """What modalities become in a dataset."""

    p.add_argument(
        "--like", default="", help="a dataset whose tokenizers are used, whatever the options below say of those"
    )
    p.add_argument(
        "--tokenizer",
        default="",
        help="a tokenizer.json for text, or a SentencePiece .model; default: trained on these documents",
    )
    p.add_argument(
        "--markers",
        default="",
        metavar="MODALITY[,MODALITY]",
        help="of datasets that are to be --like this one: the text tokenizer has their markers, too",
    )
    p.add_argument(
        "--ids",
        action="append",
        default=[],
        metavar="NAME=COUNT",
        help='a modality whose ids 0 to COUNT - 1 come from a tokenizer of your own, as depth=64: {"ids": [3, 5], '
        '"modality": "depth"} in JSON lines, lists in other formats (--content "text:caption|depth:codes"); may be '
        "repeated",
    )
    for option, row in modalities.options(of_vectors_alone=False):
        _option(p, option, row)
    of_either = modalities.of_either_form()
    p.add_argument(
        "--vectors",
        choices=tuple(of_either),
        action="append",
        default=[],
        help=f"keeps these as vectors in place of ids: {', '.join(of_either.values())}; may be repeated",
    )
    p.add_argument(
        "--also",
        action="append",
        default=[],
        metavar="MEDIUM=WHAT",
        help="keeps each unit in another form beside its first: image=vectors (patches beside ids), or image=latents "
        "(latents that follow each image are another form of it); may be repeated",
    )
    for option, row in modalities.options(of_vectors_alone=True):
        _option(p, option, row)


def _option(p, option: Option, row: Modality) -> None:
    """Of one modality."""
    default = "%(default)s"
    if option.default is None:
        default = f"{row.usual_ids}, or as many as the documents yield"
    if option.default == "":
        default = "none"
    kind = int if option.default is None else type(option.default)
    given = dict(choices=option.choices) if option.choices else dict(type=kind)
    flag = f"--{option.name.replace('_', '-')}"
    p.add_argument(flag, default=option.default, help=f"{option.about}; default {default}", **given)


def inspect() -> flags.Parser:
    p = flags.parser(
        "data inspect",
        "Shows a dataset, its documents, or the batches that a configuration makes.",
        "mot data inspect data/photos --document 3",
    )
    p.add_argument("dataset", type=flags.of_this_machine, nargs="?", help="a dataset's folder")
    p.add_argument("--split", choices=SPLITS, default="train", help="default %(default)s")
    p.add_argument("--document", type=int, action="append", default=[], help="which to show, may be repeated")
    p.add_argument("--config", help="FILE:arg: show a packed batch of this configuration instead")
    p.add_argument("--batch", type=int, default=0, help="which; default %(default)s")
    p.add_argument(
        "--out",
        type=flags.of_this_machine,
        help="a PNG to draw, with a WAV beside it for each sound of --document; default: text alone",
    )
    p.add_argument_group("overrides", "--config.KEY=VALUE changes a value, as in --config.data.length=2048")
    return p


PORT = 8765  # of --watch


def report() -> flags.Parser:
    p = flags.parser(
        "report",
        "One self-contained page about runs, or about a sweep: what it asked is answered first.",
        "mot report runs/loo",
    )
    p.add_argument("runs", nargs="+", help="run directories, globs of them, or a sweep's folder")
    p.add_argument("--out", type=flags.of_this_machine, help="folder of report.html; default: where the first run lies")
    p.add_argument(
        "--watch",
        action="store_true",
        help="while a sweep runs: serve its page to a browser of this machine, and make it anew as its runs write",
    )
    p.add_argument("--port", type=int, help=f"of --watch; 0: any that is free; default: {PORT}")
    return p


def import_() -> flags.Parser:
    p = flags.parser(
        "import",
        "Brings a published model into a run directory; other runs begin from it.",
        "mot import qwen --data data/texts --out runs/qwen",
    )
    p.add_argument(
        "path",
        type=flags.of_this_machine,
        metavar="PATH",
        help="a folder in Hugging Face's layout: config.json, tokenizer.json, model.safetensors or shards and index",
    )
    p.add_argument(
        "--data", required=True, metavar="FOLDER", help="a dataset whose text was prepared with its tokenizer.json"
    )
    p.add_argument(
        "--arch",
        default="",
        help="of configs/archs.py, as mot or moe_tc4: its weights go where that one needs them; default its own: "
        "dense for a decoder of text",
    )
    p.add_argument("--out", type=flags.of_this_machine, required=True, metavar="RUN", help="the new run directory")
    return p


def export() -> flags.Parser:
    p = flags.parser(
        "export",
        "Writes a run's weights, tokenizer and a model card as others read them. The run must be of a family that they "
        "know.",
        "mot export runs/qwen-further --format hf --out exported/qwen",
    )
    p.add_argument("run", type=as_path, help="a run directory")
    p.add_argument("--format", choices=("hf",), default="hf", help="Hugging Face's layout; default %(default)s")
    p.add_argument("--step", type=int, help="which checkpoint; default the newest")
    p.add_argument("--out", type=flags.of_this_machine, required=True, metavar="DIR", help="the new folder")
    p.add_argument(
        "--dtype", choices=("float32", "bfloat16"), default="float32", help="of weights; default %(default)s"
    )
    _number(p, "--shard-mb", 4000, "megabytes of a file of weights at most, but for a larger tensor")
    return p


def tokenizer() -> flags.Parser:
    p = flags.parser(
        "tokenizer",
        "Trains a tokenizer of pictures or sounds: a network that makes ids or vectors of them, and pictures or sounds "
        "of these.",
        "mot tokenizer train photos/ --kind fsq --out tokenizers/photos",
    )
    p.add_argument("action", choices=("train",), help="what to do")
    p.add_argument("inputs", nargs="+", help="files or folders, as `mot data prepare` takes them")
    kinds = "; ".join(f"{name}: {kind.about}" for name, kind in KINDS.items())
    p.add_argument("--kind", choices=KINDS, required=True, help=kinds)
    p.add_argument("--out", type=flags.of_this_machine, required=True, metavar="DIR", help="the new folder")
    _add_reading(
        p, 'what a row holds, as "image:images"; with that of `mot data prepare` the same documents are held out'
    )
    _number(p, "--held-out", 0.05, "fraction of documents held out, one at least, where the files name no split")
    _number(p, "--sample", 50_000, "documents at most, the first")
    usual = TokenizerSettings("fsq")
    levels = ",".join(map(str, usual.levels))
    p.add_argument("--levels", help=f"of fsq: levels of each feature, whose product is the ids; default {levels}")
    for name, about in SIZES.items():
        default = getattr(usual, name)
        shown = about if name == "hop" else f"{about}; default {default:g}"
        p.add_argument(f"--{name}", type=type(default), help=shown)
    return p


SIZES = {  # options of `mot tokenizer train` that are numbers, and what each is
    "side": "of pictures: pixels to which they are brought",
    "patch": "of pictures: pixels of a token's side",
    "rate": "of sounds: samples a second",
    "hop": "of sounds: samples of a token; default 20 ms",
    "ids": "of vq and rvq: codes of a codebook",
    "layers": "of rvq: codebooks",
    "features": "of kl: features of a token's vector",
    "width": "channels of the network",
    "blocks": "residual blocks of its encoder, and of its decoder",
    "steps": "of training at most",
    "batch": "pictures or pieces of sounds a step",
    "lr": "the greatest rate",
    "patience": f"measurements without a gain, of {TOKENIZER_MEASURED} in all, after which training ends",
    "seed": "another seed begins with other weights",
}


def tokenizer_settings(options) -> TokenizerSettings:
    """What a command line of `mot tokenizer train` asks for; raises `UserError` where it cannot be had."""
    kind = KINDS[options.kind]
    said = {name: value for name in ("levels", *SIZES) if (value := getattr(options, name)) is not None}
    others = {name for names in OF_MEDIUM.values() for name in names} | {n for k in KINDS.values() for n in k.sizes}
    if odd := [name for name in said if name in others - {*OF_MEDIUM[kind.medium], *kind.sizes}]:
        raise UserError(f"--{odd[0]}={said[odd[0]]}: is not for --kind {options.kind}; leave it out")
    if "levels" in said:
        words = said["levels"].split(",")
        if not all(re.fullmatch(r"\d{1,4}", word, re.ASCII) for word in words):
            raise UserError(f"--levels={options.levels}: must be whole numbers with commas between, as 8,5,5,5")
        said["levels"] = tuple(map(int, words))
    settings = TokenizerSettings(options.kind, **said)
    faults = [*tokenizer_faults(settings)]
    if not 0 < options.held_out < 1:
        faults.append(f"--held-out={options.held_out}; must be above 0 and below 1; 0.05 is usual")
    if options.sample < 2:
        faults.append(f"--sample={options.sample}; must be 2 or more; raise it")
    if options.out.exists() or options.out.is_symlink():
        faults.append(f"--out {options.out}: exists; nothing was overwritten; name a new folder")
    if faults:
        raise UserError("nothing was trained:\n  " + "\n  ".join(faults))
    refusals.folder(options.out.parent, "--out")
    return settings


def coords() -> flags.Parser:
    p = flags.parser(
        "coords",
        "Draws how large activations are at several widths, with optim.transfer=mup and without.",
        "mot coords --config=configs/digits.py:arch=mot,size=smoke --widths 64,128,256",
    )
    flags.add_config(p)
    p.add_argument("--widths", default="64,128,256", help="of the first stream; all others in proportion; %(default)s")
    p.add_argument("--steps", default="1,2,4", help="steps on one batch after which to look; default %(default)s")
    p.add_argument(
        "--out", type=flags.of_this_machine, default=Path("coords.png"), help="the picture; default %(default)s"
    )
    return p


def plan() -> flags.Parser:
    p = flags.parser(
        "plan",
        "Compiles a configuration's step for TPUs that are not there, and says whether it fits and how fast it can be.",
        "mot plan --config=configs/ladder.py:rung=7b,arch=mot --topology v5p:4x4x4 --config.mesh.fsdp=16",
    )
    flags.add_config(p, default="configs/ladder.py")
    p.add_argument("--topology", help=f"a slice: {chips.EXAMPLES}; any shape")
    p.add_argument("--out", type=flags.of_this_machine, help="a file for all figures, as JSON")
    p.add_argument("--search", action="store_true", help="try meshes and remat policies; the fastest that fits")
    p.add_argument(
        "--quick",
        action="store_true",
        help="half the time: the compiler's least effort, its worst figures; not where mesh.fsdp is 1",
    )
    p.add_argument("--ladder", action="store_true", help="every rung and architecture, into docs/reference/plan.*")
    return p


def launch() -> flags.Parser:
    p = flags.parser(
        "launch",
        "Runs a command of mot on this machine or on a cluster: shows it, submits it, follows it.\n\n"
        "What is launched stands after --. `status NAME`, `logs NAME` and `stop NAME` follow it or end it.\n"
        "`keep NAME` makes TPU VMs anew that were preempted.",
        "mot launch --target local --name first -- train --config=configs/digits.py:arch=mot,size=smoke\n"
        "  mot launch logs first",
    )
    p.add_argument(
        "words",
        nargs="*",
        metavar="-- COMMAND",
        help="train or sweep, and all that it takes; or status, logs, stop or keep, and a name",
    )
    p.add_argument("--target", choices=job.TARGETS, help="where; launch/targets has a template for each")
    p.add_argument("--name", help="a-z, 0-9 and -, a letter first, 63 at most; default: the run's")
    p.add_argument("--dry-run", action="store_true", help="show the files that would be submitted, and write nothing")
    p.add_argument("--unplanned", action="store_true", help="submit without compiling for --topology first")
    p.add_argument("--follow", action="store_true", help="of logs: go on as lines come")
    for name, option in job.OPTIONS.items():
        text = f"{option.about}; for {', '.join(option.targets)}"
        if option.default is False:
            p.add_argument(f"--{name}", action="store_true", default=None, help=text)
            continue
        text += f"; default {option.default}" if option.default else ""
        p.add_argument(f"--{name}", help=text + (f"; as {option.example}" if option.example else ""))
    return p


def list_checkpoints() -> flags.Parser:
    p = flags.parser(
        "checkpoint list",
        "A run's checkpoints: steps, sizes, ages, whether each verifies, and what is passed over.",
        "mot checkpoint list runs/digits-mot-smoke",
    )
    p.add_argument("run", type=as_path, help="a run directory")
    return p


def verify_checkpoints() -> flags.Parser:
    p = flags.parser(
        "checkpoint verify",
        "Compares every file and every array with its digest; exit code 2 where one is damaged.",
        "mot checkpoint verify runs/digits-mot-smoke",
    )
    p.add_argument("run", type=as_path, help="a run directory")
    p.add_argument("--step", type=int, help="which checkpoint; default all")
    return p


def show_checkpoint() -> flags.Parser:
    p = flags.parser(
        "checkpoint show",
        "Paths, shapes and dtypes of a checkpoint's arrays; of one alone its statistics.",
        "mot checkpoint show runs/digits-mot-smoke embed",
    )
    p.add_argument("run", type=as_path, help="a run directory")
    p.add_argument("path", nargs="?", default="", help="an array's path, or a regular expression; default all")
    p.add_argument("--step", type=int, help="which checkpoint; default the newest")
    return p


def diff_checkpoints() -> flags.Parser:
    p = flags.parser(
        "checkpoint diff",
        "Two checkpoints, path by path: what is absent, has another shape, or differs, and by how much.",
        "mot checkpoint diff runs/digits-mot-smoke:1 runs/digits-mot-smoke:2",
    )
    p.add_argument("a", metavar="RUN:STEP", help="a run directory and a step; without one the newest")
    p.add_argument("b", metavar="RUN:STEP", help="what it is compared with")
    return p


PARSERS = {
    "demo": demo,
    "train": train,
    "sweep": sweep,
    "config": config,
    "evaluate": evaluate,
    "replay": replay,
    "probe": probe,
    "sample": sample,
    "list": list_checkpoints,
    "verify": verify_checkpoints,
    "show": show_checkpoint,
    "diff": diff_checkpoints,
    "prepare": prepare,
    "inspect": inspect,
    "import": import_,
    "export": export,
    "report": report,
    "plan": plan,
    "launch": launch,
    "coords": coords,
    "tokenizer": tokenizer,
}


def judged_data(p: flags.Parser, options):
    """The options of `data prepare` as they are meant; ends, or raises `UserError`, where they cannot be."""
    if bool(options.inputs) == bool(options.seqio):
        p.error("give files or folders, or --seqio=NAME")
    return asked.judge(options)

"""The configuration: frozen dataclasses, each key with a comment that says what it is for.

The comments are documentation: `mot config` and the reference pages show them.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from mot.config import checks
from mot.config.routers import ROUTERS
from mot.errors import UserError


class ConfigError(UserError):
    """A configuration that cannot be run; `faults` lists every reason."""

    def __init__(self, faults: Iterable[str]):
        self.faults = list(faults)
        count = f"{len(self.faults)} fault" + "s" * (len(self.faults) > 1)
        super().__init__(f"the configuration has {count}:\n" + "\n".join(f"  {fault}" for fault in self.faults))


@dataclass(frozen=True)
class Diffusion:
    """How a stream of latents is noised, conditioned and weighed (`diffusion.py`). t is the noise level: 0 = data."""

    time: str  # t enters by being added to the inputs, or by the norms' scales and shifts
    copies: str  # noised: later tokens see the noised unit (Transfusion). both: a clean copy, which alone they see
    time_distribution: str  # the distribution of t
    shift: float  # of t towards noise, for large units
    max_noise: float  # the most noise of a unit whose document goes on with text
    drop_rate: float  # of units, the fraction trained without what comes before them, which guidance needs
    loss_centre: float  # c: the loss weighs c / its running mean; 0 = as it is


@dataclass(frozen=True)
class Stream:
    """A kind of token. Discrete: ids `first_id .. first_id + ids - 1` of the one vocabulary. Else vectors, latents."""

    modality: str  # what metrics report it under
    width: int  # D, the residual's; discrete streams share one
    ffn: int  # F, the hidden size of its FFN
    budget: int  # C, its tokens in each row; 0 = its part of data.length
    max_tokens: (
        int  # its tokens in one document at most: longer ones are cut between sentences and spans; 0 = the budget
    )
    first_id: int  # of the one vocabulary; 0 for latents
    ids: int  # so many, from first_id on; 0 for latents
    latent: int  # P, features of a token; 0 = it has ids
    objective: str  # next_token, of ids; flow, x or ddpm, of latents; none: inputs only. `mot.config.objectives` has a
    # row for each.
    loss_weight: float  # lambda
    diffusion: Diffusion  # counts for latents with an objective

    @property
    def diffuses(self) -> bool:
        return bool(self.latent) and self.objective != "none"

    @property
    def copies(self) -> int:
        """How often a row holds each of its tokens."""
        return 2 if self.diffuses and self.diffusion.copies == "both" else 1


@dataclass(frozen=True)
class Towers:
    """Which tower (parameter set) serves each stream, by component; a tower is named by its first stream."""

    attn: dict[str, str]  # stream -> tower, of QKV and O
    ffn: dict[str, str]  # stream -> tower, of the FFN
    norm: dict[str, str]  # stream -> tower, of the norms
    stop_gradients: tuple["StopGradient", ...]  # between towers: what a stream's loss does not train


@dataclass(frozen=True)
class StopGradient:
    """No gradient flows from one stream's queries into the keys and values of another attention tower's stream."""

    queries: str  # the stream whose loss stops
    keys: str  # before this stream's keys and values


@dataclass(frozen=True)
class Experts:
    """The sets of parameters of one tower's FFN, or of its QKV and O, and the router that chooses among them."""

    experts: int  # E; 0 = a single set and no router, and nothing below counts
    active: int  # A, the sets that a token passes through; on average, where experts choose
    width: int  # F of each expert, of an FFN alone; 0 = that of the stream the tower is named by
    shared: int  # F of a set beside them that every token passes through; 0 = none
    shared_gate: bool  # times a sigmoid of the token (Qwen2-MoE)
    router: str  # token: tokens choose experts. expert: experts choose tokens, and so LOOK AT LATER ONES of the row.
    # `mot.config.routers` has a row for each.
    score: str  # what a router's logits become
    normalise: bool  # a token's weights add up to 1
    capacity: float  # 0 = dropless; else an expert takes at most capacity * active * tokens of the row / experts
    overflow: str  # where capacity is short: the earliest tokens, or those of highest score, which LOOKS AT LATER ONES.
    # Either way capacity counts the row's real tokens, also later ones: that they are there counts, not what they are.
    balance: str  # none, a loss, or a bias of the choice that is no parameter
    balance_rate: float  # the loss's weight, or the bias's step
    z_loss: float  # weight of log(sum exp)^2 of the router's logits
    jitter: float  # the router's input is multiplied by 1 - jitter to 1 + jitter in training

    @property
    def causal(self) -> bool:
        """Does no token's result depend on what later ones are?"""
        return not self.experts or (self.router in ROUTERS and ROUTERS[self.router].causal(self))


@dataclass(frozen=True)
class Model:
    """The transformer that all towers share: depth, heads, and how it is computed."""

    layers: int  # L
    dense_layers: int  # the first so many have no experts
    sparse_every: int  # of the others, every n-th has; 1 = all
    heads: int  # N, of queries
    kv_heads: int  # K, of keys and values; heads are a multiple
    head_size: int  # H, features of a head; even, for RoPE
    norm: str  # pre: x + f(norm(x)); post: x + norm(f(x)), the MoT paper's (Swin) form
    norm_eps: float  # added to the mean square
    qk_norm: str  # of queries and keys, by head
    rope_theta: float  # base of RoPE's wavelengths
    tied: bool  # the head is the embedding
    scan: bool  # lax.scan over layers: flat compile time; unrolled is faster on CPU
    remat: str  # what backward recomputes: nothing, all but projections' results, whole blocks; offload: these too, and
    # what enters each block waits in the host's memory
    dtype: str  # of compute; parameters are float32
    attention: str  # its backend (`attention.BACKENDS`): chunked, reference; TPU: splash; GPU: triton, mosaic, cudnn
    dispatch: str  # how experts' matrices are multiplied
    seed: int  # of the initial values, and of a router's jitter


@dataclass(frozen=True)
class Mesh:
    """How many devices stand along each axis, and which of them split what (`sharding.py`)."""

    data: int  # rows; 0 = all devices that the other axes leave
    fsdp: int  # rows, parameters and optimiser state
    expert: int  # rows, and a tower's experts
    context: int  # parts of a row
    tensor: int  # heads, hidden units, vocabulary
    slices: int  # `data` lies over so many slices with a slower network between them
    exchange: str  # gather: everyone's rows to everyone; all_to_all: rows to their experts, in buffers
    buffer: float  # all_to_all: room in each buffer, times what an even load needs; what overflows is dropped, counted
    rules: dict[str, str]  # logical axis -> axes above, with commas between; "" does not split it


@dataclass(frozen=True)
class Init:
    """Where the first parameters come from (`upcycle.py`)."""

    run: str  # a run directory; "" = random
    step: int  # of its checkpoint; 0 = the newest
    noise: float  # on copies, relative to a matrix's root mean square


@dataclass(frozen=True)
class Objective:
    """The loss of a batch, over what all its tokens weigh (`objectives.py`)."""

    z_loss: float  # weight of log(sum exp)^2 of the logits
    per: str  # Z: the weight of all tokens (Chameleon), or of each modality (Transfusion)
    chunk: int  # tokens of a row whose logits exist at once


@dataclass(frozen=True)
class Stage:
    """The mixture of the documents taken in from a step on; those that wait by then (`lookahead`) still come."""

    step: int  # the first with these shares
    shares: dict[str, float]  # of the sources, as data.shares


@dataclass(frozen=True)
class Data:
    """What is read, in which mixture, and how it is packed into rows (docs/howto/own-data.md)."""

    batch: int  # rows in a global batch
    seed: int  # of the order of documents
    lookahead: int  # documents that wait for a row where they fit
    sources: dict[str, str]  # name -> where it lies: "embedded", a dataset's folder or address, or "seqio:<mixture>"
    shares: dict[str, float]  # of the sources, in what `per` counts; those not named have none
    per: str  # documents, tokens, or a modality: its tokens
    stages: tuple[Stage, ...]  # other shares later
    length: int  # tokens of a row at most, divided among streams with budget 0 as the mixture divides; 0 = as written
    blocks: str  # what sees itself both ways: units of latents; what precedes a document's last one; whole documents
    verify: bool  # every file's digest before training; sizes are always looked at
    workers: int  # processes that read and pack; 0 = a thread
    timeout: float  # seconds that a batch may take to arrive
    max_skipped: int  # documents that could not be read or placed, before the run stops


@dataclass(frozen=True)
class Rule:
    """For the parameters whose path holds a match; the first rule that matches counts."""

    match: str  # regular expression
    lr: float  # factor on the learning rate; 0 freezes
    decay: float  # decoupled weight decay


@dataclass(frozen=True)
class Optim:
    """AdamW, its rate by step and by parameter (`optim.py`)."""

    lr: float  # the peak learning rate, after the warm-up
    end_lr: float  # the rate at run.steps
    warmup: int  # steps of a linear rise to the peak
    schedule: str  # how the rate falls after it; wsd: not before the last decay_steps
    decay_steps: int  # wsd alone: length of the final decay
    beta1: float  # of the running mean of gradients
    beta2: float  # of the running mean of their squares
    eps: float  # added to the root of the mean square
    moments: str  # how the running means of gradients and their squares are kept; arithmetic is float32
    clip: float  # of the global gradient norm
    accumulate: int  # microbatches in a step
    ema: float  # of the parameters; 0 = none
    patience: int  # steps in a row that may be skipped for a gradient that is not finite
    freeze: (
        str  # streams or modalities, with commas between: all that they use; `text.ffn` that part alone (params.PARTS)
    )
    rules: tuple[Rule, ...]  # one's own; they come before
    base_rules: tuple[Rule, ...]  # for what none of `rules` matches


@dataclass(frozen=True)
class Run:
    """Where a run's directory lies, how long it trains, and how often it is evaluated and saved."""

    root: str  # folder of runs
    name: str  # of this run's folder in it
    steps: int  # batches it trains on in all
    eval_every: int  # steps between held-out evaluations; written as 0, a tenth of all
    eval_batches: int  # held-out batches of each
    save_every: int  # steps between checkpoints; written as 0, a quarter of all
    keep: int  # checkpoints that stay


@dataclass(frozen=True)
class Config:
    """All that decides a run."""

    run: Run
    streams: dict[str, Stream]  # in the order of their ids
    towers: Towers
    attn: dict[str, Experts]  # by tower
    ffn: dict[str, Experts]  # by tower
    model: Model
    mesh: Mesh
    init: Init
    objective: Objective
    data: Data
    optim: Optim

    def __post_init__(self):
        if faults := list(checks.faults(self, set())):
            raise ConfigError(faults)

    @property
    def causal(self) -> bool:
        """Does no token's result depend on later ones, other than by bidirectional spans?"""
        return all(sets.causal for sets in (*self.attn.values(), *self.ffn.values()))

    @property
    def stacks(self) -> tuple[str, ...]:
        """Which stack each layer belongs to: `main`, or `sparse` where towers have experts."""
        m = self.model
        routed = any(s.experts for s in (*self.attn.values(), *self.ffn.values()))

        def place(i):
            return (i - m.dense_layers + 1) % max(m.sparse_every, 1) == 0

        return tuple("sparse" if routed and i >= m.dense_layers and place(i) else "main" for i in range(m.layers))

    @property
    def vocab(self) -> int:
        return max((s.first_id + s.ids for s in self.streams.values() if not s.latent), default=0)

    @property
    def length(self) -> int:
        """T, the tokens of a row."""
        return sum(s.budget for s in self.streams.values())

    @property
    def modalities(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(s.modality for s in self.streams.values()))

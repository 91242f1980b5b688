"""The configuration: frozen dataclasses, each key with a comment that says what it is for.

The comments are documentation: `mot config` and the reference pages show them.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

from mot.config import checks, depth
from mot.config.axes import names
from mot.config.objectives import NONE, OBJECTIVES
from mot.config.routers import ROUTERS
from mot.errors import Fault, UserError


class ConfigError(UserError):
    """A configuration that cannot be run; `faults` lists every reason."""

    def __init__(self, faults: Iterable[Fault | str]):
        self.faults = [str(fault) for fault in faults]
        count = f"{len(self.faults)} fault" + "s" * (len(self.faults) > 1)
        super().__init__(f"the configuration has {count}:\n" + "\n".join(f"  {fault}" for fault in self.faults))


@dataclass(frozen=True)
class Diffusion:
    """How a stream of latents is noised and weighed (`objectives/diffusion.py`). t is the noise level: 0 = data."""

    time: str  # how the noise level t enters: added to the inputs, as scales and shifts of the norms, or beside the
    # inputs, with which its waves go through two layers (pi0)
    time_features: str  # what tells the noise level: a small network of two matrices, or DiT's with biases; mlp has its
    # own
    time_of_clean: bool  # clean vectors are told that their level is 0 (BAGEL), and not nothing, as text is
    copies: str  # noised: later tokens see the noised unit (Transfusion), or what latent leaves of it. both: they see
    # a clean copy of it alone
    time_distribution: str  # the distribution of t in training
    shift: float  # moves t towards noise, for large units; 1 = not at all
    max_noise: float  # the highest t of a unit after which its document goes on with text
    drop_rate: float  # the fraction of units trained without what comes before them, which guidance needs
    loss_centre: float  # c: the loss is multiplied by c / its running mean; 0 = not at all


@dataclass(frozen=True)
class Masking:
    """Which ids of a stream are hidden from the model, which predicts them (`objectives/masked.py`).

    Each is hidden with probability t, its ratio; a hidden id is the configuration's `mask_id` to the model.
    """

    by: str  # what has a ratio of its own: a unit, which sees itself both ways; a document (data.blocks=document)
    distribution: str  # how ratios are drawn from least to most
    least: float  # the lowest ratio; that of most = one ratio for all
    most: float  # the highest ratio
    weighting: str  # the weight of a hidden id's loss
    shift: bool  # the token before it predicts a hidden id (LLM2Vec's MNTP), and not its own place; of documents alone
    before_text: float  # factor on t of a unit after which its document goes on with text; 0 = nothing of it is hidden
    drop_rate: float  # the fraction of units trained without what comes before them, which guidance needs


@dataclass(frozen=True)
class Prediction:
    """How a stream with objective latent hides parts of a unit and predicts their states (`objectives/latent.py`)."""

    targets: str  # whose states are predicted. ema: those of optim.ema's average, layer-normed, without a gradient
    # (I-JEPA). own: the model's own, with theirs, which sigreg keeps from collapsing (LeJEPA)
    sigreg: float  # lambda: the loss is 1 - lambda times the prediction's and lambda times SIGReg of the states
    slices: int  # the random directions along which SIGReg looks
    columns: int  # tokens of a row of a unit, which lie row by row; 1 = a sequence
    blocks: int  # how many blocks of a unit are hidden and predicted
    least_block: float  # the least share of a unit in a block,
    most_block: float  # and the greatest
    least_aspect: float  # the least ratio of a block's height to its width,
    most_aspect: float  # and the greatest
    least_context: float  # the least share of a unit in the square that is seen, but for what is hidden of it,
    most_context: float  # and the greatest
    layers: int  # of the predictor
    width: int  # of the predictor's residual
    ffn: int  # the hidden size of the predictor's FFN


@dataclass(frozen=True)
class Entry:
    """How a stream's vectors enter the model (`model/entries.py`); ids ignore it."""

    kind: str  # what makes a token's residual of its vectors
    bias: bool  # of linear: it adds a bias, and so does the matrix by which what is predicted leaves
    fold: int  # vectors of the data that one token carries, side by side: a unit takes so many times fewer tokens
    queries: int  # of a resampler: its learned queries, which are a unit's tokens; 0 for the others
    layers: int  # of a resampler: its layers; 0 for the others


@dataclass(frozen=True)
class Stream:
    """A kind of token. Discrete: ids `first_id .. first_id + ids - 1` of the one vocabulary. Else vectors, latents."""

    modality: str  # the name under which metrics report it
    width: int  # D, the width of its residual; all discrete streams have the same
    ffn: int  # F, the hidden size of its FFN
    budget: int  # C, its places in each row; 0 = its part of data.length, as the mixture divides it
    max_tokens: int  # its most tokens in one document: longer ones are cut between sentences and spans; 0 = the budget
    first_id: int  # the first of its ids in the one vocabulary; 0 for latents. A range may lie inside another one, as
    # images' in Chameleon's text: its ids are then of this stream alone
    ids: int  # the number of its ids; 0 for latents
    latent: int  # P, the features of a token; 0 = its tokens are ids
    place_table: int  # of latents: the rows, and columns, of learned tables that are added to a token by its row and
    # column in its unit; 0 = none
    rope_seconds: float  # from one frame of a unit to the next, or from token to token where a unit has no rows; 0 = a
    # frame, or token, is one position. Layers of a sound lie one after another: a later one's seconds run on
    rope_gap: int  # positions of RoPE that are left free before each of its units (Cosmos 3)
    objective: str  # what its tokens learn: a row of `mot.config.objectives`
    loss_weight: float  # lambda: its modality's loss is multiplied by it
    diffusion: Diffusion  # of latents that have an objective; ids ignore it
    masking: Masking  # of ids whose objective is masked; others ignore it
    prediction: Prediction  # of latents whose objective is latent; others ignore it
    entry: Entry  # how its vectors enter; ids ignore it
    cross_every: int  # 0 = its tokens are part of the joint attention. n: they are not; before every n-th layer the
    # tokens after a unit see it by a cross-attention whose gates begin at 0 (Flamingo)
    ends_prefix: bool  # of vectors that are read, with data.blocks=prefix: the prefix ends before its units, which see
    # it and are seen by what follows, as a robot's state in pi0
    representation: str  # which representation of its modality's units it holds, as datasets name it; "" = the
    # modality's name

    @property
    def holds(self) -> str:
        """The representation of a unit that its tokens are."""
        return self.representation or self.modality

    @property
    def diffuses(self) -> bool:
        """Are its vectors noised?"""
        return bool(self.latent) and self.objective in OBJECTIVES and OBJECTIVES[self.objective].denoises

    @property
    def predicts(self) -> bool:
        """Are parts of its units hidden, and their states predicted?"""
        return bool(self.latent) and self.objective == "latent"

    @property
    def is_drawn(self) -> bool:
        """Can a model make its tokens: ids, or vectors from noise?"""
        return self.diffuses or not (self.latent or self.objective == NONE)

    @property
    def masks(self) -> str:
        """By what its ids are hidden, unit or document; "" where they are not."""
        return self.masking.by if self.objective == "masked" else ""

    @property
    def drop_rate(self) -> float:
        """The fraction of its units that are trained without what comes before them."""
        if self.diffuses:
            return self.diffusion.drop_rate
        return self.masking.drop_rate if self.masks else 0.0

    @property
    def features(self) -> int:
        """The numbers that a token of vectors carries; 0 of ids."""
        return self.latent * self.entry.fold

    @property
    def copies(self) -> int:
        """How often a row holds each of its tokens."""
        return 2 if self.latent and self.objective != NONE and self.diffusion.copies == "both" else 1


@dataclass(frozen=True)
class Towers:
    """Which tower (parameter set) serves each stream, by component; a tower is named by its first stream.

    A name serves every layer; `0:4 image, 4:20 text, 20:24 image` names towers by ranges of layers (`depth.py`).
    """

    attn: dict[str, str]  # stream -> the tower of its QKV and O
    ffn: dict[str, str]  # stream -> the tower of its FFN
    norm: dict[str, str]  # stream -> the tower of its norms; the final norm follows the last layer's
    stop_gradients: tuple["StopGradient", ...]  # pairs of streams: the loss of the first does not train keys and values
    # of the second


@dataclass(frozen=True)
class StopGradient:
    """No gradient flows from one stream's queries into the keys and values of another attention tower's stream."""

    queries: str  # the stream whose loss stops
    keys: str  # the stream whose keys and values it does not train


@dataclass(frozen=True)
class Experts:
    """The sets of parameters of one tower's FFN, or of its QKV and O, and the router that chooses among them."""

    experts: int  # E, the number of experts; 0 = one set without a router, and nothing below counts
    active: int  # how many experts a token passes through; on average, where experts choose
    width: int  # F of each expert of an FFN; 0 = that of the stream by which the tower is named
    shared: int  # F of an FFN beside the experts that every token passes through; 0 = none
    shared_gate: bool  # multiply the shared FFN by a sigmoid of the token (Qwen2-MoE)
    router: str  # who chooses whom: a row of `mot.config.routers`
    score: str  # what turns a router's logits into weights
    normalise: bool  # make a token's weights add up to 1
    weight_scale: float  # a token's weights are multiplied by it, after `normalise` (DeepSeek-V3); 1 = not at all
    groups: int  # the experts lie in so many groups of equal size, and a token chooses of some (DeepSeek-V3); 1 = all
    active_groups: int  # of how many groups a token chooses: those whose two best experts it scores highest
    capacity: float  # 0 = dropless; else an expert takes at most capacity * active * tokens of the row / experts
    overflow: str  # who keeps a place where capacity is short: the earliest tokens, or those of highest score, which
    # LOOKS AT LATER ONES. Either way capacity counts the row's real tokens, also later ones: that they are there
    # counts, not what they are.
    balance: str  # what keeps loads even
    balance_rate: float  # the loss's weight, or the bias's step
    balance_loss: float  # of bias alone: the weight of the loss by rows that is added beside it (DeepSeek-V3); 0 = none
    z_loss: float  # weight of the router's z-loss, log(sum exp)^2 of its logits
    jitter: float  # in training the router's input is multiplied by a random number from 1 - jitter to 1 + jitter

    @property
    def row_balance(self) -> float:
        """The weight of the balance loss that is a row's own."""
        return self.balance_rate if self.balance == "loss" else self.balance_loss

    @property
    def causal(self) -> bool:
        """True if no token's result depends on what later tokens are."""
        return not self.experts or (self.router in ROUTERS and ROUTERS[self.router].causal(self))


@dataclass(frozen=True)
class RopeScaling:
    """How RoPE's wavelengths are stretched, for rows longer than those of a model's first training (`model/ops.py`)."""

    kind: str  # which wavelengths are stretched
    factor: float  # by how much
    length: int  # of llama3 and yarn: the tokens of a row in the first training; 0 for the others
    least_turns: float  # of llama3 and yarn: pairs that turn fewer times in such a row are stretched in full, ...
    most_turns: float  # ... those that turn more often not at all, and those between in part; 0 for the others
    amplitude: (
        float  # queries' and keys' rotated features are multiplied by it: YaRN's 0.1 log(factor) + 1; 1 = not at all
    )


@dataclass(frozen=True)
class Model:
    """The transformer that all towers share: depth, heads, and how it is computed."""

    layers: int  # L, the number of layers
    dense_layers: int  # the number of first layers that have no experts
    sparse_every: int  # of the other layers every n-th has experts; 1 = all
    heads: int  # N, the number of query heads
    kv_heads: int  # K, the number of key and value heads; N is a multiple of it
    head_size: int  # H, the features of a head; even, for RoPE
    norm: str  # where norms stand: before attention and FFN, after them, or both
    norm_eps: float  # is added to the mean square in a norm
    qk_norm: str  # the norm of queries and keys, before they turn
    rope_theta: float  # base of RoPE's wavelengths
    rope_features: int  # the first so many features of a head turn, and the others do not; 0 = all turn
    rope_scaling: RopeScaling  # of the joint attention; a resampler's has none
    rope_sections: tuple[int, ...]  # how many of a head's pairs turn by time, by row and by column (Qwen2-VL); () = all
    # turn by a token's one place
    rope_interleaved: bool  # time, row and column take pairs in turn (Qwen3-VL), not one after another
    rope_time_last: bool  # time has the last pairs, those of the longest waves, and not the first (ERNIE 4.5)
    rope_reset: bool  # rows and columns count from 0 in each unit (Cosmos 3), not from where the unit begins
    rope_per_second: float  # positions of RoPE in a second, for streams that have rope_seconds; 0 = there are none
    tied: bool  # the embedding is also the head
    scan: bool  # lax.scan over layers keeps compile time flat; unrolled layers are faster on CPU
    remat: str  # what backward recomputes: nothing, all but projections' results, whole blocks; offload: these too, and
    # what enters each block waits in the host's memory
    dtype: str  # the dtype of compute; parameters are float32
    query_size: int  # scores are divided by its root (Gemma 2's query_pre_attn_scalar); 0 = by that of head_size
    attention_cap: float  # c: scores of the joint attention become c tanh(score / c) (Gemma 2); 0 = they stay
    logits_cap: float  # the same of the logits of ids
    attention: str  # the backend of attention: chunked and reference work everywhere; TPU: splash; GPU: triton, mosaic,
    # cudnn
    dispatch: str  # how experts' matrices are multiplied: blocked is for CPU, einsum for reading; ragged; TPU: gmm;
    # GPU: triton, mosaic
    seed: int  # decides initial values, noise, jitter and dropout
    dropout: float  # in training, the share of what attention and FFN add to the residual that is dropped; 0 = none.
    # Cross-attention, a resampler and a predictor drop nothing
    activation: str  # what gates the hidden units of FFNs
    norm_offset: bool  # norms multiply by 1 + w, w beginning at 0 (Gemma), in place of w beginning at 1
    embed_scale: bool  # what the embedding gives is multiplied by sqrt(width) (Gemma); a tied head is not
    qkv_bias: bool  # queries, keys and values have biases (Qwen2)

    @property
    def rope_pairs(self) -> int:
        """How many pairs of a head's features turn."""
        return (self.rope_features or self.head_size) // 2

    @property
    def rope_axes(self) -> int:
        """How many integers RoPE reads of a token: its one place, or time, row and column."""
        return len(self.rope_sections) or 1


@dataclass(frozen=True)
class Mesh:
    """How many devices stand along each axis, and which of them split what (`sharding.py`)."""

    data: int  # devices along the axis that splits rows; 0 = all that the other axes leave
    fsdp: int  # devices along the axis that splits rows, parameters and optimiser state
    expert: int  # devices along the axis that splits rows and a tower's experts
    context: int  # devices along the axis that splits every row
    tensor: int  # devices along the axis that splits heads, hidden units and the vocabulary
    slices: int  # how many slices, joined by a slower network, `data` lies over
    exchange: str  # how rows reach experts on other devices. gather: all rows to all devices. all_to_all: each row to
    # its experts, in buffers
    buffer: float  # all_to_all: the size of a buffer, times an even load; what overflows is dropped and counted
    rules: dict[str, str]  # logical axis -> the mesh axes that split it, with commas between; "" does not split it


@dataclass(frozen=True)
class Init:
    """Where the first parameters come from (`train/upcycle.py`, `train/growth.py`)."""

    run: str  # a run directory whose weights this run begins with; "" = random weights
    step: int  # of its checkpoint; 0 = the newest
    state: str  # what is taken: weights, or all (optimiser, place in the data, metrics), to go on as another run
    match: str  # a regular expression: parameters whose path holds a match come from there, the rest is new; "" = all
    noise: float  # is added to every copy but the first, relative to the matrix's root mean square
    deeper: (
        str  # how a source with fewer layers gives more: stack (2405.15319), identity (2401.02415); "" = it must not
    )
    wider: str  # how a narrower source gives wider matrices: clone (2409.12903); "" = it must not


TOKENS_OF_A_PAIR = 8  # of the smaller budget, where nobody says how many pairs a row has


@dataclass(frozen=True)
class Contrastive:
    """Which parts of a document belong together, among all those of a batch (`objectives/contrastive.py`)."""

    kind: str  # infonce: a softmax over the batch, both ways (CLIP); sigmoid: each pair by itself (SigLIP); "" = none
    weight: float  # its loss, a mean over pairs, is multiplied by it and added to that of the tokens
    streams: str  # two, with a comma between: a document's parts in both are a pair, and do not see each other; one:
    # its part in two passes with other dropout (SimCSE)
    pool: str  # what stands for a part: the mean of its states, the last, or that of the token of a written id; two,
    # with a comma between, where the streams differ in it
    width: int  # features of the space in which they are compared; 0 = the pooled states as they are
    pairs: int  # the most in a row, what is beyond is left out and counted; 0 = one for 8 tokens of the smaller budget
    temperature: float  # the first: it is learnt, but where a rule freezes contrast/scale
    bias: float  # the first, of sigmoid alone: it is learnt likewise
    skip_equal: bool  # documents with the same ids in one of the streams are no negatives of each other

    @property
    def pools(self) -> dict[str, str]:
        """What stands for a part, by stream; empty without a term."""
        streams, given = names(self.streams), names(self.pool)
        return dict(zip(streams, given * len(streams), strict=False)) if self.kind else {}

    @property
    def weighs(self) -> bool:
        """Is the term part of the loss? A measure may leave it out, of a batch whose parts lie apart nonetheless."""
        return bool(self.kind) and self.weight > 0


@dataclass(frozen=True)
class Objective:
    """The loss of a batch, over what all its tokens weigh (`objectives/losses.py`)."""

    z_loss: float  # weight of the z-loss, log(sum exp)^2 of the logits
    per: str  # what a loss is divided by: the weight of all tokens (Chameleon), or of its modality's (Transfusion)
    chunk: int  # tokens of a device whose logits exist at once
    contrastive: Contrastive  # a term beside that of the tokens
    common_target: float  # decay of the running means by which each modality's loss is scaled to that of all; 0 = not
    # at all (`objectives/balance.py`)


@dataclass(frozen=True)
class Stage:
    """The mixture of the documents taken in from a step on; those that wait by then (`lookahead`) still come."""

    step: int  # the first step whose documents are taken with these shares
    shares: dict[str, float]  # of the sources, as data.shares


@dataclass(frozen=True)
class Role:
    """Which streams hold a unit (an image, a clip) that has these representations and lies so in its document."""

    streams: str  # names with commas between, in document order; `NAME:input` is clean and without a loss there
    place: str  # first: nothing but its own modality comes before it; last: nothing else after it; only: neither;
    # middle: both; "" = anywhere
    source: str  # of data.sources; "" = of all

    @property
    def named(self) -> tuple[tuple[str, bool], ...]:
        """The streams, in document order, and whether the unit is an input there."""
        parts = [part.strip().partition(":") for part in self.streams.split(",")]
        return tuple((name, is_input == "input") for name, _, is_input in parts)


@dataclass(frozen=True)
class Data:
    """What is read, in which mixture, and how it is packed into rows (docs/howto/own-data.md)."""

    batch: int  # rows in a global batch
    seed: int  # decides the order of documents
    lookahead: int  # how many documents wait for a row in which they fit
    sources: dict[str, str]  # name -> where it lies: "embedded", a dataset's folder or address, or "seqio:<mixture>"
    shares: dict[str, float]  # source -> its share of the mixture, in what `per` counts; a source that is not named has
    # none
    per: str  # what shares count: documents, tokens, or the tokens of a modality that is named
    stages: tuple[Stage, ...]  # other shares from a step on
    length: int  # the most tokens of a row, divided among streams of budget 0 as the mixture divides; 0 = budgets are
    # written
    blocks: str  # what sees itself both ways: units of latents; also all that precedes a document's last noised unit;
    # whole documents
    verify: bool  # look at every file's digest before training; sizes are always looked at
    workers: int  # processes that read and pack; 0 = a thread
    timeout: float  # seconds that a batch may take to arrive
    max_skipped: int  # how many documents may be unreadable, or fit no row, before the run stops
    roles: tuple[
        Role, ...
    ]  # where units have several representations; the first that matches counts, else each appears
    # once, what learns before what is read


@dataclass(frozen=True)
class Rule:
    """For the parameters whose path holds a match; the first rule that matches counts."""

    match: str  # a regular expression; a parameter's path must hold a match
    lr: float  # factor on the learning rate; 0 freezes
    decay: float  # decoupled weight decay


@dataclass(frozen=True)
class Optim:
    """AdamW or Muon, the rate by step and by parameter, and how it transfers among sizes (`optim.py`)."""

    name: str  # what moves parameters; muon: matrices of blocks by Muon, at AdamW's rates and decay; the rest by AdamW
    muon: str  # of muon alone: a regular expression; it moves the matrices from width to width whose path holds a match
    momentum: float  # of muon alone: decay of its running mean of gradients
    transfer: str  # how initial values and rates follow the width. mup: lr, decay and all that is tuned at the base
    # serve every width
    base_width: int  # of mup: the width at which the rate was tuned, of every tower; 0 where there is no transfer
    base_head_size: int  # of mup: the size of a head there; 0 = it stays as it is
    base_layers: int  # of mup: the number of layers there (CompleteP); 0 = rates do not follow the depth
    lr: float  # the peak learning rate, after the warm-up
    end_lr: float  # the learning rate at run.steps
    warmup: int  # steps of a linear rise to the peak
    schedule: str  # how the rate falls after it; wsd: not before the last decay_steps
    decay_steps: int  # of wsd alone: the length of the final decay, in steps
    beta1: float  # decay of the running mean of gradients
    beta2: float  # decay of the running mean of squared gradients
    eps: float  # is added to the root of the mean square
    moments: str  # the dtype in which both running means are kept; arithmetic is float32
    reduce_dtype: str  # the dtype in which devices add up gradients; sums over microbatches are float32. bfloat16 is
    # half of what is sent, and moved held-out losses by 0.001, where seeds do by 0.017 (docs/howto/pod.md)
    clip: float  # the greatest global norm of the gradient; longer ones are scaled down to it
    accumulate: int  # microbatches in a step
    ema: float  # decay of a moving average of the parameters, which is then evaluated and sampled; 0 = none
    ema_end: float  # to which that decay rises, step by step, by run.steps (I-JEPA: 1); 0 = it stays as it is
    skip_above: float  # also skips a step whose gradient is so many times longer than the median of the last 128 that
    # were applied; 0 = only what is not finite
    patience: int  # how many steps in a row may be skipped before the run ends
    freeze: (
        str  # streams or modalities, with commas between: nothing that they use trains; `text.ffn` freezes that part
    )
    # alone (attn, ffn, norm, embed, head, latent, predictor, contrast, cross)
    rules: tuple[Rule, ...]  # your own rules; they come before base_rules, and the first that matches counts
    base_rules: tuple[Rule, ...]  # rules for the parameters that none of `rules` matches; they never decay a bias or
    # a gate


@dataclass(frozen=True)
class Run:
    """Where a run's directory lies, how long it trains, and how often it is evaluated and saved."""

    root: str  # the folder of runs
    name: str  # the name of this run's folder in it
    steps: int  # the number of batches that it trains on in all
    flops: float  # model FLOPs to spend: written as above 0, `steps` are written as 0 and follow from it
    eval_every: int  # steps between held-out evaluations; written as 0, a tenth of all steps
    eval_batches: int  # held-out batches of each evaluation
    save_every: int  # steps between checkpoints; written as 0, a quarter of all steps
    save_minutes: float  # a checkpoint also after so many minutes without one; 0 = by steps alone
    keep: int  # how many of the newest checkpoints stay
    keep_every: int  # those of steps that this divides stay, too; 0 = none
    keep_best: str  # and the one whose held-out loss of this name is lowest, as loss/image; "" = none
    probe_every: int  # steps between probes, which measure how modalities compete (`mot probe`); 0 = none
    check_every: int  # steps between comparisons of what devices hold twice, to notice faulty memory; 0 = none
    hang_timeout: float  # seconds after which a step or a phase that does not end ends the process; 0 = never
    peer_timeout: float  # seconds without a sign of life of another process of the run that end this one; 0 = never
    trackers: str  # boards that show its curves beside TensorBoard: wandb, trackio, with commas between; "" = none
    role: str  # what a scaling law does with it (scaling/fit.py): it is fitted to, or held out for validation or test


class Component(NamedTuple):
    """Attention, FFNs or norms: which tower serves each stream, and what experts each tower has."""

    written: dict[str, str]  # stream -> its tower, or its towers by ranges of layers
    experts: dict[str, Experts]  # tower -> its experts; norms have none

    def at(self, layer: int) -> dict[str, str]:
        """Which tower serves each stream in a layer."""
        return {stream: depth.tower(written, layer) for stream, written in self.written.items()}

    @property
    def towers(self) -> list[str]:
        """All towers, in the order in which streams name them."""
        return list(dict.fromkeys(tower for written in self.written.values() for tower in depth.towers(written)))


COMPONENTS = ("attn", "ffn", "norm")  # of a layer


@dataclass(frozen=True)
class Sections:
    """The sections of a configuration, not checked. One that cannot be read is None; values may be traced numbers."""

    run: Run
    streams: dict[str, Stream]  # by name, in the order of their ids
    towers: Towers
    attn: dict[str, Experts]  # tower of attention -> its experts
    ffn: dict[str, Experts]  # tower of FFNs -> its experts
    model: Model
    mesh: Mesh
    init: Init
    objective: Objective
    data: Data
    optim: Optim

    def component(self, name: str) -> Component:
        """Of attn, ffn or norm."""
        return {
            "attn": Component(self.towers.attn, self.attn),
            "ffn": Component(self.towers.ffn, self.ffn),
            "norm": Component(self.towers.norm, {}),
        }[name]

    @property
    def causal(self) -> bool:
        """True if no token's result depends on later tokens, but for those of its own bidirectional span."""
        return all(experts.causal for experts in (*self.attn.values(), *self.ffn.values()))

    @property
    def sparse(self) -> tuple[bool, ...]:
        """Of each layer, whether it is one in which towers have their experts."""
        m = self.model
        if not any(e.experts for e in (*self.attn.values(), *self.ffn.values())):
            return (False,) * m.layers
        after_dense = (layer - m.dense_layers for layer in range(m.layers))
        return tuple(n >= 0 and (n + 1) % max(m.sparse_every, 1) == 0 for n in after_dense)

    @property
    def stacks(self) -> tuple[str, ...]:
        """Which stack each layer belongs to: `main`, or `sparse` where towers have experts.

        Layers whose maps are not the first layer's have stacks of their own, `main_4` or `sparse_4`, by the number of
        the first layer with these maps.
        """
        return depth.stacks(tuple(tuple(self.component(c).written.values()) for c in COMPONENTS), self.sparse)

    def towers_in(self, stack: str) -> dict[str, dict[str, str]]:
        """Which tower serves each stream in the layers of a stack, by component."""
        layer = self.stacks.index(stack)
        return {component: self.component(component).at(layer) for component in COMPONENTS}

    @property
    def last_norms(self) -> dict[str, str]:
        """Which tower serves each stream in the last layer's norms and in the final norm."""
        return self.component("norm").at(self.model.layers - 1)

    @property
    def masks(self) -> bool:
        """Are ids of some stream hidden?"""
        return any(s.masks for s in self.streams.values())

    @property
    def mask_id(self) -> int:
        """The id that stands for a hidden one: the first after those of all streams, where any is masked."""
        return max((s.first_id + s.ids for s in self.streams.values() if not s.latent), default=0)

    @property
    def crossed(self) -> tuple[str, ...]:
        """The streams that are seen by cross-attention alone."""
        return tuple(name for name, stream in self.streams.items() if stream.cross_every > 0)

    def has_states(self, stream: str) -> bool:
        """Has each token of a unit a last state? What is folded, resampled or crossed (`crossed`) has none."""
        s = self.streams[stream]
        own = not s.cross_every and s.entry.fold == 1 and s.entry.kind != "resampler"
        return own and s.modality != "text"

    @property
    def contrasted_pairs(self) -> int:
        """X, the most pairs of a row that a contrastive term compares; 0 without a term."""
        term = self.objective.contrastive
        budgets = [
            self.streams[name].budget for name in term.pools if name in self.streams
        ]  # it may not be checked yet
        return (term.pairs or max(min(budgets) // TOKENS_OF_A_PAIR, 1)) if budgets else 0

    @property
    def vocab(self) -> int:
        """V, the number of ids: those of all streams, and `mask_id` where any is masked."""
        return self.mask_id + self.masks

    @property
    def length(self) -> int:
        """T, the tokens of a row."""
        return sum(s.budget for s in self.streams.values())

    @property
    def has_places(self) -> bool:
        """Does the device read where in its unit a token lies?"""
        return any(s.place_table for s in self.streams.values())

    @property
    def modalities(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(s.modality for s in self.streams.values()))


@dataclass(frozen=True)
class Config(Sections):
    """All that decides a run, checked."""

    def __post_init__(self):
        if faults := list(checks.faults(self, set())):
            raise ConfigError(faults)

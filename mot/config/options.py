"""What options of commands may be, apart from what computes with them: a command line is judged without JAX."""

from typing import NamedTuple

FORMATS = ("jsonl", "folder", "parquet", "webdataset", "text", "npz")  # of inputs (`readers.py`)
DROP_DOCUMENT, DROP_MEDIUM = "drop-document", "drop-medium"  # what a medium that is missing costs
SOLVERS = ("euler", "heun", "ddim", "ddpm")  # of vectors (`diffusion.py`)
EXAMPLE = '[{"text": "a cat"}, {"image": "cat.png"}]'
QUESTION = '{"prompt": "2 and 2 is", "candidates": [" four", " five"], "answer": 0}'


# What may differ among runs in one program (`ensemble.py`): numbers that it computes with, none that it is built from.
# Not data.seed: all runs of a program train on the same batches.
VARIED = (
    "model.seed",
    *(f"optim.{key}" for key in ("lr", "end_lr", "warmup", "decay_steps", "beta1", "beta2", "eps", "clip")),
    "optim.rules[<i>].decay",
    "optim.base_rules[<i>].decay",
    "streams.<stream>.loss_weight",
)
# How a run that goes on may differ from what it was, and what `mot train --accept` does then, by kind.
ACCEPTED = {
    "config": "the configuration that is given is the run's from here on; metrics.jsonl keeps what it was",
    "tree": "arrays that the checkpoint lacks begin as in a new run, an average as the parameters; others are left out",
    "shape": "arrays of another shape begin as in a new run",
    "dtype": "arrays are cast",
    "tokenizer": "the weights go on, though ids stand for other tokens",
    "data": "the run goes on in the other documents, at the same place of their endless stream",
}
TRACKERS = ("wandb", "trackio")  # of run.trackers: the packages, and mot's extras, have the same names
PROBES = ("gradients", "representation", "attention", "experts")  # kinds of `mot probe`
EVALUATIONS = {  # of `mot evaluate --what`, and what each tells
    "loss": "held-out losses",
    "bits": "held-out bits a token, and of text a byte",
    "ranking": "which of an --answers file's candidates is likeliest",
    "retrieval": "which caption belongs to an image, and which image to a caption; of text, which half to which",
    "conditioning": "what its own prompt is worth to a unit, beside another document's",
    "labels": "what a linear probe tells of units from their states",
    "judged": "how many digits are drawn, and read, as a classifier reads them",
    "harness": "what lm-eval's tasks find",
    "distances": "how far what is drawn lies from what is held out, by --features",
}
ANY = "any"  # of --draw: the model decides


class Settings(NamedTuple):
    """How a sampler chooses."""

    temperature: float = 1.0  # 0 takes the likeliest id
    top_k: int = 0  # choose among so many ids; 0 = all
    top_p: float = 1.0  # among the likeliest ids that have this probability together
    solver: str = "heun"  # of SOLVERS
    steps: int = 20  # from noise to vectors, and from masks to ids
    shift: float = 1.0  # of the solver's noise levels
    guidance: float = 1.0  # 1 = none (2207.12598)
    block: int = 0  # of text that is masked: tokens that are unmasked together, before those that follow; 0 = all

"""The routers that experts may have, a row each: what can be said of one without computing anything.

`mot/model/routers/<name>.py` computes. The checks, help and the names of architectures read this table.
"""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:  # it imports this file
    from mot.config.schema import Experts


class Router(NamedTuple):
    about: str
    short: str  # in an architecture's name, as in moe_ec4
    causal: Callable  # (Experts) -> bool: no token's choice depends on what later tokens are
    serves_all: bool  # every token gets an expert, without which attention would lack its QKV
    fixed: Mapping  # keys of Experts that it does not read, and the value that they have
    usual: Mapping  # what an architecture's name does not tell, as configs/archs.py has it


def _unless_scores_decide(experts: "Experts") -> bool:
    return not (experts.capacity and experts.overflow == "highest")


def _never(experts: "Experts") -> bool:
    return False


ROUTERS = {
    "token": Router(
        "tokens choose experts",
        "tc",
        causal=_unless_scores_decide,
        serves_all=True,
        fixed={},
        usual=dict(shared=0, score="softmax", capacity=0, balance="loss", jitter=0, groups=1),
    ),
    "expert": Router(
        "experts choose tokens, active * tokens / experts each, and so look at later ones of the row",
        "ec",
        causal=_never,
        serves_all=False,
        fixed=dict(capacity=0.0, normalise=False, weight_scale=1.0, groups=1, active_groups=1, balance="none"),
        usual=dict(shared=0, score="sigmoid", capacity=0, balance="none", jitter=0),
    ),
}

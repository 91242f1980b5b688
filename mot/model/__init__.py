"""The model: towers by three maps around one joint attention.

Reading order: `transformer` (forward and the stack of layers), `layers` (one layer), `joint`, `attention` and `flash`
(where towers meet), `experts`, `router` and `dispatch` (towers with experts), `embed` (in and out), `params` (every
weight).

The names of arrays end in their axes, `x_BTD`. A letter means one thing in all of mot/model and mot/objectives:

B  rows of a batch                          D  width of the residual
T  tokens of a whole row                    F  hidden units of an FFN, of one expert
C  tokens of a stream, or group, in a row   V  ids of the vocabulary
R  tokens laid flat, B * C                  P  features of a vector (a latent)
S  keys and values that queries attend to   Y  features of the noise level, the norms' condition; of an embedding

N  query heads                              E  experts of a tower
K  key/value heads                          X  choices of a token; pairs of a row
G  query heads of one key head, N / K       I  choices of all tokens, R * X; pairs of all rows, B * X
H  size of a head                           Z  places for routed rows, by expert
A  heads laid flat, N * H or K * H          L  layers

U  chunks of queries, or of tokens          M  modalities
W  chunks of keys                           O  sources (origins) of documents
Q  queries of a chunk
J  keys of a chunk, or tokens of one; pairs as keys        1  an axis of size one
"""

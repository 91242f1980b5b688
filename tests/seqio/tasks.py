"""Tasks as a user registers them, over a handful of examples in memory and a vocabulary trained on these."""

import functools
import io
import random
import tempfile
from pathlib import Path

import numpy as np
import sentencepiece
import seqio
import tensorflow as tf

EXTRA = 4  # sentinels of the vocabulary, as T5 has them
WORDS = ("the", "a", "cat", "dog", "bird", "sees", "hears", "likes", "red", "old", "house", "naïve", "漢字", "café")


def sentences(seed, n, words=9):
    rng = random.Random(seed)

    def sentence():
        return " ".join(rng.choices(WORDS, k=rng.randint(2, words))).capitalize() + "."

    return [" ".join(sentence() for _ in range(rng.randint(1, 4))) for _ in range(n)]


def sentencepiece_file(folder, kind="unigram"):
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(sentences(0, 300)),
        model_writer=model,
        model_type=kind,
        vocab_size=320,
        byte_fallback=True,
        hard_vocab_limit=False,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        minloglevel=2,
    )
    file = Path(folder) / f"{kind}.model"
    file.write_bytes(model.getvalue())
    return str(file)


FOLDER = tempfile.TemporaryDirectory()
VOCABULARY = seqio.SentencePieceVocabulary(sentencepiece_file(FOLDER.name), EXTRA)
QUESTIONS = {"train": (sentences(1, 40), sentences(2, 40)), "validation": (sentences(3, 6), sentences(4, 6))}
STORIES = {"train": ([""] * 61, [*sentences(5, 60), ""]), "validation": ([""] * 5, sentences(6, 5))}


def in_memory(columns, split, shuffle_files):
    del shuffle_files
    inputs, targets = columns[split]
    return tf.data.Dataset.from_tensor_slices({"inputs": inputs, "targets": targets})


def task(name, columns, vocabulary=VOCABULARY, steps=(seqio.preprocessors.tokenize, seqio.preprocessors.append_eos)):
    """`vocabulary`: of both features, or a pair."""
    of_inputs, of_targets = vocabulary if isinstance(vocabulary, tuple) else (vocabulary, vocabulary)
    seqio.TaskRegistry.add(
        name,
        source=seqio.FunctionDataSource(functools.partial(in_memory, columns), splits=list(columns)),
        preprocessors=list(steps),
        output_features={  # not in the order of documents
            "targets": seqio.Feature(of_targets),
            "inputs": seqio.Feature(of_inputs, add_eos=False, required=False),
        },
    )


def numbers(name, columns, size):
    """A task of ids that come from elsewhere."""
    data = {split: (list(rows), list(rows)) for split, rows in columns.items()}

    def make(split, shuffle_files):
        return tf.data.Dataset.from_generator(
            lambda: ({"targets": np.array(row, np.int32)} for row in data[split][1]),
            output_signature={"targets": tf.TensorSpec([None], tf.int32)},
        )

    seqio.TaskRegistry.add(
        name,
        source=seqio.FunctionDataSource(make, splits=list(columns)),
        preprocessors=[],
        output_features={"targets": seqio.Feature(seqio.PassThroughVocabulary(size, eos_id=1))},
    )


task("questions", QUESTIONS)
task("stories", STORIES)
seqio.MixtureRegistry.add("both", [("questions", 1), ("stories", 3)])
task("alone", {"train": STORIES["train"]})
task("bytes", QUESTIONS, seqio.ByteVocabulary(extra_ids=2))
task("bpe", QUESTIONS, seqio.SentencePieceVocabulary(sentencepiece_file(FOLDER.name, "bpe")))
task("two", QUESTIONS, (VOCABULARY, seqio.ByteVocabulary()))
numbers("numbers", {"train": [[5, 6, 7, 1, 0, 0], [0, 0], [9, 40], [3, 99], [8]]}, 50)


@seqio.map_over_dataset(num_seeds=1)
def _one_drawn(example, seed):
    """A preprocessor that draws, as T5's do."""
    first = tf.random.stateless_uniform([], seed, 0, 8, tf.int32)
    return example | {"targets": example["targets"][first:]}


task("drawn", QUESTIONS, steps=(seqio.preprocessors.tokenize, _one_drawn))


def _broken(dataset):
    return dataset.map(lambda example: example | {"targets": tf.ensure_shape(example["targets"], [77_777])})


task("failing", QUESTIONS, steps=(seqio.preprocessors.tokenize, _broken))

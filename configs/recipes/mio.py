r"""MIO (2409.17692): text, pictures, speech and films as ids of one vocabulary, and any of them from any other.

A picture is few ids, a sound its ids in each layer of a residual codebook, layer by layer, a film its frames' ids in
time. One decoder learns them by next token in four stages, which are other mixtures from a step on: alignment (pairs
with text), interleaved (documents of several media), speech-enhanced (more speech), and all, with chains of visual
thought: documents that draw a picture before they answer.

mot data prepare ../shared/data/books.train.txt ../shared/data/books.val.txt --format text \
  --separator '\n\n' --text-ids 512 --sample 3000 --markers image,audio,video --out data/mio/books
mot data prepare ../shared/data/mnist10k_28.npz ../shared/data/fsdd_8k.npz --join labels \
  --join-documents 12000 --like data/mio/books --image-side 30 --image-patch 5 --image-ids 256 \
  --audio-rate 8000 --audio-layers 2 --audio-ids 64 \
  --content "image:images|audio:2.audio" --content "audio:2.audio|image:images" \
  --content "image:images|text:{labels}|audio:2.audio" --content "audio:2.audio|text:{labels}|image:images" \
  --out data/mio/interleaved
mot data prepare ../shared/data/mnist10k_28.npz --like data/mio/interleaved --content "text:{labels}|image:images" \
  --content "image:images|text:{labels}" --out data/mio/pictures
mot data prepare ../shared/data/fsdd_8k.npz --like data/mio/interleaved --content "text:{labels}|audio:audio" \
  --content "audio:audio|text:{labels}" --out data/mio/speech
mot data prepare ../shared/data/omniglot_video16_32.npz ../shared/data/omniglot.jsonl --like data/mio/books \
  --video-ids 128 --content "text:caption|video:bits" --content "video:bits|text:caption" --out data/mio/films
mot data prepare ../shared/data/mnist10k_28.npz ../shared/data/fsdd_8k.npz --join labels \
  --join-seed 1 --join-documents 6000 --like data/mio/interleaved \
  --content "audio:2.audio|image:images|text:{labels}" --out data/mio/thoughts
mot train --config=configs/recipes/mio.py:size=cpu
mot evaluate runs/mio-dense-cpu --what conditioning

size=cpu takes some 8 CPU-minutes, and a minute to prepare. Every paired direction beats its control on 100 held-out
documents (docs/howto/any-to-any.md): by 2.7 to 4.8 nats of a unit between text and pictures or speech, 0.5 and 1.0
between pictures and speech, 1.0 and 0.6 between text and films.

The paper's 32 ids of a picture are 36 here (6 x 6 patches), its four layers of speech two, and its decoder of 6B is one
of four layers, 128 wide.
"""

from ml_collections import ConfigDict

from configs import archs, base, records, sizes

SIZES = {
    "smoke": sizes.LAPTOP["smoke"] | dict(length=512),
    "cpu": sizes.LAPTOP["demo"] | dict(steps=1600, warmup=40, every=200, lr=4e-3, length=1024, dropout=0.1),
} | {rung: sizes.CHAMELEON[rung] for rung in ("37m", "443m", "7b")}
FOLDERS = ("books", "pictures", "speech", "films", "interleaved", "thoughts")
# Where each stage begins, as a share of all steps, and how many documents of each dataset it takes. All have about
# as many tokens of each modality, but for speech, so that rows are full.
STAGES = {
    0.0: dict(books=2, pictures=8, speech=8, films=6),
    0.3: dict(books=2, pictures=2, speech=2, films=6, interleaved=6),
    0.6: dict(books=2, pictures=1, speech=5, films=6, interleaved=6),
    0.8: dict(books=2, pictures=2, speech=2, films=6, interleaved=3, thoughts=3),
}
ARGUMENTS = {
    "size": base.Argument("cpu", SIZES),
    "arch": base.Argument("dense", archs.ARGUMENT.allowed),
    "data": base.Argument("data/mio", about=f"a folder with the datasets {', '.join(FOLDERS)}"),
}


def get_config(arg: str = "") -> ConfigDict:
    arg = base.parse(arg, ARGUMENTS)
    size = sizes.choose(SIZES, arg["size"])
    data = "+".join(f"{arg['data']}/{name}" for name in FOLDERS)
    c = records.build(data, arg["arch"], arg["size"], size, str(size["length"]))
    c.run.name = f"mio-{arg['arch']}-{arg['size']}"
    c.model.dropout = size.get("dropout", 0.0)  # 2,700 clips of speech are heard many times
    first, *later = STAGES.values()
    c.data.shares = {name: float(first.get(name, 0)) for name in FOLDERS}
    begins = [max(i, round(share * size["steps"])) for i, share in enumerate(STAGES)]
    c.data.stages = tuple(dict(step=step, shares=shares) for step, shares in zip(begins[1:], later, strict=True))
    return c.lock()

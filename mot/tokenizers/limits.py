"""The most and the least that tokenizers take, known before any of them is imported."""

MOST = 1 << 24  # ids of a modality that somebody's own tokenizer made
SIDE = 1024  # the most pixels of a picture's side
RATES = (8000, 48000)  # samples a second of sound
POINTS = (2, 4096)  # of a drawing

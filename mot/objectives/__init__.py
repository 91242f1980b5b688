"""What a model learns from: losses of ids and of vectors, and how vectors are noised."""

"""mot: Mixture-of-Transformers, in the open."""

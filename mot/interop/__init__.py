"""Weights and tokenizers of Hugging Face's transformers, in and out: `mot import`, `mot export`."""

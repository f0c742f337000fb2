"""Models in Hugging Face's format, run by transformers."""

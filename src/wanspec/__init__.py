"""WANSpec: speculative decoding split across the wide-area network."""

__version__ = "0.1.0"

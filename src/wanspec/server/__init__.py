"""The product: an OpenAI-compatible server in front of a controller engine."""

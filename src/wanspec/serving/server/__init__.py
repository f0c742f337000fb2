"""The OpenAI-compatible server in front of a controller's engine."""

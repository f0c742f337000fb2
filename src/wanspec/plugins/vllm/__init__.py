"""WANSpec's drafts in vLLM: the class that vLLM loads, and what it needs. Nothing here imports vLLM before vLLM is running."""

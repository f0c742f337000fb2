"""WANSpec's drafts in vLLM: the class that vLLM loads, and its parts. Nothing here imports vLLM before vLLM is running."""

"""SERVING: the controller's engine, the worker process, what turns logits into choices, and the server in front."""

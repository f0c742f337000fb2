"""THE REAL DRIVER: the controller's engine, the worker process, and what turns logits into choices."""

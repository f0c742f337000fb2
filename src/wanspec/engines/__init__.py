"""MODELS: one interface, and the engines behind it. Heavy imports live inside the factory of the engine that needs them."""

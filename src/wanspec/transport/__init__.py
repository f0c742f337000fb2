"""WIRES: one interface, an in-memory wire, gRPC over TLS, and the codec between messages and bytes."""

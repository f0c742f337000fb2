"""BENCHMARKS with real processes: the demo, every policy over many links, load on a server."""

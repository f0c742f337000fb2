"""BENCHMARKS: the demo, every policy over many links, load on a server, how many users a site carries."""

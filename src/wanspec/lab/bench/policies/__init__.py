"""`wanspec bench policies`: every policy over many links, with real processes, so that one may compare."""

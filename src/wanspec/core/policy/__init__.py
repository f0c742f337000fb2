"""WHEN to be redundant: one small file per policy, chosen by name in `registry`."""

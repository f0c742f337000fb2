"""CAPACITY: how many users a site carries, and what workers add."""

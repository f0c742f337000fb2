"""RECORDS: one trace schema for real and simulated runs, and the metrics computed from it."""

"""TELEMETRY: one trace schema for real and simulated runs, who writes it, and recordings of what machines were told."""

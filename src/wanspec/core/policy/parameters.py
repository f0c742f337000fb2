"""What the policies are called, and how far their parameters go: for flags and settings, which should not wait for numpy."""

from __future__ import annotations

POLICY_NAMES = ("autoregressive", "colocated", "colocated-tree", "remote", "paper", "adaptive")
"""Every policy that `create_policy` knows, the simplest first."""
MAX_DRAFT_TOKENS = 32
"""Draft tokens that a chain policy verifies in one target pass; `speculation.types` has the other limits."""

"""AN EMULATED WAN on one machine: a relay that delays every byte."""

"""AN EMULATED WAN on one machine: a relay that delays every byte, or packets between two namespaces; and the processes around it."""

"""The command line, and the composition root: reads flags, builds what they ask for, turns errors into messages and statuses."""

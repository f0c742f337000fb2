"""PLUG-INS: drafts for other people's engines."""

"""The study: endpoints of language models asked from many places, at even intervals, for days; and what the answers show."""

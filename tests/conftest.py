"""One Hypothesis profile for all tests."""

from hypothesis import settings

settings.register_profile("wanspec", deadline=None, print_blob=True)  # no deadline: a busy machine is no failure
settings.load_profile("wanspec")

"""One Hypothesis profile for all tests, and signals as a terminal would have them."""

import signal

from hypothesis import settings

settings.register_profile("wanspec", deadline=None, print_blob=True)  # no deadline: a busy machine is no failure
settings.load_profile("wanspec")

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # started in the background, by a script
    signal.signal(signal.SIGINT, lambda *_: None)  # we go on ignoring it, but what we start does not inherit that

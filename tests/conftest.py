"""One Hypothesis profile for all tests, one thread for each model, signals as a terminal would have them, and our own options."""

import os
import signal
from importlib.util import find_spec

import pytest
from hypothesis import settings

settings.register_profile("wanspec", deadline=None, print_blob=True)  # no deadline: a busy machine is no failure
settings.load_profile("wanspec")

os.environ |= {"WANSPEC_THREADS": "1", "WANSPEC_WORKER_THREADS": "1"}  # processes of a test share the processors, and figures count

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # started in the background, by a script
    signal.signal(signal.SIGINT, lambda *_: None)  # we go on ignoring it, but what we start does not inherit that


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("gpu") is not None and not sees_gpu():
        pytest.skip("PyTorch sees no GPU here")


def sees_gpu() -> bool:
    if find_spec("torch") is None:
        return False
    import torch  # noqa: PLC0415  # an extra, that takes seconds to load

    return bool(torch.cuda.is_available())


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--rewrite-transcripts", action="store_true", help="write the answers in tests/core/protocol/transcripts anew")

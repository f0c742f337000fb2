"""Certificates of two authorities, made once."""

from __future__ import annotations

import pytest
from tests.transport.samples import certificates

from wanspec.transport.certificates import TrialCertificates


@pytest.fixture(scope="session")
def ours(tmp_path_factory: pytest.TempPathFactory) -> TrialCertificates:
    return certificates(tmp_path_factory.mktemp("ours"))


@pytest.fixture(scope="session")
def theirs(tmp_path_factory: pytest.TempPathFactory) -> TrialCertificates:
    return certificates(tmp_path_factory.mktemp("theirs"))

"""Certificates and authorities change; what is in use goes on meanwhile."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from tests.transport.samples import HELLO, certificates
from tests.transport.test_grpc_wire import controller_tls, exchange, joined, listener, worker_tls

from wanspec.errors import TransportError
from wanspec.transport.grpc_wire import dial


async def test_while_an_authority_is_replaced_workers_of_both_are_let_in_and_then_those_of_the_new_one_alone(tmp_path: Path) -> None:
    old, new = certificates(tmp_path / "old"), certificates(tmp_path / "new")
    both = tmp_path / "both.pem"
    both.write_bytes(old.ca_file.read_bytes() + new.ca_file.read_bytes())
    async with listener(replace(controller_tls(old), ca_file=both)) as door:
        for files in (old, new):
            worker, controller = await joined(door, worker_tls(files, ca_file=both))
            await exchange(worker, controller)
            await worker.close("done")
    async with listener(controller_tls(new)) as door:
        with pytest.raises(TransportError):
            await dial(door.address, HELLO, security=worker_tls(old, ca_file=both))
        await exchange(*await joined(door, worker_tls(new, ca_file=both)))

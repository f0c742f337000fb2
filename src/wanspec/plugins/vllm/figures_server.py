"""The proposer's metrics for Prometheus, on this machine alone: vLLM's own endpoint is in another process."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from wanspec.errors import TransportError
from wanspec.plugins.vllm.draft_link import DraftLink
from wanspec.serving.link_metrics import Families, link_metrics
from wanspec.transport.security import Address


class ProposerFigures(Collector):
    """The draft link's counts, read when Prometheus asks."""

    def __init__(self, link: DraftLink, model_name: str) -> None:
        self._link, self._families = link, Families(model_name)

    def collect(self) -> Iterator[Metric]:
        yield from self._link.ask(lambda: [*self._proposals(), *self._link_figures()])

    def _proposals(self) -> Iterator[Metric]:
        tally, families = self._link.tally, self._families
        yield families.count("wanspec:rounds", "Steps of one row that committed tokens", tally.rounds)
        yield families.count("wanspec:committed_tokens", "Tokens committed", tally.committed_tokens)
        yield families.count("wanspec:proposed_rounds", "Rounds for which drafts were proposed", tally.drafted_rounds)
        yield families.count("wanspec:proposed_tokens", "Draft tokens proposed; vLLM may verify fewer", tally.draft_tokens)
        yield families.count("wanspec:accepted_tokens", "Of these, those that were accepted", tally.accepted_draft_tokens)
        yield families.count("wanspec:local_draft_passes", "Local draft passes, over requests", tally.local_draft_passes)
        yield families.count("wanspec:local_draft_tokens", "Draft tokens that these gave", self._link.local_draft_tokens)
        yield families.count("wanspec:link_failures", "Times that the draft link failed and began anew", self._link.failures)
        yield families.histogram("wanspec:propose_seconds", "What a step of the engine waits for its drafts", self._link.step_s)

    def _link_figures(self) -> Iterator[Metric]:
        workers = self._link.workers
        return link_metrics(self._families, workers, self._link.figures) if workers is not None else iter(())


def serve_figures(address: Address, link: DraftLink, model_name: str) -> Address:
    """Serve the metrics at this address. Returns it with the actual port. Raises TransportError where the port is taken."""
    registry = CollectorRegistry()
    registry.register(ProposerFigures(link, model_name))
    try:
        server, _ = start_http_server(address.port, addr=address.host, registry=registry)
    except OSError as error:
        raise TransportError(f"metrics {address}: {error.strerror}; choose another port") from error
    return Address(host=address.host, port=server.server_port)

"""Numbers of a server, for Prometheus."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

_SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60, 300)


class Metrics:
    """Counters of one server, in a registry of their own."""

    def __init__(self) -> None:
        self._registry = own = CollectorRegistry()
        self.requests = Counter(
            "jina_jax_requests", "Requests by route and status.", ["route", "status"], registry=own
        )
        self.request_seconds = Histogram(
            "jina_jax_request_seconds",
            "From a request's head to its reply's first byte.",
            ["route"],
            buckets=_SECONDS,
            registry=own,
        )
        self.wait_seconds = Histogram(
            "jina_jax_wait_seconds",
            "From arrival to its step, of the oldest text of each step.",
            buckets=_SECONDS,
            registry=own,
        )
        self.tokenize_seconds = Histogram(
            "jina_jax_tokenize_seconds", "Per block of texts.", buckets=_SECONDS, registry=own
        )
        self.texts = Counter("jina_jax_texts", "Texts encoded for requests.", registry=own)
        self.tokens = Counter("jina_jax_tokens", "Tokens put into steps.", registry=own)
        self.positions = Counter(
            "jina_jax_positions", "Positions computed, padding included.", registry=own
        )
        self.steps = Counter("jina_jax_steps", "Steps computed.", registry=own)
        self.failed_steps = Counter("jina_jax_failed_steps", "Steps that failed.", registry=own)
        self.dropped = Counter(
            "jina_jax_dropped_requests",
            "Requests that nobody waited for any more, by reason.",
            ["reason"],
            registry=own,
        )
        self.replaced = Counter(
            "jina_jax_replaced_surrogates", "Bodies with lone surrogates.", registry=own
        )
        self.waiting_tokens = Gauge(
            "jina_jax_waiting_tokens", "Tokens of requests under way, estimated.", registry=own
        )
        self.ready = Gauge("jina_jax_ready", "1 when requests are taken.", registry=own)

    def text(self) -> bytes:
        """Return them in Prometheus' text format."""
        return generate_latest(self._registry)

"""Where a server is in its life, which its probes report."""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING

from jina_jax.serving.errors import ApiError
from jina_jax.serving.metrics import Metrics
from jina_jax.serving.settings import Settings

if TYPE_CHECKING:
    from jina_jax.serving.service import Service


class Phase(enum.Enum):
    """Phases, in their order."""

    LOADING = "the model is being loaded"
    READY = "ready"
    DRAINING = "the server ends, and takes no new requests"
    DEAD = "the device does not answer any more"
    FAILED = "the model cannot be loaded"


class State:
    """What the routes share.

    Attributes:
      settings: names and bounds.
      metrics: counts.
      phase: where the server is.
      log_requests: a line per request.
    """

    def __init__(self, settings: Settings, *, log_requests: bool = False):
        self.settings, self.log_requests = settings, log_requests
        self.metrics = Metrics()
        self.phase = Phase.LOADING
        self._service: Service | None = None

    def become_ready(self, service: Service) -> None:
        """Take requests from now on, unless the server ends already."""
        self._service = service
        if self.phase is Phase.LOADING:
            self.phase = Phase.READY

    @property
    def loaded(self) -> Service | None:
        """The service, if the model is there."""
        return self._service

    def service(self) -> Service:
        """Return the service.

        Raises:
          ApiError: 503 in another phase than ready. Requests that are under way are not affected.
        """
        if self._service is None or self.phase is not Phase.READY:
            raise ApiError(503, self.phase.value, headers={"Retry-After": "1"})
        return self._service

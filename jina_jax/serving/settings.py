"""Settings of a server, all of them bounds."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class Settings:
    """Bounds and names of a server.

    Attributes:
      served_names: what requests may call the model; the first one is what replies call it.
      default_task: the adapter of requests that name none; None for the base model.
      api_keys: requests must bring one of them; () for anybody.
      max_inputs: most texts per request.
      max_body: most bytes per request.
      max_reading: most bytes of all bodies that are being read.
      max_reply: most bytes of what a request wants of each token, estimated: vectors of
        ``/embed_all``, or what ``/tokenize`` returns.
      max_request_tokens: most tokens per request, estimated before they are counted.
      max_queue_tokens: most tokens that may wait; one request may wait whatever its size.
      timeout: seconds after which a request that waits ends with status 504.
      read_timeout: seconds in which a request's head, and then its body, must arrive; also those
        in which a client must take what waits to be sent.
      drain: seconds that requests under way have after SIGTERM.
      max_wait: seconds that a step waits for more texts than there are.
      warmup_length: tokens of the longest text whose programs are compiled before the server is
        ready. Programs of longer texts, and of chunks, are compiled when they are needed, while
        others go on.
      stall: seconds without a result from the device after which the server is not ready.
      lazy: be ready before these programs are compiled, which then goes on beside requests.
      strict: refuse unknown fields instead of naming them in ``x-ignored-fields``.
    """

    served_names: tuple[str, ...] = ("jina-embeddings-v3",)
    default_task: str | None = None
    api_keys: tuple[str, ...] = ()
    max_inputs: int = 2048
    max_body: int = 32 << 20
    max_reading: int = 256 << 20
    max_reply: int = 256 << 20
    max_request_tokens: int = 1 << 22
    max_queue_tokens: int = 1 << 23
    timeout: float = 600.0
    read_timeout: float = 30.0
    drain: float = 30.0
    max_wait: float = 0.0
    warmup_length: int = 512
    stall: float = 300.0
    lazy: bool = False
    strict: bool = False

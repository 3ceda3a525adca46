"""A model behind HTTP: Jina's Embedding API, OpenAI's and text-embeddings-inference's.

>>> with jina_jax.serving.run(model) as server:
...     requests.post(f"{server.url}/v1/embeddings", json={"input": "Hello", "task": "separation"})

``jina-jax serve`` is the same as a process. Needs the extra ``serve``.
"""

from jina_jax.serving.server import Server, run
from jina_jax.serving.settings import Settings

__all__ = ["Server", "Settings", "run"]

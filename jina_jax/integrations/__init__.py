"""Classes for libraries that take models for embedding texts.

Each is in a module of the library's name, which needs the library: ``langchain``, ``llama_index``,
``haystack``, ``chroma``, ``sentence_transformers`` and ``sklearn``. Nothing here is imported by
``import jina_jax``, and no module imports the library of another one.
"""

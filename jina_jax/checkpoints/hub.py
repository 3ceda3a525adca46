"""From a model's name to a local directory."""

from __future__ import annotations

import functools
import os
import re
import warnings
from pathlib import Path
from typing import TypedDict

from jina_jax.checkpoints.native import WEIGHTS_FILE

TINY = "tiny"  # name of the model in the package
PACKAGED = Path(__file__).parents[1] / TINY

_HUB_ID = re.compile(r"(\w[\w.-]*/)?\w[\w.-]*", re.ASCII)
_SMALL_FILES = ["*.json", "*/adapter_config.json", "*/adapter_model.*", "1_Pooling/*"]
_WEIGHT_FILES = ([WEIGHTS_FILE], ["model*.safetensors"], ["pytorch_model*.bin"])


class HubOptions(TypedDict, total=False):
    """Options of huggingface_hub, see ``fetch``."""

    revision: str | None
    token: str | bool | None
    cache_dir: str | Path | None
    local_files_only: bool


def fetch(
    name_or_path: str | Path | None = None,
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | Path | None = None,
    local_files_only: bool = False,
) -> Path:
    """Return a checkpoint's directory, downloaded from the Hugging Face Hub if necessary.

    Args:
      name_or_path: a directory, or a Hub id such as "jinaai/jina-embeddings-v3". "tiny" is the
        small model in the package, unless a directory has that name. None is always this model,
        with a warning the first time.
      revision: branch, tag or commit on the Hub.
      token: access token; True for the stored one of the logged-in user.
      cache_dir: huggingface_hub's cache directory; None for its default.
      local_files_only: never use the network; the variable HF_HUB_OFFLINE has the same effect.

    Raises:
      ValueError: for a name of another type, or a revision of the packaged model, which has none.
      FileNotFoundError: if it is neither a directory nor of the form of a Hub id, or the Hub cannot
        be reached and it is not in the cache.
      huggingface_hub.errors.HfHubHTTPError: as that library raises it.
    """
    if not isinstance(name_or_path, str | os.PathLike | None) or name_or_path == "":
        raise ValueError(f"name_or_path={name_or_path!r}: expected a directory, a Hub id or None")
    if name_or_path is not None and Path(name_or_path).is_dir():
        return Path(name_or_path)
    if name_or_path is None or str(name_or_path) == TINY:
        if revision is not None:
            raise ValueError(
                f"revision={revision!r}: expected None for tiny, the model in the package; "
                "name one on the Hub"
            )
        if name_or_path is None:
            _warn_unnamed()
        return PACKAGED
    name = str(name_or_path)
    if not _HUB_ID.fullmatch(name) or Path(name).exists():
        raise FileNotFoundError(
            f"name_or_path={name!r}: no such directory, and not a Hub id (owner/name)"
        )
    import huggingface_hub.errors

    for weights in _WEIGHT_FILES:
        try:
            directory = huggingface_hub.snapshot_download(
                name,
                revision=revision,
                token=token,
                cache_dir=cache_dir,
                local_files_only=local_files_only,
                allow_patterns=_SMALL_FILES + weights,
            )
        except huggingface_hub.errors.LocalEntryNotFoundError as error:
            raise FileNotFoundError(
                f"name_or_path={name!r}: no such directory, not in the Hub's cache, and "
                f"{'no network allowed' if local_files_only else 'the Hub could not be reached'}"
            ) from error
        if any(match for pattern in weights for match in Path(directory).glob(pattern)):
            break
    return Path(directory)


@functools.cache  # once per process
def _warn_unnamed() -> None:
    warnings.warn(
        "no model named: using tiny, the small one in the package (below jina-embeddings-v3 in "
        "quality; name jinaai/jina-embeddings-v3 for the published one)",
        stacklevel=4,  # the caller of from_pretrained
    )

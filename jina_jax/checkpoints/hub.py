"""From a model's name to a local directory."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TypedDict

from jina_jax.checkpoints.native import WEIGHTS_FILE

TINY = "tiny"  # name of the model in the package
PACKAGED = Path(__file__).parents[1] / TINY

_HUB_ID = re.compile(r"(\w[\w.-]*/)?\w[\w.-]*", re.ASCII)
# With the folders of adapters and modules: 1_Pooling, 2_Dense, or 0_Transformer with the encoder.
_SMALL_FILES = [
    *("*.json", "*/adapter_config.json", "*/adapter_model.*", "1_Pooling/*", "*_Dense/*"),
    "0_Transformer/*",
]
_WEIGHT_FILES = ([WEIGHTS_FILE], ["model*.safetensors"], ["pytorch_model*.bin"])


class HubOptions(TypedDict, total=False):
    """Options of huggingface_hub, see ``fetch``."""

    revision: str | None
    token: str | bool | None
    cache_dir: str | Path | None
    local_files_only: bool


def fetch(
    name_or_path: str | os.PathLike[str],
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | Path | None = None,
    local_files_only: bool = False,
) -> Path:
    """Return a checkpoint's directory, downloaded from the Hugging Face Hub if necessary.

    Args:
      name_or_path: a directory, or a Hub id such as "jinaai/jina-embeddings-v3". "tiny" is the
        small model in the package, unless a directory has that name.
      revision: branch, tag or commit on the Hub.
      token: access token; True for the stored one of the logged-in user.
      cache_dir: huggingface_hub's cache directory; None for its default.
      local_files_only: never use the network; the variable HF_HUB_OFFLINE has the same effect.

    Raises:
      ValueError: for a name of another type, or a revision of a directory, which has none.
      FileNotFoundError: if it is neither a directory nor of the form of a Hub id, or the Hub cannot
        be reached and it is not in the cache.
      huggingface_hub.errors.HfHubHTTPError: as that library raises it.
    """
    if not isinstance(name_or_path, str | os.PathLike) or name_or_path == "":
        raise ValueError(f"name_or_path={name_or_path!r}: expected a directory or a Hub id")
    directory = Path(name_or_path)
    if str(name_or_path) == TINY and not directory.is_dir():
        directory = PACKAGED
    if directory.is_dir():
        if revision is not None:
            raise ValueError(f"revision={revision!r}: expected None for the directory {directory}")
        return directory
    name = str(name_or_path)
    if not _HUB_ID.fullmatch(name) or Path(name).exists():
        raise FileNotFoundError(
            f"name_or_path={name!r}: no such directory, and not a Hub id (owner/name)"
        )
    import huggingface_hub.errors

    for weights in _WEIGHT_FILES:
        try:
            found = huggingface_hub.snapshot_download(
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
        directory = Path(found)
        if any(match for pattern in weights for match in directory.glob(pattern)):
            break
    return directory

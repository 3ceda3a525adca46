"""From a model's name to a local directory."""

from __future__ import annotations

from pathlib import Path

from jina_jax.checkpoint import WEIGHTS_FILE

_SMALL_FILES = ["*.json", "*/adapter_config.json", "*/adapter_model.*", "1_Pooling/*"]
_WEIGHT_FILES = ([WEIGHTS_FILE], ["model*.safetensors"], ["pytorch_model*.bin"])


def fetch(
    name_or_path: str | Path,
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | Path | None = None,
    local_files_only: bool = False,
) -> Path:
    """Return a checkpoint's directory, downloading it from the Hugging Face Hub if need be.

    Args:
      name_or_path: a directory, or a Hub id such as "jinaai/jina-embeddings-v3".
      revision: branch, tag or commit on the Hub.
      token: access token; True for the one that is logged in.
      cache_dir: of huggingface_hub, instead of its own choice.
      local_files_only: never ask the network; also by the variable HF_HUB_OFFLINE.

    Raises:
      FileNotFoundError: if it is neither a directory nor, by its form, a Hub id.
      huggingface_hub.errors.HfHubHTTPError, LocalEntryNotFoundError: as that library raises them.
    """
    if Path(name_or_path).is_dir():
        return Path(name_or_path)
    name = str(name_or_path)
    if name.count("/") > 1 or name.startswith((".", "/", "~")) or Path(name).exists():
        raise FileNotFoundError(f"model={name!r}: no such directory, and not a Hub id (owner/name)")
    import huggingface_hub

    for weights in _WEIGHT_FILES:
        directory = huggingface_hub.snapshot_download(
            name,
            revision=revision,
            token=token,
            cache_dir=cache_dir,
            local_files_only=local_files_only,
            allow_patterns=_SMALL_FILES + weights,
        )
        if any(match for pattern in weights for match in Path(directory).glob(pattern)):
            break
    return Path(directory)

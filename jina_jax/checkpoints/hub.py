"""From a model's name to a local directory."""

from __future__ import annotations

import os
import re
import warnings
from pathlib import Path
from typing import Any, TypedDict

from jina_jax.checkpoints.native import WEIGHTS_FILE

TINY = "tiny"  # name of the model in the package
PACKAGED = Path(__file__).parents[1] / TINY

_HUB_ID = re.compile(r"(\w[\w.-]*/)?\w[\w.-]*", re.ASCII)
# With the folders of adapters and modules: 1_Pooling, 2_Dense, or 0_Transformer with the encoder.
_SMALL_FILES = [
    *("*.json", "*/adapter_config.json", "adapter_model.*", "*/adapter_model.*"),
    *("sentencepiece.bpe.model", "1_Pooling/*", "*_Dense/*", "0_Transformer/*"),
]
_WEIGHT_FILES = ([WEIGHTS_FILE], ["model*.safetensors"], ["pytorch_model*.bin"])
_NETWORK_LIBRARIES = ("httpx2", "httpx", "requests")  # of huggingface_hub 2, 1 and 0


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
        be reached and it is not in the cache. The Hub has 10 seconds to answer, or
        ``$HF_HUB_ETAG_TIMEOUT``; a cached copy is then used with a warning.
      ConnectionError: if a download breaks off.
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
    _check_library()
    failure = None if local_files_only else _failure(name, revision, token)
    directory = _snapshot(
        name,
        f"the Hub could not be reached ({failure})" if failure else None,
        revision=revision,
        token=token,
        cache_dir=cache_dir,
        local_files_only=local_files_only or failure is not None,
    )
    if failure:
        warnings.warn(
            f"{name}: the Hub could not be reached ({failure}); using the copy in its cache",
            stacklevel=3,
        )
    return directory


def _check_library() -> None:
    """Import the library of the Hub, which reads variables of the environment as it is imported."""
    try:
        import huggingface_hub.constants  # noqa: F401
    except ValueError as error:
        names = ", ".join(sorted(name for name in os.environ if name.startswith("HF_")))
        raise ValueError(
            f"huggingface_hub: expected other values of environment variables ({error}); set are "
            f"{names or 'none'}"
        ) from None


def _failure(name: str, revision: str | None, token: str | bool | None) -> str | None:
    """Ask the Hub about a model once, with a limit of time; return why it cannot be reached."""
    import huggingface_hub.errors
    from huggingface_hub import constants

    seconds = constants.HF_HUB_ETAG_TIMEOUT
    try:
        huggingface_hub.HfApi(token=token).repo_info(name, revision=revision, timeout=seconds)
    except huggingface_hub.errors.OfflineModeIsEnabled:
        return None
    except huggingface_hub.errors.HfHubHTTPError as error:
        status = error.response.status_code
        # Of other answers, such as "not found", ``snapshot_download`` knows what to do.
        return f"it answers {status}" if status >= 500 or status == 429 else None
    except (ValueError, TypeError, KeyError, AttributeError):
        # The login page of a network, for example.
        return f"what answers at {constants.ENDPOINT} is not the Hub"
    except Exception as error:
        if not _is_of_network(error):
            raise
        reason = f"no answer within {seconds} s" if "Timeout" in type(error).__name__ else error
        return str(reason) or type(error).__name__
    return None


def _is_of_network(error: Exception) -> bool:
    return type(error).__module__.partition(".")[0] in _NETWORK_LIBRARIES


def _snapshot(name: str, failure: str | None, **options: Any) -> Path:
    """Return the directory of a model's files, with weights of the first kind that it has.

    Args:
      name: Hub id.
      failure: why the Hub cannot be asked, if it was tried.
      options: of ``huggingface_hub.snapshot_download``.
    """
    import huggingface_hub.errors
    from huggingface_hub import constants

    for weights in _WEIGHT_FILES:
        try:
            found = huggingface_hub.snapshot_download(
                name, allow_patterns=_SMALL_FILES + weights, **options
            )
        except huggingface_hub.errors.LocalEntryNotFoundError as error:
            cache = options["cache_dir"] or constants.HF_HUB_CACHE
            if failure is None and constants.HF_HUB_OFFLINE:
                failure = "unset HF_HUB_OFFLINE to download it"
            elif failure is None and options["local_files_only"]:
                failure = "without local_files_only=True it is downloaded"
            raise FileNotFoundError(
                f"name_or_path={name!r}: no such directory, and not in the Hub's cache ({cache}); "
                f"{failure or 'the Hub could not be reached'}"
            ) from error
        except Exception as error:
            if not _is_of_network(error):
                raise
            raise ConnectionError(
                f"name_or_path={name!r}: the download was not finished ({error})"
            ) from error
        if any(match for pattern in weights for match in Path(found).glob(pattern)):
            break
    return Path(found)

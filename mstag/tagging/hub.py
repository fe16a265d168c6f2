"""Bundles on the Hugging Face Hub, or on a server that speaks its language: fetched and pushed.

Only a bundle's own files are ever fetched: nothing that could execute is among them, whatever
else the repository holds. What was fetched once is found again without a network.
"""

from __future__ import annotations

import re
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mstag import __version__
from mstag.console import one_line
from mstag.models.bundle import bundles_beside, find_bundle, save_bundle

if TYPE_CHECKING:
    from types import ModuleType

    from mstag.models.bundle import Bundle

ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
"""user/name, as the Hub's ids are written."""
WEIGHTS = "weights-*.safetensors"
SAFE_FILES = ("tagger.json", WEIGHTS, "README.md")


def find_or_fetch(
    bundle: str | Path,
    *,
    revision: str | None = None,
    cache_dir: str | Path | None = None,
    token: str | bool | None = None,
    endpoint: str | None = None,
) -> Path:
    """The folder of a bundle: a folder that exists, or else what an id of the Hub stands for.

    Args:
        bundle: a bundle, a run folder, or, as a string, an id like user/name. What exists as a
            path is never looked for on the Hub, nor what would lie beside other bundles.
        revision: of the Hub: a branch, a tag or a commit; None: the main branch.
        cache_dir: where the Hub's files are kept; None: where huggingface_hub keeps them.
        token: of the Hub; None: the one that `hf auth login` saved, or the environment's.
        endpoint: address of the server; None: the environment's HF_ENDPOINT, or the Hub.

    Raises:
        ValueError: no bundle, no such id, no network, or no package huggingface_hub.
    """
    path = Path(bundle)
    is_id = ID.fullmatch(str(bundle)) and not path.exists() and not bundles_beside(path)
    if not isinstance(bundle, str) or not is_id:
        return find_bundle(path)
    hub = _hub(f"{bundle}: no such folder, and to look for it on the Hugging Face Hub")
    with _explained(f"{bundle}: no such folder, and from the Hub", hub, bundle, revision):
        folder = hub.snapshot_download(
            bundle,
            revision=revision,
            cache_dir=cache_dir,
            token=token,
            endpoint=endpoint,
            allow_patterns=list(SAFE_FILES),
            library_name="mstag",
            library_version=__version__,
        )
    try:
        return find_bundle(Path(folder))
    except ValueError:
        raise ValueError(
            f"{bundle}: is on the Hub, but is no tagger that mstag trained (no tagger.json in it)"
        ) from None


def push(
    bundle: Bundle,
    repo_id: str,
    *,
    private: bool = False,
    revision: str | None = None,
    token: str | bool | None = None,
    endpoint: str | None = None,
    message: str = "",
) -> str:
    """Uploads a bundle in today's format, as one commit; returns its address.

    The repository is made if need be; older weights in it are removed by the same commit.

    Args:
        bundle: what to upload.
        repo_id: user/name.
        private: whether a repository that is made now is private.
        revision: an existing branch; None: main.
        token: as in :func:`find_or_fetch`; must allow writing.
        endpoint: as in :func:`find_or_fetch`.
        message: of the commit.

    Raises:
        ValueError: no such id, no right to write, no network, or no package huggingface_hub.
    """
    if not ID.fullmatch(repo_id):
        raise ValueError(f"{repo_id!r}: an id on the Hub must look like user/name")
    hub = _hub(f"{repo_id}: to upload it")
    with tempfile.TemporaryDirectory() as folder:
        save_bundle(
            Path(folder),
            bundle.model,
            model_config=bundle.model_config,
            features=bundle.features,
            tag_names=bundle.tag_names,
            thresholds=bundle.thresholds,
            dataset=bundle.dataset,
            scores=bundle.scores,
        )
        api = hub.HfApi(
            endpoint=endpoint, token=token, library_name="mstag", library_version=__version__
        )
        to_hub = _explained(f"{repo_id}: to the Hub", hub, repo_id, revision)
        with to_hub, _global_endpoint(hub, endpoint):
            api.create_repo(repo_id, private=private, exist_ok=True)
            commit = api.upload_folder(
                repo_id=repo_id,
                folder_path=folder,
                revision=revision,
                allow_patterns=list(SAFE_FILES),
                delete_patterns=[WEIGHTS],
                commit_message=message or f"mstag {__version__}: weights {bundle.digest[:16]}",
            )
    return str(commit.commit_url)


def _hub(purpose: str) -> ModuleType:
    try:
        import huggingface_hub
        import huggingface_hub.constants
        import huggingface_hub.errors
    except ImportError as error:
        raise ValueError(
            f"{purpose} takes the package huggingface_hub ({error}): pip install 'mstag[hub]' "
            "(in a checkout: pip install -e '.[hub]')"
        ) from None
    return huggingface_hub


@contextmanager
def _global_endpoint(hub: Any, endpoint: str | None) -> Iterator[None]:
    """huggingface_hub 0.36 understands the address of a commit at its global endpoint alone."""
    constants = hub.constants
    before = constants.ENDPOINT
    constants.ENDPOINT = endpoint or before
    try:
        yield
    finally:
        constants.ENDPOINT = before


@contextmanager
def _explained(what: str, hub: Any, repo_id: str, revision: str | None) -> Iterator[None]:
    """Turns what goes wrong between here and the Hub into one line."""
    errors = hub.errors
    # httpx is what huggingface_hub 1.0 and later speak through; its errors are no OSErrors.
    httpx = sys.modules.get("httpx")
    of_network = (OSError, *((httpx.HTTPError,) if httpx else ()))
    try:
        yield
    except errors.GatedRepoError as error:
        reason = f"its owner gives access on request ({one_line(error)[:200]})"
        raise ValueError(f"{what}: {reason}; ask there, and give your token") from None
    except errors.RepositoryNotFoundError:
        raise ValueError(
            f"{what}: there is no {repo_id}, or it is private and the token is missing or not "
            "allowed to see it (`hf auth login`, or HF_TOKEN)"
        ) from None
    except errors.RevisionNotFoundError:
        raise ValueError(f"{what}: {repo_id} has no revision {revision}") from None
    except errors.LocalEntryNotFoundError:
        raise ValueError(
            f"{what}: the server cannot be reached and it was not fetched before; look at your "
            "network (and HF_ENDPOINT, HF_HUB_OFFLINE), or name a folder that exists"
        ) from None
    except errors.HFValidationError as error:
        raise ValueError(f"{what}: not a valid id ({one_line(error)[:200]})") from None
    except of_network as error:
        if isinstance(error, OSError) and error.filename is not None:
            raise  # the disk's, not the network's
        raise ValueError(f"{what}: failed ({one_line(error)[:300]})") from None

"""Tasks on the Hugging Face hub: a task's folder is a model repository."""

import dataclasses
import shutil
import tempfile
from pathlib import Path
from typing import Any

from dptdr.errors import BundleError
from dptdr.io.atomic import write_json
from dptdr.model.bundle import TASK_FILE, read_manifest
from dptdr.model.card import write_card

_FILES = ["*.json", "*.safetensors", "*.md"]


def task_folder(
    name: str | Path,
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    cache: str | Path | None = None,
) -> Path | None:
    """Return the local folder of a task; ``org/name`` is fetched from the hub.

    Args:
        token: Access token; the stored one by default.
        cache: Where to keep what is fetched; the hub's own cache by default.

    Returns:
        The folder; ``None`` if there is neither such a folder nor such a task (a name of a
        backbone, for instance).

    Raises:
        BundleError: If the repository cannot be reached or read.
    """
    if (Path(name) / TASK_FILE).is_file():
        return Path(name)
    text = str(name)
    if Path(name).exists() or text.count("/") != 1 or text.startswith((".", "/", "~")):
        return None
    from huggingface_hub import hf_hub_download, snapshot_download
    from huggingface_hub.errors import (
        EntryNotFoundError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
    )

    options: dict[str, Any] = {"revision": revision, "token": token, "cache_dir": cache}
    try:
        hf_hub_download(text, TASK_FILE, **options)
        return Path(snapshot_download(text, allow_patterns=_FILES, **options))
    except (LocalEntryNotFoundError, RepositoryNotFoundError, HFValidationError):
        # Not in the cache and no network, or no such repository: a backbone's name, or a mistake
        # that loading a backbone reports.
        return None
    except EntryNotFoundError:
        return None
    except (HfHubHTTPError, OSError) as error:
        raise BundleError(f"task '{text}' cannot be fetched from the hub: {error}") from error


def push_task(
    folder: str | Path,
    repository: str,
    *,
    base_model: str | None = None,
    license_name: str = "unknown",
    private: bool | None = None,
    revision: str | None = None,
    token: str | bool | None = None,
) -> str:
    """Upload a task's folder to the hub; the repository is created if missing.

    Args:
        repository: ``org/name``.
        base_model: The backbone's name on the hub; needed where the task names a local folder.
        license_name: The licence, as the hub names it (``apache-2.0``), for the card.
        revision: Branch to write to; the main one by default.
        token: Access token; the stored one by default.

    Raises:
        BundleError: If the bundle is broken, its backbone is a local folder, or the hub refuses.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    folder = Path(folder)
    manifest = read_manifest(folder)
    if base_model is not None:
        manifest = dataclasses.replace(manifest, backbone=base_model)
    elif Path(manifest.backbone).is_absolute():
        raise BundleError(
            f"{folder}: its backbone is the local folder {manifest.backbone}, which others do not "
            "have; give base_model='org/name', the same encoder on the hub"
        )
    values = dataclasses.asdict(manifest)
    api = HfApi(token=token)
    with tempfile.TemporaryDirectory(prefix="dptdr-hub-") as temporary:
        place = Path(temporary) / "task"
        place.mkdir()
        for file in folder.iterdir():
            if file.suffix in (".json", ".safetensors"):
                shutil.copy(file, place)
        write_json(place / TASK_FILE, values)
        write_card(place / "README.md", values, license_name=license_name)
        try:
            api.create_repo(repository, private=private, exist_ok=True)
            done = api.upload_folder(
                repo_id=repository,
                folder_path=place,
                revision=revision,
                commit_message=f"Upload the task {manifest.name}",
            )
        except (HfHubHTTPError, HFValidationError, OSError) as error:
            raise BundleError(f"{folder}: cannot be pushed to '{repository}': {error}") from error
    return str(done.commit_url)

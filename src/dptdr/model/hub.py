"""Load tasks from the Hugging Face Hub and push them; a task folder is a model repository."""

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
    """Resolve a task to a local folder, downloading ``org/name`` from the Hub.

    Args:
        token: Access token; the stored one by default.
        cache: Download folder; the Hub's own cache by default.

    Returns:
        The folder, or ``None`` if there is no such task, for example because it names a backbone.

    Raises:
        BundleError: If the repository cannot be reached or read.
    """
    if (Path(name) / TASK_FILE).exists():
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
        # Offline and not cached, or no such repository: the name of a backbone, or a typo to be
        # reported when the backbone is loaded.
        return None
    except EntryNotFoundError:
        return None
    except (HfHubHTTPError, OSError) as error:
        raise BundleError(f"cannot download task '{text}' from the Hub: {error}") from error


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
    """Upload a task folder to the Hub, creating the repository if needed.

    Args:
        repository: ``org/name``.
        base_model: The backbone's name on the Hub; required if the task's backbone is a local
            folder.
        license_name: License identifier for the model card, such as ``apache-2.0``.
        revision: Target branch; the default branch if omitted.
        token: Access token; the stored one by default.

    Returns:
        The URL of the commit.

    Raises:
        BundleError: If the bundle is damaged, its backbone is a local folder, or the Hub refuses.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    folder = Path(folder)
    manifest = read_manifest(folder)
    if base_model is not None:
        manifest = dataclasses.replace(manifest, backbone=base_model)
    elif Path(manifest.backbone).is_absolute():
        raise BundleError(
            f"{folder}: the backbone is a local folder ({manifest.backbone}), unavailable on "
            "other machines; pass base_model='org/name', the same encoder on the Hub"
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
            raise BundleError(f"{folder}: cannot push to '{repository}': {error}") from error
    return str(done.commit_url)

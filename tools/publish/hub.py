"""Uploads a published folder to the Hugging Face hub."""

from pathlib import Path
from typing import Any

from utils.errors import UserError
from utils.logger import log

LOGIN = "Log in with `hf auth login`, or set HF_TOKEN"


def check(repository: str, private: bool, overwrite: bool) -> None:
    """Raise UserError where the hub cannot be asked, or has the repository already and it must not be replaced.

    It must not without `overwrite`, nor where it is public and the upload is to be `private`.
    """
    try:
        api = _api()
        there = api.repo_exists(repository)
        public = there and private and not api.repo_info(repository).private
    except Exception as error:  # of the connection, the name, the token
        raise UserError(
            f"The hub cannot be asked for {repository}: {_reason(error)}\n"
            f"{LOGIN}. Without --push the folder is written here, and `hf upload {repository} DIR` uploads it later."
        ) from error
    if there and not overwrite:
        raise UserError(
            f"The hub has a repository {repository} already. Give another name with --push, or --overwrite to replace "
            "its files by a new commit; its history stays."
        )
    if public:
        raise UserError(_public(repository))


def push(folder: Path, repository: str, private: bool, overwrite: bool) -> None:
    """Upload all files of `folder` as one commit. With `overwrite` it also deletes the files that the folder lacks.

    Raises:
        UserError: the upload failed, or would be public though it is to be `private`. The folder here is complete.
    """
    try:
        api = _api()
        api.create_repo(repository, private=True if private else None, exist_ok=overwrite)
        if private and not api.repo_info(repository).private:  # the hub ignores `private` where the repository exists
            raise UserError(_public(repository))
        api.upload_folder(
            repo_id=repository,
            folder_path=str(folder),
            commit_message="Publish the checkpoint",
            delete_patterns="*" if overwrite else None,
        )
    except UserError:
        raise
    except Exception as error:  # of the connection, the rights, the hub
        raise UserError(
            f"{folder} is written, but its upload to {repository} failed: {_reason(error)}\n"
            f"{LOGIN}. Then try: hf upload {repository} {folder}"
        ) from error
    log.info(f'Uploaded: timm.create_model("hf-hub:{repository}", pretrained=True), or --load hf-hub:{repository}')


def _public(repository: str) -> str:
    return (
        f"The hub's repository {repository} is public, and --private does not change one that exists. Nothing was "
        "uploaded.\nMake it private in its settings on the hub, or give another name with --push."
    )


def _api() -> Any:
    import huggingface_hub

    return huggingface_hub.HfApi()


def _reason(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]

"""The only file that names huggingface_hub: models as hf://USER/NAME, a repository with one compact file."""

import pathlib
from typing import Any

from cmma_jax.data.images import one_line
from cmma_jax.errors import InputError

SCHEME, ADDRESS = "hf:", "hf://"  # a path that was made of an address has one slash less
FILE = "model.safetensors"


def on_hub(path: pathlib.Path | str) -> bool:
    """Returns whether a path is an address on the hub."""
    return str(path).startswith(f"{SCHEME}/")


def fetch(address: str) -> pathlib.Path:
    """Returns where the hub's own cache keeps a model's file; it is fetched if it is new, or if there is a network.

    Raises:
      InputError: huggingface_hub is not installed, or the hub does not give the file.
    """
    repository, hub = _repository(address), _hub()
    try:
        return pathlib.Path(hub.hf_hub_download(repository, FILE))
    except Exception as error:  # of the network, the hub, or the disk, each in its own way
        raise InputError(f"{ADDRESS}{repository} cannot be fetched ({one_line(error)}); its {FILE} is what `cmma push` "
                         "writes, and a private one needs HF_TOKEN") from error


def push(file: pathlib.Path, card: str, address: str, private: bool) -> None:
    """Puts a compact file and its card, Markdown, into a repository, which is made if it is not there.

    Raises:
      InputError: huggingface_hub is not installed, or the hub does not take them.
    """
    repository, api = _repository(address), _hub().HfApi()
    try:
        api.create_repo(repository, private=private, exist_ok=True)
        for name, content in ((FILE, file), ("README.md", card.encode())):
            api.upload_file(path_or_fileobj=content, path_in_repo=name, repo_id=repository)
    except Exception as error:  # as above
        raise InputError(f"{ADDRESS}{repository} cannot be written ({one_line(error)}); give HF_TOKEN, a token that "
                         "may write there") from error


def _repository(address: str) -> str:
    parts = address.removeprefix(SCHEME).strip("/").split("/")
    if len(parts) != 2 or not all(parts):
        raise InputError(f"{address!r} is no address of a model; give {ADDRESS}USER/NAME")
    return "/".join(parts)


def _hub() -> Any:
    try:
        import huggingface_hub
    except ImportError as error:
        raise InputError("models on the Hugging Face hub need huggingface_hub; pip install 'cmma_jax[hub]'") from error
    return huggingface_hub

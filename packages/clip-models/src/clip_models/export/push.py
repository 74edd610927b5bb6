"""`push_to_hub`: a model with its description, tokenizer and card, in one commit."""

import dataclasses
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path

from clip_models.errors import ClipModelsError, first_line
from clip_models.export.card import model_card
from clip_models.export.tokenizer_files import write_tokenizer
from clip_models.model import CLIP
from clip_models.tokenizers import Tokenizer, get_tokenizer
from clip_models.weights.convert.folders import save_open_clip


def push_to_hub(
    model: CLIP,
    repo_id: str,
    *,
    private: bool = False,
    token: str | None = None,
    commit_message: str = "Add model",
    licence: str = "",
    description: str = "",
    training_data: str = "",
    metrics: Mapping[str, float] | None = None,
    tokenizer: Tokenizer | None = None,
) -> str:
    """Uploads `model` to `repo_id` ("organisation/name", created if necessary); returns the address of the commit.

    The files are those that OpenCLIP reads: open_clip_config.json, open_clip_model.safetensors, the tokenizer's, and
    a README.md, all in one commit. `token` is the hub's access token, by default the one stored by huggingface_hub.
    Raises ClipModelsError if the hub refuses or does not answer.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    if repo_id.count("/") != 1:
        raise ClipModelsError(f"repo_id {repo_id!r} must be 'organisation/name'")
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        spec = model.spec
        if (
            spec.tokenizer.kind == "hf" and Path(spec.tokenizer.name).exists()
        ):  # a local folder, which becomes the repository
            spec = dataclasses.replace(spec, tokenizer=dataclasses.replace(spec.tokenizer, name=repo_id))
        save_open_clip(folder, model, spec.tokenizer)
        write_tokenizer(folder, tokenizer or get_tokenizer(model.spec))
        card = model_card(
            spec, repo_id, licence=licence, description=description, training_data=training_data, metrics=metrics
        )
        (folder / "README.md").write_text(card, encoding="utf-8")
        api = HfApi(endpoint=os.environ.get("HF_ENDPOINT"), token=token)
        try:
            api.create_repo(repo_id, private=private, exist_ok=True)
            commit = api.upload_folder(repo_id=repo_id, folder_path=folder, commit_message=commit_message)
        except HFValidationError as error:
            raise ClipModelsError(f"repo_id {repo_id!r} is not a valid name of the hub: {first_line(error)}") from error
        except HfHubHTTPError as error:
            status = getattr(error.response, "status_code", None)
            advice = "; log in with a token that can write there" if status in (401, 403) else ""
            raise ClipModelsError(f"the hub refused {repo_id!r} with status {status}{advice}") from error
        except Exception as error:  # the exceptions of the HTTP library, which changes from release to release
            raise ClipModelsError(
                f"the hub at {api.endpoint} does not answer ({first_line(error)}); try again later"
            ) from error
    return str(commit.commit_url)

"""`clip-models push`: a model to a hub."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Config:
    """Uploads weights, description, tokenizer and a card in one commit."""

    model: str
    """name of the architecture, hf-hub:org/repo or local-dir:folder"""
    repo_id: str
    """organisation/name on the hub; it is created if it does not exist"""
    pretrained: str = ""
    """a tag, or a file or folder with weights"""
    private: bool = False
    """make the repository private"""
    licence: str = ""
    """the hub's name of the licence, such as mit"""
    description: str = ""
    """a paragraph for the card"""
    training_data: str = ""
    """what the model was trained on, for the card"""
    message: str = "Add model"
    """of the commit"""
    quick_gelu: bool = False
    """the weights were trained with QuickGELU"""


def run(config: Config) -> int:
    from clip_models.export.push import push_to_hub
    from clip_models.factory import create_model

    model = create_model(
        config.model, config.pretrained or None, force_quick_gelu=config.quick_gelu, require_pretrained=True
    )
    options = {name: getattr(config, name) for name in ("private", "licence", "description", "training_data")}
    print(push_to_hub(model, config.repo_id, commit_message=config.message, **options))
    return 0

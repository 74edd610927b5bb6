"""Small towers of libraries, and an image and a text tower from outside the packages."""

from dataclasses import dataclass

from torch import Tensor, nn

from clip_models.specs import HFTextConfig, TextConfig, TimmConfig, VisionConfig
from clip_models.towers.base import ImageTower, TextTower, names_under

BERT = HFTextConfig(
    model_name="some/encoder",
    context_length=20,
    config={
        "model_type": "bert",
        "vocab_size": 49408,
        "hidden_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 96,
        "max_position_embeddings": 60,
        "pad_token_id": 0,
    },
)
"""A small text tower of transformers."""
TRUNK = TimmConfig(image_size=32, model_name="test_vit", pool="avg", proj="linear")
"""A small image tower of timm."""


@dataclass(frozen=True, kw_only=True)
class MeanColorConfig(VisionConfig):
    """A linear map of the mean colour."""

    TOWER = "tests.support.towers:MeanColor"
    bias: bool = False


class MeanColor(ImageTower):
    def __init__(self, config: MeanColorConfig, embed_dim: int, quick_gelu: bool = False) -> None:
        super().__init__()
        self.linear = nn.Linear(3, embed_dim, bias=config.bias)

    def forward(self, image: Tensor) -> Tensor:
        return self.linear(image.mean(dim=(2, 3)))

    def blocks(self) -> list[nn.Module]:
        return [self.linear]

    def layer_groups(self) -> list[list[str]]:
        return [names_under(self, "linear")]


@dataclass(frozen=True, kw_only=True)
class WordBagConfig(TextConfig):
    """The mean of learned vectors of the tokens."""

    TOWER = "tests.support.towers:WordBag"
    vocab_size: int = 49408
    width: int = 8
    pad_id: int = 0

    @property
    def spare_columns(self) -> str:
        return "padding"


class WordBag(TextTower):
    def __init__(self, config: WordBagConfig, embed_dim: int, quick_gelu: bool = False) -> None:
        super().__init__()
        self.config = config
        self.words = nn.Embedding(config.vocab_size, config.width)
        self.project = nn.Linear(config.width, embed_dim)

    def forward(self, text: Tensor) -> Tensor:
        seen = (text != self.config.pad_id).unsqueeze(-1)
        return self.project((self.words(text) * seen).sum(dim=1) / seen.sum(dim=1).clamp(min=1))

    def blocks(self) -> list[nn.Module]:
        return [self.words]

    def layer_groups(self) -> list[list[str]]:
        return [names_under(self, "words"), names_under(self, "project")]

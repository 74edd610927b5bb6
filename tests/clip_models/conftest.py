import pytest
import torch

import clip_models


@pytest.fixture(scope="module")
def tiny():
    """The smallest named model, seed 0, in eval mode. Tests do not change it."""
    return clip_models.create_model("ViT-Ti-4-24", seed=0).eval()


@pytest.fixture(scope="module")
def batch():
    """(image float32 [4, 3, 24, 24], text int64 [4, 32])."""
    image = torch.randn(4, 3, 24, 24, generator=torch.Generator().manual_seed(0))
    text = clip_models.get_tokenizer("ViT-Ti-4-24")(["a red circle", "two blue squares above a star", "", "word " * 50])
    return image, text

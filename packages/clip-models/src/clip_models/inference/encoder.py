"""A model with its preprocessing and tokenizer: images and captions to features, for inference."""

import functools
import hashlib
import json
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from clip_core import ImageMode
from clip_models.errors import ClipModelsError
from clip_models.factory import create_model
from clip_models.model import CLIP
from clip_models.model.precision import get_input_dtype
from clip_models.preprocess.image import normalise, preprocess_eval
from clip_models.specs import get_model_spec
from clip_models.tokenizers import Tokenizer, get_tokenizer
from clip_models.weights.locate import is_model_source
from clip_models.weights.registry import list_pretrained_tags_by_model
from clip_models.weights.tensorfiles import digest


def require_weights(model: str, pretrained: str | None) -> None:
    """Raises ClipModelsError unless the two name weights: features of random weights are meaningless."""
    if pretrained or is_model_source(model):
        return
    tags = list_pretrained_tags_by_model(get_model_spec(model).name)
    hint = f"a tag ({', '.join(tags[:6])}{', …' if len(tags) > 6 else ''}) or a file" if tags else "a file"
    raise ClipModelsError(f"{model} without pretrained has random weights; name {hint} as pretrained")


class Encoder:
    """Images and captions → float32 features, without gradients and on the model's device. fp32 is without TF32."""

    def __init__(self, model: CLIP, precision: str = "fp32", image_mode: ImageMode = "standard") -> None:
        """`model`: a CLIP in `precision` on its device. It is set to eval mode."""
        self.input_dtype = get_input_dtype(precision) or torch.float32
        self.model = model.eval()
        self.spec = model.spec
        self.precision = precision
        self.device = next(model.parameters()).device
        self.transform = preprocess_eval(self.spec.preprocess, image_mode)

    @classmethod
    def load(
        cls,
        model: str | CLIP,
        pretrained: str | None,
        precision: str = "fp32",
        device: str = "auto",
        *,
        quick_gelu: bool = False,
        image_mode: ImageMode = "standard",
    ) -> "Encoder":
        """Returns the encoder of a named model with weights, or of a CLIP. Raises ClipModelsError."""
        if isinstance(model, str):
            require_weights(model, pretrained)
            if device == "auto":
                device = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
            options: dict[str, Any] = {"force_quick_gelu": quick_gelu, "require_pretrained": True}
            model = create_model(model, pretrained or None, precision=precision, device=device, **options)
        return cls(model, precision, image_mode)

    @functools.cached_property
    def tokenizer(self) -> Tokenizer:
        """Loaded for the first caption: images alone need no files of a tokenizer."""
        return get_tokenizer(self.spec)

    @functools.cached_property
    def digest(self) -> str:
        """SHA-256 over the names, types, shapes and values of all tensors, as in files of weights."""
        return digest({name: tensor.detach().cpu().contiguous() for name, tensor in self.model.state_dict().items()})

    @functools.cached_property
    def spec_fingerprint(self) -> str:
        """SHA-256 of the spec as JSON."""
        return hashlib.sha256(json.dumps(self.spec.to_dict(), sort_keys=True).encode()).hexdigest()

    def pixels(self, image: Image.Image) -> np.ndarray:
        """Returns an image of any mode as uint8 [H, W, 3], the input of `encode_pixels`. Raises ImageError."""
        return self.transform.pixels(image)

    def encode_pixels(self, pixels_BHWC: np.ndarray, normalize: bool = True) -> Tensor:
        """uint8 [B, H, W, 3] → float32 [B, embed_dim]."""
        with self._inference():
            images = normalise(torch.from_numpy(pixels_BHWC).to(self.device), self.spec.preprocess)
            features = self.model.encode_image(images.to(self.input_dtype), normalize=False)
            return _finish(features, normalize)

    def encode_images(self, images: Sequence[Image.Image], normalize: bool = True) -> Tensor:
        """Pillow images → float32 [N, embed_dim]."""
        return self.encode_pixels(np.stack([self.pixels(image) for image in images]), normalize)

    def encode_texts(self, texts: Sequence[str], normalize: bool = True) -> Tensor:
        """Captions → float32 [N, embed_dim]."""
        with self._inference():
            ids = self.tokenizer(list(texts)).to(self.device)
            return _finish(self.model.encode_text(ids, normalize=False), normalize)

    def _inference(self) -> ExitStack:
        stack = ExitStack()
        stack.enter_context(torch.inference_mode())
        stack.enter_context(torch.backends.cudnn.flags(allow_tf32=self.precision != "fp32"))
        if self.precision.startswith("amp"):
            dtype = torch.float16 if self.precision == "amp" else torch.bfloat16
            stack.enter_context(torch.autocast(self.device.type, dtype))
        return stack


def _finish(features: Tensor, normalize: bool) -> Tensor:
    return F.normalize(features.float(), dim=-1) if normalize else features.float()

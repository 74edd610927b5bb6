"""The dual encoder.

Shapes: B batch, L tokens, E embed_dim.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clip_models.errors import ClipModelsError
from clip_models.specs import CLIPTextConfig, ModelSpec
from clip_models.towers.base import Indices
from clip_models.towers.common import cut_captions
from clip_models.towers.text.clip import TextLayers, TextTransformer


class CLIP(TextLayers):
    """An image tower under `visual`, and a text tower under `text` or at the root as in OpenAI's layout.

    Features are normalised on request only, except those of `forward`, which is for training. `output_dict` makes
    `forward` return a dict.
    """

    def __init__(self, spec: ModelSpec, output_dict: bool = False) -> None:
        super().__init__()
        self.spec = spec
        self.output_dict = output_dict
        self.visual: Any = spec.vision.build(spec.embed_dim, spec.quick_gelu)
        if spec.text_at_root:
            assert isinstance(spec.text, CLIPTextConfig)
            self.add_text_layers(spec.text, spec.embed_dim, spec.quick_gelu)
        else:
            self.text: Any = spec.text.build(spec.embed_dim, spec.quick_gelu)
            self.context_length = spec.text.context_length
            self.vocab_size = spec.text.vocab_size
        scale = math.log(1 / 0.07) if spec.init_logit_scale is None else spec.init_logit_scale
        self.logit_scale = nn.Parameter(torch.tensor(scale))
        bias = spec.init_logit_bias
        self.logit_bias = None if bias is None else nn.Parameter(torch.tensor(float(bias)))

    @property
    def text_tower(self) -> Any:
        """The text tower; if its tensors are at the root, a view of this model as a tower."""
        if not self.spec.text_at_root:
            return self.text
        view = TextTransformer.__new__(TextTransformer)
        view.__dict__ = self.__dict__  # the same parameters, also after one of them is replaced
        return view

    def encode_image(self, image: Tensor, normalize: bool = False) -> Tensor:
        """float [B, 3, height, width], mean and std applied → [B, E]; L2-normalised on request."""
        return _features(self.visual(image), normalize)

    def encode_text(self, text: Tensor, normalize: bool = False) -> Tensor:
        """int64 [B, L], L ≤ context_length, → [B, E]; L2-normalised on request.

        If attention is causal, columns to the right of every end token may be cut off: they change nothing.
        """
        return _features(self.encode_ids(text) if self.spec.text_at_root else self.text(text), normalize)

    def cut_captions(self, text: Tensor) -> Tensor:
        """Returns int64 [B, L] without the columns at its right that change no feature (`spare_columns` of the spec).

        The values are read on the CPU only, where `encode_text` does this itself; call it before a batch is copied to
        an accelerator.
        """
        return cut_captions(text, self.spec.text)

    def get_logits(self, image: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
        """Returns (logits of the images over the texts, their transpose): scaled cosines, plus the bias."""
        image_features, text_features = self.encode_image(image, normalize=True), self.encode_text(text, normalize=True)
        return self._logits(image_features, text_features)

    def forward(self, image: Tensor | None = None, text: Tensor | None = None) -> Any:
        """Returns (image features [B, E], text features [B, E], exp(logit_scale), and logit_bias if there is one).

        Features are L2-normalised, and None for an absent input. With `output_dict` returns the same as a dict.
        """
        output = {
            "image_features": None if image is None else self.encode_image(image, normalize=True),
            "text_features": None if text is None else self.encode_text(text, normalize=True),
            "logit_scale": self.logit_scale.exp(),
        }
        if self.logit_bias is not None:
            output["logit_bias"] = self.logit_bias
        return output if self.output_dict else tuple(output.values())

    def forward_intermediates(
        self,
        image: Tensor | None = None,
        text: Tensor | None = None,
        image_indices: Indices = None,
        text_indices: Indices = None,
        stop_early: bool = False,
        normalize: bool = True,
        normalize_intermediates: bool = False,
        intermediates_only: bool = False,
        image_output_fmt: str = "NCHW",
        image_output_extra_tokens: bool = False,
        text_output_fmt: str = "NLC",
        text_output_extra_tokens: bool = False,
        output_logits: bool = False,
        output_logit_scale_bias: bool = False,
    ) -> dict[str, Any]:
        """Returns the outputs of blocks of both towers under OpenCLIP's names; see `Tower.forward_intermediates`.

        Unless `intermediates_only` also `image_features` and `text_features`, by default normalised, and on request
        `image_logits` and `text_logits`, or `logit_scale` and `logit_bias`.
        """
        logits = output_logits and not intermediates_only
        if logits and (image is None or text is None):
            raise ClipModelsError("output_logits needs an image and a text; give both")
        towers = (
            (self.visual, image, image_indices, image_output_fmt, image_output_extra_tokens),
            (self.text_tower, text, text_indices, text_output_fmt, text_output_extra_tokens),
        )
        output: dict[str, Any] = {}
        for tower, inputs, indices, layout, extra_tokens in towers:
            if inputs is not None:
                output |= tower.forward_intermediates(
                    inputs, indices, stop_early, normalize_intermediates, intermediates_only, layout, extra_tokens
                )
        for name in ("image_features", "text_features"):
            if normalize and name in output:
                output[name] = F.normalize(output[name], dim=-1)
        if logits:
            output["image_logits"], output["text_logits"] = self._logits(
                output["image_features"], output["text_features"]
            )
        if output_logit_scale_bias:
            output["logit_scale"] = self.logit_scale.exp()
            if self.logit_bias is not None:
                output["logit_bias"] = self.logit_bias
        return output

    def lock_image_tower(self, unlocked_groups: int = 0, freeze_bn_stats: bool = False) -> None:
        """Freezes the image tower except its last groups of layers (locked-image tuning)."""
        self.visual.lock(unlocked_groups=unlocked_groups, freeze_bn_stats=freeze_bn_stats)

    def lock_text_tower(self, unlocked_layers: int = 0, freeze_layer_norm: bool = True) -> None:
        """Freezes the text tower except its last groups of layers."""
        self.text_tower.lock(unlocked_layers=unlocked_layers, freeze_layer_norm=freeze_layer_norm)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recomputes the activations inside each block in the backward pass instead of storing them."""
        self.visual.set_grad_checkpointing(enable)
        self.text_tower.set_grad_checkpointing(enable)

    def layer_groups(self) -> dict[str, list[list[str]]]:
        """Returns the names of the parameters of each tower, "image" and "text", in groups from input to output."""
        towers = {"image": ("visual.", self.visual), "text": (self._text_prefix, self.text_tower)}
        return {
            name: [[f"{prefix}{parameter}" for parameter in group] for group in tower.layer_groups()]
            for name, (prefix, tower) in towers.items()
        }

    def blocks(self) -> list[nn.Module]:
        """Returns the repeated blocks of both towers, which are sharded, compiled and checkpointed one by one."""
        return [*self.visual.blocks(), *self.text_tower.blocks()]

    def no_weight_decay(self) -> set[str]:
        """Returns the names of parameters that should not decay although they are matrices or embeddings."""
        image = {f"visual.{name}" for name in self.visual.no_weight_decay()}
        return image | {f"{self._text_prefix}{name}" for name in self.text_tower.no_weight_decay()}

    @property
    def _text_prefix(self) -> str:
        return "" if self.spec.text_at_root else "text."

    def _logits(self, image_features: Tensor, text_features: Tensor) -> tuple[Tensor, Tensor]:
        logits = self.logit_scale.exp() * image_features @ text_features.T
        if self.logit_bias is not None:
            logits = logits + self.logit_bias
        return logits, logits.T


def _features(output: Tensor | tuple[Tensor, Tensor | None], normalize: bool) -> Tensor:
    features = output[0] if isinstance(output, tuple) else output
    return F.normalize(features, dim=-1) if normalize else features

"""CoCa: a dual encoder with a decoder above its text tower that captions the image.

Shapes: B batch, L tokens of a caption, M tokens of an image, D width of the decoder, E embed_dim, V vocabulary.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from clip_models.errors import ClipModelsError
from clip_models.model.clip import CLIP
from clip_models.model.generate import generate as generate_captions
from clip_models.specs import ModelSpec
from clip_models.towers.text.decoder import MultimodalDecoder


class CoCa(CLIP):
    """An image tower under `visual`, a text tower under `text` and the captioning decoder under `text_decoder`.

    Features are by default L2-normalised, and `forward` returns a dict, as OpenCLIP's CoCa.
    """

    def __init__(self, spec: ModelSpec) -> None:
        if spec.decoder is None:
            raise ClipModelsError(f"{spec.name!r} has no decoder: it is a CLIP, not a CoCa")
        super().__init__(spec, output_dict=True)
        self.text_decoder = MultimodalDecoder(spec.decoder, spec.quick_gelu)
        self.context_length = spec.decoder.context_length

    def encode_image(self, image: Tensor, normalize: bool = True) -> Tensor:
        """float [B, 3, height, width], mean and std applied → [B, E]."""
        return super().encode_image(image, normalize)

    def encode_text(self, text: Tensor, normalize: bool = True) -> Tensor:
        """int64 [B, L] → [B, E]."""
        return super().encode_text(text, normalize)

    def forward(
        self,
        image: Tensor | None = None,
        text: Tensor | None = None,
        image_latent: Tensor | None = None,
        image_embs: Tensor | None = None,
        output_labels: bool = True,
    ) -> dict[str, Tensor]:
        """Returns the inputs of the contrastive and the captioning loss.

        `image_features` and `text_features` [B, E], L2-normalised; `logits` [B, L - 1, V] of each next token and
        `labels` [B, L - 1], those tokens; the exponential of `logit_scale`; `logit_bias` if there is one. Without
        `output_labels` there are no labels, and the logits are [B, L, V]. Without text: `image_features` and
        `image_embs` [B, M, D], which a later call takes instead of the image, the features as `image_latent`.
        """
        if image_latent is None or image_embs is None:
            if image is None:
                raise ClipModelsError("a CoCa needs an image, or image_latent and image_embs of an earlier call")
            features, image_embs = self.visual(image)
            image_latent = F.normalize(features, dim=-1)
        if text is None:
            return {"image_features": image_latent, "image_embs": image_embs}
        features, text_embs = self.text(text)
        output = {
            "image_features": image_latent,
            "text_features": F.normalize(features, dim=-1),
            "logits": self.text_decoder(image_embs, text_embs[:, :-1] if output_labels else text_embs),
            "logit_scale": self.logit_scale.exp(),
        }
        if output_labels:
            output["labels"] = text[:, 1:]
        if self.logit_bias is not None:
            output["logit_bias"] = self.logit_bias
        return output

    generate = generate_captions

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        super().set_grad_checkpointing(enable)
        self.text_decoder.set_grad_checkpointing(enable)

    def layer_groups(self) -> dict[str, list[list[str]]]:
        """Returns the groups of "image", "text" and "decoder"."""
        decoder = [[f"text_decoder.{name}" for name in group] for group in self.text_decoder.layer_groups()]
        return {**super().layer_groups(), "decoder": decoder}

    def blocks(self) -> list[nn.Module]:
        return [*super().blocks(), *self.text_decoder.blocks()]

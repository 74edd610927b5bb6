"""Small CoCa specs and their input."""

from dataclasses import replace

import torch

from clip_models import ModelSpec
from clip_models.model.coca import CoCa
from clip_models.specs import CLIPTextConfig, DecoderConfig, PreprocessConfig, TokenizerConfig, ViTConfig

VOCAB = 24
IDS = {"sot_token_id": 22, "eos_token_id": 23, "pad_token_id": 0}
TINY = ModelSpec(
    name="coca-tiny",
    embed_dim=32,
    vision=ViTConfig(
        image_size=32, patch_size=8, width=48, layers=2, head_width=16, attentional_pool=True, attn_pooler_queries=10,
        attn_pooler_heads=2, output_tokens=True,
    ),
    text=CLIPTextConfig(
        context_length=16, vocab_size=VOCAB, width=32, heads=2, layers=2, embed_cls=True, output_tokens=True
    ),
    decoder=DecoderConfig(context_length=16, vocab_size=VOCAB, width=32, heads=2, layers=2),
    preprocess=PreprocessConfig(size=(32, 32)),
    tokenizer=TokenizerConfig(kind="hf", name="none"),
)  # fmt: skip
# With the image tower of coca_base and coca_roberta-ViT-B-32, whose patches are the decoder's image tokens.
PLAIN = replace(
    TINY, vision=replace(TINY.vision, width=32, attentional_pool=False), quick_gelu=True, init_logit_bias=-3.0
)


def random_coca(spec: ModelSpec, seed: int = 0, gain: float = 1.0) -> CoCa:
    """Random weights, matrices `gain` times as large as at the start, no vector as it was initialised."""
    torch.manual_seed(seed)
    model = CoCa(spec)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(gain) if parameter.ndim > 1 else parameter.add_(0.1 * torch.randn_like(parameter))
        model.logit_scale.fill_(2.0)
        model.text_decoder.text_projection[:, IDS["eos_token_id"]] *= 1.5  # so that captions end early now and then
    return model


def inputs(spec: ModelSpec, seed: int = 0, count: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    """Images, and captions of which one is padded and one has a padding in the middle."""
    generator = torch.Generator().manual_seed(seed)
    image = torch.randn(count, 3, *spec.preprocess.size, generator=generator)
    text = torch.randint(1, spec.text.vocab_size, (count, spec.text.context_length), generator=generator)
    text[0, 9:] = 0
    text[1:2, 4] = 0
    return image, text

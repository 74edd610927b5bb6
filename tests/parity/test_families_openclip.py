"""Whole models of every family, as the table of architectures has them but for their depth, against OpenCLIP's.

OpenCLIP's model is built from the open_clip_config.json that is written of ours. CoCa and the modern text tower, which
the published package lacks, have files of their own.
"""

import copy
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from clip_models import HFTextConfig, ModelSpec, ResNetConfig, TokenizerConfig, ViTConfig, get_model_spec
from clip_models.model import build_model
from clip_models.specs.openclip import to_open_clip_config
from clip_models.towers.common import NoRandomInit

open_clip = pytest.importorskip("open_clip")
timm = pytest.importorskip("timm")
pytest.importorskip("transformers")
pytestmark = pytest.mark.parity

VOCABULARY, END = 1000, 2
# Name, and what makes its trunk of timm shallow.
FAMILIES: dict[str, dict[str, Any]] = {
    "ViT-B-32-quickgelu": {},
    "ViT-L-14-CLIPA": {},
    "ViT-L-14-worldwide": {},
    "RN50": {},
    "convnext_base_w": {"depths": (1, 1, 1, 1)},
    "EVA02-B-16": {"depth": 1},
    "ViTamin-S": {"depth": 1},
    "MobileCLIP-S1": {"layers": (1,) * 4},
    "MobileCLIP-B": {"depth": 1},
    "MobileCLIP2-S3": {"layers": (1,) * 5},
    "ViT-B-16-SigLIP": {"depth": 1},
    "ViT-B-32-SigLIP2-256": {"depth": 1},
    "PE-Core-T-16-384": {"depth": 1},
    "roberta-ViT-B-32": {},
    "xlm-roberta-base-ViT-B-32": {},
    "mt5-base-ViT-B-32": {},
    "nllb-clip-base-siglip": {"depth": 1},
}
LAYERS_OF_HF = ("num_hidden_layers", "num_layers", "encoder_layers", "num_decoder_layers", "decoder_layers")


def shallow(name: str) -> ModelSpec:
    """The named architecture with a block or two and a small vocabulary."""
    spec = get_model_spec(name)
    vision: Any = spec.vision
    if isinstance(vision, ViTConfig):
        vision = replace(vision, layers=1)
    elif isinstance(vision, ResNetConfig):
        vision = replace(vision, layers=(1, 1, 1, 1))
    text: Any = spec.text
    if isinstance(text, HFTextConfig):
        text = replace(
            text,
            config={
                key: VOCABULARY if key == "vocab_size" else 1 if key in LAYERS_OF_HF else value
                for key, value in text.config.items()
            },
        )
    else:
        text = replace(text, layers=1, vocab_size=VOCABULARY, eos_id=END if text.eos_id is not None else None)
    return replace(spec, vision=vision, text=text, tokenizer=TokenizerConfig(kind="hf", name="any"))


def reference_of(spec: ModelSpec, folder: Path) -> torch.nn.Module:
    config = copy.deepcopy(to_open_clip_config(spec)["model_cfg"])
    if isinstance(spec.text, HFTextConfig):
        (folder / "config.json").write_text(json.dumps(spec.text.config))
        config["text_cfg"] |= {"hf_model_name": str(folder), "hf_model_pretrained": False}
        config["text_cfg"].pop("hf_model_config", None)
    custom = config.pop("custom_text", False) or "hf_model_name" in config["text_cfg"]
    return (open_clip.CustomTextCLIP if custom else open_clip.CLIP)(**config)


def inputs(spec: ModelSpec) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    colour = 3 * torch.randn(2, 3, 1, 1, generator=generator)  # noise alone is the same to what averages over an image
    image = colour + torch.randn(2, 3, *spec.preprocess.size, generator=generator)
    text = torch.randint(3, VOCABULARY - 1, (2, min(spec.text.context_length, 24)), generator=generator)
    if not isinstance(spec.text, HFTextConfig):
        text = torch.nn.functional.pad(text, (0, spec.text.context_length - text.shape[1]))
        text[torch.arange(2), [4, 12]] = VOCABULARY - 1 if spec.text.eos_id is None else END
    return image, text


@pytest.mark.parametrize("name", FAMILIES)
def test_features_logits_and_gradients_in_both_directions(name, tmp_path, monkeypatch):
    create = timm.create_model
    monkeypatch.setattr(timm, "create_model", lambda *args, **options: create(*args, **options, **FAMILIES[name]))
    spec = shallow(name)
    torch.manual_seed(0)
    ours = build_model(spec)
    with NoRandomInit():  # its weights will be ours
        reference = reference_of(spec, tmp_path)
    image, text = inputs(spec)
    for source, target, training in ((ours, reference, True), (reference, ours, False)):
        with torch.no_grad():
            for key, tensor in source.named_parameters():
                if "logit_" not in key and (tensor.ndim < 2 or tensor.abs().max() < 1e-3):
                    tensor += 0.1 * torch.randn_like(tensor)  # zeros and small scales would hide what they multiply
        target.load_state_dict(source.state_dict(), strict=True)
        outputs = []
        for model in (ours.train(training), reference.train(training)):
            model.zero_grad()
            torch.manual_seed(1)  # dropout and stochastic depth draw the same
            image_features, text_features, scale, *bias = model(image, text)
            logits = scale * image_features @ text_features.T + sum(bias)
            torch.nn.functional.cross_entropy(logits, torch.arange(2)).backward()
            outputs.append((image_features, text_features, logits))
        assert (outputs[1][2][0] - outputs[1][2][1]).abs().max() > 1e-4  # the images are told apart
        for mine, theirs in zip(*outputs, strict=True):
            assert (mine - theirs).abs().max() < 1e-5
        for key, parameter in ours.named_parameters():
            expected = reference.get_parameter(key).grad
            assert (parameter.grad is None) == (expected is None), key
            if expected is not None:
                # The absolute part is for gradients that are zero but for rounding, as of the keys' bias.
                assert (parameter.grad - expected).norm() <= 1e-4 * expected.norm() + 1e-6, key

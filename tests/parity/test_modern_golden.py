"""The modern text tower, which the published OpenCLIP lacks, against numbers of its development line."""

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors import safe_open

from clip_models.model import build_model
from clip_models.specs.openclip import from_open_clip_config

pytestmark = pytest.mark.parity
GOLDEN = Path(__file__).parents[3] / "shared" / "golden"
FILES = sorted(GOLDEN.glob("modern_*.safetensors"))


def read(path):
    with safe_open(path, "pt") as file:
        return json.loads(file.metadata()["config"]), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def build(config):
    # The files name no tokenizer, and their vocabulary is none of the known ones.
    text = {**config["text_cfg"], "hf_tokenizer_name": "any"}
    return build_model(from_open_clip_config({**config, "text_cfg": text}, "modern"))


@pytest.mark.skipif(not FILES, reason=f"no modern_*.safetensors in {GOLDEN}")
@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_features_loss_and_gradients(path):
    config, tensors = read(path)
    weights = {name.removeprefix("weights/"): t for name, t in tensors.items() if name.startswith("weights/")}
    model = build(config)
    assert {name: t.shape for name, t in model.state_dict().items()} == {name: t.shape for name, t in weights.items()}
    model.load_state_dict(weights)
    for mode in ("train", "eval"):  # the towers have no dropout: both modes give the same
        getattr(model, mode)()
        model.zero_grad()
        image, text, scale = model(tensors["image"], tensors["text"])
        logits = scale * image @ text.T
        target = torch.arange(len(logits))
        loss = F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)
        loss.backward()
        assert (image - tensors["out/image_features"]).abs().max() < 1e-6
        assert (text - tensors["out/text_features"]).abs().max() < 2e-6
        assert (logits - tensors["out/logits"]).abs().max() < 1e-5
        assert (loss - tensors["out/loss"]).abs().max() < 5e-6
        for name, parameter in model.named_parameters():
            expected = tensors[f"grad/{name}"]
            # The absolute part is for biases of keys, whose gradient is zero but for rounding.
            assert (parameter.grad - expected).norm() <= 2e-5 * expected.norm() + 1e-6, name


@pytest.mark.skipif(not FILES, reason=f"no modern_*.safetensors in {GOLDEN}")
def test_every_option_of_the_tower_is_among_them():
    """A new option without numbers would go unseen."""
    configs = [read(path)[0]["text_cfg"] for path in FILES]
    for option in ("qk_norm", "attn_gated", "gate_bias", "attention_bias", "mlp_bias", "proj_bias", "pre_norm",
                   "ls_init_value", "value_residual", "reg_tokens"):  # fmt: skip
        assert any(config.get(option) for config in configs), option
    for option, values in {
        "attention_mode": {"causal", "bidirectional"},
        "mlp_type": {"swiglu", "mlp", "relu2"},
        "norm_type": {"rmsnorm", "layernorm"},
        "pool_type": {"eos", "mean", "map"},
    }.items():
        assert {config[option] for config in configs} == values

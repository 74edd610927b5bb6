"""Every kind of text tower trains on whole captions: what the trainer cuts off changes no feature."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from clip_models import ModelSpec, get_model_spec, get_tokenizer
from clip_models.model import build_model
from clip_models.specs import CLIPTextConfig, HFTextConfig, ModernTextConfig, TextConfig, TokenizerConfig
from clip_models.towers import common
from clip_train.gradients import Gradients
from clip_train.optim.build import make_optimizer
from clip_train.optim.config import OptimConfig
from clip_train.parallel import World
from clip_train.tasks.contrastive import ContrastiveConfig
from tests.support import coca
from tests.support import tokenizers as small

CONTEXT = 48
CAPTIONS = ["a photo of a cat", "", "two dogs in the park!", "a cat", "red cat, blue dog"]
SIZES = {"context_length": CONTEXT, "width": 16, "heads": 2, "layers": 2}
BPE = TokenizerConfig()
OWN = {"vocab_size": 400, "pad_id": 1, "eos_id": 2, **SIZES}  # of the small byte-level tokenizer
BERT = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32,
        "max_position_embeddings": 60, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}  # fmt: skip
ROBERTA = {"model_type": "roberta", "vocab_size": 400, "pad_token_id": 1, **BERT}
MT5 = {"model_type": "mt5", "d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2, "vocab_size": 120,
       "dropout_rate": 0.0, "pad_token_id": 1}  # fmt: skip
MODERN = ModernTextConfig(vocab_size=310, eos_id=300, pad_id=301, bos_id=302, **SIZES)

HF = partial(HFTextConfig, model_name="some/encoder", context_length=CONTEXT)


def tokenizer_config(maker: Callable[..., Path], kind: str = "hf", name: str = "files", **options) -> Callable:
    return lambda folder: TokenizerConfig(kind=kind, name=str(maker(folder / name)), **options)


BYTES = tokenizer_config(small.make_byte_bpe)
# The text tower; its tokenizer, or what makes one in a folder; whether columns at the right may go.
TOWERS: dict[str, tuple[TextConfig, TokenizerConfig | Callable[[Path], TokenizerConfig], bool]] = {
    "CLIP, highest id": (CLIPTextConfig(**SIZES), BPE, True),
    "CLIP, end token": (CLIPTextConfig(**SIZES, pool_type="eos", eos_id=49407), BPE, True),
    "CLIP, first token": (CLIPTextConfig(**SIZES, pool_type="first", no_causal_mask=True), BPE, False),
    "CLIP, class token": (CLIPTextConfig(**SIZES, embed_cls=True), BPE, False),
    "CLIP, all tokens returned": (CLIPTextConfig(**SIZES, output_tokens=True), BPE, False),
    "SigLIP": (
        CLIPTextConfig(**SIZES, vocab_size=120, no_causal_mask=True, pool_type="last", proj_bias=True, pad_id=1),
        tokenizer_config(small.make_sentencepiece, "sentencepiece", "spiece.model"),
        False,
    ),
    "CLIPA": (
        CLIPTextConfig(**SIZES, vocab_size=200, no_causal_mask=True, pool_type="last"),
        tokenizer_config(small.make_wordpiece, strip_sep_token=True),
        False,
    ),
    "MetaCLIP 2": (CLIPTextConfig(**OWN, pool_type="eos"), BYTES, True),
    "causal, last token": (CLIPTextConfig(**OWN, pool_type="last"), BYTES, False),
    "RoBERTa, mean": (HF(config=ROBERTA), BYTES, True),
    "RoBERTa, maximum": (HF(config=ROBERTA, pooler_type="max_pooler"), BYTES, True),
    "RoBERTa, class token": (HF(config=ROBERTA, pooler_type="cls_pooler"), BYTES, True),
    "RoBERTa, all tokens returned": (HF(config=ROBERTA, output_tokens=True), BYTES, False),
    "mT5": (HF(config=MT5), tokenizer_config(small.make_t5), True),
    "modern, end token": (MODERN, tokenizer_config(small.make_tiktoken, "tiktoken", "small.tiktoken"), True),
    "modern, mean": (
        replace(MODERN, attention_mode="bidirectional", pool_type="mean", reg_tokens=2),
        tokenizer_config(small.make_tiktoken, "tiktoken", "small.tiktoken"),
        True,
    ),
    "modern, map": (
        replace(MODERN, attention_mode="bidirectional", pool_type="map"),
        tokenizer_config(small.make_tiktoken, "tiktoken", "small.tiktoken"),
        True,
    ),
}


@pytest.fixture(autouse=True)
def libraries():
    for name in ("transformers", "sentencepiece", "tiktoken"):
        pytest.importorskip(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", TOWERS)
def test_one_step_on_its_own_tokenizer_with_the_features_of_the_whole_captions(name, tmp_path, monkeypatch):
    text, tokenizer, cuts = TOWERS[name]
    tokenizer = tokenizer if isinstance(tokenizer, TokenizerConfig) else tokenizer(tmp_path)
    spec = replace(get_model_spec("ViT-Ti-4-24"), name=name, custom_text=True, text=text, tokenizer=tokenizer)
    torch.manual_seed(0)
    task = ContrastiveConfig().build(build_model(spec), precision="fp32", world=World(0, 1, torch.device("cpu")))
    tokens = get_tokenizer(spec).encode_numpy(CAPTIONS)
    images = np.random.default_rng(0).integers(0, 256, (len(CAPTIONS), 3, 24, 24), dtype=np.uint8)
    batch = task.prepare({"image": images, "text": tokens})
    assert (batch["text"].shape[1] < CONTEXT) == cuts
    found = task.model.encode_text(batch["text"])
    with monkeypatch.context() as patch:
        patch.setattr(common, "may_look", lambda text: False)  # the tower itself cuts nothing either
        torch.testing.assert_close(found, task.model.encode_text(torch.from_numpy(tokens)), rtol=1e-5, atol=1e-5)
    assert len({tuple(row.tolist()) for row in found.detach()}) == len(CAPTIONS)

    optimizer = make_optimizer(task.model, OptimConfig(lr=1e-3))
    Gradients(task, task.world).backward(batch, 0)
    assert all(parameter.grad is not None for parameter in task.model.parameters())
    optimizer.step()
    after = task.model.encode_text(batch["text"])
    assert after.isfinite().all()
    assert (after - found).abs().amax(dim=1).min() > 1e-5  # of every caption


def test_the_captions_of_a_coca_stay_whole():
    spec: ModelSpec = coca.TINY
    model, text = coca.random_coca(spec), coca.inputs(spec)[1]
    text[:, 6:] = spec.text.pad_id
    assert torch.equal(model.cut_captions(text), text)

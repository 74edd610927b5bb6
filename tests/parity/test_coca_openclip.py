"""CoCa against OpenCLIP's: names and shapes, outputs, gradients, and the captions of every kind of generation.

OpenCLIP's `generate` needs a class that transformers 5 no longer has; tests.support.beam_scorer stands in for it.
"""

import pytest
import torch

from clip_models import ModelSpec, get_model_spec
from clip_models.model.coca import CoCa
from clip_models.towers.common import NoRandomInit
from tests.support.beam_scorer import lend_generation
from tests.support.coca import IDS, PLAIN, TINY, inputs, random_coca
from tests.support.meta import meta_device, shapes_of

open_clip = pytest.importorskip("open_clip")
pytest.importorskip("transformers")
pytestmark = pytest.mark.parity


def reference_of(spec: ModelSpec) -> torch.nn.Module:
    vision, text, decoder = spec.vision, spec.text, spec.decoder
    return open_clip.CoCa(
        embed_dim=spec.embed_dim,
        quick_gelu=spec.quick_gelu,
        init_logit_bias=spec.init_logit_bias,
        vision_cfg={
            "image_size": vision.image_size, "patch_size": vision.patch_size, "width": vision.width,
            "layers": vision.layers, "head_width": vision.head_width, "attentional_pool": vision.attentional_pool,
            "attn_pooler_queries": vision.attn_pooler_queries, "attn_pooler_heads": vision.attn_pooler_heads,
            "output_tokens": True,
        },
        text_cfg={
            "context_length": text.context_length, "vocab_size": text.vocab_size, "width": text.width,
            "heads": text.heads, "layers": text.layers, "embed_cls": True, "output_tokens": True,
        },
        multimodal_cfg={
            "context_length": decoder.context_length, "width": decoder.width, "heads": decoder.heads,
            "layers": decoder.layers,
        },
    )  # fmt: skip


def pair(spec: ModelSpec, seed: int = 0, gain: float = 1.0) -> tuple[CoCa, torch.nn.Module]:
    """Ours and OpenCLIP's with the same random weights."""
    ours, reference = random_coca(spec, seed, gain), reference_of(spec)
    reference.load_state_dict(ours.state_dict(), strict=True)
    return ours, reference


@pytest.mark.parametrize("name", ["coca_base", "coca_ViT-B-32", "coca_ViT-L-14"])
def test_named_architectures_have_openclips_tensors(name):
    config = open_clip.get_model_config(name)
    config.pop("custom_text")
    with meta_device():
        ours, reference = CoCa(get_model_spec(name)), open_clip.CoCa(**config)
    assert shapes_of(ours) == shapes_of(reference)


@pytest.mark.parametrize("spec", [TINY, PLAIN], ids=["pooler", "plain"])
@pytest.mark.parametrize("train", [False, True], ids=["eval", "train"])
def test_outputs_and_gradients_agree(spec, train):
    ours, reference = (model.train(train) for model in pair(spec))
    ours.load_state_dict(reference.state_dict(), strict=True)
    image, text = inputs(spec)
    mine, theirs = ours(image, text), reference(image, text)
    assert mine.keys() == theirs.keys()
    for key in mine:
        torch.testing.assert_close(mine[key], theirs[key], atol=1e-5, rtol=0)
    for output in (mine, theirs):
        contrast = output["logit_scale"] * output["image_features"] @ output["text_features"].T
        caption = torch.nn.functional.cross_entropy(output["logits"].permute(0, 2, 1), output["labels"], ignore_index=0)
        (torch.nn.functional.cross_entropy(contrast, torch.arange(len(image))) + 2 * caption).backward()
    gradients = {name: parameter.grad for name, parameter in reference.named_parameters()}
    for name, parameter in ours.named_parameters():
        if gradients[name] is None:
            assert parameter.grad is None, name
            continue
        assert (parameter.grad - gradients[name]).norm() <= 1e-4 * gradients[name].norm().clamp(min=1e-3), name


def test_the_other_calls_agree():
    ours, reference = (model.eval() for model in pair(TINY))
    image, text = inputs(TINY)
    for normalize in (True, False):
        torch.testing.assert_close(
            ours.encode_image(image, normalize), reference.encode_image(image, normalize), atol=1e-5, rtol=0
        )
        torch.testing.assert_close(
            ours.encode_text(text, normalize), reference.encode_text(text, normalize), atol=1e-5, rtol=0
        )
    torch.testing.assert_close(ours.encode_image(image), reference.encode_image(image), atol=1e-5, rtol=0)
    mine, theirs = ours(image), reference(image)
    torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=0)
    latent = {"image_latent": mine["image_features"], "image_embs": mine["image_embs"], "output_labels": False}
    torch.testing.assert_close(ours(None, text, **latent), reference(None, text, **latent), atol=1e-5, rtol=0)
    options = {"image_indices": 1, "text_indices": [0], "image_output_extra_tokens": True,
               "text_output_extra_tokens": True, "output_logit_scale_bias": True}  # fmt: skip
    torch.testing.assert_close(
        ours.forward_intermediates(image, text, **options),
        reference.forward_intermediates(image, text, **options),
        atol=1e-5,
        rtol=0,
    )


@pytest.fixture(scope="module", autouse=True)
def generation():
    from open_clip import coca_model

    lend_generation(coca_model)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("spec", [TINY, PLAIN], ids=["pooler", "plain"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"seq_len": 16, "num_beams": 4, "num_beam_groups": 1},
        {"seq_len": 17, "num_beams": 3, "num_beam_groups": 3, "repetition_penalty": 1.5, "min_seq_len": 8},
        {"seq_len": 14, "fixed_output_length": True, "num_beams": 2, "num_beam_groups": 1, "min_seq_len": 1},
        {"generation_type": "top_k"},
        {"generation_type": "top_k", "seq_len": 17, "repetition_penalty": 1.3, "min_seq_len": 9},
        {"generation_type": "top_k", "top_k": 5, "temperature": 1.7, "fixed_output_length": True},
        {"generation_type": "top_p", "top_p": 0.8, "temperature": 0.9, "min_seq_len": 1},
        {"generation_type": "top_k", "max_seq_len": 6},
    ],
    ids=["beams", "one-group", "groups-of-one", "fixed-beams", "greedy", "penalty", "top-k", "top-p", "window"],
)
def test_captions_agree(spec, options, seed):
    ours, reference = (model.eval() for model in pair(spec, seed, gain=3.0))
    image, _ = inputs(spec, seed, count=4)
    options = {"seq_len": 12, **IDS, **options}
    torch.manual_seed(seed)
    expected = reference.generate(image, **options)
    torch.manual_seed(seed)
    assert ours.generate(image, **options).tolist() == expected.tolist()


def test_the_captions_compared_end_early_and_late():
    ours, _ = pair(TINY, 0, gain=3.0)
    captions = [row for seed in range(4) for row in ours.generate(inputs(TINY, seed)[0], seq_len=16, **IDS).tolist()]
    ended = [IDS["eos_token_id"] in row for row in captions]
    assert any(ended)
    assert not all(ended)


def test_prompts_go_on_as_there():
    ours, reference = (model.eval() for model in pair(TINY, gain=3.0))
    image, _ = inputs(TINY)
    prompt = torch.tensor([[22, 3, 4], [22, 0, 7], [22, 9, 23]])
    options = {"seq_len": 15, "generation_type": "top_k", **IDS}
    assert ours.generate(image, prompt, **options).tolist() == reference.generate(image, prompt, **options).tolist()
    one = ours.generate(image[:1], prompt[0], **options)
    assert one.tolist() == reference.generate(image[:1], prompt[0], **options).tolist()
    assert one.ndim == 1


def test_full_size():
    config = open_clip.get_model_config("coca_ViT-B-32")
    config.pop("custom_text")
    torch.manual_seed(0)
    ours = CoCa(get_model_spec("coca_ViT-B-32")).eval()
    with NoRandomInit():
        reference = open_clip.CoCa(**config).eval()
    reference.load_state_dict(ours.state_dict(), strict=True)
    image, text = inputs(ours.spec, count=2)
    with torch.no_grad():
        mine, theirs = ours(image, text), reference(image, text)
    for key in mine:
        torch.testing.assert_close(mine[key], theirs[key], atol=1e-5, rtol=0)
    for options in ({"generation_type": "top_k"}, {"num_beams": 4, "num_beam_groups": 2}):
        expected = reference.generate(image, seq_len=8, **options)
        assert ours.generate(image, seq_len=8, **options).tolist() == expected.tolist()

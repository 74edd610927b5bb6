"""The native towers against OpenCLIP's: tensors, features, logits, gradients, initialisation, positions."""

from dataclasses import replace
from typing import Any

import pytest
import torch

import clip_models
from clip_models import CLIPTextConfig, ModelSpec, PreprocessConfig, TokenizerConfig, ViTConfig
from clip_models.model import CLIP
from clip_models.towers.positions import resize_grid_positions, resize_text_positions
from clip_models.weights.fit import build_empty

open_clip = pytest.importorskip("open_clip")
pytestmark = pytest.mark.parity

END = 2
VOCABULARY = 300


def family(
    vision: dict[str, Any] | None = None, text: dict[str, Any] | None = None, embed_dim: int = 48, **root: Any
) -> ModelSpec:
    """A dual encoder of two layers with the traits of a family."""
    tower = ViTConfig(
        **{"image_size": 48, "patch_size": 16, "width": 64, "layers": 2, "head_width": 32, **(vision or {})}
    )
    encoder = CLIPTextConfig(
        **{"context_length": 12, "vocab_size": VOCABULARY, "width": 64, "heads": 2, "layers": 2, **(text or {})}
    )
    size = tower.image_size
    return ModelSpec(
        name="family",
        embed_dim=embed_dim,
        vision=tower,
        text=encoder,
        preprocess=PreprocessConfig(size=(size, size) if isinstance(size, int) else size),
        tokenizer=TokenizerConfig(kind="hf", name="any"),
        **root,
    )


CLIPA_VISION = {"no_ln_pre": True, "pool_type": "avg", "final_ln_after_pool": True}
CLIPA_TEXT = {"no_causal_mask": True, "pool_type": "last"}
SIGLIP_TEXT = {**CLIPA_TEXT, "norm_eps": 1e-6, "gelu_tanh": True, "proj_bias": True}

FAMILIES = {
    "vit": family(),
    "quickgelu": family(quick_gelu=True),
    "bigG": family({"width": 104, "head_width": 26, "mlp_ratio": 4.9231}),
    "clipa": family(CLIPA_VISION, CLIPA_TEXT),
    "worldwide": family(text={"pool_type": "eos", "eos_id": END}),
    "custom-text": family(custom_text=True),
    "siglip-text": family({}, SIGLIP_TEXT, custom_text=True, init_logit_bias=-10.0, init_logit_scale=2.0),
    "mobileclip-text": family(text={"no_causal_mask": True}),
    "unprojected-text": family(text={**CLIPA_TEXT, "proj_type": "none", "width": 48}, custom_text=True),
    "first-token": family(text={"no_causal_mask": True, "pool_type": "first"}, custom_text=True),
    "layer-scale": family({"ls_init_value": 0.1, "pos_embed_type": "sin_cos_2d"}, {"ls_init_value": 0.1}),
    "average": family({"pool_type": "avg", "ls_init_value": 0.1, "pos_embed_type": "sin_cos_2d"}),
    "not-square": family({"image_size": (40, 68)}),
    "class-token": family({"attentional_pool": True, "attn_pooler_queries": 5}, {"embed_cls": True}, custom_text=True),
    "pooler-of-one-width": family({"attentional_pool": True, "pool_type": "avg"}, embed_dim=64),
}


def openclip_config(spec: ModelSpec) -> dict[str, Any]:
    config: dict[str, Any] = {"embed_dim": spec.embed_dim, "quick_gelu": spec.quick_gelu}
    for side, tower in (("vision_cfg", spec.vision), ("text_cfg", spec.text)):
        fields = {key: value for key, value in vars(tower).items() if value is not None}
        eps, tanh = fields.pop("norm_eps"), fields.pop("gelu_tanh")
        config[side] = {**fields, "norm_kwargs": {"eps": eps}} | (
            {"act_kwargs": {"approximate": "tanh"}} if tanh else {}
        )
    for key in ("init_logit_scale", "init_logit_bias"):
        if getattr(spec, key) is not None:
            config[key] = getattr(spec, key)
    return config


def build_reference(spec: ModelSpec) -> torch.nn.Module:
    return (open_clip.CLIP if spec.text_at_root else open_clip.CustomTextCLIP)(**openclip_config(spec))


def build_pair(spec: ModelSpec, seed: int = 3) -> tuple[CLIP, torch.nn.Module]:
    """Ours, and OpenCLIP's with our weights, drawn so that no bias or norm is trivial."""
    torch.manual_seed(seed)
    ours = CLIP(spec)
    with torch.no_grad():
        for name, parameter in ours.named_parameters():
            if parameter.requires_grad and parameter.ndim < 2 and "logit" not in name:
                parameter.add_(0.1 * torch.randn_like(parameter))
    reference = build_reference(spec)
    reference.load_state_dict(ours.state_dict(), strict=True)
    return ours, reference


def inputs(spec: ModelSpec, batch: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    """Images, and captions of different lengths whose end token is the highest of a row, and END once."""
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(batch, 3, *spec.preprocess.size, generator=generator)
    length = spec.text.context_length
    text = torch.randint(3, spec.text.vocab_size - 1, (batch, length), generator=generator)
    for row in range(batch):
        text[row, 2 + 3 * row % length :] = 0
        text[row, 1 + 3 * row % length] = END if spec.text.pool_type == "eos" else spec.text.vocab_size - 1
    return image, text


def largest_difference(mine: Any, theirs: Any) -> float:
    if isinstance(mine, torch.Tensor):
        assert mine.shape == theirs.shape
        return (mine - theirs).abs().max().item()
    pairs = [(mine[key], theirs[key]) for key in mine] if isinstance(mine, dict) else zip(mine, theirs, strict=True)
    assert not isinstance(mine, dict) or mine.keys() == theirs.keys()
    return max(largest_difference(a, b) for a, b in pairs)


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("training", [False, True])
def test_features_and_logits_agree(name, training):
    spec = FAMILIES[name]
    ours, reference = build_pair(spec)
    ours.train(training)
    reference.train(training)
    image, text = inputs(spec)
    with torch.no_grad():
        mine = ours.encode_image(image), ours.encode_text(text), *ours(image, text), *ours.get_logits(image, text)
        assert min(part.abs().max() for part in mine[:2]) > 0.3
        theirs = (
            *(reference.encode_image(image), reference.encode_text(text)),
            *(*reference(image, text), *reference.get_logits(image, text)),
        )
    assert largest_difference(mine, theirs) < 1e-5


@pytest.mark.parametrize("name", FAMILIES)
def test_gradients_agree(name):
    """Of every parameter, with the blocks recomputed in the backward pass and without."""
    spec = FAMILIES[name]
    ours, reference = build_pair(spec)
    image, text = inputs(spec)
    gradients = []
    for model, recompute in ((reference, False), (ours, False), (ours, True)):
        model.set_grad_checkpointing(recompute)
        model.zero_grad()
        logits = model.get_logits(image, text)[0]
        torch.nn.functional.cross_entropy(logits, torch.arange(4)).backward()
        gradients.append({key: p.grad.clone() for key, p in model.named_parameters() if p.grad is not None})
    theirs, *both = gradients
    for mine in both:
        assert mine.keys() == theirs.keys()
        for key, expected in theirs.items():
            # The bias of the keys has a gradient of zero, hence the absolute part.
            assert (mine[key] - expected).norm() <= 1e-4 * expected.norm() + 1e-6, key


@pytest.mark.parametrize("name", FAMILIES)
def test_a_state_dict_of_openclip_loads(name):
    spec = FAMILIES[name]
    torch.manual_seed(5)
    reference = build_reference(spec).eval()
    ours = CLIP(spec).eval()
    ours.load_state_dict(reference.state_dict(), strict=True)
    assert {key: p.requires_grad for key, p in ours.named_parameters()} == {
        key: p.requires_grad for key, p in reference.named_parameters()
    }
    image, text = inputs(spec)
    with torch.no_grad():
        assert largest_difference(ours(image, text), reference(image, text)) < 1e-5


@pytest.mark.parametrize("vision", [{}, {"pool_type": "avg", "no_ln_pre": True}], ids=["tok", "avg"])
def test_patch_dropout_draws_as_openclip(vision):
    spec = family({"patch_dropout": 0.5, "image_size": 96, **vision})
    ours, reference = build_pair(spec)
    image = inputs(spec)[0]
    outputs = []
    for model in (ours, reference):
        torch.manual_seed(7)
        outputs.append(model.train().encode_image(image))
    assert largest_difference(*outputs) < 1e-5
    assert largest_difference(ours.eval().encode_image(image), outputs[0]) > 1e-2
    assert largest_difference(ours.eval().encode_image(image), reference.eval().encode_image(image)) < 1e-5


@pytest.mark.parametrize(
    ("vision", "text"),
    [
        ({}, {"output_tokens": True}),
        ({"pool_type": "avg"}, {"output_tokens": True, "embed_cls": True}),
        ({"pool_type": "none"}, {"pool_type": "none"}),
        ({"attentional_pool": True, "pool_type": "tok"}, {"pool_type": "last", "output_tokens": True}),
        (CLIPA_VISION, {"no_causal_mask": True, "embed_cls": True}),
    ],
    ids=["tok", "avg", "none", "attentional", "late-norm"],
)
def test_tokens_agree(vision, text):
    spec = family({"output_tokens": True, **vision}, text, custom_text=True)
    ours, reference = build_pair(spec)
    image, ids = inputs(spec)
    ids[0, 3] = 0  # a padding inside, which is what OpenCLIP's mask of the class token is about
    with torch.no_grad():
        assert largest_difference(ours.visual(image), reference.visual(image)) < 1e-5
        assert largest_difference(ours.text(ids), reference.text(ids)) < 1e-5


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"image_indices": 1, "text_indices": [0, -1], "normalize_intermediates": True, "output_logits": True},
        {"image_output_fmt": "NLC", "image_output_extra_tokens": True, "output_logit_scale_bias": True},
        {"stop_early": True, "intermediates_only": True, "image_indices": [0], "text_indices": [0]},
        {"normalize": False, "text_output_extra_tokens": True},
    ],
)
@pytest.mark.parametrize("name", ["vit", "not-square", "clipa", "siglip-text", "class-token"])
def test_intermediates_agree(name, options):
    spec = FAMILIES[name]
    ours, reference = build_pair(spec)
    image, text = inputs(spec)
    if name == "class-token":
        options = {**options, "normalize_intermediates": False}
    with torch.no_grad():
        mine = ours.forward_intermediates(image, text, text_output_fmt="NLC", **options)
        theirs = reference.forward_intermediates(image, text, text_output_fmt="NLC", **options)
    assert largest_difference(mine, theirs) < 1e-5


@pytest.mark.parametrize("name", ["vit", "siglip-text", "layer-scale"])
@pytest.mark.parametrize("unlocked", [0, 1, 2, 3, 9])
def test_locking_agrees(name, unlocked):
    ours, reference = build_pair(FAMILIES[name])
    trained = []
    for model in (ours, reference):
        model.lock_image_tower(unlocked_groups=unlocked)
        model.lock_text_tower(unlocked_layers=unlocked)
        trained.append({key for key, p in model.named_parameters() if p.requires_grad})
    fixed = {"visual.positional_embedding"} if name == "layer-scale" else set()
    assert trained[0] - fixed == trained[1] - fixed
    assert not fixed & trained[0]
    assert ours.no_weight_decay() == reference.no_weight_decay()


@pytest.mark.parametrize("name", ["vit", "siglip-text", "class-token", "layer-scale"])
def test_initial_weights_follow_the_same_distributions(name):
    torch.manual_seed(0)
    reference = dict(build_reference(FAMILIES[name]).named_parameters())
    torch.manual_seed(11)
    for key, mine in CLIP(FAMILIES[name]).named_parameters():
        theirs = reference[key]
        if theirs.numel() == 1 or theirs.std() == 0 or not theirs.requires_grad:
            torch.testing.assert_close(mine, theirs)  # constants: norms, zero biases, scales, fixed positions
            continue
        # The error of a sampled deviation is about 0.7/sqrt(n) of it.
        assert mine.std().item() == pytest.approx(theirs.std().item(), rel=4 / theirs.numel() ** 0.5), key
        # A uniform ends at 1.73 deviations, a normal of this size goes far beyond.
        if theirs.numel() > 1000:
            spread = [(t.abs().max() / t.std()).item() for t in (mine, theirs)]
            assert (spread[0] < 1.8) == (spread[1] < 1.8), key


@pytest.mark.parametrize(("old", "new"), [(224, 336), (336, 224), (224, (96, 400))])
def test_positions_are_resized_as_openclip_does(old, new):
    table = torch.randn((old // 16) ** 2 + 1, 24)
    spec = family({"image_size": new, "width": 24, "head_width": 24})
    reference = build_reference(replace(spec, text=replace(spec.text, context_length=30)))
    state = {"visual.positional_embedding": table, "positional_embedding": torch.randn(77, 64)}
    mine = resize_grid_positions(table, spec.vision.grid), resize_text_positions(state["positional_embedding"], 30)
    open_clip.model.resize_pos_embed(state, reference)
    open_clip.model.resize_text_pos_embed(state, reference)
    assert largest_difference(mine, (state["visual.positional_embedding"], state["positional_embedding"])) < 1e-6


def test_vit_b_32_of_full_size():
    spec = clip_models.get_model_spec("ViT-B-32")
    torch.manual_seed(0)
    reference = open_clip.CLIP(**open_clip.get_model_config("ViT-B-32"))
    ours = build_empty(spec)
    ours.load_state_dict(reference.state_dict(), strict=True)
    image = torch.randn(2, 3, 224, 224)
    text = clip_models.get_tokenizer(spec)(["a photo of a cat", "word " * 100])
    gradients = []
    for model in (reference, ours):
        output = (
            model.encode_image(image),
            model.encode_text(text),
            *model(image, text),
            *model.get_logits(image, text),
        )
        torch.nn.functional.cross_entropy(output[-2], torch.arange(2)).backward()
        gradients.append((output, {key: p.grad for key, p in model.named_parameters()}))
    (their_output, theirs), (my_output, mine) = gradients
    assert largest_difference(my_output, their_output) < 1e-5
    for key, expected in theirs.items():
        assert (mine[key] - expected).norm() <= 1e-4 * expected.norm() + 1e-6, key

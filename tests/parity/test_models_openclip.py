"""The towers against OpenCLIP's: names and shapes, features, gradients, initialisation."""

from dataclasses import replace

import pytest
import torch

import clip_models
from clip_models import ModelSpec

open_clip = pytest.importorskip("open_clip")
pytestmark = pytest.mark.parity

CAPTIONS = ["a photo of a cat", "two dogs and a bicycle in front of a red house", "", "word " * 100]


def build_reference(spec: ModelSpec, device: str = "cpu") -> torch.nn.Module:
    vision, text = spec.vision, spec.text
    with torch.device(device):
        return open_clip.CLIP(
            embed_dim=spec.embed_dim,
            quick_gelu=spec.quick_gelu,
            vision_cfg={
                "image_size": vision.image_size,
                "patch_size": vision.patch_size,
                "width": vision.width,
                "layers": vision.layers,
                "head_width": vision.head_width,
            },
            text_cfg={
                "context_length": text.context_length,
                "vocab_size": text.vocab_size,
                "width": text.width,
                "heads": text.heads,
                "layers": text.layers,
            },
        )


def shorten(name: str, layers: int) -> ModelSpec:
    spec = clip_models.get_model_spec(name)
    return replace(spec, vision=replace(spec.vision, layers=layers), text=replace(spec.text, layers=layers))


def shapes_of(model: torch.nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


@pytest.mark.parametrize("name", [name for name in clip_models.list_models() if name != "ViT-Ti-4-24"])
def test_named_architectures_have_openclips_tensors(name):
    config = open_clip.get_model_config(name)
    with torch.device("meta"):
        reference = open_clip.CLIP(**config)
        ours = clip_models.CLIP(clip_models.get_model_spec(name))
    assert shapes_of(ours) == shapes_of(reference)
    assert clip_models.get_model_spec(name).quick_gelu == config.get("quick_gelu", False)
    assert {n for n, _ in ours.named_parameters()} == {n for n, _ in reference.named_parameters()}


@pytest.mark.parametrize(
    "spec",
    [
        clip_models.get_model_spec("ViT-Ti-4-24"),
        replace(clip_models.get_model_spec("ViT-Ti-4-24"), quick_gelu=True),
        clip_models.get_model_spec("ViT-B-32"),
        shorten("ViT-B-32-quickgelu", 3),
        shorten("ViT-B-16", 3),
        shorten("ViT-B-16-quickgelu", 3),
        shorten("ViT-L-14", 2),
        shorten("ViT-L-14-quickgelu", 2),
    ],
    ids=lambda spec: f"{spec.name}-{'quick' if spec.quick_gelu else 'gelu'}-{spec.vision.layers}",
)
def test_features_agree(spec):
    ours = clip_models.create_model(spec, seed=3).eval()
    reference = build_reference(spec, "meta").eval()
    reference.load_state_dict(ours.state_dict(), strict=True, assign=True)
    reference.attn_mask = torch.full((spec.text.context_length,) * 2, float("-inf")).triu(1)  # built on meta
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(2, 3, spec.vision.image_size, spec.vision.image_size, generator=generator)
    text = clip_models.get_tokenizer(spec)(CAPTIONS)
    with torch.no_grad():
        for mine, theirs in (
            (ours.encode_image(image), reference.encode_image(image)),
            (ours.encode_text(text), reference.encode_text(text)),
        ):
            assert mine.abs().max() > 0.5
            assert (mine - theirs).abs().max().item() < 1e-5
        for mine, theirs in zip(ours(image, text[:2]), reference(image, text[:2]), strict=True):
            assert (mine - theirs).abs().max().item() < 1e-5


def test_a_state_dict_of_openclip_loads(tmp_path):
    spec = clip_models.get_model_spec("ViT-Ti-4-24")
    torch.manual_seed(5)
    reference = build_reference(spec).eval()
    path = tmp_path / "epoch_1.pt"
    state = {f"module.{name}": tensor for name, tensor in reference.state_dict().items()}
    torch.save({"epoch": 1, "name": "run", "state_dict": state}, path)
    ours = clip_models.create_model("ViT-Ti-4-24", pretrained=path).eval()
    image = torch.randn(2, 3, 24, 24)
    with torch.no_grad():
        assert (ours.encode_image(image) - reference.encode_image(image)).abs().max().item() < 1e-5


def test_gradients_agree():
    spec = clip_models.get_model_spec("ViT-Ti-4-24")
    ours = clip_models.create_model(spec, seed=3)
    reference = build_reference(spec)
    reference.load_state_dict(ours.state_dict(), strict=True)
    image = torch.randn(4, 3, 24, 24, generator=torch.Generator().manual_seed(0))
    text = clip_models.get_tokenizer(spec)(CAPTIONS)
    gradients = []
    for model in (ours, reference):
        image_features, text_features, scale = model(image, text)
        torch.nn.functional.cross_entropy(scale * image_features @ text_features.T, torch.arange(4)).backward()
        gradients.append({name: parameter.grad for name, parameter in model.named_parameters()})
    for name, mine in gradients[0].items():
        theirs = gradients[1][name]
        # Relative to the tensor; the bias of the keys has a gradient of zero, hence the absolute part.
        assert (mine - theirs).norm() <= 1e-5 * theirs.norm() + 1e-7, name


def test_initial_weights_follow_the_same_distributions():
    spec = clip_models.get_model_spec("ViT-Ti-4-24")
    torch.manual_seed(0)
    reference = dict(build_reference(spec).named_parameters())
    for name, mine in clip_models.create_model(spec, seed=11).named_parameters():
        theirs = reference[name]
        assert mine.numel() == theirs.numel()
        if theirs.numel() == 1 or theirs.std() == 0:
            torch.testing.assert_close(mine, theirs)  # constants: norms, zero biases, logit_scale
            continue
        # The error of a sampled deviation is about 0.7/sqrt(n) of it.
        assert mine.std().item() == pytest.approx(theirs.std().item(), rel=4 / theirs.numel() ** 0.5), name
        # A uniform ends at 1.73 deviations, a normal of this size goes far beyond.
        if theirs.numel() > 1000:
            spread = [(t.abs().max() / t.std()).item() for t in (mine, theirs)]
            assert (spread[0] < 1.8) == (spread[1] < 1.8), name

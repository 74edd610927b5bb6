"""Profiles against published figures, and the command."""

import json

import pytest

from clip_models import ClipModelsError, cli
from clip_models.inference.profiling import profile

# OpenCLIP's published table: parameters in millions (all, image, text), GFLOPs (all, image, text).
PUBLISHED = {
    "ViT-B-32": (151.28, 87.85, 63.43, 14.78, 8.82, 5.96),
    "ViT-B-16": (149.62, 86.19, 63.43, 41.09, 35.13, 5.96),
    "RN50": (102.01, 38.32, 63.69, 18.18, 12.22, 5.96),
    "ViT-L-14-CLIPA": (414.21, 303.96, 110.25, 167.5, 162.03, 5.47),
    "coca_ViT-B-32": (253.56, 89.16, 63.43, 33.34, 9.19, 5.96),
    "ViT-B-16-SigLIP": (203.16, 92.88, 110.27, 46.44, 35.42, 11.02),
    "convnext_base": (151.52, 88.09, 63.43, 36.67, 30.71, 5.96),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", PUBLISHED)
def test_profiles_agree_with_the_published_table(name):
    row = profile(name)
    figures = (row.mparams, row.image_mparams, row.text_mparams, row.gflops, row.image_gflops, row.text_gflops)
    assert [round(figure, 2) for figure in figures[:3]] == list(PUBLISHED[name][:3])
    assert figures[3:] == pytest.approx(PUBLISHED[name][3:], rel=0.01)


def test_activations_are_what_the_products_put_out():
    row = profile("ViT-Ti-4-24")
    tokens, width, layers, heads, hidden = 37, 96, 4, 3, 384
    # QKV, attention weights, mixed values, output, both layers of the MLP; then the patches and the projection.
    block = tokens * (3 * width + width + width + hidden + width) + heads * tokens * tokens
    expected = layers * block + (tokens - 1) * width + 128
    assert row.image_mactivations * 1e6 == pytest.approx(expected, rel=0.01)


def test_the_command_prints_what_is_asked_for(capsys):
    with pytest.raises(SystemExit, match="0"):
        cli.main(["profile", "ViT-Ti-4-24", "ViT-B-32", "--format", "json"])
    first, second = json.loads(capsys.readouterr().out)
    assert (first["model"], second["model"]) == ("ViT-Ti-4-24", "ViT-B-32")
    assert second["mparams"] == 151.28
    with pytest.raises(SystemExit, match="0"):
        cli.main(["profile", "ViT-Ti-4-24"])
    head, row = capsys.readouterr().out.splitlines()
    assert head.split()[:2] == ["model", "image_size"]
    assert row.split()[:2] == ["ViT-Ti-4-24", "24"]


def test_an_unknown_architecture_is_named(capsys):
    with pytest.raises(ClipModelsError, match="unknown model 'ViT-B-33'; did you mean"):
        profile("ViT-B-33")
    with pytest.raises(SystemExit, match="2"):
        cli.main(["profile", "ViT-B-33"])
    assert capsys.readouterr().err.startswith("error: unknown model 'ViT-B-33'")

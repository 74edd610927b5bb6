"""The table of pretrained weights against that of the published package, row by row."""

import pytest

from clip_models.weights import registry

pytestmark = pytest.mark.parity

CORRECTED = {
    # The hub repository of epoch 31 under the tag of epoch 32.
    ("ViT-B-16-plus-240", "laion400m_e32"): {
        "hf_hub": (
            "timm/vit_base_patch16_plus_clip_240.laion400m_e31/",
            "timm/vit_base_patch16_plus_clip_240.laion400m_e32/",
        )
    },
    # The architecture itself has QuickGELU, and the published package warns of a mismatch each time it is loaded.
    ("roberta-ViT-B-32", "laion2b_s12b_b32k"): {"quick_gelu": (None, True)},
}


def test_every_row_is_theirs_but_for_the_corrections():
    theirs = pytest.importorskip("open_clip.pretrained")
    assert sorted(registry.list_pretrained()) == sorted(theirs.list_pretrained())
    assert registry.list_pretrained_models_by_tag("openai") == theirs.list_pretrained_models_by_tag("openai")
    differences = {}
    for model, tag in registry.list_pretrained():
        mine, other = registry.get_pretrained_cfg(model, tag), theirs.get_pretrained_cfg(model, tag)
        changed = {key: (other.get(key), mine.get(key)) for key in mine | other if mine.get(key) != other.get(key)}
        if changed:
            differences[model, tag] = changed
    assert differences == CORRECTED

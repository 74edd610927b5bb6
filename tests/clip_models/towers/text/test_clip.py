from dataclasses import replace

import pytest
import torch

from clip_models import ClipModelsError, CLIPTextConfig
from clip_models.towers.text.clip import TextTransformer

CONFIG = CLIPTextConfig(context_length=12, vocab_size=100, width=64, heads=2, layers=2)
END = 99


def build(**options):
    torch.manual_seed(0)
    return TextTransformer(replace(CONFIG, **options), embed_dim=32)


@pytest.fixture
def text():
    """Captions of 3, 5 and 7 tokens with the end token, padded to 12."""
    rows = torch.randint(1, END, (3, 12), generator=torch.Generator().manual_seed(0))
    for row, end in enumerate((2, 4, 6)):
        rows[row, end], rows[row, end + 1 :] = END, 0
    return rows


@pytest.mark.parametrize("options", [{}, {"pool_type": "eos", "eos_id": END}])
def test_what_follows_the_end_token_changes_nothing_and_costs_nothing(options, text):
    tower = build(**options)
    lengths = []
    tower.transformer.register_forward_pre_hook(lambda _, args: lengths.append(args[0].shape[1]))
    whole = tower(text)
    assert lengths == [7]
    torch.testing.assert_close(tower(text[:, :7]), whole)
    disturbed = text.clone()
    disturbed[:, 8:] = 5
    torch.testing.assert_close(tower(disturbed), whole)
    disturbed[:, 1] = 7
    assert not torch.allclose(tower(disturbed), whole, atol=1e-3)
    # Against the tower that runs over all columns.
    full = tower.forward_intermediates(text, indices=1)["text_features"]
    torch.testing.assert_close(whole, full, atol=1e-5, rtol=1e-5)


def test_cut_captions_give_the_gradients_of_whole_ones(text):
    tower = build()
    gradients = []
    for features in (tower(text), tower.forward_intermediates(text)["text_features"]):
        gradients.append(torch.autograd.grad(features.square().sum(), list(tower.parameters())))
    for mine, expected in zip(*gradients, strict=True):
        assert (mine - expected).norm() <= 1e-5 * expected.norm() + 1e-5


@pytest.mark.parametrize("options", [{"no_causal_mask": True}, {"pool_type": "last"}])
def test_a_tower_that_looks_at_the_padding_wants_all_of_it(options, text):
    tower = build(**options)
    assert tower(text).shape == (3, 32)
    with pytest.raises(ClipModelsError, match="pad captions to 12 tokens, not 7"):
        tower(text[:, :7])


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (100, "token id 100 is outside the vocabulary of 100"),
        (49407, "token id 49407 is outside the vocabulary of 100"),
        (-1, "token id -1 is outside"),
    ],
)
@pytest.mark.parametrize("call", ["forward", "forward_intermediates"])
def test_a_token_id_outside_the_vocabulary_is_named(call, wrong, message, text):
    text[1, 3] = wrong
    with pytest.raises(ClipModelsError) as caught:
        getattr(build(), call)(text)
    assert message in str(caught.value)


def test_a_caption_without_the_end_token_that_is_pooled_is_named(text):
    text[1, 4] = 5
    with pytest.raises(ClipModelsError, match="caption 1 of the batch lacks the end token 99"):
        build(pool_type="eos", eos_id=END)(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (torch.zeros(2, 13, dtype=torch.int64), "[batch, up to 12] token ids, not [2, 13]"),
        (torch.zeros(12, dtype=torch.int64), "not [12]"),
        (torch.zeros(2, 0, dtype=torch.int64), "not [2, 0]"),
        (torch.zeros(2, 12), "int64, not torch.float32"),
    ],
)
def test_wrong_shapes_and_types_are_refused(text, message):
    with pytest.raises(ClipModelsError) as caught:
        build()(text)
    assert message in str(caught.value)


def test_an_empty_batch_gives_no_features():
    assert build()(torch.zeros(0, 12, dtype=torch.int64)).shape == (0, 32)


def test_int32_ids_do_as_well(text):
    torch.testing.assert_close(build()(text.int()), build()(text))


@pytest.mark.parametrize(
    "options",
    [{}, {"embed_cls": True, "proj_bias": True}, {"proj_type": "none", "width": 32, "ls_init_value": 0.1}],
)
def test_layer_groups_name_every_parameter_once(options):
    tower = build(**options)
    names = [name for group in tower.layer_groups() for name in group]
    assert sorted(names) == sorted(name for name, _ in tower.named_parameters())
    assert len(tower.layer_groups()) == CONFIG.layers + (1 if options.get("proj_type") else 2)


def test_norms_can_stay_trainable_in_a_locked_tower():
    tower = build()
    tower.lock(freeze_layer_norm=False)
    trained = {name for name, p in tower.named_parameters() if p.requires_grad}
    assert trained == {name for name, _ in tower.named_parameters() if "ln_" in name}
    assert len(trained) == 2 * (2 * CONFIG.layers + 1)


def test_a_width_that_is_not_projected_must_fit():
    with pytest.raises(ClipModelsError, match="width 64 to be embed_dim 32"):
        build(proj_type="none")

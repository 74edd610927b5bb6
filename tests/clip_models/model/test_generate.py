from dataclasses import replace

import pytest
import torch

from clip_models import ClipModelsError
from clip_models.model.coca import CoCa
from clip_models.model.generate import FewRows, NextToken, choose_top_k, choose_top_p
from clip_models.specs import HFTextConfig, TokenizerConfig
from tests.support.coca import IDS, PLAIN, TINY, inputs, random_coca

START, END, PAD = 22, 23, 0
GREEDY = {"generation_type": "top_k", **IDS}
NORMED = replace(TINY, text=replace(TINY.text, embed_cls=False))
ROBERTA = replace(
    TINY,
    text=HFTextConfig(
        model_name="none", context_length=16, pooler_type="mean_pooler", proj_type="linear", output_tokens=True,
        config={"model_type": "roberta", "vocab_size": 24, "hidden_size": 32, "num_hidden_layers": 2,
                "num_attention_heads": 2, "intermediate_size": 64, "max_position_embeddings": 20, "pad_token_id": 0,
                "bos_token_id": 22, "eos_token_id": 23},
    ),
)  # fmt: skip
SPECS = pytest.mark.parametrize(
    "spec", [TINY, PLAIN, NORMED, ROBERTA], ids=["class-token", "plain", "no-class-token", "roberta"]
)


def build(spec) -> CoCa:
    if isinstance(spec.text, HFTextConfig):
        pytest.importorskip("transformers")
    return random_coca(spec, gain=2.0).eval()


@pytest.mark.slow
@pytest.mark.parametrize("count", [1, 2, 3])
@SPECS
@torch.no_grad()
def test_each_step_gives_the_logits_of_the_whole_caption(spec, count):
    model = build(spec)
    image, text = inputs(spec, count=count)  # with paddings, one of them in the middle
    cached = NextToken(model, model(image)["image_embs"], 16)
    for length in (3, 4, 5, 6, 12, 13, 16):
        whole = model(image, text[:, :length], output_labels=False)["logits"][:, -1]
        with FewRows():
            logits = cached(text[:, :length])
        torch.testing.assert_close(logits, whole, atol=1e-4, rtol=1e-4)


@SPECS
@torch.no_grad()
def test_beams_go_on_from_the_beam_they_came_from(spec):
    model = build(spec)
    image, text = inputs(spec, count=4)
    image = image[:2]
    cached = NextToken(model, model(image)["image_embs"], 16)  # two captions for each of two images
    cached(text[:, :5])
    order = torch.tensor([1, 1, 2, 2])
    cached.reorder(order)
    grown = torch.cat([text[order, :5], torch.tensor([[3], [0], [5], [6]])], dim=1)
    whole = model(image.repeat_interleave(2, dim=0), grown, output_labels=False)["logits"][:, -1]
    torch.testing.assert_close(cached(grown), whole, atol=1e-4, rtol=1e-4)


@pytest.mark.slow
@SPECS
@torch.no_grad()
def test_greedy_captions_are_those_of_a_plain_loop(spec):
    model = build(spec)
    image, _ = inputs(spec, seed=1, count=5)
    tokens = torch.full((5, 1), START)
    for _ in range(14):
        logits = model(image, tokens, output_labels=False)["logits"][:, -1]
        logits[:, END] = -torch.inf
        tokens = torch.cat([tokens, logits.argmax(dim=-1, keepdim=True)], dim=1)
        tokens[:, -1][tokens[:, -2] == PAD] = PAD
    made = model.generate(image, seq_len=16, min_seq_len=15, **GREEDY)
    expected = torch.cat([tokens, torch.where(tokens[:, -1:] == PAD, PAD, END)], dim=1)
    assert made.tolist() == expected[:, : made.shape[1]].tolist()


@torch.no_grad()
def test_a_beam_for_each_prefix_finds_the_best_caption():
    model = build(TINY)
    image, _ = inputs(TINY, count=1)
    heads = torch.cartesian_prod(torch.tensor([START]), torch.arange(24), torch.arange(24))
    logits = model(image.expand(len(heads), -1, -1, -1), heads, output_labels=False)["logits"]
    logits[:, :2, END] = -torch.inf
    sums = logits[:, 0].gather(1, heads[:, 1:2]) + logits[:, 1].gather(1, heads[:, 2:3]) + logits[:, 2]
    best = int(sums.argmax())
    made = model.generate(image, seq_len=4, min_seq_len=3, num_beams=576, num_beam_groups=1, **IDS)
    # A caption that ends at the fourth token would be as long, and its end token counts like any other.
    assert made[0].tolist() == [*heads[best // 24].tolist(), best % 24]


@pytest.mark.parametrize("kind", ["beam_search", "top_k", "top_p"])
def test_captions_start_end_and_are_padded(kind):
    model = build(TINY)
    image, _ = inputs(TINY, seed=3, count=16)
    torch.manual_seed(0)
    options = {"seq_len": 13, "min_seq_len": 6, "generation_type": kind, "top_k": 3, "top_p": 0.7, **IDS}
    tokens = model.generate(image, **options)
    assert tokens.dtype == torch.int64
    assert tokens.shape[0] == 16
    assert tokens.shape[1] <= 13
    assert (tokens[:, 0] == START).all()
    assert not (tokens[:, :5] == END).any()
    for row in tokens.tolist():
        if END in row:
            assert set(row[row.index(END) + 1 :]) <= {PAD}
    torch.manual_seed(0)
    assert model.generate(image, **options).tolist() == tokens.tolist()
    torch.manual_seed(0)
    fixed = model.generate(image, fixed_output_length=True, **options)
    assert fixed.shape == (16, 13)
    assert fixed[:, : tokens.shape[1]].tolist() == tokens.tolist()
    assert (fixed[:, tokens.shape[1] :] == PAD).all()


def test_no_images_give_no_captions():
    for kind in ("beam_search", "top_k"):
        assert CoCa(TINY).generate(torch.empty(0, 3, 32, 32), seq_len=8, generation_type=kind, **IDS).shape[0] == 0


def test_prompts_are_kept_by_beams_too():
    model = build(TINY)
    image, _ = inputs(TINY, count=2)
    prompt = torch.tensor([[START, 5, 9], [START, 7, 7]])
    assert model.generate(image, prompt, seq_len=10, **IDS)[:, :3].tolist() == prompt.tolist()
    shared = model.generate(image, prompt[0], seq_len=10, **GREEDY)
    assert shared[:, :3].tolist() == [prompt[0].tolist()] * 2
    ended = torch.tensor([[START, 5, END], [START, 7, END]])
    assert model.generate(image, ended, seq_len=10, **GREEDY).tolist() == ended.tolist()


def test_a_callers_criterion_stops_beside_the_length():
    model = build(TINY)
    image, _ = inputs(TINY)
    for kind in ("beam_search", "top_k"):
        options = {"seq_len": 16, "min_seq_len": 14, "generation_type": kind, **IDS}
        long = model.generate(image, stopping_criteria=[lambda tokens, _: tokens.shape[1] >= 99], **options)
        short = model.generate(image, stopping_criteria=[lambda tokens, _: tokens[:, 0] >= 0], **options)
        assert long.shape[1] == 16 or (long[:, -1] == PAD).all()
        assert short.shape[1] <= 3


def test_choices_keep_to_their_share():
    logits = torch.tensor([[0.5, 0.3, 0.15, 0.05]]).log().repeat(400, 1)
    torch.manual_seed(0)
    assert set(choose_top_p(logits, 0.7, 1.0).tolist()) == {0, 1}
    assert set(choose_top_p(logits, 0.0, 1.0).tolist()) == {0}
    assert set(choose_top_k(logits, 3, 1.0).tolist()) == {0, 1, 2}
    assert set(choose_top_k(logits, 1, 1.0).tolist()) == {0}
    assert set(choose_top_k(logits, 99, 3.0).tolist()) == {0, 1, 2, 3}
    assert (choose_top_k(logits, 2, 0.1) == 0).float().mean() > 0.95


def test_modes_are_as_before_and_dropped_patches_come_back():
    model = random_coca(replace(TINY, vision=replace(TINY.vision, patch_dropout=0.5)), gain=2.0).train()
    model.text.eval()
    image, _ = inputs(TINY)
    first = model.generate(image, seq_len=16, **GREEDY)
    assert model.training
    assert model.visual.training
    assert not model.text.training
    assert model.generate(image, seq_len=16, **GREEDY).tolist() == first.tolist()
    assert not first.requires_grad


@pytest.mark.parametrize("autocast", [False, True], ids=["weights", "autocast"])
def test_bfloat16_captions(autocast):
    model = build(TINY)
    image, _ = inputs(TINY)
    if not autocast:
        model.bfloat16()
    for kind in ("beam_search", "top_p"):
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            tokens = model.generate(image, seq_len=8, generation_type=kind, **IDS)
        assert (tokens[:, 0] == START).all()


def test_special_tokens_are_the_tokenizers():
    image, _ = inputs(TINY)
    with pytest.raises(ClipModelsError, match="sot token of 'coca-tiny' is unknown: give sot_token_id"):
        build(TINY).generate(image)
    assert (build(ROBERTA).generate(image, seq_len=6)[:, 0] == 22).all()
    text, decoder = (replace(part, vocab_size=49408) for part in (TINY.text, TINY.decoder))
    clip = CoCa(replace(TINY, text=text, decoder=decoder, tokenizer=TokenizerConfig()))
    tokens = clip.generate(image, seq_len=6, generation_type="top_k")
    assert (tokens[:, 0] == 49406).all()
    assert tokens[0, -1] in (49407, 0)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"generation_type": "top_a"}, "generation_type 'top_a' is unknown; choose from beam_search, top_p, top_k"),
        ({"seq_len": 5}, "seq_len 5 must be more than min_seq_len 5"),
        ({"seq_len": 18}, "seq_len 18 needs 17 tokens of context, but 'coca-tiny' has 16"),
        ({"seq_len": 30, "generation_type": "top_k"}, "'coca-tiny' has 16"),
        ({"text": torch.full((3, 12), 5), "seq_len": 12}, "12 tokens, which leaves no room in seq_len 12"),
        ({"text": torch.full((2, 4), 5)}, r"text is \[tokens\] or \[3 images, tokens\], not \[2, 4\]"),
        ({"text": torch.full((3, 4), 24)}, "token id 24 is outside the vocabulary of 24 of 'coca-tiny'"),
        ({"eos_token_id": 49407}, "token id 49407 is outside"),
        ({"num_beams": 6, "num_beam_groups": 4}, "num_beam_groups 4 must divide num_beams 6"),
        ({"num_beams": 0}, "num_beams 0"),
        ({"temperature": 0.0}, "temperature 0.0"),
        ({"repetition_penalty": -1.0}, "repetition_penalty -1.0"),
        ({"top_p": 1.5}, "top_p 1.5"),
        ({"top_k": 0}, "top_k 0"),
    ],
)
def test_impossible_requests_are_refused(options, words):
    image, _ = inputs(TINY)
    with pytest.raises(ClipModelsError, match=words):
        CoCa(TINY).generate(image, **{"seq_len": 12, **IDS, **options})

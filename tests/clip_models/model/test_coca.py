from dataclasses import replace

import pytest
import torch

from clip_models import ClipModelsError, get_model_spec
from clip_models.model import build_model
from clip_models.model.coca import CoCa
from tests.support.coca import PLAIN, TINY, inputs, random_coca
from tests.support.meta import meta_device


@pytest.mark.parametrize("name", ["coca_base", "coca_ViT-B-32", "coca_ViT-L-14"])
def test_named_architectures_take_captions_of_the_whole_context(name):
    spec = get_model_spec(name)
    with meta_device():
        model = build_model(spec)
        output = model(
            torch.empty(2, 3, *spec.preprocess.size), torch.empty(2, model.context_length, dtype=torch.int64)
        )
    assert isinstance(model, CoCa)
    assert output["image_features"].shape == output["text_features"].shape == (2, spec.embed_dim)
    assert output["logits"].shape == (2, model.context_length - 1, spec.decoder.vocab_size)
    assert output["labels"].shape == (2, model.context_length - 1)


def test_a_decoder_stands_on_a_hugging_face_text_tower():
    pytest.importorskip("transformers")
    spec = get_model_spec("coca_roberta-ViT-B-32")
    small = {"num_hidden_layers": 1, "vocab_size": 300}
    model = build_model(
        replace(
            spec,
            vision=replace(spec.vision, layers=1),
            text=replace(spec.text, config={**spec.text.config, **small}),
            decoder=replace(spec.decoder, layers=1, vocab_size=300),
        )
    )
    image, text = torch.randn(2, 3, 224, 224), torch.randint(2, 300, (2, model.context_length))
    assert model(image, text)["logits"].shape == (2, 75, 300)
    assert model.generate(image, seq_len=6)[:, 0].tolist() == [0, 0]


@pytest.mark.parametrize("spec", [TINY, PLAIN], ids=["pooler", "plain"])
def test_groups_hold_every_parameter_once_and_blocks_are_all_there(spec):
    model = CoCa(spec)
    names = [name for groups in model.layer_groups().values() for group in groups for name in group]
    assert len(names) == len(set(names))
    assert {name for name, _ in model.named_parameters()} - set(names) <= {"logit_scale", "logit_bias"}
    assert len(model.layer_groups()["decoder"]) == spec.decoder.layers + 1
    assert len(model.blocks()) == spec.vision.layers + spec.text.layers + 2 * spec.decoder.layers
    assert {"visual.positional_embedding", "text.cls_emb"} <= model.no_weight_decay()


@pytest.mark.slow
def test_forward_is_one_graph():
    model, (image, text) = random_coca(TINY).train(), inputs(TINY)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(image, text), model(image, text))


def test_recomputed_activations_give_the_same_gradients():
    model, (image, text) = random_coca(TINY).train(), inputs(TINY)
    gradients = []
    for enable in (False, True):
        model.set_grad_checkpointing(enable)
        model.zero_grad()
        model(image, text)["logits"].square().mean().backward()
        gradients.append({n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None})
    assert model.text_decoder.grad_checkpointing
    assert "text_decoder.cross_attn.0.ln_1_kv.weight" in gradients[0]
    torch.testing.assert_close(gradients[0], gradients[1])


def test_locked_towers_leave_the_decoder_to_train():
    model = CoCa(TINY)
    model.lock_image_tower()
    model.lock_text_tower(unlocked_layers=1)
    trained = {name.split(".")[0] for name, p in model.named_parameters() if p.requires_grad}
    assert trained == {"text", "text_decoder", "logit_scale"}
    assert [n for n, p in model.text.named_parameters() if p.requires_grad] == ["text_projection"]


def test_low_precision_stays_close():
    model, (image, text) = random_coca(TINY).eval(), inputs(TINY)
    with torch.no_grad():
        expected = model(image, text)
        with torch.autocast("cpu", torch.bfloat16):
            mixed = model(image, text)
        low = model.bfloat16()(image, text)
    assert low["logits"].dtype == low["image_features"].dtype == torch.bfloat16
    for output in (low, mixed):
        for key in ("logits", "image_features", "text_features"):
            cosine = torch.cosine_similarity(output[key].float().flatten(), expected[key].flatten(), dim=0)
            assert cosine > 0.999, key


def test_later_tokens_change_nothing_before_them():
    model, (image, text) = random_coca(TINY).eval(), inputs(TINY)
    logits = model(image, text, output_labels=False)["logits"]
    torch.testing.assert_close(model(image, text[:, :7], output_labels=False)["logits"], logits[:, :7])
    torch.testing.assert_close(model(image, text)["logits"], logits[:, :-1])


def test_a_spec_without_a_decoder_is_refused():
    with pytest.raises(ClipModelsError, match="'coca-tiny' has no decoder"):
        CoCa(replace(TINY, decoder=None))


def test_inputs_that_do_not_fit_are_refused():
    model, (image, text) = CoCa(replace(TINY, decoder=replace(TINY.decoder, context_length=9))), inputs(TINY)
    with pytest.raises(ClipModelsError, match="up to 9 tokens, not 15"):
        model(image, text)
    with pytest.raises(ClipModelsError, match="needs an image"):
        model(text=text)

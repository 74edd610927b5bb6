"""The one model in a training checkpoint, under whatever prefix."""

import warnings

import pytest
import torch

from clip_models import ClipModelsError, create_model, get_model_spec
from clip_models.weights.convert.huggingface import to_huggingface
from clip_models.weights.convert.prefixes import plain_names, strip_marks
from clip_models.weights.load import load_pretrained

NAME = "ViT-Ti-4-24"


def refusal(call) -> str:
    with pytest.raises(ClipModelsError) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def under(prefix, state):
    return {prefix + name: tensor for name, tensor in state.items()}


def zeros(state):
    return {name: torch.zeros_like(tensor) for name, tensor in state.items()}


def load(tmp_path, content, **options):
    torch.save(content, tmp_path / "x.ckpt")
    return load_pretrained(get_model_spec(NAME), tmp_path / "x.ckpt", **options)


def assert_same(model, state):
    assert model.state_dict().keys() == state.keys()
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize(
    "name",
    [
        "module.a.b", "_orig_mod.a.b", "module._orig_mod.a.b", "_orig_mod.module.a.b", "a._orig_mod.b",
        "_fsdp_wrapped_module.a._checkpoint_wrapped_module.b", "module.module.a.b",
    ],
)  # fmt: skip
def test_marks_of_training(name):
    assert strip_marks(name) == "a.b"


def test_a_module_inside_is_no_mark():
    assert strip_marks("text.module.x") == "text.module.x"


@pytest.mark.slow
@pytest.mark.parametrize(
    "prefix",
    [
        "model.", "ema.", "student.", "teacher.", "clip.", "clip_model.", "ema_model.", "model.module.",
        "module.model.", "_forward_module.model.", "model._orig_mod.", "model._fsdp_wrapped_module.", "a.student.",
    ],
)  # fmt: skip
@pytest.mark.parametrize("layout", ["root", "state_dict", "huggingface"])
def test_any_single_prefix_is_stripped(tiny, tmp_path, prefix, layout):
    state = to_huggingface(tiny)[1] if layout == "huggingface" else tiny.state_dict()
    content = under(prefix, state)
    with warnings.catch_warnings(record=layout == "state_dict"):
        if layout != "state_dict":
            warnings.simplefilter("error")  # nothing is left out
        model = load(tmp_path, {"state_dict": content, "epoch": 1} if layout == "state_dict" else content)
    assert_same(model, tiny.state_dict())


@pytest.mark.parametrize(
    "entry",
    ["state_dict", "model", "model_state", "model_state_dict", "module", "net", "ema", "state_dict_ema", "teacher"],
)
def test_any_single_entry_is_taken(tiny, tmp_path, entry):
    content = {entry: tiny.state_dict(), "epoch": 3, "optimizer": {"state": {0: {"exp_avg": torch.zeros(2)}}}}
    with pytest.warns(UserWarning, match=r"left out \(2\): epoch, optimizer"):
        assert_same(load(tmp_path, content), tiny.state_dict())


def test_a_lightning_checkpoint(tiny, tmp_path):
    state = under("model.", tiny.state_dict()) | {"loss.weight": torch.ones(3), "loss.logit_scale": torch.ones(())}
    content = {
        "state_dict": state,
        "epoch": 1,
        "global_step": 10,
        "pytorch-lightning_version": "2.1",
        "optimizer_states": [{"state": {}}],
        "callbacks": {"ModelCheckpoint{'x': 1}": {"best_model_score": torch.tensor(1.0)}},
    }
    with pytest.warns(UserWarning, match="x.ckpt: ") as caught:
        assert_same(load(tmp_path, content), tiny.state_dict())
    message = str(caught[0].message)
    assert "weights of state_dict.model taken; left out (7): " in message
    for name in ("state_dict (2)", "epoch", "global_step", "optimizer_states", "callbacks"):
        assert name in message


@pytest.mark.parametrize(("own", "other"), [("model.", "ema."), ("student.", "teacher."), ("", "ema_model.")])
@pytest.mark.parametrize("as_entries", [False, True])
def test_averages_and_teachers_are_left_to_those_who_ask(tiny, tmp_path, own, other, as_entries):
    state = tiny.state_dict()
    content = under(own, state) | under(other, zeros(state))
    if as_entries and own:
        content = {own.rstrip("."): state, other.rstrip("."): zeros(state)}
    with pytest.warns(UserWarning, match=rf"left out \({len(state)}\): {other[:-1]} \({len(state)}\)"):
        assert_same(load(tmp_path, content), state)
    with pytest.warns(UserWarning, match="left out"):
        assert_same(load(tmp_path, content, entry=other.rstrip(".")), zeros(state))


def test_several_models_are_a_question(tiny, tmp_path):
    content = {"net_a": tiny.state_dict(), "net_b": zeros(tiny.state_dict())}
    message = refusal(lambda: load(tmp_path, content))
    assert "x.ckpt holds several models: 'net_a', 'net_b'; save one of them alone, or name it as entry=" in message
    with pytest.warns(UserWarning, match="of net_b taken"):
        assert_same(load(tmp_path, content, entry="net_b"), zeros(tiny.state_dict()))
    assert "has no entry 'net_c'; it has net_a, net_b" in refusal(lambda: load(tmp_path, content, entry="net_c"))


def test_one_model_in_two_entries_is_no_question(tiny, tmp_path):
    state = tiny.state_dict()
    assert_same(load(tmp_path, {"model": state, "state_dict": state}), state)


def test_numbers_beside_the_weights_may_repeat(tiny, tmp_path):
    with pytest.warns(UserWarning, match=r"left out \(3\): module \(2\), epoch"):
        assert_same(
            load(tmp_path, {"epoch": 1, "module": {**tiny.state_dict(), "epoch": 2, "lr": 1}}), tiny.state_dict()
        )


def test_towers_under_different_prefixes_are_a_question(tiny, tmp_path):
    state = {name if name.startswith("visual.") else f"net.{name}": t for name, t in tiny.state_dict().items()}
    assert "several models: 'net', 'those without a prefix'" in refusal(lambda: load(tmp_path, state))


def test_weights_are_not_mixed_from_two_models(tiny, tmp_path):
    state = dict(tiny.state_dict())
    del state["ln_final.bias"]
    content = under("model.", state) | under("ema.", zeros(tiny.state_dict()))
    with pytest.warns(UserWarning, match="left out"):
        assert "1 missing (ln_final.bias)" in refusal(lambda: load(tmp_path, content))


def test_optimizers_are_no_models(tiny, tmp_path):
    moments = {name: {"exp_avg": torch.zeros_like(tensor)} for name, tensor in tiny.state_dict().items()}
    content = {"model": tiny.state_dict(), "optimizer": {"state": moments}, "optim": under("m.", tiny.state_dict())}
    with pytest.warns(UserWarning, match=r"left out \(172\): optimizer \(86\), optim \(86\)"):
        assert_same(load(tmp_path, content), tiny.state_dict())


@pytest.mark.parametrize(
    "extra",
    [
        {"n_averaged": torch.tensor(3)}, {"epoch": 3}, {"image_queue": torch.zeros(3)}, {"loss.weight": torch.zeros(3)},
        {"text.transformer.embeddings.position_ids": torch.arange(5)}, {"attn_mask": torch.full((2, 2), -torch.inf)},
        {"step": torch.tensor(1)}, {"clip_loss.labels": torch.zeros(1)},
    ],
)  # fmt: skip
def test_states_of_training_among_the_weights_are_left_out_and_named(tiny, tmp_path, extra):
    [name] = extra
    with pytest.warns(UserWarning, match=rf"left out \(1\): {name.split('.')[0]}"):
        assert_same(load(tmp_path, tiny.state_dict() | extra), tiny.state_dict())


@pytest.mark.parametrize("name", ["projection.weight", "visual.extra", "logit_bias_2", "text.loss.weight"])
def test_other_tensors_among_the_weights_are_an_error(tiny, tmp_path, name):
    message = refusal(lambda: load(tmp_path, tiny.state_dict() | {name: torch.zeros(1)}))
    assert "1 extra (" in message


def test_names_of_big_vision():
    content = {"params/img/cls": torch.zeros(1), "params/txt/pos_embedding": torch.zeros(1), "params/t": torch.zeros(1)}
    assert plain_names(content, "x").keys() == {"img/cls", "txt/pos_embedding", "t"}


@pytest.mark.parametrize("prefix", ["", "model.", "state_dict.student."])
def test_one_tower_alone(tiny, tmp_path, prefix):
    state = create_model(NAME, seed=5).state_dict()
    tower = {name.removeprefix("visual."): tensor for name, tensor in state.items() if name.startswith("visual.")}
    torch.save(under(prefix, tower), tmp_path / "x.pt")
    model = create_model(NAME, seed=0, pretrained_image_path=tmp_path / "x.pt")
    assert torch.equal(model.visual.conv1.weight, state["visual.conv1.weight"])
    assert torch.equal(model.text_projection, tiny.text_projection)
    torch.save(under(prefix, {name: t for name, t in state.items() if name.startswith("visual.")}), tmp_path / "v.pt")
    message = refusal(lambda: create_model(NAME, tmp_path / "v.pt"))
    assert "text tower: none against CLIP's transformer" in message

"""Low-rank adapters: which layers get them, that they train alone and exactly, and that the exported model is plain."""

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from clip_models import HFTextConfig, ModelSpec, ModernTextConfig, TimmConfig, create_model, save_model
from clip_models.model import build_model
from clip_train import (
    CheckpointConfig,
    ClipTrainError,
    DataConfig,
    FitConfig,
    LockConfig,
    LoraConfig,
    ModelConfig,
    OptimConfig,
    Source,
    TrainConfig,
    fit,
)
from clip_train.adapters import adapted, add_adapters, choose_layers, merged
from clip_train.config import resolve
from clip_train.gradients import Gradients
from clip_train.optim.config import EmaConfig
from clip_train.parallel import World, join_world
from clip_train.parallelize.config import ParallelConfig
from clip_train.tasks.contrastive import ContrastiveConfig
from tests.support import coca
from tests.support.distributed import run_ranks
from tests.support.steps import FP32, HERE, PAIRS, VIT, assert_same, batch_of, whole

pytest.importorskip("peft")

NAME = VIT.name
BERT = {"model_type": "bert", "vocab_size": 49408, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
        "intermediate_size": 32, "max_position_embeddings": 60, "hidden_dropout_prob": 0.0, "pad_token_id": 0,
        "attention_probs_dropout_prob": 0.0}  # fmt: skip
T5 = {"model_type": "mt5", "d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2, "vocab_size": 49408,
      "dropout_rate": 0.0, "pad_token_id": 0}  # fmt: skip
MODERN = ModernTextConfig(eos_id=49407, pad_id=0, context_length=20, width=16, heads=2, layers=2)


def plain_model(model, config: LoraConfig):
    """Builds the model without adapters that an export writes."""
    plain = build_model(model.spec)
    plain.load_state_dict(merged(model.state_dict(), config))
    return plain


def hf(config: dict) -> ModelSpec:
    text = HFTextConfig(model_name="some/encoder", context_length=20, config=config)
    return replace(VIT, text=text, custom_text=True)


def timm(name: str) -> ModelSpec:
    vision = TimmConfig(image_size=32, model_name=name, pool="avg", proj="linear")
    return replace(VIT, vision=vision, preprocess=replace(VIT.preprocess, size=(32, 32)))


NATIVE = {"attn.in_proj", "attn.out_proj"}, {"mlp.c_fc", "mlp.c_proj"}
# The model, and the ends of the names of its text tower's layers that are attention and MLP.
FAMILIES: dict[str, tuple[ModelSpec, tuple[set[str], set[str]]]] = {
    "native": (VIT, NATIVE),
    "text under text.": (replace(VIT, custom_text=True), NATIVE),
    "modern text": (replace(VIT, text=MODERN, custom_text=True), ({"attn.qkv", "attn.proj"}, {"mlp.w12", "mlp.w3"})),
    "timm": (timm("test_vit"), NATIVE),
    "BERT": (
        hf(BERT),
        ({"self.query", "self.key", "self.value", "output.dense"}, {"intermediate.dense", "output.dense"}),
    ),
    "MT5": (
        hf(T5),
        (
            {f"SelfAttention.{part}" for part in "qkvo"},
            {"DenseReluDense.wi_0", "DenseReluDense.wi_1", "DenseReluDense.wo"},
        ),
    ),
    "CoCa": (coca.TINY, NATIVE),
}


def adapted_model(spec: ModelSpec, config: LoraConfig):
    """A model in training mode, whose adapters change its output."""
    torch.manual_seed(0)
    model = build_model(spec)
    add_adapters(model, config, seed=0)
    with torch.no_grad():
        for layer in adapted(model).values():
            layer.lora_B["default"].weight.normal_(std=0.1)
    return model


def inputs(spec: ModelSpec) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    image = torch.randn(3, 3, *spec.preprocess.size, generator=generator)
    last = spec.text.vocab_size - 1
    text = torch.randint(3, last, (3, spec.text.context_length), generator=generator)
    text[:, -1] = last
    return image, text


def recipe(tmp_path: Path, datasets: Path, **keys) -> FitConfig:
    """A run of three steps on a model that has been trained before."""
    base = create_model(NAME, seed=1)
    save_model(tmp_path / "base.safetensors", base, base.spec)
    return FitConfig(
        run=str(tmp_path / "run"),
        model=ModelConfig(name=NAME, pretrained=str(tmp_path / "base.safetensors"), lora=LoraConfig(rank=4)),
        data=DataConfig(sources=(Source(dataset=str(datasets / "train")),), workers=0),
        optim=OptimConfig(lr=1e-2),
        train=TrainConfig(steps=3, batch_size=8, precision="fp32", threads=1),
        checkpoint=CheckpointConfig(every=1, keep=5),
        **keys,
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_the_groups_of_layers_are_those_of_every_kind_of_tower(family):
    spec, groups = FAMILIES[family]
    model = build_model(spec)
    for group, wanted in zip(("attention", "mlp"), groups, strict=True):
        names = choose_layers(model, LoraConfig(rank=1, targets=group, towers=("text",)))
        assert {".".join(name.split(".")[-2:]) for name in names} == wanted
        assert not any(name.startswith(("visual.", "text_decoder.")) for name in names)
        assert len(choose_layers(model, LoraConfig(rank=1, targets=group))) > len(names)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_merged_model_computes_the_same_and_every_adapter_is_trained(family):
    spec, _ = FAMILIES[family]
    config = LoraConfig(rank=3, alpha=6.0, targets="all")
    model = adapted_model(spec, config)
    plain = plain_model(model, config)
    fresh = build_model(spec)
    assert plain.state_dict().keys() == fresh.state_dict().keys()
    image, text = inputs(spec)
    outputs = [(each.encode_image(image), each.encode_text(text)) for each in (model, plain)]
    for one, other in zip(*outputs, strict=True):
        assert (one - other).norm() / other.norm() < 1e-5
    sum(part.square().sum() + part.sum() for part in outputs[0]).backward()
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained == {f"{name}.lora_{part}.default.weight" for name in adapted(model) for part in "AB"}
    idle = [name for name in trained if not model.get_parameter(name).grad.abs().max() > 0]
    assert idle == []


def test_new_adapters_change_nothing_and_depend_on_seed_and_name_alone():
    plain = build_model(VIT)
    model = build_model(VIT)
    model.load_state_dict(plain.state_dict())
    add_adapters(model, LoraConfig(rank=2, targets="all"), seed=3)
    image, text = inputs(VIT)
    assert torch.equal(model.encode_image(image), plain.encode_image(image))
    assert torch.equal(model.encode_text(text), plain.encode_text(text))
    fewer, other = build_model(VIT), build_model(VIT)
    add_adapters(fewer, LoraConfig(rank=2, towers=("text",)), seed=3)
    add_adapters(other, LoraConfig(rank=2), seed=4)
    for name, layer in adapted(fewer).items():
        drawn = layer.lora_A["default"].weight
        assert torch.equal(drawn, adapted(model)[name].lora_A["default"].weight)
        assert not torch.equal(drawn, adapted(other)[name].lora_A["default"].weight)


def test_a_run_trains_the_adapters_alone_and_exports_a_plain_model(tmp_path, datasets):
    config = recipe(tmp_path, datasets)
    lora = replace(config.model.lora, towers=("text",), targets=("*.in_proj", "transformer.*.c_fc"), logit_scale=True)
    result = fit(replace(config, model=replace(config.model, lora=lora)))
    before, after = create_model(NAME, config.model.pretrained), create_model(NAME, result.model)
    moved = {name for name, value in after.named_parameters() if not torch.equal(value, before.get_parameter(name))}
    blocks = [f"transformer.resblocks.{number}" for number in range(VIT.text.layers)]
    adapted_weights = {f"{block}.{part}" for block in blocks for part in ("attn.in_proj_weight", "mlp.c_fc.weight")}
    assert moved == {*adapted_weights, "logit_scale"}
    events = [json.loads(line) for line in (Path(config.run) / "log.jsonl").read_text().splitlines()]
    (event,) = [event for event in events if event.get("event") == "lora"]
    width, hidden = VIT.text.width, int(VIT.text.width * VIT.text.mlp_ratio)
    trained = VIT.text.layers * 4 * (width + 3 * width + width + hidden) + 1
    assert (event["layers"], event["trained"]) == (2 * VIT.text.layers, trained)


@pytest.mark.slow
@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_a_stopped_run_goes_on_to_the_bit_also_its_average(tmp_path, datasets, dropout):
    config = recipe(tmp_path, datasets)
    lora = replace(config.model.lora, dropout=dropout)
    optim = replace(config.optim, ema=EmaConfig(decay=0.5))
    config = replace(config, model=replace(config.model, lora=lora), optim=optim)
    fit(config)
    run = Path(config.run)
    names = ["model.safetensors", "model-ema.safetensors"]
    whole_run = [load_file(run / name) for name in names]
    for gone in ("checkpoints/step-00000002", "checkpoints/step-00000003"):
        shutil.rmtree(run / gone)
    (run / "done.json").unlink()
    fit(config)
    for name, wanted in zip(names, whole_run, strict=True):
        found = load_file(run / name)
        assert all(torch.equal(found[key], value) for key, value in wanted.items())
    assert any(not torch.equal(whole_run[0][key], value) for key, value in whole_run[1].items())


def test_dropout_leaves_out_inputs_in_training_alone():
    model = adapted_model(VIT, LoraConfig(rank=3, dropout=0.5))
    image, text = inputs(VIT)
    draws = [(model.encode_image(image), model.encode_text(text)) for _ in range(2)]
    assert not torch.equal(draws[0][0], draws[1][0])
    assert not torch.equal(draws[0][1], draws[1][1])
    model.eval()
    plain = plain_model(model, LoraConfig(rank=3, dropout=0.5))
    assert torch.allclose(model.encode_image(image), plain.encode_image(image), rtol=1e-5, atol=1e-6)


def step(world: World, parts: int, parallel: ParallelConfig = FP32) -> dict[str, np.ndarray]:
    """The loss of a step, and the whole gradient of each parameter that has one."""
    model = adapted_model(VIT, LoraConfig(rank=3, targets="all", logit_scale=True))
    task = ContrastiveConfig().build(model, precision="fp32", world=world)
    gradients = Gradients(task, world, parallel, micro_batches=parts, seed=1)
    size = PAIRS // world.size
    batch = task.prepare(batch_of(task, range(world.rank * size, (world.rank + 1) * size)))
    losses = dict(gradients.backward(batch, 0))
    losses |= {f"grad {name}": p.grad for name, p in task.model.named_parameters() if p.grad is not None}
    return {name: whole(value).double().numpy() for name, value in losses.items()}


def test_micro_batches_have_the_gradient_of_the_whole_batch():
    assert_same(step(HERE, 3), step(HERE, 1))


@pytest.mark.slow
def test_activations_can_be_computed_again():
    for how in ("full", "ops"):
        assert_same(step(HERE, 1, replace(FP32, grad_checkpointing=how)), step(HERE, 1))


def on_ranks() -> list[dict[str, np.ndarray]]:
    torch.set_num_threads(1)
    with join_world("cpu") as world:
        return [step(world, parts, replace(FP32, parallel=kind)) for kind in ("ddp", "fsdp") for parts in (1, 2)]


@pytest.mark.slow
def test_ranks_have_the_gradient_of_one_process():
    wanted = step(HERE, 1)
    for found in run_ranks(2, on_ranks):
        for each in found:
            assert_same(each, wanted)


def test_batch_norms_of_an_adapted_model_keep_their_statistics():
    spec = timm("resnet18")
    model = adapted_model(spec, LoraConfig(rank=2, towers=("text",)))
    before = {name: value.clone() for name, value in model.visual.named_buffers()}
    model.encode_image(inputs(spec)[0])
    assert before
    assert all(torch.equal(value, before[name]) for name, value in model.visual.named_buffers())


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        (("*.c_fcc",), r"the pattern '\*\.c_fcc' matches no linear layer .* did you mean '\*\.c_fc'\?"),
        (
            ("visual.transformer.resblocks.*.att.in_proj",),
            r"did you mean 'visual\.transformer\.resblocks\.\*\.attn\.in_proj'",
        ),
        (("transformer.*.in_proj_weight",), r"did you mean 'transformer\.resblocks\.\*\.attn\.in_proj'"),
        (("zzz",), r"'zzz' matches no linear layer of the towers; there are visual\.transformer"),
    ],
)
def test_a_pattern_that_matches_nothing_names_the_nearest(targets, message):
    with pytest.raises(ClipTrainError, match=message):
        choose_layers(build_model(VIT), LoraConfig(rank=1, targets=targets))


def test_a_tower_without_such_layers_is_named():
    with pytest.raises(
        ClipTrainError, match=r"'attention': the image tower of .* has no such layers; .*model\.lora\.towers"
    ):
        choose_layers(build_model(timm("resnet18")), LoraConfig(rank=1))


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"rank": -1}, r"rank = -1 must be at least 0"),
        ({"alpha": 8.0}, r"alpha = 8\.0 has no effect without model\.lora\.rank"),
        ({"rank": 2, "alpha": 0.0}, r"alpha = 0\.0 must be above 0"),
        ({"rank": 2, "dropout": 1.0}, r"dropout = 1\.0 must be in \[0, 1\)"),
        ({"rank": 2, "targets": "attentions"}, r"targets = 'attentions' is no group .* did you mean attention\?"),
        ({"rank": 2, "targets": ()}, r"targets is empty"),
        ({"rank": 2, "towers": ()}, r"towers is empty"),
        ({"rank": 2, "towers": ("text", "text")}, r"names a tower twice"),
        ({"rank": 2, "pretrained": ""}, r"frozen weights, which would be random: name them in model\.pretrained"),
        ({"rank": 2, "lock": LockConfig(image=True)}, r"model\.lock has no effect with model\.lora"),
        ({"rank": 2, "precision": "fp8"}, r"precision = 'fp8' does not work with model\.lora"),
    ],
)
def test_a_config_that_cannot_work_is_refused_by_name(keys, message):
    model = ModelConfig(name=NAME, pretrained=keys.pop("pretrained", "x.pt"), lock=keys.pop("lock", LockConfig()))
    train = TrainConfig(steps=1, precision=keys.pop("precision", "fp32"))
    config = FitConfig(run="run", model=model, data=DataConfig(sources=(Source(dataset="d"),)), train=train)
    with pytest.raises(ClipTrainError, match=message):
        resolve(replace(config, model=replace(model, lora=LoraConfig(**keys))))


def test_a_missing_peft_is_named_with_its_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ClipTrainError, match=r"needs peft, which is not installed; pip install 'clip-train\[lora\]'"):
        LoraConfig(rank=2).check(pretrained=True, locked=False, precision="fp32")

import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from clip_models import create_model
from clip_train.monitor.flops import StepFlops, Utilisation, peak_flops
from clip_train.monitor.similarity import pair_sums, similarities


def test_similarities_are_those_of_the_whole_matrix_and_sums_of_ranks_add_up():
    draw = torch.Generator().manual_seed(0)
    image, text = (F.normalize(torch.randn(6, 5, generator=draw), dim=1) for _ in range(2))
    ranks = [pair_sums({"image": image[part], "text": text[part]}) for part in (slice(0, 3), slice(3, 6))]
    found = similarities(sum(ranks), 6)
    matrix = (image @ text.T).double()
    own = matrix.diagonal()
    assert float(found["positive_similarity"]) == pytest.approx(float(own.mean()), rel=1e-5)
    assert float(found["negative_similarity"]) == pytest.approx(float(matrix.sum() - own.sum()) / 30, rel=1e-5)
    assert pair_sums({"image": image}) is None


@pytest.mark.parametrize("locked", [False, True])
def test_the_operations_of_a_step_are_those_that_torch_counts(locked):
    model = create_model("ViT-Ti-4-24", seed=0).train()
    if locked:
        model.lock_image_tower()
    flops = StepFlops.of(model)
    size, context = model.spec.preprocess.size, model.spec.text.context_length
    image, text = torch.randn(2, 3, *size), torch.full((2, context), 5)
    text[:, -1] = model.spec.text.vocab_size - 1
    # Every token goes through every block here, as the method counts.
    with FlopCounterMode(display=False) as counter:
        out = model.forward_intermediates(image=image, text=text)
        (out["image_features"].sum() + out["text_features"].sum()).backward()
    assert counter.get_total_flops() == pytest.approx(flops.of_samples(2, context), rel=0.05)
    assert flops.of_samples(4, context / 2) == pytest.approx(4 * flops.image + 2 * flops.text)


def test_utilisation_is_the_share_of_the_peak():
    flops = StepFlops(image=3e9, text=1e9, context=10)
    assert Utilisation(flops=flops, peak=1e12, source="config").share(100, 5, 2.0) == pytest.approx(350e9 / 2e12)


def test_the_peak_of_a_processor_is_measured(monkeypatch):
    peak, source = peak_flops(torch.device("cpu"), "fp32")
    assert source == "measured"
    assert 1e8 < peak < 1e14
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H100 80GB HBM3")
    assert peak_flops(torch.device("cuda", 0), "bf16") == (989.4e12, "table")

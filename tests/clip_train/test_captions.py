import dataclasses
import json
import pickle
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from clip_data.stream import Manifest, build_manifest
from clip_models import get_tokenizer
from clip_train import ClipTrainError, DataConfig, FitConfig, ModelConfig, Source, TrainConfig, ValConfig, fit, forecast
from clip_train.captions import Captions
from clip_train.forecast import refuse_long_captions, wilson
from clip_train.parallel import World
from tests.clip_train.conftest import boxes
from tests.support.datasets import jpeg, make_dataset
from tests.support.threads import ranks
from tests.support.tokenizers import make_sentencepiece

LONG = "a red box " + "very " * 40 + "far away"
ALONE = World(0, 1, torch.device("cpu"))
IMAGE = jpeg(Image.new("RGB", (8, 8)))


def tiny(name: str = "ViT-Ti-4-24") -> Captions:
    return Captions((get_tokenizer(name),))


def test_captions_are_encoded_as_always_and_those_that_were_cut_are_told():
    tokenizer, captions = get_tokenizer("ViT-Ti-4-24"), tiny()
    texts = ["a red box", LONG, "", "word " * 30, "word " * 31]  # the fourth fills the context to its end
    tokens = captions(texts)
    assert np.array_equal(tokens, tokenizer.encode_numpy(texts))
    assert tokens[3, -1]
    assert captions.truncated(texts, tokens) == [1, 4]
    assert captions.too_long(LONG, tokens[1]) == (47, 32)


def test_a_tokenizer_that_pads_with_its_end_token_is_understood(tmp_path):
    pytest.importorskip("sentencepiece")
    from clip_models.tokenizers.sentencepiece import SigLipTokenizer

    tokenizer = SigLipTokenizer(make_sentencepiece(tmp_path / "spiece.model"), 16)
    fits = "a cat"
    while tokenizer.count_tokens(f"{fits} a") <= 16:
        fits += " a"
    texts = [fits, "", f"{fits} a"]
    captions = Captions((tokenizer,))
    assert captions.truncated(texts, captions(texts)) == [2]


def test_a_caption_counts_once_if_any_of_several_tokenizers_cuts_it():
    both = Captions((get_tokenizer("ViT-B-32"), get_tokenizer("ViT-Ti-4-24")))
    texts = ["a box", LONG, "word " * 90]
    tokens = both(texts)
    assert tokens.shape == (3, 77 + 32)
    assert both.truncated(texts, tokens) == [1, 2]
    assert both.too_long(texts[1], tokens[1]) == (47, 32)
    assert both.too_long(texts[2], tokens[2]) == (92, 77)


def test_it_travels_to_readers_without_torch():
    data = pickle.dumps(tiny())
    code = f"import pickle, sys; pickle.loads({data!r})(['a box']); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.fixture(scope="module")
def mixed(tmp_path_factory) -> Manifest:
    """Two sources of 480 and 120 samples, equal in weight; a quarter of the first one's units has long captions."""
    root = tmp_path_factory.mktemp("mixed")
    first = [LONG if row // 12 % 4 == 0 and row % 3 == 0 else f"box {row}" for row in range(480)]
    second = [LONG if row % 20 == 7 else f"ball {row}" for row in range(120)]
    for name, captions in (("first", first), ("second", second)):
        rows = [{"image": IMAGE, "caption": caption} for caption in captions]
        make_dataset(root / name, rows, rows_per_unit=12)
    return build_manifest([Source(dataset=str(root / name)) for name in ("first", "second")])


SHARE = (1 / 3 / 4 + 1 / 20) / 2  # of long captions in `mixed`, each source weighing one half


def test_where_every_caption_is_looked_at_the_share_is_exact(mixed):
    found = forecast.forecast(mixed, tiny(), 1200, ALONE)
    assert (found.looked_at, found.truncated) == (600, 40 + 6)
    assert found.share == pytest.approx(SHARE)
    assert found.low == found.high == found.share
    # 600 samples of each source: the first one's second epoch is not complete, five of the second are.
    assert found.predicted == round(1200 * SHARE)
    assert 70 - 12 < found.predicted_low < found.predicted < found.predicted_high < 80 + 12
    whole = forecast.forecast(mixed, tiny(), 960, ALONE)
    assert whole.predicted_low == whole.predicted_high == whole.predicted == 64


def test_of_a_sample_the_interval_holds_the_truth_as_often_as_it_says(mixed, monkeypatch):
    monkeypatch.setattr(forecast, "CAPTIONS", 120)
    monkeypatch.setattr(forecast, "UNITS", 24)
    tokenizer, held, width = tiny(), 0, []
    for draw in range(60):
        other = SimpleNamespace(parts=mixed.parts, samples=mixed.samples, fingerprint=f"draw {draw}")
        found = forecast.forecast(other, tokenizer, 960, ALONE)
        assert 100 <= found.looked_at <= 160
        held += found.low <= SHARE <= found.high
        width.append(found.high - found.low)
    assert held >= 51  # 57 are expected at 95 %, with a deviation of 1.7
    assert np.mean(width) < 0.2


def test_the_ranks_share_the_units_and_predict_the_same(mixed, monkeypatch):
    monkeypatch.setattr(forecast, "UNITS", 24)
    monkeypatch.setattr(forecast, "CAPTIONS", 120)
    read = []
    look = forecast._look
    monkeypatch.setattr(forecast, "_look", lambda *args: read.append(args[2:4]) or look(*args))
    alone = forecast.forecast(mixed, tiny(), 5000, ALONE)
    whole = sorted(read)
    assert len(whole) == 10 + 12  # half of UNITS for each source, of which the second one has ten
    for size in (2, 3):
        read.clear()
        assert ranks(size, lambda world: forecast.forecast(mixed, tiny(), 5000, world)) == [alone] * size
        assert sorted(read) == whole


@pytest.mark.parametrize(("share", "n"), [(0.0, 100), (0.3, 50), (1.0, 8)])
def test_the_interval_solves_wilsons_equation(share, n):
    low, high = wilson(share, 1 / n)
    for end in {low, high} - {share}:
        assert (share - end) ** 2 == pytest.approx(forecast.Z**2 * end * (1 - end) / n)
    assert low <= share <= high
    assert wilson(share, 0.0) == (share, share)


def test_long_captions_are_refused_with_examples_and_the_key(mixed):
    found = forecast.forecast(mixed, tiny(), 960, ALONE)
    with pytest.raises(ClipTrainError) as caught:
        refuse_long_captions(found, "data.sources")
    message = str(caught.value)
    assert message.startswith(
        "46 of 600 captions of data.sources that were looked at have more tokens than the model's"
    )
    assert "about 64 (64 to 64) would be cut: 'a red box very" in message
    assert message.count("has 47 tokens for a context of 32 (uid ") == 3
    assert message.endswith("select shorter ones (--where 'words < 20'), or set data.long_captions = 'truncate'")
    refuse_long_captions(dataclasses.replace(found, truncated=0), "data.sources")


@pytest.mark.slow
@pytest.mark.parametrize("where", ["data", "val"])
def test_a_run_with_long_captions_ends_before_it_writes_anything_unless_they_may_be_cut(tmp_path, where):
    for name, seed in (("data", 0), ("val", 1)):
        samples = boxes(16, seed=seed)
        if name == where:
            samples[3]["caption"] = LONG
        make_dataset(tmp_path / name, samples)

    def config(**choice) -> FitConfig:
        return FitConfig(
            run=str(tmp_path / "run"),
            model=ModelConfig(name="ViT-Ti-4-24"),
            data=DataConfig(sources=(Source(dataset=str(tmp_path / "data")),), workers=0, **choice),
            val=ValConfig(sources=(Source(dataset=str(tmp_path / "val")),), batch_size=8),
            train=TrainConfig(epochs=1, batch_size=8, precision="fp32", threads=1),
        )

    with pytest.raises(ClipTrainError, match=rf"1 of 16 captions of {where}\.sources"):
        fit(config())
    assert not (tmp_path / "run").exists()
    assert fit(config(long_captions="truncate")).steps == 2
    lines = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    events = {line["of"]: line for line in lines if line.get("event") == "captions"}
    assert events[f"{where}.sources"]["predicted"] == 1
    assert [events[name]["truncated"] for name in sorted(events)] == [int(where == "data"), int(where == "val")]

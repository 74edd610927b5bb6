import pickle
import subprocess
import sys

import numpy as np
import pytest

from clip_data.errors import ClipDataError
from clip_models import get_tokenizer
from clip_train import ClipTrainError, DataConfig, FitConfig, ModelConfig, Source, TrainConfig, fit
from clip_train.captions import WholeCaptions
from tests.clip_train.conftest import boxes
from tests.support.datasets import make_dataset
from tests.support.tokenizers import make_sentencepiece

LONG = "a red box " + "very " * 40 + "far away"


def test_captions_that_fit_are_encoded_as_always():
    tokenizer = get_tokenizer("ViT-Ti-4-24")
    texts = ["a red box", "", "word " * 30]  # the last one fills the context to its end
    assert np.array_equal(WholeCaptions(tokenizer)(texts), tokenizer.encode_numpy(texts))
    assert tokenizer.encode_numpy(texts)[2, -1]


def test_a_caption_that_does_not_fit_is_named():
    with pytest.raises(
        ClipDataError, match=r"47 tokens, but the model's context is 32: 'a red box very.*long_captions"
    ):
        WholeCaptions(get_tokenizer("ViT-Ti-4-24"))(["a red box", LONG])


def test_a_tokenizer_that_pads_with_its_end_token_is_understood(tmp_path):
    pytest.importorskip("sentencepiece")
    from clip_models.tokenizers.sentencepiece import SigLipTokenizer

    tokenizer = SigLipTokenizer(make_sentencepiece(tmp_path / "spiece.model"), 16)
    whole = WholeCaptions(tokenizer)
    fits = "a cat"
    while tokenizer.count_tokens(f"{fits} a") <= 16:
        fits += " a"
    assert np.array_equal(whole([fits, ""]), tokenizer.encode_numpy([fits, ""]))
    with pytest.raises(
        ClipDataError, match=f"{tokenizer.count_tokens(fits + ' a')} tokens, but the model's context is 16"
    ):
        whole(["a cat", f"{fits} a"])


def test_it_travels_to_readers_without_torch():
    data = pickle.dumps(WholeCaptions(get_tokenizer("ViT-Ti-4-24")))
    code = f"import pickle, sys; pickle.loads({data!r})(['a box']); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 1])
def test_a_run_ends_at_a_caption_that_does_not_fit_and_goes_on_once_it_may_be_cut(tmp_path, workers):
    samples = boxes(16, seed=0)
    samples[3]["caption"] = LONG
    make_dataset(tmp_path / "data", samples)

    def config(**choice) -> FitConfig:
        return FitConfig(
            run=str(tmp_path / "run"),
            model=ModelConfig(name="ViT-Ti-4-24"),
            data=DataConfig(sources=(Source(dataset=str(tmp_path / "data")),), workers=workers, **choice),
            train=TrainConfig(epochs=1, batch_size=8, precision="fp32", threads=1),
        )

    with pytest.raises((ClipDataError, ClipTrainError), match="47 tokens"):
        fit(config())
    assert not (tmp_path / "run" / "model.safetensors").exists()
    assert fit(config(long_captions="truncate")).steps == 2

"""clip_models.inference.classify: probabilities and similarities."""

from dataclasses import replace

import pytest
import torch

import clip_models
from clip_models import ClipModelsError
from clip_models.inference.classify import classify
from tests.support.datasets import make_image
from tests.support.embeddings import MODEL

LABELS = ["a cat", "a dog", "a red circle"]


def test_probabilities_are_those_of_the_logits(tiny):
    images = [make_image(n) for n in range(3)]
    transform, tokenizer = clip_models.preprocess_eval(tiny.spec.preprocess), clip_models.get_tokenizer(tiny.spec)
    with torch.inference_mode():
        image = tiny.encode_image(torch.stack(list(map(transform, images))), normalize=True)
        text = tiny.encode_text(tokenizer([f"a photo of {label}" for label in LABELS]), normalize=True)
        cosines = image @ text.T
        shares = (cosines * tiny.logit_scale.exp()).softmax(-1)
    found = classify(images, LABELS, model=tiny, template="a photo of {}")
    for row, scores in enumerate(found):
        assert sum(score.probability for score in scores) == pytest.approx(1)
        assert [score.similarity for score in scores] == sorted((s.similarity for s in scores), reverse=True)
        for score in scores:
            assert score.probability == pytest.approx(shares[row, LABELS.index(score.label)].item(), abs=1e-5)
            assert score.similarity == pytest.approx(cosines[row, LABELS.index(score.label)].item(), abs=1e-5)
    assert classify([], LABELS, model=tiny) == []


def test_a_model_with_a_bias_judges_each_label_alone():
    spec = replace(clip_models.get_model_spec(MODEL), init_logit_bias=-10.0)
    model = clip_models.create_model(spec, seed=0)
    (scores,) = classify([make_image(0)], LABELS, model=model)
    for score in scores:
        logit = score.similarity * model.logit_scale.exp().item() - 10
        assert score.probability == pytest.approx(torch.tensor(logit).sigmoid().item(), rel=1e-3)


def test_labels_that_make_no_sense_are_refused(tiny):
    for labels, template, message in (
        ([], "{}", r"labels \[\] must be a list"),
        ("cat", "{}", "labels 'cat' must be a list"),
        (["a", " "], "{}", "label ' ' is empty"),
        (["a", "b", "a"], "{}", "label 'a' is given twice"),
        (["a"], "a photo", "template 'a photo' has no place for the label"),
    ):
        with pytest.raises(ClipModelsError, match=message):
            classify([make_image(0)], labels, model=tiny, template=template)
    with pytest.raises(ClipModelsError, match="has random weights"):
        classify([make_image(0)], ["a"], model=MODEL)

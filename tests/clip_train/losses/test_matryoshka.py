import pytest
import torch

from clip_train.losses.contrastive import contrastive_loss
from clip_train.losses.matryoshka import matryoshka
from clip_train.losses.sigmoid import sigmoid_loss
from tests.support.dense_losses import features


def test_all_channels_alone_are_the_plain_loss():
    image, text = features(10)
    scale, bias = torch.tensor(10.0), torch.tensor(-5.0)
    nested = matryoshka(contrastive_loss, [16])(image, text, scale)
    assert nested.item() == pytest.approx(contrastive_loss(image, text, scale).item(), rel=1e-6)
    nested = matryoshka(sigmoid_loss, [16])(image, text, scale, bias, exchange="gather")
    assert nested.item() == pytest.approx(sigmoid_loss(image, text, scale, bias).item(), rel=1e-6)


def test_a_dim_without_weight_does_not_count():
    image, text = features(10)
    scale = torch.tensor(10.0)
    only, both = (
        matryoshka(contrastive_loss, dims, weights)(image, text, scale)
        for dims, weights in (([4], [1]), ([4, 16], [3, 0]))
    )
    assert only.item() == both.item()


@pytest.mark.parametrize(
    ("dims", "weights", "message"),
    [
        ([], None, r"dims are \[\]"),
        ([0, 4], None, r"dims are \[0, 4\]"),
        ([4, 4], None, r"dims are \[4, 4\]"),
        ([4, 8], [1], r"weights are \[1\]: give one for each of the 2 dims"),
        ([4, 8], [1, -1], "none negative"),
        ([4, 8], [0, 0], "not all 0"),
    ],
)
def test_dims_and_weights_that_do_not_fit_are_named(dims, weights, message):
    with pytest.raises(ValueError, match=message):
        matryoshka(contrastive_loss, dims, weights)


def test_more_dims_than_channels_are_refused():
    with pytest.raises(ValueError, match="dims has 32, but the features have 16 channels"):
        matryoshka(contrastive_loss, [8, 32])(*features(4), torch.tensor(1.0))

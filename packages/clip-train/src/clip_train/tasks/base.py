"""The interface between the training step and a task, and what all tasks share."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule

from clip_models import CLIP, ModelSpec, PreprocessConfig
from clip_train.model import is_drawn
from clip_train.parallel import World
from clip_train.parallelize.config import AUTOCAST

if TYPE_CHECKING:
    from clip_data.stream import Manifest
    from clip_train.checkpoints.state import Part
    from clip_train.synthetic import SyntheticConfig

MAX_LOGIT_SCALE = 100.0
Batch = Mapping[str, Tensor]
Tensors = dict[str, Tensor]


class Outputs(NamedTuple):
    """What the model computes for the samples of one micro-batch.

    The three parts differ in how a step that is split into micro-batches treats them.
    """

    features: dict[str, Tensor]
    """[B, …] each; the losses compare them with the features of all other samples"""
    shared: dict[str, Tensor]
    """values of parameters that those losses use, the same for every sample, such as the scale of the logits"""
    losses: dict[str, Tensor]
    """parts of the loss that need these samples alone; over the micro-batches they add up to the mean over all ranks"""


class Task:
    """A model with the losses that train it. A kind of task overrides `forward` and `losses_of`.

    `precision`: one of `train.precision`. Losses are computed in float32.

    A step takes a batch through `tensors`, `with_counts`, `targets` (for each micro-batch), `forward` and `losses_of`.
    None of them has to know the modalities of a batch but `tensors` and `forward`: a task of other ones overrides
    these two, with `texts`, names what the stream has to decode in its specs, and uses the losses as they are.
    """

    columns: tuple[str, ...] = ()
    """columns of the dataset that `tensors` needs in a batch, as the stream names them"""

    needs_samples = False
    """whether a step needs what `start` reads of the samples, so that it cannot be simulated without them"""

    def __init__(self, model: CLIP, *, precision: str, world: World) -> None:
        self.model: CLIP = model.to(world.device) if is_drawn(model) else model
        self.world = world
        self._autocast = AUTOCAST.get(precision)
        self._forward = _Forward(self)
        self._normalise = Normalise(model.spec.preprocess, world.device)
        self.text_lengths: Sequence[int] = ()
        """numbers of tokens that captions are padded to; () for those of `padded_length`"""

    @property
    def text_specs(self) -> list[ModelSpec]:
        """The models whose tokens a batch has side by side in "text"."""
        return [self.model.spec]

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width of the images of a batch."""
        return self.model.spec.preprocess.size

    def forward(self, image: Tensor, batch: Batch) -> Outputs:
        """Returns the outputs for normalised images, float32 [B, 3, H, W], and the rest of a prepared batch."""
        raise NotImplementedError

    def targets(self, batch: Batch) -> dict[str, Tensor]:
        """Returns what `losses_of` compares the features with and no gradient reaches: [B, …] each.

        It is computed once for each micro-batch and added to the whole batch.
        """
        return {}

    def losses_of(
        self, features: Tensors, shared: Tensors, batch: Batch, *, ranks: int, step: int | None = None
    ) -> Tensors:
        """Returns the parts of the loss that compare samples: means over all `ranks`, the same on every rank.

        `batch`: the whole batch of this rank, with `targets`. `step`: number of the training step, from 0; None in an
        evaluation, which changes no state. Averaging the gradients of the parameters over the ranks gives the gradient
        of these means.
        """
        raise NotImplementedError

    @property
    def parts(self) -> Mapping[str, Part]:
        """State of the task besides the model, which checkpoints save under these names."""
        return {}

    @property
    def about(self) -> dict[str, Any]:
        """JSON values that checkpoints hold, for `TaskConfig.complete` and `TaskConfig.separate`."""
        return {}

    def start(self, manifest: Manifest | SyntheticConfig, held_out: Manifest | None, *, batch_size: int) -> None:
        """Called once on every rank, before a checkpoint is loaded, with the samples and the size of a global batch.

        Raises ClipTrainError if the task cannot be trained on these samples.
        """

    @property
    def texts(self) -> dict[str, CLIP]:
        """The entries of a prepared batch that are captions' tokens, int64 [B, L], and the model that reads each."""
        return {"text": self.model}

    def tensors(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """Returns a batch of the stream, {"image": uint8 [B, 3, H, W], "text": int64 [B, context], …}, as tensors.

        "uid", the identifiers of the samples, becomes int64 [B]; "ordinal", their numbers, stays.
        """
        tensors = {"image": torch.from_numpy(batch["image"]), "text": torch.from_numpy(batch["text"])}
        if "uid" in batch:
            # The first 64 bits of the identifier, as a signed number.
            tensors["uid"] = torch.tensor([int(uid[:16], 16) - (1 << 63) for uid in batch["uid"]])
        if "ordinal" in batch:
            tensors["ordinal"] = torch.from_numpy(batch["ordinal"])
        return tensors

    def lengths(self, tensors: Mapping[str, Tensor]) -> dict[str, int]:
        """Returns, for each of `texts` on the CPU, the smallest of `text_lengths` that changes no feature of it."""
        return {
            name: padded_length(model.cut_captions(tensors[name]).shape[1], self.text_lengths, tensors[name].shape[1])
            for name, model in self.texts.items()
        }

    def tokens(self, tensors: Mapping[str, Tensor]) -> int:
        """Returns the number of tokens of a batch's captions, padding not counted; of the model's, not a teacher's."""
        return int((tensors["text"] != (self.model.spec.text.pad_id or 0)).sum())

    def prepare(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """Moves a batch of the stream to the device, and cuts off columns of the captions that change no feature."""
        tensors = self.tensors(batch)
        lengths = self.lengths(tensors)
        return cut({name: self.moved(tensor) for name, tensor in tensors.items()}, lengths)

    def moved(self, tensor: Tensor) -> Tensor:
        """Copies a tensor of the CPU to the device, without waiting for the copy."""
        if self.world.device.type == "cuda":
            return tensor.contiguous().pin_memory().to(self.world.device, non_blocking=True)
        return tensor

    def with_counts(self, batch: Batch) -> Mapping[str, Tensor]:
        """Adds what the losses of a training step have to know of the whole batch of all ranks."""
        return batch

    def module(self) -> nn.Module:
        """Returns the computation of `forward` as a module, always the same, from a prepared batch."""
        return self._forward

    @torch.no_grad()
    def held_out(self, batch: Batch) -> Outputs:
        """Returns the outputs for a prepared batch of this rank in evaluation mode.

        Their `losses` are means over this batch; see `weighed`. The ranks of a sharded model call this together,
        equally often.
        """
        self.model.eval()
        out: Outputs = self._forward(batch)
        if isinstance(self._forward, FSDPModule):
            self._forward.reshard()  # no backward pass does it, and the weights may change before the next call
        self.model.train()
        return out

    @torch.no_grad()
    def embed(self, inputs: Tensor) -> Tensor:
        """Returns the features of one tower, not normalised, float32 [B, D], in evaluation mode.

        `inputs` on the device: images, uint8 [B, 3, H, W] of the model's size, or tokens, int64 [B, T]. The ranks of a
        sharded model call this together, equally often, for the same tower.
        """
        self.model.eval()
        with self.autocast():
            if inputs.ndim == 2:
                features = self._forward.encode_text(inputs)
            else:
                features = self._forward.encode_image(self._normalise(inputs))
        if isinstance(self._forward, FSDPModule):
            self._forward.reshard()
        self.model.train()
        return features.float()

    def weighed(self, batch: Batch) -> dict[str, Tensor]:
        """Returns how many values each of the `losses` of `held_out` is the mean of, by its name; scalars."""
        return {}

    @torch.no_grad()
    def evaluate(self, batch: Batch) -> Tensor:
        """Returns the loss within a prepared batch of this rank alone, in evaluation mode."""
        out = self.held_out(batch)
        return sum_of(out.losses | self.losses_of(out.features, out.shared, {**batch, **self.targets(batch)}, ranks=1))

    @torch.no_grad()
    def report(self) -> dict[str, Tensor]:
        """Returns {"logit_scale": the exponentiated factor on the cosines, and "logit_bias" if there is one}.

        They are scalars on the device.
        """
        values = {"logit_scale": self.model.logit_scale.exp()}
        if self.model.logit_bias is not None:
            values["logit_bias"] = self.model.logit_bias.clone()
        return values

    @torch.no_grad()
    def after_step(self) -> None:
        """Keeps the factor on the cosines in [1, 100]."""
        self.model.logit_scale.clamp_(0, math.log(MAX_LOGIT_SCALE))

    def compute(self, batch: Batch) -> Outputs:
        """Normalises the images and calls `forward` under autocast."""
        image = self._normalise(batch["image"])
        with self.autocast():
            return self.forward(image, batch)

    def autocast(self) -> torch.autocast:
        """Returns the context of the model's precision."""
        low = None if self._autocast is None else getattr(torch, self._autocast)
        return torch.autocast(self.world.device.type, low, enabled=low is not None)


class Normalise:
    """Makes a model's input from uint8 images [B, 3, H, W]: its size, antialiased, and its mean and std, in float32."""

    def __init__(self, preprocess: PreprocessConfig, device: torch.device) -> None:
        mean, std = (torch.tensor(values, device=device).view(3, 1, 1) for values in (preprocess.mean, preprocess.std))
        self._size, self._gain, self._offset = preprocess.size, 1 / (255 * std), mean / std

    def __call__(self, image: Tensor) -> Tensor:
        image = image.to(torch.float32)
        if image.shape[-2:] != self._size:
            image = F.interpolate(image, self._size, mode="bicubic", antialias=True).clamp_(0, 255)
        return image.mul_(self._gain).sub_(self._offset)


class _Forward(nn.Module):
    def __init__(self, task: Task) -> None:
        super().__init__()
        self.model = task.model
        self._compute = task.compute

    def forward(self, batch: Batch) -> Outputs:
        return self._compute(batch)

    def encode_image(self, image: Tensor) -> Tensor:
        return self.model.encode_image(image)

    def encode_text(self, text: Tensor) -> Tensor:
        return self.model.encode_text(text)


def sum_of(losses: Mapping[str, Tensor]) -> Tensor:
    """Returns the sum of the parts of a loss, a float32 scalar."""
    return torch.stack([loss.float() for loss in losses.values()]).sum()


def padded_length(length: int, lengths: Sequence[int], context: int) -> int:
    """Returns the smallest of `lengths`, or of the `context`, that is at least `length`.

    Without `lengths` there are two to an octave, 8, 12, 16, 24, 32, 48, 64, …: a compiled model sees few shapes.
    """
    octaves = (each for octave in range(3, context.bit_length()) for each in (2**octave, 3 * 2 ** (octave - 1)))
    return next((each for each in lengths or octaves if length <= each < context), context)


def cut(batch: Mapping[str, Tensor], lengths: Mapping[str, int]) -> dict[str, Tensor]:
    """Returns the batch with the first columns of the texts, as many as `lengths` says of each."""
    return {
        name: tensor[:, : lengths[name]].contiguous() if name in lengths else tensor for name, tensor in batch.items()
    }

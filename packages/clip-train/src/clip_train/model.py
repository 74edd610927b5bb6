"""The model of a run and its initial weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from clip_train.errors import ClipTrainError
from clip_train.lora import LoraConfig

if TYPE_CHECKING:
    from torch import nn

    from clip_models import CLIP
    from clip_models.specs import ModelSpec


@dataclass(frozen=True, kw_only=True)
class LockConfig:
    """Towers whose weights stay as they are (locked-image tuning, LiT, Zhai et al. 2022)."""

    image: bool = False
    """lock the image tower"""
    image_unlocked_groups: int = 0
    """groups of layers at the output of a locked image tower that are trained"""
    image_freeze_batch_norms: bool = False
    """batch norms of the locked layers use their stored statistics and do not update them"""
    text: bool = False
    """lock the text tower"""
    text_unlocked_groups: int = 0
    """groups of layers at the output of a locked text tower that are trained"""
    text_freeze_norms: bool = True
    """lock the layer norms of the text tower too"""

    def check(self) -> None:
        """Raises ClipTrainError for a value that has no effect or is not valid."""
        for tower in ("image", "text"):
            groups = getattr(self, f"{tower}_unlocked_groups")
            if groups < 0:
                raise ClipTrainError(f"model.lock.{tower}_unlocked_groups = {groups} must be at least 0")
            if groups and not getattr(self, tower):
                raise ClipTrainError(f"model.lock.{tower}_unlocked_groups = {groups} requires model.lock.{tower}")
        if self.image_freeze_batch_norms and not self.image:
            raise ClipTrainError("model.lock.image_freeze_batch_norms requires model.lock.image")
        if not self.text_freeze_norms and not self.text:
            raise ClipTrainError("model.lock.text_freeze_norms = false requires model.lock.text")


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The model and its initial weights."""

    name: str
    """an architecture of clip-models, e.g. ViT-B-32; or a whole model with its weights: hf-hub:org/name,
    local-dir:folder, or a file that describes itself"""
    pretrained: str = ""
    """weights of the architecture to start from: a tag, hf-hub:org/name, local-dir:folder, or a file; empty draws
    random weights from the seed"""
    pretrained_image: str = ""
    """a weights file of the image tower alone"""
    pretrained_text: str = ""
    """a weights file of the text tower alone"""
    image_size: int | tuple[int, int] | None = None
    """height and width in pixels; position embeddings of pretrained weights are resized"""
    context_length: int | None = None
    """tokens of a caption; position embeddings of pretrained weights are resized"""
    patch_dropout: float | None = None
    """share of the patches that are left out in training"""
    quick_gelu: bool = False
    """use the activation of OpenAI's weights, x · sigmoid(1.702 x)"""
    mean: tuple[float, float, float] | None = None
    """subtracted from the channels of an image in [0, 1]"""
    std: tuple[float, float, float] | None = None
    """divides the channels"""
    interpolation: Literal["bicubic", "bilinear"] | None = None
    """how images are resized"""
    lock: LockConfig = field(default_factory=LockConfig)
    """weights that are not trained"""
    lora: LoraConfig = field(default_factory=LoraConfig)
    """low-rank adapters, which are trained in place of the weights"""

    def spec(self) -> ModelSpec:
        """Returns the architecture that `name` names, without the other keys. Raises ClipError.

        For a whole model its description is read, which may need the network.
        """
        from clip_models.specs import get_model_spec

        if not self.is_whole:
            return get_model_spec(self.name)
        from clip_models.weights.locate import locate, settle

        return settle(None, locate(self.name, load_weights="://" in self.name))

    @property
    def is_whole(self) -> bool:
        """Whether `name` names a model with its weights, not an architecture."""
        from clip_models.specs import list_models

        if self.name.replace("/", "-") in list_models():
            return False
        from clip_models.weights.locate import is_model_source

        return is_model_source(self.name)

    def weights(self) -> dict[str, tuple[str, str]]:
        """Returns (source, architecture) of the weights that are loaded, by key."""
        named = {key: getattr(self, key) for key in ("pretrained", "pretrained_image", "pretrained_text")}
        found = {key: (source, self.name) for key, source in named.items() if source}
        return {"name": (self.name, ""), **found} if self.is_whole else found

    def check(self, precision: str) -> None:
        """Raises ClipTrainError for locks and adapters that have no effect or cannot work. `precision`: of training."""
        self.lock.check()
        self.lora.check(
            pretrained=bool(self.pretrained or (self.pretrained_image and self.pretrained_text)) or self.is_whole,
            locked=self.lock != LockConfig(),
            precision=precision,
        )


_SHAPES_ONLY = ContextVar("shapes_only", default=False)


@contextmanager
def shapes_only() -> Iterator[None]:
    """Within it models are built without their weights, for estimates: no file is read."""
    token = _SHAPES_ONLY.set(True)
    try:
        yield
    finally:
        _SHAPES_ONLY.reset(token)


def weights_of(pretrained: str, **paths: str) -> dict[str, Any]:
    """Returns the arguments of `create_model` that name weights: `pretrained`, and files of towers in `paths`."""
    if _SHAPES_ONLY.get():
        return {}
    return {"pretrained": pretrained or None, **{name: path or None for name, path in paths.items()}}


def make_model(config: ModelConfig, *, seed: int, device: Literal["cpu", "meta"] = "cpu") -> CLIP:
    """Returns the model in training mode. Raises ClipError.

    `seed`: of the random weights. On "meta" there are none, but for scalars: they are drawn when the model is sharded.
    """
    from clip_models import create_model

    preprocess = {"mean": config.mean, "std": config.std, "interpolation": config.interpolation}
    model = create_model(
        config.name,
        seed=seed,
        device=device,
        force_quick_gelu=config.quick_gelu,
        force_patch_dropout=config.patch_dropout,
        force_image_size=config.image_size,
        force_context_length=config.context_length,
        force_preprocess_cfg={key: value for key, value in preprocess.items() if value is not None} or None,
        **weights_of(
            config.pretrained,
            pretrained_image_path=config.pretrained_image,
            pretrained_text_path=config.pretrained_text,
        ),
    )
    if device == "meta":
        draw_scalars(model, seed)
    lock = config.lock
    if lock.image:
        model.lock_image_tower(lock.image_unlocked_groups, lock.image_freeze_batch_norms)
    if lock.text:
        model.lock_text_tower(lock.text_unlocked_groups, lock.text_freeze_norms)
    if config.lora.rank:
        from clip_train.adapters import add_adapters

        add_adapters(model, config.lora, seed=seed)
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    if trained <= {"logit_scale", "logit_bias"}:
        raise ClipTrainError("model.lock locks every weight of both towers: unlock one of them, or some groups")
    return model


def draw_scalars(model: CLIP, seed: int) -> None:
    """Gives the scalars of a model on the meta device their values, which a task may change before it is sharded."""
    from torch import nn

    from clip_models.model.drawing import Drawing

    drawing = Drawing(model.spec, seed)
    for name, parameter in list(model.named_parameters()):
        if parameter.ndim == 0:
            place, _, key = name.rpartition(".")
            setattr(model.get_submodule(place), key, nn.Parameter(drawing.value(name), parameter.requires_grad))


def can_draw_later(model: ModelConfig, *, read: bool) -> bool:
    """Whether the weights may be drawn when the model is sharded; `read`: the task reads them before."""
    from clip_models import ClipModelsError
    from clip_models.model.drawing import Drawing

    if read or model.weights():
        return False
    try:
        Drawing(model.spec(), 0)
    except ClipModelsError:  # a tower reads its random numbers
        return False
    return True


def is_drawn(model: nn.Module) -> bool:
    """Whether the model has its weights: those of one on the meta device are drawn when it is sharded."""
    return not any(parameter.is_meta for parameter in model.parameters())

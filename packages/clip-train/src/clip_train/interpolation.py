"""Weights between two models (WiSE-FT, Wortsman et al. 2022), and their scores along the way."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from clip_core.console import progress_bar
from clip_core.files import sha256_of
from clip_core.store import Store
from clip_models import CLIP, ModelSpec, load_model, save_model
from clip_train.errors import ClipTrainError
from clip_train.model import ModelConfig, make_model

CURVE = "curve.json"
"""{"tuned_sha256", "points": [{"alpha", "rows": the result rows of clip-eval}, …]}"""
Measure = Callable[[Path, str], list[dict[str, Any]]]
"""function from a weights file and a folder for results to the result rows"""


class Interpolation:
    """The models (1 − alpha)·base + alpha·tuned.

    `base` describes the model that the tuned one started from, as its recipe did; `tuned` is a file of weights. Raises
    ClipError if one of them cannot be loaded, or if the two networks differ.
    """

    def __init__(self, base: ModelConfig, tuned: str) -> None:
        self._model: CLIP
        self._spec: ModelSpec
        self._model, self._spec = load_model(tuned)
        self.tuned_sha256 = sha256_of(tuned)
        if not base.pretrained:
            raise ClipTrainError("base.pretrained is empty: name the tag or the file that the fine-tuning started from")
        start = make_model(base, seed=0)
        if difference := start.spec.describe_difference(self._spec):
            raise ClipTrainError(
                f"base.name = {base.name!r} and the model in {tuned} are different networks ({difference}): set the "
                "keys of base to those of [model] in the recipe of the fine-tuning"
            )
        self._base, self._tuned = start.state_dict(), {k: v.clone() for k, v in self._model.state_dict().items()}

    def save(self, alpha: float, path: Path) -> None:
        """Writes the model of an alpha in [0, 1]; 0 gives the base's weights, 1 the tuned ones, to the bit."""
        self._model.load_state_dict(interpolate(self._base, self._tuned, alpha))
        save_model(path, self._model, self._spec, {"clip_train.alpha": repr(alpha)})


def interpolate(base: Mapping[str, Tensor], tuned: Mapping[str, Tensor], alpha: float) -> dict[str, Tensor]:
    """Returns (1 − alpha)·base + alpha·tuned of two state dicts, computed in float32. The ends are exact.

    Integers, such as the counters of batch norms, are those of `tuned` unless alpha is 0.
    """
    if alpha in (0, 1):
        return dict(tuned if alpha else base)
    return {
        name: base[name].float().lerp(value.float(), alpha).to(value.dtype) if value.is_floating_point() else value
        for name, value in tuned.items()
    }


def measure_curve(
    models: Interpolation, folder: Store, alphas: Sequence[float], keep: Sequence[float], measure: Measure | None
) -> list[dict[str, Any]]:
    """Writes the weights of the alphas in `keep`, and measures all alphas if `measure` is given.

    Returns [{"alpha", "rows"}, …]. What an earlier call has measured in the folder is not measured again.
    """
    known = folder.read_json(CURVE) if folder.exists(CURVE) else {"points": []}
    if known.get("tuned_sha256", models.tuned_sha256) != models.tuned_sha256:
        raise ClipTrainError(f"{folder.url} holds the curve of other tuned weights: choose another output folder")
    points = {point["alpha"]: point for point in known["points"]}
    for alpha in progress_bar(sorted({*alphas, *keep}), desc="alpha", unit=" models"):
        path = Path(folder.full(f"alpha-{alpha:g}.safetensors"))
        wanted = measure is not None and alpha in alphas and alpha not in points
        if wanted or (alpha in keep and not path.exists()):
            models.save(alpha, path)
        if wanted and measure is not None:
            points[alpha] = {"alpha": alpha, "rows": measure(path, folder.full(f"eval/alpha-{alpha:g}"))}
            curve = {"tuned_sha256": models.tuned_sha256, "points": [points[key] for key in sorted(points)]}
            folder.write_json(CURVE, curve)
        if alpha not in keep:
            path.unlink(missing_ok=True)
    return [points[key] for key in sorted(points)]

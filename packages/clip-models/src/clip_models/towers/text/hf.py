"""Text towers out of the transformers library: an encoder, a pooler and a projection.

Parameter names and shapes are OpenCLIP's: `transformer.` and the library's names, `proj.`.

Shapes: B batch, L tokens, D width.
"""

import functools
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from clip_models.errors import ClipModelsError, first_line
from clip_models.extras import require
from clip_models.specs import HFTextConfig
from clip_models.towers.base import Found, Indices, TextTower, names_under, take_indices
from clip_models.towers.common import check_text, cut_captions, valid_tokens

_TABLES = ("position_embeddings", "token_type_embeddings", "relative_attention_bias", "embed_positions")


class HFTextTower(TextTower):
    """An encoder of transformers, built from its configuration: nothing is downloaded.

    Of an encoder-decoder the encoder is used. Raises ClipModelsError if transformers is missing or cannot build it.
    """

    def __init__(self, config: HFTextConfig, embed_dim: int, quick_gelu: bool = False) -> None:
        super().__init__()
        self.config = config
        self.context_length = config.context_length
        self.vocab_size = config.vocab_size
        self.output_tokens = config.output_tokens
        self.transformer = _build_encoder(config)
        library_config: Any = self.transformer.config
        self.pad_id = library_config.pad_token_id
        if self.pad_id is None:
            raise ClipModelsError(f"text.config of {config.model_name!r} lacks pad_token_id, which marks the padding")
        width, hidden = library_config.hidden_size, (library_config.hidden_size + embed_dim) // 2
        self.proj: nn.Module
        if config.proj_type == "linear":
            self.proj = nn.Linear(width, embed_dim, bias=False)
        elif config.proj_type == "mlp":
            layers = nn.Linear(width, hidden, bias=False), nn.GELU(), nn.Linear(hidden, embed_dim, bias=False)
            self.proj = nn.Sequential(*layers)
        else:
            config.check_width(embed_dim)
            self.proj = nn.Identity()

    def _encode(self, text_BL: Tensor) -> tuple[Tensor, Tensor]:
        """→ (features [B, embed_dim], tokens [B, L, D], without the first if that is pooled)."""
        valid_BL = valid_tokens(text_BL, self.pad_id)
        output: Any = self.transformer(input_ids=text_BL, attention_mask=valid_BL.long())
        x_BLD, valid_BL1 = output.last_hidden_state, valid_BL.unsqueeze(-1)
        match self.config.pooler_type:
            case "mean_pooler":
                pooled = (x_BLD * valid_BL1).sum(dim=1) / valid_BL1.sum(dim=1)
            case "max_pooler":
                pooled = x_BLD.masked_fill(~valid_BL1, -torch.inf).amax(dim=1)
            case "cls_pooler":
                own = getattr(output, "pooler_output", None)
                pooled = x_BLD[:, 0] if own is None else own
                x_BLD = x_BLD[:, 1:]
            case _:
                pooled = x_BLD[:, 0]
        return self.proj(pooled), x_BLD

    def forward(self, text: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        check_text(text, self.context_length, self.vocab_size)
        if self.output_tokens:
            return self._encode(text)
        return self._encode(cut_captions(text, self.config))[0]

    def _intermediates(self, inputs: Tensor, indices: Indices, stop_early: bool, normalize: bool, layout: str) -> Found:
        """The library always runs to the end, so that `stop_early` saves nothing; there are no extra tokens."""
        check_text(inputs, self.context_length, self.vocab_size)
        blocks, outputs = self.blocks(), dict[int, Tensor]()

        def keep(number: int, output: Any) -> None:
            outputs[number] = output[0] if isinstance(output, tuple) else output

        taken = take_indices(len(blocks), indices)
        hooks = [
            blocks[number].register_forward_hook(lambda _block, _input, output, number=number: keep(number, output))
            for number in taken
        ]
        try:
            features = self._encode(inputs)[0]
        finally:
            for hook in hooks:
                hook.remove()
        norm = self._final_norm() if normalize else ""
        apply = self.transformer.get_submodule(norm) if norm else nn.Identity()
        return [apply(outputs[number]) for number in taken], {}, lambda: features

    def _block_list(self) -> str:
        """Returns the name of the list of blocks in the library's model."""
        for name in ("encoder.layer", "encoder.layers", "encoder.block", "layer", "layers", "block"):
            try:
                if isinstance(self.transformer.get_submodule(name), nn.ModuleList):
                    return name
            except AttributeError:
                continue
        raise ClipModelsError(f"the blocks of {type(self.transformer).__name__} are not found")

    def _final_norm(self) -> str:
        """Returns the name of the norm after the last block; "" for models that end each block with one."""
        return next(
            (name for name in ("final_layer_norm", "layer_norm", "final_norm") if hasattr(self.transformer, name)), ""
        )

    def blocks(self) -> list[nn.Module]:
        return list(self.transformer.get_submodule(self._block_list()).children())

    def layer_groups(self) -> list[list[str]]:
        """Embeddings; each block, the last with what follows it; the encoder's own pooler and the projection."""
        blocks = f"transformer.{self._block_list()}"
        groups = [names_under(self, f"{blocks}.{number}") for number in range(len(self.blocks()))]
        head = names_under(self, "transformer.pooler", "proj")
        if norm := self._final_norm():
            groups[-1] += names_under(self, f"transformer.{norm}")
        placed = {name for group in (*groups, head) for name in group}
        embeddings = [name for name, _ in self.named_parameters() if name not in placed]
        return [embeddings, *groups, head] if head else [embeddings, *groups]

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """The library recomputes in training mode only."""
        # Its public method also lets frozen embeddings ask for gradients, which then run through a locked tower.
        transformer: Any = self.transformer
        transformer._set_gradient_checkpointing(enable, functools.partial(checkpoint, use_reentrant=False))

    def no_weight_decay(self) -> set[str]:
        """Learned tables of positions and types, as of CLIP's own towers."""
        return {name for name, _ in self.named_parameters() if any(table in name for table in _TABLES)}


def _build_encoder(config: HFTextConfig) -> nn.Module:
    transformers = require("transformers", "hf", f"the text tower {config.model_name}")
    entries = {key: value for key, value in config.config.items() if key not in ("dtype", "torch_dtype")}
    try:
        library_config = transformers.AutoConfig.for_model(**entries)
        if library_config.is_encoder_decoder:
            # The decoder goes unused: without layers it takes no time and no memory.
            for name in ("num_decoder_layers", "decoder_layers"):
                if hasattr(library_config, name):
                    setattr(library_config, name, 0)
            return transformers.AutoModel.from_config(library_config).encoder
        model = transformers.AutoModel.from_config(library_config)
    except Exception as error:  # the library's checks raise classes of their own, which change from release to release
        line = first_line(error)
        raise ClipModelsError(f"transformers cannot build {config.model_name!r} from text.config: {line}") from error
    if config.pooler_type != "cls_pooler" and getattr(model, "pooler", None) is not None:
        model.pooler = None  # parameters that nothing uses, and that OpenCLIP's weights lack
    return model

"""Captions from a CoCa: greedy, top-k, top-p and beam search, each token computed once.

Keys and values of the caption are cached, those of the image are computed once. That is exact because text tower and
decoder are causal (CoCa's class token is the last one, and nothing is decoded from it). Other text towers, such as
RoBERTa's, read the whole caption again at each step.

Shapes: B images, W beams for each, N = B · W captions, T tokens of a caption, D width, H heads, C channels of a head,
V vocabulary.
"""

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from operator import itemgetter
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from clip_models.errors import ClipModelsError
from clip_models.specs import HFTextConfig, ModelSpec
from clip_models.specs.values import require_choice
from clip_models.towers.layers import Block
from clip_models.towers.text.clip import TextTransformer

if TYPE_CHECKING:
    from clip_models.model.coca import CoCa

StoppingCriterion = Callable[[Tensor, Tensor | None], bool | Tensor]
"""(token ids [N, T], None) → whether to stop: one bool, or bool [N]."""


class FewRows(TorchFunctionMode):
    """Runs the float32 linear layers of few rows on a CPU with oneDNN instead of PyTorch's BLAS.

    Such a layer only reads its weights, which is 1.5 to 2.5 times as fast (MKL, AVX-512, 2 threads). torch.compile
    calls the same operator; it has no gradient.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.linear and not kwargs and torch.backends.mkldnn.is_available():
            x, weight, *bias = args
            plain = type(weight) in (Tensor, nn.Parameter) and not torch.is_autocast_enabled("cpu")
            if plain and x.device.type == "cpu" and x.dtype == torch.float32 and x.numel() <= 16 * x.shape[-1]:
                return torch.ops.mkldnn._linear_pointwise(x, weight, bias[0] if bias else None, "none", [], "")
        return func(*args, **(kwargs or {}))


class Cache:
    """Keys and values of a stack of blocks for the first `length` tokens of N captions."""

    def __init__(self, layers: int, capacity: int) -> None:
        self.layers, self.capacity = layers, capacity
        self.keys_values: Tensor | None = None
        """[layers, 2, N, H, capacity, C], in the precision of the first keys."""

    def reorder(self, rows_N: Tensor, length: int) -> None:
        """Caption i continues caption rows_N[i]."""
        if self.keys_values is not None:
            self.keys_values[..., :length, :] = self.keys_values[:, :, rows_N, :, :length]

    def run(self, block: Block, index: int, x_NTD: Tensor, start: int, mask: Tensor | None) -> Tensor:
        """Returns the output of `block`, number `index`, for the tokens start to start + T; earlier ones are cached."""
        N, T, D = x_NTD.shape
        attn, end = block.attn, start + T
        qkv = F.linear(block.ln_1(x_NTD), attn.in_proj_weight, attn.in_proj_bias)
        q, k, v = qkv.view(N, T, 3, attn.heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        if self.keys_values is None:
            self.keys_values = k.new_empty((self.layers, 2, N, attn.heads, self.capacity, k.shape[-1]))
        keys, values = self.keys_values[index]
        keys[:, :, start:end], values[:, :, start:end] = k, v
        y = F.scaled_dot_product_attention(q, keys[:, :, :end], values[:, :, :end], attn_mask=mask)
        x = x_NTD + block.ls_1(attn.out_proj(y.transpose(1, 2).reshape(N, T, D)))
        return x + block.ls_2(block.mlp(block.ln_2(x)))


class NextToken:
    """Logits of the token after each of N captions, which grow by a token from call to call."""

    def __init__(self, model: "CoCa", image_BMD: Tensor, capacity: int) -> None:
        """image_BMD: the tokens of the images, each with N / B captions. capacity: tokens of the longest caption."""
        self.text, self.decoder = model.text, model.text_decoder
        self.layers = [(block, cross, cross.keys_values(image_BMD)) for block, cross in self.decoder.pairs()]
        self.decoder_cache = Cache(len(self.layers), capacity)
        self.text_cache = None
        if isinstance(self.text, TextTransformer) and not self.text.config.no_causal_mask:
            self.text_cache = Cache(len(self.text.blocks()), capacity)
        self.length = 0

    def __call__(self, tokens_NT: Tensor) -> Tensor:
        """int64 [N, T] → float32 [N, V]. Tokens of the previous call are not computed again, unless the captions are
        not longer than then: those are read from their start."""
        end = tokens_NT.shape[1]
        start = self.length if self.text_cache is not None and end > self.length else 0
        causal = None  # one token may attend to all
        if end - start > 1:
            causal = torch.ones(end - start, end, dtype=torch.bool, device=tokens_NT.device).tril(start)
        if self.text_cache is None:
            x = self.text(tokens_NT)[1]
        else:
            x = self._text_tokens(tokens_NT, start, causal, self.text_cache)
        for index, (block, cross, image) in enumerate(self.layers):
            x = self.decoder_cache.run(block, index, x, start, causal)
            x = cross.look(x, image)
        self.length = end
        return self.decoder.project(x[:, -1]).float()

    def reorder(self, rows_N: Tensor) -> None:
        """Caption i of the next call continues caption rows_N[i] of the last one, of the same image."""
        if self.text_cache is not None:
            self.text_cache.reorder(rows_N, self.length)
            self.decoder_cache.reorder(rows_N, self.length)

    def _text_tokens(self, tokens_NT: Tensor, start: int, causal: Tensor | None, cache: Cache) -> Tensor:
        """Returns the text tower's output to the decoder for the tokens from `start` on: [N, T - start, D]."""
        text = self.text
        x = text.token_embedding(tokens_NT[:, start:]) + text.positional_embedding[start : tokens_NT.shape[1]]
        mask = causal
        if text.config.embed_cls:
            # The mask of training is one place off: it hides the tokens after a padding.
            seen = F.pad(tokens_NT[:, :-1] != text.config.pad_id, (1, 0), value=True)[:, None, None, :]
            mask = seen if causal is None else seen & causal
        x = x.to(text.transformer.dtype)
        for index, block in enumerate(text.transformer.resblocks):
            x = cache.run(block, index, x, start, mask)
        return x if text.config.embed_cls else text.ln_final(x)


@dataclass(frozen=True)
class Rules:
    """The rules of every kind of generation."""

    seq_len: int
    min_seq_len: int
    end: int
    pad: int
    repetition_penalty: float
    stopping_criteria: Sequence[StoppingCriterion]

    def adjust(self, logits_NV: Tensor, tokens_NT: Tensor) -> Tensor:
        """Returns the logits without an early end, and with present tokens made less likely."""
        if tokens_NT.shape[1] < self.min_seq_len:
            logits_NV[:, self.end] = -torch.inf
        if self.repetition_penalty != 1.0:
            seen = logits_NV.gather(1, tokens_NT)
            seen = torch.where(seen < 0, seen * self.repetition_penalty, seen / self.repetition_penalty)
            logits_NV.scatter_(1, tokens_NT, seen)
        return logits_NV

    def stop(self, tokens_NT: Tensor) -> bool:
        """Whether every caption is as long as it may be, or stopped by one of the caller's criteria."""
        if tokens_NT.shape[1] >= self.seq_len:
            return True
        stopped = torch.zeros(tokens_NT.shape[0], dtype=torch.bool, device=tokens_NT.device)
        for criterion in self.stopping_criteria:
            stopped = stopped | criterion(tokens_NT, None)
        return bool(self.stopping_criteria) and bool(stopped.all())


def sample(
    next_token: NextToken, prompt_NT: Tensor, rules: Rules, window: int, choose: Callable[[Tensor], Tensor]
) -> Tensor:
    """Returns captions [N, up to seq_len], continued by `choose`, from logits [n, V] to token ids [n], until all end.

    A finished caption is padded; one that has not ended before its last token ends there.
    """
    tokens = prompt_NT
    while True:
        ended = (tokens[:, -1] == rules.end) | (tokens[:, -1] == rules.pad)
        if ended.all():
            return tokens
        seen = tokens[:, -window:]
        chosen = torch.full_like(tokens[:, -1], rules.pad)
        if seen.shape[1] + 1 == rules.seq_len:
            chosen[~ended] = rules.end
        else:
            chosen[~ended] = choose(rules.adjust(next_token(seen)[~ended], seen[~ended]))
        tokens = torch.cat([tokens, chosen[:, None]], dim=1)
        if rules.stop(tokens):
            return tokens


def choose_top_k(logits_NV: Tensor, top_k: int, temperature: float) -> Tensor:
    """Returns token ids [N], drawn from the `top_k` most likely ones; the most likely one for 1."""
    if top_k == 1:
        return logits_NV.argmax(dim=-1)
    least = logits_NV.topk(min(top_k, logits_NV.shape[-1]), dim=-1).values[:, -1:]
    return draw(logits_NV.masked_fill(logits_NV < least, -torch.inf), temperature)


def choose_top_p(logits_NV: Tensor, top_p: float, temperature: float) -> Tensor:
    """Returns token ids [N], drawn from the fewest ones that have the share `top_p` of the probability."""
    ascending, order = logits_NV.sort(dim=-1)
    unlikely = ascending.softmax(dim=-1).cumsum(dim=-1) <= 1 - top_p
    unlikely[:, -1] = False
    return draw(logits_NV.masked_fill(unlikely.scatter(1, order, unlikely), -torch.inf), temperature)


def draw(logits_NV: Tensor, temperature: float) -> Tensor:
    return torch.multinomial((logits_NV / temperature).softmax(dim=-1), 1)[:, 0]


@dataclass
class Finished:
    """The best finished captions of one image, at most `capacity`, with their scores: sums over lengths."""

    capacity: int
    captions: list[tuple[float, Tensor]] = field(default_factory=list)
    closed: bool = False
    """No unfinished beam can do better."""

    @property
    def worst(self) -> float:
        return min(score for score, _ in self.captions)

    def add(self, score: float, tokens_T: Tensor) -> None:
        if len(self.captions) < self.capacity or score > self.worst:
            self.captions.append((score, tokens_T))
        if len(self.captions) > self.capacity:
            self.captions.remove(min(self.captions, key=itemgetter(0)))

    def close(self, attainable: float) -> None:
        """Closes if it is full and nothing in it is worse than `attainable`."""
        self.closed = self.closed or (len(self.captions) == self.capacity and self.worst >= attainable)


def beam_search(next_token: NextToken, prompt_BT: Tensor, rules: Rules, width: int) -> Tensor:
    """Returns the caption of each image with the highest sum of logits divided by its length: [B, up to seq_len]."""
    B = prompt_BT.shape[0]
    tokens = prompt_BT.repeat_interleave(width, dim=0)
    sums_BW = torch.full((B, width), -1e9, device=tokens.device)
    sums_BW[:, 0] = 0  # the beams of an image start alike: only one counts at first
    finished = [Finished(width) for _ in range(B)]
    while True:
        logits_NV = rules.adjust(next_token(tokens), tokens)
        V, length = logits_NV.shape[1], tokens.shape[1] + 1
        sums = (logits_NV + sums_BW.view(-1, 1)).view(B, width * V)
        # Twice the width leaves enough if all beams end here.
        best_sums, best = sums.topk(2 * width, dim=1)
        rows, ids, kept = [], [], []
        for image, (image_sums, candidates) in enumerate(zip(best_sums.tolist(), best.tolist(), strict=True)):
            grown = 0
            for rank, (total, candidate) in enumerate(zip(image_sums, candidates, strict=True)):
                row, token = image * width + candidate // V, candidate % V
                if token != rules.end:
                    rows.append(row)
                    ids.append(token)
                    kept.append(total)
                    grown += 1
                elif rank < width and not finished[image].closed:
                    finished[image].add(total / length, tokens[row])
                if grown == width:
                    break
            finished[image].close(image_sums[0] / length)
        rows_N = torch.tensor(rows, device=tokens.device)
        next_ids = torch.tensor(ids, device=tokens.device)
        tokens = torch.cat([tokens[rows_N], next_ids[:, None]], dim=1)
        sums_BW = torch.tensor(kept, device=tokens.device).view(B, width)
        if all(image.closed for image in finished) or rules.stop(tokens):
            break
        next_token.reorder(rows_N)
    for row, total in enumerate(sums_BW.flatten().tolist()):
        if not finished[row // width].closed:
            finished[row // width].add(total / tokens.shape[1], tokens[row])
    best_captions = [sorted(image.captions, key=lambda caption: caption[0])[-1][1] for image in finished]
    longest = min(max(len(caption) for caption in best_captions) + 1, rules.seq_len)
    result = tokens.new_full((B, longest), rules.pad)
    for caption, row in zip(best_captions, result, strict=True):
        row[: len(caption)] = caption
        if len(caption) < longest:
            row[len(caption)] = rules.end
    return result


def special_ids(spec: ModelSpec, start: int | None, end: int | None, pad: int | None) -> tuple[int, int, int]:
    """Returns the ids of start, end and padding: those given, else those of the spec's tokenizer."""
    known: tuple[int | None, ...] = (None, None, None)
    if isinstance(spec.text, HFTextConfig):
        known = tuple(spec.text.config.get(f"{name}_token_id") for name in ("bos", "eos", "pad"))
    elif spec.tokenizer.kind == "clip-bpe":
        known = (49406, 49407, spec.text.pad_id)
    ids = [default if given is None else given for given, default in zip((start, end, pad), known, strict=True)]
    for name, value in zip(("sot", "eos", "pad"), ids, strict=True):
        if value is None:
            raise ClipModelsError(f"the {name} token of {spec.name!r} is unknown: give {name}_token_id")
    return tuple(map(int, ids))  # type: ignore[arg-type, return-value]  # three integers


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Sets all modules to eval mode, and afterwards each to its own mode again."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


@torch.no_grad()
def generate(
    model: "CoCa",
    image: Tensor,
    text: Tensor | None = None,
    seq_len: int = 30,
    max_seq_len: int = 77,
    temperature: float = 1.0,
    generation_type: str = "beam_search",
    top_p: float = 0.1,
    top_k: int = 1,
    pad_token_id: int | None = None,
    eos_token_id: int | None = None,
    sot_token_id: int | None = None,
    num_beams: int = 6,
    num_beam_groups: int = 3,
    min_seq_len: int = 5,
    stopping_criteria: Sequence[StoppingCriterion] | None = None,
    repetition_penalty: float = 1.0,
    fixed_output_length: bool = False,
) -> Tensor:
    """Returns captions of images: int64 [B, up to seq_len], from start to end token, padded to the longest.

    image: float [B, 3, height, width], mean and std applied.
    text: int64 [T] or [B, T], the beginning of the captions, start token included; None is the start token.
    seq_len: longest caption in tokens, start and end included; with `fixed_output_length` the length of each row.
    max_seq_len: tokens of context for sampling.
    generation_type: beam_search; top_p, top_k: samples from the fewest tokens that have the share `top_p` of the
        probability, or from the `top_k` most likely ones (1 is greedy). A `temperature` above 1 flattens them.
    num_beams, num_beam_groups: beams of an image, and searches that they are divided into. OpenCLIP's groups are
        independent and all find the same caption, so that one search runs, with num_beams / num_beam_groups beams.
    min_seq_len: no end token comes before this position.
    stopping_criteria: generation stops when one holds for every caption.
    repetition_penalty: above 1 makes tokens less likely that the caption already has.
    *_token_id: None is the id of the model's tokenizer.

    The model is in eval mode meanwhile. Raises ClipModelsError.
    """
    start, end, pad = special_ids(model.spec, sot_token_id, eos_token_id, pad_token_id)
    prompt = _prompt(text, image, start)
    if not image.shape[0]:
        return prompt
    _check_ids(model.spec, prompt, end, pad)
    if not min_seq_len < seq_len:
        raise ClipModelsError(f"seq_len {seq_len} must be more than min_seq_len {min_seq_len}")
    if prompt.shape[1] >= seq_len:
        raise ClipModelsError(f"the text has {prompt.shape[1]} tokens, which leaves no room in seq_len {seq_len}")
    window = seq_len - 1 if generation_type == "beam_search" else min(max_seq_len, seq_len - 1)
    longest = min(model.context_length, model.spec.text.context_length)
    if not 0 < window <= longest:
        raise ClipModelsError(
            f"seq_len {seq_len} needs {window} tokens of context, but {model.spec.name!r} has {longest}:"
            " choose a smaller seq_len, or a smaller max_seq_len for sampling"
        )
    if num_beams < 1 or num_beam_groups < 1 or num_beams % num_beam_groups:
        raise ClipModelsError(f"num_beam_groups {num_beam_groups} must divide num_beams {num_beams}")
    choose = _chooser(generation_type, temperature, top_p, top_k)
    if repetition_penalty <= 0:
        raise ClipModelsError(f"repetition_penalty {repetition_penalty} must be positive")
    rules = Rules(seq_len, min_seq_len, end, pad, repetition_penalty, stopping_criteria or ())
    with evaluating(model), FewRows():
        next_token = NextToken(model, model(image)["image_embs"], window)
        if generation_type == "beam_search":
            tokens = beam_search(next_token, prompt, rules, num_beams // num_beam_groups)
        else:
            tokens = sample(next_token, prompt, rules, window, choose)
    if fixed_output_length:
        tokens = F.pad(tokens, (0, seq_len - tokens.shape[1]), value=pad)
    return tokens[0] if text is not None and text.ndim == 1 and image.shape[0] == 1 else tokens


def _chooser(generation_type: str, temperature: float, top_p: float, top_k: int) -> Callable[[Tensor], Tensor]:
    if temperature <= 0:
        raise ClipModelsError(f"temperature {temperature} must be positive")
    if not 0 <= top_p <= 1 or top_k < 1:
        raise ClipModelsError(f"top_p {top_p} must be a share and top_k {top_k} at least 1")
    choosers: dict[str, Callable[[Tensor], Tensor]] = {
        "beam_search": torch.argmax,
        "top_p": functools.partial(choose_top_p, top_p=top_p, temperature=temperature),
        "top_k": functools.partial(choose_top_k, top_k=top_k, temperature=temperature),
    }
    require_choice("generation_type", generation_type, tuple(choosers))
    return choosers[generation_type]


def _prompt(text: Tensor | None, image: Tensor, start: int) -> Tensor:
    """Returns the beginning of the captions, int64 [B, T] on the device of the image."""
    if text is None:
        return torch.full((image.shape[0], 1), start, device=image.device)
    prompt = text.expand(image.shape[0], -1) if text.ndim == 1 else text
    if prompt.ndim != 2 or prompt.shape[0] != image.shape[0] or not prompt.shape[1]:
        raise ClipModelsError(f"text is [tokens] or [{image.shape[0]} images, tokens], not {list(text.shape)}")
    return prompt.to(image.device)


def _check_ids(spec: ModelSpec, prompt_BT: Tensor, end: int, pad: int) -> None:
    """Raises ClipModelsError for a token that the text tower cannot read or an end that the decoder cannot write."""
    assert spec.decoder is not None
    readable, writable = spec.text.vocab_size, spec.decoder.vocab_size
    prompt = (int(prompt_BT.min()), int(prompt_BT.max()))
    for token, size in ((pad, readable), *((token, readable) for token in prompt), (end, writable)):
        if not 0 <= token < size:
            raise ClipModelsError(f"token id {token} is outside the vocabulary of {size} of {spec.name!r}")

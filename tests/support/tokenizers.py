"""Small tokenizers of every kind, trained in a moment on a few captions."""

from __future__ import annotations

import base64
import json
from pathlib import Path

CAPTIONS = [
    "a photo of a cat",
    "Two dogs in the park, running!",
    "the_red_circle above   the BLUE square",
    "&amp; it's an airplane's wing &lt;b&gt; 3.5 m",
    "schÃ¶n cafe\u0301 naïve Ångström ﬁ \u3000 ☕ 漢字",
    "[SEP] </s> <pad> [MASK] <s>",
    "",
    "  ",
    "lone \ud800 surrogate",
    "a very long caption with many many words " * 12,
]
"""What the parity tests tokenize; holds every trap that cleaning and special tokens have."""

_CORPUS = [text.encode("utf-8", "replace").decode().lower() for text in CAPTIONS] * 3


def make_wordpiece(folder: Path) -> Path:
    """BERT's kind: [CLS] … [SEP], padding 0, lower case."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers

    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    tokenizer.train_from_iterator(_CORPUS, trainers.WordPieceTrainer(vocab_size=160, special_tokens=special))
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[(t, tokenizer.token_to_id(t)) for t in ("[CLS]", "[SEP]")]
    )
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    return _write(folder, tokenizer, tokenizer_class="PreTrainedTokenizerFast", **names)


def make_byte_bpe(folder: Path, **settings: object) -> Path:
    """RoBERTa's kind: <s> … </s>, padding 1, upper and lower case."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    special = ["<s>", "<pad>", "</s>", "<unk>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=special, initial_alphabet=alphabet)
    tokenizer.train_from_iterator(_CORPUS, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    names = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "cls_token": "<s>", "sep_token": "</s>"}
    return _write(folder, tokenizer, tokenizer_class="PreTrainedTokenizerFast", **(names | settings))


def make_nllb(folder: Path) -> Path:
    """NLLB's kind: the language, then the caption, then </s>."""
    from transformers import NllbTokenizer

    vocabulary = {token: i for i, token in enumerate(["<s>", "<pad>", "</s>", "<unk>", "▁"])}
    for character in sorted(set("".join(_CORPUS))):
        vocabulary.setdefault(character, len(vocabulary))
    merges = []
    for left, right in (("▁", "a"), ("o", "t"), ("c", "a"), ("▁", "p")):
        merges.append((left, right))
        vocabulary[left + right] = len(vocabulary)
    folder.mkdir(parents=True, exist_ok=True)
    languages = ["eng_Latn", "fra_Latn", "deu_Latn"]
    NllbTokenizer(vocab=vocabulary, merges=merges, extra_special_tokens=languages).save_pretrained(folder)
    return folder


def make_sentencepiece(path: Path, *, gemma: bool = False, vocab_size: int = 110) -> Path:
    """A sentencepiece model as SigLIP's (T5's ids), or as SigLIP 2's (with a start token and bytes)."""
    import io

    import sentencepiece

    model = io.BytesIO()
    ids = {"pad_id": 0, "eos_id": 1, "bos_id": 2, "unk_id": 3} if gemma else {"pad_id": 0, "eos_id": 1, "unk_id": 2}
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(_CORPUS),
        model_writer=model,
        vocab_size=vocab_size + (256 if gemma else 0),
        hard_vocab_limit=False,
        minloglevel=2,
        num_threads=1,
        **({"bos_id": -1} | ids),
        **({"byte_fallback": True, "add_dummy_prefix": False} if gemma else {}),
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(model.getvalue())
    return path


def make_t5(folder: Path) -> Path:
    """The folder that the hub has for a SigLIP: T5's tokenizer around the sentencepiece model, padding with the end."""
    make_sentencepiece(folder / "spiece.model")
    settings = {"tokenizer_class": "T5Tokenizer", "extra_ids": 0, "pad_token": "</s>", "eos_token": "</s>",
                "unk_token": "<unk>"}  # fmt: skip
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


def make_tiktoken(path: Path) -> Path:
    """Every byte, and a few joined ones."""
    joined = [b"ca", b"cat", b" a", b"ph", b"pho", b"photo", b" photo", b" cat"]
    tokens = [*(bytes([byte]) for byte in range(256)), *joined]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"".join(base64.b64encode(token) + b" %d\n" % rank for rank, token in enumerate(tokens)))
    return path


def _write(folder: Path, tokenizer, **settings: object) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder

"""Tokenizers: captions to token ids."""

from clip_models.tokenizers.base import Tokenizer
from clip_models.tokenizers.cleaning import clean_caption
from clip_models.tokenizers.clip_bpe import ClipTokenizer
from clip_models.tokenizers.factory import check_fit, decode, get_tokenizer, tokenize

__all__ = ["ClipTokenizer", "Tokenizer", "check_fit", "clean_caption", "decode", "get_tokenizer", "tokenize"]

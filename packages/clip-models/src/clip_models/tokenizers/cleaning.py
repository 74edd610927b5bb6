"""OpenCLIP's modes of cleaning captions."""

import html
import re
import string

import ftfy

CLEANINGS = ("lower", "whitespace", "whitespace_underscore", "canonicalize")
# Text that neither ftfy nor html.unescape changes: no entities, no control characters, only ASCII.
_CLEAN_ALREADY = re.compile(r"[\t\n\r\x20-\x25\x27-\x7e]*")
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


def clean_caption(text: str, mode: str) -> str:
    """Returns a caption with repaired encoding and HTML entities, single spaces, and the changes of `mode`.

    lower: lower case. whitespace: no more. whitespace_underscore: _ is a space. canonicalize: lower case, _ is a space,
    no punctuation (SigLIP).
    """
    return " ".join(mend(text, mode).split())


def mend(text: str, mode: str) -> str:
    """Returns the same as `clean_caption`, but for white space, for tokenizers that split at it."""
    if not _CLEAN_ALREADY.fullmatch(text):
        text = html.unescape(html.unescape(ftfy.fix_text(text)))
    if mode == "whitespace":
        return text
    if mode == "whitespace_underscore":
        return text.replace("_", " ")
    if mode == "canonicalize":
        text = text.replace("_", " ").translate(_NO_PUNCTUATION)
    return text.lower()

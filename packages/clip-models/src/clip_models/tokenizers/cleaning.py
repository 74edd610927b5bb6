"""What happens to a caption before it becomes tokens: OpenCLIP's cleaning modes."""

import html
import re
import string

import ftfy

CLEANINGS = ("lower", "whitespace", "whitespace_underscore", "canonicalize")
# Text on which neither ftfy nor html.unescape has anything to do: no entities, no control characters, only ASCII.
_CLEAN_ALREADY = re.compile(r"[\t\n\r\x20-\x25\x27-\x7e]*")
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


def clean_caption(text: str, mode: str) -> str:
    """Broken encodings and HTML entities mended, white space reduced to single spaces, and what `mode` adds:

    lower: lower case. whitespace: nothing. whitespace_underscore: _ is a space. canonicalize: lower case, _ is a
    space, no punctuation (SigLIP).
    """
    return " ".join(mend(text, mode).split())


def mend(text: str, mode: str) -> str:
    """`clean_caption` with the white space as it is, for tokenizers that split at it anyway."""
    if not _CLEAN_ALREADY.fullmatch(text):
        text = html.unescape(html.unescape(ftfy.fix_text(text)))
    if mode == "whitespace":
        return text
    if mode == "whitespace_underscore":
        return text.replace("_", " ")
    if mode == "canonicalize":
        text = text.replace("_", " ").translate(_NO_PUNCTUATION)
    return text.lower()

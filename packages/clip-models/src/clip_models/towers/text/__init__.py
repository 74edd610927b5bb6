"""Towers that take captions, and the decoder that writes them."""

"""Folders, tars, tables and lists of pictures and captions to embeddings with keys."""

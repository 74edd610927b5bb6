"""Embeds folders, tars, tables and lists of images and captions into files with keys."""

"""Towers that take images."""

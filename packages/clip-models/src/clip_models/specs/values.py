"""Configs from plain data, and checks of their fields. Errors are ClipModelsErrors that name the field."""

import functools
from collections.abc import Mapping
from typing import Any, ClassVar, Literal, Self, get_args, get_origin, get_type_hints

from clip_core import config
from clip_models.errors import ClipModelsError


class PlainData:
    """Base of the configs that are stored as JSON."""

    WHERE: ClassVar[str]
    """Name of the data in errors."""

    def to_dict(self) -> dict[str, Any]:
        """Returns plain JSON types; `from_dict` is its inverse."""
        plain: dict[str, Any] = config.to_dict(self)
        return plain

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """Builds the config from plain types. Raises ClipModelsError for unknown keys and wrong types."""
        try:
            return config.from_dict(cls, data, cls.WHERE)
        except config.ConfigError as error:
            raise ClipModelsError(str(error)) from error


def check_fields(value: Any, where: str, *positive: str) -> None:
    """Raises ClipModelsError unless each `Literal` field has one of its values and the fields `positive` are above 0.

    `where` precedes the field's name in the message, as in "vision.".
    """
    for name, choices in _choices(value.__class__).items():
        require_choice(f"{where}{name}", getattr(value, name), choices)
    for name in positive:
        found = getattr(value, name)
        if min(found if isinstance(found, tuple) else (found,)) <= 0:
            raise ClipModelsError(f"{where}{name} {found} must be positive")


@functools.cache
def _choices(cls: type) -> dict[str, tuple[Any, ...]]:
    return {name: get_args(hint) for name, hint in get_type_hints(cls).items() if get_origin(hint) is Literal}


def require_choice(where: str, value: str, choices: tuple[str, ...]) -> None:
    """Raises ClipModelsError unless `value` is one of `choices`."""
    if value not in choices:
        known = ", ".join(choice or '""' for choice in choices)
        raise ClipModelsError(f"{where} {value!r} is unknown; choose from {known}")


def require_divides(where: str, whole: int, part: int, whole_name: str, part_name: str) -> None:
    """Raises ClipModelsError unless `part` divides `whole`."""
    if whole % part:
        raise ClipModelsError(f"{where}.{whole_name} {whole} is not a multiple of {where}.{part_name} {part}")


def require_token_ids(config: Any, *names: str) -> None:
    """Raises ClipModelsError unless the named ids of a text config, where they are set, are in its vocabulary."""
    for name in names:
        token = getattr(config, name)
        if token is not None and not 0 <= token < config.vocab_size:
            raise ClipModelsError(f"text.{name} {token} is outside the vocabulary of {config.vocab_size}")

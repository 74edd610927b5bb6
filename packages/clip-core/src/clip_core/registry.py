"""Names of the implementations of one thing: a table of `module:attribute`, each imported on first use."""

from collections.abc import Callable, Iterator, Mapping
from importlib import import_module
from typing import Generic, TypeVar

from clip_core.errors import ClipError
from clip_core.suggest import did_you_mean

T = TypeVar("T")


class Registry(Generic[T]):
    """Iterating gives the names. `what`, such as "scorer", is the noun of messages.

    A user-defined implementation is registered with `add`, or is named as `package.module:name`.
    """

    def __init__(self, what: str, known: Mapping[str, str]) -> None:
        self._what = what
        self._known: dict[str, T | str] = dict(known)

    def __iter__(self) -> Iterator[str]:
        return iter(self._known)

    def add(self, name: str) -> Callable[[T], T]:
        """Returns a decorator that registers a class or a function. It raises ClipError if the name is taken."""

        def register(item: T) -> T:
            if self._known.setdefault(name, item) is not item:
                raise ClipError(f"there is a {self._what} {name!r} already: choose another name")
            return item

        return register

    def name_of(self, item: T) -> str:
        """Returns the registered name of an implementation, else `module:qualname`."""
        path = f"{item.__module__}:{item.__qualname__}"  # type: ignore[attr-defined]
        return next((name for name, known in self._known.items() if known is item or known == path), path)

    def check(self, name: str) -> None:
        """Raises ClipError, with the nearest name, unless the name is registered or has the form `module:name`."""
        if name not in self._known and not all(name.partition(":")):
            hint = did_you_mean(name, self, f"there are {', '.join(self)}", spell=repr)
            raise ClipError(f"there is no {self._what} {name!r}; {hint}")

    def get(self, name: str) -> T:
        """Returns the implementation. Raises ClipError for an unknown name and for user code that does not import."""
        self.check(name)
        target = self._known.get(name, name)
        if not isinstance(target, str):
            return target
        module, _, attribute = target.partition(":")
        try:
            item: T = getattr(import_module(module), attribute)
            return item
        except (ImportError, AttributeError) as error:
            if name in self._known:
                raise
            raise ClipError(f"{self._what} {name!r} cannot be imported: {error}; is it on PYTHONPATH?") from error

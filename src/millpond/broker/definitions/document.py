"""What may be in a document of definitions, whose values may have any type. All errors are `PreconditionFailed`."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, Final

from millpond.base.errors import PreconditionFailed
from millpond.base.limits import FIELD_VALUE_DEPTH_MAX, NAME_BYTES_MAX
from millpond.broker.arguments import COUNT_MAX


class DefinedObject:
    """One object of a document, whose fields may have any type."""

    def __init__(self, category: str, fields: dict[str, Any]) -> None:
        self.category: Final = category
        self.fields: Final = fields

    def check(self) -> None:
        """Raises where a field holds what AMQP and the catalog cannot have."""
        for value in self.fields.values():
            _check(value, 0)

    def shown(self, vhost: str | None) -> str:
        """How an error calls it."""
        fields = self.fields
        kind = {"policies": "policy"}.get(self.category, self.category.removesuffix("s").replace("_", " "))
        if "source" in fields:
            name = f"from '{fields['source']}' to {fields.get('destination_type')} '{fields.get('destination')}'"
        elif "user" in fields:
            name = f"of user '{fields['user']}'"
        else:
            name = f"'{fields.get('name')}'"
        component = f" of component '{fields['component']}'" if "component" in fields else ""
        where = vhost if vhost is not None else fields.get("vhost")
        return f"{kind} {name}{component}" + (f" in vhost '{where}'" if where is not None else "")

    def name(self) -> str:
        name = self.text("name")
        if not 0 < len(name.encode(errors="surrogatepass")) <= NAME_BYTES_MAX:
            raise PreconditionFailed(f"a name has 1 to {NAME_BYTES_MAX} bytes")
        return name

    def text(self, field: str, default: str | None = None) -> str:
        value = self.fields.get(field)
        value = default if value is None else value
        if not isinstance(value, str):
            raise PreconditionFailed(f"{field} is missing" if value is None else f"{field} is no text")
        return value

    def flag(self, field: str, default: bool = False) -> bool:
        value = self.fields.get(field)
        value = default if value is None else value
        if not isinstance(value, bool):
            raise PreconditionFailed(f"{field} is neither true nor false")
        return value

    def table(self, field: str) -> dict[str, object]:
        # Erlang has one empty thing for lists and tables, and old files have it so.
        value = self.fields.get(field) or {}
        if not isinstance(value, dict):
            raise PreconditionFailed(f"{field} is no object")
        return dict(value)


def listed(document: object, category: str) -> Iterator[DefinedObject]:
    if not isinstance(document, dict):
        raise PreconditionFailed("definitions are a JSON object")
    objects = document.get(category)
    if objects is None:
        return
    if not isinstance(objects, list):
        raise PreconditionFailed(f"{category} is not a list")
    for number, one in enumerate(objects):
        if not isinstance(one, dict):
            raise PreconditionFailed(f"{category}: entry {number} is no object")
        yield DefinedObject(category, one)


def _check(value: Any, depth: int) -> None:
    if depth > FIELD_VALUE_DEPTH_MAX:
        raise PreconditionFailed(f"values nested deeper than {FIELD_VALUE_DEPTH_MAX}")
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError:
            raise PreconditionFailed("a text is not Unicode") from None
    elif isinstance(value, int):
        if abs(value) > COUNT_MAX:
            raise PreconditionFailed(f"{value} has more than 64 bits")
    elif isinstance(value, float):
        if not math.isfinite(value):
            raise PreconditionFailed("a number is not finite")
    elif isinstance(value, dict):
        for key, item in value.items():
            _check(key, depth)
            _check(item, depth + 1)
    elif isinstance(value, list):
        for item in value:
            _check(item, depth + 1)

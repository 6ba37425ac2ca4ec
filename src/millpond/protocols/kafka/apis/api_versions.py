"""ApiVersions: which APIs are spoken here, in which versions.

Behaviour: any client asks this first. A version of it that is not known is answered in version 0 with error 35
(KIP-511). The header of the response is never flexible.
Versions: 3 says which client it is, and tells the features; 4 may say that the oldest version of a feature is 0.
Behaviour of features: all of them are finalized from the start, and never change.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final

from millpond.protocols.kafka.errors import INVALID_REQUEST
from millpond.protocols.kafka.messages import Tree
from millpond.protocols.kafka.registry import APIS, api

if TYPE_CHECKING:
    from millpond.protocols.kafka.connection import Call

# What clients look at besides versions, each with the newest version that is spoken here, which is in use. Where the
# oldest is 0, it is left out of answers that cannot say so.
FEATURES: Final[dict[str, tuple[int, int]]] = {
    # (oldest, newest). The consumer protocol of KIP-848.
    "group.version": (0, 1),
    # Share groups, KIP-932.
    "share.version": (0, 1),
    # A producer adds partitions and groups to its transaction by writing to them, and has a new epoch after each
    # (KIP-890).
    "transaction.version": (0, 2),
}

# KIP-511's rule for what a client calls itself.
_SOFTWARE: Final = re.compile(r"[a-zA-Z0-9](?:[a-zA-Z0-9\-.]*[a-zA-Z0-9])?")


@api(18, "ApiVersions", 0, 4)
def api_versions(call: Call, request: Any) -> Tree:
    name = getattr(request, "client_software_name", None)
    if name is not None:
        version = request.client_software_version
        if not _SOFTWARE.fullmatch(name) or not _SOFTWARE.fullmatch(version):
            return {"error_code": INVALID_REQUEST, "api_keys": []}
        call.connection.client_software = f"{name} {version}"[:256]
    return {"api_keys": listed(), **_features(int(call.version))}


def _features(version: int) -> dict[str, object]:
    """The features, from version 3 on."""
    if version < 3:
        return {}
    return {
        "supported_features": [
            {"name": name, "min_version": oldest, "max_version": newest}
            for name, (oldest, newest) in FEATURES.items()
            if oldest > 0 or version >= 4
        ],
        "finalized_features_epoch": 1,
        "finalized_features": [
            {"name": name, "min_version_level": newest, "max_version_level": newest}
            for name, (_, newest) in FEATURES.items()
        ],
    }


def listed() -> list[Tree]:
    """All APIs with their versions."""
    return [
        {"api_key": found.key, "min_version": found.advertised_from, "max_version": found.most}
        for found in sorted(APIS.values(), key=lambda found: found.key)
    ]

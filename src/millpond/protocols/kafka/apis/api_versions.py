"""ApiVersions: which APIs are spoken here, in which versions.

Behaviour: any client asks this first. A version of it that is not known is answered in version 0 with error 35
(KIP-511). The header of the response is never flexible.
Versions: 3 says which client it is. 4 may say that the oldest version of a feature is 0.
Behaviour of features: what a client must know of the whole cluster before it uses it. All of them are finalized from
the start, and never change. Before version 4 a feature whose oldest version is 0 is not told.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final

from millpond.protocols.kafka.errors import INVALID_REQUEST
from millpond.protocols.kafka.messages import Tree
from millpond.protocols.kafka.registry import APIS, api

if TYPE_CHECKING:
    from millpond.protocols.kafka.connection import Call

# KIP-511's rule for what a client calls itself.
_SOFTWARE: Final = re.compile(r"[a-zA-Z0-9](?:[a-zA-Z0-9\-.]*[a-zA-Z0-9])?")

# Kafka's names of features, and their versions. With transaction.version 2 a producer adds partitions and groups to its
# transaction by writing to them, and has a new epoch after each (KIP-890).
FEATURES: Final = {"transaction.version": 2}
FEATURES_EPOCH: Final = 1


@api(18, "ApiVersions", 0, 4)
def api_versions(call: Call, request: Any) -> Tree:
    name = getattr(request, "client_software_name", None)
    if name is not None:
        version = request.client_software_version
        if not _SOFTWARE.fullmatch(name) or not _SOFTWARE.fullmatch(version):
            return {"error_code": INVALID_REQUEST, "api_keys": []}
        call.connection.client_software = f"{name} {version}"[:256]
    return {
        "api_keys": listed(),
        "supported_features": [
            {"name": name, "min_version": 0, "max_version": level} for name, level in FEATURES.items()
        ]
        if call.version >= 4
        else [],
        "finalized_features_epoch": FEATURES_EPOCH,
        "finalized_features": [
            {"name": name, "min_version_level": level, "max_version_level": level} for name, level in FEATURES.items()
        ],
    }


def listed() -> list[Tree]:
    """All APIs with their versions."""
    return [
        {"api_key": found.key, "min_version": found.advertised_from, "max_version": found.most}
        for found in sorted(APIS.values(), key=lambda found: found.key)
    ]

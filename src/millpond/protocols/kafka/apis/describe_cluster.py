"""DescribeCluster: the cluster's id, and its brokers: this node.

Behaviour: as Metadata says it, without topics. The node is its own controller.
Versions: 1 may ask for the controllers instead, of which a client cannot reach any here. 2 may ask for brokers that are
fenced; there are none.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from millpond.protocols.kafka.apis.metadata import NODE_ID, node_address
from millpond.protocols.kafka.authorized_operations import operations_on_cluster
from millpond.protocols.kafka.errors import MISMATCHED_ENDPOINT_TYPE, UNSUPPORTED_ENDPOINT_TYPE
from millpond.protocols.kafka.messages import Tree
from millpond.protocols.kafka.registry import api

if TYPE_CHECKING:
    from millpond.protocols.kafka.connection import Call

BROKERS: Final = 1
CONTROLLERS: Final = 2


@api(60, "DescribeCluster", 0, 2)
def describe_cluster(call: Call, request: Any) -> Tree:
    connection = call.connection
    kind = getattr(request, "endpoint_type", BROKERS)
    if kind == CONTROLLERS:
        return _refusal(
            MISMATCHED_ENDPOINT_TYPE,
            "The request was sent to an endpoint of type BROKER, but we wanted an endpoint of type CONTROLLER",
        )
    if kind != BROKERS:
        return _refusal(UNSUPPORTED_ENDPOINT_TYPE, f"Unsupported endpoint type {kind}")
    host, port = node_address(connection)
    tree: dict[str, object] = {
        "cluster_id": connection.settings.cluster_id,
        "controller_id": NODE_ID,
        "brokers": [{"broker_id": NODE_ID, "host": host, "port": port}],
    }
    if request.include_cluster_authorized_operations:
        tree["cluster_authorized_operations"] = operations_on_cluster(connection)
    return tree


def _refusal(code: int, message: str) -> Tree:
    return {"error_code": code, "error_message": message, "controller_id": -1, "brokers": []}

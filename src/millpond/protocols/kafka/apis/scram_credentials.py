"""DescribeUserScramCredentials, AlterUserScramCredentials: how users log in by SCRAM.

Behaviour: salts, keys and passwords are never told. To give credentials to a user who is not there makes that user,
without a password and without any permission. To take credentials away leaves the user, and the password. The salted
password that a client sends is what SCRAM needs, and no password of the other protocols: those stay as they are.
Who may do this is said in `ApiTable.may_administer`.
Versions: 0.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any, Final

from millpond.base.errors import PeerError
from millpond.base.limits import SASL_TOKEN_BYTES_MAX
from millpond.broker import scram_credentials
from millpond.broker.access import Operation
from millpond.protocols.kafka.errors import (
    CLUSTER_AUTHORIZATION_FAILED,
    DUPLICATE_RESOURCE,
    RESOURCE_NOT_FOUND,
    UNACCEPTABLE_CREDENTIAL,
    UNSUPPORTED_SASL_MECHANISM,
)
from millpond.protocols.kafka.messages import Tree
from millpond.protocols.kafka.registry import answer_when_durable, api

if TYPE_CHECKING:
    from millpond.protocols.kafka.connection import Call, Connection

# Kafka's numbers.
MECHANISMS: Final = {1: scram_credentials.SHA256, 2: scram_credentials.SHA512}
_CODES: Final = {name: code for code, name in MECHANISMS.items()}

_UNAUTHORIZED: Final = "Cluster authorization failed."
_DESCRIBED_TWICE: Final = "Cannot describe SCRAM credentials for the same user twice in a single request: "
_TWICE: Final = "A user credential cannot be altered twice in the same request"


@api(50, "DescribeUserScramCredentials", 0, 0)
def describe_user_scram_credentials(call: Call, request: Any) -> Tree:
    connection = call.connection
    if not connection.apis.may_administer(connection, Operation.DESCRIBE):
        return {"error_code": CLUSTER_AUTHORIZATION_FAILED, "error_message": _UNAUTHORIZED, "results": []}
    known = connection.broker.access.list_scram_credentials()
    asked = Counter(user.name for user in request.users or ())
    results: list[Tree] = []
    for name in dict.fromkeys(asked or known):
        told: dict[str, object] = {"user": name, "error_message": None, "credential_infos": []}
        if asked[name] > 1:
            told["error_code"] = DUPLICATE_RESOURCE
            told["error_message"] = _DESCRIBED_TWICE + name
        elif name not in known:
            told["error_code"] = RESOURCE_NOT_FOUND
            told["error_message"] = f"Attempt to describe a user credential that does not exist: {name}"
        else:
            told["credential_infos"] = [
                {"mechanism": _CODES[one.mechanism], "iterations": one.iterations} for one in known[name]
            ]
        results.append(told)
    return {"error_message": None, "results": results}


@api(51, "AlterUserScramCredentials", 0, 0)
def alter_user_scram_credentials(call: Call, request: Any) -> None:
    connection = call.connection
    names = Counter(change.name for change in (*request.deletions, *request.upsertions))
    errors: dict[str, tuple[int, str | None]] = {}
    if not connection.apis.may_administer(connection, Operation.ALTER):
        errors = dict.fromkeys(names, (CLUSTER_AUTHORIZATION_FAILED, _UNAUTHORIZED))
    for name, count in names.items():
        if count > 1:
            errors.setdefault(name, (DUPLICATE_RESOURCE, _TWICE))
    for deletion in request.deletions:
        if deletion.name not in errors:
            errors[deletion.name] = _delete(connection, deletion)
    for upsertion in request.upsertions:
        if upsertion.name not in errors:
            errors[upsertion.name] = _upsert(connection, upsertion)
    results = [{"user": name, "error_code": code, "error_message": message} for name, (code, message) in errors.items()]
    answer_when_durable(call, {"results": results})


def _refusal(change: Any) -> tuple[int, str] | None:
    if not change.name:
        return UNACCEPTABLE_CREDENTIAL, "Username must not be empty"
    if change.mechanism not in MECHANISMS:
        return UNSUPPORTED_SASL_MECHANISM, "Unknown SCRAM mechanism"
    return None


def _delete(connection: Connection, deletion: Any) -> tuple[int, str | None]:
    refusal = _refusal(deletion)
    if refusal is not None:
        return refusal
    try:
        connection.broker.access.delete_scram_credential(deletion.name, MECHANISMS[deletion.mechanism])
    except PeerError:
        return RESOURCE_NOT_FOUND, "Attempt to delete a user credential that does not exist"
    return 0, None


def _upsert(connection: Connection, upsertion: Any) -> tuple[int, str | None]:
    refusal = _refusal(upsertion)
    if refusal is not None:
        return refusal
    if upsertion.iterations < scram_credentials.ITERATIONS_MIN:
        return UNACCEPTABLE_CREDENTIAL, "Too few iterations"
    if upsertion.iterations > scram_credentials.ITERATIONS_MAX:
        return UNACCEPTABLE_CREDENTIAL, "Too many iterations"
    salt, salted = bytes(upsertion.salt), bytes(upsertion.salted_password)
    if not salt or not salted or len(salt) + len(salted) > SASL_TOKEN_BYTES_MAX // 8:
        return UNACCEPTABLE_CREDENTIAL, "Salt or salted password are empty, or too large"
    mechanism = MECHANISMS[upsertion.mechanism]
    credential = scram_credentials.of_salted_password(mechanism, int(upsertion.iterations), salt, salted)
    access = connection.broker.access
    try:
        if not access.exists(upsertion.name):
            access.put_user(upsertion.name, None)
        access.set_scram_credentials(upsertion.name, [credential])
    except PeerError as error:
        return UNACCEPTABLE_CREDENTIAL, str(error)
    return 0, None

"""The SQL of the catalog for SQLite. Written by `python -m millpond.catalog.tables`: edit `tables.py`."""

# fmt: off
# ruff: noqa: E501
from __future__ import annotations

from typing import Final

# The schema's versions, oldest first: the revisions in `migrations/versions/`.
VERSIONS: Final = ("0001", "0002", "0003", "0004", "0005", "0006",)

SCHEMA: Final = (
    "CREATE TABLE bindings ( vhost TEXT NOT NULL, source TEXT NOT NULL, destination_type TEXT NOT NULL, destination TEXT NOT NULL, routing_key TEXT NOT NULL, arguments TEXT NOT NULL, PRIMARY KEY (vhost, source, destination_type, destination, routing_key, arguments) ) WITHOUT ROWID",
    "CREATE INDEX bindings_by_destination ON bindings (vhost, destination_type, destination)",
    "CREATE TABLE exchanges ( vhost TEXT NOT NULL, name TEXT NOT NULL, type TEXT NOT NULL, durable BOOLEAN NOT NULL, auto_delete BOOLEAN NOT NULL, internal BOOLEAN NOT NULL, arguments TEXT NOT NULL, PRIMARY KEY (vhost, name) ) WITHOUT ROWID",
    "CREATE TABLE parameters ( vhost TEXT NOT NULL, component TEXT NOT NULL, name TEXT NOT NULL, value TEXT NOT NULL, PRIMARY KEY (vhost, component, name) ) WITHOUT ROWID",
    "CREATE TABLE partitions ( vhost TEXT NOT NULL, topic TEXT NOT NULL, number INTEGER NOT NULL, id INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT, UNIQUE (vhost, topic, number) )",
    "CREATE TABLE permissions ( user TEXT NOT NULL, vhost TEXT NOT NULL, resource_type TEXT NOT NULL, pattern_type TEXT NOT NULL, pattern TEXT NOT NULL, operation TEXT NOT NULL, effect TEXT NOT NULL, host TEXT NOT NULL, PRIMARY KEY (user, vhost, resource_type, pattern_type, pattern, operation, effect, host) ) WITHOUT ROWID",
    "CREATE TABLE policies ( vhost TEXT NOT NULL, name TEXT NOT NULL, kind TEXT NOT NULL, pattern TEXT NOT NULL, apply_to TEXT NOT NULL, definition TEXT NOT NULL, priority INTEGER NOT NULL, PRIMARY KEY (vhost, name, kind) ) WITHOUT ROWID",
    'CREATE TABLE queues ( vhost TEXT NOT NULL, name TEXT NOT NULL, durable BOOLEAN NOT NULL, auto_delete BOOLEAN NOT NULL, "exclusive" BOOLEAN NOT NULL, arguments TEXT NOT NULL, id INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT, UNIQUE (vhost, name) )',
    "CREATE TABLE quotas ( entity TEXT NOT NULL, name TEXT NOT NULL, value TEXT NOT NULL, PRIMARY KEY (entity, name) ) WITHOUT ROWID",
    "CREATE TABLE scram_credentials ( user TEXT NOT NULL, mechanism TEXT NOT NULL, iterations INTEGER NOT NULL, salt TEXT NOT NULL, stored_key TEXT NOT NULL, server_key TEXT NOT NULL, PRIMARY KEY (user, mechanism) ) WITHOUT ROWID",
    "CREATE TABLE settings ( name TEXT NOT NULL, value TEXT NOT NULL, PRIMARY KEY (name) ) WITHOUT ROWID",
    "CREATE TABLE topic_bindings ( vhost TEXT NOT NULL, source TEXT NOT NULL, destination_type TEXT NOT NULL, destination TEXT NOT NULL, routing_key TEXT NOT NULL, arguments TEXT NOT NULL, PRIMARY KEY (vhost, source, destination_type, destination, routing_key, arguments) ) WITHOUT ROWID",
    "CREATE INDEX topic_bindings_by_destination ON topic_bindings (vhost, destination_type, destination)",
    "CREATE TABLE topic_permissions ( user TEXT NOT NULL, vhost TEXT NOT NULL, exchange TEXT NOT NULL, write TEXT NOT NULL, read TEXT NOT NULL, PRIMARY KEY (user, vhost, exchange) ) WITHOUT ROWID",
    "CREATE TABLE topics ( vhost TEXT NOT NULL, name TEXT NOT NULL, id TEXT NOT NULL, configs TEXT NOT NULL, arguments TEXT, PRIMARY KEY (vhost, name) ) WITHOUT ROWID",
    "CREATE TABLE users ( name TEXT NOT NULL, password_hash TEXT, tags TEXT NOT NULL, PRIMARY KEY (name) ) WITHOUT ROWID",
    "CREATE TABLE vhosts ( name TEXT NOT NULL, description TEXT NOT NULL, tags TEXT NOT NULL, default_queue_type TEXT NOT NULL, PRIMARY KEY (name) ) WITHOUT ROWID",
    "CREATE TABLE alembic_version ( version_num VARCHAR(32) NOT NULL, CONSTRAINT alembic_version_pkc PRIMARY KEY (version_num) )",
)

SELECT_BINDINGS: Final = "SELECT bindings.vhost, bindings.source, bindings.destination_type, bindings.destination, bindings.routing_key, bindings.arguments FROM bindings"
SELECT_EXCHANGES: Final = "SELECT exchanges.vhost, exchanges.name, exchanges.type, exchanges.durable, exchanges.auto_delete, exchanges.internal, exchanges.arguments FROM exchanges"
SELECT_PARAMETERS: Final = "SELECT parameters.vhost, parameters.component, parameters.name, parameters.value FROM parameters"
SELECT_PARTITIONS: Final = "SELECT partitions.vhost, partitions.topic, partitions.number, partitions.id FROM partitions"
SELECT_PERMISSIONS: Final = "SELECT permissions.user, permissions.vhost, permissions.resource_type, permissions.pattern_type, permissions.pattern, permissions.operation, permissions.effect, permissions.host FROM permissions"
SELECT_POLICIES: Final = "SELECT policies.vhost, policies.name, policies.kind, policies.pattern, policies.apply_to, policies.definition, policies.priority FROM policies"
SELECT_QUEUES: Final = 'SELECT queues.vhost, queues.name, queues.durable, queues.auto_delete, queues."exclusive", queues.arguments, queues.id FROM queues'
SELECT_QUOTAS: Final = "SELECT quotas.entity, quotas.name, quotas.value FROM quotas"
SELECT_SCRAM_CREDENTIALS: Final = "SELECT scram_credentials.user, scram_credentials.mechanism, scram_credentials.iterations, scram_credentials.salt, scram_credentials.stored_key, scram_credentials.server_key FROM scram_credentials"
SELECT_SETTINGS: Final = "SELECT settings.name, settings.value FROM settings"
SELECT_TOPIC_BINDINGS: Final = "SELECT topic_bindings.vhost, topic_bindings.source, topic_bindings.destination_type, topic_bindings.destination, topic_bindings.routing_key, topic_bindings.arguments FROM topic_bindings"
SELECT_TOPIC_PERMISSIONS: Final = "SELECT topic_permissions.user, topic_permissions.vhost, topic_permissions.exchange, topic_permissions.write, topic_permissions.read FROM topic_permissions"
SELECT_TOPICS: Final = "SELECT topics.vhost, topics.name, topics.id, topics.configs, topics.arguments FROM topics"
SELECT_USERS: Final = "SELECT users.name, users.password_hash, users.tags FROM users"
SELECT_VHOSTS: Final = "SELECT vhosts.name, vhosts.description, vhosts.tags, vhosts.default_queue_type FROM vhosts"
SELECT_ALEMBIC_VERSION: Final = "SELECT alembic_version.version_num FROM alembic_version"
INSERT_EXCHANGES: Final = "INSERT INTO exchanges (vhost, name, type, durable, auto_delete, internal, arguments) VALUES (?, ?, ?, ?, ?, ?, ?)"
INSERT_QUEUES: Final = 'INSERT INTO queues (vhost, name, durable, auto_delete, "exclusive", arguments, id) VALUES (?, ?, ?, ?, ?, ?, ?)'
INSERT_PARTITIONS: Final = "INSERT INTO partitions (vhost, topic, number, id) VALUES (?, ?, ?, ?)"
INSERT_ALEMBIC_VERSION: Final = "INSERT INTO alembic_version (version_num) VALUES (?)"
PUT_SETTINGS: Final = "INSERT INTO settings (name, value) VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET value = excluded.value"
PUT_VHOSTS: Final = "INSERT INTO vhosts (name, description, tags, default_queue_type) VALUES (?, ?, ?, ?) ON CONFLICT (name) DO UPDATE SET description = excluded.description, tags = excluded.tags, default_queue_type = excluded.default_queue_type"
PUT_USERS: Final = "INSERT INTO users (name, password_hash, tags) VALUES (?, ?, ?) ON CONFLICT (name) DO UPDATE SET password_hash = excluded.password_hash, tags = excluded.tags"
PUT_SCRAM_CREDENTIALS: Final = "INSERT INTO scram_credentials (user, mechanism, iterations, salt, stored_key, server_key) VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT (user, mechanism) DO UPDATE SET iterations = excluded.iterations, salt = excluded.salt, stored_key = excluded.stored_key, server_key = excluded.server_key"
PUT_TOPIC_PERMISSIONS: Final = "INSERT INTO topic_permissions (user, vhost, exchange, write, read) VALUES (?, ?, ?, ?, ?) ON CONFLICT (user, vhost, exchange) DO UPDATE SET write = excluded.write, read = excluded.read"
PUT_TOPICS: Final = "INSERT INTO topics (vhost, name, id, configs, arguments) VALUES (?, ?, ?, ?, ?) ON CONFLICT (vhost, name) DO UPDATE SET id = excluded.id, configs = excluded.configs, arguments = excluded.arguments"
PUT_POLICIES: Final = "INSERT INTO policies (vhost, name, kind, pattern, apply_to, definition, priority) VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT (vhost, name, kind) DO UPDATE SET pattern = excluded.pattern, apply_to = excluded.apply_to, definition = excluded.definition, priority = excluded.priority"
PUT_PARAMETERS: Final = "INSERT INTO parameters (vhost, component, name, value) VALUES (?, ?, ?, ?) ON CONFLICT (vhost, component, name) DO UPDATE SET value = excluded.value"
PUT_QUOTAS: Final = "INSERT INTO quotas (entity, name, value) VALUES (?, ?, ?) ON CONFLICT (entity, name) DO UPDATE SET value = excluded.value"
PUT_BINDINGS: Final = "INSERT INTO bindings (vhost, source, destination_type, destination, routing_key, arguments) VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING"
PUT_TOPIC_BINDINGS: Final = "INSERT INTO topic_bindings (vhost, source, destination_type, destination, routing_key, arguments) VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING"
PUT_PERMISSIONS: Final = "INSERT INTO permissions (user, vhost, resource_type, pattern_type, pattern, operation, effect, host) VALUES (?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING"
DELETE_BINDINGS: Final = "DELETE FROM bindings WHERE bindings.vhost = ? AND bindings.source = ? AND bindings.destination_type = ? AND bindings.destination = ? AND bindings.routing_key = ? AND bindings.arguments = ?"
DELETE_EXCHANGES: Final = "DELETE FROM exchanges WHERE exchanges.vhost = ? AND exchanges.name = ?"
DELETE_PARAMETERS: Final = "DELETE FROM parameters WHERE parameters.vhost = ? AND parameters.component = ? AND parameters.name = ?"
DELETE_PARTITIONS: Final = "DELETE FROM partitions WHERE partitions.id = ?"
DELETE_PERMISSIONS: Final = "DELETE FROM permissions WHERE permissions.user = ? AND permissions.vhost = ? AND permissions.resource_type = ? AND permissions.pattern_type = ? AND permissions.pattern = ? AND permissions.operation = ? AND permissions.effect = ? AND permissions.host = ?"
DELETE_POLICIES: Final = "DELETE FROM policies WHERE policies.vhost = ? AND policies.name = ? AND policies.kind = ?"
DELETE_QUEUES: Final = "DELETE FROM queues WHERE queues.id = ?"
DELETE_QUOTAS: Final = "DELETE FROM quotas WHERE quotas.entity = ? AND quotas.name = ?"
DELETE_SCRAM_CREDENTIALS: Final = "DELETE FROM scram_credentials WHERE scram_credentials.user = ? AND scram_credentials.mechanism = ?"
DELETE_SETTINGS: Final = "DELETE FROM settings WHERE settings.name = ?"
DELETE_TOPIC_BINDINGS: Final = "DELETE FROM topic_bindings WHERE topic_bindings.vhost = ? AND topic_bindings.source = ? AND topic_bindings.destination_type = ? AND topic_bindings.destination = ? AND topic_bindings.routing_key = ? AND topic_bindings.arguments = ?"
DELETE_TOPIC_PERMISSIONS: Final = "DELETE FROM topic_permissions WHERE topic_permissions.user = ? AND topic_permissions.vhost = ? AND topic_permissions.exchange = ?"
DELETE_TOPICS: Final = "DELETE FROM topics WHERE topics.vhost = ? AND topics.name = ?"
DELETE_USERS: Final = "DELETE FROM users WHERE users.name = ?"
DELETE_VHOSTS: Final = "DELETE FROM vhosts WHERE vhosts.name = ?"
DELETE_BINDINGS_OF_VHOST: Final = "DELETE FROM bindings WHERE bindings.vhost = ?"
DELETE_EXCHANGES_OF_VHOST: Final = "DELETE FROM exchanges WHERE exchanges.vhost = ?"
DELETE_PARAMETERS_OF_VHOST: Final = "DELETE FROM parameters WHERE parameters.vhost = ?"
DELETE_PARTITIONS_OF_VHOST: Final = "DELETE FROM partitions WHERE partitions.vhost = ?"
DELETE_PERMISSIONS_OF_VHOST: Final = "DELETE FROM permissions WHERE permissions.vhost = ?"
DELETE_POLICIES_OF_VHOST: Final = "DELETE FROM policies WHERE policies.vhost = ?"
DELETE_QUEUES_OF_VHOST: Final = "DELETE FROM queues WHERE queues.vhost = ?"
DELETE_TOPIC_BINDINGS_OF_VHOST: Final = "DELETE FROM topic_bindings WHERE topic_bindings.vhost = ?"
DELETE_TOPIC_PERMISSIONS_OF_VHOST: Final = "DELETE FROM topic_permissions WHERE topic_permissions.vhost = ?"
DELETE_TOPICS_OF_VHOST: Final = "DELETE FROM topics WHERE topics.vhost = ?"
DELETE_PERMISSIONS_OF_USER: Final = "DELETE FROM permissions WHERE permissions.user = ?"
DELETE_PERMISSIONS_OF_PATTERN_TYPE: Final = "DELETE FROM permissions WHERE permissions.user = ? AND permissions.vhost = ? AND permissions.pattern_type = ?"
DELETE_SCRAM_CREDENTIALS_OF_USER: Final = "DELETE FROM scram_credentials WHERE scram_credentials.user = ?"
DELETE_TOPIC_PERMISSIONS_OF_USER: Final = "DELETE FROM topic_permissions WHERE topic_permissions.user = ?"
DELETE_TOPIC_PERMISSIONS_OF_USER_IN_VHOST: Final = "DELETE FROM topic_permissions WHERE topic_permissions.user = ? AND topic_permissions.vhost = ?"
DELETE_BINDINGS_OF_SOURCE: Final = "DELETE FROM bindings WHERE bindings.vhost = ? AND bindings.source = ?"
DELETE_BINDINGS_OF_DESTINATION: Final = "DELETE FROM bindings WHERE bindings.vhost = ? AND bindings.destination_type = ? AND bindings.destination = ?"
DELETE_TOPIC_BINDINGS_OF_SOURCE: Final = "DELETE FROM topic_bindings WHERE topic_bindings.vhost = ? AND topic_bindings.source = ?"
DELETE_TOPIC_BINDINGS_OF_DESTINATION: Final = "DELETE FROM topic_bindings WHERE topic_bindings.vhost = ? AND topic_bindings.destination_type = ? AND topic_bindings.destination = ?"
DELETE_PARTITIONS_OF_TOPIC: Final = "DELETE FROM partitions WHERE partitions.vhost = ? AND partitions.topic = ?"
SELECT_QUEUE_NAME: Final = "SELECT queues.vhost, queues.name FROM queues WHERE queues.id = ?"
SELECT_LAST_QUEUE_ID: Final = "SELECT max(sqlite_sequence.seq) AS max_1 FROM sqlite_sequence"
SELECT_TABLE_NAMES: Final = "SELECT name FROM sqlite_master"

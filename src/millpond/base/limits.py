"""Every limit in one place, each with its reason.

What an operator may want to change is a setting in `config.py` whose default comes from here. The rest are fixed:
they keep a hostile peer or a bug from taking memory or time without bound.
"""

from __future__ import annotations

from typing import Final

KIB: Final = 1024
MIB: Final = 1024 * KIB
GIB: Final = 1024 * MIB

# --- Wire, AMQP ----------------------------------------------------------------------------------------------------

# RabbitMQ's default: large enough that a typical message is one frame, small enough that frames of channels interleave.
FRAME_BYTES_MAX: Final = 128 * KIB
# AMQP 0-9-1, 4.2.3: no peer may ask for less.
FRAME_BYTES_MIN: Final = 4096
# RabbitMQ's default. A channel costs about 1 KiB here.
CHANNELS_PER_CONNECTION_MAX: Final = 2047
# RabbitMQ 4's default for max_message_size.
MESSAGE_BYTES_MAX: Final = 16 * MIB
# An unauthenticated peer has this long to finish the handshake (RabbitMQ's handshake_timeout).
HANDSHAKE_TIMEOUT_MS: Final = 10_000
# RabbitMQ's default heartbeat. A peer that is silent for two of them is gone.
HEARTBEAT_S: Final = 60
# A connection stops taking deliveries when this much output waits to be written: what is delivered beyond the
# socket's capacity would only move the backlog from the disk into memory.
OUTPUT_BYTES_MAX: Final = 1 * MIB
# The longest name of a queue, exchange, routing key: AMQP's shortstr.
NAME_BYTES_MAX: Final = 255
# RabbitMQ's: what a client may put before the name that the broker makes for its queue.
NAME_PREFIX_BYTES_MAX: Final = 64
# Routes remembered per connection; above it the cache is dropped, so that random routing keys cannot fill memory.
ROUTES_CACHED_MAX: Final = 4096
# What a connection's frames may cost in one turn before others are served, in steps of about 0.1 us: a few
# milliseconds. A step is a node or rule that routing looks at, or a queue that a message goes to; a method takes many.
STEPS_PER_TURN_MAX: Final = 25_600
STEPS_OF_A_METHOD: Final = 100
# Fewer queues of one message are not counted: they are what a publish costs anyway.
QUEUES_COUNTED_MIN: Final = 8
# Exclusive queues that go with their connection in one turn: a few milliseconds.
EXCLUSIVE_QUEUES_REMOVED_PER_TURN: Final = 256
# Exchanges that one publish may pass through when exchanges are bound to exchanges.
EXCHANGE_HOPS_MAX: Final = 256
# RabbitMQ's: the largest weight of a binding to a consistent-hash exchange.
BINDING_WEIGHT_MAX: Final = 10_000
# RabbitMQ's: ten years. A longer expiration of a message or queue is an error of the client's arithmetic.
EXPIRATION_MS_MAX: Final = 315_360_000_000

# --- Wire, Kafka ---------------------------------------------------------------------------------------------------

# Kafka's socket.request.max.bytes.
KAFKA_REQUEST_BYTES_MAX: Final = 100 * MIB
# A request that does not produce. The largest are those that give a large group its assignments.
KAFKA_OTHER_REQUEST_BYTES_MAX: Final = 8 * MIB
# Partitions that one request may name. Each takes some hundred bytes while the request is handled, more than the few
# that name it; a node has no more partitions than this.
KAFKA_PARTITIONS_PER_REQUEST_MAX: Final = 100_000
# Partitions of the fetch sessions of all clients, about 400 bytes each, whether or not they are there. Whoever finds no
# room fetches without a session.
KAFKA_FETCH_SESSION_PARTITIONS_MAX: Final = 200_000
# Items of all arrays of one request, but for those that produce or fetch: each takes a microsecond or more, and some
# hundred bytes for the moment. The offsets of a whole group are half as many.
KAFKA_REQUEST_ITEMS_MAX: Final = 200_000
# A batch is one frame of the journal, beside what precedes it there.
KAFKA_BATCH_BYTES_MAX: Final = 60 * MIB
# What one fetch is given at the most, whatever it asks for: a client that does not read its answers holds so much.
KAFKA_FETCH_BYTES_MAX: Final = 16 * MIB
# The same while memory is short.
KAFKA_FETCH_BYTES_WHEN_SHORT: Final = MIB
# What must come from the disk first may take so much longer than a fetch is willing to wait.
KAFKA_FETCH_LOAD_MS: Final = 5_000
# Answers that wait to be sent and are larger together keep their connection's next requests from being looked at.
KAFKA_ANSWERS_BYTES_MAX: Final = MIB
# A request that arrives in smaller pieces is put together as it comes.
KAFKA_PIECE_BYTES: Final = 16 * KIB
# A fetch waits no longer than this for records.
KAFKA_FETCH_WAIT_MS_MAX: Final = 300_000
# Requests of one connection that are under way. Clients have some five, producers of many partitions a few dozens.
KAFKA_CALLS_PENDING_MAX: Final = 256
# Requests of one connection that are handled in one turn before others are served, other than produce requests. Most
# take some 0.1 ms.
KAFKA_REQUESTS_PER_TURN: Final = 32
# Items of one request that are handled in one turn: a few milliseconds. An answer with more of them is encoded on a
# thread.
KAFKA_ITEMS_PER_TURN: Final = 2_000
# Encoded answers about so many partitions or more are kept, and so many of them: some 100 bytes for each partition.
METADATA_CACHED_PARTITIONS_MIN: Final = 50
METADATA_ANSWERS_CACHED_MAX: Final = 16
# Kafka's connections.max.idle.ms.
KAFKA_IDLE_MS: Final = 600_000
# A request that has begun to arrive must go on arriving.
KAFKA_REQUEST_TIMEOUT_MS: Final = 60_000
KAFKA_IDLE_CHECK_MS: Final = 30_000
# What is still to be sent when a connection is closed has so long.
KAFKA_CLOSE_TIMEOUT_MS: Final = 5_000
# Of a client that has not logged in where it must: Kafka's sasl.server.max.receive.size is 512 KiB, for tickets of
# Kerberos, which are not spoken here.
KAFKA_LOGIN_REQUEST_BYTES_MAX: Final = 64 * KIB
# What one step of a login may be: a password, a name, and what is around them.
SASL_TOKEN_BYTES_MAX: Final = 16 * KIB
# A login that fails is answered so much later, Kafka's connection.failed.authentication.delay.ms.
KAFKA_LOGIN_FAILED_DELAY_MS: Final = 100
# Kafka's max.request.partition.size.limit: so many partitions one answer to DescribeTopicPartitions tells.
KAFKA_PARTITIONS_DESCRIBED_MAX: Final = 2_000
# Producer ids that the catalog hands out at once: after a restart those that are left of them are not used.
KAFKA_PRODUCER_IDS: Final = 1_000

# --- Queues --------------------------------------------------------------------------------------------------------

# Messages and bytes in a page, the unit in which a backlog is written to disk and read back: large enough
# that disks stream, small enough that one page of each of many queues fits into memory.
PAGE_MESSAGES_MAX: Final = 2048
PAGE_BYTES_MAX: Final = 512 * KIB
# Pages of a queue that are read ahead of its consumers.
PAGES_AHEAD: Final = 4
# Messages delivered from one queue before the other queues get their turn.
DELIVERIES_PER_TURN_MAX: Final = 4096
# The highest priority of a message, and that which a quorum queue tells apart, as in RabbitMQ.
PRIORITY_MAX: Final = 255
QUORUM_PRIORITY_MAX: Final = 31
# How often a message may come back to a quorum queue that says nothing else before it is dead; RabbitMQ's.
QUORUM_DELIVERY_LIMIT: Final = 20
# A dead message that no dead-letter queue takes is offered again so often.
DEAD_LETTER_RETRY_MS: Final = 1_000
# So many that are refused again end an attempt. They keep their place before the others, which may go another way.
DEAD_LETTERS_REFUSED_MAX: Final = 32
# The longest delay of a message that is published to a delayed exchange, as in RabbitMQ's plugin: 49 days. One with a
# longer delay is not delayed.
DELAY_MS_MAX: Final = 4_294_967_295
# A page of messages that wait for their time is brought back from disk so long before the first of them is due.
DELAY_READ_AHEAD_MS: Final = 2_000
# The clock may be set while messages wait for their time: it is looked at this often at least.
DELAY_CHECK_MS: Final = 60_000
# Messages of one backlog that are due and wait to be taken; the rest stay where they are. Each of them may keep a page
# of its own in memory, so where that is short they are few.
DELAYED_READY_MAX: Final = 1024
DELAYED_READY_WHEN_SHORT_MAX: Final = 64
# Pages that messages are taken from as they become due, also where memory is short: those of several publishers.
DELAYED_PAGES_AWAKE_MIN: Final = 8
# Pages of one backlog that are being read back because their messages are due.
DELAYED_PAGES_LOADING_MAX: Final = 4
# So many pages that have come back from disk more than once are sorted together by when their messages are due.
DELAYED_PAGES_SORTED: Final = 4
# What the log of a delayed backlog may hold in vain beside as much as it holds for good, because something at its
# beginning still waits: two segments. It is looked at this often.
DELAYED_LOG_WASTE_BYTES: Final = 128 * MIB
DELAYED_LOG_CHECK_MS: Final = 10_000
# How long a consumer may leave a delivery unsettled before its channel is closed and all it has goes back; RabbitMQ's.
CONSUMER_TIMEOUT_MS: Final = 1_800_000
# Dead letters that an operator's order moves back in one turn, and how many it may leave aside because they cannot be.
REDRIVEN_PER_TURN_MAX: Final = 500
REDRIVE_KEPT_MAX: Final = 10_000
# Dead-letter hops recorded in x-death; beyond it the oldest is forgotten.
DEATHS_RECORDED_MAX: Final = 64

# --- Streams ---------------------------------------------------------------------------------------------------------

# A segment of a stream's log, which retention deletes as a whole, unless the stream says otherwise; and RabbitMQ's
# limit for that.
STREAM_SEGMENT_BYTES: Final = 64 * MIB
STREAM_SEGMENT_BYTES_MAX: Final = 3_000_000_000
# Tiny segments would be as many files.
STREAM_SEGMENT_BYTES_MIN: Final = 4 * KIB
# Messages of a turn share a record batch up to this many, and this size: a consumer that reads it holds all of it.
STREAM_BATCH_MESSAGES_MAX: Final = 4096
STREAM_BATCH_BYTES: Final = 256 * KIB
# What a stream has in memory goes to its log when it is as much as this: it all goes there some time, and a larger
# write would not be cheaper.
STREAM_UNWRITTEN_BYTES: Final = 1 * MIB
# What one write of a stream takes along.
STREAM_WRITE_BYTES_MAX: Final = 8 * MIB
# What is in the log is kept in memory up to this, for consumers that are a little behind.
STREAM_TAIL_BYTES: Final = 2 * MIB
# What a consumer that is further behind reads at once, and what is kept of it for those who come the same way.
STREAM_READ_BYTES: Final = 512 * KIB
STREAM_CACHE_BYTES: Final = 16 * MIB
# Reads of all streams that the reading thread has been given.
STREAM_READS_MAX: Final = 8
# What is routed to the queues that are bound to topics, of all topics together, before others get their turn: a few
# milliseconds of work.
ROUTED_RECORDS_PER_TURN_MAX: Final = 1024
ROUTED_BYTES_PER_TURN_MAX: Final = 1 * MIB
# How often a queue is asked again that has refused a topic's record, in ms.
ROUTING_RETRY_MS: Final = 50
# Messages delivered to one consumer of a stream before the others get their turn.
STREAM_DELIVERIES_PER_TURN_MAX: Final = 1024
# Messages that are looked at for it, of which its filter may let none pass, and batches.
STREAM_RECORDS_PER_TURN_MAX: Final = 8192
STREAM_BATCHES_PER_TURN_MAX: Final = 1024
# Bytes of batches that a filter passes over in a turn, and how many values it may name for that: with more, all
# messages are looked at.
STREAM_SKIPPED_BYTES_PER_TURN_MAX: Final = 4 * MIB
STREAM_FILTER_SEARCHES_MAX: Final = 16
# Of each idempotent producer a partition remembers so many batches, as Kafka's broker does: its clients have up to five
# requests under way.
PRODUCER_BATCHES_REMEMBERED: Final = 5
# Kafka's producer.id.expiration.ms: one that has been idle for so long is forgotten.
PRODUCER_IDLE_MS: Final = 86_400_000
# Beyond it the one that has been idle for longest is forgotten: anybody may ask for ids. About 400 bytes each.
PRODUCERS_PER_PARTITION_MAX: Final = 10_000
# Kafka's default for max.message.bytes: a batch of a MiB, and what precedes it in its log.
TOPIC_MESSAGE_BYTES: Final = MIB + 12
# Topics that one Metadata request makes because they are asked for; a client asks again for those that it has not got.
TOPICS_MADE_PER_REQUEST_MAX: Final = 500
# Partitions that one CreateTopics request makes. Others wait meanwhile: a tenth of a second.
PARTITIONS_MADE_PER_REQUEST_MAX: Final = 10_000
# A topic with more makes requests and answers that are too large for most clients; queues_max bounds them all together.
PARTITIONS_PER_TOPIC_MAX: Final = 10_000
# How often retention and compaction are looked after where nothing is published.
STREAM_CHECK_INTERVAL_MS: Final = 10_000
# Streams that are looked at for that in one go: milliseconds. Where there are more, each is looked at less often.
STREAM_RETENTION_CHECKS_MAX: Final = 512
# The most that the records of one compressed batch may be when decompressed: four of the largest messages. A few bytes
# can be made to become any amount.
RECORDS_DECOMPRESSED_BYTES_MAX: Final = 64 * MIB
# Where that happens while the other connections wait: some 30 ms.
RECORDS_DECOMPRESSED_AT_ONCE_MAX: Final = 32 * MIB
# Headers of a Kafka record that AMQP is shown. They cost far more as objects than as bytes.
RECORD_HEADERS_SHOWN_MAX: Final = 1024
# A message that states a time further ahead than this becomes a record with the broker's, as Kafka's default of
# message.timestamp.after.max.ms has it: it would be found as the newest for as long, and kept as long.
RECORD_TIMESTAMP_AHEAD_MS_MAX: Final = 3_600_000
# What one step of a search for a time reads before others get the reading thread.
STREAM_SEARCH_BYTES: Final = 8 * MIB
# How long a stream is left alone after compaction has failed.
COMPACTION_RETRY_MS: Final = 60_000
# Keys that compaction remembers in one pass over a log, as slots of 24 bytes of which three quarters are used: 48 MiB
# for 1.5 million. A log with more of them takes several passes.
COMPACTION_KEY_SLOTS_MAX: Final = 1 << 21
# What compaction reads and writes at once. It gives way to the broker after each of them, which takes milliseconds.
COMPACTION_STEP_BYTES: Final = 256 * KIB
COMPACTION_PAUSE_MS: Final = 1

# --- Consumer groups -------------------------------------------------------------------------------------------------

# Apache Kafka's bounds for how long a member may be silent: less would be many heartbeats, more a member that is dead
# for half an hour before anybody takes over.
GROUP_SESSION_TIMEOUT_MIN_MS: Final = 6_000
GROUP_SESSION_TIMEOUT_MAX_MS: Final = 1_800_000
# How long the first rebalance of an empty group waits for more members, as in Apache Kafka: clients start together.
GROUP_INITIAL_REBALANCE_DELAY_MS: Final = 3_000
# Members of a group. Each rebalance tells the leader of all of them.
GROUP_MEMBERS_MAX: Final = 5_000
# Clients that have been given a member's id and have not come back with it; they go after their session's timeout.
GROUP_PENDING_MEMBERS_MAX: Final = 5_000
# A client that has joined for the first time, and may be gone, is waited for so long; Apache Kafka's.
GROUP_NEW_MEMBER_TIMEOUT_MS: Final = 300_000
# While all that are left of a group are static members, and away, it is looked for them no more often than this,
# however short their rebalance timeout is.
GROUP_AWAY_CHECK_MS: Final = 1_000
# What a member says of itself, and what all members of a group say and are assigned together: the leader gets it in
# one answer, and the journal in one record.
GROUP_MEMBER_BYTES_MAX: Final = 1 * MIB
GROUP_BYTES_MAX: Final = 16 * MIB
# The same of all groups: it is all in memory, and in every checkpoint.
GROUPS_BYTES_MAX: Final = 256 * MIB
# A group's name, in bytes: it is in each of its records.
GROUP_NAME_BYTES_MAX: Final = 1024
# What of a client's own name goes into its member's id.
GROUP_CLIENT_ID_CHARACTERS_MAX: Final = 255
# How long a member may be silent, and how often it is told to be heard of, in groups whose assignment the broker
# decides; as in Apache Kafka.
GROUP_CONSUMER_SESSION_TIMEOUT_MS: Final = 45_000
GROUP_CONSUMER_HEARTBEAT_INTERVAL_MS: Final = 5_000
GROUP_SHARE_SESSION_TIMEOUT_MS: Final = 45_000
GROUP_SHARE_HEARTBEAT_INTERVAL_MS: Final = 5_000
# Members of a share group, as in Apache Kafka: each holds records of its own, and all compete for the same.
GROUP_SHARE_MEMBERS_MAX: Final = 200
# A regular expression that a member subscribes by. It is compiled, and matched with the name of every topic, in time
# that grows with its length.
GROUP_PATTERN_CHARACTERS_MAX: Final = 1024
# What a compiled regular expression may take. Counted repetitions make a short one large: it is refused then.
GROUP_PATTERN_MEMORY_BYTES_MAX: Final = 1 * MIB
# Groups of all virtual hosts. An empty one takes about 2 KiB, and goes some time after its last offset.
GROUPS_MAX: Final = 100_000
# Offsets of a group, and of all groups: about 250 bytes each, and a checkpoint writes them all.
OFFSETS_PER_GROUP_MAX: Final = 100_000
OFFSETS_MAX: Final = 2_000_000
# Apache Kafka's limit for what a client writes beside an offset.
OFFSET_METADATA_CHARACTERS_MAX: Final = 4096
# Transactional ids of all virtual hosts. One takes about 1 KiB, and is forgotten some time after its last use.
TRANSACTIONAL_IDS_MAX: Final = 100_000
TRANSACTIONAL_ID_BYTES_MAX: Final = 255
# Partitions, and groups, of one transaction: its end writes a marker of 78 bytes to each, in one turn.
TRANSACTION_PARTITIONS_MAX: Final = 10_000
# Kafka's transaction.max.timeout.ms and transactional.id.expiration.ms, which are settings, and how often is looked for
# ids to forget.
TRANSACTION_MAX_TIMEOUT_MS: Final = 900_000
TRANSACTIONAL_ID_EXPIRY_MS: Final = 604_800_000
TRANSACTIONAL_ID_EXPIRY_CHECK_MS: Final = 3_600_000
# What clients have written beside all offsets, which is in memory.
OFFSETS_METADATA_CHARACTERS_MAX: Final = 64 * MIB
# How long offsets outlive the last member, in minutes, as in Apache Kafka: seven days. It is looked at this often, at
# so many offsets and groups at a time.
OFFSETS_RETENTION_MINUTES: Final = 10_080
OFFSETS_EXPIRY_CHECK_MS: Final = 600_000
OFFSETS_EXPIRY_AT_ONCE: Final = 10_000

# --- Storage -------------------------------------------------------------------------------------------------------

# A journal file's size. A checkpoint follows when one is full, so this also bounds replay at start.
JOURNAL_FILE_BYTES: Final = 128 * MIB
# What may wait for the disk before publishers are held back.
JOURNAL_PENDING_BYTES_MAX: Final = 64 * MIB
# What is as large as this is written to journal and logs where it lies; what is smaller is copied, to be written
# together.
WRITE_BYTES_APART: Final = 64 * KIB
# The longest frame that recovery will believe. A batch is at most a page or one message.
JOURNAL_FRAME_BYTES_MAX: Final = 64 * MIB
# Unconfirmed publishes and acks are synced at the latest after this long.
JOURNAL_SYNC_INTERVAL_MS: Final = 200
# A full disk is tried again this often: soon enough that publishers resume at once, seldom enough to cost nothing.
JOURNAL_RETRY_MS: Final = 250
# Files that all logs together keep open: far below the usual limit of 1024 descriptors, which connections need too.
FILES_OPEN_MAX: Final = 256
# A segment of a queue's log is deleted as a whole when all in it is acknowledged: smaller frees earlier.
SEGMENT_BYTES: Final = 64 * MIB
# A segment is complete because of its age alone only when nothing has come for so long: what comes may be old.
SEGMENT_QUIET_MS: Final = 60_000
# One index entry per this many bytes of a segment, as Kafka's index.interval.bytes.
INDEX_INTERVAL_BYTES: Final = 4 * KIB
# At a checkpoint, a queue with less than this in the journal is copied forward instead of getting a file of its
# own: a hundred files would mean a hundred fsyncs.
CARRY_FORWARD_BYTES: Final = 64 * KIB
# Defaults of the settings memory_budget and disk_free_min.
MEMORY_BUDGET_BYTES: Final = 512 * MIB
DISK_FREE_BYTES_MIN: Final = 256 * MIB
# Consecutive messages share a record batch up to this size.
LEDGER_BATCH_BYTES: Final = 1 * MIB
# A turn's journal frame is cut beyond this, so that what recovery believes of a frame's length can be bounded.
LEDGER_FRAME_BYTES: Final = 16 * MIB
# What a transaction may hold, as it is recovered whole and so must be one frame.
TRANSACTION_BYTES_MAX: Final = 32 * MIB
# Pages of all queues that are being written at once: bounds the memory of encoded pages on their way to the disk.
PAGES_WRITING_MAX: Final = 32

# --- Catalog and access --------------------------------------------------------------------------------------------

# Tables and arrays inside each other in the arguments of a queue, exchange or binding. Nobody nests this deep by hand,
# and it keeps the recursive codecs far from Python's recursion limit.
FIELD_VALUE_DEPTH_MAX: Final = 32
# The write-ahead log of the catalog is copied into its database when it has grown to this size, SQLite's own default:
# after some 300 turns that changed something.
CATALOG_WAL_BYTES: Final = 4 * MIB
# SQLite's shared memory, its WAL and a few pages: with less than this, an error of SQLite's is for want of room.
CATALOG_ROOM_BYTES: Final = 256 * KIB
# RabbitMQ's limit for the patterns of permissions.
PATTERN_CHARACTERS_MAX: Final = 1024
# In how many ways Python may try to match such a pattern with a name; with more, RE2 matches it. A few milliseconds.
PATTERN_WAYS_MAX: Final = 1 << 16
# The same of a pattern that RE2 does not know. It is refused beyond it.
PATTERN_WAYS_WITHOUT_RE2_MAX: Final = 1 << 24
# What RE2 may take for one of them, and of how many steps it may be: where memory is short, each character of a name
# may take each step.
PATTERN_MEMORY_BYTES_MAX: Final = 1 * MIB
PATTERN_STEPS_MAX: Final = 400
# Policies of one kind in a virtual host. Each is matched against every queue and exchange when one of them changes.
POLICIES_PER_VHOST_MAX: Final = 1_000
# Runtime parameters of the node, global ones included. Values are as large as a request, so it bounds their memory.
PARAMETERS_MAX: Final = 4_096
# RabbitMQ's limit.
TAGS_PER_USER_MAX: Final = 32
# More than any password; it keeps the hash's input small.
PASSWORD_BYTES_MAX: Final = 4096
# Logins that are hashed at the same time: each takes 19 MiB and a core, so a flood of wrong passwords must queue.
PASSWORD_HASHES_AT_ONCE_MAX: Final = 4
# Who fails to log in more often than this is delayed. Many clients may share an address; and people mistype passwords.
LOGIN_FAILURES_FREE_PER_USER: Final = 5
LOGIN_FAILURES_FREE_PER_ADDRESS: Final = 25
# The first delay, which doubles with each further failure, and the longest: a login waits for so long at most before it
# is looked at, and once more before it is refused, which together is less than a client has for its handshake.
LOGIN_DELAY_MS: Final = 100
LOGIN_DELAY_MS_MAX: Final = 4_000
# After so long without a failure those before are forgotten.
LOGIN_FAILURES_FORGOTTEN_MS: Final = 60_000
# Addresses, users, and pairs of both whose failures are remembered. About 200 bytes each.
LOGIN_FAILURES_REMEMBERED_MAX: Final = 10_000
# Successful logins remembered, so that a storm of reconnects is not a storm of hashes. About 150 bytes each.
LOGINS_CACHED_MAX: Final = 4096
# Kafka's ACLs of all virtual hosts. Each is looked at when a decision is made that is not remembered.
ACCESS_RULES_MAX: Final = 10_000
# What Kafka's quotas are of: users, clients, pairs of them.
QUOTA_ENTITIES_MAX: Final = 10_000
# Users and clients whose use of quotas is measured; above it all are measured anew. Some 500 bytes each.
QUOTA_CLIENTS_MAX: Final = 20_000
# Nobody waits longer than this for a quota: what was used is forgotten after eleven seconds.
QUOTA_WAIT_MS_MAX: Final = 60_000
# Decisions on permissions remembered over all users; above it they are forgotten together. About 300 bytes each.
ACCESS_DECISIONS_CACHED_MAX: Final = 16_384

# --- Defaults of settings that bound the node -----------------------------------------------------------------------

# A connection takes a file descriptor and some 20 KiB; the process's own descriptor limit may bound it sooner.
CONNECTIONS_MAX: Final = 50_000
# A queue takes a few KiB when empty. It keeps a client that leaks server-named queues from taking the node down.
QUEUES_MAX: Final = 100_000
# Connections that wait to be accepted: as many as may come at once after a restart. The kernel lowers it to its own.
LISTEN_BACKLOG: Final = 4096
# Consumers of one channel; a queue's rotation walks over all of its consumers.
CONSUMERS_PER_CHANNEL_MAX: Final = 10_000
# --- Logs -------------------------------------------------------------------------------------------------------------

# Lines of one kind in so many seconds; what is more is counted only. A hundred refused peers are as good as all.
LOG_LINES_OF_A_KIND_MAX: Final = 100
LOG_INTERVAL_S: Final = 10.0
# Kinds that are counted. There are fewer texts in the source; with more of them counting begins anew.
LOG_KINDS_MAX: Final = 1_000

# --- Management API ---------------------------------------------------------------------------------------------------

# The largest request, but for those below, is a queue with its arguments, or a permission with three patterns.
ADMIN_REQUEST_BYTES_MAX: Final = 64 * KIB
# Definitions are one document: RabbitMQ's limit, some 100,000 queues. One is read at a time.
DEFINITIONS_BYTES_MAX: Final = 20 * MIB
# RabbitMQ's limit for all requests: one that publishes has a whole message in it. Few of those are read at once, since
# what is being read is outside the memory budget.
ADMIN_LARGE_REQUEST_BYTES_MAX: Final = 10_000_000
ADMIN_LARGE_REQUESTS_MAX: Final = 4
# What one request gets from a queue at the most: it is all in memory at once, on top of the budget.
ADMIN_GET_MESSAGES_MAX: Final = 10_000
ADMIN_GET_BYTES_MAX: Final = 16 * MIB
# Who publishes by a request is told after this long that the disk has not taken the message yet.
ADMIN_CONFIRM_TIMEOUT_MS: Final = 5_000
# Requests under way; above it the answer is 503. Operators and monitoring are few.
ADMIN_REQUESTS_MAX: Final = 64
# Of which so many may wait because of logins that have failed. Others are refused at once then, unseen.
ADMIN_LOGINS_HELD_MAX: Final = 16
# Logins that wait for a password hash share this many threads, so that a flood of them leaves the broker its cores.
ADMIN_LOGIN_THREADS: Final = 2
# RabbitMQ's limit for a page of a list.
ADMIN_PAGE_ITEMS_MAX: Final = 500
# Columns that a list is asked for: more than there are. Each is looked for in each item, while the broker waits.
ADMIN_COLUMNS_MAX: Final = 100
# A checkpoint that failed is tried again after this long.
CHECKPOINT_RETRY_MS: Final = 5_000
# A read as long as this may have left more in the socket, which waits for the event loop's next round.
READ_BYTES_LARGE: Final = 128 * KIB
# A socket that is not read from fast enough stops its consumers at `high`, and lets them go on at `low`.
SOCKET_BUFFER_BYTES_HIGH: Final = 512 * KIB
SOCKET_BUFFER_BYTES_LOW: Final = 128 * KIB
# At shutdown, clients have this long to say goodbye, and so has the last checkpoint.
CLOSE_GRACE_MS: Final = 1_500
# Runs of queues at the end of one turn: dead-lettering may go on and on, but others want their turn.
QUEUE_RUNS_PER_TURN_MAX: Final = 20_000
# When messages take more memory than the budget, a consumer that has this many unsettled gets no more of them.
UNSETTLED_WHEN_SHORT_MAX: Final = 1_000
# Pages that are encoded at the end of one turn, to free their memory: each is a millisecond, in which nobody is served.
PAGES_WRITTEN_PER_TURN: Final = 8
# And ahead of a checkpoint, which has half a journal file's time for it.
CHECKPOINT_PAGES_PER_TURN: Final = 2
# Queues that are looked at for that at the end of one turn: about a millisecond.
QUEUES_PAGED_PER_TURN: Final = 256
# A page that is being filled is written early, where memory is very short, if it takes as much as this: less is not
# worth a write of its own.
TAIL_PAGED_BYTES_MIN: Final = 16 * KIB
# When logs hold this much that is settled, a checkpoint lets it go: acknowledgements alone fill a journal file slowly.
CHECKPOINT_SETTLED_BYTES: Final = 256 * MIB
# Incomplete bodies and open transactions of all channels of a connection, which are outside the memory budget. Those of
# all connections may be as much as the budget, or as much as this where that is more.
BUFFERED_BYTES_MAX: Final = 128 * MIB
# A queue's log is synced whenever so much has been written: all of it at a checkpoint would hold up the journal,
# whose sync waits for the same disk. Measured beside it: with 8 MiB one sync of the journal in a hundred took over
# 4 ms, with 1 MiB under 1 ms.
LOG_UNSYNCED_BYTES_MAX: Final = MIB
# A larger file is removed in steps of this, and so many of them wait for it; further ones go at once.
REMOVED_AT_ONCE_BYTES: Final = 4 * MIB
REMOVED_FILES_MAX: Final = 64
# Memory that pages give back at the end of one turn: giving up a message takes a tenth of a microsecond.
PAGED_BYTES_PER_TURN: Final = 8 * MIB
# What is settled in logs goes from the disk at the latest after this long.
CHECKPOINT_SETTLED_MS: Final = 10_000
# Ranges of offsets that a share group keeps of one partition: acknowledgements far from each other take one each. With
# so many, nothing new is handed out before something at the beginning is settled. A range takes about 100 bytes.
SHARE_RANGES_MAX: Final = 10_000
# Kafka's defaults for share groups: how long a record stays in a consumer's hands, how often it is delivered, and how
# many records of a partition are in consumers' hands at once.
SHARE_LOCK_DURATION_MS: Final = 30_000
SHARE_DELIVERIES_MAX: Final = 5
SHARE_RECORD_LOCKS_MAX: Final = 2_000
# Between these a group chooses how long, unless the operator says otherwise; as in Apache Kafka.
SHARE_LOCK_DURATION_MIN_MS: Final = 15_000
SHARE_LOCK_DURATION_MAX_MS: Final = 60_000
# The same of a queue over a topic, whose consumers say themselves how much they want: a bound for those who do not.
SHARE_QUEUE_LOCKS_MAX: Final = 100_000
# Locks that end at about the same time are looked at together: nobody notices when one ends so much later.
SHARE_LOCK_CHECK_MS: Final = 20
# Sessions of share consumers, as in Kafka: each remembers the partitions that it wants.
SHARE_SESSIONS_MAX: Final = 2_000
# Of those of a connection that is lost, so many end in one turn.
SHARE_SESSIONS_ENDED_PER_TURN: Final = 64
# Partitions that all sessions of share consumers in a virtual host want together. Each takes some 250 bytes, whether or
# not there is such a partition.
SHARE_SESSION_PARTITIONS_MAX: Final = 200_000
# Share groups that have a configuration of their own. It is kept in memory and in each checkpoint.
SHARE_CONFIGURED_GROUPS_MAX: Final = 10_000
# Delivery states, of all groups and partitions: an idle one takes about 1.5 KiB.
SHARE_PARTITIONS_MAX: Final = 200_000

/*
 * amqp_load: an AMQP 0-9-1 load generator that costs the machine less than the broker it measures.
 *
 *   gcc -O2 -o amqp_load bench/amqp_load.c
 *   ./amqp_load --port 5672 --messages 1000000                               transient, publish + deliver + ack
 *   ./amqp_load --port 5672 --seconds 5 --durable --persistent --confirms    confirmed, 1,000 outstanding
 *   ./amqp_load --port 5672 --seconds 5 --queues 1000 --durable --persistent --confirms
 *   ./amqp_load --port 5672 --seconds 5 --batch 1 --ack-every 1              one message and one ack per send()
 *   ./amqp_load --port 5672 --seconds 5 --rate 5000 --batch 1 --ack-every 1  latency at a steady pace
 *   ./amqp_load --port 5672 --messages 1000000 --consumers 0 --keep          leave a backlog ...
 *   ./amqp_load --port 5672 --messages 1000000 --publishers 0 --no-purge     ... and drain it
 *
 * It prints one line of JSON. Exit status: 0 all was well; 1 the connection failed or the broker closed it (its own
 * words are printed); 2 wrong usage; 3 the broker lost, repeated, reordered or refused a message, or stood still.
 *
 * How it works. One thread and one epoll loop, one connection per publisher and per consumer, plus one that declares
 * and deletes the queues. Publishes are copied from a prepared frame per queue, patched, and sent many per system
 * call; deliveries are parsed where they were received. `--help` lists the options. "load_busy" in the result is the
 * share of one core that this program used: a figure near 1 says that it, and not the broker, was the limit.
 *
 * What is checked. Every body carries its publisher and its place in that publisher's order for the queue. A queue
 * with one consumer must see each publisher's messages without a gap; one with several must never see them go back.
 * At the end as many must have come as were sent, and the queues must be empty when they are deleted.
 *
 * The body:
 *
 *     0        8            12         16          24        size
 *     | stamp  | publisher  | reserved | sequence  | filling |      (host byte order; shorter bodies: the stamp only)
 *
 * The stamp is CLOCK_MONOTONIC in ns, taken just before the send that carries the message. With --rate it is the time
 * at which the message was due: a broker that makes the publisher wait is charged for the wait.
 */

#define _GNU_SOURCE
#include <arpa/inet.h>
#include <endian.h>
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <inttypes.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

enum exit_status { EXIT_BROKER = 1, EXIT_USAGE = 2, EXIT_WRONG = 3 };

#define READ_BYTES (256 * 1024)      /* one receive; large enough that a busy socket rarely needs two */
#define BATCH_BYTES_MAX (256 * 1024) /* one send; more would only wait in the kernel */
#define FRAME_BYTES_MAX 131072       /* what is offered in connection.tune-ok; RabbitMQ's own default */
#define CONNECTIONS_MAX 4096
#define QUEUES_MAX 100000
#define BODY_BYTES_MAX (64 * 1024 * 1024)
#define SENDS_PER_TURN 32 /* a chatty publisher's sends before the loop looks at what has arrived */

/* Class and method in one word, as they stand on the wire. */
#define METHOD(class_id, method_id) (((uint32_t)(class_id) << 16) | (method_id))
enum {
    CONNECTION_START = METHOD(10, 10),
    CONNECTION_START_OK = METHOD(10, 11),
    CONNECTION_TUNE = METHOD(10, 30),
    CONNECTION_TUNE_OK = METHOD(10, 31),
    CONNECTION_OPEN = METHOD(10, 40),
    CONNECTION_OPEN_OK = METHOD(10, 41),
    CONNECTION_CLOSE = METHOD(10, 50),
    CONNECTION_CLOSE_OK = METHOD(10, 51),
    CONNECTION_BLOCKED = METHOD(10, 60),
    CONNECTION_UNBLOCKED = METHOD(10, 61),
    CHANNEL_OPEN = METHOD(20, 10),
    CHANNEL_OPEN_OK = METHOD(20, 11),
    CHANNEL_CLOSE = METHOD(20, 40),
    EXCHANGE_DECLARE = METHOD(40, 10),
    EXCHANGE_DECLARE_OK = METHOD(40, 11),
    EXCHANGE_DELETE = METHOD(40, 20),
    EXCHANGE_DELETE_OK = METHOD(40, 21),
    QUEUE_DECLARE = METHOD(50, 10),
    QUEUE_DECLARE_OK = METHOD(50, 11),
    QUEUE_BIND = METHOD(50, 20),
    QUEUE_BIND_OK = METHOD(50, 21),
    QUEUE_DELETE = METHOD(50, 40),
    QUEUE_DELETE_OK = METHOD(50, 41),
    BASIC_QOS = METHOD(60, 10),
    BASIC_QOS_OK = METHOD(60, 11),
    BASIC_CONSUME = METHOD(60, 20),
    BASIC_CONSUME_OK = METHOD(60, 21),
    BASIC_CANCEL = METHOD(60, 30),
    BASIC_PUBLISH = METHOD(60, 40),
    BASIC_DELIVER = METHOD(60, 60),
    BASIC_ACK = METHOD(60, 80),
    BASIC_NACK = METHOD(60, 120),
    CONFIRM_SELECT = METHOD(85, 10),
    CONFIRM_SELECT_OK = METHOD(85, 11),
};

enum { FRAME_METHOD = 1, FRAME_HEADER = 2, FRAME_BODY = 3, FRAME_HEARTBEAT = 8, FRAME_END = 0xCE };
enum { FRAME_OVERHEAD = 8, STAMP_BYTES = 8, LABEL_BYTES = 24 };

/* ---- Options ------------------------------------------------------------------------------------------------ */

static struct {
    const char *host, *port, *user, *password, *prefix, *exchange_type;
    uint64_t publishers, consumers, queues;
    uint64_t messages, body_bytes, body_bytes_min, batch, outstanding, in_flight, prefetch, ack_every;
    double seconds, rate, timeout_seconds;
    bool durable, persistent, confirms, auto_ack, keep, no_purge, step;
} options = {
    .host = "127.0.0.1", .port = "5672", .user = "guest", .password = "guest", .prefix = "bench",
    .exchange_type = "default", .publishers = 1, .consumers = 1, .queues = 1, .body_bytes = 100, .batch = 256,
    .outstanding = 1000, .in_flight = UINT64_MAX, .prefetch = 1000, .ack_every = 100, .timeout_seconds = 30,
};

static const char usage_text[] =
    "usage: amqp_load [option ...]   (one of --messages and --seconds is required)\n"
    "  --host H --port P          where the broker listens                           (127.0.0.1, 5672)\n"
    "  --user U --password P      SASL PLAIN                                         (guest, guest)\n"
    "  --messages N               publish N messages in all; drain a backlog of N with --publishers 0\n"
    "  --seconds S                publish for S seconds, then wait for what is under way\n"
    "  --publishers P             connections that publish                           (1)\n"
    "  --consumers C              connections that consume; 0 leaves a backlog       (1)\n"
    "  --queues Q                 publishers go over the queues in turn              (1)\n"
    "  --prefix NAME              queues are NAME.00000 and so on                    (bench)\n"
    "  --durable                  durable queues                                     (transient)\n"
    "  --exchange TYPE            default, direct, topic, or fanout to all queues    (default)\n"
    "  --size B                   bytes per body, 8 or more                          (100)\n"
    "  --size-min B               any size from here to --size, in one frame          (all of one size)\n"
    "  --persistent               delivery mode 2\n"
    "  --confirms                 publisher confirms\n"
    "  --outstanding W            most unconfirmed messages per publisher            (1000)\n"
    "  --in-flight W              most messages published but not yet delivered, 0 = no bound\n"
    "                             (10000 per publisher without --confirms or --rate, otherwise 0)\n"
    "  --prefetch N               basic.qos per consumer, 0 = no bound               (1000)\n"
    "  --ack-every K              acknowledge every K deliveries with multiple=true  (100)\n"
    "  --auto-ack                 consume with no-ack\n"
    "  --rate R                   publish R messages/s in all, evenly spaced         (as fast as possible)\n"
    "  --batch B                  most messages, or acks, per send()                 (256)\n"
    "  --timeout S                give up when nothing has moved for S seconds       (30)\n"
    "  --keep, --no-purge         leave the queues at the end; use what they hold at the start\n"
    "  --step                     print \"ready\", then \"drained\", each time waiting for a line on stdin\n";

/* ---- Failing ------------------------------------------------------------------------------------------------ */

static void __attribute__((noreturn, format(printf, 2, 3))) fail(enum exit_status status, const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    fputs("amqp_load: ", stderr);
    vfprintf(stderr, format, arguments);
    fputc('\n', stderr);
    va_end(arguments);
    exit(status);
}

static void *allocate(size_t count, size_t size) {
    void *memory = calloc(count ? count : 1, size);
    if (!memory)
        fail(EXIT_BROKER, "no memory for %zu x %zu bytes", count, size);
    return memory;
}

static uint64_t clock_ns(clockid_t clock) {
    struct timespec now;
    clock_gettime(clock, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

/* ---- Histogram: 64 buckets per power of two, so that no percentile is off by more than 1.6 % ------------------ */

enum { SUB_BITS = 6, SUB_BUCKETS = 1 << SUB_BITS, BUCKETS = (64 - SUB_BITS + 1) << SUB_BITS };

struct histogram {
    uint64_t buckets[BUCKETS];
    uint64_t count, largest;
};

static struct histogram end_to_end, confirm;

static inline void histogram_add(struct histogram *histogram, uint64_t value) {
    uint64_t index = value;
    if (value >= SUB_BUCKETS) {
        int shift = 63 - __builtin_clzll(value) - SUB_BITS;
        index = ((uint64_t)(shift + 1) << SUB_BITS) + ((value >> shift) & (SUB_BUCKETS - 1));
    }
    histogram->buckets[index]++;
    histogram->count++;
    if (value > histogram->largest)
        histogram->largest = value;
}

/* The middle of the bucket in which the given share of all values has been reached. */
static double histogram_percentile(const struct histogram *histogram, double share) {
    uint64_t wanted = (uint64_t)(share * (double)histogram->count + 0.5), seen = 0;
    if (wanted < 1)
        wanted = 1;
    for (uint64_t index = 0; index < BUCKETS; index++) {
        seen += histogram->buckets[index];
        if (seen < wanted || histogram->count == 0)
            continue;
        if (index < SUB_BUCKETS)
            return (double)index;
        int shift = (int)(index >> SUB_BITS) - 1;
        double low = (double)((SUB_BUCKETS + (index & (SUB_BUCKETS - 1))) << shift);
        double middle = low + (double)((uint64_t)1 << shift) / 2;
        return middle < (double)histogram->largest ? middle : (double)histogram->largest;
    }
    return 0;
}

static void histogram_print(const char *name, const struct histogram *histogram) {
    printf(", \"%s\": {\"count\": %" PRIu64, name, histogram->count);
    printf(", \"p50\": %.1f, \"p90\": %.1f", histogram_percentile(histogram, 0.5) / 1e3,
           histogram_percentile(histogram, 0.9) / 1e3);
    printf(", \"p99\": %.1f, \"p999\": %.1f", histogram_percentile(histogram, 0.99) / 1e3,
           histogram_percentile(histogram, 0.999) / 1e3);
    printf(", \"max\": %.1f}", (double)histogram->largest / 1e3);
}

/* ---- State -------------------------------------------------------------------------------------------------- */

enum content { NO_CONTENT, AWAITING_HEADER, AWAITING_BODY };

struct connection {
    int fd;
    uint32_t index; /* among its own kind: the third publisher is 2 */
    const char *kind;
    bool wants_write; /* a send was cut short: epoll tells when there is room again */
    bool closing;     /* connection.close was sent: the socket may end once it is answered */
    uint8_t *in, *out;
    size_t in_bytes, out_start, out_end, out_capacity;
    uint32_t frame_bytes_max;
    uint32_t awaited; /* the method that wait_for() waits for ... */
    uint64_t replies; /* ... and how many of them have come */

    /* A publisher. Delivery tags are 1, 2, ...; sent_at holds the stamp of each, and 0 once it is confirmed. */
    uint64_t published, unconfirmed, lowest_unconfirmed, ring_mask, next_queue;
    uint64_t *sent_at, *next_sequence; /* a ring over delivery tags; one per queue */

    /* A consumer. */
    enum content content;
    uint64_t body_left, unacked, last_tag;
    uint32_t subscription;
    bool at_body_start;
};

/* One consumer of one queue. The consumer tag is the subscription's index. */
struct subscription {
    bool alone; /* nobody else consumes this queue: not one message may be missing */
    uint64_t *next_sequence; /* one per publisher */
};

static struct connection control, *publishers, *consumers;
static struct subscription *subscriptions;
static uint64_t copies = 1; /* deliveries owed per publish: the number of queues for a fanout */
static uint64_t published, confirmed, delivered, redelivered, left_over, sends, receives, blocked, turn_of;
static uint64_t started_ns, deadline_ns, moved_ns;
static uint8_t *templates; /* one prepared publish per queue, all of the same length */
static size_t template_bytes, template_size_offset, template_body_offset;
static int epoll_fd, timer_fd = -1;
static volatile sig_atomic_t interrupted;

static void on_signal(int number) {
    (void)number;
    interrupted = 1;
}

/* ---- Writing methods ---------------------------------------------------------------------------------------- */

static uint8_t *reserve(struct connection *connection, size_t bytes) {
    if (connection->out_start == connection->out_end)
        connection->out_start = connection->out_end = 0;
    if (connection->out_end + bytes > connection->out_capacity) {
        connection->out_capacity = (connection->out_end + bytes) * 2;
        connection->out = realloc(connection->out, connection->out_capacity);
        if (!connection->out)
            fail(EXIT_BROKER, "no memory for %zu bytes of output", connection->out_capacity);
    }
    return connection->out + connection->out_end;
}

static inline void store16(uint8_t *at, uint16_t value) { value = htobe16(value), memcpy(at, &value, 2); }
static inline void store32(uint8_t *at, uint32_t value) { value = htobe32(value), memcpy(at, &value, 4); }
static inline void store64(uint8_t *at, uint64_t value) { value = htobe64(value), memcpy(at, &value, 8); }
static inline uint16_t load16(const uint8_t *at) { uint16_t value; memcpy(&value, at, 2); return be16toh(value); }
static inline uint32_t load32(const uint8_t *at) { uint32_t value; memcpy(&value, at, 4); return be32toh(value); }
static inline uint64_t load64(const uint8_t *at) { uint64_t value; memcpy(&value, at, 8); return be64toh(value); }

/* A method being written. Everything this program declares fits; a name that does not is a fault in usage. */
struct writer {
    uint8_t bytes[2048];
    size_t size;
};

static uint8_t *take(struct writer *writer, size_t bytes) {
    if (writer->size + bytes > sizeof writer->bytes)
        fail(EXIT_USAGE, "a name or password is too long");
    writer->size += bytes;
    return writer->bytes + writer->size - bytes;
}

static void put8(struct writer *writer, uint8_t value) { *take(writer, 1) = value; }
static void put16(struct writer *writer, uint16_t value) { store16(take(writer, 2), value); }
static void put32(struct writer *writer, uint32_t value) { store32(take(writer, 4), value); }
static void put64(struct writer *writer, uint64_t value) { store64(take(writer, 8), value); }

static void put_short_string(struct writer *writer, const char *text) {
    size_t bytes = strlen(text);
    if (bytes > 255)
        fail(EXIT_USAGE, "a name may have 255 bytes: %.40s...", text);
    put8(writer, (uint8_t)bytes);
    memcpy(take(writer, bytes), text, bytes);
}

static void begin(struct writer *writer, uint16_t channel, uint32_t method) {
    writer->size = 0;
    put8(writer, FRAME_METHOD), put16(writer, channel), put32(writer, 0), put32(writer, method);
}

static void finish(struct writer *writer) {
    store32(writer->bytes + 3, (uint32_t)(writer->size - 7));
    put8(writer, FRAME_END);
}

static void queue_up(struct connection *connection, const struct writer *writer) {
    memcpy(reserve(connection, writer->size), writer->bytes, writer->size);
    connection->out_end += writer->size;
}

/* ---- Sending ------------------------------------------------------------------------------------------------ */

static void watch(struct connection *connection, int operation) {
    uint32_t events = EPOLLIN | (connection->wants_write ? EPOLLOUT : 0u);
    struct epoll_event event = {.events = events, .data.ptr = connection};
    if (epoll_ctl(epoll_fd, operation, connection->fd, &event) < 0)
        fail(EXIT_BROKER, "epoll_ctl: %s", strerror(errno));
}

/* Send `bytes` of what is queued up, as far as the socket takes it. Returns whether all of the output is gone. */
static bool send_some(struct connection *connection, size_t bytes) {
    ssize_t sent = send(connection->fd, connection->out + connection->out_start, bytes, MSG_NOSIGNAL);
    sends++;
    if (sent < 0 && errno != EAGAIN && errno != EINTR) {
        /* The broker may have said why before it hung up: leave the reason to the reader of the socket. */
        if (errno != EPIPE && errno != ECONNRESET)
            fail(EXIT_BROKER, "%s %" PRIu32 ": send: %s", connection->kind, connection->index, strerror(errno));
        connection->out_start = connection->out_end;
        return true;
    }
    if (sent > 0)
        connection->out_start += (size_t)sent;
    bool done = connection->out_start == connection->out_end;
    if (connection->wants_write == done) {
        connection->wants_write = !done;
        watch(connection, EPOLL_CTL_MOD);
    }
    return done;
}

static bool flush(struct connection *connection) {
    size_t pending = connection->out_end - connection->out_start;
    return pending == 0 || send_some(connection, pending);
}

/* ---- Receiving ---------------------------------------------------------------------------------------------- */

static void wrong_frame(const struct connection *connection, const char *what) {
    fail(EXIT_BROKER, "%s %" PRIu32 ": %s", connection->kind, connection->index, what);
}

static void confirm_one(struct connection *connection, uint64_t tag, uint64_t now_ns) {
    uint64_t *sent_at = &connection->sent_at[tag & connection->ring_mask];
    if (*sent_at == 0)
        return;
    histogram_add(&confirm, now_ns > *sent_at ? now_ns - *sent_at : 0);
    *sent_at = 0;
    connection->unconfirmed--;
    confirmed++;
}

static void on_confirm(struct connection *connection, const uint8_t *payload, size_t size, uint64_t now_ns) {
    if (size < 13 || !connection->sent_at)
        wrong_frame(connection, "basic.ack that is too short, or that nobody asked for");
    uint64_t tag = load64(payload + 4), before = confirmed;
    bool multiple = payload[12] & 1;
    if (multiple && tag == 0)
        tag = connection->published;
    if (tag > connection->published)
        fail(EXIT_WRONG, "publisher %" PRIu32 ": confirm of message %" PRIu64 ", but only %" PRIu64 " were sent",
             connection->index, tag, connection->published);
    if (multiple)
        for (uint64_t each = connection->lowest_unconfirmed; each <= tag; each++)
            confirm_one(connection, each, now_ns);
    else if (tag >= connection->lowest_unconfirmed)
        confirm_one(connection, tag, now_ns);
    if (confirmed == before)
        fail(EXIT_WRONG, "publisher %" PRIu32 ": message %" PRIu64 " was confirmed twice", connection->index, tag);
    while (connection->lowest_unconfirmed <= connection->published &&
           connection->sent_at[connection->lowest_unconfirmed & connection->ring_mask] == 0)
        connection->lowest_unconfirmed++;
    moved_ns = now_ns;
}

static void on_deliver(struct connection *connection, const uint8_t *payload, size_t size) {
    size_t tag_bytes = size > 4 ? payload[4] : 0;
    if (size < 5 + tag_bytes + 9 || tag_bytes == 0)
        wrong_frame(connection, "basic.deliver is too short");
    uint64_t subscription = 0;
    for (size_t i = 0; i < tag_bytes; i++)
        subscription = subscription * 10 + (uint64_t)(payload[5 + i] - '0');
    if (subscription >= options.queues + options.consumers)
        wrong_frame(connection, "basic.deliver with a consumer tag that is not ours");
    const uint8_t *after = payload + 5 + tag_bytes;
    uint64_t tag = load64(after);
    if (tag != connection->last_tag + 1)
        fail(EXIT_WRONG, "consumer %" PRIu32 ": delivery tag %" PRIu64 " after %" PRIu64, connection->index, tag,
             connection->last_tag);
    connection->last_tag = tag;
    connection->subscription = (uint32_t)subscription;
    redelivered += after[8] & 1;
    connection->content = AWAITING_HEADER;
}

static inline void on_label(struct connection *connection, const uint8_t *body, uint64_t now_ns) {
    uint64_t stamp_ns;
    memcpy(&stamp_ns, body, sizeof stamp_ns);
    histogram_add(&end_to_end, now_ns > stamp_ns ? now_ns - stamp_ns : 0);
    if (options.body_bytes_min < LABEL_BYTES || options.publishers == 0)
        return;
    uint32_t publisher;
    uint64_t sequence;
    memcpy(&publisher, body + 8, sizeof publisher);
    memcpy(&sequence, body + 16, sizeof sequence);
    if (publisher >= options.publishers)
        fail(EXIT_WRONG, "consumer %" PRIu32 ": a body that was not published by this run", connection->index);
    struct subscription *subscription = &subscriptions[connection->subscription];
    uint64_t *next = &subscription->next_sequence[publisher];
    if (sequence < *next || (sequence > *next && subscription->alone))
        fail(EXIT_WRONG, "subscription %" PRIu32 ": message %" PRIu64 " of publisher %" PRIu32 " came, expected %" PRIu64,
             connection->subscription, sequence, publisher, *next);
    *next = sequence + 1;
}

static void send_ack(struct connection *connection) {
    uint8_t *at = reserve(connection, 21);
    at[0] = FRAME_METHOD;
    store16(at + 1, 1), store32(at + 3, 13), store32(at + 7, BASIC_ACK), store64(at + 11, connection->last_tag);
    at[19] = connection->unacked > 1;
    at[20] = FRAME_END;
    connection->out_end += 21;
    connection->unacked = 0;
    if (connection->out_end - connection->out_start >= options.batch * 21)
        flush(connection);
}

static void on_delivered(struct connection *connection, uint64_t now_ns) {
    connection->content = NO_CONTENT;
    delivered++;
    moved_ns = now_ns;
    if (!options.auto_ack && ++connection->unacked >= options.ack_every)
        send_ack(connection);
}

static void on_header(struct connection *connection, const uint8_t *payload, size_t size) {
    if (connection->content != AWAITING_HEADER || size < 14)
        wrong_frame(connection, "an unexpected content header");
    connection->body_left = load64(payload + 4);
    if (connection->body_left > options.body_bytes || connection->body_left < options.body_bytes_min)
        fail(EXIT_WRONG, "a body of %" PRIu64 " bytes came, %" PRIu64 " were sent", connection->body_left,
             options.body_bytes);
    connection->content = AWAITING_BODY;
    connection->at_body_start = true;
}

static void on_body(struct connection *connection, const uint8_t *payload, size_t size, uint64_t now_ns) {
    if (connection->content != AWAITING_BODY || size > connection->body_left)
        wrong_frame(connection, "an unexpected content body");
    if (connection->at_body_start) {
        if (size < LABEL_BYTES && size < options.body_bytes)
            wrong_frame(connection, "a body in needlessly small frames");
        on_label(connection, payload, now_ns);
        connection->at_body_start = false;
    }
    connection->body_left -= size;
    if (connection->body_left == 0)
        on_delivered(connection, now_ns);
}

/* The broker's own words: connection.close and channel.close carry a reply code and a text. */
static void on_close(const struct connection *connection, const char *what, const uint8_t *payload, size_t size) {
    if (size < 7 || size < 7u + payload[6])
        wrong_frame(connection, "a close that is too short");
    fail(EXIT_BROKER, "the broker closed the %s of %s %" PRIu32 ": %u %.*s", what, connection->kind,
         connection->index, load16(payload + 4), payload[6], (const char *)payload + 7);
}

static void on_method(struct connection *connection, const uint8_t *payload, size_t size, uint64_t now_ns) {
    if (size < 4)
        wrong_frame(connection, "a method frame without a method");
    uint32_t method = load32(payload);
    switch (method) {
    case BASIC_DELIVER:
        on_deliver(connection, payload, size);
        return;
    case BASIC_ACK:
        on_confirm(connection, payload, size, now_ns);
        return;
    case BASIC_NACK:
        fail(EXIT_WRONG, "publisher %" PRIu32 ": the broker refused a message (basic.nack)", connection->index);
    case BASIC_CANCEL:
        fail(EXIT_WRONG, "consumer %" PRIu32 ": the broker cancelled the consumer", connection->index);
    case CONNECTION_CLOSE:
        on_close(connection, "connection", payload, size);
        return;
    case CHANNEL_CLOSE:
        on_close(connection, "channel", payload, size);
        return;
    case CONNECTION_BLOCKED:
        blocked++;
        return;
    case CONNECTION_UNBLOCKED:
        return;
    case CONNECTION_TUNE:
        if (size < 12)
            wrong_frame(connection, "connection.tune is too short");
        connection->frame_bytes_max = load32(payload + 6);
        if (connection->frame_bytes_max == 0 || connection->frame_bytes_max > FRAME_BYTES_MAX)
            connection->frame_bytes_max = FRAME_BYTES_MAX;
        break;
    case QUEUE_DELETE_OK:
        if (size < 8)
            wrong_frame(connection, "queue.delete-ok is too short");
        left_over += load32(payload + 4);
        break;
    }
    if (method != connection->awaited)
        fail(EXIT_BROKER, "%s %" PRIu32 ": unexpected method %u.%u", connection->kind, connection->index,
             method >> 16, method & 0xFFFF);
    connection->replies++;
}

/* Handle every whole frame in the input. Returns the bytes used. */
static size_t parse(struct connection *connection, uint64_t now_ns) {
    const uint8_t *at = connection->in, *end = at + connection->in_bytes;
    while (end - at >= FRAME_OVERHEAD) {
        uint32_t size = load32(at + 3);
        if (size > FRAME_BYTES_MAX)
            wrong_frame(connection, "what came is not a frame (is this an AMQP 0-9-1 port?)");
        if ((size_t)(end - at) < size + (size_t)FRAME_OVERHEAD)
            break;
        if (at[7 + size] != FRAME_END)
            wrong_frame(connection, "a frame does not end in 0xCE");
        if (at[0] == FRAME_METHOD)
            on_method(connection, at + 7, size, now_ns);
        else if (at[0] == FRAME_HEADER)
            on_header(connection, at + 7, size);
        else if (at[0] == FRAME_BODY)
            on_body(connection, at + 7, size, now_ns);
        else if (at[0] != FRAME_HEARTBEAT)
            wrong_frame(connection, "a frame of unknown type");
        at += size + FRAME_OVERHEAD;
    }
    return (size_t)(at - connection->in);
}

static void receive(struct connection *connection) {
    ssize_t got = recv(connection->fd, connection->in + connection->in_bytes, READ_BYTES, 0);
    receives++;
    if (got < 0 && (errno == EAGAIN || errno == EINTR))
        return;
    if (got < 0)
        fail(EXIT_BROKER, "%s %" PRIu32 ": recv: %s", connection->kind, connection->index, strerror(errno));
    if (got == 0 && connection->closing && connection->replies)
        return;
    if (got == 0)
        fail(EXIT_BROKER, "%s %" PRIu32 ": the broker hung up without a word", connection->kind, connection->index);
    connection->in_bytes += (size_t)got;
    size_t used = parse(connection, clock_ns(CLOCK_MONOTONIC));
    connection->in_bytes -= used;
    memmove(connection->in, connection->in + used, connection->in_bytes);
    flush(connection);
}

/* ---- Connections -------------------------------------------------------------------------------------------- */

/* Send what is queued up and wait until `method` has come `count` times. Only for setting up and tearing down. */
static void wait_for(struct connection *connection, uint32_t method, uint64_t count) {
    connection->awaited = method;
    connection->replies = 0;
    uint64_t give_up_ns = clock_ns(CLOCK_MONOTONIC) + (uint64_t)(options.timeout_seconds * 1e9);
    while (connection->replies < count) {
        bool flushed = flush(connection);
        struct pollfd waiting = {.fd = connection->fd, .events = (short)(POLLIN | (flushed ? 0 : POLLOUT))};
        uint64_t replies_before = connection->replies, now_ns = clock_ns(CLOCK_MONOTONIC);
        if (now_ns > give_up_ns)
            fail(EXIT_WRONG, "%s %" PRIu32 ": no answer (%u.%u) within %.0f s", connection->kind, connection->index,
                 method >> 16, method & 0xFFFF, options.timeout_seconds);
        if (poll(&waiting, 1, 100) > 0 && (waiting.revents & (POLLIN | POLLHUP | POLLERR)))
            receive(connection);
        if (connection->replies > replies_before)
            give_up_ns = now_ns + (uint64_t)(options.timeout_seconds * 1e9);
    }
    connection->awaited = 0;
}

static int connect_socket(void) {
    struct addrinfo hints = {.ai_socktype = SOCK_STREAM}, *found, *each;
    int trouble = getaddrinfo(options.host, options.port, &hints, &found), fd = -1;
    if (trouble)
        fail(EXIT_BROKER, "%s:%s: %s", options.host, options.port, gai_strerror(trouble));
    for (each = found; each; each = each->ai_next) {
        fd = socket(each->ai_family, each->ai_socktype | SOCK_CLOEXEC, each->ai_protocol);
        if (fd >= 0 && connect(fd, each->ai_addr, each->ai_addrlen) == 0)
            break;
        trouble = errno;
        if (fd >= 0)
            close(fd);
        fd = -1;
    }
    freeaddrinfo(found);
    if (fd < 0)
        fail(EXIT_BROKER, "cannot connect to %s:%s: %s", options.host, options.port, strerror(trouble));
    int one = 1;
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_NONBLOCK);
    return fd;
}

static void put_client_properties(struct writer *writer) {
    static const char *const capabilities[] = {"connection.blocked", "consumer_cancel_notify", "publisher_confirms",
                                               "authentication_failure_close"};
    size_t table_at = writer->size;
    put32(writer, 0);
    put_short_string(writer, "product"), put8(writer, 'S'), put32(writer, 9), memcpy(take(writer, 9), "amqp_load", 9);
    put_short_string(writer, "capabilities"), put8(writer, 'F');
    size_t inner_at = writer->size;
    put32(writer, 0);
    for (size_t i = 0; i < sizeof capabilities / sizeof *capabilities; i++)
        put_short_string(writer, capabilities[i]), put8(writer, 't'), put8(writer, 1);
    store32(writer->bytes + inner_at, (uint32_t)(writer->size - inner_at - 4));
    store32(writer->bytes + table_at, (uint32_t)(writer->size - table_at - 4));
}

static void open_connection(struct connection *connection, const char *kind, uint32_t index) {
    connection->kind = kind;
    connection->index = index;
    connection->fd = connect_socket();
    connection->in = allocate(1, READ_BYTES + FRAME_BYTES_MAX + FRAME_OVERHEAD);
    connection->lowest_unconfirmed = 1;
    watch(connection, EPOLL_CTL_ADD);

    struct writer writer = {.size = 0};
    memcpy(take(&writer, 8), (const uint8_t[]){'A', 'M', 'Q', 'P', 0, 0, 9, 1}, 8);
    queue_up(connection, &writer);
    wait_for(connection, CONNECTION_START, 1);

    begin(&writer, 0, CONNECTION_START_OK);
    put_client_properties(&writer);
    put_short_string(&writer, "PLAIN");
    size_t user_bytes = strlen(options.user), password_bytes = strlen(options.password);
    put32(&writer, (uint32_t)(user_bytes + password_bytes + 2));
    put8(&writer, 0), memcpy(take(&writer, user_bytes), options.user, user_bytes);
    put8(&writer, 0), memcpy(take(&writer, password_bytes), options.password, password_bytes);
    put_short_string(&writer, "en_US");
    finish(&writer), queue_up(connection, &writer);
    wait_for(connection, CONNECTION_TUNE, 1);

    /* No heartbeat: a run is short, and has its own timeout. */
    begin(&writer, 0, CONNECTION_TUNE_OK);
    put16(&writer, 1), put32(&writer, connection->frame_bytes_max), put16(&writer, 0);
    finish(&writer), queue_up(connection, &writer);
    begin(&writer, 0, CONNECTION_OPEN);
    put_short_string(&writer, "/"), put_short_string(&writer, ""), put8(&writer, 0);
    finish(&writer), queue_up(connection, &writer);
    wait_for(connection, CONNECTION_OPEN_OK, 1);

    begin(&writer, 1, CHANNEL_OPEN);
    put_short_string(&writer, "");
    finish(&writer), queue_up(connection, &writer);
    wait_for(connection, CHANNEL_OPEN_OK, 1);
}

static void close_connection(struct connection *connection) {
    struct writer writer;
    connection->closing = true;
    begin(&writer, 0, CONNECTION_CLOSE);
    put16(&writer, 200), put_short_string(&writer, "done"), put32(&writer, 0);
    finish(&writer), queue_up(connection, &writer);
    wait_for(connection, CONNECTION_CLOSE_OK, 1);
    close(connection->fd);
}

/* ---- Queues ------------------------------------------------------------------------------------------------- */

static bool has_exchange(void) { return strcmp(options.exchange_type, "default") != 0; }
static bool is_fanout(void) { return strcmp(options.exchange_type, "fanout") == 0; }

/* All names have the same length, so that all prepared publishes have. */
static const char *queue_name(uint64_t queue) {
    static char name[256];
    snprintf(name, sizeof name, "%s.%05" PRIu64, options.prefix, queue);
    return name;
}

static const char *exchange_name(void) {
    static char name[256];
    if (!has_exchange())
        return "";
    snprintf(name, sizeof name, "%s.exchange", options.prefix);
    return name;
}

static void declare_queue(struct connection *connection, uint64_t queue, bool passive) {
    struct writer writer;
    begin(&writer, 1, QUEUE_DECLARE);
    put16(&writer, 0), put_short_string(&writer, queue_name(queue));
    put8(&writer, (uint8_t)((passive ? 1 : 0) | (options.durable ? 2 : 0))), put32(&writer, 0);
    finish(&writer), queue_up(connection, &writer);
}

/* Delete every queue. The requests go out together: a thousand round trips would take longer than the run. */
static void delete_queues(void) {
    struct writer writer;
    for (uint64_t queue = 0; queue < options.queues; queue++) {
        begin(&writer, 1, QUEUE_DELETE);
        put16(&writer, 0), put_short_string(&writer, queue_name(queue)), put8(&writer, 0);
        finish(&writer), queue_up(&control, &writer);
    }
    wait_for(&control, QUEUE_DELETE_OK, options.queues);
    if (!has_exchange())
        return;
    begin(&writer, 1, EXCHANGE_DELETE);
    put16(&writer, 0), put_short_string(&writer, exchange_name()), put8(&writer, 0);
    finish(&writer), queue_up(&control, &writer);
    wait_for(&control, EXCHANGE_DELETE_OK, 1);
}

static void declare_queues(void) {
    struct writer writer;
    if (!options.no_purge)
        delete_queues();
    left_over = 0;
    for (uint64_t queue = 0; queue < options.queues; queue++)
        declare_queue(&control, queue, false);
    wait_for(&control, QUEUE_DECLARE_OK, options.queues);
    if (!has_exchange())
        return;
    begin(&writer, 1, EXCHANGE_DECLARE);
    put16(&writer, 0), put_short_string(&writer, exchange_name()), put_short_string(&writer, options.exchange_type);
    put8(&writer, options.durable ? 2 : 0), put32(&writer, 0);
    finish(&writer), queue_up(&control, &writer);
    wait_for(&control, EXCHANGE_DECLARE_OK, 1);
    for (uint64_t queue = 0; queue < options.queues; queue++) {
        begin(&writer, 1, QUEUE_BIND);
        put16(&writer, 0), put_short_string(&writer, queue_name(queue)), put_short_string(&writer, exchange_name());
        put_short_string(&writer, queue_name(queue)), put8(&writer, 0), put32(&writer, 0);
        finish(&writer), queue_up(&control, &writer);
    }
    wait_for(&control, QUEUE_BIND_OK, options.queues);
}

/* ---- Consumers ---------------------------------------------------------------------------------------------- */

static void consume(struct connection *consumer, uint64_t queue, uint64_t subscription) {
    struct writer writer;
    char tag[24];
    snprintf(tag, sizeof tag, "%" PRIu64, subscription);
    subscriptions[subscription].alone = options.queues >= options.consumers;
    subscriptions[subscription].next_sequence = allocate(options.publishers, sizeof(uint64_t));
    begin(&writer, 1, BASIC_CONSUME);
    put16(&writer, 0), put_short_string(&writer, queue_name(queue)), put_short_string(&writer, tag);
    put8(&writer, options.auto_ack ? 2 : 0), put32(&writer, 0);
    finish(&writer), queue_up(consumer, &writer);
}

/* Every queue has a consumer, and every consumer has a queue. */
static void open_consumers(void) {
    uint64_t next = 0;
    struct writer writer;
    consumers = allocate(options.consumers, sizeof *consumers);
    subscriptions = allocate(options.queues + options.consumers, sizeof *subscriptions);
    for (uint32_t index = 0; index < options.consumers; index++) {
        struct connection *consumer = &consumers[index];
        uint64_t before = next;
        open_connection(consumer, "consumer", index);
        if (options.prefetch && !options.auto_ack) {
            begin(&writer, 1, BASIC_QOS);
            put32(&writer, 0), put16(&writer, (uint16_t)options.prefetch), put8(&writer, 0);
            finish(&writer), queue_up(consumer, &writer);
            wait_for(consumer, BASIC_QOS_OK, 1);
        }
        if (index >= options.queues)
            consume(consumer, index % options.queues, next++);
        for (uint64_t queue = index; queue < options.queues; queue += options.consumers)
            consume(consumer, queue, next++);
        wait_for(consumer, BASIC_CONSUME_OK, next - before);
    }
}

/* ---- Publishers --------------------------------------------------------------------------------------------- */

/* basic.publish, content header and body as one run of bytes; only the label in the body changes from then on. */
static size_t build_template(uint8_t *at, uint64_t queue, size_t frame_bytes_max) {
    struct writer writer;
    begin(&writer, 1, BASIC_PUBLISH);
    put16(&writer, 0), put_short_string(&writer, exchange_name()), put_short_string(&writer, queue_name(queue));
    put8(&writer, 0), finish(&writer);
    size_t size = writer.size;
    if (at)
        memcpy(at, writer.bytes, writer.size);

    writer.size = 0;
    put8(&writer, FRAME_HEADER), put16(&writer, 1), put32(&writer, options.persistent ? 15 : 14);
    put16(&writer, 60), put16(&writer, 0), put64(&writer, options.body_bytes);
    put16(&writer, options.persistent ? 0x1000 : 0);
    if (options.persistent)
        put8(&writer, 2);
    put8(&writer, FRAME_END);
    if (at)
        memcpy(at + size, writer.bytes, writer.size);
    size += writer.size;
    template_body_offset = size + 7;
    template_size_offset = size - writer.size + 11;

    for (size_t left = options.body_bytes; left > 0;) {
        size_t part = left < frame_bytes_max - FRAME_OVERHEAD ? left : frame_bytes_max - FRAME_OVERHEAD;
        if (at) {
            at[size] = FRAME_BODY;
            store16(at + size + 1, 1), store32(at + size + 3, (uint32_t)part);
            memset(at + size + 7, 'm', part);
            at[size + 7 + part] = FRAME_END;
        }
        size += part + FRAME_OVERHEAD;
        left -= part;
    }
    return size;
}

static void open_publishers(void) {
    publishers = allocate(options.publishers, sizeof *publishers);
    for (uint32_t index = 0; index < options.publishers; index++) {
        struct connection *publisher = &publishers[index];
        open_connection(publisher, "publisher", index);
        publisher->next_queue = index % options.queues;
        publisher->next_sequence = allocate(options.queues, sizeof(uint64_t));
        if (!options.confirms)
            continue;
        /* Confirms may come out of order; the ring leaves room for an old one to be waited for. */
        uint64_t ring = 1;
        while (ring < options.outstanding * 4)
            ring *= 2;
        publisher->ring_mask = ring - 1;
        publisher->sent_at = allocate(ring, sizeof(uint64_t));
        struct writer writer;
        begin(&writer, 1, CONFIRM_SELECT), put8(&writer, 0);
        finish(&writer), queue_up(publisher, &writer);
        wait_for(publisher, CONFIRM_SELECT_OK, 1);
    }
    if (options.publishers == 0)
        return;
    template_bytes = build_template(NULL, 0, publishers[0].frame_bytes_max);
    templates = allocate(options.queues, template_bytes);
    for (uint64_t queue = 0; queue < options.queues; queue++)
        build_template(templates + queue * template_bytes, queue, publishers[0].frame_bytes_max);
}

static inline uint64_t least(uint64_t a, uint64_t b) { return a < b ? a : b; }

/* When this publisher's next message is due: message n of all is due at n / rate, and publishers take turns. */
static uint64_t due_ns(const struct connection *publisher) {
    uint64_t nth = publisher->published * options.publishers + publisher->index;
    return started_ns + (uint64_t)((double)nth * 1e9 / options.rate);
}

static bool publishing_is_over(uint64_t now_ns) {
    return interrupted || (options.messages && published >= options.messages) || (deadline_ns && now_ns >= deadline_ns);
}

/* How many messages the bounds let this publisher send now, at most one batch. */
static uint64_t allowance(const struct connection *publisher, uint64_t now_ns) {
    if (publishing_is_over(now_ns))
        return 0;
    uint64_t count = least(options.batch, BATCH_BYTES_MAX / template_bytes + 1);
    if (options.messages)
        count = least(count, options.messages - published);
    if (options.confirms) {
        uint64_t span = publisher->published + 1 - publisher->lowest_unconfirmed;
        count = least(count, options.outstanding - publisher->unconfirmed);
        count = least(count, publisher->ring_mask + 1 - span);
    }
    if (options.rate > 0) {
        double share = options.rate / (double)options.publishers / 1e9;
        uint64_t due = due_ns(publisher);
        count = now_ns >= due ? least(count, (uint64_t)((double)(now_ns - due) * share) + 1) : 0;
    }
    if (options.in_flight) {
        /* Whole batches only: this bound stands for a publisher that writes ahead, not for one that counts replies. */
        uint64_t under_way = published - delivered / copies;
        count = least(count, options.in_flight);
        count = under_way + count <= options.in_flight ? count : 0;
    }
    return count;
}

static void publish(struct connection *publisher, uint64_t count, uint64_t now_ns) {
    uint8_t *start = reserve(publisher, count * template_bytes), *at = start;
    bool labelled = options.body_bytes_min >= LABEL_BYTES;
    for (uint64_t i = 0; i < count; i++) {
        uint64_t queue = publisher->next_queue, stamp_ns = options.rate > 0 ? due_ns(publisher) : now_ns;
        uint8_t *body = at + template_body_offset;
        uint64_t size = template_bytes;
        if (options.body_bytes_min == options.body_bytes) {
            memcpy(at, templates + queue * template_bytes, template_bytes);
        } else {
            /* Sizes that follow each other without an order, the same in each run. */
            uint64_t span = options.body_bytes - options.body_bytes_min + 1;
            uint64_t body_bytes = options.body_bytes_min + (publisher->published * 2654435761u >> 8) % span;
            size = template_body_offset + body_bytes + 1;
            memcpy(at, templates + queue * template_bytes, size - 1);
            store64(at + template_size_offset, body_bytes), store32(body - 4, (uint32_t)body_bytes);
            body[body_bytes] = FRAME_END;
        }
        memcpy(body, &stamp_ns, sizeof stamp_ns);
        if (labelled) {
            memcpy(body + 8, &publisher->index, sizeof publisher->index);
            memcpy(body + 16, &publisher->next_sequence[queue], sizeof(uint64_t));
        }
        publisher->next_sequence[queue]++;
        if (copies == 1 && ++publisher->next_queue == options.queues)
            publisher->next_queue = 0;
        publisher->published++;
        if (options.confirms)
            publisher->sent_at[publisher->published & publisher->ring_mask] = stamp_ns;
        at += size;
    }
    publisher->out_end += at - start;
    published += count;
    publisher->unconfirmed += options.confirms ? count : 0;
    moved_ns = now_ns;
}

/* Let a publisher send. Returns whether it could send still more. */
static bool pump(struct connection *publisher) {
    uint64_t sends_left = options.batch == 1 ? SENDS_PER_TURN : 1;
    while (publisher->out_start == publisher->out_end) {
        uint64_t now_ns = clock_ns(CLOCK_MONOTONIC), count = allowance(publisher, now_ns);
        if (count == 0)
            return false;
        if (sends_left-- == 0)
            return true;
        publish(publisher, count, now_ns);
        flush(publisher);
    }
    return false;
}

/* Every publisher in turn, each time beginning with another, as one bound may be shared by all. */
static bool pump_all(void) {
    bool more = false;
    turn_of++;
    for (uint64_t i = 0; i < options.publishers; i++)
        more |= pump(&publishers[(turn_of + i) % options.publishers]);
    return more;
}

static void set_timer(void) {
    uint64_t next_ns = UINT64_MAX;
    for (uint64_t i = 0; i < options.publishers; i++)
        next_ns = least(next_ns, due_ns(&publishers[i]));
    struct itimerspec when = {.it_value = {(time_t)(next_ns / 1000000000u), (long)(next_ns % 1000000000u)}};
    timerfd_settime(timer_fd, TFD_TIMER_ABSTIME, &when, NULL);
}

/* ---- The run ------------------------------------------------------------------------------------------------ */

static uint64_t deliveries_expected(void) {
    if (options.consumers == 0)
        return 0;
    return options.publishers ? published * copies : options.messages;
}

static bool is_drained(uint64_t now_ns) {
    if (options.publishers && !publishing_is_over(now_ns))
        return false;
    if (options.confirms && confirmed < published)
        return false;
    if (delivered < deliveries_expected() && !(interrupted && options.publishers == 0))
        return false;
    for (uint64_t i = 0; i < options.publishers; i++)
        if (publishers[i].out_start != publishers[i].out_end)
            return false;
    return true;
}

static void turn(void) {
    struct epoll_event events[64];
    int timeout_ms = pump_all() ? 0 : 100;
    if (options.rate > 0 && timeout_ms)
        set_timer();
    int count = epoll_wait(epoll_fd, events, 64, timeout_ms);
    for (int i = 0; i < count; i++) {
        struct connection *connection = events[i].data.ptr;
        uint64_t expirations;
        if (!connection) {
            if (read(timer_fd, &expirations, sizeof expirations) < 0 && errno != EAGAIN)
                fail(EXIT_BROKER, "timerfd: %s", strerror(errno));
            continue;
        }
        if (events[i].events & EPOLLOUT)
            flush(connection);
        if (events[i].events & (EPOLLIN | EPOLLHUP | EPOLLERR))
            receive(connection);
    }
}

/* With neither confirms nor consumers, a round trip on each channel shows that the broker has taken everything. */
static void wait_until_taken(void) {
    for (uint64_t i = 0; i < options.publishers; i++) {
        declare_queue(&publishers[i], 0, true);
        wait_for(&publishers[i], QUEUE_DECLARE_OK, 1);
    }
}

/* The last acks belong to the run: the answer to basic.qos shows that the broker has seen them. */
static void wait_until_acked(void) {
    struct writer writer;
    for (uint64_t i = 0; i < options.consumers; i++) {
        if (consumers[i].unacked)
            send_ack(&consumers[i]);
        begin(&writer, 1, BASIC_QOS);
        put32(&writer, 0), put16(&writer, (uint16_t)options.prefetch), put8(&writer, 0);
        finish(&writer), queue_up(&consumers[i], &writer);
        flush(&consumers[i]);
    }
    for (uint64_t i = 0; i < options.consumers; i++)
        wait_for(&consumers[i], BASIC_QOS_OK, 1);
}

static void run(void) {
    moved_ns = clock_ns(CLOCK_MONOTONIC);
    while (!is_drained(clock_ns(CLOCK_MONOTONIC))) {
        turn();
        uint64_t now_ns = clock_ns(CLOCK_MONOTONIC);
        if (now_ns > moved_ns && (double)(now_ns - moved_ns) > options.timeout_seconds * 1e9)
            fail(EXIT_WRONG,
                 "nothing moved for %.0f s: published %" PRIu64 ", confirmed %" PRIu64 ", delivered %" PRIu64
                 " of %" PRIu64 ", connection.blocked %" PRIu64,
                 options.timeout_seconds, published, confirmed, delivered, deliveries_expected(), blocked);
    }
    if (options.consumers == 0 && !options.confirms)
        wait_until_taken();
    wait_until_acked();
}

/* Tell whoever started this program where it stands, and let it measure in peace. */
static void step(const char *where) {
    if (!options.step)
        return;
    printf("%s\n", where);
    fflush(stdout);
    for (int got = getchar(); got != '\n' && got != EOF; got = getchar())
        continue;
}

static void print_result(double seconds, double cpu_seconds, double user_seconds) {
    double published_rate = (double)published / seconds, delivered_rate = (double)delivered / seconds;
    uint64_t moved = published > delivered ? published : delivered;
    printf("{\"published\": %" PRIu64 ", \"confirmed\": %" PRIu64 ", \"delivered\": %" PRIu64, published, confirmed,
           delivered);
    printf(", \"redelivered\": %" PRIu64 ", \"left_over\": %" PRIu64 ", \"blocked\": %" PRIu64, redelivered, left_over,
           blocked);
    printf(", \"duration_s\": %.6f, \"rate\": %.1f", seconds, options.publishers ? published_rate : delivered_rate);
    printf(", \"delivered_rate\": %.1f", delivered_rate);
    histogram_print("end_to_end_us", &end_to_end);
    histogram_print("confirm_us", &confirm);
    printf(", \"load_cpu_s\": %.6f, \"load_user_s\": %.6f", cpu_seconds, user_seconds);
    printf(", \"load_cpu_us_per_message\": %.4f", moved ? cpu_seconds * 1e6 / (double)moved : 0);
    printf(", \"load_busy\": %.4f, \"sends\": %" PRIu64 ", \"receives\": %" PRIu64 "}\n", cpu_seconds / seconds, sends,
           receives);
}

/* ---- The command line --------------------------------------------------------------------------------------- */

static uint64_t whole(const char *name, const char *text, uint64_t low, uint64_t high) {
    char *end;
    errno = 0;
    unsigned long long value = strtoull(text, &end, 10);
    if (errno || *end || end == text || *text == '-' || value < low || value > high)
        fail(EXIT_USAGE, "--%s takes a whole number from %" PRIu64 " to %" PRIu64 ", not %s", name, low, high, text);
    return value;
}

static double positive(const char *name, const char *text) {
    char *end;
    double value = strtod(text, &end);
    if (*end || end == text || !(value > 0 && value < 1e12))
        fail(EXIT_USAGE, "--%s takes a number above 0, not %s", name, text);
    return value;
}

static const char *exchange_type(const char *text) {
    static const char *const types[] = {"default", "direct", "topic", "fanout"};
    for (size_t i = 0; i < sizeof types / sizeof *types; i++)
        if (strcmp(text, types[i]) == 0)
            return types[i];
    fail(EXIT_USAGE, "--exchange takes default, direct, topic or fanout, not %s", text);
}

static void read_options(int count, char **words) {
    enum { HOST = 1, PORT, USER, PASSWORD, MESSAGES, SECONDS, PUBLISHERS, CONSUMERS, QUEUES, PREFIX, DURABLE, EXCHANGE,
           SIZE, SIZE_MIN, PERSISTENT, CONFIRMS, OUTSTANDING, IN_FLIGHT, PREFETCH, ACK_EVERY, AUTO_ACK, RATE, BATCH, TIMEOUT,
           KEEP, NO_PURGE, STEP, HELP };
    static const struct option known[] = {
        {"host", 1, 0, HOST}, {"port", 1, 0, PORT}, {"user", 1, 0, USER}, {"password", 1, 0, PASSWORD},
        {"messages", 1, 0, MESSAGES}, {"seconds", 1, 0, SECONDS}, {"publishers", 1, 0, PUBLISHERS},
        {"consumers", 1, 0, CONSUMERS}, {"queues", 1, 0, QUEUES}, {"prefix", 1, 0, PREFIX},
        {"durable", 0, 0, DURABLE}, {"exchange", 1, 0, EXCHANGE}, {"size", 1, 0, SIZE},
        {"size-min", 1, 0, SIZE_MIN},
        {"persistent", 0, 0, PERSISTENT}, {"confirms", 0, 0, CONFIRMS}, {"outstanding", 1, 0, OUTSTANDING},
        {"in-flight", 1, 0, IN_FLIGHT}, {"prefetch", 1, 0, PREFETCH}, {"ack-every", 1, 0, ACK_EVERY},
        {"auto-ack", 0, 0, AUTO_ACK}, {"rate", 1, 0, RATE}, {"batch", 1, 0, BATCH}, {"timeout", 1, 0, TIMEOUT},
        {"keep", 0, 0, KEEP}, {"no-purge", 0, 0, NO_PURGE}, {"step", 0, 0, STEP}, {"help", 0, 0, HELP}, {0},
    };
    for (int at = 0, found; (found = getopt_long(count, words, "", known, &at)) != -1;) {
        const char *name = found == '?' ? "" : known[at].name;
        switch (found) {
        case HOST: options.host = optarg; break;
        case PORT: options.port = optarg; break;
        case USER: options.user = optarg; break;
        case PASSWORD: options.password = optarg; break;
        case MESSAGES: options.messages = whole(name, optarg, 1, UINT64_C(1) << 48); break;
        case SECONDS: options.seconds = positive(name, optarg); break;
        case PUBLISHERS: options.publishers = whole(name, optarg, 0, CONNECTIONS_MAX); break;
        case CONSUMERS: options.consumers = whole(name, optarg, 0, CONNECTIONS_MAX); break;
        case QUEUES: options.queues = whole(name, optarg, 1, QUEUES_MAX); break;
        case PREFIX: options.prefix = optarg; break;
        case DURABLE: options.durable = true; break;
        case EXCHANGE: options.exchange_type = exchange_type(optarg); break;
        case SIZE: options.body_bytes = whole(name, optarg, STAMP_BYTES, BODY_BYTES_MAX); break;
        case SIZE_MIN: options.body_bytes_min = whole(name, optarg, STAMP_BYTES, BODY_BYTES_MAX); break;
        case PERSISTENT: options.persistent = true; break;
        case CONFIRMS: options.confirms = true; break;
        case OUTSTANDING: options.outstanding = whole(name, optarg, 1, 1 << 24); break;
        case IN_FLIGHT: options.in_flight = whole(name, optarg, 0, UINT64_C(1) << 48); break;
        case PREFETCH: options.prefetch = whole(name, optarg, 0, 65535); break;
        case ACK_EVERY: options.ack_every = whole(name, optarg, 1, 1 << 24); break;
        case AUTO_ACK: options.auto_ack = true; break;
        case RATE: options.rate = positive(name, optarg); break;
        case BATCH: options.batch = whole(name, optarg, 1, 1 << 20); break;
        case TIMEOUT: options.timeout_seconds = positive(name, optarg); break;
        case KEEP: options.keep = true; break;
        case NO_PURGE: options.no_purge = true; break;
        case STEP: options.step = true; break;
        case HELP: fputs(usage_text, stdout); exit(0);
        default: fputs(usage_text, stderr); exit(EXIT_USAGE);
        }
    }
    if (optind < count)
        fail(EXIT_USAGE, "what is %s? Options begin with --", words[optind]);
}

static void check_options(void) {
    if (options.body_bytes_min == 0)
        options.body_bytes_min = options.body_bytes;
    if (options.body_bytes_min > options.body_bytes ||
        (options.body_bytes_min < options.body_bytes && options.body_bytes > FRAME_BYTES_MAX - FRAME_OVERHEAD))
        fail(EXIT_USAGE, "--size-min is at most --size, and with it --size is at most a frame");
    if (options.in_flight == UINT64_MAX)
        options.in_flight = options.confirms || options.rate > 0 ? 0 : 10000 * options.publishers;
    if (options.consumers == 0)
        options.in_flight = 0;
    if (!options.messages && options.seconds == 0)
        fail(EXIT_USAGE, "say when to stop: --messages or --seconds");
    if (!options.publishers && (!options.messages || !options.consumers || options.confirms))
        fail(EXIT_USAGE, "--publishers 0 drains a backlog: it takes --messages and --consumers, and no --confirms");
    if (options.prefetch && !options.auto_ack && options.ack_every > options.prefetch)
        fail(EXIT_USAGE, "--ack-every above --prefetch would wait for ever");
    if (strlen(options.prefix) > 200)
        fail(EXIT_USAGE, "--prefix may have 200 bytes");
    if (is_fanout())
        copies = options.queues;
}

int main(int count, char **words) {
    read_options(count, words);
    check_options();
    signal(SIGPIPE, SIG_IGN);
    signal(SIGINT, on_signal);
    signal(SIGTERM, on_signal);
    prctl(PR_SET_TIMERSLACK, 1UL, 0UL, 0UL, 0UL); /* paced publishes on time, not up to 50 us late */
    epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    if (options.rate > 0) {
        timer_fd = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC);
        struct epoll_event event = {.events = EPOLLIN, .data.ptr = NULL};
        if (epoll_ctl(epoll_fd, EPOLL_CTL_ADD, timer_fd, &event) < 0)
            fail(EXIT_BROKER, "timerfd: %s", strerror(errno));
    }
    open_connection(&control, "control connection", 0);
    declare_queues();
    open_publishers();

    /* A backlog is delivered as soon as somebody consumes, so the run begins with the consumers if there is one. */
    if (!options.no_purge)
        open_consumers();
    step("ready");
    struct rusage before, after;
    getrusage(RUSAGE_SELF, &before);
    uint64_t cpu_before_ns = clock_ns(CLOCK_PROCESS_CPUTIME_ID);
    sends = receives = 0;
    started_ns = clock_ns(CLOCK_MONOTONIC);
    deadline_ns = options.seconds > 0 ? started_ns + (uint64_t)(options.seconds * 1e9) : 0;
    if (options.no_purge)
        open_consumers();
    run();
    double seconds = (double)(clock_ns(CLOCK_MONOTONIC) - started_ns) / 1e9;
    double cpu_seconds = (double)(clock_ns(CLOCK_PROCESS_CPUTIME_ID) - cpu_before_ns) / 1e9;
    getrusage(RUSAGE_SELF, &after);
    double user_seconds = (double)(after.ru_utime.tv_sec - before.ru_utime.tv_sec) +
                          (double)(after.ru_utime.tv_usec - before.ru_utime.tv_usec) / 1e6;
    step("drained");

    for (uint64_t i = 0; i < options.publishers; i++)
        close_connection(&publishers[i]);
    for (uint64_t i = 0; i < options.consumers; i++)
        close_connection(&consumers[i]);
    if (!options.keep)
        delete_queues();
    close_connection(&control);
    if (delivered != deliveries_expected() && !interrupted)
        fail(EXIT_WRONG, "%" PRIu64 " messages were delivered, %" PRIu64 " expected", delivered, deliveries_expected());
    if (options.consumers && left_over)
        fail(EXIT_WRONG, "%" PRIu64 " messages were left in the queues, though all were acknowledged", left_over);
    print_result(seconds, cpu_seconds, user_seconds);
    return interrupted ? 130 : 0;
}

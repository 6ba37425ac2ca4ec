/*
 * amqp_ceiling: a peer that does almost nothing, to show what the generator and the machine's loopback can carry.
 *
 *   gcc -O2 -o amqp_ceiling bench/amqp_ceiling.c
 *   ./amqp_ceiling [--lose N | --repeat N]        prints the port it listens on, and runs until it is ended
 *
 * It answers the methods that amqp_load sends, hands every publish to the last consumer, confirms at the end of each
 * receive, and keeps nothing: no queues, no acknowledgements, no flow control. Bodies must fit one frame. Input is
 * trusted; it is no broker. With --lose or --repeat it mistreats message N, which amqp_load must notice.
 */

#define _GNU_SOURCE
#include <arpa/inet.h>
#include <endian.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <signal.h>
#include <unistd.h>

#define READ_BYTES (256 * 1024)
#define OUT_BYTES_MAX (256u << 20) /* what a consumer that does not read may cost before this program gives up */

struct connection {
    int fd;
    bool greeted, confirms, wants_write, publishing;
    uint8_t *in, *out;
    size_t in_bytes, out_start, out_end, out_capacity;
    uint64_t published, delivered;
    uint8_t tag[256]; /* the consumer tag as a short string */
};

static int epoll_fd;
static struct connection *consumer;
static uint64_t message, lose_at, repeat_at;

static uint32_t load32(const uint8_t *at) { uint32_t value; memcpy(&value, at, 4); return be32toh(value); }
static void store32(uint8_t *at, uint32_t value) { value = htobe32(value); memcpy(at, &value, 4); }
static void store64(uint8_t *at, uint64_t value) { value = htobe64(value); memcpy(at, &value, 8); }

static uint8_t *append(struct connection *connection, const void *bytes, size_t count) {
    if (connection->out_start == connection->out_end)
        connection->out_start = connection->out_end = 0;
    if (connection->out_end + count > connection->out_capacity) {
        connection->out_capacity = (connection->out_end + count) * 2;
        connection->out = realloc(connection->out, connection->out_capacity);
        if (!connection->out || connection->out_capacity > OUT_BYTES_MAX)
            abort();
    }
    uint8_t *at = connection->out + connection->out_end;
    if (bytes)
        memcpy(at, bytes, count);
    connection->out_end += count;
    return at;
}

static void method(struct connection *connection, uint8_t channel, uint32_t name, const void *arguments, size_t count) {
    uint8_t head[11] = {1, 0, channel};
    store32(head + 3, (uint32_t)count + 4), store32(head + 7, name);
    append(connection, head, sizeof head), append(connection, arguments, count), append(connection, "\xCE", 1);
}

static void flush(struct connection *connection) {
    size_t pending = connection->out_end - connection->out_start;
    if (pending) {
        ssize_t sent = send(connection->fd, connection->out + connection->out_start, pending, MSG_NOSIGNAL | MSG_DONTWAIT);
        if (sent > 0)
            connection->out_start += (size_t)sent;
    }
    bool wants_write = connection->out_start < connection->out_end;
    if (wants_write != connection->wants_write) {
        struct epoll_event event = {.events = EPOLLIN | (wants_write ? EPOLLOUT : 0u), .data.ptr = connection};
        connection->wants_write = wants_write;
        epoll_ctl(epoll_fd, EPOLL_CTL_MOD, connection->fd, &event);
    }
}

static void deliver(const uint8_t *content, size_t count) {
    uint8_t head[300] = {1, 0, 1}, *at = head + 11;
    size_t tag_bytes = consumer->tag[0] + 1u;
    store32(head + 7, 60 << 16 | 60);
    memcpy(at, consumer->tag, tag_bytes), at += tag_bytes;
    store64(at, ++consumer->delivered), at += 8;
    *at++ = 0, *at++ = 0; /* redelivered, exchange */
    *at++ = 1, *at++ = 'q';
    store32(head + 3, (uint32_t)(at - head - 7));
    *at++ = 0xCE;
    append(consumer, head, (size_t)(at - head)), append(consumer, content, count);
}

/* Answer one method. The arguments of those with variable parts are copied from the request where they match. */
static void answer(struct connection *connection, uint8_t channel, const uint8_t *payload) {
    static const uint8_t zeros[16];
    uint8_t buffer[300];
    switch (load32(payload)) {
    case 10 << 16 | 11: /* start-ok: 2,047 channels, frames of 128 KiB, no heartbeat */
        method(connection, 0, 10 << 16 | 30, "\x07\xFF\x00\x02\x00\x00\x00\x00", 8);
        break;
    case 10 << 16 | 40: method(connection, 0, 10 << 16 | 41, zeros, 1); break;
    case 10 << 16 | 50: method(connection, 0, 10 << 16 | 51, "", 0); break;
    case 20 << 16 | 10: method(connection, channel, 20 << 16 | 11, zeros, 4); break;
    case 50 << 16 | 10: /* queue.declare: the name and two counts */
        memcpy(buffer, payload + 6, payload[6] + 1u), memset(buffer + payload[6] + 1, 0, 8);
        method(connection, channel, 50 << 16 | 11, buffer, payload[6] + 9u);
        break;
    case 50 << 16 | 40: method(connection, channel, 50 << 16 | 41, zeros, 4); break;
    case 60 << 16 | 10: method(connection, channel, 60 << 16 | 11, "", 0); break;
    case 60 << 16 | 20: { /* basic.consume: the tag stands behind the queue's name */
        const uint8_t *tag = payload + 7 + payload[6];
        memcpy(connection->tag, tag, tag[0] + 1u);
        consumer = connection;
        method(connection, channel, 60 << 16 | 21, tag, tag[0] + 1u);
        break;
    }
    case 60 << 16 | 40: connection->publishing = true; break;
    case 85 << 16 | 10:
        connection->confirms = true;
        method(connection, channel, 85 << 16 | 11, "", 0);
        break;
    default: break; /* tune-ok, basic.ack */
    }
}

static void on_content(struct connection *connection, const uint8_t *content, size_t count) {
    connection->publishing = false;
    connection->published++;
    message++;
    if (!consumer || message == lose_at)
        return;
    deliver(content, count);
    if (message == repeat_at)
        deliver(content, count);
}

static size_t parse(struct connection *connection) {
    const uint8_t *at = connection->in, *end = at + connection->in_bytes;
    if (!connection->greeted) {
        static const uint8_t start[] = {0, 9, 0, 0, 0, 0, 0, 0, 0, 5, 'P', 'L', 'A', 'I', 'N', 0, 0, 0, 5, 'e', 'n', '_', 'U', 'S'};
        if (connection->in_bytes < 8)
            return 0;
        connection->greeted = true;
        method(connection, 0, 10 << 16 | 10, start, sizeof start);
        at += 8;
    }
    while (end - at >= 8) {
        size_t size = load32(at + 3) + 8u;
        if ((size_t)(end - at) < size)
            break;
        if (at[0] == 1) {
            answer(connection, at[2], at + 7);
        } else if (connection->publishing) {
            /* Content header and body together, as they came. */
            if ((size_t)(end - at) < size + 8 || (size_t)(end - at) < size + load32(at + size + 3) + 8)
                break;
            size += load32(at + size + 3) + 8u;
            on_content(connection, at, size);
        }
        at += size;
    }
    return (size_t)(at - connection->in);
}

static void receive(struct connection *connection) {
    uint64_t before = connection->published;
    ssize_t got = recv(connection->fd, connection->in + connection->in_bytes, READ_BYTES, MSG_DONTWAIT);
    if (got <= 0 && (got == 0 || errno != EAGAIN)) {
        close(connection->fd);
        consumer = consumer == connection ? NULL : consumer;
        free(connection->in), free(connection->out), free(connection);
        return;
    }
    connection->in_bytes += got > 0 ? (size_t)got : 0;
    size_t used = parse(connection);
    connection->in_bytes -= used;
    memmove(connection->in, connection->in + used, connection->in_bytes);
    if (connection->confirms && connection->published > before) {
        uint8_t arguments[9] = {[8] = 1};
        store64(arguments, connection->published);
        method(connection, 1, 60 << 16 | 80, arguments, sizeof arguments);
    }
    flush(connection);
    if (consumer && consumer != connection)
        flush(consumer);
}

int main(int count, char **words) {
    prctl(PR_SET_PDEATHSIG, SIGTERM);
    for (int i = 1; i + 1 < count; i += 2)
        *(strcmp(words[i], "--lose") == 0 ? &lose_at : &repeat_at) = strtoull(words[i + 1], NULL, 10);
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t address_bytes = sizeof address;
    int listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), one = 1;
    if (bind(listener, (struct sockaddr *)&address, sizeof address) < 0 || listen(listener, 64) < 0)
        return perror("amqp_ceiling"), 1;
    getsockname(listener, (struct sockaddr *)&address, &address_bytes);
    printf("%d\n", ntohs(address.sin_port)), fflush(stdout);
    epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    struct epoll_event event = {.events = EPOLLIN}, events[64];
    epoll_ctl(epoll_fd, EPOLL_CTL_ADD, listener, &event);
    for (;;) {
        /* One event at a time: handling one connection may end another that the same batch would name. */
        if (epoll_wait(epoll_fd, events, 1, -1) < 1)
            continue;
        struct connection *connection = events[0].data.ptr;
        if (connection && (events[0].events & EPOLLOUT))
            flush(connection);
        if (connection && (events[0].events & (EPOLLIN | EPOLLHUP | EPOLLERR)))
            receive(connection);
        if (connection)
            continue;
        connection = calloc(1, sizeof *connection);
        connection->in = malloc(2 * READ_BYTES);
        connection->fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
        setsockopt(connection->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
        event = (struct epoll_event){.events = EPOLLIN, .data.ptr = connection};
        epoll_ctl(epoll_fd, EPOLL_CTL_ADD, connection->fd, &event);
    }
}

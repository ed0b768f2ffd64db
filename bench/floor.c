/*
 * The floor: what the kernel and a bare epoll loop cost when nothing is understood.
 *
 * One thread, one epoll descriptor, one recv and one send for what a connection has ready.
 * Requests are counted by the empty line that ends a head; a body is read and forgotten (it
 * must not hold an empty line), and the answer is always the same, with the headers that
 * fastserve sends, so that the bytes on the wire are comparable.
 *
 * With "broadcast", a head is answered as if it had been a WebSocket handshake with the sample
 * key of RFC 6455; whatever comes after it has one constant frame sent to every connection that
 * has had that answer, one send for each.
 *
 * usage: floor PORT [BODY_SIZE | broadcast]      listens on 127.0.0.1 only
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

enum {
    MAX_DESCRIPTORS = 65536,
    MAX_EVENTS = 512,
    RECEIVE_SIZE = 65536,
    MAX_BODY = 16384,
    BATCH = 64, /* answers that one send carries at most */
    MESSAGE_SIZE = 100,
};

static const char hello[] = "Hello, world!";
static const char head_format[] = "HTTP/1.1 200 OK\r\n"
                                  "content-type: text/plain\r\n"
                                  "content-length: %d\r\n"
                                  "date: Thu, 01 Jan 1970 00:00:00 GMT\r\n"
                                  "server: fastserve\r\n"
                                  "\r\n";

static const char upgrade[] = "HTTP/1.1 101 Switching Protocols\r\n"
                              "upgrade: websocket\r\n"
                              "connection: Upgrade\r\n"
                              "sec-websocket-accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n"
                              "\r\n";

static char received[RECEIVE_SIZE];
static char *answers;                           /* BATCH answers, one after another */
static size_t answer_size;
static unsigned char matched[MAX_DESCRIPTORS];  /* bytes of "\r\n\r\n" seen, per descriptor */
static unsigned char upgraded[MAX_DESCRIPTORS];
static int highest;                             /* the highest descriptor that was upgraded */
static char frame[2 + MESSAGE_SIZE] = {(char)0x81, MESSAGE_SIZE}; /* a whole text message */

static void die(const char *what)
{
    perror(what);
    exit(1);
}

/* Without an explicit size the body is the greeting; otherwise that many dots. */
static void prepare_answers(int body_size)
{
    int size = body_size < 0 ? (int)sizeof hello - 1 : body_size;
    char head[sizeof head_format + 16];
    int head_size = snprintf(head, sizeof head, head_format, size);

    answer_size = (size_t)head_size + (size_t)size;
    answers = malloc(answer_size * BATCH);
    if (answers == NULL)
        die("malloc");
    for (int i = 0; i < BATCH; i++) {
        char *answer = answers + answer_size * (size_t)i;
        memcpy(answer, head, (size_t)head_size);
        if (body_size < 0)
            memcpy(answer + head_size, hello, (size_t)size);
        else
            memset(answer + head_size, '.', (size_t)size);
    }
}

static int count_heads(const char *data, size_t size, unsigned char *state)
{
    static const char end_of_head[] = "\r\n\r\n";
    const char *end = data + size;
    unsigned char seen = *state;
    int heads = 0;

    while (data < end) {
        if (seen == 0) {
            data = memchr(data, '\r', (size_t)(end - data));
            if (data == NULL)
                break;
        }
        if (*data == end_of_head[seen])
            seen++;
        else
            seen = *data == '\r';
        if (seen == 4) {
            heads++;
            seen = 0;
        }
        data++;
    }
    *state = seen;
    return heads;
}

/* 0, or -1 when the connection is to be closed: a peer that does not read is not waited for. */
static int send_answers(int connection, int count)
{
    while (count > 0) {
        int batch = count < BATCH ? count : BATCH;
        size_t size = answer_size * (size_t)batch;
        if (send(connection, answers, size, MSG_NOSIGNAL) != (ssize_t)size)
            return -1;
        count -= batch;
    }
    return 0;
}

static void serve(int connection)
{
    ssize_t size = recv(connection, received, sizeof received, 0);

    if (size < 0 && (errno == EAGAIN || errno == EINTR))
        return;
    if (size <= 0
        || send_answers(connection, count_heads(received, (size_t)size, &matched[connection])) < 0)
        close(connection);
}

/* As with answers: who cannot take it at once loses the connection. */
static void broadcast(void)
{
    for (int connection = 0; connection <= highest; connection++) {
        if (!upgraded[connection])
            continue;
        if (send(connection, frame, sizeof frame, MSG_NOSIGNAL) != (ssize_t)sizeof frame) {
            upgraded[connection] = 0;
            close(connection);
        }
    }
}

static void serve_broadcast(int connection)
{
    ssize_t size = recv(connection, received, sizeof received, 0);

    if (size < 0 && (errno == EAGAIN || errno == EINTR))
        return;
    if (size <= 0) {
        upgraded[connection] = 0;
        close(connection);
    } else if (upgraded[connection]) {
        broadcast();
    } else if (count_heads(received, (size_t)size, &matched[connection])) {
        if (send(connection, upgrade, sizeof upgrade - 1, MSG_NOSIGNAL) < 0)
            die("send");
        upgraded[connection] = 1;
        if (connection > highest)
            highest = connection;
    }
}

static void watch(int poller, int descriptor)
{
    struct epoll_event event = {.events = EPOLLIN, .data.fd = descriptor};

    if (epoll_ctl(poller, EPOLL_CTL_ADD, descriptor, &event) < 0)
        die("epoll_ctl");
}

static void accept_all(int poller, int listener)
{
    int on = 1;
    int connection;

    while ((connection = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC)) >= 0) {
        if (connection >= MAX_DESCRIPTORS) {
            close(connection);
            continue;
        }
        setsockopt(connection, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
        matched[connection] = 0;
        upgraded[connection] = 0;
        watch(poller, connection);
    }
}

static int listen_on(int port)
{
    struct sockaddr_in address = {.sin_family = AF_INET};
    int on = 1;
    int listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);

    if (listener < 0)
        die("socket");
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    address.sin_port = htons((unsigned short)port);
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    if (bind(listener, (struct sockaddr *)&address, sizeof address) < 0)
        die("bind");
    if (listen(listener, 2048) < 0)
        die("listen");
    return listener;
}

int main(int argc, char **argv)
{
    struct epoll_event events[MAX_EVENTS];
    int port = argc > 1 ? atoi(argv[1]) : 0;
    int broadcasts = argc > 2 && strcmp(argv[2], "broadcast") == 0;
    int body_size = argc > 2 ? atoi(argv[2]) : -1;

    if (port < 1 || port > 65535 || body_size > MAX_BODY) {
        fprintf(stderr, "usage: floor PORT [BODY_SIZE | broadcast]\n");
        return 2;
    }
    prepare_answers(body_size);
    memset(frame + 2, 'x', MESSAGE_SIZE);
    int listener = listen_on(port);
    int poller = epoll_create1(EPOLL_CLOEXEC);
    if (poller < 0)
        die("epoll_create1");
    watch(poller, listener);
    for (;;) {
        int ready = epoll_wait(poller, events, MAX_EVENTS, -1);
        if (ready < 0 && errno != EINTR)
            die("epoll_wait");
        for (int i = 0; i < ready; i++) {
            if (events[i].data.fd == listener)
                accept_all(poller, listener);
            else if (broadcasts)
                serve_broadcast(events[i].data.fd);
            else
                serve(events[i].data.fd);
        }
    }
}

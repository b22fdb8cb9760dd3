/* pace: small UDP packets at a chosen rate, and their counting. No GSO and no GRO: every datagram is one packet.
 *
 *   pace send ADDRESS PORT BYTES RATE SECONDS FLOWS     prints: sent seconds
 *   pace count PORT SILENCE_MS                          prints: received, after that much silence
 *
 * The sender works in ticks of 100 microseconds and never makes good for more than 5 ms, so that a stall does not
 * become a burst. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <poll.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { BATCH = 64, MAX_BYTES = 2048, MAX_FLOWS = 64 };

static char payload[BATCH][MAX_BYTES];
static struct mmsghdr messages[BATCH];
static struct iovec slices[BATCH];

static double seconds(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

static void prepare(size_t bytes) {
    for (int i = 0; i < BATCH; i++) {
        slices[i] = (struct iovec){payload[i], bytes};
        messages[i].msg_hdr = (struct msghdr){.msg_iov = &slices[i], .msg_iovlen = 1};
    }
}

static int die(const char *what) {
    perror(what);
    return 1;
}

static int send_paced(char **a) {
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons((uint16_t)atoi(a[1]))};
    size_t bytes = (size_t)atoi(a[2]);
    double rate = atof(a[3]), length = atof(a[4]);
    int flows = atoi(a[5]), sockets[MAX_FLOWS], buffer = 4 << 20;
    if (inet_pton(AF_INET, a[0], &to.sin_addr) != 1 || bytes > MAX_BYTES || flows < 1 || flows > MAX_FLOWS || rate <= 0) {
        fputs("pace: bad arguments\n", stderr);
        return 2;
    }
    for (int i = 0; i < flows; i++) {
        sockets[i] = socket(AF_INET, SOCK_DGRAM, 0);
        setsockopt(sockets[i], SOL_SOCKET, SO_SNDBUFFORCE, &buffer, sizeof buffer);
        if (connect(sockets[i], (struct sockaddr *)&to, sizeof to)) return die("connect");
    }
    prctl(PR_SET_TIMERSLACK, 1);
    prepare(bytes);
    int burst = (int)(rate * 100e-6);
    burst = burst < 1 ? 1 : burst > BATCH ? BATCH : burst;
    uint64_t sent = 0;
    double begun = seconds(), due = begun;
    for (int flow = 0;; flow = (flow + 1) % flows) {
        double now = seconds();
        if (now - begun >= length) break;
        if (now < due) {
            struct timespec nap = {0, (long)((due - now) * 1e9)};
            nanosleep(&nap, NULL);
            continue;
        }
        if (now - due > 0.005) due = now - 0.005;
        int done = sendmmsg(sockets[flow], messages, (unsigned)burst, 0);
        if (done > 0) sent += (uint64_t)done;
        due += burst / rate;
    }
    printf("%llu %.4f\n", (unsigned long long)sent, seconds() - begun);
    return 0;
}

static int count(char **a) {
    struct sockaddr_in at = {.sin_family = AF_INET, .sin_port = htons((uint16_t)atoi(a[0]))};
    int fd = socket(AF_INET, SOCK_DGRAM, 0), buffer = 8 << 20, patience = 10000;
    setsockopt(fd, SOL_SOCKET, SO_RCVBUFFORCE, &buffer, sizeof buffer);
    if (bind(fd, (struct sockaddr *)&at, sizeof at)) return die("bind");
    puts("ready");
    fflush(stdout);
    prepare(MAX_BYTES);
    uint64_t received = 0;
    for (struct pollfd p = {fd, POLLIN, 0}; poll(&p, 1, patience) > 0;) {
        int got = recvmmsg(fd, messages, BATCH, MSG_DONTWAIT, NULL);
        if (got > 0) received += (uint64_t)got, patience = atoi(a[1]);
    }
    printf("%llu\n", (unsigned long long)received);
    return 0;
}

int main(int c, char **v) {
    if (c == 8 && !strcmp(v[1], "send")) return send_paced(v + 2);
    if (c == 4 && !strcmp(v[1], "count")) return count(v + 2);
    fputs("usage: pace send ADDRESS PORT BYTES RATE SECONDS FLOWS | pace count PORT SILENCE_MS\n", stderr);
    return 2;
}

/* hubload - epoll load client for SSE / WebSocket event hubs.
 *
 * Opens N connections that follow K of S sessions each, decodes HTTP/1.1 (chunked
 * or identity), WebSocket frames (RFC 6455) or NATS in WebSocket frames, and looks
 * for a marker token  @T<publish-time-ns>.<session-index>.<seq>@  wherever it lies:
 * in a WebSocket text message, in a NATS payload, or in the stream.
 * The hub may therefore wrap, re-serialise or batch the payload as it likes.
 *
 * Control on stdin:   STAT | EXPECT n | RESET | SEND rate text | STOP   (EOF = STOP)
 * Lines on stdout:    READY {...}   STAT {...}   RESULT {...}
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { S_IDLE, S_CONNECT, S_HEAD, S_BODY, S_DEAD };
enum { M_SSE, M_WS, M_NATS };
enum { C_NONE, C_SIZE, C_EXT, C_DATA, C_CRLF, C_END };
enum { W_HDR, W_DATA };

typedef struct {
    int fd, state, idx, stalled, chunked;
    /* head */
    char *head; int headlen;
    /* chunk decoder */
    int cst; uint64_t cleft;
    /* ws decoder */
    int wst, wop, whave; uint64_t wleft; unsigned char whdr[10];
    unsigned char ctl[125]; int ctllen;
    /* nats decoder */
    char nline[128]; int nlen; uint64_t nleft;
    /* token scanner */
    int tst; uint64_t tts, tses, tseq;
    /* stats */
    uint64_t *last, got; /* last: of each of its sessions */
    uint64_t t0, asked;  /* asked: when its connection or SEND began, until its next event */
} conn;

static struct {
    const char *host, *path, *method, *body, *mark; int port, mode;
    int conns, sessions, each, conc, stall, rcvbuf, nopong, cpertimeout; double crate;
    const char *hdr[32]; int nhdr;
    const char *wssend[8]; int nwssend;
    int nsrc;
} o = { .host = "127.0.0.1", .path = "/", .method = "GET", .port = 8000, .conns = 1, .sessions = 1, .each = 1,
        .conc = 64, .cpertimeout = 30, .nsrc = 1 };

static conn *cs;
static int ep, nready, nfailed, nclosed, nextc, inflight;
static uint64_t delivered, misrouted, gaps, dups, bytes_in, bytes_event, expect_total, badstatus, protoerrs, pings, recvs;
static uint64_t t_first, t_last, lat_max; static double lat_sum;
static uint64_t conn_lat_max;
static int first_status = 0; static char first_err[400];

#define SUB 64
static uint64_t hist[64 * SUB], first[64 * SUB]; /* from the mark's time; from asking to the next event */
static inline int hidx(uint64_t v) {
    if (v < SUB) return (int)v;
    int e = 63 - __builtin_clzll(v);
    return (e - 5) * SUB + (int)((v >> (e - 6)) & (SUB - 1));
}
static inline uint64_t hval(int i) {
    if (i < SUB) return i;
    int e = i / SUB + 5; uint64_t m = i % SUB;
    return ((uint64_t)SUB + m) << (e - 6);
}
static uint64_t now_ns(void) { struct timespec t; clock_gettime(CLOCK_REALTIME, &t); return t.tv_sec * 1000000000ull + t.tv_nsec; }

static uint64_t count(const uint64_t *h) { uint64_t n = 0; for (int i = 0; i < 64 * SUB; i++) n += h[i]; return n; }
static double pct(const uint64_t *h, double p) {
    uint64_t n = count(h);
    if (!n) return -1;
    uint64_t want = (uint64_t)(p * n); if (want >= n) want = n - 1; uint64_t c = 0;
    for (int i = 0; i < 64 * SUB; i++) { c += h[i]; if (c > want) return hval(i) / 1e6; }
    return -1;
}

/* The k-th session of a connection, by number: one event after the other goes to another connection. */
static int session(const conn *c, int k) { return (c->idx + (long)k * o.conns) % o.sessions; }

/* What stands between [ and ] is repeated for each session of the connection. */
static size_t render(char *dst, size_t cap, const char *t, const char *end, const conn *c, int k) {
    size_t n = 0; int ses = session(c, k);
    for (; t < end && n + 24 < cap; t++) {
        const char *close = *t == '[' ? memchr(t, ']', end - t) : NULL;
        if (close) { for (int j = 0; j < o.each; j++) n += render(dst + n, cap - n, t + 1, close, c, j); t = close; }
        else if (t[0] == '{' && t[1] == 's' && t[2] == '}') { n += sprintf(dst + n, "%d", ses); t += 2; }
        else if (t[0] == '{' && t[1] == 'S' && t[2] == '}') { n += sprintf(dst + n, "%012d", ses); t += 2; }
        else if (t[0] == '{' && t[1] == 'c' && t[2] == '}') { n += sprintf(dst + n, "%d", c->idx); t += 2; }
        else if (t[0] == '\\' && t[1] == 'r') { dst[n++] = '\r'; t++; }
        else if (t[0] == '\\' && t[1] == 'n') { dst[n++] = '\n'; t++; }
        else dst[n++] = *t;
    }
    if (t < end) { fprintf(stderr, "too long: %.100s\n", t); exit(2); }
    dst[n] = 0;
    return n;
}
static size_t subst(char *dst, size_t cap, const char *t, const conn *c) { return render(dst, cap, t, t + strlen(t), c, 0); }

static void die(conn *c, int failed);
static void fail(conn *c, const char *why, const char *more) {
    if (!first_err[0]) snprintf(first_err, sizeof first_err, "%s %.200s", why, more);
    die(c, 1);
}

static void event(conn *c, uint64_t now) {
    delivered++; c->got++;
    if (c->asked) { first[hidx(now > c->asked ? now - c->asked : 0)]++; c->asked = 0; }
    int k = 0;
    while (k < o.each && (uint64_t)session(c, k) != c->tses) k++;
    if (k == o.each) misrouted++;
    else if (c->tseq == c->last[k] + 1 || c->last[k] == 0) c->last[k] = c->tseq;
    else if (c->tseq > c->last[k]) { gaps += c->tseq - c->last[k] - 1; c->last[k] = c->tseq; }
    else dups++;
    uint64_t l = now > c->tts ? now - c->tts : 0;
    hist[hidx(l)]++; lat_sum += l; if (l > lat_max) lat_max = l;
    if (!t_first) t_first = now;
    t_last = now;
}

static void scan(conn *c, const unsigned char *p, size_t n, uint64_t now) {
    const unsigned char *e = p + n;
    while (p < e) {
        if (c->tst == 0) { p = memchr(p, '@', e - p); if (!p) return; p++; c->tst = 1; continue; }
        unsigned char ch = *p++;
        switch (c->tst) {
        case 1: if (ch == 'T') { c->tst = 2; c->tts = c->tses = c->tseq = 0; } else c->tst = ch == '@' ? 1 : 0; break;
        case 2: if (isdigit(ch)) c->tts = c->tts * 10 + ch - '0'; else c->tst = ch == '.' ? 3 : 0; break;
        case 3: if (isdigit(ch)) c->tses = c->tses * 10 + ch - '0'; else c->tst = ch == '.' ? 4 : 0; break;
        case 4: if (isdigit(ch)) c->tseq = c->tseq * 10 + ch - '0';
                else { if (ch == '@') event(c, now); c->tst = 0; } break;
        }
    }
}

static void unchunk(conn *c, const unsigned char *p, size_t n, uint64_t now) {
    while (n) {
        switch (c->cst) {
        case C_SIZE: {
            unsigned char ch = *p++; n--;
            if (isxdigit(ch)) c->cleft = c->cleft * 16 + (isdigit(ch) ? ch - '0' : (tolower(ch) - 'a' + 10));
            else if (ch == ';') c->cst = C_EXT;
            else if (ch == '\n') c->cst = c->cleft ? C_DATA : C_END;
            break; }
        case C_EXT: if (*p == '\n') c->cst = c->cleft ? C_DATA : C_END; p++; n--; break;
        case C_DATA: {
            size_t k = n < c->cleft ? n : c->cleft; scan(c, p, k, now); p += k; n -= k; c->cleft -= k;
            if (!c->cleft) c->cst = C_CRLF;
            break; }
        case C_CRLF: if (*p == '\n') { c->cst = C_SIZE; c->cleft = 0; } p++; n--; break;
        default: return;
        }
    }
}

static void ws_write(conn *c, int op, const void *data, size_t n) {
    unsigned char b[8192]; size_t h = 0;
    if (n > sizeof b - 14) { fprintf(stderr, "frame too long\n"); exit(2); }
    b[h++] = 0x80 | op;
    if (n < 126) b[h++] = 0x80 | n; else { b[h++] = 0x80 | 126; b[h++] = n >> 8; b[h++] = n & 255; }
    unsigned char mk[4] = { 0x12, 0x34, 0x56, 0x78 }; memcpy(b + h, mk, 4); h += 4;
    for (size_t i = 0; i < n; i++) b[h + i] = ((const unsigned char *)data)[i] ^ mk[i & 3];
    if (send(c->fd, b, h + n, MSG_NOSIGNAL | MSG_DONTWAIT) != (ssize_t)(h + n)) fail(c, "cannot send", strerror(errno));
}

static void say(conn *c, const char *t) {
    char m[8000]; size_t n = subst(m, sizeof m, t, c);
    ws_write(c, o.mode == M_NATS ? 2 : 1, m, n);
}

static void nats_line(conn *c) {
    char *size = strrchr(c->nline, ' ');
    if (!strncmp(c->nline, "MSG ", 4)) { c->nleft = strtoull(size, NULL, 10) + 2; c->tst = 0; }
    else if (!strncmp(c->nline, "PING", 4)) { pings++; if (!o.nopong) ws_write(c, 2, "PONG\r\n", 6); }
    else if (!strncmp(c->nline, "-ERR", 4)) { protoerrs++; fail(c, "NATS:", c->nline); }
}
/* The frames are a stream: a line or a payload may go on in the next one. */
static void natsfeed(conn *c, const unsigned char *p, size_t n, uint64_t now) {
    while (n && c->state != S_DEAD) {
        if (c->nleft) {
            size_t k = n < c->nleft ? n : c->nleft; scan(c, p, k, now); p += k; n -= k; c->nleft -= k;
            continue;
        }
        unsigned char ch = *p++; n--;
        if (ch != '\n') { if (c->nlen < (int)sizeof c->nline - 1) c->nline[c->nlen++] = ch; continue; }
        c->nline[c->nlen] = 0; c->nlen = 0; nats_line(c);
    }
}

static void ws_control(conn *c) {
    if (c->wop == 9) { pings++; if (!o.nopong) ws_write(c, 10, c->ctl, c->ctllen); }
    if (c->wop != 8) return;
    char why[160]; int code = c->ctllen >= 2 ? c->ctl[0] << 8 | c->ctl[1] : 1005;
    snprintf(why, sizeof why, "%d %.*s", code, c->ctllen > 2 ? c->ctllen - 2 : 0, (char *)c->ctl + 2);
    ws_write(c, 8, c->ctl, c->ctllen < 2 ? 0 : 2);
    fail(c, "closed with", why);
}
/* A server masks nothing, uses no bit that was not agreed upon, and keeps control frames short and whole. */
static int ws_valid(const conn *c) {
    int op = c->wop, control = op >= 8;
    return !(c->whdr[0] & 0x70) && !(c->whdr[1] & 0x80) && (op <= 2 || (op >= 8 && op <= 10)) &&
           !(control && (!(c->whdr[0] & 0x80) || c->wleft > sizeof c->ctl));
}
static void wsfeed(conn *c, const unsigned char *p, size_t n, uint64_t now) {
    while (n && c->state != S_DEAD) {
        if (c->wst == W_HDR) {
            c->whdr[c->whave++] = *p++; n--;
            if (c->whave < 2) continue;
            int l = c->whdr[1] & 127, need = l == 126 ? 4 : l == 127 ? 10 : 2;
            if (c->whave < need) continue;
            if (l == 126) c->wleft = c->whdr[2] << 8 | c->whdr[3];
            else if (l == 127) { c->wleft = 0; for (int i = 2; i < 10; i++) c->wleft = c->wleft << 8 | c->whdr[i]; }
            else c->wleft = l;
            c->wop = c->whdr[0] & 15; c->whave = 0; c->ctllen = 0;
            if (!ws_valid(c)) { protoerrs++; fail(c, "a frame that no server may send", ""); return; }
            if (c->wop == 1 && o.mode == M_WS) c->tst = 0; /* no mark goes on in another message */
            if (c->wleft) { c->wst = W_DATA; continue; }
        } else {
            size_t k = n < c->wleft ? n : c->wleft;
            if (c->wop >= 8) { memcpy(c->ctl + c->ctllen, p, k); c->ctllen += k; }
            else if (o.mode == M_NATS) natsfeed(c, p, k, now);
            else scan(c, p, k, now);
            p += k; n -= k; c->wleft -= k;
            if (c->wleft) continue;
            c->wst = W_HDR;
        }
        if (c->wop >= 8) ws_control(c);
    }
}

static void body(conn *c, const unsigned char *p, size_t n, uint64_t now) {
    if (o.mode != M_SSE) wsfeed(c, p, n, now);
    else if (c->chunked) unchunk(c, p, n, now);
    else scan(c, p, n, now);
}

static void die(conn *c, int failed) {
    if (c->state == S_DEAD) return;
    if (c->state == S_CONNECT || c->state == S_HEAD) { inflight--; nfailed++; }
    else nclosed++;
    (void)failed;
    epoll_ctl(ep, EPOLL_CTL_DEL, c->fd, NULL); close(c->fd); c->fd = -1; c->state = S_DEAD;
    free(c->head); c->head = NULL;
}

static void start(conn *c) {
    c->fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
    if (c->fd < 0) { perror("socket"); exit(1); }
    if (o.nsrc > 1) { /* spread source addresses 127.0.0.x */
        struct sockaddr_in s = { .sin_family = AF_INET };
        s.sin_addr.s_addr = htonl(0x7f000001u + (c->idx % o.nsrc));
        int one = 1; setsockopt(c->fd, SOL_IP, IP_BIND_ADDRESS_NO_PORT, &one, sizeof one);
        bind(c->fd, (void *)&s, sizeof s);
    }
    int one = 1; setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    if (c->stalled && o.rcvbuf) setsockopt(c->fd, SOL_SOCKET, SO_RCVBUF, &o.rcvbuf, sizeof o.rcvbuf);
    struct sockaddr_in a = { .sin_family = AF_INET, .sin_port = htons(o.port) };
    inet_pton(AF_INET, o.host, &a.sin_addr);
    c->state = S_CONNECT; c->t0 = c->asked = now_ns(); inflight++;
    struct epoll_event ev = { .events = EPOLLOUT, .data.ptr = c };
    epoll_ctl(ep, EPOLL_CTL_ADD, c->fd, &ev);
    if (connect(c->fd, (void *)&a, sizeof a) < 0 && errno != EINPROGRESS) die(c, 1);
}

/* RFC 6455's own example: one key for all, so that its answer is known. */
#define WS_KEY "dGhlIHNhbXBsZSBub25jZQ=="
#define WS_ACCEPT "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="

static void send_request(conn *c) {
    char b[16384], path[8000], h[1024]; int n;
    subst(path, sizeof path, o.path, c);
    n = snprintf(b, sizeof b, "%s %s HTTP/1.1\r\nHost: %s:%d\r\n", o.method, path, o.host, o.port);
    if (o.mode != M_SSE)
        n += sprintf(b + n, "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
                            "Sec-WebSocket-Key: " WS_KEY "\r\n");
    else n += sprintf(b + n, "Accept: text/event-stream\r\n");
    for (int i = 0; i < o.nhdr; i++) { subst(h, sizeof h, o.hdr[i], c); n += snprintf(b + n, sizeof b - n, "%s\r\n", h); }
    if (o.body) { subst(h, sizeof h, o.body, c); n += snprintf(b + n, sizeof b - n, "Content-Length: %zu\r\n\r\n%s", strlen(h), h); }
    else n += snprintf(b + n, sizeof b - n, "\r\n");
    if (send(c->fd, b, n, MSG_NOSIGNAL) != n) { die(c, 1); return; }
    c->state = S_HEAD; c->head = malloc(8192); c->headlen = 0;
    struct epoll_event ev = { .events = EPOLLIN, .data.ptr = c };
    epoll_ctl(ep, EPOLL_CTL_MOD, c->fd, &ev);
}

static void on_head(conn *c, const unsigned char *p, size_t n, uint64_t now) {
    size_t room = 8191 - c->headlen, k = n < room ? n : room;
    int before = c->headlen;
    memcpy(c->head + c->headlen, p, k); c->headlen += k; c->head[c->headlen] = 0;
    char *e = strstr(c->head, "\r\n\r\n");
    if (!e) { if (c->headlen >= 8191) die(c, 1); return; }
    size_t used = (e + 4 - c->head) - before;
    int st = 0; sscanf(c->head, "HTTP/1.%*d %d", &st);
    if (st != (o.mode == M_SSE ? 200 : 101)) {
        badstatus++; if (!first_status) { first_status = st; snprintf(first_err, sizeof first_err, "%.200s", c->head); }
        die(c, 1); return;
    }
    *e = 0;
    if (o.mode != M_SSE && !strstr(c->head, WS_ACCEPT)) { protoerrs++; fail(c, "no Sec-WebSocket-Accept", c->head); return; }
    c->chunked = strcasestr(c->head, "transfer-encoding: chunked") != NULL; c->cst = C_SIZE; c->cleft = 0;
    free(c->head); c->head = NULL;
    c->state = S_BODY; inflight--; nready++;
    if (now - c->t0 > conn_lat_max) conn_lat_max = now - c->t0;
    for (int i = 0; o.mode != M_SSE && i < o.nwssend; i++) say(c, o.wssend[i]);
    if (c->state == S_DEAD) return;
    if (c->stalled) { epoll_ctl(ep, EPOLL_CTL_DEL, c->fd, NULL); return; }
    if (used < n) body(c, p + used, n - used, now);
}

static unsigned char rb[1 << 18];
static void on_read(conn *c) {
    for (;;) {
        ssize_t n = recv(c->fd, rb, sizeof rb, MSG_DONTWAIT); recvs++;
        if (n == 0) { die(c, 1); return; }
        if (n < 0) { if (errno == EAGAIN || errno == EINTR) return; die(c, 1); return; }
        uint64_t now = now_ns(), before = delivered; bytes_in += n;
        if (c->state == S_HEAD) on_head(c, rb, n, now); else body(c, rb, n, now);
        if (delivered > before) bytes_event += n; /* keep-alives come by themselves */
        if (c->state == S_DEAD || n < (ssize_t)sizeof rb || c->stalled) return;
    }
}

static void jesc(FILE *f, const char *s) {
    for (; *s; s++) { if (*s == '"' || *s == '\\') fputc('\\', f); if ((unsigned char)*s < 32) fputc(' ', f); else fputc(*s, f); }
}
static void emit(const char *tag) {
    struct rusage r; getrusage(RUSAGE_SELF, &r);
    uint64_t n = now_ns(); uint64_t zero = 0, mn = UINT64_MAX, mx = 0; 
    for (int i = 0; i < o.conns; i++) if (!cs[i].stalled) { if (!cs[i].got) zero++; if (cs[i].got < mn) mn = cs[i].got; if (cs[i].got > mx) mx = cs[i].got; }
    double span = t_last > t_first ? (t_last - t_first) / 1e9 : 0;
    printf("%s {\"delivered\":%lu,\"expected\":%lu,\"ready\":%d,\"failed\":%d,\"closed\":%d,\"bad_status\":%lu,\"protocol_errors\":%lu,"
           "\"misrouted\":%lu,\"gaps\":%lu,\"dups\":%lu,\"conns_zero\":%lu,\"conn_min\":%lu,\"conn_max\":%lu,"
           "\"bytes\":%lu,\"event_bytes\":%lu,\"recvs\":%lu,\"pings\":%lu,\"span_s\":%.3f,\"fps\":%.1f,\"idle_ms\":%.0f,"
           "\"lat_ms\":{\"mean\":%.3f,\"p50\":%.3f,\"p90\":%.3f,\"p95\":%.3f,\"p99\":%.3f,\"p999\":%.3f,\"max\":%.3f},"
           "\"first_ms\":{\"n\":%lu,\"p50\":%.3f,\"p99\":%.3f,\"max\":%.3f},"
           "\"connect_max_ms\":%.1f,\"client_cpu_s\":%.3f,\"first_error\":\"",
           tag, delivered, expect_total, nready, nfailed, nclosed, badstatus, protoerrs, misrouted, gaps, dups, zero,
           mn == UINT64_MAX ? 0 : mn, mx, bytes_in, bytes_event, recvs, pings, span, span > 0 ? delivered / span : 0,
           t_last ? (n - t_last) / 1e6 : -1,
           delivered ? lat_sum / delivered / 1e6 : -1, pct(hist, .5), pct(hist, .9), pct(hist, .95), pct(hist, .99), pct(hist, .999), lat_max / 1e6,
           count(first), pct(first, .5), pct(first, .99), pct(first, 1),
           conn_lat_max / 1e6,
           r.ru_utime.tv_sec + r.ru_stime.tv_sec + (r.ru_utime.tv_usec + r.ru_stime.tv_usec) / 1e6);
    jesc(stdout, first_err); printf("\"}\n"); fflush(stdout);
}
static void reset(void) {
    delivered = misrouted = gaps = dups = bytes_in = bytes_event = recvs = t_first = t_last = lat_max = 0; lat_sum = 0;
    memset(hist, 0, sizeof hist); memset(first, 0, sizeof first);
    for (int i = 0; i < o.conns; i++) { cs[i].got = 0; memset(cs[i].last, 0, o.each * sizeof *cs[i].last); }
}

static void usage(void) {
    fprintf(stderr,
    "hubload --port P --path '/sse/{s}' [options]\n"
    "  --host IP (127.0.0.1)  --mode sse|ws|nats (NATS in WebSocket frames)  --conns N\n"
    "  --sessions S  --each K (conn i joins the sessions i, i+N, i+2N, ..., modulo S)\n"
    "  --method GET  --body TEXT  --header 'K: V' (repeat)\n"
    "  in path, header, body, ws-send and SEND: {s}=session {S}=the same in 12 digits {c}=connection [...]=once for each of its sessions\n"
    "  --ws-send TEXT (repeat; a frame sent after the handshake)  --no-pong\n"
    "  --concurrency C (64 handshakes at once)  --connect-rate N/S (unlimited)  --connect-timeout SEC (30 each)\n"
    "  --stall K (first K connections never read)  --stall-rcvbuf BYTES  --sources K (spread over 127.0.0.1..K)\n");
    exit(2);
}

int main(int argc, char **argv) {
    static struct option L[] = {
        {"host",1,0,'h'},{"port",1,0,'p'},{"path",1,0,'u'},{"mode",1,0,'m'},{"conns",1,0,'n'},{"sessions",1,0,'s'},{"each",1,0,'e'},
        {"header",1,0,'H'},{"method",1,0,'X'},{"body",1,0,'d'},{"ws-send",1,0,'w'},{"no-pong",0,0,'P'},
        {"concurrency",1,0,'c'},{"connect-timeout",1,0,'t'},{"stall",1,0,'k'},{"stall-rcvbuf",1,0,'b'},{"sources",1,0,'S'},{"connect-rate",1,0,'R'},{0,0,0,0}};
    int ch;
    while ((ch = getopt_long(argc, argv, "", L, NULL)) != -1) switch (ch) {
        case 'h': o.host = optarg; break; case 'p': o.port = atoi(optarg); break; case 'u': o.path = optarg; break;
        case 'm': o.mode = !strcmp(optarg, "ws") ? M_WS : !strcmp(optarg, "nats") ? M_NATS : M_SSE; break;
        case 'n': o.conns = atoi(optarg); break; case 's': o.sessions = atoi(optarg); break; case 'e': o.each = atoi(optarg); break;
        case 'H': if (o.nhdr < 32) o.hdr[o.nhdr++] = optarg; break; case 'X': o.method = optarg; break; case 'd': o.body = optarg; break;
        case 'w': if (o.nwssend < 8) o.wssend[o.nwssend++] = optarg; break; case 'P': o.nopong = 1; break;
        case 'c': o.conc = atoi(optarg); break; case 't': o.cpertimeout = atoi(optarg); break;
        case 'k': o.stall = atoi(optarg); break; case 'b': o.rcvbuf = atoi(optarg); break; case 'S': o.nsrc = atoi(optarg); break; case 'R': o.crate = atof(optarg); break;
        default: usage(); }
    struct rlimit rl; getrlimit(RLIMIT_NOFILE, &rl); rl.rlim_cur = rl.rlim_max; setrlimit(RLIMIT_NOFILE, &rl);
    if (strncmp(o.host, "127.", 4)) { fprintf(stderr, "loopback only\n"); return 2; }
    for (int k = 1; k < o.each; k++)
        if ((long)k * o.conns % o.sessions == 0) { fprintf(stderr, "a connection cannot join a session twice\n"); return 2; }
    cs = calloc(o.conns, sizeof *cs);
    for (int i = 0; i < o.conns; i++) {
        cs[i].idx = i; cs[i].fd = -1; cs[i].stalled = i < o.stall;
        cs[i].last = calloc(o.each, sizeof *cs[i].last);
    }
    ep = epoll_create1(0);
    fcntl(0, F_SETFL, fcntl(0, F_GETFL) | O_NONBLOCK);
    struct epoll_event ev = { .events = EPOLLIN, .data.ptr = NULL }; epoll_ctl(ep, EPOLL_CTL_ADD, 0, &ev);
    struct epoll_event evs[512]; char cmd[4096], sendtext[4096]; int cl = 0, announced = 0, stop = 0; uint64_t t0 = now_ns(), lastsweep = t0;
    int nextsend = o.conns; double sendrate = 0; uint64_t sendt0 = 0; /* SEND goes out at a rate, a connection after the other */
    while (!stop) {
        while (nextc < o.conns && inflight < o.conc &&
               (o.crate <= 0 || nextc <= (now_ns() - t0) / 1e9 * o.crate)) start(&cs[nextc++]);
        if (!announced && nextc == o.conns && inflight == 0) {
            announced = 1;
            printf("READY {\"ready\":%d,\"failed\":%d,\"connect_s\":%.3f,\"connect_max_ms\":%.1f,\"first_error\":\"", nready, nfailed,
                   (now_ns() - t0) / 1e9, conn_lat_max / 1e6);
            jesc(stdout, first_err); printf("\"}\n"); fflush(stdout);
        }
        for (; nextsend < o.conns && nextsend <= (now_ns() - sendt0) / 1e9 * sendrate; nextsend++) {
            conn *c = &cs[nextsend];
            if (c->state == S_BODY) { c->asked = now_ns(); say(c, sendtext); }
        }
        int n = epoll_wait(ep, evs, 512, nextsend < o.conns ? 1 : announced ? 1000 : o.crate > 0 ? 1 : 100);
        for (int i = 0; i < n; i++) {
            conn *c = evs[i].data.ptr;
            if (!c) {
                ssize_t k = read(0, cmd + cl, sizeof cmd - 1 - cl);
                if (k == 0) { stop = 1; break; }
                if (k < 0) continue;
                cl += k; cmd[cl] = 0; char *nl;
                while ((nl = strchr(cmd, '\n'))) {
                    *nl = 0;
                    if (!strncmp(cmd, "STOP", 4)) stop = 1;
                    else if (!strncmp(cmd, "STAT", 4)) emit("STAT");
                    else if (!strncmp(cmd, "RESET", 5)) reset();
                    else if (!strncmp(cmd, "EXPECT", 6)) expect_total = strtoull(cmd + 6, 0, 10);
                    else if (sscanf(cmd, "SEND %lf %4095[^\n]", &sendrate, sendtext) == 2) { nextsend = 0; sendt0 = now_ns(); }
                    memmove(cmd, nl + 1, strlen(nl + 1) + 1); cl = strlen(cmd);
                }
                continue;
            }
            if (c->state == S_CONNECT) {
                int e = 0; socklen_t l = sizeof e; getsockopt(c->fd, SOL_SOCKET, SO_ERROR, &e, &l);
                if (e) fail(c, "connect:", strerror(e));
                else send_request(c);
            } else if (c->state == S_HEAD || c->state == S_BODY) on_read(c);
        }
        uint64_t t = now_ns();
        if (!announced && t - lastsweep > 1000000000ull) {
            lastsweep = t;
            for (int i = 0; i < nextc; i++)
                if ((cs[i].state == S_CONNECT || cs[i].state == S_HEAD) && t - cs[i].t0 > o.cpertimeout * 1000000000ull) {
                    fail(&cs[i], "handshake timeout", "");
                }
        }
    }
    emit("RESULT");
    return 0;
}

/* A TLS client that does as little as it can before its handshake: the worst case for whoever must probe it in time.
 * Arguments: port, key log. Built with OpenSSL linked statically. */
#include <arpa/inet.h>
#include <openssl/ssl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>

static FILE *keys;

static void log_key(const SSL *ssl, const char *line) { fprintf(keys, "%s\n", line); }

int main(int argc, char **argv) {
    struct timespec began, now;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &began);
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons(atoi(argv[1]))};
    to.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    int wire = socket(AF_INET, SOCK_STREAM, 0);
    keys = fopen(argv[2], "a");
    if (argc != 3 || !keys || connect(wire, (struct sockaddr *)&to, sizeof to)) return 1;
    SSL_CTX *context = SSL_CTX_new(TLS_client_method());
    SSL_CTX_set_keylog_callback(context, log_key);
    SSL *ssl = SSL_new(context);
    SSL_set_fd(ssl, wire);
    if (SSL_connect(ssl) != 1) return 2;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &now);
    fprintf(stderr, "%ld us\n", (now.tv_sec - began.tv_sec) * 1000000 + (now.tv_nsec - began.tv_nsec) / 1000);
    char answer[16] = {0};
    if (SSL_write(ssl, "hello\n", 6) != 6 || SSL_read(ssl, answer, 15) != 4 || strcmp(answer, "yes\n")) return 3;
    return fclose(keys);
}

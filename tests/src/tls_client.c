/* A TLS client that does as little as it can before its handshake: the worst case for whoever must probe it in time.
 * Argument: port. Built with OpenSSL linked statically. */
#include <arpa/inet.h>
#include <openssl/ssl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

int main(int argc, char **argv) {
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons(atoi(argv[1]))};
    to.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    int wire = socket(AF_INET, SOCK_STREAM, 0);
    if (argc != 2 || connect(wire, (struct sockaddr *)&to, sizeof to)) return 1;
    SSL_CTX *context = SSL_CTX_new(TLS_client_method());
    SSL *ssl = SSL_new(context);
    SSL_set_fd(ssl, wire);
    if (SSL_connect(ssl) != 1) return 2;
    char answer[16] = {0};
    if (SSL_write(ssl, "hello\n", 6) != 6 || SSL_read(ssl, answer, 15) != 4 || strcmp(answer, "yes\n")) return 3;
    return 0;
}

/* Derives keys from secrets that are nobody's, as often as it is told, then keeps connections waiting for theirs, and goes on deriving.
 * Arguments: port, secrets before, connections, seconds. Says how many secrets it made up. */
#include <arpa/inet.h>
#include <openssl/core_names.h>
#include <openssl/kdf.h>
#include <openssl/ssl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

static unsigned long made;

static void derive(EVP_KDF_CTX *kdf) {
    static unsigned char secret[48];
    unsigned char key[32];
    int mode = EVP_KDF_HKDF_MODE_EXPAND_ONLY;
    memcpy(secret, &made, sizeof made);
    OSSL_PARAM list[] = {
        OSSL_PARAM_construct_int(OSSL_KDF_PARAM_MODE, &mode),
        OSSL_PARAM_construct_utf8_string(OSSL_KDF_PARAM_DIGEST, "SHA384", 0),
        OSSL_PARAM_construct_octet_string(OSSL_KDF_PARAM_KEY, secret, sizeof secret),
        OSSL_PARAM_construct_octet_string(OSSL_KDF_PARAM_PREFIX, "tls13 ", 6),
        OSSL_PARAM_construct_octet_string(OSSL_KDF_PARAM_LABEL, "key", 3),
        OSSL_PARAM_construct_end(),
    };
    if (EVP_KDF_derive(kdf, key, sizeof key, list) != 1) exit(3);
    made++;
}

/* Says hello, waits for the answer, and goes on with a record that is under no key. */
static void keep_waiting(SSL_CTX *context, struct sockaddr_in *to) {
    unsigned char bytes[4096] = {0x17, 3, 3, 0, 64};
    int wire = socket(AF_INET, SOCK_STREAM, 0);
    if (connect(wire, (struct sockaddr *)to, sizeof *to)) {
        perror("connect");
        exit(4);
    }
    SSL *ssl = SSL_new(context);
    BIO *out = BIO_new(BIO_s_mem());
    SSL_set_bio(ssl, BIO_new(BIO_s_mem()), out);
    SSL_connect(ssl);
    unsigned char hello[4096];
    int length = BIO_read(out, hello, sizeof hello);
    if (length <= 0 || write(wire, hello, length) != length) exit(5);
    struct pollfd answer = {.fd = wire, .events = POLLIN};
    if (poll(&answer, 1, 60000) != 1) exit(6);
    /* All of it. */
    usleep(20000);
    if (write(wire, bytes, 69) != 69) exit(7);
}

int main(int argc, char **argv) {
    if (argc != 5) return 1;
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons(atoi(argv[1]))};
    to.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    SSL_CTX *context = SSL_CTX_new(TLS_client_method());
    EVP_KDF_CTX *kdf = EVP_KDF_CTX_new(EVP_KDF_fetch(NULL, "TLS13-KDF", NULL));
    if (!context || !kdf) return 2;
    for (long left = atol(argv[2]); left > 0; left--) derive(kdf);
    for (int left = atoi(argv[3]); left > 0; left--) keep_waiting(context, &to);
    for (time_t end = time(NULL) + atoi(argv[4]); time(NULL) < end;) derive(kdf);
    printf("%lu\n", made);
    return 0;
}

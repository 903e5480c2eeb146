// A client in Go: database/sql with lib/pq, or crypto/tls alone.
//
// statements DSN CONNECTIONS STATEMENTS TAG: connections at once, and that many statements on each, all of them different.
// resume ADDRESS AUTHORITY TIMES: TLS connections one after another that resume the session before; prints for each whether
// it was resumed. With SSLKEYLOGFILE set, crypto/tls's own key log goes there.
package main

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"database/sql"
	"fmt"
	"net/http"
	"os"
	"strconv"
	"sync"

	_ "github.com/lib/pq"
)

func check(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func number(text string) int {
	value, err := strconv.Atoi(text)
	check(err)
	return value
}

func statements(dsn string, connections, each int, tag string) {
	database, err := sql.Open("postgres", dsn)
	check(err)
	var done, open sync.WaitGroup
	done.Add(connections)
	open.Add(connections)
	for number := 0; number < connections; number++ {
		go func(number int) {
			defer done.Done()
			connection, err := database.Conn(context.Background())
			check(err)
			open.Done()
			open.Wait()
			for count := 0; count < each; count++ {
				var told string
				text := fmt.Sprintf("select '%s %d/%d'", tag, number, count)
				check(connection.QueryRowContext(context.Background(), text).Scan(&told))
				check(connection.QueryRowContext(context.Background(), text+" || $1", "bound").Scan(&told))
			}
			connection.Close()
		}(number)
	}
	done.Wait()
	check(database.Close())
}

func resume(address, authority string, times int) {
	pem, err := os.ReadFile(authority)
	check(err)
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(pem)
	configuration := &tls.Config{RootCAs: pool, ServerName: "localhost", ClientSessionCache: tls.NewLRUClientSessionCache(4)}
	if path := os.Getenv("SSLKEYLOGFILE"); path != "" {
		log, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
		check(err)
		configuration.KeyLogWriter = log
	}
	for count := 0; count < times; count++ {
		connection, err := tls.Dial("tcp", address, configuration)
		check(err)
		fmt.Fprintf(connection, "GET /%d HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n", count)
		response, err := http.ReadResponse(bufio.NewReader(connection), nil)
		check(err)
		buffer := make([]byte, 1<<16)
		for {
			// The end of the answer is behind the session ticket.
			if _, err := response.Body.Read(buffer); err != nil {
				break
			}
		}
		fmt.Println(connection.ConnectionState().DidResume)
		connection.Close()
	}
}

func main() {
	fmt.Fprintln(os.Stderr, "pid", os.Getpid())
	arguments := os.Args[2:]
	switch os.Args[1] {
	case "statements":
		statements(arguments[0], number(arguments[1]), number(arguments[2]), arguments[3])
	case "resume":
		resume(arguments[0], arguments[1], number(arguments[2]))
	default:
		os.Exit(2)
	}
}

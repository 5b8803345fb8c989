package main

import (
	"context"
	"encoding/binary"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"sync"
)

// forward leads each connection to its port on to another place.
func forward(ctx context.Context, fs *flag.FlagSet, args []string) error {
	port := fs.Int("port", 9000, "")
	plain, err := parse(fs, args, 1, 1)
	if err != nil {
		return err
	}
	l, err := net.Listen("tcp", fmt.Sprintf(":%d", *port))
	if err != nil {
		return err
	}
	context.AfterFunc(ctx, func() { l.Close() })
	for {
		c, err := l.Accept()
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return err
		}
		go func() {
			defer c.Close()
			to, err := new(net.Dialer).DialContext(ctx, "tcp", plain[0])
			if err != nil {
				fmt.Println(err)
				return
			}
			defer to.Close()
			go func() { _, _ = io.Copy(to, c) }() // ends with the connections
			_, _ = io.Copy(c, to)
		}()
	}
}

// grpcHealth answers gRPC's health checks. A service is well until a POST to
// /?service=NAME&ok=false. It speaks just enough of gRPC to need no module.
func grpcHealth(ctx context.Context, fs *flag.FlagSet, args []string) error {
	port := fs.Int("port", 9090, "")
	if _, err := parse(fs, args, 0, 0); err != nil {
		return err
	}
	var ill sync.Map // by service
	mux := http.NewServeMux()
	mux.HandleFunc("POST /{$}", func(_ http.ResponseWriter, r *http.Request) {
		ill.Store(r.FormValue("service"), r.FormValue("ok") == "false")
	})
	mux.HandleFunc("POST /grpc.health.v1.Health/Check", func(w http.ResponseWriter, r *http.Request) {
		message, err := io.ReadAll(r.Body)
		if err != nil {
			return
		}
		const serving, notServing = 1, 2
		status := byte(serving)
		if bad, _ := ill.Load(healthService(message)); bad == true {
			status = notServing
		}
		w.Header().Set("Content-Type", "application/grpc")
		w.Header().Set("Trailer", "Grpc-Status")
		answer := []byte{0, 0, 0, 0, 0, 1 << 3, status} // field 1, a number
		binary.BigEndian.PutUint32(answer[1:], 2)
		_, _ = w.Write(answer)
		w.Header().Set("Grpc-Status", "0")
	})
	srv := &http.Server{Addr: fmt.Sprintf(":%d", *port), Handler: mux, Protocols: new(http.Protocols)}
	srv.Protocols.SetHTTP1(true)
	srv.Protocols.SetUnencryptedHTTP2(true)
	context.AfterFunc(ctx, func() { srv.Close() })
	if err := srv.ListenAndServe(); err != http.ErrServerClosed {
		return err
	}
	return nil
}

// healthService is the name in a request: behind a prefix of five bytes field 1,
// a text of less than 128 bytes.
func healthService(message []byte) string {
	if len(message) < 7 || message[5] != 1<<3|2 || len(message) < 7+int(message[6]) {
		return ""
	}
	return string(message[7 : 7+int(message[6])])
}

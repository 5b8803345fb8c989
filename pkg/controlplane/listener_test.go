package controlplane

import (
	"context"
	"crypto/tls"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"testing"
)

// startHTTP2 serves h by TLS and HTTP/2, and gives a client.
func startHTTP2(t *testing.T, h http.Handler) (*http.Server, *http.Client, string) {
	t.Helper()
	inner, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l := newListener(inner)
	pair := httptest.NewTLSServer(nil)
	pair.Close()
	s := &http.Server{Handler: l.count(h), TLSConfig: &tls.Config{Certificates: pair.TLS.Certificates}}
	go func() { _ = s.ServeTLS(l, "", "") }() // ends with Shutdown
	client := &http.Client{Transport: &http.Transport{ForceAttemptHTTP2: true, TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}}
	t.Cleanup(client.CloseIdleConnections)
	return s, client, "https://" + inner.Addr().String()
}

func TestAServerEndsWithoutWaitingForClientsThatJustWait(t *testing.T) {
	asked, answer := make(chan struct{}), make(chan struct{})
	s, client, url := startHTTP2(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/slow" {
			close(asked)
			<-answer
		}
		_, _ = io.WriteString(w, r.Proto)
	}))
	got, err := client.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	if body, err := io.ReadAll(got.Body); err != nil || string(body) != "HTTP/2.0" {
		t.Fatalf("answered by %s, %v", body, err)
	}
	got.Body.Close()
	slow := make(chan string, 1)
	go func() {
		got, err := client.Get(url + "/slow")
		if err != nil {
			slow <- err.Error()
			return
		}
		defer got.Body.Close()
		body, err := io.ReadAll(got.Body)
		if err != nil {
			body = []byte(err.Error())
		}
		slow <- string(body)
	}()
	<-asked
	ended := make(chan error, 1)
	go func() { ended <- s.Shutdown(context.Background()) }()
	// The listener is closed when nobody gets in any more.
	for {
		c, err := net.Dial("tcp", url[len("https://"):])
		if err != nil {
			break
		}
		c.Close()
	}
	select {
	case err := <-ended:
		t.Fatalf("it ended before it had answered: %v", err)
	default:
	}
	close(answer)
	if said := <-slow; said != "HTTP/2.0" {
		t.Errorf("what was being answered got %q", said)
	}
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

package datastore

import (
	"bytes"
	"context"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
)

func open(t *testing.T, path string, seed ...KeyValue) (*Store, *clientv3.Client) {
	t.Helper()
	s, err := Open(t.Context(), Config{Path: path, Seed: func() ([]KeyValue, error) { return seed, nil }})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	c, err := clientv3.New(clientv3.Config{
		Endpoints: []string{"passthrough:///store"},
		DialOptions: []grpc.DialOption{
			grpc.WithTransportCredentials(insecure.NewCredentials()),
			grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return s.Dial(ctx, "", "") }),
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return s, c
}

func TestNewStoreHasItsSeed(t *testing.T) {
	path := filepath.Join(t.TempDir(), "db", "state.db")
	s, c := open(t, path, KeyValue{"/registry/a", []byte("1")}, KeyValue{"/registry/b", []byte("2")})
	r, err := c.Get(t.Context(), "/registry/b")
	if err != nil {
		t.Fatal(err)
	}
	if len(r.Kvs) != 1 || string(r.Kvs[0].Value) != "2" {
		t.Fatalf("got %v", r.Kvs)
	}
	s.Close()

	// The seed is for new stores alone, and the file is free again after Close.
	_, c = open(t, path, KeyValue{"/registry/c", []byte("3")})
	for key, want := range map[string]int{"/registry/a": 1, "/registry/c": 0} {
		r, err := c.Get(t.Context(), key)
		if err != nil {
			t.Fatal(err)
		}
		if len(r.Kvs) != want {
			t.Errorf("%s: %d entries, want %d", key, len(r.Kvs), want)
		}
	}
}

func TestBrokenStoreIsToldAndLeftAlone(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state.db")
	garbage := bytes.Repeat([]byte("not a database "), 1000)
	if err := os.WriteFile(path, garbage, 0o600); err != nil {
		t.Fatal(err)
	}
	_, err := Open(t.Context(), Config{Path: path})
	if err == nil || !strings.Contains(err.Error(), path) {
		t.Fatalf("error %v does not name the file", err)
	}
	if left, err := os.ReadFile(path); err != nil || !bytes.Equal(left, garbage) {
		t.Fatalf("the damaged file was changed (%v)", err)
	}
}

func TestWrongSynchronousIsRefused(t *testing.T) {
	_, err := Open(t.Context(), Config{Path: filepath.Join(t.TempDir(), "x"), Synchronous: "off"})
	if err == nil || !strings.Contains(err.Error(), "full or normal") {
		t.Fatalf("got %v", err)
	}
}

package assets

import (
	"bytes"
	"context"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	clientv3 "go.etcd.io/etcd/client/v3"
)

func TestTheFolderHasLinksToKnarr(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "bin")
	for _, exe := range []string{"/usr/bin/knarr", "/opt/knarr", "/opt/knarr"} {
		if err := Link(dir, exe); err != nil {
			t.Fatal(err)
		}
		for _, name := range Names() {
			if to, err := os.Readlink(filepath.Join(dir, name)); err != nil || to != exe {
				t.Errorf("%s leads to %s, %v", name, to, err)
			}
		}
	}
	if entries, err := os.ReadDir(dir); err != nil || len(entries) != len(Names()) {
		t.Errorf("%v, %v", entries, err)
	}
	// The user's own binary is not replaced.
	own := filepath.Join(dir, "etcd")
	if err := os.Remove(own); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(own, []byte("mine"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := Link(dir, "/opt/knarr"); err == nil || !strings.Contains(err.Error(), "no link") {
		t.Errorf("%v", err)
	}
	if data, err := os.ReadFile(own); err != nil || string(data) != "mine" {
		t.Errorf("%q, %v", data, err)
	}
}

// envtest asks for this flag by the help's text.
func TestHelpOfEtcdIsReadByEnvtest(t *testing.T) {
	var out bytes.Buffer
	if err := Etcd(t.Context(), []string{"--help"}, &out); err != nil {
		t.Fatal(err)
	}
	if !regexp.MustCompile(`(?m)^\s*--unsafe-no-fsync\b`).Match(out.Bytes()) {
		t.Errorf("%s", &out)
	}
}

func TestFlagsOfEtcd(t *testing.T) {
	for line, want := range map[string]string{
		"--data-dir=d --listen-client-urls=http://127.0.0.1:1 --advertise-client-urls=http://127.0.0.1:1 --listen-peer-urls=http://localhost:0 --unsafe-no-fsync=true": "",
		"-data-dir d -listen-client-urls http://127.0.0.1:1 --unsafe-no-fsync":                                                                                         "",
		"--data-dir d --listen-client-urls http://127.0.0.1:1 --name me --enable-v2 --quota-backend-bytes 8589934592 --unsafe-no-fsync":                                "",
		"--data-dir d --liste-client-urls http://127.0.0.1:1":                                                                                                          "unknown flag",
		"serve": "unexpected argument",
	} {
		f, _, err := parseEtcd(strings.Fields(line))
		switch {
		case want != "" && (err == nil || !strings.Contains(err.Error(), want)):
			t.Errorf("%s: %v", line, err)
		case want == "" && (err != nil || f.dataDir != "d" || f.clientURLs != "http://127.0.0.1:1" || !f.noSync):
			t.Errorf("%s: %v, %+v", line, err, f)
		}
	}
	for _, bad := range []string{"https://127.0.0.1:1", "127.0.0.1:1", "http://127.0.0.1"} {
		if err := Etcd(t.Context(), []string{"--data-dir", t.TempDir(), "--listen-client-urls=" + bad}, io.Discard); err == nil || !strings.Contains(err.Error(), "http://host:port") {
			t.Errorf("%s: %v", bad, err)
		}
	}
}

// TestOnePortAnswersGRPCAndHTTP: as envtest, and then the API server, ask it.
func TestOnePortAnswersGRPCAndHTTP(t *testing.T) {
	free, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	at := "http://" + free.Addr().String()
	if err := free.Close(); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	for range 2 {
		ctx, stop := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() {
			ended <- Etcd(ctx, []string{"--data-dir=" + dir, "--listen-client-urls=" + at, "--advertise-client-urls=" + at, "--listen-peer-urls=http://localhost:0", "--unsafe-no-fsync=true"}, io.Discard)
		}()
		c, err := clientv3.New(clientv3.Config{Endpoints: []string{at}, Context: t.Context()})
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		// The client waits until it is there.
		created, err := c.Txn(t.Context()).If(clientv3.Compare(clientv3.ModRevision("/k"), "=", 0)).
			Then(clientv3.OpPut("/k", "v")).Else(clientv3.OpGet("/k")).Commit()
		if err != nil {
			t.Fatal(err)
		}
		got, err := c.Get(t.Context(), "/k")
		if err != nil || len(got.Kvs) != 1 || string(got.Kvs[0].Value) != "v" {
			t.Fatalf("%v, %v", got, err)
		}
		rev := got.Kvs[0].ModRevision
		w := c.Watch(t.Context(), "/k", clientv3.WithRev(rev))
		if r := <-w; len(r.Events) != 1 || r.Events[0].Kv.ModRevision != rev {
			t.Errorf("watch: %+v (created %t)", r, created.Succeeded)
		}
		for path, want := range map[string]string{"/health": `"health":"true"`, "/version": `"etcdserver":"3.6.0"`} {
			r, err := http.Get(at + path)
			if err != nil {
				t.Fatal(err)
			}
			body, err := io.ReadAll(r.Body)
			r.Body.Close()
			if err != nil || r.StatusCode != http.StatusOK || !strings.Contains(string(body), want) {
				t.Errorf("%s: %s %s, %v", path, r.Status, body, err)
			}
		}
		// The watch is open still; the second round finds what the first wrote.
		stop()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	}
}

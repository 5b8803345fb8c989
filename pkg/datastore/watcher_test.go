package datastore

import (
	"context"
	"errors"
	"path/filepath"
	"testing"

	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc/metadata"
)

// etcd's client keeps these options of a watch to itself.
func TestOptionsOfEtcdsClientAreSeen(t *testing.T) {
	for name, with := range map[string]clientv3.OpOption{
		"createdNotify": clientv3.WithCreatedNotify(), "progressNotify": clientv3.WithProgressNotify(),
	} {
		if option(clientv3.OpGet("a"), name) || !option(clientv3.OpGet("a", with), name) {
			t.Errorf("%s is not seen", name)
		}
	}
}

// As in etcd's client, watches whose contexts have the same metadata are told
// progress together, and others are not.
func TestProgressIsToldToTheStreamThatAskedForIt(t *testing.T) {
	eachDriver(t, testProgressIsToldToTheStreamThatAskedForIt)
}

func testProgressIsToldToTheStreamThatAskedForIt(t *testing.T) {
	s, _ := open(t, filepath.Join(t.TempDir(), "state.db"))
	c := s.Client().Client
	ours := metadata.AppendToOutgoingContext(t.Context(), "stream", "ours")
	first, second := c.Watch(ours, "/a/", clientv3.WithPrefix()), c.Watch(ours, "/b/", clientv3.WithPrefix())
	other := c.Watch(t.Context(), "/a/", clientv3.WithPrefix())
	put, err := c.Put(t.Context(), "/a/1", "x")
	if err != nil {
		t.Fatal(err)
	}
	if err := c.RequestProgress(ours); err != nil {
		t.Fatal(err)
	}
	if r := <-first; len(r.Events) != 1 {
		t.Errorf("before its event, a watch says %+v", r)
	}
	for i, w := range []clientv3.WatchChan{first, second} {
		if r := <-w; !r.IsProgressNotify() || r.Header.Revision != put.Header.Revision {
			t.Errorf("watch %d: %+v, want progress up to %d", i, r, put.Header.Revision)
		}
	}
	if r := <-other; len(r.Events) != 1 {
		t.Errorf("a watch of another stream says %+v", r)
	}
	select {
	case r := <-other:
		t.Errorf("a watch of another stream says %+v", r)
	default:
	}
	if err := c.Close(); err != nil && !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	if err := c.RequestProgress(ours); err == nil {
		t.Error("progress is asked for after the end")
	}
}

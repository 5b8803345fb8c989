package datastore

import (
	"context"
	"math/rand/v2"
	"net"
	"path/filepath"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/test/bufconn"
)

// served is a store that is reached as another process reaches it.
func served(t *testing.T) subject {
	t.Helper()
	s, err := Open(t.Context(), Config{Path: filepath.Join(t.TempDir(), "state.db"), CompactEvery: time.Hour})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	lis := bufconn.Listen(1 << 20)
	g := grpc.NewServer()
	s.Register(g)
	stopped := make(chan error, 1)
	go func() { stopped <- g.Serve(lis) }()
	t.Cleanup(func() {
		g.Stop()
		if err := <-stopped; err != nil {
			t.Error(err)
		}
	})
	c, err := clientv3.New(clientv3.Config{
		Endpoints:   []string{"http://store"},
		DialOptions: []grpc.DialOption{grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return lis.DialContext(ctx) })},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return subject{"sqlite", c, true, true}
}

func TestAStoreThatIsServedHasTheHistoryOfEtcd(t *testing.T) {
	s := served(t)
	s.history(t, rand.New(rand.NewPCG(1, 2)), "/history/0/")
	if r, err := s.Status(t.Context(), "http://store"); err != nil || r.Version != etcdVersion {
		t.Errorf("status: %v, %v", r, err)
	}
}

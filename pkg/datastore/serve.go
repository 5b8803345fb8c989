package datastore

import (
	"context"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
)

// Register has a gRPC server answer etcd's API out of the store, as far as the
// Kubernetes API server asks for it. Close waits for the streams of g, so stop g
// before.
func (s *Store) Register(g *grpc.Server) {
	etcdserverpb.RegisterKVServer(g, kvServer{kvClient{s.api, s.guard}})
	etcdserverpb.RegisterWatchServer(g, watchServer{s})
	etcdserverpb.RegisterLeaseServer(g, s.api)
	etcdserverpb.RegisterClusterServer(g, s.api)
	etcdserverpb.RegisterMaintenanceServer(g, s.api)
	h := health.NewServer()
	h.SetServingStatus("", healthpb.HealthCheckResponse_SERVING)
	healthpb.RegisterHealthServer(g, h)
}

// kvServer asks as the clients in this process do, so that the guard sees it.
type kvServer struct{ c kvClient }

var _ etcdserverpb.KVServer = kvServer{}

func (s kvServer) Range(ctx context.Context, r *etcdserverpb.RangeRequest) (*etcdserverpb.RangeResponse, error) {
	return s.c.Range(ctx, r)
}

func (s kvServer) Put(ctx context.Context, r *etcdserverpb.PutRequest) (*etcdserverpb.PutResponse, error) {
	return s.c.Put(ctx, r)
}

func (s kvServer) DeleteRange(ctx context.Context, r *etcdserverpb.DeleteRangeRequest) (*etcdserverpb.DeleteRangeResponse, error) {
	return s.c.DeleteRange(ctx, r)
}

func (s kvServer) Txn(ctx context.Context, r *etcdserverpb.TxnRequest) (*etcdserverpb.TxnResponse, error) {
	return s.c.Txn(ctx, r)
}

func (s kvServer) Compact(ctx context.Context, r *etcdserverpb.CompactionRequest) (*etcdserverpb.CompactionResponse, error) {
	return s.c.Compact(ctx, r)
}

// watchServer keeps the store from closing while a stream is served.
type watchServer struct{ s *Store }

var _ etcdserverpb.WatchServer = watchServer{}

// Watch implements etcdserverpb.WatchServer.
func (w watchServer) Watch(ws etcdserverpb.Watch_WatchServer) error {
	ended := make(chan error, 1)
	if !w.s.api.serve(func() { ended <- w.s.api.Watch(ws) }) {
		return errClosed
	}
	return <-ended
}

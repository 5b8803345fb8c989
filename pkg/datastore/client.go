package datastore

import (
	"context"
	"io"
	"sync"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/client/v3/kubernetes"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// Client returns an etcd client whose requests are plain function calls into the
// store: nothing is marshalled and no connection exists. Clients cost little,
// and each has a watch stream of its own, so that the progress of one resource
// never waits for another. The bytes it returns must not be changed.
func (s *Store) Client() *kubernetes.Client {
	c := clientv3.NewCtxClient(s.ctx)
	c.KV = clientv3.NewKVFromKVClient(kvClient{s.api, s.guard}, c)
	if s.api.engine != nil {
		c.Watcher = newWatcher(s.ctx, s.api)
	} else {
		c.Watcher = clientv3.NewWatchFromWatchClient(watchClient{s.api, s.ctx}, c)
	}
	c.Lease = clientv3.NewLeaseFromLeaseClient(leaseClient{s.api}, c, 0)
	c.Maintenance = clientv3.NewMaintenanceFromMaintenanceClient(maintenanceClient{s.api}, c)
	kc := &kubernetes.Client{Client: c}
	kc.Kubernetes = kc
	return kc
}

type kvClient struct {
	srv   etcdserverpb.KVServer
	guard *guard
}

func (c kvClient) Range(ctx context.Context, r *etcdserverpb.RangeRequest, _ ...grpc.CallOption) (*etcdserverpb.RangeResponse, error) {
	misread := c.guard.misread.Load()
	resp, err := c.srv.Range(ctx, r)
	if err := c.guard.read(ctx, misread, err); err != nil {
		return nil, err
	}
	return resp, nil
}

func (c kvClient) Put(ctx context.Context, r *etcdserverpb.PutRequest, _ ...grpc.CallOption) (*etcdserverpb.PutResponse, error) {
	if err := c.guard.enter(); err != nil {
		return nil, err
	}
	defer c.guard.leave()
	resp, err := c.srv.Put(ctx, r)
	return resp, c.guard.written(err)
}

func (c kvClient) DeleteRange(ctx context.Context, r *etcdserverpb.DeleteRangeRequest, _ ...grpc.CallOption) (*etcdserverpb.DeleteRangeResponse, error) {
	if err := c.guard.enter(); err != nil {
		return nil, err
	}
	defer c.guard.leave()
	resp, err := c.srv.DeleteRange(ctx, r)
	return resp, c.guard.written(err)
}

func (c kvClient) Txn(ctx context.Context, r *etcdserverpb.TxnRequest, _ ...grpc.CallOption) (*etcdserverpb.TxnResponse, error) {
	if err := c.guard.enter(); err != nil {
		return nil, err
	}
	defer c.guard.leave()
	resp, err := c.srv.Txn(ctx, r)
	if err := c.guard.written(err); err != nil {
		return nil, err
	}
	if unwritten(r, resp) {
		return nil, errUnwritten
	}
	return resp, nil
}

// errUnwritten is not a conflict: the API server would try again for half a
// minute, and tell its client that somebody else had been faster.
var errUnwritten = status.Error(codes.Internal, "the store could not write: is its disk full or failing?")

// unwritten tells whether a transaction's comparison is said to have failed
// although it holds. kine answers so when a change could not be written.
func unwritten(r *etcdserverpb.TxnRequest, resp *etcdserverpb.TxnResponse) bool {
	if resp.Succeeded || len(r.Compare) != 1 || r.Compare[0].Target != etcdserverpb.Compare_MOD ||
		r.Compare[0].Result != etcdserverpb.Compare_EQUAL || len(resp.Responses) != 1 {
		return false
	}
	kvs := resp.Responses[0].GetResponseRange().GetKvs()
	return len(kvs) == 1 && kvs[0].ModRevision == r.Compare[0].GetModRevision()
}

func (c kvClient) Compact(ctx context.Context, r *etcdserverpb.CompactionRequest, _ ...grpc.CallOption) (*etcdserverpb.CompactionResponse, error) {
	if err := c.guard.enter(); err != nil {
		return nil, err
	}
	defer c.guard.leave()
	resp, err := c.srv.Compact(ctx, r)
	return resp, c.guard.written(err)
}

type leaseClient struct{ srv etcdserverpb.LeaseServer }

func (c leaseClient) LeaseGrant(ctx context.Context, r *etcdserverpb.LeaseGrantRequest, _ ...grpc.CallOption) (*etcdserverpb.LeaseGrantResponse, error) {
	return c.srv.LeaseGrant(ctx, r)
}

func (c leaseClient) LeaseRevoke(ctx context.Context, r *etcdserverpb.LeaseRevokeRequest, _ ...grpc.CallOption) (*etcdserverpb.LeaseRevokeResponse, error) {
	return c.srv.LeaseRevoke(ctx, r)
}

func (c leaseClient) LeaseTimeToLive(ctx context.Context, r *etcdserverpb.LeaseTimeToLiveRequest, _ ...grpc.CallOption) (*etcdserverpb.LeaseTimeToLiveResponse, error) {
	return c.srv.LeaseTimeToLive(ctx, r)
}

func (c leaseClient) LeaseLeases(ctx context.Context, r *etcdserverpb.LeaseLeasesRequest, _ ...grpc.CallOption) (*etcdserverpb.LeaseLeasesResponse, error) {
	return c.srv.LeaseLeases(ctx, r)
}

func (leaseClient) LeaseKeepAlive(context.Context, ...grpc.CallOption) (etcdserverpb.Lease_LeaseKeepAliveClient, error) {
	return nil, errNoStream
}

type maintenanceClient struct {
	srv etcdserverpb.MaintenanceServer
}

func (c maintenanceClient) Alarm(ctx context.Context, r *etcdserverpb.AlarmRequest, _ ...grpc.CallOption) (*etcdserverpb.AlarmResponse, error) {
	return c.srv.Alarm(ctx, r)
}

func (c maintenanceClient) Status(ctx context.Context, r *etcdserverpb.StatusRequest, _ ...grpc.CallOption) (*etcdserverpb.StatusResponse, error) {
	return c.srv.Status(ctx, r)
}

func (c maintenanceClient) Defragment(ctx context.Context, r *etcdserverpb.DefragmentRequest, _ ...grpc.CallOption) (*etcdserverpb.DefragmentResponse, error) {
	return c.srv.Defragment(ctx, r)
}

func (c maintenanceClient) Hash(ctx context.Context, r *etcdserverpb.HashRequest, _ ...grpc.CallOption) (*etcdserverpb.HashResponse, error) {
	return c.srv.Hash(ctx, r)
}

func (c maintenanceClient) HashKV(ctx context.Context, r *etcdserverpb.HashKVRequest, _ ...grpc.CallOption) (*etcdserverpb.HashKVResponse, error) {
	return c.srv.HashKV(ctx, r)
}

func (c maintenanceClient) MoveLeader(ctx context.Context, r *etcdserverpb.MoveLeaderRequest, _ ...grpc.CallOption) (*etcdserverpb.MoveLeaderResponse, error) {
	return c.srv.MoveLeader(ctx, r)
}

func (c maintenanceClient) Downgrade(ctx context.Context, r *etcdserverpb.DowngradeRequest, _ ...grpc.CallOption) (*etcdserverpb.DowngradeResponse, error) {
	return c.srv.Downgrade(ctx, r)
}

func (maintenanceClient) Snapshot(context.Context, *etcdserverpb.SnapshotRequest, ...grpc.CallOption) (etcdserverpb.Maintenance_SnapshotClient, error) {
	return nil, errNoStream
}

// errNoStream answers what the store does not offer: it keeps no lease alive, and
// its file is copied with SQLite's means.
var errNoStream = status.Error(codes.Unimplemented, "the store has no such stream")

// errClosed ends a watch for good: etcd's client would try again after Unavailable.
var errClosed = status.Error(codes.FailedPrecondition, "the store is closed")

type watchClient struct {
	api   *bridge
	store context.Context // done when the store closes
}

func (c watchClient) Watch(ctx context.Context, _ ...grpc.CallOption) (etcdserverpb.Watch_WatchClient, error) {
	ctx, cancel := context.WithCancel(ctx)
	p := &pipe{
		ctx: ctx, asked: make(chan struct{}, 1), responses: make(chan *etcdserverpb.WatchResponse),
		closed: make(chan struct{}), done: make(chan struct{}),
	}
	if !c.api.serve(func() {
		defer close(p.done)
		defer cancel()
		defer context.AfterFunc(c.store, cancel)()
		p.err = c.api.Watch(serverEnd{pipe: p})
		if p.err == nil {
			p.err = io.EOF
		}
		if c.store.Err() != nil {
			p.err = errClosed
		}
	}) {
		cancel()
		return nil, errClosed
	}
	return clientEnd{pipe: p}, nil
}

// pipe is a stream of watches between a client and the store.
type pipe struct {
	ctx       context.Context
	responses chan *etcdserverpb.WatchResponse
	once      sync.Once
	closed    chan struct{} // the client sends no more
	done      chan struct{} // the server has returned err
	err       error

	// The client does not wait until a request is taken: etcd's takes no response
	// meanwhile, and the server no request while it waits for that. A network has
	// its buffers there.
	mu       sync.Mutex
	requests []*etcdserverpb.WatchRequest
	asked    chan struct{} // full if there may be requests
}

func (p *pipe) ask(r *etcdserverpb.WatchRequest) {
	p.mu.Lock()
	p.requests = append(p.requests, r)
	p.mu.Unlock()
	select {
	case p.asked <- struct{}{}:
	default:
	}
}

// next is the oldest request, or nil.
func (p *pipe) next() *etcdserverpb.WatchRequest {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.requests) == 0 {
		return nil
	}
	r := p.requests[0]
	p.requests = p.requests[1:]
	return r
}

// clientEnd has no headers and trailers; etcd's client asks for none.
type clientEnd struct {
	grpc.ClientStream
	*pipe
}

func (e clientEnd) Send(r *etcdserverpb.WatchRequest) error {
	select {
	case <-e.done:
		return io.EOF
	case <-e.ctx.Done():
		return e.ctx.Err()
	default:
		e.ask(r)
		return nil
	}
}

func (e clientEnd) Recv() (*etcdserverpb.WatchResponse, error) {
	select {
	case r := <-e.responses:
		return r, nil
	case <-e.done:
		return nil, e.err
	}
}

func (e clientEnd) CloseSend() error {
	e.once.Do(func() { close(e.closed) })
	return nil
}

func (e clientEnd) Context() context.Context { return e.ctx }

type serverEnd struct {
	grpc.ServerStream
	*pipe
}

func (e serverEnd) Send(r *etcdserverpb.WatchResponse) error {
	select {
	case e.responses <- r:
		return nil
	case <-e.ctx.Done():
		return e.ctx.Err()
	}
}

func (e serverEnd) Recv() (*etcdserverpb.WatchRequest, error) {
	for {
		if r := e.next(); r != nil {
			return r, nil
		}
		select {
		case <-e.asked:
		case <-e.closed:
			return nil, io.EOF
		case <-e.ctx.Done():
			return nil, e.ctx.Err()
		}
	}
}

func (e serverEnd) Context() context.Context { return e.ctx }

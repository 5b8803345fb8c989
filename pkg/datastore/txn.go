package datastore

import (
	"bytes"
	"context"
	"slices"

	"github.com/k3s-io/kine/pkg/server"
	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"

	"github.com/knarr-dev/knarr/pkg/datastore/engine"
)

// Txn refuses what kine's API would take for a shape that it knows and answer
// wrongly: transactions that compare one key and change another, or that delete a
// key if it does not exist.
func (b *bridge) Txn(ctx context.Context, r *etcdserverpb.TxnRequest) (*etcdserverpb.TxnResponse, error) {
	if !known(r) {
		return nil, server.ErrNotSupported
	}
	if put := createOrGet(r); put != nil && b.engine != nil {
		rev, kv, ok, err := b.engine.Update(ctx, string(put.Key), put.Value, 0, put.Lease)
		if err != nil {
			return nil, err
		}
		return answerTxn(rev, kv, ok), nil
	}
	return b.KVServerBridge.Txn(ctx, r)
}

// createOrGet returns what is to be put if the key does not exist; what is there
// is asked for otherwise. kine's API looks for that later, when it may be gone.
func createOrGet(r *etcdserverpb.TxnRequest) *etcdserverpb.PutRequest {
	if len(r.Compare) != 1 || len(r.Success) != 1 || len(r.Failure) != 1 || r.Failure[0].GetRequestRange() == nil {
		return nil
	}
	if !isNotThere(r.Compare[0]) {
		return nil
	}
	return r.Success[0].GetRequestPut()
}

func isNotThere(c *etcdserverpb.Compare) bool {
	return c.Target == etcdserverpb.Compare_MOD && c.Result == etcdserverpb.Compare_EQUAL && c.GetModRevision() == 0
}

func answerTxn(rev int64, kv *server.KeyValue, done bool) *etcdserverpb.TxnResponse {
	h := &etcdserverpb.ResponseHeader{Revision: rev}
	r := &etcdserverpb.TxnResponse{Header: h, Succeeded: done}
	if done {
		put := &etcdserverpb.PutResponse{Header: h}
		r.Responses = []*etcdserverpb.ResponseOp{{Response: &etcdserverpb.ResponseOp_ResponsePut{ResponsePut: put}}}
		return r
	}
	get := &etcdserverpb.RangeResponse{Header: h}
	if kv != nil {
		get.Kvs, get.Count = []*mvccpb.KeyValue{engine.EtcdKeyValue(kv)}, 1
	}
	r.Responses = []*etcdserverpb.ResponseOp{{Response: &etcdserverpb.ResponseOp_ResponseRange{ResponseRange: get}}}
	return r
}

// known tells whether a transaction is about one key alone, and asks for nothing
// that kine's API would leave out or get wrong.
func known(r *etcdserverpb.TxnRequest) bool {
	var keys [][]byte
	for _, c := range r.Compare {
		if len(c.RangeEnd) > 0 {
			return false
		}
		keys = append(keys, c.Key)
	}
	for _, op := range slices.Concat(r.Success, r.Failure) {
		switch {
		case op.GetRequestPut() != nil:
			put := op.GetRequestPut()
			if put.PrevKv || put.IgnoreLease || put.IgnoreValue {
				return false
			}
			keys = append(keys, put.Key)
		case op.GetRequestRange() != nil:
			get := op.GetRequestRange()
			if get.Size() != (&etcdserverpb.RangeRequest{Key: get.Key}).Size() { // it has more than that
				return false
			}
			keys = append(keys, get.Key)
		case op.GetRequestDeleteRange() != nil:
			del := op.GetRequestDeleteRange()
			if len(del.RangeEnd) > 0 {
				return false
			}
			keys = append(keys, del.Key)
		default:
			return false
		}
	}
	if len(r.Compare) == 1 && isNotThere(r.Compare[0]) && len(r.Success) == 1 && r.Success[0].GetRequestDeleteRange() != nil {
		return false
	}
	for _, key := range keys {
		if !bytes.Equal(key, keys[0]) {
			return false
		}
	}
	return len(keys) > 0
}

// Put writes a key whatever is there, which kine's API does only if it was the
// last to be changed.
func (b *bridge) Put(ctx context.Context, r *etcdserverpb.PutRequest) (*etcdserverpb.PutResponse, error) {
	if r.IgnoreLease || r.IgnoreValue || r.PrevKv {
		return nil, server.ErrNotSupported
	}
	mod := int64(0)
	for {
		put := &etcdserverpb.RequestOp{Request: &etcdserverpb.RequestOp_RequestPut{RequestPut: r}}
		get := &etcdserverpb.RequestOp{Request: &etcdserverpb.RequestOp_RequestRange{RequestRange: &etcdserverpb.RangeRequest{Key: r.Key}}}
		t, err := b.Txn(ctx, &etcdserverpb.TxnRequest{
			Compare: []*etcdserverpb.Compare{{Key: r.Key, Target: etcdserverpb.Compare_MOD, TargetUnion: &etcdserverpb.Compare_ModRevision{ModRevision: mod}}},
			Success: []*etcdserverpb.RequestOp{put}, Failure: []*etcdserverpb.RequestOp{get},
		})
		if err != nil {
			return nil, err
		}
		if t.Succeeded {
			return &etcdserverpb.PutResponse{Header: t.Header}, nil
		}
		mod = 0
		for _, kv := range t.Responses[0].GetResponseRange().Kvs {
			mod = kv.ModRevision
		}
	}
}

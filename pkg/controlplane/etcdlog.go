package controlplane

import (
	_ "unsafe" // for go:linkname

	"go.uber.org/zap"
	_ "k8s.io/apiserver/pkg/storage/storagebackend/factory" // has the variable
)

// etcdClientLog is where the API server's etcd client logs, in a format of its
// own to stderr. There is no setting for it.
//
//go:linkname etcdClientLog k8s.io/apiserver/pkg/storage/storagebackend/factory.etcd3ClientLogger
var etcdClientLog *zap.Logger

// hushEtcdClient keeps the etcd client from telling by itself what its callers
// get as errors: that requests are cancelled when the server stops.
func hushEtcdClient() { etcdClientLog = zap.NewNop() }

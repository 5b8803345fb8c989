package controlplane

import (
	_ "unsafe" // for go:linkname

	"go.uber.org/zap"
	_ "k8s.io/apiserver/pkg/storage/storagebackend/factory" // holds etcd3ClientLogger
)

// etcd3ClientLogger is what the API server's etcd clients write with, past every
// logger that can be set: JSON lines on standard error about requests that were
// cancelled. TestEtcdClientsHaveALoggerToSilence tells when it moves.
//
//go:linkname etcd3ClientLogger k8s.io/apiserver/pkg/storage/storagebackend/factory.etcd3ClientLogger
var etcd3ClientLogger *zap.Logger

// silenceEtcdClients must be called before the first client is made. Errors
// reach the API server, and us, as such.
func silenceEtcdClients() { etcd3ClientLogger = zap.NewNop() }

package controlplane

import (
	"context"
	"net"
	"sync"
	_ "unsafe" // for go:linkname

	"go.etcd.io/etcd/client/v3/kubernetes"
	utilnet "k8s.io/apimachinery/pkg/util/net"
	"k8s.io/apiserver/pkg/server/egressselector"
	"k8s.io/apiserver/pkg/storage"
	"k8s.io/apiserver/pkg/storage/feature"
	"k8s.io/apiserver/pkg/storage/storagebackend"
	_ "k8s.io/apiserver/pkg/storage/storagebackend/factory" // holds newETCD3Client

	"github.com/knarr-dev/knarr/pkg/datastore"
)

// newETCD3Client is how the API server makes an etcd client for each of its
// seventy resources: upstream a gRPC connection each, with ten goroutines and
// its buffers. TestTheAPIServerMakesItsEtcdClientsByAVariable tells when it moves.
//
//go:linkname newETCD3Client k8s.io/apiserver/pkg/storage/storagebackend/factory.newETCD3Client
var newETCD3Client func(storagebackend.TransportConfig) (*kubernetes.Client, error)

// useInProcessClients makes newETCD3Client look for a store in the transport
// before it connects to anything. Once is enough for all API servers.
var useInProcessClients = sync.OnceFunc(func() {
	connect := newETCD3Client
	newETCD3Client = func(c storagebackend.TransportConfig) (*kubernetes.Client, error) {
		if store := storeOf(c); store != nil {
			client := store.Client()
			checkFeatures(client)
			return client, nil
		}
		return connect(c)
	}
})

// checkFeatures has the API server learn that the store tells progress when it is
// asked to, without which it serves no list from its cache and streams none.
// Upstream asks every endpoint of a client, of which one of ours has none.
func checkFeatures(client *kubernetes.Client) {
	feature.DefaultFeatureSupportChecker.CheckClient(client.Ctx(), endpoint{client}, storage.RequestWatchProgress)
}

// endpoint gives a client's only endpoint a name.
type endpoint struct{ *kubernetes.Client }

func (endpoint) Endpoints() []string { return []string{"store"} }

// The transport's dialer is the one thing in it that an API server of ours can
// set to what it likes, so that a store travels as a connection to itself.
type storeConn struct {
	net.Conn
	store *datastore.Store
}

// reach makes an API server's etcd clients those of store.
func reach(c *storagebackend.TransportConfig, store *datastore.Store) {
	useInProcessClients()
	dial := func(context.Context, string, string) (net.Conn, error) { return storeConn{store: store}, nil }
	c.EgressLookup = func(egressselector.NetworkContext) (utilnet.DialFunc, error) {
		return dial, nil
	}
}

// storeOf is the store that reach put into c, or nil.
func storeOf(c storagebackend.TransportConfig) *datastore.Store {
	if c.EgressLookup == nil {
		return nil
	}
	dial, err := c.EgressLookup(egressselector.Etcd.AsNetworkContext())
	if err != nil || dial == nil {
		return nil
	}
	conn, err := dial(context.Background(), "", "") // no address that another dialer could reach
	if err != nil {
		return nil
	}
	own, ok := conn.(storeConn)
	if !ok {
		_ = conn.Close()
		return nil
	}
	return own.store
}

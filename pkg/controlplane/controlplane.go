// Package controlplane runs the API server, the controller-manager and the
// scheduler of Kubernetes in this process, each as a component.
package controlplane

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"strconv"
	"strings"
	"sync"

	"github.com/spf13/pflag"
	"k8s.io/client-go/rest"
	cliflag "k8s.io/component-base/cli/flag"

	"github.com/knarr-dev/knarr/pkg/config"
	"github.com/knarr-dev/knarr/pkg/part"
	"github.com/knarr-dev/knarr/pkg/pki"
)

// Config is what the three parts share.
type Config struct {
	Config *config.Config
	// PKI returns the certificates; it is called once the component pki is ready.
	PKI func() *pki.PKI
	// Follow returns PKI's answer, and what is closed when there is another. Nil is for
	// certificates that stay as they are.
	Follow func() (*pki.PKI, <-chan struct{})
	// Access returns how the holder of one of PKI's client certificates reaches the
	// API server, now and after the certificate was renewed.
	Access func(pki.Client) *rest.Config
	// Dir holds files that upstream wants to read by path: <data-dir>/server/run.
	Dir string
	// CSI is held while a user of upstream's CSI plugin is made; see build.
	CSI sync.Locker
	// Handlers answer at further paths, and below them, to whom RBAC lets get them.
	Handlers map[string]http.Handler
	// Settings, if not nil, is told the flags that each part runs with.
	Settings *Settings
	// Listen opens the API server's port. Nil opens it anew at each attempt.
	Listen func(ctx context.Context, addr string) (net.Listener, error)
	// Admit, if not nil, stands before everything that the API server does, and
	// may refuse requests.
	Admit func(http.Handler) http.Handler
	// Streams, if not nil, returns what else is served at the API server's port, by
	// path, each of which ends in a slash, and may take any time. Authorization is by
	// path, too.
	Streams func() map[string]http.Handler
	// Extend, if not nil, adds API groups to each API server that is made.
	Extend func(part.API) error
}

// Host is where clients in this process reach the API server. It is loopback
// unless the server was told to listen on one other address only.
func (c Config) Host() string {
	a := c.Config.API.BindAddress
	if !a.IsValid() || a.IsUnspecified() {
		a = netip.AddrFrom4([4]byte{127, 0, 0, 1})
	}
	return "https://" + net.JoinHostPort(a.String(), strconv.Itoa(c.Config.API.Port))
}

// making are held while a part of a control plane is put together, the scheduler's
// until it has registered itself: upstream's feature gates, registries and CSI plugin
// are the process', so that two control planes in it take turns.
var making struct{ apiServer, controllers, scheduler sync.Mutex }

// listen opens the API server's port.
func (c Config) listen(ctx context.Context, addr string) (net.Listener, error) {
	if c.Listen != nil {
		return c.Listen(ctx, addr)
	}
	return new(net.ListenConfig).Listen(ctx, "tcp", addr)
}

// parse sets upstream flags, given as name=value; what comes later wins, so
// that a user's own arguments come last. owner is the flag of ours that hands
// them over, for errors.
func parse(sets cliflag.NamedFlagSets, owner string, args, extra []string) error {
	fs := pflag.NewFlagSet(owner, pflag.ContinueOnError)
	fs.SetNormalizeFunc(cliflag.WordSepNormalizeFunc)
	for _, set := range sets.FlagSets {
		fs.AddFlagSet(set)
	}
	for i, arg := range append(args[:len(args):len(args)], extra...) {
		name, value, ok := strings.Cut(strings.TrimPrefix(arg, "--"), "=")
		f := fs.Lookup(name)
		if f == nil {
			return fmt.Errorf("%s=%s: %s has no flag %q; see its reference for the names", owner, arg, strings.TrimSuffix(strings.TrimPrefix(owner, "--"), "-arg"), name)
		}
		if !ok {
			value = f.NoOptDefVal
		}
		if err := fs.Set(name, value); err != nil {
			if i < len(args) {
				return fmt.Errorf("set %s of Kubernetes: %w", name, err)
			}
			return fmt.Errorf("%s=%s: %w", owner, arg, err)
		}
	}
	return nil
}

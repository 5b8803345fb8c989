package dns

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"reflect"
	"slices"
	"strings"

	"github.com/coredns/caddy"
	"github.com/coredns/caddy/caddyfile"
	"github.com/coredns/coredns/core/dnsserver"
	"github.com/coredns/coredns/plugin"
	// What a user's own configuration may use beside forward, which is ours. The
	// others of CoreDNS would bring programs' worth of modules along.
	_ "github.com/coredns/coredns/plugin/any"
	_ "github.com/coredns/coredns/plugin/autopath"
	_ "github.com/coredns/coredns/plugin/cache"
	_ "github.com/coredns/coredns/plugin/dns64"
	_ "github.com/coredns/coredns/plugin/file"
	_ "github.com/coredns/coredns/plugin/header"
	_ "github.com/coredns/coredns/plugin/hosts"
	_ "github.com/coredns/coredns/plugin/local"
	_ "github.com/coredns/coredns/plugin/log"
	_ "github.com/coredns/coredns/plugin/minimal"
	"github.com/coredns/coredns/plugin/pkg/parse"
	_ "github.com/coredns/coredns/plugin/rewrite"
	_ "github.com/coredns/coredns/plugin/template"
	_ "github.com/coredns/coredns/plugin/whoami"
	"github.com/coredns/coredns/request"
	"github.com/miekg/dns"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	corev1client "k8s.io/client-go/kubernetes/typed/core/v1"
	"k8s.io/client-go/tools/cache"
)

// CustomName is the ConfigMap in kube-system with a user's own configuration of
// CoreDNS: keys that end in .override are lines for the server that answers
// everything, keys that end in .server are further servers, for zones of theirs.
const CustomName = "coredns-custom"

// custom is what the ConfigMap says, by key.
type custom map[string]string

// served is a name server with what its plugins want done before and after.
type served struct {
	*dnsserver.Server
	start, stop []func() error
}

// begin lets plugins start what they do beside answering.
func (s *served) begin() error {
	for _, f := range s.start {
		if err := f(); err != nil {
			return fmt.Errorf("start a plugin of cluster DNS: %w", err)
		}
	}
	return nil
}

// end undoes begin.
func (s *served) end() {
	for _, f := range s.stop {
		_ = f() // it only tells of what could not be closed
	}
}

// server puts the handlers in a row, with those of the user's where CoreDNS would
// have them: failures are logged, addresses shuffled, names of the cluster answered
// from cl, all others forwarded and cached.
//
// The cache stands behind the cluster's names: those are in memory already, and
// a new Service or endpoint shall not be hidden by an answer of five seconds ago.
func (d *DNS) server(cl *cluster, fw *forwarder, c custom) (*served, error) {
	k8s, err := d.kubernetes()
	if err != nil {
		return nil, err
	}
	k8s.APIConn = cl
	stale, err := staleCache()
	if err != nil {
		return nil, err
	}
	blocks, err := c.blocks()
	if err != nil {
		return nil, err
	}
	ctl := caddy.NewTestController("dns", "")
	if blocks, err = ctl.Context().InspectServerBlocks(CustomName, blocks); err != nil {
		return nil, fmt.Errorf("ConfigMap %s: %w", CustomName, err)
	}
	s := &served{}
	for i := range blocks {
		site(ctl, i, 0).AddPlugin(func(next plugin.Handler) plugin.Handler { return &measure{told: d.told, next: next} })
		site(ctl, i, 0).AddPlugin(func(next plugin.Handler) plugin.Handler { return &failures{log: d.cfg.Log, next: next} })
		site(ctl, i, 0).AddPlugin(func(next plugin.Handler) plugin.Handler { return &shuffle{next: next} })
	}
	for _, directive := range dnsserver.Directives {
		if directive == "kubernetes" {
			site(ctl, 0, 0).AddPlugin(func(next plugin.Handler) plugin.Handler {
				k8s.Next = &reverseGuard{cidrs: d.cfg.CIDRs, next: next}
				return k8s
			})
			continue
		}
		for i, b := range blocks {
			tokens, given := b.Tokens[directive]
			if !given || ours(directive) {
				continue
			}
			// Plugins keep theirs.
			own := *ctl
			own.Dispenser = caddyfile.NewDispenserTokens(CustomName, tokens)
			own.Key, own.ServerBlockKeys, own.ServerBlockIndex = b.Keys[0], b.Keys, i
			setup := s.setupForward
			if directive != "forward" {
				if setup, err = caddy.DirectiveAction("dns", directive); err != nil {
					return nil, fmt.Errorf("ConfigMap %s: the plugin %s is not in this CoreDNS; run one of your own (--disable dns) if you need it", CustomName, directive)
				}
			}
			if err := setup(&own); err != nil {
				return nil, fmt.Errorf("ConfigMap %s: %w", CustomName, err)
			}
		}
	}
	site(ctl, 0, 0).AddPlugin(func(plugin.Handler) plugin.Handler { return stale(fw) })

	var sites []*dnsserver.Config
	zones := map[string]bool{}
	for i, b := range blocks {
		for j := range b.Keys {
			one := site(ctl, i, j)
			if one.Port != "53" || one.Transport != "dns" {
				return nil, fmt.Errorf("ConfigMap %s: zone %s is to be served at %s, port %s; only DNS at port 53 is", CustomName, one.Zone, one.Transport, one.Port)
			}
			if zones[one.Zone] {
				return nil, fmt.Errorf("ConfigMap %s: zone %s has a server already; lines for the one of all zones belong into a key that ends in .override", CustomName, one.Zone)
			}
			zones[one.Zone] = true
			one.Plugin = site(ctl, i, 0).Plugin
			sites = append(sites, one)
		}
	}
	if s.Server, err = dnsserver.NewServer("dns://"+d.cfg.Sockets.Addr().String(), sites); err != nil {
		return nil, fmt.Errorf("set up cluster DNS: %w", err)
	}
	// Caddy hands its instance to nobody, but plugins leave there what to do at
	// the start and at the end.
	instance := (*caddy.Instance)(reflect.ValueOf(ctl).Elem().FieldByName("instance").UnsafePointer())
	s.start = append(slices.Clone(instance.OnFirstStartup), instance.OnStartup...)
	s.stop = slices.Concat(s.stop, instance.OnShutdown, instance.OnFinalShutdown)
	return s, nil
}

// site is the configuration of a block's zone.
func site(ctl *caddy.Controller, block, zone int) *dnsserver.Config {
	at := *ctl
	at.ServerBlockIndex, at.ServerBlockKeyIndex = block, zone
	return dnsserver.GetConfig(&at)
}

// ours tells what Knarr does in its own way, so that lines of a usual Corefile are
// accepted.
func ours(directive string) bool {
	switch directive {
	case "errors", "health", "ready", "prometheus", "reload", "loop", "bind", "debug", "loadbalance":
		return true
	}
	return false
}

// blocks reads the ConfigMap: the server of all zones first, then the others.
func (c custom) blocks() ([]caddyfile.ServerBlock, error) {
	all := []caddyfile.ServerBlock{{Keys: []string{".:53"}, Tokens: map[string][]caddyfile.Token{}}}
	for _, key := range slices.Sorted(maps.Keys(c)) {
		where, text := "ConfigMap "+CustomName+", key "+key, c[key]
		override := strings.HasSuffix(key, ".override")
		switch {
		case override:
			// In the same line, so that the lines of errors are the user's.
			text = ".:53 { " + strings.TrimLeft(text, " \t") + "\n}\n"
			if strings.HasPrefix(c[key], "\n") {
				text = ".:53 {" + c[key] + "\n}\n"
			}
		case !strings.HasSuffix(key, ".server"):
			continue // files for plugins, notes
		}
		found, err := caddyfile.Parse(where, strings.NewReader(text), dnsserver.Directives)
		if err != nil {
			return nil, err
		}
		if !override {
			all = append(all, found...)
			continue
		}
		for _, b := range found {
			for directive, tokens := range b.Tokens {
				all[0].Tokens[directive] = append(all[0].Tokens[directive], tokens...)
			}
		}
	}
	return all, nil
}

// setupForward reads "forward FROM TO...", for a zone whose names other servers
// know. What CoreDNS' own plugin has settings for, ours does as it does for all
// names.
func (s *served) setupForward(c *caddy.Controller) error {
	for c.Next() {
		args := c.RemainingArgs()
		if len(args) < 2 {
			return c.ArgErr()
		}
		zones := plugin.Host(args[0]).NormalizeExact()
		if len(zones) == 0 {
			return c.Errf("forward: %q is not a zone", args[0])
		}
		hosts, err := parse.HostPortOrFile(args[1:]...)
		if err != nil {
			return c.Errf("forward: %v", err)
		}
		var servers []netip.AddrPort
		for _, h := range hosts {
			addr, err := netip.ParseAddrPort(h)
			if err != nil {
				return c.Errf("forward: %q is no address of a name server: only plain DNS is forwarded", h)
			}
			servers = append(servers, addr)
		}
		var except []string
		for c.NextBlock() {
			if c.Val() == "except" {
				for _, e := range c.RemainingArgs() {
					except = append(except, plugin.Host(e).NormalizeExact()...)
				}
				continue
			}
			c.RemainingArgs()
		}
		fw := newForwarder(func() []netip.AddrPort { return servers })
		s.stop = append(s.stop, func() error { fw.stop(); return nil })
		dnsserver.GetConfig(c).AddPlugin(func(next plugin.Handler) plugin.Handler {
			return &forwardZone{zones: zones, except: except, to: fw, next: next}
		})
	}
	return nil
}

// forwardZone forwards the names of zones.
type forwardZone struct {
	zones, except []string
	to            *forwarder
	next          plugin.Handler
}

func (f *forwardZone) Name() string { return "forward" }

func (f *forwardZone) ServeDNS(ctx context.Context, w dns.ResponseWriter, r *dns.Msg) (int, error) {
	state := request.Request{W: w, Req: r}
	if plugin.Zones(f.zones).Matches(state.Name()) == "" || plugin.Zones(f.except).Matches(state.Name()) != "" {
		return plugin.NextOrFailure(f.Name(), f.next, ctx, w, r)
	}
	return f.to.ServeDNS(ctx, w, r)
}

// staleCache makes caches as RFC 8767 recommends: when no name server upstream
// answers within 1.8 seconds, an answer of the last day is given again, for 30
// seconds, in which nobody is asked.
func staleCache() (func(plugin.Handler) plugin.Handler, error) {
	ctl := caddy.NewTestController("dns", "cache . {\nserve_stale 24h verify 1800ms 30s 30s\n}")
	setup, err := caddy.DirectiveAction("dns", "cache")
	if err == nil {
		err = setup(ctl)
	}
	if err != nil {
		return nil, fmt.Errorf("set up the cache of cluster DNS: %w", err)
	}
	plugins := dnsserver.GetConfig(ctl).Plugin
	if len(plugins) != 1 {
		return nil, errors.New("set up the cache of cluster DNS: CoreDNS made none")
	}
	return plugins[0], nil
}

// follow watches the ConfigMap until ctx ends, and calls changed with what it says
// whenever that changes, at first if it says anything.
func follow(ctx context.Context, core corev1client.CoreV1Interface, changed func(custom)) {
	source := cache.NewListWatchFromClient(core.RESTClient(), "configmaps", metav1.NamespaceSystem, fields.OneTermEqualSelector("metadata.name", CustomName))
	last := custom{}
	tell := func(o any) {
		now := custom{}
		if m, ok := o.(*corev1.ConfigMap); ok {
			now = m.Data
		}
		if maps.Equal(now, last) {
			return
		}
		last = now
		changed(now)
	}
	_, informer := cache.NewInformerWithOptions(cache.InformerOptions{
		ListerWatcher: source, ObjectType: &corev1.ConfigMap{},
		Handler: cache.ResourceEventHandlerFuncs{
			AddFunc: tell, UpdateFunc: func(_, now any) { tell(now) }, DeleteFunc: func(any) { tell(nil) },
		},
	})
	informer.RunWithContext(ctx)
}

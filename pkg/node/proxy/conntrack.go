package proxy

import (
	"os"
	"runtime"
	"strconv"
	"strings"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	proxyconfig "k8s.io/kubernetes/pkg/proxy/apis/config"

	"github.com/knarr-dev/knarr/pkg/host"
)

// mostConnections bounds the connection tracker's table, which a machine with
// very many cores would make too large. It is upstream's figure.
const mostConnections = 1 << 20

// conntrackSysctls lists what upstream's kube-proxy would set, but never lowers
// the size of the table: a machine that has more of it needs it for something.
func conntrackSysctls(c proxyconfig.KubeProxyConntrackConfiguration, cores int) []host.Sysctl {
	var list []host.Sysctl
	add := func(name string, value int, atLeast bool) {
		list = append(list, host.Sysctl{
			Name: "net.netfilter.nf_conntrack_" + name, Value: strconv.Itoa(value),
			AtLeast: atLeast, Helpful: true, IfPresent: true,
		})
	}
	if c.MaxPerCore != nil && *c.MaxPerCore > 0 {
		size := int(*c.MaxPerCore) * cores
		if c.Min != nil {
			size = max(size, int(*c.Min))
		}
		size = min(size, mostConnections)
		add("max", size, true)
		add("buckets", size/4, true)
	}
	seconds := func(name string, d *metav1.Duration) {
		if d != nil && d.Duration > 0 {
			add(name, int(d.Duration/time.Second), false)
		}
	}
	seconds("tcp_timeout_established", c.TCPEstablishedTimeout)
	seconds("tcp_timeout_close_wait", c.TCPCloseWaitTimeout)
	seconds("udp_timeout", &c.UDPTimeout)
	seconds("udp_timeout_stream", &c.UDPStreamTimeout)
	if c.TCPBeLiberal {
		add("tcp_be_liberal", 1, false)
	}
	return list
}

// tuneConntrack sets them, as far as this machine allows: the table's size is the
// whole kernel's and can't be set in a network namespace of a container.
func (p *Proxy) tuneConntrack() {
	if p.cfg.SetSysctls == nil {
		return
	}
	var allowed []host.Sysctl
	for _, s := range conntrackSysctls(p.settings.Linux.Conntrack, runtime.NumCPU()) {
		f, err := os.OpenFile("/proc/sys/"+strings.ReplaceAll(s.Name, ".", "/"), os.O_WRONLY, 0)
		if err != nil {
			p.log.Debug("the connection tracker can't be set up from here", "sysctl", s.Name, "wanted", s.Value, "err", err)
			continue
		}
		f.Close()
		allowed = append(allowed, s)
	}
	if err := p.cfg.SetSysctls(allowed); err != nil {
		p.log.Warn("the connection tracker stays as it is; many connections may exhaust it", "err", err)
	}
}

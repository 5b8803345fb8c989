package usage

import (
	"math"
	"runtime"
	"strings"
)

// owners are whose packages are whose. Of a stack the outermost frame that is
// somebody's decides: whom the work is for, not whom it is done by.
var owners = []struct{ prefix, name string }{
	{"k8s.io/kubernetes/pkg/kubelet", "kubelet"},
	{"k8s.io/kubernetes/cmd/kubelet", "kubelet"},
	{"k8s.io/kubernetes/pkg/volume", "kubelet"},
	{"github.com/google/cadvisor", "kubelet"},
	{"k8s.io/kubernetes/pkg/proxy", "kube-proxy"},
	{"k8s.io/kubernetes/pkg/scheduler", "scheduler"},
	{"k8s.io/kubernetes/cmd/kube-scheduler", "scheduler"},
	{"k8s.io/kubernetes/pkg/controller/", "controller-manager"},
	{"k8s.io/kubernetes/cmd/kube-controller-manager", "controller-manager"},
	{"k8s.io/kubernetes/cmd/kube-apiserver", "apiserver"},
	{"k8s.io/kubernetes/pkg/controlplane", "apiserver"},
	{"k8s.io/kubernetes/pkg/registry", "apiserver"},
	{"k8s.io/kubernetes/pkg/kubeapiserver", "apiserver"},
	{"k8s.io/apiserver/", "apiserver"},
	{"k8s.io/apiextensions-apiserver/", "apiserver"},
	{"k8s.io/kube-aggregator/", "apiserver"},
	{"github.com/containerd/", "containerd"},
	{"github.com/flannel-io/", "flannel"},
	{"github.com/coredns/", "dns"},
	{"github.com/miekg/dns", "dns"},
	{"sigs.k8s.io/metrics-server/", "metrics"},
	{"helm.sh/", "helm"},
	{"github.com/knarr-dev/knarr/pkg/datastore", "store"},
	{"github.com/mattn/go-sqlite3", "store"},
	{"github.com/knarr-dev/knarr/pkg/addons/dns", "dns"},
	{"github.com/knarr-dev/knarr/pkg/addons/helm", "helm"},
	{"github.com/knarr-dev/knarr/pkg/addons/metrics", "metrics"},
	{"github.com/knarr-dev/knarr/pkg/node/containerd", "containerd"},
	{"github.com/knarr-dev/knarr/pkg/node/kubelet", "kubelet"},
	{"github.com/knarr-dev/knarr/pkg/node/proxy", "kube-proxy"},
	{"github.com/knarr-dev/knarr/pkg/node/network", "flannel"},
}

// ownerOf is whose function it is; empty if it may be anybody's.
func ownerOf(function string) string {
	for _, o := range owners {
		if strings.HasPrefix(function, o.prefix) {
			return o.name
		}
	}
	return ""
}

// byPackage sums up what is on the heap now, as of the last collection but one.
func byPackage() map[string]int64 {
	var records []runtime.MemProfileRecord
	for n, ok := runtime.MemProfile(nil, false); !ok; {
		// Some more may come while it is made.
		records = make([]runtime.MemProfileRecord, n+50)
		if n, ok = runtime.MemProfile(records, false); ok {
			records = records[:n]
		}
	}
	found := map[string]int64{}
	for _, r := range records {
		if n := scaled(r.InUseObjects(), r.InUseBytes(), int64(runtime.MemProfileRate)); n > 0 {
			found[ownerOfStack(r.Stack())] += n
		}
	}
	return found
}

func ownerOfStack(stack []uintptr) string {
	owner := Shared
	frames := runtime.CallersFrames(stack)
	for {
		f, more := frames.Next()
		if name := ownerOf(f.Function); name != "" {
			owner = name
		}
		if !more {
			return owner
		}
	}
}

// scaled is how much samples stand for: one of so many bytes is looked at, so that
// large objects are found for sure and small ones seldom (as pprof's tool does it).
func scaled(count, size, rate int64) int64 {
	if count == 0 || size == 0 || rate <= 1 {
		return size
	}
	average := float64(size) / float64(count)
	return int64(float64(size) / (1 - math.Exp(-average/float64(rate))))
}

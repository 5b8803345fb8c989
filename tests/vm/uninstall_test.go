package vm

import (
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/knarr-dev/knarr/tests/harness/kube"
)

// pictureScript prints what can be seen of the machine, a line for each thing.
// What systemd and the kernel count and log by themselves is left out.
// systemd mounts binfmt_misc for who looks into it, as sysctl does below.
const pictureScript = `
ls /proc/sys/fs/binfmt_misc >/dev/null
ps -e -o comm= | grep -v -e '^kworker' -e '^ps$' -e '^sh$' -e '^sort$' -e '^sed$' -e '^grep$' -e '^systemd-' -e '^(udev-worker)' | sort | sed 's/^/process /'
awk '{print "mount", $2, $3}' /proc/mounts
ip -br link | awk '{print "link", $1, $2}'
ip -br address | awk '{print "address", $0}'
ip route show table all | sed 's/ expires [0-9]*sec//; s/^/route /'
{ nft list ruleset 2>/dev/null || true; } | sed 's/^/nft /'
sysctl -a 2>/dev/null | grep -v -e '^fs\.\(dentry-state\|file-nr\|inode\|aio-nr\|quota\)' -e '^kernel\.\(random\|ns_last_pid\|pty\|perf\|sched\)' -e nf_conntrack_count -e '^net\.netfilter\.' -e '^net\.bridge\.' -e '^net\.ipv[46]\.vs' | sed 's/^/sysctl /'
systemctl list-unit-files --no-pager --no-legend | awk '{print "unit", $1, $2}'
find /sys/fs/cgroup -type d -name 'kubepods*' | sed 's/^/cgroup /'
find /etc /usr /var /opt /run -xdev \( -path /var/log/journal -o -path '/run/systemd' -o -path '/run/log' -o -path '/run/udev' -o -path '/var/lib/systemd' -o -path '/run/user' -o -path '/var/tmp' -o -path '/var/cache/ldconfig' \) -prune -o -printf 'file %p %M %l\n'
`

func (n *node) picture(t *testing.T) []string {
	t.Helper()
	lines := strings.Split(n.sh(t, pictureScript), "\n")
	slices.Sort(lines)
	return slices.Compact(lines)
}

// uninstalls ends the node of the steps before, and gives the machine a whole life
// of another that is installed and uninstalled.
func (n *node) uninstalls(t *testing.T) {
	n.sh(t, "systemctl disable --now knarr && rm /etc/systemd/system/knarr.service && systemctl daemon-reload && "+exe+" uninstall --grace 1s")
	before := n.picture(t)

	n.sh(t, "mkdir -p /var/lib/knarr/agent/images && cp /payload/test.tar /var/lib/knarr/agent/images/")
	n.sh(t, exe+" install -- server --kubelet-arg=config=/payload/kubelet.yaml")
	if got := n.sh(t, exe+" install"); !strings.Contains(got, "no change") {
		t.Errorf("a second install: %s", got)
	}
	n.hangUp()
	var err error
	if n.cluster, err = n.connect(t.Context()); err != nil {
		t.Fatal(err)
	}
	memory := corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{Medium: corev1.StorageMediumMemory}}
	web := kube.Deployment("web", 1, kube.Serve("hello"), kube.Mount("memory", "/memory", memory))
	if _, err := n.AppsV1().Deployments("default").Create(t.Context(), web, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	if _, err := n.CoreV1().Services("default").Create(t.Context(), kube.Service("web", kube.Port(80, 8080), kube.NodePort), metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	n.waitPods(t, "a pod of the installed node", func(p pods) bool { return p.readyOf("web", time.Time{}) == 1 })

	n.sh(t, "knarr uninstall --grace 1s")
	n.hangUp()
	after := n.picture(t)
	for _, l := range before {
		if !slices.Contains(after, l) {
			t.Errorf("gone: %s", l)
		}
	}
	for _, l := range after {
		if !slices.Contains(before, l) {
			t.Errorf("new: %s", l)
		}
	}
}

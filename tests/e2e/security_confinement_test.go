package e2e

import (
	"strconv"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"

	"github.com/knarr-dev/knarr/tests/harness/kube"
)

func TestCapabilitiesAreAddedAndDropped(t *testing.T) {
	s := newSpace(t)
	caps := func(add, drop []corev1.Capability) kube.Option {
		return secureBox(corev1.SecurityContext{Capabilities: &corev1.Capabilities{Add: add, Drop: drop}})
	}
	s.create(kube.Pod("plain",
		kube.Container("more", caps([]corev1.Capability{"NET_ADMIN"}, nil)),
		kube.Container("less", caps(nil, []corev1.Capability{"CHOWN"})),
		kube.Container("one", caps([]corev1.Capability{"NET_BIND_SERVICE"}, []corev1.Capability{"ALL"}))))
	s.running("plain")
	in := func(box, script string) string {
		out, err := s.kubectlErr("exec", "plain", "-c", box, "--", "sh", "-c", script)
		if err != nil {
			t.Fatal(err)
		}
		return strings.TrimSpace(out)
	}
	const chown, netBind, netAdmin = 0, 10, 12
	for box, has := range map[string]map[int]bool{
		"plain": {chown: true, netBind: true, netAdmin: false},
		"more":  {chown: true, netBind: true, netAdmin: true},
		"less":  {chown: false, netBind: true, netAdmin: false},
		"one":   {chown: false, netBind: true, netAdmin: false},
	} {
		set, err := strconv.ParseUint(in(box, "sed -n 's/^CapEff:\t//p' /proc/self/status"), 16, 64)
		if err != nil {
			t.Fatal(err)
		}
		for c, wanted := range has {
			if set>>c&1 == 1 != wanted {
				t.Errorf("container %s has capability %d: %v, want %v", box, c, !wanted, wanted)
			}
		}
	}
	// What the numbers mean.
	mtu := "ip link set dev lo mtu 60000 2>&1; true"
	wantPart(t, "the network without the capability", in("plain", mtu), "Operation not permitted")
	want(t, "the network with the capability", in("more", mtu), "")
	own := "touch /tmp/file && chown 7 /tmp/file 2>&1; stat -c %u /tmp/file"
	want(t, "giving files away", in("plain", own), "7")
	wantPart(t, "giving files away without the capability", in("less", own), "Operation not permitted")
}

// The profile is put where the kubelet looks for it.
func TestSeccompProfilesHoldSystemCallsBack(t *testing.T) {
	s := newSpace(t)
	s.Write(t, "/var/lib/kubelet/seccomp/"+s.ns+"/no-folders.json",
		`{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 1}]}`)
	profile := func(kind corev1.SeccompProfileType, file string) *corev1.SeccompProfile {
		p := &corev1.SeccompProfile{Type: kind}
		if file != "" {
			p.LocalhostProfile = &file
		}
		return p
	}
	pod := func(name string, p *corev1.SeccompProfile) *corev1.Pod {
		return kube.Pod(name, securePod(corev1.PodSecurityContext{SeccompProfile: p}))
	}
	s.create(
		pod("none", profile(corev1.SeccompProfileTypeUnconfined, "")),
		pod("default", profile(corev1.SeccompProfileTypeRuntimeDefault, "")),
		pod("local", profile(corev1.SeccompProfileTypeLocalhost, s.ns+"/no-folders.json")),
		pod("missing", profile(corev1.SeccompProfileTypeLocalhost, s.ns+"/nothing.json")),
	)
	try := "sed -n 's/^Seccomp:\t//p' /proc/self/status; mkdir /tmp/folder 2>&1 && echo made"
	for name, outcome := range map[string]string{"none": "0\nmade", "default": "2\nmade", "local": "2\nmkdir: can't create directory '/tmp/folder': Operation not permitted"} {
		s.running(name)
		want(t, "the system calls of "+name, s.in(name, "sh", "-c", try+" || true"), outcome)
	}
	s.event("missing", "Failed", s.ns+"/nothing.json")
}

func TestOnlyVolumesAreWritableWhereTheRootIsNot(t *testing.T) {
	s := newSpace(t)
	s.create(kube.Pod("frozen", kube.Mount("work", "/work", kube.Scratch()), secureBox(corev1.SecurityContext{ReadOnlyRootFilesystem: new(true)}),
		kube.Container("thawed", secureBox(corev1.SecurityContext{ReadOnlyRootFilesystem: new(false)}))))
	s.running("frozen")
	write := "for f in /etc/passwd /tmp/a /work/a; do sh -c \"echo x >> $f\" 2>/dev/null && echo $f; done; true"
	want(t, "what can be written", s.kubectl("exec", "frozen", "-c", "frozen", "--", "sh", "-c", write), "/work/a\n")
	want(t, "what can be written with a writable root", s.kubectl("exec", "frozen", "-c", "thawed", "--", "sh", "-c", write), "/etc/passwd\n/tmp/a\n")
}

func TestSafeSysctlsAreSetAndOthersRefused(t *testing.T) {
	s := newSpace(t)
	sysctl := func(pod string, pairs ...string) *corev1.Pod {
		var list []corev1.Sysctl
		for i := 0; i < len(pairs); i += 2 {
			list = append(list, corev1.Sysctl{Name: pairs[i], Value: pairs[i+1]})
		}
		return kube.Pod(pod, securePod(corev1.PodSecurityContext{Sysctls: list}))
	}
	s.create(
		sysctl("safe", "kernel.shm_rmid_forced", "1", "net.ipv4.ip_local_port_range", "40000 41000", "net.ipv4.ping_group_range", "0 7", "net.ipv4.tcp_keepalive_time", "77"),
		sysctl("unsafe", "kernel.msgmax", "10000"),
	)
	s.running("safe")
	want(t, "the settings", s.in("safe", "sh", "-c", `cd /proc/sys; echo $(cat kernel/shm_rmid_forced net/ipv4/ip_local_port_range net/ipv4/ping_group_range net/ipv4/tcp_keepalive_time)`), "1 40000 41000 0 7 77")
	p := s.pod("unsafe", "refused", func(p *corev1.Pod) bool { return p.Status.Phase == corev1.PodFailed })
	want(t, "why the pod was refused", p.Status.Reason, "SysctlForbidden")
	wantPart(t, "what was refused", p.Status.Message, "kernel.msgmax")
	if _, err := s.kubectlErr("run", "invalid", "--image="+kube.Image, "--overrides", `{"spec": {"securityContext": {"sysctls": [{"name": "foo-", "value": "1"}]}}}`); err == nil || !strings.Contains(err.Error(), "spec.securityContext.sysctls[0].name") {
		t.Errorf("a sysctl of an impossible name: %v", err)
	}
}

func TestRootOfAUserNamespaceIsNobodyOnTheNode(t *testing.T) {
	s := newSpace(t)
	s.create(kube.ConfigMap("settings", "colour", "green"),
		kube.Pod("mapped", kube.Spec(func(p *corev1.PodSpec) { p.HostUsers = new(false) }),
			kube.Mount("work", "/work", kube.Scratch()), kube.Mount("settings", "/settings", kube.Settings("settings")),
			secureBox(corev1.SecurityContext{Capabilities: &corev1.Capabilities{Add: []corev1.Capability{"SYS_ADMIN"}}})),
		kube.Pod("other", kube.Spec(func(p *corev1.PodSpec) { p.HostUsers = new(false) })))
	s.running("mapped")
	s.running("other")
	lines := strings.Split(s.in("mapped", "sh", "-c", `
id -u
echo $(cat /proc/self/uid_map)
touch /work/file /file && stat -c %u /work/file /file /settings/colour /bin/busybox
mkdir /tmp/m && mount -t tmpfs none /tmp/m && echo mounted`), "\n")
	if len(lines) != 7 {
		t.Fatalf("the pod wrote %q", lines)
	}
	want(t, "the user and its files, as seen in the pod", lines[0]+" "+strings.Join(lines[2:], " "), "0 0 0 0 0 mounted")
	mapping := strings.Fields(lines[1])
	if len(mapping) != 3 || mapping[0] != "0" || mapping[1] == "0" || mapping[2] != "65536" {
		t.Fatalf("the map of users is %q", lines[1])
	}
	other := strings.Fields(s.in("other", "cat", "/proc/self/uid_map"))
	if len(other) != 3 || other[1] == mapping[1] {
		t.Errorf("two pods have the same users: %q, %q", mapping, other)
	}
}

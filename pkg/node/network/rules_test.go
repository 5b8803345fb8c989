package network

import (
	"context"
	"encoding/json"
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func newRules(t *testing.T, cluster string) *Rules {
	r := NewRules(RulesConfig{ClusterCIDR: netip.MustParsePrefix(cluster), CacheDir: t.TempDir(), Log: testLog(t)})
	if err := os.MkdirAll(r.resultsDir(), 0o700); err != nil {
		t.Fatal(err)
	}
	return r
}

func table(t *testing.T) string { t.Helper(); return run(t, "nft", "list", "table", "inet", tableName) }

// note writes what libcni would about a pod with host ports.
func note(t *testing.T, r *Rules, pod, netns, addr string, ports ...map[string]any) string {
	t.Helper()
	path := filepath.Join(r.resultsDir(), networkName+"-"+pod+"-eth0")
	content := must[[]byte](t)(json.Marshal(map[string]any{
		"kind": "cniCacheV1", "netns": netns,
		"capabilityArgs": map[string]any{"portMappings": ports},
		"result":         map[string]any{"ips": []any{map[string]any{"address": addr}}},
	}))
	if err := os.WriteFile(path, content, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func tcpPort(host, pod int) map[string]any {
	return map[string]any{"hostPort": host, "containerPort": pod, "protocol": "tcp", "hostIP": ""}
}

func TestRulesComeBackAfterFlush(t *testing.T) {
	for _, cluster := range []string{"10.42.0.0/16", "fd42::/56"} {
		t.Run(cluster, func(t *testing.T) {
			inNetns(t)
			r := newRules(t, cluster)
			var want string
			for i, before := range []string{"", "", "flush ruleset", "delete table inet knarr", "flush table inet knarr"} {
				if before != "" {
					run(t, "nft", before)
				}
				if err := r.Apply(t.Context()); err != nil {
					t.Fatal(err)
				}
				got := table(t)
				if i == 0 {
					want = got
				}
				if got != want {
					t.Errorf("after %q:\n%s\nwant\n%s", before, got, want)
				}
			}
			if !strings.Contains(want, "saddr "+cluster) {
				t.Errorf("no rule about %s:\n%s", cluster, want)
			}
		})
	}
}

func TestHostPortsFollowThePods(t *testing.T) {
	ns := inNetns(t)
	r := newRules(t, "10.42.0.0/16")
	kept := note(t, r, "kept", pathOf(ns), "10.42.0.5/24", tcpPort(80, 8080),
		map[string]any{"hostPort": 53, "containerPort": 5353, "protocol": "udp", "hostIP": "10.0.0.1"},
		map[string]any{"hostPort": 54, "containerPort": 54, "protocol": "udp", "hostIP": "::1"})
	note(t, r, "other-network", pathOf(ns), "192.168.0.5/24", tcpPort(81, 8080))
	note(t, r, "before-boot", "/run/netns/gone", "10.42.0.6/24", tcpPort(82, 8080))
	if err := os.WriteFile(filepath.Join(r.resultsDir(), "torn"), []byte(`{"kind"`), 0o600); err != nil {
		t.Fatal(err)
	}

	ctx, cancel := context.WithCancel(t.Context())
	ready, done := make(chan struct{}), make(chan error, 1)
	go func() {
		enterThread(ns)
		done <- r.Run(ctx, ready)
	}()
	select {
	case <-ready:
	case err := <-done:
		t.Fatal(err)
	}
	got := table(t)
	for _, want := range []string{"tcp . 80 : 10.42.0.5 . 8080", "udp . 10.0.0.1 . 53 : 10.42.0.5 . 5353"} {
		if !strings.Contains(got, want) {
			t.Errorf("missing %s:\n%s", want, got)
		}
	}
	for _, not := range []string{" 54", " 81", " 82"} {
		if strings.Contains(got, not+" :") {
			t.Errorf("port%s must not be there:\n%s", not, got)
		}
	}

	watch := watchTable(t)
	note(t, r, "new", pathOf(ns), "10.42.0.7/24", tcpPort(83, 8083))
	watch.until(t, "10.42.0.7 . 8083")
	// The pod that was made later has the port.
	newer := note(t, r, "newer", pathOf(ns), "10.42.0.8/24", tcpPort(83, 8083))
	if err := os.Chtimes(newer, time.Time{}, time.Now().Add(time.Hour)); err != nil {
		t.Fatal(err)
	}
	note(t, r, "touch", pathOf(ns), "10.42.0.9/24", tcpPort(84, 8084))
	watch.until(t, "10.42.0.9 . 8084")
	if got := table(t); !strings.Contains(got, "tcp . 83 : 10.42.0.8 . 8083") {
		t.Errorf("the older pod kept the port:\n%s", got)
	}
	if err := os.Remove(kept); err != nil {
		t.Fatal(err)
	}
	watch.untilNot(t, "10.42.0.5")

	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	if got := table(t); !strings.Contains(got, "10.42.0.9") {
		t.Errorf("host ports went with the process, the pods have not:\n%s", got)
	}
}

func TestHostPortReachesItsPod(t *testing.T) {
	pod, node := plugPod(t)
	enter(t, pod.ns)
	serve(t, pod.addr.String()+":8080")
	enter(t, node.ns)
	if err := node.rules.Apply(t.Context()); err != nil {
		t.Fatal(err)
	}
	gateway := "10.42.0.1"
	for addr, seen := range map[string]string{
		"127.0.0.1:80":    gateway,
		"198.51.100.1:80": "198.51.100.1",
	} {
		if got := ask(t, addr); got != seen {
			t.Errorf("from the node to %s: pod sees %s, want %s", addr, got, seen)
		}
	}
	enter(t, pod.ns)
	if got := ask(t, "198.51.100.1:80"); got != gateway {
		t.Errorf("the pod reaches itself as %s, want %s", got, gateway)
	}
	enter(t, node.outside)
	if got := ask(t, "198.51.100.1:80"); got != "198.51.100.2" {
		t.Errorf("from outside: pod sees %s, want the client's own address", got)
	}
	serve(t, "198.51.100.2:8080")
	enter(t, pod.ns)
	if got := ask(t, "198.51.100.2:8080"); got != "198.51.100.1" {
		t.Errorf("outside sees the pod as %s, want the node's address", got)
	}
}

// tableWatch learns from the kernel when the packet filter of the thread's
// namespace has changed.
type tableWatch int

func watchTable(t *testing.T) tableWatch {
	t.Helper()
	fd := must[int](t)(unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_NETFILTER))
	t.Cleanup(func() { unix.Close(fd) })
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: 1 << (unix.NFNLGRP_NFTABLES - 1)}); err != nil {
		t.Fatal(err)
	}
	return tableWatch(fd)
}

func (w tableWatch) until(t *testing.T, text string)    { t.Helper(); w.wait(t, text, true) }
func (w tableWatch) untilNot(t *testing.T, text string) { t.Helper(); w.wait(t, text, false) }

func (w tableWatch) wait(t *testing.T, text string, there bool) {
	t.Helper()
	buf := make([]byte, 1<<16)
	for strings.Contains(table(t), text) != there {
		if _, _, err := unix.Recvfrom(int(w), buf, 0); err != nil && err != unix.ENOBUFS && err != unix.EINTR {
			t.Fatal(err)
		}
	}
}

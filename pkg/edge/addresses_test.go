package edge

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/strategicpatch"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"
)

// say has the kubelet tell that a pod has the addresses, as its status manager
// does: by the difference to what the API has.
func say(t *testing.T, c kubernetes.Interface, name string, ips ...string) error {
	t.Helper()
	ctx, pods := context.Background(), c.CoreV1().Pods("shop")
	p, err := pods.Get(ctx, name, metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	was, now := p.Status, p.Status.DeepCopy()
	now.PodIP, now.PodIPs = "", nil
	now.Message = "it has " + strings.Join(ips, ", ")
	for _, ip := range ips {
		now.PodIP = ips[0]
		now.PodIPs = append(now.PodIPs, corev1.PodIP{IP: ip})
	}
	text := func(s corev1.PodStatus) []byte {
		b, err := json.Marshal(corev1.Pod{Status: s})
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	patch, err := strategicpatch.CreateTwoWayMergePatch(text(was), text(*now), corev1.Pod{})
	if err != nil {
		t.Fatal(err)
	}
	var m map[string]any
	if err := json.Unmarshal(patch, &m); err != nil {
		t.Fatal(err)
	}
	m["metadata"] = map[string]any{"uid": p.UID}
	if patch, err = json.Marshal(m); err != nil {
		t.Fatal(err)
	}
	_, err = pods.Patch(ctx, name, types.StrategicMergePatchType, patch, metav1.PatchOptions{}, "status")
	return err
}

// reach tells where the slices lead: "web-1 10.42.1.5 fd00::5".
func reach(p *parts) string {
	at := map[string][]string{}
	for _, obj := range p.informers[7].GetStore().List() {
		for _, e := range obj.(*discoveryv1.EndpointSlice).Endpoints {
			at[e.TargetRef.Name] = append(at[e.TargetRef.Name], e.Addresses...)
		}
	}
	var all []string
	for name, ips := range at {
		slices.Sort(ips)
		all = append(all, name+" "+strings.Join(ips, " "))
	}
	slices.Sort(all)
	return strings.Join(all, ", ")
}

// newStreet is a cluster whose pods are known by their addresses.
func newStreet(t *testing.T) *apiServer {
	a := newAPIServer(t)
	a.put(node("edge-1"), service("web", "10.43.0.20"), secret("password", secretText), configMap("settings", "x=1"))
	at := map[string][]string{
		"web-1": {"10.42.1.5", "fd00::5"}, "web-2": {"10.42.1.6", "fd00::6"},
		"host-1": {"192.0.2.1"}, "host-2": {"192.0.2.1"},
	}
	for name, ips := range at {
		p := pod(name, "edge-1")
		p.Spec.HostNetwork = strings.HasPrefix(name, "host")
		p.Status.PodIP = ips[0]
		for _, ip := range ips {
			p.Status.PodIPs = append(p.Status.PodIPs, corev1.PodIP{IP: ip})
		}
		a.put(p)
		a.place(name, ips...)
	}
	return a
}

// place is what the controller of EndpointSlices does.
func (a *apiServer) place(name string, ips ...string) {
	a.mu.Lock()
	uid := a.objects[podResource]["shop/"+name].(*corev1.Pod).UID
	a.mu.Unlock()
	for i, ip := range ips {
		s := slice(fmt.Sprintf("%s-%d", name, i), ip)
		s.AddressType = familyOf(ip)
		s.Endpoints[0].TargetRef = &corev1.ObjectReference{Kind: "Pod", Namespace: "shop", Name: name, UID: uid}
		a.put(s)
	}
}

const street = "host-1 192.0.2.1, host-2 192.0.2.1, web-1 10.42.1.5 fd00::5, web-2 10.42.1.6 fd00::6"

// Pods that start again while no server can be reached swap their addresses:
// nobody is led to the wrong one, and what is open learns of it.
func TestPodsThatSwapTheirAddressesAreFound(t *testing.T) {
	forEveryClient(t, func(t *testing.T, asJSON bool) {
		a, dir := newStreet(t), t.TempDir()
		s := openStore(t, dir)
		p := startParts(t, clientOf(t, newLine(a), s, asJSON))
		settle(time.Second)
		p.stop()
		closeStore(t, s)

		s = openStore(t, dir)
		l := newLine(a)
		l.become(refused)
		c := clientOf(t, l, s, asJSON)
		p = startParts(t, c)
		settle(2100 * time.Millisecond)
		look := func(p *parts, want string) {
			t.Helper()
			settle(10 * time.Millisecond)
			if got := reach(p); got != want {
				t.Errorf("the slices lead to %s\nwant %s", got, want)
			}
		}
		look(p, street)
		for _, step := range []struct {
			name string
			ips  []string
			want string
		}{
			{"host-1", []string{"192.0.2.1"}, street}, // as the kept one: others have it too
			{"web-2", nil, street},                    // its sandbox is not there yet: nobody else has its address either
			// web-2 has not said where it is: anywhere but there.
			{"web-1", []string{"10.42.1.6", "fd00::6"}, "host-1 192.0.2.1, host-2 192.0.2.1, web-1 10.42.1.6 fd00::6"},
			{"web-2", nil, "host-1 192.0.2.1, host-2 192.0.2.1, web-1 10.42.1.6 fd00::6"},
			{"web-2", []string{"10.42.1.5", "fd00::5"}, "host-1 192.0.2.1, host-2 192.0.2.1, web-1 10.42.1.6 fd00::6, web-2 10.42.1.5 fd00::5"},
			{"host-2", []string{"192.0.2.9"}, "host-1 192.0.2.1, host-2 192.0.2.9, web-1 10.42.1.6 fd00::6, web-2 10.42.1.5 fd00::5"},
			{"web-2", []string{"10.42.1.7", "fd00::7"}, "host-1 192.0.2.1, host-2 192.0.2.9, web-1 10.42.1.6 fd00::6, web-2 10.42.1.7 fd00::7"},
			// Who has an address said it last.
			{"web-1", []string{"10.42.1.7", "fd00::7"}, "host-1 192.0.2.1, host-2 192.0.2.9, web-1 10.42.1.7 fd00::7, web-2 10.42.1.6 fd00::6"},
			{"web-2", nil, "host-1 192.0.2.1, host-2 192.0.2.9, web-1 10.42.1.7 fd00::7, web-2 10.42.1.6 fd00::6"},
			// As the kept one: nothing is said of it.
			{"web-2", []string{"10.42.1.6", "fd00::6"}, "host-1 192.0.2.1, host-2 192.0.2.9, web-1 10.42.1.7 fd00::7, web-2 10.42.1.6 fd00::6"},
		} {
			for range 2 { // the kubelet says it again and again
				if err := say(t, c, step.name, step.ips...); err == nil {
					t.Error("a write succeeded with no server in reach")
				}
				look(p, step.want)
			}
		}
		now := reach(p)
		late := startParts(t, clientOf(t, l, s, !asJSON)) // one that lists only now
		look(late, now)
		settle(time.Hour)
		look(p, now)

		// The server is back. What it says counts, also where it is of before.
		l.become(up)
		settle(back)
		look(p, street)
		a.place("web-1", "10.42.1.6", "fd00::6")
		look(p, "host-1 192.0.2.1, host-2 192.0.2.1, web-1 10.42.1.6 fd00::6, web-2 10.42.1.6 fd00::6")
		late.stop()
		p.stop()
		closeStore(t, s)
	})
}

// A pod gets another address while a server is there, which has no time left to
// tell of it.
func TestWhatTheKubeletSaidLastCounts(t *testing.T) {
	forEveryClient(t, func(t *testing.T, asJSON bool) {
		a := newStreet(t)
		s, l := openStore(t, t.TempDir()), newLine(a)
		c := clientOf(t, l, s, asJSON)
		p := startParts(t, c)
		settle(time.Second)
		if err := say(t, c, "web-1", "10.42.1.8", "fd00::8"); err != nil {
			t.Fatal(err)
		}
		settle(time.Second)
		if got := reach(p); got != street {
			t.Errorf("with a server, the slices lead to %s", got)
		}
		l.become(refused)
		settle(time.Second)
		// One that begins now sees it. One that runs goes on from what the server told.
		late := startParts(t, clientOf(t, l, s, asJSON))
		settle(time.Second)
		if got := reach(late); !strings.Contains(got, "web-1 10.42.1.8 fd00::8") {
			t.Errorf("the slices lead to %s", got)
		}
		if err := say(t, c, "web-2", "10.42.1.9", "fd00::9"); err == nil {
			t.Error("a write succeeded with no server in reach")
		}
		settle(time.Second)
		for _, p := range []*parts{p, late} {
			if got := reach(p); !strings.Contains(got, "web-2 10.42.1.9 fd00::9") {
				t.Errorf("the slices lead to %s", got)
			}
		}
		l.become(up)
		settle(back)
		for _, p := range []*parts{p, late} {
			if got := reach(p); got != street {
				t.Errorf("with a server again, the slices lead to %s", got)
			}
			if !cache.WaitForCacheSync(t.Context().Done(), p.informers[7].HasSynced) {
				t.Error("not in step")
			}
		}
		if n := len(s.addresses.open); n > 0 {
			t.Errorf("%d watches are still told of addresses", n)
		}
		late.stop()
		p.stop()
		closeStore(t, s)
	})
}

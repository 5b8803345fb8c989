package edge

import (
	"context"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	storagev1 "k8s.io/api/storage/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	utilnet "k8s.io/apimachinery/pkg/util/net"
	clientfeatures "k8s.io/client-go/features"
	clientfeaturestesting "k8s.io/client-go/features/testing"
	coreinformers "k8s.io/client-go/informers/core/v1"
	discoveryinformers "k8s.io/client-go/informers/discovery/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"
)

func pod(name, node string) *corev1.Pod {
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: name, Labels: map[string]string{"app": "web"}},
		Spec: corev1.PodSpec{
			NodeName: node, ServiceAccountName: "web",
			Volumes: []corev1.Volume{
				{Name: "pw", VolumeSource: corev1.VolumeSource{Secret: &corev1.SecretVolumeSource{SecretName: "password"}}},
				{Name: "data", VolumeSource: corev1.VolumeSource{PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: "data"}}},
			},
			Containers: []corev1.Container{{Name: "web", Image: "web:1", EnvFrom: []corev1.EnvFromSource{{
				ConfigMapRef: &corev1.ConfigMapEnvSource{LocalObjectReference: corev1.LocalObjectReference{Name: "settings"}},
			}}}},
		},
		Status: corev1.PodStatus{Phase: corev1.PodRunning},
	}
}

func service(name, ip string) *corev1.Service {
	return &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: name},
		Spec:       corev1.ServiceSpec{ClusterIP: ip, Ports: []corev1.ServicePort{{Port: 80}}},
	}
}

func slice(name string, addresses ...string) *discoveryv1.EndpointSlice {
	return &discoveryv1.EndpointSlice{
		ObjectMeta:  metav1.ObjectMeta{Namespace: "shop", Name: name, Labels: map[string]string{"kubernetes.io/service-name": "web"}},
		AddressType: discoveryv1.AddressTypeIPv4, Endpoints: []discoveryv1.Endpoint{{Addresses: addresses}},
	}
}

func node(name string) *corev1.Node {
	return &corev1.Node{
		ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: corev1.NodeSpec{PodCIDR: "10.42.1.0/24"},
		Status: corev1.NodeStatus{Conditions: []corev1.NodeCondition{{Type: corev1.NodeReady, Status: corev1.ConditionTrue, LastHeartbeatTime: metav1.Unix(1000, 0)}}},
	}
}

func secret(name, text string) *corev1.Secret {
	return &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: name}, Data: map[string][]byte{"text": []byte(text)}}
}

func configMap(name, text string) *corev1.ConfigMap {
	return &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: name}, Data: map[string]string{"text": text}}
}

func claim(name, volume string) *corev1.PersistentVolumeClaim {
	return &corev1.PersistentVolumeClaim{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: name}, Spec: corev1.PersistentVolumeClaimSpec{VolumeName: volume}}
}

func volume(name string) *corev1.PersistentVolume {
	return &corev1.PersistentVolume{ObjectMeta: metav1.ObjectMeta{Name: name}}
}

const secretText = "correct horse battery staple"

// newShop is a cluster with a node, edge-1, that has pods.
func newShop(t *testing.T) *apiServer {
	a := newAPIServer(t)
	a.put(
		node("edge-1"), node("edge-2"),
		pod("web-1", "edge-1"), pod("web-2", "edge-1"), pod("web-3", "edge-2"),
		service("web", "10.43.0.20"), service("db", "10.43.0.21"), service("headless", "None"),
		slice("web-a", "10.42.1.5"), slice("web-b", "10.42.2.5"),
		secret("password", secretText), secret("other", "not asked for"), configMap("settings", "x=1"),
		claim("data", "pv-1"), volume("pv-1"),
		&storagev1.CSINode{ObjectMeta: metav1.ObjectMeta{Name: "edge-1"}},
	)
	return a
}

// parts are what runs on a node, as far as it reads the API server.
type parts struct {
	t         *testing.T
	informers []cache.SharedIndexInformer
	cancel    context.CancelFunc
	wg        sync.WaitGroup

	mu     sync.Mutex
	events []string
}

// startParts starts informers with the selectors of kubelet, kube-proxy and DNS.
func startParts(t *testing.T, c kubernetes.Interface) *parts {
	t.Helper()
	fields := func(text string) func(*metav1.ListOptions) {
		return func(o *metav1.ListOptions) { o.FieldSelector = text }
	}
	ctx, cancel := context.WithCancel(context.Background())
	p := &parts{t: t, cancel: cancel, informers: []cache.SharedIndexInformer{
		coreinformers.NewFilteredNodeInformer(c, 0, nil, fields("metadata.name=edge-1")),
		coreinformers.NewFilteredPodInformer(c, "", 0, nil, fields("spec.nodeName=edge-1")),
		coreinformers.NewFilteredSecretInformer(c, "shop", 0, nil, fields("metadata.name=password")),
		coreinformers.NewFilteredConfigMapInformer(c, "shop", 0, nil, fields("metadata.name=settings")),
		coreinformers.NewFilteredConfigMapInformer(c, "shop", 0, nil, fields("metadata.name=optional")),
		coreinformers.NewServiceInformer(c, "", 0, nil),
		coreinformers.NewFilteredServiceInformer(c, "", 0, nil, func(o *metav1.ListOptions) {
			o.LabelSelector, o.FieldSelector = "!service.kubernetes.io/service-proxy-name", "spec.clusterIP!=None"
		}),
		discoveryinformers.NewFilteredEndpointSliceInformer(c, "", 0, nil, func(o *metav1.ListOptions) { o.LabelSelector = "!service.kubernetes.io/headless" }),
	}}
	for i, inf := range p.informers {
		log := func(what string, obj any) {
			if gone, ok := obj.(cache.DeletedFinalStateUnknown); ok {
				obj = gone.Obj
			}
			p.mu.Lock()
			defer p.mu.Unlock()
			p.events = append(p.events, fmt.Sprintf("%d %s %s", i, what, nameOf(obj.(runtime.Object))))
		}
		if _, err := inf.AddEventHandler(cache.ResourceEventHandlerFuncs{
			AddFunc: func(obj any) { log("add", obj) },
			UpdateFunc: func(old, obj any) {
				// Also what a list repeats is told as an update, with the same
				// version, which handlers know to pass over.
				a, _ := meta.Accessor(old)
				b, _ := meta.Accessor(obj)
				if a.GetResourceVersion() != b.GetResourceVersion() {
					log("update", obj)
				}
			},
			DeleteFunc: func(obj any) { log("delete", obj) },
		}); err != nil {
			t.Fatal(err)
		}
		p.wg.Go(func() { inf.RunWithContext(ctx) })
	}
	t.Cleanup(p.stop)
	return p
}

func (p *parts) stop() {
	p.cancel()
	p.wg.Wait()
}

// settle waits until nothing happens any more without time passing, and then for
// the time.
func settle(d time.Duration) {
	synctest.Wait()
	time.Sleep(d)
	synctest.Wait()
}

// back is in what time everything is as the server has it, once there is one: the
// longest pause between probes, and what client-go's reflector waits.
const back = 9 * time.Second

// synced fails the test unless all informers know what they asked for.
func (p *parts) synced() {
	p.t.Helper()
	for i, inf := range p.informers {
		if !inf.HasSynced() {
			p.t.Fatalf("informer %d has nothing", i)
		}
	}
}

// told returns what handlers were told since the last call, in no order.
func (p *parts) told() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	e := p.events
	p.events = nil
	slices.Sort(e)
	return e
}

// content is all that the informers know, without what is only of the way here.
func (p *parts) content() map[string]string {
	all := map[string]string{}
	for i, inf := range p.informers {
		for _, obj := range inf.GetStore().List() {
			o := obj.(runtime.Object).DeepCopyObject()
			m, _ := meta.Accessor(o)
			m.SetManagedFields(nil)
			o.GetObjectKind().SetGroupVersionKind(schema.GroupVersionKind{})
			all[fmt.Sprintf("%d %s", i, nameOf(o))] = fmt.Sprintf("%+v", o)
		}
	}
	return all
}

func (p *parts) names() []string { return slices.Sorted(maps.Keys(p.content())) }

func shopNames() []string {
	return []string{
		"0 /edge-1", "1 shop/web-1", "1 shop/web-2", "2 shop/password", "3 shop/settings",
		"5 shop/db", "5 shop/headless", "5 shop/web", "6 shop/db", "6 shop/web", "7 shop/web-a", "7 shop/web-b",
	}
}

func tokenFor(c kubernetes.Interface, account, uid string, audiences ...string) (string, error) {
	seconds := int64(3607)
	r, err := c.CoreV1().ServiceAccounts("shop").CreateToken(context.Background(), account, &authenticationv1.TokenRequest{
		Spec: authenticationv1.TokenRequestSpec{
			Audiences: audiences, ExpirationSeconds: &seconds,
			BoundObjectRef: &authenticationv1.BoundObjectReference{Kind: "Pod", APIVersion: "v1", Name: "web-1", UID: types.UID(uid)},
		},
	}, metav1.CreateOptions{})
	if err != nil {
		return "", err
	}
	return r.Status.Token, nil
}

// readByName is what a kubelet asks for by name.
func readByName(t *testing.T, c kubernetes.Interface) {
	t.Helper()
	ctx, core := context.Background(), c.CoreV1()
	pvc, err := core.PersistentVolumeClaims("shop").Get(ctx, "data", metav1.GetOptions{})
	if err != nil || pvc.Spec.VolumeName != "pv-1" {
		t.Errorf("read the claim: %v, %v", pvc.Spec.VolumeName, err)
	}
	if _, err := core.PersistentVolumes().Get(ctx, "pv-1", metav1.GetOptions{}); err != nil {
		t.Errorf("read the volume: %v", err)
	}
	if _, err := c.StorageV1().CSINodes().Get(ctx, "edge-1", metav1.GetOptions{ResourceVersion: "0"}); err != nil {
		t.Errorf("read the CSINode: %v", err)
	}
	// Objects of lists, too.
	n, err := core.Nodes().Get(ctx, "edge-1", metav1.GetOptions{})
	if err != nil || n.Spec.PodCIDR != "10.42.1.0/24" {
		t.Errorf("read the Node: %v, %v", n.Spec.PodCIDR, err)
	}
}

// forEveryClient runs a test in a bubble of time for each way in which client-go
// can be told to read.
func forEveryClient(t *testing.T, f func(t *testing.T, asJSON bool)) {
	for _, watchList := range []bool{true, false} {
		for _, asJSON := range []bool{false, true} {
			t.Run(fmt.Sprintf("watchlist=%v,json=%v", watchList, asJSON), func(t *testing.T) {
				clientfeaturestesting.SetFeatureDuringTest(t, clientfeatures.WatchListClient, watchList)
				synctest.Test(t, func(t *testing.T) { f(t, asJSON) })
			})
		}
	}
}

// run lets a node read what it needs while a server answers, and then the machine
// is switched off.
func run(t *testing.T, dir string, a *apiServer, asJSON bool) (content map[string]string, podToken string) {
	t.Helper()
	s := openStore(t, dir)
	c := clientOf(t, newLine(a), s, asJSON)
	p := startParts(t, c)
	settle(time.Second)
	p.synced()
	readByName(t, c)
	podToken, err := tokenFor(c, "web", "uid-1")
	if err != nil {
		t.Fatal(err)
	}
	if names := p.names(); !slices.Equal(names, shopNames()) {
		t.Fatalf("read %q", names)
	}
	p.stop()
	closeStore(t, s)
	return p.content(), podToken
}

// A machine boots and no server is in reach, in any way in which one can be out
// of reach: everything is there, at once, as it was.
func TestANodeStartsWithNoServerInReach(t *testing.T) {
	forEveryClient(t, func(t *testing.T, asJSON bool) {
		a, dir := newShop(t), t.TempDir()
		content, podToken := run(t, dir, a, asJSON)

		for _, state := range []lineState{refused, dead} {
			s := openStore(t, dir)
			l := newLine(a)
			l.become(state)
			// By a client of the other kind: what was kept is of no form.
			c := clientOf(t, l, s, !asJSON)
			begin := time.Now()
			p := startParts(t, c)
			settle(2100 * time.Millisecond)
			p.synced()
			if got := p.content(); !maps.Equal(got, content) {
				t.Errorf("kept %v\nwant %v", got, content)
			}
			readByName(t, c)
			if again, err := tokenFor(c, "web", "uid-1"); err != nil || again != podToken {
				t.Errorf("token %q, %v; want %q", again, err, podToken)
			}
			if took := time.Since(begin); took > 2500*time.Millisecond {
				t.Errorf("the node had what it needs after %v", took)
			}
			if !s.Offline() || !s.Status().Offline || s.Status().Error == "" || s.Status().LastContact.IsZero() {
				t.Errorf("status: %+v", s.Status())
			}
			// Nothing happens for hours, and nothing is asked but for a server.
			p.told()
			before := l.count()
			settle(2 * time.Hour)
			if e := p.told(); len(e) > 0 {
				t.Errorf("told %q", e)
			}
			if probes := l.count() - before; probes > 2*3600/5 {
				t.Errorf("%d requests in two hours", probes)
			}
			p.stop()
			closeStore(t, s)
		}
	})
}

func TestWhatIsNotKeptFailsAsWithoutTheStore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, dir := newShop(t), t.TempDir()
		run(t, dir, a, false)
		s := openStore(t, dir)
		l := newLine(a)
		l.become(refused)
		c := clientOf(t, l, s, false)
		ctx, core := context.Background(), c.CoreV1()

		isRefused := func(what string, err error) {
			t.Helper()
			if !utilnet.IsConnectionRefused(err) {
				t.Errorf("%s: %v, want a refused connection", what, err)
			}
		}
		_, err := core.Secrets("shop").Get(ctx, "other", metav1.GetOptions{})
		isRefused("a Secret that was never read", err)
		_, err = core.Pods("shop").Get(ctx, "web-3", metav1.GetOptions{})
		isRefused("another node's pod", err)
		_, err = core.Secrets("shop").List(ctx, metav1.ListOptions{})
		isRefused("a list that was never read", err)
		_, err = core.Services("").List(ctx, metav1.ListOptions{LabelSelector: "app=web"})
		isRefused("a list by another selector", err)
		_, err = core.Services("").List(ctx, metav1.ListOptions{Continue: "2"})
		isRefused("the rest of a list", err)
		_, err = core.Secrets("shop").Watch(ctx, metav1.ListOptions{})
		isRefused("a watch of what was never read", err)
		_, err = tokenFor(c, "web", "uid-2")
		isRefused("another pod's token", err)
		_, err = tokenFor(c, "other", "uid-1")
		isRefused("another account's token", err)
		_, err = tokenFor(c, "web", "uid-1", "vault")
		isRefused("a token for another audience", err)
		_, err = core.Nodes().Patch(ctx, "edge-1", types.StrategicMergePatchType, []byte("{}"), metav1.PatchOptions{}, "status")
		isRefused("a write", err)
		_, err = core.Events("shop").Create(ctx, &corev1.Event{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "e"}}, metav1.CreateOptions{})
		isRefused("an event", err)
	})
}

// The server comes back with other content: the differences are told, and nothing
// else is.
func TestEverythingConvergesWhenAServerIsBack(t *testing.T) {
	forEveryClient(t, func(t *testing.T, asJSON bool) {
		a, dir := newShop(t), t.TempDir()
		run(t, dir, a, asJSON)
		s := openStore(t, dir)
		l := newLine(a)
		l.become(refused)
		c := clientOf(t, l, s, asJSON)
		p := startParts(t, c)
		settle(time.Hour)
		p.synced()
		p.told()

		a.delete(pod("web-2", ""))
		a.put(pod("web-4", "edge-1"), service("web", "10.43.0.99"), secret("password", "new"), configMap("optional", "now"))
		a.delete(service("db", ""))
		changed := s.Changed()
		l.become(up)
		settle(back)
		want := []string{
			"1 add shop/web-4", "1 delete shop/web-2", "2 update shop/password", "4 add shop/optional",
			"5 delete shop/db", "5 update shop/web", "6 delete shop/db", "6 update shop/web",
		}
		if e := p.told(); !slices.Equal(e, want) {
			t.Errorf("told %q\nwant %q", e, want)
		}
		select {
		case <-changed:
		default:
			t.Error("nobody was told that a server is back")
		}
		if s.Offline() {
			t.Error("still offline")
		}

		// It is followed again, and kept.
		a.put(pod("web-5", "edge-1"))
		settle(3 * time.Second)
		if e := p.told(); !slices.Equal(e, []string{"1 add shop/web-5"}) {
			t.Errorf("told %q", e)
		}
		content := p.content()
		p.stop()
		closeStore(t, s)
		l.become(refused)
		s = openStore(t, dir)
		p = startParts(t, clientOf(t, l, s, asJSON))
		settle(time.Second)
		if got := p.content(); !maps.Equal(got, content) {
			t.Errorf("kept %v\nwant %v", got, content)
		}
	})
}

// The datastore was set back to an older backup while the node was away.
func TestADatastoreThatWasSetBackIsFollowed(t *testing.T) {
	forEveryClient(t, func(t *testing.T, asJSON bool) {
		a, dir := newShop(t), t.TempDir()
		run(t, dir, a, asJSON)
		s := openStore(t, dir)
		l := newLine(a)
		l.become(refused)
		p := startParts(t, clientOf(t, l, s, asJSON))
		settle(time.Minute)
		p.told()

		a.delete(pod("web-2", ""))
		a.setBack(50)
		a.put(service("web", "10.43.0.99"))
		l.become(up)
		settle(time.Minute)
		if e := p.told(); !slices.Equal(e, []string{"1 delete shop/web-2", "5 update shop/web", "6 update shop/web"}) {
			t.Errorf("told %q", e)
		}
		a.put(pod("web-5", "edge-1"))
		settle(time.Second)
		if e := p.told(); !slices.Equal(e, []string{"1 add shop/web-5"}) {
			t.Errorf("told %q", e)
		}
	})
}

// A server restarts. Clients that run go on where they were: nothing is listed
// anew, nothing missed, and nobody backs off for half a minute.
func TestAnOutageWhileRunningIsResumedWithoutListing(t *testing.T) {
	forEveryClient(t, func(t *testing.T, asJSON bool) {
		a := newShop(t)
		s := openStore(t, t.TempDir())
		l := newLine(a)
		p := startParts(t, clientOf(t, l, s, asJSON))
		settle(10 * time.Minute)
		p.synced()
		for _, outage := range []time.Duration{10 * time.Millisecond, time.Second, 20 * time.Second, time.Hour} {
			p.told()
			l.become(refused)
			settle(outage / 2)
			a.put(service("new", fmt.Sprintf("10.43.1.%d", outage/time.Second%256)))
			settle(outage / 2)
			a.seen("")
			l.become(up)
			settle(back)
			what := "update"
			if outage < time.Second {
				what = "add"
			}
			if e := p.told(); !slices.Equal(e, []string{"5 " + what + " shop/new", "6 " + what + " shop/new"}) {
				t.Errorf("after %v: told %q", outage, e)
			}
			for _, r := range a.seen("GET /api") {
				if !strings.Contains(r, "watch=true") || strings.Contains(r, "sendInitialEvents") {
					t.Errorf("after %v, listed anew: %s", outage, r)
				}
			}
		}
	})
}

// A server that is there is heard, whatever it says.
func TestRefusalsOfAServerGetThrough(t *testing.T) {
	for _, status := range []int{401, 403, 404, 410, 429} {
		t.Run(fmt.Sprint(status), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				a, dir := newShop(t), t.TempDir()
				run(t, dir, a, false)
				s := openStore(t, dir)
				l := newLine(a)
				l.become(refused)
				c := clientOf(t, l, s, false)
				get := func() error {
					_, err := c.CoreV1().Nodes().Get(context.Background(), "edge-1", metav1.GetOptions{})
					return err
				}
				if err := get(); err != nil {
					t.Fatal(err)
				}
				a.set(func() { a.status = status })
				l.become(up)
				settle(back)
				if s.Offline() {
					t.Fatal("a server that answers is not heard")
				}
				if err := get(); int(statusOf(err)) != status {
					t.Errorf("answer %v, want a status of %d", err, status)
				}
			})
		})
	}
}

func statusOf(err error) int32 {
	if s, ok := err.(apierrors.APIStatus); ok {
		return s.Status().Code
	}
	return 0
}

// A load balancer with no server behind it answers 502, 503 or 504; a server
// whose datastore is away 500.
func TestALoadBalancerWithoutServersIsNoServer(t *testing.T) {
	for _, status := range []int{500, 502, 503, 504} {
		t.Run(fmt.Sprint(status), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				a, dir := newShop(t), t.TempDir()
				run(t, dir, a, false)
				s := openStore(t, dir)
				c := clientOf(t, newLine(a), s, false)
				p := startParts(t, c)
				settle(time.Minute)
				a.set(func() { a.status = status })
				ctx, core := context.Background(), c.CoreV1()
				if _, err := core.Nodes().Get(ctx, "edge-1", metav1.GetOptions{}); err != nil || !s.Offline() {
					t.Errorf("what is kept: %v; offline: %v", err, s.Offline())
				}
				if _, err := core.Nodes().Get(ctx, "edge-2", metav1.GetOptions{}); int(statusOf(err)) != status {
					t.Errorf("what is not kept: %v", err)
				}
				if _, err := core.Services("").List(ctx, metav1.ListOptions{}); err != nil {
					t.Errorf("a list that is kept: %v", err)
				}
				settle(time.Hour)
				a.set(func() { a.status = 0 })
				settle(back)
				if s.Offline() {
					t.Error("still offline")
				}
				p.synced()
			})
		})
	}
}

// One request fails at a server that is ready: that is the server's answer.
func TestAnErrorOfAReadyServerIsPassedOn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newShop(t)
		s := openStore(t, t.TempDir())
		c := clientOf(t, newLine(a), s, false)
		get := func() error {
			_, err := c.CoreV1().Nodes().Get(context.Background(), "edge-1", metav1.GetOptions{})
			return err
		}
		if err := get(); err != nil {
			t.Fatal(err)
		}
		flush(t, s)
		a.set(func() { a.failing["/api/v1/nodes/edge-1"] = 500 })
		if err := get(); statusOf(err) != 500 || s.Offline() {
			t.Errorf("answer %v, offline %v", err, s.Offline())
		}
	})
}

// No request waits for the timeouts of a dead network, neither when the node
// starts nor when the network dies later.
func TestADeadNetworkHoldsNoReadUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, dir := newShop(t), t.TempDir()
		run(t, dir, a, false)
		s := openStore(t, dir)
		l := newLine(a)
		c := clientOf(t, l, s, false)
		lim := defaultLimits()
		read := func(want time.Duration) {
			t.Helper()
			begin := time.Now()
			if _, err := c.CoreV1().Nodes().Get(context.Background(), "edge-1", metav1.GetOptions{}); err != nil {
				t.Error(err)
			}
			if took := time.Since(begin); took != want {
				t.Errorf("took %v, want %v", took, want)
			}
		}
		l.become(dead)
		read(lim.first) // no server has ever answered
		read(0)
		l.become(up)
		settle(back)
		read(0)
		if s.Offline() {
			t.Fatal("still offline")
		}
		l.become(dead)
		read(lim.patience + lim.verdict) // it could be slow
		read(0)
		read(0)
		// Writes and what is not kept wait, as without the store.
		begin := time.Now()
		if _, err := c.CoreV1().Nodes().Get(context.Background(), "edge-2", metav1.GetOptions{}); err == nil || time.Since(begin) != dialTimeout {
			t.Errorf("what is not kept: %v after %v", err, time.Since(begin))
		}
	})
}

// A server that is slow is waited for: its answer is worth more than an old one.
func TestASlowServerIsWaitedFor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, dir := newShop(t), t.TempDir()
		run(t, dir, a, false)
		s := openStore(t, dir)
		l := newLine(slow{a, 25 * time.Second})
		c := clientOf(t, l, s, false)
		if _, err := c.CoreV1().Services("").List(context.Background(), metav1.ListOptions{Limit: 1}); err != nil {
			t.Fatal(err) // kept: no server has answered within two seconds
		}
		settle(back)
		if s.Offline() {
			t.Fatal("a server that is ready was not found")
		}
		a.put(service("web", "10.43.0.99"))
		begin := time.Now()
		svc, err := c.CoreV1().Services("shop").Get(context.Background(), "web", metav1.GetOptions{})
		if err != nil || svc.Spec.ClusterIP != "10.43.0.99" || time.Since(begin) != 25*time.Second {
			t.Errorf("%v, %v after %v", svc.Spec.ClusterIP, err, time.Since(begin))
		}
	})
}

// slow is a server that takes its time, other than to say that it is ready.
type slow struct {
	http.Handler
	by time.Duration
}

func (s slow) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.URL.Path != "/readyz" {
		select {
		case <-time.After(s.by):
		case <-r.Context().Done():
			return
		}
	}
	s.Handler.ServeHTTP(w, r)
}

// The tokens that pods had outlive restarts, however expired, the last of each.
func TestTheLastTokenOfAPodIsKept(t *testing.T) {
	forEveryClient(t, func(t *testing.T, asJSON bool) {
		a, dir := newShop(t), t.TempDir()
		s := openStore(t, dir)
		l := newLine(a)
		c := clientOf(t, l, s, asJSON)
		want := map[string]string{}
		for range 3 {
			for _, audience := range []string{"", "vault", "mesh"} {
				for _, uid := range []string{"uid-1", "uid-2"} {
					var audiences []string
					if audience != "" {
						audiences = []string{audience}
					}
					text, err := tokenFor(c, "web", uid, audiences...)
					if err != nil {
						t.Fatal(err)
					}
					want[uid+audience] = text
				}
			}
		}
		closeStore(t, s)
		l.become(refused)
		s = openStore(t, dir)
		c = clientOf(t, l, s, !asJSON)
		for _, audience := range []string{"", "vault", "mesh"} {
			for _, uid := range []string{"uid-1", "uid-2"} {
				var audiences []string
				if audience != "" {
					audiences = []string{audience}
				}
				if text, err := tokenFor(c, "web", uid, audiences...); err != nil || text != want[uid+audience] {
					t.Errorf("%s, %q: %q, %v; want %q", uid, audience, text, err, want[uid+audience])
				}
			}
		}
		l.become(up)
		settle(back)
		if text, err := tokenFor(c, "web", "uid-1"); err != nil || text == want["uid-1"] {
			t.Errorf("a server that is back gives no new token: %q, %v", text, err)
		}
	})
}

// The kubelet makes its CSINode, does not read it again, and ends the process if
// it can't read it at its next start.
func TestTheCSINodeThatTheNodeMadeIsKept(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, dir := newAPIServer(t), t.TempDir()
		s := openStore(t, dir)
		l := newLine(a)
		c := clientOf(t, l, s, false)
		ctx, nodes := context.Background(), c.StorageV1().CSINodes()
		if _, err := nodes.Get(ctx, "edge-1", metav1.GetOptions{}); !apierrors.IsNotFound(err) {
			t.Fatal(err)
		}
		n, err := nodes.Create(ctx, &storagev1.CSINode{ObjectMeta: metav1.ObjectMeta{Name: "edge-1"}}, metav1.CreateOptions{})
		if err != nil {
			t.Fatal(err)
		}
		n.Spec.Drivers = []storagev1.CSINodeDriver{{Name: "disks", NodeID: "1"}}
		if _, err := nodes.Update(ctx, n, metav1.UpdateOptions{}); err != nil {
			t.Fatal(err)
		}
		closeStore(t, s)
		l.become(refused)
		s = openStore(t, dir)
		c = clientOf(t, l, s, false)
		got, err := c.StorageV1().CSINodes().Get(ctx, "edge-1", metav1.GetOptions{ResourceVersion: "0"})
		if err != nil || len(got.Spec.Drivers) != 1 {
			t.Errorf("%v, %v", got, err)
		}
	})
}

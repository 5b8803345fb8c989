package membership

import (
	"crypto/ecdsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	certificatesv1 "k8s.io/api/certificates/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	clienttesting "k8s.io/client-go/testing"
)

// inBubble runs a test whose clock is its own.
func inBubble(t *testing.T, f func(t *testing.T)) {
	t.Helper()
	synctest.Test(t, f)
}

func TestAMachineGetsTheCertificateOfAFreeNameAndNothingElse(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		extra := pkix.AttributeTypeAndValue{Type: asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 57683, 2}, Value: "a-uid"}
		other := []certificatesv1.KeyUsage{certificatesv1.UsageServerAuth}
		w := newWorld(t, nodeAt("manual"), nodeAt("member"), recordOf(t, "member", "node-member"), recordOf(t, "coming", "")).start()
		for name, c := range map[string]struct {
			but  func(*ask)
			want string
		}{
			"as it should be":  {func(*ask) {}, approved},
			"key encipherment": {func(a *ask) { a.usages = append(a.usages, certificatesv1.UsageKeyEncipherment) }, approved},
			"a long name":      {func(a *ask) { a.subject = subjectOf(strings.Repeat("a", 63) + strings.Repeat(".b", 95)) }, approved},
			"another signer":   {func(a *ask) { a.signer = certificatesv1.KubeAPIServerClientSignerName }, pending},
			"no PEM":           {func(a *ask) { a.text = []byte("hello") }, "not a PEM block"},
			"no request": {func(a *ask) {
				a.text = []byte("-----BEGIN CERTIFICATE REQUEST-----\naGVsbG8=\n-----END CERTIFICATE REQUEST-----\n")
			}, "cannot be read"},
			"a masters' group":         {func(a *ask) { a.subject.Organization = []string{"system:masters"} }, "subject"},
			"two groups":               {func(a *ask) { a.subject.Organization = []string{nodesGroup, "system:masters"} }, "subject"},
			"no group":                 {func(a *ask) { a.subject.Organization = nil }, "subject"},
			"not a node":               {func(a *ask) { a.subject.CommonName = "system:admin" }, "subject"},
			"a unit":                   {func(a *ask) { a.subject.OrganizationalUnit = []string{"x"} }, "subject"},
			"a user's UID":             {func(a *ask) { a.subject.ExtraNames = []pkix.AttributeTypeAndValue{extra} }, "subject"},
			"no name":                  {func(a *ask) { a.subject = subjectOf("") }, "cannot be the name of a node"},
			"a name in capitals":       {func(a *ask) { a.subject = subjectOf("Edge") }, "cannot be the name of a node"},
			"a name with a slash":      {func(a *ask) { a.subject = subjectOf("a/b") }, "cannot be the name of a node"},
			"a name too long":          {func(a *ask) { a.subject = subjectOf(strings.Repeat("a.", 127) + "a") }, "cannot be the name of a node"},
			"a DNS name":               {func(a *ask) { a.dns = []string{"edge"} }, "no names or addresses"},
			"an address":               {func(a *ask) { a.ips = []string{"192.0.2.9"} }, "no names or addresses"},
			"a URI":                    {func(a *ask) { a.uris = []*url.URL{{Scheme: "spiffe", Host: "x"}} }, "no URIs"},
			"an e-mail address":        {func(a *ask) { a.emails = []string{"a@b.c"} }, "no URIs and no e-mail"},
			"to serve too":             {func(a *ask) { a.usages = append(a.usages, other...) }, "usages"},
			"only to serve":            {func(a *ask) { a.usages = other }, "usages"},
			"not to be a client":       {func(a *ask) { a.usages = a.usages[:1] }, "usages"},
			"no signature usage":       {func(a *ask) { a.usages = a.usages[1:] }, "usages"},
			"a user":                   {func(a *ask) { a.user, a.groups = "bob", []string{"system:authenticated"} }, "bob may not ask"},
			"an administrator":         {func(a *ask) { a.user, a.groups = "system:admin", []string{"system:masters"} }, "may not ask"},
			"a pod":                    {func(a *ask) { a.user, a.groups = "system:serviceaccount:a:b", []string{"system:bootstrappers"} }, "may not ask"},
			"a bearer's name only":     {func(a *ask) { a.groups = []string{"system:authenticated"} }, "may not ask"},
			"another node":             {func(a *ask) { a.user, a.groups = "system:node:other", []string{nodesGroup} }, "may not ask"},
			"a node without its group": {func(a *ask) { a.user, a.groups = a.subject.CommonName, nil }, gone},
			"a node of before":         {func(a *ask) { a.user, a.groups = a.subject.CommonName, []string{nodesGroup} }, gone},
			"the server's name":        {func(a *ask) { a.subject = subjectOf("server") }, "that of the server itself"},
			"a Node made by hand":      {func(a *ask) { a.subject = subjectOf("manual") }, "kubectl delete node manual"},
			"a member's name":          {func(a *ask) { a.subject = subjectOf("member") }, "kubectl delete node member"},
			"a name on its way":        {func(a *ask) { a.subject = subjectOf("coming") }, "kubectl delete configmap --namespace kube-system knarr-node.coming"},
		} {
			// A name of its own for each, and one that is allowed.
			a := byToken(fmt.Sprintf("edge-%x", name), newKey(t))
			c.but(&a)
			csr := w.asks(a)
			synctest.Wait()
			if got := w.answer(csr); !strings.Contains(got, c.want) || c.want == approved && got != approved {
				t.Errorf("%s: %s, want %s", name, got, c.want)
			}
			rec := w.record(claimed(a.request(t)))
			if c.want == approved && (rec == nil || !rec.hasKey(keyHash(t, a.key))) {
				t.Errorf("%s: the record is %+v", name, rec)
			}
			if c.want != approved && rec != nil && rec.hasKey(keyHash(t, a.key)) {
				t.Errorf("%s: recorded although it was denied", name)
			}
		}
	})
}

func keyHash(t *testing.T, key *ecdsa.PrivateKey) string {
	t.Helper()
	der, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		t.Fatal(err)
	}
	return keyOf(&x509.Certificate{RawSubjectPublicKeyInfo: der})
}

// A key that signs for another's public key proves nothing.
func TestARequestIsSignedByItsOwnKey(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		w := newWorld(t).start()
		csr := byToken("edge-1", newKey(t)).request(t)
		block := slices.Clone(csr.Spec.Request)
		// The last letters but the padding are of the signature.
		i := strings.LastIndex(string(block), "\n-----END") - 10
		block[i] ^= 1
		a := byToken("edge-1", newKey(t))
		a.text = block
		name := w.asks(a)
		synctest.Wait()
		if got := w.answer(name); got == approved || got == pending {
			t.Errorf("%s", got)
		}
	})
}

func TestOfTwoMachinesThatAskForANameAtOnceExactlyOneGetsIt(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		w := newWorld(t).start()
		for round := range 20 {
			node := fmt.Sprintf("edge-%d", round)
			var wg sync.WaitGroup
			names := make([]string, 6)
			for i := range names {
				a := byToken(node, newKey(t))
				wg.Go(func() { names[i] = w.asks(a) })
			}
			wg.Wait()
			synctest.Wait()
			won := 0
			for _, name := range names {
				switch got := w.answer(name); {
				case got == approved:
					won++
				case !strings.Contains(got, "was given to a machine"):
					t.Errorf("%s: %s", name, got)
				}
			}
			if rec := w.record(node); won != 1 || len(rec.Credentials) != 1 {
				t.Errorf("%s: %d machines have it, by %d keys", node, won, len(rec.Credentials))
			}
		}
	})
}

// Who is first to write the record wins, also where another server has written
// it and this one has not heard of that yet.
func TestARecordThatCameInBetweenDecides(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		w := newWorld(t)
		other := recordOf(t, "edge-1", "", w.ca.node(t, "edge-1", newKey(t)))
		var once sync.Once
		w.PrependReactor("create", "configmaps", func(clienttesting.Action) (handled bool, _ runtime.Object, err error) {
			once.Do(func() {
				handled, err = true, apierrors.NewAlreadyExists(configMaps.GroupResource(), other.Name)
				if add := w.Tracker().Add(other); add != nil {
					t.Error(add)
				}
			})
			return handled, nil, err
		})
		w.start()
		csr := w.asks(byToken("edge-1", newKey(t)))
		synctest.Wait()
		if got := w.answer(csr); !strings.Contains(got, "was given to a machine") {
			t.Errorf("%s", got)
		}
	})
}

func TestTheRecordIsThereBeforeTheApproval(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		w := newWorld(t).start()
		key := newKey(t)
		var checked atomic.Bool
		w.PrependReactor("update", "certificatesigningrequests", func(clienttesting.Action) (bool, runtime.Object, error) {
			checked.Store(true)
			// What the API server will be asked when the certificate is used.
			if _, err := w.m.Admit(t.Context(), w.ca.node(t, "edge-1", key)); err != nil {
				t.Errorf("at the approval: %v", err)
			}
			return false, nil, nil
		})
		csr := w.asks(byToken("edge-1", key))
		synctest.Wait()
		if got := w.answer(csr); got != approved || !checked.Load() {
			t.Errorf("%s", got)
		}
	})
}

func TestANodeThatHasItsOldKeyGetsInWithATokenAgain(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		w := newWorld(t)
		key := newKey(t)
		if err := w.Tracker().Add(recordOf(t, "edge-1", "node-edge-1", w.ca.node(t, "edge-1", key))); err != nil {
			t.Fatal(err)
		}
		w.sees(nodeAt("edge-1"))
		w.start()
		again, stranger := w.asks(byToken("edge-1", key)), w.asks(byToken("edge-1", newKey(t)))
		synctest.Wait()
		if got := w.answer(again); got != approved {
			t.Errorf("with the key: %s", got)
		}
		if got := w.answer(stranger); !strings.Contains(got, "kubectl delete node edge-1") {
			t.Errorf("without it: %s", got)
		}
	})
}

// member adds a node that has joined and registered, and returns its certificate.
func (w *world) member(name string, addresses ...string) *x509.Certificate {
	w.Helper()
	cert := w.ca.node(w.T, name, newKey(w.T))
	n := nodeAt(name, addresses...)
	cm := recordOf(w.T, name, n.UID, cert)
	rec, err := readRecord(cm)
	if err != nil {
		w.Fatal(err)
	}
	// One that was granted and has not been used.
	if err := rec.add(credential{Key: keyHash(w.T, newKey(w.T))}, time.Now()).store(cm); err != nil {
		w.Fatal(err)
	}
	for _, o := range []runtime.Object{n, cm} {
		if err := w.Tracker().Add(o); err != nil {
			w.Fatal(err)
		}
	}
	return cert
}

func TestANodeRotatesItsOwnKeyAlone(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		w := newWorld(t)
		cert, other := w.member("edge-1"), w.member("edge-2")
		w.start()
		key := newKey(t)
		own := w.asks(byItself("edge-1", key, cert))
		// Somebody who has had the name before, and its certificate.
		former := w.asks(byItself("edge-1", newKey(t), w.ca.node(t, "edge-1", newKey(t))))
		foreign := w.asks(byItself("edge-1", newKey(t), other))
		synctest.Wait()
		if got := w.answer(own); got != approved {
			t.Errorf("own: %s", got)
		}
		for range 2 { // it may be that the record is behind, but not for long
			for _, csr := range []string{former, foreign} {
				if got := w.answer(csr); got != pending {
					t.Errorf("of a certificate that is not in the record: %s", got)
				}
			}
			time.Sleep(credentialPatience/2 - time.Second)
			synctest.Wait()
		}
		time.Sleep(3 * time.Second)
		synctest.Wait()
		for _, csr := range []string{former, foreign} {
			if got := w.answer(csr); !strings.Contains(got, "not in its record") {
				t.Errorf("of a certificate that is not in the record, at last: %s", got)
			}
		}
		rec := w.record("edge-1")
		if len(rec.Credentials) != 3 || !rec.hasKey(keyOf(cert)) || !rec.hasKey(keyHash(t, key)) {
			t.Errorf("record: %+v", rec)
		}
	})
}

func TestANodeServesUnderItsOwnNamesAndAddressesAlone(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		w := newWorld(t)
		cert := w.member("edge-1", "edge-1", "edge-1.example.org", "192.0.2.7", "2001:db8::7", "127.0.0.1", "127.0.0.5", "192.0.2.1", "kubernetes.default.svc", "LOCALHOST",
			"a.api.example.org", "*.default.svc", "kubernetes.default.svc.", "0.0.0.0", "edge-3", "192.0.2.8")
		w.member("edge-2", "edge-2", "192.0.2.8")
		w.member("edge-3")
		w.start()
		for name, c := range map[string]struct {
			dns, ips []string
			but      func(*ask)
			want     string
		}{
			"its name and addresses":       {dns: []string{"edge-1"}, ips: []string{"192.0.2.7", "2001:db8::7"}, want: approved},
			"its name in capitals":         {dns: []string{"EDGE-1"}, want: approved},
			"a second name":                {dns: []string{"edge-1.example.org"}, want: approved},
			"an address as four in six":    {ips: []string{"::ffff:192.0.2.7"}, want: approved},
			"nothing":                      {want: "needs a name or an address"},
			"loopback of the API server":   {ips: []string{"127.0.0.1"}, want: "cannot be the address of a node"},
			"loopback":                     {ips: []string{"127.0.0.5"}, want: "cannot be the address of a node"},
			"every address":                {ips: []string{"0.0.0.0"}, want: "cannot be the address of a node"},
			"the API server's address":     {ips: []string{"192.0.2.7", "192.0.2.1"}, want: "of the API server"},
			"the same as four in six":      {ips: []string{"::ffff:192.0.2.1"}, want: "of the API server"},
			"the API server's name":        {dns: []string{"edge-1", "kubernetes.default.svc"}, want: "of the API server"},
			"that in capitals":             {dns: []string{"Kubernetes.Default.SVC"}, want: "of the API server"},
			"localhost":                    {dns: []string{"localhost"}, want: "of the API server"},
			"within its wildcard":          {dns: []string{"a.api.example.org"}, want: "of the API server"},
			"a wildcard":                   {dns: []string{"*.default.svc"}, want: "cannot be the name of a node"},
			"a dot at the end":             {dns: []string{"kubernetes.default.svc."}, want: "cannot be the name of a node"},
			"a URI":                        {dns: []string{"edge-1"}, but: func(a *ask) { a.uris = []*url.URL{{Scheme: "https", Host: "kubernetes"}} }, want: "no URIs"},
			"an e-mail address":            {dns: []string{"edge-1"}, but: func(a *ask) { a.emails = []string{"a@b.c"} }, want: "no e-mail"},
			"to be a client too":           {dns: []string{"edge-1"}, but: func(a *ask) { a.usages = append(a.usages, certificatesv1.UsageClientAuth) }, want: "usages"},
			"with a token":                 {dns: []string{"edge-1"}, but: func(a *ask) { a.user, a.groups = "system:bootstrap:abc123", []string{"system:bootstrappers"} }, want: "may not ask"},
			"by an administrator":          {dns: []string{"edge-1"}, but: func(a *ask) { a.user, a.groups = "system:admin", []string{"system:masters"} }, want: "may not ask"},
			"by another node":              {dns: []string{"edge-1"}, but: func(a *ask) { a.user = "system:node:edge-2" }, want: "may not ask"},
			"for another node":             {dns: []string{"edge-2"}, but: func(a *ask) { a.subject = subjectOf("edge-2") }, want: "may not ask"},
			"for the server":               {dns: []string{"server"}, but: func(a *ask) { a.subject, a.user = subjectOf("server"), "system:node:server" }, want: "that of the server itself"},
			"for a node of before":         {dns: []string{"edge-9"}, but: func(a *ask) { a.subject, a.user = subjectOf("edge-9"), "system:node:edge-9" }, want: gone},
			"another group":                {dns: []string{"edge-1"}, but: func(a *ask) { a.subject.Organization = []string{"x"} }, want: "subject"},
			"what its status lacks":        {ips: []string{"192.0.2.9"}, want: pending},
			"another Node's name":          {dns: []string{"edge-3"}, want: pending},
			"another Node's address":       {ips: []string{"192.0.2.8"}, want: pending},
			"with a certificate of before": {dns: []string{"edge-1"}, but: func(a *ask) { a.credential = "X509SHA256=00" }, want: pending},
			"with no certificate":          {dns: []string{"edge-1"}, but: func(a *ask) { a.credential = "" }, want: pending},
		} {
			a := toServe("edge-1", newKey(t), cert, c.dns, c.ips)
			if c.but != nil {
				c.but(&a)
			}
			csr := w.asks(a)
			synctest.Wait()
			if got := w.answer(csr); !strings.Contains(got, c.want) {
				t.Errorf("%s: %s, want %s", name, got, c.want)
			}
		}
	})
}

func TestARequestWaitsForTheNodesOwnStatusAndIsDeniedAfterTenMinutes(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		w := newWorld(t)
		cert := w.member("edge-1", "edge-1")
		w.start()
		key := newKey(t)
		soon := w.asks(toServe("edge-1", key, cert, nil, []string{"192.0.2.7"}))
		never := w.asks(toServe("edge-1", key, cert, nil, []string{"192.0.2.9"}))
		time.Sleep(addressPatience - time.Minute)
		synctest.Wait()
		if a, b := w.answer(soon), w.answer(never); a != pending || b != pending {
			t.Errorf("before: %s, %s", a, b)
		}
		w.sees(nodeAt("edge-1", "edge-1", "192.0.2.7"))
		synctest.Wait()
		if a, b := w.answer(soon), w.answer(never); a != approved || b != pending {
			t.Errorf("then: %s, %s", a, b)
		}
		time.Sleep(2 * time.Minute)
		synctest.Wait()
		if got := w.answer(never); !strings.Contains(got, "192.0.2.9 is not among the addresses in the status of node edge-1, which are edge-1, 192.0.2.7") {
			t.Errorf("at last: %s", got)
		}
	})
}

func TestARequestWaitsForAnotherNodeToGiveAnAddressBack(t *testing.T) {
	for name, giveBack := range map[string]func(w *world){
		"it has another": func(w *world) { w.sees(nodeAt("edge-2", "192.0.2.9")) },
		"it is deleted":  func(w *world) { w.deleteNode("edge-2") },
		"it never does":  nil,
	} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, func(t *testing.T) {
				w := newWorld(t)
				cert := w.member("edge-1", "192.0.2.7")
				w.member("edge-2", "192.0.2.7")
				w.start()
				csr := w.asks(toServe("edge-1", newKey(t), cert, nil, []string{"192.0.2.7"}))
				synctest.Wait()
				if got := w.answer(csr); got != pending {
					t.Fatalf("before: %s", got)
				}
				want := approved
				if giveBack != nil {
					giveBack(w)
				} else {
					time.Sleep(conflictPatience + time.Second)
					want = "kubectl delete node edge-2"
				}
				synctest.Wait()
				if got := w.answer(csr); !strings.Contains(got, want) {
					t.Errorf("after: %s, want %s", got, want)
				}
			})
		})
	}
}

func TestWhatSomebodyElseHasDecidedIsLeftAlone(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		w := newWorld(t).start()
		csr := byToken("edge-1", newKey(t)).request(t)
		csr.Status.Conditions = []certificatesv1.CertificateSigningRequestCondition{{
			Type: certificatesv1.CertificateApproved, Status: corev1.ConditionTrue, Reason: "ByHand",
		}}
		if err := w.Tracker().Add(csr); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if got := w.writes(); len(got) != 0 {
			t.Errorf("%q", got)
		}
		// Whoever approves by hand does not make a member.
		if _, err := w.m.Admit(t.Context(), w.ca.node(t, "edge-1", newKey(t))); err == nil {
			t.Error("it is one")
		}
	})
}

// The API server may answer with a conflict at any time.
func TestADecisionIsTriedAgainAfterAConflict(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		w := newWorld(t)
		var tries atomic.Int64
		w.PrependReactor("update", "certificatesigningrequests", func(clienttesting.Action) (bool, runtime.Object, error) {
			if tries.Add(1) <= 3 {
				return true, nil, apierrors.NewConflict(requests.GroupResource(), "x", nil)
			}
			return false, nil, nil
		})
		w.start()
		csr := w.asks(byToken("edge-1", newKey(t)))
		time.Sleep(time.Second)
		synctest.Wait()
		if got := w.answer(csr); got != approved {
			t.Errorf("%s", got)
		}
	})
}

func TestRequestsOfBeforeTheStartAreDecidedOn(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		w := newWorld(t)
		csr := byToken("edge-1", newKey(t)).request(t)
		csr.CreationTimestamp = metav1.Now()
		if err := w.Tracker().Add(csr); err != nil {
			t.Fatal(err)
		}
		w.start()
		synctest.Wait()
		if got := w.answer(csr.Name); got != approved {
			t.Errorf("%s", got)
		}
	})
}

// The informer's store has a record a moment before the look-ups do.
func TestNoRequestIsApprovedBeforeItsKeyIsLetIn(t *testing.T) {
	w := newWorld(t)
	c, err := newController(w.m, w.Clientset)
	if err != nil {
		t.Fatal(err)
	}
	key := newKey(t)
	cert := w.ca.node(t, "edge-1", key)
	cm := recordOf(t, "edge-1", "node-edge-1", cert)
	if err := c.records.GetIndexer().Add(cm); err != nil {
		t.Fatal(err)
	}
	for name, a := range map[string]ask{"with a token": byToken("edge-1", key), "by itself": byItself("edge-1", key, cert)} {
		r, err := readRequest(a.request(t))
		if err != nil {
			t.Fatal(err)
		}
		if v, err := c.judge(t.Context(), r); err != nil || !v.again {
			t.Errorf("%s, before: %+v, %v", name, v, err)
		}
	}
	c.onRecord(nil, cm)
	for name, a := range map[string]ask{"with a token": byToken("edge-1", key), "by itself": byItself("edge-1", key, cert)} {
		r, err := readRequest(a.request(t))
		if err != nil {
			t.Fatal(err)
		}
		if v, err := c.judge(t.Context(), r); err != nil || v != (verdict{}) {
			t.Errorf("%s, after: %+v, %v", name, v, err)
		}
	}
}

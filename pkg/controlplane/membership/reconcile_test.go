package membership

import (
	"crypto/x509"
	"errors"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	certificatesv1 "k8s.io/api/certificates/v1"
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	clienttesting "k8s.io/client-go/testing"
)

func leaseOf(node string, uid types.UID) *coordinationv1.Lease {
	l := &coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{Namespace: corev1.NamespaceNodeLease, Name: node, UID: "lease"}}
	if uid != "" {
		l.OwnerReferences = []metav1.OwnerReference{{Kind: "Node", Name: node, UID: uid}}
	}
	return l
}

func (w *world) hasLease(node string) bool {
	w.Helper()
	_, err := w.CoordinationV1().Leases(corev1.NamespaceNodeLease).Get(w.Context(), node, metav1.GetOptions{})
	if err != nil && !apierrors.IsNotFound(err) {
		w.Fatal(err)
	}
	return err == nil
}

func TestTheWholeLifeOfANode(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		w := newWorld(t).start()
		key := newKey(t)
		first := w.asks(byToken("edge-1", key))
		synctest.Wait()
		if rec := w.record("edge-1"); rec == nil || rec.UID != "" || len(rec.Credentials) != 1 || rec.Credentials[0] != (credential{Key: keyHash(t, key)}) {
			t.Fatalf("joining: %+v", rec)
		}

		// It uses its certificate, and registers.
		cert := w.ca.node(t, "edge-1", key)
		in, err := w.m.Admit(t.Context(), cert)
		if err != nil {
			t.Fatal(err)
		}
		w.sees(nodeAt("edge-1", "edge-1", "192.0.2.7"))
		synctest.Wait()
		want := credential{Key: keyOf(cert), ID: idOf(cert), NotAfter: cert.NotAfter}
		if rec := w.record("edge-1"); rec.UID != "node-edge-1" || len(rec.Credentials) != 1 || rec.Credentials[0] != want {
			t.Errorf("registered: %+v, want %+v", rec, want)
		}

		// It serves, and rotates.
		serving := w.asks(toServe("edge-1", newKey(t), cert, []string{"edge-1"}, []string{"192.0.2.7"}))
		rotated := w.asks(byItself("edge-1", newKey(t), cert))
		synctest.Wait()
		for _, csr := range []string{first, serving, rotated} {
			if got := w.answer(csr); got != approved {
				t.Errorf("%s: %s", csr, got)
			}
		}
		if err := w.Tracker().Add(leaseOf("edge-1", "node-edge-1")); err != nil {
			t.Fatal(err)
		}

		// A heartbeat is nothing to write.
		before := len(w.writes())
		n := nodeAt("edge-1", "edge-1", "192.0.2.7")
		n.Status.Conditions = []corev1.NodeCondition{{Type: corev1.NodeReady, Status: corev1.ConditionTrue}}
		w.sees(n)
		synctest.Wait()
		if got := w.writes()[before:]; len(got) != 2 { // those of the test itself: create in vain, update
			t.Errorf("at a heartbeat: %q", got)
		}

		// It is deleted.
		stranger := w.asks(byToken("edge-1", newKey(t)))
		synctest.Wait()
		w.deleteNode("edge-1")
		synctest.Wait()
		if rec := w.record("edge-1"); rec != nil {
			t.Errorf("deleted: %+v", rec)
		}
		var refused *Refused
		if _, err := w.m.Admit(t.Context(), cert); !errors.As(err, &refused) || refused.Taken {
			t.Errorf("deleted: %v", err)
		}
		select {
		case <-in.Done():
		default:
			t.Error("what the node has open goes on")
		}
		for _, csr := range []string{first, serving, rotated} {
			if got := w.answer(csr); got != gone {
				t.Errorf("deleted: request %s is %s", csr, got)
			}
		}
		if got := w.answer(stranger); !strings.Contains(got, "taken") {
			t.Errorf("deleted: what another machine was told is %s", got)
		}
		if w.hasLease("edge-1") {
			t.Error("deleted: its lease is there")
		}

		// The name is free, for another key.
		next := newKey(t)
		csr := w.asks(byToken("edge-1", next))
		synctest.Wait()
		if got := w.answer(csr); got != approved {
			t.Errorf("anew: %s", got)
		}
		if _, err := w.m.Admit(t.Context(), w.ca.node(t, "edge-1", next)); err != nil {
			t.Errorf("anew: %v", err)
		}
		if _, err := w.m.Admit(t.Context(), cert); !errors.As(err, &refused) || !refused.Taken {
			t.Errorf("anew, with the old key: %v", err)
		}
	})
}

func TestWhatHappenedWhileTheServerWasDownIsMadeUpFor(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		w := newWorld(t)
		stays, deleted, anew := w.member("stays"), w.ca.node(t, "deleted", newKey(t)), w.ca.node(t, "anew", newKey(t))
		left := byToken("deleted", newKey(t)).request(t)
		left.Status.Conditions = []certificatesv1.CertificateSigningRequestCondition{{
			Type: certificatesv1.CertificateApproved, Status: corev1.ConditionTrue, Reason: reasonApproved,
		}}
		// Its record went before a crash, and nothing else did.
		halfway := left.DeepCopy()
		halfway.Name = "halfway"
		halfway.Spec.Request = byToken("halfway", newKey(t)).request(t).Spec.Request
		for _, o := range []runtime.Object{
			recordOf(t, "deleted", "node-deleted", deleted), left, leaseOf("deleted", "node-deleted"),
			recordOf(t, "anew", "node-of-before", anew), nodeAt("anew"), leaseOf("anew", "node-anew"),
			recordOf(t, "registered", ""), nodeAt("registered"),
			halfway,
		} {
			if err := w.Tracker().Add(o); err != nil {
				t.Fatal(err)
			}
		}
		w.start()
		synctest.Wait()
		if _, err := w.m.Admit(t.Context(), stays); err != nil {
			t.Error(err)
		}
		for name, cert := range map[string]*x509.Certificate{"deleted": deleted, "anew": anew} {
			if _, err := w.m.Admit(t.Context(), cert); err == nil || w.record(name) != nil {
				t.Errorf("%s: %v, record %+v", name, err, w.record(name))
			}
		}
		if w.hasLease("deleted") || !w.hasLease("anew") {
			t.Errorf("lease of the deleted %v, of the one made anew %v", w.hasLease("deleted"), w.hasLease("anew"))
		}
		for _, csr := range []string{left.Name, halfway.Name} {
			if got := w.answer(csr); got != gone {
				t.Errorf("request %s is %s", csr, got)
			}
		}
		if rec := w.record("registered"); rec.UID != "node-registered" {
			t.Errorf("registered: %+v", rec)
		}
	})
}

func TestARestartWritesNothing(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		w := newWorld(t).start()
		key := newKey(t)
		w.asks(byToken("edge-1", key))
		synctest.Wait()
		cert := w.ca.node(t, "edge-1", key)
		if _, err := w.m.Admit(t.Context(), cert); err != nil {
			t.Fatal(err)
		}
		w.sees(nodeAt("edge-1", "edge-1"))
		w.asks(toServe("edge-1", newKey(t), cert, []string{"edge-1"}, nil))
		w.asks(byToken("edge-1", newKey(t)))
		synctest.Wait()
		in, err := w.m.Admit(t.Context(), cert)
		if err != nil {
			t.Fatal(err)
		}
		w.stop()
		before := len(w.writes())
		w.start()
		synctest.Wait()
		if got := w.writes()[before:]; len(got) != 0 {
			t.Errorf("%q", got)
		}
		if _, err := w.m.Admit(t.Context(), cert); err != nil {
			t.Error(err)
		}
		if in.Err() == nil {
			t.Error("what was open before would not hear of a deletion")
		}
	})
}

func TestANameThatNobodyRegistersUnderIsFreeAfterAnHour(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		w := newWorld(t).start()
		key := newKey(t)
		w.asks(byToken("edge-1", key))
		w.asks(byToken("edge-2", newKey(t)))
		time.Sleep(30 * time.Minute)
		w.stop() // time goes on while the server is down
		time.Sleep(29 * time.Minute)
		w.start()
		synctest.Wait()
		if w.record("edge-1") == nil {
			t.Fatal("it is free too early")
		}
		w.sees(nodeAt("edge-2"))
		time.Sleep(2 * time.Minute)
		synctest.Wait()
		if w.record("edge-1") != nil || w.record("edge-2") == nil {
			t.Errorf("%+v, %+v", w.record("edge-1"), w.record("edge-2"))
		}
		if _, err := w.m.Admit(t.Context(), w.ca.node(t, "edge-1", key)); err == nil {
			t.Error("who had it is still let in")
		}
		csr := w.asks(byToken("edge-1", newKey(t)))
		synctest.Wait()
		if got := w.answer(csr); got != approved {
			t.Errorf("the next: %s", got)
		}
	})
}

// What is known of Nodes may be older than a record: then the API server is
// believed.
func TestARecordStaysIfItsNodeIsThereAfterAll(t *testing.T) {
	for name, rec := range map[string]record{
		"registered": {Node: "edge-1", UID: "node-edge-1"},
		"on its way": {Node: "edge-1"}, // since the year 1
	} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, func(t *testing.T) {
				w := newWorld(t)
				cm, err := rec.configMap()
				if err != nil {
					t.Fatal(err)
				}
				if err := w.Tracker().Add(cm); err != nil {
					t.Fatal(err)
				}
				var asked atomic.Int64
				w.PrependReactor("get", "nodes", func(clienttesting.Action) (bool, runtime.Object, error) {
					if asked.Add(1) > 2 {
						return false, nil, nil
					}
					return true, nodeAt("edge-1"), nil
				})
				w.start()
				synctest.Wait()
				if w.record("edge-1") == nil || asked.Load() == 0 {
					t.Fatalf("the record is gone, and its Node was asked for %d times", asked.Load())
				}
				time.Sleep(time.Second)
				synctest.Wait()
				if w.record("edge-1") != nil {
					t.Error("it stays although the Node is gone")
				}
			})
		})
	}
}

func TestOnlyTheRecordThatWasSeenIsDeleted(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		w := newWorld(t)
		cm := recordOf(t, "edge-1", "node-edge-1")
		cm.ResourceVersion = "7"
		if err := w.Tracker().Add(cm); err != nil {
			t.Fatal(err)
		}
		w.start()
		synctest.Wait()
		i := slices.IndexFunc(w.Actions(), func(a clienttesting.Action) bool { return a.Matches("delete", "configmaps") })
		if i < 0 {
			t.Fatal("it was not deleted")
		}
		d, ok := w.Actions()[i].(clienttesting.DeleteActionImpl)
		if p := d.DeleteOptions.Preconditions; !ok || p == nil || *p.UID != cm.UID || *p.ResourceVersion == "" {
			t.Errorf("%+v", d)
		}
	})
}

// While its record cannot be deleted, a Node that was made anew has no say.
func TestANodeThatWasMadeAnewDoesNotSpeakForTheMember(t *testing.T) {
	inBubble(t, func(t *testing.T) {
		w := newWorld(t)
		cert := w.ca.node(t, "edge-1", newKey(t))
		anew := nodeAt("edge-1", "edge-1")
		anew.UID = "another"
		for _, o := range []runtime.Object{recordOf(t, "edge-1", "node-edge-1", cert), anew} {
			if err := w.Tracker().Add(o); err != nil {
				t.Fatal(err)
			}
		}
		w.PrependReactor("delete", "configmaps", func(clienttesting.Action) (bool, runtime.Object, error) {
			return true, nil, errors.New("the disk is full")
		})
		w.start()
		csr := w.asks(toServe("edge-1", newKey(t), cert, []string{"edge-1"}, nil))
		synctest.Wait()
		if got := w.answer(csr); got != pending {
			t.Errorf("%s", got)
		}
	})
}

// News of a deletion may come after that of what was made in its place.
func TestARecordsEndDoesNotTouchItsSuccessor(t *testing.T) {
	r := newRoll()
	id, key := fingerprint{1}, fingerprint{2}
	of := func() record {
		return record{Node: "edge-1", Credentials: []credential{{Key: key.String(), ID: credentialPrefix + id.String()}}}
	}
	r.set("first", of())
	first, known := r.find("edge-1", id)
	if !known || first.in.Err() != nil {
		t.Fatal("it is not there")
	}
	r.set("second", of())
	r.remove("edge-1", "first")
	second, known := r.find("edge-1", id)
	if !known || second.in.Err() != nil || first.in.Err() == nil {
		t.Errorf("known %v, first %v", known, first.in.Err())
	}
	r.remove("edge-1", "second")
	if m, known := r.find("edge-1", id); m != nil || known || second.in.Err() == nil {
		t.Errorf("known %v, second %v", known, second.in.Err())
	}
}

func TestADamagedRecordLetsNobodyIn(t *testing.T) {
	for name, spoil := range map[string]func(*corev1.ConfigMap){
		"no JSON":   func(cm *corev1.ConfigMap) { cm.Data[recordKey] = "{" },
		"no data":   func(cm *corev1.ConfigMap) { cm.Data = nil },
		"another's": func(cm *corev1.ConfigMap) { cm.Data = map[string]string{recordKey: `{"node":"edge-2"}`} },
		"a key too short": func(cm *corev1.ConfigMap) {
			cm.Data = map[string]string{recordKey: `{"node":"edge-1","credentials":[{"key":"00"}]}`}
		},
	} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, func(t *testing.T) {
				w := newWorld(t)
				cert := w.member("edge-1")
				w.start()
				cm, err := w.CoreV1().ConfigMaps(namespace).Get(t.Context(), recordName("edge-1"), metav1.GetOptions{})
				if err != nil {
					t.Fatal(err)
				}
				spoil(cm)
				if _, err := w.CoreV1().ConfigMaps(namespace).Update(t.Context(), cm, metav1.UpdateOptions{}); err != nil {
					t.Fatal(err)
				}
				synctest.Wait()
				csr := w.asks(byToken("edge-1", newKey(t)))
				synctest.Wait()
				if got := w.answer(csr); !strings.Contains(got, "ConfigMap kube-system/knarr-node.edge-1") {
					t.Errorf("%s", got)
				}
				if _, err := w.m.Admit(t.Context(), cert); err == nil {
					t.Error("the node is let in")
				}
			})
		})
	}
}

func TestRecordsOfNodesWithLongNamesHaveNamesOfTheirOwn(t *testing.T) {
	long := strings.Repeat("a", longestName)
	seen := map[string]string{}
	for _, node := range []string{"a", "edge-1", long[:242], long[:243], long[:244], long, "b" + long[1:]} {
		name := recordName(node)
		if len(name) > longestName || seen[name] != "" {
			t.Errorf("%s: %s, which is %q's", node, name, seen[name])
		}
		seen[name] = node
		// Whoever chooses both names must not get both records.
		if other := recordName(strings.TrimPrefix(name, "knarr-node-sha256.")); len(node) > 242 && other == name {
			t.Errorf("%s is that of another node too", name)
		}
	}
}

func TestARecordKeepsWhatIsValidAndNoMoreThanItHasRoomFor(t *testing.T) {
	now := time.Date(2027, 1, 1, 0, 0, 0, 0, time.UTC)
	var rec record
	rec = rec.add(credential{Key: "a"}, now)
	if rec = rec.add(credential{Key: "a"}, now); len(rec.Credentials) != 1 {
		t.Errorf("the same key twice: %+v", rec)
	}
	used := credential{Key: "a", ID: "1", NotAfter: now.Add(time.Hour)}
	if rec = rec.add(used, now); !slices.Equal(rec.Credentials, []credential{used}) {
		t.Errorf("used: %+v", rec)
	}
	if again := rec.add(used, now); !slices.Equal(again.Credentials, rec.Credentials) {
		t.Errorf("used twice: %+v", again)
	}
	if again := rec.add(credential{Key: "a"}, now); !slices.Equal(again.Credentials, rec.Credentials) {
		t.Errorf("the key of a certificate that was used: %+v", again)
	}
	renewed := credential{Key: "a", ID: "2", NotAfter: now.Add(2 * time.Hour)}
	if rec = rec.add(renewed, now); !slices.Equal(rec.Credentials, []credential{used, renewed}) {
		t.Errorf("renewed for the same key: %+v", rec)
	}
	rec = rec.add(credential{Key: "b"}, now.Add(90*time.Minute))
	if !slices.Equal(rec.Credentials, []credential{renewed, {Key: "b"}}) {
		t.Errorf("after the first has expired: %+v", rec)
	}
	before := slices.Clone(rec.Credentials)
	more := rec
	for i := range 3 * mostCredentials {
		more = more.add(credential{Key: string(rune('c' + i))}, now)
	}
	if len(more.Credentials) != mostCredentials || more.Credentials[mostCredentials-1].Key != string(rune('c'+3*mostCredentials-1)) {
		t.Errorf("many: %+v", more)
	}
	if !slices.Equal(rec.Credentials, before) {
		t.Errorf("a record of before was changed: %+v", rec)
	}
}

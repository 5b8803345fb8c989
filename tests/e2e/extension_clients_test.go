package e2e

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	flowcontrolv1 "k8s.io/api/flowcontrol/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/leaderelection"
	"k8s.io/client-go/tools/leaderelection/resourcelock"

	"github.com/knarr-dev/knarr/tests/harness/kube"
)

const leaseDuration = 4 * time.Second

// candidate runs for leader by a Lease until its context ends; leads is closed
// when it becomes one.
func (s *space) candidate(ctx context.Context, name string, release bool) (leads, done chan struct{}) {
	s.t.Helper()
	leads, done = make(chan struct{}), make(chan struct{})
	e, err := leaderelection.NewLeaderElector(leaderelection.LeaderElectionConfig{
		Lock: &resourcelock.LeaseLock{
			LeaseMeta: metav1.ObjectMeta{Namespace: s.ns, Name: "leader"}, Client: s.Client.CoordinationV1(),
			LockConfig: resourcelock.ResourceLockConfig{Identity: name},
		},
		LeaseDuration: leaseDuration, RenewDeadline: 3 * time.Second, RetryPeriod: 200 * time.Millisecond, ReleaseOnCancel: release,
		Callbacks: leaderelection.LeaderCallbacks{OnStartedLeading: func(context.Context) { close(leads) }, OnStoppedLeading: func() {}},
	})
	if err != nil {
		s.t.Fatal(err)
	}
	go func() {
		defer close(done)
		e.Run(ctx)
	}()
	return leads, done
}

func TestLeaseHasOneHolderAtATime(t *testing.T) {
	s := newSpace(t)
	history, err := s.Client.CoordinationV1().Leases(s.ns).Watch(t.Context(), metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer history.Stop()
	lives := map[string]context.CancelFunc{}
	run := func(name string, release bool) (leads, done chan struct{}) {
		ctx, cancel := context.WithCancel(t.Context())
		lives[name] = cancel
		return s.candidate(ctx, name, release)
	}
	await := func(what string, c chan struct{}) {
		t.Helper()
		select {
		case <-c:
		case <-time.After(time.Minute):
			t.Fatalf("waited a minute for %s", what)
		}
	}
	annaLeads, annaDone := run("anna", false)
	await("anna to lead", annaLeads)
	benLeads, benDone := run("ben", true)
	select {
	case <-benLeads:
		t.Fatal("two lead")
	case <-annaDone:
		t.Fatal("anna gave up")
	default:
	}
	want(t, "the holder", s.get("lease/leader", ".spec.holderIdentity"), "anna")

	// One that dies holds the Lease until it expires; one that goes hands it over.
	lives["anna"]()
	await("anna's end", annaDone)
	await("ben to lead", benLeads)
	var renewed, acquired time.Time
	for acquired.IsZero() {
		lease, ok := (<-history.ResultChan()).Object.(*coordinationv1.Lease)
		if !ok {
			t.Fatal("the watch of the Lease has ended")
		}
		switch who := *lease.Spec.HolderIdentity; who {
		case "anna":
			renewed = lease.Spec.RenewTime.Time
		case "ben":
			acquired = lease.Spec.AcquireTime.Time
		default:
			t.Fatalf("%q holds the Lease", who)
		}
	}
	// client-go compares records by the second: of renewals within one it sees the first.
	if held, least := acquired.Sub(renewed), leaseDuration-time.Second; held < least {
		t.Errorf("ben has it %s after anna's last renewal, want no sooner than %s", held, least)
	}
	carlLeads, carlDone := run("carl", true)
	lives["ben"]()
	await("ben's end", benDone)
	await("carl to lead", carlLeads)
	want(t, "the changes of holder", s.get("lease/leader", ".spec.leaseTransitions"), "2")
	lives["carl"]()
	await("carl's end", carlDone)
	want(t, "the holder when all have gone", s.get("lease/leader", ".spec.holderIdentity"), "")
}

func TestAppliersOfOneObjectKeepTheirOwnParts(t *testing.T) {
	s := newSpace(t)
	apply := func(manager, ports string, force bool) error {
		body := `{"apiVersion": "v1", "kind": "Service", "metadata": {"name": "quay"}, "spec": {"ports": [` + ports + `]}}`
		_, err := s.Client.CoreV1().Services(s.ns).Patch(t.Context(), "quay", types.ApplyPatchType, []byte(body), metav1.PatchOptions{FieldManager: manager, Force: &force})
		return err
	}
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	ports := func() string {
		t.Helper()
		return s.get("service/quay", "range .spec.ports[*]}{.name}={.targetPort} {end")
	}
	const http, metrics = `{"name": "http", "port": 80, "targetPort": 8080}`, `{"name": "metrics", "port": 90, "targetPort": 9090}`
	must(apply("anna", http, false))
	must(apply("ben", metrics, false))
	want(t, "the ports of both", ports(), "http=8080 metrics=9090 ")

	err := apply("ben", metrics+`, {"name": "http", "port": 80, "targetPort": 8081}`, false)
	var status *apierrors.StatusError
	if !apierrors.IsConflict(err) || !errors.As(err, &status) || status.ErrStatus.Details == nil || len(status.ErrStatus.Details.Causes) != 1 {
		t.Fatalf("a conflict with one cause: %v", err)
	}
	cause := status.ErrStatus.Details.Causes[0]
	want(t, "the field in conflict", cause.Field, `.spec.ports[port=80,protocol="TCP"].targetPort`)
	wantPart(t, "whose it is", cause.Message, `"anna"`)
	must(apply("ben", metrics+`, {"name": "http", "port": 80, "targetPort": 8081}`, true))
	want(t, "the ports after ben insisted", ports(), "metrics=9090 http=8081 ")
	// What no one applies any more goes, or back to its default; what another
	// applies stays.
	must(apply("ben", metrics, false))
	want(t, "the ports when ben gives one up", ports(), "metrics=9090 http=80 ")
	must(apply("ben", http, true))
	want(t, "the ports when ben gives the other up", ports(), "http=8080 ")

	service, err := s.Client.CoreV1().Services(s.ns).Get(t.Context(), "quay", metav1.GetOptions{})
	must(err)
	managers := []string{}
	for _, m := range service.ManagedFields {
		managers = append(managers, m.Manager+" "+string(m.Operation))
	}
	slices.Sort(managers)
	want(t, "the managers", strings.Join(managers, ", "), "anna Apply, ben Apply")
}

// The user has one seat, which a request keeps that waits for a webhook.
func TestFlowSchemaLimitsOneUserAndNoOther(t *testing.T) {
	s := newSpace(t)
	ca := s.serveTLS("hooks", []string{"webhook"})
	s.hook("Validating", "stall", ca, "/stall", configMaps, "")
	api := s.Client.FlowcontrolV1()
	greedy, anna := "greedy-"+s.ns, "anna-"+s.ns
	limited := &flowcontrolv1.LimitedPriorityLevelConfiguration{
		NominalConcurrencyShares: new(int32(0)), LendablePercent: new(int32(0)), BorrowingLimitPercent: new(int32(0)),
		LimitResponse: flowcontrolv1.LimitResponse{Type: flowcontrolv1.LimitResponseTypeReject},
	}
	_, err := api.PriorityLevelConfigurations().Create(t.Context(), &flowcontrolv1.PriorityLevelConfiguration{
		ObjectMeta: metav1.ObjectMeta{Name: s.ns}, Spec: flowcontrolv1.PriorityLevelConfigurationSpec{Type: flowcontrolv1.PriorityLevelEnablementLimited, Limited: limited},
	}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _, _ = s.KubectlErr("delete", "flowschema,prioritylevelconfiguration", s.ns) })
	all := []string{"*"}
	if _, err := api.FlowSchemas().Create(t.Context(), &flowcontrolv1.FlowSchema{ObjectMeta: metav1.ObjectMeta{Name: s.ns}, Spec: flowcontrolv1.FlowSchemaSpec{
		PriorityLevelConfiguration: flowcontrolv1.PriorityLevelConfigurationReference{Name: s.ns}, MatchingPrecedence: 10,
		Rules: []flowcontrolv1.PolicyRulesWithSubjects{{
			Subjects:      []flowcontrolv1.Subject{{Kind: flowcontrolv1.SubjectKindUser, User: &flowcontrolv1.UserSubject{Name: greedy}}},
			ResourceRules: []flowcontrolv1.ResourcePolicyRule{{Verbs: all, APIGroups: all, Resources: all, Namespaces: all, ClusterScope: true}},
		}},
	}}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	s.create(&rbacv1.RoleBinding{ObjectMeta: metav1.ObjectMeta{Name: "both"}, RoleRef: rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: "edit"},
		Subjects: []rbacv1.Subject{{APIGroup: rbacv1.GroupName, Kind: "User", Name: greedy}, {APIGroup: rbacv1.GroupName, Kind: "User", Name: anna}}})
	list := func(ctx context.Context, user string) error {
		client := s.clientFor(s.REST, func(c *rest.Config) { c.Impersonate.UserName = user })
		// Clients wait and try again as long as they are told to.
		return client.CoreV1().RESTClient().Get().Namespace(s.ns).Resource("pods").MaxRetries(0).Do(ctx).Error()
	}
	s.WaitFor(t, "anna to be served", func(ctx context.Context) (bool, error) {
		err := list(ctx, anna)
		return err == nil, err
	})
	held, let := context.WithCancel(t.Context())
	defer let()
	client := s.clientFor(s.REST, func(c *rest.Config) { c.Impersonate.UserName = greedy })
	go func() {
		for held.Err() == nil { // until it is the one that has the seat
			_, _ = client.CoreV1().ConfigMaps(s.ns).Create(held, kube.ConfigMap("held"), metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}})
		}
	}()
	s.WaitFor(t, "greedy to be told to come later", func(ctx context.Context) (bool, error) {
		err := list(ctx, greedy)
		if apierrors.IsTooManyRequests(err) {
			return true, nil
		}
		return false, err
	})
	for range 20 {
		if err := list(t.Context(), anna); err != nil {
			t.Errorf("anna suffers with greedy: %v", err)
		}
	}
	if _, err := s.Client.CoreV1().Pods(s.ns).List(t.Context(), metav1.ListOptions{}); err != nil {
		t.Errorf("the administrator suffers with greedy: %v", err)
	}
	metrics, err := s.Client.Discovery().RESTClient().Get().AbsPath("/metrics").DoRaw(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	wantPart(t, "the metrics", string(metrics), `apiserver_flowcontrol_rejected_requests_total{flow_schema="`+s.ns+`"`)

	let()
	s.WaitFor(t, "greedy to be served", func(ctx context.Context) (bool, error) {
		err := list(ctx, greedy)
		return err == nil, err
	})
}

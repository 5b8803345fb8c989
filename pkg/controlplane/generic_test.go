package controlplane

import (
	"fmt"
	"maps"
	"net"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"k8s.io/client-go/util/keyutil"
	"k8s.io/kubernetes/cmd/kube-apiserver/app"
	"k8s.io/kubernetes/cmd/kube-apiserver/app/options"

	"github.com/knarr-dev/knarr/pkg/datastore"
)

func completedOptions(t *testing.T, dir string) options.CompletedOptions {
	t.Helper()
	key := filepath.Join(dir, "accounts.key")
	if secret, err := keyutil.MakeEllipticPrivateKeyPEM(); err != nil {
		t.Fatal(err)
	} else if err := keyutil.WriteKey(key, secret); err != nil {
		t.Fatal(err)
	}
	policy := filepath.Join(dir, "policy.yaml")
	if err := os.WriteFile(policy, []byte("apiVersion: audit.k8s.io/v1\nkind: Policy\nrules: [{level: Metadata}]\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { lis.Close() })
	opts := options.NewServerRunOptions()
	err = parse(opts.Flags(), "--kube-apiserver-arg", []string{
		"advertise-address=192.0.2.1", "authorization-mode=Node,RBAC", "bind-address=127.0.0.1", "cert-dir=" + dir,
		"etcd-servers=http://127.0.0.1:1", "runtime-config=api/beta=true", "service-account-issuer=https://example.org", "service-cluster-ip-range=10.43.0.0/16",
		"service-account-key-file=" + key, "service-account-signing-key-file=" + key, "audit-log-path=" + filepath.Join(dir, "audit.log"), "audit-policy-file=" + policy,
	}, nil)
	if err != nil {
		t.Fatal(err)
	}
	opts.SecureServing.Listener = lis
	s, err := datastore.Open(t.Context(), datastore.Config{Path: filepath.Join(dir, "state.db")})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	reach(&opts.Etcd.StorageConfig.Transport, s)
	if err := opts.GenericServerRunOptions.ComponentGlobalsRegistry.Set(); err != nil {
		t.Fatal(err)
	}
	completed, err := opts.Complete(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return completed
}

// describe notes of a configuration what is set, and of what type it is.
func describe(into map[string]string, path string, v reflect.Value, depth int) {
	switch v.Kind() {
	case reflect.Interface:
		if !v.IsNil() {
			into[path] = v.Elem().Type().String()
			return
		}
		into[path] = "nil"
	case reflect.Pointer:
		if v.IsNil() {
			into[path] = "nil"
			return
		}
		if depth > 0 && v.Elem().Kind() == reflect.Struct {
			describe(into, path, v.Elem(), depth-1)
			return
		}
		into[path] = v.Type().String()
	case reflect.Struct:
		if _, ok := v.Interface().(time.Time); ok {
			return
		}
		for i := range v.NumField() {
			if f := v.Type().Field(i); f.IsExported() {
				describe(into, path+"."+f.Name, v.Field(i), depth)
			}
		}
	case reflect.Func, reflect.Chan, reflect.UnsafePointer:
		into[path] = fmt.Sprint(v.Type(), " nil: ", v.IsNil())
	case reflect.Slice, reflect.Map:
		into[path] = fmt.Sprint(v.Type(), " of ", v.Len())
	default:
		into[path] = fmt.Sprint(v)
	}
}

// What upstream sets in its configuration, ours has as well: a field that a new
// version adds is told here. It looks through three pointers and compares types of
// interfaces, not what is in them: Flagz, the storage's object counter and the title
// of the OpenAPI document can go without being noticed (tried).
func TestConfigIsThatOfUpstream(t *testing.T) {
	upstream, err := app.NewConfig(completedOptions(t, t.TempDir()))
	if err != nil {
		t.Fatal(err)
	}
	ours, err := newConfig(completedOptions(t, t.TempDir()))
	if err != nil {
		t.Fatal(err)
	}
	want, got := map[string]string{}, map[string]string{}
	for _, c := range []struct {
		into map[string]string
		cfg  *app.Config
	}{{want, upstream}, {got, ours}} {
		describe(c.into, "KubeAPIs", reflect.ValueOf(c.cfg.KubeAPIs), 3)
		describe(c.into, "ApiExtensions", reflect.ValueOf(c.cfg.ApiExtensions), 3)
		describe(c.into, "Aggregator", reflect.ValueOf(c.cfg.Aggregator), 3)
	}
	if len(want) < 300 {
		t.Fatalf("%d fields were looked at", len(want))
	}
	// These are of each process, or of the certificate that we make.
	differ := []string{"BearerToken", "CAData", "HealthzChecks", "LivezChecks", ".Host", "BindPort", "APIServerID"}
	for _, path := range slices.Sorted(maps.Keys(want)) {
		mayDiffer := slices.ContainsFunc(differ, func(s string) bool { return strings.HasSuffix(path, s) })
		if !mayDiffer && got[path] != want[path] {
			t.Errorf("%s is %s, and %s upstream", path, got[path], want[path])
		}
	}
	// The one check that we have no use for is whether a certificate without end has ended.
	h, up := ours.KubeAPIs.ControlPlane.Generic.HealthzChecks, upstream.KubeAPIs.ControlPlane.Generic.HealthzChecks
	if len(h) != len(up)-1 {
		t.Errorf("%d health checks, and %d upstream", len(h), len(up))
	}
}

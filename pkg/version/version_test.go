package version

import (
	"bytes"
	"os"
	"regexp"
	"testing"

	clientversion "k8s.io/client-go/pkg/version"
	kubeversion "k8s.io/component-base/version"
)

func TestVersionWithoutLinkFlags(t *testing.T) {
	if err := Apply(); err != nil {
		t.Fatal(err)
	}
	for name, got := range map[string]string{
		"component-base": kubeversion.Get().GitVersion,
		"client-go":      clientversion.Get().GitVersion,
	} {
		if got != Kubernetes {
			t.Errorf("%s says %q, want %q", name, got, Kubernetes)
		}
	}
	if v := kubeversion.Get(); v.Major != "1" || v.Minor != "36" {
		t.Errorf("major.minor is %s.%s, want 1.36", v.Major, v.Minor)
	}
}

// A replace directive would not reach whoever imports Knarr, and a staging
// module at another version would not match k8s.io/kubernetes.
func TestGoModIsImportable(t *testing.T) {
	mod, err := os.ReadFile("../../go.mod")
	if err != nil {
		t.Fatal(err)
	}
	if bytes.Contains(mod, []byte("replace ")) || bytes.Contains(mod, []byte("replace(")) {
		t.Error("go.mod has a replace directive")
	}
	kube := regexp.MustCompile(`k8s.io/kubernetes v1\.(\S+)`).FindSubmatch(mod)
	if kube == nil {
		t.Fatal("go.mod does not require k8s.io/kubernetes")
	}
	want := "v0." + string(kube[1])
	staging := []string{"api", "apiextensions-apiserver", "apimachinery", "apiserver", "cli-runtime", "client-go",
		"cloud-provider", "cluster-bootstrap", "code-generator", "component-base", "component-helpers",
		"controller-manager", "cri-api", "cri-client", "cri-streaming", "csi-translation-lib",
		"dynamic-resource-allocation", "endpointslice", "externaljwt", "kms", "kube-aggregator",
		"kube-controller-manager", "kube-proxy", "kube-scheduler", "kubectl", "kubelet", "metrics",
		"mount-utils", "pod-security-admission", "sample-apiserver", "sample-cli-plugin",
		"sample-controller", "streaming"}
	for _, m := range staging {
		if !bytes.Contains(mod, []byte("\tk8s.io/"+m+" "+want+"\n")) {
			t.Errorf("go.mod does not require k8s.io/%s directly at %s", m, want)
		}
	}
}

package lifecycle

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/knarr-dev/knarr/tests/harness"
	"github.com/knarr-dev/knarr/tests/harness/kube"
)

// A list in pages is told when the store has forgotten the moment that it is of,
// and how to go on all the same.
func listsInPagesAfterACompaction(t *testing.T, n *harness.Node) {
	maps := n.Client.CoreV1().ConfigMaps("default")
	for i := range 6 {
		c := kube.ConfigMap(fmt.Sprintf("note-%d", i), "text", "old")
		c.Labels = map[string]string{"note": "yes"}
		n.Create(t, "default", c)
	}
	list := func(o metav1.ListOptions) (*corev1.ConfigMapList, error) {
		o.LabelSelector = "note=yes"
		return maps.List(t.Context(), o)
	}
	first, err := list(metav1.ListOptions{Limit: 3})
	if err != nil {
		t.Fatal(err)
	}
	n.Kubectl(t, "patch", "configmap", "note-5", "--patch", `{"data": {"text": "new"}}`)
	n.Kubectl(t, "delete", "configmap", "note-4")

	n.Stop(t)
	n.Exec(t, n.Exe, "store", "compact")
	n.Resume(t)

	_, err = list(metav1.ListOptions{Limit: 3, Continue: first.Continue})
	var status *apierrors.StatusError
	if !apierrors.IsResourceExpired(err) || !errors.As(err, &status) {
		t.Fatalf("the page after the compaction: %v", err)
	}
	if _, err := list(metav1.ListOptions{ResourceVersion: first.ResourceVersion, ResourceVersionMatch: metav1.ResourceVersionMatchExact}); !apierrors.IsResourceExpired(err) {
		t.Errorf("a list of that moment: %v", err)
	}
	// The rest of the names, as they are now.
	rest, err := list(metav1.ListOptions{Limit: 3, Continue: status.ErrStatus.ListMeta.Continue})
	if err != nil {
		t.Fatal(err)
	}
	var told []string
	for _, c := range rest.Items {
		told = append(told, c.Name+" "+c.Data["text"])
	}
	if got := strings.Join(told, ", "); got != "note-3 old, note-5 new" || rest.Continue != "" {
		t.Errorf("the rest is %s, continued by %q", got, rest.Continue)
	}
}

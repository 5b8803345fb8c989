package e2e

import (
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/gorilla/websocket"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/rest"

	"github.com/knarr-dev/knarr/tests/harness/kube"
)

// Each container is given more of one and less of the other, or the room that
// another gives back.
func TestContainersOfAPodAreResizedTogether(t *testing.T) {
	s := newSpace(t)
	sized := func(cpu, memory string) []kube.Option {
		return []kube.Option{kube.Request("cpu", cpu), kube.Limit("cpu", cpu), kube.Request("memory", memory), kube.Limit("memory", memory)}
	}
	s.create(kube.Pod("trio", append(sized("20m", "64Mi"),
		kube.Container("second", sized("40m", "48Mi")...), kube.Container("third", sized("60m", "32Mi")...))...))
	s.running("trio")
	for _, sizes := range []map[string][2]string{
		{"trio": {"60m", "32Mi"}, "second": {"20m", "64Mi"}, "third": {"40m", "48Mi"}},
		{"trio": {"30m", "40Mi"}, "second": {"30m", "40Mi"}, "third": {"30m", "40Mi"}},
		{"trio": {"30m", "80Mi"}, "second": {"90m", "40Mi"}, "third": {"30m", "40Mi"}},
	} {
		var parts []string
		// In the pod's own order: a patch that turned it round would be refused.
		for _, name := range []string{"trio", "second", "third"} {
			size := sizes[name]
			r := fmt.Sprintf(`{"cpu": %q, "memory": %q}`, size[0], size[1])
			parts = append(parts, fmt.Sprintf(`{"name": %q, "resources": {"requests": %s, "limits": %s}}`, name, r, r))
		}
		s.kubectl("patch", "pod", "trio", "--subresource=resize", "--patch", `{"spec": {"containers": [`+strings.Join(parts, ", ")+`]}}`)
		s.pod("trio", fmt.Sprint("of sizes ", sizes), func(p *corev1.Pod) bool {
			for _, c := range p.Status.ContainerStatuses {
				size := sizes[c.Name]
				if c.Resources == nil || c.Resources.Limits.Cpu().String() != size[0] || c.Resources.Limits.Memory().String() != size[1] || c.RestartCount > 0 {
					return false
				}
			}
			return len(p.Status.ContainerStatuses) == len(sizes)
		})
	}
}

func TestPodIsChangedFiveHundredTimes(t *testing.T) {
	const changes = 500
	s := newSpace(t)
	s.create(kube.Pod("busy"))
	s.running("busy")
	for i := range changes {
		patch := fmt.Sprintf(`{"spec": {"activeDeadlineSeconds": %d}}`, 100_000-i)
		if _, err := s.Client.CoreV1().Pods(s.ns).Patch(t.Context(), "busy", types.MergePatchType, []byte(patch), metav1.PatchOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	p := s.pod("busy", "observed", func(p *corev1.Pod) bool { return p.Status.ObservedGeneration == changes+1 })
	if p.Generation != changes+1 || p.Status.ContainerStatuses[0].RestartCount > 0 {
		t.Errorf("after %d changes the generation is %d, and the container started %d times again", changes, p.Generation, p.Status.ContainerStatuses[0].RestartCount)
	}
}

func TestLogsAreReadOverAWebSocket(t *testing.T) {
	s := newSpace(t)
	s.create(kube.Pod("talker", kube.Once, kube.Run("echo", "said once")))
	s.ended("talker", corev1.PodSucceeded)
	tls, err := rest.TLSConfigFor(s.REST)
	if err != nil {
		t.Fatal(err)
	}
	dialer := websocket.Dialer{NetDialContext: s.Host.DialContext, TLSClientConfig: tls, Subprotocols: []string{"binary.k8s.io"}, HandshakeTimeout: time.Minute}
	url := strings.Replace(s.REST.Host, "https", "wss", 1) + "/api/v1/namespaces/" + s.ns + "/pods/talker/log?container=talker"
	conn, resp, err := dialer.DialContext(t.Context(), url, http.Header{})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	defer resp.Body.Close()
	var said strings.Builder
	for {
		_, r, err := conn.NextReader()
		if websocket.IsCloseError(err, websocket.CloseNormalClosure, websocket.CloseNoStatusReceived) || err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.Copy(&said, r); err != nil {
			t.Fatal(err)
		}
	}
	want(t, "what the log says", said.String(), "said once\n")
}

package cluster

import (
	"crypto/tls"
	"fmt"
	"net"
	"net/http"
	"strings"
	"testing"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	corev1 "k8s.io/api/core/v1"

	"github.com/knarr-dev/knarr/tests/harness"
	"github.com/knarr-dev/knarr/tests/harness/kube"
)

func TestNodesPullFromEachOther(t *testing.T) {
	server := harness.Prepare(t, harness.Options{Args: []string{"--embedded-registry"}})
	shared := server.StartRegistry(t, harness.RegistryOptions{})
	kept := server.StartRegistry(t, harness.RegistryOptions{})
	file := map[string]string{"/etc/knarr/registries.yaml": fmt.Sprintf("mirrors:\n  %q: {}\n", shared.Addr)}
	for path, text := range file {
		server.Write(t, path, text)
	}
	server.Resume(t)
	// The agent's machine knows no authority of the registries.
	harness.Start(t, harness.Options{Join: server, Name: "edge-1", Env: []string{"KNARR_TOKEN=" + server.Token(t)}, Files: file})
	ns := server.Namespace(t)
	run := func(pod, node, image string) {
		t.Helper()
		server.Create(t, ns, kube.Pod(pod, kube.On(node), kube.Box(func(c *corev1.Container) { c.Image = image }), kube.Shell("testbox sleep")))
	}

	byDigest := shared.Image("team/app") + "@" + shared.Push(t, "team/app:2").String()
	for _, tag := range []string{"1", "latest"} {
		shared.Push(t, "team/app:"+tag, func(i *ocispec.Image) { i.Author = tag })
	}
	kept.Push(t, "team/app:1")
	images := map[string]string{"tag": shared.Image("team/app:1"), "digest": byDigest, "latest": shared.Image("team/app:latest"), "kept": kept.Image("team/app:1")}
	for pod, image := range images {
		run(pod, "node", image)
	}
	for pod := range images {
		server.WaitPodRunning(t, ns, pod)
	}
	shared.Stop()
	for pod, image := range images {
		run(pod+"-there", "edge-1", image)
	}
	for pod, edition := range map[string]string{"tag-there": "team/app:1", "digest-there": "team/app:2", "latest-there": "team/app:latest"} {
		server.WaitPodRunning(t, ns, pod)
		if said := server.Kubectl(t, "exec", "-n", ns, pod, "--", "cat", "/edition"); strings.TrimSpace(said) != edition {
			t.Errorf("%s runs %q, not %s", pod, said, edition)
		}
	}
	// A registry whose name the file does not have is asked itself.
	server.WaitPod(t, ns, "kept-there", "refused its image", func(p *corev1.Pod) bool {
		c := p.Status.ContainerStatuses
		return len(c) == 1 && c[0].State.Waiting != nil && strings.Contains(c[0].State.Waiting.Message, "certificate signed by unknown authority")
	})

	t.Run("strangers are not answered", func(t *testing.T) {
		ask := func(certs ...tls.Certificate) error {
			c := http.Client{Transport: &http.Transport{DialContext: server.Host.DialContext, DisableKeepAlives: true,
				TLSClientConfig: &tls.Config{InsecureSkipVerify: true, Certificates: certs}}}
			resp, err := c.Get("https://" + net.JoinHostPort(server.Host.Addr().String(), "5001") + "/v2/team/app/manifests/1?ns=" + shared.Addr)
			if err == nil {
				resp.Body.Close()
			}
			return err
		}
		if err := ask(); err == nil || !strings.Contains(err.Error(), "certificate required") {
			t.Errorf("without a certificate: %v", err)
		}
		admin, err := tls.X509KeyPair(server.REST.CertData, server.REST.KeyData)
		if err != nil {
			t.Fatal(err)
		}
		if err := ask(admin); err == nil || !strings.Contains(err.Error(), "bad certificate") {
			t.Errorf("with an administrator's certificate: %v", err)
		}
	})
}

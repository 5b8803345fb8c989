package lifecycle

import (
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"

	"github.com/knarr-dev/knarr/tests/harness"
	"github.com/knarr-dev/knarr/tests/harness/kube"
)

const otherScheduler = `
apiVersion: kubescheduler.config.k8s.io/v1
kind: KubeSchedulerConfiguration
profiles: [{schedulerName: default-scheduler}, {schedulerName: packer, plugins: {score: {disabled: [{name: NodeResourcesFit}]}}}]
`

// otherNetwork is a CNI plugin of the user's own: every pod gets one address.
const otherNetwork = `#!/bin/sh
case "$CNI_COMMAND" in
VERSION) echo '{"cniVersion":"1.0.0","supportedVersions":["0.4.0","1.0.0"]}' ;;
ADD) echo '{"cniVersion":"1.0.0","interfaces":[{"name":"eth0","sandbox":"'"$CNI_NETNS"'"}],"ips":[{"address":"10.77.0.7/32","interface":0}]}' ;;
esac
`

func TestSettingsOfUsersAreHonoured(t *testing.T) {
	n := harness.Prepare(t, harness.Options{
		Args: []string{"--disable=dns,servicelb,local-storage", "--datastore-driver=kine-sqlite", "--kube-scheduler-arg=config=/etc/knarr/scheduler.yaml", "--node-label=tier=edge", "--flannel-backend=host-gw", "--workqueue-metrics"},
		// Nothing answers there: whoever of us uses it fails.
		Env: []string{"HTTP_PROXY=http://127.0.0.1:9", "HTTPS_PROXY=http://127.0.0.1:9", "NO_PROXY=example.org"},
		Files: map[string]string{
			"/etc/knarr/scheduler.yaml":       otherScheduler,
			"/opt/cni/bin/other":              otherNetwork,
			"/etc/cni/net.d/05-other.conf":    `{"cniVersion": "1.0.0", "name": "other", "type": "other"}`,
			"/etc/knarr/config.yaml":          "node-label: [from=file]\n",
			"/etc/knarr/config.yaml.d/a.yaml": "tls-san+: [knarr.example.org]\n",
		},
	})
	n.Exec(t, "chmod", "+x", "/opt/cni/bin/other")
	n.Resume(t)
	n.Create(t, "default", kube.Pod("other", kube.Spec(func(p *corev1.PodSpec) { p.SchedulerName = "packer" })))
	if pod := n.WaitPodRunning(t, "default", "other"); pod.Status.PodIP != "10.77.0.7" {
		t.Errorf("the pod's address is %s, not that of the user's plugin", pod.Status.PodIP)
	}
	if services := n.Kubectl(t, "get", "services", "-A", "-o", "name"); strings.TrimSpace(services) != "service/kubernetes" {
		t.Errorf("DNS was disabled, the services are %s", services)
	}
	if classes := n.Kubectl(t, "get", "storageclasses", "-o", "name"); classes != "" {
		t.Errorf("local-storage was disabled, the StorageClasses are %s", classes)
	}
	if labels := n.Kubectl(t, "get", "node", "node", "-o", "jsonpath={.metadata.labels}"); !strings.Contains(labels, `"tier":"edge"`) || strings.Contains(labels, `"from"`) {
		t.Errorf("flags beat files, the node's labels are %s", labels)
	}
	if m := n.Kubectl(t, "get", "--raw", "/metrics"); !strings.Contains(m, "\nworkqueue_adds_total{") {
		t.Error("--workqueue-metrics was given, and there are none")
	}
	if said := n.Kubectl(t, "logs", "other"); said != "" {
		t.Errorf("logs of a silent pod: %q", said)
	}
}

func TestControlPlaneAlone(t *testing.T) {
	n := harness.Start(t, harness.Options{Args: []string{"--disable-agent"}})
	if nodes := n.Kubectl(t, "get", "nodes", "-o", "name"); nodes != "" {
		t.Errorf("nodes: %s", nodes)
	}
	for _, c := range n.Status(t).Components {
		if c.Name == "containerd" || c.Name == "kubelet" || c.Name == "flannel" {
			t.Errorf("component %s is part of a control plane", c.Name)
		}
	}
	if m := n.Kubectl(t, "get", "--raw", "/metrics"); !strings.Contains(m, "\napiserver_request_total{") || strings.Contains(m, "\nworkqueue_adds_total{") {
		t.Error("metrics without --workqueue-metrics are to be all but those of work queues")
	}
	n.Create(t, "default", kube.Pod("first"))
	if phase := n.Kubectl(t, "get", "pod", "first", "-o", "jsonpath={.status.phase}"); phase != "Pending" {
		t.Errorf("a pod without a node is %s", phase)
	}
}

package vm

import (
	"strings"
	"testing"
)

// holdsVolumes runs the storage add-on's own test of quotas, for which the machine
// has a kernel that keeps them.
func (n *node) holdsVolumes(t *testing.T) {
	out := n.sh(t, "TMPDIR=/var/tmp /payload/storage.test -test.v -test.run '^TestVolumeIsHeldToItsSizeWhereTheFileSystemCan$' 2>&1")
	if !strings.Contains(out, "--- PASS") {
		t.Errorf("it did not pass:\n%s", out)
	}
}

const sailorManifest = `{"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "sailor", "namespace": "default"}, "spec": {
	"terminationGracePeriodSeconds": 0, "automountServiceAccountToken": false, "containers": [{
	"name": "sailor", "image": "knarr.dev/test:1", "imagePullPolicy": "Never", "command": ["testbox", "sleep"],
	"resources": {"limits": {"memory": "64Mi", "cpu": "500m"}}}]}}`

// inContainer runs Knarr's image as Docker's and Podman's users do, where the
// container has a cgroup namespace of its own with cgroup v2 alone.
func (n *node) inContainer(t *testing.T) {
	n.sh(t, `modprobe br_netfilter
		ip netns add ship && ip link add out type veth peer name eth0 netns ship
		ip addr add 10.77.0.1/24 dev out && ip link set out up
		ip -n ship addr add 10.77.0.2/24 dev eth0 && ip -n ship link set lo up && ip -n ship link set eth0 up && ip -n ship route add default via 10.77.0.1
		mkdir -p /var/lib/ship/agent/images /var/lib/ship/server/manifests && cp /payload/test.tar /var/lib/ship/agent/images/`)
	if _, err := n.run(t.Context(), []byte(sailorManifest), "sh", "-ec", "cat > /var/lib/ship/server/manifests/sailor.yaml"); err != nil {
		t.Fatal(err)
	}
	name := n.sh(t, "podman load -q -i /payload/image.tar | sed 's/^Loaded image: *//'")
	n.sh(t, "podman run -d --name ship --hostname ship --privileged --read-only --network ns:/run/netns/ship -v /var/lib/ship:/var/lib/knarr "+name+" server >/dev/null")
	ready := func() string {
		// For a moment after a start the pod's status is that of before.
		return n.sh(t, `until podman exec ship kubectl wait pod/sailor --for=condition=Ready --timeout=10m >/dev/null 2>&1 &&
				podman exec ship kubectl exec sailor -- true 2>/dev/null; do
				test "$(podman inspect -f '{{.State.Running}}' ship)" = true || { podman logs ship >&2; exit 1; }
				sleep 1
			done
			podman exec ship kubectl exec sailor -- cat /sys/fs/cgroup/memory.max
			podman exec ship kubectl get pod sailor -o 'jsonpath={.metadata.uid}'`)
	}
	first := ready()
	if !strings.HasPrefix(first, "67108864\n") {
		t.Errorf("the pod's limit and UID are %q", first)
	}
	if own := n.sh(t, "cat /proc/$(podman inspect -f '{{.State.Pid}}' ship)/cgroup"); !strings.Contains(own, "libpod") {
		t.Errorf("the first process is in %s", own)
	}
	n.sh(t, "podman stop -t 300 ship >/dev/null")
	if code := n.sh(t, "podman inspect -f '{{.State.ExitCode}}' ship"); code != "0" {
		t.Errorf("SIGTERM ended it with %s:\n%s", code, n.sh(t, "podman logs ship 2>&1 | tail -n 20"))
	}
	n.sh(t, "podman start ship >/dev/null")
	if again := ready(); again != first {
		t.Errorf("after another start the pod's limit and UID are %q, and were %q", again, first)
	}
	n.sh(t, "podman stop -t 300 ship >/dev/null && podman rm ship >/dev/null")
}

// runsInContainer runs a throwaway cluster in a job's container: privileged, with a
// workspace from outside. Its root file system is the machine's, under an overlay.
func (n *node) runsInContainer(t *testing.T) {
	n.sh(t, "modprobe br_netfilter; mkdir -p /var/lib/workspace")
	if _, err := n.run(t.Context(), []byte(sailorManifest), "sh", "-ec", "cat > /var/lib/workspace/sailor.yaml"); err != nil {
		t.Fatal(err)
	}
	for _, round := range []string{"first", "second"} {
		got := n.sh(t, `podman run --rm --privileged --network none -v /var/lib/workspace:/workspace -v /payload:/payload:ro \
			-e KNARR_THROWAWAY_DIR=/workspace/.knarr --rootfs /:O sh -ec '
			/payload/knarr run --image-archive /payload/test.tar -- sh -ec "
				kubectl apply -f /workspace/sailor.yaml >&2; kubectl wait pod/sailor --for=condition=Ready --timeout=10m >&2
				kubectl exec sailor -- cat /sys/fs/cgroup/memory.max"
			find /workspace /sys/fs/cgroup -name "*knarr*"'`)
		if got != "67108864" {
			t.Errorf("the %s: its pod's limit, and what it leaves, are %q", round, got)
		}
	}
}

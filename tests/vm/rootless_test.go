package vm

import (
	"context"
	"slices"
	"strings"
	"testing"
)

// rootlessManifest is a server of HTTP with limits, as another user than root, on a
// volume, behind a Service that is reached at the node's port 80.
const rootlessManifest = `
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: data}
spec: {accessModes: [ReadWriteOnce], resources: {requests: {storage: 10Mi}}}
---
apiVersion: v1
kind: Pod
metadata: {name: web, labels: {app: web}}
spec:
  terminationGracePeriodSeconds: 0
  securityContext: {runAsUser: 1234, fsGroup: 4321}
  volumes: [{name: data, persistentVolumeClaim: {claimName: data}}]
  containers:
  - name: web
    image: knarr.dev/test:1
    imagePullPolicy: Never
    command: [testbox, serve, --port=8080, --body=hello]
    volumeMounts: [{name: data, mountPath: /data}]
    resources: {limits: {memory: 64Mi, cpu: 500m}}
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {type: LoadBalancer, selector: {app: web}, ports: [{port: 80, targetPort: 8080}]}
`

// asSailor runs a script as a user who may nothing, and returns what it printed.
func (n *node) asSailor(t *testing.T, script string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	out, err := n.run(ctx, []byte(script), "runuser", "-u", "sailor", "--", "env", "-C", "/home/sailor", "HOME=/home/sailor", "PATH=/usr/bin:/bin", "sh", "-e")
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(out)
}

// withoutRoot starts clusters in user namespaces, as a user to whom systemd hands
// control groups down.
func (n *node) withoutRoot(t *testing.T) {
	n.sh(t, `modprobe br_netfilter; useradd -m sailor; mkdir -p /etc/systemd/system/user@.service.d
		printf '[Service]\nDelegate=cpu cpuset io memory pids\n' >/etc/systemd/system/user@.service.d/delegate.conf; systemctl daemon-reload`)
	if _, err := n.run(t.Context(), []byte(rootlessManifest), "sh", "-ec", "cat > /tmp/rootless.yaml"); err != nil {
		t.Fatal(err)
	}
	refused := n.asSailor(t, exe+" run -- true 2>&1 || echo $?")
	if !strings.Contains(refused, "have root run loginctl enable-linger") || !strings.HasSuffix(refused, "\n1") || strings.Count(refused, "\n") != 1 {
		t.Errorf("without a systemd of the user's it says\n%s", refused)
	}
	n.sh(t, "loginctl enable-linger sailor; until test -S /run/user/$(id -u sailor)/bus; do sleep 0.2; done")
	before := n.ofSailor(t)

	// The command is the user's own, and all else is of the cluster.
	got := n.asSailor(t, exe+` run --image-archive /payload/test.tar --port 8123:80 -- bash -ec '
		kubectl apply -f /tmp/rootless.yaml >&2; kubectl wait pod/web --for=condition=Ready --timeout=10m >&2
		until test "$(kubectl get service web -o "jsonpath={.status.loadBalancer.ingress[0].ip}")"; do sleep 0.2; done
		id -un
		kubectl exec web -- cat /sys/fs/cgroup/memory.max
		kubectl get node server -o "jsonpath={.status.nodeInfo.kubeletVersion}" | cut -d. -f1
		exec 3<>/dev/tcp/127.0.0.1/8123; printf "GET / HTTP/1.0\r\n\r\n" >&3; tail -n 1 <&3; exit 5' || echo $?`)
	if got != "sailor\n67108864\nv1\nhello5" && got != "sailor\n67108864\nv1\nhello\n5" {
		t.Errorf("a cluster of the user's: %q", got)
	}
	n.leavesNothing(t, before)

	// What lives on is reached again, saved, and gone when its keeper is killed.
	got = n.asSailor(t, exe+` up --nodes 2 --kubeconfig kubeconfig >&2
		`+exe+` load - </payload/test.tar
		export KUBECONFIG=$HOME/kubeconfig
		`+exe+` kubectl apply -f /tmp/rootless.yaml >&2; `+exe+` kubectl wait pod/web --for=condition=Ready --timeout=10m >&2
		`+exe+` shell agent-1 -- sh -c 'id -un; hostname; exit 7' || echo $?
		`+exe+` save dev seed.knarr
		kill -9 $(`+exe+` list --output json | sed -n 's/.*"keeper": \([0-9]*\).*/\1/p')
		while `+exe+` list | grep -q dev; do sleep 0.2; done
		`+exe+` sweep; test ! -e kubeconfig`)
	if got != "root\nagent-1\n7" {
		t.Errorf("in a node it says %q", got)
	}
	n.leavesNothing(t, before)
	got = n.asSailor(t, exe+` run --from seed.knarr -- sh -ec 'kubectl wait pod/web --for=condition=Ready --timeout=10m >&2; kubectl get nodes -o name'`)
	if got != "node/agent-1\nnode/server" {
		t.Errorf("begun anew, its nodes are %q", got)
	}
	n.leavesNothing(t, before)
}

// ofSailor is what there is of the user's: processes (but D-Bus, which is started at
// the first question), control groups and mounts, and files below that of clusters.
func (n *node) ofSailor(t *testing.T) []string {
	t.Helper()
	lines := strings.Split(n.sh(t, `ps -u sailor -o args= | grep -v dbus-daemon | sed 's/^/process /'
		find /sys/fs/cgroup/user.slice -type d -name '*knarr*'
		awk '/knarr|sailor/ {print "mount", $2}' /proc/mounts
		find /home/sailor/.local/state/knarr-throwaway 2>/dev/null || true`), "\n")
	slices.Sort(lines)
	return lines
}

func (n *node) leavesNothing(t *testing.T, before []string) {
	t.Helper()
	if after := n.ofSailor(t); !slices.Equal(before, after) {
		t.Errorf("it leaves\n%s\nwhere before there was\n%s", strings.Join(after, "\n"), strings.Join(before, "\n"))
	}
}

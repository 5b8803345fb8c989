package e2e

import (
	"context"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
)

func TestInitContainersRunInOrderBeforeTheOthers(t *testing.T) {
	s := newSpace(t)
	s.apply(`
apiVersion: v1
kind: Pod
metadata:
  name: ordered
spec:
  restartPolicy: Never
  initContainers:
  - name: one
    image: knarr.dev/test:1
    command: [sh, -c, "echo one >> /work/order"]
    volumeMounts: [{name: work, mountPath: /work}]
  - name: two
    image: knarr.dev/test:1
    command: [sh, -c, "echo two >> /work/order"]
    volumeMounts: [{name: work, mountPath: /work}]
  containers:
  - name: main
    image: knarr.dev/test:1
    command: [cat, /work/order]
    volumeMounts: [{name: work, mountPath: /work}]
  volumes:
  - name: work
    emptyDir: {}
---
apiVersion: v1
kind: Pod
metadata:
  name: hindered
spec:
  restartPolicy: Never
  initContainers:
  - name: broken
    image: knarr.dev/test:1
    args: [testbox, exit, "1"]
  containers:
  - name: main
    image: knarr.dev/test:1
    command: [echo, unreachable]
`)
	want(t, "the order", s.ended("ordered", corev1.PodSucceeded), "one\ntwo\n")
	s.pod("hindered", "failed", func(p *corev1.Pod) bool { return p.Status.Phase == corev1.PodFailed })
	want(t, "what became of the main container", s.get("pod/hindered", ".status.containerStatuses[0].state.waiting.reason"), "PodInitializing")
}

func TestSidecarStartsFirstAndDoesNotHoldUpAJob(t *testing.T) {
	s := newSpace(t)
	s.apply(`
apiVersion: batch/v1
kind: Job
metadata:
  name: helped
spec:
  template:
    spec:
      restartPolicy: Never
      initContainers:
      - name: sidecar
        image: knarr.dev/test:1
        restartPolicy: Always
        args: [testbox, serve, --body=sidecar]
        startupProbe:
          tcpSocket: {port: 8080}
          periodSeconds: 1
      containers:
      - name: main
        image: knarr.dev/test:1
        args: [testbox, get, "http://localhost:8080"]
`)
	s.waitUntil("job/helped", "condition=complete")
	want(t, "what the main container got", s.kubectl("logs", "job/helped", "-c", "main"), "sidecar\n")
}

func TestContainersOfAPodShareVolumesAndNetwork(t *testing.T) {
	s := newSpace(t)
	s.apply(`
apiVersion: v1
kind: Pod
metadata:
  name: pair
spec:
  shareProcessNamespace: true
  containers:
  - name: writer
    image: knarr.dev/test:1
    command: [sh, -c, "echo shared > /disk/file; echo quick > /memory/file; testbox serve"]
    volumeMounts:
    - {name: disk, mountPath: /disk}
    - {name: memory, mountPath: /memory}
  - name: reader
    image: knarr.dev/test:1
    volumeMounts:
    - {name: disk, mountPath: /disk, readOnly: true}
    - {name: memory, mountPath: /memory}
  volumes:
  - name: disk
    emptyDir: {}
  - name: memory
    emptyDir: {medium: Memory, sizeLimit: 8Mi}
`)
	s.running("pair")
	out := strings.TrimSpace(s.kubectl("exec", "pair", "-c", "reader", "--", "sh", "-c", `
testbox get http://localhost:8080 --retry 10s
cat /disk/file /memory/file
touch /disk/other 2>&1
grep -c 'tmpfs.*/memory.*size=8192k' /proc/mounts || grep /memory /proc/mounts
pidof testbox | wc -w`))
	lines := strings.Split(out, "\n")
	if !slices.Equal(lines, []string{"pair", "shared", "quick", "touch: /disk/other: Read-only file system", "1", "2"}) {
		t.Errorf("the reader saw %q", lines)
	}
}

func TestSecurityContextIsApplied(t *testing.T) {
	s := newSpace(t)
	s.apply(`
apiVersion: v1
kind: Pod
metadata:
  name: strict
spec:
  securityContext:
    runAsUser: 1000
    runAsGroup: 2000
    fsGroup: 3000
    seccompProfile: {type: RuntimeDefault}
    sysctls:
    - {name: net.ipv4.ip_unprivileged_port_start, value: "80"}
  containers:
  - name: strict
    image: knarr.dev/test:1
    securityContext:
      readOnlyRootFilesystem: true
      allowPrivilegeEscalation: false
      capabilities: {drop: [ALL]}
    volumeMounts:
    - {name: data, mountPath: /data}
  volumes:
  - name: data
    emptyDir: {}
---
apiVersion: v1
kind: Pod
metadata:
  name: loose
spec:
  containers:
  - name: loose
    image: knarr.dev/test:1
    securityContext: {privileged: true}
`)
	s.running("strict")
	want(t, "the strict container", s.in("strict", "sh", "-c", `
id -u; id -g
touch /data/file; stat -c %g /data/file
touch /file 2>&1
grep -E '^(Seccomp|NoNewPrivs|CapEff):' /proc/self/status
cat /proc/sys/net/ipv4/ip_unprivileged_port_start
unshare -m true 2>&1 || true`), strings.Join([]string{
		"1000", "2000", "3000", "touch: /file: Read-only file system",
		"CapEff:\t0000000000000000", "NoNewPrivs:\t1", "Seccomp:\t2", "80",
		"unshare: unshare(0x20000): Operation not permitted",
	}, "\n"))
	s.running("loose")
	want(t, "the privileged container", s.in("loose", "sh", "-c", "grep -E '^Seccomp:' /proc/self/status; unshare -m true && echo may"), "Seccomp:\t0\nmay")
}

func TestPodIsToldOfItsEnd(t *testing.T) {
	s := newSpace(t)
	s.apply(`
apiVersion: v1
kind: Pod
metadata:
  name: polite
spec:
  terminationGracePeriodSeconds: 20
  containers:
  - name: polite
    image: knarr.dev/test:1
    args: [testbox, sigterm-log, --grace=100ms]
    lifecycle:
      postStart:
        exec: {command: [sh, -c, "echo started > /proc/1/fd/1"]}
      preStop:
        exec: {command: [sh, -c, "echo stopping > /proc/1/fd/1"]}
`)
	s.running("polite")
	follow := s.start("logs", "-f", "polite")
	s.kubectl("delete", "pod", "polite", "--timeout=60s")
	lines := follow.rest()
	want(t, "the order of the end", strings.Join(lines[max(0, len(lines)-3):], ","), "stopping,got SIGTERM,bye")
	if !slices.Contains(lines, "started") {
		t.Errorf("the hook after the start left nothing in %q", lines)
	}
}

func TestHostPortLeadsToItsPod(t *testing.T) {
	s := newSpace(t)
	s.apply(`
apiVersion: v1
kind: Pod
metadata:
  name: port
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - name: http
    image: knarr.dev/test:1
    args: [testbox, serve]
    ports:
    - {containerPort: 8080, hostPort: 18080}
  - name: echo
    image: knarr.dev/test:1
    args: [testbox, udpecho, --port=7000]
    ports:
    - {containerPort: 7000, hostPort: 17000, protocol: UDP}
`)
	s.client()
	s.running("port")
	want(t, "the answer on the node", s.fromNode("http://"+s.nodeAddr("18080")), "port")
	want(t, "the answer on localhost", s.fromNode("http://127.0.0.1:18080"), "port")
	want(t, "the answer to a pod", s.fromPod("http://"+s.nodeAddr("18080")), "port")
	want(t, "the answer to the pod itself", s.in("port", "testbox", "get", "http://"+s.nodeAddr("18080")), "port")
	want(t, "the UDP answer to a pod", s.in("client", "testbox", "send", "udp", s.nodeAddr("17000"), "ping"), "ping")
	s.echoes(s.nodeAddr("17000"))

	s.kubectl("delete", "pod", "port")
	s.WaitFor(t, "the port to be closed", func(ctx context.Context) (bool, error) {
		_, err := s.fetch(ctx, "http://"+s.nodeAddr("18080"))
		return fails(err, "connection refused")
	})
}

func TestPodOnTheHostsNetworkStillKnowsTheCluster(t *testing.T) {
	s := newSpace(t)
	s.apply(web("inside") + `
---
apiVersion: v1
kind: Pod
metadata:
  name: outside
  labels: {app: outside}
spec:
  hostNetwork: true
  dnsPolicy: ClusterFirstWithHostNet
  containers:
  - name: outside
    image: knarr.dev/test:1
    args: [testbox, serve, --port=18090, --body=outside]
---
apiVersion: v1
kind: Service
metadata:
  name: outside
spec:
  selector: {app: outside}
  ports:
  - {port: 80, targetPort: 18090}
`)
	s.client()
	pod := s.running("outside")
	want(t, "the pod's address", pod.Status.PodIP, s.Host.Addr().String())
	want(t, "the answer on the node", s.fromNode("http://127.0.0.1:18090"), "outside")
	want(t, "the answer through the Service", s.fromPod("http://outside"), "outside")
	want(t, "the answer to it", s.in("outside", "testbox", "get", "http://web", "--retry", "30s"), "inside")
}

func TestHostPathShowsTheNodesFiles(t *testing.T) {
	s := newSpace(t)
	s.Write(t, "/root/"+s.ns+"/note", "from the node\n")
	s.apply(strings.ReplaceAll(`
apiVersion: v1
kind: Pod
metadata:
  name: reader
spec:
  restartPolicy: Never
  containers:
  - name: reader
    image: knarr.dev/test:1
    command: [cat, /node/note]
    volumeMounts:
    - {name: node, mountPath: /node}
  volumes:
  - name: node
    hostPath: {path: /root/NS, type: Directory}
`, "NS", s.ns))
	want(t, "the output", s.ended("reader", corev1.PodSucceeded), "from the node\n")
}

func TestUnknownImageIsTold(t *testing.T) {
	s := newSpace(t)
	s.apply(`
apiVersion: v1
kind: Pod
metadata:
  name: lost
spec:
  containers:
  - name: lost
    image: knarr.dev/nothing:1
    imagePullPolicy: Never
`)
	s.event("lost", "ErrImageNeverPull", "is not present with pull policy of Never")
}

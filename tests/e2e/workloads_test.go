package e2e

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"

	"github.com/knarr-dev/knarr/tests/harness"
)

// web is a Deployment that answers with a text, and its Service.
func web(text string) string {
	return fmt.Sprintf(`
apiVersion: apps/v1
kind: Deployment
metadata:
  name: web
spec:
  replicas: 2
  selector:
    matchLabels: {app: web}
  template:
    metadata:
      labels: {app: web}
    spec:
      containers:
      - name: web
        image: knarr.dev/test:1
        args: [testbox, serve, --port=8080, --body=%s]
        ports:
        - name: http
          containerPort: 8080
        readinessProbe:
          httpGet: {path: /ready, port: http}
          periodSeconds: 1
---
apiVersion: v1
kind: Service
metadata:
  name: web
spec:
  selector: {app: web}
  ports:
  - name: http
    port: 80
    targetPort: http
`, text)
}

func TestDeploymentRollsOutAndBackAndScales(t *testing.T) {
	s := newSpace(t)
	s.apply(web("first"))
	s.client()
	s.kubectl("rollout", "status", "deployment/web", "--timeout=60s")
	want(t, "the answer", s.fromPod("http://web"), "first")

	s.apply(web("second"))
	s.kubectl("rollout", "status", "deployment/web", "--timeout=60s")
	s.pods("app=web", 2)
	want(t, "the answer after the roll-out", s.fromPod("http://web"), "second")
	history := s.kubectl("rollout", "history", "deployment/web")
	wantPart(t, "the history", history, "1 ")
	wantPart(t, "the history", history, "2 ")

	s.kubectl("rollout", "undo", "deployment/web")
	s.kubectl("rollout", "status", "deployment/web", "--timeout=60s")
	s.pods("app=web", 2)
	want(t, "the answer after the undo", s.fromPod("http://web"), "first")

	s.kubectl("scale", "deployment/web", "--replicas=4")
	s.pods("app=web", 4)
	s.kubectl("scale", "deployment/web", "--replicas=1")
	s.pods("app=web", 1)
	want(t, "the answer of the last replica", s.fromPod("http://web"), "first")

	s.kubectl("rollout", "restart", "deployment/web")
	s.kubectl("rollout", "status", "deployment/web", "--timeout=60s")
}

func TestDeploymentReplacesDeletedPod(t *testing.T) {
	s := newSpace(t)
	s.apply(web("here"))
	old := s.pods("app=web", 2)[0].Name
	s.kubectl("delete", "pod", old, "--wait=false")
	for _, p := range s.pods("app=web", 2) {
		if p.Name == old {
			t.Errorf("pod %s is ready although it was deleted", old)
		}
	}
}

func TestDeletedDeploymentTakesItsPodsAlong(t *testing.T) {
	s := newSpace(t)
	s.apply(web("here"))
	s.pods("app=web", 2)
	s.kubectl("delete", "deployment", "web")
	s.pods("app=web", 0)
	want(t, "what is left", s.kubectl("get", "replicasets", "-o", "name"), "")
}

func TestDeletedNamespaceTakesEverythingAlong(t *testing.T) {
	s := newSpace(t)
	name := s.ns + "-gone"
	s.Kubectl(t, "create", "namespace", name)
	s.Apply(t, name, web("here"))
	s.WaitPods(t, name, "app=web", 2)
	s.Kubectl(t, "delete", "namespace", name, "--timeout=60s")
	if out, err := s.KubectlErr("get", "namespace", name); err == nil {
		t.Errorf("the namespace is still there: %s", out)
	}
}

func TestJobRunsToItsCompletions(t *testing.T) {
	s := newSpace(t)
	s.apply(`
apiVersion: batch/v1
kind: Job
metadata:
  name: count
spec:
  completionMode: Indexed
  completions: 3
  parallelism: 2
  template:
    spec:
      restartPolicy: Never
      containers:
      - name: count
        image: knarr.dev/test:1
        command: [sh, -c, 'echo index $JOB_COMPLETION_INDEX']
`)
	s.waitUntil("job/count", "condition=complete")
	var lines []string
	for line := range strings.Lines(s.kubectl("logs", "-l", "job-name=count")) {
		lines = append(lines, strings.TrimSpace(line))
	}
	slices.Sort(lines)
	want(t, "the output of all pods", strings.Join(lines, ","), "index 0,index 1,index 2")
}

func TestJobFailsAfterItsBackoffLimit(t *testing.T) {
	s := newSpace(t)
	s.apply(`
apiVersion: batch/v1
kind: Job
metadata:
  name: broken
spec:
  backoffLimit: 0
  template:
    spec:
      restartPolicy: Never
      containers:
      - name: broken
        image: knarr.dev/test:1
        args: [testbox, exit, "3"]
`)
	s.waitUntil("job/broken", "condition=failed")
	want(t, "the reason", s.get("job/broken", ".status.conditions[?(@.type=='Failed')].reason"), "BackoffLimitExceeded")
	want(t, "the exit code", s.get("pods", ".items[0].status.containerStatuses[0].state.terminated.exitCode"), "3")
}

func TestFinishedJobIsRemovedAfterItsTimeToLive(t *testing.T) {
	s := newSpace(t)
	s.apply(`
apiVersion: batch/v1
kind: Job
metadata:
  name: brief
spec:
  ttlSecondsAfterFinished: 0
  template:
    spec:
      restartPolicy: Never
      containers:
      - name: brief
        image: knarr.dev/test:1
        args: [testbox, exit, "0"]
`)
	s.waitUntil("job/brief", "delete")
}

func TestCronJobMakesJobs(t *testing.T) {
	s := newSpace(t)
	s.apply(`
apiVersion: batch/v1
kind: CronJob
metadata:
  name: yearly
spec:
  schedule: "0 0 1 1 *"
  jobTemplate:
    spec:
      template:
        spec:
          restartPolicy: OnFailure
          containers:
          - name: greet
            image: knarr.dev/test:1
            command: [echo, happy new year]
`)
	s.kubectl("create", "job", "--from=cronjob/yearly", "early")
	s.waitUntil("job/early", "condition=complete")
	want(t, "the job's output", s.kubectl("logs", "job/early"), "happy new year\n")
}

func TestDaemonSetRunsOnTheNode(t *testing.T) {
	s := newSpace(t)
	manifest := `
apiVersion: apps/v1
kind: DaemonSet
metadata:
  name: agent
spec:
  selector:
    matchLabels: {app: agent}
  template:
    metadata:
      labels: {app: agent}
    spec:
      terminationGracePeriodSeconds: 1
      containers:
      - name: agent
        image: knarr.dev/test:1
        env:
        - {name: EDITION, value: "1"}
`
	s.apply(manifest)
	s.kubectl("rollout", "status", "daemonset/agent", "--timeout=60s")
	pod := s.pods("app=agent", 1)[0]
	node := s.Kubectl(t, "get", "nodes", "-o", "jsonpath={.items[*].metadata.name}")
	want(t, "the node of the pod", pod.Spec.NodeName, node)

	s.apply(strings.Replace(manifest, `"1"`, `"2"`, 1))
	s.kubectl("rollout", "status", "daemonset/agent", "--timeout=60s")
	pod = s.pods("app=agent", 1)[0]
	want(t, "the pod's edition after the roll-out", s.in(pod.Name, "sh", "-c", "echo $EDITION"), "2")
}

func TestStatefulSetKeepsNamesAndAddressesByName(t *testing.T) {
	s := newSpace(t)
	s.apply(`
apiVersion: v1
kind: Service
metadata:
  name: db
spec:
  clusterIP: None
  selector: {app: db}
  ports:
  - name: http
    port: 8080
---
apiVersion: apps/v1
kind: StatefulSet
metadata:
  name: db
spec:
  serviceName: db
  replicas: 3
  selector:
    matchLabels: {app: db}
  template:
    metadata:
      labels: {app: db}
    spec:
      terminationGracePeriodSeconds: 1
      containers:
      - name: db
        image: knarr.dev/test:1
        args: [testbox, serve]
        readinessProbe:
          tcpSocket: {port: 8080}
          periodSeconds: 1
`)
	s.client()
	pods := s.pods("app=db", 3)
	slices.SortFunc(pods, func(a, b *corev1.Pod) int { return strings.Compare(a.Name, b.Name) })
	for i, p := range pods {
		want(t, "the name", p.Name, fmt.Sprintf("db-%d", i))
		want(t, "the answer by name", s.fromPod("http://"+p.Name+".db:8080"), p.Name)
		if i > 0 && p.CreationTimestamp.Time.Before(pods[i-1].CreationTimestamp.Time) {
			t.Errorf("%s was made before %s", p.Name, pods[i-1].Name)
		}
	}

	old := pods[1]
	s.kubectl("delete", "pod", "db-1", "--wait=false")
	again := s.pod("db-1", "ready again", func(p *corev1.Pod) bool {
		return p.UID != old.UID && len(p.Status.PodIPs) > 0 && harness.PodReady(p)
	})
	s.WaitFor(t, "the name to lead to the new pod", func(context.Context) (bool, error) {
		out, err := s.inErr("client", "testbox", "lookup", "db-1.db."+s.ns+".svc.cluster.local", "a")
		return out == again.Status.PodIP, err
	})
	want(t, "the answer by name", s.fromPod("http://db-1.db:8080"), "db-1")

	s.kubectl("scale", "statefulset/db", "--replicas=1")
	want(t, "the pod that is left", s.pods("app=db", 1)[0].Name, "db-0")
}

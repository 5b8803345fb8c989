package e2e

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"

	"github.com/knarr-dev/knarr/tests/harness"
	"github.com/knarr-dev/knarr/tests/harness/kube"
)

// web is a Deployment that answers with a text, and its Service.
func web(text string) []runtime.Object {
	return []runtime.Object{
		kube.Deployment("web", 2, kube.Serve(text), kube.Ready(kube.HTTP("/ready", 8080))),
		kube.Service("web", kube.Port(80, "http")),
	}
}

func TestDeploymentRollsOutAndBackAndScales(t *testing.T) {
	s := newSpace(t)
	s.create(web("first")...)
	s.client()
	s.kubectl("rollout", "status", "deployment/web", "--timeout=60s")
	want(t, "the answer", s.fromPod("http://web"), "first")

	s.create(web("second")...)
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
	s.create(web("here")...)
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
	s.create(web("here")...)
	s.pods("app=web", 2)
	s.kubectl("delete", "deployment", "web")
	s.pods("app=web", 0)
	want(t, "what is left", s.kubectl("get", "replicasets", "-o", "name"), "")
}

func TestDeletedNamespaceTakesEverythingAlong(t *testing.T) {
	s := newSpace(t)
	name := s.ns + "-gone"
	s.Kubectl(t, "create", "namespace", name)
	s.Create(t, name, web("here")...)
	s.WaitPods(t, name, "app=web", 2)
	s.Kubectl(t, "delete", "namespace", name, "--timeout=60s")
	if out, err := s.KubectlErr("get", "namespace", name); err == nil {
		t.Errorf("the namespace is still there: %s", out)
	}
}

func TestJobRunsToItsCompletions(t *testing.T) {
	s := newSpace(t)
	count := kube.Job("count", kube.Shell("echo index $JOB_COMPLETION_INDEX"))
	count.Spec.CompletionMode, count.Spec.Completions, count.Spec.Parallelism = new(batchv1.IndexedCompletion), new(int32(3)), new(int32(2))
	s.create(count)
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
	broken := kube.Job("broken", kube.Testbox("exit", "3"))
	broken.Spec.BackoffLimit = new(int32)
	s.create(broken)
	s.waitUntil("job/broken", "condition=failed")
	want(t, "the reason", s.get("job/broken", ".status.conditions[?(@.type=='Failed')].reason"), "BackoffLimitExceeded")
	want(t, "the exit code", s.get("pods", ".items[0].status.containerStatuses[0].state.terminated.exitCode"), "3")
}

func TestFinishedJobIsRemovedAfterItsTimeToLive(t *testing.T) {
	s := newSpace(t)
	brief := kube.Job("brief", kube.Testbox("exit", "0"))
	brief.Spec.TTLSecondsAfterFinished = new(int32)
	s.create(brief)
	s.waitUntil("job/brief", "delete")
}

func TestCronJobMakesJobs(t *testing.T) {
	s := newSpace(t)
	s.create(&batchv1.CronJob{ObjectMeta: metav1.ObjectMeta{Name: "yearly"}, Spec: batchv1.CronJobSpec{
		Schedule:    "0 0 1 1 *",
		JobTemplate: batchv1.JobTemplateSpec{Spec: kube.Job("greet", kube.Run("echo", "happy new year")).Spec},
	}})
	s.kubectl("create", "job", "--from=cronjob/yearly", "early")
	s.waitUntil("job/early", "condition=complete")
	want(t, "the job's output", s.kubectl("logs", "job/early"), "happy new year\n")
}

func TestDaemonSetRunsOnTheNode(t *testing.T) {
	s := newSpace(t)
	s.create(kube.DaemonSet("agent", kube.Env("EDITION", "1")))
	s.kubectl("rollout", "status", "daemonset/agent", "--timeout=60s")
	pod := s.pods("app=agent", 1)[0]
	node := s.Kubectl(t, "get", "nodes", "-o", "jsonpath={.items[*].metadata.name}")
	want(t, "the node of the pod", pod.Spec.NodeName, node)

	s.create(kube.DaemonSet("agent", kube.Env("EDITION", "2")))
	s.kubectl("rollout", "status", "daemonset/agent", "--timeout=60s")
	pod = s.pods("app=agent", 1)[0]
	want(t, "the pod's edition after the roll-out", s.in(pod.Name, "sh", "-c", "echo $EDITION"), "2")
}

func TestStatefulSetKeepsNamesAndAddressesByName(t *testing.T) {
	s := newSpace(t)
	s.create(kube.Service("db", kube.Headless, kube.Port(8080, "http")), kube.StatefulSet("db", 3, kube.Serve(""), kube.Ready(kube.TCP(8080))))
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

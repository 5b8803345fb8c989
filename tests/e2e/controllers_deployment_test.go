package e2e

import (
	"fmt"
	"strings"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/knarr-dev/knarr/tests/harness"
	"github.com/knarr-dev/knarr/tests/harness/kube"
)

// edition is a variable by which a test tells the pods of a template from those
// of the next.
func edition(n string) kube.Option { return kube.Env("EDITION", n) }

// editions are those of pods, by the pods' names.
func editions(pods []*corev1.Pod) map[string]string {
	m := map[string]string{}
	for _, p := range pods {
		for _, e := range p.Spec.Containers[0].Env {
			if e.Name == "EDITION" {
				m[p.Name] = e.Value
			}
		}
	}
	return m
}

func wantEdition(t *testing.T, pods []*corev1.Pod, edition string) {
	t.Helper()
	for name, got := range editions(pods) {
		want(t, "the edition of "+name, got, edition)
	}
}

// rolledOut waits until all pods of a Deployment, StatefulSet or DaemonSet are
// those of its template.
func (s *space) rolledOut(what string) {
	s.t.Helper()
	s.kubectl("rollout", "status", what, "--timeout=60s")
}

func TestPausedDeploymentKeepsItsPodsUntilItIsResumed(t *testing.T) {
	s := newSpace(t)
	s.create(kube.Deployment("web", 1, edition("1")))
	s.rolledOut("deployment/web")
	s.kubectl("rollout", "pause", "deployment/web")
	s.kubectl("set", "env", "deployment/web", "EDITION=2")
	// What is scaled now comes after the change, and shows that it was seen.
	s.kubectl("scale", "deployment/web", "--replicas=2")
	wantEdition(t, s.pods("app=web", 2), "1")
	s.kubectl("rollout", "resume", "deployment/web")
	s.rolledOut("deployment/web")
	wantEdition(t, s.pods("app=web", 2), "2")
}

func TestDeploymentGoesBackToARevisionOfItsHistory(t *testing.T) {
	s := newSpace(t)
	for _, n := range []string{"1", "2", "3"} {
		d := kube.Deployment("web", 1, edition(n))
		d.Annotations = map[string]string{"kubernetes.io/change-cause": "edition " + n}
		s.create(d)
		s.rolledOut("deployment/web")
	}
	history := s.kubectl("rollout", "history", "deployment/web")
	for _, cause := range []string{"edition 1", "edition 2", "edition 3"} {
		wantPart(t, "the history", history, cause)
	}
	second := strings.Join(strings.Fields(s.kubectl("rollout", "history", "deployment/web", "--revision=2")), " ")
	wantPart(t, "the second revision", second, "EDITION: 2")
	s.kubectl("rollout", "undo", "deployment/web", "--to-revision=1")
	s.rolledOut("deployment/web")
	wantEdition(t, s.pods("app=web", 1), "1")
}

func TestDeploymentThatMakesNoProgressSaysSoAndKeepsWhatRuns(t *testing.T) {
	s := newSpace(t)
	s.create(kube.Deployment("web", 1, edition("1")))
	s.rolledOut("deployment/web")
	broken := kube.Deployment("web", 1, kube.Box(func(c *corev1.Container) {
		c.Image, c.ImagePullPolicy = "knarr.dev/nothing:1", corev1.PullNever
	}))
	broken.Spec.ProgressDeadlineSeconds = new(int32(2))
	s.create(broken)
	s.waitUntil("deployment/web", "condition=Progressing=false")
	want(t, "the reason", s.get("deployment/web", ".status.conditions[?(@.type=='Progressing')].reason"), "ProgressDeadlineExceeded")
	if _, err := s.kubectlErr("rollout", "status", "deployment/web"); err == nil || !strings.Contains(err.Error(), "exceeded its progress deadline") {
		t.Errorf("kubectl does not tell of the roll-out's end: %v", err)
	}
	want(t, "how many pods serve", s.get("deployment/web", ".status.availableReplicas"), "1")
	s.kubectl("rollout", "undo", "deployment/web")
	s.waitUntil("deployment/web", "condition=Progressing")
	wantEdition(t, s.pods("app=web", 1), "1")
}

func TestRecreatedDeploymentNeverHasTwoEditionsAtOnce(t *testing.T) {
	s := newSpace(t)
	s.Write(t, "/root/"+s.ns+"/note", "the folder that both editions want for themselves")
	alone := func(n string) *appsv1.Deployment {
		d := kube.Deployment("web", 1, edition(n), kube.Grace(20), kube.Mount("node", "/node", kube.HostFolder("/root/"+s.ns)),
			kube.Shell(`mkdir /node/held || exit 1; trap 'rmdir /node/held; exit 0' TERM; testbox sleep & wait`))
		d.Spec.Strategy.Type = appsv1.RecreateDeploymentStrategyType
		return d
	}
	s.create(alone("1"))
	s.pods("app=web", 1)
	s.create(alone("2"))
	s.rolledOut("deployment/web")
	pods := s.pods("app=web", 1)
	wantEdition(t, pods, "2")
	if n := pods[0].Status.ContainerStatuses[0].RestartCount; n > 0 {
		t.Errorf("the second edition met the first and started %d times again", n)
	}
}

func TestReplicaSetAdoptsAndReleasesPodsByTheirLabels(t *testing.T) {
	s := newSpace(t)
	s.create(kube.Pod("crew"))
	s.running("crew")
	d := kube.Deployment("crew", 2)
	s.create(&appsv1.ReplicaSet{ObjectMeta: metav1.ObjectMeta{Name: "crew"}, Spec: appsv1.ReplicaSetSpec{
		Replicas: d.Spec.Replicas, Selector: d.Spec.Selector, Template: d.Spec.Template,
	}})
	s.pods("app=crew", 2)
	want(t, "the owner of the pod that was there", s.get("pod/crew", ".metadata.ownerReferences[0].kind"), "ReplicaSet")

	s.kubectl("label", "pod", "crew", "app=ashore", "--overwrite")
	s.pod("crew", "released", func(p *corev1.Pod) bool { return len(p.OwnerReferences) == 0 && harness.PodReady(p) })
	s.pods("app=crew", 2)
	s.kubectl("scale", "replicaset/crew", "--replicas=0")
	s.pods("app=crew", 0)
	s.running("crew")
}

func TestReplicationControllerKeepsItsNumberOfPods(t *testing.T) {
	s := newSpace(t)
	template := kube.Deployment("crew", 2).Spec.Template
	s.create(&corev1.ReplicationController{ObjectMeta: metav1.ObjectMeta{Name: "crew"}, Spec: corev1.ReplicationControllerSpec{
		Replicas: new(int32(2)), Selector: template.Labels, Template: &template,
	}})
	old := s.pods("app=crew", 2)[0].Name
	s.kubectl("delete", "pod", old)
	s.pods("app=crew", 2)
	s.kubectl("scale", "rc/crew", "--replicas=3")
	s.pods("app=crew", 3)
	s.waitUntil("rc/crew", "jsonpath={.status.readyReplicas}=3")
	s.kubectl("delete", "rc/crew")
	s.pods("app=crew", 0)
}

// A site of three parts that find each other by name, and a controller whose pods
// are of another edition step by step: what the conformance list shows by its
// guestbook and update demos.
func TestSiteOfThreePartsGrowsShrinksAndChanges(t *testing.T) {
	s := newSpace(t)
	tier := func(name, body string) {
		s.apply(strings.NewReplacer("NAME", name, "BODY", body).Replace(`
apiVersion: v1
kind: ReplicationController
metadata: {name: NAME}
spec:
  replicas: 2
  selector: {app: NAME}
  template:
    metadata: {labels: {app: NAME}}
    spec:
      containers:
      - {name: web, image: knarr.dev/test:1, command: [testbox, serve, --port=8080, "--body=BODY"], ports: [{containerPort: 8080}], readinessProbe: {tcpSocket: {port: 8080}, periodSeconds: 1}}
---
apiVersion: v1
kind: Service
metadata: {name: NAME}
spec: {selector: {app: NAME}, ports: [{port: 80, targetPort: 8080}]}
`))
	}
	tier("front", "the guestbook")
	tier("leader", "entries")
	tier("follower", "copies")
	s.client()
	for name, body := range map[string]string{"front": "the guestbook", "leader": "entries", "follower": "copies"} {
		s.pods("app="+name, 2)
		wantPart(t, "the answer of "+name, s.fromPod("http://"+name), body)
	}
	for _, n := range []int{1, 3} {
		s.kubectl("scale", "rc", "front", fmt.Sprint("--replicas=", n))
		s.pods("app=front", n)
	}
	wantPart(t, "the answer after it has grown", s.fromPod("http://front"), "the guestbook")
	s.kubectl("delete", "rc", "front")
	s.pods("app=front", 0)
	tier("front", "the second edition")
	s.pods("app=front", 2)
	wantPart(t, "the answer of the second edition", s.fromPod("http://front"), "the second edition")
}

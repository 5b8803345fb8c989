package e2e

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/knarr-dev/knarr/tests/harness"
	"github.com/knarr-dev/knarr/tests/harness/kube"
)

// neverPulled is a container that can't start.
func neverPulled() kube.Option {
	return kube.Box(func(c *corev1.Container) { c.Image, c.ImagePullPolicy = "knarr.dev/nothing:1", corev1.PullNever })
}

// The minute that was missed is told in the status; the next one is waited for.
func TestCronJobMeetsAJobOfBeforeAsItsPolicySays(t *testing.T) {
	s := newSpace(t)
	policies := map[string]batchv1.ConcurrencyPolicy{"allow": batchv1.AllowConcurrent, "forbid": batchv1.ForbidConcurrent, "replace": batchv1.ReplaceConcurrent}
	first := map[string]string{}
	last := time.Now().Add(-90 * time.Second).UTC().Format(time.RFC3339)
	for name, policy := range policies {
		s.create(&batchv1.CronJob{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: batchv1.CronJobSpec{
			Schedule: "* * * * *", ConcurrencyPolicy: policy, JobTemplate: batchv1.JobTemplateSpec{Spec: kube.Job(name).Spec},
		}})
		s.kubectl("patch", "cronjob", name, "--subresource=status", "--type=merge", "--patch", `{"status": {"lastScheduleTime": "`+last+`"}}`)
	}
	for name := range policies {
		s.waitUntil("cronjob/"+name, "jsonpath={.status.active[0].name}")
		first[name] = s.get("cronjob/"+name, ".status.active[0].name")
	}
	s.kubectl("wait", "job/"+first["replace"], "--for=delete", "--timeout=2m")
	s.event("forbid", "JobAlreadyActive", "")
	active := func(name string) []string { return strings.Fields(s.get("cronjob/"+name, ".status.active[*].name")) }
	s.WaitFor(t, "the second job of allow", func(context.Context) (bool, error) { return len(active("allow")) >= 2, nil })
	s.WaitFor(t, "the second job of replace", func(context.Context) (bool, error) {
		got := active("replace")
		return len(got) == 1 && got[0] != first["replace"], nil
	})
	if got := active("allow"); !slices.Contains(got, first["allow"]) {
		t.Errorf("where jobs may run beside each other, %q run, and %s does not", got, first["allow"])
	}
	if got := active("forbid"); !slices.Equal(got, []string{first["forbid"]}) {
		t.Errorf("where they may not, %q run, want %s alone", got, first["forbid"])
	}
	if got := active("replace"); len(got) != 1 || got[0] == first["replace"] {
		t.Errorf("where the next takes the place of the one before, %q run", got)
	}
}

func TestDaemonSetFollowsTheLabelsOfNodesAndMakesFailedPodsAnew(t *testing.T) {
	s := newSpace(t)
	label := "example.org/" + s.ns
	s.create(kube.DaemonSet("agent", kube.Node(label, "yes")))
	s.waitUntil("daemonset/agent", "jsonpath={.status.observedGeneration}=1")
	want(t, "how many nodes it is for", s.get("daemonset/agent", ".status.desiredNumberScheduled"), "0")
	s.Kubectl(t, "label", "node", "node", label+"=yes")
	t.Cleanup(func() { _, _ = s.KubectlErr("label", "node", "node", label+"-") })
	old := s.pods("app=agent", 1)[0]

	s.kubectl("patch", "pod", old.Name, "--subresource=status", "--type=merge", "--patch", `{"status": {"phase": "Failed"}}`)
	s.WaitPodsUntil(t, s.ns, "app=agent", "are another than the one that failed", func(pods []*corev1.Pod) bool {
		return len(pods) == 1 && pods[0].UID != old.UID && harness.PodReady(pods[0])
	})
	s.Kubectl(t, "label", "node", "node", label+"=no", "--overwrite")
	s.pods("app=agent", 0)
}

func TestDeploymentForgetsRevisionsBeyondItsHistory(t *testing.T) {
	s := newSpace(t)
	for _, n := range []string{"1", "2"} {
		d := kube.Deployment("web", 1, edition(n))
		d.Spec.RevisionHistoryLimit = new(int32)
		s.create(d)
		s.rolledOut("deployment/web")
	}
	s.WaitFor(t, "the first ReplicaSet to go", func(context.Context) (bool, error) {
		out, err := s.kubectlErr("get", "replicasets", "-o", "name")
		return len(strings.Fields(out)) == 1, err
	})
}

func TestDeploymentTurnsToANewerTemplateInTheMiddleOfARollout(t *testing.T) {
	s := newSpace(t)
	s.create(kube.Deployment("web", 2, edition("1")))
	s.rolledOut("deployment/web")
	s.create(kube.Deployment("web", 2, edition("2"), neverPulled()))
	s.WaitPodsUntil(t, s.ns, "app=web", "have one that can't start", func(pods []*corev1.Pod) bool {
		return slices.Contains(slices.Collect(maps.Values(editions(pods))), "2")
	})
	s.create(kube.Deployment("web", 2, edition("3")))
	s.rolledOut("deployment/web")
	wantEdition(t, s.pods("app=web", 2), "3")
}

// In the middle of a roll-out, new pods are made of both templates.
func TestDeploymentGrowsInProportionInTheMiddleOfARollout(t *testing.T) {
	s := newSpace(t)
	web := func(replicas int32, opts ...kube.Option) *appsv1.Deployment {
		d := kube.Deployment("web", replicas, opts...)
		d.Spec.Strategy.RollingUpdate = &appsv1.RollingUpdateDeployment{MaxSurge: new(intstr.FromInt32(2)), MaxUnavailable: new(intstr.FromInt32(1))}
		return d
	}
	of := func(first, second int32) {
		t.Helper()
		s.WaitFor(t, fmt.Sprintf("%d pods of the first template and %d of the second", first, second), func(ctx context.Context) (bool, error) {
			list, err := s.Client.AppsV1().ReplicaSets(s.ns).List(ctx, metav1.ListOptions{})
			if err != nil {
				return false, err
			}
			var got [2]int32
			for _, rs := range list.Items {
				i := map[string]int{"1": 0, "2": 1}[rs.Spec.Template.Spec.Containers[0].Env[0].Value]
				got[i] = *rs.Spec.Replicas
			}
			return got == [2]int32{first, second}, nil
		})
	}
	s.create(web(4, edition("1")))
	s.rolledOut("deployment/web")
	s.create(web(4, edition("2"), neverPulled()))
	of(3, 3)
	s.create(web(8, edition("2"), neverPulled()))
	of(5, 5)
}

func TestJobAdoptsAndReleasesItsPods(t *testing.T) {
	s := newSpace(t)
	s.create(kube.Job("crew"))
	name := s.pods("app=crew", 1)[0].Name
	s.kubectl("patch", "pod", name, "--type=merge", "--patch", `{"metadata": {"ownerReferences": null}}`)
	s.pod(name, "adopted", func(p *corev1.Pod) bool { return len(p.OwnerReferences) == 1 && p.OwnerReferences[0].Name == "crew" })
	s.kubectl("patch", "pod", name, "--type=merge", "--patch", `{"metadata": {"labels": null}}`)
	s.pod(name, "released", func(p *corev1.Pod) bool { return len(p.OwnerReferences) == 0 })
	if other := s.pods("app=crew", 1)[0].Name; other == name {
		t.Errorf("pod %s was released and is the job's", name)
	}
}

func TestJobDoesNotCountPodsThatWereDisturbed(t *testing.T) {
	s := newSpace(t)
	s.Write(t, "/root/"+s.ns+"/note", "where the first pod leaves word")
	calm := kube.Job("calm", kube.Mount("node", "/node", kube.HostFolder("/root/"+s.ns)), kube.Shell("mkdir /node/tried && exec testbox sleep; echo done"))
	calm.Spec.BackoffLimit = new(int32)
	calm.Spec.PodFailurePolicy = &batchv1.PodFailurePolicy{Rules: []batchv1.PodFailurePolicyRule{{
		Action:          batchv1.PodFailurePolicyActionIgnore,
		OnPodConditions: []batchv1.PodFailurePolicyOnPodConditionsPattern{{Type: corev1.DisruptionTarget, Status: corev1.ConditionTrue}},
	}}}
	s.create(calm)
	first := s.pods("app=calm", 1)[0]
	s.WaitFor(t, "the pod's word", func(ctx context.Context) (bool, error) {
		_, err := s.ExecErr(ctx, "test", "-d", "/root/"+s.ns+"/tried")
		return err == nil, err
	})
	err := s.Client.PolicyV1().Evictions(s.ns).Evict(t.Context(), &policyv1.Eviction{ObjectMeta: metav1.ObjectMeta{Name: first.Name, Namespace: s.ns}})
	if err != nil {
		t.Fatal(err)
	}
	s.waitUntil("job/calm", "condition=complete")
	want(t, "how many failed", s.get("job/calm", ".status.failed"), "")
}

func TestJobsContainerThatFailsIsStartedAgainInItsPod(t *testing.T) {
	s := newSpace(t)
	s.create(kube.Job("stubborn", kube.Spec(func(p *corev1.PodSpec) { p.RestartPolicy = corev1.RestartPolicyOnFailure }),
		kube.Mount("s", "/s", kube.Scratch()), kube.Shell("mkdir /s/tried && exit 1; echo done")))
	s.waitUntil("job/stubborn", "condition=complete")
	want(t, "how many pods failed", s.get("job/stubborn", ".status.failed"), "")
	want(t, "how often the container was started again", s.get("pods", ".items[*].status.containerStatuses[0].restartCount"), "1")
}

func TestStatefulSetStaysAsItIsWhileAPodIsUnhealthy(t *testing.T) {
	s := newSpace(t)
	told := kube.Ready(kube.Exec("test", "-f", "/tmp/ready"))
	crowd := kube.StatefulSet("crowd", 1, told)
	crowd.Spec.PodManagementPolicy = appsv1.ParallelPodManagement
	s.create(kube.StatefulSet("queue", 1, told), crowd)
	running := func(p *corev1.Pod) bool { return p.Status.Phase == corev1.PodRunning }
	s.pod("queue-0", "running", running)
	s.pod("crowd-0", "running", running)
	seen := func(generation string) {
		t.Helper()
		s.waitUntil("statefulset/queue", "jsonpath={.status.observedGeneration}="+generation)
	}

	s.kubectl("scale", "statefulset/queue", "statefulset/crowd", "--replicas=3")
	s.pod("crowd-2", "running", running)
	seen("2")
	want(t, "the pods while the first is not ready", s.kubectl("get", "pods", "-l", "app=queue", "-o", "name"), "pod/queue-0\n")
	for _, pod := range []string{"queue-0", "queue-1", "queue-2"} {
		s.pod(pod, "running", running)
		s.in(pod, "touch", "/tmp/ready")
	}
	s.pods("app=queue", 3)

	s.in("queue-0", "rm", "/tmp/ready")
	s.pod("queue-0", "unready", func(p *corev1.Pod) bool { return !harness.PodReady(p) })
	s.kubectl("scale", "statefulset/queue", "statefulset/crowd", "--replicas=1")
	s.WaitGone(t, s.ns, "crowd-2")
	seen("3")
	want(t, "when the last was told to end", s.get("pod/queue-2", ".metadata.deletionTimestamp"), "")
	s.in("queue-0", "touch", "/tmp/ready")
	s.WaitGone(t, s.ns, "queue-2")
	s.WaitGone(t, s.ns, "queue-1")
	s.pods("app=queue", 1)
}

// A pod that the node refuses, since its port is taken, is made anew until it is not.
func TestStatefulSetMakesRefusedPodsAnew(t *testing.T) {
	s := newSpace(t)
	here := kube.On("node")
	s.create(kube.Pod("holder", here, kube.Serve(""), kube.HostPort(18765)))
	s.running("holder")
	s.create(kube.StatefulSet("web", 1, here, kube.Serve(""), kube.HostPort(18765)))
	var uids []types.UID
	s.pod("web-0", "made a second time", func(p *corev1.Pod) bool {
		if !slices.Contains(uids, p.UID) {
			uids = append(uids, p.UID)
		}
		return len(uids) > 1
	})
	s.kubectl("delete", "pod", "holder")
	s.running("web-0")
}

func TestStatefulSetIsChangedInPhases(t *testing.T) {
	s := newSpace(t)
	phase := func(n string, partition int32) {
		t.Helper()
		set := kube.StatefulSet("db", 3, edition(n))
		set.Spec.UpdateStrategy = appsv1.StatefulSetUpdateStrategy{
			Type:          appsv1.RollingUpdateStatefulSetStrategyType,
			RollingUpdate: &appsv1.RollingUpdateStatefulSetStrategy{Partition: &partition},
		}
		s.create(set)
		s.rolledOut("statefulset/db")
	}
	phase("1", 3)
	for partition := int32(3); partition >= 0; partition-- {
		phase("2", partition)
		for name, got := range editions(s.pods("app=db", 3)) {
			edition := "1"
			if name >= fmt.Sprint("db-", partition) {
				edition = "2"
			}
			want(t, fmt.Sprintf("the edition of %s at partition %d", name, partition), got, edition)
		}
	}
}

func TestReplicationControllerAdoptsReleasesAndTellsOfAQuota(t *testing.T) {
	s := newSpace(t)
	s.create(&corev1.ResourceQuota{ObjectMeta: metav1.ObjectMeta{Name: "small"}, Spec: corev1.ResourceQuotaSpec{
		Hard: corev1.ResourceList{corev1.ResourcePods: resource.MustParse("2")},
	}})
	s.waitUntil("resourcequota/small", "jsonpath={.status.used.pods}=0")
	s.create(kube.Pod("crew"))
	s.running("crew")
	template := kube.Deployment("crew", 1).Spec.Template
	s.create(&corev1.ReplicationController{ObjectMeta: metav1.ObjectMeta{Name: "crew"}, Spec: corev1.ReplicationControllerSpec{
		Replicas: new(int32(1)), Selector: template.Labels, Template: &template,
	}})
	s.pod("crew", "adopted", func(p *corev1.Pod) bool {
		return len(p.OwnerReferences) == 1 && p.OwnerReferences[0].Kind == "ReplicationController"
	})
	s.kubectl("label", "pod", "crew", "app=ashore", "--overwrite")
	s.pod("crew", "released", func(p *corev1.Pod) bool { return len(p.OwnerReferences) == 0 })
	s.pods("app=crew", 1)

	s.kubectl("scale", "rc/crew", "--replicas=2")
	s.waitUntil("rc/crew", "condition=ReplicaFailure")
	s.kubectl("scale", "rc/crew", "--replicas=1")
	s.WaitFor(t, "the condition to go", func(context.Context) (bool, error) {
		out, err := s.kubectlErr("get", "rc/crew", "-o", "jsonpath={.status.conditions}")
		return out == "", err
	})
}

func TestDeletedNamespaceEndsItsPodsBeforeAllElse(t *testing.T) {
	s := newSpace(t)
	s.create(kube.Pod("last"), kube.ConfigMap("needed", "a", "b"))
	s.running("last")
	s.kubectl("patch", "pod", "last", "--patch", holding)
	s.kubectl("delete", "namespace", s.ns, "--wait=false")
	s.pod("last", "told to end", func(p *corev1.Pod) bool { return p.DeletionTimestamp != nil })
	if _, err := s.kubectlErr("wait", "configmap/needed", "--for=delete", "--timeout=3s"); err == nil {
		t.Error("the ConfigMap went before the pod")
	}
	s.kubectl("patch", "pod", "last", "--patch", lettingGo)
	s.waitUntil("namespace/"+s.ns, "delete")
}

package e2e

import (
	"strings"
	"testing"
	"time"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/knarr-dev/knarr/tests/harness/kube"
)

// job is one whose pods may start at the same time, each with an index.
func job(name string, completions int32, opts ...kube.Option) *batchv1.Job {
	j := kube.Job(name, opts...)
	j.Spec.Completions, j.Spec.Parallelism, j.Spec.CompletionMode = &completions, &completions, new(batchv1.IndexedCompletion)
	return j
}

// reason is why a job is in a condition.
func (s *space) reason(job, condition string) string {
	s.t.Helper()
	return s.get("job/"+job, ".status.conditions[?(@.type=='"+condition+"')].reason")
}

func TestJobRunsItsPodsBesideEachOther(t *testing.T) {
	s := newSpace(t)
	s.Write(t, "/root/"+s.ns+"/meeting/1", "where the pods meet")
	// None ends before all three are there.
	meeting := kube.Job("meeting", kube.Mount("node", "/node", kube.HostFolder("/root/"+s.ns+"/meeting")),
		kube.Shell(`touch /node/$HOSTNAME; until [ $(ls /node | wc -l) -ge 4 ]; do sleep 0.1; done`))
	meeting.Spec.Completions, meeting.Spec.Parallelism = new(int32(3)), new(int32(3))
	s.create(meeting)
	s.waitUntil("job/meeting", "condition=complete")
	want(t, "how many succeeded", s.get("job/meeting", ".status.succeeded"), "3")
}

func TestJobTriesAgainAfterAFailure(t *testing.T) {
	s := newSpace(t)
	s.Write(t, "/root/"+s.ns+"/note", "where the first pod leaves word")
	s.create(kube.Job("stubborn", kube.Mount("node", "/node", kube.HostFolder("/root/"+s.ns)), kube.Shell("mkdir /node/tried && exit 1; echo done")))
	s.waitUntil("job/stubborn", "condition=complete")
	want(t, "how many failed", s.get("job/stubborn", ".status.failed"), "1")
	want(t, "how many succeeded", s.get("job/stubborn", ".status.succeeded"), "1")
}

func TestIndexThatFailsDoesNotHinderTheOthersOfAJob(t *testing.T) {
	s := newSpace(t)
	sorted := job("sorted", 3, kube.Shell(`[ "$JOB_COMPLETION_INDEX" != 1 ]`))
	sorted.Spec.BackoffLimitPerIndex = new(int32)
	s.create(sorted)
	s.waitUntil("job/sorted", "condition=failed")
	want(t, "the reason", s.reason("sorted", "Failed"), "FailedIndexes")
	want(t, "the indexes that failed", s.get("job/sorted", ".status.failedIndexes"), "1")
	want(t, "the indexes that succeeded", s.get("job/sorted", ".status.completedIndexes"), "0,2")
}

func TestJobEndsByTheRulesForFailureAndSuccess(t *testing.T) {
	s := newSpace(t)
	hopeless := kube.Job("hopeless", kube.Testbox("exit", "42"))
	hopeless.Spec.PodFailurePolicy = &batchv1.PodFailurePolicy{Rules: []batchv1.PodFailurePolicyRule{{
		Action: batchv1.PodFailurePolicyActionFailJob,
		OnExitCodes: &batchv1.PodFailurePolicyOnExitCodesRequirement{
			Operator: batchv1.PodFailurePolicyOnExitCodesOpIn, Values: []int32{42},
		},
	}}}
	led := job("led", 2, kube.Shell(`[ "$JOB_COMPLETION_INDEX" = 0 ] || testbox sleep`))
	led.Spec.SuccessPolicy = &batchv1.SuccessPolicy{Rules: []batchv1.SuccessPolicyRule{{SucceededIndexes: new("0")}}}
	late := kube.Job("late")
	late.Spec.ActiveDeadlineSeconds = new(int64(1))
	s.create(hopeless, led, late)
	for _, c := range []struct{ job, condition, reason string }{
		{"hopeless", "Failed", "PodFailurePolicy"},
		{"led", "Complete", "SuccessPolicy"},
		{"late", "Failed", "DeadlineExceeded"},
	} {
		s.waitUntil("job/"+c.job, "condition="+c.condition)
		want(t, "the reason of "+c.job, s.reason(c.job, c.condition), c.reason)
	}
	want(t, "how many pods a hopeless job makes", s.get("job/hopeless", ".status.failed"), "1")
	s.pods("app=late", 0)
}

func TestSuspendedJobHasNoPodsUntilItIsResumed(t *testing.T) {
	s := newSpace(t)
	patient := kube.Job("patient", kube.Run("echo", "now"))
	patient.Spec.Suspend = new(true)
	s.create(patient)
	s.waitUntil("job/patient", "condition=suspended")
	want(t, "the pods", s.kubectl("get", "pods", "-o", "name"), "")
	s.kubectl("patch", "job", "patient", "--patch", `{"spec": {"suspend": false}}`)
	s.waitUntil("job/patient", "condition=complete")
	want(t, "the output", s.kubectl("logs", "job/patient"), "now\n")
}

// The hour that was missed is told in the status, so that nobody has to wait for
// the next one.
func TestCronJobMakesUpForTheHourItMissed(t *testing.T) {
	s := newSpace(t)
	hourly := &batchv1.CronJob{ObjectMeta: metav1.ObjectMeta{Name: "hourly"}, Spec: batchv1.CronJobSpec{
		Schedule: "0 * * * *", TimeZone: new("Asia/Tokyo"), Suspend: new(true),
		JobTemplate: batchv1.JobTemplateSpec{Spec: kube.Job("strike", kube.Run("echo", "ding")).Spec},
	}}
	s.create(hourly)
	last := time.Now().Add(-90 * time.Minute).UTC().Format(time.RFC3339)
	s.kubectl("patch", "cronjob", "hourly", "--subresource=status", "--type=merge", "--patch", `{"status": {"lastScheduleTime": "`+last+`"}}`)
	want(t, "the jobs of a suspended one", s.kubectl("get", "jobs", "-o", "name"), "")
	s.kubectl("patch", "cronjob", "hourly", "--patch", `{"spec": {"suspend": false}}`)
	s.waitUntil("cronjob/hourly", "jsonpath={.status.lastSuccessfulTime}")
	jobs := strings.Fields(s.get("jobs", ".items[*].metadata.name"))
	if len(jobs) != 1 {
		t.Fatalf("the jobs are %q", jobs)
	}
	want(t, "the owner", s.get("job/"+jobs[0], ".metadata.ownerReferences[0].kind"), "CronJob")
	want(t, "the output", s.kubectl("logs", "job/"+jobs[0]), "ding\n")

	s.kubectl("delete", "cronjob", "hourly")
	s.waitUntil("job/"+jobs[0], "delete")
	s.WaitPodsUntil(t, s.ns, "app=strike", "are gone", func(pods []*corev1.Pod) bool { return len(pods) == 0 })
}

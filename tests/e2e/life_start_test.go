package e2e

import (
	"os"
	"strings"
	"testing"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	corev1 "k8s.io/api/core/v1"

	"github.com/knarr-dev/knarr/tests/harness"
	"github.com/knarr-dev/knarr/tests/harness/kube"
)

func TestInitContainerWaitsForAServiceByItsName(t *testing.T) {
	s := newSpace(t)
	s.create(kube.Pod("patient", kube.Once, kube.Testbox("get", "http://db"),
		kube.Init("wait", kube.Testbox("waitfor", "db:80", "--timeout=50s"))))
	s.pod("patient", "waiting in its init container", func(p *corev1.Pod) bool {
		c := p.Status.InitContainerStatuses
		return len(c) == 1 && c[0].State.Running != nil
	})
	s.create(kube.Service("db", kube.Port(80, "http")), kube.Pod("db", kube.Serve("data"), kube.Ready(kube.HTTP("/ready", 8080))))
	want(t, "what the main container got", s.ended("patient", corev1.PodSucceeded), "data\n")
}

func TestSidecarsStartInOrderAndStopInReverseAfterTheMainContainer(t *testing.T) {
	s := newSpace(t)
	s.Exec(t, "mkdir", "-p", "/root/"+s.ns)
	journal := kube.Mount("journal", "/journal", kube.HostFolder("/root/"+s.ns))
	// A sidecar is started when its probe says so: not before it has written.
	sidecar := func(name string) kube.Option {
		return kube.Sidecar(name, journal, kube.Started(kube.Exec("grep", "-q", "start "+name, "/journal/lines")),
			kube.Shell(`trap "echo stop `+name+` >> /journal/lines; exit" TERM; echo start `+name+` >> /journal/lines; testbox sleep & wait $!`))
	}
	s.create(kube.Pod("crewed", kube.Once, kube.Grace(20), sidecar("first"),
		kube.Init("between", journal, kube.Shell("echo between >> /journal/lines")),
		sidecar("second"), journal, kube.Shell("echo main >> /journal/lines")))
	s.pod("crewed", "succeeded", func(p *corev1.Pod) bool { return p.Status.Phase == corev1.PodSucceeded })
	lines, err := os.ReadFile(s.Host.Path("/root/" + s.ns + "/lines"))
	if err != nil {
		t.Fatal(err)
	}
	want(t, "the order", strings.Join(strings.Split(strings.TrimSpace(string(lines)), "\n"), ", "),
		"start first, between, start second, main, stop second, stop first")
}

func TestSidecarThatEndsIsStartedAgain(t *testing.T) {
	s := newSpace(t)
	s.create(kube.Pod("crewed", kube.Once, kube.Sidecar("weary", kube.Shell("sleep 1; exit 1"))))
	s.pod("crewed", "running with a restarted sidecar", func(p *corev1.Pod) bool {
		c, main := p.Status.InitContainerStatuses, p.Status.ContainerStatuses
		return len(c) == 1 && c[0].RestartCount > 0 && len(main) == 1 && main[0].State.Running != nil && main[0].RestartCount == 0
	})
}

func TestHelpersOfAPodShipConvertAndConnect(t *testing.T) {
	s := newSpace(t)
	s.create(kube.Service("far", kube.Port(80, "http")), kube.Pod("far", kube.Serve("news")))
	s.running("far")
	logs := kube.Mount("logs", "/logs", kube.Scratch())
	const follow = "touch /logs/app.log; tail -n +1 -F /logs/app.log"
	s.create(kube.Pod("crewed", logs,
		kube.Shell("testbox get http://localhost:9000 --retry 30s >> /logs/app.log; testbox sleep"),
		kube.Container("shipper", logs, kube.Shell(follow)),
		kube.Container("adapter", logs, kube.Shell(follow+` | while read -r line; do echo "{\"message\": \"$line\"}"; done`)),
		kube.Container("ambassador", kube.Testbox("forward", "--port=9000", "far:80"))))
	s.running("crewed")
	want(t, "the first line shipped", s.start("logs", "-f", "crewed", "-c", "shipper").line(), "news")
	want(t, "the first line converted", s.start("logs", "-f", "crewed", "-c", "adapter").line(), `{"message": "news"}`)
}

func TestCommandAndArgsReplaceEntrypointAndCmd(t *testing.T) {
	s := newSpace(t)
	r := s.StartRegistry(t, harness.RegistryOptions{})
	r.Push(t, "speaker:1", func(i *ocispec.Image) {
		i.Config.Entrypoint, i.Config.Cmd = []string{"echo", "entrypoint"}, []string{"cmd"}
	})
	args := kube.Box(func(c *corev1.Container) { c.Args = []string{"args", "$(COLOUR)", "$$(COLOUR)", "$(NONE)"} })
	for name, c := range map[string]struct {
		opts []kube.Option
		want string
	}{
		"neither": {nil, "entrypoint cmd"},
		"args":    {[]kube.Option{args}, "entrypoint args green $(COLOUR) $(NONE)"},
		"command": {[]kube.Option{kube.Run("echo", "command")}, "command"},
		"both":    {[]kube.Option{kube.Run("echo", "command"), args}, "command args green $(COLOUR) $(NONE)"},
	} {
		s.create(kube.Pod(name, append(c.opts, kube.Once, image(r.Image("speaker:1")), kube.Env("COLOUR", "green"))...))
		want(t, "the output with "+name, s.ended(name, corev1.PodSucceeded), c.want+"\n")
	}
}

func TestContainerThatCannotStartIsToldOf(t *testing.T) {
	s := newSpace(t)
	s.create(kube.Pod("typo", kube.Run("testbix")))
	s.event("typo", "Failed", `"testbix": executable file not found in $PATH`)
	s.create(kube.Pod("hooked", kube.Box(func(c *corev1.Container) {
		c.Lifecycle = &corev1.Lifecycle{PostStart: &corev1.LifecycleHandler{Exec: &corev1.ExecAction{Command: []string{"sh", "-c", "echo no wind; exit 3"}}}}
	})))
	s.event("hooked", "FailedPostStartHook", "")
	s.pod("hooked", "restarted", func(p *corev1.Pod) bool {
		c := p.Status.ContainerStatuses
		return len(c) == 1 && c[0].RestartCount > 0
	})
}

func TestHooksMayAskByHTTPOrSleep(t *testing.T) {
	s := newSpace(t)
	s.create(kube.Pod("told", kube.Serve("")))
	tell := kube.HTTP("/mark", 8080)
	tell.HTTPGet.Host = s.running("told").Status.PodIP
	s.create(kube.Pod("leaver", kube.Grace(20), kube.Box(func(c *corev1.Container) {
		c.Lifecycle = &corev1.Lifecycle{
			PostStart: &corev1.LifecycleHandler{Sleep: &corev1.SleepAction{Seconds: 1}},
			PreStop:   &corev1.LifecycleHandler{HTTPGet: tell.HTTPGet},
		}
	})))
	s.running("leaver")
	told := func() string { return s.in("told", "testbox", "get", "http://localhost:8080/marked") }
	want(t, "whether the hook asked before the end", told(), "false")
	s.kubectl("delete", "pod", "leaver", "--timeout=60s")
	want(t, "whether the hook has asked", told(), "true")
}

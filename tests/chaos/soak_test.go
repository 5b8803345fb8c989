package chaos

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime/debug"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/knarr-dev/knarr/tests/harness"
	"github.com/knarr-dev/knarr/tests/harness/kube"
)

var (
	soak     = flag.Duration("soak", 0, "how long the soak lasts; 0 leaves it out")
	soakInto = flag.String("soak-into", "", "a Markdown file whose section about the soak is written anew")
)

const (
	// sampleEvery is the least time between two points of the curve, and churn
	// goes on until the last.
	sampleEvery = 20 * time.Second
	// warmUp is how long it takes until the store's file holds as much history as it
	// ever will: revisions stay for five to ten minutes.
	warmUp = 11 * time.Minute
	// points are how many the curve has in Markdown; the CSV beside has all.
	points = 12
)

// Pods and objects come and go; what they took must be given back. The first
// sample is taken after a warm-up, when caches are full and pools are made.
func TestSoak(t *testing.T) {
	if *soak == 0 {
		t.Skip("make soak HOURS=1")
	}
	n := harness.Start(t, harness.Options{})
	of := commit()
	loads := []*apiLoad{startLoad(t, n, strict, 1), startLoad(t, n, cached, 1)}
	round := 0
	for began := time.Now(); time.Since(began) < warmUp; round++ {
		churn(t, n, round)
	}
	settleDown(t, n)
	first := sample(t, n, 0)
	began := time.Now()
	curve := []point{first}
	for ; time.Since(began) < *soak; round++ {
		churn(t, n, round)
		if since := time.Since(began); since-curve[len(curve)-1].at >= sampleEvery {
			curve = append(curve, sample(t, n, since))
		}
	}
	for _, l := range loads {
		l.finish(t)
	}
	settleDown(t, n)
	last := sample(t, n, time.Since(began))
	curve = append(curve, last)
	problems := compare(first, last)
	for _, p := range problems {
		t.Error(p)
	}
	t.Log("first:", first)
	t.Log("last:", last)
	if *soakInto != "" {
		if err := publish(*soakInto, of, curve, problems); err != nil {
			t.Error(err)
		}
	}
}

// churn makes one of each and removes it.
func churn(t *testing.T, n *harness.Node, round int) {
	t.Helper()
	ctx := t.Context()
	name := fmt.Sprintf("churn-%d", round)
	ns, err := n.Client.CoreV1().Namespaces().Create(ctx, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name}}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	n.Create(t, ns.Name,
		kube.Deployment("web", 3, kube.Serve("hello"), kube.Ready(kube.HTTP("/", 8080))),
		kube.Service("web", kube.Port(80, 8080), kube.NodePort),
		kube.ConfigMap("settings", "a", "b"), kube.Secret("secret", "a", "b"),
		kube.Pod("mounts", kube.Mount("scratch", "/scratch", kube.Scratch()), kube.Mount("settings", "/settings", kube.Settings("settings")), kube.Mount("secret", "/secret", kube.Secrets("secret"))))
	n.WaitPods(t, ns.Name, "app=web", 3)
	n.WaitPodRunning(t, ns.Name, "mounts")
	if err := n.Client.CoreV1().Namespaces().Delete(ctx, ns.Name, metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	n.WaitFor(t, "namespace "+ns.Name+" to go", func(ctx context.Context) (bool, error) {
		_, err := n.Client.CoreV1().Namespaces().Get(ctx, ns.Name, metav1.GetOptions{})
		return err != nil, nil
	})
}

// settleDown waits until no container of a pod is left.
func settleDown(t *testing.T, n *harness.Node) {
	t.Helper()
	n.WaitFor(t, "all containers to go", func(ctx context.Context) (bool, error) {
		out, err := n.ExecErr(ctx, n.Exe, "ctr", "containers", "list", "-q")
		if err == nil && strings.TrimSpace(out) != "" {
			err = fmt.Errorf("left: %s", out)
		}
		return err == nil, err
	})
	// Garbage is collected when the heap has grown by half, or every two minutes.
	time.Sleep(min(2*time.Minute, *soak/10))
}

// publish writes the curve as CSV beside the file and a table into its section.
func publish(file, of string, curve []point, problems []string) error {
	csv := strings.TrimSuffix(file, filepath.Ext(file)) + "-soak.csv"
	var rows strings.Builder
	fmt.Fprintln(&rows, "second,"+strings.Join(names(), ","))
	for _, p := range curve {
		fmt.Fprint(&rows, int(p.at.Seconds()))
		for _, v := range p.values {
			fmt.Fprint(&rows, ",", v)
		}
		fmt.Fprintln(&rows)
	}
	if err := os.WriteFile(csv, []byte(rows.String()), 0o644); err != nil {
		return err
	}

	var text strings.Builder
	result := "everything ended where it began"
	if len(problems) > 0 {
		result = "FAILED: " + strings.Join(problems, "; ")
	}
	fmt.Fprintf(&text, "%s, commit %s, %s of churn after a warm-up of %s of it: %s. Every point: [%s](%s).\n\n", time.Now().UTC().Format("2006-01-02 15:04 MST"), of,
		curve[len(curve)-1].at.Round(time.Minute), warmUp, result, filepath.Base(csv), filepath.Base(csv))
	fmt.Fprintln(&text, "minute | "+strings.Join(names(), " | "))
	fmt.Fprintln(&text, "---"+strings.Repeat(" | ---:", len(names())))
	step := max(1, (len(curve)-1)/points)
	for i, p := range curve {
		if i%step != 0 && i != len(curve)-1 {
			continue
		}
		fmt.Fprintf(&text, "%.1f", p.at.Minutes())
		for j, v := range p.values {
			if measures[j].unit == mebibytes {
				fmt.Fprintf(&text, " | %.1f MiB", float64(v)/(1<<20))
			} else {
				fmt.Fprintf(&text, " | %d", v)
			}
		}
		fmt.Fprintln(&text)
	}
	return replaceSection(file, text.String())
}

func commit() string {
	if out, err := exec.Command("git", "rev-parse", "--short", "HEAD").Output(); err == nil {
		return strings.TrimSpace(string(out))
	}
	if info, ok := debug.ReadBuildInfo(); ok {
		return info.Main.Version
	}
	return "unknown"
}

const (
	sectionBegin = "<!-- soak: written by make soak -->\n"
	sectionEnd   = "<!-- end of soak -->\n"
)

// replaceSection puts text between the marks, which are added at the end of a
// file that has none.
func replaceSection(file, text string) error {
	old, err := os.ReadFile(file)
	if err != nil && !os.IsNotExist(err) {
		return err
	}
	s := string(old)
	if !strings.Contains(s, sectionBegin) {
		s = strings.TrimRight(s, "\n") + "\n\n## Soak\n\n" + sectionBegin + sectionEnd
	}
	before, rest, _ := strings.Cut(s, sectionBegin)
	_, after, ok := strings.Cut(rest, sectionEnd)
	if !ok {
		return fmt.Errorf("%s: %q is missing", file, sectionEnd)
	}
	return os.WriteFile(file, []byte(before+sectionBegin+"\n"+text+"\n"+sectionEnd+after), 0o644)
}

func TestTheSoaksSectionIsReplacedAndNothingElse(t *testing.T) {
	file := filepath.Join(t.TempDir(), "testing.md")
	if err := os.WriteFile(file, []byte("# Testing\n\ntext\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, text := range []string{"first\n", "second\n"} {
		if err := replaceSection(file, text); err != nil {
			t.Fatal(err)
		}
	}
	got, err := os.ReadFile(file)
	if want := "# Testing\n\ntext\n\n## Soak\n\n" + sectionBegin + "\nsecond\n\n" + sectionEnd; err != nil || string(got) != want {
		t.Errorf("%q, %v", got, err)
	}
}

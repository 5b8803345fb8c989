// Command embedded times control planes inside of a Go program and prints the
// seconds as JSON, for the bench:
//
//	embedded knarr    # knarrtest.Start, a second one beside it, Close
//	embedded envtest  # what envtest starts from $KUBEBUILDER_ASSETS, and stops
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"testing"
	"time"

	"sigs.k8s.io/controller-runtime/pkg/envtest"

	"github.com/knarr-dev/knarr/pkg/knarrtest"
)

func main() {
	took := map[string]float64{}
	var err error
	switch {
	case len(os.Args) == 2 && os.Args[1] == "knarr":
		knarr(took)
	case len(os.Args) == 2 && os.Args[1] == "envtest":
		err = environment(took)
	default:
		err = fmt.Errorf("%q: say knarr or envtest", os.Args[1:])
	}
	if err == nil {
		err = json.NewEncoder(os.Stdout).Encode(took)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "embedded:", err)
		os.Exit(1)
	}
}

// timed notes how long something takes.
func timed(took map[string]float64, name string, do func()) {
	begin := time.Now()
	do()
	took[name] = time.Since(begin).Seconds()
}

func knarr(took map[string]float64) {
	first, second := &test{}, &test{}
	timed(took, "start", func() { knarrtest.Start(first) })
	timed(took, "second", func() { knarrtest.Start(second) })
	second.end()
	timed(took, "close", first.end)
}

func environment(took map[string]float64) error {
	var env envtest.Environment
	var err error
	timed(took, "start", func() { _, err = env.Start() })
	if err != nil {
		return fmt.Errorf("start what envtest does: %w", err)
	}
	timed(took, "close", func() { err = env.Stop() })
	return err
}

// test stands in for a test, and ends when it is told to.
type test struct {
	testing.TB // nil: what is not below is not asked for
	cleanups   []func()
}

func (t *test) Helper()                  {}
func (t *test) Name() string             { return "bench" }
func (t *test) Failed() bool             { return false }
func (t *test) Context() context.Context { return context.Background() }
func (t *test) Cleanup(f func())         { t.cleanups = append(t.cleanups, f) }
func (t *test) Log(args ...any)          { fmt.Fprintln(os.Stderr, args...) }
func (t *test) Logf(f string, a ...any)  { fmt.Fprintf(os.Stderr, f+"\n", a...) }
func (t *test) Error(args ...any)        { t.Fatal(args...) }
func (t *test) Errorf(f string, a ...any) {
	t.Fatal(fmt.Sprintf(f, a...))
}
func (t *test) Fatalf(f string, a ...any) { t.Fatal(fmt.Sprintf(f, a...)) }

// Fatal ends the program: a failed run has no figures.
func (t *test) Fatal(args ...any) {
	fmt.Fprintln(os.Stderr, append([]any{"embedded:"}, args...)...)
	os.Exit(1)
}

// end does what the end of a test does.
func (t *test) end() {
	for i := len(t.cleanups) - 1; i >= 0; i-- {
		t.cleanups[i]()
	}
	t.cleanups = nil
}

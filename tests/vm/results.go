package vm

import (
	"bytes"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"
)

const (
	beginMark = "<!-- last run of make test-vm -->"
	endMark   = "<!-- end of the last run of make test-vm -->"
)

// results are what docs/testing.md tells of the last run.
type results struct {
	commit string
	began  time.Time
	// machine says what it was: virtual processor, system and kernel.
	machine string
	steps   []step
}

type step struct {
	name, result string
	took         time.Duration
}

func (r *results) markdown() string {
	var b strings.Builder
	verdict := "all passed"
	for _, s := range r.steps {
		if s.result == "FAILED" {
			verdict = "with failures"
		}
	}
	fmt.Fprintf(&b, "Commit %s, %s, %s, %s: %s.\n\n", r.commit, r.began.UTC().Format(time.DateOnly), r.machine, time.Since(r.began).Round(time.Minute), verdict)
	b.WriteString("| the node | result | took |\n|---|---|---|\n")
	for _, s := range r.steps {
		fmt.Fprintf(&b, "| %s | %s | %s |\n", s.name, s.result, s.took.Round(time.Second))
	}
	return b.String()
}

// write puts the results between the markers of a file, or at its end with
// markers if it has none.
func (r *results) write(path string) error {
	old, err := os.ReadFile(path)
	if err != nil {
		return fmt.Errorf("write results: %w", err)
	}
	before, rest, ok := bytes.Cut(old, []byte(beginMark))
	_, after, ok2 := bytes.Cut(rest, []byte(endMark))
	switch {
	case ok != ok2:
		return fmt.Errorf("write results: %s has one of the lines %q and %q without the other", path, beginMark, endMark)
	case !ok:
		before = append(slices.Clone(old), "\n## The last run of `make test-vm`\n\n"...)
		after = []byte("\n")
	}
	text := slices.Concat(before, []byte(beginMark+"\n\n"), []byte(r.markdown()), []byte("\n"+endMark), after)
	if err := os.WriteFile(path, text, 0o644); err != nil {
		return fmt.Errorf("write results: %w", err)
	}
	return nil
}

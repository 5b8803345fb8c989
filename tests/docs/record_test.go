package docs

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// A row of the table of long runs is written anew with each run, whether it
// passes or fails, and nothing else in the file changes.
func TestLongRunsAreRecordedWithTheirResult(t *testing.T) {
	const before, after = "# Testing\n\n| fuzz | not a row of ours |\n| run | commit | date | took | result |\n|---|---|---|---|---|\n" +
		"<!-- long runs: written by scripts/record.sh -->\n", "<!-- end of long runs -->\n\n| fuzz | nor this |\n"
	file := filepath.Join(t.TempDir(), "testing.md")
	if err := os.WriteFile(file, []byte(before+after), 0o644); err != nil {
		t.Fatal(err)
	}
	record := func(code int, name string, command ...string) {
		t.Helper()
		c := exec.CommandContext(t.Context(), filepath.Join(root, "scripts", "record.sh"), append([]string{file, name}, command...)...)
		out, err := c.CombinedOutput()
		if exit := (*exec.ExitError)(nil); err != nil && !errors.As(err, &exit) || c.ProcessState.ExitCode() != code {
			t.Errorf("%s ended with %v, not with %d: %s", name, err, code, out)
		}
	}
	record(0, "fuzz", "true")
	record(0, "fuzz: more", "true")
	record(3, "fuzz", "sh", "-c", "exit 3")

	got, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	rows, ok := strings.CutPrefix(string(got), before)
	rows, ok2 := strings.CutSuffix(rows, after)
	want := regexp.MustCompile(`^\| fuzz \| [0-9a-f]{12}(-dirty)? \| \d{4}-\d\d-\d\d \| 0m\d+s \| FAILED \(exit 3\) \|
\| fuzz: more \| [0-9a-f]{12}(-dirty)? \| \d{4}-\d\d-\d\d \| 0m\d+s \| passed \|
$`)
	if !ok || !ok2 || !want.MatchString(rows) {
		t.Errorf("the file is:\n%s", got)
	}
	if err := os.WriteFile(file, []byte("# No table\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	record(2, "fuzz", "false")
}

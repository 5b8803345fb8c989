// Package docs tests that docs/testing.md names only tests that there are.
package docs

import (
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

const root = "../.."

// A row of a table names, in backticks, folders and after each the tests and
// files in it that show what the row says.
func TestEveryTestThatTheDocsNameExists(t *testing.T) {
	text, err := os.ReadFile(filepath.Join(root, "docs", "testing.md"))
	if err != nil {
		t.Fatal(err)
	}
	checked := 0
	for line := range strings.Lines(string(text)) {
		cells := strings.Split(strings.Trim(strings.TrimSpace(line), "|"), " | ")
		if !strings.HasPrefix(line, "| ") || len(cells) != 2 {
			continue
		}
		checked++
		for _, problem := range check(root, cells[1]) {
			t.Errorf("%s: %s", strings.TrimSpace(cells[0]), problem)
		}
	}
	if checked == 0 {
		t.Error("docs/testing.md has no row")
	}
}

func TestWhatDoesNotExistIsFound(t *testing.T) {
	for cell, wrong := range map[string]int{
		"`tests/docs` `TestWhatDoesNotExistIsFound`":                      0,
		"`tests/docs` `docs_test.go`, `testdata/{a,b}.txtar`":             2,
		"`tests/docs` `TestNothing`":                                      1,
		"`tests/lifecycle` `TestNode/brings its tools`, `TestNode/sings`": 1,
		"`tests/nothing`":                         1,
		"`tests` (no tests in the folder itself)": 1,
		"`TestNode` without a folder":             1,
		"BENCHMARKS.md":                           0,
	} {
		if got := check(root, cell); len(got) != wrong {
			t.Errorf("in %s is wrong: %q, want %d", cell, got, wrong)
		}
	}
}

var quoted = regexp.MustCompile("`([^`]+)`")

// check tells what a cell names that does not exist.
func check(root, cell string) []string {
	var problems []string
	dir, source := "", "" // the folder named last, and its tests
	for _, m := range quoted.FindAllStringSubmatch(cell, -1) {
		name := m[1]
		top, _, _ := strings.Cut(name, "/")
		switch {
		case strings.HasPrefix(name, "Test"), strings.HasPrefix(name, "Fuzz"):
			if !hasTest(source, name) {
				problems = append(problems, "no "+name+" in "+dir)
			}
		case slices.Contains([]string{"pkg", "tests", "cmd"}, top) && !strings.Contains(name, "."):
			dir, source = name, tests(filepath.Join(root, name))
			if source == "" {
				problems = append(problems, name+" has no tests")
			}
		default:
			for _, file := range alternatives(name) {
				if _, err := os.Stat(filepath.Join(root, dir, file)); err != nil {
					problems = append(problems, "no "+file+" in "+dir)
				}
			}
		}
	}
	return problems
}

// tests is the text of all tests in a folder.
func tests(dir string) string {
	files, err := filepath.Glob(filepath.Join(dir, "*_test.go"))
	if err != nil {
		return ""
	}
	var all strings.Builder
	for _, f := range files {
		text, err := os.ReadFile(f)
		if err != nil {
			return ""
		}
		all.Write(text)
	}
	return all.String()
}

// hasTest looks for a test, or for one within it.
func hasTest(source, name string) bool {
	test, sub, within := strings.Cut(name, "/")
	return strings.Contains(source, "\nfunc "+test+"(") && (!within || strings.Contains(source, `t.Run("`+sub+`"`))
}

// alternatives are the names that {a,b}.x stands for.
func alternatives(name string) []string {
	before, rest, ok := strings.Cut(name, "{")
	inner, after, closed := strings.Cut(rest, "}")
	if !ok || !closed {
		return []string{name}
	}
	var all []string
	for s := range strings.SplitSeq(inner, ",") {
		all = append(all, before+s+after)
	}
	return all
}

package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func someResults() *results {
	r := newResults(time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC))
	r.of(knarrName).Version = "knarr dev"
	r.of(peerName).Version = "Kubernetes v1"
	for _, v := range []float64{1.0, 1.2, 0.9} {
		r.of(knarrName).add("start.running", v)
	}
	for _, v := range []float64{3.0, 3.1} {
		r.of(peerName).add("start.running", v)
	}
	r.of(knarrName).add("load.creates", 900)
	r.of(peerName).add("load.creates", 600)
	return r
}

func TestTablesSayHowMuchBetterKnarrIsAndWhatIsMissed(t *testing.T) {
	var b strings.Builder
	if err := printTables(&b, someResults()); err != nil {
		t.Fatal(err)
	}
	text := b.String()
	for _, want := range []string{
		"2026-01-02",
		"1.00   (0.900 – 1.20)  3.05  (3.00 – 3.10)  3.05",
		"≤ 2.50, 4.00 times better: NO",
		"1.50", // 900 creates are 1.5 times better than 600, not 0.67 times
	} {
		if !strings.Contains(text, want) {
			t.Errorf("tables lack %q:\n%s", want, text)
		}
	}
	if strings.Contains(text, "Idle") {
		t.Errorf("tables show what was not measured:\n%s", text)
	}
}

func TestComparisonTakesSidesOnlyWhenRangesAreApart(t *testing.T) {
	lower, higher := metric{}, metric{higher: true}
	for _, c := range []struct {
		m    metric
		a, b []float64
		want string
	}{
		{lower, []float64{10, 11}, []float64{5, 6}, "-47.6 % better"},
		{lower, []float64{10, 11}, []float64{20, 21}, "+95.2 % WORSE"},
		{higher, []float64{10, 11}, []float64{20, 21}, "+95.2 % better"},
		{lower, []float64{10, 20}, []float64{15, 25}, "+33.3 % within noise"},
		{lower, []float64{10}, []float64{5}, "-50.0 % one run"},
		{lower, []float64{0}, []float64{5}, ""},
	} {
		if got := c.m.verdict(c.a, c.b); got != c.want {
			t.Errorf("from %v to %v: got %q, want %q", c.a, c.b, got, c.want)
		}
	}
	var b strings.Builder
	if err := printComparison(&b, someResults(), someResults()); err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(b.String(), "start.running") {
		t.Errorf("comparison lacks a metric:\n%s", b.String())
	}
}

func TestResultsSurviveTheirFile(t *testing.T) {
	file := filepath.Join(t.TempDir(), "folder", "results.json")
	if err := someResults().write(file); err != nil {
		t.Fatal(err)
	}
	r, err := readResults(file)
	if err != nil {
		t.Fatal(err)
	}
	if got := r.samples(knarrName, "start.running"); len(got) != 3 || got[2] != 0.9 {
		t.Errorf("samples are %v", got)
	}
}

func TestMarkdownIsPutBetweenTheMarkersAlone(t *testing.T) {
	file := filepath.Join(t.TempDir(), "doc.md")
	if err := os.WriteFile(file, []byte("before\n"+beginMark+"\nold\n"+endMark+"\nafter\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := updateMarkdown(file, someResults()); err != nil {
			t.Fatal(err)
		}
	}
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	text := string(data)
	if !strings.HasPrefix(text, "before\n"+beginMark) || !strings.HasSuffix(text, endMark+"\nafter\n") ||
		strings.Contains(text, "old") || strings.Count(text, "### Start") != 1 {
		t.Errorf("file became:\n%s", text)
	}
	if err := os.WriteFile(file, []byte("no markers"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := updateMarkdown(file, someResults()); err == nil {
		t.Error("a file without markers was changed")
	}
}

func TestEveryMetricHasAKeyOfItsOwn(t *testing.T) {
	seen := map[string]bool{}
	for _, table := range tables() {
		for _, m := range table.metrics {
			if seen[m.key] || m.unit == "" || m.title == "" {
				t.Errorf("metric %+v is there twice or lacks something", m)
			}
			seen[m.key] = true
		}
	}
}

package main

import (
	"bytes"
	"fmt"
	"io"
	"maps"
	"math"
	"os"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"
)

const none = "–"

// printTables writes the results as plain text.
func printTables(w io.Writer, r *results) error {
	fmt.Fprintf(w, "%s, %d CPUs (%s), %d MiB, Linux %s\n", r.Time.Format(time.DateOnly), r.Machine.CPUs, r.Machine.CPU, r.Machine.Memory>>20, r.Machine.Kernel)
	for _, name := range slices.Sorted(maps.Keys(r.Systems)) {
		fmt.Fprintf(w, "%s: %s\n", name, r.Systems[name].Version)
	}
	for _, t := range tables() {
		rows := t.rows(r)
		if len(rows) == 0 {
			continue
		}
		fmt.Fprintf(w, "\n%s\n", t.title)
		tw := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
		for _, row := range append([][]string{{"", "", "knarr", "", "peer", "", "times better", "wanted"}}, rows...) {
			fmt.Fprintln(tw, "  "+strings.Join(row, "\t"))
		}
		if err := tw.Flush(); err != nil {
			return err
		}
	}
	for _, name := range slices.Sorted(maps.Keys(r.Systems)) {
		if m := r.Systems[name].Memory; len(m) > 0 {
			fmt.Fprintf(w, "\nPSS of %s: %s\n", name, shares(m))
		}
	}
	for _, remark := range r.Remarks {
		fmt.Fprintln(w, "remark:", remark)
	}
	return nil
}

// rows are the metrics that have samples: title, unit, median and range of
// Knarr's and of the peer's, their quotient, and what is wanted.
func (t table) rows(r *results) [][]string {
	var rows [][]string
	for _, m := range t.metrics {
		knarr, peer := r.samples(knarrName, m.key), r.samples(peerName, m.key)
		if len(knarr)+len(peer) == 0 {
			continue
		}
		a, spreadA := cell(knarr)
		b, spreadB := cell(peer)
		times := none
		if f := m.times(knarr, peer); f != 0 {
			times = short(f)
		}
		rows = append(rows, []string{m.title, m.unit, a, spreadA, b, spreadB, times, m.wanted(knarr, peer)})
	}
	return rows
}

func (r *results) samples(system, key string) []float64 {
	if s := r.Systems[system]; s != nil {
		return s.Samples[key]
	}
	return nil
}

// times is how many times better a is than b; 0 when that can't be said.
func (m metric) times(a, b []float64) float64 {
	x, y := median(a), median(b)
	if m.higher {
		x, y = y, x
	}
	if x == 0 || y == 0 {
		return 0
	}
	return y / x
}

// wanted says what Knarr must reach and, if it was measured, whether it does.
func (m metric) wanted(knarr, peer []float64) string {
	var parts []string
	met := true
	if m.limit != 0 {
		parts = append(parts, "≤ "+short(m.limit))
		met = median(knarr) <= m.limit
	}
	if m.factor != 0 {
		parts = append(parts, short(m.factor)+" times better")
		met = met && (len(peer) == 0 || m.times(knarr, peer) >= m.factor)
	}
	if len(parts) == 0 {
		return ""
	}
	text := strings.Join(parts, ", ")
	if len(knarr) == 0 {
		return text
	}
	return text + map[bool]string{true: ": yes", false: ": NO"}[met]
}

// cell is the median, and the range in brackets when there is one.
func cell(samples []float64) (mid, spread string) {
	if len(samples) == 0 {
		return none, ""
	}
	if len(samples) > 1 {
		spread = "(" + short(slices.Min(samples)) + " – " + short(slices.Max(samples)) + ")"
	}
	return short(median(samples)), spread
}

// short writes three significant digits, and all digits before the point.
func short(v float64) string {
	if v == 0 {
		return "0"
	}
	digits := max(0, 2-int(math.Floor(math.Log10(math.Abs(v)))))
	return strconv.FormatFloat(v, 'f', min(digits, 4), 64)
}

func shares(m map[string]float64) string {
	names := slices.SortedFunc(maps.Keys(m), func(a, b string) int {
		if m[a] != m[b] {
			return int(math.Copysign(1, m[b]-m[a]))
		}
		return strings.Compare(a, b)
	})
	for i, n := range names {
		names[i] = fmt.Sprintf("%s %s", n, short(m[n]))
	}
	return strings.Join(names, ", ") + " MiB"
}

// printComparison shows what became of every figure from a to b.
func printComparison(w io.Writer, a, b *results) error {
	for _, name := range []string{knarrName, peerName} {
		if a.Systems[name] == nil || b.Systems[name] == nil {
			continue
		}
		fmt.Fprintf(w, "%s: %s → %s\n", name, a.Systems[name].Version, b.Systems[name].Version)
		tw := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
		for _, t := range tables() {
			for _, m := range t.metrics {
				x, y := a.samples(name, m.key), b.samples(name, m.key)
				if len(x) == 0 || len(y) == 0 {
					continue
				}
				before, spreadBefore := cell(x)
				after, spreadAfter := cell(y)
				fmt.Fprintf(tw, "  %s\t%s\t%s\t%s\t%s\t%s\t%s\n", m.key, m.unit, before, spreadBefore, after, spreadAfter, m.verdict(x, y))
			}
		}
		if err := tw.Flush(); err != nil {
			return err
		}
	}
	return nil
}

// verdict tells by how much b differs from a. It takes sides only when no
// sample of one lies within the other's range: fewer than some dozen runs
// allow no finer statistics.
func (m metric) verdict(a, b []float64) string {
	if median(a) == 0 {
		return ""
	}
	change := fmt.Sprintf("%+.1f %%", 100*(median(b)-median(a))/median(a))
	below, above := slices.Max(b) < slices.Min(a), slices.Min(b) > slices.Max(a)
	switch {
	case len(a) < 2 || len(b) < 2:
		return change + " one run"
	case below && !m.higher || above && m.higher:
		return change + " better"
	case below || above:
		return change + " WORSE"
	}
	return change + " within noise"
}

const (
	beginMark = "<!-- figures: go run ./tests/bench --print RESULTS --into BENCHMARKS.md -->"
	endMark   = "<!-- end of figures -->"
)

// updateMarkdown replaces what is between the markers of a file.
func updateMarkdown(path string, r *results) error {
	old, err := os.ReadFile(path)
	if err != nil {
		return fmt.Errorf("put tables into %s: %w", path, err)
	}
	before, rest, ok := bytes.Cut(old, []byte(beginMark))
	_, after, ok2 := bytes.Cut(rest, []byte(endMark))
	if !ok || !ok2 {
		return fmt.Errorf("put tables into %s: it lacks the lines %q and %q", path, beginMark, endMark)
	}
	text := slices.Concat(before, []byte(beginMark+"\n"), []byte(markdown(r)), []byte(endMark), after)
	if err := os.WriteFile(path, text, 0o644); err != nil {
		return fmt.Errorf("put tables into %s: %w", path, err)
	}
	return nil
}

func markdown(r *results) string {
	var b strings.Builder
	fmt.Fprintf(&b, "\nMeasured %s: %d CPUs (%s), %d MiB of memory, Linux %s.\n\n", r.Time.Format(time.DateOnly), r.Machine.CPUs, r.Machine.CPU, r.Machine.Memory>>20, r.Machine.Kernel)
	for _, name := range slices.Sorted(maps.Keys(r.Systems)) {
		fmt.Fprintf(&b, "- %s: %s\n", name, r.Systems[name].Version)
	}
	for _, t := range tables() {
		rows := t.rows(r)
		if len(rows) == 0 {
			continue
		}
		fmt.Fprintf(&b, "\n### %s\n\n| | | Knarr | peer | times better | wanted |\n|---|---|---|---|---|---|\n", t.title)
		for _, c := range rows {
			fmt.Fprintf(&b, "| %s | %s | %s | %s | %s | %s |\n", strings.TrimSpace(c[0]), c[1], strings.TrimSpace(c[2]+" "+c[3]), strings.TrimSpace(c[4]+" "+c[5]), c[6], c[7])
		}
	}
	for _, name := range slices.Sorted(maps.Keys(r.Systems)) {
		if m := r.Systems[name].Memory; len(m) > 0 {
			fmt.Fprintf(&b, "\nPSS of %s, by program: %s.\n", name, shares(m))
		}
	}
	for _, remark := range r.Remarks {
		fmt.Fprintf(&b, "\nRemark: %s.\n", remark)
	}
	b.WriteString("\n")
	return b.String()
}

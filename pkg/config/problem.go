package config

import (
	"fmt"
	"strings"
)

// Problem is one thing wrong with a configuration. As an error it is one line:
// where it was set, what was set, why that can't be, and what to do.
type Problem struct {
	// Where is a flag (--cluster-dns), a variable (KNARR_CLUSTER_DNS) or a
	// file with line and key (/etc/knarr/config.yaml:3: cluster-dns).
	Where string
	// What is the offending value or thing.
	What string
	// Why says what is wrong with it.
	Why string
	// Fix says what to do, if Why doesn't already. It may be empty.
	Fix string
}

func (p *Problem) Error() string {
	text := fmt.Sprintf("%s: %s %s", p.Where, p.What, p.Why)
	if p.What == "" {
		text = fmt.Sprintf("%s: %s", p.Where, p.Why)
	}
	if p.Fix != "" {
		text += "; " + p.Fix
	}
	return text
}

// Nearest returns the known name that was most likely meant, or "" when none
// is near.
func Nearest(name string, known []string) string {
	name = strings.ToLower(strings.ReplaceAll(name, "_", "-"))
	// A third of the letters may be wrong; with more, the guess would puzzle.
	best, least := "", max(len(name)/3, 2)+1
	for _, k := range known {
		if d := distance(name, strings.ToLower(strings.ReplaceAll(k, "_", "-"))); d < least {
			best, least = k, d
		}
	}
	return best
}

// distance counts the letters to insert, remove or replace to make b of a
// (Levenshtein).
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			change := diagonal
			if a[i] != b[j] {
				change++
			}
			diagonal = row[j+1]
			row[j+1] = min(change, row[j]+1, row[j+1]+1)
		}
	}
	return row[len(b)]
}

// didYouMean is the advice for a name that nobody knows.
func didYouMean(name string, known []string, otherwise string) string {
	if near := Nearest(name, known); near != "" {
		return "did you mean " + near + "?"
	}
	return otherwise
}

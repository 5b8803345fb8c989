package host

import (
	"errors"
	"fmt"
)

// Level says how bad a result is.
type Level int

// The levels. A warning does not keep a server from starting, an error does.
const (
	OK Level = iota
	Warning
	Error
)

// String is the level as tables and JSON show it.
func (l Level) String() string {
	switch l {
	case Warning:
		return "warning"
	case Error:
		return "error"
	}
	return "ok"
}

// MarshalText makes JSON hold the word.
func (l Level) MarshalText() ([]byte, error) { return []byte(l.String()), nil }

// UnmarshalText reads the word back.
func (l *Level) UnmarshalText(text []byte) error {
	for _, known := range []Level{OK, Warning, Error} {
		if known.String() == string(text) {
			*l = known
			return nil
		}
	}
	return fmt.Errorf("level %q is not known: want ok, warning or error", text)
}

// Result is one thing that a check has found. It is told in one line.
type Result struct {
	// Check is the name of the check, as docs/check.md lists it.
	Check string `json:"check"`
	Level Level  `json:"level"`
	// What is so; for an ok result the fact that was looked at.
	What string `json:"what"`
	// Where it was found, why it matters and what to do about it. Empty for an
	// ok result.
	Where string `json:"where,omitempty"`
	Why   string `json:"why,omitempty"`
	Do    string `json:"do,omitempty"`
}

// String is the result as one line without its end.
func (r Result) String() string {
	line := r.What
	if r.Where != "" {
		line += " (" + r.Where + ")"
	}
	if r.Why != "" {
		line += ": " + r.Why
	}
	if r.Do != "" {
		line += "; " + r.Do
	}
	return line
}

// Error makes a result that stops the start an error.
func (r Result) Error() string { return r.String() }

// Report is what Preflight found, in the order of the checks. A check has one
// ok result, or one for each thing that is wrong.
type Report struct {
	// Level is that of the worst result.
	Level   Level    `json:"level"`
	Results []Result `json:"results"`
	// Snapshotter is the one to use: the Config's, or what stands in for it.
	Snapshotter string `json:"-"`
}

// Add appends results.
func (r *Report) Add(results ...Result) {
	for _, one := range results {
		r.Level = max(r.Level, one.Level)
	}
	r.Results = append(r.Results, results...)
}

// Err joins the results that stop the start, one a line; nil if there are none.
func (r Report) Err() error {
	var errs []error
	for _, one := range r.Of(Error) {
		errs = append(errs, one)
	}
	return errors.Join(errs...)
}

// Of returns the results of a level.
func (r Report) Of(l Level) []Result {
	var found []Result
	for _, one := range r.Results {
		if one.Level == l {
			found = append(found, one)
		}
	}
	return found
}

// findings is what one check finds wrong.
type findings struct {
	check   string
	results []Result
}

func (f *findings) errorf(what, where, why, do string) { f.add(Error, what, where, why, do) }

func (f *findings) warnf(what, where, why, do string) { f.add(Warning, what, where, why, do) }

func (f *findings) add(l Level, what, where, why, do string) {
	f.results = append(f.results, Result{Check: f.check, Level: l, What: what, Where: where, Why: why, Do: do})
}

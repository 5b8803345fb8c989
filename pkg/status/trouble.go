package status

import "time"

// Trouble is something that an add-on could not do, and tries again or waits for
// the user to mend. The add-on itself is at work.
type Trouble struct {
	// Part is the add-on.
	Part string `json:"part" yaml:"part"`
	// Object is what it is about: a file, a chart.
	Object string `json:"object" yaml:"object"`
	Error  string `json:"error" yaml:"error"`
	// Since is when it was met first.
	Since time.Time `json:"since" yaml:"since"`
}

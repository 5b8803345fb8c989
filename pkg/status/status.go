// Package status tells a running Knarr's components' states to other processes.
// It speaks HTTP over a unix socket and needs nothing of the cluster, so that it
// answers when the API server does not.
package status

import (
	"os"
	"time"

	"github.com/knarr-dev/knarr/pkg/component"
)

// Path is where the report is served.
const Path = "/v1/status"

// Report is what a running Knarr says about itself.
type Report struct {
	Version string `json:"version" yaml:"version"`
	PID     int    `json:"pid" yaml:"pid"`
	// StartedAt is when the components' group was started.
	StartedAt time.Time `json:"startedAt,omitzero" yaml:"startedAt,omitempty"`
	// At is when the report was made, by the clock of the process it is about.
	At time.Time `json:"at" yaml:"at"`
	// Ready: every critical and retried component is ready now.
	Ready      bool               `json:"ready" yaml:"ready"`
	Components []component.Status `json:"components" yaml:"components"`
}

// Of reports on a group of this process; version is the program's.
func Of(g *component.Group, version string) Report {
	r := Report{
		Version:    version,
		PID:        os.Getpid(),
		StartedAt:  g.StartedAt(),
		At:         time.Now().UTC().Truncate(time.Millisecond),
		Ready:      true,
		Components: g.Status(),
	}
	for _, c := range r.Components {
		if c.Class != component.Optional && c.State != component.StateReady {
			r.Ready = false
		}
	}
	return r
}

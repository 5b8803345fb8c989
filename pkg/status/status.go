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
	// Troubles are what add-ons could not do with what users gave them.
	Troubles []Trouble `json:"troubles,omitempty" yaml:"troubles,omitempty"`
	// Agent is how a node of another machine's cluster stands; nil on a server.
	Agent *Agent `json:"agent,omitempty" yaml:"agent,omitempty"`
}

// Agent is what an agent knows of its cluster.
type Agent struct {
	Node string `json:"node" yaml:"node"`
	// Server is the API server in use, host:port; empty while none answers.
	Server string `json:"server,omitempty" yaml:"server,omitempty"`
	// LastContact is when a server was heard last.
	LastContact time.Time   `json:"lastContact,omitzero" yaml:"lastContact,omitempty"`
	Servers     []APIServer `json:"servers" yaml:"servers"`
	// Certificates are the node's own.
	Certificates []Certificate `json:"certificates" yaml:"certificates"`
	// Offline: the node lives by what it kept.
	Offline bool `json:"offline,omitempty" yaml:"offline,omitempty"`
}

// APIServer is one of the cluster's as an agent sees it.
type APIServer struct {
	Address string `json:"address" yaml:"address"`
	// State is healthy, dead or unknown.
	State string `json:"state" yaml:"state"`
	// Tunnel tells since when the server can reach this node by one; zero if it
	// can't.
	Tunnel    time.Time `json:"tunnel,omitzero" yaml:"tunnel,omitempty"`
	LastError string    `json:"lastError,omitempty" yaml:"lastError,omitempty"`
}

// Certificate is one of a node's.
type Certificate struct {
	// Use is client or serving.
	Use     string    `json:"use" yaml:"use"`
	Expires time.Time `json:"expires" yaml:"expires"`
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

package config

import (
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// The profiles: sets of settings for a purpose. What a user sets beats them.
const (
	// ProfileCIS narrows what workloads and strangers may do, as the CIS benchmark
	// asks; see docs/hardening.md.
	ProfileCIS = "cis"
	// ProfileEdge writes and sends less, and learns later of nodes that are gone;
	// see docs/edge.md.
	ProfileEdge = "edge"
)

// AuditMetadata records who did what to which object, and no contents.
const AuditMetadata = "metadata"

// With --profile edge a kubelet renews its node's lease at a quarter of
// edgeLease, every two minutes, and the node counts as lost after edgeGrace.
const (
	edgeLease  = 8 * time.Minute
	edgeGrace  = 10 * time.Minute
	edgeReport = time.Hour
)

// ownLease is the lease of a server's own node, which is renewed every 20 s. No
// network lies between the two, so that two renewals in a grace period of 50 s
// do, where upstream wants five; each is a write to the disk, and most of what an
// idle server writes.
const ownLease = 80 * time.Second

// HasProfile tells whether a profile was chosen.
func (c *Config) HasProfile(name string) bool { return slices.Contains(c.Profiles, name) }

// Audited tells whether requests to the API server are recorded.
func (c *Config) Audited() bool {
	return c.Audit == AuditMetadata || c.HasProfile(ProfileCIS) && !c.IsSet("audit")
}

// AuditLog is where requests are recorded.
func (c *Config) AuditLog() string { return filepath.Join(c.ServerDir(), "logs", "audit.log") }

// AuditPolicy and AdmissionFile are files that the API server is given; it writes
// them itself.
func (c *Config) AuditPolicy() string {
	return filepath.Join(c.ServerDir(), "run", "audit-policy.yaml")
}

// AdmissionFile is the configuration of admission plugins with --profile cis.
func (c *Config) AdmissionFile() string { return filepath.Join(c.ServerDir(), "run", "admission.yaml") }

// APIServerProfile are flags of the profiles for the API server, name=value. They
// come between Knarr's own and the user's.
func (c *Config) APIServerProfile() []string {
	var args []string
	if c.Audited() {
		args = append(args,
			"audit-policy-file="+c.AuditPolicy(),
			"audit-log-path="+c.AuditLog(),
			"audit-log-maxage=30",
			"audit-log-maxbackup=10",
			"audit-log-maxsize=100", // MiB
			"audit-log-compress=true")
	}
	if c.HasProfile(ProfileCIS) {
		args = append(args,
			"anonymous-auth=false",
			"admission-control-config-file="+c.AdmissionFile(),
			"enable-admission-plugins=NodeRestriction,DenyServiceExternalIPs,EventRateLimit",
			"service-account-extend-token-expiration=false")
	}
	return args
}

// ControllerManagerProfile are flags of the profiles for the controller-manager.
func (c *Config) ControllerManagerProfile() []string {
	if !c.HasProfile(ProfileEdge) {
		return nil
	}
	return []string{"node-monitor-grace-period=" + edgeGrace.String()}
}

// KubeletProfile are flags of the profiles for the kubelet.
func (c *Config) KubeletProfile() []string {
	var args []string
	if c.HasProfile(ProfileCIS) {
		args = append(args, "pod-max-pids=4096", "seccomp-default=true")
	}
	if c.HasProfile(ProfileEdge) {
		args = append(args, "event-qps=1", "event-burst=5")
	}
	return args
}

// KubeletTimes are how long a node's lease lasts, of which a quarter passes
// between two renewals, and how often the node's status is written though nothing
// in it has changed. 0 is upstream's default.
func (c *Config) KubeletTimes() (lease, report time.Duration) {
	switch {
	case c.HasProfile(ProfileEdge):
		return edgeLease, edgeReport
	case !c.Agent && !c.hasGracePeriod():
		return ownLease, 0
	}
	return 0, 0
}

// hasGracePeriod tells whether the user has set when a node counts as lost.
func (c *Config) hasGracePeriod() bool {
	return slices.ContainsFunc(c.ControlPlane.ControllerManagerArgs, func(a string) bool {
		return strings.HasPrefix(a, "node-monitor-grace-period=")
	})
}

// applyProfiles sets what is an option of ours, where the user has not.
func (c *Config) applyProfiles() {
	if c.HasProfile(ProfileEdge) && !c.IsSet("datastore-synchronous") {
		c.Store.Synchronous = "normal"
	}
}

// Package component runs the parts of a node or a control plane: each starts
// the moment what it needs is ready, tells readiness by closing a channel, and
// is stopped in the reverse order with a deadline of its own.
package component

import (
	"context"
	"time"
)

// Component is one part of Knarr.
//
// Its life: the group waits until everything in Needs is ready, then calls Run
// in a goroutine of its own. Run does its work until ctx ends, and closes ready
// once others may rely on it. A Run that returns before ctx ended has failed,
// also when it returns nil. After a failure a retried component's Run is called
// again, with a new ready channel; no two calls of Run overlap.
type Component interface {
	// Name is unique in its group.
	Name() string
	// Needs names the components that must be ready before Run is called.
	Needs() []string
	// Run works until ctx ends. It closes ready at most once.
	Run(ctx context.Context, ready chan<- struct{}) error
}

// Class says what the failure of a component means to its group.
type Class int

const (
	// Critical: the failure stops the group, with an error that names the component.
	Critical Class = iota
	// Retried: the component is started again, with back-off; the others go on.
	Retried
	// Optional: the failure is told; nothing else happens.
	Optional
)

// Spec is a component and how its group treats it.
type Spec struct {
	Component
	Class Class
	// StopTimeout bounds how long the group waits for Run to return once its
	// context has ended. Default 10 seconds.
	StopTimeout time.Duration
	// Last keeps the component at work until all others have returned, but for
	// those it needs: what it does for others is missed the moment it stops.
	Last bool
	// StopsAfter names components that rely on this one to their end although
	// they don't wait for it to be ready.
	StopsAfter []string
	// FinishStart has a stop wait, for half of StopTimeout at most, until a start
	// that has begun has made the component ready: some parts of upstream end
	// the whole process when they are disturbed before.
	FinishStart bool
}

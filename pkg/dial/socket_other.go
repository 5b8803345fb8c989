//go:build !linux

package dial

import "time"

// setUserTimeout leaves it to the keep-alive, which takes as long.
func setUserTimeout(int, time.Duration) error { return nil }

// stateOf knows nothing.
func stateOf(int) (tcpState, bool) { return tcpState{}, false }

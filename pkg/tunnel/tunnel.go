// Package tunnel brings an API server's connections to nodes that it can't reach:
// behind NAT, at the edge. Each agent keeps one connection to each API server,
// and the server's connections to that node's kubelet and pods go back through
// it.
//
// The agent asks for GET /knarr/v1/tunnel with the header Upgrade:
// knarr-tunnel/1, over TLS and as the user that its kubelet is. After the answer
// 101 both sides speak yamux (github.com/hashicorp/yamux), in which only the
// server may open streams; an agent that opens one loses its tunnel. Each stream
// carries records, see record.go: the first names the target, the answer to it
// tells whether the agent reached it, and then data flows.
//
// Liveness is our own, not yamux's: each side asks for a sign of life when it
// has heard nothing at all for 15 s, and gives the tunnel up 10 s later. yamux
// would ask while data flows too, and take an answer that queues behind that
// data for a dead peer. An idle tunnel costs some 30 bytes a second on the wire.
package tunnel

import (
	"errors"
	"time"
)

const (
	// Path is where an API server takes tunnels.
	Path = "/knarr/v1/tunnel"
	// Protocol is what the connection is upgraded to.
	Protocol = "knarr-tunnel/1"

	// clientHeader names the agent's process and the address by which it reached
	// the server, so that one that reaches it by two keeps one tunnel.
	clientHeader = "Knarr-Tunnel-Client"
)

const (
	// DefaultKeepAlive is how long a tunnel may be silent before a sign of life
	// is asked for. NAT mappings of TCP live for minutes at least.
	DefaultKeepAlive = 15 * time.Second
	// answerTimeout is how long that sign may take.
	answerTimeout = 10 * time.Second
	// connectTimeout bounds the way to a tunnel: TCP, TLS and the upgrade.
	connectTimeout = 15 * time.Second
	// openTimeout bounds the way to a target through a tunnel, where the
	// caller's context does not; targetTimeout is the agent's part of it.
	openTimeout   = 15 * time.Second
	targetTimeout = 10 * time.Second
)

var (
	// ErrNotConnected is in the error of a dial to a node without a tunnel.
	ErrNotConnected = errors.New("the node has no tunnel to this server")
	// ErrRefused is in the error of a dial to what the agent does not let the
	// server reach.
	ErrRefused = errors.New("the agent does not let the server reach it")
	// ErrCut is in the error of everything that was open in a tunnel that ended.
	ErrCut = errors.New("the tunnel was cut")
)

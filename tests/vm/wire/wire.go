// Package wire is what the tests and their agent in the virtual machine say to
// each other, one JSON document a line: lines keep both in step when the machine
// reboots in the middle of a word.
package wire

// Port is the name of the machine's virtio port that carries the lines.
const Port = "knarr"

// Request asks the agent to run a program, or, without Args, which boot it is.
type Request struct {
	ID    uint64   `json:"id"`
	Args  []string `json:"args,omitempty"`
	Stdin []byte   `json:"stdin,omitempty"`
}

// Reply answers the request of its ID, in any order.
type Reply struct {
	ID     uint64 `json:"id"`
	Boot   string `json:"boot"` // the kernel's name for this boot
	Stdout []byte `json:"stdout,omitempty"`
	Stderr []byte `json:"stderr,omitempty"`
	// Code is the program's exit code, or -1 with Error if it has none.
	Code  int    `json:"code"`
	Error string `json:"error,omitempty"`
}

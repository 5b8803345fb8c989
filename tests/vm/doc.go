// Package vm runs a node in a virtual machine: a fresh Debian 12 with systemd
// as process 1, cgroup v2 alone, real reboots and a clock that may be set.
// `make test-vm` runs it, outside of CI, since an emulated processor is some
// twenty times slower.
//
// The machine has no way out: its network is restricted to one forwarded port,
// the API server's, on this machine's loopback. Commands reach it by an agent
// behind a virtio port. It needs root, and what `scripts/deps.sh vm` installs.
package vm

package dial

import (
	"time"

	"golang.org/x/sys/unix"
)

// tcpClose is TCP_CLOSE of the kernel's include/net/tcp_states.h.
const tcpClose = 7

func setUserTimeout(fd int, silence time.Duration) error {
	return unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(silence.Milliseconds()))
}

func stateOf(fd int) (tcpState, bool) {
	info, err := unix.GetsockoptTCPInfo(fd, unix.IPPROTO_TCP, unix.TCP_INFO)
	if err != nil {
		return tcpState{}, false
	}
	return tcpState{
		heard:  time.Duration(min(info.Last_data_recv, info.Last_ack_recv)) * time.Millisecond,
		closed: info.State == tcpClose,
	}, true
}

package nftwatch

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// subscribe opens a netlink socket that receives the changes of nf_tables in
// the network namespace of the calling thread.
func subscribe(buffer int) (*os.File, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_NETFILTER)
	if err != nil {
		return nil, fmt.Errorf("open netlink socket to the packet filter: %w", err)
	}
	// Past the system's limit only with CAP_NET_ADMIN; a smaller one works too.
	if unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, buffer) != nil {
		_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, buffer)
	}
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("bind netlink socket to the packet filter: %w", err)
	}
	if err := unix.SetsockoptInt(fd, unix.SOL_NETLINK, unix.NETLINK_ADD_MEMBERSHIP, unix.NFNLGRP_NFTABLES); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("subscribe to packet-filter changes (is the kernel module nf_tables loaded?): %w", err)
	}
	return os.NewFile(uintptr(fd), "netlink"), nil
}

// message is what matters of one netlink message.
type message struct {
	// table is the family and name of the table that changed; empty in the
	// message that ends a transaction.
	table      string
	deletes    bool // something was deleted, else added or changed
	wholeTable bool // the table itself, not something in it

	ends bool   // this ends a transaction
	pid  int    // who made it
	comm string // the name of its process
}

// Numbers of the kernel's interface that golang.org/x/sys/unix lacks.
const (
	// attrTable names the table in every message about one or something in it.
	attrTable = 1
	// typeMask takes the flags off an attribute's type.
	typeMask = 0x3fff
	// `nft destroy` deletes what may not exist; kernels since 6.3 tell of it by
	// messages of its own.
	msgDestroyTable     = 26
	msgDestroyChain     = 27
	msgDestroyRule      = 28
	msgDestroySet       = 29
	msgDestroySetElem   = 30
	msgDestroyObj       = 31
	msgDestroyFlowtable = 32
)

// messages decodes what one read returned. What it does not understand, it
// leaves out.
func messages(b []byte) []message {
	var list []message
	for len(b) >= unix.NLMSG_HDRLEN {
		size := int(binary.NativeEndian.Uint32(b))
		kind := binary.NativeEndian.Uint16(b[4:])
		if size < unix.NLMSG_HDRLEN || size > len(b) {
			break
		}
		if m, ok := decode(kind, b[unix.NLMSG_HDRLEN:size]); ok {
			list = append(list, m)
		}
		b = b[min(align(size), len(b)):]
	}
	return list
}

func decode(kind uint16, body []byte) (message, bool) {
	if kind>>8 != unix.NFNL_SUBSYS_NFTABLES || len(body) < 4 {
		return message{}, false
	}
	family, attrs := body[0], body[4:]
	m := message{}
	switch kind & 0xff {
	case unix.NFT_MSG_NEWGEN:
		m.ends = true
		if pid := attribute(attrs, unix.NFTA_GEN_PROC_PID); len(pid) == 4 {
			m.pid = int(binary.BigEndian.Uint32(pid))
		}
		m.comm = text(attribute(attrs, unix.NFTA_GEN_PROC_NAME))
		return m, true
	case unix.NFT_MSG_NEWTABLE:
		m.wholeTable = true
	case unix.NFT_MSG_DELTABLE, msgDestroyTable:
		m.deletes, m.wholeTable = true, true
	case unix.NFT_MSG_DELCHAIN, unix.NFT_MSG_DELRULE, unix.NFT_MSG_DELSET,
		unix.NFT_MSG_DELSETELEM, unix.NFT_MSG_DELOBJ, unix.NFT_MSG_DELFLOWTABLE,
		msgDestroyChain, msgDestroyRule, msgDestroySet,
		msgDestroySetElem, msgDestroyObj, msgDestroyFlowtable:
		m.deletes = true
	case unix.NFT_MSG_NEWCHAIN, unix.NFT_MSG_NEWRULE, unix.NFT_MSG_NEWSET,
		unix.NFT_MSG_NEWSETELEM, unix.NFT_MSG_NEWOBJ, unix.NFT_MSG_NEWFLOWTABLE:
	default:
		return message{}, false
	}
	m.table = familyName(family) + " " + text(attribute(attrs, attrTable))
	return m, true
}

// attribute returns the value of the first attribute of a kind.
func attribute(b []byte, kind uint16) []byte {
	for len(b) >= unix.SizeofNlAttr {
		size := int(binary.NativeEndian.Uint16(b))
		if size < unix.SizeofNlAttr || size > len(b) {
			return nil
		}
		if binary.NativeEndian.Uint16(b[2:])&typeMask == kind {
			return b[unix.SizeofNlAttr:size]
		}
		b = b[min(align(size), len(b)):]
	}
	return nil
}

func text(b []byte) string { return string(bytes.TrimRight(b, "\x00")) }

// align rounds up to where the next part begins.
func align(n int) int { return (n + unix.NLMSG_ALIGNTO - 1) &^ (unix.NLMSG_ALIGNTO - 1) }

// familyName is how nft calls a family of tables.
func familyName(f byte) string {
	switch f {
	case unix.NFPROTO_INET:
		return "inet"
	case unix.NFPROTO_IPV4:
		return "ip"
	case unix.NFPROTO_IPV6:
		return "ip6"
	case unix.NFPROTO_ARP:
		return "arp"
	case unix.NFPROTO_BRIDGE:
		return "bridge"
	case unix.NFPROTO_NETDEV:
		return "netdev"
	}
	return fmt.Sprintf("family-%d", f)
}

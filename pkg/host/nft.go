package host

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// NFTables asks for what kube-proxy's rules and ours are made of.
func (runningKernel) NFTables() ([]string, error) {
	return probeNFTables("ct", "nat", "masq", "fib", "numgen", "reject")
}

// probeNFTables sends the beginning of a transaction that uses each feature and
// never its end: the kernel answers for each message, then drops them all.
func probeNFTables(expressions ...string) ([]string, error) {
	b := newNFTBatch()
	b.add(unix.NFT_MSG_NEWTABLE, "", attr(unix.NFTA_TABLE_NAME, "knarr-probe"))
	b.chain("knarr-probe", "nat", unix.NF_INET_POST_ROUTING, "nat chains")
	b.chain("knarr-probe", "filter", unix.NF_INET_LOCAL_IN, "filter chains")
	b.add(unix.NFT_MSG_NEWCHAIN, "",
		attr(unix.NFTA_CHAIN_TABLE, "knarr-probe"), attr(unix.NFTA_CHAIN_NAME, "expressions"))
	for _, expr := range expressions {
		b.rule("knarr-probe", "expressions", expr)
	}
	answers, err := b.send()
	if err != nil {
		return nil, err
	}
	var missing []string
	for _, a := range answers {
		if a.label == "" && a.err != nil {
			return nil, a.err
		}
		// An expression that exists complains of its missing arguments instead.
		if a.label != "" && (errors.Is(a.err, unix.ENOENT) || errors.Is(a.err, unix.EOPNOTSUPP)) {
			missing = append(missing, a.label)
		}
	}
	return missing, nil
}

// nftBatch gathers messages to nftables that are sent as one transaction.
type nftBatch struct {
	buf    []byte
	labels []string
}

// nftAnswer is the kernel's word on one message of a batch.
type nftAnswer struct {
	label string
	err   error
}

func newNFTBatch() *nftBatch {
	b := &nftBatch{}
	b.message(unix.NFNL_MSG_BATCH_BEGIN, 0, 0, unix.NFNL_SUBSYS_NFTABLES)
	return b
}

func attr(kind uint16, text string) *nl.RtAttr {
	return nl.NewRtAttr(int(kind), nl.ZeroTerminated(text))
}

// message appends one netlink message; its sequence number is its place.
func (b *nftBatch) message(kind, flags, family, resource uint16, attrs ...*nl.RtAttr) {
	body := []byte{byte(family), unix.NFNETLINK_V0, 0, 0}
	binary.BigEndian.PutUint16(body[2:], resource)
	for _, a := range attrs {
		body = append(body, a.Serialize()...)
	}
	header := make([]byte, unix.SizeofNlMsghdr)
	binary.NativeEndian.PutUint32(header, uint32(len(header)+len(body)))
	binary.NativeEndian.PutUint16(header[4:], kind)
	binary.NativeEndian.PutUint16(header[6:], unix.NLM_F_REQUEST|flags)
	binary.NativeEndian.PutUint32(header[8:], uint32(len(b.labels)))
	b.buf = append(append(b.buf, header...), body...)
	b.labels = append(b.labels, "")
}

// add appends a request of the ip family; label names its answer.
func (b *nftBatch) add(kind uint16, label string, attrs ...*nl.RtAttr) {
	b.addFamily(kind, unix.NFPROTO_IPV4, label, attrs...)
}

func (b *nftBatch) addFamily(kind, family uint16, label string, attrs ...*nl.RtAttr) {
	b.message(unix.NFNL_SUBSYS_NFTABLES<<8|kind, unix.NLM_F_ACK|unix.NLM_F_CREATE, family, 0, attrs...)
	b.labels[len(b.labels)-1] = label
}

func (b *nftBatch) chain(table, kind string, hook uint32, label string) {
	h := nl.NewRtAttr(unix.NFTA_CHAIN_HOOK|unix.NLA_F_NESTED, nil)
	h.AddRtAttr(unix.NFTA_HOOK_HOOKNUM, binary.BigEndian.AppendUint32(nil, hook))
	h.AddRtAttr(unix.NFTA_HOOK_PRIORITY, binary.BigEndian.AppendUint32(nil, 100))
	b.add(unix.NFT_MSG_NEWCHAIN, label, attr(unix.NFTA_CHAIN_TABLE, table),
		attr(unix.NFTA_CHAIN_NAME, kind), h, attr(unix.NFTA_CHAIN_TYPE, kind))
}

func (b *nftBatch) rule(table, chain, expr string) {
	exprs := nl.NewRtAttr(unix.NFTA_RULE_EXPRESSIONS|unix.NLA_F_NESTED, nil)
	exprs.AddRtAttr(unix.NFTA_LIST_ELEM|unix.NLA_F_NESTED, nil).AddRtAttr(unix.NFTA_EXPR_NAME, nl.ZeroTerminated(expr))
	b.add(unix.NFT_MSG_NEWRULE, expr, attr(unix.NFTA_RULE_TABLE, table), attr(unix.NFTA_RULE_CHAIN, chain), exprs)
}

// commit ends the transaction, so that send carries it out.
func (b *nftBatch) commit() {
	b.message(unix.NFNL_MSG_BATCH_END, 0, 0, unix.NFNL_SUBSYS_NFTABLES)
}

// send hands the batch over. The kernel works it off before sendto returns, so
// that every answer is there to be read.
func (b *nftBatch) send() ([]nftAnswer, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_NETFILTER)
	if err != nil {
		return nil, fmt.Errorf("open a netfilter socket: %w", err)
	}
	defer unix.Close(fd)
	if err := unix.Sendto(fd, b.buf, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return nil, fmt.Errorf("send to nftables: %w", err)
	}
	var answers []nftAnswer
	buf := make([]byte, 1<<16)
	for {
		n, _, err := unix.Recvfrom(fd, buf, unix.MSG_DONTWAIT)
		if errors.Is(err, unix.EAGAIN) {
			return answers, nil
		}
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("read nftables' answer: %w", err)
		}
		for m := buf[:n]; len(m) >= unix.SizeofNlMsghdr+4; {
			size := int(binary.NativeEndian.Uint32(m))
			kind := binary.NativeEndian.Uint16(m[4:])
			seq := int(binary.NativeEndian.Uint32(m[8:]))
			if kind == unix.NLMSG_ERROR && seq < len(b.labels) {
				a := nftAnswer{label: b.labels[seq]}
				if code := int32(binary.NativeEndian.Uint32(m[unix.SizeofNlMsghdr:])); code != 0 {
					a.err = unix.Errno(-code)
				}
				answers = append(answers, a)
			}
			m = m[min(len(m), max((size+3)&^3, unix.SizeofNlMsghdr)):]
		}
	}
}

// ForwardDrops asks for all chains, and picks those at the forward hook whose
// policy is to drop.
func (runningKernel) ForwardDrops() ([]string, error) {
	req := nl.NewNetlinkRequest(unix.NFNL_SUBSYS_NFTABLES<<8|unix.NFT_MSG_GETCHAIN, unix.NLM_F_DUMP)
	req.AddRawData([]byte{unix.NFPROTO_UNSPEC, unix.NFNETLINK_V0, 0, 0})
	messages, err := req.Execute(unix.NETLINK_NETFILTER, 0)
	if err != nil {
		return nil, fmt.Errorf("list the chains of nftables: %w", err)
	}
	var drops []string
	for _, m := range messages {
		if len(m) < 4 {
			continue
		}
		family, known := map[byte]string{unix.NFPROTO_IPV4: "ip", unix.NFPROTO_IPV6: "ip6", unix.NFPROTO_INET: "inet"}[m[0]]
		attrs, err := nl.ParseRouteAttrAsMap(m[4:])
		if err != nil || !known {
			continue
		}
		const drop = 0 // NF_DROP
		policy := attrs[unix.NFTA_CHAIN_POLICY].Value
		// Kernels differ in whether they mark it as nested.
		hook, err := nl.ParseRouteAttrAsMap(slices.Concat(attrs[unix.NFTA_CHAIN_HOOK].Value, attrs[unix.NFTA_CHAIN_HOOK|unix.NLA_F_NESTED].Value))
		if err != nil || len(policy) != 4 || binary.BigEndian.Uint32(policy) != drop {
			continue
		}
		number := hook[unix.NFTA_HOOK_HOOKNUM].Value
		if len(number) == 4 && binary.BigEndian.Uint32(number) == unix.NF_INET_FORWARD {
			drops = append(drops, family+" "+nl.BytesToString(attrs[unix.NFTA_CHAIN_TABLE].Value)+" "+nl.BytesToString(attrs[unix.NFTA_CHAIN_NAME].Value))
		}
	}
	return drops, nil
}

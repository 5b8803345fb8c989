package config

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

// mostPooled bounds how many addresses the load balancer's pool may have: they
// are gone through one by one.
const mostPooled = 4096

// LoadBalancerPool are the addresses of ServiceLBPool, in order, each once. The
// error tells what is wrong with the text, or that there are too many.
func (n Network) LoadBalancerPool() ([]netip.Addr, error) {
	var all []netip.Addr
	for _, text := range n.ServiceLBPool {
		addrs, err := addressRange(text)
		if err != nil {
			return nil, fmt.Errorf("--servicelb-pool=%s: %w", text, err)
		}
		all = append(all, addrs...)
	}
	slices.SortFunc(all, netip.Addr.Compare)
	if all = slices.Compact(all); len(all) > mostPooled {
		return nil, fmt.Errorf("has more than %d addresses", mostPooled)
	}
	return all, nil
}

// addressRange reads an address, the first and the last of several, or a prefix.
// Of an IPv4 prefix, the network's own address and the one of all are left out.
func addressRange(text string) ([]netip.Addr, error) {
	from, to, isRange := strings.Cut(text, "-")
	first, last := netip.Addr{}, netip.Addr{}
	if p, err := netip.ParsePrefix(text); err == nil {
		p = p.Masked()
		first = p.Addr()
		if p.Addr().BitLen()-p.Bits() > 12 {
			return nil, fmt.Errorf("has more than %d addresses", mostPooled)
		}
		for last = first; p.Contains(last.Next()); {
			last = last.Next()
		}
		if p.Addr().Is4() && p.Bits() < 31 {
			first, last = first.Next(), last.Prev()
		}
	} else {
		if !isRange {
			to = from
		}
		var err1, err2 error
		first, err1 = parseAddr(strings.TrimSpace(from))
		last, err2 = parseAddr(strings.TrimSpace(to))
		if err1 != nil || err2 != nil || first.BitLen() != last.BitLen() || last.Less(first) {
			return nil, errors.New("is not a range of addresses")
		}
	}
	var list []netip.Addr
	for a := first; ; a = a.Next() {
		if list = append(list, a); len(list) > mostPooled {
			return nil, fmt.Errorf("has more than %d addresses", mostPooled)
		}
		if a == last {
			return list, nil
		}
	}
}

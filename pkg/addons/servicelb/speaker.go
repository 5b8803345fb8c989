package servicelb

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"time"
)

// speaker answers for addresses on the local network that no link of this machine
// has: who asks for one is told the machine's own hardware address. It stops when
// the process does, so that another node can take over.
type speaker struct {
	log   *slog.Logger
	tasks sync.WaitGroup
	open  map[string]*voice // by the name of the link and the family
	// untold are addresses that no link of the machine could have, told once each.
	untold map[netip.Addr]bool
}

// voice speaks for addresses of one family on one link.
type voice struct {
	conn neighbourConn
	mu   sync.Mutex
	mine map[netip.Addr]bool
}

// neighbourConn is a protocol by which neighbours on a link find each other.
type neighbourConn interface {
	// run answers questions for which mine is true, until close.
	run(mine func(netip.Addr) bool)
	// join prepares for questions about an address, and announce tells all
	// neighbours that it is here now.
	join(netip.Addr) error
	announce(netip.Addr) error
	close() error
}

// announceAfter are the times at which neighbours are told of a new address; some
// of them may not hear of it the first time.
var announceAfter = []time.Duration{0, time.Second, 3 * time.Second}

func newSpeaker(log *slog.Logger) *speaker {
	return &speaker{log: log, open: map[string]*voice{}, untold: map[netip.Addr]bool{}}
}

// set has the speaker answer for exactly these addresses.
func (s *speaker) set(addrs []netip.Addr) {
	links := map[string][]netip.Addr{}
	for _, addr := range addrs {
		link, own, err := linkOf(addr)
		switch {
		case own: // the kernel answers
		case err != nil:
			if !s.untold[addr] {
				s.untold[addr] = true
				s.log.Warn("an address of the pool (--servicelb-pool) cannot be announced from here", "address", addr, "err", err)
			}
		default:
			key := link.Name + " 4"
			if addr.Is6() {
				key = link.Name + " 6"
			}
			links[key] = append(links[key], addr)
			if s.open[key] == nil {
				s.start(key, link, addr.Is6())
			}
		}
	}
	for key, v := range s.open {
		if len(links[key]) == 0 {
			_ = v.conn.close() // nothing was written that could be lost
			delete(s.open, key)
			continue
		}
		s.speak(v, links[key])
	}
}

func (s *speaker) start(key string, link *net.Interface, v6 bool) {
	open := openARP
	if v6 {
		open = openNDP
	}
	conn, err := open(link)
	if err != nil {
		s.log.Warn("addresses of the pool (--servicelb-pool) cannot be announced from here", "link", link.Name, "err", err)
		return
	}
	v := &voice{conn: conn, mine: map[netip.Addr]bool{}}
	s.open[key] = v
	s.tasks.Go(func() { conn.run(v.has) })
}

// speak makes a voice's addresses these, and tells the neighbours of new ones.
func (s *speaker) speak(v *voice, addrs []netip.Addr) {
	v.mu.Lock()
	var fresh []netip.Addr
	for _, a := range addrs {
		if !v.mine[a] {
			fresh = append(fresh, a)
		}
	}
	v.mine = map[netip.Addr]bool{}
	for _, a := range addrs {
		v.mine[a] = true
	}
	v.mu.Unlock()
	for _, a := range fresh {
		if err := v.conn.join(a); err != nil {
			s.log.Warn("an address of the pool (--servicelb-pool) cannot be announced from here", "address", a, "err", err)
			continue
		}
		for _, after := range announceAfter {
			time.AfterFunc(after, func() {
				if v.has(a) {
					_ = v.conn.announce(a) // it is closed, or the next one may do better
				}
			})
		}
	}
}

func (v *voice) has(a netip.Addr) bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.mine[a]
}

func (s *speaker) close() {
	s.set(nil)
	s.tasks.Wait()
}

// linkOf finds the link on whose network an address is. own tells that it is the
// machine's own.
func linkOf(addr netip.Addr) (link *net.Interface, own bool, err error) {
	links, err := net.Interfaces()
	if err != nil {
		return nil, false, fmt.Errorf("list links: %w", err)
	}
	for i := range links {
		l := &links[i]
		addrs, err := l.Addrs()
		if err != nil {
			continue // it went meanwhile
		}
		for _, a := range addrs {
			p, err := netip.ParsePrefix(a.String())
			if err != nil {
				continue
			}
			if p.Addr().Unmap() == addr {
				return nil, true, nil
			}
			if link == nil && p.Contains(addr) && l.Flags&net.FlagLoopback == 0 && len(l.HardwareAddr) == 6 {
				link = l
			}
		}
	}
	if link == nil {
		return nil, false, errors.New("no link of this machine is on a network that it belongs to")
	}
	return link, false, nil
}

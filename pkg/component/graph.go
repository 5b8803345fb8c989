package component

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
)

// NewGroup checks the graph of needs and makes a group of it. Its error tells
// all that is wrong: a name given twice, a need that is in no component's name,
// components that need each other in a circle. log must not be nil.
func NewGroup(log *slog.Logger, specs ...Spec) (*Group, error) {
	g := &Group{
		log:      log,
		byName:   make(map[string]*member, len(specs)),
		allReady: make(chan struct{}),
		changed:  make(chan struct{}),
	}
	var errs []error
	for i, s := range specs {
		if s.Component == nil || s.Name() == "" {
			errs = append(errs, fmt.Errorf("component %d of the group has no name", i+1))
			continue
		}
		if g.byName[s.Name()] != nil {
			errs = append(errs, fmt.Errorf("two components are named %s", s.Name()))
			continue
		}
		if s.StopTimeout <= 0 {
			s.StopTimeout = defaultStopTimeout
		}
		m := &member{
			Spec:     s,
			ready:    make(chan struct{}),
			done:     make(chan struct{}),
			released: make(chan struct{}),
			status:   Status{Name: s.Name(), Class: s.Class, State: StateWaiting},
		}
		g.members = append(g.members, m)
		g.byName[s.Name()] = m
		if s.Class != Optional {
			g.unready++
		}
	}
	for _, m := range g.members {
		errs = append(errs, g.link(m))
	}
	if circle := findCircle(g.members); circle != nil {
		errs = append(errs, fmt.Errorf("components need each other in a circle: %s", strings.Join(circle, " → ")))
	} else {
		g.orderLast()
	}
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	if g.unready == 0 {
		close(g.allReady)
	}
	return g, nil
}

func (g *Group) link(m *member) error {
	var errs []error
	for _, name := range m.Needs() {
		n := g.byName[name]
		if n == nil {
			errs = append(errs, fmt.Errorf("component %s needs %s, which is not in the group", m.status.Name, name))
			continue
		}
		m.needs = append(m.needs, n)
		m.relyOn(n)
	}
	for _, name := range m.StopsAfter {
		if n := g.byName[name]; n != nil {
			n.relyOn(m)
		} else {
			errs = append(errs, fmt.Errorf("component %s stops after %s, which is not in the group", m.status.Name, name))
		}
	}
	return errors.Join(errs...)
}

func (m *member) relyOn(n *member) {
	m.upon = append(m.upon, n)
	n.stopAfter = append(n.stopAfter, m)
}

// orderLast has the components that stop last wait for all others but what they
// rely on themselves, directly or not.
func (g *Group) orderLast() {
	stays := make(map[*member]bool)
	var keep func(m *member)
	keep = func(m *member) {
		if !stays[m] {
			stays[m] = true
			for _, n := range m.upon {
				keep(n)
			}
		}
	}
	for _, m := range g.members {
		if m.Last {
			keep(m)
		}
	}
	for _, m := range g.members {
		for _, other := range g.members {
			if m.Last && !stays[other] {
				m.stopAfter = append(m.stopAfter, other)
			}
		}
	}
}

// findCircle returns the names along one circle, the first repeated at the end,
// or nil.
func findCircle(members []*member) []string {
	clean := make(map[*member]bool)
	var path []*member
	var visit func(m *member) []string
	visit = func(m *member) []string {
		if i := slices.Index(path, m); i >= 0 {
			var names []string
			for _, p := range append(path[i:], m) {
				names = append(names, p.status.Name)
			}
			return names
		}
		if clean[m] {
			return nil
		}
		path = append(path, m)
		for _, n := range m.upon {
			if circle := visit(n); circle != nil {
				return circle
			}
		}
		path = path[:len(path)-1]
		clean[m] = true
		return nil
	}
	for _, m := range members {
		if circle := visit(m); circle != nil {
			return circle
		}
	}
	return nil
}

// Func makes a component of a function that keeps the contract of
// Component's Run.
func Func(name string, needs []string, run func(ctx context.Context, ready chan<- struct{}) error) Component {
	return &function{name, needs, run}
}

type function struct {
	name  string
	needs []string
	run   func(ctx context.Context, ready chan<- struct{}) error
}

var _ Component = (*function)(nil)

func (f *function) Name() string    { return f.name }
func (f *function) Needs() []string { return f.needs }

func (f *function) Run(ctx context.Context, ready chan<- struct{}) error { return f.run(ctx, ready) }

package controlplane

import (
	"maps"
	"sync"

	"github.com/spf13/pflag"
	cliflag "k8s.io/component-base/cli/flag"
)

// Settings are the flags that upstream's parts run with, whoever has set them.
// The zero value is ready.
type Settings struct {
	mu    sync.Mutex
	flags map[string]map[string]string
}

// All returns them by part (kube-apiserver, kube-controller-manager,
// kube-scheduler) and name.
func (s *Settings) All() map[string]map[string]string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return maps.Clone(s.flags)
}

// note keeps the present values of a part's flags.
func (s *Settings) note(part string, sets cliflag.NamedFlagSets) {
	if s == nil {
		return
	}
	values := map[string]string{}
	for _, set := range sets.FlagSets {
		set.VisitAll(func(f *pflag.Flag) { values[f.Name] = f.Value.String() })
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.flags == nil {
		s.flags = map[string]map[string]string{}
	}
	s.flags[part] = values
}
